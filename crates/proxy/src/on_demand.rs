//! Hosts that nobody named beforehand: a certificate is asked for when their first visitor comes.
//!
//! ```text
//!  visitor ──hello──► unknown name ──► waits ──certificate is put──► handshake goes on
//!                          │             └──refused, or too late──► handshake fails
//!                          ▼
//!                       wanted ◄── the agent takes it, asks who knows, and has a certificate made, or refuses
//! ```
//!
//! The proxy asks nobody for anything: it only notes the names.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::shared::Shared;
use crate::table::normalise_host;

/// Most names that are noted or refused at once; who makes names up must not fill the memory.
const MOST: usize = 1_024;
/// How long a name counts as noted; then a further visitor notes it again.
const NOTED: Duration = Duration::from_secs(60);
/// How long a handshake waits.
const WAIT: Duration = Duration::from_secs(20);

/// Names that visitors came for and that have no certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Each once, the longest waiting first.
    pub names: Vec<String>,
}

/// A name that gets no certificate for a while.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unwanted {
    /// The name.
    pub name: String,
    /// Its handshakes fail at once for so many seconds.
    pub seconds: u32,
}

/// What visitors came for.
#[derive(Debug, Default)]
pub(crate) struct Demand {
    state: Mutex<State>,
    /// Woken when a name is noted.
    noted: Notify,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<Box<str>>,
    /// Until when a name counts as noted.
    noted: HashMap<Box<str>, Instant>,
    /// Until when a name is refused.
    refused: HashMap<Box<str>, Instant>,
}

impl Demand {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a name; false when it is refused, or there are too many.
    fn note(&self, name: &str, now: Instant) -> bool {
        let mut state = self.state();
        if state.refused.get(name).is_some_and(|until| *until > now) {
            return false;
        }
        if state.noted.get(name).is_some_and(|until| *until > now) {
            return true;
        }
        state.noted.retain(|_, until| *until > now);
        if state.noted.len() >= MOST || state.queue.len() >= MOST {
            return false;
        }
        state.noted.insert(name.into(), now + NOTED);
        state.queue.push_back(name.into());
        drop(state);
        self.noted.notify_one();
        true
    }

    /// Forgets that a name was noted, now that it has a certificate: should it lose it, the next visitor is told of.
    fn settled(&self, name: &str) {
        self.state().noted.remove(name);
    }

    fn is_refused(&self, name: &str, now: Instant) -> bool {
        self.state().refused.get(name).is_some_and(|until| *until > now)
    }

    /// The names that were noted since the last call; waits up to `most` for the first.
    pub(crate) async fn take(&self, most: Duration) -> Wanted {
        let deadline = tokio::time::Instant::now() + most;
        loop {
            let noted = self.noted.notified();
            let names: Vec<String> = self.state().queue.drain(..).map(String::from).collect();
            if !names.is_empty() || tokio::time::timeout_at(deadline, noted).await.is_err() {
                return Wanted { names };
            }
        }
    }

    /// Refuses a name for a while.
    pub(crate) fn refuse(&self, name: &str, now: Instant, seconds: u32) {
        let mut state = self.state();
        state.refused.retain(|_, until| *until > now);
        state.noted.remove(name);
        if state.refused.len() < MOST {
            let until = now + Duration::from_secs(u64::from(seconds));
            state.refused.insert(name.into(), until);
        }
    }
}

/// Waits until there is a certificate for `name`; goes on without one when it is refused or does not come in time.
pub(crate) async fn settle(shared: &Shared, name: &str) {
    let mut room = [0; 254];
    // A name without a dot is nobody's on the internet.
    let Some(name) = normalise_host(name, &mut room).filter(|name| name.contains('.')) else {
        return;
    };
    let deadline = tokio::time::Instant::now() + WAIT;
    let mut waited = false;
    loop {
        let changed = shared.changed.notified();
        let now = Instant::now();
        if shared.table.load().certificates.covers(name) {
            if waited {
                shared.demand.settled(name);
            }
            return;
        }
        if !shared.demand.note(name, now) {
            return;
        }
        waited = true;
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until(deadline) => return,
            () = shared.abort.cancelled() => return,
        }
        if shared.demand.is_refused(name, Instant::now()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_told_once_and_refused_for_a_while() {
        let (demand, now) = (Demand::default(), Instant::now());
        assert!(demand.note("a.io", now) && demand.note("b.io", now) && demand.note("a.io", now));
        assert_eq!(demand.take(Duration::ZERO).await.names, ["a.io", "b.io"]);
        assert_eq!(demand.take(Duration::ZERO).await, Wanted::default());
        demand.refuse("a.io", now, 10);
        assert!(!demand.note("a.io", now) && demand.is_refused("a.io", now));
        assert!(demand.note("a.io", now + Duration::from_secs(11)));
        // One whose taker died is told again.
        assert!(demand.note("b.io", now + NOTED));
        assert_eq!(demand.take(Duration::ZERO).await.names, ["a.io", "b.io"]);
    }

    #[tokio::test]
    async fn made_up_names_do_not_pile_up() {
        let (demand, now) = (Demand::default(), Instant::now());
        let noted = (0..3 * MOST)
            .filter(|at| demand.note(&format!("{at}.io"), now))
            .count();
        assert_eq!(noted, MOST);
        assert_eq!(demand.take(Duration::ZERO).await.names.len(), MOST);
        // Those who take them may be slow.
        assert!(!demand.note("more.io", now));
        assert!(demand.note("more.io", now + NOTED));
    }
}
