//! Roles of one app that differ in everything, and changes that concern one of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use appliance_tests::{Ran, World};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// The host has the image `demo:v1` at hand, and no app `parts`.
pub(crate) async fn of_one_app(world: &World) -> anyhow::Result<()> {
    configure(world).await?;
    let begun = Instant::now();
    ours(world, &["deploy", "--version", "v1"]).await?;
    ensure!(
        begun.elapsed() > Duration::from_secs(3),
        "nobody waited for Docker's health check"
    );
    as_configured(world).await?;
    two_apps_of_one_name(world).await?;
    closed_and_opened(world).await?;
    booted(world).await?;
    removed(world).await
}

async fn configure(world: &World) -> anyhow::Result<()> {
    let ip = world.ip().await?;
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    // The web role does not end when it is told to; the worker is ready when its health check says so, and not before.
    let yml = format!(
        r#"service: parts
image: demo
labels: {{tier: gold}}
env: {{clear: {{WHO: everybody}}}}
logging: {{driver: json-file, options: {{max-size: 3m}}}}
servers:
  web:
    hosts: [{ip}]
    cmd: sh -c "python3 /app/app.py & trap '' TERM; while true; do sleep 1; done"
    stop_timeout: 8
  back-office:
    hosts: [{ip}]
    proxy: {{host: desk.test, app_port: 80}}
    labels: {{team: ops}}
    env: {{clear: {{WHO: admins}}}}
    options: {{cap-drop: [NET_RAW, CHOWN], restart: always, add-host: "db:192.0.2.7"}}
    logging: {{options: {{max-file: "2"}}}}
  jobs:
    hosts: [{ip}]
    cmd: sh -c "sleep 3; touch /tmp/ready; sleep infinity"
    options: {{health-cmd: test -f /tmp/ready, health-interval: 1s, health-retries: 30}}
proxy: {{host: parts.test, app_port: 80}}
ssh: {{user: deploy}}
registry: {{server: "localhost:5555"}}
builder: {{arch: {arch}}}
deploy_timeout: 30
drain_timeout: 1
x-appliance: {{watch: false}}
"#
    );
    world.developer.write("config/deploy.yml", &yml)
}

async fn ours(world: &World, arguments: &[&str]) -> anyhow::Result<Ran> {
    world.developer.appliance(arguments).run().await?.expect_code(0)
}

async fn status(world: &World, name: &str) -> anyhow::Result<u16> {
    Ok(world.http(name, "/").await?.get().await?.status)
}

async fn inspect(world: &World, role: &str) -> anyhow::Result<Value> {
    let name = format!("parts-{role}-v1");
    let told = world.run(&["docker", "inspect", &name]).await?;
    let told: Value = serde_json::from_str(&told)?;
    Ok(told[0].clone())
}

/// Names, labels and network as stock tools look for them, and each role with what it alone has.
async fn as_configured(world: &World) -> anyhow::Result<()> {
    let ip = world.ip().await?.to_string();
    for (role, who, logs) in [
        ("web", "everybody", serde_json::json!({"max-size": "3m"})),
        (
            "back-office",
            "admins",
            serde_json::json!({"max-size": "3m", "max-file": "2"}),
        ),
        ("jobs", "everybody", serde_json::json!({"max-size": "3m"})),
    ] {
        let told = inspect(world, role).await?;
        let labels = &told["Config"]["Labels"];
        for (label, value) in [
            ("service", "parts"),
            ("role", role),
            ("destination", ""),
            ("tier", "gold"),
        ] {
            ensure!(labels[label] == value, "{role}: {label} of {labels}");
        }
        ensure!(
            (labels["team"] == "ops") == (role == "back-office"),
            "{role}: {labels}"
        );
        let hostname = told["Config"]["Hostname"].as_str().context("a hostname")?;
        let random = hostname.strip_prefix(&format!("{ip}-")).context("Kamal's form")?;
        ensure!(
            random.len() == 12 && random.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{hostname}"
        );
        let networks = told["NetworkSettings"]["Networks"]
            .as_object()
            .context("networks")?;
        ensure!(networks.keys().eq(["kamal"]), "{networks:?}");
        let log = &told["HostConfig"]["LogConfig"];
        ensure!(
            log["Type"] == "json-file" && log["Config"] == logs,
            "{role}: {log}"
        );
        let env = told["Config"]["Env"].as_array().context("an environment")?;
        ensure!(env.contains(&format!("WHO={who}").into()), "{role}: {env:?}");
    }
    let admin = inspect(world, "back-office").await?;
    let host = &admin["HostConfig"];
    ensure!(
        host["CapDrop"].as_array().map(Vec::len) == Some(2)
            && host["RestartPolicy"]["Name"] == "always"
            && host["ExtraHosts"][0] == "db:192.0.2.7",
        "{host}"
    );
    let jobs = inspect(world, "jobs").await?;
    // Whoever stops them, a reboot too, gives a worker the drain time, and a role of its own time that.
    let web = inspect(world, "web").await?;
    let times = [&web, &jobs].map(|told| &told["Config"]["StopTimeout"]);
    ensure!(*times[0] == 8 && *times[1] == 1, "{times:?}");
    ensure!(
        jobs["State"]["Health"]["Status"] == "healthy",
        "{}",
        jobs["State"]
    );
    let both = (
        status(world, "parts.test").await?,
        status(world, "desk.test").await?,
    );
    ensure!(both == (200, 200), "{both:?}");
    Ok(())
}

