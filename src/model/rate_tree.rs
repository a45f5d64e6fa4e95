//! Who may send how much now: a tree of token buckets, total → class → network → client.
//!
//! Pure: time is what the caller says it is. No bucket ever gives more than its rate and its burst;
//! whenever a transfer waits, some bucket above it is spent; clients that wait share what there is
//! evenly, whatever the number of their transfers (start-time fair queueing at each branch).

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{
    Rate, RegionName,
    rate_bucket::{Bucket, MAX_PIECE},
    rate_plan::{RatePlan, Traffic},
};

/// Clients remembered beyond those that have a transfer, until the next sweep.
const MIN_SWEEP: usize = 64;

/// One transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow(u64);

/// Whom a transfer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    /// What it is for.
    pub class: Traffic,
    /// The address; all transfers to it share one place.
    pub client: IpAddr,
    /// The region that the table counts it among.
    pub region: Option<RegionName>,
}

/// Bytes that a transfer may send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// The transfer.
    pub flow: Flow,
    /// How many bytes, at least one.
    pub bytes: u64,
}

/// What a step decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stepped {
    /// In the order in which they were given.
    pub grants: Vec<Grant>,
    /// When the next step can give something to who still waits.
    pub wake_at: Option<Duration>,
}

/// The tree.
#[derive(Debug)]
pub struct RateTree {
    plan: RatePlan,
    nodes: BTreeMap<Place, Node>,
    flows: BTreeMap<Flow, FlowState>,
    next_flow: u64,
    sweep_at: usize,
}

/// A place in the tree; its parent is one component shorter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Total,
    Traffic(Traffic),
    Network(Traffic, Option<usize>),
    Client(Traffic, Option<usize>, IpAddr),
}

#[derive(Debug, Default)]
struct Node {
    bucket: Option<Bucket>,
    /// Children that hold a waiting transfer; of a client: none.
    waiting: Vec<Place>,
    /// Transfers that wait, in turn; of a client only.
    queue: VecDeque<Flow>,
    /// Transfers that are open below; of a client only.
    open: usize,
    /// Bytes that came here, raised to the branch's clock when it begins to wait.
    served: u64,
    /// `served` of the child that was last given something.
    clock: u64,
}

#[derive(Debug)]
struct FlowState {
    to: Receiver,
    place: Place,
    wants: u64,
}

impl Place {
    fn parent(self) -> Option<Place> {
        match self {
            Place::Total => None,
            Place::Traffic(_) => Some(Place::Total),
            Place::Network(class, _) => Some(Place::Traffic(class)),
            Place::Client(class, network, _) => Some(Place::Network(class, network)),
        }
    }

    /// The place itself, then what is above it, up to the total.
    fn upwards(self) -> impl Iterator<Item = Place> {
        std::iter::successors(Some(self), |place| place.parent())
    }
}

impl RateTree {
    /// A tree with these limits and no transfers.
    #[must_use]
    pub fn new(plan: RatePlan) -> Self {
        let (nodes, flows) = (BTreeMap::new(), BTreeMap::new());
        RateTree { plan, nodes, flows, next_flow: 0, sweep_at: MIN_SWEEP }
    }

    /// The limits.
    #[must_use]
    pub fn plan(&self) -> &RatePlan {
        &self.plan
    }

    /// Transfers of a class that wait.
    #[must_use]
    pub fn waiting(&self, class: Traffic) -> usize {
        let of_class = |place: &Place| matches!(place, Place::Client(of, ..) if *of == class);
        self.nodes.iter().filter(|(place, _)| of_class(place)).map(|(_, n)| n.queue.len()).sum()
    }

    /// Opens a transfer.
    pub fn open(&mut self, now: Duration, to: Receiver) -> Flow {
        self.sweep(now);
        let flow = Flow(self.next_flow);
        self.next_flow += 1;
        let place = self.place_of(&to);
        self.enter(now, place, true);
        self.flows.insert(flow, FlowState { to, place, wants: 0 });
        flow
    }

