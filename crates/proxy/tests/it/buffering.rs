//! Bodies that are held back until they are complete: in memory, on disk, and on a disk that is full.

use std::sync::atomic::Ordering;

use appliance_proxy::Service;
use appliance_proxy::snapshot::Buffering;
use bytes::Bytes;
use http::StatusCode;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::h2c::{H2cApp, all, connect, request, say};
use crate::lifecycle::Process;
use crate::observing::page;
use crate::rig::{Answer, App, Rig, name, read_head, service};

/// A service whose bodies are held back, with little of them in memory.
fn held(app: &App, requests: bool, responses: bool) -> Service {
    let mut service = service("web", "h", &[app]);
    service.buffering = Some(Buffering {
        requests,
        responses,
        memory_bytes: 1000,
        max_response_body: None,
    });
    service
}

/// Text of many different lines.
fn text(bytes: usize) -> String {
    let mut text: String = (0..=bytes / 10).map(|line| format!("line{line:05}\n")).collect();
    text.truncate(bytes);
    text
}

/// Waits until the proxy has taken this much of bodies.
async fn taken(rig: &Rig, bytes: u64) {
    loop {
        let page = page(rig).await;
        let count = |name: &str| -> u64 {
            let mut lines = page.lines();
            lines
                .find_map(|line| line.strip_prefix(name))
                .unwrap()
                .trim()
                .parse()
                .unwrap()
        };
        if count("appliance_proxy_held_memory_bytes ") + count("appliance_proxy_held_disk_bytes ") >= bytes {
            return;
        }
    }
}

#[tokio::test]
async fn a_slow_uploader_reaches_the_upstream_only_when_it_is_done() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&held(&app, true, false)).await;
    let body = text(600_000);
    let (first, second) = body.split_at(400_000);

    // In chunks, by a client that waits to be asked.
    let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
    stream
        .write_all(
            b"POST /echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n",
        )
        .await
        .unwrap();
    assert_eq!(read_head(&mut stream).await.0, 100);
    stream
        .write_all(format!("{:x}\r\n{first}\r\n", first.len()).as_bytes())
        .await
        .unwrap();
    taken(&rig, 260_000).await;
    assert_eq!(app.state.requests.load(Ordering::Relaxed), 0);
    stream
        .write_all(format!("{:x}\r\n{second}\r\n0\r\nX-Sum: 1\r\n\r\n", second.len()).as_bytes())
        .await
        .unwrap();
    let answer = Answer::read(&mut stream).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "{} bytes came back", answer.body.len());

    // The connection goes on, and what the upstream sees is one announced length.
    let asked = "PUT /seen HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\n\r\n";
    stream.write_all(asked.as_bytes()).await.unwrap();
    let answer = Answer::read(&mut stream).await;
    assert!(answer.body.contains("content-length: 2\n"), "{}", answer.body);
    assert!(!answer.body.contains("chunked") && !answer.body.contains("trailer"));
    assert!(
        answer
            .body
            .contains(&format!("x-request-id: {}\n", answer.header("x-request-id"))),
        "{}",
        answer.body
    );

    // With a length, over HTTP/2 as over HTTP/1.1.
    let before = app.state.requests.load(Ordering::Relaxed);
    let mut client = connect(rig.http).await;
    let (answer, mut up) = client
        .send_request(request("POST", "/echo").body(()).unwrap(), false)
        .unwrap();
    up.send_data(Bytes::from(first[..200_000].to_owned()), false)
        .unwrap();
    taken(&rig, 130_000).await;
    assert_eq!(app.state.requests.load(Ordering::Relaxed), before);
    up.send_data(Bytes::from(first[200_000..].to_owned()), true)
        .unwrap();
    let (echoed, _) = all(&mut answer.await.unwrap().into_body()).await.unwrap();
    assert!(echoed == first, "{} bytes came back", echoed.len());
}

