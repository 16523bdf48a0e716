//! Health checks: `GET path`, 2xx within the time for one try.
//!
//! An upstream that joins is asked fast at first (50 ms, doubling up to the interval), so that a switch waits no
//! longer than it must.
//! Once it serves, three failures in a row take it out and one success brings it back.
//! The last upstream that still accepts connections is never taken out for slow or bad answers: a service that limps is
//! better than none; one that refuses connections is taken out, and its visitors get 503.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::control::{ProbeFailure, ProbedUpstream};
use crate::names::UpstreamAddress;
use crate::shared::Shared;
use crate::snapshot::{HealthCheck, UpstreamProtocol};
use crate::upstream::Upstream;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const FAILURES: u32 = 3;
const AGENT: &str = "appliance-proxy health check";

/// Asks once.
///
/// # Errors
/// Why it is not healthy.
pub(crate) async fn check(address: &UpstreamAddress, check: &HealthCheck) -> Result<(), ProbeFailure> {
    match tokio::time::timeout(check.timeout, ask(address, check)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ProbeFailure::Timeout {
            timeout_ms: u64::try_from(check.timeout.as_millis()).unwrap_or(u64::MAX),
        }),
    }
}

async fn ask(address: &UpstreamAddress, check: &HealthCheck) -> Result<(), ProbeFailure> {
    let refused = |error: std::io::Error| ProbeFailure::Connect {
        error: error.to_string(),
    };
    match address {
        UpstreamAddress::Tcp(address) => {
            let mut address = *address;
            address.set_port(check.port.unwrap_or(address.port()));
            let stream = TcpStream::connect(address).await.map_err(refused)?;
            exchange(stream, check, &address.to_string()).await
        }
        UpstreamAddress::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(refused)?;
            exchange(stream, check, "localhost").await
        }
    }
}

async fn exchange<S>(stream: S, check: &HealthCheck, authority: &str) -> Result<(), ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    if check.protocol == Some(UpstreamProtocol::H2c) {
        return exchange_h2c(stream, check, authority).await;
    }
    let broken = |error: hyper::Error| ProbeFailure::Protocol { error: chain(&error) };
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let host = check.host.as_deref().unwrap_or(authority);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.uri_mut() = check.path.parse().map_err(|_| ProbeFailure::Protocol {
        error: format!("{:?} is not a path", check.path),
    })?;
    let headers = request.headers_mut();
    if let Ok(host) = HeaderValue::from_str(host) {
        headers.insert(header::HOST, host);
    }
    headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    let answer = sender.send_request(request);
    tokio::pin!(connection);
    tokio::pin!(answer);
    let mut open = true;
    let response = loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer.map_err(broken)?,
            _ = &mut connection, if open => open = false,
        }
    };
    judge(&response)
}

/// Any 2xx is healthy.
fn judge<B>(response: &Response<B>) -> Result<(), ProbeFailure> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let location = response.headers().get(header::LOCATION);
    Err(ProbeFailure::Status {
        status: status.as_u16(),
        location: location.and_then(|to| to.to_str().ok()).map(str::to_owned),
    })
}

/// Where gRPC servers answer for their health
/// (https://github.com/grpc/grpc/blob/master/doc/health-checking.md).
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";

