//! The fleet under virtual time: one agenda, and the shells that feed the real machines.
//!
//! Nothing here decides what a node does: `Follow`, `Roster`, `Settle`, `Batch`, `Guard` and `RateTree`
//! do. Here is what a network and a disk do to what they decided, and what must hold at every step.

#[path = "acts.rs"]
mod acts;
#[path = "folder.rs"]
mod folder;
#[path = "mirror.rs"]
mod mirror;
#[path = "rules.rs"]
mod rules;
#[path = "talk.rs"]
mod talk;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::{Duration, Instant},
};

use depsync::{
    bus::{
        frame::{Ack, FromFollower, Hello, Outcome, Pulse, SILENCE},
        report::Below,
        roster::Caller,
    },
    model::{Head, Oid, Step, Target},
    replica::event::{Effect, Event, Failure, Manner, Parcel},
};

use crate::{
    history::{Content, History, Path, Tree},
    node::{Job, Node, Part},
    plan::{Act, Plan},
    primary::{File, Task},
    random::Random,
};

/// As `serve` says it.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// The longest that a fleet may take once nothing fails any more.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

pub struct World {
    pub plan: Plan,
    seed: u64,
    start: Instant,
    now: Instant,
    agenda: BTreeMap<(Instant, u64), Happening>,
    count: u64,
    random: Random,
    nodes: Vec<Node>,
    links: Vec<Link>,
    history: History,
    cuts: Vec<(usize, usize)>,
    calm: bool,
    contents: Content,
    pub story: Option<Vec<String>>,
}

/// A connection of a follower to its upstream; each end knows its own state only.
struct Link {
    follower: usize,
    upstream: usize,
    runs: (u64, u64),
    /// Nothing passes any more, and nobody was told.
    dead: bool,
    follower_open: bool,
    upstream_open: bool,
    /// Of the roster.
    connection: u64,
    told: Option<Oid>,
    heard: (Instant, Instant),
    last: (Instant, Instant),
}

pub enum Down {
    Welcome { head: Option<Head>, paused: bool },
    Announce { head: Head, parent: Option<Oid>, inside: bool },
    Heartbeat { head: Option<Head>, paused: bool },
}

enum Happening {
    Wake(usize),
    Act(Act),
    Start(usize),
    Heal(usize, usize),
    Connect { mirror: usize, run: u64, dial: u64, upstream: usize },
    Up(usize, FromFollower),
    Down(usize, Down),
    Beat(usize),
    Announce(usize),
    Closed { link: usize, at_follower: bool },
    Poll { mirror: usize, run: u64 },
    Answered { mirror: usize, run: u64, heads: Vec<(usize, Option<Head>)> },
    Begin(Job),
    Pump(usize, u64),
    Came(Job),
    Lost { mirror: usize, run: u64 },
    Place { mirror: usize, run: u64, head: Head },
    Read { node: usize, run: u64, path: Path, saw: Option<File> },
    Commit { node: usize, run: u64, head: Head, deleted: Vec<Path>, arrived: Vec<(Path, Content)> },
    Touched { node: usize, run: u64, path: Path },
    Rescan { node: usize, run: u64 },
    Piece { node: usize, path: Path, left: u32, every: Duration },
    Gone { node: usize, path: Path },
    Calm,
    Operator,
}

