//! History that begins at some commit: what a mirror with `history = 1` keeps.
//!
//! It takes in a version alone, and now and then gives up all older ones. git's `shallow` names the
//! commits whose parents are not here, so that stock git finds nothing missing.

use std::io::Read;

use super::{
    Commit, Error, Folded, PackFile, Result, Store,
    arrived::Arrived,
    db::Type,
    durable,
    pack::{Pack, PackWriter},
    packs::{self, Stored, StoredPack},
    receive::{Check, refused},
    retain::{Going, stop_unless},
};
use crate::model::{Head, Oid};

/// Which commits' parents are not here.
pub(super) const SHALLOW: &str = "shallow";
/// Packs that come one by one are rewritten together once there are so many.
const PACKS: usize = 8;

impl Store {
    /// The pack of one published version without its history.
    ///
    /// # Errors
    /// As [`Store::pack`].
    pub fn pack_alone(&self, want: Oid) -> Result<PackFile> {
        let want = self.published(want)?;
        self.built_as(&format!("{ALONE}..{}", want.id), || self.build_alone(&want, &|| true))
    }

    fn build_alone(&self, commit: &Commit, going: Going<'_>) -> Result<Pack> {
        let mut pack = PackWriter::new(&self.spool);
        stop_unless(going)?;
        let stored = Stored::open(&self.git.join("objects/pack"))?;
        self.add_commit(&mut pack, &stored, commit, None)?;
        pack.finish()
    }

    /// Takes in a pack that holds `want` without its history.
    ///
    /// # Errors
    /// As [`Store::receive`].
    pub fn receive_alone(&self, pack: &mut dyn Read, want: &Head) -> Result<()> {
        if self.commit(want.commit).is_ok() {
            return Ok(());
        }
        let new = Arrived::take(pack, &self.spool)?;
        let commit = Check { old: &self.db, new: &new }.alone(want).map_err(refused)?;
        let (pack, index) = new.files();
        durable::sync_all(&[&pack, &index])?;
        self.move_in(&new.checksum(), &pack, &index)?;
        if commit.parent.is_some_and(|parent| self.commit(parent).is_err()) {
            self.begin_at(commit.id)?;
        }
        new.remember_in(&self.db);
        Ok(())
    }

    fn begin_at(&self, commit: Oid) -> Result<()> {
        durable::replace(&self.git.join(SHALLOW), format!("{commit}\n").as_bytes()).map(drop)
    }

    /// Gives up the history before the head, once some of it has gathered. None: not yet, or the head
    /// is another one than `at`, whose retention has been seen to.
    ///
    /// # Errors
    /// When the head cannot be read or the repository not written.
    pub fn cut_off(&self, at: &Head, going: Going<'_>) -> Result<Option<Folded>> {
        let old = packs::list(&self.git.join("objects/pack"))?;
        let tip = self.line().tip().cloned().filter(|tip| tip.head == *at);
        let Some(head) = tip.filter(|_| old.len() > PACKS) else {
            return Ok(None);
        };
        let mut new = self.build_alone(&head, going)?;
        let (objects, after) = (new.count(), new.size);
        let index = new.write_index(&self.spool)?;
        durable::sync_file(new.file.path())?;
        durable::sync_file(index.path())?;
        self.move_in(&new.checksum, new.file.path(), index.path())?;
        if head.parent.is_some() {
            self.begin_at(head.id)?;
        }
        let new = self.pack_path(&new.checksum);
        let mut given_up = Vec::new();
        for (path, size) in old.into_iter().filter(|(path, _)| *path != new) {
            // What came in and is not the head yet.
            if !self.has_newer(&StoredPack::open(&path)?, &head)? {
                given_up.push((path, size));
            }
        }
        let paths: Vec<_> = given_up.iter().map(|(path, _)| path.as_path()).collect();
        self.remove_packs(&paths)?;
        self.db.forget();
        self.line().forget();
        let before = given_up.iter().map(|(_, size)| size).sum();
        Ok(Some(Folded { packs: given_up.len(), objects, before, after }))
    }

    fn has_newer(&self, pack: &StoredPack, head: &Commit) -> Result<bool> {
        for (id, _) in pack.objects() {
            if self.db.kind(id)? == Type::Commit && self.db.commit(id)?.head.seq > head.head.seq {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Stands for no history in the name of a pack in `spool/`.
const ALONE: &str = "alone";

impl Check<'_> {
    /// Whether a version is whole, whatever came before it.
    fn alone(&self, want: &Head) -> Result<Commit> {
        let commit = self.commit(want.commit)?;
        super::receive::same_head(&commit, want)?;
        if !self.tree(commit.tree, None)?.is_whole {
            return Err(Error::Refused("the pack does not hold all of the version".to_owned()));
        }
        Ok(commit)
    }
}
