//! Backups in S3 and what claims to be it.
//!
//! What stores disagree about, and what we do therefore: parts are equal, held in memory, of known length and signed,
//! never `aws-chunked`; the checksum algorithm is declared when the upload begins and sent with each part; conditions
//! (`If-None-Match`) and checksums are left out where the store says that it does not know them.
//! The SDK's own retries are off: they give up after seconds.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, Credentials, Intercept, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, RuntimeComponents, StalledStreamProtectionConfig,
};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::Mutex;

use super::{Answer, Listed, Store, StoreError, StoreErrorKind, Unfinished, Upload, attempt_limit};

/// Skew that was never measured.
const UNKNOWN: i64 = i64::MIN;

/// Where a bucket is and who asks.
#[derive(Clone)]
pub struct S3Options {
    /// The bucket.
    pub bucket: String,
    /// Put before every key, without slashes at the ends; may be empty.
    pub prefix: String,
    /// Address of a server other than Amazon's.
    pub endpoint: Option<String>,
    /// Region.
    pub region: String,
    /// Put the bucket into the path instead of the host name.
    pub path_style: bool,
    /// Access key id.
    pub access_key_id: String,
    /// Secret access key.
    pub secret_access_key: String,
    /// Longest time of one attempt; by default thirty seconds and the bytes at 64 KiB a second.
    pub attempt_limit: Option<Duration>,
}

impl std::fmt::Debug for S3Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S3Options(s3://{}/{})", self.bucket, self.prefix)
    }
}

#[derive(Debug)]
struct Capabilities {
    conditional: AtomicBool,
    checksum: AtomicBool,
    /// Seconds that the store's clock is ahead of ours.
    skew: AtomicI64,
}

/// A bucket as a store.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    options: Arc<S3Options>,
    can: Arc<Capabilities>,
}

