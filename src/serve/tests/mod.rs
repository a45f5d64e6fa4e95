//! The edge as its clients see it: a real store and a real folder behind the router.

mod access;
mod bandwidth;
mod control;
mod downloads;
mod openapi;
mod replication;
mod stock;
mod telemetry;
mod uploads;

use std::{
    collections::BTreeMap,
    io::{Seek, Write},
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::{Access, Edge, Intake, Peer, Secret, Setup};
use crate::{
    bus::{Board, Caller, Desk, frame::Hello, roster::Reach},
    disk::{CurrentRoot, Root},
    ledger::{Audit, Decisions, Ledger},
    model::{
        Bandwidth, Bindings, Entry, FeedName, Freshness, Kind, Limits, Member, Meta, Mtime, NodeId,
        Oid, Region, RegionTable, RelPath, Stale,
    },
    store::{Draft, Signature, Store},
};

const TOKEN: &str = "s3cret";

struct World {
    dir: tempfile::TempDir,
    desk: Arc<Desk>,
    edge: Arc<Edge>,
}

/// What lies at a path of a version that a test publishes.
enum Put<'a> {
    Blob(&'a [u8]),
    Object(&'a [u8]),
    Link(&'a str),
    Folder,
    Nothing,
}

impl World {
    /// A primary of the feed `apps` with nothing published, and a table with one region.
    fn primary() -> World {
        let world = World::new(Freshness::Lease, Stale::Serve);
        world.desk.state.send_modify(|state| (state.primary, state.state) = (true, "idle"));
        world
    }

    fn region() -> World {
        World::region_with(Freshness::Lease, Stale::Serve)
    }

    fn region_with(freshness: Freshness, stale: Stale) -> World {
        let world = World::new(freshness, stale);
        world.desk.state.send_modify(|state| {
            state.state = "idle";
            state.upstream_url = Some("http://hub.example:7873/".to_owned());
            state.heartbeat = Some(std::time::Instant::now());
        });
        world
    }

    fn new(freshness: Freshness, stale: Stale) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("live")).unwrap();
        let feed: FeedName = "apps".parse().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("feed")).unwrap());
        let desk = Arc::new(Desk::new(feed.clone(), store, Bindings::default()));
        let root = Arc::new(CurrentRoot::new(Root::open(&dir.path().join("live")).unwrap()));
        let left_out =
            Box::new(|path: &RelPath| path.name().ends_with(b".tmp").then_some("unfinished"));
        let region = Region {
            name: "eu".parse().unwrap(),
            members: vec![Member::Range("10.1.0.0/16".parse().unwrap())],
        };
        let ledger = Ledger::open(&dir.path().join("ledger.db")).unwrap();
        let ledger = Arc::new(ledger);
        let edge = Edge::new(Setup {
            board: Board::new([Arc::clone(&desk)]),
            node: "hub-node".parse().unwrap(),
            label: "hub".parse().unwrap(),
            advertise: "http://127.0.0.1:7873".to_owned(),
            access: Access {
                insecure: false,
                open_reading: true,
                admin_token: Secret::new(TOKEN.to_owned()),
                decisions: Arc::new(Decisions::load(&dir.path().join("decisions.json")).unwrap()),
                own_hosts: vec!["hub.example".to_owned()],
                uses: Arc::default(),
            },
            proxies: vec!["10.0.0.0/24".parse().unwrap()],
            regions: RegionTable::build(vec![region]).unwrap(),
            bandwidth: Bandwidth::default(),
            limits: Limits::default(),
            region: None,
            freshness,
            stale,
            intakes: BTreeMap::from([(feed, Intake { root, left_out })]),
            max_upload: 1 << 20,
            audit: Audit::new(dir.path().join("audit.jsonl"), Arc::clone(&ledger)),
            ledger,
            pass_secret: None,
        });
        World { dir, desk, edge }
    }

    fn live(&self) -> std::path::PathBuf {
        self.dir.path().join("live")
    }

    /// Publishes a version on top of the newest one.
    fn publish(&self, entries: &[(&str, Put<'_>)]) -> Oid {
        let published = commit(&self.desk.store, entries);
        self.desk.post(published.clone());
        published.head.commit
    }

    /// A mirror that serves the region `eu` from `url`.
    fn mirror(&self, url: &str) {
        let node: NodeId = "node-eu".parse().unwrap();
        let hello = Hello {
            region: Some("eu".parse().unwrap()),
            ..Hello::of(node.clone(), "eu-1".parse().unwrap())
        };
        self.desk.register(Caller { hello, url: Some(url.to_owned()), token: None }).unwrap();
        self.desk.reached(&node, url, Reach::Reached);
    }

    async fn send(&self, mut request: Request<Body>) -> Response {
        let here: SocketAddr = "127.0.0.1:55555".parse().unwrap();
        request.extensions_mut().get_or_insert(Peer(here));
        let router = super::router(&self.edge, CancellationToken::new());
        let asked = (request.method().to_string(), request.uri().clone());
        let answer = router.oneshot(request).await.unwrap();
        openapi::check(&asked, &answer);
        answer
    }

    /// A `GET` below `/v1/feeds/apps/` with these headers.
    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.send(request("GET", path, headers, Body::empty())).await
    }

    async fn json(&self, path: &str) -> Value {
        let response = self.get(path, &[]).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        serde_json::from_slice(&body(response).await).unwrap()
    }
}

