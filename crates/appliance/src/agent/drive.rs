//! Drives one rollout: write the state down, carry out the orders, report how each ended.
//!
//! ```text
//!   orders ──► tasks ──► Done / Failed ─┐
//!   Docker events ─────► Died           ├─► step() ──► write down ──► orders …
//!   a person ──────────► Cancel         │
//!   the clock ─────────► Tick          ─┘
//! ```
//!
//! The drive belongs to the agent, not to the connection that asked for it: a developer's lost network changes nothing.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use appliance_rollout::{Event, Order, Phase, Rollout};
use futures_util::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::effects::Effects;
use super::lead::Lead;
use super::{Agent, images};
use crate::wire;

/// Where the drives in progress can be reached, by app.
#[derive(Debug, Clone, Default)]
pub struct Drives {
    reach: Arc<Mutex<BTreeMap<String, Reach>>>,
}

#[derive(Debug)]
struct Reach {
    sender: mpsc::Sender<Event>,
    leads: mpsc::Sender<Lead>,
    audience: Audience,
}

impl Drives {
    /// Tells the drive of `app`, if there is one, that something happened.
    pub async fn tell(&self, app: &str, event: Event) -> bool {
        let sender = {
            let reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
            reach.get(app).map(|reach| reach.sender.clone())
        };
        match sender {
            Some(sender) => sender.send(event).await.is_ok(),
            None => false,
        }
    }

    /// Whether a rollout of `app` is in progress.
    pub fn busy(&self, app: &str) -> bool {
        let reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        reach.contains_key(app)
    }

    /// Adds somebody to the audience of the rollout of `app`, until it is over; false if there is none.
    pub fn attend(&self, app: &str, sender: mpsc::Sender<wire::Event>) -> bool {
        let reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        let found = reach.get(app);
        if let Some(reach) = found {
            reach.audience.join(sender);
        }
        found.is_some()
    }

    /// From now on the drive of `app`, if there is one, is led; its audience hears once more where it stands.
    pub async fn lead(&self, app: &str, lead: Lead) -> bool {
        let leads = {
            let reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
            reach.get(app).map(|reach| reach.leads.clone())
        };
        match leads {
            Some(leads) => leads.send(lead).await.is_ok(),
            None => false,
        }
    }

    fn enter(&self, app: &str, audience: Audience) -> (Entered, mpsc::Receiver<Event>, mpsc::Receiver<Lead>) {
        let (sender, receiver) = mpsc::channel(64);
        let (leads, led) = mpsc::channel(1);
        let mut reach = self.reach.lock().unwrap_or_else(PoisonError::into_inner);
        let way = Reach {
            sender,
            leads,
            audience,
        };
        reach.insert(app.to_owned(), way);
        let entered = Entered {
            drives: self.clone(),
            app: app.to_owned(),
        };
        (entered, receiver, led)
    }
}

struct Entered {
    drives: Drives,
    app: String,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut reach = self.drives.reach.lock().unwrap_or_else(PoisonError::into_inner);
        reach.remove(&self.app);
    }
}

/// What developers watching the rollout are told; somebody who left misses it, nobody waits for them.
#[derive(Debug, Clone, Default)]
pub struct Audience(Arc<Mutex<Vec<mpsc::Sender<wire::Event>>>>);

impl Audience {
    /// A developer on the line.
    pub fn of(sender: mpsc::Sender<wire::Event>) -> Self {
        let audience = Self::default();
        audience.join(sender);
        audience
    }

    /// Nobody: the agent acts on its own.
    pub fn nobody() -> Self {
        Self::default()
    }

    /// One more.
    pub fn join(&self, sender: mpsc::Sender<wire::Event>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    }

    /// Everything that is told from now on.
    pub fn overhear(&self) -> mpsc::Receiver<wire::Event> {
        let (sender, receiver) = mpsc::channel(256);
        self.join(sender);
        receiver
    }

    /// Tells them; waits a moment for a slow reader, but never for long.
    pub async fn tell(&self, event: wire::Event) {
        let everybody = {
            let mut audience = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            audience.retain(|sender| !sender.is_closed());
            audience.clone()
        };
        for sender in everybody {
            let _left = sender.send_timeout(event.clone(), Duration::from_secs(5)).await;
        }
    }
}

