//! Full disks, of each folder of each node: nothing is published by halves, the state says what is
//! wrong, and all goes on by itself once there is room.
//!
//! Each disk is a small file system of its own. It is filled by a file of somebody else's up to so many
//! bytes, so that a step early or late in a commit or a checkout is the first that finds no room.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

use crate::{
    oracle::{compare, contents, wait_equal},
    origin::may,
    origin_watching::Mount,
    transfer::is_full_run,
    world::{Node, World, depsync, done, eventually, noise},
};

/// A small disk at a folder; none where this machine does not let us mount one.
fn disk_at(world: &World, at: &Path, more: &[&str]) -> Option<Mount> {
    let image = world.path("image");
    File::create(&image).unwrap().set_len(24 << 20).unwrap();
    let image = image.to_str().unwrap();
    fs::create_dir_all(at).unwrap();
    let words = [&["-q", "-F", "-m", "0"], more, &[image]].concat();
    if !may("make a file system", "/usr/sbin/mkfs.ext4", &words) {
        return None;
    }
    let mount = Mount::new(at.to_owned(), "mount", &["-o", "loop", image])?;
    fs::remove_dir(at.join("lost+found")).unwrap();
    Some(mount)
}

/// Takes all room but so many bytes.
fn fill(at: &Path, left: u64) -> PathBuf {
    let path = at.join("somebodys.log");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    let size = file.metadata().unwrap().len();
    file.set_len(size - left).unwrap();
    file.sync_all().unwrap();
    path
}

/// So many bytes are left, at each turn.
fn left() -> &'static [u64] {
    if is_full_run() {
        &[0, 4_096, 16_384, 65_536, 200_000, 400_000, 700_000, 1_000_000]
    } else {
        &[0, 700_000]
    }
}

/// A version of some files that has 1.2 MB and does not compress.
fn write_version(dir: &Path, version: u64) {
    for number in 0..12 {
        let path = dir.join(format!("app/part-{number}"));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, noise(version * 100 + number, 100_000)).unwrap();
    }
}

/// Waits until a node says that there is no room.
fn says_full(node: &Node) {
    eventually(&format!("{} says what is wrong", node.name), || {
        let feed = node.try_get("/v1/feeds/default")?;
        let text = feed.to_string();
        let named = ["No space left", "are needed", "must stay free"];
        let is_named = named.iter().any(|words| text.contains(words));
        if is_named && feed["state"] != "idle" { Ok(()) } else { Err(text) }
    });
}

fn is_well(node: &Node) {
    eventually("all is well", || match node.try_get("/v1/feeds/default")? {
        feed if feed["state"] == "idle" => Ok(()),
        feed => Err(feed.to_string()),
    });
    node.fsck();
    let report = done(node, &["fsck", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["broken"].as_array().map(Vec::len), Some(0), "{report}");
}

#[test]
fn a_primary_whose_state_has_no_room_publishes_nothing_by_halves_and_goes_on() {
    let world = World::new();
    let mut hub = world.configured("hub", "min_free = \"0B\"", "");
    let Some(_disk) = disk_at(&world, &hub.state.clone(), &[]) else { return };
    hub.start();
    let eu = world.region("eu", &hub);
    write_version(&hub.dir, 0);
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["wait", "default"]);
    for (version, left) in (1..).zip(left()) {
        let (old, commit) = (contents(&eu.dir), hub.commit());
        done(&hub, &["hold"]);
        let log = fill(&hub.state, *left);
        write_version(&hub.dir, version);
        hub.command(&["release"]); // its own note may find no room
        says_full(&hub);
        assert_eq!(hub.commit(), commit, "{left} bytes left");
        assert_eq!(contents(&eu.dir), old, "{left} bytes left");
        fs::remove_file(log).unwrap();
        eventually("it is released", || match hub.command(&["release"]) {
            output if output.status.success() => Ok(()),
            output => Err(format!("{output:?}")),
        });
        wait_equal(&hub.dir, &[&eu.dir]);
        is_well(&hub);
    }
    hub.kill();
}

