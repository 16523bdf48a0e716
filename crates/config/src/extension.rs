//! `x-appliance:` — what Kamal has no word for. Unchanged Kamal ignores it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::checked;
use crate::front::Front;
use crate::problem::Problem;
use crate::source::Sources;
use crate::units::{Bytes, CommandLine, Location, Schedule, Seconds, Share};
use crate::yaml::tree::Node;

/// The root key.
pub const KEY: &str = "x-appliance";

/// The settings of `x-appliance:`; every one has a default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Extension {
    /// Command that runs once per release, in a container of the new image, before any traffic: migrations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseForm>,
    /// How long and how a release is watched after the switch; `false` for not at all.
    pub watch: WatchForm,
    /// Share of the visitors that gets a new release first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// Commands that run on a schedule in a container of the current release.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub cron: BTreeMap<String, CronJob>,
    /// Backups, by the name of the accessory.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub backups: BTreeMap<String, Backup>,
    /// What the proxy does beyond Kamal's `proxy:`.
    pub proxy: Front,
    /// Limits of the app's containers where their own options set none.
    pub limits: Limits,
    /// Warnings to keep quiet about, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub silence: Vec<String>,
}

/// `release:` as written: a command, or a command with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ReleaseForm {
    /// Only the command.
    Command(String),
    /// With settings.
    Full(ReleaseCommand),
}

/// A command that runs once per release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ReleaseCommand {
    /// The command: words, or one line.
    pub command: CommandLine,
    /// Role whose environment, volumes and options it gets; the primary role by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Time after which it is stopped and the release refused.
    #[serde(default = "release_timeout")]
    pub timeout: Seconds,
}

fn release_timeout() -> Seconds {
    Seconds(600)
}

/// `watch:` as written: settings, or `false`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum WatchForm {
    /// `false`: not watched. `true`: the defaults.
    Switch(bool),
    /// Settings.
    Full(Watch),
}

impl Default for WatchForm {
    fn default() -> Self {
        Self::Switch(true)
    }
}

/// What makes a release go back on its own after the switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// How long after the switch.
    pub window: Seconds,
    /// Share of 5xx responses above the former release's that is too much.
    pub error_rate: Share,
    /// The new release's latency (95th percentile) over the former's that is too much.
    #[schemars(range(min = 1.0))]
    pub latency: f64,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            window: Seconds(30),
            error_rate: Share(0.05),
            latency: 3.0,
        }
    }
}

/// A part of the visitors goes to the new release first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Canary {
    /// Which share.
    pub share: Share,
    /// How long before all of them follow on their own; without it, `appliance promote` decides.
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    pub duration: Option<Seconds>,
}

impl Default for Canary {
    fn default() -> Self {
        Self {
            share: Share(0.1),
            duration: None,
        }
    }
}

/// A command on a schedule. One run at a time; a run that was missed is noticed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CronJob {
    /// When.
    pub schedule: Schedule,
    /// IANA time zone of the schedule; the host's by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z]+(/[A-Za-z0-9_+-]+)*$"))]
    pub timezone: Option<String>,
    /// What: words, or one line.
    pub command: CommandLine,
    /// Role whose environment and options it gets; the primary role by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Time after which a run is stopped.
    #[serde(default = "cron_timeout")]
    pub timeout: Seconds,
    /// Address that is told of each run that went well, so that silence is noticed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s]+$"))]
    pub ping: Option<String>,
}

fn cron_timeout() -> Seconds {
    Seconds(3600)
}

/// Backups of one accessory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Backup {
    /// When.
    pub schedule: Schedule,
    /// IANA time zone of the schedule; the host's by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z]+(/[A-Za-z0-9_+-]+)*$"))]
    pub timezone: Option<String>,
    /// Where to.
    pub to: Location,
    /// How many are kept.
    pub keep: Keep,
    /// How often a restore is tried; `false` for never.
    pub drill: Drill,
    /// What is backed up; told from the image by default, where its name tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<BackupKind>,
    /// Address of an S3 server other than Amazon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s/]+/?$"))]
    pub endpoint: Option<String>,
    /// Region of the bucket.
    pub region: String,
    /// Put the bucket into the path instead of the host name.
    pub path_style: bool,
    /// Names of the secrets with the S3 credentials.
    pub credentials: Credentials,
    /// Public half of the recovery key (`age1…`, from `appliance backup keygen`): whoever keeps the other half can restore
    /// when this host is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^age1[02-9ac-hj-np-z]{58}$"))]
    pub recovery: Option<String>,
    /// Most bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<Bytes>,
    /// What the place does not take at once waits sealed on the host's disk, so that a slow or flaky link does not hold the
    /// database's snapshot.
    pub spool: bool,
    /// Public keys of hosts that this one replaces, whose backups are listed, restored and pruned as its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = r"^[0-9a-f]{64}$")))]
    pub trust: Vec<String>,
    /// Address that is told of each good backup, so that silence is noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s]+$"))]
    pub ping: Option<String>,
    /// Address that is told of each good drill: one that hangs or never runs is noticed as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^\s]+$"))]
    pub drill_ping: Option<String>,
}

