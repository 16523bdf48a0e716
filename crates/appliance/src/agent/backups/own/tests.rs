use std::sync::Arc;

use appliance_backup::manifest::Manifest;
use appliance_backup::names::{Kind, MANIFEST};
use appliance_backup::repository::Keys;
use appliance_backup::sign::Signer;
use appliance_backup::store::FileStore;
use jiff::Timestamp;

use super::super::restore::{choose, only_of};
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
        "counts": null, "recipients": [], "previous": null, "suspicious": [], "warnings": [],
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
    let lost = own.lost(&ours, &subject(), &catalogue);
    assert!(lost.is_some_and(|why| why.contains("all 1 backups")));

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
