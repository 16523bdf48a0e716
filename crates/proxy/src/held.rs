//! Bodies that a service wants whole: requests before an upstream sees them, responses before their client does.
//!
//! What streams by its nature is never held back: `text/event-stream`, gRPC, WebSockets, and responses that say
//! `X-Accel-Buffering: no`, as with nginx.
//! A response that finds the disk full is given on from there as it comes; a request is refused with 507, or with 503
//! while others hold all that may be held.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use crate::forward::{RelayError, Reply};
use crate::http2::{Upload, UploadError, Working as _};
use crate::names::ServiceName;
use crate::snapshot::Buffering;
use crate::spool::{Spool, SpoolError};
use crate::upstream::Upstream;
use crate::worker::Worker;

/// Most bytes of a held body that are handed out at once.
pub(crate) const PART: usize = 64 << 10;

/// An empty spool as the service and the settings say.
pub(crate) fn spool(worker: &Worker, service: &ServiceName, buffering: &Buffering) -> Spool {
    let most = worker.shared.table.load().settings.spool_max_bytes;
    Spool::new(
        &worker.shared.spools,
        service.as_str(),
        buffering.memory_bytes,
        most,
    )
}

/// Whether a response with these fields streams by its nature.
pub(crate) fn streams(content_type: Option<&[u8]>, accel_buffering: Option<&[u8]>) -> bool {
    let begins = |prefix: &[u8]| {
        content_type.is_some_and(|value| {
            value
                .get(..prefix.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(prefix))
        })
    };
    begins(b"text/event-stream")
        || begins(b"application/grpc")
        || accel_buffering.is_some_and(|value| value.trim_ascii().eq_ignore_ascii_case(b"no"))
}

/// The answer to a request that cannot be held back.
pub(crate) fn refusal(error: &SpoolError) -> StatusCode {
    tracing::error!(
        error = error as &dyn std::error::Error,
        "a request body cannot be held back"
    );
    match error {
        SpoolError::Bound(_) | SpoolError::Share(_) => StatusCode::SERVICE_UNAVAILABLE,
        SpoolError::Disk(_) => StatusCode::INSUFFICIENT_STORAGE,
    }
}

/// Says that a response goes on without being held back.
pub(crate) fn gives_on(error: &SpoolError) {
    tracing::warn!(
        error = error as &dyn std::error::Error,
        "a response is held back no further, the client gets it as it comes"
    );
}

/// Reads what an HTTP/2 client sends until its end, into the upload that stands for it from now on.
///
/// # Errors
/// What the client is to get instead: 413, 400, 408 when nothing came for `stall`, or [`refusal`].
pub(crate) async fn request(
    worker: &Worker,
    service: &ServiceName,
    buffering: &Buffering,
    upload: &mut Upload,
    stall: Duration,
) -> Result<(), StatusCode> {
    let mut spool = spool(worker, service, buffering);
    let mut part = Bytes::new();
    let mut trailers = None;
    let mut timeout = std::pin::pin!(tokio::time::sleep(stall));
    std::future::poll_fn(|cx| {
        loop {
            while !part.is_empty() {
                match ready!(spool.poll_append(&part, cx)) {
                    Ok(count) => part.advance(count),
                    Err(error) => return Poll::Ready(Err(refusal(&error))),
                }
            }
            match Pin::new(&mut *upload).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => part = data,
                    Err(frame) => trailers = frame.into_trailers().ok(),
                },
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.status())),
                Poll::Pending if timeout.as_mut().poll(cx).is_ready() => {
                    return Poll::Ready(Err(StatusCode::REQUEST_TIMEOUT));
                }
                Poll::Pending => return Poll::Pending,
            }
            timeout.as_mut().reset(Instant::now() + stall);
        }
    })
    .await?;
    *upload = Upload::held(spool, trailers);
    Ok(())
}

/// What came of holding a response back.
enum Outcome {
    Whole,
    TooLarge,
    Broken(RelayError),
    /// No room for more.
    Full(SpoolError),
}

