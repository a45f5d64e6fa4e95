//! How an announcement travels, and the board on which this node posts what it knows.
//!
//! `frame` is the wire (protocol `depsync.v1`); `board` is this process's own picture: heads
//! posted, each feed's `state`, and the mailbox by which the edge hands a `request` to a stage;
//! `roster` is who follows and which of them serves which region, `report` what a relay says of
//! those below it, `fleet` who has verified a head, `reach` whether a region's address leads to it,
//! `trust` what a mirror needs to know who may read there; `nats` carries the same frames by way of
//! a server, for fleets whose connections one node should not hold. A message is only a hint: a
//! follower that hears none still converges by heartbeats and polls.

pub mod board;
pub mod care;
pub mod fleet;
pub mod frame;
pub mod nats;
pub mod reach;
pub mod report;
mod request;
pub mod roster;
mod state;
pub mod trust;

pub use board::{Board, Desk, Mailbox, TurnedAway};
pub use care::{Care, Chores, FsckReport, GcReport};
pub use fleet::Verdict;
pub use nats::Nats;
pub use request::{Answer, Approval, Decision, Request, Unfetched};
pub use roster::{Bar, Caller, Distant, Follower, Part, Site};
pub use state::{Cause, DeletionsHeld, Held, Importing, State, Verified};
pub use trust::{Learned, Reader, Trust};
