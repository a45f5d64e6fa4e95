//! Removes what a killed run left hidden in a deployment directory.
//!
//! To be called at start, under the directory's lock, before anything is placed or uploaded. A
//! folder that was swapped out and may still hold somebody's files goes aside instead.

use std::{io, os::fd::AsFd};

use rustix::fs::FileType;

use super::{
    Aside, FileKind, Result, Root, Stat,
    folders::is_wrapper,
    is_temporary,
    root::for_each_name,
    tree::{self, At},
};
use crate::model::RelPath;

/// What was found hidden.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many temporaries were removed.
    pub removed: u64,
    /// Folders that hold files and lie aside now.
    pub set_aside: Vec<RelPath>,
}

impl Root {
    /// Removes every temporary of ours below the root; reads names only, no stats.
    ///
    /// # Errors
    /// When something cannot be removed. A folder that cannot be read is left alone.
    pub fn sweep(&self, aside: &mut Aside) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut pending = vec![RelPath::root()];
        while let Some(folder) = pending.pop() {
            let (folders, ours) = self.look(&folder).unwrap_or_default();
            pending.extend(folders);
            for path in ours {
                let done = self.sweep_one(&path, aside);
                if done.map_err(self.failed("remove the temporary", &path))? {
                    swept.removed += 1;
                } else {
                    swept.set_aside.push(path);
                }
            }
        }
        Ok(swept)
    }

    /// The folders within a folder, and the temporaries.
    fn look(&self, folder: &RelPath) -> io::Result<(Vec<RelPath>, Vec<RelPath>)> {
        let (mut folders, mut ours) = (Vec::new(), Vec::new());
        let fd = self.folder(folder)?;
        for_each_name(fd.as_fd(), |name, kind| {
            let Ok(path) = folder.join(name.to_bytes()) else { return Ok(()) };
            if is_temporary(path.name()) {
                ours.push(path);
            } else if kind == FileType::Directory || is_folder(kind, fd.as_fd(), path.name())? {
                folders.push(path);
            }
            Ok(())
        })?;
        Ok((folders, ours))
    }

    fn sweep_one(&self, path: &RelPath, aside: &mut Aside) -> io::Result<bool> {
        let folder = self.folder(&path.parent().unwrap_or_default())?;
        let at = At { folder: folder.as_fd(), name: path.name() };
        let is_folder = at.stat()?.is_some_and(|stat| stat.kind == FileKind::Dir);
        if is_folder && !is_wrapper(path.name()) {
            tree::prune(at)?;
            if at.stat()?.is_some() {
                aside.put(self, path, "an interrupted placing had swapped this folder out")?;
                return Ok(false);
            }
        }
        tree::remove(at)?;
        Ok(true)
    }
}

/// Some file systems do not tell the type with the name.
fn is_folder(kind: FileType, folder: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    if kind != FileType::Unknown {
        return Ok(false);
    }
    let stat = Stat::at(folder, name, rustix::fs::AtFlags::empty())?;
    Ok(stat.is_some_and(|stat| stat.kind == FileKind::Dir))
}
