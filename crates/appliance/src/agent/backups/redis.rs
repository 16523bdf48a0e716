//! Redis and Valkey: a snapshot in the background, then its file.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use appliance_backup::place::{Job as Program, Place, succeed};
use appliance_backup::stream::Feed;
use appliance_containers::engine::ContainerInfo;

use super::place::ContainerPlace;
use crate::agent::Agent;

/// How long a snapshot may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Between two looks: the server has no event for the end of a snapshot.
const PAUSE: Duration = Duration::from_millis(250);

/// Makes the server write its data set, and returns the file as a source.
///
/// # Errors
/// When the server refuses or the snapshot fails.
pub async fn snapshot(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<Feed> {
    let place: Arc<dyn Place> = Arc::new(ContainerPlace::new(Arc::clone(&agent.docker), info));
    let password = info
        .env
        .iter()
        .find_map(|entry| entry.strip_prefix("REDIS_PASSWORD="));
    let cli = |words: &[&str]| {
        let mut job = Program::new([&["redis-cli", "--no-auth-warning", "-e"], words].concat());
        if let Some(password) = password {
            job.env.push(("REDISCLI_AUTH".to_owned(), password.to_owned()));
        }
        job
    };
    let ask = async |words: &[&str]| -> anyhow::Result<String> {
        let ended = succeed(&*place, &cli(words)).await?;
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    };
    let progress = async || -> anyhow::Result<(bool, bool)> {
        let text = ask(&["INFO", "persistence"]).await?;
        Ok((
            text.contains("rdb_bgsave_in_progress:1"),
            text.contains("rdb_last_bgsave_status:ok"),
        ))
    };
    let wait = async || -> anyhow::Result<bool> {
        loop {
            let (running, good) = progress().await?;
            if !running {
                return Ok(good);
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let snapshot = async {
        // One that runs already may hold less than what was written by now.
        wait().await?;
        ask(&["BGSAVE"]).await?;
        wait().await
    };
    let good = tokio::time::timeout(LIMIT, snapshot)
        .await
        .context("the snapshot takes too long")??;
    if !good {
        bail!("the server could not write its snapshot; look at its log: is the disk full?");
    }
    let setting = async |name: &str| -> anyhow::Result<String> {
        let text = ask(&["CONFIG", "GET", name]).await?;
        let value = text.lines().nth(1).context("CONFIG GET answers nothing")?;
        Ok(value.to_owned())
    };
    let file = format!("{}/{}", setting("dir").await?, setting("dbfilename").await?);
    Ok(Feed::Job {
        place,
        job: Program::new(["cat".to_owned(), file]),
    })
}
