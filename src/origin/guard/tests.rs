//! The guard, alone: what passes, what waits, what is held; and a seeded `rm -rf` in any batches.

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
        let gone = |file: &&RelPath| !self.disk.contains_key(file) && !self.held.contains(*file);
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
        let mut deleted: Vec<_> = load.pending.iter().map(|(file, _)| (*file).clone()).collect();
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
    let app =
        |name: &'static str, files| (0..files).map(move |n| format!("apps/{name}/d{}/{n}", n % 7));
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

/// What becomes of so many deletions, of so many files, where `[feed.guard]` says so.
fn of(deleted: u64, files: u64, max_delete_percent: u64, min_delete_files: usize) -> Answer {
    let mut world = World::new((0..files).map(|n| n.to_string()));
    let rules = Rules { max_delete_percent, min_delete_files, ..Rules::default() };
    world.guard = Guard::new(rules, false);
    (0..deleted).for_each(|n| world.delete(&n.to_string()));
    world.commit_patiently()
}

#[test]
fn few_deletions_are_held_too_where_the_rules_say_so() {
    let is_held = |answer| matches!(answer, Answer::Hold(_));
    assert!(is_held(of(50, 64, 50, 50)), "as many as `min_delete_files` are enough");
    assert!(!is_held(of(49, 64, 50, 50)));
    assert!(is_held(of(10, 12, 50, 10)));
    assert!(!is_held(of(9, 12, 50, 10)));
    assert!(is_held(of(60, 2000, 2, 50)), "a share smaller than what passes at once");
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