/// Holds a relayed response back until it is complete, unless it streams by its nature; the upstream is free then.
pub(crate) async fn response(
    worker: &Worker,
    service: &ServiceName,
    buffering: &Buffering,
    response: Response<Reply>,
) -> Response<Reply> {
    let field = |name: &str| response.headers().get(name).map(HeaderValue::as_bytes);
    let Reply::Relayed(relay) = response.body() else {
        return response;
    };
    if response.body().is_end_stream() || streams(field("content-type"), field("x-accel-buffering")) {
        return response;
    }
    let upstream = Arc::clone(relay.upstream());
    let most = buffering.max_response_body.unwrap_or(u64::MAX);
    let (mut head, mut body) = response.into_parts();
    let mut spool = spool(worker, service, buffering);
    let (mut part, mut trailers) = (Bytes::new(), None);
    let outcome = if body.size_hint().lower() > most {
        Outcome::TooLarge
    } else {
        std::future::poll_fn(|cx| {
            body.poll_work(cx);
            loop {
                while !part.is_empty() {
                    match ready!(spool.poll_append(&part, cx)) {
                        Ok(count) => part.advance(count),
                        Err(error) => return Poll::Ready(Outcome::Full(error)),
                    }
                }
                match ready!(Pin::new(&mut body).poll_frame(cx)) {
                    None => return Poll::Ready(Outcome::Whole),
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(data) if spool.len() + data.len() as u64 > most => {
                            return Poll::Ready(Outcome::TooLarge);
                        }
                        Ok(data) => part = data,
                        Err(frame) => trailers = frame.into_trailers().ok(),
                    },
                    Some(Err(error)) => return Poll::Ready(Outcome::Broken(error)),
                }
            }
        })
        .await
    };
    let rest = match outcome {
        Outcome::Whole => {
            if trailers.is_none() {
                head.headers
                    .insert(header::CONTENT_LENGTH, HeaderValue::from(spool.len()));
            }
            None
        }
        Outcome::TooLarge => {
            tracing::warn!(most, "a response is larger than max_response_body");
            return crate::forward::failure(StatusCode::INTERNAL_SERVER_ERROR);
        }
        Outcome::Broken(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the upstream broke off its response"
            );
            return crate::forward::failure(match error {
                RelayError::Cut => StatusCode::GATEWAY_TIMEOUT,
                _ => StatusCode::BAD_GATEWAY,
            });
        }
        Outcome::Full(error) => {
            gives_on(&error);
            Some(body)
        }
    };
    let held = Held {
        upstream,
        spool,
        part,
        rest,
        trailers,
    };
    Response::from_parts(head, Reply::Held(Box::new(held)))
}

/// A response that was held back, on its way to an HTTP/2 client.
#[derive(Debug)]
pub(crate) struct Held {
    upstream: Arc<Upstream>,
    spool: Spool,
    /// What did not fit.
    part: Bytes,
    /// What is still to come from the upstream.
    rest: Option<Reply>,
    trailers: Option<HeaderMap>,
}

impl Held {
    /// The upstream that answered.
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Goes on with an upload beside the response.
    pub(crate) fn work(&mut self, cx: &mut Context<'_>) {
        if let Some(rest) = &mut self.rest {
            rest.poll_work(cx);
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.spool.is_read() && self.part.is_empty() && self.rest.is_none() && self.trailers.is_none()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match &self.rest {
            None => SizeHint::with_exact(self.spool.left() + self.part.len() as u64),
            Some(_) => SizeHint::default(),
        }
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let data = match ready!(self.spool.poll_part(PART, cx)) {
            Ok(Some(data)) => data,
            Ok(None) if !self.part.is_empty() => std::mem::take(&mut self.part),
            Ok(None) => {
                if let Some(rest) = &mut self.rest {
                    return Pin::new(rest).poll_frame(cx);
                }
                return Poll::Ready(self.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
            }
            Err(error) => return Poll::Ready(Some(Err(RelayError::Held(error)))),
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

impl UploadError {
    /// What the client is to get.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Held(_) => StatusCode::INTERNAL_SERVER_ERROR,
            // Nobody is there to get it: it is for the log, in kamal-proxy's and nginx's word.
            Self::Client(_) => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
            Self::Incomplete => StatusCode::BAD_REQUEST,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn streams_are_known_by_their_fields() {
        let streams =
            |kind: &str, accel: Option<&str>| super::streams(Some(kind.as_bytes()), accel.map(str::as_bytes));
        assert!(streams("text/event-stream", None));
        assert!(streams("Text/Event-Stream; charset=utf-8", None));
        assert!(streams("application/grpc+proto", None));
        assert!(streams("text/html", Some(" NO ")));
        assert!(!streams("text/html", Some("yes")));
        assert!(!streams("text", None));
        assert!(!super::streams(None, None));
    }
}
