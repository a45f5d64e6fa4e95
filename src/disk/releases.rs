//! Releases side by side, and the link that shows one of them: the checkout that switches as a whole.
//!
//! A release is built under a hidden name, made durable, and only then takes the name of its commit,
//! so whatever has a commit's name is whole. The link is replaced by one rename. What lies where the
//! link belongs and is no link of ours stays, whatever it is. A release that was current within the
//! last minute is never removed: somebody may be reading it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::AtFlags;

use super::{
    Error, FileKind, Keep, Placed, Placing, Result, Root, TEMPORARY, compare, place,
    tree::{self, At},
};
use crate::{
    model::{Change, Entry, Kind, Oid, RelPath},
    sys,
};

/// How long a release stays after it was replaced, however few are to be kept.
const IN_USE: Duration = Duration::from_secs(60);

/// The releases of one feed.
#[derive(Debug)]
pub struct Releases {
    dir: PathBuf,
    folder: Root,
    link: PathBuf,
    /// The one used last stands last; with the time at which it was replaced.
    known: Vec<(Oid, Instant)>,
}

/// What a release is built from.
pub struct Building<'a> {
    /// The commit.
    pub to: Oid,
    /// All of its tree, in path order.
    pub tree: &'a [Change],
    /// Which metadata the feed keeps.
    pub keep: Keep,
    /// Reads contents.
    pub source: super::Contents<'a>,
    /// A release from which files that are the same are linked; none: every file is its own.
    pub link_from: Option<LinkFrom<'a>>,
}

/// A release that shares files with the one being built.
#[derive(Clone, Copy)]
pub struct LinkFrom<'a> {
    /// Its commit.
    pub commit: Oid,
    /// Whether a path has the same entry in both.
    pub same: &'a dyn Fn(&RelPath) -> bool,
}

