//! One request to one upstream, and its response: both bodies move at the same time in one task.
//!
//! ```text
//!  upload:    head + what is there ──► body ──► sent
//!  download:  wait for a head ──► (1xx: pass on, wait again) ──► body ──► given
//!                                  101: tunnel
//! ```

mod download;

use std::pin::Pin;
use std::task::{Context, Poll};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Conn;
use super::chunks::{self, Decoder, Piece};
use super::encode::Encoding;
use super::held::Held;
use super::order::{Failure, Order, Outcome};
use super::parse::Framing;
use super::trailer;
use crate::access_log;
use crate::buffer::Buffer;
use crate::link::Link;
use crate::spool::Spool;
use crate::upstream::InFlight;

/// Most bytes of a response's head.
const MOST_HEAD: usize = 64 << 10;
/// How much is gathered before it is written.
const GATHER: usize = 64 << 10;
/// A body part up to this size is copied behind the head, to go out in one write.
pub(super) const COPY: usize = 16 << 10;

/// The request's body on its way.
#[derive(Debug)]
pub(super) enum Body {
    Length(u64),
    Chunked(Decoder),
    /// It is here already.
    Held,
    Sent,
}

#[derive(Debug)]
pub(super) enum Down {
    /// Waiting for a head; this many bytes have been looked at.
    Head(usize),
    Length(u64),
    Chunked {
        from: Decoder,
        again: bool,
    },
    UntilClose {
        again: bool,
    },
    /// Through an encoder.
    Encoded(Box<Encoding>),
    Given,
}

/// The state of one exchange.
#[derive(Debug)]
pub(super) struct Exchange<'a> {
    order: &'a Order,
    pub(super) link: &'a mut Link,
    in_flight: &'a InFlight,
    /// To the upstream: what is to be written before more of the body.
    up: Vec<u8>,
    up_sent: usize,
    /// Trailer fields of the request, as far as they are passed on.
    up_trailer: Vec<u8>,
    pub(super) body: Body,
    /// The body, when it was held back until it was complete.
    pub(super) upload: Option<&'a mut Spool>,
    /// Bytes of body that the service still accepts.
    allowance: u64,
    pub(super) body_moved: bool,
    up_broken: bool,
    pub(super) down: Down,
    pub(super) from_upstream: Buffer,
    /// To the client.
    pub(super) out: Vec<u8>,
    pub(super) out_sent: usize,
    /// Whether `out` was full before all that had been read was looked at.
    gathered: bool,
    /// Trailer fields of the response, as far as they are passed on.
    out_trailer: Vec<u8>,
    pub(super) unflushed: bool,
    /// Whether anything was read from the upstream.
    heard: bool,
    /// Whether a byte of the final response was written to the client.
    pub(super) answered: bool,
    /// Status of the final response.
    pub(super) status: u16,
    /// Bytes of a response's body without an announced length.
    pub(super) body_read: u64,
    /// Bytes that came out of an encoder.
    body_encoded: u64,
    /// Bytes of body that went from buffer to client.
    body_relayed: u64,
    /// Whether the upstream does not take what is to be sent.
    refuses: bool,
    /// Bytes written to the upstream and to the client.
    pub(super) bytes: (u64, u64),
    /// The response, while it is held back.
    pub(super) held: Option<Box<Held>>,
    /// What the access log wants of the response's head.
    pub(super) logged: Vec<access_log::Field>,
    keep: bool,
    reusable: bool,
    reused: bool,
    pub(super) moved: Instant,
}

