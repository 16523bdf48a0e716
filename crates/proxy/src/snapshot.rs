//! The routing snapshot: everything the proxy knows, as one JSON document.
//!
//! ```json
//! {
//!   "format": 1,
//!   "generation": 7,
//!   "services": [
//!     {
//!       "name": "shop-web",
//!       "hosts": ["shop.example.com"],
//!       "tls": { "certificate": { "named": "shop" } },
//!       "upstreams": ["172.18.0.5:3000"],
//!       "health_check": { "path": "/up" }
//!     }
//!   ]
//! }
//! ```
//!
//! `SNAPSHOT.md` beside this crate's manifest is the page for people: every key with type, range and default.
//!
//! Every key that is left out has the default named at its field; unknown keys are errors.
//! Times are whole milliseconds, sizes are bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::compress::Coding;
use crate::names::{CertificateName, HostPattern, PathPrefix, ServiceName, UpstreamAddress};

/// The only value of `format` that this version reads and writes.
pub const FORMAT: u32 = 1;

/// The whole routing state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Version of this document's shape: [`FORMAT`].
    pub format: u32,
    /// Counts the changes; higher is newer.
    #[serde(default)]
    pub generation: u64,
    /// The boot of the machine in which it was written; absent in a file that a person edits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Services of an earlier boot that nobody has put again yet: their requests wait (see [`crate::hold`]).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub held: BTreeSet<ServiceName>,
    /// Settings that concern every service.
    #[serde(default)]
    pub settings: Settings,
    /// The services; names are unique, and no two own the same host and prefix.
    #[serde(default)]
    pub services: Vec<Service>,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            format: FORMAT,
            generation: 0,
            boot: None,
            held: BTreeSet::new(),
            settings: Settings::default(),
            services: Vec::new(),
        }
    }
}

impl Snapshot {
    /// Every rule that is broken, for people; empty when the proxy would serve it.
    pub fn problems(&self) -> Vec<String> {
        let problems = crate::check::problems(self).into_iter();
        problems.map(|problem| problem.message).collect()
    }
}

/// Settings of the proxy as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Networks (`10.0.0.0/8`, `2400:cb00::/32`) whose `X-Forwarded-*` headers are believed. None by default.
    pub trusted_proxies: Vec<String>,
    /// Header field in which they name the visitor's address, such as `CF-Connecting-IP`; `X-Forwarded-For` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ip_header: Option<String>,
    /// Whether upstreams also get a `Forwarded` field (RFC 7239). False.
    pub forwarded: bool,
    /// Most connections of one visitor (IPv6: one /64) at once; trusted proxies are not counted. Unlimited when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_per_ip: Option<u32>,
    /// Port that redirects to HTTPS name, when visitors reach it by another than the one listened on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_https_port: Option<u16>,
    /// Ports whose connections begin with a header of the PROXY protocol, version 1 or 2. None by default.
    ///
    /// A connection there without one is closed: only a load balancer may reach such a port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_protocol_ports: Vec<u16>,
    /// Longest time until a request's head has arrived, also between requests' first and last byte. 15 s.
    #[serde(with = "millis", rename = "header_timeout_ms")]
    pub header_timeout: Duration,
    /// How long a client connection may stay silent between requests. 75 s.
    #[serde(with = "millis", rename = "idle_timeout_ms")]
    pub idle_timeout: Duration,
    /// Most bytes of a request's head, request line included. 32 KiB; more is answered with 431.
    pub max_header_bytes: usize,
    /// Most header fields of a request. 100; more is answered with 431.
    pub max_header_count: usize,
    /// Most client connections at once. 16,384; further ones wait in the kernel's queue.
    pub max_connections: usize,
    /// Whether visitors of hosts without a certificate wait for one, which the agent may have made. False.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub on_demand: bool,
    /// Most bytes on disk of all bodies that are held back together; one service has at most a quarter. 4 GiB.
    pub spool_max_bytes: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trusted_proxies: Vec::new(),
            client_ip_header: None,
            forwarded: false,
            connections_per_ip: None,
            public_https_port: None,
            proxy_protocol_ports: Vec::new(),
            header_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(75),
            max_header_bytes: 32 << 10,
            max_header_count: 100,
            max_connections: 16_384,
            on_demand: false,
            spool_max_bytes: 4 << 30,
        }
    }
}

