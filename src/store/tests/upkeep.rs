//! Retention, integrity, and history that is cut off.

use std::fs;

use super::*;
use crate::model::{ObjectId, Retention, Subset};

const GOING: Going<'static> = &|| true;

/// Stores bytes as an object and returns its pointer.
fn ingest(world: &World, bytes: &[u8]) -> (ObjectId, Vec<u8>) {
    let path = world.dir.path().join("artifact");
    fs::write(&path, bytes).unwrap();
    let object = world.store.ingest(&mut fs::File::open(&path).unwrap()).unwrap();
    fs::remove_file(path).unwrap();
    (object.id, Store::pointer(&object))
}

/// Versions of one artifact, the oldest first.
fn versions(world: &World, count: u32) -> Vec<(Published, ObjectId)> {
    let version = |n| {
        let (id, pointer) = ingest(world, &noise(2 * n, 5000));
        let published = world.commit(|draft| put_file(draft, "app.war", &pointer));
        (published, id)
    };
    (1..=count).map(version).collect()
}

fn last(versions: u64) -> Retention {
    Retention { age: std::time::Duration::ZERO, versions }
}

fn here(world: &World, id: &ObjectId) -> bool {
    world.store.open_object(id).unwrap().is_some()
}

#[test]
fn only_what_no_kept_version_needs_is_removed() {
    let world = World::new();
    let all = versions(&world, 10);
    let pinned = all[2].0.head.commit;
    let collected = world.store.collect(&last(4), &Subset::all(), &[pinned], GOING).unwrap();
    assert_eq!((collected.removed, collected.kept, collected.versions), (5, 5, 4));
    for (n, (published, id)) in all.iter().enumerate() {
        let kept = n >= 6 || n == 2;
        assert_eq!(here(&world, id), kept, "version {n}");
        let commit = published.head.commit;
        assert_eq!(world.store.was_removed(id).unwrap(), !kept);
        assert_eq!(world.store.is_given_up(commit, id).unwrap(), !kept, "version {n}");
    }
    assert_eq!(world.store.log(world.head().commit, 100).unwrap().len(), 10, "history stays");
    let again = world.store.collect(&last(4), &Subset::all(), &[pinned], GOING).unwrap();
    assert_eq!((again.removed, again.kept), (0, 5));
    let unpinned = world.store.collect(&last(4), &Subset::all(), &[], GOING).unwrap();
    assert_eq!((unpinned.removed, unpinned.kept), (1, 4));
    let young = world.store.collect(&Retention::default(), &Subset::all(), &[], GOING).unwrap();
    assert_eq!(young.removed, 0, "a version stays while it is inside either bound");
}

#[test]
fn what_lies_outside_of_the_part_that_is_kept_is_removed() {
    let world = World::new();
    let bytes = |n| noise(n, 5000);
    let (old, inside, outside, both) =
        (ingest(&world, &bytes(2)), ingest(&world, &bytes(4)), ingest(&world, &bytes(6)), {
            ingest(&world, &bytes(8))
        });
    world.commit(|draft| put_file(draft, "lib/a.jar", &old.1));
    world.commit(|draft| {
        put_file(draft, "lib/a.jar", &outside.1);
        put_file(draft, "lib/both.jar", &both.1);
        put_file(draft, "webapps/both.jar", &both.1);
        put_file(draft, "webapps/shop.war", &inside.1);
    });
    let part = Subset::new(["webapps/**"]).unwrap();
    let collected = world.store.collect(&last(9), &part, &[], GOING).unwrap();
    assert_eq!((collected.removed, collected.kept), (2, 2));
    for (object, stays) in [(&old, false), (&outside, false), (&inside, true), (&both, true)] {
        assert_eq!(here(&world, &object.0), stays);
    }
}

#[test]
fn what_is_on_its_way_in_is_never_removed() {
    let world = World::new();
    let all = versions(&world, 3);
    // The old content comes back: it is found stored, and not published yet.
    let (again, pointer) = ingest(&world, &noise(2, 5000));
    assert_eq!(again, all[0].1);
    assert_eq!(world.store.collect(&last(1), &Subset::all(), &[], GOING).unwrap().removed, 1);
    assert!(here(&world, &again) && !here(&world, &all[1].1));
    world.commit(|draft| put_file(draft, "app.war", &pointer));
    world.store.collect(&last(1), &Subset::all(), &[], GOING).unwrap();
    assert!(here(&world, &again), "it is the head's");
}

#[test]
fn damage_is_found_and_nothing_wrong_is_given_out() {
    let world = World::new();
    world.put(&[("a", "1"), ("dir/b", "2")]);
    let all = versions(&world, 2);
    let keep = Retention::default();
    let check = || {
        let parts = world.store.parts().unwrap();
        let damaged = parts.iter().filter_map(|(part, _)| {
            let why = world.store.check_part(part, GOING).unwrap()?;
            Some((part.clone(), why))
        });
        let damaged: Vec<_> = damaged.collect();
        Findings { damaged, ..world.store.check_history(&keep, &Subset::all(), GOING).unwrap() }
    };
    assert!(check().is_sound());

    let object = world.store.object_path(&all[1].1);
    let mut bytes = fs::read(&object).unwrap();
    bytes[77] ^= 1;
    fs::write(&object, &bytes).unwrap();
    assert_eq!(check().damaged[0].0, Part::Object(all[1].1));
    assert!(!here(&world, &all[1].1), "it is put away instead");
    assert_eq!(world.store.alarms(), 1);
    assert_eq!(check().objects, [(all[1].1, 5000)]);
    bytes[77] ^= 1;
    let whole = world.dir.path().join("whole");
    fs::write(&whole, &bytes).unwrap();
    let mut whole = fs::File::open(&whole).unwrap();
    assert!(!world.store.restore_object(&all[0].1, &mut whole).unwrap(), "it is another one");
    assert!(world.store.restore_object(&all[1].1, &mut whole).unwrap());
    assert!(check().is_sound() && here(&world, &all[1].1));
}

