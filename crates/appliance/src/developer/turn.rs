//! Waiting for one's turn: Kamal's `--lock-wait`.
//!
//! The agent's lease goes with the command that holds it, so waiting for it always ends; a lock that somebody took by
//! hand does not, and is not waited for (Kamal 2.12, `cli/base.rs`).

use std::time::Duration;

use tokio::time::Instant;

use super::fleet::{Host, Way};
use crate::agent::lease::Holder;
use crate::agent::lock::describe;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// How long a command waits for others, over all its attempts.
pub struct Patience {
    deadline: Option<Instant>,
    seconds: u64,
    pause: Duration,
}

impl Patience {
    /// What the flags say, from now on.
    pub fn of(globals: &Globals) -> Self {
        let patience = globals.lock_patience();
        Self {
            deadline: patience.map(|patience| Instant::now() + patience),
            seconds: patience.unwrap_or_default().as_secs(),
            pause: globals.lock_pause(),
        }
    }

    /// Whether there is any left.
    pub fn lasts(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() < deadline)
    }

    /// Waits, as far as the flags allow, until nobody changes the app on any of the hosts; their view of it is taken
    /// anew then.
    ///
    /// # Errors
    /// When a lock was taken by hand, or the time is over; both tell who holds the app.
    pub async fn wait(&self, way: &Way<'_>, hosts: impl Iterator<Item = &mut Host>) -> anyhow::Result<()> {
        let Some(deadline) = self.deadline else {
            return Ok(());
        };
        for host in hosts {
            // Also where nobody holds it now: whoever did may have changed what runs there.
            host.app = way.app(&host.link).await?;
            let mut told = None;
            loop {
                if let Some(lock) = &host.app.lock {
                    return Err(failure(
                        Kind::Refused,
                        format!(
                            "{}: Deploy lock held manually, not waiting: locked by {} at {}: {}",
                            host.name, lock.by, lock.at, lock.message
                        ),
                    )
                    .hint("appliance lock release")
                    .into());
                }
                let Some(holder) = host.app.changing.clone() else {
                    break;
                };
                let who = changed_by(&host.name, &holder);
                if Instant::now() >= deadline {
                    return Err(failure(
                        Kind::Refused,
                        format!(
                            "Timed out waiting for deploy lock after {} s: {who}",
                            self.seconds
                        ),
                    )
                    .hint("appliance status")
                    .into());
                }
                if told.as_ref() != Some(&holder) {
                    ui::note(&format!("{who}; waiting up to {} s", self.seconds));
                    told = Some(holder);
                }
                let left = deadline.saturating_duration_since(Instant::now());
                tokio::time::sleep(self.pause.min(left)).await;
                host.app = way.app(&host.link).await?;
            }
        }
        Ok(())
    }
}

impl Patience {
    /// Waits as [`Self::wait`] does, and without patience sees that nobody holds the app on any of the hosts.
    ///
    /// What follows is not for two at once, as a hook that migrates.
    ///
    /// # Errors
    /// When somebody holds it; tells who.
    pub async fn free(&self, way: &Way<'_>, hosts: impl Iterator<Item = &mut Host>) -> anyhow::Result<()> {
        if self.deadline.is_some() {
            return self.wait(way, hosts).await;
        }
        for host in hosts {
            // What the change expects stays what was seen when it was prepared.
            let now = way.app(&host.link).await?;
            let holds = match (&now.lock, &now.changing) {
                (Some(lock), _) => (
                    format!("Deploy lock found.\n{}", describe(lock)),
                    "appliance lock release, once its holder agrees",
                ),
                (None, Some(holder)) => (
                    changed_by(&now.app, holder),
                    "push again when it is done; appliance status shows how far it is",
                ),
                (None, None) => continue,
            };
            return Err(failure(Kind::Refused, format!("{}: {}", host.name, holds.0))
                .hint(holds.1)
                .into());
        }
        Ok(())
    }
}

fn changed_by(what: &str, holder: &Holder) -> String {
    format!(
        "{what} is being changed by {} ({}) since {}",
        holder.owner, holder.verb, holder.since
    )
}

/// Asking costs the host nothing, so that a turn begins soon after the one before.
pub const PAUSE: Duration = Duration::from_millis(500);
