//! What goes wrong between nodes, and what each of them says meanwhile: announcements that are lost on
//! an open connection, slow and stalled mirrors, long absences, lost ledgers and states, wrong clocks,
//! stages that are stuck.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use serde_json::Value;

use crate::{
    oracle::{contents, wait_equal},
    proxy::Proxy,
    world::{DEPSYNC, Node, World, curl, done, eventually, eventually_within, feed, state},
};

fn fetches(node: &Node) -> usize {
    let runs = node.get("/v1/runs?limit=1000");
    runs["runs"].as_array().unwrap().iter().filter(|run| run["kind"] == "fetch").count()
}

/// Publishes another content of a file, and waits until it is committed.
fn publish(hub: &Node, name: &str, text: &str) {
    let before = feed(hub)["seq"].as_u64().unwrap_or(0);
    fs::write(hub.dir.join(name), text).unwrap();
    eventually("it is committed", || match feed(hub)["seq"].as_u64() {
        Some(seq) if seq > before => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

/// A proxy that lets everything through but the announcements of a follower's connection.
struct Deaf {
    address: SocketAddr,
    deaf: Arc<AtomicBool>,
    dropped: Arc<AtomicU32>,
    followed: Arc<AtomicU32>,
}

impl Deaf {
    fn to(node: &Node) -> Self {
        let target: SocketAddr = node.url().strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let deaf = Deaf {
            address: listener.local_addr().unwrap(),
            deaf: Arc::default(),
            dropped: Arc::default(),
            followed: Arc::default(),
        };
        let (silent, dropped, followed) =
            (deaf.deaf.clone(), deaf.dropped.clone(), deaf.followed.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(near), Ok(far)) = (stream, TcpStream::connect(target)) else { continue };
                let (mut from, mut to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let (silent, dropped, followed) =
                    (silent.clone(), dropped.clone(), followed.clone());
                std::thread::spawn(move || {
                    let _ = down(&far, &near, &silent, &dropped, &followed);
                    let _ = near.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        deaf
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Hands on what a server sends: after `101` frame by frame, else byte by byte.
fn down(
    mut far: &TcpStream,
    mut near: &TcpStream,
    silent: &AtomicBool,
    dropped: &AtomicU32,
    followed: &AtomicU32,
) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        far.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    near.write_all(&head)?;
    if !head.starts_with(b"HTTP/1.1 101") {
        io::copy(&mut far, &mut near)?;
        return Ok(());
    }
    followed.fetch_add(1, SeqCst);
    loop {
        let mut frame = vec![0; 2];
        far.read_exact(&mut frame)?;
        let more = match frame[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mut long = vec![0; more];
        far.read_exact(&mut long)?;
        let short = usize::from(frame[1] & 0x7f);
        let length = match more {
            0 => short,
            _ => long.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
        };
        let mut body = vec![0; length];
        far.read_exact(&mut body)?;
        // An announcement is the only binary frame.
        if frame[0] & 0x0f == 2 && silent.load(SeqCst) {
            dropped.fetch_add(1, SeqCst);
            continue;
        }
        near.write_all(&[frame, long, body].concat())?;
    }
}

#[test]
fn announcements_that_are_lost_on_an_open_connection_cost_a_heartbeat() {
    let world = World::new();
    let hub = world.primary("hub");
    let proxy = Deaf::to(&hub);
    let mut eu = world.region_unstarted("eu", &proxy.url(), &[]);
    eu.start();
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    proxy.deaf.store(true, SeqCst);
    for n in 2..6 {
        publish(&hub, "a", &n.to_string());
        wait_equal(&hub.dir, &[&eu.dir]);
        // It has missed nothing that it knows of: the connection was there all the time.
        eventually("it rests", || match feed(&eu) {
            feed if feed["state"] == "idle" => Ok(()),
            feed => Err(feed.to_string()),
        });
        let health = curl(&[&format!("{}/healthz", eu.url())]);
        assert!(String::from_utf8_lossy(&health.stdout).contains("\"ok\""), "{health:?}");
        let entry = hub.get("/v1/nodes")["nodes"][0].clone();
        let state = entry["feeds"][0]["state"].as_str().unwrap_or_default().to_owned();
        assert!(["verified", "behind"].contains(&&*state) && entry["connected"] == true, "{entry}");
    }
    assert!(proxy.dropped.load(SeqCst) >= 4, "announcements were dropped");
    assert_eq!(proxy.followed.load(SeqCst), 1, "over one connection");
    done(&hub, &["wait", "default"]);
}

#[test]
fn a_mirror_that_is_slow_or_stalled_delays_no_other() {
    let world = World::new();
    let hub = world.primary("hub");
    let (slow, stalled) = (Proxy::to(&hub), Proxy::to(&hub));
    let mut eu = world.region_unstarted("eu", &slow.url(), &[]);
    let mut us = world.region_unstarted("us", &stalled.url(), &[]);
    for node in [&mut eu, &mut us] {
        node.start();
    }
    let asia = world.region("asia", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir, &us.dir, &asia.dir]);
    slow.limit(Some(8_000));
    stalled.stall(true);
    let noise: Vec<u8> =
        (0..150_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(hub.dir.join("noise"), &noise).unwrap();
    for n in 2..12 {
        publish(&hub, "a", &n.to_string());
        eventually_within(
            Duration::from_secs(20),
            "the third has it",
            || match fs::read_to_string(asia.dir.join("a")) {
                Ok(text) if text == n.to_string() => Ok(()),
                other => Err(format!("{other:?}")),
            },
        );
    }
    assert_eq!(fs::read_to_string(us.dir.join("a")).unwrap(), "1", "it is stalled all the while");
    eventually("it is known who has it", || {
        let verdict = hub.command(&["wait", "default", "--timeout", "0"]);
        let text = String::from_utf8_lossy(&verdict.stderr).into_owned();
        if text.contains("us") && !text.contains("asia (") { Ok(()) } else { Err(text) }
    });
    slow.limit(None);
    stalled.stall(false);
    wait_equal(&hub.dir, &[&eu.dir, &us.dir, &asia.dir]);
    done(&hub, &["wait", "default"]);
}

#[test]
fn hundreds_of_commits_that_were_missed_are_one_fetch() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    publish(&hub, "a", "0");
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = fetches(&eu);
    eu.kill();
    let commits = if std::env::var_os("DEPSYNC_FULL").is_some() { 500 } else { 100 };
    for n in 1..=commits {
        publish(&hub, &format!("f{}", n % 17), &n.to_string());
    }
    assert_eq!(feed(&hub)["seq"], commits + 1);
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["wait", "default"]);
    assert_eq!(fetches(&eu), before + 1);
    eu.fsck();
}

#[test]
fn lost_ledgers_are_made_anew_and_nothing_is_deleted() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    for n in 0..60 {
        fs::write(hub.dir.join(format!("f{n}")), n.to_string()).unwrap();
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    let commit = hub.commit();
    for (name, bytes) in [("gone", None), ("empty", Some("")), ("damaged", Some("not a database"))]
    {
        for node in [&mut hub, &mut eu] {
            node.kill();
            for file in fs::read_dir(&node.state).unwrap().map(|entry| entry.unwrap().path()) {
                if file.file_name().unwrap().to_string_lossy().starts_with("ledger.db") {
                    fs::remove_file(file).unwrap();
                }
            }
            if let Some(bytes) = bytes {
                fs::write(node.state.join("ledger.db"), bytes).unwrap();
            }
        }
        hub.start();
        eu.start();
        done(&hub, &["sync"]);
        assert_eq!(hub.commit(), commit, "{name}: nothing has changed");
        wait_equal(&hub.dir, &[&eu.dir]);
        done(&hub, &["wait", "default"]);
    }
    publish(&hub, "f0", "and on it goes");
    wait_equal(&hub.dir, &[&eu.dir]);
}

#[test]
fn rows_of_runs_that_never_ended_block_nothing() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    publish(&hub, "a", "1");
    wait_equal(&hub.dir, &[&eu.dir]);
    for node in [&mut hub, &mut eu] {
        node.kill();
        // As another program, or another version, might have left them: under way since 1970.
        let ledger = rusqlite::Connection::open(node.state.join("ledger.db")).unwrap();
        for kind in ["commit", "fetch", "checkout", "maintenance", "hook"] {
            let row =
                "INSERT INTO runs (feed, kind, started_ms, took_us, outcome, files, bytes, names)
                VALUES ('default', ?1, 0, 0, 'running', 0, 0, x'')";
            assert_eq!(ledger.execute(row, [kind]).unwrap(), 1);
        }
    }
    hub.start();
    eu.start();
    publish(&hub, "a", "2");
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["sync", "--wait"]);
    for node in [&hub, &eu] {
        let runs = node.get("/v1/runs?limit=1000");
        assert!(!runs.to_string().contains("running"), "{runs}");
        let newest = &runs["runs"][0];
        assert_eq!(newest["outcome"], "ok", "{runs}");
    }
}

#[test]
fn a_primary_that_starts_with_an_empty_state_is_refused_until_it_is_promoted() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    for n in 0..4 {
        publish(&hub, "a", &n.to_string());
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = contents(&eu.dir);
    hub.kill();
    for path in [&hub.state, &hub.dir] {
        fs::remove_dir_all(path).unwrap();
        fs::create_dir(path).unwrap();
    }
    hub.start();
    assert!(state(&eu, "refused").contains("promote"));
    fs::write(hub.dir.join("new"), "not published").unwrap();
    assert!(state(&hub, "refused").contains("promote"));
    assert_eq!(contents(&eu.dir), before, "nothing is wiped");
    assert!(feed(&hub)["commit"].is_null(), "nothing is published");
    let health = curl(&[&format!("{}/healthz", eu.url())]);
    assert!(String::from_utf8_lossy(&health.stdout).contains("refused"));
    // The region has what is right: it owns the feed now, and the empty one mirrors it.
    done(&eu, &["promote"]);
    done(&hub, &["demote", "--upstream", &eu.url()]);
    eventually("it is all there again", || match fs::read_to_string(hub.dir.join("a")) {
        Ok(text) if text == "3" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let aside = contents(&hub.state.join("feeds/default/aside"));
    let kept = hub.dir.join("new").exists() || aside.keys().any(|path| path.ends_with("new"));
    assert!(kept, "what was never published is kept: {aside:?}");
    assert_eq!(contents(&eu.dir), before);
}

#[test]
fn a_clock_that_is_a_day_off_changes_nothing() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut nodes = Vec::new();
    for (name, off) in [("early", "-1d"), ("late", "+1d")] {
        let mut node = world.region_unstarted(name, &hub.url(), &[]);
        let words =
            ["env", "NO_FAKE_STAT=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "faketime", "-f", off];
        node.wrap = words.map(ToOwned::to_owned).to_vec();
        node.start();
        nodes.push(node);
    }
    for n in 0..5 {
        publish(&hub, "a", &n.to_string());
        wait_equal(&hub.dir, &[&nodes[0].dir, &nodes[1].dir]);
    }
    done(&hub, &["wait", "default"]);
    let moments = [&nodes[0], &nodes[1]].map(|node| {
        let runs = node.get("/v1/runs?limit=1000");
        let runs = runs["runs"].as_array().unwrap().clone();
        // One fetch and one checkout for each version at most: no loop.
        assert!(runs.len() <= 10, "{runs:?}");
        runs[0]["started"].as_str().or(runs[0]["at"].as_str()).unwrap_or_default().to_owned()
    });
    assert_ne!(moments[0].get(..10), moments[1].get(..10), "their clocks were off: {moments:?}");
}

#[test]
fn a_second_daemon_on_one_state_or_directory_refuses() {
    let world = World::new();
    let hub = world.primary("hub");
    let (state, dir) = (hub.state.to_str().unwrap(), hub.dir.to_str().unwrap());
    let (other, empty) = (world.path("other.state"), world.folder("empty"));
    for (dir, state) in [(empty.to_str().unwrap(), state), (dir, other.to_str().unwrap())] {
        let output = Command::new(DEPSYNC)
            .args(["primary", dir, "--state", state, "--listen", "127.0.0.1:0"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
    }
    publish(&hub, "a", "the first goes on");
}

#[test]
fn a_stage_that_is_stuck_is_shown() {
    let world = World::new();
    let hub = world.primary("hub");
    publish(&hub, "a", "1");
    let ask = |path: &str| -> Value {
        let answer = curl(&[&format!("{}{path}", hub.url())]);
        serde_json::from_slice(&answer.stdout).unwrap_or_default()
    };
    let well = ask("/healthz?verbose");
    assert_eq!((&well["status"], &well["stages"][0]["stage"]), (&"ok".into(), &"origin".into()));
    assert!(well["stages"][0]["moved_ms"].as_u64() < Some(20_000), "{well}");

    // From now on the disk takes two minutes to answer.
    let mut tracer = slow_disk(hub.pid(), hub.pid(), &["-f"]);
    fs::write(hub.dir.join("a"), "2").unwrap();
    eventually("that is shown", || {
        let ready = ask("/readyz");
        match ready["faults"][0]["kind"].as_str() {
            Some("stuck") => Ok(()),
            _ => Err(ready.to_string()),
        }
    });
    let text = ask("/healthz")["faults"][0]["fault"].to_string();
    assert!(text.contains("has not moved for"), "{text}");
    assert!(ask("/healthz?verbose")["stages"][0]["moved_ms"].as_u64() > Some(20_000));
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    eventually("it goes on", || {
        let (ready, seq) = (ask("/readyz"), feed(&hub)["seq"].as_u64());
        match ready["status"] == "ready" && seq == Some(2) {
            true => Ok(()),
            false => Err(format!("{ready} {seq:?}")),
        }
    });
}

/// Lets a thread wait two minutes for the disk, whenever it wants something to be durable.
fn slow_disk(process: u32, thread: u32, more: &[&str]) -> std::process::Child {
    let tracer = Command::new("strace")
        .args(["-qq", "-o", "/dev/null", "-p", &thread.to_string()])
        .args(["-e", "trace=fsync,syncfs", "-e", "inject=fsync,syncfs:delay_enter=120s"])
        .args(more)
        .spawn()
        .unwrap();
    eventually("it is traced", || {
        let status = fs::read_to_string(format!("/proc/{process}/task/{thread}/status")).unwrap();
        match status.lines().find(|line| line.starts_with("TracerPid:")) {
            Some(line) if line.ends_with(&tracer.id().to_string()) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    tracer
}

#[test]
fn a_checkout_that_is_stuck_is_shown_and_the_store_goes_on() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    publish(&hub, "a", "1");
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["wait", "default"]);
    let asked = |node: &Node, path: &str| -> Value {
        let answer = curl(&[&format!("{}{path}", node.url())]);
        serde_json::from_slice(&answer.stdout).unwrap_or_default()
    };
    assert_eq!(asked(&eu, "/readyz")["status"], "ready");
    let threads = fs::read_dir(format!("/proc/{}/task", eu.pid())).unwrap();
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("comm")).is_ok_and(|name| name == "default-disk\n")
    };
    let thread = threads.map(Result::unwrap).find(named).expect("its disk has a thread");
    let thread = thread.file_name().to_string_lossy().parse().unwrap();
    let mut tracer = slow_disk(eu.pid(), thread, &[]);
    publish(&hub, "a", "2");
    eventually("that is shown", || {
        let ready = asked(&eu, "/readyz");
        match ready["faults"][0]["kind"].as_str() {
            Some("stuck") => Ok(()),
            _ => Err(ready.to_string()),
        }
    });
    let why = asked(&eu, "/healthz")["faults"][0]["fault"].to_string();
    assert!(why.contains("its disk thread does not get on"), "{why}");
    // What comes meanwhile is fetched and served, and the primary says who lacks it.
    publish(&hub, "a", "3");
    let newest = hub.commit();
    eventually("it is fetched", || match eu.commit() == newest {
        true => Ok(()),
        false => Err(feed(&eu).to_string()),
    });
    assert_eq!(fs::read_to_string(eu.dir.join("a")).unwrap(), "1");
    let verdict = hub.command(&["wait", "default", "--timeout", "0"]);
    assert!(String::from_utf8_lossy(&verdict.stderr).contains("eu (is behind)"), "{verdict:?}");
    assert_eq!(asked(&hub, "/readyz")["status"], "ready");
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    eventually("it is ready again", || match asked(&eu, "/readyz") {
        ready if ready["status"] == "ready" => Ok(()),
        ready => Err(ready.to_string()),
    });
}
