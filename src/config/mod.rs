//! What the operator asked for: `depsync.toml`, or the flags of `primary` and `region`.
//!
//! Both lead through the same raw shapes (`file`) and the same conversion (`convert`) to
//! [`Settings`], so a flag and a key cannot come to mean different things. All faults are found
//! before any is reported, each with where it is and what to do; `check` then looks at the disk.
//! Nothing here changes anything, and nothing here is read again while the daemon runs.

mod check;
mod convert;
mod duration;
mod fault;
mod file;
mod place;
pub mod region_xml;
mod settings;

use std::path::{Path, PathBuf};

pub use duration::parse as duration;
pub use fault::Error;
pub use place::{default_state_dir, host_name};
pub use settings::{BaseUrl, Checkout, FeedSettings, Guard, Mirror, Primary, Role, Settings};

use fault::{Fault, Source};

/// Where `run` and `check` look unless told otherwise.
pub const DEFAULT_FILE: &str = "/etc/depsync/depsync.toml";

/// The port that a daemon listens on unless told otherwise, on 127.0.0.1.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7873";

/// What only the command line says, whichever way the rest came.
#[derive(Debug, Clone, Copy, Default)]
pub struct Consent {
    /// Serve beyond loopback without asking for tokens.
    pub insecure: bool,
    /// Move files aside that lie in a region's folder and differ from the feed's.
    pub adopt: bool,
}

/// What `primary` and `region` take: one feed, as flags. Absent: the default.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    /// The deployment directory.
    pub dir: PathBuf,
    /// The feed's name.
    pub feed: Option<String>,
    /// The node's label.
    pub node: Option<String>,
    /// Address and port to listen on.
    pub listen: Option<String>,
    /// The URL under which others reach this node.
    pub advertise: Option<String>,
    /// The state directory.
    pub state: Option<PathBuf>,
    /// The region table, at a primary.
    pub regions: Option<PathBuf>,
    /// What the server in the directory itself writes, at a primary.
    pub profile: Option<String>,
    /// The upstream's URL, at a region.
    pub upstream: Option<String>,
    /// The file with the token for the upstream, at a region.
    pub token_file: Option<PathBuf>,
    /// The region's name, at a region.
    pub name: Option<String>,
}

/// Reads `depsync.toml`, validates it and looks at the directories that it names.
///
/// # Errors
/// All faults together, each with its line.
pub fn from_file(path: &Path, consent: Consent) -> Result<Settings, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let fault = Fault::new("", format!("cannot be read: {error}; name another with --config"));
        Error::new(&Source::File { path, text: "" }, &[fault])
    })?;
    let source = Source::File { path, text: &text };
    let mut read = file::read(&text).map_err(|faults| Error::new(&source, &faults))?;
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let file = read.file.relative_to(base.parent().unwrap_or(Path::new("/")));
    match convert::settings(file, &read.unread, consent) {
        Ok(settings) if read.faults.is_empty() => check::checked(settings, &source),
        Ok(_) => Err(Error::new(&source, &read.faults)),
        Err(more) => {
            read.faults.extend(more);
            Err(Error::new(&source, &read.faults))
        }
    }
}

/// Validates the flags of `primary` or `region` and looks at the directories that they name.
///
/// # Errors
/// All faults together, each with its flag.
pub fn from_flags(flags: Flags, consent: Consent) -> Result<Settings, Error> {
    let here = std::env::current_dir().unwrap_or_default();
    let file = file::File::from(flags).relative_to(&here);
    let source = Source::CommandLine;
    let settings =
        convert::settings(file, &[], consent).map_err(|faults| Error::new(&source, &faults))?;
    check::checked(settings, &source)
}

#[cfg(test)]
mod tests;
