//! Accessories of this host: kept as their configuration says, whoever else touches Docker.
//!
//! ```text
//!   signed change ─► act ─┬─► record (ledger) ─► making, images, files ─► Docker
//!                         └─► upgrade ─► postgres
//!   Docker events, 30 s ─► keeper ─► appliance_accessories::keep ─► start, create, stop
//!                                 └► look: health, drift ─► status
//! ```
//!
//! One lease per accessory: a change and the keeper never work on the same one at the same time.

mod act;
mod adopt;
mod backup;
mod down;
mod exec;
mod files;
mod health;
mod image;
mod keeper;
mod look;
mod making;
mod output;
mod postgres;
mod proxied;
mod record;
mod remove;
mod run;
pub mod tunnel;
mod upgrade;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use appliance_accessories::Backoff;
use appliance_push::change::{Accessory, Digest};
use appliance_state::Store;
use jiff::Timestamp;
use tokio::sync::Notify;

pub use act::act;
pub use keeper::keep;
use record::{Record, Records};

use super::identity::IdentityError;
use super::lease::{Holder, Lease};
use super::{Agent, random};

/// Label on every container of an accessory: `app/name`.
pub const LABEL: &str = "appliance.accessory";
/// Who has a lease that nobody asked for.
const OURSELVES: &str = "agent";
/// Where files and directories of accessories are, below the agent's state.
const DATA: &str = "data";

/// Which accessory of which app.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Which {
    /// The app's id, `service` or `service@destination`.
    pub app: String,
    /// The accessory's name.
    pub name: String,
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.app, self.name)
    }
}

/// What is known of an accessory until the agent ends.
#[derive(Debug, Clone, Default)]
pub struct Live {
    backoff: Backoff,
    health: Option<health::Verdict>,
    /// Since when it is not well.
    unwell: Option<Timestamp>,
    drift: Vec<String>,
    problem: Option<String>,
}

/// Everything the agent holds for accessories.
pub struct Accessories {
    records: Records,
    data: PathBuf,
    host_yml: PathBuf,
    live: Mutex<BTreeMap<Which, Live>>,
    tickets: tunnel::Tickets,
    wake: Notify,
}

impl Accessories {
    /// Over the agent's state in `state`; `config` is where `host.yml` is.
    pub fn new(store: Store, state: &Path, config: &Path) -> Self {
        Self {
            records: Records::new(store),
            data: state.join(DATA),
            host_yml: config.join("host.yml"),
            live: Mutex::default(),
            tickets: tunnel::Tickets::default(),
            wake: Notify::new(),
        }
    }

    /// The directory of one accessory's files.
    fn directory(&self, definition: &Accessory) -> PathBuf {
        self.data.join(definition.container.as_str())
    }

    fn live(&self, which: &Which) -> Live {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(which).cloned().unwrap_or_default()
    }

    fn note(&self, which: &Which, change: impl FnOnce(&mut Live)) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        change(live.entry(which.clone()).or_default());
    }

    fn forget(&self, which: &Which) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.remove(which);
    }
}

/// The secrets and files of a definition, opened.
#[derive(Default)]
pub struct Opened(BTreeMap<String, String>);

impl Opened {
    fn get(&self, name: &str) -> Option<&String> {
        self.0.get(name)
    }
}

impl Agent {
    /// Whether an accessory is on this host; one whose record cannot be read is not taken for one that was removed.
    pub fn has_accessory(&self, which: &Which) -> bool {
        match self.accessories.records.read(which) {
            Ok(record) => record.definition.is_some(),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "{which} may be on this host"
                );
                true
            }
        }
    }

    fn open_accessory(&self, definition: &Accessory) -> Result<Opened, IdentityError> {
        use base64::Engine as _;
        let sealed = base64::engine::general_purpose::STANDARD
            .decode(&definition.sealed)
            .map_err(|_| IdentityError::Encoding)?;
        if sealed.is_empty() {
            return Ok(Opened::default());
        }
        self.identity.unseal(&sealed).map(Opened)
    }

    /// The lease on one accessory.
    ///
    /// # Errors
    /// Returns who has it.
    fn lease_accessory(&self, which: &Which, owner: &str, verb: &str) -> Result<Lease, Holder> {
        let holder = Holder {
            owner: owner.to_owned(),
            verb: verb.to_owned(),
            since: Timestamp::now(),
        };
        self.leases.acquire(&format!("accessory {which}"), holder)
    }

    /// The container that runs accessory `name` of `app`, for backups and the like; `None` if it was never booted here.
    ///
    /// # Errors
    /// When its record cannot be read, or Docker does not answer.
    pub async fn accessory_container(
        &self,
        app: &str,
        name: &str,
    ) -> anyhow::Result<Option<appliance_containers::engine::ContainerInfo>> {
        let which = Which {
            app: app.to_owned(),
            name: name.to_owned(),
        };
        let record = self.accessories.records.read(&which)?;
        self.container_of(&record).await
    }

    async fn container_of(
        &self,
        record: &Record,
    ) -> anyhow::Result<Option<appliance_containers::engine::ContainerInfo>> {
        if let Some(made) = &record.made
            && let Some(found) = self.docker.inspect(&made.container).await?
        {
            return Ok(Some(found));
        }
        match &record.definition {
            Some(definition) => Ok(self.docker.inspect(definition.container.as_str()).await?),
            None => Ok(None),
        }
    }
}

/// A value in a form that may be written down and compared, but not read.
fn hide(salt: &str, value: &str) -> String {
    Digest::of(format!("{salt}\0{value}").as_bytes())
        .short()
        .to_owned()
}

/// Sixteen random hexadecimal digits.
fn hex8() -> String {
    hex::encode(random::<8>())
}
