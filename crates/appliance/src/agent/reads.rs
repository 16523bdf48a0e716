//! Reads about containers, images, routes and logs, each limited to what the peer may look at.

use std::sync::Arc;

use appliance_containers::session::TerminalSize;
use appliance_proxy::control::ServiceStatus;
use appliance_proxy::snapshot::Gate;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::accessories::{Which, tunnel};
use super::api::{Body, json, problem};
use super::logs::{self, Wanted, pairs};
use super::permit::Sight;
use super::{Agent, chain, container, exec, proxy_log};
use crate::wire::{ContainerRow, ImageRow, RouteRow, TargetRow};

/// The request itself where it is none of these.
pub enum Read {
    /// Answered.
    Answer(Response<Body>),
    /// For somebody else.
    Other(Request<Incoming>),
}

/// Answers the reads of this module, and begins sessions.
pub async fn answer(agent: &Arc<Agent>, sight: &Sight, request: Request<Incoming>) -> Read {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().map(str::to_owned);
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    if let ["v1", "apps", app, ..] = segments.as_slice()
        && !sight.app(app)
    {
        return Read::Answer(hidden(&format!("the app {app}")));
    }
    if let ["v1", "proxy", ..] = segments.as_slice()
        && !sight.host()
    {
        return Read::Answer(hidden("the proxy, which serves other apps too"));
    }
    let answered = match (request.method(), segments.as_slice()) {
        (&Method::GET, ["v1", "apps", app, "containers"]) => outcome(containers(agent, app).await),
        (&Method::GET, ["v1", "apps", app, "backups"]) => {
            let wanted = pairs(query.as_deref());
            match wanted.get("from").and_then(|from| from.split_once('/')) {
                Some((other, _)) if !sight.app(other) => hidden(&format!("the app {other}")),
                _ => outcome(agent.backup_lists(app, &wanted).await),
            }
        }
        (&Method::GET, ["v1", "apps", app, "backups", accessory, id]) => {
            outcome(agent.backup_manifest(app, accessory, id).await)
        }
        (&Method::GET, ["v1", "apps", app, "backups", accessory, id, "content"]) => {
            match agent.backup_content(app, accessory, id).await {
                Ok(answer) => answer,
                Err(error) => problem(StatusCode::NOT_FOUND, "backup", &format!("{error:#}")),
            }
        }
        (&Method::GET, ["v1", "apps", app, "images"]) => outcome(images(agent, app).await),
        (&Method::GET, ["v1", "apps", app, "logs"]) => match Wanted::parse(query.as_deref()) {
            Ok(wanted) => logs::of_app(Arc::clone(agent), app, wanted).await,
            Err(why) => problem(StatusCode::BAD_REQUEST, "query", &why),
        },
        (_, ["v1", "apps", app, "accessories", rest @ ..]) => {
            let app = (*app).to_owned();
            match *rest {
                [name, "tunnel"] if request.method() == Method::POST => {
                    let which = Which {
                        app,
                        name: name.to_owned(),
                    };
                    return Read::Answer(tunnel::serve(Arc::clone(agent), sight, which, request).await);
                }
                [name, "logs"] => match Wanted::parse(query.as_deref()) {
                    Ok(wanted) => accessory_logs(agent, &app, name, wanted).await,
                    Err(why) => problem(StatusCode::BAD_REQUEST, "query", &why),
                },
                [] => json(&agent.accessories(Some(&app)).await.0),
                _ => return Read::Other(request),
            }
        }
        (&Method::GET, ["v1", "proxy", "services"]) => outcome(routes(agent).await),
        (&Method::GET, ["v1", "proxy", "logs"]) => match Wanted::parse(query.as_deref()) {
            Ok(wanted) => proxy_log::answer(&wanted.query),
            Err(why) => problem(StatusCode::BAD_REQUEST, "query", &why),
        },
        (&Method::POST, ["v1", "sessions", name]) => {
            let pairs = pairs(query.as_deref());
            let side = |name: &str| pairs.get(name).and_then(|value| value.parse().ok());
            let size = side("rows")
                .zip(side("columns"))
                .map(|(rows, columns)| TerminalSize { rows, columns });
            exec::answer(Arc::clone(agent), name, size, request).await
        }
        _ => return Read::Other(request),
    };
    Read::Answer(answered)
}

