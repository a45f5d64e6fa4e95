//! One folder of a feed: its git tree and its metadata, joined by name.
//!
//! The metadata of folder `d` is the blob `.depsync/d/.depsync`; so every folder is a pair of
//! trees, and only the root's git tree holds the other one. A pair that says of a name what does
//! not fit together is damaged, never guessed at.

use std::cmp::Ordering;

use bytes::Bytes;

use super::{
    Error, Result,
    db::{Read, Type},
    meta::{self, Of, Record},
    pack,
    tree::{self, Mode, TreeEntry},
};
use crate::model::{Entry, Kind, Meta, Oid, RESERVED};

/// A folder's content by ids; the default is an empty folder. Equal ids, equal content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct FolderId {
    /// Its git tree; none when it holds no file at any depth. The feed's root tree holds the
    /// metadata as well.
    pub(super) tree: Option<Oid>,
    /// Its tree of metadata; none when there is none below.
    pub(super) meta: Option<Oid>,
}

/// What lies under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// A file or a link: its mode and blob.
    Leaf(Mode, Oid),
    Folder(FolderId),
}

/// One entry of a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item<'a> {
    pub(super) name: &'a [u8],
    pub(super) node: Node,
    pub(super) record: Option<Record<'a>>,
}

impl Node {
    /// Of an entry as others see it; a folder has that content.
    pub(super) fn new(kind: &Kind, content: FolderId) -> Node {
        match *kind {
            Kind::File { blob, executable: true } => Node::Leaf(Mode::Executable, blob),
            Kind::File { blob, executable: false } => Node::Leaf(Mode::File, blob),
            Kind::Symlink { blob } => Node::Leaf(Mode::Link, blob),
            Kind::Dir => Node::Folder(content),
        }
    }

    /// What the metadata calls it.
    pub(super) fn recorded_as(&self) -> Of {
        match self {
            Node::Leaf(Mode::Link, _) => Of::Link,
            Node::Leaf(..) => Of::File,
            Node::Folder(_) => Of::Folder,
        }
    }
}

impl FolderId {
    /// The feed's root, from a commit's tree.
    pub(super) fn root(read: &Read, tree: Oid) -> Result<FolderId> {
        let raw = read(Type::Tree, tree)?;
        let meta = find_entry(&raw, RESERVED)?.map(|entry| entry.id);
        Ok(FolderId { tree: Some(tree), meta })
    }
}

impl<'a> Item<'a> {
    /// What the entry is, for everyone else.
    pub(super) fn entry(&self) -> Result<Entry> {
        let kind = match self.node {
            Node::Leaf(Mode::Link, blob) => Kind::Symlink { blob },
            Node::Leaf(mode, blob) => Kind::File { blob, executable: mode == Mode::Executable },
            Node::Folder(_) => Kind::Dir,
        };
        let meta = self.record.map_or(Ok(Meta::default()), |record| record.meta())?;
        Ok(Entry { kind, meta })
    }

    /// What the folder of this name holds: nothing, if it is none.
    pub(super) fn content(&self) -> FolderId {
        match self.node {
            Node::Folder(id) => id,
            Node::Leaf(..) => FolderId::default(),
        }
    }

    pub(super) fn is_folder(&self) -> bool {
        matches!(self.node, Node::Folder(_))
    }

    fn from_tree(entry: TreeEntry<'a>) -> Item<'a> {
        let node = match entry.mode {
            Mode::Folder => Node::Folder(FolderId { tree: Some(entry.id), meta: None }),
            mode => Node::Leaf(mode, entry.id),
        };
        Item { name: entry.name, node, record: None }
    }

    /// Only what is there: a folder with neither content nor record is not.
    fn exists(&self) -> bool {
        self.record.is_some() || self.node != Node::Folder(FolderId::default())
    }
}

/// A folder's bytes.
#[derive(Default)]
pub(super) struct Folder {
    id: FolderId,
    tree: Bytes,
    meta: Bytes,
    /// The blob with its records.
    records: Option<(Oid, Bytes)>,
}

impl Folder {
    /// Reads a folder.
    pub(super) fn read(read: &Read, id: FolderId) -> Result<Folder> {
        let of = |tree: Option<Oid>| tree.map_or(Ok(Bytes::new()), |id| read(Type::Tree, id));
        let (tree, meta) = (of(id.tree)?, of(id.meta)?);
        let records = match find_entry(&meta, RESERVED)? {
            Some(TreeEntry { id, .. }) => Some((id, read(Type::Blob, id)?)),
            None => None,
        };
        Ok(Folder { id, tree, meta, records })
    }

