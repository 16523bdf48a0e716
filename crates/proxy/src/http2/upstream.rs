//! Upstreams that speak HTTP/2 in the clear: connections that many requests share, kept by each worker, and the
//! exchange on one stream of them.
//!
//! A connection takes as many streams as the upstream allows, at most [`STREAMS`]; then another one is opened.
//! It is closed when nothing was on it for [`REST`].

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::pipe::{PipeError, Working, pipe};
use super::{Interim, Upload, UploadError};
use crate::forward::{Broken, Patience, RelayError};
use crate::headers;
use crate::link::Link;
use crate::table::Route;
use crate::upstream::{InFlight, Upstream};
use crate::wakers::Place;
use crate::worker::Worker;

/// Streams on one connection.
const STREAMS: usize = 100;
/// How long a connection without streams is kept.
const REST: Duration = Duration::from_secs(60);
/// How long an upstream's settings are waited for.
const SETTINGS: Duration = Duration::from_secs(5);
/// How long a pong is waited for.
const PONG: Duration = Duration::from_secs(5);
/// What an upstream may send of one response before the client takes it.
const STREAM_WINDOW: u32 = 256 << 10;
/// The same for all streams of a connection.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Most bytes of a response's head.
const MOST_HEAD: u32 = 64 << 10;

/// A connection's use.
#[derive(Debug)]
struct Usage {
    streams: Cell<usize>,
    rested: Cell<Instant>,
    ended: Cell<bool>,
    /// Whether a request on it was late and no pong came since: nothing new is sent on it.
    doubted: Cell<bool>,
    /// Told with it.
    doubt: Notify,
}

impl Usage {
    /// Has the upstream asked whether it lives; a connection that does not answer is closed.
    fn doubt(&self) {
        self.doubted.set(true);
        self.doubt.notify_one();
    }
}

/// One connection.
#[derive(Debug)]
struct Shared {
    sender: SendRequest<Bytes>,
    usage: Rc<Usage>,
}

/// The connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Connections(RefCell<Vec<Shelf>>);

#[derive(Debug)]
struct Shelf {
    upstream: Arc<Upstream>,
    open: Vec<Shared>,
}

/// Leave to open one stream.
#[derive(Debug)]
pub(crate) struct Lease {
    sender: SendRequest<Bytes>,
    usage: Rc<Usage>,
    /// Whether the connection carried a request before.
    pub(crate) reused: bool,
    /// Of a new connection.
    pings: Option<Rc<Pings>>,
}

/// What asks an upstream for a sign of life; one question at a time.
type Pings = tokio::sync::Mutex<PingPong>;

impl Lease {
    fn new(connection: &Shared, reused: bool) -> Self {
        let streams = &connection.usage.streams;
        streams.set(streams.get() + 1);
        Self {
            sender: connection.sender.clone(),
            usage: Rc::clone(&connection.usage),
            reused,
            pings: None,
        }
    }

    /// Whether the upstream takes WebSockets (RFC 8441 §3); its settings are waited for, which come before its pong.
    async fn takes_websockets(&mut self) -> bool {
        if let Some(pings) = &self.pings {
            let ask = async { pings.lock().await.ping(Ping::opaque()).await };
            let _gone_or_late = tokio::time::timeout(SETTINGS, ask).await;
        }
        self.sender.is_extended_connect_protocol_enabled()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.usage.streams.set(self.usage.streams.get() - 1);
        self.usage.rested.set(Instant::now());
    }
}

impl Connections {
    /// A stream on a connection that is open.
    pub(crate) fn take(&self, upstream: &Upstream) -> Option<Lease> {
        let shelves = self.0.borrow();
        let shelf = shelves.iter().find(|shelf| shelf.upstream.id == upstream.id)?;
        // The first with room, so that those opened for a burst come to rest again.
        let connection = shelf.open.iter().find(|connection| {
            let most = connection.sender.current_max_send_streams().min(STREAMS);
            let usage = &connection.usage;
            !usage.ended.get() && !usage.doubted.get() && usage.streams.get() < most
        })?;
        Some(Lease::new(connection, true))
    }