impl S3Store {
    /// A client for one bucket; nothing is sent yet.
    pub fn new(options: S3Options) -> Self {
        let can = Arc::new(Capabilities {
            conditional: AtomicBool::new(true),
            checksum: AtomicBool::new(true),
            skew: AtomicI64::new(UNKNOWN),
        });
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(options.region.clone()))
            .credentials_provider(Credentials::new(
                &options.access_key_id,
                &options.secret_access_key,
                None,
                None,
                "appliance",
            ))
            .force_path_style(options.path_style)
            .retry_config(RetryConfig::disabled())
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .interceptor(Watch(Arc::clone(&can)));
        if let Some(endpoint) = &options.endpoint {
            config = config.endpoint_url(endpoint);
        }
        Self {
            client: Client::from_conf(config.build()),
            options: Arc::new(options),
            can,
        }
    }

    fn key(&self, key: &str) -> String {
        if self.options.prefix.is_empty() {
            key.to_owned()
        } else {
            format!("{}/{key}", self.options.prefix)
        }
    }

    fn algorithm(&self) -> Option<ChecksumAlgorithm> {
        self.can
            .checksum
            .load(Ordering::Relaxed)
            .then_some(ChecksumAlgorithm::Crc32)
    }

    fn condition(&self) -> Option<String> {
        self.can
            .conditional
            .load(Ordering::Relaxed)
            .then(|| "*".to_owned())
    }

    /// Drops what the store says it does not know; says whether there is something new to try.
    fn concede(&self, error: &StoreError, conditional: bool) -> bool {
        let unknown = error.source.downcast_ref::<Reply>().is_some_and(|reply| {
            reply.status == 501
                || matches!(
                    reply.code.as_str(),
                    "NotImplemented" | "InvalidRequest" | "InvalidArgument"
                )
        });
        let flag = if conditional {
            &self.can.conditional
        } else {
            &self.can.checksum
        };
        unknown && flag.swap(false, Ordering::Relaxed)
    }

    fn fail<E, R>(&self, action: &'static str, key: &str, error: SdkError<E, R>) -> StoreError
    where
        SdkError<E, R>: ProvideErrorMetadata + Error + Send + Sync + 'static,
        R: Status + std::fmt::Debug,
        E: Error + 'static,
    {
        let status = error.raw_response().map_or(0, Status::status);
        let code = error.code().unwrap_or_default().to_owned();
        let kind = match (&error, code.as_str(), status) {
            (SdkError::ConstructionFailure(_), ..) => StoreErrorKind::Other,
            (_, "NoSuchKey" | "NotFound" | "NoSuchUpload", _) => StoreErrorKind::Missing,
            (_, "NoSuchBucket", _) => StoreErrorKind::Denied,
            (_, "PreconditionFailed", _) | (_, _, 412) => StoreErrorKind::Exists,
            // A byte that was flipped on the way, a connection that was too slow, a race: the next attempt is another one.
            (
                _,
                "BadDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" | "RequestTimeout" | "SlowDown",
                _,
            )
            | (
                _,
                "ConditionalRequestConflict" | "OperationAborted" | "InternalError" | "ServiceUnavailable",
                _,
            )
            // The answer tells the store's time, by which the next attempt is signed.
            | (_, "RequestTimeTooSkewed", _) => StoreErrorKind::Outage,
            (_, _, 401 | 403) | (_, "ExpiredToken", _) => StoreErrorKind::Denied,
            (_, _, 404) => StoreErrorKind::Missing,
            (_, _, 501) => StoreErrorKind::Other,
            (_, _, 408 | 429 | 500..) => StoreErrorKind::Outage,
            (_, _, 400..) => StoreErrorKind::Other,
            // No answer, half an answer, or "200" with an error in its body.
            _ => StoreErrorKind::Outage,
        };
        let message = error.message().unwrap_or_default().to_owned();
        let text = if code.is_empty() && message.is_empty() {
            DisplayErrorContext(&error).to_string()
        } else {
            format!("{code}: {message}")
        };
        StoreError::new(kind, action, key, &self.place(), Reply { status, code, text })
    }

    async fn limited<T>(
        &self,
        action: &'static str,
        key: &str,
        bytes: usize,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let limit = self.options.attempt_limit.unwrap_or_else(|| attempt_limit(bytes));
        match tokio::time::timeout(limit, call).await {
            Ok(done) => done,
            Err(_) => Err(StoreError::new(
                StoreErrorKind::Outage,
                action,
                key,
                &self.place(),
                format!("no answer within {} s", limit.as_secs()),
            )),
        }
    }

    async fn put_once(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let call = self
            .client
            .put_object()
            .bucket(&self.options.bucket)
            .key(self.key(key))
            .set_if_none_match(self.condition())
            .set_checksum_crc32(self.algorithm().map(|_| crc32(&bytes)))
            .body(bytes.into());
        call.send()
            .await
            .map_err(|error| self.fail("store", key, error))?;
        Ok(())
    }

    async fn begin_once(&self, key: &str) -> Result<String, StoreError> {
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(&self.options.bucket)
            .key(self.key(key))
            .set_checksum_algorithm(self.algorithm())
            .send()
            .await
            .map_err(|error| self.fail("begin", key, error))?;
        begun.upload_id.ok_or_else(|| {
            StoreError::new(
                StoreErrorKind::Other,
                "begin",
                key,
                &self.place(),
                "the answer has no upload id",
            )
        })
    }
}

impl Store for S3Store {
    fn place(&self) -> String {
        format!("s3://{}/{}", self.options.bucket, self.options.prefix)
    }

    fn put_new<'a>(&'a self, key: &'a str, bytes: Bytes) -> Answer<'a, ()> {
        Box::pin(self.limited("store", key, bytes.len(), async move {
            loop {
                match self.put_once(key, bytes.clone()).await {
                    Err(error) if self.concede(&error, true) || self.concede(&error, false) => {}
                    done => return done,
                }
            }
        }))
    }

    fn begin<'a>(&'a self, key: &'a str) -> Answer<'a, Box<dyn Upload>> {
        Box::pin(self.limited("begin", key, 0, async move {
            let id = loop {
                match self.begin_once(key).await {
                    Err(error) if self.concede(&error, false) => {}
                    done => break done?,
                }
            };
            Ok(Box::new(S3Upload {
                store: self.clone(),
                key: key.to_owned(),
                id,
                algorithm: self.algorithm(),
                done: Mutex::new(Vec::new()),
            }) as Box<dyn Upload>)
        }))
    }

