//! Nothing is lost: events that overflow, watches that run out, file systems that say nothing or have
//! coarse times, and changes made while nobody looked.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    oracle::wait_equal,
    origin::{may, pace, run, scale, tree},
    world::{Node, World, eventually},
};

/// A mounted file system, unmounted at the end.
pub struct Mount(PathBuf);

impl Mount {
    /// None where this machine does not let us mount.
    pub fn new(at: PathBuf, program: &str, arguments: &[&str]) -> Option<Self> {
        let arguments = [arguments, &[at.to_str().unwrap()]].concat();
        may("mount", program, &arguments).then(|| Mount(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn b1_an_overflow_of_the_event_queue_is_counted_and_loses_nothing() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::create_dir(hub.dir.join("flat")).unwrap();
    fs::write(hub.dir.join("flat/goes"), "x").unwrap();
    hub.wait_published();
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let files = queue.trim().parse::<usize>().unwrap() / 2 + 500;
    hub.meanwhile(|| {
        for number in 0..files {
            fs::write(hub.dir.join(format!("flat/f{number}")), "x").unwrap();
        }
        fs::create_dir_all(hub.dir.join("new/folder")).unwrap();
        fs::write(hub.dir.join("new/folder/file"), "x").unwrap();
        fs::remove_file(hub.dir.join("flat/goes")).unwrap();
    });
    hub.wait_published();
    let rescans = hub.feed()["rescans"].as_u64().unwrap();
    assert!(rescans >= 1);
    assert_eq!(hub.metric("depsync_feed_rescans"), rescans as f64);
    fs::write(hub.dir.join("new/folder/later"), "by its event").unwrap();
    hub.wait_published();
}

#[test]
fn b2_too_few_watches_are_said_with_the_sysctl_and_the_rest_is_polled() {
    let limit = "/proc/sys/user/max_inotify_watches";
    let few = format!("echo 12 > {limit} && exec \"$0\" \"$@\"");
    let wrap = ["unshare", "--user", "--map-root-user", "sh", "-c", &few];
    if !may("limit watches", wrap[0], &[&wrap[1..], &["true"]].concat()) {
        return;
    }
    let world = World::new();
    let mut hub = world.configured("hub", "poll = '1s'", "");
    tree(&hub.dir, 500);
    hub.wrap = wrap.map(str::to_owned).to_vec();
    hub.start();
    hub.wait_published();
    let folders = 5 * 11 + 1;
    let detail = hub.feed_is("it says so", |feed| {
        let detail = feed["detail"].as_str()?.to_owned();
        detail.contains(&format!("needs {folders}")).then_some(detail)
    });
    assert!(
        detail.contains("fs.inotify.max_user_watches") && detail.contains("every 1s"),
        "{detail}"
    );
    let health = crate::world::curl(&[&format!("{}/healthz", hub.url())]).stdout;
    let health = String::from_utf8(health).unwrap();
    assert!(health.contains("degraded") && health.contains("max_user_watches"), "{health}");
    for number in [0, 123, 250, 499] {
        let path = format!("d{}/e{}/f{number}", number / 100, number / 10 % 10);
        fs::write(hub.dir.join(path), "changed").unwrap();
    }
    fs::create_dir_all(hub.dir.join("d4/e9/new")).unwrap();
    fs::write(hub.dir.join("d4/e9/new/file"), "x").unwrap();
    fs::remove_file(hub.dir.join("d3/e3/f330")).unwrap();
    hub.wait_published();
}

#[test]
fn b3_folders_filled_faster_than_they_are_watched_lose_nothing() {
    let count = scale(1_500, 10_000);
    let world = World::new();
    let hub = world.primary("hub");
    let script = "i=0; while [ $i -lt $1 ]; do d=r$((i % 10))/a$i/b/c; \
                  mkdir -p $d && echo $i > $d/f; i=$((i+1)); done";
    let made = Command::new("sh")
        .args(["-c", script, "sh", &count.to_string()])
        .current_dir(&hub.dir)
        .status();
    assert!(made.unwrap().success());
    hub.wait_published();
    assert_eq!(hub.feed()["files"], count);
    assert_eq!(hub.feed()["rescans"], 0, "found by events alone");
}

#[test]
fn b4_whatever_changed_while_it_was_down_is_published_at_its_start() {
    let world = World::new();
    let mut hub = world.primary("hub");
    let eu = world.region("eu", &hub);
    tree(&hub.dir, 60);
    wait_equal(&hub.dir, &[&eu.dir]);
    let before = hub.commits();
    for kill in [false, true] {
        if kill {
            hub.kill()
        } else {
            hub.stop()
        }
        fs::write(hub.dir.join("d0/e0/f0"), format!("changed {kill}")).unwrap();
        fs::remove_file(hub.dir.join(format!("d0/e1/f1{}", u8::from(kill)))).unwrap();
        fs::rename(hub.dir.join("d0/e2"), hub.dir.join(format!("moved-{kill}"))).unwrap();
        fs::create_dir_all(hub.dir.join("d0/e2")).unwrap();
        fs::write(hub.dir.join("d0/e2/new"), format!("{kill}")).unwrap();
        hub.start();
        wait_equal(&hub.dir, &[&eu.dir]);
    }
    hub.sync();
    assert_eq!(hub.commits(), before + 2, "each absence is one commit");
}

#[test]
fn b5_our_own_scan_makes_no_events_and_h11_an_idle_feed_costs_nothing() {
    let (files, seconds) = scale((3_000, 3), (100_000, 30));
    let world = World::new();
    let mut hub = world.primary_unstarted("hub", &[]);
    tree(&hub.dir, files);
    hub.start();
    hub.sync();
    hub.stop();

    // The content is known: a start and a scan open no file, and no event comes of them.
    let trace = world.path("trace");
    let trace_to = trace.to_str().unwrap();
    // `-D`: the daemon stays our child, and what ends it is its own stop.
    hub.wrap = [
        "strace",
        "-D",
        "-f",
        "-y",
        "-e",
        "trace=read,openat2,openat,inotify_add_watch",
        "-o",
        trace_to,
    ]
    .map(str::to_owned)
    .to_vec();
    hub.start();
    hub.sync();
    hub.sync();
    let pid = hub.pid().to_string();
    let is_last = |line: &str| line.split(' ').next() == Some(&pid) && line.contains("+++ exited");
    hub.stop();
    let text = eventually("the trace is complete", || {
        let text = fs::read_to_string(&trace).unwrap();
        if text.lines().any(is_last) { Ok(text) } else { Err(String::new()) }
    });
    let opened = text.lines().filter(|line| line.contains("/f") && line.contains("openat2"));
    assert_eq!(opened.filter(|line| !line.contains("O_DIRECTORY")).count(), 0, "files were opened");
    let events = |line: &&str| {
        let told = line.rsplit(" = ").next().and_then(|result| result.parse::<i64>().ok());
        line.contains("read(") && line.contains("inotify>") && told.is_some_and(|bytes| bytes > 0)
    };
    assert_eq!(text.lines().filter(events).count(), 0, "our own scan made events");
    assert!(text.matches("inotify_add_watch(").count() > files / 100, "it watches");

    hub.wrap.clear();
    hub.start();
    hub.sync();
    let (before, began) = (cpu_ticks(&hub), Instant::now());
    pace(seconds * 1000);
    let used = (cpu_ticks(&hub) - before) as f64 / 100.0;
    let share = used / began.elapsed().as_secs_f64();
    assert!(share < 0.01, "{:.2} % of a core while idle", share * 100.0);
}

/// Hundredths of a second that a process has used.
fn cpu_ticks(node: &Node) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
    let after_name = stat.rsplit(") ").next().unwrap();
    after_name.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

#[test]
fn b6_a_file_system_without_events_is_scanned_within_the_poll_interval() {
    let world = World::new();
    let server = world.folder("server");
    tree(&server, 50);
    let Some(_mount) = Mount::new(
        world.folder("hub"),
        "bindfs",
        &["-o", "attr_timeout=0", server.to_str().unwrap()],
    ) else {
        return;
    };
    let mut hub = world.configured("hub", "poll = '1s'", "[feed.settle]\nquiet = '200ms'");
    hub.start();
    hub.wait_published();
    let detail = hub.feed_is("it says so", |feed| feed["detail"].as_str().map(str::to_owned));
    assert!(detail.contains("fuse") && detail.contains("1s"), "{detail}");
    // At the server, behind the mount: no event reaches us.
    fs::create_dir_all(server.join("new/deep")).unwrap();
    fs::write(server.join("new/deep/file"), "x").unwrap();
    fs::write(server.join("d0/e0/f1"), "changed").unwrap();
    fs::remove_file(server.join("d0/e0/f2")).unwrap();
    hub.wait_published();
    assert_eq!(hub.feed()["rescans"], 0, "a poll is no loss");
}

#[test]
fn b6_a_feed_may_be_watched_by_polling_alone() {
    let world = World::new();
    let mut hub = world.configured("hub", "poll = '1s'", "watch = 'poll'");
    hub.start();
    hub.sync();
    fs::create_dir_all(hub.dir.join("new/deep")).unwrap();
    fs::write(hub.dir.join("new/deep/file"), "x").unwrap();
    hub.wait_published();
}

#[test]
fn b7_times_in_seconds_hide_no_rewrite_not_even_across_crashes() {
    // Small inodes have no room for more than seconds.
    coarse_times("/usr/sbin/mkfs.ext4", &["-q", "-F", "-I", "128"]);
}

#[test]
fn b7_times_in_steps_of_two_seconds_hide_no_rewrite_either() {
    coarse_times("/usr/sbin/mkfs.vfat", &[]);
}

fn coarse_times(mkfs: &str, options: &[&str]) {
    let rounds = scale(8, 100);
    let world = World::new();
    let image = world.path("image");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let image = image.to_str().unwrap();
    if !may("make a file system", mkfs, &[options, &[image]].concat()) {
        return;
    }
    let Some(_mount) = Mount::new(world.folder("hub"), "mount", &["-o", "loop", image]) else {
        return;
    };
    let mut hub = world.configured("hub", "poll = '1s'", "[feed.settle]\nquiet = '0s'");
    let path = hub.dir.join("config.xml");
    let rewrite = |number: usize| {
        let mut file =
            File::options().create(true).truncate(false).write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        write!(file, "{number:08}").unwrap();
    };
    let published = |hub: &Node, number: usize| {
        eventually("the newest content", || match hub.published("config.xml") {
            Some(bytes) if bytes == format!("{number:08}").into_bytes() => Ok(()),
            other => Err(format!("{other:?}, not {number}: {}", hub.feed())),
        });
    };
    rewrite(0);
    hub.start();
    published(&hub, 0);
    for number in 1..=rounds {
        rewrite(number);
        published(&hub, number);
    }
    // Killed at steps of the commit: what the cache says must not pass for what is published.
    for (round, step) in ["fsync", "rename", "fsync", "rename", "fsync"].into_iter().enumerate() {
        hub.stop();
        let inject = format!("inject={step}:signal=KILL:when={}", 1 + round);
        let trace = format!("trace={step}");
        hub.wrap = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]
            .map(str::to_owned)
            .to_vec();
        rewrite(1_000 + round);
        hub.spawn();
        eventually("it dies, or publishes", || {
            let is_over = hub.exited().is_some() || hub.published_lately(1_000 + round);
            if is_over { Ok(()) } else { Err("neither".to_owned()) }
        });
        hub.kill();
        // The same size within the same two seconds.
        rewrite(2_000 + round);
        hub.wrap.clear();
        hub.start();
        published(&hub, 2_000 + round);
    }
    hub.fsck();
}

impl Node {
    /// As git tells it of the repository, whether or not the daemon runs.
    fn published_lately(&self, number: usize) -> bool {
        let shown = crate::world::git(&self.git_dir(), &["show", "main:config.xml"]);
        shown.stdout == format!("{number:08}").into_bytes()
    }
}

#[test]
fn an_unprivileged_daemon_with_cap_lease_is_as_fast_and_without_it_says_why_it_waits() {
    let ids = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let lease = ["--inh-caps=+lease", "--ambient-caps=+lease"];
    if !may("give CAP_LEASE away", "setpriv", &[&ids[..], &lease, &["true"]].concat()) {
        return;
    }
    let world = World::new();
    let daemon = world.open_to("nobody");
    let start = |name: &str, more: &[&str]| {
        let feed = "metadata = ['mode', 'mtime']\n[feed.settle]\nquiet = '2s'";
        let mut hub = world.configured(name, "", feed);
        run("chmod", &["755", hub.dir.to_str().unwrap()]);
        let words = [&["setpriv"][..], &ids, more].concat();
        hub.wrap = words.into_iter().map(str::to_owned).collect();
        hub.daemon = daemon.clone();
        hub.start();
        hub
    };
    // The files are root's: a lease on them needs the capability.
    let took = |hub: &Node| {
        hub.sync();
        let times = (0..5).map(|number| {
            let name = format!("f{number}");
            let began = Instant::now();
            fs::write(hub.dir.join(&name), "x").unwrap();
            eventually("it is published", || hub.published(&name).ok_or(String::new()));
            began.elapsed()
        });
        times.min().unwrap()
    };
    let capable = start("capable", &lease);
    let fast = took(&capable);
    assert!(fast < Duration::from_secs(1), "{fast:?}");

    let plain = start("plain", &[]);
    fs::write(plain.dir.join("file"), "x").unwrap();
    let why = plain.wait_held("file");
    assert!(why.contains("CAP_LEASE") && why.contains("2s"), "{why}");
    assert!(plain.tell(&["status"]).contains("CAP_LEASE"));
    let slow = took(&plain);
    assert!(slow >= Duration::from_secs(2), "{slow:?}");
}

#[test]
fn a_first_import_says_how_far_it_is() {
    let world = World::new();
    // Asked before anything is published: until it answers, the import is not over.
    let hook = format!("until [ -e {:?} ]; do sleep 0.01; done", world.path("go"));
    let hooks = crate::hooks::hooks(&world, "hooks", &[("pre-commit", &hook)]);
    let mut hub = world.configured("hub", "", &format!("hooks = {hooks:?}"));
    tree(&hub.dir, 200);
    let bytes: u64 = (0..200).map(|number| format!("content of {number}\n").len() as u64).sum();
    hub.start();
    let importing = hub.feed_is("all is read and counted", |feed| {
        let importing = &feed["importing"];
        let is_all = importing["files"] == 200 && importing["total_files"] == 200;
        (is_all && importing["left_ms"] == 0).then(|| importing.clone())
    });
    assert_eq!(importing["bytes"], bytes);
    assert!(importing["rate"].as_u64().unwrap() > 0, "{importing}");
    let status = hub.tell(&["status"]);
    assert!(status.contains("importing: 200 of 200 files"), "{status}");
    fs::write(world.path("go"), "").unwrap();
    hub.feed_is("it is over", |feed| {
        (feed["importing"].is_null() && feed["files"] == 200).then_some(())
    });
}
