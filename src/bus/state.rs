//! What the stage that owns a feed says of it: for `status`, `/v1/feeds`, health and metrics.

use std::time::{Duration, Instant, SystemTime};

use super::frame::Standing;
use crate::model::{FeedName, Head, RelPath};

/// What a stage says of a feed: for `status`, `/v1/feeds`, metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// Whether this node owns the feed.
    pub primary: bool,
    /// One word for people and programs: `idle`, `importing`, `syncing`, `held`, `stopped`,
    /// `waiting-for-upstream`, `refused`, `failing` …
    pub state: &'static str,
    /// More about it, for people.
    pub detail: Option<String>,
    /// At a region: the head that it should have.
    pub want: Option<Head>,
    /// At a region: what its store holds.
    pub fetched: Option<Head>,
    /// At a region: what it has verified in its directory.
    pub have: Option<Head>,
    /// At a region: whom it follows.
    pub upstream_url: Option<String>,
    /// At a region: the feed's name there; none: the same.
    pub upstream_feed: Option<FeedName>,
    /// At a region: what it is to the region that it names.
    pub standing: Standing,
    /// At a region: when the upstream was last heard.
    pub heartbeat: Option<Instant>,
    /// Changes that wait.
    pub held: Vec<Held>,
    /// At a region: the feed's paths that others have changed and that stay so.
    pub drift: Vec<Held>,
    /// At a region: how many files lie in the directory that are not the feed's.
    pub extra: u64,
    /// At a region: the last time that all files in the directory were read and compared.
    pub verified: Option<Verified>,
    /// Deletions among them, which are approved or rejected as one list.
    pub deletions: Option<DeletionsHeld>,
    /// At a primary: how often everything was scanned because events were lost.
    pub rescans: u64,
    /// At a primary: why folders are scanned instead of watched, where that can be mended.
    pub unwatched: Option<String>,
    /// At a primary: how far its first import is.
    pub importing: Option<Importing>,
    /// The last failure, until the work that failed succeeds.
    pub last_error: Option<String>,
}

/// How far a first import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Importing {
    /// Files that were read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files in all, once they are counted.
    pub total: Option<u64>,
    /// Files in a second, once that says something.
    pub files_per_sec: Option<u64>,
    /// Bytes in a second.
    pub rate: Option<u64>,
    /// How long it will still take.
    pub left: Option<Duration>,
}

/// What came of reading all files of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// When it ended.
    pub at: SystemTime,
    /// How many files were read.
    pub files: u64,
    /// How many of them were not as the feed has them.
    pub differing: u64,
    /// How long it took.
    pub took_ms: u64,
}

/// What a change waits for: one of few words, so that programs can count by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody is writing the file.
    Writing,
    /// The file must be quiet for a while, since no lease can tell whether somebody writes it.
    NoLease,
    /// An archive without its end.
    Incomplete,
    /// The file or folder cannot be read.
    Unreadable,
    /// The ignore file cannot be used.
    Rules,
    /// A deletion that waits for `approve` or `reject`.
    Deletion,
    /// A hook refused it, or could not be asked.
    Hook,
    /// Changes are gathered until `release`.
    Release,
    /// At a region: somebody changed a path of the feed there.
    Drift,
}

impl Cause {
    /// Those that hold changes back at a primary.
    pub const ALL: [Cause; 8] = [
        Cause::Writing,
        Cause::NoLease,
        Cause::Incomplete,
        Cause::Unreadable,
        Cause::Rules,
        Cause::Deletion,
        Cause::Hook,
        Cause::Release,
    ];

    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Writing => "writing",
            Cause::NoLease => "no-lease",
            Cause::Incomplete => "incomplete",
            Cause::Unreadable => "unreadable",
            Cause::Rules => "rules",
            Cause::Deletion => "deletion",
            Cause::Hook => "hook",
            Cause::Release => "release",
            Cause::Drift => "drift",
        }
    }
}

/// A change that waits, with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The path.
    pub path: RelPath,
    /// What it waits for.
    pub cause: Cause,
    /// Why it waits.
    pub reason: String,
    /// Since when.
    pub since: SystemTime,
    /// Whether it waits for somebody's decision rather than for a moment.
    pub decision: bool,
}

/// Deletions that wait for `approve` or `reject`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeletionsHeld {
    /// The list's name: another list has another.
    pub id: String,
    /// How many files it names.
    pub files: usize,
    /// Since when.
    pub since: SystemTime,
}
