//! Redis and Valkey: a snapshot in the background, then its file; and back through a second server in the same container.
//!
//! ```text
//!  backup    BGSAVE ─► dump.rdb ─► FIFO ─► tap checks its CRC-64
//!  restore   FIFO ─► second server on the loopback loads it, or does not ─► the live one becomes its replica for as long as
//!            the data takes ─► the live one is its own master again
//! ```
//!
//! The live server never stops, keeps its connections, and its data is what it was until the whole of the new one is there.
//! That works with an append-only file, too, which a file put into the directory would not.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use appliance_backup::journal::Intent;
use appliance_backup::manifest::{DrillResult, Manifest};
use appliance_backup::names::Subject;
use appliance_backup::place::{Ended, Job as Program, Place, succeed};
use appliance_backup::repository::Repository;
use appliance_backup::stream::{self, Feed};
use appliance_backup::tap::Tap;
use appliance_containers::engine::ContainerInfo;
use appliance_containers::spec::Tuning;
use jiff::Timestamp;

use super::OUTSIDE;
use super::helper::{output, write_to};
use super::place::ContainerPlace;
use super::redis_password as password;
use super::room::{self, NoRoom};
use super::scratch::few;
use crate::agent::Agent;

/// How long a snapshot or a load may take.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Between two looks: the server has no event for the end of a snapshot.
const PAUSE: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 250 });
/// Where the second server listens, on the loopback of the container.
const SIDE: &str = "16379";
/// Its file.
const RESTORE: &str = "appliance-restore.rdb";
/// What its data set is called among backups.
pub(super) const UNIT: &str = "data";
/// What the live server held before a restore.
const BEFORE: &str = "appliance-before.rdb";
/// What it held before an undo, until that is done: then it is [`BEFORE`].
const UNDONE: &str = "appliance-undone.rdb";
/// A copy that is being made.
const PART: &str = "appliance-copy.part";
/// How often the live server is told that it is its own master.
const TRIES: u32 = 20;

/// A server that can be asked.
struct Server {
    place: Arc<dyn Place>,
    port: Option<&'static str>,
    password: Option<String>,
}

