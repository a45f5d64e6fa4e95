//! The words of `follow`: what has happened, what is to be done, and how a mirror stands.
//!
//! Events are in the past tense, effects in the imperative. Plain data.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    bus::frame::Ack,
    model::{Head, Oid},
};

/// A commit that came inside its announcement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// The announced head.
    pub head: Head,
    /// The commit before it.
    pub parent: Option<Oid>,
    /// What its parent lacks of it.
    pub pack: Bytes,
}

/// What an upstream asks of a follower, beside its head.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Manner {
    /// Stay where you are.
    pub paused: bool,
    /// Spread fetches over this time: others fetch too.
    pub spread: Duration,
}

/// What has happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// What the upstream asks of us, beside its head.
    Asked(Manner),
    /// Whether somebody has told this node itself to stay where it is.
    PausedHere(bool),
    /// The upstream and we cannot talk, for a reason that has a name and does not mend itself.
    Barred {
        /// The name: a state.
        name: &'static str,
        /// Why, for people.
        reason: String,
    },
    /// The upstream answered our hello.
    Welcomed {
        /// Its head.
        head: Option<Head>,
    },
    /// A new head.
    Announced {
        /// The head.
        head: Head,
        /// The commit before it.
        parent: Option<Oid>,
        /// Its pack, when it is small.
        pack: Option<Bytes>,
    },
    /// The upstream lives.
    HeartbeatHeard {
        /// Its head.
        head: Option<Head>,
    },
    /// The connection is over, or could not be made.
    Disconnected {
        /// Why, for people.
        reason: String,
    },
    /// Upstreams were asked for their heads; those that did not answer are left out.
    Polled {
        /// Upstream and head.
        heads: Vec<(usize, Option<Head>)>,
    },
    /// This head is durable in the store, with all its objects.
    Fetched {
        /// The head.
        head: Head,
    },
    /// It could not be fetched.
    FetchFailed {
        /// What to make of it.
        failure: Failure,
        /// Why, for people.
        reason: String,
    },
    /// What came does not descend from what we have: two primaries have written.
    FetchSplit {
        /// The head.
        head: Head,
    },
    /// This head lies verified and durable in the directory.
    CheckedOut {
        /// The head.
        head: Head,
    },
    /// It could not be put in place.
    CheckoutFailed {
        /// Why, for people.
        reason: String,
    },
    /// A hook refuses it, until there is another head.
    CheckoutVetoed {
        /// Why, for people.
        reason: String,
    },
    /// A hook wants to be asked again.
    CheckoutPutOff {
        /// When.
        until: Instant,
        /// Why, for people.
        reason: String,
    },
    /// The primary's standing orders, as far as they are about us.
    Ordered {
        /// Where we are kept.
        pin: Option<Head>,
        /// What we never check out.
        revoked: BTreeSet<Oid>,
    },
    /// The time for checkouts has come.
    CheckoutDue,
    /// Someone asks to look now.
    SyncRequested,
    /// The deadline has come.
    Ticked,
}

/// Why a fetch failed, as far as that decides what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The link, the upstream or the disk: the same again, going on from what has come.
    Again,
    /// What came is damaged, or does not fit what we have: from the start, and after a second time
    /// without building on what we have.
    Afresh,
    /// The upstream no longer has that commit: hear anew what it has.
    Gone,
    /// Only an operator can mend it: tried again after the longest wait.
    Fatal,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Connect to this upstream and say hello.
    Connect(usize),
    /// End the connection.
    Disconnect,
    /// Ask every upstream for its head.
    Poll,
    /// Take in packs that came inside announcements.
    Receive {
        /// From this upstream, where their objects are.
        upstream: usize,
        /// In order; the last one's head is wanted.
        parcels: Vec<Parcel>,
    },
    /// Fetch a pack and objects.
    Fetch {
        /// From this upstream.
        upstream: usize,
        /// What to build on; none: nothing.
        have: Option<Head>,
        /// What is wanted.
        want: Head,
    },
    /// Put this head in place.
    CheckOut(Head),
    /// Tell the upstream.
    Report(Ack),
    /// Tell the operator.
    Alarm(Refusal),
}

/// A head that we do not move to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct Refusal {
    /// What the upstream has; none: nothing at all.
    pub head: Option<Head>,
    /// What we have.
    pub have: Head,
}

impl Refusal {
    fn text(&self) -> String {
        let have = self.have;
        let (epoch, seq, commit) = (have.epoch, have.seq, have.commit.short());
        let what = match self.head {
            None => "the upstream has no commit at all".to_owned(),
            Some(head) => format!(
                "the upstream is at {} of epoch {}, commit {}",
                head.seq,
                head.epoch,
                head.commit.short()
            ),
        };
        format!(
            "{what}, which does not follow ours, {seq} of epoch {epoch}, commit {commit}: it was restored from a backup or two \
             primaries have written; nothing was changed here; `depsync promote` on the node whose content is right ends this"
        )
    }
}

/// How a mirror stands, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// One word.
    pub state: &'static str,
    /// More about it.
    pub detail: Option<String>,
    /// What it should have.
    pub want: Option<Head>,
    /// What its store holds.
    pub fetched: Option<Head>,
    /// What it has verified.
    pub have: Option<Head>,
    /// Which upstream it follows.
    pub upstream: usize,
    /// The last failure that is not mended.
    pub last_error: Option<String>,
}
