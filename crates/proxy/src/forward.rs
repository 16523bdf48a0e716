//! Requests of HTTP/2 clients, from the head to the end of the response.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::access_log::Entry;
use crate::assign::{self, Assignment, Lane};
use crate::clock::Clock;
use crate::connection::Peer;
use crate::decide::{Ask, Decision, decide};
use crate::headers::{self, ClientView};
use crate::pages;
use crate::pool::{self, Link};
use crate::table::{Route, Table};
use crate::upstream::InFlight;
use crate::worker::Worker;

/// The body of a request on its way to an upstream, held to the service's limit.
#[derive(Debug)]
pub(crate) struct Upload {
    /// Absent when the request has no body.
    inner: Option<Incoming>,
    left: u64,
}

/// The request body grew beyond the limit.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// The client sent more than the service accepts.
    #[error("the request body is larger than the service accepts")]
    TooLarge,
    /// The client broke off.
    #[error("the client broke off its request")]
    Client(#[source] hyper::Error),
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let Some(inner) = &mut self.inner else {
            return Poll::Ready(None);
        };
        let frame = std::task::ready!(Pin::new(inner).poll_frame(cx));
        Poll::Ready(match frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match self.left.checked_sub(length) {
                    Some(left) => {
                        self.left = left;
                        Some(Ok(frame))
                    }
                    None => Some(Err(UploadError::TooLarge)),
                }
            }
            Some(Err(error)) => Some(Err(UploadError::Client(error))),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner
            .as_ref()
            .map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of a response on its way to the client.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Made here.
    Own(Option<Bytes>),
    /// Streamed from an upstream.
    Relayed(Relay),
}

/// A response body that is being relayed; gives the connection back when it is complete.
pub(crate) struct Relay {
    inner: Incoming,
    worker: Rc<Worker>,
    link: Option<SendRequest<Upload>>,
    in_flight: InFlight,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

/// Why a response broke off in the middle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// The upstream broke off.
    #[error("the upstream broke off its response")]
    Upstream(#[source] hyper::Error),
    /// The drain timeout came.
    #[error("the upstream was drained and the time for it is over")]
    Cut,
}

impl Relay {
    fn complete(&mut self) {
        if let Some(sender) = self.link.take() {
            self.worker.pool.put(self.in_flight.upstream(), sender);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if self.inner.is_end_stream() {
            self.complete();
        }
    }
}

impl Body for Reply {
    type Data = Bytes;
    type Error = RelayError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Relayed(relay) => match Pin::new(&mut relay.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => Poll::Ready(Some(Ok(frame))),
                Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(RelayError::Upstream(error)))),
                Poll::Ready(None) => {
                    relay.complete();
                    Poll::Ready(None)
                }
                Poll::Pending => relay.cut.as_mut().poll(cx).map(|()| Some(Err(RelayError::Cut))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Relayed(relay) => relay.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Relayed(relay) => relay.inner.size_hint(),
        }
    }
}

fn own(response: Response<Bytes>) -> Response<Reply> {
    response.map(|bytes| Reply::Own((!bytes.is_empty()).then_some(bytes)))
}

fn failure(status: StatusCode) -> Response<Reply> {
    own(pages::page(status, ""))
}

/// Answers one request.
pub(crate) async fn handle(
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    request: Request<Incoming>,
) -> Response<Reply> {
    let begun = Instant::now();
    let Some(host) = host_of(&request) else {
        return failure(StatusCode::BAD_REQUEST);
    };
    if request.method() == Method::CONNECT {
        return failure(StatusCode::NOT_IMPLEMENTED);
    }
    let mut until = None;
    loop {
        let changed = worker.shared.changed.notified();
        let table = worker.shared.table.load_full();
        let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let ask = Ask {
            is_read: matches!(*request.method(), Method::GET | Method::HEAD),
            host: &host,
            target,
            scheme: peer.scheme,
            body: request.body().size_hint().lower(),
        };
        let (route, mut response) = match decide(&table, &ask) {
            Decision::Wait { route, most } => {
                let until = *until.get_or_insert(tokio::time::Instant::from_std(begun) + most);
                tokio::select! {
                    () = changed => continue,
                    () = tokio::time::sleep_until(until) => (Some(route), failure(StatusCode::GATEWAY_TIMEOUT)),
                }
            }
            Decision::Redirect {
                route,
                status,
                location,
            } => (Some(route), own(pages::redirect(status, &location))),
            Decision::Answer {
                route,
                status,
                message,
            } => (route, own(pages::page(status, message))),
            Decision::Own { route, response } => (route, own(response)),
            Decision::Forward { route, strip } => {
                let words = (route.service.log.requests && worker.shared.access_log.is_on())
                    .then(|| Words::of(&host, &request));
                let response =
                    route_request(&worker, &peer, &table, route, strip, &host, request, begun).await;
                if let Some(words) = words {
                    words.log(&worker, &peer, route, &response, begun);
                }
                return finish(&worker, Some(route), response, begun);
            }
        };
        if *request.method() == Method::HEAD {
            *response.body_mut() = Reply::Own(None);
        }
        return finish(&worker, route, response, begun);
    }
}

