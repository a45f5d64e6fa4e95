//! Nothing is lost, however it came about.

use std::{fs, time::Duration};

use super::world::World;

#[test]
fn nested_folders_made_and_filled_at_once_a_thousand_times() {
    let world = World::new();
    for number in 0..1_000 {
        world.write(&format!("r{}/a{number}/b/c/f", number % 10), number.to_string());
    }
    world.wait_until_equal();
    assert_eq!(world.tree().len(), 10 + 4 * 1_000);
    assert_eq!(world.state().rescans, 0);
    world.check_by_git();
}

#[test]
fn lost_events_lead_to_a_scan_that_is_counted() {
    let world = World::new();
    world.write("a", "x");
    world.wait_until_equal();
    world.lose_events();
    world.wait("scan", |world| (world.state().rescans == 1).then_some(()));
    world.write("b", "x");
    world.wait_until_equal();
}

#[test]
fn a_folder_moved_in_is_found_with_all_that_it_holds() {
    let world = World::new();
    let outside = world.dir.path().join("outside");
    for number in 0..100 {
        fs::create_dir_all(outside.join(format!("{number}/x"))).unwrap();
        fs::write(outside.join(format!("{number}/x/f")), number.to_string()).unwrap();
    }
    fs::rename(&outside, world.at("in")).unwrap();
    world.wait_until_equal();
    fs::rename(world.at("in/7"), world.at("in/seven")).unwrap();
    world.wait_until_equal();
    world.write("in/seven/x/later", "seen under the new name");
    world.wait_until_equal();
}

#[test]
fn without_events_everything_is_polled() {
    let mut world = World::stopped();
    world.options.poll = Duration::from_millis(50);
    world.options.events = false;
    world.write("before", "x");
    world.start();
    world.sync();
    world.write("after/deep", "y");
    world.wait_until_equal();
    assert!(world.state().detail.unwrap().contains("scanned every 50ms"));
    assert_eq!(world.state().rescans, 0, "a poll is no loss");
}

#[test]
fn what_it_is_at_is_told_before_the_first_version_is_there() {
    let mut world = World::stopped();
    for number in 0..500 {
        world.write(&format!("folder-{}/file-{number}", number % 20), "x");
    }
    world.start();
    world.wait("a version", World::head);
    assert_ne!(world.desk.state.borrow().state, "", "nothing was told while it was busy");
}
