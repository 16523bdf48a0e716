//! What happens to a request: pure, and the same for HTTP/1.1 and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::hold;
use crate::options::Scheme;
use crate::snapshot::Gate;
use crate::table::{Route, Table, without_port};

/// What has to be known of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// GET or HEAD: may be repeated by a browser without asking.
    pub(crate) is_read: bool,
    /// As the client wrote it.
    pub(crate) host: &'a str,
    /// Path and query, raw.
    pub(crate) target: &'a str,
    pub(crate) scheme: Scheme,
    /// Length of the body, as far as the head tells.
    pub(crate) body: u64,
}

/// What happens to it.
#[derive(Debug)]
pub(crate) enum Decision<'t> {
    /// It goes to one of the route's upstreams, without this many bytes at the front of its path.
    Forward { route: &'t Arc<Route>, strip: usize },
    /// It waits until the route is changed, at most this long; then it gets this status.
    Wait {
        route: &'t Arc<Route>,
        most: Duration,
        late: StatusCode,
    },
    /// The client is sent elsewhere.
    Redirect {
        route: &'t Arc<Route>,
        status: StatusCode,
        location: String,
    },
    /// The proxy answers with this.
    Own {
        route: Option<&'t Arc<Route>>,
        response: Response<Bytes>,
    },
    /// The proxy answers by itself; an empty message stands for the status's own words.
    Answer {
        route: Option<&'t Arc<Route>>,
        status: StatusCode,
        message: &'t str,
    },
}

/// Decides.
pub(crate) fn decide<'t>(table: &'t Table, ask: &Ask<'_>) -> Decision<'t> {
    let path = ask.target.split('?').next().unwrap_or_default();
    if let Some(response) = table.challenges.answer(path) {
        return Decision::Own {
            route: None,
            response,
        };
    }
    let Some(found) = table.find(ask.host, path) else {
        return Decision::Answer {
            route: None,
            status: StatusCode::NOT_FOUND,
            message: "",
        };
    };
    let (route, strip) = (found.route, found.strip);
    let answer = |status, message| Decision::Answer {
        route: Some(route),
        status,
        message,
    };
    if let Some(location) = redirect(route, ask) {
        let status = if ask.is_read {
            StatusCode::MOVED_PERMANENTLY
        } else {
            StatusCode::PERMANENT_REDIRECT
        };
        return Decision::Redirect {
            route,
            status,
            location,
        };
    }
    if let Some((status, location)) = rewritten(route, ask.target) {
        return Decision::Redirect {
            route,
            status,
            location,
        };
    }
    // A balancer in front must not take the host away while one of its apps is closed on purpose.
    let asks_health = || ask.is_read && path == route.service.health_check.path;
    match &route.service.gate {
        Gate::Open => {}
        _ if asks_health() => return answer(StatusCode::OK, "OK"),
        Gate::Paused { max_wait } => {
            return Decision::Wait {
                route,
                most: *max_wait,
                late: StatusCode::GATEWAY_TIMEOUT,
            };
        }
        Gate::Stopped { message } => return answer(StatusCode::SERVICE_UNAVAILABLE, message),
    }
    if route.waits() {
        return Decision::Wait {
            route,
            most: route.service.response_timeout.min(hold::LONGEST),
            late: StatusCode::SERVICE_UNAVAILABLE,
        };
    }
    if route
        .service
        .limits
        .max_request_body
        .is_some_and(|most| ask.body > most)
    {
        return answer(StatusCode::PAYLOAD_TOO_LARGE, "");
    }
    Decision::Forward { route, strip }
}

/// Where one of the service's own redirects sends the client.
fn rewritten(route: &Route, target: &str) -> Option<(StatusCode, String)> {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    route.service.redirects.iter().find_map(|redirect| {
        let rest = match redirect.from.strip_suffix("/*") {
            Some(prefix) => path
                .strip_prefix(prefix)
                .filter(|rest| rest.is_empty() || rest.starts_with('/'))?,
            None => (path == redirect.from).then_some("")?,
        };
        let mut location = match redirect.to.strip_suffix("/*") {
            // `//host` would be another site.
            Some("") => format!("/{}", rest.trim_start_matches('/')),
            Some(base) => format!("{base}{rest}"),
            None => redirect.to.clone(),
        };
        match query.strip_prefix('?') {
            Some(query) if !location.contains('?') && !location.contains('#') => {
                location.push('?');
                location.push_str(query);
            }
            _ => {}
        }
        Some((StatusCode::from_u16(redirect.status).ok()?, location))
    })
}

/// The answer to a request that waited in vain.
pub(crate) fn too_late(route: &Route, status: StatusCode) -> Response<Bytes> {
    let mut page = route.page(status, "");
    if status == StatusCode::SERVICE_UNAVAILABLE {
        page.headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(hold::RETRY_AFTER));
    }
    page
}

/// Where the client is sent instead, in one hop: to HTTPS, to the canonical host, or both.
fn redirect(route: &Route, ask: &Ask<'_>) -> Option<String> {
    let canonical = route.canonical(ask.host);
    let to_https = ask.scheme == Scheme::Http && route.redirect_to_https;
    if canonical.is_none() && !to_https {
        return None;
    }
    let scheme = if to_https { Scheme::Https } else { ask.scheme };
    let bare = without_port(ask.host);
    let name = canonical.map_or(bare, |canonical| canonical.as_str());
    // A port that the visitor typed belongs to the old scheme: with another scheme comes the port that was configured.
    let typed = &ask.host[bare.len()..];
    let https_port = route.https_port.filter(|port| *port != 443 && to_https);
    let port = match https_port {
        Some(port) => format!(":{port}"),
        None if to_https => String::new(),
        None => typed.to_owned(),
    };
    let target = if ask.target == "*" { "/" } else { ask.target };
    Some(format!("{}://{name}{port}{target}", scheme.as_str()))
}
