//! Disks that are full, folders that may not be written, names that a file system cannot tell apart:
//! what cannot be put in place is said by its path or as a state, and all else goes on.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::Path,
    time::Duration,
};

use crate::{
    oracle::{compare, contents, sha256, wait_equal},
    origin::{may, run},
    origin_watching::Mount,
    world::{Node, World, eventually, eventually_within, noise},
};

/// A region over a new file system of so many MB at its folder.
fn region_on(
    world: &World,
    hub: &Node,
    mkfs: &[&str],
    megabytes: u64,
    options: &str,
) -> Option<(Node, Mount)> {
    let image = world.path("image");
    File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
    let image = image.to_str().unwrap();
    if !may("make a file system", mkfs[0], &[&mkfs[1..], &[image]].concat()) {
        return None;
    }
    let mount = Mount::new(world.folder("eu"), "mount", &["-o", options, image])?;
    fs::remove_dir(world.path("eu/lost+found")).ok();
    let mut eu = world.region_unstarted("eu", &hub.url(), &[]);
    eu.start();
    Some((eu, mount))
}

#[test]
fn a_full_disk_keeps_the_old_version_whole_and_is_gone_on_with_when_there_is_room() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("version"), "1").unwrap();
    let mkfs = ["/usr/sbin/mkfs.ext4", "-q", "-F"];
    let Some((eu, _mount)) = region_on(&world, &hub, &mkfs, 24, "loop") else { return };
    wait_equal(&hub.dir, &[&eu.dir]);
    fs::write(eu.dir.join("somebodys.log"), noise(1, 12 << 20)).unwrap();

    assert!(hub.command(&["hold"]).status.success());
    fs::write(hub.dir.join("version"), "2").unwrap();
    fs::write(hub.dir.join("app.bin"), noise(2, 12 << 20)).unwrap();
    let before = hub.commit();
    assert!(hub.command(&["release"]).status.success());
    eventually("it is published", || match hub.commit() {
        commit if commit == before => Err("no new commit".to_owned()),
        _ => Ok(()),
    });
    eventually("the state says so", || {
        let feed = eu.get("/v1/feeds/default");
        let said = feed["detail"].as_str().unwrap_or_default().contains("No space left");
        if feed["state"] == "failing" && said { Ok(()) } else { Err(feed.to_string()) }
    });
    assert_eq!(fs::read(eu.dir.join("version")).unwrap(), b"1", "a mixture of two versions");
    assert!(!eu.dir.join("app.bin").exists());
    fs::remove_file(eu.dir.join("somebodys.log")).unwrap();
    eventually_within(Duration::from_secs(120), "it goes on by itself", || {
        compare(&hub.dir, &eu.dir)
    });
    eventually("all is well", || match eu.get("/v1/feeds/default") {
        feed if feed["state"] == "idle" => Ok(()),
        feed => Err(feed.to_string()),
    });
}

#[test]
fn what_this_user_may_not_write_is_a_fault_of_its_path_and_the_rest_goes_on() {
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    if !may("be somebody else", "setpriv", &[&ids[..], &["true"]].concat()) {
        return;
    }
    let world = World::new();
    let daemon = world.open_to("nobody");
    let hub = world.primary("hub");
    for folder in ["shut", "theirs", "open"] {
        fs::create_dir(hub.dir.join(folder)).unwrap();
        fs::write(hub.dir.join(folder).join("file"), "1").unwrap();
    }
    let mode = |path: &Path, mode| fs::set_permissions(path, PermissionsExt::from_mode(mode));
    mode(&hub.dir.join("shut"), 0o555).unwrap();
    let mut eu = world.region_unstarted("eu", &hub.url(), &[]);
    eu.daemon = daemon;
    eu.wrap = [&["setpriv"][..], &ids].concat().into_iter().map(str::to_owned).collect();
    run("chown", &["nobody:nogroup", eu.dir.to_str().unwrap()]);
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);

    let theirs = eu.dir.join("theirs");
    run("chown", &["root", theirs.to_str().unwrap()]);
    mode(&theirs, 0o755).unwrap();
    // A folder of the feed's without the right to write is no fault: we may give us that right.
    mode(&hub.dir.join("shut"), 0o755).unwrap();
    for folder in ["shut", "theirs", "open"] {
        fs::write(hub.dir.join(folder).join("file"), "2").unwrap();
        fs::write(hub.dir.join(folder).join("new"), "2").unwrap();
    }
    mode(&hub.dir.join("shut"), 0o555).unwrap();
    let is = |name: &str| fs::read(eu.dir.join(name)).is_ok_and(|text| text == b"2");
    eventually("the rest arrives, and the fault has a name", || {
        let feed = eu.get("/v1/feeds/default").to_string();
        let said = feed.contains("theirs/") && feed.contains("Permission denied");
        let here = ["shut/file", "shut/new", "open/file", "open/new"].iter().all(|name| is(name));
        if said && here { Ok(()) } else { Err(feed) }
    });
    assert_eq!(fs::read(theirs.join("file")).unwrap(), b"1");
    let shut = || fs::metadata(eu.dir.join("shut")).unwrap().permissions().mode() & 0o7777;
    eventually(
        "it is shut again",
        || if shut() == 0o555 { Ok(()) } else { Err(shut().to_string()) },
    );
    run("chown", &["nobody", theirs.to_str().unwrap()]);
    eventually_within(Duration::from_secs(120), "it is made good", || compare(&hub.dir, &eu.dir));
    fs::remove_file(hub.dir.join("shut/new")).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
}

