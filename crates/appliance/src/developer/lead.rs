//! Leading one host of a group: its events in one direction, our words in the other, on one request.

use anyhow::Context as _;
use appliance_push::change::Envelope;
use bytes::{Bytes, BytesMut};
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;

use super::link::Link;
use crate::failure::{Kind, failure};
use crate::wire::{Event, Word};

/// What a host tells while it is led.
pub struct Led {
    host: String,
    body: Incoming,
    buffer: BytesMut,
}

/// Submits a signed change and says `words` to the host as they come.
///
/// When the sender of the words is dropped, the host has no leader any more.
///
/// # Errors
/// When the connection breaks or the agent does not take it.
pub async fn submit(link: &Link, envelope: &Envelope, words: mpsc::Receiver<Word>) -> anyhow::Result<Led> {
    let first = line(envelope)?;
    let body = futures_util::stream::unfold((Some(first), words), |(first, mut words)| async move {
        let bytes = match first {
            Some(first) => first,
            None => {
                let word = words.recv().await?;
                line(&word).ok()?
            }
        };
        Some((Ok(Frame::data(bytes)), (None, words)))
    });
    let request = Request::builder()
        .method(Method::POST)
        .uri("/v1/rollouts")
        .header(header::CONTENT_TYPE, "application/x-ndjson")
        .body(StreamBody::new(body).boxed())
        .context("our own paths are good URIs")?;
    let answer = link.send(request).await?;
    let status = answer.status();
    let host = link.name();
    if status.is_success() {
        return Ok(Led {
            host,
            body: answer.into_body(),
            buffer: BytesMut::new(),
        });
    }
    let said = answer.into_body().collect().await?.to_bytes();
    let said = String::from_utf8_lossy(&said).into_owned();
    Err(failure(
        Kind::Other,
        format!("{host} does not take part in a rollout ({status}): {said}"),
    )
    .into())
}

fn line(value: &impl serde::Serialize) -> anyhow::Result<Bytes> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(line.into())
}

impl Led {
    /// The next event; the last is [`Event::End`].
    ///
    /// # Errors
    /// When the connection breaks before the end.
    pub async fn next(&mut self) -> anyhow::Result<Event> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line)
                    .with_context(|| format!("{}: an event we do not understand", self.host));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => {
                    let why = crate::agent::chain(&error);
                    return Err(failure(
                        Kind::Unreachable,
                        format!("the connection to {} broke: {why}", self.host),
                    )
                    .into());
                }
                None => {
                    return Err(failure(
                        Kind::Unreachable,
                        format!("{} ended the answer before the result", self.host),
                    )
                    .into());
                }
            }
        }
    }
}
