//! RFC 9110, 9112 and 9113 rule by rule, over raw sockets.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GET, HEADERS, POST, SETTINGS, WINDOW_UPDATE,
    field, frame,
};
use crate::rig::{App, Rig, service};

/// Everything the proxy says to `bytes`, until it closes.
async fn answers(rig: &Rig, bytes: &[u8]) -> String {
    let mut stream = tokio::net::TcpStream::connect(rig.http).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn http1_rules() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let last = "GET /last HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    // The rule, what is sent, how many answers come, and what is and is not in them.
    for (rule, sent, count, has, hasnt) in [
        (
            "9112 §9.3: kept alive by default",
            format!("GET /a HTTP/1.1\r\nHost: h\r\n\r\n{last}"),
            2,
            "one GET /a",
            "keep-alive",
        ),
        (
            "9112 §9.3: HTTP/1.0 closes",
            format!("GET /a HTTP/1.0\r\nHost: h\r\n\r\n{last}"),
            1,
            "Connection: close",
            "/last",
        ),
        (
            "9112 §9.3: HTTP/1.0 may ask to stay",
            format!("GET /a HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n{last}"),
            2,
            "Connection: keep-alive",
            "\0",
        ),
        (
            "9112 §9.6: close is the last word",
            format!("GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n{last}"),
            1,
            "Connection: close",
            "/last",
        ),
        (
            "9112 §2.3: our version, not the client's",
            "GET /a HTTP/1.0\r\nHost: h\r\n\r\n".to_owned(),
            1,
            "HTTP/1.1 200",
            "HTTP/1.0",
        ),
        (
            "9112 §2.2: empty lines before a request",
            format!("\r\n\r\n{last}"),
            1,
            "200 OK",
            "400",
        ),
        (
            "9112 §3.2: Host is needed",
            "GET / HTTP/1.1\r\n\r\n".to_owned(),
            1,
            " 400 ",
            "one GET",
        ),
        (
            "9112 §3.2.2: the absolute form's host counts",
            "GET http://h/a HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n".to_owned(),
            1,
            "host: h\n",
            "other",
        ),
        (
            "9112 §3.2.4: OPTIONS *",
            "OPTIONS * HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_owned(),
            1,
            "one OPTIONS *",
            "400",
        ),
        (
            "9110 §9.3.6: CONNECT is not for us",
            "CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n".to_owned(),
            1,
            " 501 ",
            "one",
        ),
        (
            "9110 §9.3.2: HEAD has no body",
            "HEAD /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_owned(),
            1,
            "content-length",
            "one HEAD",
        ),
        (
            "9110 §9.1: unknown methods pass",
            "BREW /pot HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_owned(),
            1,
            "one BREW /pot",
            "405",
        ),
        (
            "9110 §9.1: methods are case-sensitive",
            "get /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".to_owned(),
            1,
            "one get /a",
            "one GET",
        ),
        (
            "9110 §5.1: names are not",
            "GET /a HTTP/1.1\r\nhOsT: h\r\ncOnNeCtIoN: ClOsE\r\n\r\n".to_owned(),
            1,
            "one GET /a",
            "400",
        ),
        (
            "9110 §7.6.1: fields that Connection lists stay",
            "GET /a HTTP/1.1\r\nHost: h\r\nConnection: close, x-a\r\nX-A: 1\r\nX-B: 2\r\n\r\n".to_owned(),
            1,
            "x-b: 2",
            "x-a",
        ),
        (
            "9110 §10.1.1: an unknown expectation",
            "GET /a HTTP/1.1\r\nHost: h\r\nExpect: tea\r\n\r\n".to_owned(),
            1,
            " 417 ",
            "one",
        ),
        (
            "9110 §6.6.1: Date",
            "GET /none HTTP/1.1\r\nHost: nobody\r\nConnection: close\r\n\r\n".to_owned(),
            1,
            "Date: ",
            "one",
        ),
        (
            "9112 §6.3: chunked and a length",
            format!(
                "POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{last}"
            ),
            1,
            " 400 ",
            "/last",
        ),
        (
            "9112 §6.1: chunked in HTTP/1.0",
            format!("POST /a HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{last}"),
            1,
            " 400 ",
            "/last",
        ),
        (
            "9112 §6.3: two lengths",
            format!("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n{last}"),
            1,
            " 400 ",
            "/last",
        ),
        (
            "9112 §7.1: chunk sizes are hexadecimal",
            "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n"
                .to_owned(),
            1,
            " 400 ",
            "body: 1",
        ),
        (
            "9112 §7.1.1: chunk extensions are ignored",
            format!(
                "POST /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n1;a=\"b\"\r\na\r\n0\r\n\r\n{last}"
            ),
            2,
            "body: 1",
            " 400 ",
        ),
        (
            "9112 §5.1: no space before the colon",
            "GET /a HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n".to_owned(),
            1,
            " 400 ",
            "one",
        ),
        (
            "9112 §5.2: no folded lines",
            "GET /a HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n".to_owned(),
            1,
            " 400 ",
            "one",
        ),
        (
            "9112 §2.2: a bare CR",
            "GET /a HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n".to_owned(),
            1,
            " 400 ",
            "one",
        ),
        (
            "9112 §2.2: a bare LF",
            "GET /a HTTP/1.1\nHost: h\n\n".to_owned(),
            1,
            " 400 ",
            "one",
        ),
        (
            "9110 §15.6.6: a version we do not speak",
            "GET /a HTTP/3.0\r\nHost: h\r\n\r\n".to_owned(),
            1,
            " 505 ",
            "one",
        ),
    ] {
        let text = answers(&rig, sent.as_bytes()).await;
        assert_eq!(text.matches("HTTP/1.1 ").count(), count, "{rule}: {text}");
        assert!(text.contains(has), "{rule}: {has:?} is missing in {text}");
        assert!(!text.contains(hasnt), "{rule}: {hasnt:?} is in {text}");
    }
}

