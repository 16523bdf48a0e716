//! Sections of `host.yml` about what the internet meets first: `acme:` and `proxy:`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::{CommandLine, Network, Seconds};

/// `acme:` — certificates for apps with `ssl: true`.
///
/// Without a `directory`, public names get theirs from Let's Encrypt, and names that no public authority issues for
/// (addresses, `.test`, `.localhost`, `.internal`, `.local` and the like) from the host's own CA.
/// With one, every name but `localhost` and addresses is asked for there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Acme {
    /// Whether any authority is asked; without, the host's own CA signs for every name.
    pub enabled: bool,
    /// URL of the authority's directory; Let's Encrypt's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https://[^\s/]+(/[^\s]*)?$"))]
    pub directory: Option<String>,
    /// Address that the authority may write to.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[^\s@]+@[^\s@]+$"))]
    pub email: Option<String>,
    /// PEM file with the root that the directory's own certificate is checked against; the system's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^/.+$"))]
    pub ca_file: Option<String>,
    /// Account that the authority knows by other means (External Account Binding).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_account: Option<ExternalAccount>,
    /// Which proof of control is given.
    pub challenge: AcmeChallenge,
    /// How DNS records are set, for wildcards and for hosts that the authority cannot reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<AcmeDns>,
    /// Profile to ask for, such as `shortlived`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Certificates for hosts that no app names, when their first visitor comes; off by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<OnDemand>,
}

/// Certificates when the first visitor comes, for an app without `host` whose customers bring their own domains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnDemand {
    /// URL that is asked with `?host=NAME`: 200 means that the host may have a certificate, anything else that it may not.
    #[schemars(regex(pattern = r"^https?://[^\s#]+$"))]
    pub ask: String,
    /// Most hosts that are served this way.
    #[serde(default = "a_thousand")]
    #[schemars(range(min = 1))]
    pub most: u32,
    /// Most questions within one hour.
    #[serde(default = "a_hundred")]
    #[schemars(range(min = 1))]
    pub per_hour: u32,
}

fn a_thousand() -> u32 {
    1_000
}

fn a_hundred() -> u32 {
    100
}

impl Default for Acme {
    fn default() -> Self {
        Self {
            enabled: true,
            directory: None,
            email: None,
            ca_file: None,
            external_account: None,
            challenge: AcmeChallenge::Auto,
            dns: None,
            profile: None,
            on_demand: None,
        }
    }
}

/// An account that the authority knows by other means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalAccount {
    /// The key's identifier.
    #[schemars(length(min = 1))]
    pub key_id: String,
    /// File with the MAC key as the authority shows it (base64url); readable by root only.
    #[schemars(regex(pattern = r"^/.+$"))]
    pub key_file: String,
}

/// Which proof of control is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AcmeChallenge {
    /// dns-01 for wildcards; else http-01, and tls-alpn-01 where that fails.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// A file on port 80.
    #[serde(rename = "http-01")]
    Http01,
    /// A handshake on port 443.
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// A DNS record.
    #[serde(rename = "dns-01")]
    Dns01,
}

/// A command that sets and removes DNS records.
///
/// It is started without a shell, with `present` or `cleanup` as its last argument and `ACME_ACTION`, `ACME_HOST`,
/// `ACME_RECORD` and `ACME_VALUE` in its environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AcmeDns {
    /// The command: words, or one line.
    pub command: CommandLine,
    /// How long one run may take.
    #[serde(default = "two_minutes")]
    pub timeout: Seconds,
    /// How long to wait after a record was set, so that every name server has it.
    #[serde(default = "ten_seconds")]
    pub propagation: Seconds,
}

fn two_minutes() -> Seconds {
    Seconds(120)
}

fn ten_seconds() -> Seconds {
    Seconds(10)
}

/// `proxy:` — what the proxy holds every visitor to, whichever app they visit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Edge {
    /// Networks of proxies in front of this host, such as a CDN's: what they say about a visitor is believed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<Network>,
    /// Header field in which they name the visitor's address, such as `CF-Connecting-IP`; `X-Forwarded-For` by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9-]+$"))]
    pub client_ip_header: Option<String>,
    /// Whether apps are also told by a `Forwarded` field (RFC 7239).
    pub forwarded: bool,
    /// Connections at the same time.
    #[schemars(range(min = 16, max = 1_048_576))]
    pub max_connections: u32,
    /// Connections of one address (IPv6: one /64) at the same time; unlimited by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub connections_per_ip: Option<u32>,
}

impl Default for Edge {
    fn default() -> Self {
        Self {
            trusted_proxies: Vec::new(),
            client_ip_header: None,
            forwarded: false,
            max_connections: 16_384,
            connections_per_ip: None,
        }
    }
}
