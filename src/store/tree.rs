//! git's tree objects: `<octal mode> <name>\0<20 bytes>`, in git's order.
//!
//! Reading checks order and modes, so two different trees never look the same; what git allows and
//! a feed does not (submodules, old modes) is refused.

use std::cmp::Ordering;

use super::{Error, Result};
use crate::model::Oid;

/// The modes that occur in a feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    File,
    Executable,
    Link,
    Folder,
}

impl Mode {
    fn octal(self) -> &'static [u8] {
        match self {
            Mode::File => b"100644",
            Mode::Executable => b"100755",
            Mode::Link => b"120000",
            Mode::Folder => b"40000",
        }
    }

    fn parse(octal: &[u8]) -> Option<Mode> {
        [Mode::File, Mode::Executable, Mode::Link, Mode::Folder]
            .into_iter()
            .find(|mode| mode.octal() == octal)
    }
}

/// One entry of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TreeEntry<'a> {
    pub(super) mode: Mode,
    pub(super) name: &'a [u8],
    pub(super) id: Oid,
}

impl TreeEntry<'_> {
    /// git's order: by name, where a folder's name counts as if it ended in a slash.
    pub(super) fn order(&self, other: &TreeEntry<'_>) -> Ordering {
        let common = self.name.len().min(other.name.len());
        let next = |entry: &TreeEntry<'_>| match entry.name.get(common) {
            Some(&byte) => byte,
            None if entry.mode == Mode::Folder => b'/',
            None => 0,
        };
        self.name[..common].cmp(&other.name[..common]).then_with(|| next(self).cmp(&next(other)))
    }
}

/// The entries of a tree, in git's order; none after a fault.
pub(super) struct Entries<'a> {
    rest: &'a [u8],
    last: Option<TreeEntry<'a>>,
}

/// Reads a tree's bytes.
pub(super) fn entries(raw: &[u8]) -> Entries<'_> {
    Entries { rest: raw, last: None }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<TreeEntry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let read = self.take_one().map_err(|why| Error::damaged("a tree", why));
        if read.is_err() {
            self.rest = &[];
        }
        Some(read)
    }
}

impl<'a> Entries<'a> {
    fn take_one(&mut self) -> std::result::Result<TreeEntry<'a>, &'static str> {
        let space = self.rest.iter().take(7).position(|&c| c == b' ');
        let (mode, rest) = self.rest.split_at(space.ok_or("an entry has no mode")?);
        let mode =
            Mode::parse(mode).ok_or("a mode is none of file, executable, link and folder")?;
        let nul = memchr::memchr(0, rest).ok_or("a name has no end")?;
        let (id, after) = rest[nul + 1..].split_at_checked(20).ok_or("an id has no end")?;
        let id = Oid::try_from(id).expect("20 bytes");
        let entry = TreeEntry { mode, name: &rest[1..nul], id };
        if self.last.is_some_and(|last| last.order(&entry) != Ordering::Less) {
            return Err("its entries are out of order");
        }
        self.last = Some(entry);
        self.rest = after;
        Ok(entry)
    }
}

/// The bytes of a tree; brings the entries into order.
pub(super) fn encode(entries: &mut [TreeEntry<'_>]) -> Vec<u8> {
    entries.sort_by(TreeEntry::order);
    let mut out = Vec::with_capacity(entries.iter().map(|entry| entry.name.len() + 28).sum());
    for entry in entries {
        out.extend_from_slice(entry.mode.octal());
        out.push(b' ');
        out.extend_from_slice(entry.name);
        out.push(0);
        out.extend_from_slice(entry.id.as_bytes());
    }
    out
}
