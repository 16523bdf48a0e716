//! The real engine, over the daemon's socket.

use std::path::PathBuf;

/// A Docker daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
}

impl Docker {
    /// The daemon on `socket`, mostly `/var/run/docker.sock`.
    ///
    /// Nothing is opened yet: the first verb connects and settles the API version, and so does the first one after the daemon was away.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Docker {
            socket: socket.into(),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &std::path::Path {
        &self.socket
    }
}
