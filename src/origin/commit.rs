//! When the stage becomes a commit, and what is done once it is one.
//!
//! Draft, publish, announce; the run, the digests and the stat cache come after the announcement.
//! What fails for now is dropped and found again by a scan, later and later. Nothing is published
//! while the directory is in doubt, a follower is ahead of us, or a hold stands.

use std::time::{Duration, Instant};

use super::{
    Result,
    gate::Candidate,
    guard::Answer,
    session::{MAX_STAGED, Retry, Session},
    taken::Taken,
};
use crate::{
    bus::board::Ahead,
    ledger::{Kind as RunKind, MAX_NAMES, NewRun},
    model::{Change, Class, Head, RelPath},
    store::{self, Published, Signature},
    sys,
};

/// The first wait after a commit that failed, and the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(30);
/// How often the guard is asked again because paths were read meanwhile.
const WEIGH_AGAIN: Duration = Duration::from_millis(50);

/// What the guard said of the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Brake {
    /// Nothing, or that it may pass.
    Off,
    /// The batch stays open until then, or until what was touched meanwhile is read.
    Wait { until: Instant, asked: Instant, changed: bool },
    /// Deletions wait until then; the rest does not.
    Defer(Instant),
}

impl Brake {
    /// The batch is another one than the guard judged.
    pub(super) fn changed(&mut self) {
        if let Brake::Wait { changed, .. } = self {
            *changed = true;
        }
    }
}

impl Session<'_, '_> {
    /// When to commit, going by the clock alone.
    pub(super) fn commit_deadline(&self, now: Instant) -> Option<Instant> {
        if self.stage.is_empty() || (self.hold.is_on() && !self.hold.releasing) {
            return None;
        }
        let due = match self.brake {
            Brake::Off => self.batch.deadline().unwrap_or(now),
            Brake::Wait { until, asked, changed: true } => until.min(asked + WEIGH_AGAIN),
            Brake::Wait { until, .. } => until,
            Brake::Defer(until) => self.batch.deadline().map_or(until, |batch| batch.min(until)),
        };
        Some(self.retry.map_or(due, |retry| due.max(retry.at)))
    }

    pub(super) fn is_commit_due(&mut self, now: Instant) -> bool {
        let is_full = self.stage.len() >= MAX_STAGED;
        let is_ready = if self.hold.releasing {
            self.scan.is_idle() && self.settle.is_settled_since(self.hold.since.unwrap_or(now))
        } else {
            !self.catching_up || !self.is_reading()
        };
        let is_due = self.commit_deadline(now).is_some_and(|at| at <= now);
        (is_ready || is_full) && is_due && self.has_gathered()
    }

