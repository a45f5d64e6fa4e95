//! Puts committed content back into the directory: held deletions that are rejected, older states.
//!
//! The same journalled placing as a mirror's checkout. A file that came back meanwhile with other
//! content goes aside, never lost.

use std::{collections::BTreeMap, io};

use super::Setup;
use crate::{
    disk::{self, Contents, Placed, Placing, Root, Source},
    model::{Change, Oid, RelPath},
    store::{Opened, Store},
};

/// Puts files back, each as that commit has it.
///
/// # Errors
/// For people: what could not be put back.
pub(super) fn put_back(
    setup: &Setup,
    root: &Root,
    head: Oid,
    files: &BTreeMap<RelPath, Oid>,
) -> Result<(), String> {
    let changes = changes(&setup.store, files).map_err(|error| error.to_string())?;
    let source = |blob| content(&setup.store, blob);
    place(setup, root, (None, head), &changes, &source).map(drop)
}

/// Puts a difference in place, from one commit to another.
///
/// # Errors
/// For people: what could not be put in place.
pub(super) fn place(
    setup: &Setup,
    root: &Root,
    (from, to): (Option<Oid>, Oid),
    changes: &[Change],
    source: Contents<'_>,
) -> Result<Placed, String> {
    let placing = Placing {
        root,
        journal: &setup.state.join("restore.journal"),
        aside: &setup.state.join("aside"),
        from,
        to,
        along: None,
        changes,
        keep: setup.options.keep,
        source,
        holds: None,
    };
    let placed = disk::place(&placing).map_err(|error| error.to_string())?;
    match placed.faults.first() {
        None => Ok(placed),
        Some((path, fault)) => {
            let count = placed.faults.len();
            Err(format!("{count} paths could not be put in place, the first is {path}: {fault}"))
        }
    }
}

/// The folders above the files come first, with the metadata that the commit has of them.
fn changes(store: &Store, files: &BTreeMap<RelPath, Oid>) -> crate::store::Result<Vec<Change>> {
    let mut paths = files.clone();
    for (file, commit) in files {
        let mut above = file.parent();
        while let Some(folder) = above.filter(|folder| !folder.is_root()) {
            above = folder.parent();
            paths.insert(folder, *commit);
        }
    }
    let mut changes = Vec::new();
    for (path, commit) in paths {
        let after = store.entry(commit, &path)?;
        if after.is_some() {
            changes.push(Change { path, before: None, after });
        }
    }
    Ok(changes)
}

pub(super) fn content(store: &Store, blob: Oid) -> io::Result<Source> {
    Ok(match store.open_content(blob)? {
        Opened::Bytes(bytes) => Source::Bytes(bytes),
        Opened::File(file) => Source::File(file),
    })
}
