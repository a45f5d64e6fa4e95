//! What others have changed in a mirrored directory: found by events and by scans, put right or told.
//!
//! Only the feed's own paths count: what its profile or `.depsyncignore` leaves out is the
//! application server's business, and files that the feed does not have stay and are counted. What
//! makes way goes aside. A path that somebody changes again and again is only told of until the feed
//! itself changes it. Never a reason to stop.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Error, adopt,
    checkout::Checkout,
    verify::{Rounds, Step, Whole},
};
use crate::{
    disk::{self, Event, Mismatch, Placing, Root, Watcher},
    model::{Change, Cron, Entry, Kind, Oid, RelPath},
    sys,
};

/// What is done about drift.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drift {
    /// The feed's version is put back; theirs goes aside.
    Repair,
    /// It is told of and stays.
    Report,
}

/// Paths noticed and not yet looked at, and those that are looked at one by one: beyond it all are.
const MAX_NOTICED: usize = 4_096;
/// How long it must be quiet before it is looked, and how long that is put off at most.
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(3);
/// How often everything is looked at, by type, mode and time.
const SCAN: Duration = Duration::from_secs(600);
/// So many repairs of a path within this time, and it is only told of.
const REPAIRS: usize = 3;
const WINDOW: Duration = Duration::from_secs(600);
/// Paths whose repairs are remembered, and that are named.
const MAX_PATHS: usize = 1_000;
/// Up to here a file that an event names is compared by its bytes.
const MAX_COMPARED: u64 = 1 << 20;

/// What is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope {
    All,
    Paths(BTreeSet<RelPath>),
    /// By their bytes, those behind this path.
    Content(Option<RelPath>),
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) repaired: Vec<RelPath>,
    /// What stays as it is, and why it is told.
    pub(super) told: Vec<(RelPath, String)>,
    /// Of files that are not the feed's; known after a scan of everything.
    pub(super) extra: Option<u64>,
    pub(super) set_aside: Vec<RelPath>,
    /// How far a verification by content is.
    pub(super) step: Option<Step>,
}

/// Paths repaired lately, and the commit that was in place then.
#[derive(Debug, Default)]
pub(super) struct Repairs(Mutex<BTreeMap<RelPath, Vec<Instant>>>);

impl Repairs {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelPath, Vec<Instant>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a path may be repaired once more, which is then counted.
    fn allow(&self, path: &RelPath, now: Instant) -> bool {
        let mut known = self.lock();
        if known.len() >= MAX_PATHS {
            known.retain(|_, at| at.iter().any(|at| now.duration_since(*at) < WINDOW));
        }
        let at = known.entry(path.clone()).or_default();
        if at.len() >= REPAIRS && at.iter().any(|at| now.duration_since(*at) < WINDOW) {
            return false;
        }
        at.retain(|at| now.duration_since(*at) < WINDOW);
        at.push(now);
        true
    }

    /// The feed has changed these itself.
    pub(super) fn forget(&self, changes: &[Change]) {
        let mut known = self.lock();
        if !known.is_empty() {
            for change in changes {
                known.remove(&change.path);
            }
        }
    }
}

/// A path of the feed, what it should be, and how it differs.
pub(super) type Drifted = (RelPath, Entry, Mismatch);

/// Watches a directory and says when to look at what.
pub(super) struct Watch {
    pub(super) watcher: Option<Arc<Watcher>>,
    events: mpsc::Receiver<Event>,
    noticed: BTreeSet<RelPath>,
    all: bool,
    since: Option<Instant>,
    last: Instant,
    next_scan: Instant,
    rounds: Rounds,
}

impl Watch {
    /// Begins with a look at everything, which sets the watches; verifies all at `verify_at`.
    pub(super) fn start(root: &Root, verify_at: Option<Cron>) -> Self {
        let (tell, events) = mpsc::channel(MAX_NOTICED);
        // An event that finds no room is followed by a scan: the channel is full then.
        let watcher = Watcher::new(root, move |event| drop(tell.try_send(event)));
        if let Err(error) = &watcher {
            tracing::warn!(%error, "drift is found by scans only");
        }
        let now = Instant::now();
        Watch {
            watcher: watcher.ok().map(Arc::new),
            events,
            noticed: BTreeSet::new(),
            all: true,
            since: Some(now),
            last: now,
            next_scan: now + SCAN,
            rounds: Rounds::new(verify_at, now, sys::now()),
        }
    }

    /// Takes note of a verification's step; a scheduled round that is over with it comes back.
    pub(super) fn verified(&mut self, step: Option<Step>) -> Option<Whole> {
        self.rounds.done(Instant::now(), step)
    }

