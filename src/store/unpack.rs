//! Reading a small pack in memory, so that an announced commit costs little to take in.
//!
//! It knows only what our own small packs hold: whole commits, trees and blobs. What has deltas, or
//! inflates to much, is left to libgit2's indexer.

use std::collections::HashMap;

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};
use sha1::{Digest, Sha1};

use super::{
    db::Type,
    pack::{self, Place},
};
use crate::model::Oid;

/// Above this, in all, a pack is not small whatever its size.
const MAX_INFLATED: usize = 16 << 20;

/// A pack's objects, and where they lie in it.
pub(super) struct Unpacked {
    pub(super) objects: HashMap<Oid, (Type, Bytes)>,
    pub(super) places: Vec<Place>,
    pub(super) checksum: Oid,
}

/// What a pack may be besides good.
#[derive(Debug)]
pub(super) enum Unfit {
    /// It is no pack.
    Damaged(&'static str),
    /// The indexer's business.
    Other,
}

/// Reads a whole pack.
pub(super) fn unpack(bytes: &[u8]) -> Result<Unpacked, Unfit> {
    let bad = Unfit::Damaged;
    let end = bytes.len().checked_sub(20).ok_or(bad("it is too short"))?;
    let (body, checksum) = bytes.split_at(end);
    let checksum = Oid::try_from(checksum).expect("20 bytes");
    if Oid::from_bytes(Sha1::digest(body).into()) != checksum {
        return Err(bad("its checksum is wrong"));
    }
    let start = body.strip_prefix(b"PACK\0\0\0\x02").and_then(<[u8]>::split_first_chunk);
    let (count, rest) = start.ok_or(bad("it does not begin as a pack of version 2"))?;
    let (objects, places) = (HashMap::new(), Vec::new());
    let mut unpacked = Unpacked { objects, places, checksum };
    let mut reader = Reader { rest, inflater: Decompress::new(true), allowed: MAX_INFLATED };
    for _ in 0..u32::from_be_bytes(*count) {
        let before = reader.rest;
        let (kind, object) = reader.object()?;
        let id = pack::hash(kind, &object);
        let crc = crc32fast::hash(&before[..before.len() - reader.rest.len()]);
        unpacked.places.push(Place { id, crc, offset: (body.len() - before.len()) as u64 });
        if unpacked.objects.insert(id, (kind, object.into())).is_some() {
            return Err(bad("an object is in it twice"));
        }
    }
    if reader.rest.is_empty() { Ok(unpacked) } else { Err(bad("it goes on after its end")) }
}

struct Reader<'a> {
    rest: &'a [u8],
    inflater: Decompress,
    /// How much may still be inflated.
    allowed: usize,
}

impl Reader<'_> {
    fn object(&mut self) -> Result<(Type, Vec<u8>), Unfit> {
        let first = self.byte()?;
        let mut size = usize::from(first & 15);
        let (mut byte, mut shift) = (first, 4);
        while byte & 0x80 != 0 {
            byte = self.byte()?;
            // More than the limit, so that it cannot overflow either.
            if shift > 32 {
                return Err(Unfit::Other);
            }
            size |= usize::from(byte & 0x7f) << shift;
            shift += 7;
        }
        let kind = match first >> 4 & 7 {
            1 => Type::Commit,
            2 => Type::Tree,
            3 => Type::Blob,
            _ => return Err(Unfit::Other),
        };
        self.allowed = self.allowed.checked_sub(size).ok_or(Unfit::Other)?;
        Ok((kind, self.inflate(size)?))
    }

    fn byte(&mut self) -> Result<u8, Unfit> {
        let (first, rest) = self.rest.split_first().ok_or(Unfit::Damaged("it ends early"))?;
        self.rest = rest;
        Ok(*first)
    }

    fn inflate(&mut self, size: usize) -> Result<Vec<u8>, Unfit> {
        let bad = Unfit::Damaged("an object does not inflate to its size");
        self.inflater.reset(true);
        let mut object = vec![0; size];
        let status = self.inflater.decompress(self.rest, &mut object, FlushDecompress::Finish);
        let used = usize::try_from(self.inflater.total_in()).expect("within the slice");
        if !matches!(status, Ok(Status::StreamEnd)) || self.inflater.total_out() != size as u64 {
            return Err(bad);
        }
        self.rest = &self.rest[used..];
        Ok(object)
    }
}
