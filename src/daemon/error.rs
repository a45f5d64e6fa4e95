//! Why the daemon did not start, or ended, and the exit code that says so.

use std::net::SocketAddr;

use crate::{
    bus::nats,
    disk,
    ledger::{self, state_dir},
    model::FeedName,
    origin, replica, serve, signing, store, tls,
};

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
