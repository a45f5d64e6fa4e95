//! When to look: events of the folders of a deployment directory, by inotify.
//!
//! One watch for each folder, which the caller sets before it lists the folder, so that nothing made
//! in between is lost. Events are hints about paths, never the truth about content. Ours and `.git`
//! are never reported, and neither opening nor reading makes an event, so a scan wakes nobody.
//!
//! inotify itself rather than the `notify` crate: there, every watched folder that vanishes costs a
//! walk over all watches (20,000 removed at once: 30 s without an event; here they keep pace).

use std::{
    collections::{BTreeMap, HashMap},
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags},
    fs::{
        OFlags,
        inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    },
    io::Errno,
};

use super::{Root, is_gone, is_temporary, metadata::proc_path};
use crate::model::RelPath;

/// What happened, as far as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file that was open for writing was closed.
    Written(RelPath),
    /// Something was made; true: a folder, to be watched and then listed.
    Created(RelPath, bool),
    /// Mode, owner, times, links or attributes changed.
    Attributes(RelPath),
    /// Something took this name by a rename; true: a folder, to be watched and then listed.
    MovedIn(RelPath, bool),
    /// Something lost this name by a rename. A folder is not watched any more, with all below it.
    MovedOut(RelPath),
    /// Something was removed.
    Removed(RelPath),
    /// Events were lost, or the root has come back: look at everything, and watch every folder again.
    Rescan,
    /// The directory's path leads to it no more, or its file system is gone.
    RootGone,
}

/// Why a folder is not watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The kernel's limit for this user is reached: poll instead, and say so.
    #[error(
        "no more inotify watches ({watched} here): raise the sysctl {sysctl} above what all programs of this user need"
    )]
    Limit {
        /// The limit to raise.
        sysctl: &'static str,
        /// How many folders are watched here.
        watched: usize,
    },
    /// The folder is not there, or is not a folder (any more).
    #[error("cannot watch {}: it is gone", path.display())]
    Gone {
        /// The folder.
        path: PathBuf,
    },
    /// The system refuses.
    #[error("cannot watch {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system answers.
        source: io::Error,
    },
}

/// Watches folders until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    root: OwnedFd,
    path: PathBuf,
    shared: Arc<Shared>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    inotify: OwnedFd,
    watches: Mutex<Watches>,
}

/// Bytes that one read of the queue takes: some hundred events with long names.
const EVENTS_BUFFER: usize = 64 << 10;

const FOLDER: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);

/// The root's own removal shows only in the folder above it: we hold the root open.
const ABOVE: WatchFlags =
    WatchFlags::CREATE.union(WatchFlags::MOVE).union(WatchFlags::DELETE).union(WatchFlags::ONLYDIR);

impl Watcher {
    /// Starts a watcher, which watches no folder yet. `sink` is called on its thread with each event
    /// and must not wait for anybody who may wait for `watch`.
    ///
    /// # Errors
    /// `Limit` when this user has too many watchers.
    pub fn new(
        root: &Root,
        sink: impl FnMut(Event) + Send + 'static,
    ) -> Result<Watcher, WatchError> {
        let path = root.path().to_owned();
        let refused = |source| WatchError::Io { path: path.clone(), source };
        let queue = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK);
        let queue = queue.map_err(|error| match error {
            Errno::MFILE => {
                WatchError::Limit { sysctl: "fs.inotify.max_user_instances", watched: 0 }
            }
            error => refused(error.into()),
        })?;
        let shared = Arc::new(Shared { inotify: queue, watches: Mutex::default() });
        let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(io::Error::from);
        let stop = Arc::new(stop.map_err(refused)?);
        let run = {
            let (shared, stop) = (Arc::clone(&shared), Arc::clone(&stop));
            move || shared.run(&stop, sink)
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(run);
        let root = root.as_fd().try_clone_to_owned().map_err(refused)?;
        let thread = Some(thread.map_err(refused)?);
        let watcher = Watcher { root, path, shared, stop, thread };
        watcher.watch_above();
        Ok(watcher)
    }

