//! What the proxy does for a role beyond Kamal's `proxy:`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The extras of one role; the default is none of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyExtras {
    /// Compression of responses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Every other of the hosts is redirected to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_host: Option<String>,
    /// Fields set on every response.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Paths that are answered with a redirect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redirects: Vec<Redirect>,
    /// Who may come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// How often one visitor may ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Largest request body in bytes, over that of `buffering`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<u64>,
    /// Whether the app speaks HTTP/2 without TLS instead of HTTP/1.1.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub h2c: bool,
    /// Whether each request gets a line in the access log; it does where nothing is said, as with kamal-proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<bool>,
    /// Whether that line holds the query.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub log_query: bool,
}

impl ProxyExtras {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// Compression of responses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compression {
    /// `zstd`, `br`, `gzip`, the preferred one first.
    pub codings: Vec<String>,
    /// Smaller responses stay as they are; bytes.
    pub min_bytes: u64,
    /// Media types besides the usual ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
}

/// A path that is answered with a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// The path; `/*` at its end stands for everything below it.
    pub from: String,
    /// A path or a URL.
    pub to: String,
    /// HTTP status.
    pub status: u16,
}

/// Basic authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// What browsers show.
    pub realm: String,
    /// Bcrypt hashes by user name.
    pub users: BTreeMap<String, String>,
    /// Path prefixes that stay open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

/// How often one visitor may ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// This many requests
    pub requests: u32,
    /// in this many seconds,
    pub seconds: u32,
    /// this many at once after a rest.
    pub burst: u32,
}