    /// Its entries by name.
    pub(super) fn items(&self) -> Result<Vec<Item<'_>>> {
        let mut items = Vec::new();
        for entry in tree::entries(&self.tree) {
            let entry = entry?;
            // At the root the metadata lies beside the files.
            if entry.name != RESERVED || Some(entry.id) != self.id.meta {
                items.push(Item::from_tree(entry));
            }
        }
        sort_by_name(&mut items);
        if let Some(pair) = items.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(misfit(pair[0].name, "is in its tree twice"));
        }
        self.join(items, |_| true)
    }

    /// One of its entries.
    pub(super) fn find(&self, name: &[u8]) -> Result<Option<Item<'_>>> {
        let items = find_entry(&self.tree, name)?.map(Item::from_tree).into_iter().collect();
        Ok(self.join(items, |other| other == name)?.pop())
    }

    /// Adds the metadata of the entries of such names; items are sorted by name.
    fn join<'a>(
        &'a self,
        mut items: Vec<Item<'a>>,
        of: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<Item<'a>>> {
        let mut unmet = Vec::new();
        if let Some((_, raw)) = &self.records {
            let mut items = Cursor { items: &mut items, at: 0 };
            for record in meta::records(raw)? {
                let record = record?;
                if of(record.name()) {
                    unmet.extend(items.join_record(record)?);
                }
            }
        }
        add(&mut items, &mut unmet);
        let mut inner = tree::entries(&self.meta)
            .filter(|e| e.as_ref().map_or(true, |e| e.name != RESERVED && of(e.name)))
            .collect::<Result<Vec<_>>>()?;
        if !inner.is_sorted_by(|a, b| a.name < b.name) {
            inner.sort_by(|a, b| a.name.cmp(b.name));
        }
        let mut cursor = Cursor { items: &mut items, at: 0 };
        for entry in inner {
            unmet.extend(cursor.join_inner(entry)?);
        }
        add(&mut items, &mut unmet);
        Ok(items)
    }
}

fn find_entry<'a>(raw: &'a [u8], name: &[u8]) -> Result<Option<TreeEntry<'a>>> {
    tree::entries(raw).find(|entry| entry.as_ref().map_or(true, |e| e.name == name)).transpose()
}

/// git's order is not by name where folders are; mostly there is nothing to do.
fn sort_by_name(items: &mut [Item<'_>]) {
    if !items.is_sorted_by(|a, b| a.name < b.name) {
        items.sort_by(|a, b| a.name.cmp(b.name));
    }
}

fn add<'a>(items: &mut Vec<Item<'a>>, more: &mut Vec<Item<'a>>) {
    if !more.is_empty() {
        items.append(more);
        sort_by_name(items);
    }
}

/// Items by name, for names that come in order.
struct Cursor<'c, 'a> {
    items: &'c mut [Item<'a>],
    at: usize,
}

