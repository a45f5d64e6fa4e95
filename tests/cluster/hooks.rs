//! The operator's programs: run when they should be, as often as they should be, and heard.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{
    oracle::{compare, wait_equal},
    world::{Node, World, eventually},
};

/// A folder of hooks; each script begins with its interpreter's line already.
pub fn hooks(world: &World, name: &str, scripts: &[(&str, &str)]) -> PathBuf {
    let dir = world.folder(name);
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).unwrap();
    for (hook, script) in scripts {
        put(&dir, hook, script);
    }
    dir
}

fn put(dir: &Path, hook: &str, script: &str) {
    // By rename: a script that is being written cannot be executed.
    let new = dir.join(format!("{hook}.new"));
    fs::write(&new, format!("#!/bin/bash\n{script}\n")).unwrap();
    fs::set_permissions(&new, PermissionsExt::from_mode(0o755)).unwrap();
    fs::rename(&new, dir.join(hook)).unwrap();
}

/// A primary with hooks, started.
pub fn primary(world: &World, hooks: &Path) -> Node {
    let mut hub = world.configured("hub", "", &format!("hooks = {hooks:?}"));
    hub.start();
    hub
}

/// A region with hooks, started.
pub fn region(world: &World, upstream: &Node, hooks: &Path) -> Node {
    let feed = format!("upstream = {:?}\nhooks = {hooks:?}", upstream.url());
    let mut eu = world.configured("eu", "[region]\nname = \"eu\"", &feed);
    eu.start();
    eu
}

fn lines(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn wait_commit(node: &Node, before: &str) -> String {
    eventually("a new commit", || match node.commit() {
        commit if commit == before => Err(node.get("/v1/feeds/default").to_string()),
        commit => Ok(commit),
    })
}

fn hook_runs(node: &Node) -> Vec<Value> {
    let runs = node.get("/v1/runs?limit=1000");
    let runs = runs["runs"].as_array().unwrap();
    runs.iter().filter(|run| run["kind"] == "hook").cloned().collect()
}

#[test]
fn a_veto_keeps_what_it_names_and_publishes_the_rest() {
    let world = World::new();
    let log = world.path("asked");
    let script = format!(
        "echo asked >>{log:?}\n\
         while IFS= read -r -d '' status && IFS= read -r -d '' path; do\n\
           [[ $path == bad* && -e $path ]] && grep -q broken \"$path\" && printf '%s\\0' \"$path\" && no=1\n\
         done <\"$DEPSYNC_CHANGES\"\n[ -z \"$no\" ]"
    );
    let dir = hooks(&world, "hooks", &[("pre-commit", &script)]);
    let hub = primary(&world, &dir);
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("bad.txt"), "broken").unwrap();
    fs::write(hub.dir.join("good.txt"), "fine").unwrap();
    eventually("the good one arrives", || {
        fs::read(eu.dir.join("good.txt")).map_err(|error| error.to_string())
    });
    eventually("the bad one is held", || {
        let feed = hub.get("/v1/feeds/default");
        let held = feed["held"][0]["path"] == "bad.txt" && feed["state"] == "held";
        if held { Ok(()) } else { Err(feed.to_string()) }
    });
    let asked = lines(&log).len();
    assert!(!eu.dir.join("bad.txt").exists());
    assert!(hub.command(&["sync"]).status.success(), "what is held does not hold up a sync");
    assert_eq!(lines(&log).len(), asked, "asked again about the same content");
    fs::write(hub.dir.join("bad.txt"), "mended").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(hub.get("/v1/feeds/default")["state"], "idle");
    let refused = hook_runs(&hub).iter().filter(|run| run["outcome"] == "refused").count();
    assert!(refused >= 1, "the veto is in the history");
}

