//! SSH signatures (SSHSIG) over the bytes of a change.
//!
//! What is made here, `ssh-keygen -Y verify -n appliance` accepts, and the other way round.
//! Format: `PROTOCOL.sshsig` of OpenSSH.

use std::fmt;
use std::path::{Path, PathBuf};

use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::ssh_key::{self, Algorithm, HashAlg, LineEnding, PrivateKey, SshSig};
use tokio::net::UnixStream;

use crate::change::{Change, ChangeError, Envelope, Fingerprint};

/// The SSHSIG namespace; a signature for another purpose never counts here.
pub const NAMESPACE: &str = "appliance";

/// Longest public key line in bytes.
const KEY_LINE_LIMIT: usize = 4096;

/// Why something could not be signed or verified.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A key file cannot be read.
    #[error("cannot read the key {path}")]
    ReadKey {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A key file or line holds something else.
    #[error("{what} is not an OpenSSH key")]
    ParseKey {
        /// The file or line.
        what: String,
        /// Why.
        #[source]
        source: russh::keys::Error,
    },
    /// Several lines, or characters that no key has.
    #[error("a public key is one line of printable characters, as in a .pub file")]
    NotOneLine,
    /// A key of a kind that cannot be used here.
    #[error(
        "{what} is a key of type {algorithm}, which cannot sign changes; make one with: ssh-keygen -t ed25519"
    )]
    KeyType {
        /// The file or key.
        what: String,
        /// Its type.
        algorithm: String,
    },
    /// The file half of a hardware key.
    #[error("{path} belongs to a hardware key, which only an agent can use; load it: ssh-add {path}")]
    HardwareKey {
        /// The file.
        path: PathBuf,
    },
    /// An encrypted key and no passphrase.
    #[error("the key {path} is encrypted and no passphrase was given; load it into an agent: ssh-add {path}")]
    NeedsPassphrase {
        /// The file.
        path: PathBuf,
    },
    /// A wrong passphrase.
    #[error("the passphrase does not open the key {path}")]
    WrongPassphrase {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: russh::keys::Error,
    },
    /// The agent's socket does not answer.
    #[error("the ssh-agent on {path} does not answer")]
    AgentConnect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: russh::keys::Error,
    },
    /// The agent refused or answered nonsense.
    #[error("the ssh-agent did not sign with {fingerprint}; hardware keys may wait for a touch")]
    AgentSign {
        /// The key.
        fingerprint: Fingerprint,
        /// Why.
        #[source]
        source: russh::keys::Error,
    },
    /// The agent lists no such key.
    #[error("the ssh-agent holds no key {wanted}; it has: {held}")]
    AgentLacksKey {
        /// The key.
        wanted: Fingerprint,
        /// What it holds.
        held: String,
    },
    /// The key did not sign.
    #[error("cannot sign with {fingerprint}")]
    Sign {
        /// The key.
        fingerprint: Fingerprint,
        /// Why.
        #[source]
        source: ssh_key::Error,
    },
    /// The text is not an SSH signature.
    #[error("this is not an SSH signature")]
    ParseSignature(#[source] ssh_key::Error),
    /// The signature was made for something else.
    #[error("the signature is for the namespace {found:?}, not for {NAMESPACE:?}")]
    Namespace {
        /// What it is for.
        found: String,
    },
    /// A hardware key signed without a touch.
    #[error("the hardware key signed without being touched; only signatures made with a touch count")]
    NotTouched,
    /// The signature does not fit.
    #[error("the signature does not fit the key and the bytes")]
    Verify(#[source] ssh_key::Error),
    /// The change itself cannot be signed.
    #[error("the change cannot be signed")]
    Change(#[source] ChangeError),
}

/// A public key that can verify changes: Ed25519, ECDSA, or either of them in a hardware key.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(ssh_key::PublicKey);

impl PublicKey {
    /// Reads an OpenSSH public key line, `ssh-ed25519 AAAA… comment`.
    ///
    /// # Errors
    /// When the line is something else, or a key of a type that cannot be used here (RSA, DSA).
    pub fn parse(line: &str) -> Result<Self, SignError> {
        let line = line.trim();
        // The line is written into other files again, so it must stay one line.
        if line.chars().any(char::is_control) || line.len() > KEY_LINE_LIMIT {
            return Err(SignError::NotOneLine);
        }
        let what = || format!("{:?}", line.chars().take(60).collect::<String>());
        let key = ssh_key::PublicKey::from_openssh(line).map_err(|source| SignError::ParseKey {
            what: what(),
            source: source.into(),
        })?;
        Self::usable(key, what)
    }

    fn usable(key: ssh_key::PublicKey, what: impl Fn() -> String) -> Result<Self, SignError> {
        match key.algorithm() {
            Algorithm::Ed25519
            | Algorithm::Ecdsa { .. }
            | Algorithm::SkEd25519
            | Algorithm::SkEcdsaSha2NistP256 => Ok(Self(key)),
            other => Err(SignError::KeyType {
                what: what(),
                algorithm: other.to_string(),
            }),
        }
    }

    /// `SHA256:…`, as `ssh-keygen -l` prints it.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(self.0.key_data())
    }

    /// The comment of the line, often `user@machine`.
    pub fn comment(&self) -> String {
        self.0.comment().as_str_lossy().to_owned()
    }

    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, …
    pub fn algorithm(&self) -> String {
        self.0.algorithm().to_string()
    }
}

fn fingerprint(key: &ssh_key::public::KeyData) -> Fingerprint {
    Fingerprint::parse(&key.fingerprint(HashAlg::Sha256).to_string())
        .expect("SHA-256 fingerprints are printed in the one form that Fingerprint takes")
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.to_string())
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm(), self.fingerprint())
    }
}

