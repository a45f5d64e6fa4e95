//! The only place that assembles: opens, binds, spawns, drains.
//!
//! A start takes the state directory's lock, opens what each feed needs, binds the port, and only
//! then runs the stages: one origin or replica for each feed, and the edge. A stage that ends
//! early, by error or panic, ends the daemon with a non-zero exit code. A stop ends intake first,
//! lets running jobs finish, and does not wait for ever. Which stage a feed has is its `steward`'s.

mod after;
mod expiry;
mod orders;
mod reload;
mod steward;

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, UNIX_EPOCH},
};

use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use self::{after::After, steward::Steward};
pub use crate::bus::Importing;
use crate::{
    bus::{
        self, Board, Desk, Nats,
        nats::{self, announce::Announcer},
    },
    config::{self, Checkout, FeedSettings, Primary, Settings},
    disk::{self, Aside, CurrentRoot, Releases, Root},
    hooks::Hooks,
    ledger::{
        self, Audit, Decisions, Ledger,
        state_dir::{self, StateDir},
    },
    model::{FeedName, Head, Keep, PassSecret, RelPath, Subset},
    origin, replica, serve,
    signing::{self, Signer, Trusted},
    store::{self, Store},
    sys, tls, upkeep,
};

/// How often a certificate on disk is looked at.
const CERTIFICATE: Duration = Duration::from_secs(5);
/// How long a NATS server may take to answer whoever only tries it.
const TRY: Duration = Duration::from_secs(5);
/// How long a stop waits for the stages.
const DRAIN: Duration = Duration::from_secs(20);

/// The largest upload, in bytes: beyond it a copy into the folder is the better way.
const MAX_UPLOAD: u64 = 16 << 30;

