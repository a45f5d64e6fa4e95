//! Power cuts: the daemon dies at some step, and with it all that no sync had brought to the disk.
//!
//! The disk is a file system in an image, which is copied as it is at that moment: what the kernel
//! still had in memory is not in the copy. That copy is mounted in its place, and the daemon started
//! on it. What it shows then is old or new and whole, and everything goes on without help.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::PathBuf,
};

use crate::{
    crash::{Seed, change, hashes, kill_at},
    oracle::{compare, contents, wait_equal},
    origin::{may, run},
    world::{Node, World, done, eventually},
};

/// Where a cut changes what is on the disk: before something is made durable, and before it gets its
/// name or loses it.
const STEPS: [&str; 8] =
    ["fsync", "syncfs", "sync_file_range", "renameat", "rename", "renameat2", "unlink", "unlinkat"];

/// A file system, told to write nothing to the disk on its own account.
struct FileSystem {
    mkfs: &'static [&'static str],
    options: &'static str,
}

/// Its journal keeps changes of names in their order, and data apart from them.
const EXT4: FileSystem = FileSystem {
    mkfs: &["/usr/sbin/mkfs.ext4", "-q", "-F"],
    options: "loop,noauto_da_alloc,data=writeback,commit=600",
};

/// A sync brings what it names to the disk, and no other change before it.
const BTRFS: FileSystem =
    FileSystem { mkfs: &["/usr/sbin/mkfs.btrfs", "-q", "-f"], options: "loop,commit=600" };

/// A disk that the power can be taken from.
struct Disk {
    image: PathBuf,
    at: PathBuf,
    options: &'static str,
}

impl Disk {
    /// None where this machine does not let us mount one.
    fn new(world: &World, file_system: &FileSystem) -> Option<Self> {
        let image = world.path("image");
        File::create(&image).unwrap().set_len(256 << 20).unwrap();
        let [program, words @ ..] = file_system.mkfs else { return None };
        let disk = Self { image, at: world.folder("disk"), options: file_system.options };
        let words = [words, &[disk.image.to_str().unwrap()]].concat();
        let is_there = may("make a file system", program, &words) && disk.mount();
        is_there.then_some(disk)
    }

    fn mount(&self) -> bool {
        let [image, at] = [&self.image, &self.at].map(|path| path.to_str().unwrap());
        may("mount", "mount", &["-o", self.options, image, at])
    }

    /// Makes all durable that was written so far.
    fn sync(&self) {
        run("sync", &["-f", self.at.to_str().unwrap()]);
    }

