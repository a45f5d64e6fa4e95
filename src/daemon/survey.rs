//! What `doctor` asks about a state directory, whether its daemon runs or not; changes nothing.

use std::{fs::File, path::Path};

use chrono::{DateTime, Utc};
use rustix::fs::{FlockOperation, flock};

use crate::{config::Settings, ledger::Decisions, store, sys};

/// What is known of a node from outside.
#[derive(Debug)]
pub struct Survey {
    /// Whether a daemon runs on this state.
    pub is_running: bool,
    /// The tokens that end, and when; or why they cannot be read.
    pub tokens: Result<Vec<(String, DateTime<Utc>)>, String>,
}

/// Looks at the state of a node.
#[must_use]
pub fn survey(settings: &Settings) -> Survey {
    let state = &settings.state_dir;
    let decisions = Decisions::load(&state.join("decisions.json"));
    let tokens = decisions.map_err(|error| error.to_string()).map(|decisions| {
        let tokens = &decisions.get().tokens;
        tokens.iter().filter_map(|token| Some((token.id.clone(), token.expires?))).collect()
    });
    Survey { is_running: is_running(state), tokens }
}

/// The bytes that are to stay free on a file system.
#[must_use]
pub fn floor(settings: &Settings, space: &sys::Space) -> u64 {
    store::floor(settings.min_free, space)
}

/// Whether somebody holds the lock; it is let go at once.
fn is_running(state: &Path) -> bool {
    let Ok(lock) = File::open(state.join("lock")) else { return false };
    flock(&lock, FlockOperation::NonBlockingLockShared).is_err()
}
