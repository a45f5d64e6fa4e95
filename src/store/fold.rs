//! Folding packs: many small ones become one, with deltas of trees and blobs.
//!
//! Each commit brings a pack, and every pack costs a look-up and an open file. Packs are folded so
//! that those that stay grow geometrically: each byte is written again a logarithmic number of times.
//! What is deflated already is copied as it is, and every object is checked on the way. The newest
//! packs stay, since mirrors ask for them. Old packs go only once the new one is durable.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    Commit, Result, Store,
    db::Type,
    durable,
    folder::side_by_side,
    git_delta,
    pack::PackWriter,
    packs::{self, Form, Raw, StoredPack},
    retain::{Going, stop_unless},
    tree::{self, Mode, TreeEntry},
};
use crate::model::Oid;

/// From so many packs on they are folded: below the 32 that libgit2 is quick with.
const FOLD_AT: usize = 24;
/// How many of the newest stay as they are: each is one commit's, ready to be sent.
const NEWEST: usize = 8;
/// How many deltas may lie between an object and a whole one, as in git's own packs.
const MAX_DEPTH: u16 = 50;
/// Larger objects are not compared: it would take their size in memory again.
const MAX_COMPARED: usize = 16 << 20;

/// What folding did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Folded {
    /// Packs that became one.
    pub packs: usize,
    /// Objects in it.
    pub objects: usize,
    /// Bytes before.
    pub before: u64,
    /// Bytes after.
    pub after: u64,
}

impl Store {
    /// Folds packs once there are many. None: nothing was to be done.
    ///
    /// # Errors
    /// When a pack is damaged or the repository cannot be written, and [`super::Error::Interrupted`]:
    /// nothing was changed then.
    pub fn fold(&self, going: Going<'_>) -> Result<Option<Folded>> {
        let all = packs::list(&self.git.join("objects/pack"))?;
        if all.len() < FOLD_AT {
            return Ok(None);
        }
        let chosen = plan(&all[..all.len() - NEWEST]);
        if chosen.len() < 2 { Ok(None) } else { self.fold_these(&chosen, going).map(Some) }
    }

    /// Folds all packs into one.
    ///
    /// # Errors
    /// As [`Store::fold`].
    pub fn fold_all(&self, going: Going<'_>) -> Result<Option<Folded>> {
        let all = packs::list(&self.git.join("objects/pack"))?;
        if all.is_empty() { Ok(None) } else { self.fold_these(&all, going).map(Some) }
    }

    fn fold_these(&self, chosen: &[(PathBuf, u64)], going: Going<'_>) -> Result<Folded> {
        let _one = self.folding.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let sources = chosen.iter().map(|(path, _)| StoredPack::open(path));
        let mut fold = Fold::new(self, sources.collect::<Result<_>>()?);
        fold.write_all(going)?;
        let mut pack = fold.pack.finish()?;
        let index = pack.write_index(&self.spool)?;
        durable::sync_file(pack.file.path())?;
        durable::sync_file(index.path())?;
        self.move_in(&pack.checksum, pack.file.path(), index.path())?;
        let new = self.pack_path(&pack.checksum);
        let old = chosen.iter().map(|(path, _)| path.as_path()).filter(|path| *path != new);
        self.remove_packs(&old.collect::<Vec<_>>())?;
        Ok(Folded {
            packs: chosen.len(),
            objects: fold.whence.len(),
            before: chosen.iter().map(|(_, size)| size).sum(),
            after: pack.size,
        })
    }

    /// Removes packs whose objects lie in others, or are nobody's. Nobody reads meanwhile.
    pub(super) fn remove_packs(&self, packs: &[&Path]) -> Result<()> {
        self.db.reopen_after(|| {
            for pack in packs {
                // An index without its pack is what a start sweeps.
                for path in [pack.to_path_buf(), pack.with_extension("idx")] {
                    match fs::remove_file(&path) {
                        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                        done => done.map_err(super::Error::io("remove", &path))?,
                    }
                }
            }
            Ok(())
        })
    }

