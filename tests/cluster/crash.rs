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
pub struct Seed(pub u64);

impl Seed {
    pub fn next(&mut self, below: u64) -> u64 {
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
pub fn hashes(node: &Node) -> BTreeMap<PathBuf, String> {
    let hash = |(path, item)| match item {
        Item::File { sha256, .. } => Some((path, sha256)),
        Item::Link(to) => Some((path, format!("link {}", to.display()))),
        Item::Dir { .. } => None,
    };
    contents(&node.dir).into_iter().filter_map(hash).collect()
}

/// Another state of the folder: some files change, some go, some come, a type changes.
pub fn change(hub: &Node, seed: &mut Seed, round: u64) {
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

/// Where the whole way of a change can be cut: making it durable and visible, telling others, and
/// running the operator's programs; with how many of each there are at the least.
const WAY: [(&str, u64); 8] = [
    ("fsync", 8),
    ("rename", 4),
    ("renameat", 3),
    ("renameat2", 1),
    ("unlinkat", 2),
    ("pidfd_open", 2),
    ("sendto", 4),
    ("unlink", 2),
];

/// Commit, announce, fetch, checkout and hooks, on both nodes by turns, under a reader.
#[test]
fn a_cluster_with_hooks_killed_at_any_step_converges_and_its_readers_see_whole_files() {
    let rounds = if std::env::var_os("DEPSYNC_FULL").is_some() { 300 } else { 12 };
    let world = World::new();
    let log = |name: &str| world.path(name);
    let script = |name: &str| format!("echo $DEPSYNC_COMMIT >>{:?}", log(name));
    let (before, after) = (script("asked"), script("committed"));
    let at_hub = [("pre-commit", before.as_str()), ("post-commit", after.as_str())];
    let mut hub = crate::hooks::primary(&world, &crate::hooks::hooks(&world, "hub.hooks", &at_hub));
    let (before, after) = (script("allowed"), script("done"));
    let at_eu = [("pre-checkout", before.as_str()), ("post-checkout", after.as_str())];
    let hooks = crate::hooks::hooks(&world, "eu.hooks", &at_eu);
    let mut eu = crate::hooks::region(&world, &hub, &hooks);
    let mut seed = Seed(23);
    write_round(&hub.dir, 0, &mut seed);
    wait_equal(&hub.dir, &[&eu.dir]);
    let (hub_dir, eu_dir) = (hub.dir.clone(), eu.dir.clone());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let torn = std::sync::Mutex::new(None);
    let mut killed = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                for number in 0..6 {
                    let path = hub_path(&eu_dir, number);
                    let Ok(text) = fs::read_to_string(&path) else { continue };
                    let first = text.lines().next().unwrap_or_default();
                    let whole = [3, 300, 40_000].contains(&text.lines().count());
                    if !whole || text.lines().any(|line| line != first) {
                        torn.lock().unwrap().get_or_insert(path);
                    }
                }
                std::thread::park_timeout(std::time::Duration::from_millis(2));
            }
        });
        for round in 1..=rounds {
            let (step, most) = WAY[seed.next(WAY.len() as u64) as usize];
            let when = 1 + seed.next(most);
            let at_primary = seed.next(2) == 0;
            let story = format!("round {round}: primary {at_primary}, {step} number {when}");
            let victim = if at_primary { &mut hub } else { &mut eu };
            victim.stop();
            kill_at(victim, step, when);
            write_round(&hub_dir, round, &mut seed);
            victim.spawn();
            let died = eventually(&story, || {
                if victim.exited().is_some() {
                    return Ok(true);
                }
                crate::oracle::compare(&hub_dir, &eu_dir).map(|()| false)
            });
            killed += u32::from(died);
            victim.kill();
            victim.wrap.clear();
            victim.start();
            wait_equal(&hub_dir, &[&eu_dir]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(torn.into_inner().unwrap(), None, "a reader saw a torn file");
    eprintln!("{killed} of {rounds} starts were killed");
    assert!(u64::from(killed) * 4 >= rounds, "only {killed} of {rounds} starts met their step");
    for node in [&hub, &eu] {
        node.fsck();
    }
    let newest = hub.commit();
    for name in ["committed", "done"] {
        eventually("the newest commit has had its hook", || {
            let text = fs::read_to_string(log(name)).unwrap_or_default();
            if text.lines().any(|line| line == newest) { Ok(()) } else { Err(text) }
        });
    }
    for name in ["committed", "done"] {
        let text = fs::read_to_string(log(name)).unwrap();
        let mut commits: Vec<&str> = text.lines().collect();
        let all = commits.len();
        commits.sort_unstable();
        commits.dedup();
        // Only a run that a kill cut short is made again.
        assert!(all - commits.len() <= killed as usize, "{name}: {all} runs of {}", commits.len());
    }
}

/// A kill in the middle of a checkout, and then another head: what lay half-way is finished first,
/// and nothing of it is taken for somebody else's.
#[test]
fn a_checkout_that_was_cut_off_is_finished_before_the_next_one() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    for number in 0..40 {
        fs::write(hub.dir.join(format!("file-{number}")), "first").unwrap();
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    eu.stop();
    assert!(hub.command(&["hold"]).status.success());
    for number in 0..40 {
        fs::write(hub.dir.join(format!("file-{number}")), "second").unwrap();
    }
    let before = hub.commit();
    assert!(hub.command(&["release"]).status.success());
    let next = |before: &str| {
        eventually("published", || match hub.commit() {
            commit if commit == before => Err("no new commit".into()),
            commit => Ok(commit),
        })
    };
    let second = next(&before);
    // Renames into place begin behind the few of pack, index and journal.
    kill_at(&mut eu, "renameat", 15);
    eu.spawn();
    eventually("killed in the middle", || {
        eu.exited().map(|_| ()).ok_or_else(|| "it runs".to_owned())
    });
    let state = |text: &[u8]| {
        let is = |number: &u32| fs::read(eu.dir.join(format!("file-{number}"))).unwrap() == text;
        (0..40).filter(is).count()
    };
    let (old, new) = (state(b"first"), state(b"second"));
    assert!(old + new == 40 && old > 0 && new > 0, "{old} old, {new} new: it was no mixture");
    assert!(eu.state.join("feeds/default/journal").exists());
    for number in 0..40 {
        fs::write(hub.dir.join(format!("file-{number}")), "third").unwrap();
    }
    next(&second);
    eu.kill();
    eu.wrap.clear();
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    let aside = contents(&eu.state.join("feeds/default/aside"));
    assert!(aside.is_empty(), "our own files were taken for somebody's: {aside:?}");
    eu.fsck();
}

/// Each file says on every line what it is: half of one, or of two, is seen.
fn write_round(dir: &std::path::Path, round: u64, seed: &mut Seed) {
    for number in 0..6 {
        let path = hub_path(dir, number);
        if seed.next(4) == 0 {
            fs::remove_file(&path).ok();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let lines = [3, 300, 40_000][seed.next(3) as usize];
            let hidden = path.with_extension("part");
            fs::write(&hidden, format!("{round} {number}\n").repeat(lines)).unwrap();
            fs::rename(&hidden, &path).unwrap();
        }
    }
    fs::write(dir.join("round"), format!("{round}\n")).unwrap();
}

fn hub_path(dir: &std::path::Path, number: u64) -> PathBuf {
    dir.join(format!("dir-{}/file-{number}", number % 2))
}
