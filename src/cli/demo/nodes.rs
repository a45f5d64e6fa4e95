//! The demo's three nodes: directories, child processes, and what lies in them.
//!
//! A child is stopped by its own id, with time to drain; whatever happens, none outlives the demo's
//! own end.

use std::{
    fmt::Write,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Error, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::config::BaseUrl;

/// How often a step looks whether it has come true.
const LOOK: Duration = Duration::from_millis(2);
/// How long a node may take to stop by itself.
const DRAIN: Duration = Duration::from_secs(10);
/// How much of a node's log is told when something failed.
const LOG_LINES: usize = 8;

/// Loopback is a whole network: each region gets an address of it for its compute hosts.
const REGIONS: &str = "<Regions>
  <Region name=\"eu-west\"><IPRange>127.0.0.2/32</IPRange></Region>
  <Region name=\"us-east\"><IPRange>127.0.0.3/32</IPRange></Region>
</Regions>
";

/// Waits until a condition holds; the deadline is the step's.
pub(super) async fn seen(holds: impl AsyncFn() -> Result<bool>) -> Result<()> {
    while !holds().await? {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// All three, in one directory.
pub(super) struct Nodes {
    place: PathBuf,
    pub(super) primary: Node,
    pub(super) eu: Node,
    pub(super) us: Node,
}

impl Nodes {
    pub(super) fn new(place: PathBuf) -> Self {
        let node = |role, name| Node::new(&place, role, name);
        let (primary, eu, us) =
            (node("primary", "primary"), node("region", "eu-west"), node("region", "us-east"));
        Self { place, primary, eu, us }
    }

    pub(super) fn make_directories(&mut self) -> Result<()> {
        for node in [&self.primary, &self.eu, &self.us] {
            fs::create_dir_all(&node.dir)?;
        }
        let table = self.place.join("region.xml");
        fs::write(&table, REGIONS)?;
        self.primary.more = vec!["--regions".into(), table.into()];
        Ok(())
    }

    /// An error as soon as one has ended by itself.
    pub(super) fn all_alive(&self) -> Result<()> {
        [&self.primary, &self.eu, &self.us].into_iter().try_for_each(Node::alive)
    }

    /// Adds the ends of the logs.
    pub(super) fn explain(&self, error: &Error) -> Error {
        let mut text = format!("{error:#}");
        for node in [&self.primary, &self.eu, &self.us] {
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                // Writing to a text cannot fail.
                let _ = write!(text, "\n{}: {line}", node.name);
            }
        }
        Error::msg(text)
    }

    pub(super) async fn stop(&mut self) {
        let mut nodes = [&mut self.us, &mut self.eu, &mut self.primary];
        for node in &nodes {
            node.ask_to_stop();
        }
        let gone = async {
            for node in &mut nodes {
                while !node.has_ended() {
                    tokio::time::sleep(LOOK).await;
                }
            }
        };
        // Who is still there is killed when the nodes are dropped.
        let _ = tokio::time::timeout(DRAIN, gone).await;
    }
}

/// One node: its directories, and its process once it is started.
pub(super) struct Node {
    role: &'static str,
    pub(super) name: &'static str,
    pub(super) dir: PathBuf,
    pub(super) state: PathBuf,
    log: PathBuf,
    more: Vec<std::ffi::OsString>,
    child: std::cell::RefCell<Option<Child>>,
}

/// What is compared at every look: size, mode, and mtime in seconds and nanoseconds.
pub(super) type Stat = (u64, u32, i64, i64);

impl Node {
    fn new(place: &Path, role: &'static str, name: &'static str) -> Self {
        let own = place.join(name);
        Self {
            role,
            name,
            dir: own.join("apps"),
            state: own.join("state"),
            log: own.join("log"),
            more: Vec::new(),
            child: None.into(),
        }
    }

    pub(super) fn start(&mut self, args: &[&str]) -> Result<()> {
        let child = Command::new(std::env::current_exe()?)
            .arg(self.role)
            .arg(&self.dir)
            .args(["--listen", "127.0.0.1:0", "--node", self.name])
            .arg("--state")
            .arg(&self.state)
            .args(&self.more)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&self.log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", self.name))?;
        *self.child.borrow_mut() = Some(child);
        Ok(())
    }

    /// Where it listens, as it wrote it down.
    pub(super) async fn url(&self) -> Result<BaseUrl> {
        seen(async || {
            self.alive()?;
            Ok(self.address().is_some())
        })
        .await?;
        let address = self.address().context("it was seen just now")?;
        format!("http://{address}").parse().map_err(Error::msg)
    }

    /// The same, as text for people.
    pub(super) fn known_url(&self) -> String {
        format!("http://{}", self.address().unwrap_or_default())
    }

    fn address(&self) -> Option<String> {
        let text = fs::read_to_string(self.state.join("address")).ok()?;
        // Its end says that the whole of it is there.
        text.strip_suffix('\n').map(ToOwned::to_owned)
    }

    fn alive(&self) -> Result<()> {
        if let Some(child) = self.child.borrow_mut().as_mut()
            && let Some(status) = child.try_wait()?
        {
            bail!("{} ended: {status}", self.name);
        }
        Ok(())
    }

    fn has_ended(&mut self) -> bool {
        match self.child.get_mut() {
            Some(child) => !matches!(child.try_wait(), Ok(None)),
            None => true,
        }
    }

    fn ask_to_stop(&self) {
        let child = self.child.borrow();
        let id = child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        if let Some(id) = id.and_then(Pid::from_raw) {
            // It may have ended already.
            let _ = kill_process(id, Signal::TERM);
        }
    }

    /// Every file below the directory, by path.
    pub(super) fn listing(&self) -> io::Result<Vec<(PathBuf, Stat)>> {
        let mut files = Vec::new();
        let mut folders = vec![self.dir.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                let stat = entry.metadata()?;
                if stat.is_dir() {
                    folders.push(entry.path());
                    continue;
                }
                let path = entry.path().strip_prefix(&self.dir).map(Path::to_owned);
                let stat = (stat.len(), stat.mode(), stat.mtime(), stat.mtime_nsec());
                files.push((path.map_err(io::Error::other)?, stat));
            }
        }
        files.sort();
        Ok(files)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = self.child.get_mut() {
            // Only where it did not stop when it was asked to.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
