//! The mirror's side of a feed: follow → fetch → checkout.
//!
//! `follow` decides and does nothing else (`event` has its words); `stage` carries its decisions out: `connection` hears
//! the upstream, `fetch` brings packs and objects, `checkout` puts them in place (`adopt` looks at
//! a directory that held files before). Whatever is fetched is posted for those who follow us, as
//! soon as it is durable. Blocking work runs on two `lane`s of the feed, one for its repository and
//! one for its directory, so that a long checkout holds up neither fetches nor followers.

mod adopt;
mod backoff;
mod checkout;
mod connection;
mod demoted;
mod distrust;
mod drift;
mod error;
pub mod event;
mod fetch;
pub mod follow;
mod gate;
mod known;
mod lane;
mod meter;
mod objects;
mod on_demand;
mod partial;
mod record;
mod repair;
mod reports;
mod snapshot;
mod stage;
mod subset;
mod upstream;
mod verify;
mod vet;

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use reqwest::Url;
use tokio_util::sync::CancellationToken;

pub use drift::Drift;
pub use error::{Error, Foreign};
pub use snapshot::Snapshot;
pub use upstream::TokenFile;

use self::{
    checkout::{Checkout, Way},
    drift::Repairs,
    gate::{Asking, Gate},
    known::Known,
    snapshot::Snapshots,
    upstream::Upstream,
};
use crate::{
    bus::{Desk, Nats, frame::Hello},
    disk::{Keep, Root},
    hooks::Hooks,
    ledger::Ledger,
    model::{Cron, FeedName, Head, Label, NodeId, Oid, RegionName, Subset},
};

/// What a mirror of one feed is given.
pub struct Setup {
    /// The feed's desk at this node, with its store.
    pub desk: Arc<Desk>,
    /// `<state>/feeds/<feed>`: journal and aside lie there.
    pub state: PathBuf,
    /// The deployment directory; none: history and objects only.
    pub root: Option<Arc<Root>>,
    /// Which metadata is put in place.
    pub keep: Keep,
    /// What is done about files that others change in the directory.
    pub drift: Drift,
    /// Heads are fetched at once and put in place only then; absent: at once.
    pub checkout_at: Option<Cron>,
    /// When all files of the deployment directory are read and compared, besides what is done all
    /// the while; none: never.
    pub verify_at: Option<Cron>,
    /// In place of a deployment directory: a folder for each version, and a link.
    pub snapshot: Option<Snapshot>,
    /// Whether only the head is kept, without its history.
    pub shallow: bool,
    /// Whether foreign files may be moved aside at first contact.
    pub adopt: bool,
    /// The last commit that this node published, where it has owned the feed: what lies in the
    /// directory beyond what the new owner has is put aside at the first checkout.
    pub demoted_at: Option<Oid>,
    /// The part of the feed that is kept, as patterns that were found to be good; empty: all of it.
    pub paths: Vec<String>,
    /// Base addresses of the upstreams, `http://host:port`; none: there is nobody to follow yet.
    pub upstreams: Vec<Url>,
    /// The feed's name there.
    pub upstream_feed: FeedName,
    /// Where the token lies that lets us in there.
    pub token: Option<TokenFile>,
    /// For packs, objects and polls; without a total time-out.
    pub http: reqwest::Client,
    /// By way of which announcements come; none: over connections of our own.
    pub nats: Option<Nats>,
    /// How `https` is spoken for the announcements.
    pub tls: Arc<rustls::ClientConfig>,
    /// How long after the last sign of the head it is asked for.
    pub poll: Duration,
    /// What the operator wants asked before a checkout.
    pub hooks: Hooks,
    /// The node's ledger, for the history of runs.
    pub ledger: Arc<Ledger>,
    /// This node.
    pub node: NodeId,
    /// Its name for people.
    pub label: Label,
    /// The region whose compute hosts it serves.
    pub region: Option<RegionName>,
    /// Where others reach it; none: at the address that the upstream sees.
    pub advertise: Option<String>,
    /// The port on which it listens.
    pub port: Option<u16>,
}

impl Setup {
    fn hello(&self) -> Hello {
        Hello {
            region: self.region.clone(),
            url: self.advertise.clone(),
            port: self.port,
            paths: self.paths.clone(),
            feed: Some(self.desk.feed.clone()).filter(|feed| *feed != self.upstream_feed),
            ..Hello::of(self.node.clone(), self.label.clone())
        }
    }

