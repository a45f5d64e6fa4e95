//! What is said of all followers together: who has a head, who is lost, who is ahead of us.
//!
//! Everything is worked out from what was heard, at the instant that is asked about; nothing is
//! changed. Regions that are known count while they are away too.

use std::{
    collections::BTreeMap,
    ops::Bound,
    time::{Duration, Instant},
};

use super::{Distant, Follower, Roster};
use crate::{
    bus::{
        fleet::{Member, Verdict},
        frame::{SILENCE, Standing},
        report::Report,
    },
    model::{Head, NodeId, RegionName, Step, Target},
};

/// Somebody who lacks a head: as long as it does, nobody else need be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lacking {
    /// A follower, or one below it.
    At(NodeId),
    /// A region whose node was not heard since this one started.
    Unheard(RegionName),
}

impl Roster {
    /// Who has verified a head: every region that is known, here and through relays.
    pub fn verdict(&self, now: Instant, head: &Head, paused: &[Target]) -> Verdict {
        let mut verdict = Verdict::default();
        for follower in self.followers.values() {
            if self.counts(now, follower) {
                let excuse = follower.excuse(paused);
                verdict.add(follower.member(now), follower.have.as_ref(), head, excuse);
            }
            let held_up = follower.holds_up(paused);
            for distant in self.counted_below(now, follower) {
                let excuse = distant.excuse().or_else(|| held_up.clone());
                let live = distant.report.live && follower.is_live(now);
                verdict.add(distant.member(live), distant.report.have.as_ref(), head, excuse);
            }
        }
        verdict.lacking.extend(self.unheard());
        verdict
    }

    /// Somebody who lacks a head, if anybody does: `last`, while it still does, else one behind it.
    /// Whoever waits for all of them looks at each about once, however many acknowledgements come.
    pub fn lacking(
        &self,
        now: Instant,
        head: &Head,
        paused: &[Target],
        last: Option<&Lacking>,
    ) -> Option<Lacking> {
        let is_unheard = |region: &RegionName| {
            self.bindings.get(region).is_some_and(|bound| !self.is_known(&bound.node))
        };
        let lacks = |follower: &Follower| {
            let held_up = || follower.holds_up(paused).is_some();
            let mut below = self.counted_below(now, follower);
            (follower.lacks(head, paused) && self.counts(now, follower))
                || below.any(|distant| distant.lacks(head) && !held_up())
        };
        let from = match last {
            Some(Lacking::Unheard(region)) if is_unheard(region) => return last.cloned(),
            Some(Lacking::At(node)) if self.followers.get(node).is_some_and(lacks) => {
                return last.cloned();
            }
            Some(Lacking::At(node)) => Bound::Excluded(node),
            Some(Lacking::Unheard(_)) | None => Bound::Unbounded,
        };
        let behind = self.followers.range::<NodeId, _>((from, Bound::Unbounded));
        let found = behind.chain(&self.followers).find(|(_, follower)| lacks(follower));
        let unheard = || self.bindings.keys().find(|region| is_unheard(region));
        let at = found.map(|(node, _)| Lacking::At(node.clone()));
        at.or_else(|| unheard().cloned().map(Lacking::Unheard))
    }

    /// Regions that are not heard any more or have lacked the head for longer than `limit`.
    pub fn stale(
        &self,
        now: Instant,
        head: &Head,
        paused: &[Target],
        limit: Duration,
    ) -> Vec<String> {
        let up = now.saturating_duration_since(self.started) > SILENCE;
        let mut stale: BTreeMap<NodeId, Member> = BTreeMap::new();
        for follower in self.followers.values() {
            let live = follower.is_live(now);
            let lacks = follower.lacks(head, paused);
            // A region that has the newest version and is silent is lost all the same.
            let is_lost = !live && (follower.standing == Standing::Serving || lacks);
            let is_late = lacks && follower.lag(now) > limit;
            if (is_late || is_lost) && self.counts(now, follower) {
                stale.insert(follower.hello.node.clone(), follower.member(now));
            }
            let held_up = follower.holds_up(paused).is_some();
            let lacking = self.counted_below(now, follower).filter(|it| !held_up && it.lacks(head));
            for distant in lacking {
                let live = live && distant.report.live;
                if distant.lag(now) > limit || (!live && up) {
                    stale.insert(distant.report.node.clone(), distant.member(live));
                }
            }
        }
        if up {
            stale.extend(self.unheard().map(|member| (member.node.clone(), member)));
        }
        let name = |member: &Member| match &member.region {
            Some(region) => format!("{region}: {}", member.why),
            None => format!("{}: {}", member.node, member.why),
        };
        stale.values().map(name).collect()
    }

