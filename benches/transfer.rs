//! What large files cost, on real processes on loopback: taking one in, the memory it takes, a link
//! that is cut, a small change, and a hundred mirrors that ask at once.
//!
//! `cargo bench --bench transfer`, with `-- large`, `change` or `many` one of the three; `SIZE` is that
//! of the large file in MB (2,000), `MIRRORS` how many ask (100). Beside our own figures:
//! `cp --reflink=never` with `sync` of the same file.
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
use world::{Node, World, curl, eventually_within, noise};

const LIMIT: Duration = Duration::from_secs(600);
const MB: u64 = 1_000_000;

fn scale(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
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

/// A primary and two mirrors behind links that count.
struct Pair {
    hub: Node,
    links: [Proxy; 2],
    mirrors: [Node; 2],
}

impl Pair {
    fn start(world: &World) -> Self {
        let hub = world.primary("hub");
        let links = [Proxy::to(&hub), Proxy::to(&hub)];
        let mut mirrors =
            [0, 1].map(|n| world.region_unstarted(&format!("r{n}"), &links[n].url(), &[]));
        for mirror in &mut mirrors {
            mirror.start();
        }
        Pair { hub, links, mirrors }
    }

    /// Makes a lone change; prints what came to the mirrors until both have verified it.
    fn change(&self, what: &str, write: impl FnOnce(&Path)) -> Duration {
        std::thread::park_timeout(Duration::from_millis(500));
        let (commit, before) = (self.hub.commit(), self.links.each_ref().map(Proxy::down));
        write(&self.hub.dir);
        let closed = Instant::now();
        commit_after(&self.hub, &commit);
        for mirror in &self.mirrors {
            wait_verified(&self.hub, mirror);
        }
        let took = closed.elapsed();
        let came = [self.links[0].down() - before[0], self.links[1].down() - before[1]];
        println!("{what}: {came:?} bytes to two mirrors, verified {took:.2?}");
        took
    }
}

/// Small changes of large files: 64 KiB inside 100 MB, an insertion near its front, a jar built again
/// with one class changed.
fn small_changes() {
    let world = World::new();
    let pair = Pair::start(&world);
    let mut bytes = noise(1, 100_000_000);
    let put = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        move |dir: &Path| {
            fs::write(dir.join("delta.war"), bytes).expect("the file can be written");
        }
    };
    pair.change("100 MB", put(&bytes));
    let mut rounds = Vec::new();
    for round in 0..5 {
        bytes[50_000_000..50_065_536].copy_from_slice(&noise(100 + round, 65_536));
        rounds.push(pair.change("64 KiB in 100 MB", put(&bytes)));
    }
    rounds.sort_unstable();
    println!("64 KiB in 100 MB, close to verified at both: median {:.2?}", rounds[2]);
    bytes.splice(1000..1000, noise(200, 65_536));
    pair.change("64 KiB inserted near the front of 100 MB", put(&bytes));
    drop(bytes);
    for (what, changed, stamp) in
        [("a jar of 400 classes", 400, 2), ("built again, a class of 12,000 bytes changed", 200, 4)]
    {
        let jar = build_jar(&world, changed, stamp);
        pair.change(what, |dir| {
            fs::rename(&jar, dir.join("app.jar")).expect("it can be moved in");
        });
    }
}

/// Packs 400 classes that do not compress, each with the time `stamp`; one of them may have changed.
fn build_jar(world: &World, changed: u64, stamp: u32) -> std::path::PathBuf {
    let folder = world.folder("classes");
    for class in 0..400 {
        let mut bytes = noise(class, 12_000);
        if class == changed {
            bytes[6_000..6_400].copy_from_slice(&noise(999, 400));
        }
        let file = folder.join(format!("C{class:03}.class"));
        fs::write(file, bytes).expect("it can be written");
    }
    let script = "import os,sys,zipfile\n\
         z = zipfile.ZipFile(sys.argv[2], 'w', zipfile.ZIP_DEFLATED)\n\
         for n in sorted(os.listdir(sys.argv[1])):\n\
         \x20   i = zipfile.ZipInfo(n, (2026, 1, 1, 0, 0, int(sys.argv[3]))); i.compress_type = 8\n\
         \x20   z.writestr(i, open(os.path.join(sys.argv[1], n), 'rb').read())\n\
         z.close()\n";
    let jar = world.path("app.jar");
    let words = [std::ffi::OsStr::new("-c"), script.as_ref(), folder.as_ref(), jar.as_ref()];
    let made = Command::new("python3").args(words).arg(stamp.to_string()).status();
    assert!(made.is_ok_and(|made| made.success()));
    jar
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
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let cases: [(&str, fn()); 3] = [("large", large), ("change", small_changes), ("many", many)];
    for (name, run) in cases {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            run();
        }
    }
}
