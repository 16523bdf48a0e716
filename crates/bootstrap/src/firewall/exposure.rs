//! What is reachable, from where, by which rule: listening sockets, Docker's mappings and our rules side by side.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::explain::Target;
use super::interfaces;
use super::opening::Protocol;
use super::rules::{Mode, Rules};
use crate::host::{Command, Host, HostError};

/// A port that somebody answers on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Exposure {
    /// The port, as seen from outside.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address it is bound to; `*` for all.
    pub address: String,
    /// The process or container.
    pub by: String,
    /// Who can reach it, in words: `everyone`, networks, `nobody outside`, `this host`.
    pub reach: String,
    /// Whether anybody outside can.
    pub open: bool,
    /// By which rule, or why not.
    pub rule: String,
}

/// Everything the audit says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Ports with somebody behind them.
    pub ports: Vec<Exposure>,
    /// Openings with nobody behind them.
    pub unused: Vec<String>,
    /// What our table cannot see or somebody should know.
    pub warnings: Vec<String>,
}

/// A listening socket or a published port, before the rules are asked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Listener {
    port: u16,
    protocol: Protocol,
    address: String,
    by: String,
    target: Target,
}

/// Looks at the host and joins what it finds with the rules.
///
/// # Errors
/// When `ss` cannot be asked; without Docker the containers are left out.
pub fn audit(host: &dyn Host, rules: &Rules) -> Result<Report, HostError> {
    let sockets = crate::host::must(host, &Command::new(["ss", "-Hltunp"]))?;
    let mut report = Report::default();
    let mut containers = Value::Null;
    let ids = host.run(&Command::new(["docker", "ps", "--quiet", "--no-trunc"]))?;
    if ids.ok() && !ids.stdout.trim().is_empty() {
        let argv = ["docker", "inspect"]
            .into_iter()
            .chain(ids.stdout.split_whitespace());
        let inspected = host.run(&Command::new(argv))?;
        containers = serde_json::from_str(&inspected.stdout).unwrap_or_default();
    } else if !ids.ok() {
        report.warnings.push(
            "Docker does not answer, so published ports are only seen where docker-proxy listens".to_owned(),
        );
    }
    for driver in ["macvlan", "ipvlan"] {
        let filter = format!("driver={driver}");
        let found = host.run(&Command::new([
            "docker",
            "network",
            "ls",
            "--filter",
            &filter,
            "--format",
            "{{.Name}}",
        ]))?;
        report.warnings.extend(found.stdout.lines().map(|name| {
            format!("network {name} ({driver}): its containers have addresses of their own on the wire, where no firewall of this host sees them")
        }));
    }
    report.warnings.extend(rules.trusted.iter().map(|name| {
        format!("{name} is trusted: whoever is there reaches every port of this host, whatever is said above")
    }));
    for interface in interfaces::classified(host).unwrap_or_default() {
        if interface.kind == interfaces::Kind::Vpn && !rules.trusted.contains(&interface.name) {
            report.warnings.push(format!(
                "{} is a VPN and filtered like the internet; to trust it: `firewall: {{interfaces: {{{}: trusted}}}}` in host.yml",
                interface.name, interface.name
            ));
        }
    }
    join(&mut report, rules, &sockets, &containers);
    Ok(report)
}

fn join(report: &mut Report, rules: &Rules, sockets: &str, containers: &Value) {
    let published = published(containers);
    let mut listeners: BTreeSet<Listener> = published.iter().cloned().collect();
    for socket in sockets.lines().filter_map(socket) {
        // docker-proxy stands in for a container that is in the list already.
        let stands_in = socket.by == "docker-proxy"
            && published
                .iter()
                .any(|other| (other.port, other.protocol) == (socket.port, socket.protocol));
        if !stands_in {
            listeners.insert(socket);
        }
    }
    for listener in &listeners {
        report.ports.push(exposure(rules, listener));
    }
    for opening in &rules.openings {
        let used = listeners.iter().any(|listener| {
            listener.protocol == opening.ports.protocol && opening.ports.contains(listener.port)
        });
        if !used {
            report.unused.push(format!(
                "{opening} is open ({}), and nobody listens there",
                opening.source
            ));
        }
    }
}

fn exposure(rules: &Rules, listener: &Listener) -> Exposure {
    let Listener {
        port,
        protocol,
        address,
        by,
        target,
    } = listener;
    let bare = address
        .trim_matches(['[', ']'])
        .split('%')
        .next()
        .unwrap_or_default();
    let loopback = bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    let (reach, open, rule) = if loopback {
        ("this host".to_owned(), false, "bound to the loopback".to_owned())
    } else {
        reach(rules, *protocol, *port, *target)
    };
    Exposure {
        port: *port,
        protocol: *protocol,
        address: address.clone(),
        by: by.clone(),
        reach,
        open,
        rule,
    }
}