/// One app role that is reachable: which requests, to which upstreams, how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Unique name; a service with the same name replaces this one.
    pub name: ServiceName,
    /// Hosts it answers for; none means every host that no other service names.
    #[serde(default)]
    pub hosts: Vec<HostPattern>,
    /// Path prefixes it answers for. `["/"]`.
    #[serde(default = "root_prefix")]
    pub path_prefixes: Vec<PathPrefix>,
    /// Whether the matched prefix is taken off before the upstream sees the path. True, as in Kamal.
    #[serde(default = "yes")]
    pub strip_path_prefix: bool,
    /// TLS; absent means plain HTTP only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Where the app listens; at least one. Requests go to the one with the fewest in flight.
    pub upstreams: Vec<UpstreamAddress>,
    /// What is spoken with every upstream. HTTP/1.1.
    #[serde(default, skip_serializing_if = "UpstreamProtocol::is_default")]
    pub upstream_protocol: UpstreamProtocol,
    /// Further upstreams for GET and HEAD; the others are then the writers. None by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub read_upstreams: Vec<UpstreamAddress>,
    /// Whether WebSockets go to the readers. False.
    #[serde(default)]
    pub read_websockets: bool,
    /// How long a client stays with the writers after a write; 0 turns it off. 1 s, as in kamal-proxy.
    #[serde(default = "one_second", with = "millis", rename = "writer_affinity_ms")]
    pub writer_affinity: Duration,
    /// A second release that gets part of the requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// How an upstream shows that it can take requests.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// Longest wait for the response's head; then 504. 30 s, as in Kamal.
    #[serde(default = "thirty_seconds", with = "millis", rename = "response_timeout_ms")]
    pub response_timeout: Duration,
    /// Whether `X-Forwarded-*` of the client are kept, whoever the client is. False.
    ///
    /// Kamal turns it on for services without TLS; the list of trusted proxies is the better way.
    #[serde(default)]
    pub forward_headers: bool,
    /// Every other of `hosts` is redirected to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canonical_host: Option<HostPattern>,
    /// Size limits.
    #[serde(default)]
    pub limits: Limits,
    /// Bodies that are held back until they are complete; everything streams when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffering: Option<Buffering>,
    /// Access log.
    #[serde(default)]
    pub log: Log,
    /// Response headers set on every answer of this service, such as `Strict-Transport-Security`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub response_headers: BTreeMap<String, String>,
    /// Paths that are answered with a redirect; the first that fits counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub redirects: Vec<Redirect>,
    /// Who may come in; everybody when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Compression of responses; none when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression: Option<Compression>,
    /// Pages of the proxy's own answers by status, HTML with `{{ .Message }}`; the built-in ones where there is none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub error_pages: BTreeMap<u16, String>,
    /// Whether requests are let through; changed by pause, stop and resume, kept over switches.
    #[serde(default, skip_serializing_if = "Gate::is_open")]
    pub gate: Gate,
}

impl Service {
    /// A service with every default, for `hosts` and `upstreams`.
    pub fn new(name: ServiceName, hosts: Vec<HostPattern>, upstreams: Vec<UpstreamAddress>) -> Self {
        Self {
            name,
            hosts,
            path_prefixes: root_prefix(),
            strip_path_prefix: true,
            tls: None,
            upstreams,
            upstream_protocol: UpstreamProtocol::Http1,
            read_upstreams: Vec::new(),
            read_websockets: false,
            writer_affinity: one_second(),
            canary: None,
            health_check: HealthCheck::default(),
            response_timeout: thirty_seconds(),
            forward_headers: false,
            canonical_host: None,
            limits: Limits::default(),
            buffering: None,
            log: Log::default(),
            response_headers: BTreeMap::new(),
            redirects: Vec::new(),
            auth: None,
            compression: None,
            error_pages: BTreeMap::new(),
            gate: Gate::Open,
        }
    }
}

