//! Placing on a real file system: every change of type, all metadata, an attacker's links, and a
//! stop after every single step.

use std::{
    collections::HashMap,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::PathBuf,
};

use proptest::prelude::*;

use super::{super::*, *};
use crate::model::{Change, Extra, Kind, Meta, Mtime, Oid};

/// What lies at a path, in a test's words.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    File(Vec<u8>, u32),
    Link(Vec<u8>),
    Dir(u32),
}

type Tree = BTreeMap<Vec<u8>, Node>;

const KEEP: Keep = Keep { mode: true, mtime: true, empty_dirs: true, owner: false, xattrs: false };

fn file(content: &str) -> Node {
    Node::File(content.into(), 0o644)
}

fn tree(nodes: &[(&str, Node)]) -> Tree {
    nodes.iter().map(|(path, node)| (path.as_bytes().to_vec(), node.clone())).collect()
}

/// The mtime that a test's file has: its own, so that a mixture of two versions shows.
fn mtime(content: &[u8]) -> Mtime {
    let hash = crc32fast::hash(content);
    Mtime { secs: 1_000_000_000 + i64::from(hash % 1000), nanos: hash % 1_000_000_000 }
}

fn oid(content: &[u8]) -> Oid {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&crc32fast::hash(content).to_be_bytes());
    bytes[4..8].copy_from_slice(&u32::try_from(content.len()).unwrap().to_be_bytes());
    Oid::from_bytes(bytes)
}

fn entry(node: &Node) -> Entry {
    let (kind, mode, mtime) = match node {
        Node::File(content, mode) => {
            let kind = Kind::File { blob: oid(content), executable: mode & 0o100 != 0 };
            (kind, Some(*mode), Some(mtime(content)))
        }
        Node::Link(target) => (Kind::Symlink { blob: oid(target) }, None, None),
        Node::Dir(mode) => (Kind::Dir, Some(*mode), None),
    };
    Entry { kind, meta: Meta { mode, mtime, ..Meta::default() } }
}

fn diff(from: &Tree, to: &Tree) -> Vec<Change> {
    let mut paths: Vec<_> = from.keys().chain(to.keys()).collect();
    paths.sort();
    paths.dedup();
    let change = |path: &Vec<u8>| Change {
        path: RelPath::parse(path).unwrap(),
        before: from.get(path).map(entry),
        after: to.get(path).map(entry),
    };
    paths.into_iter().filter(|p| from.get(*p) != to.get(*p)).map(change).collect()
}

/// A feed's directory, the place beside it, and the contents of all trees used.
struct World {
    dir: tempfile::TempDir,
    root: Root,
    contents: HashMap<Oid, Vec<u8>>,
}

