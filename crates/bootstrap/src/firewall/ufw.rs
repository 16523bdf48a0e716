//! UFW's own rules, so that `ufw allow 8080/tcp` means for containers what its user expects.
//!
//! Read from the machine-readable comments in `/etc/ufw/user.rules` and `user6.rules`:
//!
//! ```text
//! ### tuple ### allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in
//!               action proto dport dst sport src direction
//! ```
//!
//! What we do not understand, or could not follow exactly, is left out and told: for containers that means closed.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::opening::{Net, Ports, Protocol};
use crate::host::{Command, Host, HostError};

/// Where UFW says whether it is on.
pub const CONF: &str = "/etc/ufw/ufw.conf";
/// Where UFW says what it does with what no rule is about.
pub const DEFAULTS: &str = "/etc/default/ufw";
/// The host's IPv6 addresses, by the kernel; not there, or empty, without IPv6.
const IPV6_ADDRESSES: &str = "/proc/net/if_inet6";
/// Its rules for IPv4 and IPv6.
pub const RULES: [&str; 2] = ["/etc/ufw/user.rules", "/etc/ufw/user6.rules"];

/// One rule, in UFW's order: the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Let in, or keep out.
    pub allow: bool,
    /// Which ports; every port if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Ports>,
    /// From where.
    pub from: Net,
}

/// What UFW's files come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ufw {
    /// The rules we follow.
    pub lines: Vec<Line>,
    /// Rules we do not follow, one sentence each.
    pub warnings: Vec<String>,
}

/// Whether `ufw.conf` says that UFW is on.
pub fn is_enabled(conf: &str) -> bool {
    conf.lines()
        .any(|line| line.trim().eq_ignore_ascii_case("ENABLED=yes"))
}

/// Whether UFW's rules are in the kernel: its own files say only whether they should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// UFW is off, or not installed.
    Off,
    /// They are.
    There,
    /// UFW is on, and they are not, for these families.
    Missing(Vec<&'static str>),
}

/// Asks the kernel, by the way UFW itself takes (iptables, whichever backend that has here).
///
/// # Errors
/// When a file of UFW's cannot be read, or a program cannot be run.
pub fn presence(host: &dyn Host) -> Result<Presence, HostError> {
    let text = |path: &str| -> Result<String, HostError> {
        let bytes = host.read(Path::new(path))?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    if !is_enabled(&text(CONF)?) {
        return Ok(Presence::Off);
    }
    let defaults = text(DEFAULTS)?;
    let mut missing = Vec::new();
    for (program, family, jump) in [
        ("iptables", "IPv4", "-A INPUT -j ufw-before-input"),
        ("ip6tables", "IPv6", "-A INPUT -j ufw6-before-input"),
    ] {
        // With IPV6=no UFW closes IPv6 by its policy alone.
        let jump = (family == "IPv4" || setting(&defaults, "IPV6").is_none_or(|value| value == "yes"))
            .then_some(jump);
        let output = host.run(&Command::new([program, "--wait", "5", "--list-rules", "INPUT"]))?;
        // A kernel without IPv6 has no address that anybody could come to.
        if !output.ok() && family == "IPv6" && text(IPV6_ADDRESSES)?.trim().is_empty() {
            continue;
        }
        // What cannot even be listed keeps nobody out.
        if !output.ok() || !is_held(&output.stdout, jump, &defaults) {
            missing.push(family);
        }
    }
    Ok(if missing.is_empty() {
        Presence::There
    } else {
        Presence::Missing(missing)
    })
}

/// Whether `iptables --list-rules INPUT` shows UFW's policy, and the jump to its chains.
fn is_held(rules: &str, jump: Option<&str>, defaults: &str) -> bool {
    let policy = match setting(defaults, "DEFAULT_INPUT_POLICY") {
        Some(value) if value.eq_ignore_ascii_case("ACCEPT") && jump.is_some() => "-P INPUT ACCEPT",
        // To reject is a rule of UFW's, before a policy that drops.
        _ => "-P INPUT DROP",
    };
    let has = |wanted: &str| rules.lines().any(|line| line.trim() == wanted);
    has(policy) && jump.is_none_or(has)
}

/// `NAME="value"` of a file of UFW's.
fn setting<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let value = text
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='))?;
    Some(value.trim().trim_matches(['"', '\'']))
}

