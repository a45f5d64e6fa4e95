//! What the operator asked for: `depsync.toml`, or the flags of `primary` and `region`.
//!
//! Both lead through the same raw shapes (`file`) and the same conversion (`convert`) to
//! [`Settings`], so a flag and a key cannot come to mean different things. All faults are found
//! before any is reported, each with where it is and what to do; `check` then looks at the disk.
//! Nothing here changes anything; what may be read again while the daemon runs is [`Live`].

mod bandwidth;
mod carbon_xml;
mod check;
mod convert;
mod draft;
mod duration;
mod fault;
mod feed;
mod file;
pub mod import;
mod nodes_list;
mod place;
pub mod region_xml;
mod rs_xml;
mod settings;

use std::path::{Path, PathBuf};

pub use duration::parse as duration;
pub use fault::Error;
pub use place::{default_state_dir, host_name};
pub use settings::{
    BaseUrl, Checkout, FeedSettings, Guard, Live, Mirror, NatsUrl, Primary, Role, Settings, Tls,
};

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
    /// The upstreams' URLs, at a region.
    pub upstreams: Vec<String>,
    /// The feed's name there, at a region.
    pub upstream_feed: Option<String>,
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
    let text = read_text(path)?;
    let source = Source::File { path, text: &text };
    check::checked(read_file(path, &text, consent)?, &source)
}

/// Reads again what can change while the daemon runs, as it was read for `settings`.
///
/// # Errors
/// All faults together; those in what cannot change, too.
pub fn live(settings: &Settings) -> Result<Live, Error> {
    let Some(path) = &settings.file else {
        let regions = check::region_table(settings);
        let regions = regions.map_err(|fault| Error::new(&Source::CommandLine, &[fault]))?;
        return Ok(Live { regions, bandwidth: settings.bandwidth.clone() });
    };
    let text = read_text(path)?;
    let consent = Consent { insecure: settings.insecure, ..Consent::default() };
    let read = read_file(path, &text, consent)?;
    let source = Source::File { path, text: &text };
    let regions = check::region_table(&read).map_err(|fault| Error::new(&source, &[fault]))?;
    Ok(Live { regions, bandwidth: read.bandwidth })
}

fn read_text(path: &Path) -> Result<String, Error> {
    std::fs::read_to_string(path).map_err(|error| {
        let fault = Fault::new("", format!("cannot be read: {error}; name another with --config"));
        Error::new(&Source::File { path, text: "" }, &[fault])
    })
}

/// What a text says, completed by the `rs.xml` that it names.
fn read_file(path: &Path, text: &str, consent: Consent) -> Result<Settings, Error> {
    let source = Source::File { path, text };
    let failed = |faults: &[Fault]| Error::new(&source, faults);
    let mut read = file::read(text).map_err(|faults| failed(&faults))?;
    let base = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut file = read.file.relative_to(base.parent().unwrap_or(Path::new("/")));
    let mut unused = Vec::new();
    if let Some(rs) = &file.rs {
        match rs_xml::read(rs.get_ref()) {
            Ok(mut rs) => {
                unused = std::mem::take(&mut rs.unused);
                file = file.completed_by(rs, consent.insecure);
            }
            Err(error) => read.faults.push(Fault::new("rs", error).at(rs.span())),
        }
    }
    match convert::settings(file, &read.unread, consent) {
        Ok(settings) if read.faults.is_empty() => {
            Ok(Settings { file: Some(path.to_owned()), unused, ..settings })
        }
        Ok(_) => Err(failed(&read.faults)),
        Err(more) => {
            read.faults.extend(more);
            Err(failed(&read.faults))
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

/// Whether `text` is a service profile that can be read; `file` is for messages.
///
/// # Errors
/// When it is not well-formed, or a variable that we know has no sensible value.
pub fn read_rs_xml(text: &str, file: &std::path::Path) -> Result<(), region_xml::Error> {
    rs_xml::parse(text, file).map(|_| ())
}

#[cfg(test)]
mod tests;
