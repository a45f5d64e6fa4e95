//! Repositories over time: they do not grow for ever, and what is damaged comes back.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    oracle::{sha256, wait_equal},
    world::{DEADLINE, Node, World, curl, eventually, eventually_within, noise},
};

/// Bytes that a folder takes on disk, as `du` counts them.
fn disk_use(folder: &Path) -> u64 {
    let du = Command::new("du").args(["-s", "--block-size=1"]).arg(folder).output().unwrap();
    String::from_utf8_lossy(&du.stdout).split_whitespace().next().unwrap().parse().unwrap()
}

fn publish(hub: &Node, write: impl FnOnce()) -> String {
    let before = hub.commit();
    write();
    eventually("it is published", || match hub.commit() {
        commit if commit == before => Err("no new commit".to_owned()),
        commit => Ok(commit),
    })
}

/// The status of `GET url`, with the body.
fn answer(url: &str) -> (String, String) {
    let got = curl(&["-w", "\n%{http_code}", url]);
    let text = String::from_utf8_lossy(&got.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), body.to_owned())
}

/// The report of a command of upkeep, which must succeed.
fn upkeep(node: &Node, command: &str) -> Value {
    let output = node.command(&[command, "--json"]);
    assert!(output.status.success(), "{command}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn objects(node: &Node) -> Vec<PathBuf> {
    files(&node.git_dir().join("lfs/objects"), 64)
}

fn packs(node: &Node) -> Vec<PathBuf> {
    let all = files(&node.git_dir().join("objects/pack"), 0);
    all.into_iter().filter(|path| path.extension().is_some_and(|e| e == "pack")).collect()
}

/// Files below a folder; of a name of that length, unless it is zero.
fn files(folder: &Path, length: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, length));
        } else if length == 0 || entry.file_name().len() == length {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_daily_artifact_takes_the_space_of_its_kept_versions_only() {
    let full = std::env::var_os("DEPSYNC_FULL").is_some();
    let (size, count) = if full { (50_000_000, 200_u32) } else { (2_000_000, 12) };
    let world = World::new();
    let keep = "keep = { age = \"0s\", versions = 5 }\n[feed.guard]\noff = true";
    let mut hub = world.configured("hub", "", keep);
    hub.start();
    let feed = format!("upstream = \"{}\"\n{keep}", hub.url());
    let mut eu = world.configured("eu", "[region]\nname = \"eu\"", &feed);
    eu.start();
    let (mut commits, mut most) = (Vec::new(), 0);
    for n in 1..=count {
        let bytes = noise(n.into(), size);
        commits.push(publish(&hub, || fs::write(hub.dir.join("app.bin"), bytes).unwrap()));
        wait_equal(&hub.dir, &[&eu.dir]);
        for node in [&hub, &eu] {
            most = most.max(disk_use(&node.state.join("feeds")));
            // There is a day until the next one.
            eventually("what is not kept goes by itself", || match objects(node).len() {
                0..=5 => Ok(()),
                many => Err(format!("{}: {many} objects", node.name)),
            });
        }
    }
    let versions = most as f64 / size as f64;
    assert!(versions < 8.0, "{versions} versions' worth");
    eprintln!("{count} versions of {size} bytes: at most {versions:.2} versions' worth");
    for node in [&hub, &eu] {
        let report = upkeep(node, "gc");
        assert_eq!((&report["kept"], &report["versions"]), (&5.into(), &5.into()), "{report}");
        assert_eq!(objects(node).len(), 5);
        let at =
            |commit: &str| answer(&format!("{}/v1/feeds/default/at/{commit}/app.bin", node.url()));
        for (n, commit) in commits.iter().enumerate().rev().take(10) {
            let (status, body) = at(commit);
            if commits.len() - n <= 5 {
                assert_eq!(status, "200", "{}: version {n}", node.name);
            } else {
                assert_eq!(status, "410", "{}: version {n}: {body}", node.name);
                assert!(body.contains("too old to be kept") && body.contains("log"), "{body}");
            }
        }
        let log = node.git(&["log", "--format=%H", "refs/heads/main"]);
        assert_eq!(log.lines().count(), commits.len(), "history names them all");
        assert!(commits.iter().all(|commit| log.contains(commit.as_str())));
        assert!(packs(node).len() < 32, "{}", packs(node).len());
        node.fsck();
    }
}

#[test]
fn collecting_goes_by_the_role_that_a_node_has_now() {
    let world = World::new();
    let keep = "keep = { age = \"0s\", versions = 3 }";
    let mut hub = world.configured("hub", "", keep);
    hub.start();
    let release = |node: &Node, n: u32| {
        publish(node, || fs::write(node.dir.join("app.bin"), noise(n.into(), 700_000)).unwrap());
    };
    let feed = format!("upstream = \"{}\"\nhistory = 1\n{keep}", hub.url());
    let mut eu = world.configured("eu", "[region]\nname = \"eu\"", &feed);
    eu.start();
    for n in 0..3 {
        release(&hub, n);
        wait_equal(&hub.dir, &[&eu.dir]);
    }
    let holds = |node: &Node, wanted: usize| {
        // What is put off goes within a minute.
        let limit = 2 * DEADLINE;
        eventually_within(limit, "what its role asks for is kept", || match objects(node).len() {
            here if here == wanted => Ok(()),
            here => Err(format!("{}: {here} objects", node.name)),
        });
    };
    holds(&hub, 3);
    holds(&eu, 1); // a mirror of just the head
    hub.kill();
    // It claims the feed with a commit of its own.
    publish(&eu, || {
        let promoted = eu.command(&["promote"]);
        assert!(promoted.status.success(), "{promoted:?}");
    });
    for n in 3..8 {
        release(&eu, n);
    }
    holds(&eu, 3); // a primary keeps what `keep` says, and all of its history
    upkeep(&eu, "gc");
    assert_eq!(objects(&eu).len(), 3);
    let log = eu.git(&["log", "--format=%s", "refs/heads/main"]);
    assert!(log.lines().count() >= 6, "{log}");
    hub.start();
    let demoted = hub.command(&["demote", "--upstream", &eu.url()]);
    assert!(demoted.status.success(), "{demoted:?}");
    wait_equal(&eu.dir, &[&hub.dir]);
    let report = upkeep(&hub, "fsck");
    assert!(report["broken"].as_array().unwrap().is_empty(), "{report}");
}

/// Flips a bit in the middle of a file; its times and size stay.
fn flip(path: &Path) {
    let about = fs::metadata(path).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().read(true).write(true).open(path).unwrap();
    let at = about.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    file.set_modified(about.modified().unwrap()).unwrap();
    fs::set_permissions(path, about.permissions()).unwrap();
}

fn cut_short(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 3).unwrap();
}

