//! Writing packs and their indexes: git's pack version 2 and index version 2. Deltas are for whoever
//! folds packs; what is sent has none.
//!
//! A pack grows in memory and goes to a temporary file once it is over a MiB, so memory does not
//! follow the size of an import. Nothing is synced or moved here.
//! Formats: gitformat-pack(5).

use std::{
    collections::HashMap,
    fs::{File, Permissions},
    io::{self, Read as _, Seek, SeekFrom, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress, Status};
use sha1::{Digest, Sha1};
use tempfile::NamedTempFile;

use super::{Error, Result, db::Type};
use crate::model::Oid;

/// Above this a pack being written lies in a file.
const MEMORY: usize = 1 << 20;
/// The largest blob of a pack, since blobs are read into memory; what is larger must be an object.
pub const MAX_BLOB: u64 = 64 << 20;
/// Up to here a pack travels inside the announcement.
pub(super) const SMALL: u64 = 64 << 10;
/// What our temporary files in `spool/` are called, so that a start can sweep them.
pub(super) const TEMPORARY: &str = "tmp-";

/// The id that git gives to an object.
pub(super) fn hash(kind: Type, bytes: &[u8]) -> Oid {
    let mut hasher = Sha1::new();
    hasher.update(format!("{} {}\0", kind.name(), bytes.len()));
    hasher.update(bytes);
    Oid::from_bytes(hasher.finalize().into())
}

/// A new temporary file in `spool/`, gone when dropped. Others may read it later, as git's packs.
pub(super) fn temporary(spool: &Path) -> Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix(TEMPORARY)
        .permissions(Permissions::from_mode(0o444))
        .tempfile_in(spool)
        .map_err(Error::io("make a file in", spool))
}

/// A blob that is hashed and deflated, ready to be appended to a pack.
#[derive(Debug)]
pub struct PackedBlob(pub(super) Packed);

impl PackedBlob {
    /// The blob's id.
    pub fn id(&self) -> Oid {
        self.0.id
    }
}

/// An object as it lies in a pack.
#[derive(Debug)]
pub(super) struct Packed {
    id: Oid,
    bytes: Vec<u8>,
}

/// Hashes and deflates. One for each thread: it owns the deflater's 300 KB of state.
pub struct Encoder(Compress);

impl Default for Encoder {
    fn default() -> Self {
        // Level 1: what does not compress well is stored as an object anyway.
        Encoder(Compress::new(Compression::new(1), true))
    }
}

impl Encoder {
    /// Prepares a blob for [`super::Draft::add_packed`]; for an import on several threads.
    pub fn blob(&mut self, bytes: &[u8]) -> PackedBlob {
        PackedBlob(self.object(Type::Blob, hash(Type::Blob, bytes), bytes))
    }

    pub(super) fn object(&mut self, kind: Type, id: Oid, bytes: &[u8]) -> Packed {
        let mut out = Vec::with_capacity(bytes.len() / 2 + 64);
        push_header(&mut out, number(kind), bytes.len());
        self.deflate(bytes, &mut out);
        Packed { id, bytes: out }
    }

    fn deflate(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.0.reset();
        loop {
            out.reserve(4096 + bytes.len() / 8);
            let rest = &bytes[usize::try_from(self.0.total_in()).expect("within the slice")..];
            let status = self.0.compress_vec(rest, out, FlushCompress::Finish);
            if status.expect("deflating memory cannot fail") == Status::StreamEnd {
                return;
            }
        }
    }
}

/// How a pack says what a whole object is.
fn number(kind: Type) -> u8 {
    match kind {
        Type::Commit => 1,
        Type::Tree => 2,
        Type::Blob => 3,
    }
}

/// A delta on what stands earlier in the same pack.
const OFFSET_DELTA: u8 = 6;

/// How far back a delta's base stands: 7 bits a byte, the highest first, each further one less one.
fn push_distance(out: &mut Vec<u8>, distance: u64) {
    let at = out.len();
    let mut rest = distance;
    let mut more = 0;
    loop {
        out.insert(at, more | u8::try_from(rest & 0x7f).expect("7 bits fit"));
        rest >>= 7;
        if rest == 0 {
            return;
        }
        rest -= 1;
        more = 0x80;
    }
}

