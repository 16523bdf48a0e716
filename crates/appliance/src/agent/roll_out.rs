//! Deploy, rollback, promote and abort: what begins a rollout, and what is said at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use appliance_push::change::{self, RoleName};
use appliance_push::trust::Verified;
use appliance_rollout::{Canary, Deployment, Gate, Phase, Plan, PlanError, ReleaseNumber, Rollout, Timing};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::change::{done, not_deployed};
use super::drive::{self, Audience};
use super::lead::Lead;
use super::parts::Wish;
use super::{Agent, chain, forecast, keeper};
use crate::wire::{End, Event};

/// The refusal of a change while a rollout is unfinished; one that nobody drives is taken up again.
///
/// # Errors
/// When the app's state cannot be read.
pub async fn interrupted(agent: &Arc<Agent>, app: &str) -> anyhow::Result<Option<End>> {
    let rollout = agent.apps.read(app)?.rollout.filter(|rollout| !rollout.is_over());
    let busy = agent.drives.busy(app);
    if !busy && rollout.is_some() {
        keeper::resume(agent, app).await?;
    }
    let Some(rollout) = rollout else {
        return Ok(busy.then(|| End::Refused {
            code: "busy".to_owned(),
            message: format!("a rollout of {app} comes to its end"),
            next: "appliance status, and push again".to_owned(),
        }));
    };
    let new = rollout.plan().new.release;
    if rollout.waits_at() == Some(Gate::Promote) {
        return Ok(Some(End::Refused {
            code: "canary".to_owned(),
            message: format!("{app} {new} runs as a canary; somebody has to decide about it first"),
            next: "appliance promote, or appliance abort".to_owned(),
        }));
    }
    Ok(Some(End::Refused {
        code: "recovering".to_owned(),
        message: format!(
            "{app} is going on with the rollout of {new}, which is {}",
            rollout.phase()
        ),
        next: "appliance status, and push again when it is settled".to_owned(),
    }))
}

/// Rolls out a new release.
///
/// # Errors
/// When the app's state cannot be read or written.
pub async fn deploy(
    agent: &Arc<Agent>,
    verified: &Verified,
    app: &str,
    release: &change::Release,
    audience: &Audience,
    lead: Option<Lead>,
) -> anyhow::Result<End> {
    // What cannot be run is refused before it gets a number.
    if release.image.registry.is_none() && !agent.images.has(&release.image)? {
        return Ok(End::Refused {
            code: "image-missing".to_owned(),
            message: format!("the image {} was not uploaded to this host", release.image.digest),
            next: "appliance push".to_owned(),
        });
    }
    let needed = forecast::of(agent, &release.image).await;
    if let Some(refused) = forecast::refusal(agent, needed).await? {
        return Ok(refused);
    }
    let number = agent
        .apps
        .accept(app, release, &verified.fingerprint, Timestamp::now())?;
    let own: BTreeMap<String, ReleaseNumber> = release
        .roles
        .iter()
        .map(|role| (role.name.to_string(), number))
        .collect();
    let mut only = Vec::new();
    if release.partial {
        only = release.roles.iter().map(|role| role.name.clone()).collect();
        agent.apps.update(app, |state| {
            let mut beside = state.numbers.current.as_ref().map(stands_for).unwrap_or_default();
            beside.retain(|role, _| !own.contains_key(role));
            if !beside.is_empty() {
                state.beside.insert(number, beside);
            }
        })?;
    }
    let wish = Wish {
        release: number,
        roles: own,
        only: &only,
    };
    roll_out(agent, app, &wish, release, true, audience, lead).await
}

/// Each role of a deployment with the release that it came from.
fn stands_for(deployment: &Deployment) -> BTreeMap<String, ReleaseNumber> {
    let roles = deployment.roles.iter();
    roles
        .map(|role| (role.name.clone(), deployment.origin(role).release))
        .collect()
}

