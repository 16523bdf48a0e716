//! A lax store beside the strict one: moto checks no signature and no digest, and knows versions and unfinished uploads.

use appliance_backup::backup::{Source, backup};
use appliance_backup::names::{Kind, Subject};
use appliance_backup::recover;
use appliance_backup::restore::{Target, restore};
use appliance_backup::retention::Plan;

use crate::rig::moto::Moto;
use crate::rig::{self, cluster, outside, subject};

#[tokio::test(flavor = "multi_thread")]
async fn a_lax_store_with_versions_keeps_backups_as_well_and_is_swept() {
    let directory = tempfile::tempdir().expect("directory");
    let moto = Moto::start();
    moto.bucket().await;
    let server = cluster::shared().postgres(directory.path());
    server.run("postgres", "CREATE DATABASE lax").await.expect("made");
    // More than two parts, so that the object is a multipart one.
    server
        .run(
            "lax",
            "CREATE EXTENSION pgcrypto SCHEMA public; CREATE TABLE public.t AS SELECT n, public.gen_random_bytes(1024) AS b \
             FROM generate_series(1, 18000) AS n",
        )
        .await
        .expect("filled");
    let repository = rig::repository(moto.store("some/prefix")).await;
    let journal = rig::journal(directory.path());
    let order = rig::order(subject("lax"));
    let mut made = Vec::new();
    for _ in 0..2 {
        let source = Source::Postgres(&server);
        made.push(
            backup(&repository, &journal, &order, source, outside())
                .await
                .expect("a backup"),
        );
    }
    let restored = restore(
        &repository,
        &journal,
        &server,
        &made[0],
        &Target::Beside,
        None,
        outside(),
    )
    .await
    .expect("restored");
    assert_eq!(restored.rows, 18_000);

    // What was removed is removed for every list, though the store keeps the versions.
    let catalogue = repository.catalogue("").await.expect("listed");
    let plan = Plan {
        keep: vec![],
        remove: vec![made[0].id.clone()],
        frozen: None,
    };
    recover::prune(&repository, &journal, &catalogue, &plan, "word")
        .await
        .expect("pruned");
    assert_eq!(
        repository.catalogue("").await.expect("listed").backups.len(),
        1,
        "one is left"
    );

    // Unfinished uploads: ours goes once it is old, those of others stay whatever their age.
    let store = &repository.store;
    let ours = subject("lax").key(&made[1].id, "vol-00007.zst.age");
    store.begin(&ours).await.expect("begun");
    store.begin("photos/holiday.jpg").await.expect("begun");
    let elsewhere = Subject {
        kind: Kind::Redis,
        ..subject("lax")
    };
    moto.store("another/prefix")
        .begin(&elsewhere.key(&made[1].id, "vol-00000.zst.age"))
        .await
        .expect("begun");
    let now = jiff::Timestamp::now();
    assert_eq!(recover::sweep(&repository, "", now).await.expect("swept"), 0);
    let later = now + jiff::SignedDuration::from_hours(49);
    assert_eq!(recover::sweep(&repository, "", later).await.expect("swept"), 1);
    let left = store.unfinished("").await.expect("listed");
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0].key, "photos/holiday.jpg");
    assert_eq!(
        moto.store("another/prefix")
            .unfinished("")
            .await
            .expect("listed")
            .len(),
        1,
        "another prefix is not ours"
    );
    assert_eq!(repository.catalogue("").await.expect("listed").backups.len(), 1);
}
