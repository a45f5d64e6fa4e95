//! What was in a file when it was last read, so that a scan need not read it again.
//!
//! One row for each folder, so that a scan reads one row a folder and memory stays flat. The cache
//! only saves reading: it never says what is published. An entry counts only if the file's times
//! are older than its hashing by more than the file system's grain, since a second write within one
//! grain leaves the same times behind. Writes wait in memory until `flush`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rusqlite::{OptionalExtension, Transaction, params};

use super::{Ledger, Result, codec};
use crate::model::{FeedName, Mtime, Oid, RelPath};

/// Entries that may wait for `flush`; beyond it they are written at once.
const MAX_PENDING: usize = 8_192;

/// What `stat` says of a file, as far as it tells whether the content may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// A symbolic link, else a regular file.
    pub symlink: bool,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Mtime,
    /// Last change of anything; programs cannot set it.
    pub ctime: Mtime,
    /// The inode's number.
    pub inode: u64,
}

/// A file as it was when it was hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cached {
    /// Its stat, the same before and after reading.
    pub seen: Fingerprint,
    /// The clock before the reading began.
    pub hashed_at: Mtime,
    /// The blob in the tree (a pointer's, for an object).
    pub blob: Oid,
}

impl Cached {
    /// Whether a file that now looks like `now` must still hold the same content. `grain`: how far
    /// apart two writes must be for the file system to give them different times.
    #[must_use]
    pub fn counts_for(&self, now: &Fingerprint, grain: Duration) -> bool {
        let settled =
            |time: Mtime| nanos(time) + grain.as_nanos().cast_signed() < nanos(self.hashed_at);
        self.seen == *now && settled(now.mtime) && settled(now.ctime)
    }
}

fn nanos(time: Mtime) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

/// The cached files of one folder, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DirCache(BTreeMap<Vec<u8>, Cached>);

impl DirCache {
    /// The entry of that name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Cached> {
        self.0.get(name)
    }

    /// Sets an entry.
    pub fn insert(&mut self, name: Vec<u8>, cached: Cached) {
        self.0.insert(name, cached);
    }

    /// Keeps the entries whose names pass.
    pub fn retain(&mut self, mut pass: impl FnMut(&[u8]) -> bool) {
        self.0.retain(|name, _| pass(name));
    }

    /// Entries by name.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Cached)> {
        self.0.iter().map(|(name, cached)| (name.as_slice(), cached))
    }

    /// How many entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn apply(&mut self, changes: Changes) {
        for (name, change) in changes {
            match change {
                Some(cached) => self.0.insert(name, cached),
                None => self.0.remove(&name),
            };
        }
    }
}

type Changes = HashMap<Vec<u8>, Option<Cached>>;

/// One feed's stat cache. Reads see what waits to be written.
pub struct StatCache {
    ledger: Arc<Ledger>,
    feed: FeedName,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    dirs: BTreeMap<RelPath, Changes>,
    count: usize,
}

impl StatCache {
    /// The cache of `feed`.
    #[must_use]
    pub fn new(ledger: Arc<Ledger>, feed: FeedName) -> Self {
        Self { ledger, feed, pending: Mutex::default() }
    }

    /// What is known of the files directly in `dir`.
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub fn dir(&self, dir: &RelPath) -> Result<DirCache> {
        let row = self.ledger.with("cannot read the stat cache", |connection| {
            let sql = "SELECT entries FROM stat_cache WHERE feed = ?1 AND dir = ?2";
            let mut query = connection.prepare_cached(sql)?;
            let key = params![self.feed.as_str(), dir.as_bytes()];
            query.query_row(key, |row| row.get::<_, Vec<u8>>(0)).optional()
        })?;
        let mut known = row.and_then(|row| codec::decode(&row)).unwrap_or_default();
        if let Some(changes) = self.lock().dirs.get(dir) {
            known.apply(changes.clone());
        }
        Ok(known)
    }

    /// Remembers what was read at `path`; written at the next [`StatCache::flush`].
    ///
    /// # Errors
    /// When too much waits and the ledger cannot be written.
    pub fn put(&self, path: &RelPath, cached: Cached) -> Result<()> {
        self.change(path, Some(cached))
    }

    /// Forgets the file at `path`.
    ///
    /// # Errors
    /// As [`StatCache::put`].
    pub fn forget(&self, path: &RelPath) -> Result<()> {
        self.change(path, None)
    }

    fn change(&self, path: &RelPath, change: Option<Cached>) -> Result<()> {
        let Some(dir) = path.parent() else { return Ok(()) };
        let mut pending = self.lock();
        let changes = pending.dirs.entry(dir).or_default();
        let new = changes.insert(path.name().to_vec(), change).is_none();
        pending.count += usize::from(new);
        let full = pending.count >= MAX_PENDING;
        drop(pending);
        if full { self.flush() } else { Ok(()) }
    }

