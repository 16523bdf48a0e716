//! What kind of server an accessory is, and how to ask it whether it is well.

use std::collections::BTreeMap;

/// Servers that are known well enough to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// PostgreSQL and images built on it.
    Postgres,
    /// MySQL.
    Mysql,
    /// MariaDB.
    Mariadb,
    /// Redis and Valkey.
    Redis,
    /// Anything else.
    Other,
}

const NAMES: &[(&str, Kind)] = &[
    ("postgres", Kind::Postgres),
    ("postgis", Kind::Postgres),
    ("pgvector", Kind::Postgres),
    ("timescaledb", Kind::Postgres),
    ("mariadb", Kind::Mariadb),
    ("mysql", Kind::Mysql),
    ("percona", Kind::Mysql),
    ("redis", Kind::Redis),
    ("valkey", Kind::Redis),
];

/// Variables that only images of these servers set.
const VARIABLES: &[(&str, Kind)] = &[
    ("PGDATA", Kind::Postgres),
    ("MARIADB_VERSION", Kind::Mariadb),
    ("MYSQL_VERSION", Kind::Mysql),
    ("REDIS_VERSION", Kind::Redis),
    ("VALKEY_VERSION", Kind::Redis),
];

/// Server administration images carry a server's name too.
const NOT_SERVERS: &[&str] = &[
    "exporter",
    "admin",
    "backup",
    "proxy",
    "bouncer",
    "commander",
    "insight",
];

impl Kind {
    /// Tells the kind from the image's name and the container's environment.
    pub fn of(image: &str, env: &BTreeMap<String, String>) -> Self {
        let name = image.split('@').next().unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        let name = name.split(':').next().unwrap_or_default().to_lowercase();
        if NOT_SERVERS.iter().any(|word| name.contains(word)) {
            return Kind::Other;
        }
        let by_variable = VARIABLES.iter().find(|(variable, _)| env.contains_key(*variable));
        let by_name = || NAMES.iter().find(|(word, _)| name.contains(word));
        by_variable
            .or_else(by_name)
            .map_or(Kind::Other, |(_, kind)| *kind)
    }

    /// The port it listens on unless told otherwise.
    pub fn port(self) -> Option<u16> {
        match self {
            Kind::Postgres => Some(5432),
            Kind::Mysql | Kind::Mariadb => Some(3306),
            Kind::Redis => Some(6379),
            Kind::Other => None,
        }
    }

    /// The command that asks the server, run in its own container; `None` for what is not known.
    ///
    /// Over TCP, because the official images answer on their socket already while they run first-start scripts.
    pub fn probe(self, env: &BTreeMap<String, String>) -> Option<Vec<String>> {
        let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
        match self {
            Kind::Postgres => words(&[
                "pg_isready",
                "--quiet",
                "--host=127.0.0.1",
                &format!("--username={}", postgres_user(env)),
                "--dbname=postgres",
            ]),
            // Both exit with 0 as soon as the server answers, also if it does not let them in.
            Kind::Mysql => words(&["mysqladmin", "--host=127.0.0.1", "--silent", "ping"]),
            Kind::Mariadb => words(&["mariadb-admin", "--host=127.0.0.1", "--silent", "ping"]),
            Kind::Redis => words(&["redis-cli", "ping"]),
            Kind::Other => None,
        }
    }

    /// Whether an answer of the probe means that the server is well.
    pub fn well(self, exit_code: i64, output: &str) -> bool {
        match self {
            // redis-cli exits with 0 whatever the server says; a server that asks for a password is there.
            Kind::Redis => exit_code == 0 && (output.contains("PONG") || output.contains("NOAUTH")),
            _ => exit_code == 0,
        }
    }
}

/// `POSTGRES_USER`, whose default is `postgres`.
pub fn postgres_user(env: &BTreeMap<String, String>) -> String {
    env.get("POSTGRES_USER")
        .filter(|user| !user.is_empty())
        .cloned()
        .unwrap_or_else(|| "postgres".to_owned())
}

/// The major version in what `postgres --version` prints: `postgres (PostgreSQL) 17.6 (Debian …)`.
pub fn postgres_major(text: &str) -> Option<u32> {
    let rest = text.split("PostgreSQL)").nth(1)?.trim_start();
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn servers_are_told_by_their_image_or_their_environment() {
        for (image, variables, expect) in [
            ("postgres:17", &[][..], Kind::Postgres),
            ("ghcr.io/acme/postgis@sha256:00", &[], Kind::Postgres),
            ("registry.test:5000/db:1", &[("PGDATA", "/data")], Kind::Postgres),
            ("mariadb:11", &[], Kind::Mariadb),
            ("mysql/mysql-server:8.0", &[], Kind::Mysql),
            ("valkey/valkey:8", &[], Kind::Redis),
            ("prometheuscommunity/postgres-exporter", &[], Kind::Other),
            ("nginx", &[], Kind::Other),
        ] {
            assert_eq!(Kind::of(image, &env(variables)), expect, "{image}");
        }
    }

    #[test]
    fn a_redis_that_asks_for_a_password_is_well_and_one_that_loads_is_not() {
        assert!(Kind::Redis.well(0, "PONG\n") && Kind::Redis.well(0, "NOAUTH Authentication required.\n"));
        assert!(!Kind::Redis.well(0, "LOADING Redis is loading the dataset in memory\n"));
        assert!(!Kind::Postgres.well(2, ""));
    }

    #[test]
    fn the_major_version_is_read_from_what_the_server_prints() {
        for (text, expect) in [
            ("postgres (PostgreSQL) 17.6 (Debian 17.6-1.pgdg13+1)\n", Some(17)),
            ("postgres (PostgreSQL) 18beta1\n", Some(18)),
            ("mysqld 8.0", None),
        ] {
            assert_eq!(postgres_major(text), expect);
        }
    }
}
