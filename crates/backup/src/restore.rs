//! Back into a server: a side database, checks, and only then a swap.
//!
//! ```text
//!   noted ─► side database ─► filled ─► compared ─┬─► kept beside
//!     │            │             │          │     ├─► renamed to a new name
//!     └────────────┴─────────────┴──────────┴──►  └─► noted ─► swapped with the live one: one transaction
//!        failed or interrupted: the side database is dropped, the live one was never touched
//! ```

mod table;

pub use self::table::Part;

use std::io;

use jiff::Timestamp;

use crate::backup::Outside;
use crate::journal::{Intent, Journal};
use crate::manifest::{DrillResult, Manifest};
use crate::names;
use crate::postgres::{Postgres, PostgresError, sql};
use crate::repository::{Repository, RepositoryError};
use crate::stream::{self, StreamError};
use crate::tap::Tap;

/// Bytes of a name that PostgreSQL keeps.
const NAME_LIMIT: usize = 63;
/// Indexes that a drill has looked at closely.
const INDEXES: usize = 200;
/// How often a server is asked to open a database again that a failed swap had closed.
const REOPENED: u32 = 60;
/// Between two times.
const REOPEN_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);
/// How long the database that was replaced is kept.
pub const UNDO: jiff::SignedDuration = jiff::SignedDuration::from_hours(24);

/// Where the restored data goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Beside the live database, under a name of our choice.
    Beside,
    /// Into a new database of this name.
    Into(String),
    /// In the place of the live database, which is kept for a day.
    Swap,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The database that has it now.
    pub database: String,
    /// The database that was replaced, under its new name.
    pub before: Option<String>,
    /// How long the data took, milliseconds.
    pub millis: u64,
    /// Rows that were compared.
    pub rows: u64,
    /// Tables that were compared.
    pub tables: u64,
    /// Roles that were made.
    pub roles: Vec<String>,
    /// What to know.
    pub warnings: Vec<String>,
}

/// Why nothing was restored. The live database is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The note cannot be written, so nothing was begun.
    #[error("cannot write the journal of backups")]
    Journal(#[source] io::Error),
    /// The server failed.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    /// The content failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The repository failed.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The backup is not of a PostgreSQL database.
    #[error("{id} is not a backup of a PostgreSQL database")]
    Kind {
        /// Which.
        id: String,
    },
    /// It does not fit the server.
    #[error("the backup is of PostgreSQL {of}, the server is {server}: an older server cannot read it")]
    Older {
        /// Version of the backup's server.
        of: String,
        /// Version of this one.
        server: String,
    },
    /// What arrived is not what was backed up.
    #[error("what was restored is not what was backed up: {what}")]
    Differs {
        /// How it differs.
        what: String,
    },
    /// The backup has no such table.
    #[error("{why}")]
    Table {
        /// What was looked for, and what there is.
        why: String,
    },
    /// Its rows would fill the disk; none was brought.
    #[error(
        "the disk of the server has {free} bytes free, and the rows of {table} need about {needed}; free some, or restore on \
         another host"
    )]
    Room {
        /// The table.
        table: String,
        /// Bytes.
        needed: u64,
        /// Bytes.
        free: u64,
    },
    /// The name is taken.
    #[error("there is a database {name} already")]
    Taken {
        /// The name.
        name: String,
    },
    /// A swap did not happen, and the live database lets nobody in.
    #[error(
        "the swap did not happen and {live} is still closed; it is opened again as soon as the server answers"
    )]
    Closed {
        /// The live database.
        live: String,
        /// Why it could not be opened.
        #[source]
        source: PostgresError,
    },
    /// There is nothing to undo.
    #[error(
        "there is no database that a restore of {live} replaced; what a restore replaced is kept for a day"
    )]
    NothingToUndo {
        /// The live database.
        live: String,
    },
}

