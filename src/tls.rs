//! TLS from files: this node's certificate, and whom it believes.
//!
//! TLS 1.2 at least. What is exchanged on disk is taken up while the node runs, for new connections
//! only, at both ends; what cannot be used leaves the old in force. A key that others than its owner
//! may read is refused.

mod client;
mod server;

mod expiry;

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

pub use client::{Client, Terms};
pub use server::{Guests, Server};

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
    /// Certificates cannot be checked by this CA, or the machine has none that it believes.
    #[error("certificates cannot be checked: {0}")]
    Verifier(String),
}

/// A certificate with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate, then those between it and the CA.
    pub cert: PathBuf,
    /// PEM: its key; for its owner alone.
    pub key: PathBuf,
}

impl Identity {
    fn files(&self) -> [&Path; 2] {
        [&self.cert, &self.key]
    }
}

/// Which file each one is, and when it was last changed; the times of two files that were made one
/// after the other may be the same.
type Stamp = Vec<Option<(u64, u64, SystemTime)>>;

/// What was made of some files, and when these were last changed.
#[derive(Debug)]
struct Kept<T>(RwLock<(Stamp, Arc<T>)>);

impl<T> Kept<T> {
    fn new(stamp: Stamp, made: T) -> Self {
        Kept(RwLock::new((stamp, Arc::new(made))))
    }

    fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).1)
    }

    /// Makes it anew where a file has changed; true when it did. What cannot be made leaves the old.
    fn refresh(&self, now: Stamp, make: impl FnOnce() -> Result<T, Error>) -> Result<bool, Error> {
        if self.0.read().unwrap_or_else(PoisonError::into_inner).0 == now {
            return Ok(false);
        }
        let made = make();
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        // Also where they cannot be used: that is told once for each change.
        kept.0 = now;
        kept.1 = Arc::new(made?);
        Ok(true)
    }
}

fn stamp<'a>(files: impl IntoIterator<Item = &'a Path>) -> Stamp {
    let seen = |path| {
        let about = fs::metadata(path).ok()?;
        Some((about.ino(), about.size(), about.modified().ok()?))
    };
    files.into_iter().map(seen).collect()
}

/// The process's own, as its start has chosen it.
fn provider() -> Arc<CryptoProvider> {
    let chosen = CryptoProvider::get_default().map(Arc::clone);
    chosen.unwrap_or_else(|| Arc::new(rustls::crypto::ring::default_provider()))
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
