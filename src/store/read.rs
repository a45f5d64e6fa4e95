//! Reading a published tree: single entries, folders, the whole, and the difference of two.

use std::{collections::HashSet, sync::PoisonError};

use bytes::Bytes;

use super::{
    Commit, Result, Store, commit,
    db::{Db, Type},
    diff,
    folder::{Folder, FolderId, Item},
};
use crate::model::{Change, Content, Entry, Kind, Meta, ObjectId, Oid, RelPath};

/// The entries of a folder by name.
pub type Listing = Vec<(Vec<u8>, Entry)>;

/// Files and bytes of one commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    commit: Oid,
    files: u64,
    bytes: u64,
}

impl Db {
    /// Reads a commit.
    pub(super) fn commit(&self, id: Oid) -> Result<Commit> {
        commit::parse(id, &self.read_often(Type::Commit, id)?)
    }
}

impl Store {
    fn read_often(&self, kind: Type, id: Oid) -> Result<Bytes> {
        self.db.read_often(kind, id)
    }

    fn root(&self, commit: Oid) -> Result<FolderId> {
        FolderId::root(&|kind, id| self.read_often(kind, id), self.commit(commit)?.tree)
    }

    fn folder(&self, id: FolderId) -> Result<Folder> {
        Folder::read(&|kind, id| self.read_often(kind, id), id)
    }

    /// What lies at `path` in that commit's tree. The root is a folder.
    ///
    /// # Errors
    /// When the commit or its trees are not here or damaged.
    pub fn entry(&self, commit: Oid, path: &RelPath) -> Result<Option<Entry>> {
        let Some(parent) = path.parent() else {
            return Ok(Some(Entry { kind: Kind::Dir, meta: Meta::default() }));
        };
        let Some(parent) = self.content_of(commit, &parent)? else { return Ok(None) };
        let parent = self.folder(parent)?;
        parent.find(path.name())?.map(|item| item.entry()).transpose()
    }

    /// None when there is no such folder.
    fn content_of(&self, commit: Oid, dir: &RelPath) -> Result<Option<FolderId>> {
        let mut id = self.root(commit)?;
        for name in dir.components() {
            match self.folder(id)?.find(name)?.filter(Item::is_folder) {
                Some(item) => id = item.content(),
                None => return Ok(None),
            }
        }
        Ok(Some(id))
    }

    /// The entries of a folder in that commit, by name. None when there is no such folder.
    ///
    /// # Errors
    /// When the commit or its trees are not here or damaged.
    pub fn list(&self, commit: Oid, dir: &RelPath) -> Result<Option<Listing>> {
        let Some(id) = self.content_of(commit, dir)? else { return Ok(None) };
        let folder = self.folder(id)?;
        let items = folder.items()?.into_iter();
        items.map(|item| Ok((item.name.to_vec(), item.entry()?))).collect::<Result<_>>().map(Some)
    }

    /// Hands every entry of a tree to `visit`, in path order, a folder before what it holds.
    ///
    /// # Errors
    /// When the commit or its trees are not here or damaged.
    pub fn walk(&self, commit: Oid, visit: &mut dyn FnMut(RelPath, Entry)) -> Result<()> {
        self.differences(None, commit, &mut |change| {
            if let Some(entry) = change.after {
                visit(change.path, entry);
            }
            Ok(())
        })
    }

    /// The difference of two trees (none: empty), in path order; equal subtrees cost nothing.
    ///
    /// # Errors
    /// When a commit or its trees are not here or damaged.
    pub fn diff(&self, from: Option<Oid>, to: Oid) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        self.differences(from, to, &mut |change| {
            changes.push(change);
            Ok(())
        })?;
        Ok(changes)
    }

    pub(super) fn differences(
        &self,
        from: Option<Oid>,
        to: Oid,
        visit: &mut dyn FnMut(Change) -> Result<()>,
    ) -> Result<()> {
        let from = from.map_or(Ok(FolderId::default()), |from| self.root(from))?;
        let to = self.root(to)?;
        diff::differences(&|kind, id| self.read_often(kind, id), from, to, visit)
    }

    /// The bytes of a blob: at most a feed's `large_file`, or a link's target.
    ///
    /// # Errors
    /// When it is not here or damaged.
    pub fn read_blob(&self, blob: Oid) -> Result<Vec<u8>> {
        Ok(self.db.read(Type::Blob, blob)?.into())
    }

    /// The number of files and links of a commit, and their bytes. Known for the commit asked
    /// about last; for another one, by the difference from it.
    ///
    /// # Errors
    /// When the commit or its trees are not here or damaged.
    pub fn totals(&self, commit: Oid) -> Result<(u64, u64)> {
        let lock = || self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        let known = *lock();
        let mut files = known.map_or(0, |known| known.files);
        let mut bytes = known.map_or(0, |known| known.bytes);
        self.differences(known.map(|known| known.commit), commit, &mut |change| {
            if let Some(blob) = change.before.and_then(|entry| blob_of(&entry)) {
                files -= 1;
                bytes -= self.content_and_size(blob)?.1;
            }
            if let Some(blob) = change.after.and_then(|entry| blob_of(&entry)) {
                files += 1;
                bytes += self.content_and_size(blob)?.1;
            }
            Ok(())
        })?;
        *lock() = Some(Totals { commit, files, bytes });
        Ok((files, bytes))
    }

    /// The objects that the difference needs and that are not here, each once, with their sizes.
    ///
    /// # Errors
    /// When a commit, its trees or blobs are not here or damaged.
    pub fn missing_objects(&self, from: Option<Oid>, to: Oid) -> Result<Vec<(ObjectId, u64)>> {
        let mut seen = HashSet::new();
        let mut missing = Vec::new();
        self.differences(from, to, &mut |change| {
            let Some(Entry { kind: Kind::File { blob, .. }, .. }) = change.after else {
                return Ok(());
            };
            if let Content::Object { id, size } = self.content(blob)?
                && seen.insert(id)
            {
                self.fresh.add(id);
                if !self.object_path(&id).exists() {
                    missing.push((id, size));
                }
            }
            Ok(())
        })?;
        Ok(missing)
    }
}

pub(super) fn blob_of(entry: &Entry) -> Option<Oid> {
    match entry.kind {
        Kind::File { blob, .. } | Kind::Symlink { blob } => Some(blob),
        Kind::Dir => None,
    }
}
