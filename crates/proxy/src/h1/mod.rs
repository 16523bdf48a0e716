//! The HTTP/1.1 engine: client connections that speak HTTP/1, and the upstream side of their requests.
//!
//! It is our own, and not hyper's, for three reasons: it refuses what two readers could understand differently
//! ([`parse`]); it forwards a head without an allocation for each field ([`rewrite`]); and an idle connection holds no
//! buffer ([`crate::buffer`]).
//!
//! ```text
//!  idle ──first byte──► head ──complete──► decide ──► exchange with an upstream ──► idle
//!   │                    │                   │                 │
//!   │ idle timeout       │ 400, 408, 431     └► own answer     └► tunnel (101) ──► closed
//!   └────────────────────┴──────────────────────────────────────────────────────► closed
//! ```

mod bridge;
mod carry;
mod chunks;
mod encode;
mod exchange;
mod fetch;
pub(crate) mod fuzzing;
mod held;
mod log;
mod order;
mod parse;
mod rewrite;
mod trailer;
mod tunnel;

use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub(crate) use self::fetch::{Relay, Taken, fetch};
use self::held::wants_requests;
use self::log::{announced, log_head};
use self::order::Order;
use self::parse::Framing;
pub(crate) use self::parse::is_host;
use self::tunnel::Tunnel;
use crate::assign::{self, Assignment, Shown as _};
use crate::auth::Check;
use crate::buffer::Buffer;
use crate::clock::Clock;
use crate::compress;
use crate::connection::Peer;
use crate::decide::{Ask, Decision, decide, too_late};
use crate::forward;
use crate::http2;
use crate::link::Link;
use crate::pages;
use crate::policy::{self, Verdict};
use crate::rewound::Rewound;
use crate::table::{Route, Table};
use crate::upstream::InFlight;
use crate::visitor;
use crate::wakers::Place;
use crate::worker::Worker;

/// The start of HTTP/2's preface, which is a complete head to the eyes of HTTP/1.1 (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// How long a connection is still read after the last answer, so that the client can see it.
const LINGER: Duration = Duration::from_secs(2);
/// How long a connection may still bring a request when the process is to end.
///
/// Closing it at once would cross with a request that is on its way; the answer says `Connection: close` instead.
const LAST_CALL: Duration = Duration::from_secs(2);
/// How long a tunnel goes on with one side ended.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// One client connection.
#[derive(Debug)]
struct Conn<S> {
    stream: S,
    input: Buffer,
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    /// Its deadline, and what else wakes it.
    deadline: Place,
    idle: Duration,
}

/// What came of waiting for a head.
enum Arrival {
    /// A head of this many bytes.
    Head(usize),
    /// Nothing: the connection ends.
    Nothing,
    /// The request is refused, and the connection ends.
    Refuse(StatusCode),
}

/// What becomes of the connection after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Keep,
    /// The answer was given; the client may still be sending.
    Close,
    /// The client speaks HTTP/2.
    Http2,
    /// Nothing more can be said.
    Gone,
}

/// What is to be done about a request.
enum Plan {
    Order(Box<Order>),
    Own {
        route: Option<Arc<Route>>,
        response: Response<Bytes>,
        keep: bool,
        minor: u8,
        head_only: bool,
    },
    Wait(Arc<Route>, Duration, StatusCode),
    /// A password is to be checked.
    Check(Box<Check>),
}

/// Serves a connection until it ends.
pub(crate) fn serve<S>(worker: Rc<Worker>, stream: S, peer: Rc<Peer>) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut conn = Conn {
        stream,
        input: Buffer::default(),
        deadline: worker.wakers.register(),
        worker,
        peer,
        idle: Duration::from_secs(75),
    };
    // A block and not a function, so that the connection lies in the task once.
    async move {
        let mut first = true;
        loop {
            let next = match conn.arrival(first).await {
                Arrival::Head(_) if first && conn.input.bytes().starts_with(PREFACE) => Next::Http2,
                // Boxed, so that an idle connection's task stays small.
                Arrival::Head(end) => Box::pin(conn.request(end)).await,
                Arrival::Refuse(status) => Box::pin(conn.refuse(status)).await,
                Arrival::Nothing => Next::Gone,
            };
            match next {
                Next::Keep => first = false,
                Next::Close => return Box::pin(conn.linger()).await,
                Next::Http2 => return conn.http2().await,
                Next::Gone => return,
            }
        }
    }
}

