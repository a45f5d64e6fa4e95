//! Hooks that run beside the work: `post-commit`, `post-checkout`, `on-held`, `on-failure`.
//!
//! Everything they are run for stands on the feed's desk: the published head, what lies in the
//! directory, what is held, what fails. One task watches the desk and puts the news into lanes; a
//! thread for each hook runs it. Nothing waits for them, and they hold up nothing.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{Error, stages::Stages};
use crate::{
    bus::{
        Desk, Request, State,
        frame::{Ack, Outcome as Reported, SILENCE},
    },
    hooks::{
        Backoff, Changes, End, Hook, Hooks, Lane, Mark, Occasion, Outcome, Report, Run, Schedule,
        Verdict,
    },
    ledger::{self, Ledger, NewRun},
    model::{FeedName, Head, Label, Oid, RegionName},
    sys,
};

/// How often it is looked for nodes that have fallen silent, which is no event.
const LOOK: Duration = Duration::from_secs(5);

/// What the hooks of one feed are run with.
pub(super) struct After {
    pub(super) hooks: Hooks,
    pub(super) desk: Arc<Desk>,
    pub(super) ledger: Arc<Ledger>,
    /// The deployment directory; none: the hooks run in the state directory.
    pub(super) dir: Option<PathBuf>,
    /// `<state>/feeds/<feed>`.
    pub(super) state: PathBuf,
    pub(super) label: Label,
    pub(super) region: Option<RegionName>,
}

/// Something that began to be so.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Notice {
    number: u64,
    reason: String,
}

/// The lanes of a feed's hooks.
#[derive(Default)]
struct Lanes {
    published: Lane<Oid>,
    placed: Lane<Oid>,
    held: Lane<Notice>,
    failures: Lane<Notice>,
}

impl After {
    /// Starts a thread for each hook and the task that watches; nothing where there are no hooks.
    pub(super) fn spawn(self, stages: &mut Stages) -> Result<(), Error> {
        if !self.hooks.are_configured() {
            return Ok(());
        }
        let (after, lanes) = (Arc::new(self), Arc::new(Lanes::default()));
        let name = |hook: Hook| format!("{hook}-{}", after.desk.feed);
        for hook in [Hook::PostCommit, Hook::PostCheckout] {
            let (this, here, there) = (Arc::clone(&after), Arc::clone(&lanes), Arc::clone(&lanes));
            let attend = move || {
                this.attend_commits(hook, here.of(hook));
                Ok(())
            };
            stages.spawn_thread(name(hook), attend, move || there.of(hook).stop())?;
        }
        let (this, here, there) = (Arc::clone(&after), Arc::clone(&lanes), Arc::clone(&lanes));
        let attend = move || {
            this.attend_notices(Hook::OnHeld, &here.held);
            Ok(())
        };
        stages.spawn_thread(name(Hook::OnHeld), attend, move || there.held.stop())?;
        let (this, here, there) = (Arc::clone(&after), Arc::clone(&lanes), Arc::clone(&lanes));
        let attend = move || {
            this.attend_notices(Hook::OnFailure, &here.failures);
            Ok(())
        };
        stages.spawn_thread(name(Hook::OnFailure), attend, move || there.failures.stop())?;
        let stop = stages.stop.clone();
        stages.spawn(async move {
            after.watch(&lanes, stop).await;
            Ok(())
        });
        Ok(())
    }

