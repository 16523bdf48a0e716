//! The control socket: HTTP/1.1 with JSON bodies over a Unix socket that only its owner may open.
//!
//! | request | meaning |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/snapshot` | the whole [`crate::Snapshot`] |
//! | `POST /v1/probe` | [`Probe`] → [`Probed`] |
//! | `GET /v1/services` | list of [`ServiceStatus`] |
//! | `PUT /v1/services` | [`Batch`] → [`Applied`]: several services in one step |
//! | `PUT /v1/services/{name}` | [`crate::Service`] → [`Applied`] |
//! | `DELETE /v1/services/{name}` | → [`Applied`] |
//! | `GET /v1/services/{name}/stats` | [`ServiceStats`] |
//! | `POST /v1/services/{name}/drain` | [`Drain`] → [`Drained`] |
//! | `POST /v1/services/{name}/gate` | [`crate::snapshot::Gate`] → [`Applied`] |
//! | `PUT /v1/certificates/{name}` | [`CertificatePem`] → [`Applied`] |
//! | `DELETE /v1/certificates/{name}` | → [`Applied`] |
//! | `PUT /v1/settings` | [`crate::snapshot::Settings`] → [`Applied`] |
//! | `PUT /v1/challenge`, `DELETE /v1/challenge` | [`crate::Challenge`] → `null` |
//!
//! Every step may be repeated: the same request a second time changes nothing and says so.
//! A refusal is a [`Refusal`] with status 4xx; nothing was changed then.

mod client;
mod server;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::client::{Client, ControlError};
pub(crate) use self::server::{bind, resident_bytes, serve};
use crate::names::{ServiceName, UpstreamAddress};
use crate::snapshot::{HealthCheck, Service, millis};

/// Asks to wait until every upstream answers its health check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Which upstreams; at least one.
    pub upstreams: Vec<UpstreamAddress>,
    /// What to ask of them.
    #[serde(default)]
    pub health_check: HealthCheck,
    /// Longest time for all of them together.
    #[serde(with = "millis", rename = "timeout_ms")]
    pub timeout: Duration,
}

/// The outcome of a [`Probe`]; every upstream is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// One entry for each upstream asked for, in that order.
    pub upstreams: Vec<ProbedUpstream>,
}

impl Probed {
    /// Whether all answered.
    pub fn all_healthy(&self) -> bool {
        self.upstreams.iter().all(|upstream| upstream.failure.is_none())
    }
}

/// How one upstream fared in a [`Probe`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbedUpstream {
    /// Which one.
    pub upstream: UpstreamAddress,
    /// How often it was asked.
    pub tries: u32,
    /// How long it took until the first 2xx, or until giving up.
    #[serde(with = "millis", rename = "took_ms")]
    pub took: Duration,
    /// Why the last try failed; absent when healthy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<ProbeFailure>,
}

/// Why one health check failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum ProbeFailure {
    /// Nothing accepts connections there.
    Connect {
        /// The system's words.
        error: String,
    },
    /// It accepted, but did not answer as HTTP does.
    Protocol {
        /// What went wrong.
        error: String,
    },
    /// It answered with another status than 2xx.
    Status {
        /// The status.
        status: u16,
        /// Where a redirect points; it is not followed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        location: Option<String>,
    },
    /// No answer within the time for one try.
    Timeout {
        /// That time in milliseconds.
        timeout_ms: u64,
    },
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect { error } => write!(f, "cannot connect: {error}"),
            Self::Protocol { error } => write!(f, "no valid HTTP answer: {error}"),
            Self::Status { status, location } => {
                write!(f, "answered {status}")?;
                if let Some(location) = location {
                    write!(f, " (to {location})")?;
                }
                f.write_str(", expected 2xx")
            }
            Self::Timeout { timeout_ms } => write!(f, "no answer within {timeout_ms} ms"),
        }
    }
}

/// Several services changed in one step: all of it becomes live at once, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Batch {
    /// Services to make live, each in place of a former one of its name.
    #[serde(default)]
    pub put: Vec<Service>,
    /// Services to take away; fine when they are not there.
    #[serde(default)]
    pub remove: Vec<ServiceName>,
}

/// The outcome of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// Generation of the snapshot that is now live.
    pub generation: u64,
    /// False when the request described what already was.
    pub changed: bool,
    /// Upstreams that this service used before and does not use now; they finish what they have.
    #[serde(default)]
    pub draining: Vec<UpstreamAddress>,
}

