//! What the administrator asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use crate::firewall::opening::{Net, Opening, Ports, Source};
use crate::firewall::rules::{Mode, Routed};
use crate::key::{Permission, PublicKey};

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

/// A key of `host.yml` that is neither an administrator's nor one that may deploy everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LimitedKey {
    /// The key.
    pub key: PublicKey,
    /// What it may do.
    pub permission: Permission,
}

/// What is reachable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FirewallWishes {
    /// Whose rules hold; UFW's where it was on when we came, else ours.
    pub mode: Option<Mode>,
    /// No table of ours at all.
    pub off: bool,
    /// Openings besides SSH.
    pub openings: Vec<Opening>,
    /// Containers that are reached by their own addresses.
    pub routed: Vec<Routed>,
    /// Interfaces that may reach everything.
    pub trusted: BTreeSet<String>,
    /// Interfaces that lead outside although it cannot be told.
    pub outside: BTreeSet<String>,
    /// Whoever fails to log in again and again is kept out for a while.
    pub bans: bool,
    /// Containers may not reach the cloud's metadata service.
    pub block_metadata: bool,
}

/// How sshd behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SshWishes {
    /// The port; left as it is if absent.
    pub port: Option<u16>,
    /// Root may not log in at all.
    pub no_root: bool,
    /// Port forwarding, which Kamal's local registry and jump hosts use.
    pub tcp_forwarding: bool,
    /// Agent forwarding.
    pub agent_forwarding: bool,
    /// Log-in names that may be used at all; all if empty.
    pub allow_users: Vec<String>,
    /// Networks SSH is reachable from; all if empty.
    pub from: BTreeSet<Net>,
}

/// Swap space.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Swap {
    /// A file where there is no swap and less than 4 GiB of memory.
    #[default]
    Auto,
    /// None is added.
    Off,
    /// A file of this many bytes.
    Bytes(u64),
}

/// Everything bootstrap is told; all else it observes.
#[derive(Debug, Clone, Serialize)]
pub struct Options {
    /// Keys that may do everything, with a shell as root.
    pub admin_keys: Vec<PublicKey>,
    /// Keys that may deploy every app, without a shell.
    pub deploy_keys: Vec<PublicKey>,
    /// Keys that may do less.
    pub limited_keys: Vec<LimitedKey>,
    /// Fingerprints of the keys that `host.yml` names: what opens doors to them goes when it names them no more.
    pub declared: BTreeSet<String>,
    /// Networks a key may be used from, by fingerprint; everywhere if there is none.
    pub key_networks: BTreeMap<String, Vec<Net>>,
    /// Where the Docker Engine comes from.
    pub docker: DockerSource,
    /// The deploy user is in the group `docker`, which makes it root.
    pub docker_group: bool,
    /// New networks have IPv6 too.
    pub docker_ipv6: bool,
    /// Accept a container, and cgroup v1.
    pub allow_container: bool,
    /// The binary that becomes `/usr/local/bin/appliance`; absent where there is none to install (tests).
    pub binary: Option<PathBuf>,
    /// Its version, written down when a run is complete.
    pub version: String,
    /// What is reachable.
    pub firewall: FirewallWishes,
    /// How sshd behaves.
    pub ssh: SshWishes,
    /// The optional items too.
    pub strict: bool,
    /// Items switched on or off, by id or by a name of the hardening list.
    pub items: BTreeMap<String, bool>,
    /// Swap space.
    pub swap: Swap,
    /// IANA name of the time zone; left as it is if absent.
    pub timezone: Option<String>,
    /// Security updates are installed on their own.
    pub security_updates: bool,
    /// When the host may reboot on its own, `03:30`; never if absent.
    pub reboot_at: Option<String>,
    /// Bytes of each of the five files of a container's log.
    pub log_size: u64,
    /// Bytes of the journal, at most; a twentieth of the disk if that is less.
    pub journal_size: u64,
    /// Where the journal is sent to, `https://logs.example.com:19532`; nowhere if absent.
    pub ship_logs_to: Option<String>,
    /// Bytes of the build cache.
    pub image_cache: u64,
    /// The text of `host.yml`, where another one than that of the host was given.
    #[serde(skip)]
    pub host_yml: Option<String>,
    /// Files of ours that somebody edited are replaced instead of kept.
    pub force: bool,
}

impl Options {
    /// The defaults of a web server: 80 and 443 open.
    pub fn new(version: &str) -> Self {
        Self {
            admin_keys: Vec::new(),
            deploy_keys: Vec::new(),
            limited_keys: Vec::new(),
            declared: BTreeSet::new(),
            key_networks: BTreeMap::new(),
            docker: DockerSource::Auto,
            docker_group: false,
            docker_ipv6: false,
            allow_container: false,
            binary: None,
            version: version.to_owned(),
            firewall: FirewallWishes {
                mode: None,
                off: false,
                openings: [80, 443].map(builtin).to_vec(),
                routed: Vec::new(),
                trusted: BTreeSet::new(),
                outside: BTreeSet::new(),
                bans: true,
                block_metadata: true,
            },
            ssh: SshWishes {
                port: None,
                no_root: false,
                tcp_forwarding: true,
                agent_forwarding: false,
                allow_users: Vec::new(),
                from: BTreeSet::new(),
            },
            strict: false,
            items: BTreeMap::new(),
            swap: Swap::Auto,
            timezone: None,
            security_updates: true,
            reboot_at: None,
            log_size: 10 << 20,
            journal_size: 500 << 20,
            ship_logs_to: None,
            image_cache: 10 << 30,
            host_yml: None,
            force: false,
        }
    }
}

fn builtin(port: u16) -> Opening {
    Opening {
        ports: Ports::tcp(port),
        from: Vec::new(),
        comment: String::new(),
        source: Source::Builtin,
    }
}
