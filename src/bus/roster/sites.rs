//! Which nodes could serve a region's clients, the nearest first, and what keeps one from it.
//!
//! The region's own node, whether it follows here or below a relay, then the relays above it. Behind
//! them all stands this node itself, which is not listed. Nothing is decided here: whoever leads
//! clients sees who is passed over, and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use super::{Distant, Follower, MAX_FOLLOWERS, Reach, Roster};
use crate::{
    bus::{frame::Standing, report::Report},
    model::{FeedName, Head, NodeId, RegionName, RelPath, Subset, Target},
};

/// Relays above one node: a longer chain is a ring.
const MAX_HOPS: usize = 8;

/// A node that clients could be led to.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its identity.
    pub node: NodeId,
    /// Its region.
    pub region: Option<RegionName>,
    /// Where clients reach it; empty where that is not known.
    pub url: String,
    /// The feed's name there; none: the same as here.
    pub feed: Option<FeedName>,
    /// The part of the feed that it keeps.
    pub part: Part,
    /// What it has verified in its directory.
    pub have: Option<Head>,
    /// What its store holds.
    pub fetched: Option<Head>,
    /// Whether its last work failed: what it lacks it may not get.
    pub fails: bool,
    /// What keeps everybody from being led there.
    pub bar: Option<Bar>,
}

/// What keeps everybody from being led to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// It is not connected.
    Away,
    /// Its address was not seen to lead to it.
    Unreached,
    /// Somebody has paused it.
    Paused,
}

/// The part of a feed that a node keeps.
#[derive(Debug, Clone)]
pub enum Part {
    /// All of it.
    Whole,
    /// What these patterns name.
    Of(Arc<Subset>),
    /// It cannot be told which.
    Unknown,
}

impl Part {
    /// Whether a file is in it.
    #[must_use]
    pub fn holds(&self, path: &RelPath) -> bool {
        match self {
            Part::Whole => true,
            Part::Of(subset) => subset.holds(path, false),
            Part::Unknown => false,
        }
    }
}

/// The parts of a feed that nodes keep, each read once.
#[derive(Debug, Default)]
pub(super) struct Parts(BTreeMap<Vec<String>, Part>);

impl Parts {
    /// Reads patterns, where they are new.
    fn note(&mut self, paths: &[String]) {
        if self.0.len() >= MAX_FOLLOWERS {
            return;
        }
        let part = Subset::new(paths).map_or(Part::Unknown, |subset| Part::Of(Arc::new(subset)));
        self.0.insert(paths.to_vec(), part);
    }

    fn knows(&self, paths: &[String]) -> bool {
        paths.is_empty() || self.0.contains_key(paths)
    }

    fn of(&self, paths: &[String]) -> Part {
        if paths.is_empty() {
            return Part::Whole;
        }
        self.0.get(paths).cloned().unwrap_or(Part::Unknown)
    }
}

impl Roster {
    /// The nodes that could serve a region's clients: its own first, then the relays above it.
    pub fn sites_of(&self, now: Instant, region: &RegionName, paused: &[Target]) -> Vec<Site> {
        let bound = self.bindings.get(region);
        if let Some(bound) = bound.filter(|bound| self.is_bound_here(now, &bound.node)) {
            let here = self.followers.get(&bound.node);
            return vec![match here {
                Some(known) => self.site_of(known, now, paused),
                None => absent(&bound.node, region),
            }];
        }
        let below = self.serving_below.get(region);
        let found = below.and_then(|(relay, node)| {
            let relay = self.followers.get(relay)?;
            let report = &relay.below.get(node)?.report;
            serves(report, region).then_some((relay, report))
        });
        let Some((relay, report)) = found else { return Vec::new() };
        let mut sites = vec![self.site_below(report, relay, now)];
        let mut via = &report.via;
        while *via != relay.hello.node && sites.len() < MAX_HOPS {
            let Some(Distant { report: above, .. }) = relay.below.get(via) else { break };
            sites.push(self.site_below(above, relay, now));
            via = &above.via;
        }
        sites.push(self.site_of(relay, now, paused));
        sites
    }