#[test]
fn a_mirror_without_any_room_keeps_the_old_version_and_goes_on() {
    let world = World::new();
    let hub = world.primary("hub");
    let at = world.folder("disk");
    let Some(_disk) = disk_at(&world, &at, &[]) else { return };
    let there = World::within(&at);
    let mut eu = there.configured(
        "eu",
        "min_free = \"0B\"\n[region]\nname = \"eu\"",
        &format!("upstream = {:?}", hub.url()),
    );
    eu.start();
    write_version(&hub.dir, 0);
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["wait", "default"]);
    for (version, left) in (1..).zip(left()) {
        let old = contents(&eu.dir);
        done(&hub, &["hold"]);
        write_version(&hub.dir, version);
        let log = fill(&at, *left);
        done(&hub, &["release"]);
        says_full(&eu);
        assert_eq!(contents(&eu.dir), old, "{left} bytes left");
        let verdict = hub.command(&["wait", "default", "--timeout", "0"]);
        assert!(!verdict.status.success(), "the primary knows who lacks it: {verdict:?}");
        fs::remove_file(log).unwrap();
        wait_equal(&hub.dir, &[&eu.dir]);
        done(&hub, &["wait", "default"]);
        is_well(&eu);
    }
    eu.kill();
}

/// There are bytes enough, and no room for another name.
#[test]
fn a_mirror_without_inodes_keeps_the_old_version_and_goes_on() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region_unstarted("eu", &hub.url(), &[]);
    let Some(_disk) = disk_at(&world, &eu.dir.clone(), &["-N", "64"]) else { return };
    eu.start();
    fs::write(hub.dir.join("one"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    done(&hub, &["hold"]);
    fs::write(hub.dir.join("one"), "2").unwrap();
    for number in 0..100 {
        fs::write(hub.dir.join(format!("file-{number}")), "x").unwrap();
    }
    done(&hub, &["release"]);
    says_full(&eu);
    let shown = contents(&eu.dir);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(fs::read(eu.dir.join("one")).unwrap(), b"1");
    for number in 10..100 {
        fs::remove_file(hub.dir.join(format!("file-{number}"))).unwrap();
    }
    done(&hub, &["sync"]);
    approve(&hub);
    eventually("it goes on", || compare(&hub.dir, &eu.dir));
    eu.kill();
}

fn approve(hub: &Node) {
    let id = eventually("the deletions are held", || {
        let feed = hub.try_get("/v1/feeds/default")?;
        feed["held_deletions"]["id"].as_str().map(str::to_owned).ok_or(feed.to_string())
    });
    done(hub, &["approve", &id]);
}

#[test]
fn a_primary_whose_folder_has_no_room_takes_no_upload_by_halves() {
    let world = World::new();
    let mut hub = world.primary_unstarted("hub", &[]);
    let Some(_disk) = disk_at(&world, &hub.dir.clone(), &[]) else { return };
    hub.start();
    let eu = world.region("eu", &hub);
    write_version(&hub.dir, 0);
    wait_equal(&hub.dir, &[&eu.dir]);
    let log = fill(&hub.dir, 1_000_000);
    wait_equal(&hub.dir, &[&eu.dir]);
    let (before, commit) = (contents(&hub.dir), hub.commit());
    let source = world.path("upload");
    fs::write(&source, noise(9, 3_000_000)).unwrap();
    let [source, state] = [&source, &hub.state].map(|path| path.to_str().unwrap());
    let put = || {
        let words = ["put", source, "default/app/part-0", "--url", &hub.url(), "--state", state];
        depsync(&words)
    };
    let refused = put();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && text.contains("space"), "{text}");
    assert_eq!((contents(&hub.dir), hub.commit()), (before.clone(), commit.clone()));

    // Nor is an older version brought back by halves.
    fs::remove_file(&log).unwrap();
    let old = hub.commit();
    fs::remove_dir_all(hub.dir.join("app")).unwrap();
    fs::write(hub.dir.join("small"), "small").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let log = fill(&hub.dir, 300_000);
    wait_equal(&hub.dir, &[&eu.dir]);
    let shown = contents(&hub.dir);
    let rolled = hub.command(&["rollback", &old]);
    let text = String::from_utf8_lossy(&rolled.stderr).into_owned();
    assert!(text.contains("No space left") && text.contains("tried again"), "{text}");

    assert_eq!(contents(&hub.dir), shown, "nothing of it lies there");
    fs::remove_file(&log).unwrap();
    eventually("it is finished", || match hub.dir.join("app/part-11").exists() {
        true => Ok(()),
        false => Err(hub.feed().to_string()),
    });
    eventually("it goes on by itself", || compare(&hub.dir, &eu.dir));
    hub.kill();
}
