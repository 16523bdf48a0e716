//! Bodies held back until they are complete: in memory first, then in a file without a name.
//!
//! ```text
//!  append ──► memory ──full──► tail ──a block──► file        read: memory, then file, then tail
//! ```
//!
//! The file is unlinked from the start, so nothing of a body outlives its request or the process.
//! When the disk takes no more, what was appended can still be read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::task::JoinHandle;

/// What is written or read at once.
const BLOCK: usize = 128 << 10;
/// Most bytes in the memory of all spools together; what comes beyond goes to disk at once.
const MEMORY: u64 = 64 << 20;

/// Most bytes of all spools together that are on their way to a file or from it.
const MOVING: u64 = 64 << 20;
/// What is written or read at once when that much is on its way.
const SMALL: usize = 4 << 10;

/// One service has at most one part in so many of what may be in files.
const SHARES: u64 = 4;

/// Where bodies are held back, and how much is.
#[derive(Debug)]
pub(crate) struct Spools {
    directory: PathBuf,
    memory: AtomicU64,
    moving: AtomicU64,
    files: AtomicU64,
    /// Bytes in files by service, as long as one of its bodies is held back.
    services: Mutex<HashMap<String, Arc<AtomicU64>>>,
}

impl Spools {
    /// Files come to lie in `directory`, which is made when it is needed.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            memory: AtomicU64::new(0),
            moving: AtomicU64::new(0),
            files: AtomicU64::new(0),
            services: Mutex::default(),
        }
    }

    /// What counts the bytes in files of one service.
    fn service(&self, name: &str) -> Arc<AtomicU64> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = services.get(name) {
            return Arc::clone(known);
        }
        services.retain(|_, count| Arc::strong_count(count) > 1);
        Arc::clone(services.entry(name.to_owned()).or_default())
    }

    /// Bytes in memory and in files.
    pub(crate) fn used(&self) -> (u64, u64) {
        (
            self.memory.load(Ordering::Relaxed) + self.moving.load(Ordering::Relaxed),
            self.files.load(Ordering::Relaxed),
        )
    }
}

fn reserve(used: &AtomicU64, bytes: u64, most: u64) -> bool {
    let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= most);
    used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
        .is_ok()
}

/// Nothing more can be held back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    /// All spools together hold as much as they may.
    #[error("bodies of {0} bytes are held back already, which is all that settings.spool_max_bytes allows")]
    Bound(u64),
    /// Those of one service hold its share.
    #[error(
        "bodies of {0} bytes of this service are held back already, its share of settings.spool_max_bytes"
    )]
    Share(u64),
    /// The disk is full, or something else is wrong with it.
    #[error("cannot write to the directory for bodies that are held back")]
    Disk(#[source] io::Error),
}

type Written = (Vec<u8>, io::Result<Arc<File>>);

#[derive(Debug)]
enum Job {
    Write(JoinHandle<Written>),
    Read(JoinHandle<io::Result<Vec<u8>>>),
}

/// One body.
#[derive(Debug)]
pub(crate) struct Spool {
    spools: Arc<Spools>,
    /// Most bytes in memory.
    most_memory: usize,
    /// Most bytes in the files of all spools.
    most_files: u64,
    /// Bytes in the files of the service's spools.
    service: Arc<AtomicU64>,
    memory: Vec<u8>,
    file: Option<Arc<File>>,
    /// Bytes in the file.
    written: u64,
    /// Bytes of files counted for this one.
    reserved: u64,
    /// What comes after the file's bytes.
    tail: Vec<u8>,
    /// Bytes counted as moving: the tail, the block that is being written, the block that was read.
    moving: u64,
    /// What comes after the memory is no longer put there.
    spilled: bool,
    job: Option<Job>,
    /// An error that is to be told.
    failure: Option<SpoolError>,
    len: u64,
    /// The next byte to read.
    at: u64,
    /// What was read of the file, and where it stands there.
    block: Vec<u8>,
    block_at: u64,
}

