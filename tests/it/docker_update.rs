//! Docker replaced by another packaged major while an app is served: real packages, installed by apt.
//!
//! The host is Debian 12 with its own `docker.io` (20.10); the other major is Debian 13's (26.1), which apt may take from
//! there because both are of one family: what an administrator with a second suite in `sources.list` has.
//! What is not driven here: Docker's own packages, whose repository cannot be reached from a test machine.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Output};
use appliance_tests::World;
use appliance_tests::load::{Load, Shape};

/// apt downloads and unpacks 100 MB, on a machine that does much else.
const LIMIT: Duration = Duration::from_secs(240);
const SUITE: &str = "deb http://deb.debian.org/debian trixie main\n";
/// Nothing comes from there unless it is asked for.
const PIN: &str = "Package: *\nPin: release n=trixie\nPin-Priority: 100\n";
/// A new daemon that does not come up, while the old one does.
const SICK: &str = "[Service]\nExecStartPre=/bin/sh -c '! dockerd --version | grep -q version.26'\n";
/// An archive with one package in two versions, of which the older is installed.
const ARCHIVE: &str = r#"
mkdir -p /srv/archive && cd /srv/archive
for version in 1 2; do
    mkdir -p tree/DEBIAN
    printf 'Package: little\nVersion: %s\nArchitecture: all\nMaintainer: nobody <nobody@example.test>\nDescription: a package\n' $version > tree/DEBIAN/control
    dpkg-deb --build tree little_$version.deb >&2
    cat tree/DEBIAN/control
    printf 'Filename: ./little_%s.deb\nSize: %s\nSHA256: %s\n\n' $version $(stat -c %s little_$version.deb) $(sha256sum little_$version.deb | cut -d' ' -f1)
done > Packages
echo 'deb [trusted=yes] file:/srv/archive ./' > /etc/apt/sources.list.d/archive.list
dpkg --install little_1.deb
apt-mark auto little
"#;

async fn put(world: &World, path: &str, text: &str) -> anyhow::Result<()> {
    Ok(world.host.copy_in(path, text.as_bytes().to_vec(), 0o644).await?)
}

async fn update(world: &World, argv: &[&str]) -> anyhow::Result<Output> {
    let command = Command::new([&["appliance", "host", "update"], argv].concat()).timeout(LIMIT);
    Ok(world.host.exec(&command).await?)
}

async fn engine(world: &World) -> anyhow::Result<String> {
    world
        .run(&["docker", "version", "--format={{.Server.Version}}"])
        .await
}

/// Id, process and start of every container.
async fn containers(world: &World) -> anyhow::Result<String> {
    let ids = world.run(&["docker", "ps", "--quiet", "--no-trunc"]).await?;
    let format = "--format={{.Id}} {{.State.Pid}} {{.State.StartedAt}}";
    let argv: Vec<&str> = ["docker", "inspect", format]
        .into_iter()
        .chain(ids.lines())
        .collect();
    world.run(&argv).await
}

