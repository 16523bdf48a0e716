//! The agent's HTTP resources: reads under `/v1`, signed changes, the OCI store under `/v2`.

use std::sync::Arc;

use appliance_push::change::{Envelope, PAYLOAD_LIMIT, SIGNATURE_LIMIT};
use appliance_push::store::HaveQuery;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;

use super::permit::Sight;
use super::reads::{self, Read};
use super::server::Peer;
use super::{Agent, chain, change, logs};
use crate::wire::{AuditProof, Key};

/// A body of any of our answers.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// Base64 and JSON around the largest payload.
const CHANGE_LIMIT: usize = PAYLOAD_LIMIT / 3 * 4 + SIGNATURE_LIMIT + (64 << 10);
/// A query for the layers of the largest image.
const QUERY_LIMIT: usize = 1 << 20;

/// Answers one request.
pub async fn answer(agent: Arc<Agent>, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    // A key that was removed keeps its open connection, but learns nothing more over it.
    let Some(sight) = agent.sight(&peer) else {
        let fingerprint = match &peer {
            Peer::Remote { fingerprint } => fingerprint.as_str(),
            Peer::Local { .. } => "this process",
        };
        return problem(
            StatusCode::FORBIDDEN,
            "unknown-key",
            &format!(
                "{fingerprint} is not enrolled on this host; ask an administrator: appliance keys add FILE.pub"
            ),
        );
    };
    let request = match reads::answer(&agent, &sight, request).await {
        Read::Answer(answer) => return answer,
        Read::Other(request) => request,
    };
    let path = request.uri().path().to_owned();
    if path == "/v2" || path.starts_with("/v2/") {
        let visible = repository_of(&path).is_none_or(|name| sight.repository(&agent, name));
        return agent.images.serve(request, visible).await;
    }
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match (request.method(), segments.as_slice()) {
        (&Method::GET, ["v1", "host"]) => json(&agent.host().await),
        (&Method::GET, ["v1", "status"]) => {
            let mut status = agent.status().await;
            status.apps.retain(|app| sight.app(&app.app));
            status.accessories.retain(|accessory| sight.app(&accessory.app));
            json(&status)
        }
        (&Method::GET, ["v1", "apps", app]) => match agent.app(app).await {
            Ok(app) => json(&app),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "state", &chain(&*error)),
        },
        (&Method::GET, ["v1", "adoption"]) if sight.host() => match super::adopt::look(&agent).await {
            Ok(found) => json(&found),
            Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "adoption", &chain(&*error)),
        },
        (&Method::GET, ["v1", "ca"]) => match fs_err::tokio::read(agent.ca()).await {
            Ok(pem) => bytes("application/x-pem-file", pem),
            Err(error) => problem(
                StatusCode::NOT_FOUND,
                "no-ca",
                &format!("no local CA was needed yet: {error}"),
            ),
        },
        (&Method::GET, ["v1", "keys"]) => json(&keys(&agent, &sight)),
        (&Method::GET, ["v1", "certificates"]) => {
            let specs = agent.served(&|app| sight.app(app));
            let mut found = agent.certificates.list(&specs.iter().collect::<Vec<_>>());
            found.retain(|certificate| sight.host() || certificate.service.is_some());
            json(&found)
        }
        (&Method::GET, ["v1", "firewall"]) if sight.host() => blocking(super::firewall::show).await,
        (&Method::GET, ["v1", "firewall", "audit"]) if sight.host() => blocking(super::firewall::audit).await,
        (&Method::GET, ["v1", "alerts"]) if sight.host() => json(&super::alerts::list(&agent)),
        (&Method::GET, ["v1", "doctor"]) if sight.host() => json(&super::doctor::examine(&agent).await),
        (&Method::GET, ["v1", "adoption" | "firewall" | "alerts" | "doctor", ..]) => {
            reads::hidden("the whole host")
        }
        (&Method::GET, ["v1", "audit"]) => audit(agent, sight, request.uri().query()).await,
        (&Method::GET, ["v1", "audit", "verify"]) => verify_audit(agent).await,
        (&Method::POST, ["v1", "images", "have"]) => have(agent, request).await,
        (&Method::POST, ["v1", "images", "chunks"]) => {
            let repository = logs::pairs(request.uri().query()).remove("repository");
            if !sight.repository(&agent, &repository.unwrap_or_default()) {
                return reads::hidden("this repository");
            }
            agent.images.registry().chunks(request).await
        }
        (&Method::PUT, ["v1", "images", "deltas"]) => agent.images.registry().delta(request).await,
        (&Method::POST, ["v1", "changes"]) => submit(agent, request).await,
        (&Method::POST, ["v1", "rollouts"]) => {
            match super::lead::read(request.into_body(), CHANGE_LIMIT).await {
                Ok((envelope, lead)) => events(change::submit(agent, envelope, Some(lead))),
                Err(message) => problem(StatusCode::BAD_REQUEST, "envelope", &message),
            }
        }
        (_, ["v1", ..]) => problem(
            StatusCode::NOT_FOUND,
            "no-such-resource",
            &format!(
                "there is no {} {path} in this version of the agent",
                request.method()
            ),
        ),
        _ => problem(
            StatusCode::NOT_FOUND,
            "no-such-resource",
            "the agent serves /v1 and /v2",
        ),
    }
}

/// The repository in an address of the distribution API: what is before its last two words.
pub fn repository_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    let words = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let end = words.iter().filter_map(|word| rest.rfind(word)).max()?;
    Some(&rest[..end])
}

