//! The host's certificates against a real authority (Pebble, which rejects good nonces) and the real proxy, on loopback.

mod between;
mod on_demand;
mod orders;
mod pebble;

use std::net::SocketAddr;
use std::time::Duration;

use appliance_proxy::options::{Listener, ListenerSocket, Scheme, Store};
use appliance_proxy::snapshot::Certificate;
use appliance_proxy::{Options, Proxy as Process};
use appliance_push::change::Healthcheck;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use self::pebble::{Pebble, Wanted};
use super::*;

/// A host without its agent: the proxy, and the certificates as the agent keeps them.
struct Host {
    home: tempfile::TempDir,
    proxy: Option<Process>,
    http: SocketAddr,
    https: SocketAddr,
    client: appliance_proxy::Client,
}

impl Host {
    fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        fs_err::create_dir(home.path().join("state")).unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = |scheme| Listener {
            scheme,
            socket: ListenerSocket::Bind(any),
            proxy_protocol: false,
        };
        let control = home.path().join("control.sock");
        let proxy = Process::start(Options {
            listeners: vec![listener(Scheme::Http), listener(Scheme::Https)],
            metrics: None,
            access_log: None,
            control: Some(control.clone()),
            store: Store::Directory(home.path().join("proxy")),
            workers: Some(1),
            drain: Duration::from_secs(1),
            successor: None,
            predecessor: None,
            spool: None,
            notify: Box::new(|_| {}),
        })
        .unwrap();
        Self {
            http: proxy.addresses()[0],
            https: proxy.addresses()[1],
            client: appliance_proxy::Client::new(control),
            proxy: Some(proxy),
            home,
        }
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            http: self.http,
            https: self.https,
            external: None,
        }
    }

    /// The certificates as an agent that just started has them.
    fn certificates(&self) -> Certificates {
        Certificates::open(
            &self.home.path().join("etc"),
            &self.home.path().join("state"),
            self.client.clone(),
        )
    }

    fn write_settings(&self, pebble: &Pebble, more: &str) {
        self.write_settings_for(&pebble.directory(), pebble, more);
    }

    fn write_settings_for(&self, directory: &str, pebble: &Pebble, more: &str) {
        fs_err::create_dir_all(self.home.path().join("etc")).unwrap();
        let text = format!(
            "acme:\n  directory: {directory}\n  ca_file: {}\n  email: ops@shop.io\n{more}",
            pebble.path("ca.pem").display()
        );
        fs_err::write(self.home.path().join("etc/host.yml"), text).unwrap();
    }

    fn record(&self, name: &str) -> PathBuf {
        self.home
            .path()
            .join("state/certificates")
            .join(format!("{name}.json"))
    }

    /// Routes the hosts of `spec`, to an app that nobody reaches: only handshakes matter here.
    async fn route(&self, certificates: &Certificates, spec: &ProxySpec) {
        let local = certificates.local_hosts(spec);
        let service = super::super::route::service(spec, &[[127, 0, 0, 1].into()], local).unwrap();
        self.client.put_service(&service).await.unwrap();
    }

    /// The leaf that the proxy shows for `name`, checked against `root`.
    async fn shown(&self, name: &str, root: &str) -> Result<CertificateDer<'static>, std::io::Error> {
        let stream = handshake(self.https, name, root).await?;
        let (_, session) = stream.get_ref();
        Ok(session.peer_certificates().unwrap()[0].clone().into_owned())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(proxy) = self.proxy.take() {
            proxy.shutdown();
        }
    }
}

async fn handshake(
    address: SocketAddr,
    name: &str,
    root: &str,
) -> Result<TlsStream<TcpStream>, std::io::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

pub(super) fn spec(hosts: &[String]) -> ProxySpec {
    ProxySpec {
        service_name: "shop-web".to_owned(),
        hosts: hosts.to_vec(),
        app_port: 80,
        tls: Tls::Auto,
        ssl_redirect: true,
        path_prefixes: Vec::new(),
        strip_path_prefix: true,
        healthcheck: Healthcheck {
            path: "/up".to_owned(),
            interval: 1,
            timeout: 5,
        },
        response_timeout: 30,
        deploy_timeout: 30,
        drain_timeout: 30,
        forward_headers: None,
        buffering: None,
        extras: Default::default(),
        log_request_headers: Vec::new(),
        log_response_headers: Vec::new(),
    }
}

