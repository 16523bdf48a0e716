//! The binary replaced under load: by a newer one, by one that is not well, and back.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Output, SandboxError};
use appliance_tests::load::{Load, Shape};
use appliance_tests::receiver::Receiver;
use appliance_tests::{World, bench};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command as Process;

use crate::alerts::settings;

/// How long an update may take on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(180);

/// A key pair that signs releases, or pretends to.
pub(crate) struct ReleaseKey(tempfile::TempDir);

impl ReleaseKey {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let made = Process::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "releases", "-f"])
            .arg(directory.path().join("key"))
            .status()
            .await?;
        ensure!(made.success(), "ssh-keygen made no key");
        Ok(Self(directory))
    }

    /// The file with the public half.
    pub(crate) fn public(&self) -> String {
        self.0.path().join("key.pub").display().to_string()
    }

    /// What `ssh-keygen` signs a program with.
    pub(crate) async fn sign(&self, file: &Path) -> anyhow::Result<Vec<u8>> {
        self.sign_as("appliance-release", file).await
    }

    async fn sign_as(&self, namespace: &str, file: &Path) -> anyhow::Result<Vec<u8>> {
        let signed = Process::new("ssh-keygen")
            .args(["-q", "-Y", "sign", "-n", namespace, "-f"])
            .arg(self.0.path().join("key"))
            .stdin(fs_err::File::open(file)?.into_parts().0)
            .output()
            .await?;
        ensure!(
            signed.status.success(),
            "{}",
            String::from_utf8_lossy(&signed.stderr)
        );
        Ok(signed.stdout)
    }
}

/// A WebSocket through the proxy that sends back what it gets.
struct Socket(TcpStream);

impl Socket {
    async fn open(world: &World) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect((world.ip().await?, 80)).await?;
        let request = "GET /ws HTTP/1.1\r\nhost: plain.test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        ensure!(
            head.starts_with("http/1.1 101 ") && head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="),
            "{head}"
        );
        Ok(Self(stream))
    }

    /// Whether it is still the same connection.
    async fn echoes(&mut self, text: &str) -> anyhow::Result<()> {
        self.0.write_all(text.as_bytes()).await?;
        let mut back = vec![0; text.len()];
        tokio::time::timeout(Duration::from_secs(10), self.0.read_exact(&mut back))
            .await
            .context("the WebSocket is silent")?
            .context("the WebSocket was cut")?;
        ensure!(back == text.as_bytes(), "another text came back");
        Ok(())
    }
}

/// The binary under test with other bytes of the same length.
fn patched(program: &[u8], changes: &[(&str, &str)]) -> anyhow::Result<Vec<u8>> {
    let mut bytes = program.to_vec();
    for (from, to) in changes {
        ensure!(from.len() == to.len(), "{to} has another length");
        let places: Vec<usize> = memchr::memmem::find_iter(&bytes, from.as_bytes()).collect();
        ensure!(!places.is_empty(), "{from} is not in the binary");
        for place in places {
            bytes[place..place + to.len()].copy_from_slice(to.as_bytes());
        }
    }
    Ok(bytes)
}

/// Puts a program and its signature on the host.
async fn bring(world: &World, name: &str, program: &[u8], key: &ReleaseKey) -> anyhow::Result<String> {
    let file = tempfile::NamedTempFile::new()?;
    fs_err::write(file.path(), program)?;
    let path = format!("/root/{name}");
    world.host.copy_file_in(file.path(), &path, 0o644).await?;
    let signature = key.sign(file.path()).await?;
    world
        .host
        .copy_in(&format!("{path}.sig"), signature, 0o644)
        .await?;
    Ok(path)
}

/// Publishes a version: its program, and what says so, signed.
async fn publish(
    receiver: &Receiver,
    version: &str,
    programs: serde_json::Value,
    key: &ReleaseKey,
) -> anyhow::Result<()> {
    let manifest = serde_json::json!({ "version": version, "programs": programs }).to_string();
    let file = tempfile::NamedTempFile::new()?;
    fs_err::write(file.path(), &manifest)?;
    receiver.serve("/get/release.json", manifest);
    let signature = key.sign_as("appliance-manifest", file.path()).await?;
    receiver.serve("/get/release.json.sig", signature);
    Ok(())
}

