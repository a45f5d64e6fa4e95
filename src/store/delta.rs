//! The delta format: how a recipe travels, and how a mirror makes the new object from it.
//!
//! Writing and applying stream: memory does not grow with either object. What is read may come from
//! a stranger: every length, offset and total is checked against what the reader knows already (both
//! names and the size of the result), so a bad delta ends in an error, never in a panic or in more
//! bytes than were asked for. Applying does not hash: whoever takes the bytes checks their SHA-256
//! before anything sees them, and asks for the whole object when that or a delta fails.
//!
//! # Format, version 1
//! Integers of fixed size are little-endian; a *varint* is unsigned LEB128 of at most 64 bits.
//!
//! | field | bytes |
//! |---|---|
//! | magic | 8: `dsdelta`, version 1 |
//! | SHA-256 of the base | 32 |
//! | SHA-256 of the result | 32 |
//! | size of the result | 8 |
//! | blocks | each: `raw` (4), 1 to 131,072; `len` (4), at most `raw`; `len` bytes |
//! | end | 4: zero |
//! | CRC-32 of all before | 4 |
//!
//! The bytes of a block are the instructions themselves where `len` = `raw`, else their raw deflate
//! (RFC 1951), one ended stream for each block. All blocks together, joined, are instructions until
//! the result has its size; one may lie across blocks:
//!
//! | instruction | coding |
//! |---|---|
//! | copy `n` bytes of the base | varint `2n + 1`, varint `z` |
//! | literal of `n` bytes | varint `2n`, the bytes |
//!
//! `n` is at least 1. A copy begins in the base where the instruction before left off, plus the
//! signed number with the zigzag code `z` (0, −1, 1, −2, … are 0, 1, 2, 3, …). A copy leaves off
//! behind what it took, a literal behind as many bytes as it has (what it most often replaces), the
//! beginning is 0: so a change that moves nothing has `z` = 0 in every copy.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
};

use flate2::{Compress, Compression, FlushCompress, Status, read::DeflateDecoder};

use super::recipe::Recipe;
use crate::model::{Class, ObjectId};

const MAGIC: [u8; 8] = *b"dsdelta\x01";

/// Most instruction bytes in a block: what a reader must hold.
const BLOCK: usize = 128 << 10;

/// After this many blocks in a row that hardly shrank (what is in a jar does not), only one in as
/// many is tried: trying deflates some 30 MB a second.
const TRIED: u32 = 16;

/// Which object a delta makes of which other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The object that the receiver has.
    pub base: ObjectId,
    /// The object that it makes.
    pub result: ObjectId,
    /// Bytes of the result.
    pub size: u64,
}

/// Why a delta gave no object. Either way the object can be had whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The delta is not one, not this one, of another version, or damaged.
    #[error("delta cannot be used: {0}; the object must be fetched whole")]
    Corrupt(&'static str),
    /// A file could not be read or written.
    #[error("could not {doing}: {source}")]
    Io {
        /// What failed.
        doing: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// How the caller should react.
    pub fn class(&self) -> Class {
        match self {
            Self::Corrupt(_) => Class::Corrupt,
            Self::Io { .. } => Class::Transient,
        }
    }

    fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// Result of applying a delta.
pub type Result<T> = std::result::Result<T, Error>;

/// Writes the delta that a recipe describes; `new` is the file of the result.
///
/// # Errors
/// `new` cannot be read or `out` not written.
pub fn encode(header: &Header, recipe: &Recipe, new: &File, out: impl Write) -> io::Result<()> {
    let mut writer = Writer::new(header, out)?;
    let mut made = 0;
    let mut base_at = 0_u64;
    for copy in &recipe.copies {
        let literal = copy.to - made;
        writer.literal(new, made, literal)?;
        base_at += literal;
        writer.varint(copy.len << 1 | 1)?;
        writer.varint(zigzag(copy.from.wrapping_sub(base_at).cast_signed()))?;
        base_at = copy.from + copy.len;
        made = copy.to + copy.len;
    }
    writer.literal(new, made, recipe.size() - made)?;
    writer.finish()
}

/// Makes the object that `expected` names out of `base` and a delta, and writes it to `out`, which
/// must check the bytes against `expected.result` before they are used. Writes at most
/// `expected.size` bytes, and exactly as many where it succeeds.
///
/// # Errors
/// [`Error::Corrupt`]: the delta is between other objects, damaged or cut short; some bytes may
/// have been written. [`Error::Io`]: `base` or the delta cannot be read, or `out` not be written.
pub fn apply(expected: &Header, base: &File, delta: impl Read, out: impl Write) -> Result<()> {
    let base_size = base.metadata().map_err(Error::io("read the delta's base"))?.len();
    let mut reader = Reader::open(expected, delta)?;
    let mut maker = Maker { base, base_size, base_at: 0, left: expected.size, out };
    while maker.left > 0 {
        let op = reader.varint()?;
        let len = op >> 1;
        if len == 0 || len > maker.left {
            return Err(Error::Corrupt("an instruction does not fit the size of the result"));
        }
        if op & 1 == 1 {
            let distance = unzigzag(reader.varint()?);
            maker.copy(distance, len, &mut reader.scratch)?;
        } else {
            maker.literal(len, &mut reader)?;
        }
    }
    reader.finish()?;
    maker.out.flush().map_err(Error::io("write the delta's result"))
}

/// The result being made.
struct Maker<'a, W> {
    base: &'a File,
    base_size: u64,
    base_at: u64,
    left: u64,
    out: W,
}

impl<W: Write> Maker<'_, W> {
    fn copy(&mut self, distance: i64, len: u64, scratch: &mut [u8]) -> Result<()> {
        let end = self.base_at.checked_add_signed(distance).and_then(|start| {
            self.base_at = start;
            start.checked_add(len).filter(|end| *end <= self.base_size)
        });
        let end = end.ok_or(Error::Corrupt("a copy lies outside of the base"))?;
        while self.base_at < end {
            let part = &mut scratch[..piece(end - self.base_at)];
            self.base
                .read_exact_at(part, self.base_at)
                .map_err(Error::io("read the delta's base"))?;
            self.base_at += part.len() as u64;
            self.write(part)?;
        }
        Ok(())
    }

    fn literal<R: Read>(&mut self, len: u64, from: &mut Reader<R>) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let part = from.instructions(left)?;
            left -= part.len() as u64;
            self.write(part)?;
        }
        self.base_at = self.base_at.saturating_add(len);
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.left -= bytes.len() as u64;
        self.out.write_all(bytes).map_err(Error::io("write the delta's result"))
    }
}

