//! Drills: backups that are restored into a throw-away server, and compared.
//!
//! ```text
//!   each subject's newest ─► room? ─ no ─► left out: three in a row are a drill that failed
//!                              └ yes ─► restored, compared ─► noted as the regular one, if every subject was in it
//! ```

use anyhow::bail;
use appliance_backup::names::Kind;
use appliance_backup::restore;
use jiff::Timestamp;

use super::jobs::Job;
use super::restore::{choose, openable, spoiled};
use super::{OUTSIDE, redis, room, run, sqlite, standing, volume};
use crate::agent::Agent;
use crate::agent::drive::Audience;
use crate::wire::Event;

/// So many drills that there is no room for, one after the other, are a drill that failed.
const SKIPS: u32 = 3;

/// Memory that has to be available for a throw-away PostgreSQL server, bytes: it takes a part of its limit only.
const MEMORY: u64 = 256 << 20;

/// What came of a drill.
struct Done {
    /// How long the restores took.
    millis: u64,
    /// The image that it was done with.
    image: String,
    /// Whether every subject's newest backup was in it: one of an old backup says nothing of those.
    whole: bool,
    /// For people.
    said: String,
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
        Ok(done) if done.whole => {
            agent.backups.note(&job.key(), |record| {
                record.drilled = Some((now, done.millis));
                record.drill_image = Some(done.image.clone());
                record.drill_version = Some(run::VERSION.to_owned());
                record.drill_failed = None;
                record.drill_skipped = None;
            });
            if let Some(address) = &job.spec.settings.drill_ping {
                let told = super::ping::ping(address).await;
                agent.backups.note(&job.key(), |record| {
                    record.drill_ping_failed = told.err().map(|error| (now, format!("{error:#}")));
                });
            }
        }
        Ok(done) => {
            // The next backup may look right again; until then every one would be drilled.
            if backup.is_none() {
                agent.backups.note(&job.key(), |record| {
                    let times = record.drill_skipped.as_ref().map_or(1, |(_, _, times)| times + 1);
                    record.drill_skipped = Some((now, done.said.clone(), times));
                });
            }
        }
        Err(error) => {
            tracing::error!("the drill of {} failed: {error:#}", job.key());
            let why = format!("{error:#}");
            let lacking = room::lacking(error);
            agent.backups.note(&job.key(), |record| {
                let times = record.drill_skipped.as_ref().map_or(1, |(_, _, times)| times + 1);
                if lacking {
                    record.drill_skipped = Some((now, why.clone(), times));
                }
                // It says nothing about the backup that there was no room; that nothing is tried for weeks does.
                if !lacking || times >= SKIPS {
                    record.drill_failed = Some((now, why));
                }
            });
        }
    }
    drilled.map(|done| match done.whole {
        true => done.said,
        false => format!(
            "{}; the regular drill, of every newest backup, is due as before",
            done.said
        ),
    })
}

async fn drill_each(
    agent: &Agent,
    job: &Job,
    backup: Option<&str>,
    audience: Option<&Audience>,
) -> anyhow::Result<Done> {
    let repository = agent.repository(job).await?;
    let info = agent.running(job).await?;
    let image = info.image_id.clone();
    let record = agent.backups.record(&job.key());
    let accepted = record.accepted;
    let (mut chosen, mut left_out) = (Vec::new(), Vec::new());
    for (subject, mut catalogue) in openable(&repository, job.subjects(&repository).await?, backup) {
        record.own.recall(&repository, &mut catalogue);
        spoiled(&subject, &catalogue)?;
        match choose(&catalogue, backup, None, accepted) {
            Ok(found) => chosen.push(found.manifest),
            Err(_) if catalogue.backups.is_empty() => {}
            Err(_) => left_out.push(subject.to_string()),
        }
    }
    if chosen.is_empty() {
        bail!("there is no backup to restore; next: appliance backup list");
    }
    let postgres = chosen
        .iter()
        .any(|manifest| manifest.subject.kind == Kind::Postgres);
    if postgres {
        room::host_memory(MEMORY, "the throw-away server of the drill")?;
    }
    let scratch = match postgres {
        true => Some(agent.scratch(&image, &agent.postgres(&info)).await?),
        false => None,
    };
    let mut millis = 0;
    let mut said = Vec::new();
    let mut outcome = Ok(());
    for manifest in &chosen {
        let last = agent
            .backups
            .record(&job.key())
            .drilled
            .map_or(0, |(_, millis)| millis);
        let limit = std::time::Duration::from_millis(standing::drill_limit(last, manifest.plain_bytes));
        let drill = async {
            match (manifest.subject.kind, &scratch) {
                (Kind::Postgres, Some(scratch)) => {
                    room::database(&scratch.server, "/var/lib/postgresql", manifest).await?;
                    Ok(restore::drill(&repository, &scratch.server, manifest, OUTSIDE).await?)
                }
                (Kind::Redis, _) => redis::drill(agent, &repository, manifest, &image).await,
                (Kind::Sqlite, _) => sqlite::drill(agent, &repository, manifest, &image).await,
                _ => volume::drill(agent, &repository, manifest, &image).await,
            }
        };
        match tokio::time::timeout(limit, drill).await {
            Ok(Ok(result)) => {
                millis += result.restore_ms;
                let what = match manifest.subject.kind {
                    Kind::Postgres => format!("{} rows in {} tables equal", result.rows, result.tables),
                    Kind::Redis => format!("{} keys loaded", result.rows),
                    Kind::Sqlite => format!("{} tables, in order", result.rows),
                    Kind::Volume => format!("{} files equal", result.rows),
                };
                let detail = format!(
                    "{} {}: {what}, restored in {:.1} s",
                    manifest.subject,
                    manifest.id,
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
            Ok(Err(error)) if room::lacking(&error) => {
                // One that does not restore is the worse news.
                outcome = outcome.and(Err(
                    error.context(format!("the backup {} was not tried", manifest.id))
                ));
            }
            Ok(Err(error)) => {
                outcome = Err(error.context(format!("the backup {} does not restore", manifest.id)));
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
    if let Some(scratch) = scratch {
        scratch.remove(agent).await;
    }
    outcome?;
    if backup.is_none() && !left_out.is_empty() {
        said.push(format!(
            "left out, since none of theirs looks right: {}",
            left_out.join(", ")
        ));
    }
    Ok(Done {
        millis,
        image,
        whole: backup.is_none() && left_out.is_empty(),
        said: said.join("; "),
    })
}