    /// States that a transfer has this many bytes to send; no more than one wish waits for each.
    pub fn want(&mut self, flow: Flow, bytes: u64) {
        let Some(state) = self.flows.get_mut(&flow) else { return };
        let waited = std::mem::replace(&mut state.wants, bytes) > 0;
        if waited || bytes == 0 {
            return;
        }
        let place = state.place;
        let client = self.node(place);
        client.queue.push_back(flow);
        if client.queue.len() == 1 {
            self.begin_waiting(place);
        }
    }

    /// Closes a transfer; what it waited for goes to others.
    pub fn close(&mut self, flow: Flow) {
        let Some(state) = self.flows.remove(&flow) else { return };
        let client = self.node(state.place);
        client.open -= 1;
        client.queue.retain(|other| *other != flow);
        if client.queue.is_empty() {
            self.end_waiting(state.place);
        }
    }

    /// Puts other limits in force; transfers under way go on under them. The new buckets are empty,
    /// so that changing limits often gives nobody more.
    pub fn set_plan(&mut self, now: Duration, plan: RatePlan) {
        self.plan = plan;
        self.nodes.clear();
        for (flow, mut state) in std::mem::take(&mut self.flows) {
            state.place = self.place_of(&state.to);
            let (place, wants) = (state.place, std::mem::take(&mut state.wants));
            self.enter(now, place, false);
            self.flows.insert(flow, state);
            self.want(flow, wants);
        }
    }

    /// Gives what there is at `now`, which never goes back, to who waits.
    pub fn step(&mut self, now: Duration) -> Stepped {
        let mut stepped = Stepped::default();
        loop {
            match self.pick(now, Place::Total) {
                Pick::Client(place) => stepped.grants.push(self.grant(now, place)),
                Pick::Later(at) => {
                    stepped.wake_at = Some(at);
                    return stepped;
                }
                Pick::Nobody => return stepped,
            }
        }
    }

    fn place_of(&self, to: &Receiver) -> Place {
        let network = self.plan.network_of(to.client, to.region.as_ref());
        Place::Client(to.class, network, to.client.to_canonical())
    }

    fn rate_of(&self, place: Place) -> Option<Rate> {
        match place {
            Place::Total => self.plan.total,
            Place::Traffic(class) => self.plan.of_class(class),
            Place::Network(_, network) => network.map(|at| self.plan.networks[at].limit),
            Place::Client(Traffic::Downloads, ..) => self.plan.per_client,
            Place::Client(Traffic::Replication, ..) => None,
        }
    }

    /// Makes the nodes of a client that are not there, and counts one more transfer.
    fn enter(&mut self, now: Duration, place: Place, full: bool) {
        for place in place.upwards() {
            if !self.nodes.contains_key(&place) {
                let bucket = self.rate_of(place).map(|rate| Bucket::new(rate, now, full));
                self.nodes.insert(place, Node { bucket, ..Node::default() });
            }
        }
        self.node(place).open += 1;
    }

    fn node(&mut self, place: Place) -> &mut Node {
        self.nodes.get_mut(&place).expect("an open transfer's places are in the tree")
    }

    /// Tells each branch above that this place waits; it starts level with those that wait already.
    fn begin_waiting(&mut self, from: Place) {
        for place in from.upwards() {
            let Some(parent) = place.parent() else { return };
            let branch = self.node(parent);
            let (clock, first) = (branch.clock, branch.waiting.is_empty());
            branch.waiting.push(place);
            let child = self.node(place);
            child.served = child.served.max(clock);
            if !first {
                return;
            }
        }
    }

    fn end_waiting(&mut self, from: Place) {
        for place in from.upwards() {
            let Some(parent) = place.parent() else { return };
            let branch = self.node(parent);
            branch.waiting.retain(|other| *other != place);
            if !branch.waiting.is_empty() {
                return;
            }
        }
    }

