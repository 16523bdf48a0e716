//! Which upstream a request is sent to next, and what is said of one that failed it: the same for every protocol.
//!
//! ```text
//!  choose ──► entered ──► connect ──► exchange ──► answered
//!    ▲                      │ refused    │ failed
//!    └──── another one ◄────┘            └──► the client is told
//! ```

use std::io;
use std::sync::Arc;

use http::StatusCode;

use crate::assign::Lane;
use crate::table::Route;
use crate::upstream::{InFlight, Upstream};
use crate::worker::Worker;

/// Chooses an upstream that was not `tried` yet, and counts the request there.
///
/// `route` becomes the live one when a switch came between.
///
/// # Errors
/// The status for the client when there is none: 503, or 502 when all were tried.
pub(crate) fn choose(
    worker: &Worker,
    route: &mut Arc<Route>,
    lane: Lane,
    tried: &[u64],
) -> Result<(Arc<Upstream>, InFlight), StatusCode> {
    loop {
        let Some(upstream) = route.pick(lane, tried) else {
            return Err(if tried.is_empty() {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::BAD_GATEWAY
            });
        };
        if let Some(in_flight) = upstream.enter(worker.index) {
            return Ok((Arc::clone(upstream), in_flight));
        }
        // A switch came between; the new table is already live.
        let table = worker.shared.table.load();
        match table.routes.get(&route.service.name) {
            Some(fresh) if !Arc::ptr_eq(fresh, route) => *route = Arc::clone(fresh),
            _ => return Err(StatusCode::SERVICE_UNAVAILABLE),
        }
    }
}

/// No connection could be made: nothing was sent, so any method may go to another upstream.
pub(crate) fn refused(
    worker: &Worker,
    route: &Route,
    upstream: &Upstream,
    error: &io::Error,
    tried: &mut Vec<u64>,
) {
    tracing::warn!(
        service = %route.service.name, upstream = %upstream.address,
        error = error as &dyn std::error::Error, "cannot connect to the upstream"
    );
    upstream.counters(worker.index).failed();
    tried.push(upstream.id);
}

/// The exchange ended with `status`; `answered` when the client has a part of an answer already.
pub(crate) fn failed(
    worker: &Worker,
    route: &Route,
    upstream: &Upstream,
    status: StatusCode,
    answered: bool,
) {
    if status.is_server_error() {
        tracing::warn!(
            service = %route.service.name, upstream = %upstream.address,
            status = status.as_u16(), answered, "the upstream did not answer as it should"
        );
        upstream.counters(worker.index).failed();
    }
}
