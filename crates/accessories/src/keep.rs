//! Keeping a container as it should be: running or stopped.
//!
//! ```text
//!   goal running:  missing ──► create     created, exited, dead ──► start (after the back-off)     running ──► nothing
//!   goal stopped:  running ──► stop       anything else ──────────► nothing
//! ```
//!
//! Docker's own restart policy acts first, also while the agent is away; this catches what it leaves:
//! a container that was killed or stopped by hand, one that is gone, one that could not start.
//! Nothing here removes a container, a volume or a file.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::backoff::Backoff;

/// What somebody asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// It should run.
    #[default]
    Running,
    /// It should not run, and its container stays.
    Stopped,
}

/// Docker's restart policies, as far as they say whether an end is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// An end is an end.
    No,
    /// Whatever the exit code; also for `unless-stopped`.
    Always,
    /// After exit codes other than 0.
    OnFailure {
        /// At most this often; without limit if 0.
        retries: u32,
    },
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// There is none.
    Missing,
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Frozen by somebody.
    Paused,
    /// Ended, and Docker is about to start it again.
    Restarting,
    /// Ended.
    Exited,
    /// Docker could not remove it, or is removing it.
    Dead,
}

/// A container as Docker shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Where it is.
    pub life: Life,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// When the last run began, if ever.
    pub started: Option<Timestamp>,
    /// How often Docker's policy has started it again.
    pub restarts: u64,
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// All is as it should be.
    Nothing,
    /// Make the container and start it.
    Create,
    /// Start the container.
    Start,
    /// Stop the container.
    Stop,
    /// Try again at this time.
    Wait(Timestamp),
    /// A person has to decide.
    Leave(&'static str),
}

/// The step for a container, and the back-off after it.
///
/// A step that fails is reported with [`Backoff::failed`] by the caller.
pub fn decide(goal: Goal, policy: Policy, seen: Seen, backoff: Backoff, now: Timestamp) -> (Step, Backoff) {
    match (goal, seen.life) {
        (Goal::Stopped, Life::Running | Life::Restarting) => (Step::Stop, Backoff::default()),
        (Goal::Stopped, _) => (Step::Nothing, Backoff::default()),
        (Goal::Running, Life::Running) => {
            let backoff = seen
                .started
                .map_or(backoff, |started| backoff.running_since(started, now));
            (Step::Nothing, backoff)
        }
        (Goal::Running, Life::Restarting) => (Step::Nothing, backoff),
        (Goal::Running, Life::Paused) => (
            Step::Leave("somebody paused it; docker unpause lets it go on"),
            backoff,
        ),
        (Goal::Running, Life::Exited) if !wanted_again(policy, seen) => (
            Step::Leave("it ended, and its restart policy leaves it so; accessory start runs it again"),
            backoff,
        ),
        (Goal::Running, life) => match backoff.next {
            // An end that was not waited for yet begins the wait; a fresh container starts at once.
            None if life == Life::Exited => {
                let backoff = backoff.failed(now);
                (backoff.next.map_or(Step::Start, Step::Wait), backoff)
            }
            Some(next) if next > now => (Step::Wait(next), backoff),
            _ if life == Life::Missing => (Step::Create, backoff),
            _ if life == Life::Dead => (Step::Leave("Docker is removing it, or cannot"), backoff),
            _ => (
                Step::Start,
                Backoff {
                    next: None,
                    ..backoff
                },
            ),
        },
    }
}

fn wanted_again(policy: Policy, seen: Seen) -> bool {
    match policy {
        Policy::No => false,
        Policy::Always => true,
        Policy::OnFailure { retries } => {
            seen.exit_code != 0 && (retries == 0 || seen.restarts < u64::from(retries))
        }
    }
}

#[cfg(test)]
mod tests;
