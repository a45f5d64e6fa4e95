//! The only place that assembles: opens, binds, spawns, drains.
//!
//! A start takes the state directory's lock, opens what each feed needs, binds the port, and only
//! then runs the stages: one origin or replica for each feed, and the edge. A stage that ends
//! early, by error or panic, ends the daemon with a non-zero exit code. A stop ends intake first,
//! lets running jobs finish, and does not wait for ever. Which stage a feed has is its `steward`'s.

mod after;
mod error;
mod expiry;
mod feed;
mod kept;
mod reload;
mod stages;
mod steward;
mod survey;
mod systemd;
mod tls;
mod trial;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};
use tokio_util::sync::CancellationToken;

use self::{
    after::After,
    feed::Feed,
    kept::Kept,
    stages::{Signals, Stages},
    steward::Steward,
    tls::{Tls, keep_certificates},
};
pub use self::{
    error::Error,
    survey::{Survey, floor, survey},
    trial::{Tried, try_nats, try_upstreams},
};
pub use crate::bus::Importing;
use crate::{
    bus::{self, Board, Desk, Nats, nats::announce::Announcer},
    config::{self, Checkout, FeedSettings, Primary, Settings},
    disk::CurrentRoot,
    ledger::{Audit, Decisions, Ledger, state_dir::StateDir},
    model::{FeedName, Keep, PassSecret, Subset},
    origin, replica, serve, sys, upkeep,
};

/// The largest upload, in bytes: beyond it a copy into the folder is the better way.
const MAX_UPLOAD: u64 = 16 << 30;

/// Who wants to know how far a feed's first import is; none: it is over.
pub type Watcher = Arc<dyn Fn(&FeedName, Option<Importing>) + Send + Sync>;

/// Runs a node until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// When it cannot start, or a stage ended early.
pub fn run(settings: Settings, watcher: Option<Watcher>) -> Result<(), Error> {
    let tls = Tls::open(&settings)?;
    if !settings.state_dir.join("format").exists() {
        feed::try_start(&settings)?;
    }
    let state = StateDir::open(&settings.state_dir)?;
    if let Err(error) = sys::allow_open_files() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    let runtime = Builder::new_multi_thread().enable_all().thread_name("edge").build()?;
    let result = runtime.block_on(async {
        let signals = Signals::new()?;
        Arc::new(Node::open(settings, state, tls)?).run(signals, watcher).await
    });
    abandon(runtime);
    result
}

/// Whatever still blocks a thread by now would hold up the exit for ever.
fn abandon(runtime: Runtime) {
    runtime.shutdown_timeout(Duration::from_secs(1));
}

/// A node whose parts are open and whose stages do not run yet.
struct Node {
    settings: Settings,
    state: StateDir,
    ledger: Arc<Ledger>,
    decisions: Arc<Decisions>,
    feeds: Vec<Feed>,
    tls: Tls,
}

