//! One feed's repository: git history, large objects, packs to send, and the marks beside them.
//!
//! `Store` is the only door. It is plain blocking code, `Send + Sync`, that knows no tokio. Nothing
//! unpublished lies in `git/`, and what is in `spool/` may be deleted while nobody has it open.
//! On disk below `<state>/feeds/<feed>/`: `git/` (bare repository that stock git reads, head at
//! `refs/heads/main`, checked-out commit at `refs/depsync/checkout`), `git/lfs/objects/`, `cuts/` (of
//! these objects, a cache), `spool/`.

mod arrived;
mod blocks;
mod check;
pub mod chunks;
mod commit;
mod db;
pub mod delta;
mod diff;
mod draft;
mod durable;
mod error;
mod fold;
mod folder;
mod git_delta;
mod lacking;
mod log;
mod meta;
mod object_writer;
mod objects;
mod open;
mod pack;
mod packs;
mod public;
mod publish;
mod read;
mod rebuild;
mod receive;
pub mod recipe;
mod refs;
mod retain;
mod room;
mod send;
mod send_delta;
mod shallow;
mod sound;
mod tree;
mod unpack;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

pub use check::{Findings, Part};
pub use commit::{Commit, Signature};
pub use draft::{Draft, Prepared};
pub use error::{Error, Result};
pub use fold::Folded;
pub use lacking::Lacking;
pub use object_writer::ObjectWriter;
pub use objects::{Ingested, Opened};
pub use pack::{Encoder, MAX_BLOB, PackedBlob};
pub use publish::Published;
pub use refs::Mark;
pub use retain::{Collected, Going};
pub use room::floor;
pub use send::{Built, PackFile};
pub use send_delta::DeltaFile;

pub use crate::model::Class;
use crate::{
    model::{Head, Oid},
    signing::{Signer, Trusted},
};
use durable::Replaced;
use log::Line;
pub use read::Listing;
use read::Totals;

/// Replaced files that wait to be freed; those before go at once.
const MAX_REPLACED: usize = 64;

/// One feed's repository.
pub struct Store {
    /// `git/`.
    git: PathBuf,
    /// `spool/`.
    spool: PathBuf,
    db: db::Db,
    line: Mutex<Line>,
    /// One writer of references at a time.
    publishing: Mutex<()>,
    /// Files of references that were replaced, for [`Store::free_replaced`].
    replaced: Mutex<Vec<Replaced>>,
    /// One at a time rewrites packs.
    folding: Mutex<()>,
    fresh: retain::Fresh,
    public: public::Public,
    sound: Arc<sound::Sound>,
    /// How often something was found damaged when it was to be used.
    alarms: AtomicU64,
    /// Bytes that stay free on the disk; none: the usual.
    min_free: Option<u64>,
    totals: Mutex<Option<Totals>>,
    building: send::Building,
    keys: Keys,
}

/// Who signs here, and whose signatures are believed.
#[derive(Debug, Default)]
pub struct Keys {
    /// What our own commits are signed with; none: not at all.
    pub signer: Option<Signer>,
    /// Whose commits may become the head of a mirror; none: anyone's.
    pub trusted: Option<Trusted>,
}

/// A store that several stages use.
pub type Shared = Arc<Store>;

impl Store {
    /// The published head.
    ///
    /// # Errors
    /// None so far: it is kept in memory, since the daemon is the only writer.
    pub fn head(&self) -> Result<Option<Head>> {
        Ok(self.line().head())
    }

    /// The same store with keys.
    #[must_use]
    pub fn with_keys(self, keys: Keys) -> Self {
        Store { keys, ..self }
    }

    /// Whether it matters who has signed.
    pub fn asks_for_signatures(&self) -> bool {
        self.keys.trusted.is_some()
    }

    /// Whether a commit that came from elsewhere is signed by someone who is believed.
    fn check_signature(&self, commit: Oid, raw: &[u8]) -> Result<()> {
        let Some(trusted) = &self.keys.trusted else { return Ok(()) };
        trusted.check(raw).map_err(|source| Error::Untrusted { commit, source })
    }

    /// Starts a commit on top of the head.
    ///
    /// # Errors
    /// None so far.
    pub fn draft(&self) -> Result<Draft<'_>> {
        let parent = self.line().tip().cloned();
        Ok(Draft::new(self, parent))
    }

    /// The commit that lies verified in the deployment directory.
    ///
    /// # Errors
    /// When the mark is damaged.
    pub fn checked_out(&self) -> Result<Option<Oid>> {
        refs::read(&self.git, refs::CHECKOUT)
    }

    /// Records it, durably.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn set_checked_out(&self, commit: Oid) -> Result<()> {
        let _one = self.lock_references();
        self.free_later(refs::write(&self.git, refs::CHECKOUT, commit)?);
        Ok(())
    }

    /// Prepares that record: once [`Mark::file`] is synced, [`Store::set_prepared`] waits for no disk.
    /// While it is prepared, nobody else changes the record.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn prepare_checked_out(&self, commit: Oid) -> Result<Mark> {
        let _one = self.lock_references();
        refs::prepare(&self.git, refs::CHECKOUT, commit)
    }

    /// Puts a prepared record in force at once. A power cut may bring the old one back, and then
    /// whatever was done for the new one is looked at again.
    ///
    /// # Errors
    /// When it cannot be put in place.
    pub fn set_prepared(&self, mark: Mark) -> Result<()> {
        self.free_later(mark.set()?);
        Ok(())
    }

    fn free_later(&self, replaced: Replaced) {
        let mut all = self.replaced.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody came for a while: those before are freed here.
        if all.len() >= MAX_REPLACED {
            all.clear();
        }
        all.push(replaced);
    }

    /// Frees files of references that were replaced, which takes as long as a sync: for whom nobody
    /// waits.
    pub fn free_replaced(&self) {
        let all =
            std::mem::take(&mut *self.replaced.lock().unwrap_or_else(PoisonError::into_inner));
        drop(all);
    }

    /// Forgets it, durably: what lies in the directory is no longer ours to know.
    ///
    /// # Errors
    /// When the mark cannot be removed.
    pub fn clear_checked_out(&self) -> Result<()> {
        let _one = self.lock_references();
        refs::remove(&self.git, refs::CHECKOUT)
    }

    /// Something that was here is not.
    pub fn alarm(&self) {
        self.alarms.fetch_add(1, Relaxed);
    }

    /// How often something was found damaged when it was to be used, and was not.
    pub fn alarms(&self) -> u64 {
        self.alarms.load(Relaxed)
    }

    /// The path of `git/`, for a stock git that reads it.
    pub fn git_dir(&self) -> &Path {
        &self.git
    }

    /// The path of `spool/`: what is made there must be safe to delete.
    pub fn spool(&self) -> &Path {
        &self.spool
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_references(&self) -> MutexGuard<'_, ()> {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
