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
use http::{HeaderValue, Request, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::control::{ProbeFailure, ProbedUpstream};
use crate::names::UpstreamAddress;
use crate::snapshot::HealthCheck;
use crate::upstream::Upstream;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const FAILURES: u32 = 3;

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
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static("appliance-proxy health check"),
    );
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
pub(crate) async fn watch(upstream: Arc<Upstream>, siblings: Vec<Arc<Upstream>>, health: HealthCheck) {
    let mut failures = 0;
    loop {
        tokio::time::sleep(health.interval).await;
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
