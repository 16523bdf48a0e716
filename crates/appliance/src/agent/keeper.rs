//! Keeps the proxy's routes true to the containers, and goes on with rollouts after a restart.
//!
//! Docker may give a container another address whenever it starts it again, so every start is followed by a look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use appliance_containers::engine::{ContainerEvent, Event, Happening, State};
use appliance_push::change::ProxySpec;
use appliance_rollout::effect::Observed;
use appliance_rollout::{Instance, Phase, RolloutNumber, Seen};
use appliance_state::Outcome;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::drive::{self, Audience};
use super::{Agent, chain, container, effects};

/// A full look even if no event told anything.
const FULL_PASS: Duration = Duration::from_secs(30);

/// Follows Docker until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    // Kamal's label is on every container of ours, and on those that were adopted from it.
    let mut events = agent.docker.events(vec![container::ROLE.to_owned()]);
    let mut full_pass = tokio::time::interval(FULL_PASS);
    full_pass.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answers = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(Event::Connected) => {
                    tracing::info!("Docker answers");
                    answers = true;
                    tend_all(&agent).await;
                }
                Some(Event::Disconnected { reason }) => {
                    answers = false;
                    tracing::warn!("Docker does not answer; what runs is served on: {reason}");
                }
                Some(Event::Container(event)) => container_event(&agent, &event).await,
                None => return,
            },
            _ = full_pass.tick() => {
                if answers {
                    tend_all(&agent).await;
                }
            }
        }
    }
}

async fn container_event(agent: &Arc<Agent>, event: &ContainerEvent) {
    let adopted = || adopted(agent, &event.id.0);
    let own = |label: &str| event.labels.get(label).cloned();
    let Some((app, rollout)) = own(container::APP)
        .map(|app| {
            (
                app,
                own(container::ROLLOUT).and_then(|number| number.parse().ok()),
            )
        })
        .or_else(adopted)
    else {
        return;
    };
    let app = app.as_str();
    match &event.what {
        Happening::Died { code } => {
            if let (Some(rollout), Some(role)) = (rollout, event.labels.get(container::ROLE)) {
                let died = appliance_rollout::Event::Died {
                    instance: Instance {
                        role: role.clone(),
                        rollout: RolloutNumber(rollout),
                    },
                    why: format!("{} ended with exit code {code}", event.name),
                };
                agent.drives.tell(app, died).await;
            }
        }
        Happening::Started => {
            agent.drives.tell(app, appliance_rollout::Event::Moved).await;
            tend(agent, app).await;
        }
        _ => {}
    }
}

/// The app and rollout of a container that was adopted.
fn adopted(agent: &Agent, id: &str) -> Option<(String, Option<u64>)> {
    let apps = agent.apps.ids().ok()?;
    apps.into_iter().find_map(|app| {
        let adopted = agent.apps.read(&app).ok()?.adopted?;
        let known = adopted.containers.values().any(|container| container == id);
        known.then_some((app, Some(adopted.rollout.0)))
    })
}

async fn tend_all(agent: &Arc<Agent>) {
    match agent.apps.ids() {
        Ok(apps) => {
            for app in apps {
                tend(agent, &app).await;
            }
        }
        Err(error) => tracing::error!("{}", chain(&error)),
    }
}

/// Goes on with an unfinished rollout, else points the routes at the containers; a rollout at work is left alone.
async fn tend(agent: &Arc<Agent>, app: &str) {
    if agent.drives.busy(app) {
        return;
    }
    let outcome = match agent.apps.read(app) {
        Ok(state) if state.rollout.as_ref().is_some_and(|rollout| !rollout.is_over()) => {
            resume(agent, app).await
        }
        Ok(_) => reconcile(agent, app).await,
        Err(error) => Err(error.into()),
    };
    if let Err(error) = outcome {
        tracing::warn!(app, "{app}: {}", chain(&*error));
    }
}

