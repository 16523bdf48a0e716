//! The keys a host knows and what each may do.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::change::{AppName, BadName, Destination, Fingerprint, Power};
use crate::sign::{PublicKey, SignError};

/// Longest comment in bytes.
const COMMENT_LIMIT: usize = 256;

/// What a key may do; each includes the ones below it for the same apps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Permission {
    /// Everything, keys included.
    Admin,
    /// Releases and rollbacks of these apps, and [`Permission::Operate`].
    Deploy {
        /// Which apps.
        apps: Vec<AppPattern>,
    },
    /// Restart, stop, start, exec and logs of these apps, and [`Permission::Read`].
    Operate {
        /// Which apps.
        apps: Vec<AppPattern>,
    },
    /// State of these apps.
    Read {
        /// Which apps.
        apps: Vec<AppPattern>,
    },
}

impl Permission {
    fn power(&self) -> Power {
        match self {
            Permission::Admin => Power::Admin,
            Permission::Deploy { .. } => Power::Deploy,
            Permission::Operate { .. } => Power::Operate,
            Permission::Read { .. } => Power::Read,
        }
    }

    fn covers(&self, app: Option<&AppName>, destination: Option<&Destination>) -> bool {
        match self {
            Permission::Admin => true,
            Permission::Deploy { apps } | Permission::Operate { apps } | Permission::Read { apps } => {
                app.is_some_and(|app| apps.iter().any(|pattern| pattern.matches(app, destination)))
            }
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Permission::Deploy { apps } | Permission::Operate { apps } | Permission::Read { apps }) = self
        else {
            return f.write_str("admin");
        };
        let apps: Vec<String> = apps.iter().map(ToString::to_string).collect();
        write!(f, "{} {}", self.power(), apps.join(", "))
    }
}

/// Which apps a permission is for: `*`, `shop` (all its destinations) or `shop@staging`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum AppPattern {
    /// Every app of the host.
    Any,
    /// One app.
    App {
        /// Its name.
        name: AppName,
        /// Only this destination, if given.
        destination: Option<Destination>,
    },
}

impl AppPattern {
    fn matches(&self, app: &AppName, destination: Option<&Destination>) -> bool {
        match self {
            AppPattern::Any => true,
            AppPattern::App {
                name,
                destination: None,
            } => name == app,
            AppPattern::App {
                name,
                destination: only,
            } => name == app && only.as_ref() == destination,
        }
    }
}

impl FromStr for AppPattern {
    type Err = BadName;

    fn from_str(value: &str) -> Result<Self, BadName> {
        if value == "*" {
            return Ok(AppPattern::Any);
        }
        let (name, destination) = match value.split_once('@') {
            Some((name, destination)) => (name, Some(Destination::parse(destination)?)),
            None => (value, None),
        };
        Ok(AppPattern::App {
            name: AppName::parse(name)?,
            destination,
        })
    }
}

impl TryFrom<String> for AppPattern {
    type Error = BadName;

    fn try_from(value: String) -> Result<Self, BadName> {
        value.parse()
    }
}

impl From<AppPattern> for String {
    fn from(value: AppPattern) -> String {
        value.to_string()
    }
}

impl fmt::Display for AppPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AppPattern::Any => f.write_str("*"),
            AppPattern::App {
                name,
                destination: None,
            } => write!(f, "{name}"),
            AppPattern::App {
                name,
                destination: Some(destination),
            } => write!(f, "{name}@{destination}"),
        }
    }
}

/// One enrolled key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "KeyRecord", into = "KeyRecord")]
pub struct KeyEntry {
    /// The key.
    pub key: PublicKey,
    /// Its fingerprint, always computed from the key.
    pub fingerprint: Fingerprint,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// Whose it is.
    pub comment: String,
    /// Fingerprint of the key that enrolled it, or `bootstrap`.
    pub added_by: String,
}

/// How an entry is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyRecord {
    key: String,
    #[serde(default)]
    fingerprint: Option<Fingerprint>,
    permissions: Vec<Permission>,
    #[serde(default)]
    comment: String,
    #[serde(default = "bootstrap")]
    added_by: String,
}

fn bootstrap() -> String {
    "bootstrap".to_owned()
}

impl TryFrom<KeyRecord> for KeyEntry {
    type Error = KeyRingError;

    fn try_from(record: KeyRecord) -> Result<Self, KeyRingError> {
        let entry = KeyEntry::new(&record.key, record.permissions, &record.comment, &record.added_by)?;
        match record.fingerprint {
            Some(written) if written != entry.fingerprint => Err(KeyRingError::FingerprintDiffers {
                written,
                found: entry.fingerprint,
            }),
            _ => Ok(entry),
        }
    }
}

