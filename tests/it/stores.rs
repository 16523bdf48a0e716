//! Accessories that are no PostgreSQL, on a real host: Redis, SQLite, plain files, MariaDB; kept well, backed up, restored.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use appliance_sandbox::{Command, Distro, Image};
use appliance_tests::World;
use appliance_tests::developer::Ran;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Names under which the one image goes, by which each accessory is told for what it is.
const NAMES: [&str; 4] = ["redis-test:7", "sqlite-test:3", "files-test:1", "mariadb-test:10"];

/// Somebody elsewhere who is told of good runs: paths, as they come.
async fn watcher() -> anyhow::Result<(u16, tokio::sync::mpsc::Receiver<String>)> {
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await?;
    let port = listener.local_addr()?.port();
    let (sender, paths) = tokio::sync::mpsc::channel(100);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut head = vec![0; 4096];
            let read = socket.read(&mut head).await.unwrap_or(0);
            let text = String::from_utf8_lossy(&head[..read]).into_owned();
            let path = text.split_whitespace().nth(1).unwrap_or_default().to_owned();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            let _answered = socket.write_all(answer).await;
            let _told = sender.send(path).await;
        }
    });
    Ok((port, paths))
}

async fn appliance(world: &World, words: &[&str]) -> anyhow::Result<Ran> {
    world.developer.appliance(words).run().await?.expect_code(0)
}

/// Runs a program in an accessory's container.
async fn inside(world: &World, container: &str, words: &[&str]) -> anyhow::Result<String> {
    world.run(&[&["docker", "exec", container], words].concat()).await
}

/// The backups of one accessory, oldest first, and what is said of the job.
async fn listed(world: &World, accessory: &str) -> anyhow::Result<serde_json::Value> {
    let all = appliance(world, &["backup", "list", "--json"]).await?.json()?;
    let jobs = all
        .as_object()
        .and_then(|hosts| hosts.values().next().cloned())
        .context("a host")?;
    let jobs = jobs.as_array().cloned().unwrap_or_default();
    jobs.into_iter()
        .find(|job| job["accessory"] == accessory)
        .with_context(|| format!("a job for {accessory}"))
}

fn count(job: &serde_json::Value) -> usize {
    job["backups"].as_array().map_or(0, Vec::len)
}

