//! The signed change: what somebody wants done on one host, and the envelope it travels in.
//!
//! The signature covers the exact bytes of the payload, so the payload travels as those bytes (base64), never re-encoded.
//! Unknown fields are refused: a field that this version does not know could change the meaning of what was signed.

mod accessory;
mod adopt;
mod backup;
mod exec;
pub mod extras;
mod firewall;
mod names;
mod release;

#[cfg(test)]
pub(crate) mod tests;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use accessory::{Accessory, AccessoryAction, MountedDirectory, MountedFile};
pub use adopt::AdoptAction;
pub use backup::{BackupAction, Restore};
pub use exec::{ContainersAction, Exec};
pub use firewall::FirewallChange;
pub use names::{
    AccessoryName, AppName, BadName, ContainerName, Destination, Digest, EnvName, Fingerprint, HostId,
    NetworkName, Nonce, PortsName, ReleaseNumber, Repository, RoleName, Tag,
};
pub use release::{
    Buffering, Canary, CanaryHeader, Healthcheck, Image, Logging, Platform, ProxySpec, Release,
    ReleaseCommand, RemoteRegistry, Role, Tls, Watch,
};

use crate::trust::Permission;

/// The one version of the payload that this build reads and writes.
pub const VERSION: u32 = 1;
/// Longest payload in bytes; error pages and sealed secrets are the large parts of a release.
pub const PAYLOAD_LIMIT: usize = 8 << 20;
/// Longest signature text in bytes; the largest SSHSIG of a hardware key is below 1 KiB.
pub const SIGNATURE_LIMIT: usize = 16 << 10;

/// What somebody wants done, before it is signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// [`VERSION`].
    pub version: u32,
    /// The host this change is for; no other host accepts it.
    pub host: HostId,
    /// The app it concerns; absent for changes of the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app: Option<AppName>,
    /// The app's destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<Destination>,
    /// What to do.
    pub verb: Verb,
    /// When it was signed, by the signer's clock.
    pub issued_at: Timestamp,
    /// When it stops being valid; at most [`crate::trust::MAX_WINDOW`] after `issued_at`.
    pub expires_at: Timestamp,
    /// Makes this change unique.
    pub nonce: Nonce,
    /// The release that the signer saw running.
    #[serde(default)]
    pub expects: Expectation,
}

/// Which release a change expects to replace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expectation {
    /// Whatever runs.
    #[default]
    Any,
    /// Exactly this release, or none at all.
    Release(Option<ReleaseNumber>),
}

/// A blob by digest and size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlobRef {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// What a change does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Verb {
    /// Allow exactly these blobs and manifests to be written; answered with a token.
    Upload {
        /// Layers, configuration and manifest.
        blobs: Vec<BlobRef>,
    },
    /// Allow a stock client to write into one repository for a while; answered with a token.
    Tunnel {
        /// The repository it may write into.
        repository: Repository,
        /// Most bytes it may write.
        bytes: u64,
    },
    /// Run this release.
    Deploy(Box<Release>),
    /// Run an earlier release again; without a number, the one before the current.
    Rollback {
        /// The release to return to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        to: Option<ReleaseNumber>,
        /// Only these roles, and the others stay as they are; all of them if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        roles: Vec<RoleName>,
    },
    /// Give the canary all visitors.
    Promote,
    /// Take a canary, or a rollout in progress, away; the former release has all visitors again.
    Abort,
    /// Let nobody change the app until the lock is released (Kamal's `lock acquire`).
    LockAcquire {
        /// Why, for those who are turned away.
        message: String,
        /// The version the holder is about, as Kamal shows it.
        version: String,
        /// Who holds it, for people.
        by: String,
    },
    /// Let the app be changed again, whoever locked it.
    LockRelease,
    /// Take the app off the host: containers, routes, releases; never volumes.
    AppRemove,
    /// Restart the current release's containers without downtime.
    AppRestart,
    /// Stop the app; the proxy answers 503.
    AppStop {
        /// Text for the 503 page.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// Only these roles; all of them, and those of later releases, if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        roles: Vec<RoleName>,
    },
    /// Start what was stopped.
    AppStart {
        /// Only these roles; all of them if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        roles: Vec<RoleName>,
    },
    /// Run a command in a container of the app; answered with the name of a session, or done at once if detached.
    AppExec(Exec),
    /// Start or stop the containers of the current release, or stop those of earlier ones that still run.
    AppContainers {
        /// What to do.
        action: ContainersAction,
        /// Only these roles; all of them if empty.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        roles: Vec<RoleName>,
    },
    /// Remove what no rollback needs.
    AppPrune {
        /// Stopped containers.
        containers: bool,
        /// Images that no release at hand names.
        images: bool,
        /// Containers and releases to keep besides the current, from 1; the release's own number if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retain: Option<u32>,
    },
    /// Run a command on the host itself, outside of any container; answered with the name of a session.
    HostExec {
        /// Program and arguments; no shell sees them.
        command: Vec<String>,
    },
    /// Something of one accessory of the app.
    Accessory {
        /// Which accessory.
        name: AccessoryName,
        /// What.
        action: AccessoryAction,
    },
    /// Something with the backups of one accessory of the app.
    Backup {
        /// Which accessory.
        accessory: AccessoryName,
        /// What.
        action: BackupAction,
    },
    /// Enrol a key, or change the permissions of a known one.
    KeyAdd {
        /// OpenSSH public key line.
        key: String,
        /// What the key may do.
        permissions: Vec<Permission>,
        /// Whose key it is.
        #[serde(default)]
        comment: String,
    },
    /// Have a new certificate for a host name now.
    CertificateRenew {
        /// The host name.
        name: String,
    },
    /// Revoke a host name's certificate; a name that is served gets a new one first.
    CertificateRevoke {
        /// The host name.
        name: String,
        /// Whether its key may be known to others.
        compromised: bool,
    },
    /// Take the host over from stock Kamal, or give it back.
    Adopt(AdoptAction),
    /// Forget a key.
    KeyRemove {
        /// Which one.
        fingerprint: Fingerprint,
    },
    /// Open, close, ban, confirm.
    Firewall(FirewallChange),
    /// Send a test message to everybody who is told of alerts.
    AlertsTest,
}

