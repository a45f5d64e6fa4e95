//! What a relay has told its upstream of the nodes below it, and what it has not told yet.
//!
//! Told the time and what is known; says when something is to be sent. Only differences are sent, a
//! little late, so that a hundred acknowledgements make one frame.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    bus::report::{Below, REPORTS_PER_FRAME, Report},
    model::NodeId,
};

/// How long changes are gathered.
const GATHER: Duration = Duration::from_millis(50);
/// How soon what could not be sent is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The reports of one mirror.
#[derive(Debug)]
pub(super) struct Reports {
    own: NodeId,
    told: BTreeMap<NodeId, Report>,
    due: Option<Instant>,
}

impl Reports {
    /// Of this node; nothing is told yet.
    pub(super) fn new(own: NodeId) -> Self {
        Reports { own, told: BTreeMap::new(), due: None }
    }

    /// When something is to be sent.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Something may have changed.
    pub(super) fn changed(&mut self, now: Instant) {
        self.due.get_or_insert(now + GATHER);
    }

    /// A new connection: the other end may know nothing.
    pub(super) fn begin_again(&mut self, now: Instant) {
        self.told.clear();
        self.due = Some(now + GATHER);
    }

    /// There is nobody to tell.
    pub(super) fn wait(&mut self) {
        self.due = None;
    }

    /// Sends what differs from what was told, as far as `send` takes it.
    pub(super) fn send(
        &mut self,
        now: Instant,
        reports: Vec<Report>,
        send: impl Fn(Below) -> bool,
    ) {
        self.due = None;
        let known: BTreeMap<NodeId, Report> = reports
            .into_iter()
            .filter(|report| report.node != self.own)
            .map(|report| (report.node.clone(), report))
            .collect();
        let gone = self.told.values().filter(|told| !known.contains_key(&told.node));
        let gone = gone.map(|told| Report { forgotten: true, ..told.clone() });
        let news = known.values().filter(|report| self.told.get(&report.node) != Some(*report));
        let news: Vec<Report> = gone.chain(news.cloned()).collect();
        for nodes in news.chunks(REPORTS_PER_FRAME) {
            if !send(Below { nodes: nodes.to_vec() }) {
                self.due = Some(now + AGAIN);
                return;
            }
            for report in nodes {
                if report.forgotten {
                    self.told.remove(&report.node);
                } else {
                    self.told.insert(report.node.clone(), report.clone());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::bus::{Caller, frame::Hello, roster::Roster};

    fn reports(nodes: &[&str]) -> Vec<Report> {
        let now = Instant::now();
        let mut roster = Roster::new(now, std::collections::BTreeMap::default());
        for node in nodes {
            let hello = Hello::of(node.parse().unwrap(), node.parse().unwrap());
            roster.register(now, Caller { hello, url: None, token: None }, None).unwrap();
        }
        roster.reports(now, &"relay".parse().unwrap(), &[])
    }

    #[test]
    fn only_what_differs_is_sent_and_what_is_refused_comes_again() {
        let now = Instant::now();
        let mut told = Reports::new("relay".parse().unwrap());
        let sent = RefCell::new(Vec::new());
        let take = |below: Below| {
            sent.borrow_mut().extend(below.nodes.into_iter().map(|it| (it.node, it.forgotten)));
            true
        };
        told.changed(now);
        assert_eq!(told.deadline(), Some(now + GATHER));
        told.send(now, reports(&["a", "b", "relay"]), take);
        assert_eq!((sent.take().len(), told.deadline()), (2, None));
        told.send(now, reports(&["a", "b"]), take);
        assert_eq!(sent.take(), []);
        told.send(now, reports(&["b"]), |_| false);
        assert_eq!(told.deadline(), Some(now + AGAIN));
        told.send(now, reports(&["b"]), take);
        assert_eq!(sent.take(), [("a".parse().unwrap(), true)]);
        told.begin_again(now);
        told.send(now, reports(&["b"]), take);
        assert_eq!(sent.take(), [("b".parse().unwrap(), false)]);
    }
}