impl Node {
    fn open(settings: Settings, state: StateDir, tls: Tls) -> Result<Self, Error> {
        let ledger = Arc::new(Ledger::open(&state.ledger())?);
        let decisions = Arc::new(Decisions::load(&state.decisions())?);
        let open = |feed: &FeedSettings| Feed::open(feed, &state, &decisions, settings.min_free);
        let feeds = settings.feeds.iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { settings, state, ledger, decisions, feeds, tls })
    }

    async fn run(self: Arc<Self>, signals: Signals, watcher: Option<Watcher>) -> Result<(), Error> {
        let listen = self.settings.listen;
        let refused = |source| Error::Listen { address: listen, source };
        let listener = TcpListener::bind(listen).await.map_err(refused)?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let mut stages = Stages::new(stop.clone());
        let nats = self.nats().await?;
        let board = self.board(nats.is_some())?;
        let edge = serve::Edge::new(self.edge(address, board.clone())?);
        for feed in &self.feeds {
            feed.tidy(&self.state)?;
        }
        for (at, feed) in self.feeds.iter().enumerate() {
            let steward = Steward::new(Arc::clone(&self), at, address, nats.clone())?;
            stages.spawn(steward.run(stop.clone()));
            self.after(feed).spawn(&mut stages)?;
            if let Some(watcher) = &watcher {
                let (desk, watcher) = (Arc::clone(&feed.desk), Arc::clone(watcher));
                stages.spawn(tell_of_imports(desk, watcher, stop.clone()));
            }
            stages.spawn(self.kept(feed, &stop).bindings());
        }
        self.spawn_upkeep(&mut stages)?;
        stages.spawn(keep_certificates(Arc::clone(&self), stop.clone()));
        let tls = self.tls.server.clone();
        let served = serve::run(listener, tls, Arc::clone(&edge), stop.clone());
        stages.spawn(async { served.await.map_err(Error::from) });
        if let Some(nats) = nats {
            stages.spawn(announce(self.announcer(nats, board.clone()), stop.clone()));
        }
        stages.spawn(reach(board, http_client(&self.tls.client.config())?, stop.clone()));
        stages.spawn(expiry::watch(Arc::clone(&self.decisions), stop.clone()));
        stages.spawn(reload::follow(signals.hangup, self.settings.clone(), edge, stop.clone()));
        self.state.write_address(&address.to_string())?;
        self.settings.unused.iter().for_each(|line| tracing::info!("{line}"));
        if self.settings.insecure {
            tracing::warn!("{}", serve::INSECURE);
        }
        tracing::info!(node = %self.settings.node, id = %self.state.node(), "listening on {}://{address}", self.scheme());
        stages.spawn(systemd::watch(stop.clone()));
        systemd::ready();
        stages.run_until(signals.stop).await
    }

    fn scheme(&self) -> &'static str {
        if self.tls.server.is_some() { "https" } else { "http" }
    }

    /// The server by way of which heads are announced; whether it is there now does not matter.
    async fn nats(&self) -> Result<Option<Nats>, Error> {
        let Some(url) = &self.settings.nats else { return Ok(None) };
        let (name, tls) = (self.settings.node.as_str(), self.tls.client.config());
        Ok(Some(Nats::connect(url.as_str(), name, tls).await?))
    }

    fn board(&self, over_nats: bool) -> Result<Board, Error> {
        let board = Board::new(self.feeds.iter().map(|feed| Arc::clone(&feed.desk)));
        if !over_nats {
            return Ok(board);
        }
        let run = getrandom::u32().map_err(|error| Error::System(error.into()))?;
        let decisions = Arc::clone(&self.decisions);
        Ok(board.over_nats(run, Arc::new(move || trust_version(&decisions))))
    }

    fn announcer(&self, nats: Nats, board: Board) -> Announcer {
        let decisions = Arc::clone(&self.decisions);
        let still_in = move |token: &str| serve::Access::is_good(&decisions, token);
        let still_in = Box::new(still_in);
        Announcer { nats, node: self.state.node().clone(), board, still_in }
    }

    fn edge(&self, address: SocketAddr, board: Board) -> Result<serve::Setup, Error> {
        let settings = &self.settings;
        let advertise = self.advertise(address);
        let own_host =
            reqwest::Url::parse(&advertise).ok().and_then(|url| Some(url.host_str()?.to_owned()));
        let access = serve::Access {
            insecure: settings.insecure,
            open_reading: settings.listen.ip().is_loopback(),
            decisions: Arc::clone(&self.decisions),
            admin_token: serve::Secret::new(self.state.admin_token()?),
            own_hosts: own_host.into_iter().collect(),
            uses: Arc::default(),
        };
        let intakes = self.feeds.iter().filter_map(Feed::intake).collect::<BTreeMap<_, _>>();
        Ok(serve::Setup {
            board,
            node: self.state.node().clone(),
            label: settings.node.clone(),
            advertise,
            access,
            proxies: settings.proxies.clone(),
            regions: settings.region_table.clone(),
            bandwidth: settings.bandwidth.clone(),
            limits: settings.limits,
            region: settings.region.clone(),
            freshness: settings.freshness,
            stale: settings.stale,
            intakes,
            max_upload: MAX_UPLOAD,
            ledger: Arc::clone(&self.ledger),
            audit: Audit::new(self.state.audit(), Arc::clone(&self.ledger)),
            pass_secret: self.pass_secret()?,
        })
    }

    /// Where nobody is asked for a token, nobody needs a pass.
    fn pass_secret(&self) -> Result<Option<PassSecret>, Error> {
        let is_open = self.settings.insecure || self.settings.listen.ip().is_loopback();
        Ok((!is_open).then(|| self.state.pass_secret()).transpose()?)
    }

    /// As configured; else where it listens, by the host's name if that is everywhere.
    fn advertise(&self, address: SocketAddr) -> String {
        match &self.settings.advertise {
            Some(url) => url.as_str().to_owned(),
            None if address.ip().is_unspecified() => {
                format!("{}://{}:{}", self.scheme(), config::host_name(), address.port())
            }
            None => format!("{}://{address}", self.scheme()),
        }
    }

    /// What the origin of a feed needs.
    fn origin(&self, feed: &Feed, primary: &Primary) -> origin::Setup {
        let name = feed.settings.name.clone();
        let root = Arc::clone(feed.root.as_ref().expect("a primary has a directory"));
        origin::Setup {
            feed: name.clone(),
            root,
            store: Arc::clone(&feed.desk.store),
            ledger: Arc::clone(&self.ledger),
            decisions: Arc::clone(&self.decisions),
            desk: Arc::clone(&feed.desk),
            node: self.state.node().clone(),
            label: self.settings.node.clone(),
            state: self.state.feed(&name),
            hooks: feed.hooks(),
            options: origin::Options {
                large_file: primary.large_file,
                keep: primary.metadata,
                profile: primary.profile,
                events: primary.events,
                quiet: primary.quiet,
                poll: self.settings.poll,
                guard: rules(primary.guard),
            },
        }
    }

    /// What the mirror of a feed needs.
    fn replica(
        &self,
        feed: &Feed,
        upstreams: Vec<reqwest::Url>,
        (address, nats): (SocketAddr, Option<Nats>),
    ) -> Result<replica::Setup, Error> {
        let name = &feed.settings.name;
        let mirror = &feed.settings.mirror;
        let tls = self.tls.client_of(name).config();
        Ok(replica::Setup {
            desk: Arc::clone(&feed.desk),
            state: self.state.feed(name),
            root: feed.root.as_deref().map(CurrentRoot::get),
            keep: Keep::ALL,
            snapshot: feed.snapshot(&self.state)?,
            drift: if mirror.repair { replica::Drift::Repair } else { replica::Drift::Report },
            checkout_at: mirror.checkout_at.clone(),
            shallow: mirror.shallow,
            verify_at: self.settings.maintenance.clone(),
            // One that owned the feed and was demoted: what it has not published goes aside.
            adopt: feed.settings.role == config::Role::Primary
                || matches!(mirror.checkout, Checkout::InPlace { adopt: true, .. }),
            demoted_at: self.decisions.feed(name).demoted_at,
            paths: mirror.paths.clone(),
            upstreams,
            upstream_feed: mirror.upstream_feed.clone(),
            token: mirror.token_file.clone().map(replica::TokenFile::new),
            http: http_client(&tls)?,
            nats,
            tls: Arc::new(tls),
            poll: self.settings.poll,
            hooks: feed.hooks(),
            ledger: Arc::clone(&self.ledger),
            node: self.state.node().clone(),
            label: self.settings.node.clone(),
            region: self.settings.region.clone(),
            advertise: self.own_url(address),
            port: Some(address.port()),
        })
    }

    fn kept(&self, feed: &Feed, stop: &CancellationToken) -> Kept {
        let (desk, decisions) = (Arc::clone(&feed.desk), Arc::clone(&self.decisions));
        Kept { desk, decisions, stop: stop.clone() }
    }

    /// What runs the hooks that nothing waits for.
    fn after(&self, feed: &Feed) -> After {
        After {
            hooks: feed.hooks(),
            desk: Arc::clone(&feed.desk),
            ledger: Arc::clone(&self.ledger),
            dir: feed.settings.place().map(std::path::Path::to_owned),
            state: self.state.feed(&feed.settings.name),
            label: self.settings.node.clone(),
            region: self.settings.region.clone(),
        }
    }

    fn spawn_upkeep(&self, stages: &mut Stages) -> Result<(), Error> {
        let feed = |feed: &Feed| upkeep::Feed {
            desk: Arc::clone(&feed.desk),
            keep: feed.settings.keep,
            shallow: feed.settings.mirror.shallow,
            part: Subset::new(&feed.settings.mirror.paths)
                .expect("the patterns were checked with the configuration"),
            root: feed.root.clone(),
            metadata: feed.settings.primary.as_ref().map_or(Keep::ALL, |it| it.metadata),
            state: self.state.feed(&feed.settings.name),
        };
        let schedule = self.settings.maintenance.clone();
        let setup = upkeep::Setup {
            feeds: self.feeds.iter().map(feed).collect(),
            decisions: Arc::clone(&self.decisions),
            due: Box::new(move |at| schedule.as_ref().and_then(|cron| cron.next_after(at))),
        };
        let upkeep = upkeep::Upkeep::new(setup);
        for feed in &self.feeds {
            let ringing = upkeep.bell().ring_for(Arc::clone(&feed.desk), stages.stop.clone());
            stages.spawn(async move {
                ringing.await;
                Ok(())
            });
        }
        let stop = upkeep.stop();
        let run = move || {
            upkeep.run();
            Ok(())
        };
        stages.spawn_thread("upkeep".to_owned(), run, move || stop.stop())
    }

    /// Where others reach a region: as configured, else where it listens if that says it; otherwise
    /// the upstream knows from which address we come.
    fn own_url(&self, address: SocketAddr) -> Option<String> {
        match &self.settings.advertise {
            Some(url) => Some(url.as_str().to_owned()),
            // A certificate is for a name, and the upstream sees only an address.
            None if self.tls.server.is_some() => {
                Some(format!("https://{}:{}", config::host_name(), address.port()))
            }
            None => (!address.ip().is_unspecified()).then(|| format!("http://{address}")),
        }
    }
}

