//! See [`crate::fuzzing`].

use std::net::{IpAddr, Ipv4Addr};

use http::HeaderValue;

use super::chunks::{self, Decoder, Piece};
use super::parse::{self, Framing};
use super::rewrite;
use crate::connection::Peer;
use crate::options::Scheme;
use crate::request_id::Ids;

pub(crate) fn request(bytes: &[u8]) {
    let bytes = &bytes[parse::skip_empty_lines(bytes)..];
    let Some(end) = parse::head_end(bytes, 0) else {
        return;
    };
    let mut room = parse::fields();
    let Ok(head) = parse::request(&bytes[..end], &mut room, 100) else {
        return;
    };
    let peer = Peer {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        text: HeaderValue::from_static("127.0.0.1"),
        port: 4711,
        scheme: Scheme::Http,
        local_port: 80,
        _slot: None,
    };
    let view = rewrite::View {
        peer: &peer,
        trusted: bytes.len().is_multiple_of(2),
        visitor: None,
        forwarded: false,
        strip: 0,
        upgrade: head.options.upgrade && head.upgrade.is_some(),
        held: false,
        ids: &Ids::new(),
        now: 0,
    };
    let mut out = Vec::new();
    let id = rewrite::request(&mut out, &head, &view);
    assert!(!out[id].is_empty());
    // Exactly one head, which a strict reader understands as we did.
    assert_eq!(parse::head_end(&out, 0), Some(out.len()));
    let mut room = parse::fields();
    let again = parse::request(&out, &mut room, parse::MOST_FIELDS).expect("what we write is well formed");
    assert_eq!((again.method, again.target), (head.method, head.target));
    assert_eq!((again.host, again.framing), (head.host, head.framing));
}

pub(crate) fn chunks(bytes: &[u8]) {
    let whole = decode(bytes, bytes.len());
    for step in [1, 7] {
        assert_eq!(decode(bytes, step), whole, "in steps of {step}");
    }
    if let Some((data, _)) = whole {
        let mut again = Vec::new();
        chunks::write(&mut again, &data);
        chunks::write_end(&mut again, b"");
        let length = again.len();
        assert_eq!(decode(&again, length), Some((data, length)));
    }
}

/// The data and the length of a complete body.
fn decode(bytes: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let mut decoder = Decoder::default();
    let (mut data, mut start, mut end) = (Vec::new(), 0, step.min(bytes.len()));
    loop {
        match decoder.next(&bytes[start..end]).ok()? {
            Piece::Data(count) => {
                data.extend_from_slice(&bytes[start..start + count]);
                start += count;
            }
            Piece::Framing(count) => start += count,
            Piece::Trailer(count) => {
                let mut kept = Vec::new();
                super::trailer::keep(&mut kept, &bytes[start..start + count]);
                assert!(kept.is_empty() || kept.ends_with(b"\r\n"));
                start += count;
            }
            Piece::End => return Some((data, start)),
            Piece::More if end == bytes.len() => return None,
            Piece::More => end = (end + step).min(bytes.len()),
        }
    }
}

pub(crate) fn response(bytes: &[u8]) {
    let Some(end) = parse::head_end(bytes, 0) else {
        return;
    };
    let mut room = parse::fields();
    let Some(head) = parse::response(&bytes[..end], &mut room) else {
        return;
    };
    let mut out = Vec::new();
    rewrite::interim(&mut out, &head);
    let mut room = parse::fields();
    let again = parse::response(&out, &mut room).expect("what we write is well formed");
    assert_eq!(again.status, head.status);
    assert!(
        matches!(again.framing, Framing::UntilClose),
        "an interim response has no body"
    );
}
