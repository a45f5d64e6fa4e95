//! Churn: somebody who changes anything at random while nodes are killed and links are cut. In the
//! end all folders are the same, byte for byte, with their modes and times, and every store is sound.
//!
//! Chance comes from a seed, which a failure names; `DEPSYNC_CHURN=<seed>` tells that story again. What
//! the writer does is then the same; when a kill meets it is as the machine has it.

use std::{
    collections::BTreeSet,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use crate::{
    crash::Seed,
    oracle::{compare, contents},
    proxy::Proxy,
    world::{Node, World, done, eventually_within},
};

/// How long all may take to be equal again once it is quiet.
const PATIENCE: Duration = Duration::from_secs(180);
/// More entries than that: rather one less.
const MANY: usize = 250;
/// A folder with more files is not removed at one go, or little would be left to change.
const FEW: usize = 10;
/// So many folders deep is deep enough.
const DEEP: usize = 6;

/// Says how the story is told again, should it end badly.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was the churn of DEPSYNC_CHURN={}", self.0);
        }
    }
}

#[test]
fn h10_whatever_is_changed_killed_and_cut_all_nodes_are_equal_in_the_end() {
    let given = std::env::var("DEPSYNC_CHURN").ok().map(|seed| seed.parse().unwrap());
    let (seeds, steps) = match std::env::var_os("DEPSYNC_FULL") {
        Some(_) => (vec![1, 2, 3, 4, 5], 10_000),
        None => (vec![11], 400),
    };
    for seed in given.map_or(seeds, |seed| vec![seed]) {
        let _told = Told(seed);
        story(seed, steps);
    }
}

/// A primary, a relay with a region behind it, and a region of its own, each over a bad link.
struct Fleet {
    nodes: Vec<Node>,
    links: Vec<Proxy>,
}

fn story(seed: u64, steps: u32) {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("first"), "first").unwrap();
    let mut fleet = Fleet { links: vec![Proxy::to(&hub)], nodes: vec![hub] };
    fleet.join(&world, "relay", 0);
    fleet.links.push(Proxy::to(&fleet.nodes[1]));
    fleet.links.push(Proxy::to(&fleet.nodes[0]));
    fleet.join(&world, "eu", 1);
    fleet.join(&world, "us", 2);

    let dir = fleet.nodes[0].dir.clone();
    let written = AtomicBool::new(false);
    let (done, faults) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut writer = Writer { dir, seed: Seed(seed), number: 0, done: 0 };
            for _ in 0..steps {
                writer.step();
                std::thread::park_timeout(Duration::from_millis(writer.seed.next(24)));
            }
            written.store(true, Relaxed);
            writer.done
        });
        let mut seed = Seed(seed ^ 0xfa17);
        let mut faults = 0;
        while !written.load(Relaxed) && !writer.is_finished() {
            fleet.fault(&mut seed);
            faults += 1;
        }
        (writer.join().unwrap(), faults)
    });
    assert!(done * 2 > steps, "only {done} of {steps} steps could be taken");
    let entries = contents(&fleet.nodes[0].dir).len();
    eprintln!("churn {seed}: {done} changes, {faults} faults, {entries} entries at the end");
    fleet.is_equal();
    fleet.is_sound();
    let commit = fleet.nodes[0].commit();
    for node in &mut fleet.nodes {
        node.stop();
        // git does not like packs to be folded while it reads them.
        node.fsck();
        node.start();
    }
    fleet.is_equal();
    assert_eq!(fleet.nodes[0].commit(), commit, "a start alone is no change");
}

impl Fleet {
    /// A region behind a link.
    fn join(&mut self, world: &World, name: &str, link: usize) {
        let mut node = world.region_unstarted(name, &self.links[link].url(), &[]);
        node.start();
        self.nodes.push(node);
    }

    /// Something goes wrong, and is over when this returns.
    fn fault(&mut self, seed: &mut Seed) {
        let mut pause = |most| std::thread::park_timeout(Duration::from_millis(seed.next(most)));
        pause(400);
        let which = seed.next(12);
        let node = seed.next(self.nodes.len() as u64) as usize;
        let link = &self.links[seed.next(self.links.len() as u64) as usize];
        let mut pause = |most| std::thread::park_timeout(Duration::from_millis(seed.next(most)));
        match which {
            0..=5 => {
                let node = &mut self.nodes[node];
                node.kill();
                pause(700);
                node.start();
            }
            6 | 7 => link.cut(),
            8 => {
                link.refuse(true);
                link.cut();
                pause(1500);
                link.refuse(false);
            }
            9 => {
                link.stall(true);
                pause(1500);
                link.stall(false);
            }
            10 => {
                link.delay(Duration::from_millis(80));
                pause(2000);
                link.delay(Duration::ZERO);
            }
            _ => {
                link.limit(Some(300_000));
                link.cut_after(seed.next(200_000));
                link.limit(None);
            }
        }
        // Who removes much is asked whether that was meant.
        approve(&self.nodes[0]);
    }