impl World {
    fn new(trees: &[&Tree]) -> World {
        // In memory where that is to be had: thousands of placings, each with its fsyncs.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let contents = trees.iter().flat_map(|tree| tree.values()).filter_map(|node| match node {
            Node::File(content, _) | Node::Link(content) => Some((oid(content), content.clone())),
            Node::Dir(_) => None,
        });
        let contents = contents.collect();
        World { dir, root, contents }
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        self.dir.path().join("root").join(std::ffi::OsStr::from_bytes(path))
    }

    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    /// Lays a tree out as somebody else would.
    fn lay(&self, tree: &Tree) {
        for (path, node) in tree {
            let at = self.at(path);
            match node {
                Node::File(content, mode) => {
                    fs::write(&at, content).unwrap();
                    fs::set_permissions(&at, PermissionsExt::from_mode(*mode)).unwrap();
                    let file = fs::File::open(&at).unwrap();
                    metadata::set_mtime(file.as_fd(), mtime(content)).unwrap();
                }
                Node::Link(target) => symlink(std::ffi::OsStr::from_bytes(target), &at).unwrap(),
                Node::Dir(mode) => {
                    fs::create_dir(&at).unwrap();
                    fs::set_permissions(&at, PermissionsExt::from_mode(*mode)).unwrap();
                }
            }
        }
    }

    /// What lies there now; every file's time must be its content's own.
    fn read(&self) -> Tree {
        let mut found = Tree::new();
        let mut pending = vec![RelPath::root()];
        while let Some(folder) = pending.pop() {
            for (name, stat) in self.root.list(&folder).unwrap() {
                let path = folder.join(&name).unwrap();
                let node = match stat.kind {
                    FileKind::File => {
                        let content = fs::read(self.at(path.as_bytes())).unwrap();
                        if self.contents.contains_key(&oid(&content)) {
                            assert_eq!(stat.mtime, mtime(&content), "{path}");
                        }
                        Node::File(content, stat.mode)
                    }
                    FileKind::Symlink => Node::Link(self.root.read_link(&path).unwrap()),
                    FileKind::Dir => {
                        pending.push(path.clone());
                        Node::Dir(stat.mode)
                    }
                    FileKind::Special => panic!("{path} is special"),
                };
                found.insert(path.as_bytes().to_vec(), node);
            }
        }
        found
    }

    fn with<T>(&self, changes: &[Change], keep: Keep, run: impl FnOnce(&Placing<'_>) -> T) -> T {
        let source = |blob: Oid| match self.contents.get(&blob) {
            Some(bytes) if bytes.len() % 2 == 0 => Ok(Source::Bytes(bytes.clone())),
            Some(bytes) => {
                let mut file = tempfile::tempfile()?;
                io::Write::write_all(&mut file, bytes)?;
                Ok(Source::File(file))
            }
            None => Err(io::Error::other("no such content")),
        };
        let (journal, aside) = (self.journal(), self.dir.path().join("aside"));
        run(&Placing {
            root: &self.root,
            journal: &journal,
            aside: &aside,
            from: None,
            to: Oid::from_bytes([1; 20]),
            along: None,
            changes,
            keep,
            source: &source,
            holds: None,
        })
    }

    fn place(&self, changes: &[Change]) -> Placed {
        let placed = self.with(changes, KEEP, place).unwrap();
        assert!(!self.journal().exists());
        placed
    }

    /// Places, and is killed at the n-th change to the disk. False: it came to the end before.
    fn place_killed_at(&self, changes: &[Change], n: usize) -> bool {
        let mut left = n;
        let mut pulse = || match left.checked_sub(1) {
            Some(less) => {
                left = less;
                Ok(())
            }
            None => Err(io::Error::other("killed")),
        };
        self.with(changes, KEEP, |p| Work::new(p, &mut pulse).unwrap().run()).is_err()
    }

    fn sweep(&self) -> Swept {
        self.root.sweep(&mut Aside::new(&self.dir.path().join("aside"))).unwrap()
    }

    /// All contents that lie aside.
    fn aside(&self) -> Vec<Vec<u8>> {
        fn below(at: &Path, found: &mut Vec<Vec<u8>>) {
            for entry in fs::read_dir(at).into_iter().flatten().flatten() {
                match entry.file_type().unwrap() {
                    kind if kind.is_dir() => below(&entry.path(), found),
                    kind if kind.is_symlink() => {
                        found.push(
                            fs::read_link(entry.path()).unwrap().as_os_str().as_bytes().to_vec(),
                        );
                    }
                    _ => found.push(fs::read(entry.path()).unwrap()),
                }
            }
        }
        let mut found = Vec::new();
        below(&self.dir.path().join("aside"), &mut found);
        found
    }
}

fn is_hidden(path: &[u8]) -> bool {
    path.split(|&byte| byte == b'/').any(is_temporary)
}

/// Whether a file or link with these bytes, whatever its mode, is in a tree.
fn has_content(tree: &Tree, node: &Node) -> bool {
    tree.values().any(|other| match (other, node) {
        (Node::File(a, _), Node::File(b, _)) | (Node::Link(a), Node::Link(b)) => a == b,
        _ => false,
    })
}

fn path(text: &str) -> RelPath {
    RelPath::parse(text.as_bytes()).unwrap()
}