    /// One node.
    pub fn site(&self, now: Instant, node: &NodeId, paused: &[Target]) -> Option<Site> {
        if let Some(known) = self.followers.get(node) {
            return Some(self.site_of(known, now, paused));
        }
        let below = |relay: &'_ Follower| {
            relay.below.get(node).map(|it| self.site_below(&it.report, relay, now))
        };
        self.followers.values().find_map(below)
    }

    /// Whether a region's node is to be looked for among our followers: one that has gone over to a
    /// relay of ours is not.
    fn is_bound_here(&self, now: Instant, node: &NodeId) -> bool {
        let is_live = self.followers.get(node).is_some_and(|known| known.is_live(now));
        is_live || !self.is_live_below(now, node)
    }

    /// Reads the patterns of a node, where they are new; where there is no room those go that nobody
    /// has any more.
    pub(super) fn note_part(&mut self, paths: &[String]) {
        if self.parts.knows(paths) {
            return;
        }
        if self.parts.0.len() >= MAX_FOLLOWERS {
            let below = self.followers.values().flat_map(|known| known.below.values());
            let below = below.map(|distant| &distant.report.paths);
            let here = self.followers.values().map(|known| &known.hello.paths);
            let used: BTreeSet<&Vec<String>> = here.chain(below).collect();
            self.parts.0.retain(|paths, _| used.contains(paths));
        }
        self.parts.note(paths);
    }

    /// Remembers under which relay a region is served.
    pub(super) fn note_below(&mut self, relay: &NodeId, report: &Report) {
        self.note_part(&report.paths);
        let Some(region) = report.region.as_ref().filter(|region| serves(report, region)) else {
            return;
        };
        if self.serving_below.len() >= MAX_FOLLOWERS {
            // Those go whose node is not there any more.
            let followers = &self.followers;
            let is_there = |(relay, node): &(NodeId, NodeId)| {
                followers.get(relay).is_some_and(|relay| relay.below.contains_key(node))
            };
            self.serving_below.retain(|_, place| is_there(place));
        }
        if self.serving_below.len() < MAX_FOLLOWERS || self.serving_below.contains_key(region) {
            let place = (relay.clone(), report.node.clone());
            self.serving_below.insert(region.clone(), place);
        }
    }

    fn site_of(&self, known: &Follower, now: Instant, paused: &[Target]) -> Site {
        let hello = &known.hello;
        let is_paused = known.paused_there || known.is_paused(paused);
        // Who has lost its connection may be dead: nobody is led there until it is back.
        let is_there = known.connected && known.is_live(now);
        Site {
            node: hello.node.clone(),
            region: hello.region.clone(),
            url: known.url.clone().unwrap_or_default(),
            feed: hello.feed.clone(),
            part: self.parts.of(&hello.paths),
            have: known.have,
            fetched: known.fetched,
            fails: known.failure.is_some(),
            bar: bar(is_there, known.url.is_some() && known.reach == Reach::Reached, is_paused),
        }
    }

    fn site_below(&self, report: &Report, relay: &Follower, now: Instant) -> Site {
        let is_there = report.live && relay.connected && relay.is_live(now);
        Site {
            node: report.node.clone(),
            region: report.region.clone(),
            url: report.url.clone().unwrap_or_default(),
            feed: report.feed.clone(),
            part: self.parts.of(&report.paths),
            have: report.have,
            fetched: report.fetched,
            fails: report.error.is_some(),
            bar: bar(is_there, report.url.is_some() && report.reached, report.paused),
        }
    }
}

/// A region's node that is known by its name alone.
fn absent(node: &NodeId, region: &RegionName) -> Site {
    Site {
        node: node.clone(),
        region: Some(region.clone()),
        url: String::new(),
        feed: None,
        part: Part::Unknown,
        have: None,
        fetched: None,
        fails: false,
        bar: Some(Bar::Away),
    }
}

fn bar(is_there: bool, is_reached: bool, is_paused: bool) -> Option<Bar> {
    match (is_there, is_reached, is_paused) {
        (false, ..) => Some(Bar::Away),
        (_, false, _) => Some(Bar::Unreached),
        (.., true) => Some(Bar::Paused),
        _ => None,
    }
}

