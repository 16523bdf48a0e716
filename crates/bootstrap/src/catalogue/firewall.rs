//! The firewall: at boot, when somebody flushes the rules, and now.

use std::collections::BTreeSet;

use crate::facts::Facts;
use crate::firewall::rules::Rules;
use crate::item::Item;
use crate::options::Options;
use crate::want::{FileWant, Handler, Want};

pub(super) fn items(options: &Options, facts: &Facts) -> Vec<Item> {
    let ssh_ports: BTreeSet<u16> = facts
        .sshd
        .iter()
        .flat_map(|sshd| sshd.ports.iter().copied())
        .collect();
    let rules = Rules {
        ssh_ports,
        tcp: options.open_tcp.iter().copied().collect(),
        udp: BTreeSet::new(),
        from_containers: BTreeSet::new(),
    };
    vec![
        Item {
            id: "firewall-boot",
            title: "The firewall is there before the network",
            reason: "no open window at boot; whoever restarts or stops nftables does not take our table along",
            references: &["M16", "U4.3.10"],
            rollback: "systemctl disable appliance-firewall; rm -r /etc/systemd/system/nftables.service.d/50-appliance.conf",
            wants: vec![Want::Files {
                files: vec![
                    FileWant::ours(
                        "/etc/systemd/system/appliance-firewall.service",
                        include_str!("../../../../systemd/appliance-firewall.service"),
                    ),
                    FileWant::ours(
                        "/etc/systemd/system/nftables.service.d/50-appliance.conf",
                        include_str!("../../../../systemd/nftables.service.d/50-appliance.conf"),
                    ),
                ],
                after: vec![Handler::DaemonReload],
            }],
        },
        Item {
            id: "firewall",
            title: "Everything is closed but SSH, HTTP and HTTPS",
            reason: "Docker publishes ports past every firewall but one that drops before and after it",
            references: &["M15", "U4.3", "D5.14"],
            rollback: "systemctl disable --now appliance-firewall; nft delete table inet appliance",
            wants: vec![
                Want::Firewall(rules),
                Want::Unit {
                    name: "appliance-firewall.service".to_owned(),
                },
            ],
        },
    ]
}
