//! Copying a PostgreSQL cluster from one major version to another, and comparing the two.
//!
//! Both servers run aside, with no port and under names that no app knows, so nobody writes meanwhile.
//! The newer version's own `pg_dump` reads from the older server, as PostgreSQL's documentation advises
//! (chapter "Upgrading a PostgreSQL Cluster"); dumps lie in a scratch volume that goes afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use appliance_accessories::kind::postgres_user;
use appliance_containers::ContainerSpec;
use appliance_containers::engine::NETWORK;
use appliance_containers::spec::Restart;
use appliance_push::change::Accessory;

use super::image::Found;
use super::output::Said;
use super::record::{Moving, Version};
use super::{LABEL, Opened, Which, making};
use crate::agent::Agent;
use crate::agent::drive::Audience;
use crate::wire::Event;

/// Where the scratch volume is in the new server's container.
const SCRATCH: &str = "/appliance-upgrade";
/// Where the official image looks for scripts to run on new data.
const FIRST_START: &str = "/docker-entrypoint-initdb.d";
/// Dumping, restoring or counting one database.
const WORK: Duration = Duration::from_secs(24 * 3600);
/// Until a server that runs aside answers.
const READY: Duration = Duration::from_secs(180);

/// Databases that are copied: all that somebody can connect to but the templates.
const DATABASES: &str =
    "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname";
/// Roles with their rights, and whether their passwords are the same: what differs is told to people, and written down.
const ROLES: &str = "SELECT rolname, rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls, \
     rolconnlimit, md5(coalesce(rolpassword, '')), rolvaliduntil FROM pg_authid WHERE rolname !~ '^pg_' ORDER BY rolname";
/// Every table with the number of its rows and a sum over their content, whatever their order.
const TABLES: &str = "SELECT format('%I.%I', n.nspname, c.relname), query_to_xml(format(\
     'SELECT count(*) AS n, coalesce(sum(hashtextextended(t::text, 0)::numeric), 0) AS h FROM ONLY %I.%I t', n.nspname, c.relname), \
     false, true, '') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind IN ('r', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast' \
     ORDER BY 1";
/// Every other object of the database by kind and name, and where sequences and large objects are.
const OBJECTS: &str = "SELECT c.relkind::text, format('%I.%I', n.nspname, c.relname) FROM pg_class c \
     JOIN pg_namespace n ON n.oid = c.relnamespace \
     WHERE c.relkind NOT IN ('t') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_toast' \
     UNION ALL SELECT 'function', format('%I.%I', n.nspname, p.proname) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
     WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') \
     UNION ALL SELECT 'extension', extname FROM pg_extension \
     UNION ALL SELECT 'sequence', format('%I.%I %s', schemaname, sequencename, last_value) FROM pg_sequences \
     UNION ALL SELECT 'large objects', count(*)::text FROM pg_largeobject_metadata ORDER BY 1, 2";
/// Bytes of all databases.
const SIZE: &str = "SELECT sum(pg_database_size(oid))::bigint FROM pg_database";

/// A container's environment before it exists: the image's, with the definition's over it.
pub fn env(
    definition: &Accessory,
    image: &Found,
    opened: &Opened,
) -> Result<BTreeMap<String, String>, making::MakingError> {
    let mut env: BTreeMap<String, String> = image
        .info
        .env
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    env.extend(making::environment(definition, opened)?);
    Ok(env)
}

/// A server that runs aside, as the copying commands reach it.
struct Server {
    container: String,
    host: String,
    user: String,
    password: Option<String>,
}

impl Server {
    fn words(&self, program: &str, more: &[&str]) -> Vec<String> {
        [
            program,
            &format!("--host={}", self.host),
            "--port=5432",
            &format!("--username={}", self.user),
            "--no-password",
        ]
        .into_iter()
        .chain(more.iter().copied())
        .map(str::to_owned)
        .collect()
    }

    fn env(&self) -> Vec<String> {
        self.password
            .iter()
            .map(|password| format!("PGPASSWORD={password}"))
            .collect()
    }
}

fn old_name(moving: &Moving) -> String {
    format!("{}-upgrade-old", moving.old.definition.container)
}

fn new_name(moving: &Moving) -> String {
    format!("{}-upgrade-new", moving.new.definition.container)
}

fn scratch(moving: &Moving) -> String {
    format!("{}-upgrade-scratch", moving.new.definition.container)
}

