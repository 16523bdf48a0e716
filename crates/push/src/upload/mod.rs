//! Sending what the host lacks: several blobs at once over one HTTP/2 connection, continuing after a cut.
//!
//! ```text
//! blob ─► POST ?expect&size ─┬─ 201 there already ────────────────► done
//!            ▲               └─ 202 at byte n ─► PUT the rest ─┬──► done
//!            └────────── connection lost, or another offset ───┘
//! all blobs done ─► PUT manifest by digest
//! ```

mod delta;
mod progress;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LOCATION};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::Incoming;
use tokio::io::AsyncSeekExt as _;
use tokio::sync::Mutex;
use tokio_util::io::ReaderStream;

pub use delta::{CHUNKS_PATH, DELTAS_PATH, have_chunks};
pub use progress::{Counter, Progress};

use crate::change::{BlobRef, Digest, Repository};
use crate::image::{Place, Prepared};
use crate::store::{HaveAnswer, HaveQuery};
use crate::transport::{Body, Client, Transport, TransportError};

/// Where the agent answers [`HaveQuery`] with [`HaveAnswer`], as JSON by POST.
pub const HAVE_PATH: &str = "/v1/images/have";
/// Connections made again in a row without one byte of progress between them.
const MAX_RECONNECTS: u32 = 6;
/// Pause before the first new connection; each further one waits twice as long, 16 s altogether.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Largest answer that is read.
const ANSWER_LIMIT: usize = 4 << 20;

/// Why an upload ended early.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// The connection cannot be had (again).
    #[error(
        "the upload to {host} was cut off and could not be continued; run the command again, it continues where it stopped"
    )]
    Connection {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: TransportError,
    },
    /// The host refuses.
    #[error("{host} refuses {what}: {message}")]
    Refused {
        /// The host.
        host: String,
        /// What was sent.
        what: String,
        /// Status of the answer.
        status: StatusCode,
        /// Its code, such as `DENIED` or `SIZE_INVALID`.
        code: String,
        /// Its message.
        message: String,
    },
    /// The host's answer makes no sense.
    #[error("{host} answers {what} in a way this version does not understand: {why}")]
    Answer {
        /// The host.
        host: String,
        /// What was sent.
        what: String,
        /// What is odd.
        why: String,
    },
    /// A blob cannot be read here.
    #[error("cannot read the blob {digest} on this machine")]
    Read {
        /// Which.
        digest: Digest,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The work was stopped.
    #[error("the upload was stopped: {why}")]
    Stopped {
        /// By what.
        why: String,
    },
}

/// What an upload did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes that went over the wire as content.
    pub bytes: u64,
    /// Blobs that the host turned out to have.
    pub already_there: usize,
    /// Connections that had to be made again.
    pub reconnects: u32,
}

/// Asks the host what it has.
///
/// # Errors
/// When the connection breaks or the answer makes no sense.
pub async fn have(client: &Client, query: &HaveQuery) -> Result<HaveAnswer, UploadError> {
    let what = || "the question what is there".to_owned();
    let body = serde_json::to_vec(query).expect("plain data always has a JSON form");
    let request = Request::builder()
        .method(Method::POST)
        .uri(HAVE_PATH)
        .header(CONTENT_TYPE, "application/json")
        .header(CONTENT_LENGTH, body.len())
        .body(full(body))
        .expect("every part is a constant");
    let host = client.host().to_owned();
    let response = client
        .send(request)
        .await
        .map_err(|source| UploadError::Connection {
            host: host.clone(),
            source,
        })?;
    if response.status() != StatusCode::OK {
        return Err(refused(&host, &what(), response).await);
    }
    let bytes = collect(response).await.map_err(|why| UploadError::Answer {
        host: host.clone(),
        what: what(),
        why,
    })?;
    serde_json::from_slice(&bytes).map_err(|error| UploadError::Answer {
        host,
        what: what(),
        why: error.to_string(),
    })
}

