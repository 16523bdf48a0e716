//! Backups on a real host: made, listed, drilled, restored in the place of the live database, and undone.

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image};
use appliance_tests::World;
use appliance_tests::receiver::Receiver;

use crate::alerts::{settings, told};
use crate::doctor::{Found, found, gone};

/// What doctor finds on the host, its command run where the app's configuration is, and gone.
async fn mended(world: &World, id: &str) -> anyhow::Result<Found> {
    let found = found(world, id).await?;
    run(world, &found.next)
        .await
        .with_context(|| format!("{id}: {}", found.next))?;
    gone(world, id).await?;
    Ok(found)
}

/// What the agent remembers of the job, as an agent of days ago would have written it down.
async fn remembered(world: &World, field: &str, value: serde_json::Value) -> anyhow::Result<()> {
    let file = "/var/lib/appliance/backups.json";
    world.run(&["systemctl", "stop", "appliance-agent"]).await?;
    let mut ledger: serde_json::Value = serde_json::from_slice(&world.host.read(file).await?)?;
    let job = ledger.pointer_mut("/data/demo~1db").context("the job")?;
    job[field] = value;
    world.host.copy_in(file, ledger.to_string(), 0o600).await?;
    world.run(&["systemctl", "start", "appliance-agent"]).await?;
    world.ready().await
}

/// What only days bring: a backup that did not come, a drill that did not, and one that never was.
async fn late(world: &World) -> anyhow::Result<()> {
    let ago = |days: i64| (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days)).to_string();
    remembered(world, "good", serde_json::json!([ago(3), 1_000])).await?;
    let late = mended(world, "backup-late").await?;
    ensure!(late.next == "appliance backup now db", "{}", late.next);
    remembered(world, "drilled", serde_json::json!([ago(30), 1_000])).await?;
    mended(world, "drill-late").await?;
    remembered(world, "drilled", serde_json::Value::Null).await?;
    mended(world, "backup-undrilled").await?;
    // What the message says to make goes into the configuration, and with the next push to the host.
    let key = found(world, "recovery-key").await?;
    ensure!(key.next == "appliance backup keygen", "{}", key.next);
    let made = world.developer.appliance(["backup", "keygen"]).run().await?;
    let made = made.expect_code(0)?.stdout;
    let line = made.lines().find(|line| line.starts_with("recovery: "));
    let path = world.developer.app().join("config/deploy.yml");
    let text = fs_err::read_to_string(&path)?;
    let with_key = text.replace("ping: ", &format!("{}, ping: ", line.context("a public half")?));
    world.developer.write("config/deploy.yml", &with_key)?;
    run(world, "appliance push --version v1").await?;
    gone(world, "recovery-key").await
}

