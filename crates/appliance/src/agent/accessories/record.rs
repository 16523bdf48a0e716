//! What the host remembers of each accessory.

use std::collections::BTreeMap;

use appliance_accessories::{Goal, Shape, Upgrade};
use appliance_push::change::{Accessory, Fingerprint};
use appliance_state::store::StoreError;
use appliance_state::{Key, Ledger, LedgerError, Store};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Which;

const SCHEMA: u32 = 1;

/// One accessory. Secrets and files are in it only as they were sealed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What the configuration says; absent only in a ledger that was never written.
    #[serde(default)]
    pub definition: Option<Box<Accessory>>,
    /// Who signed that.
    #[serde(default)]
    pub signer: Option<Fingerprint>,
    /// When it was accepted.
    #[serde(default)]
    pub at: Timestamp,
    /// Whether it should run.
    #[serde(default)]
    pub goal: Goal,
    /// Mixed into hashes of secrets, so that they cannot be looked up in a table.
    #[serde(default)]
    pub salt: String,
    /// The image it is pinned to.
    #[serde(default)]
    pub pin: Option<Pin>,
    /// The container as it was made.
    #[serde(default)]
    pub made: Option<Made>,
    /// Data that is elsewhere than the definition says, by path in the container: a volume's name or a path on the host.
    #[serde(default)]
    pub sources: BTreeMap<String, String>,
    /// The last upgrade.
    #[serde(default)]
    pub upgrade: Option<Moving>,
}

/// An image that does not float.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// As the configuration names it.
    pub image: String,
    /// The engine's id.
    pub id: String,
    /// `repository@sha256:…`, by which a registry has it; absent for images that came another way.
    pub digest: Option<String>,
}

impl Pin {
    /// For people: the digest's first digits.
    pub fn short(&self) -> &str {
        let digest = self
            .digest
            .as_deref()
            .and_then(|digest| digest.split_once('@'))
            .map_or(self.id.as_str(), |(_, digest)| digest);
        let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
        hex.get(..12).unwrap_or(hex)
    }
}

/// A container, and how it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Its id.
    pub container: String,
    /// Its settings, as Docker told them right after.
    pub shape: Shape,
    /// What it was made from; absent for one that somebody else made.
    pub definition: Option<Box<Accessory>>,
    /// Hash of the definition with its secrets and files.
    pub hash: String,
    /// How it differed from the configuration when it was taken over.
    #[serde(default)]
    pub foreign: Vec<String>,
    /// Its image.
    pub pin: Pin,
}

/// An upgrade with both sides.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moving {
    /// Where it is.
    pub state: Upgrade,
    /// From before.
    pub old: Version,
    /// Of the upgrade.
    pub new: Version,
    /// When it began.
    pub at: Timestamp,
    /// Whether somebody said that no backup is to come first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_backup: bool,
}

/// One side of an upgrade.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// What runs.
    pub definition: Box<Accessory>,
    /// Its image.
    pub pin: Pin,
    /// See [`Record::sources`].
    pub sources: BTreeMap<String, String>,
    /// PostgreSQL's major version, if it is that.
    pub major: Option<u32>,
    /// The data that goes with this side alone: a volume's name or a path on the host.
    pub data: Option<String>,
}

/// The ledgers of all accessories.
#[derive(Debug, Clone)]
pub struct Records {
    store: Store,
    space: Key,
}

/// A record cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The names cannot be a file name.
    #[error("{0} cannot name an accessory here")]
    Name(Which),
    /// The directory of records cannot be used.
    #[error("cannot open the record of {which}")]
    Store {
        /// Which one.
        which: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// The record cannot be read or written.
    #[error("cannot use the record of {which}")]
    Ledger {
        /// Which one.
        which: String,
        /// Why.
        #[source]
        source: LedgerError,
    },
}

impl Records {
    /// The records under the agent's state directory.
    pub fn new(store: Store) -> Self {
        Self {
            store,
            space: Key::new("accessories").expect("our own names are good keys"),
        }
    }

    /// Every accessory of this host, and what is wrong with records that cannot be read.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn all(&self) -> Result<(Vec<Which>, Vec<RecordError>), RecordError> {
        let keys = self
            .store
            .keys(&self.space)
            .map_err(|source| RecordError::Store {
                which: "the accessories".to_owned(),
                source,
            })?;
        let (mut found, mut damaged) = (Vec::new(), Vec::new());
        for key in &keys {
            let Some((name, app)) = key.as_str().split_once('@') else {
                continue;
            };
            let which = Which {
                app: app.to_owned(),
                name: name.to_owned(),
            };
            match self.read(&which) {
                Ok(record) if record.definition.is_some() => found.push(which),
                Ok(_) => {}
                Err(error) => damaged.push(error),
            }
        }
        Ok((found, damaged))
    }

    fn ledger(&self, which: &Which) -> Result<Ledger<Record>, RecordError> {
        // No accessory's name holds an `@`, so the two cannot run into each other.
        let key = Key::new(format!("{}@{}", which.name, which.app))
            .map_err(|_| RecordError::Name(which.clone()))?;
        self.store
            .keyed(&self.space, &key, SCHEMA)
            .map_err(|source| RecordError::Store {
                which: which.to_string(),
                source,
            })
    }

    /// The record; the default for one that was never written.
    ///
    /// # Errors
    /// When it is unreadable or damaged.
    pub fn read(&self, which: &Which) -> Result<Record, RecordError> {
        let snapshot = self.ledger(which)?.read().map_err(|source| RecordError::Ledger {
            which: which.to_string(),
            source,
        })?;
        Ok(snapshot.data)
    }

    /// Changes the record and returns it once it is on disk.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn update(&self, which: &Which, change: impl FnOnce(&mut Record)) -> Result<Record, RecordError> {
        let (record, _) = self
            .ledger(which)?
            .update(|record| {
                if record.salt.is_empty() {
                    record.salt = super::hex8();
                }
                change(record);
                record.clone()
            })
            .map_err(|source| RecordError::Ledger {
                which: which.to_string(),
                source,
            })?;
        Ok(record)
    }

    /// Forgets it.
    ///
    /// # Errors
    /// When its name is none.
    pub fn forget(&self, which: &Which) -> Result<(), RecordError> {
        if let Err(error) = self.ledger(which)?.remove() {
            tracing::warn!(error = &error as &dyn std::error::Error, "a record stays behind");
        }
        Ok(())
    }
}
