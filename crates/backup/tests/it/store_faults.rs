//! The store's bad moments, one by one: each fault at each request of each operation.
//!
//! | fault | backup | restore, drill | prune |
//! |---|---|---|---|
//! | 500, 503, connection reset, lost or half an answer | outlived | outlived | outlived |
//! | no answer at all | outlived | outlived | outlived |
//! | away for 3 s, 60 s, 10 min | outlived | outlived | outlived |
//! | 200 with an error in it | outlived | – | – |
//! | a byte flipped on the way there | refused by the store, sent again | – | – |
//! | a byte flipped on the way back | – | told: live data stays | – |
//! | rights that end, credentials that expire | told, nothing left | told: live data stays | told, the rest at the next start |
//! | a clock that is wrong | signed anew | signed anew | signed anew |
//!
//! After each: every listed backup is whole and passes a drill, live data is as it was, the next run is clean.
//!
//! Both before the strict server and the lax one; the latter checks no digest, so a flipped byte is not for it.

use std::sync::Arc;
use std::time::Duration;

use appliance_backup::backup::BackupError;
use appliance_backup::manifest::Manifest;
use appliance_backup::recover;
use appliance_backup::repository::Repository;
use appliance_backup::restore;
use appliance_backup::retention::Plan;
use appliance_backup::store::{Patience, Retrying, S3Options, S3Store};

use crate::rig::moto::Moto;
use crate::rig::s3::{Fault, Seen, Which};
use crate::rig::scene::Scene;
use crate::rig::{self, S3, cluster, outside};

/// The store's patience goes by a clock this many times as fast, and so do the outages.
const FASTER: u32 = 200;
/// The longest time of an attempt: a hung answer is noticed within the test.
const ATTEMPT: Duration = Duration::from_secs(4);

/// A kind of request.
type Request = (&'static str, Which);
const BEGIN: Request = ("begin", Seen::begin);
const PART: Request = ("part", Seen::part);
const COMPLETE: Request = ("complete", Seen::complete);
const HEAD: Request = ("head", Seen::head);
const MANIFEST: Request = ("manifest", Seen::manifest);
const GLOBALS: Request = ("globals", Seen::globals);
const LIST: Request = ("list", Seen::list);
const READ_MANIFEST: Request = ("read the manifest", Seen::read_manifest);
const READ: Request = ("read a volume", Seen::read);
const VERIFIED: Request = ("drill's result", Seen::verified);
const DELETE: Request = ("delete", Seen::delete);

/// What passes by itself.
const PASSING: [Fault; 6] = [
    Fault::Status(500, "InternalError"),
    Fault::Status(503, "SlowDown"),
    Fault::Reset,
    Fault::LostReply,
    Fault::HalfReply,
    Fault::Status(403, "RequestTimeTooSkewed"),
];
/// What does not.
const LASTING: [Fault; 2] = [
    Fault::Status(403, "AccessDenied"),
    Fault::Status(400, "ExpiredToken"),
];
/// 3 s, 60 s, 10 min.
const OUTAGES: [Fault; 3] = [
    Fault::Away(Duration::from_secs(3).checked_div(FASTER).expect("not zero")),
    Fault::Away(Duration::from_secs(60).checked_div(FASTER).expect("not zero")),
    Fault::Away(Duration::from_secs(600).checked_div(FASTER).expect("not zero")),
];

/// What becomes of what was going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Outlived,
    Told,
}

struct Row {
    request: Request,
    fault: Fault,
    outcome: Outcome,
}

/// Rows of `requests`, each with what passes and what does not.
fn rows(requests: &[Request]) -> Vec<Row> {
    let row = |request: Request, fault, outcome| Row {
        request,
        fault,
        outcome,
    };
    let mut rows = Vec::new();
    for request in requests {
        // The answer to a look has no body: none that could be cut, and none that could say more than a status.
        let bare = [Fault::HalfReply, Fault::Status(403, "RequestTimeTooSkewed")];
        let passing = PASSING
            .iter()
            .filter(|fault| !(request.0 == HEAD.0 && bare.contains(fault)));
        rows.extend(passing.map(|fault| row(*request, *fault, Outcome::Outlived)));
        rows.extend(LASTING.iter().map(|fault| row(*request, *fault, Outcome::Told)));
    }
    rows
}

/// The rows that are not for every request.
fn and(mut rows: Vec<Row>, more: &[(Request, Fault, Outcome)]) -> Vec<Row> {
    rows.extend(more.iter().map(|(request, fault, outcome)| Row {
        request: *request,
        fault: *fault,
        outcome: *outcome,
    }));
    rows
}

async fn repository(s3: &S3, prefix: &str) -> Repository {
    let patience = Patience::default();
    let patience = Patience {
        limit: patience.limit / FASTER,
        first: patience.first / FASTER,
        longest: patience.longest / FASTER,
    };
    let options = S3Options {
        attempt_limit: Some(ATTEMPT),
        ..s3.options(prefix)
    };
    rig::repository(Arc::new(Retrying::new(Arc::new(S3Store::new(options)), patience))).await
}

