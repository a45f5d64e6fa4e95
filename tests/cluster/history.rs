//! Older states: brought back, kept at, taken out of use, looked at.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use crate::{
    hooks::{hooks, primary},
    oracle::{compare, contents, wait_equal},
    world::{Node, World, eventually},
};

/// Publishes the next version and waits until it is one commit.
fn version(hub: &Node, number: u32) -> String {
    let before = hub.commit();
    let at = |name: String| hub.dir.join(name);
    assert!(hub.command(&["hold"]).status.success());
    fs::write(at("version".into()), format!("{number}")).unwrap();
    fs::create_dir_all(at(format!("only-{number}/sub"))).unwrap();
    fs::write(at(format!("only-{number}/sub/file")), "x".repeat(number as usize * 100)).unwrap();
    if number > 1 {
        fs::remove_dir_all(at(format!("only-{}", number - 1))).unwrap();
    }
    let mode = if number.is_multiple_of(2) { 0o600 } else { 0o755 };
    fs::set_permissions(at("version".into()), PermissionsExt::from_mode(mode)).unwrap();
    if number.is_multiple_of(3) {
        fs::write(at("large.bin".into()), vec![number as u8; 700_000]).unwrap();
    }
    assert!(hub.command(&["release"]).status.success());
    eventually("the version is published", || {
        let feed = hub.get("/v1/feeds/default");
        let commit = feed["commit"].as_str().unwrap_or_default().to_owned();
        if commit == before || feed["state"] != "idle" { Err(feed.to_string()) } else { Ok(commit) }
    })
}

fn tree(node: &Node, commit: &str) -> String {
    node.git(&["rev-parse", &format!("{commit}^{{tree}}")])
}

fn at_head(hub: &Node, mirror: &Node) {
    eventually("the mirror is at the head", || {
        let have = mirror.get("/v1/feeds/default")["have"]["commit"].clone();
        if have == hub.commit().as_str() { Ok(()) } else { Err(have.to_string()) }
    });
    compare(&hub.dir, &mirror.dir).unwrap();
}

fn count(log: &Path) -> usize {
    fs::read_to_string(log).unwrap_or_default().lines().count()
}

#[test]
fn ten_versions_back_and_forward_again_with_every_hook_once() {
    let world = World::new();
    let log = |name: &str| world.path(name);
    let script = |name: &str| format!("echo $DEPSYNC_COMMIT >>{:?}", log(name));
    let dir = hooks(&world, "hub.hooks", &[("post-commit", &script("committed"))]);
    let hub = primary(&world, &dir);
    let (before, after) = (script("asked"), script("done"));
    let dir = hooks(&world, "eu.hooks", &[("pre-checkout", &before), ("post-checkout", &after)]);
    let eu = crate::hooks::region(&world, &hub, &dir);
    let us = world.region("us", &hub);
    let versions: Vec<String> = (1..=11).map(|number| version(&hub, number)).collect();
    at_head(&hub, &eu);
    let newest = contents(&hub.dir);
    fs::write(hub.dir.join("never-committed.part"), "stays").unwrap();
    let settled = |name: &str| {
        eventually("the hooks have caught up", || {
            let text = fs::read_to_string(log(name)).unwrap_or_default();
            let last = text.lines().last().unwrap_or_default().to_owned();
            if last == hub.commit() { Ok(()) } else { Err(text) }
        });
        count(&log(name))
    };
    for (target, version) in [(&versions[0], 1), (&versions[10], 11)] {
        let counts = ["committed", "asked", "done"].map(settled);
        let output = hub.command(&["rollback", target]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read_to_string(hub.dir.join("version")).unwrap(), version.to_string());
        assert_eq!(tree(&hub, "main"), tree(&hub, target), "the tree is the target's");
        let runs = hub.get("/v1/runs?limit=100")["runs"].clone();
        let run = runs.as_array().unwrap().iter().find(|run| run["kind"] == "rollback").unwrap();
        assert!(run["names"].to_string().contains("\"version\""), "{run}");
        fs::remove_file(hub.dir.join("never-committed.part")).unwrap();
        for mirror in [&eu, &us] {
            at_head(&hub, mirror);
            mirror.fsck();
        }
        fs::write(hub.dir.join("never-committed.part"), "stays").unwrap();
        let now = ["committed", "asked", "done"].map(settled);
        assert_eq!(now, counts.map(|count| count + 1), "every hook once");
    }
    fs::remove_file(hub.dir.join("never-committed.part")).unwrap();
    assert_eq!(contents(&hub.dir), newest, "back where it was, to the nanosecond");
    hub.fsck();
}

