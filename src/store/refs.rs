//! References: one file, one id, replaced as git does it.
//!
//! A reference that holds no id is never taken for one that is absent.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use super::{
    Error, Result,
    durable::{self, Replaced, Replacement},
    pack,
};
use crate::model::Oid;

/// The published head.
pub(super) const MAIN: &str = "refs/heads/main";
/// The commit that lies verified in the deployment directory.
pub(super) const CHECKOUT: &str = "refs/depsync/checkout";

/// The id that a reference holds; none when there is no such file.
pub(super) fn read(git: &Path, name: &str) -> Result<Option<Oid>> {
    let path = git.join(name);
    let text = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io("read", &path))?,
    };
    let id = std::str::from_utf8(&text).ok().and_then(|text| text.trim_end().parse().ok());
    let torn = || {
        let why = "it holds no commit id. At a mirror, move the feed's `git` folder aside and start \
                   again: it is fetched anew. At a primary, write the id of the newest commit into \
                   it (`git fsck --lost-found` names it)";
        Error::damaged(path.display().to_string(), why)
    };
    id.ok_or_else(torn).map(Some)
}

/// Makes a reference hold an id, durably.
pub(super) fn write(git: &Path, name: &str, id: Oid) -> Result<Replaced> {
    durable::replace(&git.join(name), text(id).as_bytes())
}

/// What a reference that holds an id consists of, in a temporary file, unsynced.
pub(super) fn in_spool(spool: &Path, id: Oid) -> Result<NamedTempFile> {
    let file = pack::write_temporary(spool, text(id).as_bytes())?;
    let writable = file.as_file().set_permissions(Permissions::from_mode(0o644));
    writable.map_err(Error::io("set the mode of", file.path()))?;
    Ok(file)
}

/// [`write`], with a file of [`in_spool`]'s that is synced by now; its name is not durable yet.
pub(super) fn put(git: &Path, name: &str, id: Oid, synced: &Path) -> Result<Replaced> {
    durable::replace_by(&git.join(name), text(id).as_bytes(), synced)
}

/// Where a reference's name lies.
pub(super) fn folder(git: &Path, name: &str) -> PathBuf {
    git.join(name).parent().expect("a reference lies in a folder").to_owned()
}

fn text(id: Oid) -> String {
    format!("{id}\n")
}

/// A reference's new value, written beside it and not in force.
#[derive(Debug)]
pub struct Mark(Replacement);

impl Mark {
    /// The file, to be synced together with others before [`super::Store::set_prepared`].
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0.file
    }

    pub(super) fn set(self) -> Result<Replaced> {
        self.0.put()
    }
}

/// Prepares a reference's new value.
pub(super) fn prepare(git: &Path, name: &str, id: Oid) -> Result<Mark> {
    Replacement::write(&git.join(name), text(id).as_bytes()).map(Mark)
}

/// Removes a reference, durably; none there is fine.
pub(super) fn remove(git: &Path, name: &str) -> Result<()> {
    let path = git.join(name);
    match fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed.map_err(Error::io("remove", &path))?;
            durable::sync_folder(path.parent().expect("a reference lies in a folder"))
        }
    }
}
