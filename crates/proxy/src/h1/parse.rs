//! Message heads, read strictly: what two readers could understand differently is refused.
//!
//! Tokens are cut by `httparse`; on top of it come the rules whose neglect lets requests be smuggled (RFC 9112):
//! every line ends in CRLF (§2.2), no folded lines (§5.2), no space before the colon (§5.1), one `Host` (§3.2),
//! `Content-Length` once and as digits (§6.3), never together with `Transfer-Encoding` (§6.1), which is `chunked` and
//! nothing else and never in HTTP/1.0.

use http::StatusCode;
use httparse::{EMPTY_HEADER, Header};

/// Most fields that a head can have, whatever the settings say.
pub(super) const MOST_FIELDS: usize = 256;

/// Room for the fields of one head.
pub(super) type Fields<'b> = [Header<'b>; MOST_FIELDS];

/// An empty room.
pub(super) fn fields<'b>() -> Fields<'b> {
    [EMPTY_HEADER; MOST_FIELDS]
}

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// Exactly this many bytes; 0 for none.
    Length(u64),
    /// In chunks.
    Chunked,
    /// Until the connection ends; only responses.
    UntilClose,
}

/// Names that the proxy treats on their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    Connection,
    ContentLength,
    Date,
    Expect,
    Forwarded,
    Host,
    /// Hop-by-hop without a meaning of its own here: `Keep-Alive`, `Proxy-Connection`.
    Hop,
    RequestId,
    RequestStart,
    Te,
    Trailer,
    TransferEncoding,
    Upgrade,
    XFor,
    XHost,
    XPort,
    XPrefix,
    XProto,
    Other,
}

/// Sorts a field name, by length first.
pub(super) fn known(name: &str) -> Known {
    let is = |other: &str| name.eq_ignore_ascii_case(other);
    match name.len() {
        2 if is("te") => Known::Te,
        4 if is("host") => Known::Host,
        4 if is("date") => Known::Date,
        6 if is("expect") => Known::Expect,
        7 if is("upgrade") => Known::Upgrade,
        7 if is("trailer") => Known::Trailer,
        9 if is("forwarded") => Known::Forwarded,
        10 if is("connection") => Known::Connection,
        10 if is("keep-alive") => Known::Hop,
        12 if is("x-request-id") => Known::RequestId,
        14 if is("content-length") => Known::ContentLength,
        15 if is("x-forwarded-for") => Known::XFor,
        15 if is("x-request-start") => Known::RequestStart,
        16 if is("x-forwarded-host") => Known::XHost,
        16 if is("x-forwarded-port") => Known::XPort,
        16 if is("proxy-connection") => Known::Hop,
        17 if is("transfer-encoding") => Known::TransferEncoding,
        17 if is("x-forwarded-proto") => Known::XProto,
        18 if is("x-forwarded-prefix") => Known::XPrefix,
        _ => Known::Other,
    }
}

/// What `Connection` fields say.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Options<'b> {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Field names listed, which concern this hop only.
    listed: [&'b str; 8],
    count: usize,
}

impl<'b> Options<'b> {
    /// Reads one `Connection` value; false when it is no list of tokens, or too long a one.
    fn read(&mut self, value: &'b [u8]) -> bool {
        let Ok(value) = std::str::from_utf8(value) else {
            return false;
        };
        for token in value.split(',').map(|token| token.trim_matches([' ', '\t'])) {
            if token.eq_ignore_ascii_case("close") {
                self.close = true;
            } else if token.eq_ignore_ascii_case("keep-alive") {
                self.keep_alive = true;
            } else if token.eq_ignore_ascii_case("upgrade") {
                self.upgrade = true;
            } else if !token.is_empty() {
                let Some(slot) = self.listed.get_mut(self.count) else {
                    return false;
                };
                *slot = token;
                self.count += 1;
            }
        }
        true
    }

    /// Whether the field `name` concerns this hop only. Fields that the next hop relies on cannot be taken away.
    pub(super) fn lists(&self, name: &str) -> bool {
        self.listed[..self.count]
            .iter()
            .any(|listed| listed.eq_ignore_ascii_case(name))
            && !matches!(
                known(name),
                Known::Host
                    | Known::ContentLength
                    | Known::XFor
                    | Known::XProto
                    | Known::XHost
                    | Known::XPort
            )
            && !name.eq_ignore_ascii_case("authorization")
            && !name.eq_ignore_ascii_case("cookie")
    }
}

