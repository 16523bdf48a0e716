//! `appliance restore`: data back, beside the live database or in its place.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use appliance_push::change::{BackupAction, Restore};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;

use super::backup::{Former, act, act_on_each, jobs_of};
use crate::agent::backups::RECOVERY;
use crate::agent::identity;
use crate::developer::targets::{AppArgs, Targets};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::BackupRow;

/// Bring data back from a backup: beside the live database, or in its place
///
/// On a new host that replaces a lost one: push with the same place, then
/// `appliance restore ACCESSORY --swap --trust KEY --recovery-key FILE`, where KEY is what `appliance backup list` says of
/// the backups made there. Of an accessory that was renamed: `--from OLD-NAME`.
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
    /// What the accessory was called when the backup was made, as ACCESSORY or APP/ACCESSORY
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Trust what the host with this public key made, which this one replaces, and choose among that; `appliance backup list`
    /// names the key
    #[arg(long, value_name = "KEY")]
    trust: Option<String>,
    /// The recovery key, in a file (`-` for standard input): opens what another host's backups are sealed with
    #[arg(long, value_name = "FILE")]
    recovery_key: Option<PathBuf>,
    /// Show what would be restored, and change nothing
    #[arg(long)]
    dry_run: bool,
}

/// The recovery key in a file: its line that is no comment.
fn recovery_key(file: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    match file.to_str() {
        Some("-") => std::io::stdin().read_to_string(&mut text).map(|_| ())?,
        _ => text = fs_err::read_to_string(file)?,
    }
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| line.starts_with("AGE-SECRET-KEY-"));
    let Some(line) = line else {
        let message = format!("{} holds no recovery key (AGE-SECRET-KEY-…)", file.display());
        return Err(failure(Kind::Config, message)
            .hint("give the file with the line that appliance backup keygen had shown")
            .into());
    };
    Ok(line.to_owned())
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
    let key = args.recovery_key.as_deref().map(recovery_key).transpose()?;
    let restore = Restore {
        database: args.database.clone(),
        backup: args.backup.clone(),
        at: args.at,
        into: args.into.clone(),
        swap: args.swap,
        no_backup: args.no_backup,
        table: args.table.clone(),
        from: args.from.clone(),
        trust: args.trust.clone(),
        recovery: None,
    };
    // Sealed to each host, so that neither the change nor its record holds the key.
    let action = |host: &str| {
        let mut restore = restore.clone();
        if let Some(key) = &key {
            let named = BTreeMap::from([(RECOVERY.to_owned(), key.clone())]);
            restore.recovery = Some(BASE64.encode(identity::seal(host, &named)?));
        }
        Ok(BackupAction::Restore(restore))
    };
    act_on_each(&args.reach, &args.accessory, &action, globals).await
}

async fn dry_run(args: &RestoreArgs, globals: &Globals) -> anyhow::Result<()> {
    let mut any = false;
    let former = Former {
        from: args.from.clone(),
        trust: args.trust.clone(),
    };
    for (host, jobs) in jobs_of(&Targets::with_accessories(&args.reach, globals).await?, &former).await? {
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
            None => {
                let by = args.trust.as_deref();
                row.suspicious.is_empty()
                    && args.at.is_none_or(|at| row.at <= at)
                    && by.is_none_or(|key| row.signed_by.eq_ignore_ascii_case(key))
            }
        }
}
