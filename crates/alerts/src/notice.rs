//! What is found, and what is told.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What an alert is about; the words are those of `alerts: mute:` in `host.yml`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A certificate is about to expire.
    Certificate,
    /// The disk fills up.
    Disk,
    /// Memory is short, or something was killed for it.
    Memory,
    /// A container restarts again and again.
    RestartLoop,
    /// Too many 5xx responses.
    Errors,
    /// A backup failed or is too old.
    BackupAge,
    /// A restore that was tried failed.
    Drill,
    /// A reboot is needed.
    Reboot,
    /// The host is not as it should be.
    Drift,
    /// The proxy or Docker does not answer.
    Services,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Certificate,
        Self::Disk,
        Self::Memory,
        Self::RestartLoop,
        Self::Errors,
        Self::BackupAge,
        Self::Drill,
        Self::Reboot,
        Self::Drift,
        Self::Services,
    ];

    /// Its stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Disk => "disk",
            Self::Memory => "memory",
            Self::RestartLoop => "restart-loop",
            Self::Errors => "errors",
            Self::BackupAge => "backup-age",
            Self::Drill => "drill",
            Self::Reboot => "reboot",
            Self::Drift => "drift",
            Self::Services => "services",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Something that is wrong at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// Which certificate, container, service, job; `host` for what there is one of.
    pub subject: String,
    /// What is wrong, one sentence for people.
    pub message: String,
    /// The command to run next.
    pub next: String,
}

/// What a notice says of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It began.
    Firing,
    /// It still holds.
    Again,
    /// It is over.
    Resolved,
    /// Nothing is wrong: somebody wants to see that notices arrive.
    Test,
}

impl What {
    /// Its stable word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Again => "again",
            Self::Resolved => "resolved",
            Self::Test => "test",
        }
    }
}

/// Something that people are told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Counts up on one host, so that a receiver can tell a notice that came twice.
    pub id: u64,
    /// What it says.
    pub what: What,
    /// What it is about; absent in a test.
    pub kind: Option<Kind>,
    /// Which one.
    pub subject: String,
    /// One sentence.
    pub message: String,
    /// The command to run next; empty once it is resolved.
    pub next: String,
    /// Since when it is wrong.
    pub since: Timestamp,
    /// When this was written.
    pub at: Timestamp,
}

impl Notice {
    /// A line for a subject or title: `firing: disk host`.
    pub fn title(&self) -> String {
        match self.kind {
            None => "test".to_owned(),
            Some(kind) => format!("{}: {kind} {}", self.what.word(), self.subject),
        }
    }
}