/// Case H9: what lies in the folder beside the rolled back state waits.
#[test]
fn what_changes_after_a_rollback_waits_for_release_and_nothing_is_lost() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let first = version(&hub, 1);
    version(&hub, 2);
    at_head(&hub, &eu);
    // Owned and changed, but held back, and never committed.
    assert!(hub.command(&["hold"]).status.success());
    fs::write(hub.dir.join("version"), "not published").unwrap();
    fs::write(hub.dir.join("newer.txt"), "lies there").unwrap();
    assert!(hub.command(&["rollback", &first]).status.success());
    assert_eq!(fs::read(hub.dir.join("version")).unwrap(), b"1");
    let aside = contents(&hub.state.join("feeds/default/aside"));
    let kept = aside.keys().find(|path| path.ends_with("version")).expect("it went aside");
    let kept = fs::read(hub.state.join("feeds/default/aside").join(kept)).unwrap();
    assert_eq!(kept, b"not published");

    let commit = hub.commit();
    fs::write(hub.dir.join("later.txt"), "after it").unwrap();
    let frozen = |hub: &Node| {
        let feed = hub.get("/v1/feeds/default");
        let held = feed["held"].to_string();
        let detail = feed["detail"].as_str().unwrap_or_default();
        let listed = held.contains("later.txt") && held.contains("newer.txt");
        if listed && detail.contains("frozen") { Ok(()) } else { Err(feed.to_string()) }
    };
    eventually("both are listed", || frozen(&hub));
    hub.kill();
    hub.start();
    eventually("a restart keeps it frozen", || frozen(&hub));
    assert_eq!(hub.commit(), commit);
    assert!(hub.command(&["release"]).status.success());
    eventually("all is published", || {
        fs::read(eu.dir.join("later.txt")).map_err(|error| error.to_string())
    });
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(eu.dir.join("newer.txt").exists());
}

#[test]
fn a_rollback_killed_at_any_step_is_finished_by_the_next_start() {
    let rounds = if std::env::var_os("DEPSYNC_FULL").is_some() { 60 } else { 8 };
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let versions: Vec<String> = (1..=4).map(|number| version(&hub, number)).collect();
    at_head(&hub, &eu);
    let mut killed = 0;
    for round in 0..rounds {
        let target = &versions[round % 3];
        let (step, first) =
            [("fsync", 4), ("rename", 2), ("renameat2", 1), ("unlinkat", 1)][round % 4];
        let when = first + round as u64 / 4;
        hub.stop();
        crate::crash::kill_at(&mut hub, step, when);
        hub.start();
        let output = hub.command(&["rollback", target]);
        let died = !output.status.success();
        killed += u32::from(died);
        hub.kill();
        hub.wrap.clear();
        hub.start();
        let marked = hub.state.join("decisions.json");
        let story = format!("round {round}: killed at {step} number {when}");
        eventually(&story, || {
            let feed = hub.get("/v1/feeds/default");
            let text = fs::read_to_string(&marked).unwrap();
            let busy = text.contains("\"rollback\"") || feed["state"] == "syncing";
            if busy { Err(feed.to_string()) } else { Ok(()) }
        });
        // Killed before the mark was durable, there was no rollback; then there is one now.
        if tree(&hub, "main") != tree(&hub, target) {
            assert!(died, "{story}: done and not there");
            assert!(hub.command(&["rollback", target]).status.success());
        }
        assert_eq!(tree(&hub, "main"), tree(&hub, target), "{story}");
        at_head(&hub, &eu);
        let version = fs::read_to_string(hub.dir.join("version")).unwrap();
        assert_eq!(version, (round % 3 + 1).to_string(), "{story}");
        hub.fsck();
    }
    assert!(killed >= rounds as u32 / 4, "only {killed} of {rounds} met their step");
}

