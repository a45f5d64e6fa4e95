//! The question to `pre-commit`, between a commit that is written and one that is published.
//!
//! A candidate lies durable in `spool/` and is known to nobody. While its hook runs, paths that are
//! touched are only noted. A refused one rests as it is until something is touched: then its paths
//! are read again, and what they come to is another candidate, or the same, about which the hook is
//! not asked twice. What it refuses by name is held, and the rest asked about anew.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::Scope,
    time::{Duration, Instant, SystemTime},
};

use super::{Result, Setup, commit::Summary, session::Session, settle::Lane, taken::Taken};
use crate::{
    disk::Root,
    hooks::{
        Backoff, Changes, Effect, End, Event, Hook, Hooks, Occasion, Outcome, Report, Schedule,
    },
    ledger::{Kind as RunKind, NewRun, Outcome as Ended},
    model::{Change, Class, FeedName, Head, Label, Oid, RelPath},
    store::{self, Prepared},
    sys,
};

/// A commit that is written and not published.
pub(super) struct Candidate {
    pub(super) prepared: Prepared,
    pub(super) taken: Taken,
    pub(super) summary: Summary,
    /// The head that it follows.
    pub(super) before: Option<Head>,
    pub(super) subject: String,
    /// How long it took to be written.
    pub(super) took: Duration,
}

/// What is known about a tree.
#[derive(Clone)]
enum Verdict {
    Passed,
    /// Why it waits, and whether that is the hook's fault rather than the content's.
    Waits {
        reason: String,
        broken: bool,
    },
}

/// The one question under way, and what became of the last.
pub(super) struct Gate {
    asker: Option<Asker>,
    schedule: Schedule<Oid>,
    candidate: Option<Candidate>,
    /// What the candidate changes.
    changes: Vec<Change>,
    /// Since when, by the time of day.
    since: SystemTime,
    running: bool,
    wake: Option<Instant>,
    verdict: Option<(Oid, Verdict)>,
    disturbed: bool,
    /// Paths of a candidate that are read again: without them nothing is committed.
    gathering: HashSet<RelPath>,
}

/// The thread that runs the hook.
struct Asker {
    questions: SyncSender<Question>,
    answers: Receiver<Report>,
    stop: Arc<AtomicBool>,
}

struct Question {
    commit: Oid,
    previous: Option<Oid>,
    changes: Changes,
}

/// Ends the run that is under way: the session is over.
impl Drop for Asker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Asker {
    fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        setup: &Setup,
        root: &Arc<Root>,
        wake: impl Fn() + Send + 'scope,
    ) -> io::Result<Self> {
        let (questions, todo) = sync_channel::<Question>(1);
        let (answer, answers) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let (root, stopped) = (Arc::clone(root), Arc::clone(&stop));
        let (hooks, feed, label) = (setup.hooks.clone(), setup.feed.clone(), setup.label.clone());
        let work = move || {
            while let Ok(question) = todo.recv() {
                let report = ask(&hooks, &root, (&feed, &label), &question, &stopped);
                if answer.send(report).is_err() {
                    return;
                }
                wake();
            }
        };
        std::thread::Builder::new().name("pre-commit".to_owned()).spawn_scoped(scope, work)?;
        Ok(Asker { questions, answers, stop })
    }
}

fn ask(
    hooks: &Hooks,
    root: &Root,
    (feed, node): (&FeedName, &Label),
    question: &Question,
    stop: &AtomicBool,
) -> Report {
    let occasion = Occasion {
        dir: root.path(),
        feed,
        node,
        region: None,
        commit: Some(question.commit),
        previous: question.previous,
        changes: Some(&question.changes),
        reason: "",
    };
    hooks.run(Hook::PreCommit, &occasion, stop)
}

