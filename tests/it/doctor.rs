//! What the doctor finds on a real host: provoked, told with a command, and gone after that very command.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro};
use appliance_tests::World;
use appliance_tests::receiver::Receiver;
use serde_json::Value;

use crate::alerts::settings;

/// Where a finding is provoked.
enum Case {
    /// In this file.
    Here,
    /// In another test, whose text names the finding's word.
    In(&'static str),
    /// Nowhere on a real host, for this reason.
    Not(&'static str),
}

const ALERTS: &str = include_str!("alerts.rs");
const BACKUPS: &str = include_str!("backups.rs");
const OUTAGE: &str = include_str!("silence.rs");
const UPDATES: &str = include_str!("updates.rs");

/// Every finding of the product; one that is missing here fails the test.
const CASES: &[(&str, Case)] = &[
    ("unreachable", Case::Not("seen by no host so far")),
    ("not-examined", Case::Not("seen by no host so far")),
    ("agent-away", Case::Here),
    ("versions", Case::In(UPDATES)),
    (
        "no-key",
        Case::Not("who has no key is not let in by sshd, and says so before"),
    ),
    ("unknown-key", Case::Not("seen by no host so far")),
    ("only-looks", Case::Not("seen by no host so far")),
    ("clock-skew", Case::Here),
    (
        "clock",
        Case::Not("a container has the machine's clock; the area says so"),
    ),
    ("dns-none", Case::Here),
    ("dns-elsewhere", Case::Here),
    (
        "dns-partly",
        Case::Not("needs a zone of our own that the developer's machine asks"),
    ),
    (
        "port-open",
        Case::Not(
            "the agent closes a hole in its firewall before anybody can look; see the tests of the firewall",
        ),
    ),
    ("port-shut", Case::Not("seen by no host so far")),
    ("docker-away", Case::Here),
    ("docker-settings", Case::Here),
    ("proxy-away", Case::In(OUTAGE)),
    (
        "proxy",
        Case::Not("a snapshot that its own process cannot read; tests of the proxy"),
    ),
    ("firewall-pending", Case::Here),
    (
        "firewall-lost",
        Case::Not("the agent loads the rules again at once; see the tests of the firewall"),
    ),
    (
        "firewall-ufw",
        Case::Not("UFW is another mode of the host; see the tests of the firewall"),
    ),
    ("firewall", Case::Not("a damaged file of rules; unit tests")),
    ("certificate-ends", Case::In(ALERTS)),
    (
        "certificates",
        Case::Not("needs a certificate authority that refuses; see the tests of certificates"),
    ),
    ("disk-low", Case::Here),
    ("disk-trend", Case::In(OUTAGE)),
    ("logs-unbounded", Case::Here),
    ("memory", Case::In(ALERTS)),
    (
        "swap-none",
        Case::Not("the test machine has much memory, and a container shares it"),
    ),
    (
        "swap-full",
        Case::Not("a container cannot fill the machine's swap without harm to others"),
    ),
    ("restart-loop", Case::In(ALERTS)),
    ("errors", Case::In(ALERTS)),
    ("backup-none", Case::In(BACKUPS)),
    (
        "backup-undrilled",
        Case::Not("the first backup is drilled at once"),
    ),
    ("backup-failed", Case::In(BACKUPS)),
    ("backup-late", Case::Not("two days would have to pass")),
    ("drill-failed", Case::In(BACKUPS)),
    ("drill-late", Case::Not("a week would have to pass")),
    (
        "backup-ping",
        Case::Not("told with the backup's own failures; unit tests"),
    ),
    ("recovery-key", Case::In(BACKUPS)),
    (
        "backups",
        Case::Not("whatever else; a schedule that is no schedule does not pass the push"),
    ),
    (
        "accessories",
        Case::Not("a damaged ledger; unit tests of accessories"),
    ),
    ("reboot", Case::Here),
    ("drift", Case::In(OUTAGE)),
    ("agent-old", Case::Here),
    ("proxy-old", Case::Here),
    ("update-reverted", Case::In(UPDATES)),
    ("alerts-nobody", Case::Here),
    ("alerts-undelivered", Case::In(OUTAGE)),
    ("alerts", Case::In(OUTAGE)),
];

/// One finding: its message and its command.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) message: String,
    pub(crate) next: String,
}

/// The findings of this word in a report.
fn findings(report: &Value, id: &str) -> Vec<Found> {
    let hosts = report["hosts"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    hosts
        .flat_map(|(_, areas)| areas.as_array().cloned().unwrap_or_default())
        .flat_map(|area| area["findings"].as_array().cloned().unwrap_or_default())
        .filter(|found| found["id"] == id)
        .map(|found| Found {
            message: text(&found["message"]),
            next: text(&found["next"]),
        })
        .collect()
}

async fn asked_on_the_host(world: &World) -> anyhow::Result<(i64, Value)> {
    let output = world
        .host
        .exec(&Command::new(["appliance", "doctor", "--json"]))
        .await?;
    let report = serde_json::from_str(&output.text()).with_context(|| output.error_text())?;
    Ok((output.status, report))
}

/// Asked on the host: the finding, which has to be there.
pub(crate) async fn found(world: &World, id: &str) -> anyhow::Result<Found> {
    let (status, report) = asked_on_the_host(world).await?;
    ensure!(status == 9, "status {status}: {report}");
    findings(&report, id)
        .into_iter()
        .next()
        .with_context(|| format!("{id} is not in {report}"))
}

pub(crate) async fn gone(world: &World, id: &str) -> anyhow::Result<()> {
    let (_, report) = asked_on_the_host(world).await?;
    let found = findings(&report, id);
    ensure!(found.is_empty(), "{id}: {}", found[0].message);
    Ok(())
}

/// The finding is there, its command is run as it was printed, and it is gone.
pub(crate) async fn mended(world: &World, id: &str) -> anyhow::Result<()> {
    let found = found(world, id).await?;
    world
        .run(&["bash", "-euc", &found.next])
        .await
        .with_context(|| format!("{id}: {}", found.next))?;
    gone(world, id).await
}

/// Asked on the developer's machine: the exit code, the report.
async fn asked_from_elsewhere(world: &World, env: &[(&str, &str)]) -> anyhow::Result<(i32, Value)> {
    let mut asking = world.developer.appliance(["doctor", "--json"]);
    for (name, value) in env {
        asking = asking.env(name, value);
    }
    let ran = asking.run().await?;
    Ok((ran.code, ran.json()?))
}

#[tokio::test]
async fn each_finding_is_gone_after_the_command_that_came_with_it() -> anyhow::Result<()> {
    let world = World::bootstrapped("doctor", Distro::Debian12).await?;
    let listed = world.run(&["appliance", "doctor", "--list", "--json"]).await?;
    let listed: Value = serde_json::from_str(&listed)?;
    let product: BTreeSet<&str> = listed
        .as_object()
        .context("an object")?
        .keys()
        .map(String::as_str)
        .collect();
    let known: BTreeSet<&str> = CASES.iter().map(|(id, _)| *id).collect();
    ensure!(product == known, "{product:?} is not {known:?}");
    for (id, case) in CASES {
        match case {
            Case::Here => ensure!(
                include_str!("doctor.rs").matches(&format!("\"{id}\"")).count() > 1,
                "{id}"
            ),
            Case::In(text) => ensure!(text.contains(&format!("\"{id}\"")), "{id}"),
            Case::Not(why) => ensure!(!why.is_empty(), "{id}"),
        }
    }

    world.developer.demo_app("v1", &world, "").await?;
    world
        .developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;
    let ip = world.ip().await?.to_string();
    let receiver = Receiver::start().await?;
    let alerts = format!("alerts: {{webhooks: ['{}/hook']}}\n", receiver.url(&world).await?);

    // Names. The commands are for whoever owns the zone; the hosts file stands in for it.
    let none = found(&world, "dns-none").await?;
    ensure!(
        none.next.contains(&ip) && none.next.contains("demo.test"),
        "{}",
        none.next
    );
    let name = "printf '%s demo.test\\n' \"$@\" > /tmp/names; sed -i '/demo.test/d' /etc/hosts 2>/dev/null || \
                { grep -v demo.test /etc/hosts > /tmp/hosts; cat /tmp/hosts > /etc/hosts; }; cat /tmp/names >> /etc/hosts";
    world.run(&["bash", "-c", name, "bash", "192.0.2.7"]).await?;
    let elsewhere = found(&world, "dns-elsewhere").await?;
    ensure!(elsewhere.message.contains("192.0.2.7"), "{}", elsewhere.message);
    world.run(&["bash", "-c", name, "bash", &ip]).await?;
    gone(&world, "dns-elsewhere").await?;
    gone(&world, "dns-none").await?;

    let nobody = found(&world, "alerts-nobody").await?;
    ensure!(nobody.next.ends_with("appliance alerts test"), "{}", nobody.next);
    settings(&world, &alerts).await?;
    gone(&world, "alerts-nobody").await?;

    settings(&world, &format!("{alerts}limits: {{disk_free: 99.9%}}\n")).await?;
    let low = found(&world, "disk-low").await?;
    ensure!(low.next.contains("docker system df"), "{}", low.next);
    settings(&world, &alerts).await?;
    gone(&world, "disk-low").await?;

    world
        .run(&["systemctl", "stop", "docker.socket", "docker.service"])
        .await?;
    mended(&world, "docker-away").await?;

    let off = "sed -i 's/\"live-restore\": true/\"live-restore\": false/' /etc/docker/daemon.json; systemctl reload docker";
    world.run(&["bash", "-euc", off]).await?;
    mended(&world, "docker-settings").await?;

    // What is looked at every few minutes is looked at anew by an agent that starts.
    let image = world.run(&["docker", "ps", "--format={{.Image}}"]).await?;
    let image = image.lines().next().context("the app runs")?.to_owned();
    let chatty = [
        "docker",
        "run",
        "--detach",
        "--name=chatty",
        "--log-driver=json-file",
        &image,
    ];
    world.run(&chatty).await?;
    let again = ["systemctl", "restart", "appliance-agent"];
    world.run(&again).await?;
    found_in_time(&world, "logs-unbounded").await?;
    world.run(&["docker", "rm", "--force", "chatty"]).await?;
    world.run(&again).await?;
    gone(&world, "logs-unbounded").await?;

    let allow = ["firewall", "allow", "7000", "--no-confirm"];
    world.developer.appliance(allow).run().await?.expect_code(0)?;
    let pending = found(&world, "firewall-pending").await?;
    // Over a new connection, which only somebody else's machine can make.
    let words: Vec<&str> = pending.next.split_whitespace().skip(1).collect();
    world.developer.appliance(words).run().await?.expect_code(0)?;
    gone(&world, "firewall-pending").await?;

    // Another file in the place of the program: what runs is of an installation before.
    let other = "cp /usr/local/bin/appliance /usr/local/bin/.other; mv /usr/local/bin/.other /usr/local/bin/appliance";
    world.run(&["bash", "-euc", other]).await?;
    found(&world, "proxy-old").await?;
    mended(&world, "agent-old").await?;
    world.ready().await?;
    mended_in_time(&world, "proxy-old").await?;

    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    mended(&world, "agent-away").await?;

    // From the developer's machine.
    let skewed = asked_from_elsewhere(
        &world,
        &[
            ("LD_PRELOAD", "/usr/$LIB/faketime/libfaketime.so.1"),
            ("FAKETIME", "+300s"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    )
    .await?;
    let skew = findings(&skewed.1, "clock-skew");
    ensure!(
        skewed.0 == 9 && skew.len() == 1 && skew[0].message.contains("behind"),
        "{}",
        skewed.1
    );
    world.run(&["touch", "/run/reboot-required"]).await?;
    let reboot = found(&world, "reboot").await?;
    ensure!(reboot.next == "systemctl reboot", "{}", reboot.next);
    world.host.reboot().await?;
    world.ready().await?;
    gone(&world, "reboot").await
}

/// As [`found`], for what the agent sees a moment after its start.
async fn found_in_time(world: &World, id: &str) -> anyhow::Result<Found> {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match found(world, id).await {
            Err(_) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
            found => return found,
        }
    }
}

/// As [`mended`], for a command that only begins something.
async fn mended_in_time(world: &World, id: &str) -> anyhow::Result<()> {
    let found = found(world, id).await?;
    world.run(&["bash", "-euc", &found.next]).await?;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        match gone(world, id).await {
            Err(_) if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            }
            gone => return gone,
        }
    }
}
