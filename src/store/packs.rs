//! Packs as they lie on disk: which objects each holds, and an object's bytes as they stand in it.
//!
//! For moving objects from pack to pack without deflating them again. An object that is handed out
//! was inflated and has the id that it is listed under, unless it is a delta, which its reader
//! resolves. Nothing is mapped and nothing is written here. Formats: gitformat-pack(5).

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use flate2::{Decompress, FlushDecompress, Status};

use super::{
    Error, Result,
    db::Type,
    pack::{self, MAX_BLOB},
};
use crate::model::Oid;

/// Type, size and the base of a delta stand in the first bytes of an object.
const HEADER: usize = 40;
/// Index: magic, version, fan-out.
const FAN_OUT: usize = 8;
const IDS: usize = FAN_OUT + 256 * 4;

/// One pack, its index in memory.
pub(super) struct StoredPack {
    path: PathBuf,
    file: File,
    size: u64,
    index: Vec<u8>,
    count: usize,
}

/// All packs of a folder. They are read as they were when they were opened, even once folded away.
pub(super) struct Stored(Vec<StoredPack>);

impl Stored {
    /// Opens the packs of a folder like `.git/objects/pack`.
    pub(super) fn open(folder: &Path) -> Result<Stored> {
        let mut packs = Vec::new();
        for (path, _) in list(folder)? {
            match StoredPack::open(&path) {
                Ok(pack) => packs.push(pack),
                // Folded away meanwhile, or damaged: its objects are looked for elsewhere.
                Err(Error::Io { .. } | Error::Damaged { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Stored(packs))
    }

    /// An object, where it stands whole.
    pub(super) fn whole(&self, id: Oid) -> Option<Raw> {
        for pack in &self.0 {
            if let Some(offset) = pack.find(id)
                && let Ok(raw) = pack.read(id, offset)
                && let Form::Whole(_) = raw.form
            {
                return Some(raw);
            }
        }
        None
    }
}

/// An object as it stands in a pack.
pub(super) struct Raw {
    pub(super) form: Form,
    /// Inflated, in bytes: of the object, or of the delta.
    pub(super) size: usize,
    /// What stands in the pack behind the header.
    pub(super) deflated: Vec<u8>,
}

/// How an object stands in a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As it is.
    Whole(Type),
    /// As the difference from the object at that offset.
    DeltaOn(u64),
    /// As the difference from the object with that id, somewhere.
    DeltaOnId,
}

/// The packs of a folder like `.git/objects/pack`, the newest last.
pub(super) fn list(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut packs = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io("list", folder))? {
        let path = entry.map_err(Error::io("list", folder))?.path();
        if path.extension().is_some_and(|ending| ending == "pack")
            && path.with_extension("idx").exists()
        {
            let about = path.metadata().map_err(Error::io("read", &path))?;
            let time = about.modified().map_err(Error::io("read", &path))?;
            packs.push((time, path, about.len()));
        }
    }
    packs.sort();
    Ok(packs.into_iter().map(|(_, path, size)| (path, size)).collect())
}

impl StoredPack {
    /// Opens a pack with its index.
    pub(super) fn open(path: &Path) -> Result<StoredPack> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let size = file.metadata().map_err(Error::io("read", path))?.len();
        let index_path = path.with_extension("idx");
        let index = fs::read(&index_path).map_err(Error::io("read", &index_path))?;
        let count = count_of(&index)
            .ok_or_else(|| Error::damaged(index_path.display().to_string(), "it is no index"))?;
        Ok(StoredPack { path: path.to_owned(), file, size, index, count })
    }