/// The current release once more, in new containers and without downtime.
///
/// # Errors
/// When the app's state cannot be read or written.
pub async fn restart(
    agent: &Arc<Agent>,
    app: &str,
    audience: &Audience,
    lead: Option<Lead>,
) -> anyhow::Result<End> {
    let Some(current) = agent.apps.read(app)?.numbers.current else {
        return Ok(not_deployed(app));
    };
    let accepted = agent.apps.release(app, current.release)?;
    let wish = Wish {
        release: current.release,
        roles: stands_for(&current),
        only: &[],
    };
    roll_out(agent, app, &wish, &accepted.release, false, audience, lead).await
}

/// Rolls out an earlier release again.
///
/// # Errors
/// When the app's state cannot be read or written.
pub async fn rollback(
    agent: &Arc<Agent>,
    app: &str,
    to: Option<change::ReleaseNumber>,
    only: &[RoleName],
    audience: &Audience,
    lead: Option<Lead>,
) -> anyhow::Result<End> {
    let state = agent.apps.read(app)?;
    let target = match to {
        Some(number) => Some(ReleaseNumber(number.0)),
        None => state.numbers.previous.as_ref().map(|previous| previous.release),
    };
    let Some(number) = target else {
        return Ok(End::Refused {
            code: "no-release".to_owned(),
            message: format!("{app} has no earlier release on this host"),
            next: "appliance status".to_owned(),
        });
    };
    let accepted = match agent.apps.release(app, number) {
        Ok(accepted) => accepted,
        Err(error) => {
            return Ok(End::Refused {
                code: "no-release".to_owned(),
                message: chain(&error),
                next: "appliance status".to_owned(),
            });
        }
    };
    // The very roles that run now, or ran before; else what the release stood beside when it came.
    let known = state.numbers.current.iter().chain(&state.numbers.previous);
    let roles = known
        .filter(|deployment| deployment.release == number)
        .map(stands_for)
        .next();
    let roles = match roles {
        Some(roles) => roles,
        None => agent.apps.composition(app, &state, number)?,
    };
    let wish = Wish {
        release: number,
        roles,
        only,
    };
    let needed = forecast::of(agent, &accepted.release.image).await;
    if let Some(refused) = forecast::refusal(agent, needed).await? {
        return Ok(refused);
    }
    // Migrations ran when the release was new; running them again on the way back is nobody's wish.
    roll_out(agent, app, &wish, &accepted.release, false, audience, lead).await
}

/// Makes a deployment of what is wished for, and follows it to its end.
///
/// # Errors
/// When the app's state cannot be read or written.
async fn roll_out(
    agent: &Arc<Agent>,
    app: &str,
    wish: &Wish<'_>,
    release: &change::Release,
    fresh: bool,
    audience: &Audience,
    lead: Option<Lead>,
) -> anyhow::Result<End> {
    let (old, rollout) = agent.apps.update(app, |state| {
        (state.numbers.current.clone(), state.numbers.next_rollout())
    })?;
    let number = wish.release;
    let canary = release.canary.as_ref().filter(|_| fresh);
    let plan = Plan {
        app: app.to_owned(),
        new: agent.apps.deployment(app, wish, old.as_ref(), rollout)?,
        old,
        release_command: fresh && release.release_command.is_some(),
        timing: timing(release),
        gates: match &lead {
            Some(_) => BTreeSet::from([Gate::Start, Gate::Switch, Gate::Settle]),
            None => BTreeSet::new(),
        },
        canary: canary.map(|canary| Canary {
            hold: canary.hold.map(seconds),
        }),
        parallel_roles: release.parallel_roles,
    };
    let (rollout, orders) = match Rollout::begin(plan, Timestamp::now()) {
        Ok(begun) => begun,
        Err(error @ PlanError::CanaryAlone(_)) => {
            agent.apps.forget_unserved(app, number)?;
            return Ok(End::Refused {
                code: "canary-alone".to_owned(),
                message: chain(&error),
                next: "appliance push, without --canary".to_owned(),
            });
        }
        Err(error @ PlanError::NoRoles(_)) => {
            return Ok(End::Refused {
                code: "no-role".to_owned(),
                message: chain(&error),
                next: "appliance app containers shows the roles that run".to_owned(),
            });
        }
        Err(error) => return Err(error.into()),
    };
    let mut news = audience.overhear();
    let mut drive = {
        let (agent, app, audience) = (Arc::clone(agent), app.to_owned(), audience.clone());
        tokio::spawn(async move { drive::drive(&agent, &app, rollout, orders, audience, lead).await })
    };
    let rollout = loop {
        tokio::select! {
            ended = &mut drive => break ended??,
            Some(event) = news.recv() => {
                // The canary stays when whoever brought it goes.
                if event == (Event::Waiting { gate: Gate::Promote }) {
                    return Ok(End::Done {
                        release: Some(change::ReleaseNumber(number.0)),
                        message: format!(
                            "{app} {number} ({}) serves as a canary: appliance promote, or appliance abort",
                            release.version
                        ),
                    });
                }
            }
        }
    };
    Ok(end(agent, app, &rollout, audience).await)
}

