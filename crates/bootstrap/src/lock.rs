//! One bootstrap at a time.

use std::path::Path;

/// Held while a run changes the host; released when dropped, or when the process dies.
#[derive(Debug)]
pub struct Lock {
    _file: fs_err::File,
}

/// Why the lock is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another run holds it.
    #[error("another `appliance bootstrap` is running on this host; wait for it to end")]
    Held,
    /// The lock file cannot be used.
    #[error("cannot lock {path}")]
    File {
        /// The lock file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Lock {
    /// Takes the lock, without waiting.
    ///
    /// # Errors
    /// When another run holds it, or the file cannot be opened.
    pub fn take(path: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::File {
            path: path.display().to_string(),
            source,
        };
        let file = fs_err::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .map_err(failed)?;
        match file.file().try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(LockError::Held),
            Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_is_refused_until_the_first_ends() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("lock");
        let first = Lock::take(&path).expect("free");
        assert!(matches!(Lock::take(&path), Err(LockError::Held)));
        drop(first);
        Lock::take(&path).expect("free again");
    }
}
