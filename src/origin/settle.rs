//! When a touched path may enter history: only once nobody is still writing it.
//!
//! Every path waits by itself, so that one busy file never holds up the others. The machine says
//! which path to look at next and takes the verdict; looking is the shell's. Paths that events
//! named come before those that a scan found. Nothing here opens a file or asks a clock.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::{bus::Cause, ledger::Fingerprint, model::RelPath};

/// The first wait after a refused lease: the kernel reports a close up to some milliseconds before
/// it drops the write count.
const FIRST_WAIT: Duration = Duration::from_millis(1);
/// The longest wait for a writer: its close comes as an event, so this only covers lost events.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The longest wait for a file that cannot be read: from then on a change must come, or a scan.
const LONGEST_FAULT_WAIT: Duration = Duration::from_secs(30);
/// Paths that are held without a clock; beyond it a scan comes to them again.
const MAX_HELD: usize = 10_000;
/// Waits that are shown to people. A refusal or two after a close is nothing to tell.
const SHOWN_WAIT: Duration = Duration::from_millis(250);

/// What led to a path. Events are looked at first: a person waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Something was said to have happened to it.
    Event,
    /// It was found to be another one than the head has.
    Scan,
}

/// What looking at a path showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It was read, or is no file, or is gone: nothing to wait for.
    Settled,
    /// Somebody has it open for writing.
    Busy,
    /// Whether somebody writes it cannot be known: it must be quiet for a while.
    NoLease(Fingerprint),
    /// Its stat was another one after reading.
    Changed,
    /// An archive without its end.
    Incomplete(Fingerprint),
    /// It cannot be read.
    Fault(String),
}

/// A path to be looked at now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// Which.
    pub path: RelPath,
    /// What led to it.
    pub lane: Lane,
    /// A file with this stat was quiet long enough: no lease is needed.
    pub quiet: Option<Fingerprint>,
    /// The operator lets an archive with this stat pass as it is.
    pub approved: Option<Fingerprint>,
}

/// Why a path waits for more than a moment, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// In a word.
    pub cause: Cause,
    /// What for.
    pub reason: String,
    /// Since when.
    pub since: Instant,
    /// Whether it waits for somebody rather than for a moment.
    pub decision: bool,
}

/// All touched paths of a feed.
#[derive(Debug)]
pub struct Settle {
    /// How long a file must stay as it is where leases are not to be had.
    quiet: Duration,
    paths: HashMap<RelPath, Touched>,
    queue: BTreeSet<(Lane, u64, RelPath)>,
    timers: BTreeSet<(Instant, RelPath)>,
    /// By lane.
    looking: [usize; 2],
    sequence: u64,
}

#[derive(Debug)]
struct Touched {
    stage: Stage,
    /// Refusals since the last touch.
    attempts: u32,
    /// The stat that it has had since then, where leases are not to be had.
    same_since: Option<(Fingerprint, Instant)>,
    approved: Option<Fingerprint>,
    waiting: Option<Waiting>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// The number keeps the order of arrival.
    Queued(Lane, u64),
    Looking {
        lane: Lane,
        /// Touched again since it was taken, by this.
        again: Option<Lane>,
    },
    Timed(Lane, Instant),
    /// Until it is touched; an archive without its end, whose stat this is, until it is approved.
    Held(Option<Fingerprint>),
}

impl Settle {
    /// Nothing is touched yet; `quiet` is how long a file must stay as it is where leases are not to be
    /// had.
    pub fn new(quiet: Duration) -> Self {
        Self {
            quiet,
            paths: HashMap::new(),
            queue: BTreeSet::new(),
            timers: BTreeSet::new(),
            looking: [0; 2],
            sequence: 0,
        }
    }

