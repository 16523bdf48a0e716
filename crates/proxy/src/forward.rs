//! Requests of HTTP/2 clients, from the head to the end of the response.

mod send;

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body, Frame, SizeHint};

use crate::assign::{self, Assignment};
use crate::clock::Clock;
use crate::connection::Peer;
use crate::decide::{Ask, Decision, decide, too_late};
use crate::encoded::{self, Encoded};
use crate::h1;
use crate::headers::{self, ClientView};
use crate::held::{self, Held};
use crate::http2::{self, Interim, Upload};
use crate::logged::{Line, Logged, line};
use crate::names::ServiceName;
use crate::pages;
use crate::policy::{self, Verdict};
use crate::snapshot::{Buffering, UpstreamProtocol};
use crate::spool::SpoolError;
use crate::table::{Route, Table};
use crate::upstream::Upstream;
use crate::visitor;
use crate::worker::Worker;

use self::send::send;
pub(crate) use self::send::stream;

/// How a request went wrong at an upstream before the response's head.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The upstream closed a connection that had rested, or never looked at the request: it may be sent once more.
    Stale,
    /// The client is to get this status.
    Status(StatusCode),
}

/// The longest waits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// For the response's head, once the request was sent.
    pub(crate) response: Duration,
    /// For the client to send more, or to take more.
    pub(crate) stall: Duration,
}

/// The body of a response on its way to the client.
#[derive(Debug)]
pub(crate) enum Reply {
    /// Made here.
    Own(Option<Bytes>),
    /// Streamed from an upstream.
    Relayed(Relay),
    /// Streamed from an upstream through an encoder.
    Encoded(Box<Encoded>),
    /// Held back until it was complete.
    Held(Box<Held>),
    /// With the line for the access log, written when the body ends or breaks off.
    Logged(Box<Logged>),
}

/// A response body that is being relayed; gives the connection back when it is complete.
#[derive(Debug)]
pub(crate) enum Relay {
    /// From an upstream that speaks HTTP/1.1.
    Http1(Box<h1::Relay>),
    /// From one that speaks HTTP/2.
    H2c(Box<http2::upstream::Relay>),
}

/// Why a response broke off in the middle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    /// The upstream broke off.
    #[error("the upstream broke off its response")]
    Upstream(#[source] io::Error),
    /// The upstream's chunks break the rules.
    #[error("the upstream's response is malformed")]
    Malformed,
    /// The drain timeout came.
    #[error("the upstream was drained and the time for it is over")]
    Cut,
    /// The body could not be compressed any further.
    #[error("the response could not be compressed")]
    Encoder,
    /// What was held back cannot be read any more.
    #[error("the response that was held back cannot be read")]
    Held(#[source] SpoolError),
}

impl Relay {
    pub(crate) fn upstream(&self) -> &Arc<Upstream> {
        match self {
            Self::Http1(relay) => relay.upstream(),
            Self::H2c(relay) => relay.upstream(),
        }
    }
}

impl http2::Working for Reply {
    fn poll_work(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::Own(_) => {}
            Self::Relayed(Relay::Http1(relay)) => relay.poll_work(cx),
            Self::Relayed(Relay::H2c(relay)) => relay.poll_work(cx),
            Self::Encoded(encoded) => encoded.inner_mut().poll_work(cx),
            Self::Held(held) => held.work(cx),
            Self::Logged(logged) => logged.body.poll_work(cx),
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
            Self::Relayed(Relay::Http1(relay)) => Pin::new(relay).poll_frame(cx),
            Self::Relayed(Relay::H2c(relay)) => Pin::new(relay).poll_frame(cx),
            Self::Encoded(encoded) => encoded.poll_frame(cx),
            Self::Held(held) => held.poll_frame(cx),
            Self::Logged(logged) => logged.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Relayed(Relay::Http1(relay)) => relay.is_end_stream(),
            Self::Relayed(Relay::H2c(relay)) => relay.is_end_stream(),
            Self::Encoded(encoded) => encoded.is_end_stream(),
            Self::Held(held) => held.is_end_stream(),
            Self::Logged(logged) => logged.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Relayed(Relay::Http1(relay)) => relay.size_hint(),
            Self::Relayed(Relay::H2c(relay)) => relay.size_hint(),
            Self::Encoded(_) => SizeHint::default(),
            Self::Held(held) => held.size_hint(),
            Self::Logged(logged) => logged.body.size_hint(),
        }
    }
}