    /// Forgets the folder `dir` and all folders below it.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn forget_below(&self, dir: &RelPath) -> Result<()> {
        let mut pending = self.lock();
        pending.dirs.retain(|other, _| !other.is_within(dir));
        pending.count = pending.dirs.values().map(HashMap::len).sum();
        drop(pending);
        // All that begins with "dir/" lies between "dir/" and "dir0": '0' is the byte after '/'.
        let (from, to) = ([dir.as_bytes(), b"/"].concat(), [dir.as_bytes(), b"0"].concat());
        self.ledger.with("cannot write the stat cache", |connection| {
            let feed = self.feed.as_str();
            if dir.is_root() {
                connection.execute("DELETE FROM stat_cache WHERE feed = ?1", [feed])?;
                return Ok(());
            }
            let sql = "DELETE FROM stat_cache
                WHERE feed = ?1 AND (dir = ?2 OR (dir >= ?3 AND dir < ?4))";
            connection.prepare_cached(sql)?.execute(params![feed, dir.as_bytes(), from, to])?;
            Ok(())
        })
    }

    /// Whether something waits to be written.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        !self.lock().dirs.is_empty()
    }

    /// Writes what waits, in one transaction. What fails to be written is dropped: it is a cache.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn flush(&self) -> Result<()> {
        let Pending { dirs, .. } = std::mem::take(&mut *self.lock());
        if dirs.is_empty() {
            return Ok(());
        }
        self.ledger.with("cannot write the stat cache", |connection| {
            let transaction = connection.transaction()?;
            for (dir, changes) in &dirs {
                self.write_dir(&transaction, dir, changes)?;
            }
            transaction.commit()
        })
    }

    fn write_dir(
        &self,
        transaction: &Transaction<'_>,
        dir: &RelPath,
        changes: &Changes,
    ) -> rusqlite::Result<()> {
        let key = params![self.feed.as_str(), dir.as_bytes()];
        let row: Option<Vec<u8>> = transaction
            .prepare_cached("SELECT entries FROM stat_cache WHERE feed = ?1 AND dir = ?2")?
            .query_row(key, |row| row.get(0))
            .optional()?;
        let mut known = row.and_then(|row| codec::decode(&row)).unwrap_or_default();
        known.apply(changes.clone());
        if known.is_empty() {
            let sql = "DELETE FROM stat_cache WHERE feed = ?1 AND dir = ?2";
            transaction.prepare_cached(sql)?.execute(key)?;
            return Ok(());
        }
        let sql = "INSERT INTO stat_cache (feed, dir, entries) VALUES (?1, ?2, ?3)
            ON CONFLICT (feed, dir) DO UPDATE SET entries = excluded.entries";
        let values = params![self.feed.as_str(), dir.as_bytes(), codec::encode(&known)];
        transaction.prepare_cached(sql)?.execute(values)?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().expect("no holder of the waiting writes panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(secs: i64, millis: u32) -> Mtime {
        Mtime { secs, nanos: millis * 1_000_000 }
    }

    fn cached(size: u64) -> Cached {
        let (mtime, ctime) = (at(100, 0), at(100, 500));
        let seen = Fingerprint { symlink: false, mode: 0o644, size, mtime, ctime, inode: 7 };
        Cached { seen, hashed_at: at(200, 0), blob: Oid::from_bytes([9; 20]) }
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn an_entry_counts_only_when_its_times_are_older_than_its_hashing() {
        let fine = Duration::from_millis(20);
        let mut entry = cached(5);
        let seen = entry.seen;
        assert!(entry.counts_for(&seen, fine));
        entry.hashed_at = at(100, 520);
        assert!(!entry.counts_for(&seen, fine), "read within 20 ms of the change");
        entry.hashed_at = at(100, 521);
        assert!(entry.counts_for(&seen, fine));
        assert!(
            !entry.counts_for(&seen, Duration::from_secs(2)),
            "a file system with coarse times"
        );
        for other in [
            Fingerprint { size: 6, ..seen },
            Fingerprint { inode: 8, ..seen },
            Fingerprint { ctime: at(100, 400), ..seen },
            Fingerprint { mode: 0o755, ..seen },
        ] {
            assert!(!entry.counts_for(&other, fine), "{other:?}");
        }
    }

    #[test]
    fn what_was_put_is_seen_at_once_and_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ledger.db");
        let open = || {
            let ledger = Arc::new(Ledger::open(&file).unwrap());
            StatCache::new(ledger, FeedName::default())
        };
        let cache = open();
        cache.put(&path("a/x"), cached(1)).unwrap();
        cache.put(&path("a/y"), cached(2)).unwrap();
        cache.put(&path("a/b/z"), cached(3)).unwrap();
        cache.put(&path("a-other/z"), cached(4)).unwrap();
        assert_eq!(cache.dir(&path("a")).unwrap().len(), 2);
        cache.flush().unwrap();
        cache.forget(&path("a/x")).unwrap();
        cache.put(&path("a/y"), cached(5)).unwrap();
        assert!(cache.is_dirty());
        cache.flush().unwrap();
        assert!(!cache.is_dirty());
        drop(cache);

        let cache = open();
        let known = cache.dir(&path("a")).unwrap();
        assert_eq!(known.iter().collect::<Vec<_>>(), [(&b"y"[..], &cached(5))]);
        cache.forget_below(&path("a")).unwrap();
        assert!(cache.dir(&path("a")).unwrap().is_empty());
        assert!(cache.dir(&path("a/b")).unwrap().is_empty());
        assert_eq!(cache.dir(&path("a-other")).unwrap().len(), 1);
        cache.forget_below(&RelPath::root()).unwrap();
        assert!(cache.dir(&path("a-other")).unwrap().is_empty());
    }

    #[test]
    fn two_feeds_do_not_share() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Ledger::open(&folder.path().join("ledger.db")).unwrap());
        let one = StatCache::new(Arc::clone(&ledger), "one".parse().unwrap());
        let two = StatCache::new(ledger, "two".parse().unwrap());
        one.put(&path("x"), cached(1)).unwrap();
        one.flush().unwrap();
        assert!(two.dir(&RelPath::root()).unwrap().is_empty());
        two.forget_below(&RelPath::root()).unwrap();
        assert_eq!(one.dir(&RelPath::root()).unwrap().len(), 1);
    }
}
