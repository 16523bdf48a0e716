//! Who may begin: one run at a time on the whole host, and one thing at a time with each accessory.
//!
//! ```text
//!  due ─► queued (once) ─► its turn ─► runs (nothing else with this accessory) ─► done
//!                             └ somebody else is at work on the accessory: the next minute asks again
//! ```

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use super::Backups;
use crate::agent::drive::Audience;
use crate::wire::Event;

/// Before the name of a job that waits for its turn; no app's name holds a space.
const QUEUED: &str = "queued ";

/// One run at a time, until dropped.
pub(super) type Turn<'a> = tokio::sync::MutexGuard<'a, ()>;

/// Says that a job runs, until dropped.
pub(super) struct Busy<'a> {
    backups: &'a Backups,
    key: String,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.backups.lock().remove(&self.key);
    }
}

impl Backups {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a job, unless somebody is at work on it.
    pub(super) fn claim(&self, key: &str) -> Option<Busy<'_>> {
        self.lock().insert(key.to_owned()).then(|| Busy {
            backups: self,
            key: key.to_owned(),
        })
    }

    /// Whether somebody is at work on a job.
    pub(super) fn runs(&self, key: &str) -> bool {
        self.lock().contains(key)
    }

    /// Waits for the turn and then takes the job: `None` if it waits already, or if somebody else has taken it by then.
    pub(super) async fn queue(&self, key: &str) -> Option<(Turn<'_>, Busy<'_>)> {
        let queued = self.claim(&format!("{QUEUED}{key}"))?;
        let turn = self.turn.lock().await;
        let busy = self.claim(key)?;
        drop(queued);
        Some((turn, busy))
    }

    /// The turn; whoever has to wait is told so.
    pub(super) async fn turn(&self, audience: &Audience) -> Turn<'_> {
        if let Ok(turn) = self.turn.try_lock() {
            return turn;
        }
        let detail = format!(
            "one backup at a time runs on a host; under way: {}",
            self.under_way().join(", ")
        );
        let phase = "waiting".to_owned();
        audience.tell(Event::Phase { phase, detail }).await;
        self.turn.lock().await
    }

    fn under_way(&self) -> Vec<String> {
        let busy = self.lock();
        let run = busy.iter().filter(|key| !key.starts_with(QUEUED));
        run.cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use appliance_state::Store;
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn what_waits_for_its_turn_keeps_nobody_from_a_restore() {
        let place = tempfile::tempdir().expect("a directory");
        let store = Store::open(place.path()).expect("opens");
        let backups = Backups::open(&store, place.path()).expect("opens");
        let (turn, other) = backups.queue("shop/other").await.expect("nobody runs");

        let mut waiting = pin!(backups.queue("shop/db"));
        assert!(poll!(&mut waiting).is_pending());
        assert!(backups.queue("shop/db").await.is_none(), "it waits once");
        assert!(!backups.runs("shop/db"));
        assert_eq!(backups.under_way(), ["shop/other"]);
        let restore = backups.claim("shop/db").expect("a restore may begin");
        drop((turn, other));
        assert!(waiting.await.is_none(), "the restore is at work on it");

        drop(restore);
        let (_turn, _busy) = backups.queue("shop/db").await.expect("a minute later");
        assert!(backups.runs("shop/db"));
        assert_eq!(backups.under_way(), ["shop/db"]);
    }
}
