//! What costs something, and what only some want: the profile `strict`, and items that are switched on by name.

use super::MANAGED;
use super::hardening::{files, item};
use crate::facts::Facts;
use crate::host::Owner;
use crate::item::{Item, Level};
use crate::options::Options;
use crate::want::{Content, FileWant, Handler, Want};

/// Every item of this page, in order.
pub(super) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    let mut items = optional();
    items.push(package_files(options));
    items.push(package_news(facts));
    if facts.container.is_none() {
        // The kernel has one audit log, and gives it to no container.
        items.push(auditd());
    }
    items.push(dns_over_tls(facts));
    items.extend(options.ship_logs_to.as_deref().map(ship_logs));
    items
}

fn dns_over_tls(facts: &Facts) -> Item {
    item(
        "dns-over-tls",
        Level::Chosen,
        "Names are asked for under encryption where the server can",
        "who sits between host and resolver sees and alters less; a resolver that cannot is asked as before",
        &["O12"],
        "rm /etc/systemd/resolved.conf.d/50-appliance.conf; systemctl restart systemd-resolved",
        if facts.has_resolved {
            files(
                vec![FileWant::ours(
                    "/etc/systemd/resolved.conf.d/50-appliance.conf",
                    format!("{MANAGED}[Resolve]\nDNSOverTLS=opportunistic\n"),
                )],
                vec![Handler::Restart("systemd-resolved.service".to_owned())],
            )
        } else {
            Vec::new()
        },
    )
}

/// The journal goes to another machine too; systemd's own uploader remembers what was sent.
fn ship_logs(url: &str) -> Item {
    item(
        "remote-journal",
        Level::Must,
        "The journal is kept elsewhere too",
        "who breaks in can alter what is here, and nothing of what has left; logs.ship_to of host.yml says where to",
        &["O08", "U6.1.2.1", "L LOGG-2154"],
        "take logs.ship_to out of host.yml; systemctl disable --now systemd-journal-upload",
        vec![
            Want::Packages {
                names: vec!["systemd-journal-remote".to_owned()],
            },
            Want::Files {
                files: vec![
                    FileWant::ours(
                        "/etc/systemd/journal-upload.conf.d/50-appliance.conf",
                        format!("{MANAGED}[Upload]\nURL={url}\n"),
                    ),
                    // Its own unit gives up for good when the other side is away for a moment.
                    FileWant::ours(
                        "/etc/systemd/system/systemd-journal-upload.service.d/50-appliance.conf",
                        format!(
                            "{MANAGED}[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nRestartSec=15\n"
                        ),
                    ),
                ],
                after: vec![
                    Handler::DaemonReload,
                    Handler::Restart("systemd-journal-upload.service".to_owned()),
                ],
            },
            Want::Unit {
                name: "systemd-journal-upload.service".to_owned(),
            },
        ],
    )
}

fn auditd() -> Item {
    // Of each watched file the directory above it is on every host, or the rules behind it would not be loaded.
    let watched = [
        (
            "x",
            "docker",
            &[
                "/usr/bin/dockerd",
                "/usr/bin/containerd",
                "/usr/bin/containerd-shim",
                "/usr/bin/containerd-shim-runc-v1",
                "/usr/bin/containerd-shim-runc-v2",
                "/usr/bin/runc",
                "/usr/sbin/runc",
            ][..],
        ),
        (
            "wa",
            "docker",
            &[
                "/var/lib/docker",
                "/etc/docker",
                "/etc/default/docker",
                "/etc/containerd",
                "/run/containerd",
                "/run/docker.sock",
                "/usr/lib/systemd/system/docker.service",
                "/usr/lib/systemd/system/docker.socket",
            ],
        ),
        ("wa", "sudo", &["/etc/sudoers", "/etc/sudoers.d"]),
        ("wa", "ssh", &["/etc/ssh"]),
        (
            "wa",
            "appliance",
            &["/etc/appliance", "/var/lib/appliance/keys.json"],
        ),
    ];
    let rules: String = watched
        .iter()
        .flat_map(|(access, key, paths)| {
            paths
                .iter()
                .map(move |path| format!("-w {path} -p {access} -k {key}\n"))
        })
        .collect();
    item(
        "auditd",
        Level::Optional,
        "Who touched the files that matter",
        "the kernel's own record of changes to Docker's, sudo's, sshd's and our files; it rotates and never stops the host",
        &[
            "S08",
            "U6.2",
            "D1.1.3",
            "D1.1.4",
            "D1.1.5",
            "D1.1.6",
            "D1.1.7",
            "D1.1.8",
            "D1.1.9",
            "D1.1.10",
            "D1.1.11",
            "D1.1.12",
            "D1.1.14",
            "D1.1.15",
            "D1.1.16",
            "D1.1.17",
            "D1.1.18",
            "L ACCT-9628",
        ],
        "apt-get remove auditd; rm /etc/audit/rules.d/50-appliance.rules",
        vec![
            Want::Packages {
                names: vec!["auditd".to_owned()],
            },
            Want::Files {
                files: vec![
                    FileWant::ours(
                        "/etc/audit/rules.d/50-appliance.rules",
                        format!("{MANAGED}{rules}"),
                    )
                    .mode(0o640),
                ],
                after: vec![Handler::Restart("auditd.service".to_owned())],
            },
        ],
    )
}

