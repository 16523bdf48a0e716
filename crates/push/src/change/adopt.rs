//! Taking a host over from stock Kamal.

use serde::{Deserialize, Serialize};

use super::Digest;

/// What to do about the Kamal of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdoptAction {
    /// Take over its containers, routes and certificates.
    Take {
        /// Digest of the plan that was shown: nothing else is done.
        plan: Digest,
        /// Seconds for connections that are open in kamal-proxy.
        drain: u32,
    },
    /// Give everything back to kamal-proxy.
    Undo,
}
