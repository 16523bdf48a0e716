//! Parts to volumes and back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256, digest};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::manifest::Object;
use crate::names;
use crate::seal::Piece;
use crate::store::{PART, PARTS, Store, StoreError, Upload};

/// Parts on their way at once; R2 wants no more.
const IN_FLIGHT: usize = 2;

/// Why the volumes are not there.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The content broke off.
    #[error("the content broke off")]
    BrokenOff,
    /// The store holds something else than was sent.
    #[error("{key} has {found:?} bytes in the store, {sent} were sent")]
    Size {
        /// Which object.
        key: String,
        /// What the store says.
        found: Option<u64>,
        /// What was sent.
        sent: u64,
    },
    /// The disk between the content and the store failed.
    #[error("cannot use the spool")]
    Spool(#[source] io::Error),
    /// The upload could not be noted.
    #[error("cannot write the journal")]
    Journal(#[source] io::Error),
}

/// Most bytes a second, kept over the whole of an upload.
#[derive(Debug)]
pub struct Pace {
    limit: Option<u64>,
    begun: Option<Instant>,
    sent: u64,
}

impl Pace {
    /// At most `limit` bytes a second.
    pub fn new(limit: Option<u64>) -> Self {
        Self {
            limit: limit.filter(|limit| *limit > 0),
            begun: None,
            sent: 0,
        }
    }

    /// Waits until `bytes` more may go.
    async fn wait(&mut self, bytes: usize) {
        let Some(limit) = self.limit else { return };
        let begun = *self.begun.get_or_insert_with(Instant::now);
        self.sent += bytes as u64;
        let due = Duration::from_secs_f64(self.sent as f64 / limit as f64);
        tokio::time::sleep_until(begun + due).await;
    }
}

/// Stores the parts as they come, as volumes below `prefix`.
///
/// `note` is told of each upload before its first part, so that a crash leaves nothing behind that nobody knows of.
///
/// # Errors
/// When the store fails or the content breaks off; what was begun is aborted.
pub async fn upload(
    store: &dyn Store,
    prefix: &str,
    pieces: &mut mpsc::Receiver<Piece>,
    pace: &mut Pace,
    note: &mut (dyn FnMut(&str, &str) -> io::Result<()> + Send),
) -> Result<Vec<Object>, VolumeError> {
    let mut volumes = Vec::new();
    let mut next = part(pieces).await?;
    while let Some(first) = next.take() {
        let name = names::volume(volumes.len());
        let key = format!("{prefix}{name}");
        let following = part(pieces).await?;
        let object = match following {
            None => {
                pace.wait(first.len()).await;
                let object = described(&name, &first);
                store.put_new(&key, first).await?;
                object
            }
            Some(second) => {
                let upload = store.begin(&key).await?;
                note(&key, upload.id()).map_err(VolumeError::Journal)?;
                match volume(&*upload, first, second, pieces, pace).await {
                    Ok((size, sha256, after)) => {
                        next = after;
                        Object { name, size, sha256 }
                    }
                    Err(error) => {
                        if let Err(error) = store.abort(&key, upload.id()).await {
                            tracing::warn!(
                                error = &error as &dyn std::error::Error,
                                "an upload is left behind"
                            );
                        }
                        return Err(error);
                    }
                }
            }
        };
        // The store's own word, which also settles what a lost answer to the last call left open.
        let found = store.size(&key).await?;
        if found != Some(object.size) {
            return Err(VolumeError::Size {
                key,
                found,
                sent: object.size,
            });
        }
        volumes.push(object);
    }
    Ok(volumes)
}

/// Stores one small object of known content.
///
/// # Errors
/// When the store fails.
pub async fn put(store: &dyn Store, prefix: &str, name: &str, bytes: Bytes) -> Result<Object, VolumeError> {
    let key = format!("{prefix}{name}");
    let object = described(name, &bytes);
    store.put_new(&key, bytes).await?;
    let found = store.size(&key).await?;
    if found != Some(object.size) {
        return Err(VolumeError::Size {
            key,
            found,
            sent: object.size,
        });
    }
    Ok(object)
}

fn described(name: &str, bytes: &[u8]) -> Object {
    Object {
        name: name.to_owned(),
        size: bytes.len() as u64,
        sha256: hex::encode(digest(&SHA256, bytes)),
    }
}

async fn part(pieces: &mut mpsc::Receiver<Piece>) -> Result<Option<Bytes>, VolumeError> {
    match pieces.recv().await {
        Some(Piece::Part(bytes)) => Ok(Some(bytes)),
        Some(Piece::End) => Ok(None),
        None => Err(VolumeError::BrokenOff),
    }
}

/// One volume; also returns the first part of the next.
async fn volume(
    upload: &dyn Upload,
    first: Bytes,
    second: Bytes,
    pieces: &mut mpsc::Receiver<Piece>,
    pace: &mut Pace,
) -> Result<(u64, String, Option<Bytes>), VolumeError> {
    let mut digest = Context::new(&SHA256);
    let (mut size, mut number) = (0, 0);
    let mut flying = FuturesUnordered::new();
    let mut waiting = Some(first);
    let mut after = Some(second);
    while let Some(bytes) = waiting.take() {
        pace.wait(bytes.len()).await;
        number += 1;
        size += bytes.len() as u64;
        digest.update(&bytes);
        flying.push(upload.part(number, bytes));
        while flying.len() >= IN_FLIGHT {
            if let Some(done) = flying.next().await {
                done?;
            }
        }
        if number < PARTS
            && let Some(bytes) = after.take()
        {
            waiting = Some(bytes);
            after = part(pieces).await?;
        }
    }
    while let Some(done) = flying.next().await {
        done?;
    }
    upload.complete(number, size).await?;
    Ok((size, hex::encode(digest.finish()), after))
}

/// Fetches the objects one after the other into `chunks`, and checks each against its digest.
///
/// A failure goes into the channel too, so the reader never takes a cut stream for a whole one.
pub async fn fetch(
    store: Arc<dyn Store>,
    prefix: String,
    objects: Vec<Object>,
    chunks: mpsc::Sender<Result<Bytes, io::Error>>,
) {
    if let Err(error) = fetch_all(&*store, &prefix, &objects, &chunks).await {
        let _reader_gone = chunks.send(Err(error)).await;
    }
}

async fn fetch_all(
    store: &dyn Store,
    prefix: &str,
    objects: &[Object],
    chunks: &mpsc::Sender<Result<Bytes, io::Error>>,
) -> Result<(), io::Error> {
    for object in objects {
        let key = format!("{prefix}{}", object.name);
        let mut digest = Context::new(&SHA256);
        let mut at = 0;
        while at < object.size {
            let wanted = (object.size - at).min(PART as u64);
            let chunk = store.read(&key, at, wanted).await.map_err(io::Error::other)?;
            if chunk.len() as u64 != wanted {
                return Err(io::Error::other(format!(
                    "{key} is shorter than its manifest says"
                )));
            }
            at += wanted;
            digest.update(&chunk);
            let last = at == object.size;
            if last && hex::encode(digest.clone().finish()) != object.sha256 {
                return Err(io::Error::other(format!(
                    "{key} was altered: its digest is another one"
                )));
            }
            if chunks.send(Ok(chunk)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::store::{Answer, Listed, Unfinished};

    /// What was stored, without the bytes: number and size of the parts of each object.
    #[derive(Default)]
    struct Sizes(Mutex<std::collections::BTreeMap<String, Vec<(usize, usize)>>>);

    struct SizesUpload<'a>(&'a Sizes, String);

    impl Upload for SizesUpload<'static> {
        fn id(&self) -> &str {
            "id"
        }
        fn part(&self, number: usize, bytes: Bytes) -> Answer<'_, ()> {
            let mut sizes = self.0.0.lock().expect("sizes");
            sizes
                .entry(self.1.clone())
                .or_default()
                .push((number, bytes.len()));
            Box::pin(std::future::ready(Ok(())))
        }
        fn complete(&self, _parts: usize, _size: u64) -> Answer<'_, ()> {
            Box::pin(std::future::ready(Ok(())))
        }
    }

    impl Store for &'static Sizes {
        fn place(&self) -> String {
            "nowhere".to_owned()
        }
        fn put_new<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
            let mut sizes = self.0.lock().expect("sizes");
            sizes.insert(key.to_owned(), vec![(1, bytes.len())]);
            Box::pin(std::future::ready(Ok(())))
        }
        fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, Box<dyn Upload>> {
            let upload: Box<dyn Upload> = Box::new(SizesUpload(self, key.to_owned()));
            Box::pin(std::future::ready(Ok(upload)))
        }
        fn abort<'a>(&'a self, _key: &'a str, _upload: &'a str) -> Answer<'a, ()> {
            Box::pin(std::future::ready(Ok(())))
        }
        fn size<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
            let sizes = self.0.lock().expect("sizes");
            let size = sizes
                .get(key)
                .map(|parts| parts.iter().map(|(_, size)| *size as u64).sum());
            Box::pin(std::future::ready(Ok(size)))
        }
        fn read<'a>(&'a self, _key: &'a str, _from: u64, _length: u64) -> Answer<'a, Bytes> {
            Box::pin(std::future::ready(Ok(Bytes::new())))
        }
        fn list<'a>(&'a self, _prefix: &'a str) -> Answer<'a, Vec<Listed>> {
            Box::pin(std::future::ready(Ok(Vec::new())))
        }
        fn delete<'a>(&'a self, _key: &'a str) -> Answer<'a, ()> {
            Box::pin(std::future::ready(Ok(())))
        }
        fn unfinished<'a>(&'a self, _prefix: &'a str) -> Answer<'a, Vec<Unfinished>> {
            Box::pin(std::future::ready(Ok(Vec::new())))
        }
        fn clock_skew(&self) -> Answer<'_, Option<jiff::SignedDuration>> {
            Box::pin(std::future::ready(Ok(None)))
        }
    }

    #[tokio::test]
    async fn no_limit_of_any_store_is_met_however_large_the_content() {
        let sizes: &'static Sizes = Box::leak(Box::default());
        let (sender, mut pieces) = mpsc::channel(1);
        let sending = async {
            // The same bytes over and over: 4 GiB and a bit.
            let part = Bytes::from(vec![7; PART]);
            for _ in 0..=PARTS {
                sender.send(Piece::Part(part.clone())).await.expect("taken");
            }
            sender.send(Piece::Part(part.slice(..100))).await.expect("taken");
            sender.send(Piece::End).await.expect("taken");
        };
        let mut pace = Pace::new(None);
        let mut note = |_: &str, _: &str| Ok(());
        let (uploaded, ()) = tokio::join!(upload(&sizes, "p/", &mut pieces, &mut pace, &mut note), sending);
        let objects = uploaded.expect("stored");
        assert_eq!(objects.len(), 2, "{objects:?}");
        let sizes = sizes.0.lock().expect("sizes");
        let first = &sizes["p/vol-00000.zst.age"];
        // The strictest stores take 1,000 parts, and want them equal and numbered from 1.
        assert_eq!(first.len(), PARTS);
        assert!(first.iter().enumerate().all(|(at, part)| *part == (at + 1, PART)));
        assert_eq!(sizes["p/vol-00001.zst.age"], [(1, PART), (2, 100)]);
    }
}
