//! Trailer fields (RFC 9110 §6.5): passed on, but never those that a recipient acts on before the body.

use http::{HeaderMap, HeaderName, HeaderValue};

use super::chunks;
use super::parse::{Known, known};

/// Whether a field may stand after a body (§6.5.1): not framing, routing, authentication, content format, or anything
/// that the proxy itself says.
fn may_trail(name: &str) -> bool {
    const NEVER: [&str; 20] = [
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "set-cookie",
        "vary",
        "www-authenticate",
    ];
    known(name) == Known::Other && !NEVER.iter().any(|never| name.eq_ignore_ascii_case(never))
}

/// Whether the line without its end is a field that is well formed.
fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let colon = memchr::memchr(b':', line)?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    let fine = !name.is_empty()
        && name
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b))
        && value.iter().all(|b| *b == b'\t' || (*b >= b' ' && *b != 0x7f));
    fine.then_some((name, value))
}

/// The field in a line that [`chunks::Decoder`] took for one, if it may be passed on.
pub(super) fn field(line: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = split(line)?;
    let name = HeaderName::from_bytes(name).ok()?;
    let value = HeaderValue::from_bytes(value).ok()?;
    may_trail(name.as_str()).then_some((name, value))
}

/// Appends a line to trailer fields that go out as they came, if it may be passed on.
pub(super) fn keep(out: &mut Vec<u8>, line: &[u8]) {
    if let Some((name, value)) = split(line)
        && std::str::from_utf8(name).is_ok_and(may_trail)
    {
        super::rewrite::field(out, name, value);
    }
}

/// Whether every byte of a trailer line is one that a field can have.
pub(super) fn is_well_formed(line: &[u8]) -> bool {
    split(line).is_some()
}

/// Appends the last chunk with `fields` after it.
pub(super) fn write_end(out: &mut Vec<u8>, fields: &HeaderMap) {
    let mut kept = Vec::new();
    for (name, value) in fields {
        if may_trail(name.as_str()) {
            super::rewrite::field(&mut kept, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    chunks::write_end(out, &kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_acted_on_before_the_body_never_trail() {
        for (line, expect) in [
            ("Grpc-Status: 0\r\n", "Grpc-Status: 0\r\n"),
            ("Server-Timing:  a;dur=1 \r\n", "Server-Timing: a;dur=1\r\n"),
            ("Content-Length: 5\r\n", ""),
            ("Transfer-Encoding: chunked\r\n", ""),
            ("Host: evil\r\n", ""),
            ("Authorization: Basic x\r\n", ""),
            ("Set-Cookie: a=b\r\n", ""),
            ("X-Forwarded-For: 1.2.3.4\r\n", ""),
            ("Trailer: x\r\n", ""),
        ] {
            let mut kept = Vec::new();
            keep(&mut kept, line.as_bytes());
            assert_eq!(String::from_utf8(kept).unwrap(), expect, "{line:?}");
            assert_eq!(field(line.as_bytes()).is_some(), !expect.is_empty(), "{line:?}");
        }
    }
}
