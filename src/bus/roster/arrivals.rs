//! How long versions take to arrive: from their announcement here until a node has verified them.
//!
//! Only of nodes that were there when the version was announced: who was away catches up, which is
//! another thing. What is remembered is bounded; the histogram counts from the start.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::model::{Head, Label, NodeId, RegionName};

/// Versions whose announcement is remembered: a node skips what it missed, so few are waited for.
const MAX_HEADS: usize = 64;
/// Arrivals that are remembered: enough for a picture of the last deployments.
const MAX_ARRIVALS: usize = 500;

/// The bounds of the histogram in seconds: what a person does not notice, to what somebody asks about.
pub const BOUNDS: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0];

/// A version that a node has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Which version.
    pub head: Head,
    /// The node.
    pub node: NodeId,
    /// Its name for people.
    pub label: Label,
    /// Its region.
    pub region: Option<RegionName>,
    /// When it was announced here.
    pub announced: Instant,
    /// How long it took from then on.
    pub took: Duration,
}

/// How many arrivals took at most so long, counted from the start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Times {
    /// For each bound, those within it and above the one before.
    pub within: [u64; BOUNDS.len()],
    /// All of them.
    pub count: u64,
    /// In seconds, all together.
    pub sum: f64,
}

/// What is known of one feed's arrivals.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    announced: VecDeque<(Head, Instant)>,
    newest: VecDeque<Arrival>,
    times: Times,
}

/// Who verified something.
pub(super) struct Who<'a> {
    pub(super) node: &'a NodeId,
    pub(super) label: &'a Label,
    pub(super) region: Option<&'a RegionName>,
}

impl Arrivals {
    /// Notes that a version is announced.
    pub(super) fn announce(&mut self, now: Instant, head: Head) {
        if self.announced.back().is_some_and(|(last, _)| *last == head) {
            return;
        }
        if self.announced.len() == MAX_HEADS {
            self.announced.pop_front();
        }
        self.announced.push_back((head, now));
    }

    /// Notes that a node has verified a version which it has lacked since then.
    pub(super) fn arrive(
        &mut self,
        now: Instant,
        who: &Who<'_>,
        head: Head,
        lacked: Option<Instant>,
    ) {
        let found = self.announced.iter().rev().find(|(known, _)| *known == head);
        let Some(&(_, announced)) = found else { return };
        if lacked.is_some_and(|since| since > announced) {
            return;
        }
        let took = now.saturating_duration_since(announced);
        self.times.add(took);
        if self.newest.len() == MAX_ARRIVALS {
            self.newest.pop_front();
        }
        self.newest.push_back(Arrival {
            head,
            node: who.node.clone(),
            label: who.label.clone(),
            region: who.region.cloned(),
            announced,
            took,
        });
    }

    /// The last ones, the newest first.
    pub(super) fn newest(&self, limit: usize) -> Vec<Arrival> {
        self.newest.iter().rev().take(limit).cloned().collect()
    }

    pub(super) fn times(&self) -> &Times {
        &self.times
    }
}

impl Times {
    fn add(&mut self, took: Duration) {
        let secs = took.as_secs_f64();
        if let Some(at) = BOUNDS.iter().position(|bound| secs <= *bound) {
            self.within[at] += 1;
        }
        self.count += 1;
        self.sum += secs;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Oid;

    fn head(seq: u64) -> Head {
        Head { epoch: 1, seq, commit: Oid::from_bytes([u8::try_from(seq % 200).unwrap(); 20]) }
    }

    #[test]
    fn an_arrival_is_timed_from_the_announcement_and_only_for_who_was_there() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let (node, label) = ("n".parse().unwrap(), "eu-1".parse().unwrap());
        let who = Who { node: &node, label: &label, region: None };
        let mut arrivals = Arrivals::default();
        arrivals.announce(at(0), head(1));
        arrivals.announce(at(100), head(2));
        arrivals.announce(at(150), head(2));
        arrivals.arrive(at(130), &who, head(2), Some(at(0)));
        arrivals.arrive(at(400), &who, head(1), None);
        arrivals.arrive(at(500), &who, head(2), Some(at(300)));
        arrivals.arrive(at(500), &who, head(9), None);
        let took: Vec<_> = arrivals.newest(9).iter().map(|it| it.took.as_millis()).collect();
        assert_eq!(
            took,
            [400, 30],
            "the newest first; who came later and what was never announced: not"
        );
        let times = arrivals.times();
        assert_eq!((times.count, times.within[2], times.within[5]), (2, 1, 1));
        assert!((times.sum - 0.43).abs() < 1e-9);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let start = Instant::now();
        let (node, label) = ("n".parse().unwrap(), "eu-1".parse().unwrap());
        let who = Who { node: &node, label: &label, region: None };
        let mut arrivals = Arrivals::default();
        for seq in 0..2_000 {
            arrivals.announce(start, head(seq));
            arrivals.arrive(start, &who, head(seq), None);
        }
        assert_eq!((arrivals.announced.len(), arrivals.newest.len()), (MAX_HEADS, MAX_ARRIVALS));
        assert_eq!(arrivals.times().count, 2_000);
    }
}
