//! Verification by content: a little all the while, and all of it when the operator's hour comes.
//!
//! A change that leaves size, mode and time as they were is seen only by who reads the file. A round
//! goes through the feed's files in the order of their paths, some of them at a time, so that a
//! checkout never waits for long; what differs is drift and is dealt with as such. Nothing but the
//! path where it goes on is remembered, whatever the size of the feed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use super::{Error, checkout::Checkout, drift::Drifted};
use crate::{
    disk,
    model::{Cron, Entry, Oid, RelPath},
};

/// The files of one step, and the bytes with which it ends.
const FILES: usize = 1_000;
const BYTES: u64 = 64 << 20;
/// How long it rests between two steps: 90 GB or 1.4 million files a day.
const REST: Duration = Duration::from_secs(60);

/// Files that are read by scans too, since nothing but reading tells that they differ.
const MOST_DOUBTED: usize = 1_000;

/// When which files are read.
#[derive(Debug)]
pub(super) struct Rounds {
    schedule: Option<Cron>,
    /// When the schedule fires next.
    fires: Option<SystemTime>,
    /// The last path that was read in this round.
    after: Option<RelPath>,
    next: Instant,
    /// A round that the schedule began, and that goes on without rest.
    whole: Option<Whole>,
}

/// What a round without rest has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) began: Instant,
    pub(super) files: u64,
    pub(super) differing: u64,
}

/// One step of a round.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Step {
    /// Where the next one goes on; none: the round is over.
    pub(super) last: Option<RelPath>,
    pub(super) files: u64,
    pub(super) differing: u64,
}

impl Rounds {
    pub(super) fn new(schedule: Option<Cron>, now: Instant, clock: SystemTime) -> Self {
        let fires = schedule.as_ref().and_then(|cron| cron.next_after(clock));
        Rounds { schedule, fires, after: None, next: now + REST, whole: None }
    }

    /// When the next step is due; a clock that was set is minded within a rest's time.
    pub(super) fn due(&self, now: Instant, clock: SystemTime) -> Instant {
        let fires = self.fires.map(|at| now + at.duration_since(clock).unwrap_or_default());
        self.next.min(fires.unwrap_or(self.next))
    }

    /// Behind which path to go on; none: from the first file on.
    pub(super) fn after(&self) -> Option<RelPath> {
        self.after.clone()
    }

    /// Whether a step is due.
    pub(super) fn begin(&mut self, now: Instant, clock: SystemTime) -> bool {
        if self.fires.is_some_and(|at| at <= clock) {
            self.fires = self.schedule.as_ref().and_then(|cron| cron.next_after(clock));
            if self.whole.is_none() {
                self.whole = Some(Whole { began: now, files: 0, differing: 0 });
                self.after = None;
                self.next = now;
            }
        }
        self.next <= now
    }

    /// Takes note of a step that is done, or that could not be (none); a scheduled round that is over
    /// with it comes back.
    pub(super) fn done(&mut self, now: Instant, step: Option<Step>) -> Option<Whole> {
        let rest = if self.whole.is_some() && step.is_some() { Duration::ZERO } else { REST };
        self.next = now + rest;
        let step = step?;
        self.after = step.last;
        if let Some(whole) = &mut self.whole {
            whole.files += step.files;
            whole.differing += step.differing;
        }
        if self.after.is_some() {
            return None;
        }
        self.next = now + REST;
        self.whole.take()
    }
}

impl Checkout {
    /// Reads the next files of the feed; answers those that differ.
    pub(super) fn read_on(
        &self,
        commit: Oid,
        after: Option<&RelPath>,
    ) -> Result<(Vec<Drifted>, Step), Error> {
        let next = self.files_behind(commit, after)?;
        let is_last = next.len() < FILES;
        let (mut differing, mut step, mut bytes) = (Vec::new(), Step::default(), 0);
        for (path, entry) in next {
            if bytes >= BYTES {
                return Ok((differing, step));
            }
            bytes += self.root.stat(&path).ok().flatten().map_or(0, |stat| stat.size);
            let found =
                disk::verify(&self.root, &path, &entry, &self.keep, &|blob| self.source(blob));
            step.files += 1;
            step.last = Some(path.clone());
            match found {
                Ok(None) => drop(self.doubted().remove(&path)),
                Ok(Some(mismatch)) => {
                    if self.doubted().len() < MOST_DOUBTED {
                        self.doubted().insert(path.clone());
                    }
                    differing.push((path, entry, mismatch));
                }
                // It goes on being changed: there will be an event.
                Err(error) if error.is_gone() => {}
                Err(error) => tracing::warn!(%path, %error, "this file cannot be verified"),
            }
            step.differing = differing.len() as u64;
        }
        step.last = step.last.filter(|_| !is_last);
        Ok((differing, step))
    }

    pub(super) fn doubted(&self) -> MutexGuard<'_, BTreeSet<RelPath>> {
        self.doubted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first files behind a path, by their paths.
    fn files_behind(
        &self,
        commit: Oid,
        after: Option<&RelPath>,
    ) -> Result<BTreeMap<RelPath, Entry>, Error> {
        let mut next = BTreeMap::new();
        self.store.walk(commit, &mut |path, entry| {
            let is_behind = after.is_none_or(|after| path > *after);
            if is_behind && !entry.kind.is_dir() && self.subset.holds(&path, false) {
                next.insert(path, entry);
                if next.len() > FILES {
                    next.pop_last();
                }
            }
        })?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn step(last: Option<&str>) -> Step {
        Step { last: last.map(path), files: 10, differing: 1 }
    }

    #[test]
    fn a_little_is_read_all_the_while() {
        let (mut now, clock) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let mut rounds = Rounds::new(None, now, clock);
        for (after, last) in [(None, Some("a")), (Some("a"), Some("b")), (Some("b"), None)] {
            assert!(!rounds.begin(now, clock), "it rests");
            now = rounds.due(now, clock);
            assert!(rounds.begin(now, clock));
            assert_eq!(rounds.after(), after.map(path));
            assert_eq!(rounds.done(now, Some(step(last))), None);
        }
        now += REST;
        assert!(rounds.begin(now, clock));
        assert_eq!(rounds.after(), None, "the next round");
        assert_eq!(rounds.done(now, None), None);
        assert!(!rounds.begin(now, clock), "what cannot be done now is tried later");
    }

    #[test]
    fn at_its_hour_all_of_it_is_read_without_a_rest() {
        let now = Instant::now();
        let clock = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600);
        let cron = Cron::parse("0 30 3 * * *", None).unwrap();
        let mut rounds = Rounds::new(Some(cron), now, clock);
        let later = now + REST;
        assert!(rounds.begin(later, clock + REST));
        rounds.done(later, Some(step(Some("m"))));
        let hour = Duration::from_secs(3 * 3600 + 1800);
        let at = now + hour;
        assert!(rounds.begin(at, clock + hour));
        assert_eq!(rounds.after(), None, "from the first file on");
        assert_eq!(rounds.done(at, Some(step(Some("m")))), None);
        assert!(rounds.begin(at, clock + hour), "at once");
        assert_eq!(rounds.after(), Some(path("m")));
        let whole = Whole { began: at, files: 20, differing: 2 };
        assert_eq!(rounds.done(at, Some(step(None))), Some(whole));
        assert!(!rounds.begin(at, clock + hour));
    }
}
