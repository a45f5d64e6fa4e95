//! What the next commit will say: settled paths, compared with the head.
//!
//! Only differences are kept, so a touch without a change leaves nothing. A folder that is gone is
//! one entry with the files that vanish with it, which the guard counts. Deletions that are held
//! stay in the head and are known here by file, whichever way the disk looks meanwhile. Nothing
//! here reads the disk or writes the store.

use std::{
    cell::{OnceCell, RefCell},
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::SystemTime,
};

use sha2::{Digest, Sha256};

use super::{Result, after::After, guard, read::FileSeen, taken::Taken};
use crate::{
    disk::Keep,
    model::{Entry, Kind, Meta, ObjectId, Oid, RelPath},
    store::{Draft, Store},
};

/// Hex digits that name a list of deletions: enough to tell one from the next, short to type.
const LIST_ID_LEN: usize = 10;

/// From this question on a folder of the head is read whole.
const READ_WHOLE: u32 = 4;

/// What became of a path that was looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// It is as in the head.
    Same,
    /// The batch says something about it.
    Changed,
    /// The batch says that files are gone.
    Deleted,
}

/// A difference from the head.
struct Staged {
    /// None: nothing lies there any more.
    put: Option<Put>,
    /// Files of the head that vanish with this.
    lost: Vec<(RelPath, Oid)>,
}

struct Put {
    entry: Entry,
    /// Of a file or a link, in bytes.
    size: u64,
    /// The head has no file or link there.
    is_new: bool,
}

impl Put {
    /// Or a link.
    fn is_file(&self) -> bool {
        !self.entry.kind.is_dir()
    }
}

/// A folder of the head, read whole once it is asked about again: finding one entry costs as much
/// as reading all of them.
#[derive(Default)]
struct Near {
    dir: RelPath,
    asked: u32,
    entries: Option<HashMap<Vec<u8>, Entry>>,
}

/// The batch, and what is held back from it.
pub(super) struct Stage {
    store: Arc<Store>,
    head: Option<Oid>,
    /// The folder of the head that was asked about last.
    near: RefCell<Near>,
    keep: Keep,
    /// Boxed: a tree of large values is half air.
    changes: BTreeMap<RelPath, Box<Staged>>,
    held: BTreeSet<RelPath>,
    /// The name of the list of those: found when asked for, forgotten when it changes.
    list_id: OnceCell<String>,
    /// Deletions that a person let pass and that are not committed yet.
    approved: HashSet<RelPath>,
    /// What a hook refused, as it was then: held until it changes.
    refused: BTreeMap<RelPath, Refused>,
}

/// A path that a hook refused.
pub(super) struct Refused {
    /// What lies there; none: nothing any more.
    entry: Option<Entry>,
    pub(super) reason: String,
    pub(super) since: SystemTime,
}