/// Restores a backup.
///
/// # Errors
/// When anything at all went wrong; the live database is then as it was, and the side database gone.
pub async fn restore(
    repository: &Repository,
    journal: &Journal,
    server: &Postgres,
    manifest: &Manifest,
    target: &Target,
    table: Option<Part<'_>>,
    outside: Outside,
) -> Result<Restored, RestoreError> {
    let live = &manifest.subject.unit;
    let word = outside.word();
    let side = derived(live, "restore", &word);
    let mark = format!("restore {word}");
    if let Target::Into(name) = target
        && server.exists(name).await?
    {
        return Err(RestoreError::Taken { name: name.clone() });
    }
    let intent = Intent::Restore {
        subject: manifest.subject.clone(),
        side: side.clone(),
        mark: mark.clone(),
    };
    let mut entry = journal
        .begin(&format!("restore-{word}"), intent)
        .map_err(RestoreError::Journal)?;
    let filled = fill(repository, server, manifest, &side, &mark, table, outside).await;
    let mut restored = match filled {
        Ok(restored) => restored,
        Err(error) => {
            match server.drop_marked(&side, &mark).await {
                Ok(_) => entry.done().map_err(RestoreError::Journal)?,
                Err(left) => tracing::warn!(
                    error = &left as &dyn std::error::Error,
                    "{side} is dropped at the next run"
                ),
            }
            return Err(error);
        }
    };
    match target {
        Target::Beside => restored.database.clone_from(&side),
        Target::Into(name) => {
            let statements = format!(
                "ALTER DATABASE {} RENAME TO {name};\nCOMMENT ON DATABASE {name} IS NULL",
                sql::ident(&side),
                name = sql::ident(name)
            );
            server.run("postgres", &statements).await?;
            restored.database.clone_from(name);
        }
        Target::Swap => {
            let before = derived(live, "before", &moment((outside.now)(), outside));
            let replaced = server.database(live).await?;
            if let Some(replaced) = &replaced {
                server.dress(&side, replaced).await?;
                restored.before = Some(before.clone());
            }
            let intent = Intent::Swap {
                subject: manifest.subject.clone(),
                live: live.clone(),
                side: side.clone(),
                before: before.clone(),
                mark: Some(mark.clone()),
            };
            entry.proceed(intent).map_err(RestoreError::Journal)?;
            let comment = comment_of(replaced.as_ref().or(manifest.database.as_ref()));
            swap(server, live, &side, &before, (outside.now)(), comment.as_deref()).await?;
            restored.database.clone_from(live);
        }
    }
    if *target == Target::Beside {
        server.mark(&side, &format!("kept {word}")).await?;
    }
    entry.done().map_err(RestoreError::Journal)?;
    Ok(restored)
}

fn comment_of(database: Option<&crate::manifest::Database>) -> Option<String> {
    database?
        .statements
        .iter()
        .find(|statement| statement.starts_with("COMMENT "))
        .cloned()
}

async fn swap(
    server: &Postgres,
    live: &str,
    side: &str,
    before: &str,
    now: Timestamp,
    comment: Option<&str>,
) -> Result<(), RestoreError> {
    let mark = format!("before {now} {live}");
    let Err(failed) = server.swap(live, side, before, &mark, comment).await else {
        return Ok(());
    };
    // A server that was started again takes a while until it answers.
    for _ in 1..REOPENED {
        if server.reopen(live).await.is_ok() {
            return Err(failed.into());
        }
        tokio::time::sleep(REOPEN_PAUSE).await;
    }
    match server.reopen(live).await {
        Ok(()) => Err(failed.into()),
        Err(source) => Err(RestoreError::Closed {
            live: live.to_owned(),
            source,
        }),
    }
}

/// The databases of which one is kept that a restore replaced.
///
/// # Errors
/// When the server cannot be asked.
pub async fn undoable(server: &Postgres) -> Result<std::collections::BTreeSet<String>, PostgresError> {
    let marked = server.marked().await?;
    let whose = |(_, mark): &(String, String)| Some(replaced(mark)?.1.to_owned());
    Ok(marked.iter().filter_map(whose).collect())
}

