//! Rollouts on a real host while visitors keep asking: good ones, bad ones, and ones whose agent is killed.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use appliance_push::change::{EnvName, Expectation, Release, ReleaseCommand, ReleaseNumber, Verb, Watch};
use appliance_sandbox::Distro;
use appliance_tests::World;
use appliance_tests::http::Target;
use appliance_tests::load::{Load, Report, Shape};
use serde_json::Value;

use crate::door::Door;

const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(200);
/// Makes the agent hold a rollout at one moment; the drop-in is gone before the agent starts again.
const PAUSE_AT: &str = "/run/systemd/system/appliance-agent.service.d/pause.conf";

/// Gentle, so that the machine has time for what is tested; connections stay open over a switch.
const VISITORS: Shape = Shape {
    connections: 3,
    per_connection: 20,
    pause: Duration::from_millis(20),
};

fn unharmed(when: &str, report: &Report) -> anyhow::Result<()> {
    ensure!(
        report.failures == 0 && report.requests > 0,
        "{when}: {} of {} requests failed: {:?}",
        report.failures,
        report.requests,
        report.examples
    );
    Ok(())
}

#[tokio::test]
async fn good_releases_replace_each_other_and_bad_ones_never_serve() -> anyhow::Result<()> {
    let world = World::bootstrapped("rollouts", Distro::Debian12).await?;
    let push = |version: &'static str| world.developer.appliance(["push", "--version", version]);
    world.developer.demo_app("v1", &world, "").await?;
    push("v1").run().await?.expect_code(0)?;
    let site = world.https("demo.test", "/").await?;
    let answer = site.get().await?;
    ensure!(
        (answer.status, answer.version()) == (200, Some("v1")),
        "{answer:?}"
    );

    let mut load = Load::start(&site, Shape::default());
    load.more(100).await;
    world.developer.demo_app("v2", &world, "").await?;
    push("v2").run().await?.expect_code(0)?;
    load.more(100).await;
    let report = load.stop().await;
    unharmed("v1 to v2", &report)?;
    ensure!(
        report.versions.contains_key("v1") && report.versions.contains_key("v2"),
        "{:?}",
        report.versions
    );

    for (what, env, said) in [
        ("a health check that fails", "HEALTH: fail", "GET /up"),
        ("a crash at start", "CRASH_AFTER: \"0\"", "crashes, as asked"),
    ] {
        let mut load = Load::start(&site, Shape::default());
        let more = format!("env:\n  clear:\n    {env}\ndeploy_timeout: 5\n");
        world.developer.demo_app("v3", &world, &more).await?;
        let refused = push("v3").run().await?.expect_code(5).context(what)?;
        // What the app said last is what helps.
        ensure!(
            refused.stderr.contains("demo v3 starts") && refused.stderr.contains(said),
            "{what}: the container's last lines are missing:\n{}",
            refused.stderr
        );
        ensure!(
            refused.stderr.contains("v2 serves as before"),
            "{what}: nothing says what serves:\n{}",
            refused.stderr
        );
        load.more(100).await;
        let report = load.stop().await;
        unharmed(what, &report)?;
        ensure!(
            report.versions.keys().all(|version| version == "v2"),
            "{what}: {:?}",
            report.versions
        );
        let left = world
            .run(&["docker", "ps", "--all", "--format", "{{.Names}} {{.State}}"])
            .await?;
        ensure!(!left.contains("v3"), "{what}: a container is left: {left}");
    }

    let back = world.developer.appliance(["rollback"]).run().await?;
    back.expect_code(0)?;
    let answer = site.get().await?;
    ensure!(answer.version() == Some("v1"), "{answer:?}");
    crate::retention::after_several_deploys(&world).await
}

/// States that a rollout is written down in. *Prepared* and *switched* are passed within one step:
/// no ledger ever holds them, so they cannot be found by an agent that starts again.
const STATES: [&str; 8] = [
    "received",
    "verified",
    "release-command",
    "starting",
    "healthy",
    "draining",
    "watching",
    "settled",
];
const STATES_BACK: [&str; 2] = ["reverting", "reverted"];

