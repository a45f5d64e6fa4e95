//! Where whatever would otherwise be lost is put, with a note of when and why.
//!
//! Each run has its own folder `<UTC stamp>-<n>`, in which an entry keeps its path, and beside it
//! `<UTC stamp>-<n>.note`, one JSON line for each entry, written before the entry is moved. Only
//! `trim` ever removes anything here, and it says what.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, Read, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use chrono::{DateTime, NaiveDateTime, Utc};
use rustix::{fs::AtFlags, io::Errno};
use serde::{Deserialize, Serialize};

use super::{
    Error, FileKind, Result, Root,
    tree::{self, At},
};
use crate::{model::RelPath, sys};

/// How long what lies aside is kept.
pub const KEEP_DAYS: u64 = 7;

/// How much of it is kept, in bytes; the newest run whatever its size.
pub const MAX_BYTES: u64 = 1 << 30;

/// The longest note file that is read back: some thousand entries.
const MAX_NOTES: u64 = 1 << 20;

const STAMP: &str = "%Y%m%dT%H%M%SZ";

/// The place of one feed, used for one run.
#[derive(Debug)]
pub struct Aside {
    dir: PathBuf,
    run: Option<Run>,
}

/// The folder that this run puts things into.
#[derive(Debug)]
struct Run {
    folder: Root,
    notes: File,
}

/// Why one entry lies aside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// When, RFC 3339.
    pub at: String,
    /// Why it had to make way.
    pub why: String,
    /// Where it lay in the deployment directory; bytes that are not UTF-8 are replaced.
    pub path: String,
}

/// What one run has put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The folder's name.
    pub name: String,
    /// When.
    pub at: SystemTime,
    /// Bytes of all files in it.
    pub bytes: u64,
    /// What lies there, and why.
    pub notes: Vec<Note>,
}

impl Aside {
    /// The place below `dir`, which is made at the first need.
    pub fn new(dir: &Path) -> Self {
        Aside { dir: dir.to_owned(), run: None }
    }

    /// Moves an entry of a deployment directory aside.
    ///
    /// # Errors
    /// When it cannot be moved, or copied where that is another file system; then it stays.
    pub fn put(&mut self, root: &Root, path: &RelPath, why: &str) -> io::Result<()> {
        self.put_as(root, path, path, why)
    }

    /// Moves an entry aside that lies under a temporary name, as what it was called.
    pub(super) fn put_as(
        &mut self,
        root: &Root,
        at: &RelPath,
        path: &RelPath,
        why: &str,
    ) -> io::Result<()> {
        self.take(root, at, path, why, |from, to| {
            match sys::rename_new(from.folder, as_path(from.name), to.folder, as_path(to.name)) {
                Err(error) if is_other_file_system(&error) => {}
                answer => return answer,
            }
            copy(from, to)?;
            tree::remove(from)
        })
    }

    /// Keeps an entry that is no folder aside while it stays where it is, to be replaced in one step.
    pub(super) fn keep(&mut self, root: &Root, path: &RelPath, why: &str) -> io::Result<()> {
        self.take(root, path, path, why, |from, to| {
            match rustix::fs::linkat(from.folder, from.name, to.folder, to.name, AtFlags::empty()) {
                Ok(()) => Ok(()),
                Err(Errno::NOENT) => Err(Errno::NOENT.into()),
                Err(_) => copy(from, to),
            }
        })
    }

    fn take(
        &mut self,
        root: &Root,
        at: &RelPath,
        path: &RelPath,
        why: &str,
        how: impl FnOnce(At<'_>, At<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (Some(from), Some(parent)) = (at.parent(), path.parent()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the feed's own folder stays"));
        };
        let from = root.folder(&from)?;
        if !self.run.as_ref().is_some_and(|run| is_free(&run.folder, path)) {
            self.run = Some(start(&self.dir)?);
        }
        let run = self.run.as_mut().expect("it was started above");
        let folder = run.folder.make_folder(&parent)?;
        note(&mut run.notes, path, why)?;
        how(
            At { folder: from.as_fd(), name: at.name() },
            At { folder: folder.as_fd(), name: path.name() },
        )?;
        Ok(rustix::fs::fsync(&folder)?)
    }

