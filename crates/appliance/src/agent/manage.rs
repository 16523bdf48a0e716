//! Containers started and stopped on request, and what no rollback needs removed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use appliance_containers::engine::State;
use appliance_proxy::names::ServiceName;
use appliance_push::change::{ContainersAction, RoleName};

use super::change::{done, not_deployed};
use super::parts::Part;
use super::{Agent, container, effects, exec, images};
use crate::wire::End;
use appliance_rollout::Deployment;

/// Starts or stops containers of an app.
///
/// # Errors
/// When Docker or the proxy do not answer or refuse.
pub async fn containers(
    agent: &Arc<Agent>,
    app: &str,
    action: ContainersAction,
    roles: &[RoleName],
) -> anyhow::Result<End> {
    let state = agent.apps.read(app)?;
    let Some(current) = &state.numbers.current else {
        return Ok(not_deployed(app));
    };
    if action == ContainersAction::StopStale {
        return stop_stale(agent, app, current, roles).await;
    }
    let mut names = Vec::new();
    for Part {
        accepted,
        role,
        instance,
    } in &agent.apps.parts(app, current)?
    {
        if !wanted(roles, role.name.as_str()) {
            continue;
        }
        let Some(found) = agent.find(app, instance).await? else {
            anyhow::bail!(
                "the container of the role {} is gone; `appliance app boot` makes a new one",
                role.name
            );
        };
        if action == ContainersAction::Start {
            agent.docker.start(&found.id.0).await?;
            if role.proxy.is_some()
                && let Some(found) = agent.find(app, instance).await?
            {
                let secrets = agent.open_secrets(accepted)?;
                let address = effects::address(&found)?;
                // As Kamal does: visitors come when it is well, and the command says so when it is not.
                if let Some(proxy) = &role.proxy {
                    let patience = Duration::from_secs(accepted.release.deploy_timeout.into());
                    agent
                        .healthy(&found.name, proxy, address, patience)
                        .await
                        .context("it is started and gets no visitors; next: appliance app logs")?;
                }
                agent.put_route(accepted, role, address, &secrets).await?;
            }
        } else {
            let service = role.proxy.as_ref().map(|proxy| &proxy.service_name);
            let service = service.map(|name| ServiceName::parse(name)).transpose()?;
            // The route first, so that nobody is sent to a container that stops.
            if let Some(service) = &service {
                agent.proxy.remove_service(service).await?;
            }
            let grace = container::grace(&accepted.release, role);
            agent.docker.stop(&found.id.0, grace).await?;
            // A look at the routes that was under way when this began may have put it back meanwhile.
            if let Some(service) = &service {
                agent.proxy.remove_service(service).await?;
            }
        }
        names.push(found.name);
    }
    if names.is_empty() {
        anyhow::bail!("{app} has none of these roles on this host");
    }
    let what = if action == ContainersAction::Start {
        "started"
    } else {
        "stopped"
    };
    Ok(done(format!("{what} {}", names.join(", "))))
}

fn wanted(roles: &[RoleName], role: &str) -> bool {
    roles.is_empty() || roles.iter().any(|name| name.as_str() == role)
}

async fn stop_stale(
    agent: &Arc<Agent>,
    app: &str,
    current: &Deployment,
    roles: &[RoleName],
) -> anyhow::Result<End> {
    let mut stopped = Vec::new();
    for found in agent.containers(app).await? {
        let Some(role) = found.labels.get(container::ROLE) else {
            continue;
        };
        let stale = !container::plays(&found.labels, current);
        if stale && wanted(roles, role) && matches!(found.state, State::Running | State::Restarting) {
            agent.docker.stop(&found.id.0, None).await?;
            stopped.push(found.name);
        }
    }
    Ok(done(if stopped.is_empty() {
        "no stale container runs".to_owned()
    } else {
        format!("stopped {}", stopped.join(", "))
    }))
}

/// Removes stopped containers beyond `retain`, left-over one-off containers, and images that nothing needs.
///
/// # Errors
/// When Docker, the ledgers or the store fail.
pub async fn prune(
    agent: &Arc<Agent>,
    app: &str,
    containers: bool,
    images: bool,
    retain: Option<u32>,
) -> anyhow::Result<End> {
    let state = agent.apps.read(app)?;
    let Some(current) = &state.numbers.current else {
        return Ok(not_deployed(app));
    };
    let mut said = Vec::new();
    if containers {
        let before = agent.containers(app).await?;
        for found in &before {
            let over = matches!(found.state, State::Exited | State::Dead | State::Created);
            if over && found.labels.contains_key(exec::EXEC) {
                agent.docker.remove(&found.id.0, false).await?;
            }
        }
        agent.prune(app, current.release, retain).await?;
        let after = agent.containers(app).await?.len();
        said.push(format!(
            "{} containers removed, {after} kept",
            before.len().saturating_sub(after)
        ));
    }
    if images {
        agent.images.collect(&agent.apps, images::MIN_AGE_FULL).await?;
        said.push("images that no release needs are removed".to_owned());
    }
    Ok(done(format!("{app}: {}", said.join("; "))))
}
