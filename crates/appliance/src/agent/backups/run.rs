//! One run of a job: each database apart, then the retention, then the ping, then a drill if one is due.

use anyhow::{Context as _, bail};
use appliance_backup::backup::{Order, Source, backup};
use appliance_backup::manifest::Manifest;
use appliance_backup::names::{Kind, Subject};
use appliance_backup::repository::{Catalogue, Repository};
use appliance_backup::retention::{self, Candidate, Circumstances, Keep, Plan};
use appliance_backup::{recover, restore};
use appliance_config::extension::BackupKind;
use jiff::Timestamp;

use super::jobs::Job;
use super::{OUTSIDE, ping, redis, sqlite, volume};
use crate::agent::drive::Audience;
use crate::agent::schedule::Rhythm;
use crate::agent::{Agent, chain};
use crate::wire::Event;

/// Runs a job, and notes what came of it.
///
/// # Errors
/// When any part of it failed; the parts that did not are there.
pub async fn run(agent: &Agent, job: &Job, audience: Option<&Audience>) -> anyhow::Result<String> {
    let key = job.key();
    let begun = Timestamp::now();
    agent.backups.note(&key, |record| {
        record.last_run = Some(begun);
        record.since.get_or_insert(begun);
    });
    let made = all(agent, job, audience).await;
    let now = Timestamp::now();
    match &made {
        Ok(_) => {
            let millis = u64::try_from(now.duration_since(begun).as_millis()).unwrap_or(0);
            agent.backups.note(&key, |record| {
                record.good = Some((now, millis));
                record.failed = None;
            });
            tell_watcher(agent, job).await;
            sweep_if_due(agent, job).await;
            drill_if_due(agent, job, audience).await;
        }
        Err(error) => {
            tracing::error!("the backup of {key} failed: {error:#}");
            agent
                .backups
                .note(&key, |record| record.failed = Some((now, format!("{error:#}"))));
        }
    }
    made
}

async fn tell_watcher(agent: &Agent, job: &Job) {
    let Some(address) = &job.spec.settings.ping else {
        return;
    };
    let told = ping::ping(address).await;
    agent.backups.note(&job.key(), |record| {
        record.ping_failed = told.err().map(|error| (Timestamp::now(), format!("{error:#}")));
    });
}

/// Once a day: what crashes left in the place that no journal knows of.
async fn sweep_if_due(agent: &Agent, job: &Job) {
    let now = Timestamp::now();
    let record = agent.backups.record(&job.key());
    if record
        .swept
        .is_some_and(|at| now.duration_since(at) < jiff::SignedDuration::from_hours(24))
    {
        return;
    }
    let swept = async {
        let repository = agent.repository(job).await?;
        let mut count = 0;
        for prefix in job.prefixes() {
            count += recover::sweep(&repository, &prefix, now).await?;
        }
        Ok::<_, anyhow::Error>(count)
    };
    match swept.await {
        Ok(count) => {
            if count > 0 {
                tracing::info!(
                    "{count} unfinished uploads and backups of {} are removed",
                    job.key()
                );
            }
            agent.backups.note(&job.key(), |record| record.swept = Some(now));
        }
        Err(error) => tracing::warn!("{}: what was never finished stays for now: {error:#}", job.key()),
    }
}

/// After the first backup, after the interval, and after a change of the image.
async fn drill_if_due(agent: &Agent, job: &Job, audience: Option<&Audience>) {
    let Some(interval) = job.spec.drill_interval() else {
        return;
    };
    let record = agent.backups.record(&job.key());
    let image = agent.running(job).await.ok().map(|info| info.image_id);
    let recent = record
        .drilled
        .is_some_and(|(at, _)| Timestamp::now().duration_since(at) < interval);
    if recent && record.drill_image == image && record.drill_failed.is_none() {
        return;
    }
    // The outcome is noted and shown by `status`.
    let _noted = super::restore::drill(agent, job, None, audience).await;
}

/// One unit of a job and where its content comes from.
enum Content {
    Postgres(appliance_backup::postgres::Postgres),
    Known(appliance_backup::stream::Feed),
}