/// A request's head, checked.
#[derive(Debug)]
pub(super) struct RequestHead<'h, 'b> {
    pub(super) method: &'b str,
    /// Path and query as sent, beginning with `/`; or `*`.
    pub(super) target: &'b str,
    /// 0 or 1: the minor version.
    pub(super) minor: u8,
    /// As sent; empty only in HTTP/1.0.
    pub(super) host: &'b str,
    pub(super) framing: Framing,
    /// Whether `Content-Length` was given, so that a 0 is passed on.
    pub(super) has_length: bool,
    pub(super) options: Options<'b>,
    pub(super) expect_continue: bool,
    /// Whether the client wants trailer fields (RFC 9110 §10.1.4).
    pub(super) trailers: bool,
    pub(super) upgrade: Option<&'b [u8]>,
    pub(super) request_id: Option<&'b [u8]>,
    pub(super) fields: &'h [Header<'b>],
}

impl RequestHead<'_, '_> {
    /// Whether the client will send another request on this connection.
    pub(super) fn keep_alive(&self) -> bool {
        !self.options.close && (self.minor == 1 || self.options.keep_alive)
    }
}

impl crate::assign::Shown for RequestHead<'_, '_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.fields.iter();
        fields
            .find(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    }

    fn cookie(&self, name: &str) -> Option<&[u8]> {
        let fields = self
            .fields
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case("cookie"));
        fields
            .filter_map(|field| crate::assign::cookie_in(field.value, name))
            .next()
    }
}

/// Where the head in `bytes` ends, looking from `from` on: after the first empty line.
///
/// A line that ends in a bare LF counts, so that the parser can refuse it instead of waiting for more.
pub(super) fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let from = from.saturating_sub(3);
    memchr::memchr_iter(b'\n', &bytes[from..]).find_map(|at| {
        let rest = &bytes[from + at + 1..];
        match rest {
            [b'\n', ..] => Some(from + at + 2),
            [b'\r', b'\n', ..] => Some(from + at + 3),
            _ => None,
        }
    })
}

/// The head without the empty lines that may come before a request (RFC 9112 §2.2).
pub(super) fn skip_empty_lines(bytes: &[u8]) -> usize {
    let mut start = 0;
    while bytes[start..].starts_with(b"\r\n") {
        start += 2;
    }
    start
}

fn only_crlf(head: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', head).all(|at| at > 0 && head[at - 1] == b'\r')
}

const BAD: StatusCode = StatusCode::BAD_REQUEST;

/// Reads a complete head, as [`head_end`] found it.
///
/// # Errors
/// The status to answer with.
pub(super) fn request<'h, 'b>(
    head: &'b [u8],
    room: &'h mut Fields<'b>,
    most_fields: usize,
) -> Result<RequestHead<'h, 'b>, StatusCode> {
    if !only_crlf(head) {
        return Err(BAD);
    }
    let room = &mut room[..most_fields.min(MOST_FIELDS)];
    let mut parsed = httparse::Request::new(room);
    match parsed.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        Err(httparse::Error::Version) => return Err(version_error(head)),
        _ => return Err(BAD),
    }
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(BAD);
    };
    let fields: &'h [Header<'b>] = parsed.headers;
    let mut read = RequestHead {
        method,
        target,
        minor,
        host: "",
        framing: Framing::Length(0),
        has_length: false,
        options: Options::default(),
        expect_continue: false,
        trailers: false,
        upgrade: None,
        request_id: None,
        fields,
    };
    let (mut hosts, mut length, mut codings) = (0, None, 0);
    for field in fields {
        match known(field.name) {
            Known::Host => {
                hosts += 1;
                read.host = host(field.value).ok_or(BAD)?;
            }
            Known::ContentLength => {
                let before = length.replace(digits(field.value).ok_or(BAD)?);
                if before.is_some() {
                    return Err(BAD);
                }
            }
            Known::TransferEncoding => {
                codings += 1;
                transfer_coding(field.value)?;
            }
            Known::Connection if !read.options.read(field.value) => return Err(BAD),
            Known::Upgrade => read.upgrade = Some(field.value),
            Known::RequestId => read.request_id = Some(field.value),
            Known::Te => read.trailers |= wants_trailers(field.value),
            Known::Expect => {
                if !field.value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(StatusCode::EXPECTATION_FAILED);
                }
                read.expect_continue = minor == 1;
            }
            _ => {}
        }
    }
    if hosts > 1 || (hosts == 0 && minor == 1) || codings > 1 {
        return Err(BAD);
    }
    read.has_length = length.is_some();
    read.framing = match (codings, length) {
        (0, length) => Framing::Length(length.unwrap_or(0)),
        (_, None) if minor == 1 => Framing::Chunked,
        _ => return Err(BAD),
    };
    request_target(&mut read)?;
    Ok(read)
}

/// Checks the target's form (RFC 9112 §3.2) and turns the absolute form into the origin form.
fn request_target(read: &mut RequestHead<'_, '_>) -> Result<(), StatusCode> {
    if read.method == "CONNECT" {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    if !read.target.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(BAD);
    }
    if read.target.starts_with('/') || (read.target == "*" && read.method == "OPTIONS") {
        return Ok(());
    }
    let rest = strip_scheme(read.target).ok_or(BAD)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    // The target's authority counts, whatever `Host` says (§3.2.2).
    read.host = host(&rest.as_bytes()[..end])
        .filter(|host| !host.is_empty())
        .ok_or(BAD)?;
    read.target = match &rest[end..] {
        "" => "/",
        path if path.starts_with('/') => path,
        // A query without a path cannot be forwarded as it is.
        _ => return Err(BAD),
    };
    Ok(())
}