/// Everything that can lie at `x`, with what must lie there with it.
fn states() -> Vec<Tree> {
    vec![
        tree(&[]),
        tree(&[("x", file("one"))]),
        tree(&[("x", file("other!"))]),
        tree(&[("x", Node::File(b"one".to_vec(), 0o4755))]),
        tree(&[("x", Node::Link(b"target".to_vec()))]),
        tree(&[("x", Node::Link(b"/etc/passwd".to_vec()))]),
        tree(&[("x", Node::Dir(0o755))]),
        tree(&[
            ("x", Node::Dir(0o2750)),
            ("x/a", file("in a")),
            ("x/d", Node::Dir(0o700)),
            ("x/d/b", file("in b")),
        ]),
        tree(&[
            ("x", Node::Dir(0o755)),
            ("x/a", Node::Dir(0o755)),
            ("x/a/c", file("c")),
            ("x/d", file("d")),
        ]),
    ]
}

#[test]
fn every_type_becomes_every_other() {
    for from in states() {
        for to in states() {
            let world = World::new(&[&from, &to]);
            world.lay(&from);
            let placed = world.place(&diff(&from, &to));
            assert_eq!(world.read(), to, "from {from:?}");
            assert_eq!(placed.faults, [], "{from:?} → {to:?}");
            assert_eq!(placed.set_aside, [], "{from:?} → {to:?}");
        }
    }
}

#[test]
fn what_is_not_the_feeds_old_entry_goes_aside_whatever_it_is() {
    let foreign = [
        tree(&[("x", file("mine, all mine"))]),
        tree(&[("x", Node::Link(b"my target".to_vec()))]),
        tree(&[("x", Node::Dir(0o755)), ("x/own", file("my file")), ("x/a", file("my a"))]),
    ];
    for from in states() {
        for to in states().into_iter().filter(|to| *to != from) {
            for other in &foreign {
                let world = World::new(&[&from, &to]);
                world.lay(other);
                let placed = world.place(&diff(&from, &to));
                assert_eq!(placed.faults, [], "{from:?} → {to:?} over {other:?}");
                let after = world.read();
                for (path, node) in to.iter().filter(|(path, node)| from.get(*path) != Some(node)) {
                    assert_eq!(after.get(path), Some(node), "{from:?} → {to:?} over {other:?}");
                }
                let aside = world.aside();
                for node in other.values() {
                    let (Node::File(content, _) | Node::Link(content)) = node else { continue };
                    let stays = has_content(&after, node);
                    assert!(stays || aside.contains(content), "{from:?} → {to:?} lost {node:?}");
                }
            }
        }
    }
}

#[test]
fn a_kill_at_any_point_leaves_what_a_second_placing_makes_whole() {
    for from in states() {
        for to in states().into_iter().filter(|to| *to != from) {
            let changes = diff(&from, &to);
            for n in 0.. {
                let world = World::new(&[&from, &to]);
                world.lay(&from);
                let killed = world.place_killed_at(&changes, n);
                for (path, node) in world.read().iter().filter(|(path, _)| !is_hidden(path)) {
                    let old_or_new = [from.get(path), to.get(path)].contains(&Some(node));
                    // A folder's mode is set last; its name is old or new all the same.
                    assert!(
                        old_or_new || matches!(node, Node::Dir(_)),
                        "{from:?} → {to:?} at {n}: {path:?}"
                    );
                }
                if let Some((_, _, paths)) = unfinished(&world.journal()).unwrap() {
                    assert_eq!(paths, changes.iter().map(|c| c.path.clone()).collect::<Vec<_>>());
                }
                world.sweep();
                let placed = world.place(&changes);
                assert_eq!(placed.faults, [], "{from:?} → {to:?} at {n}");
                assert_eq!(world.read(), to, "{from:?} killed at {n}");
                assert_eq!(world.sweep(), Swept::default());
                if !killed {
                    break;
                }
            }
        }
    }
}

