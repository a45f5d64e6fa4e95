//! A small cluster of real processes in a temporary directory: a primary, regions, and a hermetic
//! environment for the git that checks them.
//!
//! Ports are the kernel's choice; a node keeps the one it got when it starts again. Nothing waits
//! by time: [`eventually`] waits for a condition, and a deadline says what never came.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// The binary under test.
pub const DEPSYNC: &str = env!("CARGO_BIN_EXE_depsync");

/// How long a condition may take before a test gives up; generous, since machines are shared.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Waits until `check` answers, or panics with the last reason after [`DEADLINE`].
pub fn eventually<T>(what: &str, check: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(DEADLINE, what, check)
}

/// [`eventually`] with a deadline of its own.
pub fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut check: impl FnMut() -> Result<T, String>,
) -> T {
    let end = Instant::now() + limit;
    loop {
        match check() {
            Ok(value) => return value,
            Err(reason) => assert!(Instant::now() < end, "{what}: not within {limit:?}: {reason}"),
        }
        std::thread::park_timeout(Duration::from_millis(3));
    }
}

/// A temporary directory that the nodes of one test share.
pub struct World {
    dir: TempDir,
}

impl World {
    pub fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    /// One whose directory lies in this folder, on a disk of its own perhaps.
    pub fn within(folder: &Path) -> Self {
        Self { dir: tempfile::Builder::new().prefix("cluster-").tempdir_in(folder).unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A new folder.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A primary over a new folder `name`, started.
    pub fn primary(&self, name: &str) -> Node {
        self.primary_with(name, &[])
    }

    /// [`World::primary`] with further arguments.
    pub fn primary_with(&self, name: &str, more: &[&str]) -> Node {
        let mut node = self.node(name, &["primary"], more);
        node.start();
        node
    }

    /// A region that mirrors `upstream` into a new folder `name`, started.
    pub fn region(&self, name: &str, upstream: &Node) -> Node {
        self.region_with(name, upstream, &[])
    }

    /// [`World::region`] with further arguments.
    pub fn region_with(&self, name: &str, upstream: &Node, more: &[&str]) -> Node {
        let mut node = self.region_unstarted(name, &upstream.url(), more);
        node.start();
        node
    }

    /// A region that is not yet running; its folder exists.
    pub fn region_unstarted(&self, name: &str, upstream: &str, more: &[&str]) -> Node {
        let more = [&["--upstream", upstream, "--name", name], more].concat();
        self.node(name, &["region"], &more)
    }

    /// A primary that is not yet running; its folder exists.
    pub fn primary_unstarted(&self, name: &str, more: &[&str]) -> Node {
        self.node(name, &["primary"], more)
    }

    /// A node called `name` that names a region which may have another name; not yet running.
    pub fn region_named(&self, name: &str, region: &str, upstream: &Node) -> Node {
        let more = ["--upstream", &upstream.url(), "--name", region, "--node", name];
        self.node(name, &["region"], &more)
    }

    /// A node that a configuration file describes, not yet running: `keys` stand before the feed's
    /// own, `feed` is the rest of its only feed, whose folder `name` exists.
    pub fn configured(&self, name: &str, keys: &str, feed: &str) -> Node {
        let mut node = self.node(name, &[], &[]);
        let config = self.path(&format!("{name}.toml"));
        let text = format!(
            "state_dir = {:?}\nlisten = \"127.0.0.1:0\"\n{keys}\n[[feed]]\ndir = {:?}\n{feed}\n",
            node.state, node.dir
        );
        fs::write(&config, text).unwrap();
        node.arguments = vec!["run".into(), "--config".into(), config.to_str().unwrap().into()];
        node.config = Some(config);
        node
    }

    /// A node of another name for a region that has one, not yet running.
    pub fn node_of_region(&self, name: &str, upstream: &str, region: &str) -> Node {
        self.node(name, &["region"], &["--upstream", upstream, "--name", region])
    }

    fn node(&self, name: &str, command: &[&str], more: &[&str]) -> Node {
        let dir = self.folder(name);
        let state = self.path(&format!("{name}.state"));
        let mut arguments: Vec<String> = command.iter().map(|&word| word.to_owned()).collect();
        arguments.push(dir.to_str().unwrap().to_owned());
        arguments.extend(["--state".to_owned(), state.to_str().unwrap().to_owned()]);
        arguments.extend(more.iter().map(|&word| word.to_owned()));
        let log = self.path(&format!("{name}.log"));
        Node {
            name: name.to_owned(),
            dir,
            state,
            log,
            arguments,
            config: None,
            address: None,
            child: None,
            daemon: PathBuf::from(DEPSYNC),
            wrap: Vec::new(),
        }
    }
}

/// One daemon: its folder, its state, and its process while it runs.
pub struct Node {
    pub name: String,
    pub dir: PathBuf,
    pub state: PathBuf,
    pub log: PathBuf,
    arguments: Vec<String>,
    config: Option<PathBuf>,
    address: Option<String>,
    child: Option<Child>,
    /// The binary, where a user without rights reaches it.
    pub daemon: PathBuf,
    /// A command that runs the daemon (a tracer that kills it at some system call).
    pub wrap: Vec<String>,
}

impl Node {
    /// Starts the process and waits until it listens.
    pub fn start(&mut self) {
        self.spawn();
        self.wait_until_listening();
        wait_until_up(&self.url());
    }

    /// Where it is to listen at its first start.
    pub fn listen_at(&mut self, address: std::net::SocketAddr) {
        self.address = Some(address.to_string());
    }

    /// Starts the process only.
    pub fn spawn(&mut self) {
        let listen = self.address.clone().unwrap_or_else(|| "127.0.0.1:0".to_owned());
        fs::remove_file(self.state.join("address")).ok();
        let mut words: Vec<&OsStr> = self.wrap.iter().map(OsStr::new).collect();
        words.push(self.daemon.as_os_str());
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(&self.arguments);
        match &self.config {
            None => drop(command.args(["--listen", &listen])),
            Some(config) => {
                let text = fs::read_to_string(config).unwrap();
                let lines = text.lines().map(|line| match line.starts_with("listen = ") {
                    true => format!("listen = {listen:?}\n"),
                    false => format!("{line}\n"),
                });
                fs::write(config, lines.collect::<String>()).unwrap();
            }
        }
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        // A tracer's death leaves what it traces: both are one group.
        command.process_group(0);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn wait_until_listening(&mut self) {
        let file = self.state.join("address");
        let name = self.name.clone();
        let address = eventually(&format!("{name} listens"), || {
            if let Some(status) = self.exited() {
                panic!("{name} ended with {status}: {}", self.log_text());
            }
            match fs::read_to_string(&file) {
                Ok(text) if text.ends_with('\n') => Ok(text.trim().to_owned()),
                other => Err(format!("{other:?}\n{}", self.log_text())),
            }
        });
        self.address = Some(address);
    }

    /// The exit status, when the process has ended.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    /// Waits for the process to end by itself.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let name = self.name.clone();
        eventually(&format!("{name} ends"), || self.exited().ok_or_else(|| "still running".into()))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let group = format!("-{}", child.id());
            let signal =
                |name: &str| Command::new("kill").args([name, "--", &group]).output().unwrap();
            signal("-9");
            child.wait().unwrap();
            eventually("the whole group is gone", || match signal("-0").status.success() {
                true => Err("a process is left".to_owned()),
                false => Ok(()),
            });
        }
    }

    /// `kill -TERM`, and the exit code must be 0.
    pub fn stop(&mut self) {
        let pid = self.child.as_ref().expect("it runs").id();
        let sent = Command::new("kill").arg(pid.to_string()).status().unwrap();
        assert!(sent.success());
        let status = self.wait_exit();
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.log_text());
    }

