//! What somebody sees who reads a mirrored directory while it changes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use crate::{
    oracle::{compare, contents, sha256, wait_equal},
    world::{Node, World, eventually},
};

fn full() -> bool {
    std::env::var_os("DEPSYNC_FULL").is_some()
}

/// Files of one version; every one of them says which.
fn write_version(dir: &Path, number: u64) {
    let text = |name: &str| format!("{number} {name}\n").repeat(200);
    for name in ["a", "b", "sub/c", "sub/deep/d"] {
        fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
        let hidden = dir.join(name).with_extension("part");
        fs::write(&hidden, text(name)).unwrap();
        fs::rename(&hidden, dir.join(name)).unwrap();
    }
    if number.is_multiple_of(2) {
        fs::remove_file(dir.join("odd")).ok();
        fs::write(dir.join("even"), text("even")).unwrap();
    } else {
        fs::remove_file(dir.join("even")).ok();
        fs::write(dir.join("odd"), text("odd")).unwrap();
    }
}

/// One commit for a version.
fn publish(hub: &Node, number: u64) {
    assert!(hub.command(&["hold"]).status.success());
    write_version(&hub.dir, number);
    let before = hub.commit();
    assert!(hub.command(&["release"]).status.success());
    eventually("the version is published", || match hub.commit() {
        commit if commit == before => Err("no new commit".into()),
        _ => Ok(()),
    });
}

/// Which version a file's text is of, if it is whole.
fn version_of(path: &Path, text: &str) -> Result<u64, String> {
    let first = text.lines().next().unwrap_or_default();
    let number = first.split(' ').next().and_then(|word| word.parse().ok());
    let whole = text.lines().count() == 200 && text.lines().all(|line| line == first);
    number.filter(|_| whole).ok_or_else(|| format!("{}: torn: {first:?}", path.display()))
}

/// All files of a release, read by way of one resolution of the link.
fn view(link: &Path) -> Result<BTreeMap<PathBuf, u64>, String> {
    let root = fs::canonicalize(link).map_err(|error| format!("the link: {error}"))?;
    let (mut found, mut todo) = (BTreeMap::new(), vec![root.clone()]);
    while let Some(dir) = todo.pop() {
        let entries = fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        for entry in entries {
            let path = entry.map_err(|error| error.to_string())?.path();
            if path.is_dir() {
                todo.push(path);
                continue;
            }
            let text = fs::read_to_string(&path);
            let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
            let version = version_of(&path, &text)?;
            found.insert(path.strip_prefix(&root).unwrap().to_owned(), version);
        }
    }
    Ok(found)
}

