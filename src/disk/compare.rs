//! What a deployment directory holds against what a tree says: content, type, mode and mtime.
//!
//! Files are compared by blocks and never held in memory. Nothing here changes anything.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io::{self, Read, Seek},
};

use super::{Contents, FileKind, Holds, Keep, Result, Root, Source, Stat, is_temporary};
use crate::model::{Entry, Kind, Mtime, RelPath};

/// Bytes compared at a time.
const BLOCK: usize = 128 << 10;

/// In what an entry on disk first differs from the tree's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// Nothing lies there.
    Missing,
    /// A file, a link and a folder are not the same.
    Type,
    /// Permission bits.
    Mode,
    /// Modification time.
    Mtime,
    /// Bytes, or a link's target.
    Content,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mismatch::Missing => "it is missing",
            Mismatch::Type => "it is of another type",
            Mismatch::Mode => "it has another mode",
            Mismatch::Mtime => "it has another modification time",
            Mismatch::Content => "it has other content",
        })
    }
}

/// Whether an entry on disk is the tree's in content, type, mode and mtime; none: it is.
///
/// # Errors
/// When it, or its content, cannot be read.
pub fn verify(
    root: &Root,
    path: &RelPath,
    entry: &Entry,
    keep: &Keep,
    source: Contents<'_>,
) -> Result<Option<Mismatch>> {
    let Some(stat) = root.stat(path)? else { return Ok(Some(Mismatch::Missing)) };
    if !is_kind(&stat, &entry.kind) {
        return Ok(Some(Mismatch::Type));
    }
    if let Some(mismatch) = drifted(root, &stat, entry, *keep) {
        return Ok(Some(mismatch));
    }
    let equal = same_content(root, path, &stat, entry, source);
    let equal = equal.map_err(root.failed("compare", path))?;
    Ok((!equal).then_some(Mismatch::Content))
}

/// The same but for the bytes: what `stat` can tell.
///
/// # Errors
/// When it cannot be looked at.
pub fn verify_metadata(
    root: &Root,
    path: &RelPath,
    entry: &Entry,
    keep: &Keep,
) -> Result<Option<Mismatch>> {
    let Some(stat) = root.stat(path)? else { return Ok(Some(Mismatch::Missing)) };
    let differs = || drifted(root, &stat, entry, *keep);
    Ok(if is_kind(&stat, &entry.kind) { differs() } else { Some(Mismatch::Type) })
}

/// Whether what lies at a path has an entry's type and bytes, whatever its metadata.
///
/// # Errors
/// When it, or its content, cannot be read.
pub fn holds(root: &Root, path: &RelPath, entry: &Entry, source: Contents<'_>) -> io::Result<bool> {
    match root.stat(path).map_err(io::Error::other)? {
        Some(stat) if is_kind(&stat, &entry.kind) => same_content(root, path, &stat, entry, source),
        _ => Ok(false),
    }
}

pub(super) fn is_kind(stat: &Stat, kind: &Kind) -> bool {
    match kind {
        Kind::File { .. } => stat.kind == FileKind::File,
        Kind::Symlink { .. } => stat.kind == FileKind::Symlink,
        Kind::Dir => stat.kind == FileKind::Dir,
    }
}

/// What `stat` shows to be other than the entry's metadata. A link has no mode and no time of ours.
pub(super) fn metadata_differs(stat: &Stat, entry: &Entry, keep: Keep) -> Option<Mismatch> {
    match () {
        () if !is_mode(stat, entry, keep) => Some(Mismatch::Mode),
        () if recorded_time(entry, keep).is_some_and(|time| time != stat.mtime) => {
            Some(Mismatch::Mtime)
        }
        () => None,
    }
}

/// As [`metadata_differs`], but for what the file system could not keep when it was set.
fn drifted(root: &Root, stat: &Stat, entry: &Entry, keep: Keep) -> Option<Mismatch> {
    let is_kept = |time| root.keeps_time_as(time, stat.mtime);
    match () {
        () if root.keeps_modes() && !is_mode(stat, entry, keep) => Some(Mismatch::Mode),
        () if !recorded_time(entry, keep).is_none_or(is_kept) => Some(Mismatch::Mtime),
        () => None,
    }
}

fn is_mode(stat: &Stat, entry: &Entry, keep: Keep) -> bool {
    match (entry.meta.mode.filter(|_| keep.mode), entry.kind) {
        (_, Kind::Symlink { .. }) | (None, Kind::Dir) => true,
        (Some(mode), _) => mode & 0o7777 == stat.mode,
        (None, Kind::File { executable, .. }) => executable == (stat.mode & 0o100 != 0),
    }
}

