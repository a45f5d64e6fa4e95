//! Making a commit the head: its pack and the pack's name are durable first, then the reference.
//!
//! Whoever sees the head finds all that it refers to, after a power cut as well. The index is derived:
//! its bytes are durable with the pack, its name with the reference, and where only that came to the
//! disk the next start makes the index again. So a commit waits for the disk twice.

use std::{path::Path, sync::Arc};

use bytes::Bytes;

use super::{Error, Prepared, Result, Store, commit, db::Type, durable, pack, receive, refs};
use crate::{
    model::{Head, Oid},
    signing,
};

/// Ours have a thousand bytes; a larger one is fetched before it is believed.
const MAX_SIGNED: usize = 16 << 10;

/// A published commit, with its pack where that is small enough to travel inside the announcement.
#[derive(Debug, Clone)]
pub struct Published {
    /// The new head.
    pub head: Head,
    /// The head before.
    pub parent: Option<Oid>,
    /// The commit as it is signed, where it is.
    pub signed: Option<Arc<str>>,
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
        self.put_in_force(&commit.id, [pack.file.path(), index.path(), reference.path()])?;
        let signed = objects.get(&commit.id).and_then(|raw| as_signed(raw));
        for (id, bytes) in objects {
            self.db.remember(id, bytes);
        }
        let (head, parent) = (commit.head, commit.parent);
        let published = Published { head, parent, signed, pack: pack.bytes };
        let seq = commit.head.seq;
        self.line().advance(commit);
        self.fresh.published(pointers.into_iter(), seq);
        Ok(published)
    }

    /// A commit that is here, as the head that it is announced to be; its pack is left out.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn announced(&self, head: Head) -> Result<Published> {
        let raw = self.db.read_often(Type::Commit, head.commit)?;
        let parent = commit::parse(head.commit, &raw)?.parent;
        Ok(Published { head, parent, signed: as_signed(&raw), pack: None })
    }

    /// Whether an announcement is the word of someone who is believed: it must bring the head's
    /// commit as that one has signed it, and say nothing else. Where anybody is believed, all are.
    ///
    /// # Errors
    /// [`Error::Untrusted`] or [`Error::Refused`] when it is not.
    pub fn check_announced(
        &self,
        head: &Head,
        parent: Option<Oid>,
        signed: Option<&str>,
    ) -> Result<()> {
        if self.keys.trusted.is_none() {
            return Ok(());
        }
        let id = head.commit;
        let unsigned = || Error::Untrusted { commit: id, source: signing::Error::Unsigned };
        let raw = Bytes::copy_from_slice(signed.ok_or_else(unsigned)?.as_bytes());
        if pack::hash(Type::Commit, &raw) != id {
            return Err(Error::Refused(format!("another commit than {id} is signed")));
        }
        self.check_signature(id, &raw)?;
        let commit = commit::parse(id, &raw).map_err(receive::refused)?;
        receive::same_head(&commit, head)?;
        if commit.parent != parent {
            return Err(Error::Refused(format!("commit {id} does not follow the one announced")));
        }
        Ok(())
    }

    /// Moves a pack, its index and what makes it the head to their places, durably; none is synced yet.
    pub(super) fn put_in_force(
        &self,
        commit: &Oid,
        [pack, index, reference]: [&Path; 3],
    ) -> Result<()> {
        let to = self.pack_path(commit);
        let folder = to.parent().expect("packs lie in a folder");
        // git looks for indexes: a pack without one is not seen yet.
        durable::rename(pack, &to)?;
        durable::sync_all(&[&to, index, reference, folder]).inspect_err(|_| {
            // Best effort: the next start sweeps what stays.
            let _ = std::fs::remove_file(&to);
        })?;
        durable::rename(index, &to.with_extension("idx"))?;
        let replaced = refs::put(&self.git, refs::MAIN, *commit, reference)?;
        self.free_later(replaced);
        durable::sync_all(&[folder, &refs::folder(&self.git, refs::MAIN)])
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
        self.free_later(refs::write(&self.git, refs::MAIN, to.commit)?);
        self.line().advance(commit);
        self.fresh.all_published(to.seq);
        Ok(())
    }
}

/// The text of a commit that carries a signature.
pub(super) fn as_signed(raw: &[u8]) -> Option<Arc<str>> {
    let text = std::str::from_utf8(raw).ok().filter(|text| text.len() <= MAX_SIGNED)?;
    signing::is_signed(raw).then(|| Arc::from(text))
}
