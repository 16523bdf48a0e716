//! Logging in: the agent's keys and key files, in OpenSSH's order, until the host takes one.

use std::path::PathBuf;
use std::sync::Arc;

use russh::client::{AuthResult, Handle};
use russh::keys::agent::AgentIdentity;
use russh::keys::{HashAlg, PrivateKeyWithHashAlg, PublicKey};

use super::session::Checker;
use super::{Options, SshError};
use crate::sign::{self, SignError};

/// The names `ssh` tries below `~/.ssh`, of the types we can use.
const USUAL: [&str; 4] = ["id_ed25519", "id_ecdsa", "id_ed25519_sk", "id_ecdsa_sk"];
/// sshd ends the connection after six tries (`MaxAuthTries`); the last is not worth a disconnect.
const MAX_TRIES: usize = 6;

enum Offer {
    Agent(PublicKey),
    File(PathBuf, Option<PublicKey>),
}

impl Offer {
    fn public(&self) -> Option<&PublicKey> {
        match self {
            Offer::Agent(key) => Some(key),
            Offer::File(_, key) => key.as_ref(),
        }
    }
}

/// Logs in.
pub(super) async fn login(
    handle: &mut Handle<Checker>,
    user: &str,
    host: &str,
    options: &Options,
) -> Result<(), SshError> {
    let broken = |source| SshError::Login {
        host: host.to_owned(),
        source,
    };
    let mut unusable: Option<SignError> = None;
    let mut agent = None;
    let mut held = Vec::new();
    if let Some(socket) = &options.agent {
        match sign::connect_agent(socket).await {
            Ok(mut client) => {
                held = client.request_identities().await.unwrap_or_default();
                agent = Some(client);
            }
            Err(error) => unusable = Some(error),
        }
    }

    let (mut tried, mut skipped) = (Vec::new(), Vec::new());
    for offer in offers(&held, options) {
        if tried.len() >= MAX_TRIES {
            break;
        }
        let outcome = match (&offer, agent.as_mut()) {
            (Offer::Agent(key), Some(agent)) => {
                tried.push(format!("{} (agent)", key.fingerprint(HashAlg::Sha256)));
                // The hash only matters for RSA keys, where SHA-1 is long refused.
                let hash = key.algorithm().is_rsa().then_some(HashAlg::Sha512);
                match handle
                    .authenticate_publickey_with(user, key.clone(), hash, agent)
                    .await
                {
                    Ok(outcome) => outcome,
                    Err(russh::AgentAuthError::Key(source)) => {
                        let fingerprint =
                            crate::change::Fingerprint::parse(&key.fingerprint(HashAlg::Sha256).to_string());
                        if let Ok(fingerprint) = fingerprint {
                            unusable = Some(SignError::AgentSign { fingerprint, source });
                        }
                        continue;
                    }
                    Err(russh::AgentAuthError::Send(_)) => return Err(broken(russh::Error::SendError)),
                }
            }
            (Offer::File(path, _), _) => {
                let ask = Arc::clone(&options.passphrase);
                let loaded = sign::load_private_key(path, &mut |path| ask(path))
                    .and_then(|key| sign::signs_by_itself(&key, path).map(|()| key));
                let key = match loaded {
                    Ok(key) => key,
                    Err(error) => {
                        skipped.push(format!("not usable: {error}"));
                        unusable = Some(error);
                        continue;
                    }
                };
                tried.push(format!(
                    "{} ({})",
                    key.fingerprint(HashAlg::Sha256),
                    path.display()
                ));
                let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
                handle.authenticate_publickey(user, key).await.map_err(broken)?
            }
            (Offer::Agent(_), None) => continue,
        };
        match outcome {
            AuthResult::Success => return Ok(()),
            AuthResult::Failure { .. } if handle.is_closed() => break,
            AuthResult::Failure { .. } => {}
        }
    }
    if tried.is_empty() {
        return Err(SshError::NoKeys {
            host: host.to_owned(),
            source: unusable.map(Box::new),
        });
    }
    tried.append(&mut skipped);
    Err(SshError::AuthRefused {
        user: user.to_owned(),
        host: host.to_owned(),
        tried,
    })
}

/// What to offer: named identities first (through the agent where it holds them), then the agent's other keys,
/// then the usual files.
fn offers(held: &[AgentIdentity], options: &Options) -> Vec<Offer> {
    let mut agent: Vec<PublicKey> = held
        .iter()
        .filter_map(|identity| match identity {
            AgentIdentity::PublicKey { key, .. } => Some(key.clone()),
            AgentIdentity::Certificate { .. } => None,
        })
        .collect();
    let mut files = options.identities.clone();
    if files.is_empty()
        && let Some(home) = &options.home
    {
        files = USUAL
            .iter()
            .map(|name| home.join(".ssh").join(name))
            .filter(|path| path.exists())
            .collect();
    }
    let named = !options.identities.is_empty();
    let (mut through_agent, mut from_file) = (Vec::new(), Vec::new());
    for path in files {
        let public = public_half(&path);
        let place = agent
            .iter()
            .position(|key| public.as_ref().is_some_and(|p| p.key_data() == key.key_data()));
        match place {
            Some(place) => through_agent.push(Offer::Agent(agent.remove(place))),
            None => from_file.push(Offer::File(path, public)),
        }
    }
    let others: Vec<Offer> = if options.identities_only {
        Vec::new()
    } else {
        agent.into_iter().map(Offer::Agent).collect()
    };
    let mut offers = through_agent;
    if named {
        offers.extend(from_file);
        offers.extend(others);
    } else {
        offers.extend(others);
        offers.extend(from_file);
    }
    let mut seen = Vec::new();
    offers.retain(|offer| match offer.public() {
        Some(key) if seen.contains(key.key_data()) => false,
        Some(key) => {
            seen.push(key.key_data().clone());
            true
        }
        None => true,
    });
    offers
}

/// The public half of a key file: `FILE.pub`, the file itself if it is one, or the clear part of the private file.
fn public_half(path: &std::path::Path) -> Option<PublicKey> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".pub");
    russh::keys::load_public_key(&beside)
        .or_else(|_| russh::keys::load_public_key(path))
        .ok()
        .or_else(|| {
            let text = std::fs::read_to_string(path).ok()?;
            russh::keys::PrivateKey::from_openssh(text)
                .ok()
                .map(|key| key.public_key().clone())
        })
}
