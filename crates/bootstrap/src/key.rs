//! OpenSSH public keys, as far as enrolling them needs: parsed once, printed as given.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use serde::{Deserialize, Serialize};

/// Algorithms that sign changes here and that sshd accepts by default (OpenSSH 8.9 and newer).
const ALGORITHMS: [&str; 7] = [
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
];

/// One public key line: `ssh-ed25519 AAAA… comment`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey {
    algorithm: String,
    blob: Vec<u8>,
    comment: String,
}

/// Why a text is not a public key line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Empty, several lines, or one word.
    #[error(
        "{0:?} is not an OpenSSH public key: expected `ssh-ed25519 AAAA… name` on one line (see `cat ~/.ssh/id_ed25519.pub`)"
    )]
    Shape(String),
    /// Somebody pasted the wrong half.
    #[error("this is a private key; keep it secret, and give the line of the .pub file beside it")]
    Private,
    /// An algorithm that is unknown or too weak.
    #[error("keys of type {0:?} are not accepted; make one with `ssh-keygen -t ed25519`")]
    Algorithm(String),
    /// The middle word is not what it should be.
    #[error("the key of type {algorithm} is damaged: {why}; copy the whole line again")]
    Damaged {
        /// As the line says.
        algorithm: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl PublicKey {
    /// The line without options: algorithm, base64, comment.
    pub fn line(&self) -> String {
        let gap = if self.comment.is_empty() { "" } else { " " };
        format!("{} {}{gap}{}", self.algorithm, self.base64(), self.comment)
    }

    /// The key itself in base64, by which lines are compared.
    pub fn base64(&self) -> String {
        STANDARD.encode(&self.blob)
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> String {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &self.blob);
        format!("SHA256:{}", STANDARD_NO_PAD.encode(digest))
    }

    /// Whose key it is; may be empty.
    pub fn comment(&self) -> &str {
        &self.comment
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let text = text.trim();
        if text.contains("PRIVATE KEY") {
            return Err(KeyError::Private);
        }
        let shown: String = text.chars().take(60).collect();
        if text.contains(char::is_control) {
            return Err(KeyError::Shape(shown));
        }
        let mut words = text.splitn(3, ' ');
        let (Some(algorithm), Some(encoded)) = (words.next(), words.next()) else {
            return Err(KeyError::Shape(shown));
        };
        if !ALGORITHMS.contains(&algorithm) {
            return Err(
                if algorithm.contains(['=', ',', '"']) || algorithm == "restrict" {
                    KeyError::Shape(shown)
                } else {
                    KeyError::Algorithm(algorithm.to_owned())
                },
            );
        }
        let damaged = |why| KeyError::Damaged {
            algorithm: algorithm.to_owned(),
            why,
        };
        let blob = STANDARD
            .decode(encoded)
            .map_err(|_| damaged("its second word is not base64"))?;
        // RFC 4253 §6.6: the blob begins with the algorithm's name as a length-prefixed string.
        let named = blob
            .split_first_chunk::<4>()
            .and_then(|(length, rest)| rest.get(..u32::from_be_bytes(*length) as usize));
        if named != Some(algorithm.as_bytes()) {
            return Err(damaged("its contents are of another type"));
        }
        if blob.len() < algorithm.len() + 4 + 4 + 32 {
            return Err(damaged("it is cut short"));
        }
        Ok(Self {
            algorithm: algorithm.to_owned(),
            blob,
            comment: words.next().unwrap_or_default().trim().to_owned(),
        })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.line())
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// What a key may do; the names are those of the agent's key ring.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// Everything, keys included.
    Admin,
    /// Releases and rollbacks of these apps; `*` is every app.
    Deploy {
        /// App names or patterns.
        apps: Vec<String>,
    },
    /// Stopping, starting and looking into these apps.
    Operate {
        /// App names or patterns.
        apps: Vec<String>,
    },
    /// Seeing the state of these apps.
    Read {
        /// App names or patterns.
        apps: Vec<String>,
    },
}

/// One entry of `/etc/appliance/keys.d/bootstrap.json`, which the agent imports when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEntry {
    /// The public key line.
    pub key: PublicKey,
    /// `SHA256:…`.
    pub fingerprint: String,
    /// What it may do.
    pub permissions: Vec<Permission>,
    /// Whose it is.
    pub comment: String,
}

impl KeyEntry {
    /// An entry for a key of the first hour.
    pub fn new(key: &PublicKey, permission: Permission) -> Self {
        Self {
            key: key.clone(),
            fingerprint: key.fingerprint(),
            permissions: vec![permission],
            comment: key.comment().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const LINE: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6wrqCgWWQfTaIv1CZo6bOw1tQ8kEBdNqUe2Ii3cMf ann@laptop";

    #[test]
    fn a_line_survives_parsing_and_has_the_fingerprint_ssh_keygen_prints() {
        let key: PublicKey = LINE.parse().expect("parses");
        assert_eq!(key.line(), LINE);
        assert_eq!(key.comment(), "ann@laptop");
        assert_eq!(key.fingerprint().len(), "SHA256:".len() + 43);
    }

    #[test]
    fn what_is_not_a_public_key_is_refused_with_its_reason() {
        for (given, expect) in [
            ("", "is not an OpenSSH public key"),
            ("ssh-ed25519", "is not an OpenSSH public key"),
            ("-----BEGIN OPENSSH PRIVATE KEY-----", "private key"),
            ("command=\"sh\" ssh-ed25519 AAAA", "is not an OpenSSH public key"),
            ("ssh-dss AAAAB3NzaC1kc3M= old", "not accepted"),
            ("ssh-ed25519 not-base64 x", "not base64"),
            ("ssh-ed25519 AAAAB3NzaC1yc2E= x", "another type"),
            ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJk6 x", "cut short"),
            (
                "ssh-ed25519 AAAA x\nssh-ed25519 AAAA y",
                "is not an OpenSSH public key",
            ),
        ] {
            let error = given.parse::<PublicKey>().expect_err(given).to_string();
            assert!(error.contains(expect), "{given}: {error}");
        }
    }
}
