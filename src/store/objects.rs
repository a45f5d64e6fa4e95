//! Large artifacts: stored once under their SHA-256, where git-lfs keeps them.
//!
//! Everything streams; nothing has its final name before its bytes are verified and durable. In a
//! tree an object is a git-lfs pointer.

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
};

use rustix::fs::{FlockOperation, flock};

use super::{Error, Part, Result, Store, blocks, db::Type, durable, object_writer::PARTIAL, pack};
use crate::model::{Content, ObjectId, Oid};

/// An object that was stored from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingested {
    /// The content's SHA-256.
    pub id: ObjectId,
    /// Its size in bytes.
    pub size: u64,
}

const POINTER_VERSION: &str = "version https://git-lfs.github.com/spec/v1\n";
/// Version line, `oid sha256:` with 64 digits, `size ` with 1 to 20 digits.
pub(super) const POINTER_SIZES: std::ops::RangeInclusive<u64> = 126..=145;
/// git-lfs takes nothing larger for a pointer.
const ANY_POINTER: usize = 1024;

/// What a blob stands for, opened for reading.
#[derive(Debug)]
pub enum Opened {
    /// The blob itself.
    Bytes(Vec<u8>),
    /// A large file's object.
    File(File),
}

impl Store {
    /// The git-lfs pointer text of an object.
    pub fn pointer(object: &Ingested) -> Vec<u8> {
        let Ingested { id, size } = object;
        format!("{POINTER_VERSION}oid sha256:{id}\nsize {size}\n").into_bytes()
    }

    /// Whether git-lfs might take these bytes for a pointer: a file that holds them must become an
    /// object itself, so that every pointer in a tree is ours.
    pub fn reads_as_pointer(bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(ANY_POINTER)]);
        bytes.len() <= ANY_POINTER
            && text.trim_start().starts_with("version ")
            && text.contains("oid ")
    }

    /// Where a blob's bytes really are.
    ///
    /// # Errors
    /// When there is no such blob.
    pub fn content(&self, blob: Oid) -> Result<Content> {
        Ok(self.content_and_size(blob)?.0)
    }

    /// The size in bytes of what a blob stands for.
    ///
    /// # Errors
    /// When there is no such blob.
    pub fn size(&self, blob: Oid) -> Result<u64> {
        Ok(self.content_and_size(blob)?.1)
    }

    /// With the size of what it stands for.
    pub(super) fn content_and_size(&self, blob: Oid) -> Result<(Content, u64)> {
        let size = self.db.size(Type::Blob, blob)?;
        if POINTER_SIZES.contains(&size)
            && let Some(Ingested { id, size }) = parse_pointer(&self.db.read(Type::Blob, blob)?)
        {
            return Ok((Content::Object { id, size }, size));
        }
        Ok((Content::Blob(blob), size))
    }

    /// What a blob stands for, opened for reading.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when its object is not here; else when it cannot be read.
    pub fn open_content(&self, blob: Oid) -> io::Result<Opened> {
        let object = match self.content(blob).map_err(io::Error::other)? {
            Content::Blob(blob) => {
                return self.read_blob(blob).map(Opened::Bytes).map_err(io::Error::other);
            }
            Content::Object { id, .. } => id,
        };
        let missing = || {
            let reason = format!("the object {object} is not in the store");
            io::Error::new(io::ErrorKind::NotFound, reason)
        };
        let file = self.open_object(&object).map_err(io::Error::other)?;
        file.map(Opened::File).ok_or_else(missing)
    }

    /// An object's file, for reading; none when it is not here.
    ///
    /// # Errors
    /// When it is here and cannot be opened.
    pub fn open_object(&self, id: &ObjectId) -> Result<Option<File>> {
        let path = self.object_path(id);
        match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => self.sound_or_none(id, opened.map_err(Error::io("open", &path))?),
        }
    }

    /// A damaged one is as good as none: it is put away, and comes back.
    fn sound_or_none(&self, id: &ObjectId, file: File) -> Result<Option<File>> {
        let path = self.object_path(id);
        if self.sound.holds(id, &file).map_err(Error::io("read", &path))? {
            return Ok(Some(file));
        }
        self.put_away(&Part::Object(*id))?;
        self.alarms.fetch_add(1, Relaxed);
        Ok(None)
    }

    /// Whether an object is here. Its bytes are not looked at.
    pub fn has_object(&self, id: &ObjectId) -> bool {
        self.object_path(id).exists()
    }

    /// Where an object lies, or would.
    pub(super) fn object_path(&self, id: &ObjectId) -> PathBuf {
        object_path(&self.git, id)
    }

    /// Stores all of a file, from its start, as an object: hashed and cut while it is copied, synced,
    /// renamed. The file is read, never changed.
    ///
    /// # Errors
    /// When it cannot be read, or the store not written; nothing stays.
    pub fn ingest(&self, from: &mut File) -> Result<Ingested> {
        let mut temporary = pack::temporary(&self.spool)?;
        let path = temporary.path().to_owned();
        let to = temporary.as_file_mut();
        let size = from.metadata().map_err(Error::io("read", &path))?.len();
        // A clone takes no room, but most disks have none.
        self.check_room(size)?;
        let copied = blocks::copy(from, to).map_err(Error::io("copy an artifact to", &path));
        let (object, cuts) = copied?;
        let pointer = pack::hash(Type::Blob, &Store::pointer(&object));
        self.fresh.add_for(pointer, object.id);
        keep(&self.git, &path, &object.id)?;
        self.sound.trust(object.id, temporary.as_file());
        self.keep_cuts(&object.id, &cuts)?;
        Ok(object)
    }

    /// Removes what is here of objects on their way in, other than these. One that is being received
    /// at this moment stays.
    ///
    /// # Errors
    /// When `spool/` cannot be listed or written.
    pub fn sweep_parts(&self, wanted: &HashSet<ObjectId>) -> Result<()> {
        for entry in fs::read_dir(&self.spool).map_err(Error::io("list", &self.spool))? {
            let path = entry.map_err(Error::io("list", &self.spool))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let id = name.strip_suffix(PARTIAL).and_then(|id| id.parse::<ObjectId>().ok());
            if id.is_none_or(|id| wanted.contains(&id)) {
                continue;
            }
            let file = File::open(&path).map_err(Error::io("open", &path))?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            }
        }
        Ok(())
    }
}

