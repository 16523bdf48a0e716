//! `cargo xtask score`: a host of ours as the scanners see it.
//!
//! Lynis (profiles standard and strict), ssh-audit, Kamal's SSH client, systemd's own exposure score of our units,
//! and our `host audit`, each on a host that was really bootstrapped.

mod lynis;

use anyhow::{Context as _, bail};
use appliance_sandbox::{Command, Distro};
use appliance_tests::World;
use clap::Args;

use crate::cargo::binary;
use crate::{prerequisites, say};

/// Lynis' index, at least: with the standard profile without the points that no container can have,
/// with the profile strict whatever the container takes away.
const LYNIS: u32 = 80;
/// Exposure of our units, at most (lower is better).
const EXPOSURE: [(&str, f64); 3] = [
    ("appliance-proxy.service", 2.0),
    ("appliance-agent.service", 3.0),
    ("appliance-firewall.service", 2.0),
];
/// Ids of CIS Docker that items of ours answer on every host; those of the audit log (D1.1) need a kernel of one's own.
const CIS_DOCKER: [&str; 23] = [
    "D2.2", "D2.8", "D2.13", "D2.14", "D2.15", "D3.1", "D3.2", "D3.3", "D3.4", "D3.5", "D3.6", "D3.7",
    "D3.8", "D3.15", "D3.16", "D3.17", "D3.18", "D3.19", "D3.20", "D3.23", "D3.24", "D5.2", "D5.14",
];

#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Fail if a score is below its goal
    #[arg(long)]
    strict: bool,
}

/// Scores a host of each distribution, and prints what was found.
///
/// # Errors
/// When a host or scanner does not do its part; with `--strict` also when a goal is missed.
pub(crate) async fn score(args: &ScoreArgs) -> anyhow::Result<()> {
    prerequisites::ensure()?;
    if std::env::var_os("APPLIANCE_BIN").is_none() {
        // The harness reads it from its environment, which a program cannot safely change for itself.
        let mut again = std::process::Command::new(std::env::current_exe()?);
        again
            .args(std::env::args_os().skip(1))
            .env("APPLIANCE_BIN", binary(false)?);
        return prerequisites::run(&mut again);
    }
    let mut missed = Vec::new();
    for distro in Distro::ALL {
        let world = World::bootstrapped("score", distro).await?;
        say::line(&format!("{distro}"));
        for text in host(&world).await.with_context(|| distro.to_string())? {
            missed.push(format!("{distro}: {text}"));
        }
    }
    for text in &missed {
        say::line(&format!("missed: {text}"));
    }
    if args.strict && !missed.is_empty() {
        bail!("{} goals are missed", missed.len());
    }
    Ok(())
}

async fn host(world: &World) -> anyhow::Result<Vec<String>> {
    let mut missed = Vec::new();
    world
        .run(&[
            "apt-get",
            "install",
            "--yes",
            "--quiet=2",
            "--no-install-recommends",
            "lynis",
            "ssh-audit",
        ])
        .await?;
    let found = lynis::score(world, "standard").await?;
    if found.outside < LYNIS {
        missed.push(format!("Lynis gives {}", found.outside));
    }
    missed.extend(found.warnings.iter().map(|text| format!("Lynis warns: {text}")));
    ssh(world, &mut missed).await?;
    ruby(world, &mut missed).await?;
    for (unit, most) in EXPOSURE {
        let active = world.run(&["systemctl", "is-active", unit]).await?;
        let text = world
            .run(&["systemd-analyze", "security", "--no-pager", unit])
            .await?;
        let exposure = text
            .lines()
            .find_map(|line| {
                line.split("exposure level for")
                    .nth(1)?
                    .split(": ")
                    .nth(1)?
                    .split(' ')
                    .next()
            })
            .and_then(|number| number.parse::<f64>().ok())
            .context("systemd-analyze gives no exposure level")?;
        say::line(&format!(
            "  {unit:<28} {exposure:.1} (at most {most:.1}), {active}"
        ));
        if exposure > most || active != "active" {
            missed.push(format!("{unit} is {active} with an exposure of {exposure}"));
        }
    }
    audit(world, &mut missed).await?;
    say::line("  profile strict");
    world
        .host
        .copy_in("/root/host.yml", "hardening: {profile: strict}\n", 0o644)
        .await?;
    let strict = Command::new([
        "appliance",
        "host",
        "apply",
        "--allow-container",
        "--host-yml",
        "/root/host.yml",
    ])
    .timeout(std::time::Duration::from_secs(1800));
    let output = world.host.exec(&strict).await?;
    if !output.success() {
        bail!("the profile strict cannot be applied: {}", output.error_text());
    }
    let found = lynis::score(world, "strict").await?;
    if found.index < LYNIS {
        missed.push(format!("Lynis gives {} with the profile strict", found.index));
    }
    missed.extend(found.warnings.iter().map(|text| format!("Lynis warns: {text}")));
    audit(world, &mut missed).await?;
    Ok(missed)
}

