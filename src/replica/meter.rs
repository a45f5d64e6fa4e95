//! How far a fetch is: what has come, how fast, and when it will be done.
//!
//! The connection and `status` see it; nothing is under way once it is dropped. The rate is that of
//! the last seconds, since a link that has become slow is what an operator looks for.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{bus::frame::Progress, model::Head};

/// How long bytes are gathered for one look at the rate.
const SAMPLE: Duration = Duration::from_millis(500);
/// How much of the rate is the newest sample's.
const NEWEST: f64 = 0.4;

/// Where what is under way is shown, and what has come is summed up.
#[derive(Clone, Default)]
pub(super) struct Shown {
    progress: watch::Sender<Option<Progress>>,
    received: Arc<AtomicU64>,
}

impl Shown {
    /// There.
    pub(super) fn of(progress: watch::Sender<Option<Progress>>) -> Self {
        Shown { progress, received: Arc::default() }
    }

    /// Whoever looks.
    pub(super) fn subscribe(&self) -> watch::Receiver<Option<Progress>> {
        self.progress.subscribe()
    }

    /// So many bytes have come over the link.
    pub(super) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What has come since this was last asked.
    pub(super) fn take_received(&self) -> u64 {
        self.received.swap(0, Ordering::Relaxed)
    }
}

/// Counts what has come of a fetch.
pub(super) struct Meter<'a> {
    shown: &'a Shown,
    pace: Mutex<Pace>,
}

impl<'a> Meter<'a> {
    /// A fetch of `total` bytes, of which `done` are here.
    pub(super) fn new(shown: &'a Shown, head: Head, done: u64, total: u64) -> Self {
        shown.progress.send_replace(Some(Progress {
            head,
            done,
            total,
            rate: None,
            left_ms: None,
        }));
        Meter { shown, pace: Mutex::new(Pace::new(Instant::now())) }
    }

    /// So many bytes have come.
    pub(super) fn came(&self, bytes: u64) {
        self.shown.received(bytes);
        let rate = self.pace().came(Instant::now(), bytes);
        self.change(|progress| {
            progress.done += bytes;
            progress.rate = rate;
            let left = progress.total.saturating_sub(progress.done);
            progress.left_ms = rate.filter(|rate| *rate > 0).map(|rate| left * 1000 / rate);
        });
    }

    /// Of something whose size was not known, `total` bytes are expected, and `done` are here.
    pub(super) fn begun(&self, done: u64, total: u64) {
        self.change(|progress| {
            if progress.total == 0 {
                (progress.done, progress.total) = (done, total);
            }
        });
    }

    /// So many bytes are here already.
    pub(super) fn found(&self, bytes: u64) {
        self.change(|progress| progress.done += bytes);
    }

    /// What was to take `before` bytes takes `after`.
    pub(super) fn corrected(&self, before: u64, after: u64) {
        self.change(|progress| progress.total = (progress.total + after).saturating_sub(before));
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Progress)) {
        self.shown.progress.send_modify(|progress| {
            if let Some(progress) = progress {
                change(progress);
            }
        });
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.shown.progress.send_replace(None);
    }
}

/// The rate of the last seconds.
struct Pace {
    since: Instant,
    bytes: u64,
    rate: Option<f64>,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Pace { since: now, bytes: 0, rate: None }
    }

    /// Bytes a second, once there is something to tell it from.
    fn came(&mut self, now: Instant, bytes: u64) -> Option<u64> {
        self.bytes += bytes;
        let passed = now.saturating_duration_since(self.since);
        if passed >= SAMPLE {
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let newest = self.bytes as f64 / passed.as_secs_f64();
            self.rate = Some(self.rate.map_or(newest, |old| old + NEWEST * (newest - old)));
            (self.since, self.bytes) = (now, 0);
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate for people"
        )]
        self.rate.map(|rate| rate as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Oid;

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut pace = Pace::new(start);
        assert_eq!(pace.came(at(100), 1_000_000), None);
        assert_eq!(pace.came(at(1_000), 1_000_000), Some(2_000_000));
        for second in 2..20 {
            pace.came(at(second * 1_000), 1_000);
        }
        let rate = pace.came(at(20_000), 1_000).unwrap();
        assert!((1_000..2_000).contains(&rate), "{rate}");
    }

    #[test]
    fn what_is_shown_follows_what_comes() {
        let shown = Shown::default();
        let head = Head { epoch: 1, seq: 1, commit: Oid::from_bytes([1; 20]) };
        let meter = Meter::new(&shown, head, 10, 100);
        meter.found(20);
        meter.came(30);
        meter.corrected(50, 5);
        let progress = shown.subscribe().borrow().unwrap();
        assert_eq!(shown.take_received(), 30);
        assert_eq!((progress.done, progress.total), (60, 55));
        drop(meter);
        assert!(shown.subscribe().borrow().is_none());
    }
}