    /// Everything is to be looked at.
    pub(super) fn look_at_all(&mut self) {
        self.all = true;
        self.since.get_or_insert_with(Instant::now);
    }

    /// Waits until something is to be looked at. Nothing is lost when this is dropped.
    pub(super) async fn due(&mut self) -> Scope {
        loop {
            let at = self.quiet().unwrap_or(self.next_scan).min(self.next_scan);
            let at = at.min(self.rounds.due(Instant::now(), sys::now()));
            tokio::select! {
                Some(event) = self.events.recv() => self.take(event),
                () = tokio::time::sleep_until(at.into()) => return self.scope(),
            }
        }
    }

    /// When it has been quiet for long enough to look at what was noticed.
    fn quiet(&self) -> Option<Instant> {
        self.since.map(|since| (self.last + QUIET).min(since + PATIENCE))
    }

    fn take(&mut self, event: Event) {
        let now = Instant::now();
        self.last = now;
        self.since.get_or_insert(now);
        // A full queue has lost some.
        self.all |= self.events.len() + 1 >= MAX_NOTICED || self.noticed.len() >= MAX_NOTICED;
        match event {
            Event::Created(_, true) | Event::MovedIn(_, true) | Event::Rescan | Event::RootGone => {
                self.all = true;
            }
            Event::Written(path)
            | Event::Created(path, false)
            | Event::MovedIn(path, false)
            | Event::Attributes(path)
            | Event::MovedOut(path)
            | Event::Removed(path) => {
                if !self.all {
                    self.noticed.insert(path);
                }
            }
        }
    }

    fn scope(&mut self) -> Scope {
        let now = Instant::now();
        let has_news = now >= self.next_scan || self.quiet().is_some_and(|at| now >= at);
        if !has_news && self.rounds.begin(now, sys::now()) {
            return Scope::Content(self.rounds.after());
        }
        if !has_news {
            return Scope::Paths(BTreeSet::new());
        }
        self.since = None;
        let noticed = std::mem::take(&mut self.noticed);
        if std::mem::take(&mut self.all) || now >= self.next_scan {
            self.next_scan = now + SCAN;
            return Scope::All;
        }
        Scope::Paths(noticed)
    }
}

impl Checkout {
    /// Looks at what others may have changed, and does about it what the policy says.
    pub(super) fn check(
        &self,
        scope: &Scope,
        profile: &str,
        watcher: Option<&Watcher>,
    ) -> Result<Findings, Error> {
        let Some(commit) = self.store.checked_out()? else { return Ok(Findings::default()) };
        if self.root.id_at_path()? != Some(self.root.id()?) || self.is_partial() {
            return Ok(Findings::default());
        }
        let mut findings = Findings::default();
        let mut drifted = match scope {
            Scope::Paths(paths) => self.look_at(commit, paths)?,
            Scope::Content(after) => {
                let (found, step) = self.read_on(commit, after.as_ref())?;
                findings.step = Some(step);
                Some(found)
            }
            Scope::All => None,
        };
        if drifted.is_none() {
            let (found, extra) = self.look_at_all(commit, profile, watcher)?;
            findings.extra = Some(extra);
            drifted = Some(found);
        }
        let drifted = drifted.unwrap_or_default();
        if !drifted.is_empty() {
            self.deal_with(commit, profile, drifted, &mut findings)?;
        }
        Ok(findings)
    }