    /// Removes the packs that a kill left between their commit and its publication, which nobody
    /// has heard of. Only for whoever owns the feed: a mirror goes on with what it has received.
    ///
    /// # Errors
    /// When the repository cannot be read or written.
    pub fn drop_unpublished(&self) -> Result<usize> {
        let newest = self.head()?.map_or(0, |head| head.seq);
        let mut dropped = Vec::new();
        for (path, _) in packs::list(&self.git.join("objects/pack"))? {
            let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
            let commit = name.strip_prefix("pack-").and_then(|id| id.parse().ok());
            if commit.is_some_and(|id| self.commit(id).is_ok_and(|c| c.head.seq > newest)) {
                dropped.push(path);
            }
        }
        if !dropped.is_empty() {
            self.remove_packs(&dropped.iter().map(PathBuf::as_path).collect::<Vec<_>>())?;
            self.db.forget();
        }
        Ok(dropped.len())
    }
}

/// Which packs to fold: afterwards each one that stays has at least twice the bytes of all smaller
/// ones together.
fn plan(packs: &[(PathBuf, u64)]) -> Vec<(PathBuf, u64)> {
    let mut packs = packs.to_vec();
    packs.sort_by_key(|(_, size)| *size);
    let mut smaller: u64 = packs.iter().map(|(_, size)| size).sum();
    while let Some((_, size)) = packs.last() {
        smaller -= size;
        if *size < 2 * smaller {
            break;
        }
        packs.pop();
    }
    packs
}

/// A fold under way.
struct Fold<'a> {
    store: &'a Store,
    sources: Vec<Source>,
    /// In which source each object lies.
    whence: HashMap<Oid, usize>,
    /// How deep in deltas each object lies that is written.
    depths: HashMap<Oid, u16>,
    pack: PackWriter,
}

struct Source {
    pack: StoredPack,
    by_offset: HashMap<u64, Oid>,
}

impl<'a> Fold<'a> {
    fn new(store: &'a Store, packs: Vec<StoredPack>) -> Self {
        let mut whence = HashMap::new();
        for (number, pack) in packs.iter().enumerate() {
            whence.extend(pack.objects().map(|(id, _)| (id, number)));
        }
        let source = |pack: StoredPack| Source { by_offset: pack.by_offset(), pack };
        let sources = packs.into_iter().map(source).collect();
        let pack = PackWriter::new(&store.spool);
        Fold { store, sources, whence, depths: HashMap::new(), pack }
    }

    /// The newest commits first, each version of a folder or file before the one that it replaced,
    /// which is then written as what differs.
    fn write_all(&mut self, going: Going<'_>) -> Result<()> {
        let mut ids: Vec<Oid> = self.whence.keys().copied().collect();
        ids.sort_unstable();
        let mut commits = Vec::new();
        for id in &ids {
            if self.store.db.kind(*id)? == Type::Commit {
                commits.push(self.store.db.commit(*id)?);
            }
        }
        commits.sort_by_key(|commit| std::cmp::Reverse((commit.head.seq, commit.id)));
        for commit in &commits {
            self.write(commit.id, None)?;
        }
        for commit in commits {
            stop_unless(going)?;
            self.write_versions(&commit)?;
        }
        for id in ids {
            stop_unless(going)?;
            self.write(id, None)?;
        }
        Ok(())
    }

    /// Walks what a commit changed.
    fn write_versions(&mut self, commit: &Commit) -> Result<()> {
        // What a commit refers to may lie elsewhere, or be no more: then there is nothing to compare.
        let parent = commit.parent.and_then(|parent| self.store.db.commit(parent).ok());
        let mut pairs = vec![(parent.map(|parent| parent.tree), commit.tree)];
        while let Some((old, new)) = pairs.pop() {
            if old == Some(new) || !self.whence.contains_key(&new) {
                continue;
            }
            self.write(new, None)?;
            let Some(old) = old else { continue };
            self.write(old, Some(new))?;
            let read = |id| self.store.db.read_often(Type::Tree, id);
            let (old, new) = (read(old)?, read(new)?);
            pairs.extend(self.write_entries(&old, &new)?);
        }
        Ok(())
    }

