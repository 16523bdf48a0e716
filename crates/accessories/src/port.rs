//! Where an accessory's port is bound.
//!
//! Kamal publishes `port: 5432` on every address, past most firewalls. Here a port without an address is bound to the loopback,
//! and an address that strangers can reach needs an opening in the host's firewall as well.

use std::net::{IpAddr, Ipv4Addr};

/// Who can reach a port bound to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// This host alone.
    Loopback,
    /// Private networks (RFC 1918, RFC 4193, RFC 6598, link-local).
    Private,
    /// Everybody.
    Public,
}

/// The address to bind, and who can reach it; without an address it is the loopback.
pub fn bind(address: Option<IpAddr>) -> (IpAddr, Exposure) {
    let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    (address, exposure(address))
}

/// Who can reach a port bound to this address.
pub fn exposure(address: IpAddr) -> Exposure {
    let private = match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || v4.is_link_local() || (first == 100 && second & 0xc0 == 0x40)
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => return exposure(IpAddr::V4(v4)),
            None => v6.is_unique_local() || v6.is_unicast_link_local(),
        },
    };
    if address.is_loopback() {
        Exposure::Loopback
    } else if private {
        Exposure::Private
    } else {
        Exposure::Public
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_port_is_for_this_host_alone() {
        assert_eq!(bind(None), (IpAddr::V4(Ipv4Addr::LOCALHOST), Exposure::Loopback));
    }

    #[test]
    fn addresses_tell_who_reaches_them() {
        for (text, expect) in [
            ("127.0.0.1", Exposure::Loopback),
            ("::1", Exposure::Loopback),
            ("10.0.0.5", Exposure::Private),
            ("100.64.0.1", Exposure::Private),
            ("fd00::5", Exposure::Private),
            ("::ffff:10.0.0.5", Exposure::Private),
            ("0.0.0.0", Exposure::Public),
            ("::", Exposure::Public),
            ("203.0.113.7", Exposure::Public),
            ("100.128.0.1", Exposure::Public),
        ] {
            let address = text.parse().expect("an address");
            assert_eq!(exposure(address), expect, "{text}");
        }
    }
}
