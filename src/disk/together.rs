//! Several files or folders made durable at once, while they are few.
//!
//! Each sync waits for the file system to write its journal; those that wait at the same time wait
//! for the same write. Only what is named is waited for, however much others have written to that
//! disk; where there is more to name than [`FEW`], a sync of the whole file system is the shorter way.

/// Up to how many are synced one by one.
pub(super) const FEW: usize = 16;

pub(super) use crate::sys::sync_together as sync;
