//! Which service a request belongs to, and what every answer of a service carries.

use std::time::Duration;

use appliance_proxy::names::{HostPattern, PathPrefix};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::rig::{App, Rig, service};

#[tokio::test]
async fn hosts_and_prefixes_lead_to_the_service_that_names_them_best() {
    let rig = Rig::start();
    let (exact, wild, any) = (
        App::start("exact").await,
        App::start("wild").await,
        App::start("any").await,
    );
    let (api, deep) = (App::start("api").await, App::start("deep").await);
    let mut shop = service("shop", "shop.test", &[&exact]);
    shop.hosts.push(HostPattern::parse("www.shop.test").unwrap());
    let under = |name: &str, app: &App, prefixes: &[&str]| {
        let mut service = service(name, "shop.test", &[app]);
        let prefixes = prefixes.iter().map(|prefix| PathPrefix::parse(prefix).unwrap());
        service.path_prefixes = prefixes.collect();
        service
    };
    for service in [
        shop,
        service("wild", "*.shop.test", &[&wild]),
        service("any", "", &[&any]),
        under("api", &api, &["/api", "/v1"]),
        under("deep", &deep, &["/api/deep"]),
    ] {
        rig.put(&service).await;
    }
    for (host, path, expected) in [
        ("shop.test", "/", "exact GET / "),
        ("www.shop.test", "/", "exact GET / "),
        ("SHOP.Test", "/", "exact GET / "),
        ("shop.test:8080", "/", "exact GET / "),
        ("shop.test.", "/", "exact GET / "),
        ("Shop.test.:80", "/", "exact GET / "),
        ("a.shop.test", "/", "wild GET / "),
        // One label, as in certificates.
        ("a.b.shop.test", "/", "any GET / "),
        ("other.test", "/", "any GET / "),
        ("127.0.0.1", "/", "any GET / "),
        ("shop.test", "/api", "api GET / "),
        ("shop.test", "/api/x", "api GET /x "),
        ("shop.test", "/v1/x?y=%2F", "api GET /x?y=%2F "),
        ("shop.test", "/api/deep/x", "deep GET /x "),
        // Whole segments, and byte for byte.
        ("shop.test", "/apiary", "exact GET /apiary "),
        ("shop.test", "/API/x", "exact GET /API/x "),
        ("shop.test", "/api%2Fdeep", "exact GET /api%2Fdeep "),
        ("a.shop.test", "/api/x", "wild GET /api/x "),
    ] {
        let answer = rig.get(host, path).await;
        let line = answer.body.lines().next().unwrap_or_default();
        assert_eq!(
            (answer.status, format!("{line} ").as_str()),
            (200, expected),
            "{host} {path}"
        );
    }
    let answer = rig.get("shop.test", "/api/deep/x").await;
    assert!(
        answer.body.contains("\nx-forwarded-prefix: /api/deep\n"),
        "{}",
        answer.body
    );
}

#[tokio::test]
async fn every_answer_of_a_service_has_its_fields() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    let hsts = (
        "Strict-Transport-Security".to_owned(),
        "max-age=31536000".to_owned(),
    );
    web.response_headers.extend([hsts]);
    web.limits.max_request_body = Some(1);
    rig.put(&web).await;
    let too_large = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab";
    for (answer, status) in [(rig.get("h", "/").await, 200), (rig.send(too_large).await, 413)] {
        assert_eq!(
            (answer.status, answer.header("strict-transport-security")),
            (status, "max-age=31536000")
        );
    }
}

#[tokio::test]
async fn a_health_check_asks_the_host_path_and_port_it_is_told() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heard, mut asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 1024];
            let length = stream.read(&mut bytes).await.unwrap();
            let _over = heard.send(String::from_utf8_lossy(&bytes[..length]).into_owned());
            let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            let _gone = stream.write_all(answer).await;
        }
    });
    let mut web = service("web", "h", &[&app]);
    web.health_check.path = "/ready?deep=1".to_owned();
    web.health_check.host = Some("checked.test".to_owned());
    web.health_check.port = Some(port);
    web.health_check.interval = Duration::from_millis(50);
    rig.put(&web).await;
    for _ in 0..2 {
        let head = asked.recv().await.unwrap();
        let lower = head.to_ascii_lowercase();
        assert!(
            head.starts_with("GET /ready?deep=1 HTTP/1.1\r\n")
                && lower.contains("\r\nhost: checked.test\r\n"),
            "{head}"
        );
    }
    assert_eq!(rig.get("h", "/").await.status, 200);
}
