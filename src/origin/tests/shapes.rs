//! Whatever a directory may hold, and every way to change it.

use std::{
    fs::{self, File, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
    time::Duration,
};

use super::world::{LARGE_FILE, World, rel};
use crate::{ledger::Kind, sys};

#[test]
fn every_change_by_events_alone() {
    let world = World::new();
    let step = |what: &str, change: &dyn Fn()| {
        let before = world.seq();
        change();
        world.wait(what, |world| {
            (world.seq() > before && world.tree() == world.disk()).then_some(())
        });
    };
    step("create", &|| world.write("a.txt", "one"));
    step("edit", &|| world.write("a.txt", "two"));
    step("append", &|| {
        use std::io::Write;
        let mut file = File::options().append(true).open(world.at("a.txt")).unwrap();
        file.write_all(b"more").unwrap();
    });
    step("rename", &|| fs::rename(world.at("a.txt"), world.at("b.txt")).unwrap());
    step("chmod", &|| {
        fs::set_permissions(world.at("b.txt"), Permissions::from_mode(0o750)).unwrap();
    });
    step("symlink", &|| symlink("b.txt", world.at("link")).unwrap());
    step("nested", &|| world.write("d/e/f/g.txt", "deep"));
    step("empty folder", &|| fs::create_dir(world.at("empty")).unwrap());
    step("mode of a folder", &|| {
        fs::set_permissions(world.at("empty"), Permissions::from_mode(0o2750)).unwrap();
    });
    step("move a folder", &|| fs::rename(world.at("d/e"), world.at("moved")).unwrap());
    step("large file", &|| {
        world.write("big.bin", vec![7; usize::try_from(LARGE_FILE).unwrap() * 3]);
    });
    step("hard link", &|| fs::hard_link(world.at("b.txt"), world.at("hard")).unwrap());
    step("file to folder", &|| {
        fs::remove_file(world.at("hard")).unwrap();
        world.write("hard/x", "inside");
    });
    step("folder to link", &|| {
        fs::remove_dir_all(world.at("hard")).unwrap();
        symlink("moved", world.at("hard")).unwrap();
    });
    step("link to file", &|| {
        fs::remove_file(world.at("hard")).unwrap();
        world.write("hard", "a file");
    });
    step("delete", &|| fs::remove_file(world.at("b.txt")).unwrap());
    step("delete a folder", &|| fs::remove_dir_all(world.at("moved")).unwrap());
    world.check_by_git();
}

#[test]
fn a_file_that_is_only_touched_makes_no_commit() {
    let world = World::new();
    world.write("a", "x");
    world.write("d/b", "y");
    world.sync();
    let (before, recorded) = (world.head(), world.entry("a").unwrap().meta.mtime);
    let later = sys::now() + Duration::from_secs(100);
    File::options().write(true).open(world.at("a")).unwrap().set_modified(later).unwrap();
    world.write("a", "x");
    world.sync();
    assert_eq!(world.head(), before);
    // Not even by a neighbour's change.
    world.write("c", "z");
    world.sync();
    assert_eq!(world.seq(), before.unwrap().seq + 1);
    assert_eq!(world.entry("a").unwrap().meta.mtime, recorded);
}

#[test]
fn names_and_modes_of_every_kind() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let world = World::new();
    let long = "n".repeat(255);
    for name in
        ["with space", "quote'\"", "new\nline", "ümläut", "CASE", "case", &long, "-dash", "a\\b"]
    {
        world.write(name, name);
    }
    fs::write(world.at("").join(OsStr::from_bytes(b"\xff\xfe")), b"bytes").unwrap();
    for mode in [0o600, 0o644, 0o755, 0o4755, 0o000] {
        world.write(&format!("mode-{mode:o}"), "m");
        let path = world.at(&format!("mode-{mode:o}"));
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    world.write("empty-file", "");
    world.wait("all of them", |world| {
        let tree = world.tree();
        let readable = tree.contains_key("mode-0") || !is_root();
        (readable && tree.len() >= world.disk().len() - usize::from(!is_root())).then_some(())
    });
    if is_root() {
        assert_eq!(world.tree(), world.disk());
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn special_files_and_git_folders_are_left_out_and_said() {
    let world = World::new();
    let made = Command::new("mkfifo").arg(world.at("pipe")).status().unwrap();
    assert!(made.success());
    world.write("sub/.git/config", "[core]");
    world.write("sub/file", "kept");
    world.write("up.part", "half");
    world.write(".depsync-tmp-1", "ours");
    world.sync();
    let names: Vec<_> = world.tree().into_keys().collect();
    assert_eq!(names, ["sub", "sub/file"]);
    let detail = world.state().detail.unwrap();
    assert!(detail.contains("pipe") || detail.contains("sub"), "{detail}");
    assert!(detail.contains("1 more"), "{detail}");
}

#[test]
fn a_file_that_reads_as_a_pointer_becomes_an_object() {
    let world = World::new();
    let pointer = format!(
        "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n",
        "ab".repeat(32)
    );
    world.write("pointer", &pointer);
    world.sync();
    let blob = world.entry("pointer").unwrap().kind.blob().unwrap();
    let content = world.desk.store.content(blob).unwrap();
    assert!(
        matches!(content, crate::model::Content::Object { size, .. } if size == pointer.len() as u64)
    );
}

#[test]
fn ignored_names_stay_out_and_a_bad_pattern_is_said() {
    let world = World::new();
    world.write(".depsyncignore", "*.log\n/cache/\n");
    world.write("a.log", "no");
    world.write("cache/x", "no");
    world.write("a.txt", "yes");
    world.sync();
    let names = |world: &World| world.tree().into_keys().collect::<Vec<_>>();
    assert_eq!(names(&world), [".depsyncignore", "a.txt"]);
    world.write(".depsyncignore", "ok\n[z-a]\n");
    world.write("b.log", "still not");
    world.write("b.txt", "yes");
    world.sync();
    assert_eq!(names(&world), [".depsyncignore", "a.txt", "b.txt"]);
    let held = world.state().held;
    assert!(held.len() == 1 && held[0].reason.contains("line 2"), "{held:?}");
    world.write(".depsyncignore", "/cache/\n");
    world.wait_for("b.log", true);
    world.sync();
    assert_eq!(names(&world), [".depsyncignore", "a.log", "a.txt", "b.log", "b.txt"]);
}

#[test]
fn a_bad_ignore_file_stops_the_first_import() {
    let mut world = World::stopped();
    world.write(".depsyncignore", "[z-a]");
    world.write("secret", "x");
    world.start();
    world.wait("a clear state", |world| (world.state().state == "stopped").then_some(()));
    assert_eq!(world.head(), None);
    world.write(".depsyncignore", "/secret");
    world.wait_for(".depsyncignore", true);
    assert!(world.entry("secret").is_none());
}

#[test]
fn a_start_finds_what_changed_meanwhile_and_reads_nothing_else() {
    let mut world = World::stopped();
    for number in 0..500 {
        world.write(&format!("d{}/{number}", number % 7), format!("content {number}"));
    }
    world.start();
    world.sync();
    assert_eq!(world.seq(), 1, "an import is one commit");
    assert_eq!(world.tree(), world.disk());
    let runs = world.ledger.runs(None, 10, None).unwrap();
    assert_eq!((runs.len(), runs[0].run.kind, runs[0].run.files), (1, Kind::Commit, 500));
    world.stop();
    world.write("d1/1", "changed");
    fs::remove_file(world.at("d2/2")).unwrap();
    world.write("new/file", "x");
    world.start();
    world.sync();
    assert_eq!((world.seq(), world.tree()), (2, world.disk()));
    world.restart();
    assert_eq!(world.seq(), 2, "nothing changed");
    world.check_by_git();
}

#[test]
fn a_lost_or_damaged_ledger_costs_reading_only() {
    let mut world = World::new();
    for number in 0..50 {
        world.write(&number.to_string(), format!("content {number}"));
    }
    world.sync();
    for content in [None, Some("noise, and long enough to be taken for a page".repeat(200))] {
        world.stop();
        let before = world.head();
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(world.dir.path().join(format!("state/ledger.db{ending}")));
        }
        if let Some(content) = content {
            fs::write(world.dir.path().join("state/ledger.db"), content).unwrap();
        }
        world.restart();
        assert_eq!((world.head(), world.tree()), (before, world.disk()));
    }
}

#[test]
fn a_commit_names_who_made_it_and_what_it_is_about() {
    let world = World::new();
    world.write("webapps/app.war.txt", "x");
    world.wait_until_equal();
    let log =
        world.git(&["log", "-1", "--format=%an|%s|%(trailers:key=Depsync-Node,valueonly)", "main"]);
    assert_eq!(log.trim(), "hub|Update webapps/app.war.txt|n1");
    let digest = world.entry("webapps/app.war.txt").unwrap().kind.blob().unwrap();
    let known = world.wait("digest", |world| world.ledger.digest(&digest).unwrap());
    assert_eq!(
        known.to_string(),
        "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    );
    assert_eq!(rel("a").to_text(), "a");
}
