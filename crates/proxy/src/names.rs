//! Names that come from outside, checked once at the edge: services, hosts, path prefixes, upstream addresses.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name from outside broke a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?}: {rule}")]
pub struct NameError {
    /// Which kind of name, such as `host`.
    pub what: &'static str,
    /// What was given, cut to 120 characters.
    pub value: String,
    /// The rule it broke, as a sentence part.
    pub rule: &'static str,
}

fn refuse<T>(what: &'static str, value: &str, rule: &'static str) -> Result<T, NameError> {
    Err(NameError {
        what,
        value: value.chars().take(120).collect(),
        rule,
    })
}

fn identifier(what: &'static str, text: &str) -> Result<Box<str>, NameError> {
    if text.is_empty() || text.len() > 128 {
        return refuse(what, text, "must have 1 to 128 characters");
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    {
        return refuse(what, text, "may hold only letters, digits, '.', '_' and '-'");
    }
    if !text.as_bytes()[0].is_ascii_alphanumeric() {
        return refuse(what, text, "must begin with a letter or a digit");
    }
    Ok(text.into())
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $parse:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// Checks `text`.
            ///
            /// # Errors
            /// When it breaks a rule of this kind of name.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                $parse(text).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    };
}

text_name! {
    /// The name of a service: 1–128 letters, digits, `.`, `_`, `-`, beginning with a letter or a digit.
    ServiceName, |text: &str| identifier("service name", text)
}

text_name! {
    /// The name under which a certificate is kept; the same alphabet as [`ServiceName`], so it is safe as a file name.
    CertificateName, |text: &str| identifier("certificate name", text)
}

text_name! {
    /// A host that a service answers for: a name, an IP address, or `*.` and a name.
    ///
    /// Kept in lower case and without a trailing dot.
    /// A wildcard stands for exactly one label, as in certificates (RFC 6125 §6.4.3) and in kamal-proxy.
    HostPattern, parse_host_pattern
}

text_name! {
    /// The leading part of a path that a service answers for, matched by whole segments.
    ///
    /// One leading slash, none at the end; the root is `/`.
    PathPrefix, parse_path_prefix
}

impl CertificateName {
    /// The name under which a host's own certificate is handed over: `host.` and the host, with `_.` for `*.`.
    pub fn of_host(host: &HostPattern) -> Self {
        let plain = host.as_str().trim_start_matches('[').trim_end_matches(']');
        // Brackets and colons of an IPv6 address are no letters of a certificate's name.
        Self(format!("host.{}", plain.replace('*', "_").replace(':', "-")).into())
    }

    /// The host whose own certificate this names, if it is a domain name.
    pub fn host(&self) -> Option<HostPattern> {
        let host = self.0.strip_prefix("host.")?;
        match host.strip_prefix("_.") {
            Some(suffix) => HostPattern::parse(&format!("*.{suffix}")).ok(),
            None => HostPattern::parse(host).ok(),
        }
    }
}

impl HostPattern {
    /// The part after `*.` of a wildcard.
    pub fn wildcard_suffix(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}

impl PathPrefix {
    /// The prefix that matches every path.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }
}

fn parse_host_pattern(text: &str) -> Result<Box<str>, NameError> {
    let what = "host";
    let lower = text.to_ascii_lowercase();
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let bare = name.strip_prefix("*.").unwrap_or(name);
    if let Some(inner) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return match inner.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) => Ok(format!("[{address}]").into()),
            _ => refuse(what, text, "is not an IPv6 address in brackets"),
        };
    }
    if bare.is_empty() || bare.len() > 253 {
        return refuse(what, text, "must have 1 to 253 characters");
    }
    if bare.contains(':') {
        return refuse(
            what,
            text,
            "must not hold a port; an IPv6 address goes in brackets",
        );
    }
    for label in bare.split('.') {
        if label.is_empty() || label.len() > 63 {
            return refuse(what, text, "every part between dots must have 1 to 63 characters");
        }
        if !label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return refuse(
                what,
                text,
                "may hold only letters, digits, '-', '_' and dots; '*.' only at the start (write an international name in its xn-- form)",
            );
        }
        if label.starts_with('-') || label.ends_with('-') {
            return refuse(what, text, "no part between dots may begin or end with '-'");
        }
    }
    Ok(name.into())
}

