//! One node that follows, as last heard, and the nodes further down that it speaks for.
//!
//! Plain data and what follows from it at an instant: whether it is there, what it lacks and since
//! when, and why nobody waits for it. What those further down have is counted from when it was heard
//! here: clocks differ, and only differences come up.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::arrivals::Who;
use crate::{
    bus::{
        fleet::{self, Member},
        frame::{Ack, Hello, Outcome, Progress, Pulse, SILENCE, Standing},
        report::Report,
    },
    model::{Head, NodeId, Target},
};

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
    /// When it was first heard that it has verified what it has.
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
    pub below: BTreeMap<NodeId, Distant>,
    /// Its last failure, until that is mended.
    pub(super) failure: Option<String>,
    /// Which of its connections counts.
    pub(super) connection: u64,
}

/// A node further down, as the follower above it last said.
#[derive(Debug, Clone)]
pub struct Distant {
    /// What was said.
    pub report: Report,
    /// When it was first heard that it has verified what it has.
    pub verified_at: Option<Instant>,
    /// The head that it should have.
    pub want: Option<Head>,
    /// Since when it lacks what it should have.
    pub behind_since: Option<Instant>,
}

impl Follower {
    /// One that has just said hello; `known` is what was heard of that node before.
    pub(super) fn greeted(
        now: Instant,
        caller: Caller,
        (connection, standing): (u64, Standing),
        known: Option<Follower>,
    ) -> Self {
        let Caller { hello, url, token } = caller;
        // What was found out of it stays true while its address is the same.
        let same = known.as_ref().filter(|known| known.url == url);
        let reach = same.map(|known| known.reach.clone()).unwrap_or_default();
        let behind_since = known.as_ref().and_then(|known| known.behind_since);
        let before = known.as_ref().and_then(|known| known.have.zip(known.verified_at));
        let verified_at = verified(now, before, hello.have);
        let (last_ack, mut below) =
            known.map(|known| (known.last_ack, known.below)).unwrap_or_default();
        // It may be another process, that knows nothing of them: it says of each anew that it lives.
        for distant in below.values_mut() {
            distant.report.live = false;
        }
        Follower {
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
        }
    }

    /// Whether it is there: connected, or heard within 20 s.
    pub fn is_live(&self, now: Instant) -> bool {
        self.connected || now.saturating_duration_since(self.heard) < SILENCE
    }

    /// For how long it has lacked what it should have; zero when it has it.
    pub fn lag(&self, now: Instant) -> Duration {
        since(self.behind_since, now)
    }

    /// Its last failure, until that is mended.
    pub fn error(&self) -> Option<&str> {
        let refused = self.last_ack.as_ref().filter(|ack| ack.outcome != Outcome::Verified);
        let refused = refused.and_then(|ack| ack.error.as_deref());
        self.failure.as_deref().or(refused)
    }

    /// Whether somebody here keeps it where it is.
    pub(super) fn is_paused(&self, paused: &[Target]) -> bool {
        let (node, region) = (&self.hello.node, self.hello.region.as_ref());
        paused.iter().any(|target| target.is_about(node, region))
    }

    /// Why nobody waits for it.
    pub(super) fn excuse(&self, paused: &[Target]) -> Option<String> {
        if self.is_paused(paused) {
            return Some("it is paused".to_owned());
        }
        excuse(self.standing, self.waits.as_ref())
    }

    /// Why those below it cannot have what it should have: it chose to stay where it is, and has not
    /// fetched it.
    pub(super) fn holds_up(&self, paused: &[Target]) -> Option<String> {
        if self.fetched == self.want {
            return None;
        }
        let why = if self.is_paused(paused) { Some("it is paused") } else { self.waits.as_deref() };
        why.map(|why| format!("it is below {}: {why}", self.hello.label))
    }

    /// Whether it lacks a head and is waited for.
    pub(super) fn lacks(&self, head: &Head, paused: &[Target]) -> bool {
        !fleet::has(self.have.as_ref(), head) && self.excuse(paused).is_none()
    }

