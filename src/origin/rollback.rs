//! An older state brought back: a durable mark, the directory made equal to it, a commit forward.
//!
//! While the mark stands nothing else is looked at or committed, and a start finishes it before its
//! first scan. Owned paths that differ go aside before they are replaced or removed; paths that were
//! never committed stay. Then the target's tree is committed, and the feed is frozen: what changes
//! from now on waits for `release`.

use std::time::{Duration, Instant};

use super::{
    Result,
    commit::Summary,
    read::{fingerprint, grain},
    restore,
    session::Session,
};
use crate::{
    bus::Answer,
    disk::{FileKind, Placed, Stat},
    ledger::{DirCache, Kind as RunKind, NewRun, decisions},
    model::{Change, Class, Entry, Kind, Oid, RelPath},
    store, sys,
};

/// How soon one that could not be finished is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// A rollback that has begun and is not finished.
pub(super) struct Rollback {
    mark: decisions::Rollback,
    /// Who waits for its end.
    answer: Option<Answer>,
    at: Instant,
    /// Why it is not finished.
    pub(super) fault: Option<String>,
}

/// Why a try did not finish it.
enum Unfinished {
    /// For people: it is tried again.
    Later(String),
    Fatal(super::Error),
}

impl From<store::Error> for Unfinished {
    fn from(error: store::Error) -> Self {
        match error.class() {
            Class::Transient => Unfinished::Later(error.to_string()),
            Class::Corrupt | Class::Fatal => Unfinished::Fatal(error.into()),
        }
    }
}

impl Rollback {
    /// One that a run before this one has begun.
    pub(super) fn begun(mark: decisions::Rollback, now: Instant) -> Self {
        Rollback { mark, answer: None, at: now, fault: None }
    }

    pub(super) fn due(&self) -> Instant {
        self.at
    }
}

impl Session<'_, '_> {
    /// Begins a rollback; answered when it is finished, or when its first try fails.
    pub(super) fn roll_back(&mut self, target: Oid, by: String, answer: Answer) {
        match self.mark(target, by) {
            Ok(mark) => {
                self.rollback =
                    Some(Rollback { mark, answer: Some(answer), at: Instant::now(), fault: None });
            }
            // Whoever asked may have gone.
            Err(reason) => drop(answer.send(Err(reason))),
        }
    }

    /// The mark, once it is durable.
    fn mark(&self, target: Oid, by: String) -> std::result::Result<decisions::Rollback, String> {
        if let Some(halt) = &self.halt {
            return Err(halt.reason.clone());
        }
        if self.rollback.is_some() {
            return Err("another rollback is not finished yet".to_owned());
        }
        let Some(head) = self.stage.head() else {
            return Err("nothing is published yet".to_owned());
        };
        if self.setup.decisions.feed(&self.setup.feed).revoked.contains(&target) {
            return Err(format!("commit {target} is revoked"));
        }
        self.expect_content(head, target)?;
        let act = decisions::Act { since: sys::now().into(), by };
        let mark = decisions::Rollback { target, head, act };
        let kept = mark.clone();
        let update = |decided: &mut decisions::Feed| decided.rollback = Some(kept);
        let done = self.setup.decisions.update_feed(&self.setup.feed, update);
        done.map_err(|error| error.to_string()).map(|()| mark)
    }

    /// Content that retention has dropped is missed before anything is changed.
    fn expect_content(&self, head: Oid, target: Oid) -> std::result::Result<(), String> {
        let missing = self.setup.store.missing_objects(Some(head), target);
        let missing = missing.map_err(|error| error.to_string())?;
        match missing.first() {
            None => Ok(()),
            Some((object, _)) => Err(format!(
                "the content of {} files of commit {target} is gone by retention, the first is \
                 object {object}",
                missing.len()
            )),
        }
    }

    /// Goes on with a rollback; true while there is one.
    pub(super) fn mind_rollback(&mut self, now: Instant) -> Result<bool> {
        let Some(rollback) = &self.rollback else { return Ok(false) };
        if rollback.at > now {
            return Ok(true);
        }
        let mark = rollback.mark.clone();
        let started = Instant::now();
        match self.finish_rollback(&mark) {
            Ok(placed) => {
                self.rolled_back(&mark, &placed, started.elapsed());
                Ok(false)
            }
            Err(Unfinished::Fatal(error)) => Err(error),
            Err(Unfinished::Later(reason)) => {
                tracing::error!(feed = %self.setup.feed, reason, "the rollback is not finished");
                let rollback = self.rollback.as_mut().expect("it was found a moment ago");
                rollback.at = now + AGAIN;
                if let Some(answer) = rollback.answer.take() {
                    let _ =
                        answer.send(Err(format!("{reason}; it is tried again until it is done")));
                }
                rollback.fault = Some(reason);
                Ok(true)
            }
        }
    }

