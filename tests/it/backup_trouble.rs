//! What goes wrong with backups, on a real host with a real PostgreSQL 17: each time no backup is listed that does not
//! restore, the live data is as it was, somebody is told, and the next run is clean.
#![allow(clippy::print_stdout)]

use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image};
use appliance_tests::World;
use appliance_tests::developer::Ran;

/// What the agent remembers of its jobs.
const LEDGER: &str = "/var/lib/appliance/backups.json";
/// Operations under way.
const JOURNAL: &str = "/var/lib/appliance/backups/journal";
/// Where this test's backups lie.
const PLACE: &str = "/var/backups/trouble";

async fn appliance(world: &World, words: &[&str]) -> anyhow::Result<Ran> {
    world.developer.appliance(words).run().await
}

async fn good(world: &World, words: &[&str]) -> anyhow::Result<Ran> {
    appliance(world, words).await?.expect_code(0)
}

async fn psql(world: &World, statement: &str) -> anyhow::Result<String> {
    let words = [
        "docker", "exec", "demo-db", "psql", "-U", "postgres", "-d", "shop", "-Atc", statement,
    ];
    world.run(&words).await
}

async fn rows(world: &World) -> anyhow::Result<String> {
    psql(world, "SELECT count(*) FROM orders").await
}

/// The one job, with its backups.
async fn job(world: &World) -> anyhow::Result<serde_json::Value> {
    let hosts = good(world, &["backup", "list", "--json"]).await?.json()?;
    let job = hosts
        .as_object()
        .and_then(|hosts| hosts.values().next())
        .context("a host")?;
    Ok(job[0].clone())
}

/// Identifiers of the backups that can be used and of those that cannot, oldest first.
async fn listed(world: &World) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let job = job(world).await?;
    let rows = job["backups"].as_array().cloned().unwrap_or_default();
    let (bad, usable): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row["unusable"].is_string());
    let ids = |rows: Vec<serde_json::Value>| {
        let mut ids: Vec<_> = rows
            .iter()
            .filter_map(|row| Some(row["id"].as_str()?.to_owned()))
            .collect();
        ids.sort();
        ids
    };
    Ok((ids(usable), ids(bad)))
}

/// Problems that `status` tells.
async fn problems(world: &World) -> anyhow::Result<String> {
    Ok(good(world, &["status"]).await?.stdout)
}