#[test]
fn names_that_a_file_system_cannot_tell_apart_are_named_and_nothing_flaps() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("Readme"), "the one").unwrap();
    let mkfs = ["/usr/sbin/mkfs.vfat"];
    let options = "loop,quiet,fmask=0133,iocharset=ascii";
    let Some((mut eu, _mount)) = region_on(&world, &hub, &mkfs, 16, options) else { return };
    let text = |name: &str| fs::read_to_string(eu.dir.join(name)).unwrap_or_default();
    eventually("the first one is there", || match text("Readme") {
        text if text == "the one" => Ok(()),
        text => Err(text),
    });
    fs::write(hub.dir.join("README"), "the other").unwrap();
    fs::write(hub.dir.join("more"), "goes on").unwrap();
    eventually("the twin is named, and the rest goes on", || {
        let feed = eu.get("/v1/feeds/default").to_string();
        let said = feed.contains("README") && feed.contains("keeps only one of it and Readme");
        if said && text("more") == "goes on" { Ok(()) } else { Err(feed) }
    });
    assert_eq!(text("Readme"), "the one");

    // A folder's twin: what it holds must not get into the other.
    fs::create_dir(hub.dir.join("Conf")).unwrap();
    fs::write(hub.dir.join("Conf/same.xml"), "of Conf").unwrap();
    eventually("the first folder", || match text("Conf/same.xml") {
        text if text == "of Conf" => Ok(()),
        text => Err(text),
    });
    fs::create_dir(hub.dir.join("CONF")).unwrap();
    fs::write(hub.dir.join("CONF/same.xml"), "of CONF").unwrap();
    fs::write(hub.dir.join("CONF/other.xml"), "of CONF").unwrap();
    eventually("the twin of the folder is named", || {
        let feed = eu.get("/v1/feeds/default").to_string();
        if feed.contains("keeps only one of it and Conf") { Ok(()) } else { Err(feed) }
    });
    assert_eq!((text("Conf/same.xml").as_str(), text("Conf/other.xml").as_str()), ("of Conf", ""));
    let aside = || contents(&eu.state.join("feeds/default/aside"));
    assert!(aside().is_empty(), "one of the feed's own files went aside: {:?}", aside());

    // Without the twins all is well: what this file system cannot keep, modes and odd seconds, is no
    // drift, whatever it is asked; another content is.
    fs::remove_file(hub.dir.join("README")).unwrap();
    fs::remove_dir_all(hub.dir.join("CONF")).unwrap();
    run("chmod", &["755", hub.dir.join("more").to_str().unwrap()]);
    let idle = |eu: &Node| {
        eventually("all is well", || match eu.get("/v1/feeds/default") {
            feed if feed["state"] == "idle" && feed["have"]["commit"] == hub.commit() => Ok(feed),
            feed => Err(feed.to_string()),
        })
    };
    idle(&eu);
    eu.stop();
    fs::write(eu.dir.join("Conf/same.xml"), "edited").unwrap();
    // Not within the step of its times.
    let edited = File::options().write(true).open(eu.dir.join("Conf/same.xml")).unwrap();
    edited
        .set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1e9 as u64))
        .unwrap();
    drop(edited);
    eu.start();
    eventually("the edit is put right", || match fs::read(eu.dir.join("Conf/same.xml")) {
        Ok(text) if text == b"of Conf" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let feed = idle(&eu);
    assert_eq!(feed["drift"]["count"], 0, "{feed}");
    let runs = eu.get("/v1/runs?limit=100").to_string();
    assert_eq!(runs.matches("\"repair\"").count(), 1, "{runs}");
}

/// Sparse files, links that lead out of the folder, and names that differ only in case.
#[test]
fn odd_entries_arrive_as_they_are_and_are_never_followed() {
    let world = World::new();
    let outside = world.folder("outside");
    fs::write(outside.join("secret"), "mine").unwrap();
    let before = contents(&outside);
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let sparse = File::create(hub.dir.join("sparse.img")).unwrap();
    sparse.set_len(200 << 20).unwrap();
    sparse.write_at(b"the end", (200 << 20) - 7).unwrap();
    drop(sparse);
    for (name, to) in
        [("up", "../../outside"), ("etc", "/etc"), ("gone", "../no/such"), ("self", "self")]
    {
        symlink(to, hub.dir.join(name)).unwrap();
    }
    symlink(&outside, hub.dir.join("out")).unwrap();
    for name in ["Twin", "TWIN", "twin"] {
        fs::write(hub.dir.join(name), name).unwrap();
    }
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(sha256(&eu.dir.join("sparse.img")), sha256(&hub.dir.join("sparse.img")));
    let status = fs::read_to_string(format!("/proc/{}/status", eu.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 120 << 10, "200 MB took {peak} kB of memory");
    for name in ["out/secret", "up/secret", "etc/passwd"] {
        let url = format!("{}/v1/feeds/default/files/{name}", eu.url());
        let output = crate::world::curl(&["-o", "/dev/null", "-w", "%{http_code}", &url]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "404", "{name} leads out");
    }
    fs::remove_file(hub.dir.join("out")).unwrap();
    fs::create_dir(hub.dir.join("out")).unwrap();
    fs::write(hub.dir.join("out/secret"), "the feed's").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(contents(&outside), before);
}
