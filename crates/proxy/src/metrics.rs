//! The metrics page, in Prometheus' text format 0.0.4.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::shared::Shared;
use crate::stats::{BOUNDS_MS, merge};

/// Answers `GET /metrics` until `stop`.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let tasks = tokio_util::task::TaskTracker::new();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(_) => {
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = stop.cancelled() => return,
        };
        let shared = Arc::clone(&shared);
        tasks.spawn(async move {
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
                let is_page = request.uri().path() == "/metrics";
                let found = is_page && matches!(*request.method(), Method::GET | Method::HEAD);
                let mut response = Response::new(Full::new(Bytes::new()));
                if found {
                    *response.body_mut() = Full::new(Bytes::from(page(&shared)));
                    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
                    response.headers_mut().insert(header::CONTENT_TYPE, kind);
                } else {
                    *response.status_mut() = StatusCode::NOT_FOUND;
                }
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let _asker_left = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// The whole page.
fn page(shared: &Shared) -> String {
    let table = shared.table.load();
    let mut out = String::with_capacity(4096);
    let services: Vec<_> = table
        .routes
        .iter()
        .map(|(name, route)| (name.as_str(), route, merge(route.counters.iter())))
        .collect();
    family(
        &mut out,
        "appliance_proxy_requests_total",
        "counter",
        "Requests answered, by status class.",
    );
    for (name, _, counts) in &services {
        for (class, count) in counts.by_class.iter().enumerate() {
            let class = class + 1;
            line(
                &mut out,
                format_args!(
                    "appliance_proxy_requests_total{{service=\"{name}\",class=\"{class}xx\"}} {count}"
                ),
            );
        }
    }
    let duration = "appliance_proxy_request_duration_seconds";
    family(
        &mut out,
        duration,
        "histogram",
        "Time from a request's head to its response's head.",
    );
    for (name, _, counts) in &services {
        let mut sum = 0;
        for (bound, count) in BOUNDS_MS.iter().zip(&counts.latency) {
            sum += count;
            let seconds = bound / 1000.0;
            line(
                &mut out,
                format_args!("{duration}_bucket{{service=\"{name}\",le=\"{seconds}\"}} {sum}"),
            );
        }
        let total = counts.requests;
        line(
            &mut out,
            format_args!("{duration}_bucket{{service=\"{name}\",le=\"+Inf\"}} {total}"),
        );
        #[allow(clippy::cast_precision_loss)]
        let seconds = counts.latency_sum_us as f64 / 1e6;
        line(
            &mut out,
            format_args!("{duration}_sum{{service=\"{name}\"}} {seconds}"),
        );
        line(
            &mut out,
            format_args!("{duration}_count{{service=\"{name}\"}} {total}"),
        );
    }
    for (metric, kind, help) in [
        (
            "appliance_proxy_in_flight_requests",
            "gauge",
            "Requests that an upstream is working on.",
        ),
        ("appliance_proxy_tunnels", "gauge", "Open tunnels (WebSockets)."),
        (
            "appliance_proxy_upstream_healthy",
            "gauge",
            "Whether requests are sent to the upstream.",
        ),
        (
            "appliance_proxy_upstream_failures_total",
            "counter",
            "Requests that the upstream did not answer as it should.",
        ),
        (
            "appliance_proxy_received_bytes_total",
            "counter",
            "Bytes of requests sent to upstreams.",
        ),
        (
            "appliance_proxy_sent_bytes_total",
            "counter",
            "Bytes of responses sent to clients.",
        ),
        (
            "appliance_proxy_service_tls_handshakes_total",
            "counter",
            "TLS sessions by the service whose host was named.",
        ),
    ] {
        family(&mut out, metric, kind, help);
        for (name, route, counts) in &services {
            match metric {
                "appliance_proxy_received_bytes_total" => {
                    let bytes = counts.received_bytes;
                    line(&mut out, format_args!("{metric}{{service=\"{name}\"}} {bytes}"));
                }
                "appliance_proxy_sent_bytes_total" => {
                    let bytes = counts.sent_bytes;
                    line(&mut out, format_args!("{metric}{{service=\"{name}\"}} {bytes}"));
                }
                "appliance_proxy_service_tls_handshakes_total" => {
                    let count = counts.tls_handshakes;
                    line(&mut out, format_args!("{metric}{{service=\"{name}\"}} {count}"));
                }
                _ => {
                    for upstream in route.every_upstream() {
                        let value = match metric {
                            "appliance_proxy_in_flight_requests" => upstream.in_flight(),
                            "appliance_proxy_tunnels" => upstream.tunnels(),
                            "appliance_proxy_upstream_healthy" => u64::from(upstream.is_healthy()),
                            _ => upstream.counts().upstream_failures,
                        };
                        let address = &upstream.address;
                        line(
                            &mut out,
                            format_args!("{metric}{{service=\"{name}\",upstream=\"{address}\"}} {value}"),
                        );
                    }
                }
            }
        }
    }
    for (metric, kind, help, value) in [
        (
            "appliance_proxy_connections",
            "gauge",
            "Open client connections.",
            shared.connections.load(Ordering::Relaxed) as u64,
        ),
        (
            "appliance_proxy_tls_handshakes_total",
            "counter",
            "TLS handshakes completed.",
            shared.handshakes.load(Ordering::Relaxed),
        ),
        (
            "appliance_proxy_tls_handshake_failures_total",
            "counter",
            "TLS handshakes that failed.",
            shared.handshake_failures.load(Ordering::Relaxed),
        ),
        (
            "appliance_proxy_log_batches_lost_total",
            "counter",
            "Batches of access log lines dropped because the writer could not keep up.",
            shared.access_log.lost.load(Ordering::Relaxed),
        ),
        (
            "appliance_proxy_connections_refused_total",
            "counter",
            "Connections closed because their visitor had too many.",
            shared.turned_away.load(Ordering::Relaxed),
        ),
        (
            "appliance_proxy_held_memory_bytes",
            "gauge",
            "Bytes in memory of bodies that are held back.",
            shared.spools.used().0,
        ),
        (
            "appliance_proxy_held_disk_bytes",
            "gauge",
            "Bytes on disk of bodies that are held back.",
            shared.spools.used().1,
        ),
        (
            "appliance_proxy_snapshot_generation",
            "gauge",
            "Generation of the live snapshot.",
            table.generation,
        ),
        (
            "appliance_proxy_resident_bytes",
            "gauge",
            "Resident memory.",
            crate::control::resident_bytes().unwrap_or(0),
        ),
    ] {
        family(&mut out, metric, kind, help);
        line(&mut out, format_args!("{metric} {value}"));
    }
    out
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _infallible = writeln!(out, "{text}");
}
