use super::*;
use crate::names::PathPrefix;

fn service(name: &str, hosts: &[&str], prefixes: &[&str]) -> Service {
    let hosts = hosts
        .iter()
        .map(|host| HostPattern::parse(host).unwrap())
        .collect();
    let mut service = Service::new(ServiceName::parse(name).unwrap(), hosts, vec![]);
    service.path_prefixes = prefixes
        .iter()
        .map(|prefix| PathPrefix::parse(prefix).unwrap())
        .collect();
    service
}

fn table(services: Vec<Service>) -> Table {
    let snapshot = Snapshot {
        services,
        ..Snapshot::default()
    };
    Table::build(
        &snapshot,
        Certificates::default(),
        Default::default(),
        None,
        |_| Live::default(),
    )
}

fn found(table: &Table, host: &str, path: &str) -> Option<(String, usize)> {
    table
        .find(host, path)
        .map(|found| (found.route.service.name.to_string(), found.strip))
}

#[test]
fn exact_then_wildcard_then_any() {
    let table = table(vec![
        service("exact", &["a.example.com"], &["/"]),
        service("wild", &["*.example.com"], &["/"]),
        service("any", &[], &["/"]),
    ]);
    for (host, expect) in [
        ("a.example.com", "exact"),
        ("A.EXAMPLE.COM:8443", "exact"),
        ("a.example.com.", "exact"),
        ("b.example.com", "wild"),
        ("x.b.example.com", "any"),
        ("example.com", "any"),
        ("[::1]:80", "any"),
        ("", "any"),
    ] {
        assert_eq!(found(&table, host, "/"), Some((expect.to_owned(), 0)), "{host}");
    }
    assert_eq!(found(&table, &"a".repeat(255), "/"), None);
}

#[test]
fn the_longest_prefix_wins_by_whole_segments() {
    let table = table(vec![
        service("root", &["h"], &["/"]),
        service("api", &["h"], &["/api"]),
        service("v2", &["h"], &["/api/v2"]),
    ]);
    for (path, expect, strip) in [
        ("/", "root", 0),
        ("/apiary", "root", 0),
        ("/api", "api", 4),
        ("/api/v20", "api", 4),
        ("/api/v2/x", "v2", 7),
        ("/API", "root", 0),
    ] {
        assert_eq!(
            found(&table, "h", path),
            Some((expect.to_owned(), strip)),
            "{path}"
        );
    }
}

#[test]
fn a_host_without_a_matching_prefix_does_not_fall_back() {
    let table = table(vec![
        service("api", &["h"], &["/api"]),
        service("any", &[], &["/"]),
    ]);
    assert_eq!(found(&table, "h", "/other"), None);
    assert_eq!(found(&table, "else", "/other"), Some(("any".to_owned(), 0)));
}

#[test]
fn the_prefix_stays_when_asked_for() {
    let mut api = service("api", &["h"], &["/api"]);
    api.strip_path_prefix = false;
    assert_eq!(
        found(&table(vec![api]), "h", "/api/x"),
        Some(("api".to_owned(), 0))
    );
}

#[test]
fn the_least_busy_healthy_upstream_is_picked() {
    let upstreams: Vec<_> = ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]
        .iter()
        .map(|address| Arc::new(Upstream::new(address.parse().unwrap(), 1)))
        .collect();
    let snapshot = Snapshot {
        services: vec![service("s", &["h"], &["/"])],
        ..Snapshot::default()
    };
    let table = Table::build(
        &snapshot,
        Certificates::default(),
        Default::default(),
        None,
        |_| Live {
            upstreams: upstreams.clone(),
            ..Live::default()
        },
    );
    let route = table.find("h", "/").unwrap().route;
    let _busy = upstreams[0].enter(0).unwrap();
    upstreams[1].set_health(false, None);
    for _ in 0..4 {
        assert_eq!(route.pick(Lane::Main, &[]).unwrap().id, upstreams[2].id);
    }
    assert_eq!(
        route.pick(Lane::Main, &[upstreams[2].id]).unwrap().id,
        upstreams[0].id
    );
    assert!(
        route
            .pick(Lane::Main, &[upstreams[2].id, upstreams[0].id])
            .is_none()
    );
}