impl Stage {
    pub(super) fn new(store: Arc<Store>, head: Option<Oid>, keep: Keep) -> Self {
        Self {
            store,
            head,
            near: RefCell::default(),
            keep,
            changes: BTreeMap::new(),
            held: BTreeSet::new(),
            list_id: OnceCell::new(),
            approved: HashSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// How many paths the batch says something about.
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// The paths that the batch says something about.
    pub(super) fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.changes.keys()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// What the head has at a path.
    pub(super) fn in_head(&self, path: &RelPath) -> Result<Option<Entry>> {
        let Some(head) = self.head else { return Ok(None) };
        let Some(dir) = path.parent() else { return Ok(self.store.entry(head, path)?) };
        let mut near = self.near.borrow_mut();
        if near.dir != dir {
            *near = Near { dir, ..Near::default() };
        }
        near.asked += 1;
        if near.asked < READ_WHOLE {
            return Ok(self.store.entry(head, path)?);
        }
        if near.entries.is_none() {
            near.entries = Some(self.list_head(&near.dir)?.into_iter().collect());
        }
        Ok(near.entries.as_ref().and_then(|entries| entries.get(path.name()).cloned()))
    }

    /// What the head has in a folder, by name.
    pub(super) fn list_head(&self, dir: &RelPath) -> Result<Vec<(Vec<u8>, Entry)>> {
        let Some(head) = self.head else { return Ok(Vec::new()) };
        Ok(self.store.list(head, dir)?.unwrap_or_default())
    }

    /// A file or link lies at a path.
    pub(super) fn saw_file(&mut self, path: &RelPath, seen: &FileSeen) -> Result<Effect> {
        self.exists(path);
        let before = self.in_head(path)?;
        let is_in_head = before.as_ref().is_some_and(|before| is_same(before, &seen.entry));
        if is_in_head || self.is_refused(path, Some(&seen.entry)) {
            self.withdraw_below(path);
            self.changes.remove(path);
            return Ok(Effect::Same);
        }
        let lost = match &before {
            Some(Entry { kind: Kind::Dir, .. }) => self.files_below(path)?,
            _ => Vec::new(),
        };
        self.withdraw_below(path);
        if lost.iter().any(|(file, _)| self.held.contains(file)) {
            // It stands where files were whose deletion waits: it waits with them.
            self.changes.remove(path);
            return Ok(Effect::Same);
        }
        let effect = if lost.is_empty() { Effect::Changed } else { Effect::Deleted };
        let is_new = before.is_none_or(|before| before.kind.is_dir());
        let put = Some(Put { entry: seen.entry.clone(), size: seen.size, is_new });
        self.say(path.clone(), put, lost);
        Ok(effect)
    }

    /// A folder lies at a path.
    pub(super) fn saw_dir(&mut self, path: &RelPath, meta: Meta) -> Result<Effect> {
        if path.is_root() {
            return Ok(Effect::Same);
        }
        self.exists(path);
        let before = self.in_head(path)?;
        let entry = Entry { kind: Kind::Dir, meta };
        let same = match &before {
            Some(before) if before.kind.is_dir() => {
                !self.keep.empty_dirs || before.meta == entry.meta
            }
            Some(_) => false,
            None => !self.keep.empty_dirs,
        };
        if same {
            self.changes.remove(path);
            return Ok(Effect::Same);
        }
        let put = Some(Put { entry, size: 0, is_new: false });
        self.say(path.clone(), put, Vec::new());
        Ok(Effect::Changed)
    }

    fn say(&mut self, path: RelPath, put: Option<Put>, lost: Vec<(RelPath, Oid)>) {
        self.changes.insert(path, Box::new(Staged { put, lost }));
    }

    /// What exists is not deleted, whatever was said of it.
    fn exists(&mut self, path: &RelPath) {
        self.approved.remove(path);
        if self.held.remove(path) {
            self.list_id.take();
        }
    }

    /// Nothing that a feed may hold lies at a path.
    pub(super) fn saw_nothing(&mut self, path: &RelPath) -> Result<Effect> {
        if path.is_root() || self.is_removed(path) {
            return Ok(Effect::Same);
        }
        self.is_refused(path, None);
        self.withdraw_below(path);
        self.changes.remove(path);
        let lost = match self.in_head(path)?.map(|entry| entry.kind) {
            None => return Ok(Effect::Same),
            Some(Kind::Dir) => self.files_below(path)?,
            Some(kind) => kind.blob().map(|blob| (path.clone(), blob)).into_iter().collect(),
        };
        if !lost.iter().any(|(file, _)| self.is_kept(file)) {
            let effect = if lost.is_empty() { Effect::Changed } else { Effect::Deleted };
            self.say(path.clone(), None, lost);
            return Ok(effect);
        }
        // What is held of a folder stays; the rest goes file by file.
        let mut effect = Effect::Same;
        for (file, blob) in lost {
            if !self.is_kept(&file) && !self.is_removed(&file) {
                let lost = vec![(file.clone(), blob)];
                self.say(file, None, lost);
                effect = Effect::Deleted;
            }
        }
        Ok(effect)
    }

    /// Whether a file stays in the head though nothing lies there any more.
    fn is_kept(&self, file: &RelPath) -> bool {
        let refused = self.refused.get(file).is_some_and(|refused| refused.entry.is_none());
        refused || self.held.contains(file)
    }

    /// Whether a hook refused what lies at a path; it is forgotten once something else does.
    fn is_refused(&mut self, path: &RelPath, now: Option<&Entry>) -> bool {
        let Some(refused) = self.refused.get(path) else { return false };
        let same = match (&refused.entry, now) {
            (None, None) => true,
            (Some(before), Some(now)) => is_same(before, now),
            _ => false,
        };
        if !same {
            self.refused.remove(path);
        }
        same
    }

    /// A hook refused what lies at a path, or that nothing does.
    pub(super) fn refuse(
        &mut self,
        path: &RelPath,
        entry: Option<&Entry>,
        reason: &str,
        since: SystemTime,
    ) {
        let refused = Refused { entry: entry.cloned(), reason: reason.to_owned(), since };
        self.refused.insert(path.clone(), refused);
    }

    /// What a hook refused and nobody has changed since.
    pub(super) fn refused(&self) -> &BTreeMap<RelPath, Refused> {
        &self.refused
    }

    /// Deletions that a person had approved in a batch that was not published.
    pub(super) fn let_pass(&mut self, approved: Vec<RelPath>) {
        self.approved.extend(approved);
    }

    /// Whether the batch says something about a path, or that a folder above it is gone.
    pub(super) fn mentions(&self, path: &RelPath) -> bool {
        self.changes.contains_key(path) || self.is_removed(path)
    }

    /// Whether the batch says that nothing lies at a path, or at a folder above it.
    pub(super) fn is_removed(&self, path: &RelPath) -> bool {
        let mut at = Some(path.clone());
        while let Some(here) = at {
            if self.changes.get(&here).is_some_and(|staged| staged.put.is_none()) {
                return true;
            }
            at = here.parent();
        }
        false
    }

    /// Something lies at `path` after all: withdraws the removals of the path and of folders above
    /// it, and returns the topmost, which must be scanned.
    pub(super) fn is_back(&mut self, path: &RelPath) -> Option<RelPath> {
        let (mut topmost, mut at) = (None, Some(path.clone()));
        while let Some(here) = at {
            at = here.parent();
            if self.changes.get(&here).is_some_and(|staged| staged.put.is_none()) {
                self.changes.remove(&here);
                topmost = Some(here);
            }
        }
        topmost
    }

    fn withdraw_below(&mut self, dir: &RelPath) {
        let below: Vec<_> = self.below(dir).map(|(path, _)| path.clone()).collect();
        for path in below {
            self.changes.remove(&path);
        }
    }

    /// Files and links of the head below a folder.
    fn files_below(&self, dir: &RelPath) -> Result<Vec<(RelPath, Oid)>> {
        let (mut files, mut dirs) = (Vec::new(), vec![dir.clone()]);
        while let Some(dir) = dirs.pop() {
            for (name, entry) in self.list_head(&dir)? {
                let Ok(path) = dir.join(&name) else { continue };
                match entry.kind.blob() {
                    Some(blob) => files.push((path, blob)),
                    None => dirs.push(path),
                }
            }
        }
        Ok(files)
    }

    /// Drops the batch: what it said must be found again.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
    }

    /// States the batch in a draft; without the deletions that nobody approved where these are
    /// deferred. `arrivals`: whether anybody wants to know what arrives.
    pub(super) fn take(&mut self, draft: &mut Draft<'_>, deletions: bool, arrivals: bool) -> Taken {
        let mut taken = Taken::default();
        let mut later = BTreeMap::new();
        let arrivals = arrivals || self.deletes();
        draft.reserve(self.changes.len());
        for (path, mut staged) in std::mem::take(&mut self.changes) {
            let unapproved = staged.lost.iter().any(|(file, _)| !self.approved.contains(file));
            if unapproved && !deletions {
                later.insert(path, staged);
                continue;
            }
            let was_folder = !matches!(&staged.lost[..], [(file, _)] if *file == path);
            let approved = staged.lost.extract_if(.., |(file, _)| self.approved.remove(file));
            taken.approved.extend(approved.map(|(file, _)| file));
            taken.deleted.append(&mut staged.lost);
            let Some(put) = staged.put else {
                draft.remove(&path);
                taken.removed.push((path, was_folder));
                continue;
            };
            if let Some(blob) = put.entry.kind.blob() {
                taken.bytes += put.size;
                taken.put.add(&path);
                taken.arrived.extend(arrivals.then(|| (path.clone(), blob)));
            }
            draft.state(path, Some(put.entry));
        }
        self.changes = later;
        taken
    }

    /// The batch was published as this commit.
    pub(super) fn published(&mut self, head: Oid) {
        self.head = Some(head);
        self.near.take();
    }

    pub(super) fn head(&self) -> Option<Oid> {
        self.head
    }

    /// Whether the batch deletes files that nobody approved.
    pub(super) fn deletes(&self) -> bool {
        self.pending().next().is_some()
    }

    fn pending(&self) -> impl Iterator<Item = (&RelPath, Oid)> {
        let lost = self.changes.values().flat_map(|staged| &staged.lost);
        lost.filter(|(file, _)| !self.approved.contains(file)).map(|(file, blob)| (file, *blob))
    }

    /// For the guard. `files`: how many the head has.
    pub(super) fn load(&self, files: u64, reading: bool) -> guard::Load<'_> {
        let all_lost: usize = self.changes.values().map(|staged| staged.lost.len()).sum();
        let puts = || self.changes.values().filter_map(|staged| staged.put.as_ref());
        let new = puts().filter(|put| put.is_file() && put.is_new).count();
        let gone = all_lost as u64 + self.held.len() as u64;
        guard::Load {
            pending: self.pending().collect(),
            held: self.held.iter().collect(),
            files,
            left: files.saturating_sub(gone) + new as u64,
            arrivals: puts().filter_map(|put| put.entry.kind.blob()).collect(),
            reading,
        }
    }

