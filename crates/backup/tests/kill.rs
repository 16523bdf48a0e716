//! A process that backs up, restores, swaps and prunes is killed at 200 arbitrary moments: no listed backup that does not
//! restore, live data as it was, and the next run clean.
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

use appliance_backup::backup::{Order, Source, backup};
use appliance_backup::journal::Journal;
use appliance_backup::postgres::Postgres;
use appliance_backup::recover;
use appliance_backup::repository::Repository;
use appliance_backup::restore::{self, Target, drill, restore};
use appliance_backup::retention::Plan;
use appliance_backup::stream;
use rig::{S3, cluster, outside, subject};

const ROUNDS: u64 = 200;
const DATABASE: &str = "live";
/// The data of the live database, whatever happens.
const EXPECTED: &str = "3000|5";
const QUESTION: &str =
    "SELECT (SELECT count(*) FROM public.t), (SELECT count(*) FROM pg_largeobject_metadata)";

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
    let order = Order {
        subject: subject(DATABASE),
        image: None,
        bandwidth: None,
        previous: None,
        odd: None,
    };
    for step in first.. {
        let catalogue = repository.catalogue("").await.expect("listed");
        let newest = catalogue.backups.last().map(|found| found.manifest.clone());
        match (step % 3, newest) {
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
            (2, Some(_)) => {
                begins("prune");
                // Everything but the newest goes.
                let ids: Vec<_> = catalogue
                    .backups
                    .iter()
                    .map(|found| found.manifest.id.clone())
                    .collect();
                let plan = Plan {
                    keep: vec![],
                    remove: ids[..ids.len() - 1].to_vec(),
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
    for _ in 0..3 {
        let next = victim.begins();
        durations.insert(doing, since.elapsed());
        (doing, since) = (next, Instant::now());
    }
    victim.kill();
    durations
}

async fn kill_and_look() {
    let directory = tempfile::tempdir().expect("directory");
    let pipes = directory.path().join("pipes");
    std::fs::create_dir(&pipes).expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let cluster = cluster::shared();
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
    settled(
        &repository,
        &server,
        &rig::journal(directory.path()),
        &mut BTreeMap::new(),
    )
    .await;
    let mut state = 88_172_645_463_325_252_u64;
    let (mut interrupted, mut most) = (BTreeMap::<String, u32>::new(), 0);
    for round in 0..ROUNDS {
        let mut victim = Victim::start(directory.path(), cluster.socket(), s3.port, round);
        let doing = victim.begins();
        // Anywhere within the operation, and a little beyond it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let part = (state % 1200) as f64 / 1000.0;
        let whole = durations
            .get(&doing)
            .copied()
            .unwrap_or(Duration::from_millis(300));
        tokio::time::sleep(whole.mul_f64(part)).await;
        victim.kill();

        orphans_ended(cluster.socket()).await;

        // Settled as at a start.
        let journal = rig::journal(directory.path());
        settled(&repository, &server, &journal, &mut interrupted).await;
        look(&repository, &server, &pipes, round, &mut most).await;
    }
    assert!(
        interrupted.len() >= 3,
        "the kills met several operations: {interrupted:?}"
    );
    assert!(most > 0, "some backups were made");
    let scratch = cluster::scratch().postgres(&pipes);
    for found in repository.catalogue("").await.expect("listed").backups {
        drill(&repository, &scratch, &found.manifest, outside())
            .await
            .expect("every listed backup passes a drill");
    }
    use std::io::Write as _;
    writeln!(
        std::io::stdout(),
        "killed {ROUNDS} times; interrupted: {interrupted:?}"
    )
    .expect("stdout");
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

async fn look(repository: &Repository, server: &Postgres, pipes: &Path, round: u64, most: &mut usize) {
    assert_eq!(
        server.run(DATABASE, QUESTION).await.expect("live"),
        EXPECTED,
        "round {round}"
    );
    let catalogue = repository.catalogue("").await.expect("listed");
    assert_eq!(catalogue.unusable, [], "round {round}");
    // Every one is read whole; those of earlier rounds have been.
    for found in catalogue.backups.iter().rev().take(2) {
        stream::read(
            repository,
            &found.manifest,
            Some(Default::default()),
            Box::new(std::io::sink()),
        )
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
    // What a swap replaced is forgotten after a day; here at once, or the server would fill.
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(25);
    restore::forget_replaced(server, later).await.expect("forgotten");
    let databases = server.marked().await.expect("asked");
    assert!(databases.is_empty(), "round {round}: {databases:?}");
}
