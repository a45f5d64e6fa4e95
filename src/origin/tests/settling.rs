//! Only whole files, and none holds up another.

use std::{
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    time::Duration,
};

use super::world::{World, rel};
use crate::{
    bus::{Approval, Request},
    sys,
};

fn zip() -> Vec<u8> {
    // An archive with no entries, behind a start script.
    [&b"#!/bin/sh\n"[..], b"PK\x05\x06", &[0; 18]].concat()
}

#[test]
fn a_file_that_is_being_written_is_not_published() {
    let world = World::new();
    let mut file = File::create(world.at("slow")).unwrap();
    for number in 0..20 {
        file.write_all(&[number; 1000]).unwrap();
        world.write(&format!("other-{number}"), "x");
        world.wait_for(&format!("other-{number}"), true);
        world.sync();
        assert!(world.entry("slow").is_none());
    }
    world.wait("saying so", |world| {
        world.state().held.iter().any(|held| held.path == rel("slow")).then_some(())
    });
    let before = world.seq();
    drop(file);
    world.wait_for("slow", true);
    assert_eq!((world.seq(), world.tree()), (before + 1, world.disk()));
    world.wait("nothing held", |world| world.state().held.is_empty().then_some(()));
}

#[test]
fn one_file_rewritten_for_ever_does_not_hold_up_a_hundred() {
    let world = World::new();
    std::thread::scope(|scope| {
        let (done, end) = std::sync::mpsc::channel::<()>();
        let churn = world.at("churn");
        scope.spawn(move || {
            let mut number = 0_u64;
            while end.try_recv().is_err() {
                fs::write(&churn, number.to_string()).unwrap();
                number += 1;
            }
        });
        for number in 0..100 {
            world.write(&format!("f{number}"), "x");
        }
        world.wait_for("f99", true);
        for number in 0..100 {
            world.wait_for(&format!("f{number}"), true);
        }
        done.send(()).unwrap();
    });
    world.wait_until_equal();
}

#[test]
fn a_temporary_name_is_never_in_history() {
    let world = World::new();
    world.write("app.war.part", "half");
    world.sync();
    fs::write(world.at("app.war.part"), zip()).unwrap();
    fs::rename(world.at("app.war.part"), world.at("app.war")).unwrap();
    world.wait_until_equal();
    assert_eq!(world.seq(), 1);
    let named = world.git(&["log", "--all", "--name-only", "--format=", "main"]);
    assert!(!named.contains(".part"), "{named}");
}

#[test]
fn an_archive_without_its_end_is_held_until_it_changes_or_is_approved() {
    let world = World::new();
    world.write("other", "x");
    world.sync();
    fs::write(world.at("app.war"), &zip()[..20]).unwrap();
    world.write("cut.zip", "PK\x03\x04 never whole");
    let held = |world: &World, path: &str| {
        world.state().held.into_iter().find(|held| held.path == rel(path))
    };
    let why = world.wait("both held", |world| held(world, "cut.zip").and(held(world, "app.war")));
    assert!(why.reason.contains("no end"), "{why:?}");
    assert_eq!(world.state().state, "held");
    world.sync();
    assert!(world.entry("app.war").is_none());
    fs::write(world.at("app.war"), zip()).unwrap();
    world.wait_for("app.war", true);
    let approve = |path: &str| Request::Approve(Approval::Path(rel(path)), unanswered());
    assert!(world.ask(|answer| with(approve("app.war"), answer)).is_err(), "not held any more");
    world.ask(|answer| with(approve("cut.zip"), answer)).unwrap();
    world.wait_for("cut.zip", true);
    assert_eq!(world.tree(), world.disk());
}

fn unanswered() -> crate::bus::Answer {
    tokio::sync::oneshot::channel().0
}

fn with(request: Request, answer: crate::bus::Answer) -> Request {
    match request {
        Request::Approve(what, _) => Request::Approve(what, answer),
        other => other,
    }
}

