//! Nothing wiped: mass deletions wait, a directory that is gone or another one publishes nothing, and
//! what cannot be read keeps its last state.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    oracle::{compare, contents, wait_equal},
    origin::{may, pace, patience, run, scale, tree},
    world::{Node, World, curl, eventually, eventually_within},
};

/// Removes files of [`tree`].
fn remove(dir: &Path, files: impl Iterator<Item = usize>) {
    for number in files {
        let path = format!("d{}/e{}/f{number}", number / 100, number / 10 % 10);
        fs::remove_file(dir.join(path)).unwrap();
    }
}

/// Waits until so many deletions are held; returns the list's id.
fn held_deletions(hub: &Node, files: u64) -> String {
    hub.feed_is(&format!("{files} deletions are held"), |feed| {
        let held = &feed["held_deletions"];
        (held["files"] == files).then(|| held["id"].as_str().unwrap().to_owned())
    })
}

fn health(hub: &Node, which: &str) -> String {
    String::from_utf8(curl(&[&format!("{}/{which}", hub.url())]).stdout).unwrap()
}

#[test]
fn c1_a_directory_that_is_moved_away_or_replaced_publishes_nothing_and_comes_back() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    tree(&hub.dir, 200);
    wait_equal(&hub.dir, &[&eu.dir]);
    let (before, mirrored) = (hub.commit(), contents(&eu.dir));
    let away = world.path("away");

    fs::rename(&hub.dir, &away).unwrap();
    hub.feed_is("it is gone", |feed| (feed["state"] == "stopped").then_some(()));
    assert!(health(&hub, "readyz").contains("stopped"));
    fs::create_dir(&hub.dir).unwrap();
    fs::write(hub.dir.join("stranger"), "x").unwrap();
    let detail = hub.feed_is("another one is said", |feed| {
        let detail = feed["detail"].as_str()?;
        detail.contains("approve --root").then(|| detail.to_owned())
    });
    assert!(detail.contains(hub.dir.to_str().unwrap()), "{detail}");
    let refused = hub.command(&["sync"]);
    assert!(!refused.status.success(), "nothing can be published now");
    assert_eq!((hub.commit(), contents(&eu.dir)), (before, mirrored));

    fs::remove_dir_all(&hub.dir).unwrap();
    fs::write(away.join("d0/while-away"), "y").unwrap();
    fs::rename(&away, &hub.dir).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(health(&hub, "readyz").trim(), r#"{"status":"ready"}"#);
    fs::write(hub.dir.join("d0/later"), "by its event").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);

    // A copy at the same path, as after a restore, is the same directory; all use the new one.
    run("cp", &["-a", hub.dir.to_str().unwrap(), away.to_str().unwrap()]);
    fs::rename(&hub.dir, world.path("old")).unwrap();
    fs::rename(&away, &hub.dir).unwrap();
    let file = world.path("file");
    fs::write(&file, "uploaded").unwrap();
    eventually("an upload is taken", || {
        let output = hub.command(&["put", file.to_str().unwrap(), "default/d0/uploaded"]);
        let landed = hub.dir.join("d0/uploaded").exists();
        if output.status.success() && landed { Ok(()) } else { Err(format!("{output:?}")) }
    });
    wait_equal(&hub.dir, &[&eu.dir]);
}

#[test]
fn c1_an_unmounted_directory_publishes_nothing_until_it_is_mounted_again() {
    let world = World::new();
    let (disk, root) = (world.folder("disk"), world.folder("hub"));
    let (disk, root) = (disk.to_str().unwrap(), root.to_str().unwrap());
    if !may("mount", "mount", &["--bind", disk, root]) {
        return;
    }
    let hub = world.primary("hub");
    tree(&hub.dir, 100);
    hub.wait_published();
    let before = hub.commit();
    run("umount", &["-l", root]);
    hub.feed_is("it is gone", |feed| (feed["state"] == "stopped").then_some(()));
    fs::write(hub.dir.join("under the mount point"), "x").unwrap();
    pace(1200);
    assert_eq!((hub.commit(), hub.feed()["state"].as_str()), (before, Some("stopped")));
    run("mount", &["--bind", disk, root]);
    fs::write(hub.dir.join("d0/after"), "x").unwrap();
    hub.wait_published();
    run("umount", &["-l", root]);
}

#[test]
fn c1_a_directory_that_was_replaced_is_taken_when_its_root_is_approved() {
    let world = World::new();
    let mut hub = world.primary("hub");
    tree(&hub.dir, 100);
    hub.wait_published();
    hub.stop();
    fs::rename(&hub.dir, world.path("old")).unwrap();
    fs::create_dir(&hub.dir).unwrap();
    fs::write(hub.dir.join("only"), "this").unwrap();
    hub.start();
    hub.feed_is("it stops", |feed| (feed["state"] == "stopped").then_some(()));
    hub.tell(&["approve", "--root"]);
    let id = held_deletions(&hub, 100);
    eventually("the new file", || hub.published("only").ok_or(String::new()));
    hub.tell(&["approve", &id]);
    hub.wait_published();
}

