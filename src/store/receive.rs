//! Taking packs in: indexed and checked aside, moved in only when all is well.
//!
//! What comes is not trusted: every object is hashed, every commit must continue the line, every
//! name must be legal, and all that a tree refers to must be there. On any failure nothing was
//! changed. A reference moves here only with the one commit that needs nothing else to come.

use std::io::Read as Stream;

use bytes::Bytes;

use super::{
    Commit, Error, Published, Result, Store,
    arrived::Arrived,
    commit,
    db::{Db, Type},
    diff::{self, Delta},
    durable,
    folder::FolderId,
    objects,
    pack::MAX_BLOB,
    publish::as_signed,
    refs,
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
        self.keep(want, self.check(pack, want)?)
    }

    /// [`Store::receive`], and [`Store::advance`] with the same waits for the disk, where the pack is
    /// just the commit that follows our head, and brings no large artifact. None: it is here now, and
    /// no head yet.
    ///
    /// # Errors
    /// As both.
    pub fn receive_next(&self, pack: &Bytes, want: &Head) -> Result<Option<Published>> {
        if self.db.has(want.commit) {
            return Ok(None);
        }
        let Checked { new, commits, raw } = self.check(&mut &pack[..], want)?;
        let commit = commit::parse(want.commit, &raw)?;
        let _one = self.lock_references();
        let follows = refs::read(&self.git, refs::MAIN)? == commit.parent;
        if !follows || !commits.is_own || commits.has_objects {
            return self.keep(want, Checked { new, commits, raw }).map(|()| None);
        }
        let (pack_file, index) = new.files();
        let reference = refs::in_spool(&self.spool, want.commit)?;
        self.put_in_force(&want.commit, [&pack_file, &index, reference.path()])?;
        new.remember_in(&self.db);
        let parent = commit.parent;
        self.line().advance(commit);
        self.fresh.all_published(want.seq);
        let pack = Some(pack.clone());
        Ok(Some(Published { head: *want, parent, signed: as_signed(&raw), pack }))
    }

    /// Takes a pack in aside, and finds all well with it.
    fn check(&self, pack: &mut dyn Stream, want: &Head) -> Result<Checked> {
        let new = Arrived::take(pack, &self.spool)?;
        let check = Check { old: &self.db, new: &new };
        let raw = check.read(Type::Commit, want.commit).map_err(refused)?;
        self.check_signature(want.commit, &raw)?;
        let commits = check.line(want).map_err(refused)?;
        Ok(Checked { new, commits, raw })
    }

    /// Moves a pack in that was found to be well.
    fn keep(&self, want: &Head, Checked { new, commits, .. }: Checked) -> Result<()> {
        let name = if commits.is_own { want.commit } else { new.checksum() };
        let (pack, index) = new.files();
        durable::sync_all(&[&pack, &index])?;
        self.move_in(&name, &pack, &index)?;
        new.remember_in(&self.db);
        Ok(())
    }
}

/// A pack that may be moved in.
struct Checked {
    new: Arrived,
    commits: Commits,
    /// The newest commit.
    raw: Bytes,
}

/// What the commits of a pack are.
#[derive(Clone, Copy)]
struct Commits {
    /// Just one, whole for whoever has its parent.
    is_own: bool,
    /// Some name large artifacts that the commit before does not.
    has_objects: bool,
}

/// What a commit's tree has that its parent's has not.
#[derive(Clone, Copy)]
pub(super) struct NewTree {
    /// All of it came.
    pub(super) is_whole: bool,
    has_objects: bool,
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
    /// Follows first parents from `want` to a commit that is here already.
    fn line(&self, want: &Head) -> Result<Commits> {
        let mut commit = self.commit(want.commit)?;
        same_head(&commit, want)?;
        let mut count = 0;
        let (mut is_whole, mut has_objects) = (true, false);
        while self.new.has(commit.id) {
            let parent = commit.parent.map(|parent| self.commit(parent)).transpose()?;
            continues(&commit, parent.as_ref())?;
            let tree = self.tree(commit.tree, parent.as_ref().map(|parent| parent.tree))?;
            is_whole &= tree.is_whole;
            has_objects |= tree.has_objects;
            count += 1;
            match parent {
                Some(parent) => commit = parent,
                None => break,
            }
        }
        Ok(Commits { is_own: is_whole && count == 1, has_objects })
    }

    pub(super) fn commit(&self, id: Oid) -> Result<Commit> {
        commit::parse(id, &self.read(Type::Commit, id)?)
    }

    /// Looks at all that is new in a tree; an error, if some of it is nowhere.
    pub(super) fn tree(&self, tree: Oid, parent: Option<Oid>) -> Result<NewTree> {
        let read = |kind, id| self.read(kind, id);
        let (mut is_whole, mut has_objects) = (true, false);
        for (kind, id) in Delta::between(&read, parent, tree)?.new {
            is_whole &= self.new.has(id);
            let size = self.check_size(kind, id)?;
            has_objects |= kind == Type::Blob
                && objects::POINTER_SIZES.contains(&size)
                && objects::parse_pointer(&self.read(kind, id)?).is_some();
        }
        let root = |tree| FolderId::root(&read, tree);
        let from = parent.map_or(Ok(FolderId::default()), root)?;
        // Reads every new name and all new metadata.
        diff::differences(&read, from, root(tree)?, &mut |_| Ok(()))?;
        Ok(NewTree { is_whole, has_objects })
    }

    fn read(&self, kind: Type, id: Oid) -> Result<Bytes> {
        if !self.new.has(id) {
            return self.old.read_often(kind, id);
        }
        self.check_size(kind, id)?;
        self.new.read(kind, id)
    }

    fn check_size(&self, kind: Type, id: Oid) -> Result<u64> {
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
        Ok(size)
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
