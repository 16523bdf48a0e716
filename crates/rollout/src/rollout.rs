//! The state machine.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::effect::{Event, Observed, Order, Ticket};
use crate::plan::{Gate, Instance, Plan, PlanError};

/// Where a rollout stands.
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
    /// The proxy sends traffic to them (or is being told to).
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

/// A rollout, to be written down whole after every step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    plan: Plan,
    phase: Phase,
    open: Vec<Order>,
    next_ticket: Ticket,
    ready: Vec<Instance>,
    passed: Vec<Gate>,
    /// Why it is being reverted.
    why: Option<String>,
    warnings: Vec<String>,
    timeline: Vec<(Phase, Timestamp)>,
    wakeup: Option<Timestamp>,
}

impl Rollout {
    /// Begins a rollout.
    pub fn begin(plan: Plan, now: Timestamp) -> Result<(Rollout, Vec<Order>), PlanError> {
        plan.check()?;
        let rollout = Rollout {
            plan,
            phase: Phase::Received,
            open: Vec::new(),
            next_ticket: Ticket(1),
            ready: Vec::new(),
            passed: Vec::new(),
            why: None,
            warnings: Vec::new(),
            timeline: vec![(Phase::Received, now)],
            wakeup: None,
        };
        Ok((rollout, Vec::new()))
    }

    /// The state after `event`, and what to do then.
    #[must_use]
    pub fn step(&self, event: &Event, now: Timestamp) -> (Rollout, Vec<Order>) {
        let _ = (event, now);
        (self.clone(), Vec::new())
    }

    /// The state after a restart of the driver, and what to do then.
    #[must_use]
    pub fn resume(&self, observed: &Observed, now: Timestamp) -> (Rollout, Vec<Order>) {
        let _ = (observed, now);
        (self.clone(), Vec::new())
    }

    /// When to send [`Event::Tick`], if at all.
    pub fn wakeup(&self) -> Option<Timestamp> {
        self.wakeup
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Settled | Phase::Reverted)
            && self.open.is_empty()
            && self.wakeup.is_none()
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

    /// Why it was or is being reverted.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
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
