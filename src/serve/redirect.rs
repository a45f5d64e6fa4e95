//! Who serves a client: its region's node, another one that it asks for, or this node.
//!
//! The decision is pure. A forwarded address is believed only from a listed proxy, and only as far
//! as the chain of listed proxies reaches, so that no client can name its own address.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;
use serde::Serialize;

use crate::model::{FeedName, NodeId, RegionName, RegionTable};

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

/// A live node that serves a region.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mirror {
    pub(super) node: NodeId,
    pub(super) url: String,
    /// The feed's name there; none: the same as here.
    pub(super) feed: Option<FeedName>,
}

/// Where live mirrors are found.
pub(super) trait Mirrors {
    /// The live node that serves a region.
    fn of_region(&self, region: &RegionName) -> Option<Mirror>;
    /// A live node by its id.
    fn of_node(&self, node: &str) -> Option<Mirror>;
}

/// Who serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    /// This node.
    Here,
    /// Another one.
    Mirror(Mirror),
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
    /// No entry of the table holds the client.
    NoEntry,
    /// The region has no live node.
    RegionDown,
    /// What the client asked for is not known or not live.
    ViaDown,
}

/// The decision, with what led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) server: Server,
    /// The region that the client belongs to, or asked for.
    pub(super) region: Option<RegionName>,
    pub(super) why: Why,
}

/// The region that a client belongs to.
pub(super) fn region_of<'t>(table: &'t RegionTable, client: &Client<'_>) -> Option<&'t RegionName> {
    if table.by_group() { table.of_group(client.group?) } else { table.of_address(client.addr?) }
}

/// Decides who serves a client.
pub(super) fn who_serves(
    table: &RegionTable,
    client: &Client<'_>,
    mirrors: &impl Mirrors,
) -> Choice {
    if let Some(via) = client.via {
        return by_wish(via, mirrors);
    }
    let why = if table.by_group() { Why::ResourceGroup } else { Why::Address };
    let Some(region) = region_of(table, client) else {
        return Choice { server: Server::Here, region: None, why: Why::NoEntry };
    };
    let region = Some(region.clone());
    match region.as_ref().and_then(|region| mirrors.of_region(region)) {
        Some(mirror) => Choice { server: Server::Mirror(mirror), region, why },
        None => Choice { server: Server::Here, region, why: Why::RegionDown },
    }
}

fn by_wish(via: &str, mirrors: &impl Mirrors) -> Choice {
    let here = |why| Choice { server: Server::Here, region: None, why };
    if via == "primary" {
        return here(Why::Via);
    }
    if let Some(mirror) = mirrors.of_node(via) {
        return Choice { server: Server::Mirror(mirror), region: None, why: Why::Via };
    }
    let Ok(region) = via.parse::<RegionName>() else { return here(Why::ViaDown) };
    match mirrors.of_region(&region) {
        Some(mirror) => {
            Choice { server: Server::Mirror(mirror), region: Some(region), why: Why::Via }
        }
        None => Choice { server: Server::Here, region: Some(region), why: Why::ViaDown },
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
    use crate::model::{Member, Region};

    struct Fleet;

    impl Mirrors for Fleet {
        fn of_region(&self, region: &RegionName) -> Option<Mirror> {
            (region.as_str() == "eu").then(|| mirror("node-eu"))
        }

        fn of_node(&self, node: &str) -> Option<Mirror> {
            ["node-eu", "standby"].contains(&node).then(|| mirror(node))
        }
    }

    fn mirror(node: &str) -> Mirror {
        Mirror { node: node.parse().unwrap(), url: format!("http://{node}"), feed: None }
    }

    fn table(members: [(&str, Member); 2]) -> RegionTable {
        let region = |(name, member): (&str, Member)| Region {
            name: name.parse().unwrap(),
            members: vec![member],
        };
        RegionTable::build(members.map(region).into()).unwrap()
    }

    #[test]
    fn a_client_is_led_to_the_live_node_of_its_region() {
        let range = |text: &str| Member::Range(text.parse().unwrap());
        let by_range = table([("eu", range("10.1.0.0/16")), ("us", range("10.2.0.0/16"))]);
        let group = |text: &str| Member::Group(text.to_owned());
        let by_group = table([("eu", group("ComputeEU")), ("us", group("ComputeUS"))]);
        let none = RegionTable::default();
        for (table, addr, group, via, server, region, why) in [
            (&by_range, "10.1.0.9", None, None, Some("node-eu"), Some("eu"), Why::Address),
            (&by_range, "::ffff:10.1.0.9", None, None, Some("node-eu"), Some("eu"), Why::Address),
            (&by_range, "10.2.0.9", None, None, None, Some("us"), Why::RegionDown),
            (&by_range, "10.3.0.9", None, None, None, None, Why::NoEntry),
            (&by_range, "10.3.0.9", Some("ComputeEU"), None, None, None, Why::NoEntry),
            (
                &by_group,
                "10.1.0.9",
                Some("ComputeEU"),
                None,
                Some("node-eu"),
                Some("eu"),
                Why::ResourceGroup,
            ),
            (&by_group, "10.1.0.9", None, None, None, None, Why::NoEntry),
            (&by_range, "10.1.0.9", None, Some("primary"), None, None, Why::Via),
            (&by_range, "10.3.0.9", None, Some("standby"), Some("standby"), None, Why::Via),
            (&by_range, "10.3.0.9", None, Some("eu"), Some("node-eu"), Some("eu"), Why::Via),
            (&by_range, "10.1.0.9", None, Some("us"), None, Some("us"), Why::ViaDown),
            (&by_range, "10.1.0.9", None, Some("no such!"), None, None, Why::ViaDown),
            (&none, "10.1.0.9", None, None, None, None, Why::NoEntry),
        ] {
            let client = Client { addr: Some(addr.parse().unwrap()), group, via };
            let choice = who_serves(table, &client, &Fleet);
            let expected = server.map_or(Server::Here, |node| Server::Mirror(mirror(node)));
            assert_eq!(choice.server, expected, "{client:?}");
            assert_eq!(choice.region.as_ref().map(RegionName::as_str), region, "{client:?}");
            assert_eq!(choice.why, why, "{client:?}");
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
