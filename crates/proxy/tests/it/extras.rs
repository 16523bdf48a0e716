//! What people expect of a proxy beside forwarding: compression, passwords, redirects, pages, limits, real addresses.

use std::convert::Infallible;
use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;

use appliance_proxy::Service;
use appliance_proxy::compress::Coding;
use appliance_proxy::control::{ControlError, RefusalCode};
use appliance_proxy::names::PathPrefix;
use appliance_proxy::snapshot::{Auth, Compression, Redirect, Settings};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::rig::{App, Rig, closed_port, read_head, service};

/// `/page` is HTML with an ETag, `/packed` says it is gzip, `/fixed` forbids changes, `/part` is a part, `/events` sends
/// one event and waits, anything else is a small text.
async fn site(release: Arc<Notify>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let release = Arc::clone(&release);
            tokio::spawn(async move {
                let service = service_fn(move |request| page(request, Arc::clone(&release)));
                let _client_left = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    address
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn page(
    request: Request<hyper::body::Incoming>,
    release: Arc<Notify>,
) -> Result<Response<Body>, Infallible> {
    let html = |text: String| {
        Response::builder()
            .header("content-type", "text/html")
            .body(Full::from(text).boxed())
    };
    let long = "<p>all work and no play</p>".repeat(1000);
    let mut response = match request.uri().path() {
        "/page" | "/packed" | "/fixed" | "/part" => html(long),
        "/events" => {
            let stream = futures_util::stream::unfold((0, release), |(step, release)| async move {
                match step {
                    0 => {}
                    1 => release.notified().await,
                    _ => return None,
                }
                let event = Bytes::from(format!("data: {step}\n\n"));
                Some((Ok::<_, Infallible>(Frame::data(event)), (step + 1, release)))
            });
            let body = StreamBody::new(SyncStream(Box::pin(stream))).boxed();
            Response::builder()
                .header("content-type", "text/event-stream")
                .body(body)
        }
        _ => html("small".to_owned()),
    }
    .unwrap();
    let headers = response.headers_mut();
    headers.insert("etag", "\"v1\"".parse().unwrap());
    headers.insert("accept-ranges", "bytes".parse().unwrap());
    match request.uri().path() {
        "/packed" => drop(headers.insert("content-encoding", "gzip".parse().unwrap())),
        "/fixed" => drop(headers.insert("cache-control", "no-transform".parse().unwrap())),
        "/part" => *response.status_mut() = http::StatusCode::PARTIAL_CONTENT,
        _ => {}
    }
    Ok(response)
}

/// A stream that is only polled with exclusive access.
struct SyncStream<S>(std::pin::Pin<Box<S>>);

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

fn of(address: SocketAddr) -> Service {
    let mut service = service("web", "site.test", &[]);
    service.upstreams = vec![address.into()];
    service
}

async fn ask(rig: &Rig, path: &str, more: &str) -> (u16, http::HeaderMap, Vec<u8>) {
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: site.test\r\nConnection: close\r\n{more}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let (status, headers) = read_head(&mut stream).await;
    let mut body = Vec::new();
    if headers.contains_key("transfer-encoding") {
        loop {
            let chunk = chunk(&mut stream).await;
            if chunk.is_empty() {
                break;
            }
            body.extend_from_slice(&chunk);
        }
    } else {
        stream.read_to_end(&mut body).await.unwrap();
    }
    (status, headers, body)
}

async fn chunk(stream: &mut BufReader<TcpStream>) -> Vec<u8> {
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let mut data = vec![0; usize::from_str_radix(line.trim(), 16).unwrap() + 2];
    stream.read_exact(&mut data).await.unwrap();
    data.truncate(data.len() - 2);
    data
}

fn unpack(coding: &str, bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut reader: Box<dyn std::io::Read> = match coding {
        "gzip" => Box::new(flate2::read::GzDecoder::new(bytes)),
        "br" => Box::new(brotli::Decompressor::new(bytes, 4096)),
        "zstd" => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
        other => panic!("coding {other:?}"),
    };
    reader.read_to_string(&mut text).unwrap();
    text
}

#[tokio::test]
async fn responses_are_compressed_when_asked_for_and_never_twice() {
    let (rig, release) = (Rig::start(), Arc::new(Notify::new()));
    let mut service = of(site(Arc::clone(&release)).await);
    rig.put(&service).await;
    let (_, headers, _) = ask(&rig, "/page", "Accept-Encoding: gzip, br, zstd\r\n").await;
    assert!(!headers.contains_key("content-encoding"), "off by default");

    service.compression = Some(Compression::default());
    rig.put(&service).await;
    for (accept, coding) in [
        ("gzip", "gzip"),
        ("br, gzip;q=0.5", "br"),
        ("gzip, br, zstd", "zstd"),
    ] {
        let (status, headers, body) = ask(&rig, "/page", &format!("Accept-Encoding: {accept}\r\n")).await;
        assert_eq!(
            (status, headers["content-encoding"].to_str().unwrap()),
            (200, coding)
        );
        assert_eq!(headers["etag"], "W/\"v1\"");
        assert_eq!(headers["vary"], "Accept-Encoding");
        assert!(!headers.contains_key("content-length") && !headers.contains_key("accept-ranges"));
        assert!(body.len() < 2_000, "{coding}: {}", body.len());
        assert_eq!(unpack(coding, &body).len(), 27 * 1000);
    }
    let (_, headers, body) = ask(&rig, "/page", "").await;
    assert_eq!(
        (headers["vary"].to_str().unwrap(), body.len()),
        ("Accept-Encoding", 27 * 1000)
    );
    for path in ["/packed", "/fixed", "/part", "/small"] {
        let (_, headers, _) = ask(&rig, path, "Accept-Encoding: zstd, br\r\n").await;
        let coding = headers
            .get("content-encoding")
            .map(|value| value.to_str().unwrap());
        assert_eq!(coding, (path == "/packed").then_some("gzip"), "{path}");
        assert_eq!(headers["etag"], "\"v1\"", "{path}");
    }

    // A stream of events is not held back by the encoder.
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    let request = "GET /events HTTP/1.1\r\nHost: site.test\r\nAccept-Encoding: gzip\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut stream = BufReader::new(stream);
    let (_, headers) = read_head(&mut stream).await;
    assert_eq!(headers["content-encoding"], "gzip");
    let mut packed = chunk(&mut stream).await;
    let mut text = [0; 64];
    let mut reader = flate2::read::GzDecoder::new(&packed[..]);
    let mut seen = String::new();
    while let Ok(count @ 1..) = reader.read(&mut text) {
        seen.push_str(std::str::from_utf8(&text[..count]).unwrap());
    }
    assert_eq!(
        seen, "data: 0\n\n",
        "the first event is there while the second is awaited"
    );
    release.notify_one();
    loop {
        let more = chunk(&mut stream).await;
        if more.is_empty() {
            break;
        }
        packed.extend(more);
    }
    assert_eq!(unpack("gzip", &packed), "data: 0\n\ndata: 1\n\n");

    let mut only_gzip = service.clone();
    only_gzip.compression = Some(Compression {
        codings: vec![Coding::Gzip],
        ..Compression::default()
    });
    rig.put(&only_gzip).await;
    let (_, headers, _) = ask(&rig, "/page", "Accept-Encoding: zstd, br\r\n").await;
    assert!(!headers.contains_key("content-encoding"));
}

#[tokio::test]
async fn a_password_is_asked_for_and_exceptions_cannot_be_stretched() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "site.test", &[&app]);
    web.auth = Some(Auth {
        realm: "Staging".into(),
        users: [("ada".to_owned(), bcrypt::hash("secret", 4).unwrap())].into(),
        except: vec![PathPrefix::parse("/hooks").unwrap()],
    });
    rig.put(&web).await;
    let (status, headers, _) = ask(&rig, "/", "").await;
    assert_eq!(status, 401);
    assert_eq!(
        headers["www-authenticate"],
        "Basic realm=\"Staging\", charset=\"UTF-8\""
    );
    // ada:secret, ada:wrong
    for (credentials, expected) in [
        ("YWRhOnNlY3JldA==", 200),
        ("YWRhOndyb25n", 401),
        ("YWRhOnNlY3JldA==", 200),
    ] {
        let (status, ..) = ask(&rig, "/a", &format!("Authorization: Basic {credentials}\r\n")).await;
        assert_eq!(status, expected, "{credentials}");
    }
    assert_eq!(ask(&rig, "/hooks/stripe", "").await.0, 200);
    for path in [
        "/hooks/../admin",
        "/hooks/%2e%2e/admin",
        "/hooks//x",
        "/hooksx",
        "/hooks/..;/admin",
    ] {
        assert_eq!(ask(&rig, path, "").await.0, 401, "{path}");
    }
    let mut bad = web.clone();
    bad.auth
        .as_mut()
        .unwrap()
        .users
        .insert("bob".into(), "plain".into());
    let error = rig.client.put_service(&bad).await.unwrap_err();
    assert!(
        matches!(&error, ControlError::Refused { refusal, .. }
            if refusal.code == RefusalCode::Invalid && refusal.message.contains("htpasswd")),
        "{error}"
    );
}

#[tokio::test]
async fn redirects_keep_the_rest_of_the_path_and_the_query() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "site.test", &[&app]);
    let redirect = |from: &str, to: &str, status| Redirect {
        from: from.into(),
        to: to.into(),
        status,
    };
    web.redirects = vec![
        redirect("/old", "/new", 301),
        redirect("/blog/*", "https://blog.example/posts/*", 308),
        redirect("/gone/*", "/", 302),
        redirect("/strip/*", "/*", 302),
    ];
    rig.put(&web).await;
    for (path, status, location) in [
        ("/old?a=1", 301, "/new?a=1"),
        ("/blog/2024/x?y", 308, "https://blog.example/posts/2024/x?y"),
        ("/blog", 308, "https://blog.example/posts"),
        ("/gone/away", 302, "/"),
        ("/strip//evil.example", 302, "/evil.example"),
    ] {
        let answer = rig.get("site.test", path).await;
        assert_eq!(
            (answer.status, answer.header("location")),
            (status, location),
            "{path}"
        );
    }
    assert_eq!(rig.get("site.test", "/blogger").await.status, 200);
    assert_eq!(rig.get("site.test", "/old/x").await.status, 200);
}

