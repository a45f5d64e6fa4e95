//! Large objects, and what a start finds.

use std::{
    fs::{self, File},
    io::{Read, Write},
};

use sha2::{Digest, Sha256};

use super::*;
use crate::model::{Content, ObjectId};

fn sha256(bytes: &[u8]) -> ObjectId {
    ObjectId::from_bytes(Sha256::digest(bytes).into())
}

fn stored(world: &World, id: &ObjectId) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    world.store.open_object(id).unwrap()?.read_to_end(&mut bytes).unwrap();
    Some(bytes)
}

#[test]
fn an_artifact_is_stored_once_under_its_sha256() {
    let world = World::new();
    for size in [0, 1, 1 << 20, (17 << 20) + 3] {
        let bytes = noise(1, size);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let object = world.store.ingest(&mut file).unwrap();
        assert_eq!((object.id, object.size), (sha256(&bytes), size as u64));
        assert_eq!(world.store.ingest(&mut file).unwrap(), object);
        assert!(stored(&world, &object.id).unwrap() == bytes);
    }
    assert_eq!(fs::read_dir(world.store.spool()).unwrap().count(), 0);
}

fn ingest(world: &World, bytes: &[u8]) -> ObjectId {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    world.store.ingest(&mut file).unwrap().id
}

fn is_kept(world: &World, id: &ObjectId) -> bool {
    let hex = id.to_string();
    world.dir.path().join("cuts").join(&hex[..2]).join(&hex[2..4]).join(&hex).exists()
}

