//! The server side of the control socket.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Applied, CertificatePem, Drain, Probe, Probed, Refusal, RefusalCode, Status};
use crate::health;
use crate::manager::Manager;
use crate::names::{CertificateName, NameError, ServiceName};
use crate::on_demand::{Unwanted, Wanted};
use crate::snapshot::{Gate, Service};

/// Most bytes of a request's body; a certificate chain or a service needs far less.
const MOST_BYTES: usize = 4 << 20;

/// Opens the socket; only its owner and root may connect.
///
/// It is made beside its place and renamed, so that there is no moment with wider permissions, and a predecessor's
/// socket is replaced in one step.
///
/// # Errors
/// The failing system call's error.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = Path::new(&fresh);
    crate::durable::remove(fresh)?;
    let listener = UnixListener::bind(fresh)?;
    fs_err::set_permissions(fresh, std::fs::Permissions::from_mode(0o600))?;
    fs_err::rename(fresh, path)?;
    Ok(listener)
}

/// Answers until `stop`.
pub(crate) async fn serve(listener: UnixListener, manager: Arc<Manager>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) if allowed(&stream) => {
                tasks.spawn(converse(stream, Arc::clone(&manager)));
            }
            Ok(_) => tracing::warn!("refused a control connection of another user"),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot accept a control connection"
                );
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    // Steps under way (a drain, say) get their answer before the process ends.
    tasks.close();
    tasks.wait().await;
}

/// Only root and the proxy's own user.
fn allowed(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

async fn converse(stream: UnixStream, manager: Arc<Manager>) {
    let service = service_fn(|request| {
        let manager = Arc::clone(&manager);
        async move { Ok::<_, Infallible>(answer(&manager, request).await) }
    });
    let outcome = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = outcome {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "a control connection ended"
        );
    }
}

type Answer = Response<Full<Bytes>>;

async fn answer(manager: &Manager, request: Request<Incoming>) -> Answer {
    match route(manager, request).await {
        Ok(answer) => answer,
        Err(refusal) => {
            tracing::info!(code = ?refusal.code, message = refusal.message, "refused a control request");
            let status = match refusal.code {
                RefusalCode::Invalid | RefusalCode::Certificate => StatusCode::UNPROCESSABLE_ENTITY,
                RefusalCode::Conflict | RefusalCode::InUse => StatusCode::CONFLICT,
                RefusalCode::NotFound => StatusCode::NOT_FOUND,
                RefusalCode::Storage => StatusCode::INSUFFICIENT_STORAGE,
            };
            json(status, &refusal)
        }
    }
}

