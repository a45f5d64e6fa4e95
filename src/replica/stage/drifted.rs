//! What others change in a mirrored directory: looked for at the disk's thread, shown on the desk.
//!
//! It never ends the mirror, and holds up no checkout for longer than a look takes.

use tracing::{info, warn};

use super::{Ended, MAX_DRIFT, Stage};
use crate::{
    bus::{Cause, Held, Verified},
    ledger::{self, NewRun},
    model::RelPath,
    replica::{
        Error,
        checkout::Way,
        drift::{Findings, Scope},
        verify::Step,
    },
    sys,
};

impl Stage {
    pub(super) fn check(&mut self, scope: Scope) {
        let Some(checkout) = self.checkout.clone() else { return };
        let watcher = self.watch.as_ref().and_then(|watch| watch.watcher.clone());
        let (directory, profile) = (self.directory.clone(), self.desk.profile.borrow().clone());
        self.checking = true;
        self.verifying = matches!(scope, Scope::Content(_));
        self.tasks.spawn(async move {
            let found = directory.run(move || match &*checkout {
                Way::InPlace(checkout) => checkout.check(&scope, &profile, watcher.as_deref()),
                Way::Snapshot(_) => Ok(Findings::default()),
            });
            Ended::Checked(found.await.map_err(Error::from).flatten())
        });
    }

    /// How far a verification is; a step that came to nothing is tried again later.
    pub(super) fn take_verified(&mut self, step: Option<Step>) {
        let is_step = std::mem::take(&mut self.verifying);
        let watch = self.watch.as_mut().filter(|_| is_step);
        let Some(whole) = watch.and_then(|watch| watch.verified(step)) else { return };
        let (files, differing, took) = (whole.files, whole.differing, whole.began.elapsed());
        info!(feed = %self.desk.feed, files, differing, ?took, "all files were read and compared");
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        self.desk.state.send_modify(|state| {
            state.verified = Some(Verified { at: sys::now(), files, differing, took_ms: took });
        });
    }

    pub(super) fn take_findings(&mut self, findings: Findings) {
        let feed = &self.desk.feed;
        for path in findings.set_aside.iter().chain(&findings.repaired) {
            warn!(%feed, %path, "was changed here: put right");
        }
        for (path, why) in &findings.told {
            warn!(%feed, %path, "differs from the feed: {why}");
        }
        if !findings.repaired.is_empty() {
            let mut run = NewRun::new(feed.clone(), ledger::Kind::Repair, sys::now());
            run.files = findings.repaired.len() as u64;
            run.commit = self.follow.summary().have.map(|head| head.commit);
            run.names = findings.repaired.iter().take(ledger::MAX_NAMES).cloned().collect();
            if let Err(error) = self.ledger.add_run(&run) {
                warn!(%feed, %error, "a run is not recorded");
            }
        }
        let told = |(path, reason): (RelPath, String)| Held {
            path,
            reason,
            cause: Cause::Drift,
            since: sys::now(),
            decision: false,
        };
        self.desk.state.send_if_modified(|state| {
            let before = (state.drift.len(), state.extra);
            if let Some(extra) = findings.extra {
                state.extra = extra;
                state.drift.clear();
            }
            let news: Vec<Held> = findings.told.into_iter().map(told).collect();
            state.drift.retain(|known| {
                !findings.repaired.contains(&known.path)
                    && !news.iter().any(|new| new.path == known.path)
            });
            state.drift.extend(news);
            state.drift.truncate(MAX_DRIFT);
            before != (state.drift.len(), state.extra)
        });
    }
}
