//! Room on the disk: what is taken in must leave a floor of free space (`min_free`).
//!
//! Asked before anything is read or fetched, so that a full disk stops it at once, with both figures,
//! and it goes on by itself when there is room. Nothing is reserved: others may fill the disk meanwhile.

use std::{io::Write, os::unix::fs::MetadataExt, path::Path};

use rustix::fs::ioctl_ficlone;

use super::{Error, Result, Store, pack};
use crate::sys::{self, Space};

/// Unless it is configured, this part of the file system stays free, and at most so many bytes.
const FLOOR_PART: u64 = 20;
const FLOOR_MOST: u64 = 2_000_000_000;

/// The bytes that stay free on a file system: as configured, else the usual share.
#[must_use]
pub fn floor(configured: Option<u64>, space: &Space) -> u64 {
    configured.unwrap_or_else(|| (space.total / FLOOR_PART).min(FLOOR_MOST))
}

impl Store {
    /// The same store with a floor of free space, in bytes; none: the usual one.
    #[must_use]
    pub fn with_floor(self, min_free: Option<u64>) -> Self {
        Store { min_free, ..self }
    }

    /// Whether so many bytes more may be stored.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub fn check_room(&self, need: u64) -> Result<()> {
        self.check_room_in(&self.spool, need)
    }

    /// Whether all of a feed of so many bytes may be stored, and put into `folder` besides.
    ///
    /// # Errors
    /// [`Error::NoRoom`].
    pub fn check_room_for_all(&self, bytes: u64, folder: Option<&Path>) -> Result<()> {
        let Some(folder) = folder else { return self.check_room(bytes) };
        let device = |path: &Path| path.metadata().map(|about| about.dev()).ok();
        if device(folder) != device(&self.spool) {
            self.check_room_in(folder, bytes)?;
            return self.check_room(bytes);
        }
        // Both lie on one disk; where files are cloned, the second copy takes nothing.
        let copies = if self.can_clone().unwrap_or_default() { 1 } else { 2 };
        self.check_room(bytes.saturating_mul(copies))
    }

    fn check_room_in(&self, folder: &Path, need: u64) -> Result<()> {
        // What cannot be asked is found out by writing.
        let Ok(space) = sys::space(folder) else { return Ok(()) };
        let floor = floor(self.min_free, &space);
        if need.saturating_add(floor) <= space.free {
            return Ok(());
        }
        Err(Error::NoRoom { folder: folder.to_owned(), need, free: space.free, floor })
    }

    fn can_clone(&self) -> Result<bool> {
        let (mut from, to) = (pack::temporary(&self.spool)?, pack::temporary(&self.spool)?);
        let written = from.as_file_mut().write_all(&[7; 4096]);
        written.map_err(Error::io("write", from.path()))?;
        Ok(ioctl_ficlone(to.as_file(), from.as_file()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_a_part_of_a_small_disk_and_no_more_than_its_most_of_a_large_one() {
        let disk = |total| Space { free: 0, total };
        assert_eq!(floor(None, &disk(1_000_000)), 50_000);
        assert_eq!(floor(None, &disk(1 << 50)), FLOOR_MOST);
        assert_eq!(floor(Some(7), &disk(1 << 50)), 7);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap().with_floor(Some(0));
        store.check_room(1_000).unwrap();
        store.check_room_for_all(1_000, Some(folder.path())).unwrap();
        let refused = store.check_room(u64::MAX).unwrap_err().to_string();
        assert!(refused.contains(&u64::MAX.to_string()) && refused.contains("free"), "{refused}");
        let store = store.with_floor(Some(u64::MAX));
        assert!(matches!(store.check_room(0), Err(Error::NoRoom { .. })));
    }
}