    fn abort<'a>(&'a self, key: &'a str, upload: &'a str) -> Answer<'a, ()> {
        Box::pin(self.limited("abort", key, 0, async move {
            let aborted = self
                .client
                .abort_multipart_upload()
                .bucket(&self.options.bucket)
                .key(self.key(key))
                .upload_id(upload)
                .send()
                .await
                .map_err(|error| self.fail("abort", key, error));
            match aborted {
                Err(error) if error.kind == StoreErrorKind::Missing => Ok(()),
                done => done.map(|_| ()),
            }
        }))
    }

    fn size<'a>(&'a self, key: &'a str) -> Answer<'a, Option<u64>> {
        Box::pin(self.limited("look at", key, 0, async move {
            let found = self
                .client
                .head_object()
                .bucket(&self.options.bucket)
                .key(self.key(key))
                .send()
                .await
                .map_err(|error| self.fail("look at", key, error));
            match found {
                Ok(found) => Ok(found.content_length.and_then(|length| u64::try_from(length).ok())),
                Err(error) if error.kind == StoreErrorKind::Missing => Ok(None),
                Err(error) => Err(error),
            }
        }))
    }

    fn read<'a>(&'a self, key: &'a str, from: u64, length: u64) -> Answer<'a, Bytes> {
        let expected = usize::try_from(length).unwrap_or(usize::MAX).min(super::PART);
        Box::pin(self.limited("read", key, expected, async move {
            if length == 0 {
                return Ok(Bytes::new());
            }
            let answer = self
                .client
                .get_object()
                .bucket(&self.options.bucket)
                .key(self.key(key))
                .range(format!("bytes={from}-{}", from.saturating_add(length - 1)))
                .send()
                .await
                .map_err(|error| self.fail("read", key, error))?;
            let body = answer.body.collect().await.map_err(|error| {
                StoreError::new(StoreErrorKind::Outage, "read", key, &self.place(), error)
            })?;
            Ok(body.into_bytes())
        }))
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Listed>> {
        Box::pin(async move {
            let cut = self.key("").len();
            let mut found = Vec::new();
            let mut next: Option<String> = None;
            loop {
                let page = self
                    .limited("list", prefix, 0, async {
                        self.client
                            .list_objects_v2()
                            .bucket(&self.options.bucket)
                            .prefix(self.key(prefix))
                            .set_continuation_token(next.take())
                            .send()
                            .await
                            .map_err(|error| self.fail("list", prefix, error))
                    })
                    .await?;
                for object in page.contents() {
                    let key = object.key().and_then(|key| key.get(cut..));
                    let size = object.size().and_then(|size| u64::try_from(size).ok());
                    if let (Some(key), Some(size)) = (key, size) {
                        found.push(Listed {
                            key: key.to_owned(),
                            size,
                        });
                    }
                }
                match page.next_continuation_token {
                    Some(token) if page.is_truncated == Some(true) => next = Some(token),
                    _ => break,
                }
            }
            found.sort_by(|a, b| a.key.cmp(&b.key));
            Ok(found)
        })
    }

    fn delete<'a>(&'a self, key: &'a str) -> Answer<'a, ()> {
        Box::pin(self.limited("remove", key, 0, async move {
            let removed = self
                .client
                .delete_object()
                .bucket(&self.options.bucket)
                .key(self.key(key))
                .send()
                .await
                .map_err(|error| self.fail("remove", key, error));
            match removed {
                Err(error) if error.kind == StoreErrorKind::Missing => Ok(()),
                done => done.map(|_| ()),
            }
        }))
    }

    fn unfinished<'a>(&'a self, prefix: &'a str) -> Answer<'a, Vec<Unfinished>> {
        Box::pin(self.limited("list uploads", prefix, 0, async move {
            let own = self.key("");
            let (mut found, mut key, mut id) = (Vec::new(), None, None);
            loop {
                let page = self
                    .client
                    .list_multipart_uploads()
                    .bucket(&self.options.bucket)
                    .prefix(self.key(prefix))
                    .set_key_marker(key)
                    .set_upload_id_marker(id)
                    .send()
                    .await
                    .map_err(|error| self.fail("list uploads", prefix, error));
                let page = match page {
                    // Not every store can; those end such uploads by a rule of their own.
                    Err(error) if matches!(error.kind, StoreErrorKind::Other | StoreErrorKind::Denied) => {
                        return Ok(found);
                    }
                    page => page?,
                };
                for upload in page.uploads() {
                    let since = upload.initiated().map(|at| Timestamp::from_second(at.secs()));
                    if let (Some(key), Some(id), Some(Ok(since))) = (upload.key(), upload.upload_id(), since)
                        && let Some(key) = key.strip_prefix(&own)
                    {
                        let (key, upload) = (key.to_owned(), id.to_owned());
                        found.push(Unfinished { key, upload, since });
                    }
                }
                (key, id) = (page.next_key_marker.clone(), page.next_upload_id_marker.clone());
                if page.is_truncated != Some(true) || key.is_none() {
                    return Ok(found);
                }
            }
        }))
    }

    fn clock_skew(&self) -> Answer<'_, Option<SignedDuration>> {
        Box::pin(async move {
            // Any answer tells the time, a refusal too.
            self.size(crate::names::REPOSITORY).await?;
            let skew = self.can.skew.load(Ordering::Relaxed);
            Ok((skew != UNKNOWN).then(|| SignedDuration::from_secs(skew)))
        })
    }
}

