//! The way back of an exchange: the response's head and body, from the upstream to the client.

use std::pin::Pin;
use std::task::{Context, Poll};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::{Body, COPY, Down, Exchange, GATHER, MOST_HEAD};
use crate::access_log;
use crate::assign;
use crate::clock::Clock;
use crate::compress::{self, Coding};
use crate::h1::Conn;
use crate::h1::chunks::{self, Decoder, Piece};
use crate::h1::encode::{Encoding, Source};
use crate::h1::held;
use crate::h1::order::{Failure, Outcome};
use crate::h1::parse::{self, Framing};
use crate::h1::rewrite::{self, Given, Told};
use crate::h1::trailer;
use crate::snapshot::Compression;

impl Exchange<'_> {
    pub(super) fn poll_download<S>(
        &mut self,
        conn: &mut Conn<S>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Outcome, Failure>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            // Whatever can be made of the bytes that are there, so that head and body go out together.
            let tunnel = match self.produce(conn) {
                Ok(tunnel) => tunnel,
                Err(failure) => return Poll::Ready(Err(failure)),
            };
            match self.poll_out(conn, cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => return Poll::Pending,
            }
            if tunnel {
                return Poll::Ready(Ok(Outcome::Tunnel(std::mem::take(&mut self.from_upstream))));
            }
            if matches!(self.down, Down::Given) {
                // Half a request body cannot be followed by another request.
                let keep = self.keep && self.upload_over();
                let reusable = self.reusable && self.upload_over() && self.from_upstream.is_empty();
                return Poll::Ready(Ok(Outcome::Complete { keep, reusable }));
            }
            if matches!(self.down, Down::Length(_)) && !self.from_upstream.is_empty() {
                continue;
            }
            // What has been read may hold the body's end, and then nothing more would come.
            if std::mem::take(&mut self.gathered) {
                continue;
            }
            self.from_upstream.widen(&conn.worker.buffers);
            match self.from_upstream.poll_fill(self.link, &conn.worker.buffers, cx) {
                Poll::Ready(Ok(0)) => {
                    if let Err(failure) = self.upstream_ended() {
                        return Poll::Ready(Err(failure));
                    }
                }
                Poll::Ready(Ok(_)) => self.heard = true,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(self.upstream_broke())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn upstream_ended(&mut self) -> Result<(), Failure> {
        match &mut self.down {
            Down::Encoded(encoding) if encoding.ends_with_connection() => {
                let before = self.out.len();
                let ended = encoding.finish(&mut self.out);
                self.body_encoded += (self.out.len() - before) as u64;
                self.down = Down::Given;
                ended.map_err(|_| Failure::Status(StatusCode::BAD_GATEWAY))
            }
            &mut Down::UntilClose { again } => {
                if again {
                    self.out.extend_from_slice(chunks::END);
                }
                self.down = Down::Given;
                Ok(())
            }
            _ => Err(self.upstream_broke()),
        }
    }

    fn upstream_broke(&self) -> Failure {
        if self.reused && !self.heard && self.may_repeat() {
            Failure::Stale
        } else {
            Failure::Status(StatusCode::BAD_GATEWAY)
        }
    }

    /// Turns what was read into what is to be written; true when the exchange becomes a tunnel.
    fn produce<S>(&mut self, conn: &Conn<S>) -> Result<bool, Failure> {
        loop {
            match &mut self.down {
                Down::Head(looked) => {
                    let bytes = self.from_upstream.bytes();
                    let Some(end) = parse::head_end(bytes, *looked) else {
                        if bytes.len() > MOST_HEAD {
                            return Err(Failure::Status(StatusCode::BAD_GATEWAY));
                        }
                        *looked = bytes.len();
                        return Ok(false);
                    };
                    if self.head(conn, end)? {
                        return Ok(true);
                    }
                }
                Down::Length(left) => {
                    let there = self.from_upstream.bytes();
                    let count = there.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    // A small part is copied behind the head; a large one is written from where it is.
                    if count == 0 || self.out.is_empty() || count > COPY {
                        return Ok(false);
                    }
                    self.out.extend_from_slice(&there[..count]);
                    self.from_upstream.consume(count);
                    *left -= count as u64;
                    self.body_relayed += count as u64;
                    if *left == 0 {
                        self.down = Down::Given;
                    }
                    return Ok(false);
                }
                Down::Chunked { from, again } => {
                    if self.out.len() >= GATHER {
                        self.gathered = true;
                        return Ok(false);
                    }
                    match from.next(self.from_upstream.bytes()) {
                        Ok(Piece::Framing(count)) => self.from_upstream.consume(count),
                        Ok(Piece::Data(count)) => {
                            self.body_read += count as u64;
                            let data = &self.from_upstream.bytes()[..count];
                            if *again {
                                chunks::write(&mut self.out, data);
                            } else {
                                self.out.extend_from_slice(data);
                            }
                            self.from_upstream.consume(count);
                        }
                        Ok(Piece::Trailer(count)) => {
                            if self.order.trailers {
                                trailer::keep(&mut self.out_trailer, &self.from_upstream.bytes()[..count]);
                            }
                            self.from_upstream.consume(count);
                        }
                        Ok(Piece::More) => return Ok(false),
                        Ok(Piece::End) => {
                            if *again {
                                chunks::write_end(&mut self.out, &self.out_trailer);
                            }
                            self.down = Down::Given;
                        }
                        Err(chunks::Malformed) => return Err(Failure::Status(StatusCode::BAD_GATEWAY)),
                    }
                }
                Down::UntilClose { again } => {
                    let data = self.from_upstream.bytes();
                    self.body_read += data.len() as u64;
                    if *again {
                        chunks::write(&mut self.out, data);
                    } else {
                        self.out.extend_from_slice(data);
                    }
                    let count = data.len();
                    self.from_upstream.consume(count);
                    return Ok(false);
                }
                Down::Encoded(encoding) => {
                    let before = (self.from_upstream.len(), self.out.len());
                    let step = encoding.step(&mut self.from_upstream, &mut self.out);
                    // Both with the framing, which is little.
                    self.body_read += (before.0 - self.from_upstream.len()) as u64;
                    self.body_encoded += (self.out.len() - before.1) as u64;
                    match step {
                        Ok(true) => self.down = Down::Given,
                        Ok(false) => return Ok(false),
                        Err(_) => return Err(Failure::Status(StatusCode::BAD_GATEWAY)),
                    }
                }
                Down::Given => return Ok(false),
            }
        }
    }

    /// Reads the head that ends at `end` and writes the client's; true for a protocol switch.
    fn head<S>(&mut self, conn: &Conn<S>, end: usize) -> Result<bool, Failure> {
        let mut room = parse::fields();
        let bad = Failure::Status(StatusCode::BAD_GATEWAY);
        let Some(head) = parse::response(&self.from_upstream.bytes()[..end], &mut room) else {
            return Err(bad);
        };
        let status = head.status;
        if status == 101 {
            if !self.order.upgrade || head.upgrade.is_none() {
                return Err(bad);
            }
            rewrite::interim(&mut self.out, &head);
            self.from_upstream.consume(end);
            return Ok(true);
        }
        if status < 200 {
            if self.order.minor == 1 {
                rewrite::interim(&mut self.out, &head);
            }
            self.from_upstream.consume(end);
            self.down = Down::Head(0);
            return Ok(false);
        }
        self.reusable = head.reusable;
        let no_body = self.order.is_head || status == 204 || status == 304;
        let (given, down) = match head.framing {
            _ if no_body => (Given::AsAnnounced, Down::Given),
            Framing::Length(0) => (Given::AsAnnounced, Down::Given),
            Framing::Length(length) => (Given::AsAnnounced, Down::Length(length)),
            framing => {
                let again = self.order.minor == 1;
                self.keep &= again;
                let down = match framing {
                    Framing::Chunked => Down::Chunked {
                        from: Decoder::default(),
                        again,
                    },
                    _ => {
                        self.reusable = false;
                        Down::UntilClose { again }
                    }
                };
                (if again { Given::Chunked } else { Given::UntilClose }, down)
            }
        };
        let compression = self.order.route.service.compression.as_ref();
        let suits = !no_body && compression.is_some_and(|compression| suits(compression, &head));
        let coding = self.order.coding.filter(|_| suits && self.order.minor == 1);
        let coding = coding.and_then(|coding| Some((coding, compress::Place::take()?)));
        let (given, down, coding) = match (coding, down) {
            (Some(coding), Down::Length(length)) => encoded(Source::Length(length), coding),
            (Some(coding), Down::Chunked { from, .. }) => encoded(Source::Chunked(from), coding),
            (Some(coding), Down::UntilClose { .. }) => encoded(Source::UntilClose, coding),
            (_, down) => (given, down, None),
        };
        if let (Some(buffering), false) = (&self.order.route.service.buffering, matches!(down, Down::Given)) {
            self.held = held::wanted(conn, &self.order.route.service.name, buffering, &head)?;
        }
        if self.order.log.is_some() {
            let wanted = &self.order.route.service.log.response_headers;
            self.logged = access_log::fields("resp", wanted, |name| {
                let mut fields = head.fields.iter();
                let found = fields.find(|field| field.name.eq_ignore_ascii_case(name));
                found.map(|field| field.value.into())
            });
        }
        self.keep &= !conn.is_closing() && !self.up_broken && matches!(self.body, Body::Sent | Body::Held);
        let told = Told {
            route: &self.order.route,
            id: &self.order.head[self.order.id.clone()],
            date: &conn.worker.clock.date(),
            given,
            coding,
            varies: suits,
            keep: self.keep,
            trailers: self.order.trailers,
            minor: self.order.minor,
            cookie: self.cookie(&head),
        };
        rewrite::response(&mut self.out, &head, &told);
        self.status = status;
        self.down = down;
        self.from_upstream.consume(end);
        let took = self.order.begun.elapsed();
        let index = conn.worker.index;
        self.in_flight.upstream().counters(index).answered(status, took);
        self.order.route.counters[index].answered(status, took);
        Ok(false)
    }

    /// The cookie that keeps the client where it was assigned to.
    fn cookie(&self, head: &parse::ResponseHead<'_, '_>) -> Option<String> {
        let assignment = &self.order.assignment;
        if assignment.writes {
            let declined = head.fields.iter().any(|field| {
                field.name.eq_ignore_ascii_case("x-writer-affinity")
                    && field.value.eq_ignore_ascii_case(b"false")
            });
            return (!declined).then(|| assign::writer_cookie(&self.order.route.service, Clock::millis()));
        }
        assignment.cookie.clone()
    }

    /// Goes past `count` bytes that were written for the client.
    pub(in crate::h1) fn took(&mut self, count: usize) {
        if self.out_sent < self.out.len() {
            self.out_sent += count;
            if self.out_sent == self.out.len() {
                self.out.clear();
                self.out_sent = 0;
            }
        } else if let Down::Length(left) = &mut self.down {
            self.from_upstream.consume(count);
            *left -= count as u64;
            self.body_relayed += count as u64;
            if *left == 0 {
                self.down = Down::Given;
            }
        }
    }

    /// Writes what is to be written to the client.
    fn poll_out<S>(&mut self, conn: &mut Conn<S>, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>
    where
        S: AsyncWrite + Unpin,
    {
        if self.held.is_some() {
            match self.poll_hold(conn, cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                Poll::Ready(Err(failure)) => return Poll::Ready(Err(failure)),
                Poll::Pending => return Poll::Pending,
            }
        }
        let mut wrote = false;
        loop {
            let write = if self.out_sent < self.out.len() {
                Pin::new(&mut conn.stream).poll_write(cx, &self.out[self.out_sent..])
            } else if let (Down::Length(left), false) = (&self.down, self.from_upstream.is_empty()) {
                let there = self.from_upstream.bytes();
                let count = there.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                Pin::new(&mut conn.stream).poll_write(cx, &there[..count])
            } else {
                break;
            };
            match write {
                Poll::Ready(Ok(count)) if count > 0 => {
                    wrote = true;
                    self.bytes.1 += count as u64;
                    self.unflushed = true;
                    // An interim response does not stand in the way of an answer of our own.
                    self.answered |= !matches!(self.down, Down::Head(_));
                    self.took(count);
                }
                Poll::Ready(_) => return Poll::Ready(Err(Failure::Client)),
                Poll::Pending => {
                    if wrote {
                        conn.deadline.set(Some(Instant::now() + conn.stall()));
                    }
                    return Poll::Pending;
                }
            }
        }
        if self.unflushed {
            match Pin::new(&mut conn.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Client)),
                Poll::Pending => {
                    // TLS takes a write whole while there is room, and passes it on as the client reads.
                    if wrote {
                        conn.deadline.set(Some(Instant::now() + conn.stall()));
                    }
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Whether the service compresses such a response.
fn suits(compression: &Compression, head: &parse::ResponseHead<'_, '_>) -> bool {
    let field = |name: &str| {
        let mut fields = head.fields.iter();
        fields
            .find(|field| field.name.eq_ignore_ascii_case(name))
            .map(|field| field.value)
    };
    let candidate = compress::Candidate {
        status: head.status,
        length: match head.framing {
            Framing::Length(length) => Some(length),
            Framing::Chunked | Framing::UntilClose => None,
        },
        content_type: field("content-type"),
        content_encoding: field("content-encoding"),
        cache_control: field("cache-control"),
    };
    field("trailer").is_none() && compress::suits(compression, &candidate)
}

fn encoded(from: Source, (coding, place): (Coding, compress::Place)) -> (Given, Down, Option<Coding>) {
    let down = Down::Encoded(Box::new(Encoding::new(from, coding, place)));
    (Given::Chunked, down, Some(coding))
}