#[test]
fn c1_an_emptied_directory_is_held_and_rejecting_brings_all_back() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    tree(&hub.dir, 200);
    fs::write(hub.dir.join("d0/large.bin"), vec![3; 2_000_000]).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = contents(&hub.dir);
    hub.meanwhile(|| {
        ["d0", "d1"].map(|dir| fs::remove_dir_all(hub.dir.join(dir)).unwrap()).into_iter().collect()
    });
    let id = held_deletions(&hub, 201);
    assert!(health(&hub, "healthz").contains("201 deletions"));
    assert_eq!(contents(&eu.dir), before);
    hub.tell(&["reject", &id]);
    hub.sync();
    assert_eq!((contents(&hub.dir), contents(&eu.dir)), (before.clone(), before));
    assert_eq!(hub.feed()["state"], "idle");
}

#[test]
fn c2_most_files_removed_are_held_approved_by_their_list_and_survive_a_restart() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    tree(&hub.dir, 200);
    wait_equal(&hub.dir, &[&eu.dir]);
    // Spread, since an application may be undeployed.
    hub.meanwhile(|| remove(&hub.dir, (0..200).filter(|number| number % 10 < 6)));
    let id = held_deletions(&hub, 120);
    let status = hub.tell(&["status"]);
    assert!(status.contains(&id) && status.contains("120 files"), "{status}");
    assert_eq!(hub.get("/v1/feeds/default/held?limit=1000")["held"].as_array().unwrap().len(), 120);
    // Others go on meanwhile, and what comes back leaves the list.
    fs::write(hub.dir.join("d1/new"), "x").unwrap();
    eventually("the new file", || fs::read(eu.dir.join("d1/new")).map_err(|e| e.to_string()));
    assert_eq!(hub.feed()["files"], 201);
    hub.kill();
    hub.start();
    assert_eq!(held_deletions(&hub, 120), id);
    fs::create_dir_all(hub.dir.join("d0/e0")).unwrap();
    fs::write(hub.dir.join("d0/e0/f0"), "back").unwrap();
    let shorter = held_deletions(&hub, 119);
    let refused = hub.command(&["approve", &id]);
    assert!(!refused.status.success(), "another list than the one seen was approved");
    hub.tell(&["approve", &shorter]);
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.feed_is("all is well", |feed| (feed["state"] == "idle").then_some(()));
    eu.fsck();
}

#[test]
fn c3_renaming_the_top_directory_is_not_held() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    tree(&hub.dir.join("top"), 500);
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.sync();
    let before = hub.commits();
    fs::rename(hub.dir.join("top"), hub.dir.join("renamed")).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(hub.commits(), before + 1);
}

#[test]
fn c4_an_unreadable_directory_keeps_its_files_and_the_rest_goes_on() {
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    if !may("be somebody else", "setpriv", &[&ids[..], &["true"]].concat()) {
        return;
    }
    let world = World::new();
    let daemon = world.open_to("nobody");
    let mut hub = world.primary_unstarted("hub", &[]);
    hub.daemon = daemon;
    hub.wrap = [&["setpriv"][..], &ids].concat().into_iter().map(str::to_owned).collect();
    tree(&hub.dir, 300);
    run("chown", &["-R", "nobody:nogroup", hub.dir.to_str().unwrap()]);
    hub.start();
    let eu = world.region("eu", &hub);
    wait_equal(&hub.dir, &[&eu.dir]);

    let closed = hub.dir.join("d1");
    let closed = closed.to_str().unwrap();
    run("chown", &["root", closed]);
    run("chmod", &["700", closed]);
    hub.sync();
    let why = hub.wait_held("d1");
    assert!(why.contains("last state"), "{why}");
    remove(&hub.dir, 0..5);
    fs::write(hub.dir.join("d2/new"), "x").unwrap();
    let mine = hub.dir.join("d2/new");
    run("chown", &["nobody:nogroup", mine.to_str().unwrap()]);
    eventually("the rest goes on", || {
        let there = eu.dir.join("d2/new").exists() && !eu.dir.join("d0/e0/f4").exists();
        if there { Ok(()) } else { Err(hub.feed().to_string()) }
    });
    assert!(eu.dir.join("d1/e3/f130").exists(), "a file that could not be seen was deleted");
    assert_eq!(hub.feed()["files"], 300 - 5 + 1);

    run("chown", &["nobody", closed]);
    run("chmod", &["755", closed]);
    fs::remove_file(hub.dir.join("d1/e0/f100")).unwrap();
    hub.sync();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(hub.held("d1"), None);
}

