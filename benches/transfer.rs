//! What large files cost, on real processes on loopback: taking one in, the memory it takes, a link
//! that is cut, a small change, and a hundred mirrors that ask at once.
//!
//! `cargo bench --bench transfer`; `SIZE` is that of the large file in MB (2,000), `MIRRORS` how many
//! ask (100). Beside our own figures: `cp --reflink=never` with `sync` of the same file.
#![expect(clippy::disallowed_methods, reason = "the scale comes from the environment")]

#[path = "../tests/cluster/proxy.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    clippy::pedantic,
    clippy::unwrap_used,
    reason = "shared with the tests"
)]
mod proxy;
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
    io::Write,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use proxy::Proxy;
use world::{Node, World, curl, eventually_within};

const LIMIT: Duration = Duration::from_secs(600);
const MB: u64 = 1_000_000;

fn scale(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Bytes that do not compress (splitmix64).
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((word ^ word >> 31).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn write_large(at: &Path, size: u64) {
    let mut file = fs::File::create(at).expect("the file can be made");
    for block in 0..size / (10 * MB) {
        file.write_all(&noise(block, 10_000_000)).expect("the file can be written");
    }
    file.sync_all().expect("the file can be synced");
}

fn commit_after(hub: &Node, before: &str) -> String {
    eventually_within(LIMIT, "it is published", || match hub.commit() {
        commit if commit == before => Err(commit),
        commit => Ok(commit),
    })
}

fn wait_verified(hub: &Node, mirror: &Node) {
    eventually_within(LIMIT, "the mirror has it", || {
        let feed = mirror.try_get("/v1/feeds/default")?;
        if feed["have"]["commit"] == hub.commit() { Ok(()) } else { Err(feed.to_string()) }
    });
}

fn peak_mb(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or_default() * 1024 / MB
}

/// Processor time of all threads of a node so far.
fn processor_time(node: &Node) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{}/task", node.pid())).expect("it runs");
    let nanos = tasks.flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// A large file is taken in, and comes over a link that is cut twenty times.
fn large() {
    let size = scale("SIZE", 2_000) * MB;
    let world = World::new();
    let hub = world.primary("hub");
    let (plain, copy) = (world.path("plain"), world.path("copy"));
    write_large(&plain, size);
    let start = Instant::now();
    for command in [vec!["cp", "--reflink=never"], vec!["sync"]] {
        let files = if command[0] == "cp" { vec![&plain, &copy] } else { vec![&copy] };
        let status = Command::new(command[0]).args(&command[1..]).args(files).status();
        assert!(status.is_ok_and(|status| status.success()));
    }
    let copied = start.elapsed();
    fs::remove_file(&copy).expect("the copy is there");
    let start = Instant::now();
    fs::rename(&plain, hub.dir.join("large.iso")).expect("it can be moved in");
    commit_after(&hub, "");
    let taken = start.elapsed();
    println!(
        "taking in {} MB: {taken:.2?}; cp and sync: {copied:.2?}; that rate times {:.2}",
        size / MB,
        copied.as_secs_f64() / taken.as_secs_f64()
    );
    let link = Proxy::to(&hub);
    let mut region = world.region_unstarted("eu", &link.url(), &[]);
    region.start();
    for cut in 1..=20 {
        link.cut_after(size / 21);
        eventually_within(LIMIT, "the link is cut", || match link.cuts() {
            cuts if cuts == cut => Ok(()),
            cuts => Err(format!("{cuts} cuts")),
        });
    }
    wait_verified(&hub, &region);
    println!("a first sync cut 20 times: {} of {size} bytes", link.down());
    println!("most memory: primary {} MB, region {} MB", peak_mb(&hub), peak_mb(&region));
}

/// 64 KiB changed inside 100 MB, two mirrors.
fn small_change() {
    let world = World::new();
    let hub = world.primary("hub");
    let links = [Proxy::to(&hub), Proxy::to(&hub)];
    let mut mirrors =
        [0, 1].map(|n| world.region_unstarted(&format!("r{n}"), &links[n].url(), &[]));
    for mirror in &mut mirrors {
        mirror.start();
    }
    let mut bytes = noise(1, 100_000_000);
    let at = hub.dir.join("delta.war");
    fs::write(&at, &bytes).expect("the file can be written");
    commit_after(&hub, "");
    let mut rounds = Vec::new();
    for round in 0..5 {
        for mirror in &mirrors {
            wait_verified(&hub, mirror);
        }
        std::thread::park_timeout(Duration::from_millis(500)); // a lone change
        bytes[50_000_000..50_065_536].copy_from_slice(&noise(100 + round, 65_536));
        let commit = hub.commit();
        let before = links.each_ref().map(Proxy::down);
        fs::write(&at, &bytes).expect("the file can be written");
        let closed = Instant::now();
        commit_after(&hub, &commit);
        for mirror in &mirrors {
            wait_verified(&hub, mirror);
        }
        let took = closed.elapsed();
        rounds.push(took);
        let came = [links[0].down() - before[0], links[1].down() - before[1]];
        println!("64 KiB in 100 MB: {came:?} bytes to two mirrors, verified {took:.2?}");
    }
    rounds.sort_unstable();
    println!("64 KiB in 100 MB, close to verified at both: median {:.2?}", rounds[2]);
}

/// Many mirrors ask for the same pack and delta at once.
fn many() {
    let mirrors = u32::try_from(scale("MIRRORS", 100)).expect("so many cannot be simulated");
    let world = World::new();
    let hub = world.primary("hub");
    let mut bytes = noise(1, 20_000_000);
    let at = hub.dir.join("large");
    fs::write(&at, &bytes).expect("the file can be written");
    let first = commit_after(&hub, "");
    let old = sha256(&at);
    bytes[3_000_000..3_065_536].copy_from_slice(&noise(2, 65_536));
    fs::write(&at, &bytes).expect("the file can be written");
    let second = commit_after(&hub, &first);
    let new = sha256(&at);
    for number in 0..500 {
        let text = noise(number, 400);
        fs::write(hub.dir.join(format!("small-{number}")), text).expect("it can be written");
    }
    let last = eventually_within(LIMIT, "all is published", || {
        let feed = hub.try_get("/v1/feeds/default")?;
        if feed["files"] == 501 { Ok(hub.commit()) } else { Err(feed.to_string()) }
    });
    assert_ne!(second, last);
    let url = |what: &str| format!("{}/v1/feeds/default/{what}", hub.url());
    let whats = [url(&format!("packs/{first}..{last}")), url(&format!("objects/{new}/from/{old}"))];
    for what in &whats {
        assert!(curl(&["-f", "-o", "/dev/null", what]).status.success(), "{what}");
    }
    let before = processor_time(&hub);
    std::thread::scope(|scope| {
        for _ in 0..mirrors {
            scope.spawn(|| {
                for what in &whats {
                    assert!(curl(&["-f", "-o", "/dev/null", what]).status.success(), "{what}");
                }
            });
        }
    });
    let each = processor_time(&hub).saturating_sub(before).as_secs_f64() * 1e3 / f64::from(mirrors);
    let [packs, deltas] =
        ["packs", "deltas"].map(|name| hub.metric(&format!("depsync_{name}_built_total")));
    println!(
        "{mirrors} mirrors at once: {each:.2} ms of the primary's processor time each; {packs} pack \
         and {deltas} delta built"
    );
}

fn sha256(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().expect("sha256sum runs");
    let text = String::from_utf8_lossy(&output.stdout);
    text.split(' ').next().unwrap_or_default().to_owned()
}

fn main() {
    large();
    small_change();
    many();
}
