//! A lock that somebody takes by hand, to keep everybody from changing an app (Kamal's `lock`).
//!
//! Locks of commands are [`super::lease`]s and go with the command; this one stays until it is released.

use appliance_push::change::Verb;
use appliance_push::trust::Verified;
use jiff::Timestamp;

use super::Agent;
use super::apps::AppsError;
use super::change::done;
use crate::wire::{End, Lock};

/// The refusal of a change that a lock stands in the way of.
pub fn stands_in_the_way(agent: &Agent, app: &str, verb: &Verb) -> Result<Option<End>, AppsError> {
    if matches!(
        verb,
        Verb::LockAcquire { .. } | Verb::LockRelease | Verb::Abort | Verb::AppExec { .. }
    ) {
        return Ok(None);
    }
    let Some(lock) = agent.apps.read(app)?.lock else {
        return Ok(None);
    };
    Ok(Some(held(&lock)))
}

fn held(lock: &Lock) -> End {
    End::Refused {
        code: "locked".to_owned(),
        message: format!("Deploy lock found.\n{}", describe(lock)),
        next: "appliance lock release, once its holder agrees".to_owned(),
    }
}

/// A lock in Kamal's words.
pub fn describe(lock: &Lock) -> String {
    format!(
        "Locked by: {} at {}\nVersion: {}\nMessage: {}",
        lock.by, lock.at, lock.version, lock.message
    )
}

/// Takes the lock.
///
/// # Errors
/// When the app's ledger cannot be written.
pub fn acquire(agent: &Agent, verified: &Verified, app: &str) -> anyhow::Result<End> {
    let Verb::LockAcquire { message, version, by } = &verified.change.verb else {
        return Ok(done("nothing to lock"));
    };
    let lock = Lock {
        by: by.clone(),
        key: verified.fingerprint.to_string(),
        at: Timestamp::now(),
        version: version.clone(),
        message: message.clone(),
    };
    let before = agent.apps.update(app, |state| match &state.lock {
        Some(held) => Some(held.clone()),
        None => {
            state.lock = Some(lock);
            None
        }
    })?;
    Ok(match before {
        Some(held_by) => held(&held_by),
        None => done("Acquired the deploy lock"),
    })
}

/// Releases the lock, whoever took it.
///
/// # Errors
/// When the app's ledger cannot be written.
pub fn release(agent: &Agent, app: &str) -> anyhow::Result<End> {
    let before = agent.apps.update(app, |state| state.lock.take())?;
    Ok(done(match before {
        Some(_) => "Released the deploy lock",
        None => "There was no deploy lock",
    }))
}
