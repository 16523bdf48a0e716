//! Certificates from a real authority on a real host: had before the switch, renewed, shown on without the authority.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::Distro;
use appliance_tests::World;
use appliance_tests::http::Target;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Pebble on this machine, reachable from the host, with a DNS server that sends every name to the host.
struct Pebble {
    server: Option<Ends>,
    _dns: Ends,
    ca: String,
    directory: String,
    management: SocketAddr,
    _home: tempfile::TempDir,
}

/// A process that ends with its owner.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// A port that nobody uses now.
fn free(address: IpAddr) -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?)
}

async fn listening(address: SocketAddr) -> anyhow::Result<()> {
    let up = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), up)
        .await
        .with_context(|| format!("nothing listens on {address}"))
}

impl Pebble {
    /// `here` is this machine's address as the host sees it.
    async fn start(here: IpAddr, host: IpAddr) -> anyhow::Result<Self> {
        let home = tempfile::tempdir()?;
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let (listen, management) = (free(here)?, free(loopback)?);
        let (dns, records) = (free(loopback)?, free(loopback)?);
        let mut root = CertificateParams::new(Vec::new())?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let ca = root.self_signed(&key)?.pem();
        let leaf_key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec![here.to_string(), "localhost".to_owned()])?
            .signed_by(&leaf_key, &Issuer::new(root, key))?;
        let path = |file: &str| home.path().join(file);
        fs_err::write(path("cert.pem"), leaf.pem())?;
        fs_err::write(path("key.pem"), leaf_key.serialize_pem())?;
        let config = serde_json::json!({ "pebble": {
            "listenAddress": listen.to_string(),
            "managementListenAddress": management.to_string(),
            "certificate": path("cert.pem"),
            "privateKey": path("key.pem"),
            "httpPort": 80,
            "tlsPort": 443,
            "ocspResponderURL": "",
        }});
        fs_err::write(path("pebble.json"), config.to_string())?;
        let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let dns_server = quiet(
            Command::new("pebble-challtestsrv")
                .args([
                    "-http01",
                    "",
                    "-https01",
                    "",
                    "-tlsalpn01",
                    "",
                    "-defaultIPv6",
                    "",
                ])
                .args(["-defaultIPv4", &host.to_string(), "-dns01", &dns.to_string()])
                .args(["-management", &records.to_string()]),
        )
        .context("pebble-challtestsrv of the Debian package pebble")?;
        let dns_server = Ends(dns_server);
        listening(records).await?;
        let server = quiet(
            Command::new("pebble")
                .arg("-config")
                .arg(path("pebble.json"))
                .args(["-dnsserver", &dns.to_string()])
                .env("PEBBLE_WFE_NONCEREJECT", "15")
                .env("PEBBLE_VA_NOSLEEP", "1"),
        )
        .context("pebble of the Debian package pebble")?;
        let server = Some(Ends(server));
        listening(listen).await?;
        listening(management).await?;
        Ok(Self {
            server,
            _dns: dns_server,
            ca,
            directory: format!("https://{listen}/dir"),
            management,
            _home: home,
        })
    }

    /// The root that it signs with.
    async fn root(&self) -> anyhow::Result<String> {
        let target = Target::https(self.management, "localhost", "/roots/0", self.ca.as_bytes())?;
        Ok(target.get().await?.text())
    }
}