/// A parsed SSHSIG.
#[derive(Debug, Clone)]
pub struct Signature(SshSig);

impl Signature {
    /// Reads the PEM form.
    ///
    /// # Errors
    /// When the text is something else.
    pub fn parse(pem: &str) -> Result<Self, SignError> {
        // ssh-keygen ends its file with a newline; a JSON field often comes without.
        SshSig::from_pem(pem.trim_end())
            .map(Self)
            .map_err(SignError::ParseSignature)
    }

    /// Whose signature it claims to be.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(self.0.public_key())
    }

    /// Checks that `key` signed exactly these bytes for our namespace, with a touch if it is a hardware key.
    ///
    /// # Errors
    /// When it did not.
    pub fn verify(&self, key: &PublicKey, payload: &[u8]) -> Result<(), SignError> {
        self.verify_as(NAMESPACE, key, payload)
    }

    /// The same for another namespace, such as that of released programs.
    ///
    /// # Errors
    /// When it did not.
    pub fn verify_as(&self, namespace: &str, key: &PublicKey, payload: &[u8]) -> Result<(), SignError> {
        if self.0.namespace() != namespace {
            return Err(SignError::Namespace {
                found: self.0.namespace().chars().take(60).collect(),
            });
        }
        key.0
            .verify(namespace, payload, &self.0)
            .map_err(SignError::Verify)?;
        if matches!(
            self.0.algorithm(),
            Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256
        ) {
            // The blob ends in one byte of flags and a four byte counter (PROTOCOL.u2f); bit 0 is user presence.
            let blob = self.0.signature_bytes();
            let flags = blob
                .len()
                .checked_sub(5)
                .and_then(|at| blob.get(at))
                .copied()
                .unwrap_or(0);
            if flags & 1 == 0 {
                return Err(SignError::NotTouched);
            }
        }
        Ok(())
    }
}

/// Something that signs changes.
#[derive(Debug, Clone)]
pub struct Signer {
    public: PublicKey,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    File(Box<PrivateKey>),
    Agent(PathBuf),
}

impl Signer {
    /// A private key file; `passphrase` is asked for an encrypted one and may decline with `None`.
    ///
    /// # Errors
    /// When the file cannot be read or opened, or holds a key of a kind that cannot sign here.
    pub fn from_file(
        path: &Path,
        passphrase: &mut dyn FnMut(&Path) -> Option<String>,
    ) -> Result<Self, SignError> {
        let private = load_private_key(path, passphrase)?;
        let public = PublicKey::usable(private.public_key().clone(), || path.display().to_string())?;
        signs_by_itself(&private, path)?;
        Ok(Self {
            public,
            source: Source::File(Box::new(private)),
        })
    }

    /// A key that the ssh-agent on `socket` holds.
    ///
    /// # Errors
    /// When the agent does not answer or holds no such key.
    pub async fn from_agent(socket: &Path, wanted: &Fingerprint) -> Result<Self, SignError> {
        let keys = agent_keys(socket).await?;
        let held: Vec<String> = keys.iter().map(|key| key.fingerprint().to_string()).collect();
        keys.into_iter()
            .find(|key| key.fingerprint() == *wanted)
            .map(|public| Self {
                public,
                source: Source::Agent(socket.to_owned()),
            })
            .ok_or_else(|| SignError::AgentLacksKey {
                wanted: wanted.clone(),
                held: if held.is_empty() {
                    "none".to_owned()
                } else {
                    held.join(", ")
                },
            })
    }

