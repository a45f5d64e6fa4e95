//! First contact: a region's directory that holds files before anything was checked out there.
//!
//! Files that are the feed's own, byte for byte, are taken over as they are. Whatever else lies
//! there stops the mirror with a list before anything is changed, unless the operator allows it to
//! be moved aside; what the application server writes by itself and what `.depsyncignore` names is
//! left alone.

use std::collections::BTreeMap;

use crate::{
    disk::{Aside, FileKind},
    model::{Entry, Head, Kind, Names, Profile, RelPath, names},
    replica::{Error, checkout::Checkout, error::Foreign},
};

/// Looks at everything in the directory; an error when there is something to stop for.
pub(super) fn first_contact(checkout: &Checkout, to: &Head, profile: &str) -> Result<(), Error> {
    let mut feed = BTreeMap::new();
    checkout.store.walk(to.commit, &mut |path, entry| {
        if checkout.subset.holds(&path, entry.kind.is_dir()) {
            feed.insert(path, entry);
        }
    })?;
    let names = rules(checkout, &feed, profile)?;
    let mut foreign = Foreign::new(checkout.root.path().display().to_string());
    let mut extra = Vec::new();
    let found = walk(checkout, &|path, is_dir| {
        !feed.contains_key(path) && names.left_out_of_folder(path, is_dir).is_some()
    })?;
    for (path, kind) in found {
        match feed.get(&path) {
            None if kind == FileKind::Special => {}
            _ if kind == FileKind::Dir => {}
            Some(entry) if checkout.holds(&path, entry)? => {}
            Some(_) => foreign.add(path),
            None => {
                foreign.add(path.clone());
                extra.push(path);
            }
        }
    }
    if foreign.count > 0 && !checkout.adopt {
        return Err(Error::FirstContact(foreign));
    }
    // What lies where the feed has something else makes way when that is put there.
    let mut aside = Aside::new(&checkout.aside());
    for path in extra {
        let why = "lay there before the first checkout and is no file of the feed";
        let moved = aside.put(&checkout.root, &path, why);
        moved.map_err(|error| Error::Paths(vec![(path, error.to_string())]))?;
    }
    Ok(())
}

/// Everything that lies in the directory, folders before what is in them, but for what is ours,
/// git's, or left out.
pub(super) fn walk(
    checkout: &Checkout,
    left_out: &dyn Fn(&RelPath, bool) -> bool,
) -> Result<Vec<(RelPath, FileKind)>, Error> {
    let mut found = Vec::new();
    let mut folders = vec![RelPath::root()];
    while let Some(folder) = folders.pop() {
        for (name, stat) in checkout.root.list(&folder)? {
            let Ok(path) = folder.join(&name) else { continue }; // ours or git's
            let is_dir = stat.kind == FileKind::Dir;
            if left_out(&path, is_dir) {
                continue;
            }
            if is_dir {
                folders.push(path.clone());
            }
            found.push((path, stat.kind));
        }
    }
    Ok(found)
}

/// What does not belong to the feed: a profile or an ignore file that cannot be read leaves nothing
/// out, so that at worst there is more to say yes to.
pub(super) fn rules(
    checkout: &Checkout,
    feed: &BTreeMap<RelPath, Entry>,
    profile: &str,
) -> Result<Names, Error> {
    let path = RelPath::parse(names::IGNORE_FILE).expect("a plain name");
    let ignored = match feed.get(&path).map(|entry| entry.kind) {
        Some(Kind::File { blob, .. }) => checkout.store.read_blob(blob)?,
        _ => Vec::new(),
    };
    let profile = profile.parse::<Profile>().ok();
    let names = Names::new(profile, &ignored).or_else(|_| Names::new(profile, b""));
    Ok(names.expect("our own patterns can be read"))
}
