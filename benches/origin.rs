//! The origin alone, on the real daemon: first import, scan, idling, restart, one change, and a
//! folder with very many files.
//!
//! Prints for a tree of `FILES` files in folders of `PER_DIR`: the import beside `cp -r` of the same
//! tree to the same disk, the daemon's peak memory, a scan of the unchanged tree, a restart, what it
//! uses of a processor while nothing happens, and one change from settled to ref moved, beside git's
//! own `add` and `commit` in the same tree. Nothing is removed before the end (see `checkout`).
//! `cargo bench --bench origin`; `FILES=1000000 PER_DIR=50 GIT=0`, `FILES=100000 PER_DIR=100000` for
//! the large forms.
#![expect(clippy::disallowed_methods, reason = "the scale comes from the environment")]

#[path = "../tests/cluster/world.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    clippy::pedantic,
    clippy::panic,
    clippy::unwrap_used,
    reason = "shared with the tests"
)]
mod world;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use world::{Node, World, eventually_within};

const LIMIT: Duration = Duration::from_secs(1800);

fn scale(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn tree(dir: &Path, files: usize, per_dir: usize) {
    for number in 0..files {
        let at = number / per_dir;
        let folder = dir.join(format!("svc-{:04}/mod-{at:05}", at / 20));
        if number % per_dir == 0 {
            fs::create_dir_all(&folder).expect("the folder can be made");
        }
        let text = format!("<x id=\"{number}\"/>\n").repeat(1 + number * 7919 % 60);
        fs::write(folder.join(format!("f{number}.xml")), text).expect("the file can be written");
    }
}

/// The most memory that a process has had so far, in MiB.
fn peak(node: &Node) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<f64>().ok());
    kib.unwrap_or_default() / 1024.0
}

fn wait_for(hub: &Node, files: usize) {
    eventually_within(LIMIT, "all files are published", || {
        let feed = hub.try_get("/v1/feeds/default")?;
        if feed["files"] == files { Ok(()) } else { Err(feed.to_string()) }
    });
}

fn sync(hub: &Node) -> Duration {
    let began = Instant::now();
    let output = hub.command(&["sync"]);
    assert!(output.status.success(), "{output:?}");
    began.elapsed()
}

fn main() {
    let (files, per_dir) = (scale("FILES", 100_000), scale("PER_DIR", 100));
    let world = World::new();
    tree(&world.folder("hub"), files, per_dir);
    println!("{files} files, {per_dir} in a folder");

    let (from, to) = (world.path("hub"), world.path("copy"));
    let began = Instant::now();
    let copied = Command::new("cp").arg("-r").args([&from, &to]).status();
    assert!(copied.is_ok_and(|status| status.success()));
    let by_cp = began.elapsed();

    let began = Instant::now();
    let mut hub = world.primary("hub");
    wait_for(&hub, files);
    let import = began.elapsed();
    let ratio = import.as_secs_f64() / by_cp.as_secs_f64();
    println!(
        "first import: {import:.2?}, cp -r {by_cp:.2?}, ratio {ratio:.2}; peak {:.0} MiB",
        peak(&hub)
    );

    sync(&hub);
    let mut scans: Vec<_> = (0..5).map(|_| sync(&hub)).collect();
    scans.sort_unstable();
    println!("scan of the unchanged tree, by `depsync sync`: median {:.2?}", scans[2]);

    let ours = changes(&hub, scale("ROUNDS", 30));
    println!("peak memory after all: {:.0} MiB", peak(&hub));
    idle(&hub, Duration::from_secs(scale("IDLE", 20) as u64));

    hub.stop();
    let began = Instant::now();
    hub.start();
    sync(&hub);
    println!("restart until all is scanned: {:.2?}; peak {:.0} MiB", began.elapsed(), peak(&hub));
    hub.stop();

    if scale("GIT", 1) == 1 {
        let by_git = changes_by_git(&to);
        println!(
            "git add -A && git commit: median {by_git:.0} ms, {:.0} times ours",
            by_git / ours
        );
    }
}

/// What the daemon uses of a processor while nothing happens.
fn idle(hub: &Node, over: Duration) {
    let ticks = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", hub.pid())).unwrap_or_default();
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2);
        fields.filter_map(|field| field.parse::<u32>().ok()).sum::<u32>()
    };
    std::thread::park_timeout(Duration::from_secs(3));
    let before = ticks();
    std::thread::park_timeout(over);
    let share = f64::from(ticks() - before) / over.as_secs_f64();
    println!("idle: {share:.2} % of a core over {over:?}");
}

/// The same change by git, in a tree with the same files.
fn changes_by_git(dir: &Path) -> f64 {
    let git = |arguments: &[&str]| {
        let status = Command::new("git")
            .current_dir(dir)
            .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .status();
        assert!(status.is_ok_and(|status| status.success()), "git {arguments:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "all"]);
    let one = |round: usize| {
        let text = format!("{round} ").repeat(300);
        fs::write(dir.join("svc-0000/mod-00000/new.xml"), text).expect("it can be written");
        let began = Instant::now();
        git(&["add", "-A"]);
        git(&["commit", "-qm", "one"]);
        began.elapsed().as_secs_f64() * 1e3
    };
    let mut took: Vec<_> = (0..5).map(one).collect();
    took.sort_by(f64::total_cmp);
    took[2]
}

/// One lone change after the other, as the daemon itself measures them; the median.
fn changes(hub: &Node, rounds: usize) -> f64 {
    let mut took = Vec::new();
    for round in 0..rounds {
        std::thread::park_timeout(Duration::from_millis(300));
        let newest = || hub.get("/v1/runs?limit=1")["runs"][0].clone();
        let before = newest()["commit"].clone();
        // Nothing is asked of the daemon meanwhile: that would be measured too.
        let head = || fs::read(hub.git_dir().join("refs/heads/main")).ok();
        let old = head();
        fs::write(hub.dir.join("svc-0000/mod-00000/new.xml"), format!("{round} ").repeat(300))
            .expect("the file can be written");
        eventually_within(LIMIT, "it is published", || {
            if head() == old { Err("the head is the old one".to_owned()) } else { Ok(()) }
        });
        let run = eventually_within(LIMIT, "the run is in the history", || {
            let run = newest();
            if run["commit"] == before { Err(run.to_string()) } else { Ok(run) }
        });
        took.push(run["took_ms"].as_f64().expect("a run says how long it took"));
    }
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() - 1) * percent / 100];
    println!(
        "one change, settled to ref moved: median {:.2} ms, p90 {:.2} ms, max {:.2} ms",
        at(50),
        at(90),
        at(100)
    );
    at(50)
}
