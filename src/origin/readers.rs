//! Two threads beside the one that decides: one for what scans find and for objects, whose writing
//! must be waited for, one for large files.
//!
//! So a first import uses two processors, and a small file never waits for a large one. What they
//! read comes back through a channel that always has room for it, so that they never wait for the
//! deciding thread; each answer wakes it.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{Scope, ScopedJoinHandle},
};

use super::{
    read::{LARGE, Reader, Seen},
    settle::Look,
};
use crate::store::Encoder;

/// Paths given to the reading thread ahead: their contents lie in memory, at most `large_file` each.
const AHEAD: usize = 64;

/// What a thread read.
pub(super) struct Done {
    pub(super) look: Look,
    pub(super) seen: Seen,
    from: Desk,
}

#[derive(Clone, Copy)]
enum Desk {
    Small,
    Large,
}

impl Desk {
    fn limit(self) -> u64 {
        match self {
            Desk::Small => LARGE,
            Desk::Large => u64::MAX,
        }
    }
}

/// The threads, and what lies before them.
pub(super) struct Readers<'scope> {
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
    small: SyncSender<Look>,
    large: SyncSender<Look>,
    small_ahead: usize,
    large_busy: bool,
    large_waiting: VecDeque<Look>,
    done: Receiver<Done>,
}

impl<'scope> Readers<'scope> {
    /// Starts the threads, which end when this is dropped. `wake`: called after each answer.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn start(
        scope: &'scope Scope<'scope, '_>,
        reader: &Arc<Reader>,
        wake: impl Fn() + Send + Clone + 'scope,
    ) -> std::io::Result<Self> {
        let (answers, done) = sync_channel(AHEAD + 1);
        let mut threads = Vec::new();
        let mut thread = |name: &str, from: Desk, ahead: usize| {
            let (jobs, todo) = sync_channel(ahead);
            let (reader, wake, answers) = (Arc::clone(reader), wake.clone(), answers.clone());
            let run = move || work(&reader, from, &todo, &answers, &wake);
            let builder = std::thread::Builder::new().name(name.to_owned());
            threads.push(builder.spawn_scoped(scope, run)?);
            std::io::Result::Ok(jobs)
        };
        let small = thread("read", Desk::Small, AHEAD)?;
        let large = thread("read-large", Desk::Large, 1)?;
        Ok(Self {
            threads,
            small,
            large,
            small_ahead: 0,
            large_busy: false,
            large_waiting: VecDeque::new(),
            done,
        })
    }

    /// Whether a path that a scan found can be given away.
    pub(super) fn has_room(&self) -> bool {
        self.small_ahead < AHEAD
    }

    /// Gives a path to the reading thread, which must have room.
    pub(super) fn read(&mut self, look: Look) {
        self.small_ahead += 1;
        hand(&self.small, look);
    }

    /// Gives a file of that size away; a large one waits for its turn.
    pub(super) fn read_large(&mut self, look: Look, size: u64) {
        if size < LARGE && self.has_room() {
            return self.read(look);
        }
        self.large_waiting.push_back(look);
        self.next_large();
    }

    fn next_large(&mut self) {
        if self.large_busy {
            return;
        }
        if let Some(look) = self.large_waiting.pop_front() {
            self.large_busy = true;
            hand(&self.large, look);
        }
    }

    /// Whether a thread has ended, which only a panic can do to it.
    pub(super) fn has_ended(&self) -> bool {
        self.threads.iter().any(ScopedJoinHandle::is_finished)
    }

    /// The next answer, if there is one.
    pub(super) fn done(&mut self) -> Option<Done> {
        let done = self.done.try_recv().ok()?;
        match done.from {
            Desk::Small => self.small_ahead -= 1,
            Desk::Large => {
                self.large_busy = false;
                self.next_large();
            }
        }
        Some(done)
    }
}

/// A thread that has ended is seen by [`Readers::has_ended`].
fn hand(jobs: &SyncSender<Look>, look: Look) {
    if let Err(TrySendError::Full(_)) = jobs.try_send(look) {
        unreachable!("no more is handed out than there is room for");
    }
}

fn work(
    reader: &Reader,
    from: Desk,
    todo: &Receiver<Look>,
    answers: &SyncSender<Done>,
    wake: &impl Fn(),
) {
    let mut encoder = Encoder::default();
    while let Ok(look) = todo.recv() {
        let seen = reader.look(&look, from.limit(), &mut encoder);
        if answers.send(Done { look, seen, from }).is_err() {
            return;
        }
        wake();
    }
}
