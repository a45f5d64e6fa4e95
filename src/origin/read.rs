//! Reads what lies at a path, if nobody is writing it.
//!
//! Stat, lease, read, stat again: content enters only when all of them agree. Small blobs are read
//! under the lease; a larger file's lease only proves that nobody writes it, and is taken again
//! after reading, since a writer would wait for it. Special files are never opened. Whether what
//! was read is a change is not decided here. Several threads may read at once.

use std::{
    fs::File,
    io::{Read as _, Seek as _},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};

use super::{
    archive,
    settle::{Look, Verdict},
};
use crate::{
    disk::{self, FileKind, Keep, Root, Stat},
    ledger::{Cached, Fingerprint},
    model::{Entry, Kind, Meta, Mtime, ObjectId, Oid},
    store::{Encoder, PackedBlob, Store},
    sys::{self, LeaseError, ReadLease},
};

/// Files up to this size are read under the lease: their writer waits for it a millisecond at most.
const LEASED: u64 = 1 << 20;
/// Files from this size on are left to a thread of their own.
pub(super) const LARGE: u64 = 4 << 20;

/// What lies at a path.
pub(super) enum Seen {
    /// Nothing.
    Gone,
    /// A folder.
    Dir(Meta),
    /// A FIFO, socket or device, which no feed holds.
    Special,
    /// A file or a link, read whole.
    File(Box<FileSeen>),
    /// A file of this size, over the limit.
    Large(u64),
    /// Not now.
    Later(Verdict),
}

/// A file or a link that was read whole.
pub(super) struct FileSeen {
    pub(super) entry: Entry,
    /// What goes into the pack: its bytes, or an object's pointer.
    pub(super) blob: PackedBlob,
    pub(super) size: u64,
    pub(super) cached: Cached,
    /// Of the bytes of a small file: objects are named by theirs.
    pub(super) digest: Option<(Oid, ObjectId)>,
}

/// Reads paths of one directory.
pub(super) struct Reader {
    pub(super) root: Arc<Root>,
    pub(super) store: Arc<Store>,
    pub(super) keep: Keep,
    pub(super) large_file: u64,
}

impl Reader {
    /// Reads what lies at a path, but no file of `limit` bytes or more, which would keep others
    /// waiting. Whatever is wrong with the path is a verdict.
    pub(super) fn look(&self, look: &Look, limit: u64, encoder: &mut Encoder) -> Seen {
        let began = mtime(sys::now());
        let stat = match self.root.stat(&look.path) {
            Ok(Some(stat)) => stat,
            Ok(None) => return Seen::Gone,
            Err(error) => return fault(error),
        };
        match stat.kind {
            FileKind::Dir => match self.root.meta(&look.path, &stat, &self.keep) {
                Ok(meta) => Seen::Dir(meta),
                Err(error) => fault(error),
            },
            FileKind::Special => Seen::Special,
            FileKind::File if stat.size >= limit => Seen::Large(stat.size),
            FileKind::Symlink | FileKind::File => {
                let at = At { look, stat, began };
                self.whole(&at, encoder).unwrap_or_else(Seen::Later)
            }
        }
    }

    fn whole(&self, at: &At<'_>, encoder: &mut Encoder) -> Result<Seen, Verdict> {
        let read = match at.stat.kind {
            FileKind::Symlink => Read { bytes: self.root.read_link(&at.look.path)?, digest: None },
            _ => self.file(at)?,
        };
        let meta = self.root.meta(&at.look.path, &at.stat, &self.keep)?;
        if self.root.stat(&at.look.path)?.as_ref().map(fingerprint) != Some(at.fingerprint()) {
            return Err(Verdict::Changed);
        }
        let blob = encoder.blob(&read.bytes);
        let kind = match at.stat.kind {
            FileKind::Symlink => Kind::Symlink { blob: blob.id() },
            _ => Kind::File { blob: blob.id(), executable: at.stat.mode & 0o100 != 0 },
        };
        let cached = Cached { seen: at.fingerprint(), hashed_at: at.began, blob: blob.id() };
        let digest = read.digest.map(|digest| (blob.id(), digest));
        let entry = Entry { kind, meta };
        Ok(Seen::File(Box::new(FileSeen { entry, blob, size: at.stat.size, cached, digest })))
    }

