//! From statements about paths to new trees: only folders on changed paths are read and written.
//!
//! Later statements win. Nothing recurses, since a path may be as deep as it can be long.

use std::cmp::Ordering;

use super::{
    Result,
    db::Read,
    folder::{self, Folder, FolderId, Item, Node, Write, side_by_side},
    meta::{self, Of, Record},
};
use crate::model::{Entry, Meta, RelPath};

/// What somebody says about a path.
pub(super) struct Statement {
    pub(super) path: RelPath,
    /// Later ones have higher numbers.
    pub(super) number: usize,
    /// What lies there; none: nothing, nor below it.
    pub(super) entry: Option<Entry>,
}

/// What the statements about one path come to.
struct Edit {
    path: RelPath,
    /// Nothing of what was here stays.
    cleared: bool,
    entry: Option<Entry>,
}

/// The tree that the statements make of `base`.
pub(super) fn rebuild(
    read: &Read,
    write: &mut Write,
    base: FolderId,
    statements: Vec<Statement>,
) -> Result<FolderId> {
    let mut edits = Edits::new(statements).peekable();
    let root = edits.next_if(|edit| edit.path.is_root());
    let base = if root.is_some_and(|edit| edit.cleared) { FolderId::default() } else { base };
    let mut stack = Stack { read, write, open: vec![Open::new(read, RelPath::root(), base)?] };
    for edit in edits {
        stack.go_to(&edit.path.parent().expect("the root was taken out"))?;
        stack.top().changed.push(Changed::new(edit));
    }
    stack.finish()
}

/// What the statements come to, in the order of components: a folder, what it holds, its next
/// sibling. One by one, so that memory holds the statements of a large batch only once.
struct Edits {
    rest: std::vec::IntoIter<Statement>,
    /// The current path and those above it, with the last statement that cleared them: a removal
    /// and a file end all that was stated below them before.
    above: Vec<(RelPath, Option<usize>)>,
}

impl Edits {
    fn new(mut statements: Vec<Statement>) -> Edits {
        statements
            .sort_unstable_by(|a, b| by_component(&a.path, &b.path).then(a.number.cmp(&b.number)));
        Edits { rest: statements.into_iter(), above: Vec::new() }
    }

    fn next_is_about(&self, path: &RelPath) -> bool {
        self.rest.as_slice().first().is_some_and(|next| next.path == *path)
    }
}

impl Iterator for Edits {
    type Item = Edit;

    fn next(&mut self) -> Option<Edit> {
        let mut edit: Option<Edit> = None;
        while edit.as_ref().is_none_or(|edit| self.next_is_about(&edit.path)) {
            let Some(Statement { path, number, entry }) = self.rest.next() else { break };
            let folders = self.above.iter().take_while(|(folder, _)| path.is_within(folder));
            self.above.truncate(folders.count());
            let inherited = self.above.last().and_then(|(_, cleared)| *cleared);
            if inherited.is_some_and(|at| number < at) {
                continue;
            }
            let clears = entry.as_ref().is_none_or(|entry| !entry.kind.is_dir());
            self.above.push((path.clone(), clears.then_some(number).max(inherited)));
            let cleared = clears || edit.is_some_and(|before| before.cleared);
            edit = Some(Edit { path, cleared, entry });
        }
        edit
    }
}

/// Byte order in which the slash comes before everything.
fn by_component(a: &RelPath, b: &RelPath) -> Ordering {
    let key = |path| <RelPath>::as_bytes(path).iter().map(|&c| if c == b'/' { 0 } else { c });
    key(a).cmp(key(b))
}

/// What becomes of one name.
struct Changed {
    name: Vec<u8>,
    cleared: bool,
    entry: Option<Entry>,
    /// The entry's metadata as it is written.
    record: Option<Vec<u8>>,
    /// What lies in it now, if anything below it was touched.
    content: Option<FolderId>,
}

