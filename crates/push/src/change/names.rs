//! Names that arrive from outside, each parsed once into a type that cannot hold a bad one.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

/// A name that does not follow its rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not {expected}")]
pub struct BadName {
    /// What was given, cut to a printable length.
    pub value: String,
    /// The rule, as the end of a sentence.
    pub expected: &'static str,
}

impl BadName {
    fn new(value: &str, expected: &'static str) -> Self {
        let mut value: String = value.chars().take(120).collect();
        value.retain(|c| !c.is_control());
        Self { value, expected }
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $expected:literal, $rule:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Parses a name.
            ///
            /// # Errors
            /// When the text does not follow the rule of this type.
            pub fn parse(value: &str) -> Result<Self, BadName> {
                let rule: fn(&str) -> bool = $rule;
                if rule(value) { Ok(Self(value.to_owned())) } else { Err(BadName::new(value, $expected)) }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", self.0)
            }
        }

        impl FromStr for $type {
            type Err = BadName;

            fn from_str(value: &str) -> Result<Self, BadName> {
                Self::parse(value)
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;

            fn try_from(value: String) -> Result<Self, BadName> {
                Self::parse(&value)
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.0
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// Ports of the host: `8080`, `5432/tcp`, `6000-6010/udp`. What they mean is checked where they are used.
    PortsName, "a port: digits, at most one range, and /tcp or /udp", |value| {
        (1..=15).contains(&value.len())
            && value.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'/' | b't' | b'c' | b'p' | b'u' | b'd'))
    }
);

name!(
    /// A network or an address: `10.0.5.0/24`, `2001:db8::1`. What it means is checked where it is used.
    NetworkName, "a network or an address", |value| {
        (2..=49).contains(&value.len())
            && value.bytes().all(|b| b.is_ascii_hexdigit() || matches!(b, b'.' | b':' | b'/'))
    }
);

/// Longest service name: container, network and file names are built from it.
const NAME_LIMIT: usize = 128;

fn word(value: &str, extra: &[u8]) -> bool {
    !value.is_empty()
        && value.len() <= NAME_LIMIT
        && value
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || extra.contains(&b))
}

fn hex(value: &str, length: usize) -> bool {
    value.len() == length && value.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

name!(
    /// A service name, by Kamal's rule `[a-z0-9_-]+`, case-insensitive, at most 128 characters.
    AppName,
    "a service name (letters, digits, - and _, at most 128 characters)",
    |value| word(value, b"-_")
);

name!(
    /// A destination such as `staging`: letters, digits, `-`, `_`, `.` inside, at most 128 characters.
    ///
    /// It becomes part of file and container names, so it starts with a letter or digit.
    Destination,
    "a destination (letters, digits, -, _ and ., starting with a letter or digit, at most 128 characters)",
    |value| word(value, b"-_.") && value.as_bytes()[0].is_ascii_alphanumeric()
);

name!(
    /// A role name such as `web`: the rule of [`Destination`].
    RoleName,
    "a role name (letters, digits, -, _ and ., starting with a letter or digit, at most 128 characters)",
    |value| word(value, b"-_.") && value.as_bytes()[0].is_ascii_alphanumeric()
);

name!(
    /// An accessory's name in the configuration, such as `db`: the rule of [`Destination`].
    AccessoryName,
    "an accessory's name (letters, digits, -, _ and ., starting with a letter or digit, at most 128 characters)",
    |value| word(value, b"-_.") && value.as_bytes()[0].is_ascii_alphanumeric()
);

name!(
    /// A container's name, by Docker's rule `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, at most 128 characters.
    ContainerName,
    "a container name (letters, digits, -, _ and ., starting with a letter or digit, 2 to 128 characters)",
    |value| word(value, b"-_.") && value.len() > 1 && value.as_bytes()[0].is_ascii_alphanumeric()
);

name!(
    /// A version, by the rule of an image tag (OCI distribution 1.1): `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
    Tag,
    "a version or tag (letters, digits, _, - and ., at most 128 characters, not starting with - or .)",
    |value| word(value, b"-_.") && !matches!(value.as_bytes()[0], b'-' | b'.')
);

name!(
    /// A content digest, `sha256:` and 64 lower-case hexadecimal digits.
    Digest,
    "a sha256 digest (sha256: and 64 lower-case hexadecimal digits)",
    |value| value.strip_prefix("sha256:").is_some_and(|rest| hex(rest, 64))
);

name!(
    /// A host's identity: its age X25519 recipient, `age1…` (bech32, 62 characters).
    HostId,
    "a host identity (an age recipient, age1 and 58 bech32 characters)",
    |value| {
        value.len() == 62
            && value
                .strip_prefix("age1")
                .is_some_and(|rest| rest.bytes().all(|b| b"qpzry9x8gf2tvdw0s3jn54khce6mua7l".contains(&b)))
    }
);

name!(
    /// An SSH key fingerprint as OpenSSH prints it: `SHA256:` and 43 base64 characters.
    Fingerprint,
    "an SSH key fingerprint (SHA256: and 43 base64 characters, as ssh-keygen -l prints it)",
    |value| {
        value.strip_prefix("SHA256:").is_some_and(|rest| {
            rest.len() == 43
                && rest
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/')
        })
    }
);

name!(
    /// 128 random bits as 32 lower-case hexadecimal digits; never used twice.
    Nonce,
    "a nonce (32 lower-case hexadecimal digits)",
    |value| hex(value, 32)
);

name!(
    /// The name of an environment variable or secret: not empty, without `=`, white space or control characters.
    EnvName,
    "the name of an environment variable (not empty, without =, spaces or control characters)",
    |value| {
        !value.is_empty()
            && value.len() <= 1024
            && !value
                .chars()
                .any(|c| c == '=' || c.is_whitespace() || c.is_control())
    }
);

name!(
    /// An image repository, by the rule of the OCI distribution specification 1.1 (`<name>`), at most 255 characters.
    Repository,
    "an image repository (lower-case path components joined by /, at most 255 characters)",
    |value| !value.is_empty() && value.len() <= 255 && value.split('/').all(component)
);

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, the path component of the OCI distribution specification.
fn component(value: &str) -> bool {
    let bytes = value.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    let mut rest = bytes;
    while let Some(start) = rest.iter().position(|b| !alphanumeric(b)) {
        let separator = &rest[start..];
        let length = separator.iter().position(alphanumeric).unwrap_or(separator.len());
        let separator = &separator[..length];
        let fits = matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-');
        if !fits {
            return false;
        }
        rest = &rest[start + length..];
    }
    true
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::from_hash(digest::digest(&digest::SHA256, bytes).as_ref())
    }

    /// The digest whose raw SHA-256 value is `hash` (32 bytes).
    pub(crate) fn from_hash(hash: &[u8]) -> Self {
        debug_assert_eq!(hash.len(), 32, "SHA-256 gives 32 bytes");
        Self(format!("sha256:{}", hex::encode(hash)))
    }

    /// The 64 hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }

    /// Enough of the digest to show to a person.
    pub fn short(&self) -> &str {
        &self.hex()[..12]
    }
}

