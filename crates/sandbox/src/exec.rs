//! Running programs inside a container: argument vectors, bounded in time and output.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::AsyncWriteExt as _;

use crate::engine::{Progress, Sandbox};
use crate::error::SandboxError;

/// Output beyond this is dropped, per stream. In bytes.
const OUTPUT_LIMIT: usize = 16 << 20;

/// A line longer than this is told in pieces. In bytes.
const LINE_LIMIT: usize = 64 << 10;

/// A program to run inside a host.
#[derive(Clone, Debug)]
pub struct Command {
    argv: Vec<String>,
    env: Vec<String>,
    user: Option<String>,
    directory: Option<String>,
    stdin: Bytes,
    timeout: Duration,
}

impl Command {
    /// A program and its arguments, run as root in `/` without a shell, for at most ten minutes.
    pub fn new<I, S>(argv: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            user: None,
            directory: None,
            stdin: Bytes::new(),
            timeout: Duration::from_secs(600),
        }
    }

    /// What the program reads from standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Bytes>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// One environment variable more.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Who runs it, instead of root.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Where it runs.
    #[must_use]
    pub fn directory(mut self, directory: &str) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// After this the program is sent `SIGTERM`, five seconds later `SIGKILL`; the status is then 124 or 137.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    fn line(&self) -> String {
        self.argv.join(" ")
    }
}

/// What a program wrote and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 124 if it ran out of time.
    pub status: i64,
    /// Standard output, at most 16 MiB.
    pub stdout: Vec<u8>,
    /// Standard error, at most 16 MiB.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it ended with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// Standard output as text, trimmed.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim().to_owned()
    }

    /// Standard error as text, trimmed.
    #[must_use]
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).trim().to_owned()
    }
}

impl Sandbox {
    /// Runs a program in a container and waits for its end; `lines` is told what it writes, as it comes.
    pub(crate) async fn exec(
        &self,
        container: &str,
        command: &Command,
        lines: Option<Progress<'_>>,
    ) -> Result<Output, SandboxError> {
        let doing = || SandboxError::docker(format!("run `{}` in {container}", command.line()));
        // Docker cannot end an exec, so the container's own `timeout` does.
        let seconds = command.timeout.as_secs().max(1).to_string();
        let mut argv = vec!["timeout".to_owned(), "--kill-after=5".to_owned(), seconds];
        argv.extend(command.argv.iter().cloned());
        let options = CreateExecOptions {
            attach_stdin: Some(!command.stdin.is_empty()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            env: Some(command.env.clone()),
            cmd: Some(argv),
            user: command.user.clone(),
            working_dir: command.directory.clone(),
            ..CreateExecOptions::default()
        };
        let id = self
            .docker()
            .create_exec(container, options)
            .await
            .map_err(doing())?
            .id;
        let started = self
            .docker()
            .start_exec(&id, None::<bollard::exec::StartExecOptions>)
            .await
            .map_err(doing())?;
        let (mut stdout, mut stderr) = (Stream::new(lines), Stream::new(lines));
        if let StartExecResults::Attached {
            mut output,
            mut input,
        } = started
        {
            let stdin = command.stdin.clone();
            let feed = async move {
                // A program that stops reading is not our failure: its status tells.
                let _closed = input.write_all(&stdin).await;
                let _closed = input.shutdown().await;
            };
            let drain = async {
                while let Some(chunk) = output.next().await {
                    match chunk.map_err(doing())? {
                        LogOutput::StdErr { message } => stderr.take(&message),
                        LogOutput::StdOut { message } | LogOutput::Console { message } => {
                            stdout.take(&message);
                        }
                        LogOutput::StdIn { .. } => {}
                    }
                }
                Ok(())
            };
            let ((), drained) = tokio::join!(feed, drain);
            drained?;
        }
        let ended = self.docker().inspect_exec(&id).await.map_err(doing())?;
        Ok(Output {
            status: ended.exit_code.unwrap_or(-1),
            stdout: stdout.end(),
            stderr: stderr.end(),
        })
    }

    /// Like [`Sandbox::exec`], but a status other than 0 is an error.
    pub(crate) async fn exec_ok(
        &self,
        host: &str,
        container: &str,
        command: &Command,
    ) -> Result<Output, SandboxError> {
        let output = self.exec(container, command, None).await?;
        if output.success() {
            return Ok(output);
        }
        let text = output.error_text();
        let start = text.char_indices().rev().nth(2000).map_or(0, |(index, _)| index);
        Err(SandboxError::Command {
            host: host.to_owned(),
            command: command.line(),
            status: output.status,
            stderr: text[start..].to_owned(),
        })
    }
}

/// One stream of a program: what is kept of it, and where its lines go.
struct Stream<'a> {
    kept: Vec<u8>,
    /// The beginning of a line whose end has not come yet.
    open: Vec<u8>,
    lines: Option<Progress<'a>>,
}

impl<'a> Stream<'a> {
    fn new(lines: Option<Progress<'a>>) -> Self {
        Self {
            kept: Vec::new(),
            open: Vec::new(),
            lines,
        }
    }

    fn take(&mut self, message: &[u8]) {
        let room = OUTPUT_LIMIT.saturating_sub(self.kept.len());
        self.kept.extend_from_slice(&message[..message.len().min(room)]);
        let Some(tell) = self.lines else { return };
        for piece in message.split_inclusive(|byte| *byte == b'\n') {
            self.open.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.open.len() > LINE_LIMIT {
                tell(String::from_utf8_lossy(&self.open).trim_end());
                self.open.clear();
            }
        }
    }

    fn end(self) -> Vec<u8> {
        if let Some(tell) = self.lines.filter(|_| !self.open.is_empty()) {
            tell(String::from_utf8_lossy(&self.open).trim_end());
        }
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn lines_are_told_whole_however_they_arrive() {
        let told = Mutex::new(Vec::new());
        let tell = |line: &str| told.lock().expect("one thread").push(line.to_owned());
        let mut stream = Stream::new(Some(&tell));
        for piece in ["on", "e\ntwo\n", "", "\n", "last"] {
            stream.take(piece.as_bytes());
        }
        assert_eq!(stream.end(), b"one\ntwo\n\nlast");
        assert_eq!(*told.lock().expect("one thread"), ["one", "two", "", "last"]);
    }

    #[test]
    fn what_is_kept_and_told_is_bounded() {
        let told = Mutex::new(0);
        let tell = |_: &str| *told.lock().expect("one thread") += 1;
        let mut stream = Stream::new(Some(&tell));
        for _ in 0..40 {
            stream.take(&vec![b'x'; 1 << 20]);
        }
        assert_eq!(stream.end().len(), OUTPUT_LIMIT);
        assert_eq!(
            *told.lock().expect("one thread"),
            40,
            "an endless line is told in pieces"
        );
    }
}
