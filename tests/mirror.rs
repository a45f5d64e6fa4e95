//! A mirror against a primary's store: what is published arrives, whatever the link does.
//!
//! The upstream is the real edge; between it and the mirror stands a layer that counts what is asked
//! for and can cut a transfer short.

#![expect(clippy::unwrap_used, reason = "a test fails by them")]

use std::{
    collections::BTreeMap,
    fs,
    io::{Seek, SeekFrom, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    extract::{ConnectInfo, Request, State},
    middleware::{self, Next},
    response::Response,
};
use depsync::{
    bus::{self, Board, Desk, frame::Standing},
    disk::Root,
    ledger::{Audit, Decisions, Ledger},
    model::{
        Bandwidth, Bindings, Entry, FeedName, Freshness, Head, Keep, Kind, Limits, Meta, Oid,
        RegionTable, RelPath, Stale,
    },
    replica::{self, Setup},
    serve::{self, Access, Edge, Peer, Secret},
    store::{Signature, Store},
};
use futures_util::StreamExt;
use tokio::{sync::oneshot, task::JoinHandle};
use tokio_util::sync::CancellationToken;

const KEEP: Keep = Keep { mode: true, mtime: true, empty_dirs: true, owner: false, xattrs: false };
const DEADLINE: Duration = Duration::from_secs(30);

/// A store that is followed at an address.
struct Upstream {
    desk: Arc<Desk>,
    address: SocketAddr,
    stop: CancellationToken,
    server: JoinHandle<()>,
    seen: Arc<Seen>,
    _dir: Option<tempfile::TempDir>,
}

/// What was asked for, and what is to go wrong.
#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<String>>,
    bytes: AtomicU64,
    /// A body is cut after so many bytes; none: never.
    cut_after: Mutex<Option<usize>>,
}

impl Upstream {
    async fn primary() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let desk = Arc::new(Desk::new(FeedName::default(), store, Bindings::default()));
        Upstream::of(desk, Some(dir)).await
    }

    async fn of(desk: Arc<Desk>, dir: Option<tempfile::TempDir>) -> Self {
        let stop = CancellationToken::new();
        let seen = Arc::new(Seen::default());
        let routes = serve::router(&edge(&desk), stop.clone())
            .layer(middleware::from_fn_with_state(seen.clone(), watch))
            .into_make_service_with_connect_info::<SocketAddr>();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ended = stop.clone().cancelled_owned();
        let server = axum::serve(listener, routes).with_graceful_shutdown(ended);
        #[expect(clippy::disallowed_methods, reason = "aborted with the upstream")]
        let server = tokio::spawn(async move { server.await.unwrap() });
        Upstream { desk, address, stop, server, seen, _dir: dir }
    }

    /// Publishes files (none: removed) as one commit.
    fn commit(&self, files: &[(&str, Option<&[u8]>)]) -> Head {
        let store = &self.desk.store;
        let mut draft = store.draft().unwrap();
        for (name, bytes) in files {
            let path = RelPath::parse(name.as_bytes()).unwrap();
            let Some(bytes) = bytes else {
                draft.remove(&path);
                continue;
            };
            let blob = if bytes.len() >= 512 * 1024 {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(bytes).unwrap();
                file.seek(SeekFrom::Start(0)).unwrap();
                let pointer = Store::pointer(&store.ingest(&mut file).unwrap());
                draft.add_blob(&pointer).unwrap()
            } else {
                draft.add_blob(bytes).unwrap()
            };
            let kind = Kind::File { blob, executable: false };
            draft.put(&path, Entry { kind, meta: Meta { mode: Some(0o644), ..Meta::default() } });
        }
        let by = Signature {
            author: "test".to_owned(),
            node: "hub".parse().unwrap(),
            epoch: 1,
            time: 1_700_000_000,
            subject: "test".to_owned(),
        };
        let prepared = draft.finish(&by).unwrap().expect("a change");
        let published = store.publish(prepared).unwrap();
        let head = published.head;
        self.desk.post(published);
        head
    }

    fn asked(&self, what: &str) -> usize {
        self.seen.requests.lock().unwrap().iter().filter(|path| path.contains(what)).count()
    }

    async fn close(self) {
        self.stop.cancel();
        self.server.abort();
        let _ = self.server.await;
    }
}

