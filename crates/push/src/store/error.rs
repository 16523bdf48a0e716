//! Why the store refused or failed.

use std::path::{Path, PathBuf};

use super::UploadId;
use crate::change::{Digest, Repository};

/// A refusal by the store, or a failure of the disk.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The disk has too little room.
    #[error(
        "not enough disk room: {needed} bytes are needed, {available} of {free} free bytes may be used \
         ({reserve} stay in reserve); `docker system df` on the host shows what takes it"
    )]
    NoRoom {
        /// Bytes wanted.
        needed: u64,
        /// Bytes that may be used.
        available: u64,
        /// Bytes free.
        free: u64,
        /// Bytes kept.
        reserve: u64,
    },
    /// The content is not what its digest says.
    #[error("the content has the digest {found}, not {wanted}")]
    DigestMismatch {
        /// Expected.
        wanted: Digest,
        /// Computed.
        found: Digest,
    },
    /// The content does not have its declared size.
    #[error("the content has {found} bytes, not {wanted}")]
    SizeMismatch {
        /// Expected bytes.
        wanted: u64,
        /// Bytes found.
        found: u64,
    },
    /// A delta that cannot be used.
    #[error("the delta cannot be used: {why}")]
    DeltaInvalid {
        /// Why.
        why: String,
    },
    /// Larger than allowed.
    #[error("{size} bytes are too many; the limit is {limit}")]
    TooLarge {
        /// Bytes given.
        size: u64,
        /// Bytes allowed.
        limit: u64,
    },
    /// Too many unfinished uploads.
    #[error("{limit} uploads are unfinished already; finish or cancel one, or try again later")]
    TooManyUploads {
        /// The limit.
        limit: usize,
    },
    /// The piece does not continue the upload.
    #[error("the upload {id} continues at byte {expected}, not {given}")]
    WrongOffset {
        /// Which upload.
        id: UploadId,
        /// Bytes already there.
        expected: u64,
        /// Where the piece begins.
        given: u64,
    },
    /// No such upload.
    #[error("there is no upload {id}; it was finished, cancelled or given up")]
    UploadUnknown {
        /// Which one.
        id: String,
    },
    /// No such blob.
    #[error("there is no blob {digest}")]
    BlobUnknown {
        /// Which one.
        digest: Digest,
    },
    /// No such manifest.
    #[error("there is no manifest {reference} in {repository}")]
    ManifestUnknown {
        /// Where.
        repository: Repository,
        /// Which one.
        reference: String,
    },
    /// A manifest that names content that is not there.
    #[error("the manifest names the blob {digest}, which is not here; upload it first")]
    ManifestBlobUnknown {
        /// Which one.
        digest: Digest,
    },
    /// Not a manifest.
    #[error("this is not a manifest: {why}")]
    ManifestInvalid {
        /// In which way.
        why: String,
    },
}

impl StoreError {
    /// For `map_err`: what was tried with which path.
    pub(super) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}

/// An error with its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
