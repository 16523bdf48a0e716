//! The state machine.
//!
//! ```text
//!                                                                             ┌► canary ─┐ gates: promote, switch
//!  received ─► verified ─┬► prepared ─► release command ─► starting ─► healthy ─┴───────────┴► switched ─► draining ─► watching ─┬► settled
//!     │           │    gate:  │               │              │           │    gate:    │         │            │           │    gate:
//!     │ fails     │    start  │               │              │           │    switch   │ trips   │            │           │ trips settle
//!     └───────────┴───────────┴───────────────┴──────────────┴───────────┴─────────────┴─────────┴────────────┴───────────┘
//!                                              │ any failure, a death, a cancellation
//!                                              ▼
//!                                          reverting ─► reverted
//!                                              └─ the old one cannot be brought back, the new one lives ─► settled
//! ```
//!
//! - *received*: the stored release is checked once more.
//! - *verified*: images are fetched, secrets unsealed, assets bridged.
//! - *prepared*: everything is here.
//! - *release command*: it runs once, on the new image, before any traffic. What it did to a database cannot be undone by a revert.
//! - *starting*: the primary role is created, started and awaited; then the others, one after the other or together.
//! - *healthy*: all are ready. The switch is ordered once its gate is open.
//! - *canary*, only where the plan has one: a part of the visitors gets the new containers and is watched until somebody promotes or cancels.
//!   Workers of the new deployment start only then.
//! - *switched*: the proxy has taken the new routes, all in one change.
//! - *draining*: the old containers finish their requests. Old workers (roles without the proxy) are stopped here, since two sets of workers must not run for a whole watch window.
//! - *watching*: old proxied containers still run, idle, ready to take over again.
//! - *settled*: the new deployment is recorded, the old one stopped, leftovers pruned. There is no way back but another rollout.
//! - *reverting*: old containers that do not run are started, then the routes are put back, then old workers are started, then new containers are removed.
//!   It begins when every order that changes something has been answered, so that nothing done late escapes it; orders that only wait are given up at once.
//! - *reverted*: everything is as before.
//!
//! The gates named start, switch and settle are for several hosts that go together, led by somebody.
//! A rollout whose leader is gone reverts if it has not passed the switch gate, and settles by itself if it has.
//! Where the promotion of a canary is led, switch and settle are closed once more: it waits between the workers' start
//! and the switch, and without its leader it reverts there, but stays a canary as long as nobody has promoted it.
//!
//! A failure while reverting or settling is tried again, after 1, 2, 4 … 30 s, and becomes a warning after some attempts.
//! As long as an old container cannot be made ready, a new one that lives keeps the traffic;
//! after some minutes of that going back is given up and the new deployment settles, so that somebody can bring a better one.
//!
//! Wherever it stands, a container that visitors are sent to and that is started again is followed to its new address.
//!
//! Every effect can be repeated, and [`Rollout::resume`] repeats those without an answer.

mod stage;
mod step;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::effect::{Effect, Event, Observed, Order, Ticket};
use crate::plan::{Gate, Instance, Plan, PlanError};
use stage::Stage;

/// Where a rollout stands: the state in the diagram that was reached last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Stored, being checked.
    Received,
    /// Checked; images, secrets and assets are being prepared.
    Verified,
    /// Everything is here.
    Prepared,
    /// The release command runs.
    ReleaseCommand,
    /// New containers are being started and probed.
    Starting,
    /// All of them are ready.
    Healthy,
    /// A part of the visitors gets them.
    Canary,
    /// The proxy sends traffic to them.
    Switched,
    /// Requests in the old containers come to their end.
    Draining,
    /// The new deployment serves and is watched.
    Watching,
    /// The new deployment is the current one; what remains is tidying up.
    Settled,
    /// Something failed: the old deployment is being put back.
    Reverting,
    /// The old deployment serves as before.
    Reverted,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Phase::Received => "received",
            Phase::Verified => "verified",
            Phase::Prepared => "prepared",
            Phase::ReleaseCommand => "release command",
            Phase::Starting => "starting",
            Phase::Healthy => "healthy",
            Phase::Canary => "canary",
            Phase::Switched => "switched",
            Phase::Draining => "draining",
            Phase::Watching => "watching",
            Phase::Settled => "settled",
            Phase::Reverting => "reverting",
            Phase::Reverted => "reverted",
        })
    }
}

