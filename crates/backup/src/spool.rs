//! Parts that wait on the disk, so that a database's snapshot does not wait for a slow or flaky link.
//!
//! ```text
//!  sealer ─► taken as fast as it comes ─┬─ the uploader has room: straight on
//!                                       └─ it has not: a file, in its turn ─► uploader
//! ```
//!
//! What lies there is sealed already, and is gone with the end of the backup, however that ends; after a crash
//! [`forget`] removes it. A disk that is full makes the dump wait as it would without a spool, and is said.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::journal::Intent;
use crate::seal::Piece;

/// Where parts wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spool {
    /// Each backup has a directory of its own in here.
    pub directory: PathBuf,
    /// Bytes of its file system that stay free for others.
    pub reserve: u64,
}

/// Removes what a backup that was interrupted left in its spool.
///
/// # Errors
/// When it cannot be removed.
pub fn forget(intent: &Intent) -> io::Result<()> {
    match intent {
        Intent::Backup {
            spool: Some(directory),
            ..
        } => remove(directory),
        _ => Ok(()),
    }
}

fn remove(directory: &Path) -> io::Result<()> {
    match fs_err::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The files of one backup; removed with this.
struct Files {
    directory: PathBuf,
    /// Numbers of those that wait, the next one first.
    waiting: VecDeque<u64>,
    next: u64,
    reserve: u64,
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.directory) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a spool is left behind");
        }
    }
}