#[tokio::test]
async fn what_is_too_large_or_malformed_never_reaches_the_upstream() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = held(&app, true, false);
    web.limits.max_request_body = Some(5000);
    rig.put(&web).await;
    let chunk = format!("1000\r\n{}\r\n", "x".repeat(4096));
    let head = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(rig.send(&format!("{head}{chunk}{chunk}")).await.status, 413);
    assert_eq!(rig.send(&format!("{head}{chunk}zz\r\n")).await.status, 400);
    let head = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5001\r\n\r\n";
    assert_eq!(rig.send(head).await.status, 413);
    let mut client = connect(rig.http).await;
    let (answer, mut up) = client
        .send_request(request("POST", "/").body(()).unwrap(), false)
        .unwrap();
    up.send_data(Bytes::from(vec![b'x'; 6000]), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
    // A client that leaves in the middle leaves nothing behind.
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4000\r\n\r\nhalf")
        .await
        .unwrap();
    taken(&rig, 4).await;
    drop(stream);
    while !page(&rig).await.contains("appliance_proxy_held_memory_bytes 0") {}
    assert_eq!(app.state.requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn an_upstream_is_free_before_a_slow_reader_has_its_response() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&held(&app, true, true)).await;
    // More than the sockets between us hold.
    let body = text(6_000_000);
    // The upstream was asked so many times, and has nothing more to do.
    let free = |asked: u64| {
        let (rig, app) = (&rig, &app);
        async move {
            while app.state.requests.load(Ordering::Relaxed) < asked
                || rig.client.stats(&name("web")).await.unwrap().total.in_flight > 0
            {
                tokio::task::yield_now().await;
            }
        }
    };
    for path in ["/echo", "/echo?chunked"] {
        let before = app.state.requests.load(Ordering::Relaxed);
        let mut stream = TcpStream::connect(rig.http).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        free(before + 1).await;
        let mut stream = BufReader::new(stream);
        let answer = Answer::read(&mut stream).await;
        assert!(answer.body == body, "{path}: {} bytes came", answer.body.len());
        // And the connection takes another request.
        stream
            .write_all(b"GET /again HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .unwrap();
        assert!(Answer::read(&mut stream).await.body.contains("/again"));

        let mut client = connect(rig.http).await;
        let (answer, mut up) = client
            .send_request(request("POST", path).body(()).unwrap(), false)
            .unwrap();
        up.send_data(Bytes::from(body.clone()), true).unwrap();
        let mut answer = answer.await.unwrap();
        free(before + 3).await;
        assert_eq!(answer.headers()["content-length"], body.len().to_string());
        let (came, _) = all(answer.body_mut()).await.unwrap();
        assert!(came == body, "{path}: {} bytes came", came.len());
    }
}

#[tokio::test]
async fn a_response_is_held_to_its_limit_and_streams_are_not_held() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = held(&app, false, true);
    web.buffering.as_mut().unwrap().max_response_body = Some(50_000);
    web.log.requests = true;
    rig.put(&web).await;
    for (path, length, status) in [
        ("/echo", 50_000, 200),
        ("/echo", 50_001, 500),
        ("/echo?chunked", 50_000, 200),
        ("/echo?chunked", 50_001, 500),
    ] {
        let sent = text(length);
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        let answer = rig.send(&format!("{head}{sent}")).await;
        assert_eq!(answer.status, status, "{path} with {length}");
        assert_eq!(answer.body == sent, status == 200);
        let mut client = connect(rig.http).await;
        let (answer, mut up) = client
            .send_request(request("POST", path).body(()).unwrap(), false)
            .unwrap();
        up.send_data(Bytes::from(sent.clone()), true).unwrap();
        let mut answer = answer.await.unwrap();
        assert_eq!(answer.status(), status, "HTTP/2: {path} with {length}");
        let (came, _) = all(answer.body_mut()).await.unwrap();
        assert_eq!(came == sent, status == 200);
    }

    // Its kind, or its own word, makes a response a stream.
    for kind in ["sse", "unbuffered"] {
        let mut stream = BufReader::new(TcpStream::connect(rig.http).await.unwrap());
        let head = format!("GET /stream?{kind} HTTP/1.1\r\nHost: h\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(read_head(&mut stream).await.0, 200);
        let mut first = [0; 11];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"6\r\nfirst\n\r\n", "{kind}");
        app.state.release.notify_one();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line, "7\r\n");

        let mut client = connect(rig.http).await;
        let path = format!("/stream?{kind}");
        let (answer, _) = client
            .send_request(request("GET", &path).body(()).unwrap(), true)
            .unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "first\n");
        app.state.release.notify_one();
    }
    // Any other is held until its end.
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream
        .write_all(b"GET /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    taken(&rig, 12).await;
    assert_eq!(
        stream.try_read(&mut [0; 8]).unwrap_err().kind(),
        std::io::ErrorKind::WouldBlock
    );
    app.state.release.notify_one();
    assert_eq!(
        Answer::read(&mut BufReader::new(stream)).await.body,
        "first\nsecond\n"
    );
}

