//! Restores, drills and checks of what is stored.

use anyhow::{Context as _, bail};
use appliance_backup::names::{BackupId, Kind, Subject};
use appliance_backup::repository::{Catalogue, Found, Repository};
use appliance_backup::restore::{self, Target};
use appliance_backup::stream;
use appliance_backup::tap::Tap;
use appliance_push::change::Restore;
use jiff::Timestamp;

use super::OUTSIDE;
use super::jobs::Job;
use crate::agent::Agent;
use crate::agent::drive::Audience;
use crate::wire::Event;

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

    /// Everything that is stored of it, by subject.
    ///
    /// # Errors
    /// When the place cannot be reached.
    pub async fn subjects(&self, repository: &Repository) -> anyhow::Result<Vec<(Subject, Catalogue)>> {
        let mut by_subject = std::collections::BTreeMap::<Subject, Catalogue>::new();
        for kind in [Kind::Postgres, Kind::Redis, Kind::Sqlite, Kind::Volume] {
            // All units of one accessory: the prefix of a subject without its last segment.
            let prefix = self.subject(kind, "x").prefix();
            let prefix = prefix.strip_suffix("x/").unwrap_or(&prefix);
            let catalogue = repository.catalogue(prefix).await?;
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

/// The backup that is meant: by id, by time, or the newest that does not look too small.
pub fn choose(catalogue: &Catalogue, backup: Option<&str>, at: Option<Timestamp>) -> anyhow::Result<Found> {
    let found = match backup {
        Some(id) => {
            let id = BackupId::parse(id)?;
            if let Some(bad) = catalogue.unusable.iter().find(|one| one.id == id) {
                bail!("the backup {id} cannot be used: {}", bad.why);
            }
            catalogue.backups.iter().find(|found| found.manifest.id == id)
        }
        None => catalogue
            .backups
            .iter()
            .rev()
            .filter(|found| at.is_none_or(|at| found.manifest.snapshot_at <= at))
            .find(|found| found.manifest.suspicious.is_empty()),
    };
    found.cloned().context(
        "there is no such backup; those that look too small are used only by their id: appliance backup list",
    )
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
    let repository = agent.repository(job).await?;
    let (_, catalogue) = job.pick(job.subjects(&repository).await?, wanted.database.as_deref())?;
    let found = choose(&catalogue, wanted.backup.as_deref(), wanted.at)?;
    let manifest = &found.manifest;
    let info = agent.running(job).await?;
    let server = agent.postgres(&info);
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
    let table = wanted.table.as_deref();
    let restored = restore::restore(
        &repository,
        &agent.backups.journal,
        &server,
        manifest,
        &target,
        table,
        OUTSIDE,
    )
    .await
    .context("nothing was changed")?;
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

/// Puts back what the last restore replaced.
///
/// # Errors
/// When there is nothing to put back, or the server refuses.
pub async fn undo(agent: &Agent, job: &Job, database: Option<&str>) -> anyhow::Result<String> {
    let repository = agent.repository(job).await?;
    let (subject, _) = job.pick(job.subjects(&repository).await?, database)?;
    let server = agent.postgres(&agent.running(job).await?);
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
    let mut count = 0;
    for (subject, catalogue) in job.subjects(&repository).await? {
        let Ok(found) = choose(&catalogue, backup, None) else {
            continue;
        };
        let tap = found.manifest.counts.as_ref().map(|_| Tap::default());
        stream::read(&repository, &found.manifest, tap, Box::new(std::io::sink()))
            .await
            .with_context(|| format!("the backup {} of {subject} is no good", found.manifest.id))?;
        count += 1;
        let detail = format!("{subject} {}", found.manifest.id);
        audience
            .tell(Event::Phase {
                phase: "verified".to_owned(),
                detail,
            })
            .await;
    }
    if count == 0 {
        bail!("there is no such backup; next: appliance backup list");
    }
    Ok(format!("{count} read whole; every byte is what was backed up"))
}

/// Restores the newest backup of each database into a throw-away server and compares; notes what came of it.
///
/// # Errors
/// When one does not restore.
pub async fn drill(
    agent: &Agent,
    job: &Job,
    backup: Option<&str>,
    audience: Option<&Audience>,
) -> anyhow::Result<String> {
    let drilled = drill_each(agent, job, backup, audience).await;
    let now = Timestamp::now();
    match &drilled {
        Ok((millis, image, _)) => agent.backups.note(&job.key(), |record| {
            record.drilled = Some((now, *millis));
            record.drill_image = Some(image.clone());
            record.drill_failed = None;
        }),
        Err(error) => {
            tracing::error!("the drill of {} failed: {error:#}", job.key());
            agent.backups.note(&job.key(), |record| {
                record.drill_failed = Some((now, format!("{error:#}")))
            });
        }
    }
    drilled.map(|(_, _, message)| message)
}

async fn drill_each(
    agent: &Agent,
    job: &Job,
    backup: Option<&str>,
    audience: Option<&Audience>,
) -> anyhow::Result<(u64, String, String)> {
    let repository = agent.repository(job).await?;
    let image = agent.running(job).await?.image_id;
    let mut chosen = Vec::new();
    for (subject, catalogue) in job.subjects(&repository).await? {
        if subject.kind == Kind::Postgres
            && let Ok(found) = choose(&catalogue, backup, None)
        {
            chosen.push(found.manifest);
        }
    }
    if chosen.is_empty() {
        bail!("there is no PostgreSQL backup to restore; next: appliance backup list");
    }
    let scratch = agent.scratch(&image).await?;
    let mut millis = 0;
    let mut said = Vec::new();
    let mut outcome = Ok(());
    for manifest in &chosen {
        // Never shorter than half an hour; long ones get four times what the last one took.
        let last = agent
            .backups
            .record(&job.key())
            .drilled
            .map_or(0, |(_, millis)| millis);
        let limit = std::time::Duration::from_millis(last.saturating_mul(4).max(30 * 60 * 1000));
        let drill = restore::drill(&repository, &scratch.server, manifest, OUTSIDE);
        match tokio::time::timeout(limit, drill).await {
            Ok(Ok(result)) => {
                millis += result.restore_ms;
                let detail = format!(
                    "{} {}: {} rows in {} tables equal, restored in {:.1} s",
                    manifest.subject,
                    manifest.id,
                    result.rows,
                    result.tables,
                    result.restore_ms as f64 / 1000.0
                );
                if let Some(audience) = audience {
                    let phase = "drilled".to_owned();
                    audience
                        .tell(Event::Phase {
                            phase,
                            detail: detail.clone(),
                        })
                        .await;
                }
                said.push(detail);
            }
            Ok(Err(error)) => {
                outcome =
                    Err(anyhow::Error::new(error)
                        .context(format!("the backup {} does not restore", manifest.id)));
            }
            Err(_) => {
                outcome = Err(anyhow::anyhow!(
                    "the restore of {} took longer than {} s",
                    manifest.id,
                    limit.as_secs()
                ))
            }
        }
    }
    scratch.remove(agent).await;
    outcome?;
    Ok((millis, image, said.join("; ")))
}
