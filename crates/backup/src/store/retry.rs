//! Tries again, for long enough to outlive an outage.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{Answer, Listed, Store, StoreError, StoreErrorKind, Unfinished, Upload};

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
            // An outage of a quarter of an hour, and the longest pause, in which it may end unnoticed.
            limit: Duration::from_secs(17 * 60),
            first: Duration::from_millis(250),
            longest: Duration::from_secs(60),
        }
    }
}

impl Patience {
    /// The pause after failure number `failure`, from 0, of a call that has failed for `failing`; `None` to give up.
    pub fn pause(&self, failure: u32, failing: Duration) -> Option<Duration> {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(failure));
        let pause = doubled.min(self.longest);
        (failing + pause <= self.limit).then_some(pause)
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
        for failure in 0.. {
            let error = match call().await {
                Err(error) if error.kind == StoreErrorKind::Outage => error,
                done => return done,
            };
            let since = *failing_since.get_or_insert_with(tokio::time::Instant::now);
            let Some(pause) = patience.pause(failure, since.elapsed()) else {
                return Err(error);
            };
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "trying again in {} ms",
                pause.as_millis()
            );
            tokio::time::sleep(pause).await;
        }
        unreachable!("it ends with an answer or without patience")
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

    fn unfinished<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Unfinished>> {
        Box::pin(self.again(|| self.store.unfinished(prefix)))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a call lives through a store that is away for `outage`, on a clock that only pauses move.
    fn outlives(outage: Duration) -> bool {
        let patience = Patience::default();
        let mut clock = Duration::ZERO;
        for failure in 0.. {
            if clock >= outage {
                return true;
            }
            match patience.pause(failure, clock) {
                Some(pause) => clock += pause,
                None => return false,
            }
        }
        false
    }

    #[test]
    fn an_outage_of_a_quarter_of_an_hour_is_outlived_and_one_of_an_hour_is_told() {
        for seconds in [0, 3, 60, 600, 899, 900] {
            assert!(outlives(Duration::from_secs(seconds)), "{seconds} s");
        }
        assert!(!outlives(Duration::from_secs(3600)));
    }
}
