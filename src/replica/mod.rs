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
mod partial;
mod snapshot;
mod stage;
mod upstream;

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
    bus::{Desk, frame::Hello},
    disk::{Keep, Root},
    hooks::Hooks,
    ledger::Ledger,
    model::{Cron, FeedName, Label, NodeId, RegionName},
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
    /// In place of a deployment directory: a folder for each version, and a link.
    pub snapshot: Option<Snapshot>,
    /// Whether foreign files may be moved aside at first contact.
    pub adopt: bool,
    /// Base addresses of the upstreams, `http://host:port`; at least one.
    pub upstreams: Vec<Url>,
    /// The feed's name there.
    pub upstream_feed: FeedName,
    /// Where the token lies that lets us in there.
    pub token: Option<TokenFile>,
    /// For packs, objects and polls; without a total time-out.
    pub http: reqwest::Client,
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
        let checkout =
            Checkout { store, root, state, keep, adopt, gate, partial, known, drift, repairs };
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

    /// Another one at each node, so that mirrors do not come back in the same instant.
    fn seed(&self) -> u64 {
        let mut seed = DefaultHasher::new();
        (&self.node, &self.desk.feed).hash(&mut seed);
        seed.finish()
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
