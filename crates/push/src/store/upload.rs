//! Unfinished uploads: begun, continued after a cut, finished under their digest, or given up.
//!
//! ```text
//! begin ─► append ─► append … ─► finish ─► blob
//!            ▲  │ cut                │ wrong digest or size
//!            └──┘ status: offset     └─► nothing is left
//! ```

use std::collections::{BTreeSet, HashMap};
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError, parent, private_directory, sync_directory};
use crate::change::{BadName, BlobRef, Digest, Repository};

/// The name of an unfinished upload, 128 random bits in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UploadId(String);

impl UploadId {
    /// Parses the last part of an upload's address.
    ///
    /// # Errors
    /// When it is not 32 lower-case hexadecimal digits.
    pub fn parse(value: &str) -> Result<Self, BadName> {
        crate::change::Nonce::parse(value).map(|nonce| Self(nonce.as_str().to_owned()))
    }

    fn random() -> Self {
        let mut bytes = [0; 16];
        aws_lc_rs::rand::fill(&mut bytes).expect("the operating system gives random bytes");
        Self(hex::encode(bytes))
    }
}

impl std::fmt::Display for UploadId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How far an upload is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadStatus {
    /// Its name.
    pub id: UploadId,
    /// Bytes that are there; the next piece starts here.
    pub offset: u64,
    /// Where it belongs.
    pub repository: Repository,
    /// What it is to become, if its sender said so.
    pub expected: Option<BlobRef>,
}

/// What is written down about an upload beside its data.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct About {
    repository: Repository,
    expected: Option<BlobRef>,
    /// Most bytes it may have.
    cap: u64,
    /// Who sends it.
    #[serde(default)]
    owner: String,
}

/// An upload that this process has open.
pub(super) struct Upload {
    about: About,
    /// Bytes announced and not yet written; readable while a piece is being written.
    promised: AtomicU64,
    written: Mutex<Written>,
}

struct Written {
    file: File,
    hash: digest::Context,
    offset: u64,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("about", &self.about)
            .finish_non_exhaustive()
    }
}

