//! Which hooks there are, and which of them may be run.
//!
//! A hook runs with the daemon's rights, so whoever can write the hook, or the directory that it
//! lies in, has those rights too. What anybody but root and the daemon's own user can write is
//! refused, and so is all that is not an executable file. Looked at again before each run: a `chmod`
//! needs no restart, in either direction.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{Hook, Limits};

/// A feed's hooks.
#[derive(Debug, Clone, Default)]
pub struct Hooks {
    dir: Option<PathBuf>,
    pub(super) limits: Limits,
}

/// Why a hook is not run. The text says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The configured directory cannot be used: none of the hooks can be known.
    #[error("{} is not a directory that can be read ({why}): create it, or take `hooks` out of the configuration", dir.display())]
    NoDirectory {
        /// The directory.
        dir: PathBuf,
        /// What the system says.
        why: String,
    },
    /// The hook cannot be looked at.
    #[error("{} cannot be read ({why}): mend it, or remove it", path.display())]
    Unreadable {
        /// The hook.
        path: PathBuf,
        /// What the system says.
        why: String,
    },
    /// A directory, a device or the like lies under the hook's name.
    #[error("{} is not a regular file: put a script or a program there, or remove it", .0.display())]
    NotAFile(PathBuf),
    /// Nobody may execute it.
    #[error("{path} is not executable: `chmod 755 {path}`, or remove it", path = .0.display())]
    NotExecutable(PathBuf),
    /// Its mode lets the group or everybody write it, or the directory that it lies in.
    #[error("{path} can be written by its group or by others: `chmod go-w {path}`", path = .0.display())]
    WritableByOthers(PathBuf),
    /// It belongs to a user who is neither root nor the one that the daemon runs as.
    #[error("{path} belongs to user {owner}: `chown root {path}`", path = path.display())]
    ForeignOwner {
        /// The hook, or the directory that it lies in.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
}

impl Hooks {
    /// The hooks in `dir`; without one there are none. What is there is looked at when it matters.
    #[must_use]
    pub fn open(dir: Option<&Path>) -> Self {
        // A relative path would be taken from the hook's working directory when it is started.
        let dir = dir.map(|dir| std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()));
        Self { dir, limits: Limits::default() }
    }

    /// The same hooks under other bounds.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Whether a feed has a directory for hooks at all.
    #[must_use]
    pub fn are_configured(&self) -> bool {
        self.dir.is_some()
    }

    /// Where the hook lies, if there is one and it may be run.
    ///
    /// # Errors
    /// When it is there and must not be run, or when the directory is such that this cannot be
    /// known: somebody may have taken the hook away.
    pub fn find(&self, hook: Hook) -> Result<Option<PathBuf>, Refusal> {
        let Some(dir) = &self.dir else { return Ok(None) };
        check_directory(dir)?;
        let path = dir.join(hook.name());
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Refusal::Unreadable { path, why: error.to_string() }),
            Ok(_) => {}
        }
        check_file(&path)?;
        Ok(Some(path))
    }

    /// Every hook that is there or refused, for showing: `Ok` where it would be run.
    #[must_use]
    pub fn list(&self) -> Vec<(Hook, Result<PathBuf, Refusal>)> {
        Hook::ALL
            .into_iter()
            .filter_map(|hook| self.find(hook).transpose().map(|found| (hook, found)))
            .collect()
    }
}

fn check_directory(dir: &Path) -> Result<(), Refusal> {
    let found = fs::metadata(dir)
        .map_err(|error| Refusal::NoDirectory { dir: dir.to_owned(), why: error.to_string() })?;
    if !found.is_dir() {
        return Err(Refusal::NoDirectory { dir: dir.to_owned(), why: "it is a file".to_owned() });
    }
    check_writers(dir, &found)
}

fn check_file(path: &Path) -> Result<(), Refusal> {
    let unreadable =
        |error: io::Error| Refusal::Unreadable { path: path.to_owned(), why: error.to_string() };
    // A link may lead to a hook that is shared by feeds: then its target and the directory of that
    // count as well.
    let target = fs::canonicalize(path).map_err(unreadable)?;
    let found = fs::metadata(&target).map_err(unreadable)?;
    if !found.is_file() {
        return Err(Refusal::NotAFile(path.to_owned()));
    }
    check_writers(&target, &found)?;
    if let Some(dir) = target.parent() {
        check_directory(dir)?;
    }
    if found.mode() & 0o111 == 0 {
        return Err(Refusal::NotExecutable(path.to_owned()));
    }
    Ok(())
}

/// Access lists are covered by the mode: with one, the group bits are its mask.
fn check_writers(path: &Path, found: &Metadata) -> Result<(), Refusal> {
    let owner = found.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(Refusal::ForeignOwner { path: path.to_owned(), owner });
    }
    if found.mode() & 0o022 != 0 {
        return Err(Refusal::WritableByOthers(path.to_owned()));
    }
    Ok(())
}
