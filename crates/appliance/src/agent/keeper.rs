//! Keeps the proxy's routes true to the containers, and goes on with rollouts after a restart.
//!
//! Docker may give a container another address whenever it starts it again, so every start is followed by a look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use appliance_containers::engine::{ContainerEvent, Event, Happening, State};
use appliance_proxy::control::ServiceStatus;
use appliance_proxy::snapshot::Service;
use appliance_push::change::ProxySpec;
use appliance_rollout::effect::Observed;
use appliance_rollout::{Instance, Phase, RolloutNumber, Seen};
use appliance_state::Outcome;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::drive::{self, Audience};
use super::parts::Part;
use super::{Agent, chain, container, effects, unowned};

/// A full look even if no event told anything.
const FULL_PASS: Duration = Duration::from_secs(30);

/// Follows Docker until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    // Kamal's label is on every container of ours, and on those that were adopted from it.
    let mut events = agent.docker.events(vec![container::ROLE.to_owned()]);
    let mut full_pass = tokio::time::interval(FULL_PASS);
    full_pass.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut answers = false;
    let mut suspects = BTreeSet::new();
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
                    if let Err(error) = unowned::sweep(&agent, &mut suspects).await {
                        tracing::warn!("cannot look for services that nobody has: {}", chain(&*error));
                    }
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
            if let (Some(rollout), Some(role)) = (rollout, event.labels.get(container::ROLE)) {
                let moved = appliance_rollout::Event::Moved {
                    instance: Instance {
                        role: role.clone(),
                        rollout: RolloutNumber(rollout),
                    },
                };
                agent.drives.tell(app, moved).await;
            }
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

/// Whether somebody else is at work on the app: a rollout, or a change such as one that stops its containers.
fn is_taken(agent: &Agent, app: &str) -> bool {
    agent.drives.busy(app) || agent.leases.holder(app).is_some()
}

/// Goes on with an unfinished rollout, else points the routes at the containers; an app at work is left alone.
async fn tend(agent: &Arc<Agent>, app: &str) {
    if is_taken(agent, app) {
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

/// Makes the routes of the current release what it says, to its containers.
async fn reconcile(agent: &Arc<Agent>, app: &str) -> anyhow::Result<()> {
    let state = agent.apps.read(app)?;
    // What is current may not be what has the traffic.
    if state.rollout.as_ref().is_some_and(|rollout| !rollout.is_over()) {
        return Ok(());
    }
    let Some(current) = state.numbers.current else {
        return Ok(());
    };
    let services = agent.proxy.list().await?;
    for Part {
        accepted,
        role,
        instance,
    } in &agent.apps.parts(app, &current)?
    {
        let Some(spec) = &role.proxy else {
            continue;
        };
        let Some(found) = agent.find(app, instance).await? else {
            continue;
        };
        let Ok(address) = effects::address(&found) else {
            continue;
        };
        let wanted = agent.service(accepted, spec, address)?;
        let Some(drift) = drift(&services, wanted) else {
            continue;
        };
        let secrets = agent.open_secrets(accepted)?;
        // Between the look and the change somebody may have begun who sets the route, or takes it away.
        if is_taken(agent, app) {
            continue;
        }
        if agent.put_route(accepted, role, address, &secrets).await? {
            record_route(agent, app, spec, &drift)?;
        }
    }
    Ok(())
}

/// In what the proxy's service is not as wanted; `None` when it is.
///
/// All of it counts but the gate: a pause or stop is the operator's, and outlives what the release says.
fn drift(live: &[ServiceStatus], mut wanted: Service) -> Option<String> {
    let Some(found) = live.iter().find(|status| status.service.name == wanted.name) else {
        return Some("the proxy did not know it".to_owned());
    };
    if found.held {
        // After a reboot the proxy waits for us to say again what it knows already.
        return Some("the host was rebooted".to_owned());
    }
    if found.service.upstreams != wanted.upstreams {
        let addresses: Vec<String> = wanted.upstreams.iter().map(ToString::to_string).collect();
        return Some(format!("the container is at {}", addresses.join(", ")));
    }
    wanted.gate = found.service.gate.clone();
    if found.service == wanted {
        None
    } else if found.service.tls != wanted.tls {
        Some("host.yml says otherwise of its certificates".to_owned())
    } else {
        Some("it was not as its release says".to_owned())
    }
}

/// A route that nobody's signed change asked for is a record too.
fn record_route(agent: &Agent, app: &str, spec: &ProxySpec, why: &str) -> anyhow::Result<()> {
    let detail = serde_json::json!({ "service": spec.service_name, "why": why });
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
            Err(error) => {
                // Nobody knows which of the two has the traffic until it goes on.
                tracing::error!(app, "{app}: {}", chain(&error));
                return;
            }
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

#[cfg(test)]
mod tests {
    use appliance_proxy::snapshot::Gate;

    use super::*;
    use crate::agent::{certificates, route};

    #[test]
    fn a_route_is_compared_whole_but_for_its_gate() {
        let spec = certificates::example(&["shop.io"]);
        let wanted = route::service(&spec, &[[10, 0, 0, 2].into()], Vec::new()).unwrap();
        let status = |change: &dyn Fn(&mut ServiceStatus)| {
            let mut status = ServiceStatus {
                service: wanted.clone(),
                held: false,
                upstreams: Vec::new(),
                draining: Vec::new(),
                problems: Vec::new(),
            };
            change(&mut status);
            [status]
        };
        let drift = |change: &dyn Fn(&mut ServiceStatus)| drift(&status(change), wanted.clone());
        assert_eq!(drift(&|_| {}), None);
        let stopped = Gate::Stopped {
            message: "closed".to_owned(),
        };
        assert_eq!(drift(&|status| status.service.gate = stopped.clone()), None);
        assert!(drift(&|status| status.held = true).unwrap().contains("rebooted"));
        let elsewhere = route::upstream(&spec, [10, 0, 0, 3].into());
        let moved = drift(&|status| status.service.upstreams = vec![elsewhere.clone()]);
        assert!(moved.unwrap().contains("10.0.0.2"));
        assert!(
            drift(&|status| status.service.tls = None)
                .unwrap()
                .contains("host.yml")
        );
        for change in [
            &(|status: &mut ServiceStatus| status.service.hosts.clear()) as &dyn Fn(&mut ServiceStatus),
            &|status| status.service.log.query = true,
            &|status| status.service.response_timeout = Duration::from_secs(1),
            &|status| status.service.limits.max_request_body = Some(1),
            &|status| status.service.strip_path_prefix = false,
        ] {
            assert!(drift(change).unwrap().contains("release"));
        }
        assert!(super::drift(&[], wanted.clone()).is_some());
    }
}