/// `parts` with a role `back-office` and `parts-back` with `office` come to the same name, and the first one keeps it.
async fn two_apps_of_one_name(world: &World) -> anyhow::Result<()> {
    let path = world.developer.app().join("config/deploy.yml");
    let yml = fs_err::read_to_string(path)?;
    let (head, tail) = yml.split_once("servers:").context("servers")?;
    let (_, tail) = tail.split_once("proxy: {host: parts.test").context("a proxy")?;
    let other = format!(
        "{}servers:\n  office:\n    hosts: [{}]\nprimary_role: office\nproxy: {{host: office.test{tail}",
        head.replace("service: parts", "service: parts-back"),
        world.ip().await?
    );
    world.developer.write("config/other.yml", &other)?;
    let push = ["push", "--version", "v1", "-c", "config/other.yml"];
    let refused = world.developer.appliance(push).run().await?;
    refused
        .expect_code(5)?
        .expect_error("would know it as parts-back-office, and parts on this host has that name")?;
    ensure!(
        status(world, "desk.test").await? == 200,
        "the route went to another app"
    );
    Ok(())
}

/// Maintenance of one role leaves the others alone.
async fn closed_and_opened(world: &World) -> anyhow::Result<()> {
    let look = async |web: u16, admin: u16, when: &str| {
        let found = (
            status(world, "parts.test").await?,
            status(world, "desk.test").await?,
        );
        ensure!(found == (web, admin), "{when}: {found:?}");
        anyhow::Ok(())
    };
    ours(
        world,
        &["app", "maintenance", "-r", "back-office", "--message", "later"],
    )
    .await?;
    look(200, 503, "one role is closed").await?;
    ours(world, &["app", "live", "-r", "b*"]).await?;
    look(200, 200, "it is open again").await?;
    ours(world, &["app", "maintenance"]).await?;
    look(503, 503, "all are closed").await?;
    ours(world, &["app", "live", "--roles", "web"]).await?;
    look(200, 503, "one is open").await?;
    ours(world, &["app", "live"]).await?;
    look(200, 200, "all are open").await
}

/// A role in a new container, and the others in the ones they had.
async fn booted(world: &World) -> anyhow::Result<()> {
    let ids = async || {
        let mut ids = Vec::new();
        for role in ["web", "back-office", "jobs"] {
            ids.push(inspect(world, role).await?["Id"].clone());
        }
        anyhow::Ok(ids)
    };
    let before = ids().await?;
    ours(world, &["app", "boot", "-r", "back-office"]).await?;
    let after = ids().await?;
    let same: Vec<bool> = before
        .iter()
        .zip(&after)
        .map(|(one, other)| one == other)
        .collect();
    ensure!(same == [true, false, true], "web, admin, jobs: {same:?}");
    Ok(())
}

/// While its containers stop, which takes them a while, nothing brings the app's routes back: nobody could remove them.
async fn removed(world: &World) -> anyhow::Result<()> {
    let remove = ours(world, &["remove", "-y"]);
    let meanwhile = async {
        let begun = Instant::now();
        while status(world, "parts.test").await? != 404 {
            ensure!(begun.elapsed() < SOON, "the route stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Whenever Docker starts something of the app, the agent looks whether its routes are true.
        let labels = ["--label=role=web", "--label=appliance.app=parts"];
        let run = ["docker", "run", "--rm", labels[0], labels[1], "demo:v1", "true"];
        world.run(&run).await?;
        let container = inspect(world, "web").await?;
        ensure!(
            container["State"]["Running"] == true,
            "it had stopped already; nothing is shown"
        );
        anyhow::Ok(())
    };
    tokio::try_join!(remove, meanwhile)?;
    let routes = ours(world, &["proxy", "details"]).await?.stdout;
    ensure!(!routes.contains("parts"), "{routes}");
    ensure!(status(world, "parts.test").await? == 404);
    Ok(())
}
