//! Who follows a feed here, how far they are, and which of them serves which region.
//!
//! One live node serves a region: the first hello binds it, another one stands by until the bound
//! node has been silent for 20 s. A plain struct that is told the time; nothing here waits or
//! sends. The bindings survive a restart (whoever assembles the node keeps them); the rest is only
//! what was heard.

mod arrivals;
mod sites;

pub use arrivals::{Arrival, BOUNDS, Times};
pub use sites::{Bar, Part, Site};

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    bus::{
        fleet::{Excuse, Member, Verdict},
        frame::{Ack, Fault, Hello, Outcome, Progress, Pulse, Standing},
        report::Report,
    },
    model::{Binding, Bindings, Head, NodeId, RegionName, Step, Target},
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
    /// Why it does not move on though nothing is wrong, in its own words.
    pub waits: Option<String>,
    /// Whether it has been paused at its own end.
    pub paused_there: bool,
    /// Whether its address leads to it.
    pub reach: Reach,
    /// What it says of the nodes below it.
    pub below: BTreeMap<NodeId, Report>,
    /// Its last failure, until that is mended.
    failure: Option<String>,
    /// Which of its connections counts.
    connection: u64,
}

/// Whether the address that a node advertises leads to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Reach {
    /// Not tried yet.
    #[default]
    Untried,
    /// It does.
    Reached,
    /// It does not, and why.
    Unreachable(String),
}

/// The followers of one feed.
#[derive(Debug)]
pub struct Roster {
    followers: BTreeMap<NodeId, Follower>,
    bindings: Bindings,
    /// Regions that are served below a relay: the relay, and the node there.
    serving_below: BTreeMap<RegionName, (NodeId, NodeId)>,
    parts: sites::Parts,
    arrivals: arrivals::Arrivals,
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

    /// Its last failure, until that is mended.
    pub fn error(&self) -> Option<&str> {
        let refused = self.last_ack.as_ref().filter(|ack| ack.outcome != Outcome::Verified);
        let refused = refused.and_then(|ack| ack.error.as_deref());
        self.failure.as_deref().or(refused)
    }

    /// Why nobody waits for it.
    fn excuse(&self, paused: &[Target]) -> Option<String> {
        let hello = &self.hello;
        if paused.iter().any(|target| target.is_about(&hello.node, hello.region.as_ref())) {
            return Some("it is paused".to_owned());
        }
        excuse(self.standing, self.waits.as_ref())
    }

    /// Why those below it cannot have what it should have: it chose to stay where it is, and has not
    /// fetched it.
    fn holds_up(&self, paused: &[Target]) -> Option<String> {
        if self.fetched == self.want {
            return None;
        }
        let (node, region) = (&self.hello.node, self.hello.region.as_ref());
        let is_paused = paused.iter().any(|target| target.is_about(node, region));
        let why = if is_paused { Some("it is paused") } else { self.waits.as_deref() };
        why.map(|why| format!("it is below {}: {why}", self.hello.label))
    }

