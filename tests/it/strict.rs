//! A host with the profile strict, at work: keys, deploys under load, a database and its backups, limits of our units,
//! mail and logs of others, and the way back from an item.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image};
use appliance_tests::World;
use appliance_tests::developer::Ran;
use appliance_tests::load::{Load, Shape};

use crate::accessories::carry_in;
use crate::hardening::connected;

/// Exposure of our units as `systemd-analyze security` counts it, at most (lower is better).
const EXPOSURE: [(&str, f64); 3] = [
    ("appliance-proxy.service", 2.0),
    ("appliance-agent.service", 3.0),
    ("appliance-firewall.service", 2.0),
];
/// Items of CIS Docker that hold on every host; those of the audit log need a kernel of one's own.
const CIS_DOCKER: [&str; 23] = [
    "D2.2", "D2.8", "D2.13", "D2.14", "D2.15", "D3.1", "D3.2", "D3.3", "D3.4", "D3.5", "D3.6", "D3.7",
    "D3.8", "D3.15", "D3.16", "D3.17", "D3.18", "D3.19", "D3.20", "D3.23", "D3.24", "D5.2", "D5.14",
];
/// Downloads packages that no test host has.
const SLOW: Duration = Duration::from_secs(500);

#[tokio::test]
async fn a_strict_host_deploys_serves_keeps_a_database_and_takes_items_back() -> anyhow::Result<()> {
    let world = World::bootstrapped("strict", Distro::Debian13).await?;
    whoever_has_many_keys_gets_in(&world).await?;

    // A mail server that came along, open to everyone until it is told otherwise.
    let postfix = Command::new(["apt-get", "install", "--yes", "--quiet=2", "postfix"]).timeout(SLOW);
    let installed = world.host.exec(&postfix).await?;
    ensure!(installed.success(), "{}", installed.error_text());
    let listens = async || world.run(&["ss", "-Hltn", "sport = :25"]).await;
    ensure!(
        listens().await?.contains("0.0.0.0:25"),
        "it was never open: {}",
        listens().await?
    );
    // AIDE looks at every file of the host for minutes; `cargo xtask score` has it on.
    let strict =
        "hardening: {profile: strict, items: {aide: false}}\nlogs: {ship_to: 'http://127.0.0.1:19532'}\n";
    let applied = host_yml(&world, strict).await?;
    ensure!(effective(&world, "maxauthtries").await? == "4", "{applied}");
    let after = listens().await?;
    ensure!(
        !after.contains("0.0.0.0:25") && after.contains("127.0.0.1:25"),
        "{after}"
    );
    logs_leave(&world).await?;
    cis_docker(&world).await?;

    works(&world).await?;
    told(&world).await?;

    // Items are taken back one by one, and come again.
    for (item, gone) in [
        ("shell-timeout", "/etc/profile.d/50-appliance-timeout.sh"),
        ("sysctl-martians", "/etc/sysctl.d/60-appliance-martians.conf"),
        ("core-dumps", "/etc/security/limits.d/50-appliance.conf"),
    ] {
        host(&world, &["rollback", item]).await?.expect_code(0)?;
        let there = world.host.exec(&Command::new(["test", "-e", gone])).await?;
        ensure!(!there.success(), "{item} left {gone}");
    }
    host(&world, &["rollback", "login-defs"]).await?.expect_code(0)?;
    let umask = world.run(&["cat", "/etc/login.defs"]).await?;
    ensure!(
        !umask
            .lines()
            .any(|line| line.starts_with("UMASK") && line.contains("027")),
        "it was not taken back"
    );
    let failing = host(&world, &["audit", "--json"]).await?.expect_code(1)?.json()?;
    ensure!(failing["failing"] == 4, "{failing}");
    // Of sshd's settings only once somebody came in with them: somebody new, who has logged in.
    let address = world.ip().await?.to_string();
    let before = connected(&world, &address).await?;
    let undo = ["appliance", "host", "rollback", "ssh", "--allow-container"];
    let undone = world.host.exec(&Command::new(undo)).await?;
    ensure!(
        undone.error_text().contains("host confirm"),
        "{}",
        undone.error_text()
    );
    let timer = ["systemctl", "is-active", "appliance-ssh-revert.timer"];
    ensure!(world.run(&timer).await? == "active", "no timer was armed");
    ensure!(effective(&world, "maxauthtries").await? == "6");
    let stranger = tokio::net::TcpStream::connect((address.as_str(), 22)).await?;
    let alone = world
        .host
        .exec(&Command::new(["appliance", "host", "confirm"]))
        .await?;
    ensure!(!alone.success(), "a stranger at the door confirms it");
    drop(stranger);
    host(&world, &["confirm"]).await?.expect_code(0)?;
    let stopped = world.host.exec(&Command::new(timer)).await?;
    ensure!(!stopped.success(), "the timer still runs");
    drop(before);
    host(&world, &["apply"]).await?.expect_code(0)?;
    host(&world, &["audit"]).await?.expect_code(0)?;
    ensure!(effective(&world, "maxauthtries").await? == "4");
    let served = world.https("demo.test", "/").await?.get().await?;
    ensure!(served.version() == Some("v2"), "{:?}", served.version());
    Ok(())
}