/// What is done to a file of a repository.
type Harm = (&'static str, fn(&Path));

const HARM: [Harm; 3] = [
    ("a flipped bit", flip),
    ("a cut", cut_short),
    ("a deletion", |path| fs::remove_file(path).unwrap()),
];

/// A feed of small and large files, in several commits.
fn deploy(hub: &Node) {
    write_files(hub);
    eventually("all is published", || match hub.get("/v1/feeds/default")["files"].as_u64() {
        Some(31) => Ok(()),
        other => Err(format!("{other:?} files")),
    });
}

fn write_files(hub: &Node) {
    for n in 0..30_u32 {
        fs::write(hub.dir.join(format!("small-{n}")), noise(n.into(), 3_000)).unwrap();
    }
    fs::write(hub.dir.join("large.bin"), noise(100, 1_500_000)).unwrap();
}

/// Damages each kind of file, and expects it back from wherever the node has it.
fn damage_and_repair(node: &mut Node, expected: &Path) {
    let download = |node: &Node, name: &str| {
        answer(&format!("{}/v1/feeds/default/files/{name}", node.url())).0
    };
    let hash = sha256(&expected.join("large.bin")).unwrap();
    let object = node.git_dir().join("lfs/objects").join(&hash[..2]).join(&hash[2..4]).join(&hash);
    let mut found = 0.0;
    for (harm, damage) in HARM {
        damage(&object);
        let status = download(node, "large.bin");
        assert!(["200", "503"].contains(&&*status), "{harm}: {status}");
        let got = curl(&["-f", &format!("{}/v1/feeds/default/files/large.bin", node.url())]);
        assert!(
            !got.status.success() || got.stdout == noise(100, 1_500_000),
            "{harm}: wrong bytes"
        );
        upkeep(node, "fsck");
        assert_eq!(sha256(&object), Some(hash.clone()), "{} after {harm}", node.name);
        let counted = node.metric("depsync_store_damage_found_total");
        assert!(counted > found, "{}: {harm} is counted", node.name);
        found = counted;
    }
    for (harm, damage) in HARM {
        for ending in ["idx", "pack"] {
            let pack = packs(node).into_iter().max_by_key(|p| p.metadata().unwrap().len()).unwrap();
            damage(&pack.with_extension(ending));
            // The daemon would go on with the old file as long as it has it open.
            node.kill();
            node.start();
            eventually("it is repaired", || {
                node.command(&["fsck"]);
                let left = node.metric("depsync_store_damage_left");
                let fsck = crate::world::git(&node.git_dir(), &["fsck", "--full", "--strict"]);
                match left {
                    0.0 if fsck.status.success() => Ok(()),
                    _ => Err(format!("{harm} of {ending}: {left} left, {fsck:?}")),
                }
            });
            for n in [0, 17, 29] {
                assert_eq!(download(node, &format!("small-{n}")), "200", "{harm} of {ending}");
            }
        }
    }
    assert!(node.metric("depsync_store_damage_repaired_total") > 0.0);
    assert_eq!(node.metric("depsync_store_damage_left"), 0.0);
}

#[test]
fn a_mirror_gets_back_what_was_damaged_from_its_upstream() {
    let world = World::new();
    let hub = world.primary("hub");
    deploy(&hub);
    let mut eu = world.region("eu", &hub);
    wait_equal(&hub.dir, &[&eu.dir]);
    damage_and_repair(&mut eu, &hub.dir);
    eu.fsck();
    // A file of the directory that is not as the head says is told.
    flip(&eu.dir.join("small-3"));
    let report = upkeep(&eu, "fsck");
    let differing = report["differing"].to_string();
    assert!(differing.contains("small-3: it has other content"), "{report}");
}

/// Where an object begins in a pack, as git's index says.
fn offset_in(pack: &Path, id: &str) -> Option<u64> {
    let index = File::open(pack.with_extension("idx")).unwrap();
    let index = Command::new("git").arg("show-index").stdin(index).output().unwrap();
    let index = String::from_utf8(index.stdout).unwrap();
    let line = index.lines().find(|line| line.contains(id))?;
    line.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_primary_gets_back_files_from_its_folder() {
    let world = World::new();
    let hub = world.primary("hub");
    deploy(&hub);
    let hash = sha256(&hub.dir.join("large.bin")).unwrap();
    let object = hub.git_dir().join("lfs/objects").join(&hash[..2]).join(&hash[2..4]).join(&hash);
    for (harm, damage) in HARM {
        damage(&object);
        let report = upkeep(&hub, "fsck");
        assert_eq!(sha256(&object), Some(hash.clone()), "{harm}: {report}");
    }
    // One blob of the pack: where it lies, its bytes stand as they are in the file.
    let id = hub.git(&["rev-parse", "refs/heads/main:small-7"]);
    let (pack, offset) = packs(&hub)
        .into_iter()
        .find_map(|pack| offset_in(&pack, id.trim()).map(|offset| (pack, offset)))
        .unwrap();
    fs::set_permissions(&pack, fs::Permissions::from_mode(0o644)).unwrap();
    let mut file = File::options().write(true).open(&pack).unwrap();
    file.seek(SeekFrom::Start(offset + 1000)).unwrap();
    file.write_all(b"damage").unwrap();
    drop(file);
    let report = upkeep(&hub, "fsck");
    assert!(report["broken"].as_array().unwrap().is_empty(), "{report}");
    assert!(!report["found"].as_array().unwrap().is_empty(), "{report}");
    hub.fsck();
    let got = curl(&["-f", &format!("{}/v1/feeds/default/files/small-7", hub.url())]);
    assert_eq!(got.stdout, noise(7, 3_000));
}

#[test]
fn a_version_that_a_region_passed_over_is_fetched_when_it_is_asked_for() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    publish(&hub, || fs::write(hub.dir.join("app.bin"), noise(1, 900_000)).unwrap());
    wait_equal(&hub.dir, &[&eu.dir]);
    eu.stop();
    let passed_over: Vec<String> = (2..6)
        .map(|n| publish(&hub, || fs::write(hub.dir.join("app.bin"), noise(n, 900_000)).unwrap()))
        .collect();
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    // The relay has neither: it asks its own upstream.
    let relay = world.region("relay", &eu);
    wait_equal(&hub.dir, &[&relay.dir]);
    assert_eq!((objects(&eu).len(), objects(&relay).len()), (2, 1));
    for node in [&relay, &eu] {
        for (n, commit) in (2..).zip(&passed_over) {
            let url = format!("{}/v1/feeds/default/at/{commit}/app.bin", node.url());
            let asked: Vec<_> = std::thread::scope(|scope| {
                let all: Vec<_> = (0..4).map(|_| scope.spawn(|| curl(&["-f", &url]))).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect()
            });
            for got in asked {
                assert!(got.status.success(), "{}: {got:?}", node.name);
                assert!(got.stdout == noise(n, 900_000), "{}: version {n}", node.name);
            }
        }
    }
    assert_eq!((objects(&eu).len(), objects(&relay).len()), (5, 4));
}

#[test]
fn git_lfs_gets_a_version_that_a_region_passed_over() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    eu.stop();
    let passed_over =
        publish(&hub, || fs::write(hub.dir.join("app.bin"), noise(1, 900_000)).unwrap());
    publish(&hub, || fs::write(hub.dir.join("app.bin"), noise(2, 900_000)).unwrap());
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(objects(&eu).len(), 1);
    let (clone, url) = (world.path("clone"), format!("{}/git/default.git", eu.url()));
    stock_git(&["clone", "-q", &url, clone.to_str().unwrap()], &world.path(""));
    stock_git(&["checkout", "-q", &passed_over], &clone);
    stock_git(&["lfs", "install", "--local"], &clone);
    stock_git(&["lfs", "pull"], &clone);
    assert!(fs::read(clone.join("app.bin")).unwrap() == noise(1, 900_000));
    assert_eq!(objects(&eu).len(), 2, "it was fetched for that");
}

