//! Hosts that nobody named: a real authority, a real proxy, and somebody who knows which of them are customers'.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::time::Instant;

use appliance_config::edge::OnDemand;
use appliance_proxy::snapshot::Settings;
use appliance_proxy::{Unwanted, Wanted};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::pebble::Pebble;
use super::{Certificates, Host, Pass};
use crate::agent::on_demand::{Refused, see_to};

/// Says yes to hosts that begin with `customer`; counts the questions.
async fn somebody_who_knows() -> (String, Arc<AtomicU32>) {
    let (ask, asked, _) = somebody_who_forgets().await;
    (ask, asked)
}

/// The same, who says no to the hosts in the list.
async fn somebody_who_forgets() -> (String, Arc<AtomicU32>, Arc<Mutex<Vec<String>>>) {
    let gone: Arc<Mutex<Vec<String>>> = Arc::default();
    let left = Arc::clone(&gone);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = [0; 2048];
            let length = stream.read(&mut bytes).await.unwrap();
            let request = String::from_utf8_lossy(&bytes[..length]).into_owned();
            count.fetch_add(1, Ordering::SeqCst);
            let has_left = left
                .lock()
                .unwrap()
                .iter()
                .any(|host| request.contains(&format!("host={host} ")));
            let status = if request.starts_with("GET /allowed?app=shop&host=customer") && !has_left {
                "200 OK"
            } else {
                "404 Not Found"
            };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (format!("http://{address}/allowed?app=shop"), asked, gone)
}

/// What the agent does until `stop`, without the rest of it.
async fn serve(
    host: &Host,
    certificates: &Certificates,
    visits: usize,
) -> Vec<(String, Result<(), Refused>)> {
    let mut seen = Vec::new();
    while seen.len() < visits {
        let Wanted { names } = host.client.wanted(Duration::from_secs(30)).await.unwrap();
        for name in names {
            let wanted = certificates.on_demand().unwrap();
            let outcome = see_to(certificates, &wanted, &name, Instant::now()).await;
            if let Err(refused) = &outcome {
                let seconds = u32::try_from(refused.rest.as_secs()).unwrap();
                let unwanted = Unwanted {
                    name: name.clone(),
                    seconds,
                };
                host.client.refuse(&unwanted).await.unwrap();
            }
            seen.push((name, outcome));
        }
    }
    seen
}

#[tokio::test]
async fn the_first_visitor_of_a_customers_host_waits_for_its_certificate() {
    let host = Host::start();
    let mut pebble = Pebble::start(host.wanted()).await;
    let (ask, asked) = somebody_who_knows().await;
    host.write_settings(
        &pebble,
        &format!("  on_demand:\n    ask: {ask}\n    most: 2\n    per_hour: 5\n"),
    );
    let certificates = host.certificates();
    let settings = Settings {
        on_demand: true,
        ..Settings::default()
    };
    host.client.put_settings(&settings).await.unwrap();
    let root = pebble.root().await;

    // Two visitors of one host at once: one question, one certificate, both are served.
    let (seen, first, second) = tokio::join!(
        serve(&host, &certificates, 1),
        host.shown("customer-one.shop.io", &root),
        host.shown("Customer-One.shop.io", &root),
    );
    assert_eq!(seen, [("customer-one.shop.io".to_owned(), Ok(()))]);
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    // A stranger's host fails, and again at once without anybody being asked.
    let (seen, shown) = tokio::join!(serve(&host, &certificates, 1), host.shown("stranger.io", &root));
    assert!(
        seen[0].1.as_ref().unwrap_err().why.contains("answered 404"),
        "{seen:?}"
    );
    assert!(shown.is_err());
    assert!(host.shown("stranger.io", &root).await.is_err());
    assert_eq!(asked.load(Ordering::SeqCst), 2);

    // The certificate is renewed with the others, and there after a restart with the authority gone.
    let Pass { tended, .. } = certificates.pass(&[]).await.unwrap();
    assert!(
        tended.failed.is_empty() && tended.renewed.is_empty(),
        "{tended:?}"
    );
    let listed = certificates.list(&[]);
    assert_eq!(listed.len(), 1, "{listed:?}");
    pebble.stop();
    let certificates = host.certificates();
    host.shown("customer-one.shop.io", &root).await.unwrap();
    // The authority is away: the visitor's handshake fails, and may try again soon.
    let (seen, shown) = tokio::join!(
        serve(&host, &certificates, 1),
        host.shown("customer-two.shop.io", &root)
    );
    assert!(shown.is_err());
    assert_eq!(seen[0].1.as_ref().unwrap_err().rest, Duration::from_secs(30));
}

/// Makes a certificate look as if it ended tomorrow, or had ended.
fn age(host: &Host, name: &str, left: jiff::SignedDuration) {
    let path = host.record(name);
    let mut record: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    record["held"]["validity"]["not_before"] = "2020-01-01T00:00:00Z".into();
    record["held"]["validity"]["not_after"] = (jiff::Timestamp::now() + left).to_string().into();
    fs_err::write(&path, record.to_string()).unwrap();
}

