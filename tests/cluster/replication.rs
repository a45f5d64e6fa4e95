//! Every node proves where it stands: acknowledgements, pauses, failover, and the alarms at both ends.

use std::fs;

use serde_json::Value;

use crate::{
    nats::NatsServer,
    oracle::{contents, wait_equal},
    world::{Node, World, curl, done, eventually, feed, free_address, state},
};

/// Runs a command at a node; it must fail with code 1, and these words.
fn refused(node: &Node, arguments: &[&str], words: &[&str]) {
    let output = node.command(arguments);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{arguments:?}: \"{word}\" is not in: {text}");
    }
}

/// The entry of a node in the list of another one.
fn listed(hub: &Node, label: &str) -> Value {
    let nodes = hub.try_get("/v1/nodes").unwrap_or_default();
    let nodes = nodes["nodes"].as_array().cloned().unwrap_or_default();
    nodes.into_iter().find(|node| node["label"] == label).unwrap_or_default()
}

fn epoch(node: &Node) -> u64 {
    feed(node)["epoch"].as_u64().unwrap_or_default()
}

#[test]
fn wait_returns_when_every_region_has_it_and_names_the_one_that_has_not() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let mut us = world.region("us", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir, &us.dir]);
    let said = done(&hub, &["wait", "default"]);
    assert!(said.contains("eu") && said.contains("us"), "{said}");

    us.kill();
    fs::write(hub.dir.join("a"), "2").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    refused(&hub, &["wait", "default", "--timeout", "1s"], &["us", "not verified"]);
    refused(&hub, &["sync", "--wait", "--timeout", "1s"], &["us"]);
    let url = format!("{}/v1/feeds/default/wait?timeout=0", hub.url());
    let answer = curl(&["-w", "\n%{http_code}", &url]);
    let text = String::from_utf8(answer.stdout).unwrap();
    assert!(text.ends_with("\n504"), "{text}");
    let verdict: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(verdict["lacking"][0]["region"], "us", "{verdict}");
    assert_eq!(verdict["verified"][0]["region"], "eu", "{verdict}");

    // A region that is gone for good is forgotten, and then not waited for.
    let id = listed(&hub, "us")["id"].as_str().unwrap().to_owned();
    eventually("it is forgotten", || match hub.command(&["forget", &id]).status.success() {
        true => Ok(()),
        false => Err("still connected".to_owned()),
    });
    done(&hub, &["wait", "default", "--timeout", "5s"]);
    assert!(listed(&hub, "us").is_null());
}

