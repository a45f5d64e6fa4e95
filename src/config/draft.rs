//! A `depsync.toml` that is written for somebody: keys with the reason beside them, and what could not be
//! carried over as comments above.
//!
//! Texts from elsewhere are quoted as TOML has it and never break out of a comment. What is written is
//! read again before it is shown: a draft that `check` would not even read is an error.

use std::{fmt::Write, path::Path};

use super::{Consent, convert, fault::Error, file};

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Draft {
    /// What it was made from.
    pub(super) origin: String,
    /// What was not carried over, and what to do.
    pub(super) notes: Vec<String>,
    /// The keys before any section.
    pub(super) keys: Vec<Key>,
    /// The region's name; a node that owns all its feeds needs none.
    pub(super) region: Option<Key>,
    /// The feeds, each with its keys.
    pub(super) feeds: Vec<Vec<Key>>,
    /// Limits on what is sent.
    pub(super) bandwidth: Vec<Key>,
}

/// A key, its value as TOML, and why.
#[derive(Debug)]
pub(super) struct Key {
    name: &'static str,
    value: String,
    why: String,
}

/// A key with a text.
pub(super) fn text(name: &'static str, value: impl AsRef<str>, why: impl Into<String>) -> Key {
    let value = toml::Value::String(value.as_ref().to_owned()).to_string();
    Key { name, value, why: why.into() }
}

/// A key with a number.
pub(super) fn number(name: &'static str, value: u64, why: impl Into<String>) -> Key {
    Key { name, value: value.to_string(), why: why.into() }
}

/// A key with a path, where that is UTF-8.
pub(super) fn path(name: &'static str, value: &Path, why: &str) -> Result<Key, String> {
    let value = value
        .to_str()
        .ok_or_else(|| format!("{} is not UTF-8: a configuration file is", value.display()))?;
    Ok(text(name, value, why))
}

impl Draft {
    /// The text.
    ///
    /// # Errors
    /// When the daemon could not read it.
    pub(super) fn written(&self) -> Result<String, Error> {
        let text = self.text();
        let read = file::read(&text).and_then(|read| {
            if read.faults.is_empty() {
                return convert::settings(read.file, &read.unread, Consent::default());
            }
            Err(read.faults)
        });
        let faulty = |faults: Vec<super::Fault>| {
            let words = faults.iter().map(|fault| format!("{}: {}", fault.key, fault.message));
            Error::of(words.map(|words| format!("{} cannot be used: {words}", self.origin)))
        };
        read.map(|_| text).map_err(faulty)
    }

    fn text(&self) -> String {
        let mut out = format!("# Made from {}; `depsync check` reads it.\n", safe(&self.origin));
        if !self.notes.is_empty() {
            out.push_str("#\n# Not carried over, or to be looked at:\n");
        }
        for note in &self.notes {
            let _ = writeln!(out, "# * {}", safe(note));
        }
        out.push('\n');
        write_keys(&mut out, &self.keys);
        if let Some(name) = &self.region {
            out.push_str("\n[region]\n");
            write_keys(&mut out, std::slice::from_ref(name));
        }
        for feed in &self.feeds {
            out.push_str("\n[[feed]]\n");
            write_keys(&mut out, feed);
        }
        if !self.bandwidth.is_empty() {
            out.push_str("\n[bandwidth]\n");
            write_keys(&mut out, &self.bandwidth);
        }
        out
    }
}

fn write_keys(out: &mut String, keys: &[Key]) {
    for Key { name, value, why } in keys {
        let line = format!("{name} = {value}");
        let _ = match why.as_str() {
            "" => writeln!(out, "{line}"),
            why => writeln!(out, "{line:<41} # {}", safe(why)),
        };
    }
}

/// A text that stays within its comment.
fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_breaks_out_of_its_place() {
        let draft = Draft {
            origin: "a\nlisten = 1".to_owned(),
            notes: vec!["b\r\nc\u{0}".to_owned()],
            feeds: vec![vec![text("name", "x", "d\ne"), text("dir", "/a\"\nnode = \"x", "")]],
            ..Draft::default()
        };
        let written = draft.written().unwrap();
        let read = file::read(&written).unwrap();
        assert!(read.faults.is_empty() && read.file.listen.is_none() && read.file.node.is_none());
        let dir = read.file.feed[0].dir.as_ref().unwrap().get_ref().clone();
        assert_eq!(dir, Path::new("/a\"\nnode = \"x"));
    }

    #[test]
    fn what_the_daemon_would_refuse_is_not_shown() {
        let feeds = vec![vec![text("name", "a b", ""), text("dir", "/a", "")]];
        let draft = Draft { origin: "x".to_owned(), feeds, ..Draft::default() };
        let said = draft.written().unwrap_err().to_string();
        assert!(said.starts_with("x cannot be used: name: \"a b\" is not a feed name"), "{said}");
    }
}
