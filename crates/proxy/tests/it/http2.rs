//! HTTP/2 on both sides, and between HTTP/2 and HTTP/1.1: bodies, trailers, interim responses, WebSockets.

use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::h2c::{H2cApp, all, connect, fields, request, say, some};
use crate::rig::{Answer, App, Rig, read_head, service};

#[tokio::test]
async fn grpc_passes_with_trailers_both_ways() {
    let (rig, mut app) = (Rig::start(), H2cApp::start().await);
    rig.put(&app.service()).await;
    let mut client = connect(rig.http).await;
    let asked = request("POST", "/shop.Cart/Watch")
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "5S")
        .body(())
        .unwrap();
    let (answer, mut up) = client.send_request(asked, false).unwrap();
    say(&mut up, "one", false);
    let (seen, mut respond) = app.next().await;
    assert_eq!(seen.uri().to_string(), "http://h/shop.Cart/Watch");
    assert_eq!(seen.headers()["te"], "trailers");
    assert_eq!(seen.headers()["grpc-timeout"], "5S");
    assert_eq!(seen.headers()["x-forwarded-for"], "127.0.0.1");
    let mut body = seen.into_body();
    assert_eq!(some(&mut body, 3).await, "one");

    // The two talk in turns on one stream, as bidirectional calls do.
    let mut down = respond
        .send_response(
            Response::builder()
                .header("content-type", "application/grpc")
                .body(())
                .unwrap(),
            false,
        )
        .unwrap();
    let response = answer.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let mut heard = response.into_body();
    for _ in 0..3 {
        say(&mut up, "ping", false);
        assert_eq!(some(&mut body, 4).await, "ping");
        say(&mut down, "pong", false);
        assert_eq!(some(&mut heard, 4).await, "pong");
    }
    up.send_trailers(fields(&[("x-sum", "7")])).unwrap();
    assert_eq!(all(&mut body).await.unwrap().1.unwrap()["x-sum"], "7");
    down.send_trailers(fields(&[("grpc-status", "0"), ("grpc-message", "fine")]))
        .unwrap();
    let (rest, trailers) = all(&mut heard).await.unwrap();
    assert_eq!(rest, "");
    assert_eq!(trailers.unwrap()["grpc-status"], "0");

    // An answer of nothing but a head.
    let (answer, _) = client
        .send_request(request("POST", "/shop.Cart/None").body(()).unwrap(), true)
        .unwrap();
    let (_, mut respond) = app.next().await;
    let head = Response::builder().header("grpc-status", "12").body(()).unwrap();
    respond.send_response(head, true).unwrap();
    let response = answer.await.unwrap();
    assert_eq!(response.headers()["grpc-status"], "12");
    assert!(response.body().is_end_stream());

    // Nothing is left in flight, and every byte of the bodies was counted.
    drop((up, heard));
    let counts = loop {
        let stats = rig.client.stats(&crate::rig::name("grpc")).await.unwrap();
        if stats.total.in_flight == 0 {
            break stats.total;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((counts.received_bytes, counts.sent_bytes), (3 + 3 * 4, 3 * 4));
}

#[tokio::test]
async fn a_client_that_gives_a_stream_up_gives_it_up_at_the_upstream() {
    let (rig, mut app) = (Rig::start(), H2cApp::start().await);
    rig.put(&app.service()).await;
    let mut client = connect(rig.http).await;
    let (answer, mut up) = client
        .send_request(request("POST", "/x").body(()).unwrap(), false)
        .unwrap();
    let (_, mut respond) = app.next().await;
    up.send_reset(h2::Reason::CANCEL);
    drop(answer);
    let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
    assert_eq!(reason, h2::Reason::CANCEL);

    // And the other way: a response that breaks off is never passed off as complete.
    let (answer, _) = client
        .send_request(request("GET", "/y").body(()).unwrap(), true)
        .unwrap();
    let (_, mut respond) = app.next().await;
    let mut down = respond.send_response(Response::new(()), false).unwrap();
    say(&mut down, "half", false);
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(some(&mut body, 4).await, "half");
    app.kill().await;
    assert!(all(&mut body).await.is_err());
}

#[tokio::test]
async fn an_upstream_that_is_late_is_asked_for_a_sign_of_life_and_given_up_without_one() {
    let (rig, mut app) = (Rig::start(), H2cApp::start().await);
    let mut service = app.service();
    // It holds for the first request too, which is answered.
    service.response_timeout = Duration::from_secs(1);
    // Only requests may notice.
    service.health_check.interval = Duration::from_secs(3600);
    rig.put(&service).await;
    let mut client = connect(rig.http).await;
    let (answer, _) = client
        .send_request(request("GET", "/long").body(()).unwrap(), true)
        .unwrap();
    let (_, mut respond) = app.next().await;
    let mut down = respond.send_response(Response::new(()), false).unwrap();
    say(&mut down, "begun", false);
    let mut long = answer.await.unwrap().into_body();
    assert_eq!(some(&mut long, 5).await, "begun");

    // Late, but alive: only the late request is given up.
    let mut late = async |path: &str| {
        let (answer, _) = client
            .send_request(request("GET", path).body(()).unwrap(), true)
            .unwrap();
        assert_eq!(answer.await.unwrap().status(), 504);
    };
    late("/late").await;
    let _late = app.next().await;
    say(&mut down, "goes on", false);
    assert_eq!(some(&mut long, 7).await, "goes on");

    // Dead without a word: what is open on the connection ends too, and the next request does not meet it.
    app.freeze();
    let mut end = std::pin::pin!(all(&mut long));
    let end = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            // One may still meet another connection, while the pong of before is on its way.
            tokio::select! {
                end = &mut end => return end,
                () = late("/dead") => {}
            }
        }
    });
    assert!(end.await.expect("a dead upstream is given up").is_err());
}