async fn route(manager: &Manager, request: Request<Incoming>) -> Result<Answer, Refusal> {
    let (head, body) = request.into_parts();
    let path: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    match (&head.method, &path[..]) {
        (&Method::GET, ["v1", "status"]) => fine(&status(manager).await),
        (&Method::GET, ["v1", "snapshot"]) => fine(&manager.snapshot().await),
        (&Method::POST, ["v1", "probe"]) => fine(&probe(read(body).await?).await?),
        (&Method::GET, ["v1", "services"]) => fine(&manager.list().await),
        (&Method::PUT, ["v1", "services"]) => fine(&manager.put_services(read(body).await?).await?),
        (&Method::PUT, ["v1", "services", name]) => {
            let service: Service = read(body).await?;
            if service.name != named(ServiceName::parse(name))? {
                return Err(invalid("the service's name differs from the one in the path"));
            }
            changed("put", &service.name.clone(), manager.put_service(service).await?)
        }
        (&Method::DELETE, ["v1", "services", name]) => {
            let name = named(ServiceName::parse(name))?;
            changed("removed", &name, manager.remove_service(&name).await?)
        }
        (&Method::GET, ["v1", "services", name, "stats"]) => {
            fine(&manager.stats(&named(ServiceName::parse(name))?)?)
        }
        (&Method::POST, ["v1", "services", name, "drain"]) => {
            let drain: Drain = read(body).await?;
            let name = named(ServiceName::parse(name))?;
            fine(&manager.drain(&name, &drain.upstream, drain.timeout).await?)
        }
        (&Method::POST, ["v1", "services", name, "gate"]) => {
            let gate: Gate = read(body).await?;
            let name = named(ServiceName::parse(name))?;
            changed("gated", &name, manager.set_gate(&name, gate).await?)
        }
        (&Method::PUT, ["v1", "certificates", name]) => {
            let pem: CertificatePem = read(body).await?;
            fine(
                &manager
                    .put_certificate(&named(CertificateName::parse(name))?, &pem)
                    .await?,
            )
        }
        (&Method::DELETE, ["v1", "certificates", name]) => fine(
            &manager
                .remove_certificate(&named(CertificateName::parse(name))?)
                .await?,
        ),
        (&Method::PUT, ["v1", "settings"]) => fine(&manager.put_settings(read(body).await?).await?),
        (&Method::PUT, ["v1", "challenge"]) => fine(&manager.put_challenge(&read(body).await?)?),
        (&Method::DELETE, ["v1", "challenge"]) => fine(&manager.remove_challenge(&read(body).await?)),
        (&Method::GET, ["v1", "wanted", seconds]) => {
            let seconds: u64 = seconds
                .parse()
                .map_err(|_| invalid("the seconds to wait are no number"))?;
            let most = Duration::from_secs(seconds.min(300));
            tokio::select! {
                wanted = manager.shared.demand.take(most) => fine(&wanted),
                () = manager.shared.stopping.cancelled() => fine(&Wanted::default()),
            }
        }
        (&Method::PUT, ["v1", "unwanted"]) => {
            let Unwanted { name, seconds } = read(body).await?;
            manager.shared.demand.refuse(&name, Instant::now(), seconds);
            manager.shared.changed.notify_waiters();
            fine(&())
        }
        (method, _) => Err(Refusal {
            code: RefusalCode::NotFound,
            message: format!("there is no {method} {}", head.uri.path()),
            service: None,
        }),
    }
}

async fn probe(probe: Probe) -> Result<Probed, Refusal> {
    if probe.upstreams.is_empty() {
        return Err(invalid("name at least one upstream to probe"));
    }
    let tries = probe
        .upstreams
        .into_iter()
        .map(|upstream| health::until_healthy(upstream, &probe.health_check, probe.timeout));
    Ok(Probed {
        upstreams: futures_util::future::join_all(tries).await,
    })
}

async fn status(manager: &Manager) -> Status {
    let shared = &manager.shared;
    let table = shared.table.load();
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        uptime: shared.started.elapsed(),
        generation: table.generation,
        rss: resident_bytes().unwrap_or(0),
        connections: shared.connections.load(Ordering::Relaxed) as u64,
        services: table.routes.len(),
        problems: manager.problems().await,
    }
}

/// Resident memory of this process, from `/proc/self/status`.
pub(crate) fn resident_bytes() -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Refusal> {
    let bytes = Limited::new(body, MOST_BYTES)
        .collect()
        .await
        .map_err(|error| invalid(format!("cannot read the request: {error}")))?
        .to_bytes();
    serde_json::from_slice(&bytes).map_err(|error| invalid(format!("cannot read the request: {error}")))
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal {
        code: RefusalCode::Invalid,
        message: message.into(),
        service: None,
    }
}

fn named<T>(name: Result<T, NameError>) -> Result<T, Refusal> {
    name.map_err(|error| invalid(error.to_string()))
}

fn changed(what: &str, service: &ServiceName, applied: Applied) -> Result<Answer, Refusal> {
    if applied.changed {
        tracing::info!(%service, generation = applied.generation, "service {what}");
    }
    fine(&applied)
}

fn fine<T: Serialize>(value: &T) -> Result<Answer, Refusal> {
    Ok(json(StatusCode::OK, value))
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> Answer {
    let bytes = serde_json::to_vec(value).expect("our own types turn into JSON");
    let mut answer = Response::new(Full::new(Bytes::from(bytes)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}