impl<'a> Cursor<'_, 'a> {
    fn find(&mut self, name: &[u8]) -> Option<&mut Item<'a>> {
        while self.items.get(self.at).is_some_and(|item| item.name < name) {
            self.at += 1;
        }
        self.items.get_mut(self.at).filter(|item| item.name == name)
    }

    /// Returns the folder that is known by its record alone.
    fn join_record(&mut self, record: Record<'a>) -> Result<Option<Item<'a>>> {
        let (name, of) = (record.name(), record.of()?);
        match self.find(name) {
            Some(item) if of == item.node.recorded_as() => item.record = Some(record),
            None if of == Of::Folder => {
                let node = Node::Folder(FolderId::default());
                return Ok(Some(Item { name, node, record: Some(record) }));
            }
            _ => return Err(misfit(name, "is not what its metadata says")),
        }
        Ok(None)
    }

    /// Returns the folder that is known by the metadata of what it holds alone.
    fn join_inner(
        &mut self,
        TreeEntry { mode, name, id }: TreeEntry<'a>,
    ) -> Result<Option<Item<'a>>> {
        let meta = (mode == Mode::Folder).then_some(id);
        match self.find(name).map(|item| &mut item.node) {
            Some(Node::Folder(folder)) if meta.is_some() => folder.meta = meta,
            None if meta.is_some() => {
                let node = Node::Folder(FolderId { tree: None, meta });
                return Ok(Some(Item { name, node, record: None }));
            }
            _ => return Err(misfit(name, "is no folder, and has a folder's metadata")),
        }
        Ok(None)
    }
}

/// Takes a new object.
pub(super) type Write<'a> = dyn FnMut(Type, Oid, Vec<u8>) -> Result<()> + 'a;

/// Writes a folder with these items, sorted by name. What is as it was in `base` is not written.
/// At the root the metadata becomes an entry of the tree, and there is always a tree.
pub(super) fn write<'a>(
    write: &mut Write,
    items: &[Item<'a>],
    base: &Folder,
    root: bool,
) -> Result<FolderId> {
    let known = [base.id.tree, base.id.meta, base.records.as_ref().map(|(id, _)| *id)];
    let mut put = |kind, bytes: Vec<u8>| {
        let id = pack::hash(kind, &bytes);
        if !known.contains(&Some(id)) {
            write(kind, id, bytes)?;
        }
        Ok::<_, Error>(id)
    };
    let items = || items.iter().filter(|item| item.exists());
    let mut metas: Vec<_> =
        items().filter_map(|i| folder_entry(i.name, i.content().meta)).collect();
    if let Some(blob) = meta::encode(items().filter_map(|item| item.record)) {
        let id = put(Type::Blob, blob)?;
        metas.push(TreeEntry { mode: Mode::File, name: RESERVED, id });
    }
    let mut tree_of = |entries: &mut Vec<TreeEntry<'_>>, even_empty: bool| {
        let needed = even_empty || !entries.is_empty();
        needed.then(|| put(Type::Tree, tree::encode(entries))).transpose()
    };
    let meta = tree_of(&mut metas, false)?;
    let leaf_or_folder = |item: &Item<'a>| match item.node {
        Node::Leaf(mode, id) => Some(TreeEntry { mode, name: item.name, id }),
        Node::Folder(id) => folder_entry(item.name, id.tree),
    };
    let mut entries: Vec<_> = items().filter_map(leaf_or_folder).collect();
    entries.extend(folder_entry(RESERVED, meta.filter(|_| root)));
    let tree = tree_of(&mut entries, root)?;
    Ok(FolderId { tree, meta })
}

fn folder_entry(name: &[u8], id: Option<Oid>) -> Option<TreeEntry<'_>> {
    id.map(|id| TreeEntry { mode: Mode::Folder, name, id })
}

/// Two lists sorted by name, side by side.
pub(super) fn side_by_side<A, B>(
    a: impl IntoIterator<Item = A>,
    b: impl IntoIterator<Item = B>,
    order: impl Fn(&A, &B) -> Ordering,
) -> impl Iterator<Item = (Option<A>, Option<B>)> {
    let (mut a, mut b) = (a.into_iter().peekable(), b.into_iter().peekable());
    std::iter::from_fn(move || {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => order(a, b),
        };
        Some((a.next_if(|_| order.is_le()), b.next_if(|_| order.is_ge())))
    })
}

fn misfit(name: &[u8], why: &str) -> Error {
    Error::damaged("a folder", format!("\"{}\" {why}", String::from_utf8_lossy(name)))
}
