//! Which interfaces lead outside.
//!
//! The rules take every bridge for a container network unless it is named in the set `outside_if`.
//! So that set must hold the interfaces with a default route and every bridge that has a port other than a container's veth.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{FirewallError, REMEMBERED};
use crate::host::{Command, Host, Owner, must};

/// What an interface is, as far as the kernel tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The host itself.
    Loopback,
    /// Has a default route, or is a bridge that holds a network card.
    Wan,
    /// A network card without a default route; filtered like the internet.
    Lan,
    /// A network of containers.
    Docker,
    /// WireGuard, Tailscale and other tunnels.
    Vpn,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
}

/// One line of `ip -json -details link show`.
#[derive(Debug, Deserialize)]
struct Link {
    ifname: String,
    master: Option<String>,
    linkinfo: Option<LinkInfo>,
}

#[derive(Debug, Deserialize)]
struct LinkInfo {
    info_kind: Option<String>,
}

/// One line of `ip -json route show default`.
#[derive(Debug, Deserialize)]
struct Route {
    dev: Option<String>,
    #[serde(default)]
    nexthops: Vec<NextHop>,
}

#[derive(Debug, Deserialize)]
struct NextHop {
    dev: Option<String>,
}

/// Looks at links and routes as they are now.
///
/// Early at boot there is no route yet; then the interfaces of the last time count too.
///
/// # Errors
/// When `ip` cannot be asked.
pub fn outside(host: &dyn Host) -> Result<Vec<String>, FirewallError> {
    let ask = |argv: &[&str]| must(host, &Command::new(argv.iter().copied())).map_err(FirewallError::Load);
    let links = ask(&["ip", "-json", "-details", "link", "show"])?;
    let v4 = ask(&["ip", "-json", "-4", "route", "show", "default"])?;
    // Where the kernel has no IPv6 this fails, and then there is no route.
    let v6 = ask(&["ip", "-json", "-6", "route", "show", "default"]).unwrap_or_default();
    let (found, routed) = classify(&links, &v4, &v6).map_err(|source| FirewallError::Understand {
        program: "ip",
        source,
    })?;
    let remembered = host
        .read(Path::new(REMEMBERED))
        .map_err(FirewallError::Load)?
        .and_then(|bytes| serde_json::from_slice::<BTreeSet<String>>(&bytes).ok())
        .unwrap_or_default();
    let outside: BTreeSet<String> = if routed {
        found
    } else {
        found.union(&remembered).cloned().collect()
    };
    if routed && outside != remembered {
        let json = serde_json::to_vec(&outside).expect("strings always serialise");
        host.write(Path::new(REMEMBERED), &json, 0o600, &Owner::root())
            .map_err(FirewallError::Load)?;
    }
    Ok(outside.into_iter().collect())
}

/// Every interface but the ends of containers' cables, with what it is.
///
/// # Errors
/// When `ip` cannot be asked.
pub fn classified(host: &dyn Host) -> Result<Vec<Interface>, FirewallError> {
    let outside = outside(host)?;
    let text = must(host, &Command::new(["ip", "-json", "-details", "link", "show"]))
        .map_err(FirewallError::Load)?;
    let links: Vec<serde_json::Value> =
        serde_json::from_str(&text).map_err(|source| FirewallError::Understand {
            program: "ip",
            source,
        })?;
    let links = links
        .into_iter()
        .filter_map(|link| serde_json::from_value::<Link>(link).ok());
    Ok(links.filter_map(|link| kind(link, &outside)).collect())
}

fn kind(link: Link, outside: &[String]) -> Option<Interface> {
    let info = link.linkinfo.and_then(|info| info.info_kind).unwrap_or_default();
    let kind = match info.as_str() {
        _ if link.ifname == "lo" => Kind::Loopback,
        _ if outside.contains(&link.ifname) => Kind::Wan,
        "bridge" => Kind::Docker,
        // A card that is part of a bridge or bond is that bridge or bond.
        _ if link.master.is_some() => return None,
        "wireguard" | "tun" | "ipip" | "sit" | "gre" => Kind::Vpn,
        _ => Kind::Lan,
    };
    Some(Interface {
        name: link.ifname,
        kind,
    })
}

