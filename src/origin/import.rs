//! How far a first import is: files and bytes read, how fast, and how long it will still take.
//!
//! A thread counts the names beside it, for the time that is left; a count is cheap, since it looks
//! at no file. Both are for people: what is published is decided without them.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::Scope,
    time::{Duration, Instant},
};

use crate::{
    bus::Importing,
    disk::Root,
    model::{Names, Profile, RelPath},
};

/// How often the log says how far it is.
const LOGGED: Duration = Duration::from_secs(10);
/// Before this a rate says nothing.
const FIRST_RATE: Duration = Duration::from_millis(200);

/// A first import.
pub(super) struct Import {
    began: Instant,
    logged: Instant,
    files: u64,
    bytes: u64,
    count: Arc<Count>,
}

/// What the counting thread knows.
#[derive(Default)]
struct Count {
    files: AtomicU64,
    complete: AtomicBool,
    stop: AtomicBool,
}

impl Drop for Import {
    fn drop(&mut self) {
        self.count.stop.store(true, Ordering::Relaxed);
    }
}

impl Import {
    /// Starts to count, on a thread that ends when this is dropped.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        now: Instant,
        root: &Arc<Root>,
        profile: Option<Profile>,
    ) -> io::Result<Self> {
        let count = Arc::new(Count::default());
        let (counter, root) = (Arc::clone(&count), Arc::clone(root));
        let work = move || counter.run(&root, profile);
        std::thread::Builder::new().name("count".to_owned()).spawn_scoped(scope, work)?;
        Ok(Import { began: now, logged: now, files: 0, bytes: 0, count })
    }

    /// A file of that size was read.
    pub(super) fn read(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }

    /// How far it is.
    pub(super) fn progress(&self, now: Instant) -> Importing {
        let is_counted = self.count.complete.load(Ordering::Acquire);
        let counted = self.count.files.load(Ordering::Relaxed);
        let total = is_counted.then(|| counted.max(self.files));
        progress(now.saturating_duration_since(self.began), self.files, self.bytes, total)
    }

    /// Whether the log should say so.
    pub(super) fn is_to_be_logged(&mut self, now: Instant) -> bool {
        let is_due = now.saturating_duration_since(self.logged) >= LOGGED;
        if is_due {
            self.logged = now;
        }
        is_due
    }
}

/// Goes by files: many small ones take longer than their bytes.
fn progress(took: Duration, files: u64, bytes: u64, total: Option<u64>) -> Importing {
    let secs = took.as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let per_sec = |count: u64| count as f64 / secs;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate for people, and casts saturate"
    )]
    let whole = |rate: f64| rate as u64;
    let known = took >= FIRST_RATE && files > 0;
    let left = total
        .filter(|_| known)
        .map(|total| Duration::from_secs(whole(per_sec(total - files) / per_sec(files) * secs)));
    Importing {
        files,
        bytes,
        total,
        files_per_sec: known.then(|| whole(per_sec(files))),
        rate: known.then(|| whole(per_sec(bytes))),
        left,
    }
}

impl Count {
    /// Folders that are left out are not gone into; single files that are make no difference.
    fn run(&self, root: &Root, profile: Option<Profile>) {
        let text = super::ignore::ignore_text(root).unwrap_or_default();
        let Ok(names) = Names::new(profile, &text) else { return };
        let mut folders = vec![RelPath::root()];
        while let Some(folder) = folders.pop() {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let is_kept = |path: &RelPath| names.left_out_of_folder(path, true).is_none();
            // What cannot be listed is not imported either.
            let Ok((files, below)) = root.count(&folder) else { continue };
            let below = below.iter().filter_map(|name| folder.join(name).ok());
            folders.extend(below.filter(is_kept));
            self.files.fetch_add(files, Ordering::Relaxed);
        }
        self.complete.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_by_files_once_they_are_counted() {
        let after =
            |secs, files, bytes, total| progress(Duration::from_secs(secs), files, bytes, total);
        let early = after(0, 10, 100, Some(1_000));
        assert_eq!((early.rate, early.files_per_sec, early.left), (None, None, None));
        let uncounted = after(10, 1_000, 50_000, None);
        assert_eq!((uncounted.files_per_sec, uncounted.rate), (Some(100), Some(5_000)));
        assert_eq!((uncounted.total, uncounted.left), (None, None));
        let counted = after(10, 1_000, 50_000, Some(4_000));
        assert_eq!(counted.left, Some(Duration::from_secs(30)));
        assert_eq!(after(10, 1_000, 0, Some(1_000)).left, Some(Duration::ZERO));
    }

    #[test]
    fn names_are_counted_without_folders_that_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(".depsyncignore"), "/cache/\n").unwrap();
        for folder in ["a/b", "cache/c"] {
            std::fs::create_dir_all(dir.path().join(folder)).unwrap();
            std::fs::write(dir.path().join(folder).join("file"), "x").unwrap();
        }
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let importing = std::thread::scope(|scope| {
            let import = Import::start(scope, Instant::now(), &root, None).unwrap();
            let end = Instant::now() + Duration::from_secs(60);
            loop {
                let importing = import.progress(Instant::now());
                if importing.total.is_some() || Instant::now() > end {
                    return importing;
                }
                std::thread::yield_now();
            }
        });
        assert_eq!(importing.total, Some(2), "one file, and the ignore file");
    }
}
