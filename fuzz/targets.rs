//! What comes from outside, one function each: none may panic, and none may let through what breaks the
//! rule that stands beside it. Called by the fuzzers here and by `tests/fuzz.rs`.

use std::{cell::RefCell, fs::File, io::Write, path::Path};

use bytes::Bytes;
use depsync::{
    bus::frame::{self, Announce, FromFollower, FromUpstream},
    config::{self, import},
    model::{Head, ObjectId, Oid, RelPath},
    serve::range::{self, Verdict},
    store::{Store, delta},
};
use flate2::{Compression, write::ZlibEncoder};
use http::{HeaderMap, HeaderValue, Method, header};
use sha1::{Digest, Sha1};

/// Takes one input.
pub(crate) type Target = fn(&[u8]);

/// All of them, by the names of their corpora.
pub(crate) const TARGETS: [(&str, Target); 8] = [
    ("frames", frames),
    ("packs", packs),
    ("deltas", deltas),
    ("region_xml", region_xml),
    ("rs_xml", rs_xml),
    ("carbon_xml", carbon_xml),
    ("ranges", ranges),
    ("paths", paths),
];

/// What is read is what is written again.
pub(crate) fn frames(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(read) = frame::decode::<FromFollower>(&text) {
        let again = frame::decode::<FromFollower>(&frame::encode(&read)).expect("we wrote it");
        assert_eq!(again, read);
    }
    if let Ok(read) = frame::decode::<FromUpstream>(&text) {
        let again = frame::decode::<FromUpstream>(&frame::encode(&read)).expect("we wrote it");
        assert_eq!(again, read);
    }
    if let Ok((announce, pack)) = Announce::decode(Bytes::copy_from_slice(data)) {
        assert_eq!(announce.size, pack.as_ref().map_or(0, |pack| pack.len() as u64));
        let again = announce.encode(pack.as_deref());
        assert_eq!(Announce::decode(again).expect("we wrote it").0, announce);
    }
}

thread_local! {
    static STORE: RefCell<Option<(tempfile::TempDir, Store)>> = const { RefCell::new(None) };
}

/// What is refused changes nothing; what is taken in holds no illegal name. The first byte says how the
/// rest is read: as a pack whose checksum is put right, or as objects that are packed here.
pub(crate) fn packs(data: &[u8]) {
    takes_pack(data);
}

/// Whether the pack is taken in.
pub(crate) fn takes_pack(data: &[u8]) -> bool {
    let Some((kind, rest)) = data.split_first() else { return false };
    let (pack, want) = if kind % 2 == 0 { whole_pack(rest) } else { packed(rest) };
    STORE.with_borrow_mut(|kept| {
        let (folder, store) = kept.get_or_insert_with(|| {
            let folder = tempfile::tempdir().expect("a folder for temporary files");
            let store = Store::open(folder.path()).expect("a new repository");
            (folder, store)
        });
        let taken = store.receive(&mut &pack[..], &want).is_ok();
        if taken {
            // Whatever was let in must be readable as a feed; the next one begins anew.
            let listed = store.commit(want.commit);
            assert!(listed.is_ok(), "{listed:?}");
            *kept = None;
        } else {
            let packs = folder.path().join("git/objects/pack");
            let left = std::fs::read_dir(packs).map_or(0, |entries| {
                let names = entries.filter_map(|entry| Some(entry.ok()?.file_name()));
                names.filter(|name| name.to_string_lossy().ends_with(".pack")).count()
            });
            assert_eq!(left, 0, "what was refused lies in the repository");
        }
        taken
    })
}

fn head(commit: Oid) -> Head {
    Head { epoch: 1, seq: 1, commit }
}

/// The first twenty bytes are the commit that is wanted, the rest is a pack without its checksum.
fn whole_pack(data: &[u8]) -> (Vec<u8>, Head) {
    let (commit, pack) = data.split_at(data.len().min(20));
    let mut id = [0; 20];
    id[..commit.len()].copy_from_slice(commit);
    let mut pack = pack.to_vec();
    pack.extend_from_slice(&Sha1::digest(&pack));
    (pack, head(Oid::from_bytes(id)))
}

/// Objects, each a byte for its type, two for its length, and its bytes; the last commit is wanted. A
/// run of twenty `I` bytes and a digit stands for the id of an object before, so that they can refer
/// to each other.
fn packed(mut data: &[u8]) -> (Vec<u8>, Head) {
    const KINDS: [(u8, &str); 3] = [(1, "commit"), (2, "tree"), (3, "blob")];
    let (mut body, mut ids, mut wanted) = (Vec::new(), Vec::<[u8; 20]>::new(), [0; 20]);
    while let [kind, high, low, rest @ ..] = data {
        if ids.len() == 32 {
            break;
        }
        let length = (usize::from(*high) << 8 | usize::from(*low)).min(rest.len());
        let (raw, rest) = rest.split_at(length);
        data = rest;
        let (code, name) = KINDS[usize::from(*kind) % 3];
        let raw = with_ids(raw, &ids, code == 1);
        let mut hash = Sha1::new();
        hash.update(format!("{name} {}\0", raw.len()));
        hash.update(&raw);
        let id: [u8; 20] = hash.finalize().into();
        if code == 1 {
            wanted = id;
        }
        ids.push(id);
        entry_head(&mut body, code, raw.len());
        let mut zlib = ZlibEncoder::new(&mut body, Compression::fast());
        zlib.write_all(&raw).and_then(|()| zlib.try_finish()).expect("memory takes it");
    }
    let mut pack = b"PACK\0\0\0\x02".to_vec();
    pack.extend_from_slice(&u32::try_from(ids.len()).expect("few objects").to_be_bytes());
    pack.extend_from_slice(&body);
    pack.extend_from_slice(&Sha1::digest(&pack));
    (pack, head(Oid::from_bytes(wanted)))
}

