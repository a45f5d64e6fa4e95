//! Who serves a client: its region's node, a relay above that, one that it asks for, or this node.
//!
//! The decision is pure. Nobody is led to a node that is paused, kept at another version, without the
//! path, or unable to fetch what it lacks; a pinned region's clients get the pinned version. A forwarded address is believed only from a listed proxy, and only as far
//! as the chain of listed proxies reaches, so that no client can name its own address.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;
use serde::Serialize;

use crate::{
    bus::{Bar, Site},
    model::{Head, NodeId, Orders, RegionName, RegionTable, RelPath},
};

/// Who asks, as far as it decides who serves.
#[derive(Debug, Clone, Default)]
pub(super) struct Client<'a> {
    /// The address; none where it is not known.
    pub(super) addr: Option<IpAddr>,
    /// The resource group that it names.
    pub(super) group: Option<&'a str>,
    /// A node's id, a region's name, or `primary`.
    pub(super) via: Option<&'a str>,
}

/// The nodes that clients can be led to.
pub(super) trait Fleet {
    /// Those that could serve a region, the nearest first.
    fn of_region(&self, region: &RegionName) -> Vec<Site>;
    /// One by its id.
    fn of_node(&self, node: &str) -> Option<Site>;
}

/// What there is to be served.
pub(super) struct Versions<'a> {
    pub(super) newest: Head,
    /// Who is kept at another one.
    pub(super) orders: &'a Orders,
}

/// What is known before anybody has looked at the path: which version a client gets, and from which
/// nodes at best.
#[derive(Debug, Clone)]
pub(super) struct Aim {
    /// The region that the client belongs to, or asked for.
    pub(super) region: Option<RegionName>,
    /// The one that all of the region's clients get, whoever serves them.
    pub(super) version: Head,
    sites: Vec<Site>,
    why: Why,
    orders: Orders,
}

/// Why it is the one who serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Why {
    /// The client asked for it.
    Via,
    /// The client's address is in a range of its region.
    Address,
    /// The client's resource group belongs to its region.
    ResourceGroup,
    /// It is a relay above the region, whose own node cannot serve this.
    Relay,
    /// No entry of the table holds the client.
    NoEntry,
    /// Neither the region's node nor a relay above it can serve this.
    RegionDown,
    /// What the client asked for is not known, or cannot serve this.
    ViaDown,
}

/// Why a node is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Passed {
    /// It is not connected.
    Away,
    /// Its address does not lead to it, or was not tried yet.
    Unreached,
    /// It is paused.
    Paused,
    /// It is kept at another version.
    Pinned,
    /// It keeps a part of the feed that the path is not in.
    OtherPart,
    /// It lacks the version, and its last fetch has failed.
    CannotFetch,
}

impl From<Bar> for Passed {
    fn from(bar: Bar) -> Self {
        match bar {
            Bar::Away => Passed::Away,
            Bar::Unreached => Passed::Unreached,
            Bar::Paused => Passed::Paused,
        }
    }
}

/// The decision, with what led to it.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// Who serves; none: this node.
    pub(super) server: Option<Site>,
    pub(super) why: Why,
    /// Who comes before the one who serves, and why it does not.
    pub(super) passed: Vec<(NodeId, Passed)>,
}

/// The region that a client belongs to.
pub(super) fn region_of<'t>(table: &'t RegionTable, client: &Client<'_>) -> Option<&'t RegionName> {
    if table.by_group() { table.of_group(client.group?) } else { table.of_address(client.addr?) }
}

/// Which version a client gets, and from where at best.
pub(super) fn aim(
    table: &RegionTable,
    client: &Client<'_>,
    fleet: &impl Fleet,
    versions: &Versions<'_>,
) -> Aim {
    let (region, sites, why) = match client.via {
        Some("primary") => (None, Vec::new(), Why::Via),
        Some(via) => by_wish(via, fleet),
        None => match region_of(table, client) {
            None => (None, Vec::new(), Why::NoEntry),
            Some(region) => {
                let why = if table.by_group() { Why::ResourceGroup } else { Why::Address };
                (Some(region.clone()), fleet.of_region(region), why)
            }
        },
    };
    let pin = sites.first().and_then(|own| versions.orders.pin_of(&own.node, own.region.as_ref()));
    let orders =
        if versions.orders.pins.is_empty() { Orders::default() } else { versions.orders.clone() };
    Aim { region, version: pin.unwrap_or(versions.newest), sites, why, orders }
}

