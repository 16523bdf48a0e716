//! What the doctor finds on a real host: provoked, told with a command, and gone after that very command.

mod machine;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro};
use appliance_tests::receiver::Receiver;
use appliance_tests::{Developer, World, bench};
use serde_json::Value;

use crate::alerts::settings;

/// One finding: its message, its command, and who is to run it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) message: String,
    pub(crate) next: String,
    pub(crate) who: String,
}

/// The findings of this word in a report.
pub(crate) fn findings(report: &Value, id: &str) -> Vec<Found> {
    let hosts = report["hosts"].as_object().into_iter().flatten();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    hosts
        .flat_map(|(_, areas)| areas.as_array().cloned().unwrap_or_default())
        .flat_map(|area| area["findings"].as_array().cloned().unwrap_or_default())
        .filter(|found| found["id"] == id)
        .map(|found| Found {
            message: text(&found["message"]),
            next: text(&found["next"]),
            who: text(&found["who"]),
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

/// Asked on the host: the finding, which has to be there, with a command that can be run as it stands.
pub(crate) async fn found(world: &World, id: &str) -> anyhow::Result<Found> {
    let (status, report) = asked_on_the_host(world).await?;
    ensure!(status == 9, "status {status}: {report}");
    let found = first(&report, id)?;
    runnable(world, &found.next)
        .await
        .with_context(|| format!("{id}: {}", found.next))?;
    Ok(found)
}

pub(crate) fn first(report: &Value, id: &str) -> anyhow::Result<Found> {
    findings(report, id)
        .into_iter()
        .next()
        .with_context(|| format!("{id} is not in {report}"))
}

/// A line for a shell, of programs that a host has.
async fn runnable(world: &World, line: &str) -> anyhow::Result<()> {
    world.run(&["bash", "-n", "-c", line]).await?;
    let words = line.split(" # ").next().unwrap_or_default();
    for program in words
        .split([';', '|'])
        .filter_map(|part| part.split_whitespace().next())
    {
        world
            .run(&["bash", "-c", "command -v \"$1\"", "bash", program])
            .await
            .with_context(|| format!("there is no {program}"))?;
    }
    Ok(())
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

/// A command as it was printed, run where an administrator sits.
pub(crate) async fn run_by(developer: &Developer, line: &str) -> anyhow::Result<()> {
    // Under the name that people type, wherever the one under test lies.
    let directory = developer.home().join("bin");
    fs_err::create_dir_all(&directory)?;
    let program = directory.join("appliance");
    if !program.exists() {
        fs_err::os::unix::fs::symlink(bench::binary()?, &program)?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = developer
        .appliance([""; 0])
        .env("PATH", &format!("{}:{path}", directory.display()))
        .command_of("bash");
    let output = shell.args(["-euc", line]).output().await?;
    ensure!(
        output.status.success(),
        "{line}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Asked by this developer of these hosts, or of those of the configuration: the finding, which has to be there.
async fn found_by(developer: &Developer, on: &[&str], id: &str) -> anyhow::Result<Found> {
    let (code, report) = asked_by(developer, on, &[]).await?;
    ensure!(code == 9, "code {code}: {report}");
    first(&report, id)
}

async fn gone_by(developer: &Developer, on: &[&str], id: &str) -> anyhow::Result<()> {
    let (_, report) = asked_by(developer, on, &[]).await?;
    ensure!(findings(&report, id).is_empty(), "{id}: {report}");
    Ok(())
}

/// Asked on a developer's machine: the exit code, the report.
async fn asked_by(developer: &Developer, on: &[&str], env: &[(&str, &str)]) -> anyhow::Result<(i32, Value)> {
    let on: Vec<String> = on.iter().map(|host| format!("--on={host}")).collect();
    let mut asking = developer.appliance(
        ["doctor", "--json"]
            .into_iter()
            .chain(on.iter().map(String::as_str)),
    );
    for (name, value) in env {
        asking = asking.env(name, value);
    }
    let ran = asking.run().await?;
    Ok((ran.code, ran.json()?))
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
    // The disk is the machine's, which may be fuller than a server should be.
    let webhook = format!("alerts: {{webhooks: ['{}/hook']}}\n", receiver.url(&world).await?);
    let alerts = format!("{webhook}limits: {{disk_free: 1%}}\n");

    // Names. The commands are for whoever owns the zone; the hosts file stands in for it.
    let none = found(&world, "dns-none").await?;
    ensure!(none.next.contains("demo.test"), "{}", none.next);
    ensure!(none.message.contains("A record"), "{}", none.message);
    let name = "printf '%s demo.test\\n' \"$@\" > /tmp/names; sed -i '/demo.test/d' /etc/hosts 2>/dev/null || \
                { grep -v demo.test /etc/hosts > /tmp/hosts; cat /tmp/hosts > /etc/hosts; }; cat /tmp/names >> /etc/hosts";
    world.run(&["bash", "-c", name, "bash", "10.99.0.7"]).await?;
    let elsewhere = found(&world, "dns-elsewhere").await?;
    ensure!(elsewhere.message.contains("10.99.0.7"), "{}", elsewhere.message);
    settings(&world, "dns: {elsewhere: [demo.test]}\n").await?;
    gone(&world, "dns-elsewhere").await?;
    // A host without a public address of its own does not know the one that visitors use.
    settings(&world, "").await?;
    world.run(&["bash", "-c", name, "bash", "203.0.113.7"]).await?;
    gone(&world, "dns-elsewhere").await?;
    world.run(&["bash", "-c", name, "bash", &ip]).await?;
    gone(&world, "dns-elsewhere").await?;
    gone(&world, "dns-none").await?;
    partly(&world, &ip, name).await?;

    let nobody = found(&world, "alerts-nobody").await?;
    ensure!(nobody.message.contains("host.yml"), "{}", nobody.message);
    settings(&world, &alerts).await?;
    gone(&world, "alerts-nobody").await?;

    settings(&world, &format!("{webhook}limits: {{disk_free: 99.9%}}\n")).await?;
    let low = found(&world, "disk-low").await?;
    // It gives up what can be had again; the disk is as full as the limit says.
    world.run(&["bash", "-euc", &low.next]).await?;
    settings(&world, &alerts).await?;
    gone(&world, "disk-low").await?;

    settings(&world, &format!("{alerts}acme: {{emial: ops@shop.io}}\n")).await?;
    let mistake = found(&world, "certificates").await?;
    ensure!(mistake.message.contains("emial"), "{}", mistake.message);
    ensure!(
        mistake.next.starts_with("appliance host audit # "),
        "{}",
        mistake.next
    );
    settings(&world, &alerts).await?;
    gone(&world, "certificates").await?;

    // What the proxy was to serve cannot be read; the copy before can.
    let snapshot = "systemctl stop appliance-proxy; truncate --size=40 /var/lib/appliance-proxy/snapshot.json; systemctl start appliance-proxy";
    world.run(&["bash", "-euc", snapshot]).await?;
    found_in_time(&world, "proxy").await?;
    mended_in_time(&world, "proxy").await?;

    machine::each(&world, &alerts).await?;

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
    // Which only somebody else's machine can make.
    ensure!(pending.who == "over a new connection", "{}", pending.who);
    run_by(&world.developer, &pending.next).await?;
    gone(&world, "firewall-pending").await?;

    // Another file in the place of the program: what runs is of an installation before.
    let other = "cp /usr/local/bin/appliance /usr/local/bin/.other; mv /usr/local/bin/.other /usr/local/bin/appliance";
    world.run(&["bash", "-euc", other]).await?;
    found(&world, "proxy-old").await?;
    mended(&world, "agent-old").await?;
    world.ready().await?;
    mended_in_time(&world, "proxy-old").await?;

    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    let away = found_by(&world.developer, &[], "agent-away").await?;
    ensure!(away.who == "on the host", "{}", away.who);
    mended(&world, "agent-away").await?;
    gone_by(&world.developer, &[], "agent-away").await?;

    // From the developer's machine.
    let skewed = asked_by(
        &world.developer,
        &[],
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
    gone_by(&world.developer, &[], "clock-skew").await?;
    let sockets = ["appliance-proxy-http.socket", "appliance-proxy-https.socket"];
    world
        .run(&[&["systemctl", "stop"], &sockets[..], &["appliance-proxy"]].concat())
        .await?;
    mended_from_elsewhere(&world, "port-shut").await?;
    world.run(&["systemctl", "stop", "ssh.service"]).await?;
    mended_from_elsewhere(&world, "unreachable").await?;
    strangers(&world).await?;
    keyless(&world).await?;

    world.run(&["touch", "/run/reboot-required"]).await?;
    let reboot = found(&world, "reboot").await?;
    ensure!(reboot.next == "systemctl reboot", "{}", reboot.next);
    world.host.reboot().await?;
    world.ready().await?;
    gone(&world, "reboot").await
}

/// As [`mended`], for what is only seen from elsewhere and mended on the host.
async fn mended_from_elsewhere(world: &World, id: &str) -> anyhow::Result<()> {
    let found = found_by(&world.developer, &[], id).await?;
    ensure!(found.who.starts_with("on the host"), "{id}: {}", found.who);
    world.run(&["bash", "-euc", &found.next]).await?;
    gone_by(&world.developer, &[], id).await
}

/// A name that leads here and elsewhere too, for who reaches the host by its address; `name` writes the hosts file.
async fn partly(world: &World, ip: &str, name: &str) -> anyhow::Result<()> {
    let home = world.developer.home().join(".ssh");
    for (file, mode) in [("id_ed25519", 0o600), ("known_hosts", 0o644)] {
        let content = fs_err::read(home.join(file))?;
        world
            .host
            .copy_in(&format!("/root/.ssh/{file}"), content, mode)
            .await?;
    }
    let on = format!("deploy@{ip}");
    let ask = async || -> anyhow::Result<Value> {
        let ask = Command::new(["appliance", "doctor", "--json", "--on", &on]).env("HOME", "/root");
        let output = world.host.exec(&ask).await?;
        serde_json::from_str(&output.text()).with_context(|| output.error_text())
    };
    let elsewhere = "10.99.0.7 demo.test\n";
    let both = format!("{name}; printf '%s' '{elsewhere}' >> /etc/hosts");
    world.run(&["bash", "-c", &both, "bash", ip]).await?;
    let partly = first(&ask().await?, "dns-partly")?;
    ensure!(partly.message.contains("10.99.0.7"), "{}", partly.message);
    world.run(&["bash", "-euc", &partly.next]).await?;
    // As it says: what is wrong goes from the zone.
    world.run(&["bash", "-c", name, "bash", ip]).await?;
    let report = ask().await?;
    ensure!(findings(&report, "dns-partly").is_empty(), "{report}");
    world.run(&["rm", "/root/.ssh/id_ed25519"]).await.map(drop)
}

/// A key that opens the door and signs nothing: RSA, which only ssh-agent holds.
async fn keyless(world: &World) -> anyhow::Result<()> {
    let keyless = Developer::new().await?;
    keyless.know(world).await?;
    let (home, run) = (keyless.home().join(".ssh"), std::process::Stdio::null);
    for name in ["id_ed25519", "id_ed25519.pub"] {
        fs_err::remove_file(home.join(name))?;
    }
    let key = home.join("other");
    let made = tokio::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "3072", "-N", "", "-f"])
        .arg(&key)
        .stdin(run())
        .status();
    ensure!(made.await?.success(), "ssh-keygen");
    let socket = home.join("agent");
    let mut agent = tokio::process::Command::new("ssh-agent")
        .args(["-D", "-a"])
        .arg(&socket)
        .stdin(run())
        .stdout(run())
        .kill_on_drop(true)
        .spawn()?;
    let added = async || {
        let add = tokio::process::Command::new("ssh-add")
            .arg(&key)
            .env("SSH_AUTH_SOCK", &socket)
            .stdin(run())
            .stderr(run())
            .status();
        add.await.is_ok_and(|status| status.success())
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !added().await {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "ssh-agent does not answer"
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let public = fs_err::read_to_string(key.with_extension("pub"))?;
    let allow = "umask 077; printf '%s\\n' \"$1\" >> /root/.ssh/authorized_keys";
    world.run(&["bash", "-euc", allow, "bash", public.trim()]).await?;
    let root = format!("root@{}", world.ip().await?);
    let socket = socket.display().to_string();
    let ask = async || asked_by(&keyless, &[&root], &[("SSH_AUTH_SOCK", &socket)]).await;
    let (code, report) = ask().await?;
    ensure!(code == 9, "code {code}: {report}");
    let found = first(&report, "no-key")?;
    // Without a terminal, where it would ask for a passphrase.
    run_by(&keyless, &format!("setsid --wait {}", found.next)).await?;
    let (_, report) = ask().await?;
    ensure!(findings(&report, "no-key").is_empty(), "{report}");
    // Which nobody enrolled yet, and that is told with the line that does.
    first(&report, "unknown-key")?;
    agent.kill().await.map_err(Into::into)
}

/// Keys that open the door, and may do too little behind it: an administrator runs what they are shown.
async fn strangers(world: &World) -> anyhow::Result<()> {
    let stranger = Developer::new().await?;
    stranger.know(world).await?;
    let key = stranger.public_key().context("has a key")?.to_owned();
    let ip = world.ip().await?;
    let (root, deploy) = (format!("root@{ip}"), format!("deploy@{ip}"));
    let allow = "umask 077; printf '%s\\n' \"$1\" >> /root/.ssh/authorized_keys";
    world.run(&["bash", "-euc", allow, "bash", &key]).await?;
    let mended = async |on: &str, id: &str| -> anyhow::Result<()> {
        let found = found_by(&stranger, &[on], id).await?;
        ensure!(found.who == "an administrator", "{id}: {}", found.who);
        run_by(&world.developer, &found.next)
            .await
            .with_context(|| id.to_owned())?;
        gone_by(&stranger, &[on], id).await
    };
    mended(&root, "unknown-key").await?;
    let may = async |permission: [&str; 2]| -> anyhow::Result<()> {
        let add = ["keys", "add", &key, permission[0], permission[1]];
        world
            .developer
            .appliance(add)
            .run()
            .await?
            .expect_code(0)
            .map(drop)
    };
    may(["--read", "*"]).await?;
    mended(&root, "only-looks").await?;
    may(["--deploy", "demo"]).await?;
    mended(&deploy, "not-examined").await
}

/// As [`found`], for what the agent sees a moment after its start.
pub(crate) async fn found_in_time(world: &World, id: &str) -> anyhow::Result<Found> {
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
pub(crate) async fn mended_in_time(world: &World, id: &str) -> anyhow::Result<()> {
    let found = found(world, id).await?;
    world.run(&["bash", "-euc", &found.next]).await?;
    gone_in_time(world, id).await
}

/// As [`gone`], for what passes.
pub(crate) async fn gone_in_time(world: &World, id: &str) -> anyhow::Result<()> {
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
