//! What the agent and its clients say to each other under `/v1`, as JSON.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/host` | [`Host`] |
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/apps/{app}` | [`App`]; `{app}` is `service` or `service@destination` |
//! | `GET /v1/apps/{app}/containers` | list of [`ContainerRow`] |
//! | `GET /v1/apps/{app}/images` | list of [`ImageRow`] |
//! | `GET /v1/apps/{app}/logs?role=R&container=ID&since=S&lines=N&follow=1&timestamps=1` | [`appliance_push::session`] frames |
//! | `GET /v1/apps/{app}/accessories` | list of [`Accessory`] |
//! | `GET /v1/apps/{app}/accessories/{name}/logs?since=S&lines=N&follow=1&timestamps=1` | [`appliance_push::session`] frames |
//! | `POST /v1/apps/{app}/accessories/{name}/tunnel` | bytes to and from a port of its container, in both bodies; needs the token of an `accessory-tunnel` change |
//! | `GET /v1/proxy/services` | list of [`RouteRow`] |
//! | `GET /v1/proxy/logs?since=S&lines=N&follow=1&timestamps=1` | [`appliance_push::session`] frames |
//! | `POST /v1/sessions/{id}?rows=R&columns=C` | [`appliance_push::session`] frames, in both bodies |
//! | `GET /v1/apps/{app}/backups` | list of [`BackupJob`], each with its backups as their place lists them |
//! | `GET /v1/adoption` | [`Adoption`]: what of a stock Kamal host would be taken over |
//! | `GET /v1/ca` | the local CA's certificate, PEM |
//! | `GET /v1/keys` | list of [`Key`] |
//! | `GET /v1/certificates` | list of [`Certificate`] |
//! | `GET /v1/firewall` | [`Firewall`] |
//! | `GET /v1/firewall/audit` | [`appliance_bootstrap::firewall::exposure::Report`] |
//! | `GET /v1/alerts` | [`Alerts`] |
//! | `GET /v1/doctor` | [`doctor::Examination`] |
//! | `GET /v1/audit?last=N` | records, newest last |
//! | `GET /v1/audit/verify` | [`AuditProof`] |
//! | `POST /v1/images/have` | [`appliance_push::store::HaveQuery`] → [`appliance_push::store::HaveAnswer`] |
//! | `POST /v1/images/chunks`, `PUT /v1/images/deltas` | [`appliance_push::delta`] |
//! | `POST /v1/changes` | signed [`appliance_push::change::Envelope`] → [`Event`]s, one JSON object a line, the last an [`Event::End`] |
//! | `POST /v1/rollouts` | as `/v1/changes` for a deploy or rollback that somebody leads together with other hosts: after the envelope's line come [`Word`]s, one a line |
//!
//! `/v2/…` is the OCI distribution API; writing there needs the token that an `upload` change is answered with.

mod accessories;
mod adoption;
mod alerts;
mod containers;
pub mod doctor;
pub mod finding;

pub use accessories::Accessory;
pub use adoption::{AdoptedApp, AdoptedRole, Adoption};
pub use alerts::Alerts;
pub use appliance_rollout::Gate;
pub use containers::{ContainerRow, ImageRow, RouteRow, TargetRow};

use appliance_bootstrap::firewall;
use appliance_push::change::{Fingerprint, HostId, Platform, ReleaseNumber};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::agent::lease::Holder;

/// The host, for somebody who is about to change it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Its identity: the recipient that secrets are sealed to and changes are addressed to.
    pub id: HostId,
    /// What it calls itself.
    pub hostname: String,
    /// Version of the agent's binary.
    pub version: String,
    /// What its Docker runs.
    pub platform: Platform,
    /// The host's clock.
    pub now: Timestamp,
    /// Docker's version; absent while Docker does not answer.
    pub docker: Option<String>,
}

/// Everything `appliance status` shows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The host itself.
    pub host: Host,
    /// The agent's process.
    pub agent: Process,
    /// The proxy's process; absent while it does not answer.
    pub proxy: Option<Process>,
    /// Room on the file system of the agent's state, bytes.
    pub disk_free: u64,
    /// Its size, bytes.
    pub disk_total: u64,
    /// Free memory of the host, bytes.
    pub memory_free: u64,
    /// The apps.
    pub apps: Vec<App>,
    /// The accessories.
    #[serde(default)]
    pub accessories: Vec<Accessory>,
    /// What is wrong, one sentence each, with the next command.
    pub problems: Vec<String>,
}

/// One of our processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Seconds since its start.
    pub uptime: u64,
    /// Resident memory, bytes.
    pub rss: u64,
}

/// One app with one destination.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct App {
    /// `service` or `service@destination`.
    pub app: String,
    /// The release that serves.
    pub current: Option<Release>,
    /// The rollout that brought it; another one of the same release, as a restart is, counts on.
    #[serde(default)]
    pub brought_by: Option<u64>,
    /// The releases that can be rolled back to, newest first.
    pub previous: Vec<Release>,
    /// Where a rollback goes that names no release: the one that served before the current.
    #[serde(default)]
    pub back: Option<ReleaseNumber>,
    /// The last rollout, while it is not settled or when it was reverted.
    pub rollout: Option<Rollout>,
    /// Containers of the current release.
    pub containers: Vec<Container>,
    /// Whether visitors get the maintenance page.
    pub stopped: bool,
    /// Who changes it at this moment.
    pub changing: Option<Holder>,
    /// The lock that keeps everybody from changing it.
    #[serde(default)]
    pub lock: Option<Lock>,
    /// How its backups fare.
    #[serde(default)]
    pub backups: Vec<BackupJob>,
}

/// The backups of one accessory.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BackupJob {
    /// The accessory.
    pub accessory: String,
    /// Where they are.
    pub to: String,
    /// Cron expression.
    pub schedule: String,
    /// The next run.
    pub next: Option<Timestamp>,
    /// The last run that went well.
    pub last_good: Option<Timestamp>,
    /// How long it took, milliseconds.
    pub took_ms: Option<u64>,
    /// The last drill that went well.
    pub verified: Option<Timestamp>,
    /// How long its restore took, milliseconds.
    pub restore_ms: Option<u64>,
    /// When a run was due that began late, the last time.
    pub missed: Option<Timestamp>,
    /// Whether something runs at this moment.
    pub running: bool,
    /// What is wrong, with the next command.
    pub problems: Vec<String>,
    /// The backups, oldest first; empty in a status.
    pub backups: Vec<BackupRow>,
    /// Why the retention removes nothing for now.
    pub frozen: Vec<String>,
    /// How it is configured, as the release that is current there says.
    #[serde(default)]
    pub settings: appliance_config::extension::Backup,
}

/// A backup in a list.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BackupRow {
    /// The database, or what else it is of.
    pub database: String,
    /// Its id.
    pub id: String,
    /// When its snapshot was taken.
    pub at: Timestamp,
    /// Bytes in the place.
    pub stored_bytes: u64,
    /// Bytes of its content.
    pub plain_bytes: u64,
    /// Rows.
    pub rows: Option<u64>,
    /// Tables with data.
    pub tables: Option<u64>,
    /// Version of the server.
    pub server: Option<String>,
    /// When it was last restored by a drill.
    pub verified: Option<Timestamp>,
    /// How long that took, milliseconds.
    pub restore_ms: Option<u64>,
    /// Why the retention keeps it; empty when it would go.
    pub kept_because: Vec<String>,
    /// Why it may hold less than it should.
    pub suspicious: Vec<String>,
    /// Why it cannot be used at all.
    pub unusable: Option<String>,
    /// The key of the host that made it; empty where it cannot be used.
    #[serde(default)]
    pub signed_by: String,
}

/// A release in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// `v42` without the v.
    pub number: ReleaseNumber,
    /// The app's own version.
    pub version: String,
    /// Manifest digest of its image.
    pub digest: String,
    /// Who made it.
    pub created_by: String,
    /// Key that signed it.
    pub signer: String,
    /// When it was accepted.
    pub at: Timestamp,
}

/// A rollout in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The release it brings.
    pub number: ReleaseNumber,
    /// The state it is in.
    pub phase: String,
    /// The app's own version of that release; empty when it is not listed any more.
    #[serde(default)]
    pub version: String,
    /// Why it goes back, when it does.
    pub why: Option<String>,
}

/// A container in a status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Container {
    /// The role it plays.
    pub role: String,
    /// The version of the release that it came from.
    #[serde(default)]
    pub version: Option<String>,
    /// Its name.
    pub name: String,
    /// `running`, `exited`, `missing`, `unknown` while Docker does not answer.
    pub state: String,
    /// Docker's health check or the proxy's, when there is one.
    pub healthy: Option<bool>,
}

/// The firewall as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Firewall {
    /// The kernel, compared with what it should hold.
    pub state: firewall::State,
    /// The rules in force; absent without a table of ours.
    pub rules: Option<firewall::rules::Rules>,
    /// What waits for its confirmation.
    pub pending: Option<firewall::pending::Armed>,
    /// Interfaces, as they are treated.
    pub interfaces: Vec<firewall::interfaces::Interface>,
    /// Who is kept out of everything, because somebody said so, and for how many seconds more.
    pub bans: Vec<(std::net::IpAddr, u64)>,
    /// Who is kept from SSH for guessing, and for how many seconds more.
    #[serde(default)]
    pub ssh_bans: Vec<(std::net::IpAddr, u64)>,
}

/// A key in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// `SHA256:…`
    pub fingerprint: Fingerprint,
    /// What it may do, in words.
    pub permissions: Vec<String>,
    /// Whose it is.
    pub comment: String,
}

/// A certificate that the host had from a certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The host name.
    pub name: String,
    /// The proxy's service that shows it; absent when no app uses the name any more.
    pub service: Option<String>,
    /// Whether it was asked for on demand and is renewed for that.
    #[serde(default)]
    pub on_demand: bool,
    /// Directory of the authority; absent while there is no certificate.
    pub authority: Option<String>,
    /// Valid from.
    pub not_before: Option<Timestamp>,
    /// Valid until.
    pub not_after: Option<Timestamp>,
    /// When it is renewed.
    pub renewal: Option<Timestamp>,
    /// Why the last order failed, if it did.
    pub failure: Option<String>,
}

/// The outcome of checking the audit chain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "audit", rename_all = "kebab-case")]
pub enum AuditProof {
    /// Every record is there and unaltered.
    Whole {
        /// How many.
        records: u64,
    },
    /// Something was removed or altered.
    Broken {
        /// The first line that does not fit, from 1.
        line: u64,
        /// How it does not fit.
        why: String,
    },
}

/// One line of a change's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The rollout entered a state.
    Phase {
        /// `prepared`, `starting`, `healthy`, …
        phase: String,
        /// What that means here, for people.
        detail: String,
    },
    /// The rollout waits for leave to go on.
    Waiting {
        /// At which gate.
        gate: Gate,
    },
    /// Output of the app: the release command, or the last lines of a container that failed.
    Output {
        /// Where it comes from.
        source: String,
        /// One line without its end.
        line: String,
    },
    /// Something that will hurt but does not stop the change.
    Warning {
        /// What, and what to do.
        message: String,
    },
    /// The end; exactly one, always last.
    End(End),
}

/// What the leader of a group says to one of its hosts, on the connection that carried the signed change.
///
/// A host that hears nothing for [`SILENCE`] acts as if the leader were gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "word", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Word {
    /// Go on.
    Pass {
        /// Past which gate.
        gate: Gate,
    },
    /// Go back.
    Cancel {
        /// Why, for the record.
        why: String,
    },
    /// Do as you would without me: a canary stays, as long as nobody has promoted it.
    Leave,
    /// I am still here.
    Beat,
}

/// How long a leader may be silent.
pub const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// How often a leader says [`Word::Beat`].
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(5);

/// A lock that somebody took by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Who, as they call themselves.
    pub by: String,
    /// Key that signed it.
    pub key: String,
    /// Since when.
    pub at: Timestamp,
    /// The version they are about.
    pub version: String,
    /// Why.
    pub message: String,
}

/// How a change ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "kebab-case")]
pub enum End {
    /// As asked for.
    Done {
        /// The release that serves now, for changes of an app.
        release: Option<ReleaseNumber>,
        /// For people.
        message: String,
    },
    /// Uploads are allowed.
    Token {
        /// The bearer token.
        token: String,
        /// Until when.
        expires_at: Timestamp,
    },
    /// A command may be started now: `POST /v1/sessions/{session}`, once.
    Session {
        /// Its name, a secret.
        session: String,
        /// Until when.
        expires_at: Timestamp,
    },
    /// Not done, nothing changed.
    Refused {
        /// Stable word for programs.
        code: String,
        /// Why.
        message: String,
        /// The next command.
        next: String,
    },
    /// The new release did not make it; what served before still serves.
    Reverted {
        /// The release that serves, if there was one.
        serving: Option<ReleaseNumber>,
        /// Why.
        why: String,
    },
    /// Tried, and failed.
    Failed {
        /// What, why.
        message: String,
        /// The next command.
        next: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_one_flat_object_a_line() {
        let end = Event::End(End::Refused {
            code: "unknown-key".into(),
            message: "no".into(),
            next: "ask an admin".into(),
        });
        let text = serde_json::to_string(&end).expect("serializes");
        assert_eq!(
            text,
            r#"{"event":"end","end":"refused","code":"unknown-key","message":"no","next":"ask an admin"}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&text).expect("parses"), end);
    }
}
