//! What is done for one feed, and when.
//!
//! After each version: folding, and removing what it pushed out of `keep`, at most a fifth of
//! the time. All the while: scrubbing, a file at a time, slowly enough that nobody notices. When
//! something is found damaged or is reported so: repair.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use super::{
    Feed,
    growth::Growth,
    pace::{Pace, RETRY},
    repair,
};
use crate::{
    bus::{Care, Chores, FsckReport, GcReport},
    disk,
    ledger::{Decisions, decisions},
    model::{Head, Keep, Oid, Retention, Subset},
    store::{self, Findings, Going, Part},
    sys,
};

/// What the scrub reads in a second: 4 MB, or 350 GB a day.
const SCRUB_RATE: u64 = 4 << 20;
/// How long it rests between two rounds, and before the first.
const SCRUB_REST: Duration = Duration::from_secs(3600);
/// Lines of a report.
const NAMED: usize = 200;

/// What a collection goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Goal {
    head: Head,
    /// What lies in the directory: until that is the head, the version before is needed too.
    have: Option<Head>,
    /// Only the objects of the feed's part are kept.
    is_part: bool,
}

/// A feed with what upkeep remembers of it.
pub(super) struct Tended {
    pub(super) feed: Feed,
    decisions: Arc<Decisions>,
    growth: Growth,
    chores: Chores,
    /// When the next collection is due.
    pace: Pace<Goal>,
    /// What is left of this round of the scrub, and when it goes on.
    scrub: VecDeque<Part>,
    scrub_from: Instant,
    /// The store's alarms that were heard.
    alarms: u64,
    /// When something damaged is to be repaired.
    repair_from: Option<Instant>,
}

impl Tended {
    pub(super) fn new(feed: Feed, decisions: Arc<Decisions>) -> Self {
        let growth = Growth::read(&feed.state.join("growth"));
        let now = Instant::now();
        Tended {
            feed,
            decisions,
            growth,
            chores: Chores::default(),
            pace: Pace::new(now),
            scrub: VecDeque::new(),
            scrub_from: now + SCRUB_REST,
            alarms: 0,
            repair_from: None,
        }
    }

    /// Does what is due.
    pub(super) fn tend(&mut self, now: Instant, scheduled: bool, going: Going<'_>) {
        self.feed.desk.store.free_replaced();
        let chores = *self.feed.desk.chores.borrow();
        let done = self.do_what_is_due(now, scheduled, chores, going);
        let broken_off = done.as_ref().is_err_and(is_broken_off);
        self.feed.desk.care.send_if_modified(|care| {
            let before = (care.done, care.running.is_some(), care.last_error.clone());
            care.running = None;
            if !broken_off {
                care.done = chores;
                care.last_error = done.as_ref().err().map(ToString::to_string);
            }
            before != (care.done, false, care.last_error.clone())
        });
        if let (Err(error), false) = (&done, broken_off) {
            tracing::error!(feed = %self.feed.desk.feed, %error, "upkeep");
            self.repair_from.get_or_insert(now + RETRY);
        }
        self.chores = chores;
    }

    fn do_what_is_due(
        &mut self,
        now: Instant,
        scheduled: bool,
        chores: Chores,
        going: Going<'_>,
    ) -> store::Result<()> {
        let head = self.feed.desk.store.head()?;
        if scheduled {
            self.check_everything(going)?;
            if !self.is_shallow() {
                self.feed.desk.store.fold_all(going)?;
            }
        }
        // First, since nothing is collected from a history that cannot be read.
        if chores.fsck != self.chores.fsck {
            self.check_everything(going)?;
        }
        let asked = scheduled || chores.gc != self.chores.gc;
        let goal = head.map(|head| {
            let have = self.feed.desk.state.borrow().have;
            Goal { head, have, is_part: self.is_part_in_place(head, have) }
        });
        if asked || self.pace.is_due(now, goal.as_ref()) {
            let done = self.collect(goal, going);
            if done.as_ref().is_err_and(|error| !is_broken_off(error)) {
                self.pace.failed(now);
            }
            done?;
        }
        let alarms = self.feed.desk.store.alarms();
        if alarms != self.alarms || self.repair_from.is_some_and(|at| at <= now) {
            let new = alarms - std::mem::replace(&mut self.alarms, alarms);
            self.feed.desk.care.send_modify(|care| care.found += new);
            return self.mend(going).map(drop);
        }
        if now >= self.scrub_from { self.scrub_a_little(now, going) } else { Ok(()) }
    }

    fn say(&self, running: &'static str) {
        self.feed.desk.care.send_modify(|care| care.running = Some(running));
    }