/// What is said of a rollout that is over.
async fn end(agent: &Agent, app: &str, rollout: &Rollout, audience: &Audience) -> End {
    for message in rollout.warnings() {
        audience
            .tell(Event::Warning {
                message: message.clone(),
            })
            .await;
    }
    let number = rollout.plan().new.release;
    if matches!(rollout.phase(), Phase::Settled) {
        for message in super::backups::probe(agent, app).await {
            audience.tell(Event::Warning { message }).await;
        }
    }
    match rollout.phase() {
        Phase::Settled if rollout.stayed() => {
            let why = rollout.failure().map(|failure| failure.why.as_str());
            End::Failed {
                message: format!(
                    "{} but the former release could not be brought back, so {app} {number} goes on serving",
                    why.map(|why| format!("{why};")).unwrap_or_default()
                ),
                next: "push a release that mends it, or look at why the former one does not run: appliance app containers"
                    .to_owned(),
            }
        }
        Phase::Settled => {
            let version = agent.apps.release(app, number).map_or_else(
                |_| String::new(),
                |accepted| format!(" ({})", accepted.release.version),
            );
            End::Done {
                release: Some(change::ReleaseNumber(number.0)),
                message: format!("{app} {number} serves{version}"),
            }
        }
        _ => End::Reverted {
            serving: rollout
                .plan()
                .old
                .as_ref()
                .map(|old| change::ReleaseNumber(old.release.0)),
            why: rollout.failure().map_or_else(
                || "the rollout was reverted".to_owned(),
                |failure| failure.why.clone(),
            ),
        },
    }
}

/// Gives the canary all visitors, and follows it to the end; with a `lead` when the other hosts' are promoted too.
///
/// # Errors
/// When the app's state cannot be read, or Docker does not answer.
pub async fn promote(
    agent: &Arc<Agent>,
    app: &str,
    audience: &Audience,
    lead: Option<Lead>,
) -> anyhow::Result<End> {
    let state = agent.apps.read(app)?;
    if state.numbers.current.is_none() {
        return Ok(not_deployed(app));
    }
    let waits = |rollout: &Rollout| rollout.waits_at() == Some(Gate::Promote);
    if !state.rollout.as_ref().is_some_and(waits) {
        return Ok(End::Refused {
            code: "no-canary".to_owned(),
            message: format!("{app} has no canary on this host"),
            next: "appliance push --canary 10%".to_owned(),
        });
    }
    match lead {
        Some(lead) => led_promotion(agent, app, lead, audience).await,
        None => {
            let pass = appliance_rollout::Event::Pass { gate: Gate::Promote };
            decide(agent, app, pass, audience).await
        }
    }
}

/// The rollout goes on when its leader says so; one that is left before that stays a canary.
async fn led_promotion(
    agent: &Arc<Agent>,
    app: &str,
    lead: Lead,
    audience: &Audience,
) -> anyhow::Result<End> {
    let (lead, gone) = lead.watched();
    let mut news = attend(agent, app).await?;
    let led = match &news {
        Some(_) => agent.drives.lead(app, lead).await,
        None => false,
    };
    let (true, Some(news)) = (led, &mut news) else {
        return Ok(over_already());
    };
    tokio::select! {
        ended = follow(agent, app, news, audience) => return ended,
        _ = gone => {}
    }
    let state = agent.apps.read(app)?;
    match state.rollout {
        Some(rollout) if rollout.waits_at() == Some(Gate::Promote) => Ok(End::Refused {
            code: "canary".to_owned(),
            message: format!(
                "nobody leads the promotion any more; {app} {} stays a canary",
                rollout.plan().new.release
            ),
            next: "appliance promote, or appliance abort".to_owned(),
        }),
        _ => follow(agent, app, news, audience).await,
    }
}

