//! What must hold for a snapshot; pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::headers::Networks;
use crate::names::ServiceName;
use crate::snapshot::{Certificate, FORMAT, Redirect, Service, Settings, Snapshot};

/// A rule is broken: where, what, and whose fault it is in a conflict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The service it concerns.
    pub(crate) service: Option<ServiceName>,
    /// For people.
    pub(crate) message: String,
    /// The other service, when two want the same.
    pub(crate) conflict: Option<ServiceName>,
}

/// Everything that is wrong with `snapshot`, not only the first thing.
pub(crate) fn problems(snapshot: &Snapshot) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut say = |service: Option<&ServiceName>, message: String, conflict: Option<&ServiceName>| {
        found.push(Problem {
            service: service.cloned(),
            message,
            conflict: conflict.cloned(),
        });
    };
    if snapshot.format != FORMAT {
        say(
            None,
            format!("format is {}, this version reads only {FORMAT}", snapshot.format),
            None,
        );
    }
    settings(&snapshot.settings, &mut |message| say(None, message, None));
    let mut names = BTreeSet::new();
    let mut owners: BTreeMap<(&str, &str), &ServiceName> = BTreeMap::new();
    for service in &snapshot.services {
        let name = &service.name;
        if !names.insert(name) {
            say(Some(name), format!("service {name} is listed twice"), None);
            continue;
        }
        self::service(service, &mut |message| {
            say(Some(name), format!("service {name}: {message}"), None)
        });
        let any = [""];
        let hosts: Vec<&str> = service.hosts.iter().map(|host| host.as_str()).collect();
        for host in if hosts.is_empty() { &any[..] } else { &hosts[..] } {
            for prefix in &service.path_prefixes {
                match owners.insert((host, prefix.as_str()), name) {
                    Some(owner) if owner != name => {
                        owners.insert((host, prefix.as_str()), owner);
                        let host = if host.is_empty() { "any host" } else { host };
                        say(
                            Some(name),
                            format!(
                                "service {name}: {host} with path {prefix} already belongs to service {owner}"
                            ),
                            Some(owner),
                        );
                    }
                    _ => {}
                }
            }
        }
    }
    found
}

fn settings(settings: &Settings, say: &mut dyn FnMut(String)) {
    if let Err(message) = Networks::parse(&settings.trusted_proxies) {
        say(format!("settings.trusted_proxies: {message}"));
    }
    if let Some(name) = &settings.client_ip_header
        && name.parse::<http::HeaderName>().is_err()
    {
        say(format!(
            "settings.client_ip_header: {name:?} is not the name of a header field"
        ));
    }
    if settings.connections_per_ip == Some(0) {
        say("settings.connections_per_ip must be at least 1; leave it out for no limit".into());
    }
    within(
        "settings.header_timeout_ms",
        settings.header_timeout,
        1_000,
        600_000,
        say,
    );
    within(
        "settings.idle_timeout_ms",
        settings.idle_timeout,
        1_000,
        3_600_000,
        say,
    );
    for (key, value, least, most) in [
        ("max_header_bytes", settings.max_header_bytes, 8 << 10, 1 << 20),
        ("max_header_count", settings.max_header_count, 16, 256),
        ("max_connections", settings.max_connections, 16, 1 << 20),
    ] {
        if !(least..=most).contains(&value) {
            say(format!("settings.{key} is {value}, must be {least} to {most}"));
        }
    }
}

fn service(service: &Service, say: &mut dyn FnMut(String)) {
    if service.upstreams.is_empty() {
        say("upstreams is empty, name at least one".into());
    }
    let different: BTreeSet<_> = service.upstreams.iter().collect();
    if different.len() < service.upstreams.len() {
        say("upstreams names an address twice".into());
    }
    let every = service.every_upstream();
    if every.clone().collect::<BTreeSet<_>>().len() < every.count()
        && different.len() == service.upstreams.len()
    {
        say("an address is in more than one of upstreams, read_upstreams and canary.upstreams".into());
    }
    if let Some(canary) = &service.canary {
        if canary.upstreams.is_empty() {
            say("canary.upstreams is empty, name at least one".into());
        }
        if !(0.0..=100.0).contains(&canary.percent) {
            say(format!("canary.percent is {}, must be 0 to 100", canary.percent));
        }
    }
    if service.path_prefixes.is_empty() {
        say("path_prefixes is empty; leave it out for every path".into());
    }
    let health = &service.health_check;
    let is_path = health.path.starts_with('/') && health.path.parse::<http::uri::PathAndQuery>().is_ok();
    if !is_path {
        say(format!(
            "health_check.path {:?} is not a path; it begins with '/'",
            health.path
        ));
    }
    if health
        .host
        .as_deref()
        .is_some_and(|host| http::HeaderValue::from_str(host).is_err() || host.is_empty())
    {
        say("health_check.host is not a host".into());
    }
    if health.port == Some(0) {
        say("health_check.port must be 1 to 65535".into());
    }
    within("health_check.interval_ms", health.interval, 50, 3_600_000, say);
    within("health_check.timeout_ms", health.timeout, 10, 600_000, say);
    within(
        "response_timeout_ms",
        service.response_timeout,
        100,
        86_400_000,
        say,
    );
    self::extras(service, say);
    if let Some(canonical) = &service.canonical_host
        && !service.hosts.contains(canonical)
    {
        say(format!("canonical_host {canonical} is not among hosts"));
    }
    if let Some(tls) = &service.tls
        && matches!(
            tls.certificate,
            Certificate::LocalCa | Certificate::PerHost { .. }
        )
        && service.hosts.is_empty()
    {
        say("tls with a certificate that is made here needs hosts to make it for".into());
    }
    for (name, value) in &service.response_headers {
        if name.parse::<http::HeaderName>().is_err() || value.parse::<http::HeaderValue>().is_err() {
            say(format!("response_headers: {name:?} is not a valid header field"));
        }
    }
}