impl Service {
    /// How its upstreams are asked, with the protocol settled.
    pub(crate) fn settled_health_check(&self) -> HealthCheck {
        let mut check = self.health_check.clone();
        check.protocol.get_or_insert(self.upstream_protocol);
        check
    }

    /// Every address that it may send requests to.
    pub fn every_upstream(&self) -> impl Iterator<Item = &UpstreamAddress> + Clone {
        let canary = self.canary.iter().flat_map(|canary| &canary.upstreams);
        self.upstreams.iter().chain(canary).chain(&self.read_upstreams)
    }
}

/// What is spoken with an upstream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 in the clear, by prior knowledge (RFC 9113 §3.3): what gRPC servers speak.
    H2c,
}

impl UpstreamProtocol {
    fn is_default(&self) -> bool {
        *self == Self::Http1
    }
}

/// A release that gets part of the requests: by header, by cookie, or by share.
///
/// The app may set the cookie `kamal-rollout`; else the proxy sets one of its own, so that a client stays where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// Where it listens; at least one.
    pub upstreams: Vec<UpstreamAddress>,
    /// Share of the clients, 0 to 100. 0.
    #[serde(default)]
    pub percent: f64,
    /// Values of the cookie that choose it whatever the share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// A header field that chooses it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<CanaryHeader>,
}

/// A header field that chooses the canary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CanaryHeader {
    /// Its name.
    pub name: String,
    /// The value it must have.
    pub value: String,
}

/// TLS of a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Whether plain HTTP is redirected to HTTPS (301 for GET and HEAD, 308 for the rest). True.
    #[serde(default = "yes")]
    pub redirect: bool,
    /// Which certificate is shown.
    pub certificate: Certificate,
}

/// Where a service's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Certificate {
    /// Signed by the local CA in the proxy's state directory, which is created when absent: for development.
    LocalCa,
    /// Each host shows its own certificate, handed over as [`CertificateName::of_host`]; a host without one costs only
    /// itself.
    PerHost {
        /// Hosts that show one of the local CA while they have none of their own.
        #[serde(default)]
        local_ca: Vec<HostPattern>,
    },
    /// Handed over earlier under this name by `put_certificate`.
    Named(CertificateName),
    /// PEM files that the proxy can read; read again when they change.
    Files {
        /// The certificate chain, leaf first.
        chain: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// How an upstream shows that it can take requests: `GET path` answered with 2xx.
///
/// Over h2c the path `/grpc.health.v1.Health/Check` is asked as gRPC's health checking protocol says (with `POST`, for
/// the server as a whole) and must answer `SERVING`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HealthCheck {
    /// Path and query. `/up`.
    pub path: String,
    /// Value of the `Host` header; the upstream's address when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Port, when it differs from the upstream's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// What is spoken to ask; what the service speaks with its upstreams when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<UpstreamProtocol>,
    /// Pause between two tries. 1 s.
    #[serde(with = "millis", rename = "interval_ms")]
    pub interval: Duration,
    /// Longest time for one try. 5 s.
    #[serde(with = "millis", rename = "timeout_ms")]
    pub timeout: Duration,
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            path: "/up".into(),
            host: None,
            port: None,
            protocol: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        }
    }
}

/// A path that is answered with a redirect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// The path; ending in `/*` it stands for everything below it too.
    pub from: String,
    /// Where to: a path or a URL; ending in `/*` it gets what `from`'s star stood for. The query goes along.
    pub to: String,
    /// 301, 302, 303, 307 or 308. 301.
    #[serde(default = "moved")]
    pub status: u16,
}

