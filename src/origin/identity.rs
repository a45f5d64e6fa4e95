//! Whether a directory is the one that a feed's history is about.
//!
//! An unmounted disk leaves an empty folder, a typing error names another one: publishing either
//! would empty every mirror. A directory is known by its inode and its file system's id; after a
//! restore or a move both differ, and it is still the same when at least half of the head's files
//! lie there with equal size and time. There is no marker file that somebody could copy or forget.
//! While the directory is gone or another one, nothing is published; it goes on by itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    disk::{FileKind, Root, RootId},
    ledger::decisions::RootMark,
    model::{Content, Entry, Kind, Oid, RelPath},
    store::Store,
};

use super::{Result, session::Session};

/// How often a directory that is gone is looked for.
const LOOK_FOR_ROOT: Duration = Duration::from_secs(1);
/// How often what has no event is checked: a file system unmounted, a follower that is ahead.
const CHECK: Duration = Duration::from_secs(5);
/// Files of the head that are compared; they are taken evenly from all of it.
const SAMPLE: usize = 1_000;

/// Whether `root` is the directory of which `head` is the history. `mark`: what it was last time.
pub(super) fn is_same(
    root: &Root,
    mark: Option<RootMark>,
    store: &Store,
    head: Option<Oid>,
) -> Result<bool> {
    let Some(head) = head else { return Ok(true) };
    if mark == Some(to_mark(root.id()?)) {
        return Ok(true);
    }
    let files = sample(store, head)?;
    let mut alike = 0;
    for (path, entry) in &files {
        alike += usize::from(is_alike(root, path, entry, store)?);
    }
    Ok(alike * 2 >= files.len())
}

pub(super) fn to_mark(id: RootId) -> RootMark {
    RootMark { inode: id.inode, fsid: id.fsid }
}

/// Every n-th file of the head; n doubles as often as there are too many.
fn sample(store: &Store, head: Oid) -> Result<Vec<(RelPath, Entry)>> {
    let (mut files, mut count, mut step) = (Vec::new(), 0_usize, 1);
    store.walk(head, &mut |path, entry| {
        if !matches!(entry.kind, Kind::File { .. }) {
            return;
        }
        if count.is_multiple_of(step) {
            files.push((path, entry));
        }
        count += 1;
        if files.len() > 2 * SAMPLE {
            let mut number = 0;
            files.retain(|_| {
                number += 1;
                number % 2 == 1
            });
            step *= 2;
        }
    })?;
    Ok(files)
}

fn is_alike(root: &Root, path: &RelPath, entry: &Entry, store: &Store) -> Result<bool> {
    let Kind::File { blob, .. } = entry.kind else { return Ok(false) };
    // What cannot be looked at is not alike.
    let stat = root.stat(path).ok().flatten();
    let Some(stat) = stat.filter(|stat| stat.kind == FileKind::File) else { return Ok(false) };
    if entry.meta.mtime.is_some_and(|mtime| mtime != stat.mtime) {
        return Ok(false);
    }
    let size = match store.content(blob)? {
        Content::Object { size, .. } => size,
        Content::Blob(blob) => store.read_blob(blob)?.len() as u64,
    };
    Ok(size == stat.size)
}

/// Why nothing is published for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Halt {
    pub(super) state: &'static str,
    pub(super) reason: String,
}

impl Halt {
    fn root_gone(root: &Root) -> Self {
        let path = root.path().display();
        let reason = format!(
            "{path} is gone: nothing is published; it goes on by itself when the directory is back"
        );
        Halt { state: "stopped", reason }
    }

    pub(super) fn other_root(root: &Root) -> Self {
        let path = root.path().display();
        let reason = format!(
            "{path} is not the directory that this feed's history is about: nothing is published; mount or restore the right one, or accept this one by `depsync approve --root`"
        );
        Halt { state: "stopped", reason }
    }
}

impl Session<'_, '_> {
    /// Before a commit.
    pub(super) fn check_root_now(&mut self, now: Instant) -> Result<()> {
        self.next_root_check = now;
        self.check_root(now)
    }

    /// Nothing is published while the directory is gone or another one.
    pub(super) fn check_root(&mut self, now: Instant) -> Result<()> {
        if now < self.next_root_check {
            return Ok(());
        }
        // Besides, when an event says so and before each commit.
        self.next_root_check = now + CHECK;
        self.check_followers()?;
        let id = match self.root.id_at_path() {
            Ok(id) => id,
            Err(error) => {
                self.halt(Halt { state: "stopped", reason: error.to_string() });
                None
            }
        };
        match id {
            Some(id) if id == self.root_id && self.halt.is_none() => return Ok(()),
            Some(id) if self.wrong_root == Some(id) && now < self.next_poll => {}
            Some(id) => self.root_appeared(now, id)?,
            None => self.halt(Halt::root_gone(&self.root)),
        }
        self.next_root_check = now + LOOK_FOR_ROOT;
        Ok(())
    }

    /// A directory lies at the path: goes on with it where it is the right one.
    fn root_appeared(&mut self, now: Instant, id: RootId) -> Result<()> {
        let root = match Root::open(self.root.path()) {
            Ok(root) => Arc::new(root),
            Err(error) => {
                self.halt(Halt { state: "stopped", reason: error.to_string() });
                return Ok(());
            }
        };
        let mark = self.setup.decisions.feed(&self.setup.feed).root;
        if !is_same(&root, mark, &self.setup.store, self.stage.head())? {
            // Comparing costs a walk over the head: again when another one lies there, or at times.
            self.wrong_root = Some(id);
            self.next_poll = now + self.setup.options.poll;
            self.halt(Halt::other_root(&root));
            return Ok(());
        }
        if let Err(error) = self.lock_root(&root, id) {
            self.halt(Halt { state: "stopped", reason: error.to_string() });
            return Ok(());
        }
        tracing::info!(feed = %self.setup.feed, root = %root.path().display(), "the directory is back");
        self.new_root = Some(root);
        Ok(())
    }

    /// What this process holds already it must not ask for again: the lock is the opened file's.
    pub(super) fn lock_root(&self, root: &Root, id: RootId) -> crate::disk::Result<()> {
        if id == self.root_id || id == self.setup.root.get().id()? { Ok(()) } else { root.lock() }
    }

    pub(super) fn halt(&mut self, halt: Halt) {
        if self.halt.as_ref() != Some(&halt) {
            tracing::error!(feed = %self.setup.feed, reason = halt.reason, "nothing is published");
            self.halt = Some(halt);
        }
    }
}
