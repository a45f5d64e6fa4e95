//! Nouns and rules: what a feed, a head, a path and a change are.
//!
//! Nothing here does I/O or knows the time. Every type is parsed once at the edge and cannot be
//! wrong inside; every decision that others need to agree on (order of heads, who may serve) is a
//! plain function.

mod binding;
mod class;
mod cron;
mod entry;
mod freshness;
mod head;
mod id;
mod keep;
mod limits;
mod name;
pub mod names;
mod orders;
mod pass;
mod path;
mod pin;
mod rate;
mod rate_bucket;
mod rate_plan;
mod rate_timetable;
mod rate_tree;
mod region;
mod region_range;
mod retention;
mod role;
mod subset;
mod target;

pub use binding::{Binding, Bindings};
pub use class::Class;
pub use cron::{BadCron, Cron};
pub use entry::{Change, Content, Entry, Extra, Kind, Meta, Mtime, Verb};
pub use freshness::{Freshness, Stale};
pub use head::{Head, Step};
pub use id::{BadId, ObjectId, Oid};
pub use keep::Keep;
pub use limits::Limits;
pub use name::{BadName, FeedName, Label, NodeId, RegionName};
pub use names::{Names, Profile};
pub use orders::{MAX_PINS, MAX_REVOKED, Orders, Pinned};
pub use pass::{LASTS, Pass, PassKey, PassSecret, RegionKey, day_of};
pub use path::{BadPath, RESERVED, RelPath};
pub use pin::Pin;
pub use rate::{BadQuantity, ByteSize, Rate};
pub use rate_plan::{Network, NetworkLimit, RatePlan, Traffic};
pub use rate_timetable::{Bandwidth, Window};
pub use rate_tree::{Flow, Grant, RateTree, Receiver, Stepped};
pub use region::{Member, Region, RegionTable, TableFault};
pub use region_range::{AddrRange, BadRange};
pub use retention::Retention;
pub use role::{Need, RegionPattern, Role, Scope};
pub use subset::Subset;
pub use target::Target;
