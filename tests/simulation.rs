//! Ten thousand small histories of a fleet, told by the machines that decide in the real one.
//!
//! Each seed draws a fleet, a network that loses, delays and cuts, disks that are slow, processes that
//! die, people who change files, pause, promote and restore old backups. The machines are those of the
//! library: settling, batching and guarding at the primary, rosters, followers, rates; only the shells
//! around them are played. What DESIGN calls "what always holds" is looked at with every step, and in
//! the end all are equal. A seed that fails tells its story: `DEPSYNC_SEED=N cargo test --test
//! simulation`.
#![expect(
    unreachable_pub,
    clippy::pedantic,
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a model of the world, read as a story"
)]

#[path = "simulation/history.rs"]
mod history;
#[path = "simulation/node.rs"]
mod node;
#[path = "simulation/plan.rs"]
mod plan;
#[path = "simulation/primary.rs"]
mod primary;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/world.rs"]
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    thread,
};

use world::World;

/// Tells a seed's history to its end; what was wrong with it.
fn run(seed: u64, world: &mut World) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| world.run())).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        format!("seed {seed}: {}", text.unwrap_or_default())
    })
}

/// The same once more, with every step.
fn tell(seed: u64) {
    let mut world = World::new(seed, true);
    let outcome = run(seed, &mut world);
    for line in world.story.iter().flatten() {
        println!("{line}");
    }
    if let Err(why) = outcome {
        panic!("{why}");
    }
}

#[test]
fn whatever_happens_all_are_equal_in_the_end() {
    if let Some(seed) = std::env::var("DEPSYNC_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return tell(seed);
    }
    let seeds = if std::env::var_os("DEPSYNC_FULL").is_some() { 200_000 } else { 10_000 };
    let next = AtomicU64::new(0);
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let failed = thread::scope(|scope| {
        let one = || {
            loop {
                let seed = next.fetch_add(1, Relaxed);
                if seed >= seeds {
                    return None;
                }
                if run(seed, &mut World::new(seed, false)).is_err() {
                    next.store(u64::MAX / 2, Relaxed);
                    return Some(seed);
                }
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).min()
    });
    if let Some(seed) = failed {
        tell(seed);
    }
}
