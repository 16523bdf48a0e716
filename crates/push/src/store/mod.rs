//! Blobs and manifests by digest, on the host's disk.
//!
//! ```text
//! root/
//!   blobs/sha256/ab/abcdef…            content, layers and manifests alike; the name is the proof
//!   repositories/org~app/manifests/…   which manifests a repository shows, and their media type
//!   repositories/org~app/tags/…        tag → digest
//!   diffs/<diff_id>/<blob>             which blobs were seen to hold this uncompressed layer
//!   indexed/<blob>                     the uncompressed digest of a blob that was looked into
//!   chunks/<blob>                      the chunks of a layer, for deltas
//!   uploads/<id>/{data,about.json}     unfinished uploads; they survive a restart of the agent
//! ```
//!
//! A blob appears under its name only after its digest was checked and the data is on the disk (fsync, rename).
//! Everything here blocks; async callers use `spawn_blocking`.

mod chunks;
mod damage;
mod diffs;
mod error;
mod gc;
mod manifests;
mod room;
mod upload;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use serde::{Deserialize, Serialize};

pub use diffs::{Compression, HaveAnswer, HaveQuery, KnownLayer};
pub use error::StoreError;
pub use gc::{GcOptions, GcReport};
pub use manifests::{Descriptor, Manifest, Reference, StoredManifest, media_type};
pub use room::Room;
pub use upload::{UploadId, UploadStatus};

use crate::change::{BlobRef, Digest, Repository};

/// What the store accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest blob in bytes.
    pub max_blob: u64,
    /// Largest manifest in bytes; the OCI specification asks for at least 4 MiB.
    pub max_manifest: u64,
    /// Bytes of the file system that stay free whatever is uploaded.
    pub reserve: u64,
    /// Unfinished uploads at one time.
    pub max_uploads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_blob: 16 << 30,
            max_manifest: 4 << 20,
            reserve: 1 << 30,
            max_uploads: 256,
        }
    }
}

/// A blob that is there.
#[derive(Debug)]
pub struct Blob {
    /// Its content, opened for reading.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
}

/// The store; clones share one state.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    limits: Limits,
    open: Mutex<HashMap<UploadId, Arc<upload::Upload>>>,
    /// Writers of links hold it shared, garbage collection alone.
    collecting: RwLock<()>,
}

impl Store {
    /// Opens the store under `root`, creating what is missing (directories 0700).
    ///
    /// # Errors
    /// When the directories cannot be made.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, StoreError> {
        for directory in [
            "blobs/sha256",
            "repositories",
            "diffs",
            "indexed",
            "chunks",
            "uploads",
            "temporary",
        ] {
            let path = root.join(directory);
            private_directory(&path).map_err(StoreError::io("create", &path))?;
        }
        // Temporary files are only alive inside one call, so whatever is here was left by a crash.
        let temporary = root.join("temporary");
        let leftovers = std::fs::read_dir(&temporary).map_err(StoreError::io("list", &temporary))?;
        for leftover in leftovers.flatten() {
            let path = leftover.path();
            std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                root: root.to_owned(),
                limits,
                open: Mutex::default(),
                collecting: RwLock::default(),
            }),
        })
    }

    /// What the store accepts.
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    /// Opens a blob; `None` when it is not there.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(StoreError::io("open", &path))?,
        };
        let size = file.metadata().map_err(StoreError::io("read", &path))?.len();
        Ok(Some(Blob { file, size }))
    }

    /// The size of a blob in bytes; `None` when it is not there.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.blob_path(digest);
        match std::fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            other => Ok(Some(other.map_err(StoreError::io("read", &path))?.len())),
        }
    }

    /// Reads a small blob whole, such as an image configuration.
    ///
    /// # Errors
    /// When it is not there, larger than `limit` bytes, or damaged on the disk.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let blob = self.blob(digest)?.ok_or_else(|| StoreError::BlobUnknown {
            digest: digest.clone(),
        })?;
        if blob.size > limit {
            return Err(StoreError::TooLarge {
                size: blob.size,
                limit,
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(blob.size).unwrap_or_default());
        let path = self.blob_path(digest);
        blob.file
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(StoreError::io("read", &path))?;
        let found = Digest::of(&bytes);
        if found != *digest {
            return Err(StoreError::DigestMismatch {
                wanted: digest.clone(),
                found,
            });
        }
        Ok(bytes)
    }

    /// Writes a small blob in one piece.
    ///
    /// # Errors
    /// When there is no room or the file system fails.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<BlobRef, StoreError> {
        let digest = Digest::of(bytes);
        let size = bytes.len() as u64;
        if self.blob_size(&digest)? != Some(size) {
            self.check_room(size)?;
            self.write_file(&self.blob_path(&digest), bytes)?;
        }
        Ok(BlobRef { digest, size })
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner
            .root
            .join("blobs/sha256")
            .join(&digest.hex()[..2])
            .join(digest.hex())
    }

    fn repository_path(&self, repository: &Repository) -> PathBuf {
        // `~` is in no repository name, so two names never meet.
        self.inner
            .root
            .join("repositories")
            .join(repository.as_str().replace('/', "~"))
    }

    /// Writes a file so that it is there whole or not at all, also after a power cut.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        let temporary = self.inner.root.join("temporary");
        let mut file = tempfile::NamedTempFile::new_in(&temporary)
            .map_err(StoreError::io("create a file in", &temporary))?;
        file.write_all(bytes).map_err(StoreError::io("write", path))?;
        file.as_file().sync_all().map_err(StoreError::io("write", path))?;
        let directory = parent(path);
        private_directory(directory).map_err(StoreError::io("create", directory))?;
        file.persist(path)
            .map_err(|error| StoreError::io("write", path)(error.error))?;
        sync_directory(directory)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("every path of the store is below its root")
}

fn private_directory(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

fn sync_directory(path: &Path) -> Result<(), StoreError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(StoreError::io("write", path))
}

/// How much the store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Number of blobs.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Unfinished uploads.
    pub uploads: u64,
    /// Their bytes so far.
    pub upload_bytes: u64,
}
