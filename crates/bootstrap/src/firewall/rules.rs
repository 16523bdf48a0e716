//! The rules as a value, and as text for nft.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::opening::{Net, Opening, Ports, Protocol, Source};
use super::ufw;

/// Whose rules hold for the host's own sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Ours.
    #[default]
    Own,
    /// UFW keeps the host's sockets; its rules are followed for containers too.
    Ufw,
}

/// What the table lets in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Rules {
    /// Whose rules hold.
    pub mode: Mode,
    /// Where sshd listens; new connections are limited per source.
    pub ssh_ports: BTreeSet<u16>,
    /// Networks SSH is reachable from; everyone if empty.
    pub ssh_from: BTreeSet<Net>,
    /// Networks of administrators: never limited.
    pub admins: BTreeSet<Net>,
    /// What else is open.
    pub openings: Vec<Opening>,
    /// UFW's rules in its order, in mode [`Mode::Ufw`].
    pub ufw: Vec<ufw::Line>,
    /// Interfaces that may reach everything, besides the loopback.
    pub trusted: BTreeSet<String>,
    /// Interfaces that lead outside although it cannot be told from the kernel.
    pub outside: BTreeSet<String>,
    /// Ports of this host that containers may reach, TCP and UDP.
    pub from_containers: BTreeSet<u16>,
    /// Containers may not reach the cloud's metadata service.
    pub block_metadata: bool,
    /// Ports that were closed along with the connections that were open: what comes in over such a one is reset.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub cut: BTreeSet<Ports>,
    /// Containers that are reached by their own addresses, without a published port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routed: Vec<Routed>,
    /// Sources whose logins fail again and again are kept out for a while.
    pub bans: bool,
}

/// Ports of containers on a network that is routed to from outside (Docker's `gateway_mode=routed`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// The containers' network.
    pub network: Net,
    /// Their ports, as they listen on them.
    pub ports: Ports,
    /// For whom; everyone if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Net>,
}

/// Addresses of metadata services: AWS, GCP, Azure and most others; ECS; Alibaba.
const METADATA4: &str = "169.254.169.254, 169.254.170.2, 100.100.100.200";
/// The same over IPv6: AWS, GCP.
const METADATA6: &str = "fd00:ec2::254, fd20:ce::254";
/// Begins the line of the file that holds the rules as JSON.
const MODEL: &str = "# model: ";

impl Rules {
    /// The rules a file was rendered from; `None` if it is not one of ours, or of an older form.
    pub fn from_file(text: &str) -> Option<Self> {
        let json = text.lines().take(4).find_map(|line| line.strip_prefix(MODEL))?;
        serde_json::from_str(json).ok()
    }

    /// The openings somebody asked for by a signed change.
    pub fn requests(&self) -> impl Iterator<Item = &Opening> {
        self.openings
            .iter()
            .filter(|opening| matches!(opening.source, Source::Request { .. }))
    }

    /// The script for `nft -f`: replaces the whole table in one transaction.
    ///
    /// Declaring before deleting makes "replace" work whether or not the table is there, on every nft version.
    /// Interfaces are matched by name, so that rules can be loaded before they exist.
    /// Chain policies stay `accept` with an explicit last drop: a half-edited file can never be "policy drop, no rules".
    /// The rules themselves stand in a comment, so that they and the script can never disagree.
    pub fn render(&self) -> String {
        let nets = |wanted: bool| {
            let nets = self.admins.iter().filter(|net| net.address.is_ipv4() == wanted);
            list(nets.map(ToString::to_string))
        };
        let json = serde_json::to_string(self).expect("names and numbers always serialise");
        let quoted = |names: &BTreeSet<String>| -> Vec<String> {
            names
                .iter()
                .filter(|name| super::interfaces::is_interface_name(name))
                .map(|name| format!("\"{name}\""))
                .collect()
        };
        let trusted = std::iter::once("\"lo\"".to_owned()).chain(quoted(&self.trusted));
        let from_containers = self
            .from_containers
            .iter()
            .flat_map(|port| [format!("tcp . {port}"), format!("udp . {port}")]);
        TEMPLATE
            .replace("@INPUT@\n", &self.input())
            .replace("@ALLOWED@", &self.allowed())
            .replace("@METADATA@", &self.metadata())
            .replace("@CUT@", if self.cut.is_empty() { "" } else { "    jump cut\n" })
            .replace("@CUTS@\n", &self.cut())
            .replace("@ROUTED@", &self.routed())
            .replace("@SSH@", &list(self.ssh_ports.iter().map(ToString::to_string)))
            .replace("@TCP@", &self.everyone(Protocol::Tcp))
            .replace("@UDP@", &self.everyone(Protocol::Udp))
            .replace("@ADMIN4@", &nets(true))
            .replace("@ADMIN6@", &nets(false))
            .replace("@TRUSTED@", &list(trusted))
            .replace("@OUTSIDE@", &list(quoted(&self.outside)))
            .replace("@FROM_CONTAINERS@", &list(from_containers))
            // Last: what people wrote in it must not be taken for one of the marks above.
            .replace("@MODEL@", &format!("{MODEL}{json}"))
    }

