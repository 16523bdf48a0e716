//! PostgreSQL, through the programs of its own installation: `psql`, `pg_dump`, `pg_dumpall`, `pg_restore`.

mod databases;
mod globals;
pub mod sql;

use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::manifest::Server;
use crate::place::{self, Job, Place, PlaceError};

/// Most that a lock may be waited for, milliseconds: a backup never makes the app's migrations wait behind it for long.
const LOCK_TIMEOUT: &str = "60000";
/// How our sessions are called; a backup's have its id after it.
pub(crate) const APPLICATION: &str = "appliance backup";
/// How often and how long a session of ours is awaited that was told to go.
const ASKED: u32 = 100;
/// Between two looks.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);
/// In the place of settings that a role or a database may have and that would end or spoil what we do, or keep us
/// waiting behind somebody's lock; that as long as [`LOCK_TIMEOUT`].
const SETTINGS: &str = "-c statement_timeout=0 -c lock_timeout=60000 -c idle_in_transaction_session_timeout=0 \
                        -c default_transaction_read_only=off";
/// Tables counted with one statement.
const COUNTED_AT_ONCE: usize = 100;

/// Why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// A program failed.
    #[error(transparent)]
    Program(#[from] PlaceError),
    /// An answer of another form.
    #[error("the server's answer about {about} makes no sense: {answer:?}")]
    Answer {
        /// The question.
        about: &'static str,
        /// The answer, cut.
        answer: String,
        /// Why it makes no sense.
        #[source]
        source: serde_json::Error,
    },
    /// There is no such database.
    #[error("there is no database {name} on the server")]
    NoDatabase {
        /// Its name.
        name: String,
    },
    /// Not what is needed.
    #[error("{what}")]
    Unfit {
        /// What is wrong, and what to do.
        what: String,
    },
}

/// A server and how to reach it.
#[derive(Clone)]
pub struct Postgres {
    place: Arc<dyn Place>,
    env: Vec<(String, String)>,
}

/// A table of the connected database.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Table {
    pub(crate) name: String,
    quoted: String,
    /// Brought by an extension: its rows are partly not in the dump.
    pub(crate) extension: bool,
}

#[derive(Debug, Deserialize)]
struct ServerRow {
    version: u32,
    version_text: String,
    now: Timestamp,
    lsn: String,
    extensions: std::collections::BTreeMap<String, String>,
}

impl Postgres {
    /// The server whose programs are at `place`; `env` says how they connect (`PGUSER`, `PGHOST`, …).
    pub fn new(place: Arc<dyn Place>, mut env: Vec<(String, String)>) -> Self {
        // Nothing may ask a person, and no setting of a role or database may change what texts look like.
        env.push(("PGCONNECT_TIMEOUT".to_owned(), "30".to_owned()));
        env.push(("PGCLIENTENCODING".to_owned(), "UTF8".to_owned()));
        env.push(("PGAPPNAME".to_owned(), APPLICATION.to_owned()));
        Self { place, env }
    }

    /// Where its programs run.
    pub fn place(&self) -> &Arc<dyn Place> {
        &self.place
    }

    fn job<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Job {
        let mut job = Job::new(words);
        job.env = self.env.clone();
        job
    }

    /// A job with a session that no setting of the role or the database cuts short.
    fn session<S: Into<String>>(&self, words: impl IntoIterator<Item = S>) -> Job {
        let mut job = self.job(words);
        job.env.push(("PGOPTIONS".to_owned(), SETTINGS.to_owned()));
        job
    }

