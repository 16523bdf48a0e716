//! Clients that mean ill: what they cost stays bounded, and others are served all the while.

use std::time::Duration;

/// What an attacker sends on a stream.
type FrameOf = Box<dyn Fn(u32) -> Vec<u8> + Send>;

use appliance_proxy::snapshot::Settings;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, PING, POST, SETTINGS, frame,
};
use crate::lifecycle::{Process, send};
use crate::rig::{Answer, App, name, service};
use crate::wire::with_settings;

/// What a client may make the process hold for a while; a debug build's allocator is generous.
const MOST_MEMORY: u64 = 24 << 20;

async fn is_served(process: &Process) {
    let mut good = send(
        process.http,
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert_eq!(Answer::read(&mut good).await.status, 200);
}

fn descriptors(process: &Process) -> usize {
    fs_err::read_dir(format!("/proc/{}/fd", process.pid))
        .unwrap()
        .count()
}

/// Waits until only our control connection is left.
async fn settled(process: &Process) -> u64 {
    loop {
        let status = process.client.status().await.unwrap();
        if status.connections == 0 {
            return status.rss;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_http2_frames_are_contained() {
    let app = App::start("one").await;
    let process = Process::start().await;
    process
        .client
        .put_service(&service("web", "h", &[&app]))
        .await
        .unwrap();
    is_served(&process).await;
    let before = settled(&process).await;
    let opening = |stream: u32| frame(HEADERS, END_HEADERS, stream, POST);
    // A field of 4,000 bytes that goes into the dynamic table, then one byte for each further copy of it.
    let mut bomb = [GET, b"\x40\x01x\x7f\xa1\x1e"].concat();
    bomb.extend_from_slice(&[b'x'; 4000]);
    bomb.extend_from_slice(&[0xbe; 12_000]);
    let attacks: [(&str, Vec<u8>, FrameOf); 6] = [
        (
            "rapid reset",
            Vec::new(),
            Box::new(|turn| {
                let stream = 2 * turn + 1;
                [
                    frame(HEADERS, END_HEADERS | END_STREAM, stream, GET),
                    frame(frames::RST_STREAM, 0, stream, &8_u32.to_be_bytes()),
                ]
                .concat()
            }),
        ),
        (
            "CONTINUATION",
            frame(HEADERS, 0, 1, GET),
            Box::new(|_| frame(CONTINUATION, 0, 1, &frames::field("a", &"b".repeat(100)))),
        ),
        (
            "SETTINGS",
            Vec::new(),
            Box::new(|_| frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255])),
        ),
        (
            "PING",
            Vec::new(),
            Box::new(|turn| frame(PING, 0, 0, &u64::from(turn).to_be_bytes())),
        ),
        ("empty DATA", opening(1), Box::new(|_| frame(DATA, 0, 1, &[]))),
        (
            "a header bomb",
            Vec::new(),
            Box::new(move |turn| frame(HEADERS, END_HEADERS | END_STREAM, 2 * turn + 1, &bomb)),
        ),
    ];
    for (what, start, more) in attacks {
        let attacker = frames::open(process.http).await;
        let (mut from, mut to) = attacker.into_split();
        // What comes back is read, except for the floods that live from its not being read.
        let reads = !matches!(what, "SETTINGS" | "PING");
        let reader = reads.then(|| tokio::spawn(async move { frames::end(&mut from).await }));
        let flood = async {
            to.write_all(&start).await?;
            for turn in 0..20_000 {
                to.write_all(&more(turn)).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        // It ends by itself, or is stuck because the proxy reads no further.
        let outcome = tokio::time::timeout(Duration::from_secs(3), flood).await;
        is_served(&process).await;
        let rss = process.client.status().await.unwrap().rss;
        assert!(rss < before + MOST_MEMORY, "{what}: {before} bytes grew to {rss}");
        if matches!(what, "rapid reset" | "CONTINUATION" | "empty DATA") {
            let ended = reader.unwrap().await.unwrap();
            assert_eq!(
                ended,
                frames::End::Connection(11),
                "{what}: the connection ends with ENHANCE_YOUR_CALM, not {outcome:?}"
            );
        }
        drop(to);
    }
    settled(&process).await;
    let counts = process.client.stats(&name("web")).await.unwrap().total;
    assert_eq!(counts.in_flight, 0, "nothing of all this is left at the upstream");
}

#[tokio::test]
async fn ten_thousand_malformed_requests_leave_nothing_behind() {
    let app = App::start("one").await;
    let process = Process::start().await;
    process
        .client
        .put_service(&service("web", "h", &[&app]))
        .await
        .unwrap();
    let bad: [&[u8]; 8] = [
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        b"GET / HTTP/1.1\n\n",
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ];
    let round = async |count: usize| {
        for number in 0..count {
            let mut stream = send(process.http, bad[number % bad.len()]).await;
            let answer = Answer::read(&mut stream).await;
            assert!(matches!(answer.status, 400 | 505), "{}", answer.status);
        }
        (settled(&process).await, descriptors(&process))
    };
    let (memory, open) = round(1_000).await;
    let (after, still_open) = round(9_000).await;
    assert!(after < memory + (4 << 20), "{memory} bytes grew to {after}");
    // The pool's connections to the upstream come and go.
    assert!(still_open <= open + 4, "{open} descriptors grew to {still_open}");
    is_served(&process).await;
}

#[tokio::test]
async fn two_thousand_slow_clients_do_not_keep_a_good_one_from_its_answers() {
    let app = App::start("one").await;
    // Longer than the test takes on any machine, so that all of them stay.
    let settings = Settings {
        header_timeout: Duration::from_secs(600),
        ..Settings::default()
    };
    let rig = with_settings(settings, &app);
    let mut slow = Vec::new();
    for _ in 0..2000 {
        let mut stream = TcpStream::connect(rig.http).await.unwrap();
        stream
            .write_all(b"GET / HTTP/1.1\r\nHost: h\r\nX: ")
            .await
            .unwrap();
        slow.push(stream);
    }
    for round in 0..20 {
        // Each says a little more, as a slow client does.
        for stream in &mut slow[round * 100..][..100] {
            stream.write_all(b"x").await.unwrap();
        }
        for _ in 0..10 {
            assert_eq!(rig.get("h", "/").await.status, 200);
        }
    }
    while rig.client.status().await.unwrap().connections > 2000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(rig.client.status().await.unwrap().connections, 2000);
    let counts = rig.client.stats(&name("web")).await.unwrap().total;
    assert_eq!(counts.requests, 200, "no half request reached the upstream");
}

#[tokio::test]
async fn an_upstream_killed_in_the_middle_of_a_response_is_told_from_its_end() {
    // The upstream is a process of its own: another proxy, before an app that streams.
    let app = App::start("one").await;
    let upstream = Process::start().await;
    upstream
        .client
        .put_service(&service("web", "h", &[&app]))
        .await
        .unwrap();
    let front = Process::start().await;
    let mut through = service("web", "h", &[]);
    through.upstreams = vec![upstream.http.into()];
    through.health_check.interval = Duration::from_millis(50);
    front.client.put_service(&through).await.unwrap();

    let mut stream = send(front.http, b"GET /stream HTTP/1.1\r\nHost: h\r\n\r\n").await;
    let mut text = String::new();
    while !text.ends_with("first\n") {
        assert!(stream.read_line(&mut text).await.unwrap() > 0, "{text}");
    }
    let mut second = crate::h2c::connect(front.http).await;
    let (answer, _) = second
        .send_request(crate::h2c::request("GET", "/stream").body(()).unwrap(), true)
        .unwrap();
    let mut body = answer.await.unwrap().into_body();
    assert_eq!(crate::h2c::some(&mut body, 6).await, "first\n");
    let mut waiting = send(front.http, b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await;
    while app.state.requests.load(std::sync::atomic::Ordering::Relaxed) < 3 {
        tokio::task::yield_now().await;
    }
    upstream.signal(nix::sys::signal::Signal::SIGKILL);

    // Begun: broken off, never ended as if complete. Not begun: 502.
    stream.read_to_string(&mut text).await.unwrap();
    assert!(
        text.starts_with("HTTP/1.1 200 ") && !text.contains("0\r\n\r\n"),
        "{text}"
    );
    assert!(crate::h2c::all(&mut body).await.is_err());
    assert_eq!(Answer::read(&mut waiting).await.status, 502);
    // Then it is out, until it is back.
    while front.client.list().await.unwrap()[0].upstreams[0].healthy {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut next = send(front.http, b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(Answer::read(&mut next).await.status, 503);
}

#[tokio::test]
async fn a_response_that_nobody_takes_is_given_up() {
    let app = App::start("one").await;
    let settings = Settings {
        idle_timeout: Duration::from_secs(1),
        ..Settings::default()
    };
    let rig = with_settings(settings, &app);
    let mut stream = frames::open(rig.http).await;
    // No window at all for what the proxy has to give.
    let setting = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    stream.write_all(&setting).await.unwrap();
    let ask = frame(HEADERS, END_HEADERS | END_STREAM, 1, GET);
    stream.write_all(&ask).await.unwrap();
    assert_eq!(frames::end(&mut stream).await, frames::End::Answer);
    // CANCEL, for this stream alone.
    assert_eq!(frames::end(&mut stream).await, frames::End::Stream(8));
    assert_eq!(rig.get("h", "/").await.status, 200);
}
