//! To whom a primary leads a client, and to whom not: parts of a feed, pauses, pins, revocations,
//! relays.

use std::fs;

use serde_json::Value;

use crate::{
    oracle::wait_equal,
    world::{Node, World, curl, done, eventually},
};

const FILES: &str = "/v1/feeds/default/files";

/// A hub with a table of regions, each with the clients of one network: 127.0.1.0/24 and so on.
fn hub(world: &World, regions: &[&str]) -> Node {
    let region = |(at, name): (usize, &&str)| {
        let network = at + 1;
        format!("<Region name=\"{name}\"><IPRange>127.0.{network}.0/24</IPRange></Region>")
    };
    let text: String = regions.iter().enumerate().map(region).collect();
    let table = world.path("region.xml");
    fs::write(&table, format!("<Regions>{text}</Regions>")).unwrap();
    world.primary_with("hub", &["--regions", table.to_str().unwrap()])
}

/// What a client of the first region is answered: the status, where it is led to, and the bytes
/// that it gets in the end.
fn ask(hub: &Node, path: &str) -> (String, String, Vec<u8>) {
    let url = format!("{}{FILES}/{path}", hub.url());
    let from = ["--interface", "127.0.1.9"];
    let told = ["-o", "/dev/null", "-w", "%{http_code} %{redirect_url}", &url];
    let told = String::from_utf8(curl(&[&from[..], &told].concat()).stdout).unwrap();
    let (status, to) = told.split_once(' ').unwrap();
    let bytes = curl(&[&from[..], &["-fL", &url]].concat()).stdout;
    (status.to_owned(), to.to_owned(), bytes)
}

/// Waits until a client of the first region is led to this node, naming this commit.
fn led_to(hub: &Node, path: &str, to: &Node, commit: &str) -> Vec<u8> {
    let wanted = format!("{}/v1/feeds/default/at/{commit}/{path}", to.url());
    eventually(&format!("led to {}", to.name), || match ask(hub, path) {
        (status, location, bytes) if status == "307" && location == wanted => Ok(bytes),
        (status, location, _) => Err(format!(
            "{status} {location}, wanted {wanted}: {}",
            hub.get(&format!("/v1/locate/default/{path}?from=127.0.1.9"))
        )),
    })
}

/// Waits until the hub itself serves a client of the first region, which `locate` explains.
fn served_here(hub: &Node, path: &str, passed: &str) -> Vec<u8> {
    eventually("the primary serves", || {
        let located = hub.get(&format!("/v1/locate/default/{path}?from=127.0.1.9"));
        let reason = &located["passed_over"][0]["why"];
        match ask(hub, path) {
            (status, _, bytes) if status == "200" && *reason == *passed => Ok(bytes),
            (status, to, _) => Err(format!("{status} {to}: {located}")),
        }
    })
}

fn publish(hub: &Node, name: &str, text: &str) -> String {
    let before = hub.commit();
    fs::write(hub.dir.join(name), text).unwrap();
    eventually("it is published", || match hub.commit() {
        commit if commit == before => Err(commit),
        commit => Ok(commit),
    })
}

#[test]
fn a_paused_region_is_passed_over_and_a_pinned_ones_clients_get_its_version() {
    let world = World::new();
    let hub = hub(&world, &["eu"]);
    let eu = world.region("eu", &hub);
    let first = publish(&hub, "app", "one");
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(led_to(&hub, "app", &eu, &first), b"one");

    done(&hub, &["pause", "--region", "eu"]);
    let second = publish(&hub, "app", "two");
    assert_eq!(served_here(&hub, "app", "paused"), b"two");
    done(&hub, &["resume", "--region", "eu"]);
    assert_eq!(led_to(&hub, "app", &eu, &second), b"two");
    // Paused at the region itself: the primary hears of it.
    done(&eu, &["pause"]);
    served_here(&hub, "app", "paused");
    done(&eu, &["resume"]);
    led_to(&hub, "app", &eu, &second);

    done(&hub, &["pin", &first, "--region", "eu"]);
    assert_eq!(led_to(&hub, "app", &eu, &first), b"one");
    let third = publish(&hub, "app", "three");
    let later = publish(&hub, "later", "x");
    assert_eq!(led_to(&hub, "app", &eu, &first), b"one");
    assert_eq!(ask(&hub, "later").0, "404", "the region's version has no such file");
    let elsewhere = |path: &str| curl(&["-f", &format!("{}{FILES}/{path}", hub.url())]).stdout;
    assert_eq!((elsewhere("app"), elsewhere("later")), (b"three".to_vec(), b"x".to_vec()));
    // Asked by its own name, it gives what it is kept at, too.
    let direct = || curl(&["-f", &format!("{}{FILES}/app", eu.url())]).stdout;
    eventually("the region has heard of the pin", || match direct() {
        bytes if bytes == b"one" => Ok(()),
        bytes => Err(format!("{bytes:?}")),
    });
    let regions = hub.get("/v1/regions");
    assert_eq!(regions["regions"][0]["nodes"][0]["pinned"], *first, "{regions}");
    let shown = String::from_utf8(hub.command(&["regions"]).stdout).unwrap();
    assert!(shown.contains(&first[..10]), "{shown}");
    done(&hub, &["unpin", "--region", "eu"]);
    assert_eq!(led_to(&hub, "app", &eu, &later), b"three");

    // A version that is revoked is given to nobody, under no name.
    done(&hub, &["revoke", &later]);
    for (node, path) in [
        (&hub, format!("{FILES}/app")),
        (&hub, format!("/v1/feeds/default/at/{later}/app")),
        (&eu, format!("/v1/feeds/default/at/{later}/app")),
        (&eu, format!("{FILES}/app")),
        (&hub, "/v1/feeds/default/archive/.tar".to_owned()),
    ] {
        eventually("410", || {
            let url = format!("{}{path}", node.url());
            let code = curl(&["-o", "/dev/null", "-w", "%{http_code}", &url]);
            match String::from_utf8_lossy(&code.stdout).as_ref() {
                "410" => Ok(()),
                other => Err(format!("{url}: {other}")),
            }
        });
    }
    let url = format!("{}/v1/feeds/default/at/{third}/app", eu.url());
    assert_eq!(curl(&["-f", &url]).stdout, b"three", "another version with the same file");
}

