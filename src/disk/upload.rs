//! A file on its way into a deployment directory, hidden until it is whole.
//!
//! It lies in its final folder under a temporary name, reached through the opened folder itself, so
//! no link swapped in meanwhile can lead it elsewhere. Dropping it leaves nothing.

use std::{
    ffi::OsStr,
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{ffi::OsStrExt, fs::PermissionsExt},
    },
    path::PathBuf,
};

use tempfile::NamedTempFile;

use super::{Error, FileKind, Result, Root, Stat, TEMPORARY, metadata::proc_path};
use crate::model::RelPath;

/// A file being uploaded under a hidden name.
#[derive(Debug)]
pub struct Upload {
    // Dropped before the folder: its path goes through the folder's descriptor.
    temporary: NamedTempFile,
    folder: OwnedFd,
    name: Vec<u8>,
    path: PathBuf,
}

impl Upload {
    pub(super) fn start(root: &Root, path: &RelPath) -> io::Result<Upload> {
        let Some(parent) = path.parent() else { return Err(io::ErrorKind::IsADirectory.into()) };
        let folder = root.make_folder(&parent)?;
        // A new version of a file keeps its mode, as a plain copy over it would.
        let mode = match Stat::at(folder.as_fd(), path.name(), root.sync_flags())? {
            Some(Stat { kind: FileKind::Dir, .. }) => {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            Some(Stat { kind: FileKind::File, mode, .. }) => mode & 0o777,
            _ => 0o666,
        };
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .permissions(Permissions::from_mode(mode | 0o600))
            .tempfile_in(proc_path(folder.as_fd()))?;
        if mode != 0o666 {
            // Past the umask, which the version before has been through.
            temporary.as_file().set_permissions(Permissions::from_mode(mode))?;
        }
        let name = path.name().to_vec();
        Ok(Upload { temporary, folder, name, path: root.path().join(path.as_path()) })
    }

    /// Where the bytes go.
    pub fn file(&mut self) -> &mut File {
        self.temporary.as_file_mut()
    }

    /// Makes the bytes durable, then gives the file its name; what was there before is replaced in
    /// one step.
    ///
    /// # Errors
    /// When a folder has taken the name meanwhile, or the file system refuses; then nothing stays.
    pub fn persist(self) -> Result<()> {
        let Upload { temporary, folder, name, path } = self;
        let place = || {
            temporary.as_file().sync_all()?;
            let target = PathBuf::from(proc_path(folder.as_fd())).join(OsStr::from_bytes(&name));
            temporary.persist(target).map_err(|refused| refused.error)?;
            Ok(rustix::fs::fsync(&folder)?)
        };
        place().map_err(Error::io("write", path))
    }
}
