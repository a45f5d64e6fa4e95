//! Who follows a feed here, how far they are, and which of them serves which region.
//!
//! One live node serves a region: the first hello binds it, another one stands by until the bound
//! node has been silent for 20 s. A plain struct that is told the time; nothing here waits or
//! sends. The bindings survive a restart (whoever assembles the node keeps them); the rest is only
//! what was heard. What it comes to for the whole fleet is said in `census` and `sites`.

mod arrivals;
mod census;
mod follower;
mod sites;

pub use arrivals::{Arrival, BOUNDS, Times};
pub use census::Lacking;
pub use follower::{Caller, Distant, Follower, Reach};
pub use sites::{Bar, Part, Site};

use std::{collections::BTreeMap, time::Instant};

use crate::{
    bus::{
        frame::{Ack, Fault, FromFollower, Hello, Outcome, Progress, Pulse, SILENCE, Standing},
        report::Report,
    },
    model::{Binding, Bindings, Head, NodeId, RegionName},
};

/// Followers and regions of one feed that are remembered; each costs a kilobyte or so.
const MAX_FOLLOWERS: usize = 4_096;

/// The followers of one feed.
#[derive(Debug)]
pub struct Roster {
    followers: BTreeMap<NodeId, Follower>,
    bindings: Bindings,
    /// Whether they are other ones than those that were last given out.
    rebound: bool,
    /// Regions that are served below a relay: the relay, and the node there.
    serving_below: BTreeMap<RegionName, (NodeId, NodeId)>,
    parts: sites::Parts,
    arrivals: arrivals::Arrivals,
    started: Instant,
    connections: u64,
}

impl Roster {
    /// Nobody yet, with the bindings that an earlier run kept.
    pub fn new(now: Instant, bindings: Bindings) -> Self {
        Roster {
            followers: BTreeMap::new(),
            bindings,
            rebound: false,
            serving_below: BTreeMap::new(),
            parts: sites::Parts::default(),
            arrivals: arrivals::Arrivals::default(),
            started: now,
            connections: 0,
        }
    }

    /// Takes a hello in: the number of its connection, and what it is to its region. `head` is the
    /// feed's.
    ///
    /// # Errors
    /// When the node is here already with another token, or nobody more can be taken.
    pub fn register(
        &mut self,
        now: Instant,
        caller: Caller,
        head: Option<Head>,
    ) -> Result<(u64, Standing), Fault> {
        let node = caller.hello.node.clone();
        let known = self.followers.get(&node);
        if known.is_some_and(|known| known.is_live(now) && known.token != caller.token) {
            return Err(Fault::WrongToken);
        }
        if known.is_none() {
            self.make_room()?;
        }
        self.connections += 1;
        self.note_part(&caller.hello.paths);
        let standing = self.claim(now, &caller.hello, caller.token.as_ref());
        let greeting = (self.connections, standing);
        let known = self.followers.remove(&node);
        let mut follower = Follower::greeted(now, caller, greeting, known);
        follower.wants(now, head);
        self.followers.insert(node, follower);
        Ok(greeting)
    }

    /// Takes in what a follower says, and says what that is to its region now. None: another hello of
    /// that node has taken the place of this one's, and nothing is changed.
    pub fn take(
        &mut self,
        now: Instant,
        node: &NodeId,
        connection: u64,
        frame: FromFollower,
    ) -> Option<Standing> {
        let standing = self.heard(now, node, connection)?;
        match frame {
            FromFollower::Heartbeat(pulse) => self.pulsed(now, node, &pulse),
            FromFollower::Ack(ack) => self.acked(now, node, ack),
            FromFollower::Progress(progress) => self.progressed(node, progress),
            FromFollower::Below(below) => self.reported(now, node, below.nodes),
            FromFollower::Hello(_) | FromFollower::Unknown => {}
        }
        Some(standing)
    }

