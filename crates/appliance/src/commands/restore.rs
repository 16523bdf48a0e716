//! `appliance restore`: data back, beside the live database or in its place.

use appliance_push::change::{BackupAction, Restore};
use jiff::Timestamp;

use super::backup::{act, jobs};
use crate::developer::targets::{AppArgs, Targets};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::BackupRow;

/// Bring data back from a backup: beside the live database, or in its place
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    #[command(flatten)]
    reach: AppArgs,
    /// The accessory; or `undo`, followed by the accessory
    accessory: String,
    /// `latest` (the default); after `undo`, the accessory
    what: Option<String>,
    /// Which database, where the accessory has several
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// The newest backup that is not younger than this time, such as 2026-11-21T03:00:00Z
    #[arg(long, value_name = "TIME", conflicts_with = "backup")]
    at: Option<Timestamp>,
    /// This backup
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Into a new database of this name
    #[arg(long, value_name = "NAME", conflicts_with = "swap")]
    into: Option<String>,
    /// In the place of the live database, which is kept for a day: `appliance restore undo` brings it back
    #[arg(long)]
    swap: bool,
    /// With --swap: take no backup of what is replaced first
    #[arg(long, requires = "swap")]
    no_backup: bool,
    /// One table only, as schema.name
    #[arg(long, value_name = "TABLE", conflicts_with = "swap")]
    table: Option<String>,
    /// Show what would be restored, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Restores, or undoes the last restore.
///
/// # Errors
/// When a host cannot be reached, there is no such backup, or it does not restore; the live database is then as it was.
pub async fn run(args: &RestoreArgs, globals: &Globals) -> anyhow::Result<()> {
    if args.accessory == "undo" {
        let Some(accessory) = &args.what else {
            return Err(failure(Kind::Config, "undo of which accessory?")
                .hint("appliance restore undo ACCESSORY")
                .into());
        };
        let action = BackupAction::Undo {
            database: args.database.clone(),
        };
        return act(&args.reach, accessory, action, globals).await;
    }
    if let Some(word) = args.what.as_deref().filter(|word| *word != "latest") {
        return Err(
            failure(Kind::Config, format!("{word:?} is neither latest nor an option"))
                .hint(format!("appliance restore {} --backup {word}", args.accessory))
                .into(),
        );
    }
    if args.dry_run {
        return dry_run(args, globals).await;
    }
    let action = BackupAction::Restore(Restore {
        database: args.database.clone(),
        backup: args.backup.clone(),
        at: args.at,
        into: args.into.clone(),
        swap: args.swap,
        no_backup: args.no_backup,
        table: args.table.clone(),
    });
    act(&args.reach, &args.accessory, action, globals).await
}

async fn dry_run(args: &RestoreArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut any = false;
    for (host, jobs) in jobs(&Targets::find(&args.reach, globals).await?).await? {
        for job in jobs.iter().filter(|job| job.accessory == args.accessory) {
            let wanted = args.database.as_deref();
            let rows = job
                .backups
                .iter()
                .filter(|row| wanted.is_none_or(|name| row.database == name));
            let Some(row) = rows.rev().find(|row| fits(args, row)) else {
                continue;
            };
            any = true;
            let place = match (&args.into, args.swap) {
                (Some(name), _) => format!("into the new database {name}"),
                (None, true) => format!("in the place of {}, which is kept for a day", row.database),
                (None, false) => format!("beside {}, which is not touched", row.database),
            };
            ui::line(&format!(
                "{host}: would restore {} {} of {} ({} of content, {} rows, PostgreSQL {}) {place}",
                row.database,
                row.id,
                row.at,
                ui::bytes(row.plain_bytes),
                row.rows.unwrap_or(0),
                row.server.as_deref().unwrap_or("?")
            ));
        }
    }
    if any {
        return Ok(());
    }
    Err(failure(
        Kind::Refused,
        format!("there is no such backup of {}", args.accessory),
    )
    .hint("appliance backup list")
    .into())
}

/// As the agent chooses.
fn fits(args: &RestoreArgs, row: &BackupRow) -> bool {
    row.unusable.is_none()
        && match &args.backup {
            Some(id) => row.id == *id,
            None => row.suspicious.is_empty() && args.at.is_none_or(|at| row.at <= at),
        }
}
