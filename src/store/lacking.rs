//! Which objects a mirror lacks for a commit, and what of what it has may resemble each.
//!
//! A new artifact most often replaces an old one: at the same path, elsewhere under its name, or
//! beside it under a name that differs in a version number. A guess that is wrong costs a question.

use std::collections::HashSet;

use super::{Listing, Result, Store};
use crate::model::{Content, Entry, Kind, ObjectId, Oid, RelPath, Subset};

/// An object that is needed and not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// Its name.
    pub id: ObjectId,
    /// Its size in bytes.
    pub size: u64,
    /// An object that is here and may be an older version of it.
    pub base: Option<ObjectId>,
}

impl Store {
    /// The objects that the difference needs and that are not here, each once.
    ///
    /// # Errors
    /// When a commit, its trees or blobs are not here or damaged.
    pub fn lacking(&self, from: Option<Oid>, to: Oid) -> Result<Vec<Lacking>> {
        self.lacking_of(from, to, &Subset::all())
    }

    /// [`Store::lacking`], for a part of the feed.
    ///
    /// # Errors
    /// As there.
    pub fn lacking_of(&self, from: Option<Oid>, to: Oid, part: &Subset) -> Result<Vec<Lacking>> {
        let mut seen = HashSet::new();
        let mut found: Vec<(RelPath, Lacking)> = Vec::new();
        let mut replaced = Vec::new();
        self.differences(from, to, &mut |change| {
            let old = change.before.as_ref().map_or(Ok(None), |entry| self.object_here(entry))?;
            replaced.extend(old.map(|id| (change.path.name().to_vec(), id)));
            let Some((id, size)) = change.after.as_ref().map_or(Ok(None), |e| self.object_of(e))?
            else {
                return Ok(());
            };
            if part.holds(&change.path, false) && seen.insert(id) {
                self.fresh.add(id);
                if !self.object_path(&id).exists() {
                    found.push((change.path, Lacking { id, size, base: old }));
                }
            }
            Ok(())
        })?;
        let mut beside = Beside { store: self, from, folder: None };
        for (path, lacking) in &mut found {
            if lacking.base.is_none() {
                lacking.base = named_alike(path.name(), &replaced, |name| name)
                    .or_else(|| named_alike(path.name(), &replaced, letters));
            }
            if lacking.base.is_none() {
                lacking.base = beside.find(path)?;
            }
        }
        Ok(found.into_iter().map(|(_, lacking)| lacking).collect())
    }

    fn object_of(&self, entry: &Entry) -> Result<Option<(ObjectId, u64)>> {
        let Kind::File { blob, .. } = entry.kind else { return Ok(None) };
        Ok(match self.content(blob)? {
            Content::Object { id, size } => Some((id, size)),
            Content::Blob(_) => None,
        })
    }

    fn object_here(&self, entry: &Entry) -> Result<Option<ObjectId>> {
        let id = self.object_of(entry)?.map(|(id, _)| id);
        // What is made out of it must find it.
        if let Some(id) = id {
            self.fresh.add(id);
        }
        Ok(id.filter(|id| self.object_path(id).exists()))
    }
}

/// What lies beside a new file in the old tree.
struct Beside<'a> {
    store: &'a Store,
    from: Option<Oid>,
    /// Of the folder that was asked about last: differences come in the order of paths.
    folder: Option<(RelPath, Listing)>,
}

impl Beside<'_> {
    /// The object with the last of the names that are alike but for a version number.
    fn find(&mut self, path: &RelPath) -> Result<Option<ObjectId>> {
        let (Some(from), Some(parent)) = (self.from, path.parent()) else { return Ok(None) };
        if self.folder.as_ref().is_none_or(|(known, _)| *known != parent) {
            let listing = self.store.list(from, &parent)?.unwrap_or_default();
            self.folder = Some((parent, listing));
        }
        let (_, listing) = self.folder.as_ref().expect("just read");
        let alike = letters(path.name());
        for (_, entry) in listing.iter().rev().filter(|(name, _)| letters(name) == alike) {
            if let Some(id) = self.store.object_here(entry)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}

fn named_alike<'a, T: PartialEq>(
    name: &'a [u8],
    among: &'a [(Vec<u8>, ObjectId)],
    by: impl Fn(&'a [u8]) -> T,
) -> Option<ObjectId> {
    let alike = by(name);
    among.iter().rev().find(|(name, _)| by(name) == alike).map(|(_, id)| *id)
}

/// A name without what versions are written with: `shop-1.4.2.war` is `shopwar`.
fn letters(name: &[u8]) -> Vec<u8> {
    name.iter().copied().filter(|c| c.is_ascii_alphabetic() || !c.is_ascii()).collect()
}
