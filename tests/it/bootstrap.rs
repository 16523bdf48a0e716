//! Bare hosts become appliances: from nothing, again, cut off anywhere, and not at all where they should not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Output};
use appliance_tests::World;
use appliance_tests::world::DOWNLOADED;

/// The promise of the README, besides package downloads; the packages are in the test host's own cache.
const FIRST_RUN: Duration = Duration::from_secs(90);
const SECOND_RUN: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_bare_debian_12_host_becomes_an_appliance_once() -> anyhow::Result<()> {
    once(Distro::Debian12).await
}

#[tokio::test]
async fn a_bare_debian_13_host_becomes_an_appliance_once() -> anyhow::Result<()> {
    once(Distro::Debian13).await
}

async fn once(distro: Distro) -> anyhow::Result<()> {
    let world = World::bare("bootstrap", distro).await?;
    untouched_by(&world, &["--dry-run"], 0).await?;

    let begun = Instant::now();
    let first = world.bootstrap().await?;
    ensure!(
        begun.elapsed() < FIRST_RUN,
        "the first run took {:?}",
        begun.elapsed()
    );
    ensure!(
        first.text().ends_with(" changes") && first.text() != "0 changes",
        "{}",
        first.text()
    );
    appliance(&world).await?;

    let begun = Instant::now();
    let second = world.bootstrap().await?;
    ensure!(
        second.text() == "0 changes",
        "{}\n{}",
        second.text(),
        second.error_text()
    );
    ensure!(
        begun.elapsed() < SECOND_RUN,
        "the second run took {:?}",
        begun.elapsed()
    );

    world.host.reboot().await?;
    world.ready().await?;
    ensure!(world.bootstrap().await?.text() == "0 changes", "after a reboot");
    Ok(())
}

/// What an administrator would check by hand.
async fn appliance(world: &World) -> anyhow::Result<()> {
    for unit in [
        "docker.service",
        "appliance-firewall.service",
        "appliance-proxy-http.socket",
        "appliance-proxy-https.socket",
        "appliance-proxy.service",
        "appliance-agent.service",
    ] {
        for (verb, expect) in [("is-enabled", "enabled"), ("is-active", "active")] {
            let state = world.run(&["systemctl", verb, unit]).await?;
            ensure!(state == expect, "{unit} is {state}");
        }
    }
    for (path, expect) in [
        ("/etc/appliance/host.key", "600 root root"),
        ("/etc/appliance/keys.d/bootstrap.json", "600 root root"),
        ("/var/lib/appliance", "700 root root"),
        ("/home/deploy/.ssh", "700 deploy deploy"),
        ("/home/deploy/.ssh/authorized_keys", "600 deploy deploy"),
        ("/run/appliance", "755 root root"),
        ("/run/appliance/agent.sock", "660 root appliance"),
    ] {
        let rights = world.run(&["stat", "--format=%a %U %G", path]).await?;
        ensure!(rights == expect, "{path} is {rights}, not {expect}");
    }
    ensure!(world.run(&["id", "--name", "--groups", "deploy"]).await? == "deploy appliance");
    let shadow = world.run(&["getent", "shadow", "deploy"]).await?;
    ensure!(
        shadow.starts_with("deploy:*:"),
        "the deploy user has a password field of {shadow}"
    );
    let identity = world
        .run(&["grep", "--count", "^AGE-SECRET-KEY-1", "/etc/appliance/host.key"])
        .await?;
    ensure!(identity == "1", "{identity} identities");
    let driver = world
        .run(&[
            "docker",
            "info",
            "--format",
            "{{.LoggingDriver}} {{.LiveRestoreEnabled}}",
        ])
        .await?;
    ensure!(driver == "local true", "{driver}");
    let journal = world
        .run(&["systemd-analyze", "cat-config", "systemd/journald.conf"])
        .await?;
    ensure!(journal.contains("SystemMaxUse="), "{journal}");
    ensure!(
        world
            .run(&["systemctl", "--failed", "--plain", "--no-legend"])
            .await?
            .is_empty()
    );
    ensure!(
        world
            .run(&["appliance", "firewall", "status"])
            .await?
            .contains("confirmed")
    );
    // Every item holds, by effect and not by text.
    let audit = world
        .host
        .exec(&Command::new(["appliance", "host", "audit", "--allow-container"]))
        .await?;
    ensure!(audit.success(), "{}", audit.text());
    for (setting, expect) in [
        ("passwordauthentication", "no"),
        ("permitrootlogin", "without-password"),
        ("maxauthtries", "6"),
        ("allowagentforwarding", "no"),
    ] {
        let effective = world.run(&["sshd", "-T"]).await?;
        ensure!(
            effective
                .lines()
                .any(|line| line == format!("{setting} {expect}")),
            "{setting} is not {expect}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn the_deploy_users_door_leads_to_the_agent_and_nowhere_else() -> anyhow::Result<()> {
    let world = World::bootstrapped("door", Distro::Debian13).await?;
    let address = world.ip().await?.to_string();
    let ssh = async |user: &str, extra: &[&str], command: &str| -> anyhow::Result<(bool, String, String)> {
        let home = world.developer.home();
        let output = tokio::process::Command::new("ssh")
            .args([
                "-F",
                "none",
                "-o",
                "BatchMode=yes",
                "-o",
                "IdentitiesOnly=yes",
                "-o",
                "StrictHostKeyChecking=yes",
            ])
            .arg("-o")
            .arg(format!(
                "UserKnownHostsFile={}",
                home.join(".ssh/known_hosts").display()
            ))
            .arg("-i")
            .arg(home.join(".ssh/id_ed25519"))
            .args(extra)
            .args(["-l", user, &address, command])
            .env_remove("SSH_AUTH_SOCK")
            .stdin(std::process::Stdio::null())
            .output()
            .await
            .context("cannot run ssh")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        ))
    };
    let (_, said, _) = ssh("deploy", &[], "echo I am in").await?;
    ensure!(
        !said.contains("I am in"),
        "the forced command let another one through: {said}"
    );
    let (forwarded, _, why) = ssh(
        "deploy",
        &["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"],
        "true",
    )
    .await?;
    ensure!(!forwarded, "a developer's key may forward ports: {why}");
    let (_, said, _) = ssh("root", &[], "echo I am in").await?;
    ensure!(said == "I am in\n", "the administrator is locked out");
    let without_key = [
        "-o",
        "PubkeyAuthentication=no",
        "-o",
        "PreferredAuthentications=password,keyboard-interactive",
    ];
    let (_, _, why) = ssh("root", &without_key, "true").await?;
    ensure!(
        why.contains("Permission denied (publickey)"),
        "passwords are still asked for: {why}"
    );
    Ok(())
}

