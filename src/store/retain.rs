//! Retention: which objects the versions that are kept refer to, and the removal of the others.
//!
//! Never removed: what the head, a pin, a version inside `keep` or something on its way in refers to.
//! History is not touched: it goes on to name what is gone, and `git/lfs/removed` says that it went
//! by our will. On disk: `git/lfs/removed`, a line `<sha256> <size>` for each object removed;
//! `git/lfs/collected`, the newest commit whose content was given up.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, UNIX_EPOCH},
};

use super::{Commit, Error, Result, Store, durable, shallow::SHALLOW};
use crate::{
    model::{Content, Entry, Kind, ObjectId, Oid, Retention, Subset},
    sys,
};

const REMOVED: &str = "lfs/removed";
const COLLECTED: &str = "lfs/collected";

/// What no published version ever referred to (a vetoed commit, a fetch that was given up) goes
/// after this time, and what came in counts as on its way for as long.
const STRAY: Duration = Duration::from_secs(24 * 3600);

/// What a collection did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Collected {
    /// Objects removed.
    pub removed: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Objects that stay.
    pub kept: u64,
    /// Their bytes.
    pub kept_bytes: u64,
    /// Versions whose content stays.
    pub versions: u64,
    /// Of those that stay, what is needed by work under way: it goes the next time.
    pub put_off: u64,
}

/// Asks whether work that takes long should go on.
pub type Going<'a> = &'a dyn Fn() -> bool;

/// Objects on their way in: stored, or found stored, for a version that is not published yet.
#[derive(Default)]
pub(super) struct Fresh(Mutex<Arriving>);

#[derive(Default)]
struct Arriving {
    objects: HashMap<ObjectId, Arrival>,
    /// By the blobs that stand for them.
    pointers: HashMap<Oid, ObjectId>,
}

struct Arrival {
    at: Instant,
    /// The version that they came for, once it is published.
    seq: Option<u64>,
}

impl Fresh {
    /// To be called before it is looked for.
    pub(super) fn add(&self, id: ObjectId) {
        self.lock().objects.insert(id, Arrival { at: Instant::now(), seq: None });
    }

    /// As `add`, for an object whose commit is made here.
    pub(super) fn add_for(&self, pointer: Oid, id: ObjectId) {
        self.add(id);
        self.lock().pointers.insert(pointer, id);
    }

    /// Whether a blob stands for an object that came for a version that is not published yet.
    pub(super) fn awaits(&self, pointer: Oid) -> bool {
        self.lock().pointers.contains_key(&pointer)
    }

    /// These blobs are published now.
    pub(super) fn published(&self, blobs: impl Iterator<Item = Oid>, seq: u64) {
        let mut arriving = self.lock();
        for blob in blobs {
            let id = arriving.pointers.remove(&blob);
            if let Some(arrival) = id.and_then(|id| arriving.objects.get_mut(&id)) {
                arrival.seq = Some(seq);
            }
        }
    }

    /// All that came belongs to what is published now: a mirror fetches one version at a time.
    pub(super) fn all_published(&self, seq: u64) {
        for arrival in self.lock().objects.values_mut() {
            arrival.seq.get_or_insert(seq);
        }
    }

    /// This one has come, or will not come now.
    fn settle(&self, id: &ObjectId) {
        if let Some(arrival) = self.lock().objects.get_mut(id) {
            arrival.seq.get_or_insert(0);
        }
    }

    /// Forgets what came for versions up to `seq`, and what nobody published in a long time. What
    /// was stored from a folder may be held there for ever, and published without being read again.
    fn forget(&self, seq: u64) {
        let Arriving { objects, pointers } = &mut *self.lock();
        let gathered: HashSet<ObjectId> = pointers.values().copied().collect();
        objects.retain(|id, arrival| {
            let is_old = arrival.at.elapsed() >= STRAY && !gathered.contains(id);
            !arrival.is_of(seq) && !is_old
        });
        pointers.retain(|_, id| objects.contains_key(id));
    }

    fn lock(&self) -> MutexGuard<'_, Arriving> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    fn is_of(&self, seq: u64) -> bool {
        self.seq.is_some_and(|published| published <= seq)
    }
}

/// The objects that kept versions refer to, and those that only given up ones do.
#[derive(Default)]
struct Uses {
    kept: HashMap<ObjectId, u64>,
    given_up: HashMap<ObjectId, u64>,
    versions: u64,
    /// The newest version below which nothing is kept, not even for a pin.
    newest_out: Option<Oid>,
}

impl Uses {
    /// What `to` has and `from` has not.
    fn add_of(
        &mut self,
        store: &Store,
        (from, to): (Option<Oid>, Oid),
        part: &Subset,
    ) -> Result<()> {
        store.differences(from, to, &mut |change| {
            self.add(part.holds(&change.path, false), store.object(change.after.as_ref())?);
            Ok(())
        })
    }