    /// None: a folder is concerned, so that all must be looked at.
    fn look_at(
        &self,
        commit: Oid,
        paths: &BTreeSet<RelPath>,
    ) -> Result<Option<Vec<Drifted>>, Error> {
        let mut drifted = Vec::new();
        for path in paths {
            let Some(entry) = self.store.entry(commit, path)? else { continue };
            if !self.subset.holds(path, entry.kind.is_dir()) {
                continue;
            }
            let small = self.root.stat(path).ok().flatten();
            let small = small.is_none_or(|stat| stat.size <= MAX_COMPARED);
            let source = |blob| self.source(blob);
            let found = if small {
                disk::verify(&self.root, path, &entry, &self.keep, &source)
            } else {
                disk::verify_metadata(&self.root, path, &entry, &self.keep)
            };
            match found {
                Ok(None) => {}
                Ok(Some(Mismatch::Missing | Mismatch::Type)) if entry.kind.is_dir() => {
                    return Ok(None);
                }
                Ok(Some(mismatch)) => drifted.push((path.clone(), entry, mismatch)),
                // It goes on being changed: there will be another event.
                Err(error) if error.is_gone() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(drifted))
    }

    /// What differs by type, mode or time, and how many files are not the feed's. Sets the watches.
    fn look_at_all(
        &self,
        commit: Oid,
        profile: &str,
        watcher: Option<&Watcher>,
    ) -> Result<(Vec<Drifted>, u64), Error> {
        let mut feed = BTreeMap::new();
        self.store.walk(commit, &mut |path, entry| {
            if self.subset.holds(&path, entry.kind.is_dir()) {
                feed.insert(path, entry);
            }
        })?;
        let names = adopt::rules(self, &feed, profile)?;
        let mut extra = 0;
        let mut folders = vec![RelPath::root()];
        while let Some(folder) = folders.pop() {
            if let Some(watcher) = watcher
                && let Err(error) = watcher.watch(&folder)
            {
                tracing::debug!(%error, "drift there is found by scans");
            }
            let Ok(listing) = self.root.list(&folder) else { continue };
            for (name, stat) in listing {
                let Ok(path) = folder.join(&name) else { continue }; // ours or git's
                if disk::is_temporary(&name) {
                    continue;
                }
                let is_dir = stat.kind == disk::FileKind::Dir;
                let is_ours = feed.contains_key(&path);
                if !is_ours && names.left_out_of_folder(&path, is_dir).is_some() {
                    continue;
                }
                extra += u64::from(!is_ours && !is_dir);
                if is_dir {
                    folders.push(path);
                }
            }
        }
        let mut drifted = Vec::new();
        let doubted = self.doubted();
        let source = |blob| self.source(blob);
        for (path, entry) in feed {
            let found = if doubted.contains(&path) {
                disk::verify(&self.root, &path, &entry, &self.keep, &source)
            } else {
                disk::verify_metadata(&self.root, &path, &entry, &self.keep)
            };
            match found {
                Ok(Some(mismatch)) => drifted.push((path, entry, mismatch)),
                Ok(None) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok((drifted, extra))
    }

    fn deal_with(
        &self,
        commit: Oid,
        profile: &str,
        drifted: Vec<(RelPath, Entry, Mismatch)>,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let names = self.left_out_here(commit, profile)?;
        let mut changes = Vec::new();
        let now = Instant::now();
        for (path, entry, mismatch) in drifted {
            if names.left_out_of_folder(&path, entry.kind.is_dir()).is_some() {
                continue;
            }
            let repair = self.drift == Drift::Repair;
            if repair && self.repairs.allow(&path, now) {
                changes.push(Change { path, before: Some(entry.clone()), after: Some(entry) });
                continue;
            }
            let why = if repair {
                format!(
                    "{mismatch}; it was put right {REPAIRS} times in ten minutes and is left alone now"
                )
            } else {
                mismatch.to_string()
            };
            findings.told.push((path, why));
        }
        if changes.is_empty() {
            return Ok(());
        }
        let placed = disk::place(&Placing {
            root: &self.root,
            journal: &self.journal(),
            aside: &self.aside(),
            from: Some(commit),
            to: commit,
            along: None,
            changes: &changes,
            keep: self.keep,
            source: &|blob| self.source(blob),
            holds: None,
        })?;
        let faulty: BTreeSet<_> = placed.faults.iter().map(|(path, _)| path.clone()).collect();
        let right = changes.into_iter().map(|change| change.path);
        findings.repaired.extend(right.filter(|path| !faulty.contains(path)));
        findings.told.extend(placed.faults);
        findings.set_aside = placed.set_aside;
        Ok(())
    }

    /// What the feed leaves out, for a few paths: only its ignore file is read.
    fn left_out_here(&self, commit: Oid, profile: &str) -> Result<crate::model::Names, Error> {
        let path = RelPath::parse(crate::model::names::IGNORE_FILE).expect("a plain name");
        let entry = self.store.entry(commit, &path)?;
        let file = entry.filter(|entry| matches!(entry.kind, Kind::File { .. }));
        adopt::rules(self, &file.map(|entry| (path, entry)).into_iter().collect(), profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_put_right_three_times_and_then_left_until_the_feed_changes_it() {
        let repairs = Repairs::default();
        let path = RelPath::parse(b"a").unwrap();
        let now = Instant::now();
        for _ in 0..REPAIRS {
            assert!(repairs.allow(&path, now));
        }
        assert!(!repairs.allow(&path, now + WINDOW / 2));
        assert!(repairs.allow(&RelPath::parse(b"b").unwrap(), now));
        repairs.forget(&[Change { path: path.clone(), before: None, after: None }]);
        assert!(repairs.allow(&path, now + WINDOW / 2));
    }
}
