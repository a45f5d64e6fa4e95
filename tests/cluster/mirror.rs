//! A copied file reaches every region: content, kinds, names, absence, first contact.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use crate::{
    oracle::{compare, contents, raw, wait_equal},
    world::{World, eventually},
};

#[test]
fn files_copied_edited_renamed_and_removed_are_the_same_in_both_mirrors() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let us = world.region("us", &hub);
    let mirrors = [eu.dir.as_path(), us.dir.as_path()];
    let at = |name: &str| hub.dir.join(name);

    fs::create_dir_all(at("deep/er/nested")).unwrap();
    fs::write(at("deep/er/nested/file.txt"), "nested").unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("run.sh"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(at("secret"), "0600").unwrap();
    fs::set_permissions(at("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    symlink("deep/er/nested/file.txt", at("link")).unwrap();
    symlink("/nowhere/at all", at("dangling")).unwrap();
    fs::write(at("with spaces and 'quotes\""), "x").unwrap();
    fs::write(at("ünï…編"), "x").unwrap();
    fs::write(hub.dir.join(raw(b"not utf-8 \xff\xfe")), "x").unwrap();
    fs::write(at("line\nbreak"), "x").unwrap();
    fs::write(at(&"n".repeat(255)), "x").unwrap();
    fs::write(at("big.war"), vec![7; 3_000_000]).unwrap();
    fs::create_dir(at("hollow")).unwrap();
    wait_equal(&hub.dir, &mirrors);

    fs::write(at("deep/er/nested/file.txt"), "edited").unwrap();
    fs::rename(at("empty"), at("deep/renamed")).unwrap();
    fs::rename(at("deep/er"), at("moved")).unwrap();
    fs::set_permissions(at("run.sh"), PermissionsExt::from_mode(0o644)).unwrap();
    fs::remove_file(at("link")).unwrap();
    fs::remove_file(at("dangling")).unwrap();
    fs::create_dir(at("dangling")).unwrap();
    fs::write(at("dangling/now a folder"), "y").unwrap();
    fs::write(at("big.war"), vec![8; 3_000_001]).unwrap();
    wait_equal(&hub.dir, &mirrors);

    fs::remove_dir_all(at("moved")).unwrap();
    fs::remove_file(at("ünï…編")).unwrap();
    wait_equal(&hub.dir, &mirrors);
    assert!(!eu.dir.join("moved").exists());

    for node in [&hub, &eu, &us] {
        node.fsck();
        assert!(node.git(&["log", "--format=%H"]).lines().count() >= 3);
    }
    let listed = hub.git(&["ls-tree", "-r", "-z", "--name-only", "main"]);
    let mut listed: Vec<&str> =
        listed.split_terminator('\0').filter(|path| !path.starts_with(".depsync/")).collect();
    let found = contents(&hub.dir);
    let mut files: Vec<String> = found
        .iter()
        .filter(|(_, item)| !matches!(item, crate::oracle::Item::Dir { .. }))
        .map(|(path, _)| path.to_string_lossy().into_owned())
        .collect();
    listed.sort_unstable();
    files.sort_unstable();
    assert_eq!(listed, files);
}

#[test]
fn a_touch_makes_no_commit_and_unchanged_files_keep_inode_and_time() {
    use std::os::unix::fs::MetadataExt;
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("kept"), "kept").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = fs::metadata(eu.dir.join("kept")).unwrap();
    let commits = hub.git(&["rev-list", "--count", "main"]);

    let touched = Command::new("touch").arg(hub.dir.join("kept")).status().unwrap();
    assert!(touched.success());
    fs::write(hub.dir.join("neighbour"), "new").unwrap();
    eventually("the neighbour arrives", || {
        fs::read(eu.dir.join("neighbour")).map_err(|error| error.to_string())
    });

    let after = fs::metadata(eu.dir.join("kept")).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    let commits: u32 = commits.trim().parse().unwrap();
    let now: u32 = hub.git(&["rev-list", "--count", "main"]).trim().parse().unwrap();
    assert_eq!(now, commits + 1, "the touch made a commit");
}

#[test]
fn a_region_away_for_fifty_commits_catches_up_with_one_fetch() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    fs::write(hub.dir.join("first"), "1").unwrap();
    fs::write(hub.dir.join("goes"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    eu.stop();
    let packs = hub.metric("depsync_packs_served_total");

    fs::remove_file(hub.dir.join("goes")).unwrap();
    for number in 0..50 {
        let before = hub.commit();
        fs::write(hub.dir.join(format!("file-{number}")), format!("{number}")).unwrap();
        eventually("the commit", || match hub.commit() {
            commit if commit == before => Err("no new commit".into()),
            commit => Ok(commit),
        });
    }
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(!eu.dir.join("goes").exists(), "what was deleted meanwhile came back");
    assert_eq!(hub.metric("depsync_packs_served_total") - packs, 1.0);
    eu.fsck();
}

#[test]
fn a_region_that_starts_first_keeps_trying() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let url = hub.url();
    hub.stop();
    let mut eu = world.region_unstarted("eu", &url, &[]);
    eu.start();
    eventually("it says what it waits for", || match eu.log_text() {
        text if text.contains(&url) => Ok(()),
        text => Err(text),
    });
    hub.start();
    fs::write(hub.dir.join("file"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
}

#[test]
fn changes_made_while_the_primary_was_down_are_published_at_its_start() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("a"), "1").unwrap();
    fs::write(hub.dir.join("b"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.kill();
    fs::write(hub.dir.join("a"), "2").unwrap();
    fs::remove_file(hub.dir.join("b")).unwrap();
    fs::write(hub.dir.join("c"), "3").unwrap();
    hub.start();
    wait_equal(&hub.dir, &[&eu.dir]);
}

#[test]
fn first_contact_with_other_files_stops_with_the_list_and_adopt_puts_them_aside() {
    let world = World::new();
    let hub = world.primary("hub");
    for name in ["same", "other"] {
        fs::write(hub.dir.join(name), name).unwrap();
    }
    eventually("published", || match hub.commit().as_str() {
        "" => Err("nothing yet".into()),
        _ => Ok(()),
    });
    let mut eu = world.region_unstarted("eu", &hub.url(), &[]);
    fs::write(eu.dir.join("same"), "same").unwrap();
    fs::write(eu.dir.join("other"), "what someone put here").unwrap();
    fs::write(eu.dir.join("foreign"), "not the feed's").unwrap();
    let before = contents(&eu.dir);
    eu.spawn();
    let status = eu.wait_exit();
    assert_eq!(status.code(), Some(78), "{}", eu.log_text());
    let said = eu.log_text();
    assert!(said.contains("other") && said.contains("--adopt"), "{said}");
    assert_eq!(contents(&eu.dir), before, "a refused start changed the folder");

    let mut eu = world.region_unstarted("eu", &hub.url(), &["--adopt"]);
    eu.start();
    eventually("adopted", || {
        match (fs::read(eu.dir.join("same")), fs::read(eu.dir.join("other"))) {
            (Ok(same), Ok(other)) if same == b"same" && other == b"other" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let aside = contents(&eu.state.join("feeds/default/aside"));
    let kept = aside.keys().any(|path| path.ends_with("other"));
    assert!(kept, "not put aside: {aside:?}");
}

#[test]
fn a_region_serves_a_region_below_it() {
    let world = World::new();
    let hub = world.primary("hub");
    let relay = world.region("relay", &hub);
    let leaf = world.region("leaf", &relay);
    fs::write(hub.dir.join("small"), "x").unwrap();
    fs::write(hub.dir.join("large.war"), vec![1; 2_000_000]).unwrap();
    wait_equal(&hub.dir, &[&relay.dir, &leaf.dir]);
    fs::remove_file(hub.dir.join("small")).unwrap();
    eventually("the removal arrives", || compare(&hub.dir, &leaf.dir));
}