impl Releases {
    /// The releases in `dir`, which is made if need be, shown at `link`. Removes what a kill left
    /// half built.
    ///
    /// # Errors
    /// [`Error::Occupied`] when something else lies where the link belongs.
    pub fn open(dir: &Path, link: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir).map_err(Error::io("find", dir))?;
        let link = std::path::absolute(link).map_err(Error::io("find", link))?;
        fs::create_dir_all(&dir).map_err(Error::io("make", &dir))?;
        let folder = Root::open(&dir)?;
        folder.lock()?;
        let mut releases = Releases { dir, folder, link, known: Vec::new() };
        releases.current()?;
        releases.look().map_err(Error::io("list", &releases.dir))?;
        Ok(releases)
    }

    /// Which releases there are, by age.
    fn look(&mut self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name.as_bytes().starts_with(TEMPORARY.as_bytes()) {
                self.remove(&name)?;
            } else if let Some(commit) = commit_of(&name) {
                found.push((entry.metadata()?.modified()?, commit));
            }
        }
        found.sort_unstable();
        // Since when the newest is not shown any more is not known: as if it were since now.
        self.known = found.into_iter().map(|(_, commit)| (commit, Instant::now())).collect();
        Ok(())
    }

    /// The release that the link shows; none before the first.
    ///
    /// # Errors
    /// [`Error::Occupied`] when something else lies where the link belongs.
    pub fn current(&self) -> Result<Option<Oid>> {
        let occupied = |what: String| Err(Error::Occupied { path: self.link.clone(), what });
        let found = match fs::symlink_metadata(&self.link) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("look at", &self.link)(error)),
        };
        if !found.is_symlink() {
            let what = if found.is_dir() { "a directory" } else { "a file" };
            return occupied(what.to_owned());
        }
        let target = fs::read_link(&self.link).map_err(Error::io("read the link", &self.link))?;
        let ours = target.parent() == Some(self.dir.as_path());
        match target.file_name().and_then(commit_of).filter(|_| ours) {
            Some(commit) => Ok(Some(commit)),
            None => occupied(format!("a link to {}", target.display())),
        }
    }

    /// Where a release lies.
    #[must_use]
    pub fn path(&self, commit: Oid) -> PathBuf {
        self.dir.join(commit.to_string())
    }

    /// Builds a release, durable when it answers; nothing where it is there already.
    ///
    /// # Errors
    /// When it cannot be built; what there is of it is removed. Faults of single paths are in the
    /// answer, and then there is no release.
    pub fn build(&self, b: &Building<'_>) -> Result<Placed> {
        if self.path(b.to).is_dir() {
            return Ok(Placed::default());
        }
        let name = format!("{TEMPORARY}{}", b.to);
        let at = self.dir.join(&name);
        self.remove(OsStr::new(&name)).map_err(Error::io("remove", &at))?;
        fs::create_dir(&at).map_err(Error::io("make", &at))?;
        let built = self.fill(&at, b);
        if !built.as_ref().is_ok_and(|placed| placed.faults.is_empty()) {
            // What cannot be removed now is removed at the next start.
            let _ = self.remove(OsStr::new(&name));
            return built;
        }
        let whole = || {
            sys::sync_file_system(self.folder.as_fd())?;
            fs::rename(&at, self.path(b.to))?;
            rustix::fs::fsync(self.folder.as_fd())?;
            io::Result::Ok(())
        };
        whole().map_err(Error::io("finish", &at))?;
        built
    }

    fn fill(&self, at: &Path, b: &Building<'_>) -> Result<Placed> {
        let root = Root::open(at)?;
        let mut linked = 0;
        let mut rest = Vec::new();
        let from = b.link_from.filter(|from| self.path(from.commit).is_dir());
        let old = from.map(|from| Root::open(&self.path(from.commit))).transpose()?;
        for change in b.tree {
            let same = from.is_some_and(|from| (from.same)(&change.path));
            let shared = match (&old, &change.after) {
                (Some(old), Some(entry)) if same => share(old, &root, &change.path, entry, b.keep),
                _ => Ok(false),
            };
            // What cannot be linked is written.
            if shared.unwrap_or(false) { linked += 1 } else { rest.push(change.clone()) }
        }
        let nowhere = Path::new("");
        let mut placed = place::build(&Placing {
            root: &root,
            journal: nowhere,
            aside: nowhere,
            from: None,
            to: b.to,
            along: None,
            changes: &rest,
            keep: b.keep,
            source: b.source,
            holds: None,
        })?;
        placed.written += linked;
        Ok(placed)
    }

    /// Shows a release that is there.
    ///
    /// # Errors
    /// [`Error::Occupied`] when something else lies where the link belongs: it stays.
    pub fn switch(&mut self, to: Oid) -> Result<()> {
        let now = self.current()?;
        if now == Some(to) {
            return Ok(());
        }
        let parent = self.link.parent().unwrap_or(Path::new("/"));
        let hidden = parent.join(format!("{TEMPORARY}link-{}", to.short()));
        let replace = || {
            match fs::remove_file(&hidden) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(self.path(to), &hidden)?;
            fs::rename(&hidden, &self.link)?;
            File::open(parent)?.sync_all()
        };
        replace().map_err(Error::io("replace", &self.link))?;
        if let Some(now) = now {
            self.note(now);
        }
        self.note(to);
        Ok(())
    }

    /// It is, or was until now, the one that is shown.
    fn note(&mut self, commit: Oid) {
        self.known.retain(|(known, _)| *known != commit);
        self.known.push((commit, Instant::now()));
    }

    /// Removes what is not among the last `keep` and was not shown within the last minute; answers
    /// which.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune(&mut self, keep: usize) -> Result<Vec<Oid>> {
        let current = self.current()?;
        let surplus = self.known.len().saturating_sub(keep.max(1));
        let gone: Vec<Oid> = self.known[..surplus]
            .iter()
            .filter(|(commit, at)| Some(*commit) != current && at.elapsed() >= IN_USE)
            .map(|(commit, _)| *commit)
            .collect();
        for commit in &gone {
            // Half a release must not have a commit's name.
            let hidden = format!("{TEMPORARY}{commit}");
            let removed = fs::rename(self.path(*commit), self.dir.join(&hidden));
            let removed = removed.and_then(|()| self.remove(OsStr::new(&hidden)));
            removed.map_err(Error::io("remove", self.path(*commit)))?;
        }
        self.known.retain(|(commit, _)| !gone.contains(commit));
        Ok(gone)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        tree::remove(At { folder: self.folder.as_fd(), name: name.as_bytes() })
    }
}

fn commit_of(name: &OsStr) -> Option<Oid> {
    name.to_str()?.parse().ok()
}

