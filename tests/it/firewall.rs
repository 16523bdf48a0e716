//! Who opens and closes ports, what holds until when, and what the agent puts right by itself.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Outside, PortState};
use appliance_tests::World;

#[tokio::test]
async fn a_flushed_table_is_noticed_and_loaded_again() -> anyhow::Result<()> {
    let world = World::bootstrapped("flushed", Distro::Debian13).await?;
    let status = async || {
        world
            .host
            .exec(&Command::new(["appliance", "firewall", "status", "--json"]))
            .await
    };
    let state = async |expect: &str| -> anyhow::Result<()> {
        let said = status().await?.text();
        let value: serde_json::Value = serde_json::from_str(&said).context("status is JSON")?;
        ensure!(value["state"] == expect, "{said}, not {expect}");
        Ok(())
    };
    // Without the agent nobody puts anything right.
    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    // Counters and bans move by themselves, and are no reason to load anything.
    world
        .run(&["nft", "add element inet appliance ban4 { 192.0.2.1 timeout 1h }"])
        .await?;
    state("confirmed").await?;
    world
        .run(&["nft", "add element inet appliance ext_tcp { 8080 }"])
        .await?;
    state("differs").await?;
    world.run(&["appliance", "firewall", "load"]).await?;
    state("confirmed").await?;
    world
        .run(&["nft", "insert rule inet appliance input accept"])
        .await?;
    state("differs").await?;
    // Bootstrap repairs it too; the agent was stopped, and runs again.
    world
        .run(&["appliance", "bootstrap", "--allow-container"])
        .await?;
    state("confirmed").await?;
    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    world
        .run(&["nft", "delete", "table", "inet", "appliance"])
        .await?;
    state("absent").await?;
    let refused = world
        .host
        .exec(&Command::new(["appliance", "firewall", "status"]))
        .await?;
    ensure!(
        refused.status == 1 && refused.error_text().contains("appliance firewall load"),
        "{}",
        refused.error_text()
    );
    world.run(&["systemctl", "reload", "appliance-firewall"]).await?;
    state("confirmed").await?;

    // The agent sees it in the kernel, and says what it did.
    world.run(&["systemctl", "start", "appliance-agent"]).await?;
    world.run(&["nft", "flush", "ruleset"]).await?;
    world
        .journal_says(
            "appliance-agent.service",
            "somebody removed the table",
            Duration::from_secs(30),
        )
        .await?;
    state("confirmed").await?;

    // Also an agent that cannot read what it remembers closes the host.
    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    let damaged = "{ this was a ledger";
    let keys = "/var/lib/appliance/keys.json";
    let whole = world.host.read(keys).await?;
    world.host.copy_in(keys, damaged, 0o600).await?;
    let refused = Command::new(["systemctl", "start", "appliance-agent"]);
    ensure!(
        !world.host.exec(&refused).await?.success(),
        "it begins with no keys"
    );
    world.run(&["nft", "flush", "ruleset"]).await?;
    let script = "until appliance firewall status >/dev/null 2>&1; do read -rt 0.1 <> <(:); done; true";
    let healed = Command::new(["bash", "-c", script]).timeout(Duration::from_secs(30));
    ensure!(
        world.host.exec(&healed).await?.success(),
        "nobody closed the host"
    );
    world.host.copy_in(keys, whole, 0o600).await?;
    world.run(&["systemctl", "restart", "appliance-agent"]).await?;
    world.ready().await?;

    // Nor does the table need our program: where that fails, nft loads the file alone.
    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    world.run(&["chmod", "a-x", "/usr/local/bin/appliance"]).await?;
    world
        .run(&["nft", "delete", "table", "inet", "appliance"])
        .await?;
    let fails = Command::new(["systemctl", "restart", "appliance-firewall"]);
    ensure!(!world.host.exec(&fails).await?.success(), "it cannot have run");
    let script = "until nft list table inet appliance >/dev/null 2>&1; do read -rt 0.1 <> <(:); done; nft list table inet appliance";
    let loaded = Command::new(["bash", "-c", script]).timeout(Duration::from_secs(20));
    let loaded = world.host.exec(&loaded).await?;
    ensure!(loaded.text().contains("hook input"), "{}", loaded.error_text());
    world.run(&["chmod", "a+x", "/usr/local/bin/appliance"]).await?;
    world
        .run(&["systemctl", "restart", "appliance-firewall", "appliance-agent"])
        .await?;
    state("confirmed").await
}