impl World {
    pub fn new(seed: u64, tells: bool) -> Self {
        let (start, plan) = (Instant::now(), Plan::of(seed));
        let mut nodes = vec![Node::new(0, start, None, vec![])];
        for (at, upstreams) in plan.upstreams.iter().enumerate() {
            nodes.push(Node::new(at + 1, start, plan.regions[at], upstreams.clone()));
        }
        let mut world = World {
            plan,
            seed,
            start,
            now: start,
            agenda: BTreeMap::new(),
            count: 0,
            random: Random::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d)),
            nodes,
            links: Vec::new(),
            history: History::default(),
            cuts: Vec::new(),
            calm: false,
            contents: 0,
            story: tells.then(Vec::new),
        };
        world.nodes[0].folder.no_leases = world.plan.no_leases;
        for path in 0..world.plan.files as Path {
            let content = world.whole();
            world.nodes[0].folder.files.insert(path, File { content, open: false });
        }
        for node in 0..world.nodes.len() {
            let late = world.random.millis(0, 3_000);
            world.later(late, Happening::Start(node));
        }
        for (at, act) in std::mem::take(&mut world.plan.acts) {
            world.later(at, Happening::Act(act));
        }
        world.later(world.plan.calm_at, Happening::Calm);
        world
    }

    /// Lets everything happen, until the fleet is at rest and equal.
    pub fn run(&mut self) {
        while let Some(((at, _), happening)) = self.agenda.pop_first() {
            self.now = at;
            self.happen(happening);
            assert!(
                self.now < self.start + self.plan.calm_at + PATIENCE,
                "never equal: {}",
                self.unequal().unwrap_or_default()
            );
            if self.calm && self.count.is_multiple_of(16) && self.unequal().is_none() {
                return;
            }
        }
        panic!("nothing more happens: {}", self.unequal().unwrap_or_default());
    }

    fn tell(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.story.is_some() {
            let line = format!("{:>10.3} {}", (self.now - self.start).as_secs_f64(), line(self));
            self.story.iter_mut().for_each(|story| story.push(line.clone()));
        }
    }

    fn later(&mut self, after: Duration, happening: Happening) {
        self.at(self.now + after, happening);
    }

    fn at(&mut self, at: Instant, happening: Happening) {
        self.count += 1;
        self.agenda.insert((at.max(self.now), self.count), happening);
    }

    /// A content that somebody has finished; those that are torn are odd.
    fn whole(&mut self) -> Content {
        self.contents += 2;
        self.contents
    }

    fn delay(&mut self) -> Duration {
        self.random.millis(0, self.plan.delay)
    }

    fn disk(&mut self) -> Duration {
        self.random.millis(0, self.plan.slow)
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.nodes[b].up && !self.is_cut(a, b)
    }

    fn is_lost(&mut self) -> bool {
        !self.calm && self.random.percent(self.plan.loss)
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Wake(node) => {
                if self.nodes[node].wake_at.is_some_and(|at| at <= self.now) {
                    self.nodes[node].wake_at = None;
                }
                let due = self.nodes[node].deadline(self.now).is_some_and(|at| at <= self.now);
                match (due, &self.nodes[node].part) {
                    (true, Part::Mirror(_)) => self.feed(node, Event::Ticked),
                    _ => self.attend(node),
                }
            }
            Happening::Act(act) => self.act(act),
            Happening::Start(node) => self.start_node(node),
            Happening::Heal(a, b) => self.cuts.retain(|cut| *cut != (a, b)),
            Happening::Connect { mirror, run, dial, upstream } => {
                self.connect(mirror, (run, dial), upstream);
            }
            Happening::Up(link, frame) => self.hear_up(link, frame),
            Happening::Down(link, frame) => self.hear_down(link, frame),
            Happening::Beat(link) => self.beat(link),
            Happening::Announce(link) => self.announce(link),
            Happening::Closed { link, at_follower: true } => self.end_at_follower(link, "closed"),
            Happening::Closed { link, at_follower: false } => self.end_at_upstream(link),
            Happening::Poll { mirror, run } => self.polled(mirror, run),
            Happening::Answered { mirror, run, heads } => self.answered(mirror, run, heads),
            Happening::Begin(job) => self.begin(job),
            Happening::Pump(node, run) => self.pump(node, run),
            Happening::Came(job) => self.came(job),
            Happening::Lost { mirror, run } => self.lost(mirror, run, Failure::Again),
            Happening::Place { mirror, run, head } => self.placed(mirror, run, head),
            Happening::Read { node, run, path, saw } => self.was_read(node, run, path, saw),
            Happening::Commit { node, run, head, deleted, arrived } => {
                self.committed(node, run, head, &deleted, &arrived);
            }
            Happening::Touched { node, run, path } if self.nodes[node].run == run => {
                if let Some(primary) = self.nodes[node].primary() {
                    primary.touched(path);
                }
                self.attend(node);
            }
            Happening::Touched { .. } => {}
            Happening::Rescan { node, run } => self.rescan(node, run),
            Happening::Piece { node, path, left, every } => self.piece(node, path, left, every),
            Happening::Gone { node, path } => {
                self.nodes[node].folder.files.remove(&path);
                self.touch(node, path);
            }
            Happening::Calm => self.calm_down(),
            Happening::Operator => self.operate(),
        }
    }
}

fn closed((path, content): (&Path, &Content)) -> (Path, File) {
    (*path, File { content: *content, open: false })
}

fn differing(from: &Rc<Tree>, to: &Rc<Tree>) -> usize {
    let changed = to.iter().filter(|(path, content)| from.get(path) != Some(content)).count();
    changed + from.keys().filter(|path| !to.contains_key(path)).count()
}
