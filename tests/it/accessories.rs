//! Accessories on a real host: a real PostgreSQL that is booted, killed, changed by hand, reached, upgraded and removed.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Distro, Image};
use appliance_tests::World;
use appliance_tests::bench::Bench;
use appliance_tests::developer::Ran;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::doctor::{found, gone};

/// `config/deploy.yml` of an app with one database.
fn deploy_yml(server: &str, image: &str, more: &str) -> String {
    format!(
        "service: shop\nimage: shop\nservers: [{server}]\nssh: {{user: deploy}}\n\
         registry: {{server: 'localhost:5555'}}\nbuilder: {{arch: amd64}}\n\
         accessories:\n  db:\n    image: {image}\n    host: {server}\n    port: 5432\n\
         \x20   env:\n      clear: {{POSTGRES_USER: shop, POSTGRES_DB: store}}\n      secret: [POSTGRES_PASSWORD]\n\
         \x20   files:\n      - config/first.sql.erb:/docker-entrypoint-initdb.d/first.sql\n\
         \x20     - {{local: config/extra.conf, remote: /etc/extra.conf, mode: '640', owner: '999:999'}}\n\
         \x20   directories:\n      - data:/var/lib/postgresql/data\n{more}"
    )
}

/// Puts an image of the machine's Docker into the host's, under a name of its own.
pub(crate) async fn carry_in(bench: &Bench, world: &World, image: &Image, name: &str) -> anyhow::Result<()> {
    let built = bench.sandbox.ensure(image, &|_| ()).await?;
    bench.sandbox.tag(&built, name).await?;
    let directory = tempfile::tempdir()?;
    let archive = directory.path().join("image.tar");
    let saved = tokio::process::Command::new("docker")
        .args(["save", "--output"])
        .arg(&archive)
        .arg(name)
        .status()
        .await?;
    ensure!(saved.success(), "docker save {name}");
    world
        .host
        .copy_file_in(&archive, "/root/image.tar", 0o600)
        .await?;
    world
        .run(&["docker", "load", "--input", "/root/image.tar"])
        .await?;
    world.run(&["rm", "/root/image.tar"]).await?;
    Ok(())
}

async fn accessory(world: &World, words: &[&str]) -> anyhow::Result<Ran> {
    let words = [&["accessory"], words].concat();
    world.developer.appliance(words).run().await?.expect_code(0)
}

async fn details(world: &World) -> anyhow::Result<serde_json::Value> {
    Ok(accessory(world, &["details", "db", "--json"]).await?.json()?[0]["accessory"].clone())
}

async fn ask(world: &World, sql: &str) -> anyhow::Result<String> {
    let words = [
        "docker",
        "exec",
        "shop-db",
        "psql",
        "--username=shop",
        "--dbname=store",
        "-Atc",
        sql,
    ];
    world.run(&words).await
}

