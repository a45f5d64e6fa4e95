//! The tree as it would be after the batch: what the guard wants to know of it.
//!
//! The head with the batch on top, asked folder by folder; nothing is built. What cannot be read
//! counts against letting deletions pass.

use std::collections::HashSet;

use super::{Result, guard, stage::Stage};
use crate::model::RelPath;

/// The head with a batch on top.
pub(super) struct After<'a> {
    pub(super) stage: &'a Stage,
    /// Files of the head that it deletes, and those whose deletion waits.
    pub(super) gone: HashSet<&'a RelPath>,
}

impl After<'_> {
    fn head_has_files(&self, dir: &RelPath) -> Result<bool> {
        let mut dirs = vec![dir.clone()];
        while let Some(dir) = dirs.pop() {
            for (name, entry) in self.stage.list_head(&dir)? {
                let Ok(path) = dir.join(&name) else { continue };
                if entry.kind.is_dir() {
                    dirs.push(path);
                } else if !self.gone.contains(&path) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn sibling_in_head_has_files(&self, dir: &RelPath) -> Result<bool> {
        let Some(parent) = dir.parent() else { return Ok(false) };
        for (name, entry) in self.stage.list_head(&parent)? {
            let Ok(sibling) = parent.join(&name) else { continue };
            if entry.kind.is_dir() && sibling != *dir && self.head_has_files(&sibling)? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A head that cannot be read counts against letting deletions pass.
impl guard::After for After<'_> {
    fn has_files(&self, dir: &RelPath) -> bool {
        self.stage.puts_file_within(dir) || self.head_has_files(dir).unwrap_or(true)
    }

    fn sibling_has_files(&self, dir: &RelPath) -> bool {
        self.sibling_in_head_has_files(dir).unwrap_or(false)
    }
}
