//! The store against stock git, against a naive model, and against what a bad upstream sends.
mod against_git;
mod against_model;
mod fold;
mod objects;
mod transfer;
mod upkeep;

use std::{path::Path, process::Command};

use tempfile::TempDir;

use super::*;
use crate::model::{Change, Entry, Kind, Meta, Mtime, RelPath};

/// A store in a folder of its own, with short words for what tests do.
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) store: Store,
}

pub(super) fn path(text: impl AsRef<[u8]>) -> RelPath {
    RelPath::parse(text.as_ref()).unwrap()
}

pub(super) fn by(epoch: u64) -> Signature {
    Signature {
        author: "Ann Deployer".into(),
        node: "n1".parse().unwrap(),
        epoch,
        time: 1_700_000_000,
        subject: "deploy".into(),
    }
}

pub(super) fn meta(mode: u32) -> Meta {
    let mtime = Some(Mtime { secs: 1_600_000_000, nanos: 123_456_789 });
    Meta { mode: Some(mode), mtime, ..Meta::default() }
}

pub(super) fn folder(mode: u32) -> Entry {
    Entry { kind: Kind::Dir, meta: Meta { mode: Some(mode), ..Meta::default() } }
}

pub(super) fn put_file(draft: &mut Draft<'_>, at: impl AsRef<[u8]>, content: &[u8]) {
    let blob = draft.add_blob(content).unwrap();
    let kind = Kind::File { blob, executable: false };
    draft.put(&path(at), Entry { kind, meta: meta(0o640) });
}

/// Does not compress.
pub(super) fn noise(seed: u32, size: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let step = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..size).map(step).collect()
}

impl World {
    pub(super) fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        World { dir, store }
    }

    pub(super) fn commit(&self, make: impl FnOnce(&mut Draft<'_>)) -> Published {
        let mut draft = self.store.draft().unwrap();
        make(&mut draft);
        let prepared = draft.finish(&by(1)).unwrap().expect("something changed");
        self.store.publish(prepared).unwrap()
    }

    pub(super) fn put(&self, files: &[(&str, &str)]) -> Published {
        self.commit(|draft| {
            for (at, text) in files {
                put_file(draft, at, text.as_bytes());
            }
        })
    }

    /// What stock git says, without any configuration but the repository's own.
    pub(super) fn git(&self, arguments: &[&str]) -> String {
        git_in(&self.dir.path().join("git"), arguments)
    }

    pub(super) fn head(&self) -> Head {
        self.store.head().unwrap().unwrap()
    }

    /// Every file of the store besides `spool/`, with its bytes.
    pub(super) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.path().join("git")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let bytes = std::fs::read(&path).unwrap();
                    files.push((path, bytes));
                }
            }
        }
        files.sort();
        files
    }
}

pub(super) fn git_in(repository: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", repository)
        .env("GIT_DIR", repository)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {arguments:?}: {error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