#[tokio::test]
async fn a_response_that_breaks_off_while_it_is_held_is_a_whole_502() {
    let (rig, mut app) = (Rig::start(), H2cApp::start().await);
    let mut web = app.service();
    web.buffering = Some(Buffering {
        responses: true,
        ..Buffering::default()
    });
    rig.put(&web).await;
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream
        .write_all(b"GET /1 HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let (_, mut respond) = app.next().await;
    let mut down = respond.send_response(http::Response::new(()), false).unwrap();
    say(&mut down, "half", false);
    taken(&rig, 4).await;
    down.send_reset(h2::Reason::INTERNAL_ERROR);
    let answer = Answer::read(&mut BufReader::new(stream)).await;
    assert_eq!(answer.status, 502);
    assert!(answer.body.contains("</html>") && !answer.body.contains("half"));

    let mut client = connect(rig.http).await;
    let (answer, _) = client
        .send_request(request("GET", "/2").body(()).unwrap(), true)
        .unwrap();
    let (_, mut respond) = app.next().await;
    let mut down = respond.send_response(http::Response::new(()), false).unwrap();
    say(&mut down, "half", false);
    taken(&rig, 4).await;
    down.send_reset(h2::Reason::INTERNAL_ERROR);
    let mut answer = answer.await.unwrap();
    assert_eq!(answer.status(), 502);
    assert!(all(answer.body_mut()).await.unwrap().0.contains("</html>"));
}

#[tokio::test]
async fn a_full_disk_refuses_a_request_and_costs_no_response() {
    let app = App::start("one").await;
    // A real file system with room for four blocks.
    let process = Process::start_with(&[("SPOOL_BYTES", "512k")]).await;
    process
        .client
        .put_service(&held(&app, true, false))
        .await
        .unwrap();
    let body = text(4_000_000);
    let head = format!(
        "POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let post = || async {
        let (from, mut to) = TcpStream::connect(process.http).await.unwrap().into_split();
        let sent = format!("{head}{body}");
        // Refused in the middle of its body, a client may find the connection closed.
        let writing = tokio::spawn(async move {
            let _refused = to.write_all(sent.as_bytes()).await;
            to
        });
        let answer = Answer::read(&mut BufReader::new(from)).await;
        writing.abort();
        answer
    };
    let answer = post().await;
    assert_eq!(answer.status, 507);
    assert!(answer.body.contains("no room"), "{}", answer.body);
    assert_eq!(app.state.requests.load(Ordering::Relaxed), 0);

    // A response goes on as it comes, and nothing of it is lost.
    process
        .client
        .put_service(&held(&app, false, true))
        .await
        .unwrap();
    let answer = post().await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == body, "{} bytes came", answer.body.len());
    let mut client = connect(process.http).await;
    let (answer, mut up) = client
        .send_request(request("POST", "/echo?chunked").body(()).unwrap(), false)
        .unwrap();
    up.send_data(Bytes::from(body.clone()), true).unwrap();
    let mut answer = answer.await.unwrap();
    let (came, _) = all(answer.body_mut()).await.unwrap();
    assert!(came == body, "{} bytes came", came.len());
    // What was held is free again.
    process.client.put_service(&held(&app, true, true)).await.unwrap();
    let small = "POST /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
    let mut stream = TcpStream::connect(process.http).await.unwrap();
    stream.write_all(small.as_bytes()).await.unwrap();
    assert_eq!(Answer::read(&mut BufReader::new(stream)).await.body, "hi");
}

#[tokio::test]
async fn all_bodies_together_stay_within_the_bound() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&held(&app, true, false)).await;
    let settings = appliance_proxy::snapshot::Settings {
        spool_max_bytes: 300_000,
        ..Default::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    let body = text(900_000);
    let head = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 900000\r\n\r\n";
    let mut stream = TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body.as_bytes()[..700_000]).await.unwrap();
    let answer = Answer::read(&mut BufReader::new(stream)).await;
    assert_eq!(answer.status, 503);
    assert_eq!(app.state.requests.load(Ordering::Relaxed), 0);
}