#[tokio::test]
async fn http1_clients_reach_an_h2c_upstream() {
    let (rig, mut app) = (Rig::start(), H2cApp::start().await);
    rig.put(&app.service()).await;
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    stream
        .write_all(
            b"POST /a?b HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\nExpect: 100-continue\r\n\
              Transfer-Encoding: chunked\r\n\r\n",
        )
        .await
        .unwrap();
    assert_eq!(read_head(&mut stream).await.0, 100);
    stream
        .write_all(b"5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n")
        .await
        .unwrap();
    let (seen, mut respond) = app.next().await;
    assert_eq!(
        (seen.method().as_str(), seen.uri().to_string().as_str()),
        ("POST", "http://h/a?b")
    );
    for hop in ["connection", "transfer-encoding", "expect", "host"] {
        assert!(!seen.headers().contains_key(hop), "{hop}");
    }
    let (body, trailers) = all(&mut seen.into_body()).await.unwrap();
    assert_eq!(
        (body.as_str(), &trailers.unwrap()["x-sum"]),
        ("hello", &"5".parse().unwrap())
    );
    respond
        .send_informational(
            Response::builder()
                .status(103)
                .header("link", "</a.css>")
                .body(())
                .unwrap(),
        )
        .unwrap();
    let (status, headers) = read_head(&mut stream).await;
    assert_eq!((status, &headers["link"]), (103, &"</a.css>".parse().unwrap()));
    let mut down = respond.send_response(Response::new(()), false).unwrap();
    say(&mut down, "body", false);
    down.send_trailers(fields(&[("grpc-status", "0")])).unwrap();
    let (status, headers) = read_head(&mut stream).await;
    assert_eq!(
        (status, &headers["transfer-encoding"]),
        (200, &"chunked".parse().unwrap())
    );
    let expect = b"4\r\nbody\r\n0\r\ngrpc-status: 0\r\n\r\n";
    let mut rest = vec![0; expect.len()];
    stream.read_exact(&mut rest).await.unwrap();
    assert_eq!(rest, expect);

    // The client's connection is kept, and lengths stay lengths.
    for (method, body) in [("GET", "four"), ("HEAD", "")] {
        stream
            .write_all(format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let (_, mut respond) = app.next().await;
        let head = Response::builder()
            .header("content-length", "4")
            .body(())
            .unwrap();
        match body {
            "" => drop(respond.send_response(head, true).unwrap()),
            body => say(&mut respond.send_response(head, false).unwrap(), body, true),
        }
        let (status, headers) = read_head(&mut stream).await;
        assert_eq!((status, &headers["content-length"]), (200, &"4".parse().unwrap()));
        let mut given = vec![0; body.len()];
        stream.read_exact(&mut given).await.unwrap();
        assert_eq!(given, body.as_bytes());
    }
}

#[tokio::test]
async fn websockets_pass_over_http2_on_either_side() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let websocket = |path: &str| {
        let mut asked = request("CONNECT", path)
            .header("sec-websocket-version", "13")
            .body(())
            .unwrap();
        asked
            .extensions_mut()
            .insert(h2::ext::Protocol::from_static("websocket"));
        asked
    };
    let mut client = connect(rig.http).await;
    // The proxy says in its settings that it can; a first exchange makes sure that they have arrived.
    let (answer, _) = client
        .send_request(request("GET", "/").body(()).unwrap(), true)
        .unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);
    assert!(client.is_extended_connect_protocol_enabled());

    let (answer, mut up) = client.send_request(websocket("/ws"), false).unwrap();
    let response = answer.await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("sec-websocket-accept"));
    let mut down = response.into_body();
    for _ in 0..3 {
        say(&mut up, "ping", false);
        assert_eq!(some(&mut down, 4).await, "ping");
    }
    assert_eq!(rig.client.list().await.unwrap()[0].upstreams[0].tunnels, 1);
    up.send_data(Bytes::new(), true).unwrap();
    assert_eq!(all(&mut down).await.unwrap().0, "");
    drop(up);
    while rig.client.list().await.unwrap()[0].upstreams[0].tunnels > 0 {
        tokio::task::yield_now().await;
    }

    // An upstream that knows nothing of WebSockets answers 200: that is not the 200 of a tunnel.
    let (answer, _up) = client.send_request(websocket("/plain"), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 502);

    // From HTTP/1.1 to an h2c upstream.
    let mut app = H2cApp::start().await;
    rig.put(&{
        let mut service = app.service();
        service.hosts = vec![appliance_proxy::names::HostPattern::parse("g").unwrap()];
        service
    })
    .await;
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nHost: g\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .await
        .unwrap();
    let (seen, mut respond) = app.next().await;
    assert_eq!(seen.method(), "CONNECT");
    assert_eq!(
        seen.extensions().get::<h2::ext::Protocol>().unwrap().as_str(),
        "websocket"
    );
    let mut down = respond.send_response(Response::new(()), false).unwrap();
    let (status, headers) = read_head(&mut stream).await;
    assert_eq!(
        (status, &headers["upgrade"]),
        (101, &"websocket".parse().unwrap())
    );
    assert_eq!(headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    stream.write_all(b"ping").await.unwrap();
    assert_eq!(some(&mut seen.into_body(), 4).await, "ping");
    say(&mut down, "pong", true);
    let mut heard = [0; 4];
    stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"pong");
}

