//! Limits on what is sent, changed while transfers run; uploads that fail; attacks on paths.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::fs::CWD;
use serde_json::{Value, json};

use crate::{
    oracle::wait_equal,
    world::{Node, World, curl, eventually, free_address},
};

const FILES: &str = "/v1/feeds/default/files";

/// Puts limits in force; the status and the answer.
fn limit(node: &Node, limits: &Value) -> (String, Value) {
    let url = format!("{}/v1/bandwidth", node.url());
    let (token, body) = (node.bearer(), limits.to_string());
    let output = curl(&["-X", "PUT", "-H", &token, "-d", &body, "-w", "\n%{http_code}", &url]);
    let text = String::from_utf8(output.stdout).unwrap();
    let (answer, status) = text.rsplit_once('\n').unwrap();
    (status.to_owned(), serde_json::from_str(answer).unwrap())
}

/// Sends one request and reads the answer's body to its end.
fn fetch(node: &Node, path: &str) -> Vec<u8> {
    let address = node.url().strip_prefix("http://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..head]));
    answer.split_off(head + 4)
}

#[test]
fn a_hundred_mirrors_share_one_pack_and_one_limit_which_can_change_under_way() {
    const MIRRORS: usize = 100;
    let world = World::new();
    let hub = world.primary("hub");
    // Bytes that do not compress, so that the pack is as large as they are.
    let mut seed = 1_u64;
    let files = |count: u64| match hub.get("/v1/feeds/default")["files"].as_u64() {
        Some(files) if files == count => Ok(()),
        other => Err(format!("{other:?}")),
    };
    for name in ["a", "b", "c", "d"] {
        let bytes = (0..10_000).flat_map(|_| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed ^ (seed >> 29)).to_be_bytes()
        });
        fs::write(hub.dir.join(name), bytes.collect::<Vec<_>>()).unwrap();
        if name == "a" {
            // The others come in a commit of their own: the pack of one alone need not be built.
            eventually("the first is published", || files(1));
        }
    }
    eventually("published", || files(4));
    let path = format!("/v1/feeds/default/packs/0..{}", hub.commit());
    let built = hub.metric("depsync_packs_built_total");
    let rate = 4_000_000;
    assert_eq!(limit(&hub, &json!({ "replication": "4MB/s" })).0, "200");
    let started = Instant::now();
    let all_fetch = || {
        std::thread::scope(|scope| {
            let fetching: Vec<_> =
                (0..MIRRORS).map(|_| scope.spawn(|| fetch(&hub, &path))).collect();
            let packs: Vec<_> = fetching.into_iter().map(|one| one.join().unwrap()).collect();
            assert!(packs.iter().all(|pack| *pack == packs[0]));
            packs[0].len() * MIRRORS
        })
    };
    let bytes = all_fetch();
    let took = started.elapsed();
    assert!(bytes > 30_000_000, "{bytes}");
    // What the bucket held at the start is a twentieth of a second's.
    let most = f64::from(rate) * (took.as_secs_f64() * 1.03 + 0.05);
    assert!(bytes as f64 <= most, "{bytes} bytes in {took:?}");
    assert_eq!(hub.metric("depsync_packs_built_total") - built, 1.0);

    // At 20 kB/s this would take half an hour; a window opens while it is under way.
    assert_eq!(limit(&hub, &json!({ "replication": "20kB/s" })).0, "200");
    std::thread::scope(|scope| {
        let fetching = scope.spawn(all_fetch);
        eventually("they wait", || match hub.get("/v1/bandwidth")["waiting"]["replication"] {
            ref waiting if waiting.as_u64() > Some(10) => Ok(()),
            ref waiting => Err(waiting.to_string()),
        });
        let window = json!({ "start": "* * * * * *", "for_ms": 60_000, "replication": "1GB/s" });
        let limits = json!({ "replication": "20kB/s", "windows": [window] });
        assert_eq!(limit(&hub, &limits).0, "200");
        assert_eq!(fetching.join().unwrap(), bytes);
    });
}