impl Gate {
    /// With a thread of its own where the feed has hooks.
    pub(super) fn new<'scope>(
        scope: &'scope Scope<'scope, '_>,
        setup: &Setup,
        root: &Arc<Root>,
        wake: impl Fn() + Send + 'scope,
    ) -> io::Result<Self> {
        let asker = setup.hooks.are_configured();
        let asker = asker.then(|| Asker::start(scope, setup, root, wake)).transpose()?;
        Ok(Gate {
            asker,
            schedule: Schedule::new(Backoff::default(), None),
            candidate: None,
            changes: Vec::new(),
            since: SystemTime::UNIX_EPOCH,
            running: false,
            wake: None,
            verdict: None,
            disturbed: false,
            gathering: HashSet::new(),
        })
    }

    /// Whether a hook is being asked about a candidate: until then nothing is looked at.
    pub(super) fn is_asking(&self) -> bool {
        self.candidate.is_some() && self.running
    }

    /// Whether a commit is made and not published yet.
    pub(super) fn holds_commit(&self) -> bool {
        self.candidate.is_some()
    }

    fn is_resting(&self) -> bool {
        self.candidate.is_some() && !self.running
    }

    /// When a candidate that rests is to be asked about again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.wake.filter(|_| self.is_resting())
    }

    /// Something was touched.
    pub(super) fn disturb(&mut self) {
        self.disturbed |= self.is_resting();
    }

    /// Forgets the candidate: a scan finds again what was in it.
    pub(super) fn clear(&mut self) {
        self.candidate = None;
        self.changes.clear();
        self.disturbed = false;
        self.gathering.clear();
    }

    /// Why the candidate waits, whether that is the hook's fault, since when, and its paths.
    pub(super) fn waiting(&self) -> Option<Waiting<'_>> {
        self.candidate.as_ref()?;
        let (reason, broken) = match &self.verdict {
            _ if self.running => return None,
            Some((_, Verdict::Waits { reason, broken })) => (reason.as_str(), *broken),
            _ => return None,
        };
        Some(Waiting { reason, broken, since: self.since, changes: &self.changes })
    }
}

/// A candidate that waits.
pub(super) struct Waiting<'a> {
    pub(super) reason: &'a str,
    pub(super) broken: bool,
    pub(super) since: SystemTime,
    changes: &'a [Change],
}

impl Waiting<'_> {
    pub(super) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.changes.iter().map(|change| &change.path)
    }
}

impl Session<'_, '_> {
    /// Publishes a candidate, if there is no hook to ask or it was asked before and passed.
    pub(super) fn propose(&mut self, now: Instant, candidate: Candidate) -> store::Result<()> {
        let tree = candidate.prepared.tree();
        let is_there = self.gate.asker.is_some()
            && !matches!(self.setup.hooks.find(Hook::PreCommit), Ok(None));
        let has_passed =
            matches!(&self.gate.verdict, Some((known, Verdict::Passed)) if *known == tree);
        if !is_there || has_passed {
            return self.publish(now, candidate);
        }
        self.gate.changes = candidate.prepared.changes(&self.setup.store)?;
        self.gate.candidate = Some(candidate);
        self.gate.since = sys::now();
        let effects = self.gate.schedule.step(now, Event::Wanted(tree));
        self.carry_out(now, effects);
        Ok(())
    }

    /// Minds the candidate; true while its hook is being asked.
    pub(super) fn mind_gate(&mut self, now: Instant) -> Result<bool> {
        if let Some(report) =
            self.gate.asker.as_ref().and_then(|asker| asker.answers.try_recv().ok())
        {
            self.gate.running = false;
            self.take_verdict(now, &report)?;
        }
        if self.gate.is_resting() && (self.gate.disturbed || !self.stage.is_empty()) {
            self.dissolve();
        } else if self.gate.deadline().is_some_and(|at| at <= now) {
            self.gate.wake = None;
            let effects = self.gate.schedule.step(now, Event::Woke);
            self.carry_out(now, effects);
        }
        Ok(self.gate.is_asking())
    }

    /// Whether all of a dissolved candidate is read again.
    pub(super) fn has_gathered(&mut self) -> bool {
        let settle = &self.settle;
        self.gate.gathering.retain(|path| settle.is_pending(path));
        self.gate.gathering.is_empty()
    }

    fn carry_out(&mut self, now: Instant, effects: Vec<Effect<Oid>>) {
        for effect in effects {
            match effect {
                Effect::Run(_) => self.ask(now),
                Effect::WakeAt(at) => self.gate.wake = Some(at),
                Effect::Concluded { .. } => {}
            }
        }
    }

