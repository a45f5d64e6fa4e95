//! The frames of `depsync.v1`, spoken over a WebSocket between a follower and its upstream.
//!
//! JSON text with a `type`, except an announced head, which is binary (`announce`). A frame is at
//! most 256 KiB. Fields and types that are not known are ignored, so either side may be newer; what
//! cannot be read is an error and never a panic.

mod announce;
mod fault;

use std::time::Duration;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub use announce::{Announce, MAX_INLINE_PACK};
pub use fault::Fault;

use super::{report::Below, trust::Trust};
use crate::model::{FeedName, Head, Label, NodeId, Orders, RegionName, Target};

/// The WebSocket subprotocol.
pub const SUBPROTOCOL: &str = "depsync.v1";
/// The version that this program speaks.
pub const PROTOCOL: u32 = 1;
/// The version that a subprotocol's name says; none when it is not one of ours.
pub fn version_of(subprotocol: &str) -> Option<u32> {
    subprotocol.trim().strip_prefix("depsync.v")?.parse().ok()
}

/// How often either end says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// Who was not heard for this long is taken for dead: four heartbeats.
pub const SILENCE: Duration = Duration::from_secs(4 * HEARTBEAT.as_secs());
/// The oldest version that it still understands.
pub const OLDEST_PROTOCOL: u32 = 1;
/// The longest frame in bytes: four times the largest pack that travels inside one.
pub const MAX_FRAME: usize = 256 * 1024;
/// A text inside a frame is cut here, so that no frame comes near its bound.
const MAX_ERROR: usize = 2_000;

/// The header by which whoever asks for a head says which one it has.
pub const HEAD_HEADER: &str = "x-depsync-have";

/// A head as that header carries it: `epoch.seq.commit`.
pub fn head_to_text(head: &Head) -> String {
    format!("{}.{}.{}", head.epoch, head.seq, head.commit)
}

/// Reads it; none when it is no head.
pub fn head_from_text(text: &str) -> Option<Head> {
    let mut parts = text.split('.');
    let head = Head {
        epoch: parts.next()?.parse().ok()?,
        seq: parts.next()?.parse().ok()?,
        commit: parts.next()?.parse().ok()?,
    };
    parts.next().is_none().then_some(head)
}

/// Why bytes are not a frame.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// Longer than any frame.
    #[error("the frame has {0} bytes, more than {MAX_FRAME}")]
    TooLong(usize),
    /// A binary frame whose inner length does not fit.
    #[error("the frame is shorter than it says")]
    Truncated,
    /// Not the JSON that it should be.
    #[error("the frame cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// The text frames that an upstream sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromUpstream {
    /// The answer to a hello.
    Welcome(Welcome),
    /// Every five seconds.
    Heartbeat(Heartbeat),
    /// Why there will be no conversation; the connection closes behind it.
    Fault(Fault),
    /// Over NATS, to one follower: its hello is wanted again.
    HelloAgain,
    /// Of a newer program: ignored.
    #[serde(other)]
    Unknown,
}

/// The text frames that a follower sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromFollower {
    /// The first frame.
    Hello(Hello),
    /// The answer to a heartbeat.
    Heartbeat(Pulse),
    /// What became of a head.
    Ack(Ack),
    /// How far a transfer is.
    Progress(Progress),
    /// A relay: what has changed among the nodes below it.
    Below(Below),
    /// Of a newer program: ignored.
    #[serde(other)]
    Unknown,
}

/// First frame of a follower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The version it speaks.
    pub protocol: u32,
    /// Its identity.
    pub node: NodeId,
    /// Its name for people.
    pub label: Label,
    /// The region whose compute hosts it serves; none for a mere mirror.
    #[serde(default)]
    pub region: Option<RegionName>,
    /// Where others reach it; none: at the address that the upstream sees, on `port`.
    #[serde(default)]
    pub url: Option<String>,
    /// The port on which it listens.
    #[serde(default)]
    pub port: Option<u16>,
    /// What it has verified in its directory.
    #[serde(default)]
    pub have: Option<Head>,
    /// What its store holds, which may be ahead of `have`.
    #[serde(default)]
    pub fetched: Option<Head>,
    /// The feed's name there; none: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed: Option<FeedName>,
    /// The part of the feed that it keeps; empty: all of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// It would hear the rest over NATS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nats: bool,
}

impl Hello {
    /// Of a node that says no more of itself than who it is.
    pub fn of(node: NodeId, label: Label) -> Self {
        Hello {
            protocol: PROTOCOL,
            node,
            label,
            region: None,
            url: None,
            port: None,
            have: None,
            fetched: None,
            feed: None,
            paths: Vec::new(),
            nats: false,
        }
    }
}

