//! Roles and tablespaces: what a server has beside its databases.

use std::collections::BTreeSet;

use super::{Postgres, PostgresError, sql};
use crate::place::{self, Job};

impl Postgres {
    /// The job that writes roles, their passwords and memberships, and tablespaces, as SQL.
    pub fn globals(&self) -> Job {
        self.session(["pg_dumpall", "--globals-only", "--no-password"])
    }

    /// Creates the roles of a dump of globals that the server does not have. Those it has are left as they are.
    ///
    /// # Errors
    /// When the server cannot be reached, or refuses to create a role.
    pub async fn missing_roles(&self, globals: &str) -> Result<Vec<String>, PostgresError> {
        let there: Vec<String> = self
            .ask(
                "postgres",
                "its roles",
                "SELECT json_agg(quote_ident(rolname)) FROM pg_roles",
            )
            .await?;
        let (missing, statements) = missing(globals, &there.into_iter().collect());
        if !statements.is_empty() {
            self.run("postgres", &statements.join("\n")).await?;
        }
        Ok(missing)
    }

    /// Reads the globals as text.
    ///
    /// # Errors
    /// When the program fails.
    pub async fn read_globals(&self) -> Result<String, PostgresError> {
        let ended = place::succeed(&*self.place, &self.globals()).await?;
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }
}

/// The roles that are not `there` (as the server quotes names), and the statements that bring them.
fn missing(globals: &str, there: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    let mut wanted = BTreeSet::new();
    let mut statements = Vec::new();
    for line in globals.lines() {
        if let Some(name) = line
            .strip_prefix("CREATE ROLE ")
            .and_then(|rest| rest.strip_suffix(';'))
        {
            if !there.contains(name) {
                wanted.insert(name.to_owned());
                statements.push(line.to_owned());
            }
        } else if let Some(rest) = line.strip_prefix("ALTER ROLE ") {
            // Settings for one database only (`IN DATABASE`) come with the database.
            let ours = wanted.iter().any(|name| {
                rest.strip_prefix(name.as_str())
                    .is_some_and(|after| after.starts_with(' '))
            });
            if ours && !rest.contains(" IN DATABASE ") {
                statements.push(line.to_owned());
            }
        } else if let Some(rest) = line.strip_prefix("GRANT ") {
            // `GRANT group TO member …`: of a role that was missing, or to one.
            let Some((group, rest)) = rest.split_once(" TO ") else {
                continue;
            };
            let member = [" WITH ", " GRANTED BY ", ";"]
                .iter()
                .filter_map(|end| rest.find(end))
                .min()
                .and_then(|end| rest.get(..end))
                .unwrap_or(rest);
            if wanted.contains(group) || wanted.contains(member) {
                // The grantor of the old server may be somebody who may not grant here.
                let statement = match line.find(" GRANTED BY ") {
                    Some(at) => format!("{};", line.get(..at).unwrap_or_default()),
                    None => line.to_owned(),
                };
                statements.push(statement);
            }
        }
    }
    (wanted.into_iter().collect(), statements)
}

/// A statement with `%DB%` for the database's name.
pub(super) fn for_database(statement: &str, database: &str) -> String {
    statement.replace("%DB%", &sql::ident(database))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_are_there_keep_their_password_and_new_ones_come_whole() {
        let globals = "--\nCREATE ROLE app;\nALTER ROLE app WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$x';\n\
            CREATE ROLE \"odd role\";\nALTER ROLE \"odd role\" WITH NOLOGIN;\nALTER ROLE \"odd role\" IN DATABASE shop SET x TO '1';\n\
            CREATE ROLE postgres;\nALTER ROLE postgres WITH SUPERUSER;\n\
            GRANT \"odd role\" TO app GRANTED BY postgres;\nGRANT postgres TO postgres;\n";
        let there = ["app".to_owned(), "postgres".to_owned()].into();
        let (roles, statements) = missing(globals, &there);
        assert_eq!(roles, ["\"odd role\""]);
        assert_eq!(
            statements,
            [
                "CREATE ROLE \"odd role\";",
                "ALTER ROLE \"odd role\" WITH NOLOGIN;",
                "GRANT \"odd role\" TO app;"
            ]
        );
    }
}
