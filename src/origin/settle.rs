//! When a touched path may enter history: only once nobody is still writing it.
//!
//! Every path waits by itself, so that one busy file never holds up the others. The machine says
//! which path to look at next and takes the verdict; looking is the shell's. Paths that events
//! named come before those that a scan found. Nothing here opens a file or asks a clock.

use std::{
    collections::{BTreeSet, HashMap},
    time::{Duration, Instant},
};

use crate::{ledger::Fingerprint, model::RelPath};

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
pub(super) enum Lane {
    Event,
    Scan,
}

/// What looking at a path showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
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
pub(super) struct Look {
    pub(super) path: RelPath,
    pub(super) lane: Lane,
    /// A file with this stat was quiet long enough: no lease is needed.
    pub(super) quiet: Option<Fingerprint>,
    /// The operator lets an archive with this stat pass as it is.
    pub(super) approved: Option<Fingerprint>,
}

/// Why a path waits for more than a moment, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) reason: String,
    pub(super) since: Instant,
    /// Whether it waits for somebody rather than for a moment.
    pub(super) decision: bool,
}

/// All touched paths of a feed.
pub(super) struct Settle {
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
    pub(super) fn new(quiet: Duration) -> Self {
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
    pub(super) fn touch(&mut self, path: &RelPath, lane: Lane) {
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
    pub(super) fn next(&mut self, now: Instant) -> Option<Look> {
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
    pub(super) fn judged(&mut self, now: Instant, path: &RelPath, verdict: Verdict) {
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
        let (reason, pause) = match verdict {
            Verdict::Settled => unreachable!("the caller has dealt with it"),
            Verdict::Busy => ("somebody is writing it".to_owned(), back_off.min(LONGEST_WAIT)),
            Verdict::Changed => {
                ("it changed while it was read".to_owned(), back_off.min(LONGEST_WAIT))
            }
            Verdict::Fault(reason) => {
                let reason = format!("it cannot be read: {reason}");
                if back_off > LONGEST_FAULT_WAIT {
                    known.wait(reason, now);
                    return Stage::Held(None);
                }
                (reason, back_off)
            }
            Verdict::NoLease(seen) => {
                let since =
                    same_since.filter(|(before, _)| *before == seen).map_or(now, |(_, at)| at);
                known.same_since = Some((seen, since));
                let left = quiet.saturating_sub(now.saturating_duration_since(since));
                let why = format!(
                    "whether somebody writes it cannot be known (a lease needs its owner or CAP_LEASE): it must be quiet for {quiet:?}"
                );
                (why, left.max(FIRST_WAIT))
            }
            Verdict::Incomplete(seen) => {
                known.approved = None;
                known.wait("the archive has no end".to_owned(), now);
                known.waiting.iter_mut().for_each(|waiting| waiting.decision = true);
                return Stage::Held(Some(seen));
            }
        };
        if pause >= SHOWN_WAIT {
            known.wait(reason, now);
        }
        Stage::Timed(lane, now + pause)
    }

    /// Lets an archive that is held pass as it is now; false when none is held there.
    pub(super) fn approve(&mut self, path: &RelPath) -> bool {
        let Some(known) = self.paths.get_mut(path) else { return false };
        let Stage::Held(Some(seen)) = known.stage else { return false };
        known.approved = Some(seen);
        self.touch(path, Lane::Event);
        true
    }

    /// When a path is due next; `now` when one is queued.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.queue.is_empty() { self.timers.first().map(|(at, _)| *at) } else { Some(now) }
    }

    /// Whether paths that a scan found are to be looked at, or are being looked at. Those that wait
    /// for somebody do not count, nor do events, which may never end.
    pub(super) fn has_scan_work(&self) -> bool {
        self.looking[Lane::Scan as usize] > 0
            || self.queue.last().is_some_and(|(lane, ..)| *lane == Lane::Scan)
    }

    /// Whether a path is being looked at.
    pub(super) fn is_looking(&self) -> bool {
        self.looking != [0; 2]
    }

    /// How many paths are to be looked at, now or by the clock.
    pub(super) fn active(&self) -> usize {
        self.queue.len() + self.timers.len() + self.looking.iter().sum::<usize>()
    }

    /// How many paths are touched and not settled.
    fn len(&self) -> usize {
        self.paths.len()
    }

    /// Whether every path is settled that was touched, an archive that is held from before `since`
    /// excepted.
    pub(super) fn is_settled_since(&self, since: Instant) -> bool {
        self.looking == [0; 2]
            && self.queue.is_empty()
            && self.timers.is_empty()
            && self.waiting().all(|(_, waiting)| waiting.since < since)
    }

    /// Whether a path waits for more than a moment.
    pub(super) fn is_waiting(&self, path: &RelPath) -> bool {
        self.paths.get(path).is_some_and(|known| known.waiting.is_some())
    }

    /// Whether a path is yet to be read, and waits for nobody.
    pub(super) fn is_pending(&self, path: &RelPath) -> bool {
        self.paths.get(path).is_some_and(|known| known.waiting.is_none())
    }

    /// What waits for more than a moment.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&RelPath, &Waiting)> {
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
    fn wait(&mut self, reason: String, now: Instant) {
        let since = self.waiting.as_ref().map_or(now, |waiting| waiting.since);
        self.waiting = Some(Waiting { reason, since, decision: false });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Mtime;

    const QUIET: Duration = Duration::from_secs(2);

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn seen(size: u64) -> Fingerprint {
        let time = Mtime { secs: 1, nanos: 0 };
        Fingerprint { symlink: false, mode: 0o644, size, mtime: time, ctime: time, inode: 1 }
    }

    fn look(settle: &mut Settle, now: Instant) -> Option<String> {
        settle.next(now).map(|look| look.path.to_text().into_owned())
    }

    #[test]
    fn a_refusal_is_tried_again_ever_later_and_a_touch_at_once() {
        let start = Instant::now();
        let (mut settle, mut now) = (Settle::new(QUIET), start);
        settle.touch(&path("a"), Lane::Event);
        for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000] {
            assert_eq!(look(&mut settle, now).as_deref(), Some("a"));
            settle.judged(now, &path("a"), Verdict::Busy);
            assert_eq!(look(&mut settle, now), None);
            assert_eq!(settle.deadline(now), Some(now + Duration::from_millis(wait)));
            now += Duration::from_millis(wait);
        }
        let (_, waiting) = settle.waiting().next().unwrap();
        assert_eq!(waiting.reason, "somebody is writing it");
        look(&mut settle, now).unwrap();
        settle.judged(now, &path("a"), Verdict::Busy);
        settle.touch(&path("a"), Lane::Event);
        assert_eq!(look(&mut settle, now).as_deref(), Some("a"), "the close's event");
        settle.judged(now, &path("a"), Verdict::Settled);
        assert_eq!((settle.len(), settle.deadline(now), settle.waiting().count()), (0, None, 0));
    }

    #[test]
    fn one_busy_path_never_holds_up_the_others() {
        let (mut settle, now) = (Settle::new(QUIET), Instant::now());
        settle.touch(&path("busy"), Lane::Event);
        look(&mut settle, now).unwrap();
        settle.judged(now, &path("busy"), Verdict::Busy);
        for number in 0..100 {
            settle.touch(&path(&number.to_string()), Lane::Event);
            settle.touch(&path("busy"), Lane::Event);
        }
        let order: Vec<_> = std::iter::from_fn(|| look(&mut settle, now)).collect();
        assert_eq!(order.len(), 101);
        assert_eq!(order.iter().position(|name| name == "busy"), Some(1), "its place is kept");
    }

    #[test]
    fn events_come_before_what_a_scan_found() {
        let (mut settle, now) = (Settle::new(QUIET), Instant::now());
        for name in ["s1", "s2", "s3"] {
            settle.touch(&path(name), Lane::Scan);
        }
        settle.touch(&path("e"), Lane::Event);
        settle.touch(&path("s3"), Lane::Event);
        settle.touch(&path("e"), Lane::Scan);
        assert!(settle.has_scan_work());
        let order: Vec<_> = std::iter::from_fn(|| look(&mut settle, now)).collect();
        assert_eq!(order, ["e", "s3", "s1", "s2"]);
        settle.judged(now, &path("s1"), Verdict::Settled);
        assert!(settle.has_scan_work(), "one is being looked at");
        settle.judged(now, &path("s2"), Verdict::Busy);
        assert!(!settle.has_scan_work(), "it waits for somebody");
    }

    #[test]
    fn a_touch_while_looking_leads_to_another_look() {
        let (mut settle, now) = (Settle::new(QUIET), Instant::now());
        for verdict in [Verdict::Settled, Verdict::Incomplete(seen(1)), Verdict::Busy] {
            settle.touch(&path("a"), Lane::Event);
            look(&mut settle, now).unwrap();
            settle.touch(&path("a"), Lane::Scan);
            settle.touch(&path("a"), Lane::Event);
            settle.judged(now, &path("a"), verdict);
            assert_eq!(settle.next(now).unwrap().lane, Lane::Event);
            settle.judged(now, &path("a"), Verdict::Settled);
            assert_eq!(settle.len(), 0);
        }
    }

    #[test]
    fn without_leases_a_file_must_be_quiet() {
        let (mut settle, start) = (Settle::new(QUIET), Instant::now());
        settle.touch(&path("a"), Lane::Scan);
        assert_eq!(settle.next(start).unwrap().quiet, None);
        settle.judged(start, &path("a"), Verdict::NoLease(seen(1)));
        let now = settle.deadline(start).unwrap();
        assert_eq!(now, start + QUIET);
        assert_eq!(settle.next(now).unwrap().quiet, Some(seen(1)));
        settle.judged(now, &path("a"), Verdict::NoLease(seen(2)));
        assert_eq!(settle.deadline(now), Some(now + QUIET), "it grew: from the start again");
        // A touch in between looks at once, and the time that it was quiet still counts.
        settle.touch(&path("a"), Lane::Event);
        let middle = now + QUIET / 2;
        assert_eq!(settle.next(middle).unwrap().quiet, None);
        settle.judged(middle, &path("a"), Verdict::NoLease(seen(2)));
        assert_eq!(settle.deadline(middle), Some(now + QUIET));
        assert_eq!(settle.next(now + QUIET).unwrap().quiet, Some(seen(2)));
    }

    #[test]
    fn an_archive_without_its_end_waits_for_a_change_or_approval() {
        let (mut settle, now) = (Settle::new(QUIET), Instant::now());
        settle.touch(&path("a.war"), Lane::Event);
        assert!(!settle.approve(&path("a.war")), "not held yet");
        look(&mut settle, now).unwrap();
        settle.judged(now, &path("a.war"), Verdict::Incomplete(seen(1)));
        assert_eq!(settle.deadline(now), None, "no timer");
        assert!(!settle.has_scan_work());
        assert!(!settle.is_settled_since(now) && settle.is_settled_since(now + FIRST_WAIT));
        let later = now + Duration::from_secs(60);
        settle.touch(&path("a.war"), Lane::Scan);
        look(&mut settle, later).unwrap();
        settle.judged(later, &path("a.war"), Verdict::Incomplete(seen(1)));
        assert_eq!(settle.waiting().next().unwrap().1.since, now, "held since the first look");
        assert!(settle.approve(&path("a.war")));
        assert_eq!(settle.next(later).unwrap().approved, Some(seen(1)));
        settle.judged(later, &path("a.war"), Verdict::Settled);
        assert_eq!(settle.len(), 0);
    }

    #[test]
    fn what_cannot_be_read_is_tried_ever_later_and_then_left_to_a_scan() {
        let (mut settle, mut now) = (Settle::new(QUIET), Instant::now());
        settle.touch(&path("a"), Lane::Scan);
        let mut looks = 0;
        while settle.next(now).is_some() {
            looks += 1;
            settle.judged(now, &path("a"), Verdict::Fault("denied".to_owned()));
            now = settle.deadline(now).unwrap_or(now);
        }
        assert_eq!((looks, settle.active(), settle.len()), (16, 0, 1));
        assert!(settle.is_waiting(&path("a")) && !settle.approve(&path("a")));
        settle.touch(&path("a"), Lane::Scan);
        assert_eq!(settle.next(now).unwrap().path, path("a"));
        settle.judged(now, &path("a"), Verdict::Settled);
        assert_eq!(settle.len(), 0);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Touch(u8, Lane),
        Next,
        Judge(u8, Verdict),
        Pass(u16),
        Approve(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        let lane = prop_oneof![Just(Lane::Event), Just(Lane::Scan)];
        let verdict = prop_oneof![
            3 => Just(Verdict::Settled),
            1 => Just(Verdict::Busy),
            1 => Just(Verdict::Changed),
            1 => (0..3_u64).prop_map(|size| Verdict::NoLease(seen(size))),
            1 => (0..3_u64).prop_map(|size| Verdict::Incomplete(seen(size))),
            1 => Just(Verdict::Fault("denied".to_owned())),
        ];
        prop_oneof![
            3 => (0..5_u8, lane).prop_map(|(path, lane)| Op::Touch(path, lane)),
            3 => Just(Op::Next),
            3 => (0..5_u8, verdict).prop_map(|(path, verdict)| Op::Judge(path, verdict)),
            1 => (0..3000_u16).prop_map(Op::Pass),
            1 => (0..5_u8).prop_map(Op::Approve),
        ]
    }

    proptest! {
        /// Whatever happens: a touched path is looked at after its touch, sooner or later, and once
        /// everything is judged settled nothing is left behind in any index.
        #[test]
        fn no_touch_is_lost_and_nothing_is_left(ops in prop::collection::vec(op(), 1..80)) {
            let mut settle = Settle::new(QUIET);
            let mut now = Instant::now();
            let mut unseen = BTreeSet::new();
            for op in ops {
                match op {
                    Op::Touch(number, lane) => {
                        settle.touch(&path(&number.to_string()), lane);
                        unseen.insert(path(&number.to_string()));
                    }
                    Op::Next => {
                        if let Some(look) = settle.next(now) {
                            unseen.remove(&look.path);
                        }
                    }
                    Op::Judge(number, verdict) => {
                        settle.judged(now, &path(&number.to_string()), verdict);
                    }
                    Op::Pass(millis) => now += Duration::from_millis(millis.into()),
                    Op::Approve(number) => {
                        settle.approve(&path(&number.to_string()));
                    }
                }
            }
            let held = |settle: &Settle| {
                let stages = settle.paths.values().map(|known| known.stage);
                stages.filter(|stage| matches!(stage, Stage::Held(_))).count()
            };
            let looking: Vec<_> = settle.paths.iter()
                .filter(|(_, known)| matches!(known.stage, Stage::Looking { .. }))
                .map(|(path, _)| path.clone()).collect();
            for path in looking {
                settle.judged(now, &path, Verdict::Settled);
            }
            now += LONGEST_FAULT_WAIT;
            while let Some(look) = settle.next(now) {
                unseen.remove(&look.path);
                settle.judged(now, &look.path, Verdict::Settled);
            }
            // A scan's touch of a path that waits for a writer is seen by that wait's own look.
            prop_assert!(unseen.is_empty(), "never looked at: {unseen:?}");
            prop_assert_eq!(settle.len(), held(&settle));
            prop_assert!(settle.queue.is_empty() && settle.timers.is_empty());
            prop_assert_eq!(settle.looking, [0; 2]);
        }
    }
}
