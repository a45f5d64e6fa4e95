//! What this mirror itself has put in place: a large file whose stat is still what it was right
//! after need not be read to know that it is ours.
//!
//! Only in memory, and only a short cut: a file that is not known, or that anything has happened to,
//! is compared byte by byte. Every write moves the modification time away from the recorded one that
//! we have set, and every change of it moves the change time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    disk::{FileKind, Root, Stat},
    model::{Change, Entry, Kind, Mtime, Oid, RelPath},
};

/// Below this, reading a file costs no more than knowing it.
const LARGE: u64 = 256 << 10;
/// More large files than this are compared.
const MOST: usize = 10_000;
/// How coarse the kernel's clock is, in nanoseconds, with something to spare.
const TICK: i128 = 20_000_000;

/// Large files as they were put in place.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<RelPath, (Stat, Oid)>>);

impl Known {
    /// Whether a path holds an entry's content; none: it must be compared.
    pub(super) fn holds(&self, root: &Root, path: &RelPath, entry: &Entry) -> Option<bool> {
        let Kind::File { blob, .. } = entry.kind else { return None };
        let (stat, known) = *self.files().get(path)?;
        let is_unchanged = root.stat(path).is_ok_and(|now| now == Some(stat));
        is_unchanged.then_some(known == blob)
    }

    /// Takes note of what has just been put in place.
    pub(super) fn note(&self, root: &Root, changes: &[Change]) {
        let mut files = self.files();
        for change in changes {
            files.remove(&change.path);
            let Some(entry) = &change.after else { continue };
            let Kind::File { blob, .. } = entry.kind else { continue };
            let Ok(Some(stat)) = root.stat(&change.path) else { continue };
            if files.len() < MOST && is_telling(&stat, entry) {
                files.insert(change.path.clone(), (stat, blob));
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, HashMap<RelPath, (Stat, Oid)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nobody can have written it since without its stat saying so: its modification time is the
/// recorded one, and lies before the tick in which it was put in place.
fn is_telling(stat: &Stat, entry: &Entry) -> bool {
    stat.kind == FileKind::File
        && stat.size >= LARGE
        && entry.meta.mtime == Some(stat.mtime)
        && nanos(stat.mtime) + TICK < nanos(stat.ctime)
}

fn nanos(time: Mtime) -> i128 {
    i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos)
}

#[cfg(test)]
mod tests {
    use std::{fs, time::SystemTime};

    use super::*;
    use crate::model::Meta;

    #[test]
    fn only_what_nothing_has_happened_to_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let (path, at) = (RelPath::parse(b"large").unwrap(), dir.path().join("large"));
        let blob = |n| Oid::from_bytes([n; 20]);
        let put = |bytes: &[u8]| {
            fs::write(&at, bytes).unwrap();
            let file = fs::File::options().write(true).open(&at).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
            let mtime = Some(Mtime { secs: 0, nanos: 0 });
            let kind = Kind::File { blob: blob(1), executable: false };
            Entry { kind, meta: Meta { mtime, ..Meta::default() } }
        };
        let known = Known::default();
        let note = |entry: &Entry| {
            let after = Some(entry.clone());
            known.note(&root, &[Change { path: path.clone(), before: None, after }]);
        };
        let entry = put(&vec![7; 300_000]);
        assert_eq!(known.holds(&root, &path, &entry), None);
        note(&entry);
        assert_eq!(known.holds(&root, &path, &entry), Some(true));
        let other = Entry { kind: Kind::File { blob: blob(2), executable: false }, ..entry };
        assert_eq!(known.holds(&root, &path, &other), Some(false));
        fs::write(&at, vec![8; 300_000]).unwrap();
        assert_eq!(known.holds(&root, &path, &other), None, "somebody wrote it");

        let small = put(b"small");
        note(&small);
        assert_eq!(known.holds(&root, &path, &small), None);
        let mut entry = put(&vec![7; 300_000]);
        entry.meta.mtime = Some(Mtime { secs: 1, nanos: 0 });
        note(&entry);
        assert_eq!(known.holds(&root, &path, &entry), None, "not as we have put it");
    }
}
