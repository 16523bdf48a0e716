//! What is to be backed up on this host, as the current releases say.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use appliance_backup::journal::Intent;
use appliance_backup::postgres::Postgres;
use appliance_backup::repository::{Keys, Repository};
use appliance_backup::sign::{PublicKey, Signer};
use appliance_backup::spool::Spool;
use appliance_backup::store::{FileStore, Patience, Retrying, S3Options, S3Store, Store};
use appliance_config::extension::{Backup, BackupKind, Drill, Interval};
use appliance_containers::engine::{ContainerInfo, State};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::place::ContainerPlace;
use crate::agent::{Agent, random};

/// Name of the section in a release's extensions.
pub const SECTION: &str = "backups";

/// Bytes of the host's disk that a spool leaves to others.
const RESERVE: u64 = 1 << 30;

/// One accessory's backups, as they travel in a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The accessory.
    pub accessory: String,
    /// Its container.
    pub container: String,
    /// Its image, from which its kind is told.
    pub image: String,
    /// How, where and when.
    pub settings: Backup,
}

/// One accessory's backups on this host.
#[derive(Debug, Clone)]
pub struct Job {
    /// The app.
    pub app: String,
    /// What the release says.
    pub spec: Spec,
    /// Access key id and secret, for a bucket.
    pub credentials: Option<(String, String)>,
}

impl Spec {
    /// What it holds: as configured, else told from the image's name.
    ///
    /// # Errors
    /// When that is nothing that is backed up: a copy of a data server's files would look like a backup and be none.
    pub fn kind(&self) -> anyhow::Result<BackupKind> {
        let told = self.settings.kind.or_else(|| BackupKind::of_image(&self.image));
        match (told, BackupKind::refusal(self.settings.kind, &self.image)) {
            (Some(kind), None) => Ok(kind),
            (_, refusal) => {
                let (why, way) = refusal.unwrap_or_default();
                bail!(
                    "x-appliance/backups/{}: {why}; next: {way}; appliance push",
                    self.accessory
                )
            }
        }
    }

    /// Time between two drills; `None` for never.
    pub fn drill_interval(&self) -> Option<SignedDuration> {
        let days = match self.settings.drill {
            Drill::Switch(false) => return None,
            Drill::Switch(true) | Drill::Every(Interval::Weekly) => 7,
            Drill::Every(Interval::Daily) => 1,
            Drill::Every(Interval::Monthly) => 30,
        };
        Some(SignedDuration::from_hours(24 * days))
    }
}

impl Job {
    /// Its name in ledgers and messages.
    pub fn key(&self) -> String {
        format!("{}/{}", self.app, self.spec.accessory)
    }

    /// The same job as it was called before: `accessory`, or `app/accessory`.
    pub(super) fn formerly(&self, name: &str) -> Self {
        let mut job = self.clone();
        match name.split_once('/') {
            Some((app, accessory)) => {
                app.clone_into(&mut job.app);
                accessory.clone_into(&mut job.spec.accessory);
            }
            None => name.clone_into(&mut job.spec.accessory),
        }
        job
    }

    /// Whether an operation is one of its own.
    pub(super) fn has(&self, intent: &Intent) -> bool {
        let subject = intent.subject();
        subject.app == self.app && subject.accessory == self.spec.accessory
    }
}

impl Agent {
    /// Every job of every app; an app that cannot be read is reported and skipped.
    pub fn backup_jobs(&self) -> Vec<Job> {
        let apps = self.apps_and_backups().unwrap_or_else(|error| {
            tracing::error!("backups: {error:#}");
            Vec::new()
        });
        apps.iter()
            .flat_map(|app| {
                self.backup_jobs_of(app).unwrap_or_else(|error| {
                    tracing::error!("backups of {app}: {error:#}");
                    Vec::new()
                })
            })
            .collect()
    }

    /// Every job of every app, or the first reason why they cannot be told.
    ///
    /// # Errors
    /// When an app or its release cannot be read.
    pub fn all_backup_jobs(&self) -> anyhow::Result<Vec<Job>> {
        let mut jobs = Vec::new();
        for app in self.apps_and_backups()? {
            jobs.extend(self.backup_jobs_of(&app)?);
        }
        Ok(jobs)
    }

    /// The jobs of one app.
    ///
    /// # Errors
    /// When its release or its credentials cannot be read.
    pub fn backup_jobs_of(&self, app: &str) -> anyhow::Result<Vec<Job>> {
        let mut jobs = Vec::new();
        for kept in self.kept_jobs(app)? {
            let secrets = self.open_credentials(&kept.sealed)?;
            let names = &kept.spec.settings.credentials;
            let credentials = secrets
                .get(&names.access_key_id)
                .cloned()
                .zip(secrets.get(&names.secret_access_key).cloned());
            jobs.push(Job {
                app: app.to_owned(),
                spec: kept.spec,
                credentials,
            });
        }
        Ok(jobs)
    }

