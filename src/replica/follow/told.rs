//! What a mirror says of itself: its state in a word, why, and whether anybody should wait for it.
//!
//! Worked out from what it is, and nothing is changed.

use super::{Follow, Link};
use crate::replica::event::Summary;

impl Follow {
    /// How it stands.
    pub fn summary(&self) -> Summary {
        let (state, detail) = self.state();
        let last_error = self.fetch_error.clone().or_else(|| self.checkout_error.clone());
        let (want, fetched, have) = (self.want, self.fetched, self.have);
        Summary { state, detail, want, fetched, have, upstream: self.upstream, last_error }
    }

    pub(super) fn state(&self) -> (&'static str, Option<String>) {
        if let Some(refusal) = &self.refusal {
            return ("refused", Some(refusal.to_string()));
        }
        if let Some(why) = self.waits() {
            return ("paused", Some(why.to_owned()));
        }
        if let Some(error) = &self.checkout_error {
            return ("failing", Some(error.clone()));
        }
        if let Some((_, reason)) = &self.put_off {
            return ("held", Some(reason.clone()));
        }
        match (&self.fetch_error, self.link) {
            (Some(error), Link::Up) => ("failing", Some(error.clone())),
            (None, _) if self.is_busy() => ("syncing", None),
            (None, Link::Up) => ("idle", self.remark()),
            (error, _) => {
                let reason = self.broken.as_ref().or(error.as_ref());
                (self.barred.unwrap_or("waiting-for-upstream"), reason.cloned())
            }
        }
    }

    /// What keeps the directory from the newest head, though all is well.
    pub(super) fn remark(&self) -> Option<String> {
        if let Some(pin) = self.pin {
            return Some(format!("pinned to commit {} by the primary", pin.commit.short()));
        }
        if !self.due && self.goal() != self.have {
            let head = self.goal().map_or(String::new(), |head| head.commit.short());
            return Some(format!("commit {head} is here and waits for checkout_at"));
        }
        let revoked = self.fetched.filter(|head| self.revoked.contains(&head.commit))?;
        Some(format!("commit {} is revoked and not checked out", revoked.commit.short()))
    }

    /// Why it stays where it is though nothing is wrong.
    pub fn waits(&self) -> Option<&'static str> {
        match (self.paused_here, self.manner.paused) {
            (true, _) => Some("paused at this node; `depsync resume` here ends it"),
            (_, true) => Some("paused by the upstream; `depsync resume` there ends it"),
            _ => None,
        }
    }

    /// Why nobody need wait for it to have the newest head, in words for the upstream: somebody has
    /// chosen so.
    pub fn excuse(&self) -> Option<String> {
        self.waits().map(|_| "it is paused there".to_owned()).or_else(|| self.remark())
    }
}
