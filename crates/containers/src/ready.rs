//! Waiting until a container that no proxy probes is ready.
//!
//! ```text
//!   has a health check ──► healthy: ready      unhealthy: not ready
//!   has none ────────────► runs for `stable` without an end: ready
//!   either ──────────────► ends, or is removed: not ready
//! ```
//!
//! Nothing is polled: the container is looked at when Docker tells that something happened to it, and when `stable` is over.
//! Kamal sleeps `readiness_delay` seconds and looks twice; a container that crashes and comes back in between passes there, here it does not.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::engine::{ContainerInfo, Engine, Event, Happening, Health, State};
use crate::error::EngineError;

/// Why a container is not ready and will not become so by waiting.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// Its main process ended.
    #[error("it ended with exit code {code}{}", if *oom_killed { " (out of memory)" } else { "" })]
    Ended {
        /// The exit code.
        code: i64,
        /// Ended by the kernel for want of memory.
        oom_killed: bool,
    },
    /// Its own health check says no.
    #[error("its health check failed: {words}")]
    Unhealthy {
        /// What the last check printed.
        words: String,
    },
    /// It does not exist any more.
    #[error("it was removed")]
    Removed,
    /// Docker could not be asked.
    #[error("Docker could not be asked")]
    Engine(#[from] EngineError),
}

/// Waits until the container is ready. Without a health check, `stable` is how long it has to run.
///
/// There is no time limit: the caller has one, and stops waiting by dropping the future.
pub async fn wait(engine: &dyn Engine, id: &str, stable: Duration) -> Result<(), NotReady> {
    let mut events = engine.events(Vec::new());
    let begun = Instant::now();
    let mut first: Option<ContainerInfo> = None;
    loop {
        // Each connection begins with `Connected`, so the look always comes after the listening began.
        let told = tokio::select! {
            event = events.next() => event,
            () = tokio::time::sleep_until(begun + stable), if first.is_some() && begun.elapsed() < stable => None,
        };
        match told {
            Some(Event::Disconnected { .. }) => continue,
            Some(Event::Container(event)) if first.as_ref().is_none_or(|first| first.id != event.id) => {
                continue;
            }
            Some(Event::Container(event)) => {
                if let Happening::Died { code } = event.what {
                    let oom_killed = engine.inspect(id).await?.is_some_and(|found| found.oom_killed);
                    return Err(NotReady::Ended { code, oom_killed });
                }
            }
            Some(Event::Connected) | None => {}
        }
        let now = engine.inspect(id).await?.ok_or(NotReady::Removed)?;
        let restarted = first.as_ref().is_some_and(|first| first.restarts != now.restarts);
        if restarted
            || matches!(
                now.state,
                State::Exited | State::Dead | State::Removing | State::Restarting
            )
        {
            return Err(NotReady::Ended {
                code: now.exit_code,
                oom_killed: now.oom_killed,
            });
        }
        match now.health {
            Health::Healthy => return Ok(()),
            Health::Unhealthy => {
                let words = now
                    .health_log
                    .last()
                    .map(|words| words.trim().to_owned())
                    .unwrap_or_default();
                return Err(NotReady::Unhealthy { words });
            }
            Health::None if now.state == State::Running && begun.elapsed() >= stable => return Ok(()),
            Health::None | Health::Starting => first = first.or(Some(now)),
        }
    }
}
