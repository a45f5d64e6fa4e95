//! When a hook runs: a pure state machine, one for each hook of each feed.
//!
//! A *key* is what a run is about: a commit, or for `pre-commit` the candidate's tree (the commit's
//! id changes with its time), or for `on-held` and `on-failure` the state's name. Always: one run
//! at a time; one for each key, but for retries that the hook asked for; a newer key replaces one
//! still waiting; the newest one runs; what a run came to stands until there is another key.

use std::time::{Duration, Instant};

/// How soon a hook that must not be run is looked at again: a `chmod` should suffice.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// How a hook that asks for another run gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait before the second run; it doubles from run to run.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// The most runs for one key; after the last it has failed.
    pub attempts: u32,
}

impl Default for Backoff {
    /// One second to five minutes, 20 runs: a licence server or a database may be away for an hour.
    fn default() -> Self {
        Self { first: Duration::from_secs(1), longest: Duration::from_secs(300), attempts: 20 }
    }
}

impl Backoff {
    /// The wait after the run with this number, from 0.
    fn delay(&self, attempt: u32) -> Duration {
        self.first.saturating_mul(2_u32.saturating_pow(attempt)).min(self.longest)
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<K> {
    /// There is something to run for. The newest one, again, changes nothing.
    Wanted(K),
    /// This was there before the hook was anybody's business: there is no run for it.
    Known(K),
    /// The state is over, or somebody asks for another run: the next `Wanted` is new, whatever it is.
    Cleared,
    /// The run that was under way is over.
    Ended(End),
    /// Time went by.
    Woke,
}

/// What a run came to, as far as the schedule cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Go on.
    Passed,
    /// It failed or vetoed: that stands.
    Failed,
    /// It wants to run again later.
    Retry,
    /// The hook must not be run as it is: look again later. Not a run.
    Refused,
}

/// What to do. Only the newest `WakeAt` counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect<K> {
    /// Run the hook, then say `Ended`.
    Run(Run<K>),
    /// Say `Woke` then.
    WakeAt(Instant),
    /// There will be no further run for it.
    Concluded {
        /// For this.
        key: K,
        /// Whether the work goes on.
        passed: bool,
    },
}

/// A run to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run<K> {
    /// What for.
    pub key: K,
    /// The last one that was concluded: a post-hook's changes are those from there, or the ones of
    /// a commit that was replaced while it waited would never reach it.
    pub since: Option<K>,
    /// How many runs for the key came before.
    pub attempt: u32,
}

/// The schedule of one hook of one feed.
#[derive(Debug, Clone)]
pub struct Schedule<K> {
    backoff: Backoff,
    running: Option<Running<K>>,
    waiting: Option<Waiting<K>>,
    /// The last key that was concluded.
    last: Option<K>,
    /// Whether that still stands: it was not cleared since.
    stands: bool,
}

#[derive(Debug, Clone)]
struct Running<K> {
    key: K,
    attempt: u32,
    /// It was cleared meanwhile: its end stands for nothing.
    cleared: bool,
}

#[derive(Debug, Clone)]
struct Waiting<K> {
    key: K,
    attempt: u32,
    at: Instant,
}

impl<K: Clone + Eq> Schedule<K> {
    /// A schedule that knows what was concluded before the daemon started, if anything.
    #[must_use]
    pub fn new(backoff: Backoff, last: Option<K>) -> Self {
        let stands = last.is_some();
        Self { backoff, running: None, waiting: None, last, stands }
    }

    /// Takes in what happened, and says what to do.
    pub fn step(&mut self, now: Instant, event: Event<K>) -> Vec<Effect<K>> {
        let concluded = match event {
            Event::Wanted(key) => {
                self.want(now, key);
                None
            }
            Event::Known(key) => self.know(key),
            Event::Cleared => {
                self.clear();
                None
            }
            Event::Ended(end) => self.end(now, end),
            Event::Woke => None,
        };
        concluded.into_iter().chain(self.next(now)).collect()
    }

