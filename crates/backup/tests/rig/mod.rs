//! What the tests of this crate need around them: real PostgreSQL servers and a real, strict S3 server with faults.

// Several test binaries use this, none all of it.
#![allow(dead_code)]

pub mod cluster;
pub mod full;
pub mod moto;
pub mod s3;
pub mod scene;

use std::path::Path;
use std::sync::Arc;

use age::x25519;
use appliance_backup::backup::{BackupError, Order, Outside, Source, backup};
use appliance_backup::journal::Journal;
use appliance_backup::manifest::Manifest;
use appliance_backup::names::{Kind, Subject};
use appliance_backup::repository::{Keys, Repository};
use appliance_backup::sign::Signer;
use appliance_backup::store::{FileStore, PART, Store};
use appliance_backup::stream::{self, Feed};
use jiff::Timestamp;

pub use s3::S3;

/// Secret keys of the tests.
pub const HOST_KEY: &str = "AGE-SECRET-KEY-1GQ9778VQXMMJVE8SK7J6VT8UJ4HDQAJUVSFCWCM02D8GEWQ72PVQ2Y5J33";

pub fn outside() -> Outside {
    Outside {
        now: Timestamp::now,
        random,
    }
}

fn random() -> [u8; 16] {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .expect("random");
    bytes
}

pub fn keys() -> Keys {
    let identity: x25519::Identity = HOST_KEY.parse().expect("key");
    Keys {
        signer: Arc::new(Signer::from_seed(&[7; 32])),
        trusted: vec![],
        recipients: vec![identity.to_public().to_string()],
        identity,
        host: "test".to_owned(),
    }
}

pub async fn repository(store: Arc<dyn Store>) -> Repository {
    Repository::open(store, keys(), Timestamp::now(), random())
        .await
        .expect("repository")
}

pub fn journal(directory: &Path) -> Journal {
    Journal::open(directory.join("journal")).expect("journal")
}

pub fn subject(database: &str) -> Subject {
    Subject {
        app: "shop".to_owned(),
        kind: Kind::Postgres,
        accessory: "db".to_owned(),
        unit: database.to_owned(),
    }
}

/// What is not a database's.
pub fn files() -> Subject {
    Subject {
        kind: Kind::Volume,
        ..subject("data")
    }
}

/// An order without anything special.
pub fn order(subject: Subject) -> Order {
    Order {
        subject,
        image: None,
        bandwidth: None,
        previous: None,
        odd: None,
    }
}

/// A repository in a directory.
pub async fn in_directory(root: impl Into<std::path::PathBuf>) -> Repository {
    repository(Arc::new(FileStore::new(root.into()))).await
}

/// Does not compress, and fills two parts and a half.
pub fn content() -> Vec<u8> {
    noise(PART * 5 / 2)
}

/// Does not compress.
pub fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    (0..bytes / 8)
        .flat_map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        })
        .collect()
}

/// A source of these bytes.
pub fn source<'a>(content: Vec<u8>) -> Source<'a> {
    Source::Stream(Feed::Reader(Box::new(std::io::Cursor::new(content))))
}

/// Backs something up that has two parts.
pub async fn store_content(repository: &Repository, journal: &Journal) -> Result<Manifest, BackupError> {
    let source = source(noise(PART * 9 / 8));
    backup(repository, journal, &order(files()), source, outside()).await
}

/// Reads all of a backup.
pub async fn whole(repository: &Repository, manifest: &Manifest) -> Result<(), stream::StreamError> {
    stream::read(repository, manifest, None, Box::new(std::io::sink()))
        .await
        .map(drop)
}

/// Every listed backup opens; nothing is left over beside what it names. Says how many there are.
pub async fn all_listed_are_good(repository: &Repository) -> usize {
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!(catalogue.unusable, [], "left behind");
    for found in &catalogue.backups {
        whole(repository, &found.manifest).await.expect("whole");
    }
    catalogue.backups.len()
}

/// The whole chain of an error on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