impl Server {
    /// The accessory's own.
    async fn live(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<Self> {
        let mut server = Self {
            place: Arc::new(ContainerPlace::new(Arc::clone(&agent.docker), info)),
            port: None,
            password: set_in(&info.env),
        };
        if server.password.is_none()
            && let Some(about) = agent.docker.description(&info.id.0).await?
        {
            let words = password::words(&about);
            server.password = password::among(&words, &info.env);
            // Only where it is needed: a file that cannot be read is no mistake where nobody asks for a password.
            if server.password.is_none() && server.asks_for_password().await? {
                server.password = server.password_in_files(&words).await?;
                if server.password.is_none() {
                    bail!(
                        "{} asks for a password that is not known here; next: give the accessory the secret \
                         REDIS_PASSWORD (env: secret: [REDIS_PASSWORD]), then: appliance accessory reboot",
                        info.name
                    );
                }
            }
        }
        Ok(server)
    }

    async fn asks_for_password(&self) -> anyhow::Result<bool> {
        let ended = self.try_ask(&["PING"]).await?;
        Ok(String::from_utf8_lossy(&ended.stdout).contains("NOAUTH") || ended.stderr.contains("NOAUTH"))
    }

    /// In one of the configuration files that it was started with.
    async fn password_in_files(&self, words: &[String]) -> anyhow::Result<Option<String>> {
        for file in words.iter().filter(|word| word.ends_with(".conf")) {
            let read = self.place.run(&Program::new(["cat", file.as_str()])).await?;
            let found = password::in_file(&String::from_utf8_lossy(&read.stdout));
            if read.code == 0 && found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    async fn try_ask(&self, words: &[&str]) -> anyhow::Result<Ended> {
        let mut job = Program::new(["redis-cli", "--no-auth-warning", "-e"]);
        if let Some(port) = self.port {
            job.command.extend(["-p".to_owned(), port.to_owned()]);
        }
        job.command.extend(words.iter().map(|word| (*word).to_owned()));
        if let Some(password) = &self.password {
            job.env.push(("REDISCLI_AUTH".to_owned(), password.clone()));
        }
        Ok(self.place.run(&job).await?)
    }

    async fn ask(&self, words: &[&str]) -> anyhow::Result<String> {
        let ended = self.try_ask(words).await?;
        let said = String::from_utf8_lossy(&ended.stdout).into_owned();
        // With `-e` an error is also an exit code, but what it was is on standard output.
        if ended.code != 0 {
            let why = if said.trim().is_empty() {
                ended.complaint()
            } else {
                said.trim().to_owned()
            };
            bail!("{} in {} says: {why}", words.join(" "), self.place.name());
        }
        Ok(said)
    }

    async fn setting(&self, name: &str) -> anyhow::Result<String> {
        let text = self.ask(&["CONFIG", "GET", name]).await?;
        let value = text.lines().nth(1).unwrap_or_default();
        Ok(value.to_owned())
    }

    /// The keys of all its databases.
    async fn keys(&self) -> anyhow::Result<u64> {
        let text = self.ask(&["INFO", "keyspace"]).await?;
        let count = |line: &str| {
            let rest = line.split_once(":keys=")?.1;
            rest.split(',').next()?.trim().parse::<u64>().ok()
        };
        Ok(text.lines().filter_map(count).sum())
    }

    async fn within<T>(
        &self,
        what: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::time::timeout(LIMIT, work)
            .await
            .with_context(|| format!("{what} takes longer than {} minutes", LIMIT.as_secs() / 60))?
    }

    /// Has it write its data set to its file, and waits for that.
    async fn save(&self) -> anyhow::Result<String> {
        let wait = async || -> anyhow::Result<bool> {
            loop {
                let text = self.ask(&["INFO", "persistence"]).await?;
                // One that rewrites its append-only file cannot write a snapshot at the same time.
                let busy = [
                    "rdb_bgsave_in_progress:1",
                    "aof_rewrite_in_progress:1",
                    "aof_rewrite_scheduled:1",
                ];
                if !busy.iter().any(|word| text.contains(word)) {
                    return Ok(text.contains("rdb_last_bgsave_status:ok"));
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let snapshot = async {
            // One that runs already may hold less than what was written by now.
            wait().await?;
            self.ask(&["BGSAVE"]).await?;
            wait().await
        };
        if !self.within("the snapshot", snapshot).await? {
            bail!("the server could not write its snapshot; look at its log: is the disk full?");
        }
        Ok(format!(
            "{}/{}",
            self.setting("dir").await?,
            self.setting("dbfilename").await?
        ))
    }
}

fn set_in(env: &[String]) -> Option<String> {
    let set = |name: &str| {
        let value = env
            .iter()
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    ["REDIS_PASSWORD", "REDISCLI_AUTH", "VALKEY_PASSWORD"]
        .into_iter()
        .find_map(set)
}

/// Makes the server write its data set, and returns the file as a source.
///
/// # Errors
/// When the server refuses or the snapshot fails.
pub(super) async fn snapshot(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<Feed> {
    let server = Server::live(agent, info).await?;
    tidy(&server).await?;
    let file = server.save().await?;
    Ok(Feed::Job {
        place: Arc::clone(&server.place),
        job: Program::new(["cat".to_owned(), file]),
    })
}

/// Ends what a restore left that was killed, and forgets what one replaced more than a day ago.
async fn tidy(server: &Server) -> anyhow::Result<()> {
    let directory = server.setting("dir").await?;
    // The copy had come through, and only what comes after it is missing.
    if free(server).await?.contains("master_link_status:up") {
        server.save().await?;
        done(server, &directory).await?;
    }
    end_side(server, &directory).await;
    for name in [BEFORE, UNDONE] {
        let words = [
            "find", &directory, "-name", name, "-mmin", "+1440", "-exec", "rm", "-f", "{}", "+",
        ];
        output(&*server.place, &words).await?;
    }
    Ok(())
}

/// Makes the live server its own master again, if it is a replica of a second server. Answers with what it said of that
/// before.
async fn free(server: &Server) -> anyhow::Result<String> {
    let text = server.ask(&["INFO", "replication"]).await?;
    if text.contains("role:slave") && text.contains(&format!("master_port:{SIDE}")) {
        server.ask(&["REPLICAOF", "NO", "ONE"]).await?;
        return Ok(text);
    }
    Ok(String::new())
}

/// What an undo replaced becomes what the next one brings back.
async fn done(server: &Server, directory: &str) -> anyhow::Result<()> {
    let undone = format!("{directory}/{UNDONE}");
    if server
        .place
        .run(&Program::new(["test", "-e", &undone]))
        .await?
        .code
        == 0
    {
        let before = format!("{directory}/{BEFORE}");
        output(&*server.place, &["mv", "-f", &undone, &before]).await?;
    }
    Ok(())
}

/// Ends what an interrupted restore left, as soon as the live server answers.
///
/// # Errors
/// When it does not answer yet.
pub(super) async fn settle(agent: &Agent, info: &ContainerInfo) -> anyhow::Result<String> {
    settled(&Server::live(agent, info).await?).await?;
    Ok("the server takes writes".to_owned())
}

async fn settled(server: &Server) -> anyhow::Result<()> {
    tidy(server).await?;
    // Its file may be that of other data than it holds; on a full disk it takes writes all the same.
    if let Err(error) = server.save().await {
        tracing::warn!("{}: {error:#}", server.place.name());
    }
    Ok(())
}

async fn end_side(server: &Server, directory: &str) {
    let side = Server {
        place: Arc::clone(&server.place),
        port: Some(SIDE),
        password: server.password.clone(),
    };
    // Mostly there is none.
    let _none = side.try_ask(&["SHUTDOWN", "NOSAVE"]).await;
    let (file, part) = (format!("{directory}/{RESTORE}"), format!("{directory}/{PART}"));
    let _none = output(&*server.place, &["rm", "-f", &file, &part]).await;
}

/// Starts a second server that loads `directory/RESTORE`.
async fn side(place: &Arc<dyn Place>, directory: &str, password: Option<&str>) -> anyhow::Result<Server> {
    let mut words = vec![
        "redis-server",
        "--port",
        SIDE,
        "--bind",
        "127.0.0.1",
        "--dir",
        directory,
        "--dbfilename",
        RESTORE,
        "--save",
        "",
        "--appendonly",
        "no",
        "--repl-diskless-sync-delay",
        "0",
        "--daemonize",
        "yes",
        "--logfile",
        "/dev/null",
        "--pidfile",
        "/tmp/appliance-restore.pid",
    ];
    if let Some(password) = password {
        words.extend(["--requirepass", password]);
    }
    let killed = room::kills(&**place).await;
    succeed(&**place, &Program::new(words)).await?;
    let server = Server {
        place: Arc::clone(place),
        port: Some(SIDE),
        password: password.map(str::to_owned),
    };
    let loaded = async {
        let mut refused = 0;
        loop {
            let ended = server.try_ask(&["PING"]).await?;
            let said = String::from_utf8_lossy(&ended.stdout).into_owned();
            if said.contains("PONG") {
                return Ok(());
            }
            // While it loads it answers so; one that does not load ends.
            if !said.contains("LOADING") {
                refused += 1;
            }
            if refused > 40 {
                if room::kills(&**place).await > killed {
                    bail!(NoRoom(format!(
                        "the kernel ended the second server in {} for want of memory; give it more, or restore where \
                         there is more: appliance backup download",
                        place.name()
                    )));
                }
                bail!("a server does not load it: it is damaged, or of a newer version than the image");
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    server.within("loading", loaded).await?;
    Ok(server)
}

/// Loads a backup into a throw-away server.
///
/// # Errors
/// When it does not load.
pub(super) async fn drill(
    agent: &Agent,
    repository: &Repository,
    manifest: &Manifest,
    image: &str,
) -> anyhow::Result<DrillResult> {
    let memory = room::memory(manifest);
    room::host_memory(memory, "the throw-away server of the drill")?;
    let tuning = Tuning {
        memory: i64::try_from(memory).ok(),
        ..few()
    };
    let helper = agent.helper(image, Vec::new(), tuning).await?;
    let loaded = async {
        room::disk(&*helper.place, "/tmp", manifest).await?;
        let begun = Timestamp::now();
        bring(repository, manifest, &helper.place, "/tmp").await?;
        let server = side(&helper.place, "/tmp", None).await?;
        let millis = Timestamp::now().duration_since(begun).as_millis();
        Ok::<_, anyhow::Error>((u64::try_from(millis).unwrap_or(0), server.keys().await?))
    }
    .await;
    helper.remove().await;
    let (millis, keys) = loaded?;
    super::restore::passed(repository, manifest, millis, keys).await
}

async fn bring(
    repository: &Repository,
    manifest: &Manifest,
    place: &Arc<dyn Place>,
    directory: &str,
) -> anyhow::Result<()> {
    let tap = manifest.counts.as_ref().map(|_| Tap::of(manifest.subject.kind));
    let job = write_to(&format!("{directory}/{RESTORE}"));
    stream::replay(repository, manifest, place, job, tap, &OUTSIDE.word(), false).await?;
    Ok(())
}

/// Restores into the live server; what it held is kept beside it for a day.
///
/// # Errors
/// When it does not load; the live server then holds what it held.
pub(super) async fn restore(
    agent: &Agent,
    repository: &Repository,
    manifest: &Manifest,
    subject: &Subject,
    info: &ContainerInfo,
    swap: bool,
) -> anyhow::Result<String> {
    if !swap {
        bail!(
            "a Redis server has no place beside its data: to bring the backup into the live server, add --swap; \
             to look at it elsewhere: appliance backup download {}",
            subject.accessory
        );
    }
    let live = Server::live(agent, info).await?;
    tidy(&live).await?;
    let directory = live.setting("dir").await?;
    room::disk(&*live.place, &directory, manifest).await?;
    both_fit(agent, &live, info, manifest).await?;
    bring(repository, manifest, &live.place, &directory).await?;
    let keys = written_down(agent, &live, subject, &directory, BEFORE).await?;
    Ok(format!(
        "{keys} keys; what the server held before is kept for a day and comes back with: appliance restore undo {}",
        subject.accessory
    ))
}

/// Looks whether a second server with the backup's data has room beside the live one, which then takes that data, too.
async fn both_fit(
    agent: &Agent,
    live: &Server,
    info: &ContainerInfo,
    manifest: &Manifest,
) -> anyhow::Result<()> {
    let second = room::memory(manifest);
    let held = room::figure(&live.ask(&["INFO", "memory"]).await?, "used_memory_rss")?;
    // The live one gives up its own data before it takes the other's.
    let more = second.saturating_add(second.saturating_sub(held));
    let about = agent.docker.description(&info.id.0).await?;
    let limit = about.and_then(|about| about["HostConfig"]["Memory"].as_u64());
    let what = format!("a second server beside the live one in {}", info.name);
    if let Some(limit) = limit.filter(|limit| *limit > 0) {
        room::enough(Some(limit.saturating_sub(held)), more, &what)?;
    }
    room::host_memory(more, &what)?;
    Ok(())
}

/// Puts back what the last restore replaced.
///
/// # Errors
/// When nothing is kept, or it does not load.
pub(super) async fn undo(agent: &Agent, info: &ContainerInfo, subject: &Subject) -> anyhow::Result<String> {
    let live = Server::live(agent, info).await?;
    tidy(&live).await?;
    let directory = live.setting("dir").await?;
    take_out(&*live.place, &directory).await?;
    let keys = written_down(agent, &live, subject, &directory, UNDONE).await?;
    Ok(format!(
        "{keys} keys as before the restore; what the restore had brought is kept for a day and comes back with another undo"
    ))
}

/// Makes what a restore replaced what the second server loads. It stays where it is: whatever fails, it is there for
/// the next attempt.
async fn take_out(place: &dyn Place, directory: &str) -> anyhow::Result<()> {
    let before = format!("{directory}/{BEFORE}");
    if place.run(&Program::new(["test", "-e", &before])).await?.code != 0 {
        bail!("there is nothing that a restore replaced; it is kept for a day");
    }
    output(place, &["cp", "-f", &before, &format!("{directory}/{RESTORE}")]).await?;
    Ok(())
}

/// [`take_over`], written down while the live server may be a replica, which takes no writes.
async fn written_down(
    agent: &Agent,
    live: &Server,
    subject: &Subject,
    directory: &str,
    kept: &str,
) -> anyhow::Result<u64> {
    let intent = Intent::TakeOver {
        subject: subject.clone(),
    };
    let entry = agent
        .backups
        .journal
        .begin(&format!("take-over-{}", OUTSIDE.word()), intent)
        .context("cannot write the journal of backups")?;
    let taken = take_over(live, directory, kept).await;
    match free(live).await {
        Ok(_) => entry.done().context("cannot write the journal of backups")?,
        Err(error) => tracing::warn!("{} is asked again: {error:#}", live.place.name()),
    }
    taken
}

/// Makes the live server take what `directory/RESTORE` holds; its own data becomes `directory/kept`, and in the end
/// `directory/BEFORE`, which holds what was live until what it holds is live.
async fn take_over(live: &Server, directory: &str, kept: &str) -> anyhow::Result<u64> {
    // A replica sends the password of its master, if it has one, and knows no other.
    let master = live.setting("masterauth").await?;
    let master = (!master.is_empty()).then_some(master);
    let taken = async {
        let second = side(&live.place, directory, master.as_deref()).await?;
        let keys = second.keys().await?;
        let own = live.save().await?;
        let (part, kept) = (format!("{directory}/{PART}"), format!("{directory}/{kept}"));
        output(&*live.place, &["cp", "-f", &own, &part]).await?;
        output(&*live.place, &["mv", "-f", &part, &kept]).await?;
        live.ask(&["REPLICAOF", "127.0.0.1", SIDE]).await?;
        let synced = live
            .within("the copy", async {
                loop {
                    let text = live.ask(&["INFO", "replication"]).await?;
                    let up = text.contains("master_link_status:up");
                    if up && text.contains("master_sync_in_progress:0") {
                        return Ok(());
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            })
            .await;
        let mut freed = free(live).await;
        for _ in 1..TRIES {
            if freed.is_ok() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            freed = free(live).await;
        }
        freed.context("the live server is still a replica, which takes no writes; it is told so again within ten seconds")?;
        synced?;
        second.try_ask(&["SHUTDOWN", "NOSAVE"]).await?;
        // Its file is that of the former data until it is written anew.
        live.save().await?;
        done(live, directory).await?;
        Ok(keys)
    }
    .await;
    end_side(live, directory).await;
    taken
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::pretended::Pretended;
    use super::*;

    /// A server with its data, and a second one, as far as these commands go.
    fn redis(files: &mut BTreeMap<String, String>, words: &[&str]) -> Option<String> {
        let held = |files: &BTreeMap<String, String>, name: &str| files.get(name).cloned();
        let said = match words {
            ["redis-server", ..] => {
                let content = held(files, "/d/appliance-restore.rdb")?;
                files.insert("second".to_owned(), content);
                ""
            }
            [.., "-p", "16379", "SHUTDOWN", _] => files.remove("second").map(|_| "")?,
            [.., "-p", "16379", "PING"] => held(files, "second").map(|_| "PONG")?,
            [.., "CONFIG", "GET", "dir"] => "dir\n/d",
            [.., "CONFIG", "GET", "dbfilename"] => "dbfilename\ndump.rdb",
            [.., "CONFIG", "GET", _] => "masterauth\n",
            [.., "INFO", "persistence"] => "rdb_last_bgsave_status:ok",
            [.., "INFO", "replication"] => match held(files, "replica") {
                Some(_) => "role:slave master_port:16379 master_link_status:up master_sync_in_progress:0",
                None => "role:master",
            },
            [.., "BGSAVE"] => {
                let content = held(files, "live")?;
                files.insert("/d/dump.rdb".to_owned(), content);
                ""
            }
            [.., "REPLICAOF", "NO", "ONE"] => files.remove("replica").map(|_| "")?,
            [.., "REPLICAOF", _, _] => {
                let content = held(files, "second")?;
                files.insert("live".to_owned(), content);
                files.insert("replica".to_owned(), String::new());
                ""
            }
            [.., "INFO", "keyspace"] | ["find", ..] => "",
            _ => return None,
        };
        Some(said.to_owned())
    }

    fn live(place: &Arc<Pretended>) -> Server {
        Server {
            place: Arc::clone(place) as Arc<dyn Place>,
            port: None,
            password: None,
        }
    }

    async fn undone(server: &Server) -> anyhow::Result<u64> {
        take_out(&*server.place, "/d").await?;
        take_over(server, "/d", UNDONE).await
    }

    /// Everything fails from some command on, as when the agent dies; afterwards it is tidied up.
    #[tokio::test]
    async fn an_undo_that_dies_anywhere_leaves_a_server_that_takes_writes_and_what_it_was_to_bring_back() {
        for dies_at in 0.. {
            let files = [("live", "restored"), ("/d/appliance-before.rdb", "old")];
            let place = Arc::new(Pretended::new(redis, &files));
            let server = live(&place);
            place.fail_at(dies_at);
            let died = undone(&server).await.is_err();
            place.fail_at(usize::MAX);
            settled(&server).await.expect("settled");
            assert_eq!(place.file("replica"), None, "dies at {dies_at}");
            assert_eq!(place.file("second"), None, "dies at {dies_at}");
            if place.file("live").as_deref() == Some("restored") {
                undone(&server).await.expect("the next one works");
            }
            assert_eq!(place.file("live").as_deref(), Some("old"), "dies at {dies_at}");
            assert_eq!(
                place.file("/d/dump.rdb").as_deref(),
                Some("old"),
                "dies at {dies_at}"
            );
            assert_eq!(place.file("/d/appliance-restore.rdb"), None);
            if !died {
                assert!(dies_at > 15, "each of the commands was made to fail");
                assert_eq!(place.file("/d/appliance-before.rdb").as_deref(), Some("restored"));
                assert_eq!(place.file("/d/appliance-undone.rdb"), None);
                break;
            }
        }
    }

    #[tokio::test]
    async fn a_restore_that_dies_anywhere_can_be_undone_once_it_has_replaced_anything() {
        for dies_at in 0.. {
            let files = [("live", "data"), ("/d/appliance-restore.rdb", "backup")];
            let place = Arc::new(Pretended::new(redis, &files));
            let server = live(&place);
            place.fail_at(dies_at);
            let died = take_over(&server, "/d", BEFORE).await.is_err();
            place.fail_at(usize::MAX);
            settled(&server).await.expect("settled");
            assert_eq!(place.file("replica"), None, "dies at {dies_at}");
            if place.file("live").as_deref() == Some("backup") {
                undone(&server).await.expect("undone");
            }
            assert_eq!(place.file("live").as_deref(), Some("data"), "dies at {dies_at}");
            if !died {
                break;
            }
        }
    }
}
