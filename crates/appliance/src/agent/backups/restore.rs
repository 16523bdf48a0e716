//! Restores, drills and checks of what is stored.

use anyhow::{Context as _, bail};
use appliance_backup::manifest::{DrillResult, Manifest};
use appliance_backup::names::{Kind, Subject};
use appliance_backup::repository::{Catalogue, Repository};
use appliance_backup::restore::{self, RestoreError, Target};
use appliance_backup::sign::PublicKey;
use appliance_backup::stream;
use appliance_backup::tap::Tap;
use appliance_config::extension::BackupKind;
use appliance_containers::engine::ContainerInfo;
use appliance_push::change::Restore;
use jiff::Timestamp;

use super::choice::{choose, meant, only_of, opens};
use super::jobs::Job;
use super::{OUTSIDE, redis, room, run, sqlite, volume};
use crate::agent::Agent;
use crate::agent::drive::Audience;
use crate::wire::Event;

/// Name of the recovery key among what is sealed.
pub const RECOVERY: &str = "recovery";

impl Job {
    /// What one of its backups is of.
    pub fn subject(&self, kind: Kind, unit: &str) -> Subject {
        Subject {
            app: self.app.clone(),
            kind,
            accessory: self.spec.accessory.clone(),
            unit: unit.to_owned(),
        }
    }

    /// Where all its backups are: the prefixes of its subjects without their last segment.
    pub fn prefixes(&self) -> Vec<String> {
        let kinds = [Kind::Postgres, Kind::Redis, Kind::Sqlite, Kind::Volume];
        kinds
            .iter()
            .map(|kind| {
                let prefix = self.subject(*kind, "x").prefix();
                prefix.strip_suffix("x/").unwrap_or(&prefix).to_owned()
            })
            .collect()
    }

    /// Everything that is stored of it, by subject.
    ///
    /// # Errors
    /// When the place cannot be reached.
    pub async fn subjects(&self, repository: &Repository) -> anyhow::Result<Vec<(Subject, Catalogue)>> {
        let mut by_subject = std::collections::BTreeMap::<Subject, Catalogue>::new();
        for prefix in self.prefixes() {
            let catalogue = repository.catalogue(&prefix).await?;
            for found in catalogue.backups {
                let entry = by_subject.entry(found.manifest.subject.clone()).or_default();
                entry.backups.push(found);
            }
            for unusable in catalogue.unusable {
                let entry = by_subject.entry(unusable.subject.clone()).or_default();
                entry.unusable.push(unusable);
            }
        }
        Ok(by_subject.into_iter().collect())
    }

    /// The subject that a database's name means; the only one without a name.
    fn pick(
        &self,
        subjects: Vec<(Subject, Catalogue)>,
        database: Option<&str>,
    ) -> anyhow::Result<(Subject, Catalogue)> {
        let names: Vec<String> = subjects.iter().map(|(subject, _)| subject.unit.clone()).collect();
        let mut fitting = subjects
            .into_iter()
            .filter(|(subject, _)| database.is_none_or(|name| subject.unit == name));
        let Some(first) = fitting.next() else {
            bail!(
                "there are no backups of {} {}; there are: {}",
                self.key(),
                database.unwrap_or_default(),
                names.join(", ")
            );
        };
        if fitting.next().is_some() {
            bail!(
                "{} has several databases: choose with --database one of {}",
                self.key(),
                names.join(", ")
            );
        }
        Ok(first)
    }
}

