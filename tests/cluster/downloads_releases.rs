//! Downloads while releases go on, from regions that lag, die or come second: only whole versions.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};

use crate::{
    oracle::{sha256, wait_equal},
    proxy::Proxy,
    world::{DEPSYNC, Node, World, curl, eventually},
};

/// Ends what goes on beside a test, also where that fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Releases, at most, while clients download.
const MOST: u64 = 2_000;
const SIZE: usize = 9_000_000;
const FILES: &str = "/v1/feeds/default/files";

/// A version of a file of one size: its number, again and again, so that a mix shows.
fn version(number: u64) -> Vec<u8> {
    number.to_be_bytes().repeat(SIZE / 8)
}

/// Which version a file is, if it is one, from its first byte to its last.
fn whole(path: &Path) -> Result<u64, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    let number = u64::from_be_bytes(bytes[..8].try_into().unwrap());
    if bytes.len() != SIZE {
        return Err(format!("{} bytes of version {number}", bytes.len()));
    }
    match bytes.chunks(8).position(|word| word != number.to_be_bytes()) {
        None => Ok(number),
        Some(at) => Err(format!("version {number} is another one from byte {}", at * 8)),
    }
}

fn release(hub: &Node, number: u64) {
    let hidden = hub.dir.join("app.bin.tmp");
    fs::write(&hidden, version(number)).unwrap();
    fs::rename(hidden, hub.dir.join("app.bin")).unwrap();
}

/// A hub that leads 127.0.1.0/24 to the region `eu`, and that region's node, with version 1.
fn hub_and_region(world: &World) -> (Node, Node) {
    let hub = hub(world);
    let eu = world.region("eu", &hub);
    release(&hub, 1);
    wait_equal(&hub.dir, &[&eu.dir]);
    (hub, eu)
}

/// As above, where old versions go.
fn hub_and_region_keeping(world: &World, keep: &str) -> (Node, Node) {
    let mut hub = world.configured("hub", &format!("regions = {:?}", table(world)), keep);
    hub.start();
    let feed = format!("upstream = \"{}\"\n{keep}", hub.url());
    let mut eu = world.configured("eu", "[region]\nname = \"eu\"", &feed);
    eu.start();
    release(&hub, 1);
    wait_equal(&hub.dir, &[&eu.dir]);
    (hub, eu)
}

fn hub(world: &World) -> Node {
    world.primary_with("hub", &["--regions", table(world).to_str().unwrap()])
}

fn table(world: &World) -> PathBuf {
    let table = world.path("region.xml");
    let regions = "<Regions><Region name=\"eu\"><IPRange>127.0.1.0/24</IPRange></Region></Regions>";
    fs::write(&table, regions).unwrap();
    table
}

/// Where the hub sends a client of the region for the newest version.
fn redirected(hub: &Node) -> String {
    let url = format!("{}{FILES}/app.bin", hub.url());
    eventually("a redirect", || {
        let wanted = ["-o", "/dev/null", "-w", "%{redirect_url}", "--interface", "127.0.1.9", &url];
        let location = String::from_utf8(curl(&wanted).stdout).unwrap();
        if location.contains("/at/") { Ok(location) } else { Err(location) }
    })
}

fn etag(url: &str) -> String {
    let head = String::from_utf8(curl(&["-I", url]).stdout).unwrap();
    let line = head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    line.trim().to_owned()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
}