impl Drop for Spool {
    fn drop(&mut self) {
        self.spools
            .memory
            .fetch_sub(self.memory.len() as u64, Ordering::Relaxed);
        self.spools.moving.fetch_sub(self.moving, Ordering::Relaxed);
        self.spools.files.fetch_sub(self.reserved, Ordering::Relaxed);
        self.service.fetch_sub(self.reserved, Ordering::Relaxed);
    }
}

impl Spool {
    /// An empty one of `service`: `most_memory` bytes stay in memory, and the files of all may hold `most_files`,
    /// those of one service a quarter of that, so that nobody's uploads keep another's out.
    pub(crate) fn new(spools: &Arc<Spools>, service: &str, most_memory: u64, most_files: u64) -> Self {
        Self {
            spools: Arc::clone(spools),
            most_memory: usize::try_from(most_memory).unwrap_or(usize::MAX),
            most_files,
            service: spools.service(service),
            memory: Vec::new(),
            file: None,
            written: 0,
            reserved: 0,
            tail: Vec::new(),
            moving: 0,
            spilled: false,
            job: None,
            failure: None,
            len: 0,
            at: 0,
            block: Vec::new(),
            block_at: 0,
        }
    }

    /// Bytes that were appended.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether everything was read.
    pub(crate) fn is_read(&self) -> bool {
        self.at == self.len
    }

    /// Takes some of `bytes`, at least one.
    ///
    /// # Errors
    /// When nothing more can be held back; what was appended stays readable.
    pub(crate) fn poll_append(
        &mut self,
        bytes: &[u8],
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize, SpoolError>> {
        if !self.spilled {
            let count = bytes
                .len()
                .min(self.most_memory.saturating_sub(self.memory.len()));
            if count > 0 && reserve(&self.spools.memory, count as u64, MEMORY) {
                self.memory.extend_from_slice(&bytes[..count]);
                self.len += count as u64;
                return Poll::Ready(Ok(count));
            }
            self.spilled = true;
        }
        loop {
            let room = BLOCK.saturating_sub(self.tail.len()).min(bytes.len());
            // Little is taken even when much is on its way, so that each body gets on.
            let small = SMALL.saturating_sub(self.tail.len()).min(room);
            let count = if room > 0 && self.move_more(room) {
                room
            } else {
                small
            };
            if count > 0 {
                self.tail.extend_from_slice(&bytes[..count]);
                self.len += count as u64;
                return Poll::Ready(Ok(count));
            }
            ready!(self.poll_settle(cx));
            if let Some(failure) = self.failure.take() {
                return Poll::Ready(Err(failure));
            }
            if let Err(failure) = self.write() {
                return Poll::Ready(Err(failure));
            }
        }
    }

    /// Counts `bytes` as moving, unless too many are.
    fn move_more(&mut self, bytes: usize) -> bool {
        let fits = reserve(&self.spools.moving, bytes as u64, MOVING);
        if fits {
            self.moving += bytes as u64;
        }
        fits
    }

    /// `bytes` have moved, as far as they were counted.
    fn moved(&mut self, bytes: usize) {
        let counted = self.moving.min(bytes as u64);
        self.moving -= counted;
        self.spools.moving.fetch_sub(counted, Ordering::Relaxed);
    }

    /// Starts to write the tail; there is no job.
    fn write(&mut self) -> Result<(), SpoolError> {
        let count = self.tail.len() as u64;
        let share = self.most_files / SHARES;
        if !reserve(&self.service, count, share) {
            return Err(SpoolError::Share(share));
        }
        if !reserve(&self.spools.files, count, self.most_files) {
            self.service.fetch_sub(count, Ordering::Relaxed);
            return Err(SpoolError::Bound(self.most_files));
        }
        self.reserved += count;
        let block = std::mem::take(&mut self.tail);
        let (file, offset) = (self.file.clone(), self.written);
        let spools = Arc::clone(&self.spools);
        self.job = Some(Job::Write(tokio::task::spawn_blocking(move || {
            let written = file.map_or_else(|| create(&spools.directory).map(Arc::new), Ok);
            let written = written.and_then(|file| file.write_all_at(&block, offset).map(|()| file));
            (block, written)
        })));
        Ok(())
    }

    /// Waits for the job that is under way.
    fn poll_settle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.job {
            None => {}
            Some(Job::Write(job)) => {
                let (mut block, written) = match ready!(Pin::new(job).poll(cx)) {
                    Ok(done) => done,
                    // Only when the runtime ends, and the request with it.
                    Err(error) => (Vec::new(), Err(io::Error::other(error))),
                };
                match written {
                    Ok(file) => {
                        self.moved(block.len());
                        self.file = Some(file);
                        self.written += block.len() as u64;
                    }
                    Err(error) => {
                        block.append(&mut self.tail);
                        self.tail = block;
                        self.failure = Some(SpoolError::Disk(error));
                    }
                }
            }
            Some(Job::Read(job)) => {
                match ready!(Pin::new(job).poll(cx)) {
                    Ok(Ok(block)) => self.block = block,
                    Ok(Err(error)) => self.failure = Some(SpoolError::Disk(error)),
                    Err(error) => self.failure = Some(SpoolError::Disk(io::Error::other(error))),
                };
            }
        }
        self.job = None;
        Poll::Ready(())
    }

