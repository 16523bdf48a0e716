//! The pipeline's memory does not grow with what flows through it: a process of its own, out and back.
//!
//! The program is its own subject: started with `--stream` it stores a gigabyte and reads it again.

// The rig is shared by several programs, in whose eyes nothing of it can be reached from outside.
#![allow(unreachable_pub)]

#[path = "rig/mod.rs"]
mod rig;

use std::io::{Read, Write as _};

use appliance_backup::backup::{Source, backup};
use appliance_backup::stream::{self, Feed};
use rig::{S3, outside};

/// Bytes of content: far more than the memory.
const BYTES: u64 = 1 << 30;
/// Most KiB that the process may grow by.
const GROWTH: u64 = 64 << 10;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    match std::env::args().skip_while(|word| word != "--stream").nth(1) {
        Some(port) => runtime.block_on(stream(port.parse().expect("port"))),
        None => runtime.block_on(watch()),
    }
}

async fn stream(port: u16) {
    let directory = tempfile::tempdir().expect("directory");
    let repository = rig::repository(rig::s3::store(rig::s3::options(port, "stream"))).await;
    let before = peak();
    let order = rig::order(rig::files());
    let source = Source::Stream(Feed::Reader(Box::new(Content {
        left: BYTES,
        state: 1,
    })));
    let journal = rig::journal(directory.path());
    let manifest = backup(&repository, &journal, &order, source, outside())
        .await
        .expect("a backup");
    assert!(manifest.stored_bytes() > BYTES / 20, "it was not all empty");
    stream::read(&repository, &manifest, None, Box::new(std::io::sink()))
        .await
        .expect("whole");
    let grew = peak() - before;
    assert!(grew <= GROWTH, "it grew by {grew} KiB");
    writeln!(std::io::stdout(), "{grew} KiB").expect("stdout");
}

async fn watch() {
    let directory = tempfile::tempdir().expect("directory");
    let s3 = S3::start(&directory.path().join("s3")).await;
    let status = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--stream", &s3.port.to_string()])
        .status()
        .await
        .expect("it starts");
    assert!(status.success());
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = text.lines().find(|line| line.starts_with("VmHWM:"));
    let word = line.and_then(|line| line.split_whitespace().nth(1));
    word.and_then(|word| word.parse().ok()).expect("VmHWM")
}

/// Compresses to a tenth: one block in ten is random.
struct Content {
    left: u64,
    state: u64,
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let filled = &mut buffer[..count];
        filled.fill(b'x');
        for word in filled.chunks_mut(8).take(count / 80) {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
        }
        self.left -= count as u64;
        Ok(count)
    }
}
