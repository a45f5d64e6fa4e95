//! What `doctor` finds on this machine: gathered, not judged.
//!
//! Looks, and changes nothing but for one temporary file in the directory of each feed that is owned
//! here, under a name that is never published. Every walk has a bound.

use std::{
    collections::{BTreeSet, VecDeque},
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use chrono::{DateTime, Utc};
use rustix::fs::Access;

use crate::{
    config::{Checkout, FeedSettings, Role, Settings},
    daemon::{self, Survey, Tried},
    sys::{self, FileSystem, LeaseError, ReadLease, Space},
    tls,
};

/// Folders that are counted in one feed; beyond it the count is "so many or more".
pub(super) const MAX_FOLDERS: usize = 1_000_000;
/// Files whose owner is looked at in one feed.
const MAX_OWNERS: usize = 10_000;

/// All of it.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) now: DateTime<Utc>,
    /// Who this process runs as.
    pub(super) user: String,
    /// Whether it may take leases on files of others.
    pub(super) may_lease: bool,
    pub(super) inotify: Inotify,
    /// Whether something keeps the clock right; none: nobody can tell.
    pub(super) clock_is_kept: Option<bool>,
    /// What each program says of its version; none: it is not there.
    pub(super) programs: [(&'static str, Option<String>); 2],
    /// What the configuration leads to.
    pub(super) node: Option<Node>,
}

/// The kernel's limits on watches, each for one user.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Inotify {
    pub(super) watches: Option<u64>,
    pub(super) instances: Option<u64>,
    pub(super) queued: Option<u64>,
}

/// The node of a configuration.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) state: State,
    pub(super) port: (SocketAddr, Port),
    pub(super) feeds: Vec<Feed>,
    /// Each certificate, and when it ends.
    pub(super) certificates: Vec<(PathBuf, Result<DateTime<Utc>, String>)>,
    /// Each file that nobody else may read, and the rights on it.
    pub(super) secrets: Vec<(PathBuf, Result<u32, String>)>,
    pub(super) survey: Survey,
    /// Each upstream; none: they were not tried.
    pub(super) upstreams: Option<Result<Vec<Tried>, String>>,
    /// Whether the NATS server is reached; none: it was not tried, or none is named.
    pub(super) bus: Option<Result<(), String>>,
}

/// The state directory.
#[derive(Debug)]
pub(super) struct State {
    pub(super) dir: PathBuf,
    /// Why it cannot be written, or made.
    pub(super) fault: Option<String>,
    pub(super) space: Result<Space, String>,
    /// Bytes that are to stay free.
    pub(super) floor: u64,
}

/// What came of trying the port.
#[derive(Debug)]
pub(super) enum Port {
    Free,
    Taken(io::Error),
}

/// A feed's directory.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) name: String,
    /// Where its files lie; of releases, where the link to the current one does.
    pub(super) dir: PathBuf,
    pub(super) is_primary: bool,
    /// Whether the kernel's events are wanted there.
    pub(super) events: bool,
    /// Those that are watched: none of a release.
    pub(super) folders: usize,
    pub(super) kind: Result<FileSystem, String>,
    /// Why it cannot be read or written by this user.
    pub(super) fault: Option<String>,
    /// Whether a lease was had on a file of ours; none: no file could be made, or it is a region's.
    pub(super) lease: Option<Result<(), LeaseError>>,
    /// Whether files of others lie there.
    pub(super) has_foreign: bool,
}

/// Looks at everything.
pub(super) fn gather(settings: Option<&Settings>, connect: bool) -> Facts {
    Facts {
        now: sys::now().into(),
        user: sys::user_name(rustix::process::geteuid().as_raw()),
        may_lease: may_lease(),
        inotify: inotify(),
        clock_is_kept: sys::clock_is_kept(),
        programs: ["git", "git-lfs"].map(|program| (program, version(program))),
        node: settings.map(|settings| node(settings, connect)),
    }
}

fn node(settings: &Settings, connect: bool) -> Node {
    let upstreams = || daemon::try_upstreams(settings).map_err(|error| error.to_string());
    Node {
        state: state(settings),
        port: (settings.listen, port(settings.listen)),
        feeds: settings.feeds.iter().filter_map(feed).collect(),
        certificates: certificates(settings),
        secrets: secrets(settings),
        survey: daemon::survey(settings),
        upstreams: connect.then(upstreams),
        bus: if connect { bus(settings) } else { None },
    }
}

/// The NATS server, where one is named.
fn bus(settings: &Settings) -> Option<Result<(), String>> {
    settings.nats.as_ref()?;
    let tried = daemon::try_nats(settings).map_err(|error| error.to_string());
    Some(tried.and_then(|why| why.map_or(Ok(()), Err)))
}

/// `CAP_LEASE`, the 29th of `linux/capability.h`, in the effective set.
fn may_lease() -> bool {
    const LEASE: u32 = 28;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.is_some_and(|set| set >> LEASE & 1 == 1)
}

