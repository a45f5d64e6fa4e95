//! Content-defined cuts of an object: where its chunks end, and a fingerprint of each.
//!
//! The bytes around a place decide whether a chunk ends there (`FastCDC`, Xia et al. 2020), so equal
//! stretches of two objects are cut alike wherever they lie, and two lists of cuts show what two
//! objects share without reading either. Cuts are made while an object is hashed, and kept beside it
//! as a cache: what is lost or damaged is cut again, never repaired. They prove nothing: a
//! fingerprint that lies costs a wasted delta, which the SHA-256 of its result gives away.

use std::{
    fs::File,
    io::{self, Read},
};

use fastcdc::v2020::FastCDC;
use twox_hash::XxHash3_64;

/// Sizes of the chunks whose cuts are kept: 23 KB on average, their cuts 0.07 % of the object. They
/// only have to show where two objects run alike; deltas of jars came out no smaller with 5 KB. The
/// first `min` bytes of a chunk are not looked at: with 8 KB, cutting took twice the time. Other
/// sizes, or another way of cutting, need a new `MAGIC`: cuts made in two ways share nothing.
const KEPT: Sizes = Sizes { min: 16_384, aim: 16_384, max: 65_536 };

/// Sizes for cutting again, and not keeping, what lies between equal chunks: `FastCDC`'s smallest.
const FINE: Sizes = Sizes { min: 64, aim: 256, max: 1024 };

/// Most chunks of one object: about 20 GB, and 16 MiB of memory. What lies beyond is not cut.
const MOST: usize = 1 << 20;

/// How much is gathered before it is cut, so that few bytes are moved to the front again.
const GATHER: usize = 256 << 10;

/// Begins the file that keeps cuts; its last byte is the version.
const MAGIC: [u8; 8] = *b"ds-cuts\x02";
const HEAD: usize = MAGIC.len() + 8;
const RECORD: usize = 8 + 8;
const CHECKSUM: usize = 4;

/// One chunk: it begins where the one before it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// Offset of the first byte behind it.
    pub(super) end: u64,
    /// XXH3 of its bytes. 64 bits and no defence against forgery are enough, since nothing is
    /// believed for it: among a million chunks, two that differ agree once in 10⁷ objects.
    pub(super) print: u64,
}

/// The cuts of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cuts {
    size: u64,
    chunks: Vec<Chunk>,
}

/// Bytes of a chunk: at least, most often, at most.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    min: usize,
    aim: usize,
    max: usize,
}

/// Cuts an object while its bytes pass by, in pieces of any size.
#[derive(Debug)]
pub struct Cutter {
    sizes: Sizes,
    passed: u64,
    cut: u64,
    chunks: Vec<Chunk>,
    gathered: Vec<u8>,
}

impl Default for Cutter {
    /// A cutter at the beginning of an object.
    fn default() -> Self {
        Self::with(KEPT)
    }
}

impl Cutter {
    /// A cutter for a stretch of an object, into chunks of some 300 bytes.
    pub(super) fn fine() -> Self {
        Self::with(FINE)
    }

    fn with(sizes: Sizes) -> Self {
        Self { sizes, passed: 0, cut: 0, chunks: Vec::new(), gathered: Vec::new() }
    }

    /// Takes the next bytes of the object.
    pub fn push(&mut self, bytes: &[u8]) {
        self.passed += bytes.len() as u64;
        for piece in bytes.chunks(GATHER) {
            if self.chunks.len() == MOST {
                return;
            }
            self.gathered.extend_from_slice(piece);
            if self.gathered.len() >= GATHER {
                self.cut_while_over(self.sizes.max - 1);
            }
        }
    }

    /// The cuts of all that was pushed.
    #[must_use]
    pub fn finish(mut self) -> Cuts {
        self.cut_while_over(0);
        Cuts { size: self.passed, chunks: self.chunks }
    }

    /// Cuts what is gathered while more than `rest` bytes are left. Where a chunk ends depends on
    /// the next `max` bytes, so only the end of the object may leave fewer.
    fn cut_while_over(&mut self, rest: usize) {
        let Sizes { min, aim, max } = self.sizes;
        let cutter = FastCDC::new(&self.gathered, min, aim, max);
        let mut start = 0;
        while self.gathered.len() - start > rest && self.chunks.len() < MOST {
            let (_, end) = cutter.cut(start, self.gathered.len() - start);
            let print = XxHash3_64::oneshot(&self.gathered[start..end]);
            self.cut += (end - start) as u64;
            self.chunks.push(Chunk { end: self.cut, print });
            start = end;
        }
        self.gathered.drain(..start);
    }
}

