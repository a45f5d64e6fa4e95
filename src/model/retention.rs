//! For how long the content of old versions stays.

use std::time::Duration;

/// A version's content stays while it is inside either bound (`keep = { age, versions }`). Its
/// commit stays in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// How long after another version took its place.
    pub age: Duration,
    /// How many of the newest versions, the head among them; at least one.
    pub versions: u64,
}

impl Retention {
    /// Just the head.
    pub const HEAD: Retention = Retention { age: Duration::ZERO, versions: 1 };

    /// Whether a version is inside: `newer` versions came after it, the first of them so long ago.
    #[must_use]
    pub fn holds(&self, newer: u64, replaced: Duration) -> bool {
        newer < self.versions.max(1) || replaced < self.age
    }
}

impl Default for Retention {
    fn default() -> Self {
        Retention { age: Duration::from_secs(30 * 86_400), versions: 50 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_bound_keeps_a_version() {
        let days = |n: u64| Duration::from_secs(n * 86_400);
        let keep = Retention { age: days(30), versions: 50 };
        for (newer, replaced, held) in
            [(49, 900, true), (50, 29, true), (50, 30, false), (5_000, 31, false)]
        {
            assert_eq!(keep.holds(newer, days(replaced)), held, "{newer}, {replaced}");
        }
        assert!(Retention { age: days(0), versions: 0 }.holds(0, days(9)), "the head stays");
        assert!(!Retention::HEAD.holds(1, days(0)));
    }
}