fn edge(desk: &Arc<Desk>) -> Arc<Edge> {
    let ledger = Arc::new(Ledger::open(&desk.store.spool().join("ledger.db")).unwrap());
    Edge::new(serve::Setup {
        board: Board::new([desk.clone()]),
        node: "hub".parse().unwrap(),
        label: "hub".parse().unwrap(),
        advertise: "http://hub.example".to_owned(),
        access: Access {
            insecure: true,
            open_reading: true,
            admin_token: Secret::new(String::new()),
            decisions: Arc::new(Decisions::load(Path::new("/nonexistent/decisions.json")).unwrap()),
            own_hosts: Vec::new(),
            uses: Arc::default(),
        },
        proxies: Vec::new(),
        regions: RegionTable::default(),
        bandwidth: Bandwidth::default(),
        limits: Limits::default(),
        region: None,
        freshness: Freshness::default(),
        stale: Stale::default(),
        intakes: BTreeMap::new(),
        max_upload: 0,
        audit: Audit::new(desk.store.spool().join("audit.jsonl"), Arc::clone(&ledger)),
        ledger,
        pass_secret: None,
    })
}

/// Counts, tells the edge who asks, and cuts.
async fn watch(
    State(seen): State<Arc<Seen>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.uri().path().to_owned();
    let is_transfer = path.contains("/packs/") || path.contains("/objects/");
    seen.requests.lock().unwrap().push(path);
    request.extensions_mut().insert(Peer(peer));
    let answer = next.run(request).await;
    if !is_transfer {
        return answer;
    }
    let (head, body) = answer.into_parts();
    let mut left = seen.cut_after.lock().unwrap().unwrap_or(usize::MAX);
    let cut = body.into_data_stream().map(move |chunk| {
        let mut chunk: Bytes = chunk.map_err(std::io::Error::other)?;
        if left == 0 {
            return Err(std::io::Error::other("cut"));
        }
        chunk.truncate(left);
        left -= chunk.len();
        seen.bytes.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(chunk)
    });
    Response::from_parts(head, Body::from_stream(cut))
}

/// A mirror's directories; it runs between `start` and `stop`.
struct Mirror {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
    upstream: SocketAddr,
    node: String,
    region: String,
    adopt: bool,
    poll: Duration,
    feed: &'static str,
}

struct Running {
    desk: Arc<Desk>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), replica::Error>>,
}

impl Mirror {
    fn new(upstream: SocketAddr) -> Self {
        let (dir, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        Mirror {
            dir,
            state,
            upstream,
            node: "mirror".to_owned(),
            region: "eu".to_owned(),
            adopt: false,
            poll: Duration::from_secs(60),
            feed: "default",
        }
    }

    fn start(&self) -> Running {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = Arc::new(Store::open(self.state.path()).unwrap());
        let desk = Arc::new(Desk::new(FeedName::default(), store, Bindings::default()));
        let setup = Setup {
            desk: desk.clone(),
            state: self.state.path().to_owned(),
            root: Some(Arc::new(Root::open(self.dir.path()).unwrap())),
            keep: KEEP,
            snapshot: None,
            drift: depsync::replica::Drift::Repair,
            checkout_at: None,
            shallow: false,
            verify_at: None,
            adopt: self.adopt,
            demoted_at: None,
            paths: Vec::new(),
            upstreams: vec![format!("http://{}", self.upstream).parse().unwrap()],
            upstream_feed: self.feed.parse().unwrap(),
            token: None,
            tls: Arc::new(
                depsync::tls::Client::load(depsync::tls::Terms::default()).unwrap().config(),
            ),
            http: reqwest::Client::new(),
            nats: None,
            poll: self.poll,
            hooks: depsync::hooks::Hooks::default(),
            ledger: Arc::new(Ledger::open(&self.state.path().join("ledger.db")).unwrap()),
            node: self.node.parse().unwrap(),
            label: self.node.parse().unwrap(),
            region: Some(self.region.parse().unwrap()),
            advertise: Some("http://mirror.example".to_owned()),
            port: None,
        };
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "joined by `stop`")]
        let task = tokio::spawn(replica::run(setup, stop.clone()));
        Running { desk, stop, task }
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        files_below(self.dir.path())
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join(name)).unwrap()
    }
}

