//! Folded packs: read by stock git, smaller, and few.

use std::fs;

use super::*;

fn packs(world: &World) -> usize {
    packs::list(&world.dir.path().join("git/objects/pack")).unwrap().len()
}

/// A folder with many names, of which one file changes with each commit.
fn many_versions(world: &World, count: usize) {
    world.commit(|draft| {
        for n in 0..500 {
            put_file(draft, format!("conf/{n:04}.xml"), format!("<a>{n}</a>").as_bytes());
        }
        put_file(draft, "page", &noise(1, 20_000));
    });
    for n in 0..count {
        let mut page = noise(1, 20_000);
        page[n % 20_000] ^= 1;
        page.extend_from_slice(format!("{n}").as_bytes());
        world.commit(|draft| {
            put_file(draft, format!("conf/{:04}.xml", n % 500), format!("<b>{n}</b>").as_bytes());
            put_file(draft, "page", &page);
        });
        if n % 3 == 0 {
            world.store.fold(&|| true).unwrap();
        }
    }
}

/// Every object with its bytes, as stock git prints them.
fn everything(world: &World) -> String {
    world.git(&["cat-file", "--batch", "--batch-all-objects"])
}

#[test]
fn packs_stay_few_and_git_reads_them() {
    let world = World::new();
    many_versions(&world, 120);
    assert!(packs(&world) < 32, "{}", packs(&world));
    assert_eq!(world.git(&["fsck", "--full", "--strict"]), "");
    assert_eq!(world.git(&["rev-list", "--count", "--all"]).trim(), "121");
    let mut log = world.store.log(world.head().commit, 200).unwrap();
    assert_eq!(log.len(), 121);
    let oldest = log.pop().unwrap();
    assert_eq!(world.store.totals(oldest.id).unwrap().0, 501);
}

#[test]
fn folding_keeps_every_byte_and_saves_most_of_them() {
    let world = World::new();
    many_versions(&world, 40);
    let before = everything(&world);
    let whole = world.store.pack(None, world.head().commit).unwrap();
    let whole = fs::read(whole.path).unwrap();
    let folded = world.store.fold_all(&|| true).unwrap().unwrap();
    assert_eq!(packs(&world), 1);
    assert!(folded.after * 4 < whole.len() as u64, "{folded:?} of {}", whole.len());
    assert_eq!(everything(&world), before);
    assert_eq!(world.git(&["fsck", "--full", "--strict"]), "");
    let again = world.store.fold_all(&|| true).unwrap().unwrap();
    assert_eq!((again.after, again.objects), (folded.after, folded.objects));
    assert_eq!(world.git(&["fsck", "--full", "--strict"]), "");

    // What is sent is cut from folded packs, and whole in itself.
    fs::remove_dir_all(world.store.spool()).unwrap();
    fs::create_dir(world.store.spool()).unwrap();
    let cut = world.store.pack(None, world.head().commit).unwrap();
    let mirror = World::new();
    let mut stream = fs::File::open(cut.path).unwrap();
    mirror.store.receive(&mut stream, &world.head()).unwrap();
    mirror.store.advance(&world.head()).unwrap();
    assert_eq!(everything(&mirror), before);
}

#[test]
fn a_damaged_pack_is_not_folded_and_nothing_is_lost() {
    let world = World::new();
    many_versions(&world, 4);
    let (path, _) = packs::list(&world.dir.path().join("git/objects/pack")).unwrap().swap_remove(0);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::remove_file(&path).unwrap();
    fs::write(&path, &bytes).unwrap();
    let before = world.files();
    let reopened = Store::open(world.dir.path()).unwrap();
    assert_eq!(reopened.fold_all(&|| true).unwrap_err().class(), Class::Corrupt);
    assert_eq!(world.files(), before);
}

#[test]
fn readers_go_on_while_packs_are_folded() {
    let world = World::new();
    many_versions(&world, 10);
    let head = world.head().commit;
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            for commit in world.store.log(head, 100).unwrap().iter().cycle().take(200) {
                let page = world.store.entry(commit.id, &path("page")).unwrap().unwrap();
                let Kind::File { blob, .. } = page.kind else { panic!("it is a file") };
                assert!(world.store.read_blob(blob).unwrap().len() >= 20_000);
            }
        });
        for _ in 0..10 {
            world.store.fold_all(&|| true).unwrap();
        }
        reading.join().unwrap();
    });
}

#[test]
fn a_pack_that_nobody_heard_of_goes_at_the_owners_start() {
    let world = World::new();
    world.put(&[("a", "1")]);
    let head = world.head();
    let second = world.put(&[("a", "2")]);
    // As a kill leaves it that comes between the pack and the reference.
    fs::write(world.store.git_dir().join("refs/heads/main"), format!("{}\n", head.commit)).unwrap();
    let reopened = Store::open(world.dir.path()).unwrap();
    assert_eq!(reopened.head().unwrap(), Some(head));
    assert_eq!(reopened.drop_unpublished().unwrap(), 1);
    assert!(matches!(reopened.commit(second.head.commit), Err(Error::UnknownCommit(_))));
    assert_eq!(world.git(&["fsck", "--full", "--strict"]), "");
    assert_eq!(reopened.drop_unpublished().unwrap(), 0);
}