impl Agent {
    /// Fills the new data from the old.
    ///
    /// # Errors
    /// Whatever a server or a tool says.
    pub(super) async fn copy_postgres(
        &self,
        which: &Which,
        moving: &Moving,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        // What an interrupted attempt left would be taken for data.
        self.clear_copies(moving).await?;
        if let Some(data) = &moving.new.data {
            self.drop_source(&moving.new.definition, data).await?;
        }
        self.docker.ensure_network(NETWORK).await?;
        self.run_aside(which, &moving.old, &old_name(moving), None)
            .await?;
        let mount = format!("{}:{SCRATCH}", scratch(moving));
        self.run_aside(which, &moving.new, &new_name(moving), Some(mount))
            .await?;
        let (old, new) = self.servers(moving).await?;
        self.check_room(&old, moving).await?;

        let globals = format!("{SCRATCH}/globals.sql");
        let dump_globals = old.words("pg_dumpall", &["--globals-only", &format!("--file={globals}")]);
        self.must(&new.container, dump_globals, old.env()).await?;
        // The first superuser exists already in a new cluster, so one statement fails by design; roles are compared later.
        let restore_globals = new.words(
            "psql",
            &[
                "--no-psqlrc",
                "--quiet",
                "--dbname=postgres",
                &format!("--file={globals}"),
            ],
        );
        self.ask(&new.container, restore_globals, new.env(), WORK).await?;

        for (index, database) in self
            .lines(&new, &old, "postgres", DATABASES)
            .await?
            .iter()
            .enumerate()
        {
            audience
                .tell(Event::Phase {
                    phase: "copy".to_owned(),
                    detail: format!("database {database}"),
                })
                .await;
            let file = format!("{SCRATCH}/{index}.dump");
            let dump = old.words(
                "pg_dump",
                &[
                    "--format=custom",
                    "--compress=0",
                    &format!("--file={file}"),
                    &format!("--dbname={database}"),
                ],
            );
            self.must(&new.container, dump, old.env()).await?;
            let restore = if database == "postgres" {
                vec!["--dbname=postgres", "--clean", "--if-exists"]
            } else {
                let drop = new.words("dropdb", &["--if-exists", "--maintenance-db=postgres", database]);
                self.must(&new.container, drop, new.env()).await?;
                vec!["--dbname=postgres", "--create"]
            };
            let mut words = restore;
            words.extend(["--exit-on-error", &file]);
            self.must(&new.container, new.words("pg_restore", &words), new.env())
                .await?;
            let analyze = new.words(
                "vacuumdb",
                &["--analyze-only", "--quiet", &format!("--dbname={database}")],
            );
            self.must(&new.container, analyze, new.env()).await?;
        }
        Ok(())
    }

    /// Compares the two servers.
    ///
    /// # Errors
    /// Names the first thing that differs.
    pub(super) async fn compare_postgres(&self, moving: &Moving, audience: &Audience) -> anyhow::Result<()> {
        let (old, new) = self.servers(moving).await?;
        let mut questions = vec![("postgres".to_owned(), DATABASES), ("postgres".to_owned(), ROLES)];
        let databases = self.lines(&new, &old, "postgres", DATABASES).await?;
        for database in &databases {
            questions.push((database.clone(), TABLES));
            questions.push((database.clone(), OBJECTS));
        }
        let mut tables = 0;
        for (database, question) in questions {
            let before = self.lines(&new, &old, &database, question).await?;
            let after = self.lines(&new, &new, &database, question).await?;
            if question == TABLES {
                tables += before.len();
            }
            if let Some(difference) = first_difference(&before, &after) {
                bail!("after the copy, database {database} differs: {difference}");
            }
        }
        audience
            .tell(Event::Phase {
                phase: "equal".to_owned(),
                detail: format!("{} databases with {tables} tables", databases.len()),
            })
            .await;
        Ok(())
    }

