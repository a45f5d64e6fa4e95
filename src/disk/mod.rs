//! A deployment directory: opened once, read, watched, and changed only in safe steps.
//!
//! Everything happens beneath the opened root without following links. `Root` reads, stats and takes
//! uploads; `place` puts a tree difference in place under a durable journal; `Aside` keeps what had
//! to make way; `Watcher` says when to look. Nothing here knows git, a network or tokio.

mod aside;
mod compare;
mod folders;
mod journal;
mod judge;
mod metadata;
mod place;
mod releases;
mod root;
mod stage;
mod sweep;
mod together;
mod tree;
mod upload;
mod watch;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

pub use crate::{model::Keep, sys::FileSystem};
pub use aside::{Aside, KEEP_DAYS, Kept, MAX_BYTES, Note};
pub use compare::{Contact, Mismatch, compare, holds, verify, verify_metadata};
pub use journal::{Unfinished, unfinished};
pub use metadata::{FileKind, Stat};
pub use place::place;
pub use releases::{Building, LinkFrom, Releases};
pub use root::{CurrentRoot, Root, RootId, is_temporary, lock_file};
pub use sweep::Swept;
pub use upload::Upload;
pub use watch::{Event, WatchError, Watcher};

use crate::model::{Change, Entry, Oid, RelPath};

/// What our temporary files in users' directories begin with; they are never watched or published.
pub const TEMPORARY: &str = ".depsync-tmp-";

/// How a caller should react to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Back off and try again: the directory or its file system may come back.
    Transient,
    /// Stop with the message.
    Fatal,
}

/// Why something could not be done with a deployment directory as a whole, or with the one path that
/// the caller named. Faults of single paths within a larger task are data, not errors.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory itself cannot be opened.
    #[error("cannot open the directory {}: {source}; create it, or correct the path", path.display())]
    Open {
        /// As the operator named it.
        path: PathBuf,
        /// What the system answers.
        source: io::Error,
    },
    /// Another daemon holds it.
    #[error("{} is in use by another depsync; stop that one first, or choose another directory", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The system refuses something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system answers.
        source: io::Error,
    },
    /// Something else lies where the link to a release belongs.
    #[error("{what} lies at {}, where the link to the current release belongs; move it away, or name another path", path.display())]
    Occupied {
        /// Where the link belongs.
        path: PathBuf,
        /// What lies there.
        what: String,
    },
    /// A journal that is not ours to read.
    #[error("the journal {} cannot be read: {reason}; compare the whole directory, then remove it", path.display())]
    Journal {
        /// The journal file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// What a call on a deployment directory answers.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// How to react.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Open { .. } | Error::Io { .. } | Error::Occupied { .. } => Class::Transient,
            Error::Locked { .. } | Error::Journal { .. } => Class::Fatal,
        }
    }

    /// Whether the path is simply no longer there, or no longer what it was: look again.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Error::Open { source, .. } | Error::Io { source, .. } if is_gone(source))
    }

    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

/// Not there, or a link or a file where a folder should be.
fn is_gone(error: &io::Error) -> bool {
    // ELOOP has no stable kind in the standard library.
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(libc::ELOOP)
}

/// Where the bytes of a blob come from when a difference is put in place.
#[derive(Debug)]
pub enum Source {
    /// A small file, or a link's target.
    Bytes(Vec<u8>),
    /// Shared with the new file where the file system can, else copied. Only ever read.
    File(File),
}

/// Reads the content of a tree's entry: blob id → bytes, or an object's file.
pub type Contents<'a> = &'a (dyn Fn(Oid) -> io::Result<Source> + Sync);

/// Whether what lies at a path has an entry's type and bytes; metadata is not looked at.
pub type Holds<'a> = &'a (dyn Fn(&RelPath, &Entry) -> io::Result<bool> + Sync);

/// What a placing needs besides the changes.
pub struct Placing<'a> {
    /// The directory.
    pub root: &'a Root,
    /// The journal file, durable before the first rename, removed after the last sync.
    pub journal: &'a Path,
    /// Where what must make way is put.
    pub aside: &'a Path,
    /// The commit that lies there now, for the journal.
    pub from: Option<Oid>,
    /// The commit that is put in place, for the journal.
    pub to: Oid,
    /// A file of the caller's that is to be durable before the first rename, too: synced together
    /// with what is staged, it costs no wait of its own.
    pub along: Option<&'a File>,
    /// The difference, in path order.
    pub changes: &'a [Change],
    /// Which metadata the feed keeps.
    pub keep: Keep,
    /// Reads contents.
    pub source: Contents<'a>,
    /// A faster way to know what a path holds than to compare it with `source`: a stat cache.
    pub holds: Option<Holds<'a>>,
}

/// What was done. Faults of single paths are data.
#[derive(Debug, Default)]
pub struct Placed {
    /// Entries written or given other metadata.
    pub written: u64,
    /// Entries removed.
    pub deleted: u64,
    /// Bytes of the files written.
    pub bytes: u64,
    /// Paths whose own content had to make way and lies aside now.
    pub set_aside: Vec<RelPath>,
    /// Paths that are not as the commit has them, and why.
    pub faults: Vec<(RelPath, String)>,
    /// Paths that are right but for an owner or an attribute that could not be set, and why.
    pub notes: Vec<(RelPath, String)>,
}
