//! Comparing: what would change, as lines for a person. Pure.

use super::file::{Conflict, FileWant, Wanted};
use super::{FileSeen, Handler, Seen, Want};
use crate::firewall::rules::Rules;
use crate::firewall::{CONFIRMED, State};
use crate::host::{Entry, Kind, Owner};
use crate::sshd;

impl Want {
    /// What has to change; nothing if it is as wanted.
    ///
    /// # Errors
    /// When something of somebody else is in the way.
    pub fn changes(&self, seen: &Seen) -> Result<Vec<String>, Conflict> {
        let mut changes = Vec::new();
        match (self, seen) {
            (Want::Packages { .. }, Seen::Packages { missing, interrupted }) => {
                if *interrupted {
                    changes.push("finish the interrupted installation (dpkg --configure -a)".to_owned());
                }
                if !missing.is_empty() {
                    changes.push(format!("install {}", missing.join(" ")));
                }
            }
            (Want::Accounts { .. }, Seen::Accounts { missing }) => {
                changes.extend(missing.iter().map(|name| format!("create {name}")));
            }
            (
                Want::Login { user, home, .. },
                Seen::Login {
                    exists,
                    missing_groups,
                },
            ) => {
                if !exists {
                    changes.push(format!(
                        "create user {user} with home {} and no password",
                        home.display()
                    ));
                }
                changes.extend(
                    missing_groups
                        .iter()
                        .map(|group| format!("add {user} to group {group}")),
                );
            }
            (Want::Directory { path, mode, owner }, Seen::Directory(entry)) => match entry {
                None => changes.push(format!("create directory {}", path.display())),
                Some(entry) if entry.kind != Kind::Directory => {
                    return Err(Conflict::NotADirectory(path.display().to_string()));
                }
                Some(entry) => changes.extend(rights(&path.display().to_string(), entry, *mode, owner)),
            },
            (Want::Files { files, .. }, Seen::Files(found)) => {
                for (wanted, found) in files.iter().zip(found) {
                    changes.extend(file_changes(wanted, found)?);
                }
                if !changes.is_empty() {
                    let runs = found.iter().any(|seen| seen.entry.is_some());
                    let owed = self.owes(seen)?;
                    changes.extend(
                        owed.iter()
                            .filter(|handler| runs || !handler.is_for_running())
                            .map(Handler::title),
                    );
                }
            }
            (Want::Binary { target, after, .. }, Seen::Binary { same, entry }) => {
                let path = target.display().to_string();
                if entry.as_ref().is_some_and(|entry| entry.kind != Kind::File) {
                    return Err(Conflict::NotAFile(path));
                }
                if *same {
                    changes.extend(
                        entry
                            .iter()
                            .filter_map(|entry| rights(&path, entry, 0o755, &Owner::root())),
                    );
                } else {
                    changes.push(format!("install this program as {path}"));
                    let runs = entry.is_some();
                    changes.extend(
                        after
                            .iter()
                            .filter(|handler| runs || !handler.is_for_running())
                            .map(Handler::title),
                    );
                }
            }
            (Want::Unit { name }, Seen::Unit { enabled, active }) => {
                if enabled != "enabled" {
                    changes.push(format!("enable {name}"));
                }
                if active != "active" {
                    changes.push(format!("start {name}"));
                }
            }
            (
                Want::Firewall(rules),
                Seen::Firewall {
                    confirmed,
                    pending,
                    kernel,
                },
            ) => {
                let text = rules.render();
                if is_something_else(confirmed) {
                    return Err(Conflict::NotAFile(CONFIRMED.to_owned()));
                }
                if pending.contents.as_deref() == Some(text.as_bytes()) && *kernel == State::Pending {
                    return Ok(changes);
                }
                if confirmed.contents.as_deref() != Some(text.as_bytes()) {
                    let before = confirmed
                        .contents
                        .as_deref()
                        .and_then(|bytes| Rules::from_file(&String::from_utf8_lossy(bytes)));
                    changes.extend(rules.changes_from(before.as_ref()));
                } else if *kernel != State::Confirmed {
                    changes.push("load table inet appliance".to_owned());
                }
            }
            (Want::Sysctl { path, settings }, Seen::Sysctl { drop_in, effective }) => {
                if is_something_else(drop_in) {
                    return Err(Conflict::NotAFile(path.display().to_string()));
                }
                for (name, value) in settings {
                    if let Some(found) = effective.get(*name)
                        && !same_setting(name, found, value)
                    {
                        changes.push(format!("{name} {found} → {value}"));
                    }
                }
                if changes.is_empty() && drop_in.contents.as_deref() != Some(sysctl_text(settings).as_bytes())
                {
                    changes.push(format!("write {}", path.display()));
                }
            }
            (Want::Rights { .. }, Seen::Rights(found)) => {
                changes.extend(
                    found
                        .iter()
                        .filter(|(_, mode, widest)| mode & !widest != 0)
                        .map(|(path, mode, widest)| format!("{path}: {mode:04o} → {:04o}", mode & widest)),
                );
            }
            (Want::Owned { .. }, Seen::Owned(found)) => {
                changes.extend(
                    found
                        .iter()
                        .map(|(path, owner)| format!("{path}: owner {owner} → root")),
                );
            }
            (Want::Gone { .. }, Seen::Gone(found)) => {
                if !found.is_empty() {
                    changes.push(format!("remove {}", found.join(" ")));
                }
            }
            (Want::Swap { bytes }, Seen::Plain { right: false, .. }) => {
                changes.push(format!("make {} of {} MiB", super::act::SWAP_FILE, bytes >> 20));
            }
            (Want::Timezone(zone), Seen::Plain { right: false, is }) => {
                changes.push(format!("time zone {is} → {zone}"));
            }
            (Want::Mount { path, flags }, Seen::Plain { right: false, is }) => {
                changes.push(format!("mount {path} with {} (it has {is})", flags.join(",")));
            }
            (Want::Made { path, by }, Seen::Plain { right: false, .. }) => {
                changes.push(format!("make {path} ({})", by.join(" ")));
            }
            (Want::Locked { user }, Seen::Plain { right: false, .. }) => {
                changes.push(format!("lock the password of {user}"));
            }
            (_, Seen::Plain { right: true, .. }) => {}
            (Want::Sshd { settings }, Seen::Sshd { drop_in, effective }) => {
                if is_something_else(drop_in) {
                    return Err(Conflict::NotAFile(sshd::DROP_IN.to_owned()));
                }
                let text = sshd::render(settings);
                let overridden = sshd::overridden(effective, settings);
                if drop_in.contents.as_deref() != Some(text.as_bytes()) {
                    for (keyword, wanted, found) in overridden {
                        changes.push(format!("{keyword} {found} → {wanted}"));
                    }
                    if changes.is_empty() {
                        changes.push(format!("write {}", sshd::DROP_IN));
                    }
                } else if let Some((keyword, wanted, found)) = overridden.into_iter().next() {
                    return Err(Conflict::Overridden {
                        keyword,
                        wanted,
                        found,
                    });
                }
            }
            // `seen` is always what this want's `observe` returned.
            _ => changes.push(format!("observe {} again", self.subject())),
        }
        Ok(changes)
    }

