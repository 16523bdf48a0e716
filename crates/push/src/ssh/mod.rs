//! The SSH client: one connection, one command on the far side, its input and output as a byte stream.
//!
//! Everything that names russh's session API is in this folder, because that API moves.

mod auth;
pub mod config;
mod known_hosts;
mod session;

#[cfg(test)]
pub(crate) mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use session::{Exit, Session, connect};

use crate::sign::SignError;

/// What answers when a key file asks for its passphrase; `None` declines.
pub type Passphrase = Arc<dyn Fn(&Path) -> Option<String> + Send + Sync>;

/// Where to connect and how; values given here win over `~/.ssh/config`.
#[derive(Clone)]
pub struct Target {
    /// Host name, address, or alias of `~/.ssh/config`.
    pub host: String,
    /// TCP port; default 22.
    pub port: Option<u16>,
    /// Login name; default from the configuration, else the local one.
    pub user: Option<String>,
    /// The rest.
    pub options: Options,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.name())
    }
}

impl Target {
    /// `user@host:port` as far as it was given.
    pub fn name(&self) -> String {
        let user = self
            .user
            .as_ref()
            .map(|user| format!("{user}@"))
            .unwrap_or_default();
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        format!("{user}{}{port}", self.host)
    }

    /// Private keys that the configuration files name for this host (`IdentityFile`), in their order.
    ///
    /// # Errors
    /// When a file cannot be read or makes no sense.
    pub fn configured_identities(&self) -> Result<Vec<PathBuf>, SshError> {
        let around = config::Surroundings {
            home: self.options.home.as_deref(),
            local_user: self.options.local_user.as_deref(),
        };
        Ok(config::lookup(&self.options.config_files, &self.host, around)?.identities)
    }

    /// Parses `[user@]host[:port]`, with `[…]` around IPv6 addresses that carry a port.
    ///
    /// # Errors
    /// When the text has another form.
    pub fn parse(text: &str, options: Options) -> Result<Self, SshError> {
        let bad = || SshError::BadTarget {
            text: text.to_owned(),
        };
        let (user, rest) = match text.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, text),
        };
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(bad)?)),
            None if rest.matches(':').count() == 1 => {
                let (host, port) = rest.split_once(':').ok_or_else(bad)?;
                (host, Some(port))
            }
            None => (rest, None),
        };
        let port = port.map(|port| port.parse().map_err(|_| bad())).transpose()?;
        // A leading dash could be taken for an option by other tools that see this name.
        let odd = |text: &str| text.is_empty() || text.starts_with('-') || text.contains(char::is_whitespace);
        if odd(host) || user.is_some_and(odd) {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port,
            user: user.map(str::to_owned),
            options,
        })
    }
}

/// What to do with a host whose key is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostKeyPolicy {
    /// Refuse it.
    #[default]
    Strict,
    /// Remember it on first sight; a changed key is still refused.
    AcceptNew,
}

/// How to reach and enter hosts.
#[derive(Clone)]
pub struct Options {
    /// Private keys to offer; the usual ones of `~/.ssh` when there are none here and in the configuration.
    pub identities: Vec<PathBuf>,
    /// Whether only the keys named above are offered.
    pub identities_only: bool,
    /// Socket of the ssh-agent.
    pub agent: Option<PathBuf>,
    /// Files with known host keys; new ones go into the first.
    pub known_hosts: Vec<PathBuf>,
    /// What to do with unknown hosts; absent: what `StrictHostKeyChecking` says, else [`HostKeyPolicy::Strict`].
    pub policy: Option<HostKeyPolicy>,
    /// `~/.ssh/config` and `/etc/ssh/ssh_config`, most important first.
    pub config_files: Vec<PathBuf>,
    /// The home directory, for `~`.
    pub home: Option<PathBuf>,
    /// The local login name.
    pub local_user: Option<String>,
    /// Jump hosts (`[user@]host[:port]`), first hop first; absent: what `ProxyJump` says.
    pub jump: Option<Vec<String>>,
    /// For one connection to be made.
    pub connect_timeout: Duration,
    /// Quiet time after which the connection is probed; three unanswered probes end it.
    pub keepalive: Duration,
    /// Asks for passphrases of key files.
    pub passphrase: Passphrase,
}

impl Options {
    /// The usual files below a home directory; no agent, nobody to ask for passphrases.
    pub fn for_home(home: &Path) -> Self {
        let ssh = home.join(".ssh");
        Self {
            known_hosts: vec![
                ssh.join("known_hosts"),
                ssh.join("known_hosts2"),
                "/etc/ssh/ssh_known_hosts".into(),
            ],
            config_files: vec![ssh.join("config"), "/etc/ssh/ssh_config".into()],
            home: Some(home.to_owned()),
            ..Self::bare()
        }
    }

