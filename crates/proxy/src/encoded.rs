//! Compression of responses to HTTP/2 clients.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body, Frame};

use crate::compress::{self, Candidate, Coding, Encoder};
use crate::forward::{RelayError, Reply};
use crate::snapshot::Compression;

/// A relayed body on its way through an encoder.
#[derive(Debug)]
pub(crate) struct Encoded {
    /// A relayed one.
    inner: Reply,
    encoder: Encoder,
    ended: bool,
    _place: compress::Place,
}

/// Makes the response smaller when the service and the visitor want it.
pub(crate) fn encode(
    compression: &Compression,
    accept: Option<&[u8]>,
    response: Response<Reply>,
) -> Response<Reply> {
    let (mut head, inner) = response.into_parts();
    let field = |name| head.headers.get(name).map(HeaderValue::as_bytes);
    let candidate = Candidate {
        status: head.status.as_u16(),
        length: inner.size_hint().exact(),
        content_type: field(header::CONTENT_TYPE),
        content_encoding: field(header::CONTENT_ENCODING),
        cache_control: field(header::CACHE_CONTROL),
    };
    if !matches!(inner, Reply::Relayed(_) | Reply::Held(_))
        || inner.is_end_stream()
        || !compress::suits(compression, &candidate)
    {
        return Response::from_parts(head, inner);
    }
    head.headers
        .append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let coding = compress::negotiate(compression, accept);
    let Some((coding, place)) = coding.and_then(|coding| Some((coding, compress::Place::take()?))) else {
        return Response::from_parts(head, inner);
    };
    mark(&mut head.headers, coding);
    let encoded = Encoded {
        inner,
        encoder: Encoder::new(coding),
        ended: false,
        _place: place,
    };
    Response::from_parts(head, Reply::Encoded(Box::new(encoded)))
}

/// The fields of a response whose body is another representation now (RFC 9110 §8.8.3.3).
fn mark(headers: &mut HeaderMap, coding: Coding) {
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::ACCEPT_RANGES);
    headers.insert(
        header::CONTENT_ENCODING,
        HeaderValue::from_static(coding.as_str()),
    );
    if let Some(tag) = headers.get(header::ETAG)
        && !tag.as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        headers.insert(header::ETAG, weak);
    }
}

impl Encoded {
    /// The relayed body.
    pub(crate) fn inner(&self) -> &Reply {
        &self.inner
    }

    /// The relayed body.
    pub(crate) fn inner_mut(&mut self) -> &mut Reply {
        &mut self.inner
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.ended
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            let mut out = Vec::new();
            let fine = match std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.encoder.encode(&data, true, &mut out),
                    // Trailers belong to the body as the upstream sent it.
                    Err(_) => true,
                },
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    self.ended = true;
                    self.encoder.finish(&mut out)
                }
            };
            if !fine {
                self.ended = true;
                return Poll::Ready(Some(Err(RelayError::Encoder)));
            }
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(Bytes::from(out)))));
            }
        }
    }
}