    /// Whoever had files open here is dead.
    fn cut(&self) {
        let after = self.image.with_extension("cut");
        let [image, cut, at] = [&self.image, &after, &self.at].map(|path| path.to_str().unwrap());
        run("cp", &["--sparse=always", image, cut]);
        eventually("nobody holds the disk", || match may("unmount", "umount", &[at]) {
            true => Ok(()),
            false => Err(at.to_owned()),
        });
        fs::rename(&after, &self.image).unwrap();
        assert!(self.mount(), "the disk is mounted again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut umount = std::process::Command::new("umount");
        umount.arg("-l").arg(&self.at).stderr(std::process::Stdio::null()).status().ok();
    }
}

/// Runs a story for each step at which the power goes: some of them, or all.
fn at_each_step(some: &[(&'static str, u64)], mut cut: impl FnMut(u64, &'static str, u64) -> bool) {
    let (mut round, mut met) = (0, 0);
    let mut cut = |step, when| {
        round += 1;
        eprintln!("round {round}: the power goes at {step} number {when}");
        let died = cut(round, step, when);
        met += u64::from(died);
        died
    };
    if std::env::var_os("DEPSYNC_FULL").is_none() {
        for &(step, when) in some {
            cut(step, when);
        }
    } else {
        for step in STEPS {
            // Each thread counts its own.
            (1..=40).take_while(|&when| cut(step, when)).for_each(drop);
        }
    }
    eprintln!("{met} of {round} starts met their step");
    assert!(met * 2 >= round, "only {met} of {round} starts met their step");
}

/// Runs a node until it dies at a step, or has done all.
fn dies_at(
    node: &mut Node,
    step: &str,
    when: u64,
    mut has_done_all: impl FnMut() -> Result<(), String>,
) -> bool {
    kill_at(node, step, when);
    node.spawn();
    let died = eventually(&format!("{step} number {when}"), || match node.exited() {
        Some(_) => Ok(true),
        None => has_done_all().map(|()| false),
    });
    node.wrap.clear();
    died
}

/// Neither git nor we find anything wrong.
fn sound(node: &Node) {
    node.fsck();
    let report = done(node, &["fsck", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    for list in ["found", "broken", "differing"] {
        let none = report[list].as_array().is_none_or(Vec::is_empty);
        assert!(none, "{}: {report}", node.name);
    }
}

fn mirror(file_system: &FileSystem, some: &[(&'static str, u64)]) {
    let world = World::new();
    let Some(disk) = Disk::new(&world, file_system) else { return };
    let hub = world.primary("hub");
    let there = World::within(&disk.at);
    let mut eu = there.region_unstarted("eu", &hub.url(), &[]);
    eu.log = world.path("eu.log");
    eu.start();
    let mut seed = Seed(41);
    change(&hub, &mut seed, 0);
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["wait", "default"]);
    disk.sync();
    let eu_dir = eu.dir.clone();
    at_each_step(some, |round, step, when| {
        eu.stop();
        let old = hashes(&eu);
        let before = hub.commit();
        change(&hub, &mut seed, round);
        eventually("the change is published", || match hub.commit() {
            commit if commit == before => Err("no new commit".to_owned()),
            _ => Ok(()),
        });
        let story = format!("the power went in round {round}, at {step} number {when}");
        let died = dies_at(&mut eu, step, when, || {
            compare(&hub.dir, &eu_dir)?;
            // What a mirror has said to have, it has.
            let waited = hub.command(&["wait", "default", "--timeout", "0"]);
            if waited.status.success() { Ok(()) } else { Err(format!("{waited:?}")) }
        });
        eu.kill();
        disk.cut();
        let new = hashes(&hub);
        are_whole(&story, &hashes(&eu), &old, &new);
        if !died {
            compare(&hub.dir, &eu.dir).unwrap_or_else(|e| panic!("{story}: {e}"));
        }
        eu.start();
        wait_equal(&hub.dir, &[&eu.dir]);
        done(&hub, &["wait", "default"]);
        sound(&eu);
        died
    });
    eu.kill();
}

type Hashes = BTreeMap<PathBuf, String>;

/// Each file is the old one or the new one.
fn are_whole(story: &str, files: &Hashes, old: &Hashes, new: &Hashes) {
    for (path, hash) in files {
        let whole = old.get(path) == Some(hash) || new.get(path) == Some(hash);
        assert!(whole, "{story}: {path:?} is torn");
    }
}

fn primary(file_system: &FileSystem, some: &[(&'static str, u64)]) {
    let world = World::new();
    let Some(disk) = Disk::new(&world, file_system) else { return };
    let there = World::within(&disk.at);
    let mut hub = there.primary_unstarted("hub", &[]);
    hub.log = world.path("hub.log");
    hub.start();
    let eu = world.region("eu", &hub);
    let mut seed = Seed(43);
    change(&hub, &mut seed, 0);
    wait_equal(&hub.dir, &[&eu.dir]);
    let hub_dir = hub.dir.clone();
    at_each_step(some, |round, step, when| {
        hub.stop();
        change(&hub, &mut seed, round);
        // The operator's own files are there; all that is lost is ours.
        disk.sync();
        let before = contents(&hub.dir);
        let died = dies_at(&mut hub, step, when, || compare(&hub_dir, &eu.dir));
        hub.kill();
        disk.cut();
        assert_eq!(contents(&hub.dir), before, "round {round}, {step} number {when}");
        // It has all that it has told others.
        hub.start();
        done(&eu, &["sync"]); // it would wait longer after each start that it has seen
        wait_equal(&hub.dir, &[&eu.dir]);
        sound(&hub);
        died
    });
    hub.kill();
}

#[test]
fn d4_a_mirror_whose_power_goes_shows_old_or_new_and_goes_on() {
    mirror(&EXT4, &[("fsync", 1), ("renameat", 3)]);
    mirror(&BTRFS, &[("fsync", 2), ("rename", 2)]);
}

#[test]
fn d4_a_primary_whose_power_goes_has_all_that_it_has_announced() {
    primary(&EXT4, &[("fsync", 2), ("rename", 1)]);
    primary(&BTRFS, &[("fsync", 1), ("rename", 3)]);
}
