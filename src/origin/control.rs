//! What people ask of the primary: look now, hold, release, approve, reject.
//!
//! An answer is given once the decision is durable; what it leads to shows in the feed's state. Only
//! `sync` is answered when all that was there is committed or waits for somebody.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use chrono::{DateTime, SecondsFormat, Utc};

use super::{
    identity, restore,
    session::{Hold, Session},
};
use crate::{
    bus::{Answer, Approval, Request},
    disk::Root,
    ledger::decisions::Act,
    model::{Oid, RelPath, names::HOLD_FILE},
    sys,
};

/// Requests for `sync` that are answered together.
const MAX_SYNCS: usize = 1_000;

impl Hold {
    pub(super) fn is_on(&self) -> bool {
        self.file || self.decided.is_some() || self.frozen.is_some() || self.releasing
    }

    /// For people; none when there is none.
    pub(super) fn text(&self) -> Option<String> {
        if self.releasing {
            return Some("released: it is committed once every touched path is ready".to_owned());
        }
        if self.file {
            return Some("held by the file .depsync-hold in the directory".to_owned());
        }
        if let Some(Act { since, by }) = &self.frozen {
            let since = moment(since);
            return Some(format!(
                "frozen since {by} rolled back, {since}: what changes waits for `depsync release`"
            ));
        }
        let Act { since, by } = self.decided.as_ref()?;
        Some(format!("held by {by} since {}", moment(since)))
    }
}

/// To the second, as times are shown elsewhere.
fn moment(at: &DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Secs, true)
}

impl Session<'_, '_> {
    pub(super) fn requested(&mut self, request: Request) {
        match request {
            Request::Sync(answer) if self.syncs.len() < MAX_SYNCS => {
                self.scan.all();
                self.syncs.push(answer);
            }
            Request::Sync(answer) => reply(answer, Err("too many wait for a scan".to_owned())),
            other @ (Request::Fetch(..)
            | Request::Object { .. }
            | Request::Repair { .. }
            | Request::Report(_)) => {
                other.refuse("this node owns the feed and has every commit");
            }
            Request::Hold { by, answer } => {
                let done = self.hold(by);
                reply(answer, done);
            }
            Request::Release(answer) => {
                let done = self.release();
                reply(answer, done);
            }
            Request::Approve(what, answer) => {
                let done = self.approve(what);
                reply(answer, done);
            }
            Request::Reject { id, answer } => {
                let done = self.reject(id.as_deref());
                reply(answer, done);
            }
            Request::Rollback { commit, by, answer } => self.roll_back(commit, by, answer),
            Request::Pin { commit, target, by, answer } => {
                let done = self.pin(commit, target, by);
                reply(answer, done);
            }
            Request::Unpin { target, answer } => {
                let done = self.unpin(&target);
                reply(answer, done);
            }
            Request::Revoke { commit, answer } => {
                let done = self.revoke(commit);
                reply(answer, done);
            }
        }
    }

    /// Everything that was there when a sync was asked for is committed, or waits for somebody.
    pub(super) fn answer_syncs(&mut self) {
        if self.syncs.is_empty() {
            return;
        }
        let failed = self.report.last_error.as_ref();
        let rules = self.bad_ignore.as_ref().filter(|_| self.lacks_rules());
        let halted = self.halt.as_ref().map(|halt| &halt.reason);
        let done = match halted.or(rules).or(failed).or(self.report.refused.as_ref()) {
            Some(reason) => Err(reason.clone()),
            None if self.is_reading() || !(self.hold.is_on() || self.stage.is_empty()) => return,
            None => Ok(()),
        };
        self.syncs.drain(..).for_each(|answer| reply(answer, done.clone()));
    }

