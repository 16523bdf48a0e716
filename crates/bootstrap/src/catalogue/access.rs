//! Who gets in: the deploy user, keys, the host's identity, sshd.

use super::{DEPLOY_USER, GROUP, IDENTITY};
use crate::authorized_keys::receive_line;
use crate::facts::{Facts, KEYS};
use crate::host::Owner;
use crate::item::Item;
use crate::key::{KeyEntry, Permission};
use crate::options::Options;
use crate::sshd;
use crate::want::{Content, FileWant, Want};

const HOME: &str = "/home/deploy";

pub(super) fn deploy_user() -> Item {
    let owner = Owner::new(DEPLOY_USER, DEPLOY_USER);
    Item {
        id: "deploy-user",
        title: "The user people push as",
        reason: "weak on purpose: no password, no sudo, not in group docker; its keys open the agent's door and nothing else",
        references: &["M01", "U5.4"],
        rollback: "userdel --remove deploy",
        wants: vec![
            Want::Login {
                user: DEPLOY_USER.to_owned(),
                home: HOME.into(),
                groups: vec![GROUP.to_owned()],
            },
            Want::Directory {
                path: format!("{HOME}/.ssh").into(),
                mode: 0o700,
                owner,
            },
        ],
    }
}

fn key_file(path: &str, owner: Owner, lines: Vec<String>) -> FileWant {
    FileWant {
        path: path.into(),
        content: Content::KeyLines(lines),
        mode: 0o600,
        owner,
        check: None,
    }
}

pub(super) fn keys(options: &Options) -> Item {
    let (admins, deployers) = (&options.admin_keys, &options.deploy_keys);
    let doors = admins.iter().chain(deployers).map(receive_line).collect();
    let entries = admins
        .iter()
        .map(|key| KeyEntry::new(key, Permission::Admin))
        .chain(deployers.iter().map(|key| {
            KeyEntry::new(
                key,
                Permission::Deploy {
                    apps: vec!["*".to_owned()],
                },
            )
        }))
        .collect::<Vec<_>>();
    let deploy = Owner::new(DEPLOY_USER, DEPLOY_USER);
    let mut files = vec![key_file(&format!("{HOME}/.ssh/authorized_keys"), deploy, doors)];
    let mut wants = Vec::new();
    if !admins.is_empty() {
        wants.push(Want::Directory {
            path: "/root/.ssh".into(),
            mode: 0o700,
            owner: Owner::root(),
        });
        files.push(key_file(
            "/root/.ssh/authorized_keys",
            Owner::root(),
            admins.iter().map(|key| key.line()).collect(),
        ));
    }
    if !entries.is_empty() {
        files.push(FileWant {
            path: KEYS.into(),
            content: Content::KeyEntries(entries),
            mode: 0o600,
            owner: Owner::root(),
            check: None,
        });
    }
    wants.push(Want::Files {
        files,
        after: Vec::new(),
    });
    Item {
        id: "keys",
        title: "The first keys",
        reason: "a push is only as good as its signature; keys of others are left where they are",
        references: &["M02", "U5.1", "L SSH"],
        rollback: "remove the lines that begin with `restrict,command=\"/usr/local/bin/appliance receive`",
        wants,
    }
}

pub(super) fn identity() -> Item {
    let key = FileWant {
        path: IDENTITY.into(),
        content: Content::HostIdentity,
        mode: 0o600,
        owner: Owner::root(),
        check: None,
    };
    Item {
        id: "identity",
        title: "The host's identity",
        reason: "secrets are encrypted to it, and signed changes name it; made once, never replaced",
        references: &["design: Processes, Signed change"],
        rollback: "none: without it, sealed secrets of former releases cannot be opened",
        wants: vec![Want::Files {
            files: vec![key],
            after: Vec::new(),
        }],
    }
}

pub(super) fn ssh(options: &Options, facts: &Facts) -> Option<Item> {
    facts.sshd.as_ref()?;
    let enrolled = facts
        .enrolled
        .iter()
        .any(|entry| entry.permissions.contains(&Permission::Admin));
    let key_exists = !options.admin_keys.is_empty() || facts.root_has_key || enrolled;
    Some(Item {
        id: "ssh",
        title: "SSH takes keys, not passwords",
        reason: "guessing passwords is what most of the traffic on port 22 is about",
        references: &[
            "M06",
            "M07",
            "M08",
            "M10",
            "M14",
            "U5.1.19",
            "U5.1.20",
            "L SSH-7408",
        ],
        rollback: "rm /etc/ssh/sshd_config.d/00-appliance.conf; systemctl reload ssh",
        wants: vec![Want::Sshd {
            settings: sshd::settings(key_exists),
        }],
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_forced_command_names_the_binary_that_is_installed() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cMf"
            .parse()
            .expect("key");
        assert!(super::receive_line(&key).contains(crate::catalogue::BINARY));
    }
}