fn hosts(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn serial(leaf: &CertificateDer<'_>) -> String {
    // SEQUENCE { SEQUENCE { [0] version, INTEGER serial … } }, as every X.509 v3 certificate begins.
    let (_, certificate) = x509_parser::parse_x509_certificate(leaf).unwrap();
    hex::encode(certificate.raw_serial())
}

#[tokio::test]
async fn twenty_hosts_issue_renew_revoke_and_recover() {
    let host = Host::start();
    let mut pebble = Pebble::start(host.wanted()).await;
    host.write_settings(&pebble, "");
    let names: Vec<String> = (0..20).map(|number| format!("h{number}.shop.io")).collect();
    let spec = spec(&names);
    let certificates = host.certificates();

    // Before the first visitor: the hosts are proved and had before any of them is routed.
    certificates.ensure(&[&spec]).await.unwrap();
    host.route(&certificates, &spec).await;
    let root = pebble.root().await;
    let mut first = Vec::new();
    for name in &names {
        first.push(host.shown(name, &root).await.unwrap());
    }
    let mut serials: Vec<_> = first.iter().map(serial).collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 20, "one certificate a host");
    let record = fs_err::metadata(host.record("h0.shop.io")).unwrap();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&record.permissions()) & 0o777,
        0o600
    );

    // A pass finds nothing to do, and comes back in time.
    let Pass { tended, .. } = certificates.pass(&[&spec]).await.unwrap();
    assert!(
        tended.renewed.is_empty() && tended.failed.is_empty(),
        "{tended:?}"
    );
    assert!(tended.next > Timestamp::now());

    // Renewal, by all that is due: the clock is turned by making every certificate look old.
    for name in &names {
        let path = host.record(name);
        let mut record: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        record["held"]["validity"]["not_before"] = "2020-01-01T00:00:00Z".into();
        record["held"]["validity"]["not_after"] = (Timestamp::now() + jiff::SignedDuration::from_hours(24))
            .to_string()
            .into();
        record["held"]["advice"] = serde_json::Value::Null;
        record["held"]["ask_advice_at"] = "2100-01-01T00:00:00Z".into();
        fs_err::write(&path, record.to_string()).unwrap();
    }
    let Pass { tended, .. } = certificates.pass(&[&spec]).await.unwrap();
    assert_eq!((tended.renewed.len(), tended.failed.len()), (20, 0), "{tended:?}");
    for (name, before) in names.iter().zip(&first) {
        assert_ne!(host.shown(name, &root).await.unwrap(), *before, "{name}");
    }

    // Revocation: the new one is shown before the old one is bad.
    let old = host.shown("h3.shop.io", &root).await.unwrap();
    certificates.revoke("h3.shop.io", true, &[&spec]).await.unwrap();
    let new = host.shown("h3.shop.io", &root).await.unwrap();
    assert_eq!(pebble.status(&serial(&old)).await, "Revoked");
    assert_eq!(pebble.status(&serial(&new)).await, "Valid");

    // The account's file is lost and one record is damaged: the rest is untouched, that one is had again.
    fs_err::remove_dir_all(host.home.path().join("state/certificates/accounts")).unwrap();
    fs_err::write(host.record("h7.shop.io"), "{\"name\":").unwrap();
    let before = (
        host.shown("h7.shop.io", &root).await.unwrap(),
        host.shown("h8.shop.io", &root).await.unwrap(),
    );
    let certificates = host.certificates();
    let Pass { tended, .. } = certificates.pass(&[&spec]).await.unwrap();
    assert_eq!(tended.renewed.len(), 1, "{tended:?}");
    assert_ne!(host.shown("h7.shop.io", &root).await.unwrap(), before.0);
    assert_eq!(host.shown("h8.shop.io", &root).await.unwrap(), before.1);

    // The authority forgets everything: a new account is made without anybody's help.
    pebble.run().await;
    let root = pebble.root().await;
    certificates.renew("h9.shop.io").await.unwrap();
    host.shown("h9.shop.io", &root).await.unwrap();
}

