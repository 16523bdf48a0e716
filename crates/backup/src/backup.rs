//! One backup of one subject.
//!
//! ```text
//!   noted ─► content stored ─► globals stored ─► manifest stored ═ a backup ─► note removed
//!     │            │                  │
//!     └────────────┴──────────────────┴─► failed: what was stored is removed, the note after it
//! ```

use std::io;

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::journal::{Intent, Journal};
use crate::manifest::{Database, FORMAT, Manifest, Object, Server};
use crate::names::{self, BackupId, Subject};
use crate::postgres::{Postgres, PostgresError};
use crate::recover;
use crate::repository::{Repository, RepositoryError};
use crate::spool;
use crate::stream::{self, Feed, StreamError, Way};
use crate::tap::Tap;
use crate::volumes::{self, Pace, VolumeError};

/// Time and chance, from outside.
#[derive(Debug, Clone, Copy)]
pub struct Outside {
    /// The clock.
    pub now: fn() -> Timestamp,
    /// Random bytes.
    pub random: fn() -> [u8; 16],
}

impl Outside {
    /// An id for a backup that begins now.
    pub fn id(&self) -> BackupId {
        let mut tail = [0; 10];
        tail.copy_from_slice(&(self.random)()[..10]);
        BackupId::new((self.now)(), tail)
    }

    /// A random word of letters and digits.
    pub fn word(&self) -> String {
        self.id().tail().to_owned()
    }
}

/// What is to be backed up, and how.
#[derive(Debug, Clone)]
pub struct Order {
    /// What.
    pub subject: Subject,
    /// Image that its server runs from.
    pub image: Option<String>,
    /// Most bytes a second.
    pub bandwidth: Option<u64>,
    /// The backup before, to compare with.
    pub previous: Option<Manifest>,
    /// Why it is not to be taken for the latest state, where that is known beforehand.
    pub odd: Option<String>,
}

/// Where the content comes from.
pub enum Source<'a> {
    /// A database of a PostgreSQL server; the subject's unit is its name.
    Postgres(&'a Postgres),
    /// Anything that is a stream of bytes.
    Stream(Feed),
    /// Content whose form the tap for the subject's kind looks into.
    Known(Feed),
}

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The note cannot be written, so nothing was begun.
    #[error("cannot write the journal of backups")]
    Journal(#[source] io::Error),
    /// The server failed.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The schema or the roles are not those that the dump was begun with: it might not restore.
    #[error("the schema or the roles of {subject} were changed while it was dumped")]
    Changed {
        /// What was backed up.
        subject: Subject,
    },
    /// The content failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// A small object failed.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
}

/// Makes a backup. When this returns without an error, it exists.
///
/// # Errors
/// When anything at all went wrong; then there is no backup, and those before it are untouched.
pub async fn backup(
    repository: &Repository,
    journal: &Journal,
    order: &Order,
    source: Source<'_>,
    outside: Outside,
) -> Result<Manifest, BackupError> {
    let id = outside.id();
    let mut entry = journal
        .begin(
            id.as_str(),
            Intent::Backup {
                subject: order.subject.clone(),
                id: id.clone(),
                uploads: Vec::new(),
                spool: repository
                    .spool
                    .as_ref()
                    .map(|spool| spool.directory.join(id.as_str())),
            },
        )
        .map_err(BackupError::Journal)?;
    let mut note = |key: &str, upload: &str| entry.note_upload(key, upload);
    let made = make(repository, order, source, &id, outside, &mut note).await;
    if made.is_err()
        && let Err(error) = spool::forget(&entry.intent)
    {
        tracing::warn!(error = &error as &dyn std::error::Error, "a spool is left behind");
    }
    // Whatever it was, a manifest decides: a lost answer to its last call may have left one.
    let settled = match &made {
        Ok(_) => Ok(()),
        Err(_) => recover::backup(repository, &entry.intent).await.map(|_| ()),
    };
    match settled {
        Ok(()) => entry.done().map_err(BackupError::Journal)?,
        Err(error) => tracing::warn!(
            error = &error as &dyn std::error::Error,
            "what was stored of {id} is removed at the next run"
        ),
    }
    made
}

/// Facts about the server, before its content.
struct Facts {
    server: Server,
    database: Database,
    globals: Object,
    /// The text of `globals`.
    roles: String,
    at: Timestamp,
}

