//! One small change in a large fleet: how long until every region has it checked out and acknowledged.
//!
//! A real primary; 200 whole mirrors in this process, then 2,000 followers that only acknowledge: over
//! connections of their own, and by way of a NATS server. Prints milliseconds from the rename that
//! brings the file to each mirror's verified checkout, and to the moment at which the primary knows it
//! of all. `cargo bench --bench fleet -- [MIRRORS FOLLOWERS]`

#![expect(
    clippy::panic,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::pedantic,
    reason = "figures for people"
)]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use depsync::{
    bus::{
        Desk, Nats,
        frame::{self, Ack, Announce, FromFollower, FromUpstream, Hello, Outcome, Pulse, Welcome},
        nats::attend::{Attendant, Told},
    },
    disk::{Keep, Root},
    hooks::Hooks,
    ledger::Ledger,
    model::{Bindings, FeedName, Head},
    replica,
    store::Store,
};
use futures_util::{SinkExt, StreamExt};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};
use tokio_tungstenite::tungstenite::{ClientRequestBuilder, Message};
use tokio_util::sync::CancellationToken;

const ROUNDS: usize = 20;
const LIMIT: Duration = Duration::from_secs(120);

struct Hub {
    child: Child,
    dir: tempfile::TempDir,
    address: String,
}

/// A NATS server with a store of its own.
struct Server {
    child: Child,
    url: String,
    _store: tempfile::TempDir,
}

