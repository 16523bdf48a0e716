//! Requests, headers, errors.

use std::sync::atomic::Ordering;
use std::time::Duration;

use appliance_proxy::names::{HostPattern, PathPrefix};
use appliance_proxy::options::Store;
use appliance_proxy::snapshot::{Service, Snapshot};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::rig::{Answer, App, Rig, closed_port, name, path_in, read_head, service};

#[tokio::test]
async fn a_request_reaches_the_app_and_its_answer_the_client() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "shop.test", &[&app])).await;
    let answer = rig.get("SHOP.test:80", "/a%2Fb?q=1;2&x=%20").await;
    assert_eq!(answer.status, 200);
    let mut lines = answer.body.lines();
    assert_eq!(lines.next(), Some("one GET /a%2Fb?q=1;2&x=%20"));
    for expect in [
        "host: SHOP.test:80",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: SHOP.test:80",
        "x-forwarded-port: 80",
    ] {
        assert!(
            answer.body.contains(expect),
            "{expect} is missing in {}",
            answer.body
        );
    }
    let id = answer.header("x-request-id");
    assert_eq!(id.len(), 32);
    assert!(
        answer.body.contains(&format!("x-request-id: {id}")),
        "{}",
        answer.body
    );
    assert!(answer.body.contains("x-request-start: t="));
}

#[tokio::test]
async fn connections_to_the_client_and_to_the_app_are_kept() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    for number in 0..20 {
        let request = format!("POST /{number} HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello");
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = Answer::read(&mut stream).await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains("body: 5"), "{}", answer.body);
    }
    let stats = rig.client.stats(&name("web")).await.unwrap();
    assert_eq!(stats.upstreams[0].counts.requests, 20);
    assert_eq!(stats.upstreams[0].counts.by_class, [0, 20, 0, 0, 0]);
    assert_eq!(stats.total.in_flight, 0);
}

#[tokio::test]
async fn hop_by_hop_fields_stay_on_their_hop() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let answer = rig
        .send("GET / HTTP/1.1\r\nHost: h\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: gzip\r\nProxy-Connection: x\r\n\r\n")
        .await;
    for gone in ["x-hop", "te:", "proxy-connection"] {
        assert!(
            !answer.body.contains(gone),
            "{gone} reached the app: {}",
            answer.body
        );
    }
    let answer = rig.get("h", "/hop").await;
    assert_eq!(answer.header("x-internal"), "");
    assert_eq!(answer.header("keep-alive"), "");
}

#[tokio::test]
async fn the_proxy_answers_what_no_app_can() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let gone = Service::new(
        name("gone"),
        vec![HostPattern::parse("gone").unwrap()],
        vec![closed_port().await.into()],
    );
    rig.put(&gone).await;
    assert_eq!(rig.get("unknown", "/").await.status, 404);
    assert_eq!(rig.get("gone", "/").await.status, 502);
    assert_eq!(
        rig.send("GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            .await
            .status,
        400
    );
    let mut late = service("late", "late", &[&app]);
    late.response_timeout = Duration::from_millis(150);
    rig.put(&late).await;
    let answer = rig.get("late", "/slow").await;
    assert_eq!(answer.status, 504);
    assert!(answer.body.contains("<h1>"), "{}", answer.body);
}

#[tokio::test]
async fn an_upstream_that_refuses_connections_is_left_alone_until_it_is_back() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.health_check.interval = Duration::from_millis(50);
    rig.put(&web).await;
    let address = app.address;
    app.kill().await;
    let healthy = async |expect: bool| {
        while rig.client.list().await.unwrap()[0].upstreams[0].healthy != expect {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    healthy(false).await;
    assert_eq!(rig.get("h", "/").await.status, 503);
    let _back = App::at("back", address).await;
    healthy(true).await;
    assert_eq!(rig.get("h", "/").await.status, 200);
}

#[tokio::test]
async fn a_limping_upstream_that_is_the_only_one_keeps_serving() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.health_check.interval = Duration::from_millis(50);
    rig.put(&web).await;
    app.state.healthy.store(false, Ordering::Relaxed);
    while rig.client.list().await.unwrap()[0].upstreams[0].failure.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // It has failed often enough to be passed over if there were another.
    for _ in 0..6 {
        app.state.checked.notified().await;
    }
    assert_eq!(rig.get("h", "/").await.status, 200);
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.upstreams.insert(0, closed_port().await.into());
    rig.put(&web).await;
    for _ in 0..10 {
        assert_eq!(
            rig.send("POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi")
                .await
                .status,
            200
        );
    }
}