#[tokio::test]
async fn ports_are_opened_by_signed_changes_that_have_to_be_confirmed() -> anyhow::Result<()> {
    let world = World::bootstrapped("openings", Distro::Debian12).await?;
    let (outside, _removal) = world.bench.outside(world.host.network()).await?;
    let (v4, v6) = world.host.addresses().await?;
    let target = format!("deploy@{v4}");
    let appliance = async |argv: &[&str]| {
        let on = ["--on", &target];
        world.developer.appliance([argv, &on].concat()).run().await
    };
    let port = async |port: &str| -> anyhow::Result<Vec<PortState>> {
        let mut found = Vec::new();
        for address in [v4.into(), v6.into()] {
            let states = outside.probe(address, &[port], Duration::from_secs(1)).await?;
            found.extend(states.into_values());
        }
        Ok(found)
    };
    for listen in ["7000", "7001", "5432"] {
        let unit = format!("--unit=listens-{listen}");
        let on = format!("--listen={listen}");
        world
            .run(&[
                "systemd-run",
                "--collect",
                &unit,
                "systemd-socket-activate",
                "--accept",
                "--inetd",
                &on,
                "cat",
            ])
            .await?;
    }

    // From elsewhere the command confirms over a new connection, and the opening outlives a reload.
    appliance(&["firewall", "allow", "7000", "--comment", "try"])
        .await?
        .expect_code(0)?;
    ensure!(port("7000").await? == [PortState::Open; 2], "not open");
    world.run(&["appliance", "firewall", "load"]).await?;
    ensure!(port("7000").await? == [PortState::Open; 2], "not confirmed");

    // What nobody confirms goes back: by the timer, which is what a load is, and over a reboot.
    appliance(&["firewall", "allow", "7001", "--no-confirm"])
        .await?
        .expect_code(0)?;
    ensure!(
        port("7001").await? == [PortState::Open; 2],
        "not in force while it is armed"
    );
    let timer = world
        .run(&[
            "systemctl",
            "show",
            "--property=ActiveState",
            "--value",
            "appliance-firewall-revert.timer",
        ])
        .await?;
    ensure!(timer == "active", "the revert timer is {timer}");
    let shown = appliance(&["firewall", "list", "--json"])
        .await?
        .expect_code(0)?
        .json()?;
    ensure!(
        shown["state"] == "pending" && shown["pending"]["nonce"].is_string(),
        "{shown}"
    );
    appliance(&["firewall", "confirm", "another"])
        .await?
        .expect_error("something else waits")?;
    world
        .run(&[
            "systemctl",
            "start",
            "--wait",
            "appliance-firewall-revert.service",
        ])
        .await?;
    ensure!(port("7001").await? == [PortState::Silent; 2], "it stayed");

    // A data store for everyone has to be said twice, here and there.
    appliance(&["firewall", "allow", "5432"])
        .await?
        .expect_error("data store")?;
    appliance(&["firewall", "allow", "5432", "--from", "198.51.100.0/24"])
        .await?
        .expect_code(0)?;
    ensure!(port("5432").await? == [PortState::Silent; 2], "open to others");
    let explained = appliance(&[
        "firewall",
        "explain",
        "tcp",
        "5432",
        "--from",
        "198.51.100.7",
        "--json",
    ])
    .await?
    .expect_code(0)?
    .json()?;
    ensure!(explained["through"] == true, "{explained}");
    let explained = appliance(&["firewall", "explain", "tcp", "5432", "--json"])
        .await?
        .expect_code(0)?
        .json()?;
    ensure!(explained["through"] == false, "{explained}");

    let audit = appliance(&["firewall", "audit", "--json"])
        .await?
        .expect_code(0)?
        .json()?;
    let reach = |port: u16| {
        let ports = audit["report"]["ports"].as_array().into_iter().flatten();
        ports
            .filter(|row| row["port"] == port)
            .filter_map(|row| row["reach"].as_str())
            .collect::<Vec<_>>()
    };
    ensure!(
        reach(7000) == ["everyone"] && reach(7001) == ["nobody outside"],
        "{audit}"
    );
    ensure!(reach(5432) == ["198.51.100.0/24"], "{audit}");
    // What answers from here is what was planned.
    appliance(&["firewall", "audit", "--from-here"])
        .await?
        .expect_code(0)?;

    // What no firewall of this host sees is told.
    world
        .run(&[
            "docker",
            "network",
            "create",
            "--driver=macvlan",
            "--opt=parent=eth0",
            "wire",
        ])
        .await?;
    let audit = appliance(&["firewall", "audit"]).await?.expect_code(0)?;
    let said = format!("{}{}", audit.stdout, audit.stderr);
    ensure!(said.contains("network wire (macvlan)"), "{said}");
    world.run(&["docker", "network", "rm", "wire"]).await?;

    what_answers_is_not_what_was_planned(&world, &target).await?;

    // Who knocks at SSH too fast waits, and nobody else.
    too_fast(&world, &outside).await?;
    appliance(&["firewall", "list"]).await?.expect_code(0)?;

    // A connection that is open goes on when its port is closed, unless it is ended along with it;
    // a neighbour's on a private network is no other.
    let (neighbour, _removal_of_the_neighbour) = world.bench.outside(LAN).await?;
    let lan = on_the_lan(&world).await?;
    const TALK: &str = "import socket, sys\n\
        peer = socket.create_connection((sys.argv[1], 7000), 5)\n\
        peer.settimeout(20)\n\
        try:\n    while True:\n        peer.sendall(b'x')\n        assert peer.recv(1)\n        __import__('time').sleep(0.1)\n\
        except ConnectionResetError:\n    print('reset')\n";
    let mut talking = Vec::new();
    for (talker, host) in [(outside.clone(), v4.to_string()), (neighbour, lan)] {
        talking.push(tokio::spawn(async move {
            talker
                .exec(&Command::new(["python3", "-c", TALK, &host]).timeout(Duration::from_secs(60)))
                .await
        }));
    }
    let script = "until [ $(ss -Htn state established 'sport = :7000' | wc -l) = 2 ]; do read -rt 0.1 <> <(:); done; true";
    let connected = Command::new(["bash", "-c", script]).timeout(Duration::from_secs(20));
    ensure!(world.host.exec(&connected).await?.success(), "nobody connected");
    appliance(&["firewall", "deny", "7000", "--kill"])
        .await?
        .expect_code(0)?;
    for talking in talking {
        let talked = talking.await??;
        ensure!(
            talked.text() == "reset",
            "it went on: {} {}",
            talked.text(),
            talked.error_text()
        );
    }
    ensure!(port("7000").await? == [PortState::Silent; 2], "still open");
    appliance(&["firewall", "deny", "443"])
        .await?
        .expect_error("not by a signed change")?;

    // Every one of them is in the record.
    let audit = appliance(&["audit", "--json"])
        .await?
        .expect_code(0)?
        .json()?
        .to_string();
    for verb in ["firewall-allow", "firewall-confirm", "firewall-deny"] {
        ensure!(audit.contains(verb), "{verb} is not recorded");
    }
    Ok(())
}

