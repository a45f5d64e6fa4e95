//! TLS for whoever connects to this node: what it shows, and whom it lets in.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ServerConfig, server::WebPkiClientVerifier};

use super::{Error, HTTP, Identity, Kept, Stamp, certificates, key, roots, stamp};

/// Which certificates clients show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guests {
    /// None is asked for.
    Anyone,
    /// None need be shown; one that is must be of this CA.
    Checked(PathBuf),
    /// One of this CA, or there is no connection.
    Known(PathBuf),
}

impl Guests {
    fn ca(&self) -> Option<&Path> {
        match self {
            Guests::Anyone => None,
            Guests::Checked(ca) | Guests::Known(ca) => Some(ca),
        }
    }
}

/// What a server needs, as it is now on disk.
#[derive(Debug)]
pub struct Server {
    identity: Identity,
    guests: Guests,
    current: Kept<ServerConfig>,
}

impl Server {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or used.
    pub fn load(identity: Identity, guests: Guests) -> Result<Self, Error> {
        let current = Kept::new(files(&identity, &guests), config(&identity, &guests)?);
        Ok(Self { identity, guests, current })
    }

    /// What new connections are made with.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        self.current.get()
    }

    /// Reads the files again where one of them has changed; true when others are in force. Blocks.
    ///
    /// # Errors
    /// When they cannot be used; then what was in force stays.
    pub fn refresh(&self) -> Result<bool, Error> {
        let (identity, guests) = (&self.identity, &self.guests);
        self.current.refresh(files(identity, guests), || config(identity, guests))
    }
}

fn files(identity: &Identity, guests: &Guests) -> Stamp {
    stamp(identity.files().into_iter().chain(guests.ca()))
}

fn config(identity: &Identity, guests: &Guests) -> Result<ServerConfig, Error> {
    let builder = ServerConfig::builder();
    let builder = match guests.ca() {
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots(ca)?));
            let verifier = match guests {
                Guests::Known(_) => verifier,
                _ => verifier.allow_unauthenticated(),
            };
            let verifier = verifier.build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| Error::Verifier(error.to_string()))?,
            )
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(certificates(&identity.cert)?, key(&identity.key)?)
        .map_err(|source| Error::Refused { path: identity.cert.clone(), source })?;
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(config)
}
