//! Backups on this host: who runs what when, and what came of it.
//!
//! ```text
//!  release's x-appliance/backups ─► jobs ─┬─ schedule, every minute: due? ─► run ─► backup, prune, ping ─► drill
//!                                         └─ signed change ───────────────► run, restore, drill, verify, prune
//!  journal: what was under way when the agent died ─► settled before anything else happens to that accessory
//! ```
//!
//! One run at a time on the whole host: backups must not take the machine from the apps.

mod choice;
mod download;
mod drill;
mod helper;
mod hold;
mod jobs;
mod kept;
mod memory;
mod own;
mod ping;
mod place;
#[cfg(test)]
mod pretended;
mod probe;
mod queue;
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
use appliance_backup::names::{BackupId, Subject};
use appliance_backup::spool;
use appliance_backup::store::Patience;
use appliance_push::change::BackupAction;
use appliance_state::{Key, Ledger, Store};
use jiff::{SignedDuration, Timestamp};

pub use self::jobs::{Job, SECTION, Spec};
pub use self::memory::{Record, Unread};
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
    /// What this process knows of the jobs by itself.
    seen: Mutex<BTreeMap<String, memory::Seen>>,
    /// Since when the ledger cannot be read.
    unread: Mutex<Option<Timestamp>>,
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
            seen: Mutex::default(),
            unread: Mutex::default(),
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
        !self.runs(&job.key()) && self.interrupted(job).iter().any(Intent::touches_live_data)
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
    let busy = || End::Refused {
        code: "busy".to_owned(),
        message: format!("a backup or restore of {} runs already", job.key()),
        next: "appliance backup list shows when it is done".to_owned(),
    };
    if agent.backups.runs(&job.key()) {
        return Ok(busy());
    }
    // Restores and checks that somebody waits for do not wait for backups of other accessories; what waits is not under
    // way yet, and keeps nobody from restoring meanwhile.
    let _turn = match action {
        BackupAction::Now | BackupAction::Drill { .. } => Some(agent.backups.turn(audience).await),
        _ => None,
    };
    let Some(_busy) = agent.backups.claim(&job.key()) else {
        return Ok(busy());
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
        let record = agent.backups.to_go_by(&key, now);
        if record.last_run.or(record.since).is_none() {
            agent.backups.note(&key, |record| record.since = Some(now));
            continue;
        }
        let Some(due) = standing::due(&record, &rhythm, now, jitter(&key)) else {
            continue;
        };
        let agent = Arc::clone(agent);
        tokio::spawn(async move {
            let Some((_turn, _busy)) = agent.backups.queue(&key).await else {
                return;
            };
            // Somebody may have had it run meanwhile.
            let begun = Timestamp::now();
            let record = agent.backups.to_go_by(&key, begun);
            if standing::due(&record, &rhythm, begun, jitter(&key)).is_none() {
                return;
            }
            agent.backups.begins(&key, begun);
            if now.duration_since(due) > LATE {
                tracing::warn!("the backup of {key} was due at {due}; the host was down or busy");
                agent.backups.note(&key, |record| record.missed = Some(due));
            }
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
    if let Intent::Prune { subject, keys } = &entry.intent {
        // It may have been seen again since it was planned.
        let going: Vec<BackupId> = (keys.iter())
            .filter_map(|key| Some(Subject::of_key(key)?.1))
            .collect();
        agent
            .backups
            .note(&job.key(), |record| record.own.forget(subject, &going));
    }
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
