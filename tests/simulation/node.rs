//! A node: what outlives its process, and the real machines that a process runs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    time::{Duration, Instant},
};

use depsync::{
    bus::roster::Roster,
    model::{
        Bindings, Flow, Head, Label, NodeId, Rate, RatePlan, RateTree, Receiver, RegionName,
        Target, Traffic,
    },
    replica::{
        event::Parcel,
        follow::{Follow, Options},
    },
};

use crate::{
    history::{History, Tree},
    primary::{Folder, Kept, Primary},
};

/// Seconds after which a mirror asks for the head.
pub const POLL: Duration = Duration::from_secs(60);

pub struct Node {
    pub number: usize,
    pub id: NodeId,
    pub label: Label,
    pub region: Option<RegionName>,
    /// Whether its process runs, and which one that is.
    pub up: bool,
    pub run: u64,
    pub upstreams: Vec<usize>,
    /// Durable: the head of its store, and what its directory was last verified to be.
    pub fetched: Option<Head>,
    pub have: Option<Head>,
    /// What lies in its directory; none: a checkout was broken off.
    pub dir: Option<Rc<Tree>>,
    pub bindings: Bindings,
    /// Durable: whether it owns the feed, in which epoch, and what it holds back.
    pub owns: bool,
    pub epoch: u64,
    pub folder: Folder,
    pub kept: Kept,
    pub paused: Vec<Target>,
    /// Of its process.
    pub part: Part,
    pub roster: Roster,
    pub sending: Sending,
    pub wake_at: Option<Instant>,
}

pub enum Part {
    Off,
    Primary(Box<Primary>),
    Mirror(Box<Mirror>),
}

pub struct Mirror {
    pub follow: Follow,
    /// Its end of the conversation that counts.
    pub link: Option<usize>,
    pub connecting: bool,
    /// Counts how often it has hung up.
    pub dial: u64,
    pub polling: bool,
    pub fetching: bool,
    pub placing: bool,
}

/// A fetch under way.
#[derive(Clone)]
pub struct Job {
    pub mirror: usize,
    pub run: u64,
    pub upstream: usize,
    pub have: Option<Head>,
    pub want: Head,
    /// What came inside announcements.
    pub parcels: Vec<Parcel>,
}

/// What a node sends to mirrors, under its limits.
pub struct Sending {
    tree: RateTree,
    since: Instant,
    granted: u64,
    limited_at: Instant,
    limit: Option<Rate>,
    jobs: BTreeMap<Flow, (Job, u64)>,
    pub pump_at: Option<Instant>,
}

impl Sending {
    pub fn new(now: Instant, limit: Option<Rate>) -> Self {
        let plan = RatePlan { replication: limit, ..RatePlan::default() };
        Sending {
            tree: RateTree::new(plan),
            since: now,
            granted: 0,
            limited_at: now,
            limit,
            jobs: BTreeMap::new(),
            pump_at: None,
        }
    }

    pub fn begin(&mut self, now: Instant, job: Job, bytes: u64) {
        let client = IpAddr::V4(Ipv4Addr::new(10, 0, 0, job.mirror as u8));
        let to = Receiver { class: Traffic::Replication, client, region: None };
        let flow = self.tree.open(now - self.since, to);
        self.tree.want(flow, bytes);
        self.jobs.insert(flow, (job, bytes));
    }

    pub fn limit(&mut self, now: Instant, limit: Option<Rate>) {
        let plan = RatePlan { replication: limit, ..RatePlan::default() };
        self.tree.set_plan(now - self.since, plan);
        (self.limit, self.limited_at, self.granted) = (limit, now, 0);
    }

