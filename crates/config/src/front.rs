//! `x-appliance: proxy:` — what the proxy does for an app beyond Kamal's `proxy:`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Seconds};

/// The section; everything is off until it is named. It holds for every proxied role.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Front {
    /// Compress responses: `true`, or settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression: Option<CompressionForm>,
    /// Every other of the app's hosts is redirected to this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_host: Option<String>,
    /// How long browsers keep to HTTPS (`Strict-Transport-Security`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Seconds>,
    /// Header fields set on every response.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Paths that are answered with a redirect; the first that fits counts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub redirects: Vec<Redirect>,
    /// Who may come in; everybody by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Most requests of one visitor (IPv6: one /64).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Largest request body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_body: Option<Bytes>,
    /// What the app speaks, health check included: `http1`, or `h2c` (HTTP/2 without TLS, such as gRPC servers).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream_protocol: Option<UpstreamProtocol>,
    /// A line in the journal for each request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<Log>,
}

/// What an app speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, from the first byte (RFC 9113 §3.3).
    H2c,
}

/// `compression:` as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum CompressionForm {
    /// `true`: the defaults.
    Switch(bool),
    /// Settings.
    Full(Compression),
}

/// Compression of responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compression {
    /// Codings, the preferred one first.
    #[schemars(length(min = 1))]
    pub codings: Vec<Coding>,
    /// Smaller responses stay as they are.
    pub min_size: Bytes,
    /// Media types besides the usual ones, such as `application/x-custom`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
}

impl Default for Compression {
    fn default() -> Self {
        Self {
            codings: vec![Coding::Zstd, Coding::Br, Coding::Gzip],
            min_size: Bytes(1024),
            types: Vec::new(),
        }
    }
}

/// A content coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Coding {
    /// Zstandard.
    Zstd,
    /// Brotli.
    Br,
    /// gzip.
    Gzip,
}

/// A path that is answered with a redirect.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// The path; with `/*` at its end, everything below it too.
    #[schemars(regex(pattern = r"^/[^?#]*$"))]
    pub from: String,
    /// A path or a URL; with `/*` at its end it gets what the star stood for.
    #[schemars(regex(pattern = r"^(/|https?://)"))]
    pub to: String,
    /// 301, 302, 303, 307 or 308.
    #[serde(default = "moved")]
    #[schemars(range(min = 301, max = 308))]
    pub status: u16,
}

fn moved() -> u16 {
    301
}

/// Basic authentication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// What browsers show.
    #[serde(default = "restricted")]
    pub realm: String,
    /// Bcrypt hashes by user name; `htpasswd -nBC 10 NAME` prints a line.
    #[schemars(length(min = 1))]
    pub users: BTreeMap<String, String>,
    /// Path prefixes that stay open.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<String>,
}

fn restricted() -> String {
    "Restricted".to_owned()
}

/// How often one visitor may ask.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// This many requests …
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// … in this time.
    #[serde(default = "one_second")]
    pub per: Seconds,
    /// How many at once after a rest; `requests` by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
}

fn one_second() -> Seconds {
    Seconds(1)
}

/// The access log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Whether requests are logged, a line for each; on by default.
    pub requests: bool,
    /// Whether the query is part of the line; it may carry tokens.
    pub query: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            requests: true,
            query: false,
        }
    }
}

impl Front {
    /// How responses are compressed; `None` for not at all.
    pub fn compression(&self) -> Option<Compression> {
        match self.compression.as_ref()? {
            CompressionForm::Switch(false) => None,
            CompressionForm::Switch(true) => Some(Compression::default()),
            CompressionForm::Full(compression) => Some(compression.clone()),
        }
    }
}