    /// The bytes that come next; none at the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Result<&[u8], SpoolError>> {
        let memory = self.memory.len() as u64;
        if self.at < memory {
            let at = usize::try_from(self.at).expect("a position in a vector");
            return Poll::Ready(Ok(&self.memory[at..]));
        }
        let at = self.at - memory;
        loop {
            let in_block = at
                .checked_sub(self.block_at)
                .filter(|skip| *skip < self.block.len() as u64);
            if let Some(skip) = in_block {
                let skip = usize::try_from(skip).expect("a position in a vector");
                return Poll::Ready(Ok(&self.block[skip..]));
            }
            let writing = matches!(self.job, Some(Job::Write(_)));
            ready!(self.poll_settle(cx));
            match self.failure.take() {
                // What could not be written is in the tail.
                Some(_) if writing => continue,
                Some(failure) => return Poll::Ready(Err(failure)),
                None => {}
            }
            let Some(left) = self.written.checked_sub(at).filter(|left| *left > 0) else {
                let skip = usize::try_from(at - self.written).expect("a position in a vector");
                return Poll::Ready(Ok(&self.tail[skip..]));
            };
            if at
                .checked_sub(self.block_at)
                .is_some_and(|skip| skip < self.block.len() as u64)
            {
                continue;
            }
            let Some(file) = self.file.clone() else {
                return Poll::Ready(Ok(&[]));
            };
            let mut block = std::mem::take(&mut self.block);
            self.moved(block.len());
            let mut count = usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK);
            if !self.move_more(count) {
                (count, block) = (count.min(SMALL), Vec::new());
            }
            self.block_at = at;
            self.job = Some(Job::Read(tokio::task::spawn_blocking(move || {
                block.resize(count, 0);
                file.read_exact_at(&mut block, at)?;
                Ok(block)
            })));
        }
    }

    /// Bytes that were not read yet.
    pub(crate) fn left(&self) -> u64 {
        self.len - self.at
    }

    /// Takes at most `most` of the bytes that come next; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn poll_part(
        &mut self,
        most: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, SpoolError>> {
        let part = match ready!(self.poll_bytes(cx)) {
            Ok([]) => return Poll::Ready(Ok(None)),
            Ok(bytes) => Bytes::copy_from_slice(&bytes[..bytes.len().min(most)]),
            Err(error) => return Poll::Ready(Err(error)),
        };
        self.consume(part.len());
        Poll::Ready(Ok(Some(part)))
    }

    /// Goes past `count` bytes that were read.
    pub(crate) fn consume(&mut self, count: usize) {
        self.at += count as u64;
    }
}