fn inotify() -> Inotify {
    let read = |name: &str| {
        let text = fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name));
        text.ok()?.trim().parse().ok()
    };
    Inotify {
        watches: read("max_user_watches"),
        instances: read("max_user_instances"),
        queued: read("max_queued_events"),
    }
}

fn version(program: &str) -> Option<String> {
    let mut command = Command::new(program);
    let output = command.arg("--version").stdin(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| said.lines().next().unwrap_or_default().to_owned())
}

fn state(settings: &Settings) -> State {
    let dir = settings.state_dir.clone();
    // What is not there yet is made at the first start.
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let space = sys::space(there).map_err(|error| error.to_string());
    let floor = space.as_ref().map_or(0, |space| daemon::floor(settings, space));
    State { fault: fault(there, Access::WRITE_OK | Access::EXEC_OK), floor, space, dir }
}

/// Why this user cannot use a directory so.
fn fault(dir: &Path, access: Access) -> Option<String> {
    rustix::fs::access(dir, access).err().map(|error| format!("{}: {error}", dir.display()))
}

fn port(listen: SocketAddr) -> Port {
    match TcpListener::bind(listen) {
        Ok(_) => Port::Free,
        Err(error) => Port::Taken(error),
    }
}

fn feed(settings: &FeedSettings) -> Option<Feed> {
    let is_primary = settings.role == Role::Primary;
    let is_linked = !is_primary && matches!(settings.mirror.checkout, Checkout::Snapshot { .. });
    let place = settings.place()?;
    // A release is complete by itself, and the link to the first one is yet to be made.
    let dir = if is_linked { place.parent()? } else { place }.to_owned();
    let events = settings.primary.as_ref().is_none_or(|primary| primary.events);
    let kind = File::open(&dir).and_then(sys::file_system).map_err(|error| error.to_string());
    let (folders, has_foreign) = if is_linked { (0, false) } else { walk(&dir) };
    let needs = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    Some(Feed {
        name: settings.name.to_string(),
        is_primary,
        events,
        folders,
        kind,
        fault: fault(&dir, needs),
        lease: is_primary.then(|| lease(&dir)).flatten(),
        has_foreign,
        dir,
    })
}

/// How many folders lie there, and whether one of the first files is somebody else's.
fn walk(dir: &Path) -> (usize, bool) {
    let me = rustix::process::geteuid().as_raw();
    let (mut folders, mut owners, mut has_foreign) = (0, 0, false);
    let mut ahead = VecDeque::from([dir.to_owned()]);
    while let Some(folder) = ahead.pop_front() {
        folders += 1;
        if folders >= MAX_FOLDERS {
            break;
        }
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                ahead.push_back(entry.path());
            } else if kind.is_file() && owners < MAX_OWNERS && !has_foreign {
                owners += 1;
                has_foreign = entry.metadata().is_ok_and(|about| about.uid() != me);
            }
        }
    }
    (folders, has_foreign)
}

/// Tries a lease on a file of ours.
fn lease(dir: &Path) -> Option<Result<(), LeaseError>> {
    let mut named = tempfile::Builder::new();
    let made = named.prefix(".depsync-tmp-").tempfile_in(dir).ok()?;
    let path = made.into_temp_path();
    let file = File::open(&path).ok()?;
    Some(ReadLease::take(&file).map(drop))
}

fn certificates(settings: &Settings) -> Vec<(PathBuf, Result<DateTime<Utc>, String>)> {
    let tls = &settings.tls;
    let own = tls.pair.as_ref().map(|(cert, _)| cert);
    let shown = identities(settings).map(|(cert, _)| cert);
    // Feeds may share them.
    let files: BTreeSet<&PathBuf> =
        own.into_iter().chain(&tls.ca).chain(&tls.client_ca).chain(shown).collect();
    let end = |file: &PathBuf| tls::expires(file).map_err(|error| error.to_string());
    files.into_iter().map(|file| (file.clone(), end(file))).collect()
}

fn secrets(settings: &Settings) -> Vec<(PathBuf, Result<u32, String>)> {
    let own = settings.tls.pair.as_ref().map(|(_, key)| key);
    let shown = identities(settings).map(|(_, key)| key);
    let of_feeds =
        settings.feeds.iter().flat_map(|feed| feed.mirror.token_file.iter().chain(&feed.sign_with));
    let files: BTreeSet<&PathBuf> = own.into_iter().chain(shown).chain(of_feeds).collect();
    let mode = |file: &PathBuf| {
        let about = fs::metadata(file).map_err(|error| error.to_string())?;
        // Whether it can be read at all is only known by opening it.
        File::open(file).map_err(|error| error.to_string())?;
        Ok(about.mode() & 0o777)
    };
    files.into_iter().map(|file| (file.clone(), mode(file))).collect()
}

/// What is shown to upstreams.
fn identities(settings: &Settings) -> impl Iterator<Item = &(PathBuf, PathBuf)> {
    settings.feeds.iter().filter_map(|feed| feed.mirror.identity.as_ref())
}
