//! Large artifacts: stored once under their SHA-256, where git-lfs keeps them.
//!
//! Everything streams; nothing has its final name before its bytes are verified and durable. In a
//! tree an object is a git-lfs pointer.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering::Relaxed, mpsc},
};

use rustix::fs::{FlockOperation, flock, ioctl_ficlone};
use sha2::{Digest, Sha256};

use super::{
    Error, Part, Result, Store,
    chunks::{Cuts, Cutter},
    db::Type,
    durable, pack,
    sound::Sound,
};
use crate::{
    model::{Content, ObjectId, Oid},
    sys,
};

/// An object that was stored from a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ingested {
    /// The content's SHA-256.
    pub id: ObjectId,
    /// Its size in bytes.
    pub size: u64,
}

/// Stays in the cache of a core while it is hashed, cut and written.
const BLOCK: usize = 256 << 10;
/// Above this, hashing, cutting and writing go on threads: below it, starting them costs more.
const OVERLAP: u64 = 4 << 20;
/// How many blocks may wait for each thread.
const BLOCKS_AHEAD: usize = 8;
/// How much is written before the disk is told to begin with it.
const WRITE_BEHIND: u64 = 8 << 20;

const POINTER_VERSION: &str = "version https://git-lfs.github.com/spec/v1\n";
/// Version line, `oid sha256:` with 64 digits, `size ` with 1 to 20 digits.
const POINTER_SIZES: std::ops::RangeInclusive<u64> = 126..=145;
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
        let copied = copy(from, to).map_err(Error::io("copy an artifact to", &path));
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
        let behind = WriteBehind { written: offset, begun: offset };
        let sound = Arc::clone(&self.sound);
        Ok(ObjectWriter {
            git: self.git.clone(),
            file,
            path,
            hasher,
            offset,
            behind,
            id,
            size,
            sound,
        })
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
fn keep(git: &Path, at: &Path, id: &ObjectId) -> Result<()> {
    let path = object_path(git, id);
    if path.exists() {
        return fs::remove_file(at).map_err(Error::io("remove", at));
    }
    durable::sync_file(at)?;
    let folder = path.parent().expect("an object lies in a folder");
    durable::make_folder(folder)?;
    durable::rename(at, &path)?;
    durable::sync_folder(folder)
}

/// How the file of an object on its way in ends.
pub(super) const PARTIAL: &str = ".part";

/// An object on its way in, at `spool/<sha256>.part`; verified before it becomes visible. Dropping
/// it keeps what came, for another try.
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
        if self.offset + bytes.len() as u64 > self.size {
            return Err(self.refuse(&format!("more than its {} bytes came", self.size)));
        }
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))?;
        self.behind.wrote(&self.file, bytes.len());
        self.hasher.update(bytes);
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

/// Reads exactly what `Store::pointer` writes.
fn parse_pointer(bytes: &[u8]) -> Option<Ingested> {
    let text = std::str::from_utf8(bytes).ok()?.strip_prefix(POINTER_VERSION)?;
    let (id, size) = text.strip_prefix("oid sha256:")?.split_once("\nsize ")?;
    let object = Ingested { id: id.parse().ok()?, size: size.strip_suffix('\n')?.parse().ok()? };
    (Store::pointer(&object) == bytes).then_some(object)
}

/// Copies a whole file; hashes and cuts the copy's bytes.
fn copy(from: &mut File, to: &mut File) -> io::Result<(Ingested, Cuts)> {
    from.seek(SeekFrom::Start(0))?;
    // A clone has the bytes of one moment, whatever the source's writers do meanwhile.
    if ioctl_ficlone(&*to, &*from).is_ok() {
        return read_through(to, None);
    }
    read_through(from, Some(to))
}

