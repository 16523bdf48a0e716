//! Keeps accessories as they should be: follows Docker's events, and looks at all of them now and then.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use appliance_accessories::keep::decide;
use appliance_accessories::{Goal, Life, Seen, Step};
use appliance_containers::engine::{ContainerInfo, Event, Happening, State};
use appliance_state::Outcome;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::{OURSELVES, Which, making};
use crate::agent::drive::{Audience, std_duration};
use crate::agent::{Agent, chain};

/// A full look even if no event told anything.
const FULL_PASS: Duration = Duration::from_secs(30);

/// Follows Docker until `stop`.
pub async fn keep(agent: Arc<Agent>, stop: CancellationToken) {
    // A container that Kamal made carries no label of ours, so all are listened to.
    let mut events = agent.docker.events(Vec::new());
    let mut answers = false;
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => match event {
                Some(Event::Connected) => {
                    answers = true;
                    next = tokio::time::Instant::now();
                }
                Some(Event::Disconnected { .. }) => answers = false,
                Some(Event::Container(event)) => {
                    if matters(&event.what) && ours(&agent, &event.id.0, &event.name) {
                        next = tokio::time::Instant::now();
                    }
                }
                None => return,
            },
            () = agent.accessories.wake.notified() => next = tokio::time::Instant::now(),
            () = tokio::time::sleep_until(next), if answers => {
                let wait = look_at_all(&agent).await;
                next = tokio::time::Instant::now() + wait;
            }
        }
    }
}

fn matters(what: &Happening) -> bool {
    !matches!(
        what,
        Happening::Created | Happening::Signalled | Happening::Health(_)
    )
}

fn ours(agent: &Agent, id: &str, name: &str) -> bool {
    let Ok((all, _)) = agent.accessories.records.all() else {
        return false;
    };
    all.iter().any(|which| {
        agent.accessories.records.read(which).is_ok_and(|record| {
            record.made.is_some_and(|made| made.container == id)
                || record
                    .definition
                    .is_some_and(|definition| definition.container.as_str() == name)
        })
    })
}

/// Looks at every accessory; answers with when to look again.
async fn look_at_all(agent: &Arc<Agent>) -> Duration {
    let (all, damaged) = match agent.accessories.records.all() {
        Ok(found) => found,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return FULL_PASS;
        }
    };
    for error in damaged {
        tracing::error!("{}", chain(&error));
    }
    let mut soonest = FULL_PASS;
    for which in all.into_iter().collect::<BTreeSet<_>>() {
        match look_at(agent, &which).await {
            Ok(Some(next)) => {
                soonest = soonest.min(std_duration(Timestamp::now().duration_until(next)));
            }
            Ok(None) => {}
            Err(error) => {
                let text = chain(&*error);
                tracing::warn!("{which}: {text}");
                agent.accessories.note(&which, |live| live.problem = Some(text));
            }
        }
    }
    soonest
}

