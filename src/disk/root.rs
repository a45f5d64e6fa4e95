//! An opened deployment directory: what lies in it, and its identity.
//!
//! Every path is opened beneath the root without following a link, so a folder that is swapped for a
//! link leads nowhere. Names are raw bytes; what enters a feed is the caller's decision.

use std::{
    ffi::CStr,
    fs::{File, OpenOptions},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, RawDir};

use super::{
    Error, FileKind, FileSystem, Keep, Result, Stat, TEMPORARY, Upload, is_gone, metadata,
};
use crate::{
    model::{Meta, Mtime, RelPath},
    sys,
};

/// Identity of a root: inode and `statfs` id (device numbers change between mounts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RootId {
    /// The directory's inode.
    pub inode: u64,
    /// The file system's id.
    pub fsid: u64,
}

/// An opened deployment directory. It stays the same directory whatever happens to its path.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    path: PathBuf,
    /// How hard `statx` tries: only a network file system is asked for fresh answers.
    sync: AtFlags,
    /// It lies on a file system of the FAT family.
    fat: bool,
}

/// The directory of a feed, which may be replaced while it is in use: whoever asks gets the one that
/// was accepted last.
#[derive(Debug)]
pub struct CurrentRoot(RwLock<Arc<Root>>);

impl CurrentRoot {
    /// Begins with this one.
    pub fn new(root: Root) -> CurrentRoot {
        CurrentRoot(RwLock::new(Arc::new(root)))
    }

    /// The directory as of now. To be held for one piece of work, not for longer.
    pub fn get(&self) -> Arc<Root> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on it is this one.
    pub fn set(&self, root: Arc<Root>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = root;
    }
}

/// Bytes for names that one `getdents` call fills: some hundred names.
const NAMES_BUFFER: usize = 32 << 10;

/// The steps of modification times on FAT, in seconds.
const FAT_STEP: u64 = 2;

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

impl Root {
    /// Opens a directory; a link at `path` itself is followed, since the operator named it.
    ///
    /// # Errors
    /// `Open` when it is not there, not a directory, or not ours to read.
    pub fn open(path: &Path) -> Result<Root> {
        let failed = |source| Error::Open { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(failed)?;
        let fd = rustix::fs::open(&absolute, FOLDER | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        let FileSystem { network, fat, .. } = sys::file_system(&fd).map_err(failed)?;
        let sync = if network { AtFlags::empty() } else { AtFlags::STATX_DONT_SYNC };
        Ok(Root { fd, path: absolute, sync, fat })
    }

    /// One daemon for a deployment directory: a kernel lock on the directory itself, held while the
    /// root lives.
    ///
    /// # Errors
    /// `Locked` when another process holds it.
    pub fn lock(&self) -> Result<()> {
        match rustix::fs::flock(&self.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::AGAIN) => Err(Error::Locked { path: self.path.clone() }),
            Err(error) => Err(Error::io("lock", &self.path)(error.into())),
        }
    }

    /// The absolute path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a mode that was set can be read back.
    pub(super) fn keeps_modes(&self) -> bool {
        !self.fat
    }

    /// Whether names that differ only in case may be one.
    pub(super) fn folds_case(&self) -> bool {
        self.fat
    }

    /// Whether a file that was given one modification time may well show the other here: some file
    /// systems keep whole seconds only, or every other one.
    #[must_use]
    pub fn keeps_time_as(&self, given: Mtime, shown: Mtime) -> bool {
        let whole = shown.nanos == 0 && shown.secs == given.secs;
        let step = self.fat && shown.secs.abs_diff(given.secs) <= FAT_STEP;
        given == shown || whole || step
    }

    /// Identity of what was opened.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn id(&self) -> Result<RootId> {
        identity(self.fd.as_fd()).map_err(Error::io("stat", &self.path))
    }

