//! Names of backups and of the objects they consist of.
//!
//! ```text
//! <app>/<kind>/<accessory>/<unit>/<id>/vol-00000.zst.age … globals.zst.age manifest.json verified-<time>.json
//! ```
//!
//! Everything is found by listing; nothing is ever overwritten.

use std::fmt;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

/// Last part of the key of a backup's manifest, whose existence is the commit.
pub const MANIFEST: &str = "manifest.json";
/// Last part of the key of the roles and tablespaces of a PostgreSQL server.
pub const GLOBALS: &str = "globals.zst.age";
/// Key of the repository's own description.
pub const REPOSITORY: &str = "appliance.json";
/// Key of the page that says how to restore without this program.
pub const README: &str = "README.txt";

/// Key of what a host stores to see whether anything can be, and removes again: each `signer` has one of its own for each
/// of its jobs, since many look at one place at the same time. Always the same one, as there are those who may not delete.
pub fn probe(signer: &crate::sign::PublicKey, app: &str, accessory: &str) -> String {
    let signer = signer.to_string();
    let short = signer.get(..16).unwrap_or(&signer);
    format!("probe-{short}-{app}-{accessory}.txt")
}

/// A text that is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct BadName {
    /// What was given.
    pub value: String,
    /// The rule, as the end of a sentence.
    pub expected: &'static str,
}

/// A backup's id: when it began (UTC) and ten random letters, so ids sort by time and never collide.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BackupId(String);

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const STAMP: &str = "%Y%m%dT%H%M%SZ";

impl BackupId {
    /// An id for a backup that begins `at`; `random` makes it unique.
    pub fn new(at: Timestamp, random: [u8; 10]) -> Self {
        let tail: String = random
            .iter()
            .map(|byte| char::from(ALPHABET[usize::from(byte & 31)]))
            .collect();
        Self(format!("{}-{tail}", stamp(at)))
    }

    /// Parses an id.
    ///
    /// # Errors
    /// When the text is not `YYYYMMDDTHHMMSSZ-` and ten letters or digits.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let fail = || BadName {
            value: text.chars().take(80).collect(),
            expected: "the id of a backup (as in 20261121T031500Z-abcdefgh12; see `appliance backup list`)",
        };
        let (time, tail) = text.split_once('-').ok_or_else(fail)?;
        let good_tail = tail.len() == 10 && tail.bytes().all(|byte| ALPHABET.contains(&byte));
        if parse_stamp(time).is_none() || !good_tail {
            return Err(fail());
        }
        Ok(Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When the backup began, to the second.
    pub fn time(&self) -> Timestamp {
        self.0
            .split_once('-')
            .and_then(|(time, _)| parse_stamp(time))
            .expect("every id was parsed or made from a time")
    }

    /// The random part, for names of databases that must stay short.
    pub fn tail(&self) -> &str {
        self.0.rsplit('-').next().unwrap_or_default()
    }
}

impl fmt::Display for BackupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for BackupId {
    type Error = BadName;
    fn try_from(text: String) -> Result<Self, BadName> {
        Self::parse(&text)
    }
}

impl From<BackupId> for String {
    fn from(id: BackupId) -> String {
        id.0
    }
}

/// A time as object names carry it: UTC, to the second, sortable.
pub fn stamp(at: Timestamp) -> String {
    at.strftime(STAMP).to_string()
}

fn parse_stamp(text: &str) -> Option<Timestamp> {
    if text.len() != 16 {
        return None;
    }
    let time = jiff::civil::DateTime::strptime(STAMP, text).ok()?;
    Some(time.to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// What is backed up: one database, or the files of one accessory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Subject {
    /// The app, `service` or `service@destination`.
    pub app: String,
    /// What kind of content.
    pub kind: Kind,
    /// The accessory's name in the configuration.
    pub accessory: String,
    /// The database, or the file or volume.
    pub unit: String,
}

/// A kind of content, each with its own way out and back in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A PostgreSQL database, by `pg_dump`.
    Postgres,
    /// The data set of a Redis or Valkey server, by `BGSAVE`.
    Redis,
    /// One SQLite file, by its backup API.
    Sqlite,
    /// The files of a volume, as a tar archive.
    Volume,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Postgres => "postgres",
            Kind::Redis => "redis",
            Kind::Sqlite => "sqlite",
            Kind::Volume => "volume",
        })
    }
}