    /// Writes the files that changed between two versions of a folder; returns the folders.
    fn write_entries(&mut self, old: &Bytes, new: &Bytes) -> Result<Vec<(Option<Oid>, Oid)>> {
        let order = |a: &TreeEntry<'_>, b: &TreeEntry<'_>| a.order(b);
        let all = |raw| tree::entries(raw).collect::<Result<Vec<_>>>();
        let mut folders = Vec::new();
        for (old, new) in side_by_side(all(old)?, all(new)?, order) {
            let (Some(old), Some(new)) = (old, new) else { continue };
            if old.id == new.id {
                continue;
            }
            if new.mode == Mode::Folder {
                folders.push((Some(old.id), new.id));
            } else if self.whence.contains_key(&new.id) {
                self.write(new.id, None)?;
                self.write(old.id, Some(new.id))?;
            }
        }
        Ok(folders)
    }

    /// Writes an object, once, if it is one of these packs'; as a delta on `newer` where that is
    /// written and it pays.
    fn write(&mut self, id: Oid, newer: Option<Oid>) -> Result<()> {
        match self.whence.get(&id) {
            Some(&source) if !self.depths.contains_key(&id) => self.write_from(id, source, newer),
            _ => Ok(()),
        }
    }

    fn write_from(&mut self, id: Oid, source: usize, newer: Option<Oid>) -> Result<()> {
        let pack = &self.sources[source].pack;
        let raw = pack.read(id, pack.find(id).expect("it is listed there"))?;
        if let Form::DeltaOn(offset) = raw.form
            && let Some(&base) = self.sources[source].by_offset.get(&offset)
        {
            // In one pack deltas make no circle; among several they could.
            if !self.depths.contains_key(&base) {
                self.write_from(base, source, None)?;
            }
            if self.depths[&base] < MAX_DEPTH && !self.depths.contains_key(&id) {
                self.store.db.check(id)?;
                self.depths.insert(id, self.depths[&base] + 1);
                return self.pack.add_delta(id, base, raw.size, &raw.deflated);
            }
        }
        if self.depths.contains_key(&id) {
            return Ok(());
        }
        let base = newer.filter(|base| self.depths.get(base).is_some_and(|d| *d < MAX_DEPTH));
        if let Some(base) = base
            && self.write_difference(id, base, &raw)?
        {
            return Ok(());
        }
        self.depths.insert(id, 0);
        if let Form::Whole(kind) = raw.form {
            return self.pack.add_deflated(kind, id, raw.size, &raw.deflated);
        }
        let kind = self.store.db.kind(id)?;
        self.pack.add(kind, id, &self.store.db.read(kind, id)?)
    }

    /// Whether it was written as what differs from `base`: only if that saves half.
    fn write_difference(&mut self, id: Oid, base: Oid, raw: &Raw) -> Result<bool> {
        let kind = self.store.db.kind(id)?;
        if self.store.db.kind(base)? != kind || raw.size > MAX_COMPARED {
            return Ok(false);
        }
        let from = self.store.db.read(kind, base)?;
        if from.len() > MAX_COMPARED {
            return Ok(false);
        }
        let delta = git_delta::encode(&from, &self.store.db.read(kind, id)?);
        let deflated = self.pack.deflate(&delta);
        if deflated.len() * 2 > raw.deflated.len() {
            return Ok(false);
        }
        self.depths.insert(id, self.depths[&base] + 1);
        self.pack.add_delta(id, base, delta.len(), &deflated)?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_stays_grows_geometrically(sizes in prop::collection::vec(1_u64..1 << 40, 0..60)) {
            let packs: Vec<_> = sizes.iter().map(|size| (PathBuf::new(), *size)).collect();
            let folded = plan(&packs);
            let mut rest = sizes.clone();
            rest.sort_unstable();
            let mut sum: u64 = folded.iter().map(|(_, size)| size).sum();
            for size in rest.split_off(folded.len()) {
                prop_assert!(size >= 2 * sum, "{size} beside {sum}");
                sum += size;
            }
            prop_assert!(sizes.len() - folded.len() < 40, "log3 of 2^46");
        }
    }
}
