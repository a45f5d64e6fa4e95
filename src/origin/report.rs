//! What the primary's side says of itself: the feed's state, for `status`, health and metrics.
//!
//! Posted when it differs from what was posted last, so that nobody is woken for nothing.

use std::time::{Duration, Instant, SystemTime};

use super::session::{MAX_STAGED, Session};
use crate::{
    bus::{Cause, DeletionsHeld, Held, State},
    model::{ObjectId, Oid, RelPath},
    sys,
};

/// Paths that are named as held; the rest is counted.
const MAX_NAMED: usize = 1_000;
/// How often progress is posted.
const PROGRESS: Duration = Duration::from_millis(500);
/// An archive without its end for this long, and a hold, is an alarm.
const ARCHIVE_ALARM: Duration = Duration::from_secs(600);
const HOLD_ALARM: Duration = Duration::from_secs(3600);

/// What there is to report, besides what the session knows anyway.
pub(super) struct Report {
    pub(super) looked: u64,
    pub(super) rescans: u64,
    /// A follower is ahead of us.
    pub(super) refused: Option<String>,
    pub(super) last_error: Option<String>,
    /// The disk has no room.
    pub(super) full: Option<String>,
    /// Of blobs that are in the batch, for the ledger.
    pub(super) digests: Vec<(Oid, ObjectId)>,
    posted: Option<Instant>,
    /// When it was last looked whether there is something to post.
    looked_at: Option<Instant>,
    /// Instants of this session in the time of day.
    began: (Instant, SystemTime),
}

impl Report {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            looked: 0,
            rescans: 0,
            refused: None,
            last_error: None,
            full: None,
            digests: Vec::new(),
            posted: None,
            looked_at: None,
            began: (now, sys::now()),
        }
    }

    fn time(&self, at: Instant) -> SystemTime {
        self.began.1 + at.saturating_duration_since(self.began.0)
    }
}

impl Session<'_, '_> {
    /// [`Session::report`], while there is no rest.
    pub(super) fn report_at_times(&mut self, now: Instant) {
        let at = self.report.looked_at;
        if at.is_none_or(|at| now.saturating_duration_since(at) >= PROGRESS) {
            self.report(now);
        }
    }

    /// Posts the state if it differs.
    pub(super) fn report(&mut self, now: Instant) {
        self.report.looked_at = Some(now);
        self.alarm(now);
        let (state, detail) = self.headline();
        let progress = state == "importing" || state == "syncing";
        let lately =
            self.report.posted.is_some_and(|at| now.saturating_duration_since(at) < PROGRESS);
        if progress && lately {
            return;
        }
        let head = self.setup.desk.head();
        let importing = self.import.as_ref().map(|import| import.progress(now));
        if let Some(progress) = importing
            && self.import.as_mut().is_some_and(|import| import.is_to_be_logged(now))
        {
            tracing::info!(
                feed = %self.setup.feed, files = progress.files, of = progress.total,
                bytes = progress.bytes, bytes_per_sec = progress.rate,
                left_secs = progress.left.map(|left| left.as_secs()), "importing"
            );
        }
        let state = State {
            primary: true,
            state,
            detail,
            want: head,
            have: head,
            held: self.held(),
            deletions: self.deletions_held(),
            rescans: self.report.rescans,
            importing,
            unwatched: self.unwatched.clone().filter(|_| self.is_watched_in_part()),
            last_error: self.report.last_error.clone().or_else(|| self.broken_hook()),
            ..State::default()
        };
        let posted = self.setup.desk.state.send_if_modified(|before| {
            let differs = *before != state;
            if differs {
                *before = state;
            }
            differs
        });
        if posted {
            self.report.posted = Some(now);
        }
    }

    /// One word, and more for people: the gravest first.
    fn headline(&self) -> (&'static str, Option<String>) {
        if let Some(halt) = &self.halt {
            return (halt.state, Some(halt.reason.clone()));
        }
        if self.lacks_rules() {
            return ("stopped", self.bad_ignore.clone());
        }
        if let Some(rollback) = &self.rollback {
            return match &rollback.fault {
                Some(fault) => ("failing", Some(format!("the rollback is not finished: {fault}"))),
                None => ("rolling-back", None),
            };
        }
        if let Some(reason) = &self.report.refused {
            return ("refused", Some(reason.clone()));
        }
        if let Some(why) = &self.report.full {
            return ("full", Some(why.clone()));
        }
        if self.report.last_error.is_some() {
            return ("failing", self.report.last_error.clone());
        }
        if self.gate.is_asking() {
            return ("checking", Some("the hook pre-commit is asked".to_owned()));
        }
        if let Some(waiting) = self.gate.waiting() {
            let state = if waiting.broken { "failing" } else { "held" };
            return (state, Some(waiting.reason.to_owned()));
        }
        if self.catching_up {
            let state = if self.stage.head().is_none() { "importing" } else { "syncing" };
            return (state, Some(format!("{} paths read", self.report.looked)));
        }
        if let Some(hold) = self.hold.text() {
            return ("held", Some(format!("{hold}; {} paths are gathered", self.gathered())));
        }
        if let Some(id) = self.stage.list_id() {
            let files = self.stage.held().len();
            let text = format!(
                "the deletion of {files} files waits: `depsync approve {id}` or `depsync reject {id}`"
            );
            return ("held", Some(text));
        }
        if self.settle.waiting().next().is_some() || !self.stage.refused().is_empty() {
            return ("held", None);
        }
        ("idle", self.remark())
    }