#[test]
fn clients_that_take_nothing_hold_back_nobody() {
    const STALLED: u64 = 60;
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(hub.dir.join("large"), vec![7; 20_000_000]).unwrap();
    eventually("published", || match hub.commit().as_str() {
        "" => Err("nothing yet".to_owned()),
        _ => Ok(()),
    });
    assert_eq!(limit(&hub, &json!({ "total": "20MB/s" })).0, "200");
    let address = hub.url().strip_prefix("http://").unwrap().to_owned();
    // They ask and never read, each from its own address, so that each is a client of its own.
    let stalled: Vec<TcpStream> = (0..STALLED)
        .map(|number| {
            let from = [127, 0, 3, u8::try_from(number).unwrap() + 1];
            let mut stream = connect_from(from, &address);
            write!(stream, "GET {FILES}/large HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
            stream
        })
        .collect();
    let begun = Instant::now();
    let fast = fetch(&hub, &format!("{FILES}/large"));
    assert_eq!(fast.len(), 20_000_000);
    // What is on the way to the others: what their sides take unread, and little more.
    let sent = hub.get("/v1/bandwidth")["sent"]["downloads"].as_u64().unwrap() - 20_000_000;
    assert!(sent < STALLED * 600_000, "{sent} bytes for those who take none");
    let fair = (20_000_000 + sent) as f64 / 20e6;
    assert!(begun.elapsed().as_secs_f64() < 2.0 * fair + 2.0, "{:?}", begun.elapsed());
    drop(stalled);
}

/// A connection from an address, with a small buffer for what comes.
fn connect_from(from: [u8; 4], to: &str) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let connected = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        socket.bind((from, 0).into()).unwrap();
        socket.connect(to.parse().unwrap()).await.unwrap().into_std().unwrap()
    });
    connected.set_nonblocking(false).unwrap();
    connected
}

#[test]
fn limits_follow_the_files_and_stay_where_these_are_wrong() {
    let world = World::new();
    let rs = world.path("rs.xml");
    let ego = "http://www.platform.com/ego/2005/05/schema";
    let profile = |rate: &str| {
        format!(
            "<sc:S xmlns:sc=\"{ego}/sc\" xmlns:ego=\"{ego}\"><sc:ActivityDescription>\
             <ego:ActivitySpecification>\
             <ego:EnvironmentVariable name=\"RS_MAX_DOWNLOADS\">1</ego:EnvironmentVariable>\
             <ego:EnvironmentVariable name=\"DEPSYNC_DOWNLOAD_RATE\">{rate}</ego:EnvironmentVariable>\
             </ego:ActivitySpecification></sc:ActivityDescription></sc:S>"
        )
    };
    fs::write(&rs, profile("300kB/s")).unwrap();
    let table = world.path("region.xml");
    fs::write(
        &table,
        "<Regions><Region name=\"eu\"><IPRange>127.0.1.0/24</IPRange></Region></Regions>",
    )
    .unwrap();
    let keys = format!(
        "rs = {rs:?}\nregions = {table:?}\n[bandwidth]\nmax_queue = 0\n\
         [[bandwidth.network]]\nregion = \"eu\"\nlimit = \"5MB/s\""
    );
    let mut hub = world.configured("hub", &keys, "");
    hub.start();
    let shown = hub.get("/v1/bandwidth");
    assert_eq!(shown["in_force"]["downloads"], "300kB/s");
    assert_eq!(shown["limits"]["max_downloads"], 1);

    // It acts: one download at a time, and the next one hears when to come again.
    fs::write(hub.dir.join("app.bin"), vec![7; 3_000_000]).unwrap();
    eventually("published", || match hub.commit().as_str() {
        "" => Err("nothing yet".to_owned()),
        _ => Ok(()),
    });
    let url = format!("{}{FILES}/app.bin", hub.url());
    let mut slow = Command::new("curl").args(["-sf", "-o", "/dev/null", &url]).spawn().unwrap();
    eventually("one is being sent", || match &hub.get("/v1/bandwidth")["sending"] {
        sending if *sending == 1 => Ok(()),
        sending => Err(sending.to_string()),
    });
    let head = String::from_utf8(curl(&["-D", "-", "-o", "/dev/null", &url]).stdout).unwrap();
    assert!(head.starts_with("HTTP/1.1 503") && head.contains("retry-after: "), "{head}");
    assert_eq!(hub.metric("depsync_downloads_refused_total"), 1.0);
    let status = String::from_utf8(hub.command(&["status"]).stdout).unwrap();
    for part in ["downloads 300kB/s", "eu 5MB/s", "1 being sent"] {
        assert!(status.contains(part), "{status}");
    }
    assert_eq!(hub.metric("depsync_limit_bytes_per_second"), 5_300_000.0);

    // Changed by file: the transfer under way follows.
    fs::write(&rs, profile("900MB/s")).unwrap();
    eventually(
        "the file is read again",
        || match &hub.get("/v1/bandwidth")["in_force"]["downloads"] {
            rate if *rate == "900MB/s" => Ok(()),
            rate => Err(rate.to_string()),
        },
    );
    assert!(slow.wait().unwrap().success());
    // A region that has a limit goes from the table; a rate is zero: all stays as it was.
    for (file, text, part) in [
        (&rs, profile("0MB/s"), "DEPSYNC_DOWNLOAD_RATE"),
        (&table, "<Regions/>".to_owned(), "there is no region \"eu\""),
    ] {
        let before = fs::read(file).unwrap();
        fs::write(file, text).unwrap();
        eventually("the fault is told", || match hub.log_text().contains(part) {
            true => Ok(()),
            false => Err(hub.log_text()),
        });
        assert_eq!(hub.get("/v1/bandwidth")["in_force"]["downloads"], "900MB/s");
        assert_eq!(hub.get("/v1/regions")["regions"][0]["name"], "eu");
        fs::write(file, before).unwrap();
    }
    let (status, answer) =
        limit(&hub, &json!({ "networks": [{ "region": "us", "limit": "1MB/s" }] }));
    assert_eq!(status, "422", "{answer}");
}