impl Default for Backup {
    fn default() -> Self {
        Self {
            schedule: Schedule("15 3 * * *".to_owned()),
            timezone: None,
            to: Location("file:///var/backups".to_owned()),
            keep: Keep::default(),
            drill: Drill::default(),
            kind: None,
            endpoint: None,
            region: "us-east-1".to_owned(),
            path_style: false,
            credentials: Credentials::default(),
            recovery: None,
            bandwidth: None,
            spool: false,
            trust: Vec::new(),
            ping: None,
            drill_ping: None,
        }
    }
}

/// How many backups are kept; the newest good one always is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    /// The newest ones.
    pub last: u32,
    /// One an hour.
    pub hourly: u32,
    /// One a day.
    pub daily: u32,
    /// One a week.
    pub weekly: u32,
    /// One a month.
    pub monthly: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Self {
            last: 3,
            hourly: 24,
            daily: 7,
            weekly: 4,
            monthly: 12,
        }
    }
}

/// How often a restore is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Drill {
    /// `false`: never. `true`: weekly.
    Switch(bool),
    /// An interval.
    Every(Interval),
}

impl Default for Drill {
    fn default() -> Self {
        Self::Every(Interval::Weekly)
    }
}

/// A regular interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    /// Every day.
    Daily,
    /// Every week.
    Weekly,
    /// Every month.
    Monthly,
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum BackupKind {
    /// PostgreSQL databases, by `pg_dump`.
    Postgres,
    /// MySQL or MariaDB databases.
    Mysql,
    /// Redis or Valkey, by `BGSAVE`.
    Redis,
    /// SQLite files.
    Sqlite,
    /// The files of the accessory's volumes.
    Volume,
}

impl BackupKind {
    /// Told from an image's name; `None` where the name does not tell.
    pub fn of_image(image: &str) -> Option<Self> {
        let image = image.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| image.contains(word));
        if says(&["postgres", "postgis", "pgvector", "timescale"]) {
            Some(BackupKind::Postgres)
        } else if says(&["redis", "valkey", "keydb"]) {
            Some(BackupKind::Redis)
        } else if says(&["mysql", "mariadb", "percona"]) {
            Some(BackupKind::Mysql)
        } else {
            None
        }
    }

    /// Why what an accessory of this image holds is not backed up, and what to do; `None` if it is.
    pub fn refusal(kind: Option<Self>, image: &str) -> Option<(String, &'static str)> {
        match kind.or_else(|| Self::of_image(image)) {
            None => Some((
                format!(
                    "what {image} holds is not known, and the files of a running data server are no backup"
                ),
                "write kind: postgres, redis or sqlite, or kind: volume for plain files that no data server writes",
            )),
            Some(Self::Mysql) => Some((
                "MySQL and MariaDB are not backed up by this version".to_owned(),
                "let an accessory of the same image write mariadb-dump or mysqldump into a volume of its own, and back that up with kind: volume",
            )),
            Some(_) => None,
        }
    }
}

/// Names of secrets, not their values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Credentials {
    /// Secret with the access key id.
    pub access_key_id: String,
    /// Secret with the secret access key.
    pub secret_access_key: String,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            access_key_id: "AWS_ACCESS_KEY_ID".to_owned(),
            secret_access_key: "AWS_SECRET_ACCESS_KEY".to_owned(),
        }
    }
}

/// Limits of the app's containers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Memory of each container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Processors of each container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01))]
    pub cpus: Option<f64>,
    /// Processes and threads of each container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub pids: Option<u32>,
    /// Other limits for some roles.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub roles: BTreeMap<String, RoleLimits>,
}

/// Limits of one role's containers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RoleLimits {
    /// Memory of each container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Processors of each container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01))]
    pub cpus: Option<f64>,
    /// Processes and threads of each container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub pids: Option<u32>,
}

impl Limits {
    /// What holds for a role: its own limits over the general ones.
    pub fn of(&self, role: &str) -> RoleLimits {
        let own = self.roles.get(role).cloned().unwrap_or_default();
        RoleLimits {
            memory: own.memory.or_else(|| self.memory.clone()),
            cpus: own.cpus.or(self.cpus),
            pids: own.pids.or(self.pids),
        }
    }
}

impl Extension {
    /// Reads the section of the merged tree; the defaults where there is none.
    ///
    /// # Errors
    /// Every mistake at once.
    pub fn read(root: &Node, sources: &Sources) -> Result<Self, Vec<Problem>> {
        match root.get(KEY) {
            Some(node) => checked::read(node, KEY, sources),
            None => Ok(Self::default()),
        }
    }