impl Upload {
    fn new(about: About, file: File, hash: digest::Context, offset: u64) -> Arc<Self> {
        let promised = AtomicU64::new(about.still_to_come(offset));
        Arc::new(Self {
            about,
            promised,
            written: Mutex::new(Written { file, hash, offset }),
        })
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.written
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl About {
    fn still_to_come(&self, offset: u64) -> u64 {
        self.expected
            .as_ref()
            .map_or(0, |expected| expected.size.saturating_sub(offset))
    }
}

impl Store {
    /// Begins an upload of at most `cap` bytes; `owner` is any text by which its sender is known again.
    ///
    /// # Errors
    /// When it is too large, there are too many, there is no room, or the file system fails.
    pub fn begin(
        &self,
        repository: &Repository,
        expected: Option<BlobRef>,
        cap: u64,
        owner: &str,
    ) -> Result<UploadStatus, StoreError> {
        let cap = cap.min(self.inner.limits.max_blob);
        if let Some(expected) = expected.as_ref().filter(|expected| expected.size > cap) {
            return Err(StoreError::TooLarge {
                size: expected.size,
                limit: cap,
            });
        }
        let uploads = self.inner.root.join("uploads");
        let count = std::fs::read_dir(&uploads)
            .map_err(StoreError::io("list", &uploads))?
            .count();
        if count >= self.inner.limits.max_uploads {
            return Err(StoreError::TooManyUploads {
                limit: self.inner.limits.max_uploads,
            });
        }
        self.check_room(expected.as_ref().map_or(0, |expected| expected.size))?;

        let id = UploadId::random();
        let about = About {
            repository: repository.clone(),
            expected,
            cap,
            owner: owner.to_owned(),
        };
        let directory = self.upload_path(&id);
        private_directory(&directory).map_err(StoreError::io("create", &directory))?;
        let data = directory.join("data");
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&data)
            .map_err(StoreError::io("create", &data))?;
        let text = serde_json::to_vec(&about).expect("plain data always has a JSON form");
        self.write_file(&directory.join("about.json"), &text)?;
        let status = status(&id, 0, &about);
        let hash = digest::Context::new(&digest::SHA256);
        self.opened().insert(id, Upload::new(about, file, hash, 0));
        Ok(status)
    }

    /// How far an upload is.
    ///
    /// # Errors
    /// When there is none of this name, or the file system fails.
    pub fn status(&self, id: &UploadId) -> Result<UploadStatus, StoreError> {
        let upload = self.reopen(id)?;
        let offset = upload.written().offset;
        Ok(status(id, offset, &upload.about))
    }

    /// Adds a piece; `offset` is where the sender believes it begins, if it said so.
    ///
    /// # Errors
    /// When the piece does not continue the upload, makes it too large, finds no room, or the file system fails.
    /// What was there before stays.
    pub fn append(&self, id: &UploadId, offset: Option<u64>, piece: &[u8]) -> Result<u64, StoreError> {
        let upload = self.reopen(id)?;
        let about = &upload.about;
        let mut written = upload.written();
        if let Some(given) = offset.filter(|given| *given != written.offset) {
            return Err(StoreError::WrongOffset {
                id: id.clone(),
                expected: written.offset,
                given,
            });
        }
        let size = written.offset + piece.len() as u64;
        let limit = about
            .expected
            .as_ref()
            .map_or(about.cap, |expected| expected.size);
        if size > limit {
            return Err(StoreError::TooLarge { size, limit });
        }
        // What this upload was promised is its own to use.
        let room = self.room()?;
        let promised = room.promised.saturating_sub(about.still_to_come(written.offset));
        super::Room { promised, ..room }.check(piece.len() as u64)?;

        let path = self.upload_path(id).join("data");
        let before = written.offset;
        if let Err(error) = written.file.write_all(piece) {
            // A piece that was half written is taken back, so that the offset stays true.
            let _shorter = written.file.set_len(before);
            let _moved = written.file.seek(SeekFrom::Start(before));
            return Err(StoreError::io("write", &path)(error));
        }
        written.hash.update(piece);
        written.offset = size;
        upload
            .promised
            .store(about.still_to_come(size), Ordering::Relaxed);
        Ok(size)
    }

    /// Ends an upload: checks size and digest and gives the content its name.
    ///
    /// # Errors
    /// When the content is not what it should be; then nothing of it is left.
    /// When the content is still too short, the upload stays and can be continued.
    pub fn finish(&self, id: &UploadId, wanted: &Digest) -> Result<BlobRef, StoreError> {
        let upload = self.reopen(id)?;
        let written = upload.written();
        let size = written.offset;
        let expected = upload.about.expected.as_ref();
        if let Some(expected) = expected.filter(|expected| expected.size > size) {
            return Err(StoreError::SizeMismatch {
                wanted: expected.size,
                found: size,
            });
        }
        let found = Digest::from_hash(written.hash.clone().finish().as_ref());
        for wanted in [wanted, expected.map_or(wanted, |expected| &expected.digest)] {
            if found != *wanted {
                self.cancel(id)?;
                return Err(StoreError::DigestMismatch {
                    wanted: wanted.clone(),
                    found,
                });
            }
        }
        let data = self.upload_path(id).join("data");
        written.file.sync_all().map_err(StoreError::io("write", &data))?;
        let blob = self.blob_path(&found);
        let directory = parent(&blob);
        private_directory(directory).map_err(StoreError::io("create", directory))?;
        std::fs::rename(&data, &blob).map_err(StoreError::io("write", &blob))?;
        sync_directory(directory)?;
        self.cancel(id)?;
        Ok(BlobRef { digest: found, size })
    }

    /// Gives an upload up and removes what it left.
    ///
    /// # Errors
    /// When there is none of this name, or the file system fails.
    pub fn cancel(&self, id: &UploadId) -> Result<(), StoreError> {
        self.opened().remove(id);
        let directory = self.upload_path(id);
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(StoreError::UploadUnknown { id: id.to_string() })
            }
            other => other.map_err(StoreError::io("remove", &directory)),
        }
    }

    /// Gives up uploads that nobody has added to for `idle`; returns how many.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn clean_uploads(&self, now: SystemTime, idle: Duration) -> Result<usize, StoreError> {
        let mut cleaned = 0;
        for id in self.upload_ids()? {
            if is_idle(&self.upload_path(&id), now, idle) && self.cancel(&id).is_ok() {
                cleaned += 1;
            }
        }
        Ok(cleaned)
    }

    /// Owners of unfinished uploads that somebody added to within `idle`.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn writing(&self, now: SystemTime, idle: Duration) -> Result<BTreeSet<String>, StoreError> {
        let directories = self.upload_ids()?.into_iter().map(|id| self.upload_path(&id));
        Ok(directories
            .filter(|directory| !is_idle(directory, now, idle))
            .filter_map(|directory| read_about(&directory).ok())
            .map(|about| about.owner)
            .collect())
    }

    pub(super) fn promised(&self) -> u64 {
        self.opened()
            .values()
            .map(|upload| upload.promised.load(Ordering::Relaxed))
            .sum()
    }

    pub(super) fn upload_ids(&self) -> Result<Vec<UploadId>, StoreError> {
        let uploads = self.inner.root.join("uploads");
        let entries = std::fs::read_dir(&uploads).map_err(StoreError::io("list", &uploads))?;
        Ok(entries
            .flatten()
            .filter_map(|entry| UploadId::parse(&entry.file_name().to_string_lossy()).ok())
            .collect())
    }

    /// Unfinished uploads of the same content, with their owners: how a sender finds its way back after a cut.
    ///
    /// # Errors
    /// When the file system fails.
    pub fn unfinished(
        &self,
        repository: &Repository,
        expected: &BlobRef,
    ) -> Result<Vec<(UploadStatus, String)>, StoreError> {
        let mut found = Vec::new();
        for id in self.upload_ids()? {
            let Ok(about) = read_about(&self.upload_path(&id)) else {
                continue;
            };
            if about.expected.as_ref() != Some(expected) || about.repository != *repository {
                continue;
            }
            match self.status(&id) {
                Ok(status) => found.push((status, about.owner)),
                // Finished or given up meanwhile.
                Err(StoreError::UploadUnknown { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    /// Makes somebody else the owner of an upload that its sender has left.
    ///
    /// # Errors
    /// When there is none of this name, or the file system fails.
    pub fn adopt(&self, id: &UploadId, owner: &str) -> Result<UploadStatus, StoreError> {
        let upload = self.reopen(id)?;
        // Nobody may finish it while its description is written anew.
        let written = upload.written();
        let directory = self.upload_path(id);
        let mut about =
            read_about(&directory).map_err(|_| StoreError::UploadUnknown { id: id.to_string() })?;
        owner.clone_into(&mut about.owner);
        let text = serde_json::to_vec(&about).expect("plain data always has a JSON form");
        self.write_file(&directory.join("about.json"), &text)?;
        Ok(status(id, written.offset, &about))
    }

    /// The open upload; after a restart of the process its hash is computed again from the data.
    fn reopen(&self, id: &UploadId) -> Result<Arc<Upload>, StoreError> {
        if let Some(upload) = self.opened().get(id) {
            return Ok(Arc::clone(upload));
        }
        let directory = self.upload_path(id);
        let about = read_about(&directory).map_err(|_| StoreError::UploadUnknown { id: id.to_string() })?;
        let data = directory.join("data");
        let failed = || StoreError::io("read", &data);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&data)
            .map_err(failed())?;
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut buffer = vec![0; 1 << 18];
        let mut offset = 0;
        loop {
            let count = file.read(&mut buffer).map_err(failed())?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            offset += count as u64;
        }
        let upload = Upload::new(about, file, hash, offset);
        // Somebody else may have opened it meanwhile; there must be only one.
        Ok(Arc::clone(self.opened().entry(id.clone()).or_insert(upload)))
    }

    fn opened(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Upload>>> {
        self.inner
            .open
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn upload_path(&self, id: &UploadId) -> PathBuf {
        self.inner.root.join("uploads").join(&id.0)
    }
}

/// Whether nobody added to the upload in `directory` for `idle`.
fn is_idle(directory: &Path, now: SystemTime, idle: Duration) -> bool {
    // The data file's time moves with every piece; before the first piece the directory's counts.
    let touched = [directory.join("data"), directory.to_owned()]
        .iter()
        .filter_map(|path| std::fs::metadata(path).and_then(|about| about.modified()).ok())
        .max();
    touched.is_none_or(|touched| now.duration_since(touched).is_ok_and(|age| age >= idle))
}

fn read_about(directory: &Path) -> std::io::Result<About> {
    let bytes = std::fs::read(directory.join("about.json"))?;
    serde_json::from_slice(&bytes).map_err(Into::into)
}

fn status(id: &UploadId, offset: u64, about: &About) -> UploadStatus {
    UploadStatus {
        id: id.clone(),
        offset,
        repository: about.repository.clone(),
        expected: about.expected.clone(),
    }
}
