//! Nonces of accepted changes, kept until the changes have expired.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::MAX_SKEW;
use crate::change::{Change, Nonce};

/// Which changes were accepted already.
///
/// A nonce is forgotten only when the time window refuses its change anyway, so forgetting opens no gap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NonceLedger {
    spent: BTreeMap<Nonce, Timestamp>,
}

impl NonceLedger {
    /// Whether a change with this nonce was accepted.
    pub fn contains(&self, nonce: &Nonce) -> bool {
        self.spent.contains_key(nonce)
    }

    /// Remembers an accepted change and forgets those that have expired.
    ///
    /// Returns `false`, and changes nothing, when the nonce was spent before.
    pub fn spend(&mut self, change: &Change, now: Timestamp) -> bool {
        if self.contains(&change.nonce) {
            return false;
        }
        self.prune(now);
        self.spent.insert(change.nonce.clone(), change.expires_at);
        true
    }

    /// Forgets nonces whose change the time window refuses by now.
    pub fn prune(&mut self, now: Timestamp) {
        self.spent
            .retain(|_, expires| expires.duration_until(now) <= MAX_SKEW);
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.spent.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.spent.is_empty()
    }
}