/// The state could not be written down, so the rollout cannot go on; the next start of the agent resumes it.
#[derive(Debug, thiserror::Error)]
#[error("the rollout of {app} cannot be written down; it is resumed when the agent starts again")]
pub struct Stuck {
    app: String,
    #[source]
    source: Box<super::apps::AppsError>,
}

/// Drives `rollout` of `app` to its end and returns it. Gates are passed as `lead` says, or as if the leader were gone.
///
/// # Errors
/// When its state cannot be written.
pub async fn drive(
    agent: &Arc<Agent>,
    app: &str,
    mut rollout: Rollout,
    mut orders: Vec<Order>,
    audience: Audience,
    mut lead: Option<Lead>,
) -> Result<Rollout, Stuck> {
    let (_entered, mut told, mut leads) = agent.drives.enter(app, audience.clone());
    if lead.is_none() && !rollout.plan().gates.is_empty() {
        let (alone, more) = rollout.step(&Event::Alone, Timestamp::now());
        orders.retain(|order| alone.open().contains(order));
        orders.extend(more);
        rollout = alone;
    }
    let effects = Arc::new(Effects::new(
        Arc::clone(agent),
        app,
        rollout.plan().clone(),
        audience.clone(),
    ));
    let mut tasks: JoinSet<Event> = JoinSet::new();
    let mut working = BTreeMap::new();
    let mut shown = None;
    let mut waited = None;
    loop {
        pause("before", rollout.phase()).await;
        persist(agent, app, &rollout)?;
        pause("at", rollout.phase()).await;
        if shown != Some(rollout.phase()) {
            shown = Some(rollout.phase());
            announce(app, &rollout, &audience).await;
        }
        if waited != rollout.waits_at() {
            waited = rollout.waits_at();
            if let Some(gate) = waited {
                audience.tell(wire::Event::Waiting { gate }).await;
            }
        }
        let timing = rollout.plan().timing.clone();
        for order in orders.drain(..) {
            let effects = Arc::clone(&effects);
            let patience = std_duration(order.effect.patience(Timestamp::now(), &timing));
            let ticket = order.ticket;
            let task = tasks.spawn(async move {
                tracing::info!(app = effects.app(), "{}: {}", effects.app(), order.effect);
                let work = tokio::time::timeout(patience, effects.carry_out(&order.effect));
                // A panic in an effect is a failure of that effect, not an answer that never comes.
                let why = match AssertUnwindSafe(work).catch_unwind().await {
                    Ok(Ok(Ok(()))) => return Event::Done { ticket: order.ticket },
                    Ok(Ok(Err(error))) => super::chain(&error),
                    Ok(Err(_)) => format!("cannot {} within {} s", order.effect, patience.as_secs()),
                    Err(_) => format!(
                        "cannot {}: an internal error; see journalctl -u appliance-agent",
                        order.effect
                    ),
                };
                Event::Failed {
                    ticket: order.ticket,
                    why,
                }
            });
            working.insert(ticket, task);
        }
        if rollout.is_over() && tasks.is_empty() {
            if rollout.phase() == Phase::Reverted {
                let release = rollout.plan().new.release;
                if let Err(error) = agent.apps.forget_unserved(app, release) {
                    tracing::warn!(app, "{app}: {release} stays listed: {}", super::chain(&error));
                }
                // A night of failing pushes must not fill the disk; the same image need not be sent again meanwhile.
                if let Err(error) = agent.images.collect(&agent.apps, images::MIN_AGE).await {
                    tracing::warn!(
                        app,
                        "{app}: the image of {release} stays: {}",
                        super::chain(&*error)
                    );
                }
            }
            return Ok(rollout);
        }
        let wakeup = rollout.wakeup();
        let event = tokio::select! {
            Some(finished) = tasks.join_next(), if !tasks.is_empty() => match finished {
                Ok(event) => event,
                // Given up.
                Err(_) => continue,
            },
            Some(event) = told.recv() => event,
            // The promotion of a canary on several hosts.
            Some(joined) = leads.recv() => {
                lead = Some(joined);
                (shown, waited) = (None, None);
                Event::Led
            }
            event = said(&mut lead), if lead.is_some() => {
                if event == Event::Alone {
                    tracing::warn!(app, "{app}: nobody leads the rollout any more");
                    lead = None;
                }
                event
            }
            () = until(wakeup), if wakeup.is_some() => Event::Tick,
            else => return Ok(rollout),
        };
        (rollout, orders) = rollout.step(&event, Timestamp::now());
        // Orders that were given up are not waited for any more.
        working.retain(|ticket, task| {
            let open = rollout.open().iter().any(|order| order.ticket == *ticket);
            if !open {
                task.abort();
            }
            open
        });
    }
}