#[test]
fn of_a_damaged_pack_all_that_can_be_read_is_saved() {
    let world = World::new();
    world.commit(|draft| {
        for n in 0..50_u32 {
            put_file(draft, format!("{n}"), &noise(2 * n, 1000));
        }
    });
    let head = world.head();
    let whole = fs::read(world.store.pack(None, head.commit).unwrap().path).unwrap();
    let pack = world.store.parts().unwrap().remove(0).0;
    let Part::Pack(path) = &pack else { panic!("it is a pack") };

    // An index is written again.
    let index = path.with_extension("idx");
    let sound = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    fs::write(&index, &sound[..sound.len() - 30]).unwrap();
    assert!(world.store.check_part(&pack, GOING).unwrap().is_some());
    world.store.put_away(&pack).unwrap();
    assert_eq!(fs::read(&index).unwrap(), sound);
    assert_eq!(world.store.check_part(&pack, GOING).unwrap(), None);

    let mut bytes = whole.clone();
    for at in [10_100, 20_500, 30_900] {
        bytes[at] ^= 0x40;
    }
    fs::remove_file(path).unwrap();
    fs::write(path, &bytes).unwrap();
    let World { dir, store } = world;
    // libgit2 would share what the old one has open.
    drop(store);
    let world = World { store: Store::open(dir.path()).unwrap(), dir };
    assert!(world.store.check_part(&pack, GOING).unwrap().is_some());
    world.store.put_away(&pack).unwrap();
    let found = world.store.check_history(&Retention::default(), &Subset::all(), GOING).unwrap();
    let lost = found.history.len();
    assert!((1..=3).contains(&lost), "only what was hit is lost: {found:?}");
    let contents: Vec<_> = (0..50_u32).map(|n| noise(2 * n, 1000)).collect();
    assert_eq!(world.store.restore_blobs(&found.history, &contents).unwrap(), lost);
    assert!(
        world.store.check_history(&Retention::default(), &Subset::all(), GOING).unwrap().is_sound()
    );
    assert_eq!(world.git(&["fsck", "--full", "--strict"]), "");
}

#[test]
fn a_version_alone_is_a_history_for_stock_git() {
    let world = World::new();
    for n in 0..5_u32 {
        world.put(&[("a", &n.to_string()), ("dir/b", "same")]);
    }
    let head = world.head();
    let mirror = World::new();
    let pack = world.store.pack_alone(head.commit).unwrap();
    let mut pack = fs::File::open(pack.path).unwrap();
    assert!(mirror.store.receive(&mut pack, &head).is_err(), "its history is not here");
    let mut pack = fs::File::open(world.store.pack_alone(head.commit).unwrap().path).unwrap();
    mirror.store.receive_alone(&mut pack, &head).unwrap();
    mirror.store.advance(&head).unwrap();
    assert_eq!(mirror.git(&["fsck", "--full", "--strict"]), "");
    assert_eq!(mirror.store.log(head.commit, 10).unwrap().len(), 1);
    assert!(
        mirror.store.check_history(&Retention::HEAD, &Subset::all(), GOING).unwrap().is_sound()
    );

    let mut at = head;
    for n in 5..25_u32 {
        world.put(&[("a", &n.to_string())]);
        let next = world.head();
        let pack = world.store.pack(Some(at.commit), next.commit).unwrap();
        mirror.store.receive(&mut fs::File::open(pack.path).unwrap(), &next).unwrap();
        mirror.store.advance(&next).unwrap();
        mirror.store.cut_off(&next, GOING).unwrap();
        at = next;
    }
    assert!(mirror.store.log(at.commit, 100).unwrap().len() < 10, "history is given up");
    assert!(mirror.store.pack_sizes().unwrap().len() < 10);
    assert!(!mirror.store.is_published(head.commit).unwrap());
    assert_eq!(mirror.store.totals(at.commit).unwrap(), (2, 6));
    assert_eq!(mirror.git(&["fsck", "--full", "--strict"]), "");
    let reopened = Store::open(mirror.dir.path()).unwrap();
    assert_eq!(reopened.head().unwrap(), Some(at));
}

#[test]
fn only_what_published_versions_refer_to_is_public() {
    let world = World::new();
    let (vetoed, _) = ingest(&world, &noise(99, 5000));
    let all = versions(&world, 5);
    assert!(!world.store.is_public(&vetoed).unwrap());
    for (_, id) in &all {
        assert!(world.store.is_public(id).unwrap());
    }
    let later = versions(&world, 7).pop().unwrap();
    assert!(world.store.is_public(&later.1).unwrap());
    assert!(!world.store.is_public(&vetoed).unwrap());
}
