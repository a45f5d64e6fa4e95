//! The loop over one directory: takes inputs, looks, commits, waits.
//!
//! Ends when it is told to stop, or when the directory is another one than it began with: the next
//! session then starts from a scan. One thread decides everything, in the order of `Session::work`:
//! paths that were touched, then a commit that is due, then a step of a scan, then what can wait.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, atomic::Ordering},
    thread::Scope,
    time::{Duration, Instant},
};

use super::{
    Input, Origin, Result, Setup,
    batch::Batch,
    commit::Brake,
    gate::Gate,
    guard::Guard,
    identity::{self, Halt},
    import::Import,
    read::Reader,
    readers::Readers,
    report::Report,
    rollback::Rollback,
    scan::Scan,
    settle::{Lane, Settle},
    stage::Stage,
};
use crate::{
    bus::Answer,
    disk::{Event, FileSystem, Root, RootId, WatchError, Watcher},
    ledger::{StatCache, decisions},
    model::{
        Names, RelPath,
        names::{HOLD_FILE, IGNORE_FILE},
    },
    store::{self, Draft, Encoder},
    sys,
};

/// Paths that may wait to be looked at before a scan pauses; memory stays flat in any tree, and the
/// readers are never idle.
const MAX_TOUCHED: usize = 2_000;
/// Paths that events may touch beyond that; then a scan finds the rest.
const MAX_EVENTS: usize = 100_000;
/// Paths that one commit may say something about: some 200 bytes each.
pub(super) const MAX_STAGED: usize = 200_000;
/// How long the loop looks at paths before it sees to everything else.
const SLICE: Duration = Duration::from_millis(2);
/// After how many polls everything is scanned, folders with events too.
const POLLS_PER_SCAN: u32 = 10;
/// How long the stat cache waits to be written after a change.
const FLUSH_AFTER: Duration = Duration::from_secs(1);
/// How often it is looked whether a full disk has room again.
const CHECK_ROOM: Duration = Duration::from_secs(1);
/// By how much more is free, or how much later, it is tried again to store what there was no room for:
/// all of it is read anew.
const MORE_ROOM: u64 = 1 << 20;
const TRY_ROOM: Duration = Duration::from_secs(30);

/// Why a session ended.
pub(super) enum End {
    Stopped,
    /// Go on with this directory.
    Root(Arc<Root>),
}

/// One directory being watched and committed.
pub(super) struct Session<'a, 'scope> {
    pub(super) origin: &'a Origin,
    pub(super) setup: &'a Setup,
    pub(super) root: Arc<Root>,
    pub(super) root_id: RootId,
    pub(super) file_system: FileSystem,
    pub(super) watcher: Option<Watcher>,
    /// Why some folders have no events.
    pub(super) unwatched: Option<String>,
    /// Why a folder could not be watched since the last scan of everything was over.
    pub(super) watch_failed: Option<WatchError>,
    pub(super) names: Names,
    /// What is wrong with `.depsyncignore`: the rules before it go on.
    pub(super) bad_ignore: Option<String>,
    pub(super) reader: Arc<Reader>,
    pub(super) readers: Readers<'scope>,
    pub(super) encoder: Encoder,
    pub(super) cache: StatCache,
    pub(super) settle: Settle,
    pub(super) batch: Batch,
    pub(super) guard: Guard,
    pub(super) brake: Brake,
    pub(super) stage: Stage,
    pub(super) draft: Option<Draft<'a>>,
    pub(super) gate: Gate,
    pub(super) scan: Scan,
    /// Until the first scan is committed: all that happened meanwhile is one commit.
    pub(super) catching_up: bool,
    /// While there is no head yet.
    pub(super) import: Option<Import>,
    pub(super) halt: Option<Halt>,
    /// After a failure: not before then.
    pub(super) retry: Option<Retry>,
    pub(super) hold: Hold,
    /// One that has begun: nothing else is done before it is finished.
    pub(super) rollback: Option<Rollback>,
    /// Since when deletions are held, by this session's clock.
    pub(super) deletions_since: Option<Instant>,
    pub(super) syncs: Vec<Answer>,
    /// What no feed holds, and why; bounded.
    pub(super) left_out: BTreeMap<RelPath, &'static str>,
    pub(super) alarmed: HashSet<RelPath>,
    pub(super) report: Report,
    pub(super) new_root: Option<Arc<Root>>,
    /// A directory at the path that was found not to be ours.
    pub(super) wrong_root: Option<RootId>,
    pub(super) next_poll: Instant,
    polls: u32,
    pub(super) next_root_check: Instant,
    pub(super) next_room_check: Instant,
    ran_full: Option<RanFull>,
    pub(super) flush_at: Option<Instant>,
}

