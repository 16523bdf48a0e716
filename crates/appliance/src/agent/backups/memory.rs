//! What the host remembers of its jobs; and what this process knows by itself where that cannot be read or written: a job
//! goes on being run then, once for each of its dates, and whoever looks is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;

use appliance_state::LedgerError;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Backups, own};
use crate::agent::chain;

/// What the host remembers of one job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// When it was first seen: what was due before is not missed.
    pub since: Option<Timestamp>,
    /// When it last began.
    pub last_run: Option<Timestamp>,
    /// When it last went well, and for how many milliseconds.
    pub good: Option<(Timestamp, u64)>,
    /// When and why it last failed; gone with the next good run.
    pub failed: Option<(Timestamp, String)>,
    /// When a drill last went well, and how many milliseconds its restore took.
    pub drilled: Option<(Timestamp, u64)>,
    /// When and why a drill last failed.
    pub drill_failed: Option<(Timestamp, String)>,
    /// When a drill was left out for want of room, why, and how often since the last one.
    pub drill_skipped: Option<(Timestamp, String, u32)>,
    /// When a drill had to leave some out of which no backup looks right, and what came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drill_partial: Option<(Timestamp, String)>,
    /// The image of the last drill: another one is a reason for a drill.
    pub drill_image: Option<String>,
    /// The version of this program that did it: another one is a reason, too.
    pub drill_version: Option<String>,
    /// When and why the address that is told of good drills could not be told.
    pub drill_ping_failed: Option<(Timestamp, String)>,
    /// When and why the address that is told of good runs could not be told.
    pub ping_failed: Option<(Timestamp, String)>,
    /// The last run that began late: when it was due.
    pub missed: Option<Timestamp>,
    /// When what was never finished was last looked for.
    pub swept: Option<Timestamp>,
    /// Runs that failed since the last good one.
    pub failures: u32,
    /// When the last run found something that is not as it was, and what: much less data, a database gone.
    pub odd: Option<(Timestamp, String)>,
    /// Until when somebody said that all is as it should be.
    pub accepted: Option<Timestamp>,
    /// When and why nothing could be stored in the place, when that was last looked at.
    pub probe_failed: Option<(Timestamp, String)>,
    /// When and why old backups could not be removed.
    pub prune_failed: Option<(Timestamp, String)>,
    /// Where the last good run went: the place as configured, and the repository that is there.
    pub place: Option<(String, String)>,
    /// What the last good run backed up: databases, files, directories.
    pub units: BTreeSet<String>,
    /// Which backups there were at the last runs.
    #[serde(skip_serializing_if = "own::Own::is_empty")]
    pub own: own::Own,
    /// What a newer version noted: it is kept for it, and keeps nobody from reading the rest.
    #[serde(flatten)]
    pub newer: BTreeMap<String, serde_json::Value>,
}

/// What is remembered cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("what this host remembers of its backups cannot be read")]
pub struct Unread {
    /// Since when, as far as this process has seen.
    pub since: Timestamp,
    /// Why.
    #[source]
    pub source: LedgerError,
}

impl Unread {
    /// For people: why, and what helps.
    pub fn said(&self) -> String {
        let next = match &self.source {
            // The error names the way back to the generation before.
            LedgerError::Corrupt {
                previous: Some(_), ..
            }
            | LedgerError::Vanished { .. } => String::new(),
            LedgerError::Corrupt { path, .. } => format!(
                "; next: mv {} {}.damaged, which forgets when each ran",
                path.display(),
                path.display()
            ),
            LedgerError::Schema { .. } => "; next: appliance update".to_owned(),
            _ => "; next: appliance doctor".to_owned(),
        };
        format!(
            "{}; until then they are made when they are due{next}",
            chain(self)
        )
    }
}

/// What this process knows of a job, whatever becomes of the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    /// When it first looked at it.
    since: Timestamp,
    /// When it last began it.
    begun: Option<Timestamp>,
}

