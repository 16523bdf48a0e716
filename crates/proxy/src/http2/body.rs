//! The body of a request on its way to an upstream.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, Request, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::held::PART;
use crate::spool::{Spool, SpoolError};

/// A request's body, held to the service's limit.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    source: Source,
    /// Bytes that the service still accepts.
    left: u64,
    /// The announced length.
    length: Option<u64>,
    /// Bytes handed out that the client's window does not know of yet.
    unreleased: usize,
    /// Adds up what was handed out, for somebody who asked.
    counted: Option<Rc<Cell<u64>>>,
}

/// Where the bytes come from.
#[derive(Debug, Default)]
enum Source {
    /// There is no body, or it is over.
    #[default]
    Nothing,
    /// A stream of an HTTP/2 client.
    Stream(RecvStream),
    /// An HTTP/1.1 client, read by its connection's task.
    Channel(mpsc::Receiver<Result<Frame<Bytes>, UploadError>>),
    /// All of it is here.
    Held(Box<Spool>, Option<HeaderMap>),
}

/// A request's body broke off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The client sent more than the service accepts.
    #[error("the request body is larger than the service accepts")]
    TooLarge,
    /// The client broke off.
    #[error("the client broke off its request")]
    Client(#[source] h2::Error),
    /// The client's connection ended, or its chunks are malformed.
    #[error("the client's request body is not complete")]
    Incomplete,
    /// What was held back cannot be read any more.
    #[error("the request body that was held back cannot be read")]
    Held(#[source] SpoolError),
}

/// A client's request with its body as an [`Upload`] without a limit yet.
pub(super) fn of_client(request: Request<RecvStream>) -> Request<Upload> {
    let length = length(request.headers());
    request.map(|stream| Upload {
        source: if stream.is_end_stream() {
            Source::Nothing
        } else {
            Source::Stream(stream)
        },
        left: u64::MAX,
        length,
        unreleased: 0,
        counted: None,
    })
}

/// The length that the fields announce.
pub(super) fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

impl Upload {
    /// What an HTTP/1.1 client sends, in parts.
    pub(crate) fn channel(
        parts: mpsc::Receiver<Result<Frame<Bytes>, UploadError>>,
        length: Option<u64>,
    ) -> Self {
        Self {
            source: Source::Channel(parts),
            left: u64::MAX,
            length,
            unreleased: 0,
            counted: None,
        }
    }

    /// A body that is here already.
    pub(crate) fn held(spool: Spool, trailers: Option<HeaderMap>) -> Self {
        let length = Some(spool.len());
        Self {
            source: if spool.len() == 0 && trailers.is_none() {
                Source::Nothing
            } else {
                Source::Held(Box::new(spool), trailers)
            },
            left: u64::MAX,
            length,
            unreleased: 0,
            counted: None,
        }
    }

    /// Accepts at most `bytes`.
    pub(crate) fn limit(&mut self, bytes: u64) {
        self.left = bytes;
    }

    /// The announced length; 0 without a body.
    pub(crate) fn announced(&self) -> Option<u64> {
        match self.source {
            Source::Nothing => Some(0),
            _ => self.length,
        }
    }

    /// What will have been handed out.
    pub(super) fn count(&mut self) -> Rc<Cell<u64>> {
        Rc::clone(self.counted.get_or_insert_default())
    }

    /// Whether nothing is left to be sent.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.source, Source::Nothing)
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        match &mut self.source {
            Source::Nothing => Poll::Ready(None),
            Source::Stream(stream) => {
                let taken = std::mem::take(&mut self.unreleased);
                if taken > 0 {
                    // Fails only for a stream that is over.
                    let _over = stream.flow_control().release_capacity(taken);
                }
                match ready!(stream.poll_data(cx)) {
                    Some(Ok(data)) => {
                        self.unreleased = data.len();
                        Poll::Ready(Some(Ok(Frame::data(data))))
                    }
                    Some(Err(error)) => Poll::Ready(Some(Err(UploadError::Client(error)))),
                    None => {
                        let trailers = ready!(stream.poll_trailers(cx));
                        self.source = Source::Nothing;
                        Poll::Ready(match trailers {
                            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                            Err(error) => Some(Err(UploadError::Client(error))),
                        })
                    }
                }
            }
            Source::Channel(parts) => {
                let part = ready!(parts.poll_recv(cx));
                if part.is_none() {
                    self.source = Source::Nothing;
                }
                Poll::Ready(part)
            }
            Source::Held(spool, trailers) => Poll::Ready(match ready!(spool.poll_part(PART, cx)) {
                Ok(Some(part)) => Some(Ok(Frame::data(part))),
                Ok(None) => {
                    let trailers = trailers.take();
                    self.source = Source::Nothing;
                    trailers.map(|trailers| Ok(Frame::trailers(trailers)))
                }
                Err(error) => Some(Err(UploadError::Held(error))),
            }),
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let frame = ready!(self.poll_source(cx));
        let length = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, |data| data.len() as u64),
            _ => 0,
        };
        if let Some(counted) = &self.counted {
            counted.set(counted.get() + length);
        }
        Poll::Ready(match self.left.checked_sub(length) {
            Some(left) => {
                self.left = left;
                frame
            }
            None => Some(Err(UploadError::TooLarge)),
        })
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Nothing => true,
            Source::Stream(stream) => stream.is_end_stream(),
            Source::Channel(_) | Source::Held(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self.announced() {
            Some(length) => SizeHint::with_exact(length),
            None => SizeHint::default(),
        }
    }
}
