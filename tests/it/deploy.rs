//! The main job on a real host: push, switch, refuse, roll back, come back after a power cut.

use std::time::Duration;

use anyhow::ensure;
use appliance_sandbox::Distro;
use appliance_tests::World;
use appliance_tests::load::{Load, Report, Shape};

async fn pushed(hint: &str, distro: Distro) -> anyhow::Result<World> {
    let world = World::bootstrapped(hint, distro).await?;
    push(&world, "v1", "").await?;
    Ok(world)
}

async fn push(world: &World, version: &str, more: &str) -> anyhow::Result<String> {
    world.developer.demo_app(version, world, more).await?;
    let ran = world
        .developer
        .appliance(["push", "--version", version])
        .run()
        .await?
        .expect_code(0)?;
    Ok(ran.stderr + &ran.stdout)
}

async fn serving(world: &World) -> anyhow::Result<String> {
    let answer = world.https("demo.test", "/").await?.get().await?;
    ensure!(
        answer.status == 200,
        "status {}: {}",
        answer.status,
        answer.text()
    );
    Ok(answer.version().unwrap_or_default().to_owned())
}

fn flawless(report: &Report) -> anyhow::Result<()> {
    ensure!(
        report.failures == 0,
        "{} of {} requests failed: {:?}",
        report.failures,
        report.requests,
        report.examples
    );
    Ok(())
}

#[tokio::test]
async fn a_second_release_sends_one_small_layer_and_drops_no_request() -> anyhow::Result<()> {
    let world = pushed("second", Distro::Debian12).await?;
    ensure!(serving(&world).await? == "v1");

    let mut load = Load::start(&world.https("demo.test", "/").await?, Shape::default());
    load.more(200).await;
    let said = push(&world, "v2", "").await?;
    load.more(200).await;
    let report = load.stop().await;
    flawless(&report)?;
    ensure!(
        report.versions.contains_key("v1") && report.versions.contains_key("v2"),
        "{:?}",
        report.versions
    );
    ensure!(serving(&world).await? == "v2");
    ensure!(said.contains("1 of 2 layers were there"), "{said}");

    let plain = world.http("demo.test", "/").await?.get().await?;
    ensure!(
        plain.status == 301,
        "plain HTTP is redirected, not {}",
        plain.status
    );
    Ok(())
}

#[tokio::test]
async fn a_release_that_is_not_healthy_never_serves() -> anyhow::Result<()> {
    let world = pushed("unhealthy", Distro::Debian13).await?;
    let mut load = Load::start(&world.https("demo.test", "/").await?, Shape::default());
    load.more(50).await;
    world
        .developer
        .demo_app(
            "v2",
            &world,
            "env:\n  clear:\n    HEALTH: fail\ndeploy_timeout: 5\n",
        )
        .await?;
    let ran = world
        .developer
        .appliance(["push", "--version", "v2"])
        .run()
        .await?
        .expect_code(5)?;
    ensure!(
        ran.stderr.contains("GET /up"),
        "the container's last lines are shown: {}",
        ran.stderr
    );
    load.more(50).await;
    let report = load.stop().await;
    flawless(&report)?;
    ensure!(!report.versions.contains_key("v2"), "{:?}", report.versions);

    let containers = world.run(&["docker", "ps", "--format", "{{.Names}}"]).await?;
    ensure!(
        containers.contains("demo-web-v1") && !containers.contains("demo-web-v2"),
        "{containers}"
    );
    Ok(())
}

#[tokio::test]
async fn rolling_back_runs_the_earlier_release_again() -> anyhow::Result<()> {
    let world = pushed("rollback", Distro::Debian13).await?;
    push(&world, "v2", "").await?;
    // Two to go back to, and a push that fails is none of them.
    let two = "retain_containers: 2\n";
    push(&world, "v3", two).await?;
    let failing = format!("{two}env:\n  clear:\n    HEALTH: fail\ndeploy_timeout: 3\n");
    world.developer.demo_app("v4", &world, &failing).await?;
    let failed = world.developer.appliance(["push", "--version", "v4"]);
    failed.run().await?.expect_code(5)?;
    let mut load = Load::start(&world.https("demo.test", "/").await?, Shape::default());
    load.more(50).await;
    world
        .developer
        .appliance(["rollback", "v1"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(serving(&world).await? == "v1");
    load.more(50).await;
    flawless(&load.stop().await)
}

#[tokio::test]
async fn a_power_cut_leaves_the_current_release_serving() -> anyhow::Result<()> {
    let world = pushed("cut", Distro::Debian12).await?;
    push(&world, "v2", "").await?;
    world.host.kill().await?;
    world.host.power_on().await?;
    world.ready().await?;
    // Containers come back with the engine, after the boot; the proxy answers 502 or 503 until then.
    let target = world.https("demo.test", "/").await?;
    let back = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            match target.get().await {
                Ok(answer) if answer.status == 200 => return answer,
                _ => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    })
    .await?;
    ensure!(back.version() == Some("v2"), "{:?} serves", back.version());
    Ok(())
}