/// The outside interfaces, and whether there is any default route.
fn classify(links: &str, v4: &str, v6: &str) -> Result<(BTreeSet<String>, bool), serde_json::Error> {
    let mut outside = BTreeSet::new();
    for routes in [v4, v6] {
        // `ip` prints nothing instead of an empty list when there is no route.
        if routes.trim().is_empty() {
            continue;
        }
        for route in serde_json::from_str::<Vec<Route>>(routes)? {
            outside.extend(route.dev);
            outside.extend(route.nexthops.into_iter().filter_map(|hop| hop.dev));
        }
    }
    outside.remove("lo");
    let routed = !outside.is_empty();
    // Objects without a name are alternatives `ip` pads its list with.
    let links: Vec<serde_json::Value> = serde_json::from_str(links)?;
    let links: Vec<Link> = links
        .into_iter()
        .filter_map(|link| serde_json::from_value(link).ok())
        .collect();
    for link in &links {
        let kind = link.linkinfo.as_ref().and_then(|info| info.info_kind.as_deref());
        if let Some(master) = &link.master
            && kind != Some("veth")
            && links.iter().any(|bridge| {
                bridge.ifname == *master
                    && bridge
                        .linkinfo
                        .as_ref()
                        .and_then(|info| info.info_kind.as_deref())
                        == Some("bridge")
            })
        {
            outside.insert(master.clone());
        }
    }
    outside.retain(|name| is_interface_name(name));
    Ok((outside, routed))
}

/// Names the kernel allows (at most 15 bytes, no slash, no blank), and that need no quoting in an nft script.
pub(crate) fn is_interface_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 15
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '@' | ':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(links: &str, v4: &str, v6: &str, expect: &[&str], routed: bool) {
        let (found, has_route) = classify(links, v4, v6).expect("JSON");
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expect);
        assert_eq!(has_route, routed);
    }

    const LINKS: &str = r#"[{"ifname":"lo"},{"ifname":"eth0"},{"ifname":"br0","linkinfo":{"info_kind":"bridge"}},
        {"ifname":"eth1","master":"br0"},{"ifname":"docker0","linkinfo":{"info_kind":"bridge"}},
        {"ifname":"veth1","master":"docker0","linkinfo":{"info_kind":"veth"}},{}]"#;

    #[test]
    fn default_routes_and_bridges_with_a_port_that_is_no_container_are_outside() {
        check(
            LINKS,
            r#"[{"dst":"default","dev":"eth0"}]"#,
            "",
            &["br0", "eth0"],
            true,
        );
        check(
            LINKS,
            "[]",
            r#"[{"dst":"default","nexthops":[{"dev":"eth0"}]}]"#,
            &["br0", "eth0"],
            true,
        );
        check(r#"[{"ifname":"lo"}]"#, "", "", &[], false);
    }

    #[test]
    fn every_interface_is_some_kind_of_thing() {
        let links: Vec<Link> = serde_json::from_str(
            r#"[{"ifname":"lo"},{"ifname":"eth0"},{"ifname":"eth1"},{"ifname":"wg0","linkinfo":{"info_kind":"wireguard"}},
            {"ifname":"docker0","linkinfo":{"info_kind":"bridge"}},{"ifname":"veth1","master":"docker0","linkinfo":{"info_kind":"veth"}}]"#,
        )
        .expect("JSON");
        let outside = ["eth0".to_owned()];
        let kinds: Vec<Kind> = links
            .into_iter()
            .filter_map(|link| kind(link, &outside))
            .map(|found| found.kind)
            .collect();
        assert_eq!(
            kinds,
            [Kind::Loopback, Kind::Wan, Kind::Lan, Kind::Vpn, Kind::Docker]
        );
    }

    #[test]
    fn a_name_that_would_end_the_nft_script_is_left_out() {
        check("[]", r#"[{"dev":"a\" }; flush ruleset"}]"#, "", &[], true);
    }
}
