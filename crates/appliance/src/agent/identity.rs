//! Who this host is: an age X25519 key pair.
//!
//! The public half is the host's identity in signed changes, and what a release's secrets are sealed to;
//! the private half never leaves `/etc/appliance/host.key` (0600).

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr as _;

use age::x25519;

/// The host's key pair.
pub struct Identity {
    identity: x25519::Identity,
    recipient: String,
}

/// Why the identity or something sealed to it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The key file is missing or unreadable.
    #[error("cannot read the host's identity {path}; run `appliance bootstrap` on this host")]
    Read {
        /// The key file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The key file holds something else.
    #[error("{path} does not hold an age identity ({why}); restore it from the backup of this host")]
    Parse {
        /// The key file.
        path: String,
        /// What age says.
        why: &'static str,
    },
    /// The sealed secrets were made for another host, or altered.
    #[error("the release's secrets cannot be opened with this host's key; push the release again")]
    Unseal(#[source] age::DecryptError),
    /// What came out is not a map of names to values.
    #[error("the release's secrets are not a map of names to texts; push the release again")]
    Content(#[source] serde_json::Error),
    /// The text is not base64.
    #[error("the release's secrets are not base64; push the release again")]
    Encoding,
}

impl Identity {
    /// Reads the key file that bootstrap made.
    ///
    /// # Errors
    /// When it is missing, unreadable or not an age identity.
    pub fn load(path: &Path) -> Result<Self, IdentityError> {
        let text = fs_err::read_to_string(path).map_err(|source| IdentityError::Read {
            path: path.display().to_string(),
            source,
        })?;
        let line = text
            .lines()
            .map(str::trim)
            .find(|line| !line.is_empty() && !line.starts_with('#'))
            .unwrap_or_default();
        let identity = x25519::Identity::from_str(line).map_err(|why| IdentityError::Parse {
            path: path.display().to_string(),
            why,
        })?;
        let recipient = identity.to_public().to_string();
        Ok(Self { identity, recipient })
    }

    /// The public half, `age1…`: the host's name in signed changes.
    pub fn recipient(&self) -> &str {
        &self.recipient
    }

    /// The private half, for backups: they are encrypted to this host, too.
    pub fn identity(&self) -> &x25519::Identity {
        &self.identity
    }

    /// A secret for one purpose, always the same on this host (HKDF-SHA256, RFC 5869).
    pub fn derive(&self, purpose: &str) -> [u8; 32] {
        use age::secrecy::ExposeSecret as _;
        let secret = self.identity.to_string();
        let salt = aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, b"appliance host key");
        let mut derived = [0; 32];
        salt.extract(secret.expose_secret().as_bytes())
            .expand(&[purpose.as_bytes()], aws_lc_rs::hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut derived))
            .expect("32 bytes are less than the longest output of HKDF-SHA256");
        derived
    }

    /// Opens what [`seal`] closed.
    ///
    /// # Errors
    /// When it was sealed to another key, was altered, or does not hold names and values.
    pub fn unseal(&self, sealed: &[u8]) -> Result<BTreeMap<String, String>, IdentityError> {
        let plain = age::decrypt(&self.identity, sealed).map_err(IdentityError::Unseal)?;
        serde_json::from_slice(&plain).map_err(IdentityError::Content)
    }
}

/// Seals secrets to a host, on the developer's machine.
///
/// # Errors
/// When `recipient` is not an age X25519 recipient, or encryption fails.
pub fn seal(recipient: &str, secrets: &BTreeMap<String, String>) -> anyhow::Result<Vec<u8>> {
    let recipient = x25519::Recipient::from_str(recipient)
        .map_err(|why| anyhow::anyhow!("the host's identity {recipient:?} is not an age recipient: {why}"))?;
    let plain = serde_json::to_vec(secrets)?;
    Ok(age::encrypt(&recipient, &plain)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use age::secrecy::ExposeSecret as _;

    fn host() -> (tempfile::TempDir, Identity) {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("host.key");
        let key = x25519::Identity::generate();
        fs_err::write(
            &path,
            format!("# made by a test\n{}\n", key.to_string().expose_secret()),
        )
        .expect("key");
        let identity = Identity::load(&path).expect("loads");
        (directory, identity)
    }

    #[test]
    fn secrets_open_on_their_host_byte_for_byte_and_on_no_other() {
        let (_a, here) = host();
        let (_b, elsewhere) = host();
        let secrets = BTreeMap::from([
            ("PLAIN".to_owned(), "value".to_owned()),
            ("ODD".to_owned(), "pa$$ \\n \"é\"\nsecond line\t".to_owned()),
        ]);
        let sealed = seal(here.recipient(), &secrets).expect("sealed");
        assert_eq!(here.unseal(&sealed).expect("opens"), secrets);
        assert!(matches!(elsewhere.unseal(&sealed), Err(IdentityError::Unseal(_))));
        let mut altered = sealed.clone();
        if let Some(last) = altered.last_mut() {
            *last ^= 1;
        }
        assert!(here.unseal(&altered).is_err());
    }
}