async fn make(
    repository: &Repository,
    order: &Order,
    source: Source<'_>,
    id: &BackupId,
    outside: Outside,
    note: &mut (dyn FnMut(&str, &str) -> io::Result<()> + Send),
) -> Result<Manifest, BackupError> {
    let started_at = (outside.now)();
    let prefix = order.subject.key(id, "");
    let asked = match &source {
        Source::Postgres(server) => Some(*server),
        Source::Stream(_) | Source::Known(_) => None,
    };
    let (facts, feed, tap) = match source {
        Source::Postgres(server) => {
            let facts = facts(repository, &prefix, &order.subject, server).await?;
            let mut job = server.dump(&order.subject.unit);
            job.env.push(("PGAPPNAME".to_owned(), application(id)));
            let feed = Feed::Job {
                place: server.place().clone(),
                job,
            };
            (Some(facts), feed, Some(Tap::default()))
        }
        Source::Stream(feed) => (None, feed, None),
        Source::Known(feed) => (None, feed, Some(Tap::of(order.subject.kind))),
    };
    let pace = Pace::new(order.bandwidth);
    let (dumped, ended) = oneshot::channel();
    let storing = async {
        let way = Way {
            id,
            pace,
            dumped: Some(dumped),
        };
        let stored = stream::store(repository, &prefix, feed, tap, way, note).await;
        stored.map_err(BackupError::from)
    };
    // As soon as the dump has ended, which may be long before the last byte is stored.
    let checking = async {
        match (asked, &facts, ended.await) {
            (Some(server), Some(facts), Ok(())) => unchanged(server, &order.subject, facts).await,
            _ => Ok(()),
        }
    };
    // Both to their ends: what was dropped half-way could still reach the place when it had been cleared.
    let (stored, checked) = tokio::join!(storing, checking);
    let (volumes, summary) = stored?;
    checked?;
    let mut manifest = Manifest {
        format: FORMAT,
        repository: repository.id.clone(),
        subject: order.subject.clone(),
        id: id.clone(),
        host: repository.keys.host.clone(),
        snapshot_at: facts.as_ref().map_or(started_at, |facts| facts.at),
        started_at,
        ended_at: (outside.now)(),
        appliance: env!("CARGO_PKG_VERSION").to_owned(),
        image: order.image.clone(),
        server: facts.as_ref().map(|facts| facts.server.clone()),
        database: facts.as_ref().map(|facts| facts.database.clone()),
        volumes,
        globals: facts.map(|facts| facts.globals),
        plain_bytes: summary.bytes,
        plain_sha256: summary.sha256,
        counts: summary.counts,
        recipients: repository.keys.recipients.clone(),
        previous: order.previous.as_ref().map(|previous| previous.id.clone()),
        suspicious: Vec::new(),
        warnings: summary
            .uncounted
            .map(|why| format!("rows are counted only when it is restored: {why}"))
            .into_iter()
            .chain(summary.said)
            .collect(),
    };
    if let Some(previous) = &order.previous {
        manifest.suspicious = manifest.compare(previous);
    }
    manifest.suspicious.extend(order.odd.clone());
    repository.commit(&manifest).await?;
    Ok(manifest)
}

async fn facts(
    repository: &Repository,
    prefix: &str,
    subject: &Subject,
    server: &Postgres,
) -> Result<Facts, BackupError> {
    let database = server
        .database(&subject.unit)
        .await?
        .ok_or_else(|| PostgresError::NoDatabase {
            name: subject.unit.clone(),
        })?;
    let (about, at) = server.server(&subject.unit).await?;
    let roles = server.read_globals().await?;
    let sealed = stream::seal_small(repository.recipients(), roles.clone().into_bytes()).await?;
    Ok(Facts {
        roles,
        server: about,
        database,
        globals: volumes::put(&*repository.store, prefix, names::GLOBALS, sealed).await?,
        at,
    })
}

/// What was asked before the dump took its snapshot still holds after it, so it held at the snapshot.
async fn unchanged(server: &Postgres, subject: &Subject, facts: &Facts) -> Result<(), BackupError> {
    let now = server.database(&subject.unit).await?;
    let same_schema = now.is_some_and(|now| now.schema == facts.database.schema);
    if same_schema && comparable(&server.read_globals().await?) == comparable(&facts.roles) {
        return Ok(());
    }
    Err(BackupError::Changed {
        subject: subject.clone(),
    })
}

/// Without the random word that newer versions put around what they write.
fn comparable(globals: &str) -> Vec<&str> {
    let random = ["\\restrict", "\\unrestrict"];
    globals
        .lines()
        .filter(|line| !random.iter().any(|word| line.starts_with(word)))
        .collect()
}

/// How the sessions of one backup are called on the server.
pub(crate) fn application(id: &BackupId) -> String {
    format!("{} {}", crate::postgres::APPLICATION, id.tail())
}