fn parse_path_prefix(text: &str) -> Result<Box<str>, NameError> {
    let what = "path prefix";
    let trimmed = text.trim_matches('/');
    if trimmed.len() > 1024 {
        return refuse(what, text, "must have at most 1024 characters");
    }
    if let Some(bad) = trimmed
        .bytes()
        .find(|b| !b.is_ascii_graphic() || b"?#\\\"<>".contains(b))
    {
        let rule = if bad == b'?' || bad == b'#' {
            "must not hold a query or a fragment"
        } else {
            "may hold only printable ASCII; percent-encode the rest"
        };
        return refuse(what, text, rule);
    }
    if trimmed
        .split('/')
        .any(|segment| segment == "." || segment == ".." || (segment.is_empty() && !trimmed.is_empty()))
    {
        return refuse(what, text, "must not hold empty, '.' or '..' segments");
    }
    Ok(format!("/{trimmed}").into())
}

/// Where an upstream listens: `10.0.0.5:3000`, `[fd00::5]:3000` or `unix:/run/app.sock`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum UpstreamAddress {
    /// TCP; an address, not a name, so that no request waits for a resolver.
    Tcp(SocketAddr),
    /// A Unix stream socket with an absolute path.
    Unix(PathBuf),
}

impl UpstreamAddress {
    /// Checks `text`.
    ///
    /// # Errors
    /// When it is neither `address:port` with a port of 1–65535 nor `unix:` and an absolute path.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let what = "upstream";
        if let Some(path) = text.strip_prefix("unix:") {
            let path = Path::new(path);
            if !path.is_absolute() || path.as_os_str().len() > 107 {
                return refuse(
                    what,
                    text,
                    "after 'unix:' must come an absolute path of at most 107 bytes",
                );
            }
            return Ok(Self::Unix(path.to_owned()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self::Tcp(address)),
            Ok(_) => refuse(what, text, "the port must be 1 to 65535"),
            Err(_) => refuse(
                what,
                text,
                "must be an IP address with a port, such as 10.0.0.5:3000 or [fd00::5]:3000, or unix:/path",
            ),
        }
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl From<SocketAddr> for UpstreamAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl FromStr for UpstreamAddress {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for UpstreamAddress {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<UpstreamAddress> for String {
    fn from(address: UpstreamAddress) -> String {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_normalised() {
        for (given, kept) in [
            ("Shop.Example.COM", "shop.example.com"),
            ("shop.example.com.", "shop.example.com"),
            ("*.Example.com", "*.example.com"),
            ("10.0.0.1", "10.0.0.1"),
            ("[::1]", "[::1]"),
            ("localhost", "localhost"),
            ("my_app.internal", "my_app.internal"),
        ] {
            assert_eq!(HostPattern::parse(given).unwrap().as_str(), kept);
        }
    }

    #[test]
    fn bad_hosts_are_refused_with_the_rule() {
        for given in [
            "",
            "*",
            "*.",
            "a..b",
            "a:80",
            "a b",
            "a.*.b",
            "-a.com",
            "münchen.de",
            "http://a",
            "a/b",
        ] {
            assert!(HostPattern::parse(given).is_err(), "{given:?} was accepted");
        }
        let error = HostPattern::parse("a:80").unwrap_err();
        assert!(error.to_string().contains("port"), "{error}");
    }

    #[test]
    fn prefixes_get_one_slash_in_front_and_none_behind() {
        for (given, kept) in [
            ("", "/"),
            ("/", "/"),
            ("api", "/api"),
            ("/api/", "/api"),
            ("//api/v1//", "/api/v1"),
        ] {
            assert_eq!(PathPrefix::parse(given).unwrap().as_str(), kept);
        }
        for given in ["/a//b", "/a/../b", "/a?b", "/a b", "/ü"] {
            assert!(PathPrefix::parse(given).is_err(), "{given:?} was accepted");
        }
    }

    #[test]
    fn upstreams_are_addresses_or_sockets() {
        for given in ["10.0.0.5:3000", "[fd00::5]:3000", "unix:/run/app.sock"] {
            assert_eq!(UpstreamAddress::parse(given).unwrap().to_string(), given);
        }
        for given in [
            "app:3000",
            "10.0.0.5",
            "10.0.0.5:0",
            "10.0.0.5:70000",
            "unix:app.sock",
            "",
        ] {
            assert!(UpstreamAddress::parse(given).is_err(), "{given:?} was accepted");
        }
    }
}