/// An HTTP/1.1 upstream in the test's hands, behind a service for `h`.
async fn scripted(rig: &Rig) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    let mut service = appliance_proxy::Service::new(
        crate::rig::name("web"),
        vec![appliance_proxy::names::HostPattern::parse("h").unwrap()],
        vec![app.into()],
    );
    service.health_check.interval = Duration::from_secs(3600);
    rig.put(&service).await;
    listener
}

#[tokio::test]
async fn interim_responses_chunks_and_trailers_of_http1_reach_http2_clients() {
    let rig = Rig::start();
    let upstream = scripted(&rig).await;
    let mut client = connect(rig.http).await;
    let asked = request("POST", "/x")
        .header("te", "trailers")
        .header("expect", "100-continue")
        .body(())
        .unwrap();
    let (mut answer, mut up) = client.send_request(asked, false).unwrap();
    let mut talk = BufReader::new(upstream.accept().await.unwrap().0);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(talk.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("POST /x HTTP/1.1\r\n"), "{head}");
    for expect in [
        "te: trailers",
        "expect: 100-continue",
        "transfer-encoding: chunked",
    ] {
        assert!(head.contains(expect), "{expect} is missing in {head}");
    }
    talk.write_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
        .await
        .unwrap();
    for status in [100, 103] {
        let interim = std::future::poll_fn(|cx| answer.poll_informational(cx)).await;
        assert_eq!(interim.unwrap().unwrap().status(), status);
    }
    say(&mut up, "hello", false);
    up.send_trailers(fields(&[("x-sum", "5"), ("content-length", "9")]))
        .unwrap();
    let expect = b"5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n";
    let mut body = vec![0; expect.len()];
    talk.read_exact(&mut body).await.unwrap();
    assert_eq!(body, expect);
    talk.write_all(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: Grpc-Status\r\n\r\n\
          4\r\nbody\r\n0\r\nGrpc-Status: 0\r\nHost: evil\r\n\r\n",
    )
    .await
    .unwrap();
    let response = answer.await.unwrap();
    assert!(!response.headers().contains_key("transfer-encoding"));
    let (body, trailers) = all(&mut response.into_body()).await.unwrap();
    assert_eq!(body, "body");
    let trailers = trailers.unwrap();
    assert_eq!(
        (&trailers["grpc-status"], trailers.len()),
        (&"0".parse().unwrap(), 1)
    );

    // The upstream's connection rests, and takes the next request.
    let (answer, _) = client
        .send_request(request("HEAD", "/y").body(()).unwrap(), true)
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(talk.read_u8().await.unwrap());
    }
    talk.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
        .await
        .unwrap();
    let response = answer.await.unwrap();
    assert_eq!(response.headers()["content-length"], "9");
    assert!(response.body().is_end_stream());

    // One that breaks off in the middle is not passed off as complete.
    let (answer, _) = client
        .send_request(request("GET", "/z").body(()).unwrap(), true)
        .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(talk.read_u8().await.unwrap());
    }
    talk.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        .await
        .unwrap();
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(some(&mut body, 4).await, "half");
    drop(talk);
    assert!(all(&mut body).await.is_err());
}