#[test]
fn same_size_and_time_put_back_is_still_seen() {
    let mut world = World::new();
    let old = sys::now() - Duration::from_secs(1000);
    world.write("a", "one");
    File::options().write(true).open(world.at("a")).unwrap().set_modified(old).unwrap();
    world.sync();
    for (content, restart) in [("two", false), ("six", true)] {
        if restart {
            world.stop();
        }
        let mut file = File::options().write(true).open(world.at("a")).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.write_all(content.as_bytes()).unwrap();
        file.set_modified(old).unwrap();
        drop(file);
        if restart {
            world.start();
            world.sync();
        }
        world.wait_until_equal();
    }
}

#[test]
fn times_set_after_the_close_make_one_commit() {
    let world = World::new();
    let old = sys::now() - Duration::from_secs(5000);
    for number in 0..20 {
        let path = world.at(&format!("f{number}"));
        fs::write(&path, number.to_string()).unwrap();
        File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
    }
    world.wait_until_equal();
    world.sync();
    let settled = world.head();
    world.sync();
    assert_eq!(world.head(), settled, "no loop");
}

#[test]
fn a_file_that_changes_all_the_time_is_never_torn() {
    let world = World::new();
    std::thread::scope(|scope| {
        let (done, end) = std::sync::mpsc::channel::<()>();
        let path = world.at("f");
        scope.spawn(move || {
            let mut number = 0_u8;
            while end.try_recv().is_err() {
                let temporary = path.with_file_name("x.tmp");
                fs::write(&temporary, vec![number; 30_000]).unwrap();
                fs::rename(&temporary, &path).unwrap();
                number = number.wrapping_add(1);
            }
        });
        let mut seen = std::collections::BTreeSet::new();
        world.wait("twenty versions", |world| {
            if let Some(entry) = world.entry("f") {
                let blob = entry.kind.blob().unwrap();
                let bytes = world.desk.store.read_blob(blob).unwrap();
                assert!(bytes.len() == 30_000 && bytes.iter().all(|byte| *byte == bytes[0]));
                seen.insert(bytes[0]);
            }
            (seen.len() >= 20).then_some(())
        });
        done.send(()).unwrap();
    });
    world.wait_until_equal();
}

#[test]
fn a_hold_makes_many_files_one_commit_and_survives_a_restart() {
    let mut world = World::new();
    world.write("before", "x");
    // A program that another test starts may have it open for a moment, and a sync does not wait for that.
    world.wait_until_equal();
    world.sync();
    world.ask(|answer| Request::Hold { by: "tester".to_owned(), answer }).unwrap();
    for number in 0..30 {
        world.write(&format!("f{number}"), "x");
        if number == 15 {
            world.sync();
            world.restart();
        }
    }
    world.sync();
    assert_eq!(world.seq(), 1);
    let detail = world.wait("saying so", |world| {
        Some(world.state()).filter(|state| state.state == "held").and_then(|state| state.detail)
    });
    assert!(detail.contains("tester"), "{detail}");
    world.ask(Request::Release).unwrap();
    world.wait_until_equal();
    world.sync();
    assert_eq!(world.seq(), 2, "one commit");
    assert_eq!(world.state().state, "idle");
}

#[test]
fn a_hold_file_does_the_same() {
    let world = World::new();
    world.write(".depsync-hold", "");
    for number in 0..10 {
        world.write(&format!("f{number}"), "x");
        world.sync();
    }
    let busy = File::create(world.at("busy")).unwrap();
    world.sync();
    assert_eq!(world.seq(), 0);
    assert!(world.ask(Request::Release).unwrap_err().contains(".depsync-hold"));
    fs::remove_file(world.at(".depsync-hold")).unwrap();
    world.wait("waiting for the busy one", |world| {
        let detail = world.state().detail.unwrap_or_default();
        detail.contains("released").then_some(())
    });
    drop(busy);
    world.wait_until_equal();
    assert_eq!(world.seq(), 1);
}

#[test]
fn a_burst_of_objects_is_taken_whole_while_small_files_go_on() {
    let world = World::new();
    for number in 0..40_u8 {
        world.write(&format!("o{number}"), vec![number; 300_000]);
    }
    world.write("huge", vec![1; 9 << 20]);
    world.write("small", "x");
    world.wait_for("small", true);
    world.wait_until_equal();
    world.check_by_git();
}