/// Restores, and says how long it took.
///
/// # Errors
/// When it did not work: the live database is as it was.
pub async fn restore(
    agent: &Agent,
    job: &Job,
    wanted: &Restore,
    audience: &Audience,
) -> anyhow::Result<String> {
    let own = agent.repository(job).await?;
    let repository = elsewhere(agent, own.clone(), wanted)?;
    let former = job.formerly(wanted.from.as_deref().unwrap_or(&job.spec.accessory));
    if former.app != job.app && agent.apps.ids()?.contains(&former.app) {
        bail!(
            "{} runs on this host, and what it has stored is restored there: appliance restore {} --app {}",
            former.app,
            former.spec.accessory,
            former.app
        );
    }
    let (subject, mut catalogue) =
        former.pick(former.subjects(&repository).await?, wanted.database.as_deref())?;
    let accepted = agent.backups.known(&job.key()).accepted;
    // Whoever names the key of a lost host wants what was there, not what this one has backed up of its empty database.
    if let (Some(key), None) = (&wanted.trust, &wanted.backup) {
        only_of(&mut catalogue, key, &subject)?;
    }
    let found = choose(&catalogue, wanted.backup.as_deref(), wanted.at, accepted)?;
    let manifest = &found.manifest;
    opens(&repository, manifest)?;
    let subject = job.subject(subject.kind, &subject.unit);
    let info = agent.running(job).await?;
    if wanted.swap && !wanted.no_backup && subject.kind != Kind::Volume {
        run::before_restore(agent, job, &own, &info, &subject, audience)
            .await
            .context(
                "nothing was changed: what would be replaced cannot be backed up first; to restore all the same: --no-backup",
            )?;
    }
    if manifest.subject.kind != Kind::Postgres {
        return restore_other(agent, &repository, manifest, &subject, &info, wanted, audience).await;
    }
    let server = agent.postgres(&info);
    // How much of it one table is shows once its definition is there.
    if wanted.table.is_none()
        && let Some(message) = room::database(&server, data_directory(&info), manifest).await?
    {
        audience.tell(Event::Warning { message }).await;
    }
    let target = match &wanted.into {
        Some(name) => Target::Into(name.clone()),
        None if wanted.swap => Target::Swap,
        None => Target::Beside,
    };
    let detail = format!("{} of {}", manifest.id, manifest.snapshot_at);
    audience
        .tell(Event::Phase {
            phase: "restoring".to_owned(),
            detail,
        })
        .await;
    let free = match &wanted.table {
        Some(_) => room::left(&**server.place(), data_directory(&info)).await,
        None => None,
    };
    let table = wanted.table.as_deref().map(|table| restore::Part { table, free });
    let restored = restore::restore(
        &repository,
        &agent.backups.journal.on_behalf_of(&job.app, &job.spec.accessory),
        &server,
        manifest,
        &target,
        table,
        OUTSIDE,
    )
    .await;
    let restored = match restored {
        Ok(restored) => restored,
        Err(closed @ RestoreError::Closed { .. }) => return Err(closed.into()),
        Err(room @ RestoreError::Room { .. }) => {
            return Err(anyhow::Error::from(room).context("nothing was changed"));
        }
        Err(other) => {
            let full = room::full(&**server.place(), data_directory(&info)).await;
            let full = full.map(|full| format!("{full}: ")).unwrap_or_default();
            return Err(anyhow::Error::from(other).context(format!("{full}nothing was changed")));
        }
    };
    for warning in &restored.warnings {
        audience
            .tell(Event::Warning {
                message: warning.clone(),
            })
            .await;
    }
    let mut message = format!(
        "{} rows in {} tables compared, {:.1} s; the data is in the database {}",
        restored.rows,
        restored.tables,
        restored.millis as f64 / 1000.0,
        restored.database
    );
    if let Some(before) = restored.before {
        message.push_str(&format!(
            "; what it was is kept for a day as {before}, and comes back with: appliance restore undo {}",
            job.spec.accessory
        ));
    }
    Ok(message)
}

/// The repository as a restore may read it: with the keys of a host that this one replaces, and the recovery key.
fn elsewhere(agent: &Agent, mut repository: Repository, wanted: &Restore) -> anyhow::Result<Repository> {
    use base64::Engine as _;
    if let Some(key) = &wanted.trust {
        let key = PublicKey::try_from(key.to_ascii_lowercase()).map_err(anyhow::Error::msg)?;
        repository.keys.trusted.push(key);
    }
    if let Some(sealed) = &wanted.recovery {
        let sealed = base64::engine::general_purpose::STANDARD
            .decode(sealed)
            .context("the recovery key did not arrive whole")?;
        let opened = agent.identity.unseal(&sealed).context("the recovery key")?;
        let key = opened.get(RECOVERY).map(String::as_str).unwrap_or_default();
        repository.keys.identity = key
            .parse()
            .map_err(|why| anyhow::anyhow!("what was given is no recovery key (AGE-SECRET-KEY-…): {why}"))?;
    }
    Ok(repository)
}

