//! What a commit took from the stage, for those who come after it: the subject, the stat cache, the
//! guard.
//!
//! Nothing of it grows with what a first import puts in place: paths that arrive are only listed
//! where deletions are weighed against them.

use std::collections::HashMap;

use crate::model::{Oid, RelPath};

/// What a commit took from the stage.
#[derive(Default)]
pub(super) struct Taken {
    /// Files and links that it puts in place, and their contents; only where somebody deletes, since
    /// deletions alone are weighed against them.
    pub(super) arrived: Vec<(RelPath, Oid)>,
    /// Files that it deletes, but for those that a person approved, and what they held.
    pub(super) deleted: Vec<(RelPath, Oid)>,
    /// Files that it deletes and a person approved.
    pub(super) approved: Vec<RelPath>,
    /// Paths at which nothing lies any more; true: it was a folder.
    pub(super) removed: Vec<(RelPath, bool)>,
    /// Bytes of the files put.
    pub(super) bytes: u64,
    /// All files and links that it puts in place.
    pub(super) put: Named,
}

/// Paths of which only one is named.
#[derive(Default)]
pub(super) struct Named {
    first: Option<RelPath>,
    count: usize,
}

impl Named {
    pub(super) fn add(&mut self, path: &RelPath) {
        self.first.get_or_insert_with(|| path.clone());
        self.count += 1;
    }

    fn text(&self) -> Option<String> {
        match self.count {
            1 => self.first.as_ref().map(ToString::to_string),
            0 => None,
            more => Some(format!("{more} paths")),
        }
    }
}

impl Taken {
    /// What it deletes, but for files whose content it puts elsewhere: one for each of these.
    pub(super) fn deleted_for_good(&self) -> Vec<RelPath> {
        let mut arrived: HashMap<Oid, usize> = HashMap::new();
        for (_, blob) in &self.arrived {
            *arrived.entry(*blob).or_default() += 1;
        }
        let gone = self.deleted.iter().filter(|(_, blob)| {
            let left = arrived.get_mut(blob).filter(|left| **left > 0);
            left.map(|left| *left -= 1).is_none()
        });
        gone.map(|(path, _)| path.clone()).collect()
    }

    /// The commit's one line.
    pub(super) fn subject(&self) -> String {
        let mut removed = Named::default();
        self.removed.iter().for_each(|(path, _)| removed.add(path));
        match (self.put.text(), removed.text()) {
            (None, None) => "Update folders".to_owned(),
            (Some(put), None) => format!("Update {put}"),
            (None, Some(removed)) => format!("Remove {removed}"),
            (Some(put), Some(removed)) => format!("Update {put}, remove {removed}"),
        }
    }
}
