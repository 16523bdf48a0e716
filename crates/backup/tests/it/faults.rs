//! Bad days: no fault leaves a listed backup that does not restore, and the next run is clean.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use appliance_backup::backup::{BackupError, Order, Source, backup};
use appliance_backup::journal::Journal;
use appliance_backup::manifest::Manifest;
use appliance_backup::names::Kind;
use appliance_backup::names::{BackupId, MANIFEST, Subject};
use appliance_backup::postgres::Postgres;
use appliance_backup::recover;
use appliance_backup::repository::Repository;
use appliance_backup::restore::{Target, restore};
use appliance_backup::retention::Plan;
use appliance_backup::store::{FileStore, PART, S3Options};
use appliance_backup::stream::{self, Feed};

use crate::rig::cluster::Cluster;
use crate::rig::s3::{Fault, Seen};
use crate::rig::{self, S3, cluster, outside, subject};

/// The requests that a fault meets.
type Which = fn(&Seen) -> bool;

fn order(subject: &Subject) -> Order {
    Order {
        subject: subject.clone(),
        image: None,
        bandwidth: None,
        previous: None,
        odd: None,
    }
}

fn files() -> Subject {
    Subject {
        kind: Kind::Volume,
        unit: "data".to_owned(),
        ..subject("")
    }
}

/// Incompressible, of a size that makes a volume of several parts.
fn content() -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..PART * 5 / 2 / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

async fn store_content(repository: &Repository, journal: &Journal) -> Result<Manifest, BackupError> {
    let source = Source::Stream(Feed::Reader(Box::new(std::io::Cursor::new(content()))));
    backup(repository, journal, &order(&files()), source, outside()).await
}

