//! Packs to send: all that a mirror at `have` needs to be at `want`, self-contained.
//!
//! A commit's own pack is sent as it is to whoever has the parent. Every other one is built once,
//! however many ask, and kept in `spool/` for a while; the same pair always gives the same bytes,
//! so a transfer resumes even after its pack was dropped and built again.

use std::{
    collections::HashSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    Commit, Error, Result, Store,
    db::Type,
    diff::Delta,
    pack::{Pack, PackWriter},
    packs::Stored,
};
use crate::model::Oid;

/// How many built packs stay in `spool/`: mirrors are at a few different commits at a time.
const KEPT: usize = 8;

/// How their names end.
const ENDING: &str = ".pack";

/// A pack ready to be served, on disk. It may be dropped while nobody has it open: then ask again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackFile {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-1 at its end: its `ETag`.
    pub checksum: Oid,
}

impl PackFile {
    /// None when there is no such file.
    fn at(path: PathBuf) -> Result<Option<PackFile>> {
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::io("open", &path))?,
        };
        let mut checksum = [0; 20];
        let size = file.metadata().map_err(Error::io("read", &path))?.len();
        let at = size.saturating_sub(20);
        file.read_exact_at(&mut checksum, at).map_err(Error::io("read", &path))?;
        Ok(Some(PackFile { path, size, checksum: Oid::from_bytes(checksum) }))
    }
}

/// What is being built.
#[derive(Default)]
pub(super) struct Building {
    names: Mutex<HashSet<String>>,
    done: Condvar,
    packs: AtomicU64,
    deltas: AtomicU64,
}

/// What was built since the start, and not merely sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Packs.
    pub packs: u64,
    /// Deltas, with those that turned out not to be worth it.
    pub deltas: u64,
}

/// The right to build one pack or delta; given back when dropped, by failure as well.
pub(super) struct Turn<'a> {
    building: &'a Building,
    name: &'a str,
}

impl Building {
    /// Waits until nobody builds this one.
    pub(super) fn turn<'a>(&'a self, name: &'a str) -> Turn<'a> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.done.wait_while(names, |names| names.contains(name));
        free.unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Turn { building: self, name }
    }

    pub(super) fn count_delta(&self) {
        self.deltas.fetch_add(1, Relaxed);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.building.names.lock().unwrap_or_else(PoisonError::into_inner).remove(self.name);
        self.building.done.notify_all();
    }
}

impl Store {
    /// The pack of all that is reachable from `want` and not from `have` (none: nothing).
    ///
    /// # Errors
    /// [`Error::UnknownCommit`] for a commit that is not published; else when the history cannot
    /// be read or `spool/` not written.
    pub fn pack(&self, have: Option<Oid>, want: Oid) -> Result<PackFile> {
        let want = self.published(want)?;
        let have = have.map(|have| self.published(have)).transpose()?;
        let from = have.as_ref().map(|have| have.id);
        if want.parent == from
            && let Some(own) = PackFile::at(self.pack_path(&want.id))?
        {
            return Ok(own);
        }
        let from = from.map_or("0".to_owned(), |from| from.to_string());
        self.built_as(&format!("{from}..{}", want.id), || self.build(have.as_ref(), want))
    }

    /// The pack of that name in `spool/`; built if it is not there, by one at a time.
    pub(super) fn built_as(
        &self,
        name: &str,
        build: impl FnOnce() -> Result<Pack>,
    ) -> Result<PackFile> {
        let path = self.spool.join(format!("{name}{ENDING}"));
        let _turn = self.building.turn(name);
        if let Some(built) = PackFile::at(path.clone())? {
            return Ok(built);
        }
        let Pack { file, size, checksum, .. } = build()?;
        file.persist(&path).map_err(|e| Error::io("move in", &path)(e.error))?;
        self.building.packs.fetch_add(1, Relaxed);
        self.drop_oldest(&path)?;
        Ok(PackFile { path, size, checksum })
    }

    /// How many packs and deltas were built to be sent.
    pub fn built(&self) -> Built {
        let Building { packs, deltas, .. } = &self.building;
        Built { packs: packs.load(Relaxed), deltas: deltas.load(Relaxed) }
    }

    /// Where the pack of one commit lies, if it was published or received alone.
    pub(super) fn pack_path(&self, commit: &Oid) -> PathBuf {
        self.git.join(format!("objects/pack/pack-{commit}.pack"))
    }

    /// Newest first. Both are published: `have` is on the way, unless it is the newer one.
    fn build(&self, have: Option<&Commit>, want: Commit) -> Result<Pack> {
        let mut pack = PackWriter::new(&self.spool);
        let have_seq = have.map_or(0, |have| have.head.seq);
        let stored = Stored::open(&self.git.join("objects/pack"))?;
        let mut next = Some(want);
        while let Some(commit) = next.take().filter(|commit| commit.head.seq > have_seq) {
            let parent = commit.parent.map(|parent| self.commit(parent)).transpose()?;
            self.add_commit(&mut pack, &stored, &commit, parent.as_ref())?;
            next = parent;
        }
        pack.finish()
    }

    /// Adds what a commit has and its parent has not. What is deflated somewhere is copied as it is.
    pub(super) fn add_commit(
        &self,
        pack: &mut PackWriter,
        stored: &Stored,
        commit: &Commit,
        parent: Option<&Commit>,
    ) -> Result<()> {
        pack.add(Type::Commit, commit.id, &self.db.read_often(Type::Commit, commit.id)?)?;
        let read = |kind, id| self.db.read_often(kind, id);
        let delta = Delta::between(&read, parent.map(|parent| parent.tree), commit.tree)?;
        for (kind, id) in delta.new {
            if pack.contains(id) {
                continue;
            }
            match stored.whole(id) {
                Some(raw) => pack.add_deflated(kind, id, raw.size, &raw.deflated)?,
                None => pack.add(kind, id, &self.db.read(kind, id)?)?,
            }
        }
        Ok(())
    }

    /// Keeps the newest packs in `spool/`, and `new` in any case.
    fn drop_oldest(&self, new: &Path) -> Result<()> {
        let mut packs = Vec::new();
        for entry in fs::read_dir(&self.spool).map_err(Error::io("list", &self.spool))? {
            let path = entry.map_err(Error::io("list", &self.spool))?.path();
            let is_built =
                path.to_str().is_some_and(|name| name.ends_with(ENDING) && name.contains(".."));
            // One that another thread has just removed does not count.
            if is_built
                && path != new
                && let Ok(about) = path.metadata()
            {
                packs.push((about.modified().map_err(Error::io("read", &path))?, path));
            }
        }
        packs.sort();
        for (_, path) in packs.iter().rev().skip(KEPT - 1) {
            fs::remove_file(path).map_err(Error::io("remove", path))?;
        }
        Ok(())
    }
}
