//! The PostgreSQL image does what the official one documents.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use appliance_sandbox::{Distro, Image};
use appliance_tests::Bench;
use appliance_tests::bench::{LABEL, Removal};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

#[tokio::test]
async fn postgresql_15_starts_like_the_official_image() -> anyhow::Result<()> {
    starts(Distro::Debian12, "15").await
}

#[tokio::test]
async fn postgresql_17_starts_like_the_official_image() -> anyhow::Result<()> {
    starts(Distro::Debian13, "17").await
}

async fn starts(distro: Distro, version: &str) -> anyhow::Result<()> {
    let bench = Bench::connect().await?;
    let image = bench.sandbox.ensure(&Image::Postgres(distro), &|_| ()).await?;

    // A new database without a password is refused, and says what to set.
    let refused = Command::new("docker")
        .args(["run", "--rm", image.as_str()])
        .output()
        .await?;
    ensure!(refused.status.code() == Some(1));
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("POSTGRES_PASSWORD"));

    let files = tempfile::tempdir()?;
    let write = |name: &str, text: &str| fs_err::write(files.path().join(name), text);
    write("password", "secret\n")?;
    fs_err::create_dir(files.path().join("init"))?;
    write(
        "init/1.sql",
        "CREATE TABLE numbers (n int); INSERT INTO numbers VALUES (1);",
    )?;
    write(
        "init/2.sh",
        "psql --username \"$POSTGRES_USER\" --dbname \"$POSTGRES_DB\" -c 'INSERT INTO numbers VALUES (2)'",
    )?;
    let name = Bench::name("postgres")?;
    let _removal = Removal::of(&name);
    let mount = |from: &str, to: &str| format!("--volume={}:{to}:ro", files.path().join(from).display());
    docker(&[
        "run",
        "--detach",
        "--name",
        name.as_str(),
        &format!("--label={LABEL}={}", std::process::id()),
        "--label=appliance.sandbox=database",
        &mount("password", "/run/password"),
        &mount("init", "/docker-entrypoint-initdb.d"),
        "--env=POSTGRES_PASSWORD_FILE=/run/password",
        "--env=POSTGRES_USER=app",
        "--env=POSTGRES_DB=shop",
        "--env=POSTGRES_INITDB_ARGS=--data-checksums",
        image.as_str(),
        "-c",
        "shared_buffers=32MB",
    ])
    .await?;
    log_says(name.as_str(), "init process complete").await?;
    log_says(name.as_str(), "listening on IPv4 address \"0.0.0.0\"").await?;

    let query = "SELECT string_agg(n::text, ',') FROM numbers; SHOW data_checksums; SHOW shared_buffers; SHOW server_encoding";
    let psql = |password: &str| {
        let (name, env) = (name.to_string(), format!("--env=PGPASSWORD={password}"));
        async move {
            let words = [
                "exec",
                &env,
                &name,
                "psql",
                "--host=127.0.0.1",
                "--username=app",
                "--dbname=shop",
                "-Atc",
                query,
            ];
            docker(&words).await
        }
    };
    // The socket opens a moment after the line above.
    let answer = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            if let Ok(answer) = psql("secret").await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
    .context("the database does not let its user in")?;
    ensure!(answer == "1,2\non\n32MB\nUTF8", "{answer}");
    // The socket's own line in pg_hba.conf trusts the loopback, as in the official image; other addresses do not pass.
    let address = docker(&[
        "inspect",
        "--format={{.NetworkSettings.IPAddress}}",
        name.as_str(),
    ])
    .await?;
    let host = format!("--host={address}");
    let wrong = [
        "exec",
        "--env=PGPASSWORD=wrong",
        name.as_str(),
        "psql",
        &host,
        "--username=app",
        "shop",
        "-c",
        "SELECT 1",
    ];
    ensure!(docker(&wrong).await.is_err(), "a wrong password is let in");
    ensure!(docker(&["exec", name.as_str(), "id", "-u", "postgres"]).await? == "999");
    ensure!(
        docker(&[
            "exec",
            name.as_str(),
            "cat",
            "/var/lib/postgresql/data/PG_VERSION"
        ])
        .await?
            == version
    );

    // SIGINT is a fast shutdown: clean, long before Docker would kill.
    docker(&["stop", "--time=30", name.as_str()]).await?;
    ensure!(docker(&["inspect", "--format={{.State.ExitCode}}", name.as_str()]).await? == "0");
    docker(&["start", name.as_str()]).await?;
    log_says(name.as_str(), "Skipping initialization").await
}

async fn docker(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("docker")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await?;
    if !output.status.success() {
        bail!(
            "docker {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Follows a container's log, which PostgreSQL writes to standard error, until a line holds a text.
async fn log_says(name: &str, text: &str) -> anyhow::Result<()> {
    let mut child = Command::new("docker")
        .args(["logs", "--follow", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("its standard error is a pipe")?).lines();
    tokio::time::timeout(Duration::from_secs(120), async {
        while let Some(line) = lines.next_line().await? {
            if line.contains(text) {
                return Ok(());
            }
        }
        bail!("{name} ended without saying {text:?}");
    })
    .await
    .with_context(|| format!("{name} did not say {text:?}"))?
}
