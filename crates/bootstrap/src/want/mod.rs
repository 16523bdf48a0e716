//! The kinds of things that can be wanted of a host; an item of the list is a few of these.
//!
//! Each can be observed ([`Want::observe`]), compared ([`Want::changes`], pure) and brought about ([`Want::act`]).
//! Acting is safe to repeat, and starts from a fresh observation.

pub(crate) mod act;
mod compare;
mod file;
mod handler;
mod look;
mod merge;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

pub use file::{Check, Conflict, Content, FileWant};
pub use handler::Handler;
pub(crate) use look::{Accounts, MOUNTS, is_loose, mount_flags};

use crate::firewall;
use crate::firewall::rules::Rules;
use crate::host::{Entry, HostError, Owner};
use crate::sshd;

/// One wanted state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Packages are installed; newer versions are none of our business.
    Packages {
        /// Their names.
        names: Vec<String>,
    },
    /// System users and groups of ours exist, as `/etc/sysusers.d/appliance.conf` describes them.
    Accounts {
        /// Groups.
        groups: Vec<String>,
        /// Users.
        users: Vec<String>,
    },
    /// A user people log in as, with a key and never with a password.
    Login {
        /// Its name.
        user: String,
        /// Its home directory.
        home: PathBuf,
        /// Groups it has to be in; others are left alone.
        groups: Vec<String>,
    },
    /// A directory.
    Directory {
        /// Where.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// Whose.
        owner: Owner,
    },
    /// Files that belong together.
    Files {
        /// The files.
        files: Vec<FileWant>,
        /// What to do when one of them changed.
        after: Vec<Handler>,
    },
    /// A program is the same as the one that runs.
    Binary {
        /// The one that runs.
        source: PathBuf,
        /// Where it belongs.
        target: PathBuf,
        /// What to do when it changed.
        after: Vec<Handler>,
    },
    /// A systemd unit is enabled and active.
    Unit {
        /// Its name.
        name: String,
    },
    /// The table `inet appliance` is written down as confirmed and in the kernel.
    Firewall(Rules),
    /// Our settings are in force in sshd.
    Sshd {
        /// Keyword and value.
        settings: sshd::Settings,
    },
    /// Kernel settings are written down and in force; those the kernel does not have are left out.
    Sysctl {
        /// The drop-in.
        path: PathBuf,
        /// Name and value.
        settings: Vec<(&'static str, &'static str)>,
    },
    /// Paths give nobody more than these permission bits; what is not there is fine.
    Rights {
        /// Path and widest mode.
        paths: Vec<(&'static str, u32)>,
    },
    /// Paths belong to root; what is not there is fine.
    Owned {
        /// Which.
        paths: Vec<&'static str>,
    },
    /// Packages are not installed.
    Gone {
        /// Their names.
        packages: Vec<String>,
    },
    /// There is swap: ours, if there is no other.
    Swap {
        /// Size of our file.
        bytes: u64,
    },
    /// The time zone.
    Timezone(String),
    /// A mount point has these flags; what is no mount point is fine.
    Mount {
        /// Where.
        path: &'static str,
        /// Such as `nosuid`.
        flags: &'static [&'static str],
    },
    /// A program was run once, and left this behind.
    Made {
        /// What it leaves.
        path: &'static str,
        /// The program.
        by: &'static [&'static str],
    },
    /// A user has no usable password; keys go on working.
    Locked {
        /// Its name.
        user: String,
    },
}

/// What was found where something is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    /// For [`Want::Packages`].
    Packages {
        /// Those that are not there.
        missing: Vec<String>,
        /// Whether dpkg was interrupted in the middle of something.
        interrupted: bool,
    },
    /// For [`Want::Accounts`].
    Accounts {
        /// Users and groups that are not there.
        missing: Vec<String>,
    },
    /// For [`Want::Login`].
    Login {
        /// Whether the user exists.
        exists: bool,
        /// Groups it is not in.
        missing_groups: Vec<String>,
    },
    /// For [`Want::Directory`].
    Directory(Option<Entry>),
    /// For [`Want::Files`], in the same order.
    Files(Vec<FileSeen>),
    /// For [`Want::Binary`].
    Binary {
        /// Whether it has the same bytes.
        same: bool,
        /// What is there.
        entry: Option<Entry>,
    },
    /// For [`Want::Unit`].
    Unit {
        /// As `systemctl is-enabled` says.
        enabled: String,
        /// As `systemctl is-active` says.
        active: String,
    },
    /// For [`Want::Firewall`].
    Firewall {
        /// The confirmed file.
        confirmed: FileSeen,
        /// Rules that wait for their confirmation.
        pending: FileSeen,
        /// The kernel, compared with those files.
        kernel: firewall::State,
    },
    /// For [`Want::Sshd`].
    Sshd {
        /// The drop-in.
        drop_in: FileSeen,
        /// What is in force.
        effective: BTreeMap<String, String>,
    },
    /// For [`Want::Sysctl`].
    Sysctl {
        /// The drop-in.
        drop_in: FileSeen,
        /// What is in force, by name; a name the kernel does not have is missing.
        effective: BTreeMap<String, String>,
    },
    /// For [`Want::Rights`]: path, mode, and the mode it may have at most.
    Rights(Vec<(String, u32, u32)>),
    /// For [`Want::Owned`]: those that are somebody else's, and whose.
    Owned(Vec<(String, String)>),
    /// For [`Want::Gone`]: those that are there.
    Gone(Vec<String>),
    /// For [`Want::Swap`], [`Want::Timezone`], [`Want::Mount`], [`Want::Made`] and [`Want::Locked`]:
    /// how it is, and whether that is as wanted.
    Plain {
        /// As it is.
        is: String,
        /// As wanted.
        right: bool,
    },
}

