//! Who may change what: the check that every change passes, in one fixed order.
//!
//! ```text
//! readable → known key → signature → permission → this host → time window → nonce → expected release
//!     │          │           │            │            │           │           │            │
//!     └──────────┴───────────┴────────────┴────────────┴───────────┴───────────┴────────────┴─► Refusal
//! ```
//!
//! The check is pure: the clock, the known keys, the spent nonces and the current releases are arguments.
//! The agent holds one lock over [`check`], [`NonceLedger::spend`] and the audit record, so that two copies of
//! one change cannot both pass.

mod keyring;
mod nonce;
mod refusal;

#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};

pub use keyring::{AppPattern, KeyEntry, KeyRing, KeyRingError, Permission};
pub use nonce::NonceLedger;
pub use refusal::Refusal;

use crate::change::{
    AppName, Change, Destination, Digest, Envelope, Expectation, Fingerprint, HostId, ReleaseNumber, Verb,
};
use crate::sign;

/// Longest time between issue and expiry of a change.
pub const MAX_WINDOW: SignedDuration = SignedDuration::from_mins(15);
/// How far the signer's clock may be off.
pub const MAX_SKEW: SignedDuration = SignedDuration::from_mins(2);

/// What the host knows at the moment of the check.
pub struct Situation<'a> {
    /// The host's clock.
    pub now: Timestamp,
    /// The host's identity.
    pub host: &'a HostId,
    /// Keys that may do something.
    pub keys: &'a KeyRing,
    /// Nonces of changes that were accepted and have not expired.
    pub nonces: &'a NonceLedger,
    /// The release that runs now, of an app and destination.
    pub current_release: &'a dyn Fn(&AppName, Option<&Destination>) -> Option<ReleaseNumber>,
}

/// A change that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct Verified {
    /// The change.
    pub change: Change,
    /// Who signed it.
    pub fingerprint: Fingerprint,
    /// The comment of the signer's entry in the key ring.
    pub signer: String,
    /// Digest of the exact signed bytes, for the audit record.
    pub payload_digest: Digest,
}

/// Checks a change.
///
/// The caller then spends the nonce with [`NonceLedger::spend`], writes the audit record and acts, in that order.
///
/// # Errors
/// The first check that failed, in the order of the diagram above.
pub fn check(envelope: &Envelope, situation: &Situation<'_>) -> Result<Verified, Refusal> {
    let unreadable = |source| Refusal::Malformed {
        fingerprint: None,
        source,
    };
    let payload = envelope.payload_bytes().map_err(unreadable)?;
    let signature =
        sign::Signature::parse(&envelope.signature).map_err(|source| Refusal::MalformedSignature {
            fingerprint: None,
            source: Box::new(source),
        })?;
    let fingerprint = signature.fingerprint();

    let Some(entry) = situation.keys.find(&fingerprint) else {
        return Err(Refusal::UnknownKey { fingerprint });
    };
    // The key used for the check is the enrolled one; the key inside the signature only says which.
    if let Err(source) = signature.verify(&entry.key, &payload) {
        return Err(Refusal::BadSignature {
            fingerprint,
            source: Box::new(source),
        });
    }
    let change = Change::from_payload(&payload).map_err(|source| Refusal::Malformed {
        fingerprint: Some(fingerprint.clone()),
        source,
    })?;

    permitted(&change, entry)?;
    if change.host != *situation.host {
        return Err(Refusal::OtherHost {
            fingerprint,
            wanted: change.host,
            this: situation.host.clone(),
        });
    }
    in_window(&change, &fingerprint, situation.now)?;
    if situation.nonces.contains(&change.nonce) {
        return Err(Refusal::Replayed {
            fingerprint,
            nonce: change.nonce,
        });
    }
    expected(&change, &fingerprint, situation.current_release)?;

    Ok(Verified {
        payload_digest: Digest::of(&payload),
        fingerprint,
        signer: entry.comment.clone(),
        change,
    })
}

fn permitted(change: &Change, entry: &KeyEntry) -> Result<(), Refusal> {
    let power = change.verb.power();
    if entry.allows(power, change.app.as_ref(), change.destination.as_ref()) {
        return Ok(());
    }
    Err(Refusal::NotPermitted {
        fingerprint: entry.fingerprint.clone(),
        verb: change.verb.name(),
        power,
        app: change.app.clone(),
        destination: change.destination.clone(),
    })
}

fn in_window(change: &Change, fingerprint: &Fingerprint, now: Timestamp) -> Result<(), Refusal> {
    let fingerprint = fingerprint.clone();
    let (issued, expires) = (change.issued_at, change.expires_at);
    if issued.duration_until(expires) > MAX_WINDOW {
        return Err(Refusal::WindowTooLong {
            fingerprint,
            issued,
            expires,
        });
    }
    if now.duration_until(issued) > MAX_SKEW {
        return Err(Refusal::NotYetValid {
            fingerprint,
            issued,
            now,
        });
    }
    if expires.duration_until(now) > MAX_SKEW {
        return Err(Refusal::Expired {
            fingerprint,
            issued,
            expires,
            now,
        });
    }
    Ok(())
}

fn expected(
    change: &Change,
    fingerprint: &Fingerprint,
    current_release: &dyn Fn(&AppName, Option<&Destination>) -> Option<ReleaseNumber>,
) -> Result<(), Refusal> {
    let (Expectation::Release(expected), Some(app)) = (change.expects, &change.app) else {
        return Ok(());
    };
    let found = current_release(app, change.destination.as_ref());
    if found == expected {
        return Ok(());
    }
    Err(Refusal::ReleaseMoved {
        fingerprint: fingerprint.clone(),
        app: app.clone(),
        destination: change.destination.clone(),
        expected,
        found,
    })
}

impl KeyRing {
    /// Carries out a verified key change on the ring; other verbs leave it as it is and return `false`.
    ///
    /// # Errors
    /// When the new key is unusable, or the change would leave the host without an administrator.
    pub fn apply(&mut self, verified: &Verified) -> Result<bool, KeyRingError> {
        match &verified.change.verb {
            Verb::KeyAdd {
                key,
                permissions,
                comment,
            } => {
                let entry = KeyEntry::new(key, permissions.clone(), comment, verified.fingerprint.as_str())?;
                self.insert(entry)?;
                Ok(true)
            }
            Verb::KeyRemove { fingerprint } => {
                self.remove(fingerprint)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }
}
