//! Programs that hang, and schemas that change under a dump.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use appliance_backup::backup::{BackupError, Source, backup};
use appliance_backup::place::{Ended, Job, LocalPlace, Pipe, Place, PlaceError};
use appliance_backup::postgres::Postgres;
use appliance_backup::stream::{Feed, StreamError};
use futures_util::future::BoxFuture;

use crate::rig::cluster::Cluster;
use crate::rig::{self, cluster, outside, subject};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_writes_nothing_more_and_does_not_end_is_given_up() {
    let directory = tempfile::tempdir().expect("directory");
    let place: Arc<dyn Place> = Arc::new(LocalPlace {
        programs: "/nonexistent".into(),
        pipes: directory.path().to_owned(),
        env: vec![],
    });
    let repository = rig::in_directory(directory.path().join("backups")).await;
    let journal = rig::journal(directory.path());
    let mut job = Job::new(["sh", "-c", "echo begun; exec sleep 20"]);
    job.silence = Some(Duration::from_millis(400));
    let feed = |job: &Job| Feed::Job {
        place: Arc::clone(&place),
        job: job.clone(),
    };
    let order = rig::order(rig::files());
    let failed = backup(
        &repository,
        &journal,
        &order,
        Source::Stream(feed(&job)),
        outside(),
    )
    .await
    .expect_err("it hangs");
    assert!(
        matches!(
            &failed,
            BackupError::Stream(StreamError::Program(PlaceError::Silent { program, .. })) if program == "sh"
        ),
        "{failed:?}"
    );
    assert_eq!(
        repository.catalogue("").await.expect("listed"),
        Default::default()
    );
    assert!(journal.interrupted().expect("read").is_empty());
    // One that is slow, but not that slow, is waited for.
    job.command[2] = "for n in 1 2 3; do echo $n; sleep 0.1; done".to_owned();
    job.silence = Some(Duration::from_secs(20));
    backup(
        &repository,
        &journal,
        &order,
        Source::Stream(feed(&job)),
        outside(),
    )
    .await
    .expect("a backup");
}

/// A place where somebody runs a migration whenever a dump begins.
struct Migrating {
    inner: Arc<dyn Place>,
    server: Postgres,
    statement: &'static str,
    often: AtomicBool,
}

impl Place for Migrating {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn run<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Ended, PlaceError>> {
        Box::pin(async move {
            if job.command.first().is_some_and(|program| program == "pg_dump")
                && self.often.swap(false, Ordering::Relaxed)
            {
                self.server
                    .run("migrated", self.statement)
                    .await
                    .expect("migrated");
            }
            self.inner.run(job).await
        })
    }

    fn pipe(&self, name: &str) -> Result<Pipe, PlaceError> {
        self.inner.pipe(name)
    }

    fn release_pipes(&self) {
        self.inner.release_pipes();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_or_role_that_changes_under_a_dump_makes_no_backup_that_would_not_restore() {
    for version in cluster::VERSIONS {
        changes_under_a_dump(version).await;
    }
}

async fn changes_under_a_dump(version: u32) {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::of(version);
    let server = cluster.postgres(directory.path());
    server
        .run("postgres", "CREATE DATABASE migrated")
        .await
        .expect("made");
    server
        .run("migrated", "CREATE TABLE public.t AS SELECT 1 AS n")
        .await
        .expect("filled");
    let repository = rig::in_directory(directory.path().join("backups")).await;
    let journal = rig::journal(directory.path());
    let order = rig::order(subject("migrated"));
    for statement in [
        "ALTER TABLE public.t ADD COLUMN more int",
        "CREATE ROLE came_late; GRANT SELECT ON public.t TO came_late",
    ] {
        let place = Migrating {
            inner: Arc::clone(server.place()),
            server: server.clone(),
            statement,
            often: AtomicBool::new(true),
        };
        let env = [
            ("PGHOST", cluster.socket().to_str().expect("text")),
            ("PGUSER", "postgres"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let migrating = Postgres::new(Arc::new(place), env.to_vec());
        let run = async || {
            backup(
                &repository,
                &journal,
                &order,
                Source::Postgres(&migrating),
                outside(),
            )
            .await
        };
        let before = repository.catalogue("").await.expect("listed").backups.len();
        let failed = run().await.expect_err("it changed");
        assert!(matches!(&failed, BackupError::Changed { .. }), "{failed:?}");
        let after = repository.catalogue("").await.expect("listed");
        assert_eq!((after.backups.len(), after.unusable.len()), (before, 0));
        // The next one begins after the migration, and restores.
        let manifest = run().await.expect("a backup");
        let scratch = cluster::scratch(version).postgres(directory.path());
        appliance_backup::restore::drill(&repository, &scratch, &manifest, outside())
            .await
            .expect("it restores");
    }
}
