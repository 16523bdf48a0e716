//! Where backups are kept. One attempt per call; [`Retrying`] makes a call last through an outage.
//!
//! Nothing is ever overwritten: [`Store::put_new`] and [`Upload::complete`] refuse a key that is taken. Stores that
//! ignore such conditions are safe too, because no key is ever used twice: ids are random.

mod file;
mod retry;
mod s3;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

pub use file::FileStore;
pub use retry::{Patience, Retrying};
pub use s3::{S3Options, S3Store};

/// Size of every part of a large object but the last. Equal parts, as R2 wants them.
pub const PART: usize = 8 << 20;
/// Parts of one object: 4 GiB together, far below every store's limit (the least known is 1,000 parts).
pub const PARTS: usize = 512;

/// An answer that comes later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// What a failure means for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// There is no such object or upload.
    Missing,
    /// The key is taken.
    Exists,
    /// Credentials, permissions or a bucket that is not there: trying again does not help.
    Denied,
    /// An outage, a time-out, a full disk elsewhere: trying again may help.
    Outage,
    /// Anything else that trying again does not help.
    Other,
}

/// Why a call to a store failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {key} ({})", place)]
pub struct StoreError {
    /// What it means.
    pub kind: StoreErrorKind,
    /// What was tried, a verb.
    pub action: &'static str,
    /// With which object.
    pub key: String,
    /// Where.
    pub place: String,
    /// Why.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// An object in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Bytes.
    pub size: u64,
}

/// An upload that was begun and neither completed nor aborted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfinished {
    /// The key it was to have.
    pub key: String,
    /// Its id.
    pub upload: String,
    /// When it began.
    pub since: jiff::Timestamp,
}

/// A place that keeps objects by key.
pub trait Store: Send + Sync {
    /// Where it is, for people: `s3://bucket/prefix`, `file:///var/backups`.
    fn place(&self) -> String;

    /// Stores a small object under a key that must be free.
    fn put_new<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()>;

    /// Begins an object of several parts.
    fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, Box<dyn Upload>>;

    /// Ends an upload that somebody began earlier and did not complete; one that is gone is no error.
    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> Answer<'a, ()>;

    /// The size of an object; `None` if there is none.
    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>>;

    /// `length` bytes from `from` on; fewer only at the end of the object.
    fn read<'a>(&'a self, key: &'a str, from: u64, length: u64) -> Answer<'a, Bytes>;

    /// All objects whose key begins with `prefix`, sorted by key.
    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>>;

    /// Removes an object; one that is gone is no error.
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()>;

    /// Uploads below `prefix` that were begun and did not end; none where the store cannot list them.
    fn unfinished<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Unfinished>>;

    /// How far the store's clock is ahead of ours, where it tells the time.
    fn clock_skew(&self) -> Answer<'_, Option<jiff::SignedDuration>>;
}

/// An object of several parts, until it is complete.
pub trait Upload: Send + Sync {
    /// Its id, by which [`Store::abort`] ends it after a crash.
    fn id(&self) -> &str;

    /// Stores part `number`, from 1; all but the last have [`PART`] bytes. May be repeated.
    fn part(&self, number: usize, bytes: Bytes) -> Answer<'_, ()>;

    /// Makes the object of all parts, under a key that must be free. May be repeated after a lost answer.
    fn complete(&self, parts: usize, size: u64) -> Answer<'_, ()>;
}

/// Longest time one attempt at `bytes` may take: thirty seconds and the bytes at 64 KiB a second.
pub(crate) fn attempt_limit(bytes: usize) -> Duration {
    Duration::from_secs(30 + (bytes as u64 >> 16))
}

impl StoreError {
    pub(crate) fn new(
        kind: StoreErrorKind,
        action: &'static str,
        key: &str,
        place: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            action,
            key: key.to_owned(),
            place: place.to_owned(),
            source: source.into(),
        }
    }
}
