//! What happens to one new connection from outside, step by step. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::opening::Protocol;
use super::rules::{Mode, Rules};

/// A new connection, as somebody outside would open it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port it is addressed to, on one of the host's own addresses.
    pub port: u16,
    /// Where it comes from.
    pub from: IpAddr,
}

/// Who answers on the port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// A socket of the host itself, `docker-proxy` and containers on the host's network included.
    Host,
    /// A container, by Docker's address translation.
    Container,
}

/// One table's word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Whose rule.
    pub by: String,
    /// Whether it lets the packet go on.
    pub pass: bool,
    /// Why.
    pub why: String,
}

/// The steps a packet takes; it gets through if each lets it pass.
pub fn explain(rules: &Rules, packet: Packet, target: Target, banned: bool) -> Vec<Step> {
    let Packet { protocol, port, from } = packet;
    let step = |by: &str, pass: bool, why: String| Step {
        by: by.to_owned(),
        pass,
        why,
    };
    let mut steps = Vec::new();
    if banned {
        steps.push(step(
            "appliance, chain early",
            false,
            format!("{from} is banned; lift it: appliance firewall unban {from}"),
        ));
        return steps;
    }
    let spoofed = from.is_loopback() || from.is_multicast() || from.is_unspecified();
    if spoofed {
        steps.push(step(
            "appliance, chain early",
            false,
            format!("{from} is no source a packet from outside can have"),
        ));
        return steps;
    }
    let ssh = protocol == Protocol::Tcp && rules.ssh_ports.contains(&port);
    let limited = ssh && !rules.admins.iter().any(|net| net.contains(from));
    steps.push(step(
        "appliance, chain early",
        true,
        if limited {
            "it is addressed to this host; new SSH connections are limited to 12 a minute".to_owned()
        } else {
            "it is addressed to this host".to_owned()
        },
    ));
    let chain = match target {
        Target::Host => "appliance, chain input",
        Target::Container => "appliance, chain forward",
    };
    if target == Target::Host && rules.mode == Mode::Ufw {
        steps.push(ufw(rules, packet));
        return steps;
    }
    if ssh
        && target == Target::Host
        && (rules.ssh_from.is_empty() || rules.ssh_from.iter().any(|net| net.contains(from)))
    {
        steps.push(step(chain, true, "sshd listens there".to_owned()));
        return steps;
    }
    if let Some(opening) = rules.opening_for(protocol, port, from) {
        let comment = if opening.comment.is_empty() {
            String::new()
        } else {
            format!(" ({})", opening.comment)
        };
        steps.push(step(
            chain,
            true,
            format!("{opening} is open: {}{comment}", opening.source),
        ));
    } else if rules.mode == Mode::Ufw {
        steps.push(ufw(rules, packet));
    } else {
        steps.push(step(
            chain,
            false,
            format!(
                "nothing opens {port}/{} to {from}; open it: appliance firewall allow {port}/{}",
                protocol.name(),
                protocol.name()
            ),
        ));
    }
    steps
}

fn ufw(rules: &Rules, packet: Packet) -> Step {
    let Packet { protocol, port, from } = packet;
    let (pass, why) = match rules.ufw_says(protocol, port, from) {
        Some(line) if line.allow => (true, format!("UFW allows it from {}", line.from)),
        Some(line) => (false, format!("UFW denies it from {}", line.from)),
        None => (
            false,
            format!(
                "none of UFW's rules allows it; open it: ufw allow {port}/{}",
                protocol.name()
            ),
        ),
    };
    Step {
        by: "UFW".to_owned(),
        pass,
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::super::opening::{Opening, Source};
    use super::*;

    fn rules() -> Rules {
        let opening = |ports: &str, from: &[&str]| Opening {
            ports: ports.parse().expect("ports"),
            from: from.iter().map(|net| net.parse().expect("network")).collect(),
            comment: String::new(),
            source: Source::HostYml,
        };
        Rules {
            ssh_ports: [22].into(),
            openings: vec![opening("443", &[]), opening("5432", &["10.0.5.0/24"])],
            ..Rules::default()
        }
    }

    fn passes(rules: &Rules, port: u16, from: &str, target: Target) -> bool {
        let packet = Packet {
            protocol: Protocol::Tcp,
            port,
            from: from.parse().expect("address"),
        };
        explain(rules, packet, target, false).iter().all(|step| step.pass)
    }

    #[test]
    fn a_packet_gets_through_where_something_opens_the_way() {
        for (port, from, expect) in [
            (443, "203.0.113.9", true),
            (22, "203.0.113.9", true),
            (5432, "10.0.5.2", true),
            (5432, "203.0.113.9", false),
            (8080, "203.0.113.9", false),
            (443, "127.0.0.1", false),
        ] {
            assert_eq!(
                passes(&rules(), port, from, Target::Host),
                expect,
                "{port} from {from}"
            );
        }
        assert!(
            !passes(&rules(), 22, "203.0.113.9", Target::Container),
            "a container on 22 is not sshd"
        );
    }

    #[test]
    fn in_ufws_mode_ufw_is_quoted() {
        let mut rules = rules();
        rules.mode = Mode::Ufw;
        rules.openings.clear();
        rules.ufw =
            super::super::ufw::parse("### tuple ### allow tcp 8080 0.0.0.0/0 any 0.0.0.0/0 in\n").lines;
        assert!(passes(&rules, 8080, "203.0.113.9", Target::Container));
        assert!(!passes(&rules, 8081, "203.0.113.9", Target::Container));
        assert!(
            !passes(&rules, 22, "203.0.113.9", Target::Host),
            "UFW says nothing about SSH"
        );
    }

    #[test]
    fn who_is_banned_learns_how_it_is_lifted() {
        let packet = Packet {
            protocol: Protocol::Tcp,
            port: 443,
            from: "203.0.113.9".parse().expect("address"),
        };
        let steps = explain(&rules(), packet, Target::Host, true);
        assert!(steps.len() == 1 && steps[0].why.contains("unban 203.0.113.9"));
    }
}