/// Every file below a folder, by its relative path.
fn files_below(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                files.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    files
}

impl Running {
    async fn arrives_at(&self, head: Head) {
        let mut state = self.desk.state.subscribe();
        let there = state.wait_for(|state| state.have == Some(head));
        let in_time = tokio::time::timeout(DEADLINE, there).await.is_ok();
        assert!(in_time, "never at {head:?}: {:?}", self.desk.state.borrow());
    }

    async fn stop(self) -> Result<(), replica::Error> {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.task).await.unwrap().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_commits_arrive_without_a_request() {
    let hub = Upstream::primary().await;
    let first = hub.commit(&[("a.txt", Some(b"one")), ("lib/b.txt", Some(b"two"))]);
    let mirror = Mirror::new(hub.address);
    let running = mirror.start();
    running.arrives_at(first).await;
    assert_eq!(hub.asked("packs/"), 1);
    for n in 0..5_u8 {
        let head = hub.commit(&[("a.txt", Some(&[n])), (&format!("new/{n}"), Some(b"x"))]);
        running.arrives_at(head).await;
        assert_eq!(mirror.read("a.txt"), [n]);
    }
    assert_eq!(hub.asked("packs/"), 1, "their packs came inside the announcements");
    assert_eq!(mirror.files().len(), 7);
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absence_is_caught_up_with_in_one_fetch() {
    let hub = Upstream::primary().await;
    let first = hub.commit(&[("keep", Some(b"1")), ("drop", Some(b"2"))]);
    let mirror = Mirror::new(hub.address);
    let running = mirror.start();
    running.arrives_at(first).await;
    running.stop().await.unwrap();
    hub.commit(&[("drop", None)]);
    let mut head = first;
    for n in 0..20_u8 {
        head = hub.commit(&[("keep", Some(&[n])), (&format!("d{n}/f"), Some(&[n]))]);
    }
    let before = hub.asked("packs/");
    let running = mirror.start();
    running.arrives_at(head).await;
    assert_eq!(hub.asked("packs/") - before, 1);
    assert_eq!(mirror.read("keep"), [19]);
    assert!(!mirror.files().contains_key("drop"), "what was deleted meanwhile is deleted");
    assert_eq!(mirror.files().len(), 21);
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_that_is_cut_goes_on_where_it_was() {
    let hub = Upstream::primary().await;
    let large: Vec<u8> = (0..4_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0])
        .collect();
    let middle = large[..400_000].to_vec();
    let head = hub.commit(&[("large.bin", Some(&large)), ("middle.bin", Some(&middle))]);
    *hub.seen.cut_after.lock().unwrap() = Some(1_500_000);
    let mirror = Mirror::new(hub.address);
    let running = mirror.start();
    running.arrives_at(head).await;
    assert_eq!(mirror.read("large.bin"), large);
    assert_eq!(mirror.read("middle.bin"), middle);
    assert!(hub.asked("objects/") >= 3, "it was cut twice");
    let bytes = hub.seen.bytes.load(Ordering::Relaxed);
    let whole = (large.len() + middle.len()) as u64;
    assert!(bytes < whole * 12 / 10, "{bytes} bytes for {whole}");
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_pack_that_is_cut_goes_on_where_it_was() {
    let hub = Upstream::primary().await;
    let noise = |salt: u32| -> Vec<u8> {
        (0..400_000_u32)
            .map(|n| ((n ^ salt).wrapping_mul(2_654_435_761) >> 11).to_le_bytes()[0])
            .collect()
    };
    let files: Vec<(String, Vec<u8>)> =
        (0..6).map(|n| (format!("f{n}"), noise(n * 7_919))).collect();
    let files: Vec<_> =
        files.iter().map(|(name, bytes)| (name.as_str(), Some(bytes.as_slice()))).collect();
    let head = hub.commit(&files);
    *hub.seen.cut_after.lock().unwrap() = Some(500_000);
    let mirror = Mirror::new(hub.address);
    let running = mirror.start();
    running.arrives_at(head).await;
    for (name, bytes) in &files {
        assert_eq!(mirror.read(name), bytes.unwrap());
    }
    let asked = hub.asked("packs/");
    let bytes = hub.seen.bytes.load(Ordering::Relaxed);
    let whole: u64 =
        fs::metadata(hub.desk.store.pack(None, head.commit).unwrap().path).unwrap().len();
    assert!(asked > 1 && bytes < whole * 12 / 10, "{asked} requests and {bytes} bytes for {whole}");
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mirror_of_a_mirror_gets_it_too() {
    let hub = Upstream::primary().await;
    let first = hub.commit(&[("a", Some(b"1"))]);
    let near = Mirror::new(hub.address);
    let near_running = near.start();
    near_running.arrives_at(first).await;
    let relay = Upstream::of(near_running.desk.clone(), None).await;
    let far = Mirror { node: "far".to_owned(), ..Mirror::new(relay.address) };
    let far_running = far.start();
    far_running.arrives_at(first).await;
    let second = hub.commit(&[("a", Some(b"2"))]);
    far_running.arrives_at(second).await;
    assert_eq!(far.read("a"), b"2");
    assert_eq!(relay.asked("packs/"), 1, "a relay hands packs on inside announcements");
    far_running.stop().await.unwrap();
    relay.close().await;
    near_running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_files_stop_the_start_before_anything_is_changed() {
    let hub = Upstream::primary().await;
    let head =
        hub.commit(&[("same", Some(b"same")), ("other", Some(b"theirs")), ("new", Some(b"n"))]);
    let mut mirror = Mirror::new(hub.address);
    for (name, bytes) in [("same", "same"), ("other", "mine"), ("extra", "mine")] {
        fs::write(mirror.dir.path().join(name), bytes).unwrap();
    }
    let before = mirror.files();
    let running = mirror.start();
    let error = tokio::time::timeout(DEADLINE, running.task).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 78);
    let text = error.to_string();
    assert!(text.contains("\n  extra\n  other\n"), "{text}");
    assert_eq!(mirror.files(), before);
    drop(running.desk);

    mirror.adopt = true;
    let inode = |name: &str| {
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(mirror.dir.path().join(name)).unwrap())
    };
    let same = inode("same");
    let running = mirror.start();
    running.arrives_at(head).await;
    assert_eq!(inode("same"), same, "what is equal is taken over as it is");
    assert_eq!(mirror.read("other"), b"theirs");
    assert_eq!(mirror.files().len(), 3);
    let aside = files_below(&mirror.state.path().join("aside"));
    assert_eq!(aside.values().filter(|bytes| **bytes == b"mine").count(), 2, "{aside:?}");
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_knows_who_serves_the_region_and_how_far_it_is() {
    let hub = Upstream::primary().await;
    let head = hub.commit(&[("a", Some(b"1"))]);
    let mirror = Mirror::new(hub.address);
    let running = mirror.start();
    running.arrives_at(head).await;
    let mut state = running.desk.state.subscribe();
    let serving = state.wait_for(|state| state.standing == Standing::Serving);
    tokio::time::timeout(DEADLINE, serving).await.unwrap().unwrap();
    let id = "mirror".parse().unwrap();
    hub.desk.reached(&id, "http://mirror.example", bus::roster::Reach::Reached);
    let serving = || hub.desk.sites_of(&"eu".parse().unwrap()).remove(0);
    assert_eq!((serving().node.as_str(), &*serving().url), ("mirror", "http://mirror.example"));
    assert_eq!(serving().bar, None);

    let standby = Mirror { node: "second".to_owned(), ..Mirror::new(hub.address) };
    let second = standby.start();
    second.arrives_at(head).await;
    let mut state = second.desk.state.subscribe();
    let told = state.wait_for(|state| state.standing == Standing::Standby);
    tokio::time::timeout(DEADLINE, told).await.unwrap().unwrap();
    assert_eq!(serving().node.as_str(), "mirror");
    second.stop().await.unwrap();
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_a_redirect_names_is_fetched_on_request() {
    let hub = Upstream::primary().await;
    let first = hub.commit(&[("a", Some(b"1"))]);
    let mirror = Mirror::new(hub.address);
    let running = mirror.start();
    running.arrives_at(first).await;
    let ask = async |commit| {
        let (answer, result) = oneshot::channel();
        assert!(running.desk.ask(bus::Request::Fetch(commit, answer)));
        tokio::time::timeout(DEADLINE, result).await.unwrap().unwrap()
    };
    assert_eq!(ask(first.commit).await, Ok(()));
    let second = hub.commit(&[("a", Some(b"2"))]);
    assert_eq!(ask(second.commit).await, Ok(()));
    assert!(running.desk.store.is_published(second.commit).unwrap());
    assert!(ask(Oid::from_bytes([9; 20])).await.is_err());
    let (answer, result) = oneshot::channel();
    assert!(running.desk.ask(bus::Request::Sync(answer)));
    tokio::time::timeout(DEADLINE, result).await.unwrap().unwrap().unwrap();
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upstream_that_is_away_is_waited_for() {
    let hub = Upstream::primary().await;
    let first = hub.commit(&[("a", Some(b"1"))]);
    let address = hub.address;
    let mirror = Mirror::new(address);
    let running = mirror.start();
    running.arrives_at(first).await;
    hub.stop.cancel();
    let mut state = running.desk.state.subscribe();
    let waits = state.wait_for(|state| state.state == "waiting-for-upstream");
    tokio::time::timeout(DEADLINE, waits).await.unwrap().unwrap();
    assert_eq!(mirror.read("a"), b"1");
    running.stop().await.unwrap();
    hub.close().await;
}

/// An empty file system on a folder, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn at(folder: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "none"]).arg(folder).stderr(Stdio::null()).status();
        done.is_ok_and(|status| status.success()).then(|| Mounted(folder.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(&self.0).status();
        assert!(std::thread::panicking() || done.is_ok_and(|status| status.success()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_cannot_be_placed_holds_up_no_other_and_is_made_good() {
    let hub = Upstream::primary().await;
    let first = hub.commit(&[("a", Some(b"1")), ("b", Some(b"1"))]);
    let mirror = Mirror::new(hub.address);
    let running = mirror.start();
    running.arrives_at(first).await;
    // A mount point in the way is the one thing that neither root nor a rename gets past.
    let obstacle = mirror.dir.path().join("wall");
    fs::create_dir(&obstacle).unwrap();
    let Some(mounted) = Mounted::at(&obstacle) else {
        running.stop().await.unwrap();
        return hub.close().await; // mounting takes root
    };
    hub.commit(&[("a", Some(b"2")), ("wall", Some(b"a file"))]);
    let mut state = running.desk.state.subscribe();
    let failing = state.wait_for(|state| state.state == "failing");
    let detail = tokio::time::timeout(DEADLINE, failing).await.unwrap().unwrap().detail.clone();
    assert!(detail.as_ref().unwrap().contains("wall"), "{detail:?}");
    assert_eq!(mirror.read("a"), b"2");
    let third = hub.commit(&[("a", Some(b"3"))]);
    drop(mounted);
    running.arrives_at(third).await;
    assert_eq!((mirror.read("a"), mirror.read("wall")), (b"3".to_vec(), b"a file".to_vec()));
    let aside = mirror.state.path().join("aside");
    assert!(!aside.exists(), "our own file is not someone else's");
    running.stop().await.unwrap();
    hub.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_mirror_from_its_upstream_has_a_name() {
    let says = async |mirror: &Mirror, expected: &str, words: &[&str]| {
        let running = mirror.start();
        let mut state = running.desk.state.subscribe();
        let told = state.wait_for(|state| {
            let detail = state.detail.as_deref().unwrap_or_default();
            state.state == expected && words.iter().all(|word| detail.contains(word))
        });
        let in_time = tokio::time::timeout(DEADLINE, told).await.is_ok();
        assert!(in_time, "not {expected} {words:?}: {:?}", running.desk.state.borrow());
        running.stop().await.unwrap();
    };
    let hub = Upstream::primary().await;
    hub.commit(&[("a", Some(b"1"))]);
    let other_feed = Mirror { feed: "apps", ..Mirror::new(hub.address) };
    says(&other_feed, "no-such-feed", &["no feed \"apps\"", "it has: default"]).await;
    hub.close().await;

    let stranger = axum::Router::new().fallback(async || "hello");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    #[expect(clippy::disallowed_methods, reason = "aborted below")]
    let server = tokio::spawn(async move { axum::serve(listener, stranger).await });
    says(&Mirror::new(address), "not-depsync", &["not a depsync server"]).await;
    server.abort();
    let _ = server.await;
    says(&Mirror::new(address), "waiting-for-upstream", &["cannot connect", "refused"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_gets_each_change_and_one_pack_is_built_for_all() {
    let count = if std::env::var_os("DEPSYNC_FULL").is_some() { 200 } else { 40 };
    depsync::sys::allow_open_files().unwrap();
    let hub = Upstream::primary().await;
    // Knuth's generator: bytes that do not compress.
    let noise = |mut seed: u64| -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed.to_be_bytes()[0]
        };
        (0..100_000).map(|_| next()).collect()
    };
    hub.commit(&[("small", Some(&[0; 1024])), ("middle", Some(&noise(1)))]);
    let first = hub.commit(&[("small", Some(&[1; 1024]))]);
    let mirrors: Vec<Mirror> = (0..count)
        .map(|n| {
            let name = format!("region-{n}");
            Mirror { node: name.clone(), region: name, ..Mirror::new(hub.address) }
        })
        .collect();
    let running: Vec<Running> = mirrors.iter().map(Mirror::start).collect();
    let built = || hub.desk.store.built().packs;
    assert!(verified_by(&hub, &first, count).await, "{:?}", hub.desk.verdict(&first));
    assert_eq!((built(), hub.asked("packs/")), (1, count), "two commits in one pack, for all");
    // A change that travels inside its announcement, and one whose own pack is fetched as it is.
    for (name, bytes, asked) in [("small", vec![2; 1024], count), ("middle", noise(2), 2 * count)] {
        let head = hub.commit(&[(name, Some(&bytes))]);
        assert!(verified_by(&hub, &head, count).await, "{:?}", hub.desk.verdict(&head));
        assert_eq!((built(), hub.asked("packs/")), (1, asked), "{name}");
        for mirror in &mirrors {
            assert_eq!(mirror.read(name), bytes);
        }
    }
    for mirror in running {
        mirror.stop().await.unwrap();
    }
    hub.close().await;
}

/// Whether so many regions have verified a head in time, as the primary knows it.
async fn verified_by(hub: &Upstream, head: &Head, count: usize) -> bool {
    let deadline = std::time::Instant::now() + 4 * DEADLINE;
    let mut hellos = hub.desk.hellos.subscribe();
    loop {
        // A region that has not said hello yet is not known.
        let verdict = hub.desk.wait_verified(head, deadline).await;
        if !verdict.is_complete() || verdict.verified.len() == count {
            return verdict.is_complete();
        }
        if tokio::time::timeout_at(deadline.into(), hellos.changed()).await.is_err() {
            return false;
        }
    }
}
