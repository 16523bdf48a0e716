//! What the doctor finds on a real host: provoked, told with a command, and gone after that command.

use anyhow::ensure;
use appliance_sandbox::{Command, Distro};
use appliance_tests::World;
use appliance_tests::receiver::Receiver;
use serde_json::Value;

use crate::alerts::settings;

/// The findings of one area, as `message; next: command`.
fn findings(report: &Value, area: &str) -> Vec<String> {
    let hosts = report["hosts"].as_object().into_iter().flatten();
    hosts
        .flat_map(|(_, areas)| areas.as_array().cloned().unwrap_or_default())
        .filter(|found| found["name"] == area)
        .flat_map(|found| found["findings"].as_array().cloned().unwrap_or_default())
        .map(|found| {
            format!(
                "{}; next: {}",
                found["message"].as_str().unwrap_or_default(),
                found["next"].as_str().unwrap_or_default()
            )
        })
        .collect()
}

/// Asked on the host: whether `area` has a finding with both texts.
async fn found(world: &World, area: &str, message: &str, next: &str) -> anyhow::Result<()> {
    let output = world
        .host
        .exec(&Command::new(["appliance", "doctor", "--json"]))
        .await?;
    ensure!(
        output.status == 9,
        "status {}: {}",
        output.status,
        output.error_text()
    );
    let report: Value = serde_json::from_str(&output.text())?;
    let found = findings(&report, area);
    ensure!(
        found
            .iter()
            .any(|text| text.contains(message) && text.contains(next)),
        "{area}: {found:?} in {report}"
    );
    Ok(())
}

async fn gone(world: &World, area: &str) -> anyhow::Result<()> {
    let output = world
        .host
        .exec(&Command::new(["appliance", "doctor", "--json"]))
        .await?;
    let report: Value = serde_json::from_str(&output.text())?;
    let found = findings(&report, area);
    ensure!(found.is_empty(), "{area}: {found:?}");
    Ok(())
}

#[tokio::test]
async fn each_finding_is_gone_after_the_command_that_came_with_it() -> anyhow::Result<()> {
    let world = World::bootstrapped("doctor", Distro::Debian12).await?;
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

    found(&world, "dns", "demo.test has no address", &ip).await?;
    world
        .run(&["bash", "-c", "echo \"$1 demo.test\" >> /etc/hosts", "bash", &ip])
        .await?;
    gone(&world, "dns").await?;

    found(&world, "alerts", "nobody is told", "appliance alerts test").await?;
    settings(&world, &alerts).await?;
    gone(&world, "alerts").await?;

    settings(&world, &format!("{alerts}limits: {{disk_free: 99.9%}}\n")).await?;
    found(&world, "disk", "of the disk are free", "docker system df").await?;
    settings(&world, &alerts).await?;
    gone(&world, "disk").await?;

    world
        .run(&["systemctl", "stop", "docker.socket", "docker.service"])
        .await?;
    found(&world, "docker", "", "systemctl start docker").await?;
    world.run(&["systemctl", "start", "docker"]).await?;
    gone(&world, "docker").await?;
    Ok(())
}
