//! What upkeep knows of a feed's repository, and what it was asked to do there.
//!
//! An order is a number that grows: whoever gives one waits until the report's number has reached it.
//! Several that ask at once are answered by one run.

use std::time::SystemTime;

use crate::store::{Collected, Folded};

/// What was asked for, by number; zero: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Chores {
    /// Collections.
    pub gc: u64,
    /// Checks of everything, with repair.
    pub fsck: u64,
}

/// What upkeep did and found.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Care {
    /// The chores that are carried out.
    pub done: Chores,
    /// What is under way: `gc`, `fsck`, `repair`; none: nothing.
    pub running: Option<&'static str>,
    /// The last collection.
    pub gc: Option<GcReport>,
    /// The last check of everything.
    pub fsck: Option<FsckReport>,
    /// Bytes of packs, and of objects.
    pub bytes: (u64, u64),
    /// Packs in the repository.
    pub packs: u64,
    /// Bytes that came in a day, over the last week; none: it is not known yet.
    pub growth_per_day: Option<u64>,
    /// Bytes that are free on the file system of the state directory.
    pub free: u64,
    /// Times that packs were folded since the start.
    pub folds: u64,
    /// What was found damaged or missing since the start.
    pub found: u64,
    /// Of this, what is sound again.
    pub repaired: u64,
    /// What is still damaged or missing, for people.
    pub broken: Vec<String>,
    /// Why the last work failed.
    pub last_error: Option<String>,
}

impl Care {
    /// Days until the file system is full, if it goes on like this.
    pub fn days_until_full(&self) -> Option<u64> {
        self.growth_per_day.filter(|growth| *growth > 0).map(|growth| self.free / growth)
    }
}

/// A collection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GcReport {
    /// When it ended.
    pub at: SystemTime,
    /// What it did.
    pub collected: Collected,
    /// What folding did, where there was something to fold.
    pub folded: Option<Folded>,
}

/// A check of everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsckReport {
    /// When it ended.
    pub at: SystemTime,
    /// Bytes that were read.
    pub bytes: u64,
    /// Commits whose trees were followed.
    pub commits: u64,
    /// What was wrong, for people; at most some hundred lines.
    pub found: Vec<String>,
    /// What is wrong still.
    pub broken: Vec<String>,
    /// Files of the deployment directory that are not as the head says.
    pub differing: Vec<String>,
}
