//! What an app's visitors notice when the things around it die: nothing, or the outage of a reboot.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use appliance_sandbox::Distro;
use appliance_tests::World;
use appliance_tests::http::{Answer, Target};
use appliance_tests::load::{Load, Shape};
use serde_json::Value;

/// For things that take a second where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);

#[tokio::test]
async fn with_docker_stopped_apps_are_served_on_and_the_agent_recovers_by_itself() -> anyhow::Result<()> {
    let world = World::bootstrapped("docker-stopped", Distro::Debian13).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let push = |version: &'static str| world.developer.appliance(["push", "--version", version]);
    push("v1").run().await?.expect_code(0)?;
    let site = world.https("demo.test", "/").await?;
    let mut load = Load::start(&site, Shape::default());
    load.more(100).await;

    world
        .run(&["systemctl", "stop", "docker.socket", "docker.service"])
        .await?;
    let status = status_when(&world, |status| status["host"]["docker"].is_null()).await?;
    let problems = status["problems"].to_string();
    ensure!(problems.contains("systemctl start docker"), "{problems}");
    ensure!(status["apps"][0]["current"]["version"] == "v1", "{status}");
    let shown = world
        .developer
        .appliance(["status"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(
        shown.stdout.contains("Docker does not answer"),
        "{}",
        shown.stdout
    );
    load.more(300).await;

    // A push now is refused or reverted with a reason, and the app does not notice.
    world.developer.demo_app("v2", &world, "").await?;
    let failed = push("v2").run().await?;
    ensure!(failed.code != 0 && failed.stderr.contains("Docker"), "{failed:?}");
    load.more(100).await;

    world
        .run(&["systemctl", "start", "docker.socket", "docker.service"])
        .await?;
    status_when(&world, |status| {
        status["host"]["docker"].is_string()
            && healthy(status)
            && status["apps"][0]["containers"][0]["state"] == "running"
    })
    .await?;
    load.more(100).await;
    push("v2").run().await?.expect_code(0)?;
    load.more(100).await;
    let report = load.stop().await;
    ensure!(
        report.failures == 0,
        "{} of {} requests failed: {:?}",
        report.failures,
        report.requests,
        report.examples
    );
    ensure!(report.versions.contains_key("v2"), "{:?}", report.versions);
    Ok(())
}

#[tokio::test]
async fn without_agent_apps_are_served_on_and_the_command_line_says_so() -> anyhow::Result<()> {
    let world = World::bootstrapped("no-agent", Distro::Debian12).await?;
    world.developer.demo_app("v1", &world, "").await?;
    world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;
    let site = world.https("demo.test", "/").await?;
    world
        .run(&["systemctl", "stop", "appliance-agent.service"])
        .await?;
    world
        .developer
        .appliance(["status"])
        .run()
        .await?
        .expect_code(4)?
        .expect_error("agent")?;
    // Also by a proxy that starts while nobody can tell it anything: it has its own last good state.
    world
        .run(&["systemctl", "restart", "appliance-proxy.service"])
        .await?;
    let answer = site.get().await?;
    ensure!(
        (answer.status, answer.version()) == (200, Some("v1")),
        "{answer:?}"
    );
    world.ready().await?;
    status_when(&world, healthy).await?;
    Ok(())
}

#[tokio::test]
async fn a_rebooted_host_serves_again_by_itself() -> anyhow::Result<()> {
    let world = World::bootstrapped("reboot", Distro::Debian12).await?;
    world.developer.demo_app("v1", &world, "").await?;
    world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;

    world.host.reboot().await?;
    let site = world.https("demo.test", "/").await?;
    serves(&site, "v1").await?;
    world.host.kill().await.context("the power cut")?;
    world.host.power_on().await?;
    // Another container may have taken its address meanwhile.
    world.developer.know(&world).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let site = world.https("demo.test", "/").await?;
    serves(&site, "v1").await?;
    let status = status_when(&world, |status| {
        status["apps"][0]["containers"][0]["state"] == "running"
    })
    .await?;
    ensure!(status["apps"][0]["current"]["version"] == "v1", "{status}");
    Ok(())
}

/// Waits until the site answers with that version.
async fn serves(site: &Target, version: &str) -> anyhow::Result<Answer> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = site.get().await;
        match answer {
            Ok(answer) if answer.status == 200 && answer.version() == Some(version) => return Ok(answer),
            other if tokio::time::Instant::now() > deadline => {
                bail!("{version} does not serve: {other:?}")
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Waits until `appliance status --json` says what it is waited for.
async fn status_when(world: &World, fits: impl Fn(&Value) -> bool) -> anyhow::Result<Value> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let ran = world.developer.appliance(["status", "--json"]).run().await?;
        if ran.code == 0 {
            let all = ran.json()?;
            let status = all.as_object().and_then(|hosts| hosts.values().next());
            if let Some(status) = status.filter(|status| fits(status)) {
                return Ok(status.clone());
            }
        }
        if tokio::time::Instant::now() > deadline {
            bail!("the status stays {} ({})", ran.stdout, ran.stderr);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether the host has nothing to complain of; the disk is the test machine's, and may well be full.
fn healthy(status: &Value) -> bool {
    status["problems"].as_array().is_some_and(|problems| {
        problems
            .iter()
            .all(|problem| problem.as_str().is_some_and(|text| text.contains("of the disk")))
    })
}
