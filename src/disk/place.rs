//! Puts a tree difference in place, so that each path has the old entry or the new one at any time.
//!
//! Stage everything hidden, make it durable, write the journal, then rename: folders, new files,
//! changed files, changes of type, deletions, modes of folders. Unchanged files are never touched.
//! What is neither the old entry nor the new one goes aside before anything takes its place. A kill
//! at any point leaves a journal, or nothing visible; placing the same paths again makes them whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    rc::Rc,
};

use rustix::fs::OFlags;

use super::{
    Aside, Error, FileKind, Placed, Placing, Result, Stat, compare, is_gone, journal,
    judge::{self, Seen, Verdict},
    metadata,
    root::remove_at,
    stage::{New, Op, Pulse, Stage, discard},
    together::{self, FEW},
    tree::{self, At},
};
use crate::{
    model::{Entry, RelPath},
    sys,
};

/// How often a path that changes under our hands is looked at anew.
const ATTEMPTS: u32 = 3;

/// Puts the difference in place. A journal left by an earlier placing is replaced: the changes must
/// cover its paths (`unfinished`).
///
/// # Errors
/// When nothing could be staged or made durable, or the journal could not be written. Faults of
/// single paths are in the answer.
pub fn place(p: &Placing<'_>) -> Result<Placed> {
    let mut go_on = || Ok(());
    let mut work = Work::new(p, &mut go_on)?;
    let done = work.run();
    work.clear();
    done.map(|()| work.placed)
}

/// Fills a folder that nobody sees yet: as [`place`], without a journal and without making anything
/// durable, which is left to the caller.
///
/// # Errors
/// When nothing can be written. Faults of single paths are in the answer.
pub(super) fn build(p: &Placing<'_>) -> Result<Placed> {
    let mut go_on = || Ok(());
    let mut work = Work::new(p, &mut go_on)?;
    let done =
        work.stage().and_then(|ops| work.commit(ops).map_err(Error::io("fill", p.root.path())));
    work.clear();
    done.map(|()| work.placed)
}

struct Work<'a> {
    p: &'a Placing<'a>,
    pulse: Pulse<'a>,
    stage: Stage<'a>,
    aside: Aside,
    placed: Placed,
    temporaries: Vec<RelPath>,
    /// Folders in which a name has changed.
    touched: BTreeSet<RelPath>,
    /// What was written, while it is little.
    written: Vec<File>,
    /// What was there and got other metadata: a few, or one more, which are too many.
    touched_files: Vec<OwnedFd>,
    /// Folders of ours that not even we might write, as they were.
    opened_up: Vec<(RelPath, u32)>,
    /// By path, so that what lies below a folder stands together.
    deletions: BTreeMap<&'a [u8], (&'a RelPath, &'a Entry)>,
    /// The folder that was used last, since neighbours follow each other.
    open: Option<(RelPath, Rc<OwnedFd>)>,
}