fn by_wish(via: &str, fleet: &impl Fleet) -> (Option<RegionName>, Vec<Site>, Why) {
    if let Some(site) = fleet.of_node(via) {
        return (None, vec![site], Why::Via);
    }
    let Ok(region) = via.parse::<RegionName>() else { return (None, Vec::new(), Why::ViaDown) };
    let sites = fleet.of_region(&region);
    let why = if sites.is_empty() { Why::ViaDown } else { Why::Via };
    (Some(region), sites, why)
}

impl Aim {
    /// The nearest node that has a file in this version, or can fetch it before it answers. `paths`
    /// are the file's: as it was asked for, and where links have led.
    pub(super) fn choose(mut self, paths: [&RelPath; 2]) -> Choice {
        let mut passed = Vec::new();
        for (at, site) in self.sites.iter().enumerate() {
            let Some(reason) = self.passes_over(site, paths) else {
                let relay = at > 0 && self.why != Why::Via;
                let why = if relay { Why::Relay } else { self.why };
                return Choice { server: Some(self.sites.swap_remove(at)), why, passed };
            };
            passed.push((site.node.clone(), reason));
        }
        let why = match self.why {
            Why::Address | Why::ResourceGroup => Why::RegionDown,
            Why::Via if !passed.is_empty() => Why::ViaDown,
            why => why,
        };
        Choice { server: None, why, passed }
    }

    fn passes_over(&self, site: &Site, paths: [&RelPath; 2]) -> Option<Passed> {
        let pin = self.orders.pin_of(&site.node, site.region.as_ref());
        let has = site.have == Some(self.version) || site.fetched == Some(self.version);
        match site.bar {
            Some(bar) => Some(bar.into()),
            None if pin.is_some_and(|pin| pin != self.version) => Some(Passed::Pinned),
            None if !paths.iter().all(|path| site.part.holds(path)) => Some(Passed::OtherPart),
            None if !has && site.fails => Some(Passed::CannotFetch),
            None => None,
        }
    }
}

/// The client's own address: the peer's, or the rightmost forwarded one that is no listed proxy.
pub(super) fn client_addr(peer: IpAddr, headers: &HeaderMap, proxies: &[IpNet]) -> IpAddr {
    let trusted = |addr: IpAddr| proxies.iter().any(|net| net.contains(&addr));
    let mut client = peer.to_canonical();
    let lists = headers.get_all("x-forwarded-for").iter().rev();
    let mut hops = lists.flat_map(|list| list.to_str().unwrap_or("?").rsplit(','));
    while trusted(client) {
        // What cannot be read ends the chain: whoever sent it is the last address that is known.
        let Some(Ok(hop)) = hops.next().map(|hop| parse_hop(hop.trim())) else { break };
        client = hop.to_canonical();
    }
    client
}

