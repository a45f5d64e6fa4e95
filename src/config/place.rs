//! Where things are when nobody says: the state directory and the host's name.
//!
//! The only place where a setting comes from the environment. Besides it, `cli` asks there whether a
//! terminal is to have colours, and git is given the `PATH`.

use std::path::PathBuf;

/// `/var/lib/depsync` as root, else `$XDG_STATE_HOME/depsync`, else `~/.local/state/depsync`.
#[must_use]
pub fn default_state_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/depsync");
    }
    let absolute =
        |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("depsync")
}

/// A variable of the environment; none when it is empty or no text.
pub(super) fn variable(name: &str) -> Option<String> {
    // A name with '=' or NUL is none that could be set.
    let sound = !name.is_empty() && !name.contains(['=', '\0']);
    let value = sound.then(|| std::env::var_os(name)).flatten()?;
    value.into_string().ok().filter(|value| !value.is_empty())
}

/// The host's name, as `uname` has it.
#[must_use]
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