/// The words of a request that are logged.
struct Words {
    host: String,
    target: String,
    method: Method,
    user_agent: Vec<u8>,
    length: u64,
}

impl Words {
    fn of(host: &str, request: &Request<Incoming>) -> Self {
        let agent = request.headers().get(header::USER_AGENT);
        Self {
            host: host.to_owned(),
            target: request
                .uri()
                .path_and_query()
                .map_or("/", PathAndQuery::as_str)
                .to_owned(),
            method: request.method().clone(),
            user_agent: agent.map_or_else(Vec::new, |agent| agent.as_bytes().to_vec()),
            length: request.body().size_hint().lower(),
        }
    }

    /// Writes the line when the response's head is there; its body's length is the announced one.
    fn log(&self, worker: &Worker, peer: &Peer, route: &Route, response: &Response<Reply>, begun: Instant) {
        let id = response.headers().get(&headers::X_REQUEST_ID);
        let upstream = match response.body() {
            Reply::Relayed(relay) => relay.in_flight.upstream().address.to_string(),
            Reply::Own(_) => String::new(),
        };
        let entry = Entry {
            time: Clock::millis(),
            host: self.host.as_bytes(),
            target: self.target.as_bytes(),
            with_query: route.service.log.query,
            method: self.method.as_str().as_bytes(),
            request_id: id.map_or(&[], |id| id.as_bytes()),
            status: response.status().as_u16(),
            service: route.service.name.as_str(),
            target_address: &upstream,
            took: begun.elapsed(),
            request_length: self.length,
            response_bytes: response.body().size_hint().lower(),
            client: peer.address,
            scheme: peer.scheme.as_str(),
            protocol: "HTTP/2.0",
            user_agent: &self.user_agent,
        };
        worker.lines.push(&worker.shared.access_log, &entry);
    }
}

/// Counts the answer and sets the service's own fields.
fn finish(
    worker: &Worker,
    route: Option<&Arc<Route>>,
    mut response: Response<Reply>,
    begun: Instant,
) -> Response<Reply> {
    if let Some(route) = route {
        route.counters[worker.index].answered(response.status().as_u16(), begun.elapsed());
        for (name, value) in &route.response_headers {
            response.headers_mut().insert(name, value.clone());
        }
    }
    response
}

/// The host as the client wrote it; `None` when it is missing or given twice.
fn host_of(request: &Request<Incoming>) -> Option<String> {
    if let Some(authority) = request.uri().authority() {
        return Some(authority.as_str().to_owned());
    }
    let mut all = request.headers().get_all(header::HOST).iter();
    match (all.next(), all.next()) {
        (Some(host), None) => host.to_str().ok().map(str::to_owned),
        (None, None) if request.version() == Version::HTTP_10 => Some(String::new()),
        _ => None,
    }
}

