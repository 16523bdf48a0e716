//! Orders that are cut off or refused, and advice: Pebble, with somebody between who makes what Pebble does not.

use base64::Engine as _;
use jiff::SignedDuration;

use super::between::{Between, Fault};
use super::*;

/// The account's file.
fn account(host: &Host) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = host.home.path().join("state/certificates/accounts");
    let files = fs_err::read_dir(directory).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let text = fs_err::read(&path).unwrap();
        (path, text)
    });
    files.collect()
}

fn problem(status: u16, kind: &'static str) -> Fault {
    Fault::Problem {
        status,
        kind,
        retry_after: None,
    }
}

#[tokio::test]
async fn an_agent_that_dies_between_order_and_certificate_fetches_the_one_it_ordered() {
    let host = Host::start();
    let pebble = Pebble::start(host.wanted()).await;
    let between = Between::start(&pebble).await;
    host.write_settings_for(&between.directory(), &pebble, "");
    let spec = spec(&hosts(&["shop.io"]));

    // It dies while the authority makes the certificate.
    between.fail("/finalize-order/", Fault::Silence);
    let dying = host.certificates();
    let ordered = {
        let spec = spec.clone();
        tokio::spawn(async move { dying.ensure(&[&spec]).await.is_ok() })
    };
    between.silence().await;
    ordered.abort();
    assert!(ordered.await.unwrap_err().is_cancelled());
    assert_eq!(between.replaces().len(), 1);
    let record = fs_err::read_to_string(host.record("shop.io")).unwrap();
    assert!(record.contains("PRIVATE KEY"), "the key is kept");

    // Its successor orders nothing.
    let certificates = host.certificates();
    let orders = between.replaces().len();
    let Pass { tended, .. } = certificates.pass(&[&spec]).await.unwrap();
    assert_eq!((tended.renewed.len(), tended.failed.len()), (1, 0), "{tended:?}");
    assert_eq!(between.replaces().len(), orders);
    host.route(&certificates, &spec).await;
    let root = pebble.root().await;
    let first = host.shown("shop.io", &root).await.unwrap();
    let record = fs_err::read_to_string(host.record("shop.io")).unwrap();
    assert!(!record.contains("pending"), "{record}");

    // A line that breaks while the certificate is fetched costs no order either.
    between.fail("/certZ/", problem(500, "serverInternal"));
    certificates.renew("shop.io").await.unwrap_err();
    let orders = between.replaces().len();
    certificates.renew("shop.io").await.unwrap();
    assert_eq!(between.replaces().len(), orders);
    let second = host.shown("shop.io", &root).await.unwrap();
    assert_ne!(second, first);

    // An order that the authority knows no more is made again.
    between.fail("/certZ/", problem(500, "serverInternal"));
    certificates.renew("shop.io").await.unwrap_err();
    between.fail("/my-order/", problem(404, "malformed"));
    certificates.renew("shop.io").await.unwrap();
    assert_ne!(host.shown("shop.io", &root).await.unwrap(), second);
}

#[tokio::test]
async fn only_an_authority_that_does_not_know_the_account_makes_a_new_one() {
    let host = Host::start();
    let key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W";
    let pebble = Pebble::start(Wanted {
        external: Some(("kid-1", key)),
        ..host.wanted()
    })
    .await;
    let between = Between::start(&pebble).await;
    let key_file = pebble.path("eab.key");
    fs_err::write(&key_file, key).unwrap();
    let external = format!(
        "  external_account: {{key_id: kid-1, key_file: {}}}\n",
        key_file.display()
    );
    host.write_settings_for(&between.directory(), &pebble, &external);
    let served = spec(&hosts(&["shop.io"]));
    let certificates = host.certificates();
    certificates.ensure(&[&served]).await.unwrap();
    let kept = account(&host);
    assert_eq!(kept.len(), 1);
    // Its key was for once.
    fs_err::remove_file(&key_file).unwrap();
    certificates.renew("shop.io").await.unwrap();
    let accounts = between.count("sign-me-up");

    // A refusal that is about the order leaves the account alone.
    between.fail("/order-plz", problem(403, "unauthorized"));
    between.fail("/order-plz", problem(403, "unauthorized"));
    let refused = certificates.renew("shop.io").await.unwrap_err();
    assert!(chain(&refused).contains("unauthorized"), "{refused}");
    assert_eq!(
        (account(&host), between.count("sign-me-up")),
        (kept.clone(), accounts)
    );
    certificates.renew("shop.io").await.unwrap();

    // The authority says that it does not know the account, and then grants no other: the one in hand is kept.
    fs_err::write(&key_file, key).unwrap();
    between.fail("/order-plz", problem(400, "accountDoesNotExist"));
    between.fail("/order-plz", problem(400, "accountDoesNotExist"));
    between.fail("/sign-me-up", problem(401, "unauthorized"));
    certificates.renew("shop.io").await.unwrap_err();
    assert_eq!(account(&host), kept);
    certificates.renew("shop.io").await.unwrap();
    fs_err::remove_file(&key_file).unwrap();

    // It grants another, which wants the key again: that one is kept from now on.
    between.fail("/order-plz", problem(400, "accountDoesNotExist"));
    between.fail("/order-plz", problem(400, "accountDoesNotExist"));
    let keyless = certificates.renew("shop.io").await.unwrap_err();
    assert!(chain(&keyless).contains("eab.key"), "{keyless}");
    assert_eq!(account(&host), kept);
    fs_err::write(&key_file, key).unwrap();
    between.fail("/order-plz", problem(400, "accountDoesNotExist"));
    between.fail("/order-plz", problem(400, "accountDoesNotExist"));
    certificates.renew("shop.io").await.unwrap();
    let now = account(&host);
    assert!(now.len() == 1 && now != kept);
    host.certificates().renew("shop.io").await.unwrap();
    assert_eq!(account(&host), now);
}