/// Every listed backup opens; nothing is left over beside what it names.
async fn all_listed_are_good(repository: &Repository) -> usize {
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!(catalogue.unusable, [], "left behind");
    for found in &catalogue.backups {
        stream::read(repository, &found.manifest, None, Box::new(std::io::sink()))
            .await
            .expect("whole");
    }
    catalogue.backups.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_the_store_are_outlived_or_leave_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let repository = rig::repository(s3.store("faults")).await;
    let journal = rig::journal(directory.path());
    let part: fn(&Seen) -> bool = Seen::part;
    let complete: fn(&Seen) -> bool = Seen::complete;
    let manifest: fn(&Seen) -> bool = Seen::manifest;
    let survived: [&[(Which, Fault)]; 8] = [
        &[
            (part, Fault::Status(500, "InternalError")),
            (part, Fault::Status(503, "SlowDown")),
            (part, Fault::Status(503, "SlowDown")),
        ],
        &[
            (part, Fault::Reset),
            (part, Fault::Reset),
            (manifest, Fault::Reset),
        ],
        &[(part, Fault::FlippedByte)],
        &[(part, Fault::LostReply), (part, Fault::LostReply)],
        &[(complete, Fault::ErrorWith200)],
        &[(complete, Fault::LostReply)],
        &[(manifest, Fault::LostReply)],
        &[
            (complete, Fault::Status(500, "InternalError")),
            (manifest, Fault::Status(503, "SlowDown")),
        ],
    ];
    let mut made = 0;
    for faults in survived {
        for (which, fault) in faults {
            s3.fault(*which, *fault);
        }
        let stored = store_content(&repository, &journal).await;
        assert!(stored.is_ok(), "{faults:?}: {stored:?}");
        assert_eq!(s3.faults_left(), 0, "the fault happened");
        made += 1;
    }
    assert_eq!(all_listed_are_good(&repository).await, made);

    // Rights that end half-way, and credentials that expire, are said at once, and nothing is left.
    for code in ["AccessDenied", "ExpiredToken"] {
        for which in [part, complete, manifest] {
            s3.fault(which, Fault::Status(403, code));
            let refused = store_content(&repository, &journal).await.expect_err("refused");
            assert!(chain(&refused).contains(code), "{}", chain(&refused));
        }
    }
    assert_eq!(all_listed_are_good(&repository).await, made);
    assert!(journal.interrupted().expect("read").is_empty());
    // A wrong secret is a refusal as well.
    let wrong = S3Options {
        secret_access_key: "wrong".to_owned(),
        ..s3.options("faults")
    };
    let refused = repository.through(rig::s3::store(wrong));
    assert!(
        chain(&store_content(&refused, &journal).await.expect_err("refused"))
            .contains("SignatureDoesNotMatch")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_in_the_middle_and_an_answer_that_never_comes_are_outlived() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = Arc::new(S3::start(&directory.path().join("s3")).await);
    // The attempt's limit is short, so that a hung answer is noticed within the test.
    let quick = S3Options {
        attempt_limit: Some(Duration::from_secs(10)),
        ..s3.options("outage")
    };
    let repository = rig::repository(rig::s3::store(quick)).await;
    let journal = rig::journal(directory.path());
    s3.fault(Seen::part, Fault::Hang);
    store_content(&repository, &journal).await.expect("outlived");
    s3.down(true);
    let ends = Arc::clone(&s3);
    let before = s3.seen().len();
    let outage = tokio::spawn(async move {
        // Long enough for several attempts; the SDK on its own gives up after about two seconds.
        tokio::time::sleep(Duration::from_secs(4)).await;
        ends.down(false);
    });
    store_content(&repository, &journal).await.expect("outlived");
    outage.await.expect("ended");
    assert!(s3.seen().len() > before);
    assert_eq!(all_listed_are_good(&repository).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_is_never_a_backup() {
    let directory = tempfile::tempdir().expect("directory");
    let cluster = Cluster::start();
    let server = cluster.postgres(directory.path());
    server
        .run("postgres", "CREATE DATABASE failing")
        .await
        .expect("made");
    server
        .run("failing", "CREATE TABLE public.t AS SELECT n, repeat(md5(n::text), 200) AS x FROM generate_series(1, 20000) AS n")
        .await
        .expect("filled");
    let repository = rig::repository(Arc::new(FileStore::new(directory.path().join("backups")))).await;
    let journal = rig::journal(directory.path());
    let order = Order {
        bandwidth: Some(32 << 20),
        ..order(&subject("failing"))
    };

    // Somebody ends its session while it dumps.
    let killer = server.clone();
    let killing = tokio::spawn(async move {
        loop {
            let question = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'COPY public.t %' AND datname = 'failing'";
            if killer.run("postgres", question).await.expect("asked") != "0" {
                return;
            }
        }
    });
    let failed = backup(
        &repository,
        &journal,
        &order,
        Source::Postgres(&server),
        outside(),
    )
    .await
    .expect_err("ended");
    killing.await.expect("killed it");
    assert!(chain(&failed).contains("pg_dump"), "{}", chain(&failed));

    // A server that lets nobody in, and one that is not there.
    let place = Arc::clone(server.place());
    let gone = Postgres::new(place, vec![("PGHOST".to_owned(), "/nonexistent".to_owned())]);
    let failed = backup(&repository, &journal, &order, Source::Postgres(&gone), outside())
        .await
        .expect_err("not there");
    assert!(chain(&failed).contains("psql"), "{}", chain(&failed));
    server
        .run("postgres", "DROP ROLE IF EXISTS nobody; CREATE ROLE nobody LOGIN")
        .await
        .expect("made");
    let env = [
        ("PGHOST", cluster.socket().to_str().expect("text")),
        ("PGUSER", "nobody"),
    ];
    let nobody = Postgres::new(
        Arc::clone(server.place()),
        env.map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec(),
    );
    let failed = backup(
        &repository,
        &journal,
        &order,
        Source::Postgres(&nobody),
        outside(),
    )
    .await
    .expect_err("no rights");
    assert!(chain(&failed).contains("permission denied"), "{}", chain(&failed));

    assert_eq!(all_listed_are_good(&repository).await, 0);
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'appliance backup _%' AND datname = 'failing'";
    assert_eq!(
        server.run("postgres", sessions).await.expect("asked"),
        "0",
        "no orphan"
    );
    backup(
        &repository,
        &journal,
        &order,
        Source::Postgres(&server),
        outside(),
    )
    .await
    .expect("the next run is clean");
    assert_eq!(all_listed_are_good(&repository).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_leaves_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let small = directory.path().join("small");
    std::fs::create_dir(&small).expect("directory");
    let store = Full {
        inner: FileStore::new(&small),
        left: std::sync::atomic::AtomicUsize::new(2),
    };
    let repository = rig::repository(Arc::new(FileStore::new(&small))).await;
    let full = repository.through(Arc::new(store));
    let journal = rig::journal(directory.path());
    let failed = store_content(&full, &journal).await.expect_err("full");
    assert!(chain(&failed).contains("No space left"), "{}", chain(&failed));
    assert_eq!(all_listed_are_good(&repository).await, 0);
    let left: Vec<_> = walk(&small)
        .into_iter()
        .filter(|name| name.contains(".upload-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    store_content(&repository, &journal)
        .await
        .expect("once there is room");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_altered_dropped_copied_or_forged_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path().join("backups");
    let repository = rig::repository(Arc::new(FileStore::new(&root))).await;
    let journal = rig::journal(directory.path());
    let first = store_content(&repository, &journal).await.expect("stored");
    let second = store_content(&repository, &journal).await.expect("stored");
    let path = |manifest: &Manifest, name: &str| root.join(manifest.subject.key(&manifest.id, name));
    let usable = async || repository.catalogue("").await.expect("listed").backups.len();
    assert_eq!(usable().await, 2);

    // The manifest of one backup beside the objects of the other, with and without its name.
    let (one, two) = (
        std::fs::read(path(&first, MANIFEST)).expect("read"),
        std::fs::read(path(&second, MANIFEST)).expect("read"),
    );
    overwrite(&path(&second, MANIFEST), &one);
    assert_eq!(usable().await, 1);
    // A number in it.
    let text = String::from_utf8(two.clone())
        .expect("text")
        .replace("\"plain_bytes\":2", "\"plain_bytes\":3");
    overwrite(&path(&second, MANIFEST), text.as_bytes());
    assert_eq!(usable().await, 1);
    // Signed by somebody else.
    let stranger = appliance_backup::sign::Signer::from_seed(&[9; 32]);
    overwrite(&path(&second, MANIFEST), &stranger.seal(&second).expect("sealed"));
    let catalogue = repository.catalogue("").await.expect("listed");
    assert!(
        catalogue.unusable[0].why.contains("trusted"),
        "{:?}",
        catalogue.unusable
    );
    overwrite(&path(&second, MANIFEST), &two);
    // One byte of the content, the size as it was: it is listed, and no reader takes it.
    let volume = path(&second, "vol-00000.zst.age");
    let mut bytes = std::fs::read(&volume).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    overwrite(&volume, &bytes);
    assert_eq!(usable().await, 2);
    assert!(
        stream::read(&repository, &second, None, Box::new(std::io::sink()))
            .await
            .is_err()
    );
    // Another volume in its place, valid and of the same size.
    overwrite(
        &volume,
        &std::fs::read(path(&first, "vol-00000.zst.age")).expect("read"),
    );
    assert!(
        stream::read(&repository, &second, None, Box::new(std::io::sink()))
            .await
            .is_err()
    );
    // Dropped.
    std::fs::remove_file(&volume).expect("removed");
    assert_eq!(usable().await, 1);
    // An old backup replayed as a new one is still old: its id is signed.
    let newer = BackupId::new(
        jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
        [3; 10],
    );
    let copied = root.join(first.subject.key(&newer, ""));
    std::fs::create_dir_all(&copied).expect("directory");
    for name in [MANIFEST, "vol-00000.zst.age"] {
        std::fs::copy(path(&first, name), copied.join(name)).expect("copied");
    }
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!(catalogue.backups.last().expect("one").manifest.id, first.id);
    assert!(
        catalogue
            .unusable
            .iter()
            .any(|other| other.id == newer && other.why.contains("a copy"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_follows_the_plan_and_sudden_shrinkage_is_noticed() {
    let directory = tempfile::tempdir().expect("directory");
    let repository = rig::repository(Arc::new(FileStore::new(directory.path().join("backups")))).await;
    let journal = rig::journal(directory.path());
    let server = cluster::shared().postgres(directory.path());
    server
        .run("postgres", "CREATE DATABASE shrinking")
        .await
        .expect("made");
    server.run("shrinking", "CREATE TABLE public.t AS SELECT generate_series(1, 1000) AS n; CREATE TABLE public.u AS SELECT 1 AS n").await.expect("filled");
    let first = backup(
        &repository,
        &journal,
        &order(&subject("shrinking")),
        Source::Postgres(&server),
        outside(),
    )
    .await
    .expect("made");
    server
        .run(
            "shrinking",
            "DELETE FROM public.t WHERE n > 500; DROP TABLE public.u",
        )
        .await
        .expect("shrunk");
    let next = Order {
        previous: Some(first.clone()),
        odd: None,
        ..order(&subject("shrinking"))
    };
    let second = backup(&repository, &journal, &next, Source::Postgres(&server), outside())
        .await
        .expect("made");
    assert!(
        second
            .suspicious
            .iter()
            .any(|why| why == "rows fell from 1001 to 500"),
        "{:?}",
        second.suspicious
    );
    assert!(
        second
            .suspicious
            .iter()
            .any(|why| why == "the table public.u vanished")
    );
    // Restoring the one before brings the rows back.
    restore(
        &repository,
        &journal,
        &server,
        &first,
        &Target::Swap,
        None,
        outside(),
    )
    .await
    .expect("restored");
    assert_eq!(
        server
            .run("shrinking", "SELECT count(*) FROM public.t")
            .await
            .expect("asked"),
        "1000"
    );

    let catalogue = repository.catalogue("").await.expect("listed");
    let plan = Plan {
        keep: vec![],
        remove: vec![first.id.clone()],
        frozen: None,
    };
    assert_eq!(
        recover::prune(&repository, &journal, &catalogue, &plan, "word")
            .await
            .expect("pruned"),
        1
    );
    let left = repository.catalogue("").await.expect("listed");
    assert_eq!((left.backups.len(), left.unusable.len()), (1, 0));
    assert_eq!(left.backups[0].manifest.id, second.id);
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn overwrite(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(bytes))
        .expect("written");
}

fn walk(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .flat_map(|entry| {
            if entry.path().is_dir() {
                walk(&entry.path())
            } else {
                vec![entry.path().display().to_string()]
            }
        })
        .collect()
}

/// A directory on a disk that is full after a few writes: the one fault here that no unprivileged real part can show.
struct Full {
    inner: FileStore,
    left: std::sync::atomic::AtomicUsize,
}

struct FullUpload(
    Box<dyn appliance_backup::store::Upload>,
    std::sync::atomic::AtomicUsize,
);

impl appliance_backup::store::Upload for FullUpload {
    fn id(&self) -> &str {
        self.0.id()
    }
    fn part(&self, number: usize, bytes: bytes::Bytes) -> appliance_backup::store::Answer<'_, ()> {
        use std::sync::atomic::Ordering;
        if self
            .1
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_err()
        {
            return Box::pin(std::future::ready(Err(appliance_backup::store::StoreError {
                kind: appliance_backup::store::StoreErrorKind::Other,
                action: "write",
                key: "part".to_owned(),
                place: "a full disk".to_owned(),
                source: std::io::Error::from_raw_os_error(nix::libc::ENOSPC).into(),
            })));
        }
        self.0.part(number, bytes)
    }
    fn complete(&self, parts: usize, size: u64) -> appliance_backup::store::Answer<'_, ()> {
        self.0.complete(parts, size)
    }
}

impl appliance_backup::store::Store for Full {
    fn place(&self) -> String {
        self.inner.place()
    }
    fn put_new<'a>(&'a self, key: &'a str, bytes: bytes::Bytes) -> appliance_backup::store::Answer<'a, ()> {
        self.inner.put_new(key, bytes)
    }
    fn begin<'a>(
        &'a self,
        key: &'a str,
    ) -> appliance_backup::store::Answer<'a, Box<dyn appliance_backup::store::Upload>> {
        Box::pin(async move {
            let left = self.left.load(std::sync::atomic::Ordering::Relaxed);
            let upload = FullUpload(self.inner.begin(key).await?, left.into());
            Ok(Box::new(upload) as Box<dyn appliance_backup::store::Upload>)
        })
    }
    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> appliance_backup::store::Answer<'a, ()> {
        self.inner.abort(key, upload)
    }
    fn size<'a>(&'a self, key: &'a str) -> appliance_backup::store::Answer<'a, Option<u64>> {
        self.inner.size(key)
    }
    fn read<'a>(
        &'a self,
        key: &'a str,
        from: u64,
        length: u64,
    ) -> appliance_backup::store::Answer<'a, bytes::Bytes> {
        self.inner.read(key, from, length)
    }
    fn list<'a>(
        &'a self,
        prefix: &'a str,
    ) -> appliance_backup::store::Answer<'a, Vec<appliance_backup::store::Listed>> {
        self.inner.list(prefix)
    }
    fn delete<'a>(&'a self, key: &'a str) -> appliance_backup::store::Answer<'a, ()> {
        self.inner.delete(key)
    }
    fn unfinished<'a>(
        &'a self,
        prefix: &'a str,
    ) -> appliance_backup::store::Answer<'a, Vec<appliance_backup::store::Unfinished>> {
        self.inner.unfinished(prefix)
    }
    fn clock_skew(&self) -> appliance_backup::store::Answer<'_, Option<jiff::SignedDuration>> {
        self.inner.clock_skew()
    }
}