#[tokio::test]
async fn an_apps_own_pages_are_shown_for_the_proxys_own_answers_only() {
    let rig = Rig::start();
    let mut web = of(closed_port().await);
    web.error_pages = [
        (502, "<h1>Our 502</h1>".to_owned()),
        (
            503,
            "<h1>Back soon{{ if .Message }}: {{ .Message }}{{ end }}</h1>".to_owned(),
        ),
    ]
    .into();
    rig.put(&web).await;
    let answer = rig.get("site.test", "/").await;
    assert!(matches!(answer.status, 502 | 503), "{}", answer.status);
    assert!(answer.body.starts_with("<h1>"), "{}", answer.body);
    rig.client.stop(&web.name, "at <5>").await.unwrap();
    let answer = rig.get("site.test", "/").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "<h1>Back soon: at &lt;5&gt;</h1>")
    );
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");

    web.error_pages.insert(504, "{{ template \"x\" }}".into());
    let error = rig.client.put_service(&web).await.unwrap_err().to_string();
    assert!(error.contains("504") && error.contains("line 1"), "{error}");
}

#[tokio::test]
async fn visitors_are_held_to_their_rate_and_their_connections() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "site.test", &[&app]);
    web.limits.requests_per_second = Some(0.01);
    web.limits.burst = Some(3);
    rig.put(&web).await;
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(rig.get("site.test", "/").await.status);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    let answer = rig.get("site.test", "/").await;
    assert!(
        answer.header("retry-after").parse::<u64>().unwrap() > 50,
        "{answer:?}"
    );

    // Behind a trusted proxy, visitors count by what it says of them.
    let settings = Settings {
        trusted_proxies: vec!["127.0.0.0/8".into()],
        ..Settings::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    for (visitor, expected) in [
        ("203.0.113.1", 200),
        ("203.0.113.2", 200),
        ("6.6.6.6, 203.0.113.1", 200),
    ] {
        let (status, ..) = ask(&rig, "/", &format!("X-Forwarded-For: {visitor}\r\n")).await;
        assert_eq!(status, expected);
    }
    assert_eq!(ask(&rig, "/", "X-Forwarded-For: 203.0.113.1\r\n").await.0, 200);
    assert_eq!(
        ask(&rig, "/", "X-Forwarded-For: 7.7.7.7, 203.0.113.1\r\n")
            .await
            .0,
        429
    );

    let settings = Settings {
        connections_per_ip: Some(2),
        ..Settings::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    web.limits = Default::default();
    rig.put(&web).await;
    let keep = async || {
        let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
        let sent = stream
            .write_all(b"GET / HTTP/1.1\r\nHost: site.test\r\n\r\n")
            .await;
        let mut first = [0; 1];
        let alive = sent.is_ok() && matches!(stream.read(&mut first).await, Ok(1));
        (alive, stream)
    };
    let (one, two, three) = (keep().await, keep().await, keep().await);
    assert_eq!((one.0, two.0, three.0), (true, true, false));
    drop(one);
    let limit = std::time::Duration::from_secs(20);
    let again = async { while !keep().await.0 {} };
    tokio::time::timeout(limit, again)
        .await
        .expect("a connection that ended makes room");
    let error = rig
        .client
        .put_settings(&Settings {
            connections_per_ip: Some(0),
            ..Settings::default()
        })
        .await
        .unwrap_err();
    assert!(error.to_string().contains("connections_per_ip"), "{error}");
}

#[tokio::test]
async fn connections_by_way_of_a_balancer_are_counted_by_visitor() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "site.test", &[&app])).await;
    let settings = Settings {
        connections_per_ip: Some(1),
        proxy_protocol_ports: vec![rig.http.port()],
        ..Settings::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    let visit = async |address: &str| {
        let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
        let head =
            format!("PROXY TCP4 {address} 127.0.0.1 4444 80\r\nGET / HTTP/1.1\r\nHost: site.test\r\n\r\n");
        let sent = stream.write_all(head.as_bytes()).await;
        let mut first = [0; 1];
        let alive = sent.is_ok() && matches!(stream.read(&mut first).await, Ok(1));
        (alive, stream)
    };
    // One balancer, three visitors: each has one, none has two.
    let (one, two, three) = (
        visit("203.0.113.1").await,
        visit("203.0.113.2").await,
        visit("203.0.113.3").await,
    );
    assert_eq!((one.0, two.0, three.0), (true, true, true));
    assert!(!visit("203.0.113.2").await.0);
}

