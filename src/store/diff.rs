//! The difference of two trees, and what a tree refers to that another does not.
//!
//! Equal subtrees are skipped, so cost follows the change. Neither walk recurses: a tree from
//! elsewhere may be as deep as a path can be long.

use std::collections::HashSet;

use bytes::Bytes;

use super::{
    Result,
    db::{Read, Type},
    folder::{Folder, FolderId, Item, side_by_side},
    tree::{self, Mode, TreeEntry},
};
use crate::model::{Change, Oid, RelPath};

enum Step {
    Emit(Change),
    Descend(RelPath, FolderId, FolderId),
}

/// Hands every difference to `visit`, in the order of paths, a folder before what it holds.
pub(super) fn differences(
    read: &Read,
    from: FolderId,
    to: FolderId,
    visit: &mut dyn FnMut(Change) -> Result<()>,
) -> Result<()> {
    if from == to {
        return Ok(());
    }
    let mut stack = vec![compare(read, &RelPath::root(), from, to)?.into_iter()];
    while let Some(steps) = stack.last_mut() {
        match steps.next() {
            None => drop(stack.pop()),
            Some(Step::Emit(change)) => visit(change)?,
            Some(Step::Descend(path, from, to)) => {
                stack.push(compare(read, &path, from, to)?.into_iter());
            }
        }
    }
    Ok(())
}

/// The differences within one folder, with the folders to go into.
fn compare(read: &Read, path: &RelPath, from: FolderId, to: FolderId) -> Result<Vec<Step>> {
    let (old, new) = (Folder::read(read, from)?, Folder::read(read, to)?);
    let mut steps = Vec::new();
    for (before, after) in side_by_side(old.items()?, new.items()?, |a, b| a.name.cmp(b.name)) {
        if before != after {
            compare_items(path, before, after, &mut steps)?;
        }
    }
    // Byte order of whole paths: `a`, `a.b`, `a/b`.
    steps.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(steps.into_iter().map(|(_, step)| step).collect())
}

fn compare_items(
    folder: &RelPath,
    before: Option<Item<'_>>,
    after: Option<Item<'_>>,
    steps: &mut Vec<(Vec<u8>, Step)>,
) -> Result<()> {
    let name = &before.or(after).expect("one side is there").name;
    let path = folder.join(name)?;
    let content = |item: Option<Item>| item.map_or(FolderId::default(), |item| item.content());
    let (from, to) = (content(before), content(after));
    let before = before.map(|item| item.entry()).transpose()?;
    let after = after.map(|item| item.entry()).transpose()?;
    if from != to {
        steps.push(([name, b"/".as_slice()].concat(), Step::Descend(path.clone(), from, to)));
    }
    if before != after {
        steps.push((name.to_vec(), Step::Emit(Change { path, before, after })));
    }
    Ok(())
}

/// What one commit refers to and its parent does not.
#[derive(Default)]
pub(super) struct Delta {
    /// Trees and blobs, each once, a tree before what it holds.
    pub(super) new: Vec<(Type, Oid)>,
    /// Ids on the changed paths of the parent.
    gone: HashSet<Oid>,
}

impl Delta {
    /// Compares git trees as they are, metadata included.
    pub(super) fn between(read: &Read, from: Option<Oid>, to: Oid) -> Result<Delta> {
        let mut delta = Delta::default();
        let mut seen = HashSet::new();
        let mut stack = vec![(from, Some(to))];
        while let Some((from, to)) = stack.pop() {
            if from == to {
                continue;
            }
            delta.gone.extend(from);
            // A subtree that was met is not walked again, unless for what is gone.
            let to = to.filter(|id| delta.meet(&mut seen, Type::Tree, *id));
            let side = |id: Option<Oid>| id.map_or(Ok(Bytes::new()), |id| read(Type::Tree, id));
            let (old, new) = (side(from)?, side(to)?);
            for pair in side_by_side(tree::entries(&old), tree::entries(&new), order) {
                let (old, new) = (pair.0.transpose()?, pair.1.transpose()?);
                if old != new {
                    stack.extend(delta.compare(&mut seen, old, new));
                }
            }
        }
        let gone = &delta.gone;
        delta.new.retain(|(_, id)| !gone.contains(id));
        Ok(delta)
    }

    fn meet(&mut self, seen: &mut HashSet<Oid>, kind: Type, id: Oid) -> bool {
        let first = seen.insert(id);
        if first {
            self.new.push((kind, id));
        }
        first
    }

    /// Notes the blobs of two entries of one name; returns the subtrees to compare.
    fn compare(
        &mut self,
        seen: &mut HashSet<Oid>,
        old: Option<TreeEntry<'_>>,
        new: Option<TreeEntry<'_>>,
    ) -> Option<(Option<Oid>, Option<Oid>)> {
        let subtree = |entry: Option<TreeEntry>| {
            entry.filter(|entry| entry.mode == Mode::Folder).map(|entry| entry.id)
        };
        if let Some(blob) = old.filter(|entry| entry.mode != Mode::Folder) {
            self.gone.insert(blob.id);
        }
        if let Some(blob) = new.filter(|entry| entry.mode != Mode::Folder) {
            self.meet(seen, Type::Blob, blob.id);
        }
        Some((subtree(old), subtree(new))).filter(|pair| *pair != (None, None))
    }
}

/// git's order, so a file and a folder of one name are two entries. What cannot be read comes out
/// at once, and ends the walk.
fn order(a: &Result<TreeEntry<'_>>, b: &Result<TreeEntry<'_>>) -> std::cmp::Ordering {
    match (a, b) {
        (Ok(a), Ok(b)) => a.order(b),
        (Err(_), _) => std::cmp::Ordering::Less,
        (_, Err(_)) => std::cmp::Ordering::Greater,
    }
}
