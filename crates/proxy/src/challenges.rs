//! Answers to the challenges of certificate authorities, given for as long as the agent wants.
//!
//! They are asked for before any route, redirect or gate: a host is proved before it is served.
//! They are not part of the snapshot: an order that a restart interrupts is made again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

/// Where http-01 looks (RFC 8555 §8.3).
const PATH: &str = "/.well-known/acme-challenge/";
/// The protocol of tls-alpn-01 (RFC 8737 §4).
pub(crate) const ACME_TLS: &[u8] = b"acme-tls/1";
/// Most answers at once; an agent that withdraws none of them must not fill the memory.
const MOST: usize = 4_096;
/// How long an answer is given that nobody withdraws.
const LIFE: Duration = Duration::from_secs(3_600);

/// One answer, as the agent hands it over.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Challenge {
    /// http-01: `authorization` is the answer to `GET /.well-known/acme-challenge/{token}`.
    Http {
        /// base64url.
        token: String,
        /// The token, a dot and the account key's thumbprint.
        authorization: String,
    },
    /// tls-alpn-01: the certificate for clients that offer only `acme-tls/1`.
    TlsAlpn {
        /// The server name.
        host: String,
        /// Certificate, PEM.
        chain: String,
        /// Key, PEM.
        key: String,
    },
}

impl std::fmt::Debug for Challenge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http { token, .. } => f
                .debug_struct("Http")
                .field("token", token)
                .finish_non_exhaustive(),
            Self::TlsAlpn { host, .. } => f
                .debug_struct("TlsAlpn")
                .field("host", host)
                .finish_non_exhaustive(),
        }
    }
}

/// The answers that are given now.
#[derive(Debug, Default)]
pub(crate) struct Challenges(Mutex<Given>);

#[derive(Debug, Default)]
struct Given {
    http: HashMap<Box<str>, (Bytes, Instant)>,
    tls: HashMap<Box<str>, (Arc<CertifiedKey>, Instant)>,
}

impl Challenges {
    fn given(&self) -> std::sync::MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives an answer from now on.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn put(&self, challenge: &Challenge, now: Instant) -> Result<(), String> {
        let mut given = self.given();
        given.http.retain(|_, (_, until)| *until > now);
        given.tls.retain(|_, (_, until)| *until > now);
        if given.http.len() + given.tls.len() >= MOST {
            return Err(format!("{MOST} challenges are answered already"));
        }
        let until = now + LIFE;
        match challenge {
            Challenge::Http { token, authorization } => {
                let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
                if token.is_empty() || token.len() > 256 || !token.bytes().all(base64url) {
                    return Err("the token is not base64url of at most 256 characters".into());
                }
                let content = Bytes::copy_from_slice(authorization.as_bytes());
                given.http.insert(token.as_str().into(), (content, until));
            }
            Challenge::TlsAlpn { host, chain, key } => {
                let pem = crate::control::CertificatePem {
                    chain: chain.clone(),
                    key: key.clone(),
                };
                let key = crate::tls::load_answer(&pem).map_err(|error| error.to_string())?;
                given.tls.insert(host.to_ascii_lowercase().into(), (key, until));
            }
        }
        Ok(())
    }

    /// No longer. Fine when it is not given.
    pub(crate) fn remove(&self, challenge: &Challenge) {
        let mut given = self.given();
        match challenge {
            Challenge::Http { token, .. } => drop(given.http.remove(token.as_str())),
            Challenge::TlsAlpn { host, .. } => drop(given.tls.remove(host.to_ascii_lowercase().as_str())),
        }
    }

    /// The answer to a request for `path`, if it asks for one that we have; an app may answer others itself.
    pub(crate) fn answer(&self, path: &str) -> Option<Response<Bytes>> {
        let token = path.strip_prefix(PATH)?;
        let content = self.given().http.get(token)?.0.clone();
        let mut response = Response::new(content);
        let kind = HeaderValue::from_static("application/octet-stream");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Some(response)
    }

    /// The certificate for a handshake that is a challenge.
    pub(crate) fn certificate(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        // An IP address is asked for by its name in the reverse tree (RFC 8738 §6).
        let name = name?.to_ascii_lowercase();
        let given = self.given();
        let found = given.tls.get(name.as_str()).or_else(|| {
            let address = reverse(&name)?;
            given.tls.get(address.to_string().as_str())
        });
        found.map(|(key, _)| Arc::clone(key))
    }
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse(name: &str) -> Option<std::net::IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa") {
        let mut parts = octets.rsplit('.').map(str::parse::<u8>);
        let mut next = || parts.next()?.ok();
        let address = [next()?, next()?, next()?, next()?];
        return parts.next().is_none().then(|| address.into());
    }
    let nibbles = name.strip_suffix(".ip6.arpa")?;
    let mut bits: u128 = 0;
    let mut count = 0;
    for nibble in nibbles.rsplit('.') {
        bits = bits << 4
            | u128::from(
                u8::from_str_radix(nibble, 16)
                    .ok()
                    .filter(|_| nibble.len() == 1)?,
            );
        count += 1;
    }
    (count == 32).then(|| std::net::Ipv6Addr::from_bits(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(token: &str) -> Challenge {
        Challenge::Http {
            token: token.into(),
            authorization: format!("{token}.thumb"),
        }
    }

    #[test]
    fn answers_are_given_until_they_are_withdrawn_or_old() {
        let (challenges, now) = (Challenges::default(), Instant::now());
        challenges.put(&http("abc"), now).unwrap();
        let found = |path: &str| challenges.answer(path).map(Response::into_body);
        assert_eq!(found("/.well-known/acme-challenge/abc").unwrap(), "abc.thumb");
        assert_eq!(found("/.well-known/acme-challenge/abcd"), None);
        assert_eq!(found("/abc"), None);
        challenges.remove(&http("abc"));
        assert_eq!(found("/.well-known/acme-challenge/abc"), None);
        challenges.put(&http("old"), now).unwrap();
        challenges
            .put(&http("new"), now + LIFE + Duration::from_secs(1))
            .unwrap();
        assert_eq!(found("/.well-known/acme-challenge/old"), None);
        for bad in ["", "a/b", "a b", &"x".repeat(257)] {
            assert!(challenges.put(&http(bad), now).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_read_from_the_reverse_tree() {
        assert_eq!(
            reverse("7.2.0.192.in-addr.arpa").unwrap().to_string(),
            "192.0.2.7"
        );
        assert_eq!(reverse("7.2.0.in-addr.arpa"), None);
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        assert_eq!(reverse(six).unwrap().to_string(), "2001:db8::1");
    }
}
