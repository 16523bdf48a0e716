//! Rollouts that have to go back, or are overtaken by events, where the obvious way is closed.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use appliance_sandbox::Distro;
use appliance_tests::load::{Load, Shape};
use appliance_tests::{Ran, World};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// A release command, and what else `x-appliance:` says.
fn extension(text: &str) -> String {
    format!("deploy_timeout: 20\ndrain_timeout: 3\nx-appliance:\n{text}")
}

#[tokio::test]
async fn where_the_way_back_is_closed_another_is_found() -> anyhow::Result<()> {
    let world = World::bootstrapped("ways-back", Distro::Debian13).await?;
    world.developer.demo_app("v1", &world, "").await?;
    push(&world, "v1").await?.expect_code(0)?;

    a_service_of_nobody(&world).await?;
    a_hanging_release_command_is_stopped(&world).await?;
    a_name_that_another_app_has_is_refused_before_anything_starts(&world).await?;
    let images = world
        .run(&["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"])
        .await?;
    ensure!(
        images.contains("demo:v1") && !images.contains("demo:v2"),
        "images of failed pushes stay:\n{images}"
    );
    let id = async |name: &str| {
        let inspect = ["docker", "image", "inspect", "--format", "{{.Id}}", name];
        world.run(&inspect).await
    };
    ensure!(
        id("demo:latest").await? == id("demo:v1").await?,
        "latest is not what serves"
    );
    a_serving_container_is_followed_during_a_migration(&world).await?;
    it_is_gone(&world).await?;
    a_removed_container_comes_back(&world).await?;
    what_visitors_get_decides(&world).await?;
    a_host_that_reboots_while_it_watches_serves(&world).await
}

async fn push(world: &World, version: &str) -> anyhow::Result<Ran> {
    let push = world.developer.appliance(["push", "--version", version]);
    push.run().await
}

async fn version(world: &World) -> anyhow::Result<Option<String>> {
    let answer = world.https("demo.test", "/").await?.get().await?;
    Ok(answer
        .version()
        .map(str::to_owned)
        .filter(|_| answer.status == 200))
}

async fn serves(world: &World, wanted: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match version(world).await {
            Ok(Some(found)) if found == wanted => return Ok(()),
            other => ensure!(begun.elapsed() < SOON, "not {wanted} but {other:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until the rollout of `demo` stands at `phase`.
async fn reaches(world: &World, phase: &str) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let ledger = world.host.read("/var/lib/appliance/apps/demo.json").await?;
        let ledger: Value = serde_json::from_slice(&ledger)?;
        let found = ledger["data"]["rollout"]["phase"].clone();
        if found == phase {
            return Ok(());
        }
        ensure!(begun.elapsed() < SOON, "the rollout is {found}, not {phase}");
        tokio::time::sleep(PAUSE).await;
    }
}

const NOBODYS: &str = "http://proxy/v1/services/nobody-web";
const CONTROL: &str = "/run/appliance-proxy/control.sock";

/// As a removal that was cut short would leave it: no app knows it, and no container is there.
async fn a_service_of_nobody(world: &World) -> anyhow::Result<()> {
    let service = serde_json::json!({
        "name": "nobody-web", "hosts": ["nobody.test"], "upstreams": ["172.31.255.254:80"]
    });
    let put = ["--request", "PUT", "--json", &service.to_string(), NOBODYS];
    let curl = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--unix-socket",
        CONTROL,
    ];
    world.run(&[&curl[..], &put].concat()).await?;
    ensure!(is_served(world).await?, "it was not taken");
    Ok(())
}

async fn is_served(world: &World) -> anyhow::Result<bool> {
    let details = world.developer.appliance(["proxy", "details"]).run().await?;
    Ok(details.expect_code(0)?.stdout.contains("nobody.test"))
}

/// Somewhat later its names are free.
async fn it_is_gone(world: &World) -> anyhow::Result<()> {
    let begun = Instant::now();
    while is_served(world).await? {
        ensure!(begun.elapsed() < 2 * SOON, "a service of nobody stays");
        tokio::time::sleep(PAUSE).await;
    }
    serves(world, "v2").await
}

async fn a_hanging_release_command_is_stopped(world: &World) -> anyhow::Result<()> {
    let more = extension("  watch: false\n  release: {command: sleep 300, timeout: 3s}\n");
    world.developer.demo_app("v2", world, &more).await?;
    push(world, "v2")
        .await?
        .expect_code(5)?
        .expect_error("was stopped after 3 s")?;
    let running = world.run(&["docker", "ps", "--format", "{{.Names}}"]).await?;
    ensure!(!running.contains("release"), "it runs on:\n{running}");
    serves(world, "v1").await
}

async fn a_name_that_another_app_has_is_refused_before_anything_starts(world: &World) -> anyhow::Result<()> {
    let more = extension("  watch: false\n  release: {command: python3 -c \"print('tables migrated')\"}\n");
    world.developer.demo_app("v2", world, &more).await?;
    let yaml = fs_err::read_to_string(world.developer.app().join("config/deploy.yml"))?;
    let other = yaml.replace("service: demo", "service: shadow");
    world.developer.write("config/deploy.yml", &other)?;
    let refused = push(world, "v2").await?.expect_code(5)?;
    ensure!(
        refused.stderr.contains("already belongs to service demo-web"),
        "{}",
        refused.stderr
    );
    ensure!(!refused.stderr.contains("tables migrated"), "{}", refused.stderr);
    serves(world, "v1").await
}