    /// What `from` has and `to` has not.
    fn add_gone(&mut self, store: &Store, (from, to): (Oid, Oid), part: &Subset) -> Result<()> {
        store.differences(Some(from), to, &mut |change| {
            self.add(part.holds(&change.path, false), store.object(change.before.as_ref())?);
            Ok(())
        })
    }

    fn add(&mut self, is_kept: bool, object: Option<(ObjectId, u64)>) {
        if is_kept { &mut self.kept } else { &mut self.given_up }.extend(object);
    }
}

impl Store {
    /// Removes the objects that only versions outside `keep` refer to, or only paths outside of
    /// `part`; those of the commits in `also` stay.
    ///
    /// # Errors
    /// When the history cannot be read: then nothing was removed. [`Error::Interrupted`] when it
    /// should not go on; what was removed until then is gone.
    pub fn collect(
        &self,
        keep: &Retention,
        part: &Subset,
        also: &[Oid],
        going: Going<'_>,
    ) -> Result<Collected> {
        // What is published from now on is not among the uses.
        let seq = self.line().head().map_or(0, |head| head.seq);
        let uses = self.uses(keep, part, also, going)?;
        let mut collected = Collected { versions: uses.versions, ..Collected::default() };
        let mut doomed = Vec::new();
        for (id, path, size) in self.stored_objects()? {
            if !uses.kept.contains_key(&id) && (uses.given_up.contains_key(&id) || is_stray(&path))
            {
                doomed.push((id, path, size));
            } else {
                collected.kept += 1;
                collected.kept_bytes += size;
            }
        }
        self.fresh.forget(seq);
        self.remove(doomed, going, &mut collected)?;
        if let Some(out) = uses.newest_out.filter(|_| collected.put_off == 0) {
            drop(durable::replace(&self.git.join(COLLECTED), format!("{out}\n").as_bytes())?);
        }
        Ok(collected)
    }

    fn remove(
        &self,
        doomed: Vec<(ObjectId, PathBuf, u64)>,
        going: Going<'_>,
        collected: &mut Collected,
    ) -> Result<()> {
        self.record(&doomed)?;
        for (id, path, size) in doomed {
            if !going() {
                return Err(Error::Interrupted);
            }
            // Whoever comes to need it now says so before it looks.
            let fresh = self.fresh.lock();
            if fresh.objects.contains_key(&id) {
                collected.kept += 1;
                collected.kept_bytes += size;
                collected.put_off += 1;
                continue;
            }
            fs::remove_file(&path).map_err(Error::io("remove", &path))?;
            drop(fresh);
            self.forget_cuts(&id)?;
            collected.removed += 1;
            collected.removed_bytes += size;
        }
        Ok(())
    }

