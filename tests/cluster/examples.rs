//! The configurations under `examples/`, run as they are but for addresses and folders.

use std::{fs, path::PathBuf};

use crate::{
    oracle::wait_equal,
    world::{Node, World, done, eventually},
};

/// A node of an example, not running: its folders lie in the world, under the node's name.
fn node(world: &World, name: &str, file: &str, change: &[(&str, &str)]) -> Node {
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(file);
    let node = world.configured(name, "", "");
    let mut text = fs::read_to_string(example).unwrap();
    for folder in ["apps", "conf"] {
        let dir = world.folder(&format!("{name}.d/{folder}"));
        text = text.replace(&format!("\"/srv/{folder}\""), &format!("{dir:?}"));
    }
    text = text.replace("\"/var/lib/depsync\"", &format!("{:?}", node.state));
    for (from, to) in change {
        assert!(text.contains(from), "{file} has no {from}");
        text = text.replace(from, to);
    }
    fs::write(world.path(&format!("{name}.toml")), text).unwrap();
    node
}

#[test]
fn hub_and_spoke() {
    let world = World::new();
    let address = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (first, second) = (address(), address());
    let at = |address| format!("http://{address}");
    let hub_url = ("http://hub.example:7873", at(first));
    let hub_url = (hub_url.0, hub_url.1.as_str());
    let other_url = at(second);
    let other_url = ("http://hub-2.example:7873", other_url.as_str());
    let mut hub = node(&world, "hub", "hub-and-spoke/hub.toml", &[other_url]);
    let mut other = node(&world, "hub-2", "hub-and-spoke/hub-2.toml", &[hub_url]);
    hub.listen_at(first);
    other.listen_at(second);
    hub.start();
    other.start();
    let mut relay = node(&world, "relay", "hub-and-spoke/relay.toml", &[hub_url]);
    relay.start();
    let relay_url = relay.url();
    let relay_url = ("http://relay.example:7873", relay_url.as_str());
    let mut spoke = node(&world, "spoke", "hub-and-spoke/spoke.toml", &[relay_url, hub_url]);
    spoke.start();
    let dir = |node: &str, feed: &str| world.path(&format!("{node}.d/{feed}"));
    fs::write(dir("hub", "apps").join("shop.txt"), "shop").unwrap();
    fs::write(dir("hub-2", "conf").join("shop.conf"), "conf").unwrap();
    let mirrors = [dir("hub-2", "apps"), dir("relay", "apps"), dir("spoke", "apps")];
    wait_equal(&dir("hub", "apps"), &[&mirrors[0], &mirrors[1], &mirrors[2]]);
    wait_equal(&dir("hub-2", "conf"), &[&dir("hub", "conf")]);
    assert_eq!(spoke.get("/v1/feeds/deployments")["role"], "region");

    // One more, with the same settings but for its name; the others are not touched.
    let named = ("name = \"spoke\"", "name = \"spoke-2\"");
    let mut more =
        node(&world, "spoke-2", "hub-and-spoke/spoke.toml", &[named, relay_url, hub_url]);
    more.start();
    wait_equal(&dir("hub", "apps"), &[&dir("spoke-2", "apps")]);
    fs::write(dir("hub", "apps").join("shop.txt"), "a new one").unwrap();
    wait_equal(&dir("hub", "apps"), &[&mirrors[2], &dir("spoke-2", "apps")]);
    eventually("the hub knows it of all four", || {
        let said = done(&hub, &["wait", "apps"]);
        match ["abroad", "relay", "spoke", "spoke-2"].iter().all(|name| said.contains(name)) {
            true => Ok(()),
            false => Err(said),
        }
    });
    done(&other, &["wait", "conf"]);
}