/// Compares what packages brought with what they shipped, at the lowest priority the disk has.
fn package_files(options: &Options) -> Item {
    let mut names = vec!["debsums".to_owned()];
    if options.strict {
        names.push("apt-show-versions".to_owned());
    }
    item(
        "debsums",
        Level::Should,
        "Package files are compared with what was shipped",
        "once a week, what was altered after its installation is told (journalctl -t debsums); it costs nothing in between",
        &["O02", "L PKGS-7370", "L PKGS-7394"],
        "apt-get remove debsums apt-show-versions",
        vec![
            Want::Packages { names },
            // The package compares nothing by itself.
            Want::Files {
                files: vec![FileWant {
                    path: "/etc/default/debsums".into(),
                    content: Content::ShellSettings(vec![("CRON_CHECK", "weekly")]),
                    mode: 0o644,
                    owner: Owner::root(),
                    check: None,
                    force: false,
                }],
                after: Vec::new(),
            },
        ],
    )
}

/// What maintainers of packages warn of; automatic upgrades pass it by, and so does whoever has no terminal.
fn package_news(facts: &Facts) -> Item {
    item(
        "package-news",
        Level::Should,
        "What a package warns of is shown before it is upgraded",
        "a changed default is read of before it is met; Debian's own choice for servers, and nothing is asked",
        &["L DEB-0811"],
        "apt-get remove apt-listchanges",
        // Packages of Ubuntu bring no such notes.
        if facts.os.id == "debian" {
            vec![Want::Packages {
                names: vec!["apt-listchanges".to_owned()],
            }]
        } else {
            Vec::new()
        },
    )
}

fn optional() -> Vec<Item> {
    let packages = |names: &[&str]| {
        vec![Want::Packages {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }]
    };
    vec![
        item(
            "aide",
            Level::Optional,
            "Changed system files are noticed",
            "a daily comparison with a recorded state; containers' files are left out",
            &["O01", "U6.3", "L FINT-4350"],
            "apt-get remove aide",
            {
                let mut wants = packages(&["aide", "aide-common"]);
                wants.extend(files(
                    vec![FileWant::ours(
                        "/etc/aide/aide.conf.d/99_appliance",
                        format!("{MANAGED}!/var/lib/docker\n!/var/lib/containerd\n!/var/lib/appliance\n!/var/lib/appliance-proxy\n!/var/log\n!/run\n!/tmp\n"),
                    )],
                    Vec::new(),
                ));
                // Without a recorded state there is nothing to compare with.
                wants.push(Want::Made {
                    path: "/var/lib/aide/aide.db",
                    by: &["aideinit", "--yes", "--force"],
                });
                wants.push(Want::Unit {
                    name: "dailyaidecheck.timer".to_owned(),
                });
                wants
            },
        ),
        item(
            "accounting",
            Level::Optional,
            "Load and processes are recorded over time",
            "what happened last night, without having watched",
            &["O03", "L ACCT-9622", "L ACCT-9626"],
            "apt-get remove acct sysstat",
            vec![
                Want::Packages {
                    names: ["acct", "sysstat"].map(str::to_owned).to_vec(),
                },
                // Debian installs the collector switched off.
                Want::Files {
                    files: vec![FileWant {
                        path: "/etc/default/sysstat".into(),
                        content: Content::ShellSettings(vec![("ENABLED", "true")]),
                        mode: 0o644,
                        owner: Owner::root(),
                        check: None,
                        force: false,
                    }],
                    after: Vec::new(),
                },
                Want::Unit {
                    name: "sysstat.service".to_owned(),
                },
            ],
        ),
        item(
            "malware-scanner",
            Level::Chosen,
            "Known rootkits are looked for",
            "some audits ask for it; it reports much that is none",
            &["O04", "L HRDN-7230"],
            "apt-get remove rkhunter",
            packages(&["rkhunter"]),
        ),
    ]
}
