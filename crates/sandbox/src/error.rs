//! What can go wrong, by what we were doing.

use std::path::PathBuf;

/// Why a sandbox operation failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// No Docker daemon answered.
    #[error(
        "cannot reach Docker at {socket}; is it running (`systemctl start docker`), and may this user use it?"
    )]
    Connect {
        /// The socket that was tried.
        socket: String,
        /// Why.
        #[source]
        source: bollard::errors::Error,
    },
    /// Docker refused a request or broke off.
    #[error("Docker could not {doing}")]
    Docker {
        /// What was asked, as in "start host `web`".
        doing: String,
        /// Why.
        #[source]
        source: bollard::errors::Error,
    },
    /// A file or directory of ours could not be used.
    #[error("cannot {doing}")]
    Io {
        /// What was tried, with the path.
        doing: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The root file system of an image could not be built.
    #[error(
        "cannot build the root file system of image `{image}`: mmdebstrap ended with {status}; last lines:\n{tail}"
    )]
    Rootfs {
        /// The image.
        image: String,
        /// Its exit status.
        status: String,
        /// The last lines it wrote.
        tail: String,
    },
    /// A program needed for building could not be run.
    #[error("cannot run `{program}`")]
    Program {
        /// Its name.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A host did not come up in time.
    #[error("host `{host}` did not boot within {seconds} s; it last said: {state}")]
    Boot {
        /// The host.
        host: String,
        /// How long was waited.
        seconds: u64,
        /// What `systemctl is-system-running` said last.
        state: String,
    },
    /// Units failed while a host booted.
    #[error("host `{host}` booted with failed units: {units}")]
    FailedUnits {
        /// The host.
        host: String,
        /// Their names.
        units: String,
    },
    /// A command inside a host ended badly.
    #[error("`{command}` on `{host}` ended with status {status}: {stderr}")]
    Command {
        /// The host.
        host: String,
        /// The command, for people.
        command: String,
        /// Its exit status; 124 means it ran out of time.
        status: i64,
        /// The end of what it wrote to standard error.
        stderr: String,
    },
    /// A name that Docker, DNS or systemd would not take.
    #[error("`{name}` cannot name a sandbox host: {why}")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A host of that name is there already.
    #[error("host `{name}` exists already; remove it first")]
    Exists {
        /// The name.
        name: String,
    },
    /// No host of that name.
    #[error("there is no sandbox host `{name}`")]
    Unknown {
        /// The name.
        name: String,
    },
    /// A host has no address, because it does not run.
    #[error("host `{name}` has no address; it is not running")]
    NoAddress {
        /// The name.
        name: String,
    },
    /// What a program inside a container answered cannot be read.
    #[error("cannot read what {what} answered: {answer}")]
    Answer {
        /// Which program.
        what: &'static str,
        /// The beginning of the answer.
        answer: String,
    },
    /// A background task of ours ended early.
    #[error("a build task ended early")]
    Task {
        /// Why.
        #[source]
        source: tokio::task::JoinError,
    },
    /// A file of the builder's archive is missing.
    #[error("the builder left no {what:?}")]
    Missing {
        /// The file.
        what: PathBuf,
    },
}

impl SandboxError {
    pub(crate) fn docker(doing: impl Into<String>) -> impl FnOnce(bollard::errors::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Docker { doing, source }
    }

    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// Whether Docker said "no such thing".
pub(crate) fn is_absent(error: &bollard::errors::Error) -> bool {
    matches!(
        error,
        bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }
    )
}

/// Whether Docker said "already there" or "in use".
pub(crate) fn is_conflict(error: &bollard::errors::Error) -> bool {
    matches!(
        error,
        bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }
    )
}
