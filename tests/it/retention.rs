//! What is left after several deploys: counted per role and destination.

use std::time::Duration;

use anyhow::ensure;
use appliance_sandbox::Command;
use appliance_tests::World;

/// The host has no app `keeps` and needs none of the images `demo:v3` to `demo:v6`.
pub(crate) async fn after_several_deploys(world: &World) -> anyhow::Result<()> {
    for version in ["v4", "v5"] {
        push(world, version, &["-d", "staging"]).await?;
    }
    push(world, "v3", &[]).await?;
    push(world, "v4", &[]).await?;
    push(world, "v5", &[]).await?;
    ensure!(
        images(world).await?.contains(&"demo:v3".to_owned()),
        "two earlier releases are kept, not fewer"
    );
    push(world, "v6", &[]).await?;

    let containers = ["docker", "ps", "--all", "--filter", "label=service=keeps"];
    let format = ["--format", "{{.Names}} {{.State}}"];
    let names = world.run(&[&containers[..], &format].concat()).await?;
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    let mut expected = Vec::new();
    for role in ["jobs", "web"] {
        for (name, state) in [
            ("staging-v4", "exited"),
            ("staging-v5", "running"),
            ("v4", "exited"),
            ("v5", "exited"),
            ("v6", "running"),
        ] {
            expected.push(format!("keeps-{role}-{name} {state}"));
        }
    }
    ensure!(names == expected, "{names:?} are left, not {expected:?}");
    let images = images(world).await?;
    for (image, there) in [
        ("demo:v3", false),
        ("demo:v4", true),
        ("demo:v5", true),
        ("demo:v6", true),
        ("demo:latest", true),
        ("demo:latest-staging", true),
    ] {
        ensure!(images.contains(&image.to_owned()) == there, "{image}: {images:?}");
    }
    on_a_disk_that_is_short(world, &images).await
}

/// What a rollback needs stays, and so does what somebody else built here, its build cache included.
async fn on_a_disk_that_is_short(world: &World, before: &[String]) -> anyhow::Result<()> {
    const BUILD: &str = "printf 'FROM demo:v6\\nLABEL of=others\\nRUN true\\n' | DOCKER_BUILDKIT=0 docker build --quiet --tag others:1 - 2>/dev/null";
    world.run(&["bash", "-euc", BUILD]).await?;
    let everything = ["docker", "images", "--all", "--quiet", "--no-trunc"];
    let held = world.run(&everything).await?;
    let limits = "limits: {disk_free: 99.9%}\n";
    let host_yml = "/etc/appliance/host.yml";
    let was = world.host.read(host_yml).await.unwrap_or_default();
    world.host.copy_in(host_yml, limits, 0o644).await?;
    // It looks when it starts, and every five minutes.
    let since = world.run(&["date", "+%s.%N"]).await?;
    world.run(&["systemctl", "restart", "appliance-agent"]).await?;
    world.ready().await?;
    let script = "until journalctl --unit appliance-agent --output cat --since @$1 | grep --quiet 'the image store is tidy'; do read -rt 0.3 <> <(:); done; true";
    let tidied = Command::new(["bash", "-c", script, "bash", &since]).timeout(Duration::from_secs(60));
    let tidied = world.host.exec(&tidied).await;
    ensure!(
        tidied.is_ok_and(|output| output.success()),
        "nobody made room: {}",
        world
            .run(&["journalctl", "--no-pager", "--lines=20", "--unit=appliance-agent"])
            .await?
    );
    let left = world.run(&everything).await?;
    ensure!(
        held.lines().all(|id| left.contains(id)),
        "of {held} only {left} is left"
    );
    let names = images(world).await?;
    ensure!(
        before.iter().all(|name| names.contains(name)) && names.contains(&"others:1".to_owned()),
        "{names:?}"
    );
    let back = world.developer.appliance(["rollback", "v5"]).run().await?;
    back.expect_code(0)?;
    world.host.copy_in(host_yml, was, 0o644).await?;
    Ok(())
}

async fn push(world: &World, version: &str, more: &[&str]) -> anyhow::Result<()> {
    world.developer.demo_app(version, world, "").await?;
    let ip = world.ip().await?;
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let yml = format!(
        "service: keeps\nimage: demo\n\
         servers:\n  web: [{ip}]\n  jobs:\n    cmd: sleep infinity\n    hosts: [{ip}]\n\
         proxy:\n  host: keeps.test\n  app_port: 80\n\
         retain_containers: 2\nreadiness_delay: 1\ndrain_timeout: 1\ndeploy_timeout: 20\n\
         ssh:\n  user: deploy\nregistry:\n  server: localhost:5555\nbuilder:\n  arch: {arch}\n\
         x-appliance:\n  watch: false\n"
    );
    world.developer.write("config/deploy.yml", &yml)?;
    world.developer.write(
        "config/deploy.staging.yml",
        "proxy:\n  host: staging.keeps.test\n",
    )?;
    let arguments = [&["deploy", "--version", version][..], more].concat();
    world.developer.appliance(arguments).run().await?.expect_code(0)?;
    Ok(())
}

async fn images(world: &World) -> anyhow::Result<Vec<String>> {
    let list = ["docker", "images", "--format", "{{.Repository}}:{{.Tag}}"];
    Ok(world.run(&list).await?.lines().map(str::to_owned).collect())
}