fn entry_head(out: &mut Vec<u8>, code: u8, mut size: usize) {
    let low = |size: usize, bits: u8| size.to_le_bytes()[0] & bits;
    let mut byte = code << 4 | low(size, 15);
    size >>= 4;
    while size > 0 {
        out.push(byte | 128);
        byte = low(size, 127);
        size >>= 7;
    }
    out.push(byte);
}

/// Commits name others in hex, trees in bytes.
fn with_ids(raw: &[u8], ids: &[[u8; 20]], hex: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&first, tail)) = rest.split_first() {
        let id = tail.first().and_then(|at| ids.get(usize::from(at.wrapping_sub(b'0'))));
        match id {
            Some(id) if first == b'I' => {
                if hex {
                    out.extend_from_slice(Oid::from_bytes(*id).to_string().as_bytes());
                } else {
                    out.extend_from_slice(id);
                }
                rest = &tail[1..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// Never more bytes come out than the result has.
pub(crate) fn deltas(data: &[u8]) {
    thread_local! {
        static BASE: RefCell<Option<File>> = const { RefCell::new(None) };
    }
    BASE.with_borrow_mut(|kept| {
        let base = kept.get_or_insert_with(|| {
            let mut base = tempfile::tempfile().expect("a temporary file");
            base.write_all(&base_bytes()).expect("a few bytes");
            base
        });
        let mut out = Vec::new();
        let done = delta::apply(&delta_header(), base, data, &mut out);
        let size = delta_header().size;
        assert!(out.len() as u64 <= size && (done.is_err() || out.len() as u64 == size));
    });
}

/// What the deltas of the corpus are between.
pub(crate) fn delta_header() -> delta::Header {
    let id = |byte| ObjectId::from_bytes([byte; 32]);
    delta::Header { base: id(1), result: id(2), size: 250_100 }
}

/// The object that the deltas begin with.
pub(crate) fn base_bytes() -> Vec<u8> {
    (0..75_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

/// A table that is taken answers for any address.
pub(crate) fn region_xml(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(table) = config::region_xml::parse(&text, Path::new("region.xml")) {
        for addr in ["10.20.0.1", "255.255.255.255", "::", "2001:db8::1", "::ffff:10.0.0.1"] {
            if let Some(region) = table.of_address(addr.parse().expect("an address")) {
                assert!(table.has(region));
            }
        }
    }
}

/// It is read or refused.
pub(crate) fn rs_xml(data: &[u8]) {
    let _ = config::read_rs_xml(&String::from_utf8_lossy(data), Path::new("rs.xml"));
}

/// It is read or refused, whatever is unknown in it.
pub(crate) fn carbon_xml(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let given = import::Given {
        dir: Some("/srv/deployment".into()),
        upstream: Some("http://hub.example:7873".parse().expect("it is a URL")),
        name: Some("eu".parse().expect("it is a name")),
    };
    let around = import::Around {
        host: "hub",
        variable: &|name| Some(format!("of-{name}")),
        is_dir: &|_| true,
    };
    for given in [given, import::Given::default()] {
        let _ = import::carbon(&text, Path::new("carbon.xml"), &given, &around);
    }
}

/// A part is never empty and lies within the file.
pub(crate) fn ranges(data: &[u8]) {
    const SIZE: u64 = 1000;
    let mut headers = HeaderMap::new();
    let names = [header::RANGE, header::IF_RANGE, header::IF_MATCH, header::IF_NONE_MATCH];
    for (line, name) in data.split(|&c| c == b'\n').zip(names) {
        if let (false, Ok(value)) = (line.is_empty(), HeaderValue::from_bytes(line)) {
            headers.append(name, value);
        }
    }
    if let Verdict::Part(part) = range::judge(&Method::GET, &headers, "\"tag\"", SIZE) {
        assert!(part.start < part.end && part.end <= SIZE, "{part:?}");
    }
}

/// A path that is taken stays inside.
pub(crate) fn paths(data: &[u8]) {
    let Ok(path) = RelPath::parse(data) else { return };
    assert_eq!(path.as_bytes(), data);
    assert!(!data.starts_with(b"/") && !data.contains(&0));
    for name in path.components() {
        assert!(!name.is_empty() && name != b"." && name != b".." && name.len() <= 255);
        assert!(!name.eq_ignore_ascii_case(b".git"));
    }
}
