//! An advisory lock on a file beside the one it guards, since the guarded file itself is replaced by rename.

use fs_err::os::unix::fs::OpenOptionsExt as _;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held until dropped; the kernel drops it with the process.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: Flock<File>,
}

/// Whether others may hold the lock at the same time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// `<path>.lock`.
pub(crate) fn path_for(path: &Path) -> PathBuf {
    crate::atomic::beside(path, ".lock")
}

/// Waits for the lock that guards `path`.
pub(crate) fn take(path: &Path, mode: Mode) -> io::Result<Lock> {
    let lock_path = path_for(path);
    let mut file = fs_err::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&lock_path)?
        .into_parts()
        .0;
    let arg = match mode {
        Mode::Shared => FlockArg::LockShared,
        Mode::Exclusive => FlockArg::LockExclusive,
    };
    loop {
        match Flock::lock(file, arg) {
            Ok(held) => return Ok(Lock { _held: held }),
            Err((same, Errno::EINTR)) => file = same,
            Err((_, errno)) => {
                let kind = io::Error::from(errno).kind();
                return Err(io::Error::new(
                    kind,
                    format!("cannot lock {}: {errno}", lock_path.display()),
                ));
            }
        }
    }
}
