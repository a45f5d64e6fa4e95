//! From one store to another: what arrives is the same, and what is bad changes nothing.

use std::{io::Cursor, sync::Arc};

use super::*;
use crate::store::{
    db::Type,
    pack::{PackWriter, hash},
};

fn history() -> World {
    let world = World::new();
    world.put(&[("a/1", "1"), ("a/2", "2"), ("b", "b"), ("c/d/e", "x")]);
    world.put(&[("a/1", "one")]);
    world.commit(|draft| {
        draft.put(&path("empty"), folder(0o700));
        draft.remove(&path("c"));
        // Content that was there before, now at another place.
        put_file(draft, "a/2-copy", b"2");
        put_file(draft, "back", b"1");
    });
    world.put(&[("c/d/e", "x"), ("z", "new")]);
    world
}

fn whole_log(world: &World) -> Vec<Commit> {
    let mut log = world.store.log(world.head().commit, 100).unwrap();
    log.reverse();
    log
}

fn send(from: &World, to: &World, have: Option<Oid>, want: &Commit) {
    let pack = from.store.pack(have, want.id).unwrap();
    let bytes = std::fs::read(&pack.path).unwrap();
    assert_eq!(bytes.len() as u64, pack.size);
    assert_eq!(&bytes[bytes.len() - 20..], pack.checksum.as_bytes());
    to.store.receive(&mut Cursor::new(bytes), &want.head).unwrap();
    to.store.advance(&want.head).unwrap();
}

fn assert_same(a: &World, b: &World, commit: Oid) {
    let all = |world: &World| {
        let mut entries = Vec::new();
        world.store.walk(commit, &mut |path, entry| entries.push((path, entry))).unwrap();
        entries
    };
    assert_eq!(all(a), all(b));
    assert_eq!(b.git(&["fsck", "--strict", "--full"]), "");
}

#[test]
fn a_mirror_has_the_same_from_wherever_it_starts() {
    let hub = history();
    let log = whole_log(&hub);
    for start in 0..log.len() {
        for end in start..log.len() {
            let mirror = World::new();
            send(&hub, &mirror, None, &log[start]);
            if end > start {
                send(&hub, &mirror, Some(log[start].id), &log[end]);
            }
            assert_same(&hub, &mirror, log[end].id);
            assert_eq!(mirror.head(), log[end].head);
            assert_eq!(mirror.git(&["rev-list", "--count", "main"]).trim(), (end + 1).to_string());
        }
    }
}

#[test]
fn an_announced_pack_needs_nothing_but_the_parent() {
    let (hub, mirror) = (World::new(), World::new());
    for round in 0..4 {
        // The content comes back that only older commits have.
        let published = hub.put(&[("f", ["a", "b"][round % 2]), ("g", "same")][..2 - round.min(1)]);
        let pack = published.pack.clone().expect("it is small");
        mirror.store.receive(&mut Cursor::new(pack.clone()), &published.head).unwrap();
        mirror.store.advance(&published.head).unwrap();
        // A relay finds the pack that it received, and sends the same bytes on.
        let relayed = mirror.store.pack(published.parent, published.head.commit).unwrap();
        assert_eq!(std::fs::read(relayed.path).unwrap(), pack);
    }
    assert_same(&hub, &mirror, hub.head().commit);
}

#[test]
fn the_next_commit_is_taken_in_and_made_the_head_in_one_go() {
    let (hub, mirror) = (World::new(), World::new());
    for text in ["a", "b", "a"] {
        let published = hub.put(&[("f", text)]);
        let pack = published.pack.clone().expect("it is small");
        let taken = mirror.store.receive_next(&pack, &published.head).unwrap();
        let taken = taken.expect("it is the next");
        assert_eq!(
            (taken.head, taken.parent, taken.pack),
            (published.head, published.parent, Some(pack.clone()))
        );
        assert_eq!(mirror.head(), published.head);
        assert!(mirror.store.receive_next(&pack, &published.head).unwrap().is_none());
        let relayed = mirror.store.pack(published.parent, published.head.commit).unwrap();
        assert_eq!(std::fs::read(relayed.path).unwrap(), pack);
    }
    assert_same(&hub, &mirror, hub.head().commit);
    assert_eq!(std::fs::read_dir(mirror.store.spool()).unwrap().count(), 0);
    let World { dir, store } = mirror;
    drop(store);
    let mirror = World { store: Store::open(dir.path()).unwrap(), dir };
    assert_same(&hub, &mirror, hub.head().commit);
}