/// The upstream's answer to a hello.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version that the upstream speaks.
    pub protocol: u32,
    /// Its identity.
    pub node: NodeId,
    /// Its name for people.
    pub label: Label,
    /// The feed's head there; none: nothing is published yet.
    #[serde(default)]
    pub head: Option<Head>,
    /// The feed's profile, as its primary has it; empty where there is none.
    #[serde(default)]
    pub profile: String,
    /// Whether the follower serves the region that it named.
    #[serde(default)]
    pub standing: Standing,
    /// Whether the follower is to stay where it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Over how many milliseconds the followers are to spread their fetches.
    #[serde(default)]
    pub spread_ms: u64,
    /// Pins and revocations, for it and for the nodes below it.
    #[serde(default, skip_serializing_if = "Orders::is_empty")]
    pub orders: Orders,
    /// Who may read at the follower; none where the upstream asks nobody for a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// What the follower's operator should know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
    /// The rest is said over NATS, as the follower wished, and this connection ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Session>,
}

/// By this an upstream knows which hello a follower has said, over NATS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Another one after each start of the upstream.
    pub run: u32,
    /// The number of the hello.
    pub connection: u64,
    /// What was trusted then.
    #[serde(default)]
    pub trust_version: u64,
}

/// What a follower is to the region that it named.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It is the region's node: clients are led to it.
    Serving,
    /// Another live node serves the region; this one stands by.
    Standby,
    /// It named none, or the upstream did not say.
    #[default]
    #[serde(other)]
    Mirror,
}

/// The upstream's sign of life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The feed's head there, so that a lost announcement costs five seconds.
    #[serde(default)]
    pub head: Option<Head>,
    /// As in the welcome: a standby hears by this that it has taken over.
    #[serde(default)]
    pub standing: Standing,
    /// As in the welcome.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// As in the welcome.
    #[serde(default)]
    pub spread_ms: u64,
    /// As in the welcome.
    #[serde(default, skip_serializing_if = "Orders::is_empty")]
    pub orders: Orders,
    /// As in the welcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// Over NATS, where one heartbeat is for all: who is to stay where it is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused_targets: Vec<Target>,
    /// Over NATS, where no secret is said: another one than in the session, and what is trusted has
    /// changed; the next welcome says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_version: Option<u64>,
}

/// The follower's sign of life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulse {
    /// What it has verified in its directory.
    #[serde(default)]
    pub have: Option<Head>,
    /// What its store holds.
    #[serde(default)]
    pub fetched: Option<Head>,
    /// Why it does not move on though nothing is wrong: paused there, pinned, waiting for its hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<String>,
    /// Whether that is because somebody has paused it: then nobody is led to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Its last failure, until that is mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of a head at a follower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It lies verified and durable in the directory (or, without a checkout, in the store).
    Verified,
    /// It could not be fetched or put in place; the follower tries again.
    Failed,
    /// It is behind the follower or on another line.
    Refused,
    /// A hook of the follower's refuses to have it checked out.
    Vetoed,
    /// It lies in the directory, and the hook that is run then has failed.
    HookFailed,
    /// Of a newer program.
    #[serde(other)]
    Other,
}

/// A follower's report on a head.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// The head.
    #[serde(flatten)]
    pub head: Head,
    /// What became of it.
    pub outcome: Outcome,
    /// Milliseconds since the follower heard of it.
    #[serde(default)]
    pub took_ms: u64,
    /// Why it failed or was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far a follower is with fetching a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The head.
    #[serde(flatten)]
    pub head: Head,
    /// Bytes that have come.
    pub done: u64,
    /// Bytes in all, as far as they are known.
    pub total: u64,
    /// Bytes a second in the last seconds; none before there is something to tell it from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u64>,
    /// Milliseconds until the rest has come at that rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_ms: Option<u64>,
}

impl Ack {
    /// A report on `head`; the error's text is cut to what a frame may carry.
    pub fn new(head: Head, outcome: Outcome, took_ms: u64, error: Option<&str>) -> Self {
        let error = error.map(|text| text.chars().take(MAX_ERROR).collect());
        Ack { head, outcome, took_ms, error }
    }
}

/// A text frame's JSON.
///
/// # Panics
/// Never: frames are plain data.
pub fn encode<T: Serialize>(frame: &T) -> String {
    serde_json::to_string(frame).expect("frames are plain data")
}

/// Reads a text frame.
///
/// # Errors
/// When it is too long or is not such a frame.
pub fn decode<T: DeserializeOwned>(text: &str) -> Result<T, BadFrame> {
    if text.len() > MAX_FRAME {
        return Err(BadFrame::TooLong(text.len()));
    }
    Ok(serde_json::from_str(text)?)
}

#[cfg(test)]
mod tests;
