//! Each alert: provoked on a real host, told once to everybody who wants to hear of it, and taken back when it is over.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Distro, SandboxError};
use appliance_tests::World;
use appliance_tests::http::Target;
use appliance_tests::receiver::{Receiver, gateway};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const LIMIT: Duration = Duration::from_secs(90);

/// Who may send mail.
const PASSWORD: &str = "s3cret of the mail server";

/// A real SMTP server on this machine that insists on TLS and a password, and the mailbox it fills.
struct Mail {
    /// Where TLS begins with STARTTLS.
    starttls: u16,
    /// Where it begins at once.
    tls: u16,
    mailbox: PathBuf,
    ca: String,
    server: tokio::process::Child,
    _directory: tempfile::TempDir,
}

impl Mail {
    async fn start(address: &str) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let mut ca = CertificateParams::new(Vec::new())?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate()?;
        let authority = ca.self_signed(&ca_key)?;
        let mut leaf = CertificateParams::new(Vec::new())?;
        leaf.subject_alt_names = vec![SanType::IpAddress(address.parse()?)];
        let key = KeyPair::generate()?;
        let leaf = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key))?;
        let (certificate, key_file) = (
            directory.path().join("cert.pem"),
            directory.path().join("key.pem"),
        );
        fs_err::write(&certificate, leaf.pem())?;
        fs_err::write(&key_file, key.serialize_pem())?;
        // Ports that are free now; the server wants to be told.
        let free =
            || -> anyhow::Result<u16> { Ok(std::net::TcpListener::bind("0.0.0.0:0")?.local_addr()?.port()) };
        let (starttls, tls) = (free()?, free()?);
        let mailbox = directory.path().join("mail");
        // Debian's own Python, for which the package is.
        let mut server = tokio::process::Command::new("/usr/bin/python3")
            .args(["-c", include_str!("../src/smtp.py")])
            .args([&certificate, &key_file, &mailbox])
            .args([starttls.to_string(), tls.to_string()])
            .args(["appliance", PASSWORD])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start aiosmtpd; run: cargo xtask test")?;
        let mut said = String::new();
        let stdout = server.stdout.as_mut().context("is piped")?;
        BufReader::new(stdout).read_line(&mut said).await?;
        ensure!(said == "listens\n", "the mail server does not start");
        Ok(Self {
            starttls,
            tls,
            mailbox,
            ca: authority.pem(),
            server,
            _directory: directory,
        })
    }

    /// How many messages there are of each subject.
    fn subjects(&self) -> anyhow::Result<BTreeMap<String, usize>> {
        let mut subjects = BTreeMap::new();
        for entry in fs_err::read_dir(self.mailbox.join("new"))? {
            let text = fs_err::read_to_string(entry?.path())?;
            let subject = text
                .lines()
                .find_map(|line| line.strip_prefix("Subject: "))
                .context("a message has a subject")?;
            let (_, title) = subject.split_once("] ").context("the subject names the host")?;
            *subjects.entry(title.to_owned()).or_default() += 1;
        }
        Ok(subjects)
    }
}

/// Processes that the kernel killed for want of memory.
async fn kernel_kills(world: &World) -> anyhow::Result<u64> {
    let line = world.run(&["grep", "oom_kill ", "/proc/vmstat"]).await?;
    Ok(line.trim_start_matches("oom_kill ").parse()?)
}

/// Writes `host.yml`, as an administrator's editor would.
pub(crate) async fn settings(world: &World, text: &str) -> anyhow::Result<()> {
    let path = "/etc/appliance/host.yml";
    Ok(world.host.copy_in(path, text.as_bytes().to_vec(), 0o644).await?)
}

/// Waits for a notice of this kind and subject at `/hook`.
pub(crate) async fn told(
    receiver: &Receiver,
    status: &str,
    kind: &str,
    subject: &str,
) -> anyhow::Result<Value> {
    let found = receiver
        .wait("/hook", LIMIT, |request| {
            serde_json::from_slice::<Value>(&request.body).is_ok_and(|notice| {
                notice["status"] == status && notice["kind"] == kind && notice["subject"] == subject
            })
        })
        .await
        .with_context(|| format!("{status}: {kind} {subject}"))?;
    Ok(serde_json::from_slice(&found.body)?)
}

/// Mail over TLS from the start, and what is said of a password that the server does not take.
async fn passwords(
    world: &World,
    mail: &Mail,
    address: &str,
    secrets: &impl AsyncFn(&str) -> Result<(), SandboxError>,
) -> anyhow::Result<()> {
    let alone = format!(
        "alerts: {{email: {{to: [ops@example.test], from: host@example.test, server: '{address}:{}', \
         username: appliance, password: MAIL, encryption: tls}}}}\n",
        mail.tls
    );
    settings(world, &alone).await?;
    let test = async || world.developer.appliance(["alerts", "test"]).run().await;
    test().await?.expect_code(0)?;
    ensure!(mail.subjects()?.get("test") == Some(&2), "{:?}", mail.subjects()?);
    secrets("another").await?;
    let refused = test().await?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("535") && !refused.stderr.contains("another"),
        "{refused:?}"
    );
    secrets(PASSWORD).await?;
    test().await?.expect_code(0)?;
    ensure!(mail.subjects()?.get("test") == Some(&3), "{:?}", mail.subjects()?);
    Ok(())
}

