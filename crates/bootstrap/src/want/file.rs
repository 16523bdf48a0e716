//! Files: what they should hold, given what they hold.

use std::path::PathBuf;

use super::merge;

use crate::authorized_keys;
use crate::docker;
use crate::host::Owner;
use crate::key::{KeyEntry, Permission};

/// A wanted file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileWant {
    /// Where.
    pub path: PathBuf,
    /// What it holds.
    pub content: Content,
    /// Permission bits.
    pub mode: u32,
    /// Whose.
    pub owner: Owner,
    /// Asked before the new file replaces the old.
    pub check: Option<Check>,
    /// Replaced even if somebody edited it.
    pub force: bool,
}

impl FileWant {
    /// A file of root, 0644, that is ours alone.
    pub fn ours(path: &str, text: impl Into<String>) -> Self {
        Self {
            path: PathBuf::from(path),
            content: Content::Exactly(text.into()),
            mode: 0o644,
            owner: Owner::root(),
            check: None,
            force: false,
        }
    }

    /// With other permission bits.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// With a check.
    #[must_use]
    pub fn checked(mut self, check: Check) -> Self {
        self.check = Some(check);
        self
    }
}

/// What a file should hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// This text, whatever is there now.
    Exactly(String),
    /// These lines besides those of others (`authorized_keys`).
    KeyLines(Vec<String>),
    /// These keys besides those already there (`keys.d/bootstrap.json`).
    KeyEntries(Vec<KeyEntry>),
    /// Our keys in Docker's configuration, besides those of others.
    DockerDaemon(docker::Wanted),
    /// A secret that is made once and never replaced.
    HostIdentity,
    /// These settings of `login.defs`, besides all others.
    LoginDefs(Vec<(&'static str, &'static str)>),
    /// These settings of a file of `NAME=value` lines, besides all others; made if it is not there.
    ShellSettings(Vec<(&'static str, &'static str)>),
    /// These settings of Postfix' `main.cf`, besides all others.
    MainCf(Vec<(&'static str, &'static str)>),
    /// `/etc/pam.d/su` with a line that asks for the group `sudo`.
    PamSu,
    /// `/etc/ssh/moduli` without small groups.
    Moduli,
    /// This text instead of the distribution's; what was there first is kept for a rollback.
    Instead(String),
}

/// How a new file is tried before it is put in place; `{}` stands for a copy of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check(pub &'static [&'static str]);

/// Something of somebody else that we will not overwrite.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// A link or directory where a file belongs.
    #[error(
        "{0} is a link, directory or device where a file is needed; move it away, then run bootstrap again"
    )]
    NotAFile(String),
    /// Something else where a directory belongs.
    #[error("{0} is not a directory; move it away, then run bootstrap again")]
    NotADirectory(String),
    /// Not text.
    #[error("{0} is not UTF-8 text; repair it, then run bootstrap again")]
    NotText(String),
    /// The key seed was altered.
    #[error("{path} is not a list of keys ({why}); repair or remove it, then run bootstrap again")]
    NotKeys {
        /// Which file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// `daemon.json` cannot be merged with.
    #[error(transparent)]
    DaemonJson(#[from] docker::DaemonJsonError),
    /// Another sshd file wins.
    #[error(
        "{keyword} is {found} although {} says {wanted}: another file comes first; find it with `grep -ri {keyword} /etc/ssh/sshd_config*`",
        crate::sshd::DROP_IN
    )]
    Overridden {
        /// Which keyword.
        keyword: String,
        /// What we set.
        wanted: String,
        /// What is in force.
        found: String,
    },
}

/// The file to write, and what that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// All of it.
    pub text: String,
    /// For a person.
    pub change: String,
    /// Whether a restart-only setting changed.
    pub restart: bool,
}

