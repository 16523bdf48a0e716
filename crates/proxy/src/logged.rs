//! The line of an HTTP/2 request in the access log: it goes with the response's body and is written when that ends or
//! breaks off, so that it tells what was really given and how long it took.

use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, header};
use http_body::{Body as _, Frame};

use crate::access_log::{self, Entry};
use crate::clock::Clock;
use crate::connection::Peer;
use crate::forward::{RelayError, Reply, visitor_of};
use crate::http2::Upload;
use crate::table::Route;
use crate::worker::Worker;

/// A body whose bytes are counted for its request's line.
#[derive(Debug)]
pub(crate) struct Logged {
    pub(crate) body: Reply,
    line: Line,
}

impl Logged {
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, RelayError>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.line.given += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        frame
    }
}

/// The words of a request that are logged.
#[derive(Debug)]
struct Words {
    host: String,
    target: String,
    method: Method,
    user_agent: Vec<u8>,
    length: u64,
    visitor: IpAddr,
    fields: Vec<access_log::Field>,
}

impl Words {
    fn of(host: &str, request: &Request<Upload>, wanted: &[String], visitor: IpAddr) -> Self {
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
            visitor,
            fields: access_log::fields("req", wanted, |name| {
                request.headers().get(name).map(|value| value.as_bytes().into())
            }),
        }
    }
}

/// The line for a request, if its service wants one.
pub(crate) fn line(
    worker: &Rc<Worker>,
    peer: &Rc<Peer>,
    route: &Arc<Route>,
    host: &str,
    request: &Request<Upload>,
    id: Option<&HeaderValue>,
    begun: Instant,
) -> Option<Line> {
    if !(route.service.log.requests && worker.shared.access_log.is_on()) {
        return None;
    }
    let visitor = visitor_of(&worker.shared.table.load(), peer, request.headers());
    Some(Line {
        words: Words::of(host, request, &route.service.log.request_headers, visitor),
        worker: Rc::clone(worker),
        peer: Rc::clone(peer),
        route: Arc::clone(route),
        id: id.cloned().unwrap_or_else(|| worker.ids.next_value()),
        begun,
        // The client gave its request up before there was an answer: kamal-proxy's and nginx's word for that.
        status: 499,
        upstream: String::new(),
        given: 0,
        logged: Vec::new(),
    })
}

/// A line of the access log; written when it is dropped, which is when all is over.
#[derive(Debug)]
pub(crate) struct Line {
    words: Words,
    worker: Rc<Worker>,
    peer: Rc<Peer>,
    route: Arc<Route>,
    id: HeaderValue,
    begun: Instant,
    status: u16,
    upstream: String,
    /// Bytes of body that were given to the client.
    given: u64,
    logged: Vec<access_log::Field>,
}

/// The address of the upstream that answers, if one does.
fn upstream_of(body: &Reply) -> String {
    match body {
        Reply::Relayed(relay) => relay.upstream().address.to_string(),
        Reply::Held(held) => held.upstream().address.to_string(),
        Reply::Encoded(encoded) => upstream_of(encoded.inner()),
        Reply::Logged(logged) => upstream_of(&logged.body),
        Reply::Own(_) => String::new(),
    }
}

impl Line {
    /// Goes with the body from here on.
    pub(crate) fn accompany(mut self, response: Response<Reply>) -> Response<Reply> {
        self.status = response.status().as_u16();
        self.upstream = upstream_of(response.body());
        self.logged = access_log::fields("resp", &self.route.service.log.response_headers, |name| {
            response.headers().get(name).map(|value| value.as_bytes().into())
        });
        response.map(|body| Reply::Logged(Box::new(Logged { body, line: self })))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let (words, peer) = (&self.words, &self.peer);
        let entry = Entry {
            time: Clock::millis(),
            host: words.host.as_bytes(),
            target: words.target.as_bytes(),
            with_query: self.route.service.log.query,
            method: words.method.as_str().as_bytes(),
            request_id: self.id.as_bytes(),
            status: self.status,
            service: self.route.service.name.as_str(),
            target_address: &self.upstream,
            took: self.begun.elapsed(),
            request_length: words.length,
            response_bytes: self.given,
            client: (peer.address, peer.port),
            port: peer.local_port,
            visitor: words.visitor,
            fields: [&words.fields, &self.logged],
            scheme: peer.scheme.as_str(),
            protocol: "HTTP/2.0",
            user_agent: &words.user_agent,
        };
        self.worker.lines.push(&self.worker.shared.access_log, &entry);
    }
}
