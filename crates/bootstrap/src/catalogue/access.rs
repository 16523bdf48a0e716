//! Who gets in: the deploy user, keys, the host's identity, sshd.

use super::{DEPLOY_USER, GROUP, IDENTITY};
use crate::authorized_keys::{from_option, marked, receive_line_from};
use crate::facts::{Facts, KEYS};
use crate::firewall::opening::Net;
use crate::host::Owner;
use crate::item::{Item, Level};
use crate::key::{KeyEntry, Permission, PublicKey};
use crate::options::Options;
use crate::sshd;
use crate::want::{Content, FileWant, Handler, Want};

const HOME: &str = "/home/deploy";

pub(super) fn deploy_user(options: &Options) -> Item {
    let owner = Owner::new(DEPLOY_USER, DEPLOY_USER);
    Item {
        id: "deploy-user",
        level: Level::Must,
        title: "The user people push as",
        reason: "weak on purpose: no password, no sudo, not in group docker; its keys open the agent's door and nothing else",
        references: &["M01", "U5.4"],
        rollback: "userdel --remove deploy",
        wants: vec![
            Want::Login {
                user: DEPLOY_USER.to_owned(),
                home: HOME.into(),
                groups: std::iter::once(GROUP)
                    .chain(options.docker_group.then_some("docker"))
                    .map(str::to_owned)
                    .collect(),
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
        force: false,
    }
}

fn networks<'a>(options: &'a Options, key: &PublicKey) -> &'a [Net] {
    options
        .key_networks
        .get(&key.fingerprint())
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn is_declared(options: &Options, key: &PublicKey) -> bool {
    options.declared.contains(&key.fingerprint())
}

/// The deploy user's lines: the agent's door for every key.
pub(crate) fn doors(options: &Options) -> Vec<String> {
    let limited = options.limited_keys.iter().map(|limited| &limited.key);
    let keys = options
        .admin_keys
        .iter()
        .chain(&options.deploy_keys)
        .chain(limited);
    keys.map(|key| {
        let line = receive_line_from(key, networks(options, key));
        marked(&line, is_declared(options, key))
    })
    .collect()
}

/// Root's lines: a shell for administrators.
pub(crate) fn root_lines(options: &Options) -> Vec<String> {
    let line = |key: &PublicKey| match networks(options, key) {
        [] => key.line(),
        networks => format!("{} {}", from_option(networks), key.line()),
    };
    let keys = options.admin_keys.iter();
    keys.map(|key| marked(&line(key), is_declared(options, key)))
        .collect()
}

pub(super) fn keys(options: &Options, facts: &Facts) -> Item {
    let (admins, deployers) = (&options.admin_keys, &options.deploy_keys);
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
        .chain(
            options
                .limited_keys
                .iter()
                .map(|limited| KeyEntry::new(&limited.key, limited.permission.clone())),
        )
        .collect::<Vec<_>>();
    let deploy = Owner::new(DEPLOY_USER, DEPLOY_USER);
    let mut files = vec![key_file(
        &format!("{HOME}/.ssh/authorized_keys"),
        deploy,
        doors(options),
    )];
    let mut wants = Vec::new();
    if !admins.is_empty() || facts.root_declared {
        wants.push(Want::Directory {
            path: "/root/.ssh".into(),
            mode: 0o700,
            owner: Owner::root(),
        });
        files.push(key_file(
            "/root/.ssh/authorized_keys",
            Owner::root(),
            root_lines(options),
        ));
    }
    if !entries.is_empty() {
        files.push(FileWant {
            path: KEYS.into(),
            content: Content::KeyEntries(entries),
            mode: 0o600,
            owner: Owner::root(),
            check: None,
            force: false,
        });
    }
    wants.push(Want::Files {
        files,
        after: Vec::new(),
    });
    Item {
        id: "keys",
        level: Level::Must,
        title: "The first keys",
        reason: "a push is only as good as its signature; keys of others are left where they are",
        references: &["M02", "U5.1", "L SSH"],
        rollback: "remove the lines that end with `appliance:key` or `appliance:host.yml`",
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
        force: false,
    };
    Item {
        id: "identity",
        level: Level::Must,
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
    let sshd = facts.sshd.as_ref()?;
    let enrolled = facts
        .enrolled
        .iter()
        .any(|entry| entry.permissions.contains(&Permission::Admin));
    let banner = super::is_on(options, facts, "banner");
    let key_exists = !options.admin_keys.is_empty() || facts.root_has_key || enrolled;
    let circumstances = sshd::Circumstances {
        algorithms: facts.ssh_algorithms.clone(),
        keywords: sshd.effective.keys().map(String::as_str).collect(),
        key_exists,
        banner,
        strict: options.strict,
        exempt: options
            .key_networks
            .values()
            .flatten()
            .chain(&options.ssh.from)
            .copied()
            .collect(),
    };
    Some(Item {
        id: "ssh",
        level: Level::Must,
        title: "SSH takes keys, not passwords, and only good ciphers",
        reason: "guessing passwords is what most of the traffic on port 22 is about",
        references: &[
            "M06",
            "M07",
            "M08",
            "M09",
            "M10",
            "M11",
            "M14",
            "S10",
            "S12",
            "S13",
            "U5.1.6",
            "U5.1.7",
            "U5.1.12",
            "U5.1.15",
            "U5.1.19",
            "U5.1.20",
            "L SSH-7408",
        ],
        rollback: "rm /etc/ssh/sshd_config.d/00-appliance.conf; systemctl reload ssh",
        wants: vec![
            // First the way back, then the change.
            Want::Files {
                files: vec![FileWant::ours(
                    "/etc/systemd/system/appliance-ssh-confirmed.service",
                    include_str!("../../../../systemd/appliance-ssh-confirmed.service"),
                )],
                after: vec![Handler::DaemonReload],
            },
            Want::Unit {
                name: "appliance-ssh-confirmed.service".to_owned(),
            },
            Want::Sshd {
                settings: sshd::settings(&options.ssh, &circumstances),
            },
        ],
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_forced_command_names_the_binary_that_is_installed() {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cMf"
            .parse()
            .expect("key");
        assert!(crate::authorized_keys::receive_line(&key).contains(crate::catalogue::BINARY));
    }
}
