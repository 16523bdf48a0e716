//! Reading blobs and manifests, storing manifests, discovering what is there.

use std::io::SeekFrom;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LINK, LOCATION, RANGE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::answer::{self, Problem, header};
use super::route::Query;
use super::{Action, AnswerBody, Registry, blocking};
use crate::change::{Digest, Repository};
use crate::store::{Descriptor, Reference, Store, StoreError, media_type};

/// Most tags in one answer.
const TAGS_LIMIT: usize = 1000;

pub(super) async fn blob(
    store: &Store,
    parts: &Parts,
    digest: &Digest,
) -> Result<Response<AnswerBody>, Problem> {
    let (store, wanted) = (store.clone(), digest.clone());
    let blob = blocking(move || store.blob(&wanted)).await?;
    let blob = blob.ok_or_else(|| StoreError::BlobUnknown {
        digest: digest.clone(),
    })?;
    let (status, start, length) = match wanted_range(parts, blob.size) {
        Wanted::Everything => (StatusCode::OK, 0, blob.size),
        Wanted::Part(start, end) => (StatusCode::PARTIAL_CONTENT, start, end - start + 1),
        Wanted::Nothing => {
            let message = format!("the blob has {} bytes", blob.size);
            let problem = Problem::Request(StatusCode::RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message);
            let mut response = problem.into_response();
            response
                .headers_mut()
                .insert(CONTENT_RANGE, header(&format!("bytes */{}", blob.size)));
            return Ok(response);
        }
    };
    let body = if parts.method == Method::HEAD {
        answer::empty()
    } else {
        let mut file = tokio::fs::File::from_std(blob.file);
        file.seek(SeekFrom::Start(start))
            .await
            .map_err(|error| Problem::Internal(error.to_string()))?;
        let stream = ReaderStream::with_capacity(file.take(length), 128 << 10).map_ok(Frame::data);
        StreamBody::new(stream).boxed()
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(ETAG, header(&format!("\"{digest}\"")));
    headers.insert("docker-content-digest", header(digest.as_str()));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(
            CONTENT_RANGE,
            header(&format!("bytes {start}-{}/{}", start + length - 1, blob.size)),
        );
    }
    Ok(response)
}

enum Wanted {
    Everything,
    /// First and last byte.
    Part(u64, u64),
    Nothing,
}

/// One byte range (RFC 9110 §14.2); several, or other units, are answered with everything, as allowed there.
fn wanted_range(parts: &Parts, size: u64) -> Wanted {
    let Some(text) = parts.headers.get(RANGE).and_then(|value| value.to_str().ok()) else {
        return Wanted::Everything;
    };
    let Some((first, last)) = text
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
    else {
        return Wanted::Everything;
    };
    let (first, last) = match (first.trim(), last.trim()) {
        ("", suffix) => match suffix.parse::<u64>() {
            Ok(0) => return Wanted::Nothing,
            Ok(count) => (size.saturating_sub(count), size.saturating_sub(1)),
            Err(_) => return Wanted::Everything,
        },
        (first, "") => match first.parse() {
            Ok(first) => (first, size.saturating_sub(1)),
            Err(_) => return Wanted::Everything,
        },
        (first, last) => match (first.parse::<u64>(), last.parse::<u64>()) {
            (Ok(first), Ok(last)) if first <= last => (first, last.min(size.saturating_sub(1))),
            _ => return Wanted::Everything,
        },
    };
    if first >= size {
        Wanted::Nothing
    } else {
        Wanted::Part(first, last)
    }
}

pub(super) async fn manifest(
    store: &Store,
    name: Repository,
    reference: Reference,
) -> Result<Response<AnswerBody>, Problem> {
    let store = store.clone();
    let stored = blocking(move || store.manifest(&name, &reference)).await?;
    let length = stored.bytes.len();
    let mut response = Response::new(answer::full(stored.bytes));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, header(&stored.media_type));
    headers.insert(CONTENT_LENGTH, length.into());
    headers.insert(ETAG, header(&format!("\"{}\"", stored.digest)));
    headers.insert("docker-content-digest", header(stored.digest.as_str()));
    Ok(response)
}

