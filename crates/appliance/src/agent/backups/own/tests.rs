use std::sync::Arc;

use appliance_backup::manifest::Manifest;
use appliance_backup::names::{Kind, MANIFEST};
use appliance_backup::repository::Keys;
use appliance_backup::sign::Signer;
use appliance_backup::store::FileStore;
use jiff::Timestamp;

use super::super::Record;
use super::super::choice::{choose, meant, only_of};
use super::*;

/// The place as the host with this seed sees it, which trusts the hosts of `trusted`.
async fn host(place: &tempfile::TempDir, seed: u8, trusted: &[u8]) -> Repository {
    let identity = age::x25519::Identity::generate();
    let key = |seed: &u8| Signer::from_seed(&[*seed; 32]).public();
    let keys = Keys {
        signer: Arc::new(Signer::from_seed(&[seed; 32])),
        trusted: trusted.iter().map(key).collect(),
        recipients: vec![identity.to_public().to_string()],
        identity,
        host: format!("host-{seed}"),
    };
    let store = Arc::new(FileStore::new(place.path()));
    Repository::open(store, keys, at(0), [7; 16])
        .await
        .expect("opens")
}

fn at(hour: i64) -> Timestamp {
    Timestamp::from_second(hour * 3600).expect("a time")
}

fn subject() -> Subject {
    Subject {
        app: "shop".to_owned(),
        kind: Kind::Postgres,
        accessory: "db".to_owned(),
        unit: "shop".to_owned(),
    }
}

async fn back_up(repository: &Repository, hour: i64) -> BackupId {
    let id = BackupId::new(at(hour), [3; 10]);
    let manifest: Manifest = serde_json::from_value(serde_json::json!({
        "format": 1, "repository": repository.id, "subject": subject(), "id": id, "host": repository.keys.host,
        "snapshot_at": at(hour), "started_at": at(hour), "ended_at": at(hour), "appliance": "1.0.0", "image": null,
        "server": null, "database": null, "volumes": [], "globals": null, "plain_bytes": 0, "plain_sha256": "",
        "counts": null, "recipients": repository.keys.recipients, "previous": null, "suspicious": [], "warnings": [],
    }))
    .expect("a manifest");
    repository.commit(&manifest).await.expect("stored");
    id
}

async fn seen(repository: &Repository, own: &Own) -> Catalogue {
    let mut catalogue = repository.catalogue(&subject().prefix()).await.expect("listed");
    own.recall(repository, &mut catalogue);
    catalogue
}

#[tokio::test]
async fn what_was_ours_is_not_foreign_because_somebody_else_signed_it_since() {
    let place = tempfile::tempdir().expect("a directory");
    let ours = host(&place, 1, &[]).await;
    let id = back_up(&ours, 1).await;
    let mut own = Own::default();
    own.learn(&ours, &subject(), &seen(&ours, &own).await);

    let key = subject().key(&id, MANIFEST);
    let intruder = Signer::from_seed(&[9; 32]).seal(&"mine now").expect("sealed");
    ours.store.delete(&key).await.expect("gone");
    ours.store.put_new(&key, intruder.into()).await.expect("stored");
    assert!(seen(&ours, &Own::default()).await.unusable[0].foreign);
    let catalogue = seen(&ours, &own).await;
    assert!(!catalogue.unusable[0].foreign, "{catalogue:?}");
    assert_eq!(own.lost(&ours, &subject(), &catalogue), None, "told as damaged");

    // It is ours as long as it lies there, whatever else is good.
    back_up(&ours, 2).await;
    own.learn(&ours, &subject(), &seen(&ours, &own).await);
    let catalogue = seen(&ours, &own).await;
    assert!(!catalogue.unusable[0].foreign, "{catalogue:?}");
    assert_eq!(own.lost(&ours, &subject(), &catalogue), None);

    // A host that was rebuilt has another key, and made none of these.
    let rebuilt = host(&place, 2, &[]).await;
    let catalogue = seen(&rebuilt, &own).await;
    assert!(catalogue.unusable.iter().all(|bad| bad.foreign), "{catalogue:?}");
    assert_eq!(own.lost(&rebuilt, &subject(), &catalogue), None);
}