/// Type and size: 3 bits and 4 bits, then 7 bits for each further byte.
fn push_header(out: &mut Vec<u8>, number: u8, size: usize) {
    let low = |size: usize, bits: u32| u8::try_from(size & ((1 << bits) - 1)).expect("7 bits fit");
    let mut byte = (number << 4) | low(size, 4);
    let mut rest = size >> 4;
    while rest > 0 {
        out.push(byte | 0x80);
        byte = low(rest, 7);
        rest >>= 7;
    }
    out.push(byte);
}

/// Where an object lies in its pack.
pub(super) struct Place {
    pub(super) id: Oid,
    /// Of its bytes in the pack.
    pub(super) crc: u32,
    pub(super) offset: u64,
}

/// A pack being written; dropping it leaves nothing.
pub(super) struct PackWriter {
    spool: PathBuf,
    encoder: Encoder,
    /// What is not in the file yet.
    memory: Vec<u8>,
    file: Option<NamedTempFile>,
    /// Bytes so far, in file and memory.
    size: u64,
    places: Vec<Place>,
    /// By id, which of the places.
    ids: HashMap<Oid, u32>,
}

/// A complete pack in a temporary file, unsynced.
pub(super) struct Pack {
    pub(super) file: NamedTempFile,
    pub(super) size: u64,
    /// The SHA-1 at its end.
    pub(super) checksum: Oid,
    /// All of it, where it is small.
    pub(super) bytes: Option<Bytes>,
    /// The index that belongs to it.
    places: Vec<Place>,
}

impl PackWriter {
    pub(super) fn new(spool: &Path) -> PackWriter {
        // The count is set at the end.
        let memory = b"PACK\0\0\0\x02\0\0\0\0".to_vec();
        PackWriter {
            spool: spool.to_owned(),
            encoder: Encoder::default(),
            size: memory.len() as u64,
            memory,
            file: None,
            places: Vec::new(),
            ids: HashMap::new(),
        }
    }

    pub(super) fn contains(&self, id: Oid) -> bool {
        self.ids.contains_key(&id)
    }

    /// Appends an object, once.
    pub(super) fn add(&mut self, kind: Type, id: Oid, bytes: &[u8]) -> Result<()> {
        if self.contains(id) {
            return Ok(());
        }
        let packed = self.encoder.object(kind, id, bytes);
        self.add_packed(&packed)
    }

    /// Appends an object, once.
    pub(super) fn add_packed(&mut self, object: &Packed) -> Result<()> {
        if self.contains(object.id) {
            return Ok(());
        }
        let at = u32::try_from(self.places.len()).map_err(|_| too_many())?;
        self.ids.insert(object.id, at);
        let crc = crc32fast::hash(&object.bytes);
        self.places.push(Place { id: object.id, crc, offset: self.size });
        self.size += object.bytes.len() as u64;
        self.memory.extend_from_slice(&object.bytes);
        if self.memory.len() > MEMORY { self.spill() } else { Ok(()) }
    }

    /// As `add`, for what another pack holds deflated; `size` is what it inflates to.
    pub(super) fn add_deflated(
        &mut self,
        kind: Type,
        id: Oid,
        size: usize,
        deflated: &[u8],
    ) -> Result<()> {
        let mut bytes = Vec::with_capacity(deflated.len() + 10);
        push_header(&mut bytes, number(kind), size);
        bytes.extend_from_slice(deflated);
        self.add_packed(&Packed { id, bytes })
    }

    /// Appends an object as a deflated delta, which inflates to `size`, on one that is here already.
    pub(super) fn add_delta(
        &mut self,
        id: Oid,
        base: Oid,
        size: usize,
        deflated: &[u8],
    ) -> Result<()> {
        let mut bytes = Vec::with_capacity(deflated.len() + 20);
        push_header(&mut bytes, OFFSET_DELTA, size);
        push_distance(&mut bytes, self.size - self.places[self.ids[&base] as usize].offset);
        bytes.extend_from_slice(deflated);
        self.add_packed(&Packed { id, bytes })
    }

