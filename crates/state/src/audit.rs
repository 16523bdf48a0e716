//! The audit log: one JSON object per line, each bound to the line before it by its hash.
//!
//! The last member of a line is `hash`: the SHA-256 of the line's bytes without that member, that is of everything before `,"hash":"…"}` followed by `}`.
//! `prev_hash` is the `hash` of the line before, and 64 zeros in the first line.
//! So a shell with `sed` and `sha256sum` can check a log without this program.
//!
//! Beside the log stands `<log>.head`, the number and hash of the last record, since a chain alone cannot tell that its end was cut off.
//!
//! A crash can tear the last line: it was never acknowledged, so opening the log cuts it off and appends a record that says so.
//! Any other damage is left as it is, for [`verify`] to report, and no record is appended to a log whose end makes no sense.

mod chain;
mod file;

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use chain::Fault;
pub use file::{AuditLog, Opened, Verified, read, verify};

/// How the thing that a record is about ended, or that it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Written before acting; a later record with the same payload tells the end.
    Begun,
    /// Done.
    Done,
    /// Tried and failed; `detail` says what stands now.
    Failed,
    /// Not tried; `detail` says which check refused it.
    Refused,
}

/// What a caller has to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// A key fingerprint (`SHA256:…`), or `agent` for what the appliance does on its own.
    pub who: String,
    /// The verb, such as `deploy` or `key.add`.
    pub verb: String,
    /// The app it concerns, if it concerns one.
    pub app: Option<String>,
    /// The SHA-256 of the signed payload, in hex, if there was one.
    pub payload_sha256: Option<String>,
    /// How it ended.
    pub result: Outcome,
    /// Anything else worth keeping. Never a secret.
    pub detail: serde_json::Value,
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// 1 for the first record, then one more each.
    pub seq: u64,
    /// When it was appended.
    pub at: Timestamp,
    /// See [`Entry::who`].
    pub who: String,
    /// See [`Entry::verb`].
    pub verb: String,
    /// See [`Entry::app`].
    pub app: Option<String>,
    /// See [`Entry::payload_sha256`].
    pub payload_sha256: Option<String>,
    /// See [`Entry::result`].
    pub result: Outcome,
    /// See [`Entry::detail`].
    pub detail: serde_json::Value,
    /// The hash of the record before, in hex.
    pub prev_hash: String,
    /// The hash of this record, in hex.
    pub hash: String,
}

/// Why the log could not be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file cannot be opened or locked.
    #[error("cannot open the audit log {path}")]
    Open {
        /// The log.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read the audit log {path}")]
    Read {
        /// The log.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The record did not reach the disk; nothing may be done in its name.
    #[error("cannot append to the audit log {path}, so the change was not made")]
    Append {
        /// The log.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A torn last line cannot be cut off.
    #[error("cannot repair the torn last line of the audit log {path}")]
    Repair {
        /// The log.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The log does not prove itself.
    #[error("the audit log {path} is broken at line {line}")]
    Broken {
        /// The log.
        path: PathBuf,
        /// Counted from 1; one past the last line if records are missing at the end.
        line: u64,
        /// What is wrong there.
        #[source]
        why: Fault,
    },
    /// The record cannot be expressed as JSON.
    #[error("cannot turn an audit record into JSON")]
    Encode {
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

#[cfg(test)]
mod tests;
