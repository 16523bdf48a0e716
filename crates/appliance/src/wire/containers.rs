//! What the agent tells of an app's containers, images and routes.

use serde::{Deserialize, Serialize};

/// A container of an app, in any state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRow {
    /// Short id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image it was made from, by name.
    pub image: String,
    /// The role it plays; absent for one-off commands.
    pub role: Option<String>,
    /// The app's version, from the release it runs.
    pub version: Option<String>,
    /// `running`, `exited`, …
    pub state: String,
    /// In Docker's words: `Up 3 hours (healthy)`.
    pub status: String,
    /// Whether it belongs to the release that serves.
    pub current: bool,
}

/// An image of an app in the host's Docker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRow {
    /// `repository:tag` names.
    pub names: Vec<String>,
    /// Docker's id, short.
    pub id: String,
    /// Manifest digest.
    pub digest: String,
    /// When it was built, RFC 3339, if known.
    pub created: Option<String>,
    /// Unpacked bytes.
    pub size: u64,
    /// Whether the release that serves runs it.
    pub current: bool,
}

/// A service of the proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteRow {
    /// Its name: `service-role[-destination]`.
    pub service: String,
    /// Hosts it answers for; empty for every host.
    pub hosts: Vec<String>,
    /// Path prefixes it answers for.
    pub paths: Vec<String>,
    /// Where requests go, and whether they do.
    pub targets: Vec<TargetRow>,
    /// `running`, or `stopped` in maintenance.
    pub state: String,
    /// Whether it has TLS.
    pub tls: bool,
    /// Why it cannot be served in full.
    pub problems: Vec<String>,
}

/// A target of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetRow {
    /// Its address.
    pub address: String,
    /// Whether requests are sent there.
    pub healthy: bool,
    /// Requests in flight.
    pub in_flight: u64,
}
