//! What is stored altered, pruned, grown smaller.

use std::path::Path;

use appliance_backup::backup::{Order, Source, backup};
use appliance_backup::manifest::Manifest;
use appliance_backup::names::{BackupId, MANIFEST};
use appliance_backup::recover;
use appliance_backup::restore::{Target, restore};
use appliance_backup::retention::Plan;
use appliance_backup::stream;

use crate::rig::{self, cluster, outside, store_content, subject};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_altered_dropped_copied_or_forged_is_refused() {
    let directory = tempfile::tempdir().expect("directory");
    let root = directory.path().join("backups");
    let repository = rig::in_directory(&root).await;
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
        .replace("\"plain_bytes\":9", "\"plain_bytes\":8");
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
    let repository = rig::in_directory(directory.path().join("backups")).await;
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
        &rig::order(subject("shrinking")),
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
        ..rig::order(subject("shrinking"))
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

fn overwrite(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    std::fs::File::create(path)
        .and_then(|mut file| file.write_all(bytes))
        .expect("written");
}
