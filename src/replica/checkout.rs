//! Puts a head in place in the deployment directory, and says what it found there.
//!
//! A difference of two trees under the journal of `disk::place`; that it lies there is noted
//! only when all of it is durable. What a kill has interrupted is finished before anything else. A directory
//! that already holds files is taken over when they are the feed's own; others stop the mirror
//! before a byte is changed, unless it may move them aside. Nothing is ever destroyed.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::{
    disk::{self, FileKind, Keep, Placed, Placing, Root, Source},
    model::{Change, Entry, Head, Kind, Oid, RelPath, Subset},
    replica::{
        Error, adopt, demoted,
        drift::{Drift, Repairs},
        gate::Gate,
        known::Known,
        snapshot::Snapshots,
        subset,
    },
    store::{self, Opened, Store},
};

/// How a head is put in place.
pub(super) enum Way {
    /// Path by path, in the deployment directory.
    InPlace(Checkout),
    /// As a folder of its own, by the switch of a link.
    Snapshot(Snapshots),
}

impl Way {
    /// Puts `to` in place. `profile` names what the application server writes by itself.
    pub(super) fn run(&self, to: &Head, profile: &str) -> Result<Done, Error> {
        match self {
            Way::InPlace(checkout) => checkout.run(to, profile),
            Way::Snapshot(snapshots) => snapshots.run(to),
        }
    }
}

/// The deployment directory of a feed, with what is needed to change it.
pub(super) struct Checkout {
    pub(super) store: Arc<Store>,
    pub(super) root: Arc<Root>,
    /// `<state>/feeds/<feed>`.
    pub(super) state: PathBuf,
    pub(super) keep: Keep,
    /// Whether foreign files may be moved aside at first contact.
    pub(super) adopt: bool,
    /// Asks the operator's hook.
    pub(super) gate: Gate,
    /// The last checkout, if it left paths out.
    pub(super) partial: Mutex<Option<Partial>>,
    /// What it has put in place so far.
    pub(super) known: Known,
    /// What is done about drift, and what was done lately.
    pub(super) drift: Drift,
    pub(super) repairs: Repairs,
    /// Paths that only a reading has found to differ: a scan reads them too.
    pub(super) doubted: Mutex<BTreeSet<RelPath>>,
    /// The last commit that this node published, where it has owned the feed.
    pub(super) demoted_at: Option<Oid>,
    /// The part of the feed that is kept.
    pub(super) subset: Arc<Subset>,
}

/// A checkout that could not put every path in place. It is forgotten by a restart, which then
/// takes what was put in place for someone else's, and moves it aside where it changes again.
pub(super) struct Partial {
    to: Oid,
    faulty: BTreeSet<RelPath>,
}

/// What a checkout did.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) placed: Placed,
    /// Paths that were changed by someone else while they were put in place.
    pub(super) drifted: Vec<RelPath>,
}

impl Checkout {
    /// Puts `to` in place. `profile` names what the application server writes by itself.
    pub(super) fn run(&self, to: &Head, profile: &str) -> Result<Done, Error> {
        if self.root.id_at_path()? != Some(self.root.id()?) {
            return Err(Error::Replaced(self.root.path().display().to_string()));
        }
        if let (None, Some(last)) = (self.store.checked_out()?, self.demoted_at) {
            return demoted::step_down(self, last, to, profile);
        }
        self.finish_interrupted()?;
        let from = self.store.checked_out()?;
        if from.is_none() {
            adopt::first_contact(self, to, profile)?;
        }
        if from != Some(to.commit) {
            self.gate.ask(from, to.commit, || Ok(self.store.diff(from, to.commit)?))?;
        }
        self.put(from, to.commit)
    }

