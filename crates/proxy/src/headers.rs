//! What happens to header fields on their way: hop-by-hop ones go, forwarding ones come.
//!
//! Hop-by-hop: RFC 9110 §7.6.1, the names listed in `Connection` included.
//! Forwarding: `X-Forwarded-For/-Proto/-Host/-Port` describe the client as we saw it.
//! What a client says about itself is kept only when the client is trusted (its address is in the list of trusted
//! proxies, or the service says `forward_headers`); a `Forwarded` field of anybody else is removed.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::options::Scheme;

pub(crate) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(crate) const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
pub(crate) const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const X_REQUEST_START: HeaderName = HeaderName::from_static("x-request-start");

const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A list of networks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Networks(Vec<(u128, u128)>);

impl Networks {
    /// Reads `address/bits`, or an address alone.
    ///
    /// # Errors
    /// The first text that is no network.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, String> {
        texts
            .iter()
            .map(|text| network(text).ok_or_else(|| format!("{text:?} is not a network such as 10.0.0.0/8")))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether `address` lies in one of them.
    pub(crate) fn contain(&self, address: IpAddr) -> bool {
        let bits = mapped(address);
        self.0.iter().any(|(network, mask)| bits & mask == *network)
    }
}

fn network(text: &str) -> Option<(u128, u128)> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u32>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let width = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(width);
    if bits > width {
        return None;
    }
    let host_bits = width - bits;
    let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
    Some((mapped(address) & mask, mask))
}

/// IPv4 as an IPv4-mapped IPv6 address, so that one comparison serves both.
fn mapped(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl crate::assign::Shown for HeaderMap {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(HeaderValue::as_bytes)
    }

    fn cookie(&self, name: &str) -> Option<&[u8]> {
        let mut fields = self.get_all(header::COOKIE).iter();
        fields.find_map(|field| crate::assign::cookie_in(field.as_bytes(), name))
    }
}

/// Removes what concerns only one connection.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .filter(|name| !is_end_to_end(name))
            .collect();
        for name in listed {
            headers.remove(name);
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Fields that `Connection` must not be able to take away, because the next hop relies on them.
fn is_end_to_end(name: &HeaderName) -> bool {
    *name == header::HOST
        || *name == header::CONTENT_LENGTH
        || *name == header::AUTHORIZATION
        || *name == header::COOKIE
        || name.as_str().starts_with("x-forwarded-")
}

/// Whether a client's field could pass for one that is ours to set: servers that hand fields over as environment
/// variables take `_` for `-`, and `Proxy` for the variable of that name (CVE-2016-5385).
pub(crate) fn is_disguise(name: &[u8]) -> bool {
    const OURS: [&[u8]; 14] = [
        b"connection",
        b"content-length",
        b"forwarded",
        b"host",
        b"keep-alive",
        b"te",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-request-id",
        b"x-request-start",
    ];
    if name.eq_ignore_ascii_case(b"proxy") {
        return true;
    }
    let same = |ours: &&[u8]| {
        ours.len() == name.len()
            && ours.iter().zip(name).all(|(ours, given)| {
                let given = if *given == b'_' { b'-' } else { *given };
                ours.eq_ignore_ascii_case(&given)
            })
    };
    name.contains(&b'_') && OURS.iter().any(same)
}

/// The client as we saw it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClientView<'a> {
    pub(crate) peer_text: &'a HeaderValue,
    pub(crate) scheme: Scheme,
    pub(crate) local_port: u16,
    pub(crate) trusted: bool,
    /// Who a trusted proxy says the visitor is.
    pub(crate) visitor: Option<IpAddr>,
    /// Whether a `Forwarded` field is sent too, and what of the visitor it names when nobody is trusted.
    pub(crate) forwarded: Option<IpAddr>,
    pub(crate) host: &'a str,
}

