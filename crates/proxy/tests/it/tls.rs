//! HTTPS: certificates by host, HTTP/2, redirects.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use appliance_proxy::control::{CertificatePem, ControlError, RefusalCode};
use appliance_proxy::local_ca::LocalCa;
use appliance_proxy::names::{CertificateName, HostPattern};
use appliance_proxy::options::Store;
use appliance_proxy::snapshot::{Certificate, Service, Settings, Snapshot, Tls};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::rig::{Answer, App, Rig, path_in, service};

fn with_tls(mut service: Service, certificate: Certificate) -> Service {
    service.tls = Some(Tls {
        redirect: true,
        certificate,
    });
    service
}

async fn connect(
    rig: &Rig,
    ca_pem: &str,
    host: &str,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    over(TcpStream::connect(rig.https).await.unwrap(), ca_pem, host, alpn).await
}

/// TLS over a connection that is there.
pub(crate) async fn over(
    stream: TcpStream,
    ca_pem: &str,
    host: &str,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut config = trusting(ca_pem);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(ServerName::try_from(host.to_owned()).unwrap(), stream)
        .await
}

/// A client that trusts this authority alone.
fn trusting(ca_pem: &str) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn local_ca(rig: &Rig) -> String {
    fs_err::read_to_string(path_in(rig, "state/local-ca/ca.pem")).unwrap()
}

#[tokio::test]
async fn https_1_and_2_with_the_local_ca() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&with_tls(
        service("web", "shop.test", &[&app]),
        Certificate::LocalCa,
    ))
    .await;
    let ca = local_ca(&rig);
    let mut stream = BufReader::new(connect(&rig, &ca, "shop.test", &[b"http/1.1"]).await.unwrap());
    stream
        .write_all(b"GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n")
        .await
        .unwrap();
    let answer = Answer::read(&mut stream).await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.body.contains("x-forwarded-proto: https"),
        "{}",
        answer.body
    );
    assert!(answer.body.contains("x-forwarded-port: 443"), "{}", answer.body);

    let stream = connect(&rig, &ca, "shop.test", &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    for _ in 0..3 {
        let request = Request::post("https://shop.test/b?c")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .body(Full::new(Bytes::from("hello")))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = std::str::from_utf8(&body).unwrap();
        assert!(body.starts_with("one POST /b?c\n"), "{body}");
        for expect in ["host: shop.test\n", "cookie: a=1; b=2\n", "body: 5\n"] {
            assert!(body.contains(expect), "{expect} is missing in {body}");
        }
    }
    drop(sender);
    driver.await.unwrap().unwrap();
    let request = Request::get("https://shop.test/")
        .body(Empty::<Bytes>::new())
        .unwrap();
    drop(request);
}

#[tokio::test]
async fn certificates_are_chosen_by_host_and_replaced_without_a_switch() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let hosts = [HostPattern::parse("*.shop.test").unwrap()];
    let name = CertificateName::parse("shop").unwrap();
    let issue = |number: u32| {
        let ca = LocalCa::open_or_create(&path_in(&rig, &format!("ca-{number}")), SystemTime::now()).unwrap();
        (
            ca.certificate_pem().to_owned(),
            ca.issue(&hosts, SystemTime::now()).unwrap(),
        )
    };
    let ((ca_1, pem_1), (ca_2, pem_2)) = (issue(1), issue(2));
    assert!(rig.client.put_certificate(&name, &pem_1).await.unwrap().changed);
    assert!(!rig.client.put_certificate(&name, &pem_1).await.unwrap().changed);
    rig.put(&with_tls(
        service("web", "*.shop.test", &[&app]),
        Certificate::Named(name.clone()),
    ))
    .await;
    connect(&rig, &ca_1, "a.shop.test", &[]).await.unwrap();
    assert!(connect(&rig, &ca_1, "other.test", &[]).await.is_err());
    rig.client.put_certificate(&name, &pem_2).await.unwrap();
    connect(&rig, &ca_2, "b.shop.test", &[]).await.unwrap();
    let error = rig.client.remove_certificate(&name).await.unwrap_err();
    assert!(matches!(error, ControlError::Refused { refusal, .. } if refusal.code == RefusalCode::InUse));

    // After a restart, and with another certificate spoilt on disk.
    let home = rig.stop().await;
    let mode = |path: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt;
        fs_err::metadata(path).unwrap().permissions().mode() & 0o777
    };
    let stored = home.path().join("state/certificates/shop.pem");
    assert_eq!(mode(&stored), 0o600);
    fs_err::write(home.path().join("state/certificates/other.pem"), b"junk").unwrap();
    let rig = Rig::over(home);
    connect(&rig, &ca_2, "b.shop.test", &[]).await.unwrap();
    assert_eq!(rig.client.status().await.unwrap().problems.len(), 1);
}

