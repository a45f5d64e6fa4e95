//! How a node speaks TLS: to whoever connects, to other nodes, and to the upstreams of single feeds.
//!
//! Certificates that are exchanged on disk are taken up while it runs; one that cannot be used is told
//! of, and the old one stays in force.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{Error, Node};
use crate::{
    config::{self, FeedSettings, Settings},
    model::FeedName,
    tls,
};

/// How often a certificate on disk is looked at.
const CERTIFICATE: Duration = Duration::from_secs(5);

/// How this node speaks TLS.
pub(super) struct Tls {
    /// To whoever connects; none: not at all.
    pub(super) server: Option<Arc<tls::Server>>,
    /// To other nodes.
    pub(super) client: Arc<tls::Client>,
    /// To the upstreams of feeds that say more of it.
    upstreams: BTreeMap<FeedName, Arc<tls::Client>>,
}

impl Tls {
    pub(super) fn open(settings: &Settings) -> Result<Self, Error> {
        // Whoever opens it a second time in one process finds the provider there.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let identity =
            |pair: &Option<_>| pair.clone().map(|(cert, key)| tls::Identity { cert, key });
        let config::Tls { pair, ca, client_ca } = &settings.tls;
        let own = identity(pair);
        let terms = tls::Terms { identity: own.clone(), ca: ca.clone(), pins: Vec::new() };
        let mut upstreams = BTreeMap::new();
        for FeedSettings { name, mirror, .. } in &settings.feeds {
            let shown = identity(&mirror.identity).or_else(|| own.clone());
            let more = tls::Terms { identity: shown, pins: mirror.pins.clone(), ..terms.clone() };
            if more != terms {
                upstreams.insert(name.clone(), tls::Client::load(more)?);
            }
        }
        let guests = match (client_ca, ca) {
            (Some(ca), _) => tls::Guests::Known(ca.clone()),
            (None, Some(ca)) => tls::Guests::Checked(ca.clone()),
            (None, None) => tls::Guests::Anyone,
        };
        let server = own.map(|identity| tls::Server::load(identity, guests)).transpose()?;
        Ok(Self { server: server.map(Arc::new), client: tls::Client::load(terms)?, upstreams })
    }

    /// For what a feed's upstreams are asked.
    pub(super) fn client_of(&self, feed: &FeedName) -> &Arc<tls::Client> {
        self.upstreams.get(feed).unwrap_or(&self.client)
    }

    /// Takes up what was exchanged on disk; says whether anything was, and what cannot be used.
    fn refresh(&self) -> Vec<Result<bool, tls::Error>> {
        let clients = std::iter::once(&self.client).chain(self.upstreams.values());
        let clients = clients.map(|client| client.refresh());
        self.server.iter().map(|server| server.refresh()).chain(clients).collect()
    }
}

/// Takes up certificates that were exchanged on disk; transfers under way go on with the old ones.
pub(super) async fn keep_certificates(
    node: Arc<Node>,
    stop: CancellationToken,
) -> Result<(), Error> {
    while stop.run_until_cancelled(tokio::time::sleep(CERTIFICATE)).await.is_some() {
        let node = Arc::clone(&node);
        #[expect(clippy::disallowed_methods, reason = "a few small files, now and then")]
        let read = tokio::task::spawn_blocking(move || node.tls.refresh()).await;
        let read = read.map_err(|panic| Error::Ended(panic.to_string()))?;
        if read.iter().any(|read| matches!(read, Ok(true))) {
            tracing::info!("other certificates are in force");
        }
        // A node shows the same one to its clients and to others: its fault is told once.
        if let Some(Err(error)) = read.into_iter().find(Result::is_err) {
            tracing::error!(%error, "the certificate on disk cannot be used; the old one stays in force");
        }
    }
    Ok(())
}
