//! When a job runs, when it is late, and which of its backups are believed: pure, from what is remembered and the clock.

use appliance_backup::manifest::Manifest;
use appliance_backup::recover::STALE;
use jiff::{SignedDuration, Timestamp};

use super::Record;
use crate::agent::schedule::Rhythm;

/// A moment further ahead than this was written while the clock was wrong.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);
/// After a failure it is tried again so many minutes later, and so on: a host that boots, a store that is away.
const AGAIN: [i64; 4] = [5, 15, 60, 6 * 60];
/// The least that a run may be late, whatever its schedule.
const GRACE: SignedDuration = SignedDuration::from_hours(1);
/// How long a drill that failed or was put off is not tried again by itself.
const DRILL_REST: SignedDuration = SignedDuration::from_hours(24);
/// Longest time of a run that has none before it to compare with.
const LONGEST: SignedDuration = SignedDuration::from_hours(6);
/// How often that is doubled at most.
const DOUBLED: u32 = 3;
/// So many drills that there is no room for, one after the other, are told as one that failed.
const SKIPS: u32 = 3;

/// Whether a moment that was written down can be true.
pub(super) fn believed(at: Timestamp, now: Timestamp) -> bool {
    at <= now.saturating_add(AHEAD).unwrap_or(Timestamp::MAX)
}

/// A moment of the record that a wrong clock wrote.
pub(super) fn wrong_clock(record: &Record, now: Timestamp) -> Option<Timestamp> {
    let moments = [
        record.last_run,
        record.good.map(|(at, _)| at),
        record.drilled.map(|(at, _)| at),
        record.swept,
    ];
    moments.into_iter().flatten().find(|at| !believed(*at, now))
}

/// The time that a run is due for; `None` if it is not due yet.
pub(super) fn due(
    record: &Record,
    rhythm: &Rhythm,
    now: Timestamp,
    delay: SignedDuration,
) -> Option<Timestamp> {
    let known = [record.last_run, record.since];
    let Some(last) = known.into_iter().flatten().find(|at| believed(*at, now)) else {
        // All that is known of it is from the future.
        return known.into_iter().flatten().next().map(|_| now);
    };
    rhythm.due(last, now, delay).or_else(|| {
        let tries = usize::try_from(record.failures.checked_sub(1)?).unwrap_or(usize::MAX);
        let minutes = AGAIN.get(tries).or(AGAIN.last())?;
        let again = last.saturating_add(SignedDuration::from_mins(*minutes)).ok()?;
        (again <= now).then_some(again)
    })
}

/// Since when there was no good run, if another one should have come by now: silence is a failure.
pub(super) fn overdue(record: &Record, rhythm: &Rhythm, now: Timestamp) -> Option<Timestamp> {
    let good = record.good.filter(|(at, _)| believed(*at, now));
    let since = match good {
        Some((at, _)) => at,
        None => record.since.filter(|at| believed(*at, now))?,
    };
    let expected = rhythm.next(since)?;
    let gap = rhythm.next(expected)?.duration_since(expected);
    let took = good.map_or(0, |(_, millis)| i64::try_from(millis).unwrap_or(i64::MAX / 4));
    let grace = GRACE.max(gap / 24) + SignedDuration::from_millis(took) * 2;
    (now > expected.saturating_add(grace).ok()?).then_some(since)
}

/// How long a run may take: four times what the last good one did, six hours at least; with each failure since twice as
/// long, up to what no backup takes: the first one of very much data has nothing to be compared with.
pub(super) fn limit(record: &Record) -> SignedDuration {
    let last = record.good.map_or(0, |(_, millis)| millis);
    let last = SignedDuration::from_millis(i64::try_from(last).unwrap_or(i64::MAX / 8));
    let limit = LONGEST.max(last * 4);
    let doubled = STALE.min(limit * (1 << record.failures.min(DOUBLED)));
    limit.max(doubled)
}

/// Whether it is time for a drill: after the first backup, after the interval, after a change of the image, and a day
/// after one that failed or was put off, which would come to the same again.
pub(super) fn drill_due(record: &Record, interval: SignedDuration, same_image: bool, now: Timestamp) -> bool {
    let within = |at: Timestamp, rest: SignedDuration| believed(at, now) && now.duration_since(at) < rest;
    let failed = record.drill_failed.as_ref().map(|(at, _)| *at);
    let skipped = record.drill_skipped.as_ref().map(|(at, ..)| *at);
    let partial = record.drill_partial.as_ref().map(|(at, _)| *at);
    match failed.max(skipped).max(partial) {
        Some(at) => !within(at, DRILL_REST),
        None => !(same_image && record.drilled.is_some_and(|(at, _)| within(at, interval))),
    }
}

/// What somebody is woken for: a backup that does not restore, or that nothing was tried for weeks.
pub(super) fn drill_alarm(record: &Record) -> Option<(Timestamp, String)> {
    let skipped = record.drill_skipped.as_ref();
    let skipped = skipped.filter(|(_, _, times)| *times >= SKIPS);
    let untried = || skipped.map(|(at, why, times)| (*at, format!("{times} times in a row {why}")));
    record.drill_failed.clone().or_else(untried)
}

