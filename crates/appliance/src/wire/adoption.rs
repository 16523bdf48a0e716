//! What of a stock Kamal host would be taken over.

use serde::{Deserialize, Serialize};

/// The plan of an adoption, without secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adoption {
    /// The image of kamal-proxy's container, if there is one.
    pub proxy: Option<String>,
    /// Apps that would be taken over.
    pub apps: Vec<AdoptedApp>,
    /// Hosts whose certificates would be taken over, with their authority.
    pub certificates: Vec<(String, String)>,
    /// Accessories whose routes would be taken over.
    pub accessories: Vec<AdoptedRole>,
    /// What somebody should know.
    pub notes: Vec<String>,
    /// Why it cannot be done; nothing is changed while there is one.
    pub refusals: Vec<String>,
    /// Apps that were taken over before and can be given back with `--undo`.
    pub undo: Vec<String>,
    /// A digest of all this: a signed adoption names it, so that nothing else is done than was shown.
    pub digest: String,
}

/// One app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedApp {
    /// `service` or `service@destination`.
    pub app: String,
    /// The version in the container's name.
    pub version: String,
    /// The image's name.
    pub image: String,
    /// Its roles.
    pub roles: Vec<AdoptedRole>,
    /// Whether it answers with the maintenance page, and goes on to.
    pub stopped: bool,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdoptedRole {
    /// The role; an accessory's proxy service.
    pub role: String,
    /// The container's name or id.
    pub container: String,
    /// Hosts, paths, port and TLS in words; none without visitors.
    pub route: Option<String>,
}