/// A file as found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FileSeen {
    /// What the path names.
    pub entry: Option<Entry>,
    /// Its bytes; not part of any report, since some are secret.
    #[serde(skip)]
    pub contents: Option<Vec<u8>>,
    /// Somebody else wrote these contents.
    pub edited: bool,
}

/// Why a want could not be brought about.
#[derive(Debug, thiserror::Error)]
pub enum WantError {
    /// Something of somebody else is in the way.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The machine did not do its part.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The firewall table could not be loaded.
    #[error(transparent)]
    Firewall(#[from] firewall::FirewallError),
    /// A new file would break the program that reads it.
    #[error("the new {path} was refused by its own check and not put in place")]
    Check {
        /// Which file.
        path: String,
        /// What the check said.
        #[source]
        source: HostError,
    },
    /// Packages could not be installed.
    #[error("cannot install {packages}")]
    Install {
        /// Which.
        packages: String,
        /// What apt said.
        #[source]
        source: HostError,
    },
    /// A unit does not run although it was started.
    #[error("{unit} did not start; see `journalctl -u {unit}`")]
    Start {
        /// Which.
        unit: String,
        /// What systemctl said.
        #[source]
        source: HostError,
    },
    /// Observed again after acting, it still is not as wanted.
    #[error("still not as wanted after acting: {}", .0.join("; "))]
    Unsettled(Vec<String>),
}

/// What acting needs from outside: randomness, and who asks.
pub trait Secrets {
    /// A new age X25519 identity in its text form, `AGE-SECRET-KEY-1…`.
    fn host_identity(&self) -> String;

    /// A few random letters that nobody can guess.
    fn nonce(&self) -> String;

    /// The connection it is asked over, as sshd names it; empty if it is none. It cannot prove that others get in.
    fn session(&self) -> String {
        String::new()
    }
}

impl Want {
    /// A name that is unique within a plan, such as `file /etc/docker/daemon.json`.
    pub fn subject(&self) -> String {
        match self {
            Want::Packages { names } => format!("packages {}", names.join(" ")),
            Want::Accounts { groups, users } => format!("accounts {} {}", groups.join(" "), users.join(" ")),
            Want::Login { user, .. } => format!("user {user}"),
            Want::Directory { path, .. } => format!("directory {}", path.display()),
            Want::Files { files, .. } => {
                let paths: Vec<String> = files.iter().map(|file| file.path.display().to_string()).collect();
                format!("files {}", paths.join(" "))
            }
            Want::Binary { target, .. } => format!("binary {}", target.display()),
            Want::Unit { name } => format!("unit {name}"),
            Want::Firewall(_) => "firewall table inet appliance".to_owned(),
            Want::Sshd { .. } => "sshd settings".to_owned(),
            Want::Sysctl { path, .. } => format!("kernel settings {}", path.display()),
            Want::Rights { paths } => {
                format!("rights of {}", paths.first().map_or("nothing", |(path, _)| path))
            }
            Want::Owned { paths } => {
                format!("owner of {}", paths.first().map_or("nothing", |path| path))
            }
            Want::Gone { packages } => format!("absence of {}", packages.join(" ")),
            Want::Swap { .. } => "swap".to_owned(),
            Want::Timezone(zone) => format!("time zone {zone}"),
            Want::Mount { path, .. } => format!("flags of {path}"),
            Want::Made { path, .. } => format!("existence of {path}"),
            Want::Locked { user } => format!("password of {user}"),
        }
    }
}