    /// Folds and collects.
    fn collect(&mut self, goal: Option<Goal>, going: Going<'_>) -> store::Result<()> {
        let (began, store) = (Instant::now(), &self.feed.desk.store);
        self.say("gc");
        let protected = self.protected();
        let shallow = self.is_shallow();
        let keep = if shallow { Retention::HEAD } else { self.feed.keep };
        let all = Subset::all();
        let part = if goal.is_some_and(|goal| goal.is_part) { &self.feed.part } else { &all };
        let collected = store.collect(&keep, part, &protected, going)?;
        // What history is given up for must have been seen before it is gone.
        // A version that is still in use, as in the directory, needs its trees as well.
        let alone = |head: &Head| protected.iter().all(|commit| *commit == head.commit);
        let head = goal.map(|goal| goal.head);
        let folded = match head.filter(|_| shallow) {
            Some(head) if collected.put_off == 0 && alone(&head) => store.cut_off(&head, going)?,
            Some(_) => None,
            None => store.fold(going)?,
        };
        if collected.removed > 0 {
            let (objects, bytes) = (collected.removed, collected.removed_bytes);
            tracing::info!(feed = %self.feed.desk.feed, objects, bytes, "removed what no kept version needs");
        }
        let at = sys::now();
        let packs: Vec<u64> = store.pack_sizes()?;
        let bytes = (packs.iter().sum::<u64>(), collected.kept_bytes);
        let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Err(error) = self.growth.note(seconds, bytes.0 + bytes.1) {
            tracing::warn!(feed = %self.feed.desk.feed, %error, "the growth is not written down");
        }
        let growth = self.growth.per_day(seconds, bytes.0 + bytes.1);
        let free = sys::space(&self.feed.state).map_or(0, |space| space.free);
        self.feed.desk.care.send_modify(|care| {
            care.gc = Some(GcReport { at, collected, folded });
            care.folds += u64::from(folded.is_some());
            (care.bytes, care.packs) = (bytes, packs.len() as u64);
            (care.growth_per_day, care.free) = (growth, free);
        });
        self.pace.collected(Instant::now(), goal, began.elapsed(), collected.put_off == 0);
        Ok(())
    }

