//! The body of a large download: a part of an opened file, in blocks.
//!
//! What the page cache holds is read at once; anything else is read on a thread, one block ahead of
//! the socket. All bodies share a budget of memory: the more of them, the smaller their blocks, whatever
//! the files' sizes. A file that ends early ends the
//! connection, so that nobody takes half a file for a whole one.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    ops::Range,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags};

use super::blocking::Blocking;

/// Large enough that a thread's hand-over costs little beside it.
const MAX_BLOCK: usize = 256 << 10;
/// A few packets.
const MIN_BLOCK: usize = 16 << 10;
/// What the blocks of all bodies may take while there are not too many for the smallest.
const BUDGET: usize = 16 << 20;

type Read = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

/// The memory that all bodies share.
#[derive(Clone, Default)]
pub(super) struct Share {
    bodies: Arc<AtomicUsize>,
}

impl Share {
    /// Counts a body, until it is dropped.
    fn take(&self) -> Part {
        self.bodies.fetch_add(1, Relaxed);
        Part(self.clone())
    }
}

/// A body's part of the memory.
struct Part(Share);

impl Part {
    /// The size of its next block.
    fn block(&self) -> usize {
        (BUDGET / self.0.bodies.load(Relaxed).max(1)).clamp(MIN_BLOCK, MAX_BLOCK)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.0.bodies.fetch_sub(1, Relaxed);
    }
}

/// The bytes of a range of a file.
pub(super) struct FileBody {
    file: Arc<File>,
    left: Range<u64>,
    /// The next block, where it had to be fetched from the disk.
    ahead: Option<Read>,
    blocking: Blocking,
    part: Part,
}

impl FileBody {
    /// Sends `range` of `file`.
    pub(super) fn new(file: File, range: Range<u64>, blocking: Blocking, share: &Share) -> Self {
        let (file, part) = (Arc::new(file), share.take());
        FileBody { file, left: range, ahead: None, blocking, part }
    }

    fn block(&self) -> usize {
        let most = self.part.block();
        usize::try_from(self.left.end - self.left.start).unwrap_or(most).min(most)
    }

    fn read_on_thread(&self) -> Read {
        let (file, at, length) = (Arc::clone(&self.file), self.left.start, self.block());
        Box::pin(self.blocking.run(move || {
            let mut block = BytesMut::zeroed(length);
            file.read_exact_at(&mut block, at)?;
            Ok(block.freeze())
        }))
    }

    fn poll_block(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if let Some(read) = &mut self.ahead {
            let block = ready!(read.as_mut().poll(cx));
            self.ahead = None;
            let block = block?;
            self.left.start += block.len() as u64;
            if !self.left.is_empty() {
                let mut next = self.read_on_thread();
                // The first poll starts the thread; its result is asked for with the next block.
                let begun = next.as_mut().poll(cx);
                self.ahead = Some(match begun {
                    Poll::Pending => next,
                    Poll::Ready(block) => Box::pin(std::future::ready(block)),
                });
            }
            return Poll::Ready(Ok(block));
        }
        if let Some(block) = read_cached(&self.file, self.left.start, self.block()) {
            self.left.start += block.len() as u64;
            return Poll::Ready(Ok(block));
        }
        self.ahead = Some(self.read_on_thread());
        self.poll_block(cx)
    }
}

/// What the page cache holds from `at`; none: nothing, or the file system cannot tell.
fn read_cached(file: &File, at: u64, length: usize) -> Option<Bytes> {
    let mut block = BytesMut::zeroed(length);
    let mut into = [IoSliceMut::new(&mut block)];
    let read = loop {
        match rustix::io::preadv2(file, &mut into, at, ReadWriteFlags::NOWAIT) {
            Err(Errno::INTR) => {}
            read => break read,
        }
    };
    match read {
        Ok(read) if read > 0 => {
            block.truncate(read);
            Some(block.freeze())
        }
        _ => None,
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.left.is_empty() {
            return Poll::Ready(None);
        }
        let block = ready!(this.poll_block(cx))?;
        Poll::Ready(Some(Ok(Frame::data(block))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.end - self.left.start)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn many_bodies_take_little_memory_each() {
        let share = Share::default();
        let mut bodies: Vec<Part> = Vec::new();
        let mut taken = 0;
        for _ in 0..2000 {
            bodies.push(share.take());
            taken += bodies.last().unwrap().block();
        }
        // Each keeps the block that it had when it came.
        assert!(taken < 100 << 20, "{taken}");
        assert_eq!(bodies[0].block(), MIN_BLOCK);
        bodies.truncate(1);
        assert_eq!(bodies[0].block(), MAX_BLOCK);
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[tokio::test]
    async fn it_sends_exactly_the_range() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        for range in [0..1_000_000, 0..1, 999_999..1_000_000, 300_000..900_001, 262_144..524_288] {
            let body =
                FileBody::new(file(&bytes), range.clone(), Blocking::new(2), &Share::default());
            assert_eq!(body.size_hint().exact(), Some(range.end - range.start));
            let sent = body.collect().await.unwrap().to_bytes();
            let index = |at| usize::try_from(at).unwrap();
            assert_eq!(sent, bytes[index(range.start)..index(range.end)], "{range:?}");
        }
    }

    #[tokio::test]
    async fn reading_on_threads_gives_the_same_bytes() {
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let mut body =
            FileBody::new(file(&bytes), 5..1_000_000, Blocking::new(2), &Share::default());
        body.ahead = Some(body.read_on_thread());
        assert_eq!(body.collect().await.unwrap().to_bytes(), bytes[5..]);
    }

    #[tokio::test]
    async fn a_file_that_ends_early_is_an_error() {
        let body = FileBody::new(file(&[7; 1000]), 0..2000, Blocking::new(2), &Share::default());
        assert!(body.collect().await.is_err());
    }
}