async fn host(world: &World, words: &[&str]) -> anyhow::Result<Ran> {
    let target = format!("deploy@{}", world.ip().await?);
    let mut argv = [&["host"], words, &["--on", &target]].concat();
    if words != ["confirm"] {
        argv.push("--allow-container");
    }
    world.developer.appliance(argv).limit(SLOW).run().await
}

/// Applies a `host.yml` from elsewhere; what has to be confirmed is, over a new connection.
async fn host_yml(world: &World, text: &str) -> anyhow::Result<String> {
    let path = world.developer.home().join("host.yml");
    fs_err::write(&path, text)?;
    let path = path.display().to_string();
    let ran = host(world, &["apply", "--host-yml", &path]).await?;
    Ok(ran.expect_code(0)?.stderr)
}

async fn effective(world: &World, keyword: &str) -> anyhow::Result<String> {
    let all = world.run(&["sshd", "-T"]).await?;
    let found = all
        .lines()
        .find_map(|line| line.strip_prefix(keyword)?.strip_prefix(' '));
    Ok(found
        .with_context(|| format!("sshd says nothing of {keyword}"))?
        .to_owned())
}

/// Five keys that do not fit and then the right one, and five attempts with a wrong one: nobody is kept out for that.
async fn whoever_has_many_keys_gets_in(world: &World) -> anyhow::Result<()> {
    let home = world.developer.home();
    let mut wrong = Vec::new();
    for number in 0..5 {
        let key = home.join(format!("wrong-{number}"));
        let made = tokio::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(&key)
            .status()
            .await?;
        ensure!(made.success(), "ssh-keygen");
        wrong.push(key);
    }
    let right = home.join(".ssh/id_ed25519");
    let address = world.ip().await?.to_string();
    let login = async |keys: &[&Path]| -> anyhow::Result<std::process::Output> {
        let mut ssh = tokio::process::Command::new("ssh");
        ssh.args([
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "ConnectTimeout=10",
        ])
        .arg("-o")
        .arg(format!(
            "UserKnownHostsFile={}",
            home.join(".ssh/known_hosts").display()
        ))
        .env_remove("SSH_AUTH_SOCK")
        .stdin(Stdio::null());
        for key in keys {
            ssh.arg("-i").arg(key);
        }
        Ok(ssh.args(["-l", "root", &address, "echo in"]).output().await?)
    };
    let all: Vec<&Path> = wrong.iter().chain([&right]).map(PathBuf::as_path).collect();
    let came = login(&all).await?;
    ensure!(
        came.stdout == b"in\n",
        "{}",
        String::from_utf8_lossy(&came.stderr)
    );
    for _ in 0..5 {
        ensure!(
            login(&[&wrong[0]]).await?.stdout.is_empty(),
            "a wrong key opens the door"
        );
    }
    let came = login(&[&right]).await?;
    ensure!(
        came.stdout == b"in\n",
        "five mistakes keep somebody out: {}",
        String::from_utf8_lossy(&came.stderr)
    );
    Ok(())
}

/// What the journal says arrives elsewhere, also what it said while nobody was there to take it.
async fn logs_leave(world: &World) -> anyhow::Result<()> {
    world
        .run(&["logger", "--tag", "parcel", "said before anybody listened"])
        .await?;
    world.run(&["mkdir", "--parents", "/var/log/elsewhere"]).await?;
    world
        .run(&[
            "systemd-run",
            "--collect",
            "--unit=elsewhere",
            "/usr/lib/systemd/systemd-journal-remote",
            "--listen-http=127.0.0.1:19532",
            "--output=/var/log/elsewhere/all.journal",
            "--split-mode=none",
        ])
        .await?;
    let script = "until journalctl --directory /var/log/elsewhere --identifier parcel --output cat 2>/dev/null | grep --quiet 'said before'; \
                  do read -rt 0.5 <> <(:); done; true";
    let arrived = Command::new(["bash", "-c", script]).timeout(Duration::from_secs(90));
    let arrived = world.host.exec(&arrived).await;
    ensure!(
        arrived.is_ok_and(|output| output.success()),
        "nothing arrived: {}",
        world
            .run(&[
                "journalctl",
                "--no-pager",
                "--lines=20",
                "--unit=systemd-journal-upload"
            ])
            .await?
    );
    Ok(())
}

