//! One run of a job: each database apart, then the retention, then the ping, then a drill if one is due.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use appliance_backup::backup::{BackupError, Order, Source, backup};
use appliance_backup::journal::Intent;
use appliance_backup::manifest::Manifest;
use appliance_backup::names::{Kind, Subject};
use appliance_backup::repository::{Catalogue, Repository};
use appliance_backup::retention::{self, Candidate, Circumstances, Keep, Plan};
use appliance_backup::{recover, restore};
use appliance_config::extension::BackupKind;
use appliance_containers::engine::ContainerInfo;
use appliance_state::audit::Outcome;
use jiff::Timestamp;

use super::jobs::Job;
use super::own::Own;
use super::{OUTSIDE, Record, ping, redis, sqlite, standing, volume};
use crate::agent::drive::Audience;
use crate::agent::schedule::Rhythm;
use crate::agent::{Agent, chain};
use crate::wire::Event;

/// Of this program, which restores as it backs up.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What came of a whole run.
#[derive(Default)]
struct Made {
    /// For people.
    said: String,
    /// What is not as it was.
    odd: Vec<String>,
    /// What was backed up.
    units: BTreeSet<String>,
    /// The repository that it went to.
    repository: String,
}

/// Runs a job because it is due, and leaves a record of that in the audit log.
pub async fn on_schedule(agent: &Agent, job: &Job, due: Timestamp) {
    let record = |outcome, result: &str| {
        let detail = serde_json::json!({
            "by": "schedule", "accessory": job.spec.accessory, "due": due, "result": result,
        });
        let now = Timestamp::now();
        if let Err(error) = agent.gate.record("backup-now", &job.app, outcome, detail, now) {
            // A disk that is full must not keep data from leaving it.
            tracing::error!(
                "the run of {} is in no audit record: {}",
                job.key(),
                chain(&error)
            );
        }
    };
    record(Outcome::Begun, "");
    match run(agent, job, None).await {
        Ok(said) => record(Outcome::Done, &said),
        Err(error) => record(Outcome::Failed, &format!("{error:#}")),
    }
}

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
    let before = agent.backups.known(&key);
    let limit = standing::limit(&before).unsigned_abs();
    let made = match tokio::time::timeout(limit, all(agent, job, audience)).await {
        Ok(made) => made,
        Err(_) => Err(anyhow::anyhow!(
            "it took longer than {} hours and was given up; what it had stored is removed at the next run, which may take \
             longer",
            limit.as_secs() / 3600
        )),
    };
    let now = Timestamp::now();
    match made {
        Ok(mut made) => {
            let place = (job.spec.settings.to.0.clone(), made.repository.clone());
            made.odd.extend(missing(&before, &made.units, &place));
            let odd = (!made.odd.is_empty()).then(|| made.odd.join("; "));
            let millis = u64::try_from(now.duration_since(begun).as_millis()).unwrap_or(0);
            let elsewhere = before.place.as_ref().is_some_and(|known| *known != place);
            agent.backups.note(&key, |record| {
                record.good = Some((now, millis));
                record.failed = None;
                record.probe_failed = None;
                record.failures = 0;
                record.odd = odd.clone().map(|what| (now, what));
                if odd.is_none() {
                    (record.place, record.units) = (Some(place), made.units.clone());
                }
                // At another place nothing has been restored yet.
                if elsewhere {
                    record.drilled = None;
                }
            });
            match odd {
                // Whoever watches from outside hears nothing, which is an alarm.
                Some(what) => tracing::error!("the backup of {key} is not like those before: {what}"),
                None => tell_watcher(agent, job).await,
            }
            sweep_if_due(agent, job).await;
            drill_if_due(agent, job, audience).await;
            Ok(made.said)
        }
        Err(error) => {
            tracing::error!("the backup of {key} failed: {error:#}");
            agent.backups.note(&key, |record| {
                record.failed = Some((now, format!("{error:#}")));
                record.failures = record.failures.saturating_add(1);
            });
            Err(error)
        }
    }
}