impl<'a> Exchange<'a> {
    /// Prepares to send `order`; `first` is what has been read of its body, as far as it can go out with the head.
    pub(super) fn new<S>(
        conn: &mut Conn<S>,
        order: &'a Order,
        link: &'a mut Link,
        reused: bool,
        in_flight: &'a InFlight,
        upload: Option<&'a mut Spool>,
    ) -> Self {
        let buffers = &conn.worker.buffers;
        let mut up = buffers.vec();
        up.extend_from_slice(&order.head);
        let limit = order.route.service.limits.max_request_body.unwrap_or(u64::MAX);
        let mut exchange = Self {
            order,
            link,
            in_flight,
            up,
            up_sent: 0,
            up_trailer: Vec::new(),
            body: match order.framing {
                Framing::Length(0) | Framing::UntilClose => Body::Sent,
                _ if upload.is_some() => Body::Held,
                Framing::Length(length) => Body::Length(length),
                Framing::Chunked => Body::Chunked(Decoder::default()),
            },
            upload,
            allowance: limit,
            body_moved: false,
            up_broken: false,
            down: Down::Head(0),
            from_upstream: Buffer::default(),
            out: buffers.vec(),
            out_sent: 0,
            gathered: false,
            out_trailer: Vec::new(),
            unflushed: false,
            heard: false,
            answered: false,
            status: 0,
            body_read: 0,
            body_encoded: 0,
            body_relayed: 0,
            refuses: false,
            bytes: (0, 0),
            held: None,
            logged: Vec::new(),
            keep: order.keep,
            reusable: true,
            reused,
            moved: order.begun,
        };
        if let Body::Length(left) = &mut exchange.body {
            let there = conn.input.bytes();
            let count = there
                .len()
                .min(usize::try_from(*left).unwrap_or(usize::MAX))
                .min(COPY);
            if count > 0 {
                exchange.up.extend_from_slice(&there[..count]);
                conn.input.consume(count);
                *left -= count as u64;
                exchange.body_moved = true;
            }
            if *left == 0 {
                exchange.body = Body::Sent;
            }
        }
        exchange
    }

    /// Gives the buffers back.
    pub(super) fn finish<S>(self, conn: &Conn<S>) {
        conn.worker.buffers.give(self.up);
        conn.worker.buffers.give(self.out);
        let mut from_upstream = self.from_upstream;
        from_upstream.consume(from_upstream.len());
        from_upstream.release(&conn.worker.buffers);
    }

