//! How much the packs of small files grow: many commits that change a few files each, before and after
//! folding, whose deltas of trees and blobs make the difference; and what git's own repacking makes
//! of the same history.
//!
//! `cargo bench --bench packs`; `FILES` and `COMMITS` change the scale (10,000 and 1,000).
#![expect(clippy::disallowed_methods, reason = "the scale comes from the environment")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot go on ends")]
#![expect(clippy::cast_precision_loss, reason = "figures for people, far below 2^52")]

use std::{fs, path::Path, process::Command, time::Instant};

use depsync::{
    model::{Entry, Kind, Meta, Mtime, RelPath},
    store::{Signature, Store},
};

/// Files that one commit changes.
const CHANGED: usize = 3;

fn scale(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn path_of(number: usize) -> RelPath {
    let path = format!("svc-{:04}/mod-{:02}/f{number}.xml", number / 1000, number / 100 % 10);
    RelPath::parse(path.as_bytes()).unwrap()
}

/// Some 2 KB of settings, of which a commit changes one line.
fn text_of(number: usize, version: usize) -> String {
    let line = |at: usize| {
        let version = if at == number % 40 { version } else { 0 };
        let value = (number * 7919 + at * 104_729 + version * 31_337) % 1_000_003;
        format!("  <property name=\"p{at}\" value=\"{value}\"/>\n")
    };
    (0..40).map(line).collect()
}

fn commit(store: &Store, files: impl Iterator<Item = usize>, version: usize) {
    let mut draft = store.draft().unwrap();
    for number in files {
        let blob = draft.add_blob(text_of(number, version).as_bytes()).unwrap();
        let mtime = Mtime { secs: 1_700_000_000 + i64::try_from(version).unwrap(), nanos: 5 };
        let meta = Meta { mode: Some(0o644), mtime: Some(mtime), ..Meta::default() };
        draft.put(&path_of(number), Entry { kind: Kind::File { blob, executable: false }, meta });
    }
    let by = Signature {
        author: "bench".to_owned(),
        node: "bench".parse().unwrap(),
        epoch: 1,
        time: 1_700_000_000 + i64::try_from(version).unwrap(),
        subject: format!("version {version}"),
    };
    let prepared = draft.finish(&by).unwrap().unwrap();
    store.publish(prepared).unwrap();
}

fn packed(git: &Path) -> u64 {
    let packs = fs::read_dir(git.join("objects/pack")).unwrap();
    packs.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn main() {
    let (files, commits) = (scale("FILES", 10_000), scale("COMMITS", 1_000));
    let base = tempfile::tempdir().unwrap();
    let store = Store::open(&base.path().join("state")).unwrap();
    let git = base.path().join("state/git");
    commit(&store, 0..files, 0);
    let first = packed(&git);
    println!("{files} files of 2 KB: {:.1} MB of packs", mb(first));
    for version in 1..=commits {
        commit(&store, (0..CHANGED).map(|at| (version * 7919 + at * 104_729) % files), version);
    }
    let each = |bytes: u64| (bytes - first) as f64 / commits as f64 / 1000.0;
    let grown = packed(&git);
    println!("{commits} commits of {CHANGED} files: {:.1} KB each, unfolded", each(grown));
    let began = Instant::now();
    store.fold_all(&|| true).unwrap();
    let folded = packed(&git);
    println!(
        "folded: {:.1} KB each, {:.1} MB in all, in {:.1?}",
        (folded.saturating_sub(first)) as f64 / commits as f64 / 1000.0,
        mb(folded),
        began.elapsed()
    );
    let began = Instant::now();
    let git_of = |words: &[&str]| {
        let done = Command::new("git").args(words).current_dir(&git).status();
        assert!(done.is_ok_and(|done| done.success()), "{words:?}");
    };
    git_of(&["fsck", "--full"]);
    git_of(&["repack", "-adfq"]);
    println!("git repack -adf: {:.1} MB in all, in {:.1?}", mb(packed(&git)), began.elapsed());
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