#[tokio::test]
async fn an_upload_goes_on_while_the_response_is_not_taken() {
    let rig = Rig::start();
    let upstream = scripted(&rig).await;
    let mut client = connect(rig.http).await;
    let (answer, mut up) = client
        .send_request(request("POST", "/x").body(()).unwrap(), false)
        .unwrap();
    let mut talk = upstream.accept().await.unwrap().0;
    // The response comes at once and is larger than every window; the client takes nothing of it for now.
    let server = tokio::spawn(async move {
        let (mut from, mut to) = talk.split();
        let response = async {
            to.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n")
                .await
                .unwrap();
            to.write_all(&vec![b'd'; 4_000_000]).await.unwrap();
        };
        let request = async {
            let (mut count, mut bytes) = (0, vec![0; 65536]);
            let mut tail = Vec::new();
            while !tail.ends_with(b"0\r\n\r\n") {
                let length = from.read(&mut bytes).await.unwrap();
                assert!(length > 0);
                count += bytes[..length].iter().filter(|b| **b == 0xfe).count();
                tail = bytes[length.saturating_sub(5)..length].to_vec();
            }
            count
        };
        tokio::join!(request, response).0
    });
    let mut down = answer.await.unwrap().into_body();
    let mut left = 3_000_000;
    while left > 0 {
        up.reserve_capacity(left.min(100_000));
        let room = std::future::poll_fn(|cx| up.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
        up.send_data(Bytes::from(vec![0xfe; room]), false).unwrap();
        left -= room;
    }
    up.send_data(Bytes::new(), true).unwrap();
    // Only now is the response taken.
    let (body, _) = all(&mut down).await.unwrap();
    assert_eq!(body.len(), 4_000_000);
    assert_eq!(server.await.unwrap(), 3_000_000);
}

#[tokio::test]
async fn a_service_behind_a_unix_socket_is_checked_and_served() {
    let rig = Rig::start();
    let path = crate::rig::path_in(&rig, "app.sock");
    let mut app = H2cApp::at(&path);
    let probed = rig
        .client
        .probe(
            std::slice::from_ref(&app.address),
            &appliance_proxy::snapshot::HealthCheck {
                protocol: Some(appliance_proxy::snapshot::UpstreamProtocol::H2c),
                ..Default::default()
            },
            Duration::from_secs(5),
        )
        .await
        .unwrap();
    assert!(probed.all_healthy(), "{probed:?}");
    rig.put(&app.service()).await;
    let mut client = connect(rig.http).await;
    let (answer, _) = client
        .send_request(request("GET", "/").body(()).unwrap(), true)
        .unwrap();
    let (_, mut respond) = app.next().await;
    respond.send_response(Response::new(()), true).unwrap();
    assert_eq!(answer.await.unwrap().status(), 200);

    // HTTP/1.1 behind one.
    let path = crate::rig::path_in(&rig, "web.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let address =
        appliance_proxy::names::UpstreamAddress::parse(&format!("unix:{}", path.display())).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while stream.read_buf(&mut head).await.is_ok_and(|count| count > 0) {
                    if head.ends_with(b"\r\n\r\n") {
                        head.clear();
                        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix";
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    let mut web = appliance_proxy::Service::new(
        crate::rig::name("web"),
        vec![appliance_proxy::names::HostPattern::parse("w").unwrap()],
        vec![address],
    );
    web.health_check.interval = Duration::from_millis(50);
    rig.put(&web).await;
    for _ in 0..3 {
        assert_eq!(rig.get("w", "/").await.body, "unix");
    }
    fs_err::remove_file(&path).unwrap();
    // Its health check notices that nobody accepts there any more.
    while rig.client.list().await.unwrap()[1].upstreams[0].healthy {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(rig.get("w", "/").await.status, 503);
}

#[tokio::test]
async fn a_grpc_server_is_asked_in_its_own_way() {
    let (rig, mut app) = (Rig::start(), H2cApp::start().await);
    let check = appliance_proxy::snapshot::HealthCheck {
        path: "/grpc.health.v1.Health/Check".into(),
        protocol: Some(appliance_proxy::snapshot::UpstreamProtocol::H2c),
        ..Default::default()
    };
    let upstreams = [app.address.clone()];
    for (message, healthy) in [
        (&[0, 0, 0, 0, 2, 8, 1][..], true),
        (&[0, 0, 0, 0, 2, 8, 2], false),
    ] {
        let asking = rig.client.probe(&upstreams, &check, Duration::from_millis(900));
        let answering = async {
            let (seen, mut respond) = app.next().await;
            assert_eq!(seen.headers()["content-type"], "application/grpc");
            assert_eq!(all(&mut seen.into_body()).await.unwrap().0.as_bytes(), [0; 5]);
            let mut down = respond.send_response(Response::new(()), false).unwrap();
            down.send_data(Bytes::from_static(message), false).unwrap();
            down.send_trailers(fields(&[("grpc-status", "0")])).unwrap();
        };
        let (probed, ()) = tokio::join!(asking, answering);
        assert_eq!(probed.unwrap().all_healthy(), healthy);
        if !healthy {
            break;
        }
    }
}

#[tokio::test]
async fn a_load_balancer_names_the_client() {
    use appliance_proxy::options::{Scheme, Store};
    use appliance_proxy::snapshot::{Settings, Snapshot};
    let app = App::start("one").await;
    let rig = Rig::start();
    let port = rig.http.port();
    drop(rig.stop().await);
    // The port is the test's own until the proxy takes it.
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("routes.json");
    let snapshot = Snapshot {
        settings: Settings {
            proxy_protocol_ports: vec![port],
            ..Settings::default()
        },
        services: vec![service("web", "h", &[&app])],
        ..Snapshot::default()
    };
    fs_err::write(&file, serde_json::to_vec(&snapshot).unwrap()).unwrap();
    let rig = Rig::at(home, Store::File(file), Scheme::Http, port);
    let get = "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    let answer = rig
        .send(&format!("PROXY TCP4 203.0.113.7 198.51.100.1 5000 80\r\n{get}"))
        .await;
    assert!(
        answer.body.contains("x-forwarded-for: 203.0.113.7\n"),
        "{}",
        answer.body
    );
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".to_vec();
    v2.extend_from_slice(&[0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    v2.extend_from_slice(&[0; 20]);
    v2.extend_from_slice(get.as_bytes());
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    stream.write_all(&v2).await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert!(
        answer.body.contains("x-forwarded-for: 2001:db8::9\n"),
        "{}",
        answer.body
    );
    // Whoever comes without one is not heard.
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(get.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    let _reset_or_closed = stream.read_to_end(&mut bytes).await;
    assert_eq!(bytes, b"");
}

#[tokio::test]
async fn compression_and_passwords_hold_over_http2_too() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.compression = Some(appliance_proxy::snapshot::Compression {
        min_bytes: 10,
        types: vec!["text/*".into()],
        ..Default::default()
    });
    web.auth = Some(appliance_proxy::snapshot::Auth {
        realm: "Shop".into(),
        users: [("ada".to_owned(), bcrypt::hash("love", 4).unwrap())].into(),
        except: vec![appliance_proxy::names::PathPrefix::parse("/open").unwrap()],
    });
    rig.put(&web).await;
    let mut client = connect(rig.http).await;
    let mut ask = async |path: &str, fields: &[(&str, &str)]| {
        let mut asked = request("GET", path);
        for (name, value) in fields {
            asked = asked.header(*name, *value);
        }
        let (answer, _) = client.send_request(asked.body(()).unwrap(), true).unwrap();
        answer.await.unwrap()
    };
    let refused = ask("/secret", &[("accept-encoding", "gzip")]).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(
        refused.headers()["www-authenticate"],
        "Basic realm=\"Shop\", charset=\"UTF-8\""
    );
    let wrong = ask("/secret", &[("authorization", "Basic YWRhOmhhdGU=")]).await;
    assert_eq!(wrong.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(app.state.requests.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert_eq!(ask("/open", &[]).await.status(), StatusCode::OK);

    // `ada:love`; the body is as it was once it is unpacked, and a client without the coding gets it plain.
    let signed = ("authorization", "Basic YWRhOmxvdmU=");
    app.state.release.notify_one();
    let packed = ask("/stream?plain", &[signed, ("accept-encoding", "gzip, br;q=0.1")]).await;
    assert_eq!(packed.headers()["content-encoding"], "gzip");
    assert_eq!(packed.headers()["vary"], "Accept-Encoding");
    assert!(!packed.headers().contains_key("content-length"));
    let mut body = packed.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::MultiGzDecoder::new(&bytes[..]), &mut text).unwrap();
    assert_eq!(text, "first\nsecond\n");
    app.state.release.notify_one();
    let plain = ask("/stream?plain", &[signed]).await;
    assert!(!plain.headers().contains_key("content-encoding"));
    assert_eq!(all(&mut plain.into_body()).await.unwrap().0, "first\nsecond\n");
}

#[tokio::test]
async fn a_stream_that_is_given_up_before_its_answer_is_logged_as_499() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = service("web", "h", &[&app]);
    web.log.requests = true;
    rig.put(&web).await;
    let mut client = connect(rig.http).await;
    // With the body still under way, and with nothing more to come.
    for (number, ended) in [(1, false), (2, true)] {
        let id = format!("from-the-client-{number}");
        let asked = request("GET", "/slow?token=1").header("x-request-id", &id);
        let (answer, mut up) = client.send_request(asked.body(()).unwrap(), ended).unwrap();
        app.state.arrived.notified().await;
        up.send_reset(h2::Reason::CANCEL);
        drop(answer);
        let line = loop {
            let bytes = rig.log.0.lock().unwrap().clone();
            let lines = String::from_utf8(bytes).unwrap();
            if let Some(line) = lines.lines().nth(number - 1).filter(|_| lines.ends_with('\n')) {
                break line.to_owned();
            }
            tokio::task::yield_now().await;
        };
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        let said = (line["status"].as_u64(), line["path"].as_str());
        assert_eq!(said, (Some(499), Some("/slow")), "{number}");
        assert_eq!(line["request_id"], id);
        assert_eq!(line["proto"], "HTTP/2.0");
    }
}
