//! What must not silence the alerts: a mistake in `host.yml`, a receiver that is away, an agent that is killed.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::Distro;
use appliance_tests::World;
use appliance_tests::receiver::{Received, Receiver};
use serde_json::Value;

use crate::alerts::{settings, told};
use crate::doctor::{found, found_in_time, gone, gone_in_time, mended};

const LIMIT: Duration = Duration::from_secs(90);

fn is(request: &Received, status: &str, kind: &str) -> bool {
    serde_json::from_slice::<Value>(&request.body)
        .is_ok_and(|notice| notice["status"] == status && notice["kind"] == kind)
}

/// A disk that lost `gone` bytes in each of the last three hours, as the agent writes its looks down.
async fn shrinking(world: &World, gone: u64) -> anyhow::Result<()> {
    let now: u64 = world.run(&["date", "+%s"]).await?.parse()?;
    let free = world
        .run(&["df", "--output=avail", "--block-size=1", "/var/lib/appliance"])
        .await?;
    let free: u64 = free.lines().last().context("a number")?.trim().parse()?;
    let looks: Vec<(u64, u64)> = (1..=36)
        .rev()
        .map(|five| (now - five * 300, free + gone * five / 12))
        .collect();
    let ledger = serde_json::json!({ "generation": 1, "schema": 1, "data": looks });
    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    world
        .host
        .copy_in(
            "/var/lib/appliance/disk.json",
            ledger.to_string().into_bytes(),
            0o600,
        )
        .await?;
    world.run(&["systemctl", "start", "appliance-agent"]).await?;
    Ok(())
}

#[tokio::test]
async fn neither_a_mistake_nor_an_outage_nor_a_kill_loses_or_repeats_an_alert() -> anyhow::Result<()> {
    let world = World::bootstrapped("silence", Distro::Debian12).await?;
    let receiver = Receiver::start().await?;
    let url = receiver.url(&world).await?;
    let good = format!(
        "alerts:\n  webhooks: ['{url}/hook']\n  ping: {url}/ping\n  interval: 1s\n  window: 20s\nlimits: {{disk_free: 1%}}\n"
    );
    settings(&world, &good).await?;
    receiver.wait("/ping", LIMIT, |_| true).await?;

    // A file of ours is gone.
    world
        .run(&["rm", "/etc/apt/apt.conf.d/52appliance-periodic"])
        .await?;
    let drift = told(&receiver, "firing", "drift", "host").await?;
    ensure!(
        drift["message"]
            .as_str()
            .is_some_and(|text| text.contains("updates")),
        "{drift}"
    );
    let next = drift["next"].as_str().context("a command")?.to_owned();
    ensure!(found(&world, "drift").await?.next == next);
    world.run(&["bash", "-euc", &next]).await?;
    told(&receiver, "resolved", "drift", "host").await?;
    gone(&world, "drift").await?;

    // With a mistake in the file, the settings of before are followed.
    settings(&world, &format!("{good}alerts: [\n")).await?;
    world.run(&["touch", "/run/reboot-required"]).await?;
    told(&receiver, "firing", "reboot", "host").await?;
    found(&world, "alerts").await?;
    // The whole host cannot be compared with what cannot be read, and that is no peace.
    let blind = found_in_time(&world, "not-seen").await?;
    ensure!(
        blind.message.starts_with("drift could not be looked at: "),
        "{}",
        blind.message
    );
    ensure!(blind.next == "appliance host audit", "{}", blind.next);

    // Nobody takes what is told, and the agent is killed with it in its hands, the mistake still there.
    receiver.status("/hook", 503);
    world.run(&["rm", "/run/reboot-required"]).await?;
    let refused = |request: &Received| is(request, "resolved", "reboot");
    receiver.wait("/hook", LIMIT, refused).await?;
    found(&world, "alerts-undelivered").await?;
    world.crash("appliance-agent.service").await?;
    world.ready().await?;
    settings(&world, &good).await?;
    gone(&world, "alerts").await?;
    gone_in_time(&world, "not-seen").await?;
    // A ping that does not arrive is told until one does.
    receiver.status("/ping", 503);
    let unheard = found_in_time(&world, "alerts").await?;
    ensure!(
        unheard.message.contains("ping at ") && !unheard.message.contains("/ping"),
        "{}",
        unheard.message
    );
    receiver.serve("/ping", "");
    gone_in_time(&world, "alerts").await?;
    let before = receiver.received("/hook").len();
    receiver.serve("/hook", "");
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !receiver.received("/hook")[before..].iter().any(refused) {
        ensure!(tokio::time::Instant::now() < deadline, "the notice is lost");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    gone_in_time(&world, "alerts-undelivered").await?;

    // The proxy hangs: people are told, and whoever counts on the ping hears nothing.
    world
        .run(&[
            "systemctl",
            "kill",
            "--kill-who=main",
            "--signal=SIGSTOP",
            "appliance-proxy",
        ])
        .await?;
    told(&receiver, "firing", "services", "proxy").await?;
    // From its first word on until it is mended; a ping may have been on its way.
    let pings = receiver.received("/ping").len();
    let seen = found(&world, "proxy-away").await?;
    ensure!(
        receiver.received("/ping").len() <= pings + 2,
        "the host was called well while its proxy hung: {seen:?}"
    );
    mended(&world, "proxy-away").await?;
    told(&receiver, "resolved", "services", "proxy").await?;

    // A disk that fills up: the looks of three hours, as an agent before this one wrote them down.
    let share = 20 << 30;
    shrinking(&world, share).await?;
    let disk = told(&receiver, "firing", "disk", "host").await?;
    ensure!(
        disk["message"]
            .as_str()
            .is_some_and(|text| text.contains("the disk is full in about")),
        "{disk}"
    );
    found(&world, "disk-trend").await?;
    shrinking(&world, 0).await?;
    told(&receiver, "resolved", "disk", "host").await?;
    gone(&world, "disk-trend").await?;

    // Each of them once: the attempts that were refused do not count.
    let all = receiver.received("/hook");
    for (status, kind) in ["drift", "reboot", "services", "disk"]
        .into_iter()
        .flat_map(|kind| [("firing", kind), ("resolved", kind)])
    {
        let taken = all.iter().enumerate().filter(|(index, request)| {
            let held_up = (status, kind) == ("resolved", "reboot") && *index < before;
            is(request, status, kind) && !held_up
        });
        let taken: Vec<String> = taken
            .map(|(_, request)| String::from_utf8_lossy(&request.body).into_owned())
            .collect();
        ensure!(
            taken.len() == 1,
            "{status}: {kind} was told otherwise: {taken:#?}"
        );
    }
    Ok(())
}