async fn all(agent: &Agent, job: &Job, audience: Option<&Audience>) -> anyhow::Result<String> {
    let repository = agent.repository(job).await?;
    let info = agent.running(job).await?;
    match job.spec.kind() {
        BackupKind::Postgres => {
            let server = agent.postgres(&info);
            for name in restore::forget_replaced(&server, Timestamp::now()).await? {
                tracing::info!("{name}, which a restore replaced, was kept for a day and is dropped");
            }
            let databases = server.databases().await?;
            if databases.is_empty() {
                bail!("the server has no database to back up");
            }
            let mut outcomes = Vec::new();
            for name in databases {
                let subject = job.subject(Kind::Postgres, &name);
                let content = Content::Postgres(server.clone());
                let made = one(
                    agent,
                    job,
                    &repository,
                    subject,
                    content,
                    &info.image_id,
                    audience,
                )
                .await;
                outcomes.push((name, made));
            }
            together("databases", outcomes)
        }
        BackupKind::Redis => {
            let content = Content::Known(redis::snapshot(agent, &info).await?);
            let subject = job.subject(Kind::Redis, "data");
            let manifest = one(
                agent,
                job,
                &repository,
                subject,
                content,
                &info.image_id,
                audience,
            )
            .await?;
            Ok(told(&manifest))
        }
        BackupKind::Sqlite => {
            sqlite::forget(agent, &info).await?;
            let mut outcomes = Vec::new();
            for file in sqlite::files(agent, &info).await? {
                let made = async {
                    let content = Content::Known(sqlite::copy(agent, &info, &file).await?);
                    let subject = job.subject(Kind::Sqlite, &file);
                    one(
                        agent,
                        job,
                        &repository,
                        subject,
                        content,
                        &info.image_id,
                        audience,
                    )
                    .await
                };
                outcomes.push((file.clone(), made.await));
                sqlite::done(agent, &info, &file).await;
            }
            together("files", outcomes)
        }
        BackupKind::Volume => {
            let (helper, directories) = volume::begin(agent, &info).await?;
            let mut outcomes = Vec::new();
            for directory in directories {
                let content = Content::Known(volume::feed(&helper, &directory));
                let subject = job.subject(Kind::Volume, &directory);
                let made = one(
                    agent,
                    job,
                    &repository,
                    subject,
                    content,
                    &info.image_id,
                    audience,
                )
                .await;
                outcomes.push((directory, made));
            }
            helper.remove(agent).await;
            together("directories", outcomes)
        }
        BackupKind::Mysql => bail!(
            "backups of {} hold MySQL databases, which this version does not back up; \
             it knows PostgreSQL, Redis, SQLite and plain volumes",
            job.key()
        ),
    }
}

