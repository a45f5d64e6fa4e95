//! `.depsyncignore`: which rules are in force, and what is done where the file cannot be used.
//!
//! A file that cannot be used never widens what is published: the rules before it go on.

use std::time::Instant;

use super::{Result, session::Session};
use crate::{
    disk::Root,
    model::{Names, RelPath, names::IGNORE_FILE},
};

impl Session<'_, '_> {
    /// There is a `.depsyncignore` that cannot be used, and none before it: publishing what the
    /// operator wanted left out could not be undone.
    pub(super) fn lacks_rules(&self) -> bool {
        self.bad_ignore.is_some() && self.stage.head().is_none()
    }

    /// Rules that can be used again may come without an event.
    pub(super) fn poll_rules(&mut self, now: Instant) {
        if self.halt.is_none() && now >= self.next_poll {
            self.next_poll = now + self.setup.options.poll;
            self.names_changed();
        }
    }

    /// The head's rules where the file's cannot be used.
    pub(super) fn load_names(&mut self) -> Result<()> {
        self.names_changed();
        if self.bad_ignore.is_none() {
            return Ok(());
        }
        let before = self.stage.in_head(&ignore_file())?;
        let text = match before.and_then(|entry| entry.kind.blob()) {
            Some(blob) => self.setup.store.read_blob(blob)?,
            None => Vec::new(),
        };
        if let Ok(names) = Names::new(self.setup.options.profile, &text) {
            self.names = names;
        }
        Ok(())
    }

    /// Reads `.depsyncignore`; the rules stay as they are when it cannot be used.
    pub(super) fn names_changed(&mut self) {
        let text = ignore_text(&self.root);
        let parse = |text: Vec<u8>| {
            Names::new(self.setup.options.profile, &text).map_err(|error| error.to_string())
        };
        match text.and_then(parse) {
            Ok(names) => {
                self.bad_ignore = None;
                self.names = names;
                self.begin_batch_again();
            }
            Err(reason) => {
                tracing::error!(feed = %self.setup.feed, reason, "the rules before it go on");
                self.bad_ignore = Some(reason);
            }
        }
    }
}

pub(super) fn ignore_file() -> RelPath {
    RelPath::parse(IGNORE_FILE).expect("it is a plain name")
}

/// The text of `.depsyncignore`; empty where there is none.
pub(super) fn ignore_text(root: &Root) -> std::result::Result<Vec<u8>, String> {
    let mut file = match root.open_file(&ignore_file()) {
        Ok(file) => file,
        Err(error) if error.is_gone() => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = Vec::new();
    let read = std::io::Read::read_to_end(&mut file, &mut text);
    read.map(|_| text).map_err(|error| error.to_string())
}
