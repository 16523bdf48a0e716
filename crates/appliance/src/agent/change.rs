//! What each verb of a signed change does, once the gate let it through.

use std::sync::Arc;

use appliance_push::change::{self, AccessoryAction, AppName, Destination, Envelope, Expectation, Verb};
use appliance_push::registry::Scope;
use appliance_push::trust::Verified;
use appliance_rollout::Deployment;
use appliance_state::Outcome;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::drive::Audience;
use super::gate::{GateError, app_id};
use super::lead::Lead;
use super::lease::Holder;
use super::{Agent, accessories, chain, exec, forecast, images, lock, maintenance, manage, roll_out};
use crate::wire::{End, Event};

/// How long uploads may go on after the signature; a cut link resumes within it.
const TOKEN_LIFE: SignedDuration = SignedDuration::from_hours(6);

/// Admits a change and carries it out; the events end in exactly one [`Event::End`].
///
/// What was begun goes on when the receiver of the events is gone.
/// With a `lead` it is led together with other hosts.
pub fn submit(agent: Arc<Agent>, envelope: Envelope, lead: Option<Lead>) -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(256);
    tokio::spawn(async move {
        let audience = Audience::of(sender);
        let end = handle(&agent, envelope, &audience, lead).await;
        audience.tell(Event::End(end)).await;
    });
    receiver
}

async fn handle(agent: &Arc<Agent>, envelope: Envelope, audience: &Audience, lead: Option<Lead>) -> End {
    let admitting = {
        let agent = Arc::clone(agent);
        tokio::task::spawn_blocking(move || {
            let current =
                |app: &AppName, destination: Option<&Destination>| current_release(&agent, app, destination);
            agent.gate.admit(&envelope, Timestamp::now(), &current)
        })
    };
    let verified = match admitting.await {
        Ok(Ok(verified)) => verified,
        Ok(Err(error)) => return refusal(&error),
        Err(error) => return internal(&error),
    };
    let end = act(agent, &verified, audience, lead).await;
    let (outcome, detail) = match &end {
        End::Done { release, message } => (
            Outcome::Done,
            serde_json::json!({ "release": release, "message": message }),
        ),
        End::Session { expires_at, .. } => (
            Outcome::Done,
            serde_json::json!({ "expires_at": expires_at, "command": exec::command(&verified.change.verb) }),
        ),
        End::Token { expires_at, .. } => (Outcome::Done, serde_json::json!({ "expires_at": expires_at })),
        End::Refused { code, message, .. } => (
            Outcome::Refused,
            serde_json::json!({ "code": code, "why": message }),
        ),
        End::Reverted { serving, why } => (
            Outcome::Failed,
            serde_json::json!({ "serving": serving, "why": why }),
        ),
        End::Failed { message, .. } => (Outcome::Failed, serde_json::json!({ "why": message })),
    };
    if let Err(error) = agent.gate.conclude(&verified, outcome, detail, Timestamp::now()) {
        tracing::error!("cannot record how the change ended: {}", chain(&error));
    }
    end
}

fn current_release(
    agent: &Agent,
    app: &AppName,
    destination: Option<&Destination>,
) -> Option<change::ReleaseNumber> {
    // A damaged ledger counts as "no release": an expectation then fails closed.
    let state = agent.apps.read(&app_id(app, destination)).ok()?;
    state
        .numbers
        .current
        .map(|current| change::ReleaseNumber(current.release.0))
}

fn refusal(error: &GateError) -> End {
    match error {
        GateError::Refused(refusal) => End::Refused {
            code: refusal.code().to_owned(),
            message: chain(refusal),
            next: refusal.next(),
        },
        other => End::Failed {
            message: chain(other),
            next: "on the host: journalctl -u appliance-agent".to_owned(),
        },
    }
}