/// A test aid of debug builds: holds every rollout at one moment, so that the agent can be killed exactly there.
///
/// `APPLIANCE_PAUSE_AT=before-switched`: the effects that lead to the state happened, nothing says so yet.
/// `APPLIANCE_PAUSE_AT=at-switched`: the state is written down, its own effects have not begun.
async fn pause(moment: &str, phase: Phase) {
    if !cfg!(debug_assertions) {
        return;
    }
    let here = format!("{moment}-{}", phase_name(phase));
    if std::env::var("APPLIANCE_PAUSE_AT").is_ok_and(|wanted| wanted == here) {
        tracing::warn!("paused {here}, as APPLIANCE_PAUSE_AT asks");
        std::future::pending::<()>().await;
    }
}

async fn said(lead: &mut Option<Lead>) -> Event {
    match lead {
        Some(lead) => lead.next().await,
        None => std::future::pending().await,
    }
}

async fn until(moment: Option<Timestamp>) {
    let left = moment.map_or(SignedDuration::ZERO, |moment| {
        Timestamp::now().duration_until(moment)
    });
    tokio::time::sleep(std_duration(left)).await;
}

/// Negative spans are no wait.
pub fn std_duration(span: SignedDuration) -> Duration {
    Duration::try_from(span).unwrap_or(Duration::ZERO)
}

fn persist(agent: &Agent, app: &str, rollout: &Rollout) -> Result<(), Stuck> {
    agent
        .apps
        .update(app, |state| state.rollout = Some(rollout.clone()))
        .map_err(|source| Stuck {
            app: app.to_owned(),
            source: Box::new(source),
        })
}

/// The word for a phase, as design, log, API and audit spell it.
pub fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Received => "received",
        Phase::Verified => "verified",
        Phase::Prepared => "prepared",
        Phase::ReleaseCommand => "release-command",
        Phase::Starting => "starting",
        Phase::Healthy => "healthy",
        Phase::Canary => "canary",
        Phase::Switched => "switched",
        Phase::Draining => "draining",
        Phase::Watching => "watching",
        Phase::Settled => "settled",
        Phase::Reverting => "reverting",
        Phase::Reverted => "reverted",
    }
}

async fn announce(app: &str, rollout: &Rollout, audience: &Audience) {
    let phase = phase_name(rollout.phase());
    tracing::info!(app, phase, "{app}: {} is {phase}", rollout.plan().new.release);
    let new = rollout.plan().new.release;
    let old = rollout.plan().old.as_ref().map(|old| old.release.to_string());
    let detail = match rollout.phase() {
        Phase::Received => format!("{new} is stored"),
        Phase::Verified => format!("{new} is checked; preparing image and secrets"),
        Phase::Prepared => "image and secrets are here".to_owned(),
        Phase::ReleaseCommand => "running the release command".to_owned(),
        Phase::Starting => "starting the new containers".to_owned(),
        Phase::Healthy => "the new containers are ready".to_owned(),
        Phase::Canary => format!("a part of the visitors gets {new}"),
        Phase::Switched => format!("traffic goes to {new}"),
        Phase::Draining => format!("{} finishes its requests", old.as_deref().unwrap_or("nothing")),
        Phase::Watching => format!("watching {new}"),
        Phase::Settled => format!("{new} is the current release"),
        Phase::Reverting => rollout
            .failure()
            .map_or_else(|| "going back".to_owned(), |failure| failure.why.clone()),
        Phase::Reverted => match old {
            Some(old) => format!("{old} serves as before"),
            None => "nothing serves, as before".to_owned(),
        },
    };
    audience
        .tell(wire::Event::Phase {
            phase: phase.to_owned(),
            detail,
        })
        .await;
}
