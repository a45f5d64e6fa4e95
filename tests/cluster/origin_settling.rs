//! Whole files only: slow writers, cut archives, temporary names, times put back.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    sync::mpsc::{TryRecvError, channel},
    time::{Duration, SystemTime},
};

use crate::{
    oracle::{compare, contents, wait_equal},
    origin::{JAR, Writer, pace, run, scale},
    world::{Node, World, eventually},
};

/// A file that somebody has open for writing is not in the feed, whatever is asked.
fn is_absent(hub: &Node, path: &str) {
    hub.sync();
    assert!(!hub.ever().iter().any(|ever| ever == path), "{path} was published half-written");
}

#[test]
fn a1_a_slow_writer_is_published_once_and_whole() {
    let (steps, pause) = scale((12, 50), (120, 500));
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("other"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = hub.commits();
    let mut war = Writer::create(&hub.dir.join("app.bin"));
    for step in 0..steps {
        war.write(&vec![step as u8; 1 << 20]);
        pace(pause);
        if step % 4 == 0 {
            is_absent(&hub, "app.bin");
        }
    }
    let why = hub.wait_held("app.bin");
    assert!(why.contains("writing"), "{why}");
    assert!(hub.tell(&["status"]).contains("app.bin"));
    assert!(hub.metric("depsync_feed_held") >= 1.0);
    let counted = "depsync_feed_held_by_cause{feed=\"default\",cause=\"writing\"} 1";
    assert!(hub.metrics().lines().any(|line| line == counted), "{}", hub.metrics());
    drop(war);
    wait_equal(&hub.dir, &[&eu.dir]);
    hub.sync();
    assert_eq!(hub.commits(), before + 1);
    hub.feed_is("nothing is held", |feed| (feed["held_count"] == 0).then_some(()));
}

#[test]
fn a2_an_archive_closed_in_the_middle_is_held_until_it_is_whole_or_approved() {
    let world = World::new();
    let hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let jar = fs::read(JAR).unwrap();
    let (first, rest) = jar.split_at(jar.len() / 2);
    for name in ["app.war", "cut.war"] {
        fs::write(hub.dir.join(name), first).unwrap();
    }
    fs::write(hub.dir.join("other"), "goes on").unwrap();
    let why = hub.wait_held("app.war");
    assert!(why.contains("archive"), "{why}");
    hub.wait_held("cut.war");
    hub.feed_is("the other file", |feed| (feed["files"] == 1).then_some(()));
    let status = hub.tell(&["status"]);
    assert!(status.contains("app.war") && status.contains("no end"), "{status}");
    is_absent(&hub, "app.war");

    let mut writer = Writer::append(&hub.dir.join("app.war"));
    writer.write(rest);
    drop(writer);
    eventually("the whole archive arrives", || match fs::read(eu.dir.join("app.war")) {
        Ok(bytes) if bytes == jar => Ok(()),
        other => Err(format!("{:?}", other.map(|bytes| bytes.len()))),
    });
    eventually("its age is counted", || match hub.metric("depsync_feed_held_oldest_seconds") {
        age if age >= 1.0 => Ok(()),
        age => Err(age.to_string()),
    });
    let refused = hub.command(&["approve", "app.war"]);
    assert!(!refused.status.success(), "it is not held any more");
    hub.tell(&["approve", "cut.war"]);
    wait_equal(&hub.dir, &[&eu.dir]);
    assert_eq!(hub.feed()["held_count"], 0);
}

#[test]
fn a3_a_file_preallocated_and_then_filled_is_published_when_it_is_full() {
    let world = World::new();
    let hub = world.primary("hub");
    let jar = fs::read(JAR).unwrap();
    // By one who keeps it open, and by one who comes back.
    let open = Writer::create(&hub.dir.join("open.bin"));
    rustix::fs::fallocate(open.file(), rustix::fs::FallocateFlags::empty(), 0, 3_000_000).unwrap();
    File::create(hub.dir.join("closed.war")).unwrap().set_len(jar.len() as u64).unwrap();
    for part in 0..10 {
        open.file().write_all(&vec![part; 300_000]).unwrap();
        pace(20);
    }
    hub.wait_held("closed.war");
    is_absent(&hub, "open.bin");
    is_absent(&hub, "closed.war");
    drop(open);
    let mut closed = File::options().write(true).open(hub.dir.join("closed.war")).unwrap();
    closed.write_all(&jar).unwrap();
    drop(closed);
    eventually("both are published", || {
        match (hub.published("open.bin"), hub.published("closed.war")) {
            (Some(open), Some(closed)) if closed == jar => {
                assert_eq!(open.len(), 3_000_000);
                Ok(())
            }
            _ => Err(hub.feed().to_string()),
        }
    });
    assert_eq!(hub.ever().len(), 2);
}

#[test]
fn a4_one_file_rewritten_for_ever_does_not_hold_up_a_hundred() {
    let world = World::new();
    let hub = world.primary("hub");
    std::thread::scope(|scope| {
        let (done, end) = channel::<()>();
        let churn = hub.dir.join("churn");
        scope.spawn(move || {
            for number in 0_u64.. {
                fs::write(&churn, number.to_string().repeat(1000)).unwrap();
                if end.try_recv() != Err(TryRecvError::Empty) {
                    return;
                }
            }
        });
        for number in 0..100 {
            fs::write(hub.dir.join(format!("f{number}")), "x").unwrap();
        }
        hub.feed_is("the hundred", |feed| (feed["files"].as_u64()? >= 100).then_some(()));
        drop(done);
    });
    hub.wait_published();
}

#[test]
fn a5_a_temporary_name_is_renamed_and_makes_one_commit() {
    let world = World::new();
    let hub = world.primary("hub");
    let before = hub.commits();
    let names = ["app.war.part", "app.war.filepart", ".app.war.Xy3dR9", "app.war.crdownload"];
    for name in names {
        fs::copy(JAR, hub.dir.join(name)).unwrap();
        hub.sync();
        fs::remove_file(hub.dir.join("app.war")).ok();
        fs::rename(hub.dir.join(name), hub.dir.join("app.war")).unwrap();
        eventually("the archive", || hub.published("app.war").ok_or("not yet".to_owned()));
    }
    hub.sync();
    assert_eq!(hub.ever(), ["app.war"], "a temporary name was published");
    // The same content again is no change; but where a sync fell between removal and rename.
    assert!(hub.commits() - before < names.len() as u64 * 2, "{}", hub.commits());
    let first = hub.git(&["log", "--reverse", "--format=%s", "main"]);
    assert_eq!(first.lines().next(), Some("Update app.war"));
}

#[test]
fn a6_the_same_size_with_its_time_put_back_is_still_seen() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    let path = hub.dir.join("config.xml");
    let old = SystemTime::now() - Duration::from_secs(100_000);
    let write = |content: &str| {
        let mut file =
            File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.set_modified(old).unwrap();
    };
    for (round, content) in ["one", "two", "six", "ten"].into_iter().enumerate() {
        let down = round >= 2;
        if down {
            hub.stop();
        }
        write(content);
        if down {
            hub.start();
        }
        eventually(content, || match fs::read_to_string(eu.dir.join("config.xml")) {
            Ok(text) if text == content => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
}

#[test]
fn a7_what_changes_while_it_is_read_is_never_torn() {
    let versions = scale(15, 200);
    let world = World::new();
    let hub = world.primary("hub");
    let (small, large) = (60_000, 2_500_000);
    std::thread::scope(|scope| {
        let (done, end) = channel::<()>();
        let dir = hub.dir.clone();
        scope.spawn(move || {
            for number in 0_u8..=255 {
                // Written over in place, by parts: never whole until it is closed.
                for (name, size) in [("small", small), ("large", large)] {
                    let mut file = File::options()
                        .create(true)
                        .truncate(false)
                        .write(true)
                        .open(dir.join(name))
                        .unwrap();
                    for _ in 0..20 {
                        file.write_all(&vec![number; size / 20]).unwrap();
                    }
                }
                if end.try_recv() != Err(TryRecvError::Empty) {
                    return;
                }
                pace(5);
            }
        });
        hub.feed_is("many versions", |feed| (feed["seq"].as_u64()? >= versions).then_some(()));
        drop(done);
    });
    hub.sync();
    let commits = hub.git(&["log", "--format=%H", "main"]);
    let mut seen = BTreeSet::new();
    for commit in commits.lines() {
        for (name, size) in [("small", small), ("large", large)] {
            let url = format!("{}/v1/feeds/default/at/{commit}/{name}", hub.url());
            let bytes = crate::world::curl(&["-f", &url]).stdout;
            if let Some(first) = bytes.first() {
                let whole = bytes.len() == size && bytes.iter().all(|byte| byte == first);
                assert!(whole, "{commit} has {name} torn");
                seen.insert((name, *first));
            }
        }
    }
    assert!(seen.len() > 5, "{seen:?}");
}

#[test]
fn a8_a_touch_makes_no_commit() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("file"), "x").unwrap();
    fs::create_dir(hub.dir.join("folder")).unwrap();
    hub.sync();
    let before = hub.commit();
    for _ in 0..5 {
        run(
            "touch",
            &[hub.dir.join("file").to_str().unwrap(), hub.dir.join("folder").to_str().unwrap()],
        );
        fs::write(hub.dir.join("file"), "x").unwrap();
        hub.sync();
    }
    assert_eq!(hub.commit(), before);
}

#[test]
fn a10_times_set_after_the_close_agree_everywhere_and_make_no_loop() {
    let world = World::new();
    let hub = world.primary("hub");
    let (eu, us) = (world.region("eu", &hub), world.region("us", &hub));
    let old = SystemTime::now() - Duration::from_secs(1_000_000);
    // As WinSCP and scp -p do it: the time comes right after the content.
    for number in 0..5 {
        let path = hub.dir.join(format!("alone-{number}"));
        fs::write(&path, "one").unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
        hub.sync();
        assert!(hub.commits() <= number + 1, "a time alone made a commit");
    }
    eventually("all five", || match contents(&eu.dir).len() {
        5 => Ok(()),
        other => Err(other.to_string()),
    });
    let timely = (0..5).filter(|number| {
        let mirrored = fs::metadata(eu.dir.join(format!("alone-{number}"))).unwrap();
        mirrored.modified().unwrap() == old
    });
    // Only where this test was kept waiting between two calls may the time have come too late.
    assert!(timely.count() >= 3, "the time that followed the content was not recorded");

    run("unzip", &["-q", JAR, "-d", hub.dir.join("exploded").to_str().unwrap()]);
    run("cp", &["-rp", "/usr/share/tomcat10-examples", hub.dir.join("examples").to_str().unwrap()]);
    hub.sync();
    eventually("both mirrors agree", || {
        compare(&eu.dir, &us.dir)?;
        let (ours, theirs) = (contents(&hub.dir), contents(&eu.dir));
        if ours.keys().eq(theirs.keys()) { Ok(()) } else { Err(format!("{}", theirs.len())) }
    });
    let settled = hub.commit();
    hub.sync();
    hub.sync();
    assert_eq!(hub.commit(), settled, "it goes round");
    assert!(hub.commits() < 60, "{}", hub.commits());
}

#[test]
fn a_hold_makes_a_deployment_of_many_files_one_commit() {
    let world = World::new();
    let mut hub = world.primary("hub");
    fs::write(hub.dir.join("before"), "x").unwrap();
    hub.sync();
    hub.tell(&["hold"]);
    for number in 0..30 {
        fs::write(hub.dir.join(format!("f{number}")), "x").unwrap();
        if number == 15 {
            hub.sync();
            hub.kill();
            hub.start();
        }
    }
    hub.sync();
    hub.feed_is("it says so", |feed| {
        let detail = feed["detail"].as_str()?;
        (feed["state"] == "held" && detail.contains("held by")).then_some(())
    });
    let busy = Writer::create(&hub.dir.join("busy"));
    hub.wait_held("busy");
    hub.tell(&["release"]);
    assert_eq!(hub.commits(), 1, "one path is not ready");
    drop(busy);
    hub.wait_published();
    hub.sync();
    assert_eq!(hub.commits(), 2);

    fs::write(hub.dir.join(".depsync-hold"), "").unwrap();
    for number in 0..10 {
        fs::write(hub.dir.join(format!("g{number}")), "x").unwrap();
        hub.sync();
    }
    assert_eq!(hub.commits(), 2);
    fs::remove_file(hub.dir.join(".depsync-hold")).unwrap();
    hub.wait_published();
    hub.sync();
    assert_eq!(hub.commits(), 3);
}

#[test]
fn a_burst_of_ten_thousand_files_is_few_commits_and_none_is_lost() {
    let world = World::new();
    let hub = world.primary("hub");
    let source = world.folder("source");
    crate::origin::tree(&source, 10_000);
    run("cp", &["-r", source.to_str().unwrap(), hub.dir.join("copied").to_str().unwrap()]);
    hub.wait_published();
    assert!(hub.commits() <= 60, "{} commits", hub.commits());
    hub.fsck();
}
