//! TLS from files: this node's certificate, and whom it believes.
//!
//! TLS 1.2 at least. A certificate that is exchanged on disk is taken up while the node runs, for
//! new connections only; one that cannot be used leaves the old one in force. A key that others than
//! its owner may read is refused.

mod expiry;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use rustls_platform_verifier::BuilderVerifierExt;

pub use self::expiry::expires;

/// What HTTP calls itself in a handshake.
const HTTP: &[u8] = b"http/1.1";

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that cannot be read, or does not hold what it should.
    #[error("{path} {why}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The TLS library refuses what the files hold.
    #[error("the certificate {path} cannot be used: {source}")]
    Refused {
        /// The certificate's file.
        path: PathBuf,
        /// Its reason.
        source: rustls::Error,
    },
    /// Client certificates cannot be checked by this CA, or the machine has none that it believes.
    #[error("certificates cannot be checked: {0}")]
    Verifier(String),
}

/// A node's certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate, then those between it and the CA.
    pub cert: PathBuf,
    /// PEM: its key; for its owner alone.
    pub key: PathBuf,
}

/// What a server needs, as it is now on disk.
#[derive(Debug)]
pub struct Server {
    identity: Identity,
    ca: Option<PathBuf>,
    current: RwLock<(Stamp, Arc<ServerConfig>)>,
}

/// When each file was last changed.
type Stamp = Vec<Option<SystemTime>>;

impl Server {
    /// Reads the certificate. With a CA, client certificates are asked for, and those that are shown
    /// must be its own; none need be.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn load(identity: Identity, ca: Option<PathBuf>) -> Result<Self, Error> {
        let stamp = stamp(&identity, ca.as_deref());
        let config = server_config(&identity, ca.as_deref())?;
        Ok(Self { identity, ca, current: RwLock::new((stamp, config)) })
    }

    /// What new connections are made with.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Reads the files again where one of them has changed; true when another certificate is in force.
    /// Blocks.
    ///
    /// # Errors
    /// When they cannot be used; then what was in force stays.
    pub fn refresh(&self) -> Result<bool, Error> {
        let stamp = stamp(&self.identity, self.ca.as_deref());
        if self.current.read().unwrap_or_else(PoisonError::into_inner).0 == stamp {
            return Ok(false);
        }
        let config = server_config(&self.identity, self.ca.as_deref());
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // Also where they cannot be used: that is told once for each change.
        current.0 = stamp;
        current.1 = config?;
        Ok(true)
    }
}

/// What a client of other nodes needs: it believes `ca` alone where one is named, else whom this
/// machine believes, and shows this node's certificate to whoever asks for one.
///
/// # Errors
/// When a file cannot be read or used.
pub fn client(identity: Option<&Identity>, ca: Option<&Path>) -> Result<ClientConfig, Error> {
    let builder = ClientConfig::builder();
    let builder = match ca {
        Some(ca) => builder.with_root_certificates(roots(ca)?),
        None => match builder.with_platform_verifier() {
            Ok(builder) => builder,
            // Nobody is believed: nodes without TLS can still be talked to.
            Err(_) => ClientConfig::builder().with_root_certificates(RootCertStore::empty()),
        },
    };
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(certificates(&identity.cert)?, key(&identity.key)?)
            .map_err(|source| Error::Refused { path: identity.cert.clone(), source })?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![HTTP.to_vec()];
    Ok(config)
}

fn server_config(identity: &Identity, ca: Option<&Path>) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder();
    let builder = match ca {
        Some(ca) => {
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots(ca)?));
            let verifier = verifier.allow_unauthenticated().build();
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
    Ok(Arc::new(config))
}

fn roots(ca: &Path) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|source| Error::Refused { path: ca.to_owned(), source })?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let text = read(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => {
            Err(fault(path, "holds no certificate in PEM".to_owned()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(fault(path, format!("holds no readable certificate: {error}"))),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Error> {
    let text = read(path)?;
    let about =
        fs::metadata(path).map_err(|error| fault(path, format!("cannot be read: {error}")))?;
    if about.permissions().mode() & 0o077 != 0 {
        let why = "can be read by others than its owner: `chmod 600` it, and give out a new key where \
                   others were on this machine";
        return Err(fault(path, why.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| fault(path, format!("holds no private key in PEM: {error}")))
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| fault(path, format!("cannot be read: {error}")))
}

fn fault(path: &Path, why: String) -> Error {
    Error::File { path: path.to_owned(), why }
}

fn stamp(identity: &Identity, ca: Option<&Path>) -> Stamp {
    let files = [identity.cert.as_path(), &identity.key].into_iter().chain(ca);
    files.map(|path| fs::metadata(path).and_then(|about| about.modified()).ok()).collect()
}