#[tokio::test]
async fn a_run_killed_at_every_step_ends_where_an_undisturbed_one_does() -> anyhow::Result<()> {
    let world = World::bare("killed", Distro::Debian12).await?;
    let key = world.developer.public_key().context("has a key")?.to_owned();
    let undisturbed = World::bare("undisturbed", Distro::Debian12).await?;
    // Each host was given a key of its own when it was started; here both shall begin alike.
    let keys = world.host.read("/root/.ssh/authorized_keys").await?;
    undisturbed
        .host
        .copy_in("/root/.ssh/authorized_keys", keys, 0o600)
        .await?;
    let arguments = |key: &str| {
        [
            "bootstrap",
            "--allow-container",
            "--admin-key",
            key,
            "--deploy-key",
            key,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let run = Command::new([vec![DOWNLOADED.to_owned()], arguments(&key)].concat())
        .timeout(Duration::from_secs(300));
    let whole = undisturbed.host.exec(&run).await?;
    ensure!(whole.success(), "{}", whole.error_text());

    // Killed as soon as it said that one more step is done: at that moment the next one has begun.
    let script = "coproc RUN { exec \"$0\" \"$@\" 2>&1; }\n\
                  while read -r line <&\"${RUN[0]}\"; do\n\
                    case $line in\n\
                      ✓*) kill -KILL \"$RUN_PID\"; echo killed; exit;;\n\
                      *' changes'|'1 change') echo \"$line\";;\n\
                    esac\n\
                  done";
    let mut killed = 0;
    loop {
        let argv = [
            vec![
                "bash".to_owned(),
                "-c".to_owned(),
                script.to_owned(),
                DOWNLOADED.to_owned(),
            ],
            arguments(&key),
        ];
        let output = world
            .host
            .exec(&Command::new(argv.concat()).timeout(Duration::from_secs(300)))
            .await?;
        if output.text() != "killed" {
            ensure!(
                output.text() == "0 changes",
                "{}\n{}",
                output.text(),
                output.error_text()
            );
            break;
        }
        killed += 1;
        ensure!(killed < 100, "it does not get on");
    }
    ensure!(killed > 15, "only {killed} steps");
    ensure!(
        !world
            .run(&["cat", "/var/lib/appliance/bootstrap/journal.json"])
            .await?
            .contains("\"step\": \"")
    );
    appliance(&world).await?;
    let (one, other) = (manifest(&world).await?, manifest(&undisturbed).await?);
    ensure!(one == other, "they differ:\n{}", differences(&one, &other));
    Ok(())
}

#[tokio::test]
async fn a_run_killed_while_packages_are_installed_is_finished_by_the_next() -> anyhow::Result<()> {
    let world = World::bare("apt", Distro::Debian13).await?;
    // The moment dpkg unpacks the engine; killed with everything it started, as when the machine loses its power.
    let script = "\"$0\" \"$@\" & run=$!\n\
                  until [ -e /usr/sbin/dockerd ]; do kill -0 $run || exit 1; read -rt 0.02 <> <(:); done\n\
                  kill -KILL $run; pkill -KILL -x apt-get; pkill -KILL -x dpkg; wait; echo killed";
    let key = world.developer.public_key().context("has a key")?;
    let argv = [
        "bash",
        "-c",
        script,
        DOWNLOADED,
        "bootstrap",
        "--allow-container",
        "--admin-key",
        key,
        "--deploy-key",
        key,
    ];
    let output = world
        .host
        .exec(&Command::new(argv).timeout(Duration::from_secs(180)))
        .await?;
    ensure!(
        output.text().ends_with("killed"),
        "{}\n{}",
        output.text(),
        output.error_text()
    );
    world.bootstrap().await?;
    appliance(&world).await?;
    ensure!(world.run(&["dpkg", "--audit"]).await?.is_empty());
    ensure!(world.bootstrap().await?.text() == "0 changes");
    Ok(())
}

#[tokio::test]
async fn what_is_not_supported_is_refused_and_left_as_it_is() -> anyhow::Result<()> {
    let world = World::bare("refused", Distro::Debian12).await?;
    let release = String::from_utf8_lossy(&world.host.read("/etc/os-release").await?).into_owned();

    world
        .host
        .copy_in("/etc/os-release", release.replace("\"12\"", "\"11\""), 0o644)
        .await?;
    let output = untouched_by(&world, &[], 6).await?;
    ensure!(
        output.error_text().contains("supported are Debian 12 and 13"),
        "{}",
        output.error_text()
    );
    world.host.copy_in("/etc/os-release", release, 0o644).await?;

    // The developer's key is there, only the permission to be a container is not.
    let key = world.developer.public_key().context("has a key")?;
    let plain = Command::new([DOWNLOADED, "bootstrap", "--admin-key", key]);
    let output = world.host.exec(&plain).await?;
    ensure!(
        output.status == 6 && output.error_text().contains("container"),
        "{}",
        output.error_text()
    );

    let keyless = Command::new([DOWNLOADED, "bootstrap", "--allow-container"]);
    let output = world.host.exec(&keyless).await?;
    ensure!(
        output.status == 2 && output.error_text().contains("--admin-key"),
        "{}",
        output.error_text()
    );

    let output = untouched_by(&world, &["--admin-key", "ssh-dss AAAA old"], 2).await?;
    ensure!(
        output.error_text().contains("ssh-keygen -t ed25519"),
        "{}",
        output.error_text()
    );

    world
        .host
        .copy_in("/etc/docker/daemon.json", "{ \"dns\": ", 0o644)
        .await?;
    let output = untouched_by(&world, &[], 2).await?;
    ensure!(
        output
            .error_text()
            .contains("/etc/docker/daemon.json is not JSON"),
        "{}",
        output.error_text()
    );
    world.run(&["rm", "--recursive", "/etc/docker"]).await?;

    // Each mistake in host.yml gets one clear error, and nothing is touched.
    let bad = [
        ("admin: []", "unknown key: admin"),
        ("admins: [{name: ann, keys: []}]", "at least 1 entry"),
        ("admins: [{name: ann, keys: [nonsense]}]", "not a public key"),
        ("ssh: {port: 99999}", "at most 65535"),
        ("firewall: {mode: iptables}", "none of: own, ufw, off"),
        ("firewall: {open: [{port: http}]}", "is not a port"),
        (
            "firewall: {open: [{port: 80, from: [10.0.0.1/8]}]}",
            "bits beyond its prefix",
        ),
        ("firewall: {open: [{port: 5432}]}", "is a data store's"),
        ("swap: lots", "is not a size"),
        ("updates: {reboot_at: noon}", "should match"),
        ("ssh: {port: [", "host.yml:"),
        ("hardening: {items: {firewall: false}}", "cannot be switched off"),
        ("hardening: {items: {typo: true}}", "there is no item typo"),
    ];
    for (number, (text, _)) in bad.iter().enumerate() {
        let path = format!("/root/{number}/host.yml");
        world.host.copy_in(&path, format!("{text}\n"), 0o644).await?;
    }
    let before = snapshot(&world).await?;
    for (number, (text, expect)) in bad.iter().enumerate() {
        let path = format!("/root/{number}/host.yml");
        let output = world.bootstrap_with(&["--host-yml", &path]).await?;
        let said = output.error_text();
        ensure!(
            output.status == 2 && said.contains(expect),
            "{text}: {}: {said}",
            output.status
        );
        ensure!(said.matches("error:").count() == 1, "{text}: {said}");
    }
    ensure!(
        before == snapshot(&world).await?,
        "a bad host.yml touched something"
    );

    // A web server on port 80.
    world
        .run(&[
            "systemd-run",
            "--collect",
            "--unit=squatter",
            "systemd-socket-activate",
            "--listen=80",
            "cat",
        ])
        .await?;
    let output = untouched_by(&world, &[], 6).await?;
    ensure!(
        output
            .error_text()
            .contains("port 80 is in use by systemd-socket"),
        "{}",
        output.error_text()
    );
    world.run(&["systemctl", "stop", "squatter"]).await?;
    Ok(())
}

#[tokio::test]
async fn agent_and_proxy_start_without_docker() -> anyhow::Result<()> {
    let world = World::bootstrapped("dockerless", Distro::Debian12).await?;
    world
        .run(&["systemctl", "stop", "docker.socket", "docker.service"])
        .await?;
    world
        .run(&[
            "systemctl",
            "restart",
            "appliance-agent.service",
            "appliance-proxy.service",
        ])
        .await?;
    for unit in ["appliance-agent.service", "appliance-proxy.service"] {
        ensure!(
            world.run(&["systemctl", "is-active", unit]).await? == "active",
            "{unit}"
        );
    }
    let docker = world
        .host
        .exec(&Command::new(["systemctl", "is-active", "docker.service"]))
        .await?;
    ensure!(
        docker.text() == "inactive",
        "somebody started Docker: {}",
        docker.text()
    );
    Ok(())
}

/// Runs bootstrap, which must end with this status and leave every file, account and rule as it was.
async fn untouched_by(world: &World, more: &[&str], status: i64) -> anyhow::Result<Output> {
    let before = snapshot(world).await?;
    let output = world.bootstrap_with(more).await?;
    ensure!(
        output.status == status,
        "status {}: {}",
        output.status,
        output.error_text()
    );
    let after = snapshot(world).await?;
    ensure!(
        before == after,
        "it touched something:\n{}",
        differences(&before, &after)
    );
    Ok(output)
}

/// Every file of the host with its times, but logs and what a reboot forgets; and the kernel's rules.
async fn snapshot(world: &World) -> anyhow::Result<String> {
    let files = world
        .run(&[
            "find",
            "/",
            "-xdev",
            "(",
            "-path",
            "/var/log",
            "-o",
            "-path",
            "/run",
            "-o",
            "-path",
            "/tmp",
            ")",
            "-prune",
            "-o",
            "-printf",
            "%p %m %u %g %s %C@\n",
        ])
        .await?;
    let rules = world.run(&["nft", "--stateless", "list", "ruleset"]).await?;
    Ok(format!("{files}\n{rules}"))
}

/// Everything bootstrap is responsible for, without what is different on each host by design.
async fn manifest(world: &World) -> anyhow::Result<String> {
    let places = [
        "/etc/appliance",
        "/etc/docker",
        "/etc/logrotate.d",
        "/etc/ssh/sshd_config.d",
        "/etc/systemd",
        "/etc/sysusers.d",
        "/etc/tmpfiles.d",
        "/home/deploy",
        "/root/.ssh",
        "/usr/local/bin",
        "/var/lib/appliance/fw",
    ];
    let modes = world
        .run(&[&["find"][..], &places, &["-printf", "%p %y %m %u %g\n"]].concat())
        .await?;
    let files: Vec<String> = modes
        .lines()
        .filter(|line| line.contains(" f "))
        .filter_map(|line| line.split(' ').next())
        .filter(|path| !matches!(*path, "/etc/appliance/host.key" | "/etc/docker/key.json"))
        .map(str::to_owned)
        .collect();
    let sums = world
        .host
        .run(["sha256sum".to_owned()].into_iter().chain(files))
        .await?
        .text();
    let rules = world
        .run(&["nft", "--stateless", "list", "table", "inet", "appliance"])
        .await?;
    let packages = world
        .run(&[
            "dpkg-query",
            "--show",
            "--showformat=${Package} ${db:Status-Status}\n",
        ])
        .await?;
    let accounts = world
        .run(&["getent", "passwd", "deploy", "appliance-proxy"])
        .await?;
    let mut lines: Vec<&str> = modes
        .lines()
        .chain(sums.lines())
        .chain(packages.lines())
        .collect();
    lines.sort_unstable();
    Ok(format!("{}\n{accounts}\n{rules}", lines.join("\n")))
}

fn differences(one: &str, other: &str) -> String {
    let only = |a: &str, b: &str, sign: char| -> Vec<String> {
        let known: std::collections::HashSet<&str> = b.lines().collect();
        a.lines()
            .filter(|line| !known.contains(line))
            .take(20)
            .map(|line| format!("{sign} {line}"))
            .collect()
    };
    [only(one, other, '-'), only(other, one, '+')].concat().join("\n")
}
