//! The folders that a placing puts something into: those that are there, and those being built.
//!
//! A folder that is not there is built whole, with all in it under final names, within a hidden
//! wrapper in the nearest folder that is there, and so appears complete in one rename. The wrapper
//! keeps a half-built application out of the sight of servers that deploy any folder they find.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::Mode;

use super::{
    FileKind, Placing, metadata,
    stage::{Batch, Op, Pulse},
    tree,
};
use crate::{
    model::{Change, Entry, Kind, Meta, RelPath},
    sys,
};

/// What the names of wrappers begin with. Nothing but ours is ever in a wrapper, nor anything that
/// does not lie elsewhere too, so `sweep` may remove it whole.
const WRAPPER: &str = ".depsync-tmp-dir-";

/// Whether a name is a wrapper's.
pub(super) fn is_wrapper(name: &[u8]) -> bool {
    name.starts_with(WRAPPER.as_bytes())
}

/// Where a folder is while we stage.
#[derive(Debug, Clone)]
pub(super) enum Folder {
    /// In its place.
    There,
    /// Being built at the first path; the second is the topmost new folder that it is part of.
    Staged(RelPath, RelPath),
    /// It cannot be made; the fault is told.
    Failed,
}

/// What lies in a folder that is being built, with all below it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Inside {
    pub entries: u64,
    pub bytes: u64,
    /// A file or link has the folder's name still.
    pub replaces: bool,
}

impl Inside {
    pub(super) fn add(&mut self, other: Inside) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.replaces |= other.replaces;
    }
}

/// All folders of one placing.
pub(super) struct Folders<'a> {
    p: &'a Placing<'a>,
    changes: HashMap<&'a RelPath, &'a Change>,
    places: BTreeMap<RelPath, Folder>,
    wrapper: String,
    wrappers: BTreeSet<RelPath>,
    /// One open folder of each file system that we write to.
    file_systems: BTreeMap<u64, OwnedFd>,
}

impl<'a> Folders<'a> {
    /// `run` makes the names of this placing's temporaries its own.
    pub(super) fn new(p: &'a Placing<'a>, run: &str) -> Self {
        Folders {
            p,
            changes: p.changes.iter().map(|change| (&change.path, change)).collect(),
            places: BTreeMap::new(),
            wrapper: format!("{WRAPPER}{run}"),
            wrappers: BTreeSet::new(),
            file_systems: BTreeMap::new(),
        }
    }