/// Waits until the host is as asked.
async fn until<F: Future<Output = anyhow::Result<bool>>>(
    what: &str,
    fits: impl Fn() -> F,
) -> anyhow::Result<()> {
    let waiting = async {
        while !fits().await? {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(100), waiting)
        .await
        .with_context(|| format!("{what}: not in time"))?
}

#[tokio::test]
async fn whatever_goes_wrong_no_bad_backup_is_listed_and_the_live_data_stays() -> anyhow::Result<()> {
    let world = World::bootstrapped("trouble", Distro::Debian12).await?;
    let begun = std::time::Instant::now();
    let passed = |what: &str| println!("{what} {:.0} s", begun.elapsed().as_secs_f64());
    begin(&world).await?;
    passed("a first backup");
    dumps_that_end_early(&world).await?;
    passed("dumps that end early");
    a_full_disk(&world).await?;
    passed("a full disk");
    altered_and_replayed(&world).await?;
    passed("altered and replayed");
    shrinkage_and_undo(&world).await?;
    passed("shrinkage and undo");
    clocks_and_crashes(&world).await?;
    passed("clocks and crashes");
    a_place_that_cannot_be_used(&world).await?;
    passed("a place that cannot be used");
    a_spool_and_a_crash(&world).await?;
    passed("a spool and a crash");
    a_disk_that_fills_up_under_a_restore(&world).await?;
    passed("a disk that fills up");
    a_host_that_was_rebuilt(&world).await
}

/// The configuration, with these words about the backups.
async fn configure(world: &World, accessories: &str, backups: &str) -> anyhow::Result<()> {
    let image = world
        .bench
        .sandbox
        .ensure(&Image::Postgres(Distro::Debian13), &|_| ())
        .await?;
    let ip = world.ip().await?;
    let more = format!(
        "accessories:\n  db:\n    image: {}\n    host: {ip}\n    env: {{clear: {{POSTGRES_PASSWORD: secret, POSTGRES_DB: shop}}}}\n\
         \x20   volumes: ['trouble:/var/lib/postgresql/data']\n{accessories}\
         x-appliance:\n  watch: false\n  backups:\n    db: {{kind: postgres, schedule: '0 4 1 1 *', {backups}}}\n",
        image.as_str()
    );
    world.developer.demo_app("v1", world, &more).await
}

/// A database that takes some seconds to dump, with a backup of it.
async fn begin(world: &World) -> anyhow::Result<()> {
    let image = world
        .bench
        .sandbox
        .ensure(&Image::Postgres(Distro::Debian13), &|_| ())
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
    configure(world, "", &format!("to: 'file://{PLACE}'")).await?;
    good(world, &["accessory", "boot", "db"]).await?;
    good(world, &["push", "--version", "v1"]).await?;
    // Random, so that compression leaves the bandwidth something to do.
    psql(
        world,
        "CREATE TABLE orders AS SELECT n, (SELECT string_agg(md5(random()::text || n || m), '') FROM generate_series(1, 40) m) AS x \
         FROM generate_series(1, 6000) AS n",
    )
    .await?;
    good(world, &["backup", "now", "db"]).await?;
    ensure!(listed(world).await?.0.len() == 1);
    Ok(())
}

/// The session ended by somebody, the container stopped, the password changed.
async fn dumps_that_end_early(world: &World) -> anyhow::Result<()> {
    // A dump that waits for somebody's lock is in the middle of it for as long as it takes to spoil it.
    let lock = "BEGIN; LOCK TABLE orders; SELECT pg_sleep(60)";
    let held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted AND relation = 'orders'::regclass";
    let ours = "FROM pg_stat_activity WHERE application_name LIKE 'appliance backup _%'";
    let dumping = format!("SELECT count(*) {ours} AND wait_event_type = 'Lock'");
    for trouble in ["terminate", "stop"] {
        let words = [
            "docker", "exec", "--detach", "demo-db", "psql", "-U", "postgres", "-d", "shop", "-c", lock,
        ];
        world.run(&words).await?;
        until("the lock", || async { Ok(psql(world, held).await? != "0") }).await?;
        let spoil = async {
            until("it dumps", || async { Ok(psql(world, &dumping).await? != "0") }).await?;
            match trouble {
                "stop" => world.run(&["docker", "stop", "--time=5", "demo-db"]).await,
                _ => psql(world, &format!("SELECT count(pg_terminate_backend(pid)) {ours}")).await,
            }
        };
        let (failed, spoiled) = tokio::join!(appliance(world, &["backup", "now", "db"]), spoil);
        spoiled?;
        failed?.expect_code(1)?;
        ensure!(
            problems(world).await?.contains("backup of demo/db failed"),
            "{trouble} is told"
        );
        if trouble == "stop" {
            good(world, &["accessory", "start", "db"]).await?;
            until("it is back", || async { Ok(rows(world).await.is_ok()) }).await?;
        }
        let locker =
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%'";
        psql(world, locker).await?;
        let (usable, bad) = listed(world).await?;
        ensure!(
            usable.len() == 1 && bad.is_empty(),
            "{trouble}: {usable:?} {bad:?}"
        );
        let orphans = format!("SELECT count(*) {ours}");
        ensure!(psql(world, &orphans).await? == "0", "no orphan after {trouble}");
    }
    let rules = "/var/lib/postgresql/data/pg_hba.conf";
    let guarded = format!("cp {rules} /tmp/hba && sed -i 's/trust/scram-sha-256/' {rules}");
    world
        .run(&["docker", "exec", "demo-db", "sh", "-c", &guarded])
        .await?;
    psql(
        world,
        "ALTER ROLE postgres PASSWORD 'another'; SELECT pg_reload_conf()",
    )
    .await?;
    until("the rules hold", || async { Ok(rows(world).await.is_err()) }).await?;
    appliance(world, &["backup", "now", "db"])
        .await?
        .expect_code(1)?
        .expect_error("password authentication failed")?;
    let open = format!("cp /tmp/hba {rules} && kill -HUP 1");
    world
        .run(&["docker", "exec", "demo-db", "sh", "-c", &open])
        .await?;
    until("the rules are gone", || async { Ok(rows(world).await.is_ok()) }).await?;
    good(world, &["backup", "now", "db"]).await?;
    ensure!(!problems(world).await?.contains("backup of demo/db failed"));
    let (usable, bad) = listed(world).await?;
    ensure!(usable.len() == 2 && bad.is_empty(), "{usable:?} {bad:?}");
    Ok(())
}

/// The disk of the backups is full in the middle.
async fn a_full_disk(world: &World) -> anyhow::Result<()> {
    // A file system of its own, with less room than one more backup needs; the agent sees its own mounts alone.
    let used = world.run(&["du", "-sb", PLACE]).await?;
    let used: u64 = used.split_whitespace().next().context("du")?.parse()?;
    let size = format!("size={}", used + (3 << 20));
    let agent = "nsenter --mount --target $(systemctl show --property=MainPID --value appliance-agent.service) -- sh -ec";
    let small = format!(
        "mv {PLACE} {PLACE}-kept && mkdir -m 700 {PLACE} && \
         {agent} 'mount -t tmpfs -o {size},mode=700 tmpfs {PLACE}; cp -a {PLACE}-kept/. {PLACE}/'"
    );
    world.run(&["sh", "-ec", &small]).await?;
    appliance(world, &["backup", "now", "db"])
        .await?
        .expect_code(1)?
        .expect_error("No space left")?;
    let (usable, bad) = listed(world).await?;
    ensure!(usable.len() == 2 && bad.is_empty(), "{usable:?} {bad:?}");
    let left = format!("{agent} 'find {PLACE} -name \"*upload-*\"'");
    let left = world.run(&["sh", "-ec", &left]).await?;
    ensure!(left.is_empty(), "{left}");
    let back = format!("{agent} 'umount {PLACE}'; rmdir {PLACE}; mv {PLACE}-kept {PLACE}");
    world.run(&["sh", "-ec", &back]).await?;
    good(world, &["backup", "now", "db"]).await?;
    ensure!(!problems(world).await?.contains("backup of demo/db failed"));
    ensure!(rows(world).await? == "6000");
    Ok(())
}

/// A manifest with another number in it, and an old one in the place of a new one.
async fn altered_and_replayed(world: &World) -> anyhow::Result<()> {
    let (before, _) = listed(world).await?;
    let newest = before.last().context("a backup")?.clone();
    let oldest = before.first().context("a backup")?.clone();
    let find = |id: &str| format!("$(find {PLACE} -path '*{id}/manifest.json')");
    let replay = format!(
        "cp {new} /root/manifest && cat {old} > {new}",
        new = find(&newest),
        old = find(&oldest)
    );
    let alter = format!(
        "sed -i 's/\"format\":1/\"format\":1 /; s/6000/6001/' {}",
        find(&newest)
    );
    for trouble in [replay, alter] {
        world.run(&["sh", "-c", &trouble]).await?;
        let (usable, bad) = listed(world).await?;
        ensure!(
            !usable.contains(&newest) && bad == [newest.clone()],
            "{trouble}: {usable:?} {bad:?}"
        );
        appliance(world, &["restore", "db", "--backup", &newest])
            .await?
            .expect_code(1)?
            .expect_error("cannot be used")?;
        let back = format!("cat /root/manifest > {}", find(&newest));
        world.run(&["sh", "-c", &back]).await?;
    }
    // A part of a volume, of the same size as before.
    let volume = format!("$(find {PLACE} -path '*{newest}/vol-00000*')");
    let flip = format!(
        "cp -p {volume} /root/volume && printf X | dd of={volume} bs=1 seek=700000 conv=notrunc status=none"
    );
    world.run(&["sh", "-c", &flip]).await?;
    appliance(world, &["backup", "verify", "db", "--backup", &newest])
        .await?
        .expect_code(1)?;
    appliance(
        world,
        &["restore", "db", "--backup", &newest, "--swap", "--no-backup"],
    )
    .await?
    .expect_code(1)?;
    ensure!(rows(world).await? == "6000");
    world
        .run(&["sh", "-c", &format!("cat /root/volume > {volume}")])
        .await?;
    good(world, &["backup", "verify", "db", "--backup", &newest]).await?;
    let databases = "SELECT count(*) FROM pg_database WHERE datname LIKE 'shop%'";
    ensure!(psql(world, databases).await? == "1", "no side database is left");
    Ok(())
}

/// Data that vanished is told for as long as nobody says that it should; undo needs no backups.
async fn shrinkage_and_undo(world: &World) -> anyhow::Result<()> {
    psql(world, "DELETE FROM orders WHERE n > 100").await?;
    for _ in 0..2 {
        let said = good(world, &["backup", "now", "db"]).await?.stderr;
        ensure!(said.contains("rows fell from 6000 to 100"), "{said}");
        let status = problems(world).await?;
        ensure!(
            status.contains("not like those before") && status.contains("backup prune db --yes"),
            "{status}"
        );
    }
    let count = listed(world).await?.0.len();
    good(world, &["restore", "db", "--swap"]).await?;
    ensure!(rows(world).await? == "6000", "the latest is the last whole one");
    ensure!(
        listed(world).await?.0.len() == count + 1,
        "what was replaced is in a backup"
    );
    // The place is away: what is kept beside the live database is enough.
    world.run(&["mv", PLACE, "/var/backups/away"]).await?;
    good(world, &["restore", "undo", "db"]).await?;
    ensure!(rows(world).await? == "100");
    good(world, &["restore", "undo", "db"]).await?;
    ensure!(rows(world).await? == "6000");
    // Somebody emptied the place: a new repository there is no success.
    let said = good(world, &["backup", "now", "db"]).await?;
    drop(said);
    let status = problems(world).await?;
    ensure!(status.contains("there is a new repository"), "{status}");
    world
        .run(&[
            "sh",
            "-c",
            &format!("rm -r {PLACE} && mv /var/backups/away {PLACE}"),
        ])
        .await?;
    good(world, &["backup", "now", "db"]).await?;
    ensure!(!problems(world).await?.contains("not like those before"));
    // Somebody takes one away, and leaves the newer ones.
    let taken = listed(world).await?.0.first().context("a backup")?.clone();
    let manifest = world
        .run(&["find", PLACE, "-path", &format!("*{taken}/manifest.json")])
        .await?;
    world.run(&["mv", &manifest, "/var/tmp/taken"]).await?;
    good(world, &["backup", "now", "db"]).await?;
    let status = problems(world).await?;
    ensure!(
        status.contains("which this host did not remove") && status.contains(&taken),
        "{status}"
    );
    world.run(&["mv", "/var/tmp/taken", &manifest]).await?;
    good(world, &["backup", "now", "db"]).await?;
    ensure!(!problems(world).await?.contains("not like those before"));
    Ok(())
}

/// A swap was cut off while its server was going down, and a prune may not delete.
async fn clocks_and_crashes(world: &World) -> anyhow::Result<()> {
    let subject = r#""subject":{"app":"demo","kind":"postgres","accessory":"db","unit":"shop"}"#;
    let swap = format!(
        r#"{{"operation":"swap",{subject},"live":"shop","side":"shop_restore_gone","before":"shop_before_gone"}}"#
    );
    // A key that cannot be deleted: it is a directory.
    let prune = format!(r#"{{"operation":"prune",{subject},"keys":["demo"]}}"#);
    let close = "ALTER DATABASE shop ALLOW_CONNECTIONS false";
    let words = ["docker", "exec", "demo-db", "psql", "-U", "postgres", "-c", close];
    world.run(&words).await?;
    ensure!(rows(world).await.is_err());
    good(world, &["accessory", "stop", "db"]).await?;
    world
        .run(&["systemctl", "stop", "appliance-agent.service"])
        .await?;
    // A backup was under way as well, whose rubbish takes a place that hangs.
    let id = "20260101T000000Z-0000000000";
    let backup = format!(r#"{{"operation":"backup",{subject},"id":"{id}","uploads":[]}}"#);
    let description = format!("{PLACE}/appliance.json");
    let hang = format!("mv {description} {description}-kept && mkfifo {description}");
    world.run(&["sh", "-c", &hang]).await?;
    for (name, text) in [
        (id, backup),
        ("prune-0000000001", prune),
        ("undo-0000000002", swap),
    ] {
        world
            .host
            .copy_in(&format!("{JOURNAL}/{name}.json"), text.into_bytes(), 0o600)
            .await?;
    }
    world.ready().await?;
    let status = problems(world).await?;
    ensure!(status.contains("a restore was interrupted"), "{status}");
    good(world, &["accessory", "start", "db"]).await?;
    until("the database is opened again", || async {
        Ok(rows(world).await.is_ok_and(|rows| rows == "6000"))
    })
    .await?;
    // What needs no backup waits for no place of backups.
    good(world, &["restore", "undo", "db"]).await?;
    good(world, &["restore", "undo", "db"]).await?;
    ensure!(rows(world).await? == "6000");
    let answer = format!("timeout 5 sh -c 'echo > {description}'; mv -f {description}-kept {description}");
    world.run(&["sh", "-c", &answer]).await?;
    // A prune that cannot be finished is told, and stands in nobody's way.
    until("the prune is told", || async {
        Ok(problems(world).await?.contains("could not be removed"))
    })
    .await?;
    good(world, &["restore", "db", "--into", "copy"]).await?;
    missed(world).await
}

/// The agent was away when a run was due, and the clock was wrong meanwhile.
async fn missed(world: &World) -> anyhow::Result<()> {
    let before = listed(world).await?.0.len();
    world
        .run(&["systemctl", "stop", "appliance-agent.service"])
        .await?;
    let mut ledger: serde_json::Value = serde_json::from_slice(&world.host.read(LEDGER).await?)?;
    let now = jiff::Timestamp::now();
    let days = |days: i64| now.checked_add(jiff::SignedDuration::from_hours(24 * days));
    let record = &mut ledger["data"]["demo/db"];
    record["last_run"] = serde_json::json!(days(-700)?.to_string());
    record["since"] = record["last_run"].clone();
    record["good"] = serde_json::json!([days(3650)?.to_string(), 1000]);
    world
        .host
        .copy_in(LEDGER, serde_json::to_vec(&ledger)?, 0o600)
        .await?;
    world.ready().await?;
    let status = problems(world).await?;
    ensure!(status.contains("in the future: the clock was wrong"), "{status}");
    until("the missed run", || async {
        Ok(listed(world).await?.0.len() > before)
    })
    .await?;
    until("its end", || async { Ok(job(world).await?["running"] == false) }).await?;
    let status = problems(world).await?;
    ensure!(
        !status.contains("in the future") && status.contains("was late"),
        "{status}"
    );
    let audit = good(world, &["audit", "--json"]).await?.stdout;
    ensure!(audit.contains("schedule"), "{audit}");
    good(world, &["audit", "--verify"]).await?;
    Ok(())
}

/// Told when the configuration arrives, and no reason to fail a push.
async fn a_place_that_cannot_be_used(world: &World) -> anyhow::Result<()> {
    configure(
        world,
        "",
        "to: 's3://nowhere/at/all', endpoint: 'http://127.0.0.1:9'",
    )
    .await?;
    world
        .developer
        .write(".kamal/secrets", "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=b\n")?;
    let said = good(world, &["push", "--version", "v1"]).await?.stderr;
    ensure!(said.contains("the backups of demo/db cannot be stored"), "{said}");
    let status = problems(world).await?;
    ensure!(
        status.contains("the backups of demo/db cannot be stored"),
        "{status}"
    );
    // A list says what is wrong, and does not wait for a quarter of an hour.
    let list = good(world, &["backup", "list"]).await?.stdout;
    ensure!(list.contains("s3://nowhere/at/all"), "{list}");
    configure(
        world,
        "",
        &format!("to: 'file://{PLACE}', spool: true, bandwidth: 16k"),
    )
    .await?;
    let said = good(world, &["push", "--version", "v1"]).await?.stderr;
    ensure!(!said.contains("cannot be stored"), "{said}");
    ensure!(!problems(world).await?.contains("cannot be stored"));
    Ok(())
}

/// The dump is over while the link, at 16 KiB a second, has carried nothing of it; a crash leaves nothing of it on the disk.
async fn a_spool_and_a_crash(world: &World) -> anyhow::Result<()> {
    // Databases go one after the other: at this rate another one would take minutes before it.
    psql(world, "DROP DATABASE IF EXISTS copy").await?;
    psql(
        world,
        "CREATE TABLE large AS SELECT n, (SELECT string_agg(md5(random()::text || n || m), '') FROM generate_series(1, 80) m) AS x \
         FROM generate_series(1, 40000) AS n",
    )
    .await?;
    let (before, _) = listed(world).await?;
    let spool = "/var/lib/appliance/backups/spool";
    let ours = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'appliance backup _%'";
    let waiting = async || {
        let files = format!("find {spool} -type f | wc -l");
        Ok::<u32, anyhow::Error>(world.run(&["sh", "-c", &files]).await?.parse()?)
    };
    let spoil = async {
        until(
            "the database is let go while most of it waits on the disk",
            || async { Ok(waiting().await? > 1 && psql(world, ours).await? == "0") },
        )
        .await?;
        let open = format!("grep -rlE '[0-9a-f]{{64}}' {spool} || :");
        let open = world.run(&["sh", "-c", &open]).await?;
        ensure!(open.is_empty(), "what waits is sealed: {open}");
        let mode = world.run(&["sh", "-c", &format!("stat -c %a {spool}/*")]).await?;
        ensure!(mode == "700", "{mode}");
        world.crash("appliance-agent.service").await
    };
    let (cut, spoiled) = tokio::join!(appliance(world, &["backup", "now", "db"]), spoil);
    spoiled?;
    ensure!(cut?.code != 0);
    world.ready().await?;
    until("the spool is empty", || async { Ok(waiting().await? == 0) }).await?;
    let (usable, _) = listed(world).await?;
    ensure!(usable == before, "{usable:?}");
    psql(world, "DROP TABLE large").await?;
    configure(world, "", &format!("to: 'file://{PLACE}', spool: true")).await?;
    good(world, &["push", "--version", "v1"]).await?;
    good(world, &["backup", "now", "db"]).await?;
    ensure!(waiting().await? == 0);
    // A database that is not there any more is told until somebody says that this is as it should be.
    ensure!(problems(world).await?.contains("not like those before"));
    good(world, &["backup", "prune", "db", "--yes"]).await?;
    let (usable, bad) = listed(world).await?;
    ensure!(
        usable.len() > before.len() && bad.is_empty(),
        "{usable:?} {bad:?}"
    );
    Ok(())
}

/// Somebody fills the disk of the server while a second database grows there.
async fn a_disk_that_fills_up_under_a_restore(world: &World) -> anyhow::Result<()> {
    let volume = [
        "docker",
        "volume",
        "create",
        "--opt=type=tmpfs",
        "--opt=device=tmpfs",
        "--opt=o=size=900m",
        "small",
    ];
    world.run(&volume).await?;
    let image = world
        .bench
        .sandbox
        .ensure(&Image::Postgres(Distro::Debian13), &|_| ())
        .await?;
    let ip = world.ip().await?;
    let small = format!(
        "  small:\n    image: {}\n    host: {ip}\n    env: {{clear: {{POSTGRES_PASSWORD: secret, POSTGRES_DB: tiny}}}}\n\
         \x20   volumes: ['small:/var/lib/postgresql/data']\n",
        image.as_str()
    );
    let backups =
        format!("to: 'file://{PLACE}'}}\n    small: {{kind: postgres, drill: false, to: 'file://{PLACE}'");
    configure(world, &small, &backups).await?;
    good(world, &["accessory", "boot", "small"]).await?;
    good(world, &["push", "--version", "v1"]).await?;
    let ask = async |statement: &str| {
        let words = [
            "docker",
            "exec",
            "demo-small",
            "psql",
            "-U",
            "postgres",
            "-d",
            "tiny",
            "-Atc",
            statement,
        ];
        world.run(&words).await
    };
    ask("CREATE TABLE n AS SELECT generate_series(1, 3000000) AS n").await?;
    // Rows come in no faster than this lets them, so that there is a middle on a fast machine too.
    ask(
        "CREATE FUNCTION pace() RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.002); RETURN true; END'",
    )
    .await?;
    ask("ALTER TABLE n ADD CHECK (n % 2000 <> 0 OR public.pace())").await?;
    good(world, &["backup", "now", "small"]).await?;
    let sides = "SELECT count(*) FROM pg_database WHERE datname LIKE 'tiny_restore_%'";
    let filler = "/var/lib/postgresql/data/filler";
    let spoil = async {
        until("it restores", || async { Ok(ask(sides).await? != "0") }).await?;
        let fill = format!("dd if=/dev/zero of={filler} bs=1M 2>/dev/null || :");
        world
            .run(&["docker", "exec", "demo-small", "sh", "-c", &fill])
            .await
    };
    let (failed, spoiled) = tokio::join!(appliance(world, &["restore", "small"]), spoil);
    spoiled?;
    failed?.expect_code(1)?.expect_error("is full")?;
    world.run(&["docker", "exec", "demo-small", "rm", filler]).await?;
    until("the live data is as it was", || async {
        Ok(ask("SELECT count(*) FROM n")
            .await
            .is_ok_and(|rows| rows == "3000000"))
    })
    .await?;
    until("the side database is gone", || async {
        Ok(ask(sides).await.is_ok_and(|sides| sides == "0"))
    })
    .await?;
    // Before it begins, where it is known beforehand.
    let fill = format!(
        "set -- $(df -P -k $(dirname {filler}) | tail -n 1); \
         dd if=/dev/zero of={filler} bs=1M count=$(($4 / 1024 - 80)) 2>/dev/null"
    );
    world
        .run(&["docker", "exec", "demo-small", "sh", "-c", &fill])
        .await?;
    appliance(world, &["restore", "small"])
        .await?
        .expect_code(1)?
        .expect_error("the restore needs about")?;
    appliance(world, &["restore", "small", "--table", "public.n"])
        .await?
        .expect_code(1)?
        .expect_error("the rows of public.n need about")?;
    world.run(&["docker", "exec", "demo-small", "rm", filler]).await?;
    good(world, &["restore", "small", "--into", "copy"]).await?;
    // What was backed up under another name goes the same way.
    let former = [
        "restore",
        "small",
        "--from",
        "db",
        "--database",
        "shop",
        "--into",
        "renamed",
    ];
    good(world, &former).await?;
    let renamed = [
        "docker",
        "exec",
        "demo-small",
        "psql",
        "-U",
        "postgres",
        "-d",
        "renamed",
        "-Atc",
        "SELECT count(*) FROM orders",
    ];
    ensure!(world.run(&renamed).await? == "6000");
    let list = good(world, &["backup", "list", "--from", "db"]).await?.stdout;
    ensure!(list.contains("6000 rows"), "{list}");
    Ok(())
}

/// A key pair: the secret half and the public one.
async fn keygen(world: &World) -> anyhow::Result<(String, String)> {
    let said = good(world, &["backup", "keygen"]).await?.stdout;
    let mut lines = said.lines();
    let secret = lines.next().context("a secret")?.to_owned();
    let public = lines.next().and_then(|line| line.strip_prefix("recovery: "));
    Ok((secret, public.context("a public half")?.to_owned()))
}

/// Another key makes it another host: what the former one made is told apart, and comes back with the recovery key.
async fn a_host_that_was_rebuilt(world: &World) -> anyhow::Result<()> {
    let (secret, public) = keygen(world).await?;
    let backups = format!("to: 'file://{PLACE}', recovery: {public}");
    configure(world, "", &backups).await?;
    good(world, &["push", "--version", "v1"]).await?;
    good(world, &["backup", "now", "db"]).await?;
    let (newest, _) = listed(world).await?;
    let newest = newest.last().context("a backup")?.clone();
    world
        .run(&["systemctl", "stop", "appliance-agent.service"])
        .await?;
    let (other, _) = keygen(world).await?;
    world
        .host
        .copy_in(
            "/etc/appliance/host.key",
            format!("{other}\n").into_bytes(),
            0o600,
        )
        .await?;
    world.ready().await?;
    good(world, &["push", "--version", "v1"]).await?;
    good(world, &["backup", "now", "db"]).await?;
    let status = problems(world).await?;
    ensure!(!status.contains("not like those before"), "{status}");
    let (usable, bad) = listed(world).await?;
    ensure!(usable.len() == 1 && bad.contains(&newest), "{usable:?} {bad:?}");
    let list = good(world, &["backup", "list"]).await?.stdout;
    let key = list
        .split("--trust ")
        .nth(1)
        .and_then(|rest| rest.split([',', ' ']).next())
        .context("the key of the former host")?
        .to_owned();
    let restore = [
        "restore",
        "db",
        "--database",
        "shop",
        "--into",
        "rebuilt",
        "--trust",
        &key,
    ];
    appliance(world, &restore)
        .await?
        .expect_code(1)?
        .expect_error("--recovery-key FILE")?;
    world
        .developer
        .write("recovery.key", &format!("# kept on paper\n{secret}\n"))?;
    good(
        world,
        &[&restore[..], &["--recovery-key", "recovery.key"]].concat(),
    )
    .await?;
    let words = [
        "docker",
        "exec",
        "demo-db",
        "psql",
        "-U",
        "postgres",
        "-d",
        "rebuilt",
        "-Atc",
        "SELECT count(*) FROM orders",
    ];
    ensure!(world.run(&words).await? == "6000");
    let audit = good(world, &["audit", "--json"]).await?.stdout;
    ensure!(!audit.contains("AGE-SECRET-KEY"), "no key is in the record");
    Ok(())
}