    /// Runs statements in one database; several together are one transaction.
    ///
    /// # Errors
    /// When the server cannot be reached or refuses.
    pub async fn run(&self, database: &str, statements: &str) -> Result<String, PostgresError> {
        let mut job = self.job([
            "psql",
            "-X",
            "-q",
            "-A",
            "-t",
            "-w",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
        ]);
        job.command
            .extend([sql::connection(database), "-c".to_owned(), statements.to_owned()]);
        job.env.push((
            "PGOPTIONS".to_owned(),
            format!("{SETTINGS} -c search_path= -c client_min_messages=error"),
        ));
        let ended = place::succeed(&*self.place, &job).await?;
        Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned())
    }

    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        database: &str,
        about: &'static str,
        question: &str,
    ) -> Result<T, PostgresError> {
        let answer = self.run(database, question).await?;
        let text = if answer.is_empty() { "null" } else { &answer };
        serde_json::from_str(text).map_err(|source| PostgresError::Answer {
            about,
            answer: answer.chars().take(200).collect(),
            source,
        })
    }

    /// The databases worth a backup.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn databases(&self) -> Result<Vec<String>, PostgresError> {
        let mut names: Vec<String> = self
            .ask::<Option<Vec<String>>>("postgres", "its databases", sql::DATABASES)
            .await?
            .unwrap_or_default();
        if self.ask("postgres", "its tables", sql::HAS_TABLES).await? {
            names.push("postgres".to_owned());
        }
        Ok(names)
    }

    /// Version, position, clock and extensions.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn server(&self, database: &str) -> Result<(Server, Timestamp), PostgresError> {
        let row: ServerRow = self.ask(database, "itself", sql::SERVER).await?;
        Ok((
            Server {
                version: row.version,
                version_text: row.version_text,
                lsn: row.lsn,
                extensions: row.extensions,
            },
            row.now,
        ))
    }

    /// The job that dumps a database in the custom format, uncompressed.
    pub fn dump(&self, database: &str) -> Job {
        let mut job = self.session(["pg_dump", "--format=custom", "--compress=0", "--no-password"]);
        job.command.push(format!("--lock-wait-timeout={LOCK_TIMEOUT}"));
        job.command
            .push(format!("--dbname={}", sql::connection(database)));
        job
    }

    /// The job that restores such a dump from its standard input, into a database that is there and empty.
    pub fn restore(&self, database: &str) -> Job {
        let mut job = self.session(["pg_restore", "--exit-on-error", "--no-password"]);
        job.command
            .push(format!("--dbname={}", sql::connection(database)));
        job
    }

    /// The job that lists what is in such a dump.
    pub(crate) fn contents(&self) -> Job {
        self.job(["pg_restore", "--list"])
    }

    /// The tables of a database that can hold rows.
    pub(crate) async fn tables(&self, database: &str) -> Result<Vec<Table>, PostgresError> {
        self.ask(database, "its tables", sql::TABLES).await
    }

    /// Counts rows, in the order of `tables`.
    pub(crate) async fn count(&self, database: &str, tables: &[Table]) -> Result<Vec<u64>, PostgresError> {
        let mut counts = Vec::with_capacity(tables.len());
        for some in tables.chunks(COUNTED_AT_ONCE) {
            let selects: Vec<String> = some
                .iter()
                .enumerate()
                .map(|(number, table)| {
                    format!(
                        "SELECT {number} AS number, count(*) AS rows FROM ONLY {}",
                        table.quoted
                    )
                })
                .collect();
            let question = format!(
                "SELECT json_agg(rows ORDER BY number) FROM ({}) AS counted",
                selects.join(" UNION ALL ")
            );
            counts.extend(self.ask::<Vec<u64>>(database, "its rows", &question).await?);
        }
        Ok(counts)
    }

    /// Ends every session of ours that a crash left behind, and waits until they are gone: none may still create or rename.
    ///
    /// # Errors
    /// When the server cannot be asked, or a session does not go.
    pub(crate) async fn quiet(&self) -> Result<(), PostgresError> {
        let statement = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE application_name LIKE '{APPLICATION}%' AND pid <> pg_backend_pid()"
        );
        for _ in 0..ASKED {
            if self.run("postgres", &statement).await? == "0" {
                return Ok(());
            }
            // The server has no event for the end of another session.
            tokio::time::sleep(PAUSE).await;
        }
        Err(PostgresError::Unfit {
            what: "a session of an interrupted restore does not end; look at pg_stat_activity".to_owned(),
        })
    }

    /// Ends the sessions of programs that carry this application name: they would hold a snapshot.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn end_sessions(&self, application: &str) -> Result<(), PostgresError> {
        let statement = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = {}",
            sql::literal(application)
        );
        self.run("postgres", &statement).await.map(|_| ())
    }
}