/// Exit code for a configuration, directory, state or port that cannot be used (`EX_CONFIG`).
const UNUSABLE: u8 = 78;

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory.
    #[error(transparent)]
    State(#[from] state_dir::Error),
    /// The ledger or the decisions file.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// A feed's repository.
    #[error("feed \"{feed}\": {source}")]
    Store {
        /// The feed.
        feed: FeedName,
        /// What is wrong with it.
        source: store::Error,
    },
    /// A deployment directory.
    #[error("feed \"{feed}\": {source}")]
    Directory {
        /// The feed.
        feed: FeedName,
        /// What is wrong with it.
        source: disk::Error,
    },
    /// A key.
    #[error("feed {feed}: {source}")]
    Key {
        /// The feed.
        feed: FeedName,
        /// What is wrong with it.
        source: signing::Error,
    },
    /// Certificates.
    #[error("TLS: {0}")]
    Tls(#[from] tls::Error),
    /// The port.
    #[error(
        "cannot listen on {address}: {source}; choose another with --listen, or stop what listens there"
    )]
    Listen {
        /// As asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address of the NATS server.
    #[error(transparent)]
    Nats(#[from] nats::Error),
    /// Threads or signals cannot be had.
    #[error("the system refused what the daemon needs: {0}")]
    System(#[from] std::io::Error),
    /// Requests to other nodes cannot be made.
    #[error("the HTTP client cannot be set up: {0}")]
    Client(#[from] reqwest::Error),
    /// The upstream's address.
    #[error("feed \"{feed}\": the upstream {url} is not a URL")]
    Upstream {
        /// The feed.
        feed: FeedName,
        /// As configured.
        url: String,
    },
    /// A primary's stage.
    #[error("feed \"{feed}\": {source}")]
    Origin {
        /// The feed.
        feed: FeedName,
        /// Why it ended.
        source: origin::Error,
    },
    /// A mirror's stage.
    #[error("feed \"{feed}\": {source}")]
    Replica {
        /// The feed.
        feed: FeedName,
        /// Why it ended.
        source: replica::Error,
    },
    /// The edge.
    #[error(transparent)]
    Serve(#[from] serve::Error),
    /// A stage panicked or ended without a reason.
    #[error("{0} ended unexpectedly: this is a fault of the program; its log says more")]
    Ended(String),
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::State(_)
            | Error::Ledger(_)
            | Error::Store { .. }
            | Error::Directory { .. }
            | Error::Upstream { .. }
            | Error::Tls(_)
            | Error::Nats(_)
            | Error::Key { .. }
            | Error::Listen { .. } => UNUSABLE,
            Error::Replica { source, .. } => source.exit_code(),
            _ => 1,
        }
    }
}

/// Who wants to know how far a feed's first import is; none: it is over.
pub type Watcher = Arc<dyn Fn(&FeedName, Option<Importing>) + Send + Sync>;

/// Runs a node until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// When it cannot start, or a stage ended early.
pub fn run(settings: Settings, watcher: Option<Watcher>) -> Result<(), Error> {
    let state = StateDir::open(&settings.state_dir)?;
    if let Err(error) = sys::allow_open_files() {
        tracing::warn!(%error, "the limit on open files stays as it is");
    }
    // A second call in one process finds the provider there.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Builder::new_multi_thread().enable_all().thread_name("edge").build()?;
    let result = runtime.block_on(async {
        let signals = Signals::new()?;
        Arc::new(Node::open(settings, state)?).run(signals, watcher).await
    });
    abandon(runtime);
    result
}

/// An upstream of a feed, and what came of trying it: the head there, or what is in the way.
pub type Tried = (FeedName, String, Result<Option<Head>, String>);

/// Tries every upstream that a configuration names, as the daemon would connect to it.
///
/// # Errors
/// When requests cannot be made at all.
pub fn try_upstreams(settings: &Settings) -> Result<Vec<Tried>, Error> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let tls = Tls::open(&settings.tls)?;
    let mut tried = Vec::new();
    for feed in &settings.feeds {
        let mirror = &feed.mirror;
        for url in &mirror.upstreams {
            let wrong = |_| Error::Upstream { feed: feed.name.clone(), url: url.to_string() };
            let base = reqwest::Url::parse(url.as_str()).map_err(wrong)?;
            let contact = contact(mirror, &tls.client)?;
            let came =
                runtime.block_on(contact.try_to_follow(&base)).map_err(|error| error.to_string());
            tried.push((feed.name.clone(), url.to_string(), came));
        }
    }
    Ok(tried)
}

/// Why the NATS server that a configuration names cannot be reached; none: it can, or none is named.
///
/// # Errors
/// When connections cannot be made at all.
pub fn try_nats(settings: &Settings) -> Result<Option<String>, Error> {
    let Some(url) = &settings.nats else { return Ok(None) };
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let tls = Tls::open(&settings.tls)?;
    let tried = runtime.block_on(async {
        let nats = Nats::connect(url.as_str(), "check", (*tls.client).clone()).await?;
        nats.await_up(TRY).await
    });
    Ok(tried.err().map(|error| error.to_string()))
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

/// How this node speaks TLS.
struct Tls {
    /// To whoever connects; none: not at all.
    server: Option<Arc<tls::Server>>,
    /// To its upstreams.
    client: Arc<rustls::ClientConfig>,
}

/// One feed, opened.
struct Feed {
    settings: FeedSettings,
    desk: Arc<Desk>,
    root: Option<Arc<CurrentRoot>>,
}

impl Node {
    fn open(settings: Settings, state: StateDir) -> Result<Self, Error> {
        let ledger = Arc::new(Ledger::open(&state.ledger())?);
        let decisions = Arc::new(Decisions::load(&state.decisions())?);
        let open = |feed: &FeedSettings| Feed::open(feed, &state, &decisions, settings.min_free);
        let feeds = settings.feeds.iter().map(open).collect::<Result<_, _>>()?;
        let tls = Tls::open(&settings.tls)?;
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
            stages.spawn(keep_bindings(
                Arc::clone(&feed.desk),
                Arc::clone(&self.decisions),
                stop.clone(),
            ));
        }
        self.spawn_upkeep(&mut stages)?;
        if let Some(tls) = &self.tls.server {
            stages.spawn(keep_certificate(Arc::clone(tls), stop.clone()));
        }
        let tls = self.tls.server.clone();
        let served = serve::run(listener, tls, Arc::clone(&edge), stop.clone());
        stages.spawn(async { served.await.map_err(Error::from) });
        if let Some(nats) = nats {
            stages.spawn(announce(self.announcer(nats, board.clone()), stop.clone()));
        }
        stages.spawn(reach(board, http_client(&self.tls.client)?, stop.clone()));
        stages.spawn(expiry::watch(Arc::clone(&self.decisions), stop.clone()));
        stages.spawn(reload::follow(signals.hangup, self.settings.clone(), edge, stop.clone()));
        self.state.write_address(&address.to_string())?;
        self.settings.unused.iter().for_each(|line| tracing::info!("{line}"));
        tracing::info!(node = %self.settings.node, id = %self.state.node(), "listening on {}://{address}", self.scheme());
        stages.run_until(signals.stop).await
    }

    fn scheme(&self) -> &'static str {
        if self.tls.server.is_some() { "https" } else { "http" }
    }

    /// The server by way of which heads are announced; whether it is there now does not matter.
    async fn nats(&self) -> Result<Option<Nats>, Error> {
        let Some(url) = &self.settings.nats else { return Ok(None) };
        let (name, tls) = (self.settings.node.as_str(), (*self.tls.client).clone());
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
            http: http_client(&self.tls.client)?,
            nats,
            tls: Arc::clone(&self.tls.client),
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

fn keys(settings: &FeedSettings) -> Result<store::Keys, signing::Error> {
    let signer = settings.sign_with.as_deref().map(Signer::open).transpose()?;
    let trusted = settings.trusted_keys.as_deref().map(Trusted::open).transpose()?;
    Ok(store::Keys { signer, trusted })
}

impl Feed {
    fn open(
        settings: &FeedSettings,
        state: &StateDir,
        decisions: &Decisions,
        min_free: Option<u64>,
    ) -> Result<Self, Error> {
        let feed = settings.name.clone();
        let role = steward::role(settings, &decisions.feed(&feed));
        let root = settings.dir_as(role).map(open_root).transpose();
        let root = root.map_err(|source| Error::Directory { feed: feed.clone(), source })?;
        let unusable = |source| Error::Key { feed: feed.clone(), source };
        let keys = keys(settings).map_err(unusable)?;
        let at = state.feed(&feed);
        let store = match role {
            config::Role::Primary => Store::open(&at),
            config::Role::Region => Store::open_mirror(&at),
        };
        let store = store.map_err(|source| Error::Store { feed: feed.clone(), source })?;
        let store = Arc::new(store.with_keys(keys).with_floor(min_free));
        let decided = decisions.feed(&feed);
        let (orders, paused) = (orders::kept(&decided, &store), steward::paused(&decided));
        let desk = Arc::new(Desk::new(feed, store, decided.bindings));
        desk.orders.send_replace(orders);
        desk.paused.send_replace(paused);
        Ok(Self { settings: settings.clone(), desk, root })
    }

    /// Removes what killed uploads and checkouts left in the directory, and what has lain aside for
    /// long enough; says what it drops.
    fn tidy(&self, state: &StateDir) -> Result<(), Error> {
        let Some(root) = &self.root else { return Ok(()) };
        let feed = &self.settings.name;
        let failed = |source| Error::Directory { feed: feed.clone(), source };
        let mut aside = Aside::new(&state.feed(feed).join("aside"));
        let swept = root.get().sweep(&mut aside).map_err(failed)?;
        if swept.removed > 0 || !swept.set_aside.is_empty() {
            let (removed, set_aside) = (swept.removed, swept.set_aside.len());
            tracing::info!(%feed, removed, set_aside, "tidied up after a run that was cut off");
        }
        let keep = Duration::from_secs(86_400 * disk::KEEP_DAYS);
        for dropped in aside.trim(sys::now(), keep, disk::MAX_BYTES).map_err(failed)? {
            let (files, bytes) = (dropped.notes.len(), dropped.bytes);
            tracing::info!(%feed, files, bytes, "dropped what had lain aside for long");
        }
        Ok(())
    }

    /// The releases of a feed that is checked out so.
    fn snapshot(&self, state: &StateDir) -> Result<Option<replica::Snapshot>, Error> {
        let Checkout::Snapshot { link, releases, hard_link } = &self.settings.mirror.checkout
        else {
            return Ok(None);
        };
        let feed = self.settings.name.clone();
        let opened = Releases::open(&state.feed(&feed).join("releases"), link);
        let opened = opened.map_err(|source| Error::Directory { feed, source })?;
        let (link, keep) = (link.clone(), *releases);
        Ok(Some(replica::Snapshot { releases: opened, link, keep, hard_link: *hard_link }))
    }

    fn hooks(&self) -> Hooks {
        Hooks::open(self.settings.hooks.as_deref())
    }

    /// Where uploads go, while the feed is owned here.
    fn intake(&self) -> Option<(FeedName, serve::Intake)> {
        let profile = self.settings.primary.as_ref()?.profile;
        let root = Arc::clone(self.root.as_ref()?);
        let watched = Arc::clone(&root);
        let left_out =
            Box::new(move |path: &RelPath| origin::left_out(&watched.get(), profile, path));
        Some((self.settings.name.clone(), serve::Intake { root, left_out }))
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

fn open_root(dir: &std::path::Path) -> Result<Arc<CurrentRoot>, disk::Error> {
    let root = Root::open(dir)?;
    root.lock()?;
    Ok(Arc::new(CurrentRoot::new(root)))
}

/// With what a feed's upstreams are asked for it.
fn contact(
    mirror: &config::Mirror,
    tls: &Arc<rustls::ClientConfig>,
) -> Result<replica::Contact, Error> {
    Ok(replica::Contact {
        feed: mirror.upstream_feed.clone(),
        token: mirror.token_file.clone().map(replica::TokenFile::new),
        http: http_client(tls)?,
        tls: Arc::clone(tls),
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

impl Tls {
    fn open(settings: &config::Tls) -> Result<Self, Error> {
        let identity = settings.pair.clone().map(|(cert, key)| tls::Identity { cert, key });
        let client = tls::client(identity.as_ref(), settings.ca.as_deref())?;
        let server = identity.map(|identity| tls::Server::load(identity, settings.ca.clone()));
        Ok(Self { server: server.transpose()?.map(Arc::new), client: Arc::new(client) })
    }
}

/// Takes up certificates that were exchanged on disk; transfers under way go on with the old ones.
async fn keep_certificate(server: Arc<tls::Server>, stop: CancellationToken) -> Result<(), Error> {
    while stop.run_until_cancelled(tokio::time::sleep(CERTIFICATE)).await.is_some() {
        let server = Arc::clone(&server);
        #[expect(clippy::disallowed_methods, reason = "three small files, now and then")]
        let read = tokio::task::spawn_blocking(move || server.refresh()).await;
        match read.map_err(|panic| Error::Ended(panic.to_string()))? {
            Ok(true) => tracing::info!("another certificate is in force"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the certificate on disk cannot be used; the old one stays in force");
            }
        }
    }
    Ok(())
}

/// Which node serves which region outlives a restart.
async fn keep_bindings(
    desk: Arc<Desk>,
    decisions: Arc<Decisions>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut changes = desk.bindings.subscribe();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
        }
        let bindings = changes.borrow_and_update().clone();
        let (decisions, feed) = (Arc::clone(&decisions), desk.feed.clone());
        let kept = move || decisions.update_feed(&feed, |kept| kept.bindings = bindings);
        #[expect(
            clippy::disallowed_methods,
            reason = "a file of kilobytes, when a region is bound"
        )]
        let kept = tokio::task::spawn_blocking(kept).await;
        kept.map_err(|panic| Error::Ended(panic.to_string()))??;
    }
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

/// The signals that the daemon minds.
struct Signals {
    stop: Stop,
    hangup: Signal,
}

/// SIGTERM and SIGINT.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Error> {
        let stop = Stop {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        };
        Ok(Self { stop, hangup: signal(SignalKind::hangup())? })
    }
}

impl Stop {
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What runs. Each task ends only after `stop`, or the daemon ends with it.
struct Stages {
    tasks: JoinSet<Result<(), Error>>,
    stop: CancellationToken,
}

impl Stages {
    fn new(stop: CancellationToken) -> Self {
        Self { tasks: JoinSet::new(), stop }
    }

    fn spawn(&mut self, stage: impl Future<Output = Result<(), Error>> + Send + 'static) {
        self.tasks.spawn(stage);
    }

    /// A stage of blocking code, on a thread of its own; `signal` asks it to end.
    fn spawn_thread(
        &mut self,
        name: String,
        stage: impl FnOnce() -> Result<(), Error> + Send + 'static,
        signal: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        self.spawn(on_thread(name, stage, signal, self.stop.clone())?);
        Ok(())
    }

    /// Runs until a stop is asked for or a stage ends; then stops the others.
    async fn run_until(mut self, mut stop: Stop) -> Result<(), Error> {
        let first = tokio::select! {
            () = stop.asked() => Ok(()),
            ended = self.tasks.join_next() => early(ended),
        };
        tracing::info!("stopping");
        self.stop.cancel();
        let drained = tokio::time::timeout(DRAIN, self.drain());
        match (first, drained.await) {
            (Err(error), _) => Err(error),
            (Ok(()), Ok(result)) => result,
            (Ok(()), Err(_)) => {
                Err(Error::Ended(format!("a stage that did not stop within {DRAIN:?}")))
            }
        }
    }

    async fn drain(&mut self) -> Result<(), Error> {
        let mut first = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            let ended = ended.unwrap_or_else(|panic| Err(Error::Ended(panic.to_string())));
            first = first.and(ended);
        }
        first
    }
}

/// A stage of blocking code, on a thread of its own; `signal` asks it to end.
fn on_thread(
    name: String,
    stage: impl FnOnce() -> Result<(), Error> + Send + 'static,
    signal: impl FnOnce() + Send + 'static,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), Error>>, Error> {
    let (done, mut ended) = oneshot::channel();
    thread::Builder::new().name(name.clone()).spawn(move || done.send(stage()))?;
    Ok(async move {
        let result = tokio::select! {
            result = &mut ended => result,
            () = stop.cancelled() => {
                signal();
                ended.await
            }
        };
        // A panic drops the sender.
        result.unwrap_or_else(|_| Err(Error::Ended(format!("the thread {name}"))))
    })
}

/// A stage ended before it was told to: always an error.
fn early(ended: Option<Result<Result<(), Error>, tokio::task::JoinError>>) -> Result<(), Error> {
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(panic)) => Err(Error::Ended(panic.to_string())),
        Some(Ok(Ok(()))) | None => Err(Error::Ended("a stage".to_owned())),
    }
}
