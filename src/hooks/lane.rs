//! The thread of a hook that runs beside the work: `post-commit`, `post-checkout`, `on-…`.
//!
//! Whoever has news puts it into one slot and goes on; the thread drives the schedule and runs the
//! hook. News that came during a run are told to the schedule before the run's end, so that of a
//! burst only the newest is left to run. The slot holds one key, whatever the burst.

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use super::{Effect, End, Event, Run, Schedule};

/// Where the news for one hook's thread are put.
#[derive(Debug)]
pub struct Lane<K> {
    news: Mutex<News<K>>,
    bell: Condvar,
    stop: AtomicBool,
}

#[derive(Debug)]
struct News<K> {
    known: Option<K>,
    cleared: bool,
    wanted: Option<K>,
}

impl<K> Default for Lane<K> {
    fn default() -> Self {
        let news = News { known: None, cleared: false, wanted: None };
        Self { news: Mutex::new(news), bell: Condvar::new(), stop: AtomicBool::new(false) }
    }
}

impl<K: Clone + Eq> Lane<K> {
    /// There is something to run for; it replaces what waited.
    pub fn want(&self, key: K) {
        self.lock().wanted = Some(key);
        self.bell.notify_one();
    }

    /// This was there before: there is no run for it, and none that waits.
    pub fn know(&self, key: K) {
        *self.lock() = News { known: Some(key), cleared: false, wanted: None };
        self.bell.notify_one();
    }

    /// The state is over: the same one is new when it comes back.
    pub fn clear(&self) {
        *self.lock() = News { known: None, cleared: true, wanted: None };
        self.bell.notify_one();
    }

    /// Ends the thread, and the run that is under way.
    pub fn stop(&self) {
        let held = self.lock();
        self.stop.store(true, Ordering::Relaxed);
        drop(held);
        self.bell.notify_one();
    }

    /// The thread: blocks until `stop`. `run` makes one run, which the flag ends early;
    /// `concluded` hears of each key that has had its last one, and whether it passed.
    pub fn attend(
        &self,
        mut schedule: Schedule<K>,
        mut run: impl FnMut(&Run<K>, &AtomicBool) -> End,
        mut concluded: impl FnMut(&K, bool),
    ) {
        let mut wake = None;
        while let Some(mut events) = self.wait(wake) {
            while let Some(event) = events.pop_front() {
                wake = None;
                for effect in schedule.step(Instant::now(), event) {
                    match effect {
                        Effect::Run(job) => {
                            let end = run(&job, &self.stop);
                            // A run that was cut short has not ended: the next start makes it.
                            if self.stopped() {
                                return;
                            }
                            events.extend(self.lock().take());
                            events.push_back(Event::Ended(end));
                        }
                        Effect::WakeAt(at) => wake = Some(at),
                        Effect::Concluded { key, passed } => concluded(&key, passed),
                    }
                }
            }
        }
    }

    /// Waits for news or until it is time to wake; none once stopped.
    fn wait(&self, wake: Option<Instant>) -> Option<VecDeque<Event<K>>> {
        let mut news = self.lock();
        loop {
            if self.stopped() {
                return None;
            }
            let events = news.take();
            if !events.is_empty() {
                return Some(events);
            }
            news = match wake.map(|at| at.saturating_duration_since(Instant::now())) {
                Some(left) if left.is_zero() => return Some(VecDeque::from([Event::Woke])),
                Some(left) => {
                    let waited = self.bell.wait_timeout(news, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.bell.wait(news).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, News<K>> {
        // Every state of the slot is whole, so a panic elsewhere spoils nothing.
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> News<K> {
    fn take(&mut self) -> VecDeque<Event<K>> {
        let known = self.known.take().map(Event::Known);
        let cleared = mem::take(&mut self.cleared).then_some(Event::Cleared);
        known.into_iter().chain(cleared).chain(self.wanted.take().map(Event::Wanted)).collect()
    }
}
