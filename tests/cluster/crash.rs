//! `kill -9` at any step: the next start converges, and no file was ever torn.
//!
//! A tracer kills the real daemon at a chosen system call (`strace --inject … signal=KILL`), so a
//! seed names the step exactly and the binary under test is the one that ships.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::{
    oracle::{Item, contents, wait_equal},
    world::{Node, World, eventually},
};

/// The system calls that make a step durable or visible.
const STEPS: [&str; 6] = ["fsync", "rename", "fsync", "unlink", "renameat", "unlinkat"];

/// A small generator (splitmix64), so that a seed is a story that can be told again.
struct Seed(u64);

impl Seed {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % below
    }
}

pub fn kill_at(node: &mut Node, step: &str, when: u64) {
    let inject = format!("inject={step}:signal=KILL:when={when}");
    let trace = format!("trace={step}");
    node.wrap = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]
        .map(str::to_owned)
        .to_vec();
}

/// The content of each path.
fn hashes(node: &Node) -> BTreeMap<PathBuf, String> {
    let hash = |(path, item)| match item {
        Item::File { sha256, .. } => Some((path, sha256)),
        Item::Link(to) => Some((path, format!("link {}", to.display()))),
        Item::Dir { .. } => None,
    };
    contents(&node.dir).into_iter().filter_map(hash).collect()
}

/// Another state of the folder: some files change, some go, some come, a type changes.
fn change(hub: &Node, seed: &mut Seed, round: u64) {
    for number in 0..8 {
        let path = hub.dir.join(format!("dir-{}/file-{number}", number % 3));
        match seed.next(4) {
            0 => drop(fs::remove_file(&path)),
            1 => drop(fs::create_dir_all(path.parent().unwrap())),
            _ => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let size = [10, 5_000, 700_000][seed.next(3) as usize];
                fs::write(&path, format!("{round}-{number}-").repeat(size / 6)).unwrap();
            }
        }
    }
    let turns = hub.dir.join("turns");
    if fs::remove_file(&turns).is_err() {
        fs::remove_dir_all(&turns).ok();
        fs::write(&turns, "a file").unwrap();
    } else {
        fs::create_dir(&turns).unwrap();
        fs::write(turns.join("inside"), "a folder").unwrap();
    }
}

#[test]
fn a_region_killed_at_any_step_of_fetch_and_checkout_converges_and_tears_nothing() {
    let rounds = if std::env::var_os("DEPSYNC_FULL").is_some() { 200 } else { 20 };
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    let mut seed = Seed(7);
    change(&hub, &mut seed, 0);
    wait_equal(&hub.dir, &[&eu.dir]);
    eu.stop();

    let mut killed = 0;
    for round in 1..=rounds {
        let old = hashes(&eu);
        let before = hub.commit();
        change(&hub, &mut seed, round);
        eventually("the change is published", || match hub.commit() {
            commit if commit == before => Err("no new commit".into()),
            commit => Ok(commit),
        });
        let step = STEPS[seed.next(STEPS.len() as u64) as usize];
        let when = 1 + seed.next(6);
        let story = format!("round {round}: killed at {step} number {when}");
        kill_at(&mut eu, step, when);
        eu.spawn();
        let died = eventually(&story, || {
            if eu.exited().is_some() {
                return Ok(true);
            }
            crate::oracle::compare(&hub.dir, &eu.dir).map(|()| false)
        });
        killed += u32::from(died);
        eu.kill();
        let new = hashes(&hub);
        for (path, hash) in hashes(&eu) {
            let whole = old.get(&path) == Some(&hash) || new.get(&path) == Some(&hash);
            assert!(whole, "{story}: {path:?} is torn");
        }
        eu.wrap.clear();
        eu.start();
        wait_equal(&hub.dir, &[&eu.dir]);
        eu.fsck();
        eu.stop();
    }
    assert!(killed * 3 >= rounds as u32, "only {killed} of {rounds} starts met their step");
}

#[test]
fn a_primary_killed_at_any_step_of_a_commit_publishes_all_of_it_at_its_next_start() {
    let rounds = if std::env::var_os("DEPSYNC_FULL").is_some() { 200 } else { 12 };
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let mut seed = Seed(11);
    change(&hub, &mut seed, 0);
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.stop();

    let mut killed = 0;
    for round in 1..=rounds {
        let step = STEPS[seed.next(STEPS.len() as u64) as usize];
        let when = 1 + seed.next(10);
        kill_at(&mut hub, step, when);
        change(&hub, &mut seed, round);
        hub.spawn();
        let story = format!("round {round}: killed at {step} number {when}");
        let died = eventually(&story, || {
            if hub.exited().is_some() {
                return Ok(true);
            }
            crate::oracle::compare(&hub.dir, &eu.dir).map(|()| false)
        });
        killed += u32::from(died);
        hub.kill();
        hub.wrap.clear();
        hub.start();
        wait_equal(&hub.dir, &[&eu.dir]);
        hub.fsck();
        hub.stop();
    }
    assert!(killed * 3 >= rounds as u32, "only {killed} of {rounds} starts met their step");
}

#[test]
fn locks_that_a_crash_left_behind_heal_without_help() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    for node in [&mut hub, &mut eu] {
        node.kill();
        let git = node.git_dir();
        for lock in [
            "HEAD.lock",
            "config.lock",
            "refs/heads/main.lock",
            "packed-refs.lock",
            "index.lock",
            "shallow.lock",
        ] {
            fs::write(git.join(lock), "").unwrap();
        }
        node.start();
    }
    fs::write(hub.dir.join("a"), "2").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
}