#[test]
fn pinned_nodes_stay_and_revoked_commits_are_given_to_nobody() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    let us = world.region("us", &hub);
    let first = version(&hub, 1);
    let second = version(&hub, 2);
    for mirror in [&eu, &us] {
        at_head(&hub, mirror);
    }
    let is_at = |node: &Node, commit: &str| {
        let feed = node.get("/v1/feeds/default");
        if feed["have"]["commit"] == commit { Ok(()) } else { Err(feed.to_string()) }
    };
    assert!(hub.command(&["pin", &first, "--region", "eu"]).status.success());
    eventually("eu goes back", || is_at(&eu, &first));
    assert_eq!(fs::read(eu.dir.join("version")).unwrap(), b"1");
    let third = version(&hub, 3);
    eventually("us goes on", || is_at(&us, &third));
    is_at(&eu, &first).unwrap();
    // Both forget what they have in memory, and eu hears nothing from its upstream.
    hub.kill();
    eu.kill();
    fs::remove_file(eu.state.join("ledger.db")).unwrap();
    eu.start();
    eventually("still pinned", || {
        let feed = eu.get("/v1/feeds/default");
        let said = feed["have"]["commit"] == first.as_str() && feed["state"] != "syncing";
        if said { Ok(()) } else { Err(feed.to_string()) }
    });
    hub.start();
    assert!(hub.command(&["unpin", "--region", "eu"]).status.success());
    eventually("eu is released", || is_at(&eu, &third));

    assert!(hub.command(&["revoke", &second]).status.success());
    for node in [&hub, &eu] {
        let url = format!("{}/v1/feeds/default/at/{second}/version", node.url());
        eventually("410", || {
            let output = crate::world::curl(&["-o", "/dev/null", "-w", "%{http_code}", &url]);
            match String::from_utf8_lossy(&output.stdout).as_ref() {
                "410" => Ok(()),
                other => Err(other.to_owned()),
            }
        });
    }
    for command in ["rollback", "pin"] {
        let output = hub.command(&[command, &second]);
        assert!(!output.status.success(), "{command} of a revoked commit");
    }
    let fourth = version(&hub, 4);
    at_head(&hub, &us); // what is revoked before it is there is checked out nowhere
    assert!(hub.command(&["revoke", &fourth]).status.success());
    let mut late = world.region_unstarted("late", &hub.url(), &[]);
    late.start();
    eventually("it is told why", || {
        let feed = late.get("/v1/feeds/default");
        let said = feed["detail"].as_str().unwrap_or_default().contains("revoked");
        if said { Ok(()) } else { Err(feed.to_string()) }
    });
    assert!(!late.dir.join("version").exists(), "a revoked commit was checked out");
    hub.stop();
}

#[test]
fn every_version_can_be_looked_at() {
    let world = World::new();
    let hub = world.primary("hub");
    let first = version(&hub, 1);
    let second = version(&hub, 2);
    let text = |arguments: &[&str]| {
        let output = hub.command(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let log = text(&["log"]);
    assert!(log.find(&second).unwrap() < log.find(&first).unwrap(), "{log}");
    let diff = text(&["diff", &format!("{first}..{second}")]);
    let by_git =
        hub.git(&["diff", "--no-renames", "--name-status", &first, &second, "--", ":!.depsync"]);
    for line in by_git.lines() {
        let (status, path) = line.split_once('\t').unwrap();
        assert!(diff.contains(&format!("{status} {path}")), "{line} is not in {diff}");
    }
    assert!(text(&["ls", "--at", &first]).contains("only-1/"));
    assert!(!text(&["ls"]).contains("only-1/"));
    let out = world.path("got");
    text(&["get", "default/version", "--at", &first, "-o", out.to_str().unwrap()]);
    assert_eq!(fs::read(out).unwrap(), b"1");
}
