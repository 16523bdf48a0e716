//! What a proxy process is started with.

use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How to run a proxy.
pub struct Options {
    /// Listeners for plain HTTP and for HTTPS; more than one of a kind is fine (IPv4 and IPv6).
    pub listeners: Vec<Listener>,
    /// Where Prometheus may ask for metrics; off when absent. Meant for a private address.
    pub metrics: Option<SocketAddr>,
    /// Where the access log of services that ask for one is written; a thread of its own writes.
    pub access_log: Option<Box<dyn std::io::Write + Send>>,
    /// Path of the control socket; off when absent. A stale file there is replaced.
    pub control: Option<PathBuf>,
    /// Where the routing snapshot is kept.
    pub store: Store,
    /// Directory for bodies that are held back, made when it is needed; `spool` in the store's directory when absent.
    pub spool: Option<PathBuf>,
    /// Threads that serve requests; one for each processor when absent.
    pub workers: Option<usize>,
    /// How long open requests may go on after a stop signal. 30 s is usual.
    pub drain: Duration,
    /// Starts a successor of this process, on SIGUSR2; without it the signal is ignored.
    pub successor: Option<Successor>,
    /// Process that this one succeeds: it is told to finish once we accept.
    pub predecessor: Option<u32>,
    /// Told of each step of the process's life, so that the caller can tell systemd.
    pub notify: Box<dyn Fn(Notice) + Send + Sync>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("listeners", &self.listeners)
            .field("metrics", &self.metrics)
            .field("control", &self.control)
            .field("store", &self.store)
            .field("workers", &self.workers)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}

/// Starts another process of this program, which takes the listeners of [`Handover`] as its own.
pub type Successor = Box<dyn Fn(&Handover) -> std::io::Result<std::process::Child> + Send + Sync>;

/// Listening sockets that a child process inherits, in the order of [`Options::listeners`].
///
/// The child finds them at consecutive descriptors, as with systemd's protocol (sd_listen_fds(3)) but from another
/// first one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The first descriptor.
    pub first: i32,
    /// What is spoken on each.
    pub schemes: Vec<Scheme>,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP inside TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// 80 or 443.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// One listening socket.
#[derive(Debug)]
pub struct Listener {
    /// What is spoken there.
    pub scheme: Scheme,
    /// Where it comes from.
    pub socket: ListenerSocket,
    /// Whether every connection begins with a header of the PROXY protocol (version 1 or 2), whatever
    /// [`crate::snapshot::Settings::proxy_protocol_ports`] says.
    pub proxy_protocol: bool,
}

/// Where a listening socket comes from.
#[derive(Debug)]
pub enum ListenerSocket {
    /// Bind this address.
    Bind(SocketAddr),
    /// Already listening, handed over by systemd.
    Inherited(TcpListener),
}

/// Where the routing snapshot and the certificates are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// A state directory that belongs to the proxy alone: `snapshot.json`, `certificates/`, `local-ca/`.
    Directory(PathBuf),
    /// A snapshot file that a person edits: read again when it is replaced, and on SIGHUP.
    ///
    /// `certificates/` and `local-ca/` are kept beside it when they are needed.
    File(PathBuf),
}

impl Store {
    /// The directory that it lies in.
    pub(crate) fn directory(&self) -> &Path {
        match self {
            Self::Directory(directory) => directory,
            Self::File(file) => file.parent().unwrap_or(Path::new("")),
        }
    }
}

/// Steps of the process's life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// All listeners accept, with this many services.
    Ready {
        /// Services in the live snapshot.
        services: usize,
    },
    /// A stop signal came; requests in flight are finished.
    Stopping,
    /// A successor accepts now; requests in flight are finished here.
    HandedOver {
        /// Its process id.
        successor: u32,
    },
}