    /// Waits until every mirror has what the primary's folder holds.
    fn is_equal(&self) {
        let [hub, mirrors @ ..] = &self.nodes[..] else { return };
        eventually_within(PATIENCE, "all are equal", || {
            approve(hub);
            mirrors.iter().try_for_each(|mirror| {
                compare(&hub.dir, &mirror.dir).map_err(|e| format!("{}: {e}", mirror.name))
            })?;
            let feeds = self.nodes.iter().map(|node| node.try_get("/v1/feeds/default"));
            let feeds = feeds.collect::<Result<Vec<_>, _>>()?;
            let heads: BTreeSet<_> = feeds.iter().map(|feed| feed["commit"].to_string()).collect();
            let idle = feeds.iter().all(|feed| feed["state"] == "idle");
            if heads.len() == 1 && idle { Ok(()) } else { Err(format!("{feeds:?}")) }
        });
    }

    /// Nothing is damaged or missing, and nothing of ours was taken for somebody else's.
    fn is_sound(&self) {
        for node in &self.nodes {
            let report = done(node, &["fsck", "--json"]);
            let report: serde_json::Value = serde_json::from_str(&report).unwrap();
            for list in ["found", "broken", "differing"] {
                let none = report[list].as_array().is_none_or(Vec::is_empty);
                assert!(none, "{}: {report}", node.name);
            }
            let aside = contents(&node.state.join("feeds/default/aside"));
            assert!(aside.is_empty(), "{}: {aside:?} went aside", node.name);
        }
    }
}

fn approve(hub: &Node) {
    let feed = hub.try_get("/v1/feeds/default").unwrap_or_default();
    if let Some(id) = feed["held_deletions"]["id"].as_str() {
        // Another list by now: the next look finds it.
        hub.command(&["approve", id]);
    }
}

fn not_this_time() -> io::Result<()> {
    Err(io::ErrorKind::NotFound.into())
}

/// Changes the primary's folder; no content comes twice, so that every change is one.
struct Writer {
    dir: PathBuf,
    seed: Seed,
    number: u32,
    done: u32,
}

impl Writer {
    fn step(&mut self) {
        self.number += 1;
        // A name that is taken, a folder moved into itself: then this step is none.
        self.done += u32::from(self.change().is_ok());
    }

    fn change(&mut self) -> io::Result<()> {
        let (files, folders) = listed(&self.dir);
        let folder = folders[self.chance(folders.len())].clone();
        let new = folder.join(format!("n{}", self.number));
        if files.is_empty() {
            return fs::write(new, self.text());
        }
        let one = files[self.chance(files.len())].clone();
        let sort = if files.len() + folders.len() > MANY { 13 } else { self.seed.next(22) };
        match sort {
            0..=3 => fs::write(new, self.text()),
            4 | 5 => File::options().append(true).open(one)?.write_all(self.text().as_bytes()),
            6 | 7 => fs::write(one, self.text()),
            8 | 9 => {
                let hidden = new.with_extension("part");
                fs::write(&hidden, self.text())?;
                fs::rename(hidden, one)
            }
            10 | 11 if folder.components().count() < self.dir.components().count() + DEEP => {
                fs::create_dir(new)
            }
            12 | 13 => fs::remove_file(one),
            14 => fs::rename(one, new),
            15 => fs::rename(one, &files[self.chance(files.len())]),
            16 => fs::rename(self.some_folder(&folders)?, new),
            17 if !one.is_symlink() => {
                let mode = [0o644, 0o600, 0o755, 0o440, 0o4711][self.chance(5)];
                fs::set_permissions(one, Permissions::from_mode(mode))
            }
            18 => {
                let mode = [0o755, 0o700, 0o2775, 0o1777][self.chance(4)];
                fs::set_permissions(self.some_folder(&folders)?, Permissions::from_mode(mode))
            }
            19 => symlink(["..", "n1", "/nowhere/at all", "a\nb"][self.chance(4)], new),
            20 => self.change_type(&one),
            21 => {
                let folder = self.some_folder(&folders)?;
                let files = files.iter().filter(|file| file.starts_with(folder)).count();
                if files <= FEW { fs::remove_dir_all(folder) } else { not_this_time() }
            }
            _ => not_this_time(),
        }
    }

    /// A file or a link becomes a folder with a file, or a link, or a file.
    fn change_type(&mut self, one: &Path) -> io::Result<()> {
        fs::remove_file(one)?;
        match self.seed.next(3) {
            0 => {
                fs::create_dir(one)?;
                fs::write(one.join("inside"), self.text())
            }
            1 => symlink(format!("to {}", self.number), one),
            _ => fs::write(one, self.text()),
        }
    }

    /// Any but the root.
    fn some_folder<'a>(&mut self, folders: &'a [PathBuf]) -> io::Result<&'a PathBuf> {
        folders[1..].get(self.chance(folders.len() - 1)).ok_or(io::ErrorKind::NotFound.into())
    }

    fn chance(&mut self, below: usize) -> usize {
        self.seed.next(below.max(1) as u64) as usize
    }

    /// Mostly little; now and then an object of its own.
    fn text(&mut self) -> String {
        let lines = [1, 1, 1, 40, 40, 3_000, 120_000][self.chance(7)];
        format!("{}\n", self.number).repeat(lines)
    }
}

/// All files and links, and all folders with the root first, in their order.
fn listed(root: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut files, mut folders, mut next) = (Vec::new(), vec![root.to_owned()], 0);
    while let Some(folder) = folders.get(next) {
        next += 1;
        let mut entries: Vec<_> = fs::read_dir(folder).into_iter().flatten().flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(_) => files.push(entry.path()),
                Err(_) => {}
            }
        }
    }
    (files, folders)
}
