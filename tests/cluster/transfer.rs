//! What crosses the wire, and how little of it: deltas, resumed transfers, bad links, full disks.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    oracle::{compare, sha256, wait_equal},
    proxy::Proxy,
    world::{Node, World, curl, eventually, eventually_within, noise},
};

pub fn is_full_run() -> bool {
    std::env::var_os("DEPSYNC_FULL").is_some()
}

/// Waits until a mirror has what the primary has published.
fn wait_verified(hub: &Node, mirror: &Node, limit: Duration) {
    eventually_within(limit, "the mirror has it", || {
        let (want, have) =
            (hub.try_get("/v1/feeds/default")?, mirror.try_get("/v1/feeds/default")?);
        match want["commit"].is_string() && have["have"]["commit"] == want["commit"] {
            true => Ok(()),
            false => Err(format!("{} / {have}", want["commit"])),
        }
    });
}

/// Bytes that come down a link until the mirror equals the primary.
fn cost(link: &Proxy, hub: &Node, mirror: &Node) -> u64 {
    let before = link.down();
    wait_equal(&hub.dir, &[&mirror.dir]);
    wait_verified(hub, mirror, Duration::from_secs(60));
    link.down() - before
}

/// The most memory that a process has had, in bytes.
fn peak(node: &Node) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

fn disk_use(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(about) if about.is_dir() => disk_use(&entry.path()),
            Ok(about) => about.len(),
            Err(_) => 0,
        })
        .sum()
}

#[test]
fn a_small_change_in_a_large_file_costs_its_own_bytes() {
    let world = World::new();
    let hub = world.primary("hub");
    let link = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    let relayed = Proxy::to(&eu);
    let mut leaf = world.region_unstarted("leaf", &relayed.url(), &[]);
    leaf.start();
    let size = if is_full_run() { 100_000_000 } else { 20_000_000 };
    let at = hub.dir.join("shop-1.0.war");
    let mut bytes = noise(1, size);
    fs::write(&at, &bytes).unwrap();
    wait_equal(&hub.dir, &[&eu.dir, &leaf.dir]);
    wait_verified(&hub, &leaf, Duration::from_secs(60));

    bytes[size / 2..][..65_536].copy_from_slice(&noise(2, 65_536));
    let before = (link.down(), relayed.down());
    fs::write(&at, &bytes).unwrap();
    wait_equal(&hub.dir, &[&eu.dir, &leaf.dir]);
    wait_verified(&hub, &leaf, Duration::from_secs(60));
    let came = [link.down() - before.0, relayed.down() - before.1];
    assert!(came.iter().all(|came| (65_536..70_000).contains(came)), "{came:?} bytes came");
    assert_eq!(
        (hub.metric("depsync_deltas_built_total"), hub.metric("depsync_deltas_served_total")),
        (1.0, 1.0)
    );
    // A relay hands on what it got.
    assert_eq!(
        (eu.metric("depsync_deltas_built_total"), eu.metric("depsync_deltas_served_total")),
        (0.0, 1.0)
    );

    bytes.splice(1000..1000, *b"inserted near the front");
    fs::write(&at, &bytes).unwrap();
    let came = cost(&link, &hub, &eu);
    assert!(came < 6_000, "{came} bytes came for 23 that were inserted");

    // A new version under a new name, then only a new name.
    bytes[5_000] ^= 1;
    fs::write(hub.dir.join("shop-1.1.war"), &bytes).unwrap();
    let came = cost(&link, &hub, &eu);
    assert!(came < 6_000, "{came} bytes came for a new version of one byte");
    fs::create_dir(hub.dir.join("old")).unwrap();
    fs::rename(&at, hub.dir.join("old/renamed.bin")).unwrap();
    let came = cost(&link, &hub, &eu);
    assert!(came < 6_000, "{came} bytes came for a rename");
    wait_equal(&hub.dir, &[&leaf.dir]);

    let [eu_spool, leaf_spool] = [&eu, &leaf].map(|node| node.state.join("feeds/default/spool"));
    for spool in [eu_spool, leaf_spool] {
        let left: Vec<_> = fs::read_dir(spool).unwrap().map(|e| e.unwrap().file_name()).collect();
        let only_deltas = left.iter().all(|name| name.to_string_lossy().ends_with(".delta"));
        assert!(only_deltas, "{left:?} is left");
    }
}