impl Changed {
    /// A folder stated by name is recorded, so that it exists even when it is empty.
    fn new(edit: Edit) -> Changed {
        let Edit { path, cleared, entry } = edit;
        let record = entry.as_ref().and_then(|entry| {
            let of = Node::new(&entry.kind, FolderId::default()).recorded_as();
            let recorded = of == Of::Folder || entry.meta != Meta::default();
            recorded.then(|| meta::record(of, &entry.meta, path.name()))
        });
        Changed { name: path.name().to_vec(), cleared, entry, record, content: None }
    }

    /// What lies under the name, where `base` lay. What was no folder becomes one only if
    /// something lies in it.
    fn outcome<'a>(&'a self, base: Option<Item<'a>>) -> Result<Option<Item<'a>>> {
        let kept = base.filter(|_| !self.cleared);
        let mut item = kept;
        if let Some(entry) = &self.entry {
            let node =
                Node::new(&entry.kind, kept.map_or(FolderId::default(), |kept| kept.content()));
            let record = self.record.as_deref().map(Record::parse).transpose()?;
            item = Some(Item { name: &self.name, node, record });
        }
        let Some(content) = self.content else { return Ok(item) };
        let folder = item.filter(Item::is_folder);
        if content == FolderId::default() && folder.is_none() {
            return Ok(item);
        }
        let record = folder.and_then(|folder| folder.record);
        Ok(Some(Item { name: &self.name, node: Node::Folder(content), record }))
    }
}

/// A folder whose content is being changed.
struct Open {
    path: RelPath,
    base: Folder,
    /// In order of names.
    changed: Vec<Changed>,
}

impl Open {
    fn new(read: &Read, path: RelPath, base: FolderId) -> Result<Open> {
        Ok(Open { path, base: Folder::read(read, base)?, changed: Vec::new() })
    }

    /// What the folder `name` holds, as far as it is known by now.
    fn content(&self, name: &[u8]) -> Result<FolderId> {
        let base = self.base.find(name)?;
        let item = match self.changed.last().filter(|last| last.name == name) {
            Some(last) => last.outcome(base)?,
            None => base,
        };
        Ok(item.map_or(FolderId::default(), |item| item.content()))
    }

    fn set_content(&mut self, name: &[u8], content: FolderId) {
        match self.changed.last_mut().filter(|last| last.name == name) {
            Some(last) => last.content = Some(content),
            None => self.changed.push(Changed {
                name: name.to_vec(),
                cleared: false,
                entry: None,
                record: None,
                content: Some(content),
            }),
        }
    }

    fn write(&self, write: &mut Write) -> Result<FolderId> {
        let old = self.base.items()?;
        let mut items = Vec::with_capacity(old.len() + self.changed.len());
        let both = side_by_side(old, &self.changed, |old, new| old.name.cmp(&new.name));
        for (old, new) in both {
            items.extend(new.map_or(Ok(old), |new| new.outcome(old))?);
        }
        folder::write(write, &items, &self.base, self.path.is_root())
    }
}

/// The folders that are open: the root, and on the way to the current path.
struct Stack<'a> {
    read: &'a Read<'a>,
    write: &'a mut Write<'a>,
    open: Vec<Open>,
}

impl Stack<'_> {
    fn top(&mut self) -> &mut Open {
        self.open.last_mut().expect("the root stays open")
    }

    fn go_to(&mut self, folder: &RelPath) -> Result<()> {
        while !folder.is_within(&self.top().path) {
            self.close()?;
        }
        let done = self.top().path.components().count();
        for name in folder.components().skip(done) {
            let top = self.top();
            let path = top.path.join(name)?;
            let content = top.content(name)?;
            let open = Open::new(self.read, path, content)?;
            self.open.push(open);
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        let folder = self.open.pop().expect("closed only when something is open");
        let content = folder.write(self.write)?;
        self.top().set_content(folder.path.name(), content);
        Ok(())
    }

    fn finish(mut self) -> Result<FolderId> {
        while self.open.len() > 1 {
            self.close()?;
        }
        self.open.pop().expect("the root is left").write(self.write)
    }
}