/// A rollout, to be written down whole after every step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    plan: Plan,
    stage: Stage,
    phase: Phase,
    /// Orders without an answer.
    open: Vec<Order>,
    /// What failed and will be ordered again.
    again: Vec<Effect>,
    /// Failures in the present stage.
    attempts: u32,
    wakeup: Option<Timestamp>,
    next_ticket: Ticket,
    ready: BTreeSet<Instance>,
    passed: BTreeSet<Gate>,
    failure: Option<Failure>,
    /// Going back was given up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    stayed: bool,
    warnings: Vec<String>,
    timeline: Vec<(Phase, Timestamp)>,
}

/// Why a rollout is or was reverted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Where it stood.
    pub phase: Phase,
    /// Whether the routes may have been changed by then.
    pub switched: bool,
    /// Whether a new container ended, so that it cannot go on serving while the old one is put back.
    pub died: bool,
    /// For a person.
    pub why: String,
}

impl Failure {
    /// Whether the new deployment certainly had the traffic.
    pub fn after_switch(&self) -> bool {
        self.phase >= Phase::Switched
    }
}

impl Rollout {
    /// Begins a rollout.
    pub fn begin(plan: Plan, now: Timestamp) -> Result<(Rollout, Vec<Order>), PlanError> {
        plan.check()?;
        let mut rollout = Rollout {
            plan,
            stage: Stage::Verify,
            phase: Phase::Received,
            open: Vec::new(),
            again: Vec::new(),
            attempts: 0,
            wakeup: None,
            next_ticket: Ticket(1),
            ready: BTreeSet::new(),
            passed: BTreeSet::new(),
            failure: None,
            stayed: false,
            warnings: Vec::new(),
            timeline: vec![(Phase::Received, now)],
        };
        let orders = rollout.enter(Stage::Verify, now);
        Ok((rollout, orders))
    }

    /// The state after `event`, and what to do then.
    ///
    /// Orders that were open before and are not in [`Rollout::open`] any more have been given up: the driver stops waiting for them.
    #[must_use]
    pub fn step(&self, event: &Event, now: Timestamp) -> (Rollout, Vec<Order>) {
        let mut next = self.clone();
        let orders = next.handle(event, now);
        (next, orders)
    }

    /// The state after a restart of the driver, and what to do then.
    ///
    /// Every order without an answer is given again under a new ticket.
    /// A new container that was ready and does not run any more is a reason to revert.
    #[must_use]
    pub fn resume(&self, observed: &Observed, now: Timestamp) -> (Rollout, Vec<Order>) {
        let mut next = self.clone();
        let orders = next.restart(observed, now);
        (next, orders)
    }

    /// When to send [`Event::Tick`], if at all.
    pub fn wakeup(&self) -> Option<Timestamp> {
        self.wakeup
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether the outcome is certain, though there may be things left to tidy up.
    pub fn is_decided(&self) -> bool {
        matches!(self.phase, Phase::Settled | Phase::Reverted)
    }

    /// Whether [`Event::Cancel`] still leads back: it is neither settled nor going back already.
    pub fn can_be_taken_back(&self) -> bool {
        self.stage.can_revert() && self.failure.is_none()
    }

    /// Where it stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What it is about.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Orders without an answer.
    pub fn open(&self) -> &[Order] {
        &self.open
    }

    /// The gate at which it waits for leave.
    pub fn waits_at(&self) -> Option<Gate> {
        self.stage.gate()
    }

    /// Whether it should have been reverted, but the old deployment could not be brought back.
    pub fn stayed(&self) -> bool {
        self.stayed
    }

    /// Why it was or is being reverted.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What went wrong without consequence for the outcome.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Each phase and when it was entered.
    pub fn timeline(&self) -> &[(Phase, Timestamp)] {
        &self.timeline
    }
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod world;
