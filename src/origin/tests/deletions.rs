//! A mass delete stays here until somebody says so; a directory that is gone publishes nothing.

use std::fs;

use super::world::World;
use crate::{
    bus::{Approval, Request, frame::Hello, roster::Caller},
    model::{Head, Oid},
};

fn hundred(world: &World) {
    for number in 0..100 {
        world.write(&format!("d{}/{number}", number % 2), format!("content {number}"));
    }
    world.sync();
}

/// Removes sixty of the hundred and waits until that is held.
fn remove_sixty(world: &World) -> String {
    for number in 0..60 {
        fs::remove_file(world.at(&format!("d{}/{number}", number % 2))).unwrap();
    }
    world.wait("held", |world| world.state().deletions).id
}

fn files(world: &World) -> usize {
    world.tree().values().filter(|text| text.starts_with("file")).count()
}

fn approve(world: &World, id: &str) -> Result<(), String> {
    let what = Approval::Deletions(Some(id.to_owned()));
    world.ask(|answer| Request::Approve(what, answer))
}

#[test]
fn a_mass_delete_is_held_and_approved_by_its_list() {
    let mut world = World::new();
    hundred(&world);
    let id = remove_sixty(&world);
    assert_eq!((files(&world), world.state().state), (100, "held"));
    world.write("d0/new", "others go on");
    world.wait_for("d0/new", true);
    assert_eq!(files(&world), 101);
    world.restart();
    let again = world.wait("held after a restart", |world| world.state().deletions);
    assert_eq!((again.id.as_str(), again.files), (id.as_str(), 60));
    world.write("d0/0", "content 0");
    world.wait("fewer", |world| world.state().deletions.filter(|held| held.files == 59));
    assert!(approve(&world, &id).unwrap_err().contains("another"));
    let id = world.state().deletions.unwrap().id;
    approve(&world, &id).unwrap();
    world.wait_until_equal();
    world.wait("idle", |world| (world.state().state == "idle").then_some(()));
    world.restart();
    assert_eq!((world.tree(), world.state().state), (world.disk(), "idle"));
}

#[test]
fn rejecting_puts_the_files_back() {
    let world = World::new();
    hundred(&world);
    let before = world.tree();
    let id = remove_sixty(&world);
    for number in (60..70).step_by(2) {
        fs::remove_file(world.at(&format!("d0/{number}"))).unwrap();
    }
    let id = world.wait("a longer list", |world| {
        world.state().deletions.map(|held| held.id).filter(|now| *now != id)
    });
    world.ask(|answer| Request::Reject { id: Some(id), answer }).unwrap();
    world.sync();
    assert_eq!((world.tree(), world.disk()), (before.clone(), before));
    world.wait("idle", |world| (world.state().state == "idle").then_some(()));
}

#[test]
fn renaming_the_top_folder_is_one_commit() {
    let world = World::new();
    for number in 0..300 {
        world.write(&format!("top/d{}/{number}", number % 5), format!("content {number}"));
    }
    world.sync();
    let before = world.seq();
    fs::rename(world.at("top"), world.at("other")).unwrap();
    world.wait_until_equal();
    assert_eq!(world.seq(), before + 1);
}

#[test]
fn an_emptied_directory_publishes_nothing() {
    let world = World::new();
    hundred(&world);
    for name in ["d0", "d1"] {
        fs::remove_dir_all(world.at(name)).unwrap();
    }
    world.wait("held", |world| world.state().deletions.filter(|held| held.files == 100));
    assert_eq!(files(&world), 100);
}

#[test]
fn a_directory_that_is_gone_or_another_one_publishes_nothing() {
    let world = World::new();
    hundred(&world);
    let (root, away) = (world.at(""), world.dir.path().join("away"));
    fs::rename(&root, &away).unwrap();
    world.wait("stopped", |world| (world.state().state == "stopped").then_some(()));
    fs::create_dir(&root).unwrap();
    world.write("stranger", "x");
    world.wait("said", |world| {
        world.state().detail.filter(|detail| detail.contains("approve --root"))
    });
    assert_eq!(files(&world), 100);
    fs::remove_dir_all(&root).unwrap();
    fs::write(away.join("d0/while-away"), "y").unwrap();
    fs::rename(&away, &root).unwrap();
    world.wait_for("d0/while-away", true);
    world.write("d0/after", "z");
    world.wait_until_equal();
}

#[test]
fn a_restored_copy_is_taken_for_the_same_directory() {
    let mut world = World::new();
    hundred(&world);
    world.stop();
    let (root, copy) = (world.at(""), world.dir.path().join("copy"));
    let copied = std::process::Command::new("cp").arg("-a").arg(&root).arg(&copy).status();
    assert!(copied.unwrap().success());
    fs::rename(&root, world.dir.path().join("old")).unwrap();
    fs::rename(&copy, &root).unwrap();
    world.write("d0/new", "x");
    world.start();
    world.wait_for("d0/new", true);
    assert_eq!(world.tree(), world.disk());
}

#[test]
fn another_directory_is_taken_only_when_approved() {
    let mut world = World::new();
    hundred(&world);
    world.stop();
    fs::rename(world.at(""), world.dir.path().join("old")).unwrap();
    world.write("only", "this");
    world.start();
    world.wait("stopped", |world| (world.state().state == "stopped").then_some(()));
    assert!(world.ask(|answer| Request::Approve(Approval::Root, answer)).is_ok());
    world.wait_for("only", true);
    let held = world.wait("held", |world| world.state().deletions);
    assert_eq!(held.files, 100, "its files are a mass delete still");
    approve(&world, &held.id).unwrap();
    world.wait_until_equal();
}

#[test]
fn a_follower_that_is_ahead_stops_publishing() {
    let world = World::new();
    hundred(&world);
    let before = world.head().unwrap();
    let ahead = Head { seq: before.seq + 5, commit: Oid::from_bytes([9; 20]), ..before };
    let who = Hello::of("n2".parse().unwrap(), "restored from".parse().unwrap());
    let hello = Hello { fetched: Some(ahead), ..who };
    world.desk.register(Caller { hello, url: None, token: None }).unwrap();
    world.write("new", "x");
    world.wait("refused", |world| (world.state().state == "refused").then_some(()));
    assert!(world.ask(Request::Sync).unwrap_err().contains("restored from"));
    assert_eq!(world.head(), Some(before));
}
