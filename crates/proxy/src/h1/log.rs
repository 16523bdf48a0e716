//! The lines of HTTP/1.1 requests in the access log.

use bytes::Bytes;
use http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::Conn;
use super::order::{LogHead, Order};
use super::parse::{self, Framing};
use crate::access_log::{self, Entry};
use crate::assign::Shown as _;
use crate::clock::Clock;
use crate::request_id;
use crate::table::Route;

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Writes the line of a request that is answered here, if its service wants one.
    pub(super) fn log_own(&self, end: usize, begun: Instant, route: &Route, response: &Response<Bytes>) {
        if !(route.service.log.requests && self.worker.shared.access_log.is_on()) {
            return;
        }
        let table = self.worker.shared.table.load();
        let mut room = parse::fields();
        let most = table.settings.max_header_count;
        let Ok(head) = parse::request(&self.input.bytes()[..end], &mut room, most) else {
            return;
        };
        let words = log_head(&head, &route.service.log.request_headers);
        let id = match head.request_id.filter(|id| request_id::acceptable(id)) {
            Some(id) => id.to_vec(),
            None => self.worker.ids.next().to_vec(),
        };
        let logged = access_log::fields("resp", &route.service.log.response_headers, |name| {
            response.headers().get(name).map(|value| value.as_bytes().into())
        });
        let entry = Entry {
            time: Clock::millis(),
            host: words.host.as_bytes(),
            target: words.target.as_bytes(),
            with_query: route.service.log.query,
            method: words.method.as_bytes(),
            request_id: &id,
            status: response.status().as_u16(),
            service: route.service.name.as_str(),
            target_address: "",
            took: begun.elapsed(),
            request_length: announced(head.framing),
            response_bytes: if head.method == "HEAD" {
                0
            } else {
                response.body().len() as u64
            },
            client: (self.peer.address, self.peer.port),
            port: self.peer.local_port,
            visitor: self.visitor(&table, &head),
            fields: [&words.fields, &logged],
            scheme: self.peer.scheme.as_str(),
            protocol: protocol(head.minor),
            user_agent: &words.user_agent,
        };
        self.worker.lines.push(&self.worker.shared.access_log, &entry);
    }

    /// Writes the line of a client that left before its request was decided, if its service wants one.
    pub(super) fn log_left(&self, end: usize, begun: Instant, route: &Route) {
        let mut left = Response::new(Bytes::new());
        // kamal-proxy's and nginx's word for it.
        *left.status_mut() = StatusCode::from_u16(499).expect("three digits");
        self.log_own(end, begun, route, &left);
    }

    /// Writes a request's line, if its service wants one.
    pub(super) fn log(
        &self,
        order: &Order,
        status: u16,
        target_address: &str,
        response_bytes: u64,
        response: &[access_log::Field],
    ) {
        let Some(log) = &order.log else { return };
        let entry = Entry {
            time: Clock::millis(),
            host: log.host.as_bytes(),
            target: log.target.as_bytes(),
            with_query: order.route.service.log.query,
            method: log.method.as_bytes(),
            request_id: &order.head[order.id.clone()],
            status,
            service: order.route.service.name.as_str(),
            target_address,
            took: order.begun.elapsed(),
            request_length: announced(order.framing),
            response_bytes,
            client: (self.peer.address, self.peer.port),
            port: self.peer.local_port,
            visitor: order.visitor,
            fields: [&log.fields, response],
            scheme: self.peer.scheme.as_str(),
            protocol: protocol(order.minor),
            user_agent: &log.user_agent,
        };
        self.worker.lines.push(&self.worker.shared.access_log, &entry);
    }
}

/// The body's length, as far as it is announced.
pub(super) fn announced(framing: Framing) -> u64 {
    match framing {
        Framing::Length(length) => length,
        Framing::Chunked | Framing::UntilClose => 0,
    }
}

fn protocol(minor: u8) -> &'static str {
    if minor == 0 { "HTTP/1.0" } else { "HTTP/1.1" }
}

/// Keeps the words that the access log wants, before the head is given up.
pub(super) fn log_head(head: &parse::RequestHead<'_, '_>, wanted: &[String]) -> Box<LogHead> {
    let agent = head
        .fields
        .iter()
        .find(|field| field.name.eq_ignore_ascii_case("user-agent"));
    Box::new(LogHead {
        host: head.host.into(),
        target: head.target.into(),
        method: head.method.into(),
        user_agent: agent.map_or(&[][..], |field| field.value).into(),
        fields: access_log::fields("req", wanted, |name| head.field(name).map(Into::into)),
    })
}
