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
mod drill;
mod helper;
mod hold;
mod jobs;
mod kept;
mod own;
mod ping;
mod place;
#[cfg(test)]
mod pretended;
mod probe;
mod redis;
mod redis_password;
mod report;
mod restore;
mod room;
mod run;
mod scratch;
mod sqlite;
mod standing;
mod volume;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use appliance_backup::backup::Outside;
use appliance_backup::journal::{Entry, Intent, Journal};
use appliance_backup::spool;
use appliance_backup::store::Patience;
use appliance_push::change::BackupAction;
use appliance_state::{Key, Ledger, Store};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub use self::jobs::{Job, SECTION, Spec};
pub use self::ping::ping;
pub use self::probe::look as probe;
pub use self::restore::RECOVERY;
pub use self::standing::Doubt;
use super::drive::Audience;
use super::schedule::Rhythm;
use super::{Agent, chain, random};
use crate::wire::{End, Event};

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
    /// When a drill was left out for want of room, why, and how often since the last one.
    pub drill_skipped: Option<(Timestamp, String, u32)>,
    /// The image of the last drill: another one is a reason for a drill.
    pub drill_image: Option<String>,
    /// The version of this program that did it: another one is a reason, too.
    pub drill_version: Option<String>,
    /// When and why the address that is told of good drills could not be told.
    pub drill_ping_failed: Option<(Timestamp, String)>,
    /// When and why the address that is told of good runs could not be told.
    pub ping_failed: Option<(Timestamp, String)>,
    /// The last run that began late: when it was due.
    pub missed: Option<Timestamp>,
    /// When what was never finished was last looked for.
    pub swept: Option<Timestamp>,
    /// Runs that failed since the last good one.
    pub failures: u32,
    /// When the last run found something that is not as it was, and what: much less data, a database gone.
    pub odd: Option<(Timestamp, String)>,
    /// Until when somebody said that all is as it should be.
    pub accepted: Option<Timestamp>,
    /// When and why nothing could be stored in the place, when that was last looked at.
    pub probe_failed: Option<(Timestamp, String)>,
    /// When and why old backups could not be removed.
    pub prune_failed: Option<(Timestamp, String)>,
    /// Where the last good run went: the place as configured, and the repository that is there.
    pub place: Option<(String, String)>,
    /// What the last good run backed up: databases, files, directories.
    pub units: BTreeSet<String>,
    /// Which backups there were at the last runs.
    pub own: own::Own,
}

