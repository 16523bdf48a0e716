//! Whoever answers on ports 80 and 443.

use futures_util::future::BoxFuture;

use crate::name::Name;

/// What the front could not do, and why.
pub type FrontError = Box<dyn std::error::Error + Send + Sync>;

/// The answer to one challenge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// `GET /.well-known/acme-challenge/{token}` on port 80 (RFC 8555 §8.3).
    Http {
        /// Last segment of the path: base64url.
        token: String,
        /// Body of the answer.
        authorization: String,
    },
    /// The certificate shown to a client that offers only `acme-tls/1` (RFC 8737).
    TlsAlpn {
        /// For which server name.
        name: Name,
        /// Certificate, PEM.
        chain: String,
        /// Key, PEM.
        key: String,
    },
}

/// Shows answers to challenges, and certificates.
pub trait Front: Send + Sync {
    /// Gives this answer from now on.
    fn present<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>>;
    /// No longer; best effort.
    fn withdraw<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>>;
    /// Shows this certificate for `name` from now on; the same one again changes nothing.
    fn install<'a>(
        &'a self,
        name: &'a Name,
        chain: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(), FrontError>>;
    /// Shows no certificate for `name` any more, unless somebody else needs it there; fine when there is none.
    fn uninstall<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), FrontError>>;
}