    /// Something may have happened to a path.
    pub fn touch(&mut self, path: &RelPath, lane: Lane) {
        let Some(known) = self.paths.get_mut(path) else {
            let stage = Stage::Queued(lane, self.sequence);
            let new =
                Touched { stage, attempts: 0, same_since: None, approved: None, waiting: None };
            self.paths.insert(path.clone(), new);
            self.queue_up(path, lane);
            return;
        };
        match &mut known.stage {
            Stage::Looking { again, .. } => {
                *again = Some(again.map_or(lane, |before| before.min(lane)));
            }
            // Its place in the queue stays, or a path touched for ever would never come up.
            Stage::Queued(before, _) if *before <= lane => {}
            // A scan knows nothing new of a path that waits for a writer.
            Stage::Timed(..) if lane == Lane::Scan => {}
            Stage::Queued(..) | Stage::Timed(..) | Stage::Held(_) => {
                known.attempts = 0;
                self.queue_up(path, lane);
            }
        }
    }

    /// The next path to look at; its verdict comes by [`Settle::judged`].
    pub fn next(&mut self, now: Instant) -> Option<Look> {
        self.wake(now);
        let (lane, _, path) = self.queue.first()?.clone();
        self.enter(&path, Stage::Looking { lane, again: None });
        let long_enough = self.quiet;
        let known = self.known(&path);
        let quiet = known
            .same_since
            .filter(|(_, since)| now.saturating_duration_since(*since) >= long_enough)
            .map(|(seen, _)| seen);
        let approved = known.approved;
        Some(Look { path, lane, quiet, approved })
    }

    fn wake(&mut self, now: Instant) {
        while let Some((at, path)) = self.timers.first().filter(|(at, _)| *at <= now) {
            let (at, path) = (*at, path.clone());
            let lane = match self.known(&path).stage {
                Stage::Timed(lane, due) if due == at => lane,
                ref other => unreachable!("a timer belongs to a timed path, not {other:?}"),
            };
            self.queue_up(&path, lane);
        }
    }

    /// What looking at a path showed.
    pub fn judged(&mut self, now: Instant, path: &RelPath, verdict: Verdict) {
        let Some(Touched { stage: Stage::Looking { lane, again }, .. }) = self.paths.get(path)
        else {
            return;
        };
        let (lane, again) = (*lane, *again);
        if verdict == Verdict::Settled {
            self.looking[lane as usize] -= 1;
            self.paths.remove(path);
            if let Some(lane) = again {
                self.touch(path, lane);
            }
            return;
        }
        let stage = self.after(now, path, lane, verdict);
        self.enter(path, stage);
        if matches!(stage, Stage::Held(_)) && self.len() - self.active() > MAX_HELD {
            self.paths.remove(path);
        }
        if let Some(lane) = again {
            self.touch(path, lane);
        }
    }

    /// Where a path goes that is not settled.
    fn after(&mut self, now: Instant, path: &RelPath, lane: Lane, verdict: Verdict) -> Stage {
        let quiet = self.quiet;
        let known = self.known(path);
        let back_off = FIRST_WAIT.saturating_mul(1 << known.attempts.min(20));
        known.attempts = known.attempts.saturating_add(1);
        let same_since = known.same_since.take();
        let (cause, reason, pause) = match verdict {
            Verdict::Settled => unreachable!("the caller has dealt with it"),
            Verdict::Busy | Verdict::Changed => {
                let is_open = verdict == Verdict::Busy;
                let reason =
                    if is_open { "somebody is writing it" } else { "it changed while it was read" };
                (Cause::Writing, reason.to_owned(), back_off.min(LONGEST_WAIT))
            }
            Verdict::Fault(reason) => {
                let reason = format!("it cannot be read: {reason}");
                if back_off > LONGEST_FAULT_WAIT {
                    known.wait(Cause::Unreadable, reason, now);
                    return Stage::Held(None);
                }
                (Cause::Unreadable, reason, back_off)
            }
            Verdict::NoLease(seen) => {
                let since =
                    same_since.filter(|(before, _)| *before == seen).map_or(now, |(_, at)| at);
                known.same_since = Some((seen, since));
                let left = quiet.saturating_sub(now.saturating_duration_since(since));
                let why = format!(
                    "whether somebody writes it cannot be known (a lease needs its owner or CAP_LEASE): it must be quiet for {quiet:?}"
                );
                (Cause::NoLease, why, left.max(FIRST_WAIT))
            }
            Verdict::Incomplete(seen) => {
                known.approved = None;
                known.wait(Cause::Incomplete, "the archive has no end".to_owned(), now);
                known.waiting.iter_mut().for_each(|waiting| waiting.decision = true);
                return Stage::Held(Some(seen));
            }
        };
        if pause >= SHOWN_WAIT {
            known.wait(cause, reason, now);
        }
        Stage::Timed(lane, now + pause)
    }

