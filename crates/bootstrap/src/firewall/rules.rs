//! The rules as text, rendered from what should be open.

use std::collections::BTreeSet;

use serde::Serialize;

/// What the table lets in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rules {
    /// Where sshd listens; open to everyone, new connections limited per source.
    pub ssh_ports: BTreeSet<u16>,
    /// TCP ports open to everyone.
    pub tcp: BTreeSet<u16>,
    /// UDP ports open to everyone.
    pub udp: BTreeSet<u16>,
    /// Ports of this host that containers may reach, TCP and UDP.
    pub from_containers: BTreeSet<u16>,
}

impl Rules {
    /// The script for `nft -f`: replaces the whole table in one transaction.
    ///
    /// The first two lines make "replace" work whether or not the table is there, on every nft version.
    /// Interfaces are matched by name, so that rules can be loaded before they exist.
    /// Chain policies stay `accept` with an explicit last drop: a half-edited file can never be "policy drop, no rules".
    pub fn render(&self) -> String {
        let ssh = elements(&self.ssh_ports);
        let tcp = elements(&self.tcp);
        let udp = elements(&self.udp);
        let from_containers = {
            let pairs: Vec<String> = self
                .from_containers
                .iter()
                .flat_map(|port| [format!("tcp . {port}"), format!("udp . {port}")])
                .collect();
            list(&pairs)
        };
        TEMPLATE
            .replace("@SSH@", &ssh)
            .replace("@TCP@", &tcp)
            .replace("@UDP@", &udp)
            .replace("@FROM_CONTAINERS@", &from_containers)
    }
}

fn elements(ports: &BTreeSet<u16>) -> String {
    list(&ports.iter().map(ToString::to_string).collect::<Vec<_>>())
}

fn list(values: &[String]) -> String {
    if values.is_empty() {
        String::new()
    } else {
        format!(" elements = {{ {} }}", values.join(", "))
    }
}

/// Exercised with real packets on nft 1.0.6 and 1.1.3.
const TEMPLATE: &str = include_str!("table.nft");

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules {
            ssh_ports: BTreeSet::from([22]),
            tcp: BTreeSet::from([80, 443]),
            udp: BTreeSet::new(),
            from_containers: BTreeSet::new(),
        }
    }

    #[test]
    fn the_default_table_is_the_golden_one() {
        let golden = include_str!("golden.nft");
        assert_eq!(
            rules().render(),
            golden,
            "if this change is meant, write the new text to golden.nft"
        );
    }

    #[test]
    fn ports_appear_where_they_belong_and_empty_sets_have_no_elements() {
        let mut rules = rules();
        rules.ssh_ports = BTreeSet::from([22, 2222]);
        rules.from_containers = BTreeSet::from([53]);
        let text = rules.render();
        assert!(
            text.contains("set ssh_ports { type inet_service; elements = { 22, 2222 } }"),
            "{text}"
        );
        assert!(text.contains("elements = { tcp . 53, udp . 53 }"), "{text}");
        assert!(
            text.contains("set ext_udp { type inet_service; flags interval; auto-merge; }"),
            "{text}"
        );
    }
}