    /// Identity of the directory that lies at the path now; none when there is none.
    ///
    /// # Errors
    /// What the file system answers, other than that there is no directory.
    pub fn id_at_path(&self) -> Result<Option<RootId>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&self.path, flags, Mode::empty()).map_err(io::Error::from) {
            Ok(fd) => identity(fd.as_fd()).map(Some).map_err(Error::io("stat", &self.path)),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(Error::io("open", &self.path)(error)),
        }
    }

    /// The kind of file system it lies on: whether events and times there are to be trusted.
    ///
    /// # Errors
    /// What the file system answers.
    pub fn file_system(&self) -> Result<FileSystem> {
        sys::file_system(&self.fd).map_err(Error::io("ask for the file system of", &self.path))
    }

    /// What lies at a path, a link itself; none when nothing does, or a folder above it is not one.
    ///
    /// # Errors
    /// What the file system answers, such as a folder that may not be searched.
    pub fn stat(&self, path: &RelPath) -> Result<Option<Stat>> {
        let answer = match path.parent() {
            None => Stat::of_fd(self.fd.as_fd()).map(Some),
            Some(parent) if parent.is_root() => Stat::at(self.fd.as_fd(), path.name(), self.sync),
            Some(parent) => self
                .open_path(&parent, OFlags::PATH | OFlags::DIRECTORY)
                .and_then(|parent| Stat::at(parent.as_fd(), path.name(), self.sync)),
        };
        match answer {
            Err(error) if is_gone(&error) => Ok(None),
            answer => answer.map_err(self.failed("stat", path)),
        }
    }

    /// Opens a regular file for reading. Never waits.
    ///
    /// # Errors
    /// `is_gone` when it is not there or not a regular file (any more).
    pub fn open_file(&self, path: &RelPath) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let open = || {
            let file = File::from(self.open_path(path, flags)?);
            if Stat::of(&file)?.kind == FileKind::File {
                return Ok(file);
            }
            Err(io::Error::new(io::ErrorKind::NotFound, "it is not a regular file"))
        };
        open().map_err(self.failed("open", path))
    }

    /// The target of a link.
    ///
    /// # Errors
    /// `is_gone` when it is not there; `EINVAL` when it is not a link.
    pub fn read_link(&self, path: &RelPath) -> Result<Vec<u8>> {
        let read = || {
            let link = self.open_path(path, OFlags::PATH)?;
            Ok(rustix::fs::readlinkat(&link, c"", Vec::new())?.into_bytes())
        };
        read().map_err(self.failed("read the link", path))
    }

    /// Names in a folder with their stats, sorted by name; raw names, ours and `.git` included.
    ///
    /// # Errors
    /// When the folder, or any entry of it, cannot be looked at: then nothing is known of it.
    pub fn list(&self, dir: &RelPath) -> Result<Vec<(Vec<u8>, Stat)>> {
        let mut entries = Vec::new();
        let mut read = || -> io::Result<()> {
            let folder = self.folder(dir)?;
            for_each_name(folder.as_fd(), |name, _| {
                // None: it vanished since its name was read.
                let stat = Stat::at(folder.as_fd(), name, self.sync)?;
                entries.extend(stat.map(|stat| (name.to_bytes().to_vec(), stat)));
                Ok(())
            })
        };
        read().map_err(self.failed("list", dir))?;
        entries.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(entries)
    }

    /// How many files a folder has, and the names of its folders; looks at none of them.
    ///
    /// # Errors
    /// As [`Root::list`].
    pub fn count(&self, dir: &RelPath) -> Result<(u64, Vec<Vec<u8>>)> {
        let (mut files, mut folders) = (0, Vec::new());
        let mut read = || -> io::Result<()> {
            for_each_name(self.folder(dir)?.as_fd(), |name, kind| {
                match kind {
                    FileType::Directory => folders.push(name.to_bytes().to_vec()),
                    _ => files += 1,
                }
                Ok(())
            })
        };
        read().map_err(self.failed("list", dir))?;
        Ok((files, folders))
    }

    /// Metadata of an entry as the feed keeps it; `stat` is the entry's.
    ///
    /// # Errors
    /// `is_gone` when extended attributes are kept and it is not there any more.
    pub fn meta(&self, path: &RelPath, stat: &Stat, keep: &Keep) -> Result<Meta> {
        let read = || {
            if !keep.xattrs {
                return metadata::read(self.fd.as_fd(), stat, *keep);
            }
            metadata::read(self.open_path(path, OFlags::PATH)?.as_fd(), stat, *keep)
        };
        read().map_err(self.failed("read the metadata of", path))
    }

    /// A hidden temporary file in `path`'s folder, which is made with its parents if need be;
    /// `Upload::persist` renames it.
    ///
    /// # Errors
    /// `is_gone` when a link or a file stands where a folder must be.
    pub fn upload(&self, path: &RelPath) -> Result<Upload> {
        Upload::start(self, path).map_err(self.failed("upload to", path))
    }

    /// Removes a file, a link, or a folder that is empty; false when nothing was there.
    ///
    /// # Errors
    /// `DirectoryNotEmpty`, or what the file system answers.
    pub fn remove(&self, path: &RelPath) -> Result<bool> {
        let remove = || {
            let Some(parent) = path.parent() else {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it is the feed's own folder",
                ));
            };
            let folder = self.folder(&parent)?;
            let Some(stat) = Stat::at(folder.as_fd(), path.name(), self.sync)? else {
                return Ok(false);
            };
            remove_at(folder.as_fd(), path.name(), stat.kind)?;
            rustix::fs::fsync(&folder)?;
            Ok(true)
        };
        match remove() {
            Err(error) if is_gone(&error) => Ok(false),
            answer => answer.map_err(self.failed("remove", path)),
        }
    }

    /// Turns the system's answer about a path into ours.
    pub(super) fn failed(
        &self,
        action: &'static str,
        path: &RelPath,
    ) -> impl FnOnce(io::Error) -> Error + use<> {
        Error::io(action, self.path.join(path.as_path()))
    }

    /// Opens anything beneath the root.
    pub(super) fn open_path(&self, path: &RelPath, flags: OFlags) -> io::Result<OwnedFd> {
        sys::open_beneath(&self.fd, path.as_path(), flags, Mode::empty())
    }

    /// Opens a folder for reading, and for changes within it.
    pub(super) fn folder(&self, path: &RelPath) -> io::Result<OwnedFd> {
        self.open_path(path, FOLDER)
    }

    /// Opens a folder, making it and its parents where they are missing.
    pub(super) fn make_folder(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let missing = match self.folder(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => error,
            answer => return answer,
        };
        let Some(parent) = path.parent() else { return Err(missing) };
        let parent = self.make_folder(&parent)?;
        match rustix::fs::mkdirat(&parent, path.name(), Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => self.folder(path),
            Err(error) => Err(error.into()),
        }
    }

    /// How `statx` is to be asked here.
    pub(super) fn sync_flags(&self) -> AtFlags {
        self.sync
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn identity(fd: BorrowedFd<'_>) -> io::Result<RootId> {
    let inode =
        rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, rustix::fs::StatxFlags::INO)?.stx_ino;
    Ok(RootId { inode, fsid: rustix::fs::fstatvfs(fd)?.f_fsid })
}