/// Gives a file of one release to another; false where it is not surely the same.
fn share(old: &Root, new: &Root, path: &RelPath, entry: &Entry, keep: Keep) -> io::Result<bool> {
    if !matches!(entry.kind, Kind::File { .. }) {
        return Ok(false);
    }
    let Some(stat) = old.stat(path).map_err(io::Error::other)? else { return Ok(false) };
    if stat.kind != FileKind::File || compare::metadata_differs(&stat, entry, keep).is_some() {
        return Ok(false);
    }
    let parent = path.parent().unwrap_or_default();
    let (from, to) = (old.folder(&parent)?, new.make_folder(&parent)?);
    rustix::fs::linkat(&from, path.name(), &to, path.name(), AtFlags::empty())?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::{
        disk::Source,
        model::{Meta, Mtime},
    };

    const KEEP: Keep = Keep { mode: true, mtime: true, ..Keep::NONE };

    fn tree(paths: &[(&str, u8)]) -> Vec<Change> {
        let change = |(path, blob): &(&str, u8)| {
            let kind = Kind::File { blob: Oid::from_bytes([*blob; 20]), executable: false };
            let meta = Meta {
                mode: Some(0o640),
                mtime: Some(Mtime { secs: 1_600_000_000, nanos: 7 }),
                ..Meta::default()
            };
            let path = RelPath::parse(path.as_bytes()).unwrap();
            Change { path, before: None, after: Some(Entry { kind, meta }) }
        };
        paths.iter().map(change).collect()
    }

    #[expect(clippy::unnecessary_wraps, reason = "a source may fail")]
    fn source(blob: Oid) -> io::Result<Source> {
        Ok(Source::Bytes(vec![blob.as_bytes()[0]; 10]))
    }

    fn build(releases: &Releases, to: u8, tree: &[Change], link: Option<LinkFrom<'_>>) -> Placed {
        let to = Oid::from_bytes([to; 20]);
        let building = Building { to, tree, keep: KEEP, source: &source, link_from: link };
        releases.build(&building).unwrap()
    }

    fn oid(byte: u8) -> Oid {
        Oid::from_bytes([byte; 20])
    }

    #[test]
    fn a_release_is_built_whole_and_shown_by_one_switch() {
        let dir = tempfile::tempdir().unwrap();
        let (at, link) = (dir.path().join("releases"), dir.path().join("current"));
        let mut releases = Releases::open(&at, &link).unwrap();
        assert_eq!(releases.current().unwrap(), None);
        let one = build(&releases, 1, &tree(&[("a", 1), ("b/c", 2)]), None);
        assert_eq!((one.written, one.faults.len()), (3, 0), "with the folder");
        assert!(!link.exists(), "nothing is shown before the switch");
        releases.switch(oid(1)).unwrap();
        assert_eq!(fs::read(link.join("b/c")).unwrap(), [2; 10]);
        assert_eq!(fs::metadata(link.join("a")).unwrap().mode() & 0o777, 0o640);
        let same = |path: &RelPath| path.as_bytes() == b"a";
        let shared = LinkFrom { commit: oid(1), same: &same };
        build(&releases, 2, &tree(&[("a", 1), ("b/c", 3)]), Some(shared));
        releases.switch(oid(2)).unwrap();
        assert_eq!(fs::read(link.join("b/c")).unwrap(), [3; 10]);
        let inode =
            |release: u8| fs::metadata(releases.path(oid(release)).join("a")).unwrap().ino();
        assert_eq!(inode(1), inode(2), "the same file is one file");
        drop(releases);

        let mut releases = Releases::open(&at, &link).unwrap();
        assert_eq!(releases.current().unwrap(), Some(oid(2)));
        assert_eq!(releases.prune(1).unwrap(), [], "somebody may be reading the older one");
        releases.known[0].1 = Instant::now().checked_sub(IN_USE).unwrap();
        assert_eq!(releases.prune(1).unwrap(), [oid(1)]);
        assert!(!releases.path(oid(1)).exists() && releases.path(oid(2)).exists());
    }

    #[test]
    fn what_lies_where_the_link_belongs_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (at, link) = (dir.path().join("releases"), dir.path().join("current"));
        for make in [
            (|link: &Path| fs::create_dir(link)) as fn(&Path) -> io::Result<()>,
            |link| fs::write(link, "a file"),
            |link| symlink("/somewhere", link),
        ] {
            make(&link).unwrap();
            let error = Releases::open(&at, &link).unwrap_err();
            assert!(matches!(error, Error::Occupied { .. }), "{error}");
            assert!(fs::symlink_metadata(&link).is_ok());
            if fs::remove_dir(&link).is_err() {
                fs::remove_file(&link).unwrap();
            }
        }
        let mut releases = Releases::open(&at, &link).unwrap();
        build(&releases, 1, &tree(&[("a", 1)]), None);
        fs::create_dir(&link).unwrap();
        assert!(matches!(releases.switch(oid(1)), Err(Error::Occupied { .. })));
        assert!(link.is_dir());
    }

    #[test]
    fn a_build_that_a_kill_cut_off_is_removed_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("releases");
        fs::create_dir_all(at.join(format!("{TEMPORARY}{}/sub", oid(1)))).unwrap();
        fs::create_dir(at.join("not-ours")).unwrap();
        Releases::open(&at, &dir.path().join("current")).unwrap();
        let left: Vec<_> =
            fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["not-ours"]);
    }
}
