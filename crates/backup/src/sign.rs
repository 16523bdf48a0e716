//! Ed25519 signatures on manifests and on the results of drills.
//!
//! Encryption alone says nothing about the author: everyone who knows a recipient can write a file for it,
//! and a planted dump would run as superuser when it is restored.
//!
//! A signed document is two lines: JSON, and the signature over the exact bytes of the first line.
//! `head -n 1 manifest.json | jq` shows it.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest document that is read, bytes: a million tables fit.
pub const LIMIT: usize = 256 << 20;

/// Why a document is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError {
    /// Not of our form.
    #[error("it is not a signed document of this program")]
    Form,
    /// Signed by somebody else.
    #[error(
        "it is signed by {found}, not by a key that is trusted here; if that is a host which this one replaces: appliance \
         restore with --trust {found}, or trust: [{found}] beside the backup's schedule"
    )]
    Stranger {
        /// The key it names.
        found: PublicKey,
    },
    /// Altered.
    #[error("its signature does not fit its content: it was altered")]
    Altered,
    /// The content is of another form, perhaps of a newer version.
    #[error("its content is not understood by this version")]
    Content(#[source] serde_json::Error),
}

/// The key that signs on one host.
pub struct Signer {
    pair: Ed25519KeyPair,
}

/// The key that checks, as 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

#[derive(Serialize, Deserialize)]
struct Seal {
    key: PublicKey,
    ed25519: String,
}

impl Signer {
    /// The key pair of a secret seed.
    ///
    /// # Panics
    /// Never: every seed of 32 bytes is a key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self {
            pair: Ed25519KeyPair::from_seed_unchecked(seed).expect("every seed of 32 bytes is a key"),
        }
    }

    /// The public half.
    ///
    /// # Panics
    /// Never: the key has 32 bytes.
    pub fn public(&self) -> PublicKey {
        PublicKey(
            self.pair
                .public_key()
                .as_ref()
                .try_into()
                .expect("an Ed25519 key has 32 bytes"),
        )
    }

    /// The document as it is stored.
    ///
    /// # Errors
    /// When it cannot be written as JSON.
    pub fn seal<T: Serialize>(&self, content: &T) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec(content)?;
        let signature = self.pair.sign(&bytes);
        bytes.push(b'\n');
        let seal = Seal {
            key: self.public(),
            ed25519: hex::encode(signature.as_ref()),
        };
        bytes.extend(serde_json::to_vec(&seal)?);
        bytes.push(b'\n');
        Ok(bytes)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.public())
    }
}

/// Checks a stored document against the keys that are trusted and reads it.
///
/// # Errors
/// When it was altered, is of another form, or is signed by a key that is not among `trusted`.
pub fn open<T: DeserializeOwned>(bytes: &[u8], trusted: &[PublicKey]) -> Result<T, SignatureError> {
    open_signed(bytes, trusted).map(|(content, _)| content)
}

/// Like [`open`], and says which of the keys signed it.
///
/// # Errors
/// As [`open`].
pub fn open_signed<T: DeserializeOwned>(
    bytes: &[u8],
    trusted: &[PublicKey],
) -> Result<(T, PublicKey), SignatureError> {
    if bytes.len() > LIMIT {
        return Err(SignatureError::Form);
    }
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(content), Some(seal)) = (lines.next(), lines.next()) else {
        return Err(SignatureError::Form);
    };
    let seal: Seal = serde_json::from_slice(seal).map_err(|_| SignatureError::Form)?;
    let signature = hex::decode(&seal.ed25519).map_err(|_| SignatureError::Form)?;
    UnparsedPublicKey::new(&ED25519, &seal.key.0)
        .verify(content, &signature)
        .map_err(|_| SignatureError::Altered)?;
    // Only now: a key that is merely named proves nothing, and what is altered is not another host's.
    if !trusted.contains(&seal.key) {
        return Err(SignatureError::Stranger { found: seal.key });
    }
    match serde_json::from_slice(content) {
        Ok(content) => Ok((content, seal.key)),
        Err(error) => Err(SignatureError::Content(error)),
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        let mut key = [0; 32];
        hex::decode_to_slice(&text, &mut key)
            .map(|()| Self(key))
            .map_err(|_| format!("{text:?} is not a key of 64 hexadecimal digits"))
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_signed_comes_back_and_nothing_else_does() {
        let (ours, theirs) = (Signer::from_seed(&[1; 32]), Signer::from_seed(&[2; 32]));
        let document = ours.seal(&vec!["a", "b"]).expect("sealed");
        let trusted = [ours.public()];
        assert_eq!(
            open::<Vec<String>>(&document, &trusted).expect("opens"),
            ["a", "b"]
        );
        for at in 0..document.len() - 1 {
            let mut altered = document.clone();
            altered[at] ^= 1;
            assert!(open::<Vec<String>>(&altered, &trusted).is_err(), "byte {at}");
        }
        assert!(matches!(
            open::<Vec<String>>(&theirs.seal(&vec!["a"]).expect("sealed"), &trusted),
            Err(SignatureError::Stranger { .. })
        ));
        assert!(open::<Vec<String>>(b"", &trusted).is_err());
        let (_, by) = open_signed::<Vec<String>>(&document, &trusted).expect("opens");
        assert_eq!(by, ours.public());
        let named = format!("{{}}\n{{\"key\":\"{}\",\"ed25519\":\"\"}}\n", theirs.public());
        assert!(
            matches!(
                open::<Vec<String>>(named.as_bytes(), &trusted),
                Err(SignatureError::Altered)
            ),
            "a key that is only named"
        );
    }
}
