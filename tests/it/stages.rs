//! A failure forced at each state of a rollout that goes over two hosts: what is said, where it stood, and that both
//! hosts go back together.
//!
//! | state | what is forced | where |
//! |---|---|---|
//! | received | the image is cut short on the disk | here |
//! | verified | a byte of the image is another one on the disk | here |
//! | prepared | the assets are not in the image | `fleet` |
//! | release command | it fails | `fleet` |
//! | starting | a health check, a worker that cannot start, one that ends | `fleet` |
//! | healthy (the switch) | the proxy refuses: another app took the host name meanwhile | here |
//! | draining | whoever leads takes all back, while an old worker does not end | here |
//! | watching | the new container dies; the leader's own hook fails | `fleet` |
//! | canary | somebody aborts | `fleet` |
//!
//! *Switched* is passed within one step, and what fails while draining or after `settled` is told as a warning:
//! an old container that does not end is killed, and no way back depends on it.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_tests::{Ran, World};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::fleet::{Fleet, Push};

const BLOBS: &str = "/var/lib/appliance/images/blobs/sha256";

/// v3 serves, and no host has seen v4.
pub(crate) async fn forced(fleet: &Fleet) -> anyhow::Result<()> {
    damaged_images(fleet).await?;
    taken_name(fleet).await?;
    interrupted_drain(fleet).await
}

/// The state in which the last rollout of a host failed, and why.
async fn failed_at(world: &World) -> anyhow::Result<(String, String)> {
    let ledger = world.host.read("/var/lib/appliance/apps/demo.json").await?;
    let ledger: Value = serde_json::from_slice(&ledger)?;
    let failure = &ledger["data"]["rollout"]["failure"];
    let text = |key: &str| Some(failure[key].as_str()?.to_owned());
    text("phase")
        .zip(text("why"))
        .with_context(|| format!("nothing failed: {}", ledger["data"]["rollout"]))
}

/// The push failed as it should, the second host at that state, and both serve v3.
async fn taken_back(fleet: &Fleet, what: &str, ran: &Ran, state: &str, said: &str) -> anyhow::Result<()> {
    ensure!(ran.code == 5, "{what}: ended with {}:\n{}", ran.code, ran.stderr);
    ensure!(
        ran.stderr.contains(said),
        "{what}: does not say {said:?}:\n{}",
        ran.stderr
    );
    fleet.timeline(what).await?;
    let (phase, why) = failed_at(&fleet.second).await?;
    ensure!(phase == state, "{what}: failed at {phase}, not {state}: {why}");
    fleet.serves("v3").await.with_context(|| what.to_owned())
}

async fn damaged_images(fleet: &Fleet) -> anyhow::Result<()> {
    let second = &fleet.second;
    let good = Push {
        version: "v4",
        ..Push::default()
    };
    fleet.configure(good, "").await?;
    let bring = || {
        fleet
            .developer()
            .appliance(["build", "pull", "--version", "v4"])
            .run()
    };
    bring().await?.expect_code(0)?;
    let config = config_blob(second).await?;

    // What is damaged before a push is sent again by it, at the latest when it is tried once more.
    second.run(&["truncate", "--size=-1", &config]).await?;
    bring()
        .await?
        .expect_error("which is not here; upload it first")?;
    bring().await?.expect_code(0)?;

    // The hook runs when the image is on the hosts and nothing has begun.
    let on_host = format!("docker exec {}", second.host.name().as_str());
    fleet.hook("pre-deploy", &format!("{on_host} truncate --size=-1 {config}"))?;
    let failed = fleet.push(good).await?;
    taken_back(fleet, "an image cut short", &failed, "received", DAMAGED).await?;

    let flip = format!(
        "printf X | docker exec --interactive {} dd of={config} conv=notrunc",
        second.host.name().as_str()
    );
    fleet.hook("pre-deploy", &flip)?;
    let failed = fleet.push(good).await?;
    taken_back(fleet, "an image with a wrong byte", &failed, "verified", DAMAGED).await?;
    fleet.hook("pre-deploy", "true")?;
    // It is whole again without anybody's doing but the next push's.
    bring().await?.expect_code(0)?;
    let digest = second.run(&["sha256sum", &config]).await?;
    ensure!(
        config.ends_with(digest.split_whitespace().next().context("a digest")?),
        "{digest}"
    );
    Ok(())
}

