//! The question to `pre-checkout`, before the first change to the deployment directory.
//!
//! A head has one run, but for the runs that the hook asks for; what it came to is kept, so that a
//! refusal stands, across restarts too, until there is another head. Blocks while the hook runs.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Instant,
};

use crate::{
    bus::Desk,
    hooks::{
        Backoff, Changes, Effect, Event, Hook, Hooks, Mark, Occasion, Outcome, Report, Schedule,
        Verdict,
    },
    ledger::{self, Ledger, NewRun},
    model::{Change, Label, Oid, RegionName},
    replica::Error,
    sys,
};

/// What asks the hook of one feed.
pub(super) struct Gate {
    hooks: Hooks,
    desk: Arc<Desk>,
    ledger: Arc<Ledger>,
    label: Label,
    region: Option<RegionName>,
    /// Where the hook runs: the deployment directory.
    dir: PathBuf,
    mark: Mark,
    asked: Mutex<Asked>,
    stop: Arc<AtomicBool>,
}

struct Asked {
    schedule: Schedule<Oid>,
    last: Option<Verdict>,
}

/// What a gate is made of.
pub(super) struct Asking {
    pub(super) hooks: Hooks,
    pub(super) desk: Arc<Desk>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) label: Label,
    pub(super) region: Option<RegionName>,
    pub(super) dir: PathBuf,
    pub(super) state: PathBuf,
}

impl Gate {
    /// `stop` ends a run that is under way.
    pub(super) fn new(of: Asking, stop: Arc<AtomicBool>) -> Self {
        let Asking { hooks, desk, ledger, label, region, dir, state } = of;
        let mark = Mark::new(&state, Hook::PreCheckout);
        let last = mark.read().filter(|_| hooks.are_configured());
        let known = last.as_ref().map(|verdict| verdict.commit);
        let asked = Asked { schedule: Schedule::new(Backoff::default(), known), last };
        Gate { hooks, desk, ledger, label, region, dir, mark, asked: Mutex::new(asked), stop }
    }

    /// Whether `to` may be put in place.
    ///
    /// # Errors
    /// [`Error::Vetoed`] when the hook refuses it, [`Error::Later`] when it is to be asked again.
    pub(super) fn ask(
        &self,
        from: Option<Oid>,
        to: Oid,
        changes: impl FnOnce() -> Result<Vec<Change>, Error>,
    ) -> Result<(), Error> {
        if matches!(self.hooks.find(Hook::PreCheckout), Ok(None)) {
            return Ok(());
        }
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = asked.schedule.step(Instant::now(), Event::Wanted(to));
        match wanted.into_iter().next() {
            Some(Effect::Run(_)) => {}
            Some(Effect::WakeAt(until)) => return Err(later(until, asked.last.as_ref())),
            Some(Effect::Concluded { .. }) | None => return stands(asked.last.as_ref(), to),
        }
        let report = match changes().and_then(|changes| self.run(from, to, &changes)) {
            Ok(report) => report,
            Err(error) => {
                asked.schedule.step(Instant::now(), Event::Ended(crate::hooks::End::Retry));
                return Err(error);
            }
        };
        if matches!(report.outcome, Outcome::Stopped) {
            return Err(Error::Stopped);
        }
        self.record(to, &report);
        let verdict = Verdict {
            commit: to,
            passed: report.reason().is_none(),
            reason: report.reason().unwrap_or_default(),
        };
        let effects = asked.schedule.step(Instant::now(), Event::Ended(report.outcome.end()));
        asked.last = Some(verdict.clone());
        if let Some(Effect::WakeAt(until)) = effects.first() {
            return Err(later(*until, asked.last.as_ref()));
        }
        if let Err(error) = self.mark.write(&verdict) {
            tracing::warn!(feed = %self.desk.feed, %error, "a hook will run once more after a restart");
        }
        stands(asked.last.as_ref(), to)
    }

    fn run(&self, from: Option<Oid>, to: Oid, changes: &[Change]) -> Result<Report, Error> {
        let spool = self.desk.store.spool();
        let written = |error: crate::hooks::Error| Error::Hook(error.to_string());
        let changes = Changes::of(spool, changes).map_err(written)?;
        let occasion = Occasion {
            dir: &self.dir,
            feed: &self.desk.feed,
            node: &self.label,
            region: self.region.as_ref(),
            commit: Some(to),
            previous: from,
            changes: Some(&changes),
            reason: "",
        };
        Ok(self.hooks.run(Hook::PreCheckout, &occasion, &self.stop))
    }

    /// In the history, and on the desk while it must not be run.
    fn record(&self, to: Oid, report: &Report) {
        let refused = match &report.outcome {
            Outcome::Refused(refusal) => Some(refusal.to_string()),
            _ => None,
        };
        self.desk.hooks.send_if_modified(|unwell| match &refused {
            None => unwell.remove(Hook::PreCheckout.name()).is_some(),
            Some(why) => unwell.insert(Hook::PreCheckout.name(), why.clone()).as_ref() != Some(why),
        });
        let outcome = match &report.outcome {
            Outcome::Passed => ledger::Outcome::Ok,
            Outcome::Vetoed { .. } => ledger::Outcome::Refused,
            Outcome::Refused(_) => return,
            _ => ledger::Outcome::Failed,
        };
        let feed = self.desk.feed.clone();
        let mut run = NewRun::new(feed, ledger::Kind::Hook, sys::now() - report.took);
        (run.took, run.commit, run.outcome) = (report.took, Some(to), outcome);
        let said = report.reason().unwrap_or_else(|| report.output.text.clone());
        run.detail = Some(format!("{}: {}", Hook::PreCheckout, said.trim()));
        if let Err(error) = self.ledger.add_run(&run) {
            tracing::warn!(feed = %self.desk.feed, %error, "a run is not recorded");
        }
    }
}

fn later(until: Instant, last: Option<&Verdict>) -> Error {
    let reason = last.map(|verdict| verdict.reason.clone()).unwrap_or_default();
    Error::Later { until, reason: format!("the hook {}: {reason}", Hook::PreCheckout) }
}

fn stands(last: Option<&Verdict>, to: Oid) -> Result<(), Error> {
    match last {
        Some(verdict) if verdict.commit == to && !verdict.passed => {
            Err(Error::Vetoed(format!("the hook {}: {}", Hook::PreCheckout, verdict.reason)))
        }
        _ => Ok(()),
    }
}
