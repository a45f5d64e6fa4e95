//! One change among 100,000 files, on real processes: a primary and two mirrors on loopback.
//!
//! Prints, as median, 90th percentile and maximum of many rounds: from settled to ref moved (all
//! fsyncs included, as the primary itself measures it), and from the writer's close to the same
//! bytes in both mirrors. Beside them: the same change by `git add -A && git commit`.
//! `cargo bench --bench one_change`; `FILES` and `ROUNDS` change the scale.
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

use world::{World, eventually_within};

fn scale(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn tree(dir: &Path, files: usize) {
    for number in 0..files {
        let folder = dir.join(format!("svc-{:04}/mod-{:02}", number / 1000, number / 100 % 10));
        if number % 100 == 0 {
            fs::create_dir_all(&folder).expect("the folder can be made");
        }
        let text = format!("<x id=\"{number}\"/>\n").repeat(1 + number * 7919 % 60);
        fs::write(folder.join(format!("f{number}.xml")), text).expect("the file can be written");
    }
}

fn line(what: &str, mut millis: Vec<f64>) {
    millis.sort_by(f64::total_cmp);
    let at = |percent: usize| millis[(millis.len() - 1) * percent / 100];
    println!("{what}: median {:.2} ms, p90 {:.2} ms, max {:.2} ms", at(50), at(90), at(100));
}

fn git(dir: &Path, arguments: &[&str]) {
    let status = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=bench", "-c", "user.email=bench@localhost"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .status();
    assert!(status.is_ok_and(|status| status.success()), "git {arguments:?}");
}

fn main() {
    let (files, rounds) = (scale("FILES", 100_000), scale("ROUNDS", 50));
    let world = World::new();
    tree(&world.folder("hub"), files);
    let hub = world.primary("hub");
    let mirrors = [world.region("eu", &hub), world.region("us", &hub)];
    let limit = Duration::from_secs(600);
    let started = Instant::now();
    eventually_within(limit, "the first sync", || {
        let want = hub.try_get("/v1/feeds/default")?;
        for mirror in &mirrors {
            let have = mirror.try_get("/v1/feeds/default")?;
            if want["files"] != files || have["have"]["commit"] != want["commit"] {
                return Err(format!("{want} / {have}"));
            }
        }
        Ok(())
    });
    println!("{files} files, 2 mirrors; first sync seen after {:.2?}", started.elapsed());

    let (mut arrived, mut committed) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        // A lone change: what follows another one closely is gathered with what follows it.
        std::thread::park_timeout(Duration::from_millis(300));
        let name = format!("svc-0000/mod-00/new-{round}");
        let text = format!("{round} ").repeat(300);
        let before = hub.get("/v1/runs?limit=1")["runs"][0]["commit"].clone();
        fs::write(hub.dir.join(&name), &text).expect("the file can be written");
        let closed = Instant::now();
        for mirror in &mirrors {
            let path = mirror.dir.join(&name);
            while fs::read(&path).map_or(true, |bytes| bytes != text.as_bytes()) {
                assert!(closed.elapsed() < limit, "{name} never arrived");
                // Two cores: whoever spins here takes one from those that are measured.
                std::thread::park_timeout(Duration::from_micros(100));
            }
        }
        arrived.push(closed.elapsed().as_secs_f64() * 1e3);
        let run = eventually_within(limit, "the run is in the history", || {
            let run = hub.get("/v1/runs?limit=1")["runs"][0].clone();
            if run["commit"] == before { Err(run.to_string()) } else { Ok(run) }
        });
        committed.push(run["took_ms"].as_f64().expect("a run says how long it took"));
    }
    line("settled to ref moved", committed);
    line("close to both mirrors", arrived);

    let plain = world.folder("plain");
    tree(&plain, files);
    git(&plain, &["init", "-q"]);
    git(&plain, &["add", "-A"]);
    git(&plain, &["commit", "-qm", "all"]);
    let mut by_git = Vec::new();
    for round in 0..5 {
        fs::write(plain.join(format!("svc-0000/mod-00/new-{round}")), "new")
            .expect("it can be written");
        let started = Instant::now();
        git(&plain, &["add", "-A"]);
        git(&plain, &["commit", "-qm", "one"]);
        by_git.push(started.elapsed().as_secs_f64() * 1e3);
    }
    line("git add -A && git commit", by_git);
}
