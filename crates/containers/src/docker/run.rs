//! Running a container to its end, and commands in a running one.

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::query_parameters::AttachContainerOptions;
use futures_util::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use tokio::sync::mpsc;

use super::containers::checked;
use super::{Docker, translate};
use crate::engine::{ExecRequest, Exit, LogLine, LogQuery, State};
use crate::error::EngineError;
use crate::spec::ContainerSpec;

impl Docker {
    /// ```text
    ///   absent ──create──► created ──attach, start──► running ──► exited
    ///                                                    │           │
    ///                                  log, followed ◄───┘           └──► log
    /// ```
    pub(super) async fn run_to_end(
        &self,
        spec: &ContainerSpec,
        output: mpsc::Sender<LogLine>,
    ) -> Result<Exit, EngineError> {
        let name = &spec.name;
        let state = match self.inspect_container(name).await? {
            Some(found) => found.state,
            None => match self.create_container(spec).await {
                Ok(_) | Err(EngineError::Conflict { .. }) => State::Created,
                Err(error) => return Err(error),
            },
        };
        if state == State::Created {
            // Attached before the start, so that nothing is missed whatever the log driver.
            let lines = self.attach(name).await?;
            self.start_container(name).await?;
            copy(lines, &output).await?;
        } else {
            let query = LogQuery {
                follow: true,
                ..LogQuery::default()
            };
            copy(self.container_logs(name, query), &output).await?;
        }
        self.wait_container(name).await
    }

    async fn attach(&self, id: &str) -> Result<BoxStream<'_, Result<LogLine, EngineError>>, EngineError> {
        let doing = format!("attaching to container {id}");
        let client = self.client(&doing).await?;
        let options = AttachContainerOptions {
            stdout: true,
            stderr: true,
            stream: true,
            ..AttachContainerOptions::default()
        };
        let attached = client
            .attach_container(id, Some(options))
            .await
            .map_err(|error| self.failure(&doing, error))?;
        let lines = attached
            .output
            .map_ok(translate::line)
            .map_err(move |error| self.failure(&doing, error));
        Ok(lines.boxed())
    }

    pub(super) async fn exec_in(
        &self,
        id: &str,
        request: &ExecRequest,
        output: mpsc::Sender<LogLine>,
    ) -> Result<i64, EngineError> {
        let doing = format!("running a command in container {id}");
        checked(&doing, id)?;
        let client = self.client(&doing).await?;
        let options = CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            cmd: Some(request.command.clone()),
            env: Some(request.env.clone()),
            user: request.user.clone(),
            working_dir: request.workdir.clone(),
            ..CreateExecOptions::default()
        };
        let created = client
            .create_exec(id, options)
            .await
            .map_err(|error| self.failure(&doing, error))?;
        let started = client
            .start_exec(&created.id, None::<StartExecOptions>)
            .await
            .map_err(|error| self.failure(&doing, error))?;
        if let StartExecResults::Attached { output: lines, .. } = started {
            let lines = lines
                .map_ok(translate::line)
                .map_err(|error| self.failure(&doing, error));
            copy(lines.boxed(), &output).await?;
        }
        let ended = client
            .inspect_exec(&created.id)
            .await
            .map_err(|error| self.failure(&doing, error))?;
        ended.exit_code.ok_or(EngineError::Incomplete {
            doing,
            what: "ExitCode",
        })
    }
}

/// Copies until the end; a receiver that has gone away only ends the copying.
async fn copy(
    mut lines: BoxStream<'_, Result<LogLine, EngineError>>,
    output: &mpsc::Sender<LogLine>,
) -> Result<(), EngineError> {
    while let Some(line) = lines.next().await {
        let line = line?;
        // Reading on keeps the program from blocking on a full pipe.
        let _ = output.send(line).await;
    }
    Ok(())
}
