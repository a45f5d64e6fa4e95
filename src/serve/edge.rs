//! What the edge knows: made once by whoever assembles the node, shared by all handlers.
//!
//! The board says what the stages know; beside it stand the region table and the limits, which can be
//! replaced while the node runs, and what the edge keeps of each feed: caches, bounded by bytes.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use http::{HeaderMap, Uri, request::Parts};
use ipnet::IpNet;
use tokio::sync::{Semaphore, watch};

use super::{
    access::Access,
    archive::MAX_ARCHIVES,
    blocking::Blocking,
    cache::Cache,
    connection::Peer,
    diagnosis::Ailing,
    document::{self, Cached, Library},
    error::Fault,
    events::MAX_LISTENERS,
    failures::Failures,
    gate::Gate,
    git::MAX_GITS,
    metrics::Metrics,
    pace::Pace,
    redirect,
    stream::Share,
    throttle::Throttle,
};
use crate::{
    bus::{Board, Desk},
    disk::CurrentRoot,
    ledger::{Audit, Ledger},
    model::{
        Bandwidth, FeedName, Freshness, Head, Label, Limits, NodeId, Oid, PassSecret, RegionName,
        RegionTable, RelPath, Stale,
    },
    store::{self, Store},
    sys,
};

/// Enough to keep a fast disk busy.
const MAX_THREADS: usize = 64;
/// Bytes of commits that are not known, for each feed.
const UNKNOWN: usize = 1 << 20;
/// Making a pack takes a core.
const MAX_PACKING: usize = 8;

/// Everything that the edge is made of.
pub struct Setup {
    /// What the stages know.
    pub board: Board,
    /// This node.
    pub node: NodeId,
    /// Its name for people.
    pub label: Label,
    /// The URL under which others reach it, without a slash at the end.
    pub advertise: String,
    /// Who may do what.
    pub access: Access,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub proxies: Vec<IpNet>,
    /// Which clients belong to which region.
    pub regions: RegionTable,
    /// Limits on what is sent.
    pub bandwidth: Bandwidth,
    /// Limits on what one client may ask for.
    pub limits: Limits,
    /// The region that this node serves.
    pub region: Option<RegionName>,
    /// At a region: how it knows that its newest version is the newest.
    pub freshness: Freshness,
    /// At a region: what it does while its upstream is away.
    pub stale: Stale,
    /// Where uploads go, for feeds that this node owns.
    pub intakes: BTreeMap<FeedName, Intake>,
    /// The largest upload in bytes.
    pub max_upload: u64,
    /// The history of runs.
    pub ledger: Arc<Ledger>,
    /// The record of who did what.
    pub audit: Audit,
    /// From what the signatures of redirects are made; none where nobody is asked for a token.
    pub pass_secret: Option<PassSecret>,
}

/// Where a feed's uploads go.
pub struct Intake {
    /// The watched folder.
    pub root: Arc<CurrentRoot>,
    /// Why a file at a path would never enter the feed; none when it would.
    pub left_out: LeftOut,
}

/// Says why a file at a path never enters the feed.
pub type LeftOut = Box<dyn Fn(&RelPath) -> Option<&'static str> + Send + Sync>;

/// The edge of one node.
pub struct Edge {
    pub(super) node: NodeId,
    pub(super) label: Label,
    pub(super) advertise: String,
    pub(super) access: Access,
    pub(super) proxies: Vec<IpNet>,
    pub(super) throttle: Throttle,
    pub(super) gate: Arc<Gate>,
    /// Of the memory that large downloads take.
    pub(super) share: Share,
    pub(super) bandwidth: watch::Sender<Arc<Bandwidth>>,
    pub(super) region: Option<RegionName>,
    pub(super) freshness: Freshness,
    pub(super) stale: Stale,
    pub(super) blocking: Blocking,
    /// For packs: who waits for one that is being made holds a thread.
    pub(super) packing: Blocking,
    pub(super) metrics: Metrics,
    pub(super) library: Arc<Library>,
    pub(super) archives: Arc<Semaphore>,
    pub(super) gits: Arc<Semaphore>,
    pub(super) max_upload: u64,
    pub(super) ledger: Arc<Ledger>,
    pub(super) audit: Arc<Audit>,
    pub(super) failures: Failures,
    pub(super) ailing: Ailing,
    /// Places for those who follow `/v1/events`.
    pub(super) listeners: Arc<Semaphore>,
    pub(super) pace: Pace,
    pub(super) pass_secret: Option<PassSecret>,
    /// All desks, and who was turned away.
    pub(super) board: Board,
    regions: RwLock<Arc<RegionTable>>,
    feeds: BTreeMap<String, Arc<Feed>>,
}

/// What the edge keeps of one feed.
pub(super) struct Feed {
    pub(super) desk: Arc<Desk>,
    pub(super) intake: Option<Intake>,
    /// What paths of published versions mean.
    pub(super) found: Cached,
    /// Commits that the upstream did not know, each with the head at that time.
    pub(super) unknown: Cache<Oid, Option<Head>>,
}

