//! From facts to findings.
//!
//! What wavers has two limits: one where it begins, and a better one where it is over.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::notice::{Finding, Kind};
use crate::recent::Answered;

/// The subject of what a host has one of.
pub const HOST: &str = "host";

/// Fewer answers than this say nothing about their share of errors.
const ENOUGH_ANSWERS: u64 = 20;
/// This many restarts within the window are a loop.
const LOOP: u64 = 3;
/// A certificate should have been renewed long before this much of its life is left.
const CERTIFICATE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Of a short-lived one, this part of its life.
const CERTIFICATE_PART: i32 = 4;
/// Memory is short below this share, and enough above the other.
const MEMORY: (f64, f64) = (0.05, 0.10);
/// The disk has to have this much more than the limit before it is well again.
const DISK_MARGIN: f64 = 0.02;
/// A disk that is full within the first time is told, and well again beyond the second, seconds.
const DISK_SOON: (u64, u64) = (24 * 3_600, 36 * 3_600);

/// What was seen; `None` where it could not be seen this time.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Certificates as visitors see them.
    pub certificates: Option<Vec<Certificate>>,
    /// The file system of the state.
    pub disk: Option<Disk>,
    /// Memory: available and all of it, bytes.
    pub memory: Option<(u64, u64)>,
    /// Containers, or the host, in which something was killed for want of memory within the window.
    pub killed: Option<BTreeMap<String, u64>>,
    /// How often containers ended on their own within the window.
    pub restarts: Option<BTreeMap<String, Restarts>>,
    /// Answers of each service within the window.
    pub answered: Option<BTreeMap<String, Answered>>,
    /// Backup jobs.
    pub backups: Option<Vec<Backup>>,
    /// Why a reboot is needed; empty if none is.
    pub reboot: Option<Vec<String>>,
    /// Items of the host that are not as they should be.
    pub drift: Option<Vec<String>>,
    /// Services that do not answer.
    pub away: Option<Vec<Away>>,
    /// What was seen in part only: what is wrong counts, what is missing is not over.
    pub partly: BTreeSet<Kind>,
}

/// A container that ended on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restarts {
    /// How often.
    pub times: u64,
    /// What it belongs to, for the command that ends the loop.
    pub of: Of,
}

/// What a container belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Of {
    /// A release of an app: the one before did not loop.
    Release,
    /// The accessory of this name, which is kept running until somebody says otherwise.
    Accessory(String),
    /// Nothing of ours.
    Other,
}

/// A service that does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Away {
    /// `proxy`, `Docker`.
    pub name: String,
    /// Why, in a sentence.
    pub why: String,
    /// The command that brings it back.
    pub next: String,
}

/// A certificate that is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The host name it is shown for.
    pub name: String,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
}

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Disk {
    /// Free bytes.
    pub free: u64,
    /// Its size, bytes.
    pub total: u64,
    /// Seconds until it is full if it goes on like this.
    pub full_in: Option<u64>,
}

/// A backup job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// `app/accessory`.
    pub name: String,
    /// The accessory, for commands.
    pub accessory: String,
    /// When and why the last run failed.
    pub failed: Option<(Timestamp, String)>,
    /// Since when there was none, if another one was due.
    pub overdue: Option<Timestamp>,
    /// When the last run found something that is not as it was, and what.
    pub odd: Option<(Timestamp, String)>,
    /// When and why the last drill failed.
    pub drill_failed: Option<(Timestamp, String)>,
}

/// What the administrators allow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Share of the disk that stays free.
    pub disk_free: f64,
    /// Share of answers that may be 5xx.
    pub errors: f64,
}

/// What came of a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be seen.
    pub blind: BTreeSet<Kind>,
}

