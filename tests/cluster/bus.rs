//! What every bus must do, told once and run over each of them: the embedded one, and NATS. And what
//! only NATS can do: be away at the start, restart, lose everything.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    nats::NatsServer,
    oracle::wait_equal,
    world::{Node, World, curl, done, eventually, eventually_within, feed, state},
};

/// How often an upstream says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

enum Bus {
    Embedded,
    Nats(NatsServer),
}

impl Bus {
    fn nats(world: &World) -> Self {
        Bus::Nats(NatsServer::started(world))
    }

    /// What the configuration of each node says of it.
    fn section(&self) -> String {
        match self {
            Bus::Embedded => String::new(),
            Bus::Nats(server) => format!("[bus]\nnats = \"{}\"\n", server.url()),
        }
    }

    fn primary(&self, world: &World, name: &str) -> Node {
        let mut node = world.configured(name, &self.section(), "");
        node.start();
        node
    }

    /// A region that is not running yet.
    fn region(&self, world: &World, (name, region): (&str, &str), upstream: &Node) -> Node {
        let keys = format!(
            "node = \"{name}\"\npoll = \"1h\"\n[region]\nname = \"{region}\"\n{}",
            self.section()
        );
        world.configured(name, &keys, &format!("upstream = \"{}\"", upstream.url()))
    }
}

fn listed(hub: &Node, label: &str) -> Value {
    let nodes = hub.try_get("/v1/nodes").unwrap_or_default();
    let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|node| node["label"] == label).unwrap_or_default()
}

/// Waits until a node says this of another one.
fn seen(hub: &Node, label: &str, field: &str, wanted: &str) {
    eventually_within(Duration::from_secs(90), &format!("{label} is {wanted}"), || {
        let entry = listed(hub, label);
        match entry["feeds"][0][field].as_str() {
            Some(found) if found == wanted => Ok(()),
            _ => Err(entry.to_string()),
        }
    });
}

/// Changes come, small and large; what became of them is known at the top, through a relay too; who is
/// paused stays where it is.
fn it_announces_acknowledges_and_pauses(world: &World, bus: &Bus) {
    let hub = bus.primary(world, "hub");
    let mut relay = bus.region(world, ("relay", "relay"), &hub);
    relay.start();
    let mut leaf = bus.region(world, ("leaf", "leaf"), &relay);
    leaf.start();
    fs::write(hub.dir.join("small"), "1").unwrap();
    wait_equal(&hub.dir, &[&relay.dir, &leaf.dir]);
    fs::write(hub.dir.join("large"), vec![7; 200_000]).unwrap();
    wait_equal(&hub.dir, &[&relay.dir, &leaf.dir]);
    // Polls are an hour apart: announcements alone have brought it, acknowledgements alone say so.
    let said = done(&hub, &["wait", "default"]);
    assert!(said.contains("relay") && said.contains("leaf"), "{said}");
    assert_eq!(listed(&hub, "leaf")["via"], listed(&hub, "relay")["id"]);

    done(&hub, &["pause", "--region", "relay"]);
    assert!(state(&relay, "paused").contains("resume"));
    fs::write(hub.dir.join("small"), "2").unwrap();
    done(&hub, &["sync"]);
    let said = done(&hub, &["wait", "default", "--timeout", "5s"]);
    assert!(said.contains("paused"), "{said}");
    assert_eq!(fs::read(relay.dir.join("small")).unwrap(), b"1");
    done(&hub, &["resume", "--region", "relay"]);
    wait_equal(&hub.dir, &[&relay.dir, &leaf.dir]);

    // An order is heard at once, through a relay too: by heartbeats alone each would take one or two.
    let (began, first) = (Instant::now(), hub.commit());
    for pinned in [true, false, true, false] {
        let order: &[&str] = if pinned { &["pin", &first] } else { &["unpin"] };
        done(&hub, &[order, &["--region", "leaf"]].concat());
        eventually("it is obeyed", || {
            let said = feed(&leaf)["detail"].to_string();
            if said.contains("pinned") == pinned { Ok(()) } else { Err(said) }
        });
    }
    assert!(began.elapsed() < 3 * HEARTBEAT, "{:?}", began.elapsed());
}

