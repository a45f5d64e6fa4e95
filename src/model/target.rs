//! Whom a decision is about: every node of a feed, one node, or whoever stands for a region.

use serde::{Deserialize, Serialize};

use super::{NodeId, RegionName};

/// Whom a pin or a pause is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Every node.
    Feed,
    /// One node.
    Node(NodeId),
    /// Whoever stands for a region.
    Region(RegionName),
}

impl Target {
    /// Whether it means this node, which stands for this region.
    #[must_use]
    pub fn is_about(&self, node: &NodeId, region: Option<&RegionName>) -> bool {
        match self {
            Target::Feed => true,
            Target::Node(meant) => meant == node,
            Target::Region(meant) => Some(meant) == region,
        }
    }
}