async fn read_body(request: Request<Incoming>, limit: usize) -> Result<Bytes, Response<Body>> {
    Limited::new(request.into_body(), limit)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| {
            problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body",
                &format!("the request's body cannot be read (at most {limit} bytes): {error}"),
            )
        })
}

async fn submit(agent: Arc<Agent>, request: Request<Incoming>) -> Response<Body> {
    let body = match read_body(request, CHANGE_LIMIT).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let envelope: Envelope = match serde_json::from_slice(&body) {
        Ok(envelope) => envelope,
        Err(error) => {
            return problem(
                StatusCode::BAD_REQUEST,
                "envelope",
                &format!("the body is not a signed change: {error}"),
            );
        }
    };
    events(change::submit(agent, envelope, None))
}

/// The events of a change as lines of JSON.
fn events(events: tokio::sync::mpsc::Receiver<crate::wire::Event>) -> Response<Body> {
    let lines = futures_util::stream::unfold(events, |mut events| async move {
        let event = events.recv().await?;
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(line))), events))
    });
    let mut answer = Response::new(StreamBody::new(lines).boxed());
    answer.headers_mut().insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static("application/x-ndjson"),
    );
    answer
}

/// What of an image this host already holds. Knowing a digest is no secret, so any enrolled key may ask.
async fn have(agent: Arc<Agent>, request: Request<Incoming>) -> Response<Body> {
    let body = match read_body(request, QUERY_LIMIT).await {
        Ok(body) => body,
        Err(answer) => return answer,
    };
    let query: HaveQuery = match serde_json::from_slice(&body) {
        Ok(query) => query,
        Err(error) => return problem(StatusCode::BAD_REQUEST, "query", &error.to_string()),
    };
    let answer = tokio::task::spawn_blocking(move || agent.images.have(&query)).await;
    match answer {
        Ok(Ok(answer)) => json(&answer),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, "store", &chain(&error)),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "store", &chain(&error)),
    }
}

/// An answer that takes a few programs to find.
async fn blocking<T: Serialize + Send + 'static>(
    ask: fn() -> Result<T, appliance_bootstrap::firewall::FirewallError>,
) -> Response<Body> {
    match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(answer)) => json(&answer),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, "firewall", &chain(&error)),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "firewall", &chain(&error)),
    }
}

/// Every key for those who may look at the host; others see their own.
fn keys(agent: &Agent, sight: &Sight) -> Vec<Key> {
    let entry = |entry: &appliance_push::trust::KeyEntry| Key {
        fingerprint: entry.fingerprint.clone(),
        permissions: entry.permissions.iter().map(ToString::to_string).collect(),
        comment: entry.comment.clone(),
    };
    match sight {
        Sight::Of(own) if !sight.host() => vec![entry(own)],
        _ => agent.gate.keys().keys.iter().map(entry).collect(),
    }
}

async fn audit(agent: Arc<Agent>, sight: Sight, query: Option<&str>) -> Response<Body> {
    let last = query
        .and_then(|query| query.strip_prefix("last="))
        .and_then(|number| number.parse().ok())
        .unwrap_or(50_usize);
    let read =
        tokio::task::spawn_blocking(move || appliance_state::audit::read(agent.gate.audit_path())).await;
    match read {
        Ok(Ok(mut records)) => {
            if !sight.host() {
                records.retain(|record| record.app.as_deref().is_some_and(|app| sight.app(app)));
            }
            json(&records[records.len().saturating_sub(last)..])
        }
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, "audit", &chain(&error)),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "audit", &chain(&error)),
    }
}

async fn verify_audit(agent: Arc<Agent>) -> Response<Body> {
    let verified =
        tokio::task::spawn_blocking(move || appliance_state::audit::verify(agent.gate.audit_path())).await;
    match verified {
        Ok(Ok(verified)) => json(&AuditProof::Whole {
            records: verified.records,
        }),
        Ok(Err(appliance_state::audit::AuditError::Broken { line, why, .. })) => json(&AuditProof::Broken {
            line,
            why: why.to_string(),
        }),
        Ok(Err(error)) => problem(StatusCode::INTERNAL_SERVER_ERROR, "audit", &chain(&error)),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "audit", &chain(&error)),
    }
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

fn bytes(kind: &'static str, content: Vec<u8>) -> Response<Body> {
    let mut answer = Response::new(full(content));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    answer
}

/// A value as JSON.
pub fn json<T: Serialize + ?Sized>(value: &T) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => bytes("application/json", text),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "encode", &error.to_string()),
    }
}

/// An error as JSON: `{"code": …, "message": …}`.
pub fn problem(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text = serde_json::json!({ "code": code, "message": message }).to_string();
    let mut answer = bytes("application/json", text.into_bytes());
    *answer.status_mut() = status;
    answer
}

#[cfg(test)]
mod tests {
    use super::repository_of;

    #[test]
    fn the_repository_is_found_in_every_address() {
        for (path, name) in [
            ("/v2/", None),
            ("/v2/shop/manifests/latest", Some("shop")),
            ("/v2/org/shop/blobs/sha256:ab", Some("org/shop")),
            ("/v2/org/shop/blobs/uploads/", Some("org/shop")),
            ("/v2/org/shop/tags/list", Some("org/shop")),
        ] {
            assert_eq!(repository_of(path), name, "{path}");
        }
    }
}
