//! Project tasks: `cargo xtask demo`, `cargo xtask test`, `cargo xtask host`.
//!
//! A fresh Debian or Ubuntu machine with a Rust toolchain needs nothing else beforehand:
//! each task installs what it lacks with apt, and starts Docker if it does not run.

mod bench_backup;
mod bench_proxy;
mod bench_push;
mod cargo;
mod demo;
mod host;
mod postgres;
mod prerequisites;
mod say;
mod score;
mod test;
#[cfg(test)]
mod tidy;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "xtask", about = "Project tasks", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Bring up a sandbox, push, deploy under load, roll back; print each step with its time
    Demo(demo::DemoArgs),
    /// Run every check and test, those on real hosts included
    Test(test::TestArgs),
    /// Compare with other programs on this machine; not a test
    #[command(subcommand)]
    Bench(Bench),
    /// Score a bootstrapped host of each distribution: Lynis, ssh-audit, systemd, our own audit
    Score(score::ScoreArgs),
    /// Bare hosts to work against by hand
    #[command(subcommand)]
    Host(host::HostTask),
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Backup and restore of two databases beside pg_dump and aws s3 cp; memory under a stream of 10 GB
    Backup(bench_backup::BenchArgs),
    /// The proxy beside nginx and HAProxy: requests, latency, CPU, memory
    Proxy(bench_proxy::BenchArgs),
    /// An image of 300 MB beside docker push and pull, and docker save and load: bytes, seconds
    Push(bench_push::BenchArgs),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.task {
            Task::Demo(args) => demo::demo(&args).await,
            Task::Test(args) => test::test(&args).await,
            Task::Bench(Bench::Backup(args)) => bench_backup::bench(&args),
            Task::Bench(Bench::Proxy(args)) => bench_proxy::bench(&args).await,
            Task::Bench(Bench::Push(args)) => bench_push::bench(&args).await,
            Task::Score(args) => score::score(&args).await,
            Task::Host(task) => host::run(&task).await,
        }
    })
}
