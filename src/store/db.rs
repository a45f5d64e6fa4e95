//! Reading git objects: libgit2's object database on `git/objects`, with a small cache before it.
//!
//! Only the database is used, never a `Repository`, so no user or system git configuration is ever
//! read. Every object is checked against its id when it is read. Nothing is written here.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use bytes::Bytes;
use git2::{ErrorCode, ObjectType, Odb, OdbLookupFlags};

use super::{Error, Result};
use crate::model::Oid;

/// What a git object is. Tags do not occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Type {
    Commit,
    Tree,
    Blob,
}

impl Type {
    pub(super) fn name(self) -> &'static str {
        match self {
            Type::Commit => "commit",
            Type::Tree => "tree",
            Type::Blob => "blob",
        }
    }

    fn of(kind: ObjectType) -> Option<Type> {
        match kind {
            ObjectType::Commit => Some(Type::Commit),
            ObjectType::Tree => Some(Type::Tree),
            ObjectType::Blob => Some(Type::Blob),
            _ => None,
        }
    }
}

/// How trees and metadata are read by whoever walks them: from the database, or with objects in
/// front that are not published yet.
pub(super) type Read<'a> = dyn Fn(Type, Oid) -> Result<Bytes> + 'a;

/// One object database.
pub(super) struct Db {
    objects: PathBuf,
    /// Written to when packs go: libgit2 never forgets one that it has seen.
    odb: RwLock<Odb<'static>>,
    cache: Mutex<Cache>,
}

impl Db {
    /// Opens a folder like `.git/objects`.
    pub(super) fn open(objects: &Path) -> Result<Db> {
        let odb = RwLock::new(open(objects)?);
        Ok(Db { objects: objects.to_owned(), odb, cache: Mutex::default() })
    }

    /// Lets `remove` take packs away while nobody reads, and forgets them.
    pub(super) fn reopen_after(&self, remove: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut odb = self.odb.write().unwrap_or_else(PoisonError::into_inner);
        // libgit2 shares what it has open of a pack by its path: nobody may have the old one.
        *odb = Odb::new().map_err(Error::git("make an object database"))?;
        let removed = remove();
        *odb = open(&self.objects)?;
        removed
    }

    /// Keeps nothing at hand: something has gone that might be.
    pub(super) fn forget(&self) {
        *self.cache() = Cache::default();
    }

    fn odb(&self) -> RwLockReadGuard<'_, Odb<'static>> {
        self.odb.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads an object of that type.
    pub(super) fn read(&self, kind: Type, id: Oid) -> Result<Bytes> {
        let odb = self.odb();
        let object = odb.read(to_git(id)).map_err(|e| fault(kind, id, &e))?;
        if Type::of(object.kind()) != Some(kind) {
            return Err(wrong_type(kind, id));
        }
        Ok(Bytes::copy_from_slice(object.data()))
    }

    /// As `read`, for commits, trees and metadata: those on the paths to recent changes are
    /// remembered.
    pub(super) fn read_often(&self, kind: Type, id: Oid) -> Result<Bytes> {
        if let Some(bytes) = self.cache().get(id) {
            return Ok(bytes);
        }
        let bytes = self.read(kind, id)?;
        self.remember(id, bytes.clone());
        Ok(bytes)
    }

    /// Keeps a published object's bytes at hand.
    pub(super) fn remember(&self, id: Oid, bytes: Bytes) {
        self.cache().insert(id, bytes);
    }

    /// Keeps what another database has at hand, whose objects are here now.
    pub(super) fn remember_from(&self, other: &Db) {
        let read = std::mem::take(&mut *other.cache());
        for (id, bytes) in read.old.into_iter().chain(read.young) {
            self.remember(id, bytes);
        }
    }

    /// The size of an object of that type, without reading it whole.
    pub(super) fn size(&self, kind: Type, id: Oid) -> Result<u64> {
        let (size, found) = self.odb().read_header(to_git(id)).map_err(|e| fault(kind, id, &e))?;
        if Type::of(found) != Some(kind) {
            return Err(wrong_type(kind, id));
        }
        Ok(size as u64)
    }

    /// What an object is.
    pub(super) fn kind(&self, id: Oid) -> Result<Type> {
        let (_, found) = self.odb().read_header(to_git(id)).map_err(|e| any_fault(id, &e))?;
        Type::of(found).ok_or_else(|| Error::damaged(format!("object {id}"), "it is a tag"))
    }

    /// Reads an object for its bytes to be those of its id.
    pub(super) fn check(&self, id: Oid) -> Result<()> {
        self.odb().read(to_git(id)).map(drop).map_err(|e| any_fault(id, &e))
    }

    /// Whether an object is here. Packs that came after the last miss may go unseen: only for
    /// saving work.
    pub(super) fn has(&self, id: Oid) -> bool {
        self.odb().exists_ext(to_git(id), OdbLookupFlags::NO_REFRESH)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(objects: &Path) -> Result<Odb<'static>> {
    let odb = Odb::new().map_err(Error::git("make an object database"))?;
    let path = objects.to_str().ok_or_else(|| {
        let source = std::io::Error::other("its name is not UTF-8, which libgit2 needs");
        Error::io("open", objects)(source)
    })?;
    odb.add_disk_alternate(path).map_err(Error::git("open the object database"))?;
    Ok(odb)
}

fn to_git(id: Oid) -> git2::Oid {
    git2::Oid::from_bytes(id.as_bytes()).expect("20 bytes are an id")
}

fn fault(kind: Type, id: Oid, e: &git2::Error) -> Error {
    named_fault(kind.name(), id, e)
}

fn any_fault(id: Oid, e: &git2::Error) -> Error {
    named_fault("object", id, e)
}

fn named_fault(what: &'static str, id: Oid, e: &git2::Error) -> Error {
    match e.code() {
        ErrorCode::NotFound => Error::Missing { what, id },
        _ => Error::damaged(format!("{what} {id}"), e.message()),
    }
}

/// What has that id is something else.
pub(super) fn wrong_type(kind: Type, id: Oid) -> Error {
    Error::damaged(format!("object {id}"), format!("it is not a {}", kind.name()))
}

/// Two generations: what is used moves to the young one; when that is full, the old one is dropped.
#[derive(Default)]
struct Cache {
    young: HashMap<Oid, Bytes>,
    old: HashMap<Oid, Bytes>,
    young_bytes: usize,
}

/// Holds the trees and metadata of a folder with 100,000 files (9 MB) in one generation.
const GENERATION_BYTES: usize = 16 << 20;
/// What an entry costs besides its bytes.
const ENTRY_BYTES: usize = 100;

impl Cache {
    fn get(&mut self, id: Oid) -> Option<Bytes> {
        if let Some(bytes) = self.young.get(&id) {
            return Some(bytes.clone());
        }
        let bytes = self.old.remove(&id)?;
        self.insert(id, bytes.clone());
        Some(bytes)
    }

    fn insert(&mut self, id: Oid, bytes: Bytes) {
        let size = bytes.len() + ENTRY_BYTES;
        if size > GENERATION_BYTES {
            return;
        }
        if self.young_bytes + size > GENERATION_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(id, bytes).is_none() {
            self.young_bytes += size;
        }
    }
}
