//! Why a step of a mirror failed, and what to make of it.

use std::{fmt, io};

use crate::{
    bus::{
        frame::{BadFrame, Fault},
        nats,
    },
    disk,
    model::{Class, Head, RelPath},
    replica::{event::Failure, lane::Broken},
    store,
};

/// Paths that a message names; the rest is counted.
const NAMED: usize = 20;

/// Why a step of a mirror failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The upstream and we cannot talk.
    #[error("{0}")]
    Fault(Fault),
    /// The connection to the upstream could not be made, or broke.
    #[error("{0}")]
    Link(String),
    /// The server by which the upstream is heard is away.
    #[error("{0}; until it is back the upstream is asked for its head now and then")]
    Nats(#[from] nats::Error),
    /// Nothing was heard of the upstream.
    #[error("nothing was heard of {url} for 20 s")]
    Silent {
        /// Its address.
        url: String,
    },
    /// A frame of the upstream's cannot be read.
    #[error("the upstream has sent something that cannot be read: {0}")]
    Frame(#[from] BadFrame),
    /// A transfer brought nothing.
    #[error("a transfer from {url} brought nothing for 60 s")]
    Stalled {
        /// The upstream.
        url: String,
    },
    /// A request or a transfer broke.
    #[error("a request to {url} failed: {}", causes(.source.as_ref()))]
    Lost {
        /// The upstream.
        url: String,
        /// What the HTTP client says.
        source: Box<reqwest::Error>,
    },
    /// The token that lets us in cannot be used.
    #[error("the token in {} cannot be used: {why}", path.display())]
    Token {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        why: String,
    },
    /// What came whole is not what it should be.
    #[error("what {url} has sent is damaged: {why}; it is fetched again")]
    Damaged {
        /// The upstream.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The upstream answers a request with an error.
    #[error("{url} answers {status} {code}: {message}")]
    Answer {
        /// What was asked for.
        url: String,
        /// HTTP's status.
        status: u16,
        /// The error's code.
        code: String,
        /// The error's text.
        message: String,
    },
    /// The upstream's head does not descend from ours.
    #[error("{} of epoch {} at the upstream does not descend from what this mirror has", .0.seq, .0.epoch)]
    Split(Head),
    /// Something between here and the spool.
    #[error("cannot write {}: {source}", path.display())]
    Spool {
        /// The file.
        path: std::path::PathBuf,
        /// What the system answers.
        source: io::Error,
    },
    /// The feed's repository.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The deployment directory.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The deployment directory is not the one that was opened.
    #[error("{0} is gone or has been replaced by another directory; put it back, or start again")]
    Replaced(String),
    /// Single paths could not be put in place.
    #[error("{}", faults(.0))]
    Paths(Vec<(RelPath, String)>),
    /// A hook refuses the head.
    #[error("{0}")]
    Vetoed(String),
    /// A hook is to be asked again.
    #[error("{reason}")]
    Later {
        /// When.
        until: std::time::Instant,
        /// What it said.
        reason: String,
    },
    /// A hook cannot be asked.
    #[error("{0}")]
    Hook(String),
    /// The directory holds files that are not the feed's.
    #[error("{0}")]
    FirstContact(Foreign),
    /// A worker thread has panicked.
    #[error("{0}")]
    Worker(String),
    /// The mirror is being stopped.
    #[error("the mirror is being stopped")]
    Stopped,
}

/// Files that a region's directory held before its first checkout, which the feed has not, or has
/// with other content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Foreign {
    /// The directory.
    pub directory: String,
    /// The first of them.
    pub paths: Vec<RelPath>,
    /// How many there are.
    pub count: usize,
}

impl Error {
    /// What a failed fetch makes of it.
    pub fn class(&self) -> Failure {
        match self {
            Error::Answer { status: 404 | 410, .. } => Failure::Gone,
            Error::Store(error) => match error.class() {
                Class::Transient => Failure::Again,
                Class::Corrupt => Failure::Afresh,
                Class::Fatal => Failure::Fatal,
            },
            Error::Fault(_) | Error::FirstContact(_) | Error::Worker(_) => Failure::Fatal,
            _ => Failure::Again,
        }
    }

    /// Whether a transfer was broken off on its way, and can go on.
    pub(super) fn is_of_the_link(&self) -> bool {
        matches!(self, Error::Lost { .. } | Error::Stalled { .. } | Error::Link(_))
    }

    /// The state that a fault of the link is shown as, where it has a name.
    pub(super) fn name(&self) -> Option<&'static str> {
        let Error::Fault(fault) = self else { return None };
        Some(match fault {
            Fault::WrongToken => "wrong-token",
            Fault::NotDepsync { .. } => "not-depsync",
            Fault::NoSuchFeed { .. } => "no-such-feed",
            Fault::Protocol { .. } | Fault::Unknown => "other-protocol",
            Fault::Full => return None,
        })
    }

    /// Whether the mirror cannot go on at all.
    pub(super) fn ends_the_stage(&self) -> bool {
        matches!(self, Error::FirstContact(_) | Error::Worker(_))
    }

    /// The exit code of a process that this error ends.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::FirstContact(_) => 78,
            _ => 1,
        }
    }
}