/// Takes a rollout back that has not settled: a canary, or a push that somebody else still follows.
///
/// # Errors
/// When the app's state cannot be read, or Docker does not answer.
pub async fn abort(
    agent: &Arc<Agent>,
    verified: &Verified,
    app: &str,
    audience: &Audience,
) -> anyhow::Result<End> {
    let rollout = agent.apps.read(app)?.rollout.filter(|rollout| !rollout.is_over());
    let what = match rollout {
        Some(rollout) if rollout.waits_at() == Some(Gate::Promote) => "the canary".to_owned(),
        // One that goes back already, as the hosts of a group do together, is followed to its end.
        Some(rollout) if rollout.can_be_taken_back() || rollout.failure().is_some() => {
            rollout.plan().new.release.to_string()
        }
        _ => {
            return Ok(End::Refused {
                code: "no-rollout".to_owned(),
                message: format!("{app} has no canary and no rollout in progress on this host"),
                next: "appliance rollback, to leave a release that has settled".to_owned(),
            });
        }
    };
    let cancel = appliance_rollout::Event::Cancel {
        why: format!("{what} was aborted by {}", verified.signer),
    };
    Ok(match decide(agent, app, cancel, audience).await? {
        End::Reverted { serving, .. } => End::Done {
            release: serving,
            message: match serving {
                Some(number) => format!("{what} is gone; {app} {number} serves everybody"),
                None => format!("{what} is gone; nothing serves, as before"),
            },
        },
        other => other,
    })
}

/// Tells the rollout what was decided about it, and follows it to its end.
async fn decide(
    agent: &Arc<Agent>,
    app: &str,
    decision: appliance_rollout::Event,
    audience: &Audience,
) -> anyhow::Result<End> {
    match attend(agent, app).await? {
        Some(mut news) if agent.drives.tell(app, decision).await => {
            follow(agent, app, &mut news, audience).await
        }
        _ => Ok(over_already()),
    }
}

/// What the drive of `app` tells from now on; none if there is no drive any more.
async fn attend(agent: &Arc<Agent>, app: &str) -> anyhow::Result<Option<mpsc::Receiver<Event>>> {
    if !agent.drives.busy(app) {
        keeper::resume(agent, app).await?;
    }
    let (sender, news) = mpsc::channel(256);
    Ok(agent.drives.attend(app, sender).then_some(news))
}

fn over_already() -> End {
    done("the rollout came to its end in this moment: appliance status")
}

/// Hears a rollout to its end.
async fn follow(
    agent: &Arc<Agent>,
    app: &str,
    news: &mut mpsc::Receiver<Event>,
    audience: &Audience,
) -> anyhow::Result<End> {
    // Ends when the drive does; whoever began the rollout, and still follows it, is told the end of their change.
    while let Some(event) = news.recv().await {
        if matches!(event, Event::End(_)) {
            break;
        }
        audience.tell(event).await;
    }
    match agent.apps.read(app)?.rollout {
        Some(rollout) if rollout.is_decided() => Ok(end(agent, app, &rollout, audience).await),
        _ => anyhow::bail!(
            "the rollout of {app} stopped before its end; it is resumed when the agent starts again"
        ),
    }
}

fn seconds(seconds: u32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(seconds))
}

fn timing(release: &change::Release) -> Timing {
    // A role without proxy must stay up for the readiness delay on top of what it needs to start.
    let ready = seconds(release.deploy_timeout) + seconds(release.readiness_delay);
    Timing {
        ready,
        drain: seconds(release.drain_timeout),
        watch: release
            .watch
            .as_ref()
            .map_or(SignedDuration::ZERO, |watch| seconds(watch.window)),
        command: release
            .release_command
            .as_ref()
            .map_or(SignedDuration::from_secs(600), |command| seconds(command.timeout)),
    }
}