impl Server {
    fn start() -> Option<Self> {
        let store = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let child = Command::new("nats-server")
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(store.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        Some(Server { child, url: format!("nats://127.0.0.1:{port}"), _store: store })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hub {
    fn start(nats: Option<&Server>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("apps")).unwrap();
        let bus = nats.map_or(String::new(), |it| format!("[bus]\nnats = {:?}\n", it.url));
        let config = format!(
            "listen = \"127.0.0.1:0\"\nstate_dir = {:?}\n{bus}[[feed]]\ndir = {:?}\n",
            at("state"),
            at("apps")
        );
        fs::write(at("hub.toml"), config).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_depsync"))
            .args(["run", "--config"])
            .arg(at("hub.toml"))
            .env("RUST_LOG", "error")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let file = dir.path().join("state/address");
        let end = Instant::now() + LIMIT;
        let address = loop {
            match fs::read_to_string(&file) {
                Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                _ => assert!(Instant::now() < end, "the primary does not listen"),
            }
            std::thread::park_timeout(Duration::from_millis(5));
        };
        Hub { child, dir, address }
    }

    /// A file appears whole; the moment of its rename.
    fn publish(&self, n: usize) -> Instant {
        let (tmp, to) = (self.dir.path().join("new"), self.dir.path().join("apps/file"));
        fs::write(&tmp, format!("{n:01024}")).unwrap();
        let now = Instant::now();
        fs::rename(tmp, to).unwrap();
        now
    }

    /// The most memory that it has ever held, in MB.
    fn peak(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1e3
    }

    async fn get(&self, http: &reqwest::Client, path: &str) -> String {
        let url = format!("http://{}{path}", self.address);
        http.get(url).send().await.unwrap().text().await.unwrap()
    }

    /// Until the primary knows that every region has verified the newest version, which is `seq`.
    async fn all_verified(&self, http: &reqwest::Client, seq: usize) -> Instant {
        let end = Instant::now() + LIMIT;
        loop {
            // Not before it is published: the answer to a wait names every region.
            let text = self.get(http, "/v1/feeds/default").await;
            let told: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            assert!(Instant::now() < end, "it is not published: {text:.400}");
            if told["seq"].as_u64() < Some(seq as u64) {
                tokio::time::sleep(Duration::from_millis(2)).await;
                continue;
            }
            let text = self.get(http, "/v1/feeds/default/wait?timeout=60").await;
            let told: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            if told["seq"].as_u64() == Some(seq as u64) && told["error"].is_null() {
                return Instant::now();
            }
            assert!(Instant::now() < end, "{text:.400}");
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whole mirrors in this process, and where each of them stands.
async fn mirrors(hub: &Hub, count: usize, at: &Path, stop: &CancellationToken) -> Vec<Arc<Desk>> {
    let http = reqwest::Client::new();
    let ledger = Arc::new(Ledger::open(&at.join("ledger.db")).unwrap());
    let mut desks = Vec::new();
    for n in 0..count {
        let (state, dir) = (at.join(format!("{n}.state")), at.join(format!("{n}")));
        fs::create_dir_all(&state).unwrap();
        fs::create_dir_all(&dir).unwrap();
        let store = Arc::new(Store::open(&state).unwrap());
        let desk = Arc::new(Desk::new(FeedName::default(), store, Bindings::default()));
        let setup = replica::Setup {
            desk: Arc::clone(&desk),
            state,
            root: Some(Arc::new(Root::open(&dir).unwrap())),
            keep: Keep::ALL,
            snapshot: None,
            shallow: false,
            verify_at: None,
            adopt: false,
            drift: replica::Drift::Report,
            checkout_at: None,
            demoted_at: None,
            paths: Vec::new(),
            upstreams: vec![format!("http://{}", hub.address).parse().unwrap()],
            upstream_feed: FeedName::default(),
            token: None,
            http: http.clone(),
            nats: None,
            tls: Arc::new(
                depsync::tls::Client::load(depsync::tls::Terms::default()).unwrap().config(),
            ),
            poll: Duration::from_secs(60),
            hooks: Hooks::open(None),
            ledger: Arc::clone(&ledger),
            node: format!("mirror-{n}").parse().unwrap(),
            label: format!("mirror-{n}").parse().unwrap(),
            region: Some(format!("region-{n}").parse().unwrap()),
            advertise: None,
            port: None,
        };
        tokio::spawn(replica::run(setup, stop.clone()));
        desks.push(desk);
    }
    desks
}

async fn with_mirrors(count: usize) {
    let hub = Hub::start(None);
    let http = reqwest::Client::new();
    let (place, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    hub.publish(0);
    let before = Instant::now();
    let desks = mirrors(&hub, count, place.path(), &stop).await;
    hub.all_verified(&http, 1).await;
    println!(
        "{count} mirrors: first version everywhere after {:.1} s",
        before.elapsed().as_secs_f64()
    );
    let (mut each, mut all) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        let waiting: JoinSet<Instant> = desks
            .iter()
            .map(|desk| {
                let mut state = desk.state.subscribe();
                async move {
                    let has = |head: &depsync::model::Head| head.seq > round as u64;
                    let wait = state.wait_for(|state| state.have.as_ref().is_some_and(has));
                    tokio::time::timeout(LIMIT, wait).await.unwrap().unwrap();
                    Instant::now()
                }
            })
            .collect();
        let began = hub.publish(round);
        let verified = hub.all_verified(&http, round + 1);
        let (done, known) = tokio::join!(waiting.join_all(), verified);
        each.extend(done.into_iter().map(|at| (at - began).as_secs_f64() * 1e3));
        all.push((known - began).as_secs_f64() * 1e3);
    }
    show(&format!("{count} mirrors: checked out"), each);
    show(&format!("{count} mirrors: the primary knows it of all"), all);
    let packs: Vec<String> = hub
        .get(&http, "/metrics")
        .await
        .lines()
        .filter(|line| line.starts_with("depsync_packs"))
        .map(ToOwned::to_owned)
        .collect();
    println!("{count} mirrors: primary's peak {:.0} MB; {}", hub.peak(), packs.join("; "));
    stop.cancel();
}

/// What a follower says of itself.
fn hello(n: usize, nats: bool) -> Hello {
    let name = format!("follower-{n}");
    Hello {
        region: Some(format!("far-{n}").parse().unwrap()),
        nats,
        ..Hello::of(name.parse().unwrap(), name.parse().unwrap())
    }
}

fn acknowledged(head: Head) -> FromFollower {
    FromFollower::Ack(Ack::new(head, Outcome::Verified, 0, None))
}

fn alive(have: Option<Head>) -> FromFollower {
    FromFollower::Heartbeat(Pulse { have, fetched: have, ..Pulse::default() })
}

type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

async fn say(socket: &mut Socket, frame: &FromFollower) -> bool {
    socket.send(Message::text(frame::encode(frame))).await.is_ok()
}

/// Says hello, and gives the answer.
async fn greet(address: &str, hello: Hello) -> (Socket, Welcome) {
    let uri = format!("ws://{address}/v1/feeds/default/follow").parse().unwrap();
    let request = ClientRequestBuilder::new(uri).with_sub_protocol(frame::SUBPROTOCOL);
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    assert!(say(&mut socket, &FromFollower::Hello(hello)).await);
    loop {
        if let Message::Text(text) = socket.next().await.unwrap().unwrap()
            && let Ok(FromUpstream::Welcome(welcome)) = frame::decode(&text)
        {
            return (socket, welcome);
        }
    }
}

/// A follower that acknowledges every head as soon as it hears of it.
async fn acknowledge(address: String, n: usize, ready: watch::Sender<usize>) {
    let (mut socket, welcome) = greet(&address, hello(n, false)).await;
    ready.send_modify(|count| *count += 1);
    let mut have = welcome.head;
    if let Some(head) = have {
        say(&mut socket, &acknowledged(head)).await;
    }
    while let Some(Ok(message)) = socket.next().await {
        let frame = match message {
            Message::Binary(bytes) => Announce::decode(bytes).map(|(announce, _)| {
                have = Some(announce.head);
                acknowledged(announce.head)
            }),
            Message::Text(_) => Ok(alive(have)),
            _ => continue,
        };
        if !say(&mut socket, &frame.unwrap()).await {
            return;
        }
    }
}

/// The same by way of a server, with a connection of its own to that.
async fn acknowledge_over_nats(
    (address, server): (String, String),
    n: usize,
    ready: watch::Sender<usize>,
) {
    let hello = hello(n, true);
    let (node, region) = (hello.node.clone(), hello.region.clone());
    let tls = depsync::tls::Client::load(depsync::tls::Terms::default()).unwrap().config();
    let nats = Nats::connect(&server, node.as_str(), tls).await.unwrap();
    nats.await_up(LIMIT).await.unwrap();
    let (_, welcome) = greet(&address, hello).await;
    let mut have = welcome.head;
    let attendant = Attendant {
        upstream: welcome.node,
        feed: FeedName::default(),
        node,
        region,
        session: welcome.session.expect("the primary announces over NATS"),
        standing: welcome.standing,
        head: have,
        trusted: welcome.trust.is_some(),
    };
    let mut attendance = nats.attend(attendant).await.unwrap();
    ready.send_modify(|count| *count += 1);
    if let Some(head) = have {
        attendance.say(acknowledged(head)).await.unwrap();
    }
    loop {
        let frame = match attendance.hear().await.unwrap() {
            Told::Announce(announce, _) => {
                have = Some(announce.head);
                acknowledged(announce.head)
            }
            Told::Heartbeat(_) => alive(have),
            Told::HelloAgain => panic!("it was forgotten"),
        };
        attendance.say(frame).await.unwrap();
    }
}

async fn with_followers(count: usize, server: Option<Server>) {
    let hub = Hub::start(server.as_ref());
    let http = reqwest::Client::new();
    hub.publish(0);
    hub.all_verified(&http, 1).await;
    let mut followers = JoinSet::new();
    let ready = watch::Sender::new(0);
    let mut seen = ready.subscribe();
    for n in 0..count {
        match &server {
            None => followers.spawn(acknowledge(hub.address.clone(), n, ready.clone())),
            Some(server) => {
                let there = (hub.address.clone(), server.url.clone());
                followers.spawn(acknowledge_over_nats(there, n, ready.clone()))
            }
        };
        // As many as a server takes in at the same time.
        let begun = n.saturating_sub(100);
        tokio::time::timeout(LIMIT, seen.wait_for(|ready| *ready >= begun)).await.unwrap().unwrap();
    }
    tokio::time::timeout(LIMIT, seen.wait_for(|ready| *ready == count)).await.unwrap().unwrap();
    hub.all_verified(&http, 1).await;
    let mut all = Vec::new();
    for round in 1..=ROUNDS {
        let began = hub.publish(round);
        let known = hub.all_verified(&http, round + 1).await;
        all.push((known - began).as_secs_f64() * 1e3);
    }
    let what = if server.is_some() { "over NATS" } else { "embedded" };
    show(&format!("{count} followers, {what}: the primary knows it of all"), all);
    println!("{count} followers, {what}: primary's peak {:.0} MB", hub.peak());
    followers.shutdown().await;
}

fn show(what: &str, mut ms: Vec<f64>) {
    ms.sort_by(f64::total_cmp);
    let at = |share: f64| ms[((ms.len() - 1) as f64 * share).round() as usize];
    println!("{what}: p50 {:.0} ms, p99 {:.0} ms, max {:.0} ms", at(0.5), at(0.99), at(1.0));
}

fn main() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _ = depsync::sys::allow_open_files();
    let counts: Vec<usize> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let (mirrors, followers) =
        (counts.first().copied().unwrap_or(200), counts.get(1).copied().unwrap_or(2_000));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if mirrors > 0 {
        runtime.block_on(with_mirrors(mirrors));
    }
    if followers > 0 {
        runtime.block_on(with_followers(followers, None));
        match Server::start() {
            Some(server) => runtime.block_on(with_followers(followers, Some(server))),
            None => println!("no nats-server here: the figures over NATS are left out"),
        }
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
}
