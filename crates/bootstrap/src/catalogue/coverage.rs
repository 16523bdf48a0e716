//! Every row of the hardening list, and what answers it: held by a test to the items themselves.
//!
//! The rows are numbered as in the list this catalogue was written from: M must, S should, O optional.
//! An item names the rows it answers among its references; a row that no item answers says here who does, or why nobody should.

/// Rows of the list: how many musts, shoulds and optional ones.
pub(crate) const ROWS: [(char, u8); 3] = [('M', 38), ('S', 30), ('O', 14)];

/// Rows that no item answers, and why.
pub(crate) const ELSEWHERE: [(&str, &str); 13] = [
    (
        "M03",
        "host.yml: docker.deploy_user_in_group; off by default, since that group is root",
    ),
    (
        "M23",
        "the gate refuses a host whose Docker listens on the network",
    ),
    (
        "S03",
        "the relay stays, but for a new host whose networks all have IPv6 (item docker-config)",
    ),
    ("S04", "host.yml: docker.ipv6"),
    (
        "S09",
        "the agent's own bans, from sshd's journal into the table's sets; host.yml: firewall.bans",
    ),
    (
        "S11",
        "host.yml: ssh.allow_users; by default nobody is locked out",
    ),
    (
        "S23",
        "appliance firewall audit joins listeners, mappings and rules",
    ),
    (
        "O06",
        "GRUB would ask for the password at every start unless a file of its package is edited: no unattended reboot",
    ),
    ("O07", "a running server's disk is not partitioned anew"),
    (
        "O09",
        "existing volumes would belong to other users, and all images vanish",
    ),
    (
        "O10",
        "host.yml: ssh.from with the tunnel's network, and firewall.interfaces with its interface as trusted",
    ),
    (
        "O11",
        "a server's console keyboard is a USB device; the modules for USB storage are blocked (item modules)",
    ),
    (
        "O13",
        "an authorization plugin that fails stops every container operation",
    ),
];

/// Rows that are refused on purpose.
pub(crate) const REFUSED: [(&str, &str); 1] = [(
    "O14",
    "lockdown is the boot loader's to switch on, and would keep modules out that Docker loads; poisoned pages slow every allocation",
)];

/// Items of CIS Docker that the list names and no item of ours answers, and why; besides those of files that no host of ours has.
pub(crate) const CIS_DOCKER_ELSEWHERE: [(&str, &str); 10] = [
    (
        "D1.1.2",
        "the deploy user is not in the group; host.yml says so where it is",
    ),
    ("D1.1.13", "Red Hat's /etc/sysconfig/docker"),
    ("D2.7", "the gate refuses an engine that listens on the network"),
    ("D2.9", "row O09"),
    ("D2.12", "row O13"),
    ("D2.16", "row S03"),
    (
        "D3.9",
        "certificates of an API that nobody may open: D3.9 to D3.14",
    ),
    ("D3.21", "Red Hat's /etc/sysconfig/docker"),
    ("D3.22", "Red Hat's /etc/sysconfig/docker"),
    ("D4.5", "Docker gave content trust up; images are named by digest"),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::facts::observe;
    use crate::memory::Memory;
    use crate::options::Options;

    #[test]
    fn every_row_is_answered_by_an_item_or_by_a_reason_and_none_by_both() {
        let mut options = Options::new("1");
        options.binary = Some("/usr/local/bin/appliance".into());
        options.ship_logs_to = Some("https://logs.example.com".to_owned());
        options.host_yml = Some(String::new());
        let mut facts = observe(&Memory::bare("debian", "13"), &options).expect("observes");
        options.timezone = Some("Etc/UTC".to_owned());
        facts.has_needrestart = true;
        facts.has_sudo = true;
        let mut answered: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for item in super::super::every(&options, &facts) {
            for reference in item.references {
                answered.entry((*reference).to_owned()).or_default().push(item.id);
            }
        }
        let given: BTreeSet<&str> = ELSEWHERE.iter().chain(&REFUSED).map(|(row, _)| *row).collect();
        assert_eq!(given.len(), ELSEWHERE.len() + REFUSED.len(), "each row once");
        let mut wrong = Vec::new();
        for (letter, last) in ROWS {
            for number in 1..=last {
                let row = format!("{letter}{number:02}");
                match (answered.get(&row), given.contains(row.as_str())) {
                    (Some(items), true) => {
                        wrong.push(format!("{row} is answered by {items:?} and has a reason"))
                    }
                    (None, false) => wrong.push(format!("{row} is answered by nobody")),
                    _ => {}
                }
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn every_item_of_cis_docker_that_the_list_names_is_answered() {
        let mut options = Options::new("1");
        options.strict = true;
        options.docker = crate::options::DockerSource::Docker;
        let facts = observe(&Memory::bare("debian", "13"), &options).expect("observes");
        let items = super::super::every(&options, &facts);
        let answered: BTreeSet<&str> = items.iter().flat_map(|item| item.references).copied().collect();
        let given: BTreeSet<&str> = CIS_DOCKER_ELSEWHERE.iter().map(|(id, _)| *id).collect();
        let singles = [
            "D1.2.2", "D2.2", "D2.7", "D2.8", "D2.9", "D2.12", "D2.13", "D2.14", "D2.15", "D2.16",
        ];
        let named = singles
            .map(str::to_owned)
            .into_iter()
            .chain((2..=18).map(|number| format!("D1.1.{number}")))
            .chain((1..=9).chain(15..=24).map(|number| format!("D3.{number}")))
            .chain(["D4.5", "D5.2", "D5.14"].map(str::to_owned));
        let missing: Vec<String> = named
            .filter(|id| !answered.contains(id.as_str()) && !given.contains(id.as_str()))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn no_item_does_what_breaks_containers_the_deploys_or_the_next_reboot() {
        let mut options = Options::new("1");
        options.strict = true;
        let facts = observe(&Memory::bare("ubuntu", "24.04"), &options).expect("observes");
        let every = format!("{:?}", super::super::every(&options, &facts));
        for never in [
            "(\"net.ipv4.ip_forward\", \"0\")",
            "max_user_namespaces",
            "unprivileged_userns_clone",
            "modules_disabled",
            "accept_ra\", \"0",
            "autoconf",
            "dad_transmits",
            "tcp_timestamps",
            "disable_ipv6",
            "install overlay",
            "install squashfs",
            "install vfat",
            "install br_netfilter",
            "KillUserProcesses",
            "RemoveIPC",
            "hidepid",
            "noexec",
            "userns-remap",
            "\"iptables\"",
            "DisableForwarding",
            "(\"AllowTcpForwarding\", \"no\")",
            "(\"ListenAddress\"",
            "AllowRedirect",
            "PASS_MAX_DAYS",
            "-e 2",
        ] {
            // The engine's package of that name is not the switch of daemon.json.
            let every = every.replace("\"iptables\"]", "]");
            assert!(!every.contains(never), "{never}");
        }
    }
}