/// Something found no room though it was there when it was asked for.
struct RanFull {
    /// Bytes that were free afterwards.
    free: u64,
    again_at: Instant,
}

/// A commit that failed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    pub(super) at: Instant,
    pub(super) wait: Duration,
}

/// Changes are gathered, not published.
#[derive(Debug, Default)]
pub(super) struct Hold {
    /// `.depsync-hold` lies in the root.
    pub(super) file: bool,
    /// Somebody asked for it.
    pub(super) decided: Option<decisions::Act>,
    /// A rollback left the feed frozen.
    pub(super) frozen: Option<decisions::Act>,
    /// Since when, by this session's clock.
    pub(super) since: Option<Instant>,
    pub(super) alarmed: bool,
    /// It was released: the batch is committed once every touched path is ready.
    pub(super) releasing: bool,
}

impl<'a, 'scope> Session<'a, 'scope> {
    /// Prepares everything; the first scan is the loop's.
    pub(super) fn start(
        origin: &'a Origin,
        scope: &'scope Scope<'scope, '_>,
        root: Arc<Root>,
    ) -> Result<Self> {
        let setup = &origin.setup;
        let options = &setup.options;
        let head = setup.store.head()?.map(|head| head.commit);
        let reader = Arc::new(Reader {
            root: Arc::clone(&root),
            store: Arc::clone(&setup.store),
            keep: options.keep,
            large_file: options.large_file,
        });
        let now = Instant::now();
        let decided = setup.decisions.feed(&setup.feed);
        let mut session = Session {
            root_id: root.id()?,
            file_system: root.file_system()?,
            watcher: None,
            unwatched: None,
            watch_failed: None,
            names: Names::new(options.profile, b"").expect("our own patterns are sound"),
            bad_ignore: None,
            readers: Readers::start(scope, &reader, origin.wake())?,
            reader,
            encoder: Encoder::default(),
            cache: StatCache::new(Arc::clone(&setup.ledger), setup.feed.clone()),
            settle: Settle::new(options.quiet),
            batch: Batch::new(),
            guard: Guard::new(options.guard, decided.deletions_held.is_some()),
            brake: Brake::Off,
            stage: Stage::new(Arc::clone(&setup.store), head, options.keep),
            draft: None,
            gate: Gate::new(scope, setup, &root, origin.wake())?,
            scan: Scan::default(),
            catching_up: true,
            import: None,
            halt: None,
            retry: None,
            hold: Hold::default(),
            rollback: None,
            deletions_since: None,
            syncs: Vec::new(),
            left_out: BTreeMap::new(),
            alarmed: HashSet::new(),
            report: Report::new(now),
            new_root: None,
            wrong_root: None,
            next_poll: now + options.poll,
            polls: 0,
            next_root_check: now,
            next_room_check: now,
            ran_full: None,
            flush_at: None,
            root,
            origin,
            setup,
        };
        session.begin(decided)?;
        if head.is_none() {
            let import = Import::start(scope, now, &session.root, options.profile)?;
            session.import = Some(import);
        }
        Ok(session)
    }

    fn begin(&mut self, decided: decisions::Feed) -> Result<()> {
        let head = self.stage.head();
        if !identity::is_same(&self.root, decided.root, &self.setup.store, head)? {
            self.halt(Halt::other_root(&self.root));
            return Ok(());
        }
        let mark = identity::to_mark(self.root_id);
        self.setup.decisions.update_feed(&self.setup.feed, |feed| feed.root = Some(mark))?;
        (self.hold.frozen, self.hold.decided) = (decided.frozen, decided.hold);
        let stands = self.hold.frozen.is_some() || self.hold.decided.is_some();
        self.hold.since = stands.then(Instant::now);
        self.rollback = decided.rollback.map(|mark| Rollback::begun(mark, Instant::now()));
        self.watch();
        // Before the first scan, which may have to wait for rules that can be used.
        self.watch_folder(&RelPath::root());
        self.load_names()?;
        self.check_hold_file();
        self.scan.all();
        Ok(())
    }