    fn everyone(&self, protocol: Protocol) -> String {
        let open = self
            .openings
            .iter()
            .filter(|opening| opening.ports.protocol == protocol && opening.from.is_empty());
        list(open.map(|opening| opening.ports.range()))
    }

    fn allowed(&self) -> String {
        let mut text = String::new();
        let match_ports = |ports: Ports| {
            let protocol = ports.protocol.name();
            format!("meta l4proto {protocol} ct original proto-dst {}", ports.range())
        };
        for line in &self.ufw {
            let verdict = if line.allow {
                "accept"
            } else {
                "counter name c_fwd_drop drop"
            };
            let ports = line.ports.map(match_ports).unwrap_or_default();
            let family = if line.from.address.is_ipv4() {
                "ipv4"
            } else {
                "ipv6"
            };
            let source = if line.from.is_everyone() {
                format!("meta nfproto {family}")
            } else {
                format!("{} saddr {}", line.from.family(), line.from)
            };
            let _infallible = writeln!(text, "    {source} {ports} {verdict}");
        }
        for protocol in ["tcp", "udp"] {
            let _infallible = writeln!(
                text,
                "    meta l4proto {protocol} ct original proto-dst @ext_{protocol} accept"
            );
        }
        for opening in &self.openings {
            for net in &opening.from {
                let _infallible = writeln!(
                    text,
                    "    {} saddr {net} {} accept",
                    net.family(),
                    match_ports(opening.ports)
                );
            }
        }
        text
    }

    fn input(&self) -> String {
        // In UFW's mode an input chain of ours would only ever repeat or contradict UFW's.
        if self.mode == Mode::Ufw {
            return String::new();
        }
        let mut ssh = String::new();
        if self.ssh_from.is_empty() {
            ssh.push_str("    tcp dport @ssh_ports accept\n");
        }
        for net in &self.ssh_from {
            let _infallible = writeln!(
                ssh,
                "    {} saddr {net} tcp dport @ssh_ports accept",
                net.family()
            );
        }
        INPUT.replace("@SSH_ACCEPT@", &ssh)
    }

    /// What is open still goes on; the rest is told that its connection is over.
    ///
    /// Only packets of whoever began the connection: answers to connections of this host's own stay untouched.
    /// From whichever interface they came: a private network's is no less outside than one with a default route.
    /// What comes from containers returns first, since `meta iifkind` of a plain card matches nothing, not even `!=`.
    fn cut(&self) -> String {
        if self.cut.is_empty() {
            return String::new();
        }
        let mut text =
            String::from("\n  chain cut {\n    iifname != @outside_if meta iifkind \"bridge\" return\n");
        for ports in &self.cut {
            let protocol = ports.protocol.name();
            let over = match ports.protocol {
                Protocol::Tcp => "reject with tcp reset",
                Protocol::Udp => "drop",
            };
            let flow = format!(
                "ct state established ct direction original meta l4proto {protocol} ct original proto-dst {}",
                ports.range()
            );
            let _infallible = writeln!(text, "    {flow} jump allowed_orig");
            let _infallible = writeln!(text, "    {flow} {over}");
        }
        text.push_str("  }\n");
        text
    }