/// Points the routes of the current release at its containers.
async fn reconcile(agent: &Arc<Agent>, app: &str) -> anyhow::Result<()> {
    let state = agent.apps.read(app)?;
    let Some(current) = state.numbers.current else {
        return Ok(());
    };
    let accepted = agent.apps.release(app, current.release)?;
    let services = agent.proxy.list().await?;
    for role in &accepted.release.roles {
        let (Some(spec), Some(instance)) = (&role.proxy, current.instance(role.name.as_str())) else {
            continue;
        };
        let Some(found) = agent.find(app, &instance).await? else {
            continue;
        };
        let Ok(address) = effects::address(&found) else {
            continue;
        };
        let upstream = super::route::upstream(spec, address);
        let live = services.iter().find(|status| {
            status.service.name.as_str() == spec.service_name
                // After a reboot the proxy waits for us to say again what it knows already.
                && !status.held
                && status.service.upstreams == [upstream.clone()]
        });
        // Between the look and the change a rollout may have begun; it sets the route itself.
        if agent.drives.busy(app) {
            continue;
        }
        if let Some(live) = live {
            // What host.yml says of certificates may have changed since the release came; all else stays as it is.
            let wanted = agent.service(&accepted, spec, address)?.tls;
            if live.service.tls != wanted {
                let mut service = live.service.clone();
                service.tls = wanted;
                if agent.proxy.put_service(&service).await?.changed {
                    record_route(agent, app, spec, "why", "host.yml changed")?;
                }
            }
            continue;
        }
        let secrets = agent.open_secrets(&accepted)?;
        agent.put_route(&accepted, role, address, &secrets).await?;
        record_route(agent, app, spec, "upstream", &upstream.to_string())?;
    }
    Ok(())
}

/// A route that nobody's signed change asked for is a record too.
fn record_route(agent: &Agent, app: &str, spec: &ProxySpec, key: &str, what: &str) -> anyhow::Result<()> {
    let detail = serde_json::json!({ "service": spec.service_name, key: what });
    agent
        .gate
        .record("route", app, Outcome::Done, detail, Timestamp::now())?;
    Ok(())
}

/// Goes on with a rollout that an earlier agent left unfinished.
///
/// # Errors
/// When its state cannot be read, or Docker does not answer; it is left as it is then.
pub async fn resume(agent: &Arc<Agent>, app: &str) -> anyhow::Result<()> {
    let Some(rollout) = agent.apps.read(app)?.rollout else {
        return Ok(());
    };
    if rollout.is_over() {
        return Ok(());
    }
    let mut containers = BTreeMap::new();
    let plan = rollout.plan();
    for deployment in [Some(&plan.new), plan.old.as_ref()].into_iter().flatten() {
        for instance in deployment.instances() {
            if let Some(found) = agent.find(app, &instance).await? {
                containers.insert(instance, seen(found.state));
            }
        }
    }
    let phase = drive::phase_name(rollout.phase());
    tracing::warn!(
        app,
        phase,
        "{app}: the agent was interrupted when the rollout was {phase}; going on"
    );
    let (rollout, orders) = rollout.resume(&Observed { containers }, Timestamp::now());
    let agent = Arc::clone(agent);
    let app = app.to_owned();
    tokio::spawn(async move {
        match drive::drive(&agent, &app, rollout, orders, Audience::nobody(), None).await {
            Ok(rollout) => {
                let detail = serde_json::json!({
                    "release": rollout.plan().new.release.0,
                    "phase": drive::phase_name(rollout.phase()),
                    "why": rollout.failure().map(|failure| failure.why.clone()),
                    "interrupted_at": phase,
                });
                let outcome = if rollout.phase() == Phase::Settled {
                    Outcome::Done
                } else {
                    Outcome::Failed
                };
                if let Err(error) = agent
                    .gate
                    .record("resume", &app, outcome, detail, Timestamp::now())
                {
                    tracing::error!(app, "{app}: cannot record the rollout's end: {}", chain(&error));
                }
            }
            Err(error) => tracing::error!(app, "{app}: {}", chain(&error)),
        }
        if let Err(error) = reconcile(&agent, &app).await {
            tracing::warn!(app, "{app}: {}", chain(&*error));
        }
    });
    Ok(())
}

fn seen(state: State) -> Seen {
    match state {
        State::Created => Seen::Created,
        State::Running | State::Restarting | State::Paused => Seen::Running,
        State::Exited | State::Dead | State::Removing => Seen::Stopped,
    }
}
