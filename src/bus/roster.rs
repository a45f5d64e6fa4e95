//! Who follows a feed here, how far they are, and which of them serves which region.
//!
//! One live node serves a region: the first hello binds it, another one stands by until the bound
//! node has been silent for 20 s. A plain struct that is told the time; nothing here waits or
//! sends. The bindings survive a restart (whoever assembles the node keeps them); the rest is only
//! what was heard.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    bus::frame::{Ack, Fault, Hello, Outcome, Progress, Pulse, Standing},
    model::{Binding, Bindings, Head, NodeId, RegionName, Step},
};

/// A node that was not heard for this long is taken for dead: four heartbeats.
pub const SILENCE: Duration = Duration::from_secs(20);
/// Followers and regions of one feed that are remembered; each costs a kilobyte or so.
const MAX_FOLLOWERS: usize = 4_096;

/// A follower that has just said hello.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its first frame.
    pub hello: Hello,
    /// Where others reach it.
    pub url: Option<String>,
    /// The id of the token that it showed.
    pub token: Option<String>,
}

/// A node that follows this feed here, as last heard.
#[derive(Debug, Clone)]
pub struct Follower {
    /// Its first frame.
    pub hello: Hello,
    /// Where others reach it.
    pub url: Option<String>,
    /// The id of the token that it showed.
    pub token: Option<String>,
    /// Whether a connection is open.
    pub connected: bool,
    /// When a frame last came from it.
    pub heard: Instant,
    /// What it is to its region.
    pub standing: Standing,
    /// The head that it should have.
    pub want: Option<Head>,
    /// What it has verified in its directory.
    pub have: Option<Head>,
    /// What its store holds.
    pub fetched: Option<Head>,
    /// Its last report.
    pub last_ack: Option<Ack>,
    /// When it last reported a head as verified.
    pub verified_at: Option<Instant>,
    /// How far its fetch is; none when it is not fetching.
    pub progress: Option<Progress>,
    /// Since when it lacks what it should have.
    pub behind_since: Option<Instant>,
    /// Which of its connections counts.
    connection: u64,
}

/// The node to which a region's clients are led.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionNode {
    /// Its identity.
    pub node: NodeId,
    /// Where clients reach it.
    pub url: String,
    /// What it has verified in its directory.
    pub have: Option<Head>,
    /// What its store holds, and so can serve.
    pub fetched: Option<Head>,
}

/// The followers of one feed.
#[derive(Debug)]
pub struct Roster {
    followers: BTreeMap<NodeId, Follower>,
    bindings: Bindings,
    started: Instant,
    connections: u64,
}

impl Follower {
    /// Whether it is there: connected, or heard within 20 s.
    pub fn is_live(&self, now: Instant) -> bool {
        self.connected || now.saturating_duration_since(self.heard) < SILENCE
    }

    /// For how long it has lacked what it should have; zero when it has it.
    pub fn lag(&self, now: Instant) -> Duration {
        self.behind_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    fn wants(&mut self, now: Instant, want: Option<Head>) {
        self.want = want;
        if self.have == want {
            self.behind_since = None;
        } else {
            self.behind_since.get_or_insert(now);
        }
    }
}

impl Roster {
    /// Nobody yet, with the bindings that an earlier run kept.
    pub fn new(now: Instant, bindings: Bindings) -> Self {
        Roster { followers: BTreeMap::new(), bindings, started: now, connections: 0 }
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
        let Caller { hello, url, token } = caller;
        let known = self.followers.get(&hello.node);
        if known.is_some_and(|known| known.is_live(now) && known.token != token) {
            return Err(Fault::WrongToken);
        }
        if known.is_none() {
            self.make_room()?;
        }
        self.connections += 1;
        let connection = self.connections;
        let standing = self.claim(now, &hello, token.as_ref());
        let mut follower = Follower {
            url,
            token,
            connected: true,
            heard: now,
            standing,
            want: None,
            have: hello.have,
            fetched: hello.fetched,
            last_ack: known_ack(&self.followers, &hello.node),
            verified_at: None,
            progress: None,
            behind_since: None,
            connection,
            hello,
        };
        follower.wants(now, head);
        self.followers.insert(follower.hello.node.clone(), follower);
        Ok((connection, standing))
    }