/// A certificate for the app whose end is `days` away.
fn certificate(days: i64) -> anyhow::Result<(String, String)> {
    let mut params = CertificateParams::new(vec!["demo.test".to_owned()])?;
    let now = std::time::SystemTime::now();
    let day = Duration::from_secs(86_400);
    params.not_before = (now - day * 60).into();
    params.not_after = (now + day * u32::try_from(days)?).into();
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

/// The app with a certificate of its own.
async fn push(world: &World, version: &str, days: i64) -> anyhow::Result<()> {
    world.developer.demo_app(version, world, "").await?;
    let (certificate, key) = certificate(days)?;
    world.developer.write("certificate.pem", &certificate)?;
    world.developer.write("key.pem", &key)?;
    world.developer.write(
        ".kamal/secrets",
        "CERTIFICATE=$(cat certificate.pem)\nKEY=$(cat key.pem)\n",
    )?;
    let path = world.developer.app().join("config/deploy.yml");
    let text = fs_err::read_to_string(&path)?;
    let own = "  ssl:\n    certificate_pem: CERTIFICATE\n    private_key_pem: KEY\n";
    world
        .developer
        .write("config/deploy.yml", &text.replace("  ssl: true\n", own))?;
    let ran = world
        .developer
        .appliance(["push", "--version", version])
        .run()
        .await?;
    ran.expect_code(0).map(drop)
}

#[tokio::test]
async fn each_alert_is_told_once_to_everybody_and_taken_back_once() -> anyhow::Result<()> {
    let world = World::bootstrapped("alerts", Distro::Debian12).await?;
    push(&world, "v1", 300).await?;
    push(&world, "v2", 3).await?;
    let receiver = Receiver::start().await?;
    let (url, address) = (receiver.url(&world).await?, gateway(&world).await?);
    let mut mail = Mail::start(&address).await?;
    let trusted = "/usr/local/share/ca-certificates/mail.crt";
    world
        .host
        .copy_in(trusted, mail.ca.clone().into_bytes(), 0o644)
        .await?;
    world.run(&["update-ca-certificates"]).await?;
    let secrets = async |password: &str| {
        let secrets = format!("BOT=123:abc\nMAIL='{password}'\n");
        world.host.copy_in("/etc/appliance/secrets", secrets, 0o600).await
    };
    secrets(PASSWORD).await?;
    let alerts = format!(
        "alerts:\n  webhooks: ['{url}/hook']\n  ntfy: {url}/topic\n  telegram: {{chat: '42', token: BOT, server: '{url}'}}\n\
         \x20 email: {{to: [ops@example.test], from: host@example.test, server: '{address}:{}', username: appliance, password: MAIL}}\n\
         \x20 ping: {url}/ping\n  interval: 1s\n  window: 40s\n",
        mail.starttls
    );
    let full = format!("{alerts}limits: {{disk_free: 99.9%}}\n");
    // The disk is the machine's, which may be fuller than a server should be.
    let alerts = format!("{alerts}limits: {{disk_free: 1%}}\n");

    // Somebody wants to see that messages arrive, before one has to.
    settings(&world, &alerts).await?;
    let test = world
        .developer
        .appliance(["alerts", "test"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(
        test.stderr.contains("ntfy ") && test.stderr.contains("telegram 42"),
        "{}",
        test.stderr
    );
    ensure!(receiver.received("/topic").len() == 1);
    let telegram = receiver.received("/bot123:abc/sendMessage");
    ensure!(
        telegram.len() == 1 && telegram[0].text().contains("\"chat_id\":\"42\""),
        "{telegram:?}"
    );
    ensure!(mail.subjects()?.get("test") == Some(&1), "{:?}", mail.subjects()?);
    passwords(&world, &mail, &address, &secrets).await?;

    // Everything goes wrong.
    settings(&world, &full).await?;
    world.run(&["touch", "/run/reboot-required"]).await?;
    let image = world.run(&["docker", "ps", "--format={{.Image}}"]).await?;
    let image = image.lines().next().context("the app runs")?.to_owned();
    let run = ["docker", "run", "--detach", "--name"];
    // Whether it fails or has nothing to do: a container that ends again and again is told, and stopped by what is told.
    for (name, program) in [("looper", "false"), ("worker", "true")] {
        world
            .run(&[&run[..], &[name, "--restart=always", &image, program]].concat())
            .await?;
        told(&receiver, "firing", "restart-loop", name).await?;
        let found = crate::doctor::found(&world, "restart-loop").await?;
        ensure!(found.message.contains(name), "{}", found.message);
        world.run(&["bash", "-euc", &found.next]).await?;
        crate::doctor::gone_in_time(&world, "restart-loop").await?;
    }
    // Somebody who restarts a container means it.
    world
        .run(&[&run[..], &["calm", "--restart=always", &image, "sleep", "3600"]].concat())
        .await?;
    for _ in 0..4 {
        world.run(&["docker", "restart", "--time=0", "calm"]).await?;
    }
    crate::doctor::gone(&world, "restart-loop").await?;
    let kills_before = kernel_kills(&world).await?;
    let hungry = "x = bytearray(300 << 20)";
    world
        .run(
            &[
                &run[..],
                &["eater", "--memory=24m", &image, "python3", "-c", hungry],
            ]
            .concat(),
        )
        .await?;
    let own = fs_err::read(world.developer.app().join("certificate.pem"))?;
    let address = std::net::SocketAddr::new(world.ip().await?, 443);
    let broken = Target::https(address, "demo.test", "/slow?ms=broken", &own)?;
    // For as long as it takes the agent to see it.
    let mut failing = std::pin::pin!(async {
        loop {
            let _failed = broken.get().await;
        }
    });
    let all = [
        ("certificate", "demo.test"),
        ("disk", "host"),
        ("restart-loop", "looper"),
        ("restart-loop", "worker"),
        ("memory", "eater"),
        ("errors", "demo-web"),
        ("reboot", "host"),
    ];
    for (kind, subject) in all {
        let notice = tokio::select! {
            notice = told(&receiver, "firing", kind, subject) => notice?,
            never = &mut failing => never,
        };
        ensure!(
            notice["next"].as_str().is_some_and(|next| !next.is_empty()),
            "{notice}"
        );
        if kind == "memory" {
            let found = crate::doctor::found(&world, "memory").await?;
            world.run(&["bash", "-euc", &found.next]).await?;
        }
    }
    let found = crate::doctor::found(&world, "certificate-ends").await?;
    ensure!(found.next.contains("demo.test"), "{}", found.next);
    let listed = world
        .developer
        .appliance(["alerts", "list"])
        .run()
        .await?
        .expect_code(0)?;
    // What was stopped is over.
    let passed = ["restart-loop", "memory"];
    for (kind, subject) in all.into_iter().filter(|(kind, _)| !passed.contains(kind)) {
        ensure!(
            listed.stdout.contains(&format!("{kind} {subject}")),
            "{}",
            listed.stdout
        );
    }
    let shown = listed.stdout + &world.run(&["journalctl", "--unit=appliance-agent"]).await?;
    for secret in ["123:abc", "/topic", "/hook", PASSWORD] {
        ensure!(!shown.contains(secret), "{secret} is shown: {shown}");
    }

    // And everything is put right, by the commands that doctor prints.
    let errors = crate::doctor::found(&world, "errors").await?;
    world
        .run(&["docker", "rm", "--force", "looper", "worker", "eater"])
        .await?;
    world.run(&["rm", "/run/reboot-required"]).await?;
    settings(&world, &alerts).await?;
    // Which brings back the certificate that lasts, too.
    crate::doctor::run_by(&world.developer, &errors.next).await?;
    crate::doctor::gone_in_time(&world, "errors").await?;
    crate::doctor::gone_in_time(&world, "memory").await?;
    crate::doctor::gone_in_time(&world, "certificate-ends").await?;
    for (kind, subject) in all {
        let notice = told(&receiver, "resolved", kind, subject).await?;
        ensure!(
            notice["message"]
                .as_str()
                .is_some_and(|text| text.starts_with("over, it was: ")),
            "{notice}"
        );
    }
    receiver
        .wait("/topic", LIMIT, |request| {
            request.headers["title"].ends_with("resolved: certificate demo.test")
        })
        .await?;
    receiver.wait("/ping", LIMIT, |_| true).await?;

    // Each of them once, everywhere.
    let hook = receiver.received("/hook");
    ensure!(
        !hook.iter().any(|request| request.text().contains("calm")),
        "who restarts a container was told of a loop"
    );
    // The kernel's counter is the machine's, on which others may be short of memory too.
    let kills = hook
        .iter()
        .filter(|request| request.text().contains(": firing: memory "));
    let (kills, killed) = (kills.count(), kernel_kills(&world).await? - kills_before);
    ensure!(kills as u64 <= killed, "{killed} kills were told {kills} times");
    // Mail takes longer than a webhook.
    let titles: Vec<String> = all
        .iter()
        .flat_map(|(kind, subject)| {
            ["firing", "resolved"].map(|status| format!("{status}: {kind} {subject}"))
        })
        .collect();
    let deadline = tokio::time::Instant::now() + LIMIT;
    let mailed = loop {
        let mailed = mail.subjects()?;
        let complete = titles.iter().all(|title| mailed.contains_key(title));
        if complete || tokio::time::Instant::now() > deadline {
            break mailed;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    for (kind, subject) in all {
        for status in ["firing", "resolved"] {
            let title = format!("{status}: {kind} {subject}");
            let count = hook
                .iter()
                .filter(|request| request.text().contains(&format!(": {title}\\n")))
                .count();
            ensure!(count == 1, "the webhook was told {count} times: {title}");
            ensure!(
                mailed.get(&title) == Some(&1),
                "{title} is not once in {mailed:?}"
            );
        }
    }
    mail.server.kill().await?;
    Ok(())
}
