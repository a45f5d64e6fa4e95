//! Checkout by switching: each version is a folder of its own, and one link shows the current one.
//!
//! The folder is whole and durable before the link moves, so whoever resolves the link once sees
//! exactly one commit. Costs follow the number of files, not the change. Nothing in a release is
//! repaired: nobody but us has business there.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    disk::{Building, Keep, LinkFrom, Placed, Releases},
    model::{Head, Oid, RelPath},
    replica::{
        Error,
        checkout::{Done, source},
        gate::Gate,
    },
    store::Store,
};

/// Where and how versions are put side by side.
pub struct Snapshot {
    /// The folder of releases, opened, with its link.
    pub releases: Releases,
    /// Where the link lies.
    pub link: PathBuf,
    /// How many releases are kept.
    pub keep: usize,
    /// Whether files that are the same in two releases are one file.
    pub hard_link: bool,
}

/// What is needed to put a version beside the others and show it.
pub(super) struct Snapshots {
    store: Arc<Store>,
    keep: Keep,
    gate: Gate,
    snapshot: Mutex<Snapshot>,
}

impl Snapshots {
    pub(super) fn new(store: Arc<Store>, keep: Keep, gate: Gate, snapshot: Snapshot) -> Self {
        Snapshots { store, keep, gate, snapshot: Mutex::new(snapshot) }
    }

    /// Builds the release of `to` if need be, and shows it.
    pub(super) fn run(&self, to: &Head) -> Result<Done, Error> {
        let mut snapshot = self.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = snapshot.releases.current()?;
        let from = shown.filter(|commit| self.store.commit(*commit).is_ok());
        let mut placed = Placed::default();
        if from != Some(to.commit) {
            self.gate.ask(from, to.commit, || Ok(self.store.diff(from, to.commit)?))?;
            placed = self.build(&snapshot, from, to.commit)?;
            if !placed.faults.is_empty() {
                return Err(Error::Paths(placed.faults));
            }
            snapshot.releases.switch(to.commit)?;
        }
        self.store.set_checked_out(to.commit)?;
        let keep = snapshot.keep;
        snapshot.releases.prune(keep)?;
        Ok(Done { placed, drifted: Vec::new() })
    }

    fn build(&self, snapshot: &Snapshot, from: Option<Oid>, to: Oid) -> Result<Placed, Error> {
        let tree = self.store.diff(None, to)?;
        let shared = from.filter(|_| snapshot.hard_link);
        let changed = match shared {
            Some(from) => self.store.diff(Some(from), to)?,
            None => Vec::new(),
        };
        let changed: HashSet<RelPath> = changed.into_iter().map(|change| change.path).collect();
        let same = |path: &RelPath| !changed.contains(path);
        let source = |blob| source(&self.store, blob);
        let link_from = shared.map(|commit| LinkFrom { commit, same: &same });
        let building = Building { to, tree: &tree, keep: self.keep, source: &source, link_from };
        Ok(snapshot.releases.build(&building)?)
    }
}
