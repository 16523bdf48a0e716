//! A disk between the database and a slow place: the snapshot is short, and nothing stays on the disk.

use std::path::Path;
use std::time::Duration;

use appliance_backup::backup::{Source, backup};
use appliance_backup::journal::Journal;

use appliance_backup::repository::Repository;
use appliance_backup::spool::{self, Spool};
use appliance_backup::store::PART;
use appliance_backup::stream::{self, Feed};

use crate::rig::s3::{Fault, Seen};
use crate::rig::{self, S3, cluster, files, order, outside, subject};

/// Parts of the content of [`content`], and a bit.
const SIZE: usize = 12;

fn content() -> std::io::Take<std::fs::File> {
    use std::io::Read as _;
    let random = std::fs::File::open("/dev/urandom").expect("random");
    random.take((SIZE * PART) as u64)
}

fn with_spool(repository: Repository, directory: &Path) -> Repository {
    repository.spooling(Spool {
        directory: directory.join("spool"),
        reserve: 0,
    })
}

/// Files of the spool, with their first bytes.
fn waiting(directory: &Path) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for backup in std::fs::read_dir(directory.join("spool"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for part in std::fs::read_dir(backup.path()).into_iter().flatten().flatten() {
            // It may be on its way out.
            found.extend(std::fs::read(part.path()));
        }
    }
    found
}

fn empty(directory: &Path) -> bool {
    std::fs::read_dir(directory.join("spool")).is_ok_and(|mut entries| entries.next().is_none())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_lets_the_database_go_long_before_the_place_has_everything() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = cluster::shared();
    let server = cluster.postgres(directory.path());
    server
        .run("postgres", "CREATE DATABASE spooled")
        .await
        .expect("made");
    // Random enough that about 90 MB of it have to be stored.
    server
        .run(
            "spooled",
            "CREATE TABLE public.t AS SELECT n, (SELECT string_agg(md5(random()::text || m || n), '') FROM generate_series(1, 90) m) \
             AS x FROM generate_series(1, 60000) n",
        )
        .await
        .expect("filled");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let repository = with_spool(rig::repository(s3.store("spooled")).await, directory.path());
    let journal = rig::journal(directory.path());
    let order = order(subject("spooled"));
    let storing = backup(
        &repository,
        &journal,
        &order,
        Source::Postgres(&server),
        outside(),
    );
    let watching = async {
        let dumping = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'appliance backup _%' AND datname = 'spooled'";
        let sessions = async || server.run("postgres", dumping).await.expect("asked") != "0";
        while !sessions().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // From the first byte on the place takes nothing.
        s3.down(true);
        while sessions().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let left = waiting(directory.path());
        s3.down(false);
        left
    };
    let (stored, left) = tokio::join!(storing, watching);
    let manifest = stored.expect("stored");
    assert!(left.len() > 2, "{} parts wait", left.len());
    for part in &left {
        let clear = part
            .windows(32)
            .any(|bytes| bytes.iter().all(u8::is_ascii_hexdigit));
        assert!(!clear, "what waits is sealed");
    }
    assert!(empty(directory.path()), "nothing stays");
    assert!(manifest.stored_bytes() > 60 << 20, "{}", manifest.stored_bytes());
    assert_eq!(manifest.counts.as_ref().map(|counts| counts.rows()), Some(60_000));
    stream::read(&repository, &manifest, None, Box::new(std::io::sink()))
        .await
        .expect("whole");
}

async fn store(repository: &Repository, journal: &Journal) -> Result<(), String> {
    let source = Source::Stream(Feed::Reader(Box::new(content())));
    let stored = backup(repository, journal, &order(files()), source, outside()).await;
    match stored {
        Ok(manifest) => stream::read(repository, &manifest, None, Box::new(std::io::sink()))
            .await
            .map(|_| ())
            .map_err(|error| format!("not whole: {error}")),
        Err(error) => Err(rig_chain(&error)),
    }
}

fn rig_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_ends_with_its_backup_however_that_ends() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let repository = with_spool(rig::repository(s3.store("spool")).await, directory.path());
    let journal = rig::journal(directory.path());
    store(&repository, &journal).await.expect("stored");
    assert!(empty(directory.path()), "after a good one");

    // The place refuses in the middle.
    s3.fault(
        |seen: &Seen| seen.part() && seen.query.contains("partNumber=2"),
        Fault::Status(403, "AccessDenied"),
    );
    let refused = store(&repository, &journal).await.expect_err("refused");
    assert!(refused.contains("AccessDenied"), "{refused}");
    assert!(empty(directory.path()), "after a refusal");

    // The process dies: what it leaves is known to the journal.
    let hang: fn(&Seen) -> bool = Seen::part;
    s3.fault(hang, Fault::Hang);
    s3.fault(hang, Fault::Hang);
    {
        let dying = store(&repository, &journal);
        let seen_waiting = async {
            while waiting(directory.path()).len() < 3 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = dying => panic!("{ended:?}"),
            () = seen_waiting => {}
        }
    }
    let interrupted = journal.interrupted().expect("read");
    assert_eq!(interrupted.len(), 1);
    for entry in interrupted {
        // As it lies there after a kill, of which no destructor knows.
        let appliance_backup::journal::Intent::Backup { spool: Some(own), .. } = &entry.intent else {
            panic!("{:?}", entry.intent);
        };
        std::fs::create_dir_all(own).expect("directory");
        std::fs::write(own.join("00000000.part"), b"sealed").expect("file");
        spool::forget(&entry.intent).expect("removed, whether or not the place answers");
        assert!(empty(directory.path()), "after a crash");
        appliance_backup::recover::settle(Some(&repository), None, entry)
            .await
            .expect("settled");
    }
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!((catalogue.backups.len(), catalogue.unusable.len()), (1, 0));
    store(&repository, &journal).await.expect("the next run is clean");

    // A disk without room makes it slower, never worse, and the manifest says so.
    let crowded = repository.clone().spooling(Spool {
        directory: directory.path().join("spool"),
        reserve: u64::MAX / 2,
    });
    // Attempts that are made again keep the place behind what comes.
    for _ in 0..3 {
        s3.fault(Seen::part, Fault::Reset);
    }
    let source = Source::Stream(Feed::Reader(Box::new(content())));
    let manifest = backup(&crowded, &journal, &order(files()), source, outside())
        .await
        .expect("stored");
    assert!(
        manifest
            .warnings
            .iter()
            .any(|warning| warning.contains("no room")),
        "{:?}",
        manifest.warnings
    );
    assert!(empty(directory.path()), "after a crowded one");
}
