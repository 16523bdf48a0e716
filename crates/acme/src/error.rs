//! Why a certificate could not be had.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::front::FrontError;
use crate::name::Name;

/// Why a certificate could not be issued, renewed, revoked or kept.
#[derive(Debug, thiserror::Error)]
pub enum AcmeError {
    /// A setting cannot be used.
    #[error("the ACME settings cannot be used: {0}")]
    Settings(String),
    /// A file of the store could not be read or written.
    #[error("cannot use {}", path.display())]
    Store {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The authority cannot be reached, or does not answer as ACME does.
    #[error("the certificate authority {directory} cannot be used ({doing})")]
    Authority {
        /// Its directory.
        directory: String,
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: Box<instant_acme::Error>,
    },
    /// The authority asks for patience.
    #[error(
        "the certificate authority asks to wait until {until} before it is asked for {name} again: {why}"
    )]
    RateLimited {
        /// For which name.
        name: Name,
        /// Until when.
        until: Timestamp,
        /// Its words.
        why: String,
    },
    /// The authority did not accept the proof of control.
    #[error("the certificate authority could not verify {name} by {challenge}: {why}")]
    Unproved {
        /// For which name.
        name: Name,
        /// By which challenge.
        challenge: &'static str,
        /// Its words.
        why: String,
    },
    /// Nothing that is configured can prove the name.
    #[error("{0} can only be proved by dns-01, and no DNS command is configured")]
    NoProof(Name),
    /// The challenge could not be answered here.
    #[error("cannot answer the challenge for {name}")]
    Answer {
        /// For which name.
        name: Name,
        /// Why.
        #[source]
        source: FrontError,
    },
    /// The certificate could not be handed to whoever shows it.
    #[error("the certificate for {name} is there, but cannot be shown")]
    Install {
        /// For which name.
        name: Name,
        /// Why.
        #[source]
        source: FrontError,
    },
    /// A certificate that is gone could not be taken from whoever shows it.
    #[error("the certificate for {name} is gone, but may still be shown")]
    Uninstall {
        /// For which name.
        name: Name,
        /// Why.
        #[source]
        source: FrontError,
    },
    /// The DNS command did not set the record.
    #[error("the DNS command {program} did not {action} the record for {name}: {why}")]
    Dns {
        /// For which name.
        name: Name,
        /// Program.
        program: String,
        /// `present` or `cleanup`.
        action: &'static str,
        /// How it ended.
        why: String,
    },
    /// What the authority sent is no certificate for the key.
    #[error("what the certificate authority sent for {name} is not a certificate: {why}")]
    Certificate {
        /// For which name.
        name: Name,
        /// What is wrong.
        why: String,
    },
    /// A key or a request could not be made.
    #[error("cannot make a certificate request for {name}")]
    Request {
        /// For which name.
        name: Name,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// There is no such certificate.
    #[error("there is no certificate for {0}")]
    Unknown(Name),
}

impl AcmeError {
    /// Whether another kind of proof may do better.
    pub(crate) fn is_unproved(&self) -> bool {
        matches!(self, Self::Unproved { .. } | Self::Dns { .. })
    }

    /// The type of the authority's problem document (RFC 8555 §6.7), such as `rateLimited`.
    pub(crate) fn problem(&self) -> Option<&str> {
        let Self::Authority { source, .. } = self else {
            return None;
        };
        let instant_acme::Error::Api(problem) = &**source else {
            return None;
        };
        problem.r#type.as_deref()?.rsplit(':').next()
    }

    /// Until when the authority asked to be left alone.
    pub fn wait_until(&self) -> Option<Timestamp> {
        match self {
            Self::RateLimited { until, .. } => Some(*until),
            _ => None,
        }
    }
}