    /// What a kill has left half done was begun by us: it is finished, so that none of it is taken
    /// for someone else's change.
    fn finish_interrupted(&self) -> Result<(), Error> {
        let Some((from, to, _)) = disk::unfinished(&self.journal())? else { return Ok(()) };
        match self.store.commit(to) {
            Ok(_) => self.put(from, to).map(drop),
            // The repository was lost since: then what was put in place is told by its content.
            Err(store::Error::UnknownCommit(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn aside(&self) -> PathBuf {
        self.state.join("aside")
    }

    pub(super) fn journal(&self) -> PathBuf {
        self.state.join("journal")
    }

    /// Puts a difference in place, then notes that it lies there.
    fn put(&self, from: Option<Oid>, to: Oid) -> Result<Done, Error> {
        let changes = self.changes(from, to)?;
        let noted = subset::Noted::at(&self.state);
        let before = noted.read()?;
        if self.subset.is_all() && before.is_empty() {
            return self.place(from, to, &changes);
        }
        let part =
            if from.is_some() { Subset::new(&before) } else { Ok(Subset::clone(&self.subset)) };
        let part = part.unwrap_or_else(|_| Subset::all());
        let done = self.place(from, to, &subset::select(self, &part, from, to, changes)?)?;
        noted.write(self.subset.patterns())?;
        Ok(done)
    }

    /// Makes these changes, then notes that `to` lies there.
    pub(super) fn place(
        &self,
        from: Option<Oid>,
        to: Oid,
        changes: &[Change],
    ) -> Result<Done, Error> {
        if changes.is_empty() {
            self.store.set_checked_out(to)?;
            return Ok(Done::default());
        }
        let mark = self.store.prepare_checked_out(to)?;
        let placed = disk::place(&Placing {
            root: &self.root,
            journal: &self.journal(),
            aside: &self.aside(),
            from,
            to,
            along: Some(mark.file()),
            changes,
            keep: self.keep,
            source: &|blob| self.source(blob),
            holds: Some(&|path, entry| match self.known.holds(&self.root, path, entry) {
                Some(holds) => Ok(holds),
                None => disk::holds(&self.root, path, entry, &|blob| self.source(blob)),
            }),
        })?;
        self.known.note(&self.root, changes);
        if !placed.faults.is_empty() {
            let faulty = placed.faults.iter().map(|(path, _)| path.clone()).collect();
            *self.partial() = Some(Partial { to, faulty });
            return Err(Error::Paths(placed.faults));
        }
        self.store.set_prepared(mark)?;
        *self.partial() = None;
        self.repairs.forget(changes);
        let drifted = changes.iter().filter_map(|change| self.differs(change).transpose());
        Ok(Done { placed, drifted: drifted.collect::<Result<_, _>>()? })
    }

    /// What is to be changed to get from one commit to another. Where an earlier checkout left some
    /// paths out, the rest is at its commit: only those paths are still at `from`.
    fn changes(&self, from: Option<Oid>, to: Oid) -> Result<Vec<Change>, Error> {
        let partial = self.partial();
        let Some(Partial { to: base, faulty }) = partial.as_ref() else {
            return Ok(self.store.diff(from, to)?);
        };
        let mut changes = self.store.diff(Some(*base), to)?;
        changes.retain(|change| !faulty.contains(&change.path));
        for path in faulty {
            let before = from.map(|from| self.store.entry(from, path)).transpose()?.flatten();
            let after = self.store.entry(to, path)?;
            if before.is_some() || after.is_some() {
                changes.push(Change { path: path.clone(), before, after });
            }
        }
        changes.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(changes)
    }

    /// Whether the last checkout left paths out: what lies there is no drift.
    pub(super) fn is_partial(&self) -> bool {
        self.partial().is_some()
    }

    fn partial(&self) -> MutexGuard<'_, Option<Partial>> {
        self.partial.lock().expect("no holder panics")
    }

    /// Whether someone has changed the path since it was put in place: type and time only, which
    /// costs one call for each path.
    fn differs(&self, change: &Change) -> Result<Option<RelPath>, Error> {
        let stat = match self.root.stat(&change.path) {
            Err(error) if error.is_gone() => None,
            other => other?,
        };
        let is_right = match (&change.after, stat) {
            (None, None) => true,
            (None, Some(stat)) => stat.kind == FileKind::Dir, // kept: it holds files of others
            (Some(_), None) => false,
            (Some(entry), Some(stat)) => match entry.kind {
                Kind::Dir => stat.kind == FileKind::Dir,
                Kind::Symlink { .. } => stat.kind == FileKind::Symlink,
                Kind::File { .. } => {
                    let recorded = entry.meta.mtime.filter(|_| self.keep.mtime);
                    stat.kind == FileKind::File
                        && recorded.is_none_or(|mtime| self.root.keeps_time_as(mtime, stat.mtime))
                }
            },
        };
        Ok((!is_right).then(|| change.path.clone()))
    }

    pub(super) fn source(&self, blob: Oid) -> io::Result<Source> {
        source(&self.store, blob)
    }

    /// Whether a path holds the type and the bytes of an entry.
    pub(super) fn holds(&self, path: &RelPath, entry: &Entry) -> Result<bool, Error> {
        let held = disk::holds(&self.root, path, entry, &|blob| self.source(blob));
        held.map_err(|error| {
            Error::Paths(vec![(path.clone(), format!("cannot be compared: {error}"))])
        })
    }
}

/// The bytes of a tree's entry.
pub(super) fn source(store: &Store, blob: Oid) -> io::Result<Source> {
    Ok(match store.open_content(blob)? {
        Opened::Bytes(bytes) => Source::Bytes(bytes),
        Opened::File(file) => Source::File(file),
    })
}