#[test]
fn a_jar_built_again_with_one_class_changed_costs_about_that_class() {
    let world = World::new();
    let hub = world.primary("hub");
    let link = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    let build = |changed: usize, stamp: u32| {
        let folder = world.folder("classes");
        for class in 0..400 {
            let mut bytes = noise(class as u64, 12_000);
            if class == changed {
                bytes[6_000..6_400].copy_from_slice(&noise(999, 400));
            }
            fs::write(folder.join(format!("C{class:03}.class")), bytes).unwrap();
        }
        let script = "import os,sys,zipfile\n\
             z = zipfile.ZipFile(sys.argv[2], 'w', zipfile.ZIP_DEFLATED)\n\
             for n in sorted(os.listdir(sys.argv[1])):\n\
             \x20   i = zipfile.ZipInfo(n, (2026, 1, 1, 0, 0, int(sys.argv[3]))); i.compress_type = 8\n\
             \x20   z.writestr(i, open(os.path.join(sys.argv[1], n), 'rb').read())\n\
             z.close()\n";
        let jar = world.path("app.jar");
        let made = Command::new("python3")
            .args(["-c", script])
            .args([folder.as_os_str(), jar.as_os_str()])
            .arg(stamp.to_string())
            .status()
            .unwrap();
        assert!(made.success());
        fs::rename(jar, hub.dir.join("app.jar")).unwrap();
    };
    build(usize::MAX, 2);
    wait_equal(&hub.dir, &[&eu.dir]);
    wait_verified(&hub, &eu, Duration::from_secs(60));
    build(200, 4); // every member has a new time as well
    let came = cost(&link, &hub, &eu);
    assert!(came < 30_000, "{came} bytes came for a class of 12,000 and 400 time stamps");
}