    fn routed(&self) -> String {
        let mut text = String::new();
        for routed in &self.routed {
            let (family, network) = (routed.network.family(), &routed.network);
            let ports = format!("{} dport {}", routed.ports.protocol.name(), routed.ports.range());
            if routed.from.is_empty() {
                let _infallible = writeln!(text, "    {family} daddr {network} {ports} accept");
            }
            for net in routed.from.iter().filter(|net| net.family() == family) {
                let _infallible = writeln!(
                    text,
                    "    {family} saddr {net} {family} daddr {network} {ports} accept"
                );
            }
        }
        text
    }

    /// On Google's and Oracle's clouds the same address answers for names and time, which containers need.
    fn metadata(&self) -> String {
        if !self.block_metadata {
            return String::new();
        }
        let rule = |family: &str, addresses: &str| {
            format!(
                "    iifname != @outside_if meta iifkind \"bridge\" {family} daddr {{ {addresses} }} meta l4proto {{ tcp, udp }} th dport != {{ 53, 123 }} counter name c_metadata reject with icmpx type admin-prohibited\n"
            )
        };
        rule("ip", METADATA4) + &rule("ip6", METADATA6)
    }

    /// Whether a new SSH connection from this address would be let in.
    pub fn admits_ssh(&self, address: IpAddr) -> bool {
        self.mode == Mode::Ufw
            || self.ssh_from.is_empty()
            || self.ssh_from.iter().any(|net| net.contains(address))
            || self
                .ssh_ports
                .iter()
                .all(|port| self.opening_for(Protocol::Tcp, *port, address).is_some())
    }

    /// The opening that lets a packet from outside in.
    pub fn opening_for(&self, protocol: Protocol, port: u16, address: IpAddr) -> Option<&Opening> {
        self.openings
            .iter()
            .find(|opening| opening.admits(protocol, port, address))
    }

    /// What UFW's rules say about a published port; `None` if none of them matches.
    pub fn ufw_says(&self, protocol: Protocol, port: u16, address: IpAddr) -> Option<&ufw::Line> {
        self.ufw.iter().find(|line| {
            line.from.contains(address)
                && line
                    .ports
                    .is_none_or(|ports| ports.protocol == protocol && ports.contains(port))
        })
    }

    /// How it differs from an earlier state, for a person.
    pub fn changes_from(&self, before: Option<&Self>) -> Vec<String> {
        let Some(before) = before else {
            let mut open: Vec<String> = self
                .ssh_ports
                .iter()
                .map(ToString::to_string)
                .chain(self.openings.iter().map(|opening| opening.ports.range()))
                .collect();
            open.dedup();
            return vec![format!("close every port but {}", open.join(", "))];
        };
        let mut changes = Vec::new();
        let added = self.openings.iter().filter(|new| !before.openings.contains(new));
        changes.extend(added.map(|opening| format!("open {opening}")));
        let gone = before.openings.iter().filter(|old| !self.openings.contains(old));
        changes.extend(gone.map(|opening| format!("close {opening}")));
        for (what, differs) in [
            ("whose rules hold", self.mode != before.mode),
            (
                "SSH's ports and networks",
                self.ssh_ports != before.ssh_ports || self.ssh_from != before.ssh_from,
            ),
            ("administrators' networks", self.admins != before.admins),
            ("UFW's rules", self.ufw != before.ufw),
            (
                "interfaces",
                self.trusted != before.trusted || self.outside != before.outside,
            ),
            (
                "what containers may reach",
                self.from_containers != before.from_containers
                    || self.block_metadata != before.block_metadata,
            ),
            ("which connections are cut", self.cut != before.cut),
            ("networks that are routed to", self.routed != before.routed),
            ("bans", self.bans != before.bans),
        ] {
            if differs {
                changes.push(format!("firewall: change {what}"));
            }
        }
        if changes.is_empty() {
            changes.push("write the firewall's rules anew".to_owned());
        }
        changes
    }
}

fn list(values: impl IntoIterator<Item = String>) -> String {
    let values: Vec<String> = values.into_iter().collect();
    if values.is_empty() {
        String::new()
    } else {
        format!(" elements = {{ {} }}", values.join(", "))
    }
}

/// Exercised with real packets on nft 1.0.6 and 1.1.3.
const TEMPLATE: &str = include_str!("table.nft");
/// The part about the host's own sockets.
const INPUT: &str = include_str!("input.nft");

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