    /// Runs to the end.
    pub(super) async fn run<S>(&mut self, conn: &mut Conn<S>) -> Result<Outcome, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.arm(conn);
        std::future::poll_fn(|cx| self.poll(conn, cx)).await
    }

    fn poll<S>(&mut self, conn: &mut Conn<S>, cx: &mut Context<'_>) -> Poll<Result<Outcome, Failure>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.in_flight.upstream().is_cut() {
            return Poll::Ready(Err(Failure::Cut));
        }
        let before = (self.up_sent, self.body_moved, matches!(self.down, Down::Head(_)));
        if let Err(failure) = self.poll_upload(conn, cx) {
            return Poll::Ready(Err(failure));
        }
        match self.poll_download(conn, cx) {
            Poll::Ready(outcome) => return Poll::Ready(outcome),
            Poll::Pending => {}
        }
        if before != (self.up_sent, self.body_moved, matches!(self.down, Down::Head(_))) {
            self.arm(conn);
        }
        if let Err(failure) = self.watch_client(conn, cx) {
            return Poll::Ready(Err(failure));
        }
        if conn.deadline.poll_passed(cx) {
            return self.late(conn, cx);
        }
        Poll::Pending
    }

    /// Bytes of the response's body, as the client gets it.
    pub(super) fn body_bytes(&self) -> u64 {
        if self.body_encoded > 0 {
            self.body_encoded
        } else {
            self.body_read + self.body_relayed
        }
    }

    fn upload_over(&self) -> bool {
        matches!(self.body, Body::Sent) && self.up_sent == self.up.len()
    }

    /// What must happen by when: the upload moves, the head comes, the client takes what it is given.
    fn arm<S>(&mut self, conn: &mut Conn<S>) {
        let due = match self.down {
            Down::Head(_) if self.upload_over() => {
                if self.body_moved {
                    self.moved = Instant::now();
                }
                Some(self.moved + self.order.route.service.response_timeout)
            }
            _ => Some(Instant::now() + conn.stall()),
        };
        conn.deadline.set(due);
    }

    fn late<S>(&mut self, conn: &mut Conn<S>, cx: &mut Context<'_>) -> Poll<Result<Outcome, Failure>> {
        match self.down {
            Down::Head(_) if self.upload_over() => {
                Poll::Ready(Err(Failure::Status(StatusCode::GATEWAY_TIMEOUT)))
            }
            // There is more to send, and the upstream does not take it.
            Down::Head(_) if self.upload.is_some() || self.refuses => {
                Poll::Ready(Err(Failure::Status(StatusCode::GATEWAY_TIMEOUT)))
            }
            Down::Head(_) => Poll::Ready(Err(Failure::Status(StatusCode::REQUEST_TIMEOUT))),
            // The client takes nothing any more.
            _ if self.out_sent < self.out.len() || self.unflushed => Poll::Ready(Err(Failure::Client)),
            // The upstream may be silent for as long as it likes in the middle of a body.
            _ => {
                conn.deadline.set(Some(Instant::now() + conn.stall()));
                let _not_passed = conn.deadline.poll_passed(cx);
                Poll::Pending
            }
        }
    }

    /// Notices a client that left while we wait for the upstream.
    fn watch_client<S>(&mut self, conn: &mut Conn<S>, cx: &mut Context<'_>) -> Result<(), Failure>
    where
        S: AsyncRead + Unpin,
    {
        if !matches!(self.body, Body::Sent | Body::Held) {
            return Ok(());
        }
        while conn.input.len() < COPY {
            match conn.input.poll_fill(&mut conn.stream, &conn.worker.buffers, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(Failure::Client),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_upload<S>(&mut self, conn: &mut Conn<S>, cx: &mut Context<'_>) -> Result<(), Failure>
    where
        S: AsyncRead + Unpin,
    {
        self.refuses = false;
        while !self.up_broken {
            if self.up_sent < self.up.len() {
                let write = Pin::new(&mut *self.link).poll_write(cx, &self.up[self.up_sent..]);
                match write {
                    Poll::Ready(Ok(count)) if count > 0 => {
                        self.up_sent += count;
                        self.bytes.0 += count as u64;
                    }
                    Poll::Ready(_) => return self.upload_broke(),
                    Poll::Pending => {
                        self.refuses = true;
                        break;
                    }
                }
                continue;
            }
            match &mut self.body {
                Body::Sent => break,
                Body::Held => {
                    if self.send_held(cx)?.is_pending() {
                        break;
                    }
                    conn.deadline.set(Some(Instant::now() + conn.stall()));
                    continue;
                }
                Body::Length(left) if !conn.input.is_empty() => {
                    let there = conn.input.bytes();
                    let count = there.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    match Pin::new(&mut *self.link).poll_write(cx, &there[..count]) {
                        Poll::Ready(Ok(count)) if count > 0 => {
                            conn.input.consume(count);
                            self.bytes.0 += count as u64;
                            *left -= count as u64;
                            self.body_moved = true;
                            if *left == 0 {
                                self.body = Body::Sent;
                            }
                        }
                        Poll::Ready(_) => return self.upload_broke(),
                        Poll::Pending => {
                            self.refuses = true;
                            break;
                        }
                    }
                    self.moved = Instant::now();
                    conn.deadline.set(Some(self.moved + conn.stall()));
                    continue;
                }
                Body::Chunked(decoder) => {
                    self.up.clear();
                    self.up_sent = 0;
                    let mut more = false;
                    while self.up.len() < GATHER && !more {
                        match decoder.next(conn.input.bytes()) {
                            Ok(Piece::Framing(count)) => conn.input.consume(count),
                            Ok(Piece::Data(count)) => {
                                let Some(left) = self.allowance.checked_sub(count as u64) else {
                                    return Err(Failure::Status(StatusCode::PAYLOAD_TOO_LARGE));
                                };
                                self.allowance = left;
                                chunks::write(&mut self.up, &conn.input.bytes()[..count]);
                                conn.input.consume(count);
                                self.body_moved = true;
                            }
                            Ok(Piece::Trailer(count)) => {
                                trailer::keep(&mut self.up_trailer, &conn.input.bytes()[..count]);
                                conn.input.consume(count);
                            }
                            Ok(Piece::More) => more = true,
                            Ok(Piece::End) => {
                                chunks::write_end(&mut self.up, &self.up_trailer);
                                self.body_moved = true;
                                self.body = Body::Sent;
                                break;
                            }
                            Err(chunks::Malformed) => return Err(Failure::Status(StatusCode::BAD_REQUEST)),
                        }
                    }
                    if !self.up.is_empty() {
                        self.moved = Instant::now();
                        conn.deadline.set(Some(self.moved + conn.stall()));
                        continue;
                    }
                }
                Body::Length(_) => conn.input.widen(&conn.worker.buffers),
            }
            match conn.input.poll_fill(&mut conn.stream, &conn.worker.buffers, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Err(Failure::Client),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// The upstream takes no more; it may have answered already, so the response is still read.
    pub(super) fn upload_broke(&mut self) -> Result<(), Failure> {
        if self.reused && !self.heard && self.may_repeat() {
            return Err(Failure::Stale);
        }
        self.up_broken = true;
        self.keep = false;
        Ok(())
    }

    fn may_repeat(&self) -> bool {
        let nothing_sent = self.up_sent == 0 && matches!(self.order.framing, Framing::Length(0));
        nothing_sent || (self.order.idempotent && self.order.framing == Framing::Length(0))
    }
}