/// All of it.
pub struct Backups {
    journal: Journal,
    /// Where parts wait on their way to a slow place.
    spool: PathBuf,
    ledger: Ledger<BTreeMap<String, Record>>,
    /// What is to be backed up.
    jobs: Ledger<kept::Jobs>,
    /// What another process of this agent had begun to store, until it is looked at.
    left: Mutex<Vec<Entry>>,
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
        let journal =
            Journal::open(&directory).with_context(|| format!("cannot use {}", directory.display()))?;
        // Before anything of our own is in it.
        let mut left = journal.interrupted().unwrap_or_else(|error| {
            tracing::error!("cannot read {}: {}", directory.display(), chain(&error));
            Vec::new()
        });
        left.retain(|entry| entry.intent.is_about_what_is_stored());
        let single = |name: &str| Key::new(name).expect("our own name is a good key");
        Ok(Self {
            journal,
            jobs: store.single(&single("backup-jobs"), SCHEMA),
            left: Mutex::new(left),
            spool: state.join("backups/spool"),
            ledger: store.single(&single("backups"), SCHEMA),
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

    /// What is under way of a job, or was interrupted.
    fn interrupted(&self, job: &Job) -> Vec<Intent> {
        let entries = self.journal.interrupted().unwrap_or_default();
        let intents = entries.into_iter().map(|entry| entry.intent);
        intents.filter(|intent| job.has(intent)).collect()
    }

    /// Whether a restore was interrupted, and is not settled yet.
    fn left_open(&self, job: &Job) -> bool {
        // One that runs now is not interrupted.
        !self.lock().contains(&job.key()) && self.interrupted(job).iter().any(Intent::touches_live_data)
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
    if let BackupAction::Set { spec, sealed } = action {
        let message = agent.set_job(app, accessory, spec.as_ref(), sealed, Timestamp::now())?;
        for message in probe::look(agent, app).await {
            audience.tell(Event::Warning { message }).await;
        }
        return Ok(super::change::done(message));
    }
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
    // Restores and checks that somebody waits for do not wait for backups of other accessories.
    let _turn = match action {
        BackupAction::Now | BackupAction::Drill { .. } => Some(turn(agent, audience).await),
        _ => None,
    };
    // What needs no place of backups must not wait for one.
    let settled = match action {
        BackupAction::Now | BackupAction::Prune { .. } => Settled::All,
        _ => Settled::Live,
    };
    settle_job(agent, &job, settled).await?;
    if !matches!(action, BackupAction::Undo { .. })
        && let Some(message) = probe::silent(agent, &job).await
    {
        audience.tell(Event::Warning { message }).await;
    }
    let message = match action {
        // Carried out above.
        BackupAction::Set { .. } => String::new(),
        BackupAction::Now => run::run(agent, &job, Some(audience)).await?,
        BackupAction::Verify { backup } => restore::verify(agent, &job, backup.as_deref(), audience).await?,
        BackupAction::Drill { backup } => {
            drill::drill(agent, &job, backup.as_deref(), Some(audience)).await?
        }
        BackupAction::Prune { confirmed } => run::prune(agent, &job, *confirmed).await?,
        BackupAction::Hold { backup, held } => hold::hold(agent, &job, backup, *held).await?,
        BackupAction::Restore(wanted) => restore::restore(agent, &job, wanted, audience).await?,
        BackupAction::Undo { database } => restore::undo(agent, &job, database.as_deref()).await?,
    };
    Ok(super::change::done(message))
}

/// One run at a time; whoever has to wait is told so.
async fn turn<'a>(agent: &'a Agent, audience: &Audience) -> tokio::sync::MutexGuard<'a, ()> {
    if let Ok(turn) = agent.backups.turn.try_lock() {
        return turn;
    }
    let running = agent
        .backups
        .lock()
        .iter()
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    audience
        .tell(Event::Phase {
            phase: "waiting".to_owned(),
            detail: format!("one backup at a time runs on a host; under way: {running}"),
        })
        .await;
    agent.backups.turn.lock().await
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
        if record.last_run.or(record.since).is_none() {
            agent.backups.note(&key, |record| record.since = Some(now));
            continue;
        }
        let Some(due) = standing::due(&record, &rhythm, now, jitter(&key)) else {
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
            if let Err(error) = settle_job(&agent, &job, Settled::All).await {
                tracing::warn!("{key}: {error:#}");
            }
            run::on_schedule(&agent, &job, due).await;
        });
    }
}

/// After a crash in the middle of a restore the live database may let nobody in: settled as soon as its server answers.
/// Called every few seconds; never waits for a server.
pub async fn reopen(agent: &Arc<Agent>) {
    let entries = agent.backups.journal.interrupted().unwrap_or_default();
    if !entries.iter().any(|entry| entry.intent.touches_live_data()) {
        return;
    }
    for job in agent.backup_jobs() {
        if !agent.backups.left_open(&job) {
            continue;
        }
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            if let Some(_busy) = agent.backups.claim(&job.key())
                && let Err(error) = settle_job(&agent, &job, Settled::Live).await
            {
                tracing::warn!("{}: settled once it can be: {error:#}", job.key());
            }
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

/// Settles what was interrupted when the agent last ended. Never waits for a server or for a place of backups.
pub async fn settle(agent: &Arc<Agent>) {
    agent.remove_stale_scratch().await;
    reopen(agent).await;
    let left = std::mem::take(&mut *agent.backups.left.lock().unwrap_or_else(PoisonError::into_inner));
    let mut jobs = BTreeMap::new();
    for entry in left {
        if let Err(error) = spool::forget(&entry.intent) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what waited on the disk stays"
            );
        }
        if let Some(job) = agent.backup_jobs().into_iter().find(|job| job.has(&entry.intent)) {
            jobs.insert(job.key(), job);
        }
    }
    for job in jobs.into_values() {
        let agent = Arc::clone(agent);
        tokio::spawn(async move { settle_left(&agent, &job).await });
    }
}