    /// Removes both servers and the scratch volume; their data stays.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub(super) async fn clear_copies(&self, moving: &Moving) -> anyhow::Result<()> {
        for name in [old_name(moving), new_name(moving)] {
            if let Some(found) = self.docker.inspect(&name).await? {
                self.docker
                    .stop(&found.id.0, Some(Duration::from_secs(60)))
                    .await?;
                self.docker.remove_keeping_volumes(&found.id.0, true).await?;
            }
        }
        if moving.state.on_copy {
            self.docker.remove_volume(&scratch(moving)).await?;
        }
        Ok(())
    }

    /// Starts a server of this version that nobody but us reaches.
    async fn run_aside(
        &self,
        which: &Which,
        version: &Version,
        name: &str,
        mount: Option<String>,
    ) -> anyhow::Result<()> {
        let opened = self.open_accessory(&version.definition)?;
        let image = self.image_of(&version.pin, &version.definition, &opened).await?;
        let mut spec: ContainerSpec =
            self.accessory_spec(which, &version.definition, &opened, &version.sources, &image)?;
        spec.name = name.to_owned();
        spec.network = Some(NETWORK.to_owned());
        spec.aliases.clear();
        spec.publish.clear();
        spec.tuning.publish_all = false;
        spec.restart = Restart::No;
        // Nobody may take it for the accessory.
        spec.labels.remove(LABEL);
        spec.labels.remove("service");
        spec.labels
            .insert("appliance.upgrade".to_owned(), which.to_string());
        // First-start scripts made what is in the old data already, and maybe what somebody has removed since.
        spec.volumes.retain(|volume| {
            let target = volume.split(':').nth(1).unwrap_or_default();
            !target.starts_with(FIRST_START)
        });
        spec.volumes.extend(mount);
        let created = self.docker.create(&spec).await?;
        self.docker.start(&created.0).await?;
        self.await_well(&created.0, READY)
            .await
            .map_err(|why| anyhow::anyhow!("{} aside for the copy: {why}", version.pin.image))
    }

    async fn servers(&self, moving: &Moving) -> anyhow::Result<(Server, Server)> {
        let mut servers = Vec::new();
        for (name, local) in [(old_name(moving), false), (new_name(moving), true)] {
            let found = self
                .docker
                .inspect(&name)
                .await?
                .with_context(|| format!("the container {name} is gone"))?;
            let env = super::health::env_of(&found);
            let host = if local {
                "127.0.0.1".to_owned()
            } else {
                found
                    .ip_on(NETWORK)
                    .with_context(|| format!("{name} has no address"))?
                    .to_string()
            };
            servers.push(Server {
                host,
                user: postgres_user(&env),
                password: self.password(&found.id.0, &env).await?,
                container: name,
            });
        }
        let new = servers.pop().context("two servers")?;
        let old = servers.pop().context("two servers")?;
        Ok((old, new))
    }

    /// `POSTGRES_PASSWORD`, or what is in `POSTGRES_PASSWORD_FILE`.
    async fn password(
        &self,
        container: &str,
        env: &BTreeMap<String, String>,
    ) -> anyhow::Result<Option<String>> {
        if let Some(password) = env.get("POSTGRES_PASSWORD").filter(|text| !text.is_empty()) {
            return Ok(Some(password.clone()));
        }
        let Some(file) = env.get("POSTGRES_PASSWORD_FILE") else {
            return Ok(None);
        };
        let said = self
            .must(container, vec!["cat".to_owned(), file.clone()], Vec::new())
            .await?;
        Ok(Some(said.out.trim_end_matches('\n').to_owned()))
    }

    async fn check_room(&self, old: &Server, moving: &Moving) -> anyhow::Result<()> {
        let size = self.lines(old, old, "postgres", SIZE).await?;
        let size: u64 = size
            .first()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or_default();
        // The copy, and the dumps that it is made from.
        let needed = size.saturating_mul(2);
        let root = self.docker.info().await?.data_root;
        let free = nix::sys::statvfs::statvfs(root.as_str())
            .map(|found| found.blocks_available() * found.fragment_size())
            .unwrap_or(u64::MAX);
        ensure!(
            free >= needed,
            "copying {} needs {needed} bytes of disk, {free} are free",
            moving.old.definition.container
        );
        Ok(())
    }

    /// Asks a server with the tools of another one's container.
    async fn lines(
        &self,
        tools: &Server,
        server: &Server,
        database: &str,
        question: &str,
    ) -> anyhow::Result<Vec<String>> {
        let words = server.words(
            "psql",
            &[
                "--no-psqlrc",
                "--tuples-only",
                "--no-align",
                "--quiet",
                "--set=ON_ERROR_STOP=1",
                &format!("--dbname={database}"),
                &format!("--command={question}"),
            ],
        );
        let said = self.must(&tools.container, words, server.env()).await?;
        Ok(said.out.lines().map(str::to_owned).collect())
    }

    async fn must(&self, container: &str, words: Vec<String>, env: Vec<String>) -> anyhow::Result<Said> {
        let program = words.first().cloned().unwrap_or_default();
        let said = self.ask(container, words, env, WORK).await?;
        ensure!(
            said.code == 0,
            "{program} ended with exit code {}: {}",
            said.code,
            said.err.trim()
        );
        Ok(said)
    }
}

/// The first line that is in one answer only.
fn first_difference(before: &[String], after: &[String]) -> Option<String> {
    let missing = before.iter().find(|line| !after.contains(line));
    let added = after.iter().find(|line| !before.contains(line));
    match (missing, added) {
        (None, None) if before.len() == after.len() => None,
        (None, None) => Some(format!("{} lines became {}", before.len(), after.len())),
        (missing, added) => Some(format!(
            "{:?} became {:?}",
            missing.map_or("nothing", |line| line.as_str()),
            added.map_or("nothing", |line| line.as_str())
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::{ROLES, first_difference};

    #[test]
    fn what_differs_in_roles_tells_no_password() {
        let hidden = "md5(coalesce(rolpassword, ''))";
        assert!(ROLES.contains(hidden), "another password is a difference");
        assert!(!ROLES.replace(hidden, "").contains("rolpassword"));
    }

    #[test]
    fn the_first_line_that_differs_is_named() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(first_difference(&lines("a b"), &lines("a b")), None);
        let told = first_difference(&lines("a b c"), &lines("a x c")).expect("a difference");
        assert_eq!(told, "\"b\" became \"x\"");
        assert!(first_difference(&lines("a a"), &lines("a")).is_some());
    }
}