    /// The client whose turn it is below `place`.
    fn pick(&self, now: Duration, place: Place) -> Pick {
        let Some(node) = self.nodes.get(&place) else { return Pick::Nobody };
        let at_client = matches!(place, Place::Client(..));
        if if at_client { node.queue.is_empty() } else { node.waiting.is_empty() } {
            return Pick::Nobody;
        }
        if let Some(at) = node.bucket.as_ref().and_then(|bucket| bucket.ready_at(now)) {
            return Pick::Later(at);
        }
        if at_client {
            return Pick::Client(place);
        }
        let served = |place: &Place| self.nodes[place].served;
        let mut best: Option<(u64, Place)> = None;
        let mut soonest: Option<Duration> = None;
        for child in &node.waiting {
            if best.is_some_and(|(least, _)| least <= served(child)) {
                continue;
            }
            match self.pick(now, *child) {
                Pick::Client(client) => best = Some((served(child), client)),
                Pick::Later(at) => soonest = Some(soonest.map_or(at, |other| other.min(at))),
                Pick::Nobody => {}
            }
        }
        match (best, soonest) {
            (Some((_, client)), _) => Pick::Client(client),
            (None, Some(at)) => Pick::Later(at),
            (None, None) => Pick::Nobody,
        }
    }

    /// Gives the next transfer of a client a piece, and counts it at every place above.
    fn grant(&mut self, now: Duration, place: Place) -> Grant {
        let flow = self.node(place).queue.pop_front().expect("only who waits is picked");
        let piece = |node: &Node| node.bucket.as_ref().map_or(MAX_PIECE, Bucket::piece);
        let most =
            place.upwards().map(|place| piece(&self.nodes[&place])).min().unwrap_or(MAX_PIECE);
        let state = self.flows.get_mut(&flow).expect("a waiting transfer is open");
        let bytes = state.wants.min(most);
        state.wants -= bytes;
        let goes_on = state.wants > 0;
        for place in place.upwards() {
            let node = self.node(place);
            let start = node.served;
            node.served += bytes;
            if let Some(bucket) = &mut node.bucket {
                bucket.take(now, bytes);
            }
            if let Some(parent) = place.parent() {
                self.node(parent).clock = start;
            }
        }
        if goes_on {
            self.node(place).queue.push_back(flow);
        } else if self.node(place).queue.is_empty() {
            self.end_waiting(place);
        }
        Grant { flow, bytes }
    }

    /// Forgets clients without a transfer whose bucket is full again: to come back gains them nothing.
    fn sweep(&mut self, now: Duration) {
        if self.nodes.len() < self.sweep_at {
            return;
        }
        self.nodes.retain(|place, node| {
            let full = node.bucket.as_ref().is_none_or(|bucket| bucket.is_full(now));
            !matches!(place, Place::Client(..)) || node.open > 0 || !full
        });
        self.sweep_at = MIN_SWEEP.max(2 * self.nodes.len());
    }
}

enum Pick {
    /// This client may be given a piece.
    Client(Place),
    /// Someone waits, and the first bucket has a piece again then.
    Later(Duration),
    /// Nobody waits.
    Nobody,
}