    async fn watch(&self, lanes: &Lanes, stop: CancellationToken) {
        let (mut head, mut state) = (self.desk.head.subscribe(), self.desk.state.subscribe());
        let mut unwell = self.desk.hooks.subscribe();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut held, mut failing) = (Told::default(), Told::default());
        let mut course = Course::default();
        loop {
            let now = state.borrow_and_update().clone();
            let published = head.borrow_and_update().as_ref().map(|published| published.head);
            course.go(&now, published, lanes);
            held.tell(&lanes.held, waiting(&now));
            let hooks = unwell.borrow_and_update().clone();
            failing.tell(&lanes.failures, failures(&now, &hooks, &self.stale()));
            tokio::select! {
                () = stop.cancelled() => return,
                changed = head.changed() => if changed.is_err() { return },
                changed = state.changed() => if changed.is_err() { return },
                changed = unwell.changed() => if changed.is_err() { return },
                _ = look.tick() => {}
            }
        }
    }

    /// Nodes that follow here and have fallen silent.
    fn stale(&self) -> Vec<Label> {
        let now = Instant::now();
        let silent = |follower: &crate::bus::Follower| !follower.is_live(now);
        let followers = self.desk.followers().into_iter();
        followers.filter(silent).map(|follower| follower.hello.label).collect()
    }

    fn attend_commits(&self, hook: Hook, lane: &Lane<Oid>) {
        let mark = Mark::new(&self.state, hook);
        let last = mark.read();
        let schedule =
            Schedule::new(Backoff::default(), last.as_ref().map(|verdict| verdict.commit));
        let reason = std::cell::RefCell::new(String::new());
        let run = |run: &Run<Oid>, stop: &AtomicBool| {
            let report = self.run_for_commit(hook, run, stop);
            *reason.borrow_mut() = report.as_ref().err().cloned().unwrap_or_default();
            let Ok(report) = report else { return End::Retry };
            *reason.borrow_mut() = report.reason().unwrap_or_default();
            self.record(hook, Some(run.key), &report);
            report.outcome.end()
        };
        let concluded = |commit: &Oid, passed: bool| {
            let reason = reason.borrow().clone();
            let verdict = Verdict { commit: *commit, passed, reason };
            self.conclude(hook, &mark, &verdict);
        };
        lane.attend(schedule, run, concluded);
    }

    fn run_for_commit(
        &self,
        hook: Hook,
        run: &Run<Oid>,
        stop: &AtomicBool,
    ) -> Result<Report, String> {
        let store = &self.desk.store;
        if matches!(self.hooks.find(hook), Ok(None)) {
            return Ok(self.hooks.run(hook, &self.occasion(None, ""), stop));
        }
        // The commit that it was last run for may be of a history that is no more.
        let since = run.since.filter(|since| store.commit(*since).is_ok());
        let changes = store.diff(since, run.key).map_err(|error| error.to_string())?;
        let changes = Changes::of(store.spool(), &changes).map_err(|error| error.to_string())?;
        let occasion = Occasion {
            previous: since,
            changes: Some(&changes),
            ..self.occasion(Some(run.key), "")
        };
        Ok(self.hooks.run(hook, &occasion, stop))
    }

    fn conclude(&self, hook: Hook, mark: &Mark, verdict: &Verdict) {
        if let Err(error) = mark.write(verdict) {
            tracing::warn!(feed = %self.desk.feed, %error, "a hook will run once more after a restart");
        }
        if hook == Hook::PostCommit || verdict.passed {
            return;
        }
        let Ok(commit) = self.desk.store.commit(verdict.commit) else { return };
        let said = format!("{hook}: {}", verdict.reason);
        let ack = Ack::new(commit.head, Reported::HookFailed, 0, Some(&said));
        // A full queue drops it: the run is in the history.
        self.desk.ask(Request::Report(ack));
    }

    fn attend_notices(&self, hook: Hook, lane: &Lane<Notice>) {
        let run = |run: &Run<Notice>, stop: &AtomicBool| {
            let commit = self.desk.head().map(|head| head.commit);
            let occasion = self.occasion(commit, &run.key.reason);
            let report = self.hooks.run(hook, &occasion, stop);
            self.record(hook, commit, &report);
            report.outcome.end()
        };
        lane.attend(Schedule::new(Backoff::default(), None), run, |_, _| {});
    }

    fn occasion<'a>(&'a self, commit: Option<Oid>, reason: &'a str) -> Occasion<'a> {
        Occasion {
            dir: self.dir.as_deref().unwrap_or(&self.state),
            feed: &self.desk.feed,
            node: &self.label,
            region: self.region.as_ref().filter(|_| !self.desk.state.borrow().primary),
            commit,
            previous: None,
            changes: None,
            reason,
        }
    }

    /// In the history, and on the desk while it is not well.
    fn record(&self, hook: Hook, commit: Option<Oid>, report: &Report) {
        let reason = report.reason();
        if matches!(report.outcome, Outcome::Stopped) {
            return;
        }
        let is_news = self.desk.hooks.send_if_modified(|unwell| match &reason {
            None => unwell.remove(hook.name()).is_some(),
            Some(reason) => unwell.insert(hook.name(), reason.clone()).as_ref() != Some(reason),
        });
        if let (true, Some(reason)) = (is_news, &reason) {
            let commit = commit.map(tracing::field::display);
            tracing::warn!(feed = %self.desk.feed, %hook, commit, "{reason}");
        }
        if let Some(run) = hook_run(&self.desk.feed, hook, commit, report)
            && let Err(error) = self.ledger.add_run(&run)
        {
            tracing::warn!(feed = %self.desk.feed, %error, "a run is not recorded");
        }
    }
}

