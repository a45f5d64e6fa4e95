//! The brake on deletions: a mass delete at the primary must not become one everywhere unasked.
//!
//! Deletions are summed over a sliding window, or a slow `rm -rf` would slip through in small
//! commits. Few ones pass; more keep the batch open until they cease, and are then judged: a rename
//! does not count, nor does one application undeployed, and more than half is held for a person.
//! The guard counts and judges; what it holds back is the shell's to keep.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use crate::model::{Oid, RelPath};

/// Up to this share of the feed, or [`FEW_FILES`], deletions that break no rule need not cease first.
const FEW_PERCENT: u64 = 5;
/// See [`FEW_PERCENT`].
const FEW_FILES: usize = 50;
/// A feed of fewer files may be emptied: there is little to lose, and tests of a new set-up do it.
const SMALLEST_FEED: u64 = 5;
/// Deletions have ceased when none came for this long.
const CEASED: Duration = Duration::from_secs(1);
/// After this the other changes no longer wait for the deletions to cease.
const LONGEST_OPEN: Duration = Duration::from_secs(30);
/// Deletions that were published within so long of the next belong to the same act: `reject` undoes
/// the beginning of an `rm -rf` as well.
const SAME_ACT: Duration = Duration::from_secs(10);
/// Folders that are tried as the application that was undeployed, largest first.
const CANDIDATES: usize = 64;

/// `[feed.guard]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// More than this share of the feed's files, deleted within the window, is held.
    pub max_delete_percent: u64,
    /// Fewer deletions than this are not, whatever their share.
    pub min_delete_files: usize,
    /// Over which deletions are summed.
    pub window: Duration,
    /// Nothing is ever held.
    pub off: bool,
}

impl Default for Rules {
    fn default() -> Self {
        let window = Duration::from_secs(600);
        Self { max_delete_percent: 50, min_delete_files: 50, window, off: false }
    }
}

/// The deletions of a batch, and what they are weighed against.
#[derive(Debug)]
pub struct Load<'a> {
    /// Files that the batch deletes.
    pub pending: Vec<(&'a RelPath, Oid)>,
    /// Files whose deletion waits for a person.
    pub held: Vec<&'a RelPath>,
    /// Files in the head.
    pub files: u64,
    /// Files that would be left, those held not counted.
    pub left: u64,
    /// The contents of the files that the batch adds or changes.
    pub arrivals: Vec<Oid>,
    /// Paths are still being read: what looks deleted may turn out renamed.
    pub reading: bool,
}

/// The tree as it would be after the batch.
pub trait After {
    /// Whether a file lies below this folder.
    fn has_files(&self, dir: &RelPath) -> bool;
    /// Whether another folder beside this one has files below it.
    fn sibling_has_files(&self, dir: &RelPath) -> bool;
}

/// What becomes of the batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It may be committed.
    Pass,
    /// It stays open: ask again then, or when all is read.
    Wait(Instant),
    /// It may be committed without its deletions: ask again for these then.
    Defer(Instant),
    /// It may be committed without these deletions, which wait for a person.
    Hold(Vec<RelPath>),
}

/// The guard of one feed.
#[derive(Debug)]
pub struct Guard {
    rules: Rules,
    /// Deletions published within the window.
    published: HashMap<RelPath, Gone>,
    /// How many files the feed had until when; only what is larger than all that follow.
    sizes: VecDeque<(Instant, u64)>,
    open: Option<Open>,
    /// Deletions were being held when the daemon stopped: what it missed is held with them.
    resumed: bool,
    pruned: Option<Instant>,
    /// Since when deletions are held that this guard saw happen.
    held_since: Option<Instant>,
}

/// A deletion that was published.
#[derive(Debug, Clone, Copy)]
struct Gone {
    at: Instant,
    /// The commit that still had it.
    before: Oid,
}

#[derive(Debug)]
struct Open {
    since: Instant,
    last: Instant,
    /// Contents that were committed meanwhile: the other halves of renames.
    arrived: Vec<Oid>,
}

impl Guard {
    /// `resumed`: deletions were held when the daemon stopped.
    pub fn new(rules: Rules, resumed: bool) -> Self {
        Self {
            rules,
            published: HashMap::new(),
            sizes: VecDeque::new(),
            open: None,
            resumed,
            pruned: None,
            held_since: None,
        }
    }