    fn ask(&mut self, now: Instant) {
        let (Some(asker), Some(candidate)) = (&self.gate.asker, &self.gate.candidate) else {
            return;
        };
        let changes = match Changes::of(self.setup.store.spool(), &self.gate.changes) {
            Ok(changes) => changes,
            Err(error) => {
                let verdict = Verdict::Waits { reason: error.to_string(), broken: true };
                self.gate.verdict = Some((candidate.prepared.tree(), verdict));
                let effects = self.gate.schedule.step(now, Event::Ended(End::Retry));
                self.carry_out(now, effects);
                return;
            }
        };
        let question = Question {
            commit: candidate.prepared.head().commit,
            previous: candidate.before.map(|head| head.commit),
            changes,
        };
        // The thread takes one question after the other, and there is only this one.
        self.gate.running = asker.questions.try_send(question).is_ok();
    }

    fn take_verdict(&mut self, now: Instant, report: &Report) -> Result<()> {
        let effects = self.gate.schedule.step(now, Event::Ended(report.outcome.end()));
        let Some(candidate) = &self.gate.candidate else {
            // It was about one that is forgotten by now.
            self.carry_out(now, effects);
            return Ok(());
        };
        let tree = candidate.prepared.tree();
        self.record_hook(report, candidate.prepared.head().commit);
        let verdict = match (&report.outcome, report.reason()) {
            (_, None) => Verdict::Passed,
            (outcome, Some(reason)) => {
                let broken = !matches!(outcome, Outcome::Vetoed { .. } | Outcome::Retry);
                let reason = format!("the hook pre-commit: {reason}");
                let commit = candidate.prepared.head().commit;
                tracing::warn!(feed = %self.setup.feed, %commit, reason, "not published");
                Verdict::Waits { reason, broken }
            }
        };
        self.gate.verdict = Some((tree, verdict.clone()));
        self.carry_out(now, effects);
        match (&report.outcome, verdict) {
            (Outcome::Vetoed { paths, .. }, Verdict::Waits { reason, .. }) if !paths.is_empty() => {
                self.refuse_paths(paths, &reason);
            }
            (_, Verdict::Passed) => return self.publish_candidate(now),
            (_, Verdict::Waits { .. }) => {}
        }
        Ok(())
    }

    fn publish_candidate(&mut self, now: Instant) -> Result<()> {
        let Some(candidate) = self.gate.candidate.take() else { return Ok(()) };
        self.gate.changes.clear();
        match self.publish(now, candidate) {
            Ok(()) => {
                self.nothing_fails();
                Ok(())
            }
            Err(error) if error.class() == Class::Transient => {
                self.failed(now, &error);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Just these are held until they change.
    fn refuse_paths(&mut self, paths: &[RelPath], reason: &str) {
        let refused: HashSet<&RelPath> = paths.iter().collect();
        for change in &self.gate.changes {
            if refused.contains(&change.path) {
                self.stage.refuse(&change.path, change.after.as_ref(), reason, sys::now());
            }
        }
        self.dissolve();
    }

    /// Reads the candidate's paths again, with whatever else was touched.
    fn dissolve(&mut self) {
        self.gate.disturbed = false;
        self.gate.wake = None;
        let Some(candidate) = self.gate.candidate.take() else { return };
        self.stage.let_pass(candidate.taken.approved);
        self.gate.gathering.clear();
        let changed = std::mem::take(&mut self.gate.changes).into_iter().map(|change| change.path);
        let removed = candidate.taken.removed.into_iter().map(|(path, _)| path);
        let paths: HashSet<_> = removed.chain(changed).collect();
        for path in paths {
            self.touch(&path, Lane::Event);
            if self.settle.is_pending(&path) {
                self.gate.gathering.insert(path);
            }
        }
    }

    fn record_hook(&self, report: &Report, commit: Oid) {
        let outcome = match &report.outcome {
            Outcome::Absent | Outcome::Stopped => return,
            Outcome::Passed => Ended::Ok,
            Outcome::Vetoed { .. } | Outcome::Refused(_) => Ended::Refused,
            _ => Ended::Failed,
        };
        let mut run = NewRun::new(self.setup.feed.clone(), RunKind::Hook, sys::now() - report.took);
        run.took = report.took;
        run.commit = Some(commit);
        run.outcome = outcome;
        let said = report.reason().unwrap_or_else(|| report.output.text.clone());
        run.detail = Some(format!("{}: {}", Hook::PreCommit, said.trim()));
        if let Err(error) = self.setup.ledger.add_run(&run) {
            tracing::warn!(feed = %self.setup.feed, %error, "a run is not recorded");
        }
    }
}
