//! Accessories in a status.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::lease::Holder;

/// One accessory on one host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Accessory {
    /// `service` or `service@destination`.
    pub app: String,
    /// Its name in the configuration.
    pub name: String,
    /// Its container's name.
    pub container: String,
    /// Its image as configured.
    pub image: String,
    /// First digits of the digest it is pinned to.
    pub pinned: String,
    /// `running`, `exited`, `missing`, `unknown` while Docker does not answer.
    pub state: String,
    /// `running` or `stopped`: what somebody asked for.
    pub wanted: String,
    /// What a health check or the server's own client says, when it can be asked.
    pub healthy: Option<bool>,
    /// Who said so, and what.
    pub health: String,
    /// How often Docker's restart policy has started it again.
    pub restarts: u64,
    /// Ends in a row that Docker left to us.
    pub failures: u32,
    /// When it is started again.
    pub next_try: Option<Timestamp>,
    /// `address:port → port in the container`.
    pub ports: Vec<String>,
    /// How it differs from the configuration, and what was changed by hand.
    pub drift: Vec<String>,
    /// The last upgrade.
    pub upgrade: Option<String>,
    /// What keeps it from being as it should.
    pub problem: Option<String>,
    /// Who changes it at this moment.
    pub changing: Option<Holder>,
    /// What was sent last, without secrets and files, to be compared with the configuration here.
    #[serde(default)]
    pub canonical: String,
}
