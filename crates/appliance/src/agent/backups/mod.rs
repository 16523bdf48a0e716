//! Backups on this host: who runs what when, and what came of it.
//!
//! ```text
//!  release's x-appliance/backups ─► jobs ─┬─ schedule, every minute: due? ─► run ─► backup, prune, ping ─► drill
//!                                         └─ signed change ───────────────► run, restore, drill, verify, prune
//!  journal: what was under way when the agent died ─► settled before anything else happens to that accessory
//! ```
//!
//! One run at a time on the whole host: backups must not take the machine from the apps.

mod download;
mod helper;
mod jobs;
mod ping;
mod place;
mod redis;
mod report;
mod restore;
mod run;
mod scratch;
mod sqlite;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use appliance_backup::backup::Outside;
use appliance_backup::journal::Journal;
use appliance_push::change::BackupAction;
use appliance_state::{Key, Ledger, Store};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use self::jobs::{Job, SECTION, Spec};
pub use self::ping::ping;
use super::drive::Audience;
use super::schedule::Rhythm;
use super::{Agent, chain, random};
use crate::wire::End;

const SCHEMA: u32 = 1;
/// A run that begins later than this after its time was missed.
const LATE: SignedDuration = SignedDuration::from_mins(15);
/// Most jitter, seconds.
const JITTER: u64 = 120;

/// Time and chance of this process.
const OUTSIDE: Outside = Outside {
    now: Timestamp::now,
    random,
};

/// What the host remembers of one job.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Record {
    /// When it was first seen: what was due before is not missed.
    pub since: Option<Timestamp>,
    /// When it last began.
    pub last_run: Option<Timestamp>,
    /// When it last went well, and for how many milliseconds.
    pub good: Option<(Timestamp, u64)>,
    /// When and why it last failed; gone with the next good run.
    pub failed: Option<(Timestamp, String)>,
    /// When a drill last went well, and how many milliseconds its restore took.
    pub drilled: Option<(Timestamp, u64)>,
    /// When and why a drill last failed.
    pub drill_failed: Option<(Timestamp, String)>,
    /// The image of the last drill: another one is a reason for a drill.
    pub drill_image: Option<String>,
    /// When and why the address that is told of good drills could not be told.
    pub drill_ping_failed: Option<(Timestamp, String)>,
    /// When and why the address that is told of good runs could not be told.
    pub ping_failed: Option<(Timestamp, String)>,
    /// The last run that began late: when it was due.
    pub missed: Option<Timestamp>,
    /// When what was never finished was last looked for.
    pub swept: Option<Timestamp>,
}

/// All of it.
pub struct Backups {
    journal: Journal,
    ledger: Ledger<BTreeMap<String, Record>>,
    busy: Mutex<BTreeSet<String>>,
    /// One run at a time.
    turn: tokio::sync::Mutex<()>,
}

/// Says that a job runs, until dropped.
struct Busy<'a> {
    backups: &'a Backups,
    key: String,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.backups.lock().remove(&self.key);
    }
}