/// What a message said to run, on the developer's machine.
async fn run(world: &World, next: &str) -> anyhow::Result<()> {
    for command in next.split("; ") {
        let words = command.split_whitespace().skip(1);
        world.developer.appliance(words).run().await?.expect_code(0)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_is_backed_up_drilled_swapped_back_and_undone() -> anyhow::Result<()> {
    let world = World::bootstrapped("backups", Distro::Debian12).await?;
    let image = world
        .bench
        .sandbox
        .ensure(&Image::Postgres(Distro::Debian12), &|_| ())
        .await?;
    let saved = tokio::process::Command::new("docker")
        .args(["save", image.as_str()])
        .output()
        .await?;
    let loaded = world
        .host
        .exec(&Command::new(["docker", "load"]).stdin(saved.stdout))
        .await?;
    ensure!(loaded.success(), "{}", loaded.error_text());
    // As stock Kamal would have made it: nothing about it is prepared for backups.
    world
        .run(&[
            "docker",
            "run",
            "--detach",
            "--name=demo-db",
            "--env=POSTGRES_PASSWORD=secret",
            "--env=POSTGRES_DB=shop",
            image.as_str(),
            "postgres",
            "-c",
            "shared_preload_libraries=pg_stat_statements",
        ])
        .await?;
    let psql = async |database: &str, statement: &str| {
        world
            .run(&[
                "docker",
                "exec",
                "demo-db",
                "psql",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-d",
                database,
                "-Atc",
                statement,
            ])
            .await
    };
    let begun = std::time::Instant::now();
    while psql("shop", "SELECT 1").await.is_err() {
        ensure!(begun.elapsed().as_secs() < 60, "the database does not start");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    psql(
        "shop",
        "CREATE TABLE orders AS SELECT n, md5(n::text) AS x FROM generate_series(1, 5000) AS n; \
         ALTER TABLE orders ADD PRIMARY KEY (n)",
    )
    .await?;
    // What only a server restores that was started with the same library.
    psql(
        "shop",
        "CREATE EXTENSION pg_stat_statements; \
         CREATE MATERIALIZED VIEW asked AS SELECT count(*) >= 0 AS ever FROM pg_stat_statements",
    )
    .await?;

    let ip = world.ip().await?;
    let receiver = Receiver::start().await?;
    let url = receiver.url(&world).await?;
    let more = format!(
        "accessories:\n  db:\n    image: {}\n    host: {ip}\n\
         x-appliance:\n  watch: false\n  backups:\n    db: {{kind: postgres, to: \"file:///var/backups/db\", ping: \"{url}/well\"}}\n",
        image.as_str()
    );
    world.developer.demo_app("v1", &world, &more).await?;
    let developer = &world.developer;
    developer
        .appliance(["push", "--version", "v1"])
        .run()
        .await?
        .expect_code(0)?;

    let alerts = format!("alerts: {{webhooks: ['{url}/hook'], interval: 1s}}\n");
    settings(&world, &alerts).await?;
    found(&world, "backup-none").await?;
    found(&world, "recovery-key").await?;

    // Before the first one, `status` says so.
    let ran = developer.appliance(["status"]).run().await?.expect_code(0)?;
    ensure!(ran.stdout.contains("none yet, never restored"), "{}", ran.stdout);
    ensure!(ran.stdout.contains("appliance backup keygen"), "{}", ran.stdout);
    let ran = developer
        .appliance(["backup", "now", "db"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(ran.stderr.contains("5000 rows"), "{}", ran.stderr);
    // The first backup is tried at once.
    ensure!(
        ran.stderr.contains("5000 rows in 1 tables equal"),
        "{}",
        ran.stderr
    );
    let ran = developer
        .appliance(["backup", "list", "--json"])
        .run()
        .await?
        .expect_code(0)?;
    let jobs = ran.json()?;
    let job = jobs
        .as_object()
        .and_then(|hosts| hosts.values().next())
        .context("a host")?[0]
        .clone();
    let backup = &job["backups"][0];
    ensure!(backup["rows"] == 5000 && backup["tables"] == 1, "{backup}");
    ensure!(
        backup["restore_ms"].is_u64() && job["verified"].is_string(),
        "{job}"
    );
    // The dump never touched the disk in clear, and nothing of the drill is left.
    let containers = world
        .run(&["docker", "ps", "--all", "--format={{.Names}}"])
        .await?;
    ensure!(!containers.contains("appliance-drill"), "{containers}");
    let pipes = world
        .run(&["docker", "exec", "demo-db", "ls", "/dev/shm"])
        .await?;
    ensure!(!pipes.contains("appliance-"), "{pipes}");

    psql("shop", "DROP TABLE orders").await?;
    let ran = developer
        .appliance(["restore", "db", "latest", "--dry-run"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(ran.stdout.contains("would restore shop"), "{}", ran.stdout);
    developer
        .appliance(["restore", "db", "--swap"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(psql("shop", "SELECT count(*) FROM orders").await? == "5000");
    developer
        .appliance(["restore", "undo", "db", "--database", "shop"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(psql("shop", "SELECT to_regclass('orders') IS NULL").await? == "t");
    developer
        .appliance([
            "restore",
            "db",
            "--at",
            &jiff::Timestamp::now().to_string(),
            "--into",
            "copy",
        ])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(psql("copy", "SELECT count(*) FROM orders").await? == "5000");
    let ran = developer
        .appliance(["restore", "db", "--table", "orders", "--into", "one"])
        .run()
        .await?
        .expect_code(0)?;
    ensure!(ran.stderr.contains("5000 rows in 1 tables"), "{}", ran.stderr);
    let keyed =
        "SELECT count(*), max(n) FROM orders, pg_index WHERE indrelid = 'orders'::regclass AND indisprimary";
    ensure!(psql("one", keyed).await? == "5000|5000");
    psql("shop", "DROP DATABASE one").await?;
    held(&world, backup["id"].as_str().context("an id")?).await?;

    // A container that does not run is a failure that everybody sees, and the next run is clean.
    world.run(&["docker", "stop", "demo-db"]).await?;
    developer
        .appliance(["backup", "now", "db"])
        .run()
        .await?
        .expect_code(1)?
        .expect_error("demo-db")?;
    let ran = developer.appliance(["status"]).run().await?.expect_code(0)?;
    ensure!(ran.stdout.contains("backup of demo/db failed"), "{}", ran.stdout);
    let failed = told(&receiver, "firing", "backup-age", "demo/db").await?;
    let next = found(&world, "backup-failed").await?.next;
    ensure!(failed["next"] == next.as_str(), "{failed} {next}");
    ensure!(
        next == "appliance accessory start db; appliance backup now db",
        "{next}"
    );
    world.run(&["docker", "start", "demo-db"]).await?;
    let begun = std::time::Instant::now();
    while psql("shop", "SELECT 1").await.is_err() {
        ensure!(begun.elapsed().as_secs() < 60, "the database does not start");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    run(&world, "appliance backup now db").await?;
    // What the undo brought back is not like the backups before: the alert stands until somebody says that it is right.
    let status = developer.appliance(["status"]).run().await?;
    ensure!(
        status.stdout.contains("is not like those before"),
        "{}",
        status.stdout
    );
    let odd = found(&world, "backups").await?;
    let (look, accept) = odd
        .next
        .split_once(" # and if that is as it should be: ")
        .context("two")?;
    run(&world, look).await?;
    ensure!(accept == "appliance backup prune db --yes", "{accept}");
    run(&world, accept).await?;
    gone(&world, "backups").await?;
    told(&receiver, "resolved", "backup-age", "demo/db").await?;
    gone(&world, "backup-none").await?;
    gone(&world, "backup-failed").await?;

    // Every volume of it rots.
    let rot = "find /var/backups/db -type f -size +1k -exec dd if=/dev/zero of={} bs=1 seek=600 count=400 conv=notrunc status=none \\;";
    world.run(&["bash", "-euc", rot]).await?;
    let drilled = developer.appliance(["backup", "drill", "db"]).run().await?;
    ensure!(drilled.code != 0, "{drilled:?}");
    let failed = told(&receiver, "firing", "drill", "demo/db").await?;
    found(&world, "drill-failed").await?;
    run(&world, failed["next"].as_str().context("a command")?).await?;
    told(&receiver, "resolved", "drill", "demo/db").await?;
    gone(&world, "drill-failed").await?;
    for (status, kind) in [
        ("firing", "backup-age"),
        ("resolved", "backup-age"),
        ("firing", "drill"),
        ("resolved", "drill"),
    ] {
        let count = receiver
            .received("/hook")
            .iter()
            .filter(|request| {
                serde_json::from_slice::<serde_json::Value>(&request.body)
                    .is_ok_and(|notice| notice["status"] == status && notice["kind"] == kind)
            })
            .count();
        ensure!(count == 1, "{status}: {kind} was told {count} times");
    }
    receiver.status("/well", 503);
    run(&world, "appliance backup now db").await?;
    found(&world, "backup-ping").await?;
    receiver.serve("/well", "");
    let unheard = mended(&world, "backup-ping").await?;
    ensure!(!unheard.message.contains("/well"), "{}", unheard.message);
    late(&world).await?;
    let audit = world.run(&["appliance", "audit", "--verify"]).await?;
    ensure!(!audit.is_empty());
    Ok(())
}

/// A backup that is held is kept by the retention until it is released.
async fn held(world: &World, id: &str) -> anyhow::Result<()> {
    let backup = async |words: &[&str]| {
        let words = [&["backup"], words].concat();
        world.developer.appliance(words).run().await?.expect_code(0)
    };
    backup(&["hold", "db", id]).await?;
    let planned = backup(&["prune", "db"]).await?.stdout;
    let line = |text: &str| text.lines().find(|line| line.contains(id)).map(str::to_owned);
    ensure!(
        line(&planned).is_some_and(|line| line.contains("held")),
        "{planned}"
    );
    let said = backup(&["release", "db", id]).await?.stderr;
    ensure!(said.contains("as long as the retention says"), "{said}");
    let planned = backup(&["prune", "db"]).await?.stdout;
    ensure!(
        line(&planned).is_some_and(|line| !line.contains("held")),
        "{planned}"
    );
    Ok(())
}