/// Has `doing` meet the fault of a row, and says whether it was outlived.
async fn meets<T, E: std::error::Error>(s3: &S3, row: &Row, doing: impl Future<Output = Result<T, E>>) {
    s3.fault(row.request.1, row.fault);
    let what = format!("{:?} at {}", row.fault, row.request.0);
    let done = doing.await;
    assert_eq!(s3.faults_left(), 0, "{what} did not happen");
    match (row.outcome, done) {
        (Outcome::Outlived, Err(error)) => panic!("{what} was not outlived: {}", rig::chain(&error)),
        (Outcome::Told, Ok(_)) => panic!("{what} was not told"),
        (Outcome::Told, Err(error)) => {
            let text = rig::chain(&error);
            if let Fault::Status(status, code) = row.fault
                && row.request.0 != HEAD.0
            {
                assert!(
                    text.contains(code) && text.contains(&status.to_string()),
                    "{what}: {text}"
                );
            }
        }
        (Outcome::Outlived, Ok(_)) => {}
    }
}

async fn remove_all(
    repository: &Repository,
    journal: &appliance_backup::journal::Journal,
) -> Result<usize, recover::RecoverError> {
    let catalogue = repository
        .catalogue("")
        .await
        .map_err(recover::RecoverError::Repository)?;
    let remove = catalogue.backups.iter().map(|found| found.manifest.id.clone());
    let plan = Plan {
        keep: vec![],
        remove: remove.collect(),
        frozen: None,
    };
    recover::prune(repository, journal, &catalogue, &plan, &outside().word()).await
}

/// A backup of several parts, through every row.
async fn backups(s3: &S3, rows: Vec<Row>) {
    let directory = tempfile::tempdir().expect("directory");
    let (repository, journal) = (repository(s3, "backups").await, rig::journal(directory.path()));
    let store = async || -> Result<Manifest, BackupError> { rig::store_content(&repository, &journal).await };
    for row in &rows {
        let what = format!("{:?} at {}", row.fault, row.request.0);
        meets(s3, row, store()).await;
        let made = usize::from(row.outcome == Outcome::Outlived);
        assert_eq!(rig::all_listed_are_good(&repository).await, made, "{what}");
        assert!(journal.interrupted().expect("read").is_empty(), "{what}");
        remove_all(&repository, &journal).await.expect("pruned");
    }
    store().await.expect("the next run is clean");
    assert_eq!(rig::all_listed_are_good(&repository).await, 1);
}

/// A removal, through every row.
async fn prunes(s3: &S3, rows: Vec<Row>) {
    let directory = tempfile::tempdir().expect("directory");
    let (repository, journal) = (repository(s3, "prunes").await, rig::journal(directory.path()));
    let small = async || {
        let order = rig::order(rig::files());
        let source = rig::source(b"little".to_vec());
        appliance_backup::backup::backup(&repository, &journal, &order, source, outside())
            .await
            .expect("the next run is clean");
    };
    for row in &rows {
        let what = format!("{:?} at {}", row.fault, row.request.0);
        small().await;
        small().await;
        meets(s3, row, remove_all(&repository, &journal)).await;
        // What could not be removed is at the next start.
        for entry in journal.interrupted().expect("read") {
            recover::settle(Some(&repository), None, entry)
                .await
                .expect("settled");
        }
        rig::all_listed_are_good(&repository).await;
        remove_all(&repository, &journal).await.expect("pruned");
        let left = repository.store.list("shop/").await.expect("listed");
        assert_eq!(left, [], "{what}: nothing stays for ever");
    }
}

const SLOW_DOWN: Fault = Fault::Status(503, "SlowDown");
const DENIED: Fault = Fault::Status(403, "AccessDenied");

/// Of a database: its backup, its restore, its drill.
struct Rows {
    backup: &'static [(Request, Fault, Outcome)],
    restore: &'static [(Request, Fault, Outcome)],
    drill: &'static [(Request, Fault, Outcome)],
}

const STRICT: Rows = Rows {
    backup: &[
        (GLOBALS, SLOW_DOWN, Outcome::Outlived),
        (GLOBALS, DENIED, Outcome::Told),
        (MANIFEST, Fault::LostReply, Outcome::Outlived),
        (MANIFEST, DENIED, Outcome::Told),
    ],
    restore: &[
        (LIST, Fault::Reset, Outcome::Outlived),
        (LIST, DENIED, Outcome::Told),
        (READ_MANIFEST, Fault::HalfReply, Outcome::Outlived),
        (READ_MANIFEST, DENIED, Outcome::Told),
        (READ, Fault::Status(500, "InternalError"), Outcome::Outlived),
        (READ, Fault::Hang, Outcome::Outlived),
        // As a store that drops readers which are slow.
        (READ, Fault::HalfReply, Outcome::Outlived),
        (READ, OUTAGES[2], Outcome::Outlived),
        (READ, DENIED, Outcome::Told),
        (READ, LASTING[1], Outcome::Told),
        (READ, Fault::FlippedReply, Outcome::Told),
    ],
    drill: &[
        (READ, Fault::Reset, Outcome::Outlived),
        (READ, DENIED, Outcome::Told),
        (VERIFIED, Fault::LostReply, Outcome::Outlived),
        (VERIFIED, DENIED, Outcome::Told),
    ],
};

