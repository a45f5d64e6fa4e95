//! A pack that came, with its index, aside in `spool/`: every object hashed, nothing else checked.
//!
//! Gone when dropped, unless its files were moved in.

use std::{
    io::{Read as Stream, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use git2::{ErrorClass, Indexer};
use tempfile::{NamedTempFile, TempDir};

use super::{
    Error, Result,
    db::{self, Db, Type},
    pack::{self, SMALL, TEMPORARY},
    unpack::{self, Unfit, Unpacked},
};
use crate::model::Oid;

/// Stops a stream that never ends; larger than any feed.
const MAX_PACK: u64 = 1 << 40;
/// libgit2 reserves 12 bytes for each object that a pack announces.
const MAX_OBJECTS: u32 = 1 << 26;
/// libgit2 maps its windows anew for each append.
const BLOCK: u64 = 1 << 20;

/// A pack that came.
pub(super) enum Arrived {
    /// Its objects are in memory.
    Small(Small),
    /// They are read from disk.
    Large(Large),
}

/// A small pack's objects, and its files.
pub(super) struct Small {
    unpacked: Unpacked,
    pack: NamedTempFile,
    index: NamedTempFile,
}

impl Arrived {
    /// Takes a whole pack from a stream.
    pub(super) fn take(stream: &mut dyn Stream, spool: &Path) -> Result<Arrived> {
        let start = read(stream, SMALL + 1, spool)?;
        if start.len() as u64 <= SMALL {
            match unpack::unpack(&start) {
                Ok(unpacked) => return Small::write(unpacked, &start, spool).map(Arrived::Small),
                Err(Unfit::Damaged(why)) => return Err(bad_pack(why)),
                Err(Unfit::Other) => {}
            }
        }
        Large::take(&mut start.chain(stream), spool).map(Arrived::Large)
    }

    pub(super) fn has(&self, id: Oid) -> bool {
        match self {
            Arrived::Small(small) => small.unpacked.objects.contains_key(&id),
            Arrived::Large(large) => large.db.has(id),
        }
    }

    pub(super) fn size(&self, kind: Type, id: Oid) -> Result<u64> {
        match self {
            Arrived::Small(_) => Ok(self.read(kind, id)?.len() as u64),
            Arrived::Large(large) => large.db.size(kind, id),
        }
    }

    pub(super) fn read(&self, kind: Type, id: Oid) -> Result<Bytes> {
        match self {
            Arrived::Small(small) => match small.unpacked.objects.get(&id) {
                Some((found, bytes)) if *found == kind => Ok(bytes.clone()),
                Some(_) => Err(db::wrong_type(kind, id)),
                None => Err(Error::Missing { what: kind.name(), id }),
            },
            Arrived::Large(large) => large.db.read_often(kind, id),
        }
    }

    /// The SHA-1 at the pack's end.
    pub(super) fn checksum(&self) -> Oid {
        match self {
            Arrived::Small(small) => small.unpacked.checksum,
            Arrived::Large(large) => large.checksum,
        }
    }

    /// Pack and index.
    pub(super) fn files(&self) -> (PathBuf, PathBuf) {
        match self {
            Arrived::Small(small) => (small.pack.path().to_owned(), small.index.path().to_owned()),
            Arrived::Large(large) => large.files(),
        }
    }

    /// Once it was moved in: what was read of it will be wanted again.
    pub(super) fn remember_in(self, db: &Db) {
        match self {
            Arrived::Small(small) => {
                for (id, (_, bytes)) in small.unpacked.objects {
                    db.remember(id, bytes);
                }
            }
            Arrived::Large(large) => db.remember_from(&large.db),
        }
    }
}

impl Small {
    fn write(mut unpacked: Unpacked, bytes: &[u8], spool: &Path) -> Result<Small> {
        let pack = pack::write_temporary(spool, bytes)?;
        let index = pack::index(&mut unpacked.places, unpacked.checksum);
        let index = pack::write_temporary(spool, &index)?;
        Ok(Small { unpacked, pack, index })
    }
}

/// Reads up to so many bytes; fewer: the stream has ended.
fn read(stream: &mut dyn Stream, most: u64, spool: &Path) -> Result<Vec<u8>> {
    let mut block = Vec::new();
    let read = stream.take(most).read_to_end(&mut block);
    read.map(|_| block).map_err(Error::io("receive a pack in", spool))
}

/// A large pack with its index in a folder like `.git/objects`.
pub(super) struct Large {
    objects: TempDir,
    db: Db,
    checksum: Oid,
}

impl Large {
    /// Streams a pack through libgit2's indexer, which hashes every object.
    fn take(pack: &mut dyn Stream, spool: &Path) -> Result<Large> {
        let objects = tempfile::Builder::new().prefix(TEMPORARY).tempdir_in(spool);
        let objects = objects.map_err(Error::io("make a folder in", spool))?;
        let folder = objects.path().join("pack");
        std::fs::create_dir(&folder).map_err(Error::io("make", &folder))?;
        // Without a database it takes only packs that are complete in themselves.
        let indexer = Indexer::new(None, &folder, 0o444, false);
        let mut indexer = indexer.map_err(Error::git("index a pack"))?;
        let mut size = 0;
        loop {
            let block = read(pack, BLOCK, spool)?;
            if block.is_empty() {
                break;
            }
            if size == 0 {
                check_count(&block)?;
            }
            size += block.len() as u64;
            if size > MAX_PACK {
                return Err(Error::Refused(format!("the pack is over {MAX_PACK} bytes")));
            }
            indexer.write_all(&block).map_err(|e| match e.downcast::<git2::Error>() {
                Ok(e) => not_indexed(e),
                Err(e) => Error::io("write to", &folder)(e),
            })?;
        }
        let checksum = indexer.commit().map_err(not_indexed)?;
        let checksum = checksum.parse().map_err(|_| bad_pack("libgit2 gave it no name"))?;
        let db = Db::open(objects.path())?;
        Ok(Large { objects, db, checksum })
    }

    fn files(&self) -> (PathBuf, PathBuf) {
        let pack = self.objects.path().join(format!("pack/pack-{}.pack", self.checksum));
        let index = pack.with_extension("idx");
        (pack, index)
    }
}

/// The disk's fault, or the pack's.
fn not_indexed(e: git2::Error) -> Error {
    if e.class() == ErrorClass::Os { Error::git("index a pack")(e) } else { bad_pack(e.message()) }
}

fn check_count(start: &[u8]) -> Result<()> {
    let count = start.get(8..12).map(|n| u32::from_be_bytes(n.try_into().expect("4 bytes")));
    match count {
        Some(..=MAX_OBJECTS) => Ok(()),
        _ => Err(bad_pack("it announces too many objects, or is no pack")),
    }
}

fn bad_pack(why: impl std::fmt::Display) -> Error {
    Error::Refused(format!("the pack is damaged: {why}"))
}