    /// A stream on a new connection.
    ///
    /// # Errors
    /// When the upstream does not accept within five seconds, or does not speak HTTP/2.
    pub(crate) async fn connect(&self, upstream: &Arc<Upstream>) -> io::Result<Lease> {
        let link = Link::connect(&upstream.address).await?;
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(MOST_HEAD)
            .handshake::<_, Bytes>(link)
            .await
            .map_err(io::Error::other)?;
        let pings = connection.ping_pong().map(|pings| Rc::new(Pings::new(pings)));
        let usage = Rc::new(Usage {
            streams: Cell::new(0),
            rested: Cell::new(Instant::now()),
            ended: Cell::new(false),
            doubted: Cell::new(false),
            doubt: Notify::new(),
        });
        tokio::task::spawn_local({
            let (usage, pings) = (Rc::clone(&usage), pings.clone());
            let address = upstream.address.clone();
            async move {
                tokio::select! {
                    outcome = connection => if let Err(error) = outcome {
                        tracing::debug!(
                            error = &error as &dyn std::error::Error,
                            "upstream connection ended"
                        );
                    },
                    () = silence(&usage, pings.as_deref()) => tracing::warn!(
                        upstream = %address,
                        "the upstream answers no ping: what is open on the connection is given up"
                    ),
                }
                usage.ended.set(true);
            }
        });
        let connection = Shared { sender, usage };
        let mut lease = Lease::new(&connection, false);
        lease.pings = pings;
        let mut shelves = self.0.borrow_mut();
        match shelves.iter_mut().find(|shelf| shelf.upstream.id == upstream.id) {
            Some(shelf) => shelf.open.push(connection),
            None => shelves.push(Shelf {
                upstream: Arc::clone(upstream),
                open: vec![connection],
            }),
        }
        Ok(lease)
    }

    /// Forgets a connection that refused a stream.
    fn forget(&self, usage: &Rc<Usage>) {
        for shelf in self.0.borrow_mut().iter_mut() {
            shelf
                .open
                .retain(|connection| !Rc::ptr_eq(&connection.usage, usage));
        }
    }

    /// Closes what rests too long or belongs to an upstream that is left behind; streams that are open go on.
    pub(crate) fn sweep(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain_mut(|shelf| {
            shelf.open.retain(|connection| {
                let usage = &connection.usage;
                let rests = usage.streams.get() == 0
                    && (shelf.upstream.is_draining()
                        || now.saturating_duration_since(usage.rested.get()) > REST);
                !usage.ended.get() && !rests
            });
            !shelf.open.is_empty()
        });
    }
}

/// Waits until the connection is doubted and the upstream does not answer a ping (RFC 9113 §6.7) either.
async fn silence(usage: &Usage, pings: Option<&Pings>) {
    let Some(pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        usage.doubt.notified().await;
        let ask = async { pings.lock().await.ping(Ping::opaque()).await };
        match tokio::time::timeout(PONG, ask).await {
            Ok(Ok(_)) => usage.doubted.set(false),
            _ => return,
        }
    }
}

type Pump = Pin<Box<dyn Future<Output = Result<(), PipeError<UploadError>>>>>;

/// Sends `request` and waits for the response's head. The body is taken out of `request`; the rest stays, so that it
/// can be sent once more. Without an `in_flight`, somebody else counts the request.
///
/// # Errors
/// What the client is to get instead.
pub(crate) async fn fetch(
    worker: &Rc<Worker>,
    mut lease: Lease,
    (upstream, in_flight): (Arc<Upstream>, Option<InFlight>),
    request: &mut Request<Upload>,
    patience: Patience,
    interim: Interim<'_>,
) -> Result<Response<Relay>, Broken> {
    let connect = request.method() == http::Method::CONNECT;
    let bare = request.body().is_over();
    let sent = to_h2(request)?;
    let reused = lease.reused;
    let refused = |error: &h2::Error| {
        // Neither was looked at by the upstream (RFC 9113 §8.7).
        let unseen = error.reason() == Some(Reason::REFUSED_STREAM) || (error.is_go_away() && reused);
        if unseen && bare {
            Broken::Stale
        } else {
            Broken::Status(StatusCode::BAD_GATEWAY)
        }
    };
    if std::future::poll_fn(|cx| lease.sender.poll_ready(cx))
        .await
        .is_err()
    {
        worker.streams.forget(&lease.usage);
        return Err(if reused && bare {
            Broken::Stale
        } else {
            Broken::Status(StatusCode::BAD_GATEWAY)
        });
    }
    if connect && !lease.takes_websockets().await {
        return Err(if reused {
            Broken::Stale
        } else {
            Broken::Status(StatusCode::NOT_IMPLEMENTED)
        });
    }
    let mut body = std::mem::take(request.body_mut());
    let counted = body.count();
    let ended = body.is_end_stream() && !connect;
    let (mut answer, to) = lease.sender.send_request(sent, ended).map_err(|error| {
        worker.streams.forget(&lease.usage);
        refused(&error)
    })?;
    let mut pump: Option<Pump> =
        (!ended).then(|| Box::pin(pipe(body, to, patience.stall, Reason::CANCEL)) as Pump);
    let mut place = worker.wakers.register();
    place.set(Some(Instant::now() + patience.response));
    let response = std::future::poll_fn(|cx| {
        place.remember(cx);
        if upstream.is_cut() {
            return Poll::Ready(Err(Broken::Status(StatusCode::GATEWAY_TIMEOUT)));
        }
        let uploading = pump.is_some();
        if let Some(upload) = &mut pump
            && let Poll::Ready(outcome) = upload.as_mut().poll(cx)
        {
            pump = None;
            match outcome {
                Err(PipeError::Body(error)) => return Poll::Ready(Err(Broken::Status(error.status()))),
                // The upstream may have answered without wanting the rest.
                Ok(()) | Err(PipeError::Gone(_) | PipeError::Stalled(_)) => {}
            }
        }
        if uploading {
            place.set(Some(Instant::now() + patience.response));
        }
        while let Poll::Ready(Some(Ok(head))) = answer.poll_informational(cx) {
            interim(head);
        }
        match Pin::new(&mut answer).poll(cx) {
            Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(refused(&error))),
            Poll::Pending => {}
        }
        // While the client still sends, it may talk with the upstream: neither is late.
        if pump.is_none() && place.poll_passed(cx) {
            // It may be dead without a word.
            lease.usage.doubt();
            return Poll::Ready(Err(Broken::Status(StatusCode::GATEWAY_TIMEOUT)));
        }
        Poll::Pending
    })
    .await?;
    let (mut head, stream) = response.into_parts();
    headers::strip_hop_by_hop(&mut head.headers);
    let length = super::body::length(&head.headers);
    let relay = Relay {
        over: stream.is_end_stream(),
        stream,
        unreleased: 0,
        pump,
        _in_flight: in_flight.map(|in_flight| {
            if connect && head.status.is_success() {
                in_flight.into_tunnel()
            } else {
                in_flight
            }
        }),
        upstream,
        place,
        sent: counted,
        route: None,
        worker: worker.index,
        given: 0,
        length,
        _lease: lease,
    };
    Ok(Response::from_parts(head, relay))
}