/// Somebody in front of the host, or before its rules, sends packets elsewhere: seen from outside alone.
async fn what_answers_is_not_what_was_planned(world: &World, target: &str) -> anyhow::Result<()> {
    const ELSEWHERE: &str = "table inet provider {\n\
        chain in { type filter hook prerouting priority -310; tcp dport 8443 tcp dport set 7000; }\n\
        chain out { type filter hook postrouting priority 310; tcp sport 7000 tcp sport set 8443; }\n}\n";
    let audit = ["firewall", "audit", "--from-here", "--on", target];
    let loaded = Command::new(["nft", "--file", "-"]).stdin(ELSEWHERE);
    ensure!(world.host.exec(&loaded).await?.success(), "nft");
    let told = world.developer.appliance(audit).run().await?.expect_code(1)?;
    for what in [
        "port 8443 is open from here, planned is closed",
        "port 7000 is closed from here, planned is open",
    ] {
        ensure!(told.stderr.contains(what), "not {what}: {}", told.stderr);
    }
    world.run(&["nft", "delete", "table", "inet", "provider"]).await?;
    world
        .developer
        .appliance(audit)
        .run()
        .await?
        .expect_code(0)
        .map(drop)
}

/// Of 45 knocks at once the burst gets through; what the rest met is the table's own limit for that one source.
async fn too_fast(world: &World, outside: &Outside) -> anyhow::Result<()> {
    const HURRY: &str = r#"
import selectors, socket, sys, time
selector, through = selectors.DefaultSelector(), 0
for _ in range(45):
    peer = socket.socket()
    peer.setblocking(False)
    peer.connect_ex((sys.argv[1], 22))
    selector.register(peer, selectors.EVENT_WRITE)
end = time.monotonic() + 30
while through < 30 and time.monotonic() < end:
    for key, _ in selector.select(1):
        through += key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        selector.unregister(key.fileobj)
print(through)
"#;
    let (v4, _) = world.host.addresses().await?;
    let hurry = Command::new(["python3", "-c", HURRY, &v4.to_string()]).timeout(Duration::from_secs(60));
    let hurry = outside.exec(&hurry).await?;
    let through: u32 = hurry.text().parse().with_context(|| hurry.error_text())?;
    ensure!(
        (30..45).contains(&through),
        "{through} of 45 connections got through"
    );
    let refused = ["nft", "list", "counter", "inet", "appliance", "c_ssh_rate"];
    let refused = world.run(&refused).await?;
    ensure!(!refused.contains("packets 0 "), "nobody was limited: {refused}");
    let limited = ["nft", "list", "set", "inet", "appliance", "ssh_rate4"];
    let limited = world.run(&limited).await?;
    let addresses = outside.exec(&Command::new(["hostname", "-i"])).await?.text();
    ensure!(
        addresses
            .split_whitespace()
            .any(|address| limited.contains(address)),
        "{addresses} is not among those who are limited: {limited}"
    );
    Ok(())
}

/// A network between hosts, without a way elsewhere.
const LAN: &str = "appliance-sandbox-lan";

/// Gives the host a second card there; its address.
async fn on_the_lan(world: &World) -> anyhow::Result<String> {
    let name = world.host.name().as_str();
    let format = format!("{{{{(index .NetworkSettings.Networks \"{LAN}\").IPAddress}}}}");
    let mut address = String::new();
    for argv in [
        &["network", "connect", LAN, name][..],
        &["inspect", "--format", &format, name],
    ] {
        let output = tokio::process::Command::new("docker").args(argv).output().await?;
        ensure!(
            output.status.success(),
            "docker {argv:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        address = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    Ok(address)
}
