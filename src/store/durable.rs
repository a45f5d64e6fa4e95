//! What makes a file survive a power cut: its bytes, its name, and its folder's name, in that order.
//!
//! Nothing here leaves a half-written file under a final name.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use rustix::fs::CWD;

use super::{Error, Result};
use crate::sys;

/// Makes the names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    sync_file(folder)
}

/// Makes a file's bytes durable.
pub(super) fn sync_file(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

/// Makes files durable together: the disk begins with all of them, and one write of the file
/// system's journal, for which all wait at the same time, is for all.
pub(super) fn sync_all(files: &[&Path]) -> Result<()> {
    let open = |path: &&Path| File::open(path).map_err(Error::io("open", path));
    let opened = files.iter().map(open).collect::<Result<Vec<_>>>()?;
    for file in &opened {
        // Up to its end, whatever its size.
        sys::start_writing(file, 0, 0);
    }
    let opened: Vec<_> = opened.iter().map(AsFd::as_fd).collect();
    let first = files.first().copied().unwrap_or(Path::new(""));
    sys::sync_together(&opened).map_err(Error::io("sync", first))
}

/// Makes a folder with its parents; the new names are durable.
pub(super) fn make_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folder(parent)?;
    }
    match fs::create_dir(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
        done => done.map_err(Error::io("make", folder))?,
    }
    folder.parent().map_or(Ok(()), sync_folder)
}

/// What had a name that is another file's now. It is freed when this is dropped, which takes as long
/// as a sync does: best where nobody waits.
#[derive(Debug)]
#[must_use = "freeing it takes time: drop it where nobody waits"]
pub(super) struct Replaced {
    _open: Option<File>,
}

impl Replaced {
    fn at(path: &Path) -> Self {
        Replaced { _open: File::open(path).ok() }
    }
}

/// Replaces a file as git replaces a ref: `<path>.lock` is made, written, synced, renamed. The
/// folder must exist; its names are durable afterwards.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<Replaced> {
    let new = Replacement::write(path, bytes)?;
    new.file.sync_all().map_err(Error::io("sync", &new.lock))?;
    let replaced = new.put()?;
    path.parent().map_or(Ok(()), sync_folder)?;
    Ok(replaced)
}

/// What a file is to be replaced by, written beside it; without [`Replacement::put`] it goes again.
#[derive(Debug)]
pub(super) struct Replacement {
    path: PathBuf,
    lock: PathBuf,
    pub(super) file: File,
    is_put: bool,
}

impl Replacement {
    /// Writes it, to be synced by whoever puts it in place.
    pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut lock = path.as_os_str().to_owned();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        let file = OpenOptions::new().write(true).create_new(true).open(&lock);
        let file = file.map_err(Error::io("lock", &lock))?;
        let mut new = Replacement { path: path.to_owned(), lock, file, is_put: false };
        new.file.write_all(bytes).map_err(Error::io("write", &new.lock))?;
        Ok(new)
    }

    /// Puts it in place, once it is synced.
    pub(super) fn put(mut self) -> Result<Replaced> {
        let replaced = Replaced::at(&self.path);
        fs::rename(&self.lock, &self.path).map_err(Error::io("replace", &self.path))?;
        self.is_put = true;
        Ok(replaced)
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.is_put {
            // Best effort: the next start sweeps what stays.
            let _ = fs::remove_file(&self.lock);
        }
    }
}

/// As [`replace`], with a file of the same file system that holds the bytes and is synced already. The
/// names of the folder are left for the caller to make durable.
pub(super) fn replace_by(path: &Path, bytes: &[u8], synced: &Path) -> Result<Replaced> {
    let mut lock = path.as_os_str().to_owned();
    lock.push(".lock");
    match sys::rename_new(CWD, synced, CWD, Path::new(&lock)) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            return Err(Error::io("lock", Path::new(&lock))(error));
        }
        // A file system that cannot: it is written once more.
        Err(_) => return replace(path, bytes),
    }
    let replaced = Replaced::at(path);
    if let Err(error) = fs::rename(&lock, path) {
        // Best effort: the next start sweeps what stays.
        let _ = fs::remove_file(&lock);
        return Err(Error::io("replace", path)(error));
    }
    Ok(replaced)
}

/// Moves a finished file (already synced) to its final name. The folder is not synced.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(Error::io("move into place", to))
}
