//! HTTP/1.1 bodies that are held back until they are complete (see [`crate::held`]).
//!
//! ```text
//!  request:   client ──► spool ──complete──► exchange ──► upstream
//!  response:  upstream ──► exchange ──► spool ──complete──► upstream is free ──► client
//!                                         └─no room─► what is there, then as it comes
//! ```
//!
//! A response lies in its spool as it goes over the wire, head and framing included.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Conn;
use super::chunks::{Decoder, Piece};
use super::exchange::{Down, Exchange};
use super::order::{Failure, Order};
use super::parse::{Framing, ResponseHead};
use super::{exchange, rewrite};
use crate::held;
use crate::names::ServiceName;
use crate::snapshot::Buffering;
use crate::spool::Spool;
use crate::table::Route;

/// Whether the route's requests are held back.
pub(super) fn wants_requests(route: &Route) -> bool {
    let buffering = route.service.buffering.as_ref();
    buffering.is_some_and(|buffering| buffering.requests)
}

/// A response that is held back.
#[derive(Debug)]
pub(super) struct Held {
    spool: Spool,
    /// Most bytes of its body.
    most: u64,
    /// Whether the client gets it already, because there was no room for more.
    given_on: bool,
}

/// What is to be held back of the response with this head.
///
/// # Errors
/// When its announced length is too large.
pub(super) fn wanted<S>(
    conn: &Conn<S>,
    service: &ServiceName,
    buffering: &Buffering,
    head: &ResponseHead<'_, '_>,
) -> Result<Option<Box<Held>>, Failure> {
    let field = |name: &str| {
        let mut fields = head.fields.iter();
        fields
            .find(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    };
    if !buffering.responses || held::streams(field("content-type"), field("x-accel-buffering")) {
        return Ok(None);
    }
    let most = buffering.max_response_body.unwrap_or(u64::MAX);
    if matches!(head.framing, Framing::Length(length) if length > most) {
        tracing::warn!(most, "a response is larger than max_response_body");
        return Err(Failure::Status(StatusCode::INTERNAL_SERVER_ERROR));
    }
    Ok(Some(Box::new(Held {
        spool: held::spool(&conn.worker, service, buffering),
        most,
        given_on: false,
    })))
}

/// How far a request's body was read.
enum Reading {
    Length(u64),
    Chunked(Decoder),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Reads the body of `order`'s request whole, and announces its length to the upstream.
    ///
    /// # Errors
    /// When it is too large, malformed or does not come, when there is no room for it, or the client is gone.
    pub(super) async fn hold(&mut self, order: &mut Order) -> Result<Box<Spool>, Failure> {
        let route = &order.route.service;
        let buffering = route.buffering.as_ref().expect("the caller has looked");
        let mut spool = Box::new(held::spool(&self.worker, &route.name, buffering));
        let mut allowance = route.limits.max_request_body.unwrap_or(u64::MAX);
        let mut body = match order.framing {
            Framing::Length(length) => Reading::Length(length),
            Framing::Chunked | Framing::UntilClose => Reading::Chunked(Decoder::default()),
        };
        let mut asked = if order.expects && order.minor == 1 && self.input.is_empty() {
            &b"HTTP/1.1 100 Continue\r\n\r\n"[..]
        } else {
            &[]
        };
        // Bytes at the front of the input that belong to the body.
        let mut due = 0;
        self.deadline.set(Some(Instant::now() + self.stall()));
        std::future::poll_fn(|cx| {
            let mut sent = 0;
            match self.poll_send(asked, &mut sent, cx) {
                Poll::Ready(true) => asked = &[],
                Poll::Ready(false) => return Poll::Ready(Err(Failure::Client)),
                Poll::Pending => asked = &asked[sent..],
            }
            loop {
                while due > 0 {
                    match spool.poll_append(&self.input.bytes()[..due], cx) {
                        Poll::Ready(Ok(count)) => {
                            self.input.consume(count);
                            due -= count;
                        }
                        Poll::Ready(Err(error)) => {
                            return Poll::Ready(Err(Failure::Status(held::refusal(&error))));
                        }
                        Poll::Pending => return Poll::Pending,
                    }
                }
                let there = self.input.bytes();
                match &mut body {
                    Reading::Length(0) => return Poll::Ready(Ok(())),
                    Reading::Length(left) => {
                        due = there.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                        *left -= due as u64;
                    }
                    Reading::Chunked(decoder) => match decoder.next(there) {
                        Ok(Piece::Framing(count) | Piece::Trailer(count)) => {
                            self.input.consume(count);
                            continue;
                        }
                        Ok(Piece::Data(count)) => {
                            let Some(left) = allowance.checked_sub(count as u64) else {
                                return Poll::Ready(Err(Failure::Status(StatusCode::PAYLOAD_TOO_LARGE)));
                            };
                            (allowance, due) = (left, count);
                        }
                        Ok(Piece::More) => {}
                        Ok(Piece::End) => return Poll::Ready(Ok(())),
                        Err(_) => return Poll::Ready(Err(Failure::Status(StatusCode::BAD_REQUEST))),
                    },
                }
                if due > 0 {
                    continue;
                }
                self.input.widen(&self.worker.buffers);
                match self.input.poll_fill(&mut self.stream, &self.worker.buffers, cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(Failure::Client)),
                    Poll::Ready(Ok(_)) => self.deadline.set(Some(Instant::now() + self.idle)),
                    Poll::Pending if self.deadline.poll_passed(cx) => {
                        return Poll::Ready(Err(Failure::Status(StatusCode::REQUEST_TIMEOUT)));
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await?;
        let (to, from) = rewrite::announce(&mut order.head, spool.len());
        // The id stands behind the field that changed.
        order.id = order.id.start + to - from..order.id.end + to - from;
        order.framing = Framing::Length(spool.len());
        Ok(spool)
    }

    /// Gives a response that was held back; false when the client does not take it.
    pub(super) async fn play(&mut self, mut held: Box<Held>) -> bool {
        self.deadline.set(Some(Instant::now() + self.stall()));
        std::future::poll_fn(|cx| match held.poll_play(self, cx) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream)
                .poll_flush(cx)
                .map(|flushed| flushed.is_ok()),
            Poll::Ready(Err(_)) => Poll::Ready(false),
            Poll::Pending if self.deadline.poll_passed(cx) => Poll::Ready(false),
            Poll::Pending => Poll::Pending,
        })
        .await
    }
}

impl Held {
    /// Writes what is there to the client.
    fn poll_play<S>(&mut self, conn: &mut Conn<S>, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>
    where
        S: AsyncWrite + Unpin,
    {
        loop {
            let bytes = match self.spool.poll_bytes(cx) {
                Poll::Ready(Ok([])) => return Poll::Ready(Ok(())),
                Poll::Ready(Ok(bytes)) => bytes,
                Poll::Ready(Err(error)) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a response that was held back cannot be read"
                    );
                    return Poll::Ready(Err(Failure::Client));
                }
                Poll::Pending => return Poll::Pending,
            };
            match Pin::new(&mut conn.stream).poll_write(cx, bytes) {
                Poll::Ready(Ok(count)) if count > 0 => {
                    self.spool.consume(count);
                    conn.deadline.set(Some(Instant::now() + conn.stall()));
                }
                Poll::Ready(_) => return Poll::Ready(Err(Failure::Client)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Exchange<'_> {
    /// Sends some of the body that was held back.
    pub(super) fn send_held(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, Failure> {
        let Some(upload) = &mut self.upload else {
            self.body = exchange::Body::Sent;
            return Ok(Poll::Ready(()));
        };
        let written = match upload.poll_bytes(cx) {
            Poll::Ready(Ok([])) => {
                self.body = exchange::Body::Sent;
                return Ok(Poll::Ready(()));
            }
            Poll::Ready(Ok(bytes)) => Pin::new(&mut *self.link).poll_write(cx, bytes),
            Poll::Ready(Err(error)) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "a request that was held back cannot be read"
                );
                return Err(Failure::Status(StatusCode::INTERNAL_SERVER_ERROR));
            }
            Poll::Pending => return Ok(Poll::Pending),
        };
        match written {
            Poll::Ready(Ok(count)) if count > 0 => {
                upload.consume(count);
                self.bytes.0 += count as u64;
                self.body_moved = true;
                if upload.is_read() {
                    self.body = exchange::Body::Sent;
                }
                self.moved = Instant::now();
            }
            Poll::Ready(_) => self.upload_broke()?,
            Poll::Pending => return Ok(Poll::Pending),
        }
        Ok(Poll::Ready(()))
    }

    /// Holds back what is to go to the client; true when it goes there itself from now on.
    pub(super) fn poll_hold<S>(
        &mut self,
        conn: &mut Conn<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, Failure>>
    where
        S: AsyncWrite + Unpin,
    {
        let Some(mut held) = self.held.take() else {
            return Poll::Ready(Ok(true));
        };
        let outcome = self.hold_back(&mut held, conn, cx);
        if !matches!(outcome, Poll::Ready(Ok(true))) {
            self.held = Some(held);
        }
        outcome
    }

    fn hold_back<S>(
        &mut self,
        held: &mut Held,
        conn: &mut Conn<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<bool, Failure>>
    where
        S: AsyncWrite + Unpin,
    {
        if !held.given_on && self.body_read > held.most {
            tracing::warn!(most = held.most, "a response is larger than max_response_body");
            return Poll::Ready(Err(Failure::Status(StatusCode::INTERNAL_SERVER_ERROR)));
        }
        while !held.given_on {
            let there = match &self.down {
                _ if self.out_sent < self.out.len() => &self.out[self.out_sent..],
                Down::Length(left) => {
                    let there = self.from_upstream.bytes();
                    &there[..there.len().min(usize::try_from(*left).unwrap_or(usize::MAX))]
                }
                _ => &[],
            };
            if there.is_empty() {
                return Poll::Ready(Ok(false));
            }
            match held.spool.poll_append(there, cx) {
                Poll::Ready(Ok(count)) => {
                    self.bytes.1 += count as u64;
                    self.took(count);
                }
                Poll::Ready(Err(error)) => {
                    held::gives_on(&error);
                    held.given_on = true;
                    (self.answered, self.unflushed) = (true, true);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        held.poll_play(conn, cx).map_ok(|()| true)
    }
}
