//! What the agent tells of its backups.

use jiff::Timestamp;

use super::jobs::Job;
use super::run;
use crate::agent::Agent;
use crate::agent::schedule::Rhythm;
use crate::wire::{BackupJob, BackupRow};

impl Agent {
    /// How every job of an app fares, without asking the places of the backups.
    pub fn backup_ages(&self, app: &str) -> Vec<BackupJob> {
        let jobs = self.backup_jobs_of(app).unwrap_or_default();
        jobs.iter().map(|job| self.backup_age(job)).collect()
    }

    fn backup_age(&self, job: &Job) -> BackupJob {
        let settings = &job.spec.settings;
        let record = self.backups.record(&job.key());
        let now = Timestamp::now();
        let rhythm = Rhythm::parse(settings.schedule.fields(), settings.timezone.as_deref());
        let last = record.last_run.or(record.since).unwrap_or(now);
        let next = rhythm.as_ref().ok().and_then(|rhythm| rhythm.next(last));
        let interval = rhythm.as_ref().ok().and_then(|rhythm| rhythm.interval(now));
        let mut problems = Vec::new();
        let of = format!("backup of {}", job.key());
        if let Err(error) = &rhythm {
            problems.push(format!("{of}: {error:#}"));
        }
        if let Some((at, why)) = &record.failed {
            problems.push(format!(
                "{of} failed at {at}: {why}; next: appliance backup now {}",
                job.spec.accessory
            ));
        }
        if let Some((at, why)) = &record.drill_failed {
            problems.push(format!(
                "drill of {} failed at {at}: {why}; next: appliance backup now {1}; appliance backup drill {1}",
                job.key(),
                job.spec.accessory
            ));
        }
        if let Some((at, why)) = &record.ping_failed {
            problems.push(format!(
                "{of}: {} was not told at {at}: {why}",
                settings.ping.as_deref().unwrap_or_default()
            ));
        }
        if let Some((at, why)) = &record.drill_ping_failed {
            problems.push(format!(
                "{of}: {} was not told of the drill at {at}: {why}",
                settings.drill_ping.as_deref().unwrap_or_default()
            ));
        }
        // Silence is a failure, too.
        let since = record.good.map(|(at, _)| at).or(record.since);
        if let (Some(since), Some(interval)) = (since, interval)
            && record.failed.is_none()
            && now.duration_since(since) > interval.saturating_mul(2)
        {
            problems.push(format!(
                "{of}: the last good one is of {since}, more than two intervals ago; next: appliance backup now {}",
                job.spec.accessory
            ));
        }
        if let (Some((at, _)), Some(interval)) = (record.drilled, job.spec.drill_interval())
            && now.duration_since(at) > interval + jiff::SignedDuration::from_hours(24)
        {
            problems.push(format!(
                "{of}: the last drill is of {at}; next: appliance backup drill {}",
                job.spec.accessory
            ));
        }
        if settings.recovery.is_none() {
            problems.push(format!(
                "{of}: no recovery key, so nobody can open it when this host is lost; next: appliance backup keygen"
            ));
        }
        BackupJob {
            accessory: job.spec.accessory.clone(),
            to: settings.to.0.clone(),
            schedule: settings.schedule.0.clone(),
            next,
            last_good: record.good.map(|(at, _)| at),
            took_ms: record.good.map(|(_, millis)| millis),
            verified: record.drilled.map(|(at, _)| at),
            restore_ms: record.drilled.map(|(_, millis)| millis),
            missed: record.missed,
            running: self.backups.lock().contains(&job.key()),
            problems,
            backups: Vec::new(),
            frozen: Vec::new(),
            settings: settings.clone(),
        }
    }

    /// Every job of an app with all its backups, as their places list them.
    pub async fn backup_lists(&self, app: &str) -> anyhow::Result<Vec<BackupJob>> {
        let mut lists = Vec::new();
        for job in self.backup_jobs_of(app)? {
            let mut list = self.backup_age(&job);
            match self.backup_rows(&job, &mut list).await {
                Ok(()) => {}
                Err(error) => list.problems.push(format!("{}: {error:#}", job.key())),
            }
            lists.push(list);
        }
        Ok(lists)
    }

    async fn backup_rows(&self, job: &Job, list: &mut BackupJob) -> anyhow::Result<()> {
        let repository = self.repository(job).await?;
        for (subject, catalogue) in job.subjects(&repository).await? {
            let plan = run::plan(job, &repository, &catalogue, false).await;
            list.frozen
                .extend(plan.frozen.iter().map(|why| format!("{}: {why}", subject.unit)));
            for found in &catalogue.backups {
                let manifest = &found.manifest;
                let why = plan.keep.iter().find(|(id, _)| *id == manifest.id);
                list.backups.push(BackupRow {
                    database: subject.unit.clone(),
                    id: manifest.id.to_string(),
                    at: manifest.snapshot_at,
                    stored_bytes: manifest.stored_bytes(),
                    plain_bytes: manifest.plain_bytes,
                    rows: manifest.counts.as_ref().map(|counts| counts.rows()),
                    tables: manifest.counts.as_ref().map(|counts| counts.tables.len() as u64),
                    server: manifest.server.as_ref().map(|server| server.version_text.clone()),
                    verified: found.drill.as_ref().map(|drill| drill.at),
                    restore_ms: found.drill.as_ref().map(|drill| drill.restore_ms),
                    kept_because: why.map(|(_, reasons)| reasons.clone()).unwrap_or_default(),
                    suspicious: manifest.suspicious.clone(),
                    unusable: None,
                });
            }
            for bad in &catalogue.unusable {
                list.backups.push(BackupRow {
                    database: subject.unit.clone(),
                    id: bad.id.to_string(),
                    at: bad.id.time(),
                    unusable: Some(bad.why.clone()),
                    ..BackupRow::default()
                });
            }
        }
        Ok(())
    }
}