#[tokio::test]
async fn an_authority_that_is_down_or_silent_stops_nothing_that_is_served() {
    let host = Host::start();
    let mut pebble = Pebble::start(host.wanted()).await;
    host.write_settings(&pebble, "");
    let served = spec(&hosts(&["a.shop.io"]));
    let certificates = host.certificates();
    certificates.ensure(&[&served]).await.unwrap();
    host.route(&certificates, &served).await;
    let root = pebble.root().await;

    pebble.stop();
    // A release for the same host goes through; a new host is refused with the reason and what to do.
    certificates.ensure(&[&served]).await.unwrap();
    let error = certificates
        .ensure(&[&spec(&hosts(&["b.shop.io"]))])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains(&pebble.directory()) && error.contains("next:"),
        "{error}"
    );
    assert!(certificates.renew("a.shop.io").await.is_err());
    host.shown("a.shop.io", &root).await.unwrap();
    let list = certificates.list(&[&served]);
    assert!(
        list[0].failure.is_some() && list[0].service.as_deref() == Some("shop-web"),
        "{list:?}"
    );

    // One that accepts and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let text = format!(
        "acme:\n  directory: https://localhost:{}/dir\n",
        silent.local_addr().unwrap().port()
    );
    fs_err::write(host.home.path().join("etc/host.yml"), text).unwrap();
    let certificates = Arc::new(certificates);
    let waiting = {
        let certificates = Arc::clone(&certificates);
        tokio::spawn(async move {
            certificates
                .ensure(&[&spec(&hosts(&["c.shop.io"]))])
                .await
                .is_err()
        })
    };
    let _held = silent.accept().await.unwrap();
    host.shown("a.shop.io", &root).await.unwrap();
    waiting.abort();
}

#[tokio::test]
async fn every_kind_of_proof_does_and_a_name_that_points_elsewhere_is_refused_in_words() {
    let host = Host::start();
    let pebble = Pebble::start(Wanted {
        external: Some((
            "kid-1",
            "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W",
        )),
        ..host.wanted()
    })
    .await;
    let certificates = host.certificates();

    // Without the binding no account; with it one.
    host.write_settings(&pebble, "");
    let error = certificates
        .ensure(&[&spec(&hosts(&["http.shop.io"]))])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("externalAccountRequired") && error.contains("host.yml"),
        "{error}"
    );
    let key = pebble.path("eab.key");
    fs_err::write(
        &key,
        "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n",
    )
    .unwrap();
    let external = format!(
        "  external_account: {{key_id: kid-1, key_file: {}}}\n",
        key.display()
    );
    let dns = format!(
        "  dns: {{command: [{}], propagation: 0}}\n",
        pebble.dns_command().display()
    );
    let mut all = Vec::new();
    for (challenge, name) in [
        ("http-01", "http.shop.io"),
        ("tls-alpn-01", "alpn.shop.io"),
        ("dns-01", "dns.shop.io"),
        ("auto", "*.wild.shop.io"),
    ] {
        host.write_settings(&pebble, &format!("{external}{dns}  challenge: {challenge}\n"));
        all.push(name.to_owned());
        certificates
            .ensure(&[&spec(&hosts(&[name]))])
            .await
            .unwrap_or_else(|error| panic!("{challenge}: {error}"));
    }
    let done = fs_err::read_to_string(pebble.path("dns.log")).unwrap();
    // An order that ran out of good nonces is made again, so a pair may be there twice.
    let pairs: Vec<_> = done.lines().collect();
    let mut steps: Vec<&str> = Vec::new();
    for pair in pairs.chunks(2) {
        if !steps.ends_with(pair) {
            steps.extend(pair);
        }
    }
    assert_eq!(
        steps,
        [
            "present _acme-challenge.dns.shop.io",
            "cleanup _acme-challenge.dns.shop.io",
            "present _acme-challenge.wild.shop.io",
            "cleanup _acme-challenge.wild.shop.io",
        ]
    );
    let service = spec(&all);
    host.route(&certificates, &service).await;
    let root = pebble.root().await;
    for name in ["http.shop.io", "alpn.shop.io", "dns.shop.io", "x.wild.shop.io"] {
        host.shown(name, &root)
            .await
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    // A command that fails may have set its record: it is asked to remove it.
    let log = pebble.path("failing.log");
    let script = pebble.failing_dns_command(&log);
    let failing = format!("  dns: {{command: [{}], propagation: 0}}\n", script.display());
    host.write_settings(&pebble, &format!("{external}{failing}  challenge: dns-01\n"));
    let error = certificates
        .ensure(&[&spec(&hosts(&["late.shop.io"]))])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("too late"), "{error}");
    assert_eq!(fs_err::read_to_string(&log).unwrap(), "present\ncleanup\n");

    // Nobody answers there: refused, in the authority's words, and no answer is left behind.
    host.write_settings(&pebble, &external);
    pebble.point("away.shop.io", "127.0.0.9").await;
    let error = certificates
        .ensure(&[&spec(&hosts(&["away.shop.io"]))])
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("could not verify away.shop.io by http-01"),
        "{error}"
    );
    let error = certificates
        .ensure(&[&spec(&hosts(&["*.shop.io"]))])
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("dns-01"), "{error}");
}