/// A release, a database, its backup, and a second release under load, with the units measured meanwhile.
async fn works(world: &World) -> anyhow::Result<()> {
    let (bench, developer) = (&world.bench, &world.developer);
    carry_in(
        bench,
        world,
        &Image::Postgres(Distro::Debian13),
        "postgres-test:17",
    )
    .await?;
    let more = format!(
        "accessories:\n  db:\n    image: postgres-test:17\n    host: {}\n\
         \x20   env: {{clear: {{POSTGRES_PASSWORD: secret, POSTGRES_DB: shop}}}}\n\
         \x20   directories: ['data:/var/lib/postgresql/data']\n\
         x-appliance:\n  watch: false\n  backups:\n    db: {{kind: postgres, to: \"file:///var/backups/db\"}}\n",
        world.ip().await?
    );
    let push = async |version: &str| -> anyhow::Result<Ran> {
        developer.demo_app(version, world, &more).await?;
        let ran = developer.appliance(["push", "--version", version]).run().await?;
        ran.expect_code(0)
    };
    push("v1").await?;
    developer
        .appliance(["accessory", "boot", "db"])
        .run()
        .await?
        .expect_code(0)?;
    let fill = "until docker exec demo-db psql -qh 127.0.0.1 -U postgres -d shop \
                -c 'CREATE TABLE orders AS SELECT generate_series(1, 500) AS n' 2>/dev/null; do read -rt 0.3 <> <(:); done; true";
    let filled = Command::new(["bash", "-c", fill]).timeout(Duration::from_secs(60));
    ensure!(
        world.host.exec(&filled).await?.success(),
        "the database does not start"
    );
    let backed_up = developer
        .appliance(["backup", "now", "db"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(
        backed_up.stderr.contains("500 rows in 1 tables equal"),
        "{}",
        backed_up.stderr
    );

    let mut load = Load::start(&world.https("demo.test", "/").await?, Shape::default());
    load.more(100).await;
    push("v2").await?;
    for (unit, most) in EXPOSURE {
        let active = world.run(&["systemctl", "is-active", unit]).await?;
        let exposure = exposure(world, unit).await?;
        ensure!(
            active == "active" && exposure <= most,
            "{unit} is {active} with an exposure of {exposure}, not {most}"
        );
    }
    load.more(100).await;
    let report = load.stop().await;
    ensure!(
        report.failures == 0,
        "{} failed: {:?}",
        report.failures,
        report.examples
    );
    ensure!(report.versions.contains_key("v2"), "{:?}", report.versions);
    Ok(())
}

/// Every item of CIS Docker by name, and what the audit says when somebody else owns a file of Docker's.
async fn cis_docker(world: &World) -> anyhow::Result<()> {
    let audit = host(world, &["audit", "--json"]).await?.expect_code(0)?.json()?;
    let items: Vec<&serde_json::Value> = audit["items"].as_array().into_iter().flatten().collect();
    for id in CIS_DOCKER {
        let holds = items.iter().any(|item| {
            let references = item["references"].as_array().into_iter().flatten();
            item["ok"] == true && references.into_iter().any(|reference| reference == id)
        });
        ensure!(holds, "{id} is held by no item: {audit}");
    }
    world.run(&["chown", "deploy", "/etc/docker/daemon.json"]).await?;
    let differs = host(world, &["audit", "--json"]).await?.expect_code(1)?.json()?;
    ensure!(
        differs
            .to_string()
            .contains("/etc/docker/daemon.json: owner deploy → root"),
        "{differs}"
    );
    host(world, &["apply"]).await?.expect_code(0)?;
    host(world, &["audit"]).await?.expect_code(0).map(drop)
}

/// `→ Overall exposure level for appliance-proxy.service: 1.4 OK`
async fn exposure(world: &World, unit: &str) -> anyhow::Result<f64> {
    let text = world
        .run(&["systemd-analyze", "security", "--no-pager", unit])
        .await?;
    let (_, rest) = text
        .split_once("exposure level for")
        .context("no level is given")?;
    let number = rest.split(' ').nth(2).context("no number is given")?;
    Ok(number.parse()?)
}

/// A container from before, whose log nobody bounds, is told with what to do.
async fn told(world: &World) -> anyhow::Result<()> {
    world
        .run(&[
            "docker",
            "create",
            "--name=old",
            "--log-driver=json-file",
            "demo:v2",
        ])
        .await?;
    // It looks when it starts, and every five minutes.
    world.run(&["systemctl", "restart", "appliance-agent"]).await?;
    world.ready().await?;
    let script = "until appliance status --json 2>/dev/null | grep --quiet 'nobody bounds the logs of old'; do read -rt 0.3 <> <(:); done; true";
    let told = Command::new(["bash", "-c", script]).timeout(Duration::from_secs(30));
    let told = world.host.exec(&told).await;
    ensure!(
        told.is_ok_and(|output| output.success()),
        "{}",
        world.run(&["appliance", "status", "--json"]).await?
    );
    world.run(&["docker", "rm", "old"]).await.map(drop)
}