/// A program for this machine, as a manifest has it.
fn entry(url: &str, program: &[u8]) -> serde_json::Value {
    let sum = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, program);
    let entry = serde_json::json!({ "url": url, "size": program.len(), "sha256": hex::encode(sum) });
    serde_json::json!({ std::env::consts::ARCH: entry })
}

/// What lies where programs do, and is ours.
async fn programs(world: &World) -> anyhow::Result<String> {
    world.run(&["ls", "-A", "/usr/local/bin"]).await
}

async fn update(world: &World, argv: &[&str]) -> anyhow::Result<Output> {
    let command = Command::new([&["appliance", "update"], argv].concat()).timeout(LIMIT);
    Ok(world.host.exec(&command).await?)
}

fn ended(output: &Output, status: i64, text: &str) -> anyhow::Result<()> {
    let said = output.error_text();
    ensure!(
        output.status == status && said.contains(text),
        "status {}: {said}",
        output.status
    );
    Ok(())
}

#[tokio::test]
async fn a_newer_binary_takes_over_a_sick_one_goes_back_and_nobody_notices() -> anyhow::Result<()> {
    let world = World::bootstrapped("updates", Distro::Debian12).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let path = world.developer.app().join("config/deploy.yml");
    let text = fs_err::read_to_string(&path)?;
    let plain = text.replace(
        "host: demo.test\n  ssl: true",
        "hosts: [demo.test, plain.test]\n  ssl: false",
    );
    world.developer.write("config/deploy.yml", &plain)?;
    world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;

    let (key, stranger) = (ReleaseKey::new().await?, ReleaseKey::new().await?);
    let public = fs_err::read(key.public())?;
    world
        .host
        .copy_in("/etc/appliance/release.pub", public, 0o644)
        .await?;
    let program = fs_err::read(bench::binary()?)?;
    let own = world.run(&["appliance", "version"]).await?;
    let (major, patch) = own.rsplit_once('.').context("a version")?;
    let number: u32 = patch.parse()?;
    let stamp = |version: &str| format!("appliance release {version}");
    let (newer, sick) = (
        format!("{major}.{}", number + 1),
        format!("{major}.{}", number + 2),
    );
    let v2 = patched(&program, &[(&stamp(&own), &stamp(&newer))])?;
    // Its agent comes up, and nobody finds it.
    let v3 = patched(
        &program,
        &[
            (&stamp(&own), &stamp(&sick)),
            ("/run/appliance/agent.sock", "/run/appliance/agent.lost"),
        ],
    )?;

    let mut load = Load::start(&world.http("demo.test", "/").await?, Shape::default());
    let mut socket = Socket::open(&world).await?;
    socket.echoes("before").await?;
    load.more(200).await;
    let digest = world.run(&["sha256sum", "/usr/local/bin/appliance"]).await?;

    // Somebody else's signature, and none at all.
    let forged = bring(&world, "forged", &v2, &stranger).await?;
    ended(
        &update(&world, &[&forged]).await?,
        3,
        "is not signed by the key of the releases",
    )?;
    let broken = bring(&world, "broken", &v2, &key).await?;
    world
        .host
        .copy_in(&broken, v2[..v2.len() - 1].to_vec(), 0o644)
        .await?;
    ended(
        &update(&world, &[&broken]).await?,
        3,
        "is not signed by the key of the releases",
    )?;
    ensure!(world.run(&["sha256sum", "/usr/local/bin/appliance"]).await? == digest);

    let elsewhere = {
        let mut other = v2.clone();
        // The processor, in the head of an ELF file: one of IBM's.
        other[18..20].copy_from_slice(&[0xb7, 0]);
        if std::env::consts::ARCH == "aarch64" {
            other[18..20].copy_from_slice(&[0x3e, 0]);
        }
        bring(&world, "elsewhere", &other, &key).await?
    };
    ended(&update(&world, &[&elsewhere]).await?, 3, "it is for ")?;

    // From where releases are published, whoever holds that place.
    let receiver = Receiver::start().await?;
    let place = format!("{}/get/", receiver.url(&world).await?);
    receiver.serve("/get/v2", v2.clone());
    let good = entry("v2", &v2);
    let before = programs(&world).await?;
    ended(&update(&world, &["--check"]).await?, 2, "updates: {from:")?;
    publish(&receiver, &newer, good.clone(), &stranger).await?;
    ended(
        &update(&world, &[&place]).await?,
        3,
        "signed by the key of the releases",
    )?;
    publish(&receiver, &newer, entry("v2", &program), &key).await?;
    ended(&update(&world, &[&place]).await?, 3, "its checksum is")?;
    let mut others = good.clone();
    others["pdp11"] = others[std::env::consts::ARCH].take();
    others
        .as_object_mut()
        .context("an object")?
        .remove(std::env::consts::ARCH);
    publish(&receiver, &newer, others, &key).await?;
    ended(&update(&world, &[&place]).await?, 3, "only for pdp11")?;
    // An old one again, which is signed as well: not even fetched.
    let fetched = receiver.received("/get/v0").len();
    publish(&receiver, "0.0.0", entry("v0", &v2), &key).await?;
    ended(&update(&world, &[&place]).await?, 3, "is older than")?;
    ensure!(receiver.received("/get/v0").len() == fetched, "it was fetched");
    // One that calls itself newer than it is.
    publish(&receiver, &sick, good.clone(), &key).await?;
    ended(&update(&world, &[&place]).await?, 3, "it says that it is")?;
    publish(&receiver, &newer, good, &key).await?;
    receiver.stall("/get/v2", v2.clone());
    let stalled = update(&world, &[&place, "--patience", "2"]).await?;
    ended(&stalled, 1, "nothing came for 2 s")?;
    // A disk without room, and somebody else who is changing the host.
    receiver.redirect("/get/v2", &format!("{place}real"));
    receiver.serve("/get/real", v2.clone());
    world
        .run(&["install", "/usr/local/bin/appliance", "/root/downloaded"])
        .await?;
    let full = "mount -t tmpfs -o size=1m,mode=0755 none /usr/local/bin; trap 'umount /usr/local/bin' EXIT\n\
                ln -s /root/downloaded /usr/local/bin/appliance\n\
                if /root/downloaded update \"$1\"; then exit 1; fi; [ \"$(ls -A /usr/local/bin)\" = appliance ]";
    let full = Command::new(["bash", "-euc", full, "bash", &place]).timeout(LIMIT);
    let full = world.host.exec(&full).await?;
    ended(&full, 0, "No space left on device")?;
    let busy = Command::new([
        "flock",
        "/run/appliance-bootstrap.lock",
        "appliance",
        "update",
        &place,
    ]);
    let busy = world.host.exec(&busy.timeout(LIMIT)).await?;
    ensure!(!busy.success(), "two at a time");
    ensure!(programs(&world).await? == before, "{}", programs(&world).await?);
    ensure!(world.run(&["sha256sum", "/usr/local/bin/appliance"]).await? == digest);

    settings(&world, &format!("updates: {{from: '{place}'}}\n")).await?;
    let check = world.run(&["appliance", "update", "--check"]).await?;
    ensure!(
        check.starts_with(&format!("{newer} is there, this is {own}")),
        "{check}"
    );
    // By the newer program itself, from where it was downloaded to: what is installed is what counts.
    let file = bring(&world, "newer", &v2, &key).await?;
    world.run(&["install", &file, "/root/downloaded"]).await?;
    let doctor = Command::new(["/root/downloaded", "doctor", "--json"]);
    let report = async || -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&world.host.exec(&doctor).await?.text())?)
    };
    let older = crate::doctor::first(&report().await?, "versions")?;
    ensure!(older.next == "appliance update", "{}", older.next);
    let by_itself = Command::new(["/root/downloaded", "update"]).timeout(LIMIT);
    ended(&world.host.exec(&by_itself).await?, 0, &format!("{newer} runs"))?;
    ensure!(world.run(&["appliance", "version"]).await? == newer);
    world.ready().await?;
    let report = report().await?;
    ensure!(
        crate::doctor::findings(&report, "versions").is_empty(),
        "{report}"
    );
    let check = world.run(&["appliance", "update", "--check"]).await?;
    ensure!(check.contains(&format!("{newer} is the latest")), "{check}");
    let status = world
        .developer
        .appliance(["status"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(
        status.stdout.contains(&format!("appliance {newer}")),
        "{}",
        status.stdout
    );
    socket.echoes("after the update").await?;
    load.more(200).await;

    let file = bring(&world, "older", &program, &key).await?;
    ended(&update(&world, &[&file]).await?, 3, "is older than")?;
    world.run(&["install", &file, "/root/downloaded"]).await?;
    let by_itself = Command::new(["/root/downloaded", "update", &file]).timeout(LIMIT);
    ended(&world.host.exec(&by_itself).await?, 3, "is older than")?;
    ensure!(world.run(&["appliance", "version"]).await? == newer, "went back");

    let file = bring(&world, "sick", &v3, &key).await?;
    ended(&update(&world, &[&file]).await?, 5, &format!("{newer} is back"))?;
    world.ready().await?;
    ensure!(world.run(&["appliance", "version"]).await? == newer);
    let reverted = crate::doctor::found(&world, "update-reverted").await?;
    ensure!(
        reverted.message.contains("was taken back"),
        "{}",
        reverted.message
    );
    socket.echoes("after the sick one").await?;

    // The updater dies in the middle: the guard goes back. Its timer is not waited for here.
    let script = format!("{CUT_OFF}systemctl start appliance-update-revert.service");
    let cut_off = Command::new(["bash", "-euc", &script, "bash", &file, &sick]).timeout(LIMIT);
    let cut_off = world.host.exec(&cut_off).await?;
    ensure!(cut_off.success(), "{}", cut_off.error_text());
    world.ready().await?;
    ensure!(world.run(&["appliance", "version"]).await? == newer);
    let timers = world
        .run(&[
            "systemctl",
            "list-unit-files",
            "appliance-update-revert.*",
            "--no-legend",
        ])
        .await;
    ensure!(
        timers.is_err() || timers.is_ok_and(|text| text.is_empty()),
        "the guard is still there"
    );

    // And back to what was there first, also where the updater was cut off after its last word.
    let cut_off = "sed -i s/reverted/settled/ /var/lib/appliance/update.json; cd /usr/local/bin\n\
                   mv .appliance.former .appliance.guarded; cp /bin/false .appliance.former";
    world.run(&["bash", "-euc", cut_off]).await?;
    ended(&update(&world, &["--rollback"]).await?, 0, &format!("{own} runs"))?;
    ensure!(world.run(&["appliance", "version"]).await? == own);
    crate::doctor::gone(&world, "update-reverted").await?;
    socket.echoes("to the end").await?;
    load.more(200).await;
    let report = load.stop().await;
    ensure!(
        report.failures == 0,
        "{} of {} requests failed: {:?}",
        report.failures,
        report.requests,
        report.examples
    );
    a_reboot_in_the_middle(&world, &own, &sick).await
}

/// An update to the program `$1` of version `$2` whose updater dies as soon as that is in place.
///
/// Until then the program and the one that is guarded are one file.
/// Should it have ended before anybody looked, the script fails at once instead of waiting for what never comes.
const CUT_OFF: &str = "appliance update \"$1\" & pid=$!; cd /usr/local/bin\n\
    while kill -0 $pid && [ ! -e .appliance.guarded -o appliance -ef .appliance.guarded ]; do :; done\n\
    kill -STOP $pid; appliance version | grep --quiet \"$2\"\n\
    kill -KILL $pid; wait $pid || true\n";

/// The host loses its power with a program in place that nobody has found healthy: its own timer goes back.
async fn a_reboot_in_the_middle(world: &World, own: &str, sick: &str) -> anyhow::Result<()> {
    let script = format!(
        "{CUT_OFF}sed -i 's/OnActiveSec=.*/OnActiveSec=3/' /etc/systemd/system/appliance-update-revert.timer; sync"
    );
    let cut_off = Command::new(["bash", "-euc", &script, "bash", "/root/sick", sick]).timeout(LIMIT);
    let cut_off = world.host.exec(&cut_off).await?;
    ensure!(cut_off.success(), "{}", cut_off.error_text());
    match world.host.reboot().await {
        // The agent of a sick program is one of them.
        Ok(()) | Err(SandboxError::FailedUnits { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let deadline = tokio::time::Instant::now() + LIMIT;
    let timer = "/etc/systemd/system/appliance-update-revert.timer";
    while world.run(&["test", "-e", timer]).await.is_ok() {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "the guard never went back"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ensure!(world.run(&["appliance", "version"]).await? == own);
    world.ready().await?;
    ensure!(
        !programs(world).await?.contains("guarded"),
        "{}",
        programs(world).await?
    );
    // Containers may have other addresses after a boot, which the agent tells the proxy.
    let app = world.http("plain.test", "/").await?;
    while !app.get().await.is_ok_and(|answer| answer.version() == Some("v1")) {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "the app did not come back"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
