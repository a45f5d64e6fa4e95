//! Which node serves which region.
//!
//! The first hello binds a region to a node and its token; the bindings outlive a restart.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{NodeId, RegionName};

/// Which node serves which region.
pub type Bindings = BTreeMap<RegionName, Binding>;

/// The node that serves a region.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binding {
    /// Its identity.
    pub node: NodeId,
    /// The name of the token it came with; none where none is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
}