#[tokio::test]
async fn an_agent_killed_with_a_state_just_written_down_goes_on_from_there() -> anyhow::Result<()> {
    killed("at", Distro::Debian13).await
}

#[tokio::test]
async fn an_agent_killed_before_it_wrote_down_what_it_did_goes_on_from_there() -> anyhow::Result<()> {
    killed("before", Distro::Debian12).await
}

async fn killed(when: &str, distro: Distro) -> anyhow::Result<()> {
    let world = World::bootstrapped(&format!("killed-{when}"), distro).await?;
    let mut images = Vec::new();
    for version in ["v1", "v2"] {
        world.developer.demo_app(version, &world, "").await?;
        let push = world.developer.appliance(["push", "--version", version]);
        push.run().await?.expect_code(0)?;
        let path = format!("/var/lib/appliance/releases/demo.{version}.json");
        let ledger: Value = serde_json::from_slice(&world.host.read(&path).await?)?;
        images.push(serde_json::from_value::<Release>(
            ledger["data"]["release"].clone(),
        )?);
    }
    let site = world.https("demo.test", "/").await?;

    for (turn, state) in STATES.into_iter().chain(STATES_BACK).enumerate() {
        let moment = format!("{when}-{state}");
        let mut release = images[turn % 2].clone();
        release.version = format!("k{turn}-{state}").parse()?;
        release.deploy_timeout = 20;
        release.release_command = Some(ReleaseCommand {
            command: vec!["true".to_owned()],
            role: release.roles[0].name.clone(),
            timeout: 60,
        });
        release.watch = Some(Watch {
            window: 1,
            error_rate: None,
            latency_factor: None,
        });
        if STATES_BACK.contains(&state) {
            release.deploy_timeout = 3;
            release.roles[0]
                .env_clear
                .insert(EnvName::parse("HEALTH")?, Some("fail".to_owned()));
        }
        let load = Load::start(&site, VISITORS);
        let outcome = killed_once(&world, &site, &moment, release).await;
        let report = load.stop().await;
        outcome.with_context(|| format!("killed {moment}"))?;
        unharmed(&format!("killed {moment}"), &report)?;
    }
    let verified = world.developer.appliance(["audit", "--verify"]).run().await?;
    verified.expect_code(0)?;
    Ok(())
}

/// One rollout whose agent is killed at `moment`; afterwards it is over, and what serves is what the status says.
async fn killed_once(world: &World, site: &Target, moment: &str, release: Release) -> anyhow::Result<()> {
    let unit = "appliance-agent.service";
    let text = format!("[Service]\nEnvironment=APPLIANCE_PAUSE_AT={moment}\n");
    world.host.copy_in(PAUSE_AT, text, 0o644).await?;
    world.run(&["systemctl", "daemon-reload"]).await?;
    world.run(&["systemctl", "restart", unit]).await?;

    let door = Door::open(world).await?;
    let before = serving(world, &door, site).await?;
    let version = release.version.to_string();
    let mut change = door.change(Some("demo"), Verb::Deploy(Box::new(release)))?;
    change.expects = Expectation::Release(Some(ReleaseNumber(before.number)));
    let envelope = door.signer.seal(&change).await?;
    let asked = tokio::spawn(async move { door.submit(&envelope).await });

    world
        .journal_says(unit, &format!("paused {moment}"), PATIENCE)
        .await?;
    if asked.is_finished() {
        bail!("the change ended before: {:?}", asked.await?);
    }
    world.run(&["rm", PAUSE_AT]).await?;
    world.run(&["systemctl", "daemon-reload"]).await?;
    world.crash(unit).await?;
    // The developer learns that the connection broke, not that all is well.
    let asked = tokio::time::timeout(Duration::from_secs(10), asked)
        .await
        .context("the developer was kept waiting by a dead agent")??;
    ensure!(asked.is_err(), "the killed agent answered: {asked:?}");

    // systemd starts it again by itself; nothing here does.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let after = loop {
        let over = ledger(world).await?["data"]["rollout"]["stage"] == "over";
        if over && let Ok(door) = Door::open(world).await {
            break serving(world, &door, site).await?;
        }
        if tokio::time::Instant::now() > deadline {
            bail!(
                "the rollout is not over: {}",
                ledger(world).await?["data"]["rollout"]
            );
        }
        tokio::time::sleep(PAUSE).await;
    };
    // Before the first state is written there is no rollout to go on with, and a revert leaves the old release.
    let goes_back = moment == "before-received" || moment.contains("revert");
    if goes_back {
        ensure!(after.number == before.number, "{before:?} became {after:?}");
    } else {
        ensure!(
            after.version == version,
            "{before:?} became {after:?}; {version} was healthy and should have gone on"
        );
    }
    let containers = world
        .run(&[
            "docker",
            "ps",
            "--filter",
            "label=service=demo",
            "--format",
            "{{.Names}}",
        ])
        .await?;
    ensure!(
        containers.lines().count() == 1,
        "one container should run, not: {containers}"
    );
    Ok(())
}

