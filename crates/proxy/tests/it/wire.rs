//! HTTP/1.1 byte by byte, against an upstream that says exactly what the test says.

use std::time::{Duration, Instant};

use appliance_proxy::Service;
use appliance_proxy::names::HostPattern;
use appliance_proxy::options::Store;
use appliance_proxy::snapshot::{Settings, Snapshot};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{Answer, App, Rig, name, read_head, service};

/// An upstream in the test's own hands.
struct Upstream(TcpListener);

/// A connection that the proxy made to it.
struct Talk(BufReader<TcpStream>);

impl Upstream {
    async fn start(rig: &Rig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut service = Service::new(
            name("web"),
            vec![HostPattern::parse("h").unwrap()],
            vec![listener.local_addr().unwrap().into()],
        );
        // Its connections are the test's; a health check would be one too many.
        service.health_check.interval = Duration::from_secs(3600);
        rig.put(&service).await;
        Self(listener)
    }

    async fn accept(&self) -> Talk {
        Talk(BufReader::new(self.0.accept().await.unwrap().0))
    }
}

impl Talk {
    /// The next request's head, as text.
    async fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(
                self.0.read_line(&mut head).await.unwrap(),
                0,
                "ended after {head:?}"
            );
        }
        head
    }

    async fn say(&mut self, bytes: &str) {
        self.0.write_all(bytes.as_bytes()).await.unwrap();
    }

    /// Exactly this many bytes.
    async fn hear(&mut self, count: usize) -> String {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).await.unwrap();
        String::from_utf8(bytes).unwrap()
    }
}

async fn client(rig: &Rig) -> BufReader<TcpStream> {
    BufReader::new(TcpStream::connect(rig.http).await.unwrap())
}

/// What comes until the connection ends.
async fn rest(stream: &mut BufReader<TcpStream>) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[tokio::test]
async fn ambiguous_requests_are_refused_and_never_reach_the_upstream() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    for request in [
        "GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : h\r\n\r\n",
    ] {
        let answer = rig.send(request).await;
        assert_eq!(answer.status, 400, "{request:?}");
        assert_eq!(answer.header("connection"), "close", "{request:?}");
    }
    assert_eq!(app.state.requests.load(std::sync::atomic::Ordering::Relaxed), 0);
    for chunks in [
        "zz\r\n",
        "5\nhello\r\n",
        "5\r\nhelloX\r\n",
        "-1\r\n",
        "0x1\r\na\r\n",
        "1\r\na\r\n0\r\nbad\r\n\r\n",
    ] {
        let request = format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        assert_eq!(rig.send(&request).await.status, 400, "{chunks:?}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let mut stream = client(&rig).await;
    let two = "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcPOST /2 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\nGET /3 HTTP/1.1\r\nHost: h\r\n\r\n";
    stream.write_all(two.as_bytes()).await.unwrap();
    for expect in ["one POST /1", "one POST /2", "one GET /3"] {
        let answer = Answer::read(&mut stream).await;
        assert!(answer.body.starts_with(expect), "{}", answer.body);
    }
}

#[tokio::test]
async fn chunks_are_written_anew_with_trailers_and_without_extensions() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: TE\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\nHost: evil\r\n\r\n")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    let head = talk.head().await;
    assert!(head.contains("Transfer-Encoding: chunked\r\n"), "{head}");
    assert!(head.contains("TE: trailers\r\nConnection: TE\r\n"), "{head}");
    assert_eq!(talk.hear(19).await, "3\r\nabc\r\n0\r\nT: v\r\n\r\n");
    talk.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4;e\r\nbody\r\n0\r\nT: v\r\n\r\n")
        .await;
    let (_, headers) = read_head(&mut stream).await;
    assert_eq!(headers["transfer-encoding"], "chunked");
    let mut body = [0; 20];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(
        &body,
        b"4\r\nbody\r\n0\r\nT: v\r\n\r\n"[..].first_chunk::<20>().unwrap()
    );

    // A client that does not ask for them gets none.
    let mut plain = client(&rig).await;
    plain
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    assert!(!talk.head().await.contains("TE:"));
    talk.say("HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nT: v\r\n\r\n")
        .await;
    assert_eq!(Answer::read(&mut plain).await.body, "body");
}