    /// The running process, or what wraps it.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address.as_ref().expect("it has started"))
    }

    pub fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The header that lets its administrator in.
    pub fn bearer(&self) -> String {
        let token = fs::read_to_string(self.state.join("admin.token")).unwrap();
        format!("Authorization: Bearer {}", token.trim())
    }

    /// The bare repository of its feed.
    pub fn git_dir(&self) -> PathBuf {
        self.state.join("feeds/default/git")
    }

    /// Runs git on the node's own repository; it must succeed.
    pub fn git(&self, arguments: &[&str]) -> String {
        let output = git(&self.git_dir(), arguments);
        assert!(output.status.success(), "git {arguments:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// `git fsck` must find nothing, not even a commit that nothing refers to: what a kill left
    /// between a pack and its ref goes at the next start. A file that changed once more before its
    /// commit leaves its earlier content in the pack; nothing else may lie there unused.
    pub fn fsck(&self) {
        let output = git(&self.git_dir(), &["fsck", "--full", "--strict"]);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let findings: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("notice:") && !line.starts_with("dangling blob"))
            .collect();
        assert!(output.status.success() && findings.is_empty(), "{}: {text}", self.name);
    }

    /// A talking command against this node.
    pub fn command(&self, arguments: &[&str]) -> Output {
        let state = self.state.to_str().unwrap().to_owned();
        depsync(&[arguments, &["--url", &self.url(), "--state", &state]].concat())
    }

    /// The answer of `GET path`, which must be JSON with status 200.
    pub fn get(&self, path: &str) -> Value {
        self.try_get(path).unwrap_or_else(|reason| panic!("{path}: {reason}"))
    }

    pub fn try_get(&self, path: &str) -> Result<Value, String> {
        let output = curl(&["-f", &format!("{}{path}", self.url())]);
        serde_json::from_slice(&output.stdout).map_err(|_| format!("{output:?}"))
    }

    /// The published commit, or "" before the first.
    pub fn commit(&self) -> String {
        let feed = self.get("/v1/feeds/default");
        feed["commit"].as_str().unwrap_or_default().to_owned()
    }

    /// The page that Prometheus reads.
    pub fn metrics(&self) -> String {
        let output = curl(&["-f", &format!("{}/metrics", self.url())]);
        String::from_utf8(output.stdout).unwrap()
    }

    /// A counter or gauge of `/metrics`, summed over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.metrics();
        let of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        text.lines()
            .filter(of_name)
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.log_text());
        }
        self.kill();
    }
}