#[allow(clippy::too_many_arguments)]
async fn route_request(
    worker: &Rc<Worker>,
    peer: &Peer,
    table: &Table,
    route: &Arc<Route>,
    strip: usize,
    host: &str,
    mut request: Request<Incoming>,
    begun: Instant,
) -> Response<Reply> {
    let limit = route.service.limits.max_request_body.unwrap_or(u64::MAX);
    let id = match request.headers().get(&headers::X_REQUEST_ID) {
        Some(id) if crate::request_id::acceptable(id.as_bytes()) => id.clone(),
        _ => worker.ids.next_value(),
    };
    let upgrade = (headers::connection_lists(request.headers(), "upgrade")
        && request.version() == Version::HTTP_11)
        .then(|| request.headers().get(header::UPGRADE).cloned())
        .flatten();
    let client_upgrade = upgrade.as_ref().map(|_| hyper::upgrade::on(&mut request));
    let now = Clock::millis();
    let assignment = if assign::is_needed(&route.service) {
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        let new_id = worker.ids.next();
        assign::assign(&route.service, request.headers(), is_read, false, &new_id, now)
    } else {
        Assignment::default()
    };
    prepare(&mut request, table, route, peer, host, strip, &id, upgrade);
    let mut response = send(
        worker,
        route,
        assignment.lane,
        request,
        limit,
        begun,
        client_upgrade,
    )
    .await;
    let declined = response
        .headers()
        .get("x-writer-affinity")
        .is_some_and(|value| value == "false");
    let cookie = match assignment {
        Assignment { writes: true, .. } if declined => None,
        Assignment { writes: true, .. } => Some(assign::writer_cookie(&route.service, now)),
        Assignment { cookie, .. } => cookie,
    };
    if let Some(cookie) = cookie.and_then(|cookie| HeaderValue::try_from(cookie).ok()) {
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response.headers_mut().insert(headers::X_REQUEST_ID, id);
    response
}

/// Rewrites the request for the upstream.
#[allow(clippy::too_many_arguments)]
fn prepare(
    request: &mut Request<Incoming>,
    table: &Table,
    route: &Route,
    peer: &Peer,
    host: &str,
    strip: usize,
    id: &HeaderValue,
    upgrade: Option<HeaderValue>,
) {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let (kept, prefix) = (&path[strip..], &path[..strip]);
    let target = if kept.starts_with('/') {
        Uri::try_from(kept)
    } else {
        Uri::try_from(format!("/{kept}"))
    };
    let prefix = HeaderValue::from_str(prefix).ok().filter(|_| strip > 0);
    *request.uri_mut() = target.unwrap_or_else(|_| Uri::from_static("/"));
    *request.version_mut() = Version::HTTP_11;
    let client = ClientView {
        peer_text: &peer.text,
        scheme: peer.scheme,
        local_port: peer.local_port,
        trusted: route.service.forward_headers || table.trusted.contain(peer.address),
        host,
    };
    let fields = request.headers_mut();
    headers::strip_hop_by_hop(fields);
    headers::join_cookies(fields);
    headers::set_forwarding(fields, &client);
    if let Ok(host) = HeaderValue::from_str(host) {
        fields.insert(header::HOST, host);
    }
    if let Some(prefix) = prefix {
        fields.insert(headers::X_FORWARDED_PREFIX, prefix);
    }
    fields.insert(headers::X_REQUEST_ID, id.clone());
    if !(client.trusted && fields.contains_key(&headers::X_REQUEST_START)) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Ok(value) = HeaderValue::from_str(&format!("t={}", now.as_millis())) {
            fields.insert(headers::X_REQUEST_START, value);
        }
    }
    if let Some(upgrade) = upgrade {
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, upgrade);
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// Sends the request to an upstream and waits for the head of its response.
async fn send(
    worker: &Rc<Worker>,
    route: &Arc<Route>,
    lane: Lane,
    request: Request<Incoming>,
    limit: u64,
    begun: Instant,
    client_upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Response<Reply> {
    let mut request = request.map(|inner| Upload {
        inner: (!inner.is_end_stream()).then_some(inner),
        left: limit,
    });
    let mut tried: Vec<u64> = Vec::new();
    let mut route = Arc::clone(route);
    let mut repeated = false;
    loop {
        let Some(upstream) = route.pick(lane, &tried) else {
            return failure(if tried.is_empty() {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::BAD_GATEWAY
            });
        };
        let Some(in_flight) = upstream.enter(worker.index) else {
            // A switch came between; the new table is already live.
            match worker.shared.table.load().routes.get(&route.service.name) {
                Some(fresh) if !Arc::ptr_eq(fresh, &route) => route = Arc::clone(fresh),
                _ => return failure(StatusCode::SERVICE_UNAVAILABLE),
            }
            continue;
        };
        let upstream = Arc::clone(upstream);
        let counters = upstream.counters(worker.index);
        let taken = if repeated {
            None
        } else {
            worker.pool.take(&upstream)
        };
        let Link { mut sender, reused } = match taken {
            Some(link) => link,
            None => match pool::connect(&upstream.address).await {
                Ok(link) => link,
                Err(error) => {
                    // Nothing was sent, so any method may go to another upstream.
                    tracing::warn!(
                        service = %route.service.name, upstream = %upstream.address,
                        error = &error as &dyn std::error::Error, "cannot connect to the upstream"
                    );
                    counters.failed();
                    tried.push(upstream.id);
                    continue;
                }
            },
        };
        let spare = (reused && is_idempotent(request.method()) && request.body().inner.is_none())
            .then(|| head_again(&request));
        let waited = tokio::select! {
            outcome = sender.try_send_request(request) => Some(outcome),
            () = tokio::time::sleep(route.service.response_timeout) => None,
            () = upstream.cut.cancelled() => None,
        };
        let Some(outcome) = waited else {
            counters.failed();
            return failure(StatusCode::GATEWAY_TIMEOUT);
        };
        match outcome {
            Ok(response) => {
                counters.answered(response.status().as_u16(), begun.elapsed());
                return relay(worker, response, sender, in_flight, client_upgrade);
            }
            Err(mut error) => {
                let unsent = error.take_message();
                let error = error.into_error();
                request = match (unsent, spare) {
                    (Some(unsent), _) if reused => unsent,
                    (None, Some(again)) if error.is_incomplete_message() || error.is_closed() => again,
                    _ => {
                        tracing::warn!(
                            service = %route.service.name, upstream = %upstream.address,
                            error = &error as &dyn std::error::Error, "the upstream did not answer"
                        );
                        counters.failed();
                        return failure(status_of(&error));
                    }
                };
                repeated = true;
            }
        }
    }
}

/// The same request once more; it has no body.
fn head_again(request: &Request<Upload>) -> Request<Upload> {
    let mut again = Request::new(Upload { inner: None, left: 0 });
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.headers_mut() = request.headers().clone();
    again
}

/// Whose fault an exchange's end was: the client's body, or the upstream.
fn status_of(error: &hyper::Error) -> StatusCode {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(UploadError::TooLarge) => return StatusCode::PAYLOAD_TOO_LARGE,
            Some(UploadError::Client(_)) => return StatusCode::BAD_REQUEST,
            None => cause = error.source(),
        }
    }
    StatusCode::BAD_GATEWAY
}