    fn file(&self, at: &At<'_>) -> Result<Read, Verdict> {
        let file = self.root.open_file(&at.look.path)?;
        let lease = lease(&file, at)?;
        if at.look.approved != Some(at.fingerprint())
            && !archive::is_whole(at.look.path.name(), at.stat.size, &mut &file)?
        {
            return Err(Verdict::Incomplete(at.fingerprint()));
        }
        let is_leased = lease.is_some();
        if at.stat.size < self.large_file {
            // The lease of a larger one is let go: its writer must not wait for long.
            let bytes = small(&file, at.stat.size, lease.filter(|_| at.stat.size <= LEASED))?;
            if !Store::reads_as_pointer(&bytes) {
                let digest = ObjectId::from_bytes(Sha256::digest(&bytes).into());
                return Ok(Read { bytes, digest: Some(digest) });
            }
        }
        let ingested = self.store.ingest(&mut file.try_clone()?);
        let object = ingested.map_err(|error| Verdict::Fault(error.to_string()))?;
        if is_leased && matches!(ReadLease::take(&file), Err(LeaseError::Busy)) {
            return Err(Verdict::Changed);
        }
        if object.size != at.stat.size {
            return Err(Verdict::Changed);
        }
        Ok(Read { bytes: Store::pointer(&object), digest: None })
    }
}

/// A path being read.
struct At<'a> {
    look: &'a Look,
    stat: Stat,
    began: Mtime,
}

impl At<'_> {
    fn fingerprint(&self) -> Fingerprint {
        fingerprint(&self.stat)
    }
}

/// What goes into the pack for it.
struct Read {
    bytes: Vec<u8>,
    digest: Option<ObjectId>,
}

/// None: leases are not to be had, and the file was quiet for long enough.
fn lease<'a>(file: &'a File, at: &At<'_>) -> Result<Option<ReadLease<'a>>, Verdict> {
    match ReadLease::take(file) {
        Ok(lease) => Ok(Some(lease)),
        Err(LeaseError::Busy) => Err(Verdict::Busy),
        Err(LeaseError::Unavailable) if at.look.quiet == Some(at.fingerprint()) => Ok(None),
        Err(LeaseError::Unavailable) => Err(Verdict::NoLease(at.fingerprint())),
    }
}

/// Reads a file of exactly `size` bytes; the lease, where one is given, must outlast the reading.
fn small(mut file: &File, size: u64, lease: Option<ReadLease<'_>>) -> Result<Vec<u8>, Verdict> {
    let mut bytes = Vec::with_capacity(usize::try_from(size + 1).unwrap_or_default());
    // Looking for the end of an archive has moved it.
    file.rewind()?;
    // One byte more than expected shows that it grew.
    (&mut file).take(size + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size || lease.is_some_and(|lease| !lease.still_held()) {
        return Err(Verdict::Changed);
    }
    Ok(bytes)
}

impl From<std::io::Error> for Verdict {
    fn from(error: std::io::Error) -> Self {
        Verdict::Fault(error.to_string())
    }
}

/// A path that is gone or became another thing meanwhile is looked at again.
impl From<disk::Error> for Verdict {
    fn from(error: disk::Error) -> Self {
        if error.is_gone() { Verdict::Changed } else { Verdict::Fault(error.to_string()) }
    }
}

fn fault(error: disk::Error) -> Seen {
    Seen::Later(error.into())
}

/// As the stat cache keeps it.
pub(super) fn fingerprint(stat: &Stat) -> Fingerprint {
    Fingerprint {
        symlink: stat.kind == FileKind::Symlink,
        mode: stat.mode,
        size: stat.size,
        mtime: stat.mtime,
        ctime: stat.ctime,
        inode: stat.inode,
    }
}

/// How far apart two writes must be for the file system to give them different times.
pub(super) fn grain(coarse_times: bool, stat: &Stat) -> Duration {
    // Whole seconds are what ext4 keeps in small inodes; elsewhere they come up by chance, rarely.
    let seconds = coarse_times || stat.ctime.nanos == 0;
    // The kernel's clock for files ticks every 4 ms or 10 ms; vfat keeps steps of 2 s.
    if seconds { Duration::from_secs(2) } else { Duration::from_millis(20) }
}

fn mtime(time: SystemTime) -> Mtime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let secs = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Mtime { secs, nanos: since.subsec_nanos() }
}
