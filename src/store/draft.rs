//! Making a commit: blobs as they are read, then only the trees on changed paths.
//!
//! All that is new goes into one pack, whole for whoever has the parent alone: a blob that lies in
//! the store but not on the parent's changed paths is written again. Until it is published, a
//! commit is three temporary files in `spool/`, gone when dropped.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
};

use bytes::Bytes;
use tempfile::NamedTempFile;

use super::{
    Commit, Error, Result, Signature, Store, commit,
    db::Type,
    diff,
    folder::FolderId,
    pack::{self, MAX_BLOB, Pack, PackWriter, PackedBlob},
    rebuild::{self, Statement},
    refs,
};
use crate::model::{Change, Entry, Head, Oid, RelPath};

/// A commit being made on top of the head; dropping it leaves nothing.
pub struct Draft<'a> {
    store: &'a Store,
    parent: Option<Commit>,
    pack: PackWriter,
    statements: Vec<Statement>,
}

/// A commit that is written in `spool/` and known to nobody.
pub struct Prepared {
    pub(super) commit: Commit,
    pub(super) pack: Pack,
    pub(super) index: NamedTempFile,
    /// What `main` will consist of.
    pub(super) reference: NamedTempFile,
    /// All that is new but blobs, which the next commit will want.
    pub(super) objects: Objects,
    /// Those of its blobs that stand for objects which came for it.
    pub(super) pointers: Vec<Oid>,
    from: FolderId,
    to: FolderId,
}

/// New objects that are in no database yet.
pub(super) type Objects = HashMap<Oid, Bytes>;

impl Prepared {
    /// The head that it becomes.
    pub fn head(&self) -> Head {
        self.commit.head
    }

    /// Its tree: the same content has the same, whenever it is committed.
    pub fn tree(&self) -> Oid {
        self.commit.tree
    }

    /// The difference from its parent, in path order. Read anew each time: that of a first import
    /// takes more memory than all the rest.
    ///
    /// # Errors
    /// When the parent's trees cannot be read.
    pub fn changes(&self, store: &Store) -> Result<Vec<Change>> {
        let mut changes = Vec::new();
        differences(store, self.from, self.to, &self.objects, &mut |change| changes.push(change))?;
        Ok(changes)
    }
}

