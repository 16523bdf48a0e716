//! The seam between deciding and doing: the few things bootstrap needs from a machine.
//!
//! [`Local`](crate::Local) is the machine we run on; the tests have one in memory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

/// One call of another program: an argument vector, never a shell line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment on top of a minimal one (`PATH`, `LC_ALL=C`).
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// After this long it is killed, with everything it started.
    pub timeout: Duration,
}

impl Command {
    /// A command that should answer within 30 s.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            stdin: Vec::new(),
            timeout: Duration::from_secs(30),
        }
    }

    /// With this standard input.
    #[must_use]
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    /// With one more environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With another time limit.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 + signal if a signal ended it, 127 if there is no such program.
    pub status: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Output {
    /// Whether the exit code was 0.
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// User and group by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// User name, or the number if it has none.
    pub user: String,
    /// Group name, or the number if it has none.
    pub group: String,
}

impl Owner {
    /// `user:group`.
    pub fn new(user: &str, group: &str) -> Self {
        Self {
            user: user.to_owned(),
            group: group.to_owned(),
        }
    }

    /// `root:root`.
    pub fn root() -> Self {
        Self::new("root", "root")
    }
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; never followed when writing.
    Symlink,
    /// A device, socket or pipe.
    Other,
}

/// A path's own metadata (links not followed).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, the lowest twelve.
    pub mode: u32,
    /// Whose it is.
    pub owner: Owner,
}

/// Why the machine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program could not be started.
    #[error("cannot run {program}")]
    Run {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program took too long.
    #[error("`{command}` did not end within {} s and was stopped", timeout.as_secs())]
    Timeout {
        /// Program and arguments.
        command: String,
        /// The limit.
        timeout: Duration,
    },
    /// A program failed.
    #[error("`{command}` failed with code {status}: {complaint}")]
    Failed {
        /// Program and arguments.
        command: String,
        /// Its exit code.
        status: i32,
        /// The last of what it said.
        complaint: String,
    },
    /// A file or directory could not be used.
    #[error("cannot {what} {}", path.display())]
    File {
        /// `read`, `write`, …
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A user or group that should exist does not.
    #[error("there is no user or group {0}")]
    NoOwner(String),
}

/// A machine.
pub trait Host {
    /// Runs a program to its end; a non-zero exit code is an answer, not an error.
    ///
    /// # Errors
    /// When it cannot be started or takes too long; a missing program is exit code 127.
    fn run(&self, command: &Command) -> Result<Output, HostError>;

    /// A path's metadata; `None` if there is nothing.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn entry(&self, path: &Path) -> Result<Option<Entry>, HostError>;

    /// A file's contents; `None` if there is no file.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, HostError>;

    /// Writes a whole file: temporary file beside it, mode and owner, fsync, rename, fsync of the directory.
    ///
    /// # Errors
    /// When that fails; the old contents then stand.
    fn write(&self, path: &Path, contents: &[u8], mode: u32, owner: &Owner) -> Result<(), HostError>;

    /// Makes a directory and its missing parents (0755 root), or corrects its mode and owner.
    ///
    /// # Errors
    /// When that fails.
    fn directory(&self, path: &Path, mode: u32, owner: &Owner) -> Result<(), HostError>;

    /// Whether two files hold the same bytes; `false` if either is missing.
    ///
    /// # Errors
    /// When one cannot be read.
    fn same(&self, a: &Path, b: &Path) -> Result<bool, HostError>;

    /// Copies a file, as atomically as [`Host::write`], owned by root.
    ///
    /// # Errors
    /// When that fails; the old contents then stand.
    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<(), HostError>;

    /// Removes a file; nothing there is fine.
    ///
    /// # Errors
    /// When that fails.
    fn remove(&self, path: &Path) -> Result<(), HostError>;

    /// Seconds since 1970.
    fn now(&self) -> u64;

    /// Waits, between attempts of something that others hold up.
    fn pause(&self, time: Duration);
}

/// Runs a program that has to succeed, and returns what it printed.
///
/// # Errors
/// As [`Host::run`], and when the exit code is not 0.
pub fn must(host: &dyn Host, command: &Command) -> Result<String, HostError> {
    let output = host.run(command)?;
    if output.ok() {
        return Ok(output.stdout);
    }
    Err(failed(command, &output))
}

/// The error for a program that said no.
pub fn failed(command: &Command, output: &Output) -> HostError {
    let said = if output.stderr.trim().is_empty() {
        &output.stdout
    } else {
        &output.stderr
    };
    let lines: Vec<&str> = said
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    HostError::Failed {
        command: command.argv.join(" "),
        status: output.status,
        complaint: lines[lines.len().saturating_sub(6)..].join(" / "),
    }
}