/// Bytes that do not compress, the same for a seed (splitmix64).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend((word ^ word >> 31).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Where nobody listens: for what has to be known before the start.
pub fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Runs the binary to its end.
pub fn depsync(arguments: &[&str]) -> Output {
    Command::new(DEPSYNC).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// curl, silent but for errors.
pub fn curl(arguments: &[&str]) -> Output {
    Command::new("curl").args(["-sS", "--max-time", "60"]).args(arguments).output().unwrap()
}

/// A node answers before its feeds are up; until then it is not well, and refuses what is asked of a
/// feed. One that has ended, or wants a certificate to be shown, is not waited for.
pub fn wait_until_up(url: &str) {
    eventually("its feeds are up", || {
        let answer = curl(&["-k", &format!("{url}/readyz")]);
        let body = String::from_utf8_lossy(&answer.stdout).into_owned();
        if body.contains("\"state\":\"\"") { Err(body) } else { Ok(()) }
    });
}

/// git without any configuration but the repository's.
pub fn git(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("git")
        .arg("--git-dir")
        .arg(dir)
        .args(arguments)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("HOME", "/nonexistent")
        // It would win over the authority that a test names.
        .env_remove("GIT_SSL_CAINFO")
        .output()
        .unwrap()
}

/// Runs a command at a node; it must succeed.
pub fn done(node: &Node, arguments: &[&str]) -> String {
    let output = node.command(arguments);
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// The feed as this node has it.
pub fn feed(node: &Node) -> Value {
    node.try_get("/v1/feeds/default").unwrap_or_default()
}

/// Waits until a feed's state is this, and gives what it says.
pub fn state(node: &Node, wanted: &str) -> String {
    eventually(&format!("{} is {wanted}", node.name), || {
        let feed = feed(node);
        match feed["state"].as_str() {
            Some(state) if state == wanted => Ok(feed["detail"].to_string()),
            _ => Err(feed.to_string()),
        }
    })
}
