//! The inner pieces, one by one: a commit of one change, the difference of two trees, a pack and a
//! checkout of one change, each among few and many files; a delta and its chunks; the look-up of a
//! client's region; the tree of rates.
//!
//! `cargo bench --bench pieces`; words behind `--` choose some. `FILES=1000000` adds that many files
//! to the 1,000 and 100,000; `TMPDIR` is the disk.
#![expect(clippy::disallowed_methods, reason = "the scale comes from the environment")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::{
    fs::{self, File},
    hint::black_box,
    io,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Duration,
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use depsync::{
    disk::{self, Placing, Root, Source},
    model::{
        Content, Entry, Keep, Kind, Member, Meta, Mtime, ObjectId, Oid, RatePlan, RateTree,
        Receiver, Region, RegionTable, RelPath, Traffic,
    },
    store::{
        Signature, Store,
        chunks::Cuts,
        delta::{self, Header},
        recipe::{Recipe, Side},
    },
};
use tempfile::TempDir;

/// Bytes of a large object, and of what changes in it.
const LARGE: usize = 20_000_000;
const CHANGED: usize = 65_536;
/// Regions with four ranges each.
const REGIONS: u16 = 2_500;
/// Clients that download at the same time.
const CLIENTS: u8 = 200;

fn sizes() -> Vec<usize> {
    let more = std::env::var("FILES").ok().and_then(|files| files.parse().ok());
    [1_000, 100_000].into_iter().chain(more).collect()
}

/// A store with a first commit of so many files.
struct Filled {
    dir: TempDir,
    store: Store,
    head: Oid,
    round: i64,
}

impl Filled {
    fn with(files: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state")).unwrap();
        let head = commit(&store, 0..files, 0);
        Self { dir, store, head, round: 0 }
    }

    /// Another content of one file; answers the commit before and the new one.
    fn change(&mut self) -> (Oid, Oid) {
        self.round += 1;
        let before = self.head;
        self.head = commit(&self.store, 7..8, self.round);
        (before, self.head)
    }
}

fn commit(store: &Store, numbers: impl Iterator<Item = usize>, round: i64) -> Oid {
    let mut draft = store.draft().unwrap();
    for number in numbers {
        let path = format!("svc-{:04}/mod-{:02}/f{number}.xml", number / 1000, number / 100 % 10);
        let text = format!("<x id=\"{number}\" round=\"{round}\"/>\n");
        let blob = draft.add_blob(text.repeat(1 + number * 7919 % 60).as_bytes()).unwrap();
        let mtime = Some(Mtime { secs: 1_700_000_000 + round, nanos: 5 });
        let meta = Meta { mode: Some(0o644), mtime, ..Meta::default() };
        let kind = Kind::File { blob, executable: false };
        draft.put(&RelPath::parse(path.as_bytes()).unwrap(), Entry { kind, meta });
    }
    let by = Signature {
        author: "bench".to_owned(),
        node: "bench".parse().unwrap(),
        epoch: 1,
        time: 1_700_000_000 + round,
        subject: "files".to_owned(),
    };
    store.publish(draft.finish(&by).unwrap().unwrap()).unwrap().head.commit
}

fn among_files(criterion: &mut Criterion) {
    for files in sizes() {
        let mut filled = Filled::with(files);
        let (from, to) = filled.change();
        let of = |name: &str| format!("{name}, among {files}");
        criterion.bench_function(&of("difference of one change"), |bench| {
            bench.iter(|| filled.store.diff(Some(from), to).unwrap());
        });
        criterion.bench_function(&of("pack of one change"), |bench| {
            let anew = || forget_packs(filled.store.spool());
            bench.iter_batched(
                anew,
                |()| filled.store.pack(Some(from), to).unwrap(),
                BatchSize::PerIteration,
            );
        });
        check_outs(criterion, &of("checkout of one change"), &mut filled);
        criterion.bench_function(&of("commit of one change"), |bench| {
            bench.iter(|| filled.change());
        });
    }
}

