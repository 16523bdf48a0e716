//! One request, sent to one upstream after the other until somebody has answered.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{Request, Response, StatusCode, header};

use super::{Broken, Patience, Relay, Reply, failure};
use crate::assign::Lane;
use crate::attempt;
use crate::h1;
use crate::http2::{self, Interim, Upload};
use crate::link::Link;
use crate::snapshot::UpstreamProtocol;
use crate::table::Route;
use crate::upstream::Upstream;
use crate::worker::Worker;

/// Sends the request to an upstream and waits for the head of its response.
#[allow(clippy::too_many_arguments)]
pub(super) async fn send(
    worker: &Rc<Worker>,
    route: &Arc<Route>,
    lane: Lane,
    mut request: Request<Upload>,
    begun: Instant,
    patience: Patience,
    interim: Interim<'_>,
) -> Response<Reply> {
    let upgrade = request.headers().contains_key(header::UPGRADE);
    let mut tried: Vec<u64> = Vec::new();
    let mut route = Arc::clone(route);
    let mut repeated = false;
    loop {
        let (upstream, in_flight) = match attempt::choose(worker, &mut route, lane, &tried) {
            Ok(chosen) => chosen,
            Err(status) => return failure(status),
        };
        let upstream = &upstream;
        let counters = upstream.counters(worker.index);
        let opened = match route.service.upstream_protocol {
            UpstreamProtocol::Http1 => link(worker, upstream, repeated).await.map(Opened::Http1),
            UpstreamProtocol::H2c => stream(worker, upstream, repeated).await.map(Opened::H2c),
        };
        let outcome = match opened {
            Ok(Opened::Http1((link, reused))) => {
                let taken = h1::Taken {
                    link,
                    reused,
                    in_flight,
                };
                h1::fetch(worker, taken, &mut request, upgrade, patience, interim)
                    .await
                    .map(|response| {
                        response.map(|mut relay| {
                            relay.count_for(&route);
                            Reply::Relayed(Relay::Http1(Box::new(relay)))
                        })
                    })
            }
            Ok(Opened::H2c(lease)) => {
                let counted = (Arc::clone(upstream), Some(in_flight));
                http2::upstream::fetch(worker, lease, counted, &mut request, patience, interim)
                    .await
                    .map(|response| {
                        response.map(|mut relay| {
                            relay.count_for(&route);
                            Reply::Relayed(Relay::H2c(Box::new(relay)))
                        })
                    })
            }
            Err(error) => {
                attempt::refused(worker, &route, upstream, &error, &mut tried);
                continue;
            }
        };
        match outcome {
            Ok(response) => {
                counters.answered(response.status().as_u16(), begun.elapsed());
                return response;
            }
            Err(Broken::Stale) if !repeated => repeated = true,
            Err(broken) => {
                let status = match broken {
                    Broken::Status(status) => status,
                    Broken::Stale => StatusCode::BAD_GATEWAY,
                };
                attempt::failed(worker, &route, upstream, status, false);
                return failure(status);
            }
        }
    }
}

/// A connection to an upstream.
enum Opened {
    Http1((Link, bool)),
    H2c(http2::upstream::Lease),
}

/// A connection for one request at a time, and whether it carried one before.
async fn link(worker: &Worker, upstream: &Upstream, fresh: bool) -> io::Result<(Link, bool)> {
    let resting = (!fresh)
        .then(|| worker.links.take(upstream, tokio::time::Instant::now()))
        .flatten();
    match resting {
        Some(link) => Ok((link, true)),
        None => Ok((Link::connect(&upstream.address).await?, false)),
    }
}

/// A stream of a connection that many requests share.
pub(crate) async fn stream(
    worker: &Worker,
    upstream: &Arc<Upstream>,
    fresh: bool,
) -> io::Result<http2::upstream::Lease> {
    match worker.streams.take(upstream).filter(|_| !fresh) {
        Some(lease) => Ok(lease),
        None => worker.streams.connect(upstream).await,
    }
}