fn strip_scheme(target: &str) -> Option<&str> {
    ["http://", "https://"].iter().find_map(|scheme| {
        let start = target.get(..scheme.len())?;
        start
            .eq_ignore_ascii_case(scheme)
            .then(|| &target[scheme.len()..])
    })
}

fn version_error(head: &[u8]) -> StatusCode {
    let line = head.split(|b| *b == b'\r').next().unwrap_or_default();
    let parts: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    match parts[..] {
        [_, _, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            StatusCode::HTTP_VERSION_NOT_SUPPORTED
        }
        _ => BAD,
    }
}

/// Whether this can stand in `Host`.
pub(crate) fn is_host(value: &[u8]) -> bool {
    host(value).is_some()
}

/// `Host`: a name or address with an optional port, and nothing that could be more than that.
fn host(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let bare = crate::table::without_port(text);
    let port = text[bare.len()..].strip_prefix(':').unwrap_or("");
    if text.len() > 261 || !port.bytes().all(|b| b.is_ascii_digit()) || port.len() > 5 {
        return None;
    }
    let fine = match bare.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').is_some_and(|inner| {
            inner
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b == b':' || b == b'.')
        }),
        None => bare
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~')),
    };
    fine.then_some(text)
}

/// Whether `trailers` is among the codings of a `TE` field.
fn wants_trailers(value: &[u8]) -> bool {
    value
        .split(|b| *b == b',')
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// Digits and nothing else, at most 18 of them.
fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        value
            .iter()
            .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')),
    )
}

fn transfer_coding(value: &[u8]) -> Result<(), StatusCode> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let well_formed = value.to_ascii_lowercase();
    // A coding before the final `chunked` is legal, and not ours to undo (§6.1).
    match std::str::from_utf8(&well_formed)
        .ok()
        .and_then(|codings| codings.rsplit_once(','))
    {
        Some((before, last))
            if last.trim() == "chunked"
                && before
                    .split(',')
                    .all(|coding| matches!(coding.trim(), "gzip" | "deflate" | "compress")) =>
        {
            Err(StatusCode::NOT_IMPLEMENTED)
        }
        _ => Err(BAD),
    }
}

/// A response's head, checked.
#[derive(Debug)]
pub(super) struct ResponseHead<'h, 'b> {
    pub(super) status: u16,
    pub(super) reason: &'b str,
    /// What the fields say; the method and the status may overrule it.
    pub(super) framing: Framing,
    pub(super) options: Options<'b>,
    /// Whether the upstream keeps the connection, if the body's end can be told.
    pub(super) reusable: bool,
    pub(super) upgrade: Option<&'b [u8]>,
    pub(super) has_date: bool,
    pub(super) fields: &'h [Header<'b>],
}

/// Reads a complete response head; `None` when it is not one, or ambiguous.
pub(super) fn response<'h, 'b>(head: &'b [u8], room: &'h mut Fields<'b>) -> Option<ResponseHead<'h, 'b>> {
    let mut parsed = httparse::Response::new(room);
    if parsed.parse(head) != Ok(httparse::Status::Complete(head.len())) {
        return None;
    }
    let minor = parsed.version?;
    let status = parsed.code.filter(|status| (100..=999).contains(status))?;
    let fields: &'h [Header<'b>] = parsed.headers;
    let mut read = ResponseHead {
        status,
        reason: parsed.reason.unwrap_or(""),
        framing: Framing::UntilClose,
        options: Options::default(),
        reusable: true,
        upgrade: None,
        has_date: false,
        fields,
    };
    let (mut length, mut chunked) = (None, false);
    for field in fields {
        match known(field.name) {
            Known::ContentLength => {
                let value = digits(field.value)?;
                if length.replace(value).is_some_and(|other| other != value) {
                    return None;
                }
            }
            Known::TransferEncoding => {
                if chunked || transfer_coding(field.value).is_err() {
                    return None;
                }
                chunked = true;
            }
            Known::Connection if !read.options.read(field.value) => return None,
            Known::Upgrade => read.upgrade = Some(field.value),
            Known::Date => read.has_date = true,
            _ => {}
        }
    }
    read.reusable = !read.options.close && (minor == 1 || read.options.keep_alive);
    read.framing = match (chunked, length) {
        // The chunks count, and the connection is not trusted any further (§6.3).
        (true, Some(_)) => {
            read.reusable = false;
            Framing::Chunked
        }
        (true, None) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    Some(read)
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
