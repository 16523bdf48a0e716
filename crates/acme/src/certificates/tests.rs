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

/// Takes certificates only while it is there.
#[derive(Default)]
struct Away {
    is_away: std::sync::atomic::AtomicBool,
    installs: std::sync::atomic::AtomicUsize,
}

impl Front for Away {
    fn present<'a>(&'a self, _: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async { Ok(()) })
    }

    fn withdraw<'a>(&'a self, _: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async { Ok(()) })
    }

    fn install<'a>(&'a self, _: &'a Name, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<(), FrontError>> {
        use std::sync::atomic::Ordering::SeqCst;
        Box::pin(async {
            self.installs.fetch_add(1, SeqCst);
            if self.is_away.load(SeqCst) {
                return Err("nobody listens".into());
            }
            Ok(())
        })
    }

    fn uninstall<'a>(&'a self, _: &'a Name) -> BoxFuture<'a, Result<(), FrontError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A record of a certificate from the authority at `directory` that lives for years.
fn held(name: &Name, directory: &str) -> Record {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap();
    let chain = params.self_signed(&key).unwrap().pem();
    Record {
        held: Some(Held {
            validity: order::validity(&chain).unwrap(),
            chain,
            key: key.serialize_pem(),
            directory: directory.to_owned(),
            luck: 0.5,
            advice: None,
            ask_advice_at: None,
        }),
        ..Record::new(name.clone())
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_took_is_shown_a_minute_later_and_not_ordered_again() {
    use std::sync::atomic::Ordering::SeqCst;
    let home = tempfile::tempdir().unwrap();
    let store = Store::new(home.path());
    let name = Name::parse("a.io").unwrap();
    store.write(&held(&name, &settings().directory)).unwrap();
    let front = Arc::new(Away::default());
    let certificates = Certificates::new(store, Arc::<Away>::clone(&front));
    let names = std::slice::from_ref(&name);
    front.is_away.store(true, SeqCst);
    let now = Timestamp::now();
    let tended = certificates.tend(&settings(), names, now, || 0.5).await;
    assert!(matches!(&tended.failed[..], [(_, AcmeError::Install { .. })]));
    assert_eq!(tended.next, now + SignedDuration::from_mins(1));
    front.is_away.store(false, SeqCst);
    // Whoever is impatient gets the one that is there; nobody answers at this authority.
    certificates.renew(&settings(), &name, 0.5).await.unwrap();
    assert_eq!(front.installs.load(SeqCst), 2);
    let tended = certificates.tend(&settings(), names, now, || 0.5).await;
    assert!(tended.failed.is_empty() && tended.next > now + SignedDuration::from_hours(1));
    certificates.renew(&settings(), &name, 0.5).await.unwrap_err();
}

#[tokio::test]
async fn a_name_that_needs_nothing_does_not_wait_for_an_authority_that_says_nothing() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings {
        directory: format!("https://{}/directory", silent.local_addr().unwrap()),
        ..Settings::default()
    };
    let home = tempfile::tempdir().unwrap();
    let store = Store::new(home.path());
    let name = Name::parse("a.io").unwrap();
    let account = serde_json::json!({
        "id": "https://a.io/1", "directory": settings.directory,
        "key_pkcs8": "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgJVWC_QzOTCS5vtsJp2IG-UDc8cdDfeoKtxSZxaznM-mhRANCAAQenCPoGgPFTdPJ7VLLKt56RxPlYT1wNXnHc54PEyBg3LxKaH0-sJkX0mL8LyPEdsfL_Oz4TxHkWLJGrXVtNhfH",
    });
    store.keep_account(&settings.directory, &account).unwrap();
    // One that can be asked about: an identifier wants the authority's key identifier.
    let mut record = held(&name, &settings.directory);
    let (root, root_key) = {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        (params, key)
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec![name.to_string()]).unwrap();
    params.use_authority_key_identifier_extension = true;
    let leaf = params
        .signed_by(&key, &rcgen::Issuer::new(root, root_key))
        .unwrap();
    record.held.as_mut().unwrap().chain = leaf.pem();
    store.write(&record).unwrap();
    let certificates = Certificates::new(store, Arc::new(Nobody));
    let names = std::slice::from_ref(&name);
    let now = Timestamp::now();
    let pass = certificates.tend(&settings, names, now, || 0.5);
    let push = async {
        // The pass has asked, and waits.
        let _asked = silent.accept().await.unwrap();
        certificates.ensure(&settings, names, now, || 0.5).await
    };
    tokio::select! {
        _ = pass => panic!("nobody answered"),
        pushed = push => assert!(pushed.is_ok()),
    }
}
