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

use serde::{Deserialize, Serialize};

use super::opening::{Net, Ports, Protocol};

/// Where UFW says whether it is on.
pub const CONF: &str = "/etc/ufw/ufw.conf";
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
    fn ufw_is_on_when_its_configuration_says_so() {
        assert!(is_enabled("# x\nENABLED=yes\n") && !is_enabled("ENABLED=no\n") && !is_enabled(""));
    }
}