impl From<nats::attend::Lost> for Error {
    fn from(lost: nats::attend::Lost) -> Self {
        match lost {
            nats::attend::Lost::Nats(error) => Error::Nats(error),
            nats::attend::Lost::Frame(error) => Error::Frame(error),
        }
    }
}

impl From<Broken> for Error {
    fn from(broken: Broken) -> Self {
        Error::Worker(broken.to_string())
    }
}

impl Foreign {
    /// None yet.
    pub(super) fn new(directory: String) -> Self {
        Foreign { directory, paths: Vec::new(), count: 0 }
    }

    /// Counts one more, and names it while there is room.
    pub(super) fn add(&mut self, path: RelPath) {
        self.count += 1;
        if self.paths.len() < NAMED {
            self.paths.push(path);
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (directory, count) = (&self.directory, self.count);
        writeln!(
            f,
            "{directory} holds {count} files that are not as the feed has them; move them away, name another \
             directory, or start with --adopt, which moves them aside:"
        )?;
        write_paths(f, self.paths.iter().map(RelPath::to_text), count)
    }
}

fn write_paths(
    f: &mut impl fmt::Write,
    paths: impl Iterator<Item = impl fmt::Display>,
    count: usize,
) -> fmt::Result {
    let mut named = 0;
    for path in paths.take(NAMED) {
        writeln!(f, "  {path}")?;
        named += 1;
    }
    match count - named {
        0 => Ok(()),
        more => writeln!(f, "  and {more} more"),
    }
}

fn faults(faults: &[(RelPath, String)]) -> String {
    let mut text = format!("{} paths could not be put in place:\n", faults.len());
    let lines = faults.iter().map(|(path, why)| format!("{path}: {why}"));
    write_paths(&mut text, lines, faults.len()).expect("a String takes everything");
    text.trim_end().to_owned()
}

/// An error with what caused it: HTTP clients hide the cause in the source.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_cut_and_counted() {
        let mut foreign = Foreign::new("/srv/app".to_owned());
        for n in 0..25 {
            foreign.add(RelPath::parse(format!("f{n}").as_bytes()).unwrap());
        }
        let error = Error::FirstContact(foreign);
        let text = error.to_string();
        assert_eq!(text.lines().count(), 1 + NAMED + 1, "{text}");
        assert!(
            text.starts_with("/srv/app holds 25 files") && text.ends_with("  and 5 more\n"),
            "{text}"
        );
        assert_eq!(error.exit_code(), 78);
    }

    #[test]
    fn faults_name_their_paths() {
        let path = RelPath::parse(b"a/b").unwrap();
        let text = Error::Paths(vec![(path, "no space".to_owned())]).to_string();
        assert_eq!(text, "1 paths could not be put in place:\n  a/b: no space");
    }
}