impl Edge {
    /// An edge with nothing cached yet.
    #[must_use]
    pub fn new(setup: Setup) -> Arc<Self> {
        let mut intakes = setup.intakes;
        let feed = |desk: &Arc<Desk>| {
            let intake = intakes.remove(&desk.feed);
            (desk.feed.as_str().to_owned(), Arc::new(Feed::new(Arc::clone(desk), intake)))
        };
        let feeds = setup.board.iter().map(feed).collect();
        Arc::new(Edge {
            board: setup.board,
            node: setup.node,
            label: setup.label,
            advertise: setup.advertise,
            access: setup.access,
            proxies: setup.proxies,
            throttle: Throttle::new(setup.bandwidth.in_force(sys::now())),
            share: Share::default(),
            gate: Gate::new(setup.bandwidth.max_downloads, setup.bandwidth.max_queue),
            bandwidth: watch::Sender::new(Arc::new(setup.bandwidth)),
            region: setup.region,
            freshness: setup.freshness,
            stale: setup.stale,
            blocking: Blocking::new(MAX_THREADS),
            packing: Blocking::new(MAX_PACKING),
            metrics: Metrics::default(),
            library: Arc::new(Library::new()),
            archives: Arc::new(Semaphore::new(MAX_ARCHIVES)),
            gits: Arc::new(Semaphore::new(MAX_GITS)),
            max_upload: setup.max_upload,
            ledger: setup.ledger,
            audit: Arc::new(setup.audit),
            failures: Failures::default(),
            ailing: Ailing::default(),
            listeners: Arc::new(Semaphore::new(MAX_LISTENERS)),
            pace: Pace::new(setup.limits),
            pass_secret: setup.pass_secret,
            regions: RwLock::new(Arc::new(setup.regions)),
            feeds,
        })
    }

    /// The region table in force.
    #[must_use]
    pub fn regions(&self) -> Arc<RegionTable> {
        Arc::clone(&self.regions.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts another region table in force.
    pub fn set_regions(&self, table: RegionTable) {
        *self.regions.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    /// The limits on what is sent; they can be changed while bodies are under way.
    #[must_use]
    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// All feeds by name.
    pub(super) fn feeds(&self) -> impl Iterator<Item = &Arc<Feed>> {
        self.feeds.values()
    }

    /// The feed of a name.
    pub(super) fn feed(&self, feed: &str) -> Result<&Arc<Feed>, Fault> {
        self.feeds.get(feed).ok_or_else(|| {
            let feed: String = feed.chars().take(80).collect();
            let known: Vec<&str> = self.feeds.keys().take(20).map(String::as_str).collect();
            let known = known.join(", ");
            Fault::not_found(
                "no_such_feed",
                format!("there is no feed \"{feed}\" here; there is: {known}"),
            )
        })
    }

    /// The feed that a URL names, and what stands in it behind `/v1/feeds/{feed}/{verb}/`, raw.
    pub(super) fn below<'u>(&self, uri: &'u Uri) -> Result<(&Arc<Feed>, &'u str), Fault> {
        let mut parts = uri.path().splitn(6, '/');
        let feed = parts.nth(3).unwrap_or_default();
        let tail = parts.nth(1).unwrap_or_default();
        Ok((self.feed(feed)?, tail))
    }

    /// The address of whoever asks, as far as it is known.
    pub(super) fn client(&self, parts: &Parts) -> Option<IpAddr> {
        let Peer(peer) = parts.extensions.get::<Peer>()?;
        Some(self.client_behind(peer.ip(), &parts.headers))
    }

    /// Whether an address is that of a proxy, behind which others ask.
    pub(super) fn is_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().any(|proxy| proxy.contains(&address))
    }

    pub(super) fn client_behind(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        redirect::client_addr(peer, headers, &self.proxies)
    }
}

impl Feed {
    fn new(desk: Arc<Desk>, intake: Option<Intake>) -> Self {
        let (found, unknown) = (document::cache(), Cache::new(UNKNOWN));
        Feed { desk, intake, found, unknown }
    }

    /// Whether this node owns the feed.
    pub(super) fn is_primary(&self) -> bool {
        self.desk.state.borrow().primary
    }

    /// The newest published commit.
    pub(super) fn newest(&self) -> Result<Oid, Fault> {
        match self.desk.head() {
            Some(head) => Ok(head.commit),
            None if self.is_primary() => {
                Err(Fault::not_found("nothing_published", "nothing is published in this feed yet"))
            }
            None => Err(Fault::unavailable("nothing has come from the upstream yet", 5)),
        }
    }
}

impl Edge {
    /// Calls a feed's store on a thread.
    pub(super) async fn store<T, F>(&self, feed: &Feed, call: F) -> Result<T, Fault>
    where
        T: Send + 'static,
        F: FnOnce(&Store) -> store::Result<T> + Send + 'static,
    {
        let store = Arc::clone(&feed.desk.store);
        Ok(self.blocking.run(move || call(&store)).await?)
    }
}
