//! One order of an HTTP/1 client, carried out at one upstream after the other until somebody has answered.

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::exchange::Exchange;
use super::held::wants_requests;
use super::order::{Failure, Order, Outcome};
use super::parse::Framing;
use super::{Conn, Next, bridge};
use crate::attempt;
use crate::forward::{self, Patience};
use crate::link::Link;
use crate::snapshot::UpstreamProtocol;
use crate::upstream::Upstream;

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    /// Sends the order to an upstream; to another one when the connection cannot be made.
    pub(super) async fn carry_out(&mut self, mut order: Order) -> Next {
        let worker = Rc::clone(&self.worker);
        let mut tried: Vec<u64> = Vec::new();
        let mut fresh_only = false;
        let mut upload = None;
        let mut refused = None;
        if !order.upgrade && order.framing != Framing::Length(0) && wants_requests(&order.route) {
            match Box::pin(self.hold(&mut order)).await {
                Ok(spool) => upload = Some(spool),
                Err(Failure::Status(status)) => refused = Some(status),
                Err(_) => {
                    self.log(&order, 499, "", 0, &[]);
                    worker.buffers.give(order.head);
                    return Next::Gone;
                }
            }
        }
        let status = loop {
            if let Some(status) = refused {
                break status;
            }
            let lane = order.assignment.lane;
            let (upstream, in_flight) = match attempt::choose(&worker, &mut order.route, lane, &tried) {
                Ok(chosen) => chosen,
                Err(status) => break status,
            };
            let resting = if fresh_only {
                None
            } else {
                worker.links.take(&upstream, order.begun)
            };
            let reused = resting.is_some();
            let mut link = match resting {
                Some(link) => link,
                None => match self.connect(&upstream, &order, fresh_only).await {
                    Ok(link) => link,
                    Err(error) => {
                        attempt::refused(&worker, &order.route, &upstream, &error, &mut tried);
                        continue;
                    }
                },
            };
            let mut exchange =
                Exchange::new(self, &order, &mut link, reused, &in_flight, upload.as_deref_mut());
            let outcome = exchange.run(self).await;
            let held = exchange.held.take();
            let (answered, status, bytes) = (exchange.answered, exchange.status, exchange.bytes);
            let body = exchange.body_bytes();
            let logged = std::mem::take(&mut exchange.logged);
            exchange.finish(self);
            order.route.counters[worker.index].moved(bytes.0, bytes.1);
            if let (Ok(Outcome::Complete { keep, reusable }), Some(held)) = (&outcome, held) {
                // The upstream is free, however slowly the client takes its response.
                if *reusable {
                    worker.links.put(&upstream, link, Instant::now());
                }
                drop(in_flight);
                let given = Box::pin(self.play(held)).await;
                self.log(&order, status, &upstream.address.to_string(), body, &logged);
                worker.buffers.give(order.head);
                return match (given, keep) {
                    (false, _) => Next::Gone,
                    (true, true) => Next::Keep,
                    (true, false) => Next::Close,
                };
            }
            if order.log.is_some() && outcome_is_final(&outcome, answered) {
                let status = match outcome {
                    Ok(Outcome::Tunnel(_)) => 101,
                    // kamal-proxy's and nginx's word for a client that left.
                    Err(Failure::Client) if !answered => 499,
                    _ => status,
                };
                // What a tunnel carries comes after its line.
                self.log(&order, status, &upstream.address.to_string(), body, &logged);
            }
            match outcome {
                Ok(Outcome::Complete { keep, reusable }) => {
                    if reusable {
                        worker.links.put(&upstream, link, Instant::now());
                    }
                    worker.buffers.give(order.head);
                    return if keep { Next::Keep } else { Next::Close };
                }
                Ok(Outcome::Tunnel(rest)) => {
                    worker.buffers.give(order.head);
                    self.tunnel(link, rest, in_flight.into_tunnel()).await;
                    return Next::Gone;
                }
                Err(Failure::Stale) => fresh_only = true,
                Err(Failure::Client) => {
                    worker.buffers.give(order.head);
                    return Next::Gone;
                }
                Err(Failure::Cut) if answered => return Next::Gone,
                Err(Failure::Cut) => break StatusCode::GATEWAY_TIMEOUT,
                Err(Failure::Status(status)) => {
                    attempt::failed(&worker, &order.route, &upstream, status, answered);
                    if answered {
                        return Next::Gone;
                    }
                    break status;
                }
            }
        };
        let counters = &order.route.counters[worker.index];
        counters.answered(status.as_u16(), order.begun.elapsed());
        let taken = order.framing == Framing::Length(0) || upload.is_some();
        let keep = order.keep && taken && !self.is_closing();
        let mut page = order.route.page(status, "");
        let given = if order.is_head {
            0
        } else {
            page.body().len() as u64
        };
        self.log(&order, status.as_u16(), "", given, &[]);
        if let Ok(id) = http::HeaderValue::from_bytes(&order.head[order.id.clone()]) {
            page.headers_mut().insert(crate::headers::X_REQUEST_ID, id);
        }
        self.give(&page, Some(&order.route), keep, order.minor, order.is_head)
            .await
    }

    /// A connection that nothing was sent on yet.
    async fn connect(&self, upstream: &Arc<Upstream>, order: &Order, fresh: bool) -> io::Result<Link> {
        if order.route.service.upstream_protocol == UpstreamProtocol::Http1 {
            return Link::connect(&upstream.address).await;
        }
        let lease = forward::stream(&self.worker, upstream, fresh).await?;
        let patience = Patience {
            response: order.route.service.response_timeout,
            stall: self.stall(),
        };
        bridge::start(&self.worker, lease, upstream, order, patience)
            .map(Link::Bridge)
            .ok_or_else(|| io::Error::other("the request cannot be said in HTTP/2"))
    }
}

/// Whether this exchange's end is also the request's: the client has an answer, or is gone.
fn outcome_is_final(outcome: &Result<Outcome, Failure>, answered: bool) -> bool {
    match outcome {
        Ok(_) | Err(Failure::Client) => true,
        Err(Failure::Stale) => false,
        Err(Failure::Status(_) | Failure::Cut) => answered,
    }
}
