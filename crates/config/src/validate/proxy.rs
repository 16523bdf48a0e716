//! `proxy` sections, of the root, a role or an accessory.

use super::{Checker, shape};
use crate::yaml::tree::{Map, Node};

/// Keys, types, and what they mean together.
pub(super) fn check(checker: &mut Checker<'_>, map: &Map, path: &str) {
    checker.keys(map, shape::PROXY, path, false);
    rules(checker, map, path);
}

/// What the keys of a proxy section mean together. Kamal applies it to a role's settings, to the root's,
/// and to both merged.
pub(super) fn rules(checker: &mut Checker<'_>, map: &Map, path: &str) {
    let present = |key: &str| map.get(key).is_some_and(Node::is_present);
    if let Some(ssl) = map.get("ssl").filter(|ssl| ssl.is_truthy())
        && !present("host")
        && !present("hosts")
    {
        checker
            .report(ssl.place, path, "Must set a host to enable automatic SSL")
            .hint = Some("add `host: www.example.com` beside `ssl:`".to_owned());
    }
    if let Some(hosts) = map.key_node("hosts").filter(|_| map.get("host").is_some()) {
        checker
            .report(hosts.place, path, "Specify one of 'host' or 'hosts', not both")
            .hint = Some("put all names under `hosts:`".to_owned());
    }
    if let Some(ssl) = map.get("ssl")
        && let Some(pair) = ssl.as_map()
    {
        let given = |key: &str| pair.get(key).is_some_and(Node::is_present);
        for (one, other) in [
            ("certificate_pem", "private_key_pem"),
            ("private_key_pem", "certificate_pem"),
        ] {
            if given(one) && !given(other) {
                checker.report(
                    ssl.place,
                    path,
                    format!("Missing {other} setting (required when {one} is present)"),
                );
            }
        }
    }
    if let Some(run) = map.get("run")
        && run.get("publish").and_then(Node::as_bool) == Some(false)
        && ["http_port", "https_port", "bind_ips"]
            .iter()
            .any(|key| run.get(key).is_some_and(Node::is_present))
    {
        checker.report(
            run.place,
            path,
            "Cannot set http_port, https_port or bind_ips when publish is false",
        );
    }
}

/// Host names of proxy settings: `hosts`, or `host` split at commas, untrimmed as in Kamal.
pub(crate) fn proxy_hosts(settings: &Map) -> Vec<String> {
    if let Some(hosts) = settings.get("hosts").filter(|hosts| hosts.is_truthy()) {
        return hosts
            .as_seq()
            .unwrap_or_default()
            .iter()
            .map(Node::to_s)
            .collect();
    }
    settings
        .get("host")
        .filter(|host| host.is_truthy())
        .map(|host| ruby_split(&host.to_s()))
        .unwrap_or_default()
}

/// Ruby's `split(",")`: empty parts at the end are dropped.
pub(crate) fn ruby_split(text: &str) -> Vec<String> {
    let mut parts: Vec<String> = text.split(',').map(ToOwned::to_owned).collect();
    while parts.last().is_some_and(String::is_empty) {
        parts.pop();
    }
    parts
}

/// Whether `ssl` names both a certificate and its key.
pub(crate) fn has_own_certificate(ssl: &Node) -> bool {
    ["certificate_pem", "private_key_pem"]
        .iter()
        .all(|key| ssl.get(key).is_some_and(Node::is_present))
}
