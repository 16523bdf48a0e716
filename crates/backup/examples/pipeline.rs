//! The pipeline as a program of its own, so that `cargo xtask bench backup` can measure it alone.
//!
//! Its last line is JSON: seconds, CPU seconds of itself and its programs, how much its own memory grew, what it wrote to
//! disks. `s3` and `cluster` serve until their standard input closes.

// The rig is shared by several programs, in whose eyes nothing of it can be reached from outside.
#![allow(unreachable_pub)]
#![allow(clippy::print_stdout, reason = "its output is its result")]

#[path = "../tests/rig/mod.rs"]
mod rig;

use std::path::{Path, PathBuf};
use std::time::Instant;

use appliance_backup::backup::{Source, backup};
use appliance_backup::names::{Kind, Subject};
use appliance_backup::postgres::Postgres;
use appliance_backup::restore::{Target, restore};
use appliance_backup::store::Store;
use appliance_backup::stream::Feed;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use rig::{S3, cluster, outside, subject};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // As the agent runs it: one thread for each processor, here two.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    match words.as_slice() {
        ["s3", root] => runtime.block_on(serve(Path::new(root))),
        ["cluster"] => {
            println!("{}", cluster::shared().socket().display());
            let mut rest = String::new();
            let _ended = std::io::Read::read_to_string(&mut std::io::stdin(), &mut rest);
            // A static is never dropped; its directory is large.
            let _gone = std::fs::remove_dir_all(cluster::shared().socket());
        }
        ["watch", program, arguments @ ..] => watch(program, arguments),
        ["backup", socket, port, database] => runtime.block_on(measured(async {
            let (repository, journal, server) = opened(socket, port).await;
            let baseline = Memory::now();
            let order = rig::order(subject(database));
            let manifest = backup(
                &repository,
                &journal,
                &order,
                Source::Postgres(&server),
                outside(),
            )
            .await
            .expect("a backup");
            (baseline, manifest.stored_bytes(), manifest.plain_bytes)
        })),
        ["restore", socket, port, database] => runtime.block_on(measured(async {
            let (repository, journal, server) = opened(socket, port).await;
            let catalogue = repository
                .catalogue(&subject(database).prefix())
                .await
                .expect("listed");
            let manifest = &catalogue.backups.last().expect("a backup").manifest;
            let baseline = Memory::now();
            restore(
                &repository,
                &journal,
                &server,
                manifest,
                &Target::Swap,
                None,
                outside(),
            )
            .await
            .expect("restored");
            (baseline, manifest.stored_bytes(), manifest.plain_bytes)
        })),
        ["synthetic", port, bytes, cgroup @ ..] => {
            // Before the first allocation of any size: what is charged later is charged here.
            if let [cgroup] = cgroup {
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(Path::new(cgroup).join("cgroup.procs"))
                    .and_then(|mut file| {
                        std::io::Write::write_all(&mut file, std::process::id().to_string().as_bytes())
                    })
                    .expect("joins the control group");
            }
            let left = bytes.parse().expect("a number of bytes");
            runtime.block_on(measured(async {
                let directory = tempfile::tempdir().expect("directory");
                let repository = rig::repository(store(port)).await;
                let journal = rig::journal(directory.path());
                let baseline = Memory::now();
                let subject = Subject {
                    kind: Kind::Volume,
                    ..subject("synthetic")
                };
                let feed = Feed::Reader(Box::new(Synthetic {
                    left,
                    state: 88_172_645_463_325_252,
                }));
                let manifest = backup(
                    &repository,
                    &journal,
                    &rig::order(subject),
                    Source::Stream(feed),
                    outside(),
                )
                .await
                .expect("a backup");
                (baseline, manifest.stored_bytes(), manifest.plain_bytes)
            }));
        }
        other => panic!("not understood: {other:?}"),
    }
}

fn store(port: &str) -> std::sync::Arc<dyn Store> {
    rig::s3::store(rig::s3::options(port.parse().expect("port"), "ours"))
}

async fn opened(
    socket: &str,
    port: &str,
) -> (
    appliance_backup::repository::Repository,
    appliance_backup::journal::Journal,
    Postgres,
) {
    // Beside the server's socket, which is on no disk that counts.
    let pipes = PathBuf::from(socket).join("pipes");
    std::fs::create_dir_all(&pipes).expect("directory");
    (
        rig::repository(store(port)).await,
        rig::journal(&pipes),
        cluster::postgres(Path::new(socket), &pipes),
    )
}

async fn serve(root: &Path) {
    let s3 = S3::start(root).await;
    println!("{}", s3.port);
    let mut rest = String::new();
    tokio::task::spawn_blocking(move || std::io::Read::read_to_string(&mut std::io::stdin(), &mut rest))
        .await
        .expect("reads")
        .expect("reads");
}

/// Memory in KiB that is ours alone, at most so far and now.
struct Memory {
    peak: u64,
}

impl Memory {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = text
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .expect("VmHWM");
        let peak = line.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        Self {
            peak: peak.expect("a number"),
        }
    }
}

fn written() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|word| word.parse().ok()).unwrap_or(0)
}

fn cpu(who: UsageWho) -> f64 {
    let usage = getrusage(who).expect("usage");
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e6
}

async fn measured(work: impl Future<Output = (Memory, u64, u64)>) {
    let begun = Instant::now();
    let (baseline, stored, plain) = work.await;
    let seconds = begun.elapsed().as_secs_f64();
    let now = Memory::now();
    println!(
        "{{\"seconds\":{seconds},\"cpu\":{},\"grew_kib\":{},\"peak_kib\":{},\"disk\":{},\"stored\":{stored},\"plain\":{plain}}}",
        cpu(UsageWho::RUSAGE_SELF) + cpu(UsageWho::RUSAGE_CHILDREN),
        now.peak.saturating_sub(baseline.peak),
        now.peak,
        written()
    );
}

/// Another program, measured from outside.
fn watch(program: &str, arguments: &[&str]) {
    let begun = Instant::now();
    let status = std::process::Command::new(program)
        .args(arguments)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("it runs");
    assert!(status.success(), "{program} {arguments:?}: {status}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("usage");
    println!(
        "{{\"seconds\":{},\"cpu\":{},\"grew_kib\":{rss},\"peak_kib\":{rss},\"disk\":0,\"stored\":0,\"plain\":0}}",
        begun.elapsed().as_secs_f64(),
        cpu(UsageWho::RUSAGE_CHILDREN),
        rss = usage.max_rss()
    );
}

/// Every other KiB does not compress, so that both ends of the pipeline have work.
struct Synthetic {
    left: u64,
    state: u64,
}

impl std::io::Read for Synthetic {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let filled = buffer.get_mut(..count).unwrap_or_default();
        for (index, block) in filled.chunks_mut(1024).enumerate() {
            if index % 2 == 1 {
                block.fill(b'x');
                continue;
            }
            for word in block.chunks_mut(8) {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
            }
        }
        self.left -= count as u64;
        Ok(count)
    }
}
