//! Making a commit the head: pack, index and their names durable first, then the reference.
//!
//! Whoever sees the head finds all that it refers to, after a power cut as well.

use std::path::Path;

use bytes::Bytes;

use super::{Error, Prepared, Result, Store, db::Type, durable, receive, refs};
use crate::model::{Head, Oid};

/// A published commit, with its pack where that is small enough to travel inside the announcement.
#[derive(Debug, Clone)]
pub struct Published {
    /// The new head.
    pub head: Head,
    /// The head before.
    pub parent: Option<Oid>,
    /// The pack, up to 64 KiB.
    pub pack: Option<Bytes>,
}

impl Store {
    /// Makes a prepared commit the head.
    ///
    /// # Errors
    /// [`Error::Moved`] when the head is no longer the commit's parent; else when the repository
    /// cannot be written. The head is then what it was.
    pub fn publish(&self, prepared: Prepared) -> Result<Published> {
        let Prepared { commit, pack, index, reference, objects, pointers, .. } = prepared;
        let _one = self.lock_references();
        let found = refs::read(&self.git, refs::MAIN)?;
        if found != commit.parent {
            return Err(Error::Moved { expected: commit.parent, found });
        }
        self.move_in(&commit.id, pack.file.path(), index.path())?;
        refs::write_synced(&self.git, refs::MAIN, commit.id, &reference)?;
        for (id, bytes) in objects {
            self.db.remember(id, bytes);
        }
        let published = Published { head: commit.head, parent: commit.parent, pack: pack.bytes };
        let seq = commit.head.seq;
        self.line().advance(commit);
        self.fresh.published(pointers.into_iter(), seq);
        Ok(published)
    }

    /// Moves a synced pack and its index in as `pack-<name>`; durable afterwards. A pack that
    /// holds just one commit has that commit's name, so that it can be found to be sent.
    pub(super) fn move_in(&self, name: &Oid, pack: &Path, index: &Path) -> Result<()> {
        let to = self.pack_path(name);
        // git looks for indexes: a pack without one is not seen yet.
        durable::rename(pack, &to)?;
        durable::rename(index, &to.with_extension("idx"))?;
        durable::sync_folder(to.parent().expect("packs lie in a folder"))
    }

    /// Moves the head of a mirror to a commit whose pack and objects are here and durable. Whether
    /// it may go there is for the caller to decide.
    ///
    /// # Errors
    /// [`Error::UnknownCommit`] when it is not here, [`Error::Refused`] when it is another head.
    pub fn advance(&self, to: &Head) -> Result<()> {
        let commit = self.commit(to.commit)?;
        receive::same_head(&commit, to)?;
        self.check_signature(to.commit, &self.db.read_often(Type::Commit, to.commit)?)?;
        let _one = self.lock_references();
        refs::write(&self.git, refs::MAIN, to.commit)?;
        self.line().advance(commit);
        self.fresh.all_published(to.seq);
        Ok(())
    }
}
