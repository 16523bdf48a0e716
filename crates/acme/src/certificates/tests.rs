//! What a disk that takes nothing does to records; orders are tested against a real authority, in `appliance`.

use futures_util::future::BoxFuture;

use super::*;
use crate::front::{Answer, FrontError};

/// Shows nothing to anybody.
struct Nobody;

impl Front for Nobody {
    fn present<'a>(&'a self, _: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async { Ok(()) })
    }

    fn withdraw<'a>(&'a self, _: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async { Ok(()) })
    }

    fn install<'a>(&'a self, _: &'a Name, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async { Ok(()) })
    }

    fn uninstall<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async { Ok(()) })
    }
}

/// An authority that nobody reaches.
fn settings() -> Settings {
    Settings {
        directory: "https://127.0.0.1:9/directory".to_owned(),
        ..Settings::default()
    }
}

#[tokio::test]
async fn a_disk_that_takes_nothing_costs_no_order_and_forgets_no_failure() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("certificates");
    // A disk that is not mounted: reading finds nothing, writing fails.
    let disk = home.path().join("disk");
    fs_err::os::unix::fs::symlink(&disk, &path).unwrap();
    let certificates = Certificates::new(Store::new(&path), Arc::new(Nobody));
    let name = Name::parse("a.io").unwrap();
    let names = std::slice::from_ref(&name);

    let tended = certificates
        .tend(&settings(), names, Timestamp::now(), || 0.5)
        .await;
    assert!(
        matches!(&tended.failed[..], [(_, AcmeError::Store { .. })]),
        "the authority was not asked: {:?}",
        tended.failed
    );
    let [record] = &certificates.list()[..] else {
        panic!("the failure is remembered")
    };
    assert_eq!(record.failures.count, 1);
    assert_eq!(certificates.unkept().len(), 1, "and people can see it");
    // A pass that comes too early does nothing.
    let again = certificates
        .tend(&settings(), names, Timestamp::now(), || 0.5)
        .await;
    assert!(again.failed.is_empty() && again.renewed.is_empty());

    // Once the disk takes it, the record goes there.
    fs_err::create_dir(&disk).unwrap();
    certificates
        .tend(&settings(), names, Timestamp::now(), || 0.5)
        .await;
    assert_eq!(certificates.unkept(), []);
    let kept = Store::new(&path).read(&name).unwrap().unwrap();
    assert_eq!(kept.failures.count, 1);
}