/// Waits until the accessory is well and `fits`; says how it is if that does not come.
async fn until(
    world: &World,
    what: &str,
    fits: impl Fn(&serde_json::Value) -> bool,
) -> anyhow::Result<serde_json::Value> {
    let mut last = serde_json::Value::Null;
    let waiting = async {
        loop {
            last = details(world).await?;
            if fits(&last) {
                return Ok::<_, anyhow::Error>(());
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .with_context(|| format!("{what}: not within 60 s: {last:#}"))??;
    Ok(last)
}

fn well(accessory: &serde_json::Value) -> bool {
    accessory["healthy"] == true && accessory["state"] == "running"
}

fn told(accessory: &serde_json::Value, text: &str) -> bool {
    let drift = accessory["drift"].as_array().cloned().unwrap_or_default();
    drift
        .iter()
        .filter_map(serde_json::Value::as_str)
        .any(|line| line.contains(text))
}

#[tokio::test]
async fn a_database_is_kept_reached_upgraded_and_removed() -> anyhow::Result<()> {
    let bench = Bench::connect().await?;
    let world = World::bootstrapped("accessory", Distro::Debian12).await?;
    carry_in(
        &bench,
        &world,
        &Image::Postgres(Distro::Debian12),
        "postgres-test:15",
    )
    .await?;
    carry_in(
        &bench,
        &world,
        &Image::Postgres(Distro::Debian13),
        "postgres-test:17",
    )
    .await?;
    let server = world.ip().await?.to_string();
    let configure = |image: &str, more: &str| {
        world
            .developer
            .write("config/deploy.yml", &deploy_yml(&server, image, more))
    };
    configure("postgres-test:15", "")?;
    world
        .developer
        .write(".kamal/secrets", "POSTGRES_PASSWORD=s3cret\n")?;
    world.developer.write(
        "config/first.sql.erb",
        "CREATE TABLE items AS SELECT n, '<%= ENV[\"POSTGRES_DB\"] %>' || n AS name FROM generate_series(1, 1000) n;\n",
    )?;
    world.developer.write("config/extra.conf", "extra = yes\n")?;

    // Booted: well, on the loopback alone, with its files as configured.
    let said = accessory(&world, &["boot", "db"]).await?.stderr;
    ensure!(said.contains("bound to 127.0.0.1"), "{said}");
    let first = details(&world).await?;
    ensure!(
        well(&first) && first["drift"] == serde_json::json!([]),
        "{first:#}"
    );
    ensure!(first["ports"][0] == "127.0.0.1:5432 → 5432", "{first:#}");
    ensure!(world.run(&["docker", "port", "shop-db"]).await? == "5432/tcp -> 127.0.0.1:5432");
    ensure!(ask(&world, "SELECT max(name) FROM items WHERE n = 1000").await? == "store1000");
    let file = [
        "docker",
        "exec",
        "shop-db",
        "stat",
        "-c",
        "%a %u:%g",
        "/etc/extra.conf",
    ];
    ensure!(world.run(&file).await? == "640 999:999");
    let again = accessory(&world, &["boot", "all"]).await?.stderr;
    ensure!(again.contains("runs already"), "{again}");

    // Killed, and removed by somebody: back, on the same data.
    let process = world
        .run(&["docker", "inspect", "--format={{.State.Pid}}", "shop-db"])
        .await?;
    world.run(&["kill", "-9", &process]).await?;
    until(&world, "after kill -9", |found| {
        well(found) && found["restarts"] != 0
    })
    .await?;
    world.run(&["docker", "kill", "shop-db"]).await?;
    until(&world, "after docker kill", |found| {
        well(found) && found["failures"] != 0
    })
    .await?;
    world
        .run(&["docker", "rm", "--force", "--volumes", "shop-db"])
        .await?;
    until(&world, "after docker rm", well).await?;
    ensure!(ask(&world, "SELECT count(*) FROM items").await? == "1000");

    // One that does not serve is found, not only shown.
    world.run(&["docker", "pause", "shop-db"]).await?;
    let down = found(&world, "accessories").await?;
    ensure!(
        down.message.contains("shop/db") && down.message.contains("paused"),
        "{}",
        down.message
    );
    world.run(&["docker", "unpause", "shop-db"]).await?;
    gone(&world, "accessories").await?;

    // Stopped stays stopped.
    accessory(&world, &["stop", "db"]).await?;
    gone(&world, "accessories").await?;
    let stopped = details(&world).await?;
    ensure!(
        stopped["state"] == "exited" && stopped["wanted"] == "stopped",
        "{stopped:#}"
    );
    accessory(&world, &["start", "db"]).await?;

    // What somebody changed by hand, here and there, is told, and a reboot applies the configuration.
    world
        .run(&[
            "docker",
            "update",
            "--memory=600m",
            "--memory-swap=600m",
            "shop-db",
        ])
        .await?;
    configure("postgres-test:15", "    labels: {team: store}\n")?;
    let edit = "echo '# by hand' >> /var/lib/appliance/data/shop-db/etc/extra.conf";
    world.run(&["sh", "-c", edit]).await?;
    let drifted = until(&world, "drift", |found| told(found, "memory is 629145600")).await?;
    ensure!(told(&drifted, "configuration here was changed"), "{drifted:#}");
    ensure!(told(&drifted, "extra.conf"), "{drifted:#}");
    accessory(&world, &["reboot", "db"]).await?;
    let rebooted = details(&world).await?;
    ensure!(
        well(&rebooted) && rebooted["drift"] == serde_json::json!([]),
        "{rebooted:#}"
    );
    ensure!(ask(&world, "SELECT count(*) FROM items").await? == "1000");
    let status = world
        .run(&["/usr/local/bin/appliance", "accessory", "details", "db"])
        .await?;
    ensure!(
        status.contains("shop/db") && status.contains("healthy (pg_isready)"),
        "{status}"
    );

    // A port for everybody needs an opening in host.yml.
    let open = deploy_yml(&server, "postgres-test:15", "").replace("port: 5432", "port: 0.0.0.0:5432:5432");
    world.developer.write("config/deploy.yml", &open)?;
    let refused = world
        .developer
        .appliance(["accessory", "reboot", "db"])
        .run()
        .await?
        .expect_code(3)?;
    ensure!(
        refused.stderr.contains("firewall") && refused.stderr.contains("/etc/appliance/host.yml"),
        "{}",
        refused.stderr
    );
    configure("postgres-test:15", "")?;

    // Commands and logs.
    let answer = accessory(
        &world,
        &["exec", "db", "--reuse", "psql -U shop -d store -Atc 'SELECT 6*7'"],
    )
    .await?;
    ensure!(answer.stdout.trim() == "42", "{}", answer.stdout);
    let failing = world
        .developer
        .appliance(["accessory", "exec", "db", "sh -c 'exit 7'"])
        .run()
        .await?;
    ensure!(failing.code == 7, "{} {}", failing.code, failing.stderr);
    let log = accessory(&world, &["logs", "db", "--lines", "500"]).await?.stdout;
    ensure!(
        log.contains("database system is ready to accept connections"),
        "{log}"
    );

    through_a_tunnel(&world).await?;
    upgraded(&world, &configure).await?;
    removed(&world).await
}

/// A client of the developer's machine reaches the database over SSH.
async fn through_a_tunnel(world: &World) -> anyhow::Result<()> {
    let mut tunnel = world
        .developer
        .appliance(["tunnel", "db", "--port", "0"])
        .command()?
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = tunnel.stdout.take().context("its output is a pipe")?;
    let mut lines = BufReader::new(stdout).lines();
    let address = tokio::time::timeout(Duration::from_secs(30), lines.next_line())
        .await??
        .context("the tunnel ended")?;
    // The image's own psql, on this machine's network.
    let image = Bench::connect()
        .await?
        .sandbox
        .ensure(&Image::Postgres(Distro::Debian12), &|_| ())
        .await?;
    let (host, port) = address.rsplit_once(':').context("an address")?;
    let client = tokio::process::Command::new("docker")
        .args(["run", "--rm", "--network=host", "--env=PGPASSWORD=s3cret", image.as_str(), "psql"])
        .args([&format!("--host={host}"), &format!("--port={port}"), "--username=shop", "store", "-Atc"])
        .arg("SELECT sum(n) FROM items; SELECT length(string_agg(name, ',')) FROM items, generate_series(1, 50)")
        .output()
        .await?;
    let said = String::from_utf8_lossy(&client.stdout).into_owned();
    ensure!(
        said.starts_with("500500\n"),
        "{said} {}",
        String::from_utf8_lossy(&client.stderr)
    );
    tunnel.kill().await?;
    Ok(())
}

/// From PostgreSQL 15 to 17 and back, and again to stay.
async fn upgraded(
    world: &World,
    configure: &impl Fn(&str, &str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let check = "SELECT count(*), sum(hashtextextended(t::text, 0)) FROM items t";
    for sql in [
        "CREATE ROLE reader LOGIN PASSWORD 'r'",
        "CREATE SEQUENCE tickets START 42",
        "SELECT nextval('tickets')",
        "CREATE DATABASE second",
    ] {
        ask(world, sql).await?;
    }
    let before = ask(world, check).await?;
    configure("postgres-test:17", "")?;
    let refused = world
        .developer
        .appliance(["accessory", "reboot", "db"])
        .run()
        .await?
        .expect_code(3)?;
    ensure!(
        refused.stderr.contains("accessory upgrade db"),
        "{}",
        refused.stderr
    );

    let said = accessory(world, &["upgrade", "db"]).await?.stderr;
    ensure!(said.contains("no backup of shop/db was taken"), "{said}");
    ensure!(ask(world, "SHOW server_version").await?.starts_with("17"));
    ensure!(ask(world, check).await? == before);
    ensure!(ask(world, "SELECT last_value FROM tickets").await? == "42");
    ensure!(ask(world, "SELECT count(*) FROM pg_roles WHERE rolname = 'reader'").await? == "1");
    let kept = details(world).await?;
    ensure!(well(&kept), "{kept:#}");
    ensure!(
        kept["upgrade"].as_str().unwrap_or_default().contains("--confirm"),
        "{kept:#}"
    );

    // What was written since is not given up unasked, and comes back.
    let later = "SELECT count(*) FROM items WHERE name = 'later'";
    ask(world, "INSERT INTO items VALUES (1001, 'later')").await?;
    for word in ["--undo", "--confirm"] {
        let asked = world
            .developer
            .appliance(["accessory", "upgrade", "db", word])
            .run()
            .await?
            .expect_code(3)?;
        ensure!(asked.stderr.contains("was not confirmed"), "{}", asked.stderr);
    }
    ensure!(ask(world, later).await? == "1");
    accessory(world, &["upgrade", "db", "--undo", "-y"]).await?;
    ensure!(ask(world, "SHOW server_version").await?.starts_with("15"));
    ensure!(ask(world, check).await? == before);
    accessory(world, &["upgrade", "db", "--undo", "-y"]).await?;
    ensure!(ask(world, later).await? == "1", "undoing the undo brings it back");
    accessory(world, &["upgrade", "db", "--undo", "-y"]).await?;
    accessory(world, &["upgrade", "db", "--confirm", "-y"]).await?;
    ensure!(ask(world, check).await? == before);

    // An image that keeps its data elsewhere, as PostgreSQL's official ones do from 18, with the configuration as it was.
    elsewhere(world).await?;
    configure("postgres-test:17-new", "")?;
    let said = accessory(world, &["upgrade", "db"]).await?.stderr;
    ensure!(
        said.contains("/var/lib/postgresql/data was the former server's"),
        "{said}"
    );
    accessory(world, &["upgrade", "db", "--confirm", "-y"]).await?;
    ensure!(ask(world, "SHOW server_version").await?.starts_with("17"));
    ensure!(ask(world, check).await? == before);
    let left = world
        .run(&["docker", "ps", "--all", "--format={{.Names}}"])
        .await?;
    ensure!(left == "shop-db", "nothing of the copying is left: {left}");
    ensure!(
        world
            .run(&["ls", "/var/lib/appliance/data/shop-db"])
            .await?
            .lines()
            .count()
            == 3
    );
    Ok(())
}

/// Gives the host a PostgreSQL 17 laid out as the official image of 18 is, which refuses data of a server before it.
async fn elsewhere(world: &World) -> anyhow::Result<()> {
    let script = r#"
        cat > /root/refusing.sh <<'EOF'
#!/bin/sh
if test -n "$(ls -A /var/lib/postgresql/data 2>/dev/null)"; then
    echo 'there appears to be PostgreSQL data in /var/lib/postgresql/data' >&2
    exit 1
fi
exec docker-entrypoint.sh "$@"
EOF
        chmod 755 /root/refusing.sh
        docker create --name laid-out postgres-test:17
        docker cp /root/refusing.sh laid-out:/usr/local/bin/refusing.sh
        docker export laid-out | docker import --change 'ENTRYPOINT ["refusing.sh"]' --change 'CMD ["postgres"]' \
            --change 'ENV LANG=en_US.utf8' --change 'ENV PGDATA=/var/lib/postgresql/17/docker' \
            --change 'VOLUME /var/lib/postgresql' - postgres-test:17-new
        docker rm --volumes laid-out
    "#;
    world.run(&["bash", "-euo", "pipefail", "-c", script]).await?;
    Ok(())
}

/// Removal asks, and takes the data only with a word.
async fn removed(world: &World) -> anyhow::Result<()> {
    let asked = world
        .developer
        .appliance(["accessory", "remove", "db"])
        .run()
        .await?
        .expect_code(3)?;
    ensure!(asked.stderr.contains("--confirm db"), "{}", asked.stderr);
    ensure!(ask(world, "SELECT count(*) FROM items").await? == "1000");
    let wrong = world
        .developer
        .appliance(["accessory", "remove", "db", "--confirm", "cache"])
        .run()
        .await?;
    ensure!(wrong.code == 3, "{}", wrong.code);

    accessory(world, &["remove", "db", "--confirm", "db"]).await?;
    ensure!(world.run(&["docker", "ps", "--all", "--quiet"]).await?.is_empty());
    let gone = world
        .host
        .run(["test", "!", "-e", "/var/lib/appliance/data/shop-db"])
        .await;
    ensure!(gone.is_ok(), "the data is gone");
    let audit = world.developer.appliance(["audit", "--verify"]).run().await?;
    ensure!(audit.code == 0, "{}", audit.stderr);
    Ok(())
}

/// A container that stock Kamal left is taken over where it is, its data with it, and told apart.
#[tokio::test]
async fn a_container_of_kamal_is_taken_over_with_its_data() -> anyhow::Result<()> {
    let bench = Bench::connect().await?;
    let world = World::bootstrapped("adopt-db", Distro::Debian13).await?;
    carry_in(
        &bench,
        &world,
        &Image::Postgres(Distro::Debian13),
        "postgres-test:17",
    )
    .await?;
    let server = world.ip().await?.to_string();
    let base = format!(
        "service: shop\nimage: shop\nservers: [{server}]\nssh: {{user: deploy}}\n\
         registry: {{server: 'localhost:5555'}}\nbuilder: {{arch: amd64}}\n\
         accessories:\n  db:\n    image: postgres-test:17\n    host: {server}\n    port: 127.0.0.1:5432:5432\n\
         \x20   env:\n      clear: {{POSTGRES_USER: shop}}\n      secret: [POSTGRES_PASSWORD]\n"
    );
    world.developer.write("config/deploy.yml", &base)?;
    world
        .developer
        .write(".kamal/secrets", "POSTGRES_PASSWORD=s3cret\n")?;
    // The flags of Kamal's `accessory boot`, in its order.
    let host_env = format!("--env=KAMAL_HOST={server}");
    let kamal = [
        "docker",
        "run",
        "--name=shop-db",
        "--detach",
        "--restart=unless-stopped",
        "--network=kamal",
        "--publish=127.0.0.1:5432:5432",
        &host_env,
        "--env=POSTGRES_USER=shop",
        "--env=POSTGRES_PASSWORD=s3cret",
        "--label=service=shop-db",
        "postgres-test:17",
    ];
    world
        .host
        .run([
            "sh",
            "-c",
            "docker network inspect kamal >/dev/null 2>&1 || docker network create kamal",
        ])
        .await?;
    let id = world.run(&kamal).await?;
    let said = accessory(&world, &["boot", "db"]).await?.stderr;
    ensure!(said.contains("as configured"), "{said}");
    ensure!(!said.contains("not as configured"), "{said}");
    let same = world
        .run(&["docker", "inspect", "--format={{.Id}}", "shop-db"])
        .await?;
    ensure!(same == id, "it is the same container");
    let adopted = until(&world, "adopted", well).await?;
    ensure!(adopted["drift"] == serde_json::json!([]), "{adopted:#}");

    // Its data had no name; a container of ours gets it all the same.
    let create = [
        "docker",
        "exec",
        "shop-db",
        "psql",
        "--username=shop",
        "-c",
        "CREATE TABLE kept (n int)",
    ];
    world.run(&create).await?;
    let wider = base.replace("port: 127.0.0.1:5432:5432", "port: 127.0.0.1:6432:5432");
    world.developer.write("config/deploy.yml", &wider)?;
    accessory(&world, &["reboot", "db"]).await?;
    let table = [
        "docker",
        "exec",
        "shop-db",
        "psql",
        "--username=shop",
        "-Atc",
        "SELECT count(*) FROM kept",
    ];
    ensure!(world.run(&table).await? == "0");
    let replaced = world
        .run(&["docker", "inspect", "--format={{.Id}}", "shop-db"])
        .await?;
    ensure!(replaced != id);

    // The agent is killed: nobody notices, and it goes on keeping.
    world.crash("appliance-agent.service").await?;
    world.ready().await?;
    world.run(&["docker", "kill", "shop-db"]).await?;
    until(&world, "after the agent came back", |found| {
        well(found) && found["failures"] != 0
    })
    .await?;
    ensure!(world.run(&table).await? == "0");

    // Without its data the container goes and the volume stays.
    accessory(&world, &["remove", "db", "--keep-data", "-y"]).await?;
    ensure!(world.run(&["docker", "ps", "--all", "--quiet"]).await?.is_empty());
    ensure!(
        !world
            .run(&["docker", "volume", "ls", "--quiet"])
            .await?
            .is_empty()
    );
    Ok(())
}