#[tokio::test]
async fn upstreams_learn_the_visitor_behind_trusted_proxies() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "site.test", &[&app])).await;
    let body = |answer: (u16, http::HeaderMap, Vec<u8>)| String::from_utf8(answer.2).unwrap();
    let spoof = "X-Forwarded-For: 6.6.6.6, 203.0.113.7, 127.0.0.9\r\nCF-Connecting-IP: 203.0.113.8\r\n\
                 Forwarded: for=6.6.6.6\r\n";
    let told = body(ask(&rig, "/", spoof).await);
    assert!(
        told.contains("x-forwarded-for: 127.0.0.1\n") && !told.contains("\nforwarded:"),
        "{told}"
    );

    let mut settings = Settings {
        trusted_proxies: vec!["127.0.0.0/8".into()],
        forwarded: true,
        ..Settings::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    let told = body(ask(&rig, "/", spoof).await);
    assert!(told.contains("x-forwarded-for: 203.0.113.7\n"), "{told}");
    assert!(
        told.contains("forwarded: for=203.0.113.7;host=\"site.test\";proto=http\n"),
        "{told}"
    );
    assert!(!told.contains("6.6.6.6"), "{told}");

    settings.client_ip_header = Some("CF-Connecting-IP".into());
    rig.client.put_settings(&settings).await.unwrap();
    let told = body(ask(&rig, "/", spoof).await);
    assert!(told.contains("x-forwarded-for: 203.0.113.8\n"), "{told}");
}

