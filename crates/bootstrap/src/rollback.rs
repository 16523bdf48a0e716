//! Undoing one item, as far as that can be done without asking anybody.
//!
//! Files that are ours alone go, files that were merged into get their first state back.
//! What would lock somebody out, delete data or remove packages is left to a person.

use std::path::Path;

use crate::host::{Command, Host, HostError, Owner, must};
use crate::item::Item;
use crate::sshd;
use crate::want::{Content, Handler, Want};
use crate::written;

/// What a rollback did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undone {
    /// What changed.
    pub changes: Vec<String>,
    /// What is left to a person.
    pub left: Vec<String>,
}

/// Items without which the host would be open or shut for good.
const NEVER: [&str; 7] = [
    "firewall",
    "firewall-boot",
    "keys",
    "identity",
    "state",
    "deploy-user",
    "services",
];

/// Undoes an item.
///
/// # Errors
/// When the host does not do its part; what was undone stays undone.
pub fn rollback(host: &dyn Host, item: &Item) -> Result<Undone, HostError> {
    let mut undone = Undone::default();
    for want in &item.wants {
        if NEVER.contains(&item.id) {
            undone.left.push(want.subject());
            continue;
        }
        match want {
            // The way back stays while there is something to go back from.
            Want::Files { .. } | Want::Unit { .. } if item.id == "ssh" => {}
            Want::Files { files, after } => {
                let before = undone.changes.len();
                for file in files {
                    let path = &file.path;
                    let kept = written::original(path);
                    match (&file.content, host.read(&kept)?) {
                        (Content::Exactly(_), _) => {
                            if let Some(bytes) = host.read(path)? {
                                if written::Written::read(host)?.is_edited(path, &bytes) {
                                    undone
                                        .left
                                        .push(format!("{}, which somebody edited", path.display()));
                                } else {
                                    host.remove(path)?;
                                    undone.changes.push(format!("removed {}", path.display()));
                                }
                            }
                        }
                        // What others wrote there since is theirs: taking our keys out is for a person.
                        (Content::DockerDaemon(_), _) => undone.left.push(path.display().to_string()),
                        (_, Some(first)) => {
                            if let Some(present) = host.read(path)? {
                                let mut copy = kept.into_os_string();
                                copy.push(".before-rollback");
                                host.write(Path::new(&copy), &present, 0o600, &Owner::root())?;
                                undone.changes.push(format!(
                                    "kept {} as {}",
                                    path.display(),
                                    Path::new(&copy).display()
                                ));
                            }
                            host.write(path, &first, file.mode, &file.owner)?;
                            undone
                                .changes
                                .push(format!("{} is as it was first", path.display()));
                        }
                        (_, None) => undone.left.push(path.display().to_string()),
                    }
                }
                if undone.changes.len() > before {
                    for handler in after {
                        // Docker's settings are read again when a person restarts it.
                        if matches!(handler, Handler::DockerReload | Handler::DockerRestart) {
                            undone.left.push("systemctl restart docker".to_owned());
                        } else {
                            handler.run(host)?;
                        }
                    }
                }
            }
            Want::Sysctl { path, .. } => {
                if host.entry(path)?.is_some() {
                    host.remove(path)?;
                    undone.changes.push(format!(
                        "removed {}; what is in force stays until a reboot",
                        path.display()
                    ));
                }
            }
            Want::Sshd { .. } => {
                if host.entry(Path::new(sshd::DROP_IN))?.is_some() {
                    sshd::pending::arm(host, "")?;
                    host.remove(Path::new(sshd::DROP_IN))?;
                    must(host, &Command::new(["sshd", "-t"]))?;
                    Handler::Ssh.run(host)?;
                    undone
                        .changes
                        .push(format!("removed {}, reloaded sshd", sshd::DROP_IN));
                }
            }
            other => undone.left.push(other.subject()),
        }
    }
    Ok(undone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::want::FileWant;

    fn item(id: &'static str, wants: Vec<Want>) -> Item {
        Item {
            id,
            level: crate::item::Level::Should,
            title: "",
            reason: "",
            references: &[],
            rollback: "",
            wants,
        }
    }

    #[test]
    fn ours_goes_merged_files_get_their_first_state_back_and_edits_stay() {
        let host = Memory::bare("debian", "12");
        host.put("/etc/ours", "# managed by appliance\n");
        host.put("/etc/edited", "theirs\n");
        host.put("/etc/issue", "new\n");
        written::keep_original(&host, Path::new("/etc/issue"), b"first\n").expect("keeps");
        let files = vec![
            FileWant::ours("/etc/ours", "# managed by appliance\n"),
            FileWant::ours("/etc/edited", "# managed by appliance\n"),
            FileWant {
                content: Content::Instead("new\n".to_owned()),
                ..FileWant::ours("/etc/issue", "")
            },
        ];
        let wants = vec![Want::Files {
            files,
            after: Vec::new(),
        }];
        let undone = rollback(&host, &item("banner", wants.clone())).expect("undoes");
        assert_eq!((undone.changes.len(), undone.left.len()), (3, 1));
        assert_eq!(host.text("/etc/ours"), None);
        assert_eq!(host.text("/etc/edited").as_deref(), Some("theirs\n"));
        assert_eq!(host.text("/etc/issue").as_deref(), Some("first\n"));
        let copy = format!(
            "{}.before-rollback",
            written::original(Path::new("/etc/issue")).display()
        );
        assert_eq!(host.text(&copy).as_deref(), Some("new\n"));
        let undone = rollback(&host, &item("firewall", wants)).expect("refuses");
        assert!(undone.changes.is_empty() && !undone.left.is_empty());
    }
}