    /// What lies aside, oldest first.
    ///
    /// # Errors
    /// When the place cannot be read.
    pub fn list(&self) -> Result<Vec<Kept>> {
        let entries = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::io("list", &self.dir))?,
        };
        let mut kept = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io("list", &self.dir))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Some(at) = time_of(&name) else { continue };
            let bytes = bytes_below(&entry.path()).map_err(Error::io("measure", entry.path()))?;
            kept.push(Kept { notes: self.notes(&name), name, at, bytes });
        }
        kept.sort_by_key(|run| (run.at, number_of(&run.name)));
        Ok(kept)
    }

    fn notes(&self, name: &str) -> Vec<Note> {
        // A note that does not read is no reason to hide what lies there.
        let Ok(file) = File::open(self.dir.join(format!("{name}.note"))) else { return Vec::new() };
        let lines = BufReader::new(file.take(MAX_NOTES)).lines().map_while(io::Result::ok);
        lines.filter_map(|line| serde_json::from_str(&line).ok()).collect()
    }

    /// Removes what is older than `keep`, and the oldest while all together exceeds `max_bytes`; the
    /// newest run stays. Answers what it removed.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub fn trim(&self, now: SystemTime, keep: Duration, max_bytes: u64) -> Result<Vec<Kept>> {
        let kept = self.list()?;
        let mut bytes: u64 = kept.iter().map(|run| run.bytes).sum();
        let newest = kept.last().map(|run| run.name.clone());
        let mut dropped = Vec::new();
        for run in kept {
            let old = now.duration_since(run.at).is_ok_and(|age| age > keep);
            if old || (bytes > max_bytes && Some(&run.name) != newest.as_ref()) {
                self.drop_run(&run.name).map_err(Error::io("remove", self.dir.join(&run.name)))?;
                bytes -= run.bytes;
                dropped.push(run);
            }
        }
        Ok(dropped)
    }

    fn drop_run(&self, name: &str) -> io::Result<()> {
        let dir = File::open(&self.dir)?;
        tree::remove(At { folder: dir.as_fd(), name: name.as_bytes() })?;
        tree::remove(At { folder: dir.as_fd(), name: format!("{name}.note").as_bytes() })
    }
}

fn copy(from: At<'_>, to: At<'_>) -> io::Result<()> {
    tree::copy(from, to).inspect_err(|_| {
        // Half a copy is of no use, and the original still lies where it was.
        let _ = tree::remove(to);
    })
}

fn as_path(name: &[u8]) -> &Path {
    Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name))
}

/// `EXDEV`; `EINVAL` is a file system that cannot rename without replacing, to which we copy too.
fn is_other_file_system(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::InvalidInput)
}

/// Whether this run can take that path: nothing lies there, and no file or link stands above it.
fn is_free(run: &Root, path: &RelPath) -> bool {
    let above = std::iter::successors(path.parent(), RelPath::parent);
    let mut above = above.filter(|folder| !folder.is_root());
    matches!(run.stat(path), Ok(None))
        && above.all(|f| matches!(run.stat(&f), Ok(s) if s.is_none_or(|s| s.kind == FileKind::Dir)))
}