async fn accessory_logs(agent: &Arc<Agent>, app: &str, name: &str, wanted: Wanted) -> Response<Body> {
    match agent.accessory_container(app, name).await {
        Ok(Some(found)) => logs::of_container(Arc::clone(agent), found.id.0, wanted.query),
        Ok(None) => problem(
            StatusCode::NOT_FOUND,
            "no-container",
            &format!("{app} has no accessory {name} on this host; run: appliance accessory boot {name}"),
        ),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "logs", &chain(&*error)),
    }
}

/// The refusal of a read.
pub fn hidden(what: &str) -> Response<Body> {
    problem(
        StatusCode::FORBIDDEN,
        "permission",
        &format!(
            "this key may not look at {what}; an administrator can allow it: appliance keys add FILE.pub"
        ),
    )
}

fn outcome<T: serde::Serialize>(found: anyhow::Result<T>) -> Response<Body> {
    match found {
        Ok(found) => json(&found),
        Err(error) => problem(StatusCode::INTERNAL_SERVER_ERROR, "state", &chain(&*error)),
    }
}

async fn containers(agent: &Agent, app: &str) -> anyhow::Result<Vec<ContainerRow>> {
    let state = agent.apps.read(app)?;
    let current = state.numbers.current.as_ref();
    let version = |number: Option<&String>| {
        let number = number?.parse().ok()?;
        let release = agent
            .apps
            .release(app, appliance_rollout::ReleaseNumber(number))
            .ok()?;
        Some(release.release.version.to_string())
    };
    let rows = agent
        .containers(app)
        .await?
        .into_iter()
        .map(|found| ContainerRow {
            id: found.id.short().to_owned(),
            role: found.labels.get(container::ROLE).cloned(),
            version: version(found.labels.get(container::RELEASE)),
            state: format!("{:?}", found.state).to_lowercase(),
            current: current.is_some_and(|current| container::plays(&found.labels, current)),
            name: found.name,
            image: found.image,
            status: found.status,
        });
    Ok(rows.collect())
}

async fn images(agent: &Agent, app: &str) -> anyhow::Result<Vec<ImageRow>> {
    let state = agent.apps.read(app)?;
    let serve: Vec<_> = state
        .numbers
        .current
        .iter()
        .flat_map(appliance_rollout::Deployment::releases)
        .collect();
    let mut wanted = Vec::new();
    for number in &state.releases {
        let release = agent.apps.release(app, *number)?.release;
        wanted.push((release.image.digest.to_string(), serve.contains(number)));
    }
    let mut rows = Vec::new();
    for found in agent.docker.images().await? {
        let mut matching = wanted.iter().filter(|(digest, _)| {
            let named = |name: &String| name.split_once('@').is_some_and(|(_, of)| of == digest);
            found.digests.iter().any(named)
        });
        let Some((digest, mut serves)) = matching.next().cloned() else {
            continue;
        };
        serves |= matching.any(|(_, serves)| *serves);
        rows.push(ImageRow {
            names: found.tags,
            id: found.id.trim_start_matches("sha256:").chars().take(12).collect(),
            digest,
            created: found.created,
            size: found.size,
            current: serves,
        });
    }
    Ok(rows)
}

async fn routes(agent: &Agent) -> anyhow::Result<Vec<RouteRow>> {
    Ok(agent.proxy.list().await?.iter().map(route).collect())
}

fn route(status: &ServiceStatus) -> RouteRow {
    let service = &status.service;
    RouteRow {
        service: service.name.to_string(),
        hosts: service.hosts.iter().map(ToString::to_string).collect(),
        paths: service.path_prefixes.iter().map(ToString::to_string).collect(),
        targets: status
            .upstreams
            .iter()
            .map(|upstream| TargetRow {
                address: upstream.upstream.to_string(),
                healthy: upstream.healthy,
                in_flight: upstream.in_flight,
            })
            .collect(),
        state: match service.gate {
            Gate::Open => "running",
            Gate::Stopped { .. } => "stopped",
            _ => "paused",
        }
        .to_owned(),
        tls: service.tls.is_some(),
        problems: status.problems.clone(),
    }
}
