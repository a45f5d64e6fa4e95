//! Whether a directory is the one that a feed's history is about.
//!
//! An unmounted disk leaves an empty folder, a typing error names another one: publishing either
//! would empty every mirror. A directory is known by its inode and its file system's id; after a
//! restore or a move both differ, and it is still the same when at least half of the head's files
//! lie there with equal size and time. There is no marker file that somebody could copy or forget.

use crate::{
    disk::{FileKind, Root, RootId},
    ledger::decisions::RootMark,
    model::{Content, Entry, Kind, Oid, RelPath},
    store::Store,
};

use super::Result;

/// Files of the head that are compared; they are taken evenly from all of it.
const SAMPLE: usize = 1_000;

/// Whether `root` is the directory of which `head` is the history. `mark`: what it was last time.
pub(super) fn is_same(
    root: &Root,
    mark: Option<RootMark>,
    store: &Store,
    head: Option<Oid>,
) -> Result<bool> {
    let Some(head) = head else { return Ok(true) };
    if mark == Some(to_mark(root.id()?)) {
        return Ok(true);
    }
    let files = sample(store, head)?;
    let mut alike = 0;
    for (path, entry) in &files {
        alike += usize::from(is_alike(root, path, entry, store)?);
    }
    Ok(alike * 2 >= files.len())
}

pub(super) fn to_mark(id: RootId) -> RootMark {
    RootMark { inode: id.inode, fsid: id.fsid }
}

/// Every n-th file of the head; n doubles as often as there are too many.
fn sample(store: &Store, head: Oid) -> Result<Vec<(RelPath, Entry)>> {
    let (mut files, mut count, mut step) = (Vec::new(), 0_usize, 1);
    store.walk(head, &mut |path, entry| {
        if !matches!(entry.kind, Kind::File { .. }) {
            return;
        }
        if count.is_multiple_of(step) {
            files.push((path, entry));
        }
        count += 1;
        if files.len() > 2 * SAMPLE {
            let mut number = 0;
            files.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            step *= 2;
        }
    })?;
    Ok(files)
}

fn is_alike(root: &Root, path: &RelPath, entry: &Entry, store: &Store) -> Result<bool> {
    let Kind::File { blob, .. } = entry.kind else { return Ok(false) };
    let Some(stat) = root.stat(path)?.filter(|stat| stat.kind == FileKind::File) else {
        return Ok(false);
    };
    if entry.meta.mtime.is_some_and(|mtime| mtime != stat.mtime) {
        return Ok(false);
    }
    let size = match store.content(blob)? {
        Content::Object { size, .. } => size,
        Content::Blob(blob) => store.read_blob(blob)?.len() as u64,
    };
    Ok(size == stat.size)
}
