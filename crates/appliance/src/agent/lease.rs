//! One change at a time per app: a lease that the agent holds and that ends with the change.
//!
//! A lease lives in this process only, so a lost network, a killed developer or a restarted agent frees it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

/// Who holds a lease, for the one who is told to wait.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// Fingerprint of the key that signed the change.
    pub owner: String,
    /// What it does: `deploy`, `rollback`, …
    pub verb: String,
    /// Since when.
    pub since: Timestamp,
}

/// All leases of this host.
#[derive(Debug, Clone, Default)]
pub struct Leases {
    held: Arc<Mutex<BTreeMap<String, Holder>>>,
}

/// Ends the lease when dropped.
#[derive(Debug)]
pub struct Lease {
    leases: Leases,
    app: String,
}

impl Leases {
    /// Takes the lease on `app`.
    ///
    /// # Errors
    /// Returns the present holder when somebody else has it.
    pub fn acquire(&self, app: &str, holder: Holder) -> Result<Lease, Holder> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(present) = held.get(app) {
            return Err(present.clone());
        }
        held.insert(app.to_owned(), holder);
        Ok(Lease {
            leases: self.clone(),
            app: app.to_owned(),
        })
    }

    /// Who changes `app` at this moment.
    pub fn holder(&self, app: &str) -> Option<Holder> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(app).cloned()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut held = self.leases.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.remove(&self.app);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(owner: &str) -> Holder {
        Holder {
            owner: owner.to_owned(),
            verb: "deploy".to_owned(),
            since: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn the_second_is_told_who_holds_it_and_gets_it_after_the_first() {
        let leases = Leases::default();
        let first = leases.acquire("shop", holder("SHA256:a")).expect("free");
        assert_eq!(
            leases.acquire("shop", holder("SHA256:b")).err(),
            Some(holder("SHA256:a"))
        );
        assert!(leases.acquire("blog", holder("SHA256:b")).is_ok());
        drop(first);
        assert!(leases.acquire("shop", holder("SHA256:b")).is_ok());
    }
}