    fn who(&self) -> arrivals::Who<'_> {
        let hello = &self.hello;
        arrivals::Who { node: &hello.node, label: &hello.label, region: hello.region.as_ref() }
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
        Roster {
            followers: BTreeMap::new(),
            bindings,
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
        let Caller { hello, url, token } = caller;
        let known = self.followers.get(&hello.node);
        if known.is_some_and(|known| known.is_live(now) && known.token != token) {
            return Err(Fault::WrongToken);
        }
        if known.is_none() {
            self.make_room()?;
        }
        self.connections += 1;
        self.parts.note(&hello.paths);
        let connection = self.connections;
        let standing = self.claim(now, &hello, token.as_ref());
        let known = self.followers.remove(&hello.node);
        // What was found out of it stays true while its address is the same.
        let same = known.as_ref().filter(|known| known.url == url);
        let reach = same.map(|known| known.reach.clone()).unwrap_or_default();
        let behind_since = known.as_ref().and_then(|known| known.behind_since);
        let (last_ack, verified_at, below) =
            known.map(|known| (known.last_ack, known.verified_at, known.below)).unwrap_or_default();
        let mut follower = Follower {
            url,
            token,
            connected: true,
            heard: now,
            standing,
            want: None,
            have: hello.have,
            fetched: hello.fetched,
            last_ack,
            verified_at,
            progress: None,
            behind_since,
            waits: None,
            paused_there: false,
            reach,
            below,
            failure: None,
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
        // Nobody holds a connection over NATS: who is heard is there.
        follower.connected |= follower.hello.nats;
        if let Some(pulse) = pulse {
            follower.have = pulse.have;
            follower.fetched = pulse.fetched;
            follower.waits.clone_from(&pulse.waits);
            follower.paused_there = pulse.paused;
            follower.failure.clone_from(&pulse.error);
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
            if follower.have != Some(ack.head) {
                self.arrivals.arrive(now, &follower.who(), ack.head, follower.behind_since);
            }
            follower.have = Some(ack.head);
            follower.fetched = Some(newer(follower.fetched, ack.head));
            follower.verified_at = Some(now);
            follower.progress = None;
            follower.failure = None;
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
                let before = known.below.insert(report.node.clone(), report.clone());
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

    /// What this node, `own`, has to tell of all below it.
    pub fn reports(&self, now: Instant, own: &NodeId, paused: &[Target]) -> Vec<Report> {
        let of = |follower: &Follower| {
            let (node, region) = (&follower.hello.node, follower.hello.region.as_ref());
            let report = Report::of(follower, own, follower.is_live(now), follower.excuse(paused));
            let is_paused = paused.iter().any(|target| target.is_about(node, region));
            Report { paused: report.paused || is_paused, ..report }
        };
        let below = self.followers.values().flat_map(|follower| {
            let live = follower.is_live(now);
            let held_up = follower.holds_up(paused);
            follower.below.values().map(move |report| Report {
                // Who is below a node that is away has not been heard either.
                live: report.live && live,
                waits: report.waits.clone().or_else(|| held_up.clone()),
                paused: report.paused || held_up.is_some(),
                ..report.clone()
            })
        });
        self.followers.values().map(of).chain(below).collect()
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
        known || self.bindings.len() < bound
    }

    /// Who has verified a head: every region that is known, here and through relays.
    pub fn verdict(&self, now: Instant, head: &Head, paused: &[Target]) -> Verdict {
        let mut verdict = Verdict::default();
        for follower in self.followers.values() {
            let excuse = follower.excuse(paused).map_or(Excuse::None, Excuse::Because);
            verdict.add(follower.member(now), follower.have.as_ref(), head, excuse);
            let held_up = follower.holds_up(paused);
            for report in follower.below.values() {
                let excuse = excuse_of(report).or_else(|| held_up.clone());
                let excuse = excuse.map_or(Excuse::None, Excuse::Because);
                let live = report.live && follower.is_live(now);
                verdict.add(member_of(report, live), report.have.as_ref(), head, excuse);
            }
        }
        // Known from before a restart, and not heard since.
        for (region, bound) in &self.bindings {
            if !self.followers.contains_key(&bound.node) {
                let why = "not heard since this node started".to_owned();
                let (region, node) = (Some(region.clone()), bound.node.clone());
                verdict.lacking.push(Member { region, node, label: None, why });
            }
        }
        verdict
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

    /// Regions that are not heard any more or have lacked the head for longer than `limit`.
    pub fn stale(
        &self,
        now: Instant,
        head: &Head,
        paused: &[Target],
        limit: Duration,
    ) -> Vec<String> {
        let up = now.saturating_duration_since(self.started);
        let is_stale = |node: &NodeId| match self.followers.get(node) {
            Some(known) => !known.is_live(now) || known.lag(now) > limit,
            None => self.below(node).is_none_or(|below| !below.live) && up > SILENCE,
        };
        let verdict = self.verdict(now, head, paused);
        // A region that has the newest version and is silent is lost all the same.
        let silent = self
            .followers
            .values()
            .filter(|known| known.standing == Standing::Serving && !known.is_live(now));
        let silent = silent.map(|known| known.member(now));
        let lacking = verdict.lacking.into_iter().filter(|member| is_stale(&member.node));
        let mut named: BTreeMap<NodeId, Member> = BTreeMap::new();
        named.extend(lacking.chain(silent).map(|member| (member.node.clone(), member)));
        let name = |member: &Member| match &member.region {
            Some(region) => format!("{region}: {}", member.why),
            None => format!("{}: {}", member.node, member.why),
        };
        named.values().map(name).collect()
    }

    /// The regions that a follower stands for, itself and through those below it; each once.
    pub fn regions_at(&self, node: &NodeId) -> Vec<RegionName> {
        let Some(known) = self.followers.get(node) else { return Vec::new() };
        let below = known.below.values().filter_map(|report| report.region.clone());
        let mut regions: Vec<_> = known.hello.region.clone().into_iter().chain(below).collect();
        regions.sort_unstable();
        regions.dedup();
        regions
    }

    fn below(&self, node: &NodeId) -> Option<&Report> {
        self.followers.values().find_map(|known| known.below.get(node))
    }

    /// The highest epoch that anybody below has.
    pub fn highest_epoch(&self) -> u64 {
        let heads = self.followers.values().flat_map(|follower| {
            let below = follower.below.values().flat_map(|report| [report.have, report.fetched]);
            [follower.have, follower.fetched].into_iter().chain(below)
        });
        heads.flatten().map(|head| head.epoch).max().unwrap_or(0)
    }

    /// One that is known.
    pub fn follower(&self, node: &NodeId) -> Option<&Follower> {
        self.followers.get(node)
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

impl Follower {
    fn member(&self, now: Instant) -> Member {
        let away = now.saturating_duration_since(self.heard).as_secs();
        let why = match self.error() {
            _ if !self.is_live(now) => format!("away for {away} s"),
            Some(error) => error.to_owned(),
            None if self.have.is_none() => "has nothing yet".to_owned(),
            None => "is behind".to_owned(),
        };
        let hello = &self.hello;
        let (region, node) = (hello.region.clone(), hello.node.clone());
        Member { region, node, label: Some(hello.label.clone()), why }
    }
}

fn member_of(report: &Report, live: bool) -> Member {
    let why = match &report.error {
        _ if !live => format!("away, below {}", report.via),
        Some(error) => error.clone(),
        None => format!("is behind, below {}", report.via),
    };
    let (region, node) = (report.region.clone(), report.node.clone());
    Member { region, node, label: Some(report.label.clone()), why }
}

fn excuse_of(report: &Report) -> Option<String> {
    excuse(report.standing, report.waits.as_ref())
}

/// Whoever stands by, or serves no region, or waits by somebody's wish, is not waited for.
fn excuse(standing: Standing, waits: Option<&String>) -> Option<String> {
    match standing {
        _ if waits.is_some() => waits.cloned(),
        Standing::Standby => Some("it stands by".to_owned()),
        Standing::Mirror => Some("it serves no region".to_owned()),
        Standing::Serving => None,
    }
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
            region: region.map(|name| name.parse().unwrap()),
            ..Hello::of(node.parse().unwrap(), node.parse().unwrap())
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
        let led_to = |roster: &Roster, now| {
            let site = roster.sites_of(now, &eu, &[]).remove(0);
            site.bar.is_none().then_some(site.url)
        };
        assert_eq!(led_to(&roster, start), None, "its address was not tried yet");
        assert!(roster.reached(&a, "http://a", Reach::Reached));
        assert!(roster.reached(&b, "http://b", Reach::Reached));
        assert_eq!(led_to(&roster, start).unwrap(), "http://a");

        roster.heard(at(start, 10), &a, first, None).unwrap();
        roster.gone(&a, first);
        assert_eq!(roster.heard(at(start, 29), &b, second, None), Some(Standing::Standby));
        assert_eq!(roster.heard(at(start, 30), &b, second, None), Some(Standing::Serving));
        assert_eq!(led_to(&roster, at(start, 30)).unwrap(), "http://b");
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
    fn a_verdict_names_every_region_that_lacks_a_head_and_why() {
        let start = Instant::now();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let gone = Binding { node: "gone".parse().unwrap(), token: None };
        let bindings = Bindings::from([("old".parse().unwrap(), gone)]);
        let mut roster = Roster::new(start, bindings);
        roster.register(start, caller("a", Some("eu")), None).unwrap();
        roster.register(start, caller("b", Some("us")), None).unwrap();
        roster.register(start, caller("c", Some("us")), None).unwrap();
        roster.acked(start, &a, Ack::new(head(1, 2), Outcome::Verified, 1, None));
        roster.acked(start, &b, Ack::new(head(1, 2), Outcome::Failed, 1, Some("disk full")));
        let below = Hello { region: Some("asia".parse().unwrap()), ..caller("d", None).hello };
        let mut leaf = Roster::new(start, Bindings::default());
        let caller = Caller { hello: below, url: None, token: None };
        leaf.register(start, caller, Some(head(1, 2))).unwrap();
        roster.reported(start, &a, leaf.reports(start, &a, &[]));
        let verdict = roster.verdict(start, &head(1, 2), &[]);
        assert!(!verdict.is_complete());
        assert_eq!(
            verdict.lacks(),
            "asia (is behind, below a), us (disk full), old (not heard since this node started)"
        );
        assert_eq!(verdict.verified.len(), 1);
        assert_eq!(verdict.excused[0].why, "it stands by");

        let paused = [Target::Region("us".parse().unwrap())];
        assert!(roster.forget(&"gone".parse().unwrap()));
        roster.reported(
            start,
            &a,
            vec![Report { have: Some(head(1, 3)), ..reports(&leaf, start) }],
        );
        let verdict = roster.verdict(start, &head(1, 2), &paused);
        assert!(verdict.is_complete(), "{}", verdict.lacks());
        assert_eq!(verdict.excused.len(), 2);
        let away = roster.reports(at(start, 20), &"hub".parse().unwrap(), &[]);
        assert!(away.iter().any(|report| report.node.as_str() == "d" && report.live));
        roster.gone(&a, 1);
        let away = roster.reports(at(start, 20), &"hub".parse().unwrap(), &[]);
        assert!(!away.iter().any(|report| report.node.as_str() == "d" && report.live));
    }

    fn reports(roster: &Roster, now: Instant) -> Report {
        roster.reports(now, &"a".parse().unwrap(), &[]).remove(0)
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
