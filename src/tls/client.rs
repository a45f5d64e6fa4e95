//! TLS towards other nodes: whom we believe there, and what we show.
//!
//! A server is believed for its key where that is pinned, else for its CA and its name. Both, and the
//! certificate that we show, are read again when the files change, so that one `ClientConfig` stays
//! good for as long as the node runs.

use std::{fmt::Write, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use rustls_platform_verifier::Verifier;
use sha2::{Digest, Sha256};

use super::{Error, HTTP, Identity, Kept, Stamp, certificates, key, provider, roots, stamp};
use crate::model::Pin;

/// Whom a client believes, and what it shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Terms {
    /// Shown to whoever asks for a certificate.
    pub identity: Option<Identity>,
    /// Where no key is pinned: the only CA that is believed; none: those that this machine believes.
    pub ca: Option<PathBuf>,
    /// One of these keys must be the server's; then neither CA nor name nor date matters.
    pub pins: Vec<Pin>,
}

/// What a client needs, as it is now on disk.
#[derive(Debug)]
pub struct Client {
    terms: Terms,
    current: Kept<Current>,
}

#[derive(Debug)]
struct Current {
    /// None: nobody is believed by a CA.
    verifier: Option<Arc<dyn ServerCertVerifier>>,
    shown: Option<Arc<CertifiedKey>>,
}

impl Client {
    /// Reads the files.
    ///
    /// # Errors
    /// When one cannot be read or used.
    pub fn load(terms: Terms) -> Result<Arc<Self>, Error> {
        let current = Kept::new(files(&terms), Current::load(&terms)?);
        Ok(Arc::new(Self { terms, current }))
    }

    /// What connections are made with; it follows the files.
    #[must_use]
    pub fn config(self: &Arc<Self>) -> ClientConfig {
        let builder = ClientConfig::builder().dangerous();
        let verifier = Arc::clone(self) as Arc<dyn ServerCertVerifier>;
        let builder = builder.with_custom_certificate_verifier(verifier);
        let mut config =
            builder.with_client_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesClientCert>);
        config.alpn_protocols = vec![HTTP.to_vec()];
        // A resumed session would go on with whom we no longer believe.
        config.resumption = Resumption::disabled();
        config
    }

    /// Reads the files again where one of them has changed; true when others are in force. Blocks.
    ///
    /// # Errors
    /// When they cannot be used; then what was in force stays.
    pub fn refresh(&self) -> Result<bool, Error> {
        self.current.refresh(files(&self.terms), || Current::load(&self.terms))
    }
}

fn files(terms: &Terms) -> Stamp {
    let identity = terms.identity.as_ref().into_iter().flat_map(Identity::files);
    stamp(identity.chain(terms.ca.as_deref()))
}

impl Current {
    fn load(terms: &Terms) -> Result<Self, Error> {
        let verifier = |error: &dyn std::fmt::Display| Error::Verifier(error.to_string());
        let verifier: Option<Arc<dyn ServerCertVerifier>> = match &terms.ca {
            _ if !terms.pins.is_empty() => None,
            Some(ca) => {
                let built =
                    WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider());
                Some(built.build().map_err(|error| verifier(&error))?)
            }
            // Where this machine believes nobody, nodes without TLS can still be talked to.
            None => Verifier::new(provider()).ok().map(|it| Arc::new(it) as _),
        };
        let shown = terms.identity.as_ref().map(|identity| {
            let (chain, key) = (certificates(&identity.cert)?, key(&identity.key)?);
            CertifiedKey::from_der(chain, key, &provider())
                .map_err(|source| Error::Refused { path: identity.cert.clone(), source })
        });
        Ok(Self { verifier, shown: shown.transpose()?.map(Arc::new) })
    }
}

/// Whether a certificate's key is a pinned one. The handshake proves that the server holds it.
fn pinned(certificate: &CertificateDer<'_>, pins: &[Pin]) -> Result<(), rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let key = parsed.subject_public_key_info();
    let found = Pin::new(Sha256::digest(&key).into());
    if pins.contains(&found) {
        return Ok(());
    }
    let mut named = String::new();
    for pin in pins {
        write!(named, " {pin}").map_err(|error| rustls::Error::General(error.to_string()))?;
    }
    Err(rustls::Error::General(format!(
        "the server's key is {found}, and `pin` names{named}; if the key was exchanged, pin the new one"
    )))
}

impl ServerCertVerifier for Client {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.terms.pins.is_empty() {
            return pinned(end_entity, &self.terms.pins).map(|()| ServerCertVerified::assertion());
        }
        let current = self.current.get();
        let unknown = || rustls::Error::from(rustls::CertificateError::UnknownIssuer);
        let verifier = current.verifier.as_ref().ok_or_else(unknown)?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = provider();
        verify_tls12_signature(message, cert, dss, &provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = provider();
        verify_tls13_signature(message, cert, dss, &provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ResolvesClientCert for Client {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.current.get().shown.clone()
    }

    fn has_certs(&self) -> bool {
        self.current.get().shown.is_some()
    }
}