#[tokio::test]
async fn paths_are_routed_and_stripped_byte_for_byte() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("root", "h", &[&app])).await;
    let mut api = service("api", "h", &[&app]);
    api.path_prefixes = vec![PathPrefix::parse("/api").unwrap()];
    rig.put(&api).await;
    let answer = rig.get("h", "/api/x%2Fy?z=1;2").await;
    assert!(
        answer.body.starts_with("one GET /x%2Fy?z=1;2\n"),
        "{}",
        answer.body
    );
    assert!(
        answer.body.contains("x-forwarded-prefix: /api\n"),
        "{}",
        answer.body
    );
    assert!(rig.get("h", "/api").await.body.starts_with("one GET /\n"));
    assert!(rig.get("h", "/api?q").await.body.starts_with("one GET /?q\n"));
    assert!(
        rig.get("h", "/apiary")
            .await
            .body
            .starts_with("one GET /apiary\n")
    );
}

#[tokio::test]
async fn responses_stream_as_they_come() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    stream
        .write_all(b"GET /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    read_head(&mut stream).await;
    let mut lines = String::new();
    stream.read_line(&mut lines).await.unwrap();
    stream.read_line(&mut lines).await.unwrap();
    assert!(lines.contains("first"), "{lines}");
    app.state.release.notify_one();
    stream.read_to_string(&mut lines).await.unwrap();
    assert!(lines.contains("second"), "{lines}");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let mut stream = open_tunnel(&rig, "h").await;
    stream.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    let status = &rig.client.list().await.unwrap()[0].upstreams[0];
    assert_eq!((status.in_flight, status.tunnels), (0, 1));
}

pub(crate) async fn open_tunnel(rig: &Rig, host: &str) -> BufReader<TcpStream> {
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    let request =
        format!("GET /ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let (status, headers) = read_head(&mut stream).await;
    assert_eq!(status, 101);
    assert_eq!(headers["upgrade"], "websocket");
    stream
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.limits.max_request_body = Some(10);
    rig.put(&web).await;
    let fits = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 10\r\n\r\n0123456789";
    assert_eq!(rig.send(fits).await.status, 200);
    let declared = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 11\r\n\r\n0123456789x";
    assert_eq!(rig.send(declared).await.status, 413);
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n0123456789x\r\n0\r\n\r\n";
    assert_eq!(rig.send(chunked).await.status, 413);
}

#[tokio::test]
async fn a_snapshot_file_is_read_again_when_it_is_replaced() {
    let (old, new) = (App::start("old").await, App::start("new").await);
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("routes.json");
    let write = |app: &App| {
        let snapshot = Snapshot {
            services: vec![service("web", "h", &[app])],
            ..Snapshot::default()
        };
        let fresh = file.with_extension("new");
        fs_err::write(&fresh, serde_json::to_vec(&snapshot).unwrap()).unwrap();
        fs_err::rename(&fresh, &file).unwrap();
    };
    write(&old);
    let rig = Rig::with(home, Store::File(file.clone()));
    assert!(rig.get("h", "/").await.body.starts_with("old"));
    write(&new);
    let noticed = async {
        while !rig.get("h", "/").await.body.starts_with("new") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, noticed)
        .await
        .expect("the new file is read");
    fs_err::write(path_in(&rig, "routes.json"), b"{ not json").unwrap();
    let reported = async {
        while rig.client.status().await.unwrap().problems.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, reported)
        .await
        .expect("the bad file is reported");
    assert!(
        rig.get("h", "/").await.body.starts_with("new"),
        "a bad file must not end the good routes"
    );
}
