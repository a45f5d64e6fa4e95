//! What lies at a path besides its bytes: read from the file system, and set on a new entry.
//!
//! Set in the order owner, mode, attributes, time, since each may undo the later ones. An owner or
//! attribute that cannot be set is a note, never a failure. Times of folders are never set.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, Statx, StatxFlags, StatxTimestamp, Timespec, Timestamps,
        XattrFlags,
    },
    io::Errno,
    process::{Gid, Uid},
};

use super::tree::At;
use crate::{
    model::{Entry, Extra, Keep, Kind, Meta, Mtime},
    sys,
};

/// What kind of thing lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A folder.
    Dir,
    /// FIFO, socket or device: never opened.
    Special,
}

/// What `statx` says of an entry, as far as the stat cache and the tree care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What kind of thing it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// When its content was last changed, as far as anybody can be believed.
    pub mtime: Mtime,
    /// When anything about it was last changed, by the kernel's clock.
    pub ctime: Mtime,
    /// Its number on its file system.
    pub inode: u64,
    /// Permission bits, `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub links: u64,
}

/// Only what `Stat` holds, so that a network file system need not ask for more.
const WANTED: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::MODE)
    .union(StatxFlags::NLINK)
    .union(StatxFlags::UID)
    .union(StatxFlags::GID)
    .union(StatxFlags::MTIME)
    .union(StatxFlags::CTIME)
    .union(StatxFlags::INO)
    .union(StatxFlags::SIZE);

/// The longest list of attribute names, and the longest value, as Linux has it.
const MAX_XATTRS: usize = 64 << 10;

impl Stat {
    /// Of an open file.
    ///
    /// # Errors
    /// What `statx` answers.
    pub fn of(file: &File) -> io::Result<Stat> {
        Stat::of_fd(file.as_fd())
    }