/// Restores what is no PostgreSQL database.
async fn restore_other(
    agent: &Agent,
    repository: &Repository,
    manifest: &Manifest,
    subject: &Subject,
    info: &ContainerInfo,
    wanted: &Restore,
    audience: &Audience,
) -> anyhow::Result<String> {
    if wanted.table.is_some() {
        bail!("only PostgreSQL backups have tables that can be restored one by one");
    }
    let detail = format!("{} of {}", manifest.id, manifest.snapshot_at);
    let phase = "restoring".to_owned();
    audience.tell(Event::Phase { phase, detail }).await;
    let into = wanted.into.as_deref();
    match manifest.subject.kind {
        Kind::Redis => redis::restore(agent, repository, manifest, subject, info, wanted.swap).await,
        Kind::Sqlite => sqlite::restore(agent, repository, manifest, subject, info, into, wanted.swap).await,
        _ if wanted.swap => bail!(
            "files are restored into a new volume, which then takes the old one's place in the configuration: leave --swap out"
        ),
        _ => volume::restore(agent, repository, manifest, subject, info, into).await,
    }
}

/// Where a PostgreSQL server keeps its data.
fn data_directory(info: &ContainerInfo) -> &str {
    info.env
        .iter()
        .find_map(|entry| entry.strip_prefix("PGDATA="))
        .unwrap_or("/var/lib/postgresql")
}

/// Notes beside a backup that it was restored.
pub(super) async fn passed(
    repository: &Repository,
    manifest: &Manifest,
    restore_ms: u64,
    rows: u64,
) -> anyhow::Result<DrillResult> {
    let result = DrillResult {
        repository: repository.id.clone(),
        subject: manifest.subject.clone(),
        id: manifest.id.clone(),
        at: Timestamp::now(),
        restore_ms,
        rows,
        tables: 1,
        indexes: None,
    };
    repository.verified(&result).await?;
    Ok(result)
}

/// Puts back what the last restore replaced.
///
/// # Errors
/// When there is nothing to put back, or the server refuses.
pub async fn undo(agent: &Agent, job: &Job, database: Option<&str>) -> anyhow::Result<String> {
    // The place of the backups is not asked: it may be away, and all that is needed is here.
    let info = agent.running(job).await?;
    let server = agent.postgres(&info);
    let (kind, kept) = match job.spec.kind()? {
        BackupKind::Postgres => (Kind::Postgres, restore::undoable(&server).await?),
        BackupKind::Redis => {
            return redis::undo(agent, &info, &job.subject(Kind::Redis, redis::UNIT)).await;
        }
        BackupKind::Sqlite => (Kind::Sqlite, sqlite::undoable(agent, &info).await?),
        BackupKind::Volume | BackupKind::Mysql => {
            bail!("a restore of files goes into a new volume and replaces nothing")
        }
    };
    let unit = match (database, kept.len()) {
        (Some(name), _) => name.to_owned(),
        (None, 0) => bail!("there is nothing that a restore replaced; it is kept for a day"),
        (None, 1) => kept.into_iter().next().unwrap_or_default(),
        (None, _) => bail!(
            "restores replaced several: choose with --database one of {}",
            kept.into_iter().collect::<Vec<_>>().join(", ")
        ),
    };
    if kind == Kind::Sqlite {
        return sqlite::undo(agent, &info, &unit).await;
    }
    let subject = job.subject(kind, &unit);
    let undone = restore::undo(&agent.backups.journal, &server, &subject, OUTSIDE).await?;
    Ok(format!(
        "{} is what it was before the restore; what the restore had brought is kept for a day as {}",
        undone.database,
        undone.before.unwrap_or_default()
    ))
}

/// Reads backups whole and compares them with their manifests.
///
/// # Errors
/// When one cannot be read or differs.
pub async fn verify(
    agent: &Agent,
    job: &Job,
    backup: Option<&str>,
    audience: &Audience,
) -> anyhow::Result<String> {
    let repository = agent.repository(job).await?;
    let record = agent.backups.known(&job.key());
    let meant = meant(&repository, job.subjects(&repository).await?, backup, &record)?;
    for (subject, manifest) in &meant.chosen {
        let tap = manifest.counts.as_ref().map(|_| Tap::of(subject.kind));
        stream::read(&repository, manifest, tap, Box::new(std::io::sink()))
            .await
            .with_context(|| format!("the backup {} of {subject} is no good", manifest.id))?;
        let detail = format!("{subject} {}", manifest.id);
        audience
            .tell(Event::Phase {
                phase: "verified".to_owned(),
                detail,
            })
            .await;
    }
    let count = meant.chosen.len();
    if count == 0 {
        bail!("there is no such backup; next: appliance backup list");
    }
    Ok(format!("{count} read whole; every byte is what was backed up"))
}
