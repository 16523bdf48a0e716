//! One request to one upstream, and its response: both bodies move at the same time in one task.
//!
//! ```text
//!  upload:    head + what is there ──► body ──► sent
//!  download:  wait for a head ──► (1xx: pass on, wait again) ──► body ──► given
//!                                  101: tunnel
//! ```

use std::pin::Pin;
use std::task::{Context, Poll};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Conn;
use super::chunks::{self, Decoder, Piece};
use super::encode::{Encoding, Source};
use super::held::{self, Held};
use super::order::{Failure, Order, Outcome};
use super::parse::{self, Framing};
use super::rewrite::{self, Given, Told};
use super::trailer;
use crate::access_log;
use crate::assign;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::compress::{self, Coding};
use crate::link::Link;
use crate::snapshot::Compression;
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

    fn poll_download<S>(&mut self, conn: &mut Conn<S>, cx: &mut Context<'_>) -> Poll<Result<Outcome, Failure>>
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
    pub(super) fn took(&mut self, count: usize) {
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