fn internal(error: &(dyn std::error::Error + 'static)) -> End {
    End::Failed {
        message: chain(error),
        next: "on the host: journalctl -u appliance-agent".to_owned(),
    }
}

fn failed(error: anyhow::Error) -> End {
    internal(&*error)
}

pub(super) fn done(message: impl Into<String>) -> End {
    End::Done {
        release: None,
        message: message.into(),
    }
}

async fn act(agent: &Arc<Agent>, verified: &Verified, audience: &Audience, lead: Option<Lead>) -> End {
    let change = &verified.change;
    let outcome = match (&change.verb, &change.app) {
        (Verb::Upload { blobs }, _) => upload(agent, verified, blobs).await,
        (Verb::Tunnel { repository, bytes }, _) => Ok(token(
            agent,
            verified,
            Scope::Repository {
                name: repository.clone(),
                bytes: *bytes,
            },
        )),
        (Verb::KeyAdd { .. } | Verb::KeyRemove { .. }, _) => keys(agent, verified),
        // No lease: a console that stays open for a day must not keep anybody from deploying.
        (
            Verb::AppExec(_)
            | Verb::HostExec { .. }
            | Verb::Accessory {
                action: AccessoryAction::Exec { .. },
                ..
            },
            _,
        ) => exec::begin(agent, verified).await,
        (verb @ (Verb::CertificateRenew { .. } | Verb::CertificateRevoke { .. }), _) => {
            Ok(super::certificates::change(agent, verb).await)
        }
        // An accessory has a lease of its own: a rollout of the app goes on meanwhile.
        (Verb::Accessory { name, action }, Some(app)) => {
            let app = app_id(app, change.destination.as_ref());
            accessories::act(agent, verified, &app, name, action, audience).await
        }
        // Its own claim keeps two apart: a backup of an hour must not keep anybody from deploying.
        (Verb::Backup { accessory, action }, Some(app)) => {
            let app = app_id(app, change.destination.as_ref());
            super::backups::change(agent, &app, accessory.as_str(), action, audience).await
        }
        // No lease: whoever holds it is the one whose rollout is to be taken back.
        (Verb::Abort, Some(app)) => {
            let app = app_id(app, change.destination.as_ref());
            roll_out::abort(agent, verified, &app, audience).await
        }
        (Verb::Adopt(action), _) => super::adopt::change(agent, verified, action, audience).await,
        (Verb::Firewall(_), _) => firewall(agent, verified).await,
        (Verb::AlertsTest, _) => Ok(super::alerts::test(agent).await),
        (verb, Some(app)) => {
            let app = app_id(app, change.destination.as_ref());
            let holder = Holder {
                owner: format!("{} ({})", verified.signer, verified.fingerprint),
                verb: verb.name().to_owned(),
                since: Timestamp::now(),
            };
            let _lease = match agent.leases.acquire(&app, holder) {
                Ok(lease) => lease,
                Err(holder) => return busy(&app, &holder),
            };
            match lock::stands_in_the_way(agent, &app, verb) {
                Ok(None) => {}
                Ok(Some(refused)) => return refused,
                Err(error) => return failed(error.into()),
            }
            let own = matches!(verb, Verb::Promote | Verb::LockAcquire { .. } | Verb::LockRelease);
            if !own {
                match roll_out::interrupted(agent, &app).await {
                    Ok(None) => {}
                    Ok(Some(refused)) => return refused,
                    Err(error) => return failed(error),
                }
            }
            // Under the lease nobody else can move the release; the gate looked before it was taken.
            if let Expectation::Release(expected) = change.expects {
                let found = current_release(
                    agent,
                    change.app.as_ref().expect("matched above"),
                    change.destination.as_ref(),
                );
                if found != expected {
                    return moved(&app, expected, found);
                }
            }
            match verb {
                Verb::Deploy(release) => {
                    roll_out::deploy(agent, verified, &app, release, audience, lead).await
                }
                Verb::Rollback { to, roles } => {
                    roll_out::rollback(agent, &app, *to, roles, audience, lead).await
                }
                Verb::Promote => roll_out::promote(agent, &app, audience, lead).await,
                Verb::LockAcquire { .. } => lock::acquire(agent, verified, &app),
                Verb::LockRelease => lock::release(agent, &app),
                Verb::AppRemove => remove(agent, &app).await,
                Verb::AppStop { message, roles } => {
                    maintenance::close(agent, &app, message.as_deref().unwrap_or_default(), roles).await
                }
                Verb::AppStart { roles } => maintenance::open(agent, &app, roles).await,
                Verb::AppRestart => roll_out::restart(agent, &app, audience, lead).await,
                Verb::AppContainers { action, roles } => {
                    manage::containers(agent, &app, *action, roles).await
                }
                Verb::AppPrune {
                    containers,
                    images,
                    retain,
                } => manage::prune(agent, &app, *containers, *images, *retain).await,
                other => Ok(End::Refused {
                    code: "not-here".to_owned(),
                    message: format!("this version of the agent does not carry out {}", other.name()),
                    next: "appliance version, on both sides".to_owned(),
                }),
            }
        }
        (verb, None) => Ok(End::Refused {
            code: "no-app".to_owned(),
            message: format!("{} needs an app", verb.name()),
            next: "appliance --help".to_owned(),
        }),
    };
    outcome.unwrap_or_else(failed)
}

fn busy(app: &str, holder: &Holder) -> End {
    End::Refused {
        code: "busy".to_owned(),
        message: format!(
            "{app} is being changed by {} ({}) since {}",
            holder.owner, holder.verb, holder.since
        ),
        next: "push again when it is done; appliance status shows how far it is".to_owned(),
    }
}

fn moved(app: &str, expected: Option<change::ReleaseNumber>, found: Option<change::ReleaseNumber>) -> End {
    let show = |number: Option<change::ReleaseNumber>| {
        number.map_or_else(|| "no release".to_owned(), |number| number.to_string())
    };
    End::Refused {
        code: "release-moved".to_owned(),
        message: format!(
            "{app} runs {}, the change expects {}",
            show(found),
            show(expected)
        ),
        next: "look at what changed (appliance status), then push again".to_owned(),
    }
}

fn token(agent: &Agent, verified: &Verified, scope: Scope) -> End {
    let expires_at = Timestamp::now()
        .saturating_add(TOKEN_LIFE)
        .unwrap_or(Timestamp::MAX);
    let token = agent.images.allow(&verified.fingerprint, scope, expires_at);
    End::Token {
        token: token.expose().to_owned(),
        expires_at,
    }
}

/// Room is checked before a byte moves; what is here already needs none.
async fn upload(agent: &Agent, verified: &Verified, blobs: &[change::BlobRef]) -> anyhow::Result<End> {
    let mut bytes = 0;
    for blob in blobs {
        if agent.images.store().blob_size(&blob.digest)?.is_none() {
            bytes += blob.size;
        }
    }
    let refusal = forecast::refusal(agent, forecast::Needed::uploaded(bytes)).await?;
    Ok(refusal.unwrap_or_else(|| token(agent, verified, Scope::blobs(blobs))))
}

fn keys(agent: &Agent, verified: &Verified) -> anyhow::Result<End> {
    let before = agent.gate.keys();
    match agent.gate.change_keys(verified) {
        Ok(_) => {}
        Err(GateError::Keys(error)) => {
            return Ok(End::Refused {
                code: "keys".to_owned(),
                message: chain(&error),
                next: "appliance keys list".to_owned(),
            });
        }
        Err(error) => return Err(error.into()),
    }
    match &verified.change.verb {
        Verb::KeyRemove { fingerprint } => {
            let mut told = vec![format!("{fingerprint} may do nothing here any more")];
            if let Some(entry) = before.find(fingerprint) {
                told.extend(super::door::close(&entry.key.to_string())?);
                agent.images.revoke(fingerprint);
            }
            Ok(done(told.join("; ")))
        }
        Verb::KeyAdd { key, .. } => {
            super::door::open(key)?;
            Ok(done("the key is enrolled"))
        }
        _ => Ok(done("the keys are as they were")),
    }
}

async fn firewall(agent: &Arc<Agent>, verified: &Verified) -> anyhow::Result<End> {
    let (agent, verified) = (Arc::clone(agent), verified.clone());
    let change = move || match &verified.change.verb {
        Verb::Firewall(change) => {
            let nonce = hex::encode(super::random::<5>());
            super::firewall::change(&agent, &verified, change, &nonce)
        }
        _ => done("nothing to do"),
    };
    Ok(tokio::task::spawn_blocking(change).await?)
}

/// Takes the app off the host: routes first, so that nobody is sent to a container that goes; never volumes.
async fn remove(agent: &Arc<Agent>, app: &str) -> anyhow::Result<End> {
    let state = agent.apps.read(app)?;
    let Some(current) = &state.numbers.current else {
        return Ok(not_deployed(app));
    };
    let services = services(agent, app, current)?;
    for name in &services {
        agent.proxy.remove_service(name).await?;
    }
    for found in agent.containers(app).await? {
        agent.docker.stop(&found.id.0, None).await?;
        agent.docker.remove(&found.id.0, true).await?;
    }
    // The data stays, and with it its backups: they are known without the release from here on.
    let backed_up = agent.backup_jobs_of(app)?;
    // A look at the routes that was under way when this began may have put one back while its container was stopping.
    for name in &services {
        agent.proxy.remove_service(name).await?;
    }
    agent.apps.forget(app)?;
    // Rollouts are counted anew when the app comes again: what an old one of that number left must not be taken for its own.
    let (state, name) = (agent.state.clone(), app.to_owned());
    tokio::task::spawn_blocking(move || super::assets::prune(&state, &name, &[])).await??;
    agent.images.collect(&agent.apps, images::MIN_AGE).await?;
    let mut said = format!("{app} is removed; its volumes are kept");
    if !backed_up.is_empty() {
        let names: Vec<&str> = backed_up.iter().map(|job| job.spec.accessory.as_str()).collect();
        said.push_str(&format!(", and go on being backed up: {}", names.join(", ")));
    }
    Ok(done(said))
}

pub(super) fn not_deployed(app: &str) -> End {
    End::Refused {
        code: "no-app".to_owned(),
        message: format!("{app} does not run on this host"),
        next: "appliance push".to_owned(),
    }
}

pub(super) fn services(
    agent: &Agent,
    app: &str,
    deployment: &Deployment,
) -> anyhow::Result<Vec<appliance_proxy::names::ServiceName>> {
    let parts = agent.apps.parts(app, deployment)?;
    let names = parts.iter().filter_map(|part| part.role.proxy.as_ref());
    names
        .map(|spec| Ok(appliance_proxy::names::ServiceName::parse(&spec.service_name)?))
        .collect()
}