    /// One job by its accessory's name.
    ///
    /// # Errors
    /// When there is none, which says which there are.
    pub fn backup_job(&self, app: &str, accessory: &str) -> anyhow::Result<Job> {
        let mut jobs = self.backup_jobs_of(app)?;
        let names: Vec<String> = jobs.iter().map(|job| job.spec.accessory.clone()).collect();
        match jobs.iter().position(|job| job.spec.accessory == accessory) {
            Some(at) => Ok(jobs.swap_remove(at)),
            None if names.is_empty() => bail!(
                "{app} has no backups on this host: write x-appliance/backups/{accessory} into the configuration and push"
            ),
            None => bail!(
                "{app} has no backups of {accessory} on this host; it has those of {}",
                names.join(", ")
            ),
        }
    }

    /// The place of a job's backups.
    ///
    /// # Errors
    /// When it cannot be reached or used.
    pub async fn repository(&self, job: &Job) -> anyhow::Result<Repository> {
        self.repository_within(job, Patience::default()).await
    }

    /// The place of a job's backups, whose failures are waited for no longer than `patience` says.
    ///
    /// # Errors
    /// When it cannot be reached or used.
    pub(super) async fn repository_within(
        &self,
        job: &Job,
        patience: Patience,
    ) -> anyhow::Result<Repository> {
        let settings = &job.spec.settings;
        let store = self.store(job, patience)?;
        let trusted = settings.trust.iter().cloned().map(PublicKey::try_from);
        let mut recipients = vec![self.host.to_string()];
        recipients.extend(settings.recovery.clone());
        let keys = Keys {
            signer: Arc::new(Signer::from_seed(
                &self.identity.derive("appliance backups: signing key"),
            )),
            trusted: trusted.collect::<Result<_, _>>().map_err(anyhow::Error::msg)?,
            identity: self.identity.identity().clone(),
            recipients,
            host: self.host.to_string(),
        };
        let opened = Repository::open(store, keys, Timestamp::now(), random())
            .await
            .with_context(|| format!("cannot use {}", settings.to.0))?;
        Ok(match settings.spool {
            true => opened.spooling(Spool {
                directory: self.backups.spool.clone(),
                reserve: RESERVE,
            }),
            false => opened,
        })
    }

    fn store(&self, job: &Job, patience: Patience) -> anyhow::Result<Arc<dyn Store>> {
        let settings = &job.spec.settings;
        let place = &settings.to.0;
        let store: Arc<dyn Store> = match place.split_once("://") {
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let Some((access_key_id, secret_access_key)) = job.credentials.clone() else {
                    bail!(
                        "the credentials for {place} are not among the release's secrets: define {} and {} in .kamal/secrets and push again",
                        settings.credentials.access_key_id,
                        settings.credentials.secret_access_key
                    );
                };
                Arc::new(S3Store::new(S3Options {
                    bucket: bucket.to_owned(),
                    prefix: prefix.trim_matches('/').to_owned(),
                    endpoint: settings.endpoint.clone(),
                    region: settings.region.clone(),
                    // Most servers that are not Amazon's have no name for each bucket.
                    path_style: settings.path_style || settings.endpoint.is_some(),
                    access_key_id,
                    secret_access_key,
                    attempt_limit: None,
                }))
            }
            Some(("file", path)) => Arc::new(FileStore::new(path)),
            _ => bail!("{place} is not a place for backups"),
        };
        Ok(Arc::new(Retrying::new(store, patience)))
    }

    /// The container of a job, which must run.
    ///
    /// # Errors
    /// When Docker does not answer, or it does not run.
    pub async fn running(&self, job: &Job) -> anyhow::Result<ContainerInfo> {
        let name = &job.spec.container;
        match self.docker.inspect(name).await? {
            Some(info) if info.state == State::Running => Ok(info),
            Some(info) => bail!(
                "{name} is {:?}, it cannot be backed up; next: appliance accessory start {}",
                info.state,
                job.spec.accessory
            ),
            None => bail!(
                "there is no container {name} on this host; next: appliance accessory boot {}",
                job.spec.accessory
            ),
        }
    }

    /// The PostgreSQL server in a container.
    pub fn postgres(&self, info: &ContainerInfo) -> Postgres {
        let env: BTreeMap<&str, &str> = info
            .env
            .iter()
            .filter_map(|entry| entry.split_once('='))
            .collect();
        let user = env.get("POSTGRES_USER").copied().unwrap_or("postgres");
        let mut connection = vec![("PGUSER".to_owned(), user.to_owned())];
        if let Some(password) = env.get("POSTGRES_PASSWORD") {
            connection.push(("PGPASSWORD".to_owned(), (*password).to_owned()));
        }
        Postgres::new(
            Arc::new(ContainerPlace::new(Arc::clone(&self.docker), info)),
            connection,
        )
    }
}