/// How to send.
#[derive(Clone)]
pub struct UploadOptions {
    /// The repository the manifest goes to.
    pub repository: Repository,
    /// The token that the signed `upload` change was exchanged for.
    pub token: String,
    /// Blobs sent at one time, from 1.
    pub parallel: usize,
    /// Called whenever something moved, from the sending tasks.
    pub progress: Arc<dyn Fn(Progress) + Send + Sync>,
}

impl std::fmt::Debug for UploadOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadOptions")
            .field("repository", &self.repository)
            .finish_non_exhaustive()
    }
}

/// Sends an image: the blobs the host lacks, then the manifest by its digest.
///
/// # Errors
/// When the host refuses, or the connection is lost and cannot be had again.
pub async fn upload(
    transport: &Transport,
    client: Client,
    image: &Prepared,
    options: &UploadOptions,
) -> Result<Sent, UploadError> {
    upload_with(transport, client, image, options, FIRST_WAIT).await
}

async fn upload_with(
    transport: &Transport,
    client: Client,
    image: &Prepared,
    options: &UploadOptions,
    first_wait: Duration,
) -> Result<Sent, UploadError> {
    let mut blobs = image.to_send();
    // Large blobs first, so that no worker is left alone with one at the end.
    blobs.sort_by_key(|(blob, _)| std::cmp::Reverse(blob.size));
    let summary = image.summary();
    let counter = Counter::new(
        &blobs,
        summary.layers_there,
        summary.layers,
        Arc::clone(&options.progress),
    );
    let link = Arc::new(Shared {
        transport: transport.clone(),
        client: Mutex::new(Current {
            client,
            number: 0,
            fruitless: 0,
            seen: 0,
        }),
        counter: counter.clone(),
        first_wait,
    });
    let queue = Arc::new(Mutex::new(VecDeque::from(blobs)));
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..options.parallel.max(1) {
        let (link, queue, options) = (Arc::clone(&link), Arc::clone(&queue), options.clone());
        workers.spawn(async move {
            loop {
                let Some((blob, place)) = queue.lock().await.pop_front() else {
                    return Ok(());
                };
                send_blob(&link, &options, &blob, &place).await?;
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        // The first failure ends the others: dropping the set stops them.
        ended.map_err(|error| UploadError::Stopped {
            why: error.to_string(),
        })??;
    }
    send_manifest(&link, options, image).await?;
    let reconnects = link.client.lock().await.number;
    Ok(Sent {
        bytes: counter.sent(),
        already_there: counter.already_there(),
        reconnects,
    })
}

/// The connection that all workers share.
struct Shared {
    transport: Transport,
    client: Mutex<Current>,
    counter: Counter,
    first_wait: Duration,
}

struct Current {
    client: Client,
    /// How many connections came before this one.
    number: u32,
    /// Connections in a row that brought nothing.
    fruitless: u32,
    /// Bytes sent when the last connection was made.
    seen: u64,
}

impl Shared {
    async fn client(&self) -> (Client, u32) {
        let current = self.client.lock().await;
        (current.client.clone(), current.number)
    }

    /// A new connection, unless another worker has made it since connection `failed`.
    async fn renew(&self, failed: u32, mut why: TransportError) -> Result<(), UploadError> {
        let mut current = self.client.lock().await;
        if current.number != failed {
            return Ok(());
        }
        let sent = self.counter.sent();
        if sent > current.seen {
            current.fruitless = 0;
        }
        current.seen = sent;
        while current.fruitless < MAX_RECONNECTS {
            current.fruitless += 1;
            let wait = self.first_wait * 2_u32.pow(current.fruitless - 1);
            tracing::debug!(?wait, error = &why as &dyn std::error::Error, "connecting again");
            tokio::time::sleep(wait).await;
            match self.transport.client().await {
                Ok(client) => {
                    current.client = client;
                    current.number += 1;
                    self.counter.reconnected();
                    return Ok(());
                }
                Err(error) => why = error,
            }
        }
        Err(UploadError::Connection {
            host: self.transport.name(),
            source: why,
        })
    }
}

/// What one try of one blob came to.
enum Try {
    Done,
    /// The connection broke; what arrived counts.
    Cut(TransportError),
    /// Another sender or an older request of ours moved the upload on; ask again where it is.
    Moved,
}

async fn send_blob(
    link: &Shared,
    options: &UploadOptions,
    blob: &BlobRef,
    place: &Place,
) -> Result<(), UploadError> {
    let mut moved = 0;
    if let Place::Delta(changes) = place {
        loop {
            let (client, number) = link.client().await;
            match delta::try_delta(&client, &link.counter, options, blob, changes).await? {
                Some(Try::Done) => return Ok(()),
                Some(Try::Cut(why)) => link.renew(number, why).await?,
                Some(Try::Moved) | None => break,
            }
        }
    }
    loop {
        let (client, number) = link.client().await;
        match try_blob(&client, &link.counter, options, blob, place).await? {
            Try::Done => return Ok(()),
            Try::Cut(why) => link.renew(number, why).await?,
            Try::Moved if moved < 20 => {
                moved += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Try::Moved => {
                return Err(UploadError::Answer {
                    host: client.host().to_owned(),
                    what: format!("the blob {}", blob.digest),
                    why: "somebody else keeps writing the same upload".to_owned(),
                });
            }
        }
    }
}

async fn try_blob(
    client: &Client,
    counter: &Counter,
    options: &UploadOptions,
    blob: &BlobRef,
    place: &Place,
) -> Result<Try, UploadError> {
    let host = client.host().to_owned();
    let what = format!("the blob {}", blob.digest);
    let odd = |why: &str| UploadError::Answer {
        host: host.clone(),
        what: what.clone(),
        why: why.to_owned(),
    };
    let begin = request(options, Method::POST)
        .uri(format!(
            "/v2/{}/blobs/uploads/?expect={}&size={}",
            options.repository, blob.digest, blob.size
        ))
        .header(CONTENT_LENGTH, 0)
        .body(full(Bytes::new()))
        .map_err(|error| odd(&error.to_string()))?;
    let response = match client.send(begin).await {
        Ok(response) => response,
        Err(why) => return Ok(Try::Cut(why)),
    };
    match response.status() {
        StatusCode::CREATED => {
            counter.there(blob);
            return Ok(Try::Done);
        }
        StatusCode::ACCEPTED => {}
        _ => return Err(refused(&host, &what, response).await),
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let location = header(LOCATION.as_str())
        .ok_or_else(|| odd("no Location"))?
        .to_owned();
    let offset: u64 = header("appliance-upload-offset")
        .and_then(|offset| offset.parse().ok())
        .filter(|offset| *offset <= blob.size)
        .ok_or_else(|| odd("no offset"))?;
    counter.resumed(blob, offset);

    let rest = blob.size - offset;
    let mut put = request(options, Method::PUT)
        .uri(format!("{location}?digest={}", blob.digest))
        .header(CONTENT_TYPE, "application/octet-stream")
        .header(CONTENT_LENGTH, rest);
    if rest > 0 {
        put = put.header(CONTENT_RANGE, format!("{offset}-{}", blob.size - 1));
    }
    let body = body(place, offset, counter.clone(), blob.digest.clone())
        .await
        .map_err(|source| UploadError::Read {
            digest: blob.digest.clone(),
            source,
        })?;
    let put = put.body(body).map_err(|error| odd(&error.to_string()))?;
    match client.send(put).await {
        Err(why) => Ok(Try::Cut(why)),
        Ok(response) => match response.status() {
            StatusCode::CREATED => {
                counter.finished(blob);
                Ok(Try::Done)
            }
            StatusCode::RANGE_NOT_SATISFIABLE | StatusCode::NOT_FOUND => Ok(Try::Moved),
            _ => Err(refused(&host, &what, response).await),
        },
    }
}

/// The bytes of a blob from `offset` on, counted as they leave.
async fn body(place: &Place, offset: u64, counter: Counter, digest: Digest) -> std::io::Result<Body> {
    match place {
        Place::OnHost => Ok(full(Bytes::new())),
        Place::Memory(bytes) => {
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let rest = bytes.slice(start..);
            counter.sending(&digest, rest.len() as u64);
            Ok(full(rest))
        }
        Place::File(file) => body_of(&file.path, offset, counter, digest, Some(Arc::clone(file))).await,
        Place::Delta(delta) => {
            let whole = Arc::clone(&delta.whole);
            body_of(&whole.path, offset, counter, digest, Some(Arc::clone(&whole))).await
        }
    }
}

/// A file's bytes from `offset` on; `kept` stays alive as long as they are read.
async fn body_of(
    path: &std::path::Path,
    offset: u64,
    counter: Counter,
    digest: Digest,
    kept: Option<Arc<crate::image::BlobFile>>,
) -> std::io::Result<Body> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let stream = ReaderStream::with_capacity(file, 128 << 10).map_ok(move |piece| {
        let _alive = &kept;
        counter.sending(&digest, piece.len() as u64);
        Frame::data(piece)
    });
    Ok(StreamBody::new(stream).boxed())
}

async fn send_manifest(link: &Shared, options: &UploadOptions, image: &Prepared) -> Result<(), UploadError> {
    let digest = image.digest();
    let what = format!("the manifest {digest}");
    loop {
        let (client, number) = link.client().await;
        let host = client.host().to_owned();
        let put = request(options, Method::PUT)
            .uri(format!("/v2/{}/manifests/{digest}", options.repository))
            .header(CONTENT_TYPE, image.media_type)
            .header(CONTENT_LENGTH, image.manifest.len())
            .body(full(image.manifest.clone()))
            .map_err(|error| UploadError::Answer {
                host: host.clone(),
                what: what.clone(),
                why: error.to_string(),
            })?;
        match client.send(put).await {
            Ok(response) if response.status() == StatusCode::CREATED => return Ok(()),
            Ok(response) => return Err(refused(&host, &what, response).await),
            Err(why) => link.renew(number, why).await?,
        }
    }
}

fn request(options: &UploadOptions, method: Method) -> http::request::Builder {
    Request::builder()
        .method(method)
        .header(AUTHORIZATION, format!("Bearer {}", options.token))
}

fn odd(host: &str, what: &str, why: &str) -> UploadError {
    UploadError::Answer {
        host: host.to_owned(),
        what: what.to_owned(),
        why: why.to_owned(),
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

async fn collect(response: Response<Incoming>) -> Result<Bytes, String> {
    let limited = Limited::new(response.into_body(), ANSWER_LIMIT);
    limited
        .collect()
        .await
        .map(|collected| collected.to_bytes())
        .map_err(|error| error.to_string())
}

/// The refusal in an answer, from the error form of the specification or as plain text.
async fn refused(host: &str, what: &str, response: Response<Incoming>) -> UploadError {
    let status = response.status();
    let bytes = collect(response).await.unwrap_or_default();
    let parsed: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
    let field = |name: &str| {
        let value = parsed.as_ref()?;
        let place = value
            .pointer(&format!("/errors/0/{name}"))
            .or_else(|| value.get(name))?;
        place.as_str().map(str::to_owned)
    };
    UploadError::Refused {
        host: host.to_owned(),
        what: what.to_owned(),
        status,
        code: field("code").unwrap_or_else(|| "UNKNOWN".to_owned()),
        message: field("message").unwrap_or_else(|| {
            let text = String::from_utf8_lossy(&bytes);
            if text.trim().is_empty() {
                status.to_string()
            } else {
                text.chars().take(300).collect()
            }
        }),
    }
}
