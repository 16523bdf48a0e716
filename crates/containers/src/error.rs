//! What can go wrong between us and the engine.

use std::path::PathBuf;
use std::time::Duration;

/// Why a verb failed.
///
/// `doing` is a phrase such as `starting container blog-web-42`.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nobody answers on the socket: Docker is stopped, starting, or not installed.
    #[error("{doing}: Docker does not answer on {socket}; run: systemctl status docker")]
    Unreachable {
        /// What we were doing.
        doing: String,
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: bollard::errors::Error,
    },
    /// The daemon is there but did not answer in time.
    #[error("{doing}: Docker gave no answer within {} s", limit.as_secs())]
    TimedOut {
        /// What we were doing.
        doing: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The thing does not exist.
    #[error("{doing}: there is no such thing: {message}")]
    NotFound {
        /// What we were doing.
        doing: String,
        /// The daemon's words.
        message: String,
    },
    /// The name is taken, or the thing is in a state that does not allow it.
    #[error("{doing}: Docker reports a conflict: {message}")]
    Conflict {
        /// What we were doing.
        doing: String,
        /// The daemon's words.
        message: String,
    },
    /// The daemon refused or failed.
    #[error("{doing}: Docker refused: {message}")]
    Refused {
        /// What we were doing.
        doing: String,
        /// The HTTP status; 0 if the failure came inside a stream.
        status: u16,
        /// The daemon's words.
        message: String,
    },
    /// The daemon speaks no API version that we can use.
    #[error(
        "this Docker speaks API {found}, the oldest we can use is {needed} (Docker 20.10): upgrade Docker"
    )]
    TooOld {
        /// Its newest version.
        found: String,
        /// Our oldest.
        needed: &'static str,
    },
    /// The daemon is too old for one of the wishes.
    #[error(
        "{doing}: {what} needs Docker API {needed}, this daemon speaks {found}: upgrade Docker or leave it out"
    )]
    Unsupported {
        /// What we were doing.
        doing: String,
        /// The wish.
        what: &'static str,
        /// The API version that brought it.
        needed: String,
        /// The API version in use.
        found: String,
    },
    /// The text cannot be an id, a name or a reference.
    #[error("{doing}: {given:?} is not a name that Docker can have")]
    Malformed {
        /// What we were doing.
        doing: String,
        /// The text.
        given: String,
    },
    /// The answer lacks something the API promises.
    #[error("{doing}: Docker's answer lacks {what}")]
    Incomplete {
        /// What we were doing.
        doing: String,
        /// The missing member.
        what: &'static str,
    },
    /// The connection broke in the middle, or the answer makes no sense.
    #[error("{doing}: the exchange with Docker failed")]
    Exchange {
        /// What we were doing.
        doing: String,
        /// What the client library said.
        #[source]
        source: bollard::errors::Error,
    },
    /// Reading what was to be sent to the engine failed.
    #[error("{doing}: the data to be sent could not be read")]
    Input {
        /// What we were doing.
        doing: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl EngineError {
    /// Whether the thing does not exist, which for a removal is success.
    pub fn is_not_found(&self) -> bool {
        matches!(self, EngineError::NotFound { .. })
    }

    /// Whether the daemon itself was away, so that trying later makes sense.
    pub fn is_unreachable(&self) -> bool {
        use bollard::errors::Error;
        match self {
            EngineError::Unreachable { .. } | EngineError::TimedOut { .. } => true,
            EngineError::Exchange { source, .. } => matches!(
                source,
                Error::HyperLegacyError { .. } | Error::HyperResponseError { .. } | Error::IOError { .. }
            ),
            _ => false,
        }
    }
}