/// What is wrong; `stands` tells whether an alert of that kind and subject holds already.
pub fn look(facts: &Facts, limits: Limits, now: Timestamp, stands: &dyn Fn(Kind, &str) -> bool) -> Look {
    let mut look = Look::default();
    let mut see = |kind: Kind, found: Option<Vec<Finding>>| match found {
        Some(found) => look.findings.extend(found),
        None => {
            look.blind.insert(kind);
        }
    };
    see(
        Kind::Certificate,
        facts
            .certificates
            .as_ref()
            .map(|found| found.iter().filter_map(|one| certificate(one, now)).collect()),
    );
    see(
        Kind::Disk,
        facts.disk.map(|found| {
            disk(found, limits, stands(Kind::Disk, HOST))
                .into_iter()
                .collect()
        }),
    );
    see(
        Kind::Memory,
        match (facts.memory, &facts.killed) {
            (Some(memory), Some(killed)) => Some(short(memory, killed, stands)),
            _ => None,
        },
    );
    see(
        Kind::RestartLoop,
        facts.restarts.as_ref().map(|found| loops(found, stands)),
    );
    see(
        Kind::Errors,
        facts
            .answered
            .as_ref()
            .map(|found| errors(found, limits.errors, stands)),
    );
    see(
        Kind::BackupAge,
        facts
            .backups
            .as_ref()
            .map(|found| found.iter().filter_map(backup).collect()),
    );
    see(
        Kind::Drill,
        facts
            .backups
            .as_ref()
            .map(|found| found.iter().filter_map(drill).collect()),
    );
    see(
        Kind::Reboot,
        facts.reboot.as_ref().map(|why| {
            let wrong = !why.is_empty();
            wrong
                .then(|| {
                    finding(
                        Kind::Reboot,
                        HOST,
                        format!(
                            "a reboot is needed: {} (for one at night by itself: `updates: {{reboot_at: '03:30'}}` in /etc/appliance/host.yml)",
                            why.join(", ")
                        ),
                        "systemctl reboot",
                    )
                })
                .into_iter()
                .collect()
        }),
    );
    see(
        Kind::Drift,
        facts.drift.as_ref().map(|items| {
            let wrong = !items.is_empty();
            wrong
                .then(|| {
                    finding(
                        Kind::Drift,
                        HOST,
                        format!("the host is not as it should be: {}", items.join(", ")),
                        "appliance host plan; appliance host apply",
                    )
                })
                .into_iter()
                .collect()
        }),
    );
    see(
        Kind::Services,
        facts.away.as_ref().map(|found| {
            found
                .iter()
                .map(|away| finding(Kind::Services, &away.name, away.why.clone(), &away.next))
                .collect()
        }),
    );
    look.blind.extend(&facts.partly);
    look
}

fn finding(kind: Kind, subject: &str, message: String, next: &str) -> Finding {
    Finding {
        kind,
        subject: subject.to_owned(),
        message,
        next: next.to_owned(),
    }
}

fn certificate(found: &Certificate, now: Timestamp) -> Option<Finding> {
    let life = found.not_after.duration_since(found.not_before);
    let late = CERTIFICATE.min(life / CERTIFICATE_PART);
    let left = found.not_after.duration_since(now);
    if left >= late {
        return None;
    }
    let message = if left.is_negative() {
        format!(
            "the certificate of {} has ended at {}",
            found.name, found.not_after
        )
    } else {
        format!(
            "the certificate of {} ends at {}, in {} h",
            found.name,
            found.not_after,
            left.as_hours()
        )
    };
    let next = format!(
        "appliance certificates renew {} # or push with a newer one",
        found.name
    );
    Some(finding(Kind::Certificate, &found.name, message, &next))
}

#[allow(clippy::cast_precision_loss)]
fn disk(found: Disk, limits: Limits, stands: bool) -> Option<Finding> {
    let share = found.free as f64 / (found.total as f64).max(1.0);
    let limit = limits.disk_free + if stands { DISK_MARGIN } else { 0.0 };
    let message = if share < limit {
        format!(
            "{:.1} % of the disk are free, {:.1} % are wanted",
            share * 100.0,
            limits.disk_free * 100.0
        )
    } else {
        let soon = if stands { DISK_SOON.1 } else { DISK_SOON.0 };
        let hours = found.full_in.filter(|seconds| *seconds < soon)? / 3_600;
        format!("the disk is full in about {hours} h if it goes on like in the last day")
    };
    Some(finding(
        Kind::Disk,
        HOST,
        message,
        "apt-get clean; journalctl --vacuum-size=200M; docker builder prune --all --force; docker system df; du -xh --max-depth=2 /var | sort -h | tail",
    ))
}

