//! Applying a plan: observe again, write down what is owed, act, pay, observe again.
//!
//! ```text
//!  for each step:  observe ── as wanted ──► next
//!                     │
//!                     ▼
//!            journal: step begun, handlers owed
//!                     │
//!                  act ─► run handlers ─► observe ── not as wanted ──► error
//!                     │
//!                     ▼
//!            journal: nothing owed
//! ```
//!
//! Killed at any arrow, the next run observes what is there and pays what the journal says is owed.

use std::time::Instant;

use serde::Serialize;

use crate::host::{Host, HostError};
use crate::journal::Journal;
use crate::options::Options;
use crate::plan::{Plan, Violation, check};
use crate::want::{Secrets, WantError};

/// What applying needs besides the plan.
pub struct Inputs<'a> {
    /// Where new secrets come from.
    pub secrets: &'a dyn Secrets,
}

/// What is going on, for whoever shows it.
#[derive(Debug, Clone, Copy)]
pub enum Progress<'a> {
    /// A step that changes something begins.
    Begin {
        /// Its item.
        item: &'a str,
        /// What changes.
        changes: &'a [String],
    },
    /// It ended well.
    Done {
        /// Its item.
        item: &'a str,
        /// What changed.
        changes: &'a [String],
        /// How long it took, in seconds.
        seconds: f64,
    },
}

/// What a run came to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// What was changed, line by line.
    pub changes: Vec<String>,
    /// Steps that changed something.
    pub changed_steps: usize,
}

/// Why a run ended early; what was done stays done, and the next run goes on from there.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The plan would do harm.
    #[error("the plan is refused, nothing was touched: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Refused(Vec<Violation>),
    /// A step failed.
    #[error("step `{step}` failed")]
    Step {
        /// Item and subject.
        step: String,
        /// Why.
        #[source]
        source: WantError,
    },
    /// A reload or restart failed.
    #[error("step `{step}`: cannot {what}")]
    Handler {
        /// Item and subject.
        step: String,
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: HostError,
    },
    /// The journal could not be written.
    #[error("cannot write down what is being done")]
    Journal(#[source] HostError),
}

/// Applies a plan; a plan without changes touches nothing.
///
/// # Errors
/// When the plan is harmful, or a step fails.
pub fn apply(
    host: &dyn Host,
    options: &Options,
    plan: &Plan,
    inputs: &Inputs<'_>,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Outcome, ApplyError> {
    let violations = check(plan);
    if !violations.is_empty() {
        return Err(ApplyError::Refused(violations));
    }
    let mut outcome = Outcome::default();
    let mut journal = Journal::read(host).map_err(ApplyError::Journal)?;
    if !journal.owed.is_empty() {
        let titles: Vec<String> = journal.owed.iter().map(|handler| handler.title()).collect();
        let begun = Instant::now();
        progress(Progress::Begin {
            item: "resume",
            changes: &titles,
        });
        let step = journal.step.clone().unwrap_or_else(|| "resume".to_owned());
        pay(host, &mut journal, &step)?;
        progress(Progress::Done {
            item: "resume",
            changes: &titles,
            seconds: begun.elapsed().as_secs_f64(),
        });
        outcome.changes.extend(titles);
        outcome.changed_steps += 1;
    }
    for step in &plan.steps {
        let failed = |source| ApplyError::Step {
            step: step.id.clone(),
            source,
        };
        // What was as wanted when the plan was made is not looked at twice: second runs stay quick.
        if step.changes.is_empty() {
            continue;
        }
        let seen = step.want.observe(host).map_err(failed)?;
        let changes = step
            .want
            .changes(&seen)
            .map_err(|conflict| failed(conflict.into()))?;
        if changes.is_empty() {
            continue;
        }
        let begun = Instant::now();
        progress(Progress::Begin {
            item: step.item,
            changes: &changes,
        });
        journal.step = Some(step.id.clone());
        journal.owe(
            &step
                .want
                .owes(&seen)
                .map_err(|conflict| failed(conflict.into()))?,
        );
        journal.write(host).map_err(ApplyError::Journal)?;
        step.want.act(host, &seen, inputs.secrets).map_err(failed)?;
        pay(host, &mut journal, &step.id)?;
        let after = step.want.observe(host).map_err(failed)?;
        let left = step
            .want
            .changes(&after)
            .map_err(|conflict| failed(conflict.into()))?;
        if !left.is_empty() {
            return Err(failed(WantError::Unsettled(left)));
        }
        progress(Progress::Done {
            item: step.item,
            changes: &changes,
            seconds: begun.elapsed().as_secs_f64(),
        });
        outcome.changes.extend(changes);
        outcome.changed_steps += 1;
    }
    let complete = Journal {
        step: None,
        owed: Vec::new(),
        completed: Some(options.version.clone()),
    };
    if journal != complete {
        complete.write(host).map_err(ApplyError::Journal)?;
    }
    Ok(outcome)
}

/// Runs what is owed, and only then strikes it out.
fn pay(host: &dyn Host, journal: &mut Journal, step: &str) -> Result<(), ApplyError> {
    for handler in &journal.owed {
        handler.run(host).map_err(|source| ApplyError::Handler {
            step: step.to_owned(),
            what: handler.title(),
            source,
        })?;
    }
    journal.owed.clear();
    journal.step = None;
    journal.write(host).map_err(ApplyError::Journal)
}