/// A pack that is asked for is kept for whoever asks next.
fn forget_packs(spool: &Path) {
    for entry in fs::read_dir(spool).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

fn check_outs(criterion: &mut Criterion, name: &str, filled: &mut Filled) {
    let path = filled.dir.path().join("deployment");
    fs::create_dir(&path).unwrap();
    let root = Root::open(&path).unwrap();
    let mut there = None;
    check_out(filled, &root, &mut there);
    criterion.bench_function(name, |bench| {
        bench.iter_custom(|rounds| {
            let mut took = Duration::ZERO;
            for _ in 0..rounds {
                filled.change();
                let started = std::time::Instant::now();
                check_out(filled, &root, &mut there);
                took += started.elapsed();
            }
            took
        });
    });
}

/// The difference, put in place under the journal, durable.
fn check_out(filled: &Filled, root: &Root, there: &mut Option<Oid>) {
    let store = &filled.store;
    let source = |blob| -> io::Result<Source> {
        match store.content(blob).map_err(io::Error::other)? {
            Content::Blob(blob) => {
                Ok(Source::Bytes(store.read_blob(blob).map_err(io::Error::other)?))
            }
            Content::Object { .. } => Err(io::Error::other("there are no objects here")),
        }
    };
    let changes = store.diff(*there, filled.head).unwrap();
    let mark = store.prepare_checked_out(filled.head).unwrap();
    let placed = disk::place(&Placing {
        root,
        journal: &filled.dir.path().join("journal"),
        aside: &filled.dir.path().join("aside"),
        from: *there,
        to: filled.head,
        along: Some(mark.file()),
        changes: &changes,
        keep: Keep { mode: true, mtime: true, ..Keep::NONE },
        source: &source,
        holds: None,
    });
    assert!(placed.unwrap().faults.is_empty());
    store.set_prepared(mark).unwrap();
    *there = Some(filled.head);
}

/// Bytes that do not compress (splitmix64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).to_le_bytes()
    });
    words.flatten().take(len).collect()
}

fn large_objects(criterion: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        File::open(dir.path().join(name)).unwrap()
    };
    let mut bytes = noise(1, LARGE);
    let old = file("old", &bytes);
    bytes[LARGE / 2..][..CHANGED].copy_from_slice(&noise(2, CHANGED));
    let new = file("new", &bytes);
    let cuts = |file: &File| Cuts::of(&file.try_clone().unwrap()).unwrap();
    let (old_cuts, new_cuts) = (cuts(&old), cuts(&new));
    let header = Header {
        base: ObjectId::from_bytes([1; 32]),
        result: ObjectId::from_bytes([2; 32]),
        size: LARGE as u64,
    };

    let mut group = criterion.benchmark_group("20 MB");
    group.throughput(Throughput::Bytes(LARGE as u64));
    group.bench_function("chunking", |bench| {
        bench.iter(|| cuts(&File::open(dir.path().join("new")).unwrap()));
    });
    group.bench_function("delta of 64 KiB changed", |bench| {
        bench.iter(|| {
            let side = |file, cuts| Side { file, cuts };
            let recipe = Recipe::between(side(&old, &old_cuts), side(&new, &new_cuts));
            let recipe = recipe.unwrap().expect("most of it is old");
            delta::encode(&header, &recipe, &new, io::sink()).unwrap();
        });
    });
    group.finish();
}

fn regions(criterion: &mut Criterion) {
    let range = |number: u16, part: u8| {
        let [high, low] = number.to_be_bytes();
        Member::Range(format!("10.{high}.{low}.{}/28", part * 32).parse().unwrap())
    };
    let regions = (0..REGIONS).map(|number| Region {
        name: format!("region-{number}").parse().unwrap(),
        members: (0..4).map(|part| range(number, part)).collect(),
    });
    let table = RegionTable::build(regions.collect()).unwrap();
    let mut next = 0_u32;
    criterion.bench_function("region of an address, of 10,000 ranges", |bench| {
        bench.iter(|| {
            next = next.wrapping_add(2_654_435_761) % (u32::from(REGIONS) << 8);
            let address = Ipv4Addr::from_bits((10 << 24) + next);
            black_box(table.of_address(IpAddr::V4(address)))
        });
    });
}

fn rates(criterion: &mut Criterion) {
    let plan = RatePlan {
        total: Some("100MB/s".parse().unwrap()),
        downloads: Some("80MB/s".parse().unwrap()),
        per_client: Some("1MB/s".parse().unwrap()),
        ..RatePlan::default()
    };
    let mut tree = RateTree::new(plan);
    let flows = (0..CLIENTS).map(|number| {
        let client = IpAddr::V4(Ipv4Addr::new(10, 0, 0, number));
        tree.open(Duration::ZERO, Receiver { class: Traffic::Downloads, client, region: None })
    });
    let flows: Vec<_> = flows.collect();
    let mut now = Duration::ZERO;
    criterion.bench_function("a step of the rates, for 200 clients", |bench| {
        bench.iter(|| {
            now += Duration::from_millis(5);
            for flow in &flows {
                tree.want(*flow, 64 << 10);
            }
            tree.step(now)
        });
    });
}

/// Enough to see what a change makes of them, and few commits.
fn quick() -> Criterion {
    let second = Duration::from_secs(1);
    Criterion::default().sample_size(20).warm_up_time(second / 2).measurement_time(second * 2)
}

criterion_group! {
    name = pieces;
    config = quick();
    targets = among_files, large_objects, regions, rates
}
criterion_main!(pieces);
