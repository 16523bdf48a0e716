//! What a change can do with the backups of one accessory.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Power;

/// Longest name that is passed on, bytes: PostgreSQL's own limit.
const NAME_LIMIT: usize = 63;

/// Something to do with backups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum BackupAction {
    /// Make them as the configuration says now, on a host that runs the accessory and no role of its app.
    Set {
        /// How, where and when, as a release has it; none any more if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spec: Option<serde_json::Value>,
        /// Base64 of an age file for the host's recipient: the credentials by name; empty where none are needed.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        sealed: String,
    },
    /// Make one now.
    Now,
    /// Read backups whole and compare them with their manifests.
    Verify {
        /// Which one; the newest of each database if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<String>,
    },
    /// Restore into a throw-away server and compare.
    Drill {
        /// Which one; the newest of each database if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        backup: Option<String>,
    },
    /// Remove what the retention does not keep.
    Prune {
        /// Somebody looked at the plan: what only looks wrong does not stop it.
        confirmed: bool,
    },
    /// Keep one whatever the retention says, or leave it to that again.
    Hold {
        /// Which one.
        backup: String,
        /// Whether it is kept from now on.
        held: bool,
    },
    /// Restore.
    Restore(Restore),
    /// Put what the last restore replaced into its place again.
    Undo {
        /// Which database; the only one if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        database: Option<String>,
    },
}

/// What is restored, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restore {
    /// Which database; the only one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Which backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// The newest one that is not younger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Into a new database of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
    /// In the place of the live database.
    #[serde(default)]
    pub swap: bool,
    /// Take no backup of what is replaced first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_backup: bool,
    /// One table only, `schema.name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// What the accessory was called when the backup was made: its former name, or `app/accessory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The public key of the host that made it, 64 hexadecimal digits: a host that this one replaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<String>,
    /// The recovery key, sealed to the host that restores: it opens what was not sealed for that host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
}

/// Longest sealed recovery key, bytes: age's header and one line.
const RECOVERY_LIMIT: usize = 4096;

impl BackupAction {
    /// The action's stable name, as audit records show it.
    pub fn name(&self) -> &'static str {
        match self {
            BackupAction::Set { .. } => "backup-set",
            BackupAction::Now => "backup-now",
            BackupAction::Verify { .. } => "backup-verify",
            BackupAction::Drill { .. } => "backup-drill",
            BackupAction::Prune { .. } => "backup-prune",
            BackupAction::Hold { held: true, .. } => "backup-hold",
            BackupAction::Hold { held: false, .. } => "backup-release",
            BackupAction::Restore(_) => "restore",
            BackupAction::Undo { .. } => "restore-undo",
        }
    }

    /// The power that the signer's key needs: what changes live data or removes backups needs more than to run things.
    pub fn power(&self) -> Power {
        match self {
            BackupAction::Now
            | BackupAction::Verify { .. }
            | BackupAction::Drill { .. }
            | BackupAction::Hold { held: true, .. } => Power::Operate,
            // What another app has stored is not for everybody who deploys this one.
            BackupAction::Restore(restore)
                if restore.from.as_ref().is_some_and(|from| from.contains('/')) =>
            {
                Power::Admin
            }
            BackupAction::Set { .. } | BackupAction::Restore(_) | BackupAction::Undo { .. } => Power::Deploy,
            // What is released may be removed.
            BackupAction::Prune { .. } | BackupAction::Hold { held: false, .. } => Power::Admin,
        }
    }

    /// Whether the parts fit each other.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn consistent(&self) -> Result<(), String> {
        let BackupAction::Restore(restore) = self else {
            return Ok(());
        };
        if restore.swap && restore.into.is_some() {
            return Err(
                "a restore goes into a new database or takes the live one's place, not both".to_owned(),
            );
        }
        if restore.swap && restore.table.is_some() {
            return Err(
                "one table cannot take the place of a database: restore it beside the live one".to_owned(),
            );
        }
        if restore.backup.is_some() && restore.at.is_some() {
            return Err("a restore is of one backup or of one time, not both".to_owned());
        }
        if let Some(key) = &restore.trust
            && (key.len() != 64 || !key.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(format!(
                "{key:?} is no host's public key, which has 64 hexadecimal digits: appliance backup list shows it"
            ));
        }
        if let Some(name) = &restore.from {
            let parts: Vec<&str> = name.split('/').collect();
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@".contains(&byte);
            let good = |part: &&str| !part.is_empty() && part.len() <= 128 && part.bytes().all(fits);
            if parts.len() > 2 || !parts.iter().all(good) {
                return Err(format!(
                    "{name:?} is neither an accessory's former name nor APP/ACCESSORY"
                ));
            }
        }
        if restore
            .recovery
            .as_ref()
            .is_some_and(|key| key.len() > RECOVERY_LIMIT)
        {
            return Err("what should be a sealed recovery key is longer than one".to_owned());
        }
        if let Some(name) = &restore.into
            && (name.is_empty() || name.len() > NAME_LIMIT || name.chars().any(char::is_control))
        {
            return Err(format!("{name:?} is not a name for a database"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_itself_is_refused() {
        let restore = |change: fn(&mut Restore)| {
            let mut restore = Restore::default();
            change(&mut restore);
            BackupAction::Restore(restore).consistent()
        };
        assert_eq!(restore(|_| ()), Ok(()));
        assert!(restore(|r| (r.swap, r.into) = (true, Some("x".into()))).is_err());
        assert!(restore(|r| (r.swap, r.table) = (true, Some("t".into()))).is_err());
        assert!(restore(|r| (r.backup, r.at) = (Some("x".into()), Some(Timestamp::UNIX_EPOCH))).is_err());
        assert!(restore(|r| r.into = Some(String::new())).is_err());
        assert_eq!(restore(|r| r.trust = Some("0f".repeat(32))), Ok(()));
        assert!(restore(|r| r.trust = Some("age1".to_owned())).is_err());
        for (name, good) in [
            ("old-db", true),
            ("shop@staging/db", true),
            ("", false),
            ("a/", false),
            ("a/b/c", false),
            ("a&trust=x", false),
        ] {
            let named = BackupAction::Restore(Restore {
                from: Some(name.to_owned()),
                ..Restore::default()
            });
            assert_eq!(named.consistent().is_ok(), good, "{name}");
        }
    }
}
