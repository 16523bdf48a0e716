//! When jobs are due: cron expressions in a zone, and what was missed while the host was down.
//!
//! One pass a minute, driven by `tokio-cron-scheduler`, asks every job whether it is due since its last run. So a job that
//! was missed runs once when the host is back, and a change of schedule needs no bookkeeping.

use std::str::FromStr as _;
use std::sync::Arc;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use chrono_tz::Tz;
use croner::Cron;
use jiff::Timestamp;
use tokio_cron_scheduler::{Job, JobScheduler};
use tokio_util::sync::CancellationToken;

use super::Agent;

/// Every minute, at a second when little else happens.
const PASS: &str = "7 * * * * *";

/// Every ten seconds: a database that is closed is an app that is down.
const REOPEN: &str = "*/10 * * * * *";

/// A cron expression in its zone.
#[derive(Debug, Clone)]
pub struct Rhythm {
    cron: Cron,
    zone: Tz,
}

impl Rhythm {
    /// Five fields; `zone` is an IANA name, the host's own if absent.
    ///
    /// # Errors
    /// When either is not understood.
    pub fn parse(fields: &str, zone: Option<&str>) -> anyhow::Result<Self> {
        let cron = Cron::from_str(fields).with_context(|| format!("{fields:?} is not a schedule"))?;
        let name = match zone {
            Some(name) => name.to_owned(),
            None => jiff::tz::TimeZone::system()
                .iana_name()
                .unwrap_or("UTC")
                .to_owned(),
        };
        let zone = Tz::from_str(&name)
            .map_err(|error| anyhow::anyhow!("{name:?} is not a time zone of this program: {error}"))?;
        Ok(Self { cron, zone })
    }

    /// The first time after `after`.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let after: DateTime<Utc> = DateTime::from_timestamp(after.as_second(), 0)?;
        let next = self
            .cron
            .find_next_occurrence(&after.with_timezone(&self.zone), false)
            .ok()?;
        Timestamp::from_second(next.timestamp()).ok()
    }

    /// The time that a run is due for, when the last one was at `last`; `None` if it is not due yet.
    ///
    /// `delay` is the job's own share of jitter, so that not every job of the world begins at the full minute.
    pub fn due(&self, last: Timestamp, now: Timestamp, delay: jiff::SignedDuration) -> Option<Timestamp> {
        let next = self.next(last)?;
        (next.saturating_add(delay).ok()? <= now).then_some(next)
    }

    /// The longer one of the two gaps that follow `after`: until the next run, and from there to the one after it.
    pub fn longest_gap(&self, after: Timestamp) -> Option<jiff::SignedDuration> {
        let first = self.next(after)?;
        let second = self.next(first)?.duration_since(first);
        Some(second.max(first.duration_since(after)))
    }
}

/// Looks every minute for what is due, until stopped.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    if let Err(error) = tick(&agent, &stop).await {
        tracing::error!("schedules do not run: {error:#}; next: systemctl restart appliance-agent");
    }
}

async fn tick(agent: &Arc<Agent>, stop: &CancellationToken) -> anyhow::Result<()> {
    super::backups::settle(agent).await;
    let mut scheduler = JobScheduler::new().await?;
    let each = Arc::clone(agent);
    let pass = Job::new_async(PASS, move |_, _| {
        let agent = Arc::clone(&each);
        Box::pin(async move { super::backups::pass(&agent).await })
    })?;
    scheduler.add(pass).await?;
    let each = Arc::clone(agent);
    let reopen = Job::new_async(REOPEN, move |_, _| {
        let agent = Arc::clone(&each);
        Box::pin(async move { super::backups::reopen(&agent).await })
    })?;
    scheduler.add(reopen).await?;
    scheduler.start().await?;
    stop.cancelled().await;
    scheduler.shutdown().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_zone_moves_with_its_summer_time_and_no_run_is_doubled_or_lost() {
        let berlin = Rhythm::parse("30 2 * * *", Some("Europe/Berlin")).expect("parses");
        // 02:30 does not exist on 2026-03-29 and exists twice on 2026-10-25.
        let mut now = at("2026-03-27T12:00:00Z");
        let mut days = 0;
        while now < at("2026-11-01T00:00:00Z") {
            let next = berlin.next(now).expect("there is a next");
            let gap = next.duration_since(now);
            assert!(days == 0 || (20..=28).contains(&gap.as_hours()), "{now} {next}");
            now = next;
            days += 1;
        }
        assert_eq!(days, 219);
    }

    #[test]
    fn what_was_missed_is_due_once() {
        let daily = Rhythm::parse("15 3 * * *", Some("UTC")).expect("parses");
        let none = SignedDuration::ZERO;
        let last = at("2026-11-17T03:15:20Z");
        assert_eq!(daily.due(last, at("2026-11-18T03:14:59Z"), none), None);
        // Down for three days: due for the first one, and after that run not before the next.
        let now = at("2026-11-20T09:00:00Z");
        assert_eq!(daily.due(last, now, none), Some(at("2026-11-18T03:15:00Z")));
        assert_eq!(daily.due(now, now, none), None);
        assert_eq!(
            daily.due(now, at("2026-11-21T03:16:00Z"), SignedDuration::from_secs(120)),
            None
        );
        assert_eq!(daily.longest_gap(now), Some(SignedDuration::from_hours(24)));
        assert!(Rhythm::parse("15 3 * * *", Some("Mars/Olympus")).is_err());
    }
}
