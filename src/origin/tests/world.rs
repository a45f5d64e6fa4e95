//! A directory, a state directory, and the loop running on its thread.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use sha1::{Digest, Sha1};
use sha2::Sha256;
use tokio::sync::oneshot;

use crate::{
    bus::{Answer, Desk, Request, State},
    disk::{CurrentRoot, Root},
    hooks::Hooks,
    ledger::{Decisions, Ledger},
    model::{Bindings, Content, Entry, FeedName, Head, Keep, Kind, ObjectId, Oid, RelPath},
    origin::{self, Input, Options, Origin, Result, Rules, Setup, Stop},
    store::Store,
};

pub(super) const LARGE_FILE: u64 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct World {
    pub(super) dir: tempfile::TempDir,
    pub(super) options: Options,
    pub(super) desk: Arc<Desk>,
    pub(super) ledger: Arc<Ledger>,
    running: Option<(Stop, JoinHandle<Result<()>>)>,
    missed: Arc<AtomicBool>,
}

impl World {
    /// An empty directory, watched.
    pub(super) fn new() -> Self {
        let mut world = Self::stopped();
        world.start();
        world.sync();
        world
    }

    /// Nothing runs yet.
    pub(super) fn stopped() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::create_dir_all(dir.path().join("state/feeds/default")).unwrap();
        let keep = Keep { mode: true, mtime: true, empty_dirs: true, owner: false, xattrs: false };
        let options = Options {
            large_file: LARGE_FILE,
            keep,
            profile: None,
            events: true,
            quiet: Duration::from_millis(200),
            poll: Duration::from_secs(600),
            guard: Rules::default(),
        };
        let (desk, ledger) = Self::desk(dir.path());
        Self { dir, options, desk, ledger, running: None, missed: Arc::default() }
    }

    fn desk(dir: &Path) -> (Arc<Desk>, Arc<Ledger>) {
        let store = Arc::new(Store::open(&dir.join("state/feeds/default")).unwrap());
        let ledger = Arc::new(Ledger::open(&dir.join("state/ledger.db")).unwrap());
        (Arc::new(Desk::new(FeedName::default(), store, Bindings::default())), ledger)
    }

    pub(super) fn start(&mut self) {
        (self.desk, self.ledger) = Self::desk(self.dir.path());
        let decisions = Decisions::load(&self.dir.path().join("state/decisions.json")).unwrap();
        let root = Root::open(&self.dir.path().join("root")).unwrap();
        // Another test's child has the old one's descriptor between its fork and its exec.
        self.wait("lock", |_| root.lock().ok());
        let origin = origin::start(Setup {
            feed: FeedName::default(),
            root: Arc::new(CurrentRoot::new(root)),
            store: Arc::clone(&self.desk.store),
            ledger: Arc::clone(&self.ledger),
            decisions: Arc::new(decisions),
            desk: Arc::clone(&self.desk),
            node: "n1".parse().unwrap(),
            label: "hub".parse().unwrap(),
            state: self.dir.path().join("state/feeds/default"),
            hooks: Hooks::default(),
            options: self.options.clone(),
        })
        .unwrap();
        let stop = origin.stop();
        self.missed = Arc::clone(&origin.missed);
        self.running = Some((stop, std::thread::spawn(move || Origin::run(origin))));
    }

    pub(super) fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.stop();
            thread.join().unwrap().unwrap();
        }
    }

    pub(super) fn restart(&mut self) {
        self.stop();
        self.start();
        self.sync();
    }

    pub(super) fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join("root").join(path)
    }

    pub(super) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(super) fn ask(
        &self,
        request: impl FnOnce(Answer) -> Request,
    ) -> std::result::Result<(), String> {
        let (answer, done) = oneshot::channel();
        assert!(self.desk.ask(request(answer)), "nobody takes requests");
        done.blocking_recv().expect("the stage goes on")
    }

    /// As if more events had come than could be taken.
    pub(super) fn lose_events(&self) {
        self.missed.store(true, Ordering::Release);
        let (stop, _) = self.running.as_ref().unwrap();
        stop.sender.try_send(Input::Wake).unwrap();
    }

    /// Looks at everything and commits it.
    pub(super) fn sync(&self) {
        self.ask(Request::Sync).unwrap();
    }

    pub(super) fn head(&self) -> Option<Head> {
        self.desk.store.head().unwrap()
    }

    pub(super) fn seq(&self) -> u64 {
        self.head().map_or(0, |head| head.seq)
    }

    pub(super) fn state(&self) -> State {
        self.desk.state.borrow().clone()
    }

    /// Waits until something is so; says what was last seen instead.
    pub(super) fn wait<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            let thread = self.running.as_ref().map(|(_, thread)| thread);
            assert!(
                thread.is_none_or(|thread| !thread.is_finished()),
                "it ended, waiting for {what}"
            );
            assert!(Instant::now() < deadline, "no {what}: {:#?}", self.state());
            // Looking costs more than what is looked for.
            std::thread::park_timeout(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }

    /// Waits for the head to be as the directory, by events alone.
    pub(super) fn wait_until_equal(&self) {
        self.wait("commit of everything", |world| (world.tree() == world.disk()).then_some(()));
    }

    /// Waits for `path` to be in the head (or not).
    pub(super) fn wait_for(&self, path: &str, there: bool) {
        self.wait(path, |world| (world.entry(path).is_some() == there).then_some(()));
    }

    pub(super) fn entry(&self, path: &str) -> Option<Entry> {
        let head = self.head()?;
        self.desk.store.entry(head.commit, &rel(path)).unwrap()
    }

    /// What the head holds: path → kind and content.
    pub(super) fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        let Some(head) = self.head() else { return tree };
        let store = &self.desk.store;
        let visit = &mut |path: RelPath, entry: Entry| {
            let mode = entry.meta.mode.unwrap_or(0);
            let text = match entry.kind {
                Kind::Dir => format!("dir {mode:o}"),
                Kind::Symlink { blob } => {
                    format!("link {}", String::from_utf8_lossy(&store.read_blob(blob).unwrap()))
                }
                Kind::File { blob, executable } => {
                    assert_eq!(executable, mode & 0o100 != 0, "{path}");
                    match store.content(blob).unwrap() {
                        Content::Blob(blob) => format!("file {mode:o} git {blob}"),
                        Content::Object { id, size } => format!("file {mode:o} object {id} {size}"),
                    }
                }
            };
            tree.insert(path.to_text().into_owned(), text);
        };
        store.walk(head.commit, visit).unwrap();
        tree
    }

    /// What the directory holds, in the same words.
    pub(super) fn disk(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let root = self.at("");
        walk(&root, &root, &mut found);
        found
    }

    pub(super) fn git(&self, arguments: &[&str]) -> String {
        let git = self.dir.path().join("state/feeds/default/git");
        let mut command = Command::new("git");
        command.env_clear().env("PATH", "/usr/bin:/bin:/usr/local/bin");
        command.env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", self.dir.path());
        let out = command.arg("--git-dir").arg(git).args(arguments).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// git finds nothing wrong, and the same tree.
    pub(super) fn check_by_git(&self) {
        self.git(&["fsck", "--strict", "--full"]);
        let listed = self.git(&["ls-tree", "-r", "--name-only", "-z", "main"]);
        let names: Vec<_> = listed
            .split_terminator('\0')
            .filter(|name| !name.starts_with(".depsync/"))
            .map(str::to_owned)
            .collect();
        let files: Vec<_> = self
            .tree()
            .into_iter()
            .filter(|(_, text)| !text.starts_with("dir"))
            .map(|(p, _)| p)
            .collect();
        assert_eq!(names, files);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            stop.stop();
            let _ = thread.join();
        }
    }
}

pub(super) fn rel(path: &str) -> RelPath {
    RelPath::parse(path.as_bytes()).unwrap()
}

fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let name = String::from_utf8_lossy(name).into_owned();
        let mode = meta.permissions().mode() & 0o7777;
        let text = if meta.is_dir() {
            walk(root, &path, found);
            format!("dir {mode:o}")
        } else if meta.is_symlink() {
            format!("link {}", fs::read_link(&path).unwrap().to_string_lossy())
        } else {
            let content = fs::read(&path).unwrap();
            if content.len() as u64 >= LARGE_FILE {
                let hash = ObjectId::from_bytes(Sha256::digest(&content).into());
                format!("file {mode:o} object {hash} {}", content.len())
            } else {
                let framed = [format!("blob {}\0", content.len()).as_bytes(), &content].concat();
                format!("file {mode:o} git {}", Oid::from_bytes(Sha1::digest(framed).into()))
            }
        };
        found.insert(name, text);
    }
}