#[test]
fn metadata_is_what_was_recorded() {
    let long = "n".repeat(255);
    let names: [&[u8]; 6] =
        [b"plain", b"new\nline", b"\xff\xfe", b" \"quoted\" ", b"\xc3\xa4", long.as_bytes()];
    let mut to = Tree::new();
    to.insert(b"d".to_vec(), Node::Dir(0o2755));
    for (n, name) in names.iter().enumerate() {
        let mode = [0o600, 0o755, 0o2755, 0o4711, 0o444, 0o640][n];
        to.insert(name.to_vec(), Node::File(vec![b'x'; n], mode));
        to.insert([b"d/", *name].concat(), Node::File(vec![b'y'; 100 + n], mode));
    }
    let world = World::new(&[&to]);
    let placed = world.place(&diff(&Tree::new(), &to));
    assert_eq!(placed.faults, []);
    assert_eq!(world.read(), to);
    assert_eq!((placed.written, placed.deleted), (13, 0));
    let source = |blob: Oid| Ok(Source::Bytes(world.contents[&blob].clone()));
    for (path, node) in &to {
        let path = RelPath::parse(path).unwrap();
        assert_eq!(verify(&world.root, &path, &entry(node), &KEEP, &source).unwrap(), None);
    }
    let other = entry(&Node::File(b"x".to_vec(), 0o755));
    let mismatch = verify(&world.root, &path("plain"), &other, &KEEP, &source).unwrap();
    assert_eq!(mismatch, Some(Mismatch::Mode));
}

#[test]
fn owner_and_attributes_are_kept_where_asked_for() {
    let world = World::new(&[&tree(&[("f", file("1"))])]);
    let mut entry = entry(&file("1"));
    let extra = Extra {
        user: Some("no such user here".to_owned()),
        group: Some(crate::sys::group_name(0)),
        xattrs: [(b"user.depsync".to_vec(), b"value".to_vec())].into(),
    };
    entry.meta.extra = extra.boxed();
    let change = Change { path: path("f"), before: None, after: Some(entry.clone()) };
    let keep = Keep { owner: true, xattrs: true, ..KEEP };
    let placed = world.with(&[change], keep, place).unwrap();
    assert_eq!(placed.faults, []);
    assert!(placed.notes[0].1.contains("no such user here"), "{:?}", placed.notes);
    let stat = world.root.stat(&path("f")).unwrap().unwrap();
    let meta = world.root.meta(&path("f"), &stat, &keep).unwrap();
    assert_eq!(meta.extra().xattrs, entry.meta.extra().xattrs);
    assert_eq!((meta.mode, meta.mtime), (entry.meta.mode, entry.meta.mtime));
}

#[test]
fn what_does_not_change_is_not_touched() {
    let from =
        tree(&[("a", file("a")), ("b", file("b")), ("d", Node::Dir(0o755)), ("d/c", file("c"))]);
    let mut to = from.clone();
    to.insert(b"b".to_vec(), file("new b"));
    to.insert(b"d/c".to_vec(), Node::File(b"c".to_vec(), 0o600));
    let world = World::new(&[&from, &to]);
    world.lay(&from);
    let inode = |path: &[u8]| fs::symlink_metadata(world.at(path)).unwrap().ino();
    let before = [inode(b"a"), inode(b"d"), inode(b"d/c")];
    world.place(&diff(&from, &to));
    assert_eq!(before, [inode(b"a"), inode(b"d"), inode(b"d/c")]);
    // All over again, from nothing: the content is there, so nothing is written.
    let b = inode(b"b");
    let again = world.place(&diff(&Tree::new(), &to));
    assert_eq!((again.written, again.set_aside.len(), inode(b"b")), (0, 0, b));
    assert_eq!(world.read(), to);
}