    /// The change of a path, if it has one.
    pub(super) fn change(&self, path: &RelPath) -> Option<&'a Change> {
        self.changes.get(path).copied()
    }

    /// Where a folder is that something goes into.
    pub(super) fn get(&self, path: &RelPath) -> &Folder {
        self.places.get(path).unwrap_or(&Folder::There)
    }

    /// Whether anything of the new tree goes into that folder.
    pub(super) fn needs(&self, path: &RelPath) -> bool {
        self.places.contains_key(path)
    }

    /// The hidden folders in which new ones are built.
    pub(super) fn wrappers(&self) -> impl Iterator<Item = &RelPath> {
        self.wrappers.iter()
    }

    /// Where the new folders are being built.
    pub(super) fn staged(&self) -> impl Iterator<Item = &RelPath> {
        self.places.values().filter_map(|folder| match folder {
            Folder::Staged(at, _) => Some(at),
            Folder::There | Folder::Failed => None,
        })
    }

    /// Remembers the file system of a folder, to be synced.
    pub(super) fn note_file_system(&mut self, folder: BorrowedFd<'_>) -> io::Result<()> {
        let device = rustix::fs::fstat(folder)?.st_dev;
        if let std::collections::btree_map::Entry::Vacant(new) = self.file_systems.entry(device) {
            new.insert(folder.try_clone_to_owned()?);
        }
        Ok(())
    }

    /// Makes all that was written to the file systems we write to durable.
    pub(super) fn sync_file_systems(&self) -> io::Result<()> {
        self.file_systems.values().try_for_each(sys::sync_file_system)
    }

    /// Finds out which folders are there, and starts building those that are not.
    pub(super) fn make(&mut self, batch: &mut Batch<'a>, pulse: Pulse<'_>) -> io::Result<()> {
        self.note_file_system(self.p.root.as_fd())?;
        let mut needed = BTreeSet::new();
        for change in self.p.changes {
            let Some(after) = &change.after else { continue };
            let own =
                if after.kind.is_dir() { Some(change.path.clone()) } else { change.path.parent() };
            let chain = std::iter::successors(own, RelPath::parent).filter(|path| !path.is_root());
            // One that is known has its parents in the set.
            chain.map_while(|path| needed.insert(path).then_some(())).for_each(drop);
        }
        // A folder sorts before what it holds.
        for path in needed {
            let folder = self.make_one(&path, batch).unwrap_or_else(|error| {
                batch.faults.push((path.clone(), format!("the folder cannot be made: {error}")));
                Folder::Failed
            });
            let staged = matches!(folder, Folder::Staged(..));
            self.places.insert(path, folder);
            if staged {
                pulse()?;
            }
        }
        Ok(())
    }

    fn make_one(&mut self, path: &RelPath, batch: &mut Batch<'a>) -> io::Result<Folder> {
        let parent = path.parent().unwrap_or_default();
        let (within, top) = match self.get(&parent).clone() {
            Folder::Failed => return Ok(Folder::Failed),
            Folder::Staged(at, top) => (at, top),
            Folder::There => {
                let there = self.p.root.stat(path).map_err(io::Error::other)?;
                if there.is_some_and(|stat| stat.kind == FileKind::Dir) {
                    if self.p.root.folds_case() {
                        let parent = self.p.root.folder(&parent)?;
                        tree::expect_exact_name(parent.as_fd(), path.name())?;
                    }
                    let folder = self.p.root.folder(path)?;
                    self.note_file_system(folder.as_fd())?;
                    return Ok(Folder::There);
                }
                let inside = Inside { replaces: there.is_some(), ..Inside::default() };
                batch.inside.insert(path.clone(), inside);
                (self.make_wrapper(&parent)?, path.clone())
            }
        };
        let entry = self.own_entry(path).map_or(&PLAIN, |(_, entry)| entry);
        let mode = metadata::first_mode(entry, self.p.keep);
        rustix::fs::mkdirat(&self.p.root.folder(&within)?, path.name(), mode)?;
        Ok(Folder::Staged(join(&within, path.name())?, top))
    }

    fn make_wrapper(&mut self, parent: &RelPath) -> io::Result<RelPath> {
        let wrapper = join(parent, self.wrapper.as_bytes())?;
        if !self.wrappers.contains(&wrapper) {
            rustix::fs::mkdirat(&self.p.root.folder(parent)?, wrapper.name(), Mode::RWXU)?;
            self.wrappers.insert(wrapper.clone());
        }
        Ok(wrapper)
    }

    /// What the new tree says of a folder that has a change of its own.
    fn own_entry(&self, path: &RelPath) -> Option<(&'a RelPath, &'a Entry)> {
        let change = self.change(path)?;
        Some((&change.path, change.after.as_ref().filter(|entry| entry.kind.is_dir())?))
    }

    /// Sets the metadata of the folders that we built, from the inside out, and adds what is left to
    /// do with folders.
    pub(super) fn finish(&self, batch: &mut Batch<'a>) {
        for (path, folder) in self.places.iter().rev() {
            let Some((path, entry)) = self.own_entry(path) else { continue };
            match folder {
                Folder::Failed => {}
                Folder::Staged(at, _) if may_move(entry) => self.finish_one(at, path, entry, batch),
                Folder::Staged(..) | Folder::There => batch.ops.push(Op::Touch { path, entry }),
            }
        }
        for (path, inside) in std::mem::take(&mut batch.inside) {
            if let Folder::Staged(staged, _) = self.get(&path).clone() {
                batch.ops.push(Op::Enter { path, staged, inside });
            }
        }
    }

    fn finish_one(&self, at: &RelPath, path: &RelPath, entry: &Entry, batch: &mut Batch<'a>) {
        let folder = self.p.root.folder(at);
        match folder.and_then(|folder| metadata::apply(folder.as_fd(), entry, self.p.keep)) {
            Ok(note) => batch.notes.extend(note.map(|note| (path.clone(), note))),
            Err(error) => batch.faults.push((path.clone(), format!("its mode stays: {error}"))),
        }
    }
}

/// A folder of which the tree says nothing but that something lies in it.
static PLAIN: Entry =
    Entry { kind: Kind::Dir, meta: Meta { mode: None, mtime: None, extra: None } };

/// Only who may write a folder may move it to another; the others get their mode in their place.
fn may_move(entry: &Entry) -> bool {
    entry.meta.mode.is_none_or(|mode| mode & 0o200 != 0)
}

/// The path of an entry that we make.
pub(super) fn join(folder: &RelPath, name: &[u8]) -> io::Result<RelPath> {
    folder.join(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidFilename, error))
}
