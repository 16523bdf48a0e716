//! What a change says about a command to run, and about containers to start or stop.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{EnvName, RoleName, Tag};

/// A command in a container of the app (`kamal app exec`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Whose container.
    pub role: RoleName,
    /// Program and arguments; no shell sees them.
    pub command: Vec<String>,
    /// In the running container instead of a new one.
    #[serde(default)]
    pub reuse: bool,
    /// With a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Leave it running and do not wait; only for a new container.
    #[serde(default)]
    pub detach: bool,
    /// Further environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<EnvName, String>,
    /// The app's version whose image is used; the current one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Tag>,
}

impl Exec {
    /// Whether its parts fit each other.
    pub(super) fn consistent(&self) -> Result<(), String> {
        if self.command.is_empty() {
            return Err("there is no command to run".to_owned());
        }
        if self.detach && (self.reuse || self.terminal) {
            return Err("a detached command has a container of its own and no terminal".to_owned());
        }
        Ok(())
    }
}

/// What to do with containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContainersAction {
    /// Start those of the current release, and route to them.
    Start,
    /// Take their routes away and stop them.
    Stop,
    /// Stop those of earlier releases that still run.
    StopStale,
}
