//! Bits that flip in what nodes say to each other, and connections that come twice: nothing of it is
//! published, nothing stays wrong, and what was damaged is known as that.

use std::fs;

use crate::{
    oracle::{contents, wait_equal},
    proxy::Proxy,
    transfer::is_full_run,
    world::{Node, World, curl, depsync, done, eventually, noise},
};

/// Waits until a mirror shows what the primary has published, and says that all is well.
fn is_well(hub: &Node, mirror: &Node, story: &str) {
    eventually(story, || {
        crate::oracle::compare(&hub.dir, &mirror.dir)?;
        let (want, have) =
            (hub.try_get("/v1/feeds/default")?, mirror.try_get("/v1/feeds/default")?);
        match have["state"] == "idle" && have["have"]["commit"] == want["commit"] {
            true => Ok(()),
            false => Err(format!("{want} / {have}")),
        }
    });
}

/// Every part of an announcement, and of the heartbeats between them.
#[test]
fn bits_that_flip_in_what_is_announced_are_known_and_mended() {
    let world = World::new();
    let hub = world.primary("hub");
    let link = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    fs::write(hub.dir.join("first"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    for (number, (part, bits)) in parts().into_iter().enumerate() {
        let story = format!("bits {bits} behind {part:?}");
        link.flip_behind(part, bits);
        fs::write(hub.dir.join("first"), format!("{number}, {story}")).unwrap();
        eventually(&story, || if link.is_to_flip() { Err(hub.commit()) } else { Ok(()) });
        is_well(&hub, &eu, &story);
    }
    // Anywhere, whatever that is.
    for after in anywhere() {
        let story = format!("a bit after {after} bytes");
        link.flip(after);
        fs::write(hub.dir.join(format!("after-{after}")), noise(after, 8_000)).unwrap();
        eventually(&story, || if link.is_to_flip() { Err(hub.commit()) } else { Ok(()) });
        is_well(&hub, &eu, &story);
    }
    let runs = eu.get("/v1/runs?limit=1000");
    let failed = |run: &&serde_json::Value| run["kind"] == "fetch" && run["outcome"] == "failed";
    let failed = runs["runs"].as_array().unwrap().iter().filter(failed);
    let damaged = failed.filter(|run| run["detail"].to_string().contains("damaged")).count();
    assert!(damaged >= 2, "what came damaged is in the history: {runs}");
    eu.fsck();
    let aside = contents(&eu.state.join("feeds/default/aside"));
    assert!(aside.is_empty(), "{aside:?}");
}

/// What stands before the bits; those of a digit give another digit, or none.
fn parts() -> Vec<(&'static str, u8)> {
    let few = [("\"commit\":\"", 1), ("\"epoch\":", 1), ("\"size\":", 1), ("PACK\0\0\0", 1)];
    let more = [
        ("{\"feed\":\"", 1),
        // A higher epoch than there is: it is asked for until the next heartbeats tell otherwise.
        ("\"epoch\":", 8),
        ("\"seq\":", 8),
        ("\"seq\":", 1),
        ("\"parent\":\"", 4),
        ("PACK\0\0\0\u{2}", 1),
        ("{\"type\":\"", 1),
        ("{\"type", 2),
    ];
    if is_full_run() { [&few[..], &more].concat() } else { few.to_vec() }
}

fn anywhere() -> Vec<u64> {
    if is_full_run() { vec![0, 1, 3, 9, 60, 170, 290, 430, 5_000] } else { vec![3, 5_000] }
}

/// As a proxy does that tries again what it takes for lost.
#[test]
fn connections_that_come_twice_are_as_good_as_one() {
    let world = World::new();
    let hub = world.primary("hub");
    let link = Proxy::to(&hub);
    link.double(true);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    fs::create_dir(hub.dir.join("app")).unwrap();
    for number in 0..20 {
        fs::write(hub.dir.join("app/conf"), format!("version {number}")).unwrap();
        wait_equal(&hub.dir, &[&eu.dir]);
    }
    let large = "a large one\n".repeat(200_000);
    let before = hub.get("/v1/feeds/default")["seq"].as_u64().unwrap();
    let source = world.path("large");
    fs::write(&source, &large).unwrap();
    let [source, state] = [&source, &hub.state].map(|path| path.to_str().unwrap());
    let words = ["put", source, "default/app/large.bin", "--url", &link.url(), "--state", state];
    let put = depsync(&words);
    assert!(put.status.success(), "{put:?}");
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(fs::read_to_string(eu.dir.join("app/large.bin")).unwrap(), large);
    let seq = hub.get("/v1/feeds/default")["seq"].as_u64().unwrap();
    assert_eq!(seq, before + 1, "one upload is one version");
    let url = format!("{}/v1/feeds/default/files/app/large.bin", link.url());
    assert!(curl(&["-f", &url]).stdout == large.as_bytes());
    done(&hub, &["wait", "default"]);
    let nodes = hub.get("/v1/nodes");
    assert_eq!(nodes["nodes"].as_array().unwrap().len(), 1, "{nodes}");
    let lost = eu.log_text().matches("the connection is lost").count();
    assert!(lost <= 1, "it flaps: {}", eu.log_text());
    for node in [&hub, &eu] {
        node.fsck();
    }
}