    fn finish_rollback(
        &mut self,
        mark: &decisions::Rollback,
    ) -> std::result::Result<Placed, Unfinished> {
        let later = |reason: String| Unfinished::Later(reason);
        let store = &self.setup.store;
        let head = store.head()?.map(|head| head.commit);
        let mut placed = Placed::default();
        // A kill between the commit and the end of the mark leaves only the mark to be removed.
        if head == Some(mark.head) {
            let changes = self.to_be_placed(mark)?;
            let source = |blob| restore::content(store, blob);
            let span = (Some(mark.head), mark.target);
            placed =
                restore::place(self.setup, &self.root, span, &changes, &source).map_err(later)?;
            self.commit_target(mark)?;
        }
        let frozen = mark.act.clone();
        let update = |decided: &mut decisions::Feed| {
            decided.rollback = None;
            decided.frozen = Some(frozen.clone());
        };
        let done = self.setup.decisions.update_feed(&self.setup.feed, update);
        done.map_err(|error| Unfinished::Later(error.to_string()))?;
        self.hold.frozen = Some(mark.act.clone());
        Ok(placed)
    }

    /// What differs between the two commits, and whatever of the target is not surely in place.
    fn to_be_placed(&self, mark: &decisions::Rollback) -> store::Result<Vec<Change>> {
        let store = &self.setup.store;
        let mut changes = store.diff(Some(mark.head), mark.target)?;
        let changed: std::collections::HashSet<_> =
            changes.iter().map(|change| change.path.clone()).collect();
        let mut known = (RelPath::root(), self.cache.dir(&RelPath::root()).unwrap_or_default());
        let mut doubtful = Vec::new();
        store.walk(mark.target, &mut |path, entry| {
            if changed.contains(&path) {
                return;
            }
            let parent = path.parent().unwrap_or_default();
            if known.0 != parent {
                let cache = self.cache.dir(&parent).unwrap_or_default();
                known = (parent, cache);
            }
            let stat = self.root.stat(&path).ok().flatten();
            if !stat.is_some_and(|stat| self.is_in_place(&known.1, &path, &entry, &stat)) {
                doubtful.push(Change { path, before: Some(entry.clone()), after: Some(entry) });
            }
        })?;
        changes.append(&mut doubtful);
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    /// Whether the stat cache knows that an entry lies there as it should, time included.
    fn is_in_place(&self, cache: &DirCache, path: &RelPath, entry: &Entry, stat: &Stat) -> bool {
        let keep = self.setup.options.keep;
        let same_mode = entry.meta.mode.is_none_or(|mode| mode == stat.mode || !keep.mode);
        let Some(blob) = entry.kind.blob() else { return stat.kind == FileKind::Dir && same_mode };
        let kind = if matches!(entry.kind, Kind::File { .. }) {
            FileKind::File
        } else {
            FileKind::Symlink
        };
        let mtime = entry.meta.mtime.filter(|_| keep.mtime && kind == FileKind::File);
        let cached = cache.get(path.name()).filter(|cached| cached.blob == blob);
        let grain = grain(self.file_system.fat, stat);
        stat.kind == kind
            && same_mode
            && mtime.is_none_or(|mtime| mtime == stat.mtime)
            && cached.is_some_and(|cached| cached.counts_for(&fingerprint(stat), grain))
    }

    /// Commits the target's tree forward; nothing where the head's is the same.
    fn commit_target(&mut self, mark: &decisions::Rollback) -> store::Result<()> {
        let store = &self.setup.store;
        let mut draft = store.draft()?;
        for change in store.diff(Some(mark.head), mark.target)? {
            match change.after {
                Some(entry) => draft.put(&change.path, entry),
                None => draft.remove(&change.path),
            }
        }
        if draft.is_empty() {
            return Ok(());
        }
        let by = self.sign(format!("Roll back to {}", mark.target.short()))?;
        let Some(prepared) = draft.finish(&by)? else { return Ok(()) };
        let published = store.publish(prepared)?;
        self.setup.desk.post(published);
        Ok(())
    }

    fn rolled_back(&mut self, mark: &decisions::Rollback, placed: &Placed, took: Duration) {
        let feed = &self.setup.feed;
        for path in &placed.set_aside {
            tracing::warn!(%feed, %path, commit = %mark.target, "was not as committed: put aside for the rollback");
        }
        let (written, deleted) = (placed.written, placed.deleted);
        tracing::info!(%feed, commit = %mark.target, written, deleted, ?took, "rolled back");
        let mut run = NewRun::new(feed.clone(), RunKind::Rollback, sys::now() - took);
        run.took = took;
        run.commit = Some(mark.target);
        run.bytes = placed.bytes;
        // By the history: one that a kill cut off has put the rest in place before.
        let changes = self.setup.store.diff(Some(mark.head), mark.target).unwrap_or_default();
        Summary { files: run.files, names: run.names } = Summary::of(&changes);
        if let Err(error) = self.setup.ledger.add_run(&run) {
            tracing::warn!(%feed, %error, "a run is not recorded");
        }
        if let Some(answer) = self.rollback.take().and_then(|rollback| rollback.answer) {
            let _ = answer.send(Ok(())); // it waits no longer: fine
        }
        let head = self.setup.store.head().ok().flatten();
        if let Some(head) = head {
            self.stage.published(head.commit);
        }
        self.stage.take_held();
        self.note_held();
        self.hold.since.get_or_insert_with(Instant::now);
        self.hold.releasing = false;
        self.begin_batch_again();
    }
}