/// Where git-lfs looks for an object of the repository `git`.
pub(super) fn object_path(git: &Path, id: &ObjectId) -> PathBuf {
    shelf(&git.join("lfs/objects"), id)
}

/// Where something named by an object's id lies in a folder: git-lfs spreads them over two levels.
pub(super) fn shelf(folder: &Path, id: &ObjectId) -> PathBuf {
    let hex = id.to_string();
    folder.join(&hex[..2]).join(&hex[2..4]).join(&hex)
}

/// Moves a verified file to its name, durably.
pub(super) fn keep(git: &Path, at: &Path, id: &ObjectId) -> Result<()> {
    let path = object_path(git, id);
    if path.exists() {
        return fs::remove_file(at).map_err(Error::io("remove", at));
    }
    let folder = path.parent().expect("an object lies in a folder");
    fs::create_dir_all(folder).map_err(Error::io("make", folder))?;
    durable::sync_file(at)?;
    // New folders became durable with the bytes, in one wait, where the file system has a journal.
    for above in folder.ancestors().skip(1).take(2) {
        durable::sync_folder(above)?;
    }
    durable::rename(at, &path)?;
    durable::sync_folder(folder)
}

/// Reads exactly what `Store::pointer` writes.
pub(super) fn parse_pointer(bytes: &[u8]) -> Option<Ingested> {
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix(POINTER_VERSION)?;
    let (id, size) = text.strip_prefix("oid sha256:")?.split_once("\nsize ")?;
    let object = Ingested { id: id.parse().ok()?, size: size.strip_suffix('\n')?.parse().ok()? };
    (Store::pointer(&object) == bytes).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_text_is_a_pointer() {
        let object = Ingested { id: ObjectId::from_bytes([7; 32]), size: u64::MAX };
        let text = Store::pointer(&object);
        assert!(POINTER_SIZES.contains(&(text.len() as u64)));
        assert_eq!(
            Store::pointer(&Ingested { size: 0, ..object }).len() as u64,
            *POINTER_SIZES.start()
        );
        assert_eq!(parse_pointer(&text), Some(object));
        assert!(Store::reads_as_pointer(&text));
        let text = String::from_utf8(text).unwrap();
        for other in [
            text.replace("size ", "size 0"),
            text.replace("spec/v1", "spec/v2"),
            format!("{text}\n"),
        ] {
            assert_eq!(parse_pointer(other.as_bytes()), None, "{other}");
            assert!(Store::reads_as_pointer(other.as_bytes()), "{other}");
        }
        assert!(!Store::reads_as_pointer(b"version 1.2 of something else"));
    }
}