    /// The tree as it would be after the batch.
    pub(super) fn after(&self) -> After<'_> {
        let lost = self.changes.values().flat_map(|staged| &staged.lost).map(|(file, _)| file);
        After { stage: self, gone: lost.chain(&self.held).collect() }
    }

    /// Whether the batch puts a file or a link below a folder, or in its place.
    pub(super) fn puts_file_within(&self, dir: &RelPath) -> bool {
        let puts_file = |staged: &Staged| staged.put.as_ref().is_some_and(Put::is_file);
        let itself = self.changes.get(dir).is_some_and(|staged| puts_file(staged));
        itself || self.below(dir).any(|(_, staged)| puts_file(staged))
    }

    /// What the batch says of paths below a folder. No name begins with a lower byte; where not even
    /// this fits, nothing lies below.
    fn below(&self, dir: &RelPath) -> impl Iterator<Item = (&RelPath, &Staged)> {
        let first = dir.join(b"\x01").ok();
        let from = first.into_iter().flat_map(|first| self.changes.range(first..));
        from.take_while(|(path, _)| path.is_within(dir)).map(|(path, staged)| (path, &**staged))
    }

    /// Takes these deletions out of the batch; they wait for a person.
    pub(super) fn hold(&mut self, files: &[RelPath]) {
        self.list_id.take();
        let files: HashSet<_> = files.iter().collect();
        let is_held = |staged: &Staged| staged.lost.iter().any(|(file, _)| files.contains(file));
        let paths: Vec<_> = self
            .changes
            .iter()
            .filter(|(_, staged)| is_held(staged))
            .map(|(p, _)| p.clone())
            .collect();
        for path in paths {
            let staged = self.changes.remove(&path).expect("it was found a moment ago");
            let replaced = staged.put.is_some();
            for (file, blob) in staged.lost {
                if replaced || files.contains(&file) {
                    self.held.insert(file);
                } else {
                    let lost = vec![(file.clone(), blob)];
                    self.say(file, None, lost);
                }
            }
        }
    }

    /// The files whose deletion waits.
    pub(super) fn held(&self) -> &BTreeSet<RelPath> {
        &self.held
    }

    /// Whether the deletion of a file waits.
    pub(super) fn is_held(&self, file: &RelPath) -> bool {
        self.held.contains(file)
    }

    /// The name of the list of deletions that wait: another list has another.
    pub(super) fn list_id(&self) -> Option<&str> {
        if self.held.is_empty() {
            return None;
        }
        Some(self.list_id.get_or_init(|| {
            let mut hasher = Sha256::new();
            for file in &self.held {
                hasher.update(file.as_bytes());
                hasher.update([0]);
            }
            let mut id = ObjectId::from_bytes(hasher.finalize().into()).to_string();
            id.truncate(LIST_ID_LEN);
            id
        }))
    }

    /// Lets the deletions pass that wait; a scan finds them again.
    pub(super) fn approve(&mut self) {
        let held = self.take_held();
        self.approved.extend(held);
    }

    /// Forgets which deletions wait; returns them.
    pub(super) fn take_held(&mut self) -> BTreeSet<RelPath> {
        self.list_id.take();
        std::mem::take(&mut self.held)
    }
}

/// Equal by content, type, mode and whatever else is kept, but for the time: a touch is no change,
/// and the recorded time is the one at which the rest was last committed.
fn is_same(before: &Entry, now: &Entry) -> bool {
    let executable = |kind: &Kind| matches!(kind, Kind::File { executable: true, .. });
    let timeless = |meta: &Meta| Meta { mtime: None, ..meta.clone() };
    before.kind.same_content(&now.kind)
        && executable(&before.kind) == executable(&now.kind)
        && timeless(&before.meta) == timeless(&now.meta)
}