#[test]
fn a_folder_is_removed_only_when_it_is_empty() {
    let from = tree(&[("d", Node::Dir(0o755)), ("d/e", Node::Dir(0o755)), ("d/e/f", file("f"))]);
    let world = World::new(&[&from]);
    world.lay(&from);
    fs::write(world.at(b"d/mine"), b"mine").unwrap();
    let placed = world.place(&diff(&from, &Tree::new()));
    assert_eq!((placed.deleted, placed.faults.len(), placed.set_aside.len()), (2, 0, 0));
    assert_eq!(world.read().keys().collect::<Vec<_>>(), [&b"d".to_vec(), &b"d/mine".to_vec()]);
}

#[test]
fn folders_that_the_feed_does_not_name_come_and_go_with_what_they_hold() {
    let to = tree(&[("a/b/c", file("c")), ("a/d", file("d"))]);
    let world = World::new(&[&to]);
    let keep = Keep { empty_dirs: false, ..KEEP };
    world.with(&diff(&Tree::new(), &to), keep, place).unwrap();
    assert!(world.at(b"a/b/c").exists());
    let less = tree(&[("a/d", file("d"))]);
    world.with(&diff(&to, &less), keep, place).unwrap();
    assert!(!world.at(b"a/b").exists() && world.at(b"a/d").exists());
    world.with(&diff(&less, &Tree::new()), keep, place).unwrap();
    assert!(world.read().is_empty());
}

#[test]
fn a_folder_swapped_for_a_link_leads_nowhere() {
    let from = tree(&[("d", Node::Dir(0o755)), ("d/old", file("old")), ("d/gone", file("gone"))]);
    let mut to = from.clone();
    to.insert(b"d/old".to_vec(), file("changed"));
    to.insert(b"d/new".to_vec(), file("new"));
    to.remove(b"d/gone".as_slice());
    let changes = diff(&from, &to);
    for n in 0.. {
        let world = World::new(&[&from, &to]);
        world.lay(&from);
        let outside = tempfile::tempdir().unwrap();
        for (name, content) in [("old", "old"), ("gone", "gone"), ("other", "other")] {
            fs::write(outside.path().join(name), content).unwrap();
        }
        let swap = || {
            fs::rename(world.at(b"d"), world.dir.path().join("d")).unwrap();
            symlink(outside.path(), world.at(b"d")).unwrap();
        };
        let mut step = 0;
        let mut pulse = || {
            step += 1;
            if step == n {
                swap();
            }
            Ok(())
        };
        world.with(&changes, KEEP, |p| Work::new(p, &mut pulse).unwrap().run()).unwrap();
        let mut names: Vec<_> =
            fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["gone", "old", "other"], "swapped at {n}");
        assert_eq!(fs::read(outside.path().join("old")).unwrap(), b"old");
        // The next placing puts the link aside and the folder back.
        world.sweep();
        assert_eq!(world.place(&diff(&Tree::new(), &to)).faults, []);
        assert_eq!(world.read(), to, "swapped at {n}");
        if step < n {
            return;
        }
    }
}

#[test]
fn a_fault_of_one_path_leaves_the_others_to_go_on() {
    let to =
        tree(&[("a", file("a")), ("b", file("b")), ("d", Node::Dir(0o755)), ("d/c", file("c"))]);
    let mut world = World::new(&[&to]);
    world.contents.remove(&oid(b"b"));
    let placed = world.place(&diff(&Tree::new(), &to));
    assert_eq!(placed.faults.len(), 1);
    assert_eq!(placed.faults[0].0, path("b"));
    assert!(placed.faults[0].1.contains("no such content"));
    assert_eq!(placed.written, 3);
    assert!(world.at(b"d/c").exists() && !world.at(b"b").exists());
    assert_eq!(world.sweep(), Swept::default());
}

