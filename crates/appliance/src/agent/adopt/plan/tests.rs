use super::*;
use serde_json::json;

fn service(name: &str, container: &str) -> Service {
    Service {
        name: name.to_owned(),
        hosts: vec!["shop.example".to_owned()],
        path_prefixes: Vec::new(),
        strip_prefix: true,
        container: container.to_owned(),
        port: 3000,
        tls: Tls::Acme {
            directory: "https://acme.example/directory".to_owned(),
            cache: "/certs".to_owned(),
        },
        tls_redirect: true,
        canonical_host: None,
        error_pages: None,
        health_path: "/up".to_owned(),
        health_interval: 1,
        health_timeout: 5,
        response_timeout: 30,
        forward_headers: false,
        buffering: (true, true, 1 << 20, 0, 0),
        log_request_headers: Vec::new(),
        log_response_headers: Vec::new(),
        stopped: None,
    }
}

fn served(name: &str, container: &str) -> Served {
    Served {
        service: service(name, container),
        pem: None,
        pages: BTreeMap::new(),
        certificates: BTreeMap::from([("shop.example".to_owned(), ("chain".to_owned(), "key".to_owned()))]),
    }
}

fn container(id: &str, name: &str, role: Option<&str>, destination: &str) -> Found {
    let mut labels = BTreeMap::from([
        ("service".to_owned(), "shop".to_owned()),
        ("destination".to_owned(), destination.to_owned()),
    ]);
    labels.extend(role.map(|role| ("role".to_owned(), role.to_owned())));
    Found {
        id: id.to_owned(),
        name: name.to_owned(),
        image_id: format!("sha256:{}", "a".repeat(64)),
        image: "registry.example/team/shop:4f2a".to_owned(),
        labels,
        running: true,
        inspection: json!({"Config": {"Env": ["KAMAL_HOST=203.0.113.7", "TOKEN=t"]}, "HostConfig": {}}),
    }
}

fn survey(containers: Vec<Found>, services: Vec<Served>) -> Survey {
    let id = format!("sha256:{}", "a".repeat(64));
    let info = ImageInfo {
        id: id.clone(),
        tags: Vec::new(),
        digests: vec![format!("registry.example/team/shop@sha256:{}", "b".repeat(64))],
        os: "linux".to_owned(),
        architecture: "amd64".to_owned(),
        variant: None,
        created: None,
        size: 0,
        diff_ids: Vec::new(),
        labels: BTreeMap::new(),
        env: Vec::new(),
        user: String::new(),
        exposed_ports: Vec::new(),
        volumes: Vec::new(),
        has_healthcheck: false,
    };
    Survey {
        proxy: Some(Proxy {
            id: "proxy".to_owned(),
            running: true,
            image: "basecamp/kamal-proxy:v0.9.2".to_owned(),
            ports: (Some(80), Some(443)),
            services,
        }),
        containers,
        images: BTreeMap::from([(id, info)]),
        ..Survey::default()
    }
}

#[test]
fn two_roles_become_one_release_with_the_routed_one_first() {
    let found = plan(&survey(
        vec![
            container("aaa1", "shop-jobs-4f2a", Some("jobs"), ""),
            container("bbb2", "shop-web-4f2a", Some("web"), ""),
        ],
        vec![served("shop-web", "bbb2")],
    ));
    assert_eq!(found.refusals, Vec::<String>::new());
    let [app] = &found.apps[..] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (
            app.id.as_str(),
            app.release.version.as_str(),
            app.release.host.as_str()
        ),
        ("shop", "4f2a", "203.0.113.7")
    );
    let roles: Vec<(&str, bool, bool)> = app
        .release
        .roles
        .iter()
        .map(|role| (role.name.as_str(), role.primary, role.proxy.is_some()))
        .collect();
    assert_eq!(roles, [("web", true, true), ("jobs", false, false)]);
    assert_eq!(app.release.image.repository.as_str(), "team/shop");
    assert_eq!(app.release.image.digest.hex(), "b".repeat(64));
    assert_eq!(
        app.release
            .image
            .registry
            .as_ref()
            .map(|registry| registry.server.as_str()),
        Some("registry.example")
    );
    assert_eq!(app.release.consistent(), Ok(()));
    assert_eq!(found.certificates.len(), 1);
    assert_eq!(app.containers["web"].0, "bbb2");
}

#[test]
fn destinations_are_apps_of_their_own_and_accessories_none() {
    let found = plan(&survey(
        vec![
            container("aaa1", "shop-web-staging-4f2a", Some("web"), "staging"),
            container("bbb2", "shop-web-4f2a", Some("web"), ""),
            container("ccc3", "shop-db", None, ""),
        ],
        vec![served("shop-web-staging", "aaa1"), served("shop-web", "bbb2")],
    ));
    let ids: Vec<&str> = found.apps.iter().map(|app| app.id.as_str()).collect();
    assert_eq!(ids, ["shop", "shop@staging"]);
    assert_eq!(
        found.apps[1]
            .release
            .destination
            .as_ref()
            .map(|destination| destination.as_str()),
        Some("staging")
    );
}

#[test]
fn of_two_containers_the_one_with_the_traffic_is_taken() {
    let found = plan(&survey(
        vec![
            container("new1", "shop-web-new", Some("web"), ""),
            container("old2", "shop-web-old", Some("web"), ""),
        ],
        vec![served("shop-web", "old2")],
    ));
    assert_eq!(found.apps[0].release.version.as_str(), "old");
    assert!(
        found
            .notes
            .iter()
            .any(|note| note.contains("shop-web-new runs beside")),
        "{:?}",
        found.notes
    );
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is() {
    let refused = |survey: Survey, said: &str| {
        let found = plan(&survey);
        assert!(
            found.refusals.iter().any(|why| why.contains(said)),
            "{said}: {:?}",
            found.refusals
        );
    };
    refused(Survey::default(), "nothing to adopt");
    let good = || {
        survey(
            vec![container("bbb2", "shop-web-4f2a", Some("web"), "")],
            vec![served("shop-web", "bbb2")],
        )
    };
    let mut other = good();
    other.proxy.as_mut().expect("there").running = false;
    refused(other, "docker start kamal-proxy");
    let mut other = good();
    other.proxy.as_mut().expect("there").ports = (Some(8080), None);
    refused(other, "80 and 443");
    let mut other = good();
    other.known.insert("shop".to_owned());
    refused(other, "has a release of the appliance");
    refused(
        survey(Vec::new(), vec![served("shop-web", "bbb2")]),
        "leads to the container bbb2",
    );
    let mut other = good();
    other.containers[0].name = "something".to_owned();
    refused(other, "as Kamal names it");
}

#[test]
fn a_file_of_the_cache_is_key_and_chain() {
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let text = block("EC PRIVATE KEY") + &block("CERTIFICATE") + &block("CERTIFICATE");
    let (chain, key) = cached(&text).expect("both");
    assert_eq!(key, block("EC PRIVATE KEY"));
    assert_eq!(chain.matches("BEGIN").count(), 2);
    assert!(cached("").is_none() && cached(&block("CERTIFICATE")).is_none());
    assert!(cached("-----BEGIN CERTIFICATE-----\nAAAA").is_none());
}