    /// Nothing at all is read from the machine.
    pub fn bare() -> Self {
        Self {
            identities: Vec::new(),
            identities_only: false,
            agent: None,
            known_hosts: Vec::new(),
            policy: None,
            config_files: Vec::new(),
            home: None,
            local_user: None,
            jump: None,
            connect_timeout: Duration::from_secs(15),
            keepalive: Duration::from_secs(15),
            passphrase: Arc::new(|_| None),
        }
    }
}

/// Why a host could not be entered.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// Not a host.
    #[error("{text:?} is not of the form [user@]host[:port]")]
    BadTarget {
        /// What was given.
        text: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}")]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {path}")]
    WriteFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// `ssh_config` has a value that makes no sense.
    #[error("{path}:{line}: {why}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// `ProxyCommand` is set.
    #[error(
        "the configuration of {host} uses ProxyCommand ({command}), which is not supported; use ProxyJump, or add `ProxyCommand none` for it"
    )]
    ProxyCommand {
        /// Which host.
        host: String,
        /// The command.
        command: String,
    },
    /// No login name.
    #[error("no login name for {host}; write user@{host} or set ssh/user in the configuration")]
    NoUser {
        /// Which host.
        host: String,
    },
    /// The host does not answer.
    #[error("{host} port {port} cannot be reached")]
    Unreachable {
        /// Which host.
        host: String,
        /// Which port.
        port: u16,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host answers too slowly.
    #[error(
        "{host} port {port} did not answer within {seconds} s; is the address right, and port {port} open?"
    )]
    TimedOut {
        /// Which host.
        host: String,
        /// Which port.
        port: u16,
        /// How long.
        seconds: u64,
    },
    /// Something answers, but not as an SSH server we can talk to.
    #[error("{host} port {port} does not speak SSH with us")]
    Handshake {
        /// Which host.
        host: String,
        /// Which port.
        port: u16,
        /// Why.
        #[source]
        source: russh::Error,
    },
    /// Nobody knows this host's key.
    #[error(
        "the key of {host} is not known: {algorithm} {fingerprint}; compare it with the provider's console, then run: ssh {host} (or accept it with --accept-new-host-key)"
    )]
    HostKeyUnknown {
        /// Name in known_hosts.
        host: String,
        /// Its type.
        algorithm: String,
        /// What the host showed.
        fingerprint: String,
    },
    /// Another key than the known one.
    #[error(
        "the key of {host} has CHANGED: it shows {shown}, but {file}:{line} knows {known}; if the server was set up anew, remove the old key with: ssh-keygen -R '{host}' -f {file}"
    )]
    HostKeyChanged {
        /// Name in known_hosts.
        host: String,
        /// What the host showed.
        shown: String,
        /// What is known.
        known: String,
        /// Where.
        file: PathBuf,
        /// Where, from 1.
        line: usize,
    },
    /// A key marked as stolen.
    #[error("the key of {host} is marked as revoked in {file}:{line}")]
    HostKeyRevoked {
        /// Name in known_hosts.
        host: String,
        /// Where.
        file: PathBuf,
        /// Where, from 1.
        line: usize,
    },
    /// There is no key to offer.
    #[error(
        "there is no key to enter {host} with; make one with ssh-keygen -t ed25519, or start an ssh-agent"
    )]
    NoKeys {
        /// Which host.
        host: String,
        /// Why keys that are there cannot be used.
        #[source]
        source: Option<Box<SignError>>,
    },
    /// The host takes none of the keys.
    #[error("{user}@{host} takes none of our keys (tried: {}); ask an administrator to enrol one", tried.join(", "))]
    AuthRefused {
        /// Which login name.
        user: String,
        /// Which host.
        host: String,
        /// Fingerprints and where they are from.
        tried: Vec<String>,
    },
    /// The connection broke while logging in.
    #[error("the connection to {host} broke while logging in")]
    Login {
        /// Which host.
        host: String,
        /// Why.
        #[source]
        source: russh::Error,
    },
    /// The jump host did not pass us on.
    #[error("the jump host {jump} does not pass on to {host} port {port}")]
    Jump {
        /// Which jump host.
        jump: String,
        /// Where to.
        host: String,
        /// Which port.
        port: u16,
        /// Why.
        #[source]
        source: Box<russh::Error>,
    },
    /// The command was not started.
    #[error("{host} did not start {command:?}")]
    Exec {
        /// Which host.
        host: String,
        /// What.
        command: String,
        /// Why.
        #[source]
        source: Box<russh::Error>,
    },
    /// The command was refused.
    #[error("{host} refuses to start {command:?}")]
    ExecRefused {
        /// Which host.
        host: String,
        /// What.
        command: String,
    },
    /// From inside the protocol.
    #[error("the SSH connection failed")]
    Protocol(#[from] russh::Error),
}