fn recorded_time(entry: &Entry, keep: Keep) -> Option<Mtime> {
    let is_file = matches!(entry.kind, Kind::File { .. });
    entry.meta.mtime.filter(|_| keep.mtime && is_file)
}

/// Whether an entry of the same type, whose stat is known, has the same bytes.
pub(super) fn same_content(
    root: &Root,
    path: &RelPath,
    stat: &Stat,
    entry: &Entry,
    source: Contents<'_>,
) -> io::Result<bool> {
    match entry.kind {
        Kind::Dir => Ok(true),
        Kind::Symlink { blob } => {
            let target = root.read_link(path).map_err(io::Error::other)?;
            Ok(target == bytes(source(blob)?)?)
        }
        Kind::File { blob, .. } => match source(blob)? {
            Source::Bytes(bytes) if bytes.len() as u64 != stat.size => Ok(false),
            Source::File(file) if file.metadata()?.len() != stat.size => Ok(false),
            Source::Bytes(bytes) => {
                let file = root.open_file(path).map_err(io::Error::other)?;
                let mut found = Vec::with_capacity(bytes.len() + 1);
                file.take(bytes.len() as u64 + 1).read_to_end(&mut found)?;
                Ok(found == bytes)
            }
            Source::File(mut file) => {
                file.rewind()?;
                same_bytes(root.open_file(path).map_err(io::Error::other)?, file)
            }
        },
    }
}

/// A link's target: a path, so at most 4,095 bytes.
pub(super) fn bytes(source: Source) -> io::Result<Vec<u8>> {
    match source {
        Source::Bytes(bytes) => Ok(bytes),
        Source::File(mut file) => {
            let mut bytes = Vec::new();
            file.rewind()?;
            file.take(4096).read_to_end(&mut bytes)?;
            Ok(bytes)
        }
    }
}

fn same_bytes(mut a: File, mut b: File) -> io::Result<bool> {
    let mut blocks = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        let (from_a, from_b) = (fill(&mut a, &mut blocks.0)?, fill(&mut b, &mut blocks.1)?);
        if blocks.0[..from_a] != blocks.1[..from_b] {
            return Ok(false);
        }
        if from_a < BLOCK {
            return Ok(true);
        }
    }
}

fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What a directory that already holds files has in common with a tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Contact {
    /// Of the tree, with its content: taken over as they are.
    pub equal: Vec<RelPath>,
    /// Of the tree, with other content or of another type. A folder stands for all below it.
    pub different: Vec<RelPath>,
    /// Files, links and others that the tree does not have.
    pub extra: Vec<RelPath>,
    /// How many entries of the tree are not there.
    pub missing: u64,
}

/// Compares a directory with a tree at first contact. Names that can never be in a feed (`.git`, our
/// own) are left out; folders that the tree does not have count by what they hold.
///
/// # Errors
/// When a folder cannot be read, or `same` fails.
pub fn compare(
    root: &Root,
    expected: impl IntoIterator<Item = (RelPath, Entry)>,
    same: Holds<'_>,
) -> Result<Contact> {
    let mut expected: HashMap<RelPath, Entry> = expected.into_iter().collect();
    let above = |path: &RelPath| std::iter::successors(path.parent(), RelPath::parent);
    let folders: HashSet<RelPath> = expected.keys().flat_map(above).collect();
    let mut contact = Contact::default();
    let mut pending = vec![RelPath::root()];
    while let Some(folder) = pending.pop() {
        for (name, stat) in root.list(&folder)? {
            let Ok(path) = folder.join(&name) else { continue };
            if is_temporary(&name) {
                continue;
            }
            let list = match expected.remove(&path) {
                Some(entry) if !is_kind(&stat, &entry.kind) => &mut contact.different,
                _ if stat.kind == FileKind::Dir => &mut pending,
                Some(entry) => {
                    let equal = same(&path, &entry).map_err(root.failed("compare", &path))?;
                    if equal { &mut contact.equal } else { &mut contact.different }
                }
                None if folders.contains(&path) => &mut contact.different,
                None => &mut contact.extra,
            };
            list.push(path);
        }
    }
    contact.missing = expected.values().filter(|entry| !entry.kind.is_dir()).count() as u64;
    Ok(contact)
}