fn extras(service: &Service, say: &mut dyn FnMut(String)) {
    for redirect in &service.redirects {
        let Redirect { from, to, status } = redirect;
        if !from.starts_with('/') || from.contains(['?', '#']) {
            say(format!(
                "redirects: from {from:?} is not a path; it begins with '/' and has no query"
            ));
        }
        let is_target = to.starts_with('/') || to.starts_with("http://") || to.starts_with("https://");
        if !is_target || http::HeaderValue::from_str(to).is_err() {
            say(format!(
                "redirects: to {to:?} is neither a path nor an http(s) URL"
            ));
        }
        if to.ends_with("/*") && !from.ends_with("/*") {
            say(format!(
                "redirects: to {to:?} ends with a star, but from {from:?} has none"
            ));
        }
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            say(format!(
                "redirects: status is {status}, must be 301, 302, 303, 307 or 308"
            ));
        }
    }
    if let Some(auth) = &service.auth {
        if auth.users.is_empty() {
            say("auth.users is empty, name at least one".into());
        }
        if auth.realm.contains(['"', '\\']) || http::HeaderValue::from_str(&auth.realm).is_err() {
            say("auth.realm may hold neither quotes nor control characters".into());
        }
        for (user, hash) in &auth.users {
            if user.is_empty() || user.contains(':') {
                say(format!("auth.users: {user:?} is not a user name; it has no ':'"));
            }
            if !crate::auth::is_hash(hash) {
                say(format!(
                    "auth.users: the hash of {user:?} is not bcrypt with a cost of 4 to 14; make one with: htpasswd -nBC 10 {user}"
                ));
            }
        }
    }
    if let Some(compression) = &service.compression
        && compression.codings.is_empty()
    {
        say("compression.codings is empty; leave compression out to turn it off".into());
    }
    for (status, page) in &service.error_pages {
        if !(400..600).contains(status) {
            say(format!("error_pages: {status} is not a status from 400 to 599"));
        }
        if let Err(error) = crate::template::Template::parse(page) {
            say(format!("error_pages: {status}: {error}"));
        }
    }
    let limits = &service.limits;
    if limits
        .requests_per_second
        .is_some_and(|rate| !(0.001..=1e6).contains(&rate))
    {
        say("limits.requests_per_second must be 0.001 to 1000000".into());
    }
    if limits.burst == Some(0) || (limits.burst.is_some() && limits.requests_per_second.is_none()) {
        say("limits.burst must be at least 1, and goes with requests_per_second".into());
    }
    for name in service
        .log
        .request_headers
        .iter()
        .chain(&service.log.response_headers)
    {
        if name.parse::<http::HeaderName>().is_err() {
            say(format!("log: {name:?} is not the name of a header field"));
        }
    }
}

fn within(key: &str, value: Duration, least: u64, most: u64, say: &mut dyn FnMut(String)) {
    let ms = value.as_millis();
    if !(u128::from(least)..=u128::from(most)).contains(&ms) {
        say(format!("{key} is {ms}, must be {least} to {most}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(json: &str) -> Vec<String> {
        let snapshot: Snapshot = serde_json::from_str(json).unwrap();
        problems(&snapshot)
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    }

    #[test]
    fn a_minimal_snapshot_is_fine() {
        let json = r#"{"format":1,"services":[{"name":"a","upstreams":["127.0.0.1:3000"]}]}"#;
        assert_eq!(messages(json), Vec::<String>::new());
    }

    #[test]
    fn every_broken_rule_is_named() {
        let json = r#"{"format":2,"settings":{"trusted_proxies":["x"],"max_header_bytes":1},"services":[
            {"name":"a","hosts":["h"],"upstreams":[],"canonical_host":"other"},
            {"name":"b","hosts":["h"],"upstreams":["127.0.0.1:1","127.0.0.1:1"],"health_check":{"path":"up","interval_ms":1}},
            {"name":"b","upstreams":["127.0.0.1:1"]},
            {"name":"c","upstreams":["127.0.0.1:1"],"tls":{"certificate":"local_ca"},"response_headers":{"a b":"c"}}]}"#;
        insta::assert_snapshot!(messages(json).join("\n"), @r#"
        format is 2, this version reads only 1
        settings.trusted_proxies: "x" is not a network such as 10.0.0.0/8
        settings.max_header_bytes is 1, must be 8192 to 1048576
        service a: upstreams is empty, name at least one
        service a: canonical_host other is not among hosts
        service b: upstreams names an address twice
        service b: health_check.path "up" is not a path; it begins with '/'
        service b: health_check.interval_ms is 1, must be 50 to 3600000
        service b: h with path / already belongs to service a
        service b is listed twice
        service c: tls with a certificate that is made here needs hosts to make it for
        service c: response_headers: "a b" is not a valid header field
        "#);
    }

    #[test]
    fn a_conflict_names_the_owner() {
        let json = r#"{"format":1,"services":[
            {"name":"a","hosts":["h"],"path_prefixes":["/x","/y"],"upstreams":["127.0.0.1:1"]},
            {"name":"b","hosts":["g","h"],"path_prefixes":["/y"],"upstreams":["127.0.0.1:1"]}]}"#;
        let snapshot: Snapshot = serde_json::from_str(json).unwrap();
        let found = problems(&snapshot);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].conflict.as_ref().unwrap().as_str(), "a");
    }
}