#[cfg(test)]
#[expect(clippy::cast_precision_loss, reason = "sums of a few gigabytes")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Network, NetworkLimit};

    fn rate(kilobytes: u64) -> Option<Rate> {
        Rate::new(kilobytes * 1000)
    }

    fn client(n: u8) -> Receiver {
        Receiver { class: Traffic::Downloads, client: [10, 0, n / 4, n].into(), region: None }
    }

    /// A second opinion on one bucket: what was given must drain at its rate within its burst.
    struct Meter {
        rate: f64,
        burst: f64,
        level: f64,
        at: f64,
    }

    impl Meter {
        fn new(rate: Rate) -> Self {
            let rate = rate.bytes_per_sec();
            let burst = (rate / 20).max(16 << 10);
            Meter { rate: rate as f64, burst: burst as f64, level: 0.0, at: 0.0 }
        }

        fn room(&mut self, now: f64) -> f64 {
            self.level = (self.level - (now - self.at) * self.rate).max(0.0);
            self.at = now;
            self.burst - self.level
        }
    }

    fn plan() -> impl Strategy<Value = RatePlan> {
        let limit = || prop::option::of(20_u64..5000).prop_map(|r| r.and_then(rate));
        let networks = prop::collection::vec((0_u8..4, 20_u64..3000), 0..3);
        (limit(), limit(), limit(), networks).prop_map(
            |(total, downloads, per_client, networks)| {
                let network = |(third, kilobytes): (u8, u64)| NetworkLimit {
                    network: Network::Cidr(format!("10.0.{third}.0/24").parse().unwrap()),
                    limit: rate(kilobytes).unwrap(),
                };
                let networks = networks.into_iter().map(network).collect();
                RatePlan { total, downloads, replication: None, per_client, networks }
            },
        )
    }

    /// The limits above a client, each with a key by which clients share it.
    fn limits(plan: &RatePlan, to: &Receiver) -> Vec<(String, Rate)> {
        let network = plan.network_of(to.client, None);
        let all = [
            ("total".to_owned(), plan.total),
            ("class".to_owned(), plan.downloads),
            (format!("network {network:?}"), network.map(|at| plan.networks[at].limit)),
            (format!("client {}", to.client), plan.per_client),
        ];
        all.into_iter().filter_map(|(key, rate)| Some((key, rate?))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
        #[test]
        fn never_above_a_limit_and_never_idle_for_nothing(
            plan in plan(),
            wishes in prop::collection::vec((0_u64..400, 0_u8..16, 1_u64..600_000), 1..30),
        ) {
            let mut tree = RateTree::new(plan.clone());
            let mut meters: BTreeMap<String, Meter> = BTreeMap::new();
            let mut flows: BTreeMap<Flow, (Receiver, u64)> = BTreeMap::new();
            let mut wishes: Vec<_> = wishes.into_iter()
                .map(|(at, n, bytes)| (Duration::from_millis(at), client(n), bytes)).collect();
            wishes.sort_by_key(|wish| std::cmp::Reverse(wish.0));
            let mut now = Duration::ZERO;
            for _ in 0..3000 {
                while let Some((at, ..)) = wishes.last() && *at <= now {
                    let (_, to, bytes) = wishes.pop().unwrap();
                    let flow = tree.open(now, to.clone());
                    tree.want(flow, bytes);
                    flows.insert(flow, (to, bytes));
                }
                let stepped = tree.step(now);
                for Grant { flow, bytes } in stepped.grants {
                    let (to, left) = flows.get_mut(&flow).unwrap();
                    prop_assert!(bytes >= 1 && bytes <= *left);
                    *left -= bytes;
                    for (key, rate) in limits(&plan, to) {
                        let meter = meters.entry(key.clone()).or_insert_with(|| Meter::new(rate));
                        let room = meter.room(now.as_secs_f64());
                        prop_assert!(bytes as f64 <= room + 1.0, "{key}: {bytes} of {room}");
                        meter.level += bytes as f64;
                    }
                }
                for (to, left) in flows.values().filter(|flow| flow.1 > 0) {
                    let spent = limits(&plan, to).into_iter().any(|(key, rate)| {
                        let room = meters.entry(key).or_insert_with(|| Meter::new(rate)).room(now.as_secs_f64());
                        room <= MAX_PIECE.min((rate.bytes_per_sec() / 20).max(1024)) as f64
                    });
                    prop_assert!(spent, "{left} bytes wait for nothing");
                    prop_assert!(stepped.wake_at.is_some_and(|at| at > now));
                }
                match (stepped.wake_at, wishes.last().map(|wish| wish.0)) {
                    (Some(a), Some(b)) => now = a.min(b),
                    (Some(at), None) | (None, Some(at)) => now = at,
                    (None, None) => return Ok(()),
                }
            }
        }

        #[test]
        fn clients_share_evenly_whatever_their_connections(
            connections in prop::collection::vec(1_usize..6, 2..8),
            megabytes in 1_u64..50,
        ) {
            let plan = RatePlan { total: rate(megabytes * 1000), ..RatePlan::default() };
            let mut tree = RateTree::new(plan);
            let mut owner = BTreeMap::new();
            for (n, &count) in connections.iter().enumerate() {
                for _ in 0..count {
                    let flow = tree.open(Duration::ZERO, client(u8::try_from(n).unwrap()));
                    tree.want(flow, u64::MAX);
                    owner.insert(flow, n);
                }
            }
            let mut bytes = vec![0.0; connections.len()];
            let mut now = Duration::ZERO;
            while now < Duration::from_secs(5) {
                let stepped = tree.step(now);
                for grant in stepped.grants {
                    bytes[owner[&grant.flow]] += grant.bytes as f64;
                }
                now = stepped.wake_at.unwrap();
            }
            let (sum, squares): (f64, f64) = (bytes.iter().sum(), bytes.iter().map(|b| b * b).sum());
            let jain = sum * sum / (bytes.len() as f64 * squares);
            prop_assert!(jain >= 0.98, "{bytes:?}");
            let expected = (megabytes * 1_000_000) as f64 * 5.0;
            prop_assert!((sum / expected - 1.0).abs() < 0.03, "{sum} of {expected}");
        }
    }

    #[test]
    fn without_limits_a_wish_is_granted_at_once() {
        let mut tree = RateTree::new(RatePlan::default());
        let flow = tree.open(Duration::ZERO, client(1));
        tree.want(flow, 1_000_000);
        let stepped = tree.step(Duration::ZERO);
        assert_eq!(stepped.grants.iter().map(|grant| grant.bytes).sum::<u64>(), 1_000_000);
        assert_eq!(stepped.wake_at, None);
    }

    #[test]
    fn a_changed_limit_holds_for_transfers_under_way() {
        let plan = |kilobytes| RatePlan { total: rate(kilobytes), ..RatePlan::default() };
        let mut tree = RateTree::new(plan(100));
        let flow = tree.open(Duration::ZERO, client(1));
        tree.want(flow, u64::MAX);
        tree.step(Duration::ZERO);
        let given = |tree: &mut RateTree, mut now: Duration| -> u64 {
            let end = now + Duration::from_secs(1);
            let mut sum = 0;
            while now < end {
                let stepped = tree.step(now);
                sum += stepped.grants.iter().map(|grant| grant.bytes).sum::<u64>();
                now = stepped.wake_at.unwrap();
            }
            sum
        };
        let slow = given(&mut tree, Duration::from_secs(1));
        tree.set_plan(Duration::from_secs(2), plan(10_000));
        let fast = given(&mut tree, Duration::from_secs(2));
        assert!(slow < 120_000 && fast > 9_500_000, "{slow} {fast}");
    }

    #[test]
    fn coming_back_as_a_new_transfer_gains_nothing() {
        let plan = RatePlan { per_client: rate(20), ..RatePlan::default() };
        let mut tree = RateTree::new(plan);
        let mut sum = 0;
        for _ in 0..1000 {
            let flow = tree.open(Duration::ZERO, client(1));
            tree.want(flow, 1000);
            sum += tree.step(Duration::ZERO).grants.iter().map(|grant| grant.bytes).sum::<u64>();
            tree.close(flow);
        }
        assert!(sum <= 16 << 10, "{sum}");
    }

    #[test]
    fn clients_gone_are_forgotten() {
        let plan = RatePlan { per_client: rate(1000), ..RatePlan::default() };
        let mut tree = RateTree::new(plan);
        for n in 0..5000_u32 {
            let to = Receiver { client: n.to_be_bytes().into(), ..client(0) };
            let flow = tree.open(Duration::from_secs(n.into()), to);
            tree.want(flow, 1000);
            tree.step(Duration::from_secs(n.into()));
            tree.close(flow);
        }
        assert!(tree.nodes.len() < 200, "{}", tree.nodes.len());
    }
}
