//! `appliance backup`: list, make, check, try and remove backups.

use std::collections::BTreeSet;

use anyhow::Context as _;
use appliance_push::change::{AccessoryName, BackupAction, Restore, Verb};
use jiff::Timestamp;

use super::backup_download::DownloadArgs;
use crate::developer::targets::{AppArgs, Targets};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, BackupJob, BackupRow, End};

/// Backups: list, make, check, try to restore, remove
#[derive(Debug, clap::Subcommand)]
pub enum BackupCommand {
    /// Show every backup, which were restored by a drill, and what is wrong
    List {
        #[command(flatten)]
        reach: AppArgs,
        #[command(flatten)]
        former: Former,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make one now
    Now {
        #[command(flatten)]
        reach: AppArgs,
        /// The accessory
        accessory: String,
    },
    /// Read stored backups whole and compare every byte with what was backed up
    Verify {
        #[command(flatten)]
        reach: AppArgs,
        /// The accessory
        accessory: String,
        /// Which one (default: the newest of each database)
        #[arg(long, value_name = "ID")]
        backup: Option<String>,
    },
    /// Restore into a throw-away server without network, and compare
    Drill {
        #[command(flatten)]
        reach: AppArgs,
        /// The accessory
        accessory: String,
        /// Which one (default: the newest of each database)
        #[arg(long, value_name = "ID")]
        backup: Option<String>,
    },
    /// Fetch a stored backup into a file, sealed as it is
    Download(DownloadArgs),
    /// Show which backups the retention keeps and why; with --yes remove the others
    Prune {
        #[command(flatten)]
        reach: AppArgs,
        /// The accessory
        accessory: String,
        /// Remove them, also when something looks wrong
        #[arg(long)]
        yes: bool,
    },
    /// Keep one whatever the retention says
    Hold {
        #[command(flatten)]
        reach: AppArgs,
        /// The accessory
        accessory: String,
        /// Which one, as `backup list` shows it
        #[arg(value_name = "ID")]
        backup: String,
    },
    /// Leave one that is held to the retention again
    Release {
        #[command(flatten)]
        reach: AppArgs,
        /// The accessory
        accessory: String,
        /// Which one, as `backup list` shows it
        #[arg(value_name = "ID")]
        backup: String,
    },
    /// Say what is backed up, when, where to, for how long, and how to get it back without this program
    Explain {
        #[command(flatten)]
        reach: AppArgs,
    },
    /// Make a recovery key: its secret half opens backups when the host is lost
    Keygen,
}

/// Whose backups are meant, where they are not this host's own
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Former {
    /// Those made when the accessory was called so, as ACCESSORY or APP/ACCESSORY
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,
    /// Trust what the host with this public key made, which this one replaces
    #[arg(long, value_name = "KEY")]
    pub trust: Option<String>,
}

/// Carries it out on every host of the app that has the accessory.
///
/// # Errors
/// When a host cannot be reached, refuses, or what was asked for fails.
pub async fn run(command: &BackupCommand, globals: &Globals) -> anyhow::Result<()> {
    match command {
        BackupCommand::List { reach, former, json } => list(reach, former, *json, globals).await,
        BackupCommand::Now { reach, accessory } => act(reach, accessory, BackupAction::Now, globals).await,
        BackupCommand::Verify {
            reach,
            accessory,
            backup,
        } => {
            let backup = backup.clone();
            act(reach, accessory, BackupAction::Verify { backup }, globals).await
        }
        BackupCommand::Drill {
            reach,
            accessory,
            backup,
        } => {
            let backup = backup.clone();
            act(reach, accessory, BackupAction::Drill { backup }, globals).await
        }
        BackupCommand::Prune {
            reach,
            accessory,
            yes: true,
        } => act(reach, accessory, BackupAction::Prune { confirmed: true }, globals).await,
        BackupCommand::Prune {
            reach,
            accessory,
            yes: false,
        } => plan(reach, accessory, globals).await,
        BackupCommand::Hold {
            reach,
            accessory,
            backup,
        } => {
            let (backup, held) = (backup.clone(), true);
            act(reach, accessory, BackupAction::Hold { backup, held }, globals).await
        }
        BackupCommand::Release {
            reach,
            accessory,
            backup,
        } => {
            let (backup, held) = (backup.clone(), false);
            act(reach, accessory, BackupAction::Hold { backup, held }, globals).await
        }
        BackupCommand::Download(args) => super::backup_download::run(args, globals).await,
        BackupCommand::Explain { reach } => explain(reach, globals).await,
        BackupCommand::Keygen => {
            keygen();
            Ok(())
        }
    }
}

/// Every job of the app, by host.
///
/// # Errors
/// When a host cannot be reached.
pub async fn jobs(targets: &Targets) -> anyhow::Result<Vec<(String, Vec<BackupJob>)>> {
    jobs_of(targets, &Former::default()).await
}

/// Every job of the app, by host, with the backups of a former name or host.
///
/// # Errors
/// When a host cannot be reached.
pub async fn jobs_of(targets: &Targets, former: &Former) -> anyhow::Result<Vec<(String, Vec<BackupJob>)>> {
    // The same words as a restore takes, and looked at in the same way.
    let asked = BackupAction::Restore(Restore {
        from: former.from.clone(),
        trust: former.trust.clone(),
        ..Restore::default()
    });
    asked.consistent().map_err(|why| failure(Kind::Config, why))?;
    let words = [("from", &former.from), ("trust", &former.trust)];
    let query: Vec<String> = words
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", value.as_ref()?)))
        .collect();
    let query = query.join("&");
    let mut found = Vec::new();
    for host in &targets.hosts {
        let mut path = format!("/v1/apps/{}/backups", targets.app);
        if !query.is_empty() {
            path.push_str(&format!("?{query}"));
        }
        found.push((host.name.clone(), host.link.get(&path).await?));
    }
    Ok(found)
}

/// Sends a signed action to every host that has backups of the accessory.
///
/// # Errors
/// When there is none, one cannot be reached, refuses, or fails.
pub async fn act(
    args: &AppArgs,
    accessory: &str,
    action: BackupAction,
    globals: &Globals,
) -> anyhow::Result<()> {
    act_on_each(args, accessory, &|_| Ok(action.clone()), globals).await
}

/// Like [`act`], with an action for each host's identity.
///
/// # Errors
/// As [`act`].
pub async fn act_on_each(
    args: &AppArgs,
    accessory: &str,
    action: &(dyn Fn(&str) -> anyhow::Result<BackupAction> + Sync),
    globals: &Globals,
) -> anyhow::Result<()> {
    let name = AccessoryName::parse(accessory).map_err(|error| failure(Kind::Config, error.to_string()))?;
    let targets = Targets::with_accessories(args, globals).await?;
    let mut there = BTreeSet::new();
    let mut acted = false;
    for host in &targets.hosts {
        let app: wire::App = host.link.get(&format!("/v1/apps/{}", targets.app)).await?;
        there.extend(app.backups.iter().map(|job| job.accessory.clone()));
        if !app.backups.iter().any(|job| job.accessory == accessory) {
            continue;
        }
        acted = true;
        let action = action(host.id.as_str())?;
        action.consistent().map_err(|why| failure(Kind::Config, why))?;
        let step = ui::step(&format!(
            "{}: {} {accessory}",
            host.name,
            action.name().replace('-', " ")
        ));
        let verb = Verb::Backup {
            accessory: name.clone(),
            action,
        };
        match targets.change(host, verb).await {
            Ok(End::Done { message, .. }) => step.done(&message),
            Ok(_) => step.done(""),
            Err(error) => {
                step.failed();
                return Err(error);
            }
        }
    }
    if acted {
        return Ok(());
    }
    let known = if there.is_empty() {
        "none is backed up".to_owned()
    } else {
        format!("there are: {}", there.into_iter().collect::<Vec<_>>().join(", "))
    };
    Err(
        failure(Kind::Refused, format!("no server backs up {accessory}; {known}"))
            .hint(format!(
                "write x-appliance/backups/{accessory} into the configuration, then: appliance push"
            ))
            .into(),
    )
}

async fn list(reach: &AppArgs, former: &Former, json: bool, globals: &Globals) -> anyhow::Result<()> {
    let found = jobs_of(&Targets::with_accessories(reach, globals).await?, former).await?;
    if json {
        let hosts: serde_json::Map<String, serde_json::Value> = found
            .iter()
            .map(|(host, jobs)| Ok((host.clone(), serde_json::to_value(jobs)?)))
            .collect::<Result<_, serde_json::Error>>()
            .context("the list cannot be written as JSON")?;
        ui::json(&hosts);
        return Ok(());
    }
    for (host, jobs) in &found {
        for job in jobs {
            ui::line(&format!("{host}: {}", summary(job)));
            for row in &job.backups {
                ui::line(&format!("  {}", described(row)));
            }
            for why in &job.frozen {
                ui::line(&format!("  nothing is removed: {why}"));
            }
            for problem in &job.problems {
                ui::line(&format!("  problem {problem}"));
            }
        }
        if jobs.is_empty() {
            ui::line(&format!(
                "{host}: no backups; write x-appliance/backups into the configuration and push"
            ));
        }
    }
    Ok(())
}

/// One line about a job, as `status` shows it too.
pub fn summary(job: &BackupJob) -> String {
    let now = Timestamp::now();
    let mut text = format!("{} to {}: ", job.accessory, job.to);
    match job.last_good {
        Some(at) => text.push_str(&format!("last good {}", ago(now, at))),
        None => text.push_str("none yet"),
    }
    match (job.verified, job.restore_ms) {
        (Some(at), Some(millis)) => {
            text.push_str(&format!(
                ", verified {}, restores in {}",
                ago(now, at),
                seconds(millis)
            ));
        }
        _ => text.push_str(", never restored"),
    }
    if job.running {
        text.push_str(", running now");
    } else if let Some(next) = job.next {
        text.push_str(&format!(", next {next}"));
    }
    if let Some(missed) = job.missed {
        text.push_str(&format!(", the one of {missed} was late"));
    }
    text
}

fn described(row: &BackupRow) -> String {
    if let Some(why) = &row.unusable {
        return format!("{} {}  UNUSABLE: {why}", row.database, row.id);
    }
    let mut text = format!("{} {}  {}", row.database, row.id, ui::bytes(row.stored_bytes));
    if let (Some(rows), Some(tables)) = (row.rows, row.tables) {
        text.push_str(&format!(", {rows} rows in {tables} tables"));
    }
    if let (Some(at), Some(millis)) = (row.verified, row.restore_ms) {
        text.push_str(&format!(
            ", restored {} in {}",
            ago(Timestamp::now(), at),
            seconds(millis)
        ));
    }
    if row.kept_because.iter().any(|why| why == "held") {
        text.push_str(", held");
    }
    for why in &row.suspicious {
        text.push_str(&format!("; LOOKS TOO SMALL: {why}"));
    }
    text
}

async fn plan(reach: &AppArgs, accessory: &str, globals: &Globals) -> anyhow::Result<()> {
    for (host, jobs) in jobs(&Targets::with_accessories(reach, globals).await?).await? {
        for job in jobs.iter().filter(|job| job.accessory == accessory) {
            for row in job.backups.iter().filter(|row| row.unusable.is_none()) {
                let fate = match row.kept_because.as_slice() {
                    [] => "REMOVE".to_owned(),
                    reasons => format!("keep: {}", reasons.join(", ")),
                };
                ui::line(&format!("{host}: {} {}  {fate}", row.database, row.id));
            }
            for why in &job.frozen {
                ui::line(&format!("{host}: nothing is removed by the schedule: {why}"));
            }
        }
    }
    ui::note(&format!(
        "nothing was removed; to do it: appliance backup prune {accessory} --yes"
    ));
    Ok(())
}

async fn explain(reach: &AppArgs, globals: &Globals) -> anyhow::Result<()> {
    let found = jobs(&Targets::with_accessories(reach, globals).await?).await?;
    for (host, jobs) in &found {
        for job in jobs {
            // As the host has it, which is what was pushed last.
            let settings = &job.settings;
            let keep = settings.keep;
            let zone = settings.timezone.as_deref().unwrap_or("the host's time zone");
            ui::line(&format!("{host}: {}", job.accessory));
            ui::line(&format!(
                "  when     {} in {zone}; what was missed is caught up with",
                job.schedule
            ));
            ui::line(&format!("  where    {}", job.to));
            ui::line(&format!(
                "  keep     the last {}, {} hourly, {} daily, {} weekly, {} monthly; always the newest verified and the two newest",
                keep.last, keep.hourly, keep.daily, keep.weekly, keep.monthly
            ));
            if job.to.starts_with("s3://") {
                ui::line(
                    "  guard    against a stolen host: keep versions in the bucket and lock them (object lock, governance, \
                     14 days), give this key no right to delete versions, and let a rule of the bucket end unfinished uploads",
                );
            } else {
                ui::line(
                    "  guard    none against the loss of this host: the backups lie on its own disk; write to: s3://…",
                );
            }
            ui::line(&format!(
                "  opened   by this host{}",
                match &settings.recovery {
                    Some(key) => format!(", and by the recovery key of {key}"),
                    None =>
                        " only: when it is lost, so are the backups; next: appliance backup keygen".to_owned(),
                }
            ));
            ui::line(&format!(
                "  checked  {}",
                match (job.verified, job.restore_ms) {
                    (Some(at), Some(millis)) => format!("restored at {at} in {}", seconds(millis)),
                    _ => format!("never restored; next: appliance backup drill {}", job.accessory),
                }
            ));
        }
    }
    ui::line("");
    ui::raw(appliance_backup::readme::TEXT.as_bytes());
    Ok(())
}

fn keygen() {
    use age::secrecy::ExposeSecret as _;
    let key = age::x25519::Identity::generate();
    ui::note(
        "Keep this line away from the host, on paper or in a password manager. It is shown once and stored nowhere:",
    );
    ui::line(key.to_string().expose_secret());
    ui::note("Write its public half next to the backups in the configuration, then push:");
    ui::line(&format!("recovery: {}", key.to_public()));
}

fn seconds(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{:.1} s", millis as f64 / 1000.0),
        10_000..120_000 => format!("{} s", millis / 1000),
        _ => format!("{} min", millis / 60_000),
    }
}

fn ago(now: Timestamp, at: Timestamp) -> String {
    let passed = now.duration_since(at).as_secs().max(0);
    match passed {
        0..120 => "just now".to_owned(),
        120..7200 => format!("{} minutes ago", passed / 60),
        7200..172_800 => format!("{} hours ago", passed / 3600),
        _ => format!("{} days ago", passed / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_says_when_it_was_verified_and_how_long_a_restore_takes() {
        let now = Timestamp::now();
        let job = BackupJob {
            accessory: "db".to_owned(),
            to: "s3://bucket/x".to_owned(),
            last_good: Some(now - jiff::SignedDuration::from_hours(3)),
            verified: Some(now - jiff::SignedDuration::from_hours(49)),
            restore_ms: Some(41_000),
            ..BackupJob::default()
        };
        assert_eq!(
            summary(&job),
            "db to s3://bucket/x: last good 3 hours ago, verified 2 days ago, restores in 41 s"
        );
        assert!(summary(&BackupJob::default()).contains("none yet, never restored"));
    }
}
