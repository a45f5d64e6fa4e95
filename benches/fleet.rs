//! One small change in a large fleet: how long until every region has it checked out and acknowledged.
//!
//! A real primary; 200 whole mirrors in this process, then 2,000 followers that only acknowledge.
//! Prints milliseconds from the rename that brings the file to each mirror's verified checkout, and
//! to the moment at which the primary knows it of all. `cargo bench --bench fleet [MIRRORS FOLLOWERS]`

#![expect(
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
        Desk,
        frame::{self, Ack, Announce, FromFollower, FromUpstream, Hello, Outcome},
    },
    disk::{Keep, Root},
    hooks::Hooks,
    ledger::Ledger,
    model::{Bindings, FeedName},
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

impl Hub {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("apps")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_depsync"))
            .arg("primary")
            .arg(dir.path().join("apps"))
            .arg("--state")
            .arg(dir.path().join("state"))
            .args(["--listen", "127.0.0.1:0"])
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
            adopt: false,
            drift: replica::Drift::Report,
            checkout_at: None,
            demoted_at: None,
            paths: Vec::new(),
            upstreams: vec![format!("http://{}", hub.address).parse().unwrap()],
            upstream_feed: FeedName::default(),
            token: None,
            http: http.clone(),
            tls: Arc::new(depsync::tls::client(None, None).unwrap()),
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
    let hub = Hub::start();
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

/// A follower that acknowledges every head as soon as it hears of it.
async fn acknowledge(address: String, n: usize, ready: watch::Sender<usize>) {
    let uri = format!("ws://{address}/v1/feeds/default/follow").parse().unwrap();
    let request = ClientRequestBuilder::new(uri).with_sub_protocol(frame::SUBPROTOCOL);
    let stream = TcpStream::connect(&address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();
    let name = format!("follower-{n}");
    let hello = Hello {
        region: Some(format!("far-{n}").parse().unwrap()),
        ..Hello::of(name.parse().unwrap(), name.parse().unwrap())
    };
    let say = |frame: &FromFollower| Message::text(frame::encode(frame));
    socket.send(say(&FromFollower::Hello(hello))).await.unwrap();
    let mut have = None;
    while let Some(Ok(message)) = socket.next().await {
        let head = match message {
            Message::Binary(bytes) => {
                Announce::decode(bytes).ok().map(|(announce, _)| announce.head)
            }
            Message::Text(text) => match frame::decode::<FromUpstream>(&text) {
                Ok(FromUpstream::Welcome(welcome)) => {
                    ready.send_modify(|count| *count += 1);
                    welcome.head
                }
                Ok(FromUpstream::Heartbeat(beat)) => {
                    let pulse = frame::Pulse { have, fetched: have, ..frame::Pulse::default() };
                    if socket.send(say(&FromFollower::Heartbeat(pulse))).await.is_err() {
                        return;
                    }
                    beat.head.filter(|head| Some(*head) != have)
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(head) = head {
            have = Some(head);
            let ack = Ack::new(head, Outcome::Verified, 0, None);
            if socket.send(say(&FromFollower::Ack(ack))).await.is_err() {
                return;
            }
        }
    }
}

async fn with_followers(count: usize) {
    let hub = Hub::start();
    let http = reqwest::Client::new();
    hub.publish(0);
    hub.all_verified(&http, 1).await;
    let mut followers = JoinSet::new();
    let ready = watch::Sender::new(0);
    for n in 0..count {
        followers.spawn(acknowledge(hub.address.clone(), n, ready.clone()));
    }
    let mut seen = ready.subscribe();
    tokio::time::timeout(LIMIT, seen.wait_for(|ready| *ready == count)).await.unwrap().unwrap();
    hub.all_verified(&http, 1).await;
    let mut all = Vec::new();
    for round in 1..=ROUNDS {
        let began = hub.publish(round);
        let known = hub.all_verified(&http, round + 1).await;
        all.push((known - began).as_secs_f64() * 1e3);
    }
    show(&format!("{count} followers: the primary knows it of all"), all);
    println!("{count} followers: primary's peak {:.0} MB", hub.peak());
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
        runtime.block_on(with_followers(followers));
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
}