#[tokio::test]
async fn the_access_log_has_kamals_fields_and_the_headers_that_were_asked_for() {
    let release = Arc::new(Notify::new());
    let rig = Rig::start();
    let mut web = of(site(release).await);
    web.log.requests = true;
    web.log.request_headers = vec!["Cache-Control".into(), "User-Agent".into()];
    web.log.response_headers = vec!["ETag".into()];
    rig.put(&web).await;
    ask(
        &rig,
        "/small?token=x",
        "Cache-Control: no-cache\r\nUser-Agent: test\r\n",
    )
    .await;
    let log = rig.log.clone();
    rig.stop().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    for (field, value) in [
        ("msg", "Request"),
        ("host", "site.test"),
        ("path", "/small"),
        ("query", "[redacted]"),
        ("method", "GET"),
        ("req_cache_control", "no-cache"),
        ("resp_etag", "\"v1\""),
        ("resp_content_type", "text/html"),
        ("user_agent", "test"),
        ("client_addr", "127.0.0.1"),
        ("remote_addr", "127.0.0.1"),
        ("proto", "HTTP/1.1"),
        ("scheme", "http"),
    ] {
        assert_eq!(line[field], value, "{field} in {text}");
    }
    for field in [
        "time",
        "level",
        "port",
        "request_id",
        "status",
        "service",
        "target",
        "duration",
        "client_port",
    ] {
        assert!(!line[field].is_null(), "{field} in {text}");
    }
    for field in ["req_content_length", "resp_content_length"] {
        assert!(line[field].is_u64(), "{field} in {text}");
    }
}
