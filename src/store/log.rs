//! The line of published commits: who is on it, who descends from whom.
//!
//! Along first parents the seq grows by one (`receive` sees to that), so a commit's seq says where
//! on the line it must be. The ids are kept, 20 bytes each, as far back as anyone asked.

use std::collections::VecDeque;

use super::{Commit, Error, Result, Store};
use crate::model::{Head, Oid};

/// The published line, newest last.
#[derive(Default)]
pub(super) struct Line {
    /// None: nothing is published.
    tip: Option<Commit>,
    /// Ids up to the tip's, without gaps.
    ids: VecDeque<Oid>,
    /// The parent of the first of `ids`.
    before: Option<Oid>,
}

impl Line {
    pub(super) fn new(tip: Option<Commit>) -> Line {
        let ids = tip.iter().map(|tip| tip.id).collect();
        let before = tip.as_ref().and_then(|tip| tip.parent);
        Line { tip, ids, before }
    }

    pub(super) fn tip(&self) -> Option<&Commit> {
        self.tip.as_ref()
    }

    pub(super) fn head(&self) -> Option<Head> {
        self.tip.as_ref().map(|tip| tip.head)
    }

    /// Makes a commit the tip; what is known of the line stays, if it is the next one.
    pub(super) fn advance(&mut self, commit: Commit) {
        if self.tip.is_none() || commit.parent != self.tip.as_ref().map(|tip| tip.id) {
            *self = Line::new(Some(commit));
            return;
        }
        self.ids.push_back(commit.id);
        self.tip = Some(commit);
    }

    /// Forgets all but the tip: what was before it may be gone.
    pub(super) fn forget(&mut self) {
        *self = Line::new(self.tip.take());
    }

    /// Whether the commit `id`, with that seq, is on the line. `parent` reads a commit's parent.
    fn holds(
        &mut self,
        id: Oid,
        seq: u64,
        parent: impl Fn(Oid) -> Result<Option<Oid>>,
    ) -> Result<bool> {
        let Some(back) = self.head().and_then(|tip| tip.seq.checked_sub(seq)) else {
            return Ok(false);
        };
        let back = usize::try_from(back).unwrap_or(usize::MAX);
        while self.ids.len() <= back {
            let Some(before) = self.before else { return Ok(false) };
            self.before = match parent(before) {
                // History is cut off here.
                Err(Error::Missing { .. }) => return Ok(false),
                parent => parent?,
            };
            self.ids.push_front(before);
        }
        Ok(self.ids[self.ids.len() - 1 - back] == id)
    }
}

impl Store {
    /// The commit with that id, published or not.
    ///
    /// # Errors
    /// [`Error::UnknownCommit`] when there is none.
    pub fn commit(&self, id: Oid) -> Result<Commit> {
        self.db.commit(id).map_err(|e| match e {
            Error::Missing { id, .. } => Error::UnknownCommit(id),
            e => e,
        })
    }

    /// Whether `id` is a commit on the line that ends in the head.
    ///
    /// # Errors
    /// When the line cannot be read.
    pub fn is_published(&self, id: Oid) -> Result<bool> {
        if self.line().head().is_some_and(|head| head.commit == id) {
            return Ok(true);
        }
        let seq = match self.db.commit(id) {
            Ok(commit) => commit.head.seq,
            Err(Error::Missing { .. }) => return Ok(false),
            Err(e) => return Err(e),
        };
        self.line().holds(id, seq, |id| Ok(self.db.commit(id)?.parent))
    }

    /// The published commit `id`.
    pub(super) fn published(&self, id: Oid) -> Result<Commit> {
        if self.is_published(id)? { self.commit(id) } else { Err(Error::UnknownCommit(id)) }
    }

    /// Commits from `from` backwards, at most `limit`.
    ///
    /// # Errors
    /// [`Error::UnknownCommit`] when `from` is none.
    pub fn log(&self, from: Oid, limit: usize) -> Result<Vec<Commit>> {
        let mut log = Vec::new();
        let mut next = Some(from);
        while let Some(id) = next.filter(|_| log.len() < limit) {
            let commit = match self.commit(id) {
                // History is cut off here.
                Err(Error::UnknownCommit(_)) if !log.is_empty() => break,
                commit => commit?,
            };
            next = commit.parent;
            log.push(commit);
        }
        Ok(log)
    }

    /// Whether `to` is `from` or descends from it.
    ///
    /// # Errors
    /// [`Error::UnknownCommit`] when either is not here.
    pub fn descends(&self, from: Oid, to: Oid) -> Result<bool> {
        let from = self.commit(from)?;
        let mut at = self.commit(to)?;
        while at.head.seq > from.head.seq {
            let Some(parent) = at.parent else { return Ok(false) };
            at = self.commit(parent)?;
        }
        Ok(at.id == from.id)
    }
}