#[test]
fn the_port_and_the_storage_of_rs_xml_are_used() {
    let world = World::new();
    let (dir, storage) = (world.folder("apps"), world.path("storage"));
    // One that was free a moment ago: whoever writes such a file names a port.
    let port = free_address().port();
    let ego = "http://www.platform.com/ego/2005/05/schema";
    let profile = format!(
        "<sc:S xmlns:sc=\"{ego}/sc\" xmlns:ego=\"{ego}\"><sc:ActivityDescription>\
         <ego:ActivitySpecification>\
         <ego:EnvironmentVariable name=\"REPOSITORY_SERVICE_PORT\">{port}</ego:EnvironmentVariable>\
         <ego:EnvironmentVariable name=\"RS_STORAGE_DIR\">{}</ego:EnvironmentVariable>\
         </ego:ActivitySpecification></sc:ActivityDescription></sc:S>",
        storage.display()
    );
    fs::write(world.path("rs.xml"), profile).unwrap();
    let config = world.path("depsync.toml");
    fs::write(&config, format!("rs = \"rs.xml\"\n[[feed]]\ndir = {dir:?}\n")).unwrap();
    let mut daemon = Command::new(crate::world::DEPSYNC);
    let mut daemon = daemon.args(["run", "--config", config.to_str().unwrap()]).spawn().unwrap();
    let answered = std::panic::catch_unwind(|| {
        eventually("it answers at the port", || {
            let output = curl(&["-f", &format!("http://127.0.0.1:{port}/livez")]);
            if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
        });
    });
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    answered.unwrap();
    assert!(storage.join("admin.token").exists());
}

