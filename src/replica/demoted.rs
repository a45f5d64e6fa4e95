//! The first checkout of a node that has owned the feed: what it had not published is kept.
//!
//! Its directory holds what the new owner has too (up to where the two lines part), and perhaps more:
//! files that were never committed, and commits that nobody fetched. Whatever the new owner does not
//! have goes aside and is listed; the rest becomes what the new owner has. Told by content alone, so
//! that it can be repeated after a kill.

use std::collections::BTreeMap;

use super::{
    Error, adopt,
    checkout::{Checkout, Done},
};
use crate::{
    disk::{Aside, FileKind},
    model::{Change, Entry, Head, Oid, RelPath},
    store::{self, Store},
};

/// What is said of each path that is put aside.
const WHY: &str = "this node owned the feed and had not published it when another took over";

/// Puts `to` in place in a directory whose last own commit was `last`.
pub(super) fn step_down(
    checkout: &Checkout,
    last: Oid,
    to: &Head,
    profile: &str,
) -> Result<Done, Error> {
    let store = &checkout.store;
    let new = tree(store, Some(to.commit))?;
    let common = tree(store, parting(store, last, to.commit)?)?;
    let names = adopt::rules(checkout, &new, profile)?;
    let known = |path: &RelPath| new.contains_key(path) || common.contains_key(path);
    let extra = adopt::walk(checkout, &|path, is_dir| {
        !known(path) && names.left_out_of_folder(path, is_dir).is_some()
    })?;
    let mut aside = Aside::new(&checkout.aside());
    let mut kept = Vec::new();
    for (path, kind) in extra.iter().filter(|(path, _)| !known(path)) {
        if *kind != FileKind::Dir {
            let moved = aside.put(&checkout.root, path, WHY);
            moved.map_err(|error| Error::Paths(vec![(path.clone(), error.to_string())]))?;
            kept.push(path.clone());
        }
    }
    // Folders that held nothing else, the innermost first.
    for (path, kind) in extra.iter().rev().filter(|(path, _)| !known(path)) {
        if *kind == FileKind::Dir && checkout.root.list(path)?.is_empty() {
            checkout.root.remove(path)?;
        }
    }
    let mut done = checkout.place(None, to.commit, &changes(checkout, &common, &new)?)?;
    done.placed.set_aside.extend(kept);
    Ok(done)
}

/// What differs between the two trees, or between the new one and the directory.
fn changes(
    checkout: &Checkout,
    common: &BTreeMap<RelPath, Entry>,
    new: &BTreeMap<RelPath, Entry>,
) -> Result<Vec<Change>, Error> {
    let mut changes = Vec::new();
    for (path, after) in new {
        let before = common.get(path).cloned();
        if before.as_ref() != Some(after) || !checkout.holds(path, after)? {
            changes.push(Change { path: path.clone(), before, after: Some(after.clone()) });
        }
    }
    let gone = common.iter().filter(|(path, _)| !new.contains_key(*path));
    changes.extend(gone.map(|(path, before)| Change {
        path: path.clone(),
        before: Some(before.clone()),
        after: None,
    }));
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

fn tree(store: &Store, commit: Option<Oid>) -> Result<BTreeMap<RelPath, Entry>, Error> {
    let mut tree = BTreeMap::new();
    if let Some(commit) = commit {
        store.walk(commit, &mut |path, entry| {
            tree.insert(path, entry);
        })?;
    }
    Ok(tree)
}

/// The newest commit that both lines have; none: they have none in common, or it is not known here.
fn parting(store: &Store, ours: Oid, theirs: Oid) -> Result<Option<Oid>, Error> {
    let (mut a, mut b) = (store.commit(ours)?, store.commit(theirs)?);
    while a.id != b.id {
        let step = if a.head.seq >= b.head.seq { &mut a } else { &mut b };
        let Some(parent) = step.parent else { return Ok(None) };
        *step = match store.commit(parent) {
            Err(store::Error::UnknownCommit(_)) => return Ok(None),
            commit => commit?,
        };
    }
    Ok(Some(a.id))
}