#[test]
fn during_constant_releases_every_client_gets_one_whole_version() {
    let world = World::new();
    let (hub, _eu) = hub_and_region_keeping(&world, "keep = { age = \"0s\", versions = 100 }");
    let first = etag(&format!("{}{FILES}/app.bin", hub.url()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ended = Ended(&stop);
        let releases = scope.spawn(|| {
            let mut number = 1;
            while !stop.load(Relaxed) && number < MOST {
                number += 1;
                // As fast as they are published: a region that is slower passes versions over.
                let before = hub.commit();
                release(&hub, number);
                eventually("it is published", || {
                    if stop.load(Relaxed) || hub.commit() != before {
                        Ok(())
                    } else {
                        Err(before.clone())
                    }
                });
            }
            number
        });
        eventually("a second version", || {
            match etag(&format!("{}{FILES}/app.bin", hub.url())) != first {
                true => Ok(()),
                false => Err("still the first".to_owned()),
            }
        });
        for round in 0..6 {
            let at = redirected(&hub);
            let place = world.folder(&format!("round-{round}"));
            let file = |name: &str| place.join(name);
            let dir = place.to_str().unwrap();
            let quiet = ["-q", "--no-conf", "-x8", "-s8", "-k1M", "--file-allocation=none"];
            run("aria2c", &[&quiet[..], &["-d", dir, "-o", "aria", &at]].concat());
            let curled = file("curl").to_str().unwrap().to_owned();
            run("curl", &["-sSf", "-r", "0-2999999", "-o", &curled, &at]);
            run("curl", &["-sSf", "-C", "-", "-o", &curled, &at]);
            let got = file("get");
            let get = ["get", "default/app.bin", "--via", "eu", "-o", got.to_str().unwrap()];
            let output = hub.command(&get);
            assert!(output.status.success(), "{output:?}");
            for name in ["aria", "curl", "get"] {
                whole(&file(name)).unwrap_or_else(|mixed| panic!("{name}, round {round}: {mixed}"));
            }
        }
        // On the name, a client that says which version it has a part of gets that or all of another.
        let url = format!("{}{FILES}/app.bin", hub.url());
        let code = |header: &str| {
            let wanted = ["-o", "/dev/null", "-w", "%{http_code} %{size_download}"];
            let more = ["-r", "1000-1999", "-H", header, &url];
            String::from_utf8(curl(&[&wanted[..], &more].concat()).stdout).unwrap()
        };
        assert_eq!(code(&format!("If-Range: {first}")), format!("200 {SIZE}"));
        assert!(code(&format!("If-Match: {first}")).starts_with("412 "));
        drop(ended);
        assert!(releases.join().unwrap() > 3);
    });
}

#[test]
fn a_transfer_that_a_release_overtakes_ends_with_the_bytes_it_began_with() {
    let world = World::new();
    let (hub, _eu) = hub_and_region(&world);
    let proxy = Proxy::to(&hub);
    proxy.limit(Some(3_000_000));
    let slow = world.path("slow");
    let url = format!("{}{FILES}/app.bin", proxy.url());
    let mut child =
        Command::new("curl").args(["-sSf", "-o", slow.to_str().unwrap(), &url]).spawn().unwrap();
    eventually("it has begun", || if proxy.down() > 500_000 { Ok(()) } else { Err(String::new()) });
    let before = hub.commit();
    release(&hub, 2);
    eventually("the release", || if hub.commit() == before { Err(before.clone()) } else { Ok(()) });
    assert!(child.try_wait().unwrap().is_none(), "it was to be slower than the release");
    proxy.limit(None);
    assert!(child.wait().unwrap().success());
    assert_eq!(whole(&slow), Ok(1));

    // Cut, and a release before it goes on: the new version from its start.
    let got = world.path("got");
    proxy.cut_after(4_000_000);
    let get = |more: &[&str]| {
        let to = got.to_str().unwrap();
        let state = hub.state.to_str().unwrap();
        let base = ["get", "default/app.bin", "-o", to, "--state", state];
        Command::new(DEPSYNC).args([&base[..], more].concat()).output().unwrap()
    };
    let done = get(&["--url", &proxy.url()]);
    assert!(done.status.success(), "{done:?}");
    assert!(proxy.cuts() >= 1);
    assert_eq!(whole(&got), Ok(2));
    fs::remove_file(&got).unwrap();
    // What another run left of a version that is no more is not gone on with.
    let stale = world.path(&format!(".depsync-tmp-{}", "0".repeat(64)));
    fs::write(stale, &version(1)[..1000]).unwrap();
    release(&hub, 3);
    eventually("version 3", || {
        let done = get(&["--url", &hub.url()]);
        assert!(done.status.success(), "{done:?}");
        match whole(&got)? {
            3 => Ok(()),
            other => Err(format!("version {other}")),
        }
    });
}

#[test]
fn a_region_that_has_not_got_a_version_yet_serves_it_all_the_same() {
    let world = World::new();
    let hub = hub(&world);
    let proxy = Proxy::to(&hub);
    let mut eu = world.region_unstarted("eu", &proxy.url(), &[]);
    eu.start();
    release(&hub, 1);
    wait_equal(&hub.dir, &[&eu.dir]);
    redirected(&hub);
    proxy.limit(Some(4_000_000));
    let before = hub.commit();
    release(&hub, 2);
    eventually("the release", || if hub.commit() == before { Err(before.clone()) } else { Ok(()) });
    let at = redirected(&hub);
    let commit = hub.commit();
    assert!(at.contains(&commit), "{at}");
    let got = world.path("got");
    run("curl", &["-sSf", "-o", got.to_str().unwrap(), &at]);
    assert_eq!(whole(&got), Ok(2));
}

