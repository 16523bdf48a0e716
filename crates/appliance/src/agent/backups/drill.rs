//! Drills: backups that are restored into a throw-away server, and compared.
//!
//! ```text
//!   each subject's newest ─► room? ─ no ─► left out; three in a row are an alert, and say nothing of the backup
//!                              └ yes ─► restored, compared ─► noted as the regular one, if every subject was in it
//! ```

use anyhow::bail;
use appliance_backup::names::Kind;
use appliance_backup::restore;
use jiff::Timestamp;

use super::jobs::Job;
use super::{OUTSIDE, Record, choice, redis, room, run, sqlite, standing, volume};
use crate::agent::Agent;
use crate::agent::drive::Audience;
use crate::wire::Event;

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
    let mut tried = false;
    let drilled = drill_each(agent, job, backup, audience, &mut tried).await;
    let now = Timestamp::now();
    let outcome = match &drilled {
        Ok(done) => Outcome::Good(done),
        Err(error) => {
            tracing::error!("the drill of {} failed: {error:#}", job.key());
            let why = format!("{error:#}");
            match room::lacking(error) {
                true => Outcome::NoRoom(why),
                false => Outcome::Failed(why),
            }
        }
    };
    // That there is no such backup, or no room for one that is not the newest, says nothing of those that count.
    let counts = backup.is_none() || (tried && !matches!(outcome, Outcome::NoRoom(_)));
    if counts {
        agent.backups.note(&job.key(), |record| {
            noted(record, &outcome, backup.is_none(), now);
        });
    }
    if drilled.as_ref().is_ok_and(|done| done.whole)
        && let Some(address) = &job.spec.settings.drill_ping
    {
        let told = super::ping::ping(address).await;
        agent.backups.note(&job.key(), |record| {
            record.drill_ping_failed = told.err().map(|error| (now, format!("{error:#}")));
        });
    }
    drilled.map(|done| match done.whole {
        true => done.said,
        false => format!(
            "{}; the regular drill, of every newest backup, is due as before",
            done.said
        ),
    })
}

/// How a drill ended.
enum Outcome<'a> {
    Good(&'a Done),
    NoRoom(String),
    Failed(String),
}

/// Notes what came of a drill; `regular` is one of the newest backups.
fn noted(record: &mut Record, outcome: &Outcome, regular: bool, now: Timestamp) {
    match outcome {
        Outcome::Good(done) if done.whole => {
            record.drilled = Some((now, done.millis));
            record.drill_image = Some(done.image.clone());
            record.drill_version = Some(run::VERSION.to_owned());
            record.drill_failed = None;
            record.drill_skipped = None;
            record.drill_partial = None;
        }
        // The next backup may look right again; until then every one would be drilled.
        Outcome::Good(done) if regular => {
            record.drill_skipped = None;
            record.drill_partial = Some((now, done.said.clone()));
        }
        Outcome::Good(_) => {}
        // One that did not restore is not taken for better because there is no room to try it again.
        Outcome::NoRoom(why) => {
            let times = record.drill_skipped.as_ref().map_or(0, |(_, _, times)| *times);
            record.drill_skipped = Some((now, why.clone(), times.saturating_add(1)));
        }
        Outcome::Failed(why) => {
            record.drill_failed = Some((now, why.clone()));
            record.drill_skipped = None;
        }
    }
}

async fn drill_each(
    agent: &Agent,
    job: &Job,
    backup: Option<&str>,
    audience: Option<&Audience>,
    tried: &mut bool,
) -> anyhow::Result<Done> {
    let repository = agent.repository(job).await?;
    let info = agent.running(job).await?;
    let image = info.image_id.clone();
    let record = agent.backups.known(&job.key());
    let choice::Meant { chosen, left_out } =
        choice::meant(&repository, job.subjects(&repository).await?, backup, &record)?;
    if chosen.is_empty() {
        bail!("there is no backup to restore; next: appliance backup list");
    }
    let postgres = chosen.iter().any(|(subject, _)| subject.kind == Kind::Postgres);
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
    let last = record.drilled.map_or(0, |(_, millis)| millis);
    for (_, manifest) in &chosen {
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
        let ended = tokio::time::timeout(limit, drill).await;
        *tried |= !matches!(&ended, Ok(Err(error)) if room::lacking(error));
        match ended {
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
    if !left_out.is_empty() {
        let names: Vec<String> = left_out.iter().map(ToString::to_string).collect();
        said.push(format!(
            "left out, since none of theirs looks right: {}",
            names.join(", ")
        ));
    }
    Ok(Done {
        millis,
        image,
        whole: backup.is_none() && left_out.is_empty(),
        said: said.join("; "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::backups::Doubt;

    #[test]
    fn no_room_for_a_drill_hides_no_backup_that_does_not_restore() {
        let at = |hour: i64| Timestamp::from_second(hour * 3600).expect("a time");
        let mut record = Record::default();
        noted(&mut record, &Outcome::Failed("damaged".to_owned()), true, at(1));
        let bad = Doubt::Drill(at(1), "damaged".to_owned());
        for hour in 2..8 {
            noted(&mut record, &Outcome::NoRoom("full".to_owned()), true, at(hour));
            assert_eq!(record.doubt(), bad);
            let told = standing::drill_alarm(&record).expect("told");
            assert_eq!(told, (at(1), "damaged".to_owned()));
        }
        let done = |whole| Done {
            millis: 7,
            image: "postgres".to_owned(),
            whole,
            said: "left out: audit".to_owned(),
        };
        // One that had to leave some out is no want of room, and no proof.
        noted(&mut record, &Outcome::Good(&done(false)), true, at(9));
        assert_eq!(record.doubt(), bad);
        assert_eq!(record.drill_skipped, None);
        noted(&mut record, &Outcome::Good(&done(true)), true, at(10));
        assert_eq!(record.doubt(), Doubt::None);
        assert_eq!(standing::drill_alarm(&record), None);

        // What is tried for the third time in vain is told, as what it is.
        for (hour, told) in [(11, false), (12, false), (13, true)] {
            noted(&mut record, &Outcome::NoRoom("full".to_owned()), true, at(hour));
            assert_eq!(standing::drill_alarm(&record).is_some(), told, "{hour}");
            assert_eq!(record.doubt(), Doubt::Room("full".to_owned()));
        }
        noted(&mut record, &Outcome::Good(&done(false)), true, at(14));
        assert_eq!(standing::drill_alarm(&record), None);
        assert_eq!(record.doubt(), Doubt::LeftOut("left out: audit".to_owned()));
    }
}
