//! How a command fails: the kind decides the exit code, the hints name the next command.

use std::fmt;

/// Why a command failed, as scripts see it.
///
/// | code | kind |
/// |---|---|
/// | 1 | anything else |
/// | 2 | the configuration or a secret is wrong; nothing was sent |
/// | 3 | the host refused: signature, permission, expectation, another push in progress |
/// | 4 | the host cannot be reached, or is not an appliance |
/// | 5 | the release did not become healthy; the previous one serves |
/// | 6 | this system is not supported; nothing was touched |
/// | 9 | `doctor` found something |
/// | 64 | wrong usage of the command line |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Exit code 1.
    Other,
    /// Exit code 2.
    Config,
    /// Exit code 3.
    Refused,
    /// Exit code 4.
    Unreachable,
    /// Exit code 5.
    Reverted,
    /// Exit code 6.
    Unsupported,
    /// Exit code 9.
    Findings,
}

impl Kind {
    /// The process exit code, stable and documented in the README.
    pub fn code(self) -> u8 {
        match self {
            Kind::Other => 1,
            Kind::Config => 2,
            Kind::Refused => 3,
            Kind::Unreachable => 4,
            Kind::Reverted => 5,
            Kind::Unsupported => 6,
            Kind::Findings => 9,
        }
    }
}

/// An error with its kind and what to run next; travels inside `anyhow::Error`.
#[derive(Debug)]
pub struct Failure {
    /// Decides the exit code.
    pub kind: Kind,
    /// What failed, where and why.
    pub message: String,
    /// Commands to run next, in order.
    pub hints: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// A failure of `kind` with a message.
pub fn failure(kind: Kind, message: impl Into<String>) -> Failure {
    Failure {
        kind,
        message: message.into(),
        hints: Vec::new(),
    }
}

impl Failure {
    /// Adds the next command.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }
}

/// The exit code and the hints of an error, from the first [`Failure`] in its chain.
pub fn classify(error: &anyhow::Error) -> (Kind, Vec<String>) {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<Failure>())
        .map_or((Kind::Other, Vec::new()), |failure| {
            (failure.kind, failure.hints.clone())
        })
}