/// How long the restore of a drill may take: four times the last one, what its bytes take at 2 MB/s, half an hour at
/// least. Milliseconds.
pub(super) fn drill_limit(last: u64, plain_bytes: u64) -> u64 {
    last.saturating_mul(4)
        .max(plain_bytes / 2_000)
        .max(30 * 60 * 1000)
}

/// Whether a backup may be compared with, restored as the latest, and kept as the newest: it looks right, or somebody
/// said since that it is.
pub(super) fn trusted(manifest: &Manifest, accepted: Option<Timestamp>) -> bool {
    manifest.suspicious.is_empty() || accepted.is_some_and(|at| manifest.snapshot_at <= at)
}

/// Why the newest backups are not to be relied on.
#[derive(Debug, Clone, PartialEq)]
pub enum Doubt {
    /// They are.
    None,
    /// They are not like those before.
    Odd(String),
    /// There was no room to try them.
    Room(String),
    /// Some were not tried, since none of theirs looks right.
    LeftOut(String),
    /// They did not restore, when that was last tried.
    Drill(Timestamp, String),
}

impl Record {
    /// Whether somebody may rely on what was backed up last.
    pub fn doubt(&self) -> Doubt {
        if let Some((_, why)) = &self.odd {
            return Doubt::Odd(why.clone());
        }
        match (&self.drill_failed, &self.drill_skipped, &self.drill_partial) {
            (Some((failed, why)), ..) => Doubt::Drill(*failed, why.clone()),
            (None, Some((_, why, _)), _) => Doubt::Room(why.clone()),
            (None, None, Some((_, why))) => Doubt::LeftOut(why.clone()),
            (None, None, None) => Doubt::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn rhythm(fields: &str, zone: &str) -> Rhythm {
        Rhythm::parse(fields, Some(zone)).expect("a schedule")
    }

    fn good(when: &str) -> Record {
        Record {
            since: Some(at("2026-01-01T00:00:00Z")),
            last_run: Some(at(when)),
            good: Some((at(when), 60_000)),
            ..Record::default()
        }
    }

    #[test]
    fn silence_is_told_when_the_next_run_should_have_come_and_not_before() {
        let check = |fields: &str, zone: &str, last: &str, now: &str, expected: bool| {
            let found = overdue(&good(last), &rhythm(fields, zone), at(now)).is_some();
            assert_eq!(found, expected, "{fields} after {last} at {now}");
        };
        // Daily: within 26 hours.
        check(
            "15 3 * * *",
            "UTC",
            "2026-11-17T03:16:00Z",
            "2026-11-18T04:15:00Z",
            false,
        );
        check(
            "15 3 * * *",
            "UTC",
            "2026-11-17T03:16:00Z",
            "2026-11-18T05:16:00Z",
            true,
        );
        // Only by day: the night is no silence.
        check(
            "0 8-18 * * *",
            "UTC",
            "2026-11-17T18:01:00Z",
            "2026-11-18T07:59:00Z",
            false,
        );
        check(
            "0 8-18 * * *",
            "UTC",
            "2026-11-17T18:01:00Z",
            "2026-11-18T09:05:00Z",
            true,
        );
        // On weekdays: the weekend is none, and a Thursday's silence is noticed on Friday.
        check(
            "15 3 * * 1-5",
            "UTC",
            "2026-11-20T03:16:00Z",
            "2026-11-22T20:00:00Z",
            false,
        );
        check(
            "15 3 * * 1-5",
            "UTC",
            "2026-11-19T03:16:00Z",
            "2026-11-20T08:00:00Z",
            true,
        );
        // The days of 23 and 25 hours.
        let zone = "Europe/Berlin";
        check(
            "30 2 * * *",
            zone,
            "2026-03-28T01:31:00Z",
            "2026-03-29T01:30:00Z",
            false,
        );
        check(
            "30 2 * * *",
            zone,
            "2026-10-24T00:31:00Z",
            "2026-10-25T01:10:00Z",
            false,
        );
        check(
            "30 2 * * *",
            zone,
            "2026-10-24T00:31:00Z",
            "2026-10-25T05:00:00Z",
            true,
        );
    }

    #[test]
    fn a_clock_that_was_ahead_stops_neither_the_schedule_nor_the_alarm() {
        let daily = rhythm("15 3 * * *", "UTC");
        let mut record = good("2036-01-01T00:00:00Z");
        let now = at("2026-11-21T12:00:00Z");
        assert!(due(&record, &daily, now, SignedDuration::ZERO).is_some());
        assert!(overdue(&record, &daily, now).is_some());
        assert_eq!(wrong_clock(&record, now), Some(at("2036-01-01T00:00:00Z")));
        record.since = record.last_run;
        assert_eq!(due(&record, &daily, now, SignedDuration::ZERO), Some(now));
        assert_eq!(wrong_clock(&good("2026-11-21T12:04:00Z"), now), None);
    }

    #[test]
    fn what_failed_is_tried_again_later_and_later_and_never_after_its_next_date() {
        let weekly = rhythm("0 3 * * 0", "UTC");
        let mut record = good("2026-11-15T03:00:20Z");
        let due = |record: &Record, now: &str| due(record, &weekly, at(now), SignedDuration::ZERO).is_some();
        assert!(!due(&record, "2026-11-15T12:00:00Z"));
        for (failures, early, late) in [
            (1, "2026-11-15T03:05:00Z", "2026-11-15T03:05:30Z"),
            (2, "2026-11-15T03:15:00Z", "2026-11-15T03:15:30Z"),
            (3, "2026-11-15T04:00:00Z", "2026-11-15T04:00:30Z"),
            (4, "2026-11-15T09:00:00Z", "2026-11-15T09:00:30Z"),
            (40, "2026-11-15T09:00:00Z", "2026-11-15T09:00:30Z"),
        ] {
            record.failures = failures;
            assert!(!due(&record, early), "{failures}");
            assert!(due(&record, late), "{failures}");
        }
        record.last_run = Some(at("2026-11-22T02:59:00Z"));
        assert!(due(&record, "2026-11-22T03:00:00Z"));
    }

    #[test]
    fn a_long_run_may_take_four_times_as_long_again() {
        let mut record = Record::default();
        assert_eq!(limit(&record), LONGEST);
        record.good = Some((at("2026-11-22T02:59:00Z"), 3 * 3_600_000));
        assert_eq!(limit(&record), SignedDuration::from_hours(12));
    }

    #[test]
    fn a_first_backup_that_takes_a_day_is_done_within_a_few_tries() {
        let after = |failures, last_hours: u64| {
            let record = Record {
                failures,
                good: (last_hours > 0).then_some((Timestamp::UNIX_EPOCH, last_hours * 3_600_000)),
                ..Record::default()
            };
            limit(&record).as_hours()
        };
        assert_eq!(
            [0, 1, 2, 3, 4, u32::MAX].map(|failures| after(failures, 0)),
            [6, 12, 24, 48, 48, 48]
        );
        assert_eq!([0, 1, 2, 9].map(|failures| after(failures, 5)), [20, 40, 48, 48]);
        assert_eq!(after(5, 20), 80, "never less than without a failure");
    }

    #[test]
    fn a_drill_that_failed_is_not_repeated_after_every_backup() {
        let now: Timestamp = "2026-03-01T12:00:00Z".parse().expect("time");
        let ago = |hours| now - SignedDuration::from_hours(hours);
        let week = SignedDuration::from_hours(7 * 24);
        let mut record = Record::default();
        assert!(drill_due(&record, week, false, now), "the first");
        record.drilled = Some((ago(30), 5));
        assert!(!drill_due(&record, week, true, now));
        assert!(drill_due(&record, week, false, now), "another image");
        assert!(drill_due(&record, SignedDuration::from_hours(24), true, now));
        record.drill_failed = Some((ago(1), "too long".to_owned()));
        assert!(!drill_due(&record, week, false, now), "it failed an hour ago");
        record.drill_failed = Some((ago(25), "too long".to_owned()));
        assert!(
            drill_due(&record, week, true, now),
            "and is tried again after a day"
        );
        record.drill_failed = None;
        record.drill_skipped = Some((ago(1), "no room".to_owned(), 1));
        assert!(
            !drill_due(&record, week, false, now),
            "there was no room an hour ago"
        );
    }

    #[test]
    fn a_drill_has_time_for_its_bytes() {
        assert_eq!(drill_limit(0, 1_000), 30 * 60 * 1000);
        assert_eq!(drill_limit(60 * 60 * 1000, 1_000), 4 * 60 * 60 * 1000);
        assert_eq!(
            drill_limit(0, 100_000_000_000),
            50_000_000,
            "100 GB: about 14 hours"
        );
    }

    #[test]
    fn what_there_was_no_room_for_is_no_backup_that_does_not_restore() {
        let (early, late) = (Timestamp::UNIX_EPOCH, Timestamp::MAX);
        let why = || "because".to_owned();
        let mut record = Record::default();
        assert_eq!(record.doubt(), Doubt::None);
        record.drill_skipped = Some((early, why(), 3));
        assert_eq!(record.doubt(), Doubt::Room(why()));
        // Whatever is noted beside it, and when.
        for (failed, skipped) in [(early, early), (late, early), (early, late)] {
            record.drill_failed = Some((failed, why()));
            record.drill_skipped = Some((skipped, why(), 3));
            assert_eq!(record.doubt(), Doubt::Drill(failed, why()));
        }
        record.odd = Some((late, why()));
        assert_eq!(record.doubt(), Doubt::Odd(why()));
    }
}