#[test]
fn a_region_with_a_part_of_the_feed_serves_that_part() {
    let world = World::new();
    let hub = hub(&world, &["eu"]);
    let upstream = format!("upstream = \"{}\"\npaths = [\"webapps/**\"]", hub.url());
    let mut eu = world.configured("eu", "[region]\nname = \"eu\"", &upstream);
    eu.start();
    for folder in ["webapps", "lib"] {
        fs::create_dir(hub.dir.join(folder)).unwrap();
        fs::write(hub.dir.join(folder).join("large.war"), vec![7; 1_000_000]).unwrap();
    }
    std::os::unix::fs::symlink("../lib/large.war", hub.dir.join("webapps/link.war")).unwrap();
    done(&hub, &["sync", "--wait"]);
    let commit = hub.commit();
    assert_eq!(led_to(&hub, "webapps/large.war", &eu, &commit).len(), 1_000_000);
    assert_eq!(served_here(&hub, "lib/large.war", "other_part").len(), 1_000_000);
    // What a link leads to counts, too.
    assert_eq!(served_here(&hub, "webapps/link.war", "other_part").len(), 1_000_000);
    // A region that no entry leads to, and whose address leads nowhere.
    let _us = world.region_with("us", &hub, &["--advertise", "http://127.0.0.1:1"]);
    eventually("it is shown", || {
        let shown = String::from_utf8(hub.command(&["regions"]).stdout).unwrap();
        let line = shown.lines().find(|line| line.starts_with("us ")).unwrap_or_default();
        match ["not in the region table", "not reached"].iter().all(|part| line.contains(part)) {
            true => Ok(()),
            false => Err(shown),
        }
    });
}

#[test]
fn behind_a_relay_a_region_serves_its_clients_and_the_relay_when_it_cannot() {
    let world = World::new();
    let hub = hub(&world, &["leaf", "relay"]);
    // Another name of the feed at the relay, and the leaf's own.
    let upstream =
        format!("name = \"apps\"\nupstream_feed = \"default\"\nupstream = \"{}\"", hub.url());
    let mut relay = world.configured("relay", "[region]\nname = \"relay\"", &upstream);
    relay.start();
    let upstream =
        format!("name = \"ours\"\nupstream_feed = \"apps\"\nupstream = \"{}\"", relay.url());
    let mut leaf = world.configured("leaf", "[region]\nname = \"leaf\"", &upstream);
    leaf.start();
    let commit = publish(&hub, "app", "one");
    wait_equal(&hub.dir, &[&relay.dir, &leaf.dir]);
    let led = |to: &Node, feed: &str| {
        let wanted = format!("{}/v1/feeds/{feed}/at/{commit}/app", to.url());
        eventually(&format!("led to {}", to.name), || match ask(&hub, "app") {
            (_, location, bytes) if location == wanted => Ok(bytes),
            other => Err(format!("{other:?}: {}", located(&hub))),
        })
    };
    assert_eq!(led(&leaf, "ours"), b"one");
    assert_eq!(located(&hub)["why"], "address");
    let regions = hub.get("/v1/regions");
    assert_eq!(regions["regions"][0]["nodes"][0]["url"], *leaf.url(), "{regions}");

    done(&relay, &["pause", "--feed", "apps", "--region", "leaf"]);
    assert_eq!(led(&relay, "apps"), b"one");
    let why = located(&hub);
    assert_eq!((&why["why"], &why["passed_over"][0]["why"]), (&"relay".into(), &"paused".into()));
    done(&relay, &["resume", "--feed", "apps", "--region", "leaf"]);
    led(&leaf, "ours");
    leaf.kill();
    // The relay misses it at once, and says so.
    led(&relay, "apps");
    let got = world.path("got");
    let get = ["get", "default/app", "--via", "leaf", "--json", "-o", got.to_str().unwrap()];
    let output = hub.command(&get);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["from"], *relay.url(), "{output:?}");
    relay.kill();
    assert_eq!(served_here(&hub, "app", "away"), b"one");
    assert_eq!(located(&hub)["why"], "region_down");
    leaf.start();
}

fn located(hub: &Node) -> Value {
    hub.get("/v1/locate/default/app?from=127.0.1.9")
}
