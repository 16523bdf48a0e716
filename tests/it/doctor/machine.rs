//! What belongs to the machine around a host in a container: its clock, its memory, what its kernel lets the agent load.
//!
//! The agent alone sees other programs before the real ones, and another `/proc/meminfo`, as LXCFS shows one;
//! whoever runs the commands that `doctor` prints has the real ones.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_tests::World;

use super::{found, found_by, found_in_time, gone, gone_by, gone_in_time, mended, mended_from_elsewhere};
use crate::alerts::settings;

/// Where the agent finds programs first.
const BEFORE: &str = "[Service]\nBindReadOnlyPaths=/opt/ill:/usr/local/sbin /opt/ill/meminfo:/proc/meminfo\n";
const DROP_IN: &str = "/etc/systemd/system/appliance-agent.service.d/ill.conf";
/// No container, as far as the agent is told.
const VIRT: &str = "#!/bin/sh\nexit 1\n";
/// While `/opt/ill/refuses` is there, nothing is loaded.
const NFT: &str = "#!/bin/sh\nif [ -e /usr/local/sbin/refuses ]; then\n  case \" $* \" in *' -f '*|*' --file '*) echo 'Operation not permitted' >&2; exit 1;; esac\nfi\nexec /usr/sbin/nft \"$@\"\n";
/// A machine whose clock is kept once somebody says so.
const CLOCK: &str = "#!/bin/sh\ncase \"$1\" in\n  show) cat /run/clock-kept 2>/dev/null || echo no ;;\n  set-ntp) echo yes > /run/clock-kept ;;\nesac\n";

const AGAIN: [&str; 3] = ["systemctl", "restart", "appliance-agent"];

/// Everything of it, with `settings` written into host.yml afterwards as they were before.
pub(super) async fn each(world: &World, before: &str) -> anyhow::Result<()> {
    for (name, text) in [
        ("systemd-detect-virt", VIRT),
        ("nft", NFT),
        ("timedatectl", CLOCK),
    ] {
        world
            .host
            .copy_in(&format!("/opt/ill/{name}"), text, 0o755)
            .await?;
    }
    world
        .host
        .copy_in("/usr/local/sbin/timedatectl", CLOCK, 0o755)
        .await?;
    world.host.copy_in(DROP_IN, BEFORE, 0o644).await?;
    memory(world, 0, 0).await?;
    world.run(&["systemctl", "daemon-reload"]).await?;
    world.run(&AGAIN).await?;
    world.ready().await?;

    mended(world, "clock").await?;
    swap(world, before).await?;
    walls(world).await?;

    world
        .run(&["rm", "-r", DROP_IN, "/opt/ill", "/usr/local/sbin/timedatectl"])
        .await?;
    world.run(&["systemctl", "daemon-reload"]).await?;
    world.run(&AGAIN).await?;
    world.ready().await
}

/// A small machine with that much swap, of which so much is free, MiB.
async fn memory(world: &World, swap: u64, free: u64) -> anyhow::Result<()> {
    let line = |name: &str, mebibytes: u64| format!("{:<16}{:>8} kB\n", format!("{name}:"), mebibytes << 10);
    let lines = [
        ("MemTotal", 2048),
        ("MemFree", 1024),
        ("MemAvailable", 1536),
        ("Buffers", 64),
        ("Cached", 512),
        ("SwapCached", 0),
        ("Shmem", 16),
        ("SReclaimable", 16),
        ("SwapTotal", swap),
        ("SwapFree", free),
    ];
    let text: String = lines.iter().map(|(name, size)| line(name, *size)).collect();
    // In its place, which is mounted.
    let write = "printf %s \"$1\" > /opt/ill/meminfo";
    world.run(&["bash", "-euc", write, "bash", &text]).await.map(drop)
}

async fn swap(world: &World, before: &str) -> anyhow::Result<()> {
    let none = found(world, "swap-none").await?;
    ensure!(none.next == "appliance host apply", "{}", none.next);
    world.run(&["bash", "-euc", &none.next]).await?;
    // Which leaves a container's kernel alone: what it makes elsewhere.
    memory(world, 4096, 4096).await?;
    gone(world, "swap-none").await?;
    memory(world, 4096, 200).await?;
    let full = found(world, "swap-full").await?;
    let line = full.message.split('`').nth(1).context("a line for host.yml")?;
    ensure!(line == "swap: 8GiB", "{}", full.message);
    settings(world, &format!("{before}{line}\n")).await?;
    world.run(&["bash", "-euc", &full.next]).await?;
    memory(world, 8192, 4296).await?;
    gone(world, "swap-full").await?;
    settings(world, before).await
}

/// An agent that cannot load what it should.
async fn walls(world: &World) -> anyhow::Result<()> {
    let listens = [
        "systemd-run",
        "--collect",
        "--quiet",
        "--unit=listens",
        "systemd-socket-activate",
        "--accept",
        "--inetd",
        "--listen=8080",
        "cat",
    ];
    world.run(&listens).await?;
    gone_by(&world.developer, &[], "port-open").await?;
    world.run(&["touch", "/opt/ill/refuses"]).await?;
    let away = ["nft", "delete", "table", "inet", "appliance"];
    world.run(&away).await?;
    mended(world, "firewall-lost").await?;
    // A hole, seen from outside.
    let hole = "nft insert rule inet appliance input tcp dport 8080 accept";
    world.run(&["bash", "-euc", hole]).await?;
    let open = found_by(&world.developer, &[], "port-open").await;
    let listening = world.run(&["ss", "-Hltn", "sport = :8080"]).await?;
    let open = open.with_context(|| format!("listening: {listening:?}"))?;
    ensure!(open.message.contains("8080"), "{}", open.message);
    mended_from_elsewhere(world, "port-open").await?;
    // Somebody who edits the file opens nothing: its model counts.
    let edited = "sed -i '/chain input {/,/policy accept;/ s/policy accept;/&\\n    tcp dport 8080 accept/' /var/lib/appliance/fw/confirmed.nft; \
                  grep -q 'dport 8080 accept' /var/lib/appliance/fw/confirmed.nft; appliance firewall load";
    world.run(&["bash", "-euc", edited]).await?;
    gone_by(&world.developer, &[], "port-open").await?;
    gone(world, "firewall-lost").await?;
    world.run(&["rm", "/opt/ill/refuses"]).await?;
    // A file that nobody can read any more: after a power cut, say.
    let damage = "printf 'table inet app' > /var/lib/appliance/fw/confirmed.nft";
    world.run(&["bash", "-euc", damage]).await?;
    found_in_time(world, "firewall").await?;
    mended(world, "firewall").await?;
    world
        .journal_says("appliance-agent.service", "the firewall", Duration::from_secs(30))
        .await?;
    gone_in_time(world, "firewall-lost").await
}