    /// From now on it should have this, and so should all below it.
    pub(super) fn wants(&mut self, now: Instant, want: Option<Head>) {
        self.want = want;
        self.compare(now);
        for distant in self.below.values_mut() {
            distant.wants(now, want);
        }
    }

    pub(super) fn take_pulse(&mut self, now: Instant, pulse: &Pulse) {
        self.has(now, pulse.have);
        self.fetched = pulse.fetched;
        self.waits.clone_from(&pulse.waits);
        self.paused_there = pulse.paused;
        self.failure.clone_from(&pulse.error);
        self.compare(now);
    }

    fn has(&mut self, now: Instant, have: Option<Head>) {
        self.verified_at = verified(now, self.have.zip(self.verified_at), have);
        self.have = have;
    }

    pub(super) fn take_ack(&mut self, now: Instant, ack: Ack) {
        if ack.outcome == Outcome::Verified {
            self.has(now, Some(ack.head));
            self.fetched = Some(newer(self.fetched, ack.head));
            self.progress = None;
            self.failure = None;
            self.compare(now);
        }
        self.last_ack = Some(ack);
    }

    /// Notes what it says of a node below it; what it said before.
    pub(super) fn take_report(&mut self, now: Instant, report: Report) -> Option<Report> {
        let (node, want) = (report.node.clone(), self.want);
        let known = self.below.remove(&node);
        let before = known.as_ref().map(|known| known.report.clone());
        let distant = match known {
            Some(known) => known.again(now, report),
            None => Distant::new(now, report),
        };
        self.below.entry(node).or_insert(distant).wants(now, want);
        before
    }

    pub(super) fn who(&self) -> Who<'_> {
        let hello = &self.hello;
        Who { node: &hello.node, label: &hello.label, region: hello.region.as_ref() }
    }

    fn compare(&mut self, now: Instant) {
        self.behind_since = behind(now, self.behind_since, self.have == self.want);
    }

    pub(super) fn member(&self, now: Instant) -> Member {
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

impl Distant {
    fn new(now: Instant, report: Report) -> Self {
        let verified_at = verified(now, None, report.have);
        Distant { report, verified_at, want: None, behind_since: None }
    }

    fn again(self, now: Instant, report: Report) -> Self {
        let before = self.report.have.zip(self.verified_at);
        Distant { verified_at: verified(now, before, report.have), report, ..self }
    }

    /// For how long it has lacked what it should have; zero when it has it.
    pub fn lag(&self, now: Instant) -> Duration {
        since(self.behind_since, now)
    }

    /// Why nobody waits for it.
    pub(super) fn excuse(&self) -> Option<String> {
        excuse(self.report.standing, self.report.waits.as_ref())
    }

    /// Whether it lacks a head and is waited for.
    pub(super) fn lacks(&self, head: &Head) -> bool {
        !fleet::has(self.report.have.as_ref(), head) && self.excuse().is_none()
    }

    fn wants(&mut self, now: Instant, want: Option<Head>) {
        self.want = want;
        self.behind_since = behind(now, self.behind_since, self.report.have == want);
    }

    pub(super) fn member(&self, live: bool) -> Member {
        let report = &self.report;
        let why = match &report.error {
            _ if !live => format!("away, below {}", report.via),
            Some(error) => error.clone(),
            None => format!("is behind, below {}", report.via),
        };
        let (region, node) = (report.region.clone(), report.node.clone());
        Member { region, node, label: Some(report.label.clone()), why }
    }
}

fn since(instant: Option<Instant>, now: Instant) -> Duration {
    instant.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
}

/// When it was first heard of what somebody has; `before` is what was heard earlier, and when.
fn verified(now: Instant, before: Option<(Head, Instant)>, have: Option<Head>) -> Option<Instant> {
    let have = have?;
    Some(before.filter(|(known, _)| *known == have).map_or(now, |(_, at)| at))
}

fn behind(now: Instant, since: Option<Instant>, has_it: bool) -> Option<Instant> {
    if has_it { None } else { since.or(Some(now)) }
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
