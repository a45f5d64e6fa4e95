//! An object on its way in: appended to, gone on with after a break or a kill, visible once it is
//! verified and durable.
//!
//! It lies at `spool/<sha256>.part`, locked by whoever writes it. Its SHA-256 is computed while it is
//! written; of wrong bytes nothing stays.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use super::{
    Error, Result, Store,
    blocks::{self, OVERLAP, Round, Way, WriteBehind, read_blocks},
    objects::keep,
    sound::Sound,
};
use crate::model::ObjectId;

/// How the file of an object on its way in ends.
pub(super) const PARTIAL: &str = ".part";

/// An object on its way in. Dropping it keeps what came, for another try.
pub struct ObjectWriter {
    git: PathBuf,
    file: File,
    path: PathBuf,
    hasher: Sha256,
    offset: u64,
    behind: WriteBehind,
    id: ObjectId,
    size: u64,
    sound: Arc<Sound>,
}

impl Store {
    /// Starts taking an object in, or goes on with what is here of it.
    ///
    /// # Errors
    /// [`Error::Busy`] when somebody else does; else when `spool/` cannot be written.
    pub fn object_writer(&self, id: ObjectId, size: u64) -> Result<ObjectWriter> {
        self.fresh.add(id);
        let path = self.spool.join(format!("{id}{PARTIAL}"));
        let opened = OpenOptions::new().read(true).append(true).create(true).open(&path);
        let mut file = opened.map_err(Error::io("open", &path))?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Error::Busy(id));
        }
        let mut hasher = Sha256::new();
        let mut offset = read_blocks(&mut file, |block| {
            hasher.update(block);
            Ok(())
        })
        .map_err(Error::io("read", &path))?;
        if offset > size {
            file.set_len(0).map_err(Error::io("empty", &path))?;
            (hasher, offset) = (Sha256::new(), 0);
        }
        let behind = WriteBehind::from(offset);
        let (git, sound) = (self.git.clone(), Arc::clone(&self.sound));
        Ok(ObjectWriter { git, file, path, hasher, offset, behind, id, size, sound })
    }
}

impl ObjectWriter {
    /// How many bytes are here: where to go on.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// [`Error::Refused`] when they are more than the object has; else when they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.append(bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Appends what `make` writes and flushes. A large object is hashed beside it, by a thread.
    ///
    /// # Errors
    /// What `make` answers; what it writes is refused as by [`ObjectWriter::write`].
    pub fn fill<T>(&mut self, make: impl FnOnce(&mut dyn Write) -> T) -> T {
        if self.size.saturating_sub(self.offset) <= OVERLAP {
            return make(self);
        }
        let mut hasher = std::mem::take(&mut self.hasher);
        let (to_hasher, blocks) = blocks::way();
        let (made, hasher) = std::thread::scope(|scope| {
            let hashing = scope.spawn(move || {
                for (block, filled) in &blocks {
                    hasher.update(&block[..filled]);
                }
                hasher
            });
            let round = Round::new();
            let made = make(&mut Beside { writer: self, round, filled: 0, to_hasher });
            (made, hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        self.hasher = hasher;
        made
    }

    /// All but the hashing.
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.offset + bytes.len() as u64 > self.size {
            return Err(self.refuse(&format!("more than its {} bytes came", self.size)));
        }
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))?;
        self.behind.wrote(&self.file, bytes.len());
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Forgets what came: it is to be made in another way.
    ///
    /// # Errors
    /// When the file cannot be emptied.
    pub fn start_again(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(Error::io("empty", &self.path))?;
        (self.hasher, self.offset, self.behind) = (Sha256::new(), 0, WriteBehind::default());
        Ok(())
    }

    /// Checks size and SHA-256, then makes it durable and visible.
    ///
    /// # Errors
    /// [`Error::Refused`] for wrong bytes, of which nothing stays; for too few, they stay.
    pub fn finish(mut self) -> Result<()> {
        if self.offset < self.size {
            let (have, size) = (self.offset, self.size);
            return Err(Error::Refused(format!(
                "object {} ended after {have} of {size} bytes",
                self.id
            )));
        }
        let found = ObjectId::from_bytes(std::mem::take(&mut self.hasher).finalize().into());
        if found != self.id {
            return Err(self.refuse(&format!("its SHA-256 is {found}")));
        }
        keep(&self.git, &self.path, &self.id)?;
        self.sound.trust(self.id, &self.file);
        Ok(())
    }

    fn refuse(&self, why: &str) -> Error {
        // Best effort: what stays is hashed again before it is used.
        let _ = fs::remove_file(&self.path);
        Error::Refused(format!("object {}: {why}", self.id))
    }
}

/// For what makes an object here, out of another: see [`ObjectWriter::write`].
impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        ObjectWriter::write(self, bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends to an object in blocks, which another thread hashes.
struct Beside<'a> {
    writer: &'a mut ObjectWriter,
    round: Round,
    filled: usize,
    to_hasher: Way,
}

impl Write for Beside<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = &mut self.round.current()[self.filled..];
        let taken = room.len().min(bytes.len());
        room[..taken].copy_from_slice(&bytes[..taken]);
        let is_full = taken == room.len();
        self.filled += taken;
        if is_full {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        let block = self.round.filled(std::mem::take(&mut self.filled));
        self.writer.append(&block.0[..block.1]).map_err(io::Error::other)?;
        self.to_hasher.send(block).map_err(io::Error::other)
    }
}
