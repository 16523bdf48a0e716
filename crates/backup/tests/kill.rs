//! A process that backs up, restores, swaps, undoes and prunes is killed at 200 random moments: no listed backup that does
//! not restore, live data as it was, and the next run clean.
//!
//! Every other kill is anywhere within the operation; the rest aim at where it is decided: the manifest on its way, two
//! databases changing places, the first of several objects removed. The live database has a row more in each round, so
//! that neither a lost nor a mixed state goes unseen.
//!
//! The moments are others each time; the seed is printed, and taken from `APPLIANCE_KILL_SEED` where that is set.
//!
//! The program is its own victim: started with `--victim` it does one operation after the other until it is killed.

// The rig is shared by two programs, in whose eyes nothing of it can be reached from outside.
#![allow(unreachable_pub)]

#[path = "rig/mod.rs"]
mod rig;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use appliance_backup::backup::{Source, backup};
use appliance_backup::journal::Journal;
use appliance_backup::postgres::Postgres;
use appliance_backup::recover;
use appliance_backup::repository::Repository;
use appliance_backup::restore::{self, Target, drill, restore};
use appliance_backup::retention::Plan;
use appliance_backup::stream;
use rig::{S3, cluster, outside, subject};

/// Kills, half of them with each version of PostgreSQL.
const ROUNDS: u64 = 200;
const DATABASE: &str = "live";
/// Rows of the live database: as many as the highest of them says, none lost and none from elsewhere.
const ROWS: &str =
    "SELECT count(*) || CASE WHEN count(*) = max(n) THEN '' ELSE ' with gaps' END FROM public.t";
const OBJECTS: &str = "SELECT count(*) FROM pg_largeobject_metadata";
/// Small backups that a removal finds, so that it is not over at once.
const LITTLE: usize = 6;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    match arguments.iter().position(|argument| argument == "--victim") {
        Some(at) => runtime.block_on(victim(
            Path::new(&arguments[at + 1]),
            Path::new(&arguments[at + 2]),
            arguments[at + 3].parse().expect("port"),
            arguments[at + 4].parse().expect("number"),
        )),
        None => runtime.block_on(kill_and_look()),
    }
}

/// One operation after the other, for ever.
async fn victim(directory: &Path, socket: &Path, port: u16, first: u64) {
    let repository = rig::repository(rig::s3::store(rig::s3::options(port, "kill"))).await;
    let journal = rig::journal(directory);
    let server = cluster::postgres(socket, &directory.join("pipes"));
    let order = rig::order(subject(DATABASE));
    for step in first.. {
        let prefix = subject(DATABASE).prefix();
        let catalogue = repository.catalogue(&prefix).await.expect("listed");
        let newest = catalogue.backups.last().map(|found| found.manifest.clone());
        let undoable = restore::undoable(&server).await.expect("asked");
        match (step % 4, newest) {
            (2, _) if undoable.contains(DATABASE) => {
                begins("undo");
                restore::undo(&journal, &server, &subject(DATABASE), outside())
                    .await
                    .expect("undone");
            }
            (1, Some(manifest)) => {
                begins("restore");
                restore(
                    &repository,
                    &journal,
                    &server,
                    &manifest,
                    &Target::Swap,
                    None,
                    outside(),
                )
                .await
                .expect("restored");
            }
            (3, Some(newest)) => {
                for _ in 0..LITTLE {
                    let order = rig::order(rig::files());
                    let source = rig::source(b"little".to_vec());
                    backup(&repository, &journal, &order, source, outside())
                        .await
                        .expect("a backup");
                }
                let catalogue = repository.catalogue("").await.expect("listed");
                begins("prune");
                // Everything but the newest goes.
                let ids = catalogue.backups.iter().map(|found| found.manifest.id.clone());
                let plan = Plan {
                    keep: vec![],
                    remove: ids.filter(|id| *id != newest.id).collect(),
                    frozen: None,
                };
                recover::prune(&repository, &journal, &catalogue, &plan, &outside().word())
                    .await
                    .expect("pruned");
            }
            _ => {
                begins("backup");
                let source = Source::Postgres(&server);
                backup(&repository, &journal, &order, source, outside())
                    .await
                    .expect("a backup");
            }
        }
    }
}

/// Tells whoever is going to kill this process what it does from now on.
fn begins(what: &str) {
    use std::io::Write as _;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{what}")
        .and_then(|()| stdout.flush())
        .expect("stdout");
}

/// A victim, and what it says that it begins.
struct Victim {
    child: Child,
    says: std::io::Lines<BufReader<ChildStdout>>,
}

