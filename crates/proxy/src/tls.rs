//! Certificates by host, and the TLS settings of the listeners.
//!
//! # No OCSP stapling
//!
//! A stapled OCSP answer (RFC 6960, RFC 6066 §8) told clients that a certificate had not been revoked.
//! Let's Encrypt, which most hosts here ask, ended its OCSP service in 2025: its certificates name no responder any
//! more, so there is nothing to staple; other authorities follow, as the browsers' rules made OCSP optional in 2024.
//! What takes its place are short lives (`acme: profile: shortlived`), renewal as the authority advises (ARI), which is
//! how a revocation becomes known in time, and the browsers' own lists.
//!
//! A certificate with the extension "must staple" (RFC 7633) is shown like any other, and clients that insist on the
//! answer refuse it: none is ever asked for here, and one from files is better replaced.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::challenges::ACME_TLS;
use crate::control::CertificatePem;
use crate::names::HostPattern;
use crate::shared::Shared;

/// A certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    /// The chain is not PEM, or empty.
    #[error("the certificate chain is not PEM with at least one CERTIFICATE block")]
    Chain(#[source] Option<rustls_pki_types::pem::Error>),
    /// The key is not PEM of a known kind.
    #[error("the private key is not PEM with a PKCS#8, PKCS#1 or SEC1 key")]
    Key(#[source] rustls_pki_types::pem::Error),
    /// The key is of a kind that is not supported, or does not belong to the leaf.
    #[error("the private key cannot be used with the certificate")]
    Mismatch(#[source] rustls::Error),
    /// A file could not be read.
    #[error("cannot read {path}")]
    File {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The one cryptography provider of this process.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        // A stable sort: within each half the library's order stays.
        provider
            .cipher_suites
            .sort_by_key(|suite| !is_aes_128(suite.suite()));
        Arc::new(provider)
    }))
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

/// Reads a chain and its key, and checks that they belong together.
pub(crate) fn load(pem: &CertificatePem) -> Result<Arc<CertifiedKey>, CertificateError> {
    let (chain, key) = read(pem)?;
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(CertificateError::Mismatch)
}

/// The same for an answer of tls-alpn-01, whose critical extension no ordinary reader of certificates accepts.
pub(crate) fn load_answer(pem: &CertificatePem) -> Result<Arc<CertifiedKey>, CertificateError> {
    let (chain, key) = read(pem)?;
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(CertificateError::Mismatch)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

type Read = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read(pem: &CertificatePem) -> Result<Read, CertificateError> {
    let chain = CertificateDer::pem_slice_iter(pem.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| CertificateError::Chain(Some(error)))?;
    if chain.is_empty() {
        return Err(CertificateError::Chain(None));
    }
    let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).map_err(CertificateError::Key)?;
    Ok((chain, key))
}

/// Which certificate is shown for which server name.
#[derive(Debug, Clone, Default)]
pub(crate) struct Certificates {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    /// Shows `key` for `hosts`, and to clients without a server name if nothing else is shown to them yet.
    pub(crate) fn add(&mut self, hosts: &[HostPattern], key: &Arc<CertifiedKey>) {
        for host in hosts {
            match host.wildcard_suffix() {
                Some(suffix) => self.wildcard.entry(suffix.into()),
                None => self.exact.entry(host.as_str().into()),
            }
            .or_insert_with(|| Arc::clone(key));
        }
        self.default.get_or_insert_with(|| Arc::clone(key));
    }

    /// Shows `key` to clients whose server name no service has, and to those without one.
    pub(crate) fn set_fallback(&mut self, key: &Arc<CertifiedKey>) {
        self.wildcard.insert("".into(), Arc::clone(key));
        self.default = Some(Arc::clone(key));
    }

    /// Whether something is shown to clients that name this host.
    pub(crate) fn covers(&self, name: &str) -> bool {
        self.get(Some(name)).is_some()
    }

    pub(crate) fn get(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let Some(name) = name else {
            return self.default.clone();
        };
        let mut room = [0_u8; 254];
        let name = crate::table::normalise_host(name, &mut room)?;
        self.exact
            .get(name)
            .or_else(|| {
                name.split_once('.')
                    .and_then(|(_, suffix)| self.wildcard.get(suffix))
            })
            .or_else(|| self.wildcard.get(""))
            .cloned()
    }
}

/// Whether a certificate authority looks for its answer: it offers `acme-tls/1` and nothing else (RFC 8737 §3).
pub(crate) fn is_challenge(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut offered| {
        offered.next().is_some_and(|first| first == ACME_TLS) && offered.next().is_none()
    })
}

/// Looks certificates up in the live table, so that a switch needs no new listener.
#[derive(Debug)]
struct Resolver(Arc<Shared>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if is_challenge(&hello) {
            return self.0.challenges.certificate(hello.server_name());
        }
        self.0.table.load().certificates.get(hello.server_name())
    }
}

/// The settings of every HTTPS listener: TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, stateless tickets.
pub(crate) fn server_config(shared: &Arc<Shared>) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Resolver(Arc::clone(shared))));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec(), ACME_TLS.to_vec()];
    config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new()?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    // AES-128 first, as browsers have it too: OpenSSL's clients ask for AES-256 with SHA-384, whose key schedule is an
    // eighth of what a handshake costs.
    config.ignore_client_order = true;
    Ok(config)
}