/// Settles what an earlier process had begun to store for a job, unless somebody is at work on it, who does that first:
/// settling takes away what a backup or a restore has under way. What fails is settled at the next run.
async fn settle_left(agent: &Agent, job: &Job) {
    // Nobody has to wait for a place that does not answer.
    if let Err(error) = agent.repository_within(job, probe::SHORT).await {
        return stays(agent, job, &error);
    }
    let Some(_busy) = agent.backups.claim(&job.key()) else {
        return;
    };
    // As it is now: somebody may have settled it meanwhile.
    let entries = agent.backups.journal.interrupted().unwrap_or_default();
    let own = entries
        .into_iter()
        .filter(|entry| job.has(&entry.intent) && entry.intent.is_about_what_is_stored());
    for entry in own {
        settle_stored(agent, job, entry, probe::SHORT).await;
    }
}

/// What of an interrupted job is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    /// What keeps live data from being used.
    Live,
    /// That, and what is stored and no backup.
    All,
}

/// Settles what was interrupted of a job, that which touches live data first.
///
/// # Errors
/// When live data may not be as it should be; rubbish in the place of backups that stays for now is no reason to refuse
/// anything.
async fn settle_job(agent: &Agent, job: &Job, what: Settled) -> anyhow::Result<()> {
    let interrupted = agent
        .backups
        .journal
        .interrupted()
        .context("cannot read the journal of backups")?;
    let own = interrupted.into_iter().filter(|entry| job.has(&entry.intent));
    let (stored, live): (Vec<Entry>, Vec<Entry>) =
        own.partition(|entry| entry.intent.is_about_what_is_stored());
    let mut failed = Ok(());
    for entry in live {
        match settle_entry(agent, job, entry, Patience::default()).await {
            Ok(said) => tracing::info!("{}: after an interruption: {said}", job.key()),
            Err(error) => failed = Err(error.context("an interrupted restore cannot be settled yet")),
        }
    }
    if what == Settled::All {
        for entry in stored {
            settle_stored(agent, job, entry, Patience::default()).await;
        }
    }
    failed
}

async fn settle_stored(agent: &Agent, job: &Job, entry: Entry, patience: Patience) {
    match settle_entry(agent, job, entry, patience).await {
        Ok(said) => tracing::info!("{}: after an interruption: {said}", job.key()),
        Err(error) => stays(agent, job, &error),
    }
}

/// Notes that something could not be removed from a place of backups.
fn stays(agent: &Agent, job: &Job, error: &anyhow::Error) {
    tracing::warn!("{}: what was to be removed stays for now: {error:#}", job.key());
    let failed = (Timestamp::now(), format!("{error:#}"));
    agent
        .backups
        .note(&job.key(), |record| record.prune_failed = Some(failed));
}

async fn settle_entry(agent: &Agent, job: &Job, entry: Entry, patience: Patience) -> anyhow::Result<String> {
    // Nor does the disk wait for it.
    spool::forget(&entry.intent).context("cannot remove what waited on the disk")?;
    if let Intent::TakeOver { .. } = &entry.intent {
        let said = redis::settle(agent, &agent.running(job).await?).await?;
        entry.done().context("cannot write the journal of backups")?;
        return Ok(said);
    }
    // A database that lets nobody in does not wait for a place that is away.
    let repository = match entry.intent.is_about_what_is_stored() {
        true => Some(agent.repository_within(job, patience).await?),
        false => None,
    };
    let server = match agent.running(job).await {
        Ok(info) => Some(agent.postgres(&info)),
        Err(_) => None,
    };
    Ok(appliance_backup::recover::settle(repository.as_ref(), server.as_ref(), entry).await?)
}