    /// Lets an archive that is held pass as it is now; false when none is held there.
    pub fn approve(&mut self, path: &RelPath) -> bool {
        let Some(known) = self.paths.get_mut(path) else { return false };
        let Stage::Held(Some(seen)) = known.stage else { return false };
        known.approved = Some(seen);
        self.touch(path, Lane::Event);
        true
    }

    /// When a path is due next; `now` when one is queued.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.queue.is_empty() { self.timers.first().map(|(at, _)| *at) } else { Some(now) }
    }

    /// Whether paths that a scan found are to be looked at, or are being looked at. Those that wait
    /// for somebody do not count, nor do events, which may never end.
    pub fn has_scan_work(&self) -> bool {
        self.looking[Lane::Scan as usize] > 0
            || self.queue.last().is_some_and(|(lane, ..)| *lane == Lane::Scan)
    }

    /// Whether a path is being looked at.
    pub fn is_looking(&self) -> bool {
        self.looking != [0; 2]
    }

    /// How many paths are to be looked at, now or by the clock.
    pub fn active(&self) -> usize {
        self.queue.len() + self.timers.len() + self.looking.iter().sum::<usize>()
    }

    /// How many paths are touched and not settled.
    fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether every path is settled that was touched, an archive that is held from before `since`
    /// excepted.
    pub fn is_settled_since(&self, since: Instant) -> bool {
        self.looking == [0; 2]
            && self.queue.is_empty()
            && self.timers.is_empty()
            && self.waiting().all(|(_, waiting)| waiting.since < since)
    }

    /// Whether a path waits for more than a moment.
    pub fn is_waiting(&self, path: &RelPath) -> bool {
        self.paths.get(path).is_some_and(|known| known.waiting.is_some())
    }

    /// Whether a path is yet to be read, and waits for nobody.
    pub fn is_pending(&self, path: &RelPath) -> bool {
        self.paths.get(path).is_some_and(|known| known.waiting.is_none())
    }

    /// What waits for more than a moment.
    pub fn waiting(&self) -> impl Iterator<Item = (&RelPath, &Waiting)> {
        self.paths.iter().filter_map(|(path, known)| Some((path, known.waiting.as_ref()?)))
    }

    fn known(&mut self, path: &RelPath) -> &mut Touched {
        self.paths.get_mut(path).expect("a path in an index is known")
    }

    fn queue_up(&mut self, path: &RelPath, lane: Lane) {
        self.sequence += 1;
        self.enter(path, Stage::Queued(lane, self.sequence));
    }

    /// Moves a path to another stage: the only place that keeps the indexes.
    fn enter(&mut self, path: &RelPath, stage: Stage) {
        let before = std::mem::replace(&mut self.known(path).stage, stage);
        match before {
            Stage::Queued(lane, number) => {
                self.queue.remove(&(lane, number, path.clone()));
            }
            Stage::Timed(_, at) => {
                self.timers.remove(&(at, path.clone()));
            }
            Stage::Looking { lane, .. } => self.looking[lane as usize] -= 1,
            Stage::Held(_) => {}
        }
        match stage {
            Stage::Queued(lane, number) => {
                self.queue.insert((lane, number, path.clone()));
            }
            Stage::Timed(_, at) => {
                self.timers.insert((at, path.clone()));
            }
            Stage::Looking { lane, .. } => self.looking[lane as usize] += 1,
            Stage::Held(_) => {}
        }
    }
}

impl Touched {
    fn wait(&mut self, cause: Cause, reason: String, now: Instant) {
        let since = self.waiting.as_ref().map_or(now, |waiting| waiting.since);
        self.waiting = Some(Waiting { cause, reason, since, decision: false });
    }
}

#[cfg(test)]
mod tests;