struct S3Upload {
    store: S3Store,
    key: String,
    id: String,
    /// As it was declared: parts must not differ.
    algorithm: Option<ChecksumAlgorithm>,
    done: Mutex<Vec<CompletedPart>>,
}

impl Upload for S3Upload {
    fn id(&self) -> &str {
        &self.id
    }

    fn part(&self, number: usize, bytes: Bytes) -> Answer<'_, ()> {
        let store = &self.store;
        Box::pin(store.limited("write", &self.key, bytes.len(), async move {
            let number = i32::try_from(number).unwrap_or(i32::MAX);
            let checksum = self.algorithm.as_ref().map(|_| crc32(&bytes));
            let stored = store
                .client
                .upload_part()
                .bucket(&store.options.bucket)
                .key(store.key(&self.key))
                .upload_id(&self.id)
                .part_number(number)
                .set_checksum_crc32(checksum.clone())
                .body(bytes.into())
                .send()
                .await
                .map_err(|error| store.fail("write", &self.key, error))?;
            let part = CompletedPart::builder()
                .part_number(number)
                .set_e_tag(stored.e_tag)
                .set_checksum_crc32(stored.checksum_crc32.or(checksum))
                .build();
            let mut done = self.done.lock().await;
            done.retain(|other| other.part_number != Some(number));
            done.push(part);
            Ok(())
        }))
    }

    fn complete(&self, parts: usize, size: u64) -> Answer<'_, ()> {
        let store = &self.store;
        // Stores put large objects together while we wait.
        let patience = usize::try_from(size / 16).unwrap_or(usize::MAX);
        Box::pin(store.limited("complete", &self.key, patience, async move {
            let mut list = self.done.lock().await.clone();
            list.sort_by_key(CompletedPart::part_number);
            if list.len() != parts {
                return Err(StoreError::new(
                    StoreErrorKind::Other,
                    "complete",
                    &self.key,
                    &store.place(),
                    format!("{} of {parts} parts are there", list.len()),
                ));
            }
            loop {
                let done = store
                    .client
                    .complete_multipart_upload()
                    .bucket(&store.options.bucket)
                    .key(store.key(&self.key))
                    .upload_id(&self.id)
                    .set_if_none_match(store.condition())
                    .multipart_upload(
                        CompletedMultipartUpload::builder()
                            .set_parts(Some(list.clone()))
                            .build(),
                    )
                    .send()
                    .await
                    .map_err(|error| store.fail("complete", &self.key, error));
                match done {
                    Err(error) if store.concede(&error, true) => {}
                    done => return done.map(|_| ()),
                }
            }
        }))
    }
}

/// CRC32 as S3 writes it: the SDK computes none unless it is required, and then as a trailer that many stores refuse.
fn crc32(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(crc32fast::hash(bytes).to_be_bytes())
}

/// What a store answered, cut to what says something.
#[derive(Debug)]
struct Reply {
    status: u16,
    code: String,
    text: String,
}

impl std::fmt::Display for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.status {
            0 => f.write_str(&self.text),
            status => write!(f, "{status} {}", self.text),
        }
    }
}

impl Error for Reply {}

/// An answer with a status; the SDK's own type has no trait for it.
trait Status {
    fn status(&self) -> u16;
}

impl Status for aws_sdk_s3::config::http::HttpResponse {
    fn status(&self) -> u16 {
        self.status().as_u16()
    }
}

/// Notes the time that the store's answers tell.
#[derive(Debug)]
struct Watch(Arc<Capabilities>);

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "the store's clock"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let date = context
            .response()
            .headers()
            .get("date")
            .and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
        if let Some(date) = date {
            let skew = date.timestamp().duration_since(Timestamp::now()).as_secs();
            self.0.skew.store(skew, Ordering::Relaxed);
        }
        Ok(())
    }
}