#[test]
fn a_paused_node_stays_where_it_is_and_goes_on_when_it_is_resumed() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let us = world.region("us", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir, &us.dir]);

    done(&hub, &["pause", "--region", "eu"]);
    assert!(state(&eu, "paused").contains("resume"));
    fs::write(hub.dir.join("a"), "2").unwrap();
    wait_equal(&hub.dir, &[&us.dir]);
    // Nobody waits for it, and it is said that it is paused, also after a restart.
    let said = done(&hub, &["wait", "default"]);
    assert!(said.contains("paused"), "{said}");
    hub.kill();
    hub.start();
    eventually("it is listed as paused", || {
        match listed(&hub, "eu")["feeds"][0]["state"].as_str() {
            Some("paused") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(fs::read(eu.dir.join("a")).unwrap(), b"1");
    done(&hub, &["resume", "--region", "eu"]);
    wait_equal(&hub.dir, &[&eu.dir]);
    refused(&hub, &["resume", "--region", "eu"], &["not paused"]);
    refused(&hub, &["pause", "--node", "nobody"], &["nobody"]);

    // One node by its name, and all of them at once.
    done(&hub, &["pause", "--node", "us"]);
    state(&us, "paused");
    assert_eq!(feed(&eu)["state"], "idle");
    done(&hub, &["resume", "--node", "us"]);
    done(&hub, &["pause"]);
    for node in [&eu, &us] {
        state(node, "paused");
    }
    done(&hub, &["resume"]);
    for node in [&eu, &us] {
        state(node, "idle");
    }

    // At a region its own operator may do the same.
    done(&us, &["pause"]);
    state(&us, "paused");
    fs::write(hub.dir.join("a"), "3").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(fs::read(us.dir.join("a")).unwrap(), b"2");
    done(&us, &["resume"]);
    wait_equal(&hub.dir, &[&us.dir]);
}

#[test]
fn who_waits_by_choice_is_named_and_not_waited_for() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let upstream = format!("upstream = \"{}\"\ncheckout_at = \"0 0 0 1 1 *\"", hub.url());
    let mut us = world.configured("us", "[region]\nname = \"us\"", &upstream);
    us.start();
    fs::write(hub.dir.join("a"), "1").unwrap();
    // The first version is not waited with.
    wait_equal(&hub.dir, &[&eu.dir, &us.dir]);
    done(&hub, &["wait", "default"]);
    done(&hub, &["pin", &hub.commit(), "--region", "eu"]);
    eventually("it has heard of that", || match feed(&eu)["detail"].as_str() {
        Some(detail) if detail.contains("pinned") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    fs::write(hub.dir.join("a"), "2").unwrap();
    done(&hub, &["sync"]);
    let said = done(&hub, &["wait", "default", "--timeout", "20s"]);
    assert!(said.contains("pinned to commit") && said.contains("checkout_at"), "{said}");
    for node in [&eu, &us] {
        assert_eq!(fs::read(node.dir.join("a")).unwrap(), b"1");
    }
    for label in ["eu", "us"] {
        assert_eq!(listed(&hub, label)["feeds"][0]["state"], "waiting");
    }
}

#[test]
fn the_promote_drill() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let eu_url = eu.url();
    let mut us = world.region_unstarted("us", &hub.url(), &["--upstream", &eu_url]);
    us.start();
    for name in ["kept", "changed", "removed"] {
        fs::write(hub.dir.join(name), name).unwrap();
    }
    wait_equal(&hub.dir, &[&eu.dir, &us.dir]);
    done(&hub, &["wait", "default"]);
    refused(&eu, &["demote", "--upstream", "hub"], &["URL"]);

    // The primary dies; what is written there now is published nowhere.
    hub.kill();
    fs::write(hub.dir.join("changed"), "at the old primary").unwrap();
    fs::write(hub.dir.join("unpublished"), "only here").unwrap();
    done(&eu, &["promote"]);
    fs::write(eu.dir.join("changed"), "at the new primary").unwrap();
    fs::remove_file(eu.dir.join("removed")).unwrap();
    fs::write(eu.dir.join("new"), "new").unwrap();
    done(&us, &["sync"]);
    wait_equal(&eu.dir, &[&us.dir]);
    assert_eq!((epoch(&eu), epoch(&us)), (2, 2));

    // The old primary comes back, and is told where the feed is owned now.
    hub.start();
    done(&hub, &["demote", "--upstream", &eu.url()]);
    wait_equal(&eu.dir, &[&hub.dir]);
    let aside = contents(&hub.state.join("feeds/default/aside"));
    for name in ["changed", "unpublished"] {
        assert!(aside.keys().any(|path| path.ends_with(name)), "{name} is lost: {aside:?}");
    }
    assert!(!aside.keys().any(|path| path.ends_with("removed")), "it was published: {aside:?}");
    eventually("the run of that checkout names it", || {
        let runs = hub.get("/v1/runs?limit=1000").to_string();
        match runs.contains("unpublished") && runs.contains("put aside") {
            true => Ok(()),
            false => Err(runs),
        }
    });

    // All of them start again with their configurations unchanged.
    let mut eu = eu;
    for node in [&mut hub, &mut eu, &mut us] {
        node.kill();
    }
    for node in [&mut eu, &mut hub, &mut us] {
        node.start();
    }
    fs::write(eu.dir.join("after"), "the restart").unwrap();
    wait_equal(&eu.dir, &[&hub.dir, &us.dir]);
    for node in [&hub, &eu, &us] {
        assert_eq!(epoch(node), 2);
    }
    for node in [&eu, &us] {
        node.fsck();
    }
    // What the old primary may have published to nobody, before it was told, lies there still.
    hub.git(&["fsck", "--full", "--strict", "--no-dangling"]);
}

#[test]
fn a_primary_restored_from_yesterdays_backup_is_refused_until_it_is_promoted() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.stop();
    let (backup, folder) = (world.path("backup"), world.path("folder"));
    copy(&hub.state, &backup);
    copy(&hub.dir, &folder);
    hub.start();
    for n in 2..6 {
        fs::write(hub.dir.join("a"), n.to_string()).unwrap();
        wait_equal(&hub.dir, &[&eu.dir]);
    }
    hub.kill();
    fs::remove_dir_all(&hub.state).unwrap();
    copy(&backup, &hub.state);
    copy(&folder, &hub.dir);
    hub.start();
    // Both ends say so, and nothing is changed at the region.
    assert!(state(&eu, "refused").contains("promote"));
    fs::write(hub.dir.join("b"), "not published").unwrap();
    assert!(state(&hub, "refused").contains("promote"));
    assert_eq!(fs::read(eu.dir.join("a")).unwrap(), b"5");
    assert!(!eu.dir.join("b").exists());
    done(&hub, &["promote"]);
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!((epoch(&hub), epoch(&eu)), (2, 2));
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    let output = std::process::Command::new("cp").args(["-a", "-T"]).arg(from).arg(to).output();
    assert!(output.unwrap().status.success());
}

#[test]
fn the_backup_drill() {
    let world = World::new();
    let mut hub = world.primary("hub");
    // The backup keeps history and objects, and no directory.
    let upstream = format!("upstream = \"{}\"\ncheckout = \"none\"", hub.url());
    let mut backup = world.configured("backup", "[region]\nname = \"backup\"", &upstream);
    let config = world.path("backup.toml");
    let text = fs::read_to_string(&config).unwrap();
    let text: String =
        text.lines().filter(|it| !it.starts_with("dir =")).map(|it| format!("{it}\n")).collect();
    fs::write(&config, text).unwrap();
    backup.start();
    fs::create_dir(hub.dir.join("apps")).unwrap();
    fs::write(hub.dir.join("apps/small"), "x").unwrap();
    fs::write(hub.dir.join("large.war"), vec![3; 2_000_000]).unwrap();
    done(&hub, &["sync"]);
    let said = done(&hub, &["wait", "default"]);
    assert!(said.contains("backup"), "{said}");
    assert!(contents(&backup.dir).is_empty());
    let before = contents(&hub.dir);
    // The primary's disk is lost: folder and state.
    hub.kill();
    fs::remove_dir_all(&hub.dir).unwrap();
    fs::remove_dir_all(&hub.state).unwrap();

    let hub = world.region("hub-2", &backup);
    eventually("the folder is rebuilt", || match contents(&hub.dir) == before {
        true => Ok(()),
        false => Err(format!("{:?}", contents(&hub.dir).keys())),
    });
    state(&hub, "idle");
    done(&hub, &["promote"]);
    done(&backup, &["demote", "--upstream", &hub.url()]);
    let eu = world.region("eu", &backup);
    fs::write(hub.dir.join("apps/small"), "work goes on").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!((epoch(&hub), epoch(&backup), epoch(&eu)), (2, 2, 2));
    backup.stop();
}

#[test]
fn a_fenced_primary_steps_down_by_itself_where_it_knows_the_others() {
    let world = World::new();
    let eu_listen = free_address();
    let mut hub = world.configured(
        "hub",
        "poll = \"1s\"\n[region]\nname = \"home\"",
        &format!("role = \"primary\"\nupstream = [\"http://{eu_listen}\"]"),
    );
    hub.start();
    let mut eu = world.region_unstarted("eu", &hub.url(), &[]);
    eu.listen_at(eu_listen);
    eu.start();
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["wait", "default"]);
    // Both live, and a promotion decides: no two primaries for longer than a poll.
    done(&eu, &["promote"]);
    eventually("it has stepped down", || match feed(&hub)["role"].as_str() {
        Some("region") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    fs::write(eu.dir.join("a"), "2").unwrap();
    wait_equal(&eu.dir, &[&hub.dir]);
    hub.kill();
    fs::write(hub.dir.join("mine"), "unpublished").unwrap();
    hub.start();
    fs::write(eu.dir.join("a"), "3").unwrap();
    eventually("it follows on", || match fs::read(hub.dir.join("a")) {
        Ok(bytes) if bytes == b"3" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(feed(&hub)["role"], "region");
}

#[test]
fn a_part_of_a_feed_and_another_part_later() {
    let world = World::new();
    let hub = world.primary("hub");
    for folder in ["webapps", "conf", "lib"] {
        fs::create_dir(hub.dir.join(folder)).unwrap();
        fs::write(hub.dir.join(folder).join("small"), folder).unwrap();
        fs::write(hub.dir.join(folder).join("large.war"), vec![folder.len() as u8; 1_000_000])
            .unwrap();
    }
    eventually("published", || match hub.commit().as_str() {
        "" => Err("nothing yet".to_owned()),
        _ => Ok(()),
    });
    done(&hub, &["sync"]);
    let mut eu = world.configured(
        "eu",
        "[region]\nname = \"eu\"",
        &format!("upstream = \"{}\"\npaths = [\"webapps/**\"]", hub.url()),
    );
    let dir = eu.dir.clone();
    let names = || -> Vec<String> {
        let names = contents(&dir).into_keys().map(|path| path.to_string_lossy().into_owned());
        names.collect()
    };
    let objects = |eu: &Node| {
        let found = contents(&eu.git_dir().join("lfs/objects"));
        found.keys().filter(|path| path.components().count() == 3).count()
    };
    eu.start();
    eventually("the part is there", || {
        match names() == ["webapps", "webapps/large.war", "webapps/small"] {
            true => Ok(()),
            false => Err(format!("{:?}", names())),
        }
    });
    assert_eq!(objects(&eu), 1, "only the objects of the part are fetched");
    fs::write(hub.dir.join("webapps/small"), "changed").unwrap();
    fs::write(hub.dir.join("lib/small"), "changed").unwrap();
    done(&hub, &["sync", "--wait"]);
    assert_eq!(fs::read(dir.join("webapps/small")).unwrap(), b"changed");
    refused(&eu, &["promote"], &["only a part of the feed"]);

    eu.stop();
    let config = world.path("eu.toml");
    let text = fs::read_to_string(&config).unwrap();
    let part = "paths = [\"conf\", \"webapps/small\"]";
    fs::write(&config, text.replace("paths = [\"webapps/**\"]", part)).unwrap();
    eu.start();
    eventually("the other part is there", || {
        match names() == ["conf", "conf/large.war", "conf/small", "webapps", "webapps/small"] {
            true => Ok(()),
            false => Err(format!("{:?}", names())),
        }
    });
    // What the part has no more goes, now that nothing of it lies in the directory.
    eventually("only the part's objects are kept", || match objects(&eu) {
        1 => Ok(()),
        many => Err(format!("{many} objects")),
    });
    fs::remove_dir_all(hub.dir.join("conf")).unwrap();
    eventually("its removal arrives", || match names() == ["webapps", "webapps/small"] {
        true => Ok(()),
        false => Err(format!("{:?}", names())),
    });
}

#[test]
fn the_faults_of_a_link_have_names_at_both_ends() {
    let world = World::new();
    let hub = world.primary("hub");
    // No such feed: those that there are, are listed; the upstream shows who asked.
    let mut lost = world.region_unstarted("lost", &hub.url(), &["--upstream-feed", "apps"]);
    lost.start();
    let why = state(&lost, "no-such-feed");
    assert!(why.contains("apps") && why.contains("it has: default"), "{why}");
    let turned = hub.get("/v1/nodes")["turned_away"].clone();
    assert_eq!(turned[0]["fault"]["code"], "no_such_feed", "{turned}");
    assert_eq!(turned[0]["feed"], "apps", "{turned}");

    // Not a depsync server.
    let other = Answering::with("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
    let mut astray = world.region_unstarted("astray", &other.url(), &[]);
    astray.start();
    let why = state(&astray, "not-depsync");
    assert!(why.contains("not a depsync server"), "{why}");

    // Another version of the protocol: an upstream that speaks only depsync.v0 …
    let old = Answering::with(
        "HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Protocol: depsync.v0\r\nContent-Length: 0\r\n\r\n",
    );
    let mut modern = world.region_unstarted("modern", &old.url(), &[]);
    modern.start();
    let why = state(&modern, "other-protocol");
    assert!(why.contains("protocol 0") && why.contains("follower 1"), "{why}");
    // … and a follower that does.
    let answer = curl(&[
        "-i",
        "-H",
        "Connection: Upgrade",
        "-H",
        "Upgrade: websocket",
        "-H",
        "Sec-WebSocket-Version: 13",
        "-H",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "-H",
        "Sec-WebSocket-Protocol: depsync.v0",
        &format!("{}/v1/feeds/default/follow", hub.url()),
    ]);
    let text = String::from_utf8_lossy(&answer.stdout).to_lowercase();
    assert!(text.starts_with("http/1.1 426"), "{text}");
    assert!(text.contains("sec-websocket-protocol: depsync.v1"), "{text}");
    assert!(text.contains("protocol 1") && text.contains("follower 0"), "{text}");
    let turned = hub.get("/v1/nodes")["turned_away"].clone();
    let fault = &turned[0]["fault"];
    assert_eq!((&fault["code"], &fault["follower"]), (&"protocol".into(), &0.into()), "{turned}");

    // The same is told before anything is started.
    for (url, words) in
        [(other.url(), "not a depsync server"), (old.url(), "protocol 0"), (hub.url(), "apps")]
    {
        let config = world.path("try.toml");
        let text = format!(
            "state_dir = {:?}\n[region]\nname = \"eu\"\n[[feed]]\ndir = {:?}\nupstream = \"{url}\"\nupstream_feed = \"apps\"\n",
            world.path("try.state"),
            world.folder("try"),
        );
        fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let output = crate::world::depsync(&["check", "--connect", "--config", config]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && said.contains(words), "{url}: {said}");
    }
}

#[test]
fn what_keeps_a_node_from_nats_is_named_before_it_is_started() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut server = NatsServer::new(&world);
    server.guard("depsync", "right");
    server.start();
    let address = server.url().strip_prefix("nats://").unwrap().to_owned();
    let with = |who: &str| format!("nats://{who}@{address}");
    let check = |nats: &str| {
        let config = world.path("try.toml");
        let text = format!(
            "state_dir = {:?}\n[region]\nname = \"eu\"\n[bus]\nnats = \"{nats}\"\n[[feed]]\ndir = {:?}\nupstream = \"{}\"\n",
            world.path("try.state"),
            world.folder("try"),
            hub.url(),
        );
        fs::write(&config, text).unwrap();
        let config = config.to_str().unwrap();
        let output = crate::world::depsync(&["check", "--connect", "--config", config]);
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = check(&with("depsync:right"));
    assert_eq!(code, Some(0), "{said}");
    for who in ["depsync:wrong", "somebody:right"] {
        let (code, said) = check(&with(who));
        assert!(code == Some(1) && said.contains("does not accept"), "{who}: {said}");
        assert!(!said.contains("wrong") && said.contains(&address), "{said}");
    }
    let (code, said) = check(&server.url());
    assert!(code == Some(1) && said.contains("does not accept"), "{said}");
    // Something else answers there.
    let (code, said) = check(&hub.url().replace("http", "nats"));
    assert!(code == Some(1) && said.contains("away"), "{said}");
    let (code, said) = check(&hub.url());
    assert!(code != Some(0) && said.contains("nats://"), "{said}");
    server.kill();
    let (code, said) = check(&with("depsync:right"));
    assert!(code == Some(1) && said.contains("is away"), "{said}");
}

/// A server that gives everybody the same answer.
struct Answering {
    address: std::net::SocketAddr,
}

impl Answering {
    fn with(answer: &'static str) -> Self {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        Answering { address }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

#[test]
fn a_standby_takes_over_when_the_regions_node_is_silent() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut first = world.region("eu", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    wait_equal(&hub.dir, &[&first.dir]);
    let mut second = world.region_named("eu-2", "eu", &hub);
    second.start();
    wait_equal(&hub.dir, &[&second.dir]);
    let standing = |label: &str| listed(&hub, label)["feeds"][0]["standing"].to_string();
    assert_eq!((standing("eu"), standing("eu-2")), ("\"serving\"".into(), "\"standby\"".into()));
    assert_eq!(feed(&second)["standing"], "standby");
    first.kill();
    // Meanwhile nobody is led anywhere, and the primary says that a region is lost.
    eventually("it takes over", || match standing("eu-2").as_str() {
        "\"serving\"" => Ok(()),
        other => Err(other.to_owned()),
    });
    let health = curl(&[&format!("{}/healthz", hub.url())]);
    let text = String::from_utf8_lossy(&health.stdout).into_owned();
    assert!(hub.metric("depsync_feed_regions_stale") >= 1.0 && text.contains("stale"), "{text}");
}
