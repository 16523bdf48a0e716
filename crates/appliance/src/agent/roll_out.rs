//! Deploy, rollback, promote and abort: what begins a rollout, and what is said at its end.

use std::collections::BTreeSet;
use std::sync::Arc;

use appliance_push::change;
use appliance_push::trust::Verified;
use appliance_rollout::{
    Canary, Deployment, Gate, Phase, Plan, PlanError, ReleaseNumber, Role, Rollout, Timing,
};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::change::{done, not_deployed};
use super::drive::{self, Audience};
use super::lead::Lead;
use super::{Agent, chain, keeper};
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
    let number = agent
        .apps
        .accept(app, release, &verified.fingerprint, Timestamp::now())?;
    roll_out(agent, app, number, release, true, audience, lead).await
}

/// Rolls out an earlier release again.
///
/// # Errors
/// When the app's state cannot be read or written.
pub async fn rollback(
    agent: &Arc<Agent>,
    app: &str,
    to: Option<change::ReleaseNumber>,
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
    // Migrations ran when the release was new; running them again on the way back is nobody's wish.
    roll_out(agent, app, number, &accepted.release, false, audience, lead).await
}

pub async fn roll_out(
    agent: &Arc<Agent>,
    app: &str,
    number: ReleaseNumber,
    release: &change::Release,
    fresh: bool,
    audience: &Audience,
    lead: Option<Lead>,
) -> anyhow::Result<End> {
    let (old, rollout) = agent.apps.update(app, |state| {
        (state.numbers.current.clone(), state.numbers.next_rollout())
    })?;
    let canary = release.canary.as_ref().filter(|_| fresh);
    let plan = Plan {
        app: app.to_owned(),
        old,
        new: Deployment {
            release: number,
            rollout,
            roles: roles(release),
        },
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
    match rollout.phase() {
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

/// Gives the canary all visitors, and follows it to the end.
///
/// # Errors
/// When the app's state cannot be read, or Docker does not answer.
pub async fn promote(agent: &Arc<Agent>, app: &str, audience: &Audience) -> anyhow::Result<End> {
    let pass = appliance_rollout::Event::Pass { gate: Gate::Promote };
    decide(agent, app, pass, audience).await
}

/// Takes the canary away.
///
/// # Errors
/// When the app's state cannot be read, or Docker does not answer.
pub async fn abort(
    agent: &Arc<Agent>,
    verified: &Verified,
    app: &str,
    audience: &Audience,
) -> anyhow::Result<End> {
    let cancel = appliance_rollout::Event::Cancel {
        why: format!("the canary was aborted by {}", verified.signer),
    };
    Ok(match decide(agent, app, cancel, audience).await? {
        End::Reverted { serving, .. } => End::Done {
            release: serving,
            message: match serving {
                Some(number) => format!("the canary is gone; {app} {number} serves everybody"),
                None => "the canary is gone".to_owned(),
            },
        },
        other => other,
    })
}

async fn decide(
    agent: &Arc<Agent>,
    app: &str,
    decision: appliance_rollout::Event,
    audience: &Audience,
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
    if !agent.drives.busy(app) {
        keeper::resume(agent, app).await?;
    }
    let (sender, mut news) = mpsc::channel(256);
    if !agent.drives.attend(app, sender) || !agent.drives.tell(app, decision).await {
        return Ok(done(
            "the canary came to its end in this moment: appliance status",
        ));
    }
    // Ends when the drive does.
    while let Some(event) = news.recv().await {
        audience.tell(event).await;
    }
    match agent.apps.read(app)?.rollout {
        Some(rollout) if rollout.is_decided() => Ok(end(agent, app, &rollout, audience).await),
        _ => anyhow::bail!(
            "the rollout of {app} stopped before its end; it is resumed when the agent starts again"
        ),
    }
}

/// The roles of a release as a rollout knows them, the primary one first.
pub fn roles(release: &change::Release) -> Vec<Role> {
    let mut roles: Vec<&change::Role> = release.roles.iter().collect();
    roles.sort_by_key(|role| !role.primary);
    roles
        .into_iter()
        .map(|role| Role {
            name: role.name.to_string(),
            proxied: role.proxy.is_some(),
            image: format!("{}@{}", release.image.repository, release.image.digest),
            assets: role.asset_path.is_some() && role.proxy.is_some(),
        })
        .collect()
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
