//! Real artifacts (Debian's Tomcat packages) and a large tree.

use std::{fs, path::Path, process::Command};

use crate::{
    oracle::wait_equal,
    world::{World, eventually},
};

fn copy(from: &str, to: &Path) {
    assert!(Path::new(from).exists(), "{from} is missing: tests/run.sh installs its package");
    let copied = Command::new("cp").args(["-rL", from]).arg(to).status().unwrap();
    assert!(copied.success());
}

#[test]
fn exploded_applications_and_jars_of_tomcat_arrive_whole() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    copy("/usr/share/tomcat10-examples/examples", &hub.dir.join("examples"));
    fs::create_dir(hub.dir.join("lib")).unwrap();
    for entry in fs::read_dir("/usr/share/java").unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("tomcat10") || name.starts_with("catalina") {
            copy(path.to_str().unwrap(), &hub.dir.join("lib").join(&name));
        }
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(fs::read_dir(eu.dir.join("lib")).unwrap().count() > 5, "no jars were found");
    hub.fsck();
    eu.fsck();

    fs::remove_dir_all(hub.dir.join("examples/jsp")).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
}

/// As many small files as a large deployment has, in folders of a hundred.
#[test]
fn a_hundred_thousand_files_arrive_and_a_restart_commits_nothing() {
    let count = if std::env::var_os("DEPSYNC_FULL").is_some() { 1_000_000 } else { 100_000 };
    let world = World::new();
    let dir = world.folder("hub");
    for number in 0..count {
        let folder = dir.join(format!("svc-{:04}/mod-{:02}", number / 1000, number / 100 % 10));
        if number % 100 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        fs::write(folder.join(format!("file-{number}.xml")), format!("<x id=\"{number}\"/>\n"))
            .unwrap();
    }
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let feed = eventually("all files are published", || {
        let feed = hub.try_get("/v1/feeds/default")?;
        if feed["files"].as_u64() == Some(count) { Ok(feed) } else { Err(feed.to_string()) }
    });
    eventually("the mirror has verified it", || {
        let there = eu.try_get("/v1/feeds/default")?;
        if there["have"]["commit"] == feed["commit"] { Ok(()) } else { Err(there.to_string()) }
    });
    wait_equal(&hub.dir, &[&eu.dir]);

    let commits = hub.git(&["rev-list", "--count", "main"]);
    hub.stop();
    hub.start();
    fs::write(hub.dir.join("svc-0000/mod-00/one more"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let now: u32 = hub.git(&["rev-list", "--count", "main"]).trim().parse().unwrap();
    assert_eq!(now, commits.trim().parse::<u32>().unwrap() + 1);
}