/// Asks to wait until an upstream that was switched away from has nothing in flight.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drain {
    /// Which one; it must not be among the service's upstreams now.
    pub upstream: UpstreamAddress,
    /// When requests still in flight are cut off.
    #[serde(with = "millis", rename = "timeout_ms")]
    pub timeout: Duration,
}

/// The outcome of a [`Drain`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// Requests that ended by themselves while we waited.
    pub finished: u64,
    /// Requests cut off at the timeout.
    pub cut: u64,
    /// Tunnels (WebSockets) that ended by themselves.
    pub tunnels_finished: u64,
    /// Tunnels closed at the timeout.
    pub tunnels_cut: u64,
}

/// A certificate chain with its key, PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificatePem {
    /// Leaf first, then intermediates.
    pub chain: String,
    /// PKCS#8, PKCS#1 or SEC1.
    pub key: String,
}

impl fmt::Debug for CertificatePem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificatePem")
            .field("chain", &self.chain)
            .finish_non_exhaustive()
    }
}

/// One service with what is known about it now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// What was asked for.
    pub service: Service,
    /// Each upstream's state.
    pub upstreams: Vec<UpstreamStatus>,
    /// Whether it was stored before the machine's last boot and has to be put again before requests pass.
    #[serde(default)]
    pub held: bool,
    /// Upstreams switched away from that still have something in flight.
    pub draining: Vec<UpstreamStatus>,
    /// Why the service cannot be served in full, such as a certificate that does not load.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// One upstream now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Which one.
    pub upstream: UpstreamAddress,
    /// Whether requests are sent there.
    pub healthy: bool,
    /// Requests in flight, tunnels not counted.
    pub in_flight: u64,
    /// Open tunnels (WebSockets).
    pub tunnels: u64,
    /// Why the last health check failed, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ProbeFailure>,
}

/// Counts of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStats {
    /// Everything since the proxy started, answers made by the proxy itself included.
    pub total: Counts,
    /// For each upstream in use, since it joined: the numbers of a watch window.
    pub upstreams: Vec<UpstreamStats>,
}

/// Counts of one upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStats {
    /// Which one.
    pub upstream: UpstreamAddress,
    /// Since it joined.
    pub counts: Counts,
}

/// Requests by outcome and by time to the end of the response's head.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests answered.
    pub requests: u64,
    /// Requests in flight now.
    pub in_flight: u64,
    /// Answers 1xx, 2xx, 3xx, 4xx, 5xx.
    pub by_class: [u64; 5],
    /// Requests that the upstream did not answer: connection failed, broken or timed out (a 502 or 504 is counted in `by_class` too).
    pub upstream_failures: u64,
    /// Sum of the times behind `latency`, in microseconds.
    #[serde(default)]
    pub latency_sum_us: u64,
    /// TLS sessions that clients made for it.
    #[serde(default)]
    pub tls_handshakes: u64,
    /// Bytes sent to upstreams.
    #[serde(default)]
    pub received_bytes: u64,
    /// Bytes sent to clients.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Requests that took at most [`crate::stats::BOUNDS_MS`]`[i]`, and in the last place those that took longer; not cumulative.
    pub latency: Vec<u64>,
}

impl Counts {
    /// The upper bound in milliseconds of the bucket in which the given share (0–1) of the requests ends.
    ///
    /// `None` without requests, or when the share ends beyond the last bound.
    pub fn quantile_ms(&self, share: f64) -> Option<f64> {
        crate::stats::quantile_ms(&self.latency, share)
    }
}

/// The proxy process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Time since start.
    #[serde(with = "millis", rename = "uptime_ms")]
    pub uptime: Duration,
    /// Generation of the live snapshot.
    pub generation: u64,
    /// Resident memory in bytes.
    pub rss: u64,
    /// Open client connections.
    pub connections: u64,
    /// How many services are served.
    pub services: usize,
    /// What is wrong but does not stop the proxy, one line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// Why a request on the control socket was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub code: RefusalCode,
    /// For people: what, where, why.
    pub message: String,
    /// The service that stands in the way, for [`RefusalCode::Conflict`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
}

/// Kinds of [`Refusal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCode {
    /// The request does not describe something possible.
    Invalid,
    /// Another service owns a host and prefix.
    Conflict,
    /// No such service, certificate or resource.
    NotFound,
    /// The certificate cannot be used.
    Certificate,
    /// Still in use.
    InUse,
    /// The change could not be written down.
    Storage,
}