#[tokio::test]
async fn certificate_files_are_read_again_when_they_change_and_a_broken_one_changes_nothing() {
    let app = App::start("one").await;
    let home = tempfile::tempdir().unwrap();
    let hosts = [HostPattern::parse("shop.test").unwrap()];
    let issue = |number: u32| {
        let ca =
            LocalCa::open_or_create(&home.path().join(format!("ca-{number}")), SystemTime::now()).unwrap();
        let pem = ca.issue(&hosts, SystemTime::now()).unwrap();
        (ca.certificate_pem().to_owned(), pem)
    };
    let (chain, key) = (home.path().join("chain.pem"), home.path().join("key.pem"));
    let write = |pem: &CertificatePem| {
        fs_err::write(&chain, &pem.chain).unwrap();
        fs_err::write(&key, &pem.key).unwrap();
    };
    let ((ca_1, pem_1), (ca_2, pem_2)) = (issue(1), issue(2));
    write(&pem_1);
    // As a person writes it: a snapshot that names the files.
    let files = Certificate::Files {
        chain: chain.clone(),
        key: key.clone(),
    };
    let snapshot = Snapshot {
        services: vec![with_tls(service("web", "shop.test", &[&app]), files)],
        ..Snapshot::default()
    };
    let file = home.path().join("snapshot.json");
    fs_err::write(&file, serde_json::to_string(&snapshot).unwrap()).unwrap();
    let rig = Rig::with(home, Store::File(file));
    connect(&rig, &ca_1, "shop.test", &[]).await.unwrap();

    // Junk, then a key of another certificate: what was read before is shown on, and the status says so.
    for pem in [
        CertificatePem {
            chain: "junk".into(),
            key: pem_1.key.clone(),
        },
        CertificatePem {
            chain: pem_2.chain.clone(),
            key: pem_1.key.clone(),
        },
    ] {
        write(&pem);
        loop {
            let problems = rig.client.status().await.unwrap().problems;
            if problems
                .iter()
                .any(|problem| problem.contains("read before is shown on"))
            {
                break;
            }
            tokio::task::yield_now().await;
        }
        connect(&rig, &ca_1, "shop.test", &[]).await.unwrap();
    }
    write(&pem_2);
    while connect(&rig, &ca_2, "shop.test", &[]).await.is_err() {}
    assert_eq!(rig.client.status().await.unwrap().problems, Vec::<String>::new());
    // Three for the first certificate, one for the second; the client is through before the last one is counted.
    let counted = "appliance_proxy_service_tls_handshakes_total{service=\"web\"} 4";
    let seen = async || {
        crate::observing::page(&rig)
            .await
            .lines()
            .any(|line| line == counted)
    };
    while !seen().await {}
}