    /// Watches a folder from now on. Costs some microseconds; again for a watched folder, nothing.
    ///
    /// # Errors
    /// As `WatchError` says; `Gone` is no fault, the folder's removal has an event of its own.
    pub fn watch(&self, path: &RelPath) -> Result<(), WatchError> {
        let full = || self.path.join(path.as_path());
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            let source = io::Error::other("the thread that reads the events has ended");
            return Err(WatchError::Io { path: full(), source });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened =
            crate::sys::open_beneath(&self.root, path.as_path(), flags, rustix::fs::Mode::empty());
        let folder = opened.map_err(|source| match source {
            source if is_gone(&source) => WatchError::Gone { path: full() },
            source => WatchError::Io { path: full(), source },
        })?;
        // Held over the call, so that no event is read before its watch is known.
        let mut watches = self.shared.watches();
        match inotify::add_watch(&self.shared.inotify, proc_path(folder.as_fd()), FOLDER) {
            Ok(descriptor) => watches.insert(descriptor, path),
            Err(Errno::NOSPC) => {
                let sysctl = "fs.inotify.max_user_watches";
                return Err(WatchError::Limit { sysctl, watched: watches.by_path.len() });
            }
            Err(error) => return Err(WatchError::Io { path: full(), source: error.into() }),
        }
        Ok(())
    }

    /// Stops watching a folder and everything below it.
    pub fn unwatch(&self, path: &RelPath) {
        self.shared.unwatch(path);
    }

    /// How many folders are watched.
    pub fn watched(&self) -> usize {
        self.shared.watches().by_path.len()
    }

