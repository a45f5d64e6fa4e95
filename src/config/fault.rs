//! Faults of a configuration: collected as data, told together, one line each.
//!
//! A fault knows its key and where in the text it stands; only here are these put into words, as
//! `file:line: key: message` or `--flag: message`.

use std::{fmt, ops::Range, path::Path};

use toml::Spanned;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// The key, as depsync.toml has it; empty for the file as a whole.
    pub(super) key: String,
    /// Where in the text, in bytes; none for what is missing.
    pub(super) at: Option<Range<usize>>,
    /// What is wrong, and what to do.
    pub(super) message: String,
    /// Whether the fault is that the key is not there.
    pub(super) missing: bool,
}

impl Fault {
    pub(super) fn new(key: &str, message: impl fmt::Display) -> Self {
        Self { key: key.to_owned(), at: None, message: message.to_string(), missing: false }
    }

    pub(super) fn missing(key: &str, message: impl fmt::Display) -> Self {
        Self { missing: true, ..Self::new(key, message) }
    }

    pub(super) fn at(self, at: Range<usize>) -> Self {
        Self { at: Some(at), ..self }
    }

    /// At a value, where there is one.
    pub(super) fn near<T>(self, value: Option<&Spanned<T>>) -> Self {
        Self { at: value.map(Spanned::span), ..self }
    }
}

/// What the settings were read from.
pub(super) enum Source<'a> {
    File { path: &'a Path, text: &'a str },
    CommandLine,
}

impl Source<'_> {
    fn line(&self, fault: &Fault) -> String {
        let place = match self {
            Source::CommandLine => flag(&fault.key).to_owned(),
            Source::File { path, text } => {
                let mut place = path.display().to_string();
                if let Some(at) = &fault.at {
                    let before = text.as_bytes().iter().take(at.start);
                    let line = 1 + before.filter(|&&byte| byte == b'\n').count();
                    place = format!("{place}:{line}");
                }
                if fault.key.is_empty() { place } else { format!("{place}: {}", fault.key) }
            }
        };
        let message = fault.message.replace('\n', " ");
        if place.is_empty() { message } else { format!("{place}: {message}") }
    }
}

/// The flag that stands for a key.
fn flag(key: &str) -> &str {
    match key {
        "dir" => "DIR",
        "node" => "--node",
        "listen" => "--listen",
        "advertise" => "--advertise",
        "state_dir" => "--state",
        "regions" => "--regions",
        "profile" => "--profile",
        "upstream" => "--upstream",
        "region.name" => "--name",
        "name" => "--feed",
        other => other,
    }
}

/// A configuration that cannot be used; each line of its text is one fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines.join("\n"))]
pub struct Error {
    lines: Vec<String>,
}

impl Error {
    /// The exit code of a daemon that was given such a configuration.
    pub const EXIT_CODE: u8 = 78;

    /// Lines that stand for themselves.
    pub(super) fn of(lines: impl IntoIterator<Item = String>) -> Self {
        let lines = lines.into_iter().map(|line| line.replace('\n', " "));
        Self { lines: lines.collect() }
    }

    pub(super) fn new(source: &Source<'_>, faults: &[Fault]) -> Self {
        let mut ordered: Vec<&Fault> = faults.iter().collect();
        ordered.sort_by_key(|fault| fault.at.as_ref().map_or(usize::MAX, |at| at.start));
        Self { lines: ordered.into_iter().map(|fault| source.line(fault)).collect() }
    }
}
