//! What a service asks of a request before it goes on: its visitor's rate, and a password.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::assign::Shown;
use crate::auth::{self, Check, Standing};
use crate::shared::Shared;
use crate::table::{Route, matches_prefix};

/// Whether every reader of the path sees the same one, so that an exception cannot be stretched by `..` or `%2e`.
fn is_plain(path: &str) -> bool {
    !(path.contains("/.") || path.contains("//") || path.contains(['%', '\\', ';']))
}

/// What becomes of the request.
#[derive(Debug)]
pub(crate) enum Verdict {
    Pass,
    /// It is answered here.
    Answer(Response<Bytes>),
    /// It waits for [`auth::Gatekeeper::check`], and is examined again.
    Check(Box<Check>),
}

/// Examines a request that has a route. `again` is true after a [`Verdict::Check`]: it is not counted twice.
pub(crate) fn examine(
    shared: &Shared,
    route: &Arc<Route>,
    path: &str,
    shown: &dyn Shown,
    visitor: IpAddr,
    again: bool,
) -> Verdict {
    let limits = &route.service.limits;
    if let (Some(rate), false) = (limits.requests_per_second, again) {
        let burst = limits.burst.map_or_else(|| rate.max(1.0), f64::from);
        let service = route.service.name.as_str();
        if let Err(wait) = shared.rates.take(service, visitor, rate, burst, Instant::now()) {
            return Verdict::Answer(too_many(route, wait));
        }
    }
    let Some(auth) = &route.service.auth else {
        return Verdict::Pass;
    };
    let open = |prefix: &crate::names::PathPrefix| matches_prefix(path, prefix.as_str());
    if is_plain(path) && auth.except.iter().any(open) {
        return Verdict::Pass;
    }
    match shared
        .gatekeeper
        .standing(auth, shown.field("authorization"), Instant::now())
    {
        Standing::Admitted => Verdict::Pass,
        Standing::Refused => Verdict::Answer(auth::challenge(route.page(StatusCode::UNAUTHORIZED, ""), auth)),
        Standing::Unknown(check) => {
            let service = format!("{}\0password", route.service.name.as_str());
            let (burst, rate) = auth::TRIES;
            // Many requests with one password, as browsers send them, are one try.
            if !shared.gatekeeper.is_first(&check) {
                return Verdict::Check(check);
            }
            match shared.rates.take(&service, visitor, rate, burst, Instant::now()) {
                Ok(()) => Verdict::Check(check),
                Err(wait) => Verdict::Answer(too_many(route, wait)),
            }
        }
    }
}

/// The answer to who asks too often.
fn too_many(route: &Route, wait: u64) -> Response<Bytes> {
    let mut page = route.page(StatusCode::TOO_MANY_REQUESTS, "");
    page.headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(wait));
    page
}

/// The answer while too many passwords wait to be checked.
pub(crate) fn busy() -> Response<Bytes> {
    let mut page = crate::pages::page(StatusCode::SERVICE_UNAVAILABLE, "");
    page.headers_mut()
        .insert(header::RETRY_AFTER, HeaderValue::from(1_u64));
    page
}
