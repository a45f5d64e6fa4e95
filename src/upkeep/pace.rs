//! When a feed is collected, and when maintenance fires: decisions that know nothing but the clock.
//!
//! Each new version is collected for, while that takes at most a fifth of the time. What work under
//! way still needs is put off: until that work brings the next version, or for a minute.

use std::time::{Duration, Instant, SystemTime};

/// Work after each version may take this part of the time.
const SHARE: u32 = 4;
/// What could not be done is tried again after this time.
pub(super) const RETRY: Duration = Duration::from_secs(60);

/// When the next collection is due; `T` is what the last one went by.
#[derive(Debug)]
pub(super) struct Pace<T> {
    done_for: Option<T>,
    /// Not before, whatever happens.
    rests_until: Instant,
    /// Something is left to be done, although nothing changes.
    again_at: Option<Instant>,
}

impl<T: PartialEq> Pace<T> {
    pub(super) fn new(now: Instant) -> Self {
        Pace { done_for: None, rests_until: now, again_at: None }
    }

    /// Whether to collect now.
    pub(super) fn is_due(&self, now: Instant, goes_by: Option<&T>) -> bool {
        let is_left = self.again_at.is_some_and(|at| at <= now);
        now >= self.rests_until && (self.done_for.as_ref() != goes_by || is_left)
    }

    /// A collection has ended, which took so long.
    pub(super) fn collected(
        &mut self,
        now: Instant,
        goes_by: Option<T>,
        took: Duration,
        is_all: bool,
    ) {
        self.done_for = goes_by;
        self.rests_until = now + took * SHARE;
        self.again_at = (!is_all).then(|| now + RETRY);
    }

    /// It could not be done.
    pub(super) fn failed(&mut self, now: Instant) {
        self.rests_until = now + RETRY;
        self.again_at = Some(self.rests_until);
    }
}

/// Says when the timetable fires after an instant; none: never.
pub type Due = Box<dyn Fn(SystemTime) -> Option<SystemTime> + Send>;

/// The timetable, and how far it has been followed.
pub(super) struct Timetable {
    due: Due,
    next: Option<SystemTime>,
    looked_at: SystemTime,
}

impl Timetable {
    pub(super) fn new(due: Due, now: SystemTime) -> Self {
        Timetable { next: due(now), due, looked_at: now }
    }

    /// Whether it has fired since it was last asked; once, however often it did.
    pub(super) fn fires(&mut self, now: SystemTime) -> bool {
        let fires = self.next.is_some_and(|at| at <= now);
        // A clock that was set back would else leave out what lies between.
        if fires || now < self.looked_at {
            self.next = (self.due)(now);
        }
        self.looked_at = now;
        fires
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Cron;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn each_version_is_collected_for_in_a_fifth_of_the_time() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        assert!(!pace.is_due(start, None), "there is nothing yet");
        assert!(pace.is_due(start, Some(&1)));
        pace.collected(start + SECOND, Some(1), SECOND, true);
        assert!(!pace.is_due(start + SECOND * 900, Some(&1)));
        assert!(!pace.is_due(start + SECOND * 4, Some(&2)), "it took a second");
        assert!(pace.is_due(start + SECOND * 5, Some(&2)));
    }

    #[test]
    fn what_is_put_off_goes_with_the_next_version_or_in_a_minute() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        pace.collected(start, Some(1), Duration::ZERO, false);
        assert!(!pace.is_due(start + SECOND, Some(&1)), "what it waits for goes on");
        assert!(pace.is_due(start + SECOND, Some(&2)), "it does not pile up");
        assert!(pace.is_due(start + RETRY, Some(&1)));
        pace.collected(start + RETRY, Some(1), Duration::ZERO, true);
        assert!(!pace.is_due(start + RETRY * 9, Some(&1)));
        pace.failed(start);
        assert!(!pace.is_due(start + SECOND * 59, Some(&2)));
        assert!(pace.is_due(start + RETRY, Some(&1)));
    }

    #[test]
    fn a_timetable_fires_once_for_each_time_and_follows_a_clock_that_is_set() {
        let cron = Cron::parse("0 30 3 * * *", None).unwrap();
        let day = Duration::from_secs(86_400);
        let monday = SystemTime::UNIX_EPOCH + day * 20_780;
        let mut table = Timetable::new(Box::new(move |at| cron.next_after(at)), monday);
        let mut fired = |from: SystemTime, steps: u32| -> Vec<Duration> {
            let at = |step| from + Duration::from_secs(600) * step;
            let times = (0..steps).map(at).filter(|now| table.fires(*now));
            times.map(|now| now.duration_since(monday).unwrap()).collect()
        };
        let at_night = Duration::from_secs(3 * 3600 + 1800);
        let nights = [at_night, day + at_night, day * 2 + at_night];
        assert_eq!(fired(monday, 3 * 144), nights);
        assert_eq!(fired(monday + day, 144), [day + at_night], "the clock was set back");
        assert_eq!(fired(monday + day * 9, 144).len(), 2, "asleep for a week: once, then as usual");
        let mut never = Timetable::new(Box::new(|_| None), monday);
        assert!(!never.fires(monday + day * 999));
    }
}