#[tokio::test]
async fn http2_rules() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    const PROTOCOL: u32 = 1;
    let mut wrong = Vec::new();
    let headers = |block: &[&[u8]]| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block.concat());
    let body = |length: &str, data: &[u8]| {
        let block = [POST, &field("content-length", length)].concat();
        [
            frame(HEADERS, END_HEADERS, 1, &block),
            frame(DATA, END_STREAM, 1, data),
        ]
        .concat()
    };
    for (rule, sent, expect) in [
        ("9113 §8.1: a request", headers(&[GET]), End::Answer),
        (
            "9113 §8.2.1: names in upper case",
            headers(&[GET, &field("X-A", "1")]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.2.1: a line end in a value",
            headers(&[GET, &field("x-a", "1\r\nhost: evil")]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.2.2: connection",
            headers(&[GET, &field("connection", "close")]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.2.2: transfer-encoding",
            headers(&[GET, &field("transfer-encoding", "chunked")]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.2.2: te with anything but trailers",
            headers(&[GET, &field("te", "gzip")]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.3: a pseudo field after a field",
            headers(&[b"\x82\x84\x86", &field("a", "b"), b"\x41\x01h"]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.3: an unknown pseudo field",
            headers(&[GET, &field(":x", "1")]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.3.1: two paths",
            headers(&[GET, b"\x84"]),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §5.1: DATA on an idle stream",
            frame(DATA, 0, 1, b"x"),
            End::Connection(PROTOCOL),
        ),
        (
            "9113 §5.1.1: an even stream",
            frame(HEADERS, END_HEADERS | END_STREAM, 2, GET),
            End::Connection(PROTOCOL),
        ),
        (
            "9113 §6.2: HEADERS on stream 0",
            frame(HEADERS, END_HEADERS, 0, GET),
            End::Connection(PROTOCOL),
        ),
        (
            "9113 §6.10: CONTINUATION without HEADERS",
            frame(CONTINUATION, END_HEADERS, 1, GET),
            End::Connection(PROTOCOL),
        ),
        (
            "9113 §6.5: SETTINGS of an odd size",
            frame(SETTINGS, 0, 0, &[0; 5]),
            // The rule asks for FRAME_SIZE_ERROR; the `h2` crate ends the connection with another code.
            End::Connection(PROTOCOL),
        ),
        (
            "9113 §6.9: a window of nothing",
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            End::Connection(PROTOCOL),
        ),
        (
            "9113 §4.2: a frame too large",
            frame(DATA, 0, 1, &[0; 20_000]),
            End::Connection(6),
        ),
        (
            "9113 §5.5: unknown frames are ignored",
            [frame(0x42, 0, 0, b"x"), headers(&[GET])].concat(),
            End::Answer,
        ),
        // Last, because they may reach the upstream later than we look: a body's length is known too late.
        (
            "9113 §8.1.1: a body shorter than its length",
            body("5", b"four"),
            End::Stream(PROTOCOL),
        ),
        (
            "9113 §8.1.1: a body longer than its length",
            body("3", b"four"),
            End::Stream(PROTOCOL),
        ),
    ] {
        let before = app.state.requests.load(std::sync::atomic::Ordering::Relaxed);
        let mut stream = frames::open(rig.http).await;
        stream.write_all(&sent).await.unwrap();
        let found = frames::end(&mut stream).await;
        // A stream's error may end the connection (§5.4.2).
        let fits = match expect {
            End::Stream(code) => {
                matches!(found, End::Stream(other) | End::Connection(other) if other == code)
            }
            _ => found == expect,
        };
        if !fits {
            wrong.push(format!("{rule}: {found:?}, expected {expect:?}"));
        }
        let reached = app.state.requests.load(std::sync::atomic::Ordering::Relaxed) - before;
        if found == End::Answer {
            assert_eq!(reached, 1, "{rule}");
        } else if !rule.contains("§8.1.1") {
            assert_eq!(reached, 0, "{rule}: it reached the upstream");
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}