/// The same request in HTTP/2's form; without a body.
fn to_h2(request: &Request<Upload>) -> Result<Request<()>, Broken> {
    let bad = |_| Broken::Status(StatusCode::BAD_REQUEST);
    let host = request.headers().get(header::HOST);
    let host = host.map_or(&b"localhost"[..], |host| host.as_bytes());
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(host).map_err(|_| Broken::Status(StatusCode::BAD_REQUEST))?);
    let mut sent = Request::new(());
    *sent.method_mut() = request.method().clone();
    *sent.version_mut() = Version::HTTP_2;
    *sent.uri_mut() = Uri::from_parts(parts).map_err(bad)?;
    *sent.headers_mut() = request.headers().clone();
    sent.headers_mut().remove(header::HOST);
    sent.headers_mut().remove(header::CONNECTION);
    sent.headers_mut().remove(header::UPGRADE);
    if let Some(protocol) = request.extensions().get::<h2::ext::Protocol>() {
        sent.extensions_mut().insert(protocol.clone());
    }
    Ok(sent)
}

/// A response's body, with what is left of the upload beside it.
pub(crate) struct Relay {
    stream: RecvStream,
    over: bool,
    /// Bytes handed out that the upstream's window does not know of yet.
    unreleased: usize,
    pump: Option<Pump>,
    upstream: Arc<Upstream>,
    _in_flight: Option<InFlight>,
    place: Place,
    /// Bytes of body that the upstream was given.
    sent: Rc<Cell<u64>>,
    /// Whose counters they go to.
    route: Option<Arc<Route>>,
    worker: usize,
    given: u64,
    length: Option<u64>,
    _lease: Lease,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("stream", &self.stream)
            .field("upstream", &self.upstream.address)
            .finish_non_exhaustive()
    }
}

impl Relay {
    /// Counts the bytes for `route`, when all is over.
    pub(crate) fn count_for(&mut self, route: &Arc<Route>) {
        self.route = Some(Arc::clone(route));
    }

    /// The upstream that answers.
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }
}

impl Working for Relay {
    fn poll_work(&mut self, cx: &mut Context<'_>) {
        if let Some(pump) = &mut self.pump
            && pump.as_mut().poll(cx).is_ready()
        {
            self.pump = None;
        }
    }
}

impl Working for Upload {
    fn poll_work(&mut self, _: &mut Context<'_>) {}
}

impl Body for Relay {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if this.upstream.is_cut() {
            return Poll::Ready(Some(Err(RelayError::Cut)));
        }
        this.place.remember(cx);
        let taken = std::mem::take(&mut this.unreleased);
        if taken > 0 {
            // Fails only for a stream that is over.
            let _over = this.stream.flow_control().release_capacity(taken);
        }
        let broke = |error| RelayError::Upstream(io::Error::other::<h2::Error>(error));
        match ready!(this.stream.poll_data(cx)) {
            Some(Ok(data)) => {
                this.unreleased = data.len();
                this.given += data.len() as u64;
                this.over = this.stream.is_end_stream();
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(broke(error)))),
            None => {
                let trailers = ready!(this.stream.poll_trailers(cx));
                this.over = true;
                Poll::Ready(match trailers {
                    Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
                    Err(error) => Some(Err(broke(error))),
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over
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
            route.counters[self.worker].moved(self.sent.get(), self.given);
        }
    }
}
