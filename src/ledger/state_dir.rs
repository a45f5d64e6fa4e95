//! The state directory: its format version, its one daemon, this node's identity and admin token.
//!
//! Opening it takes a kernel lock that lives as long as the value, so a second daemon on the same
//! state stops at its start. A directory of another format version is refused and not touched.

use std::{
    fs::{self, DirBuilder, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::model::{FeedName, NodeId, ObjectId, PassSecret};

/// The version of the layout that this program reads and writes.
const FORMAT: &str = "depsync-state 1";

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be read or written.
    #[error("cannot use the state directory {path}: {source}; check its owner and permissions")]
    Io {
        /// The file or folder at fault.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A daemon runs on it.
    #[error("another daemon uses the state directory {0}: stop it, or choose another with --state")]
    Locked(PathBuf),
    /// Written by another version, or not a state directory.
    #[error(
        "the state directory {path} has the format \"{found}\", this program knows \"{FORMAT}\": \
         use the version that wrote it, or another --state"
    )]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its `format` file's first line.
        found: String,
    },
    /// A file of random bytes is damaged.
    #[error("{0} does not hold 64 hex digits: remove it, and a new one is made at the next start")]
    Secret(PathBuf),
    /// A secret that is none.
    #[error(
        "{0} can be read by others than its owner: `chmod 600` it; where others were on this machine, \
         remove it, and a new one is made at the next start"
    )]
    Shown(PathBuf),
    /// The identity file is damaged.
    #[error(
        "{0} does not hold a node id: restore it from a backup, or remove it for a new identity"
    )]
    Node(PathBuf),
}

/// An opened state directory; its lock is held until this is dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    node: NodeId,
    _lock: File,
}

impl StateDir {
    /// Opens `path`, making it (0700) and what is missing in it.
    ///
    /// # Errors
    /// When it cannot be used, is in use, or is of another format.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io(path))?;
        let format = read_or_make(&path.join("format"), 0o600, || Ok(FORMAT.to_owned()))
            .map_err(io(&path.join("format")))?;
        if format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found: format });
        }
        let lock = lock(path)?;
        let node = path.join("node");
        let id = read_or_make(&node, 0o600, random_hex::<16>).map_err(io(&node))?;
        let id = id.parse().map_err(|_| Error::Node(node))?;
        let token = path.join("admin.token");
        read_or_make(&token, 0o600, random_hex::<32>).map_err(io(&token))?;
        is_ours_alone(&token)?;
        Ok(Self { path: path.to_owned(), node: id, _lock: lock })
    }

    /// This node's identity.
    pub fn node(&self) -> &NodeId {
        &self.node
    }

    /// The token that the commands on this machine act with.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn admin_token(&self) -> Result<String, Error> {
        let path = self.path.join("admin.token");
        let text = fs::read_to_string(&path).map_err(|source| Error::Io { path, source })?;
        Ok(text.trim().to_owned())
    }

    /// From what the signatures of redirects are made; the same after a restart, so that regions which
    /// were given keys go on.
    ///
    /// # Errors
    /// When it cannot be read or made, or holds something else.
    pub fn pass_secret(&self) -> Result<PassSecret, Error> {
        let path = self.path.join("redirect.key");
        let read = read_or_make(&path, 0o600, random_hex::<32>);
        let line = read.map_err(|source| Error::Io { path: path.clone(), source })?;
        is_ours_alone(&path)?;
        let bytes: ObjectId = line.parse().map_err(|_| Error::Secret(path))?;
        Ok(PassSecret::new(*bytes.as_bytes()))
    }

    /// Where a feed's repository and what belongs to it lie.
    pub fn feed(&self, feed: &FeedName) -> PathBuf {
        self.path.join("feeds").join(feed.as_str())
    }

    /// The ledger's database.
    pub fn ledger(&self) -> PathBuf {
        self.path.join("ledger.db")
    }

    /// Who did what.
    pub fn audit(&self) -> PathBuf {
        self.path.join("audit.jsonl")
    }

    /// The decisions file.
    pub fn decisions(&self) -> PathBuf {
        self.path.join("decisions.json")
    }

    /// Says where the daemon listens, for programs that start it on a port of the kernel's choice.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_address(&self, address: &str) -> Result<(), Error> {
        let path = self.path.join("address");
        replace(&path, 0o644, address).map_err(|source| Error::Io { path, source })
    }
}

/// A secret that others can read opens this node to them.
fn is_ours_alone(path: &Path) -> Result<(), Error> {
    let about = fs::metadata(path);
    let about = about.map_err(|source| Error::Io { path: path.to_owned(), source })?;
    match about.permissions().mode() & 0o077 {
        0 => Ok(()),
        _ => Err(Error::Shown(path.to_owned())),
    }
}

fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| Error::Io { path: path.clone(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::Locked(dir.to_owned())),
        Err(source) => Err(Error::Io { path, source: source.into() }),
    }
}

/// The first line of a small file, which is made when it is not there.
fn read_or_make(
    path: &Path,
    mode: u32,
    make: impl FnOnce() -> io::Result<String>,
) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().next().unwrap_or_default().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let line = make()?;
            replace(path, mode, &line)?;
            Ok(line)
        }
        Err(error) => Err(error),
    }
}

/// Replaces a file by one line: whole and durable, or as it was.
fn replace(path: &Path, mode: u32, line: &str) -> io::Result<()> {
    let dir = path.parent().expect("a file of the state directory has a parent");
    let mut file =
        tempfile::Builder::new().permissions(Permissions::from_mode(mode)).tempfile_in(dir)?;
    writeln!(file, "{line}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

fn random_hex<const BYTES: usize>() -> io::Result<String> {
    use std::fmt::Write as _;
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    let mut text = String::with_capacity(2 * BYTES);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a string takes all that is written");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_daemon_and_one_identity_for_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let node = first.node().clone();
        assert!(matches!(StateDir::open(&path), Err(Error::Locked(_))));
        let mode = fs::metadata(path.join("admin.token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(first);
        assert_eq!(StateDir::open(&path).unwrap().node(), &node);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: &str, mode| {
            fs::set_permissions(dir.path().join(path), Permissions::from_mode(mode)).unwrap();
            StateDir::open(dir.path()).and_then(|state| state.pass_secret().map(drop))
        };
        StateDir::open(dir.path()).unwrap().pass_secret().unwrap();
        for path in ["admin.token", "redirect.key"] {
            for mode in [0o640, 0o604] {
                assert!(matches!(open(path, mode), Err(Error::Shown(_))), "{path} {mode:o}");
            }
            open(path, 0o600).unwrap();
        }
    }

    #[test]
    fn another_format_is_refused_and_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format"), "depsync-state 9\n").unwrap();
        assert!(matches!(StateDir::open(dir.path()), Err(Error::Format { .. })));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
