//! What holds and who has still to be told: in memory first, and written down as well as the disk allows.
//!
//! A disk that is full is what people want to hear of, so it must not be what keeps them from hearing,
//! nor may a notice that cannot be crossed out on paper be sent again and again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use appliance_alerts::{Book, Outbox};
use appliance_state::{Key, Ledger, Store};
use serde::{Deserialize, Serialize};

use crate::agent::chain;

/// Layout of the ledger.
const SCHEMA: u32 = 1;

/// What is written down.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Written {
    pub(super) book: Book,
    pub(super) outbox: Outbox,
    /// The last `host.yml` that held no mistake.
    pub(super) settings: Option<String>,
}

/// The one owner of it while the agent lives.
#[derive(Debug)]
pub(super) struct Truth {
    ledger: Ledger<Written>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    written: Written,
    /// The ledger is behind.
    behind: bool,
}

impl Truth {
    /// Reads what was written; a damaged ledger is told, and counts as empty.
    pub(super) fn open(store: &Store) -> Self {
        let ledger = store.single(&Key::new("alerts").expect("our own name is a good key"), SCHEMA);
        let written = match ledger.read() {
            Ok(snapshot) => snapshot.data,
            Err(error) => {
                tracing::error!("alerts begin anew: {}", chain(&error));
                Written::default()
            }
        };
        Self {
            ledger,
            held: Mutex::new(Held {
                written,
                behind: false,
            }),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it is now.
    pub(super) fn now(&self) -> Written {
        self.held().written.clone()
    }

    /// Changes it, and writes it down if that changed anything or the ledger is behind.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut Written) -> R) -> R {
        let mut held = self.held();
        let before = held.written.clone();
        let result = change(&mut held.written);
        if held.written == before && !held.behind {
            return result;
        }
        let whole = held.written.clone();
        let kept = self.ledger.update(|data| *data = whole);
        if let Err(error) = &kept
            && !held.behind
        {
            tracing::error!(
                "alerts cannot be written down, and go on without: {}",
                chain(error)
            );
        }
        held.behind = kept.is_err();
        result
    }

    /// Whether all of it is written down.
    pub(super) fn is_kept(&self) -> bool {
        !self.held().behind
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn what_cannot_be_written_down_holds_all_the_same_and_is_written_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("opens");
        let truth = Truth::open(&store);
        let to = ["webhook 1".to_owned()];
        truth.change(|written| {
            let notice = written.book.test(Timestamp::UNIX_EPOCH);
            written.outbox.add(&notice, &to, Timestamp::UNIX_EPOCH);
        });
        assert!(truth.is_kept());
        // A directory in the ledger's place, which root cannot replace by a file either.
        let path = directory.path().join("alerts.json");
        fs_err::remove_file(&path).expect("removed");
        fs_err::create_dir_all(path.join("in the way")).expect("made");
        truth.change(|written| written.outbox.sent(1, "webhook 1"));
        assert!(!truth.is_kept());
        assert!(truth.now().outbox.list().is_empty(), "it is not sent again");
        fs_err::remove_dir_all(&path).expect("removed");
        truth.change(|_| ());
        assert!(truth.is_kept());
        assert!(Truth::open(&store).now().outbox.list().is_empty());
        assert_eq!(Truth::open(&store).now().book.last, 1);
    }
}
