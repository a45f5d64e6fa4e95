//! What a relay tells its upstream of the nodes below it, so that one node can answer for all.
//!
//! A report replaces the one before it of the same node; only what has changed is sent. Ages instead
//! of times: clocks differ.

use serde::{Deserialize, Serialize};

use super::{
    frame::Standing,
    roster::{Follower, Reach},
};
use crate::model::{FeedName, Head, Label, NodeId, RegionName};

/// Reports in one frame: each is a few hundred bytes, and a frame 256 KiB at most.
pub const REPORTS_PER_FRAME: usize = 100;
/// Of an error's text, what a report carries.
const MAX_ERROR: usize = 300;
/// Of the patterns that name a node's part, what a report carries.
const MAX_PATHS: usize = 1_000;

/// Several reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Below {
    /// One for each node that has changed.
    pub nodes: Vec<Report>,
}

/// A node somewhere below the one that reports it.
#[expect(clippy::struct_excessive_bools, reason = "each stands for itself in the frame")]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Its identity.
    pub node: NodeId,
    /// Its name for people.
    pub label: Label,
    /// The region that it names.
    #[serde(default)]
    pub region: Option<RegionName>,
    /// Where others reach it.
    #[serde(default)]
    pub url: Option<String>,
    /// Whether that address was seen to lead to it.
    #[serde(default)]
    pub reached: bool,
    /// The feed's name there; none: as the node that reports it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed: Option<FeedName>,
    /// The part of the feed that it keeps; empty: all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// The node that it follows.
    pub via: NodeId,
    /// What it is to its region there.
    #[serde(default)]
    pub standing: Standing,
    /// Whether it was heard lately.
    #[serde(default)]
    pub live: bool,
    /// What it has verified in its directory.
    #[serde(default)]
    pub have: Option<Head>,
    /// What its store holds.
    #[serde(default)]
    pub fetched: Option<Head>,
    /// Why it does not move on though nothing is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Whether somebody has paused it, or what it hangs from: then nobody is led to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Its last failure, if that is not mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// It was forgotten, and is no longer to be counted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forgotten: bool,
}

impl Report {
    /// Of a follower of the node `via`.
    pub fn of(follower: &Follower, via: &NodeId, live: bool, waits: Option<String>) -> Self {
        let hello = &follower.hello;
        // Nobody is led to a node of which it cannot be said here what it keeps.
        let is_long = hello.paths.iter().map(String::len).sum::<usize>() > MAX_PATHS;
        let error = follower.error().map(|text| text.chars().take(MAX_ERROR).collect());
        Report {
            node: hello.node.clone(),
            label: hello.label.clone(),
            region: hello.region.clone(),
            url: follower.url.clone(),
            reached: follower.reach == Reach::Reached && !is_long,
            feed: hello.feed.clone(),
            paths: if is_long { Vec::new() } else { hello.paths.clone() },
            via: via.clone(),
            standing: follower.standing,
            live,
            have: follower.have,
            fetched: follower.fetched,
            waits,
            paused: follower.paused_there,
            error,
            forgotten: false,
        }
    }
}
