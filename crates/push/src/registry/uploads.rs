//! Uploads over HTTP: whole, in pieces, continued after a cut, mounted.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, LOCATION, RANGE};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;

use super::answer::{self, Problem, header};
use super::route::Query;
use super::{Action, AnswerBody, Registry, Token, blocking};
use crate::change::{BlobRef, Digest, Repository};
use crate::store::{StoreError, UploadId, UploadStatus};

/// How long another sender's upload must stand still before somebody else may continue it.
const WATCH: Duration = Duration::from_millis(1500);
/// Bytes gathered before they are handed to the disk.
const PIECE: usize = 512 << 10;

/// The `Range` of an upload with `offset` bytes: inclusive, and `0-0` for none, as the specification has it.
pub(super) fn range(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

impl Registry {
    pub(super) async fn begin_upload<B>(
        &self,
        parts: &Parts,
        name: &Repository,
        query: &Query,
        body: B,
    ) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        if let Some(mounted) = self.mount(parts, name, query).await? {
            return Ok(mounted);
        }
        let expect = expected(query)?;
        let cap = self.allow(
            parts,
            Some(name),
            &Action::Begin {
                expect: expect.as_ref(),
            },
        )?;
        let digest = query
            .get("digest")
            .map(Digest::parse)
            .transpose()
            .map_err(Problem::digest_invalid)?;
        if let Some(digest) = &digest {
            self.allow(parts, Some(name), &Action::Finish { digest })?;
        }
        let known = expect.as_ref().map(|expect| expect.digest.clone());
        if let Some(known) = known {
            let store = self.store.clone();
            let wanted = known.clone();
            if blocking(move || store.touch(&wanted)).await?.is_some() {
                return Ok(created(name, &known));
            }
        }
        // A client that sends everything at once says so in Content-Length: that much room must be there.
        let announced = content_length(parts);
        let expect = match (expect, &digest, announced) {
            (Some(expect), ..) => Some(expect),
            (None, Some(digest), Some(size)) => Some(BlobRef {
                digest: digest.clone(),
                size,
            }),
            _ => None,
        };
        let owner = owner(parts);
        match digest {
            // Whole in one request: it brings all the bytes, so nothing is continued.
            Some(digest) => {
                let id = self.fresh(name, expect, cap, owner).await?.id;
                self.whole(name, id, digest, body).await
            }
            None => {
                let status = match &expect {
                    Some(wanted) => self.unfinished(name, wanted, &owner).await?,
                    None => None,
                };
                let status = match status {
                    Some(status) => status,
                    None => self.fresh(name, expect, cap, owner).await?,
                };
                Ok(accepted(StatusCode::ACCEPTED, name, &status.id, status.offset))
            }
        }
    }

    async fn fresh(
        &self,
        name: &Repository,
        expect: Option<BlobRef>,
        cap: u64,
        owner: String,
    ) -> Result<UploadStatus, Problem> {
        let (store, repository) = (self.store.clone(), name.clone());
        blocking(move || store.begin(&repository, expect, cap, &owner)).await
    }

    /// The unfinished upload to continue: the sender's own, or one that its sender has left.
    async fn unfinished(
        &self,
        name: &Repository,
        wanted: &BlobRef,
        owner: &str,
    ) -> Result<Option<UploadStatus>, Problem> {
        let look = || {
            let (store, repository, wanted) = (self.store.clone(), name.clone(), wanted.clone());
            blocking(move || store.unfinished(&repository, &wanted))
        };
        let before = look().await?;
        if let Some((own, _)) = before.iter().find(|(_, known)| known == owner) {
            return Ok(Some(own.clone()));
        }
        if before.is_empty() {
            return Ok(None);
        }
        // Somebody else's: it is free if it does not grow while we watch.
        tokio::time::sleep(WATCH).await;
        let after = look().await?;
        let Some((left, _)) = after.into_iter().find(|now| before.contains(now)) else {
            return Ok(None);
        };
        let (store, owner) = (self.store.clone(), owner.to_owned());
        blocking(move || store.adopt(&left.id, &owner)).await.map(Some)
    }

    async fn whole<B>(
        &self,
        name: &Repository,
        id: UploadId,
        digest: Digest,
        body: B,
    ) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let sent = match self.receive(&id, None, body).await {
            Ok(_) => self.finish(&id, &digest).await,
            Err(problem) => Err(problem),
        };
        if let Err(problem) = sent {
            // Its address was never told to anybody, so nobody could continue it.
            let _gone_already = self.cancel(&id).await;
            return Err(problem);
        }
        Ok(created(name, &digest))
    }

    async fn mount(
        &self,
        parts: &Parts,
        name: &Repository,
        query: &Query,
    ) -> Result<Option<Response<AnswerBody>>, Problem> {
        let Some(digest) = query.get("mount") else {
            return Ok(None);
        };
        let digest = Digest::parse(digest).map_err(Problem::digest_invalid)?;
        if let Some(from) = query.get("from") {
            Repository::parse(from).map_err(Problem::name_invalid)?;
        }
        self.allow(parts, Some(name), &Action::Mount { digest: &digest })?;
        let (store, wanted) = (self.store.clone(), digest.clone());
        let found = blocking(move || store.touch(&wanted)).await?;
        // Not here: the answer is that of an ordinary upload (specification, mounting a blob).
        Ok(found.map(|_| created(name, &digest)))
    }

    pub(super) async fn upload_status(
        &self,
        parts: &Parts,
        name: &Repository,
        id: UploadId,
    ) -> Result<Response<AnswerBody>, Problem> {
        self.allow(parts, Some(name), &Action::Continue)?;
        let status = self.status(name, id).await?;
        Ok(accepted(StatusCode::NO_CONTENT, name, &status.id, status.offset))
    }

    pub(super) async fn continue_upload<B>(
        &self,
        parts: &Parts,
        name: &Repository,
        id: UploadId,
        body: B,
    ) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        self.allow(parts, Some(name), &Action::Continue)?;
        let status = self.status(name, id).await?;
        let start = content_range(parts)?;
        let offset = self.receive(&status.id, start, body).await?;
        Ok(accepted(StatusCode::ACCEPTED, name, &status.id, offset))
    }

    pub(super) async fn finish_upload<B>(
        &self,
        parts: &Parts,
        name: &Repository,
        id: UploadId,
        query: &Query,
        body: B,
    ) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let digest = query
            .get("digest")
            .ok_or_else(|| Problem::bad("DIGEST_INVALID", "the parameter digest is missing"))?;
        let digest = Digest::parse(digest).map_err(Problem::digest_invalid)?;
        self.allow(parts, Some(name), &Action::Finish { digest: &digest })?;
        let status = self.status(name, id).await?;
        let start = content_range(parts)?;
        self.receive(&status.id, start, body).await?;
        self.finish(&status.id, &digest).await?;
        Ok(created(name, &digest))
    }

    pub(super) async fn cancel_upload(
        &self,
        parts: &Parts,
        name: &Repository,
        id: UploadId,
    ) -> Result<Response<AnswerBody>, Problem> {
        self.allow(parts, Some(name), &Action::Continue)?;
        let status = self.status(name, id).await?;
        self.cancel(&status.id).await?;
        let mut response = Response::new(answer::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }

    /// The upload, if it belongs to this repository.
    async fn status(&self, name: &Repository, id: UploadId) -> Result<UploadStatus, Problem> {
        let store = self.store.clone();
        let wanted = id.clone();
        let status = blocking(move || store.status(&wanted)).await?;
        if status.repository == *name {
            Ok(status)
        } else {
            Err(Problem::upload_unknown(&id.to_string()))
        }
    }

    async fn finish(&self, id: &UploadId, digest: &Digest) -> Result<BlobRef, Problem> {
        let (store, id, digest) = (self.store.clone(), id.clone(), digest.clone());
        blocking(move || store.finish(&id, &digest)).await
    }

    async fn cancel(&self, id: &UploadId) -> Result<(), Problem> {
        let (store, id) = (self.store.clone(), id.clone());
        blocking(move || store.cancel(&id)).await
    }

    /// Takes in a body; what arrived before a cut is kept, so that the upload continues there.
    async fn receive<B>(&self, id: &UploadId, start: Option<u64>, mut body: B) -> Result<u64, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let mut next = start;
        let mut gathered = BytesMut::new();
        let mut cut = None;
        loop {
            let frame = match body.frame().await {
                None => break,
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    cut = Some(Problem::CutOff(format!("the upload was cut off: {error}")));
                    break;
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            gathered.extend_from_slice(&data);
            if gathered.len() >= PIECE {
                next = Some(self.append(id, next, gathered.split().freeze()).await?);
            }
        }
        // Also an empty body is checked against its Content-Range.
        let offset = self.append(id, next, gathered.freeze()).await?;
        cut.map_or(Ok(offset), Err)
    }

    async fn append(&self, id: &UploadId, offset: Option<u64>, piece: Bytes) -> Result<u64, Problem> {
        let (store, wanted) = (self.store.clone(), id.clone());
        let appended = blocking(move || store.append(&wanted, offset, &piece)).await;
        if let Err(Problem::Store(StoreError::TooLarge { .. })) = &appended {
            // More bytes than were announced never become what was announced: nothing of it is kept.
            let _gone = self.cancel(id).await;
        }
        appended
    }
}

