//! Making and checking one line; no I/O.

use aws_lc_rs::digest;
use jiff::Timestamp;
use serde::Serialize;

use super::{Entry, Outcome, Record};

/// `prev_hash` of the first record.
pub(super) const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// `,"hash":"` + 64 digits + `"}`.
const HASH_OPEN: &str = ",\"hash\":\"";
const HASH_CLOSE: &str = "\"}";
const HEX_LENGTH: usize = 64;

/// What can be wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not an audit record.
    #[error("it is not an audit record: {0}")]
    NotARecord(String),
    /// Its contents do not give its hash.
    #[error("its contents were altered: they hash to {computed}, the line says {stated}")]
    Altered {
        /// What the bytes give.
        computed: String,
        /// What the line says.
        stated: String,
    },
    /// It does not follow the line before it.
    #[error(
        "it does not follow the line before: records were removed, inserted or reordered (it expects {expected}, the line before is {found})"
    )]
    Unlinked {
        /// The `prev_hash` in the line.
        expected: String,
        /// The hash of the line before.
        found: String,
    },
    /// Its number is not one more than the last.
    #[error("its number is {found}, {expected} was due")]
    Numbered {
        /// The number due.
        expected: u64,
        /// The number in the line.
        found: u64,
    },
    /// The log ends before the last record that was acknowledged.
    #[error(
        "the log ends at record {found}, but record {acknowledged} was acknowledged: records were removed at the end"
    )]
    CutShort {
        /// The last record in the log.
        found: u64,
        /// The last record that was acknowledged.
        acknowledged: u64,
    },
    /// The last record is not the one that was acknowledged under its number.
    #[error("record {number} is not the one that was acknowledged under this number")]
    Replaced {
        /// Its number.
        number: u64,
    },
    /// The file that names the last acknowledged record is gone or makes no sense.
    #[error("the file {path} that names the last acknowledged record is missing or unreadable")]
    HeadLost {
        /// The file.
        path: String,
    },
    /// The last line was torn by a crash.
    #[error("the last line is torn: the machine stopped while it was written")]
    Torn,
}

#[derive(Serialize)]
struct Unhashed<'a> {
    seq: u64,
    at: Timestamp,
    who: &'a str,
    verb: &'a str,
    app: &'a Option<String>,
    payload_sha256: &'a Option<String>,
    result: Outcome,
    detail: &'a serde_json::Value,
    prev_hash: &'a str,
}

/// Where a chain stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tip {
    pub(super) seq: u64,
    pub(super) hash: String,
}

impl Tip {
    pub(super) fn genesis() -> Self {
        Tip {
            seq: 0,
            hash: GENESIS.to_owned(),
        }
    }
}

/// The record that follows `tip`, and its line without the newline.
pub(super) fn seal(tip: &Tip, entry: Entry, at: Timestamp) -> Result<(Record, String), serde_json::Error> {
    let seq = tip.seq + 1;
    let mut line = serde_json::to_string(&Unhashed {
        seq,
        at,
        who: &entry.who,
        verb: &entry.verb,
        app: &entry.app,
        payload_sha256: &entry.payload_sha256,
        result: entry.result,
        detail: &entry.detail,
        prev_hash: &tip.hash,
    })?;
    let hash = sha256_hex(line.as_bytes());
    line.pop();
    line.push_str(HASH_OPEN);
    line.push_str(&hash);
    line.push_str(HASH_CLOSE);
    let Entry {
        who,
        verb,
        app,
        payload_sha256,
        result,
        detail,
    } = entry;
    let prev_hash = tip.hash.clone();
    Ok((
        Record {
            seq,
            at,
            who,
            verb,
            app,
            payload_sha256,
            result,
            detail,
            prev_hash,
            hash,
        },
        line,
    ))
}

/// Checks a line by itself: it is a record and its hash is that of its bytes.
pub(super) fn open(line: &[u8]) -> Result<Record, Fault> {
    let record: Record =
        serde_json::from_slice(line).map_err(|error| Fault::NotARecord(error.to_string()))?;
    let tail = HASH_OPEN.len() + HEX_LENGTH + HASH_CLOSE.len();
    let (body, end) = line
        .split_at_checked(line.len().saturating_sub(tail))
        .ok_or_else(|| Fault::NotARecord("it is too short".to_owned()))?;
    let expected_end = format!("{HASH_OPEN}{}{HASH_CLOSE}", record.hash);
    if end != expected_end.as_bytes() {
        return Err(Fault::NotARecord("its last member is not its hash".to_owned()));
    }
    let mut hashed = body.to_vec();
    hashed.push(b'}');
    let computed = sha256_hex(&hashed);
    if computed != record.hash {
        return Err(Fault::Altered {
            computed,
            stated: record.hash,
        });
    }
    Ok(record)
}

/// Checks that `record` is the one that follows `tip`.
pub(super) fn follows(tip: &Tip, record: &Record) -> Result<(), Fault> {
    if record.prev_hash != tip.hash {
        return Err(Fault::Unlinked {
            expected: record.prev_hash.clone(),
            found: tip.hash.clone(),
        });
    }
    if record.seq != tip.seq + 1 {
        return Err(Fault::Numbered {
            expected: tip.seq + 1,
            found: record.seq,
        });
    }
    Ok(())
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}