    /// Reloads and restarts that follow from the changes.
    ///
    /// # Errors
    /// As [`Want::changes`].
    pub(crate) fn owes(&self, seen: &Seen) -> Result<Vec<Handler>, Conflict> {
        Ok(match (self, seen) {
            (Want::Files { files, after }, Seen::Files(found)) => {
                let mut owed = after.clone();
                for (wanted, seen) in files.iter().zip(found) {
                    if !seen.edited
                        && let Some(new) = new_contents(wanted, seen)?
                        && new.restart
                        && let Some(reload) =
                            owed.iter_mut().find(|handler| **handler == Handler::DockerReload)
                    {
                        *reload = Handler::DockerRestart;
                    }
                }
                owed
            }
            (Want::Binary { after, .. }, Seen::Binary { same: false, .. }) => after.clone(),
            (Want::Sshd { .. }, _) => vec![Handler::Ssh],
            _ => Vec::new(),
        })
    }
}

/// What has to be written into a file, if anything.
pub(super) fn new_contents(wanted: &FileWant, seen: &FileSeen) -> Result<Option<Wanted>, Conflict> {
    let path = wanted.path.display().to_string();
    if is_something_else(seen) {
        return Err(Conflict::NotAFile(path));
    }
    wanted.content.over(&path, seen.contents.as_deref())
}

/// Values the kernel keeps stricter than asked are left.
fn same_setting(name: &str, found: &str, wanted: &str) -> bool {
    let number = |text: &str| text.parse::<i64>().ok();
    match (number(found), number(wanted)) {
        // 2 is stricter than 1, and cannot be taken back before a reboot.
        (Some(found), Some(wanted)) if name == "kernel.unprivileged_bpf_disabled" => found >= wanted,
        // Each of these only ever grows on purpose.
        (Some(found), Some(wanted))
            if name.ends_with("perf_event_paranoid")
                || name.ends_with("ptrace_scope")
                || name.contains("max")
                || name.ends_with("somaxconn")
                || name.ends_with("inotify.max_user_instances") =>
        {
            found >= wanted
        }
        _ => found == wanted,
    }
}

/// The text of a drop-in; a leading `-` lets the kernel lack a setting (sysctl.d(5)).
pub(super) fn sysctl_text(settings: &[(&str, &str)]) -> String {
    let lines: String = settings
        .iter()
        .map(|(name, value)| format!("-{name} = {value}\n"))
        .collect();
    format!("# managed by appliance; changes are lost with the next `appliance bootstrap`\n{lines}")
}

fn file_changes(wanted: &FileWant, seen: &FileSeen) -> Result<Vec<String>, Conflict> {
    let path = wanted.path.display().to_string();
    if seen.edited {
        return Ok(Vec::new());
    }
    if let Some(new) = new_contents(wanted, seen)? {
        return Ok(vec![new.change]);
    }
    Ok(seen
        .entry
        .iter()
        .filter_map(|entry| rights(&path, entry, wanted.mode, &wanted.owner))
        .collect())
}

fn is_something_else(seen: &FileSeen) -> bool {
    seen.entry.as_ref().is_some_and(|entry| entry.kind != Kind::File)
}

fn rights(path: &str, entry: &Entry, mode: u32, owner: &Owner) -> Option<String> {
    if entry.mode == mode && entry.owner == *owner {
        return None;
    }
    let (has, old) = (&entry.owner, entry.mode);
    Some(format!(
        "{path}: {old:04o} {}:{} → {mode:04o} {}:{}",
        has.user, has.group, owner.user, owner.group
    ))
}
