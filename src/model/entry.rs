//! What lies at a path: a file, a link or a folder, with the metadata that git cannot hold.
//!
//! Two entries are equal by content, type, mode and recorded mtime; a difference between two trees
//! is a list of `Change`s.

use std::collections::BTreeMap;

use super::{ObjectId, Oid, RelPath};

/// A modification time as the file system keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mtime {
    /// Seconds since 1970, negative before.
    pub secs: i64,
    /// Nanoseconds within the second.
    pub nanos: u32,
}

/// What git's tree does not hold about an entry. Absent fields are not kept for the feed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits, `0o7777`.
    pub mode: Option<u32>,
    /// When the content was last changed, as recorded at its commit. Files only.
    pub mtime: Option<Mtime>,
    /// What few feeds keep; boxed, since a batch and a difference hold very many entries. None where
    /// there is nothing of it, so that equal metadata compare equal.
    pub extra: Option<Box<Extra>>,
}

/// The owner and the extended attributes of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extra {
    /// Owner by name.
    pub user: Option<String>,
    /// Group by name.
    pub group: Option<String>,
    /// Extended attributes by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

static NO_EXTRA: Extra = Extra { user: None, group: None, xattrs: BTreeMap::new() };

impl Meta {
    /// The owner and the extended attributes, as far as they are kept.
    #[must_use]
    pub fn extra(&self) -> &Extra {
        self.extra.as_deref().unwrap_or(&NO_EXTRA)
    }
}

impl Extra {
    /// As [`Meta`] holds it.
    #[must_use]
    pub fn boxed(self) -> Option<Box<Extra>> {
        (self != NO_EXTRA).then(|| Box::new(self))
    }
}

/// What kind of thing an entry is, and its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file: the git blob that its tree holds (a pointer, for an object).
    File {
        /// The blob in the tree.
        blob: Oid,
        /// git's executable bit.
        executable: bool,
    },
    /// A symbolic link: the blob that holds its target.
    Symlink {
        /// The blob in the tree.
        blob: Oid,
    },
    /// A folder. In a difference it stands before what it holds.
    Dir,
}

/// An entry of a published tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Type and content.
    pub kind: Kind,
    /// What git's tree does not hold.
    pub meta: Meta,
}

/// Where a blob's bytes really are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// In the blob itself.
    Blob(Oid),
    /// Outside the packs: the blob is a git-lfs pointer to this object.
    Object {
        /// The content's SHA-256.
        id: ObjectId,
        /// Its size in bytes.
        size: u64,
    },
}

/// One path's difference between two trees; at least one side is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The path.
    pub path: RelPath,
    /// What was there.
    pub before: Option<Entry>,
    /// What is there now.
    pub after: Option<Entry>,
}

/// What a change does, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Was not there before.
    Added,
    /// Other content or another type.
    Modified,
    /// Same content and type, other metadata.
    Metadata,
    /// Is no longer there.
    Deleted,
}

impl Change {
    /// What this change does.
    #[must_use]
    pub fn verb(&self) -> Verb {
        match (&self.before, &self.after) {
            (None, _) => Verb::Added,
            (_, None) => Verb::Deleted,
            (Some(before), Some(after)) if before.kind.same_content(&after.kind) => Verb::Metadata,
            _ => Verb::Modified,
        }
    }

    /// The one-letter status that git uses: `A`, `M` (content or metadata) or `D`.
    #[must_use]
    pub fn status(&self) -> char {
        match self.verb() {
            Verb::Added => 'A',
            Verb::Modified | Verb::Metadata => 'M',
            Verb::Deleted => 'D',
        }
    }
}

impl Kind {
    /// Whether both are of one type and hold the same bytes, whatever their modes.
    #[must_use]
    pub fn same_content(&self, other: &Kind) -> bool {
        match (self, other) {
            (Kind::File { blob: a, .. }, Kind::File { blob: b, .. })
            | (Kind::Symlink { blob: a }, Kind::Symlink { blob: b }) => a == b,
            (Kind::Dir, Kind::Dir) => true,
            _ => false,
        }
    }

    /// The blob that a file or a link has in the tree; none for a folder.
    #[must_use]
    pub fn blob(&self) -> Option<Oid> {
        match self {
            Kind::File { blob, .. } | Kind::Symlink { blob } => Some(*blob),
            Kind::Dir => None,
        }
    }

    /// Whether it is a folder.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        matches!(self, Kind::Dir)
    }
}
