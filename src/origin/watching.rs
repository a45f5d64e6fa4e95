//! Whether the kernel tells of changes in a directory, and what people are told where it does not.
//!
//! Folders without events are scanned every poll; nothing is lost by that, it is only found later.

use super::session::Session;
use crate::disk::{WatchError, Watcher};

impl Session<'_, '_> {
    pub(super) fn watch(&mut self) {
        let every = self.setup.options.poll;
        if self.file_system.network {
            let name = self.file_system.name;
            let text = format!("{name} has no events: everything is scanned every {every:?}");
            self.unwatched = Some(text);
            return;
        }
        if !self.setup.options.events {
            self.unwatched = Some(format!("as configured, everything is scanned every {every:?}"));
            return;
        }
        match Watcher::new(&self.root, self.origin.sink()) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => self.cannot_watch(error),
        }
    }

    /// Folders without events are scanned, and people are told why.
    pub(super) fn cannot_watch(&mut self, error: WatchError) {
        if self.unwatched.is_none() {
            tracing::warn!(feed = %self.setup.feed, %error, "scanning instead of watching");
            self.unwatched = Some(error.to_string());
        }
        self.watch_failed = Some(error);
    }

    /// Whether events were wanted and are not to be had: something that somebody can mend.
    pub(super) fn is_watched_in_part(&self) -> bool {
        self.unwatched.is_some() && self.setup.options.events && !self.file_system.network
    }

    /// A scan of everything is over: by now it is known how many folders there are.
    pub(super) fn count_unwatched(&mut self) {
        let failed = self.watch_failed.take();
        let every = self.setup.options.poll;
        let folders = self.scan.folders_seen();
        self.unwatched = match failed {
            Some(WatchError::Limit { sysctl, watched }) => Some(format!(
                "{watched} of {folders} folders are watched, the rest is scanned every {every:?}: raise the sysctl {sysctl}; this feed alone needs {folders}"
            )),
            Some(error) => Some(format!("{error}; it is scanned every {every:?}")),
            None if self.watcher.is_some() => None,
            None => return,
        };
    }
}
