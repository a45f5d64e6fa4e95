//! The bytes of a large object pass by once, and several threads do their work on them: one hashes,
//! one cuts, one writes.
//!
//! They go from hand to hand in a round of blocks, so memory does not grow with the object. What is
//! written is begun with at once, so that a sync at the end has little left to wait for.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    sync::{Arc, mpsc},
};

use rustix::fs::ioctl_ficlone;
use sha2::{Digest, Sha256};

use super::{
    chunks::{Cuts, Cutter},
    objects::Ingested,
};
use crate::{model::ObjectId, sys};

/// Stays in the cache of a core while it is hashed, cut and written.
const BLOCK: usize = 256 << 10;
/// Above this, hashing, cutting and writing go on threads: below it, starting them costs more.
pub(super) const OVERLAP: u64 = 4 << 20;
/// How many blocks may wait for each thread.
const BLOCKS_AHEAD: usize = 8;
/// How much is written before the disk is told to begin with it.
const WRITE_BEHIND: u64 = 1 << 20;

/// Bytes that several threads look at, and which of them are meant.
pub(super) type Block = (Arc<Vec<u8>>, usize);

/// A way to a thread that takes blocks.
pub(super) type Way = mpsc::SyncSender<Block>;

/// A new way, and what comes out of it.
pub(super) fn way() -> (Way, mpsc::Receiver<Block>) {
    mpsc::sync_channel(BLOCKS_AHEAD)
}

/// Blocks that are used in turn: a new one each time would be new pages from the system each time.
pub(super) struct Round {
    blocks: Vec<Arc<Vec<u8>>>,
    turn: usize,
}

impl Round {
    pub(super) fn new() -> Self {
        // When one comes round again, each thread has let go of it: its queue is shorter.
        let blocks = (0..BLOCKS_AHEAD + 3).map(|_| Arc::new(vec![0; BLOCK])).collect();
        Round { blocks, turn: 0 }
    }

    /// The block to be filled.
    pub(super) fn current(&mut self) -> &mut [u8] {
        Arc::<Vec<u8>>::make_mut(&mut self.blocks[self.turn])
    }

    /// Closes it, and goes on to the next.
    pub(super) fn filled(&mut self, bytes: usize) -> Block {
        let block = Arc::clone(&self.blocks[self.turn]);
        self.turn = (self.turn + 1) % self.blocks.len();
        (block, bytes)
    }
}

/// Copies a whole file; hashes and cuts the copy's bytes.
pub(super) fn copy(from: &mut File, to: &mut File) -> io::Result<(Ingested, Cuts)> {
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
        let (to_cutter, blocks) = way();
        let cutter = scope.spawn(move || {
            let mut cutter = Cutter::default();
            for (block, filled) in &blocks {
                cutter.push(&block[..filled]);
            }
            cutter.finish()
        });
        let writer = to.map(|to| {
            let (to_writer, blocks) = way();
            let mut behind = WriteBehind::default();
            let write = move |(block, filled): Block| {
                to.write_all(&block[..filled])?;
                behind.wrote(to, filled);
                Ok::<_, io::Error>(())
            };
            (to_writer, scope.spawn(move || blocks.into_iter().try_for_each(write)))
        });
        let mut ways = vec![to_cutter];
        ways.extend(writer.as_ref().map(|(to_writer, _)| to_writer.clone()));
        let read = hash_and_send(from, &ways);
        drop(ways);
        let cuts = cutter.join().expect("cutting does not panic");
        if let Some((to_writer, writer)) = writer {
            drop(to_writer);
            // One that failed has hung up; its error is the one that counts.
            writer.join().expect("writing does not panic")?;
        }
        Ok((read?, cuts))
    })
}

fn hash_and_send(from: &mut File, ways: &[Way]) -> io::Result<Ingested> {
    let (mut round, mut hasher, mut size) = (Round::new(), Sha256::new(), 0);
    loop {
        let filled = fill(from, round.current())?;
        if filled == 0 {
            return Ok(Ingested { id: ObjectId::from_bytes(hasher.finalize().into()), size });
        }
        let block = round.filled(filled);
        for way in ways {
            way.send(block.clone()).map_err(io::Error::other)?;
        }
        hasher.update(&block.0[..filled]);
        size += filled as u64;
    }
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
pub(super) struct WriteBehind {
    written: u64,
    begun: u64,
}

impl WriteBehind {
    /// So much lies there already.
    pub(super) fn from(offset: u64) -> Self {
        WriteBehind { written: offset, begun: offset }
    }

    /// So many more bytes were appended.
    pub(super) fn wrote(&mut self, to: &File, bytes: usize) {
        self.written += bytes as u64;
        let waiting = self.written - self.begun;
        if waiting >= WRITE_BEHIND {
            sys::start_writing(to, self.begun, waiting);
            self.begun = self.written;
        }
    }
}

/// Reads to the end; returns how many bytes there were.
pub(super) fn read_blocks(
    from: &mut File,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<u64> {
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