    fn want(&mut self, now: Instant, key: K) {
        if self.waiting.as_ref().is_some_and(|waiting| waiting.key == key) {
            return;
        }
        // Back to the one that runs or ran, before the one after it did: nothing is left to run.
        let again = self.newest_begun() == Some(&key);
        self.waiting = (!again).then_some(Waiting { key, attempt: 0, at: now });
    }

    fn know(&mut self, key: K) -> Option<Effect<K>> {
        if self.running.is_some() {
            return None;
        }
        self.waiting = None;
        (self.last, self.stands) = (Some(key.clone()), true);
        Some(Effect::Concluded { key, passed: true })
    }

    fn newest_begun(&self) -> Option<&K> {
        match &self.running {
            Some(running) => (!running.cleared).then_some(&running.key),
            None => self.last.as_ref().filter(|_| self.stands),
        }
    }

    fn clear(&mut self) {
        self.waiting = None;
        self.stands = false;
        if let Some(running) = &mut self.running {
            running.cleared = true;
        }
    }

    fn end(&mut self, now: Instant, end: End) -> Option<Effect<K>> {
        let Running { key, attempt, cleared } = self.running.take()?;
        let again = match end {
            End::Passed | End::Failed => None,
            End::Retry if attempt + 1 >= self.backoff.attempts => None,
            End::Retry => Some((attempt + 1, self.backoff.delay(attempt))),
            End::Refused => Some((attempt, LOOK_AGAIN.min(self.backoff.longest))),
        };
        let Some((attempt, delay)) = again else {
            self.last = Some(key.clone());
            self.stands = !cleared;
            return Some(Effect::Concluded { key, passed: end == End::Passed });
        };
        self.stands = false;
        if self.waiting.is_none() && !cleared {
            self.waiting = Some(Waiting { key, attempt, at: now + delay });
        }
        None
    }

