//! Taking packs in: indexed and checked aside, moved in only when all is well.
//!
//! What comes is not trusted: every object is hashed, every commit must continue the line, every
//! name must be legal, and all that a tree refers to must be there. On any failure nothing was
//! changed. No reference moves here.

use std::io::Read as Stream;

use bytes::Bytes;

use super::{
    Commit, Error, Result, Store,
    arrived::Arrived,
    commit,
    db::{Db, Type},
    diff::{self, Delta},
    durable,
    folder::FolderId,
    pack::MAX_BLOB,
};
use crate::model::{Head, Oid};

/// Our own are 300 bytes.
const MAX_COMMIT: u64 = 1 << 20;
/// A folder with some million names.
const MAX_TREE: u64 = 256 << 20;

impl Store {
    /// Takes a pack in that makes `want` complete here, together with what is here already.
    ///
    /// # Errors
    /// [`Error::Refused`] when the pack is damaged, holds something illegal, or does not make
    /// `want` complete; else when it cannot be read or the repository not written.
    pub fn receive(&self, pack: &mut dyn Stream, want: &Head) -> Result<()> {
        if self.db.has(want.commit) {
            return same_head(&self.db.commit(want.commit)?, want);
        }
        let new = Arrived::take(pack, &self.spool)?;
        let check = Check { old: &self.db, new: &new };
        let raw = check.read(Type::Commit, want.commit).map_err(refused)?;
        self.check_signature(want.commit, &raw)?;
        let name = check.line(want).map_err(refused)?.unwrap_or(new.checksum());
        let (pack, index) = new.files();
        durable::sync_all(&[&pack, &index])?;
        self.move_in(&name, &pack, &index)?;
        new.remember_in(&self.db);
        Ok(())
    }
}

/// Whether a commit is the head that was announced.
pub(super) fn same_head(commit: &Commit, want: &Head) -> Result<()> {
    if commit.head == *want {
        return Ok(());
    }
    let Head { epoch, seq, .. } = commit.head;
    let (id, want) = (commit.id, format!("epoch {}, seq {}", want.epoch, want.seq));
    Err(Error::Refused(format!(
        "commit {id} was announced as {want}, and says epoch {epoch}, seq {seq}"
    )))
}

/// Faults in what came are not faults of this disk.
pub(super) fn refused(e: Error) -> Error {
    match e {
        Error::Damaged { .. } | Error::Missing { .. } => Error::Refused(e.to_string()),
        e => e,
    }
}

/// Checks what came against what is here.
pub(super) struct Check<'a> {
    pub(super) old: &'a Db,
    pub(super) new: &'a Arrived,
}

impl Check<'_> {
    /// Follows first parents from `want` to a commit that is here already. Returns the commit's id
    /// where the pack is just that one commit, whole for whoever has its parent.
    fn line(&self, want: &Head) -> Result<Option<Oid>> {
        let mut commit = self.commit(want.commit)?;
        same_head(&commit, want)?;
        let mut count = 0;
        let mut whole = true;
        while self.new.has(commit.id) {
            let parent = commit.parent.map(|parent| self.commit(parent)).transpose()?;
            continues(&commit, parent.as_ref())?;
            whole &= self.tree(commit.tree, parent.as_ref().map(|parent| parent.tree))?;
            count += 1;
            match parent {
                Some(parent) => commit = parent,
                None => break,
            }
        }
        Ok(Some(want.commit).filter(|_| whole && count == 1))
    }

    pub(super) fn commit(&self, id: Oid) -> Result<Commit> {
        commit::parse(id, &self.read(Type::Commit, id)?)
    }

    /// Whether all that is new in a tree came with the pack; an error, if it is nowhere.
    pub(super) fn tree(&self, tree: Oid, parent: Option<Oid>) -> Result<bool> {
        let read = |kind, id| self.read(kind, id);
        let mut whole = true;
        for (kind, id) in Delta::between(&read, parent, tree)?.new {
            whole &= self.new.has(id);
            self.check_size(kind, id)?;
        }
        let root = |tree| FolderId::root(&read, tree);
        let from = parent.map_or(Ok(FolderId::default()), root)?;
        // Reads every new name and all new metadata.
        diff::differences(&read, from, root(tree)?, &mut |_| Ok(()))?;
        Ok(whole)
    }

    fn read(&self, kind: Type, id: Oid) -> Result<Bytes> {
        if !self.new.has(id) {
            return self.old.read_often(kind, id);
        }
        self.check_size(kind, id)?;
        self.new.read(kind, id)
    }

    fn check_size(&self, kind: Type, id: Oid) -> Result<()> {
        let size =
            if self.new.has(id) { self.new.size(kind, id) } else { self.old.size(kind, id) }?;
        let most = match kind {
            Type::Commit => MAX_COMMIT,
            Type::Tree => MAX_TREE,
            Type::Blob => MAX_BLOB,
        };
        if size > most {
            let kind = kind.name();
            return Err(Error::Refused(format!("{kind} {id} has {size} bytes, over {most}")));
        }
        Ok(())
    }
}

/// A feed is one line: each seq follows the one before, and no epoch is lower.
fn continues(commit: &Commit, parent: Option<&Commit>) -> Result<()> {
    let before = parent.map_or(Head { epoch: 0, seq: 0, commit: commit.id }, |parent| parent.head);
    let head = commit.head;
    if head.seq == before.seq + 1 && head.epoch >= before.epoch {
        return Ok(());
    }
    let was = format!("epoch {}, seq {}", before.epoch, before.seq);
    let is = format!("epoch {}, seq {}", head.epoch, head.seq);
    Err(Error::Refused(format!("commit {} has {is}, and follows {was}", commit.id)))
}