    /// Notes a sign of life, and says what the node is to its region now. None: another connection
    /// of that node has taken this one's place.
    pub fn heard(
        &mut self,
        now: Instant,
        node: &NodeId,
        connection: u64,
        pulse: Option<&Pulse>,
    ) -> Option<Standing> {
        let follower =
            self.followers.get_mut(node).filter(|known| known.connection == connection)?;
        follower.heard = now;
        if let Some(pulse) = pulse {
            follower.have = pulse.have;
            follower.fetched = pulse.fetched;
            follower.wants(now, follower.want);
        }
        let (hello, token) = (follower.hello.clone(), follower.token.clone());
        let standing = self.claim(now, &hello, token.as_ref());
        if let Some(follower) = self.followers.get_mut(node) {
            follower.standing = standing;
        }
        Some(standing)
    }

    /// Notes a report.
    pub fn acked(&mut self, now: Instant, node: &NodeId, ack: Ack) {
        let Some(follower) = self.followers.get_mut(node) else { return };
        if ack.outcome == Outcome::Verified {
            follower.have = Some(ack.head);
            follower.fetched = Some(newer(follower.fetched, ack.head));
            follower.verified_at = Some(now);
            follower.progress = None;
            follower.wants(now, follower.want);
        }
        follower.last_ack = Some(ack);
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

    /// Notes a new head, which every follower should have from now on.
    pub fn posted(&mut self, now: Instant, head: Head) {
        for follower in self.followers.values_mut() {
            follower.wants(now, Some(head));
        }
    }

    /// Forgets a node and what it was bound to; false when it is not known or still connected.
    pub fn forget(&mut self, node: &NodeId) -> bool {
        if self.followers.get(node).is_none_or(|known| known.connected) {
            return false;
        }
        self.followers.remove(node);
        self.bindings.retain(|_, bound| bound.node != *node);
        true
    }

    /// The live node that serves a region, where its address is known.
    pub fn region_node(&self, now: Instant, region: &RegionName) -> Option<RegionNode> {
        let bound = self.bindings.get(region)?;
        let follower = self.followers.get(&bound.node).filter(|known| known.is_live(now))?;
        let node = bound.node.clone();
        let url = follower.url.clone()?;
        Some(RegionNode { node, url, have: follower.have, fetched: follower.fetched })
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

    /// All that are known.
    pub fn followers(&self) -> impl Iterator<Item = &Follower> {
        self.followers.values()
    }

    /// Which node serves which region.
    pub fn bindings(&self) -> &Bindings {
        &self.bindings
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

fn known_ack(followers: &BTreeMap<NodeId, Follower>, node: &NodeId) -> Option<Ack> {
    followers.get(node).and_then(|known| known.last_ack.clone())
}

fn newer(known: Option<Head>, head: Head) -> Head {
    match known {
        Some(known) if (known.epoch, known.seq) > (head.epoch, head.seq) => known,
        _ => head,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Oid;

    fn head(epoch: u64, seq: u64) -> Head {
        Head { epoch, seq, commit: Oid::from_bytes([u8::try_from(seq).unwrap(); 20]) }
    }

    fn caller(node: &str, region: Option<&str>) -> Caller {
        let hello = Hello {
            protocol: 1,
            node: node.parse().unwrap(),
            label: node.parse().unwrap(),
            region: region.map(|name| name.parse().unwrap()),
            url: None,
            port: None,
            have: None,
            fetched: None,
        };
        Caller { hello, url: Some(format!("http://{node}")), token: None }
    }

    fn at(start: Instant, secs: u64) -> Instant {
        start + Duration::from_secs(secs)
    }

    #[test]
    fn the_first_hello_serves_and_the_second_stands_by_until_silence() {
        let start = Instant::now();
        let eu: RegionName = "eu".parse().unwrap();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let mut roster = Roster::new(start, Bindings::default());
        let (first, standing) = roster.register(start, caller("a", Some("eu")), None).unwrap();
        assert_eq!(standing, Standing::Serving);
        let (second, standing) = roster.register(start, caller("b", Some("eu")), None).unwrap();
        assert_eq!(standing, Standing::Standby);
        assert_eq!(roster.region_node(start, &eu).unwrap().url, "http://a");

        roster.heard(at(start, 10), &a, first, None).unwrap();
        roster.gone(&a, first);
        assert_eq!(roster.heard(at(start, 29), &b, second, None), Some(Standing::Standby));
        assert_eq!(roster.heard(at(start, 30), &b, second, None), Some(Standing::Serving));
        assert_eq!(roster.region_node(at(start, 30), &eu).unwrap().url, "http://b");
        let (_, standing) = roster.register(at(start, 31), caller("a", Some("eu")), None).unwrap();
        assert_eq!(standing, Standing::Standby, "what was taken over stays with the new node");
    }

    #[test]
    fn a_restart_is_not_silence() {
        let start = Instant::now();
        let mut roster = Roster::new(start, Bindings::default());
        roster.register(start, caller("a", Some("eu")), None).unwrap();
        let mut roster = Roster::new(start, roster.bindings().clone());
        let (_, standing) = roster.register(at(start, 1), caller("b", Some("eu")), None).unwrap();
        assert_eq!(standing, Standing::Standby);
        let (_, standing) = roster.register(at(start, 2), caller("a", Some("eu")), None).unwrap();
        assert_eq!(standing, Standing::Serving);
    }

    #[test]
    fn a_new_connection_of_a_node_replaces_the_old_one() {
        let start = Instant::now();
        let a = "a".parse().unwrap();
        let mut roster = Roster::new(start, Bindings::default());
        let (old, _) = roster.register(start, caller("a", Some("eu")), None).unwrap();
        let (new, standing) = roster.register(start, caller("a", Some("eu")), None).unwrap();
        assert_eq!(standing, Standing::Serving);
        assert_eq!(roster.heard(start, &a, old, None), None);
        roster.gone(&a, old);
        assert!(roster.followers().all(|known| known.connected));
        assert!(roster.heard(start, &a, new, None).is_some());
        let thief = Caller { token: Some("other".to_owned()), ..caller("a", Some("eu")) };
        assert_eq!(roster.register(start, thief, None).unwrap_err(), Fault::WrongToken);
    }

    #[test]
    fn lag_runs_from_the_first_head_that_is_lacking() {
        let start = Instant::now();
        let a = "a".parse().unwrap();
        let mut roster = Roster::new(start, Bindings::default());
        roster.register(start, caller("a", None), None).unwrap();
        roster.posted(at(start, 1), head(1, 1));
        roster.posted(at(start, 3), head(1, 2));
        let lag = |roster: &Roster, now| roster.followers().next().unwrap().lag(now).as_secs();
        assert_eq!(lag(&roster, at(start, 4)), 3);
        roster.acked(at(start, 5), &a, Ack::new(head(1, 1), Outcome::Verified, 1, None));
        assert_eq!(lag(&roster, at(start, 5)), 4);
        roster.acked(at(start, 6), &a, Ack::new(head(1, 2), Outcome::Verified, 1, None));
        assert_eq!(lag(&roster, at(start, 9)), 0);
    }

    #[test]
    fn a_follower_ahead_is_seen() {
        let start = Instant::now();
        let mut roster = Roster::new(start, Bindings::default());
        let mut ahead = caller("a", None);
        ahead.hello.fetched = Some(head(2, 5));
        roster.register(start, ahead, None).unwrap();
        for (mine, seen) in [
            (None, true),
            (Some(head(2, 4)), true),
            (Some(head(2, 5)), false),
            (Some(head(3, 1)), false),
        ] {
            assert_eq!(roster.ahead_of(start, mine.as_ref()).is_some(), seen, "{mine:?}");
        }
    }

    #[test]
    fn the_number_of_followers_is_bounded() {
        let start = Instant::now();
        let mut roster = Roster::new(start, Bindings::default());
        for n in 0..MAX_FOLLOWERS {
            roster.register(start, caller(&format!("n{n}"), None), None).unwrap();
        }
        assert_eq!(roster.register(start, caller("late", None), None).unwrap_err(), Fault::Full);
        let node = "n7".parse().unwrap();
        let connection = roster.followers[&node].connection;
        roster.gone(&node, connection);
        assert!(roster.register(start, caller("late", None), None).is_ok());
        assert_eq!(roster.followers().count(), MAX_FOLLOWERS);
    }
}