/// Reads the tuples of one of [`RULES`].
pub fn parse(text: &str) -> Ufw {
    let mut ufw = Ufw::default();
    for line in text.lines() {
        let Some(tuple) = line.strip_prefix("### tuple ### ") else {
            continue;
        };
        match lines(tuple) {
            Ok(found) => ufw.lines.extend(found),
            Err(why) => ufw.warnings.push(format!(
                "UFW's rule `{tuple}` is not followed for containers: {why}"
            )),
        }
    }
    ufw
}

fn lines(tuple: &str) -> Result<Vec<Line>, &'static str> {
    let fields: Vec<&str> = tuple
        .split_ascii_whitespace()
        .filter(|field| !field.starts_with("comment="))
        .collect();
    // With application profiles there are two more fields before the direction.
    let ([action, proto, dport, dst, sport, src, direction]
    | [action, proto, dport, dst, sport, src, _, _, direction]) = fields.as_slice()
    else {
        return Err("it has fields we do not know");
    };
    if action.starts_with("route:") {
        return Err("it is about forwarding, which our table decides by published ports");
    }
    let allow = match action.split('_').next().unwrap_or_default() {
        "allow" | "limit" => true,
        "deny" | "reject" => false,
        _ => return Err("its action is unknown"),
    };
    match *direction {
        "in" => {}
        "out" => return Ok(Vec::new()),
        direction if direction.starts_with("out_") => return Ok(Vec::new()),
        // A denial for one interface is safe to widen, an allowance is not.
        direction if direction.starts_with("in_") && !allow => {}
        _ => return Err("it is for one interface only"),
    }
    if *sport != "any" {
        return Err("it depends on the source's port");
    }
    if allow && !matches!(*dst, "0.0.0.0/0" | "::/0") {
        return Err("it is for one address of this host only");
    }
    let from: Net = src.parse().map_err(|_| "its source is not a network")?;
    if *dport == "any" && *proto == "any" {
        return Ok(vec![Line {
            allow,
            ports: None,
            from,
        }]);
    }
    let protocols: &[Protocol] = match *proto {
        "any" => &[Protocol::Tcp, Protocol::Udp],
        "tcp" => &[Protocol::Tcp],
        "udp" => &[Protocol::Udp],
        _ => return Err("its protocol has no ports"),
    };
    let mut found = Vec::new();
    for range in dport.split(',') {
        let (first, last) = match range {
            "any" => (1, u16::MAX),
            range => {
                let (first, last) = range.split_once(':').unwrap_or((range, range));
                let number = |text: &str| text.parse::<u16>().map_err(|_| "its port is not a number");
                (number(first)?.max(1), number(last)?)
            }
        };
        if last < first {
            return Err("its port is not a number");
        }
        found.extend(protocols.iter().map(|protocol| Line {
            allow,
            ports: Some(Ports {
                protocol: *protocol,
                first,
                last,
            }),
            from,
        }));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(tuple: &str, expect: &[&str]) {
        let ufw = parse(&format!(
            "*filter\n### tuple ### {tuple}\n-A ufw-user-input -j ACCEPT\n"
        ));
        let lines: Vec<String> = ufw
            .lines
            .iter()
            .map(|line| {
                let ports = line.ports.map_or("any".to_owned(), |ports| ports.to_string());
                let verb = if line.allow { "allow" } else { "deny" };
                format!("{verb} {ports} from {}", line.from)
            })
            .collect();
        assert_eq!(lines, expect, "{tuple}");
        assert_eq!(
            ufw.warnings.is_empty(),
            !expect.is_empty() || tuple.ends_with("out"),
            "{tuple}"
        );
    }

    #[test]
    fn tuples_mean_for_containers_what_they_mean_for_the_host() {
        check(
            "allow tcp 22 0.0.0.0/0 any 0.0.0.0/0 in",
            &["allow 22/tcp from 0.0.0.0/0"],
        );
        check(
            "limit tcp 22 0.0.0.0/0 any 0.0.0.0/0 in comment=73",
            &["allow 22/tcp from 0.0.0.0/0"],
        );
        check(
            "allow any 8080 ::/0 any ::/0 in",
            &["allow 8080/tcp from ::/0", "allow 8080/udp from ::/0"],
        );
        check(
            "allow any any 0.0.0.0/0 any 10.0.5.0/24 in",
            &["allow any from 10.0.5.0/24"],
        );
        check(
            "allow tcp 80,6000:6010 0.0.0.0/0 any 0.0.0.0/0 in",
            &[
                "allow 80/tcp from 0.0.0.0/0",
                "allow 6000-6010/tcp from 0.0.0.0/0",
            ],
        );
        check(
            "allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 Apache - in",
            &["allow 80/tcp from 0.0.0.0/0"],
        );
        check(
            "deny_log tcp 5432 0.0.0.0/0 any 198.51.100.7 in",
            &["deny 5432/tcp from 198.51.100.7"],
        );
        check(
            "deny tcp 5432 0.0.0.0/0 any 0.0.0.0/0 in_eth1",
            &["deny 5432/tcp from 0.0.0.0/0"],
        );
        check("allow tcp 443 0.0.0.0/0 any 0.0.0.0/0 out", &[]);
    }

    #[test]
    fn what_cannot_be_followed_exactly_stays_closed_and_is_told() {
        for tuple in [
            "allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in_eth1",
            "allow tcp 80 203.0.113.4 any 0.0.0.0/0 in",
            "allow tcp 80 0.0.0.0/0 1024 0.0.0.0/0 in",
            "route:allow tcp 80 0.0.0.0/0 any 0.0.0.0/0 in",
            "allow esp any 0.0.0.0/0 any 0.0.0.0/0 in",
            "allow tcp",
            "allow tcp 80 0.0.0.0/0 any } accept in",
        ] {
            check(tuple, &[]);
        }
    }

    #[test]
    fn only_a_policy_and_a_jump_in_the_kernel_keep_anybody_out() {
        const JUMP: Option<&str> = Some("-A INPUT -j ufw-before-input");
        let whole = "-P INPUT DROP\n-A INPUT -j ufw-before-logging-input\n-A INPUT -j ufw-before-input\n";
        let defaults = "IPV6=yes\nDEFAULT_INPUT_POLICY=\"DROP\"\n";
        assert!(is_held(whole, JUMP, defaults));
        assert!(is_held(whole, JUMP, "DEFAULT_INPUT_POLICY=\"REJECT\"\n"));
        for (what, rules) in [
            ("nft flush ruleset", "-P INPUT ACCEPT\n"),
            ("iptables -F", "-P INPUT DROP\n"),
            ("iptables -P INPUT ACCEPT", &whole.replace("DROP", "ACCEPT")),
            ("no table", ""),
        ] {
            assert!(!is_held(rules, JUMP, defaults), "{what}");
        }
        // Who lets everything in by default said so.
        let open = "DEFAULT_INPUT_POLICY=\"ACCEPT\"\n";
        assert!(
            is_held(&whole.replace("DROP", "ACCEPT"), JUMP, open)
                && !is_held("-P INPUT ACCEPT\n", JUMP, open)
        );
        // IPV6=no
        assert!(is_held("-P INPUT DROP\n", None, defaults) && !is_held("-P INPUT ACCEPT\n", None, open));
        assert_eq!(setting("# IPV6=no\nIPV6='yes'\n", "IPV6"), Some("yes"));
    }

    #[test]
    fn ufw_is_on_when_its_configuration_says_so() {
        assert!(is_enabled("# x\nENABLED=yes\n") && !is_enabled("ENABLED=no\n") && !is_enabled(""));
    }
}