#[test]
fn who_a_client_is_decides_the_most_specific_range() {
    let world = World::new();
    let table = world.path("region.xml");
    fs::write(
        &table,
        "<Regions><Region name=\"world\"><IPRange>127.0.0.0/8</IPRange><IPRange>2001:db8::/32</IPRange></Region>\
         <Region name=\"eu\"><IPRange>127.0.1.*</IPRange><IPRange>2001:db8:5::/48</IPRange></Region>\
         <Region name=\"lab\"><IPRange>127.0.1.5-127.0.1.9</IPRange></Region></Regions>",
    )
    .unwrap();
    let hub = world.primary_with("hub", &["--regions", table.to_str().unwrap()]);
    let located = |from: &str| {
        let answer = hub.get(&format!("/v1/locate/default/app.bin?from={from}"));
        answer["region"].as_str().unwrap_or("none").to_owned()
    };
    for (from, region) in [
        ("127.9.9.9", "world"),
        ("127.0.1.4", "eu"),
        ("127.0.1.5", "lab"),
        ("127.0.1.9", "lab"),
        ("::ffff:127.0.1.7", "lab"),
        ("2001:db8:5::1", "eu"),
        ("2001:db8:6::1", "world"),
        ("10.0.0.1", "none"),
        ("::1", "none"),
    ] {
        assert_eq!(located(from), region, "{from}");
    }
    // Nobody is a listed proxy here: what a client says of its own address is not believed.
    let eu = world.region("eu", &hub);
    fs::write(hub.dir.join("app.bin"), "x").unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let url = format!("{}{FILES}/app.bin", hub.url());
    let code = |from: &str, more: &[&str]| {
        let wanted = ["-o", "/dev/null", "-w", "%{http_code}", "--interface", from, &url];
        String::from_utf8(curl(&[&wanted[..], more].concat()).stdout).unwrap()
    };
    eventually("a redirect", || match code("127.0.1.4", &[]).as_str() {
        "307" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert_eq!(code("127.0.1.7", &[]), "200", "the lab has no node");
    for header in ["X-Forwarded-For: 127.0.1.4", "Forwarded: for=127.0.1.4", "X-Real-IP: 127.0.1.4"]
    {
        assert_eq!(code("127.0.2.2", &["-H", header]), "200", "{header}");
    }
}

/// Ways out that were tried on other servers.
const ATTACKS: &[&str] = &[
    "../secret",
    "..%2fsecret",
    "%2e%2e/secret",
    "%2e%2e%2fsecret",
    "..%5csecret",
    "..\\secret",
    "....//secret",
    "..;/secret",
    "%252e%252e%252fsecret",
    "..%c0%afsecret",
    "..%ef%bc%8fsecret",
    "%c0%ae%c0%ae/secret",
    "app/../../secret",
    "app/..%2f..%2fsecret",
    "./../secret",
    "app/./../../secret",
    "//secret",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:///etc/passwd",
    "app%00/../secret",
    "secret%00",
    "%00",
    "..",
    "../",
    "%2e%2e",
    ".",
    "./",
    "app//passwd",
    "app/passwd",
    "app/passwd/",
    "app/up",
    "app/up/secret",
    "app/loop",
    "app/dev",
    "~/secret",
    ".git/config",
    ".GIT/config",
    "app/.git/HEAD",
    ".depsync",
    ".depsync/app/.depsync",
    "%2egit/config",
    "app/.%67it/config",
    "..%2f..%2f..%2f..%2fetc%2fshadow",
    "..%u2215secret",
    "%",
    "%2",
    "%zz",
    "app/%2e%2e/%2e%2e/secret",
    "app/..%00/secret",
    "..%0d%0asecret",
];

#[test]
fn nothing_leaves_the_feed_whatever_the_path() {
    let world = World::new();
    let hub = world.primary("hub");
    fs::write(world.path("secret"), "s3cr3t").unwrap();
    let app = hub.dir.join("app");
    fs::create_dir(&app).unwrap();
    fs::write(app.join("inside"), "inside").unwrap();
    for (name, target) in
        [("passwd", "/etc/passwd"), ("up", "../.."), ("loop", "loop"), ("dev", "/dev/zero")]
    {
        std::os::unix::fs::symlink(target, app.join(name)).unwrap();
    }
    let eu = world.region("eu", &hub);
    eventually("the links are there", || crate::oracle::compare(&hub.dir, &eu.dir));
    let token = hub.bearer();
    let before = listing(&world.path(""));
    for node in [&hub, &eu] {
        for attack in ATTACKS {
            for room in ["files", &format!("at/{}", hub.commit()), "archive", "tree"] {
                let url = format!("{}/v1/feeds/default/{room}/{attack}", node.url());
                let output = curl(&["--path-as-is", "-w", "\n%{http_code}", &url]);
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(!text.contains("s3cr3t") && !text.contains("root:"), "{url}: {text}");
                let status = text.rsplit('\n').next().unwrap().to_owned();
                assert!(!status.starts_with('5'), "{url}: {text}");
            }
        }
    }
    for attack in ATTACKS {
        let url = format!("{}{FILES}/{attack}", hub.url());
        for method in [&["-T", "/etc/hostname"][..], &["-X", "DELETE"]] {
            let fixed =
                ["--path-as-is", "-g", "-o", "/dev/null", "-w", "%{http_code}", "-H", &token];
            let output = curl(&[&fixed[..], method, &[&url]].concat());
            let status = String::from_utf8(output.stdout).unwrap();
            let outside = listing(&world.path(""));
            assert!(!status.starts_with('5'), "{method:?} {url}: {status}");
            assert_eq!(outside, before, "{method:?} {url}: {status}");
        }
    }
}

/// What lies beside the feed's own folder.
fn listing(folder: &Path) -> Vec<(PathBuf, u64)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let plain = entries.filter(|entry| entry.file_type().unwrap().is_file());
    let plain = plain.filter(|entry| entry.path().extension().is_none_or(|kind| kind != "log"));
    let mut found: Vec<_> =
        plain.map(|entry| (entry.path(), entry.metadata().unwrap().len())).collect();
    found.sort();
    found
}

#[test]
fn a_folder_that_becomes_a_link_leads_nowhere() {
    let world = World::new();
    let hub = world.primary("hub");
    let outside = world.folder("outside");
    fs::write(outside.join("file"), "s3cr3t").unwrap();
    let (folder, link) = (hub.dir.join("d"), world.path("link"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), "inside").unwrap();
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    let token = hub.bearer();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(CWD, &folder, CWD, &link, flags).unwrap();
                std::thread::yield_now();
            }
        });
        let url = |name: &str| format!("{}{FILES}/d/{name}", hub.url());
        for round in 0..60 {
            let got = String::from_utf8(curl(&[&url("file")]).stdout).unwrap();
            assert!(!got.contains("s3cr3t"), "{got}");
            let name = format!("new-{round}");
            let put = ["-o", "/dev/null", "-H", &token, "-T", "/etc/hostname", &url(&name)];
            curl(&put);
            curl(&["-o", "/dev/null", "-H", &token, "-X", "DELETE", &url("file")]);
        }
        stop.store(true, Relaxed);
    });
    let names: Vec<_> =
        fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "written or removed through a link");
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"s3cr3t");
}