#[test]
fn a_link_cut_twenty_times_in_a_first_sync_costs_little_more_than_the_bytes() {
    let world = World::new();
    let hub = world.primary("hub");
    let size: u64 = if is_full_run() { 2_000_000_000 } else { 160_000_000 };
    let mut large = fs::File::create(hub.dir.join(".large.part")).unwrap();
    for block in 0..size / 10_000_000 {
        std::io::Write::write_all(&mut large, &noise(block, 10_000_000)).unwrap();
    }
    drop(large);
    fs::rename(hub.dir.join(".large.part"), hub.dir.join("large.iso")).unwrap();
    fs::write(hub.dir.join("small"), "small").unwrap();
    eventually("it is published", || match hub.try_get("/v1/feeds/default")? {
        feed if feed["files"] == 2 => Ok(()),
        feed => Err(feed.to_string()),
    });
    let link = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    let limit = Duration::from_secs(if is_full_run() { 600 } else { 60 });
    for cut in 1..=20 {
        link.cut_after(size / 21);
        eventually_within(limit, "the link is cut", || match link.cuts() {
            cuts if cuts == cut => Ok(()),
            cuts => Err(format!("{cuts} cuts, {} bytes", link.down())),
        });
    }
    wait_verified(&hub, &eu, limit);
    compare(&hub.dir, &eu.dir).unwrap();
    let came = link.down();
    assert!(came <= size / 5 * 6, "{came} bytes came for {size}");
    for node in [&hub, &eu] {
        let peak = peak(node);
        assert!(peak < 100_000_000, "{} has had {peak} bytes of memory", node.name);
    }
    // Unchanged, it is never sent again: not for a touch, a new mode, or a start.
    let status = Command::new("touch").arg(hub.dir.join("large.iso")).status().unwrap();
    assert!(status.success());
    eu.stop();
    eu.start();
    fs::write(hub.dir.join("small"), "changed").unwrap();
    wait_verified(&hub, &eu, limit);
    eventually("the change is there", || match fs::read(eu.dir.join("small")) {
        Ok(bytes) if bytes == b"changed" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert!(link.down() - came < 100_000, "{} more bytes came", link.down() - came);
}

#[test]
fn a_sparse_file_of_gigabytes_costs_no_memory_and_its_new_name_no_bytes() {
    let world = World::new();
    let hub = world.primary("hub");
    let link = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    let size = if is_full_run() { 5_000_000_000 } else { 150_000_000 };
    let limit = Duration::from_secs(if is_full_run() { 600 } else { 60 });
    let sparse = fs::File::create(world.path("sparse")).unwrap();
    sparse.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", size / 2).unwrap();
    drop(sparse);
    fs::rename(world.path("sparse"), hub.dir.join("disk.img")).unwrap();
    eventually_within(limit, "it is published", || match hub.try_get("/v1/feeds/default")? {
        feed if feed["files"] == 1 => Ok(()),
        feed => Err(feed.to_string()),
    });
    wait_verified(&hub, &eu, limit);
    assert_eq!(fs::metadata(eu.dir.join("disk.img")).unwrap().len(), size);
    // A new name, a new time and a start bring nothing again.
    let before = link.down();
    fs::create_dir(hub.dir.join("images")).unwrap();
    fs::rename(hub.dir.join("disk.img"), hub.dir.join("images/renamed.img")).unwrap();
    let renamed =
        || eu.dir.join("images/renamed.img").exists() && !eu.dir.join("disk.img").exists();
    eventually_within(limit, "the new name is at the mirror", || match renamed() {
        true => Ok(()),
        false => Err(hub.commit()),
    });
    wait_verified(&hub, &eu, limit);
    eu.stop();
    eu.start();
    wait_verified(&hub, &eu, limit);
    assert_eq!(fs::metadata(eu.dir.join("images/renamed.img")).unwrap().len(), size);
    assert!(link.down() - before < 100_000, "{} bytes came for a name", link.down() - before);
    for node in [&hub, &eu] {
        let peak = peak(node);
        assert!(peak < 100_000_000, "{} has had {peak} bytes of memory", node.name);
    }
}

#[test]
fn killed_fetches_go_on_from_what_they_had() {
    let world = World::new();
    let hub = world.primary("hub");
    // One pack of many files, and one object.
    for file in 0..100 {
        fs::write(hub.dir.join(format!("f{file}")), noise(file, 100_000)).unwrap();
    }
    fs::write(hub.dir.join("large"), noise(1000, 10_000_000)).unwrap();
    eventually("it is published", || match hub.try_get("/v1/feeds/default")? {
        feed if feed["files"] == 101 => Ok(()),
        feed => Err(feed.to_string()),
    });
    let link = Proxy::to(&hub);
    link.limit(Some(20_000_000)); // so that little is on its way when it is killed
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    let kills = if is_full_run() { 50 } else { 10 };
    for kill in 1..=kills {
        eu.start();
        let until = kill * 20_000_000 / (kills + 1);
        eventually("it has brought some more", || match link.down() {
            down if down >= until => Ok(()),
            down => Err(format!("{down} of {until}")),
        });
        eu.kill();
        let used = disk_use(&eu.state);
        assert!(used < 22_500_000, "{used} bytes after kill {kill}");
    }
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    // Each kill loses what was on its way to the disk, and no more.
    let lost = link.down().saturating_sub(20_100_000);
    assert!(lost < kills * 4_000_000, "{lost} bytes came twice in {kills} kills");
    wait_verified(&hub, &eu, Duration::from_secs(60));
    let spool = eu.state.join("feeds/default/spool");
    assert_eq!(fs::read_dir(spool).unwrap().count(), 0);
    eu.fsck();
}

#[test]
fn bits_that_flip_on_the_way_are_found_and_nothing_wrong_is_served() {
    let world = World::new();
    let hub = world.primary("hub");
    let link = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    fs::write(hub.dir.join("first"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);

    // In an object that comes whole.
    let mut bytes = noise(1, 5_000_000);
    link.flip(2_000_000);
    fs::write(hub.dir.join("large"), &bytes).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(!link.is_to_flip() && link.down() > 9_000_000, "{} bytes came", link.down());

    // In a delta: the object comes whole.
    wait_verified(&hub, &eu, Duration::from_secs(60));
    bytes[1_000_000..1_060_000].copy_from_slice(&noise(2, 60_000));
    let before = link.down();
    link.flip(30_000);
    fs::write(hub.dir.join("large"), &bytes).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(!link.is_to_flip() && link.down() - before > 5_000_000);

    // In a pack.
    wait_verified(&hub, &eu, Duration::from_secs(60));
    fs::write(hub.dir.join(".depsync-hold"), "").unwrap();
    for file in 0..20 {
        fs::write(hub.dir.join(format!("f{file}")), noise(file, 100_000)).unwrap();
    }
    link.flip(1_000_000);
    fs::remove_file(hub.dir.join(".depsync-hold")).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(!link.is_to_flip());
    eu.fsck();
    for file in ["large", "f7"] {
        let url = format!("{}/v1/feeds/default/files/{file}", eu.url());
        let path = world.path("served");
        assert!(curl(&["-f", "-o", path.to_str().unwrap(), &url]).status.success());
        assert_eq!(sha256(&path), sha256(&hub.dir.join(file)));
    }
}

#[test]
fn an_older_version_that_is_damaged_here_costs_the_whole_and_nothing_else() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let mut bytes = noise(1, 3_000_000);
    fs::write(hub.dir.join("large"), &bytes).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    wait_verified(&hub, &eu, Duration::from_secs(60));
    let id = sha256(&hub.dir.join("large")).unwrap();
    let object = eu.git_dir().join("lfs/objects").join(&id[..2]).join(&id[2..4]).join(&id);
    let mut stored = fs::read(&object).unwrap();
    stored[1_500_000] ^= 1;
    fs::write(&object, stored).unwrap();
    bytes[10] ^= 1;
    fs::write(hub.dir.join("large"), &bytes).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(eu.log_text().contains("fetched whole"), "{}", eu.log_text());
}

#[test]
fn a_slow_link_completes_and_says_how_long_it_takes() {
    let world = World::new();
    let hub = world.primary("hub");
    let link = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    fs::write(hub.dir.join("first"), "1").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    link.limit(Some(64_000));
    link.delay(Duration::from_millis(100));
    fs::write(hub.dir.join("large"), noise(1, 600_000)).unwrap();
    let start = Instant::now();
    let shown = eventually("progress is shown", || {
        let feed = eu.try_get("/v1/feeds/default")?;
        match feed["progress"]["left_ms"].as_u64() {
            Some(_) => Ok(feed["progress"].clone()),
            None => Err(feed.to_string()),
        }
    });
    let [done, total, rate] = ["done", "total", "rate"].map(|name| shown[name].as_u64().unwrap());
    assert!(done <= total && total == 600_000, "{shown}");
    assert!((20_000..200_000).contains(&rate), "{shown}");
    // The hub hears of it, too.
    eventually("the hub shows it", || {
        let nodes = hub.try_get("/v1/nodes")?;
        match nodes["nodes"][0]["feeds"][0]["progress"]["rate"].is_u64() {
            true => Ok(()),
            false => Err(nodes.to_string()),
        }
    });
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(start.elapsed() > Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(eu.get("/v1/feeds/default")["last_error"].is_null(), "{}", eu.log_text());
}

#[test]
fn a_transfer_that_stalls_is_broken_off_and_goes_on() {
    if !is_full_run() {
        return; // it takes the minute after which a stall is one
    }
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("large"), noise(1, 30_000_000)).unwrap();
    eventually("it is published", || match hub.try_get("/v1/feeds/default")? {
        feed if feed["files"] == 1 => Ok(()),
        feed => Err(feed.to_string()),
    });
    let link = Proxy::to(&hub);
    link.limit(Some(10_000_000));
    let mut eu = world.region_unstarted("eu", &link.url(), &[]);
    eu.start();
    eventually("some has come", || match link.down() {
        down if down > 5_000_000 => Ok(()),
        down => Err(format!("{down} bytes")),
    });
    link.stall(true);
    eventually_within(Duration::from_secs(90), "the stall is noticed", || match eu.log_text() {
        log if log.contains("nothing was heard") => Ok(()),
        log => Err(log),
    });
    link.cut();
    link.stall(false);
    link.limit(None);
    wait_equal(&hub.dir, &[&eu.dir]);
    assert!(link.down() < 36_000_000 && link.up() < 100_000, "{} bytes came", link.down());
}

#[test]
fn a_full_disk_is_said_and_the_old_release_served_until_there_is_space() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region_unstarted("eu", &hub.url(), &[]);
    fs::create_dir_all(&eu.state).unwrap();
    let disk = eu.state.to_str().unwrap().to_owned();
    let mount = |options: &str| {
        let words = ["-t", "tmpfs", "-o", options, "tmpfs", &disk];
        Command::new("mount").args(words).output().unwrap().status.success()
    };
    if !mount("size=24m") {
        eprintln!("a small disk cannot be mounted here (only root may): not tested");
        return;
    }
    let unmount = Unmount(disk.clone());
    let mut eu = eu;
    eu.start();
    fs::write(hub.dir.join("app.war"), noise(1, 1_000_000)).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    wait_verified(&hub, &eu, Duration::from_secs(60));
    let old = fs::read(eu.dir.join("app.war")).unwrap();

    fs::write(hub.dir.join("app.war"), noise(2, 30_000_000)).unwrap();
    let feed = eventually("it says what is wrong", || {
        let feed = eu.try_get("/v1/feeds/default")?;
        let text = feed.to_string().to_lowercase();
        if text.contains("space") || text.contains("disk") { Ok(feed) } else { Err(text) }
    });
    assert_ne!(feed["state"], "idle", "{feed}");
    assert!(fs::read(eu.dir.join("app.war")).unwrap() == old);
    let commit = feed["commit"].as_str().unwrap();
    let served = curl(&["-f", &format!("{}/v1/feeds/default/at/{commit}/app.war", eu.url())]);
    assert!(served.stdout == old);

    assert!(mount("remount,size=100m"));
    wait_equal(&hub.dir, &[&eu.dir]);
    wait_verified(&hub, &eu, Duration::from_secs(60));
    eu.kill();
    drop(eu);
    drop(unmount);
}

/// A disk of its own for a node's state; none where it cannot be mounted.
fn small_disk(node: &Node, size: &str) -> Option<Unmount> {
    fs::create_dir_all(&node.state).unwrap();
    let disk = Unmount(node.state.to_str().unwrap().to_owned());
    if resize(&disk, size, false) {
        return Some(disk);
    }
    eprintln!("a small disk cannot be mounted here (only root may): not tested");
    None
}

fn resize(disk: &Unmount, size: &str, again: bool) -> bool {
    let options = format!("{}size={size}", if again { "remount," } else { "" });
    let words = ["-t", "tmpfs", "-o", &options, "tmpfs", &disk.0];
    Command::new("mount").args(words).output().unwrap().status.success()
}

#[test]
fn a_first_sync_that_does_not_fit_stops_at_once_with_both_figures() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("app.war"), noise(1, 30_000_000)).unwrap();
    eventually("it is published", || match hub.get("/v1/feeds/default")["files"].as_u64() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let mut eu = world.region_unstarted("eu", &hub.url(), &[]);
    let Some(disk) = small_disk(&eu, "24m") else { return };
    eu.start();
    eventually("it says what is needed and what there is", || {
        let feed = eu.try_get("/v1/feeds/default")?;
        let error = feed["last_error"].as_str().unwrap_or_default();
        let said = error.contains("30000000 bytes are needed") && error.contains("are free");
        if said { Ok(()) } else { Err(feed.to_string()) }
    });
    assert!(fs::read_dir(&eu.dir).unwrap().next().is_none());
    let sent = hub.metric("depsync_packs_served_total");
    assert_eq!(sent, 0.0, "nothing was fetched");
    assert!(resize(&disk, "100m", true));
    wait_equal(&hub.dir, &[&eu.dir]);
    eu.kill();
}