async fn exchange_h2c<S>(stream: S, check: &HealthCheck, authority: &str) -> Result<(), ProbeFailure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let broken = |error: h2::Error| ProbeFailure::Protocol { error: chain(&error) };
    let unfit = |what: String| ProbeFailure::Protocol { error: what };
    let (mut sender, connection) = h2::client::handshake(stream).await.map_err(broken)?;
    let grpc = check.path == GRPC_HEALTH;
    let host = check.host.as_deref().unwrap_or(authority);
    let mut request = Request::builder()
        .method(if grpc { Method::POST } else { Method::GET })
        .uri(format!("http://{host}{}", check.path))
        .header(header::USER_AGENT, AGENT);
    if grpc {
        request = request
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers");
    }
    let request = request
        .body(())
        .map_err(|_| unfit(format!("{:?} is not a path", check.path)))?;
    let asking = async {
        let (answer, mut send) = sender.send_request(request, !grpc).map_err(broken)?;
        if grpc {
            // An empty message, not compressed: the health of the whole server.
            send.send_data(Bytes::from_static(&[0; 5]), true)
                .map_err(broken)?;
        }
        let response = answer.await.map_err(broken)?;
        if !grpc {
            return judge(&response);
        }
        let (head, mut body) = response.into_parts();
        let mut message = Vec::new();
        while let Some(data) = body.data().await {
            message.extend_from_slice(&data.map_err(broken)?);
            if message.len() > 64 {
                break;
            }
        }
        let trailers = body.trailers().await.map_err(broken)?.unwrap_or(head.headers);
        match trailers.get("grpc-status").map(HeaderValue::as_bytes) {
            // Field 1, ServingStatus, with the value 1: SERVING.
            Some(b"0") if message.get(5..) == Some(&[8, 1]) => Ok(()),
            Some(b"0") => Err(unfit("the gRPC server says that it is not serving".into())),
            status => Err(unfit(format!(
                "the gRPC health service answered with status {}",
                status.map_or("none".into(), String::from_utf8_lossy)
            ))),
        }
    };
    tokio::select! {
        biased;
        outcome = asking => outcome,
        ended = connection => Err(match ended {
            Err(error) => broken(error),
            Ok(()) => unfit("the connection ended before an answer".into()),
        }),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Asks until the first success or `timeout`.
pub(crate) async fn until_healthy(
    upstream: UpstreamAddress,
    health: &HealthCheck,
    timeout: Duration,
) -> ProbedUpstream {
    let begun = Instant::now();
    let mut tries = 0;
    let mut last = None;
    let trying = async {
        let mut pause = FIRST_PAUSE;
        loop {
            tries += 1;
            match check(&upstream, health).await {
                Ok(()) => return,
                Err(failure) => last = Some(failure),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(health.interval);
        }
    };
    let healthy = tokio::time::timeout(timeout, trying).await.is_ok();
    let failure = if healthy {
        None
    } else {
        Some(last.unwrap_or(ProbeFailure::Timeout {
            timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        }))
    };
    ProbedUpstream {
        upstream,
        tries,
        took: begun.elapsed(),
        failure,
    }
}

/// Watches an upstream in use until it drains; `siblings` are all upstreams of its service.
pub(crate) async fn watch(
    shared: Arc<Shared>,
    upstream: Arc<Upstream>,
    siblings: Vec<Arc<Upstream>>,
    health: HealthCheck,
) {
    let mut failures = 0;
    let mut pause = FIRST_PAUSE;
    loop {
        if upstream.is_proven() {
            pause = health.interval;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(health.interval);
        if upstream.is_draining() {
            return;
        }
        match check(&upstream.address, &health).await {
            Ok(()) => {
                failures = 0;
                if !upstream.is_healthy() {
                    tracing::info!(upstream = %upstream.address, "the upstream is healthy again");
                }
                upstream.set_health(true, None);
                if !upstream.is_proven() {
                    upstream.prove();
                    shared.changed.notify_waiters();
                }
            }
            Err(failure) => {
                failures += 1;
                let another = siblings
                    .iter()
                    .any(|other| other.id != upstream.id && other.is_healthy());
                let gone = matches!(failure, ProbeFailure::Connect { .. });
                let healthy = upstream.is_healthy() && (failures < FAILURES || !(another || gone));
                if upstream.is_healthy() && !healthy {
                    tracing::warn!(upstream = %upstream.address, %failure, "the upstream is unhealthy");
                }
                upstream.set_health(healthy, Some(failure));
            }
        }
    }
}