    /// Commits whose content stays whatever `keep` says: pins, and what followers are at
    /// or want, and what a rollback or a demotion under way goes by.
    fn protected(&self) -> Vec<Oid> {
        let decided = self.decisions.feed(&self.feed.desk.feed);
        let pins = decided.pins.iter().map(|pin| pin.commit);
        let rollback = decided.rollback.iter().flat_map(|mark| [mark.target, mark.head]);
        let followers = self.feed.desk.followers();
        let theirs = followers.iter().flat_map(|follower| {
            [follower.want, follower.hello.have].into_iter().flatten().map(|head| head.commit)
        });
        let mut all: Vec<Oid> =
            pins.chain(rollback).chain(decided.demoted_at).chain(theirs).collect();
        // A mirror's directory may be behind its history: by a pin, or by `checkout_at`.
        all.extend(self.feed.desk.store.checked_out().ok().flatten());
        // A placing that was cut off is finished by the next start.
        let begun = disk::unfinished(&self.feed.state.join("journal")).ok().flatten();
        all.extend(begun.into_iter().flat_map(|(from, to, _)| from.into_iter().chain([to])));
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Ownership is state: promotion and demotion change it while this runs.
    fn is_primary(&self) -> bool {
        self.decisions.feed(&self.feed.desk.feed).role == Some(decisions::Role::Primary)
    }

    /// Whether all that lies in a mirror's directory is its part of the feed at this head: before,
    /// objects outside of the part are needed to tell what is to be removed there.
    fn is_part_in_place(&self, head: Head, have: Option<Head>) -> bool {
        !self.feed.part.is_all() && !self.is_primary() && have == Some(head)
    }

    fn is_shallow(&self) -> bool {
        self.feed.shallow && !self.is_primary()
    }

    /// What must be here: at a mirror only the head's content ever came for sure, and of it a part.
    fn check_history(&self, going: Going<'_>) -> store::Result<Findings> {
        let store = &self.feed.desk.store;
        if self.is_primary() {
            return store.check_history(&self.feed.keep, &Subset::all(), going);
        }
        store.check_history(&Retention::HEAD, &self.feed.part, going)
    }

    fn check_everything(&mut self, going: Going<'_>) -> store::Result<()> {
        self.say("fsck");
        let store = &self.feed.desk.store;
        let mut bytes = 0;
        let mut damaged = Vec::new();
        for (part, size) in store.parts()? {
            bytes += size;
            if let Some(why) = store.check_part(&part, going)? {
                damaged.push((part, why));
            }
        }
        let mut found = self.check_history(going)?;
        found.damaged = damaged;
        // What was put away when it was to be used may be missing still, or be back already.
        let alarms = store.alarms();
        let alarmed = alarms - std::mem::replace(&mut self.alarms, alarms);
        let missing = (found.objects.len() as u64).saturating_sub(alarmed);
        let count = (found.damaged.len() + found.history.len()) as u64 + missing + alarmed;
        self.feed.desk.care.send_modify(|care| care.found += count);
        let lines = describe(&found);
        let broken = self.put_away_and_mend(&found, going)?;
        let differing = self.compare_checkout(going)?;
        let at = sys::now();
        let commits = found.commits;
        let report = FsckReport { at, bytes, commits, found: lines, broken, differing };
        self.feed.desk.care.send_modify(|care| care.fsck = Some(report));
        Ok(())
    }

    fn put_away_and_mend(
        &mut self,
        found: &Findings,
        going: Going<'_>,
    ) -> store::Result<Vec<String>> {
        for (part, why) in &found.damaged {
            tracing::error!(feed = %self.feed.desk.feed, "damaged: {}: {why}", name(part));
            self.feed.desk.store.put_away(part)?;
        }
        if found.is_sound() {
            self.feed.desk.care.send_modify(|care| care.broken.clear());
            return Ok(Vec::new());
        }
        self.mend(going)
    }

    /// Brings back what is missing; returns what stays so.
    fn mend(&mut self, going: Going<'_>) -> store::Result<Vec<String>> {
        self.say("repair");
        self.repair_from = None;
        let missing = self.check_history(going)?;
        if !missing.is_sound() {
            repair::repair(&self.feed, self.is_primary(), &missing);
        }
        let rest = self.check_history(going)?;
        if !rest.is_sound() {
            self.repair_from = Some(Instant::now() + RETRY);
        }
        let broken = describe(&rest);
        let count = rest.count() as u64;
        self.feed.desk.care.send_modify(|care: &mut Care| {
            care.repaired = care.found.saturating_sub(count);
            care.broken.clone_from(&broken);
        });
        Ok(broken)
    }

    /// Checks files until it has read for long enough.
    fn scrub_a_little(&mut self, now: Instant, going: Going<'_>) -> store::Result<()> {
        let store = &self.feed.desk.store;
        if self.scrub.is_empty() {
            self.scrub = store.parts()?.into_iter().map(|(part, _)| part).collect();
        }
        let Some(part) = self.scrub.pop_front() else {
            self.scrub_from = now + SCRUB_REST;
            return Ok(());
        };
        let why = store.check_part(&part, going)?;
        let rest = if self.scrub.is_empty() { SCRUB_REST } else { Duration::ZERO };
        let size = store.part_size(&part);
        self.scrub_from = now + rest + Duration::from_secs(size / SCRUB_RATE);
        let Some(why) = why else { return Ok(()) };
        self.feed.desk.care.send_modify(|care| care.found += 1);
        let found = Findings { damaged: vec![(part, why)], ..Findings::default() };
        self.put_away_and_mend(&found, going).map(drop)
    }

    /// Files of the deployment directory that are not as the commit says that lies there.
    fn compare_checkout(&self, going: Going<'_>) -> store::Result<Vec<String>> {
        let store = &self.feed.desk.store;
        let is_primary = self.is_primary();
        let there =
            if is_primary { store.head()?.map(|head| head.commit) } else { store.checked_out()? };
        let (Some(root), Some(commit)) = (&self.feed.root, there) else { return Ok(Vec::new()) };
        let (root, mut differing) = (root.get(), Vec::new());
        let metadata = if is_primary { self.feed.metadata } else { Keep::ALL };
        store.walk(commit, &mut |path, entry| {
            let is_here = is_primary || self.feed.part.holds(&path, entry.kind.is_dir());
            if !is_here || !going() || differing.len() >= NAMED {
                return;
            }
            let content = |blob| repair::content(store, blob);
            match disk::verify(&root, &path, &entry, &metadata, &content) {
                Ok(None) => {}
                Ok(Some(mismatch)) => differing.push(format!("{path}: {mismatch}")),
                Err(error) => differing.push(format!("{path}: {error}")),
            }
        })?;
        Ok(differing)
    }
}

fn describe(found: &Findings) -> Vec<String> {
    let damaged = found.damaged.iter().map(|(part, why)| format!("{}: {why}", name(part)));
    let history = found.history.iter().map(|id| format!("git object {id}: it is not here"));
    let missing = |(id, size): &_| format!("object {id}: its {size} bytes are not here");
    let objects = found.objects.iter().map(missing);
    damaged.chain(history).chain(objects).take(NAMED).collect()
}

fn name(part: &Part) -> String {
    match part {
        Part::Pack(path) => path.display().to_string(),
        Part::Object(id) => format!("object {id}"),
    }
}

/// Whether it ended because the daemon stops.
fn is_broken_off(error: &store::Error) -> bool {
    matches!(error, store::Error::Interrupted)
}