async fn ssh(world: &World, missed: &mut Vec<String>) -> anyhow::Result<()> {
    let output = world
        .host
        .exec(&Command::new([
            "ssh-audit",
            "--no-colors",
            "--level=fail",
            "127.0.0.1",
        ]))
        .await?;
    let text = output.text();
    let fails: Vec<&str> = text.lines().filter(|line| line.contains("[fail]")).collect();
    say::line(&format!("  ssh-audit                    {} fails", fails.len()));
    for line in &fails {
        say::line(&format!("    {line}"));
    }
    if !fails.is_empty() {
        missed.push(format!("ssh-audit fails {} times", fails.len()));
    }
    Ok(())
}

/// Kamal's own client, which is Ruby's Net::SSH: it has none of the newest key exchanges, and still gets in.
async fn ruby(world: &World, missed: &mut Vec<String>) -> anyhow::Result<()> {
    world
        .run(&[
            "apt-get",
            "install",
            "--yes",
            "--quiet=2",
            "--no-install-recommends",
            "ruby-net-ssh",
            "ruby-ed25519",
            "ruby-bcrypt-pbkdf",
        ])
        .await?;
    const LOGIN: &str = "require 'net/ssh'; Net::SSH.start('127.0.0.1', 'root', keys: ['/root/.developer/id_ed25519'], \
                         keys_only: true, verify_host_key: :never) { |ssh| \
                         print ssh.exec!('echo in'), Net::SSH::Version::STRING, ' ', ssh.transport.algorithms.kex }";
    let output = world.host.exec(&Command::new(["ruby", "-e", LOGIN])).await?;
    let text = output.text();
    match text.strip_prefix("in\n") {
        Some(how) => say::line(&format!("  Ruby's Net::SSH              logs in ({how})")),
        None => missed.push(format!(
            "Ruby's Net::SSH does not log in: {}",
            output.error_text()
        )),
    }
    Ok(())
}

async fn audit(world: &World, missed: &mut Vec<String>) -> anyhow::Result<()> {
    let output = world
        .host
        .exec(&Command::new([
            "appliance",
            "host",
            "audit",
            "--allow-container",
            "--json",
        ]))
        .await?;
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).with_context(|| output.error_text())?;
    let items: Vec<&serde_json::Value> = report["items"].as_array().into_iter().flatten().collect();
    say::line(&format!(
        "  appliance host audit         {} of {} items hold",
        items.len() as u64 - report["failing"].as_u64().unwrap_or(0),
        items.len()
    ));
    for id in CIS_DOCKER {
        let answered = items.iter().any(|item| {
            item["ok"] == true
                && item["references"]
                    .as_array()
                    .is_some_and(|references| references.iter().any(|reference| reference == id))
        });
        if !answered {
            missed.push(format!("no item that holds answers CIS Docker {id}"));
        }
    }
    for item in items.iter().filter(|item| item["ok"] == false) {
        missed.push(format!("item {} does not hold: {}", item["id"], item["differs"]));
    }
    Ok(())
}