    /// Publishes the batch, as far as it may be.
    pub(super) fn commit(&mut self, now: Instant) -> Result<()> {
        if !self.may_publish(now)? {
            return Ok(());
        }
        let Some(deletions) = self.weigh(now)? else { return Ok(()) };
        match self.try_commit(now, deletions) {
            Ok(()) => {
                self.nothing_fails();
                Ok(())
            }
            Err(error) if error.class() == Class::Transient => {
                self.failed(now, &error);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn may_publish(&mut self, now: Instant) -> Result<bool> {
        self.check_root_now(now)?;
        if self.halt.is_some() || self.new_root.is_some() {
            return Ok(false);
        }
        if self.report.refused.is_some() {
            self.retry = Some(Retry { at: now + FIRST_RETRY, wait: FIRST_RETRY });
        }
        Ok(self.report.refused.is_none())
    }

    /// A follower that is ahead of us, or on another line, has heard of a history that is not ours.
    pub(super) fn check_followers(&mut self) -> Result<()> {
        // A promotion takes an epoch above all followers', and then they come to us.
        let epoch = self.epoch()?;
        let ahead = self.setup.desk.ahead();
        let ahead = ahead.filter(|it| it.head.is_none_or(|have| have.epoch >= epoch));
        let refused = ahead.map(|Ahead { who: node, .. }| {
            format!(
                "node {node} has a head that is not in this history: this node was restored from an \
                 older state, or another primary writes; nothing is published until `depsync promote` \
                 on the node that is right"
            )
        });
        if let (Some(reason), None) = (&refused, &self.report.refused) {
            tracing::error!(feed = %self.setup.feed, reason, "nothing is published");
        }
        self.report.refused = refused;
        Ok(())
    }

    fn epoch(&self) -> store::Result<u64> {
        let head = self.setup.store.head()?.map_or(0, |head| head.epoch);
        Ok(self.setup.decisions.feed(&self.setup.feed).epoch.max(head).max(1))
    }

    /// Asks the guard: whether to commit with the deletions; none: not yet.
    fn weigh(&mut self, now: Instant) -> Result<Option<bool>> {
        if !self.stage.deletes() {
            self.brake = Brake::Off;
            self.guard.nothing_deleted();
            return Ok(Some(true));
        }
        let reading = self.is_reading();
        let load = self.stage.load(self.files()?, reading);
        match self.guard.weigh(now, &load, &self.stage.after()) {
            Answer::Pass => self.brake = Brake::Off,
            Answer::Wait(until) => {
                self.brake = Brake::Wait { until, asked: now, changed: reading };
                return Ok(None);
            }
            Answer::Defer(until) => {
                self.brake = Brake::Defer(until);
                return Ok(Some(false));
            }
            Answer::Hold(files) => {
                tracing::warn!(feed = %self.setup.feed, files = files.len(), "deletions are held");
                self.stage.hold(&files);
                self.brake = Brake::Off;
                self.note_held();
            }
        }
        Ok(Some(true))
    }

    /// Files in the head.
    fn files(&self) -> Result<u64> {
        let Some(head) = self.stage.head() else { return Ok(0) };
        Ok(self.setup.store.totals(head)?.0)
    }

    fn try_commit(&mut self, now: Instant, deletions: bool) -> store::Result<()> {
        let started = Instant::now();
        let before = self.setup.store.head()?;
        let mut draft = match self.draft.take() {
            Some(draft) => draft,
            None => self.setup.store.draft()?,
        };
        let taken = self.stage.take(&mut draft, deletions, self.guard.minds_arrivals());
        self.batch.close(now);
        self.end_release();
        if draft.is_empty() {
            return Ok(());
        }
        let by = self.sign(taken.subject())?;
        let mut summary = Summary::default();
        let Some(prepared) = draft.finish_and_tell(&by, |change| summary.add(change))? else {
            self.forget_all(&taken);
            return Ok(());
        };
        let (subject, took) = (by.subject, started.elapsed());
        self.propose(now, Candidate { prepared, taken, summary, before, subject, took })
    }

    /// Makes a candidate the head, and says so.
    pub(super) fn publish(&mut self, now: Instant, candidate: Candidate) -> store::Result<()> {
        let Candidate { prepared, taken, summary, before, subject, took } = candidate;
        let started = Instant::now();
        let published = self.setup.store.publish(prepared)?;
        self.setup.desk.post(published.clone());
        let took = took + started.elapsed();
        tracing::info!(
            feed = %self.setup.feed, commit = %published.head.commit, seq = published.head.seq,
            files = summary.files, bytes = taken.bytes, ms = took.as_secs_f64() * 1000.0,
            "{subject}"
        );
        self.committed(now, before, &published, &Commit { taken, summary, took })
    }

    /// By this node, now.
    pub(super) fn sign(&self, subject: String) -> store::Result<Signature> {
        let seconds = sys::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Signature {
            author: self.setup.label.to_string(),
            node: self.setup.node.clone(),
            epoch: self.epoch()?,
            time: i64::try_from(seconds.as_secs()).unwrap_or(i64::MAX),
            subject,
        })
    }

    /// All that need not be done before others hear of the commit.
    fn committed(
        &mut self,
        now: Instant,
        before: Option<Head>,
        published: &Published,
        commit: &Commit,
    ) -> store::Result<()> {
        let head = published.head.commit;
        self.stage.published(head);
        self.forget_all(&commit.taken);
        if let (Some(before), false) = (before, commit.taken.deleted.is_empty()) {
            let files = self.setup.store.totals(before.commit)?.0;
            let deleted = commit.taken.deleted_for_good();
            self.guard.published(now, (before.commit, files), deleted);
        }
        for (path, blob) in &commit.taken.arrived {
            self.guard.arrived(path, *blob);
        }
        self.record(published, commit);
        Ok(())
    }

    fn record(&mut self, published: &Published, commit: &Commit) {
        let mut run =
            NewRun::new(self.setup.feed.clone(), RunKind::Commit, sys::now() - commit.took);
        run.took = commit.took;
        run.commit = Some(published.head.commit);
        run.files = commit.summary.files;
        run.bytes = commit.taken.bytes;
        run.names.clone_from(&commit.summary.names);
        if let Err(error) = self.setup.ledger.add_run(&run) {
            tracing::warn!(feed = %self.setup.feed, %error, "a run is not recorded");
        }
        self.keep_digests();
    }

    /// Writes what is known of blobs.
    pub(super) fn keep_digests(&mut self) {
        let digests = std::mem::take(&mut self.report.digests);
        if let Err(error) = self.setup.ledger.put_digests(&digests) {
            tracing::warn!(feed = %self.setup.feed, %error, "digests are found again when asked for");
        }
    }

    /// The stat cache need not know of what is gone.
    fn forget_all(&mut self, taken: &Taken) {
        let removed = taken.removed.iter().try_for_each(|(path, was_folder)| {
            if *was_folder { self.cache.forget_below(path) } else { self.cache.forget(path) }
        });
        if let Err(error) = removed {
            tracing::warn!(feed = %self.setup.feed, %error, "the stat cache keeps what is gone");
        }
        self.flush_later();
    }

    pub(super) fn failed(&mut self, now: Instant, error: &store::Error) {
        let wait = self.retry.map_or(FIRST_RETRY, |retry| (retry.wait * 2).min(LONGEST_RETRY));
        tracing::error!(feed = %self.setup.feed, %error, ?wait, "cannot commit: trying again");
        self.report.last_error = Some(error.to_string());
        self.begin_batch_again();
        self.retry = Some(Retry { at: now + wait, wait });
    }

    /// Also when the changes that could not be committed are gone.
    pub(super) fn nothing_fails(&mut self) {
        self.retry = None;
        self.report.last_error = None;
    }

    /// The first scan is over and committed.
    pub(super) fn caught_up(&mut self) -> Result<()> {
        if let Some(took) = self.scan.finished() {
            tracing::debug!(feed = %self.setup.feed, ?took, "scanned everything");
            if self.stage.is_empty() {
                self.nothing_fails();
            }
            self.count_unwatched();
        }
        if !self.catching_up || self.is_reading() || self.brake != Brake::Off {
            return Ok(());
        }
        if !self.stage.is_empty() && !self.hold.is_on() {
            return Ok(());
        }
        self.catching_up = false;
        self.import = None;
        // Counted while nobody waits: the guard will want to know.
        self.files()?;
        if self.stage.held().is_empty() && !self.stage.deletes() {
            self.guard.nothing_held();
            self.note_held();
        }
        Ok(())
    }
}

/// A commit that was published.
struct Commit {
    taken: Taken,
    summary: Summary,
    took: Duration,
}

/// What a commit changes, for people.
#[derive(Default)]
pub(super) struct Summary {
    pub(super) files: u64,
    pub(super) names: Vec<RelPath>,
}

impl Summary {
    pub(super) fn of(changes: &[Change]) -> Self {
        let mut summary = Summary::default();
        for change in changes {
            summary.add(change);
        }
        summary
    }

    fn add(&mut self, change: &Change) {
        let mut sides = change.before.iter().chain(&change.after);
        if sides.all(|entry| entry.kind.is_dir()) {
            return;
        }
        self.files += 1;
        if self.names.len() < MAX_NAMES {
            self.names.push(change.path.clone());
        }
    }
}