    /// Deflates as objects are.
    pub(super) fn deflate(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        self.encoder.deflate(bytes, &mut out);
        out
    }

    fn spill(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(temporary(&self.spool)?),
        };
        file.as_file_mut().write_all(&self.memory).map_err(Error::io("write", file.path()))?;
        self.memory.clear();
        Ok(())
    }

    /// Sets the count and the checksum.
    pub(super) fn finish(mut self) -> Result<Pack> {
        let count = u32::try_from(self.places.len()).map_err(|_| too_many())?.to_be_bytes();
        let size = self.size + 20;
        let places = std::mem::take(&mut self.places);
        if self.file.is_some() {
            self.spill()?;
            let file = self.file.expect("just seen");
            let checksum =
                complete(file.as_file(), count).map_err(Error::io("write", file.path()))?;
            return Ok(Pack { file, size, checksum, bytes: None, places });
        }
        self.memory[8..12].copy_from_slice(&count);
        let checksum = Oid::from_bytes(Sha1::digest(&self.memory).into());
        self.memory.extend_from_slice(checksum.as_bytes());
        let file = write_temporary(&self.spool, &self.memory)?;
        let bytes = (size <= SMALL).then(|| Bytes::from(self.memory));
        Ok(Pack { file, size, checksum, bytes, places })
    }
}

fn too_many() -> Error {
    Error::Refused("a pack holds at most 2^32 objects".to_owned())
}

/// Writes the count into a pack's file, and hashes it all.
fn complete(mut file: &File, count: [u8; 4]) -> io::Result<Oid> {
    file.seek(SeekFrom::Start(8))?;
    file.write_all(&count)?;
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha1::new();
    let mut block = vec![0; 256 << 10];
    loop {
        match file.read(&mut block)? {
            0 => break,
            n => hasher.update(&block[..n]),
        }
    }
    let checksum = Oid::from_bytes(hasher.finalize().into());
    file.write_all(checksum.as_bytes())?;
    Ok(checksum)
}

impl Pack {
    /// How many objects it holds.
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    /// Its index, in a temporary file, unsynced.
    pub(super) fn write_index(&mut self, spool: &Path) -> Result<NamedTempFile> {
        write_temporary(spool, &index(&mut self.places, self.checksum))
    }
}

/// A new temporary file with these bytes, unsynced.
pub(super) fn write_temporary(spool: &Path, bytes: &[u8]) -> Result<NamedTempFile> {
    let mut file = temporary(spool)?;
    file.as_file_mut().write_all(bytes).map_err(Error::io("write", file.path()))?;
    Ok(file)
}

/// A pack's index, version 2: fan-out, ids, checksums, offsets, large offsets, two SHA-1s.
pub(super) fn index(places: &mut [Place], checksum: Oid) -> Vec<u8> {
    places.sort_unstable_by_key(|place| place.id);
    let mut out = Vec::with_capacity(1072 + places.len() * 28);
    out.extend_from_slice(b"\xfftOc\0\0\0\x02");
    let mut upto = 0;
    for first in 0..=255 {
        upto += places[upto..].iter().take_while(|p| p.id.as_bytes()[0] == first).count();
        push_u32(&mut out, upto as u64);
    }
    for place in &*places {
        out.extend_from_slice(place.id.as_bytes());
    }
    for place in &*places {
        out.extend_from_slice(&place.crc.to_be_bytes());
    }
    let mut large = Vec::new();
    for place in &*places {
        if place.offset < 1 << 31 {
            push_u32(&mut out, place.offset);
        } else {
            push_u32(&mut out, (1 << 31) | (large.len() as u64 / 8));
            large.extend_from_slice(&place.offset.to_be_bytes());
        }
    }
    out.extend_from_slice(&large);
    out.extend_from_slice(checksum.as_bytes());
    let checksum = Sha1::digest(&out);
    out.extend_from_slice(&checksum);
    out
}

fn push_u32(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&u32::try_from(number).expect("fits by format").to_be_bytes());
}
