//! Failures that other tools had in the field, and that must not happen here; the table is in the crate's documentation.

use std::collections::BTreeMap;
use std::sync::Arc;

use appliance_backup::backup::{BackupError, Order, Source, backup};
use appliance_backup::manifest::Manifest;
use appliance_backup::names::BackupId;
use appliance_backup::recover;
use appliance_backup::repository::{Keys, Repository};
use appliance_backup::restore::{RestoreError, Target, restore};
use appliance_backup::retention::{self, Candidate, Circumstances, Keep, Plan};
use appliance_backup::sign::Signer;
use appliance_backup::store::{FileStore, StoreErrorKind};

use crate::rig::s3::{Fault, Seen};
use crate::rig::{self, S3, cluster, content, files, order, outside, source, subject, whole};

async fn store(
    repository: &Repository,
    directory: &std::path::Path,
    content: Vec<u8>,
) -> Result<Manifest, BackupError> {
    let journal = rig::journal(directory);
    backup(repository, &journal, &order(files()), source(content), outside()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_no_backup() {
    let directory = tempfile::tempdir().expect("directory");
    let repository = rig::in_directory(directory.path().join("backups")).await;
    let refused = store(&repository, directory.path(), Vec::new())
        .await
        .expect_err("refused");
    assert!(refused.to_string().contains("empty"), "{refused}");
    assert_eq!(
        repository.catalogue("").await.expect("listed"),
        Default::default()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_outlives_what_a_store_does_while_it_reads_and_takes_no_wrong_byte() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let repository = rig::repository(s3.store("reading")).await;
    let manifest = store(&repository, directory.path(), content())
        .await
        .expect("stored");
    for fault in [
        Fault::Status(500, "InternalError"),
        Fault::Status(503, "SlowDown"),
        Fault::Reset,
        Fault::LostReply,
        // As a store that drops readers which are slow: the rest is asked for again.
        Fault::HalfReply,
    ] {
        s3.fault(Seen::read, fault);
        whole(&repository, &manifest).await.expect("outlived");
        assert_eq!(s3.faults_left(), 0, "{fault:?} happened");
    }
    s3.fault(Seen::read, Fault::FlippedReply);
    let refused = whole(&repository, &manifest).await.expect_err("a wrong byte");
    let text = format!("{refused:?}");
    assert!(
        text.contains("altered") || text.contains("Decrypt") || text.contains("Open"),
        "{text}"
    );

    // Lists, looks, begins and removals are tried again as well.
    for (which, fault) in [
        (Seen::list as fn(&Seen) -> bool, Fault::Status(503, "SlowDown")),
        (Seen::head, Fault::Reset),
        (Seen::begin, Fault::LostReply),
        (Seen::delete, Fault::LostReply),
    ] {
        s3.fault(which, fault);
    }
    let second = store(&repository, directory.path(), content())
        .await
        .expect("stored");
    let catalogue = repository.catalogue("").await.expect("listed");
    let plan = Plan {
        keep: vec![],
        remove: vec![manifest.id.clone()],
        frozen: None,
    };
    let journal = rig::journal(directory.path());
    recover::prune(&repository, &journal, &catalogue, &plan, "word")
        .await
        .expect("pruned");
    assert_eq!(s3.faults_left(), 0);
    let left = repository.catalogue("").await.expect("listed");
    assert_eq!(left.backups.len(), 1);
    assert_eq!(left.backups[0].manifest.id, second.id);
    assert_eq!(left.unusable, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_knows_neither_checksums_nor_conditions_is_used_without() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    s3.plain();
    let repository = rig::repository(s3.store("plain")).await;
    let manifest = store(&repository, directory.path(), content())
        .await
        .expect("stored");
    whole(&repository, &manifest).await.expect("whole");
    let seen = s3.seen();
    let part = seen.iter().rfind(|seen| seen.part()).expect("a part");
    assert!(!part.headers.contains_key("x-amz-checksum-crc32"));
    // Every byte is still signed for.
    let payload = part.headers["x-amz-content-sha256"].to_str().expect("text");
    assert_eq!(payload.len(), 64, "{payload}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_stops_no_backup_and_removes_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let repository = rig::repository(s3.store("clock")).await;
    s3.ahead(jiff::SignedDuration::from_hours(1));
    let manifest = store(&repository, directory.path(), content())
        .await
        .expect("signed by the store's clock");
    let skew = repository.store.clock_skew().await.expect("asked").expect("told");
    assert!((3500..3700).contains(&skew.as_secs()), "{skew}");
    let candidates: Vec<Candidate> = (0..9)
        .map(|days| {
            let at = manifest.ended_at - jiff::SignedDuration::from_hours(24 * days);
            Candidate {
                id: BackupId::new(at, [0; 10]),
                at,
                verified: true,
                suspicious: false,
                held: false,
            }
        })
        .collect();
    let plan = retention::plan(
        &candidates,
        Keep {
            last: 0,
            hourly: 0,
            daily: 7,
            weekly: 0,
            monthly: 0,
        },
        &Circumstances {
            now: manifest.ended_at,
            zone: jiff::tz::TimeZone::UTC,
            interval: None,
            skew: Some(skew),
            confirmed: false,
        },
    );
    assert!(!plan.remove.is_empty());
    assert!(
        plan.frozen.as_ref().is_some_and(|why| why.contains("clock")),
        "{:?}",
        plan.frozen
    );
}

/// A restore that says "complete" whatever happened, or harms what is live, is the worst of all.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_brings_something_else_is_an_error_and_the_live_database_stays() {
    for version in cluster::VERSIONS {
        something_else(version).await;
    }
}

async fn something_else(version: u32) {
    let directory = tempfile::tempdir().expect("directory");
    let server = cluster::live(version).postgres(directory.path());
    server
        .run("postgres", "CREATE DATABASE honest")
        .await
        .expect("made");
    server
        .run(
            "honest",
            "CREATE TABLE public.t AS SELECT generate_series(1, 100) AS n",
        )
        .await
        .expect("filled");
    let repository = rig::in_directory(directory.path().join("backups")).await;
    let journal = rig::journal(directory.path());
    let manifest = backup(
        &repository,
        &journal,
        &order(subject("honest")),
        Source::Postgres(&server),
        outside(),
    )
    .await
    .expect("a backup");
    server
        .run("honest", "INSERT INTO public.t VALUES (101)")
        .await
        .expect("live goes on");

    let mut fewer = manifest.clone();
    if let Some(counts) = &mut fewer.counts {
        counts.tables.entry("public.t".to_owned()).or_default().rows = 99;
    }
    let mut newer = manifest.clone();
    if let Some(server) = &mut newer.server {
        (server.version, server.version_text) = (990_001, "99.1".to_owned());
    }
    let mut schema = manifest.clone();
    if let Some(database) = &mut schema.database {
        database.schema = "another".to_owned();
    }
    // As if the image had lost a library: the first error ends it.
    let mut lost = manifest.clone();
    lost.volumes.clear();
    for (bad, says) in [
        (fewer, "tables or rows"),
        (newer, "an older server cannot read it"),
        (schema, "the schema differs"),
        (lost, "decrypt"),
    ] {
        let failed = restore(
            &repository,
            &journal,
            &server,
            &bad,
            &Target::Swap,
            None,
            outside(),
        )
        .await
        .expect_err(says);
        assert!(failed.to_string().contains(says), "{failed}");
        if says.contains("older") {
            assert!(matches!(failed, RestoreError::Older { .. }));
        }
    }
    assert_eq!(
        server
            .run("honest", "SELECT count(*) FROM public.t")
            .await
            .expect("asked"),
        "101"
    );
    assert!(
        server
            .run(
                "postgres",
                "SELECT string_agg(datname, ',') FROM pg_database WHERE datname LIKE 'honest\\_%'"
            )
            .await
            .expect("asked")
            .is_empty(),
        "nothing is left beside it"
    );
    assert!(journal.interrupted().expect("read").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_host_is_lost_place_and_recovery_key_are_enough() {
    let directory = tempfile::tempdir().expect("directory");
    let place = directory.path().join("backups");
    let recovery = age::x25519::Identity::generate();
    let mut keys = rig::keys();
    keys.recipients.push(recovery.to_public().to_string());
    let signer = keys.signer.public();
    let open = async |keys: Keys| {
        Repository::open(
            Arc::new(FileStore::new(&place)),
            keys,
            jiff::Timestamp::now(),
            [1; 16],
        )
        .await
        .expect("opened")
    };
    let manifest = store(&open(keys).await, directory.path(), content())
        .await
        .expect("stored");

    // A new host has keys of its own; whose signatures it trusts is said by whoever restores.
    let mut new = Keys {
        signer: Arc::new(Signer::from_seed(&[9; 32])),
        trusted: vec![],
        recipients: vec![recovery.to_public().to_string()],
        identity: recovery,
        host: "new".to_owned(),
    };
    let stranger = open(new.clone()).await.catalogue("").await.expect("listed");
    assert_eq!(stranger.backups.len(), 0, "a stranger's signature is no proof");
    new.trusted = vec![signer];
    let repository = open(new.clone()).await;
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!(catalogue.backups[0].manifest, manifest);
    whole(&repository, &manifest)
        .await
        .expect("opened with the recovery key");
    new.identity = age::x25519::Identity::generate();
    whole(&open(new).await, &manifest)
        .await
        .expect_err("any other key does not open it");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_takes_what_is_old_and_ours_and_nothing_else() {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path().join("backups");
    let repository = rig::in_directory(&root).await;
    let good = store(&repository, directory.path(), content())
        .await
        .expect("stored");
    let broken = outside().id();
    let key = |name: &str| files().key(&broken, name);
    repository
        .store
        .put_new(&key("vol-00000.zst.age"), "half".into())
        .await
        .expect("stored");
    repository
        .store
        .begin(&key("vol-00001.zst.age"))
        .await
        .expect("begun");
    repository
        .store
        .put_new("holiday/photo.jpg", "mine".into())
        .await
        .expect("stored");
    let now = jiff::Timestamp::now();
    let hours = |hours| now + jiff::SignedDuration::from_hours(hours);
    assert_eq!(
        recover::sweep(&repository, "", hours(47)).await.expect("swept"),
        0
    );
    let other = repository
        .store
        .unfinished("shop/postgres/")
        .await
        .expect("listed");
    assert!(other.is_empty(), "{other:?}");
    assert_eq!(
        recover::sweep(&repository, "", hours(49)).await.expect("swept"),
        2
    );
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!(catalogue.unusable, []);
    assert_eq!(catalogue.backups[0].manifest.id, good.id);
    let listed: BTreeMap<String, u64> = repository
        .store
        .list("")
        .await
        .expect("listed")
        .into_iter()
        .map(|found| (found.key, found.size))
        .collect();
    assert_eq!(listed["holiday/photo.jpg"], 4);
    assert!(repository.store.unfinished("").await.expect("listed").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_goes_out_in_a_second_than_was_said() {
    let directory = tempfile::tempdir().expect("directory");
    let repository = rig::in_directory(directory.path().join("backups")).await;
    let limited = Order {
        // Two parts and a bit at this pace take at least a second and a half.
        bandwidth: Some(12 << 20),
        ..order(files())
    };
    let source = source(content());
    let begun = std::time::Instant::now();
    let manifest = backup(
        &repository,
        &rig::journal(directory.path()),
        &limited,
        source,
        outside(),
    )
    .await
    .expect("stored");
    let rate = manifest.stored_bytes() as f64 / begun.elapsed().as_secs_f64();
    assert!(rate <= f64::from(12 << 20) * 1.01, "{rate} bytes a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_said_at_once() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let put = |seen: &Seen| seen.method == "PUT";
    s3.fault(put, Fault::Status(404, "NoSuchBucket"));
    let begun = std::time::Instant::now();
    let refused = s3.store("x").put_new("x", "x".into()).await.expect_err("refused");
    assert_eq!(refused.kind, StoreErrorKind::Denied, "{refused:?}");
    assert!(
        begun.elapsed().as_secs() < 30,
        "no patience with what does not pass"
    );
}