#[tokio::test]
async fn a_bad_certificate_is_refused_without_touching_the_service() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&service("web", "h", &[&app])).await;
    let name = CertificateName::parse("shop").unwrap();
    let ca = LocalCa::open_or_create(&path_in(&rig, "ca"), SystemTime::now()).unwrap();
    let hosts = [HostPattern::parse("h").unwrap()];
    let (one, two) = (
        ca.issue(&hosts, SystemTime::now()).unwrap(),
        ca.issue(&hosts, SystemTime::now()).unwrap(),
    );
    for pem in [
        CertificatePem {
            chain: one.chain.clone(),
            key: two.key,
        },
        CertificatePem {
            chain: "junk".into(),
            key: one.key,
        },
        CertificatePem {
            chain: one.chain,
            key: "junk".into(),
        },
    ] {
        let error = rig.client.put_certificate(&name, &pem).await.unwrap_err();
        assert!(
            matches!(error, ControlError::Refused { refusal, .. } if refusal.code == RefusalCode::Certificate)
        );
    }
    let wanting = with_tls(service("web", "h", &[&app]), Certificate::Named(name));
    let error = rig.client.put_service(&wanting).await.unwrap_err();
    assert!(
        matches!(error, ControlError::Refused { refusal, .. } if refusal.code == RefusalCode::Certificate)
    );
    assert_eq!(rig.get("h", "/").await.status, 200);
}

#[tokio::test]
async fn plain_http_is_redirected_in_one_hop() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    let mut web = with_tls(service("web", "shop.test", &[&app]), Certificate::LocalCa);
    web.hosts.push(HostPattern::parse("www.shop.test").unwrap());
    web.canonical_host = Some(HostPattern::parse("shop.test").unwrap());
    rig.put(&web).await;
    let answer = rig.get("www.shop.test", "/a?b=c").await;
    let location = format!("https://shop.test:{}/a?b=c", rig.https.port());
    assert_eq!(
        (answer.status, answer.header("location")),
        (301, location.as_str())
    );
    let post = "POST /a HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(rig.send(post).await.status, 308);
}

#[tokio::test]
async fn a_client_without_a_server_name_sees_a_certificate_and_one_that_comes_again_resumes() {
    let (rig, app) = (Rig::start(), App::start("one").await);
    rig.put(&with_tls(
        service("web", "shop.test", &[&app]),
        Certificate::LocalCa,
    ))
    .await;
    let visit = async |config: rustls::ClientConfig, times: usize| {
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut kinds = Vec::new();
        for _ in 0..times {
            let stream = TcpStream::connect(rig.https).await.unwrap();
            let name = ServerName::try_from("shop.test").unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream
                .write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
                .await
                .unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        }
        kinds
    };
    let ca = local_ca(&rig);
    let mut nameless = trusting(&ca);
    nameless.enable_sni = false;
    assert_eq!(visit(nameless, 1).await, [rustls::HandshakeKind::Full]);
    // Whichever worker it comes to.
    let kinds = visit(trusting(&ca), 4).await;
    assert_eq!(kinds[0], rustls::HandshakeKind::Full);
    assert_eq!(kinds[1..], [rustls::HandshakeKind::Resumed; 3]);
}

#[tokio::test]
async fn a_visitor_who_leaves_while_a_certificate_is_made_frees_its_place() {
    let rig = Rig::start();
    let settings = Settings {
        on_demand: true,
        ..Settings::default()
    };
    rig.client.put_settings(&settings).await.unwrap();
    let connections = async |expected: u64| {
        while rig.client.status().await.unwrap().connections != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let any = LocalCa::open_or_create(&path_in(&rig, "any-ca"), SystemTime::now()).unwrap();
    let mut visit = Box::pin(connect(&rig, any.certificate_pem(), "customer.test", &[]));
    tokio::select! {
        _ = &mut visit => panic!("nobody has made a certificate"),
        wanted = rig.client.wanted(Duration::from_secs(30)) => {
            assert_eq!(wanted.unwrap().names, ["customer.test"]);
        }
    }
    connections(1).await;
    drop(visit);
    // Long before the time for a certificate is over, which is 20 s.
    tokio::time::timeout(Duration::from_secs(15), connections(0))
        .await
        .expect("its place is free");
}