impl Victim {
    fn start(directory: &Path, socket: &Path, port: u16, first: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .arg("--victim")
            .args([directory, socket])
            .arg(port.to_string())
            // Another operation comes first each time, so that each is met early and late.
            .arg(first.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("it starts");
        let says = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, says }
    }

    /// The operation that it begins next.
    fn begins(&mut self) -> String {
        self.says.next().expect("it goes on").expect("text")
    }

    fn kill(mut self) {
        assert!(
            self.child.try_wait().expect("asked").is_none(),
            "it ended by itself"
        );
        self.child.kill().expect("kill");
        self.child.wait().expect("it ends");
    }
}

/// How long each operation takes on this machine as it is now.
fn durations(directory: &Path, socket: &Path, port: u16) -> BTreeMap<String, Duration> {
    let mut victim = Victim::start(directory, socket, port, 0);
    let mut durations = BTreeMap::new();
    let (mut doing, mut since) = (victim.begins(), Instant::now());
    for _ in 0..4 {
        let next = victim.begins();
        durations.insert(doing, since.elapsed());
        (doing, since) = (next, Instant::now());
    }
    victim.kill();
    durations
}

async fn kill_and_look() {
    let seed = match std::env::var("APPLIANCE_KILL_SEED") {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => jiff::Timestamp::now().as_nanosecond() as u64 | 1,
    };
    say(&format!("APPLIANCE_KILL_SEED={seed}"));
    let mut chance = Chance(seed);
    let mut interrupted = BTreeMap::new();
    for version in cluster::VERSIONS {
        let rounds = ROUNDS / cluster::VERSIONS.len() as u64;
        rounds_with(version, rounds, &mut chance, &mut interrupted).await;
    }
    say(&format!("killed {ROUNDS} times; interrupted: {interrupted:?}"));
    for kind in ["backup", "restore", "swap", "prune"] {
        assert!(
            interrupted.contains_key(kind),
            "no {kind} was met: {interrupted:?}"
        );
    }
}

fn say(text: &str) {
    use std::io::Write as _;
    writeln!(std::io::stdout(), "{text}").expect("stdout");
}

/// Marsaglia's xorshift.
struct Chance(u64);

impl Chance {
    /// From 0 to 1.
    fn part(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % 1000) as f64 / 1000.0
    }
}

async fn rounds_with(
    version: u32,
    rounds: u64,
    chance: &mut Chance,
    interrupted: &mut BTreeMap<String, u32>,
) {
    let directory = tempfile::tempdir().expect("directory");
    let pipes = directory.path().join("pipes");
    std::fs::create_dir(&pipes).expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let cluster = cluster::live(version);
    let server = cluster.postgres(&pipes);
    server
        .run("postgres", "CREATE DATABASE live")
        .await
        .expect("made");
    server
        .run(
            DATABASE,
            "CREATE TABLE public.t AS SELECT n, md5(n::text) AS x FROM generate_series(1, 3000) AS n; \
             CREATE INDEX ON public.t (n); SELECT lo_from_bytea(0, 'x') FROM generate_series(1, 5)",
        )
        .await
        .expect("filled");
    let repository = rig::repository(s3.store("kill")).await;
    let durations = durations(directory.path(), cluster.socket(), s3.port);
    orphans_ended(cluster.socket()).await;
    let journal = rig::journal(directory.path());
    settled(&repository, &server, &journal, &mut BTreeMap::new()).await;
    let mut most = 0;
    for round in 0..rounds {
        let state = States::of(&repository, &server).await;
        let mut victim = Victim::start(directory.path(), cluster.socket(), s3.port, round);
        let doing = victim.begins();
        let before = s3.seen().len();
        if (round / 4) % 2 == 0 {
            // Anywhere within the operation, and a little beyond it.
            let whole = durations.get(&doing).copied();
            let whole = whole.unwrap_or(Duration::from_millis(300));
            tokio::time::sleep(whole.mul_f64(chance.part() * 1.2)).await;
        } else {
            decisive(&doing, &s3, before, directory.path()).await;
            // About as long as it takes to be decided.
            let window = match doing.as_str() {
                "prune" => Duration::from_millis(20),
                "backup" => Duration::from_millis(60),
                _ => Duration::from_millis(120),
            };
            tokio::time::sleep(window.mul_f64(chance.part())).await;
        }
        victim.kill();
        orphans_ended(cluster.socket()).await;

        // Settled as at a start.
        settled(&repository, &server, &journal, interrupted).await;
        look(&repository, &server, &pipes, round, &mut most, &state).await;
        server
            .run(
                DATABASE,
                "INSERT INTO public.t SELECT count(*) + 1, 'later' FROM public.t",
            )
            .await
            .expect("live goes on");
        if round % 8 == 7 {
            // What a swap replaced is forgotten after a day; here sooner, or the server would fill.
            let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(25);
            restore::forget_replaced(&server, later).await.expect("forgotten");
        }
    }
    assert!(most > 0, "some backups were made");
    let scratch = cluster::scratch(version).postgres(&pipes);
    let listed = repository.catalogue(&subject(DATABASE).prefix()).await;
    for found in listed.expect("listed").backups {
        drill(&repository, &scratch, &found.manifest, outside())
            .await
            .expect("every listed backup passes a drill");
    }
}