async fn ledger(world: &World) -> anyhow::Result<Value> {
    Ok(serde_json::from_slice(
        &world.host.read("/var/lib/appliance/apps/demo.json").await?,
    )?)
}

#[derive(Debug)]
struct Serving {
    number: u64,
    version: String,
}

/// What the status says that serves, after a look that it does.
async fn serving(world: &World, door: &Door, site: &Target) -> anyhow::Result<Serving> {
    let app = door.get("/v1/apps/demo").await?;
    let current = &app["current"];
    let number = current["number"]
        .as_u64()
        .with_context(|| format!("nothing serves: {app}"))?;
    let version = current["version"].as_str().context("has a version")?.to_owned();
    let rollout = app["rollout"]["phase"].as_str();
    ensure!(
        matches!(rollout, None | Some("reverted")),
        "it is still {rollout:?}"
    );
    ensure!(
        app["containers"][0]["state"] == "running",
        "the status says that it does not run: {app}"
    );
    // The number is in no answer of the app, but its image is in both.
    let path = format!("/var/lib/appliance/releases/demo.v{number}.json");
    let ledger: Value = serde_json::from_slice(&world.host.read(&path).await?)?;
    let env = site.at("/env").get().await?;
    let env: Value = serde_json::from_slice(&env.body)?;
    ensure!(
        env["KAMAL_VERSION"] == ledger["data"]["release"]["version"],
        "the status says {version}, but {} answers",
        env["KAMAL_VERSION"]
    );
    Ok(Serving { number, version })
}

#[tokio::test]
async fn a_killed_proxy_is_back_before_visitors_give_up() -> anyhow::Result<()> {
    let world = World::bootstrapped("proxy-killed", Distro::Debian13).await?;
    world.developer.demo_app("v1", &world, "").await?;
    let push = world.developer.appliance(["push", "--version", "v1"]);
    push.run().await?.expect_code(0)?;
    let site = world.https("demo.test", "/").await?;
    let unit = "appliance-proxy.service";
    let process = async || {
        world
            .run(&["systemctl", "show", "--property=MainPID", unit])
            .await
    };
    let before = process().await?;

    world.crash(unit).await?;
    // These come while nobody listens: the kernel keeps them on the socket that systemd holds.
    let mut visitors = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let site = site.clone();
        visitors.spawn(async move { site.get().await });
    }
    while let Some(answer) = visitors.join_next().await {
        let answer = answer?.context("a visitor was turned away")?;
        ensure!(
            (answer.status, answer.version()) == (200, Some("v1")),
            "{answer:?}"
        );
    }
    ensure!(process().await? != before, "the proxy was not killed");
    let door = Door::open(&world).await?;
    let version = serving(&world, &door, &site).await?.version;
    ensure!(version == "v1", "{version}");
    Ok(())
}
