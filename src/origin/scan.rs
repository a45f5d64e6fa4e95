//! The truth about a directory: folder by folder, what differs from the head is touched.
//!
//! A folder is watched first and listed then, so that nothing made in between is lost. No content
//! is read here: a file whose stat the cache knows, with the head's blob, is unchanged. A folder
//! that cannot be listed keeps its last state, with all below it, and is tried again. One folder a
//! step, so that events are never kept waiting.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use super::{
    Result,
    read::{fingerprint, grain},
    session::Session,
    settle::Lane,
};
use crate::{
    disk::{self, FileKind, Stat, WatchError},
    ledger::DirCache,
    model::{Entry, Kind, RelPath, names::HOLD_FILE},
};

/// Folders that cannot be listed and are named; a scan comes to the others anyway.
const MAX_UNREADABLE: usize = 1_000;

/// What is still to be scanned.
#[derive(Default)]
pub(super) struct Scan {
    /// The last is the next, so that a folder is done before its neighbour is begun.
    folders: Vec<RelPath>,
    /// A scan of everything is under way; another was asked for meanwhile.
    all: bool,
    all_again: bool,
    began: Option<Instant>,
    /// Folders that it came to.
    folders_seen: usize,
    /// Folders that could not be listed.
    pub(super) unreadable: BTreeMap<RelPath, String>,
}

impl Scan {
    /// Everything is to be scanned: again from the start if that is under way.
    pub(super) fn all(&mut self) {
        // One that has come to its last folder and is not over yet is over: nothing would go on.
        if self.all && !self.folders.is_empty() {
            self.all_again |= self.folders.first() != Some(&RelPath::root());
            return;
        }
        self.all = true;
        self.began = Some(Instant::now());
        self.folders_seen = 0;
        self.folders.insert(0, RelPath::root());
    }

    /// Whether a scan of everything has yet to begin. The root is put in below all others, and
    /// nothing is ever put in below it.
    pub(super) fn will_begin(&self) -> bool {
        self.all_again || self.folders.first() == Some(&RelPath::root())
    }

    /// A folder is to be scanned, with all below it.
    pub(super) fn folder(&mut self, path: &RelPath) {
        if self.folders.last() != Some(path) {
            self.folders.push(path.clone());
        }
    }

    /// Folders that could not be listed are tried again.
    pub(super) fn unreadable_again(&mut self) {
        self.folders.extend(self.unreadable.keys().cloned());
    }

    pub(super) fn is_idle(&self) -> bool {
        self.folders.is_empty()
    }

    fn next(&mut self) -> Option<RelPath> {
        let next = self.folders.pop();
        self.folders_seen += usize::from(self.all);
        if self.folders.is_empty() && std::mem::take(&mut self.all_again) {
            self.folders.push(RelPath::root());
        }
        next
    }

    /// Folders that the last scan of everything came to.
    pub(super) fn folders_seen(&self) -> usize {
        self.folders_seen
    }

    /// How long a scan of everything took, once it is over.
    pub(super) fn finished(&mut self) -> Option<std::time::Duration> {
        if !self.is_idle() || !std::mem::take(&mut self.all) {
            return None;
        }
        self.began.take().map(|began| began.elapsed())
    }
}

/// What is known of a folder that is being scanned.
struct Folder<'a> {
    path: &'a RelPath,
    head: HashMap<Vec<u8>, Entry>,
    cache: DirCache,
}

impl Session<'_, '_> {
    /// Scans the next folder.
    pub(super) fn scan_folder(&mut self) -> Result<()> {
        let Some(path) = self.scan.next() else { return Ok(()) };
        if !path.is_root() && self.names.left_out(&path, true).is_some() {
            return Ok(());
        }
        self.watch_folder(&path);
        let listing = match self.root.list(&path) {
            Ok(listing) => listing,
            Err(error) => {
                self.cannot_list(&path, &error);
                return Ok(());
            }
        };
        self.scan.unreadable.remove(&path);
        self.left_out.remove(&path);
        let head = self.stage.list_head(&path)?.into_iter().collect();
        let cache = self.cache.dir(&path).unwrap_or_else(|error| {
            tracing::warn!(feed = %self.setup.feed, %error, "files are read again");
            DirCache::default()
        });
        let mut folder = Folder { path: &path, head, cache };
        if path.is_root() {
            self.check_hold_file();
        }
        for (name, stat) in &listing {
            self.scan_entry(&mut folder, name, stat);
        }
        for name in folder.head.keys() {
            let Ok(gone) = path.join(name) else { continue };
            if !self.stage.is_held(&gone) {
                self.touch(&gone, Lane::Scan);
            }
        }
        Ok(())
    }