/// Calls `read` on two threads until `work` is done; its first error is the test's.
fn under_readers(read: impl Fn() -> Result<(), String> + Sync, work: impl FnOnce()) -> u64 {
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let fault = Mutex::new(None);
    std::thread::scope(|scope| {
        let reader = || {
            while !stop.load(Ordering::Relaxed) {
                match read() {
                    Ok(()) => drop(reads.fetch_add(1, Ordering::Relaxed)),
                    Err(reason) => drop(fault.lock().unwrap().get_or_insert(reason)),
                }
                std::thread::park_timeout(std::time::Duration::from_millis(1));
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        work();
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    let fault = fault.into_inner().unwrap();
    assert_eq!(fault, None);
    reads.into_inner()
}

fn snapshot_region(world: &World, upstream: &Node, more: &str) -> (Node, PathBuf) {
    let link = world.path("current");
    let mut eu = world.configured(
        "eu",
        "[region]\nname = \"eu\"",
        &format!("upstream = {:?}\ncheckout = \"snapshot\"\n{more}", upstream.url()),
    );
    let config = eu.state.with_file_name("eu.toml");
    let text = fs::read_to_string(&config).unwrap();
    let dir = format!("dir = {:?}", eu.dir);
    fs::write(&config, text.replace(&dir, &format!("dir = {link:?}"))).unwrap();
    eu.start();
    (eu, link)
}

/// Case F1, first half: each view is exactly one commit, and nothing is missing.
#[test]
fn a_reader_of_snapshots_sees_one_commit_at_any_time() {
    let switches = if full() { 1_000 } else { 40 };
    let world = World::new();
    let hub = world.primary("hub");
    publish(&hub, 1);
    let (eu, link) = snapshot_region(&world, &hub, "releases = 3");
    eventually("the first release", || view(&link).map(drop));
    let read = || {
        let view = view(&link)?;
        let mut versions: Vec<u64> = view.values().copied().collect();
        versions.dedup();
        let names = ["a", "b", "sub/c", "sub/deep/d"].map(PathBuf::from);
        let odd = if versions[0].is_multiple_of(2) { "even" } else { "odd" };
        let complete = names.iter().all(|name| view.contains_key(name))
            && view.contains_key(Path::new(odd))
            && view.len() == 5;
        if versions.len() == 1 && complete { Ok(()) } else { Err(format!("a mixture: {view:?}")) }
    };
    let reads = under_readers(read, || {
        for number in 2..=switches {
            publish(&hub, number);
            eventually("it is shown", || match view(&link)?.values().next() {
                Some(shown) if *shown == number => Ok(()),
                shown => Err(format!("{shown:?}")),
            });
        }
    });
    assert!(reads >= switches, "only {reads} views in {switches} switches");
    compare(&hub.dir, &fs::canonicalize(&link).unwrap()).unwrap();
    let releases = fs::read_dir(eu.state.join("feeds/default/releases")).unwrap().count();
    assert!(releases >= 3, "{releases} releases are left");
    eu.fsck();
}

/// Case F1, second half: every file is whole, old or new.
#[test]
fn a_reader_in_place_sees_whole_files_at_any_time() {
    let versions = if full() { 1_000 } else { 40 };
    let world = World::new();
    let hub = world.primary("hub");
    publish(&hub, 1);
    let eu = world.region("eu", &hub);
    wait_equal(&hub.dir, &[&eu.dir]);
    let names = ["a", "b", "sub/c", "sub/deep/d"];
    let newest = AtomicU64::new(1);
    let read = || {
        let published = newest.load(Ordering::SeqCst);
        for name in names {
            let path = eu.dir.join(name);
            let text = fs::read_to_string(&path);
            let text = text.map_err(|error| format!("{}: {error}", path.display()))?;
            let version = version_of(&path, &text)?;
            if version + 1 < published {
                return Err(format!("{name} is of {version}, and {published} was long there"));
            }
        }
        Ok(())
    };
    let reads = under_readers(read, || {
        for number in 2..=versions {
            publish(&hub, number);
            eventually("it is in place", || {
                let text = fs::read_to_string(eu.dir.join("sub/deep/d"));
                let have = eu.get("/v1/feeds/default")["have"]["commit"] == hub.commit().as_str();
                let right = text.is_ok_and(|text| text.starts_with(&format!("{number} ")));
                if have && right { Ok(()) } else { Err("not yet".into()) }
            });
            newest.store(number, Ordering::SeqCst);
        }
    });
    assert!(reads >= versions, "only {reads} reads of {versions} versions");
    compare(&hub.dir, &eu.dir).unwrap();
}

#[test]
fn linked_snapshots_share_what_is_the_same_and_a_restart_goes_on() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("same"), "for ever").unwrap();
    publish(&hub, 1);
    let (mut eu, link) = snapshot_region(&world, &hub, "link = true");
    eventually("the first release", || compare(&hub.dir, &link));
    let inode = |name: &str| fs::metadata(link.join(name)).unwrap().ino();
    let (same, other) = (inode("same"), inode("a"));
    publish(&hub, 2);
    eventually("the second release", || compare(&hub.dir, &link));
    assert_eq!(inode("same"), same);
    assert_ne!(inode("a"), other);
    eu.kill();
    publish(&hub, 3);
    eu.start();
    eventually("the third release", || compare(&hub.dir, &link));
}

#[test]
fn what_lies_where_the_link_belongs_is_named_and_stays() {
    let world = World::new();
    let hub = world.primary("hub");
    publish(&hub, 1);
    let link = world.folder("current");
    fs::write(link.join("precious"), "x").unwrap();
    let feed = format!("upstream = {:?}\ncheckout = \"snapshot\"", hub.url());
    let mut eu = world.configured("eu", "[region]\nname = \"eu\"", &feed);
    let config = eu.state.with_file_name("eu.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace(&format!("dir = {:?}", eu.dir), &format!("dir = {link:?}")))
        .unwrap();
    for kind in ["a directory", "a file", "a link"] {
        eu.spawn();
        assert_eq!(eu.wait_exit().code(), Some(78), "{}", eu.log_text());
        let said = eu.log_text();
        assert!(said.contains(kind) && said.contains("move it away"), "{kind}: {said}");
        match kind {
            "a directory" => {
                assert_eq!(fs::read(link.join("precious")).unwrap(), b"x");
                fs::remove_dir_all(&link).unwrap();
                fs::write(&link, "a file").unwrap();
            }
            "a file" => {
                assert_eq!(fs::read(&link).unwrap(), b"a file");
                fs::remove_file(&link).unwrap();
                symlink("/nowhere", &link).unwrap();
            }
            _ => {
                assert_eq!(fs::read_link(&link).unwrap(), Path::new("/nowhere"));
                fs::remove_file(&link).unwrap();
            }
        }
    }
    eu.start();
    eventually("it is shown", || compare(&hub.dir, &link));
}

/// Case C5, and any other change of type, with the targets of links outside untouched.
#[test]
fn a_folder_that_becomes_a_link_arrives_as_a_link_and_its_target_is_untouched() {
    let world = World::new();
    let outside = world.folder("outside");
    fs::write(outside.join("keep"), "mine").unwrap();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    fs::create_dir_all(hub.dir.join("apps/one")).unwrap();
    fs::write(hub.dir.join("apps/one/keep"), "the feed's").unwrap();
    fs::write(hub.dir.join("other"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = contents(&outside);
    fs::rename(hub.dir.join("apps"), world.path("away")).unwrap();
    symlink(&outside, hub.dir.join("apps")).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(fs::read_link(eu.dir.join("apps")).unwrap(), outside);
    fs::remove_file(hub.dir.join("apps")).unwrap();
    fs::rename(world.path("away"), hub.dir.join("apps")).unwrap();
    fs::write(hub.dir.join("apps/one/more"), "y").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(contents(&outside), before);

    // Somebody swaps a folder of the mirror for a link while it is changed.
    fs::rename(eu.dir.join("apps"), world.path("mirror-away")).unwrap();
    symlink(&outside, eu.dir.join("apps")).unwrap();
    fs::write(hub.dir.join("apps/one/keep"), "changed").unwrap();
    fs::write(hub.dir.join("other"), "the rest goes on").unwrap();
    eventually("the rest arrives", || match fs::read(eu.dir.join("other")).unwrap() {
        text if text == b"the rest goes on" => Ok(()),
        _ => Err(eu.get("/v1/feeds/default").to_string()),
    });
    assert_eq!(contents(&outside), before, "something was written through the link");
}

/// Case F3: whoever sees a file sees it with its final mode and time.
#[test]
fn mode_and_time_are_final_from_the_first_instant() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let put = |number: u32| {
        let (hidden, path) = (hub.dir.join("secret.part"), hub.dir.join("secret"));
        fs::write(&hidden, format!("{number}")).unwrap();
        fs::set_permissions(&hidden, PermissionsExt::from_mode(0o600)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_500_000_000, 123_456_789);
        fs::File::options().write(true).open(&hidden).unwrap().set_modified(time).unwrap();
        fs::rename(&hidden, &path).unwrap();
    };
    put(0);
    wait_equal(&hub.dir, &[&eu.dir]);
    let read = || {
        let found = fs::metadata(eu.dir.join("secret")).map_err(|error| error.to_string())?;
        let right = found.mode() & 0o7777 == 0o600
            && (found.mtime(), found.mtime_nsec()) == (1_500_000_000, 123_456_789);
        if right { Ok(()) } else { Err(format!("{found:?}")) }
    };
    under_readers(read, || {
        for number in 1..20 {
            put(number);
            eventually("it arrives", || match fs::read_to_string(eu.dir.join("secret")).unwrap() {
                text if text == number.to_string() => Ok(()),
                other => Err(other),
            });
        }
    });
}

/// Case F4: what git cannot hold.
#[test]
fn every_kind_of_entry_arrives_as_it_was() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    fs::create_dir_all(hub.dir.join("shared/empty")).unwrap();
    fs::set_permissions(hub.dir.join("shared"), PermissionsExt::from_mode(0o2775)).unwrap();
    for (name, mode) in [("private", 0o600), ("tool", 0o755), ("read-only", 0o444)] {
        fs::write(hub.dir.join(name), name).unwrap();
        fs::set_permissions(hub.dir.join(name), PermissionsExt::from_mode(mode)).unwrap();
    }
    fs::create_dir(hub.dir.join("closed")).unwrap();
    fs::write(hub.dir.join("closed/inside"), "1").unwrap();
    fs::set_permissions(hub.dir.join("closed"), PermissionsExt::from_mode(0o555)).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    fs::set_permissions(hub.dir.join("closed"), PermissionsExt::from_mode(0o755)).unwrap();
    fs::write(hub.dir.join("closed/inside"), "2").unwrap();
    fs::set_permissions(hub.dir.join("closed"), PermissionsExt::from_mode(0o555)).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(sha256(&eu.dir.join("closed/inside")), sha256(&hub.dir.join("closed/inside")));
    fs::set_permissions(hub.dir.join("closed"), PermissionsExt::from_mode(0o755)).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
}

fn region(world: &World, name: &str, upstream: &Node, more: &str) -> Node {
    let feed = format!("upstream = {:?}\n{more}", upstream.url());
    let mut node = world.configured(name, &format!("[region]\nname = {name:?}"), &feed);
    node.start();
    node
}

#[test]
fn drift_is_put_right_or_told_and_what_is_not_the_feeds_stays() {
    let world = World::new();
    let mut hub = world.configured("hub", "", "profile = \"tomcat\"");
    hub.start();
    for name in ["app.war", "conf.xml", "gone.txt", "deep.txt"] {
        fs::write(hub.dir.join(name.replace(".war", ".txt")), name).unwrap();
    }
    let war = "/usr/share/java/tomcat10-catalina.jar";
    fs::copy(war, hub.dir.join("hello.war")).unwrap();
    let eu = region(&world, "eu", &hub, "");
    let us = region(&world, "us", &hub, "drift = \"report\"");
    wait_equal(&hub.dir, &[&eu.dir, &us.dir]);
    eventually("both have looked at everything", || {
        for node in [&eu, &us] {
            let feed = node.get("/v1/feeds/default");
            if feed["state"] != "idle" {
                return Err(feed.to_string());
            }
        }
        Ok(())
    });
    for node in [&eu, &us] {
        // What the server itself writes, and what nobody asked about.
        fs::create_dir_all(node.dir.join("hello/WEB-INF")).unwrap();
        fs::write(node.dir.join("hello/WEB-INF/web.xml"), "exploded").unwrap();
        fs::write(node.dir.join("extra.log"), "extra").unwrap();
        fs::write(node.dir.join("conf.xml"), "edited by hand").unwrap();
        fs::remove_file(node.dir.join("gone.txt")).unwrap();
        fs::set_permissions(node.dir.join("deep.txt"), PermissionsExt::from_mode(0o777)).unwrap();
    }
    eventually("eu is put right", || {
        let same =
            |name: &str| fs::read(eu.dir.join(name)).ok() == fs::read(hub.dir.join(name)).ok();
        let mode = fs::metadata(eu.dir.join("deep.txt")).unwrap().mode() & 0o777;
        if same("conf.xml") && same("gone.txt") && mode != 0o777 {
            Ok(())
        } else {
            Err(eu.log_text())
        }
    });
    let aside = contents(&eu.state.join("feeds/default/aside"));
    let kept = aside.keys().find(|path| path.ends_with("conf.xml")).expect("their version is kept");
    let kept = fs::read(eu.state.join("feeds/default/aside").join(kept)).unwrap();
    assert_eq!(kept, b"edited by hand");
    assert!(eu.dir.join("hello/WEB-INF/web.xml").exists() && eu.dir.join("extra.log").exists());
    eventually("us tells and changes nothing", || {
        let feed = us.get("/v1/feeds/default");
        let told = feed["drift"]["paths"].to_string();
        let all = ["conf.xml", "gone.txt", "deep.txt"].iter().all(|name| told.contains(name));
        if all && feed["drift"]["count"] == 3 { Ok(()) } else { Err(feed.to_string()) }
    });
    assert_eq!(fs::read(us.dir.join("conf.xml")).unwrap(), b"edited by hand");
    assert!(!us.dir.join("gone.txt").exists());

    // Somebody insists: after the third time it is left alone, and said.
    for round in 0..6 {
        fs::write(eu.dir.join("conf.xml"), format!("again {round}")).unwrap();
        eventually("seen", || {
            let told = eu.get("/v1/feeds/default")["drift"]["paths"].to_string();
            let right = fs::read(eu.dir.join("conf.xml")).unwrap() == b"conf.xml";
            if right || told.contains("conf.xml") { Ok(()) } else { Err(told) }
        });
    }
    let feed = eu.get("/v1/feeds/default");
    assert!(
        feed["drift"]["paths"].to_string().contains("three times")
            || feed["drift"]["paths"].to_string().contains("3 times"),
        "{feed}"
    );
    fs::write(hub.dir.join("conf.xml"), "the feed changes it").unwrap();
    eventually("the feed's change wins", || match fs::read(eu.dir.join("conf.xml")).unwrap() {
        text if text == b"the feed changes it" => Ok(()),
        _ => Err(eu.get("/v1/feeds/default").to_string()),
    });
}

#[test]
fn a_scheduled_checkout_fetches_at_once_and_waits_for_its_time_or_for_sync() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("first"), "1").unwrap();
    let eu = region(&world, "eu", &hub, "checkout_at = \"0 0 0 1 1 *\"");
    wait_equal(&hub.dir, &[&eu.dir]);
    fs::write(hub.dir.join("second"), "2").unwrap();
    eventually("it is fetched and waits", || {
        let feed = eu.get("/v1/feeds/default");
        let here =
            feed["fetched"]["commit"] == hub.commit().as_str() && feed["fetched"] != feed["have"];
        let said = feed["detail"].as_str().unwrap_or_default().contains("checkout_at");
        if here && said { Ok(()) } else { Err(feed.to_string()) }
    });
    assert!(!eu.dir.join("second").exists());
    assert!(eu.command(&["sync"]).status.success());
    wait_equal(&hub.dir, &[&eu.dir]);
    // Every second, it comes by itself.
    let us = region(&world, "us", &hub, "checkout_at = \"* * * * * *\"");
    wait_equal(&hub.dir, &[&us.dir]);
    fs::write(hub.dir.join("third"), "3").unwrap();
    wait_equal(&hub.dir, &[&us.dir]);
    assert!(!eu.dir.join("third").exists());
}

/// Nothing tells that it differs but its bytes: the daemon was not there, size and time are the same.
#[test]
fn at_the_hour_of_maintenance_every_file_is_read_and_compared() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("same"), "as it was").unwrap();
    fs::write(hub.dir.join("other"), "untouched").unwrap();
    let keys = "[region]\nname = \"eu\"\n[maintenance]\nschedule = \"* * * * * *\"";
    let mut eu = world.configured("eu", keys, &format!("upstream = {:?}", hub.url()));
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    eu.stop();
    let path = eu.dir.join("same");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "as it IS!").unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    eu.start();
    wait_equal(&hub.dir, &[&eu.dir]);
    let aside = contents(&eu.state.join("feeds/default/aside"));
    assert!(aside.keys().any(|path| path.ends_with("same")), "their version is kept: {aside:?}");
    eventually("it is said", || {
        let feed = eu.get("/v1/feeds/default");
        let done = &feed["verified"];
        if done["files"] == 2 && done["differing"] == 0 { Ok(()) } else { Err(feed.to_string()) }
    });
}