impl Content {
    /// What has to be written over `current`; `None` if it is as it should be.
    ///
    /// # Errors
    /// When the present contents cannot be merged with.
    pub fn over(&self, path: &str, current: Option<&[u8]>) -> Result<Option<Wanted>, Conflict> {
        let text = match current.map(str::from_utf8) {
            Some(Err(_)) if !matches!(self, Content::Exactly(_)) => {
                return Err(Conflict::NotText(path.to_owned()));
            }
            Some(Ok(text)) => Some(text),
            _ => None,
        };
        let wanted = |text: String, change: String| {
            Some(Wanted {
                text,
                change,
                restart: false,
            })
        };
        Ok(match self {
            Content::Exactly(exact) => {
                if current == Some(exact.as_bytes()) {
                    None
                } else {
                    let verb = if current.is_some() { "replace" } else { "create" };
                    wanted(exact.clone(), format!("{verb} {path}"))
                }
            }
            Content::KeyLines(lines) => authorized_keys::with_lines(text.unwrap_or_default(), lines)
                .and_then(|edited| {
                    let parts: Vec<String> = [
                        (edited.added, "add"),
                        (edited.replaced, "renew"),
                        (edited.removed, "take out"),
                    ]
                    .into_iter()
                    .filter(|(count, _)| *count > 0)
                    .map(|(count, verb)| format!("{verb} {count} key line(s)"))
                    .collect();
                    wanted(edited.text, format!("{path}: {}", parts.join(", ")))
                }),
            Content::KeyEntries(entries) => key_entries(path, text, entries)?,
            Content::DockerDaemon(settings) => {
                let merged = docker::merge(text, settings)?;
                merged.text.map(|text| Wanted {
                    text,
                    change: format!("set in {path}: {}", merged.set.join(", ")),
                    restart: merged.restart,
                })
            }
            Content::LoginDefs(settings) => text
                .and_then(|text| merge::login_defs(text, settings))
                .and_then(|new| wanted(new, format!("set in {path}: {}", names(settings)))),
            Content::ShellSettings(settings) => merge::assignments(text.unwrap_or_default(), "=", settings)
                .and_then(|new| wanted(new, format!("set in {path}: {}", names(settings)))),
            Content::MainCf(settings) => text
                .and_then(|text| merge::assignments(text, " = ", settings))
                .and_then(|new| wanted(new, format!("set in {path}: {}", names(settings)))),
            Content::PamSu => text
                .and_then(merge::pam_su)
                .and_then(|new| wanted(new, format!("ask for the group sudo in {path}"))),
            Content::Moduli => text
                .and_then(merge::moduli)
                .and_then(|new| wanted(new, format!("leave small groups out of {path}"))),
            Content::Instead(exact) => {
                if current == Some(exact.as_bytes()) {
                    None
                } else {
                    wanted(exact.clone(), format!("write {path}"))
                }
            }
            Content::HostIdentity => match text {
                Some(text) if text.contains("AGE-SECRET-KEY-1") => None,
                _ => wanted(String::new(), format!("create {path}, the host's identity")),
            },
        })
    }
}

fn names(settings: &[(&str, &str)]) -> String {
    let settings: Vec<String> = settings
        .iter()
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    settings.join(", ")
}

fn key_entries(path: &str, text: Option<&str>, entries: &[KeyEntry]) -> Result<Option<Wanted>, Conflict> {
    let mut all: Vec<KeyEntry> = match text {
        None => Vec::new(),
        Some(text) => serde_json::from_str(text).map_err(|error| Conflict::NotKeys {
            path: path.to_owned(),
            why: error.to_string(),
        })?,
    };
    let mut added = 0;
    for entry in entries {
        let Some(known) = all
            .iter_mut()
            .find(|known| known.fingerprint == entry.fingerprint)
        else {
            all.push(entry.clone());
            added += 1;
            continue;
        };
        let includes = |permission| {
            known.permissions.contains(&Permission::Admin) || known.permissions.contains(permission)
        };
        if entry.permissions.iter().all(includes) {
            continue;
        }
        // One entry for each key; an administrator needs no further permission.
        if entry.permissions.contains(&Permission::Admin) {
            known.permissions.clear();
        }
        known.permissions.extend(entry.permissions.iter().cloned());
        added += 1;
    }
    if added == 0 {
        return Ok(None);
    }
    let mut json = serde_json::to_string_pretty(&all).expect("texts and lists always serialise");
    json.push('\n');
    let change = format!("enroll {added} key(s) in {path}");
    Ok(Some(Wanted {
        text: json,
        change,
        restart: false,
    }))
}