pub(super) async fn delete_manifest(
    store: &Store,
    name: Repository,
    reference: Reference,
) -> Result<Response<AnswerBody>, Problem> {
    let store = store.clone();
    blocking(move || store.delete_manifest(&name, &reference)).await?;
    let mut response = Response::new(answer::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    Ok(response)
}

pub(super) async fn tags(
    store: &Store,
    name: Repository,
    query: &Query,
) -> Result<Response<AnswerBody>, Problem> {
    let (store, wanted) = (store.clone(), name.clone());
    if !store.knows_repository(&name) {
        let message = format!("nothing was ever pushed to {name}");
        return Err(Problem::Request(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message));
    }
    let tags = blocking(move || store.tags(&wanted)).await?;
    let after = query.get("last");
    let limit = match query.get("n") {
        Some(n) => n
            .parse()
            .map_err(|_| Problem::bad("UNSUPPORTED", "n must be a number"))?,
        None => TAGS_LIMIT,
    };
    let later: Vec<String> = tags
        .into_iter()
        .map(String::from)
        .filter(|tag| after.is_none_or(|after| tag.as_str() > after))
        .collect();
    let page = &later[..later.len().min(limit).min(TAGS_LIMIT)];
    let mut response = answer::json(StatusCode::OK, &serde_json::json!({"name": name, "tags": page}));
    if let (Some(last), true) = (page.last(), page.len() < later.len()) {
        let link = format!(
            "</v2/{name}/tags/list?n={}&last={last}>; rel=\"next\"",
            page.len()
        );
        response.headers_mut().insert(LINK, header(&link));
    }
    Ok(response)
}

pub(super) async fn referrers(
    store: &Store,
    name: Repository,
    subject: Digest,
    query: &Query,
) -> Result<Response<AnswerBody>, Problem> {
    let store = store.clone();
    let mut found: Vec<Descriptor> = blocking(move || store.referrers(&name, &subject)).await?;
    let filter = query.get("artifactType").filter(|wanted| !wanted.is_empty());
    if let Some(wanted) = filter {
        found.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(wanted));
    }
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": found});
    let mut response = answer::json(StatusCode::OK, &index);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(media_type::OCI_INDEX));
    if filter.is_some() {
        response
            .headers_mut()
            .insert("oci-filters-applied", HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}

impl Registry {
    pub(super) async fn put_manifest<B>(
        &self,
        parts: &Parts,
        name: Repository,
        reference: Reference,
        body: B,
    ) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        // Before the body is read, so that strangers cannot fill the memory.
        self.allow(parts, Some(&name), &Action::Continue)?;
        let limit = usize::try_from(self.store.limits().max_manifest).unwrap_or(usize::MAX);
        let bytes = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                let message = format!("a manifest may have {limit} bytes");
                return Problem::Request(StatusCode::PAYLOAD_TOO_LARGE, "MANIFEST_INVALID", message);
            }
            Problem::CutOff(format!("the manifest was cut off: {error}"))
        })?;
        let bytes = bytes.to_bytes();
        let digest = Digest::of(&bytes);
        self.allow(
            parts,
            Some(&name),
            &Action::PutManifest {
                reference: &reference,
                digest: &digest,
            },
        )?;
        let content_type = parts
            .headers
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| Problem::bad("MANIFEST_INVALID", "the Content-Type is missing"))?
            .to_owned();
        let (store, repository, stored_as) = (self.store.clone(), name.clone(), reference.clone());
        let manifest =
            blocking(move || store.put_manifest(&repository, &stored_as, &content_type, &bytes)).await?;

        let mut response = Response::new(answer::empty());
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert(LOCATION, header(&format!("/v2/{name}/manifests/{reference}")));
        headers.insert("docker-content-digest", header(digest.as_str()));
        headers.insert(CONTENT_LENGTH, 0.into());
        if let Some(subject) = &manifest.subject {
            headers.insert("oci-subject", header(subject.digest.as_str()));
        }
        self.index_in_background(manifest);
        Ok(response)
    }

    /// Learns which layers the new blobs hold, one image at a time, without keeping anybody waiting.
    fn index_in_background(&self, manifest: crate::store::Manifest) {
        if manifest.layers.is_empty() {
            return;
        }
        let (store, turn) = (self.store.clone(), std::sync::Arc::clone(&self.indexing));
        tokio::spawn(async move {
            let Ok(_turn) = turn.acquire().await else { return };
            if let Err(problem) = blocking(move || store.index_layers(&manifest)).await {
                tracing::warn!(
                    ?problem,
                    "a layer could not be looked into; it will be sent again when it is needed"
                );
            }
        });
    }
}
