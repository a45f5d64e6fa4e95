//! How a mirror's tasks ended: what `follow` hears of it, and what the history of runs says.
//!
//! Only what no time mends ends the mirror; everything else is an event.

use std::time::Instant;

use tracing::{info, warn};

use super::{Ended, Stage};
use crate::{
    ledger::{Kind, MAX_NAMES},
    model::Head,
    replica::{Error, checkout::Done, event::Event, record::Work},
};

impl Stage {
    /// # Errors
    /// What ends the mirror; everything else is fed to `follow`.
    pub(super) fn take_ended(&mut self, ended: Ended) -> Result<(), Error> {
        match ended {
            Ended::Talk | Ended::Recorded => {}
            Ended::Poll(answers) => self.take_polled(answers),
            Ended::Fetch(Ok(published)) => {
                let head = published.head;
                let from = self.follow.summary().fetched;
                self.desk.post(published);
                self.feed(Event::Fetched { head });
                self.record(Work {
                    kind: Kind::Fetch,
                    began: self.fetch_began,
                    from: from.map(|head| head.commit),
                    to: Some(head),
                    bytes: self.fetcher.progress.take_received(),
                    error: None,
                    detail: None,
                });
                for (commit, answer) in std::mem::take(&mut self.waiting) {
                    self.look(commit, answer, 1);
                }
            }
            Ended::Fetch(Err(error)) => {
                self.take_failed_fetch(error)?;
            }
            Ended::Checked(found) => {
                self.checking = false;
                self.take_verified(found.as_ref().ok().and_then(|found| found.step.clone()));
                match found {
                    Ok(findings) => self.take_findings(&findings),
                    Err(error) if error.ends_the_stage() => return Err(error),
                    Err(error) => warn!(feed = %self.desk.feed, "cannot look for drift: {error}"),
                }
            }
            Ended::Checkout(head, Ok(done)) => {
                let from = self.follow.summary().have;
                self.tell(head, &done);
                // The first one makes the folders that are to be watched.
                if self.follow.summary().have.is_none()
                    && let Some(watch) = &mut self.watch
                {
                    watch.look_at_all();
                }
                self.feed(Event::CheckedOut { head });
                self.record(Work {
                    kind: Kind::Checkout,
                    began: self.checkout_began,
                    from: from.map(|head| head.commit),
                    to: Some(head),
                    bytes: done.placed.bytes,
                    error: None,
                    detail: put_aside(&done),
                });
            }
            Ended::Checkout(head, Err(Error::Vetoed(reason))) => {
                warn!(feed = %self.desk.feed, commit = %head.commit, "not checked out: {reason}");
                self.feed(Event::CheckoutVetoed { reason });
            }
            Ended::Checkout(_, Err(Error::Later { until, reason })) => {
                self.feed(Event::CheckoutPutOff { until, reason });
            }
            Ended::Checkout(head, Err(error)) => {
                if error.ends_the_stage() {
                    return Err(error);
                }
                warn!(feed = %self.desk.feed, commit = %head.commit, "{error}");
                self.failed(Kind::Checkout, self.checkout_began, error.to_string());
                self.feed(Event::CheckoutFailed { reason: error.to_string() });
            }
            Ended::Object(id, result) => {
                self.on_demand.ended(id, &result);
                self.bring_objects();
            }
            Ended::Look(commit, answer, looks, found) => {
                self.take_look(commit, answer, looks, found)?;
            }
        }
        Ok(())
    }

    pub(super) fn take_failed_fetch(&mut self, error: Error) -> Result<(), Error> {
        if error.ends_the_stage() {
            return Err(error);
        }
        let reason = error.to_string();
        let commit = self.follow.summary().want.map(|head| tracing::field::display(head.commit));
        warn!(feed = %self.desk.feed, commit, "{reason}");
        for (_, answer) in self.waiting.drain(..) {
            let _ = answer.send(Err(reason.clone())); // it waits no longer: fine
        }
        self.failed(Kind::Fetch, self.fetch_began, reason.clone());
        self.feed(match error {
            Error::Split(head) => Event::FetchSplit { head },
            error => Event::FetchFailed { failure: error.class(), reason },
        });
        Ok(())
    }

    /// A run that failed; the same failure again is not another entry.
    pub(super) fn failed(&mut self, kind: Kind, began: Instant, error: String) {
        let bytes = self.fetcher.progress.take_received();
        if self.follow.summary().last_error.as_ref() == Some(&error) {
            return;
        }
        let (from, to, detail) = (None, self.follow.summary().want, None);
        self.record(Work { kind, began, from, to, bytes, error: Some(error), detail });
    }

    /// Records a run, behind whatever is under way.
    pub(super) fn record(&mut self, work: Work) {
        let (recorder, lane) = (self.recorder.clone(), self.fetcher.lane.clone());
        self.tasks.spawn(async move {
            // A broken lane is told by whatever needs it next.
            let _ = lane.run(move || recorder.record(&work)).await;
            Ended::Recorded
        });
    }

    pub(super) fn take_polled(&mut self, answers: Vec<(usize, Result<Option<Head>, Error>)>) {
        let mut heads = Vec::new();
        let mut result = Err("there is no upstream".to_owned());
        for (upstream, answer) in answers {
            match answer {
                Ok(head) => {
                    heads.push((upstream, head));
                    result = Ok(());
                }
                Err(error) if result.is_err() => result = Err(error.to_string()),
                Err(_) => {}
            }
        }
        let askers = std::mem::take(&mut self.asked);
        self.feed(Event::Polled { heads });
        for asker in askers {
            let _ = asker.send(result.clone()); // it waits no longer: fine
        }
        if self.follow.has_all_it_knows_of() {
            let reason =
                result.err().unwrap_or_else(|| "the upstream has no such commit".to_owned());
            for (_, answer) in self.waiting.drain(..) {
                let _ = answer.send(Err(reason.clone()));
            }
        }
    }

    pub(super) fn tell(&self, head: Head, done: &Done) {
        let (feed, placed) = (&self.desk.feed, &done.placed);
        info!(%feed, commit = %head.commit, seq = head.seq, written = placed.written, deleted = placed.deleted, "checked out");
        for path in &placed.set_aside {
            warn!(%feed, %path, commit = %head.commit, "was not as the feed had it: put aside");
        }
        for (path, note) in &placed.notes {
            warn!(%feed, %path, commit = %head.commit, "{note}");
        }
        for path in &done.drifted {
            warn!(%feed, %path, commit = %head.commit, "was changed by another program right after it was put in place");
        }
    }
}

/// What had to make way, for those who look back.
fn put_aside(done: &Done) -> Option<String> {
    let count = done.placed.set_aside.len();
    let first: Vec<String> = done
        .placed
        .set_aside
        .iter()
        .take(MAX_NAMES)
        .map(|path| path.to_text().into_owned())
        .collect();
    (count > 0).then(|| format!("{count} files were put aside: {}", first.join(", ")))
}