fn serves(report: &Report, region: &RegionName) -> bool {
    report.standing == Standing::Serving && report.region.as_ref() == Some(region)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        bus::{frame::Hello, roster::Caller},
        model::Bindings,
    };

    fn caller(node: &str, paths: &[&str]) -> Caller {
        let hello = Hello {
            region: Some(format!("in-{node}").parse().unwrap()),
            paths: paths.iter().map(ToString::to_string).collect(),
            ..Hello::of(node.parse().unwrap(), node.parse().unwrap())
        };
        Caller { hello, url: Some(format!("http://{node}")), token: None }
    }

    /// Registers a node whose address leads to it.
    fn joins(roster: &mut Roster, now: Instant, node: &str, paths: &[&str]) {
        roster.register(now, caller(node, paths), None).unwrap();
        roster.reached(&node.parse().unwrap(), &format!("http://{node}"), Reach::Reached);
    }

    fn chain(roster: &Roster, now: Instant, region: &str) -> Vec<(String, Option<Bar>)> {
        let sites = roster.sites_of(now, &region.parse().unwrap(), &[]);
        sites.into_iter().map(|site| (site.node.to_string(), site.bar)).collect()
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn behind_a_regions_node_stand_the_relays_above_it() {
        let now = Instant::now();
        let id = |name: &str| -> NodeId { name.parse().unwrap() };
        let [mut hub, mut relay, mut middle] =
            [(); 3].map(|()| Roster::new(now, Bindings::default()));
        joins(&mut middle, now, "leaf", &["webapps/**"]);
        joins(&mut relay, now, "middle", &[]);
        joins(&mut hub, now, "relay", &[]);
        relay.reported(now, &id("middle"), middle.reports(now, &id("middle"), &[]));
        hub.reported(now, &id("relay"), relay.reports(now, &id("relay"), &[]));
        let all = |bar| [("leaf".to_owned(), bar), ("middle".into(), None), ("relay".into(), None)];
        assert_eq!(chain(&hub, now, "in-leaf"), all(None));
        assert_eq!(chain(&hub, now, "in-relay"), [("relay".to_owned(), None)]);
        assert_eq!(chain(&hub, now, "nowhere"), []);
        let leaf = hub.sites_of(now, &"in-leaf".parse().unwrap(), &[]).remove(0);
        assert!(leaf.part.holds(&path("webapps/a")) && !leaf.part.holds(&path("lib/a")));
        assert_eq!(hub.site(now, &id("leaf"), &[]).unwrap().url, "http://leaf");

        let paused = [Target::Node(id("leaf"))];
        relay.reported(now, &id("middle"), middle.reports(now, &id("middle"), &paused));
        hub.reported(now, &id("relay"), relay.reports(now, &id("relay"), &[]));
        assert_eq!(chain(&hub, now, "in-leaf"), all(Some(Bar::Paused)));
        middle.gone(&id("leaf"), 1);
        let later = now + Duration::from_secs(30);
        relay.reported(now, &id("middle"), middle.reports(later, &id("middle"), &[]));
        hub.reported(now, &id("relay"), relay.reports(now, &id("relay"), &[]));
        assert_eq!(chain(&hub, now, "in-leaf"), all(Some(Bar::Away)));
        hub.gone(&id("relay"), 1);
        assert!(chain(&hub, now, "in-leaf").iter().all(|(_, bar)| *bar == Some(Bar::Away)));
    }

    #[test]
    fn what_keeps_a_node_from_serving_is_said() {
        let now = Instant::now();
        let mut roster = Roster::new(now, Bindings::default());
        let a: NodeId = "a".parse().unwrap();
        roster.register(now, caller("a", &[]), None).unwrap();
        let bar = |roster: &Roster, paused: &[Target]| {
            roster.sites_of(now, &"in-a".parse().unwrap(), paused)[0].bar
        };
        assert_eq!(bar(&roster, &[]), Some(Bar::Unreached));
        roster.reached(&a, "http://a", Reach::Reached);
        assert_eq!(bar(&roster, &[]), None);
        assert_eq!(bar(&roster, &[Target::Feed]), Some(Bar::Paused));
        assert_eq!(bar(&roster, &[Target::Region("in-b".parse().unwrap())]), None);
        roster.gone(&a, 1);
        assert_eq!(bar(&roster, &[]), Some(Bar::Away));
        // After a restart it is known by its binding alone.
        let roster = Roster::new(now, roster.bindings().clone());
        assert_eq!(bar(&roster, &[]), Some(Bar::Away));
    }

    #[test]
    fn parts_that_nobody_has_any_more_make_room() {
        let now = Instant::now();
        let mut roster = Roster::new(now, Bindings::default());
        for number in 0..=MAX_FOLLOWERS {
            joins(&mut roster, now, "a", &[&format!("d{number}/**")]);
        }
        let site = roster.site(now, &"a".parse().unwrap(), &[]).unwrap();
        assert!(site.part.holds(&path(&format!("d{MAX_FOLLOWERS}/a"))));
        assert!(roster.parts.0.len() <= 2, "the last one's, and the one before it");
    }

    #[test]
    fn a_part_that_cannot_be_read_holds_nothing() {
        let now = Instant::now();
        let mut roster = Roster::new(now, Bindings::default());
        joins(&mut roster, now, "a", &["# no pattern"]);
        let site = roster.site(now, &"a".parse().unwrap(), &[]).unwrap();
        assert!(!site.part.holds(&path("a")));
    }
}
