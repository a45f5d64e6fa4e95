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

/// Up to this share of the feed, or [`FEW_FILES`], deletions pass without being looked at.
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
pub(super) struct Load<'a> {
    /// Files that the batch deletes.
    pub(super) pending: Vec<(&'a RelPath, Oid)>,
    /// Files whose deletion waits for a person.
    pub(super) held: Vec<&'a RelPath>,
    /// Files in the head.
    pub(super) files: u64,
    /// Files that would be left, those held not counted.
    pub(super) left: u64,
    /// The contents of the files that the batch adds or changes.
    pub(super) arrivals: Vec<Oid>,
    /// Paths are still being read: what looks deleted may turn out renamed.
    pub(super) reading: bool,
}

/// The tree as it would be after the batch.
pub(super) trait After {
    /// Whether a file lies below this folder.
    fn has_files(&self, dir: &RelPath) -> bool;
    /// Whether another folder beside this one has files below it.
    fn sibling_has_files(&self, dir: &RelPath) -> bool;
}

/// What becomes of the batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
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
pub(super) struct Guard {
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
#[derive(Clone, Copy)]
struct Gone {
    at: Instant,
    /// The commit that still had it.
    before: Oid,
}

struct Open {
    since: Instant,
    last: Instant,
    /// Contents that were committed meanwhile: the other halves of renames.
    arrived: Vec<Oid>,
}

impl Guard {
    /// `resumed`: deletions were held when the daemon stopped.
    pub(super) fn new(rules: Rules, resumed: bool) -> Self {
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
    pub(super) fn deleted(&mut self, now: Instant) {
        if let Some(open) = &mut self.open {
            open.last = now;
        }
    }

    /// The batch has no deletion any more: what was deleted has come back.
    pub(super) fn nothing_deleted(&mut self) {
        self.open = None;
    }

    /// No deletion is held any more: from here on they are judged as ever.
    pub(super) fn nothing_held(&mut self) {
        self.resumed = false;
        self.held_since = None;
    }

    /// What becomes of a batch with deletions.
    pub(super) fn weigh(&mut self, now: Instant, load: &Load<'_>, after: &dyn After) -> Answer {
        if self.rules.off || load.pending.is_empty() {
            self.nothing_deleted();
            return Answer::Pass;
        }
        self.prune(now);
        let renamed = self.renamed(load);
        let count = self.deleted_in_window(load, &renamed).len();
        let peak = self.peak(load.files);
        let emptied = load.left == 0 && peak >= SMALLEST_FEED;
        let few = count <= FEW_FILES || count as u64 * 100 <= FEW_PERCENT * peak;
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
    pub(super) fn led_up(&self) -> Vec<(RelPath, Oid)> {
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
    pub(super) fn published(
        &mut self,
        now: Instant,
        (before, files): (Oid, u64),
        deleted: Vec<RelPath>,
    ) {
        while self.sizes.back().is_some_and(|(_, smaller)| *smaller <= files) {
            self.sizes.pop_back();
        }
        self.sizes.push_back((now, files));
        let gone = Gone { at: now, before };
        self.published.extend(deleted.into_iter().map(|path| (path, gone)));
    }

    /// A file was published: if it had been deleted, it has come back.
    pub(super) fn arrived(&mut self, path: &RelPath, blob: Oid) {
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
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn blob(number: u64) -> Oid {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Oid::from_bytes(bytes)
    }

    #[test]
    fn what_led_up_to_a_hold_is_known_and_what_was_long_before_is_not() {
        let mut world = World::new((0..2_000).map(|number| format!("d/{number:04}")));
        world.delete("d/1999");
        assert_eq!(world.commit(), Answer::Pass);
        world.pass(60_000);
        for number in 0..1_500 {
            world.delete(&format!("d/{number:04}"));
            world.pass(10);
            if number % 20 == 19 {
                world.commit();
            }
        }
        assert!(world.guard.led_up().is_empty(), "nothing is held yet");
        let Answer::Hold(held) = world.commit_patiently() else { panic!("it passed") };
        let led_up = world.guard.led_up();
        assert!(!led_up.is_empty() && led_up.len() + held.len() == 1_500, "{}", led_up.len());
        world.guard.nothing_held();
        assert!(world.guard.led_up().is_empty());
    }

    struct Files(BTreeSet<RelPath>);

    impl After for Files {
        fn has_files(&self, dir: &RelPath) -> bool {
            self.0.iter().any(|path| path.is_within(dir))
        }

        fn sibling_has_files(&self, dir: &RelPath) -> bool {
            let parent = dir.parent().unwrap();
            let beside = |path: &&RelPath| path.is_within(&parent) && !path.is_within(dir);
            self.0.iter().filter(beside).any(|path| path.parent().as_ref() != Some(&parent))
        }
    }

    /// A primary's side of the guard: a head, what the disk has, a batch.
    struct World {
        guard: Guard,
        now: Instant,
        head: BTreeMap<RelPath, Oid>,
        disk: BTreeMap<RelPath, Oid>,
        held: BTreeSet<RelPath>,
        reading: bool,
    }

    impl World {
        fn new(files: impl IntoIterator<Item = String>) -> Self {
            let files = files.into_iter().enumerate();
            let head: BTreeMap<_, _> =
                files.map(|(number, name)| (path(&name), blob(number as u64))).collect();
            let guard = Guard::new(Rules::default(), false);
            let disk = head.clone();
            World { guard, now: Instant::now(), head, disk, held: BTreeSet::new(), reading: false }
        }

        fn delete(&mut self, below: &str) {
            self.disk.retain(|file, _| !file.is_within(&path(below)));
            self.guard.deleted(self.now);
        }

        fn pass(&mut self, millis: u64) {
            self.now += Duration::from_millis(millis);
        }

        /// One attempt to commit what differs.
        fn commit(&mut self) -> Answer {
            self.held.retain(|file| !self.disk.contains_key(file));
            let gone =
                |file: &&RelPath| !self.disk.contains_key(file) && !self.held.contains(*file);
            let pending: Vec<_> =
                self.head.keys().filter(gone).map(|file| (file, self.head[file])).collect();
            let put: Vec<_> = self
                .disk
                .iter()
                .filter(|(file, blob)| self.head.get(file) != Some(blob))
                .map(|(file, blob)| (file.clone(), *blob))
                .collect();
            let load = Load {
                held: self.held.iter().collect(),
                files: self.head.len() as u64,
                left: self.disk.len() as u64,
                arrivals: put.iter().map(|(_, blob)| *blob).collect(),
                reading: self.reading,
                pending,
            };
            let after = Files(self.disk.keys().cloned().collect());
            let answer = self.guard.weigh(self.now, &load, &after);
            let mut deleted: Vec<_> =
                load.pending.iter().map(|(file, _)| (*file).clone()).collect();
            match &answer {
                Answer::Wait(_) => return answer,
                Answer::Pass => {}
                Answer::Defer(_) => deleted.clear(),
                Answer::Hold(paths) => {
                    deleted.retain(|file| !paths.contains(file));
                    self.held.extend(paths.iter().cloned());
                }
            }
            if !deleted.is_empty() {
                let before = (blob(self.head.len() as u64), self.head.len() as u64);
                self.guard.published(self.now, before, deleted.clone());
            }
            for (file, blob) in &put {
                self.guard.arrived(file, *blob);
            }
            for file in &deleted {
                self.head.remove(file);
            }
            self.head.extend(put);
            answer
        }

        /// As [`World::commit`], waiting as long as the guard says.
        fn commit_patiently(&mut self) -> Answer {
            loop {
                match self.commit() {
                    Answer::Wait(until) => self.now = until,
                    other => return other,
                }
            }
        }
    }

    fn three_apps(largest: usize) -> impl Iterator<Item = String> {
        let app = |name: &'static str, files| {
            (0..files).map(move |n| format!("apps/{name}/d{}/{n}", n % 7))
        };
        app("big", largest).chain(app("mid", 100)).chain(app("small", 50))
    }

    #[test]
    fn few_deletions_pass_at_once() {
        let mut world = World::new((0..2000).map(|n| n.to_string()));
        for n in 0..100 {
            world.delete(&n.to_string());
            assert_eq!(world.commit(), Answer::Pass, "{n}");
        }
        world.delete("100");
        assert!(matches!(world.commit(), Answer::Wait(_)), "over 5 % within the window");
        world.pass(601_000);
        world.delete("101");
        assert_eq!(world.commit(), Answer::Pass, "the window has moved on");
    }

    #[test]
    fn more_than_half_is_held_and_what_comes_back_is_not() {
        let mut world = World::new((0..100).map(|n| n.to_string()));
        let before = world.disk.clone();
        (0..60).for_each(|n| world.delete(&n.to_string()));
        world.disk.insert(path("new"), blob(999));
        let Answer::Hold(held) = world.commit_patiently() else { panic!("60 % was let through") };
        assert_eq!(held.len(), 60);
        assert!(world.head.contains_key(&path("new")), "other changes go on");
        world.disk = before;
        world.disk.remove(&path("99"));
        assert_eq!(world.commit(), Answer::Pass);
        assert!(world.held.is_empty());
    }

    #[test]
    fn half_is_not_held() {
        let mut world = World::new((0..200).map(|n| n.to_string()));
        (0..100).for_each(|n| world.delete(&n.to_string()));
        let start = world.now;
        assert_eq!(world.commit_patiently(), Answer::Pass);
        assert_eq!(world.now - start, CEASED);
    }

    #[test]
    fn a_small_feed_must_not_be_emptied() {
        let mut world = World::new((0..5).map(|n| n.to_string()));
        (0..5).for_each(|n| world.delete(&n.to_string()));
        assert!(matches!(world.commit_patiently(), Answer::Hold(paths) if paths.len() == 5));
        let mut world = World::new((0..4).map(|n| n.to_string()));
        (0..4).for_each(|n| world.delete(&n.to_string()));
        assert_eq!(world.commit_patiently(), Answer::Pass);
        // Replaced as a whole: the new content arrives before the deletions have ceased for long.
        let mut world = World::new((0..9).map(|n| n.to_string()));
        (0..9).for_each(|n| world.delete(&n.to_string()));
        assert!(matches!(world.commit(), Answer::Wait(_)));
        world.disk.extend((0..9).map(|n| (path(&n.to_string()), blob(100 + n))));
        assert_eq!(world.commit_patiently(), Answer::Pass);
    }

    #[test]
    fn renaming_the_top_folder_is_not_held() {
        let mut world = World::new((0..1000).map(|n| format!("old/{n}")));
        let moved = world.disk.clone();
        world.delete("old");
        world.reading = true;
        assert!(matches!(world.commit(), Answer::Wait(_)));
        world.pass(5000);
        assert!(matches!(world.commit(), Answer::Wait(_)), "not judged before all is read");
        world.pass(30_000);
        world.disk.insert(path("new/0"), blob(0));
        assert!(matches!(world.commit(), Answer::Defer(_)), "what is read goes ahead");
        for (file, blob) in moved {
            world.disk.insert(path(&file.to_text().replace("old", "new")), blob);
        }
        world.reading = false;
        assert_eq!(world.commit(), Answer::Pass);
        assert_eq!(world.head, world.disk);
    }

    #[test]
    fn undeploying_the_largest_of_three_applications_is_not_held() {
        let mut world = World::new(three_apps(400));
        world.delete("apps/big");
        assert_eq!(world.commit_patiently(), Answer::Pass);
        // Only one in the whole window: 100 of 250 files, then 200.
        let mut world = World::new(three_apps(100));
        world.delete("apps/big");
        assert_eq!(world.commit_patiently(), Answer::Pass);
        world.delete("apps/mid/d0");
        world.delete("apps/mid/d1");
        assert_eq!(world.commit_patiently(), Answer::Pass);
        world.delete("apps/mid");
        world.delete("apps/small/d0");
        world.delete("apps/small/d1");
        world.delete("apps/small/d2");
        world.delete("apps/small/d3");
        let Answer::Hold(held) = world.commit_patiently() else { panic!("228 less 100 of 250") };
        assert!(held.iter().all(|file| !file.is_within(&path("apps/big"))));
        let mut world = World::new(three_apps(400));
        world.delete("apps");
        assert!(matches!(world.commit_patiently(), Answer::Hold(_)));
    }

    #[test]
    fn deploying_the_same_application_again_and_again_is_not_held() {
        let mut world = World::new(three_apps(400));
        let before = world.disk.clone();
        for round in 0..5_u64 {
            world.delete("apps/big");
            assert_eq!(world.commit_patiently(), Answer::Pass, "round {round}");
            world.disk = before.clone();
            assert_eq!(world.commit(), Answer::Pass);
            world.pass(5000);
        }
    }

    #[test]
    fn what_was_deleted_while_the_daemon_was_down_joins_what_was_held() {
        let mut world = World::new((0..100).map(|n| n.to_string()));
        world.guard = Guard::new(Rules::default(), true);
        (0..10).for_each(|n| world.delete(&n.to_string()));
        assert!(matches!(world.commit_patiently(), Answer::Hold(paths) if paths.len() == 10));
        world.guard.nothing_held();
        world.held.clear();
        assert_eq!(world.commit(), Answer::Pass);
    }

    #[test]
    fn it_can_be_switched_off() {
        let mut world = World::new((0..100).map(|n| n.to_string()));
        world.guard = Guard::new(Rules { off: true, ..Rules::default() }, false);
        (0..100).for_each(|n| world.delete(&n.to_string()));
        assert_eq!(world.commit(), Answer::Pass);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// However slowly everything is deleted, in whatever batches, as long as it takes less than
        /// a window: what gets out before it is held is at most what passes without a look.
        #[test]
        fn a_slow_rm_is_held(files in 60..600_usize, millis in 1..1000_u64, chunk in 1..40_usize) {
            let mut world = World::new((0..files).map(|n| format!("d{}/{n}", n % 3)));
            let millis = millis.min(400_000 / files as u64);
            let names: Vec<_> = world.disk.keys().cloned().collect();
            for (number, name) in names.iter().enumerate() {
                world.disk.remove(name);
                world.guard.deleted(world.now);
                world.pass(millis);
                if number % chunk == 0 {
                    world.commit();
                }
            }
            for _ in 0..100 {
                world.pass(700);
                world.commit();
            }
            let few = FEW_FILES.max(files * 5 / 100);
            // Pauses of a second between deletions let a batch be judged: up to half may pass then.
            let ceased = millis * chunk as u64 >= 1000;
            let limit = if ceased { files / 2 + few } else { few };
            prop_assert!(files - world.head.len() <= limit, "{} of {files} got out", files - world.head.len());
            prop_assert!(!world.held.is_empty());
        }
    }
}
