//! What a hook was last done with, kept across restarts: one small JSON file for each hook.
//!
//! So a commit has its hook's run once, whatever stops and starts lie between, and a refusal stands.
//! Replaced by rename after fsync. One that is missing or cannot be read only means that the hook
//! runs once more, which a hook has to bear anyway.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Hook;
use crate::model::Oid;

/// What a hook said at last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// About which commit.
    pub commit: Oid,
    /// Whether the work goes on.
    pub passed: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// Where the last verdict of one hook of a feed is kept.
#[derive(Debug, Clone)]
pub struct Mark {
    path: PathBuf,
}

impl Mark {
    /// In `<state>/feeds/<feed>`.
    #[must_use]
    pub fn new(state: &Path, hook: Hook) -> Self {
        Mark { path: state.join("hooks").join(hook.name()) }
    }

    /// The last verdict.
    #[must_use]
    pub fn read(&self) -> Option<Verdict> {
        serde_json::from_slice(&fs::read(&self.path).ok()?).ok()
    }

    /// Keeps a verdict, durably.
    ///
    /// # Errors
    /// When it cannot be written; the one before it is then still there.
    pub fn write(&self, verdict: &Verdict) -> io::Result<()> {
        let folder = self.path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let mut file = tempfile::Builder::new().prefix(".mark-").tempfile_in(folder)?;
        file.write_all(&serde_json::to_vec(verdict)?)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_outlives_a_restart_and_damage_only_forgets_it() {
        let state = tempfile::tempdir().unwrap();
        let mark = Mark::new(state.path(), Hook::PreCheckout);
        assert_eq!(mark.read(), None);
        let commit = Oid::from_bytes([7; 20]);
        let verdict = Verdict { commit, passed: false, reason: "no licence".to_owned() };
        mark.write(&verdict).unwrap();
        assert_eq!(Mark::new(state.path(), Hook::PreCheckout).read(), Some(verdict));
        assert_eq!(Mark::new(state.path(), Hook::PostCheckout).read(), None);
        fs::write(&mark.path, "{").unwrap();
        assert_eq!(mark.read(), None);
    }
}