const DAMAGED: &str = "is damaged on this host's disk";

/// The file of the image configuration that came last.
async fn config_blob(world: &World) -> anyhow::Result<String> {
    let script = "import glob, json, os, sys\n\
                  newest = None\n\
                  for path in sorted(glob.glob(sys.argv[1] + '/*/*'), key=os.path.getmtime):\n    \
                  text = open(path, 'rb').read() if os.path.getsize(path) < 65536 else b''\n    \
                  try: newest = json.loads(text)['config']['digest']\n    \
                  except (ValueError, KeyError, TypeError): pass\n\
                  digest = newest.removeprefix('sha256:')\n\
                  print(f'{sys.argv[1]}/{digest[:2]}/{digest}')\n";
    world.run(&["python3", "-c", script, BLOBS]).await
}

/// Between the look and the switch another app takes one of the names.
async fn taken_name(fleet: &Fleet) -> anyhow::Result<()> {
    let push = Push {
        version: "v4",
        name: Some("demo.test,taken.test"),
        ..Push::default()
    };
    fleet.configure(push, "").await?;
    let other = fleet.other_app("taken.test").await?;
    let binary = appliance_tests::bench::binary()?;
    let take = format!("{} push -H --version v3 -c {other}", binary.display());
    fleet.hook("pre-app-boot", &take)?;
    let failed = fleet.push(push).await?;
    fleet.hook("pre-app-boot", "true")?;
    let said = "taken.test with path / already belongs to service";
    taken_back(fleet, "a name taken meanwhile", &failed, "healthy", said).await?;
    // Now that it is known, nothing is started for it, and no table is touched.
    let failed = fleet.push(push).await?;
    taken_back(fleet, "a name that is taken", &failed, "verified", said).await?;
    ensure!(!failed.stderr.contains("tables migrated"), "{}", failed.stderr);
    let remove = ["app", "remove", "-y", "-c", &other];
    fleet.developer().appliance(remove).run().await?.expect_code(0)?;
    Ok(())
}

/// Ctrl-C while the old worker, which does not listen to SIGTERM, is being stopped.
async fn interrupted_drain(fleet: &Fleet) -> anyhow::Result<()> {
    let push = Push {
        version: "v4",
        ..Push::default()
    };
    fleet.configure(push, "").await?;
    // Somebody may run these tests in the background of a shell, where Ctrl-C is ignored and inherited so.
    let mut child = fleet
        .developer()
        .appliance(["unused"])
        .command_of("env")
        .arg("--default-signal=INT")
        .arg(appliance_tests::bench::binary()?)
        .args(["push", "--version", "v4"])
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("its output")?).lines();
    let pid = child.id().context("it runs")?.to_string();
    let draining = format!("{}: draining", fleet.second.ip().await?);
    let mut stderr = String::new();
    let reading = async {
        while let Some(line) = lines.next_line().await? {
            stderr.push_str(&line);
            stderr.push('\n');
            if line.contains(&draining) {
                let kill = tokio::process::Command::new("kill").args(["-INT", &pid]).status();
                ensure!(kill.await?.success());
            }
        }
        Ok(child.wait().await?)
    };
    let ended = tokio::time::timeout(Duration::from_secs(120), reading)
        .await
        .context("Ctrl-C does not end it")??;
    ensure!(
        !ended.success() && stderr.contains("interrupted"),
        "{ended}:\n{stderr}"
    );
    fleet.timeline("interrupted while draining").await?;
    let (phase, why) = failed_at(&fleet.second).await?;
    ensure!(phase == "draining", "failed at {phase}: {why}\n{stderr}");
    fleet.serves("v3").await.context("interrupted while draining")
}

