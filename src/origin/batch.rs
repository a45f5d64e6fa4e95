//! When a batch of settled changes becomes a commit.
//!
//! An idle feed commits a lone file after a gap of 1 ms; while changes keep coming the gap grows,
//! and no change waits for more than 250 ms. A hold keeps the batch open until it is released.

use std::time::{Duration, Instant};

/// What an idle feed waits for a second file: a copy of two small files is one commit mostly, and a
/// lone one is not kept waiting.
const FIRST_GAP: Duration = Duration::from_millis(1);
/// The most that a change waits for others, and the lull after which a feed counts as idle.
const WINDOW: Duration = Duration::from_millis(250);

/// The batch of one feed.
#[derive(Debug)]
pub struct Batch {
    open: Option<Open>,
    gap: Duration,
    committed: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    since: Instant,
    last: Instant,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// Nothing waits.
    pub fn new() -> Self {
        Self { open: None, gap: FIRST_GAP, committed: None }
    }

    /// A change was added.
    pub fn added(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.last = now;
            return;
        }
        let busy = self.committed.is_some_and(|at| now.saturating_duration_since(at) < WINDOW);
        self.gap = if busy { (self.gap * 2).min(WINDOW) } else { FIRST_GAP };
        self.open = Some(Open { since: now, last: now });
    }

    /// When to commit; none when there is nothing to commit.
    pub fn deadline(&self) -> Option<Instant> {
        let open = self.open?;
        Some((open.last + self.gap).min(open.since + WINDOW))
    }

    /// The batch was committed, or what was in it came to nothing.
    pub fn close(&mut self, now: Instant) {
        self.open = None;
        self.committed = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn a_lone_file_waits_1_ms() {
        let (mut batch, start) = (Batch::new(), Instant::now());
        assert_eq!(batch.deadline(), None);
        for round in 0..3 {
            let now = start + millis(1000 * round);
            batch.added(now);
            assert_eq!(batch.deadline(), Some(now + millis(1)));
            batch.close(now + millis(1));
            assert_eq!(batch.deadline(), None);
        }
    }

    /// Commits that a change every `every` ms for `total` ms leads to, and the longest wait of one.
    fn run(every: u64, total: u64) -> (usize, Duration) {
        let (mut batch, start) = (Batch::new(), Instant::now());
        let (mut commits, mut longest, mut first) = (0, Duration::ZERO, None);
        for at in 0..total + 1000 {
            let now = start + millis(at);
            if batch.deadline().is_some_and(|deadline| deadline <= now) {
                commits += 1;
                longest = longest.max(first.take().map_or(Duration::ZERO, |first| now - first));
                batch.close(now);
            }
            if at < total && at.is_multiple_of(every) {
                batch.added(now);
                first.get_or_insert(now);
            }
        }
        assert_eq!(batch.deadline(), None, "everything was committed");
        (commits, longest)
    }

    #[test]
    fn a_stream_of_changes_is_gathered() {
        let (commits, longest) = run(1, 2000);
        assert!((8..=10).contains(&commits) && longest <= WINDOW, "{commits} {longest:?}");
        let (commits, longest) = run(5, 2000);
        assert!((8..=20).contains(&commits) && longest <= WINDOW, "{commits} {longest:?}");
        let (commits, longest) = run(300, 3000);
        assert!(commits == 10 && longest <= millis(1), "{commits} {longest:?}");
    }

    proptest! {
        #[test]
        fn no_change_waits_longer_than_the_window(every in 1..400_u64) {
            prop_assert!(run(every, 3000).1 <= WINDOW);
        }
    }
}
