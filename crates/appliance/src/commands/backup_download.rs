//! `appliance backup download`: a stored backup into a file here, still sealed.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use appliance_backup::manifest::Manifest;
use aws_lc_rs::digest::{Context, SHA256};
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;

use super::backup::jobs;
use crate::developer::targets::{AppArgs, Targets};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// What is downloaded, and where to.
#[derive(Debug, clap::Args)]
pub struct DownloadArgs {
    #[command(flatten)]
    reach: AppArgs,
    /// The accessory
    accessory: String,
    /// Which database or directory, where it has several
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// Which one (default: the newest)
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Where to (default: the backup's id in this directory)
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Downloads it, and says how to open it.
///
/// # Errors
/// When there is no such backup, the host or the place cannot be reached, or the file is there already.
pub async fn run(args: &DownloadArgs, globals: &Globals) -> anyhow::Result<()> {
    let targets = Targets::with_accessories(&args.reach, globals).await?;
    let found = jobs(&targets).await?;
    let mut chosen = None;
    for (host, jobs) in &found {
        for job in jobs.iter().filter(|job| job.accessory == args.accessory) {
            let rows = job.backups.iter().filter(|row| {
                row.unusable.is_none()
                    && args.database.as_ref().is_none_or(|name| row.database == *name)
                    && args.backup.as_ref().is_none_or(|id| row.id == *id)
            });
            for row in rows {
                if chosen.as_ref().is_none_or(|(_, id)| row.id > *id) {
                    chosen = Some((host.clone(), row.id.clone()));
                }
            }
        }
    }
    let Some((host, id)) = chosen else {
        let message = format!("there is no such backup of {}", args.accessory);
        return Err(failure(Kind::Refused, message)
            .hint("appliance backup list")
            .into());
    };
    let link = targets
        .hosts
        .iter()
        .find(|target| target.name == host)
        .map(|target| &target.link);
    let link = link.context("the host was there a moment ago")?;
    let path = format!("/v1/apps/{}/backups/{}/{id}", targets.app, args.accessory);
    let manifest: Manifest = link.get(&path).await?;
    let file = args
        .output
        .clone()
        .unwrap_or_else(|| format!("{id}.zst.age").into());
    let step = ui::step(&format!("{host}: {id} into {}", file.display()));
    let body = link.open_stream(&format!("{path}/content")).await?;
    match save(body, &manifest, &file).await {
        Ok(bytes) => step.done(&ui::bytes(bytes)),
        Err(error) => {
            step.failed();
            return Err(error);
        }
    }
    let then = match manifest.subject.kind {
        appliance_backup::names::Kind::Postgres => " | pg_restore --dbname=NEW",
        appliance_backup::names::Kind::Redis => " > dump.rdb",
        appliance_backup::names::Kind::Sqlite => " > restored.sqlite3",
        appliance_backup::names::Kind::Volume => " | tar -x",
    };
    ui::note(&format!(
        "it is sealed; with the recovery key: age -d -i recovery.key {} | zstd -d{then}",
        file.display()
    ));
    Ok(())
}

/// Into a new file, which is there only when all of it came and is what was stored.
async fn save(mut body: hyper::body::Incoming, manifest: &Manifest, file: &Path) -> anyhow::Result<u64> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = tempfile::NamedTempFile::new_in(directory)
        .with_context(|| format!("cannot write in {}", directory.display()))?;
    let mut out = tokio::fs::File::from_std(temporary.reopen()?);
    let mut volumes = manifest.volumes.iter();
    let (mut left, mut wanted, mut digest) = (0, "", Context::new(&SHA256));
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let Ok(mut bytes) = frame.context("the download broke off")?.into_data() else {
            continue;
        };
        total += bytes.len() as u64;
        out.write_all(&bytes).await.context("the file")?;
        while !bytes.is_empty() {
            if left == 0 {
                let volume = volumes.next().context("more came than was stored")?;
                (left, wanted, digest) = (volume.size, &volume.sha256, Context::new(&SHA256));
            }
            let part = bytes.split_to(bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
            digest.update(&part);
            left -= part.len() as u64;
            if left == 0 && hex::encode(digest.clone().finish()) != wanted {
                anyhow::bail!("what came is not what was stored: its digest is another one");
            }
        }
    }
    if left > 0 || volumes.next().is_some() {
        anyhow::bail!("the download broke off after {total} bytes");
    }
    out.sync_all().await.context("the file")?;
    temporary
        .persist_noclobber(file)
        .map_err(|error| error.error)
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(total)
}