    /// Without this watch the root's removal is seen at the next scan.
    fn watch_above(&self) {
        let (Some(above), Some(name)) = (self.path.parent(), self.path.file_name()) else { return };
        let mut watches = self.shared.watches();
        if let Ok(descriptor) = inotify::add_watch(&self.shared.inotify, above, ABOVE) {
            watches.above = Some((descriptor, Path::new(name).to_owned()));
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Eight bytes always fit into the counter of a fresh eventfd.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic of the sink was reported where it happened.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, Watches> {
        self.watches.lock().expect("no holder panics")
    }

    fn unwatch(&self, path: &RelPath) {
        for descriptor in self.watches().remove_within(path) {
            // Fails when the folder is gone, and its watch with it.
            let _ = inotify::remove_watch(&self.inotify, descriptor);
        }
    }

    /// Reads events until told to stop, or until the kernel refuses, which it never should.
    fn run(&self, stop: &OwnedFd, mut sink: impl FnMut(Event)) {
        let mut buffer = vec![MaybeUninit::uninit(); EVENTS_BUFFER];
        loop {
            let mut ready =
                [PollFd::new(stop, PollFlags::IN), PollFd::new(&self.inotify, PollFlags::IN)];
            match rustix::event::poll(&mut ready, None) {
                Err(Errno::INTR) => continue,
                Ok(_) if ready[0].revents().is_empty() => {}
                _ => return,
            }
            let mut events = Reader::new(&self.inotify, &mut buffer);
            loop {
                match events.next() {
                    Ok(event) => {
                        let name = event.file_name().map(std::ffi::CStr::to_bytes);
                        if let Some(event) = self.read(event.wd(), event.events(), name) {
                            sink(event);
                        }
                    }
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(_) => return sink(Event::Rescan),
                }
            }
        }
    }

    fn read(&self, descriptor: i32, flags: ReadFlags, name: Option<&[u8]>) -> Option<Event> {
        let event = self.watches().read(descriptor, flags, name)?;
        if let (Event::MovedOut(path), true) = (&event, flags.contains(ReadFlags::ISDIR)) {
            self.unwatch(path);
        }
        Some(event)
    }
}

/// Which watch descriptor belongs to which folder. The kernel never gives a number twice.
#[derive(Debug, Default)]
struct Watches {
    by_descriptor: HashMap<i32, RelPath>,
    /// Sorted, so that what lies below a folder stands together.
    by_path: BTreeMap<Vec<u8>, i32>,
    /// The folder above the root, and the root's name in it.
    above: Option<(i32, PathBuf)>,
}

impl Watches {
    /// A folder that was moved keeps its number under its new path.
    fn insert(&mut self, descriptor: i32, path: &RelPath) {
        if let Some(before) = self.by_descriptor.insert(descriptor, path.clone()) {
            self.by_path.remove(before.as_bytes());
        }
        self.by_path.insert(path.as_bytes().to_vec(), descriptor);
    }

    /// Forgets a descriptor that the kernel has dropped; the path may have a new one already.
    fn forget(&mut self, descriptor: i32) {
        let Some(path) = self.by_descriptor.remove(&descriptor) else { return };
        if self.by_path.get(path.as_bytes()) == Some(&descriptor) {
            self.by_path.remove(path.as_bytes());
        }
    }

    fn remove_within(&mut self, folder: &RelPath) -> Vec<i32> {
        let below = if folder.is_root() { Vec::new() } else { [folder.as_bytes(), b"/"].concat() };
        let mut found: Vec<i32> =
            self.by_path.get(folder.as_bytes()).copied().into_iter().collect();
        let range = self.by_path.range(below.clone()..);
        found.extend(range.take_while(|(path, _)| path.starts_with(&below)).map(|(_, at)| *at));
        for descriptor in &found {
            self.forget(*descriptor);
        }
        found
    }

    /// What an event of the kernel's means; none when it concerns nobody.
    fn read(&mut self, descriptor: i32, flags: ReadFlags, name: Option<&[u8]>) -> Option<Event> {
        let has = |flag| flags.intersects(flag);
        if has(ReadFlags::QUEUE_OVERFLOW) {
            return Some(Event::Rescan);
        }
        if self.above.as_ref().is_some_and(|(above, _)| *above == descriptor) {
            return self.read_above(flags, name);
        }
        let folder = self.by_descriptor.get(&descriptor)?.clone();
        if has(ReadFlags::IGNORED) {
            self.forget(descriptor);
            return None;
        }
        let Some(name) = name else {
            // Of the watched folder itself: the one above it tells the rest.
            return match folder.is_root() {
                true if has(ReadFlags::UNMOUNT) => Some(Event::RootGone),
                true if has(ReadFlags::ATTRIB) => Some(Event::Attributes(folder)),
                false if has(ReadFlags::UNMOUNT) => Some(Event::Removed(folder)),
                _ => None,
            };
        };
        if is_temporary(name) {
            return None;
        }
        let path = folder.join(name).ok()?;
        let is_dir = has(ReadFlags::ISDIR);
        Some(match () {
            () if has(ReadFlags::CREATE) => Event::Created(path, is_dir),
            () if has(ReadFlags::CLOSE_WRITE) => Event::Written(path),
            () if has(ReadFlags::ATTRIB) => Event::Attributes(path),
            () if has(ReadFlags::MOVED_TO) => Event::MovedIn(path, is_dir),
            () if has(ReadFlags::MOVED_FROM) => Event::MovedOut(path),
            () if has(ReadFlags::DELETE) => Event::Removed(path),
            () => return None,
        })
    }

    fn read_above(&mut self, flags: ReadFlags, name: Option<&[u8]>) -> Option<Event> {
        if flags.contains(ReadFlags::IGNORED) {
            self.above = None;
            return Some(Event::RootGone);
        }
        let (_, root) = self.above.as_ref()?;
        if name? != root.as_os_str().as_encoded_bytes() {
            return None;
        }
        let gone = flags.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE);
        Some(if gone { Event::RootGone } else { Event::Rescan })
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::symlink,
        sync::mpsc::{Receiver, channel},
        time::Duration,
    };

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        watcher: Watcher,
        events: Receiver<Event>,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("root")).unwrap();
            let (sender, events) = channel();
            let root = Root::open(&dir.path().join("root")).unwrap();
            let watcher = Watcher::new(&root, move |event| drop(sender.send(event))).unwrap();
            watcher.watch(&RelPath::root()).unwrap();
            Fixture { dir, watcher, events }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join("root").join(path)
        }

        fn watch(&self, text: &str) {
            self.watcher.watch(&path(text)).unwrap();
        }

        /// All events up to one for a file that is made now, which is left out.
        fn events(&self) -> Vec<Event> {
            fs::write(self.at("last"), b"").unwrap();
            fs::remove_file(self.at("last")).unwrap();
            let next = || self.events.recv_timeout(Duration::from_secs(10)).unwrap();
            let mut events: Vec<Event> = std::iter::repeat_with(next)
                .take_while(|e| *e != Event::Removed(path("last")))
                .collect();
            events.retain(|event| {
                !matches!(event, Event::Created(at, _) | Event::Written(at) if *at == path("last"))
            });
            events
        }
    }

    fn path(text: &str) -> RelPath {
        RelPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn changes_are_told_and_reading_is_not() {
        let f = Fixture::new();
        fs::write(f.at("file"), b"x").unwrap();
        fs::read(f.at("file")).unwrap();
        fs::read_dir(f.at("")).unwrap().for_each(drop);
        fs::rename(f.at("file"), f.at("renamed")).unwrap();
        symlink("renamed", f.at("link")).unwrap();
        fs::create_dir(f.at("folder")).unwrap();
        let file = fs::File::open(f.at("renamed")).unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        fs::remove_file(f.at("renamed")).unwrap();
        let mut events = f.events();
        // The link count of the file that we hold open changes as well.
        events.dedup();
        let expected = [
            Event::Created(path("file"), false),
            Event::Written(path("file")),
            Event::MovedOut(path("file")),
            Event::MovedIn(path("renamed"), false),
            Event::Created(path("link"), false),
            Event::Created(path("folder"), true),
            Event::Attributes(path("renamed")),
            Event::Removed(path("renamed")),
        ];
        assert_eq!(events, expected);
    }

    #[test]
    fn ours_and_git_are_never_told() {
        let f = Fixture::new();
        fs::write(f.at(".depsync-tmp-abc"), b"x").unwrap();
        fs::create_dir(f.at(".git")).unwrap();
        fs::create_dir(f.at(".depsync")).unwrap();
        fs::rename(f.at(".depsync-tmp-abc"), f.at("whole")).unwrap();
        assert_eq!(f.events(), [Event::MovedIn(path("whole"), false)]);
    }

    #[test]
    fn a_moved_folder_is_watched_again_under_its_new_name_only() {
        let f = Fixture::new();
        fs::create_dir_all(f.at("a/sub")).unwrap();
        f.watch("a");
        f.watch("a/sub");
        f.events();
        fs::rename(f.at("a"), f.at("b")).unwrap();
        assert_eq!(f.events(), [Event::MovedOut(path("a")), Event::MovedIn(path("b"), true)]);
        assert_eq!(f.watcher.watched(), 1);
        fs::write(f.at("b/sub/unseen"), b"").unwrap();
        assert_eq!(f.events(), []);
        f.watch("b");
        f.watch("b/sub");
        fs::write(f.at("b/sub/seen"), b"").unwrap();
        let seen = path("b/sub/seen");
        assert_eq!(f.events(), [Event::Created(seen.clone(), false), Event::Written(seen)]);
    }

    #[test]
    fn a_folder_that_is_made_anew_can_be_watched_anew() {
        let f = Fixture::new();
        for _ in 0..100 {
            fs::create_dir_all(f.at("x/y")).unwrap();
            f.watch("x");
            f.watch("x/y");
            fs::write(f.at("x/y/file"), b"").unwrap();
            fs::remove_dir_all(f.at("x")).unwrap();
            let events = f.events();
            // Not its closing: a program that somebody starts meanwhile may hold it open a while longer.
            let made = Event::Created(path("x/y/file"), false);
            assert!(events.contains(&made), "{events:?}");
            assert!(events.contains(&Event::Removed(path("x"))), "{events:?}");
        }
        assert_eq!(f.watcher.watched(), 1);
    }

    #[test]
    fn what_is_unwatched_is_silent_with_all_below_and_its_neighbours_are_not() {
        let f = Fixture::new();
        for folder in ["a", "a/sub", "a-b", "a.c"] {
            fs::create_dir(f.at(folder)).unwrap();
            f.watch(folder);
        }
        f.events();
        f.watcher.unwatch(&path("a"));
        assert_eq!(f.watcher.watched(), 3);
        for folder in ["a", "a/sub", "a-b", "a.c"] {
            fs::create_dir(f.at(folder).join("new")).unwrap();
        }
        let told = [Event::Created(path("a-b/new"), true), Event::Created(path("a.c/new"), true)];
        assert_eq!(f.events(), told);
    }

    #[test]
    fn only_folders_beneath_the_root_are_watched() {
        let f = Fixture::new();
        symlink("/tmp", f.at("link")).unwrap();
        fs::write(f.at("file"), b"").unwrap();
        for other in ["link", "file", "none", "link/below"] {
            let refused = f.watcher.watch(&path(other)).unwrap_err();
            assert!(matches!(refused, WatchError::Gone { .. }), "{other}: {refused}");
        }
    }

    #[test]
    fn the_root_going_and_coming_back_is_told() {
        let f = Fixture::new();
        let next = || f.events.recv_timeout(Duration::from_secs(10)).unwrap();
        fs::rename(f.at(""), f.dir.path().join("away")).unwrap();
        assert_eq!(next(), Event::RootGone);
        fs::rename(f.dir.path().join("away"), f.at("")).unwrap();
        assert_eq!(next(), Event::Rescan);
        fs::remove_dir(f.at("")).unwrap();
        assert_eq!(next(), Event::RootGone);
    }

    #[test]
    fn a_lost_event_is_a_rescan() {
        let mut watches = Watches::default();
        assert_eq!(watches.read(-1, ReadFlags::QUEUE_OVERFLOW, None), Some(Event::Rescan));
    }
}
