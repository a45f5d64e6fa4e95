//! Several files or folders made durable at once, while they are few.
//!
//! Each sync waits for the file system to write its journal; those that wait at the same time wait
//! for the same write. Only what is named is waited for, however much others have written to that
//! disk; where there is more to name than [`FEW`], a sync of the whole file system is the shorter way.

use std::{io, os::fd::BorrowedFd};

/// Up to how many are synced one by one.
pub(super) const FEW: usize = 16;

/// Makes these durable; each waits in a thread of its own, so there should not be many.
pub(super) fn sync(these: &[BorrowedFd<'_>]) -> io::Result<()> {
    let Some((first, others)) = these.split_first() else { return Ok(()) };
    std::thread::scope(|scope| {
        let sync = |fd: BorrowedFd<'_>| Ok::<_, io::Error>(rustix::fs::fsync(fd)?);
        let others: Vec<_> = others.iter().map(|fd| scope.spawn(move || sync(*fd))).collect();
        let joined = others
            .into_iter()
            .map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        let mut done = sync(*first);
        for other in joined {
            done = done.and(other);
        }
        done
    })
}