#[allow(clippy::cast_precision_loss)]
fn short(
    (available, total): (u64, u64),
    killed: &BTreeMap<String, u64>,
    stands: &dyn Fn(Kind, &str) -> bool,
) -> Vec<Finding> {
    let mut findings: Vec<Finding> = killed
        .iter()
        .map(|(subject, times)| {
            let message = if subject == HOST {
                format!("the kernel killed {times} processes for want of memory")
            } else {
                format!("the kernel killed processes of {subject} for want of memory, {times} times")
            };
            let next = if subject == HOST {
                "journalctl -k --grep 'out of memory' --lines 20; ps aux --sort -rss | head".to_owned()
            } else {
                format!(
                    "docker stats --no-stream; docker logs --tail 50 {subject} # then more memory for it (options: memory), or find the leak"
                )
            };
            finding(Kind::Memory, subject, message, &next)
        })
        .collect();
    let share = available as f64 / (total as f64).max(1.0);
    let limit = if stands(Kind::Memory, "available") {
        MEMORY.1
    } else {
        MEMORY.0
    };
    if share < limit {
        findings.push(finding(
            Kind::Memory,
            "available",
            format!("only {:.1} % of the memory are available", share * 100.0),
            "docker stats --no-stream; ps aux --sort -rss | head",
        ));
    }
    findings
}

fn loops(restarts: &BTreeMap<String, Restarts>, stands: &dyn Fn(Kind, &str) -> bool) -> Vec<Finding> {
    restarts
        .iter()
        .filter(|(name, found)| found.times >= LOOP || (found.times > 0 && stands(Kind::RestartLoop, name)))
        .map(|(name, found)| {
            let mend = match &found.of {
                Of::Release => "appliance rollback".to_owned(),
                Of::Accessory(accessory) => format!("appliance accessory stop {accessory}"),
                Of::Other => format!("docker stop {name}"),
            };
            let message = format!(
                "the container {name} ended {} times within a short while",
                found.times
            );
            finding(
                Kind::RestartLoop,
                name,
                message,
                &format!("docker logs --tail 50 {name}; {mend}"),
            )
        })
        .collect()
}

#[allow(clippy::cast_precision_loss)]
fn errors(
    answered: &BTreeMap<String, Answered>,
    allowed: f64,
    stands: &dyn Fn(Kind, &str) -> bool,
) -> Vec<Finding> {
    answered
        .iter()
        .filter_map(|(service, found)| {
            let share = found.errors as f64 / (found.requests as f64).max(1.0);
            let wrong = if stands(Kind::Errors, service) {
                share > allowed / 2.0
            } else {
                found.requests >= ENOUGH_ANSWERS && share > allowed
            };
            wrong.then(|| {
                finding(
                    Kind::Errors,
                    service,
                    format!(
                        "{service} answered {:.1} % of its last {} requests with 5xx",
                        share * 100.0,
                        found.requests
                    ),
                    "appliance app logs; appliance rollback",
                )
            })
        })
        .collect()
}

fn backup(job: &Backup) -> Option<Finding> {
    let mut next = format!("appliance backup now {}", job.accessory);
    let message = match (&job.failed, job.overdue, &job.odd) {
        (Some((at, why)), ..) => format!("the backup of {} failed at {at}: {why}", job.name),
        (None, Some(since), _) => format!(
            "the last good backup of {} is of {since}, and the next was due since",
            job.name
        ),
        (None, None, Some((at, what))) => {
            next = format!(
                "appliance backup list; if that is as it should be: appliance backup prune {} --yes",
                job.accessory
            );
            format!(
                "the backup of {} at {at} is not like those before: {what}",
                job.name
            )
        }
        (None, None, None) => return None,
    };
    let (message, next) = with_next(&message, &next);
    Some(finding(Kind::BackupAge, &job.name, message, &next))
}

/// A message whose reason names a command of its own: that one comes first.
fn with_next(message: &str, next: &str) -> (String, String) {
    match message.split_once("; next: ") {
        Some((message, first)) => (message.to_owned(), format!("{first}; {next}")),
        None => (message.to_owned(), next.to_owned()),
    }
}