impl Lanes {
    fn of(&self, hook: Hook) -> &Lane<Oid> {
        if hook == Hook::PostCommit { &self.published } else { &self.placed }
    }

    fn post(&self, primary: bool) -> &Lane<Oid> {
        if primary { &self.published } else { &self.placed }
    }
}

/// The commits that post-hooks are run for: those published while the feed is owned here, those put
/// in place while it is mirrored. What the other role has left is no news to the new one.
#[derive(Default)]
struct Course {
    primary: Option<bool>,
    newest: Option<Head>,
}

impl Course {
    fn go(&mut self, now: &State, published: Option<Head>, lanes: &Lanes) {
        // No stage has said yet what it is.
        if now.state.is_empty() {
            return;
        }
        let lane = lanes.post(now.primary);
        let changed = self.primary.replace(now.primary).is_some_and(|before| before != now.primary);
        if let Some(head) = self.newest.filter(|_| changed) {
            lane.know(head.commit);
        }
        let newer = if now.primary { published } else { now.have };
        if let Some(head) = newer.filter(|_| newer != self.newest) {
            lane.want(head.commit);
        }
        self.newest = newer.or(self.newest);
    }
}

/// A hook's run as the history has it; none when nothing ran.
fn hook_run(feed: &FeedName, hook: Hook, commit: Option<Oid>, report: &Report) -> Option<NewRun> {
    let outcome = match &report.outcome {
        Outcome::Absent | Outcome::Stopped | Outcome::Refused(_) => return None,
        Outcome::Passed => ledger::Outcome::Ok,
        Outcome::Vetoed { .. } => ledger::Outcome::Refused,
        _ => ledger::Outcome::Failed,
    };
    let mut run = NewRun::new(feed.clone(), ledger::Kind::Hook, sys::now() - report.took);
    run.took = report.took;
    run.commit = commit;
    run.outcome = outcome;
    let said = report.reason().unwrap_or_else(|| report.output.text.clone());
    run.detail = Some(format!("{hook}: {}", said.trim()));
    Some(run)
}

/// What is so, by a name that stays the same while it is so, with what it says.
type Facts = BTreeMap<String, String>;

/// What waits for somebody's decision.
fn waiting(state: &State) -> Facts {
    let held = state.held.iter().filter(|held| held.decision);
    let one = |held: &crate::bus::Held| {
        (held.path.to_text().into_owned(), format!("{}: {}", held.path, held.reason))
    };
    match &state.deletions {
        None => held.map(one).collect(),
        Some(list) => {
            let text = format!("the deletion of {} files: list {}", list.files, list.id);
            let others = held.filter(|held| !held.reason.starts_with("its deletion waits"));
            others.map(one).chain([(format!("deletions {}", list.id), text)]).collect()
        }
    }
}