const LAX: Rows = Rows {
    backup: &[
        (GLOBALS, DENIED, Outcome::Told),
        (MANIFEST, Fault::LostReply, Outcome::Outlived),
    ],
    restore: &[
        (LIST, SLOW_DOWN, Outcome::Outlived),
        (READ, Fault::HalfReply, Outcome::Outlived),
        (READ, DENIED, Outcome::Told),
        (READ, Fault::FlippedReply, Outcome::Told),
    ],
    drill: &[(READ, DENIED, Outcome::Told)],
};

/// Backup, restore and drill of a database, through every row.
async fn databases(s3: &S3, version: u32, database: &str, table: &Rows) {
    let repository = repository(s3, &format!("pg{version}")).await;
    let scene = Scene::new(cluster::live(version), repository, database).await;
    for row in and(Vec::new(), table.backup) {
        scene.goes_on().await;
        meets(s3, &row, scene.back_up()).await;
        scene
            .holds(&format!("backup, {:?} at {}", row.fault, row.request.0))
            .await;
    }
    for row in and(Vec::new(), table.restore) {
        scene.goes_on().await;
        let restoring = async {
            let found = scene.repository.catalogue("").await?;
            let newest = &found.backups.last().expect("a backup").manifest;
            scene.swap(newest).await.map(drop)
        };
        meets::<(), restore::RestoreError>(s3, &row, restoring).await;
        scene
            .holds(&format!("restore, {:?} at {}", row.fault, row.request.0))
            .await;
    }
    let scratch = cluster::scratch(version).postgres(scene.directory.path());
    for row in and(Vec::new(), table.drill) {
        scene.goes_on().await;
        let newest = scene.back_up().await.expect("a backup");
        let drilling = restore::drill(&scene.repository, &scratch, &newest, outside());
        meets(s3, &row, drilling).await;
        scene
            .holds(&format!("drill, {:?} at {}", row.fault, row.request.0))
            .await;
    }
    // A host whose clock is wrong, either way: the store's is taken.
    for hours in [1, -1] {
        s3.ahead(jiff::SignedDuration::from_hours(hours));
        scene.goes_on().await;
        let newest = scene.back_up().await.expect("signed by the store's clock");
        scene.goes_on().await;
        scene.swap(&newest).await.expect("signed by the store's clock");
        scene.holds(&format!("a clock that is {hours} h off")).await;
    }
    s3.ahead(jiff::SignedDuration::ZERO);
    scene.ends("all of it").await;
}

/// What only concerns storing something of several parts.
fn storing(strict: bool) -> Vec<(Request, Fault, Outcome)> {
    let mut more = vec![
        (COMPLETE, Fault::ErrorWith200, Outcome::Outlived),
        (PART, Fault::Hang, Outcome::Outlived),
        (MANIFEST, Fault::Hang, Outcome::Outlived),
    ];
    more.extend(OUTAGES.map(|outage| (PART, outage, Outcome::Outlived)));
    more.push((COMPLETE, OUTAGES[1], Outcome::Outlived));
    more.push((MANIFEST, OUTAGES[1], Outcome::Outlived));
    if strict {
        more.push((PART, Fault::FlippedByte, Outcome::Outlived));
        more.push((MANIFEST, Fault::FlippedByte, Outcome::Outlived));
    }
    more
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_while_it_is_stored_is_outlived_or_leaves_nothing() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(directory.path()).await;
    backups(
        &s3,
        and(rows(&[BEGIN, PART, COMPLETE, HEAD, MANIFEST]), &storing(true)),
    )
    .await;
    // A wrong secret is a refusal as well.
    let wrong = S3Options {
        secret_access_key: "wrong".to_owned(),
        ..s3.options("backups")
    };
    let repository = repository(&s3, "backups").await.through(rig::s3::store(wrong));
    let refused = rig::store_content(&repository, &rig::journal(directory.path())).await;
    let text = rig::chain(&refused.expect_err("refused"));
    assert!(text.contains("SignatureDoesNotMatch"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_while_it_is_removed_is_outlived_or_made_good_at_the_next_start() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(directory.path()).await;
    let more = OUTAGES.map(|outage| (DELETE, outage, Outcome::Outlived));
    prunes(&s3, and(rows(&[LIST, READ_MANIFEST, DELETE]), &more)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_while_a_database_is_stored_restored_or_drilled_leaves_live_data_as_it_is() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(directory.path()).await;
    databases(&s3, 17, "faults", &STRICT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_faults_before_a_lax_store() {
    let moto = Moto::start();
    moto.bucket().await;
    let s3 = S3::before(moto.port).await;
    backups(&s3, and(Vec::new(), &storing(false))).await;
    prunes(&s3, rows(&[DELETE])).await;
    databases(&s3, 15, "lax_faults", &LAX).await;
}