#[test]
fn what_needs_more_than_its_pack_is_no_head_yet() {
    let (hub, mirror) = (World::new(), World::new());
    let first = hub.put(&[("f", "a")]);
    mirror.store.receive_next(&first.pack.unwrap(), &first.head).unwrap().expect("it is the next");
    let large = hub.store.ingest(&mut tempfile::tempfile().unwrap()).unwrap();
    let pointer = hub.commit(|draft| put_file(draft, "large", &Store::pointer(&large)));
    let pack = pointer.pack.unwrap();
    assert!(mirror.store.receive_next(&pack, &pointer.head).unwrap().is_none());
    assert_eq!(mirror.head(), first.head);
    // It is here, and the one after it does not follow our head.
    let after = hub.put(&[("f", "b")]);
    assert!(mirror.store.receive_next(&after.pack.unwrap(), &after.head).unwrap().is_none());
    assert_eq!(mirror.head(), first.head);
    mirror.store.advance(&after.head).unwrap();
    assert_same(&hub, &mirror, after.head.commit);
}

#[test]
fn git_indexes_every_pack() {
    let hub = history();
    let log = whole_log(&hub);
    for (have, want) in
        [(None, 3), (Some(0), 3), (Some(0), 1), (Some(1), 3), (Some(3), 3), (Some(3), 0)]
    {
        let have: Option<usize> = have;
        let pack = hub.store.pack(have.map(|n| log[n].id), log[want].id).unwrap();
        let copy = hub.dir.path().join("copy.pack");
        std::fs::copy(&pack.path, &copy).unwrap();
        hub.git(&["index-pack", "--strict", copy.to_str().unwrap()]);
        let index = copy.with_extension("idx");
        let listed = hub.git(&["verify-pack", "-v", index.to_str().unwrap()]);
        let is_object = |line: &&str| line.len() > 40 && line.as_bytes()[40] == b' ';
        let ours: Vec<_> = listed.lines().filter(is_object).map(|line| &line[..40]).collect();
        let mut range = vec!["rev-list".to_owned(), "--objects".into(), log[want].id.to_string()];
        range.extend(have.map(|n| format!("^{}", log[n].id)));
        let wanted = hub.git(&range.iter().map(|s| &**s).collect::<Vec<_>>());
        let lacks: Vec<_> = wanted.lines().filter(|line| !ours.contains(&&line[..40])).collect();
        assert!(lacks.is_empty(), "{have:?}..{want} lacks {lacks:?}");
        std::fs::remove_file(copy).unwrap();
        std::fs::remove_file(index).unwrap();
    }
}

#[test]
fn a_pack_is_built_once_and_few_are_kept() {
    let hub = Arc::new(World::new());
    for n in 0..14 {
        hub.put(&[("f", &n.to_string())]);
    }
    let log = whole_log(&hub);
    let want = log[13].id;
    let have = log[3].id;
    let packs: Vec<_> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| hub.store.pack(Some(have), want).unwrap());
        let asked: Vec<_> = (0..8).map(|_| ask()).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(packs.iter().all(|pack| *pack == packs[0]));
    for commit in &log[..12] {
        hub.store.pack(Some(commit.id), want).unwrap();
    }
    let kept = std::fs::read_dir(hub.store.spool()).unwrap().count();
    assert!(kept <= 8, "{kept}");
    let again = hub.store.pack(Some(have), want).unwrap();
    assert_eq!(again, packs[0], "built again, it is the same");
}

