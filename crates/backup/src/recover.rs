//! Settles what a crash interrupted, and removes what no backup needs.

use crate::backup::application;
use crate::journal::{Entry, Intent, Journal};
use crate::names::{self, MANIFEST, Subject};
use crate::postgres::{Postgres, PostgresError};
use crate::repository::{Catalogue, Repository, RepositoryError};
use crate::retention::Plan;
use crate::spool;
use crate::store::{StoreError, StoreErrorKind};

/// Why it cannot be settled yet.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server failed.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The place of the backups cannot be listed.
    #[error(transparent)]
    Repository(RepositoryError),
    /// The journal failed.
    #[error("cannot write the journal of backups")]
    Journal(#[source] std::io::Error),
    /// What waited on the disk cannot be removed.
    #[error("cannot remove what waited on the disk")]
    Spool(#[source] std::io::Error),
    /// It is about what is stored, and nobody said where.
    #[error("the place of the backups of {subject} is needed")]
    NoPlace {
        /// Whose.
        subject: String,
    },
    /// It is no PostgreSQL server's.
    #[error("the server of {subject} is settled by its own commands")]
    Foreign {
        /// Whose.
        subject: String,
    },
    /// There is no server to ask.
    #[error("the server of {subject} does not run")]
    NoServer {
        /// Whose.
        subject: String,
    },
}

/// Settles one interrupted operation; `server` is that of its subject, if it has one and it runs, and `repository` what
/// [`Intent::is_about_what_is_stored`] needs.
///
/// # Errors
/// When it cannot be settled now; the entry stays and is tried again at the next start.
pub async fn settle(
    repository: Option<&Repository>,
    server: Option<&Postgres>,
    entry: Entry,
) -> Result<String, RecoverError> {
    let place = || {
        repository.ok_or_else(|| RecoverError::NoPlace {
            subject: entry.intent.subject().to_string(),
        })
    };
    let need = || {
        server.ok_or_else(|| RecoverError::NoServer {
            subject: entry.intent.subject().to_string(),
        })
    };
    let said = match &entry.intent {
        Intent::Backup { id, .. } => {
            spool::forget(&entry.intent).map_err(RecoverError::Spool)?;
            if let Some(server) = server {
                server.place().release_pipes();
                // Best effort: without its reader the program ends by itself at its next write.
                let _not_reachable = server.end_sessions(&application(id)).await;
            }
            backup(place()?, &entry.intent).await?
        }
        Intent::Restore { side, mark, .. } => {
            let server = need()?;
            server.place().release_pipes();
            server.quiet().await?;
            match server.drop_marked(side, mark).await? {
                true => format!("the half restored database {side} is dropped"),
                false => format!("a restore into {side} had not begun"),
            }
        }
        Intent::Swap {
            live,
            side,
            before,
            mark,
            ..
        } => {
            let server = need()?;
            server.quiet().await?;
            server.reopen(live).await?;
            if server.exists(before).await? {
                format!("{live} had been swapped; the former one is {before}")
            } else {
                if let Some(mark) = mark {
                    server.drop_marked(side, mark).await?;
                }
                format!("{live} had not been swapped and is as it was")
            }
        }
        Intent::TakeOver { subject } => {
            return Err(RecoverError::Foreign {
                subject: subject.to_string(),
            });
        }
        Intent::Prune { keys, .. } => {
            for key in keys {
                place()?.store.delete(key).await?;
            }
            format!("{} objects of pruned backups are removed", keys.len())
        }
    };
    entry.done().map_err(RecoverError::Journal)?;
    Ok(said)
}

/// Removes what a backup without a manifest has stored; one with a manifest is left as it is.
///
/// # Errors
/// When the store fails.
pub(crate) async fn backup(repository: &Repository, intent: &Intent) -> Result<String, StoreError> {
    let Intent::Backup {
        subject, id, uploads, ..
    } = intent
    else {
        return Ok(String::new());
    };
    let store = &repository.store;
    if store.size(&subject.key(id, MANIFEST)).await?.is_some() {
        return Ok(format!("the backup {id} was complete"));
    }
    for (key, upload) in uploads {
        match store.abort(key, upload).await {
            Ok(()) => {}
            Err(error) if error.kind == StoreErrorKind::Outage => return Err(error),
            // One that was completed is gone, and some stores answer that with a refusal.
            Err(error) => tracing::debug!(
                error = &error as &dyn std::error::Error,
                "an upload is not aborted"
            ),
        }
    }
    // Under an id that is nobody else's.
    let left = store.list(&subject.key(id, "")).await?;
    for object in &left {
        store.delete(&object.key).await?;
    }
    Ok(format!(
        "the unfinished backup {id} is removed ({} objects)",
        left.len()
    ))
}

/// How old something unfinished is before it is taken for rubbish: no backup takes that long.
pub const STALE: jiff::SignedDuration = jiff::SignedDuration::from_hours(48);

/// Removes what crashes of forgotten hosts left below `prefix`: uploads that were begun and backups without a manifest,
/// both older than [`STALE`]. What does not carry a name of ours is never touched. Says how many things went.
///
/// # Errors
/// When the store fails.
pub async fn sweep(
    repository: &Repository,
    prefix: &str,
    now: jiff::Timestamp,
) -> Result<usize, RecoverError> {
    let store = &repository.store;
    let old = |since: jiff::Timestamp| now.duration_since(since) > STALE;
    let mut count = 0;
    for upload in store.unfinished(prefix).await? {
        // A file's upload lies beside its key under the upload's own name.
        let beside = upload.key.strip_suffix(&upload.upload).unwrap_or(&upload.key);
        let ours =
            Subject::of_key(&upload.key).or_else(|| Subject::of_key(&format!("{beside}{}", names::MANIFEST)));
        // Not every store tells truly when an upload began; the backup's own id does.
        if ours.is_some_and(|(_, id, _)| old(id.time())) && old(upload.since) {
            store.abort(&upload.key, &upload.upload).await?;
            count += 1;
        }
    }
    let catalogue = repository
        .catalogue(prefix)
        .await
        .map_err(RecoverError::Repository)?;
    for left in catalogue
        .unusable
        .iter()
        .filter(|left| left.uncommitted && old(left.id.time()))
    {
        // Its manifest may have come since the list was made.
        if store.size(&left.subject.key(&left.id, MANIFEST)).await?.is_some() {
            continue;
        }
        for key in &left.keys {
            store.delete(key).await?;
        }
        count += 1;
    }
    Ok(count)
}

/// Carries a plan out: manifests first, so that a half-done one never shows a broken backup.
///
/// # Errors
/// When the store or the journal fails; the rest is removed at the next start.
pub async fn prune(
    repository: &Repository,
    journal: &Journal,
    catalogue: &Catalogue,
    plan: &Plan,
    word: &str,
) -> Result<usize, RecoverError> {
    if plan.frozen.is_some() || plan.remove.is_empty() {
        return Ok(0);
    }
    let mut manifests = Vec::new();
    let mut objects = Vec::new();
    let mut subject = None;
    for found in &catalogue.backups {
        let manifest = &found.manifest;
        if !plan.remove.contains(&manifest.id) {
            continue;
        }
        manifests.push(manifest.subject.key(&manifest.id, MANIFEST));
        objects.extend(found.beside.iter().cloned());
        objects.extend(
            manifest
                .objects()
                .map(|object| manifest.subject.key(&manifest.id, &object.name)),
        );
        subject = Some(manifest.subject.clone());
    }
    let Some(subject) = subject else { return Ok(0) };
    let count = manifests.len();
    manifests.append(&mut objects);
    let intent = Intent::Prune {
        subject,
        keys: manifests,
    };
    let entry = journal
        .begin(&format!("prune-{word}"), intent)
        .map_err(RecoverError::Journal)?;
    settle(Some(repository), None, entry).await?;
    Ok(count)
}