    /// Notes a sign of life, and says what the node is to its region now. None: another connection
    /// of that node has taken this one's place.
    pub fn heard(&mut self, now: Instant, node: &NodeId, connection: u64) -> Option<Standing> {
        let follower =
            self.followers.get_mut(node).filter(|known| known.connection == connection)?;
        follower.heard = now;
        // Nobody holds a connection over NATS: who is heard is there.
        follower.connected |= follower.hello.nats;
        if !self.is_bound(node) {
            let follower = self.followers.get(node)?;
            let (hello, token) = (follower.hello.clone(), follower.token.clone());
            let standing = self.claim(now, &hello, token.as_ref());
            self.followers.get_mut(node)?.standing = standing;
        }
        self.followers.get(node).map(|follower| follower.standing)
    }

    /// Whether a follower serves its region, and goes on to.
    fn is_bound(&self, node: &NodeId) -> bool {
        let Some(follower) = self.followers.get(node) else { return false };
        let Some(region) = &follower.hello.region else { return true };
        let bound = self.bindings.get(region);
        let is_its = |bound: &Binding| bound.node == *node && bound.token == follower.token;
        follower.standing == Standing::Serving && bound.is_some_and(is_its)
    }

    /// Notes what a node says that it has.
    pub fn pulsed(&mut self, now: Instant, node: &NodeId, pulse: &Pulse) {
        // It may be heard before the acknowledgement, or in its place.
        self.note_verified(now, node, pulse.have);
        if let Some(follower) = self.followers.get_mut(node) {
            follower.take_pulse(now, pulse);
        }
    }

    /// Notes a report.
    pub fn acked(&mut self, now: Instant, node: &NodeId, ack: Ack) {
        if ack.outcome == Outcome::Verified {
            self.note_verified(now, node, Some(ack.head));
        }
        if let Some(follower) = self.followers.get_mut(node) {
            follower.take_ack(now, ack);
        }
    }

    /// A follower is about to have what it lacked: how long that took.
    fn note_verified(&mut self, now: Instant, node: &NodeId, have: Option<Head>) {
        let (Some(follower), Some(have)) = (self.followers.get(node), have) else { return };
        if follower.have != Some(have) {
            self.arrivals.arrive(now, &follower.who(), have, follower.behind_since);
        }
    }

    /// Notes how far a fetch is.
    pub fn progressed(&mut self, node: &NodeId, progress: Progress) {
        if let Some(follower) = self.followers.get_mut(node) {
            follower.progress = Some(progress);
        }
    }

    /// Notes that a connection is over.
    pub fn gone(&mut self, node: &NodeId, connection: u64) {
        if let Some(follower) = self.followers.get_mut(node)
            && follower.connection == connection
        {
            follower.connected = false;
            follower.progress = None;
        }
    }

    /// Those that speak over NATS and have not been heard for 20 s are no longer there.
    pub fn drop_silent(&mut self, now: Instant) {
        for follower in self.followers.values_mut() {
            let silent = now.saturating_duration_since(follower.heard) >= SILENCE;
            if follower.hello.nats && follower.connected && silent {
                follower.connected = false;
                follower.progress = None;
            }
        }
    }

    /// Notes a new head, which every follower should have from now on.
    pub fn posted(&mut self, now: Instant, head: Head) {
        self.arrivals.announce(now, head);
        for follower in self.followers.values_mut() {
            follower.wants(now, Some(head));
        }
    }

    /// Notes what a relay says of the nodes below it.
    pub fn reported(&mut self, now: Instant, relay: &NodeId, reports: Vec<Report>) {
        for report in reports {
            let Some(known) = self.followers.get_mut(relay) else { return };
            if report.forgotten {
                known.below.remove(&report.node);
            } else if known.below.len() < MAX_FOLLOWERS || known.below.contains_key(&report.node) {
                let before = known.take_report(now, report.clone());
                self.note_arrival(now, before, &report);
                self.note_below(relay, &report);
            }
        }
    }

    /// A node below a relay has another version than before: what it took to get there, as far as it
    /// is seen from here.
    fn note_arrival(&mut self, now: Instant, before: Option<Report>, report: &Report) {
        let (Some(before), Some(have)) = (before, report.have) else { return };
        if before.have != report.have && before.live {
            let Report { node, label, region, .. } = report;
            let who = arrivals::Who { node, label, region: region.as_ref() };
            self.arrivals.arrive(now, &who, have, None);
        }
    }