/// Instructions on their way into blocks.
struct Writer<W> {
    out: W,
    crc: crc32fast::Hasher,
    block: Vec<u8>,
    deflate: Compress,
    deflated: Vec<u8>,
    /// Blocks since the last that shrank.
    unshrunk: u32,
}

impl<W: Write> Writer<W> {
    fn new(header: &Header, out: W) -> io::Result<Self> {
        let mut writer = Self {
            out,
            crc: crc32fast::Hasher::new(),
            block: Vec::with_capacity(BLOCK),
            deflate: Compress::new(Compression::default(), false),
            deflated: Vec::new(),
            unshrunk: 0,
        };
        writer.put(&MAGIC)?;
        writer.put(header.base.as_bytes())?;
        writer.put(header.result.as_bytes())?;
        writer.put(&header.size.to_le_bytes())?;
        Ok(writer)
    }

    fn varint(&mut self, mut value: u64) -> io::Result<()> {
        while value >= 0x80 {
            self.instruction(&[(value & 0x7f) as u8 | 0x80])?;
            value >>= 7;
        }
        self.instruction(&[(value & 0x7f) as u8])
    }

    fn literal(&mut self, new: &File, mut at: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.varint(len << 1)?;
        let end = at + len;
        while at < end {
            let room = BLOCK - self.block.len();
            let n = piece(end - at).min(room);
            let filled = self.block.len();
            self.block.resize(filled + n, 0);
            new.read_exact_at(&mut self.block[filled..], at)?;
            at += n as u64;
            self.end_full_block()?;
        }
        Ok(())
    }

    fn instruction(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.block.extend_from_slice(bytes);
        self.end_full_block()
    }

    fn end_full_block(&mut self) -> io::Result<()> {
        if self.block.len() >= BLOCK { self.end_block() } else { Ok(()) }
    }

    /// Writes the block, deflated if that makes it shorter.
    fn end_block(&mut self) -> io::Result<()> {
        let shorter = self.deflate_block()?;
        let raw = std::mem::take(&mut self.block);
        let deflated = std::mem::take(&mut self.deflated);
        let bytes = if shorter { &deflated } else { &raw };
        self.put(&length(&raw))?;
        self.put(&length(bytes))?;
        self.put(bytes)?;
        (self.block, self.deflated) = (raw, deflated);
        self.block.clear();
        Ok(())
    }

    fn deflate_block(&mut self) -> io::Result<bool> {
        self.unshrunk = self.unshrunk.saturating_add(1);
        if self.unshrunk > TRIED && !self.unshrunk.is_multiple_of(TRIED) {
            return Ok(false);
        }
        let raw = self.block.len();
        self.deflated.clear();
        // With room for what does not shrink, the stream ends in one call: zlib-rs 0.6 can panic
        // after one is given up half-way.
        self.deflated.reserve_exact(BLOCK + BLOCK / 8);
        self.deflate.reset();
        let flush = FlushCompress::Finish;
        let status = self.deflate.compress_vec(&self.block, &mut self.deflated, flush)?;
        let len = self.deflated.len();
        if len < raw - raw / 16 {
            self.unshrunk = 0;
        }
        Ok(status == Status::StreamEnd && len < raw)
    }