    fn hold(&mut self, by: String) -> Result<(), String> {
        let act = Act { since: now(), by };
        let feed = &self.setup.feed;
        let update =
            |decided: &mut crate::ledger::decisions::Feed| decided.hold.get_or_insert(act).clone();
        let act = self.setup.decisions.update_feed(feed, update).map_err(text)?;
        self.hold.releasing = false;
        self.hold.decided = Some(act);
        self.hold.since.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn release(&mut self) -> Result<(), String> {
        if self.hold.file {
            return Err("the file .depsync-hold lies in the directory: remove it".to_owned());
        }
        let update = |decided: &mut crate::ledger::decisions::Feed| {
            (decided.hold, decided.frozen) = (None, None);
        };
        self.setup.decisions.update_feed(&self.setup.feed, update).map_err(text)?;
        let held = self.hold.decided.take();
        if self.hold.frozen.take().or(held).is_some() {
            self.released();
        }
        Ok(())
    }

    /// What was gathered is committed once it is ready; without events a scan finds it first.
    fn released(&mut self) {
        self.hold.releasing = true;
        self.scan.all();
    }

    /// The release is over when its batch is committed.
    pub(super) fn end_release(&mut self) {
        if self.hold.releasing {
            self.hold = Hold::default();
        }
    }

    pub(super) fn check_hold_file(&mut self) {
        let path = RelPath::parse(HOLD_FILE).expect("it is a plain name");
        let is_there = matches!(self.root.stat(&path), Ok(Some(_)));
        let was_there = std::mem::replace(&mut self.hold.file, is_there);
        if is_there {
            self.hold.releasing = false;
            self.hold.since.get_or_insert_with(Instant::now);
        } else if was_there && self.hold.decided.is_none() && self.hold.frozen.is_none() {
            self.released();
        }
    }

    fn approve(&mut self, what: Approval) -> Result<(), String> {
        match what {
            Approval::Deletions(id) => {
                self.expect_list(id.as_deref())?;
                self.stage.approve();
                self.note_held();
                self.scan.all();
                Ok(())
            }
            Approval::Path(path) if self.settle.approve(&path) => Ok(()),
            Approval::Path(path) => Err(format!("no incomplete archive is held at {path}")),
            Approval::Root => self.approve_root(),
        }
    }

    /// Approving another list than the one seen would delete what nobody has looked at.
    fn expect_list(&self, id: Option<&str>) -> Result<(), String> {
        match (self.stage.list_id(), id) {
            (None, _) => Err("no deletion is held".to_owned()),
            (Some(_), None) => Ok(()),
            (Some(now), Some(seen)) if now == seen => Ok(()),
            (Some(now), Some(seen)) => {
                Err(format!("the list is another one by now: {now}, not {seen}; look at it again"))
            }
        }
    }

    fn approve_root(&mut self) -> Result<(), String> {
        let root = Root::open(self.root.path()).map_err(text)?;
        let id = root.id().map_err(text)?;
        self.lock_root(&root, id).map_err(text)?;
        let mark = identity::to_mark(id);
        let update = |decided: &mut crate::ledger::decisions::Feed| decided.root = Some(mark);
        self.setup.decisions.update_feed(&self.setup.feed, update).map_err(text)?;
        self.new_root = Some(Arc::new(root));
        Ok(())
    }

    /// Puts the files back whose deletion waits.
    fn reject(&mut self, id: Option<&str>) -> Result<(), String> {
        self.expect_list(id)?;
        let Some(head) = self.stage.head() else { return Err("no deletion is held".to_owned()) };
        let mut files: BTreeMap<RelPath, Oid> = self.guard.led_up().into_iter().collect();
        files.extend(self.stage.take_held().into_iter().map(|path| (path, head)));
        let done = restore::put_back(self.setup, &self.root, head, &files);
        self.note_held();
        // Its events would tell as much: this covers folders without events, and faults.
        self.scan.all();
        done
    }

    /// Keeps across restarts that deletions wait.
    pub(super) fn note_held(&mut self) {
        let holds = !self.stage.held().is_empty();
        if holds == self.deletions_since.is_some() && !self.catching_up {
            return;
        }
        self.deletions_since = holds.then(|| self.deletions_since.unwrap_or_else(Instant::now));
        if !holds {
            self.guard.nothing_held();
        }
        let update = |decided: &mut crate::ledger::decisions::Feed| {
            decided.deletions_held = holds.then(|| decided.deletions_held.unwrap_or_else(now));
        };
        if let Err(error) = self.setup.decisions.update_feed(&self.setup.feed, update) {
            tracing::error!(feed = %self.setup.feed, %error, "held deletions may be forgotten");
        }
    }
}

pub(super) fn now() -> DateTime<Utc> {
    sys::now().into()
}

pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Whoever asked may have gone.
fn reply(answer: Answer, done: Result<(), String>) {
    let _ = answer.send(done);
}