#[test]
fn a_disk_below_its_floor_holds_publication_and_goes_on_by_itself() {
    let world = World::new();
    let mut hub = world.configured("hub", "min_free = \"12MB\"", "");
    let Some(disk) = small_disk(&hub, "24m") else { return };
    hub.start();
    let first = noise(1, 8_000_000);
    fs::write(hub.dir.join("first.bin"), &first).unwrap();
    let feed = |hub: &Node| hub.get("/v1/feeds/default");
    eventually("it is published", || match feed(&hub)["files"].as_u64() {
        Some(1) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // It would fit on the disk, and leave less than the floor.
    fs::write(hub.dir.join("second.bin"), noise(2, 7_000_000)).unwrap();
    eventually("it is held, and said why", || {
        let text = feed(&hub)["held"].to_string();
        if text.contains("7000000 bytes are needed") { Ok(()) } else { Err(text) }
    });
    fs::write(hub.state.join("ballast"), noise(3, 6_000_000)).unwrap();
    fs::write(hub.dir.join("third"), "small").unwrap();
    eventually("the state says that the disk is full", || {
        let feed = feed(&hub);
        if feed["state"] == "full" { Ok(()) } else { Err(feed.to_string()) }
    });
    assert_eq!(feed(&hub)["files"], 1);
    let url = format!("{}/v1/feeds/default/files/first.bin", hub.url());
    assert!(curl(&["-f", &url]).stdout == first, "what is there is served");
    assert!(resize(&disk, "100m", true));
    eventually("it goes on", || match feed(&hub)["files"].as_u64() {
        Some(3) => Ok(()),
        other => Err(format!("{other:?} files")),
    });
    hub.fsck();
    hub.kill();
}

/// Unmounts the small disk, however the test ends.
struct Unmount(String);

impl Drop for Unmount {
    fn drop(&mut self) {
        Command::new("umount").args(["-l", &self.0]).status().ok();
    }
}

#[test]
fn a_hundred_mirrors_cost_one_pack_and_one_delta() {
    let world = World::new();
    let hub = world.primary("hub");
    let head = |files: u64| {
        eventually("it is published", || match hub.try_get("/v1/feeds/default")? {
            feed if feed["files"] == files => Ok(hub.commit()),
            feed => Err(feed.to_string()),
        })
    };
    let mut bytes = noise(1, 8_000_000);
    fs::write(hub.dir.join("large"), &bytes).unwrap();
    let old_commit = head(1);
    let old = sha256(&hub.dir.join("large")).unwrap();
    bytes[3_000_000..3_065_536].copy_from_slice(&noise(2, 65_536));
    fs::write(hub.dir.join("large"), &bytes).unwrap();
    eventually("the change is published", || match hub.commit() {
        commit if commit == old_commit => Err(commit),
        _ => Ok(()),
    });
    fs::write(hub.dir.join("more"), "more").unwrap();
    let new_commit = head(2);
    let new = sha256(&hub.dir.join("large")).unwrap();
    for what in [format!("packs/{old_commit}..{new_commit}"), format!("objects/{new}/from/{old}")] {
        let url = format!("{}/v1/feeds/default/{what}", hub.url());
        let asked: Vec<_> = std::thread::scope(|scope| {
            let ask = || scope.spawn(|| curl(&["-f", &url]).stdout);
            let asked: Vec<_> = (0..100).map(|_| ask()).collect();
            asked.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(!asked[0].is_empty() && asked.iter().all(|got| *got == asked[0]), "{what}");
    }
    let metrics = ["packs_built", "deltas_built", "packs_served", "deltas_served"];
    let counts = metrics.map(|name| hub.metric(&format!("depsync_{name}_total")));
    assert_eq!(counts, [1.0, 1.0, 100.0, 100.0]);
}