/// How much power a verb needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Power {
    /// Look.
    Read,
    /// Restart, stop, start, run commands.
    Operate,
    /// Bring new releases, roll back.
    Deploy,
    /// Keys and the host itself, and what cannot be undone.
    Admin,
}

impl std::fmt::Display for Power {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Power::Read => "read",
            Power::Operate => "operate",
            Power::Deploy => "deploy",
            Power::Admin => "admin",
        })
    }
}

impl Verb {
    /// The verb's stable name, as audit records show it.
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Upload { .. } => "upload",
            Verb::Tunnel { .. } => "tunnel",
            Verb::Deploy(_) => "deploy",
            Verb::Rollback { .. } => "rollback",
            Verb::Promote => "promote",
            Verb::Abort => "abort",
            Verb::LockAcquire { .. } => "lock-acquire",
            Verb::LockRelease => "lock-release",
            Verb::AppRemove => "app-remove",
            Verb::AppRestart => "app-restart",
            Verb::AppStop { .. } => "app-stop",
            Verb::AppStart { .. } => "app-start",
            Verb::Accessory { action, .. } => action.name(),
            Verb::Backup { action, .. } => action.name(),
            Verb::AppExec(_) => "app-exec",
            Verb::AppContainers { action, .. } => match action {
                ContainersAction::Start => "containers-start",
                ContainersAction::Stop => "containers-stop",
                ContainersAction::StopStale => "containers-stop-stale",
            },
            Verb::AppPrune { .. } => "app-prune",
            Verb::HostExec { .. } => "host-exec",
            Verb::KeyAdd { .. } => "key-add",
            Verb::KeyRemove { .. } => "key-remove",
            Verb::CertificateRenew { .. } => "certificate-renew",
            Verb::CertificateRevoke { .. } => "certificate-revoke",
            Verb::Adopt(AdoptAction::Take { .. }) => "adopt",
            Verb::Adopt(AdoptAction::Undo) => "adopt-undo",
            Verb::Firewall(change) => change.name(),
            Verb::AlertsTest => "alerts-test",
        }
    }

    /// The power that the signer's key needs.
    pub fn power(&self) -> Power {
        match self {
            Verb::Upload { .. } | Verb::Tunnel { .. } | Verb::Deploy(_) | Verb::Rollback { .. } => {
                Power::Deploy
            }
            Verb::Accessory { action, .. } => action.power(),
            Verb::Backup { action, .. } => action.power(),
            Verb::AppRestart
            | Verb::AppStop { .. }
            | Verb::AppStart { .. }
            | Verb::AppExec(_)
            | Verb::AppContainers { .. } => Power::Operate,
            Verb::AppRemove
            | Verb::AppPrune { .. }
            | Verb::Promote
            | Verb::Abort
            | Verb::LockAcquire { .. }
            | Verb::LockRelease => Power::Deploy,
            Verb::KeyAdd { .. }
            | Verb::HostExec { .. }
            | Verb::KeyRemove { .. }
            | Verb::CertificateRenew { .. }
            | Verb::CertificateRevoke { .. }
            | Verb::Adopt(_)
            | Verb::AlertsTest
            | Verb::Firewall(_) => Power::Admin,
        }
    }

    /// Whether the verb acts on one app, which the change must then name.
    pub fn needs_app(&self) -> bool {
        !matches!(
            self,
            Verb::KeyAdd { .. }
                | Verb::HostExec { .. }
                | Verb::KeyRemove { .. }
                | Verb::CertificateRenew { .. }
                | Verb::CertificateRevoke { .. }
                | Verb::Adopt(_)
                | Verb::AlertsTest
                | Verb::Firewall(_)
        )
    }
}