    /// The release command, if there is one.
    pub fn release(&self) -> Option<ReleaseCommand> {
        match self.release.clone()? {
            ReleaseForm::Full(release) => Some(release),
            ReleaseForm::Command(line) => Some(ReleaseCommand {
                command: CommandLine::Line(line),
                role: None,
                timeout: release_timeout(),
            }),
        }
    }

    /// How a release is watched; `None` for not at all.
    pub fn watch(&self) -> Option<Watch> {
        match &self.watch {
            WatchForm::Switch(false) => None,
            WatchForm::Switch(true) => Some(Watch::default()),
            WatchForm::Full(watch) => (watch.window.0 > 0).then(|| watch.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Extension, Vec<String>> {
        let text = format!("service: shop\n{text}");
        let mut sources = Sources::default();
        let number = sources.add("config/deploy.yml", text.as_str());
        let document = crate::yaml::read(&text, number, &|line, column| (line, column)).expect("YAML");
        Extension::read(&document.root.expect("a root"), &sources).map_err(|problems| {
            problems
                .into_iter()
                .map(|problem| {
                    let hint = problem.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
                    format!("{}: {}{hint}", problem.line.unwrap_or_default(), problem.message)
                })
                .collect()
        })
    }

    #[test]
    fn without_the_section_the_defaults_hold() {
        let extension = read("").expect("valid");
        assert_eq!(extension, Extension::default());
        assert_eq!(extension.watch().expect("on by default").window, Seconds(30));
        assert_eq!(extension.release(), None);
    }

    #[test]
    fn every_part_is_read() {
        let extension = read(
            "x-appliance:\n  release: bin/rails db:migrate\n  watch: {window: 1m, error_rate: 2%}\n  canary: {share: 10%, for: 5m}\n  \
             cron:\n    nightly: {schedule: daily, command: [bin/clean, --all], role: job, timezone: Europe/Berlin}\n  \
             backups:\n    db: {schedule: '15 3 * * *', to: s3://bucket/x, keep: {last: 5}, drill: false}\n  \
             limits: {memory: 512m, roles: {job: {memory: 1g, cpus: 0.5}}}\n  silence: [latest-tag]\n",
        )
        .expect("valid");
        assert_eq!(
            extension.release().expect("set").command.words(),
            ["bin/rails", "db:migrate"]
        );
        assert_eq!(extension.watch().expect("on").error_rate, Share(0.02));
        assert_eq!(
            extension.canary.as_ref().expect("set").duration,
            Some(Seconds(300))
        );
        assert_eq!(extension.cron["nightly"].command.words(), ["bin/clean", "--all"]);
        let backup = &extension.backups["db"];
        assert_eq!(
            (backup.keep.last, backup.keep.daily, backup.drill),
            (5, 7, Drill::Switch(false))
        );
        assert_eq!(extension.limits.of("job").memory, Some(Bytes(1 << 30)));
        assert_eq!(extension.limits.of("web").memory, Some(Bytes(512 << 20)));
    }

    #[test]
    fn every_mistake_is_told_at_once_with_its_line() {
        let problems = read(
            "x-appliance:\n  relase: x\n  watch:\n    window: 1:30\n    error_rate: 500%\n    latency: 0.5\n  canary: yes\n  \
             cron:\n    a: {command: x}\n    b: {schedule: '* * *', command: 7}\n  \
             backups:\n    db: {to: /var/backups, drill: dayly, keep: {daily: -1}}\n  limits: [1]\n",
        )
        .expect_err("wrong");
        assert_eq!(
            problems,
            [
                "3: x-appliance: unknown key: relase (did you mean release?)",
                "5: x-appliance/watch/window: 1:30 without quotes is read as the number 5400 (YAML 1.1 counts a:b in base 60; write a duration as 90s or 5m, and a text in quotes: \"1:30\")",
                "6: x-appliance/watch/error_rate: \"500%\" is not a share: write 5% or 0.05, at most 100%",
                "7: x-appliance/watch/latency: should be at least 1",
                "8: x-appliance/canary: should be a hash",
                "10: x-appliance/cron/a: schedule is required",
                "11: x-appliance/cron/b/schedule: \"* * *\" is not a schedule: write five fields such as \"15 3 * * *\", or hourly, daily, weekly, monthly",
                "11: x-appliance/cron/b/command: should be a string or an array",
                "13: x-appliance/backups/db/to: \"/var/backups\" is not a place for backups: write s3://bucket/prefix or file:///absolute/path",
                "13: x-appliance/backups/db/drill: \"dayly\" is none of: daily, weekly, monthly (did you mean daily?)",
                "13: x-appliance/backups/db/keep/daily: should be at least 0",
                "14: x-appliance/limits: should be a hash",
            ]
        );
    }
}
