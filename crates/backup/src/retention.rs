//! Which backups are kept. Pure: from what manifests say to a plan, which is shown before it is carried out.
//!
//! Kept are the newest backup of each hour, day, week and month up to the numbers asked for, the newest few, and always:
//! the newest verified one, the two newest, those that are held, and those younger than a day.
//! One that looks too small stands for its hour, day, week or month only where there is no other.

use std::collections::{BTreeMap, BTreeSet};

/// Names the hour, day, week or month that a moment falls into.
type BucketOf = fn(&jiff::Zoned) -> String;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::names::BackupId;

/// Younger backups are never removed.
const YOUNG: SignedDuration = SignedDuration::from_hours(24);
/// A difference to the store's clock beyond which nothing is removed.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// How many are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// The newest ones.
    pub last: u32,
    /// One an hour.
    pub hourly: u32,
    /// One a day.
    pub daily: u32,
    /// One a week, from Monday.
    pub weekly: u32,
    /// One a month.
    pub monthly: u32,
}

/// What the plan needs to know of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub id: BackupId,
    /// When its snapshot was taken.
    pub at: Timestamp,
    /// Whether a drill restored it.
    pub verified: bool,
    /// Whether it looks too small.
    pub suspicious: bool,
    /// Whether somebody wants it kept.
    pub held: bool,
}

/// What else decides.
#[derive(Debug, Clone)]
pub struct Circumstances {
    /// Now.
    pub now: Timestamp,
    /// Zone of hours, days, weeks and months.
    pub zone: TimeZone,
    /// The time between two backups, where there is a schedule.
    pub interval: Option<SignedDuration>,
    /// How far the store's clock is from ours, where it tells.
    pub skew: Option<SignedDuration>,
    /// Somebody looked at the plan and said yes.
    pub confirmed: bool,
}

/// What is kept and why, and what goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Kept, newest first, with the reasons.
    pub keep: Vec<(BackupId, Vec<String>)>,
    /// Removed, oldest first.
    pub remove: Vec<BackupId>,
    /// Why nothing is removed for now.
    pub frozen: Option<String>,
}

/// Decides. With `frozen` set, `remove` is what would go.
pub fn plan(backups: &[Candidate], keep: Keep, circumstances: &Circumstances) -> Plan {
    let mut newest_first: Vec<&Candidate> = backups.iter().collect();
    newest_first.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| b.id.cmp(&a.id)));
    let mut reasons: BTreeMap<BackupId, Vec<String>> = BTreeMap::new();
    let mut because = |candidate: &Candidate, why: String| {
        reasons.entry(candidate.id.clone()).or_default().push(why);
    };
    for candidate in newest_first.iter().take(keep.last as usize) {
        because(candidate, format!("one of the last {}", keep.last));
    }
    for candidate in newest_first.iter().take(2) {
        because(candidate, "one of the two newest".to_owned());
    }
    if let Some(candidate) = newest_first.iter().find(|candidate| candidate.verified) {
        because(candidate, "the newest verified".to_owned());
    }
    for candidate in &newest_first {
        if candidate.held {
            because(candidate, "held".to_owned());
        }
        if circumstances.now.duration_since(candidate.at) < YOUNG {
            because(candidate, "younger than a day".to_owned());
        }
    }
    let buckets: [(&str, u32, BucketOf); 4] = [
        ("hour", keep.hourly, |at| {
            at.strftime("%Y-%m-%d %H %:z").to_string()
        }),
        ("day", keep.daily, |at| at.strftime("%Y-%m-%d").to_string()),
        ("week", keep.weekly, |at| at.strftime("%G-W%V").to_string()),
        ("month", keep.monthly, |at| at.strftime("%Y-%m").to_string()),
    ];
    for (name, count, bucket) in buckets {
        let bucket = |candidate: &Candidate| bucket(&candidate.at.to_zoned(circumstances.zone.clone()));
        // Which buckets are kept is decided by all; who stands for one, first among those that look right.
        let mut wanted = BTreeSet::new();
        for candidate in &newest_first {
            if wanted.len() < count as usize {
                wanted.insert(bucket(candidate));
            }
        }
        let mut by_trust = newest_first.clone();
        by_trust.sort_by_key(|candidate| candidate.suspicious);
        for candidate in by_trust {
            let key = bucket(candidate);
            if wanted.remove(&key) {
                let what = if candidate.suspicious { "only" } else { "newest" };
                because(candidate, format!("the {what} of the {name} {key}"));
            }
        }
    }
    let remove: Vec<BackupId> = newest_first
        .iter()
        .rev()
        .filter(|candidate| !reasons.contains_key(&candidate.id))
        .map(|candidate| candidate.id.clone())
        .collect();
    let frozen = frozen(&newest_first, remove.len(), circumstances);
    let keep = newest_first
        .iter()
        .filter_map(|candidate| Some((candidate.id.clone(), reasons.get(&candidate.id)?.clone())))
        .collect();
    Plan { keep, remove, frozen }
}

