//! Who the visitor is, when proxies stand in front of this one.
//!
//! Nothing is believed unless the connection comes from a trusted network. Then the header that the settings name
//! counts, else `X-Forwarded-For`, read from its right end: the first address that is no trusted proxy's is the visitor,
//! because everything to its left may have been made up.

use std::net::IpAddr;

use crate::headers::Networks;

/// The visitor's address.
///
/// `named` holds the values of the header that the settings name, `forwarded` those of `X-Forwarded-For`, both in the
/// order of their fields.
pub(crate) fn address<'v>(
    peer: IpAddr,
    trusted: &Networks,
    named: Option<&[u8]>,
    forwarded: impl DoubleEndedIterator<Item = &'v [u8]>,
) -> IpAddr {
    if !trusted.contain(peer) {
        return peer;
    }
    if let Some(address) = named.and_then(parse) {
        return address;
    }
    let mut last = peer;
    let hops = forwarded.rev().flat_map(|value| value.rsplit(|b| *b == b','));
    for hop in hops {
        let Some(address) = parse(hop) else {
            // What cannot be read cannot be trusted either.
            return last;
        };
        if !trusted.contain(address) {
            return address;
        }
        last = address;
    }
    last
}

/// An address, in brackets or not, with a port or not.
fn parse(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    if let Ok(address) = text.parse::<std::net::SocketAddr>() {
        return Some(address.ip().to_canonical());
    }
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    inner.parse::<IpAddr>().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(peer: &str, named: Option<&str>, forwarded: &[&str]) -> String {
        let trusted = Networks::parse(&["10.0.0.0/8".to_owned(), "2001:db8::/32".to_owned()]).unwrap();
        let values: Vec<&[u8]> = forwarded.iter().map(|value| value.as_bytes()).collect();
        address(
            peer.parse().unwrap(),
            &trusted,
            named.map(str::as_bytes),
            values.into_iter(),
        )
        .to_string()
    }

    #[test]
    fn a_stranger_is_who_connects_whatever_he_says() {
        assert_eq!(
            found("192.0.2.1", Some("203.0.113.5"), &["203.0.113.6"]),
            "192.0.2.1"
        );
    }

    #[test]
    fn the_right_most_address_that_is_no_proxys_counts() {
        for (forwarded, expected) in [
            (&["6.6.6.6, 203.0.113.5, 10.1.1.1"][..], "203.0.113.5"),
            (&["6.6.6.6", "203.0.113.5", "10.2.2.2"], "203.0.113.5"),
            (&["203.0.113.5:4711"], "203.0.113.5"),
            (&["[2001:4860::1]:443, 2001:db8::7"], "2001:4860::1"),
            (&["10.9.9.9"], "10.9.9.9"),
            (&["203.0.113.5, junk"], "10.0.0.1"),
            (&[], "10.0.0.1"),
        ] {
            assert_eq!(found("10.0.0.1", None, forwarded), expected, "{forwarded:?}");
        }
        assert_eq!(
            found("10.0.0.1", Some("203.0.113.9"), &["203.0.113.5"]),
            "203.0.113.9"
        );
        assert_eq!(found("10.0.0.1", Some("junk"), &["203.0.113.5"]), "203.0.113.5");
    }
}
