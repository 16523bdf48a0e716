//! Disk room, checked before bytes move.

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};

/// Room on the store's file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    /// Free for unprivileged writers.
    pub free: u64,
    /// Kept free.
    pub reserve: u64,
    /// Promised to unfinished uploads.
    pub promised: u64,
}

impl Room {
    /// What a new upload may take.
    pub fn available(&self) -> u64 {
        self.free
            .saturating_sub(self.reserve)
            .saturating_sub(self.promised)
    }

    /// Whether `needed` more bytes fit.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`] with all the figures.
    pub fn check(&self, needed: u64) -> Result<(), StoreError> {
        if needed <= self.available() {
            return Ok(());
        }
        Err(StoreError::NoRoom {
            needed,
            available: self.available(),
            free: self.free,
            reserve: self.reserve,
        })
    }
}

impl Store {
    /// The room that is left.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn room(&self) -> Result<Room, StoreError> {
        let root = &self.inner.root;
        let stat = nix::sys::statvfs::statvfs(root.as_path())
            .map_err(|error| StoreError::io("ask the file system of", root)(error.into()))?;
        Ok(Room {
            free: stat.blocks_available() as u64 * stat.fragment_size() as u64,
            reserve: self.inner.limits.reserve,
            promised: self.promised(),
        })
    }

    pub(super) fn check_room(&self, needed: u64) -> Result<(), StoreError> {
        self.room()?.check(needed)
    }
}