impl Files {
    fn new(directory: PathBuf, reserve: u64) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        Ok(Self {
            directory,
            waiting: VecDeque::new(),
            next: 0,
            reserve,
        })
    }

    fn path(&self, number: u64) -> PathBuf {
        self.directory.join(format!("{number:08}.part"))
    }

    /// Whether so many more bytes leave the reserve alone.
    fn fits(&self, bytes: usize) -> io::Result<bool> {
        let found = nix::sys::statvfs::statvfs(&self.directory)?;
        let free = found.blocks_available() as u64 * found.fragment_size() as u64;
        Ok(free >= self.reserve.saturating_add(bytes as u64))
    }

    /// Puts a part at the end; `false` if the disk has no room for it.
    async fn put(&mut self, part: Bytes) -> io::Result<bool> {
        if !self.fits(part.len())? {
            return Ok(false);
        }
        let (number, path) = (self.next, self.path(self.next));
        let written = tokio::task::spawn_blocking(move || {
            let written = write(&path, &part);
            if written.is_err() {
                let _half = std::fs::remove_file(&path);
            }
            written
        });
        match written.await.map_err(io::Error::other)? {
            Ok(()) => {
                self.waiting.push_back(number);
                self.next += 1;
                Ok(true)
            }
            // Somebody else was faster.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes the first part away.
    async fn take(&mut self) -> io::Result<Option<Bytes>> {
        let Some(number) = self.waiting.pop_front() else {
            return Ok(None);
        };
        let path = self.path(number);
        let taken = tokio::task::spawn_blocking(move || {
            let bytes = fs_err::read(&path)?;
            fs_err::remove_file(&path)?;
            Ok::<_, io::Error>(bytes)
        });
        Ok(Some(taken.await.map_err(io::Error::other)??.into()))
    }
}

fn write(path: &Path, part: &[u8]) -> io::Result<()> {
    use fs_err::os::unix::fs::OpenOptionsExt as _;
    use std::io::Write as _;
    let mut file = fs_err::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    // Not synced: after a crash it is thrown away.
    file.write_all(part)
}

/// Takes pieces from `arriving` as they come and hands them on in their order; says whether the dump had to wait for all
/// that, because the disk had no room.
///
/// Ends without [`Piece::End`] when `arriving` does, and at once when nobody takes anything any more.
///
/// # Errors
/// When the files cannot be written or read.
pub(crate) async fn through(
    directory: PathBuf,
    reserve: u64,
    mut arriving: mpsc::Receiver<Piece>,
    leaving: mpsc::Sender<Piece>,
) -> io::Result<bool> {
    let mut files = Files::new(directory, reserve)?;
    let mut full = false;
    let mut ended = false;
    while !ended || !files.waiting.is_empty() {
        tokio::select! {
            // What waits goes first.
            biased;
            room = leaving.reserve(), if !files.waiting.is_empty() => {
                let Ok(room) = room else { return Ok(full) };
                if let Some(part) = files.take().await? {
                    room.send(Piece::Part(part));
                }
            }
            piece = arriving.recv(), if !ended => match piece {
                // Broken off: what waits is worth nothing.
                None => return Ok(full),
                Some(Piece::End) => ended = true,
                Some(Piece::Part(part)) => {
                    let straight = if files.waiting.is_empty() {
                        leaving.try_send(Piece::Part(part.clone())).is_ok()
                    } else {
                        false
                    };
                    if straight {
                        continue;
                    }
                    while !files.put(part.clone()).await? {
                        full = true;
                        let Ok(room) = leaving.reserve().await else { return Ok(full) };
                        match files.take().await? {
                            Some(first) => room.send(Piece::Part(first)),
                            None => {
                                room.send(Piece::Part(part));
                                break;
                            }
                        }
                    }
                }
            },
        }
    }
    let _nobody_left = leaving.send(Piece::End).await;
    Ok(full)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(number: u8) -> Piece {
        Piece::Part(Bytes::from(vec![number; 1000]))
    }

    fn first(piece: Option<Piece>) -> Option<u8> {
        match piece {
            Some(Piece::Part(bytes)) => bytes.first().copied(),
            _ => None,
        }
    }

    fn count(directory: &Path) -> usize {
        std::fs::read_dir(directory).map_or(0, Iterator::count)
    }

    #[tokio::test]
    async fn the_sealer_is_done_before_anything_left_and_all_of_it_leaves_in_order() {
        let root = tempfile::tempdir().expect("directory");
        let directory = root.path().join("spool/id");
        let (sender, arriving) = mpsc::channel(1);
        let (leaving, mut out) = mpsc::channel(1);
        let passing = tokio::spawn(through(directory.clone(), 0, arriving, leaving));
        for number in 0..50 {
            sender.send(part(number)).await.expect("taken");
        }
        sender.send(Piece::End).await.expect("taken");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&directory).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(count(&directory) > 40, "they wait on the disk");
        for number in 0..50 {
            assert_eq!(first(out.recv().await), Some(number));
        }
        assert!(matches!(out.recv().await, Some(Piece::End)));
        assert!(!passing.await.expect("ended").expect("passed"));
        assert!(!directory.exists(), "nothing stays");
    }

    #[tokio::test]
    async fn a_full_disk_makes_the_sealer_wait_and_loses_nothing() {
        let root = tempfile::tempdir().expect("directory");
        let directory = root.path().join("id");
        let (sender, arriving) = mpsc::channel(1);
        let (leaving, mut out) = mpsc::channel(1);
        // No disk has so much.
        let passing = tokio::spawn(through(directory.clone(), u64::MAX / 2, arriving, leaving));
        let sending = tokio::spawn(async move {
            for number in 0..20 {
                sender.send(part(number)).await.expect("taken");
            }
            sender.send(Piece::End).await.expect("taken");
        });
        for number in 0..20 {
            assert_eq!(first(out.recv().await), Some(number));
            assert_eq!(count(&directory), 0);
        }
        assert!(matches!(out.recv().await, Some(Piece::End)));
        sending.await.expect("sent");
        assert!(passing.await.expect("ended").expect("passed"), "and says so");
    }

    #[tokio::test]
    async fn what_breaks_off_on_either_side_leaves_no_file_and_no_end() {
        let root = tempfile::tempdir().expect("directory");
        for gone in ["sealer", "uploader"] {
            let directory = root.path().join(gone);
            let (sender, arriving) = mpsc::channel(1);
            let (leaving, mut out) = mpsc::channel(1);
            let passing = tokio::spawn(through(directory.clone(), 0, arriving, leaving));
            for number in 0..10 {
                sender.send(part(number)).await.expect("taken");
            }
            if gone == "sealer" {
                drop(sender);
                let mut ended = false;
                while let Some(piece) = out.recv().await {
                    ended |= matches!(piece, Piece::End);
                }
                assert!(!ended);
            } else {
                drop(out);
            }
            passing.await.expect("ended").expect("passed");
            assert!(!directory.exists(), "{gone}");
        }
    }
}