#[test]
fn a_change_between_staging_and_renaming_is_seen() {
    let from = tree(&[("a", file("old")), ("b", file("old b"))]);
    let to = tree(&[("a", file("new")), ("new", file("fresh"))]);
    let world = World::new(&[&from, &to]);
    world.lay(&from);
    let mut step = 0;
    let mut pulse = || {
        step += 1;
        // Both files are staged; nothing is renamed.
        if step == 2 {
            fs::write(world.at(b"a"), b"edited meanwhile").unwrap();
            fs::write(world.at(b"b"), b"edited too").unwrap();
            fs::write(world.at(b"new"), b"made meanwhile").unwrap();
        }
        Ok(())
    };
    world.with(&diff(&from, &to), KEEP, |p| Work::new(p, &mut pulse).unwrap().run()).unwrap();
    assert_eq!(world.read(), to);
    let mut aside: Vec<_> = world.aside();
    aside.retain(|content| content.ends_with(b"meanwhile") || content.ends_with(b"too"));
    aside.sort();
    assert_eq!(aside, [&b"edited meanwhile"[..], b"edited too", b"made meanwhile"]);
}

#[test]
fn a_directory_that_holds_files_is_compared_before_it_is_taken_over() {
    let to = tree(&[
        ("d", Node::Dir(0o755)),
        ("d/same", file("same")),
        ("e/f", file("f")),
        ("other", file("1")),
    ]);
    let world = World::new(&[&to]);
    world.lay(&tree(&[
        ("d", Node::Dir(0o700)),
        ("d/same", file("same")),
        ("d/extra", file("x")),
        ("e", file("a file where a folder goes")),
        ("other", file("2")),
    ]));
    let source = |blob: Oid| Ok(Source::Bytes(world.contents[&blob].clone()));
    let same = |path: &RelPath, entry: &Entry| compare::holds(&world.root, path, entry, &source);
    let expected = to.iter().map(|(path, node)| (RelPath::parse(path).unwrap(), entry(node)));
    let contact = super::super::compare(&world.root, expected, &same).unwrap();
    assert_eq!(contact.equal, [path("d/same")]);
    assert_eq!(contact.different, [path("e"), path("other")]);
    assert_eq!(contact.extra, [path("d/extra")]);
    assert_eq!(contact.missing, 1);
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        3 => ("[abc]{0,3}", prop::sample::select(vec![0o644, 0o600, 0o755]))
            .prop_map(|(content, mode)| Node::File(content.into_bytes(), mode)),
        1 => "[abc]{1,3}".prop_map(|target| Node::Link(target.into_bytes())),
        2 => Just(Node::Dir(0o755)),
    ]
}

/// A tree of few names, so that two of them often meet; what lies below a file is left out.
fn any_tree() -> impl Strategy<Value = Tree> {
    let paths = ["a", "b", "a/a", "a/b", "b/a", "a/a/a", "a/a/b", "b/a/a", "a-b", "a-b/c"];
    prop::collection::vec(prop::option::of(node()), paths.len()).prop_map(move |nodes| {
        let mut tree = Tree::new();
        for (path, node) in paths.iter().zip(nodes) {
            let above = path.rfind('/').map(|end| &path.as_bytes()[..end]);
            let fits = above.is_none_or(|above| matches!(tree.get(above), Some(Node::Dir(_))));
            if let (Some(node), true) = (node, fits) {
                tree.insert(path.as_bytes().to_vec(), node);
            }
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_lies_there_the_feed_comes_out_and_nothing_is_lost(
        from in any_tree(), to in any_tree(), there in any_tree(), kill in 0_usize..40,
    ) {
        let world = World::new(&[&from, &to]);
        world.lay(&there);
        let changes = diff(&from, &to);
        world.place_killed_at(&changes, kill);
        world.sweep();
        let placed = world.place(&changes);
        prop_assert_eq!(placed.faults, []);
        let (after, aside) = (world.read(), world.aside());
        for change in &changes {
            let path = change.path.as_bytes();
            if let Some(node) = to.get(path) {
                prop_assert_eq!(after.get(path), Some(node));
            }
        }
        for (path, node) in &there {
            let (Node::File(content, _) | Node::Link(content)) = node else { continue };
            let is_old = from.get(path).is_some_and(|old| entry(old).kind.same_content(&entry(node).kind));
            let stays = has_content(&after, node);
            prop_assert!(is_old || stays || aside.contains(content), "lost {:?}", path);
        }
        prop_assert_eq!(world.sweep(), Swept::default());
    }
}
