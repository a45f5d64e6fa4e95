//! The Debian package: from an empty folder tree to a daemon that is ready.
//!
//! Built with `packaging/deb.py` from the binary under test, installed by dpkg below another root with its
//! maintainer scripts, its unit verified by systemd, and the packaged binary run as the unit runs it.
#![expect(clippy::disallowed_methods, clippy::unwrap_used, reason = "a scenario, read as a story")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    said(&output, command)
}

/// What a command that must succeed has printed.
fn said(output: &Output, command: &Command) -> String {
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The package of the binary under test.
fn package(folder: &Path) -> PathBuf {
    let binary = env!("CARGO_BIN_EXE_depsync");
    let mut build = Command::new(root().join("packaging/deb.py"));
    build.args(["--fast", "--binary", binary, "--output"]).arg(folder);
    PathBuf::from(run(&mut build).trim())
}

/// A tree with what every Debian 12 has and the scripts and the unit name: systemd's units, `kill`, and
/// dpkg's own files.
fn empty_tree(tree: &Path) {
    for folder in ["etc", "bin", "usr/lib/systemd", "var/lib/dpkg/info", "var/lib/dpkg/updates"] {
        fs::create_dir_all(tree.join(folder)).unwrap();
    }
    fs::write(tree.join("var/lib/dpkg/status"), "").unwrap();
    fs::copy("/bin/kill", tree.join("bin/kill")).unwrap();
    let to = tree.join("usr/lib/systemd/system");
    run(Command::new("cp").args(["-r", "/lib/systemd/system"]).arg(to));
}

/// Installs a package below the tree, or removes one, with the scripts that would run on the machine.
fn dpkg(tree: &Path, action: &str, package: &Path) {
    let mut dpkg = Command::new("dpkg");
    dpkg.arg("--root").arg(tree).args(["--force-script-chrootless", "--force-depends"]);
    dpkg.args(["--force-not-root", action]).arg(package);
    let path = format!("/usr/sbin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    run(dpkg.env("PATH", path).env("DEBIAN_FRONTEND", "noninteractive"));
}

/// The packaged configuration as the tree's: its folders in there, a port of the kernel's choice.
fn configuration(tree: &Path) -> PathBuf {
    let shipped = fs::read_to_string(tree.join("etc/depsync/depsync.toml")).unwrap();
    let mut text = shipped.clone();
    for folder in ["/srv/depsync", "/var/lib/depsync"] {
        let there = tree.join(&folder[1..]);
        assert!(there.is_dir(), "{folder} was not made");
        let there = there.to_str().unwrap();
        text = text.replace(&format!("= {folder:?}"), &format!("= {there:?}"));
    }
    text = text.replace("127.0.0.1:7873", "127.0.0.1:0");
    assert_eq!(text.matches(tree.to_str().unwrap()).count(), 2, "{shipped}");
    let file = tree.join("etc/depsync/here.toml");
    fs::write(&file, text).unwrap();
    file
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Daemon {
    fn signal(&self, name: &str) {
        run(Command::new("kill").args([name, &self.0.id().to_string()]));
    }
}

/// The manager's end of the socket that the daemon is told of.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(folder: &Path) -> Self {
        let path = folder.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        Manager { socket, path }
    }

    /// Waits until it is told all of these, each in a message of its own.
    fn hears(&self, wanted: &[&str]) {
        let end = Instant::now() + PATIENCE;
        let mut wanted = wanted.to_vec();
        let mut heard = Vec::new();
        while !wanted.is_empty() {
            assert!(Instant::now() < end, "{wanted:?} was not said, but {heard:?}");
            let mut message = [0; 512];
            let Ok(length) = self.socket.recv(&mut message) else { continue };
            let text = String::from_utf8_lossy(&message[..length]).into_owned();
            wanted.retain(|line| !text.lines().any(|said| said == *line));
            heard.push(text);
        }
    }
}

/// Starts the daemon as its unit does, with a manager that listens and a watchdog.
fn start(tree: &Path, config: &Path, manager: &Manager) -> Daemon {
    let unit = fs::read_to_string(tree.join("usr/lib/systemd/system/depsync.service")).unwrap();
    let command = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let mut words = command.split_whitespace();
    let program = words.next().unwrap();
    let arguments = words.map(|word| match word {
        "/etc/depsync/depsync.toml" => config.to_str().unwrap(),
        word => word,
    });
    let mut daemon = Command::new(tree.join(&program[1..]));
    daemon.args(arguments).env("NOTIFY_SOCKET", &manager.path).env("WATCHDOG_USEC", "400000");
    Daemon(daemon.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[test]
fn the_package_installs_and_its_daemon_is_ready() {
    let world = TempDir::new().unwrap();
    let package = package(world.path());
    let tree = world.path().join("tree");
    empty_tree(&tree);
    dpkg(&tree, "--install", &package);

    let users = fs::read_to_string(tree.join("etc/passwd")).unwrap();
    assert!(users.contains("\ndepsync:") || users.starts_with("depsync:"), "{users}");
    let state = tree.join("var/lib/depsync").metadata().unwrap();
    assert_eq!(state.permissions().mode() & 0o777, 0o700);
    let wanted = tree.join("etc/systemd/system/multi-user.target.wants/depsync.service");
    assert!(wanted.symlink_metadata().is_ok(), "the service is not enabled");
    for file in ["usr/share/man/man1/depsync-status.1.gz", "usr/share/doc/depsync/copyright"] {
        assert!(tree.join(file).is_file(), "{file}");
    }
    let tree_option = format!("--root={}", tree.display());
    run(Command::new("systemd-analyze")
        .args(["verify", "--man=no", &tree_option])
        .arg("depsync.service"));

    let config = configuration(&tree);
    let depsync = tree.join("usr/bin/depsync");
    let mut doctor = Command::new(&depsync);
    doctor.args(["doctor", "--json", "--config"]).arg(&config);
    let findings: Value = serde_json::from_str(&run(&mut doctor)).unwrap();
    let not_ok = findings["checks"].as_array().unwrap().iter();
    // What hangs on the machine that the test runs on: whether something keeps its clock, what git it has.
    let machine = ["clock", "git", "git-lfs", "inotify"];
    let not_ok: Vec<&Value> = not_ok
        .filter(|finding| finding["verdict"] != "ok")
        .filter(|finding| !machine.contains(&finding["check"].as_str().unwrap()))
        .collect();
    assert!(not_ok.is_empty(), "{not_ok:?}");

    let manager = Manager::new(world.path());
    let mut daemon = start(&tree, &config, &manager);
    manager.hears(&["READY=1", "WATCHDOG=1"]);
    daemon.signal("-HUP");
    manager.hears(&["RELOADING=1", "READY=1"]);
    daemon.signal("-TERM");
    manager.hears(&["STOPPING=1"]);
    assert!(daemon.0.wait().unwrap().success());
}

#[test]
fn who_removes_it_and_comes_back_has_the_service_as_it_was() {
    let world = TempDir::new().unwrap();
    let package = package(world.path());
    let tree = world.path().join("tree");
    empty_tree(&tree);
    let name = Path::new("depsync");
    let link = tree.join("etc/systemd/system/multi-user.target.wants/depsync.service");
    let is_enabled = || link.symlink_metadata().is_ok();
    dpkg(&tree, "--install", &package);
    fs::write(tree.join("var/lib/depsync/history"), "kept").unwrap();

    dpkg(&tree, "--remove", name);
    assert!(!tree.join("usr/bin/depsync").exists());
    dpkg(&tree, "--install", &package);
    assert!(is_enabled(), "the service is not enabled again");
    assert!(tree.join("var/lib/depsync/history").exists());
    // Who had switched it off finds it off.
    fs::remove_file(&link).unwrap();
    dpkg(&tree, "--remove", name);
    dpkg(&tree, "--install", &package);
    assert!(!is_enabled(), "the service is enabled by itself");

    dpkg(&tree, "--purge", name);
    dpkg(&tree, "--install", &package);
    assert!(is_enabled(), "a first installation enables the service");
    dpkg(&tree, "--purge", name);
    assert!(!is_enabled() && !tree.join("var/lib/depsync").exists());
}

#[test]
fn the_unit_says_what_the_daemon_tells() {
    let unit = fs::read_to_string(root().join("conf/depsync.service")).unwrap();
    for line in ["Type=notify", "WatchdogSec=60s", "ExecReload=/bin/kill -HUP $MAINPID"] {
        assert!(unit.lines().any(|said| said == line), "{line}");
    }
}