/// No guard in the settings: the operator switched it off.
fn rules(guard: Option<config::Guard>) -> origin::Rules {
    match guard {
        None => origin::Rules { off: true, ..origin::Rules::default() },
        Some(guard) => origin::Rules {
            max_delete_percent: u64::from(guard.max_delete_percent),
            min_delete_files: usize::try_from(guard.min_delete_files).unwrap_or(usize::MAX),
            window: guard.window,
            off: false,
        },
    }
}

/// With what a feed's upstreams are asked for it.
fn contact(
    mirror: &config::Mirror,
    tls: &Arc<crate::tls::Client>,
) -> Result<replica::Contact, Error> {
    let tls = tls.config();
    Ok(replica::Contact {
        feed: mirror.upstream_feed.clone(),
        token: mirror.token_file.clone().map(replica::TokenFile::new),
        http: http_client(&tls)?,
        tls: Arc::new(tls),
    })
}

/// No total time-out: whoever uses it watches progress.
fn http_client(tls: &rustls::ClientConfig) -> Result<reqwest::Client, Error> {
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls.clone())
        .connect_timeout(Duration::from_secs(10))
        .redirect(reqwest::redirect::Policy::none())
        .tcp_nodelay(true)
        .user_agent(concat!("depsync/", env!("CARGO_PKG_VERSION")));
    Ok(client.build()?)
}

/// Tells how far a feed's first import is, as often as its state is posted.
async fn tell_of_imports(
    desk: Arc<Desk>,
    watcher: Watcher,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut states = desk.state.subscribe();
    let mut told = None;
    loop {
        let importing = states.borrow_and_update().importing;
        if importing != told {
            watcher(&desk.feed, importing);
            told = importing;
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = states.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// Tries where regions say that they are reached.
async fn reach(board: Board, http: reqwest::Client, stop: CancellationToken) -> Result<(), Error> {
    bus::reach::watch(board, http, stop).await;
    Ok(())
}

/// Another number whenever a token is made or revoked, and each day, when the regions' keys change.
fn trust_version(decisions: &Decisions) -> u64 {
    let mut version = DefaultHasher::new();
    let day = sys::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() / 86_400);
    day.hash(&mut version);
    for token in &decisions.get().tokens {
        (&token.id, token.expires).hash(&mut version);
    }
    version.finish()
}

/// Announces heads over NATS.
async fn announce(announcer: Announcer, stop: CancellationToken) -> Result<(), Error> {
    announcer.run(stop).await;
    Ok(())
}