fn stock_git(arguments: &[&str], at: &Path) {
    let done = Command::new("git")
        .args(arguments)
        .current_dir(at)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .unwrap();
    assert!(done.status.success(), "{arguments:?}: {done:?}");
}

#[test]
fn many_commits_leave_few_packs_and_stock_git_is_content() {
    let full = std::env::var_os("DEPSYNC_FULL").is_some();
    let count = if full { 2_000 } else { 60 };
    let world = World::new();
    let hub = world.primary("hub");
    for n in 0..300 {
        fs::write(hub.dir.join(format!("file-{n:03}")), format!("{n}\n").repeat(50)).unwrap();
    }
    let eu = world.region("eu", &hub);
    for n in 0..count {
        publish(&hub, || {
            fs::write(hub.dir.join(format!("file-{:03}", n % 300)), format!("{n}\n")).unwrap();
        });
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    for node in [&hub, &eu] {
        eventually("packs are few", || match packs(node).len() {
            few if few < 32 => Ok(()),
            many => Err(format!("{}: {many} packs", node.name)),
        });
        // A pack may be folded away while git looks at it.
        eventually("git fsck is clean", || {
            let fsck = crate::world::git(&node.git_dir(), &["fsck", "--full", "--strict"]);
            if fsck.status.success() && fsck.stdout.is_empty() {
                Ok(())
            } else {
                Err(format!("{fsck:?}"))
            }
        });
    }
    let loose: Vec<_> = hub.git(&["count-objects", "-v"]).lines().map(str::to_owned).collect();
    assert!(loose.contains(&"count: 0".to_owned()), "{loose:?}");
}

#[test]
fn a_mirror_of_just_the_head_is_a_repository_for_stock_git() {
    let world = World::new();
    let hub = world.primary("hub");
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n",
        "4d".repeat(32)
    );
    publish(&hub, || fs::write(hub.dir.join("a-users-own.pointer"), pointer).unwrap());
    for n in 0..4 {
        publish(&hub, || fs::write(hub.dir.join("large.bin"), noise(n, 800_000)).unwrap());
    }
    let feed = format!("upstream = \"{}\"\nhistory = 1", hub.url());
    let mut eu = world.configured("eu", "[region]\nname = \"eu\"", &feed);
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    let commits = |node: &Node| node.git(&["rev-list", "--count", "refs/heads/main"]);
    assert_eq!(commits(&eu).trim(), "1");
    for n in 4..16 {
        publish(&hub, || fs::write(hub.dir.join("large.bin"), noise(n, 800_000)).unwrap());
        wait_equal(&hub.dir, &[&eu.dir]);
    }
    upkeep(&eu, "gc");
    let kept: u32 = commits(&eu).trim().parse().unwrap();
    assert!(kept < 12, "{kept} versions");
    // The head's large file, and the user's own pointer.
    eventually("all others are gone", || match objects(&eu).len() {
        2 => Ok(()),
        many => Err(format!("{many} objects")),
    });
    eu.fsck();
    let fsck = Command::new("git")
        .args(["lfs", "fsck", "--dry-run", "refs/heads/main"])
        .current_dir(eu.git_dir())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&fsck.stdout).contains("Git LFS fsck OK"), "{fsck:?}");
    let clone = world.path("clone");
    let url = format!("{}/git/default.git", eu.url());
    stock_git(&["clone", "-q", &url, clone.to_str().unwrap()], &world.path(""));
    stock_git(&["lfs", "install", "--local"], &clone);
    stock_git(&["lfs", "pull"], &clone);
    stock_git(&["fsck", "--full", "--strict"], &clone);
    for name in ["large.bin", "a-users-own.pointer"] {
        assert_eq!(sha256(&clone.join(name)), sha256(&hub.dir.join(name)), "{name}");
    }
}