    fn next(&mut self, now: Instant) -> Option<Effect<K>> {
        if self.running.is_some() {
            return None;
        }
        let Waiting { key, attempt, at } = self.waiting.take()?;
        if at > now {
            self.waiting = Some(Waiting { key, attempt, at });
            return Some(Effect::WakeAt(at));
        }
        self.running = Some(Running { key: key.clone(), attempt, cleared: false });
        Some(Effect::Run(Run { key, since: self.last.clone(), attempt }))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const BACKOFF: Backoff =
        Backoff { first: Duration::from_secs(1), longest: Duration::from_secs(4), attempts: 6 };

    fn ran(effects: &[Effect<u32>]) -> Option<&Run<u32>> {
        effects.iter().find_map(|effect| match effect {
            Effect::Run(run) => Some(run),
            _ => None,
        })
    }

    #[test]
    fn a_burst_runs_the_first_and_the_last() {
        let (mut schedule, now) = (Schedule::new(BACKOFF, None), Instant::now());
        let first = schedule.step(now, Event::Wanted(1));
        assert_eq!(ran(&first), Some(&Run { key: 1, since: None, attempt: 0 }));
        for commit in 2..=50 {
            assert_eq!(schedule.step(now, Event::Wanted(commit)), []);
        }
        let effects = schedule.step(now, Event::Ended(End::Passed));
        assert_eq!(effects[0], Effect::Concluded { key: 1, passed: true });
        assert_eq!(ran(&effects), Some(&Run { key: 50, since: Some(1), attempt: 0 }));
        let last = schedule.step(now, Event::Ended(End::Passed));
        assert_eq!(last, [Effect::Concluded { key: 50, passed: true }]);
    }

    #[test]
    fn what_was_there_before_is_where_the_next_one_counts_from() {
        let (mut schedule, now) = (Schedule::new(BACKOFF, Some(1)), Instant::now());
        let known = schedule.step(now, Event::Known(7));
        assert_eq!(known, [Effect::Concluded { key: 7, passed: true }]);
        assert_eq!(schedule.step(now, Event::Wanted(7)), []);
        let next = schedule.step(now, Event::Wanted(8));
        assert_eq!(ran(&next), Some(&Run { key: 8, since: Some(7), attempt: 0 }));
    }

    #[test]
    fn three_failures_then_success() {
        let (mut schedule, mut now) = (Schedule::new(BACKOFF, Some(7)), Instant::now());
        assert!(ran(&schedule.step(now, Event::Wanted(8))).is_some());
        for (attempt, delay) in [(1, 1), (2, 2), (3, 4)] {
            let at = now + Duration::from_secs(delay);
            assert_eq!(schedule.step(now, Event::Ended(End::Retry)), [Effect::WakeAt(at)]);
            assert_eq!(schedule.step(now, Event::Wanted(8)), [Effect::WakeAt(at)], "no hurry");
            now = at;
            let run = Run { key: 8, since: Some(7), attempt };
            assert_eq!(schedule.step(now, Event::Woke), [Effect::Run(run)]);
        }
        let end = schedule.step(now, Event::Ended(End::Passed));
        assert_eq!(end, [Effect::Concluded { key: 8, passed: true }]);
    }

    #[test]
    fn retries_end_as_a_failure() {
        let (mut schedule, mut now) = (Schedule::new(BACKOFF, None), Instant::now());
        let mut effects = schedule.step(now, Event::Wanted(1));
        for _ in 0..BACKOFF.attempts {
            assert!(ran(&effects).is_some());
            now += BACKOFF.longest;
            effects = schedule.step(now, Event::Ended(End::Retry));
            if let [Effect::WakeAt(at)] = effects[..] {
                now = at;
                effects = schedule.step(now, Event::Woke);
            }
        }
        assert_eq!(effects, [Effect::Concluded { key: 1, passed: false }]);
        assert_eq!(schedule.step(now, Event::Wanted(1)), [], "and that stands");
    }

    #[test]
    fn a_veto_stands_until_the_head_changes() {
        let (mut schedule, now) = (Schedule::new(BACKOFF, None), Instant::now());
        schedule.step(now, Event::Wanted(1));
        let veto = schedule.step(now, Event::Ended(End::Failed));
        assert_eq!(veto, [Effect::Concluded { key: 1, passed: false }]);
        let later = now + Duration::from_secs(86_400);
        assert_eq!(schedule.step(later, Event::Wanted(1)), []);
        assert_eq!(schedule.step(later, Event::Woke), []);
        assert!(ran(&schedule.step(later, Event::Wanted(2))).is_some());
    }

    #[test]
    fn a_hook_that_must_not_run_is_looked_at_again_without_end() {
        let (mut schedule, mut now) = (Schedule::new(BACKOFF, None), Instant::now());
        schedule.step(now, Event::Wanted(1));
        for _ in 0..100 {
            let at = now + BACKOFF.longest;
            assert_eq!(schedule.step(now, Event::Ended(End::Refused)), [Effect::WakeAt(at)]);
            now = at;
            let again = schedule.step(now, Event::Woke);
            assert_eq!(ran(&again), Some(&Run { key: 1, since: None, attempt: 0 }));
        }
    }

    #[test]
    fn a_state_fires_once_and_again_when_it_comes_back() {
        let (mut schedule, now) = (Schedule::new(BACKOFF, None), Instant::now());
        for _ in 0..3 {
            assert!(ran(&schedule.step(now, Event::Wanted(1))).is_some());
            assert_eq!(schedule.step(now, Event::Wanted(1)), []);
            assert!(ran(&schedule.step(now, Event::Ended(End::Passed))).is_none());
            assert_eq!(schedule.step(now, Event::Wanted(1)), []);
            assert_eq!(schedule.step(now, Event::Cleared), []);
        }
        schedule.step(now, Event::Wanted(1));
        schedule.step(now, Event::Cleared);
        assert_eq!(
            schedule.step(now, Event::Ended(End::Retry)),
            [],
            "nobody waits for it any more"
        );
    }

    #[test]
    fn what_came_back_before_its_successor_ran_is_not_run_again() {
        let (mut schedule, now) = (Schedule::new(BACKOFF, None), Instant::now());
        schedule.step(now, Event::Wanted(1));
        schedule.step(now, Event::Wanted(2));
        schedule.step(now, Event::Wanted(1));
        let end = schedule.step(now, Event::Ended(End::Passed));
        assert_eq!(end, [Effect::Concluded { key: 1, passed: true }]);
        schedule.step(now, Event::Wanted(2));
        schedule.step(now, Event::Ended(End::Passed));
        let pinned = schedule.step(now, Event::Wanted(1));
        assert!(ran(&pinned).is_some(), "checked out again after another one");
    }

    #[derive(Debug, Clone, Copy)]
    enum Op {
        Commit,
        Repeat,
        Pass(u64),
        End(End),
    }

    fn op() -> impl Strategy<Value = Op> {
        let end = prop_oneof![
            1 => Just(End::Passed),
            1 => Just(End::Failed),
            3 => Just(End::Retry),
            1 => Just(End::Refused),
        ];
        prop_oneof![
            1 => Just(Op::Commit),
            1 => Just(Op::Repeat),
            1 => (0..5000_u64).prop_map(Op::Pass),
            2 => end.prop_map(Op::End),
        ]
    }

    /// What a fleet of commits saw of the schedule.
    #[derive(Default)]
    struct Seen {
        newest: u32,
        running: Option<u32>,
        runs: HashMap<u32, u32>,
        retries: HashMap<u32, u32>,
        concluded: Vec<u32>,
        wake: Option<Instant>,
    }

    impl Seen {
        fn take(&mut self, effects: Vec<Effect<u32>>) {
            self.wake = None;
            for effect in effects {
                match effect {
                    Effect::Run(run) => {
                        assert_eq!(self.running.replace(run.key), None, "one at a time");
                        assert_eq!(run.key, self.newest, "nothing that was replaced");
                        assert_eq!(run.since, self.concluded.last().copied());
                        *self.runs.entry(run.key).or_default() += 1;
                    }
                    Effect::WakeAt(at) => self.wake = Some(at),
                    Effect::Concluded { key, .. } => self.concluded.push(key),
                }
            }
            for (key, runs) in &self.runs {
                let asked = self.retries.get(key).copied().unwrap_or_default();
                assert!(*runs <= 1 + asked, "{key} ran {runs} times and asked for {asked} more");
            }
        }
    }

    proptest! {
        #[test]
        fn one_run_for_each_commit_and_one_for_the_newest(ops in prop::collection::vec(op(), 1..200)) {
            let (mut schedule, mut now) = (Schedule::new(BACKOFF, None), Instant::now());
            let mut seen = Seen::default();
            for op in ops.into_iter().chain([Op::Commit]) {
                let event = match op {
                    Op::Commit => {
                        seen.newest += 1;
                        Event::Wanted(seen.newest)
                    }
                    Op::Repeat if seen.newest > 0 => Event::Wanted(seen.newest),
                    Op::Pass(millis) => {
                        now += Duration::from_millis(millis);
                        Event::Woke
                    }
                    Op::End(end) if seen.running.is_some() => {
                        let key = seen.running.take().unwrap();
                        if matches!(end, End::Retry | End::Refused) {
                            *seen.retries.entry(key).or_default() += 1;
                        }
                        Event::Ended(end)
                    }
                    _ => continue,
                };
                seen.take(schedule.step(now, event));
            }
            while let Some(event) = match (seen.running.take(), seen.wake) {
                (Some(_), _) => Some(Event::Ended(End::Passed)),
                (None, Some(at)) => {
                    now = at;
                    Some(Event::Woke)
                }
                (None, None) => None,
            } {
                seen.take(schedule.step(now, event));
            }
            prop_assert_eq!(seen.concluded.last(), Some(&seen.newest), "the newest always runs");
            let mut concluded = seen.concluded.clone();
            concluded.dedup();
            prop_assert_eq!(concluded, seen.concluded, "and is concluded once");
        }
    }
}
