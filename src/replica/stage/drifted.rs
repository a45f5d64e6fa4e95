//! What others change in a mirrored directory: looked for at the disk's thread, shown on the desk.
//!
//! It never ends the mirror, and holds up no checkout for longer than a look takes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

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

    pub(super) fn take_findings(&mut self, findings: &Findings) {
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
        self.desk.state.send_if_modified(|state| {
            let drift = drift_after(&state.drift, findings, sys::now());
            let extra = findings.extra.unwrap_or(state.extra);
            let differs = (&drift, extra) != (&state.drift, state.extra);
            (state.drift, state.extra) = (drift, extra);
            differs
        });
    }
}

/// What is told from now on. What was told before and is still so is so since then; a look at
/// everything names all that is.
fn drift_after(known: &[Held], findings: &Findings, now: SystemTime) -> Vec<Held> {
    let since: BTreeMap<&RelPath, SystemTime> =
        known.iter().map(|held| (&held.path, held.since)).collect();
    let told: BTreeSet<&RelPath> = findings.told.iter().map(|(path, _)| path).collect();
    let stays = |held: &&Held| {
        findings.extra.is_none()
            && !findings.repaired.contains(&held.path)
            && !told.contains(&held.path)
    };
    let news = findings.told.iter().map(|(path, reason)| Held {
        path: path.clone(),
        reason: reason.clone(),
        cause: Cause::Drift,
        since: since.get(path).copied().unwrap_or(now),
        decision: false,
    });
    let mut drift: Vec<Held> = known.iter().filter(stays).cloned().chain(news).collect();
    // In one order, however it was found, and so that the same is seen to be the same.
    drift.sort_by(|a, b| a.path.cmp(&b.path));
    drift.truncate(MAX_DRIFT);
    drift
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    fn found(told: &[(&str, &str)], extra: Option<u64>) -> Findings {
        let told = told.iter().map(|(at, why)| (path(at), (*why).to_owned())).collect();
        Findings { told, extra, ..Findings::default() }
    }

    #[test]
    fn what_differs_is_told_since_it_was_first_found() {
        let at = |secs| SystemTime::UNIX_EPOCH + Duration::from_secs(secs);
        let since = |drift: &[Held]| -> Vec<(String, u64)> {
            let secs = |held: &Held| held.since.duration_since(at(0)).unwrap().as_secs();
            drift.iter().map(|held| (held.path.to_text().into_owned(), secs(held))).collect()
        };
        let named = |name: &str, secs| (name.to_owned(), secs);
        let first = drift_after(&[], &found(&[("b", "other content")], Some(0)), at(1));
        assert_eq!(since(&first), [named("b", 1)]);
        let again = drift_after(&first, &found(&[("b", "other content")], Some(0)), at(600));
        assert_eq!(again, first, "the same is no news");
        let other = drift_after(&first, &found(&[("b", "another mode")], None), at(700));
        assert_eq!(since(&other), [named("b", 1)]);
        assert_ne!(other, first, "why it differs is news");
        let more = drift_after(&other, &found(&[("a", "gone")], None), at(800));
        assert_eq!(since(&more), [named("a", 800), named("b", 1)]);
        let swapped = drift_after(&first, &found(&[("c", "gone")], Some(0)), at(900));
        assert_eq!(since(&swapped), [named("c", 900)], "as many as before, and another one");
        let repaired = Findings { repaired: vec![path("a")], ..Findings::default() };
        assert_eq!(since(&drift_after(&more, &repaired, at(900))), [named("b", 1)]);
    }
}