#[tokio::test]
async fn names_of_no_public_authority_show_the_hosts_own_ca() {
    let host = Host::start();
    let certificates = host.certificates();
    // No host.yml, and nobody is asked: the machine may well have no network.
    let spec = spec(&hosts(&["shop.test", "shop.localhost"]));
    certificates.ensure(&[&spec]).await.unwrap();
    host.route(&certificates, &spec).await;
    let root = fs_err::read_to_string(host.home.path().join("proxy/local-ca/ca.pem")).unwrap();
    for name in &spec.hosts {
        host.shown(name, &root).await.unwrap();
    }
    let shown = host.client.snapshot().await.unwrap().services[0]
        .tls
        .clone()
        .unwrap()
        .certificate;
    assert!(matches!(shown, Certificate::PerHost { local_ca } if local_ca.len() == 2));

    // A wrong file stops new certificates with its line, never a route.
    fs_err::create_dir_all(host.home.path().join("etc")).unwrap();
    fs_err::write(host.home.path().join("etc/host.yml"), "acme:\n  directry: x\n").unwrap();
    let error = certificates.ensure(&[&spec]).await.unwrap_err().to_string();
    assert!(
        error.contains("directry") && error.contains("directory"),
        "{error}"
    );
    host.route(&certificates, &spec).await;
    certificates.pass(&[&spec]).await.unwrap();
    let problems = certificates.problems(&[&spec], Timestamp::now());
    assert!(
        problems.len() == 1 && problems[0].contains("directry"),
        "status tells before anything ends: {problems:?}"
    );

    // Where nobody is asked at all, a mistake in the file and a reboot change nothing of that.
    let public = self::spec(&hosts(&["shop.io"]));
    let yml = host.home.path().join("etc/host.yml");
    fs_err::write(&yml, "acme:\n  enabled: false\n").unwrap();
    assert_eq!(host.certificates().local_hosts(&public).len(), 1);
    fs_err::write(&yml, "acme:\n  enabld: false\n").unwrap();
    let rebooted = host.certificates();
    assert_eq!(rebooted.local_hosts(&public).len(), 1);
    host.route(&rebooted, &public).await;
    host.shown("shop.io", &root).await.unwrap();
}

/// The proxy, behind a disk that fails once the authority looks.
struct Breaking {
    proxy: Proxy,
    certificates: PathBuf,
    away: PathBuf,
}

impl Front for Breaking {
    fn present<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        // What is a link to nowhere finds nothing when it is read, and takes nothing.
        fs_err::rename(&self.certificates, &self.away).unwrap();
        fs_err::os::unix::fs::symlink(self.away.join("nowhere"), &self.certificates).unwrap();
        self.proxy.present(answer)
    }

    fn withdraw<'a>(&'a self, answer: &'a Answer) -> BoxFuture<'a, Result<(), FrontError>> {
        self.proxy.withdraw(answer)
    }

    fn install<'a>(
        &'a self,
        name: &'a Name,
        chain: &'a str,
        key: &'a str,
    ) -> BoxFuture<'a, Result<(), FrontError>> {
        self.proxy.install(name, chain, key)
    }

    fn uninstall<'a>(&'a self, name: &'a Name) -> BoxFuture<'a, Result<(), FrontError>> {
        self.proxy.uninstall(name)
    }
}

#[tokio::test]
async fn a_certificate_that_the_disk_does_not_take_is_shown_and_not_ordered_again() {
    let host = Host::start();
    let pebble = Pebble::start(host.wanted()).await;
    host.write_settings(&pebble, "");
    let (certificates, away) = (
        host.home.path().join("state/certificates"),
        host.home.path().join("away"),
    );
    let mut agent = host.certificates();
    let front = Breaking {
        proxy: Proxy(host.client.clone()),
        certificates: certificates.clone(),
        away: away.clone(),
    };
    agent.inner =
        appliance_acme::Certificates::new(appliance_acme::store::Store::new(&certificates), Arc::new(front));
    let spec = spec(&hosts(&["shop.io"]));
    agent.ensure(&[&spec]).await.unwrap();
    host.route(&agent, &spec).await;
    let root = pebble.root().await;
    let shown = host.shown("shop.io", &root).await.unwrap();
    let problems = agent.problems(&[&spec], Timestamp::now());
    assert!(
        problems.len() == 1 && problems[0].contains("shop.io") && problems[0].contains("restart"),
        "{problems:?}"
    );

    // The next pass asks nobody, and the one after the disk is back keeps it.
    let Pass { tended, .. } = agent.pass(&[&spec]).await.unwrap();
    assert!(
        tended.renewed.is_empty() && tended.failed.is_empty(),
        "{tended:?}"
    );
    fs_err::remove_file(&certificates).unwrap();
    fs_err::rename(&away, &certificates).unwrap();
    agent.pass(&[&spec]).await.unwrap();
    assert_eq!(agent.problems(&[&spec], Timestamp::now()), Vec::<String>::new());
    let rebooted = host.certificates();
    let Pass { tended, .. } = rebooted.pass(&[&spec]).await.unwrap();
    assert!(
        tended.renewed.is_empty() && tended.failed.is_empty(),
        "{tended:?}"
    );
    assert_eq!(host.shown("shop.io", &root).await.unwrap(), shown);
}

