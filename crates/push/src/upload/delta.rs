//! Sending a delta, and asking which chunks are there.

use http::header::CONTENT_LENGTH;
use http::{Method, StatusCode};

use super::{Counter, Try, UploadError, UploadOptions, body_of, collect, full, odd, refused, request};
use crate::change::{BlobRef, Repository};
use crate::delta::{self, Chunk};
use crate::image::Delta;
use crate::transport::Client;

/// Where the agent answers which chunks a repository's layers have.
pub const CHUNKS_PATH: &str = "/v1/images/chunks";
/// Where the agent takes deltas.
pub const DELTAS_PATH: &str = "/v1/images/deltas";

/// Asks which of these chunks the host's layers of the repository have.
///
/// # Errors
/// When the connection breaks, or the host refuses or does not know deltas.
pub async fn have_chunks(
    client: &Client,
    repository: &Repository,
    chunks: &[Chunk],
) -> Result<Vec<bool>, UploadError> {
    let what = "the question which chunks are there";
    let host = client.host();
    let ids: Vec<u8> = chunks.iter().flat_map(|chunk| chunk.id.0).collect();
    let question = http::Request::builder()
        .method(Method::POST)
        .uri(format!("{CHUNKS_PATH}?repository={repository}"))
        .header(CONTENT_LENGTH, ids.len())
        .body(full(ids))
        .map_err(|error| odd(host, what, &error.to_string()))?;
    let answer = client
        .send(question)
        .await
        .map_err(|source| UploadError::Connection {
            host: host.to_owned(),
            source,
        })?;
    if answer.status() != StatusCode::OK {
        return Err(refused(host, what, answer).await);
    }
    let bits = collect(answer).await.map_err(|why| odd(host, what, &why))?;
    Ok((0..chunks.len()).map(|index| delta::bit(&bits, index)).collect())
}

/// Tries the delta; `None` when the host cannot use it (any more), and the whole layer has to be sent.
pub(super) async fn try_delta(
    client: &Client,
    counter: &Counter,
    options: &UploadOptions,
    blob: &BlobRef,
    delta: &Delta,
) -> Result<Option<Try>, UploadError> {
    let host = client.host();
    let what = format!("the delta of {}", blob.digest);
    counter.resumed(blob, 0);
    let body = body_of(&delta.bytes.path, 0, counter.clone(), blob.digest.clone(), None)
        .await
        .map_err(|source| UploadError::Read {
            digest: blob.digest.clone(),
            source,
        })?;
    let put = request(options, Method::PUT)
        .uri(format!(
            "{DELTAS_PATH}?repository={}&digest={}&size={}",
            options.repository, blob.digest, blob.size
        ))
        .header(CONTENT_LENGTH, delta.size)
        .body(body)
        .map_err(|error| odd(host, &what, &error.to_string()))?;
    match client.send(put).await {
        Err(why) => Ok(Some(Try::Cut(why))),
        Ok(answer) if answer.status() == StatusCode::CREATED => {
            counter.finished(blob);
            Ok(Some(Try::Done))
        }
        // The layers it builds on were collected meanwhile, or a chunk was not what its id says.
        Ok(answer)
            if answer.status() == StatusCode::BAD_REQUEST || answer.status() == StatusCode::NOT_FOUND =>
        {
            tracing::debug!(
                "the host cannot use the delta: {}",
                refused(host, &what, answer).await
            );
            counter.resumed(blob, 0);
            Ok(None)
        }
        Ok(answer) => Err(refused(host, &what, answer).await),
    }
}