fn commit(store: &Store, entries: &[(&str, Put<'_>)]) -> crate::store::Published {
    let mut draft = store.draft().unwrap();
    for (path, put) in entries {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        match entry(store, &mut draft, put) {
            Some(entry) => draft.put(&path, entry),
            None => draft.remove(&path),
        }
    }
    let by = Signature {
        author: "tester".to_owned(),
        node: "hub-node".parse().unwrap(),
        epoch: 1,
        time: 1_700_000_000,
        subject: "a version".to_owned(),
    };
    store.publish(draft.finish(&by).unwrap().unwrap()).unwrap()
}

fn entry(store: &Store, draft: &mut Draft<'_>, put: &Put<'_>) -> Option<Entry> {
    let mtime = Some(Mtime { secs: 1_600_000_000, nanos: 0 });
    let meta = Meta { mode: Some(0o640), mtime, ..Meta::default() };
    Some(match put {
        Put::Blob(bytes) => {
            let blob = draft.add_blob(bytes).unwrap();
            Entry { kind: Kind::File { blob, executable: false }, meta }
        }
        Put::Object(bytes) => {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            let pointer = Store::pointer(&store.ingest(&mut file).unwrap());
            let blob = draft.add_blob(&pointer).unwrap();
            Entry { kind: Kind::File { blob, executable: false }, meta }
        }
        Put::Link(target) => {
            let blob = draft.add_blob(target.as_bytes()).unwrap();
            Entry { kind: Kind::Symlink { blob }, meta: Meta::default() }
        }
        Put::Folder => {
            Entry { kind: Kind::Dir, meta: Meta { mode: Some(0o755), ..Meta::default() } }
        }
        Put::Nothing => return None,
    })
}

/// A request of a client on loopback; a path without a slash in front is one below the feed.
fn request(method: &str, path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let path =
        if path.starts_with('/') { path.to_owned() } else { format!("/v1/feeds/apps/{path}") };
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let peer: SocketAddr = "127.0.0.1:55555".parse().unwrap();
    request.extension(Peer(peer)).body(body).unwrap()
}

/// The same, from another address.
fn from(mut request: Request<Body>, peer: &str) -> Request<Body> {
    request.extensions_mut().insert(Peer(SocketAddr::new(peer.parse().unwrap(), 55555)));
    request
}

async fn body(response: Response) -> Bytes {
    response.into_body().collect().await.unwrap().to_bytes()
}

fn header<'r>(response: &'r Response, name: &str) -> &'r str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

fn sha256(bytes: &[u8]) -> String {
    crate::model::ObjectId::from_bytes(Sha256::digest(bytes).into()).to_string()
}

/// Bytes that repeat nowhere near a block's size.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| u8::try_from(n * 7 % 251).unwrap()).collect()
}

/// Everything below a folder, hidden names too.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<String> = entries
        .flat_map(|path| {
            let below = if path.is_dir() && !path.is_symlink() { names(&path) } else { Vec::new() };
            [path.to_string_lossy().into_owned()].into_iter().chain(below)
        })
        .collect();
    names.sort();
    names
}