#[test]
fn a_veto_without_names_holds_the_whole_until_it_changes() {
    let world = World::new();
    let log = world.path("asked");
    let script =
        format!("echo asked >>{log:?}\n! [ -e no ] || {{ echo 'not on a Friday'; exit 1; }}");
    let hub = primary(&world, &hooks(&world, "hooks", &[("pre-commit", &script)]));
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("first"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = hub.commit();
    fs::write(hub.dir.join("no"), "").unwrap();
    fs::write(hub.dir.join("second"), "2").unwrap();
    eventually("refused", || {
        let feed = hub.get("/v1/feeds/default");
        let said = feed["detail"].as_str().unwrap_or_default().contains("not on a Friday");
        if said && feed["state"] == "held" && feed["held_count"] == 2 {
            Ok(())
        } else {
            Err(feed.to_string())
        }
    });
    assert!(hub.command(&["sync"]).status.success());
    assert_eq!(hub.commit(), before, "a part was published");
    fs::remove_file(hub.dir.join("no")).unwrap();
    wait_commit(&hub, &before);
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(lines(&log).len() <= 5, "{:?}", lines(&log));
}

#[test]
fn a_pre_checkout_veto_keeps_the_old_release_until_the_head_changes() {
    let world = World::new();
    let hub = world.primary("hub");
    let log = world.path("asked");
    let script = format!(
        "echo \"$DEPSYNC_COMMIT\" >>{log:?}\n\
         tr '\\0' '\\n' <\"$DEPSYNC_CHANGES\" | grep -q poison && {{ echo too bad; exit 3; }}; exit 0"
    );
    let mut eu = region(&world, &hub, &hooks(&world, "hooks", &[("pre-checkout", &script)]));
    fs::write(hub.dir.join("fine"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = hub.commit();
    fs::write(hub.dir.join("poison"), "x").unwrap();
    let bad = wait_commit(&hub, &before);
    let vetoed = |eu: &Node| {
        let feed = eu.get("/v1/feeds/default");
        let said = feed["detail"].as_str().unwrap_or_default().contains("too bad");
        if feed["state"] == "held" && said { Ok(()) } else { Err(feed.to_string()) }
    };
    eventually("vetoed", || vetoed(&eu));
    eu.kill();
    eu.start();
    eventually("it stands after a restart", || vetoed(&eu));
    assert!(!eu.dir.join("poison").exists());
    assert_eq!(lines(&log).iter().filter(|commit| **commit == bad).count(), 1, "an endless loop");
    eventually("the upstream knows", || {
        let nodes = hub.get("/v1/nodes").to_string();
        if nodes.contains("too bad") { Ok(()) } else { Err(nodes) }
    });
    fs::remove_file(hub.dir.join("poison")).unwrap();
    eventually("the next head is checked out", || match eu.get("/v1/feeds/default") {
        feed if feed["have"]["commit"] == feed["want"]["commit"] => Ok(()),
        feed => Err(feed.to_string()),
    });
    compare(&hub.dir, &eu.dir).unwrap();
}

#[test]
fn a_post_hook_is_retried_and_a_burst_reaches_it_at_most_once_for_each_commit() {
    let world = World::new();
    let (log, tries) = (world.path("ran"), world.path("tries"));
    let script = format!(
        "echo try >>{tries:?}; [ \"$(wc -l <{tries:?})\" -gt 2 ] || exit 75\n\
         echo \"$DEPSYNC_COMMIT $DEPSYNC_PREVIOUS\" >>{log:?}"
    );
    let hub = primary(&world, &hooks(&world, "hub.hooks", &[("post-commit", &script)]));
    let arrived = world.path("arrived");
    let script = format!(
        "tr '\\0' '\\n' <\"$DEPSYNC_CHANGES\" >>{arrived:?}; echo $DEPSYNC_REGION $DEPSYNC_COMMIT >>{arrived:?}.commits"
    );
    let mut eu = region(&world, &hub, &hooks(&world, "eu.hooks", &[("post-checkout", &script)]));
    for number in 0..50 {
        let before = hub.commit();
        fs::write(hub.dir.join(format!("file-{number}")), "x").unwrap();
        if number % 5 == 0 {
            wait_commit(&hub, &before);
        }
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    let newest = hub.commit();
    eventually("the newest has had its run", || match lines(&log).last() {
        Some(last) if last.starts_with(&newest) => Ok(()),
        _ => Err(format!("{:?}", lines(&log))),
    });
    let ran = lines(&log);
    let mut commits: Vec<&str> = ran.iter().map(|line| line.split(' ').next().unwrap()).collect();
    commits.sort_unstable();
    commits.dedup();
    assert_eq!(commits.len(), ran.len(), "a commit had two runs: {ran:?}");
    for pair in ran.windows(2) {
        let (before, after) =
            (pair[0].split(' ').next().unwrap(), pair[1].split(' ').nth(1).unwrap());
        assert_eq!(before, after, "the changes are counted from the run before");
    }
    let commits = arrived.with_extension("commits");
    eventually("the region's hook is at the newest", || match lines(&commits).last() {
        Some(last) if *last == format!("eu {newest}") => Ok(()),
        last => Err(format!("{last:?}")),
    });
    let told = lines(&arrived);
    for number in 0..50 {
        assert!(told.contains(&format!("file-{number}")), "file-{number} never reached the hook");
    }
    let before = lines(&commits);
    eu.stop();
    eu.start();
    eventually("it is up", || match eu.get("/v1/feeds/default") {
        feed if feed["state"] == "idle" => Ok(()),
        feed => Err(feed.to_string()),
    });
    assert_eq!(lines(&commits), before, "a restart ran it again");
}

#[test]
fn a_hook_that_forks_and_hangs_is_ended_with_all_it_started_when_the_daemon_stops() {
    let world = World::new();
    let pids = world.path("pids");
    let script = format!("sleep 600 & echo $! >>{pids:?}; echo $$ >>{pids:?}; sleep 600");
    let dir = hooks(&world, "hooks", &[("pre-commit", &script)]);
    let mut hub = primary(&world, &dir);
    fs::write(hub.dir.join("file"), "x").unwrap();
    eventually("the hook runs", || match lines(&pids) {
        pids if pids.len() == 2 => Ok(()),
        pids => Err(format!("{pids:?}")),
    });
    let feed = hub.get("/v1/feeds/default");
    assert_eq!(feed["state"], "checking", "{feed}");
    hub.stop();
    for pid in lines(&pids) {
        eventually("its processes are gone", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            match stat.as_deref().map(|stat| stat.contains(") Z ")) {
                Ok(false) => Err(format!("{pid} lives")),
                _ => Ok(()),
            }
        });
    }
    fs::remove_file(dir.join("pre-commit")).unwrap();
    hub.start();
    wait_commit(&hub, "");
}

#[test]
fn a_hook_that_others_can_write_blocks_until_it_is_mended() {
    let world = World::new();
    let dir = hooks(&world, "hooks", &[("pre-commit", "exit 0")]);
    let mode = |mode| {
        fs::set_permissions(dir.join("pre-commit"), PermissionsExt::from_mode(mode)).unwrap();
    };
    mode(0o777);
    let hub = primary(&world, &dir);
    fs::write(hub.dir.join("file"), "x").unwrap();
    eventually("it says what to do", || {
        let feed = hub.get("/v1/feeds/default");
        let said = feed["detail"].as_str().unwrap_or_default().contains("chmod go-w");
        if said && feed["state"] == "failing" { Ok(()) } else { Err(feed.to_string()) }
    });
    assert_eq!(hub.commit(), "");
    mode(0o644);
    eventually("not executable is another reason", || {
        let feed = hub.get("/v1/feeds/default");
        let said = feed["detail"].as_str().unwrap_or_default().contains("not executable");
        if said { Ok(()) } else { Err(feed.to_string()) }
    });
    mode(0o755);
    wait_commit(&hub, "");
}

#[test]
fn what_is_held_and_what_fails_is_told_once() {
    let world = World::new();
    let told = world.path("told");
    let script = format!("echo \"$0: $DEPSYNC_REASON\" >>{told:?}");
    let dir = hooks(&world, "hooks", &[("on-held", &script), ("on-failure", &script)]);
    let hub = primary(&world, &dir);
    let mut eu = world.region("eu", &hub);
    fs::write(hub.dir.join("half.zip"), b"PK\x03\x04 and no end").unwrap();
    let count = |what: &str| lines(&told).iter().filter(|line| line.contains(what)).count();
    eventually("on-held", || match count("on-held") {
        1 => Ok(()),
        _ => Err(format!("{:?}", lines(&told))),
    });
    assert_eq!(count("half.zip"), 1);
    hub.command(&["sync"]);
    hub.command(&["sync"]);
    // An unreadable rule file stops publishing: a failure with a name.
    eu.kill();
    eventually("the silent node", || match count("the node eu is not heard") {
        1 => Ok(()),
        _ => Err(format!("{:?}", lines(&told))),
    });
    assert_eq!((count("on-held"), count("on-failure")), (1, 1), "{:?}", lines(&told));
}

/// The samples of this repository, called by the daemon.
#[test]
fn the_samples_work_when_the_daemon_calls_them() {
    let world = World::new();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks");
    let dir = hooks(&world, "hooks", &[]);
    let copy = |sample: &str, hook: &str| {
        fs::copy(samples.join(sample), dir.join(hook)).unwrap();
        fs::set_permissions(dir.join(hook), PermissionsExt::from_mode(0o755)).unwrap();
    };
    copy("verify-archives", "pre-commit");
    let hub = primary(&world, &dir);
    let eu = world.region("eu", &hub);
    let staging = world.folder("staging");
    fs::write(staging.join("page.html"), "<p>".repeat(4000)).unwrap();
    let made = std::process::Command::new("python3")
        .args(["-m", "zipfile", "-c", "app.war", "page.html"])
        .current_dir(&staging)
        .status()
        .unwrap();
    assert!(made.success());
    let good = fs::read(staging.join("app.war")).unwrap();
    let mut bad = good.clone();
    bad[60] ^= 0xff;
    fs::write(hub.dir.join("good.war"), &good).unwrap();
    fs::write(hub.dir.join("bad.war"), &bad).unwrap();
    eventually("the good archive arrives", || {
        fs::read(eu.dir.join("good.war")).map_err(|error| error.to_string())
    });
    eventually("the damaged one is held by name", || {
        let feed = hub.get("/v1/feeds/default");
        if feed["held"][0]["path"] == "bad.war" { Ok(()) } else { Err(feed.to_string()) }
    });
    assert!(!eu.dir.join("bad.war").exists());
}

/// Which hooks run is what the node is to the feed now, not what it was when it started.
#[test]
fn after_a_promotion_the_hooks_of_a_primary_run_and_none_for_what_was_there() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let (done, committed) = (world.path("done"), world.path("committed"));
    let script = |log: &Path| {
        format!("echo \"$DEPSYNC_REGION:$DEPSYNC_COMMIT:$DEPSYNC_PREVIOUS\" >>{log:?}")
    };
    let dir = hooks(
        &world,
        "hooks",
        &[("post-checkout", &script(&done)), ("post-commit", &script(&committed))],
    );
    let mut eu = region(&world, &hub, &dir);
    fs::write(hub.dir.join("file"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let first = hub.commit();
    eventually("put in place", || match lines(&done) {
        ran if ran == [format!("eu:{first}:")] => Ok(()),
        ran => Err(format!("{ran:?}")),
    });
    eventually("it may be promoted", || match eu.get("/v1/feeds/default") {
        feed if feed["state"] == "idle" => Ok(()),
        feed => Err(feed.to_string()),
    });
    hub.kill();
    let promoted = eu.command(&["promote"]);
    assert!(promoted.status.success(), "{promoted:?}");
    let ran = |expected: String| {
        eventually("published", || match lines(&committed) {
            ran if ran.last() == Some(&expected) => Ok(()),
            ran => Err(format!("{ran:?}, not {expected:?}")),
        });
    };
    // The promotion is a commit of its own: the first of the new epoch.
    let own = wait_commit(&eu, &first);
    ran(format!(":{own}:{first}"));
    fs::write(eu.dir.join("file"), "2").unwrap();
    let second = wait_commit(&eu, &own);
    ran(format!(":{second}:{own}"));
    eu.stop();
    eu.start();
    fs::write(eu.dir.join("file"), "3").unwrap();
    let third = wait_commit(&eu, &second);
    ran(format!(":{third}:{second}"));
    assert_eq!(lines(&committed).len(), 3, "once for each commit");
    assert_eq!(lines(&done).len(), 1, "nothing was put in place since");
}
