//! The primary's side: the real settling, batching and guarding over a folder that changes.
//!
//! What is simulated is the shell: files that are open for writing, reads that take their time and a
//! commit that is durable a while after it was begun.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::{Duration, Instant},
};

use depsync::{
    ledger::Fingerprint,
    model::{Head, Mtime, Oid, RelPath},
    origin::{
        Rules,
        batch::Batch,
        guard::{After, Answer, Guard, Load},
        settle::{Lane, Settle, Verdict},
    },
};

use crate::{
    history::{Content, History, Path, Tree},
    random::Random,
};

pub const MAX_FILES: usize = 240;
/// Files that are read at the same time.
const READERS: usize = 2;
/// How long a file must be quiet where nobody can say whether it is open.
pub const QUIET: Duration = Duration::from_secs(2);

thread_local! {
    static PATHS: OnceCell<Rc<Vec<RelPath>>> = const { OnceCell::new() };
}

fn paths() -> Rc<Vec<RelPath>> {
    let make = || {
        let name = |n: usize| RelPath::parse(format!("f{n}").as_bytes()).unwrap();
        Rc::new((0..MAX_FILES).map(name).collect())
    };
    PATHS.with(|paths| Rc::clone(paths.get_or_init(make)))
}

fn number(path: &RelPath) -> Path {
    std::str::from_utf8(&path.as_bytes()[1..]).unwrap().parse().unwrap()
}

fn blob(content: Content) -> Oid {
    let mut id = [0xb1; 20];
    id[..4].copy_from_slice(&content.to_be_bytes());
    Oid::from_bytes(id)
}

/// A file of the watched folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct File {
    pub content: Content,
    /// Somebody has it open for writing.
    pub open: bool,
}

/// The watched folder: it outlives the daemon.
#[derive(Default, Clone)]
pub struct Folder {
    pub files: BTreeMap<Path, File>,
    /// Leases are not to be had.
    pub no_leases: bool,
}

/// What is kept over a restart.
#[derive(Default, Clone)]
pub struct Kept {
    pub held: BTreeSet<Path>,
}

/// What a primary's shell is to do.
pub enum Task {
    /// A file is being read, and what its read ends with comes back after this time.
    Read { path: Path, saw: Option<File>, lasts: Duration },
    /// A commit is being made durable.
    Commit { head: Head, deleted: Vec<Path>, arrived: Vec<(Path, Content)>, lasts: Duration },
}

/// A primary that runs.
pub struct Primary {
    settle: Settle,
    batch: Batch,
    guard: Guard,
    paths: Rc<Vec<RelPath>>,
    /// What differs from the head, and since when; none: it is gone.
    staged: BTreeMap<Path, (Option<Content>, Instant)>,
    pub kept: Kept,
    brake: Option<(Instant, bool)>,
    reading: usize,
    committing: bool,
    /// What was read while a commit was under way.
    late: Vec<(Path, Option<File>)>,
    /// What was ready waited for this: a commit under way, a guard that weighed, an alarm.
    excused_until: Instant,
    /// Deletions that were published and that nobody approved, for the rule.
    published: Vec<(Instant, Path)>,
    peaks: Vec<(Instant, usize)>,
    approved: BTreeSet<Path>,
    rules: Rules,
}

struct Tops {
    any: bool,
}

impl After for Tops {
    fn has_files(&self, _: &RelPath) -> bool {
        self.any
    }
    fn sibling_has_files(&self, _: &RelPath) -> bool {
        false
    }
}

impl Primary {
    /// Begins with a scan of everything.
    pub fn start(now: Instant, folder: &Folder, kept: Kept, head: &Tree) -> Self {
        let rules = Rules::default();
        let mut primary = Primary {
            settle: Settle::new(QUIET),
            batch: Batch::new(),
            guard: Guard::new(rules, !kept.held.is_empty()),
            paths: paths(),
            staged: BTreeMap::new(),
            kept,
            brake: None,
            reading: 0,
            committing: false,
            late: Vec::new(),
            excused_until: now,
            published: Vec::new(),
            peaks: vec![(now, head.len())],
            approved: BTreeSet::new(),
            rules,
        };
        let all: BTreeSet<Path> = folder.files.keys().chain(head.keys()).copied().collect();
        for path in all {
            if folder.files.get(&path).map(|file| file.content) != head.get(&path).copied() {
                primary.settle.touch(&primary.paths[usize::from(path)], Lane::Scan);
            }
        }
        primary
    }

    pub fn touched(&mut self, path: Path) {
        self.settle.touch(&self.paths[usize::from(path)], Lane::Event);
    }

