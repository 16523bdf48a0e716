//! What the administrator asked for.

use std::path::PathBuf;

use serde::Serialize;

use crate::key::PublicKey;

/// Where the Docker Engine comes from if it has to be installed; a healthy one is always kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DockerSource {
    /// Docker's repository where it can be reached, else the distribution's package.
    #[default]
    Auto,
    /// Docker's repository.
    Docker,
    /// The distribution's package.
    Distribution,
}

/// Everything bootstrap is told; all else it observes.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Keys that may do everything, with a shell as root.
    pub admin_keys: Vec<PublicKey>,
    /// Keys that may deploy every app, without a shell.
    pub deploy_keys: Vec<PublicKey>,
    /// Where the Docker Engine comes from.
    pub docker: DockerSource,
    /// Accept a container, and cgroup v1.
    pub allow_container: bool,
    /// The binary that becomes `/usr/local/bin/appliance`; absent where there is none to install (tests).
    pub binary: Option<PathBuf>,
    /// Its version, written down when a run is complete.
    pub version: String,
    /// TCP ports open to everyone, besides sshd's own.
    pub open_tcp: Vec<u16>,
}

impl Options {
    /// The defaults of a web server: 80 and 443 open.
    pub fn new(version: &str) -> Self {
        Self {
            admin_keys: Vec::new(),
            deploy_keys: Vec::new(),
            docker: DockerSource::Auto,
            allow_container: false,
            binary: None,
            version: version.to_owned(),
            open_tcp: vec![80, 443],
        }
    }
}
