//! The process that was started to take over: awaited, and ended when it gets nowhere.
//!
//! ```text
//! started ──SIGTERM from it──► we end, it lives
//!    ├──────ends──────────────► we go on
//!    └──────neither in time───► killed, we go on
//! ```

use std::process::{Child, ExitStatus};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Longest time until a successor accepts; no route changes meanwhile.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A successor that does not accept yet.
#[derive(Debug)]
pub(crate) struct Heir {
    pid: u32,
    ended: JoinHandle<std::io::Result<ExitStatus>>,
    /// When it is killed; `None` once it was.
    until: Option<Instant>,
}

impl Heir {
    /// `child` may take `patience` until it accepts.
    pub(crate) fn new(mut child: Child, patience: Duration) -> Self {
        Self {
            pid: child.id(),
            ended: tokio::task::spawn_blocking(move || child.wait()),
            until: Some(Instant::now() + patience),
        }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended, by itself or because its time was over; tells how.
    pub(crate) async fn ended(&mut self) -> String {
        if let Some(until) = self.until {
            if let Ok(ended) = tokio::time::timeout_at(until, &mut self.ended).await {
                return format!("it ended at its start ({})", words(ended));
            }
            self.until = None;
            if let Ok(pid) = i32::try_from(self.pid) {
                // Nobody but our thread reaps it, so the number is still its own.
                let killed =
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
                if let Err(error) = killed {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "cannot end the successor"
                    );
                }
            }
        }
        let ended = (&mut self.ended).await;
        format!(
            "it neither accepted nor ended in time and was killed ({})",
            words(ended)
        )
    }
}

fn words(ended: Result<std::io::Result<ExitStatus>, tokio::task::JoinError>) -> String {
    match ended {
        Ok(Ok(status)) => status.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_successor_that_gets_nowhere_is_ended() {
        let stuck = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut heir = Heir::new(stuck, Duration::ZERO);
        let why = heir.ended().await;
        assert!(why.contains("killed") && why.contains("signal: 9"), "{why}");
    }

    #[tokio::test]
    async fn one_that_ends_by_itself_is_not_waited_for() {
        let broken = std::process::Command::new("false").spawn().unwrap();
        let mut heir = Heir::new(broken, PATIENCE);
        let why = heir.ended().await;
        assert!(
            why.contains("at its start") && why.contains("exit status: 1"),
            "{why}"
        );
    }
}