#[test]
fn only_published_commits_are_sent() {
    let hub = history();
    let nobody = Oid::from_bytes([1; 20]);
    let head = hub.head().commit;
    let tree = hub.store.commit(head).unwrap().tree;
    let mut draft = hub.store.draft().unwrap();
    put_file(&mut draft, "f", b"unpublished");
    let prepared = draft.finish(&by(1)).unwrap().unwrap();
    for id in [nobody, tree, prepared.head().commit] {
        assert!(hub.store.pack(None, id).is_err());
        assert!(hub.store.pack(Some(id), head).is_err());
    }
    assert!(
        matches!(hub.store.pack(Some(nobody), head), Err(Error::UnknownCommit(id)) if id == nobody)
    );
}

/// A pack with one commit of a tree that the test makes up.
struct Forged {
    pack: PackWriter,
    world: World,
}

impl Forged {
    fn new() -> Forged {
        let world = World::new();
        world.put(&[("f", "old")]);
        Forged { pack: PackWriter::new(&world.dir.path().join("spool")), world }
    }

    fn add(&mut self, kind: Type, bytes: &[u8]) -> Oid {
        let id = hash(kind, bytes);
        self.pack.add(kind, id, bytes).unwrap();
        id
    }

    fn tree(&mut self, entries: &[(&str, &[u8], Oid)]) -> Oid {
        let mut raw = Vec::new();
        for (mode, name, id) in entries {
            raw.extend([mode.as_bytes(), b" ", name, b"\0", id.as_bytes().as_slice()].concat());
        }
        self.add(Type::Tree, &raw)
    }

    /// Whether a store takes it in; if it does not, nothing may have changed.
    fn takes(mut self, tree: Oid, seq: u64, parent: Option<Oid>) -> bool {
        let raw = commit::encode(&by(1), seq, tree, parent);
        let id = self.add(Type::Commit, &raw);
        let pack = self.pack.finish().unwrap().bytes.unwrap();
        let before = self.world.files();
        let want = Head { epoch: 1, seq, commit: id };
        match self.world.store.receive(&mut Cursor::new(pack), &want) {
            Ok(()) => true,
            Err(e) => {
                assert!(matches!(e, Error::Refused(_)), "{e:?}");
                assert_eq!(before, self.world.files());
                assert_eq!(std::fs::read_dir(self.world.store.spool()).unwrap().count(), 0);
                false
            }
        }
    }
}

#[test]
fn what_is_illegal_is_refused_and_changes_nothing() {
    let parent = |forged: &Forged| Some(forged.world.head().commit);
    let try_tree = |make: &dyn Fn(&mut Forged, Oid) -> Oid| {
        let mut forged = Forged::new();
        let blob = forged.add(Type::Blob, b"new");
        let tree = make(&mut forged, blob);
        let parent = parent(&forged);
        forged.takes(tree, 2, parent)
    };
    assert!(try_tree(&|forged, blob| forged.tree(&[("100644", b"f", blob)])));
    for name in [b"..".as_slice(), b".", b".git", b".GIT", b"a/b", b"", &[b'n'; 256]] {
        assert!(!try_tree(&|forged, blob| forged.tree(&[("100644", name, blob)])), "{name:?}");
        assert!(!try_tree(&|forged, blob| {
            let inner = forged.tree(&[("100644", name, blob)]);
            forged.tree(&[("40000", b"d", inner)])
        }));
    }
    for mode in ["160000", "100664", "100600", "040000", ""] {
        assert!(!try_tree(&|forged, blob| forged.tree(&[(mode, b"f", blob)])), "{mode}");
    }
    // Out of order, twice, a file and a folder of one name.
    assert!(!try_tree(
        &|forged, blob| forged.tree(&[("100644", b"b", blob), ("100644", b"a", blob)])
    ));
    assert!(!try_tree(
        &|forged, blob| forged.tree(&[("100644", b"a", blob), ("100644", b"a", blob)])
    ));
    assert!(!try_tree(&|forged, blob| {
        let inner = forged.tree(&[("100644", b"f", blob)]);
        forged.tree(&[("100644", b"a", blob), ("100644", b"a.b", blob), ("40000", b"a", inner)])
    }));
    // A blob where a tree must be, a tree where a blob must be, nothing where something must be.
    assert!(!try_tree(&|forged, blob| forged.tree(&[("40000", b"d", blob)])));
    assert!(!try_tree(&|forged, blob| {
        let inner = forged.tree(&[("100644", b"f", blob)]);
        forged.tree(&[("100644", b"f", inner)])
    }));
    assert!(!try_tree(&|forged, _| forged.tree(&[("100644", b"f", Oid::from_bytes([9; 20]))])));
    assert!(!try_tree(&|forged, _| forged.tree(&[("40000", b"d", Oid::from_bytes([9; 20]))])));
    assert!(!try_tree(&|_, _| Oid::from_bytes([9; 20])));
}