#[test]
fn where_the_region_is_dead_another_node_serves() {
    let world = World::new();
    let (hub, mut eu) = hub_and_region(&world);
    let at = redirected(&hub);
    assert!(at.starts_with(&eu.url()));
    let got = world.path("got");
    let to = got.to_str().unwrap().to_owned();
    let get = |more: &[&str]| {
        fs::remove_file(&got).ok();
        let done = hub.command(&[&["get", "default/app.bin", "-o", &to, "--json"], more].concat());
        assert!(done.status.success(), "{done:?}");
        assert_eq!(whole(&got), Ok(1));
        let told: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        told["from"].as_str().unwrap().to_owned()
    };
    assert_eq!(get(&["--via", "eu"]), eu.url());
    assert_eq!(get(&["--via", "primary"]), hub.url());
    eu.kill();
    assert_eq!(get(&[]), hub.url());
    let url = format!("{}{FILES}/app.bin", hub.url());
    let from = ["--interface", "127.0.1.9"];
    let retry = ["-sSfL", "--retry", "1", "--retry-delay", "1", "--retry-connrefused"];
    run("curl", &[&retry[..], &from, &["-o", &to, &url]].concat());
    assert_eq!(whole(&got), Ok(1));
}

#[test]
fn a_second_node_of_a_region_stands_by() {
    let world = World::new();
    let (hub, mut eu) = hub_and_region(&world);
    let mut second = world.node_of_region("second", &hub.url(), "eu");
    second.start();
    wait_equal(&hub.dir, &[&second.dir]);
    let served_by = || {
        let regions = hub.get("/v1/regions");
        regions["regions"][0]["nodes"][0]["url"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(served_by(), eu.url(), "the first one is bound");
    assert!(redirected(&hub).starts_with(&eu.url()));
    if std::env::var_os("DEPSYNC_FULL").is_none() {
        return;
    }
    eu.kill();
    eventually("the second takes over", || match served_by() {
        url if url == second.url() => Ok(()),
        url => Err(url),
    });
    eventually("clients are led there", || match redirected(&hub) {
        at if at.starts_with(&second.url()) => Ok(()),
        at => Err(at),
    });
}

/// Stopped when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_folder_comes_whole_and_a_watched_file_stays_fresh() {
    let world = World::new();
    let (hub, eu) = hub_and_region(&world);
    let app = hub.dir.join("app");
    fs::create_dir_all(app.join("a/b/empty")).unwrap();
    fs::write(app.join("a/one.txt"), "one").unwrap();
    fs::write(app.join("a/b/ä <&> \n.txt"), "two").unwrap();
    fs::write(app.join("a/large.bin"), version(7)).unwrap();
    fs::write(app.join("a/nothing"), "").unwrap();
    std::os::unix::fs::symlink("a/one.txt", app.join("link")).unwrap();
    wait_equal(&hub.dir, &[&eu.dir]);
    let to = world.path("copy");
    let command = ["get", "default/app", "--recursive", "-o", to.to_str().unwrap()];
    let done = eu.command(&command);
    assert!(done.status.success(), "{done:?}");
    let same = |other: &Path| {
        let words = ["-r", "--no-dereference", app.to_str().unwrap(), other.to_str().unwrap()];
        let output = Command::new("diff").args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    };
    same(&to);
    // Nothing is written through a link that lies in the way.
    let outside = world.folder("outside");
    let trap = world.folder("trap");
    std::os::unix::fs::symlink(&outside, trap.join("a")).unwrap();
    let done = eu.command(&["get", "default/app", "--recursive", "-o", trap.to_str().unwrap()]);
    assert!(!done.status.success());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);

    let unpacked = world.folder("unpacked");
    let archive = world.path("app.tar");
    let url = format!("{}/v1/feeds/default/archive/app.tar", eu.url());
    run("curl", &["-sSf", "-o", archive.to_str().unwrap(), &url]);
    run("tar", &["-xf", archive.to_str().unwrap(), "-C", unpacked.to_str().unwrap()]);
    same(&unpacked);
    let page = curl(&["-f", "-H", "Accept: text/html", &format!("{}{FILES}/app/a/b/", hub.url())]);
    assert!(String::from_utf8(page.stdout).unwrap().contains("&lt;&amp;&gt;"));

    let fresh = world.path("fresh.bin");
    let words = ["get", "default/app.bin", "--watch", "--interval", "1", "-o"];
    let watching = Command::new(DEPSYNC)
        .args(words)
        .arg(&fresh)
        .args(["--url", &hub.url(), "--state", hub.state.to_str().unwrap()])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _watching = Running(watching);
    for number in [1, 2] {
        if number > 1 {
            release(&hub, number);
        }
        eventually("the file is fresh", || match whole(&fresh)? {
            found if found == number => Ok(()),
            found => Err(format!("version {found}")),
        });
    }
    assert_eq!(sha256(&fresh), sha256(&hub.dir.join("app.bin")));
}
