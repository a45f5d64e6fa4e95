//! Whether a stored object's bytes are still those of its name, before they are given to anyone.
//!
//! An object is hashed when it is opened for the first time since the start, and again whenever its
//! file has another size, time or inode than when it was last hashed. So a damaged or replaced file is
//! never served; what changes a disk's bytes and nothing else is for the scrub to find.

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Mutex, PoisonError},
};

use sha2::{Digest, Sha256};

use crate::model::ObjectId;

const BLOCK: usize = 1 << 20;
/// 100 bytes each; beyond it all are hashed again.
const MOST: usize = 1 << 17;

/// What a file was when its bytes were right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// The objects whose bytes were right when they were last hashed.
#[derive(Default)]
pub(super) struct Sound(Mutex<HashMap<ObjectId, Seen>>);

impl Sound {
    /// Whether the file holds the object of that name.
    pub(super) fn holds(&self, id: &ObjectId, file: &File) -> io::Result<bool> {
        let seen = Seen::of(file)?;
        if self.lock().get(id) == Some(&seen) {
            return Ok(true);
        }
        let right = hash(file)? == *id;
        if right {
            self.remember(*id, seen);
        }
        Ok(right)
    }

    /// Notes an object that was hashed while it was stored.
    pub(super) fn trust(&self, id: ObjectId, file: &File) {
        // Else it is hashed when it is opened.
        if let Ok(seen) = Seen::of(file) {
            self.remember(id, seen);
        }
    }

    fn remember(&self, id: ObjectId, seen: Seen) {
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(id, seen);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectId, Seen>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn of(file: &File) -> io::Result<Seen> {
        let about = file.metadata()?;
        let changed = (about.ctime(), about.ctime_nsec());
        Ok(Seen { inode: about.ino(), size: about.len(), changed })
    }
}

/// The SHA-256 of a whole file; where it stands is not moved.
pub(super) fn hash(file: &File) -> io::Result<ObjectId> {
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut at = 0;
    loop {
        match file.read_at(&mut block, at) {
            Ok(0) => return Ok(ObjectId::from_bytes(hasher.finalize().into())),
            Ok(n) => {
                hasher.update(&block[..n]);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
