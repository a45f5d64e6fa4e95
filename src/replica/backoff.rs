//! How long to wait before the next try: twice as long after each failure, to a cap, without end.
//!
//! Half of each wait is random, so that a hundred mirrors do not come back in the same instant. The
//! randomness comes from a seed that the caller gives: the same seed waits the same times.

use std::time::{Duration, Instant};

/// Tries after failures.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    first: Duration,
    cap: Duration,
    failures: u32,
    until: Option<Instant>,
    random: u64,
}

impl Backoff {
    /// Waits from `first` to `cap`.
    pub(super) fn new(first: Duration, cap: Duration, seed: u64) -> Self {
        Backoff { first, cap, failures: 0, until: None, random: seed }
    }

    /// After a failure: nothing is due for a while.
    pub(super) fn failed(&mut self, now: Instant) {
        let full = self.first.saturating_mul(1 << self.failures.min(20)).min(self.cap);
        self.failures += 1;
        let random = f64::from(u32::try_from(self.next() >> 32).expect("32 bits remain"));
        let share = 0.5 + random / (2.0 * f64::from(u32::MAX));
        self.until = Some(now + full.mul_f64(share));
    }

    /// After a failure that only an operator can mend: the longest wait at once.
    pub(super) fn failed_for_good(&mut self, now: Instant) {
        self.failures = self.failures.max(20);
        self.failed(now);
    }

    /// After a success, or when something has changed: due at once.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
        self.until = None;
    }

    /// Nothing is due before then.
    pub(super) fn put_off(&mut self, until: Instant) {
        self.until = Some(until);
    }

    /// Whether a try is due.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// When a try is due; none: now.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// A random share of a time.
    pub(super) fn share(&mut self, of: Duration) -> Duration {
        let random = f64::from(u32::try_from(self.next() >> 32).expect("32 bits remain"));
        of.mul_f64(random / f64::from(u32::MAX))
    }

    /// `SplitMix64` (Steele, Lea, Flood 2014).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_cap_and_are_half_random() {
        let (first, cap) = (Duration::from_millis(100), Duration::from_secs(2));
        let now = Instant::now();
        for seed in 0..50 {
            let mut backoff = Backoff::new(first, cap, seed);
            assert!(backoff.is_due(now));
            for full in [100, 200, 400, 800, 1600, 2000, 2000, 2000] {
                backoff.failed(now);
                let wait = (backoff.until().unwrap() - now).as_millis();
                assert!((full / 2..=full).contains(&wait), "{wait} of {full}");
                assert!(!backoff.is_due(now) && backoff.is_due(now + cap));
            }
            backoff.reset();
            assert!(backoff.is_due(now));
        }
    }

    #[test]
    fn seeds_differ_and_repeat() {
        let now = Instant::now();
        let wait = |seed| {
            let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), seed);
            backoff.failed(now);
            backoff.until()
        };
        assert_eq!(wait(1), wait(1));
        assert_ne!(wait(1), wait(2));
    }

    #[test]
    fn it_never_overflows() {
        let now = Instant::now();
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 1);
        backoff.failed_for_good(now);
        for _ in 0..1000 {
            backoff.failed(now);
        }
        assert!(backoff.is_due(now + Duration::from_secs(60)));
    }
}