impl Backups {
    /// What is remembered of a job; nothing of one that never ran.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn record(&self, key: &str) -> Result<Record, Unread> {
        let read = self.ledger.read();
        let mut since = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(snapshot) => {
                *since = None;
                Ok(snapshot.data.get(key).cloned().unwrap_or_default())
            }
            Err(source) => Err(Unread {
                since: *since.get_or_insert_with(Timestamp::now),
                source,
            }),
        }
    }

    /// What is remembered of a job, for what goes on without: nothing where it cannot be read.
    pub(super) fn known(&self, key: &str) -> Record {
        self.record(key).unwrap_or_else(|error| {
            tracing::error!("{key}: {}", chain(&error));
            Record::default()
        })
    }

    /// What the schedule goes by.
    pub(super) fn to_go_by(&self, key: &str, now: Timestamp) -> Record {
        let seen = *(self.seen.lock())
            .unwrap_or_else(PoisonError::into_inner)
            .entry(key.to_owned())
            .or_insert(Seen {
                since: now,
                begun: None,
            });
        let mut record = self.record(key).unwrap_or_else(|error| {
            tracing::error!("{key}: {}", chain(&error));
            Record {
                since: Some(seen.since),
                ..Record::default()
            }
        });
        // What cannot be written down is not begun anew each minute either.
        record.last_run = record.last_run.max(seen.begun);
        record
    }

    /// Remembers for this process that a job begins.
    pub(super) fn begins(&self, key: &str, now: Timestamp) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = seen.entry(key.to_owned()).or_insert(Seen {
            since: now,
            begun: None,
        });
        seen.begun = Some(now);
    }

    pub(super) fn note(&self, key: &str, change: impl FnOnce(&mut Record)) {
        let noted = self
            .ledger
            .update(|records| change(records.entry(key.to_owned()).or_default()));
        if let Err(error) = noted {
            tracing::error!("what came of the backup {key} cannot be noted: {}", chain(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use appliance_state::Store;
    use jiff::SignedDuration;

    use super::*;
    use crate::agent::backups::standing;
    use crate::agent::schedule::Rhythm;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn open(place: &tempfile::TempDir) -> Backups {
        let store = Store::open(place.path()).expect("opens");
        Backups::open(&store, place.path()).expect("opens")
    }

    #[test]
    fn a_ledger_that_cannot_be_read_is_told_and_keeps_no_backup_from_being_made() {
        let place = tempfile::tempdir().expect("a directory");
        let backups = open(&place);
        backups.note("shop/db", |record| record.failures = 2);
        assert_eq!(backups.record("shop/db").expect("read").failures, 2);
        fs_err::write(place.path().join("backups.json"), "{").expect("written");

        let told = backups.record("shop/db").expect_err("not an empty one").said();
        assert!(
            told.contains("backups.json") && told.contains("they are made when they are due"),
            "{told}"
        );
        assert!(told.contains("; next: "), "{told}");
        let again = backups.record("shop/db").expect_err("still").since;
        let once_more = backups.record("shop/db").expect_err("still").since;
        assert_eq!(again, once_more, "one alert, not one a minute");

        let daily = Rhythm::parse("15 3 * * *", Some("UTC")).expect("a schedule");
        let due = |now: &str| {
            let record = backups.to_go_by("shop/db", at(now));
            standing::due(&record, &daily, at(now), SignedDuration::ZERO)
        };
        assert_eq!(due("2026-11-17T12:00:00Z"), None, "first seen");
        let date = at("2026-11-18T03:15:00Z");
        assert_eq!(due("2026-11-18T03:16:00Z"), Some(date));
        backups.begins("shop/db", at("2026-11-18T03:16:00Z"));
        assert_eq!(due("2026-11-18T03:17:00Z"), None, "once");
        assert!(due("2026-11-19T03:16:00Z").is_some(), "and at its next date");
    }

    #[test]
    fn what_a_newer_version_noted_is_kept_for_it() {
        let text = r#"{"failures": 3, "moon": {"phase": "full"}}"#;
        let record: Record = serde_json::from_str(text).expect("an older version goes on");
        assert_eq!(record.failures, 3);
        let written = serde_json::to_value(&record).expect("written");
        assert_eq!(written["moon"]["phase"], "full");
        // What an older one does not know is written only where it says something.
        assert!(
            written.get("own").is_none() && written.get("drill_partial").is_none(),
            "{written}"
        );
    }
}
