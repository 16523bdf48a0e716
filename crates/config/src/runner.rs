//! Running the commands that a configuration names: ERB back-ticks, `$(...)` in secrets files, password managers.
//!
//! This is the only door from configuration to other programs, so a test can see everything that would be run.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// One program to run: an argument vector, never a shell string unless the configuration's own language means one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Program and arguments; the program is looked up on the `PATH` of [`Invocation::env`].
    pub argv: Vec<String>,
    /// The whole environment of the program.
    pub env: BTreeMap<String, String>,
    /// Where it runs.
    pub directory: PathBuf,
    /// What it reads; `None` hands our own standard input on, so that a password manager can ask.
    pub stdin: Option<Vec<u8>>,
}

/// What came out of a program.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output, whole.
    pub stdout: Vec<u8>,
    /// The end of standard error (at most 4 KiB), for error messages.
    pub stderr: String,
}

impl Outcome {
    /// Whether the program reported success.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }
}

/// Runs programs.
pub trait Runner: Sync {
    /// Runs one program to its end.
    ///
    /// # Errors
    /// When the program cannot be started, or its output cannot be read.
    fn run(&self, invocation: &Invocation) -> io::Result<Outcome>;
}

/// Runs real programs.
#[derive(Debug, Clone, Copy)]
pub struct ProcessRunner {
    /// Whether what a program writes to standard error also appears on ours while it runs.
    pub forward_stderr: bool,
}

/// How much of a program's standard error is kept for messages.
const STDERR_KEPT: usize = 4096;

impl Runner for ProcessRunner {
    fn run(&self, invocation: &Invocation) -> io::Result<Outcome> {
        let Some((program, arguments)) = invocation.argv.split_first() else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "empty command"));
        };
        let program = find_program(program, invocation)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{program} is not on PATH")))?;
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(&invocation.env)
            .current_dir(&invocation.directory)
            .stdin(if invocation.stdin.is_some() {
                Stdio::piped()
            } else {
                Stdio::inherit()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut stderr = child.stderr.take().expect("stderr was asked to be a pipe");
        let mut stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        let stdin = child.stdin.take().zip(invocation.stdin.clone());
        let forward = self.forward_stderr;
        std::thread::scope(|scope| {
            let complaints = scope.spawn(move || keep_tail(&mut stderr, forward));
            let feeder = scope.spawn(move || match stdin {
                // A program that stops reading early is not an error; its exit code tells.
                Some((mut pipe, bytes)) => pipe.write_all(&bytes).or_else(|error| match error.kind() {
                    io::ErrorKind::BrokenPipe => Ok(()),
                    _ => Err(error),
                }),
                None => Ok(()),
            });
            let mut output = Vec::new();
            let read = stdout.read_to_end(&mut output);
            let status = child.wait()?;
            read?;
            feeder.join().unwrap_or(Ok(()))?;
            Ok(Outcome {
                code: status.code(),
                stdout: output,
                stderr: complaints.join().unwrap_or_default(),
            })
        })
    }
}

/// The file a program's name stands for: itself when it holds a slash, else the first hit on `PATH`.
fn find_program(program: &str, invocation: &Invocation) -> Option<OsString> {
    if program.contains('/') {
        return Some(invocation.directory.join(program).into_os_string());
    }
    find_on_path(program, &invocation.env).map(PathBuf::into_os_string)
}

/// Looks a program up on the `PATH` of `env`.
pub fn find_on_path(program: &str, env: &BTreeMap<String, String>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = env.get("PATH").map_or("/usr/bin:/bin", String::as_str);
    path.split(':')
        .filter(|directory| !directory.is_empty())
        .map(|directory| PathBuf::from(directory).join(program))
        .find(|file| {
            std::fs::metadata(file)
                .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
        })
}

fn keep_tail(pipe: &mut impl io::Read, forward: bool) -> String {
    let mut kept = Vec::new();
    let mut chunk = [0; 1024];
    while let Ok(count) = pipe.read(&mut chunk) {
        if count == 0 {
            break;
        }
        if forward {
            let _nobody_reads = io::stderr().write_all(&chunk[..count]);
        }
        kept.extend_from_slice(&chunk[..count]);
        if kept.len() > 2 * STDERR_KEPT {
            kept.drain(..kept.len() - STDERR_KEPT);
        }
    }
    let start = kept.len().saturating_sub(STDERR_KEPT);
    String::from_utf8_lossy(&kept[start..]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invocation(argv: &[&str]) -> Invocation {
        Invocation {
            argv: argv.iter().map(ToString::to_string).collect(),
            env: BTreeMap::from([("A".to_owned(), "from env".to_owned())]),
            directory: PathBuf::from("/tmp"),
            stdin: Some(Vec::new()),
        }
    }

    #[test]
    fn a_program_gets_only_the_given_environment_and_directory() {
        let run = ProcessRunner {
            forward_stderr: false,
        };
        let outcome = run
            .run(&invocation(&["sh", "-c", "pwd; echo \"$A$HOME\""]))
            .expect("ran");
        assert_eq!(String::from_utf8_lossy(&outcome.stdout), "/tmp\nfrom env\n");
        assert!(outcome.success());
    }

    #[test]
    fn a_failure_keeps_what_the_program_said() {
        let run = ProcessRunner {
            forward_stderr: false,
        };
        let outcome = run
            .run(&invocation(&["sh", "-c", "echo no vault >&2; exit 3"]))
            .expect("ran");
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(3), "no vault"));
    }

    #[test]
    fn a_missing_program_is_named() {
        let run = ProcessRunner {
            forward_stderr: false,
        };
        let error = run
            .run(&invocation(&["no-such-program-here"]))
            .expect_err("missing");
        assert_eq!(error.to_string(), "no-such-program-here is not on PATH");
    }
}