    pub(super) fn of_fd(fd: BorrowedFd<'_>) -> io::Result<Stat> {
        Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)?.into())
    }

    /// Of an entry of an open folder, a link itself; none when it is not there.
    pub(super) fn at(
        dir: BorrowedFd<'_>,
        name: impl rustix::path::Arg,
        flags: AtFlags,
    ) -> io::Result<Option<Stat>> {
        match rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | flags, WANTED) {
            Ok(stat) => Ok(Some(stat.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<Statx> for Stat {
    fn from(stat: Statx) -> Self {
        let mode = u32::from(stat.stx_mode);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::RegularFile => FileKind::File,
            FileType::Symlink => FileKind::Symlink,
            FileType::Directory => FileKind::Dir,
            _ => FileKind::Special,
        };
        Stat {
            kind,
            size: stat.stx_size,
            mtime: mtime(stat.stx_mtime),
            ctime: mtime(stat.stx_ctime),
            inode: stat.stx_ino,
            mode: mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            links: u64::from(stat.stx_nlink),
        }
    }
}

fn mtime(time: StatxTimestamp) -> Mtime {
    Mtime { secs: time.tv_sec, nanos: time.tv_nsec }
}

/// Reads the metadata that the feed keeps of an entry; `fd` may be opened with `O_PATH`.
pub(super) fn read(fd: BorrowedFd<'_>, stat: &Stat, keep: Keep) -> io::Result<Meta> {
    let link = stat.kind == FileKind::Symlink;
    let extra = Extra {
        user: keep.owner.then(|| sys::user_name(stat.uid)),
        group: keep.owner.then(|| sys::group_name(stat.gid)),
        xattrs: if keep.xattrs && !link { xattrs(fd)? } else { BTreeMap::new() },
    };
    Ok(Meta {
        mode: (keep.mode && !link).then_some(stat.mode),
        mtime: (keep.mtime && stat.kind == FileKind::File).then_some(stat.mtime),
        extra: extra.boxed(),
    })
}

/// Attributes that mean the same on another machine: the user's own, and a program's capabilities.
fn is_kept(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"security.capability"
}

fn xattrs(fd: BorrowedFd<'_>) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    // Through /proc, since the fd may be an O_PATH one, which the f* calls refuse.
    let path = proc_path(fd);
    let mut names = vec![0; MAX_XATTRS];
    let length = match rustix::fs::listxattr(&*path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    let mut value = vec![0; if length == 0 { 0 } else { MAX_XATTRS }];
    for name in names[..length].split(|&byte| byte == 0).filter(|name| is_kept(name)) {
        match rustix::fs::getxattr(&*path, name, &mut value[..]) {
            Ok(length) => drop(found.insert(name.to_vec(), value[..length].to_vec())),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}

/// The path by which this process reaches what `fd` has open, whatever it is called now.
pub(super) fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The mode to make an entry with; `apply` has the last word.
pub(super) fn first_mode(entry: &Entry, keep: Keep) -> Mode {
    let kept = entry.meta.mode.filter(|_| keep.mode);
    Mode::from_raw_mode(match (entry.kind, kept) {
        (Kind::Dir, Some(mode)) => mode & 0o777 | 0o700,
        // Nobody else reads it before it has its owner.
        (_, Some(_)) if keep.owner => 0o600,
        (_, Some(mode)) => mode & 0o777,
        // Nothing recorded: what the process's umask makes of it, as git does.
        (Kind::File { executable: false, .. }, None) => 0o666,
        (_, None) => 0o777,
    })
}

/// Sets what the feed keeps on an open file or folder. Answers what could not be set.
pub(super) fn apply(fd: BorrowedFd<'_>, entry: &Entry, keep: Keep) -> io::Result<Option<String>> {
    let meta = &entry.meta;
    let mut notes = Vec::new();
    if keep.owner {
        notes.append(&mut set_owner(fd, meta));
    }
    set_mode(fd, entry, keep)?;
    if keep.xattrs {
        notes.extend(
            set_xattrs(fd, meta).err().map(|error| format!("an attribute is missing: {error}")),
        );
    }
    if let Some(mtime) = meta.mtime.filter(|_| keep.mtime && !entry.kind.is_dir()) {
        set_mtime(fd, mtime)?;
    }
    Ok(one_note(&notes))
}

/// [`apply`] for a file that was made just now: it has no attributes that would have to go.
pub(super) fn apply_to_new(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    keep: Keep,
) -> io::Result<Option<String>> {
    apply(fd, entry, Keep { xattrs: keep.xattrs && !entry.meta.extra().xattrs.is_empty(), ..keep })
}

/// Answers what could not be set.
fn set_owner(fd: BorrowedFd<'_>, meta: &Meta) -> Vec<String> {
    let (user, group, unknown) = owner(meta);
    let mut notes: Vec<String> = unknown.into_iter().collect();
    if user.is_some() || group.is_some() {
        let set = rustix::fs::fchown(fd, user, group);
        notes.extend(set.err().map(|error| format!("the owner stays: {error}")));
    }
    notes
}

/// Sets the owner of a link. Answers what could not be set.
pub(super) fn apply_to_link(at: At<'_>, entry: &Entry, keep: Keep) -> Option<String> {
    if !keep.owner {
        return None;
    }
    let (user, group, unknown) = owner(&entry.meta);
    let set = rustix::fs::chownat(at.folder, at.name, user, group, AtFlags::SYMLINK_NOFOLLOW);
    let refused = set.err().map(|error| format!("the owner stays: {error}"));
    one_note(&[unknown, refused].into_iter().flatten().collect::<Vec<_>>())
}

fn one_note(notes: &[String]) -> Option<String> {
    (!notes.is_empty()).then(|| notes.join("; "))
}

fn owner(meta: &Meta) -> (Option<Uid>, Option<Gid>, Option<String>) {
    let user = meta.extra().user.as_deref().map(|name| (name, sys::user_id(name)));
    let group = meta.extra().group.as_deref().map(|name| (name, sys::group_id(name)));
    let unknown = match (user, group) {
        (Some((name, None)), _) => Some(format!("the user \"{name}\" is not known on this host")),
        (_, Some((name, None))) => Some(format!("the group \"{name}\" is not known on this host")),
        _ => None,
    };
    let uid = user.and_then(|(_, id)| id).filter(|id| *id != u32::MAX).map(Uid::from_raw);
    let gid = group.and_then(|(_, id)| id).filter(|id| *id != u32::MAX).map(Gid::from_raw);
    (uid, gid, unknown)
}

fn set_mode(fd: BorrowedFd<'_>, entry: &Entry, keep: Keep) -> io::Result<()> {
    let now = Stat::of_fd(fd)?.mode;
    let mode = match (entry.meta.mode.filter(|_| keep.mode), entry.kind) {
        (Some(mode), _) => mode & 0o7777,
        (None, Kind::File { executable: true, .. }) => now | (now & 0o444) >> 2,
        (None, Kind::File { executable: false, .. }) => now & !0o111,
        (None, _) => now,
    };
    if mode == now {
        // Most are made with it; asking costs a tenth of setting.
        return Ok(());
    }
    Ok(rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))?)
}

fn set_xattrs(fd: BorrowedFd<'_>, meta: &Meta) -> io::Result<()> {
    let kept = &meta.extra().xattrs;
    for name in xattrs(fd)?.keys().filter(|name| !kept.contains_key(*name)) {
        rustix::fs::fremovexattr(fd, name.as_slice())?;
    }
    for (name, value) in kept.iter().filter(|(name, _)| is_kept(name)) {
        rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty())?;
    }
    Ok(())
}

pub(super) fn set_mtime(fd: BorrowedFd<'_>, mtime: Mtime) -> io::Result<()> {
    let unchanged = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT };
    let modified = Timespec { tv_sec: mtime.secs, tv_nsec: i64::from(mtime.nanos) };
    let times = Timestamps { last_access: unchanged, last_modification: modified };
    Ok(rustix::fs::futimens(fd, &times)?)
}