/// Whether a name is one of our temporaries, which nobody else looks at.
#[must_use]
pub fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(TEMPORARY.as_bytes())
}

/// Hands on every name of an open folder but `.` and `..`, with its type where the file system says.
pub(super) fn for_each_name(
    folder: BorrowedFd<'_>,
    mut visit: impl FnMut(&CStr, FileType) -> io::Result<()>,
) -> io::Result<()> {
    // On the heap, since trees are walked by recursion.
    let mut buffer: Vec<u8> = Vec::with_capacity(NAMES_BUFFER);
    let mut names = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = names.next() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            visit(entry.file_name(), entry.file_type())?;
        }
    }
    Ok(())
}

/// Removes one entry of an open folder; a folder only when it is empty.
pub(super) fn remove_at(folder: BorrowedFd<'_>, name: &[u8], kind: FileKind) -> io::Result<()> {
    let flags = if kind == FileKind::Dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    Ok(rustix::fs::unlinkat(folder, name, flags)?)
}

/// Takes a kernel lock on a file that is made if need be: one daemon for a state directory. None
/// when another process holds it; released when the file is closed.
///
/// # Errors
/// When the file cannot be made or opened.
pub fn lock_file(path: &Path) -> Result<Option<File>> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let file = open.map_err(Error::io("open", path))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(Error::io("lock", path)(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::{ffi::OsStrExt, fs::symlink},
    };

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_root_says_what_lies_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/file"), b"12345").unwrap();
        symlink("file", dir.path().join("sub/link")).unwrap();
        let odd = std::ffi::OsStr::from_bytes(b"\xff\n");
        std::fs::write(dir.path().join("sub").join(odd), b"").unwrap();
        rustix::fs::mkfifoat(&root, "sub/fifo", Mode::from_raw_mode(0o600)).unwrap();

        let listed = root.list(&path("sub")).unwrap();
        let kinds: Vec<_> =
            listed.iter().map(|(name, stat)| (name.as_slice(), stat.kind)).collect();
        let expected = [
            (b"fifo".as_slice(), FileKind::Special),
            (b"file", FileKind::File),
            (b"link", FileKind::Symlink),
            (b"\xff\n", FileKind::File),
        ];
        assert_eq!(kinds, expected);
        assert_eq!(root.stat(&path("sub/file")).unwrap(), Some(listed[1].1));
        assert_eq!(listed[1].1.size, 5);
        assert_eq!(root.stat(&path("sub/none")).unwrap(), None);
        assert_eq!(root.stat(&path("sub/file/below")).unwrap(), None);
        assert_eq!(root.stat(&path("sub/link/below")).unwrap(), None);
        assert_eq!(root.read_link(&path("sub/link")).unwrap(), b"file");
        let mut text = String::new();
        root.open_file(&path("sub/file")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "12345");
        for other in ["sub", "sub/link", "sub/fifo", "none", "sub/file/x"] {
            assert!(root.open_file(&path(other)).unwrap_err().is_gone(), "{other}");
        }
    }

    #[test]
    fn a_replaced_root_has_another_identity() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("root");
        std::fs::create_dir(&at).unwrap();
        let root = Root::open(&at).unwrap();
        assert_eq!(root.id_at_path().unwrap(), Some(root.id().unwrap()));
        std::fs::rename(&at, dir.path().join("away")).unwrap();
        assert_eq!(root.id_at_path().unwrap(), None);
        std::fs::create_dir(&at).unwrap();
        assert_ne!(root.id_at_path().unwrap(), Some(root.id().unwrap()));
    }

    #[test]
    fn one_daemon_for_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = Root::open(dir.path()).unwrap();
        first.lock().unwrap();
        let second = Root::open(dir.path()).unwrap();
        assert!(matches!(second.lock(), Err(Error::Locked { .. })));
        drop(first);
        second.lock().unwrap();
        let file = dir.path().join("lock");
        let held = lock_file(&file).unwrap();
        assert!(held.is_some() && lock_file(&file).unwrap().is_none());
    }

    #[test]
    fn an_upload_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let mut upload = root.upload(&path("new/folder/file")).unwrap();
        upload.file().write_all(b"bytes").unwrap();
        let names = root.list(&path("new/folder")).unwrap();
        assert!(names.len() == 1 && is_temporary(&names[0].0));
        upload.persist().unwrap();
        assert_eq!(std::fs::read(dir.path().join("new/folder/file")).unwrap(), b"bytes");

        drop(root.upload(&path("new/folder/other")).unwrap());
        assert_eq!(root.list(&path("new/folder")).unwrap().len(), 1);

        assert!(root.remove(&path("new/folder/file")).unwrap());
        assert!(!root.remove(&path("new/folder/file")).unwrap());
        assert!(root.remove(&path("new")).is_err(), "it is not empty");
    }

    #[test]
    fn an_upload_never_leaves_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        symlink(outside.path(), dir.path().join("link")).unwrap();
        assert!(root.upload(&path("link/file")).unwrap_err().is_gone());
        assert!(root.upload(&path("link/deep/file")).is_err());

        std::fs::create_dir(dir.path().join("folder")).unwrap();
        let mut upload = root.upload(&path("folder/file")).unwrap();
        upload.file().write_all(b"x").unwrap();
        std::fs::rename(dir.path().join("folder"), dir.path().join("moved")).unwrap();
        symlink(outside.path(), dir.path().join("folder")).unwrap();
        upload.persist().unwrap();
        assert!(dir.path().join("moved/file").exists());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
