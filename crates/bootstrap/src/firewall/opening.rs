//! What is let in: ports, networks, and who asked for it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Ports of data stores: opening one to everyone has to be said twice.
pub const DATA_STORE_PORTS: &[u16] = &[
    1433, 2375, 2376, 3306, 5432, 5984, 6379, 8086, 9000, 9200, 9300, 11211, 27017,
];

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As nft, `ss` and people write it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// Ports as published on the host: `8080`, `5432/tcp`, `6000-6010/udp`; without a protocol it is TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Ports {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port, at least 1.
    pub first: u16,
    /// The last port, at least `first`.
    pub last: u16,
}

/// A text that is neither ports nor a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct BadOpening {
    /// What was given, cut to a printable length.
    pub value: String,
    /// What would be right.
    pub expected: &'static str,
}

impl BadOpening {
    fn new(value: &str, expected: &'static str) -> Self {
        let value = value.chars().filter(|c| !c.is_control()).take(80).collect();
        Self { value, expected }
    }
}

impl Ports {
    /// One TCP port.
    pub fn tcp(port: u16) -> Self {
        Self {
            protocol: Protocol::Tcp,
            first: port,
            last: port,
        }
    }

    /// Whether `port` is one of them.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The first port of a data store among them, if there is one.
    pub fn data_store(self) -> Option<u16> {
        DATA_STORE_PORTS.iter().copied().find(|port| self.contains(*port))
    }

    /// `8080` or `6000-6010`, as nft writes it.
    pub fn range(self) -> String {
        if self.first == self.last {
            self.first.to_string()
        } else {
            format!("{}-{}", self.first, self.last)
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.range(), self.protocol.name())
    }
}

impl From<Ports> for String {
    fn from(ports: Ports) -> Self {
        ports.to_string()
    }
}

impl TryFrom<String> for Ports {
    type Error = BadOpening;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        value.parse()
    }
}

impl FromStr for Ports {
    type Err = BadOpening;

    fn from_str(text: &str) -> Result<Self, BadOpening> {
        let bad = || BadOpening::new(text, "a port: write 8080, 5432/tcp or 6000-6010/udp");
        let (range, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((range, "tcp")) => (range, Protocol::Tcp),
            Some((range, "udp")) => (range, Protocol::Udp),
            Some(_) => return Err(bad()),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |digits: &str| -> Result<u16, BadOpening> {
            if digits.starts_with('+') {
                return Err(bad());
            }
            digits.parse().map_err(|_| bad())
        };
        let (first, last) = (number(first)?, number(last)?);
        if first == 0 || last < first {
            return Err(bad());
        }
        Ok(Self {
            protocol,
            first,
            last,
        })
    }
}

/// A network, or one address: `10.0.5.0/24`, `2001:db8::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Net {
    /// Its address, without bits beyond the prefix.
    pub address: IpAddr,
    /// Length of the prefix, 0 to 32 or 128.
    pub prefix: u8,
}

impl Net {
    /// Whether an address belongs to it; an IPv4-mapped IPv6 address counts as IPv4.
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(self.prefix.min(32));
                u64::from(u32::from(net)) >> shift == u64::from(u32::from(address)) >> shift
            }
            (IpAddr::V6(net), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(self.prefix.min(128));
                let cut = |bits: u128| bits.checked_shr(shift).unwrap_or(0);
                cut(u128::from(net)) == cut(u128::from(address))
            }
            _ => false,
        }
    }

    /// Whether it is everybody of its family.
    pub fn is_everyone(self) -> bool {
        self.prefix == 0
    }

    /// `ip` or `ip6`, as nft names the family.
    pub fn family(self) -> &'static str {
        if self.address.is_ipv4() { "ip" } else { "ip6" }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = if self.address.is_ipv4() { 32 } else { 128 };
        if self.prefix == whole {
            write!(f, "{}", self.address)
        } else {
            write!(f, "{}/{}", self.address, self.prefix)
        }
    }
}

impl From<Net> for String {
    fn from(net: Net) -> Self {
        net.to_string()
    }
}

impl TryFrom<String> for Net {
    type Error = BadOpening;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        value.parse()
    }
}

impl FromStr for Net {
    type Err = BadOpening;

