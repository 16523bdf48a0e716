//! The firewall: at boot, when somebody flushes the rules, and now.

use std::collections::BTreeSet;

use crate::facts::Facts;
use crate::firewall::opening::Source;
use crate::firewall::rules::{Mode, Rules};
use crate::item::{Item, Level};
use crate::options::Options;
use crate::want::{FileWant, Handler, Want};

pub(super) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    let ssh_ports: BTreeSet<u16> = facts
        .sshd
        .iter()
        .flat_map(|sshd| sshd.ports.iter().copied())
        .collect();
    if options.firewall.off {
        return Vec::new();
    }
    let rules = rules(options, facts, ssh_ports);
    let mut files = Vec::new();
    if rules.mode == Mode::Ufw {
        files.extend([
            FileWant::ours(
                "/etc/systemd/system/appliance-firewall-follow.path",
                include_str!("../../../../systemd/appliance-firewall-follow.path"),
            ),
            FileWant::ours(
                "/etc/systemd/system/appliance-firewall-follow.service",
                include_str!("../../../../systemd/appliance-firewall-follow.service"),
            ),
        ]);
    }
    let follow = (rules.mode == Mode::Ufw).then(|| Want::Unit {
        name: "appliance-firewall-follow.path".to_owned(),
    });
    vec![
        Item {
            id: "firewall-boot",
            level: Level::Must,
            title: "The firewall is there before the network",
            reason: "no open window at boot; whoever restarts or stops nftables does not take our table along, and what fails of us leaves it to nft alone",
            references: &["M16", "U4.3.10"],
            rollback: "systemctl disable appliance-firewall; rm -r /etc/systemd/system/nftables.service.d/50-appliance.conf",
            wants: vec![Want::Files {
                files: [
                    FileWant::ours(
                        "/etc/systemd/system/appliance-firewall.service",
                        include_str!("../../../../systemd/appliance-firewall.service"),
                    ),
                    FileWant::ours(
                        "/etc/systemd/system/appliance-firewall-bare.service",
                        include_str!("../../../../systemd/appliance-firewall-bare.service"),
                    ),
                    FileWant::ours(
                        "/etc/systemd/system/nftables.service.d/50-appliance.conf",
                        include_str!("../../../../systemd/nftables.service.d/50-appliance.conf"),
                    ),
                ]
                .into_iter()
                .chain(files)
                .collect(),
                after: vec![Handler::DaemonReload],
            }],
        },
        Item {
            id: "firewall",
            level: Level::Must,
            title: "Everything is closed but SSH, HTTP and HTTPS",
            reason: "Docker publishes ports past every firewall but one that drops before and after it",
            references: &["M15", "U4.3", "D5.14"],
            rollback: "systemctl disable --now appliance-firewall; nft delete table inet appliance",
            wants: [
                Want::Firewall(rules),
                Want::Unit {
                    name: "appliance-firewall.service".to_owned(),
                },
            ]
            .into_iter()
            .chain(follow)
            .collect(),
        },
    ]
}

/// What `host.yml` asks for, and what was asked for by signed changes since.
fn rules(options: &Options, facts: &Facts, mut ssh_ports: BTreeSet<u16>) -> Rules {
    let wishes = &options.firewall;
    let before = facts.firewall_rules.as_ref();
    // UFW's mode is a decision of the first run: who turns UFW on later adds a second lock, and loses none.
    let mode = wishes.mode.unwrap_or(match before {
        Some(before) => before.mode,
        None if facts.ufw_enabled => Mode::Ufw,
        None => Mode::Own,
    });
    ssh_ports.extend(options.ssh.port);
    let mut openings = if mode == Mode::Ufw {
        // Its user says with UFW what is open, the web included.
        wishes
            .openings
            .iter()
            .filter(|opening| opening.source != Source::Builtin)
            .cloned()
            .collect()
    } else {
        wishes.openings.clone()
    };
    openings.extend(before.into_iter().flat_map(Rules::requests).cloned());
    Rules {
        mode,
        ssh_ports,
        ssh_from: options.ssh.from.clone(),
        admins: options.key_networks.values().flatten().copied().collect(),
        openings,
        ufw: if mode == Mode::Ufw {
            facts.ufw.clone()
        } else {
            Vec::new()
        },
        trusted: wishes.trusted.clone(),
        outside: wishes.outside.clone(),
        from_containers: BTreeSet::new(),
        cut: before.map(|before| before.cut.clone()).unwrap_or_default(),
        routed: wishes.routed.clone(),
        block_metadata: wishes.block_metadata,
        bans: wishes.bans,
    }
}