/// Lets the database that the last restore replaced take its place again; the restored one is kept for a day.
///
/// # Errors
/// When there is none, or the server refuses; then everything is as it was.
pub async fn undo(
    journal: &Journal,
    server: &Postgres,
    subject: &names::Subject,
    outside: Outside,
) -> Result<Restored, RestoreError> {
    let live = &subject.unit;
    let mut former: Vec<(Timestamp, String)> = server
        .marked()
        .await?
        .into_iter()
        .filter_map(|(name, mark)| {
            let (at, whose) = replaced(&mark)?;
            (whose == live).then_some((at, name))
        })
        .collect();
    former.sort();
    let Some((_, side)) = former.pop() else {
        return Err(RestoreError::NothingToUndo { live: live.clone() });
    };
    let now = (outside.now)();
    let before = derived(live, "undone", &moment(now, outside));
    let intent = Intent::Swap {
        subject: subject.clone(),
        live: live.clone(),
        side: side.clone(),
        before: before.clone(),
        mark: None,
    };
    let entry = journal
        .begin(&format!("undo-{}", outside.word()), intent)
        .map_err(RestoreError::Journal)?;
    let comment = comment_of(server.database(live).await?.as_ref());
    swap(server, live, &side, &before, now, comment.as_deref()).await?;
    entry.done().map_err(RestoreError::Journal)?;
    Ok(Restored {
        database: live.clone(),
        before: Some(before),
        millis: 0,
        rows: 0,
        tables: 0,
        roles: Vec::new(),
        warnings: Vec::new(),
    })
}

/// When and whose, of a database that was replaced.
fn replaced(mark: &str) -> Option<(Timestamp, &str)> {
    let (at, live) = mark.strip_prefix("before ")?.split_once(' ')?;
    Some((at.parse().ok()?, live))
}

/// Drops databases that were replaced more than a day ago.
///
/// # Errors
/// When the server refuses.
pub async fn forget_replaced(server: &Postgres, now: Timestamp) -> Result<Vec<String>, PostgresError> {
    let mut dropped = Vec::new();
    for (name, mark) in server.marked().await? {
        if replaced(&mark).is_some_and(|(at, _)| now.duration_since(at) > UNDO)
            && server.drop_marked(&name, &mark).await?
        {
            dropped.push(name);
        }
    }
    Ok(dropped)
}

/// Restores a backup into a throw-away server and compares everything.
///
/// # Errors
/// When it does not restore, or to something else: then it is no good.
pub async fn drill(
    repository: &Repository,
    scratch: &Postgres,
    manifest: &Manifest,
    outside: Outside,
) -> Result<DrillResult, RestoreError> {
    let word = outside.word();
    let side = derived(&manifest.subject.unit, "drill", &word);
    let restored = fill(
        repository,
        scratch,
        manifest,
        &side,
        &format!("drill {word}"),
        None,
        outside,
    )
    .await?;
    let result = DrillResult {
        repository: repository.id.clone(),
        subject: manifest.subject.clone(),
        id: manifest.id.clone(),
        at: (outside.now)(),
        restore_ms: restored.millis,
        rows: restored.rows,
        tables: restored.tables,
        indexes: indexes(scratch, &side).await?,
    };
    repository.verified(&result).await?;
    Ok(result)
}

/// Has the server look into its B-trees; `None` where it lacks the means.
async fn indexes(server: &Postgres, database: &str) -> Result<Option<u64>, RestoreError> {
    if server
        .run(database, "CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA public")
        .await
        .is_err()
    {
        return Ok(None);
    }
    let question = format!(
        "SELECT to_json(count(public.bt_index_check(index => i.indexrelid))) FROM (SELECT indexrelid FROM pg_index \
         JOIN pg_class c ON c.oid = indexrelid JOIN pg_am a ON a.oid = c.relam \
         WHERE a.amname = 'btree' AND c.relkind = 'i' AND c.relpersistence = 'p' AND indisvalid \
         ORDER BY c.relpages DESC LIMIT {INDEXES}) AS i"
    );
    Ok(Some(server.ask(database, "its indexes", &question).await?))
}

