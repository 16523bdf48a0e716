//! A live database with a good backup, to which something happens; what must hold afterwards is always the same.

use std::collections::BTreeSet;
use std::sync::Mutex;

use appliance_backup::backup::{BackupError, Source, backup};
use appliance_backup::journal::Journal;
use appliance_backup::manifest::Manifest;
use appliance_backup::names::BackupId;
use appliance_backup::postgres::Postgres;
use appliance_backup::recover;
use appliance_backup::repository::Repository;
use appliance_backup::restore::{self, RestoreError, Restored, Target};
use appliance_backup::retention::Plan;

use super::cluster::{self, Cluster};
use super::{journal, order, outside, subject};

/// Rows that the database begins with.
const ROWS: u64 = 500;

pub struct Scene {
    pub directory: tempfile::TempDir,
    pub server: Postgres,
    pub repository: Repository,
    pub database: String,
    version: u32,
    /// Rows that the live database has.
    live: Mutex<u64>,
    drilled: Mutex<BTreeSet<BackupId>>,
}

impl Scene {
    /// A database of this name in `cluster`, with one backup in `repository`.
    pub async fn new(cluster: &Cluster, repository: Repository, database: &str) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let server = cluster.postgres(directory.path());
        server
            .run("postgres", &format!("CREATE DATABASE {database}"))
            .await
            .expect("made");
        let fill = format!(
            "CREATE TABLE public.t AS SELECT n, md5(n::text) AS x FROM generate_series(1, {ROWS}) AS n; \
             CREATE INDEX ON public.t (n); SELECT lo_from_bytea(0, 'x')"
        );
        server.run(database, &fill).await.expect("filled");
        let scene = Self {
            directory,
            server,
            repository,
            database: database.to_owned(),
            version: cluster.version,
            live: Mutex::new(ROWS),
            drilled: Mutex::default(),
        };
        let first = scene.back_up().await.expect("a backup");
        scene.drilled.lock().expect("drilled").insert(first.id);
        scene
    }

    pub fn journal(&self) -> Journal {
        journal(self.directory.path())
    }

    pub async fn back_up(&self) -> Result<Manifest, BackupError> {
        self.back_up_by(&self.server).await
    }

    /// Backs up through another way to the server.
    pub async fn back_up_by(&self, server: &Postgres) -> Result<Manifest, BackupError> {
        let order = order(subject(&self.database));
        let source = Source::Postgres(server);
        backup(&self.repository, &self.journal(), &order, source, outside()).await
    }

    /// Puts the content of a backup into the place of the live database.
    pub async fn swap(&self, manifest: &Manifest) -> Result<Restored, RestoreError> {
        let (journal, to) = (self.journal(), Target::Swap);
        let restored = restore::restore(
            &self.repository,
            &journal,
            &self.server,
            manifest,
            &to,
            None,
            outside(),
        )
        .await?;
        *self.live.lock().expect("live") = restored.rows;
        Ok(restored)
    }

    /// Life goes on: the database now has a row that no backup has.
    pub async fn goes_on(&self) {
        let statement = "INSERT INTO public.t SELECT count(*) + 1, 'later' FROM public.t";
        self.server.run(&self.database, statement).await.expect("live");
        *self.live.lock().expect("live") += 1;
    }

    /// Live data is untouched, with nothing left beside it. `after` says what happened.
    pub async fn stays(&self, after: &str) {
        let journal = self.journal();
        for entry in journal.interrupted().expect("read") {
            recover::settle(Some(&self.repository), Some(&self.server), entry)
                .await
                .unwrap_or_else(|error| panic!("{after}: {error:?}"));
        }
        let live = *self.live.lock().expect("live");
        let rows = "SELECT count(*) FROM public.t";
        let found = self.server.run(&self.database, rows).await.expect("live");
        assert_eq!(found, live.to_string(), "{after}: live data");
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(25);
        restore::forget_replaced(&self.server, later)
            .await
            .expect("forgotten");
        let beside: Vec<_> = self.server.marked().await.expect("asked");
        let ours = |(name, _): &&(String, String)| name.starts_with(&self.database);
        assert_eq!(
            beside.iter().find(ours),
            None,
            "{after}: beside the live database"
        );
        let orphans = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'appliance backup _%' AND datname = '{}'",
            self.database
        );
        let orphans = self.server.run("postgres", &orphans).await.expect("asked");
        assert_eq!(orphans, "0", "{after}: orphans");
    }

    /// No listed backup that fails a drill, live data untouched, the next run clean. `after` says what happened.
    pub async fn holds(&self, after: &str) {
        self.stays(after).await;
        self.drills(after).await;
        let next = self.back_up().await;
        let next = next.unwrap_or_else(|error| panic!("{after}: the next run: {error:?}"));
        super::whole(&self.repository, &next).await.expect("whole");
        // It is as those before it, and drilled when all is over.
        self.drilled.lock().expect("drilled").insert(next.id.clone());
        let journal = self.journal();
        assert!(journal.interrupted().expect("read").is_empty(), "{after}");
        // One is enough to go on with.
        let catalogue = self.repository.catalogue("").await.expect("listed");
        let former = catalogue.backups.iter().map(|found| found.manifest.id.clone());
        let plan = Plan {
            keep: vec![],
            remove: former.filter(|id| *id != next.id).collect(),
            frozen: None,
        };
        recover::prune(&self.repository, &journal, &catalogue, &plan, &outside().word())
            .await
            .expect("pruned");
    }

    /// It holds, and the last backup passes a drill, too.
    pub async fn ends(&self, after: &str) {
        self.holds(after).await;
        self.drilled.lock().expect("drilled").clear();
        self.drills(after).await;
    }

    /// Drills what is listed and was not drilled yet.
    async fn drills(&self, after: &str) {
        let catalogue = self.repository.catalogue("").await.expect("listed");
        assert_eq!(catalogue.unusable, [], "{after}");
        let scratch = cluster::scratch(self.version).postgres(self.directory.path());
        for found in &catalogue.backups {
            let id = &found.manifest.id;
            if self.drilled.lock().expect("drilled").insert(id.clone()) {
                restore::drill(&self.repository, &scratch, &found.manifest, outside())
                    .await
                    .unwrap_or_else(|error| panic!("{after}: the drill of {id}: {error:?}"));
            }
        }
    }
}