#[tokio::test]
async fn a_customer_who_left_is_asked_about_before_renewal_and_one_who_stays_is_renewed() {
    let host = Host::start();
    let pebble = Pebble::start(host.wanted()).await;
    let (ask, asked, gone) = somebody_who_forgets().await;
    host.write_settings(&pebble, &format!("  on_demand:\n    ask: {ask}\n"));
    let certificates = host.certificates();
    let settings = Settings {
        on_demand: true,
        ..Settings::default()
    };
    host.client.put_settings(&settings).await.unwrap();
    let root = pebble.root().await;
    let (stays, leaves) = ("customer-stays.shop.io", "customer-leaves.shop.io");
    for name in [stays, leaves] {
        let (_, shown) = tokio::join!(serve(&host, &certificates, 1), host.shown(name, &root));
        shown.unwrap();
    }
    let before = host.shown(stays, &root).await.unwrap();
    assert!(certificates.list(&[]).iter().all(|listed| listed.on_demand));

    // Nothing is due: nobody is asked.
    let questions = asked.load(Ordering::SeqCst);
    certificates.pass(&[]).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), questions);

    gone.lock().unwrap().push(leaves.to_owned());
    for name in [stays, leaves] {
        age(&host, name, jiff::SignedDuration::from_hours(24));
    }
    let pass = certificates.pass(&[]).await.unwrap();
    assert_eq!(pass.tended.renewed, [appliance_acme::Name::parse(stays).unwrap()]);
    assert_eq!(pass.lapsed.len(), 1, "{pass:?}");
    assert!(pass.lapsed[0].why.contains("404"), "{pass:?}");
    assert_ne!(host.shown(stays, &root).await.unwrap(), before);
    // Shown until it ends, and then not even to visitors who would take it.
    host.shown(leaves, &root).await.unwrap();
    age(&host, leaves, -jiff::SignedDuration::from_hours(1));
    certificates.pass(&[]).await.unwrap();
    assert!(!host.record(leaves).exists());
    let (seen, shown) = tokio::join!(serve(&host, &certificates, 1), host.shown(leaves, &root));
    assert!(
        seen[0].1.is_err() && shown.is_err(),
        "asked about again: {seen:?}"
    );

    // One whose key is known is replaced and revoked; one who left has it revoked and is shown no more.
    let old = host.shown(stays, &root).await.unwrap();
    certificates.revoke(stays, true, &[]).await.unwrap();
    let new = host.shown(stays, &root).await.unwrap();
    assert_eq!(pebble.status(&super::serial(&old)).await, "Revoked");
    assert_eq!(pebble.status(&super::serial(&new)).await, "Valid");
    gone.lock().unwrap().push(stays.to_owned());
    certificates.revoke(stays, false, &[]).await.unwrap();
    assert_eq!(pebble.status(&super::serial(&new)).await, "Revoked");
    let (seen, shown) = tokio::join!(serve(&host, &certificates, 1), host.shown(stays, &root));
    assert!(seen[0].1.is_err() && shown.is_err(), "{seen:?}");
    assert_eq!(certificates.list(&[]).len(), 0);
}

#[tokio::test]
async fn questions_stay_within_bounds() {
    let home = tempfile::tempdir().unwrap();
    let desk = crate::agent::on_demand::Desk::open(home.path());
    let (ask, asked) = somebody_who_knows().await;
    let wanted = OnDemand {
        ask,
        most: 10,
        per_hour: 3,
    };
    let name = |text: &str| appliance_acme::Name::parse(text).unwrap();
    let now = Instant::now();
    for host in ["customer-a.io", "customer-b.io"] {
        desk.decide(&wanted, &name(host), now).await.unwrap();
    }
    for _ in 0..5 {
        desk.decide(&wanted, &name("x.io"), now).await.unwrap_err();
    }
    assert_eq!(asked.load(Ordering::SeqCst), 3, "a no is remembered");
    let refused = desk
        .decide(&wanted, &name("customer-c.io"), now)
        .await
        .unwrap_err();
    assert!(refused.why.contains("per_hour"), "{refused:?}");
    // An hour later there is room again, and the no has been forgotten.
    let later = now + Duration::from_secs(3600);
    desk.decide(&wanted, &name("customer-c.io"), later).await.unwrap();
    desk.decide(&wanted, &name("x.io"), later).await.unwrap_err();
    assert_eq!(asked.load(Ordering::SeqCst), 5);
    // Nobody answers: not a no, only not now.
    let nobody = OnDemand {
        ask: "http://127.0.0.1:1/".to_owned(),
        ..wanted
    };
    let refused = desk.decide(&nobody, &name("y.io"), later).await.unwrap_err();
    assert_eq!(refused.rest, Duration::from_secs(30), "{refused:?}");
    // Never an address or a wildcard.
    for odd in ["*.io", "192.0.2.1"] {
        assert!(desk.decide(&nobody, &name(odd), later).await.is_err());
    }
}