/// Makes a side database and fills and checks it.
async fn fill(
    repository: &Repository,
    server: &Postgres,
    manifest: &Manifest,
    side: &str,
    mark: &str,
    table: Option<Part<'_>>,
    outside: Outside,
) -> Result<Restored, RestoreError> {
    let (Some(database), Some(of)) = (&manifest.database, &manifest.server) else {
        return Err(RestoreError::Kind {
            id: manifest.id.to_string(),
        });
    };
    let (here, _) = server.server("postgres").await?;
    if here.version / 10_000 < of.version / 10_000 {
        return Err(RestoreError::Older {
            of: of.version_text.clone(),
            server: here.version_text,
        });
    }
    let mut warnings = Vec::new();
    let roles = match &manifest.globals {
        Some(globals) => {
            let text = stream::read_small(repository, manifest, globals).await?;
            server.missing_roles(&String::from_utf8_lossy(&text)).await?
        }
        None => Vec::new(),
    };
    server.create(side, database, mark).await?;
    server.dress(side, database).await?;
    let begun = (outside.now)();
    let millis = || (outside.now)().duration_since(begun).as_millis();
    let (millis, tables, rows) = if let Some(table) = table {
        let (tables, rows, unsure) =
            table::fill(repository, server, manifest, side, mark_word(mark), table).await?;
        warnings.extend(unsure);
        let millis = millis();
        warnings.push(table::LEFT_OUT.to_owned());
        server.run(side, "ANALYZE").await?;
        (millis, tables, rows)
    } else {
        let tap = manifest.counts.as_ref().map(|_| Tap::default());
        let (job, place) = (server.restore(side), server.place());
        stream::replay(repository, manifest, place, job, tap, mark_word(mark), false).await?;
        let millis = millis();
        // Both read everything there is: at the same time it is read once.
        let (compared, analyzed) = tokio::join!(compare(server, side, manifest), server.run(side, "ANALYZE"));
        let (tables, rows) = compared?;
        let schema: String = server.ask(side, "its schema", sql::SCHEMA).await?;
        if schema != database.schema {
            let what = "the schema differs".to_owned();
            // Another major version may spell the same thing in another way.
            if here.version / 10_000 == of.version / 10_000 && !database.schema.is_empty() {
                return Err(RestoreError::Differs { what });
            }
            warnings.push(what);
        }
        analyzed?;
        (millis, tables, rows)
    };
    let invalid: Vec<String> = server.ask(side, "its indexes", sql::INVALID_INDEXES).await?;
    if !invalid.is_empty() {
        warnings.push(format!("indexes that are not usable: {}", invalid.join(", ")));
    }
    Ok(Restored {
        database: side.to_owned(),
        before: None,
        millis: u64::try_from(millis).unwrap_or(0),
        rows,
        tables,
        roles,
        warnings,
    })
}

fn mark_word(mark: &str) -> &str {
    mark.rsplit(' ').next().unwrap_or(mark)
}

/// Compares the rows of each table with the manifest; returns tables and rows.
async fn compare(server: &Postgres, side: &str, manifest: &Manifest) -> Result<(u64, u64), RestoreError> {
    let tables = server.tables(side).await?;
    let counts = server.count(side, &tables).await?;
    let differs = |what: String| Err(RestoreError::Differs { what });
    let Some(expected) = &manifest.counts else {
        return Ok((tables.len() as u64, counts.iter().sum()));
    };
    let mut seen = 0;
    let mut rows = 0;
    for (table, count) in tables.iter().zip(&counts) {
        let Some(wanted) = expected.tables.get(&table.name) else {
            if *count > 0 && !table.extension {
                return differs(format!(
                    "{} has {count} rows, the backup has no such table",
                    table.name
                ));
            }
            continue;
        };
        // An extension brings rows of its own, which are not in the dump.
        let good = if table.extension {
            *count >= wanted.rows
        } else {
            *count == wanted.rows
        };
        if !good {
            return differs(format!(
                "{} has {count} rows, the backup {}",
                table.name, wanted.rows
            ));
        }
        seen += 1;
        rows += wanted.rows;
    }
    if let Some(missing) = expected
        .tables
        .keys()
        .find(|name| !tables.iter().any(|table| table.name == **name))
    {
        return differs(format!("the table {missing} is missing"));
    }
    let objects: u64 = server
        .ask(
            side,
            "its large objects",
            "SELECT count(*) FROM pg_largeobject_metadata",
        )
        .await?;
    if objects != expected.large_objects {
        return differs(format!(
            "there are {objects} large objects, the backup has {}",
            expected.large_objects
        ));
    }
    Ok((seen, rows))
}

/// A time that people can read, made unique: two swaps may fall into one second.
fn moment(at: Timestamp, outside: Outside) -> String {
    format!("{}_{}", names::stamp(at).to_lowercase(), outside.word())
}

/// A name made of a database's, what it is for and a word, short enough for PostgreSQL.
fn derived(live: &str, what: &str, word: &str) -> String {
    let room = NAME_LIMIT - what.len() - word.len() - 2;
    let mut end = live.len().min(room);
    while !live.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}_{what}_{word}", live.get(..end).unwrap_or_default())
}
