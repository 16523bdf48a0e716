//! Packages, directories, accounts, logs.

use std::collections::BTreeSet;

use super::{GROUP, MANAGED, PROXY_USER};
use crate::facts::Facts;
use crate::host::Owner;
use crate::item::{Item, Level};
use crate::options::Options;
use crate::want::{Check, Content, FileWant, Handler, Want};

/// `more`: what later items need.
pub(super) fn packages(facts: &Facts, more: BTreeSet<String>) -> Item {
    let mut names = vec!["ca-certificates", "iproute2", "logrotate", "nftables", "procps"];
    if facts.apparmor {
        names.push("apparmor");
    }
    Item {
        id: "packages",
        level: Level::Must,
        title: "Packages the rest needs",
        reason: "the firewall, log rotation and TLS to registries depend on them",
        references: &["U4.2", "U6.1.3.8"],
        rollback: "apt-get remove what the run installed",
        wants: vec![Want::Packages {
            names: names.into_iter().map(str::to_owned).chain(more).collect(),
        }],
    }
}

pub(super) fn state() -> Item {
    let directory = |path: &str, mode| Want::Directory {
        path: path.into(),
        mode,
        owner: Owner::root(),
    };
    Item {
        id: "state",
        level: Level::Must,
        title: "Places for configuration and state",
        reason: "secrets, keys and ledgers are for root alone",
        references: &["M37"],
        rollback: "rm -r /etc/appliance /var/lib/appliance (this is all the appliance knows)",
        wants: vec![
            directory("/etc/appliance", 0o755),
            directory("/etc/appliance/keys.d", 0o700),
            directory("/var/lib/appliance", 0o700),
            directory("/var/lib/appliance/fw", 0o700),
            directory("/var/lib/appliance/bootstrap", 0o700),
            directory("/var/log/appliance", 0o750),
        ],
    }
}

/// Where `host.yml` stands.
const HOST_YML: &str = "/etc/appliance/host.yml";

pub(super) fn host_yml(options: &Options) -> Option<Item> {
    let text = options.host_yml.clone()?;
    Some(Item {
        id: "host-yml",
        level: Level::Must,
        title: "What the administrators want of this host",
        reason: "the next run, and the agent, read it again",
        references: &["design: Configuration"],
        rollback: "write /etc/appliance/host.yml anew",
        wants: vec![Want::Files {
            files: vec![FileWant {
                path: HOST_YML.into(),
                content: Content::Instead(text),
                mode: 0o644,
                owner: Owner::root(),
                check: None,
                force: false,
            }],
            after: Vec::new(),
        }],
    })
}

pub(super) fn accounts() -> Item {
    Item {
        id: "accounts",
        level: Level::Must,
        title: "The proxy's user and the socket's group",
        reason: "the proxy faces the internet and holds no power; the group decides who reaches the agent",
        references: &["M38", "L ACCT"],
        rollback: "rm /etc/sysusers.d/appliance.conf /etc/tmpfiles.d/appliance.conf; userdel appliance-proxy; groupdel appliance",
        wants: vec![
            Want::Files {
                files: vec![
                    FileWant::ours(
                        "/etc/sysusers.d/appliance.conf",
                        include_str!("../../../../systemd/appliance.sysusers.conf"),
                    ),
                    FileWant::ours(
                        "/etc/tmpfiles.d/appliance.conf",
                        include_str!("../../../../systemd/appliance.tmpfiles.conf"),
                    ),
                ],
                after: vec![Handler::Tmpfiles],
            },
            Want::Accounts {
                groups: vec![GROUP.to_owned()],
                users: vec![PROXY_USER.to_owned()],
            },
        ],
    }
}

/// MiB: 5 % of the disk, at most what was asked for, at least 64.
fn journal_cap(disk_total: u64, most: u64) -> u64 {
    ((disk_total / 20) >> 20).clamp(64, (most >> 20).max(64))
}

pub(super) fn journald(options: &Options, facts: &Facts) -> Item {
    let cap = journal_cap(facts.disk_total, options.journal_size);
    let text = format!(
        "{MANAGED}[Journal]\nStorage=persistent\nCompress=yes\nSystemMaxUse={cap}M\nSystemKeepFree=1G\nMaxRetentionSec=1month\n"
    );
    Item {
        id: "journald",
        level: Level::Must,
        title: "The journal is kept, and bounded",
        reason: "logs survive a reboot and never fill the disk",
        references: &["M34", "U6.1.1.3", "U6.1.2.3", "U6.1.2.4"],
        rollback: "rm /etc/systemd/journald.conf.d/50-appliance.conf; systemctl restart systemd-journald",
        wants: vec![Want::Files {
            files: vec![FileWant::ours(
                "/etc/systemd/journald.conf.d/50-appliance.conf",
                text,
            )],
            after: vec![Handler::Journald],
        }],
    }
}

pub(super) fn logrotate() -> Item {
    const RULES: &str = "/var/log/appliance/*.log {\n    weekly\n    rotate 8\n    maxsize 50M\n    compress\n    delaycompress\n    missingok\n    notifempty\n    create 0640 root root\n}\n";
    Item {
        id: "logrotate",
        level: Level::Must,
        title: "Our log files are rotated",
        reason: "container logs are Docker's to rotate; copying them away would damage them, so only our own are named",
        references: &["M35", "U6.1.3.8"],
        rollback: "rm /etc/logrotate.d/appliance",
        wants: vec![Want::Files {
            files: vec![
                FileWant::ours("/etc/logrotate.d/appliance", format!("{MANAGED}{RULES}")).checked(Check(&[
                    "logrotate",
                    "--debug",
                    "--state",
                    "/dev/null",
                    "{}",
                ])),
            ],
            after: Vec::new(),
        }],
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_journal_takes_a_twentieth_of_small_disks_and_half_a_gibibyte_of_large_ones() {
        for (disk, expect) in [(0, 64), (4 << 30, 204), (25 << 30, 500), (2 << 40, 500)] {
            assert_eq!(super::journal_cap(disk, 500 << 20), expect);
        }
    }
}
