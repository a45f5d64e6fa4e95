//! Downloads on real processes: against nginx, under limits, with many slow clients; and the look-up
//! of a client's region, and what the signature of a redirect costs.
//!
//! `cargo bench --bench downloads` runs all parts, `… -- nginx` (or `lookup`, `passes`, `rates`, `slow`) one.
//! Both servers and the client share this machine, so only ratios of one run say something. `SECONDS`
//! is how long each measurement takes.
#![expect(
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    reason = "figures for people, and the scale comes from the environment"
)]

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

#[path = "downloads/limits.rs"]
mod limits;
#[path = "downloads/nginx.rs"]
mod nginx;

use std::{
    hint::black_box,
    net::IpAddr,
    process::Command,
    time::{Duration, Instant},
};

use depsync::model::{Member, Oid, Pass, PassSecret, Region, RegionTable, RelPath, day_of};
use world::{Node, eventually, noise};

/// How long one measurement takes.
fn seconds(default: u64) -> u64 {
    std::env::var("SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Waits until a node has published so many files.
fn published(node: &Node, files: u64) {
    eventually("the files are published", || {
        let feed = node.try_get("/v1/feeds/default")?;
        if feed["files"] == files { Ok(()) } else { Err(feed.to_string()) }
    });
}

/// Puts limits in force.
fn limit(node: &Node, limits: &str) {
    let put = Command::new("curl")
        .args(["-sSf", "-o", "/dev/null", "-X", "PUT", "-d", limits])
        .args(["-H", &node.bearer()])
        .arg(format!("{}/v1/bandwidth", node.url()))
        .status();
    assert!(put.is_ok_and(|status| status.success()), "{limits}");
}

/// A table of 10,000 entries in 100 regions, IPv4 and IPv6, half of the former nested.
fn lookup() {
    let regions = (0..100_u32).map(|region| {
        let a = 1 + region;
        let four = (0..40).flat_map(|entry| {
            let b = entry * 6;
            [format!("{a}.{b}.0.0/16"), format!("{a}.{b}.{region}.64-{a}.{b}.{region}.127")]
        });
        let six = (0..20).map(|entry| format!("2001:db8:{region:x}{entry:02x}::/48"));
        let member = |text: String| Member::Range(text.parse().expect("it is a range"));
        Region {
            name: format!("region-{region}").parse().expect("it is a name"),
            members: four.chain(six).map(member).collect(),
        }
    });
    let table = RegionTable::build(regions.collect()).expect("the table is good");
    let entries: usize = table.regions().iter().map(|region| region.members.len()).sum();
    let mut seed = 7_u32;
    let random = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let four = IpAddr::from((seed % (101 << 24)).to_be_bytes());
        let six = [0x2001, 0xdb8, (seed >> 16) as u16 % 0x6400, 0, 0, 0, 0, 1];
        if seed & 0x100 == 0 { four } else { IpAddr::from(six) }
    };
    let clients: Vec<IpAddr> = std::iter::repeat_with(random).take(100_000).collect();
    let found = clients.iter().filter(|client| table.of_address(**client).is_some()).count();
    let mut best = Duration::MAX;
    for _ in 0..20 {
        let started = Instant::now();
        for client in &clients {
            black_box(table.of_address(black_box(*client)));
        }
        best = best.min(started.elapsed());
    }
    let nanos = best.as_secs_f64() * 1e9 / clients.len() as f64;
    println!(
        "look-up: {nanos:.0} ns in a table of {entries} entries ({found} of {} found)",
        clients.len()
    );
}

/// Redirects that ask for tokens are signed by the primary and checked by the region.
fn passes() {
    const ROUNDS: u32 = 100_000;
    let (feed, region) = ("apps".parse().expect("a name"), "eu-west".parse().expect("a name"));
    let path = RelPath::parse(b"webapps/a-service-1.2.3.war").expect("a path");
    let (commit, expires) = (Oid::from_bytes([7; 20]), 1_800_000_000);
    let pass = Pass { feed: &feed, commit, path: &path, region: &region, expires };
    let secret = PassSecret::new([9; 32]);
    let sign = || secret.key(&feed, &region, day_of(expires)).query(black_box(&pass));
    let key = secret.key(&feed, &region, day_of(expires));
    let query = sign();
    let signature = query.split_once("&sig=").expect("a signature").1;
    let best = |work: &dyn Fn()| {
        let runs = (0..10).map(|_| {
            let started = Instant::now();
            (0..ROUNDS).for_each(|_| work());
            started.elapsed().as_secs_f64() * 1e9 / f64::from(ROUNDS)
        });
        runs.fold(f64::MAX, f64::min)
    };
    let signing = best(&|| drop(black_box(sign())));
    let checking = best(&|| assert!(key.signed(black_box(&pass), signature)));
    println!(
        "passes: {signing:.0} ns to sign (with the region's key of the day), {checking:.0} ns to check"
    );
}

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let parts: [(&str, fn()); 5] = [
        ("lookup", lookup),
        ("passes", passes),
        ("nginx", nginx::compare),
        ("rates", limits::rates),
        ("slow", limits::slow_clients),
    ];
    for (name, part) in parts {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            part();
        }
    }
}
