//! What can go wrong in a store, and how a caller reacts.
//!
//! Variants are only those that some caller tells apart; the cause is kept as `source`.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::{
    model::{BadPath, Class, ObjectId, Oid},
    signing,
};

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Asked for a commit that the feed's history does not hold.
    #[error("commit {0} is not in this feed's history")]
    UnknownCommit(Oid),
    /// The history refers to something that is not there.
    #[error(
        "{what} {id} is not in the repository; `depsync fsck` brings it back from another node"
    )]
    Missing {
        /// The type of git object.
        what: &'static str,
        /// Its id.
        id: Oid,
    },
    /// Bytes on this disk are not what they must be.
    #[error("{what} is damaged: {why}")]
    Damaged {
        /// What it is, with its place.
        what: String,
        /// What is wrong, and the way out where it is not `depsync fsck`.
        why: String,
    },
    /// Bytes are not what was asked for, or not allowed; nothing was changed.
    #[error("refused: {0}")]
    Refused(String),
    /// A commit that is not signed by anyone who is believed here.
    #[error("commit {commit} is refused: {source}")]
    Untrusted {
        /// Its id.
        commit: Oid,
        /// Why.
        source: signing::Error,
    },
    /// A commit could not be signed.
    #[error("the commit cannot be signed: {0}")]
    Unsigned(signing::Error),
    /// The head is not the one that the commit was made on.
    #[error("another commit was published while this one was made; make it again on top")]
    Moved {
        /// The commit's parent.
        expected: Option<Oid>,
        /// The head now.
        found: Option<Oid>,
    },
    /// Two writers of one object.
    #[error("object {0} is being received already; wait for that")]
    Busy(ObjectId),
    /// It would leave less free than must stay so.
    #[error(
        "the disk of {} is too full: {need} bytes are needed, {free} are free, and {floor} of them \
         stay free (`min_free`); it goes on when there is space", folder.display()
    )]
    NoRoom {
        /// Where.
        folder: PathBuf,
        /// Bytes that are to be stored.
        need: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes that stay free.
        floor: u64,
    },
    /// The work was told not to go on.
    #[error("it was broken off, since the daemon stops; the next start goes on")]
    Interrupted,
    /// The operating system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// libgit2 said no.
    #[error("cannot {action}: {source}")]
    Git {
        /// A verb and its object.
        action: &'static str,
        /// The library's answer.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What the store's calls return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether there is no room on the disk, or for this user.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match self {
            Error::NoRoom { .. } => true,
            Error::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// How to react.
    pub fn class(&self) -> Class {
        match self {
            Error::Missing { .. } | Error::Damaged { .. } | Error::Refused(_) => Class::Corrupt,
            Error::Unsigned(_)
            | Error::Moved { .. }
            | Error::Busy(_)
            | Error::NoRoom { .. }
            | Error::Git { .. }
            | Error::Interrupted => Class::Transient,
            Error::UnknownCommit(_) | Error::Untrusted { .. } => Class::Fatal,
            Error::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Class::Fatal,
                _ => Class::Transient,
            },
        }
    }

    /// For `map_err`: the system refused `action` on `path`.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::Io { action, path, source }
    }

    /// For `map_err`: libgit2 refused `action`.
    pub(super) fn git(action: &'static str) -> impl FnOnce(git2::Error) -> Error {
        move |source| Error::Git { action, source: source.into() }
    }

    pub(super) fn damaged(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Damaged { what: what.into(), why: why.into() }
    }
}

impl From<BadPath> for Error {
    /// A tree holds a name that no feed may hold.
    fn from(bad: BadPath) -> Error {
        Error::damaged("a tree", bad.to_string())
    }
}