    /// The last arrivals of versions, the newest first.
    pub fn arrivals(&self, limit: usize) -> Vec<Arrival> {
        self.arrivals.newest(limit)
    }

    /// How long arrivals took.
    pub fn arrival_times(&self) -> &Times {
        self.arrivals.times()
    }

    /// Followers whose address is to be tried: not yet tried, or again.
    pub fn to_reach(&self, again: bool) -> Vec<(NodeId, String)> {
        let wanted = |known: &&Follower| {
            let is_region = known.hello.region.is_some() && known.connected;
            is_region && (again || known.reach == Reach::Untried)
        };
        let address = |known: &Follower| Some((known.hello.node.clone(), known.url.clone()?));
        self.followers.values().filter(wanted).filter_map(address).collect()
    }

    /// Notes whether an address leads to the node; true when that is news.
    pub fn reached(&mut self, node: &NodeId, url: &str, reach: Reach) -> bool {
        let known = self.followers.get_mut(node).filter(|known| known.url.as_deref() == Some(url));
        known.is_some_and(|known| std::mem::replace(&mut known.reach, reach) != known.reach)
    }

    /// Forgets a node and what it was bound to; false when it is not known or still connected.
    pub fn forget(&mut self, node: &NodeId) -> bool {
        if self.followers.get(node).is_some_and(|known| known.connected) {
            return false;
        }
        let known = self.followers.remove(node).is_some();
        let bound = self.bindings.len();
        self.bindings.retain(|_, bound| bound.node != *node);
        let unbound = self.bindings.len() < bound;
        self.rebound |= unbound;
        // Whoever has gone over to a relay, and away from there, is known in both places.
        let below = self.forget_below(node);
        known || unbound || below
    }

    /// Who is away further down may be gone there without a word.
    fn forget_below(&mut self, node: &NodeId) -> bool {
        let is_away = |relay: &Follower| relay.below.get(node).is_some_and(|it| !it.report.live);
        let relays = self.followers.values_mut().filter(|relay| is_away(relay));
        relays.filter_map(|relay| relay.below.remove(node)).count() > 0
    }

    /// One that is known.
    pub fn follower(&self, node: &NodeId) -> Option<&Follower> {
        self.followers.get(node)
    }

    /// All that are known.
    pub fn followers(&self) -> impl ExactSizeIterator<Item = &Follower> {
        self.followers.values()
    }

    /// Which node serves which region.
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
    }

    /// The bindings, where they are other ones than when this was last asked.
    pub fn take_rebound(&mut self) -> Option<&Bindings> {
        std::mem::take(&mut self.rebound).then_some(&self.bindings)
    }

    fn claim(&mut self, now: Instant, hello: &Hello, token: Option<&String>) -> Standing {
        let Some(region) = &hello.region else { return Standing::Mirror };
        let wish = Binding { node: hello.node.clone(), token: token.cloned() };
        match self.bindings.get(region) {
            Some(bound) if *bound == wish => Standing::Serving,
            Some(bound) if bound.node != wish.node && self.may_live(now, &bound.node) => {
                Standing::Standby
            }
            None if self.bindings.len() >= MAX_FOLLOWERS => Standing::Standby,
            _ => {
                self.bindings.insert(region.clone(), wish);
                self.rebound = true;
                Standing::Serving
            }
        }
    }

    /// After a restart nobody has been heard yet, which is not the same as being silent.
    fn may_live(&self, now: Instant, node: &NodeId) -> bool {
        match self.followers.get(node) {
            Some(known) => known.is_live(now),
            None => now.saturating_duration_since(self.started) < SILENCE,
        }
    }

    fn make_room(&mut self) -> Result<(), Fault> {
        if self.followers.len() < MAX_FOLLOWERS {
            return Ok(());
        }
        let absent = self.followers.values().filter(|known| !known.connected);
        let oldest = absent.min_by_key(|known| known.heard).ok_or(Fault::Full)?;
        let node = oldest.hello.node.clone();
        self.followers.remove(&node);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