    /// The key that signs.
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Signs these bytes; the result is an SSHSIG in PEM form.
    ///
    /// # Errors
    /// When the key or the agent refuses.
    pub async fn sign(&self, payload: &[u8]) -> Result<String, SignError> {
        let fingerprint = self.public.fingerprint();
        let failed = |source| SignError::Sign {
            fingerprint: fingerprint.clone(),
            source,
        };
        let signature = match &self.source {
            Source::File(private) => private
                .sign(NAMESPACE, HashAlg::Sha512, payload)
                .map_err(failed)?,
            Source::Agent(socket) => {
                let data = SshSig::signed_data(NAMESPACE, HashAlg::Sha512, payload).map_err(failed)?;
                let mut agent = connect_agent(socket).await?;
                let blob = agent
                    .sign_request_signature(&self.public.0, None, &data)
                    .await
                    .map_err(|source| SignError::AgentSign {
                        fingerprint: fingerprint.clone(),
                        source,
                    })?;
                SshSig::new(self.public.0.key_data().clone(), NAMESPACE, HashAlg::Sha512, blob)
                    .map_err(failed)?
            }
        };
        signature.to_pem(LineEnding::LF).map_err(failed)
    }

    /// Signs a change and puts both into an envelope.
    ///
    /// # Errors
    /// When the change contradicts itself, or the key or the agent refuses.
    pub async fn seal(&self, change: &Change) -> Result<Envelope, SignError> {
        let payload = change.to_payload().map_err(SignError::Change)?;
        let signature = self.sign(&payload).await?;
        Ok(Envelope::new(&payload, signature))
    }
}

/// Refuses the file half of a hardware key, which only an agent can sign with.
pub(crate) fn signs_by_itself(private: &PrivateKey, path: &Path) -> Result<(), SignError> {
    match private.algorithm() {
        Algorithm::SkEd25519 | Algorithm::SkEcdsaSha2NistP256 => Err(SignError::HardwareKey {
            path: path.to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Reads a private key in any form OpenSSH writes.
pub(crate) fn load_private_key(
    path: &Path,
    passphrase: &mut dyn FnMut(&Path) -> Option<String>,
) -> Result<PrivateKey, SignError> {
    use russh::keys::Error as KeyError;

    let text = std::fs::read_to_string(path).map_err(|source| SignError::ReadKey {
        path: path.to_owned(),
        source,
    })?;
    let parse_error = |source| SignError::ParseKey {
        what: path.display().to_string(),
        source,
    };
    match russh::keys::decode_secret_key(&text, None) {
        Ok(key) => Ok(key),
        Err(KeyError::KeyIsEncrypted) => {
            let phrase = passphrase(path).ok_or_else(|| SignError::NeedsPassphrase {
                path: path.to_owned(),
            })?;
            russh::keys::decode_secret_key(&text, Some(&phrase)).map_err(|source| {
                SignError::WrongPassphrase {
                    path: path.to_owned(),
                    source,
                }
            })
        }
        Err(source) => match public_algorithm(&text) {
            Some(Algorithm::Rsa { .. }) | Some(Algorithm::Dsa) => Err(SignError::KeyType {
                what: path.display().to_string(),
                algorithm: "RSA or DSA".to_owned(),
            }),
            _ => Err(parse_error(source)),
        },
    }
}

/// The type of a private key that cannot be decoded, from its unencrypted public part.
fn public_algorithm(text: &str) -> Option<Algorithm> {
    if text.contains("BEGIN RSA PRIVATE KEY") {
        return Some(Algorithm::Rsa { hash: None });
    }
    ssh_key::PrivateKey::from_openssh(text)
        .ok()
        .map(|key| key.algorithm())
}

/// The usable keys that the ssh-agent on `socket` holds; keys of other types are left out.
///
/// # Errors
/// When the agent does not answer.
pub async fn agent_keys(socket: &Path) -> Result<Vec<PublicKey>, SignError> {
    let mut agent = connect_agent(socket).await?;
    let identities = agent
        .request_identities()
        .await
        .map_err(|source| SignError::AgentConnect {
            path: socket.to_owned(),
            source,
        })?;
    Ok(identities
        .into_iter()
        .filter_map(|identity| match identity {
            AgentIdentity::PublicKey { mut key, comment } => {
                key.set_comment(comment);
                PublicKey::usable(key, String::new).ok()
            }
            AgentIdentity::Certificate { .. } => None,
        })
        .collect())
}

pub(crate) async fn connect_agent(socket: &Path) -> Result<AgentClient<UnixStream>, SignError> {
    AgentClient::connect_uds(socket)
        .await
        .map_err(|source| SignError::AgentConnect {
            path: socket.to_owned(),
            source,
        })
}

#[cfg(test)]
pub(crate) mod tests;