/// Sets the forwarding fields of a request for the upstream.
pub(crate) fn set_forwarding(headers: &mut HeaderMap, client: &ClientView<'_>) {
    let disguised: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_disguise(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in disguised {
        headers.remove(name);
    }
    if !client.trusted {
        headers.remove(header::FORWARDED);
        headers.remove(&X_FORWARDED_PREFIX);
    }
    if let Some(visitor) = client.forwarded {
        let visitor = client.visitor.unwrap_or(visitor);
        match HeaderValue::try_from(forwarded(visitor, client.host, client.scheme)) {
            Ok(value) => headers.insert(header::FORWARDED, value),
            Err(_) => headers.remove(header::FORWARDED),
        };
    }
    let chain = client
        .trusted
        .then(|| joined(headers, &X_FORWARDED_FOR))
        .flatten();
    let chain = match chain {
        Some(before) => {
            let mut value = before;
            value.extend_from_slice(b", ");
            value.extend_from_slice(client.peer_text.as_bytes());
            HeaderValue::from_bytes(&value).unwrap_or_else(|_| client.peer_text.clone())
        }
        None => client.peer_text.clone(),
    };
    // What stands to the left of the visitor may be made up, and the proxies to the right would be taken for it.
    let chain = match client.visitor {
        Some(visitor) => HeaderValue::try_from(visitor.to_string()).unwrap_or(chain),
        None => chain,
    };
    headers.insert(X_FORWARDED_FOR, chain);
    let keep = |headers: &HeaderMap, name: &HeaderName| client.trusted && headers.contains_key(name);
    if !keep(headers, &X_FORWARDED_PROTO) {
        headers.insert(
            X_FORWARDED_PROTO,
            HeaderValue::from_static(client.scheme.as_str()),
        );
    }
    if !keep(headers, &X_FORWARDED_HOST) {
        match HeaderValue::from_str(client.host) {
            Ok(host) => headers.insert(X_FORWARDED_HOST, host),
            Err(_) => headers.remove(X_FORWARDED_HOST),
        };
    }
    if !keep(headers, &X_FORWARDED_PORT) {
        headers.insert(X_FORWARDED_PORT, HeaderValue::from(port_of(client)));
    }
}

/// A value of `Forwarded` (RFC 7239 §4) for one hop.
pub(crate) fn forwarded(visitor: IpAddr, host: &str, scheme: Scheme) -> String {
    let visitor = match visitor {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("\"[{v6}]\""),
    };
    let scheme = scheme.as_str();
    // A host is checked before it comes here; a quoted string must not be left by it all the same.
    let host: String = host.chars().filter(|c| !matches!(c, '"' | '\\')).collect();
    format!("for={visitor};host=\"{host}\";proto={scheme}")
}

/// The port in `Host`, else the scheme's own, else the one we listen on: what the visitor typed.
fn port_of(client: &ClientView<'_>) -> u16 {
    let bare = crate::table::without_port(client.host);
    match client.host.get(bare.len() + 1..).map(str::parse) {
        Some(Ok(port)) => port,
        _ if client.host.is_empty() => client.local_port,
        _ => client.scheme.default_port(),
    }
}

fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<Vec<u8>> {
    let mut all = headers.get_all(name).iter();
    let mut value = all.next()?.as_bytes().to_vec();
    for more in all {
        value.extend_from_slice(b", ");
        value.extend_from_slice(more.as_bytes());
    }
    Some(value)
}

/// Joins the cookie fields that HTTP/2 clients may split (RFC 9113 §8.2.3).
pub(crate) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_none() {
        return;
    }
    let mut whole = Vec::new();
    for part in headers.get_all(header::COOKIE) {
        if !whole.is_empty() {
            whole.extend_from_slice(b"; ");
        }
        whole.extend_from_slice(part.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&whole) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields
            .iter()
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn forwarded(trusted: bool, fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = map(fields);
        let client = ClientView {
            peer_text: &HeaderValue::from_static("203.0.113.9"),
            scheme: Scheme::Https,
            local_port: 8443,
            trusted,
            visitor: None,
            forwarded: None,
            host: "shop.example.com:8443",
        };
        set_forwarding(&mut headers, &client);
        headers
    }

    #[test]
    fn networks_hold_addresses_of_both_families() {
        let texts = ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7"].map(String::from);
        let networks = Networks::parse(&texts).unwrap();
        for (address, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("::ffff:10.1.1.1", true),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("192.0.2.7", true),
            ("192.0.2.8", false),
        ] {
            assert_eq!(networks.contain(address.parse().unwrap()), inside, "{address}");
        }
        assert!(Networks::parse(&["10.0.0.0/33".into()]).is_err());
        assert!(Networks::parse(&["shop".into()]).is_err());
    }

    #[test]
    fn hop_by_hop_fields_go_with_those_that_connection_lists() {
        let mut headers = map(&[
            ("connection", "close, X-Secret-Hop, host"),
            ("x-secret-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("host", "h"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut headers);
        let left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert_eq!(left, ["host", "accept"]);
    }

    #[test]
    fn a_stranger_cannot_say_who_he_is() {
        let headers = forwarded(
            false,
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-host", "evil"),
                ("forwarded", "for=1.2.3.4"),
            ],
        );
        assert_eq!(headers["x-forwarded-for"], "203.0.113.9");
        assert_eq!(headers["x-forwarded-proto"], "https");
        assert_eq!(headers["x-forwarded-host"], "shop.example.com:8443");
        assert_eq!(headers["x-forwarded-port"], "8443");
        assert!(!headers.contains_key("forwarded"));
    }

    #[test]
    fn a_trusted_proxy_is_believed_and_appended() {
        let headers = forwarded(
            true,
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "http"),
                ("forwarded", "for=1.2.3.4"),
            ],
        );
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4, 203.0.113.9");
        assert_eq!(headers["x-forwarded-proto"], "http");
        assert!(headers.contains_key("forwarded"));
    }
}