    /// Runs until there is a reason to end.
    pub(super) fn run(mut self) -> Result<End> {
        loop {
            if self.origin.stop.is_asked() {
                self.flush();
                return Ok(End::Stopped);
            }
            if let Some(root) = self.new_root.take() {
                return Ok(End::Root(root));
            }
            if self.readers.has_ended() {
                return Err(std::io::Error::other("a thread that reads files has ended").into());
            }
            self.take_inputs();
            self.setup.desk.turn();
            let now = Instant::now();
            if self.work(now)? {
                // A large tree keeps it busy for minutes, and somebody looks on.
                self.report_at_times(now);
                continue;
            }
            self.report(now);
            self.let_go();
            // Whoever is answered finds the state as it is.
            self.answer_syncs();
            let wait = self.deadline(now).saturating_duration_since(Instant::now());
            if let Ok(input) = self.origin.inputs.recv_timeout(wait) {
                self.take(input);
            }
        }
    }

    /// What was read into the store and waits in no batch need not be kept for one.
    fn let_go(&self) {
        let gathers = !self.stage.is_empty() || self.gate.holds_commit();
        if !gathers && !self.settle.is_looking() {
            self.setup.store.nothing_gathered();
        }
    }

    fn take_inputs(&mut self) {
        // Bounded, so that a stream of events cannot keep commits away.
        for _ in 0..1024 {
            let Ok(input) = self.origin.inputs.try_recv() else { break };
            self.take(input);
        }
        if self.origin.missed.swap(false, Ordering::AcqRel) {
            self.rescan("more events than could be taken");
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Wake => {}
            Input::Event(event) => self.happened(event),
            Input::Request(request) => self.requested(request),
        }
    }

    fn happened(&mut self, event: Event) {
        match event {
            Event::Created(path, is_dir) | Event::MovedIn(path, is_dir) => {
                if self.names.left_out(&path, is_dir).is_none() {
                    if is_dir {
                        self.scan.folder(&path);
                    }
                    self.touch(&path, Lane::Event);
                }
                self.mind_special(&path);
            }
            Event::Written(path) => {
                if self.names.left_out(&path, false).is_none() {
                    self.touch(&path, Lane::Event);
                }
                self.mind_special(&path);
            }
            // What it was is not known: a path that is left out is found to be when it is read.
            Event::Attributes(path) => self.touch(&path, Lane::Event),
            Event::Removed(path) | Event::MovedOut(path) => {
                self.touch(&path, Lane::Event);
                self.mind_special(&path);
            }
            Event::Rescan => self.rescan("events were lost"),
            Event::RootGone => self.next_root_check = Instant::now(),
        }
    }

    /// The two files in the root that tell us something.
    fn mind_special(&mut self, path: &RelPath) {
        if path.as_bytes() == HOLD_FILE {
            self.check_hold_file();
        } else if path.as_bytes() == IGNORE_FILE {
            self.names_changed();
        }
    }

    /// Something may have happened at a path.
    pub(super) fn touch(&mut self, path: &RelPath, lane: Lane) {
        self.gate.disturb();
        // A scan pauses between folders instead: touching one whole folder again and again would
        // never end where it holds more files than this.
        let has_room = self.settle.active() < MAX_EVENTS && self.stage.len() < 2 * MAX_STAGED;
        if has_room || lane == Lane::Scan {
            self.settle.touch(path, lane);
        } else if !self.scan.will_begin() {
            self.rescan("more paths were touched than are kept");
        }
    }

    fn rescan(&mut self, why: &str) {
        tracing::info!(feed = %self.setup.feed, why, "scanning everything");
        self.report.rescans += 1;
        self.scan.all();
    }

