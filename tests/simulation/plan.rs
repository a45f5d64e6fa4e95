//! What a seed stands for: the fleet, how bad its network and its disks are, and what goes wrong when.

use std::time::Duration;

use depsync::model::Rate;

use crate::random::Random;

/// The fleet and its surroundings.
pub struct Plan {
    /// The upstreams of each mirror; node 0 is the primary.
    pub upstreams: Vec<Vec<usize>>,
    /// The region of each mirror.
    pub regions: Vec<Option<&'static str>>,
    /// Announcements, heartbeats and acknowledgements that are lost, in a hundred.
    pub loss: u64,
    /// Messages overtake each other.
    pub reorders: bool,
    /// The longest that a message is on its way, and that a disk takes, in milliseconds.
    pub delay: u64,
    pub slow: u64,
    pub no_leases: bool,
    pub limit: Option<Rate>,
    /// Files that there are at the beginning.
    pub files: usize,
    /// When, from the beginning, and what.
    pub acts: Vec<(Duration, Act)>,
    pub calm_at: Duration,
    /// More than one node owned the feed, or went back in time: alarms are right.
    pub rivals: bool,
}

/// What happens to the fleet.
#[derive(Debug, Clone, Copy)]
pub enum Act {
    /// A file is written in one go, and appears by a rename.
    Rename(u16),
    /// A file is written for so long, in pieces.
    Write(u16, Duration),
    /// It is removed.
    Remove(u16),
    /// Most files go, within this time.
    RemoveMost(u64, Duration),
    /// The process dies, and comes back after this time.
    Crash(usize, Duration),
    /// Two nodes cannot reach each other for this time.
    Cut(usize, usize, Duration),
    /// A connection ends.
    Drop(usize),
    /// A region is to stay where it is, until the calm.
    Pause(usize),
    Limit(u64),
    /// Somebody wants it looked at now.
    Sync(usize),
    /// The primary is gone, and this mirror is told to own the feed.
    Promote(usize),
    /// The primary goes back so many commits: an old backup.
    Restore(usize),
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (upstreams, regions) = fleet(&mut random);
        let many = random.percent(8);
        let files = if many { 110 + random.below(100) } else { 1 + random.below(6) };
        let calm_at = random.millis(20_000, 55_000);
        let mut acts = Vec::new();
        for _ in 0..3 + random.below(12) {
            acts.push((within(&mut random, calm_at), edit(&mut random, files)));
        }
        if many {
            let act = Act::RemoveMost(30 + random.next() % 65, random.millis(0, 8_000));
            acts.push((calm_at / 2, act));
        }
        let nodes = upstreams.len() + 1;
        for _ in 0..random.below(6) {
            acts.push((within(&mut random, calm_at), fault(&mut random, nodes)));
        }
        let rivals = random.percent(20);
        if rivals {
            let act = match random.percent(50) {
                true => Act::Promote(1),
                false => Act::Restore(1 + random.below(4)),
            };
            acts.push((calm_at.mul_f64(0.7), act));
        }
        let slow = if random.percent(20) { 3_000 } else { 20 };
        Plan {
            upstreams,
            regions,
            loss: if random.percent(40) { random.next() % 60 } else { 0 },
            reorders: random.percent(10),
            delay: if random.percent(25) { 1_500 } else { 30 },
            slow,
            no_leases: random.percent(15),
            limit: random.percent(30).then(|| rate(&mut random)),
            files,
            acts,
            calm_at,
            rivals,
        }
    }
}

fn rate(random: &mut Random) -> Rate {
    Rate::new(20_000 + random.next() % 400_000).expect("not zero")
}

/// One to three mirrors: beside each other, below each other, one standing by for another, with more
/// than one upstream.
fn fleet(random: &mut Random) -> (Vec<Vec<usize>>, Vec<Option<&'static str>>) {
    match random.below(6) {
        0 => (vec![vec![0]], vec![Some("eu")]),
        1 => (vec![vec![0], vec![0]], vec![Some("eu"), Some("us")]),
        2 => (vec![vec![0], vec![1]], vec![Some("eu"), Some("us")]),
        3 => (vec![vec![0], vec![0], vec![1]], vec![Some("eu"), Some("eu"), None]),
        4 => (vec![vec![0], vec![0, 1]], vec![Some("eu"), Some("us")]),
        _ => (vec![vec![0], vec![1, 0], vec![2]], vec![Some("eu"), Some("us"), Some("asia")]),
    }
}

fn within(random: &mut Random, time: Duration) -> Duration {
    random.millis(100, time.as_millis() as u64)
}

fn edit(random: &mut Random, files: usize) -> Act {
    let path = random.below(files + 4) as u16;
    match random.below(10) {
        0..5 => Act::Rename(path),
        5..8 => Act::Write(path, random.millis(1, 6_000)),
        _ => Act::Remove(path),
    }
}

fn fault(random: &mut Random, nodes: usize) -> Act {
    let node = random.below(nodes);
    match random.below(9) {
        0..3 => Act::Crash(node, random.millis(10, 30_000)),
        3..5 => Act::Cut(node, random.below(nodes), random.millis(10, 40_000)),
        5 => Act::Drop(1 + random.below(nodes - 1)),
        6 => Act::Pause(1 + random.below(nodes - 1)),
        7 => Act::Limit(random.next()),
        _ => Act::Sync(1 + random.below(nodes - 1)),
    }
}