impl<'a> Work<'a> {
    fn new(p: &'a Placing<'a>, pulse: Pulse<'a>) -> Result<Self> {
        let deletions = p.changes.iter().filter(|change| change.after.is_none());
        let deletions =
            deletions.filter_map(|change| Some((&change.path, change.before.as_ref()?)));
        Ok(Work {
            p,
            pulse,
            stage: Stage::new(p)?,
            aside: Aside::new(p.aside),
            placed: Placed::default(),
            temporaries: Vec::new(),
            touched: BTreeSet::new(),
            written: Vec::new(),
            touched_files: Vec::new(),
            opened_up: Vec::new(),
            deletions: deletions.map(|old| (old.0.as_bytes(), old)).collect(),
            open: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        let root = self.p.root.path();
        let ops = self.stage()?;
        if ops.is_empty() {
            let along: Vec<_> = self.p.along.iter().map(|file| file.as_fd()).collect();
            together::sync(&along).map_err(Error::io("sync", root))?;
            return journal::remove(self.p.journal)
                .map_err(Error::io("remove the journal", self.p.journal));
        }
        let paths = self.p.changes.iter().map(|change| &change.path).filter(|path| !path.is_root());
        let journal = journal::write(self.p.journal, self.p.from, self.p.to, paths)
            .map_err(Error::io("write the journal", self.p.journal))?;
        self.sync_staged(&journal).map_err(Error::io("sync", root))?;
        self.commit(ops).map_err(Error::io("change", root))?;
        self.discard_unused();
        self.shut_again();
        self.sync_touched().map_err(Error::io("sync", root))?;
        journal::remove(self.p.journal).map_err(Error::io("remove the journal", self.p.journal))
    }

    /// Writes all that is new; answers what is to be done once that is durable, in order.
    fn stage(&mut self) -> Result<Vec<Op<'a>>> {
        self.open_up();
        let staged = self.stage.fill(self.pulse);
        let batch = std::mem::take(&mut self.stage.batch);
        self.placed.faults = batch.faults;
        self.placed.notes = batch.notes;
        self.temporaries = batch.temporaries;
        self.written = batch.files;
        staged?;
        let mut ops = batch.ops;
        ops.extend(self.deletions.values().map(|(path, before)| Op::Delete { path, before }));
        ops.sort_by(|a, b| (rank(a), order(a)).cmp(&(rank(b), order(b))));
        Ok(ops)
    }

    /// A folder that the feed has without the right to write is opened for as long as it is changed;
    /// what a kill leaves open is drift. One that is not ours stays as it is.
    fn open_up(&mut self) {
        if rustix::process::geteuid().is_root() {
            return;
        }
        let folders: BTreeSet<_> =
            self.p.changes.iter().filter_map(|it| it.path.parent()).collect();
        for folder in folders {
            let Ok(Some(stat)) = self.p.root.stat(&folder) else { continue };
            let is_shut = stat.kind == FileKind::Dir && stat.mode & 0o300 != 0o300;
            if is_shut && self.set_mode(&folder, stat.mode | 0o300).is_ok() {
                self.opened_up.push((folder, stat.mode));
            }
        }
    }

    fn set_mode(&self, folder: &RelPath, mode: u32) -> io::Result<()> {
        let folder = self.p.root.open_path(folder, OFlags::PATH | OFlags::DIRECTORY)?;
        let mode = rustix::fs::Mode::from_raw_mode(mode);
        Ok(rustix::fs::chmod(metadata::proc_path(folder.as_fd()), mode)?)
    }

    /// What the difference itself gives another mode has that already.
    fn shut_again(&mut self) {
        for (folder, mode) in std::mem::take(&mut self.opened_up) {
            let now = self.p.root.stat(&folder).ok().flatten();
            if now.is_some_and(|now| now.mode == mode | 0o300)
                && let Err(error) = self.set_mode(&folder, mode)
            {
                self.placed.notes.push((folder, format!("its mode stays: {error}")));
            }
        }
    }

    /// One wait for all that must be durable before the first rename.
    fn sync_staged(&mut self, journal: &File) -> io::Result<()> {
        let name = journal::folder(self.p.journal)?;
        let with: Vec<&File> = [journal, &name].into_iter().chain(self.p.along).collect();
        self.stage.sync(&std::mem::take(&mut self.written), &with)
    }

    fn commit(&mut self, ops: Vec<Op<'a>>) -> io::Result<()> {
        (self.pulse)()?;
        let mut deleted = Vec::new();
        for op in ops {
            let path = path_of(&op).clone();
            let is_deletion = matches!(op, Op::Delete { .. });
            match self.apply(op) {
                Ok(true) if is_deletion => deleted.push(path),
                Ok(_) => {}
                Err(error) => {
                    let fault = format!("it cannot be put in place: {error}");
                    self.placed.faults.push((path, fault));
                }
            }
            (self.pulse)()?;
        }
        if !self.p.keep.empty_dirs {
            self.remove_emptied(&deleted);
            (self.pulse)()?;
        }
        Ok(())
    }

    fn sync_touched(&self) -> io::Result<()> {
        if self.touched.len() + self.touched_files.len() > FEW {
            return self.stage.folders.sync_file_systems();
        }
        let mut folders = Vec::new();
        for folder in &self.touched {
            match self.p.root.folder(folder) {
                Ok(folder) => folders.push(folder),
                // Removed since: the folder above it is in the list.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let all = folders.iter().chain(&self.touched_files).map(AsFd::as_fd);
        together::sync(&all.collect::<Vec<_>>())
    }

    fn folder(&mut self, path: &RelPath) -> io::Result<Rc<OwnedFd>> {
        if let Some((open, fd)) = &self.open
            && open == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = Rc::new(self.p.root.folder(path)?);
        self.stage.folders.note_file_system(fd.as_fd())?;
        self.open = Some((path.clone(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn touch_parent(&mut self, path: &RelPath) {
        self.touched.insert(path.parent().unwrap_or_default());
    }

    /// Does one thing; false: there was nothing to do.
    fn apply(&mut self, op: Op<'a>) -> io::Result<bool> {
        match op {
            Op::Enter { path, staged, inside } => {
                self.enter(&path, &staged)?;
                self.touch_parent(&path);
                self.placed.written += 1 + inside.entries;
                self.placed.bytes += inside.bytes;
                Ok(true)
            }
            Op::Replace { new, staged, bytes, seen } => {
                self.replace(new, &staged, seen)?;
                self.touch_parent(&new.change.path);
                self.placed.written += 1;
                self.placed.bytes += bytes;
                Ok(true)
            }
            Op::Touch { path, entry } => {
                let touched = self.set_metadata(path, entry)?;
                self.placed.written += u64::from(touched);
                Ok(touched)
            }
            Op::Delete { path, before } => {
                let deleted = self.delete(path, before)?;
                self.placed.deleted += u64::from(deleted);
                Ok(deleted)
            }
        }
    }

    /// A folder that was built whole takes its name. What stood in its way is no folder.
    fn enter(&mut self, path: &RelPath, staged: &RelPath) -> io::Result<()> {
        let parent = self.folder(&path.parent().unwrap_or_default())?;
        let wrapper = self.p.root.folder(&staged.parent().unwrap_or_default())?;
        let name = name_of(path);
        for _ in 0..ATTEMPTS {
            let at = At { folder: parent.as_fd(), name: path.name() };
            match at.stat()? {
                None => match rename_new(&wrapper, name, &parent, name) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    answer => return answer,
                },
                Some(stat) if stat.kind == FileKind::Dir => {
                    return Err(io::Error::other("a folder was made there meanwhile"));
                }
                Some(stat) => {
                    self.keep_unless_old(path, &stat)?;
                    (self.pulse)()?;
                    exchange(&wrapper, name, &parent, name)?;
                    return self.keep_if_other(staged, path, &stat);
                }
            }
        }
        Err(busy())
    }

    fn keep_unless_old(&mut self, path: &RelPath, stat: &Stat) -> io::Result<()> {
        let before = self.stage.folders.change(path).and_then(|change| change.before.as_ref());
        if before.is_some_and(|before| judge::holds(self.p, path, stat, before)) {
            return Ok(());
        }
        self.aside.keep(self.p.root, path, "the feed needs this path for a folder")?;
        self.placed.set_aside.push(path.clone());
        Ok(())
    }

    /// What was swapped out is removed with the wrapper, unless it is not what we had looked at.
    fn keep_if_other(&mut self, swapped: &RelPath, path: &RelPath, stat: &Stat) -> io::Result<()> {
        let now = self.p.root.stat(swapped).map_err(io::Error::other)?;
        if now.is_some_and(|now| now.kind == FileKind::Dir || now.inode != stat.inode) {
            self.aside.put_as(
                self.p.root,
                swapped,
                path,
                "it was made while the feed's took its place",
            )?;
            self.placed.set_aside.push(path.clone());
        }
        Ok(())
    }

    /// A file or link that was staged takes its name.
    fn replace(&mut self, new: New<'a>, staged: &RelPath, seen: Seen) -> io::Result<()> {
        let path = &new.change.path;
        let folder = self.folder(&path.parent().unwrap_or_default())?;
        let (from, to) = (name_of(staged), name_of(path));
        for _ in 0..ATTEMPTS {
            let stat = Stat::at(folder.as_fd(), path.name(), self.p.root.sync_flags())?;
            let now = if stat == seen.stat {
                seen
            } else {
                judge::look(self.p, folder.as_fd(), new.change)?
            };
            match now.verdict {
                Verdict::Free => match rename_new(&folder, from, &folder, to) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                    answer => return answer,
                },
                Verdict::New => {
                    discard(At { folder: folder.as_fd(), name: staged.name() });
                    return self.set_metadata(path, new.entry).map(drop);
                }
                Verdict::Folder => {
                    exchange(&folder, from, &folder, to)?;
                    (self.pulse)()?;
                    return self.clear_swapped_folder(staged, path);
                }
                Verdict::Old => {}
                Verdict::Foreign => {
                    tree::expect_exact_name(folder.as_fd(), path.name())?;
                    self.aside.keep(
                        self.p.root,
                        path,
                        "it was changed here, and the feed has another version",
                    )?;
                    self.placed.set_aside.push(path.clone());
                }
            }
            (self.pulse)()?;
            return Ok(rustix::fs::renameat(&*folder, from, &*folder, to)?);
        }
        Err(busy())
    }

    /// The old folder, which lies under the temporary name now, loses what the difference removes;
    /// the rest is somebody's and goes aside.
    fn clear_swapped_folder(&mut self, swapped: &RelPath, path: &RelPath) -> io::Result<()> {
        let below = [path.as_bytes(), b"/"].concat();
        let range = self.deletions.range(below.as_slice()..);
        let gone: Vec<_> =
            range.take_while(|(at, _)| at.starts_with(&below)).map(|(_, d)| *d).collect();
        for (old, before) in gone.into_iter().rev() {
            let rest = &old.as_bytes()[path.as_bytes().len()..];
            let Ok(at) = RelPath::parse(&[swapped.as_bytes(), rest].concat()) else { continue };
            let Some(stat) = self.p.root.stat(&at).map_err(io::Error::other)? else { continue };
            if !before.kind.is_dir() && judge::holds(self.p, &at, &stat, before) {
                let folder = self.p.root.folder(&at.parent().unwrap_or_default())?;
                remove_at(folder.as_fd(), at.name(), stat.kind)?;
                self.placed.deleted += 1;
                (self.pulse)()?;
            }
        }
        let folder = self.folder(&path.parent().unwrap_or_default())?;
        let at = At { folder: folder.as_fd(), name: swapped.name() };
        tree::prune(at)?;
        if at.stat()?.is_some() {
            let why = "the feed has a file where this folder was";
            self.aside.put_as(self.p.root, swapped, path, why)?;
            self.placed.set_aside.push(path.clone());
        }
        Ok(())
    }

    /// Sets metadata on what is there; false: it was right.
    fn set_metadata(&mut self, path: &RelPath, entry: &Entry) -> io::Result<bool> {
        let keep = self.p.keep;
        let Some(stat) = self.p.root.stat(path).map_err(io::Error::other)? else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if !compare::is_kind(&stat, &entry.kind) {
            return Err(io::Error::other("it became something else meanwhile"));
        }
        let unseen = keep.owner || keep.xattrs;
        if !unseen && compare::metadata_differs(&stat, entry, keep).is_none() {
            return Ok(false);
        }
        let note = if stat.kind == FileKind::Symlink {
            let folder = self.folder(&path.parent().unwrap_or_default())?;
            metadata::apply_to_link(At { folder: folder.as_fd(), name: path.name() }, entry, keep)
        } else {
            let fd = self.p.root.open_path(path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            let note = metadata::apply(fd.as_fd(), entry, keep)?;
            if self.touched_files.len() <= FEW {
                self.touched_files.push(fd);
            }
            note
        };
        self.placed.notes.extend(note.map(|note| (path.clone(), note)));
        Ok(true)
    }

    /// Removes the old entry; false: it was not there, or is a folder that still holds something.
    fn delete(&mut self, path: &RelPath, before: &Entry) -> io::Result<bool> {
        let Some(parent) = path.parent() else { return Ok(false) };
        let folder = match self.folder(&parent) {
            Err(error) if is_gone(&error) => return Ok(false),
            folder => folder?,
        };
        let Some(stat) = Stat::at(folder.as_fd(), path.name(), self.p.root.sync_flags())? else {
            return Ok(false);
        };
        if stat.kind == FileKind::Dir {
            return if before.kind.is_dir() { self.remove_if_empty(path) } else { Ok(false) };
        }
        if judge::holds(self.p, path, &stat, before) {
            remove_at(folder.as_fd(), path.name(), stat.kind)?;
        } else {
            tree::expect_exact_name(folder.as_fd(), path.name())?;
            self.aside.put(
                self.p.root,
                path,
                "it was changed here, and the feed has removed it",
            )?;
            self.placed.set_aside.push(path.clone());
        }
        self.touch_parent(path);
        Ok(true)
    }

    fn remove_if_empty(&mut self, path: &RelPath) -> io::Result<bool> {
        let folder = self.folder(&path.parent().unwrap_or_default())?;
        match remove_at(folder.as_fd(), path.name(), FileKind::Dir) {
            Ok(()) => {
                self.touch_parent(path);
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty || is_gone(&error) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Where the feed keeps no empty folders, one that we emptied goes too, as it does in git.
    fn remove_emptied(&mut self, deleted: &[RelPath]) {
        let mut folders: BTreeSet<RelPath> = deleted.iter().filter_map(RelPath::parent).collect();
        // The last is below all others that it could be in.
        while let Some(folder) = folders.pop_last() {
            let may_go = !folder.is_root() && !self.stage.folders.needs(&folder);
            // One that cannot be removed is an empty folder too many, and no fault of a path.
            if may_go && self.remove_if_empty(&folder).unwrap_or(false) {
                folders.extend(folder.parent());
            }
        }
    }

    /// Removes what was staged and not used, because of a fault or a failure.
    fn clear(&mut self) {
        self.discard_unused();
        self.shut_again();
    }

    fn discard_unused(&mut self) {
        for staged in std::mem::take(&mut self.temporaries) {
            if let Ok(folder) = self.folder(&staged.parent().unwrap_or_default()) {
                discard(At { folder: folder.as_fd(), name: staged.name() });
            }
        }
        for wrapper in self.stage.folders.wrappers() {
            if let Ok(folder) = self.p.root.folder(&wrapper.parent().unwrap_or_default()) {
                // What cannot be removed now is swept at the next start.
                let _ = tree::remove(At { folder: folder.as_fd(), name: wrapper.name() });
            }
        }
    }
}

/// In which order things are done: what is new before what is changed, and deletions after both.
fn rank(op: &Op<'_>) -> u8 {
    match op {
        Op::Enter { inside, .. } if inside.replaces => 3,
        Op::Enter { .. } => 0,
        Op::Replace { seen, .. } => match seen.verdict {
            Verdict::Free => 1,
            Verdict::Folder => 3,
            _ => 2,
        },
        Op::Touch { entry, .. } if entry.kind.is_dir() => 5,
        Op::Touch { .. } => 2,
        Op::Delete { .. } => 4,
    }
}

/// Within a rank by path; from the inside out where a folder must come after what it holds.
fn order<'o>(op: &'o Op<'_>) -> (std::cmp::Reverse<&'o [u8]>, &'o [u8]) {
    let path = path_of(op).as_bytes();
    match rank(op) {
        4 | 5 => (std::cmp::Reverse(path), b""),
        _ => (std::cmp::Reverse(b""), path),
    }
}

fn path_of<'o>(op: &'o Op<'_>) -> &'o RelPath {
    match op {
        Op::Enter { path, .. } => path,
        Op::Touch { path, .. } | Op::Delete { path, .. } => path,
        Op::Replace { new, .. } => &new.change.path,
    }
}

fn name_of(path: &RelPath) -> &Path {
    path.as_path().file_name().map_or(path.as_path(), Path::new)
}

fn busy() -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, "somebody else keeps changing it")
}

/// Renames to a free name; plainly where the file system knows no better.
fn rename_new(from: &impl AsFd, name: &Path, to: &impl AsFd, new: &Path) -> io::Result<()> {
    match sys::rename_new(from, name, to, new) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            Ok(rustix::fs::renameat(from, name, to, new)?)
        }
        answer => answer,
    }
}

/// Swaps a staged entry with the one in place; in two steps where the file system knows no better.
fn exchange(
    staged_in: &impl AsFd,
    staged: &Path,
    folder: &impl AsFd,
    name: &Path,
) -> io::Result<()> {
    match sys::exchange(staged_in, staged, folder, name) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            let mut between = staged.as_os_str().to_owned();
            between.push(".old");
            rustix::fs::renameat(folder, name, staged_in, &between)?;
            rustix::fs::renameat(staged_in, staged, folder, name)?;
            Ok(rustix::fs::renameat(staged_in, &between, staged_in, staged)?)
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests;
