//! HTTP/2: client connections, and upstreams that speak it in the clear (h2c).
//!
//! It stands on the `h2` crate and not on hyper, for what hyper's server cannot do: pass interim responses on, let an
//! upload go on while the client is slow to take the response, and end connections that only rest.
//!
//! ```text
//!  connection ──stream──► task: forward::handle ──► response's head ──► pipe(body) ──► END_STREAM
//!      │ idle timeout, stop            │ RST_STREAM, or the connection is gone
//!      ▼                               ▼
//!   GOAWAY                          dropped: the upstream's exchange ends with it
//! ```
//!
//! What a client can make us hold is bounded: 128 streams, [`CONNECTION_WINDOW`] of request bodies for a connection,
//! [`SEND_BUFFER`] of responses for a stream, headers as the settings say; floods of resets, CONTINUATION, SETTINGS,
//! PING and empty DATA frames end the connection (in the `h2` crate).

mod body;
mod pipe;
pub(crate) mod upstream;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

pub(crate) use self::body::{Upload, UploadError};
pub(crate) use self::pipe::Working;
use self::pipe::pipe;
use crate::connection::Peer;
use crate::forward;
use crate::worker::Worker;

/// Longest time for the exchange of settings.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Streams that a client may have open at once.
const STREAMS: u32 = 128;
/// What a client may send of one request's body before the upstream takes it.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 1 << 20;
/// What is kept of one response that the client does not take yet.
const SEND_BUFFER: usize = 32 << 10;
/// How long a connection may still bring requests after it was told to end.
const LAST_CALL: Duration = Duration::from_secs(2);

/// What passes interim responses (1xx) on to the client.
pub(crate) type Interim<'a> = &'a dyn Fn(Response<()>);

/// The streams of one connection.
#[derive(Debug)]
struct Streams {
    open: Cell<usize>,
    /// When the last one ended.
    rested: Cell<Instant>,
}

/// Counts a stream for as long as it lives.
struct Open(Rc<Streams>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.rested.set(Instant::now());
    }
}

/// Serves a connection until it ends.
pub(crate) async fn serve<S>(worker: &Rc<Worker>, stream: S, peer: Rc<Peer>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (header_bytes, idle, first) = {
        let table = worker.shared.table.load();
        let settings = &table.settings;
        (
            settings.max_header_bytes,
            settings.idle_timeout,
            settings.header_timeout,
        )
    };
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .enable_connect_protocol();
    let handshake = tokio::time::timeout(HANDSHAKE, builder.handshake::<_, Bytes>(stream));
    let Ok(Ok(mut connection)) = handshake.await else {
        return;
    };
    let streams = Rc::new(Streams {
        open: Cell::new(0),
        rested: Cell::new(Instant::now()),
    });
    let mut deadline = worker.wakers.register();
    deadline.set(Some(Instant::now() + first));
    let (mut begun, mut told) = (false, false);
    std::future::poll_fn(|cx| {
        deadline.remember(cx);
        loop {
            if !told && worker.shared.closing.load(Ordering::Relaxed) {
                told = true;
                connection.graceful_shutdown();
                deadline.set(Some(Instant::now() + LAST_CALL));
            }
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    begun = true;
                    streams.open.set(streams.open.get() + 1);
                    let open = Open(Rc::clone(&streams));
                    let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
                    tokio::task::spawn_local(async move {
                        answer(worker, peer, request, respond, idle).await;
                        drop(open);
                    });
                }
                Poll::Ready(Some(Err(error))) => {
                    tracing::debug!(
                        error = &error as &dyn std::error::Error,
                        "client connection ended"
                    );
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {
                    if !deadline.poll_passed(cx) {
                        return Poll::Pending;
                    }
                    let rested = streams.rested.get() + if begun { idle } else { first };
                    let now = Instant::now();
                    if streams.open.get() > 0 {
                        deadline.set(Some(now + idle));
                    } else if rested > now && !told {
                        deadline.set(Some(rested));
                    } else if told {
                        return Poll::Ready(());
                    } else {
                        told = true;
                        connection.graceful_shutdown();
                        deadline.set(Some(now + LAST_CALL));
                    }
                }
            }
        }
    })
    .await;
}

/// Answers one stream; ends early when the client gives it up.
async fn answer(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    stall: Duration,
) {
    let respond = RefCell::new(respond);
    let interim = |head| {
        // A client that is gone is noticed below.
        let _gone = respond.borrow_mut().send_informational(head);
    };
    let response = {
        let request = body::of_client(request);
        let mut handling = std::pin::pin!(forward::handle(&worker, &peer, request, &interim));
        std::future::poll_fn(|cx| match handling.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => respond.borrow_mut().poll_reset(cx).map(|_| None),
        })
        .await
    };
    let Some(response) = response else { return };
    let mut respond = respond.into_inner();
    let (mut head, body) = response.into_parts();
    head.headers
        .entry(http::header::DATE)
        .or_insert_with(|| worker.clock.date_value());
    let ended = body.is_end_stream();
    match respond.send_response(Response::from_parts(head, ()), ended) {
        Ok(to) if !ended => {
            if let Err(error) = pipe(body, to, stall, Reason::INTERNAL_ERROR).await {
                tracing::debug!(error = &error as &dyn std::error::Error, "a response ended early");
            }
        }
        Ok(_) => {}
        Err(error) => {
            tracing::debug!(
                error = &error as &dyn std::error::Error,
                "a response was not sent"
            );
            respond.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