fn drill(job: &Backup) -> Option<Finding> {
    let (at, why) = job.drill_failed.as_ref()?;
    let message = format!("the backup of {} could not be restored at {at}: {why}", job.name);
    // Another drill of the same backup may well end the same way.
    let next = format!(
        "appliance backup now {0}; appliance backup drill {0}",
        job.accessory
    );
    let (message, next) = with_next(&message, &next);
    Some(finding(Kind::Drill, &job.name, message, &next))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        disk_free: 0.1,
        errors: 0.05,
    };

    fn ended(times: u64) -> BTreeMap<String, Restarts> {
        let of = Of::Release;
        [("web".to_owned(), Restarts { times, of })].into()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn found(facts: &Facts, stands: bool) -> Vec<String> {
        look(facts, LIMITS, at("2026-11-21T12:00:00Z"), &|_, _| stands)
            .findings
            .iter()
            .map(|finding| format!("{} {}", finding.kind, finding.subject))
            .collect()
    }

    #[test]
    fn what_was_not_seen_is_blind_and_not_well() {
        let look = look(&Facts::default(), LIMITS, at("2026-11-21T12:00:00Z"), &|_, _| {
            true
        });
        assert_eq!(look.findings, []);
        assert_eq!(look.blind, Kind::ALL.into_iter().collect());
    }

    #[test]
    fn a_reason_that_names_a_command_has_it_run_first() {
        let facts = Facts {
            backups: Some(vec![Backup {
                name: "demo/db".to_owned(),
                accessory: "db".to_owned(),
                failed: Some((at("2026-11-21T11:00:00Z"), "it is off; next: start it".to_owned())),
                overdue: None,
                odd: None,
                drill_failed: None,
            }]),
            ..Facts::default()
        };
        let look = look(&facts, LIMITS, at("2026-11-21T12:00:00Z"), &|_, _| false);
        assert_eq!(look.findings[0].next, "start it; appliance backup now db");
        assert!(look.findings[0].message.ends_with("it is off"));
    }

    #[test]
    fn what_was_seen_in_part_is_told_and_not_over() {
        let mut facts = Facts {
            restarts: Some(ended(5)),
            partly: [Kind::RestartLoop].into(),
            ..Facts::default()
        };
        assert_eq!(found(&facts, false), ["restart-loop web"]);
        facts.restarts = Some(BTreeMap::new());
        let look = look(&facts, LIMITS, at("2026-11-21T12:00:00Z"), &|_, _| true);
        assert!(look.findings.is_empty() && look.blind.contains(&Kind::RestartLoop));
    }

    #[test]
    fn a_certificate_is_told_a_week_before_its_end_and_a_short_lived_one_in_its_last_quarter() {
        let shown = |from: &str, until: &str| Facts {
            certificates: Some(vec![Certificate {
                name: "shop.test".to_owned(),
                not_before: at(from),
                not_after: at(until),
            }]),
            ..Facts::default()
        };
        let ninety = shown("2026-09-01T00:00:00Z", "2026-11-28T11:00:00Z");
        assert_eq!(found(&ninety, false), ["certificate shop.test"]);
        let later = shown("2026-09-01T00:00:00Z", "2026-11-28T13:00:00Z");
        assert!(found(&later, false).is_empty());
        let six_days = shown("2026-11-18T12:00:00Z", "2026-11-24T12:00:00Z");
        assert!(found(&six_days, false).is_empty(), "half of its life is left");
        let ended = shown("2026-09-01T00:00:00Z", "2026-11-21T11:00:00Z");
        assert_eq!(found(&ended, false).len(), 1);
    }

    #[test]
    fn what_wavers_begins_at_one_limit_and_ends_at_another() {
        let disk = |free| Facts {
            disk: Some(Disk {
                free,
                total: 100,
                full_in: None,
            }),
            ..Facts::default()
        };
        assert_eq!(found(&disk(9), false), ["disk host"]);
        assert!(found(&disk(11), false).is_empty());
        assert_eq!(found(&disk(11), true), ["disk host"], "not well again yet");
        assert!(found(&disk(13), true).is_empty());

        let soon = |hours: u64| Facts {
            disk: Some(Disk {
                free: 50,
                total: 100,
                full_in: Some(hours * 3_600),
            }),
            ..Facts::default()
        };
        assert_eq!(found(&soon(23), false), ["disk host"]);
        assert!(found(&soon(24), false).is_empty());
        assert_eq!(found(&soon(35), true), ["disk host"], "it wavers");
        assert!(found(&soon(36), true).is_empty());

        let answers = |requests, errors| Facts {
            answered: Some([("web".to_owned(), Answered { requests, errors })].into()),
            ..Facts::default()
        };
        assert!(found(&answers(19, 19), false).is_empty(), "too few to tell");
        assert_eq!(found(&answers(20, 2), false), ["errors web"]);
        assert!(found(&answers(100, 4), false).is_empty());
        assert_eq!(found(&answers(100, 4), true), ["errors web"]);
        assert!(found(&answers(100, 2), true).is_empty());

        let restarts = |times| Facts {
            restarts: Some(ended(times)),
            ..Facts::default()
        };
        assert!(found(&restarts(2), false).is_empty());
        assert_eq!(found(&restarts(3), false), ["restart-loop web"]);
        assert_eq!(found(&restarts(1), true), ["restart-loop web"]);
    }
}
