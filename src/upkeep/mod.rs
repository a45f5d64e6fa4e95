//! Upkeep: folding packs, retention, scrubbing, repair, for all feeds of a node on one quiet thread.
//!
//! It wakes when a head moves, when it is asked, by its timetable, and now and then to scrub a little.
//! Work is paced: collecting after each version only while that costs a small share of the time. What
//! it removes no version that is kept refers to, and what it repairs is never replaced by bytes with
//! another id.

mod growth;
mod pace;
mod repair;
mod tend;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    bus::Desk,
    disk::CurrentRoot,
    ledger::Decisions,
    model::{Keep, Retention, Subset},
    sys,
};
pub use pace::Due;
use pace::Timetable;
use tend::Tended;

/// How often it looks whether something is due.
const TICK: Duration = Duration::from_secs(2);
/// A version that has just come is being fetched and put in place, here or by those who follow: what
/// it makes due waits so long, and takes neither their processors nor their disk.
const LULL: Duration = Duration::from_millis(200);

/// A feed to be cared for.
pub struct Feed {
    /// Its desk.
    pub desk: Arc<Desk>,
    /// Which versions keep their content.
    pub keep: Retention,
    /// Whether only the head's history is kept while the feed is mirrored.
    pub shallow: bool,
    /// The part of it whose objects are kept while it is mirrored.
    pub part: Subset,
    /// Its deployment directory.
    pub root: Option<Arc<CurrentRoot>>,
    /// What of a file's metadata counts there while the feed is owned here.
    pub metadata: Keep,
    /// Its folder in the state directory.
    pub state: PathBuf,
}

/// What upkeep needs.
pub struct Setup {
    /// The feeds.
    pub feeds: Vec<Feed>,
    /// Who owns each feed now; pins, which nothing that is collected may be of.
    pub decisions: Arc<Decisions>,
    /// Says when the timetable fires after an instant; none: never.
    pub due: Due,
}

/// Wakes upkeep.
#[derive(Clone)]
pub struct Bell(SyncSender<()>);

/// Asks it to end.
#[derive(Clone)]
pub struct Stop {
    stopped: Arc<AtomicBool>,
    bell: Bell,
}

impl Bell {
    fn ring(&self) {
        // One ring that is not heard yet is enough.
        let _ = self.0.try_send(());
    }

    /// Rings for a feed whenever its head moves or something is ordered.
    pub async fn ring_for(self, desk: Arc<Desk>, stop: CancellationToken) {
        let (mut head, mut chores) = (desk.head.subscribe(), desk.chores.subscribe());
        loop {
            let changed = tokio::select! {
                () = stop.cancelled() => return,
                changed = head.changed() => changed,
                changed = chores.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            self.ring();
        }
    }
}

impl Stop {
    /// Ends it at its next step.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
        self.bell.ring();
    }
}

/// Upkeep that has not begun.
pub struct Upkeep {
    feeds: Vec<Tended>,
    due: Due,
    heard: Receiver<()>,
    stop: Stop,
}

impl Upkeep {
    /// Prepares it; nothing is done yet.
    pub fn new(setup: Setup) -> Self {
        let (ring, heard) = mpsc::sync_channel(1);
        let stop = Stop { stopped: Arc::default(), bell: Bell(ring) };
        let tended = |feed| Tended::new(feed, Arc::clone(&setup.decisions));
        let feeds = setup.feeds.into_iter().map(tended).collect();
        Upkeep { feeds, due: setup.due, heard, stop }
    }

    /// To wake it.
    pub fn bell(&self) -> Bell {
        self.stop.bell.clone()
    }

    /// To end it.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        if let Err(error) = sys::run_in_background() {
            tracing::debug!(%error, "upkeep runs at the usual priority");
        }
        let going = || !self.stop.stopped.load(Relaxed);
        let mut timetable = Timetable::new(self.due, sys::now());
        while going() {
            let fires = timetable.fires(sys::now());
            for feed in &mut self.feeds {
                if going() {
                    feed.tend(Instant::now(), fires, &going);
                }
            }
            match self.heard.recv_timeout(TICK) {
                Ok(()) => let_pass(&self.heard, &self.stop),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Waits while what has come is on its way.
fn let_pass(heard: &Receiver<()>, stop: &Stop) {
    let end = Instant::now() + LULL;
    while !stop.stopped.load(Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || heard.recv_timeout(left).is_err() {
            return;
        }
    }
}