    fn from_str(text: &str) -> Result<Self, BadOpening> {
        let bad = || BadOpening::new(text, "a network: write 10.0.5.0/24, 203.0.113.7 or 2001:db8::/48");
        let (address, prefix) = match text.split_once('/') {
            None => (text, None),
            Some((address, prefix)) => (address, Some(prefix)),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => whole,
            Some(digits) => digits.parse::<u8>().map_err(|_| bad())?,
        };
        if prefix > whole {
            return Err(bad());
        }
        let beyond = match address {
            IpAddr::V4(address) => {
                u64::from(u32::from(address)) & ((1_u64 << (32 - u32::from(prefix))) - 1) != 0
            }
            IpAddr::V6(address) => {
                let mask = 1_u128
                    .checked_shl(128 - u32::from(prefix))
                    .map_or(u128::MAX, |bit| bit - 1);
                u128::from(address) & mask != 0
            }
        };
        if beyond {
            return Err(BadOpening::new(
                text,
                "a network: it has bits beyond its prefix; write one address, or a longer prefix",
            ));
        }
        Ok(Self { address, prefix })
    }
}

/// Who asked for an opening.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "source")]
pub enum Source {
    /// A web server has them.
    Builtin,
    /// `host.yml` says so.
    HostYml,
    /// UFW's own rules, followed for containers too.
    Ufw,
    /// A signed change.
    Request {
        /// Fingerprint of the key that signed it.
        by: String,
        /// When, RFC 3339.
        at: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Builtin => f.write_str("web server"),
            Source::HostYml => f.write_str("host.yml"),
            Source::Ufw => f.write_str("UFW"),
            Source::Request { by, at } => write!(f, "request of {by}, {at}"),
        }
    }
}

/// One opening.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Opening {
    /// As published on the host, whoever answers there.
    pub ports: Ports,
    /// For whom; everyone if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Net>,
    /// What for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Who asked for it.
    #[serde(flatten)]
    pub source: Source,
}

impl Opening {
    /// Whether strangers are let in.
    pub fn for_everyone(&self) -> bool {
        self.from.is_empty() || self.from.iter().any(|net| net.is_everyone())
    }

    /// Whether a packet from `address` to `port` is let in by it.
    pub fn admits(&self, protocol: Protocol, port: u16, address: IpAddr) -> bool {
        self.ports.protocol == protocol
            && self.ports.contains(port)
            && (self.from.is_empty() || self.from.iter().any(|net| net.contains(address)))
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to ", self.ports)?;
        if self.from.is_empty() {
            return f.write_str("everyone");
        }
        let from: Vec<String> = self.from.iter().map(ToString::to_string).collect();
        f.write_str(&from.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_as_people_write_them() {
        for (text, expect) in [
            ("8080", "8080/tcp"),
            ("53/udp", "53/udp"),
            ("6000-6010/tcp", "6000-6010/tcp"),
        ] {
            assert_eq!(text.parse::<Ports>().expect("ports").to_string(), expect);
        }
        for text in ["", "0", "http", "80/sctp", "10-5", "65536", "+80", "80; accept"] {
            assert!(text.parse::<Ports>().is_err(), "{text}");
        }
        assert_eq!(
            "5000-6000".parse::<Ports>().expect("ports").data_store(),
            Some(5432)
        );
    }

    #[test]
    fn networks_hold_their_addresses_and_nothing_else() {
        let net = |text: &str| text.parse::<Net>().expect("network");
        let ip = |text: &str| text.parse::<IpAddr>().expect("address");
        assert!(net("10.0.5.0/24").contains(ip("10.0.5.9")));
        assert!(!net("10.0.5.0/24").contains(ip("10.0.6.9")));
        assert!(net("0.0.0.0/0").contains(ip("203.0.113.1")) && !net("0.0.0.0/0").contains(ip("::2")));
        assert!(net("::/0").contains(ip("2001:db8::1")) && net("2001:db8::1").contains(ip("2001:db8::1")));
        assert!(net("10.0.5.0/24").contains(ip("::ffff:10.0.5.1")));
        for text in [
            "10.0.0.1/8",
            "10.0.0.0/33",
            "::1/64",
            "example.com",
            "10.0.0.0/8 accept",
        ] {
            assert!(text.parse::<Net>().is_err(), "{text}");
        }
    }
}