#[test]
fn metadata_that_does_not_fit_is_refused() {
    let take = |records: &[u8], inner: bool| {
        let mut forged = Forged::new();
        let file = forged.add(Type::Blob, b"new");
        let blob = forged.add(Type::Blob, &[b"depsync-meta 1\n", records].concat());
        let mut meta = forged.tree(&[("100644", b".depsync", blob)]);
        if inner {
            meta = forged.tree(&[("40000", b"f", meta)]);
        }
        let tree = forged.tree(&[("40000", b".depsync", meta), ("100644", b"f", file)]);
        let parent = Some(forged.world.head().commit);
        forged.takes(tree, 2, parent)
    };
    assert!(take(b"d755 /empty\0f644 /f\0", false));
    for records in [
        "f644 /g\0",
        "d755 /f\0",
        "l /f\0",
        "f9 /f\0",
        "f644 /f",
        "d /..\0",
        "d /.git\0",
        "d /a/b\0",
        "d /.depsync\0",
        "d /\0",
    ] {
        assert!(!take(records.as_bytes(), false), "{records:?}");
    }
    assert!(!take(b"d /x\0", true), "metadata below a file");

    let mut forged = Forged::new();
    let file = forged.add(Type::Blob, b"new");
    let inner = forged.tree(&[("100644", b".depsync", file)]);
    let tree = forged.tree(&[("40000", b"d", inner)]);
    let parent = Some(forged.world.head().commit);
    assert!(!forged.takes(tree, 2, parent), "the name is reserved at every level");
}

#[test]
fn a_commit_that_does_not_continue_the_line_is_refused() {
    let with = |seq, parent: &dyn Fn(&Forged) -> Option<Oid>| {
        let mut forged = Forged::new();
        let blob = forged.add(Type::Blob, b"new");
        let tree = forged.tree(&[("100644", b"f", blob)]);
        let parent = parent(&forged);
        forged.takes(tree, seq, parent)
    };
    let head = |forged: &Forged| Some(forged.world.head().commit);
    assert!(with(2, &head));
    assert!(with(1, &|_| None));
    assert!(!with(3, &head));
    assert!(!with(1, &head));
    assert!(!with(2, &|_| None));
    assert!(!with(2, &|_| Some(Oid::from_bytes([9; 20]))));
}

#[test]
fn a_damaged_pack_is_refused_and_changes_nothing() {
    let hub = history();
    let log = whole_log(&hub);
    let mirror = World::new();
    send(&hub, &mirror, None, &log[0]);
    let before = mirror.files();
    let pack = std::fs::read(hub.store.pack(Some(log[0].id), log[3].id).unwrap().path).unwrap();
    let refuse = |bytes: Vec<u8>, want: &Head| {
        let e = mirror.store.receive(&mut Cursor::new(bytes), want).unwrap_err();
        assert_eq!(e.class(), Class::Corrupt, "{e}");
        assert_eq!(before, mirror.files());
        assert_eq!(std::fs::read_dir(mirror.store.spool()).unwrap().count(), 0);
    };
    let want = log[3].head;
    for at in (0..pack.len()).step_by(7) {
        let mut bad = pack.clone();
        bad[at] ^= 0x20;
        refuse(bad, &want);
        refuse(pack[..at].to_vec(), &want);
    }
    refuse([&pack[..], b"more"].concat(), &want);
    refuse(pack.clone(), &Head { seq: 9, ..want });
    refuse(pack.clone(), &Head { epoch: 9, ..want });
    refuse(pack.clone(), &Head { commit: Oid::from_bytes([3; 20]), ..want });
    // A gap: the commits between are not there.
    let last = std::fs::read(hub.store.pack(Some(log[2].id), log[3].id).unwrap().path).unwrap();
    refuse(last, &want);
    mirror.store.receive(&mut Cursor::new(pack), &want).unwrap();
}

