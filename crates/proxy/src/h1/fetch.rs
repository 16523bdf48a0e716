//! One request of an HTTP/2 client to an upstream that speaks HTTP/1.1, and its response as a stream of frames.
//!
//! ```text
//!  fetch:  head (+ body as it comes) ──► wait for a head ──► (1xx: pass on, wait again) ──► response
//!  relay:  body as the client takes it, the rest of the upload beside it ──► complete: the link rests again
//!          101: a tunnel, which is a response and an upload without an end of their own
//! ```

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use tokio::io::AsyncWrite;
use tokio::time::Instant;

use super::chunks::{self, Decoder, Piece};
use super::parse::{self, Framing};
use super::{rewrite, trailer};
use crate::buffer::ROOM;
use crate::forward::{Broken, Patience, RelayError};
use crate::headers;
use crate::http2::{Interim, Upload, UploadError, Working};
use crate::link::Link;
use crate::table::Route;
use crate::upstream::{InFlight, Upstream};
use crate::wakers::Place;
use crate::worker::Worker;

/// Most bytes of a response's head.
const MOST_HEAD: usize = 64 << 10;
/// What is read at once of a large body.
const LARGE: usize = 64 << 10;

/// A link and what is counted on it.
pub(crate) struct Taken {
    pub(crate) link: Link,
    /// Whether it carried a request before.
    pub(crate) reused: bool,
    pub(crate) in_flight: InFlight,
}

/// The request on its way.
#[derive(Debug)]
struct Sending {
    out: Vec<u8>,
    sent: usize,
    /// A part of the body that goes out as it is.
    part: Bytes,
    body: Upload,
    framing: Way,
    /// Whether nothing more comes from `body`.
    last: bool,
    /// Whether the upstream does not take what is there.
    refused: bool,
    bytes: u64,
}

/// How the body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Length,
    Chunked,
    /// A tunnel: its end is the end of the connection.
    Raw,
}

enum NotSent {
    Upload(UploadError),
    Link,
}

impl Sending {
    fn poll(&mut self, link: &mut Link, cx: &mut Context<'_>) -> Poll<Result<(), NotSent>> {
        loop {
            let there = if self.sent < self.out.len() {
                &self.out[self.sent..]
            } else {
                &self.part[..]
            };
            if !there.is_empty() {
                let written = Pin::new(&mut *link).poll_write(cx, there);
                self.refused = written.is_pending();
                match ready!(written) {
                    Ok(count) if count > 0 => {
                        self.bytes += count as u64;
                        if self.sent < self.out.len() {
                            self.sent += count;
                        } else {
                            let _written = self.part.split_to(count);
                        }
                    }
                    _ => return Poll::Ready(Err(NotSent::Link)),
                }
                continue;
            }
            if self.last {
                if self.framing == Way::Raw {
                    // The upstream may have closed its side already.
                    let _closed = ready!(Pin::new(&mut *link).poll_shutdown(cx));
                }
                return Poll::Ready(Ok(()));
            }
            self.out.clear();
            self.sent = 0;
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if self.framing == Way::Chunked => chunks::write(&mut self.out, &data),
                    Ok(data) => self.part = data,
                    Err(frame) => {
                        if let (Ok(fields), Way::Chunked) = (frame.into_trailers(), self.framing) {
                            trailer::write_end(&mut self.out, &fields);
                        }
                        self.last = true;
                    }
                },
                Some(Err(error)) => return Poll::Ready(Err(NotSent::Upload(error))),
                None => {
                    if self.framing == Way::Chunked {
                        self.out.extend_from_slice(chunks::END);
                    }
                    self.last = true;
                }
            }
        }
    }
}

