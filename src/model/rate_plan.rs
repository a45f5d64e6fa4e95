//! The limits that an operator sets on what this node sends, and the place of a client among them.
//!
//! A limit that is absent is none. Of several networks that hold a client the smallest counts; a
//! network by address comes before one by region.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{Rate, RegionName};

/// All limits of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RatePlan {
    /// Over everything that is sent.
    pub total: Option<Rate>,
    /// Over what compute hosts download.
    pub downloads: Option<Rate>,
    /// Over what mirrors fetch.
    pub replication: Option<Rate>,
    /// For each compute host, whatever its connections.
    pub per_client: Option<Rate>,
    /// For networks and regions, in each class.
    pub networks: Vec<NetworkLimit>,
}

/// The limit of a network or a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkLimit {
    /// Whom it is for.
    #[serde(flatten)]
    pub network: Network,
    /// How much.
    pub limit: Rate,
}

/// Clients that share a limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Those with an address in it.
    Cidr(IpNet),
    /// Those that the region table counts among this region.
    Region(RegionName),
}

/// What a transfer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// A compute host downloads.
    Downloads,
    /// A mirror fetches.
    Replication,
}

impl RatePlan {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        *self == RatePlan::default()
    }

    /// The limit of a class.
    #[must_use]
    pub fn of_class(&self, class: Traffic) -> Option<Rate> {
        match class {
            Traffic::Downloads => self.downloads,
            Traffic::Replication => self.replication,
        }
    }

    /// The position in `networks` of the one that counts for a client.
    #[must_use]
    pub fn network_of(&self, client: IpAddr, region: Option<&RegionName>) -> Option<usize> {
        let client = client.to_canonical();
        let size = |network: &Network| match network {
            Network::Cidr(net) if net.contains(&client) => {
                Some(net.max_prefix_len() - net.prefix_len())
            }
            Network::Region(name) if Some(name) == region => Some(u8::MAX),
            _ => None,
        };
        let sized =
            self.networks.iter().enumerate().filter_map(|(at, n)| Some((size(&n.network)?, at)));
        sized.min().map(|(_, at)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_network_counts_and_a_region_last() {
        let cidr = |text: &str| Network::Cidr(text.parse().unwrap());
        let region: RegionName = "eu".parse().unwrap();
        let networks = [Network::Region(region.clone()), cidr("10.0.0.0/8"), cidr("10.1.0.0/16")];
        let limit = "1MB/s".parse().unwrap();
        let plan = RatePlan {
            networks: networks.into_iter().map(|network| NetworkLimit { network, limit }).collect(),
            ..RatePlan::default()
        };
        for (client, in_region, at) in [
            ("10.1.2.3", true, Some(2)),
            ("::ffff:10.1.2.3", true, Some(2)),
            ("10.2.2.3", false, Some(1)),
            ("11.0.0.1", true, Some(0)),
            ("11.0.0.1", false, None),
        ] {
            let of = in_region.then_some(&region);
            assert_eq!(plan.network_of(client.parse().unwrap(), of), at, "{client}");
        }
    }
}