    /// Writes down what is about to go, so that it is never taken for lost.
    fn record(&self, doomed: &[(ObjectId, PathBuf, u64)]) -> Result<()> {
        if doomed.is_empty() {
            return Ok(());
        }
        let path = self.git.join(REMOVED);
        let line = |lines: String, (id, _, size): &_| lines + &format!("{id} {size}\n");
        let lines = doomed.iter().fold(String::new(), line);
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        let written = file.write_all(lines.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(Error::io("write", &path))
    }

    /// Nothing that was stored from a folder waits to be published.
    pub fn nothing_gathered(&self) {
        let Arriving { objects, pointers } = &mut *self.fresh.lock();
        for (_, id) in pointers.drain() {
            if let Some(arrival) = objects.get_mut(&id) {
                arrival.seq.get_or_insert(0);
            }
        }
    }

    /// An object that was fetched for itself is on its way no longer: whether it stays is for
    /// retention to say.
    pub fn settled(&self, id: &ObjectId) {
        self.fresh.settle(id);
    }

    /// Whether retention removed an object that is not here.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub fn was_removed(&self, id: &ObjectId) -> Result<bool> {
        let path = self.git.join(REMOVED);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(Error::io("open", &path))?,
        };
        let name = id.to_string();
        for line in BufReader::new(file).lines() {
            if line.map_err(Error::io("read", &path))?.starts_with(&name) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether an object that is not here is one of a version that is not kept here any more.
    ///
    /// # Errors
    /// When the history cannot be read.
    pub fn is_given_up(&self, commit: Oid, id: &ObjectId) -> Result<bool> {
        if self.was_removed(id)? {
            return Ok(true);
        }
        let until = self.given_up_to().map_or(0, |commit| commit.head.seq);
        Ok(self.commit(commit)?.head.seq <= until)
    }

    /// The newest version whose content was given up.
    pub(super) fn given_up_to(&self) -> Option<Commit> {
        let text = fs::read_to_string(self.git.join(COLLECTED)).ok()?;
        self.commit(text.trim().parse().ok()?).ok()
    }

    /// The versions inside `keep`, the newest first, and the first one outside.
    pub(super) fn kept(&self, keep: &Retention) -> Result<(Vec<Commit>, Option<Commit>)> {
        let now = sys::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut kept: Vec<Commit> = Vec::new();
        let mut next = self.line().tip().cloned();
        while let Some(commit) = next {
            let newer = kept.last().map(|newer| newer.time);
            let replaced = newer.and_then(|at| u64::try_from(at).ok()).map(Duration::from_secs);
            let ago = replaced.map_or(Duration::ZERO, |at| now.saturating_sub(at));
            if !keep.holds(kept.len() as u64, ago) {
                return Ok((kept, Some(commit)));
            }
            next = self.parent_of(&commit)?;
            kept.push(commit);
        }
        Ok((kept, None))
    }

    /// None before the first commit, or where history was cut off.
    pub(super) fn parent_of(&self, commit: &Commit) -> Result<Option<Commit>> {
        match commit.parent.map(|id| self.commit(id)) {
            None | Some(Err(Error::UnknownCommit(_))) => Ok(None),
            Some(parent) => parent.map(Some),
        }
    }

    /// Whether history was cut off above this commit (git's `shallow`).
    pub(super) fn is_cut_off(&self, commit: &Commit) -> bool {
        let text = fs::read_to_string(self.git.join(SHALLOW)).unwrap_or_default();
        text.lines().any(|line| line.parse() == Ok(commit.id))
    }

    /// What the versions that are kept refer to: all of the head, and of each other one what the
    /// next newer one does not have any more.
    fn uses(
        &self,
        keep: &Retention,
        part: &Subset,
        also: &[Oid],
        going: Going<'_>,
    ) -> Result<Uses> {
        let mut uses = Uses::default();
        let (kept, out) = self.kept(keep)?;
        let Some(head) = kept.first() else { return Ok(uses) };
        uses.add_of(self, (None, head.id), part)?;
        for pair in kept.windows(2) {
            stop_unless(going)?;
            uses.add_gone(self, (pair[1].id, pair[0].id), part)?;
        }
        let mut oldest = u64::MAX;
        for commit in also.iter().filter_map(|id| self.commit(*id).ok()) {
            uses.add_gone(self, (commit.id, head.id), part)?;
            oldest = oldest.min(commit.head.seq);
        }
        uses.versions = kept.len() as u64;
        let until = self.given_up_to().map_or(0, |commit| commit.head.seq);
        let (mut newer, mut older) = (kept.last().map(|commit| commit.id), out);
        while let (Some(above), Some(commit)) = (newer, older.filter(|c| c.head.seq > until)) {
            stop_unless(going)?;
            if commit.head.seq < oldest {
                uses.newest_out.get_or_insert(commit.id);
            }
            self.objects_gone(commit.id, above, &mut uses.given_up)?;
            newer = Some(commit.id);
            older = self.parent_of(&commit)?;
        }
        Ok(uses)
    }

    /// Adds the objects of what `to` has and `from` has not.
    pub(super) fn objects_of(
        &self,
        from: Option<Oid>,
        to: Oid,
        into: &mut HashMap<ObjectId, u64>,
    ) -> Result<()> {
        self.differences(from, to, &mut |change| {
            into.extend(self.object(change.after.as_ref())?);
            Ok(())
        })
    }

    /// Adds the objects of what `from` has and `to` has not.
    pub(super) fn objects_gone(
        &self,
        from: Oid,
        to: Oid,
        into: &mut HashMap<ObjectId, u64>,
    ) -> Result<()> {
        self.differences(Some(from), to, &mut |change| {
            into.extend(self.object(change.before.as_ref())?);
            Ok(())
        })
    }

    fn object(&self, entry: Option<&Entry>) -> Result<Option<(ObjectId, u64)>> {
        let Some(Entry { kind: Kind::File { blob, .. }, .. }) = entry else { return Ok(None) };
        Ok(match self.content(*blob)? {
            Content::Object { id, size } => Some((id, size)),
            Content::Blob(_) => None,
        })
    }

    /// Every object here, with its file and size.
    pub(super) fn stored_objects(&self) -> Result<Vec<(ObjectId, PathBuf, u64)>> {
        let mut found = Vec::new();
        let mut folders = vec![self.git.join("lfs/objects")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(Error::io("list", &folder))? {
                let entry = entry.map_err(Error::io("list", &folder))?;
                let (path, name) = (entry.path(), entry.file_name());
                let about = match entry.metadata() {
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    about => about.map_err(Error::io("read", &path))?,
                };
                if about.is_dir() {
                    folders.push(path);
                } else if let Some(id) = name.to_str().and_then(|name| name.parse().ok()) {
                    found.push((id, path, about.len()));
                }
            }
        }
        Ok(found)
    }
}

pub(super) fn stop_unless(going: Going<'_>) -> Result<()> {
    if going() { Ok(()) } else { Err(Error::Interrupted) }
}

fn is_stray(path: &Path) -> bool {
    let changed = path.metadata().and_then(|about| about.modified()).ok();
    let age = changed.and_then(|changed| sys::now().duration_since(changed).ok());
    age.is_some_and(|age| age > STRAY)
}