impl Cuts {
    /// Cuts a file that lies there already, from where it stands.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of(mut file: &File) -> io::Result<Self> {
        let mut cutter = Cutter::default();
        let mut buffer = vec![0; GATHER];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(cutter.finish()),
                Ok(n) => cutter.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes of the object.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The file that keeps these cuts, at most 16 MiB. Integers are little-endian.
    ///
    /// | field | bytes |
    /// |---|---|
    /// | magic | 8: `ds-cuts`, version 2 |
    /// | bytes of the object | 8 |
    /// | of each chunk: where it ends, its XXH3 | 8 + 8 |
    /// | CRC-32 of all before | 4 |
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + RECORD * self.chunks.len() + CHECKSUM);
        out.extend(MAGIC);
        out.extend(self.size.to_le_bytes());
        for chunk in &self.chunks {
            out.extend(chunk.end.to_le_bytes());
            out.extend(chunk.print.to_le_bytes());
        }
        out.extend(crc32fast::hash(&out).to_le_bytes());
        out
    }

    /// Reads what [`encode`](Self::encode) wrote. None when it is damaged or of another version:
    /// then the object is to be cut again.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (body, checksum) = bytes.split_last_chunk::<CHECKSUM>()?;
        let (head, records) = body.split_at_checked(HEAD)?;
        let (magic, size) = head.split_first_chunk::<8>()?;
        let count = records.len() / RECORD;
        let sound = *magic == MAGIC
            && crc32fast::hash(body).to_le_bytes() == *checksum
            && records.len() % RECORD == 0
            && count <= MOST;
        if !sound {
            return None;
        }
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_le_bytes);
        let size = number(size)?;
        let mut last = 0;
        let mut chunks = Vec::with_capacity(count);
        for record in records.chunks_exact(RECORD) {
            let (end, print) = record.split_at(8);
            let chunk = Chunk { end: number(end)?, print: number(print)? };
            if chunk.end <= last {
                return None;
            }
            last = chunk.end;
            chunks.push(chunk);
        }
        let whole = last == size || last < size && count == MOST;
        (whole && i64::try_from(size).is_ok()).then_some(Self { size, chunks })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::delta::tests::noise;

    fn cuts(bytes: &[u8]) -> Cuts {
        let mut cutter = Cutter::default();
        cutter.push(bytes);
        cutter.finish()
    }

    /// A change of these numbers (a new version of a crate) makes kept cuts useless: new `MAGIC`.
    #[test]
    fn cuts_are_those_of_version_2() {
        let found: Vec<_> =
            cuts(&noise(1, 60_000)).chunks.iter().map(|c| (c.end, c.print)).collect();
        let kept = [
            (16_594, 12_360_631_274_455_501_940),
            (44_980, 9_565_511_555_259_839_463),
            (60_000, 9_923_914_498_824_989_108),
        ];
        assert_eq!(found, kept);
    }

    #[test]
    fn chunks_join_to_the_object_whatever_the_pushes() {
        let bytes = [noise(2, 700_000), vec![0; 300_000], noise(3, 5)].concat();
        let whole = cuts(&bytes);
        assert_eq!(whole.size(), bytes.len() as u64);
        assert_eq!(whole.chunks.last().map(|chunk| chunk.end), Some(whole.size()));
        for piece in [1000, 65_536, 1 << 20] {
            let mut cutter = Cutter::default();
            bytes.chunks(piece).for_each(|bytes| cutter.push(bytes));
            assert_eq!(cutter.finish(), whole, "{piece}");
        }
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        assert_eq!(Cuts::of(&file).unwrap(), whole);
    }

    #[test]
    fn kept_cuts_are_read_or_nothing() {
        for bytes in [Vec::new(), noise(4, 1), noise(5, 200_000)] {
            let cuts = cuts(&bytes);
            let kept = cuts.encode();
            assert_eq!(Cuts::decode(&kept), Some(cuts));
            for at in 0..kept.len() {
                let mut damaged = kept.clone();
                damaged[at] ^= 1;
                assert_eq!(Cuts::decode(&damaged), None, "byte {at}");
                assert_eq!(Cuts::decode(&kept[..at]), None, "cut at {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_with_a_right_checksum_are_read_or_refused(
            size in any::<u64>(), records in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = [&MAGIC[..], &size.to_le_bytes(), &records].concat();
            bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
            if let Some(cuts) = Cuts::decode(&bytes) {
                prop_assert_eq!(cuts.chunks.last().map_or(0, |chunk| chunk.end), size);
            }
        }
    }
}
