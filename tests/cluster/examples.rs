//! The configurations and scripts under `examples/`, run as they are but for addresses and folders.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{
    oracle::wait_equal,
    world::{DEPSYNC, Node, World, done, eventually, free_address},
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
    let (first, second) = (free_address(), free_address());
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

/// Runs an example's script in a copy of its folder, with free ports in place of those that it names;
/// gives what it printed.
fn run_script(example: &str, ports: &[u16]) -> String {
    let world = World::new();
    let copy = world.folder(example);
    let held: Vec<TcpListener> =
        ports.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let free: Vec<u16> = held.iter().map(|held| held.local_addr().unwrap().port()).collect();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(example);
    for entry in fs::read_dir(source).unwrap().map(Result::unwrap) {
        // What somebody's own run left is not part of it.
        if entry.file_type().unwrap().is_dir() {
            continue;
        }
        let mut text = fs::read_to_string(entry.path()).unwrap();
        for (port, free) in ports.iter().zip(&free) {
            // In two steps: a free port may read like one that is yet to be replaced.
            text = text.replace(&port.to_string(), &format!("<{free}>"));
        }
        for free in &free {
            text = text.replace(&format!("<{free}>"), &free.to_string());
        }
        let to = copy.join(entry.file_name());
        fs::write(&to, text).unwrap();
        fs::set_permissions(to, entry.metadata().unwrap().permissions()).unwrap();
    }
    drop(held);
    let mut script = Command::new(copy.join("run.sh"));
    let output = script.env("DEPSYNC", DEPSYNC).stdin(Stdio::null()).output().unwrap();
    let logs = || {
        let mut logs = Command::new("sh");
        logs.args(["-c", "tail -n 20 run/*/log run/*/tomcat/logs/out"]).current_dir(&copy);
        String::from_utf8_lossy(&logs.output().unwrap().stdout).into_owned()
    };
    assert!(output.status.success(), "{example}: {output:?}\n{}", logs());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn quickstart() {
    let said = run_script("quickstart", &[7873, 7874]);
    assert!(said.contains("seen: index.html gone from the region's directory"), "{said}");
}

#[test]
fn two_hubs() {
    let said = run_script("two-hubs", &[7873, 7874, 7875]);
    assert!(said.contains("seen: what hub B published at hub A"), "{said}");
}

#[test]
fn resource_groups() {
    let said = run_script("resource-groups", &[7873, 7874, 7875]);
    assert!(said.contains("because: the client's resource group belongs to it"), "{said}");
}

#[test]
fn tomcat() {
    let said = run_script("tomcat", &[7873, 7874, 8080]);
    for seen in ["version 1 from", "version 2 from", "version 1 again", "the application out of"] {
        assert!(said.contains(&format!("seen: {seen}")), "{said}");
    }
}