/// Looks at one accessory and takes the step it needs; answers with when to look again.
async fn look_at(agent: &Arc<Agent>, which: &Which) -> anyhow::Result<Option<Timestamp>> {
    let Ok(_lease) = agent.lease_accessory(which, OURSELVES, "keep") else {
        return Ok(None);
    };
    let record = agent.accessories.records.read(which)?;
    let Some(definition) = record.definition.clone() else {
        return Ok(None);
    };
    if record
        .upgrade
        .as_ref()
        .is_some_and(|moving| moving.state.in_progress())
    {
        agent.resume_upgrade(which).await?;
        return Ok(None);
    }
    let Some(made) = &record.made else {
        return Ok(None);
    };
    let found = agent.container_of(&record).await?;
    let live = agent.accessories.live(which);
    let now = Timestamp::now();
    let policy = making::policy(made.definition.as_deref().unwrap_or(&definition));
    let (step, backoff) = decide(record.goal, policy, seen(found.as_ref()), live.backoff, now);
    agent.accessories.note(which, |live| {
        live.backoff = backoff;
        live.problem = match &step {
            Step::Leave(why) => Some((*why).to_owned()),
            _ => None,
        };
    });
    let mut acted = None;
    let outcome = match (&step, &found) {
        (Step::Wait(next), _) => return Ok(Some(*next)),
        (Step::Start, Some(found)) => {
            acted = Some("start");
            agent.docker.start(&found.id.0).await.map_err(Into::into)
        }
        (Step::Stop, Some(found)) => {
            acted = Some("stop");
            agent.docker.stop(&found.id.0, None).await.map_err(Into::into)
        }
        (Step::Create, _) => {
            acted = Some("create");
            create_again(agent, which).await
        }
        _ => Ok(()),
    };
    if let Some(verb) = acted {
        let result = if outcome.is_ok() {
            Outcome::Done
        } else {
            Outcome::Failed
        };
        let code = found.as_ref().map(|found| found.exit_code);
        agent.gate.record(
            "accessory-keep",
            &which.app,
            result,
            serde_json::json!({ "accessory": which.name, "step": verb, "exit_code": code, "failures": backoff.failures }),
            now,
        )?;
        tracing::info!(
            "{which}: {verb} (exit code {code:?}, {} failures in a row)",
            backoff.failures
        );
    }
    if let Err(error) = outcome {
        let next = agent_failed(agent, which, now);
        let text = chain(&*error);
        tracing::warn!("{which}: {text}");
        agent.accessories.note(which, |live| live.problem = Some(text));
        return Ok(next);
    }
    if record.goal == Goal::Running
        && let Some(definition) = made.definition.as_deref()
        && let Err(error) = agent.route_accessory(definition).await
    {
        tracing::warn!("{which}: {}", chain(&*error));
    }
    let found = match acted {
        Some(_) => {
            agent
                .container_of(&agent.accessories.records.read(which)?)
                .await?
        }
        None => found,
    };
    let health = match &found {
        Some(found) => agent.verdict(found).await,
        None => None,
    };
    let record = agent.accessories.records.read(which)?;
    let drift = agent.drift(which, &record, found.as_ref()).await;
    agent.accessories.note(which, |live| {
        if drift != live.drift && !drift.is_empty() {
            tracing::warn!("{which} is not as it should be: {}", drift.join("; "));
        }
        live.judged(health, Timestamp::now());
        live.drift = drift;
    });
    Ok(None)
}

fn agent_failed(agent: &Agent, which: &Which, now: Timestamp) -> Option<Timestamp> {
    let mut next = None;
    agent.accessories.note(which, |live| {
        live.backoff = live.backoff.failed(now);
        next = live.backoff.next;
    });
    next
}

/// Somebody removed the container: it is made again as it was, from the definition it was made from, on the same data.
async fn create_again(agent: &Arc<Agent>, which: &Which) -> anyhow::Result<()> {
    let record = agent.accessories.records.read(which)?;
    let (Some(definition), Some(made)) = (&record.definition, &record.made) else {
        return Ok(());
    };
    let definition = made.definition.clone().unwrap_or_else(|| definition.clone());
    let opened = agent.open_accessory(&definition)?;
    let image = agent.image_of(&made.pin, &definition, &opened).await?;
    agent
        .create_accessory(which, &definition, &record.sources, &image, &Audience::nobody())
        .await
        .map(drop)
}

fn seen(found: Option<&ContainerInfo>) -> Seen {
    let Some(found) = found else {
        return Seen {
            life: Life::Missing,
            exit_code: 0,
            started: None,
            restarts: 0,
        };
    };
    Seen {
        life: match found.state {
            State::Created => Life::Created,
            State::Running => Life::Running,
            State::Paused => Life::Paused,
            State::Restarting => Life::Restarting,
            State::Exited => Life::Exited,
            State::Removing | State::Dead => Life::Dead,
        },
        exit_code: found.exit_code,
        started: found
            .started
            .parse()
            .ok()
            .filter(|started: &Timestamp| *started > Timestamp::UNIX_EPOCH),
        restarts: found.restarts,
    }
}