#[tokio::test]
async fn bodies_end_as_the_status_the_method_and_the_version_say() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    let mut talk = None;
    for (request, response, expect) in [
        (
            "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        ),
        (
            "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "HTTP/1.1 204 Gone\r\n\r\n",
            "HTTP/1.1 204 Gone\r\n",
        ),
        (
            "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nETag: x\r\n",
        ),
    ] {
        stream.write_all(request.as_bytes()).await.unwrap();
        if talk.is_none() {
            talk = Some(upstream.accept().await);
        }
        // The same connection serves them all: each was complete.
        let talk = talk.as_mut().unwrap();
        talk.head().await;
        talk.say(response).await;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            stream.read_line(&mut head).await.unwrap();
        }
        assert!(head.starts_with(expect), "{head}");
        assert!(head.contains("\r\nDate: "), "{head}");
    }
}

#[tokio::test]
async fn a_body_without_length_becomes_chunks_for_a_new_client_and_a_close_for_an_old_one() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    for (request, expect) in [
        (
            "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
            "4\r\nbody\r\n0\r\n\r\n",
        ),
        ("GET / HTTP/1.0\r\nHost: h\r\n\r\n", "body"),
    ] {
        let mut stream = client(&rig).await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut talk = upstream.accept().await;
        talk.head().await;
        talk.say("HTTP/1.0 200 OK\r\n\r\nbody").await;
        drop(talk);
        let answer = rest(&mut stream).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{expect}")), "{answer}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn interim_responses_are_passed_on() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    assert!(talk.head().await.contains("Expect: 100-continue"));
    talk.say("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(read_head(&mut stream).await.0, 100);
    stream.write_all(b"body").await.unwrap();
    assert_eq!(talk.hear(4).await, "body");
    talk.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
    let (status, headers) = read_head(&mut stream).await;
    assert_eq!((status, &headers["link"]), (103, &"</a>".parse().unwrap()));
    talk.say(OK).await;
    assert_eq!(Answer::read(&mut stream).await.status, 200);
}

#[tokio::test]
async fn nothing_after_an_upgrade_request_reaches_the_upstream_before_its_consent() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    let head = talk.head().await;
    assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
    let mut byte = [0];
    let early = tokio::time::timeout(Duration::from_millis(200), talk.0.read(&mut byte)).await;
    assert!(early.is_err(), "bytes came before the 101");
    talk.say("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        .await;
    assert_eq!(read_head(&mut stream).await.0, 101);
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
    assert!(talk.hear(13).await.starts_with("GET /smuggled"));
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_answer() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    stream
        .write_all(b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    talk.head().await;
    talk.say(OK).await;
    assert_eq!(Answer::read(&mut stream).await.body, "ok");
    // A 101 that nobody asked for is an error.
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    talk.head().await;
    talk.say("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n")
        .await;
    assert_eq!(Answer::read(&mut stream).await.status, 502);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_rested_costs_nothing() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    for _ in 0..3 {
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            .await
            .unwrap();
        let mut talk = upstream.accept().await;
        talk.head().await;
        talk.say(OK).await;
        assert_eq!(Answer::read(&mut stream).await.status, 200);
        // The upstream closes although it had promised to keep the connection.
    }
    // It reads the request and closes: an idempotent one is sent once more on a new connection.
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    talk.head().await;
    talk.say(OK).await;
    Answer::read(&mut stream).await;
    stream
        .write_all(b"GET /again HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    talk.head().await;
    drop(talk);
    let mut talk = upstream.accept().await;
    assert!(talk.head().await.starts_with("GET /again"));
    talk.say(OK).await;
    assert_eq!(Answer::read(&mut stream).await.status, 200);
    // One that may have had an effect is not.
    stream
        .write_all(b"POST /once HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    talk.head().await;
    drop(talk);
    assert_eq!(Answer::read(&mut stream).await.status, 502);
}

#[tokio::test]
async fn the_end_of_a_response_in_large_chunks_does_not_wait_for_anything() {
    let rig = Rig::start();
    let app = App::start("one").await;
    let settings = Settings {
        header_timeout: Duration::from_secs(600),
        idle_timeout: Duration::from_secs(600),
        ..Settings::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    rig.put(&service("web", "h", &[&app])).await;
    let body = "0123456789".repeat(600_000);
    for _ in 0..3 {
        let mut stream = client(&rig).await;
        let head = "POST /echo?chunked HTTP/1.1\r\nHost: h\r\nContent-Length: 6000000\r\n\r\n";
        stream
            .write_all(format!("{head}{body}").as_bytes())
            .await
            .unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(60), Answer::read(&mut stream));
        assert!(answer.await.expect("the last chunk comes").body == body);
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_never_passed_off_as_complete() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    for (response, complete) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", false),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            false,
        ),
        // Seen as broken before anything was passed on.
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n",
            true,
        ),
        ("HTTP/1.1 200 OK\r\nContent-Le", true),
        ("nonsense\r\n\r\n", true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            true,
        ),
    ] {
        let mut stream = client(&rig).await;
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut talk = upstream.accept().await;
        talk.head().await;
        talk.say(response).await;
        drop(talk);
        let answer = rest(&mut stream).await;
        if complete {
            assert!(
                answer.starts_with("HTTP/1.1 502 "),
                "{response:?} became {answer}"
            );
        } else {
            assert!(
                answer.contains("half") && !answer.ends_with("0\r\n\r\n"),
                "{response:?} became {answer}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_before_the_end_of_the_body_reaches_the_client() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    stream
        .write_all(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nfirst bytes")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    talk.head().await;
    talk.say("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        .await;
    drop(talk);
    let answer = Answer::read(&mut stream).await;
    assert_eq!((answer.status, answer.body.as_str()), (413, "big"));
    assert_eq!(answer.header("connection"), "close");
}

#[tokio::test]
async fn large_bodies_pass_both_ways_unharmed() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let body: Vec<u8> = (0..5_000_000_u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let stream = client(&rig).await.into_inner();
    let (reader, mut writer) = stream.into_split();
    let sent = body.clone();
    let sending = tokio::spawn(async move {
        let head = format!(
            "PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
            sent.len()
        );
        writer.write_all(head.as_bytes()).await.unwrap();
        writer.write_all(&sent).await.unwrap();
        writer
    });
    let mut talk = upstream.accept().await;
    talk.head().await;
    let mut received = vec![0; body.len()];
    talk.0.read_exact(&mut received).await.unwrap();
    assert!(received == body, "the upload was altered");
    talk.say(&format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        body.len()
    ))
    .await;
    let answering = tokio::spawn(async move { talk.0.write_all(&received).await.unwrap() });
    let mut reader = BufReader::new(reader);
    read_head(&mut reader).await;
    let mut back = vec![0; body.len()];
    reader.read_exact(&mut back).await.unwrap();
    assert!(back == body, "the download was altered");
    answering.await.unwrap();
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn a_client_that_leaves_is_noticed_while_the_upstream_thinks() {
    let rig = Rig::start();
    let upstream = Upstream::start(&rig).await;
    let mut stream = client(&rig).await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        .await
        .unwrap();
    let mut talk = upstream.accept().await;
    talk.head().await;
    drop(stream);
    assert_eq!(talk.0.read(&mut [0]).await.unwrap(), 0, "the upstream is let go");
}

pub(crate) fn with_settings(settings: Settings, app: &App) -> Rig {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("routes.json");
    let snapshot = Snapshot {
        settings,
        services: vec![service("web", "h", &[app])],
        ..Snapshot::default()
    };
    fs_err::write(&file, serde_json::to_vec(&snapshot).unwrap()).unwrap();
    Rig::with(home, Store::File(file))
}

#[tokio::test]
async fn heads_that_are_too_large_or_too_slow_are_refused() {
    let app = App::start("one").await;
    let settings = Settings {
        header_timeout: Duration::from_secs(1),
        max_header_bytes: 8 << 10,
        ..Settings::default()
    };
    let rig = with_settings(settings, &app);
    let large = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}\r\n\r\n", "x".repeat(8 << 10));
    assert_eq!(rig.send(&large).await.status, 431);
    let many = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(101));
    assert_eq!(rig.send(&many).await.status, 431);
    let begun = Instant::now();
    assert_eq!(rig.send("GET / HTTP/1.1\r\nHost: h\r\n").await.status, 408);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // One that says nothing is closed without a word.
    assert_eq!(rest(&mut client(&rig).await).await, "");
}