    /// A scan found it to be another one than the head has.
    pub fn found(&mut self, path: Path) {
        self.settle.touch(&self.paths[usize::from(path)], Lane::Scan);
    }

    /// A person lets the deletions that are held go.
    pub fn approve(&mut self, now: Instant) {
        for path in std::mem::take(&mut self.kept.held) {
            self.approved.insert(path);
            self.staged.insert(path, (None, now));
        }
        self.guard.nothing_held();
        self.brake = None;
        self.batch.added(now);
    }

    /// When there is something to do by the clock.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.committing {
            return None;
        }
        let look = if self.reading < READERS { self.settle.deadline(now) } else { None };
        let commit = self.commit_deadline(now);
        [look, commit].into_iter().flatten().min()
    }

    fn commit_deadline(&self, now: Instant) -> Option<Instant> {
        if self.staged.is_empty() {
            return None;
        }
        match self.brake {
            Some((until, true)) => Some(self.batch.deadline().map_or(until, |it| it.min(until))),
            Some((until, false)) => Some(until),
            None => Some(self.batch.deadline().unwrap_or(now)),
        }
    }

    /// Does what is due; `refused`: somebody is ahead of us, and nothing may be published.
    pub fn work(
        &mut self,
        now: Instant,
        (folder, head, epoch): (&Folder, Option<Head>, u64),
        refused: bool,
        (history, random): (&mut History, &mut Random),
        slow: u64,
    ) -> Vec<Task> {
        let mut tasks = Vec::new();
        if self.committing {
            return tasks; // one thread does both
        }
        while self.reading < READERS {
            let Some(look) = self.settle.next(now) else { break };
            let path = number(&look.path);
            let saw = folder.files.get(&path).copied();
            if let Some(File { content, open }) = saw {
                let seen = fingerprint(content, open);
                let busy = match folder.no_leases {
                    true if look.quiet == Some(seen) => None,
                    true => Some(Verdict::NoLease(seen)),
                    false => open.then_some(Verdict::Busy),
                };
                if let Some(verdict) = busy {
                    self.settle.judged(now, &look.path, verdict);
                    continue;
                }
            }
            self.reading += 1;
            let lasts = if saw.is_none() { Duration::ZERO } else { random.millis(0, slow) };
            tasks.push(Task::Read { path, saw, lasts });
        }
        if refused {
            // It is looked at again in a second.
            self.excused_until = now + Duration::from_secs(1);
        } else if self.commit_deadline(now).is_some_and(|at| at <= now) {
            tasks.extend(self.commit(now, head, epoch, (history, random), slow));
        }
        tasks
    }

    /// A read has ended.
    pub fn was_read(
        &mut self,
        now: Instant,
        path: Path,
        saw: Option<File>,
        folder: &Folder,
        head: &Tree,
    ) {
        if self.committing {
            self.late.push((path, saw));
            return;
        }
        self.reading -= 1;
        let name = self.paths[usize::from(path)].clone();
        if folder.files.get(&path).copied() != saw {
            self.settle.judged(now, &name, Verdict::Changed);
            return;
        }
        self.settle.judged(now, &name, Verdict::Settled);
        let content = saw.map(|file| file.content);
        if saw.is_some() {
            self.kept.held.remove(&path);
            if self.kept.held.is_empty() {
                self.guard.nothing_held();
            }
        }
        if head.get(&path).copied() == content
            || (content.is_none() && self.kept.held.contains(&path))
        {
            self.staged.remove(&path);
            return;
        }
        if self.staged.get(&path).is_some_and(|(staged, _)| *staged == content) {
            return;
        }
        self.staged.insert(path, (content, now));
        self.batch.added(now);
        if content.is_none() {
            self.guard.deleted(now);
        }
    }

    fn commit(
        &mut self,
        now: Instant,
        head: Option<Head>,
        epoch: u64,
        (history, random): (&mut History, &mut Random),
        slow: u64,
    ) -> Option<Task> {
        let before = history.tree(head);
        let gone = |staged: &BTreeMap<Path, (Option<Content>, Instant)>| -> Vec<Path> {
            staged.iter().filter(|(_, it)| it.0.is_none()).map(|(path, _)| *path).collect()
        };
        let lost: Vec<Path> =
            gone(&self.staged).into_iter().filter(|path| !self.approved.contains(path)).collect();
        let mut with_deletions = true;
        self.brake = None;
        if lost.is_empty() {
            self.guard.nothing_deleted();
        } else {
            match self.weigh(now, &before, &lost) {
                Answer::Pass => {}
                Answer::Wait(until) => {
                    assert!(until > now, "the guard would be asked for ever");
                    self.excused_until = until;
                    self.brake = Some((until, false));
                    return None;
                }
                Answer::Defer(until) => {
                    assert!(until > now, "the guard would be asked for ever");
                    self.brake = Some((until, true));
                    with_deletions = false;
                }
                Answer::Hold(files) => {
                    for path in files.iter().map(number) {
                        self.staged.remove(&path);
                        self.kept.held.insert(path);
                    }
                }
            }
        }
        self.batch.close(now);
        let mut tree = (*before).clone();
        let (mut deleted, mut arrived) = (Vec::new(), Vec::new());
        for (path, (content, since)) in std::mem::take(&mut self.staged) {
            match content {
                Some(content) => {
                    let limit = since.max(self.excused_until) + Duration::from_millis(250);
                    assert!(now <= limit, "f{path} was ready, and waited for {:?}", now - since);
                    arrived.push((path, content));
                    tree.insert(path, content);
                }
                None if with_deletions => {
                    deleted.push(path);
                    tree.remove(&path);
                }
                None => drop(self.staged.insert(path, (None, since))),
            }
        }
        if arrived.is_empty() && deleted.is_empty() {
            return None;
        }
        self.check_deletions(now, before.len(), &deleted);
        self.committing = true;
        let head = history.make(head, epoch, Rc::new(tree));
        Some(Task::Commit { head, deleted, arrived, lasts: random.millis(1, 5 + slow) })
    }

    fn weigh(&mut self, now: Instant, before: &Tree, lost: &[Path]) -> Answer {
        let paths = Rc::clone(&self.paths);
        let name = |path: &Path| &paths[usize::from(*path)];
        let puts =
            || self.staged.iter().filter_map(|(path, (content, _))| Some((path, (*content)?)));
        let new = puts().filter(|(path, _)| !before.contains_key(path)).count();
        let gone = self.staged.len() - puts().count() + self.kept.held.len();
        let left = before.len().saturating_sub(gone) + new;
        let load = Load {
            pending: lost.iter().map(|path| (name(path), blob(before[path]))).collect(),
            held: self.kept.held.iter().map(name).collect(),
            files: before.len() as u64,
            left: left as u64,
            arrivals: puts().map(|(_, content)| blob(content)).collect(),
            reading: self.reading > 0,
        };
        self.guard.weigh(now, &load, &Tops { any: left > 0 })
    }

    /// What nobody approved never comes to more than half of the feed and 50 files or more within the
    /// window.
    fn check_deletions(&mut self, now: Instant, files: usize, deleted: &[Path]) {
        let window = self.rules.window;
        self.peaks.push((now, files));
        self.peaks.retain(|(at, _)| now.duration_since(*at) <= window);
        self.published.retain(|(at, _)| now.duration_since(*at) <= window);
        for path in deleted {
            if !self.approved.remove(path) {
                self.published.push((now, *path));
            }
        }
        let peak = self.peaks.iter().map(|(_, files)| *files).max().unwrap_or(0);
        let count = self.published.iter().map(|(_, path)| path).collect::<BTreeSet<_>>().len();
        assert!(
            count < self.rules.min_delete_files || count * 100 <= 50 * peak,
            "{count} of {peak} files were deleted within the window, and nobody was asked"
        );
    }

    /// The commit is durable.
    pub fn published(
        &mut self,
        now: Instant,
        before: Option<Head>,
        files: usize,
        (deleted, arrived): (&[Path], &[(Path, Content)]),
    ) {
        self.committing = false;
        self.excused_until = now;
        if let (Some(before), false) = (before, deleted.is_empty()) {
            let deleted = deleted.iter().map(|path| self.paths[usize::from(*path)].clone());
            self.guard.published(now, (before.commit, files as u64), deleted.collect());
        }
        for (path, content) in arrived {
            self.published.retain(|(_, gone)| gone != path);
            self.guard.arrived(&self.paths[usize::from(*path)], blob(*content));
        }
    }

    pub fn take_late(&mut self) -> Vec<(Path, Option<File>)> {
        std::mem::take(&mut self.late)
    }

    /// Nothing is under way, and nothing is left to do but what waits for a person.
    pub fn is_at_rest(&self) -> bool {
        !self.committing && self.reading == 0 && self.staged.is_empty() && self.settle.active() == 0
    }
}

fn fingerprint(content: Content, open: bool) -> Fingerprint {
    // Whoever writes leaves another stat at each look.
    let nanos = u32::from(open);
    let at = Mtime { secs: i64::from(content), nanos };
    Fingerprint { symlink: false, mode: 0o644, size: 1, mtime: at, ctime: at, inode: 1 }
}