/// What was there at the last good run and is not any more.
fn missing(before: &Record, units: &BTreeSet<String>, place: &(String, String)) -> Vec<String> {
    let mut gone: Vec<String> = before
        .units
        .difference(units)
        .map(|unit| format!("{unit} was backed up before and is gone"))
        .collect();
    if let Some((to, repository)) = &before.place
        && *to == place.0
        && *repository != place.1
    {
        gone.push(format!("what was in {to} is gone: there is a new repository"));
    }
    gone
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
    let record = agent.backups.known(&job.key());
    if record.swept.is_some_and(|at| {
        standing::believed(at, now) && now.duration_since(at) < jiff::SignedDuration::from_hours(24)
    }) {
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

/// See [`standing::drill_due`].
async fn drill_if_due(agent: &Agent, job: &Job, audience: Option<&Audience>) {
    let Some(interval) = job.spec.drill_interval() else {
        return;
    };
    let record = agent.backups.known(&job.key());
    let image = agent.running(job).await.ok().map(|info| info.image_id);
    let now = Timestamp::now();
    let same = record.drill_image == image && record.drill_version.as_deref() == Some(VERSION);
    if !standing::drill_due(&record, interval, same, now) {
        return;
    }
    // The outcome is noted and shown by `status`.
    let _noted = super::drill::drill(agent, job, None, audience).await;
}

/// One unit of a job and where its content comes from.
enum Content {
    Postgres(appliance_backup::postgres::Postgres),
    Known(appliance_backup::stream::Feed),
}

async fn all(agent: &Agent, job: &Job, audience: Option<&Audience>) -> anyhow::Result<Made> {
    let kind = job.spec.kind()?;
    let repository = agent.repository(job).await?;
    let info = agent.running(job).await?;
    let run = Run {
        agent,
        job,
        repository: &repository,
        info: &info,
        audience,
    };
    let mut outcomes = Vec::new();
    let what = match kind {
        BackupKind::Postgres => {
            let server = agent.postgres(&info);
            for name in restore::forget_replaced(&server, Timestamp::now()).await? {
                tracing::info!("{name}, which a restore replaced, was kept for a day and is dropped");
            }
            for name in server.databases().await? {
                outcomes.push((name.clone(), run.unit(Kind::Postgres, &name, None).await));
            }
            "databases"
        }
        BackupKind::Redis => {
            let made = run.unit(Kind::Redis, redis::UNIT, None).await;
            outcomes.push((redis::UNIT.to_owned(), made));
            "data sets"
        }
        BackupKind::Sqlite => {
            sqlite::forget(agent, &info).await?;
            for file in sqlite::files(agent, &info).await? {
                outcomes.push((file.clone(), run.unit(Kind::Sqlite, &file, None).await));
            }
            "files"
        }
        BackupKind::Volume => {
            let (helper, directories) = volume::begin(agent, &info).await?;
            for directory in directories {
                let content = Content::Known(volume::feed(&helper, &directory));
                let subject = job.subject(Kind::Volume, &directory);
                outcomes.push((directory, run.one(subject, content, None).await));
            }
            helper.remove().await;
            "directories"
        }
        BackupKind::Mysql => bail!("MySQL and MariaDB are not backed up by this version"),
    };
    if outcomes.is_empty() {
        bail!("there are no {what} to back up");
    }
    let mut made = together(what, outcomes)?;
    made.repository = repository.id.clone();
    Ok(made)
}

/// What came of several units, of which one that fails does not keep the others from theirs.
fn together(what: &str, outcomes: Vec<(String, anyhow::Result<One>)>) -> anyhow::Result<Made> {
    let all = outcomes.len();
    let (mut made, mut said, mut failed) = (Made::default(), Vec::new(), Vec::new());
    for (name, outcome) in outcomes {
        match outcome {
            Ok(one) => {
                said.push(told(&one.manifest));
                let odd = one.odd.iter().map(|why| format!("{name}: {why}"));
                made.odd.extend(odd);
                made.units.insert(name);
            }
            Err(error) => failed.push(format!("{name}: {error:#}")),
        }
    }
    if failed.is_empty() {
        made.said = said.join("; ");
        return Ok(made);
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

/// One unit's backup.
struct One {
    manifest: Manifest,
    /// What is not as it was.
    odd: Vec<String>,
}

/// Backs up what a restore is about to replace.
///
/// # Errors
/// When that fails; the restore then has not begun.
pub(super) async fn before_restore(
    agent: &Agent,
    job: &Job,
    repository: &Repository,
    info: &ContainerInfo,
    subject: &Subject,
    audience: &Audience,
) -> anyhow::Result<()> {
    let run = Run {
        agent,
        job,
        repository,
        info,
        audience: Some(audience),
    };
    // Nothing is there to lose.
    if subject.kind == Kind::Postgres && !agent.postgres(info).databases().await?.contains(&subject.unit) {
        return Ok(());
    }
    let why = "it holds what a restore replaced".to_owned();
    run.unit(subject.kind, &subject.unit, Some(why)).await.map(|_| ())
}

/// What the backups of one run have in common.
struct Run<'a> {
    agent: &'a Agent,
    job: &'a Job,
    repository: &'a Repository,
    info: &'a ContainerInfo,
    audience: Option<&'a Audience>,
}

impl Run<'_> {
    /// Backs up a database, a data set, a file; `odd` is a reason not to take it for the latest.
    async fn unit(&self, kind: Kind, unit: &str, odd: Option<String>) -> anyhow::Result<One> {
        let (agent, info) = (self.agent, self.info);
        let subject = self.job.subject(kind, unit);
        match kind {
            Kind::Postgres => {
                let content = || Content::Postgres(agent.postgres(info));
                let made = self.one(subject.clone(), content(), odd.clone()).await;
                let changed =
                    |error: &anyhow::Error| matches!(error.downcast_ref(), Some(BackupError::Changed { .. }));
                match made {
                    // A migration in the middle of it: the next one begins after that.
                    Err(error) if changed(&error) => self.one(subject, content(), odd).await,
                    made => made,
                }
            }
            Kind::Redis => {
                let content = Content::Known(redis::snapshot(agent, info).await?);
                self.one(subject, content, odd).await
            }
            Kind::Sqlite => {
                let made = async {
                    let content = Content::Known(sqlite::copy(agent, info, unit).await?);
                    self.one(subject, content, odd).await
                };
                let made = made.await;
                sqlite::done(agent, info, unit).await;
                made
            }
            Kind::Volume => bail!("directories are backed up together"),
        }
    }

    async fn one(&self, subject: Subject, content: Content, odd: Option<String>) -> anyhow::Result<One> {
        let (agent, job, repository) = (self.agent, self.job, self.repository);
        let record = agent.backups.known(&job.key());
        let accepted = record.accepted;
        let before = repository.catalogue(&subject.prefix()).await?;
        let lost = record.own.lost(repository, &subject, &before);
        let like = before
            .backups
            .iter()
            .rev()
            .find(|found| standing::trusted(&found.manifest, accepted));
        let order = Order {
            subject: subject.clone(),
            image: Some(self.info.image_id.clone()),
            bandwidth: job.spec.settings.bandwidth.as_ref().map(|bytes| bytes.0),
            previous: like.map(|found| found.manifest.clone()),
            odd,
        };
        let source = match content {
            Content::Postgres(ref server) => Source::Postgres(server),
            Content::Known(feed) => Source::Known(feed),
        };
        let manifest = backup(repository, &agent.backups.journal, &order, source, OUTSIDE).await?;
        if let Some(audience) = self.audience {
            let detail = told(&manifest);
            let phase = "backed up".to_owned();
            audience.tell(Event::Phase { phase, detail }).await;
        }
        let mut odd = manifest.suspicious.clone();
        let mut catalogue = repository.catalogue(&subject.prefix()).await?;
        record.own.recall(repository, &mut catalogue);
        let spoiled = catalogue
            .unusable
            .iter()
            .filter(|bad| !bad.uncommitted && !bad.foreign && accepted.is_none_or(|at| bad.id.time() > at));
        odd.extend(spoiled.map(|bad| format!("the backup {} cannot be used any more: {}", bad.id, bad.why)));
        // Told until somebody says that it is as it should be.
        agent.backups.note(&job.key(), |record| {
            record.own.learn(repository, &subject, &catalogue);
        });
        odd.extend(lost);
        self.prune(&subject, &catalogue, accepted).await;
        Ok(One { manifest, odd })
    }

    /// Removes what is not kept. When that fails it is noted, but the backup is there.
    async fn prune(&self, subject: &Subject, catalogue: &Catalogue, accepted: Option<Timestamp>) {
        let (agent, job, repository) = (self.agent, self.job, self.repository);
        // One that could not be finished is tried again first, and another one would not do better.
        let waits = agent.backups.interrupted(job);
        if waits.iter().any(|intent| matches!(intent, Intent::Prune { .. })) {
            return;
        }
        // Nor is anything removed by somebody who cannot read what was accepted and what was there.
        if agent.backups.record(&job.key()).is_err() {
            return;
        }
        let plan = plan(job, repository, catalogue, accepted, false).await;
        forget(agent, job, subject, &plan);
        let word = OUTSIDE.word();
        let pruned = recover::prune(repository, &agent.backups.journal, catalogue, &plan, &word).await;
        let failed = match pruned {
            Ok(0) => None,
            Ok(count) => {
                tracing::info!("{count} old backups of {subject} are removed: {:?}", plan.remove);
                None
            }
            Err(error) => {
                tracing::warn!("old backups of {subject} are not removed: {}", chain(&error));
                Some((Timestamp::now(), chain(&error)))
            }
        };
        agent
            .backups
            .note(&job.key(), |record| record.prune_failed = failed);
    }
}

/// Decides about one subject's backups.
pub async fn plan(
    job: &Job,
    repository: &Repository,
    catalogue: &Catalogue,
    accepted: Option<Timestamp>,
    confirmed: bool,
) -> Plan {
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
            suspicious: !standing::trusted(&found.manifest, accepted),
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
        interval: rhythm
            .and_then(|rhythm| rhythm.longest_gap(catalogue.backups.last()?.manifest.snapshot_at)),
        skew: repository.store.clock_skew().await.ok().flatten(),
        confirmed,
    };
    retention::plan(&candidates, keep, &circumstances)
}

/// What goes as planned is missed by nobody; noted before it goes, so that a crash raises no alarm.
fn forget(agent: &Agent, job: &Job, subject: &Subject, plan: &Plan) {
    if plan.frozen.is_none() && !plan.remove.is_empty() {
        agent
            .backups
            .note(&job.key(), |record| record.own.forget(subject, &plan.remove));
    }
}

/// Removes what the retention of each subject does not keep.
///
/// # Errors
/// When the place cannot be reached, or nothing is removed because something looks wrong.
pub async fn prune(agent: &Agent, job: &Job, confirmed: bool) -> anyhow::Result<String> {
    let repository = agent.repository(job).await?;
    if confirmed {
        // Somebody looked: what is there now is how it should be.
        agent.backups.note(&job.key(), |record| {
            record.accepted = Some(Timestamp::now());
            record.odd = None;
            record.place = Some((job.spec.settings.to.0.clone(), repository.id.clone()));
            record.units = BTreeSet::new();
            record.own = Own::default();
        });
    }
    let accepted = agent.backups.record(&job.key())?.accepted;
    let mut removed = 0;
    let mut frozen = Vec::new();
    for (subject, catalogue) in job.subjects(&repository).await? {
        let plan = plan(job, &repository, &catalogue, accepted, confirmed).await;
        if let Some(why) = &plan.frozen {
            frozen.push(format!("{subject}: {why}"));
        }
        forget(agent, job, &subject, &plan);
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
    agent
        .backups
        .note(&job.key(), |record| record.prune_failed = None);
    Ok(format!("{removed} backups removed"))
}