/// What came of several units, of which one that fails does not keep the others from theirs.
fn together(what: &str, outcomes: Vec<(String, anyhow::Result<Manifest>)>) -> anyhow::Result<String> {
    let all = outcomes.len();
    let (mut made, mut failed) = (Vec::new(), Vec::new());
    for (name, outcome) in outcomes {
        match outcome {
            Ok(manifest) => made.push(told(&manifest)),
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    if failed.is_empty() {
        return Ok(made.join("; "));
    }
    bail!("{} of {all} {what}: {}", failed.len(), failed.join("; "))
}

fn told(manifest: &Manifest) -> String {
    let content = match (&manifest.counts, manifest.subject.kind) {
        (Some(counts), Kind::Postgres) => format!("{} rows", counts.rows()),
        (Some(counts), Kind::Volume) => {
            format!("{} files", counts.tree.as_ref().map_or(0, |tree| tree.entries))
        }
        _ => format!("{} bytes", manifest.plain_bytes),
    };
    let mut text = format!(
        "{} as {}: {content}, {} bytes stored",
        manifest.subject,
        manifest.id,
        manifest.stored_bytes()
    );
    for warning in &manifest.warnings {
        text.push_str(&format!("; {warning}"));
    }
    for why in &manifest.suspicious {
        text.push_str(&format!("; LOOKS TOO SMALL: {why}"));
    }
    text
}

async fn one(
    agent: &Agent,
    job: &Job,
    repository: &Repository,
    subject: Subject,
    content: Content,
    image: &str,
    audience: Option<&Audience>,
) -> anyhow::Result<Manifest> {
    let before = repository.catalogue(&subject.prefix()).await?;
    let order = Order {
        subject: subject.clone(),
        image: Some(image.to_owned()),
        bandwidth: job.spec.settings.bandwidth.as_ref().map(|bytes| bytes.0),
        previous: before.backups.last().map(|found| found.manifest.clone()),
    };
    let source = match content {
        Content::Postgres(ref server) => Source::Postgres(server),
        Content::Known(feed) => Source::Known(feed),
    };
    let manifest = backup(repository, &agent.backups.journal, &order, source, OUTSIDE).await?;
    if let Some(audience) = audience {
        let detail = told(&manifest);
        let phase = "backed up".to_owned();
        audience.tell(Event::Phase { phase, detail }).await;
    }
    for why in &manifest.suspicious {
        tracing::error!(
            "the backup {} of {subject} looks too small: {why}; nothing is pruned",
            manifest.id
        );
    }
    // A prune that fails is said, but the backup is there.
    let catalogue = repository.catalogue(&subject.prefix()).await?;
    let plan = plan(job, repository, &catalogue, false).await;
    match recover::prune(
        repository,
        &agent.backups.journal,
        &catalogue,
        &plan,
        &OUTSIDE.word(),
    )
    .await
    {
        Ok(0) => {}
        Ok(count) => tracing::info!("{count} old backups of {subject} are removed: {:?}", plan.remove),
        Err(error) => tracing::warn!("old backups of {subject} are not removed: {}", chain(&error)),
    }
    Ok(manifest)
}

/// Decides about one subject's backups.
pub async fn plan(job: &Job, repository: &Repository, catalogue: &Catalogue, confirmed: bool) -> Plan {
    let settings = &job.spec.settings;
    let now = Timestamp::now();
    let rhythm = Rhythm::parse(settings.schedule.fields(), settings.timezone.as_deref()).ok();
    let candidates: Vec<Candidate> = catalogue
        .backups
        .iter()
        .map(|found| Candidate {
            id: found.manifest.id.clone(),
            at: found.manifest.snapshot_at,
            verified: found.drill.is_some(),
            suspicious: !found.manifest.suspicious.is_empty(),
            held: found.held,
        })
        .collect();
    let keep = Keep {
        last: settings.keep.last,
        hourly: settings.keep.hourly,
        daily: settings.keep.daily,
        weekly: settings.keep.weekly,
        monthly: settings.keep.monthly,
    };
    let circumstances = Circumstances {
        now,
        zone: settings
            .timezone
            .as_deref()
            .and_then(|name| jiff::tz::TimeZone::get(name).ok())
            .unwrap_or_else(jiff::tz::TimeZone::system),
        interval: rhythm.and_then(|rhythm| rhythm.interval(now)),
        skew: repository.store.clock_skew().await.ok().flatten(),
        confirmed,
    };
    retention::plan(&candidates, keep, &circumstances)
}

/// Removes what the retention of each subject does not keep.
///
/// # Errors
/// When the place cannot be reached, or nothing is removed because something looks wrong.
pub async fn prune(agent: &Agent, job: &Job, confirmed: bool) -> anyhow::Result<String> {
    let repository = agent.repository(job).await?;
    let mut removed = 0;
    let mut frozen = Vec::new();
    for (subject, catalogue) in job.subjects(&repository).await? {
        let plan = plan(job, &repository, &catalogue, confirmed).await;
        if let Some(why) = &plan.frozen {
            frozen.push(format!("{subject}: {why}"));
        }
        removed += recover::prune(
            &repository,
            &agent.backups.journal,
            &catalogue,
            &plan,
            &OUTSIDE.word(),
        )
        .await
        .with_context(|| format!("cannot prune {subject}"))?;
    }
    if !frozen.is_empty() {
        bail!("{removed} removed; nothing of {}", frozen.join("; "));
    }
    Ok(format!("{removed} backups removed"))
}
