//! What answers from outside: real packets from another machine, over IPv4 and IPv6.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image, Outside, PortState};
use appliance_tests::World;

/// Ports that somebody published or opened behind our back.
const PUBLISHED: [u16; 4] = [6379, 8080, 8081, 9100];
const OPEN: [u16; 3] = [22, 80, 443];
const PATIENCE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn only_ssh_and_the_proxy_answer_on_debian_12() -> anyhow::Result<()> {
    closed(Distro::Debian12).await
}

#[tokio::test]
async fn only_ssh_and_the_proxy_answer_on_debian_13() -> anyhow::Result<()> {
    closed(Distro::Debian13).await
}

async fn closed(distro: Distro) -> anyhow::Result<()> {
    let world = World::bootstrapped("firewall", distro).await?;
    let (outside, _removal) = world.bench.outside(world.host.network()).await?;
    containers(&world).await?;
    matrix(&world, &outside, "after bootstrap").await?;

    // Without our table they are open: it is the table that closes them, and this test would notice.
    world
        .run(&["nft", "delete", "table", "inet", "appliance"])
        .await?;
    let (v4, _) = world.host.addresses().await?;
    let found = outside.probe(v4.into(), &["8080", "9100"], PATIENCE).await?;
    ensure!(found.values().all(|state| *state == PortState::Open), "{found:?}");
    world.run(&["systemctl", "reload", "appliance-firewall"]).await?;
    matrix(&world, &outside, "after the table was deleted and loaded again").await?;

    for argv in [
        ["systemctl", "restart", "docker"],
        ["systemctl", "start", "nftables"],
        ["systemctl", "restart", "nftables"],
        ["systemctl", "reload", "nftables"],
        ["systemctl", "stop", "nftables"],
    ] {
        world.run(&argv).await?;
        let status = world.run(&["appliance", "firewall", "status"]).await?;
        ensure!(status == "the kernel holds the confirmed rules", "{status}");
        matrix(&world, &outside, &argv.join(" ")).await?;
    }

    // Stopping nftables flushed Docker's own rules too; after a restart of Docker its networks work again.
    world.run(&["systemctl", "restart", "docker"]).await?;
    works_inside(&world).await?;
    matrix(&world, &outside, "after Docker wrote its rules again").await?;

    world.host.reboot().await?;
    world.ready().await?;
    matrix(&world, &outside, "after a reboot").await
}

#[tokio::test]
async fn a_flushed_table_is_noticed_and_loaded_again() -> anyhow::Result<()> {
    let world = World::bootstrapped("flushed", Distro::Debian13).await?;
    let status = async || {
        world
            .host
            .exec(&Command::new(["appliance", "firewall", "status", "--json"]))
            .await
    };
    let state = async |expect: &str| -> anyhow::Result<()> {
        let said = status().await?.text();
        let value: serde_json::Value = serde_json::from_str(&said).context("status is JSON")?;
        ensure!(value["state"] == expect, "{said}, not {expect}");
        Ok(())
    };
    // Counters and bans move by themselves, and are no reason to load anything.
    world
        .run(&["nft", "add element inet appliance ban4 { 192.0.2.1 timeout 1h }"])
        .await?;
    state("confirmed").await?;
    world
        .run(&["nft", "add element inet appliance ext_tcp { 8080 }"])
        .await?;
    state("differs").await?;
    world.run(&["appliance", "firewall", "load"]).await?;
    state("confirmed").await?;
    world
        .run(&["nft", "insert rule inet appliance input accept"])
        .await?;
    state("differs").await?;
    // Bootstrap repairs it too, as the one change there is.
    let repaired = world
        .run(&["appliance", "bootstrap", "--allow-container"])
        .await?;
    ensure!(repaired == "1 change", "{repaired}");
    state("confirmed").await?;
    world
        .run(&["nft", "delete", "table", "inet", "appliance"])
        .await?;
    state("absent").await?;
    let refused = world
        .host
        .exec(&Command::new(["appliance", "firewall", "status"]))
        .await?;
    ensure!(
        refused.status == 1 && refused.error_text().contains("appliance firewall load"),
        "{}",
        refused.error_text()
    );
    world.run(&["systemctl", "reload", "appliance-firewall"]).await?;
    state("confirmed").await
}

/// Containers as somebody would start them by hand: published, on an IPv6 network, on loopback, on the host's network.
async fn containers(world: &World) -> anyhow::Result<()> {
    let image = world
        .bench
        .sandbox
        .ensure(
            &Image::Demo {
                version: "v1".to_owned(),
            },
            &|_| (),
        )
        .await?;
    let saved = tokio::process::Command::new("docker")
        .args(["save", image.as_str()])
        .output()
        .await?;
    let loaded = world
        .host
        .exec(&Command::new(["docker", "load"]).stdin(saved.stdout))
        .await?;
    ensure!(loaded.success(), "{}", loaded.error_text());
    world
        .run(&[
            "docker",
            "network",
            "create",
            "--ipv6",
            "--subnet=fd00:77::/64",
            "six",
        ])
        .await?;
    let runs: [&[&str]; 4] = [
        &["--publish=8080:80"],
        &["--network=six", "--publish=8081:80"],
        &["--publish=127.0.0.1:6379:80"],
        &["--network=host", "--env=PORT=9100"],
    ];
    for arguments in runs {
        let base = ["docker", "run", "--detach", "--restart=always"];
        world
            .run(&[&base[..], arguments, &[image.as_str()]].concat())
            .await?;
    }
    works_inside(world).await
}

/// The host itself reaches what is published, so a closed port is closed by the firewall and not because nothing is there.
async fn works_inside(world: &World) -> anyhow::Result<()> {
    for port in PUBLISHED {
        let url = format!("http://127.0.0.1:{port}/up");
        world
            .run(&[
                "curl",
                "--silent",
                "--show-error",
                "--fail",
                "--retry",
                "20",
                "--retry-delay",
                "1",
                "--retry-all-errors",
                "--max-time",
                "5",
                &url,
            ])
            .await
            .with_context(|| format!("nothing answers on port {port} of the host itself"))?;
    }
    Ok(())
}

/// Ports that matter and their neighbours, from outside, on both addresses: open or silent, as it should be.
async fn matrix(world: &World, outside: &Outside, when: &str) -> anyhow::Result<()> {
    let (v4, v6) = world.host.addresses().await?;
    for address in [IpAddr::from(v4), IpAddr::from(v6)] {
        let found = outside
            .probe(
                address,
                &[
                    "20-90",
                    "440-445",
                    "5000-5010",
                    "6379",
                    "8000-8100",
                    "9100",
                    "2375-2376",
                ],
                PATIENCE,
            )
            .await?;
        let wrong: BTreeMap<u16, PortState> = found
            .iter()
            .filter(|(port, state)| {
                let expect = if OPEN.contains(port) {
                    PortState::Open
                } else {
                    PortState::Silent
                };
                **state != expect
            })
            .map(|(port, state)| (*port, *state))
            .collect();
        ensure!(
            wrong.is_empty(),
            "{when}: {address} answers otherwise than planned: {wrong:?}"
        );
        ensure!(
            PUBLISHED.iter().all(|port| found.contains_key(port)),
            "a published port was not tried"
        );
    }
    Ok(())
}
