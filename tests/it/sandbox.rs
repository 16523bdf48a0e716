//! The hosts that all other tests stand on: bare, bootable, and like a provider's.

use std::time::Duration;

use anyhow::ensure;
use appliance_sandbox::{Command, Distro, Image, PortState};
use appliance_tests::{Bench, World};

#[tokio::test]
async fn a_debian_12_host_starts_bare() -> anyhow::Result<()> {
    bare(Distro::Debian12).await
}

#[tokio::test]
async fn a_debian_13_host_starts_bare() -> anyhow::Result<()> {
    bare(Distro::Debian13).await
}

async fn bare(distro: Distro) -> anyhow::Result<()> {
    let world = World::empty("bare", distro).await?;
    let release = world.run(&["cat", "/etc/os-release"]).await?;
    ensure!(release.contains(distro.suite()), "{release}");
    ensure!(world.run(&["ps", "-o", "comm=", "-p", "1"]).await? == "systemd");

    for absent in [
        "/usr/sbin/dockerd",
        "/usr/bin/docker",
        "/etc/appliance",
        "/home/deploy",
    ] {
        let found = world.host.exec(&Command::new(["test", "-e", absent])).await?;
        ensure!(!found.success(), "{absent} is there");
    }
    ensure!(
        !world
            .host
            .exec(&Command::new(["getent", "passwd", "deploy"]))
            .await?
            .success()
    );
    let rules = world.run(&["nft", "list", "ruleset"]).await?;
    ensure!(!rules.contains("table inet"), "{rules}");

    // Root comes in by the key, and by nothing else.
    let ssh = |extra: &'static str| {
        let key = world.developer.home().join(".ssh/id_ed25519");
        let known = world.developer.home().join(".ssh/known_hosts");
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            extra,
            "-o",
            "StrictHostKeyChecking=yes",
        ])
        .arg("-o")
        .arg(format!("UserKnownHostsFile={}", known.display()))
        .arg("-i")
        .arg(key)
        .env_remove("SSH_AUTH_SOCK");
        ssh
    };
    let (v4, v6) = world.host.addresses().await?;
    for address in [v4.to_string(), v6.to_string()] {
        let output = ssh("IdentitiesOnly=yes")
            .args(["-l", "root", &address, "id", "-un"])
            .output()
            .await?;
        ensure!(
            output.stdout == b"root\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let refused = ssh("PubkeyAuthentication=no")
        .args(["-l", "root", &v4.to_string(), "true"])
        .output()
        .await?;
    ensure!(!refused.status.success());

    let (outside, _removal) = world.bench.outside(world.host.network()).await?;
    for address in [v4.into(), v6.into()] {
        let found = outside
            .probe(address, &["1-1024"], Duration::from_secs(2))
            .await?;
        for (port, state) in found {
            let expected = if port == 22 {
                PortState::Open
            } else {
                PortState::Refused
            };
            ensure!(state == expected, "port {port} of {address} is {state:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_engine_installs_without_downloads_and_runs_containers() -> anyhow::Result<()> {
    let world = World::empty("engine", Distro::Debian13).await?;
    world.run(&["apt-get", "update", "-qq"]).await?;
    let install = Command::new([
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "docker.io",
        "docker-cli",
    ])
    .env("DEBIAN_FRONTEND", "noninteractive");
    let output = world.host.exec(&install).await?;
    ensure!(output.success(), "{}", output.error_text());
    ensure!(
        output.text().contains("Need to get 0 B/"),
        "the packages are not in apt's cache: {}",
        output.text()
    );

    let demo = Image::Demo {
        version: "v1".to_owned(),
    };
    let reference = world.bench.sandbox.ensure(&demo, &|_| ()).await?;
    let saved = tokio::process::Command::new("docker")
        .args(["save", reference.as_str()])
        .output()
        .await?;
    let output = world
        .host
        .exec(&Command::new(["docker", "load"]).stdin(saved.stdout))
        .await?;
    ensure!(output.success(), "{}", output.error_text());
    let said = world
        .run(&["docker", "run", "--rm", reference.as_str(), "echo", "hello"])
        .await?;
    ensure!(said == "hello", "{said}");
    Ok(())
}

#[tokio::test]
async fn a_host_survives_a_reboot_and_a_power_cut() -> anyhow::Result<()> {
    let world = World::empty("power", Distro::Debian12).await?;
    world.host.copy_in("/var/lib/kept", "kept", 0o644).await?;
    world.host.copy_in("/run/lost", "lost", 0o644).await?;
    let boots = async || {
        world
            .run(&["systemctl", "show", "--property=UserspaceTimestampMonotonic"])
            .await
    };
    let first = boots().await?;

    world.host.reboot().await?;
    ensure!(boots().await? != first, "it did not boot anew");
    ensure!(world.run(&["cat", "/var/lib/kept"]).await? == "kept");
    ensure!(
        !world
            .host
            .exec(&Command::new(["test", "-e", "/run/lost"]))
            .await?
            .success()
    );

    world.host.kill().await?;
    ensure!(!world.host.running().await?);
    ensure!(world.host.addresses().await.is_err());
    world.host.power_on().await?;
    ensure!(world.run(&["cat", "/var/lib/kept"]).await? == "kept");
    Ok(())
}

#[tokio::test]
async fn commands_are_bounded_and_their_input_and_output_arrive_whole() -> anyhow::Result<()> {
    let world = World::empty("exec", Distro::Debian12).await?;

    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_be_bytes).collect();
    world.host.copy_in("/var/tmp/large", bytes.clone(), 0o640).await?;
    ensure!(world.host.read("/var/tmp/large").await? == bytes);
    ensure!(world.run(&["stat", "-c", "%a", "/var/tmp/large"]).await? == "640");
    world.host.copy_in("/var/tmp/deep/empty", "", 0o600).await?;
    ensure!(world.host.read("/var/tmp/deep/empty").await?.is_empty());

    let both = world
        .host
        .exec(&Command::new(["sh", "-c", "cat; echo two >&2; exit 3"]).stdin("one"))
        .await?;
    ensure!((both.status, both.text(), both.error_text()) == (3, "one".to_owned(), "two".to_owned()));
    // A program that does not read its input must not hang us.
    let deaf = world.host.exec(&Command::new(["true"]).stdin(bytes)).await?;
    ensure!(deaf.success());

    let slow = Command::new(["sleep", "60"]).timeout(Duration::from_secs(1));
    ensure!(world.host.exec(&slow).await?.status == 124);

    let nobody = world
        .host
        .exec(&Command::new(["id", "-un"]).user("nobody").env("A", "b"))
        .await?;
    ensure!(nobody.text() == "nobody");
    let failed = world.host.run(["false"]).await.expect_err("its status is 1");
    ensure!(failed.to_string().contains("status 1"), "{failed}");
    Ok(())
}

#[tokio::test]
async fn a_taken_name_is_refused_and_a_dropped_world_leaves_nothing() -> anyhow::Result<()> {
    let world = World::empty("taken", Distro::Debian12).await?;
    let name = world.host.name().clone();
    let options = appliance_sandbox::HostOptions::new(name.clone(), Distro::Debian12);
    let refused = world
        .bench
        .sandbox
        .start(&options, &|_| ())
        .await
        .expect_err("the name is taken");
    ensure!(refused.to_string().contains("exists already"), "{refused}");
    drop(world);
    let bench = Bench::connect().await?;
    ensure!(bench.sandbox.host(&name).await.is_err());
    Ok(())
}