    /// Does something that is due; false when everything waits.
    fn work(&mut self, now: Instant) -> Result<bool> {
        self.check_root(now)?;
        if self.halt.is_some() || self.lacks_rules() {
            self.poll_rules(now);
            return Ok(false);
        }
        if self.mind_rollback(now)? || self.mind_gate(now)? {
            return Ok(false);
        }
        if self.lacks_room(now) {
            return Ok(false);
        }
        let looked = self.look(now, SLICE)?;
        if self.is_commit_due(now) {
            self.commit(now)?;
            return Ok(true);
        }
        if looked || self.scan_step()? {
            return Ok(true);
        }
        self.caught_up()?;
        self.poll(now);
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush();
        }
        Ok(false)
    }

    /// Whether the disk has no more free than must stay so: until there is room nothing is read, and
    /// what was read waits.
    fn lacks_room(&mut self, now: Instant) -> bool {
        // A full disk need not be asked each time that something wakes us.
        if self.report.full.is_none() || now >= self.next_room_check {
            self.next_room_check = now + CHECK_ROOM;
            let full = match self.setup.store.check_room(0) {
                Err(error) => Some(error.to_string()),
                Ok(()) if self.is_still_full(now) => self.report.full.clone(),
                Ok(()) => None,
            };
            match (&self.report.full, &full) {
                (None, Some(why)) => tracing::error!(feed = %self.setup.feed, "{why}"),
                (Some(_), None) => tracing::info!(feed = %self.setup.feed, "there is room again"),
                _ => {}
            }
            self.report.full = full;
        }
        self.report.full.is_some()
    }

    /// There was less room than was asked for, since others fill the disk as well: what was read is
    /// dropped, and read again once there may be room.
    pub(super) fn ran_full(&mut self, now: Instant, error: &store::Error) {
        tracing::error!(feed = %self.setup.feed, %error, "the disk has run full");
        self.begin_batch_again();
        self.report.full = Some(error.to_string());
        self.ran_full = Some(RanFull { free: self.free(), again_at: now + TRY_ROOM });
        self.next_room_check = now + CHECK_ROOM;
    }

    fn is_still_full(&mut self, now: Instant) -> bool {
        let free = self.free();
        self.ran_full.take_if(|then| now >= then.again_at || free >= then.free + MORE_ROOM);
        self.ran_full.is_some()
    }

    /// Bytes; all there could be where it cannot be asked.
    fn free(&self) -> u64 {
        sys::space(self.setup.store.spool()).map_or(u64::MAX / 2, |space| space.free)
    }

    /// Drops what was read and not committed, and finds it again.
    pub(super) fn begin_batch_again(&mut self) {
        self.stage.clear();
        self.gate.clear();
        self.draft = None;
        self.batch.close(Instant::now());
        self.brake = Brake::Off;
        self.scan.all();
    }

    /// One folder of a scan, if there is room for what it finds.
    fn scan_step(&mut self) -> Result<bool> {
        let full = self.settle.active() >= MAX_TOUCHED || self.stage.len() >= MAX_STAGED;
        if full || self.scan.is_idle() {
            return Ok(false);
        }
        self.scan_folder()?;
        Ok(true)
    }

    /// Whether a scan goes on, or what it found is being read.
    pub(super) fn is_reading(&self) -> bool {
        !self.scan.is_idle() || self.settle.has_scan_work()
    }

    fn poll(&mut self, now: Instant) {
        if now < self.next_poll {
            return;
        }
        self.next_poll = now + self.setup.options.poll;
        self.polls += 1;
        self.next_root_check = now;
        if self.unwatched.is_some() || self.polls.is_multiple_of(POLLS_PER_SCAN) {
            self.scan.all();
        } else {
            self.scan.unreadable_again();
        }
    }

    /// The stat cache is written once things have calmed down.
    pub(super) fn flush_later(&mut self) {
        self.flush_at.get_or_insert_with(|| Instant::now() + FLUSH_AFTER);
    }

    fn flush(&mut self) {
        self.flush_at = None;
        if let Err(error) = self.cache.flush() {
            tracing::warn!(feed = %self.setup.feed, %error, "files will be read again");
        }
    }
}
