//! Whole trees copied or removed, name by name beneath opened folders.
//!
//! A link is copied or removed as a link and never followed. Depth is bounded by open files: a tree
//! deeper than the process may hold open is refused, and what was not reached stays as it was.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, Uid},
    io::Errno,
};

use super::{
    FileKind, Stat, metadata,
    root::{for_each_name, remove_at},
};
use crate::sys;

/// An entry of an opened folder.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub folder: BorrowedFd<'a>,
    pub name: &'a [u8],
}

impl At<'_> {
    pub(super) fn stat(self) -> io::Result<Option<Stat>> {
        Stat::at(self.folder, self.name, AtFlags::empty())
    }

    fn open(self, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(rustix::fs::openat(self.folder, self.name, flags, Mode::empty())?)
    }
}

fn names(folder: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for_each_name(folder, |name, _| {
        names.push(name.to_bytes().to_vec());
        Ok(())
    })?;
    Ok(names)
}

/// On a file system that does not tell case apart, one file answers to two names; the feed's twin of
/// it must not take its place.
///
/// # Errors
/// When the entry that answers to the name has another one.
pub(super) fn expect_exact_name(folder: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let answers = |other: &Vec<u8>| other.eq_ignore_ascii_case(name);
    let alike: Vec<_> = names(folder)?.into_iter().filter(answers).collect();
    if alike.is_empty() || alike.iter().any(|other| other == name) {
        return Ok(());
    }
    let twin = String::from_utf8_lossy(&alike[0]).into_owned();
    let text = format!("this file system keeps only one of it and {twin}, which lies there");
    Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
}

/// Removes an entry, with all below it where it is a folder. Nothing there: nothing to do.
pub(super) fn remove(at: At<'_>) -> io::Result<()> {
    let Some(stat) = at.stat()? else { return Ok(()) };
    if stat.kind == FileKind::Dir {
        // Told that it is ours to remove, we may have to make it ours to change.
        if stat.mode & 0o700 != 0o700 {
            rustix::fs::chmodat(at.folder, at.name, Mode::RWXU, AtFlags::empty())?;
        }
        let folder = at.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
        for name in names(folder.as_fd())? {
            remove(At { folder: folder.as_fd(), name: &name })?;
        }
    }
    remove_at(at.folder, at.name, stat.kind)
}

/// Copies an entry to a name that is free, with mode, owner where that is allowed, and times; all
/// below it where it is a folder. Durable when it answers.
pub(super) fn copy(from: At<'_>, to: At<'_>) -> io::Result<()> {
    let Some(stat) = from.stat()? else { return Err(io::ErrorKind::NotFound.into()) };
    match stat.kind {
        FileKind::File => copy_file(from, to, &stat),
        FileKind::Symlink => {
            let target = rustix::fs::readlinkat(from.folder, from.name, Vec::new())?;
            Ok(rustix::fs::symlinkat(&target, to.folder, to.name)?)
        }
        FileKind::Dir => copy_folder(from, to, &stat),
        FileKind::Special => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "it is a pipe, socket or device, which cannot be copied to another file system",
        )),
    }
}

fn copy_file(from: At<'_>, to: At<'_>, stat: &Stat) -> io::Result<()> {
    let source = File::from(from.open(OFlags::RDONLY)?);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(to.folder, to.name, flags, Mode::RUSR | Mode::WUSR)?;
    let copy = File::from(copy);
    sys::copy(&source, &copy)?;
    set(copy.as_fd(), stat)?;
    copy.sync_all()
}

fn copy_folder(from: At<'_>, to: At<'_>, stat: &Stat) -> io::Result<()> {
    let source = from.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
    rustix::fs::mkdirat(to.folder, to.name, Mode::RWXU)?;
    let copied = to.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
    for name in names(source.as_fd())? {
        copy(
            At { folder: source.as_fd(), name: &name },
            At { folder: copied.as_fd(), name: &name },
        )?;
    }
    set(copied.as_fd(), stat)?;
    Ok(rustix::fs::fsync(&copied)?)
}

fn set(fd: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    // Only root may give a file away; the copy is of use to its finder either way.
    let (uid, gid) = (Uid::from_raw_unchecked(stat.uid), Gid::from_raw_unchecked(stat.gid));
    match rustix::fs::fchown(fd, Some(uid), Some(gid)) {
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::fs::fchmod(fd, Mode::from_raw_mode(stat.mode))?;
    metadata::set_mtime(fd, stat.mtime)
}

/// Removes a folder with the folders below it as far as they hold nothing else.
pub(super) fn prune(at: At<'_>) -> io::Result<()> {
    if at.stat()?.is_none_or(|stat| stat.kind != FileKind::Dir) {
        return Ok(());
    }
    let folder = at.open(OFlags::RDONLY | OFlags::DIRECTORY)?;
    for name in names(folder.as_fd())? {
        prune(At { folder: folder.as_fd(), name: &name })?;
    }
    match remove_at(at.folder, at.name, FileKind::Dir) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        answer => answer,
    }
}