/// `-r` and `-h`: only what is asked for is rolled out, and the rest stays as it is. v5 serves everywhere.
pub(crate) async fn selected(fleet: &Fleet) -> anyhow::Result<()> {
    let (first, second) = (&fleet.first, &fleet.second);
    let ip = second.ip().await?.to_string();
    let push = Push {
        version: "v4",
        ..Push::default()
    };
    fleet.configure(push, "").await?;
    let ours = async |arguments: &[&str]| {
        let ran = fleet
            .developer()
            .appliance(arguments)
            .run()
            .await?
            .expect_code(0)?;
        anyhow::Ok(ran.stdout)
    };
    let run = async |on_first: &[&str], on_second: &[&str]| {
        for (world, expect) in [(first, on_first), (second, on_second)] {
            let names = [
                "docker",
                "ps",
                "--filter",
                "label=service=demo",
                "--format",
                "{{.Names}}",
            ];
            let names = world.run(&names).await?;
            let mut names: Vec<&str> = names.lines().collect();
            names.sort_unstable();
            ensure!(
                names == expect,
                "{names:?} run on {}, not {expect:?}",
                world.host.name().as_str()
            );
        }
        Ok(())
    };
    let web = async |name: &str| {
        second
            .run(&[
                "docker",
                "inspect",
                "--format",
                "{{.Id}} {{.State.StartedAt}}",
                name,
            ])
            .await
    };

    let before = web("demo-web-v5").await?;
    // Where the primary role stays, nothing is migrated, and it is no reason to wait for it.
    let ran = fleet
        .developer()
        .appliance(["push", "--version", "v4", "-r", "j*"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(!ran.stderr.contains("| tables migrated"), "{}", ran.stderr);
    run(&["demo-web-v5"], &["demo-jobs-v4", "demo-web-v5"]).await?;
    ensure!(web("demo-web-v5").await? == before, "the other role was touched");
    let shown = ours(&["app", "version"]).await?;
    ensure!(shown.contains("web: v5") && shown.contains("jobs: v4"), "{shown}");
    let shown = ours(&["app", "version", "-r", "jobs"]).await?;
    ensure!(shown.contains("\nv4\n") && !shown.contains("v5"), "{shown}");
    let said = ours(&["app", "exec", "--reuse", "-r", "jobs", "printenv KAMAL_VERSION"]).await?;
    ensure!(said.trim() == "v4", "{said}");
    let stale = ours(&["app", "stale_containers", "-h", &ip]).await?;
    ensure!(stale.contains("no stale container runs"), "{stale}");
    // Across a restart of the agent, too.
    second.crash("appliance-agent.service").await?;
    second.ready().await?;

    ours(&["rollback", "-r", "jobs"]).await?;
    run(&["demo-web-v5"], &["demo-jobs-v5", "demo-web-v5"]).await?;
    ensure!(web("demo-web-v5").await? == before, "the other role was touched");

    // One host alone, and then one role of all.
    ours(&["push", "--version", "v4", "-h", &ip, "-r", "web"]).await?;
    run(&["demo-web-v5"], &["demo-jobs-v5", "demo-web-v4"]).await?;
    let jobs = web("demo-jobs-v5").await?;
    ours(&["app", "boot", "-h", &ip, "-r", "web"]).await?;
    run(&["demo-web-v5"], &["demo-jobs-v5", "demo-web-v4"]).await?;
    ensure!(web("demo-jobs-v5").await? == jobs, "the other role was touched");
    let failed = fleet
        .developer()
        .appliance(["rollback", "-h", &ip, "-r", "nobody"])
        .run()
        .await?;
    failed
        .expect_code(2)?
        .expect_error("No --roles match for nobody")?;
    ours(&["rollback", "-h", &ip]).await?;
    fleet.serves("v5").await
}
