//! Deltas over HTTP: which chunks are here, and layers put together from them. Not part of the OCI specification.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body;
use http_body_util::{BodyExt as _, BodyStream, Limited};
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::answer::{self, Problem};
use super::route::Query;
use super::{Action, AnswerBody, Registry, blocking};
use crate::change::{BlobRef, Digest, Repository};
use crate::delta;

impl Registry {
    /// Answers `POST …?repository=R` with one bit for each chunk id of the body.
    pub async fn chunks<B>(&self, request: Request<B>) -> Response<AnswerBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let (parts, body) = request.into_parts();
        self.answer_chunks(parts, body)
            .await
            .unwrap_or_else(Problem::into_response)
    }

    async fn answer_chunks<B>(&self, parts: Parts, body: B) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let repository = repository(&parts)?;
        self.allow(&parts, Some(&repository), &Action::Read)?;
        let body = Limited::new(body, delta::CHUNK_LIMIT * 16)
            .collect()
            .await
            .map_err(|error| Problem::CutOff(error.to_string()))?
            .to_bytes();
        let ids = delta::ids(&body)
            .ok_or_else(|| Problem::bad("SIZE_INVALID", "the body is not made of chunk ids"))?;
        let store = self.store.clone();
        let there = blocking(move || store.have_chunks(&repository, &ids)).await?;
        Ok(Response::new(answer::full(delta::bits(there.into_iter()))))
    }

    /// Answers `PUT …?repository=R&digest=D&size=N` with a delta in the body.
    pub async fn delta<B>(&self, request: Request<B>) -> Response<AnswerBody>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let (parts, body) = request.into_parts();
        self.take_delta(parts, body)
            .await
            .unwrap_or_else(Problem::into_response)
    }

    async fn take_delta<B>(&self, parts: Parts, body: B) -> Result<Response<AnswerBody>, Problem>
    where
        B: Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let repository = repository(&parts)?;
        let query = Query::parse(parts.uri.query());
        let digest =
            Digest::parse(query.get("digest").unwrap_or_default()).map_err(Problem::digest_invalid)?;
        let size = query
            .get("size")
            .and_then(|size| size.parse().ok())
            .ok_or_else(|| Problem::bad("SIZE_INVALID", "the size of the layer is missing"))?;
        let wanted = BlobRef { digest, size };
        // The same permission as for the whole blob: by digest and size.
        self.allow(
            &parts,
            Some(&repository),
            &Action::Begin {
                expect: Some(&wanted),
            },
        )?;
        self.allow(
            &parts,
            Some(&repository),
            &Action::Finish {
                digest: &wanted.digest,
            },
        )?;
        let stream = BodyStream::new(body)
            .try_filter_map(|frame| async move { Ok(frame.into_data().ok()) })
            .map_err(std::io::Error::other);
        let reader = SyncIoBridge::new(StreamReader::new(Box::pin(stream)));
        let store = self.store.clone();
        blocking(move || {
            if store.touch(&wanted.digest)?.is_none() {
                store.assemble(&repository, &wanted, reader)?;
            }
            Ok(())
        })
        .await?;
        let mut created = Response::new(answer::empty());
        *created.status_mut() = StatusCode::CREATED;
        Ok(created)
    }
}

fn repository(parts: &Parts) -> Result<Repository, Problem> {
    let query = Query::parse(parts.uri.query());
    Repository::parse(query.get("repository").unwrap_or_default()).map_err(Problem::name_invalid)
}