impl Nonce {
    /// The nonce made of these 16 bytes, which the caller takes from a random source.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(hex::encode(bytes))
    }
}

/// The number of a release of one app and destination: 1, 2, 3 …, shown as `v42`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ReleaseNumber(pub u64);

impl fmt::Display for ReleaseNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

impl FromStr for ReleaseNumber {
    type Err = BadName;

    fn from_str(value: &str) -> Result<Self, BadName> {
        let digits = value.strip_prefix('v').unwrap_or(value);
        match digits.parse() {
            Ok(number) if number > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(Self(number)),
            _ => Err(BadName::new(value, "a release number (v42 or 42)")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        let long = "a".repeat(129);
        for (good, bad) in [
            (AppName::parse("My_app-2").is_ok(), AppName::parse("a/b").is_ok()),
            (AppName::parse("0").is_ok(), AppName::parse(&long).is_ok()),
            (AppName::parse("-x").is_ok(), AppName::parse("").is_ok()),
            (
                Destination::parse("eu.west").is_ok(),
                Destination::parse("../etc").is_ok(),
            ),
            (Tag::parse("_x.1").is_ok(), Tag::parse(".hidden").is_ok()),
            (EnvName::parse("RAILS_ENV").is_ok(), EnvName::parse("A=B").is_ok()),
            (
                "v7".parse::<ReleaseNumber>() == Ok(ReleaseNumber(7)),
                "0".parse::<ReleaseNumber>().is_ok(),
            ),
            (
                "7".parse::<ReleaseNumber>().is_ok(),
                "+7".parse::<ReleaseNumber>().is_ok(),
            ),
            (
                Nonce::parse(&"0f".repeat(16)).is_ok(),
                Nonce::parse(&"0F".repeat(16)).is_ok(),
            ),
        ] {
            assert!(good && !bad);
        }
    }

    #[test]
    fn repositories_follow_the_distribution_specification() {
        for good in ["app", "org/app", "a/b/c", "a--b", "a__b", "a.b_c-d", "0/1"] {
            assert!(Repository::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a___b", "a..b", "-a", "a-", "a/../b", "a:b", "a@b",
        ] {
            assert!(Repository::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digest_is_the_one_sha256sum_prints() {
        assert_eq!(
            Digest::of(b"abc").as_str(),
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert!(Digest::parse("sha256:BA").is_err());
    }

    #[test]
    fn a_bad_name_is_quoted_without_control_characters() {
        let error = AppName::parse("a\u{1b}[31mb").expect_err("refused");
        assert!(!error.to_string().contains('\u{1b}'));
    }
}