/// Waits until what is decided in an operation begins to be, or it is long over.
async fn decisive(doing: &str, s3: &S3, before: usize, directory: &Path) {
    let begun = || match doing {
        "restore" | "undo" => std::fs::read_dir(directory.join("journal"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                text.contains("\"operation\":\"swap\"")
            }),
        "prune" => s3.seen().iter().skip(before).any(|seen| seen.delete()),
        _ => s3.seen().iter().skip(before).any(|seen| seen.method == "PUT"),
    };
    let waited = Instant::now();
    while !begun() && waited.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_micros(300)).await;
    }
}

/// What the live database may be like after an operation that was cut off.
struct States(Vec<String>);

impl States {
    /// As it is; as the newest backup has it; as a restore found it.
    async fn of(repository: &Repository, server: &Postgres) -> Self {
        let mut states = vec![server.run(DATABASE, ROWS).await.expect("live")];
        let catalogue = repository.catalogue("").await.expect("listed");
        let counts = catalogue
            .backups
            .iter()
            .filter_map(|found| found.manifest.counts.as_ref());
        states.extend(counts.map(|counts| counts.rows().to_string()));
        for (name, _) in server.marked().await.expect("asked") {
            states.push(server.run(&name, ROWS).await.expect("kept"));
        }
        Self(states)
    }
}

/// Settles what was interrupted, and counts what that was.
async fn settled(
    repository: &Repository,
    server: &Postgres,
    journal: &Journal,
    interrupted: &mut BTreeMap<String, u32>,
) {
    for entry in journal.interrupted().expect("read") {
        let text = serde_json::to_value(&entry.intent).expect("json");
        let name = text["operation"].as_str().unwrap_or_default().to_owned();
        *interrupted.entry(name).or_default() += 1;
        recover::settle(Some(repository), Some(server), entry)
            .await
            .expect("settled");
    }
    assert!(journal.interrupted().expect("read").is_empty());
}

/// Waits until the programs that the victim had started have ended: each does, by itself, when its other end is gone.
async fn orphans_ended(socket: &Path) {
    let wanted = format!("PGHOST={}", socket.display());
    let running = || {
        std::fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .any(|process| {
                let environment = std::fs::read(process.path().join("environ")).unwrap_or_default();
                environment
                    .split(|byte| *byte == 0)
                    .any(|entry| entry == wanted.as_bytes())
            })
    };
    let ended = async {
        while running() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended)
        .await
        .expect("no program is left behind");
}

async fn look(
    repository: &Repository,
    server: &Postgres,
    pipes: &Path,
    round: u64,
    most: &mut usize,
    states: &States,
) {
    let rows = server.run(DATABASE, ROWS).await.expect("live");
    assert!(
        states.0.contains(&rows),
        "round {round}: {rows}, not {:?}",
        states.0
    );
    let objects = server.run(DATABASE, OBJECTS).await.expect("live");
    assert_eq!(objects, "5", "round {round}");
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!(catalogue.unusable, [], "round {round}");
    // Every one is read whole; those of earlier rounds have been.
    for found in catalogue.backups.iter().rev().take(2) {
        let manifest = &found.manifest;
        let tap = manifest.counts.as_ref().map(|_| Default::default());
        stream::read(repository, manifest, tap, Box::new(std::io::sink()))
            .await
            .expect("whole");
    }
    *most = (*most).max(catalogue.backups.len());
    let left: Vec<_> = std::fs::read_dir(pipes)
        .expect("list")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.is_empty(), "round {round}: {left:?}");
    // Beside the live database there is nothing but what it replaced.
    let marked = server.marked().await.expect("asked");
    let odd: Vec<_> = marked
        .iter()
        .filter(|(_, mark)| !mark.starts_with("before "))
        .collect();
    assert!(odd.is_empty(), "round {round}: {odd:?}");
}