#[tokio::test]
async fn advice_brings_a_renewal_forward_and_an_authority_that_asks_for_patience_gets_it() {
    let host = Host::start();
    let pebble = Pebble::start(host.wanted()).await;
    let between = Between::start(&pebble).await;
    host.write_settings_for(&between.directory(), &pebble, "");
    let served = spec(&hosts(&["shop.io"]));
    let certificates = host.certificates();
    certificates.ensure(&[&served]).await.unwrap();
    host.route(&certificates, &served).await;
    let root = pebble.root().await;
    let first = host.shown("shop.io", &root).await.unwrap();
    let renewal = |certificates: &Certificates| certificates.list(&[])[0].renewal.unwrap();

    // The window is asked for and kept; the renewal falls into it.
    let begin = Timestamp::now() + SignedDuration::from_hours(48);
    let end = begin + SignedDuration::from_hours(2);
    between.advise(begin, end);
    let Pass { tended, .. } = certificates.pass(&[&served]).await.unwrap();
    assert!(tended.renewed.is_empty(), "{tended:?}");
    assert!((begin..=end).contains(&renewal(&certificates)));
    assert!(tended.next <= end);
    // It is not asked for at each pass.
    let questions = between.count("renewal-info");
    certificates.pass(&[&served]).await.unwrap();
    assert_eq!((questions, between.count("renewal-info")), (1, 1));

    // The authority will revoke it and says so: its window is over already. The order tells what it replaces.
    let past = Timestamp::now() - SignedDuration::from_hours(2);
    between.advise(past, past + SignedDuration::from_hours(1));
    let path = host.record("shop.io");
    let mut record: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    record["held"]["ask_advice_at"] = "2020-01-01T00:00:00Z".into();
    fs_err::write(&path, record.to_string()).unwrap();
    // Good nonces that are refused, more often than the client's library tries: it says so again all the same.
    for _ in 0..5 {
        between.fail("/order-plz", problem(400, "badNonce"));
    }
    let Pass { tended, .. } = certificates.pass(&[&served]).await.unwrap();
    assert_eq!((tended.renewed.len(), tended.failed.len()), (1, 0), "{tended:?}");
    let second = host.shown("shop.io", &root).await.unwrap();
    assert_ne!(second, first);
    let replaced = between.replaces();
    let replaced = replaced
        .last()
        .cloned()
        .flatten()
        .unwrap_or_else(|| panic!("{replaced:?}"));
    let (_, leaf) = x509_parser::parse_x509_certificate(&first).unwrap();
    let serial = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(leaf.raw_serial());
    assert_eq!(replaced.split('.').nth(1), Some(serial.as_str()), "{replaced}");

    // Too many requests: nothing is asked before the time that the authority named, and what is there is shown.
    let far = Timestamp::now() + SignedDuration::from_hours(24 * 60);
    between.advise(far, far + SignedDuration::from_hours(1));
    between.fail(
        "/order-plz",
        Fault::Problem {
            status: 429,
            kind: "rateLimited",
            retry_after: Some("7200"),
        },
    );
    let another = spec(&hosts(&["new.shop.io"]));
    let refused = certificates.ensure(&[&another]).await.unwrap_err().to_string();
    assert!(
        refused.contains("wait until") && refused.contains("push again then"),
        "{refused}"
    );
    let orders = between.count("order-plz");
    let again = certificates.ensure(&[&another]).await.unwrap_err().to_string();
    assert!(again.contains("wait until"), "{again}");
    let Pass { tended, .. } = certificates.pass(&[&served, &another]).await.unwrap();
    assert!(
        tended.failed.is_empty() && tended.renewed.is_empty(),
        "{tended:?}"
    );
    assert_eq!(between.count("order-plz"), orders, "the authority was left alone");
    let until = tended.next.duration_since(Timestamp::now());
    assert!(until <= SignedDuration::from_hours(2) && until > SignedDuration::from_mins(100));
    assert_eq!(host.shown("shop.io", &root).await.unwrap(), second);
}