    fn finish(mut self) -> io::Result<()> {
        if !self.block.is_empty() {
            self.end_block()?;
        }
        self.put(&[0; 4])?;
        let crc = self.crc.clone().finalize();
        self.put(&crc.to_le_bytes())?;
        self.out.flush()
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.crc.update(bytes);
        self.out.write_all(bytes)
    }
}

/// Instructions as they come out of blocks.
struct Reader<R> {
    from: R,
    crc: crc32fast::Hasher,
    block: Vec<u8>,
    used: usize,
    packed: Vec<u8>,
    scratch: Vec<u8>,
}

impl<R: Read> Reader<R> {
    fn open(expected: &Header, from: R) -> Result<Self> {
        let mut reader = Self {
            from,
            crc: crc32fast::Hasher::new(),
            block: Vec::new(),
            used: 0,
            packed: Vec::new(),
            scratch: vec![0; BLOCK],
        };
        let magic = reader.take::<8>()?;
        if magic[..7] != MAGIC[..7] {
            return Err(Error::Corrupt("it does not begin as a delta"));
        }
        if magic != MAGIC {
            return Err(Error::Corrupt("it is of another version than 1"));
        }
        let base = ObjectId::from_bytes(reader.take()?);
        let result = ObjectId::from_bytes(reader.take()?);
        let size = u64::from_le_bytes(reader.take()?);
        if (Header { base, result, size }) != *expected {
            return Err(Error::Corrupt("it is between other objects"));
        }
        Ok(reader)
    }

    /// The next instruction bytes, at least one and at most `most`.
    fn instructions(&mut self, most: u64) -> Result<&[u8]> {
        if self.used == self.block.len() && !self.next_block()? {
            return Err(Error::Corrupt("its instructions end before the result has its size"));
        }
        let start = self.used;
        self.used += piece(most).min(self.block.len() - start);
        Ok(&self.block[start..self.used])
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.instructions(1)?[0];
            let bits = u64::from(byte & 0x7f);
            value |= bits << shift;
            if value >> shift != bits {
                break;
            }
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Corrupt("a number is too large"))
    }

    /// Brings the next block; false at the end.
    fn next_block(&mut self) -> Result<bool> {
        let Some(raw) = self.take_length()? else { return Ok(false) };
        let len = self.take_length()?.filter(|len| *len <= raw);
        let len = len.ok_or(Error::Corrupt("a block is longer than what it holds"))?;
        self.block.resize(raw, 0);
        self.used = 0;
        if len == raw {
            read(&mut self.from, &mut self.crc, &mut self.block)?;
            return Ok(true);
        }
        self.packed.resize(len, 0);
        read(&mut self.from, &mut self.crc, &mut self.packed)?;
        let mut inflater = DeflateDecoder::new(&self.packed[..]);
        let whole = inflater.read_exact(&mut self.block).is_ok()
            && matches!(inflater.read(&mut [0]), Ok(0))
            && inflater.total_in() == len as u64;
        whole.then_some(true).ok_or(Error::Corrupt("a block does not inflate to its size"))
    }

    /// A block's length; none for zero.
    fn take_length(&mut self) -> Result<Option<usize>> {
        let length = u32::from_le_bytes(self.take()?);
        match usize::try_from(length) {
            Ok(length @ ..=BLOCK) => Ok(Some(length).filter(|length| *length > 0)),
            _ => Err(Error::Corrupt("a block is too large")),
        }
    }

    /// Checks that nothing is left but a right checksum.
    fn finish(mut self) -> Result<()> {
        if self.used < self.block.len() || self.next_block()? {
            return Err(Error::Corrupt("it has instructions left when the result has its size"));
        }
        let crc = self.crc.clone().finalize();
        if u32::from_le_bytes(self.take()?) != crc {
            return Err(Error::Corrupt("its checksum is wrong"));
        }
        match io::copy(&mut self.from.take(1), &mut io::sink()) {
            Ok(0) => Ok(()),
            Ok(_) => Err(Error::Corrupt("bytes follow its end")),
            Err(error) => Err(Error::io("read the delta")(error)),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        read(&mut self.from, &mut self.crc, &mut bytes)?;
        Ok(bytes)
    }
}

fn read(from: &mut impl Read, crc: &mut crc32fast::Hasher, into: &mut [u8]) -> Result<()> {
    from.read_exact(into).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Error::Corrupt("it is cut short"),
        _ => Error::io("read the delta")(error),
    })?;
    crc.update(into);
    Ok(())
}

/// As much of `len` as is handled at a time.
fn piece(len: u64) -> usize {
    usize::try_from(len).map_or(BLOCK, |len| len.min(BLOCK))
}

fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("a block is at most BLOCK bytes").to_le_bytes()
}

fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
pub(super) mod tests;
