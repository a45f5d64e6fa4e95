//! The primary's side: settle → commit → announce.
//!
//! `settle`, `batch` and `guard` decide, as plain machines; `read` and `scan` look at the directory;
//! `stage` is the difference from the head; `commit` publishes it, once `gate` has asked the
//! operator's hook. `session` joins them in one loop
//! over one queue of inputs. Events say when to look, the scan says what is there, and only what is
//! whole and unchanged while it was read is ever published. Plain blocking code on its own thread.

mod after;
mod archive;
pub mod batch;
mod claim;
mod commit;
mod control;
mod gate;
pub mod guard;
mod identity;
mod ignore;
mod import;
mod look;
mod orders;
mod read;
mod readers;
mod report;
mod restore;
mod rollback;
mod scan;
mod session;
pub mod settle;
mod stage;
mod taken;
#[cfg(test)]
mod tests;
mod waking;
mod watching;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

pub use guard::Rules;

use crate::{
    bus::{Desk, Request},
    disk::{self, CurrentRoot, Event, Keep, Root},
    hooks::Hooks,
    ledger::{self, Decisions, Ledger},
    model::{Class, FeedName, Label, Names, NodeId, Profile, RelPath},
    store::{self, Store},
};
use session::{End, Session};

/// Inputs that may wait; beyond it events are dropped and a scan finds what they told of.
const INPUTS: usize = 8_192;

/// What can end the primary's side of a feed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The repository.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The deployment directory.
    #[error(transparent)]
    Disk(#[from] disk::Error),
    /// The decisions.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A thread could not be started, or has ended early.
    #[error("cannot go on reading files: {0}")]
    Thread(#[from] io::Error),
}

/// This folder's result.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// How a caller should react.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Error::Store(error) => error.class(),
            Error::Disk(error) => match error.class() {
                disk::Class::Transient => Class::Transient,
                disk::Class::Fatal => Class::Fatal,
            },
            Error::Ledger(error) => error.class(),
            Error::Thread(_) => Class::Fatal,
        }
    }
}

/// How a feed is watched and committed.
#[derive(Debug, Clone)]
pub struct Options {
    /// From this size on a file is an object, in bytes.
    pub large_file: u64,
    /// What is kept besides content, type and the executable bit.
    pub keep: Keep,
    /// What the server in the directory itself writes there.
    pub profile: Option<Profile>,
    /// Whether the kernel's events are used; without them everything is scanned every `poll`.
    pub events: bool,
    /// How long a file must stay as it is where no lease can tell whether it is being written.
    pub quiet: Duration,
    /// How often folders without events are scanned; everything is, every tenth time.
    pub poll: Duration,
    /// The brake on deletions.
    pub guard: Rules,
}

/// What the primary's side of a feed needs.
pub struct Setup {
    /// The feed.
    pub feed: FeedName,
    /// Its directory, opened and locked.
    pub root: Arc<CurrentRoot>,
    /// Its repository.
    pub store: Arc<Store>,
    /// The node's ledger.
    pub ledger: Arc<Ledger>,
    /// The node's decisions.
    pub decisions: Arc<Decisions>,
    /// Where heads and states are posted, and requests are taken.
    pub desk: Arc<Desk>,
    /// This node.
    pub node: NodeId,
    /// What people call it: the commits' author.
    pub label: Label,
    /// `<state>/feeds/<feed>`, for what is put aside.
    pub state: PathBuf,
    /// What the operator wants asked before a commit.
    pub hooks: Hooks,
    /// How the feed is watched and committed.
    pub options: Options,
}

/// Why a file at `path` would never enter the feed; none when it would. An ignore file that cannot
/// be used leaves nothing out: the stage itself says what is wrong with it.
#[must_use]
pub fn left_out(root: &Root, profile: Option<Profile>, path: &RelPath) -> Option<&'static str> {
    let text = ignore::ignore_text(root).unwrap_or_default();
    let names = Names::new(profile, &text).or_else(|_| Names::new(profile, b"")).ok()?;
    Some(names.left_out(path, false)?.reason())
}

/// What the loop takes.
enum Input {
    Event(Event),
    Request(Request),
    /// A thread has an answer, or it is time to stop.
    Wake,
}

/// The primary's side of one feed, ready to run.
pub struct Origin {
    setup: Setup,
    sender: SyncSender<Input>,
    inputs: Receiver<Input>,
    stop: Stop,
    /// Events were dropped.
    missed: Arc<AtomicBool>,
}

/// Ends an [`Origin`], from any thread.
#[derive(Clone)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    sender: SyncSender<Input>,
}

impl Stop {
    /// Asks it to end: what is being read or committed is finished first.
    pub fn stop(&self) {
        self.asked.store(true, Ordering::Release);
        // A full queue wakes it just as well.
        let _ = self.sender.try_send(Input::Wake);
    }

    fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Acquire)
    }
}

/// Posts the head that there is, and takes requests from now on; nothing is watched or committed
/// before [`Origin::run`].
///
/// # Errors
/// When the repository cannot be read.
pub fn start(setup: Setup) -> Result<Origin> {
    if let Some(head) = setup.store.head()? {
        setup.desk.post(setup.store.announced(head)?);
    }
    let profile = setup.options.profile.map_or("", Profile::as_str);
    setup.desk.profile.send_replace(profile.to_owned());
    orders::post(&setup);
    let (sender, inputs) = sync_channel(INPUTS);
    let stop = Stop { asked: Arc::default(), sender: sender.clone() };
    let requests = sender.clone();
    let mailbox = move |request| requests.try_send(Input::Request(request)).is_ok();
    setup.desk.take_requests(Some(Box::new(mailbox)));
    Ok(Origin { setup, sender, inputs, stop, missed: Arc::default() })
}

impl Origin {
    /// The handle that ends it.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Watches and commits until it is told to stop. Blocks.
    ///
    /// # Errors
    /// When it cannot go on; what is transient is waited out and shown in the feed's state.
    pub fn run(self) -> Result<()> {
        claim::claim(&self.setup)?;
        let mut root = self.setup.root.get();
        let result = loop {
            match std::thread::scope(|scope| Session::start(&self, scope, root)?.run()) {
                Ok(End::Stopped) => break Ok(()),
                Ok(End::Root(new)) => {
                    self.setup.root.set(Arc::clone(&new));
                    root = new;
                }
                Err(error) => break Err(error),
            }
        };
        self.setup.desk.take_requests(None);
        result
    }

    fn wake(&self) -> impl Fn() + Send + Clone + 'static {
        let sender = self.sender.clone();
        move || drop(sender.try_send(Input::Wake))
    }

    /// For the watcher, which must never wait for us.
    fn sink(&self) -> impl FnMut(Event) + Send + 'static {
        let (sender, missed) = (self.sender.clone(), Arc::clone(&self.missed));
        move |event| {
            if sender.try_send(Input::Event(event)).is_err() {
                missed.store(true, Ordering::Release);
            }
        }
    }
}