/// Knows the customers' hosts.
async fn somebody_who_knows(here: IpAddr) -> anyhow::Result<String> {
    let listener = tokio::net::TcpListener::bind((here, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = [0; 2048];
            let length = stream.read(&mut bytes).await.unwrap_or(0);
            let is_customer = bytes[..length].starts_with(b"GET /allowed?host=customer.test ");
            let status = if is_customer { "200 OK" } else { "403 Forbidden" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _gone = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok(format!("http://{address}/allowed"))
}

#[tokio::test]
async fn an_authoritys_certificate_is_there_before_the_switch_and_outlives_the_authority()
-> anyhow::Result<()> {
    let world = World::bootstrapped("acme", Distro::Debian13).await?;
    let routes = world.run(&["ip", "-json", "route", "show", "default"]).await?;
    let routes: serde_json::Value = serde_json::from_str(&routes)?;
    let here: IpAddr = routes[0]["gateway"].as_str().context("a way out")?.parse()?;
    let host = world.ip().await?;
    let mut pebble = Pebble::start(here, host).await?;
    let ask = somebody_who_knows(here).await?;
    let file = "/etc/appliance/host.yml";
    let before = world.host.read(file).await.unwrap_or_default();
    let settings = format!(
        "{}\nacme:\n  directory: {}\n  ca_file: /etc/appliance/authority.pem\n  email: ops@shop.io\n  on_demand: {{ask: '{ask}'}}\n",
        String::from_utf8(before)?,
        pebble.directory
    );
    world
        .host
        .copy_in("/etc/appliance/authority.pem", pebble.ca.clone(), 0o644)
        .await?;
    world.host.copy_in(file, settings, 0o644).await?;

    let push = |version: &'static str| world.developer.appliance(["push", "--version", version]);
    let certificates = |arguments: &[&str]| {
        let arguments = [&["certificates"], arguments].concat();
        world.developer.appliance(arguments).run()
    };
    world.developer.demo_app("v1", &world, "").await?;
    push("v1").run().await?.expect_code(0)?;
    let root = pebble.root().await?;
    let site = |name: &str| Target::https(SocketAddr::new(host, 443), name, "/", root.as_bytes());
    let answer = site("demo.test")?.get().await?;
    ensure!(
        (answer.status, answer.version()) == (200, Some("v1")),
        "{answer:?}"
    );

    let listed = certificates(&["list", "--json"]).await?.expect_code(0)?.json()?;
    ensure!(
        listed[0]["name"] == "demo.test"
            && listed[0]["authority"] == pebble.directory.as_str()
            && listed[0]["service"] == "demo-web",
        "{listed}"
    );
    certificates(&["renew", "demo.test"]).await?.expect_code(0)?;
    let renewed = certificates(&["list", "--json"]).await?.expect_code(0)?.json()?;
    ensure!(
        renewed[0]["not_after"] != listed[0]["not_after"]
            || renewed[0]["not_before"] != listed[0]["not_before"],
        "{renewed}"
    );
    let answer = site("demo.test")?.get().await?;
    ensure!(answer.status == 200, "{answer:?}");

    // Its key became known: another is shown, and what it said goes for its successor too.
    let revoked = certificates(&["revoke", "demo.test", "--compromised"]).await?;
    revoked.expect_code(0)?;
    let answer = site("demo.test")?.get().await?;
    ensure!(answer.status == 200, "{answer:?}");

    // A route that was changed behind the agent's back is soon what the release says, and that is on record.
    let control = |more: &[&'static str]| {
        let curl = [
            "curl",
            "--silent",
            "--fail",
            "--unix-socket",
            "/run/appliance-proxy/control.sock",
        ];
        [&curl[..], more].concat()
    };
    let services = async || -> anyhow::Result<serde_json::Value> {
        let listed = world.run(&control(&["http://proxy/v1/services"])).await?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let mut found = listed.as_array().context("a list")?.iter();
        let ours = found.find(|status| status["service"]["name"] == "demo-web");
        Ok(ours.context("our service")?["service"].clone())
    };
    let before = services().await?;
    let mut changed = before.clone();
    changed["response_timeout_ms"] = 1234.into();
    world
        .host
        .copy_in("/tmp/route.json", changed.to_string(), 0o600)
        .await?;
    let put = [
        "--request",
        "PUT",
        "--data-binary",
        "@/tmp/route.json",
        "http://proxy/v1/services/demo-web",
    ];
    world.run(&control(&put)).await?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    while services().await? != before {
        ensure!(tokio::time::Instant::now() < deadline, "the route stays changed");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let audit = world.run(&["cat", "/var/lib/appliance/audit.log"]).await?;
    ensure!(audit.contains("it was not as its release says"), "{audit}");

    // A customer's own domain, which nobody named: its first visitor is served, a stranger's is not.
    let customer = site("customer.test")?;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let answer = loop {
        // The agent looks at host.yml every ten seconds.
        match customer.get().await {
            Ok(answer) => break answer,
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
        }
    };
    ensure!(
        answer.status == 404,
        "no app is there, but a certificate is: {answer:?}"
    );
    ensure!(site("stranger.test")?.get().await.is_err());
    let listed = certificates(&["list", "--json"]).await?.expect_code(0)?.json()?;
    ensure!(
        listed[0]["name"] == "customer.test" && listed[0]["on_demand"] == true,
        "{listed}"
    );

    // Without the authority a release with the certificate in hand goes through, one with a new host is refused.
    pebble.server = None;
    world.developer.demo_app("v2", &world, "").await?;
    push("v2").run().await?.expect_code(0)?;
    let answer = site("demo.test")?.get().await?;
    ensure!(
        (answer.status, answer.version()) == (200, Some("v2")),
        "{answer:?}"
    );
    let text = fs_err::read_to_string(world.developer.app().join("config/deploy.yml"))?;
    let text = text.replace("host: demo.test", "hosts: [demo.test, new.test]");
    world.developer.write("config/deploy.yml", &text)?;
    let refused = push("v2").run().await?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("new.test"),
        "{refused:?}"
    );
    ensure!(certificates(&["renew", "demo.test"]).await?.code != 0);
    let answer = site("demo.test")?.get().await?;
    ensure!(
        (answer.status, answer.version()) == (200, Some("v2")),
        "{answer:?}"
    );
    // Nor does a restart of both change that.
    world.crash("appliance-agent.service").await?;
    world
        .run(&["systemctl", "restart", "appliance-proxy.service"])
        .await?;
    for name in ["demo.test", "customer.test"] {
        let answer = site(name)?.get().await?;
        ensure!(
            answer.status == if name == "demo.test" { 200 } else { 404 },
            "{name}: {answer:?}"
        );
    }
    Ok(())
}