    /// Gives what there is; the fetches that have all come back.
    pub fn pump(&mut self, now: Instant) -> Vec<Job> {
        let stepped = self.tree.step(now - self.since);
        let mut done = Vec::new();
        for grant in stepped.grants {
            self.granted += grant.bytes;
            let (_, left) = self.jobs.get_mut(&grant.flow).expect("it was opened");
            assert!(grant.bytes > 0 && grant.bytes <= *left, "a grant is at most the wish");
            *left -= grant.bytes;
            if *left == 0 {
                done.extend(self.jobs.remove(&grant.flow).map(|(job, _)| job));
                self.tree.close(grant.flow);
            }
        }
        self.pump_at = stepped.wake_at.map(|at| self.since + at);
        assert_eq!(self.jobs.is_empty(), self.pump_at.is_none(), "who waits is woken");
        assert!(self.pump_at.is_none_or(|at| at > now), "the limits would be asked for ever");
        if let Some(limit) = self.limit {
            // In any time: what the rate brings, and one burst.
            let rate = limit.bytes_per_sec();
            let brings = (now - self.limited_at).as_nanos() * u128::from(rate) / 1_000_000_000;
            let most = brings + u128::from((rate / 20).max(64 * 1024)) + 1;
            assert!(u128::from(self.granted) <= most, "{} of {most} bytes", self.granted);
        }
        done
    }

    /// Whoever fetches from a process that is gone.
    pub fn broken_off(&mut self) -> Vec<Job> {
        let jobs = std::mem::take(&mut self.jobs);
        jobs.into_iter()
            .map(|(flow, (job, _))| {
                self.tree.close(flow);
                job
            })
            .collect()
    }
}

impl Node {
    pub fn new(number: usize, now: Instant, region: Option<&str>, upstreams: Vec<usize>) -> Self {
        let name = format!("n{number}");
        Node {
            number,
            id: name.parse().unwrap(),
            label: name.parse().unwrap(),
            region: region.map(|name| name.parse().unwrap()),
            up: false,
            run: 0,
            upstreams,
            fetched: None,
            have: None,
            dir: Some(Rc::default()),
            bindings: Bindings::default(),
            owns: number == 0,
            epoch: 1,
            folder: Folder::default(),
            kept: Kept::default(),
            paused: Vec::new(),
            part: Part::Off,
            roster: Roster::new(now, Bindings::default()),
            sending: Sending::new(now, None),
            wake_at: None,
        }
    }

    /// A process begins with what is durable, and nothing else.
    pub fn start(&mut self, now: Instant, limit: Option<Rate>, seed: u64, history: &History) {
        self.up = true;
        self.run += 1;
        self.wake_at = None;
        self.roster = Roster::new(now, self.bindings.clone());
        self.sending = Sending::new(now, limit);
        if let Some(head) = self.fetched {
            self.roster.posted(now, head);
        }
        self.part = if self.owns {
            let head = history.tree(self.fetched);
            let primary = Primary::start(now, &self.folder, self.kept.clone(), &head);
            Part::Primary(Box::new(primary))
        } else {
            let options = Options {
                upstreams: self.upstreams.len(),
                checkout: true,
                scheduled: false,
                poll: POLL,
                seed: seed ^ (self.number as u64 * 977 + self.run),
            };
            Part::Mirror(Box::new(Mirror {
                follow: Follow::new(now, options, self.fetched, self.have),
                link: None,
                connecting: false,
                dial: 0,
                polling: false,
                fetching: false,
                placing: false,
            }))
        };
    }

    pub fn stop(&mut self) {
        self.up = false;
        self.run += 1;
        if let Part::Primary(primary) = &self.part {
            self.kept = primary.kept.clone();
        }
        if matches!(&self.part, Part::Mirror(mirror) if mirror.placing) {
            self.dir = None;
        }
        self.bindings = self.roster.bindings().clone();
        self.part = Part::Off;
    }

    pub fn mirror(&mut self) -> Option<&mut Mirror> {
        match &mut self.part {
            Part::Mirror(mirror) => Some(mirror),
            _ => None,
        }
    }

    pub fn primary(&mut self) -> Option<&mut Primary> {
        match &mut self.part {
            Part::Primary(primary) => Some(primary),
            _ => None,
        }
    }

    /// When something is due by the clock.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        match &self.part {
            Part::Off => None,
            Part::Primary(primary) => primary.deadline(now),
            Part::Mirror(mirror) => mirror.follow.deadline(),
        }
    }
}
