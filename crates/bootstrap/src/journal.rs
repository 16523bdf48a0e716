//! What a run wrote down before it acted, so that the next one can finish what was cut off.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::host::{Host, HostError, Owner};
use crate::want::Handler;

/// Where the journal lies.
pub const PATH: &str = "/var/lib/appliance/bootstrap/journal.json";

/// The journal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    /// The step that was begun and not ended.
    #[serde(default)]
    pub step: Option<String>,
    /// Reloads and restarts that this step, or an earlier one, still owes.
    #[serde(default)]
    pub owed: Vec<Handler>,
    /// Version of the binary that last completed a run.
    #[serde(default)]
    pub completed: Option<String>,
}

impl Journal {
    /// The journal of this host; a missing or damaged one is an empty one, because every step can be repeated.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(host: &dyn Host) -> Result<Self, HostError> {
        Ok(host
            .read(Path::new(PATH))?
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default())
    }

    /// Writes it down, durably.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, host: &dyn Host) -> Result<(), HostError> {
        let bytes = serde_json::to_vec_pretty(self).expect("texts and lists always serialise");
        host.write(Path::new(PATH), &bytes, 0o600, &Owner::root())
    }

    /// Adds what a step will owe.
    pub(crate) fn owe(&mut self, handlers: &[Handler]) {
        for handler in handlers {
            if !self.owed.contains(handler) {
                self.owed.push(handler.clone());
            }
        }
    }
}
