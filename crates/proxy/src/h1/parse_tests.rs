use super::*;

fn status(head: &str) -> u16 {
    let bytes = head.as_bytes();
    let Some(end) = head_end(bytes, 0) else { return 0 };
    request(&bytes[..end], &mut fields(), 100).map_or_else(|status| status.as_u16(), |_| 200)
}

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    for (head, expect) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        ("GET / HTTP/1.1\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: h\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA\0: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: \0\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\n\r\n", 200),
        ("GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h, i\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: u@h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h:80a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", 200),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
        ("GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505),
        ("GET / HTTP/1.\r\nHost: h\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET /#f HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("G\u{e9}T / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET h HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", 200),
        ("CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n", 501),
        ("GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET http:///x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: h\r\nExpect: 200-ok\r\n\r\n", 417),
        ("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", 200),
    ] {
        assert_eq!(status(head), expect, "{head:?}");
    }
}

#[test]
fn body_lengths_are_never_ambiguous() {
    let post = |fields: &str| format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
    for (fields, expect) in [
        ("Content-Length: 5\r\n", 200),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: \r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length: 9999999999999999999\r\n", 400),
        ("Transfer-Encoding: chunked\r\n", 200),
        ("Transfer-Encoding: Chunked\r\n", 200),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            400,
        ),
        ("Transfer-Encoding: chunked, chunked\r\n", 400),
        ("Transfer-Encoding: xchunked\r\n", 400),
        ("Transfer-Encoding: chunked;q=1\r\n", 400),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("Transfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding: \r\n", 400),
        ("Transfer-Encoding: \x0bchunked\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding : chunked\r\n", 400),
        ("Transfer_Encoding: chunked\r\n", 200),
    ] {
        assert_eq!(status(&post(fields)), expect, "{fields:?}");
    }
    assert_eq!(
        status("POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"),
        400
    );
}

#[test]
fn too_many_fields_are_too_many() {
    let head = format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(100));
    assert_eq!(status(&head), 431);
}

#[test]
fn an_absolute_target_overrules_host() {
    let head = b"GET HTTP://Real.test:81/a?b HTTP/1.1\r\nHost: other\r\n\r\n";
    let mut room = fields();
    let read = request(head, &mut room, 100).unwrap();
    assert_eq!((read.host, read.target), ("Real.test:81", "/a?b"));
}

#[test]
fn connection_lists_only_what_it_may() {
    let head = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: X-A , cookie\r\nConnection: close, host\r\n\r\n";
    let mut room = fields();
    let read = request(head, &mut room, 100).unwrap();
    assert!(read.options.close && read.options.lists("x-a"));
    assert!(!read.options.lists("Host") && !read.options.lists("Cookie"));
    assert!(!read.keep_alive());
}

#[test]
fn a_head_ends_at_the_first_empty_line() {
    assert_eq!(head_end(b"A\r\nB\r\n\r\nrest", 0), Some(8));
    assert_eq!(head_end(b"A\r\nB\r\n\r", 0), None);
    assert_eq!(head_end(b"A\n\nrest", 0), Some(3));
    // Found again when the search goes on where the last one stopped.
    assert_eq!(head_end(b"A\r\nB\r\n\r\nrest", 7), Some(8));
    assert_eq!(skip_empty_lines(b"\r\n\r\nGET"), 4);
}

#[test]
fn responses_with_two_lengths_are_no_responses() {
    let read = |fields: &str| {
        let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
        response(head.as_bytes(), &mut super::fields()).map(|head| (head.framing, head.reusable))
    };
    assert_eq!(read("Content-Length: 5\r\n"), Some((Framing::Length(5), true)));
    assert_eq!(read("Content-Length: 5\r\nContent-Length: 6\r\n"), None);
    assert_eq!(
        read("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
        Some((Framing::Chunked, false))
    );
    assert_eq!(read(""), Some((Framing::UntilClose, true)));
    assert_eq!(
        read("Connection: close\r\nContent-Length: 0\r\n"),
        Some((Framing::Length(0), false))
    );
}

/// Pieces that heads are made of, good and bad; random sequences of them find what single examples do not.
fn piece() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    prop_oneof![
        prop::sample::select(vec![
            "GET ",
            "POST ",
            "/",
            "*",
            " HTTP/1.1",
            " HTTP/1.0",
            "\r\n",
            "\n",
            "\r",
            "\r\n\r\n",
            "Host: h",
            "Host:",
            "Content-Length: 5",
            "Content-Length: ",
            "Transfer-Encoding: chunked",
            "Transfer-Encoding:",
            "chunked",
            "Connection: ",
            "close, x",
            "http://a/",
            ": ",
            " ",
            "\t",
            "\0",
            "\u{e9}",
            "0",
            ",",
            ";",
        ])
        .prop_map(str::to_owned),
        "[ -~]{0,12}",
    ]
}

proptest::proptest! {
    #[test]
    fn whatever_comes_is_refused_or_has_one_meaning(pieces in proptest::collection::vec(piece(), 0..24)) {
        let text = pieces.concat();
        let bytes = text.as_bytes();
        if let Some(end) = head_end(bytes, 0) {
            let mut room = fields();
            if let Ok(read) = request(&bytes[..end], &mut room, 100) {
                let count = |name: &str| read.fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name)).count();
                proptest::prop_assert!(count("host") <= 1 && count("content-length") + count("transfer-encoding") <= 1);
                proptest::prop_assert!(only_crlf(&bytes[..end]));
                proptest::prop_assert!(read.target.starts_with('/') || read.target == "*");
                proptest::prop_assert!(read.minor == 0 || !read.host.is_empty() || count("host") == 1);
            }
            let _no_panic = response(&bytes[..end], &mut fields());
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..512)) {
        if let Some(end) = head_end(&bytes, 0) {
            let _no_panic = request(&bytes[..end], &mut fields(), 100).is_ok();
            let _no_panic = response(&bytes[..end], &mut fields()).is_some();
        }
    }
}