impl From<KeyEntry> for KeyRecord {
    fn from(entry: KeyEntry) -> Self {
        Self {
            key: entry.key.to_string(),
            fingerprint: Some(entry.fingerprint),
            permissions: entry.permissions,
            comment: entry.comment,
            added_by: entry.added_by,
        }
    }
}

impl KeyEntry {
    /// An entry for an OpenSSH public key line; an empty `comment` takes the one of the line.
    ///
    /// # Errors
    /// When the line is not a public key that can verify signatures here, or there is no permission.
    pub fn new(
        key: &str,
        permissions: Vec<Permission>,
        comment: &str,
        added_by: &str,
    ) -> Result<Self, KeyRingError> {
        let key = PublicKey::parse(key).map_err(|source| KeyRingError::Key { source })?;
        let fingerprint = key.fingerprint();
        if comment.chars().any(char::is_control) || comment.len() > COMMENT_LIMIT {
            return Err(KeyRingError::Comment { fingerprint });
        }
        if permissions.is_empty() {
            return Err(KeyRingError::NoPermission { fingerprint });
        }
        let comment = if comment.is_empty() {
            key.comment()
        } else {
            comment.to_owned()
        };
        Ok(Self {
            fingerprint,
            key,
            permissions,
            comment,
            added_by: added_by.to_owned(),
        })
    }

    /// Whether the key may do something of this power to this app (`None`: to the host).
    pub fn allows(&self, power: Power, app: Option<&AppName>, destination: Option<&Destination>) -> bool {
        self.permissions
            .iter()
            .any(|permission| permission.power() >= power && permission.covers(app, destination))
    }
}

/// Why the ring cannot be changed so.
#[derive(Debug, thiserror::Error)]
pub enum KeyRingError {
    /// The key is not usable.
    #[error("the key cannot be enrolled")]
    Key {
        /// Why.
        #[source]
        source: SignError,
    },
    /// A key that may do nothing.
    #[error("the key {fingerprint} would be allowed nothing; give it at least one permission")]
    NoPermission {
        /// Which key.
        fingerprint: Fingerprint,
    },
    /// A comment that is no name.
    #[error("the comment of {fingerprint} must be one line of at most {COMMENT_LIMIT} bytes")]
    Comment {
        /// Which key.
        fingerprint: Fingerprint,
    },
    /// The file names another key than it holds.
    #[error("the entry says {written}, but its key has {found}")]
    FingerprintDiffers {
        /// What is written.
        written: Fingerprint,
        /// What the key has.
        found: Fingerprint,
    },
    /// Nobody could administer the host any more.
    #[error(
        "{fingerprint} is the last administrator's key; enrol another one first: appliance keys add FILE.pub --admin"
    )]
    LastAdmin {
        /// Which key.
        fingerprint: Fingerprint,
    },
    /// There is no such key.
    #[error("no key {fingerprint} is enrolled; `appliance keys list` shows those that are")]
    NotThere {
        /// Which key.
        fingerprint: Fingerprint,
    },
}

/// Every key the host knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRing {
    /// The entries, in the order they were enrolled.
    #[serde(default)]
    pub keys: Vec<KeyEntry>,
}

impl KeyRing {
    /// The entry of a key.
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<&KeyEntry> {
        self.keys.iter().find(|entry| entry.fingerprint == *fingerprint)
    }

    /// Enrols a key, or replaces what it may do.
    ///
    /// # Errors
    /// When that would take the last administrator's power.
    pub fn insert(&mut self, entry: KeyEntry) -> Result<(), KeyRingError> {
        if !entry.permissions.contains(&Permission::Admin) {
            self.not_last_admin(&entry.fingerprint)?;
        }
        match self
            .keys
            .iter_mut()
            .find(|old| old.fingerprint == entry.fingerprint)
        {
            Some(old) => *old = entry,
            None => self.keys.push(entry),
        }
        Ok(())
    }

    /// Forgets a key.
    ///
    /// # Errors
    /// When it is not enrolled, or the last administrator's.
    pub fn remove(&mut self, fingerprint: &Fingerprint) -> Result<KeyEntry, KeyRingError> {
        let Some(place) = self
            .keys
            .iter()
            .position(|entry| entry.fingerprint == *fingerprint)
        else {
            return Err(KeyRingError::NotThere {
                fingerprint: fingerprint.clone(),
            });
        };
        self.not_last_admin(fingerprint)?;
        Ok(self.keys.remove(place))
    }

    fn not_last_admin(&self, fingerprint: &Fingerprint) -> Result<(), KeyRingError> {
        let is_admin = |entry: &&KeyEntry| entry.permissions.contains(&Permission::Admin);
        let mut admins = self.keys.iter().filter(is_admin);
        match (admins.next(), admins.next()) {
            (Some(only), None) if only.fingerprint == *fingerprint => Err(KeyRingError::LastAdmin {
                fingerprint: fingerprint.clone(),
            }),
            _ => Ok(()),
        }
    }
}