fn own(response: Response<Bytes>) -> Response<Reply> {
    response.map(|bytes| Reply::Own((!bytes.is_empty()).then_some(bytes)))
}

pub(crate) fn failure(status: StatusCode) -> Response<Reply> {
    own(pages::page(status, ""))
}

/// Answers one request.
pub(crate) async fn handle(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    mut request: Request<Upload>,
    interim: Interim<'_>,
) -> Response<Reply> {
    let begun = Instant::now();
    let is_head = request.method() == Method::HEAD;
    let Some(host) = host_of(&request) else {
        return failure(StatusCode::BAD_REQUEST);
    };
    let websocket = is_websocket(&request);
    if request.method() == Method::CONNECT && !websocket {
        return failure(StatusCode::NOT_IMPLEMENTED);
    }
    if request.headers().len() > worker.shared.table.load().settings.max_header_count {
        return failure(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let mut until = None;
    let mut again = false;
    loop {
        let changed = worker.shared.changed.notified();
        let table = worker.shared.table.load_full();
        let target = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
        let ask = Ask {
            is_read: websocket || matches!(*request.method(), Method::GET | Method::HEAD),
            host: &host,
            target,
            scheme: peer.scheme,
            body: request.body().size_hint().lower(),
        };
        let (route, response) = match decide(&table, &ask) {
            Decision::Wait { route, most, late } => {
                let until = *until.get_or_insert(tokio::time::Instant::from_std(begun) + most);
                let status = tokio::select! {
                    () = changed => continue,
                    () = tokio::time::sleep_until(until) => late,
                    // Whoever opens the route again tells our successor, not us.
                    () = worker.shared.stopping.cancelled() => StatusCode::SERVICE_UNAVAILABLE,
                };
                (Some(route), own(too_late(route, status)))
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
            } => {
                let page = match route {
                    Some(route) => route.page(status, message),
                    None => pages::page(status, message),
                };
                (route, own(page))
            }
            Decision::Own { route, response } => (route, own(response)),
            Decision::Forward { route, strip } => {
                let visitor = visitor_of(&table, peer, request.headers());
                let path = target.split('?').next().unwrap_or_default();
                match policy::examine(&worker.shared, route, path, request.headers(), visitor, again) {
                    Verdict::Pass => {}
                    Verdict::Answer(response) => {
                        let line = line(worker, peer, route, &host, &request, None, begun);
                        return finish(worker, Some(route), own(response), begun, is_head, line);
                    }
                    Verdict::Check(check) => {
                        if !worker.shared.gatekeeper.check(check).await {
                            return finish(worker, None, own(policy::busy()), begun, is_head, None);
                        }
                        again = true;
                        continue;
                    }
                }
                let id = match request.headers().get(&headers::X_REQUEST_ID) {
                    Some(id) if crate::request_id::acceptable(id.as_bytes()) => id.clone(),
                    _ => worker.ids.next_value(),
                };
                let line = line(worker, peer, route, &host, &request, Some(&id), begun);
                let accept = request.headers().get(header::ACCEPT_ENCODING).cloned();
                request
                    .body_mut()
                    .limit(route.service.limits.max_request_body.unwrap_or(u64::MAX));
                let buffering = route.service.buffering.as_ref().filter(|_| !websocket);
                let refused = match buffering {
                    Some(buffering) if buffering.requests && !request.body().is_over() => {
                        let stall = table.settings.idle_timeout;
                        Box::pin(hold(
                            worker,
                            &route.service.name,
                            buffering,
                            &mut request,
                            stall,
                            interim,
                        ))
                        .await
                    }
                    _ => Ok(()),
                };
                let response = match refused {
                    Ok(()) => {
                        route_request(
                            worker, peer, &table, route, strip, &host, id, request, begun, interim,
                        )
                        .await
                    }
                    Err(status) => {
                        let mut response = failure(status);
                        response.headers_mut().insert(headers::X_REQUEST_ID, id);
                        response
                    }
                };
                let response = match buffering {
                    Some(buffering) if buffering.responses => {
                        Box::pin(held::response(worker, &route.service.name, buffering, response)).await
                    }
                    _ => response,
                };
                let status = response.status();
                let response = match response.body() {
                    Reply::Own(Some(_)) => response.map(|_| own(route.page(status, "")).into_body()),
                    _ => response,
                };
                let response = match &route.service.compression {
                    Some(compression) if !is_head => {
                        let accept = accept.as_ref().map(HeaderValue::as_bytes);
                        encoded::encode(compression, accept, response)
                    }
                    _ => response,
                };
                return finish(worker, Some(route), response, begun, is_head, line);
            }
        };
        let line = route.and_then(|route| line(worker, peer, route, &host, &request, None, begun));
        return finish(worker, route, response, begun, is_head, line);
    }
}

/// Whether the request asks for a WebSocket (extended CONNECT, RFC 8441).
fn is_websocket(request: &Request<Upload>) -> bool {
    let protocol = request.extensions().get::<h2::ext::Protocol>();
    request.method() == Method::CONNECT && protocol.is_some_and(|protocol| protocol.as_str() == "websocket")
}

/// Who asks, when trusted proxies stand in front.
pub(crate) fn visitor_of(table: &Table, peer: &Peer, fields: &HeaderMap) -> IpAddr {
    let named = table
        .settings
        .client_ip_header
        .as_deref()
        .and_then(|name| fields.get(name));
    let forwarded = fields
        .get_all(&headers::X_FORWARDED_FOR)
        .iter()
        .collect::<Vec<_>>();
    let forwarded = forwarded.into_iter().map(HeaderValue::as_bytes);
    visitor::address(
        peer.address,
        &table.trusted,
        named.map(HeaderValue::as_bytes),
        forwarded,
    )
}

/// Counts the answer, sets the service's own fields, and takes the body away that HEAD does not get.
fn finish(
    worker: &Worker,
    route: Option<&Arc<Route>>,
    mut response: Response<Reply>,
    begun: Instant,
    is_head: bool,
    line: Option<Line>,
) -> Response<Reply> {
    if is_head && matches!(response.body(), Reply::Own(_)) {
        *response.body_mut() = Reply::Own(None);
    }
    if let Some(route) = route {
        route.counters[worker.index].answered(response.status().as_u16(), begun.elapsed());
        for (name, value) in &route.response_headers {
            response.headers_mut().insert(name, value.clone());
        }
    }
    match line {
        Some(line) => line.accompany(response),
        None => response,
    }
}

/// The host as the client wrote it; `None` when it is missing or given twice.
fn host_of(request: &Request<Upload>) -> Option<String> {
    if let Some(authority) = request.uri().authority() {
        // No userinfo, nothing that could be more than a host (RFC 9113 §8.3.1).
        return h1::is_host(authority.as_str().as_bytes()).then(|| authority.as_str().to_owned());
    }
    let mut all = request.headers().get_all(header::HOST).iter();
    match (all.next(), all.next()) {
        (Some(host), None) if h1::is_host(host.as_bytes()) => host.to_str().ok().map(str::to_owned),
        (None, None) if request.version() == Version::HTTP_10 => Some(String::new()),
        _ => None,
    }
}

/// Holds the request back until it is complete, and announces its length to the upstream.
async fn hold(
    worker: &Worker,
    service: &ServiceName,
    buffering: &Buffering,
    request: &mut Request<Upload>,
    stall: Duration,
    interim: Interim<'_>,
) -> Result<(), StatusCode> {
    // The client waits for a word before it sends anything, and the upstream will not be asked for one.
    if request.headers_mut().remove(header::EXPECT).is_some() {
        let mut go_on = Response::new(());
        *go_on.status_mut() = StatusCode::CONTINUE;
        interim(go_on);
    }
    held::request(worker, service, buffering, request.body_mut(), stall).await?;
    let length = request.body().announced().unwrap_or_default();
    request
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok(())
}

#[allow(clippy::too_many_arguments)]
async fn route_request(
    worker: &Rc<Worker>,
    peer: &Peer,
    table: &Table,
    route: &Arc<Route>,
    strip: usize,
    host: &str,
    id: HeaderValue,
    mut request: Request<Upload>,
    begun: Instant,
    interim: Interim<'_>,
) -> Response<Reply> {
    let websocket = is_websocket(&request);
    let now = Clock::millis();
    let assignment = if assign::is_needed(&route.service) {
        let is_read = websocket || matches!(*request.method(), Method::GET | Method::HEAD);
        let new_id = worker.ids.next();
        assign::assign(
            &route.service,
            request.headers(),
            is_read,
            websocket,
            &new_id,
            now,
        )
    } else {
        Assignment::default()
    };
    let h2c = route.service.upstream_protocol == UpstreamProtocol::H2c;
    let key = (websocket && !h2c).then(|| websocket_key(&worker.ids));
    prepare(&mut request, table, route, peer, host, strip, &id, key);
    let patience = Patience {
        response: route.service.response_timeout,
        stall: table.settings.idle_timeout,
    };
    let mut response = send(worker, route, assignment.lane, request, begun, patience, interim).await;
    if websocket {
        accept(&mut response);
    }
    let declined = response
        .headers()
        .get("x-writer-affinity")
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"false"));
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
    request: &mut Request<Upload>,
    table: &Table,
    route: &Route,
    peer: &Peer,
    host: &str,
    strip: usize,
    id: &HeaderValue,
    websocket: Option<HeaderValue>,
) {
    let path = request.uri().path_and_query().map_or("/", PathAndQuery::as_str);
    let (kept, prefix) = (&path[strip..], &path[..strip]);
    let target = if kept.starts_with('/') || kept == "*" {
        Uri::try_from(kept)
    } else {
        Uri::try_from(format!("/{kept}"))
    };
    let prefix = HeaderValue::from_str(prefix).ok().filter(|_| strip > 0);
    *request.uri_mut() = target.unwrap_or_else(|_| Uri::from_static("/"));
    let wants_trailers = request
        .headers()
        .get(header::TE)
        .is_some_and(|te| te == "trailers");
    let client = ClientView {
        peer_text: &peer.text,
        scheme: peer.scheme,
        local_port: peer.local_port,
        trusted: route.service.forward_headers || table.trusted.contain(peer.address),
        visitor: table
            .trusted
            .contain(peer.address)
            .then(|| visitor_of(table, peer, request.headers())),
        forwarded: table.settings.forwarded.then_some(peer.address),
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
    if wants_trailers {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        fields.insert(header::CONNECTION, HeaderValue::from_static("TE"));
    }
    if let Some(key) = websocket {
        // The handshake of HTTP/1.1, which the extended CONNECT stands for (RFC 8441 §5).
        fields.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        fields.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        fields.insert(header::SEC_WEBSOCKET_KEY, key);
        *request.method_mut() = Method::GET;
    }
}

/// A nonce for the handshake of HTTP/1.1, which HTTP/2 has no need of (RFC 6455 §4.1).
fn websocket_key(ids: &crate::request_id::Ids) -> HeaderValue {
    let key = base64::engine::general_purpose::STANDARD.encode(&ids.next()[16..]);
    HeaderValue::try_from(key).expect("base64 is a header value")
}

/// The answer to an extended CONNECT: 200 where HTTP/1.1 says 101.
fn accept(response: &mut Response<Reply>) {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        *response.status_mut() = StatusCode::OK;
        let fields = response.headers_mut();
        fields.remove(header::SEC_WEBSOCKET_ACCEPT);
        fields.remove(header::CONTENT_LENGTH);
    } else if response.status().is_success() && matches!(response.body(), Reply::Relayed(Relay::Http1(_))) {
        // The upstream answered the handshake like any request: the client must not take that for a WebSocket.
        *response = failure(StatusCode::BAD_GATEWAY);
    }
}

/// Whether a method may be repeated (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "PUT" | "DELETE" | "TRACE")
}