impl Backups {
    /// The state of backups below the agent's.
    ///
    /// # Errors
    /// When the journal's directory cannot be made.
    pub fn open(store: &Store, state: &Path) -> anyhow::Result<Self> {
        let directory = state.join("backups/journal");
        Ok(Self {
            journal: Journal::open(&directory)
                .with_context(|| format!("cannot use {}", directory.display()))?,
            ledger: store.single(&Key::new("backups").expect("our own name is a good key"), SCHEMA),
            busy: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, key: &str) -> Option<Busy<'_>> {
        self.lock().insert(key.to_owned()).then(|| Busy {
            backups: self,
            key: key.to_owned(),
        })
    }

    /// What is remembered of a job.
    pub fn record(&self, key: &str) -> Record {
        self.ledger
            .read()
            .ok()
            .and_then(|snapshot| snapshot.data.get(key).cloned())
            .unwrap_or_default()
    }

    fn note(&self, key: &str, change: impl FnOnce(&mut Record)) {
        let noted = self
            .ledger
            .update(|records| change(records.entry(key.to_owned()).or_default()));
        if let Err(error) = noted {
            tracing::error!("what came of the backup {key} cannot be noted: {}", chain(&error));
        }
    }
}

/// Carries out a signed change.
///
/// # Errors
/// When it fails; what that leaves is said by each action.
pub async fn change(
    agent: &Arc<Agent>,
    app: &str,
    accessory: &str,
    action: &BackupAction,
    audience: &Audience,
) -> anyhow::Result<End> {
    let job = match agent.backup_job(app, accessory) {
        Ok(job) => job,
        Err(error) => {
            return Ok(End::Refused {
                code: "no-backups".to_owned(),
                message: format!("{error:#}"),
                next: "appliance backup list".to_owned(),
            });
        }
    };
    let Some(_busy) = agent.backups.claim(&job.key()) else {
        return Ok(End::Refused {
            code: "busy".to_owned(),
            message: format!("a backup or restore of {} runs already", job.key()),
            next: "appliance backup list shows when it is done".to_owned(),
        });
    };
    let _turn = agent.backups.turn.lock().await;
    settle_job(agent, &job).await?;
    let message = match action {
        BackupAction::Now => run::run(agent, &job, Some(audience)).await?,
        BackupAction::Verify { backup } => restore::verify(agent, &job, backup.as_deref(), audience).await?,
        BackupAction::Drill { backup } => {
            restore::drill(agent, &job, backup.as_deref(), Some(audience)).await?
        }
        BackupAction::Prune { confirmed } => run::prune(agent, &job, *confirmed).await?,
        BackupAction::Restore(wanted) => restore::restore(agent, &job, wanted, audience).await?,
        BackupAction::Undo { database } => restore::undo(agent, &job, database.as_deref()).await?,
    };
    Ok(super::change::done(message))
}

/// Runs what is due. Called every minute; never waits for a run.
pub async fn pass(agent: &Arc<Agent>) {
    let now = Timestamp::now();
    for job in agent.backup_jobs() {
        let key = job.key();
        let settings = &job.spec.settings;
        let rhythm = match Rhythm::parse(settings.schedule.fields(), settings.timezone.as_deref()) {
            Ok(rhythm) => rhythm,
            Err(error) => {
                agent
                    .backups
                    .note(&key, |record| record.failed = Some((now, format!("{error:#}"))));
                continue;
            }
        };
        let record = agent.backups.record(&key);
        let Some(last) = record.last_run.or(record.since) else {
            agent.backups.note(&key, |record| record.since = Some(now));
            continue;
        };
        let Some(due) = rhythm.due(last, now, jitter(&key)) else {
            continue;
        };
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            let Some(_busy) = agent.backups.claim(&key) else {
                return;
            };
            if now.duration_since(due) > LATE {
                tracing::warn!("the backup of {key} was due at {due}; the host was down or busy");
                agent.backups.note(&key, |record| record.missed = Some(due));
            }
            let _turn = agent.backups.turn.lock().await;
            if let Err(error) = settle_job(&agent, &job).await {
                tracing::warn!("{key}: {error:#}");
            }
            // What came of it is noted and shown by `status`.
            let _noted = run::run(&agent, &job, None).await;
        });
    }
}

/// A job's own delay: always the same, spread over two minutes.
fn jitter(key: &str) -> SignedDuration {
    let sum = key.bytes().fold(7_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    SignedDuration::from_secs(i64::try_from(sum % JITTER).unwrap_or(0))
}

/// Settles what was interrupted when the agent last ended.
pub async fn settle(agent: &Arc<Agent>) {
    agent.remove_stale_scratch().await;
    for job in agent.backup_jobs() {
        if let Err(error) = settle_job(agent, &job).await {
            tracing::warn!("{}: settled at its next run: {error:#}", job.key());
        }
    }
}

async fn settle_job(agent: &Agent, job: &Job) -> anyhow::Result<()> {
    let interrupted = agent
        .backups
        .journal
        .interrupted()
        .context("cannot read the journal of backups")?;
    for entry in interrupted {
        let subject = entry.intent.subject().clone();
        if subject.app != job.app || subject.accessory != job.spec.accessory {
            continue;
        }
        let repository = agent.repository(job).await?;
        let server = match agent.running(job).await {
            Ok(info) => Some(agent.postgres(&info)),
            Err(_) => None,
        };
        let said = appliance_backup::recover::settle(&repository, server.as_ref(), entry).await?;
        tracing::info!("{}: after an interruption: {said}", job.key());
    }
    Ok(())
}