fn moved() -> u16 {
    301
}

/// Basic authentication.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// What browsers show. `Restricted`.
    #[serde(default = "restricted")]
    pub realm: String,
    /// Bcrypt hashes (as `htpasswd -B` makes them) by user name; at least one.
    pub users: BTreeMap<String, String>,
    /// Path prefixes that stay open, such as a webhook's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<PathPrefix>,
}

fn restricted() -> String {
    "Restricted".into()
}

/// Compression of responses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Compression {
    /// Codings, the preferred one first. zstd, br, gzip.
    pub codings: Vec<Coding>,
    /// Announced bodies below this many bytes stay as they are. 1024.
    pub min_bytes: u64,
    /// Media types; `text/*` stands for all that begin so. Text, JSON, XML, JavaScript, WebAssembly, SVG, fonts.
    pub types: Vec<String>,
}

impl Default for Compression {
    fn default() -> Self {
        let types = [
            "text/*",
            "application/json",
            "application/ld+json",
            "application/javascript",
            "application/manifest+json",
            "application/wasm",
            "application/xml",
            "application/rss+xml",
            "application/atom+xml",
            "application/xhtml+xml",
            "application/vnd.ms-fontobject",
            "application/x-ndjson",
            "image/svg+xml",
            "font/otf",
            "font/ttf",
        ];
        Self {
            codings: vec![Coding::Zstd, Coding::Br, Coding::Gzip],
            min_bytes: 1024,
            types: types.map(str::to_owned).into(),
        }
    }
}

/// Limits of a service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most bytes of a request body; more is answered with 413. Unlimited when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_request_body: Option<u64>,
    /// Most requests a second of one visitor (IPv6: one /64) over time; more is answered with 429. Unlimited when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<f64>,
    /// How many may come at once after a rest; `requests_per_second` when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Bodies that are held back until they are complete: in memory, then in files without a name.
///
/// WebSockets, `text/event-stream`, gRPC and responses with `X-Accel-Buffering: no` are never held back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Buffering {
    /// Whether an upstream sees a request only when all of it is here. False.
    pub requests: bool,
    /// Whether a client gets a response only when all of it is here. False.
    pub responses: bool,
    /// Bytes of each body that stay in memory. 1 MiB, as in Kamal.
    pub memory_bytes: u64,
    /// Most bytes of a response that is held back; more is answered with 500, as in kamal-proxy. Unlimited when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_response_body: Option<u64>,
}

impl Default for Buffering {
    fn default() -> Self {
        Self {
            requests: false,
            responses: false,
            memory_bytes: 1 << 20,
            max_response_body: None,
        }
    }
}

/// What of a service's requests is logged.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Whether each request gets a line. False.
    pub requests: bool,
    /// Whether the line holds the query, which may carry tokens. False.
    pub query: bool,
    /// Request header fields in the line, each as `req_` and its name in lower case with `_`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<String>,
    /// Response header fields in the line, each as `resp_` and its name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub response_headers: Vec<String>,
}

/// Whether a service lets requests through.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state", deny_unknown_fields)]
pub enum Gate {
    /// Requests go to the upstreams.
    #[default]
    Open,
    /// Requests wait, each at most this long, then get 504.
    Paused {
        /// Longest wait.
        #[serde(with = "millis", rename = "max_wait_ms")]
        max_wait: Duration,
    },
    /// Requests get 503 with this message.
    Stopped {
        /// Shown on the page; may be empty.
        #[serde(default)]
        message: String,
    },
}

impl Gate {
    /// Whether requests go through.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Open)
    }
}

fn root_prefix() -> Vec<PathPrefix> {
    vec![PathPrefix::root()]
}

fn yes() -> bool {
    true
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

fn thirty_seconds() -> Duration {
    Duration::from_secs(30)
}

/// Durations as whole milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}

#[cfg(test)]
mod tests;
