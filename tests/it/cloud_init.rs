//! From a provider's bare image and one file of user-data to a served app, with Debian's own cloud-init.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use appliance_sandbox::{Command, Distro, Output, SandboxError};
use appliance_tests::receiver::Receiver;
use appliance_tests::{World, bench};

use crate::door::{picture, unchanged};
use crate::updates::ReleaseKey;

/// What a provider's image has: cloud-init, told where its seed is, and a network that is set up already.
const IMAGE: &str = "datasource_list: [NoCloud, None]\nnetwork: {config: disabled}\nlocale: false\napt: {preserve_sources_list: true}\n";
const SEED: &str = "/var/lib/cloud/seed/nocloud";
/// Cuts the host off as a provider's broken network would, before the last stage begins.
const CUT_OFF: &str = "[Service]\nExecStartPre=/usr/sbin/ip link set eth0 down\n";
const CUT_OFF_PATH: &str = "/etc/systemd/system/cloud-final.service.d/cut-off.conf";

/// Boots until cloud-init has ended; what it says of itself.
async fn boot(world: &World) -> anyhow::Result<(bool, String)> {
    match world.host.reboot().await {
        // The last stage failed, and systemd says so too.
        Ok(()) | Err(SandboxError::FailedUnits { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let wait = Command::new(["cloud-init", "status", "--wait", "--long"]).timeout(Duration::from_secs(120));
    let status = world.host.exec(&wait).await?;
    Ok((status.success(), status.text()))
}

/// A server as a provider hands it over: never booted before, with this user-data.
async fn first_boot(world: &World, user_data: &str) -> anyhow::Result<(bool, String)> {
    world.run(&["cloud-init", "clean", "--logs"]).await?;
    for (file, text) in [("meta-data", "instance-id: one\n"), ("user-data", user_data)] {
        world
            .host
            .copy_in(&format!("{SEED}/{file}"), text.as_bytes().to_vec(), 0o600)
            .await?;
    }
    boot(world).await
}

async fn output(world: &World) -> anyhow::Result<String> {
    let log = world.host.read("/var/log/cloud-init-output.log").await?;
    Ok(String::from_utf8_lossy(&log).into_owned())
}

/// Nothing of ours is there, and only who held the key before gets in.
async fn not_half_open(world: &World) -> anyhow::Result<()> {
    nothing_of_ours(world).await?;
    // And by packets: nothing but the SSH door that was there before answers.
    let ip = world.ip().await?;
    let answers = async |port: u16| tokio::net::TcpStream::connect((ip, port)).await.is_ok();
    ensure!(answers(22).await, "the SSH door is shut");
    for port in [80, 443, 2375, 5432, 9323] {
        ensure!(!answers(port).await, "port {port} answers from outside");
    }
    Ok(())
}

/// As it was, and without passwords, which user-data says before our program comes.
async fn nothing_of_ours(world: &World) -> anyhow::Result<()> {
    as_it_was(world).await?;
    let sshd = world.run(&["sshd", "-T"]).await?;
    ensure!(
        sshd.lines().any(|line| line == "passwordauthentication no"),
        "{sshd}"
    );
    Ok(())
}

async fn as_it_was(world: &World) -> anyhow::Result<()> {
    for path in [
        "/usr/local/bin/appliance",
        "/usr/local/bin/.appliance.download",
        "/usr/local/bin/.appliance.download.sig",
        "/etc/systemd/system/appliance-agent.service",
        "/home/deploy",
    ] {
        let there = world.host.exec(&Command::new(["test", "-e", path])).await?;
        ensure!(!there.success(), "{path} was left behind");
    }
    let listening = world
        .run(&["ss", "--tcp", "--listening", "--no-header", "--numeric"])
        .await?;
    let strangers: Vec<_> = listening
        .lines()
        .filter(|line| !line.contains(":22 ") && !line.contains("127.0.0.11:"))
        .collect();
    ensure!(strangers.is_empty(), "{strangers:?}");
    Ok(())
}

#[tokio::test]
async fn user_data_makes_an_appliance_of_a_bare_host_or_says_why_not() -> anyhow::Result<()> {
    let world = World::empty("cloud-init", Distro::Debian12).await?;
    world.run(&["apt-get", "update", "-qq"]).await?;
    let install = [
        "apt-get",
        "install",
        "--yes",
        "-qq",
        "--no-install-recommends",
        "cloud-init",
    ];
    world.run(&install).await?;
    world
        .host
        .copy_in(
            "/etc/cloud/cloud.cfg.d/90_image.cfg",
            IMAGE.as_bytes().to_vec(),
            0o644,
        )
        .await?;

    let binary = bench::binary()?;
    let program = fs_err::read(&binary)?;
    let (key, stranger) = (ReleaseKey::new().await?, ReleaseKey::new().await?);
    let receiver = Receiver::start().await?;
    let url = format!("{}/appliance", receiver.url(&world).await?);
    receiver.serve("/appliance", program.clone());
    receiver.serve("/appliance.sig", key.sign(&binary).await?);
    world.developer.write("host.yml", "timezone: Europe/Berlin\n")?;
    let (public, own) = (
        key.public(),
        world.developer.public_key().context("has a key")?.to_owned(),
    );
    let user_data = async |more: &[&str]| -> anyhow::Result<String> {
        let given = [
            "cloud-init",
            "--allow-container",
            "--key",
            &own,
            "--host-yml",
            "host.yml",
            "--url",
            &url,
        ];
        let ran = world.developer.appliance([&given, more].concat()).run().await?;
        Ok(ran.expect_code(0)?.stdout)
    };
    let signed = user_data(&["--release-key", &public]).await?;

    // Another program than was promised, and one that somebody else signed.
    let zeros = "0".repeat(64);
    let wrong_sum = user_data(&["--release-key", &public, "--sha256", &zeros]).await?;
    let wrong_key = user_data(&["--release-key", &stranger.public()]).await?;
    for (given, why) in [
        (&wrong_sum, "computed checksum did NOT match"),
        (&wrong_key, "Could not verify signature"),
    ] {
        let (fine, status) = first_boot(&world, given).await?;
        ensure!(!fine && status.contains("status: error"), "{status}");
        let said = output(&world).await?;
        ensure!(said.contains(why), "{why:?} is not in:\n{said}");
        not_half_open(&world).await?;
    }

    // No network in the last stage, then a disk without room: the same user-data, each time a first boot.
    let drop_in = async |path: &str, text: &str| -> anyhow::Result<()> {
        world.host.copy_in(path, text.as_bytes().to_vec(), 0o644).await?;
        Ok(())
    };
    drop_in(CUT_OFF_PATH, CUT_OFF).await?;
    let (fine, status) = first_boot(&world, &signed).await?;
    ensure!(!fine && status.contains("status: error"), "{status}");
    ensure!(
        output(&world).await?.contains("curl: ("),
        "{}",
        output(&world).await?
    );
    // No packet gets to it from outside either.
    nothing_of_ours(&world).await?;
    world.run(&["rm", CUT_OFF_PATH]).await?;

    let fstab = world.host.read("/etc/fstab").await.unwrap_or_default();
    drop_in("/etc/fstab", "tmpfs /usr/local/bin tmpfs size=1m,mode=0755 0 0\n").await?;
    let (fine, status) = first_boot(&world, &signed).await?;
    ensure!(!fine && status.contains("status: error"), "{status}");
    let said = output(&world).await?;
    ensure!(said.contains("curl: (23)"), "{said}");
    not_half_open(&world).await?;
    world.host.copy_in("/etc/fstab", fstab, 0o644).await?;

    // A server that begins to send and then says nothing more: given up, long before anybody looks.
    receiver.stall("/appliance", program.clone());
    let impatient = signed.replace("--speed-time 60", "--speed-time 2");
    ensure!(impatient != signed, "the limit is another: {signed}");
    let impatient = impatient.replace("--retry 5", "--retry 1");
    let (fine, status) = first_boot(&world, &impatient).await?;
    ensure!(!fine && status.contains("status: error"), "{status}");
    let said = output(&world).await?;
    ensure!(said.contains("curl: (28)"), "{said}");
    not_half_open(&world).await?;

    // For a server with other processors nothing is fetched at all.
    let fetched = receiver.received("/appliance").len();
    let other = match std::env::consts::ARCH {
        "aarch64" => "x86_64",
        _ => "aarch64",
    };
    let sum = ["--sha256", &zeros, "--arch", other, "--release-key", &public];
    let (fine, status) = first_boot(&world, &user_data(&sum).await?).await?;
    ensure!(!fine && status.contains("status: error"), "{status}");
    let said = output(&world).await?;
    ensure!(said.contains(&format!("this program is for {other}")), "{said}");
    ensure!(receiver.received("/appliance").len() == fetched, "it was fetched");
    not_half_open(&world).await?;

    // A download that broke off; the next boot goes on where this one stopped, with nobody's hand on it.
    receiver.break_off("/appliance", program.clone());
    let (fine, status) = first_boot(&world, &signed).await?;
    ensure!(!fine && status.contains("status: error"), "{status}");
    not_half_open(&world).await?;
    receiver.serve("/appliance", program);
    let (fine, status) = boot(&world).await?;
    if !fine {
        bail!("{status}\n{}", output(&world).await?);
    }
    world.ready().await?;
    let host_yml = world.host.read("/etc/appliance/host.yml").await?;
    ensure!(host_yml == b"timezone: Europe/Berlin\n", "host.yml is another");
    let zone = world.run(&["readlink", "/etc/localtime"]).await?;
    ensure!(
        zone.ends_with("Europe/Berlin"),
        "host.yml was not followed: {zone}"
    );

    // cloud-init made new host keys for a new server.
    fs_err::remove_file(world.developer.home().join(".ssh/known_hosts"))?;
    world.developer.know(&world).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let push = world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?;
    push.expect_code(0)?;
    let answer = world.https("demo.test", "/").await?.get().await?;
    ensure!(answer.version() == Some("v1"), "{answer:?}");

    // The same user-data on what it made: a first boot for cloud-init, and nothing to do for us.
    // A reboot moves containers to other addresses, and the proxy's routes with them.
    let lasting = |picture: String| -> String {
        let kept = picture.lines().filter(|line| !line.contains("snapshot.json"));
        kept.collect::<Vec<_>>().join("\n")
    };
    let before = lasting(picture(&world).await?);
    world
        .run(&["rm", "/var/lib/appliance/bootstrap/first-boot"])
        .await?;
    let (fine, status) = first_boot(&world, &signed).await?;
    ensure!(fine, "{status}\n{}", output(&world).await?);
    let said = output(&world).await?;
    ensure!(said.lines().any(|line| line == "0 changes"), "{said}");
    world.ready().await?;
    unchanged(&before, &lasting(picture(&world).await?))?;
    let answer = world.https("demo.test", "/").await?.get().await?;
    ensure!(answer.version() == Some("v1"), "{answer:?}");
    Ok(())
}

#[tokio::test]
async fn one_line_in_a_root_shell_does_the_same_or_leaves_nothing() -> anyhow::Result<()> {
    let world = World::empty("one-line", Distro::Debian13).await?;
    let binary = bench::binary()?;
    let program = fs_err::read(&binary)?;
    let key = ReleaseKey::new().await?;
    let receiver = Receiver::start().await?;
    let url = format!("{}/appliance", receiver.url(&world).await?);
    receiver.serve("/appliance", program);
    receiver.serve("/appliance.sig", key.sign(&binary).await?);
    let (public, own) = (
        key.public(),
        world.developer.public_key().context("has a key")?.to_owned(),
    );
    world.developer.write("host.yml", "timezone: Europe/Berlin\n")?;
    let line = async |more: &[&str]| -> anyhow::Result<String> {
        let given = [
            "cloud-init",
            "--format=one-liner",
            "--allow-container",
            "--key",
            &own,
            "--host-yml=host.yml",
            "--url",
            &url,
            "--release-key",
            &public,
        ];
        let ran = world.developer.appliance([&given, more].concat()).run().await?;
        let line = ran.expect_code(0)?.stdout;
        ensure!(line.trim_end().lines().count() == 1, "more than one line: {line}");
        Ok(line)
    };
    let paste = async |line: &str| -> anyhow::Result<Output> {
        let paste = Command::new(["sh", "-c", line]).timeout(Duration::from_secs(240));
        Ok(world.host.exec(&paste).await?)
    };

    // A minimal image: what the line needs is brought.
    let minimal = [
        "apt-get",
        "purge",
        "--yes",
        "-qq",
        "--allow-remove-essential",
        "curl",
    ];
    world.run(&minimal).await?;
    let zeros = "0".repeat(64);
    let refused = paste(&line(&["--sha256", &zeros]).await?).await?;
    ensure!(
        !refused.success() && refused.error_text().contains("computed checksum did NOT match"),
        "{}{}",
        refused.text(),
        refused.error_text()
    );
    as_it_was(&world).await?;

    let good = line(&[]).await?;
    let made = paste(&good).await?;
    ensure!(made.success(), "{}{}", made.text(), made.error_text());
    world.ready().await?;
    let again = paste(&good).await?;
    ensure!(
        again.success() && again.text().lines().any(|line| line == "0 changes"),
        "{}{}",
        again.text(),
        again.error_text()
    );
    let zone = world.run(&["readlink", "/etc/localtime"]).await?;
    ensure!(
        zone.ends_with("Europe/Berlin"),
        "host.yml was not followed: {zone}"
    );
    world
        .developer
        .appliance(["status", "--on", &format!("deploy@{}", world.ip().await?)])
        .run()
        .await?
        .expect_code(0)?;
    Ok(())
}
