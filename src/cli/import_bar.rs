//! Bars on the terminal of a daemon for the feeds that it imports: files, bytes, rate, time left.
//!
//! The log goes to the same place: it is written through here, so that no line is torn. Where
//! stderr is no terminal there are no bars, and the log says how far an import is.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    sync::{Arc, Mutex, PoisonError},
};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};

use crate::{
    daemon::{Importing, Watcher},
    model::FeedName,
};

/// The bars of all feeds that are imported now.
#[derive(Clone)]
pub(super) struct Bars {
    all: MultiProgress,
    by_feed: Arc<Mutex<BTreeMap<FeedName, ProgressBar>>>,
    shown: bool,
}

impl Bars {
    pub(super) fn new() -> Self {
        let shown = io::stderr().is_terminal();
        Bars { all: MultiProgress::new(), by_feed: Arc::default(), shown }
    }

    /// What the daemon tells of its imports; none where nobody sees it.
    pub(super) fn watcher(&self) -> Option<Watcher> {
        let bars = self.clone();
        let watcher = move |feed: &FeedName, importing| bars.show(feed, importing);
        self.shown.then(|| Arc::new(watcher) as _)
    }

    /// Where the log is written.
    pub(super) fn writer(&self) -> impl Fn() -> Beside + Send + Sync + 'static {
        let bars = self.shown.then(|| self.all.clone());
        move || Beside(bars.clone())
    }

    fn show(&self, feed: &FeedName, importing: Option<Importing>) {
        let mut bars = self.by_feed.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(importing) = importing else {
            if let Some(bar) = bars.remove(feed) {
                bar.finish_and_clear();
            }
            return;
        };
        let bar = bars.entry(feed.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix}: {bar:30} {msg}");
            let bar = ProgressBar::no_length().with_prefix(feed.to_string());
            self.all.add(bar.with_style(style.expect("the template is a constant")))
        });
        if let Some(total) = importing.total {
            bar.set_length(total);
        }
        bar.set_position(importing.files);
        bar.set_message(text(&importing));
    }
}

fn text(importing: &Importing) -> String {
    let mut text = match importing.total {
        Some(total) => format!("{} of {total} files", importing.files),
        None => format!("{} files", importing.files),
    };
    text = format!("{text}, {}", HumanBytes(importing.bytes));
    if let Some(rate) = importing.rate {
        text = format!("{text}, {}/s", HumanBytes(rate));
    }
    if let Some(left) = importing.left {
        text = format!("{text}, {} left", HumanDuration(left));
    }
    text
}

/// Writes to stderr while the bars stand aside.
pub(super) struct Beside(Option<MultiProgress>);

impl Write for Beside {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(bars) => bars.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bar_says_all_that_is_known() {
        let mut importing = Importing {
            files: 1_000,
            bytes: 2_048,
            total: None,
            files_per_sec: None,
            rate: None,
            left: None,
        };
        assert_eq!(text(&importing), "1000 files, 2.00 KiB");
        importing.total = Some(4_000);
        importing.rate = Some(1_024);
        importing.left = Some(Duration::from_secs(3));
        let said = text(&importing);
        assert_eq!(said, "1000 of 4000 files, 2.00 KiB, 1.00 KiB/s, 3 seconds left");
    }
}