/// A node that is silent is missed, another one takes its region over, and after a restart of the
/// upstream all say hello again.
fn it_misses_who_is_silent_and_survives_a_restart(world: &World, bus: &Bus) {
    let mut hub = bus.primary(world, "hub");
    let mut first = bus.region(world, ("first", "eu"), &hub);
    first.start();
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&first.dir]);
    let mut second = bus.region(world, ("second", "eu"), &hub);
    second.start();
    wait_equal(&hub.dir, &[&second.dir]);
    seen(&hub, "second", "standing", "standby");
    first.kill();
    seen(&hub, "first", "state", "away");
    seen(&hub, "second", "standing", "serving");
    eventually("it knows that", || match second.get("/v1/feeds/default")["standing"].as_str() {
        Some("serving") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    first.start();
    seen(&hub, "first", "standing", "standby");

    hub.kill();
    fs::write(hub.dir.join("a"), "2").unwrap();
    hub.start();
    wait_equal(&hub.dir, &[&first.dir, &second.dir]);
    seen(&hub, "first", "state", "verified");
    seen(&hub, "second", "state", "verified");
    done(&hub, &["wait", "default"]);
}

#[test]
fn embedded_announces_acknowledges_and_pauses() {
    let world = World::new();
    it_announces_acknowledges_and_pauses(&world, &Bus::Embedded);
}

#[test]
fn nats_announces_acknowledges_and_pauses() {
    let world = World::new();
    it_announces_acknowledges_and_pauses(&world, &Bus::nats(&world));
}

#[test]
fn embedded_misses_who_is_silent_and_survives_a_restart() {
    let world = World::new();
    it_misses_who_is_silent_and_survives_a_restart(&world, &Bus::Embedded);
}

#[test]
fn nats_misses_who_is_silent_and_survives_a_restart() {
    let world = World::new();
    it_misses_who_is_silent_and_survives_a_restart(&world, &Bus::nats(&world));
}

/// A primary and a region that asks for the head every second, over a server that may be away.
fn pair(world: &World, server: &NatsServer) -> (Node, Node) {
    let bus = format!("[bus]\nnats = \"{}\"\n", server.url());
    let mut hub = world.configured("hub", &bus, "");
    hub.start();
    let keys = format!("poll = \"1s\"\n[region]\nname = \"eu\"\n{bus}");
    let mut eu = world.configured("eu", &keys, &format!("upstream = \"{}\"", hub.url()));
    eu.start();
    (hub, eu)
}

fn health(node: &Node) -> String {
    String::from_utf8(curl(&[&format!("{}/healthz", node.url())]).stdout).unwrap()
}

/// Both ends name the server that is away.
fn both_miss(server: &NatsServer, hub: &Node, eu: &Node) {
    let away = format!("NATS at {} is away", server.url());
    eventually("the region says what it misses", || {
        let feed = eu.try_get("/v1/feeds/default").unwrap_or_default();
        let says = feed["detail"].as_str().is_some_and(|detail| detail.contains(&away));
        match says && feed["state"] == "waiting-for-upstream" {
            true => Ok(()),
            false => Err(feed.to_string()),
        }
    });
    eventually("the primary says that nobody hears it", || {
        let text = health(hub);
        if text.contains(&away) { Ok(()) } else { Err(text) }
    });
}

fn all_is_well(hub: &Node, eu: &Node) {
    state(eu, "idle");
    done(hub, &["wait", "default"]);
    for node in [hub, eu] {
        eventually(&format!("{} is well", node.name), || {
            let text = health(node);
            if text.contains("\"ok\"") { Ok(()) } else { Err(text) }
        });
    }
}

#[test]
fn nats_may_be_away_at_the_start() {
    let world = World::new();
    let mut server = NatsServer::new(&world);
    let (hub, eu) = pair(&world, &server);
    fs::write(hub.dir.join("a"), "1").unwrap();
    // The poll brings it all the same, and nothing is hidden.
    wait_equal(&hub.dir, &[&eu.dir]);
    both_miss(&server, &hub, &eu);
    server.start();
    all_is_well(&hub, &eu);
}

#[test]
fn nats_may_restart_and_lose_everything() {
    let world = World::new();
    let mut server = NatsServer::started(&world);
    let (hub, eu) = pair(&world, &server);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    all_is_well(&hub, &eu);

    // A restart that is over soon is no news.
    server.kill();
    fs::write(hub.dir.join("a"), "2").unwrap();
    server.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    all_is_well(&hub, &eu);

    server.lose();
    fs::write(hub.dir.join("a"), "3").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    both_miss(&server, &hub, &eu);
    fs::write(hub.dir.join("b"), "4").unwrap();
    server.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    all_is_well(&hub, &eu);
    for node in [&hub, &eu] {
        node.fsck();
    }
}