/// A file that has no name.
fn create(directory: &Path) -> io::Result<File> {
    match tempfile::tempfile_in(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs_err::create_dir_all(directory)?;
            tempfile::tempfile_in(directory)
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn append(spool: &mut Spool, mut bytes: &[u8]) -> Result<(), SpoolError> {
        while !bytes.is_empty() {
            let count = std::future::poll_fn(|cx| spool.poll_append(bytes, cx)).await?;
            bytes = &bytes[count..];
        }
        Ok(())
    }

    async fn read(spool: &mut Spool) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let count = std::future::poll_fn(|cx| {
                spool.poll_bytes(cx).map(|bytes| {
                    let bytes = bytes.unwrap();
                    all.extend_from_slice(bytes);
                    bytes.len()
                })
            })
            .await;
            if count == 0 {
                return all;
            }
            spool.consume(count);
        }
    }

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|at| (at * 31 + at / 251) as u8).collect()
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_whatever_its_size() {
        let home = tempfile::tempdir().unwrap();
        let spools = Arc::new(Spools::new(home.path().join("spool")));
        for count in [0, 1, 999, 1000, 1001, BLOCK + 1000, BLOCK + 1001, 5 * BLOCK + 7] {
            let mut spool = Spool::new(&spools, "web", 1000, u64::MAX);
            let sent = bytes(count);
            for part in sent.chunks(70_001) {
                append(&mut spool, part).await.unwrap();
            }
            assert_eq!(spool.len(), count as u64);
            assert!(read(&mut spool).await == sent, "{count} bytes");
            assert!(spool.is_read());
        }
        assert_eq!(spools.used(), (0, 0), "nothing stays counted");
        let left = fs_err::read_dir(home.path().join("spool")).unwrap();
        assert_eq!(left.count(), 0, "no file has a name");
    }

    #[tokio::test]
    async fn many_small_bodies_are_counted_and_still_get_on() {
        let home = tempfile::tempdir().unwrap();
        let spools = Arc::new(Spools::new(home.path().to_owned()));
        let sent = bytes(BLOCK - 1);
        let mut held = Vec::new();
        for _ in 0..600 {
            let mut spool = Spool::new(&spools, "web", 0, u64::MAX);
            append(&mut spool, &sent).await.unwrap();
            held.push(spool);
        }
        let inside: usize = held.iter().map(|spool| spool.tail.len()).sum();
        let (counted, files) = spools.used();
        assert!(counted <= MOVING && files > 0, "{counted} {files}");
        let most = usize::try_from(MOVING).unwrap() + 600 * SMALL;
        assert!(inside <= most, "{inside} bytes are in memory");
        for spool in &mut held {
            assert!(read(spool).await == sent);
        }
        drop(held);
        assert_eq!(spools.used(), (0, 0));
    }

    #[tokio::test]
    async fn beyond_the_bound_what_was_taken_is_still_there() {
        let home = tempfile::tempdir().unwrap();
        let spools = Arc::new(Spools::new(home.path().to_owned()));
        let most = 8 * BLOCK as u64;
        let mut spool = Spool::new(&spools, "web", 0, most);
        let sent = bytes(8 * BLOCK);
        let error = append(&mut spool, &sent).await.unwrap_err();
        assert!(
            matches!(error, SpoolError::Share(bytes) if bytes == most / 4),
            "{error}"
        );
        // Another service's bodies find room, until all of it is taken.
        let mut others: Vec<Spool> = ["a", "b", "c", "d"]
            .map(|service| Spool::new(&spools, service, 0, most))
            .into();
        for other in &mut others[..3] {
            append(other, &sent[..2 * BLOCK + 1]).await.unwrap();
        }
        let error = append(&mut others[3], &sent).await.unwrap_err();
        assert!(
            matches!(error, SpoolError::Bound(bytes) if bytes == most),
            "{error}"
        );
        drop(others);
        let kept = usize::try_from(spool.len()).unwrap();
        assert!(kept >= 2 * BLOCK && read(&mut spool).await == sent[..kept]);
        drop(spool);
        assert_eq!(spools.used(), (0, 0));
    }

    #[tokio::test]
    async fn a_directory_that_cannot_be_written_loses_nothing() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("a file");
        fs_err::write(&file, "").unwrap();
        let mut spool = Spool::new(&Arc::new(Spools::new(file)), "web", 10, u64::MAX);
        let sent = bytes(8 * BLOCK);
        let error = append(&mut spool, &sent).await.unwrap_err();
        assert!(matches!(error, SpoolError::Disk(_)), "{error}");
        let kept = usize::try_from(spool.len()).unwrap();
        assert!(kept > BLOCK && read(&mut spool).await == sent[..kept]);
    }
}