    pub(super) fn watch_folder(&mut self, path: &RelPath) {
        let Some(watcher) = &self.watcher else { return };
        match watcher.watch(path) {
            Ok(()) | Err(WatchError::Gone { .. }) => {}
            Err(error) => self.cannot_watch(error),
        }
    }

    fn cannot_list(&mut self, path: &RelPath, error: &disk::Error) {
        if error.is_gone() {
            self.touch(path, Lane::Scan);
            return;
        }
        let reason = error.to_string();
        if self.scan.unreadable.len() < MAX_UNREADABLE
            && self.scan.unreadable.insert(path.clone(), reason).is_none()
        {
            tracing::warn!(feed = %self.setup.feed, %path, %error, "a folder keeps its last state");
        }
    }

    /// Takes an entry out of `folder.head`, and touches it if it may differ.
    fn scan_entry(&mut self, folder: &mut Folder<'_>, name: &[u8], stat: &Stat) {
        let before = folder.head.remove(name);
        let Ok(path) = folder.path.join(name) else {
            if disk::is_temporary(name) || name == HOLD_FILE {
                return;
            }
            // A name that no path within a feed can have, so its folder stands for it.
            self.leave_out(
                folder.path,
                "it holds a git repository's own folder, or another reserved name",
            );
            return;
        };
        let is_dir = stat.kind == FileKind::Dir;
        if self.names.left_out_of_folder(&path, is_dir).is_some() {
            return;
        }
        match stat.kind {
            FileKind::Dir => self.scan_dir(&path, stat, before.as_ref()),
            FileKind::Special => {
                self.leave_out(&path, "a FIFO, socket or device");
                if before.is_some() {
                    self.touch(&path, Lane::Scan);
                }
            }
            FileKind::File | FileKind::Symlink => {
                let unsettled = self.stage.is_held(&path) || self.stage.mentions(&path);
                if unsettled || !self.is_unchanged(folder, name, stat, before.as_ref()) {
                    self.touch(&path, Lane::Scan);
                }
            }
        }
    }

    fn scan_dir(&mut self, path: &RelPath, stat: &Stat, before: Option<&Entry>) {
        let keep = &self.setup.options.keep;
        let same = match before {
            Some(Entry { kind: Kind::Dir, meta }) => {
                !keep.empty_dirs || self.root.meta(path, stat, keep).is_ok_and(|now| now == *meta)
            }
            _ => false,
        };
        if !same || self.stage.mentions(path) {
            self.touch(path, Lane::Scan);
        }
        self.scan.folders.push(path.clone());
    }

    /// Whether a file needs not be read: the cache knows its stat, and its content is the head's.
    fn is_unchanged(
        &self,
        folder: &Folder<'_>,
        name: &[u8],
        stat: &Stat,
        before: Option<&Entry>,
    ) -> bool {
        let (Some(before), Some(cached)) = (before, folder.cache.get(name)) else { return false };
        let same_kind = match before.kind {
            Kind::File { blob, executable } => {
                stat.kind == FileKind::File
                    && blob == cached.blob
                    && executable == (stat.mode & 0o100 != 0)
            }
            Kind::Symlink { blob } => stat.kind == FileKind::Symlink && blob == cached.blob,
            Kind::Dir => false,
        };
        let same_mode = before.meta.mode.is_none_or(|mode| mode == stat.mode);
        same_kind
            && same_mode
            && cached.counts_for(&fingerprint(stat), grain(self.file_system.fat, stat))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whenever_everything_is_asked_for_it_is_scanned_from_the_start() {
        let folder = RelPath::parse(b"folder").unwrap();
        // Asked for again before, while, and after the last folder is taken.
        for taken_before in 0..=2 {
            let mut scan = Scan::default();
            scan.all();
            let mut taken = Vec::new();
            for step in 0..2 {
                if step == taken_before {
                    scan.all();
                }
                taken.extend(scan.next());
                if step == 0 {
                    scan.folders.push(folder.clone());
                }
            }
            if taken_before == 2 {
                scan.all();
            }
            taken.extend(std::iter::from_fn(|| scan.next()));
            let roots = taken.iter().filter(|path| path.is_root()).count();
            assert_eq!(roots, if taken_before == 0 { 1 } else { 2 }, "{taken_before}: {taken:?}");
            assert!(scan.finished().is_some() && scan.is_idle());
        }
    }
}
