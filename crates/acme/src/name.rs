//! Names that certificates are asked for.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A host name, `*.` and a host name, or an IP address, in lower case and without a trailing dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Box<str>);

/// A text is no [`Name`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name that a certificate can be asked for")]
pub struct NameError(pub String);

impl Name {
    /// Checks `text`; an IPv6 address may stand in brackets.
    ///
    /// # Errors
    /// When it is neither a host name (RFC 1123, underscores allowed), nor a wildcard, nor an address.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let lower = text.to_ascii_lowercase();
        let bare = lower.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self(address.to_string().into()));
        }
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        let host = name.strip_prefix("*.").unwrap_or(name);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if host.len() <= 253 && host.split('.').all(label) {
            Ok(Self(name.into()))
        } else {
            Err(NameError(text.chars().take(120).collect()))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it stands for every name one label below another; only dns-01 can prove such a one (RFC 8555 §7.1.3).
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with("*.")
    }

    /// The address, if it is one.
    pub fn address(&self) -> Option<IpAddr> {
        self.0.parse().ok()
    }

    /// The name without `*.`.
    pub fn host(&self) -> &str {
        self.0.strip_prefix("*.").unwrap_or(&self.0)
    }

    /// Whether no public authority issues for it: addresses, single labels, and the names that RFC 2606, RFC 6761,
    /// RFC 6762, RFC 8375 and ICANN set aside.
    pub fn is_private(&self) -> bool {
        const TOP: &[&str] = &[
            "example",
            "internal",
            "invalid",
            "local",
            "localhost",
            "onion",
            "test",
        ];
        const BELOW: &[&str] = &["example.com", "example.net", "example.org", "home.arpa"];
        let host = self.host();
        let within = |domain: &&str| {
            host.strip_suffix(*domain)
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.address().is_some() || !host.contains('.') || TOP.iter().any(within) || BELOW.iter().any(within)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_bad_ones_refused() {
        for (given, kept) in [
            ("Shop.Example.", "shop.example"),
            ("*.Shop.example", "*.shop.example"),
            ("[2001:DB8::1]", "2001:db8::1"),
            ("192.0.2.7", "192.0.2.7"),
        ] {
            assert_eq!(Name::parse(given).unwrap().as_str(), kept);
        }
        for bad in ["", "*", "a..b", "a/b", "../x", "*.*.a", "-a.b", "a b", "ü.de"] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_names_that_the_public_can_reach_are_public() {
        for private in [
            "localhost",
            "shop.localhost",
            "shop.test",
            "x.internal",
            "192.0.2.7",
            "::1",
            "nas",
            "printer.local",
            "www.example.com",
            "*.example.org",
            "box.home.arpa",
        ] {
            assert!(Name::parse(private).unwrap().is_private(), "{private}");
        }
        for public in [
            "shop.acme.io",
            "*.acme.io",
            "contest.com",
            "myexample.com",
            "latest.dev",
        ] {
            assert!(!Name::parse(public).unwrap().is_private(), "{public}");
        }
    }
}