/// Unmounts when it is dropped.
struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        Command::new("umount").arg(&self.0).output().ok();
    }
}

#[test]
fn an_upload_that_is_cut_or_finds_no_room_leaves_nothing() {
    let world = World::new();
    let disk = world.folder("hub");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=6m", "none", disk.to_str().unwrap()])
        .output()
        .unwrap();
    let small = mounted.status.success();
    let _unmount = small.then(|| Unmount(disk.clone()));
    let mut hub = world.primary("hub");
    eventually("it is ready", || hub.try_get("/readyz"));
    let address = hub.url().strip_prefix("http://").unwrap().to_owned();
    let token = hub.bearer();
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(
        stream,
        "PUT {FILES}/cut.bin HTTP/1.1\r\nHost: {address}\r\n{token}\r\nContent-Length: 3000000\r\n\r\n"
    )
    .unwrap();
    stream.write_all(&vec![7; 1_500_000]).unwrap();
    eventually("it is being taken", || match fs::read_dir(&hub.dir).unwrap().count() {
        0 => Err("nothing yet".to_owned()),
        _ => Ok(()),
    });
    stream.shutdown(Shutdown::Both).unwrap();
    let empty = |what: &str| {
        eventually(what, || {
            let left: Vec<_> = fs::read_dir(&hub.dir).unwrap().map(|e| e.unwrap().path()).collect();
            if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
        });
    };
    empty("a cut upload leaves nothing");
    if small {
        let local = world.path("large");
        fs::write(&local, vec![9; 9_000_000]).unwrap();
        let put = ["put", local.to_str().unwrap(), "default/large.bin"];
        let output = hub.command(&put);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("no space"), "{said}");
        empty("an upload without room leaves nothing");
    } else {
        eprintln!("a small disk cannot be mounted here (only root may): not tested");
    }
    hub.stop();
}

#[test]
fn a_change_is_waited_for_until_every_region_has_it() {
    let world = World::new();
    let hub = world.primary("hub");
    let mut eu = world.region("eu", &hub);
    // Only a region that has said hello once is known, and waited for.
    eventually("the region is known", || match hub.get("/v1/nodes")["nodes"].as_array() {
        Some(nodes) if !nodes.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let local = world.path("local");
    fs::write(&local, "content").unwrap();
    let put = |name: &str, wait: &str| {
        let target = format!("default/{name}");
        hub.command(&["put", local.to_str().unwrap(), &target, wait, "--timeout", "20s"])
    };
    for number in 0..10 {
        let name = format!("file-{number}");
        let output = put(&name, "--wait=regions");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(fs::read(eu.dir.join(&name)).unwrap(), b"content", "at once, at the region");
    }
    // Removing all of a feed is held, whoever asks for it, and says so.
    let held = (0..10).find(|number| {
        let output = hub.command(&["rm", &format!("default/file-{number}")]);
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        said.contains("held")
    });
    assert_eq!(held, Some(9), "the last one of ten");
    eu.kill();
    let late = hub.command(&[
        "put",
        local.to_str().unwrap(),
        "default/late",
        "--wait=regions",
        "--timeout",
        "1s",
    ]);
    assert!(!late.status.success());
    let said = String::from_utf8_lossy(&late.stderr).into_owned();
    assert!(said.contains("eu"), "{said}");
    let begun = Instant::now();
    let committed = put("committed", "--wait=commit");
    assert!(committed.status.success(), "{committed:?}");
    assert!(begun.elapsed() < Duration::from_secs(20));
}
