//! Putting trees in place: 100,000 new files against `cp -r` to the same disk, and one changed file
//! among them, each durable at its end.
//!
//! `cargo bench --bench checkout`; `FILES` and `ROUNDS` change the scale, `TMPDIR` the disk. Prints
//! the wall times, their ratios, and the most memory that this process has used. Nothing is removed
//! before the end: ext4 passes over every inode that was freed within the last minutes when it looks
//! for one, which makes whoever comes behind a large removal many times slower.
#![expect(clippy::disallowed_methods, reason = "the scale comes from the environment")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::{
    fs, io,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use depsync::{
    disk::{self, Placing, Root, Source},
    model::{Content, Entry, Keep, Kind, Meta, Mtime, Oid, RelPath},
    store::{Signature, Store},
};

fn scale(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn path_of(number: usize) -> RelPath {
    let path = format!("svc-{:04}/mod-{:02}/f{number}.xml", number / 1000, number / 100 % 10);
    RelPath::parse(path.as_bytes()).unwrap()
}

fn text_of(number: usize, round: usize) -> String {
    format!("<x id=\"{number}\" round=\"{round}\"/>\n").repeat(1 + number * 7919 % 60)
}

/// Commits some files; answers the new head.
fn commit(store: &Store, numbers: impl Iterator<Item = usize>, round: usize) -> Oid {
    let mut draft = store.draft().unwrap();
    for number in numbers {
        let blob = draft.add_blob(text_of(number, round).as_bytes()).unwrap();
        let meta = Meta {
            mode: Some(0o644),
            mtime: Some(Mtime { secs: 1_700_000_000 + i64::try_from(round).unwrap(), nanos: 5 }),
            ..Meta::default()
        };
        draft.put(&path_of(number), Entry { kind: Kind::File { blob, executable: false }, meta });
    }
    let by = Signature {
        author: "bench".to_owned(),
        node: "bench".parse().unwrap(),
        epoch: 1,
        time: 1_700_000_000,
        subject: "files".to_owned(),
    };
    let prepared = draft.finish(&by).unwrap().unwrap();
    store.publish(prepared).unwrap().head.commit
}

/// A mirror's checkout: the difference, put in place under the journal, and its mark.
fn check_out(store: &Store, state: &Path, root: &Root, from: Option<Oid>, to: Oid) -> Duration {
    let source = |blob| -> io::Result<Source> {
        match store.content(blob).map_err(io::Error::other)? {
            Content::Blob(blob) => {
                Ok(Source::Bytes(store.read_blob(blob).map_err(io::Error::other)?))
            }
            Content::Object { .. } => Err(io::Error::other("there are no objects here")),
        }
    };
    let started = Instant::now();
    let changes = store.diff(from, to).unwrap();
    let mark = store.prepare_checked_out(to).unwrap();
    let placed = disk::place(&Placing {
        root,
        journal: &state.join("journal"),
        aside: &state.join("aside"),
        from,
        to,
        along: Some(mark.file()),
        changes: &changes,
        keep: Keep { mode: true, mtime: true, ..Keep::NONE },
        source: &source,
        holds: None,
    });
    let placed = placed.unwrap();
    assert!(placed.faults.is_empty(), "{:?}", placed.faults.first());
    store.set_prepared(mark).unwrap();
    started.elapsed()
}

fn run(program: &str, arguments: &[&str]) -> Duration {
    let started = Instant::now();
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program}");
    started.elapsed()
}

fn peak() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.unwrap_or(" unknown").trim().to_owned()
}

fn main() {
    let (files, rounds) = (scale("FILES", 100_000), scale("ROUNDS", 50));
    let base = tempfile::tempdir().unwrap();
    let at = |name: &str| base.path().join(name);
    let text = |name: &str| at(name).to_str().unwrap().to_owned();
    let store = Store::open(&at("state")).unwrap();
    let first = commit(&store, 0..files, 0);
    run("sync", &["-f", &text("state")]);
    println!("{files} files committed; memory so far {}", peak());

    let (mut ours, mut cps, mut synced) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        let (mirror, copy) = (at(&format!("mirror-{round}")), format!("copy-{round}"));
        fs::create_dir(&mirror).unwrap();
        let root = Root::open(&mirror).unwrap();
        ours.push(check_out(&store, base.path(), &root, None, first));
        run("sync", &["-f", &text("state")]);
        let copied = run("cp", &["-r", mirror.to_str().unwrap(), &text(&copy)]);
        cps.push(copied);
        synced.push(copied + run("sync", &["-f", &text(&copy)]));
        let seconds = |times: &[Duration]| times[round].as_secs_f64();
        println!(
            "round {round}: checkout {:.2} s, cp -r {:.2} s, with sync {:.2} s",
            seconds(&ours),
            seconds(&cps),
            seconds(&synced)
        );
    }
    let best = |times: &[Duration]| times.iter().min().unwrap().as_secs_f64();
    let (ours, cp, synced) = (best(&ours), best(&cps), best(&synced));
    println!("{files} new files, durable: {ours:.2} s; memory {}", peak());
    println!("cp -r: {cp:.2} s, ratio {:.2}", ours / cp);
    println!("cp -r and sync: {synced:.2} s, ratio {:.2}", ours / synced);

    let root = Root::open(&at("mirror-0")).unwrap();
    let (mut from, mut lone) = (first, Vec::new());
    for round in 1..=rounds {
        let to = commit(&store, std::iter::once(round * 7919 % files), round);
        lone.push(check_out(&store, base.path(), &root, Some(from), to).as_secs_f64() * 1e3);
        from = to;
    }
    lone.sort_by(f64::total_cmp);
    let at = |percent: usize| lone[(lone.len() - 1) * percent / 100];
    println!(
        "one changed among {files}: median {:.2} ms, p90 {:.2} ms, max {:.2} ms",
        at(50),
        at(90),
        at(100)
    );
}