fn reach(rules: &Rules, protocol: Protocol, port: u16, target: Target) -> (String, bool, String) {
    let mut who = Vec::new();
    let mut why = Vec::new();
    if protocol == Protocol::Tcp
        && target == Target::Host
        && rules.ssh_ports.contains(&port)
        && rules.mode == Mode::Own
    {
        if rules.ssh_from.is_empty() {
            who.push("everyone".to_owned());
        }
        who.extend(rules.ssh_from.iter().map(ToString::to_string));
        why.push("sshd".to_owned());
    }
    if rules.mode == Mode::Own || target == Target::Container {
        for opening in &rules.openings {
            if opening.ports.protocol == protocol && opening.ports.contains(port) {
                if opening.from.is_empty() {
                    who.push("everyone".to_owned());
                }
                who.extend(opening.from.iter().map(ToString::to_string));
                why.push(opening.source.to_string());
            }
        }
    }
    for line in &rules.ufw {
        let about = line
            .ports
            .is_none_or(|ports| ports.protocol == protocol && ports.contains(port));
        if about && line.allow {
            who.push(if line.from.is_everyone() {
                "everyone".to_owned()
            } else {
                line.from.to_string()
            });
            why.push("UFW".to_owned());
        }
    }
    if who.iter().any(|who| who == "everyone") {
        who = vec!["everyone".to_owned()];
    }
    why.dedup();
    if who.is_empty() {
        ("nobody outside".to_owned(), false, "nothing opens it".to_owned())
    } else {
        (who.join(", "), true, why.join(", "))
    }
}

/// `tcp LISTEN 0 4096 0.0.0.0:80 0.0.0.0:* users:(("appliance",pid=1,fd=3))`
fn socket(line: &str) -> Option<Listener> {
    let mut fields = line.split_whitespace();
    let protocol = match fields.next()? {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        _ => return None,
    };
    let (address, port) = fields.nth(3)?.rsplit_once(':')?;
    let by = line
        .split("((\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .unwrap_or("another process");
    Some(Listener {
        port: port.parse().ok()?,
        protocol,
        address: address.to_owned(),
        by: by.to_owned(),
        target: Target::Host,
    })
}

/// Published ports of `docker inspect`.
fn published(containers: &Value) -> Vec<Listener> {
    let mut found = Vec::new();
    for container in containers.as_array().into_iter().flatten() {
        let name = container["Name"]
            .as_str()
            .unwrap_or_default()
            .trim_start_matches('/');
        for (port, bindings) in container["NetworkSettings"]["Ports"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let protocol = match port.split('/').nth(1) {
                Some("udp") => Protocol::Udp,
                _ => Protocol::Tcp,
            };
            for binding in bindings.as_array().into_iter().flatten() {
                let Some(host_port) = binding["HostPort"].as_str().and_then(|port| port.parse().ok()) else {
                    continue;
                };
                found.push(Listener {
                    port: host_port,
                    protocol,
                    address: binding["HostIp"].as_str().unwrap_or("*").to_owned(),
                    by: format!("container {name}, port {port}"),
                    target: Target::Container,
                });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::opening::{Opening, Source};
    use super::*;

    #[test]
    fn sockets_containers_and_rules_are_joined() {
        let opening = |ports: &str, from: &[&str]| Opening {
            ports: ports.parse().expect("ports"),
            from: from.iter().map(|net| net.parse().expect("network")).collect(),
            comment: String::new(),
            source: Source::HostYml,
        };
        let rules = Rules {
            ssh_ports: [22].into(),
            openings: vec![
                opening("443", &[]),
                opening("5432", &["10.0.5.0/24"]),
                opening("9999", &[]),
            ],
            ..Rules::default()
        };
        let sockets = "tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:((\"sshd\",pid=1,fd=3))\n\
                       tcp LISTEN 0 128 [::]:443 [::]:* users:((\"appliance\",pid=1,fd=3))\n\
                       tcp LISTEN 0 128 0.0.0.0:5432 0.0.0.0:* users:((\"docker-proxy\",pid=1,fd=3))\n\
                       udp UNCONN 0 0 127.0.0.1:323 0.0.0.0:* users:((\"chronyd\",pid=1,fd=3))\n";
        let containers = serde_json::json!([{ "Name": "/db", "NetworkSettings": { "Ports": {
            "5432/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "5432" }, { "HostIp": "::", "HostPort": "5432" }],
            "9/tcp": null, "6379/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "6379" }],
            "80/tcp": [{ "HostIp": "", "HostPort": "8080" }] } } }]);
        let mut report = Report::default();
        join(&mut report, &rules, sockets, &containers);
        let lines: Vec<String> = report
            .ports
            .iter()
            .map(|port| format!("{} {} | {} | {}", port.port, port.by, port.reach, port.rule))
            .collect();
        assert_eq!(
            lines,
            [
                "22 sshd | everyone | sshd",
                "323 chronyd | this host | bound to the loopback",
                "443 appliance | everyone | host.yml",
                "5432 container db, port 5432/tcp | 10.0.5.0/24 | host.yml",
                "5432 container db, port 5432/tcp | 10.0.5.0/24 | host.yml",
                "6379 container db, port 6379/tcp | this host | bound to the loopback",
                "8080 container db, port 80/tcp | nobody outside | nothing opens it",
            ]
        );
        assert_eq!(
            report.unused,
            ["9999/tcp to everyone is open (host.yml), and nobody listens there"]
        );
    }
}
