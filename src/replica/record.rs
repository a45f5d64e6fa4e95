//! The history of what this mirror did: each fetch and each checkout, with what moved.
//!
//! Written when the work is over and reported, so that nothing waits for it. What cannot be recorded
//! is said and forgotten: the ledger is for those who look back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    ledger::{Kind, Ledger, MAX_NAMES, NewRun, Outcome},
    model::{Change, FeedName, Head, Oid, RelPath},
    store::Store,
    sys,
};

/// A fetch or a checkout that is over.
pub(super) struct Work {
    pub(super) kind: Kind,
    pub(super) began: Instant,
    /// From which commit.
    pub(super) from: Option<Oid>,
    /// To which head.
    pub(super) to: Option<Head>,
    /// Bytes that came over the link, or were written.
    pub(super) bytes: u64,
    /// Why it failed.
    pub(super) error: Option<String>,
    /// What people should look at though it went well.
    pub(super) detail: Option<String>,
}

/// Who records.
#[derive(Clone)]
pub(super) struct Recorder {
    pub(super) feed: FeedName,
    pub(super) ledger: Arc<Ledger>,
    pub(super) store: Arc<Store>,
}

impl Recorder {
    /// Records a run. Blocks.
    pub(super) fn record(&self, work: &Work) {
        let took = work.began.elapsed();
        let mut run = NewRun::new(self.feed.clone(), work.kind, sys::now() - took);
        run.took = took.max(Duration::from_micros(1));
        run.commit = work.to.map(|head| head.commit);
        run.bytes = work.bytes;
        run.detail.clone_from(&work.detail);
        if let Some(error) = &work.error {
            run.outcome = Outcome::Failed;
            run.detail = Some(error.clone());
        } else if let Some(to) = work.to {
            (run.files, run.names) = self.moved(work.from, to.commit);
        }
        if let Err(error) = self.ledger.add_run(&run) {
            tracing::warn!(feed = %self.feed, %error, "a run is not recorded");
        }
    }

    /// How many files differ, and the first of them.
    fn moved(&self, from: Option<Oid>, to: Oid) -> (u64, Vec<RelPath>) {
        let Ok(changes) = self.store.diff(from, to) else { return (0, Vec::new()) };
        let is_file = |change: &&Change| {
            change.before.iter().chain(&change.after).any(|entry| !entry.kind.is_dir())
        };
        let files = || changes.iter().filter(is_file);
        let names = files().take(MAX_NAMES).map(|change| change.path.clone()).collect();
        (files().count() as u64, names)
    }
}
