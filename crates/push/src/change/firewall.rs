//! Changes of a host's firewall.

use serde::{Deserialize, Serialize};

use super::names::{NetworkName, PortsName};

/// What somebody wants of the firewall.
///
/// `session` names the connection a change comes over: the same one cannot confirm it, because its packets pass anyway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FirewallChange {
    /// Open ports; holds for a while, until confirmed.
    Allow {
        /// Which, as published on the host.
        ports: PortsName,
        /// For whom; everyone if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        from: Vec<NetworkName>,
        /// What for.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        comment: String,
        /// Yes, the port of a data store, for everyone.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        i_mean_it: bool,
        /// The connection this comes over.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        session: String,
    },
    /// Close again what a signed change opened; holds for a while, until confirmed.
    Deny {
        /// Which.
        ports: PortsName,
        /// Only the opening for these networks; every one of these ports if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        from: Vec<NetworkName>,
        /// Also end the connections that are open.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        kill: bool,
        /// The connection this comes over.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        session: String,
    },
    /// Keep an address out of SSH and everything else for a while.
    Ban {
        /// Which.
        address: NetworkName,
        /// For how long.
        seconds: u32,
    },
    /// Let it in again.
    Unban {
        /// Which.
        address: NetworkName,
    },
    /// Keep what is armed.
    Confirm {
        /// As the change was answered with.
        nonce: String,
        /// The connection this comes over.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        session: String,
    },
}

impl FirewallChange {
    /// The verb's stable name, as audit records show it.
    pub fn name(&self) -> &'static str {
        match self {
            FirewallChange::Allow { .. } => "firewall-allow",
            FirewallChange::Deny { .. } => "firewall-deny",
            FirewallChange::Ban { .. } => "firewall-ban",
            FirewallChange::Unban { .. } => "firewall-unban",
            FirewallChange::Confirm { .. } => "firewall-confirm",
        }
    }
}