#[tokio::test]
async fn data_of_every_kind_is_backed_up_drilled_and_restored() -> anyhow::Result<()> {
    let world = World::bootstrapped("stores", Distro::Debian12).await?;
    let built = world.bench.sandbox.ensure(&Image::Data, &|_| ()).await?;
    let saved = tokio::process::Command::new("docker")
        .args(["save", built.as_str()])
        .output()
        .await?;
    let loaded = world
        .host
        .exec(&Command::new(["docker", "load"]).stdin(saved.stdout))
        .await?;
    ensure!(loaded.success(), "{}", loaded.error_text());
    for name in NAMES {
        world.run(&["docker", "tag", built.as_str(), name]).await?;
    }
    let (port, mut told) = watcher().await?;
    let route = world.run(&["ip", "-4", "route", "show", "default"]).await?;
    let gateway = route
        .split_whitespace()
        .nth(2)
        .context("a default route")?
        .to_owned();
    let ip = world.ip().await?;
    // The same machine under another name: a server of its own, as far as the configuration goes, which runs no role.
    let (_, apart) = world.host.addresses().await?;
    let more = format!(
        "accessories:\n\
         \x20 cache: {{image: 'redis-test:7', host: '{apart}', volumes: ['cache:/data'], cmd: 'redis-server --dir /data --appendonly yes --protected-mode no --requirepass s3cret'}}\n\
         \x20 notes: {{image: 'sqlite-test:3', host: {ip}, volumes: ['notes:/notes'], cmd: 'sleep infinity'}}\n\
         \x20 files: {{image: 'files-test:1', host: {ip}, volumes: ['uploads:/uploads'], cmd: 'sleep infinity'}}\n\
         \x20 old: {{image: 'mariadb-test:10', host: {ip}, cmd: 'mariadbd --user=mysql --socket=/tmp/mysqld.sock --pid-file=/tmp/mysqld.pid'}}\n\
         x-appliance:\n  watch: false\n  backups:\n\
         \x20   cache: {{to: 'file:///var/backups/data'}}\n\
         \x20   notes: {{kind: sqlite, to: 'file:///var/backups/data'}}\n\
         \x20   files: {{kind: volume, schedule: '* * * * *', to: 'file:///var/backups/data', ping: 'http://{gateway}:{port}/good', drill_ping: 'http://{gateway}:{port}/drilled'}}\n"
    );
    world.developer.demo_app("v1", &world, &more).await?;
    appliance(&world, &["accessory", "boot", "all"]).await?;
    appliance(&world, &["push", "--version", "v1"]).await?;
    let details = appliance(&world, &["accessory", "details", "all"]).await?.stdout;
    for asked in ["healthy (redis-cli", "healthy (mariadb-admin"] {
        ensure!(details.contains(asked), "{asked}: {details}");
    }

    // The files first: their schedule runs by itself while the rest is looked at.
    let fill = "cd /uploads && mkdir -p a/b && for n in 1 2 3 4 5; do head -c 300000 /dev/urandom > a/b/$n; done; \
                ln -s a/b/1 link; chmod 640 a/b/2; chown 1234:99 a/b/3; printf x > 'odd name'";
    inside(&world, "demo-files", &["sh", "-c", fill]).await?;

    redis(&world).await?;
    larger_than_the_helper(&world).await?;
    sqlite(&world).await?;

    // By itself, within two minutes and its share of jitter: both ends were told.
    let mut wanted = vec!["/good", "/drilled"];
    let both = async {
        while !wanted.is_empty() {
            let path = told.recv().await.context("the watcher ended")?;
            wanted.retain(|other| *other != path);
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(300), both)
        .await
        .context("the schedule told nobody")??;
    let status = appliance(&world, &["status"]).await?.stdout;
    let line = status
        .lines()
        .find(|line| line.contains("files to"))
        .context("a line")?;
    ensure!(
        line.contains("verified") && line.contains("restores in"),
        "{line}"
    );
    files(&world).await?;

    // On the host itself, without any configuration.
    let here = world.run(&["/usr/local/bin/appliance", "backup", "list"]).await?;
    ensure!(here.contains("cache to file:///var/backups/data"), "{here}");
    // What changes or reads a whole backup is signed there as well: with the key of whoever is at it.
    let verify = ["/usr/local/bin/appliance", "backup", "verify", "notes"];
    let unsigned = world.host.exec(&Command::new(verify)).await?;
    ensure!(
        unsigned.error_text().contains("appliance keys add"),
        "{}",
        unsigned.error_text()
    );
    let key = "mkdir -p -m 700 /root/.ssh && cp /root/.developer/id_ed25519* /root/.ssh/";
    world.run(&["sh", "-c", key]).await?;
    let signed = [&["env", "HOME=/root"][..], &verify].concat();
    world.run(&signed).await?;
    let explained = world
        .run(&["/usr/local/bin/appliance", "backup", "explain"])
        .await?;
    ensure!(explained.contains("the last 3, 24 hourly"), "{explained}");

    before_what_may_cost_data(&world).await
}

async fn redis(world: &World) -> anyhow::Result<()> {
    let cli = async |words: &[&str]| {
        let words = [&["redis-cli", "--no-auth-warning", "-a", "s3cret"], words].concat();
        inside(world, "demo-cache", &words).await
    };
    let fill = "for i = 1, 500 do redis.call('SET', 'key' .. i, string.rep('v', i)) end";
    cli(&["EVAL", fill, "0"]).await?;
    cli(&["RPUSH", "list", "a", "b"]).await?;
    let said = appliance(world, &["backup", "now", "cache"]).await?.stderr;
    ensure!(said.contains("501 keys loaded"), "{said}");
    cli(&["FLUSHALL"]).await?;
    cli(&["SET", "after", "1"]).await?;
    let refused = world
        .developer
        .appliance(["restore", "cache"])
        .run()
        .await?
        .expect_code(1)?;
    ensure!(refused.stderr.contains("--swap"), "{}", refused.stderr);
    let process = inside(world, "demo-cache", &["cat", "/proc/1/stat"]).await?;
    appliance(world, &["restore", "cache", "--swap"]).await?;
    ensure!(cli(&["DBSIZE"]).await? == "501");
    ensure!(cli(&["STRLEN", "key500"]).await? == "500");
    ensure!(cli(&["ROLE"]).await?.starts_with("master"));
    // It goes on being written to, and never stopped.
    cli(&["SET", "key501", "1"]).await?;
    let now = inside(world, "demo-cache", &["cat", "/proc/1/stat"]).await?;
    let started = |stat: &str| stat.split_whitespace().nth(21).map(str::to_owned);
    ensure!(started(&process) == started(&now), "the server was started again");
    appliance(world, &["restore", "undo", "cache"]).await?;
    ensure!(cli(&["KEYS", "*"]).await? == "after");
    appliance(world, &["restore", "undo", "cache"]).await?;
    ensure!(cli(&["DBSIZE"]).await? == "502");
    // What came back is what a restart finds, append-only file and all.
    world.run(&["docker", "restart", "demo-cache"]).await?;
    let loaded = async {
        while cli(&["DBSIZE"]).await.ok().as_deref() != Some("502") {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), loaded)
        .await
        .context("after a restart")?;
    let left = inside(
        world,
        "demo-cache",
        &["sh", "-c", "ls /data; redis-cli -p 16379 PING 2>&1 || :"],
    )
    .await?;
    ensure!(!left.contains("appliance-restore"), "{left}");
    ensure!(!left.contains("appliance-undone"), "{left}");
    ensure!(left.contains("refused"), "a second server is left behind: {left}");

    // Downloaded, it is sealed; the host's own key opens it as the recovery key would.
    appliance(
        world,
        &["backup", "download", "cache", "--output", "cache.zst.age"],
    )
    .await?;
    let sealed = world.developer.app().join("cache.zst.age");
    let bytes = fs_err::read(&sealed)?;
    let opened = world
        .host
        .exec(&Command::new(["sh", "-c", "cat > /root/sealed && cat /etc/appliance/host.key"]).stdin(bytes))
        .await?;
    let key = tempfile::NamedTempFile::new()?;
    fs_err::write(key.path(), opened.text())?;
    let clear = tokio::process::Command::new("age")
        .args(["--decrypt", "--identity"])
        .arg(key.path())
        .arg(&sealed)
        .output()
        .await?;
    ensure!(
        clear.status.success(),
        "{}",
        String::from_utf8_lossy(&clear.stderr)
    );
    // The magic number of a zstd frame.
    ensure!(clear.stdout.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
    Ok(())
}

/// A data set that takes more memory than a throw-away container usually has, and a server that has too little for two.
async fn larger_than_the_helper(world: &World) -> anyhow::Result<()> {
    let cli = async |words: &[&str]| {
        let words = [&["redis-cli", "--no-auth-warning", "-a", "s3cret"], words].concat();
        inside(world, "demo-cache", &words).await
    };
    // Its snapshot is a hundredth of that.
    cli(&["CONFIG", "SET", "appendonly", "no"]).await?;
    let fill = "for i = 1, 600 do redis.call('SET', 'large' .. i, string.rep('v', 1048576)) end";
    cli(&["EVAL", fill, "0"]).await?;
    appliance(world, &["backup", "now", "cache"]).await?;
    let said = appliance(world, &["backup", "drill", "cache"]).await?.stderr;
    ensure!(said.contains("1102 keys loaded"), "{said}");
    let limit = [
        "docker",
        "update",
        "--memory=1g",
        "--memory-swap=1g",
        "demo-cache",
    ];
    world.run(&limit).await?;
    let refused = world
        .developer
        .appliance(["restore", "cache", "--swap", "--no-backup"])
        .run()
        .await?
        .expect_code(1)?;
    ensure!(
        refused
            .stderr
            .contains("beside the live one in demo-cache needs about"),
        "{}",
        refused.stderr
    );
    ensure!(cli(&["DBSIZE"]).await? == "1102");
    let spared = "for i = 1, 600 do redis.call('DEL', 'large' .. i) end";
    cli(&["EVAL", spared, "0"]).await?;
    Ok(())
}

async fn sqlite(world: &World) -> anyhow::Result<()> {
    let ask = async |statement: &str| {
        inside(world, "demo-notes", &["sqlite3", "/notes/app.sqlite3", statement]).await
    };
    ask(
        "PRAGMA journal_mode = WAL; CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT); \
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) \
         INSERT INTO notes SELECT i, hex(randomblob(100)) FROM n",
    )
    .await?;
    inside(
        world,
        "demo-notes",
        &["sh", "-c", "echo 'no database' > /notes/readme"],
    )
    .await?;
    let said = appliance(world, &["backup", "now", "notes"]).await?.stderr;
    ensure!(said.contains("1 tables, in order"), "{said}");
    ask("DELETE FROM notes WHERE id > 10; CREATE TABLE later (x)").await?;
    appliance(world, &["restore", "notes", "--swap"]).await?;
    ensure!(ask("SELECT count(*) FROM notes").await? == "3000");
    ensure!(ask("SELECT count(*) FROM sqlite_master WHERE name = 'later'").await? == "0");
    appliance(world, &["restore", "undo", "notes"]).await?;
    ensure!(ask("SELECT count(*) FROM notes").await? == "10");
    appliance(world, &["restore", "notes", "--into", "copy.sqlite3"]).await?;
    let copy = ["sqlite3", "/notes/copy.sqlite3", "SELECT count(*) FROM notes"];
    ensure!(inside(world, "demo-notes", &copy).await? == "3000");
    inside(world, "demo-notes", &["rm", "/notes/copy.sqlite3"]).await?;
    Ok(())
}

async fn files(world: &World) -> anyhow::Result<()> {
    let digest =
        "cd /uploads && find . -type f -exec sha256sum {} + | sort; stat -c '%a %u %g %N' a/b/* link";
    let before = inside(world, "demo-files", &["sh", "-c", digest]).await?;
    let whole = jiff::Timestamp::now().to_string();
    inside(world, "demo-files", &["rm", "-r", "/uploads/a"]).await?;
    // The schedule goes on meanwhile; its run is waited for.
    let restored = async {
        loop {
            let ran = world
                .developer
                .appliance(["restore", "files", "--at", &whole, "--into", "uploads-again"])
                .run()
                .await?;
            if !ran.stderr.contains("runs already") {
                return ran.expect_code(0);
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let said = tokio::time::timeout(Duration::from_secs(60), restored)
        .await??
        .stderr;
    ensure!(said.contains("uploads-again"), "{said}");
    let image = NAMES[2];
    let after = world
        .run(&[
            "docker",
            "run",
            "--rm",
            "--volume=uploads-again:/uploads",
            image,
            "sh",
            "-c",
            digest,
        ])
        .await?;
    ensure!(after == before, "{before}\n{after}");
    Ok(())
}

/// An upgrade and a removal take a backup first.
async fn before_what_may_cost_data(world: &World) -> anyhow::Result<()> {
    let before = count(&listed(world, "notes").await?);
    world
        .run(&[
            "docker",
            "commit",
            "--message=newer",
            "demo-notes",
            "sqlite-test:3",
        ])
        .await?;
    appliance(world, &["accessory", "upgrade", "notes"]).await?;
    ensure!(
        count(&listed(world, "notes").await?) > before,
        "no backup before the upgrade"
    );
    // Who removes it need not list it any more.
    let stored = async |what: &str| -> anyhow::Result<u64> {
        let manifests = format!("find /var/backups/data/demo/{what} -name manifest.json | wc -l");
        Ok(world.run(&["sh", "-c", &manifests]).await?.parse()?)
    };
    let before = stored("redis/cache").await?;
    let said = appliance(world, &["accessory", "remove", "cache", "--confirm", "cache"])
        .await?
        .stderr;
    ensure!(said.contains("backed"), "{said}");
    ensure!(
        stored("redis/cache").await? == before + 1,
        "no backup before the removal"
    );
    let volumes = world.run(&["docker", "volume", "ls", "--quiet"]).await?;
    ensure!(!volumes.lines().any(|name| name == "cache"), "{volumes}");

    // The app goes, its data stays, and so do its backups; what then takes the data takes a backup first all the same.
    appliance(world, &["remove", "-y"]).await?;
    let status = appliance(world, &["status"]).await?.stdout;
    ensure!(status.contains("notes to file"), "{status}");
    appliance(world, &["backup", "now", "notes"]).await?;
    let before = stored("sqlite/notes").await?;
    ensure!(
        !status.contains("cache to file"),
        "the one that was removed is forgotten: {status}"
    );
    appliance(world, &["accessory", "remove", "notes", "--confirm", "notes"]).await?;
    ensure!(stored("sqlite/notes").await? == before + 1);
    Ok(())
}
