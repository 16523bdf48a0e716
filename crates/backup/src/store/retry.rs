//! Tries again, for long enough to outlive an outage.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Answer, Listed, Store, StoreError, StoreErrorKind, Upload};

/// How long and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// From the first failure of a call to giving up.
    pub limit: Duration,
    /// Pause after the first failure; doubled each time.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            limit: Duration::from_secs(15 * 60),
            first: Duration::from_millis(250),
            longest: Duration::from_secs(60),
        }
    }
}

/// A store whose calls last through outages.
#[derive(Clone)]
pub struct Retrying {
    store: Arc<dyn Store>,
    patience: Patience,
}

impl Retrying {
    /// `store`, tried as patiently as `patience` says.
    pub fn new(store: Arc<dyn Store>, patience: Patience) -> Self {
        Self { store, patience }
    }

    async fn again<'a, T>(&self, mut call: impl FnMut() -> Answer<'a, T> + Send) -> Result<T, StoreError> {
        let patience = self.patience;
        let mut failing_since: Option<tokio::time::Instant> = None;
        let mut pause = patience.first;
        loop {
            let error = match call().await {
                Err(error) if error.kind == StoreErrorKind::Outage => error,
                done => return done,
            };
            let since = *failing_since.get_or_insert_with(tokio::time::Instant::now);
            if since.elapsed() + pause > patience.limit {
                return Err(error);
            }
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "trying again in {} ms",
                pause.as_millis()
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(patience.longest);
        }
    }
}

impl Store for Retrying {
    fn place(&self) -> String {
        self.store.place()
    }

    fn put_new<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut attempts = 0;
            let stored = self
                .again(|| {
                    attempts += 1;
                    self.store.put_new(key, bytes.clone())
                })
                .await;
            match stored {
                // An earlier attempt of ours may have been carried out and its answer lost.
                Err(error) if error.kind == StoreErrorKind::Exists && attempts > 1 => {
                    let there = self
                        .again(|| self.store.read(key, 0, bytes.len() as u64 + 1))
                        .await?;
                    if there == bytes { Ok(()) } else { Err(error) }
                }
                done => done,
            }
        })
    }

    fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(async move {
            let upload = self.again(|| self.store.begin(key)).await?;
            Ok(Box::new(RetryingUpload {
                upload,
                store: self.clone(),
                key: key.to_owned(),
            }) as Box<dyn Upload>)
        })
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> Answer<'a, ()> {
        Box::pin(self.again(|| self.store.abort(key, upload)))
    }

    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
        Box::pin(self.again(|| self.store.size(key)))
    }

    fn read<'a>(&'a self, key: &'a str, from: u64, length: u64) -> Answer<'a, Bytes> {
        Box::pin(self.again(move || self.store.read(key, from, length)))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>> {
        Box::pin(self.again(|| self.store.list(prefix)))
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(self.again(|| self.store.delete(key)))
    }

    fn clock_skew(&self) -> Answer<'_, Option<jiff::SignedDuration>> {
        Box::pin(self.again(|| self.store.clock_skew()))
    }
}

struct RetryingUpload {
    upload: Box<dyn Upload>,
    store: Retrying,
    key: String,
}

impl Upload for RetryingUpload {
    fn id(&self) -> &str {
        self.upload.id()
    }

    fn part(&self, number: usize, bytes: Bytes) -> Answer<'_, ()> {
        Box::pin(self.store.again(move || self.upload.part(number, bytes.clone())))
    }

    fn complete(&self, parts: usize, size: u64) -> Answer<'_, ()> {
        Box::pin(async move {
            let mut attempts = 0;
            let done = self
                .store
                .again(|| {
                    attempts += 1;
                    self.upload.complete(parts, size)
                })
                .await;
            match done {
                // After a lost answer the object is there, and stores differ in how they refuse to make it again.
                Err(_) if attempts > 1 && self.store.size(&self.key).await? == Some(size) => Ok(()),
                done => done,
            }
        })
    }
}