fn read_through(from: &mut File, to: Option<&mut File>) -> io::Result<(Ingested, Cuts)> {
    if from.metadata()?.len() > OVERLAP {
        return read_on_threads(from, to);
    }
    let (mut hasher, mut cutter) = (Sha256::new(), Cutter::default());
    let size = read_blocks(from, |block| {
        hasher.update(block);
        cutter.push(block);
        to.as_deref().map_or(Ok(()), |mut to| to.write_all(block))
    })?;
    Ok((Ingested { id: ObjectId::from_bytes(hasher.finalize().into()), size }, cutter.finish()))
}

/// Reads and hashes here, writes and cuts beside it.
fn read_on_threads(from: &mut File, to: Option<&mut File>) -> io::Result<(Ingested, Cuts)> {
    std::thread::scope(|scope| {
        let (to_cutter, blocks) = mpsc::sync_channel(BLOCKS_AHEAD);
        let cutter = scope.spawn(move || {
            let mut cutter = Cutter::default();
            take_blocks(&blocks, |block| {
                cutter.push(block);
                Ok(())
            })?;
            Ok::<_, io::Error>(cutter.finish())
        });
        let writer = to.map(|to| {
            let (to_writer, blocks) = mpsc::sync_channel(BLOCKS_AHEAD);
            let mut behind = WriteBehind::default();
            let write = move |block: &[u8]| {
                to.write_all(block)?;
                behind.wrote(to, block.len());
                Ok(())
            };
            (to_writer, scope.spawn(move || take_blocks(&blocks, write)))
        });
        let mut ways = vec![to_cutter];
        ways.extend(writer.as_ref().map(|(to_writer, _)| to_writer.clone()));
        let read = hash_and_send(from, &ways);
        drop(ways);
        let cuts = cutter.join().expect("cutting does not panic")?;
        if let Some((to_writer, writer)) = writer {
            drop(to_writer);
            // One that failed has hung up; its error is the one that counts.
            writer.join().expect("writing does not panic")?;
        }
        Ok((read?, cuts))
    })
}

/// Bytes that several threads look at, and which of them are meant.
type Block = (Arc<Vec<u8>>, usize);

fn hash_and_send(from: &mut File, ways: &[mpsc::SyncSender<Block>]) -> io::Result<Ingested> {
    // Used in turn: a new one for each block would be new pages from the system each time. When one
    // comes round again, each thread has let go of it: its queue is shorter than the round.
    let mut round: Vec<_> = (0..BLOCKS_AHEAD + 3).map(|_| Arc::new(vec![0; BLOCK])).collect();
    let (mut hasher, mut size, mut turn) = (Sha256::new(), 0, 0);
    loop {
        let block = Arc::make_mut(&mut round[turn]);
        let filled = fill(from, block)?;
        if filled == 0 {
            return Ok(Ingested { id: ObjectId::from_bytes(hasher.finalize().into()), size });
        }
        for way in ways {
            way.send((Arc::clone(&round[turn]), filled)).map_err(io::Error::other)?;
        }
        hasher.update(&round[turn][..filled]);
        size += filled as u64;
        turn = (turn + 1) % round.len();
    }
}

fn take_blocks(
    blocks: &mpsc::Receiver<Block>,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    blocks.iter().try_for_each(|(block, filled)| take(&block[..filled]))
}

/// Reads until the block is full or the file ends.
fn fill(from: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match from.read(&mut block[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Has the disk begin with what was written, a stretch at a time, so that a sync at the end has
/// little left to wait for.
#[derive(Debug, Default)]
struct WriteBehind {
    written: u64,
    begun: u64,
}

impl WriteBehind {
    /// So many more bytes were appended.
    fn wrote(&mut self, to: &File, bytes: usize) {
        self.written += bytes as u64;
        let waiting = self.written - self.begun;
        if waiting >= WRITE_BEHIND {
            sys::start_writing(to, self.begun, waiting);
            self.begun = self.written;
        }
    }
}

/// Reads to the end; returns how many bytes there were.
fn read_blocks(from: &mut File, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<u64> {
    let (mut size, mut block) = (0, vec![0; BLOCK]);
    loop {
        match fill(from, &mut block)? {
            0 => return Ok(size),
            n => {
                take(&block[..n])?;
                size += n as u64;
            }
        }
    }
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