#[test]
fn a_delta_is_made_once_and_makes_the_object() {
    let world = World::new();
    let old = noise(1, 6 << 20);
    let new = [&old[..1 << 20], &noise(2, 5000), &old[1 << 20..]].concat();
    let [old_id, new_id] = [&old, &new].map(|bytes| ingest(&world, bytes));
    let made: Vec<_> = std::thread::scope(|scope| {
        let ask = || scope.spawn(|| world.store.delta(&old_id, &new_id).unwrap().unwrap());
        let asked: Vec<_> = (0..8).map(|_| ask()).collect();
        asked.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(made.iter().all(|delta| *delta == made[0]));
    assert!(made[0].size < 5300, "{}", made[0].size);
    assert_eq!(world.store.built().deltas, 1);

    let mirror = World::new();
    let base = mirror.store.open_object(&ingest(&mirror, &old)).unwrap().unwrap();
    let mut writer = mirror.store.object_writer(new_id, new.len() as u64).unwrap();
    writer.write(&new[..77]).unwrap();
    writer.start_again().unwrap();
    let header = delta::Header { base: old_id, result: new_id, size: new.len() as u64 };
    let came = File::open(&made[0].path).unwrap();
    writer.fill(|out| delta::apply(&header, &base, came, out)).unwrap();
    writer.finish().unwrap();
    assert!(stored(&mirror, &new_id).unwrap() == new);
    // What came is what a mirror below would be sent.
    let came = mirror.store.spool().join("came");
    fs::copy(&made[0].path, &came).unwrap();
    mirror.store.keep_delta(&old_id, &new_id, &came).unwrap();
    let relayed = mirror.store.delta(&old_id, &new_id).unwrap().unwrap();
    assert_eq!(fs::read(relayed.path).unwrap(), fs::read(&made[0].path).unwrap());
    assert_eq!(mirror.store.built().deltas, 0);
}

#[test]
fn cuts_that_are_lost_or_damaged_are_made_again_and_those_without_an_object_go() {
    let world = World::new();
    let (old, new) = (noise(3, 700_000), [noise(3, 700_000), vec![7; 9]].concat());
    let [old_id, new_id] = [&old, &new].map(|bytes| ingest(&world, bytes));
    assert!(is_kept(&world, &old_id) && is_kept(&world, &new_id));
    let first = world.store.delta(&old_id, &new_id).unwrap().unwrap();
    let bytes = fs::read(&first.path).unwrap();

    world.store.forget_cuts(&old_id).unwrap();
    let hex = new_id.to_string();
    let cuts = world.dir.path().join("cuts").join(&hex[..2]).join(&hex[2..4]).join(&hex);
    fs::write(cuts, b"damaged").unwrap();
    fs::remove_file(&first.path).unwrap();
    let again = world.store.delta(&old_id, &new_id).unwrap().unwrap();
    assert_eq!(fs::read(&again.path).unwrap(), bytes);
    assert!(is_kept(&world, &old_id));

    fs::remove_file(world.store.object_path(&old_id)).unwrap();
    let World { dir, store } = world;
    drop(store);
    let world = World { store: Store::open(dir.path()).unwrap(), dir };
    assert!(!is_kept(&world, &old_id) && is_kept(&world, &new_id));
    assert_eq!(world.store.delta(&old_id, &new_id).unwrap(), None);
}

#[test]
fn a_delta_that_saves_too_little_is_none_and_not_tried_again() {
    let world = World::new();
    let [old, new] = [5, 7].map(|seed| ingest(&world, &noise(seed, 600_000)));
    for _ in 0..3 {
        assert_eq!(world.store.delta(&old, &new).unwrap(), None);
    }
    assert_eq!(world.store.built().deltas, 1);
}

#[test]
fn a_mirror_knows_which_objects_it_lacks() {
    let (hub, mirror) = (World::new(), World::new());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"an artifact").unwrap();
    let object = hub.store.ingest(&mut file).unwrap();
    let published = hub.commit(|draft| {
        for name in ["one", "two"] {
            put_file(draft, name, &Store::pointer(&object));
        }
        put_file(draft, "small", &[b'x'; 130]);
    });
    let head = published.head;
    mirror.store.receive(&mut &published.pack.unwrap()[..], &head).unwrap();
    let missing = mirror.store.missing_objects(None, head.commit).unwrap();
    assert_eq!(missing, [(object.id, object.size)]);
    assert_eq!(hub.store.missing_objects(None, head.commit).unwrap(), []);
    assert_eq!(hub.store.totals(head.commit).unwrap(), (3, 130 + 2 * object.size));
    let Some(Kind::File { blob, .. }) =
        hub.store.entry(head.commit, &path("one")).unwrap().map(|e| e.kind)
    else {
        panic!("it is a file")
    };
    let content = Content::Object { id: object.id, size: object.size };
    assert_eq!(mirror.store.content(blob).unwrap(), content);

    let mut writer = mirror.store.object_writer(object.id, object.size).unwrap();
    writer.write(b"an artifact").unwrap();
    writer.finish().unwrap();
    assert_eq!(mirror.store.missing_objects(None, head.commit).unwrap(), []);
    assert_eq!(stored(&mirror, &object.id).unwrap(), b"an artifact");
}

#[test]
fn a_lacking_object_names_what_may_be_its_older_version() {
    let (hub, mirror) = (World::new(), World::new());
    let put = |files: &[(&str, Option<&[u8]>)]| {
        hub.commit(|draft| {
            for (at, bytes) in files {
                match bytes {
                    None => draft.remove(&path(at)),
                    Some(bytes) => {
                        let mut file = tempfile::tempfile().unwrap();
                        file.write_all(bytes).unwrap();
                        let object = hub.store.ingest(&mut file).unwrap();
                        put_file(draft, at, &Store::pointer(&object));
                    }
                }
            }
        })
    };
    let old = put(&[
        ("apps/shop-1.9.war", Some(b"shop 1.9")),
        ("apps/shop-1.8.war", Some(b"shop 1.8")),
        ("lib/moved.jar", Some(b"moved 1")),
        ("same.jar", Some(b"same 1")),
        ("apps/note-2.txt", Some(b"gone")),
    ]);
    let have = old.head;
    mirror.store.receive(&mut &old.pack.unwrap()[..], &have).unwrap();
    for (_, bytes) in [(0, "shop 1.9"), (0, "shop 1.8"), (0, "moved 1"), (0, "same 1")] {
        ingest(&mirror, bytes.as_bytes());
    }
    mirror.store.advance(&have).unwrap();
    let new = put(&[
        ("apps/shop-1.10.war", Some(b"shop 1.10")),
        ("lib/moved.jar", None),
        ("lib2/moved.jar", Some(b"moved 2")),
        ("same.jar", Some(b"same 2")),
        ("apps/note-3.txt", Some(b"its older version is not here")),
        ("other", Some(b"nothing alike")),
    ]);
    let want = new.head;
    mirror.store.receive(&mut &new.pack.unwrap()[..], &want).unwrap();
    let mut found = mirror.store.lacking(Some(have.commit), want.commit).unwrap();
    found.sort_by_key(|lacking| lacking.size);
    let base = |bytes: &str| Some(sha256(bytes.as_bytes()));
    let found: Vec<_> = found.iter().map(|lacking| (lacking.id, lacking.base)).collect();
    let expected = [
        ("same 2", base("same 1")),
        ("moved 2", base("moved 1")),
        ("shop 1.10", base("shop 1.9")),
        ("nothing alike", None),
        ("its older version is not here", None),
    ];
    assert_eq!(found, expected.map(|(bytes, base)| (sha256(bytes.as_bytes()), base)));
    assert!(mirror.store.lacking(None, want.commit).unwrap().iter().all(|l| l.base.is_none()));
}

#[test]
fn parts_of_what_nobody_wants_are_swept() {
    let world = World::new();
    let ids = [1, 2, 3].map(|n| ObjectId::from_bytes([n; 32]));
    let mut writers = ids.map(|id| world.store.object_writer(id, 100).unwrap());
    for writer in &mut writers {
        writer.write(b"some").unwrap();
    }
    let [first, busy, last] = writers;
    drop((first, last)); // as by a broken link
    world.store.sweep_parts(&[ids[0]].into()).unwrap();
    drop(busy);
    let offset = |id| world.store.object_writer(id, 100).unwrap().offset();
    assert_eq!(ids.map(offset), [4, 4, 0]);
}

#[test]
fn a_partial_object_is_resumed_and_a_wrong_one_leaves_nothing() {
    let world = World::new();
    let bytes = noise(1, 3 << 20);
    let (id, size) = (sha256(&bytes), bytes.len() as u64);
    let mut writer = world.store.object_writer(id, size).unwrap();
    writer.write(&bytes[..1000]).unwrap();
    assert!(matches!(world.store.object_writer(id, size), Err(Error::Busy(busy)) if busy == id));
    drop(writer);
    // A restart keeps it.
    let World { dir, store } = world;
    drop(store);
    let world = World { store: Store::open(dir.path()).unwrap(), dir };
    let mut writer = world.store.object_writer(id, size).unwrap();
    assert_eq!(writer.offset(), 1000);
    writer.write(&bytes[1000..2000]).unwrap();
    let short = writer.finish().unwrap_err();
    assert_eq!(short.class(), Class::Corrupt);
    assert!(stored(&world, &id).is_none());
    let mut writer = world.store.object_writer(id, size).unwrap();
    assert_eq!(writer.offset(), 2000);
    writer.write(&bytes[2000..]).unwrap();
    assert_eq!(writer.write(b"x").unwrap_err().class(), Class::Corrupt);
    drop(writer);
    let mut writer = world.store.object_writer(id, size).unwrap();
    assert_eq!(writer.offset(), 0, "too many bytes: it starts anew");
    writer.write(&noise(1, 3 << 20)[1..]).unwrap();
    writer.write(b"x").unwrap();
    assert_eq!(writer.finish().unwrap_err().class(), Class::Corrupt);
    assert_eq!(fs::read_dir(world.store.spool()).unwrap().count(), 0);
    let mut writer = world.store.object_writer(id, size).unwrap();
    writer.write(&bytes).unwrap();
    writer.finish().unwrap();
    assert!(stored(&world, &id).unwrap() == bytes);
}

#[test]
fn a_start_sweeps_what_a_kill_left() {
    let world = World::new();
    let head = world.put(&[("f", "1")]).head;
    let World { dir, store } = world;
    drop(store);
    let leftovers = [
        "git/refs/heads/main.lock",
        "git/refs/depsync/checkout.lock",
        "git/HEAD.lock",
        "git/config.lock",
        "git/packed-refs.lock",
        "git/objects/pack/tmp_pack_x",
        "git/objects/pack/pack-0123456789012345678901234567890123456789.pack",
        "spool/tmp-abc",
        "spool/0..1.pack",
    ];
    for name in leftovers {
        File::create(dir.path().join(name)).unwrap();
    }
    fs::create_dir(dir.path().join("spool/tmp-folder")).unwrap();
    let world = World { store: Store::open(dir.path()).unwrap(), dir };
    assert!(leftovers.iter().all(|name| !world.dir.path().join(name).exists()));
    assert_eq!(fs::read_dir(world.store.spool()).unwrap().count(), 0);
    assert_eq!(world.head(), head);
    world.put(&[("f", "2")]);
}

#[test]
fn the_heads_pack_that_lost_its_index_in_a_power_cut_gets_it_again() {
    for size in [10, 300_000] {
        let world = World::new();
        world.put(&[("f", "1")]);
        world.commit(|draft| put_file(draft, "g", &noise(1, size)));
        let (head, files) = (world.head(), world.files());
        let World { dir, store } = world;
        drop(store);
        let pack = dir.path().join(format!("git/objects/pack/pack-{}.pack", head.commit));
        let index = fs::read(pack.with_extension("idx")).unwrap();
        fs::remove_file(pack.with_extension("idx")).unwrap();
        let world = World { store: Store::open(dir.path()).unwrap(), dir };
        assert_eq!((world.head(), world.files()), (head, files), "{size}");
        assert!(fs::read(pack.with_extension("idx")).unwrap() == index, "{size}");
        assert_eq!(world.git(&["fsck", "--full", "--strict"]), "");
    }
}

#[test]
fn the_heads_pack_that_lost_its_index_is_never_swept() {
    let world = World::new();
    let head = world.put(&[("f", "1")]).head.commit;
    let World { dir, store } = world;
    drop(store);
    let pack = dir.path().join(format!("git/objects/pack/pack-{head}.pack"));
    fs::remove_file(pack.with_extension("idx")).unwrap();
    let whole = fs::read(&pack).unwrap();
    // Nothing can be written beside it, as on a full disk.
    let spool = dir.path().join("spool");
    fs::remove_dir(&spool).unwrap();
    fs::write(&spool, "").unwrap();
    assert!(Store::open(dir.path()).is_err());
    assert!(fs::read(&pack).unwrap() == whole);

    // What of it is damaged may hold something that can be saved.
    fs::remove_file(&spool).unwrap();
    fs::remove_file(&pack).unwrap();
    fs::write(&pack, &whole[..whole.len() - 1]).unwrap();
    assert!(Store::open(dir.path()).is_err(), "the head cannot be read");
    let put_away = spool.join(format!("damaged-pack-{head}.pack"));
    assert!(fs::read(put_away).unwrap() == whole[..whole.len() - 1]);
}

#[test]
fn a_torn_head_is_never_taken_for_an_empty_feed() {
    let world = World::new();
    world.put(&[("f", "1")]);
    let World { dir, store } = world;
    drop(store);
    for torn in [b"".as_slice(), b"\0\0\0\0", b"ref: refs/heads/other\n", b"0123\n"] {
        fs::write(dir.path().join("git/refs/heads/main"), torn).unwrap();
        let e = Store::open(dir.path()).err().expect("it is damaged");
        assert_eq!(e.class(), Class::Corrupt);
        assert!(e.to_string().contains("refs/heads/main"), "{e}");
    }
}

#[test]
fn a_commit_is_published_only_on_the_head_that_it_was_made_on() {
    let world = World::new();
    world.put(&[("f", "1")]);
    let prepare = |text: &str| {
        let mut draft = world.store.draft().unwrap();
        put_file(&mut draft, "f", text.as_bytes());
        draft.finish(&by(1)).unwrap().unwrap()
    };
    let (first, second) = (prepare("2"), prepare("3"));
    let head = world.store.publish(first).unwrap().head;
    let before = world.files();
    assert!(matches!(world.store.publish(second), Err(Error::Moved { .. })));
    assert_eq!((before, head), (world.files(), world.head()));
    assert_eq!(fs::read_dir(world.store.spool()).unwrap().count(), 0);
    // The same content again is no commit.
    let mut draft = world.store.draft().unwrap();
    put_file(&mut draft, "f", b"2");
    assert!(draft.finish(&by(1)).unwrap().is_none());
}

#[test]
fn the_checkout_mark_survives() {
    let world = World::new();
    assert_eq!(world.store.checked_out().unwrap(), None);
    let head = world.put(&[("f", "1")]).head.commit;
    world.store.set_checked_out(head).unwrap();
    let World { dir, store } = world;
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.checked_out().unwrap(), Some(head));
}

#[test]
fn an_entry_whose_content_is_nowhere_is_no_commit() {
    let world = World::new();
    let mut draft = world.store.draft().unwrap();
    let blob = Oid::from_bytes([5; 20]);
    draft.put(
        &path("f"),
        Entry { kind: Kind::File { blob, executable: false }, meta: Meta::default() },
    );
    assert!(matches!(draft.finish(&by(1)), Err(Error::Missing { id, .. }) if id == blob));
}