fn start(dir: &Path) -> io::Result<Run> {
    std::fs::create_dir_all(dir)?;
    let stamp = DateTime::<Utc>::from(sys::now()).format(STAMP);
    let mut number = 1_u32;
    let name = loop {
        let name = format!("{stamp}-{number}");
        match std::fs::create_dir(dir.join(&name)) {
            Ok(()) => break name,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    };
    let folder = Root::open(&dir.join(&name)).map_err(io::Error::other)?;
    let note = dir.join(format!("{name}.note"));
    let notes = OpenOptions::new().create(true).append(true).open(note)?;
    Ok(Run { folder, notes })
}

fn note(notes: &mut File, path: &RelPath, why: &str) -> io::Result<()> {
    let at = DateTime::<Utc>::from(sys::now()).to_rfc3339_opts(chrono::SecondsFormat::Millis, true);
    let note = Note { at, why: why.to_owned(), path: path.to_text().into_owned() };
    let mut line = serde_json::to_vec(&note).map_err(io::Error::other)?;
    line.push(b'\n');
    notes.write_all(&line)
}

fn time_of(name: &str) -> Option<SystemTime> {
    let (stamp, number) = name.split_once('-')?;
    number.parse::<u32>().ok()?;
    Some(NaiveDateTime::parse_from_str(stamp, STAMP).ok()?.and_utc().into())
}

fn number_of(name: &str) -> Option<u32> {
    name.split_once('-')?.1.parse().ok()
}

fn bytes_below(path: &Path) -> io::Result<u64> {
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    std::fs::read_dir(path)?.map(|entry| bytes_below(&entry?.path())).sum()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn fixture() -> (tempfile::TempDir, Root, Aside) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let aside = Aside::new(&dir.path().join("aside"));
        (dir, root, aside)
    }

    #[test]
    fn what_makes_way_keeps_its_path_and_has_a_note() {
        let (dir, root, mut aside) = fixture();
        std::fs::write(dir.path().join("root/a/b/file"), b"mine").unwrap();
        std::fs::write(dir.path().join("root/a/kept"), b"too").unwrap();
        aside.put(&root, &path("a/b"), "it is not in the commit").unwrap();
        aside.keep(&root, &path("a/kept"), "it was changed here").unwrap();
        assert!(dir.path().join("root/a/kept").exists() && !dir.path().join("root/a/b").exists());

        let kept = aside.list().unwrap();
        assert_eq!(kept.len(), 1);
        let run = dir.path().join("aside").join(&kept[0].name);
        assert_eq!(std::fs::read(run.join("a/b/file")).unwrap(), b"mine");
        assert_eq!(std::fs::read(run.join("a/kept")).unwrap(), b"too");
        assert_eq!(kept[0].bytes, 7);
        let notes: Vec<_> =
            kept[0].notes.iter().map(|n| (n.path.as_str(), n.why.as_str())).collect();
        assert_eq!(notes, [("a/b", "it is not in the commit"), ("a/kept", "it was changed here")]);
    }

    #[test]
    fn a_link_that_lies_aside_leads_nothing_elsewhere() {
        let (dir, root, mut aside) = fixture();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("root/x")).unwrap();
        aside.put(&root, &path("x"), "first").unwrap();
        std::fs::create_dir(dir.path().join("root/x")).unwrap();
        std::fs::write(dir.path().join("root/x/y"), b"1").unwrap();
        aside.put(&root, &path("x/y"), "second").unwrap();
        std::fs::write(dir.path().join("root/x/y"), b"2").unwrap();
        aside.put(&root, &path("x/y"), "third").unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        assert_eq!(aside.list().unwrap().len(), 3);
    }

    #[test]
    fn another_file_system_gets_a_copy() {
        let (dir, root, _) = fixture();
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        let mut aside = Aside::new(elsewhere.path());
        let file = dir.path().join("root/a/b/file");
        std::fs::write(&file, b"bytes").unwrap();
        std::fs::set_permissions(&file, PermissionsExt::from_mode(0o4640)).unwrap();
        symlink("file", dir.path().join("root/a/b/link")).unwrap();
        let before = root.stat(&path("a/b/file")).unwrap().unwrap();
        aside.keep(&root, &path("a/b/file"), "kept").unwrap();
        aside.put(&root, &path("a"), "moved").unwrap();
        assert!(!dir.path().join("root/a").exists());
        let runs = aside.list().unwrap();
        let copy = Root::open(&elsewhere.path().join(&runs[1].name)).unwrap();
        let after = copy.stat(&path("a/b/file")).unwrap().unwrap();
        assert_eq!((after.size, after.mode, after.mtime), (before.size, before.mode, before.mtime));
        assert_eq!(copy.read_link(&path("a/b/link")).unwrap(), b"file");
    }

    #[test]
    fn the_oldest_goes_first_and_the_newest_stays() {
        let (dir, root, _) = fixture();
        let place = dir.path().join("aside");
        for name in ["one", "two", "three"] {
            std::fs::write(dir.path().join("root").join(name), vec![0; 100]).unwrap();
            Aside::new(&place).put(&root, &path(name), "why").unwrap();
        }
        let aside = Aside::new(&place);
        let day = Duration::from_secs(86_400);
        assert_eq!(aside.trim(sys::now(), day, 300).unwrap(), []);
        let dropped = aside.trim(sys::now(), day, 50).unwrap();
        let paths: Vec<_> = dropped.iter().map(|run| run.notes[0].path.as_str()).collect();
        assert_eq!(paths, ["one", "two"]);
        assert_eq!(aside.trim(sys::now() + 2 * day, day, 300).unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    }
}