#[test]
fn c5_a_directory_becomes_a_link_and_what_it_points_at_is_untouched() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let (here, there) = (world.folder("precious-here"), world.folder("precious-there"));
    for folder in [&here, &there] {
        tree(folder, 20);
    }
    tree(&hub.dir.join("link"), 20);
    fs::write(hub.dir.join("other"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = contents(&here);
    fs::remove_dir_all(hub.dir.join("link")).unwrap();
    symlink(&here, hub.dir.join("link")).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(fs::read_link(eu.dir.join("link")).unwrap(), here);
    fs::remove_file(hub.dir.join("link")).unwrap();
    symlink(&there, hub.dir.join("link")).unwrap();
    fs::write(there.join("d0/e0/f1"), "behind the link").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.sync();
    assert_eq!(contents(&here), before);
    assert_eq!(fs::read(there.join("d0/e0/f1")).unwrap(), b"behind the link");
    assert!(!hub.ever().iter().any(|path| path.ends_with("behind the link")));
    assert_eq!(hub.head_files().len(), 2);
}

/// Runs `rm -rf` over all files, at full speed or spread over a time; says how many of them were
/// gone from the feed when it was held, and how many there are.
fn remove_all(files: usize, over: Duration) {
    let world = World::new();
    let mut hub = world.primary_unstarted("hub", &[]);
    tree(&hub.dir, files);
    hub.start();
    hub.feed_is("the import", |feed| (feed["files"] == files).then_some(()));
    hub.sync();
    let before = contents(&hub.dir);
    let began = Instant::now();
    if over.is_zero() {
        let entries = fs::read_dir(&hub.dir).unwrap().map(|entry| entry.unwrap().path());
        let removed = Command::new("rm").arg("-rf").args(entries).status();
        assert!(removed.unwrap().success());
    } else {
        for number in 0..files {
            let due = over.mul_f64(number as f64 / files as f64);
            let early = due.saturating_sub(began.elapsed());
            if early > Duration::from_millis(20) {
                pace(early.as_millis() as u64);
            }
            remove(&hub.dir, number..number + 1);
        }
    }
    let left = hub.feed_is("it is held", |feed| {
        let held = feed["held_deletions"]["files"].as_u64()?;
        let left = feed["files"].as_u64()?;
        // Until the whole list is together.
        (held == left).then_some(left)
    });
    let published = files as u64 - left;
    println!("{files} files removed over {over:?}: {published} published before it was held");
    assert!(published * 20 <= files as u64, "{published} of {files}");
    hub.tell(&["reject"]);
    hub.sync();
    // All of it, what was published before the hold as well, with its metadata.
    eventually_within(patience(), "all are back", || match contents(&hub.dir) {
        now if now == before => Ok(()),
        now => Err(format!("{} of {}", now.len(), before.len())),
    });
    hub.feed_is("all are published", |feed| (feed["files"] == files).then_some(()));
    hub.fsck();
}

#[test]
fn c6_everything_removed_at_full_speed_is_held_and_comes_back() {
    remove_all(scale(3_000, 100_000), Duration::ZERO);
}

#[test]
fn c6_everything_removed_slowly_is_held_before_a_twentieth_is_gone() {
    remove_all(scale(3_000, 100_000), scale(Duration::from_secs(4), Duration::from_secs(60)));
}

#[test]
fn c6_undeploying_the_largest_of_three_applications_is_not_held() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    for (app, files) in [("large", 1_500), ("middle", 300), ("small", 100)] {
        tree(&hub.dir.join("webapps").join(app), files);
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    fs::remove_dir_all(hub.dir.join("webapps/large")).unwrap();
    eventually("it is undeployed", || compare(&hub.dir, &eu.dir));
    assert!(hub.feed()["held_deletions"].is_null());
}

#[test]
fn the_brake_has_limits_of_its_own_and_may_be_off() {
    let world = World::new();
    let strict = "[feed.guard]\nmax_delete_percent = 5\nmin_delete_files = 10\nwindow = '1m'";
    let mut hub = world.configured("strict", "", strict);
    tree(&hub.dir, 1_000);
    hub.start();
    hub.wait_published();
    hub.meanwhile(|| remove(&hub.dir, (0..1_000).step_by(10)));
    let id = held_deletions(&hub, 100);
    hub.tell(&["reject", &id]);
    hub.wait_published();
    assert_eq!(hub.feed()["files"], 1_000);

    let mut hub = world.configured("off", "", "[feed.guard]\noff = true");
    tree(&hub.dir, 200);
    hub.start();
    hub.wait_published();
    fs::remove_dir_all(hub.dir.join("d0")).unwrap();
    fs::remove_dir_all(hub.dir.join("d1")).unwrap();
    hub.feed_is("all are gone", |feed| (feed["files"] == 0).then_some(()));
}