#[test]
fn a_damaged_large_pack_is_refused_and_changes_nothing() {
    let (hub, mirror) = (World::new(), World::new());
    hub.commit(|draft| (0..10).for_each(|n| put_file(draft, n.to_string(), &noise(n, 30_000))));
    let head = hub.head();
    let pack = std::fs::read(hub.store.pack(None, head.commit).unwrap().path).unwrap();
    assert!(pack.len() > 64 << 10);
    let before = mirror.files();
    for at in (0..pack.len()).step_by(pack.len() / 40) {
        let mut bad = pack.clone();
        bad[at] ^= 1;
        for bytes in [bad, pack[..at].to_vec()] {
            let e = mirror.store.receive(&mut Cursor::new(bytes), &head).unwrap_err();
            assert_eq!(e.class(), Class::Corrupt, "{e}");
        }
        assert_eq!(before, mirror.files());
        assert_eq!(std::fs::read_dir(mirror.store.spool()).unwrap().count(), 0);
    }
    mirror.store.receive(&mut Cursor::new(pack), &head).unwrap();
    mirror.store.advance(&head).unwrap();
    assert_same(&hub, &mirror, head.commit);
}

#[test]
fn a_pack_that_git_made_with_deltas_takes() {
    let (hub, mirror) = (World::new(), World::new());
    for n in 0..3 {
        hub.commit(|draft| put_file(draft, "f", &[noise(1, 5000), vec![n]].concat()));
    }
    let ids = hub.git(&["rev-list", "--objects", "--no-object-names", "main"]);
    let list = hub.dir.path().join("list");
    std::fs::write(&list, ids).unwrap();
    let pack = std::process::Command::new("git")
        .args(["pack-objects", "--stdout", "--depth=5", "-q"])
        .env("GIT_DIR", hub.dir.path().join("git"))
        .stdin(std::fs::File::open(list).unwrap())
        .output()
        .unwrap()
        .stdout;
    assert!(pack.len() < 10_000, "{}: three versions as deltas", pack.len());
    mirror.store.receive(&mut Cursor::new(pack), &hub.head()).unwrap();
    mirror.store.advance(&hub.head()).unwrap();
    assert_same(&hub, &mirror, hub.head().commit);
}

#[test]
fn who_descends_from_whom() {
    let hub = history();
    let log = whole_log(&hub);
    for (i, a) in log.iter().enumerate() {
        assert!(hub.store.is_published(a.id).unwrap());
        for (j, b) in log.iter().enumerate() {
            assert_eq!(hub.store.descends(a.id, b.id).unwrap(), i <= j);
        }
    }
    let mirror = World::new();
    send(&hub, &mirror, None, &log[1]);
    let pack = hub.store.pack(Some(log[1].id), log[3].id).unwrap().path;
    mirror.store.receive(&mut std::fs::File::open(pack).unwrap(), &log[3].head).unwrap();
    // Received is not yet published.
    assert!(!mirror.store.is_published(log[2].id).unwrap());
    assert!(mirror.store.descends(log[1].id, log[3].id).unwrap());
    mirror.store.advance(&log[3].head).unwrap();
    assert!(log.iter().all(|commit| mirror.store.is_published(commit.id).unwrap()));
    // Back to an older one: what is on the line is what the head says.
    mirror.store.advance(&log[1].head).unwrap();
    assert!(!mirror.store.is_published(log[2].id).unwrap());
    assert!(mirror.store.is_published(log[0].id).unwrap());
}
