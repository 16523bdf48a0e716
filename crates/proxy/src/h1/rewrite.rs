//! Heads, written anew for the other side, without an allocation for each field.

use std::net::IpAddr;
use std::ops::Range;

use http::StatusCode;

use super::parse::{Framing, Known, RequestHead, ResponseHead, known};
use crate::compress::Coding;
use crate::connection::Peer;
use crate::request_id::{self, Ids};
use crate::table::{Route, without_port};

/// What the upstream is told beside the client's own words.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) peer: &'a Peer,
    /// Whether what the client says about itself is believed.
    pub(super) trusted: bool,
    /// Who a trusted proxy says the visitor is.
    pub(super) visitor: Option<IpAddr>,
    /// Whether a `Forwarded` field is sent too.
    pub(super) forwarded: bool,
    /// Bytes to take off the front of the path.
    pub(super) strip: usize,
    /// Whether the request asks to leave HTTP.
    pub(super) upgrade: bool,
    /// Whether the body is held back until it is complete: then we are who the client asks.
    pub(super) held: bool,
    pub(super) ids: &'a Ids,
    /// Milliseconds since 1970.
    pub(super) now: u64,
}

/// Appends a number in decimal digits.
pub(super) fn number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends a field.
pub(super) fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of the request for the upstream; tells where in `out` its id stands.
pub(super) fn request(out: &mut Vec<u8>, head: &RequestHead<'_, '_>, view: &View<'_>) -> Range<usize> {
    out.extend_from_slice(head.method.as_bytes());
    out.push(b' ');
    let (prefix, kept) = head.target.as_bytes().split_at(view.strip);
    if !(kept.starts_with(b"/") || kept == b"*") {
        out.push(b'/');
    }
    out.extend_from_slice(kept);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    field(out, b"Host", head.host.as_bytes());
    let (mut proto, mut host, mut port, mut start) = (false, false, false, false);
    for sent in head.fields {
        let pass = match known(sent.name) {
            Known::Host
            | Known::Connection
            | Known::ContentLength
            | Known::Hop
            | Known::RequestId
            | Known::TransferEncoding
            | Known::Upgrade
            | Known::XFor => false,
            Known::Te => false,
            Known::Trailer => head.framing == Framing::Chunked && !view.held,
            Known::Expect if view.held => false,
            Known::Forwarded => view.trusted && !view.forwarded,
            Known::XPrefix => view.trusted,
            Known::XProto => {
                proto |= view.trusted;
                view.trusted
            }
            Known::XHost => {
                host |= view.trusted;
                view.trusted
            }
            Known::XPort => {
                port |= view.trusted;
                view.trusted
            }
            Known::RequestStart => {
                start |= view.trusted;
                view.trusted
            }
            Known::Expect | Known::Date => !head.options.lists(sent.name),
            Known::Other => {
                !head.options.lists(sent.name) && !crate::headers::is_disguise(sent.name.as_bytes())
            }
        };
        if pass {
            field(out, sent.name.as_bytes(), sent.value);
        }
    }
    match head.framing {
        Framing::Length(0) if !head.has_length => {}
        Framing::Length(length) => {
            out.extend_from_slice(b"Content-Length: ");
            number(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked | Framing::UntilClose => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    if let (true, Some(protocol)) = (view.upgrade, head.upgrade) {
        out.extend_from_slice(b"Connection: upgrade\r\n");
        field(out, b"Upgrade", protocol);
    } else if head.trailers {
        out.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
    }
    out.extend_from_slice(b"X-Forwarded-For: ");
    if view.trusted && view.visitor.is_none() {
        for sent in head.fields.iter().filter(|sent| known(sent.name) == Known::XFor) {
            out.extend_from_slice(sent.value);
            out.extend_from_slice(b", ");
        }
    }
    match view.visitor {
        // What stands to the left of the visitor may be made up, and the proxies to the right would be taken for it.
        Some(visitor) => out.extend_from_slice(visitor.to_string().as_bytes()),
        None => out.extend_from_slice(view.peer.text.as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
    if view.forwarded {
        let visitor = view.visitor.unwrap_or(view.peer.address);
        let value = crate::headers::forwarded(visitor, head.host, view.peer.scheme);
        field(out, b"Forwarded", value.as_bytes());
    }
    if !proto {
        field(out, b"X-Forwarded-Proto", view.peer.scheme.as_str().as_bytes());
    }
    if !host && !head.host.is_empty() {
        field(out, b"X-Forwarded-Host", head.host.as_bytes());
    }
    if !port {
        out.extend_from_slice(b"X-Forwarded-Port: ");
        forwarded_port(out, head.host, view.peer);
        out.extend_from_slice(b"\r\n");
    }
    if view.strip > 0 {
        field(out, b"X-Forwarded-Prefix", prefix);
    }
    if !start {
        out.extend_from_slice(b"X-Request-Start: t=");
        number(out, view.now);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"X-Request-ID: ");
    let begin = out.len();
    match head.request_id.filter(|id| request_id::acceptable(id)) {
        Some(id) => out.extend_from_slice(id),
        None => out.extend_from_slice(&view.ids.next()),
    }
    let end = out.len();
    out.extend_from_slice(b"\r\n\r\n");
    begin..end
}

/// What announces a body in chunks; no field of the client's is passed on under this name.
const CHUNKED: &[u8] = b"\r\nTransfer-Encoding: chunked\r\n";

/// Announces `length` bytes in place of chunks in a head that [`request`] wrote; tells by how much its end moved, to
/// and from.
pub(super) fn announce(head: &mut Vec<u8>, length: u64) -> (usize, usize) {
    let Some(at) = memchr::memmem::find(head, CHUNKED) else {
        return (0, 0);
    };
    let mut field = b"\r\nContent-Length: ".to_vec();
    number(&mut field, length);
    field.extend_from_slice(b"\r\n");
    let moved = (field.len(), CHUNKED.len());
    head.splice(at..at + CHUNKED.len(), field);
    moved
}

/// The port that the visitor typed, else the scheme's own.
fn forwarded_port(out: &mut Vec<u8>, host: &str, peer: &Peer) {
    match host[without_port(host).len()..].strip_prefix(':') {
        Some(port) if !port.is_empty() => out.extend_from_slice(port.as_bytes()),
        _ if host.is_empty() => number(out, u64::from(peer.local_port)),
        _ => number(out, u64::from(peer.scheme.default_port())),
    }
}

/// How a response's body is given to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    /// With the length that the upstream announced, if it did: the body follows as it is, or there is none.
    AsAnnounced,
    /// In chunks.
    Chunked,
    /// Until the connection ends.
    UntilClose,
}

/// What the client is told beside the upstream's words.
#[derive(Debug)]
pub(super) struct Told<'a> {
    pub(super) route: &'a Route,
    pub(super) id: &'a [u8],
    pub(super) date: &'a [u8; 29],
    pub(super) given: Given,
    /// The coding that was put on the body.
    pub(super) coding: Option<Coding>,
    /// Whether it depends on `Accept-Encoding`.
    pub(super) varies: bool,
    /// Whether the connection is kept.
    pub(super) keep: bool,
    /// Whether the client gets trailer fields.
    pub(super) trailers: bool,
    /// The client's minor version.
    pub(super) minor: u8,
    /// A cookie of the proxy's own.
    pub(super) cookie: Option<String>,
}

/// Appends the first line of a response.
pub(super) fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    number(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
}

/// Appends the head of a final response for the client.
pub(super) fn response(out: &mut Vec<u8>, head: &ResponseHead<'_, '_>, told: &Told<'_>) {
    status_line(out, head.status, head.reason.as_bytes());
    let own = &told.route.response_headers;
    for sent in head.fields {
        let pass = match known(sent.name) {
            Known::Connection
            | Known::Hop
            | Known::Te
            | Known::TransferEncoding
            | Known::Upgrade
            | Known::RequestId => false,
            Known::Trailer => told.given == Given::Chunked && told.trailers,
            Known::ContentLength => told.given == Given::AsAnnounced && head.framing != Framing::Chunked,
            _ => {
                !head.options.lists(sent.name)
                    && !own
                        .iter()
                        .any(|(name, _)| sent.name.eq_ignore_ascii_case(name.as_str()))
            }
        };
        let packed = told.coding.is_some() && pass;
        if packed && sent.name.eq_ignore_ascii_case("etag") && !sent.value.starts_with(b"W/") {
            // Another representation with the same meaning (RFC 9110 §8.8.3.3).
            out.extend_from_slice(b"ETag: W/");
            out.extend_from_slice(sent.value);
            out.extend_from_slice(b"\r\n");
        } else if pass && !(packed && replaced_by_coding(sent.name)) {
            field(out, sent.name.as_bytes(), sent.value);
        }
    }
    if let Some(coding) = told.coding {
        field(out, b"Content-Encoding", coding.as_str().as_bytes());
    }
    if told.varies {
        out.extend_from_slice(b"Vary: Accept-Encoding\r\n");
    }
    if !head.has_date {
        field(out, b"Date", told.date);
    }
    for (name, value) in own {
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    if let Some(cookie) = &told.cookie {
        field(out, b"Set-Cookie", cookie.as_bytes());
    }
    field(out, b"X-Request-ID", told.id);
    if told.given == Given::Chunked {
        out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
    }
    connection(out, told.keep, told.minor);
    out.extend_from_slice(b"\r\n");
}

/// Fields that are about the body as it was before it was compressed.
fn replaced_by_coding(name: &str) -> bool {
    name.eq_ignore_ascii_case("accept-ranges") || name.eq_ignore_ascii_case("content-encoding")
}

fn connection(out: &mut Vec<u8>, keep: bool, minor: u8) {
    if !keep {
        out.extend_from_slice(b"Connection: close\r\n");
    } else if minor == 0 {
        out.extend_from_slice(b"Connection: keep-alive\r\n");
    }
}

/// Appends an interim response or a `101`, which have no body.
pub(super) fn interim(out: &mut Vec<u8>, head: &ResponseHead<'_, '_>) {
    status_line(out, head.status, head.reason.as_bytes());
    for sent in head.fields {
        let pass = match known(sent.name) {
            Known::Connection
            | Known::Hop
            | Known::Te
            | Known::Trailer
            | Known::TransferEncoding
            | Known::ContentLength
            | Known::Upgrade => false,
            _ => !head.options.lists(sent.name),
        };
        if pass {
            field(out, sent.name.as_bytes(), sent.value);
        }
    }
    if let (101, Some(protocol)) = (head.status, head.upgrade) {
        out.extend_from_slice(b"Connection: upgrade\r\n");
        field(out, b"Upgrade", protocol);
    }
    out.extend_from_slice(b"\r\n");
}

/// A response of the proxy itself.
#[derive(Debug)]
pub(super) struct Own<'a> {
    pub(super) response: &'a http::Response<bytes::Bytes>,
    pub(super) route: Option<&'a Route>,
    pub(super) date: &'a [u8; 29],
    pub(super) keep: bool,
    pub(super) minor: u8,
    /// Whether the body is left out, because the request was HEAD.
    pub(super) head_only: bool,
}

/// Appends it, head and body.
pub(super) fn own(out: &mut Vec<u8>, own: &Own<'_>) {
    let status = own.response.status();
    status_line(out, status.as_u16(), reason(status).as_bytes());
    for (name, value) in own.response.headers() {
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    for (name, value) in own.route.iter().flat_map(|route| &route.response_headers) {
        field(out, name.as_str().as_bytes(), value.as_bytes());
    }
    field(out, b"Date", own.date);
    out.extend_from_slice(b"Content-Length: ");
    number(out, own.response.body().len() as u64);
    out.extend_from_slice(b"\r\n");
    connection(out, own.keep, own.minor);
    out.extend_from_slice(b"\r\n");
    if !own.head_only {
        out.extend_from_slice(own.response.body());
    }
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("")
}
