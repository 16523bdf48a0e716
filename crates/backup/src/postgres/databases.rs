//! Databases as a whole: their properties, side databases, and two that change places.

use serde::Deserialize;

use super::globals::for_database;
use super::{Postgres, PostgresError, sql};
use crate::manifest::Database;

/// Begins the comment of every database that we made or put aside; no other is ever dropped.
pub(super) const MARK: &str = "appliance: ";

#[derive(Debug, Deserialize)]
struct Row {
    row: serde_json::Map<String, serde_json::Value>,
    owner: String,
    encoding: String,
    comment: Option<String>,
    grants: Vec<Grant>,
    has_acl: bool,
    settings: Vec<Setting>,
}

#[derive(Debug, Deserialize)]
struct Grant {
    privilege: String,
    grantable: bool,
    grantee: String,
}

#[derive(Debug, Deserialize)]
struct Setting {
    role: Option<String>,
    setting: String,
}

/// Parameters whose value is a list of names, each quoted on its own.
const LISTS: &[&str] = &[
    "search_path",
    "temp_tablespaces",
    "local_preload_libraries",
    "session_preload_libraries",
];

impl Postgres {
    /// The properties of a database; `None` if there is none.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn database(&self, name: &str) -> Result<Option<Database>, PostgresError> {
        let Some(row): Option<Row> = self.ask("postgres", "a database", &sql::database(name)).await? else {
            return Ok(None);
        };
        let text = |key: &str| {
            row.row
                .get(key)
                .and_then(serde_json::Value::as_str)
                .map(str::to_owned)
        };
        let mut statements = vec![];
        if row.has_acl {
            statements.push("REVOKE ALL ON DATABASE %DB% FROM PUBLIC".to_owned());
        }
        for grant in &row.grants {
            let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
            statements.push(format!(
                "GRANT {} ON DATABASE %DB% TO {}{option}",
                grant.privilege, grant.grantee
            ));
        }
        for Setting { role, setting } in &row.settings {
            let Some((name, value)) = setting.split_once('=') else {
                continue;
            };
            let value = if LISTS.contains(&name) {
                // Stored as it was written, quotes included.
                value.to_owned()
            } else {
                sql::literal(value)
            };
            let whose = match role {
                Some(role) => format!("ROLE {role} IN DATABASE %DB%"),
                None => "DATABASE %DB%".to_owned(),
            };
            statements.push(format!("ALTER {whose} SET {} TO {value}", sql::ident(name)));
        }
        if let Some(comment) = row
            .comment
            .as_deref()
            .filter(|comment| !comment.starts_with(MARK))
        {
            statements.push(format!("COMMENT ON DATABASE %DB% IS {}", sql::literal(comment)));
        }
        let schema = match row.row.get("datallowconn").and_then(serde_json::Value::as_bool) {
            Some(true) => self.ask(name, "its schema", sql::SCHEMA).await?,
            _ => String::new(),
        };
        Ok(Some(Database {
            owner: row.owner,
            encoding: row.encoding,
            collate: text("datcollate").unwrap_or_default(),
            ctype: text("datctype").unwrap_or_default(),
            provider: text("datlocprovider"),
            locale: text("datlocale").or_else(|| text("daticulocale")),
            statements,
            schema,
        }))
    }

    /// Makes an empty database like `like`, with a mark by which it is known as ours.
    ///
    /// # Errors
    /// When the server refuses: the name is taken, the locale is unknown, the disk is full.
    pub async fn create(&self, name: &str, like: &Database, mark: &str) -> Result<(), PostgresError> {
        let mut statement = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            sql::ident(name),
            sql::literal(&like.encoding),
            sql::literal(&like.collate),
            sql::literal(&like.ctype)
        );
        match (like.provider.as_deref(), &like.locale) {
            (Some("i"), Some(locale)) => {
                statement.push_str(&format!(
                    " LOCALE_PROVIDER icu ICU_LOCALE {}",
                    sql::literal(locale)
                ));
            }
            (Some("b"), Some(locale)) => {
                statement.push_str(&format!(
                    " LOCALE_PROVIDER builtin BUILTIN_LOCALE {}",
                    sql::literal(locale)
                ));
            }
            (Some("c"), _) => statement.push_str(" LOCALE_PROVIDER libc"),
            _ => {}
        }
        self.run("postgres", &statement).await?;
        self.mark(name, mark).await
    }

    /// Says in a database's comment whose it is.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn mark(&self, name: &str, mark: &str) -> Result<(), PostgresError> {
        let statement = format!(
            "COMMENT ON DATABASE {} IS {}",
            sql::ident(name),
            sql::literal(&format!("{MARK}{mark}"))
        );
        self.run("postgres", &statement).await.map(|_| ())
    }

    /// Owner, grants and settings, as they were.
    ///
    /// # Errors
    /// When the server refuses, as when a role is missing.
    pub async fn dress(&self, name: &str, as_it_was: &Database) -> Result<(), PostgresError> {
        let mut statements = vec![format!(
            "ALTER DATABASE {} OWNER TO {}",
            sql::ident(name),
            sql::ident(&as_it_was.owner)
        )];
        statements.extend(
            as_it_was
                .statements
                .iter()
                // The comment is our mark until the database is in its place.
                .filter(|statement| !statement.starts_with("COMMENT "))
                .map(|statement| for_database(statement, name)),
        );
        self.run("postgres", &statements.join(";\n")).await.map(|_| ())
    }

    /// Names and marks of the databases that carry a mark of ours.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn marked(&self) -> Result<Vec<(String, String)>, PostgresError> {
        let question = "SELECT coalesce(json_agg(json_build_array(datname, substr(comment, 12)) ORDER BY datname), '[]') \
            FROM (SELECT datname, shobj_description(oid, 'pg_database') AS comment FROM pg_database) AS d \
            WHERE comment LIKE 'appliance: %'";
        self.ask("postgres", "its databases", question).await
    }

    /// Whether there is a database of this name.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn exists(&self, name: &str) -> Result<bool, PostgresError> {
        let question = format!(
            "SELECT to_json(EXISTS (SELECT FROM pg_database WHERE datname = {}))",
            sql::literal(name)
        );
        self.ask("postgres", "its databases", &question).await
    }

    /// Bytes that a database takes on the disk of the server; 0 for one that is not there.
    ///
    /// # Errors
    /// When the server cannot be asked.
    pub async fn size(&self, name: &str) -> Result<u64, PostgresError> {
        let question = format!(
            "SELECT to_json(coalesce(sum(pg_database_size(oid)), 0)) FROM pg_database WHERE datname = {}",
            sql::literal(name)
        );
        self.ask("postgres", "the size of a database", &question).await
    }

    /// Drops a database that carries exactly this mark, or was made for it and not marked yet: then it has the mark's last
    /// word, which is random, in its name. Any other is left alone. One that is gone is no error.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn drop_marked(&self, name: &str, mark: &str) -> Result<bool, PostgresError> {
        let marked = self.marked().await?;
        let word = mark.rsplit(' ').next().unwrap_or(mark);
        let ours = match marked.iter().find(|(one, _)| one == name) {
            Some((_, its)) => its == mark,
            None => word.len() == 10 && name.ends_with(word) && self.exists(name).await?,
        };
        if !ours {
            return Ok(false);
        }
        self.disconnect(name).await?;
        self.run(
            "postgres",
            &format!("DROP DATABASE IF EXISTS {}", sql::ident(name)),
        )
        .await?;
        Ok(true)
    }

    /// Ends every session in a database.
    async fn disconnect(&self, name: &str) -> Result<(), PostgresError> {
        let statement = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid()",
            sql::literal(name)
        );
        self.run("postgres", &statement).await.map(|_| ())
    }

    /// Lets `side` take the place of `live`, which is called `before` from then on: both or neither.
    ///
    /// `comment` is the statement that gives the database its own comment in place of our mark.
    /// Nobody gets into either meanwhile. When there is no `live`, `side` just takes the name.
    ///
    /// # Errors
    /// When the server refuses; then both are as they were, after [`Postgres::reopen`].
    pub async fn swap(
        &self,
        live: &str,
        side: &str,
        before: &str,
        mark: &str,
        comment: Option<&str>,
    ) -> Result<(), PostgresError> {
        let replaced = self.exists(live).await?;
        if replaced {
            self.run(
                "postgres",
                &format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", sql::ident(live)),
            )
            .await?;
            self.disconnect(live).await?;
        }
        self.disconnect(side).await?;
        // Sessions that were told to go need a moment; the server itself waits five seconds for them.
        let mut statements = vec![];
        if replaced {
            statements.push(format!(
                "ALTER DATABASE {} RENAME TO {}",
                sql::ident(live),
                sql::ident(before)
            ));
        }
        statements.push(format!(
            "ALTER DATABASE {} RENAME TO {}",
            sql::ident(side),
            sql::ident(live)
        ));
        statements.push(comment.map_or_else(
            || format!("COMMENT ON DATABASE {} IS NULL", sql::ident(live)),
            |comment| for_database(comment, live),
        ));
        if replaced {
            statements.push(format!(
                "ALTER DATABASE {} ALLOW_CONNECTIONS true",
                sql::ident(before)
            ));
            statements.push(format!(
                "COMMENT ON DATABASE {} IS {}",
                sql::ident(before),
                sql::literal(&format!("{MARK}{mark}"))
            ));
        }
        // One call with several statements is one transaction.
        self.run("postgres", &statements.join(";\n")).await.map(|_| ())
    }

    /// Lets people in again after a swap that did not happen.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn reopen(&self, live: &str) -> Result<(), PostgresError> {
        if !self.exists(live).await? {
            return Ok(());
        }
        self.run(
            "postgres",
            &format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", sql::ident(live)),
        )
        .await
        .map(|_| ())
    }
}
