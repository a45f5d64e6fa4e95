//! More than one hop, more than one hub, more than one feed: and what each node says of the others.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{
    oracle::{compare, wait_equal},
    proxy::Proxy,
    world::{Node, World, curl, done, eventually, free_address, state},
};

/// A node's entry, once it is listed.
fn listed(hub: &Node, label: &str) -> Option<Value> {
    let nodes = hub.try_get("/v1/nodes").ok()?;
    nodes["nodes"].as_array()?.iter().find(|node| node["label"] == label).cloned()
}

#[test]
fn the_hub_answers_for_every_node_below_its_relays() {
    let world = World::new();
    let hub = world.primary("hub");
    let relay = world.region("relay", &hub);
    let middle = world.region("middle", &relay);
    let mut leaf = world.region("leaf", &middle);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&relay.dir, &middle.dir, &leaf.dir]);
    let said = done(&hub, &["wait", "default"]);
    for region in ["relay", "middle", "leaf"] {
        assert!(said.contains(region), "{said}");
    }
    let entry = listed(&hub, "leaf").unwrap();
    let above = listed(&relay, "middle").unwrap();
    assert_eq!(entry["via"], above["id"], "{entry}");
    let stands = &entry["feeds"][0];
    assert_eq!((&stands["state"], &stands["lag_ms"]), (&"verified".into(), &0.into()), "{entry}");
    assert!(stands["verified_at"].is_string() && stands["last_error"].is_null(), "{entry}");
    assert_eq!(stands["want"], stands["have"], "{entry}");
    let figures = |name: &str, label: &str| {
        let page = curl(&[&format!("{}/metrics", hub.url())]).stdout;
        let page = String::from_utf8(page).unwrap();
        let label = format!("label=\"{label}\"");
        let line = page.lines().find(|line| line.starts_with(name) && line.contains(&label));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
    };
    for label in ["relay", "middle", "leaf"] {
        assert_eq!(figures("depsync_node_have_seq", label), Some(1));
        assert_eq!(figures("depsync_node_want_seq", label), Some(1));
        assert_eq!(figures("depsync_node_up", label), Some(1));
        assert!(figures("depsync_node_verified_timestamp_seconds", label) > Some(1_600_000_000));
    }
    let nodes = done(&hub, &["nodes"]);
    assert!(nodes.contains("VERIFIED") && nodes.contains("leaf"), "{nodes}");

    // A leaf that dies is missed at the top, and what it was is remembered.
    leaf.kill();
    fs::write(hub.dir.join("a"), "2").unwrap();
    wait_equal(&hub.dir, &[&relay.dir, &middle.dir]);
    let output = hub.command(&["wait", "default", "--timeout", "1s"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("leaf"), "{text}");
    let entry = listed(&hub, "leaf").unwrap();
    assert!(entry["feeds"][0]["lag_ms"].as_u64() > Some(0), "{entry}");
    assert_eq!(figures("depsync_node_want_seq", "leaf"), Some(2));
    leaf.start();
    done(&hub, &["wait", "default"]);
    // Mirrors record what moved, as the primary does.
    let runs = leaf.get("/v1/runs");
    let runs = runs["runs"].as_array().unwrap();
    for kind in ["fetch", "checkout"] {
        let run = runs.iter().find(|run| run["kind"] == kind).expect(kind);
        assert_eq!(
            (&run["outcome"], &run["names"][0]["path"]),
            (&"ok".into(), &"a".into()),
            "{run}"
        );
        assert!(run["bytes"].as_u64() > Some(0) && run["took_ms"].as_f64() > Some(0.0), "{run}");
    }
}

#[test]
fn two_hubs_with_a_feed_each_way_round() {
    let world = World::new();
    let folders: Vec<PathBuf> =
        ["a-own", "a-other", "b-own", "b-other"].iter().map(|name| world.folder(name)).collect();
    let ports = [free_address(), free_address()];
    let hub = |name: &str, at: usize, other: usize, own: &PathBuf, mirror: &PathBuf| {
        let feeds = format!(
            "name = \"{name}\"\n[[feed]]\nname = \"{}\"\ndir = {mirror:?}\nupstream = \"http://{}\"",
            ["a", "b"][other],
            ports[other]
        );
        let mut node = world.configured(name, &format!("[region]\nname = \"{name}\""), &feeds);
        let config = world.path(&format!("{name}.toml"));
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace(&format!("{:?}", node.dir), &format!("{own:?}"))).unwrap();
        node.listen_at(ports[at]);
        node.start();
        node
    };
    let a = hub("a", 0, 1, &folders[0], &folders[1]);
    let b = hub("b", 1, 0, &folders[2], &folders[3]);
    fs::write(folders[0].join("from-a"), "a").unwrap();
    fs::write(folders[2].join("from-b"), "b").unwrap();
    wait_equal(&folders[0], &[&folders[3]]);
    wait_equal(&folders[2], &[&folders[1]]);
    for (node, own, other) in [(&a, "a", "b"), (&b, "b", "a")] {
        assert_eq!(node.get(&format!("/v1/feeds/{own}"))["role"], "primary");
        assert_eq!(node.get(&format!("/v1/feeds/{other}"))["role"], "region");
        done(node, &["wait", own]);
    }
}