/// Turns the upstream's response into the client's.
fn relay(
    worker: &Rc<Worker>,
    mut response: Response<Incoming>,
    sender: SendRequest<Upload>,
    in_flight: InFlight,
    client_upgrade: Option<hyper::upgrade::OnUpgrade>,
) -> Response<Reply> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(client), Some(protocol)) =
            (client_upgrade, response.headers().get(header::UPGRADE).cloned())
        else {
            return failure(StatusCode::BAD_GATEWAY);
        };
        let upstream = hyper::upgrade::on(&mut response);
        tokio::task::spawn_local(tunnel(
            worker.shared.abort.clone(),
            client,
            upstream,
            in_flight.into_tunnel(),
        ));
        let (mut head, _) = response.into_parts();
        headers::strip_hop_by_hop(&mut head.headers);
        head.headers
            .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, protocol);
        return Response::from_parts(head, Reply::Own(None));
    }
    headers::strip_hop_by_hop(response.headers_mut());
    *response.version_mut() = Version::HTTP_11;
    let cut = Box::pin(in_flight.upstream().cut.clone().cancelled_owned());
    response.map(|inner| {
        Reply::Relayed(Relay {
            inner,
            worker: Rc::clone(worker),
            link: Some(sender),
            in_flight,
            cut,
        })
    })
}

/// Copies bytes both ways until one side ends, the drain timeout cuts, or the process ends.
async fn tunnel(
    abort: CancellationToken,
    client: hyper::upgrade::OnUpgrade,
    upstream: hyper::upgrade::OnUpgrade,
    in_flight: InFlight,
) {
    let copy = async {
        let (client, upstream) = tokio::try_join!(client, upstream).map_err(io::Error::other)?;
        let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
        tokio::io::copy_bidirectional(&mut client, &mut upstream).await
    };
    tokio::select! {
        outcome = copy => if let Err(error) = outcome {
            tracing::debug!(error = &error as &dyn std::error::Error, "a tunnel ended");
        },
        () = in_flight.upstream().cut.cancelled() => {}
        () = abort.cancelled() => {}
    }
}