impl Subject {
    /// Where all backups of this subject are, with a slash at the end, so that no other subject's name begins with it.
    pub fn prefix(&self) -> String {
        format!(
            "{}/{}/{}/{}/",
            encode(&self.app),
            self.kind,
            encode(&self.accessory),
            encode(&self.unit)
        )
    }

    /// Key of one object of one backup.
    pub fn key(&self, id: &BackupId, object: &str) -> String {
        format!("{}{id}/{object}", self.prefix())
    }

    /// The subject, id and object name of a key.
    pub fn of_key(key: &str) -> Option<(Subject, BackupId, String)> {
        let parts: Vec<&str> = key.split('/').collect();
        let [app, kind, accessory, unit, id, object] = parts.as_slice() else {
            return None;
        };
        let kind = [Kind::Postgres, Kind::Redis, Kind::Sqlite, Kind::Volume]
            .into_iter()
            .find(|known| known.to_string() == *kind)?;
        let subject = Subject {
            app: decode(app)?,
            kind,
            accessory: decode(accessory)?,
            unit: decode(unit)?,
        };
        Some((subject, BackupId::parse(id).ok()?, (*object).to_owned()))
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.accessory, self.unit)
    }
}

/// Object name of volume `number`.
pub fn volume(number: usize) -> String {
    format!("vol-{number:05}.zst.age")
}

/// Object name of the result of a drill that ended at `at`.
pub fn verified(at: Timestamp) -> String {
    format!("verified-{}.json", stamp(at))
}

/// Object name of a hold that began at `at`.
pub fn hold(at: Timestamp) -> String {
    format!("hold-{}.json", stamp(at))
}

/// A name as one segment of a key: everything but letters, digits, `_`, `-`, `@` and inner dots as `%XX`.
fn encode(name: &str) -> String {
    let mut text = String::with_capacity(name.len());
    for (index, byte) in name.bytes().enumerate() {
        if byte.is_ascii_alphanumeric() || b"_-@".contains(&byte) || (byte == b'.' && index > 0) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    if text.is_empty() { "%".to_owned() } else { text }
}

fn decode(segment: &str) -> Option<String> {
    if segment == "%" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (encode(&name) == segment).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject(unit: &str) -> Subject {
        Subject {
            app: "shop@staging".into(),
            kind: Kind::Postgres,
            accessory: "db".into(),
            unit: unit.into(),
        }
    }

    #[test]
    fn ids_sort_by_time_and_tell_it() {
        let early = BackupId::new("2026-11-21T03:15:00Z".parse().expect("time"), [0; 10]);
        let late = BackupId::new("2026-11-21T03:15:01Z".parse().expect("time"), [31; 10]);
        assert!(early < late);
        assert_eq!(early.as_str(), "20261121T031500Z-0000000000");
        assert_eq!(late.time().to_string(), "2026-11-21T03:15:01Z");
        for bad in [
            "",
            "20261121T031500Z",
            "../../x-0000000000",
            "20261321T031500Z-0000000000",
            "20261121T031500Z-0000/00000",
        ] {
            assert!(BackupId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_database_is_mistaken_for_another_whose_name_begins_alike() {
        let (app, cable) = (subject("app").prefix(), subject("app_cable").prefix());
        assert!(!cable.starts_with(&app));
    }

    proptest! {
        #[test]
        fn every_name_makes_one_safe_segment_and_comes_back(unit in ".*") {
            let subject = subject(&unit);
            let id = BackupId::new(Timestamp::UNIX_EPOCH, [7; 10]);
            let key = subject.key(&id, MANIFEST);
            prop_assert!(key.is_ascii() && !key.split('/').any(|part| part.is_empty() || part.starts_with('.')));
            prop_assert_eq!(Subject::of_key(&key), Some((subject, id, MANIFEST.to_owned())));
        }
    }
}
