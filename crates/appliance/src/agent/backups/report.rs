//! What the agent tells of its backups.

use std::collections::BTreeMap;

use appliance_alerts::rules::Backup;
use jiff::Timestamp;

use super::jobs::Job;
use super::{Record, Unread, probe, run, standing};
use crate::agent::Agent;
use crate::agent::schedule::Rhythm;
use crate::wire::{BackupJob, BackupRow};

/// What is remembered, or since when and why nobody knows of it.
fn told(record: Result<Record, Unread>) -> (Record, Option<(Timestamp, String)>) {
    match record {
        Ok(record) => (record, None),
        Err(unread) => (Record::default(), Some((unread.since, unread.said()))),
    }
}

/// What the rules of alerts judge of one job.
fn alert(job: &Job, record: Result<Record, Unread>, now: Timestamp) -> Backup {
    let settings = &job.spec.settings;
    let (record, unread) = told(record);
    let rhythm = Rhythm::parse(settings.schedule.fields(), settings.timezone.as_deref());
    Backup {
        name: job.key(),
        accessory: job.spec.accessory.clone(),
        overdue: rhythm
            .ok()
            .and_then(|rhythm| standing::overdue(&record, &rhythm, now)),
        drill_failed: standing::drill_alarm(&record),
        failed: unread.or(record.failed),
        odd: record.odd,
    }
}

/// How long somebody who wants a list waits for a place.
const LONGEST: std::time::Duration = std::time::Duration::from_secs(60);

impl Agent {
    /// How every job of an app fares, without asking the places of the backups.
    pub fn backup_ages(&self, app: &str) -> Vec<BackupJob> {
        match self.backup_jobs_of(app) {
            Ok(jobs) => jobs.iter().map(|job| self.backup_age(job)).collect(),
            // No backups and none that can be told are two things.
            Err(error) => vec![BackupJob {
                accessory: "?".to_owned(),
                problems: vec![format!(
                    "the backups of {app} cannot be told: {error:#}; next: appliance push"
                )],
                ..BackupJob::default()
            }],
        }
    }

    /// What the rules of alerts judge.
    pub fn backup_alert(&self, job: &Job, now: Timestamp) -> Backup {
        alert(job, self.backups.record(&job.key()), now)
    }