fn expected(query: &Query) -> Result<Option<BlobRef>, Problem> {
    let Some(digest) = query.get("expect") else {
        return Ok(None);
    };
    let digest = Digest::parse(digest).map_err(Problem::digest_invalid)?;
    let size = query.get("size").and_then(|size| size.parse().ok());
    let size = size.ok_or_else(|| Problem::bad("SIZE_INVALID", "expect needs a size in bytes"))?;
    Ok(Some(BlobRef { digest, size }))
}

/// By what a sender is known again: its token, of which only a digest is kept.
fn owner(parts: &Parts) -> String {
    Token::of_request(parts).map_or_else(String::new, |token| token.owner())
}

fn content_length(parts: &Parts) -> Option<u64> {
    parts.headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Where a piece begins: `Content-Range: <start>-<end>`, in the specification's own form without unit and total.
fn content_range(parts: &Parts) -> Result<Option<u64>, Problem> {
    let Some(value) = parts.headers.get(CONTENT_RANGE) else {
        return Ok(None);
    };
    let bad = || {
        let message = "Content-Range must be <start>-<end>, both inclusive".to_owned();
        Problem::Request(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
    };
    let text = value.to_str().map_err(|_| bad())?;
    let text = text.strip_prefix("bytes ").unwrap_or(text);
    let text = text.split_once('/').map_or(text, |(range, _)| range);
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let (start, end): (u64, u64) = (start.parse().map_err(|_| bad())?, end.parse().map_err(|_| bad())?);
    // The sender's count must fit its own header.
    let length = content_length(parts);
    if end < start || length.is_some_and(|length| end - start + 1 != length) {
        return Err(bad());
    }
    Ok(Some(start))
}

fn accepted(status: StatusCode, name: &Repository, id: &UploadId, offset: u64) -> Response<AnswerBody> {
    let mut response = Response::new(answer::empty());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(LOCATION, header(&format!("/v2/{name}/blobs/uploads/{id}")));
    headers.insert(RANGE, header(&range(offset)));
    headers.insert("docker-upload-uuid", header(&id.to_string()));
    // `Range: 0-0` cannot tell no byte from one; our own client reads this instead.
    headers.insert("appliance-upload-offset", offset.into());
    headers.insert(CONTENT_LENGTH, 0.into());
    response
}

fn created(name: &Repository, digest: &Digest) -> Response<AnswerBody> {
    let mut response = Response::new(answer::empty());
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    headers.insert(LOCATION, header(&format!("/v2/{name}/blobs/{digest}")));
    headers.insert("docker-content-digest", header(digest.as_str()));
    headers.insert(CONTENT_LENGTH, 0.into());
    response
}