/// A payload and its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Base64 of the exact JSON bytes that were signed.
    pub payload: String,
    /// SSHSIG in PEM form, namespace [`crate::sign::NAMESPACE`].
    pub signature: String,
}

/// Why a payload cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// More bytes than any honest change has.
    #[error("the {part} has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// `payload` or `signature`.
        part: &'static str,
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The payload is not base64.
    #[error("the payload is not base64")]
    Base64(#[source] base64::DecodeError),
    /// The payload is not a change of a form we know.
    #[error("the payload is not a change that this version understands")]
    Json(#[source] serde_json::Error),
    /// A newer form.
    #[error("the payload has version {found}; this build reads version {VERSION}")]
    Version {
        /// What it says.
        found: u64,
    },
    /// Parts of the change contradict each other.
    #[error("the change contradicts itself: {why}")]
    Inconsistent {
        /// How.
        why: String,
    },
}

impl Change {
    /// The bytes to sign.
    ///
    /// # Errors
    /// When the change contradicts itself or is too large.
    pub fn to_payload(&self) -> Result<Vec<u8>, ChangeError> {
        self.consistent()?;
        let payload = serde_json::to_vec(self).map_err(ChangeError::Json)?;
        limit("payload", payload.len(), PAYLOAD_LIMIT)?;
        Ok(payload)
    }

    /// Reads the bytes that were signed.
    ///
    /// # Errors
    /// When they are not a change of a form this version knows.
    pub fn from_payload(payload: &[u8]) -> Result<Self, ChangeError> {
        limit("payload", payload.len(), PAYLOAD_LIMIT)?;
        #[derive(Deserialize)]
        struct Form {
            version: u64,
        }
        let form: Form = serde_json::from_slice(payload).map_err(ChangeError::Json)?;
        if form.version != u64::from(VERSION) {
            return Err(ChangeError::Version { found: form.version });
        }
        let change: Self = serde_json::from_slice(payload).map_err(ChangeError::Json)?;
        change.consistent()?;
        Ok(change)
    }

    fn consistent(&self) -> Result<(), ChangeError> {
        let fail = |why: String| Err(ChangeError::Inconsistent { why });
        match (&self.app, self.verb.needs_app()) {
            (None, true) => return fail(format!("{} needs an app", self.verb.name())),
            (Some(app), false) => {
                return fail(format!(
                    "{} concerns the host, not the app {app}",
                    self.verb.name()
                ));
            }
            _ => {}
        }
        if self.expires_at <= self.issued_at {
            return fail("it expires before it was issued".to_owned());
        }
        match &self.verb {
            Verb::Accessory { name, action } => action.consistent(name).or_else(fail)?,
            Verb::Backup { action, .. } => action.consistent().or_else(fail)?,
            Verb::AppExec(exec) => exec.consistent().or_else(fail)?,
            Verb::HostExec { command } if command.is_empty() => {
                return fail("there is no command to run".to_owned());
            }
            Verb::AppPrune { retain: Some(0), .. } => return fail("at least one release is kept".to_owned()),
            _ => {}
        }
        if let Verb::Deploy(release) = &self.verb {
            if self.app.as_ref() != Some(&release.service) || self.destination != release.destination {
                return fail(format!(
                    "the release is of {}, the change names another app",
                    release.service
                ));
            }
            release.consistent().or_else(fail)?;
        }
        Ok(())
    }
}

impl Release {
    /// Whether the parts of the release fit each other.
    ///
    /// # Errors
    /// A sentence that says what does not fit.
    pub fn consistent(&self) -> Result<(), String> {
        if self.roles.is_empty() {
            return Err("the release has no role".to_owned());
        }
        let mut seen = std::collections::BTreeSet::new();
        for role in &self.roles {
            if !seen.insert(&role.name) {
                return Err(format!("the role {} is there twice", role.name));
            }
        }
        if let Some(command) = &self.release_command {
            if command.command.is_empty() {
                return Err("the release command is empty".to_owned());
            }
            if !seen.contains(&command.role) {
                return Err(format!(
                    "the release command names the role {}, which is not in the release",
                    command.role
                ));
            }
        }
        Ok(())
    }
}

impl Envelope {
    /// The exact bytes that were signed.
    ///
    /// # Errors
    /// When they are too many or not base64.
    pub fn payload_bytes(&self) -> Result<Vec<u8>, ChangeError> {
        limit("signature", self.signature.len(), SIGNATURE_LIMIT)?;
        limit("payload", self.payload.len() / 4 * 3, PAYLOAD_LIMIT)?;
        BASE64.decode(&self.payload).map_err(ChangeError::Base64)
    }

    /// An envelope around these bytes.
    pub fn new(payload: &[u8], signature: String) -> Self {
        Self {
            payload: BASE64.encode(payload),
            signature,
        }
    }
}

fn limit(part: &'static str, size: usize, limit: usize) -> Result<(), ChangeError> {
    if size > limit {
        Err(ChangeError::TooLarge { part, size, limit })
    } else {
        Ok(())
    }
}