    fn backup_age(&self, job: &Job) -> BackupJob {
        let settings = &job.spec.settings;
        let now = Timestamp::now();
        let (record, unread) = told(self.backups.record(&job.key()));
        let rhythm = Rhythm::parse(settings.schedule.fields(), settings.timezone.as_deref());
        let last = record.last_run.or(record.since).unwrap_or(now);
        let next = rhythm.as_ref().ok().and_then(|rhythm| rhythm.next(last));
        let mut problems = self.backup_problems(job, &record, rhythm.as_ref(), now);
        problems.extend(unread.map(|(at, why)| format!("backup of {} failed at {at}: {why}", job.key())));
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
            running: self.backups.runs(&job.key()),
            problems,
            backups: Vec::new(),
            frozen: Vec::new(),
            settings: settings.clone(),
        }
    }

    fn backup_problems(
        &self,
        job: &Job,
        record: &Record,
        rhythm: Result<&Rhythm, &anyhow::Error>,
        now: Timestamp,
    ) -> Vec<String> {
        let settings = &job.spec.settings;
        let accessory = &job.spec.accessory;
        let of = format!("backup of {}", job.key());
        let mut problems = Vec::new();
        let mut say = |what: String| problems.push(what);
        match rhythm {
            Err(error) => say(format!("{of}: {error:#}")),
            Ok(rhythm) => {
                if record.failed.is_none()
                    && let Some(since) = standing::overdue(record, rhythm, now)
                {
                    say(format!(
                        "{of}: the last good one is of {since}, and the next was due since; next: appliance backup now {accessory}"
                    ));
                }
            }
        }
        if let Some((at, why)) = &record.failed {
            say(format!(
                "{of} failed at {at}: {why}; next: appliance backup now {accessory}"
            ));
        }
        if let (None, Some((_, why))) = (&record.failed, &record.probe_failed) {
            say(probe::said(job, why));
        }
        if let Some((at, what)) = &record.odd {
            say(format!(
                "{of}: that of {at} is not like those before: {what}; next: appliance backup list # and if \
                 that is as it should be: appliance backup prune {accessory} --yes"
            ));
        }
        if let Some((at, why)) = &record.drill_failed {
            say(format!(
                "drill of {} failed at {at}: {why}; next: appliance backup now {accessory}; appliance backup drill {accessory}",
                job.key()
            ));
        }
        if let (None, Some((at, why, times))) = (&record.drill_failed, &record.drill_skipped) {
            let often = match times {
                0 | 1 => String::new(),
                _ => format!(", {times} times in a row"),
            };
            say(format!(
                "drill of {} was left out at {at}{often}: {why}; it is tried again after a day; next: appliance backup drill {accessory}",
                job.key()
            ));
        }
        if let Some((at, why)) = &record.drill_partial {
            say(format!(
                "drill of {} at {at} was not of all: {why}; next: appliance backup list, and if that is as it should be: \
                 appliance backup prune {accessory} --yes",
                job.key()
            ));
        }
        if let Some((at, why)) = &record.prune_failed {
            say(format!(
                "{of}: what is not kept any more could not be removed at {at}: {why}; next: appliance backup prune {accessory}"
            ));
        }
        let told = [
            (&record.ping_failed, &settings.ping, "the run"),
            (&record.drill_ping_failed, &settings.drill_ping, "the drill"),
        ];
        for ((failed, address, what), again) in told.into_iter().zip(["now", "drill"]) {
            if let Some((at, why)) = failed {
                // Whoever knows the whole address can say that a backup went well.
                let watcher = crate::agent::alerts::host_of(address.as_deref().unwrap_or_default());
                say(format!(
                    "{of}: {watcher} was not told of {what} at {at}: {why}; next: appliance backup {again} {accessory}"
                ));
            }
        }
        if let (Some((at, _)), Some(interval)) = (record.drilled, job.spec.drill_interval())
            && now.duration_since(at) > interval + jiff::SignedDuration::from_hours(24)
        {
            say(format!(
                "{of}: the last drill is of {at}; next: appliance backup drill {accessory}"
            ));
        }
        if let Some(at) = standing::wrong_clock(record, now) {
            say(format!(
                "{of}: a run was noted at {at}, which is in the future: the clock was wrong; next: appliance backup now {accessory}"
            ));
        }
        if self.backups.left_open(job) {
            say(format!(
                "{of}: a restore was interrupted and is settled once its server answers; until then a database may let nobody in; next: appliance accessory start {accessory}"
            ));
        }
        if settings.recovery.is_none() {
            say(format!(
                "{of}: no recovery key, so nobody can open it when this host is lost; next: appliance backup keygen"
            ));
        }
        problems
    }

    /// Every job of an app with all its backups, as their places list them: with `from` those of that former name, with
    /// `trust` also those of the host with that key.
    pub async fn backup_lists(
        &self,
        app: &str,
        wanted: &BTreeMap<String, String>,
    ) -> anyhow::Result<Vec<BackupJob>> {
        let mut lists = Vec::new();
        for mut job in self.backup_jobs_of(app)? {
            let mut list = self.backup_age(&job);
            if let Some(name) = wanted.get("from") {
                job = job.formerly(name);
            }
            job.spec.settings.trust.extend(wanted.get("trust").cloned());
            let told = tokio::time::timeout(LONGEST, self.backup_rows(&job, &mut list)).await;
            match told {
                Ok(Ok(())) => {}
                Ok(Err(error)) => list.problems.push(format!("{}: {error:#}", job.key())),
                Err(_) => list.problems.push(format!(
                    "{}: {} does not answer within {} s",
                    job.key(),
                    list.to,
                    LONGEST.as_secs()
                )),
            }
            lists.push(list);
        }
        Ok(lists)
    }

    async fn backup_rows(&self, job: &Job, list: &mut BackupJob) -> anyhow::Result<()> {
        let repository = self.repository_within(job, probe::SHORT).await?;
        let accepted = self.backups.known(&job.key()).accepted;
        for (subject, catalogue) in job.subjects(&repository).await? {
            let plan = run::plan(job, &repository, &catalogue, accepted, false).await;
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
                    suspicious: match standing::trusted(manifest, accepted) {
                        true => Vec::new(),
                        false => manifest.suspicious.clone(),
                    },
                    unusable: None,
                    signed_by: found.signer.to_string(),
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

#[cfg(test)]
mod tests {
    use appliance_state::Store;

    use super::*;
    use crate::agent::backups::{Backups, Spec};

    #[test]
    fn a_ledger_that_cannot_be_read_is_an_alert_with_its_cure() {
        let place = tempfile::tempdir().expect("a directory");
        let store = Store::open(place.path()).expect("opens");
        let backups = Backups::open(&store, place.path()).expect("opens");
        let job = Job {
            app: "shop".to_owned(),
            spec: Spec {
                accessory: "db".to_owned(),
                container: "shop-db".to_owned(),
                image: "postgres:17".to_owned(),
                settings: appliance_config::extension::Backup::default(),
            },
            credentials: None,
        };
        let now = Timestamp::now();
        assert_eq!(alert(&job, backups.record("shop/db"), now).failed, None);
        fs_err::write(place.path().join("backups.json"), "{").expect("written");
        let told = alert(&job, backups.record("shop/db"), now);
        let (at, why) = told.failed.clone().expect("told");
        assert!(
            why.contains("cannot be read") && why.contains("backups.json") && why.contains("mv "),
            "{why}"
        );
        let later = alert(&job, backups.record("shop/db"), now).failed.expect("still");
        assert_eq!(later.0, at, "the same alert");
    }
}