    /// Known from before a restart, and not heard since.
    fn unheard(&self) -> impl Iterator<Item = Member> {
        let unheard = self.bindings.iter().filter(|(_, bound)| !self.is_known(&bound.node));
        unheard.map(|(region, bound)| Member {
            region: Some(region.clone()),
            node: bound.node.clone(),
            label: None,
            why: "not heard since this node started".to_owned(),
        })
    }

    /// Whether a follower counts where it follows us: one that has gone over to a relay of ours is
    /// counted there.
    fn counts(&self, now: Instant, follower: &Follower) -> bool {
        follower.is_live(now) || !self.is_live_below(now, &follower.hello.node)
    }

    /// Those below a follower that count there: who has come to us, or lives below another one, does not.
    fn counted_below<'a>(
        &'a self,
        now: Instant,
        relay: &'a Follower,
    ) -> impl Iterator<Item = &'a Distant> {
        let live = relay.is_live(now);
        relay.below.values().filter(move |distant| {
            let node = &distant.report.node;
            match self.followers.get(node) {
                Some(here) => live && distant.report.live && !here.is_live(now),
                None => (live && distant.report.live) || !self.is_live_below(now, node),
            }
        })
    }

    /// Whether a node lives further down.
    pub(super) fn is_live_below(&self, now: Instant, node: &NodeId) -> bool {
        let holds = |relay: &Follower| relay.below.get(node).is_some_and(|it| it.report.live);
        self.followers.values().any(|relay| holds(relay) && relay.is_live(now))
    }

    /// Whether a node follows here, or further down.
    fn is_known(&self, node: &NodeId) -> bool {
        let is_below = |follower: &Follower| follower.below.contains_key(node);
        self.followers.contains_key(node) || self.followers.values().any(is_below)
    }

    /// What this node, `own`, has to tell of all below it.
    pub fn reports(&self, now: Instant, own: &NodeId, paused: &[Target]) -> Vec<Report> {
        let of = |follower: &Follower| {
            let report = Report::of(follower, own, follower.is_live(now), follower.excuse(paused));
            Report { paused: report.paused || follower.is_paused(paused), ..report }
        };
        let below = self.followers.values().flat_map(|follower| {
            let live = follower.is_live(now);
            let held_up = follower.holds_up(paused);
            self.counted_below(now, follower).map(move |Distant { report, .. }| Report {
                // Who is below a node that is away has not been heard either.
                live: report.live && live,
                waits: report.waits.clone().or_else(|| held_up.clone()),
                paused: report.paused || held_up.is_some(),
                ..report.clone()
            })
        });
        let here = self.followers.values().filter(|follower| self.counts(now, follower));
        here.map(of).chain(below).collect()
    }

    /// A live follower that is ahead of `head` or on another line: a sign that this node was
    /// restored from a backup, or that another primary writes.
    pub fn ahead_of(&self, now: Instant, head: Option<&Head>) -> Option<&Follower> {
        let is_ahead = |have: &Head| match head {
            None => true,
            Some(head) => matches!(head.step_from(Some(have)), Step::Behind | Step::Split),
        };
        let mut live = self.followers.values().filter(|known| known.is_live(now));
        live.find(|known| known.fetched.as_ref().is_some_and(is_ahead))
    }

    /// The highest epoch that anybody below has.
    pub fn highest_epoch(&self) -> u64 {
        let heads = self.followers.values().flat_map(|follower| {
            let below = follower.below.values().map(|distant| &distant.report);
            let below = below.flat_map(|report| [report.have, report.fetched]);
            [follower.have, follower.fetched].into_iter().chain(below)
        });
        heads.flatten().map(|head| head.epoch).max().unwrap_or(0)
    }

    /// The regions that a follower stands for, itself and through those below it; each once.
    pub fn regions_at(&self, node: &NodeId) -> Vec<RegionName> {
        let Some(known) = self.followers.get(node) else { return Vec::new() };
        let below = known.below.values().filter_map(|distant| distant.report.region.clone());
        let mut regions: Vec<_> = known.hello.region.clone().into_iter().chain(below).collect();
        regions.sort_unstable();
        regions.dedup();
        regions
    }
}