    /// Its objects, by id, and where each begins.
    pub(super) fn objects(&self) -> impl Iterator<Item = (Oid, u64)> + '_ {
        (0..self.count).map(|at| (self.id(at), self.offset(at)))
    }

    /// Which object begins at each offset.
    pub(super) fn by_offset(&self) -> HashMap<u64, Oid> {
        self.objects().map(|(id, offset)| (offset, id)).collect()
    }

    /// Where an object begins.
    pub(super) fn find(&self, id: Oid) -> Option<u64> {
        let first = usize::from(id.as_bytes()[0]);
        let upto = |byte: usize| u32_at(&self.index, FAN_OUT + byte * 4) as usize;
        let (mut low, mut high) = (if first == 0 { 0 } else { upto(first - 1) }, upto(first));
        while low < high {
            let middle = low.midpoint(high);
            match self.id(middle).cmp(&id) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(self.offset(middle)),
            }
        }
        None
    }

    fn id(&self, at: usize) -> Oid {
        let from = IDS + at * 20;
        Oid::try_from(&self.index[from..from + 20]).expect("20 bytes")
    }

    fn offset(&self, at: usize) -> u64 {
        let small = u32_at(&self.index, IDS + self.count * 24 + at * 4);
        if small >> 31 == 0 {
            return u64::from(small);
        }
        let at = IDS + self.count * 28 + (small & 0x7fff_ffff) as usize * 8;
        let large = self.index.get(at..at + 8).map(|n| n.try_into().expect("8 bytes"));
        // Behind the end of any pack: reading there says what is wrong.
        large.map_or(u64::MAX, u64::from_be_bytes)
    }

    /// Reads the object `id` where it begins; a whole one is checked.
    pub(super) fn read(&self, id: Oid, offset: u64) -> Result<Raw> {
        let damaged = |why: &str| {
            Error::damaged(format!("object {id} in {}", self.path.display()), why.to_owned())
        };
        let header = self.bytes(offset, HEADER)?;
        let (form, size, length) =
            header_of(&header, offset).ok_or_else(|| damaged("its header makes no sense"))?;
        if size as u64 > MAX_BLOB * 4 {
            return Err(damaged("its header makes no sense"));
        }
        // What deflate makes at most of what does not compress: 9 bits of 8, at the quickest level.
        let most = size + (size >> 2) + 64;
        let mut deflated = self.bytes(offset + length as u64, most)?;
        let (inflated, used) =
            inflate(&deflated, size).ok_or_else(|| damaged("it does not inflate to its size"))?;
        if let Form::Whole(kind) = form
            && pack::hash(kind, &inflated) != id
        {
            return Err(damaged("its bytes are those of another one"));
        }
        deflated.truncate(used);
        Ok(Raw { form, size, deflated })
    }

    /// Up to so many bytes, fewer at the end: the checksum there is no object's.
    fn bytes(&self, offset: u64, most: usize) -> Result<Vec<u8>> {
        let rest = self.size.saturating_sub(20).saturating_sub(offset);
        let mut bytes = vec![0; most.min(usize::try_from(rest).unwrap_or(usize::MAX))];
        match self.file.read_exact_at(&mut bytes, offset) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                Err(Error::damaged(self.path.display().to_string(), "it is cut off"))
            }
            read => read.map(|()| bytes).map_err(Error::io("read", &self.path)),
        }
    }
}

/// How many objects an index lists; none: it is none of version 2, or not whole.
fn count_of(index: &[u8]) -> Option<usize> {
    if !index.starts_with(b"\xfftOc\0\0\0\x02") || index.len() < IDS + 40 {
        return None;
    }
    let fan_out: Vec<u32> = (0..256).map(|byte| u32_at(index, FAN_OUT + byte * 4)).collect();
    let count = fan_out[255] as usize;
    (fan_out.is_sorted() && index.len() >= IDS + count * 28 + 40).then_some(count)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// Form, inflated size, and the header's own length.
fn header_of(bytes: &[u8], offset: u64) -> Option<(Form, usize, usize)> {
    let mut rest = bytes.iter().copied();
    let first = rest.next()?;
    let (mut byte, mut size, mut shift) = (first, usize::from(first & 15), 4);
    while byte & 0x80 != 0 {
        byte = rest.next().filter(|_| shift < 40)?;
        size |= usize::from(byte & 0x7f) << shift;
        shift += 7;
    }
    let form = match first >> 4 & 7 {
        1 => Form::Whole(Type::Commit),
        2 => Form::Whole(Type::Tree),
        3 => Form::Whole(Type::Blob),
        6 => {
            let mut byte = rest.next()?;
            let mut back = u64::from(byte & 0x7f);
            while byte & 0x80 != 0 {
                byte = rest.next().filter(|_| back < 1 << 48)?;
                back = (back + 1) << 7 | u64::from(byte & 0x7f);
            }
            Form::DeltaOn(offset.checked_sub(back)?)
        }
        7 => {
            rest.by_ref().nth(19)?;
            Form::DeltaOnId
        }
        _ => return None,
    };
    Some((form, size, bytes.len() - rest.len()))
}

/// Exactly so many bytes, and how many they were deflated.
fn inflate(deflated: &[u8], size: usize) -> Option<(Vec<u8>, usize)> {
    let mut inflater = Decompress::new(true);
    // One byte more lets zlib reach the end of an object that fills its room.
    let mut bytes = vec![0; size + 1];
    let status = inflater.decompress(deflated, &mut bytes, FlushDecompress::Finish).ok()?;
    if status != Status::StreamEnd || inflater.total_out() != size as u64 {
        return None;
    }
    bytes.truncate(size);
    Some((bytes, usize::try_from(inflater.total_in()).ok()?))
}
