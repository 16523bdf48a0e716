//! A throw-away server for a drill: the same image, no network, few resources, nothing kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use appliance_backup::place::{Job as Program, Place as _};
use appliance_backup::postgres::Postgres;
use appliance_containers::ContainerSpec;
use appliance_containers::engine::State;
use appliance_containers::spec::Tuning;

use super::place::ContainerPlace;
use crate::agent::{Agent, random};

/// Marks throw-away containers, so that those of an agent that was killed are found.
pub(super) const LABEL: &str = "appliance.drill";
/// Half a processor: a drill must not take the machine from the apps.
const NANO_CPUS: i64 = 500_000_000;
/// Memory in bytes; PostgreSQL's own defaults need a fraction.
const MEMORY: i64 = 512 << 20;
/// How long the server may take to be ready.
const READY: Duration = Duration::from_secs(180);
/// Between two looks whether it is.
const PAUSE: Duration = Duration::from_millis(300);

/// What a drill's helper may take.
pub(super) fn few() -> Tuning {
    Tuning {
        nano_cpus: Some(NANO_CPUS),
        ..Tuning::default()
    }
}

/// A server that is removed by [`Scratch::remove`].
pub struct Scratch {
    /// The server.
    pub server: Postgres,
    name: String,
}

impl Agent {
    /// Starts a throw-away PostgreSQL server from `image`, with the libraries that `live` is started with: some
    /// extensions cannot be created without theirs.
    ///
    /// # Errors
    /// When it does not start; nothing is left behind.
    pub async fn scratch(&self, image: &str, live: &Postgres) -> anyhow::Result<Scratch> {
        let libraries = live
            .run("postgres", "SHOW shared_preload_libraries")
            .await
            .context("the live server does not say which libraries it is started with")?;
        let name = format!("appliance-drill-{}", hex::encode(random::<6>()));
        let password = hex::encode(random::<16>());
        let mut spec = ContainerSpec {
            name: name.clone(),
            image: image.to_owned(),
            network: Some("none".to_owned()),
            cmd: Some(
                [
                    "postgres",
                    "-c",
                    "fsync=off",
                    "-c",
                    "full_page_writes=off",
                    "-c",
                    "max_wal_size=4GB",
                    "-c",
                    &format!("shared_preload_libraries={libraries}"),
                ]
                .map(str::to_owned)
                .to_vec(),
            ),
            env: vec![
                ("POSTGRES_PASSWORD".to_owned(), password.clone()),
                ("POSTGRES_USER".to_owned(), "postgres".to_owned()),
            ],
            labels: BTreeMap::from([(LABEL.to_owned(), std::process::id().to_string())]),
            ..ContainerSpec::default()
        };
        spec.tuning = Tuning {
            memory: Some(MEMORY),
            pids_limit: Some(200),
            ..few()
        };
        let started = self.start_scratch(&spec, password).await;
        if started.is_err() {
            let _not_even_made = self.docker.remove(&name, true).await;
        }
        started
    }

    async fn start_scratch(&self, spec: &ContainerSpec, password: String) -> anyhow::Result<Scratch> {
        self.docker.create(spec).await?;
        self.docker.start(&spec.name).await?;
        let info = self
            .docker
            .inspect(&spec.name)
            .await?
            .context("the throw-away container vanished")?;
        let place = Arc::new(ContainerPlace::new(Arc::clone(&self.docker), &info));
        // By TCP: while the image makes its database, a first server answers on the socket only.
        let env = [
            ("PGHOST", "127.0.0.1"),
            ("PGUSER", "postgres"),
            ("PGPASSWORD", &password),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
        let begun = tokio::time::Instant::now();
        let ask = Program::new(["pg_isready", "-q", "-h", "127.0.0.1"]);
        while !place.run(&ask).await.is_ok_and(|ended| ended.code == 0) {
            let now = self.docker.inspect(&spec.name).await?;
            if let Some(ended) = now.filter(|now| now.state == State::Exited) {
                bail!(
                    "the throw-away server from {} ended with exit code {}{}",
                    spec.image,
                    ended.exit_code,
                    self.last_words(&spec.name).await
                );
            }
            if begun.elapsed() > READY {
                bail!(
                    "the throw-away server from {} is not ready after {} s",
                    spec.image,
                    READY.as_secs()
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(Scratch {
            server: Postgres::new(place, env),
            name: spec.name.clone(),
        })
    }

    /// Removes throw-away containers that a killed agent left.
    pub async fn remove_stale_scratch(&self) {
        for found in self.docker.list(&[LABEL.to_owned()]).await.unwrap_or_default() {
            let _gone_already = self.docker.remove(&found.id.0, true).await;
        }
    }
}

impl Scratch {
    /// Removes the container and its data.
    pub async fn remove(self, agent: &Agent) {
        if let Err(error) = agent.docker.remove(&self.name, true).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "{} is left behind",
                self.name
            );
        }
    }
}