    /// A deletion was added to the batch.
    pub fn deleted(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.last = now;
        }
    }

    /// The batch has no deletion any more: what was deleted has come back.
    pub fn nothing_deleted(&mut self) {
        self.open = None;
    }

    /// No deletion is held any more: from here on they are judged as ever.
    pub fn nothing_held(&mut self) {
        self.resumed = false;
        self.held_since = None;
    }

    /// What becomes of a batch with deletions.
    pub fn weigh(&mut self, now: Instant, load: &Load<'_>, after: &dyn After) -> Answer {
        if self.rules.off || load.pending.is_empty() {
            self.nothing_deleted();
            return Answer::Pass;
        }
        self.prune(now);
        let renamed = self.renamed(load);
        let count = self.deleted_in_window(load, &renamed).len();
        let peak = self.peak(load.files);
        let emptied = load.left == 0 && peak >= SMALLEST_FEED;
        let is_small = count <= FEW_FILES || count as u64 * 100 <= FEW_PERCENT * peak;
        let few = is_small && !self.is_too_many(count, peak);
        if few && !emptied && !self.resumed {
            self.open = None;
            return Answer::Pass;
        }
        let open = self.open.get_or_insert(Open { since: now, last: now, arrived: Vec::new() });
        let (since, quiet_at) = (open.since, open.last + CEASED);
        let ceased = now >= quiet_at;
        if !ceased || load.reading {
            // Reading ends by itself, and its end asks again.
            let next = if ceased { now + CEASED } else { quiet_at };
            if now < since + LONGEST_OPEN {
                return Answer::Wait(next);
            }
            if load.reading || !(self.is_too_many(count, peak) || self.resumed) {
                return self.defer(now, since, next);
            }
        }
        self.open = None;
        let undeployed = if ceased {
            largest_undeployed(&self.deleted_in_window(load, &renamed), after)
        } else {
            0
        };
        let too_many = self.is_too_many(count - undeployed, peak);
        if !(too_many || emptied || self.resumed) {
            return Answer::Pass;
        }
        self.held_since.get_or_insert(since);
        let held =
            load.pending.iter().map(|(path, _)| *path).filter(|path| !renamed.contains(path));
        Answer::Hold(held.cloned().collect())
    }

    /// Deletions that go on for longer than other changes should wait: these go ahead, and the
    /// deletions go on waiting, since publishing half of an `rm -rf` helps nobody. Slow ones that
    /// never get to be too many pass after a window.
    fn defer(&mut self, now: Instant, since: Instant, next: Instant) -> Answer {
        if now < since + self.rules.window {
            return Answer::Defer(next);
        }
        self.open = None;
        Answer::Pass
    }

    /// The deletions that were published before the act that they were part of was held, each with a
    /// commit that still has it.
    pub fn led_up(&self) -> Vec<(RelPath, Oid)> {
        let Some(mut next) = self.held_since else { return Vec::new() };
        let mut all: Vec<_> = self.published.iter().collect();
        all.sort_unstable_by_key(|(_, gone)| std::cmp::Reverse(gone.at));
        let of_the_act = all.into_iter().take_while(|(_, gone)| {
            let near = next.saturating_duration_since(gone.at) <= SAME_ACT;
            next = gone.at;
            near
        });
        of_the_act.map(|(path, gone)| (path.clone(), gone.before)).collect()
    }

    /// Deletions were published: they count from now on. `before`: the commit that still had them;
    /// `files`: how many there were in it.
    pub fn published(&mut self, now: Instant, (before, files): (Oid, u64), deleted: Vec<RelPath>) {
        while self.sizes.back().is_some_and(|(_, smaller)| *smaller <= files) {
            self.sizes.pop_back();
        }
        self.sizes.push_back((now, files));
        let gone = Gone { at: now, before };
        self.published.extend(deleted.into_iter().map(|path| (path, gone)));
    }

    /// Whether it wants to know which files are published.
    pub fn minds_arrivals(&self) -> bool {
        self.open.is_some() || !self.published.is_empty()
    }

    /// A file was published: if it had been deleted, it has come back.
    pub fn arrived(&mut self, path: &RelPath, blob: Oid) {
        self.published.remove(path);
        if let Some(open) = &mut self.open {
            open.arrived.push(blob);
        }
    }

    /// The pending deletions whose content lies elsewhere in the batch: one for each arrival.
    fn renamed<'a>(&self, load: &Load<'a>) -> HashSet<&'a RelPath> {
        let mut arrived: HashMap<Oid, usize> = HashMap::new();
        let before = self.open.iter().flat_map(|open| &open.arrived);
        for blob in load.arrivals.iter().chain(before) {
            *arrived.entry(*blob).or_default() += 1;
        }
        let mut takes_one = |blob: &Oid| {
            let left = arrived.get_mut(blob).filter(|left| **left > 0);
            left.map(|left| *left -= 1).is_some()
        };
        load.pending.iter().filter(|(_, blob)| takes_one(blob)).map(|(path, _)| *path).collect()
    }

    fn deleted_in_window<'a>(
        &'a self,
        load: &Load<'a>,
        renamed: &HashSet<&RelPath>,
    ) -> HashSet<&'a RelPath> {
        let pending = load.pending.iter().map(|(path, _)| *path);
        let pending = pending.filter(|path| !renamed.contains(path));
        self.published.keys().chain(load.held.iter().copied()).chain(pending).collect()
    }

    fn is_too_many(&self, count: usize, peak: u64) -> bool {
        count >= self.rules.min_delete_files
            && count as u64 * 100 > self.rules.max_delete_percent * peak
    }

    /// The most files that the feed had within the window.
    fn peak(&self, now: u64) -> u64 {
        self.sizes.front().map_or(now, |(_, files)| now.max(*files))
    }

    fn prune(&mut self, now: Instant) {
        let old = |at: Instant| now.saturating_duration_since(at) > self.rules.window;
        while self.sizes.front().is_some_and(|(until, _)| old(*until)) {
            self.sizes.pop_front();
        }
        // Walking all of them for every small delete would cost more than the delete.
        let lately = |at: Instant| now.saturating_duration_since(at) < CEASED;
        if !self.pruned.is_some_and(lately) {
            self.published.retain(|_, gone| !old(gone.at));
            self.pruned = Some(now);
        }
    }
}

/// How many of the deletions lie in one folder that is gone entirely while a folder beside it keeps
/// files: an application was undeployed.
fn largest_undeployed(deleted: &HashSet<&RelPath>, after: &dyn After) -> usize {
    let mut below: HashMap<RelPath, usize> = HashMap::new();
    for path in deleted {
        let mut folder = path.parent();
        while let Some(dir) = folder.filter(|dir| !dir.is_root()) {
            folder = dir.parent();
            *below.entry(dir).or_default() += 1;
        }
    }
    let mut folders: Vec<_> = below.into_iter().collect();
    folders.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let is_undeployed = |dir: &RelPath| !after.has_files(dir) && after.sibling_has_files(dir);
    let largest = folders.iter().take(CANDIDATES).find(|(dir, _)| is_undeployed(dir));
    largest.map_or(0, |(_, count)| *count)
}

#[cfg(test)]
mod tests;