impl<'a> Draft<'a> {
    pub(super) fn new(store: &'a Store, parent: Option<Commit>) -> Draft<'a> {
        let pack = PackWriter::new(&store.spool);
        Draft { store, parent, pack, statements: Vec::new() }
    }

    /// Stores a blob, once, and returns its id. What the store holds already is not written.
    ///
    /// # Errors
    /// [`Error::Refused`] when it is over [`MAX_BLOB`]; else when `spool/` cannot be written.
    pub fn add_blob(&mut self, bytes: &[u8]) -> Result<Oid> {
        if bytes.len() as u64 > MAX_BLOB {
            let size = bytes.len();
            return Err(Error::Refused(format!("a blob of {size} bytes: it must be an object")));
        }
        let id = pack::hash(Type::Blob, bytes);
        if !self.is_stored(id) {
            self.pack.add(Type::Blob, id, bytes)?;
        }
        Ok(id)
    }

    /// As [`Draft::add_blob`], for a blob that another thread has hashed and deflated.
    ///
    /// # Errors
    /// When `spool/` cannot be written.
    pub fn add_packed(&mut self, blob: &PackedBlob) -> Result<Oid> {
        if !self.is_stored(blob.id()) {
            self.pack.add_packed(&blob.0)?;
        }
        Ok(blob.id())
    }

    fn is_stored(&self, id: Oid) -> bool {
        // A first import need not ask for each of its files.
        self.parent.is_some() && self.store.db.has(id)
    }

    /// States what lies at `path` in the new tree; folders above it come by themselves. A
    /// `Kind::Dir` keeps what lies below, and makes the folder exist even when it is empty.
    pub fn put(&mut self, path: &RelPath, entry: Entry) {
        self.state(path.clone(), Some(entry));
    }

    /// States that nothing lies at `path`, nor below it.
    pub fn remove(&mut self, path: &RelPath) {
        self.state(path.clone(), None);
    }

    /// [`Draft::put`], or [`Draft::remove`] where there is no entry.
    pub fn state(&mut self, path: RelPath, entry: Option<Entry>) {
        self.statements.push(Statement { path, number: self.statements.len(), entry });
    }

    /// So many statements are to come.
    pub fn reserve(&mut self, statements: usize) {
        self.statements.reserve_exact(statements);
    }

    /// How much was stated so far.
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether nothing was stated.
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Writes trees and commit, one pack and its index into `spool/`. None when the tree is equal to the head's.
    ///
    /// # Errors
    /// When an entry's blob is nowhere, the head's trees cannot be read, or `spool/` not written.
    pub fn finish(self, by: &Signature) -> Result<Option<Prepared>> {
        self.finish_and_tell(by, |_| ())
    }

    /// [`Draft::finish`], handing each difference from the parent to `visit`, in path order.
    ///
    /// # Errors
    /// As [`Draft::finish`].
    pub fn finish_and_tell(
        self,
        by: &Signature,
        visit: impl FnMut(&Change),
    ) -> Result<Option<Prepared>> {
        self.finish_if(by, |root, base| root != base, visit)
    }

    /// [`Draft::finish`], also when the tree is equal to the head's: a commit that says only who
    /// owns the feed now, and in which epoch. None without a head.
    ///
    /// # Errors
    /// As [`Draft::finish`].
    pub fn finish_claim(self, by: &Signature) -> Result<Option<Prepared>> {
        let has_head = self.parent.is_some();
        self.finish_if(by, |_, _| has_head, |_| ())
    }

    fn finish_if(
        mut self,
        by: &Signature,
        is_wanted: impl FnOnce(&FolderId, &FolderId) -> bool,
        mut visit: impl FnMut(&Change),
    ) -> Result<Option<Prepared>> {
        let base = self.base()?;
        let (root, mut objects) = self.write_trees(base)?;
        if !is_wanted(&root, &base) {
            return Ok(None);
        }
        let (mut moved, mut pointers) = (Moved::default(), Vec::new());
        differences(self.store, base, root, &objects, &mut |change| {
            moved.note(&change, &self.pack);
            let blob = change.after.as_ref().and_then(|entry| entry.kind.blob());
            pointers.extend(blob.filter(|blob| self.store.fresh.awaits(*blob)));
            visit(&change);
        })?;
        self.add_moved_blobs(&moved)?;
        let commit = self.write_commit(root, by, &mut objects)?;
        let (pack, index, reference) = write_out(self.pack, &self.store.spool, commit.id)?;
        let (from, to) = (base, root);
        Ok(Some(Prepared { commit, pack, index, reference, objects, pointers, from, to }))
    }

    fn base(&self) -> Result<FolderId> {
        let read = |kind, id| self.store.db.read_often(kind, id);
        self.parent.as_ref().map_or(Ok(FolderId::default()), |c| FolderId::root(&read, c.tree))
    }

    fn write_trees(&mut self, base: FolderId) -> Result<(FolderId, Objects)> {
        let mut objects = Objects::new();
        let read = |kind, id| self.store.db.read_often(kind, id);
        let mut write = |kind, id, bytes: Vec<u8>| {
            self.pack.add(kind, id, &bytes)?;
            objects.insert(id, bytes.into());
            Ok(())
        };
        let statements = std::mem::take(&mut self.statements);
        let root = rebuild::rebuild(&read, &mut write, base, statements)?;
        Ok((root, objects))
    }

    /// Writes the blobs that came neither with this draft nor from the parent's changed paths.
    fn add_moved_blobs(&mut self, moved: &Moved) -> Result<()> {
        for id in moved.after.iter().filter(|id| !moved.before.contains(*id)) {
            let bytes = self.store.db.read(Type::Blob, *id)?;
            self.pack.add(Type::Blob, *id, &bytes)?;
        }
        Ok(())
    }

    fn write_commit(
        &mut self,
        root: FolderId,
        by: &Signature,
        objects: &mut Objects,
    ) -> Result<Commit> {
        let tree = root.tree.expect("a root always has a tree");
        let seq = self.parent.as_ref().map_or(0, |parent| parent.head.seq) + 1;
        let parent = self.parent.as_ref().map(|parent| parent.id);
        let mut raw = commit::encode(by, seq, tree, parent);
        if let Some(signer) = &self.store.keys.signer {
            raw = signer.sign(&raw).map_err(Error::Unsigned)?;
        }
        let raw = Bytes::from(raw);
        let id = pack::hash(Type::Commit, &raw);
        self.pack.add(Type::Commit, id, &raw)?;
        objects.insert(id, raw.clone());
        commit::parse(id, &raw)
    }
}

/// Blobs of a difference that may have to be written though the store has them.
#[derive(Default)]
struct Moved {
    /// On the parent's changed paths.
    before: HashSet<Oid>,
    /// On the new ones, and not in the draft's pack.
    after: BTreeSet<Oid>,
}

impl Moved {
    fn note(&mut self, change: &Change, pack: &PackWriter) {
        let blob = |entry: &Option<Entry>| entry.as_ref()?.kind.blob();
        self.before.extend(blob(&change.before));
        self.after.extend(blob(&change.after).filter(|id| !pack.contains(*id)));
    }
}

/// The difference of two trees, of which `new` are in no database yet.
fn differences(
    store: &Store,
    from: FolderId,
    to: FolderId,
    new: &Objects,
    visit: &mut dyn FnMut(Change),
) -> Result<()> {
    let read = |kind, id| match new.get(&id) {
        Some(bytes) => Ok(bytes.clone()),
        None => store.db.read_often(kind, id),
    };
    diff::differences(&read, from, to, &mut |change| {
        visit(change);
        Ok(())
    })
}

/// Completes the pack, with its index and what will be the reference; none is synced.
fn write_out(
    pack: PackWriter,
    spool: &Path,
    commit: Oid,
) -> Result<(Pack, NamedTempFile, NamedTempFile)> {
    let mut pack = pack.finish()?;
    let index = pack.write_index(spool)?;
    let reference = refs::in_spool(spool, commit)?;
    Ok((pack, index, reference))
}