#[tokio::test]
async fn another_major_of_docker_takes_over_and_every_request_is_answered() -> anyhow::Result<()> {
    let world = World::bootstrapped("docker-major", Distro::Debian12).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let push = |version: &'static str| world.developer.appliance(["push", "--version", version]);
    push("v1").run().await?.expect_code(0)?;
    put(&world, "/etc/apt/sources.list.d/trixie.list", SUITE).await?;
    put(&world, "/etc/apt/preferences.d/trixie", PIN).await?;
    let old = engine(&world).await?;
    ensure!(old.starts_with("20.10."), "{old}");
    let before = containers(&world).await?;
    ensure!(!before.is_empty(), "the app runs");
    let mut load = Load::start(&world.https("demo.test", "/").await?, Shape::default());
    load.more(100).await;

    // Packages alone; Docker is left out even where another is at hand.
    world.run(&["bash", "-euc", ARCHIVE]).await?;
    let said = update(&world, &["--only=packages", "--yes"]).await?;
    ensure!(said.success(), "{}{}", said.text(), said.error_text());
    ensure!(said.text().contains("1 packages are newer"), "{}", said.text());
    let little = world
        .run(&["dpkg-query", "--show", "--showformat=${Version}", "little"])
        .await?;
    ensure!(little == "2", "{little}");
    ensure!(world.run(&["apt-mark", "showauto", "little"]).await? == "little");
    let again = update(&world, &[]).await?;
    ensure!(again.text() == "everything is up to date", "{}", again.text());
    ensure!(engine(&world).await? == old);

    // The plan, seen from elsewhere.
    let on = format!("root@{}", world.ip().await?);
    let plan = world
        .developer
        .appliance(["host", "update", "--docker", "26.1", "--on", &on])
        .run()
        .await?
        .expect_code(0)?;
    for text in [
        &format!("Docker {old} → 26.1.5"),
        "another major",
        "docker-cli",
        "1 containers run on",
    ] {
        ensure!(plan.stdout.contains(text), "{text} is not in {}", plan.stdout);
    }
    ensure!(plan.stderr.contains("--yes"), "{}", plan.stderr);
    let unknown = update(&world, &["--docker=27", "--yes"]).await?;
    ensure!(
        !unknown.success() && unknown.error_text().contains("apt offers no docker.io 27"),
        "{}",
        unknown.error_text()
    );

    // Without live-restore every container would stop: refused, and mended by the command that is named.
    let settings = String::from_utf8(world.host.read("/etc/docker/daemon.json").await?)?;
    put(
        &world,
        "/etc/docker/daemon.json",
        &settings.replace("\"live-restore\": true", "\"live-restore\": false"),
    )
    .await?;
    world.run(&["systemctl", "reload", "docker"]).await?;
    let refused = update(&world, &["--docker=26.1", "--yes"]).await?;
    let said = refused.error_text();
    ensure!(
        refused.status == 3 && said.contains("live-restore is off") && said.contains("nothing was changed"),
        "{}: {said}",
        refused.status
    );
    let next = "appliance host apply; systemctl reload docker";
    ensure!(said.contains(next), "{said}");
    world.run(&["bash", "-euc", next]).await?;

    // A new daemon that refuses the host's settings is found before it is installed.
    let settings = String::from_utf8(world.host.read("/etc/docker/daemon.json").await?)?;
    let odd = settings.replacen('{', "{\"cluster-advertise\": \"192.0.2.1:2376\",", 1);
    put(&world, "/etc/docker/daemon.json", &odd).await?;
    let refused = update(&world, &["--docker=26.1", "--yes"]).await?;
    let said = refused.error_text();
    ensure!(
        refused.status == 3
            && said.contains("refuses /etc/docker/daemon.json")
            && said.contains("cluster-advertise"),
        "{}: {said}",
        refused.status
    );
    put(&world, "/etc/docker/daemon.json", &settings).await?;
    ensure!(engine(&world).await? == old);

    // One that does not come up goes back.
    let drop_in = "/etc/systemd/system/docker.service.d/sick.conf";
    put(&world, drop_in, SICK).await?;
    world.run(&["systemctl", "daemon-reload"]).await?;
    let back = update(&world, &["--docker=26.1", "--yes"]).await?;
    ensure!(
        back.status == 5 && back.error_text().contains(&format!("{old} is back")),
        "{}: {}",
        back.status,
        back.error_text()
    );
    ensure!(engine(&world).await? == old);
    ensure!(containers(&world).await? == before, "a container was touched");
    world.run(&["rm", drop_in]).await?;
    world.run(&["systemctl", "daemon-reload"]).await?;
    load.more(100).await;

    // And the real thing, from elsewhere.
    let jump = world
        .developer
        .appliance(["host", "update", "--docker", "26.1", "--yes", "--on", &on])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(
        jump.stdout.contains("Docker 26.1.5") && jump.stdout.contains("1 containers ran on"),
        "{jump:?}"
    );
    ensure!(engine(&world).await?.starts_with("26.1.5"));
    ensure!(
        containers(&world).await? == before,
        "a container was started anew"
    );
    load.more(200).await;

    // The agent works with the new engine as with the old.
    world.developer.demo_app("v2", &world, "").await?;
    push("v2").run().await?.expect_code(0)?;
    load.more(100).await;
    let status = world
        .developer
        .appliance(["status"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(status.stdout.contains("Docker 26.1.5"), "{}", status.stdout);
    let again = update(&world, &["--only=docker", "--yes"]).await?;
    ensure!(
        again.success() && again.text() == "everything is up to date",
        "{}{}",
        again.text(),
        again.error_text()
    );
    let report = load.stop().await;
    ensure!(
        report.failures == 0,
        "{} of {} requests failed: {:?}",
        report.failures,
        report.requests,
        report.examples
    );
    ensure!(report.versions.contains_key("v2"), "{:?}", report.versions);
    let requests = report.requests;
    (requests > 500).then_some(()).context("hardly any load")
}