#[tokio::test]
async fn whatever_goes_that_this_host_did_not_remove_is_told() {
    let place = tempfile::tempdir().expect("a directory");
    let ours = host(&place, 1, &[]).await;
    let mut ids = Vec::new();
    for hour in 1..5 {
        ids.push(back_up(&ours, hour).await);
    }
    let mut own = Own::default();
    own.learn(&ours, &subject(), &seen(&ours, &own).await);
    assert_eq!(own.lost(&ours, &subject(), &seen(&ours, &own).await), None);

    // What the retention removes is forgotten first.
    own.forget(&subject(), &ids[..1]);
    ours.store
        .delete(&subject().key(&ids[0], MANIFEST))
        .await
        .expect("gone");
    assert_eq!(own.lost(&ours, &subject(), &seen(&ours, &own).await), None);

    // Somebody leaves only the newest one.
    for id in &ids[1..3] {
        ours.store
            .delete(&subject().key(id, MANIFEST))
            .await
            .expect("gone");
    }
    let catalogue = seen(&ours, &own).await;
    let lost = own.lost(&ours, &subject(), &catalogue).expect("told");
    assert!(
        lost.contains("2 of 3 backups") && lost.contains(&ids[1].to_string()),
        "{lost}"
    );
    // And is told of it until somebody says that it should be so.
    own.learn(&ours, &subject(), &catalogue);
    back_up(&ours, 5).await;
    own.learn(&ours, &subject(), &seen(&ours, &own).await);
    assert!(own.lost(&ours, &subject(), &seen(&ours, &own).await).is_some());
    // One that was to be removed and stayed is known again.
    own.forget(&subject(), &ids[3..]);
    own.learn(&ours, &subject(), &seen(&ours, &own).await);
    ours.store
        .delete(&subject().key(&ids[3], MANIFEST))
        .await
        .expect("gone");
    let lost = own
        .lost(&ours, &subject(), &seen(&ours, &own).await)
        .expect("told");
    assert!(lost.contains("3 of 4 backups"), "{lost}");
}

#[tokio::test]
async fn a_backup_that_is_asked_for_is_found_by_its_id_alone() {
    let place = tempfile::tempdir().expect("a directory");
    let ours = host(&place, 1, &[]).await;
    let wanted = back_up(&ours, 1).await;
    let damaged = back_up(&ours, 2).await;
    let key = subject().key(&damaged, MANIFEST);
    ours.store.delete(&key).await.expect("gone");
    ours.store.put_new(&key, "nothing".into()).await.expect("stored");
    let mut other = subject();
    other.unit = "audit".to_owned();
    let mut bad = seen(&ours, &Own::default()).await;
    bad.backups.clear();
    let subjects = vec![(other, bad), (subject(), seen(&ours, &Own::default()).await)];
    let look = |backup: Option<&str>| meant(&ours, subjects.clone(), backup, &Record::default());
    let why = |backup: Option<&str>| format!("{:#}", look(backup).expect_err("none"));

    // Whatever the other database's are like.
    let found = look(Some(&wanted.to_string())).expect("it is there");
    assert_eq!(found.chosen.len(), 1);
    assert_eq!((&found.chosen[0].0, &found.chosen[0].1.id), (&subject(), &wanted));
    let said = why(Some(&damaged.to_string()));
    assert!(said.contains("cannot be used: "), "{said}");
    let nobodys = BackupId::new(at(9), [9; 10]).to_string();
    assert!(why(Some(&nobodys)).contains("there is no such backup"));
    assert!(why(Some("TYPO")).contains("TYPO"), "{}", why(Some("TYPO")));
    assert!(why(None).contains("no backup of"), "{}", why(None));
}

#[tokio::test]
async fn the_key_of_a_lost_host_chooses_what_that_host_made() {
    let place = tempfile::tempdir().expect("a directory");
    let lost = host(&place, 1, &[]).await;
    let wanted = back_up(&lost, 1).await;
    let rebuilt = host(&place, 2, &[1]).await;
    let empty = back_up(&rebuilt, 2).await;
    let mut catalogue = seen(&rebuilt, &Own::default()).await;
    let newest = choose(&catalogue, None, None, None).expect("one");
    assert_eq!(newest.manifest.id, empty);
    let key = lost.keys.signer.public().to_string();
    only_of(&mut catalogue, &key.to_uppercase(), &subject()).expect("some");
    let chosen = choose(&catalogue, None, None, None).expect("one");
    assert_eq!(chosen.manifest.id, wanted);
    let other = Signer::from_seed(&[8; 32]).public().to_string();
    only_of(&mut catalogue, &other, &subject()).expect_err("none of theirs");
}