impl<S> Conn<S> {
    /// Whether the process is about to end.
    fn is_closing(&self) -> bool {
        self.worker.shared.closing.load(Ordering::Relaxed)
    }

    /// Longest time without progress.
    fn stall(&self) -> Duration {
        self.idle
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Goes on as HTTP/2, by prior knowledge (RFC 9113 §3.3): what gRPC clients speak without TLS.
    fn http2(&mut self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        let first = self.input.bytes().to_vec();
        self.input.consume(first.len());
        self.input.release(&self.worker.buffers);
        let stream = Rewound::new(first, &mut self.stream);
        Box::pin(http2::serve(&self.worker, stream, Rc::clone(&self.peer)))
    }

    /// Waits for the next request's head.
    async fn arrival(&mut self, first: bool) -> Arrival {
        let (header_timeout, most) = {
            let table = self.worker.shared.table.load();
            self.idle = table.settings.idle_timeout;
            (table.settings.header_timeout, table.settings.max_header_bytes)
        };
        let wait = if first { header_timeout } else { self.idle };
        self.deadline.set(Some(Instant::now() + wait));
        let mut looked = 0;
        let (mut begun, mut last_call) = (false, false);
        std::future::poll_fn(|cx| {
            self.deadline.remember(cx);
            loop {
                let empty = parse::skip_empty_lines(self.input.bytes());
                if empty > 0 {
                    self.input.consume(empty);
                    looked = 0;
                }
                if let Some(end) = parse::head_end(self.input.bytes(), looked) {
                    return Poll::Ready(if end > most {
                        Arrival::Refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
                    } else {
                        Arrival::Head(end)
                    });
                }
                looked = self.input.len();
                if looked > most {
                    return Poll::Ready(Arrival::Refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
                }
                if looked > 0 && !begun {
                    begun = true;
                    self.deadline.set(Some(Instant::now() + header_timeout));
                }
                if self.is_closing() && !last_call && self.input.is_empty() {
                    last_call = true;
                    self.deadline.set(Some(Instant::now() + LAST_CALL));
                }
                match self.input.poll_fill(&mut self.stream, &self.worker.buffers, cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Arrival::Nothing),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending if self.deadline.poll_passed(cx) => {
                        return Poll::Ready(if self.input.is_empty() {
                            Arrival::Nothing
                        } else {
                            Arrival::Refuse(StatusCode::REQUEST_TIMEOUT)
                        });
                    }
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    /// Answers a request that cannot be read.
    async fn refuse(&mut self, status: StatusCode) -> Next {
        self.give(&pages::page(status, ""), None, false, 1, false).await
    }

    /// Answers the request whose head is the first `end` bytes.
    async fn request(&mut self, end: usize) -> Next {
        let begun = Instant::now();
        let worker = Rc::clone(&self.worker);
        let mut until = None;
        let mut again = false;
        loop {
            let changed = worker.shared.changed.notified();
            match self.plan(end, begun, again) {
                Plan::Check(check) => {
                    if !worker.shared.gatekeeper.check(check).await {
                        self.input.consume(end);
                        return self.give(&policy::busy(), None, false, 1, false).await;
                    }
                    again = true;
                }
                Plan::Order(order) => {
                    self.input.consume(end);
                    return self.carry_out(*order).await;
                }
                Plan::Own {
                    route,
                    response,
                    keep,
                    minor,
                    head_only,
                } => {
                    if let Some(route) = &route {
                        let status = response.status().as_u16();
                        route.counters[worker.index].answered(status, begun.elapsed());
                        self.log_own(end, begun, route, &response);
                    }
                    self.input.consume(end);
                    return self
                        .give(&response, route.as_deref(), keep, minor, head_only)
                        .await;
                }
                Plan::Wait(route, most, late) => {
                    let until = *until.get_or_insert(begun + most);
                    let status = tokio::select! {
                        () = changed => continue,
                        () = self.left() => {
                            self.log_left(end, begun, &route);
                            return Next::Gone;
                        }
                        () = tokio::time::sleep_until(until) => late,
                        // Whoever opens the route again tells our successor, not us.
                        () = worker.shared.stopping.cancelled() => StatusCode::SERVICE_UNAVAILABLE,
                    };
                    route.counters[worker.index].answered(status.as_u16(), begun.elapsed());
                    let page = too_late(&route, status);
                    self.log_own(end, begun, &route, &page);
                    let head_only = self.input.bytes().starts_with(b"HEAD ");
                    self.input.consume(end);
                    return self.give(&page, Some(&route), false, 1, head_only).await;
                }
            }
        }
    }

    /// Waits until the client is gone; what it sends meanwhile is kept.
    async fn left(&mut self) {
        std::future::poll_fn(|cx| {
            // Whoever sends that much ahead of an answer is there, and is not read on.
            while self.input.len() < exchange::COPY {
                match self.input.poll_fill(&mut self.stream, &self.worker.buffers, cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            Poll::Pending
        })
        .await;
    }

    /// Reads the head and decides; nothing waits here, so the table and the head are borrowed.
    fn plan(&self, end: usize, begun: Instant, again: bool) -> Plan {
        let table = self.worker.shared.table.load();
        let mut room = parse::fields();
        let head = match parse::request(
            &self.input.bytes()[..end],
            &mut room,
            table.settings.max_header_count,
        ) {
            Ok(head) => head,
            Err(status) => {
                return Plan::Own {
                    route: None,
                    response: pages::page(status, ""),
                    keep: false,
                    minor: 1,
                    head_only: false,
                };
            }
        };
        let ask = Ask {
            is_read: matches!(head.method, "GET" | "HEAD"),
            host: head.host,
            target: head.target,
            scheme: self.peer.scheme,
            body: announced(head.framing),
        };
        let no_body = head.framing == Framing::Length(0);
        let own = |route: Option<&Arc<Route>>, response| Plan::Own {
            route: route.cloned(),
            response,
            keep: head.keep_alive() && no_body && !self.is_closing(),
            minor: head.minor,
            head_only: head.method == "HEAD",
        };
        let (route, strip) = match decide(&table, &ask) {
            Decision::Forward { route, strip } => (route, strip),
            Decision::Wait { route, most, late } => return Plan::Wait(Arc::clone(route), most, late),
            Decision::Redirect {
                route,
                status,
                location,
            } => return own(Some(route), pages::redirect(status, &location)),
            Decision::Answer {
                route,
                status,
                message,
            } => {
                let page = match route {
                    Some(route) => route.page(status, message),
                    None => pages::page(status, message),
                };
                return own(route, page);
            }
            Decision::Own { route, response } => return own(route, response),
        };
        let visitor = self.visitor(&table, &head);
        let path = head.target.split('?').next().unwrap_or_default();
        match policy::examine(&self.worker.shared, route, path, &head, visitor, again) {
            Verdict::Pass => {}
            Verdict::Answer(response) => return own(Some(route), response),
            Verdict::Check(check) => return Plan::Check(check),
        }
        // Any other protocol would lead past the routes, the passwords and the limits on the same connection, as `h2c`
        // does; a server may leave an upgrade alone (RFC 9110 §7.8).
        let websocket = head
            .upgrade
            .is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"));
        let upgrade = head.options.upgrade && websocket && head.minor == 1 && no_body;
        let view = rewrite::View {
            peer: &self.peer,
            trusted: route.service.forward_headers || table.trusted.contain(self.peer.address),
            visitor: table.trusted.contain(self.peer.address).then_some(visitor),
            forwarded: table.settings.forwarded,
            strip,
            upgrade,
            held: !upgrade && wants_requests(route),
            ids: &self.worker.ids,
            now: Clock::millis(),
        };
        let assignment = if assign::is_needed(&route.service) {
            let new_id = self.worker.ids.next();
            assign::assign(&route.service, &head, ask.is_read, upgrade, &new_id, view.now)
        } else {
            Assignment::default()
        };
        let mut rewritten = self.worker.buffers.vec();
        let id = rewrite::request(&mut rewritten, &head, &view);
        Plan::Order(Box::new(Order {
            route: Arc::clone(route),
            head: rewritten,
            id,
            framing: head.framing,
            is_head: head.method == "HEAD",
            idempotent: forward::is_idempotent(head.method),
            upgrade,
            trailers: head.trailers,
            expects: head.expect_continue,
            keep: head.keep_alive(),
            minor: head.minor,
            begun,
            assignment,
            visitor,
            coding: route
                .service
                .compression
                .as_ref()
                .and_then(|compression| compress::negotiate(compression, head.field("accept-encoding"))),
            log: (route.service.log.requests && self.worker.shared.access_log.is_on())
                .then(|| log_head(&head, &route.service.log.request_headers)),
        }))
    }

    /// Who asks, when trusted proxies stand in front.
    fn visitor(&self, table: &Table, head: &parse::RequestHead<'_, '_>) -> IpAddr {
        let named = table
            .settings
            .client_ip_header
            .as_deref()
            .and_then(|name| head.field(name));
        let forwarded = head
            .fields
            .iter()
            .filter(|field| field.name.eq_ignore_ascii_case("x-forwarded-for"))
            .map(|field| field.value);
        visitor::address(self.peer.address, &table.trusted, named, forwarded)
    }

    /// Gives an answer of our own.
    async fn give(
        &mut self,
        response: &Response<Bytes>,
        route: Option<&Route>,
        keep: bool,
        minor: u8,
        head_only: bool,
    ) -> Next {
        let mut out = self.worker.buffers.vec();
        let own = rewrite::Own {
            response,
            route,
            date: &self.worker.clock.date(),
            keep,
            minor,
            head_only,
        };
        rewrite::own(&mut out, &own);
        self.deadline.set(Some(Instant::now() + self.stall()));
        let mut sent = 0;
        let written = std::future::poll_fn(|cx| match self.poll_send(&out, &mut sent, cx) {
            Poll::Pending if self.deadline.poll_passed(cx) => Poll::Ready(false),
            other => other,
        })
        .await;
        self.worker.buffers.give(out);
        match (written, keep) {
            (false, _) => Next::Gone,
            (true, true) => Next::Keep,
            (true, false) => Next::Close,
        }
    }

    fn poll_send(&mut self, bytes: &[u8], sent: &mut usize, cx: &mut Context<'_>) -> Poll<bool> {
        while *sent < bytes.len() {
            match Pin::new(&mut self.stream).poll_write(cx, &bytes[*sent..]) {
                Poll::Ready(Ok(count)) if count > 0 => *sent += count,
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => return Poll::Pending,
            }
        }
        Pin::new(&mut self.stream)
            .poll_flush(cx)
            .map(|flushed| flushed.is_ok())
    }

    /// Ends a connection so that the client can still read the last answer: closing at once with bytes unread would
    /// make the kernel reset it (RFC 9112 §9.6).
    async fn linger(&mut self) {
        self.deadline.set(Some(Instant::now() + LINGER));
        let mut shut = false;
        std::future::poll_fn(|cx| {
            loop {
                if !shut {
                    match Pin::new(&mut self.stream).poll_shutdown(cx) {
                        Poll::Ready(Ok(())) => shut = true,
                        Poll::Ready(Err(_)) => return Poll::Ready(()),
                        Poll::Pending => break,
                    }
                }
                self.input.consume(self.input.len());
                match self.input.poll_fill(&mut self.stream, &self.worker.buffers, cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
                if self.deadline.poll_passed(cx) {
                    return Poll::Ready(());
                }
            }
            if self.deadline.poll_passed(cx) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }

    /// Moves bytes both ways until both sides end, one breaks, or the drain timeout cuts.
    async fn tunnel(&mut self, mut link: Link, rest: Buffer, in_flight: InFlight) {
        let mut tunnel = Tunnel::new(std::mem::take(&mut self.input), rest);
        self.deadline.set(None);
        let mut half = false;
        std::future::poll_fn(|cx| {
            if in_flight.upstream().is_cut() {
                return Poll::Ready(());
            }
            let moved = tunnel.poll(&mut self.stream, &mut link, &self.worker.buffers, cx);
            if moved.is_ready() {
                return Poll::Ready(());
            }
            if tunnel.is_half_closed() && !half {
                half = true;
                self.deadline.set(Some(Instant::now() + HALF_CLOSED));
            }
            if self.deadline.poll_passed(cx) {
                return Poll::Ready(());
            }
            Poll::Pending
        })
        .await;
    }
}