/// Writes the request's head as HTTP/1.1.
fn write_head(out: &mut Vec<u8>, request: &Request<Upload>) -> Way {
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    let target = request
        .uri()
        .path_and_query()
        .map_or("/", |target| target.as_str());
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in request.headers() {
        if *name != header::CONTENT_LENGTH {
            rewrite::field(out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let body = request.body();
    let announced = request.headers().contains_key(header::CONTENT_LENGTH);
    let way = match body.announced() {
        Some(0) if !announced && body.is_over() => Way::Length,
        Some(length) => {
            out.extend_from_slice(b"content-length: ");
            rewrite::number(out, length);
            out.extend_from_slice(b"\r\n");
            Way::Length
        }
        None => {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
            Way::Chunked
        }
    };
    out.extend_from_slice(b"\r\n");
    way
}

/// Sends `request` and waits for the final response's head. The body is taken out of `request`; the rest stays, so
/// that it can be sent once more.
///
/// # Errors
/// What the client is to get instead.
pub(crate) async fn fetch(
    worker: &Rc<Worker>,
    taken: Taken,
    request: &mut Request<Upload>,
    upgrade: bool,
    patience: Patience,
    interim: Interim<'_>,
) -> Result<Response<Relay>, Broken> {
    let Taken {
        mut link,
        reused,
        in_flight,
    } = taken;
    let repeatable = request.body().is_over() && crate::forward::is_idempotent(request.method().as_str());
    let is_head = request.method() == http::Method::HEAD;
    let mut out = worker.buffers.vec();
    // Nothing after an upgrade request reaches the upstream before its consent.
    let held = upgrade.then(|| std::mem::take(request.body_mut()));
    let framing = write_head(&mut out, request);
    let body = std::mem::take(request.body_mut());
    let mut sending = Sending {
        out,
        sent: 0,
        part: Bytes::new(),
        last: body.is_over(),
        refused: false,
        body,
        framing,
        bytes: 0,
    };
    let mut input = BytesMut::new();
    let mut place = worker.wakers.register();
    let mut uploading = true;
    let mut broken_link = false;
    place.set(Some(
        Instant::now()
            + if sending.last {
                patience.response
            } else {
                patience.stall
            },
    ));
    let mut looked = 0;
    let head = std::future::poll_fn(|cx| {
        place.remember(cx);
        if in_flight.upstream().is_cut() {
            return Poll::Ready(Err(Broken::Status(StatusCode::GATEWAY_TIMEOUT)));
        }
        if uploading {
            let before = sending.bytes;
            let waited_for_client = !sending.last;
            match sending.poll(&mut link, cx) {
                Poll::Ready(Ok(())) => {
                    uploading = false;
                    if waited_for_client {
                        place.set(Some(Instant::now() + patience.response));
                    }
                }
                Poll::Ready(Err(NotSent::Upload(error))) => {
                    return Poll::Ready(Err(Broken::Status(error.status())));
                }
                // It may have answered already, so the response is still read.
                Poll::Ready(Err(NotSent::Link)) => (uploading, broken_link) = (false, true),
                Poll::Pending if sending.bytes > before => {
                    place.set(Some(Instant::now() + patience.stall));
                }
                Poll::Pending => {}
            }
        }
        loop {
            while let Some(end) = parse::head_end(&input, looked) {
                looked = 0;
                let head = input.split_to(end).freeze();
                let Some(read) = read_head(&head) else {
                    return Poll::Ready(Err(Broken::Status(StatusCode::BAD_GATEWAY)));
                };
                match read.status.as_u16() {
                    101 => return Poll::Ready(Ok(read)),
                    100..200 => {
                        let mut told = Response::new(());
                        *told.status_mut() = read.status;
                        *told.headers_mut() = read.headers;
                        headers::strip_hop_by_hop(told.headers_mut());
                        interim(told);
                    }
                    _ => return Poll::Ready(Ok(read)),
                }
            }
            looked = input.len();
            if looked > MOST_HEAD {
                return Poll::Ready(Err(Broken::Status(StatusCode::BAD_GATEWAY)));
            }
            match poll_read(&mut link, &mut input, ROOM, cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(_) => {
                    return Poll::Ready(Err(if reused && repeatable && input.is_empty() {
                        Broken::Stale
                    } else {
                        Broken::Status(StatusCode::BAD_GATEWAY)
                    }));
                }
                Poll::Pending => break,
            }
        }
        if place.poll_passed(cx) {
            return Poll::Ready(Err(Broken::Status(if uploading && !sending.refused {
                StatusCode::REQUEST_TIMEOUT
            } else {
                StatusCode::GATEWAY_TIMEOUT
            })));
        }
        Poll::Pending
    })
    .await?;

    let tunnel = head.status == StatusCode::SWITCHING_PROTOCOLS;
    if tunnel && !(upgrade && head.headers.contains_key(header::UPGRADE)) {
        return Err(Broken::Status(StatusCode::BAD_GATEWAY));
    }
    let no_body = is_head || matches!(head.status.as_u16(), 204 | 304);
    let down = match head.framing {
        _ if tunnel => Down::UntilClose,
        _ if no_body => Down::Given,
        Framing::Length(0) => Down::Given,
        Framing::Length(length) => Down::Length(length),
        Framing::Chunked => Down::Chunked(Decoder::default()),
        Framing::UntilClose => Down::UntilClose,
    };
    if let (true, Some(body)) = (tunnel, held) {
        sending.framing = Way::Raw;
        (sending.last, sending.body) = (body.is_over(), body);
        uploading = true;
    }
    let sent = sending.bytes;
    let sending = if uploading && !broken_link {
        Some(Box::new(sending))
    } else {
        worker.buffers.give(std::mem::take(&mut sending.out));
        None
    };
    let mut relay = Relay {
        reusable: head.reusable && !broken_link && !matches!(down, Down::UntilClose),
        link: Some(link),
        input,
        down,
        sending,
        in_flight: if tunnel {
            in_flight.into_tunnel()
        } else {
            in_flight
        },
        place,
        worker: Rc::clone(worker),
        trailers: HeaderMap::new(),
        sent,
        route: None,
        given: 0,
        length: match head.framing {
            Framing::Length(length) => Some(length),
            _ => None,
        },
    };
    relay.rest();
    let mut response = Response::new(relay);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    let fields = response.headers_mut();
    headers::strip_hop_by_hop(fields);
    if head.framing == Framing::Chunked {
        fields.remove(header::CONTENT_LENGTH);
    }
    Ok(response)
}

struct Head {
    status: StatusCode,
    headers: HeaderMap,
    framing: Framing,
    reusable: bool,
}

/// Reads a head; its values stay where they are.
fn read_head(bytes: &Bytes) -> Option<Head> {
    let mut room = parse::fields();
    let read = parse::response(bytes, &mut room)?;
    let mut headers = HeaderMap::with_capacity(read.fields.len() + 2);
    for field in read.fields {
        headers.append(
            HeaderName::from_bytes(field.name.as_bytes()).ok()?,
            HeaderValue::from_maybe_shared(bytes.slice_ref(field.value)).ok()?,
        );
    }
    Some(Head {
        status: StatusCode::from_u16(read.status).ok()?,
        headers,
        framing: read.framing,
        reusable: read.reusable,
    })
}

fn poll_read(
    link: &mut Link,
    input: &mut BytesMut,
    room: usize,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<usize>> {
    input.reserve(room.saturating_sub(input.len()).max(1024));
    tokio_util::io::poll_read_buf(Pin::new(link), cx, input)
}

#[derive(Debug)]
enum Down {
    Length(u64),
    Chunked(Decoder),
    UntilClose,
    Given,
}

/// A response's body; the link rests again when it is complete.
pub(crate) struct Relay {
    link: Option<Link>,
    input: BytesMut,
    down: Down,
    /// What is left of the upload.
    sending: Option<Box<Sending>>,
    reusable: bool,
    in_flight: InFlight,
    place: Place,
    worker: Rc<Worker>,
    trailers: HeaderMap,
    /// Bytes written to the upstream, once nothing more is.
    sent: u64,
    /// Whose counters they go to.
    route: Option<Arc<Route>>,
    given: u64,
    length: Option<u64>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("down", &self.down)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// The upstream that answers.
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        self.in_flight.upstream()
    }
}

impl Working for Relay {
    fn poll_work(&mut self, cx: &mut Context<'_>) {
        if let (Some(sending), Some(link)) = (&mut self.sending, &mut self.link) {
            let outcome = sending.poll(link, cx);
            self.sent = sending.bytes;
            match outcome {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.sending = None,
                Poll::Ready(Err(_)) => {
                    self.sending = None;
                    self.reusable = false;
                }
            }
        }
    }
}

impl Relay {
    /// Counts the bytes for `route`, when all is over.
    pub(crate) fn count_for(&mut self, route: &Arc<Route>) {
        self.route = Some(Arc::clone(route));
    }

    /// Puts the link back once nothing is left to be done on it.
    fn rest(&mut self) {
        if !matches!(self.down, Down::Given) {
            return;
        }
        let complete = self.reusable && self.sending.is_none() && self.input.is_empty();
        if let (Some(link), true) = (self.link.take(), complete) {
            let upstream: &Arc<_> = self.in_flight.upstream();
            self.worker.links.put(upstream, link, Instant::now());
        }
    }
}

impl Body for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let this = &mut *self;
        loop {
            let data = match &mut this.down {
                Down::Given => {
                    if this.trailers.is_empty() {
                        return Poll::Ready(None);
                    }
                    let trailers = std::mem::take(&mut this.trailers);
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Down::Length(left) if !this.input.is_empty() => {
                    let count = this.input.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= count as u64;
                    if *left == 0 {
                        this.down = Down::Given;
                    }
                    Some(count)
                }
                Down::UntilClose if !this.input.is_empty() => Some(this.input.len()),
                Down::Chunked(decoder) => match decoder.next(&this.input) {
                    Ok(Piece::Framing(count)) => {
                        let _framing = this.input.split_to(count);
                        continue;
                    }
                    Ok(Piece::Trailer(count)) => {
                        let line = this.input.split_to(count);
                        if let Some((name, value)) = trailer::field(&line) {
                            this.trailers.append(name, value);
                        }
                        continue;
                    }
                    Ok(Piece::Data(count)) => Some(count),
                    Ok(Piece::End) => {
                        this.down = Down::Given;
                        this.rest();
                        continue;
                    }
                    Ok(Piece::More) => None,
                    Err(chunks::Malformed) => return Poll::Ready(Some(Err(RelayError::Malformed))),
                },
                Down::Length(_) | Down::UntilClose => None,
            };
            if let Some(count) = data {
                let data = this.input.split_to(count).freeze();
                this.given += count as u64;
                this.rest();
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            if this.in_flight.upstream().is_cut() {
                return Poll::Ready(Some(Err(RelayError::Cut)));
            }
            let Some(link) = &mut this.link else {
                return Poll::Ready(Some(Err(RelayError::Malformed)));
            };
            let room = if this.given > LARGE as u64 { LARGE } else { ROOM };
            match poll_read(link, &mut this.input, room, cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) if matches!(this.down, Down::UntilClose) => this.down = Down::Given,
                Poll::Ready(Ok(0)) => {
                    let error = std::io::ErrorKind::UnexpectedEof.into();
                    return Poll::Ready(Some(Err(RelayError::Upstream(error))));
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Some(Err(RelayError::Upstream(error)))),
                Poll::Pending => {
                    this.place.remember(cx);
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.down, Down::Given) && self.trailers.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.given)),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(route) = &self.route {
            route.counters[self.worker.index].moved(self.sent, self.given);
        }
    }
}
