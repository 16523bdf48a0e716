//! Commands in containers, and what they print.

use std::time::Duration;

use appliance_containers::engine::{ExecRequest, LogLine, Stream};
use appliance_containers::{ContainerSpec, EngineError};
use tokio::sync::mpsc;

use crate::agent::Agent;

/// No answer of a command that is read whole is longer.
const LIMIT: usize = 64 << 20;

/// What a command printed, and how it ended.
#[derive(Debug, Clone)]
pub struct Said {
    /// Exit code.
    pub code: i64,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

async fn gather(mut lines: mpsc::Receiver<LogLine>) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(line) = lines.recv().await {
        let into = if line.stream == Stream::Stdout {
            &mut out
        } else {
            &mut err
        };
        if into.len() < LIMIT {
            into.extend_from_slice(&line.bytes);
        }
    }
    (
        String::from_utf8_lossy(&out).into_owned(),
        String::from_utf8_lossy(&err).into_owned(),
    )
}

impl Agent {
    /// Runs a command in a running container and reads what it prints; `limit` is for all of it.
    ///
    /// # Errors
    /// When Docker does not answer, or it takes too long.
    pub(super) async fn ask(
        &self,
        container: &str,
        command: Vec<String>,
        env: Vec<String>,
        limit: Duration,
    ) -> Result<Said, EngineError> {
        let request = ExecRequest {
            command,
            env,
            ..ExecRequest::default()
        };
        let (sender, receiver) = mpsc::channel(64);
        let both = async {
            let (code, (out, err)) =
                tokio::join!(self.docker.exec(container, &request, sender), gather(receiver));
            code.map(|code| Said { code, out, err })
        };
        tokio::time::timeout(limit, both).await.unwrap_or_else(|_| {
            Err(EngineError::TimedOut {
                doing: format!(
                    "running {} in container {container}",
                    request.command.first().map_or("a command", String::as_str)
                ),
                limit,
            })
        })
    }

    /// Runs a throw-away container to its end and reads what it prints.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub(super) async fn run_and_read(&self, spec: &ContainerSpec) -> Result<Said, EngineError> {
        let (sender, receiver) = mpsc::channel(64);
        let (exit, (out, err)) = tokio::join!(self.docker.run_once(spec, sender), gather(receiver));
        let _gone = self.docker.remove(&spec.name, true).await;
        Ok(Said {
            code: exit?.code,
            out,
            err,
        })
    }
}
