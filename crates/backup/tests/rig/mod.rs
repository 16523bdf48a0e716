//! What the tests of this crate need around them: a real PostgreSQL server and a real, strict S3 server with faults.

// Two test binaries use this, neither all of it.
#![allow(dead_code)]

pub mod cluster;
pub mod s3;

use std::path::Path;
use std::sync::Arc;

use age::x25519;
use appliance_backup::backup::Outside;
use appliance_backup::journal::Journal;
use appliance_backup::names::{Kind, Subject};
use appliance_backup::repository::{Keys, Repository};
use appliance_backup::sign::Signer;
use appliance_backup::store::Store;
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
