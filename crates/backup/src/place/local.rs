//! Programs of this very machine; for servers that run outside of containers.

use std::io;
use std::path::PathBuf;
use std::process::Stdio;

use futures_util::future::BoxFuture;
use nix::sys::stat::Mode;
use tokio::process::Command;

use super::{Ended, Job, OUTPUT_LIMIT, Pipe, Place, PlaceError};

/// This machine.
#[derive(Debug, Clone)]
pub struct LocalPlace {
    /// Directory of the programs.
    pub programs: PathBuf,
    /// Directory for FIFOs.
    pub pipes: PathBuf,
    /// Environment of every program; nothing else is passed on.
    pub env: Vec<(String, String)>,
}

/// Opens a FIFO for a program, which waits until the other end is there: on a thread of its own, as the other end may
/// be gone for good, and [`Place::release_pipes`] must get its turn then.
async fn open(pipe: &str, write: bool) -> io::Result<Stdio> {
    let pipe = PathBuf::from(pipe);
    let opened =
        tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().read(!write).write(write).open(pipe));
    Ok(opened.await.map_err(io::Error::other)??.into())
}

impl Place for LocalPlace {
    fn name(&self) -> &str {
        "this machine"
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Ended, PlaceError>> {
        Box::pin(async move {
            let (program, arguments) = job
                .command
                .split_first()
                .map_or((String::new(), &[][..]), |(program, rest)| {
                    (program.clone(), rest)
                });
            let fail = |error: io::Error| PlaceError::Run {
                program: program.clone(),
                place: self.name().to_owned(),
                source: error.into(),
            };
            let mut path = self.programs.join(&program);
            if !path.is_file() {
                path = PathBuf::from(&program);
            }
            let stdin = match &job.stdin {
                Some(pipe) => open(pipe, false).await.map_err(fail)?,
                None => Stdio::null(),
            };
            let stdout = match &job.stdout {
                Some(pipe) => open(pipe, true).await.map_err(fail)?,
                None => Stdio::piped(),
            };
            let mut command = Command::new(path);
            command
                .args(arguments)
                .env_clear()
                .env("PATH", "/usr/local/bin:/usr/bin:/bin")
                .envs(self.env.iter().chain(&job.env).map(|(name, value)| (name, value)))
                .stdin(stdin)
                .stdout(stdout)
                .stderr(Stdio::piped());
            let output = command.spawn().map_err(fail)?;
            // Our copies of the FIFO's ends must not outlive the program's own.
            drop(command);
            let output = output.wait_with_output().await.map_err(fail)?;
            use std::os::unix::process::ExitStatusExt as _;
            let code = output
                .status
                .code()
                .unwrap_or_else(|| 128 + output.status.signal().unwrap_or_default());
            let mut stdout = output.stdout;
            stdout.truncate(OUTPUT_LIMIT);
            Ok(Ended {
                code: i64::from(code),
                stdout,
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            })
        })
    }

    fn pipe(&self, name: &str) -> Result<Pipe, PlaceError> {
        let outside = self.pipes.join(format!("{name}.fifo"));
        nix::unistd::mkfifo(&outside, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|error| PlaceError::Pipe {
            place: self.name().to_owned(),
            source: error.into(),
        })?;
        Ok(Pipe {
            inside: outside.to_string_lossy().into_owned(),
            outside,
            holder: None,
        })
    }

    fn release_pipes(&self) {
        use std::os::unix::fs::OpenOptionsExt as _;
        for entry in fs_err::read_dir(&self.pipes).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".fifo") {
                let _both_ends = std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(nix::libc::O_NONBLOCK)
                    .open(entry.path());
                let _gone = fs_err::remove_file(entry.path());
            }
        }
    }
}