fn frozen(newest_first: &[&Candidate], removed: usize, circumstances: &Circumstances) -> Option<String> {
    let newest = newest_first.first()?;
    if let Some(skew) = circumstances.skew.filter(|skew| skew.abs() > SKEW) {
        return Some(format!(
            "the store's clock and ours differ by {} s",
            skew.abs().as_secs()
        ));
    }
    if newest.at > circumstances.now.saturating_add(SKEW).unwrap_or(Timestamp::MAX) {
        return Some("the newest backup is from the future: a clock was wrong".to_owned());
    }
    if circumstances.confirmed {
        return None;
    }
    if newest.suspicious {
        return Some(format!("the newest backup, {}, looks too small", newest.id));
    }
    if let Some(interval) = circumstances.interval
        && circumstances.now.duration_since(newest.at) > interval.saturating_mul(2)
    {
        return Some("the newest backup is older than two intervals".to_owned());
    }
    if removed * 2 > newest_first.len() {
        return Some(format!(
            "{removed} of {} backups would be removed at once",
            newest_first.len()
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Keep = Keep {
        last: 3,
        hourly: 24,
        daily: 7,
        weekly: 4,
        monthly: 12,
    };

    fn candidate(at: Timestamp, number: u8) -> Candidate {
        Candidate {
            id: BackupId::new(at, [number; 10]),
            at,
            verified: false,
            suspicious: false,
            held: false,
        }
    }

    fn at(now: &str) -> Circumstances {
        Circumstances {
            now: now.parse().expect("time"),
            zone: TimeZone::UTC,
            interval: Some(SignedDuration::from_hours(24)),
            skew: None,
            confirmed: false,
        }
    }

    #[test]
    fn a_year_of_daily_backups_becomes_days_weeks_and_months() {
        let circumstances = at("2026-12-31T04:00:00Z");
        let mut backups: Vec<Candidate> = Vec::new();
        for day in (0..365).rev() {
            let taken =
                circumstances.now - SignedDuration::from_hours(24 * day) - SignedDuration::from_mins(45);
            backups.push(candidate(taken, (day % 200) as u8));
            // Pruned each day, as the schedule does.
            let today = Circumstances {
                now: taken + SignedDuration::from_mins(5),
                ..circumstances.clone()
            };
            let plan = plan(&backups, KEEP, &today);
            assert_eq!(plan.frozen, None);
            assert!(plan.remove.len() <= 1, "one goes a day: {:?}", plan.remove);
            backups.retain(|backup| !plan.remove.contains(&backup.id));
        }
        // 24 "hours" are 24 days here, weeks and months further back.
        assert!((24..=24 + 12).contains(&backups.len()), "{}", backups.len());
        let oldest = backups.iter().map(|backup| backup.at).min().expect("some");
        assert!(circumstances.now.duration_since(oldest) > SignedDuration::from_hours(24 * 300));
    }

    #[test]
    fn what_looks_wrong_freezes_it() {
        let circumstances = at("2026-12-31T04:00:00Z");
        let few = Keep {
            last: 1,
            hourly: 0,
            daily: 0,
            weekly: 0,
            monthly: 0,
        };
        let mut backups: Vec<Candidate> = (0..5)
            .map(|day| {
                candidate(
                    circumstances.now - SignedDuration::from_hours(24 * day + 1),
                    day as u8,
                )
            })
            .collect();
        let why =
            |backups: &[Candidate], circumstances: &Circumstances| plan(backups, few, circumstances).frozen;
        assert!(why(&backups, &circumstances).expect("frozen").contains("3 of 5"));
        assert_eq!(
            why(
                &backups,
                &Circumstances {
                    confirmed: true,
                    ..circumstances.clone()
                }
            ),
            None
        );
        let skewed = Circumstances {
            skew: Some(SignedDuration::from_mins(-6)),
            confirmed: true,
            ..circumstances.clone()
        };
        assert!(why(&backups, &skewed).expect("frozen").contains("360 s"));
        let late = Circumstances {
            now: circumstances.now + SignedDuration::from_hours(60),
            ..circumstances.clone()
        };
        assert!(why(&backups[..3], &late).expect("frozen").contains("intervals"));
        backups[0].suspicious = true;
        assert!(
            why(&backups, &circumstances)
                .expect("frozen")
                .contains("too small")
        );
    }

    #[test]
    fn an_emptied_backup_does_not_push_out_the_full_one_of_its_week() {
        // Tables were emptied on a Saturday evening; a restore on Monday brought them back.
        let saturday = ("2026-11-14T03:15:00Z", false);
        let history = [
            saturday,
            ("2026-11-15T03:15:00Z", true),
            ("2026-11-16T12:00:00Z", true),
            ("2026-11-17T03:15:00Z", false),
        ];
        let mut backups: Vec<Candidate> = Vec::new();
        for (number, (taken, suspicious)) in history.iter().enumerate() {
            backups.push(Candidate {
                suspicious: *suspicious,
                ..candidate(taken.parse().expect("time"), number as u8)
            });
        }
        let good = backups[0].id.clone();
        for day in 18..=30 {
            let taken: Timestamp = format!("2026-11-{day}T03:15:00Z").parse().expect("time");
            backups.push(candidate(taken, 100 + day));
        }
        let keep = Keep {
            last: 1,
            hourly: 0,
            daily: 2,
            weekly: 4,
            monthly: 0,
        };
        let circumstances = Circumstances {
            confirmed: true,
            ..at("2026-11-30T04:00:00Z")
        };
        let plan = plan(&backups, keep, &circumstances);
        let why = |id: &BackupId| {
            plan.keep
                .iter()
                .find(|(kept, _)| kept == id)
                .map(|(_, why)| why.join("; "))
        };
        assert_eq!(why(&good).as_deref(), Some("the newest of the week 2026-W46"));
        assert_eq!(why(&backups[1].id), None, "the emptied one of that week goes");
        assert_eq!(why(&backups[2].id), None, "and what the restore replaced");
    }

    proptest! {
        #[test]
        fn the_protected_ones_stay_whatever_the_history(
            ages in proptest::collection::vec((0_i64..400 * 24 * 60, any::<bool>(), any::<bool>(), any::<bool>()), 1..60),
            last in 0_u32..4, hourly in 0_u32..30, daily in 0_u32..9, weekly in 0_u32..6, monthly in 0_u32..14,
            zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "Pacific/Apia"]),
        ) {
            let circumstances = Circumstances {
                zone: TimeZone::get(zone).unwrap_or(TimeZone::UTC),
                confirmed: true,
                ..at("2026-12-31T04:00:00Z")
            };
            let backups: Vec<Candidate> = ages.iter().enumerate().map(|(number, (minutes, verified, held, suspicious))| Candidate {
                verified: *verified,
                held: *held && number % 5 == 0,
                suspicious: *suspicious,
                ..candidate(circumstances.now - SignedDuration::from_mins(*minutes), number as u8)
            }).collect();
            let keep = Keep { last, hourly, daily, weekly, monthly };
            let plan = plan(&backups, keep, &circumstances);
            let removed = |backup: &Candidate| plan.remove.contains(&backup.id);
            let mut sorted: Vec<&Candidate> = backups.iter().collect();
            sorted.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| b.id.cmp(&a.id)));
            prop_assert!(!sorted.iter().take(2).any(|backup| removed(backup)));
            prop_assert!(!sorted.iter().find(|backup| backup.verified).is_some_and(|backup| removed(backup)));
            prop_assert!(!backups.iter().any(|backup| removed(backup)
                && (backup.held || circumstances.now.duration_since(backup.at) < YOUNG)));
            // Bounded: what is kept beyond the protected fits the numbers that were asked for.
            let protected = backups.iter().filter(|backup| backup.held || circumstances.now.duration_since(backup.at) < YOUNG).count() + 3;
            prop_assert!(plan.keep.len() <= protected + (last + hourly + daily + weekly + monthly) as usize);
            prop_assert_eq!(plan.keep.len() + plan.remove.len(), backups.len());
            // Where one that looks right goes, nothing that looks too small stands for its hour, day, week or month.
            for gone in backups.iter().filter(|backup| removed(backup) && !backup.suspicious) {
                for (name, format) in [("hour", "%Y-%m-%d %H %:z"), ("day", "%Y-%m-%d"), ("week", "%G-W%V"), ("month", "%Y-%m")] {
                    let bucket = gone.at.to_zoned(circumstances.zone.clone()).strftime(format).to_string();
                    let stands = plan.keep.iter().find(|(_, why)| why.iter().any(|why| why.ends_with(&format!("of the {name} {bucket}"))));
                    let trusted = stands.is_none_or(|(id, _)| backups.iter().any(|backup| backup.id == *id && !backup.suspicious));
                    prop_assert!(trusted, "{} goes for one that looks too small", gone.id);
                }
            }
            // Carrying it out and planning again removes nothing more.
            let left: Vec<Candidate> = backups.iter().filter(|backup| !removed(backup)).cloned().collect();
            prop_assert_eq!(super::plan(&left, keep, &circumstances).remove, Vec::<BackupId>::new());
        }
    }
}