/// Docker starts the old container again, with another address, while the new release is far from ready.
async fn a_serving_container_is_followed_during_a_migration(world: &World) -> anyhow::Result<()> {
    let more = extension("  watch: false\n  release: {command: sleep 25, timeout: 120s}\n");
    world.developer.demo_app("v2", world, &more).await?;
    let pushed = push(world, "v2");
    let moved = async {
        reaches(world, "release_command").await?;
        let address = async || {
            let format = "{{.NetworkSettings.Networks.kamal.IPAddress}}";
            world
                .run(&["docker", "inspect", "--format", format, "demo-web-v1"])
                .await
        };
        let before = address().await?;
        world
            .run(&["docker", "stop", "--time", "1", "demo-web-v1"])
            .await?;
        let image = world
            .run(&[
                "docker",
                "inspect",
                "--format",
                "{{.Config.Image}}",
                "demo-web-v1",
            ])
            .await?;
        world
            .run(&[
                "docker",
                "run",
                "--detach",
                "--name",
                "squatter",
                "--network",
                "kamal",
                "--ip",
                &before,
                &image,
                "sleep",
                "600",
            ])
            .await
            .or(world
                .run(&[
                    "docker",
                    "run",
                    "--detach",
                    "--name",
                    "squatter",
                    "--network",
                    "kamal",
                    &image,
                    "sleep",
                    "600",
                ])
                .await)?;
        world.run(&["docker", "start", "demo-web-v1"]).await?;
        ensure!(
            address().await? != before,
            "the address is the same; nothing is shown"
        );
        serves(world, "v1").await?;
        let ledger = world.host.read("/var/lib/appliance/apps/demo.json").await?;
        let ledger: Value = serde_json::from_slice(&ledger)?;
        let phase = &ledger["data"]["rollout"]["phase"];
        ensure!(phase == "release_command", "it was followed only at {phase}");
        Ok(())
    };
    let (pushed, moved) = tokio::join!(pushed, moved);
    moved?;
    pushed?.expect_code(0)?;
    serves(world, "v2").await?;
    world
        .run(&["docker", "rm", "--force", "squatter"])
        .await
        .map(drop)
}

/// Somebody tidied up by hand, and then the new release dies.
async fn a_removed_container_comes_back(world: &World) -> anyhow::Result<()> {
    world
        .developer
        .demo_app("v3", world, &extension("  watch: {window: 120s}\n"))
        .await?;
    let pushed = push(world, "v3");
    let harm = async {
        reaches(world, "watching").await?;
        world.run(&["docker", "rm", "--force", "demo-web-v2"]).await?;
        world.run(&["docker", "kill", "demo-web-v3"]).await?;
        Ok::<_, anyhow::Error>(())
    };
    let (pushed, harm) = tokio::join!(pushed, harm);
    harm?;
    pushed?.expect_code(5)?;
    serves(world, "v2").await?;
    // And nothing stands in the way of the next push.
    world
        .developer
        .demo_app("v3", world, &extension("  watch: false\n"))
        .await?;
    push(world, "v3").await?.expect_code(0)?;
    serves(world, "v3").await
}

/// A release that is healthy, and answers its visitors with errors, or late, goes back by itself.
async fn what_visitors_get_decides(world: &World) -> anyhow::Result<()> {
    let site = world.https("demo.test", "/").await?;
    let visitors = Shape {
        connections: 8,
        per_connection: 0,
        pause: Duration::from_millis(10),
    };
    for (env, said) in [
        ("STATUS: \"500\"", "requests with 5xx"),
        ("DELAY: \"300\"", "95 % of its requests"),
    ] {
        let more = format!(
            "env:\n  clear:\n    {env}\n{}",
            extension("  watch: {window: 120s}\n")
        );
        world.developer.demo_app("v4", world, &more).await?;
        let mut load = Load::start(&site, visitors);
        load.more(200).await;
        let pushed = push(world, "v4").await;
        load.stop().await;
        pushed?.expect_code(5)?.expect_error(said)?;
        serves(world, "v3").await.with_context(|| env.to_owned())?;
    }
    Ok(())
}

async fn a_host_that_reboots_while_it_watches_serves(world: &World) -> anyhow::Result<()> {
    let window = Duration::from_secs(150);
    let more = extension(&format!("  watch: {{window: {}s}}\n", window.as_secs()));
    world.developer.demo_app("v4", world, &more).await?;
    let mut pushing = Box::pin(push(world, "v4"));
    tokio::select! {
        ended = &mut pushing => bail!("the push ended before: {ended:?}"),
        watching = reaches(world, "watching") => watching?,
    }
    let begun = Instant::now();
    drop(pushing);
    world.host.reboot().await?;
    serves(world, "v4")
        .await
        .context("after a reboot while watching")?;
    let took = begun.elapsed();
    ensure!(took < window, "it served only after {} s", took.as_secs());
    reaches(world, "watching").await.context("the watch goes on")
}
