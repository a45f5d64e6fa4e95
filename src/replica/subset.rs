//! The part of a feed that a region keeps: which changes are put in place, which objects are fetched.
//!
//! Packs come whole, so that history is whole; the directory and the large objects are only of the
//! part. Which part lies in the directory is noted beside it: when the configuration names another
//! one, the difference between the two parts is put in place too.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use super::{Error, checkout::Checkout};
use crate::model::{Change, Entry, Oid, RelPath, Subset};

/// The patterns of the part that lies in the directory; no such file: all of it.
pub(super) struct Noted {
    path: PathBuf,
}

impl Noted {
    /// Beside the feed's repository, in `<state>/feeds/<feed>`.
    pub(super) fn at(state: &Path) -> Self {
        Noted { path: state.join("paths") }
    }

    /// What was noted.
    pub(super) fn read(&self) -> Result<Vec<String>, Error> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(text.lines().map(ToOwned::to_owned).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(Error::Spool { path: self.path.clone(), source }),
        }
    }

    /// Notes these patterns; the same again costs a look.
    pub(super) fn write(&self, patterns: &[String]) -> Result<(), Error> {
        if self.read()? == patterns {
            return Ok(());
        }
        let text = patterns.iter().fold(String::new(), |text, pattern| text + pattern + "\n");
        let write = || {
            let folder = self.path.parent().unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            io::Write::write_all(&mut file, text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(&self.path).map_err(|error| error.error)?;
            fs::File::open(folder)?.sync_all()
        };
        write().map_err(|source| Error::Spool { path: self.path.clone(), source })
    }
}

/// Of the changes from `from` to `to`, those of the part; and what the part itself has gained or
/// lost since `before`.
pub(super) fn select(
    checkout: &Checkout,
    before: &Subset,
    from: Option<Oid>,
    to: Oid,
    changes: Vec<Change>,
) -> Result<Vec<Change>, Error> {
    let (part, store) = (&*checkout.subset, &checkout.store);
    let mut chosen: BTreeMap<RelPath, Change> = BTreeMap::new();
    for change in changes {
        let is_dir = [&change.before, &change.after].iter().all(|side| is_folder(side.as_ref()));
        let lies = before.holds(&change.path, is_dir);
        match (lies, part.holds(&change.path, is_dir)) {
            (_, true) => drop(chosen.insert(change.path.clone(), change)),
            (true, false) => {
                drop(chosen.insert(change.path.clone(), Change { after: None, ..change }));
            }
            // A folder on the way to what lies there goes with it.
            (false, false) if is_dir && change.after.is_none() => {
                chosen.insert(change.path.clone(), change);
            }
            (false, false) => {}
        }
    }
    let mut moved = Vec::new();
    store.walk(to, &mut |path, entry| {
        let is_dir = entry.kind.is_dir();
        if before.holds(&path, is_dir) != part.holds(&path, is_dir) {
            moved.push((path, entry));
        }
    })?;
    for (path, entry) in moved {
        let was = from.map(|from| store.entry(from, &path)).transpose()?.flatten();
        let is_kept = part.holds(&path, entry.kind.is_dir());
        let (before, after) = if is_kept { (None, Some(entry)) } else { (was, None) };
        if before.is_some() || after.is_some() {
            chosen.insert(path.clone(), Change { path, before, after });
        }
    }
    folders_above(checkout, to, &mut chosen)?;
    Ok(chosen.into_values().collect())
}

fn is_folder(entry: Option<&Entry>) -> bool {
    entry.is_none_or(|entry| entry.kind.is_dir())
}

/// What is put in place needs the folders above it, though the part does not name them.
fn folders_above(
    checkout: &Checkout,
    to: Oid,
    chosen: &mut BTreeMap<RelPath, Change>,
) -> Result<(), Error> {
    let placed = chosen.values().filter(|change| change.after.is_some());
    let mut wanted: Vec<RelPath> = placed.filter_map(|change| change.path.parent()).collect();
    while let Some(folder) = wanted.pop() {
        if folder.is_root()
            || chosen.contains_key(&folder)
            || checkout.root.stat(&folder)?.is_some()
        {
            continue;
        }
        let after = checkout.store.entry(to, &folder)?;
        chosen.insert(folder.clone(), Change { path: folder.clone(), before: None, after });
        wanted.extend(folder.parent());
    }
    Ok(())
}
