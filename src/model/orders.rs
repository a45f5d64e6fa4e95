//! What a feed's primary has decided about the nodes below it: pins and revocations.
//!
//! They travel with every heartbeat and are kept by every node, so that a node which starts alone
//! still obeys the last it heard.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Head, NodeId, Oid, RegionName, Target};

/// Pins of one feed, at most: each travels with every heartbeat.
pub const MAX_PINS: usize = 256;
/// Revoked commits of one feed, at most.
pub const MAX_REVOKED: usize = 1_000;

/// A commit that a target is kept at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pinned {
    /// Who.
    pub target: Target,
    /// Where.
    pub head: Head,
}

/// The standing orders for the nodes that mirror a feed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orders {
    /// Whom to keep where.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pinned>,
    /// Commits that nobody checks out or is given.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub revoked: BTreeSet<Oid>,
}

impl Orders {
    /// Where a node is kept; the closest order counts: the node's, its region's, the feed's.
    #[must_use]
    pub fn pin_of(&self, node: &NodeId, region: Option<&RegionName>) -> Option<Head> {
        let rank = |target: &Target| match target {
            Target::Node(_) => 0,
            Target::Region(_) => 1,
            Target::Feed => 2,
        };
        let about = self.pins.iter().filter(|pin| pin.target.is_about(node, region));
        about.min_by_key(|pin| rank(&pin.target)).map(|pin| pin.head)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pins.is_empty() && self.revoked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_pin_counts() {
        let head = |seq| Head { epoch: 1, seq, commit: Oid::from_bytes([7; 20]) };
        let (node, eu): (NodeId, RegionName) = ("n1".parse().unwrap(), "eu".parse().unwrap());
        let pin = |target, seq| Pinned { target, head: head(seq) };
        let mut orders = Orders::default();
        assert_eq!(orders.pin_of(&node, Some(&eu)), None);
        orders.pins.push(pin(Target::Feed, 1));
        orders.pins.push(pin(Target::Node("n2".parse().unwrap()), 2));
        assert_eq!(orders.pin_of(&node, Some(&eu)), Some(head(1)));
        orders.pins.push(pin(Target::Region(eu.clone()), 3));
        assert_eq!(orders.pin_of(&node, Some(&eu)), Some(head(3)));
        assert_eq!(orders.pin_of(&node, None), Some(head(1)));
        orders.pins.push(pin(Target::Node(node.clone()), 4));
        assert_eq!(orders.pin_of(&node, Some(&eu)), Some(head(4)));
    }
}