/// An address as proxies write it: plain, in brackets, or with a port.
fn parse_hop(text: &str) -> Result<IpAddr, std::net::AddrParseError> {
    let plain = text.trim_start_matches('[').trim_end_matches(']');
    let with_port = || text.parse::<std::net::SocketAddr>().map(|addr| addr.ip());
    plain.parse().or_else(|_| with_port())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bus::Part,
        model::{Member, Oid, Pinned, Region, Subset, Target},
    };

    /// Regions with their nodes, the nearest first.
    #[derive(Default)]
    struct Nodes(Vec<(&'static str, Vec<Site>)>);

    impl Fleet for Nodes {
        fn of_region(&self, region: &RegionName) -> Vec<Site> {
            let found = self.0.iter().find(|(name, _)| *name == region.as_str());
            found.map(|(_, sites)| sites.clone()).unwrap_or_default()
        }

        fn of_node(&self, node: &str) -> Option<Site> {
            self.0.iter().flat_map(|(_, sites)| sites).find(|s| s.node.as_str() == node).cloned()
        }
    }

    fn head(seq: u64) -> Head {
        Head { epoch: 1, seq, commit: Oid::from_bytes([u8::try_from(seq).unwrap(); 20]) }
    }

    fn site(node: &str, region: &str) -> Site {
        Site {
            node: node.parse().unwrap(),
            region: Some(region.parse().unwrap()),
            url: format!("http://{node}"),
            feed: None,
            part: Part::Whole,
            have: Some(head(9)),
            fetched: Some(head(9)),
            fails: false,
            bar: None,
        }
    }

    fn table(members: [(&str, Member); 2]) -> RegionTable {
        let region = |(name, member): (&str, Member)| Region {
            name: name.parse().unwrap(),
            members: vec![member],
        };
        RegionTable::build(members.map(region).into()).unwrap()
    }

    fn by_range() -> RegionTable {
        let range = |text: &str| Member::Range(text.parse().unwrap());
        table([("eu", range("10.1.0.0/16")), ("us", range("10.2.0.0/16"))])
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn choose(
        table: &RegionTable,
        client: &Client<'_>,
        fleet: &Nodes,
        orders: &Orders,
    ) -> (Choice, Aim) {
        let aim = aim(table, client, fleet, &Versions { newest: head(9), orders });
        (aim.clone().choose([&path("lib/a"), &path("lib/a")]), aim)
    }

    fn name(choice: &Choice) -> Option<&str> {
        choice.server.as_ref().map(|site| site.node.as_str())
    }

    #[test]
    fn a_client_is_led_to_the_live_node_of_its_region() {
        let by_range = by_range();
        let group = |text: &str| Member::Group(text.to_owned());
        let by_group = table([("eu", group("ComputeEU")), ("us", group("ComputeUS"))]);
        let none = RegionTable::default();
        let fleet = Nodes(vec![("eu", vec![site("node-eu", "eu"), site("relay", "hub")])]);
        let g = Some("ComputeEU");
        for (table, addr, group, via, server, region, why) in [
            (&by_range, "10.1.0.9", None, None, Some("node-eu"), Some("eu"), Why::Address),
            (&by_range, "::ffff:10.1.0.9", None, None, Some("node-eu"), Some("eu"), Why::Address),
            (&by_range, "10.2.0.9", None, None, None, Some("us"), Why::RegionDown),
            (&by_range, "10.3.0.9", None, None, None, None, Why::NoEntry),
            (&by_range, "10.3.0.9", g, None, None, None, Why::NoEntry),
            (&by_group, "10.1.0.9", g, None, Some("node-eu"), Some("eu"), Why::ResourceGroup),
            (&by_group, "10.1.0.9", None, None, None, None, Why::NoEntry),
            (&by_range, "10.1.0.9", None, Some("primary"), None, None, Why::Via),
            (&by_range, "10.3.0.9", None, Some("relay"), Some("relay"), None, Why::Via),
            (&by_range, "10.3.0.9", None, Some("eu"), Some("node-eu"), Some("eu"), Why::Via),
            (&by_range, "10.1.0.9", None, Some("us"), None, Some("us"), Why::ViaDown),
            (&by_range, "10.1.0.9", None, Some("no such!"), None, None, Why::ViaDown),
            (&none, "10.1.0.9", None, None, None, None, Why::NoEntry),
        ] {
            let client = Client { addr: Some(addr.parse().unwrap()), group, via };
            let (choice, aim) = choose(table, &client, &fleet, &Orders::default());
            assert_eq!(name(&choice), server, "{client:?}");
            assert_eq!(aim.region.as_ref().map(RegionName::as_str), region, "{client:?}");
            assert_eq!((choice.why, aim.version), (why, head(9)), "{client:?}");
            assert!(choice.passed.is_empty());
        }
    }

    #[test]
    fn a_node_that_cannot_serve_is_passed_over_for_its_relay_and_then_for_the_primary() {
        let table = by_range();
        let eu = || site("node-eu", "eu");
        let behind = |fails| Site { have: Some(head(8)), fetched: Some(head(8)), fails, ..eu() };
        let part = Part::Of(Subset::new(["webapps/**"]).unwrap().into());
        let barred = |bar| Site { bar: Some(bar), ..eu() };
        for (own, passed) in [
            (behind(false), None),
            (Site { fails: true, ..eu() }, None),
            (behind(true), Some(Passed::CannotFetch)),
            (Site { part, ..eu() }, Some(Passed::OtherPart)),
            (Site { part: Part::Unknown, ..eu() }, Some(Passed::OtherPart)),
            (barred(Bar::Away), Some(Passed::Away)),
            (barred(Bar::Unreached), Some(Passed::Unreached)),
            (barred(Bar::Paused), Some(Passed::Paused)),
        ] {
            let client = Client { addr: Some([10, 1, 0, 9].into()), ..Client::default() };
            let relay = site("relay", "hub");
            let away = Site { bar: Some(Bar::Away), ..relay.clone() };
            for (above, expected, why) in [
                (vec![relay], Some("relay"), Why::Relay),
                (vec![away], None, Why::RegionDown),
                (vec![], None, Why::RegionDown),
            ] {
                let fleet = Nodes(vec![("eu", [vec![own.clone()], above].concat())]);
                let (choice, _) = choose(&table, &client, &fleet, &Orders::default());
                let (expected, why) = if passed.is_some() {
                    (expected, why)
                } else {
                    (Some("node-eu"), Why::Address)
                };
                assert_eq!((name(&choice), choice.why), (expected, why), "{own:?}");
                assert_eq!(choice.passed.first().map(|(_, reason)| *reason), passed, "{own:?}");
            }
        }
    }

    #[test]
    fn a_pinned_regions_clients_get_the_pinned_version_whoever_serves_them() {
        let table = by_range();
        let pin =
            |target| Orders { pins: vec![Pinned { target, head: head(3) }], ..Orders::default() };
        let region = |name: &str| Target::Region(name.parse().unwrap());
        let client = Client { addr: Some([10, 1, 0, 9].into()), ..Client::default() };
        let away = Site { bar: Some(Bar::Away), ..site("node-eu", "eu") };
        for (own, target, server, version, passed) in [
            (site("node-eu", "eu"), region("eu"), Some("node-eu"), 3, None),
            (
                site("node-eu", "eu"),
                Target::Node("node-eu".parse().unwrap()),
                Some("node-eu"),
                3,
                None,
            ),
            (site("node-eu", "eu"), region("us"), Some("node-eu"), 9, None),
            (away.clone(), region("eu"), Some("relay"), 3, None),
            // The relay is kept elsewhere, and the region is not.
            (away.clone(), region("hub"), None, 9, Some(Passed::Pinned)),
            (away, Target::Feed, Some("relay"), 3, None),
        ] {
            let fleet = Nodes(vec![("eu", vec![own, site("relay", "hub")])]);
            let orders = pin(target);
            let (choice, aim) = choose(&table, &client, &fleet, &orders);
            assert_eq!((name(&choice), aim.version), (server, head(version)), "{orders:?}");
            if passed.is_some() {
                assert_eq!(choice.passed.last().map(|(_, reason)| *reason), passed);
            }
            let elsewhere = Client { addr: Some([10, 3, 0, 9].into()), ..Client::default() };
            let (_, aim) = choose(&table, &elsewhere, &fleet, &orders);
            assert_eq!(aim.version, head(9), "who belongs to no region gets the newest");
        }
    }

    #[test]
    fn a_forwarded_address_is_believed_only_from_proxies() {
        let proxies = ["10.0.0.0/24".parse().unwrap(), "fd00::/8".parse().unwrap()];
        for (peer, forwarded, client) in [
            ("9.9.9.9", &["1.1.1.1"][..], "9.9.9.9"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("::ffff:10.0.0.1", &["1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6, 1.1.1.1, 10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1", &["6.6.6.6", "1.1.1.1,10.0.0.2"], "1.1.1.1"),
            ("10.0.0.1", &["10.0.0.3,10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["6.6.6.6, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, unknown, 10.0.0.2"], "10.0.0.2"),
            ("fd00::1", &["[2001:db8::7]"], "2001:db8::7"),
            ("fd00::1", &["[2001:db8::7]:443"], "2001:db8::7"),
            ("10.0.0.1", &["1.1.1.1:5555"], "1.1.1.1"),
        ] {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append("x-forwarded-for", value.parse().unwrap());
            }
            let found = client_addr(peer.parse().unwrap(), &headers, &proxies);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
        }
    }
}
