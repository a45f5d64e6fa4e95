//! Which objects a published version refers to: no other object is anybody's business.
//!
//! Learnt as far as it is asked: first what the head refers to, then version by version backwards, and
//! never beyond those whose content was given up. What is known is kept up as the head moves.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use super::{Commit, Result, Store};
use crate::model::{ObjectId, Oid};

/// What is known so far.
#[derive(Default)]
pub(super) struct Public(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// With their sizes.
    objects: HashMap<ObjectId, u64>,
    /// The newest version that was read.
    head: Option<Oid>,
    /// The oldest one.
    oldest: Option<Commit>,
}

impl Store {
    /// Whether a published version refers to an object whose content is kept.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn is_public(&self, id: &ObjectId) -> Result<bool> {
        self.public_size(id).map(|size| size.is_some())
    }

    /// The size of an object that a published version refers to whose content is kept; it need not
    /// be here. What nobody refers to costs one reading of the history, for all such questions.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn public_size(&self, id: &ObjectId) -> Result<Option<u64>> {
        let mut known = self.public.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = known.objects.get(id) {
            return Ok(Some(*size));
        }
        self.read_forward(&mut known)?;
        if let Some(size) = known.objects.get(id) {
            return Ok(Some(*size));
        }
        let until = self.given_up_to().map_or(0, |commit| commit.head.seq);
        while let Some(newer) = known.oldest.take() {
            let Some(older) = self.parent_of(&newer)?.filter(|older| older.head.seq > until) else {
                known.oldest = Some(newer);
                break;
            };
            self.objects_gone(older.id, newer.id, &mut known.objects)?;
            known.oldest = Some(older);
            if let Some(size) = known.objects.get(id) {
                return Ok(Some(*size));
            }
        }
        Ok(None)
    }

    /// Reads what came since.
    fn read_forward(&self, known: &mut Known) -> Result<()> {
        let Some(head) = self.line().tip().cloned() else { return Ok(()) };
        if known.head == Some(head.id) {
            return Ok(());
        }
        let mut commit = head.clone();
        while Some(commit.id) != known.head {
            let parent = self.parent_of(&commit)?;
            let Some(parent) = parent.filter(|_| known.head.is_some()) else {
                // The first time, or on another line.
                self.objects_of(None, head.id, &mut known.objects)?;
                known.oldest = Some(head.clone());
                break;
            };
            self.objects_of(Some(parent.id), commit.id, &mut known.objects)?;
            commit = parent;
        }
        known.head = Some(head.id);
        Ok(())
    }
}
