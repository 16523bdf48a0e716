//! Sessions: programs joined to a terminal or to pipes.

use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::query_parameters::{AttachContainerOptions, ResizeContainerTTYOptions, ResizeExecOptions};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};

use super::containers::checked;
use super::{Docker, translate};
use crate::engine::ExecRequest;
use crate::error::EngineError;
use crate::session::{Session, SessionId, TerminalSize};

impl Docker {
    /// Attached before the start, so that not a byte is missed.
    pub(super) async fn start_session_in(
        &self,
        id: &str,
        size: Option<TerminalSize>,
    ) -> Result<Session, EngineError> {
        let doing = format!("attaching to container {id}");
        checked(&doing, id)?;
        let client = self.client(&doing).await?;
        let options = AttachContainerOptions {
            stdin: true,
            stdout: true,
            stderr: true,
            stream: true,
            ..AttachContainerOptions::default()
        };
        let attached = client
            .attach_container(id, Some(options))
            .await
            .map_err(|error| self.failure(&doing, error))?;
        self.start_container(id).await?;
        let session = SessionId::Container(id.to_owned());
        if let Some(size) = size {
            // A program that has ended already has no terminal to resize.
            let _gone = self.resize(&session, size).await;
        }
        let docker = self.clone();
        let output = attached
            .output
            .map_ok(translate::line)
            .map_err(move |error| docker.failure(&doing, error));
        Ok(Session {
            id: session,
            input: attached.input,
            output: output.boxed(),
        })
    }

    pub(super) async fn exec_session_in(
        &self,
        id: &str,
        request: &ExecRequest,
        size: Option<TerminalSize>,
    ) -> Result<Session, EngineError> {
        let doing = format!("running a command in container {id}");
        checked(&doing, id)?;
        let client = self.client(&doing).await?;
        let options = CreateExecOptions {
            attach_stdin: Some(true),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(size.is_some()),
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
            .start_exec(
                &created.id,
                Some(StartExecOptions {
                    tty: size.is_some(),
                    ..StartExecOptions::default()
                }),
            )
            .await
            .map_err(|error| self.failure(&doing, error))?;
        let StartExecResults::Attached { output, input } = started else {
            return Err(EngineError::Incomplete {
                doing,
                what: "the attached streams",
            });
        };
        let session = SessionId::Exec(created.id);
        if let Some(size) = size {
            let _gone = self.resize(&session, size).await;
        }
        let docker = self.clone();
        let output = output
            .map_ok(translate::line)
            .map_err(move |error| docker.failure(&doing, error));
        Ok(Session {
            id: session,
            input,
            output: output.boxed(),
        })
    }

    pub(super) async fn resize(&self, id: &SessionId, size: TerminalSize) -> Result<(), EngineError> {
        const DOING: &str = "telling a program the size of its terminal";
        let client = self.client(DOING).await?;
        let (h, w) = (i32::from(size.rows), i32::from(size.columns));
        let done = match id {
            SessionId::Container(id) => {
                client
                    .resize_container_tty(id, ResizeContainerTTYOptions { h, w })
                    .await
            }
            SessionId::Exec(id) => client.resize_exec(id, ResizeExecOptions { h, w }).await,
        };
        done.map_err(|error| self.failure(DOING, error))
    }

    pub(super) async fn exit_of(&self, id: &SessionId) -> Result<i64, EngineError> {
        let doing = "asking how a command ended".to_owned();
        match id {
            SessionId::Container(id) => Ok(self.wait_container(id).await?.code),
            SessionId::Exec(id) => {
                let client = self.client(&doing).await?;
                let ended = client
                    .inspect_exec(id)
                    .await
                    .map_err(|error| self.failure(&doing, error))?;
                ended.exit_code.ok_or(EngineError::Incomplete {
                    doing,
                    what: "ExitCode",
                })
            }
        }
    }
}