    fn broken_hook(&self) -> Option<String> {
        let waiting = self.gate.waiting().filter(|waiting| waiting.broken)?;
        Some(waiting.reason.to_owned())
    }

    fn gathered(&self) -> String {
        let more = if self.stage.len() >= MAX_STAGED { "or more " } else { "" };
        format!("{more}{}", self.stage.len())
    }

    /// What people should know though nothing waits.
    fn remark(&self) -> Option<String> {
        let reserved = self.left_out.iter().next().map(|(path, reason)| {
            let path = if path.is_root() { ".".into() } else { path.to_text() };
            match self.left_out.len() {
                1 => format!("left out: {path}: {reason}"),
                more => format!("left out: {path}: {reason}, and {} more", more - 1),
            }
        });
        self.unwatched.clone().or(reserved)
    }

    fn held(&self) -> Vec<Held> {
        let timed = |path: &RelPath, cause, reason: &str, since| {
            let (path, reason) = (path.clone(), reason.to_owned());
            Held { path, cause, reason, since, decision: true }
        };
        let held = |path: &RelPath, cause, reason: &str, since: Instant| {
            timed(path, cause, reason, self.report.time(since))
        };
        let began = self.report.began.0;
        let waiting = self.settle.waiting().map(|(path, waiting)| Held {
            decision: waiting.decision,
            ..held(path, waiting.cause, &waiting.reason, waiting.since)
        });
        let bad_ignore = self
            .bad_ignore
            .iter()
            .map(|reason| held(&super::ignore::ignore_file(), Cause::Rules, reason, began));
        let unreadable = self.scan.unreadable.iter().map(|(path, reason)| {
            let reason = format!("it keeps its last state: {reason}");
            held(path, Cause::Unreadable, &reason, began)
        });
        let since = self.deletions_since.unwrap_or(began);
        let deletions = self.stage.held().iter().map(|path| {
            held(path, Cause::Deletion, "its deletion waits for `approve` or `reject`", since)
        });
        let refused = self
            .stage
            .refused()
            .iter()
            .map(|(path, refused)| timed(path, Cause::Hook, &refused.reason, refused.since));
        let gathered = self.hold.is_on().then(|| self.stage.paths()).into_iter().flatten();
        let since = self.hold.since.unwrap_or(began);
        let gathered = gathered.map(|path| Held {
            decision: self.hold.frozen.is_some(),
            ..held(path, Cause::Release, "it waits for `depsync release`", since)
        });
        let candidate = self.gate.waiting();
        let candidate = candidate.iter().flat_map(|waiting| {
            waiting.paths().map(|path| timed(path, Cause::Hook, waiting.reason, waiting.since))
        });
        let all = waiting.chain(bad_ignore).chain(unreadable).chain(deletions);
        let mut all: Vec<_> =
            all.chain(refused).chain(candidate).chain(gathered).take(MAX_NAMED).collect();
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all
    }

    fn deletions_held(&self) -> Option<DeletionsHeld> {
        let id = self.stage.list_id()?.to_owned();
        let since = self.deletions_since.unwrap_or(self.report.began.0);
        Some(DeletionsHeld { id, files: self.stage.held().len(), since: self.report.time(since) })
    }

    /// Says once in the log what has waited for too long.
    fn alarm(&mut self, now: Instant) {
        let long = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let paths = self.settle.waiting().filter(|(_, waiting)| long(waiting.since, ARCHIVE_ALARM));
        let new: Vec<_> = paths
            .filter(|(path, _)| !self.alarmed.contains(*path))
            .map(|(path, waiting)| (path.clone(), waiting.reason.clone()))
            .collect();
        for (path, reason) in new {
            tracing::warn!(feed = %self.setup.feed, %path, reason, "held for ten minutes");
            self.alarmed.insert(path);
        }
        self.alarmed.retain(|path| self.settle.is_waiting(path));
        if self.hold.since.is_some_and(|since| long(since, HOLD_ALARM)) && !self.hold.alarmed {
            self.hold.alarmed = true;
            tracing::warn!(feed = %self.setup.feed, "changes have been held for an hour");
        }
    }
}