    fn upstreams(&self) -> Vec<Upstream> {
        let upstream = |base: &Url| Upstream {
            base: base.clone(),
            feed: self.upstream_feed.clone(),
            token: self.token.clone(),
            http: self.http.clone(),
            tls: Arc::clone(&self.tls),
        };
        self.upstreams.iter().map(upstream).collect()
    }

    /// How a head is put in place, if it is; `stopping` ends a hook that is being asked.
    fn checkout(&mut self, stopping: &Arc<AtomicBool>) -> Option<Arc<Way>> {
        let (store, state, keep) = (self.desk.store.clone(), self.state.clone(), self.keep);
        if let Some(snapshot) = self.snapshot.take() {
            let gate = self.gate(&snapshot.link, stopping);
            return Some(Arc::new(Way::Snapshot(Snapshots::new(store, keep, gate, snapshot))));
        }
        let root = self.root.clone()?;
        let gate = self.gate(root.path(), stopping);
        let (adopt, partial, known) = (self.adopt, Mutex::default(), Known::default());
        let (drift, repairs) = (self.drift, Repairs::default());
        let (demoted_at, subset) = (self.demoted_at, self.subset());
        let checkout = Checkout {
            store,
            root,
            state,
            keep,
            adopt,
            gate,
            partial,
            known,
            drift,
            repairs,
            doubted: Mutex::default(),
            demoted_at,
            subset,
        };
        Some(Arc::new(Way::InPlace(checkout)))
    }

    fn gate(&self, dir: &Path, stopping: &Arc<AtomicBool>) -> Gate {
        let asking = Asking {
            hooks: self.hooks.clone(),
            desk: Arc::clone(&self.desk),
            ledger: Arc::clone(&self.ledger),
            label: self.label.clone(),
            region: self.region.clone(),
            dir: dir.to_owned(),
            state: self.state.clone(),
        };
        Gate::new(asking, Arc::clone(stopping))
    }

    fn subset(&self) -> Arc<Subset> {
        Arc::new(Subset::new(&self.paths).unwrap_or_else(|_| Subset::all()))
    }

    /// Another one at each node, so that mirrors do not come back in the same instant.
    fn seed(&self) -> u64 {
        let mut seed = DefaultHasher::new();
        (&self.node, &self.desk.feed).hash(&mut seed);
        seed.finish()
    }
}

/// With what other nodes are asked for a feed.
#[derive(Debug, Clone)]
pub struct Contact {
    /// Its name there.
    pub feed: FeedName,
    /// Where the token lies that lets us in there.
    pub token: Option<TokenFile>,
    /// Without a total time-out.
    pub http: reqwest::Client,
    /// For the connections of followers.
    pub tls: Arc<rustls::ClientConfig>,
}

impl Contact {
    fn upstream(&self, base: &Url) -> Upstream {
        Upstream {
            base: base.clone(),
            feed: self.feed.clone(),
            token: self.token.clone(),
            http: self.http.clone(),
            tls: Arc::clone(&self.tls),
        }
    }

    /// The heads that these nodes have; who does not answer, or has none, is left out.
    pub async fn heads(&self, urls: &[Url]) -> Vec<(Url, Head)> {
        let asked = urls
            .iter()
            .map(async |url| Some((url.clone(), self.upstream(url).head().await.ok().flatten()?)));
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Tries whether the feed can be followed there: connects as a mirror would, and asks for the
    /// head.
    ///
    /// # Errors
    /// What is in the way, by its name where it has one.
    pub async fn try_to_follow(&self, url: &Url) -> Result<Option<Head>, Error> {
        let upstream = self.upstream(url);
        connection::try_open(&upstream).await?;
        upstream.head().await
    }
}

/// Mirrors a feed until `stop`; a checkout that has begun is finished first.
///
/// # Errors
/// When the mirror cannot begin or go on: the directory holds foreign files ([`Error::exit_code`]
/// 78), the repository cannot be read, or a worker thread has panicked. Whatever may
/// mend itself is tried again without end instead, and shown on the desk.
pub async fn run(setup: Setup, stop: CancellationToken) -> Result<(), Error> {
    stage::run(setup, stop).await
}
