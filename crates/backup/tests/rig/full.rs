//! A directory on a disk that is full after a few writes: the one fault here that no unprivileged real part can show.

use std::sync::atomic::{AtomicUsize, Ordering};

use appliance_backup::store::{
    Answer, FileStore, Listed, Store, StoreError, StoreErrorKind, Unfinished, Upload,
};
use bytes::Bytes;
use jiff::SignedDuration;

/// The directory, and how many writes of an upload there is room for.
pub struct Full {
    inner: FileStore,
    left: usize,
}

impl Full {
    pub fn after(left: usize, inner: FileStore) -> Self {
        Self { inner, left }
    }
}

struct FullUpload(Box<dyn Upload>, AtomicUsize);

impl Upload for FullUpload {
    fn id(&self) -> &str {
        self.0.id()
    }
    fn part(&self, number: usize, bytes: Bytes) -> Answer<'_, ()> {
        if self
            .1
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_err()
        {
            return Box::pin(std::future::ready(Err(StoreError {
                kind: StoreErrorKind::Other,
                action: "write",
                key: "part".to_owned(),
                place: "a full disk".to_owned(),
                source: std::io::Error::from_raw_os_error(nix::libc::ENOSPC).into(),
            })));
        }
        self.0.part(number, bytes)
    }
    fn complete(&self, parts: usize, size: u64) -> Answer<'_, ()> {
        self.0.complete(parts, size)
    }
}

impl Store for Full {
    fn place(&self) -> String {
        self.inner.place()
    }
    fn put_new<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        self.inner.put_new(key, bytes)
    }
    fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let upload = FullUpload(self.inner.begin(key).await?, self.left.into());
            Ok(Box::new(upload) as Box<dyn Upload>)
        })
    }
    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> Answer<'a, ()> {
        self.inner.abort(key, upload)
    }
    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
        self.inner.size(key)
    }
    fn read<'a>(&'a self, key: &'a str, from: u64, length: u64) -> Answer<'a, Bytes> {
        self.inner.read(key, from, length)
    }
    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>> {
        self.inner.list(prefix)
    }
    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        self.inner.delete(key)
    }
    fn unfinished<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Unfinished>> {
        self.inner.unfinished(prefix)
    }
    fn clock_skew(&self) -> Answer<'_, Option<SignedDuration>> {
        self.inner.clock_skew()
    }
}