#[test]
fn a_spoke_under_another_feed_name_and_one_more_without_a_change_at_the_hub() {
    let world = World::new();
    let hub = world.primary("hub");
    let settings = ["--feed", "apps", "--upstream-feed", "default"];
    let eu = world.region_with("eu", &hub, &settings);
    fs::write(hub.dir.join("file"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    // A client that the hub leads there arrives under the name that the feed has there, and one who
    // uploads at the spoke arrives under the hub's.
    let url = format!("{}/v1/feeds/default/files/file?via=eu", hub.url());
    eventually("it is led there", || {
        let answer = curl(&["-o", "/dev/null", "-w", "%{redirect_url}", &url]);
        let to = String::from_utf8(answer.stdout).unwrap();
        match to.starts_with(&format!("{}/v1/feeds/apps/at/", eu.url())) {
            true => Ok(()),
            false => Err(to),
        }
    });
    assert_eq!(curl(&["-L", &url]).stdout, b"x");
    let up = format!("{}/v1/feeds/apps/files/up?wait=commit", eu.url());
    let answer = curl(&["-X", "PUT", "-o", "/dev/null", "-w", "%{redirect_url}", "-d", "y", &up]);
    let to = String::from_utf8(answer.stdout).unwrap();
    if !to.is_empty() {
        assert_eq!(to, format!("{}/v1/feeds/default/files/up?wait=commit", hub.url()));
    }
    let us = world.region_with("us", &hub, &settings);
    wait_equal(&hub.dir, &[&us.dir]);
}

#[test]
fn an_address_that_does_not_lead_to_the_node_is_shown_and_nobody_is_led_there() {
    let world = World::new();
    let hub = world.primary("hub");
    let other = world.primary("other");
    let eu = world.region_with("eu", &hub, &["--advertise", &other.url()]);
    fs::write(hub.dir.join("file"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let why = eventually("it was tried", || match listed(&hub, "eu") {
        Some(node) if node["unreachable"].is_string() => Ok(node["unreachable"].to_string()),
        other => Err(format!("{other:?}")),
    });
    assert!(why.contains("another node"), "{why}");
    let url = format!("{}/v1/feeds/default/files/file?via=eu", hub.url());
    assert_eq!(curl(&[&url]).stdout, b"x", "the primary itself serves");

    // A redirect is not followed, whoever it leads to, and nothing secret is shown there.
    let (asked, answers) = redirecting(&format!("{}/livez", eu.url()));
    let us = world.region_with("us", &hub, &["--advertise", &asked]);
    wait_equal(&hub.dir, &[&us.dir]);
    let request = answers.recv_timeout(std::time::Duration::from_secs(30)).unwrap();
    assert!(request.starts_with("GET /livez "), "{request}");
    assert!(!request.to_lowercase().contains("authorization"), "{request}");
    eventually("it is unreachable", || match listed(&hub, "us") {
        Some(node)
            if node["unreachable"].as_str().is_some_and(|why| why.contains("no depsync")) =>
        {
            Ok(())
        }
        other => Err(format!("{other:?}")),
    });
}

/// A server that redirects everybody, and gives what it was asked.
fn redirecting(to: &str) -> (String, std::sync::mpsc::Receiver<String>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
    let (tell, asked) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let _ = tell.send(String::from_utf8_lossy(&request[..read]).into_owned());
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (url, asked)
}

#[test]
fn a_cut_network_and_lost_announcements_cost_time_and_nothing_else() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let proxy = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &proxy.url(), &[]);
    eu.start();
    let us = world.region("us", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir, &us.dir]);

    // The network is cut: the other mirror is not delayed, and both ends say what they miss.
    proxy.refuse(true);
    proxy.cut();
    let cut = std::time::Instant::now();
    for n in 2..50 {
        fs::write(hub.dir.join("a"), n.to_string()).unwrap();
    }
    wait_equal(&hub.dir, &[&us.dir]);
    eventually("the region says what it waits for", || {
        let feed = eu.get("/v1/feeds/default");
        match feed["state"].as_str() {
            Some("waiting-for-upstream") => Ok(()),
            _ => Err(feed.to_string()),
        }
    });
    let secs = if std::env::var_os("DEPSYNC_FULL").is_some() { 60 } else { 21 };
    eventually_down(&hub, cut + std::time::Duration::from_secs(secs));
    let said = |node: &Node| {
        let answer = curl(&[&format!("{}/healthz", node.url())]);
        String::from_utf8_lossy(&answer.stdout).into_owned()
    };
    eventually("the region is not well either", || match said(&eu) {
        text if text.contains("the upstream is not heard") => Ok(()),
        text => Err(text),
    });
    assert!(said(&us).contains("\"ok\""), "{}", said(&us));
    let fetches = |node: &Node| {
        let runs = node.get("/v1/runs?limit=1000");
        runs["runs"].as_array().unwrap().iter().filter(|run| run["kind"] == "fetch").count()
    };
    let before = fetches(&eu);
    proxy.refuse(false);
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(fetches(&eu) <= before + 1, "one fetch, however much was missed");

    // Killed without warning, and started again.
    hub.kill();
    fs::write(hub.dir.join("b"), "while it was down").unwrap();
    for node in [&us, &eu] {
        let why = state(node, "waiting-for-upstream");
        assert!(why.contains("connect"), "{why}");
        assert_eq!(fs::read_to_string(node.dir.join("a")).unwrap(), "49", "it serves what it has");
    }
    hub.start();
    eventually("all are equal", || {
        compare(&hub.dir, &us.dir).and_then(|()| compare(&hub.dir, &eu.dir))
    });
    done(&hub, &["wait", "default"]);
    for node in [&us, &eu] {
        state(node, "idle");
    }
    for node in [&hub, &us, &eu] {
        node.fsck();
    }
}

/// Waits until the primary misses a region and alarms on it, and does so then.
fn eventually_down(hub: &Node, then: std::time::Instant) {
    crate::world::eventually_within(
        std::time::Duration::from_secs(120),
        "the primary says that the region is lost",
        || {
            let health = curl(&[&format!("{}/healthz", hub.url())]);
            let text = String::from_utf8_lossy(&health.stdout).into_owned();
            let away = listed(hub, "eu").is_some_and(|node| node["feeds"][0]["state"] == "away");
            match std::time::Instant::now() >= then
                && away
                && text.contains("stale: eu")
                && hub.metric("depsync_feed_regions_stale") > 0.0
            {
                true => Ok(()),
                false => Err(text),
            }
        },
    );
}

#[test]
fn two_feeds_on_one_node_as_in_the_example() {
    let world = World::new();
    let (server, tenants) =
        (world.folder("repository/deployment/server"), world.folder("repository/tenants"));
    let mirrors = [world.folder("eu/server"), world.folder("eu/tenants")];
    let example = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/wso2");
    let hub_text = fs::read_to_string(example.join("hub.toml")).unwrap();
    let eu_text = fs::read_to_string(example.join("eu.toml")).unwrap();
    let mut hub = world.configured("hub", "", "");
    let mut eu = world.configured("eu", "", "");
    let write = |name: &str, text: String| fs::write(world.path(name), text).unwrap();
    let state_dir = |node: &Node| format!("state_dir = {:?}", node.state);
    write(
        "hub.toml",
        hub_text
            .replace("state_dir = \"/var/lib/depsync\"", &state_dir(&hub))
            .replace("\"/srv/wso2/repository/deployment/server\"", &format!("{server:?}"))
            .replace("\"/srv/wso2/repository/tenants\"", &format!("{tenants:?}")),
    );
    hub.start();
    write(
        "eu.toml",
        eu_text
            .replace("state_dir = \"/var/lib/depsync\"", &state_dir(&eu))
            .replace("\"http://hub.example:7873\"", &format!("{:?}", hub.url()))
            .replace("\"/srv/wso2/repository/deployment/server\"", &format!("{:?}", mirrors[0]))
            .replace("\"/srv/wso2/repository/tenants\"", &format!("{:?}", mirrors[1])),
    );
    eu.start();
    fs::create_dir(server.join("webapps")).unwrap();
    fs::write(server.join("axis2services.aar.txt"), "service").unwrap();
    fs::create_dir_all(tenants.join("1/webapps")).unwrap();
    fs::write(tenants.join("1/webapps/one.txt"), "tenant one").unwrap();
    wait_equal(&tenants, &[&mirrors[1]]);
    eventually("the server's files arrive", || {
        compare_file(&mirrors[0].join("axis2services.aar.txt"), "service")
    });
    // A tenant that is made later arrives like any other folder.
    fs::create_dir_all(tenants.join("2/carbonapps")).unwrap();
    fs::write(tenants.join("2/carbonapps/two.txt"), "tenant two").unwrap();
    wait_equal(&tenants, &[&mirrors[1]]);
    for feed in ["server", "tenants"] {
        done(&hub, &["wait", feed]);
        assert_eq!(eu.get(&format!("/v1/feeds/{feed}"))["role"], "region");
    }
}

fn compare_file(path: &std::path::Path, text: &str) -> Result<(), String> {
    match fs::read_to_string(path) {
        Ok(found) if found == text => Ok(()),
        other => Err(format!("{other:?}")),
    }
}