/// What fails and does not mend itself.
fn failures(state: &State, hooks: &BTreeMap<&'static str, String>, stale: &[Label]) -> Facts {
    let mut facts = Facts::new();
    let stopped = ["stopped", "failing", "refused", "full"].contains(&state.state);
    let detail = state.detail.clone().or_else(|| state.last_error.clone());
    if stopped {
        let text = detail.unwrap_or_default();
        facts.insert(state.state.to_owned(), format!("the feed is {}: {text}", state.state));
    } else if let Some(error) = &state.last_error {
        facts.insert("failing".to_owned(), error.clone());
    }
    let silent = |heard: Instant| heard.elapsed() > SILENCE;
    if !state.primary && state.heartbeat.is_some_and(silent) {
        facts.insert("upstream".to_owned(), "the upstream is not heard".to_owned());
    }
    for node in stale {
        facts.insert(format!("node {node}"), format!("the node {node} is not heard"));
    }
    // Its own failure is no reason to run it again.
    for (hook, reason) in hooks.iter().filter(|(hook, _)| **hook != Hook::OnFailure.name()) {
        facts.insert(format!("hook {hook}"), format!("the hook {hook}: {reason}"));
    }
    facts
}

/// What was told so far.
#[derive(Default)]
struct Told {
    facts: Facts,
    number: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    None,
    /// Nothing is so any more.
    Over,
    Begun(Notice),
}

impl Told {
    /// Tells what is new; when nothing is so any more, the same again is new.
    fn tell(&mut self, lane: &Lane<Notice>, now: Facts) {
        match self.news(now) {
            News::None => {}
            News::Over => lane.clear(),
            News::Begun(notice) => lane.want(notice),
        }
    }

    fn news(&mut self, now: Facts) -> News {
        let before = std::mem::replace(&mut self.facts, now);
        if self.facts.is_empty() {
            return if before.is_empty() { News::None } else { News::Over };
        }
        let new = self.facts.iter().filter(|(name, _)| !before.contains_key(*name));
        let reasons: Vec<&str> = new.map(|(_, reason)| reason.as_str()).collect();
        if reasons.is_empty() {
            return News::None;
        }
        self.number += 1;
        News::Begun(Notice { number: self.number, reason: reasons.join("; ") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(names: &[&str]) -> Facts {
        names.iter().map(|name| ((*name).to_owned(), format!("{name} is so"))).collect()
    }

    #[test]
    fn each_fact_is_told_once_and_again_when_it_comes_back() {
        let mut told = Told::default();
        let begun = |number, reason: &str| {
            News::Begun(Notice { number, reason: format!("{reason} is so") })
        };
        assert_eq!(told.news(facts(&[])), News::None);
        assert_eq!(told.news(facts(&["a"])), begun(1, "a"));
        assert_eq!(told.news(facts(&["a"])), News::None);
        assert_eq!(told.news(facts(&["a", "b"])), begun(2, "b"));
        assert_eq!(told.news(facts(&["b"])), News::None);
        assert_eq!(told.news(facts(&["a", "b"])), begun(3, "a"));
        assert_eq!(told.news(facts(&[])), News::Over);
        assert_eq!(told.news(facts(&["a"])), begun(4, "a"));
    }

    #[test]
    fn what_fails_is_named_by_what_it_is_and_not_by_its_text() {
        let mut state = State { primary: true, state: "failing", ..State::default() };
        state.last_error = Some("disk full: 3 bytes".to_owned());
        let first = failures(&state, &BTreeMap::new(), &[]);
        state.last_error = Some("disk full: 4 bytes".to_owned());
        let second = failures(&state, &BTreeMap::new(), &["eu".parse().unwrap()]);
        assert!(first.keys().all(|name| second.contains_key(name)));
        assert!(second.contains_key("node eu"));
        let hooks =
            BTreeMap::from([("on-failure", "x".to_owned()), ("post-commit", "y".to_owned())]);
        let idle = State { primary: true, state: "idle", ..State::default() };
        assert_eq!(failures(&idle, &hooks, &[]).keys().collect::<Vec<_>>(), ["hook post-commit"]);
    }
}
