//! What lies in a change's way, and what may be done with it.
//!
//! Only content decides whose it is: the feed's old entry may be replaced, the new one is left alone,
//! anything else is somebody's. What cannot be read is not known to be ours.

use std::{io, os::fd::BorrowedFd};

use super::{FileKind, Placing, Stat, compare};
use crate::model::{Change, Entry, RelPath};

/// What may be done with what lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing lies there.
    Free,
    /// The feed's old entry: may be replaced.
    Old,
    /// The new content already.
    New,
    /// Somebody's: goes aside.
    Foreign,
    /// A folder where none should be.
    Folder,
}

/// What lay at a path when it was last looked at, and what that is to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub stat: Option<Stat>,
    pub verdict: Verdict,
}

/// Looks at what lies where a file or link is to be put; `folder` is the change's, opened.
pub(super) fn look(p: &Placing<'_>, folder: BorrowedFd<'_>, change: &Change) -> io::Result<Seen> {
    let stat = Stat::at(folder, change.path.name(), p.root.sync_flags())?;
    let verdict = match stat {
        None => Verdict::Free,
        Some(stat) if stat.kind == FileKind::Dir => Verdict::Folder,
        Some(stat) => judge(p, &stat, change),
    };
    Ok(Seen { stat, verdict })
}

fn judge(p: &Placing<'_>, stat: &Stat, change: &Change) -> Verdict {
    let is = |entry: Option<&Entry>| entry.is_some_and(|entry| holds(p, &change.path, stat, entry));
    let (before, after) = (change.before.as_ref(), change.after.as_ref());
    let same =
        before.zip(after).is_some_and(|(before, after)| before.kind.same_content(&after.kind));
    match () {
        // The usual case first; with the same content on both sides, it is the new one that counts.
        () if !same && is(before) => Verdict::Old,
        () if is(after) => Verdict::New,
        () => Verdict::Foreign,
    }
}

/// Whether a path, whose stat is known, holds an entry's type and content.
pub(super) fn holds(p: &Placing<'_>, path: &RelPath, stat: &Stat, entry: &Entry) -> bool {
    let same = || match p.holds {
        Some(holds) => holds(path, entry),
        None => compare::same_content(p.root, path, stat, entry, p.source),
    };
    compare::is_kind(stat, &entry.kind) && same().unwrap_or(false)
}