#[tokio::test]
async fn a_certificate_that_nobody_renews_is_told_of_and_a_bad_host_costs_no_other() {
    let host = Host::start();
    let pebble = Pebble::start(host.wanted()).await;
    host.write_settings(&pebble, "");
    let certificates = host.certificates();
    let good = spec(&hosts(&["shop.io"]));
    let bad = spec(&hosts(&["not a host"]));
    let Pass { tended, .. } = certificates.pass(&[&bad, &good]).await.unwrap();
    assert_eq!(tended.renewed.len(), 1, "{tended:?}");
    let problems = certificates.problems(&[&bad, &good], Timestamp::now());
    assert!(
        problems.len() == 1 && problems[0].contains("not a host"),
        "{problems:?}"
    );

    // Nor does it stand in the way of a key that became known.
    let root = pebble.root().await;
    host.route(&certificates, &good).await;
    let stolen = host.shown("shop.io", &root).await.unwrap();
    certificates
        .revoke("shop.io", true, &[&bad, &good])
        .await
        .unwrap();
    assert_eq!(pebble.status(&serial(&stolen)).await, "Revoked");
    assert_ne!(host.shown("shop.io", &root).await.unwrap(), stolen);

    // Nothing fails, and still it is told when nobody renews.
    let end = certificates.list(&[&good])[0].not_after.unwrap();
    let problems = certificates.problems(&[&good], end - jiff::SignedDuration::from_hours(24));
    assert!(
        problems
            .iter()
            .any(|problem| problem.contains("not renewed in time")),
        "{problems:?}"
    );
    assert!(
        certificates
            .problems(&[], end - jiff::SignedDuration::from_hours(24))
            .iter()
            .all(|problem| !problem.contains("in time")),
        "a name that nobody serves any more may end"
    );
}

#[tokio::test]
async fn a_certificate_that_another_program_had_is_shown_until_it_is_due_and_a_bad_one_never() {
    let host = Host::start();
    fs_err::create_dir_all(host.home.path().join("etc")).unwrap();
    // Nobody answers there, and nobody is asked: the certificate in hand is of this authority.
    let directory = "https://acme.invalid/directory";
    let settings = format!("acme:\n  directory: {directory}\n");
    fs_err::write(host.home.path().join("etc/host.yml"), settings).unwrap();
    let certificates = host.certificates();
    let made = |until: Option<i32>| {
        let mut params = rcgen::CertificateParams::new(hosts(&["shop.io"])).unwrap();
        if let Some(year) = until {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
        }
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let (chain, key) = made(None);
    let (old, old_key) = made(Some(2021));
    for (chain, key, why) in [
        (&old, &old_key, "2021"),
        (&chain, &old_key, "shop.io"),
        (&"no PEM".to_owned(), &key, "PEM"),
    ] {
        let refused = certificates
            .adopt("shop.io", directory, chain, key)
            .await
            .unwrap_err();
        let refused = crate::agent::chain(&refused);
        assert!(refused.contains(why), "{why}: {refused}");
        assert!(!host.record("shop.io").exists(), "{why}: it was kept");
    }

    certificates
        .adopt("shop.io", directory, &chain, &key)
        .await
        .unwrap();
    let spec = spec(&hosts(&["shop.io"]));
    certificates.ensure(&[&spec]).await.unwrap();
    host.route(&certificates, &spec).await;
    host.shown("shop.io", &chain).await.unwrap();
    // It outlives the agent, which still has nothing to ask for.
    let again = host.certificates();
    again.ensure(&[&spec]).await.unwrap();
    host.shown("shop.io", &chain).await.unwrap();
}
