//! What is known of a backup; its existence, signed, is what makes it a backup.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::{BackupId, Subject};
use crate::tap::Counts;

/// The form of manifest that this version writes and reads.
pub const FORMAT: u32 = 1;

/// Everything a restore needs to know, and everything it is checked against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The repository this backup belongs to: a copy in another one is refused.
    pub repository: String,
    /// What was backed up.
    pub subject: Subject,
    /// Which backup this is.
    pub id: BackupId,
    /// The host that made it.
    pub host: String,
    /// The server's clock when the snapshot was taken; the host's where there is no server.
    pub snapshot_at: Timestamp,
    /// When the backup began.
    pub started_at: Timestamp,
    /// When the last byte was stored.
    pub ended_at: Timestamp,
    /// Version of the program that made it.
    pub appliance: String,
    /// Name or digest of the image that the data's server ran from; drills start the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The server, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// The database's own properties, which `pg_dump` leaves out of the data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<Database>,
    /// The content, in this order one after the other.
    pub volumes: Vec<Object>,
    /// Roles and tablespaces of the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub globals: Option<Object>,
    /// Size of the content before compression and encryption.
    pub plain_bytes: u64,
    /// SHA-256 of it, hexadecimal.
    pub plain_sha256: String,
    /// What was counted in it; absent where the form is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<Counts>,
    /// Recipients whose keys open it, `age1…`.
    pub recipients: Vec<String>,
    /// The backup before this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<BackupId>,
    /// Why this backup may hold less than it should; empty for a good one. Such a backup freezes retention.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspicious: Vec<String>,
    /// What did not go smoothly.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One stored object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Object {
    /// Its name below the backup's own prefix.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256 of these bytes, hexadecimal.
    pub sha256: String,
}

/// The server that the data came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// `server_version_num`, such as 150018.
    pub version: u32,
    /// The same for people.
    pub version_text: String,
    /// Where its write-ahead log was.
    pub lsn: String,
    /// Extensions of the database and their versions.
    pub extensions: BTreeMap<String, String>,
}

/// Properties of a database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Database {
    /// Its owner.
    pub owner: String,
    /// Encoding, such as `UTF8`.
    pub encoding: String,
    /// `LC_COLLATE`.
    pub collate: String,
    /// `LC_CTYPE`.
    pub ctype: String,
    /// `c`, `i` (ICU) or `b` (built in); absent before version 15.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// Locale of the provider, where it is not `c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// Statements that bring back grants on the database, its settings and its comment; `%DB%` is its quoted name.
    pub statements: Vec<String>,
    /// Digest of the schema: tables, columns, indexes, constraints, functions.
    pub schema: String,
}

/// The outcome of a drill, stored beside the manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrillResult {
    /// The repository.
    pub repository: String,
    /// What was restored.
    pub subject: Subject,
    /// Which backup.
    pub id: BackupId,
    /// When.
    pub at: Timestamp,
    /// How long the restore took, milliseconds.
    pub restore_ms: u64,
    /// Rows that were compared.
    pub rows: u64,
    /// Tables that were compared.
    pub tables: u64,
    /// Indexes that `amcheck` found in order; absent where the server lacks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub indexes: Option<u64>,
}

impl Manifest {
    /// Bytes that are stored.
    pub fn stored_bytes(&self) -> u64 {
        self.volumes
            .iter()
            .chain(&self.globals)
            .map(|object| object.size)
            .sum()
    }

    /// Names of all objects, the manifest not among them.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.volumes.iter().chain(&self.globals)
    }

    /// What looks wrong beside the backup before: much less than it, tables gone, or many times as much.
    pub fn compare(&self, before: &Manifest) -> Vec<String> {
        let mut why = Vec::new();
        if let (Some(now), Some(then)) = (&self.counts, &before.counts)
            && *then != Counts::default()
        {
            let fell = |what: &str, now: u64, then: u64, why: &mut Vec<String>| {
                if then >= 10 && now < then - then * 3 / 10 {
                    why.push(format!("{what} fell from {then} to {now}"));
                }
            };
            fell("rows", now.rows(), then.rows(), &mut why);
            fell("bytes", now.bytes(), then.bytes(), &mut why);
            fell("large objects", now.large_objects, then.large_objects, &mut why);
            for name in then.tables.keys().filter(|name| !now.tables.contains_key(*name)) {
                why.push(format!("the table {name} vanished"));
            }
        } else if self.plain_bytes < before.plain_bytes - before.plain_bytes * 3 / 10 {
            why.push(format!(
                "the size fell from {} to {} bytes",
                before.plain_bytes, self.plain_bytes
            ));
        }
        // Small sizes jump for small reasons.
        if self.plain_bytes > before.plain_bytes.saturating_mul(3) && self.plain_bytes > 64 << 20 {
            why.push(format!(
                "the size jumped from {} to {} bytes",
                before.plain_bytes, self.plain_bytes
            ));
        }
        why
    }
}
