//! Takes a host over from stock Kamal: containers, kamal-proxy's routes and certificates; and gives it back.
//!
//! ```text
//!  survey (Docker, kamal-proxy.state) ─► plan (pure) ─► shown, its digest signed
//!                                                         │
//!   record releases ─► ports ─► certificates, routes ─► redirect ─► drain ─► kamal-proxy stops
//! ```
//!
//! The containers stay as they are; the ledger remembers them by id, because labels cannot be added to a container that is there.
//! kamal-proxy's container is stopped and kept, with its volume: that is the way back.

mod plan;
pub mod ports;
mod role;
mod state;
mod survey;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use appliance_accessories::Shape;
use appliance_containers::names;
use appliance_push::change::{AdoptAction, Digest, ProxySpec, Tls};
use appliance_push::trust::Verified;
use appliance_rollout::Instance;
use base64::Engine as _;
use jiff::Timestamp;

use self::plan::{App, Plan};
use self::ports::Rule;
pub use self::survey::PROXY;
use super::apps::{Accepted, Adopted};
use super::change::done;
use super::container::{self, Making};
use super::drive::Audience;
use super::lease::Holder;
use super::{Agent, chain, effects, identity, parts, random, roll_out, route, unowned};
use crate::wire::{AdoptedApp, AdoptedRole, Adoption, End, Event};

/// The lease that keeps two adoptions apart; no app can have this name.
const LEASE: &str = "/adopt";
/// How long a container has to answer its health check before visitors are sent to it.
const READY: Duration = Duration::from_secs(30);
/// kamal-proxy's own time to end what is open when it is stopped.
const GRACE: Duration = Duration::from_secs(10);
/// How long new visitors may be kept waiting for those who are connected already.
const HELD: Duration = Duration::from_secs(3);

/// What would be taken over, and what could be given back.
///
/// # Errors
/// When Docker does not answer, or the ledgers cannot be read.
pub async fn look(agent: &Agent) -> anyhow::Result<Adoption> {
    let survey = agent.survey().await?;
    show(agent, &survey, &plan::plan(&survey))
}

fn show(agent: &Agent, survey: &plan::Survey, plan: &Plan) -> anyhow::Result<Adoption> {
    let mut undo = Vec::new();
    for app in agent.apps.ids()? {
        if agent.apps.read(&app)?.adopted.is_some() {
            undo.push(app);
        }
    }
    let mut shown = Adoption {
        proxy: survey.proxy.as_ref().map(|proxy| proxy.image.clone()),
        apps: plan.apps.iter().map(app_shown).collect(),
        certificates: plan
            .certificates
            .iter()
            .map(|found| (found.host.clone(), found.directory.clone()))
            .collect(),
        accessories: plan
            .accessories
            .iter()
            .map(|found| AdoptedRole {
                role: found.spec.service_name.clone(),
                container: found.container.chars().take(12).collect(),
                route: Some(route_shown(&found.spec)),
            })
            .collect(),
        notes: plan.notes.clone(),
        refusals: plan.refusals.clone(),
        undo,
        digest: String::new(),
    };
    shown.digest = Digest::of(&serde_json::to_vec(&shown)?).to_string();
    Ok(shown)
}

fn app_shown(app: &App) -> AdoptedApp {
    AdoptedApp {
        app: app.id.clone(),
        version: app.release.version.to_string(),
        image: format!("{}:{}", app.release.image.repository, app.release.image.tag),
        roles: app
            .release
            .roles
            .iter()
            .map(|role| AdoptedRole {
                role: role.name.to_string(),
                container: app
                    .containers
                    .get(role.name.as_str())
                    .map(|(_, name)| name.clone())
                    .unwrap_or_default(),
                route: role.proxy.as_ref().map(route_shown),
            })
            .collect(),
        stopped: app.stopped.is_some(),
    }
}

fn route_shown(spec: &ProxySpec) -> String {
    let hosts = match spec.hosts.as_slice() {
        [] => "any host".to_owned(),
        hosts => hosts.join(", "),
    };
    let paths = spec.path_prefixes.join(", ");
    let tls = match spec.tls {
        Tls::Off => "plain HTTP",
        Tls::Auto => "TLS",
        Tls::Secrets { .. } => "TLS with a certificate of its own",
    };
    let space = if paths.is_empty() { "" } else { " " };
    format!("{hosts}{space}{paths} to port {} ({tls})", spec.app_port)
}

/// Carries out a signed adoption, or its undoing.
///
/// # Errors
/// When Docker, systemd, nft or the proxy fail; what was begun has been taken back as far as it could be.
pub async fn change(
    agent: &Arc<Agent>,
    verified: &Verified,
    action: &AdoptAction,
    audience: &Audience,
) -> anyhow::Result<End> {
    let holder = Holder {
        owner: format!("{} ({})", verified.signer, verified.fingerprint),
        verb: "adopt".to_owned(),
        since: Timestamp::now(),
    };
    let Ok(_alone) = agent.leases.acquire(LEASE, holder.clone()) else {
        return Ok(refused(
            "busy",
            "this host is being adopted at this moment",
            "appliance status",
        ));
    };
    match action {
        AdoptAction::Take { plan, drain } => {
            let patience = Duration::from_secs(u64::from(*drain));
            take(agent, verified, plan, patience, &holder, audience).await
        }
        AdoptAction::Undo => give_back(agent, &holder, audience).await,
    }
}

fn refused(code: &str, message: &str, next: &str) -> End {
    End::Refused {
        code: code.to_owned(),
        message: message.to_owned(),
        next: next.to_owned(),
    }
}

async fn tell(audience: &Audience, phase: &str, detail: impl Into<String>) {
    let (phase, detail) = (phase.to_owned(), detail.into());
    tracing::info!("adopt: {phase}: {detail}");
    audience.tell(Event::Phase { phase, detail }).await;
}

async fn warn(audience: &Audience, message: String) {
    tracing::warn!("adopt: {message}");
    audience.tell(Event::Warning { message }).await;
}

async fn take(
    agent: &Arc<Agent>,
    verified: &Verified,
    expected: &Digest,
    patience: Duration,
    holder: &Holder,
    audience: &Audience,
) -> anyhow::Result<End> {
    let survey = agent.survey().await?;
    let plan = plan::plan(&survey);
    if let Some(why) = plan.refusals.first() {
        return Ok(refused("adopt", why, "appliance adopt --dry-run"));
    }
    if show(agent, &survey, &plan)?.digest != expected.as_str() {
        return Ok(refused(
            "moved",
            "what runs on the host is not any more what the plan showed",
            "appliance adopt --dry-run, and again",
        ));
    }
    let proxy = survey.proxy.context("the plan has no refusal without one")?;
    let mut leases = Vec::new();
    for app in &plan.apps {
        match agent.leases.acquire(&app.id, holder.clone()) {
            Ok(lease) => leases.push(lease),
            Err(other) => {
                let message = format!("{} is being changed by {} ({})", app.id, other.owner, other.verb);
                return Ok(refused("busy", &message, "try again when it is done"));
            }
        }
    }
    tell(
        audience,
        "recorded",
        "what runs becomes a release of the appliance",
    )
    .await;
    for app in &plan.apps {
        record(agent, verified, app)?;
    }
    if let Err(error) = switch(agent, &plan, &proxy, patience, audience).await {
        // Visitors over IPv4 were with kamal-proxy all the time, and stay there.
        abandon(agent, &plan).await;
        return Err(error.context(
            "the ports did not change hands; kamal-proxy serves as before (docker restart kamal-proxy brings back IPv6 and the host's own access to it)",
        ));
    }
    for app in &plan.apps {
        if let Err(error) = compare(agent, app, audience).await {
            warn(
                audience,
                format!("{}: cannot be compared: {}", app.id, chain(&*error)),
            )
            .await;
        }
    }
    agent.certificates.look_again();
    let names: Vec<&str> = plan.apps.iter().map(|app| app.id.as_str()).collect();
    Ok(done(format!(
        "{} served by the appliance; kamal-proxy is stopped and kept. Back: appliance adopt --undo. For good: docker rm {PROXY}",
        match names.as_slice() {
            [one] => format!("{one} is"),
            many => format!("{} are", many.join(", ")),
        }
    )))
}

/// Writes down what runs as the current release of its app; once more changes nothing but the number.
fn record(agent: &Agent, verified: &Verified, app: &App) -> anyhow::Result<()> {
    let mut release = app.release.clone();
    let sealed = identity::seal(agent.identity.recipient(), &app.secrets)?;
    release.sealed_secrets = base64::engine::general_purpose::STANDARD.encode(sealed);
    let number = agent
        .apps
        .accept(&app.id, &release, &verified.fingerprint, Timestamp::now())?;
    let roles = parts::roles(&release);
    agent.apps.update(&app.id, |state| {
        let rollout = state.numbers.next_rollout();
        state.numbers.record(appliance_rollout::Deployment {
            release: number,
            rollout,
            roles,
        });
        state.served.insert(number);
        state.stopped.clone_from(&app.stopped);
        state.adopted = Some(Adopted {
            rollout,
            release: number,
            containers: app
                .containers
                .iter()
                .map(|(role, (id, _))| (role.clone(), id.clone()))
                .collect(),
        });
    })?;
    Ok(())
}

async fn switch(
    agent: &Arc<Agent>,
    plan: &Plan,
    proxy: &plan::Proxy,
    patience: Duration,
    audience: &Audience,
) -> anyhow::Result<()> {
    let mut stopped = false;
    let visited = ports::ours().await;
    if !visited {
        tell(
            audience,
            "ports",
            "Docker's helper leaves 80 and 443, ours listens there",
        )
        .await;
        ports::put(Rule::HoldLocal).await?;
        ports::end_helpers(patience).await;
        if let Err(error) = ports::listen().await {
            // Docker itself keeps the ports (`userland-proxy: false`): whoever comes now waits until they are ours.
            warn(
                audience,
                format!(
                    "Docker keeps the ports itself ({}); new visitors wait while kamal-proxy stops",
                    chain(&error)
                ),
            )
            .await;
            ports::put(Rule::HoldAll).await?;
            // Those who are connected get their answers first; those who wait meanwhile are not kept waiting long.
            drain(agent, proxy, patience.min(HELD)).await?;
            agent.docker.stop(&proxy.id, Some(GRACE)).await?;
            stopped = true;
            if let Err(error) = ports::listen().await {
                agent.docker.start(&proxy.id).await?;
                return Err(error.into());
            }
        }
    }
    tell(
        audience,
        "routes",
        "certificates and routes are set, and each container is asked whether it is healthy",
    )
    .await;
    let routed = routes(agent, plan, visited, audience).await;
    if let Err(error) = routed {
        if stopped {
            ports::leave().await?;
            agent.docker.start(&proxy.id).await?;
        }
        return Err(error);
    }
    if !stopped {
        ports::put(Rule::Redirect).await?;
        tell(audience, "switched", "new visitors come to the appliance").await;
        let left = drain(agent, proxy, patience).await?;
        if left > 0 {
            let message = format!(
                "{left} connections were still open in kamal-proxy after {} s and are closed; --drain SECONDS waits longer",
                patience.as_secs()
            );
            warn(audience, message).await;
        }
        agent.docker.stop(&proxy.id, Some(GRACE)).await?;
    }
    tell(audience, "drained", "kamal-proxy is stopped").await;
    Ok(ports::release().await?)
}

/// Waits until nobody is connected to kamal-proxy, at most `patience`; who is left.
async fn drain(agent: &Agent, proxy: &plan::Proxy, patience: Duration) -> anyhow::Result<usize> {
    let found = agent.docker.inspect(&proxy.id).await?;
    Ok(ports::drain(found.map_or(0, |found| found.pid), patience).await)
}

/// Puts routes and certificates; `visited` where visitors may come to the appliance already.
async fn routes(agent: &Arc<Agent>, plan: &Plan, visited: bool, audience: &Audience) -> anyhow::Result<()> {
    for found in &plan.certificates {
        let taken = agent
            .certificates
            .adopt(&found.host, &found.directory, &found.chain, &found.key)
            .await;
        if let Err(error) = taken {
            warn(
                audience,
                format!(
                    "the certificate of {} is not taken over: {}",
                    found.host,
                    chain(&error)
                ),
            )
            .await;
        }
    }
    // Another app may have had the host names before the host was given back, and a maintenance page of that time is not
    // of this one.
    if !visited {
        unowned::clear(agent).await?;
    }
    for app in &plan.apps {
        let state = agent.apps.read(&app.id)?;
        let current = state.numbers.current.context("was just recorded")?;
        let accepted = agent.apps.release(&app.id, current.release)?;
        let secrets = agent.open_secrets(&accepted)?;
        for role in &accepted.release.roles {
            let (Some(spec), Some(instance)) = (&role.proxy, current.instance(role.name.as_str())) else {
                continue;
            };
            let found = agent
                .find(&app.id, &instance)
                .await?
                .with_context(|| format!("{}: the container of {} is gone", app.id, role.name))?;
            let address = effects::address(&found)?;
            agent.healthy(&found.name, spec, address, READY).await?;
            agent.put_route(&accepted, role, address, &secrets).await?;
        }
    }
    for accessory in &plan.accessories {
        let found = agent
            .docker
            .inspect(&accessory.container)
            .await?
            .with_context(|| format!("the container {} is gone", accessory.container))?;
        let local = agent.certificates.local_hosts(&accessory.spec);
        let service = route::service(&accessory.spec, &[effects::address(&found)?], local)?;
        agent.proxy.put_service(&service).await?;
    }
    Ok(())
}

/// Forgets what was recorded, and lets go of the ports if kamal-proxy still has its visitors.
async fn abandon(agent: &Arc<Agent>, plan: &Plan) {
    let free = async {
        ports::leave().await?;
        ports::release().await
    };
    if let Err(error) = free.await {
        tracing::error!("adopt: {}", chain(&error));
    }
    for app in &plan.apps {
        if let Err(error) = forget(agent, &app.id) {
            tracing::error!("adopt: {}: {}", app.id, chain(&*error));
        }
    }
}

/// Tells how a container made from the recorded release would differ from the one that runs.
async fn compare(agent: &Arc<Agent>, app: &App, audience: &Audience) -> anyhow::Result<()> {
    let state = agent.apps.read(&app.id)?;
    let adopted = state.adopted.context("was just recorded")?;
    let accepted: Accepted = agent.apps.release(&app.id, adopted.release)?;
    let secrets = agent.open_secrets(&accepted)?;
    for role in &accepted.release.roles {
        let instance = Instance {
            role: role.name.to_string(),
            rollout: adopted.rollout,
        };
        let Some(found) = agent.find(&app.id, &instance).await? else {
            continue;
        };
        let making = Making {
            app: &app.id,
            release: &accepted.release,
            number: accepted.number,
            secrets: &secrets,
            image: &found.image_id,
            volumes: Vec::new(),
            host_env: &std::collections::BTreeMap::new(),
            random: random(),
        };
        let mut spec = container::spec(&making, role, &instance)?;
        // Kamal says the time with each stop, ours lies in the container: that is no difference.
        spec.stop_timeout = role
            .stop_timeout
            .map(|seconds| Duration::from_secs(u64::from(seconds)));
        spec.name = format!("{}-compare-{}", spec.name, hex::encode(random::<4>()));
        // Nothing may find it and take it for the app's.
        spec.labels.retain(|label, _| !label.starts_with("appliance."));
        let theirs = agent.docker.description(&found.id.0).await?;
        let twin = agent.docker.create(&spec).await?;
        let ours = agent.docker.description(&twin.0).await;
        agent.docker.remove(&twin.0, true).await?;
        let (Some(ours), Some(theirs)) = (ours?, theirs) else {
            continue;
        };
        let shape = |told| Shape::of(told, &|value: &str| Digest::of(value.as_bytes()).to_string());
        let differences: Vec<String> = shape(&ours)
            .differences(&shape(&theirs))
            .iter()
            .map(ToString::to_string)
            .collect();
        if !differences.is_empty() {
            let message = format!(
                "{}: after a rollback to it, {} would be made anew with differences: {}",
                app.id,
                found.name,
                differences.join("; ")
            );
            warn(audience, message).await;
        }
    }
    Ok(())
}

/// What has to be decided before the ports can go back: apps that kamal-proxy never knew, and rollouts in progress.
async fn in_the_way(agent: &Arc<Agent>, adopted: &[(String, Adopted)]) -> anyhow::Result<Option<End>> {
    for (id, _) in adopted {
        if let Some(refused) = roll_out::interrupted(agent, id).await? {
            return Ok(Some(refused));
        }
    }
    let mut ours = Vec::new();
    for id in agent.apps.ids()? {
        let state = agent.apps.read(&id)?;
        if state.adopted.is_none() && state.numbers.current.is_some() {
            ours.push(id);
        }
    }
    let Some(first) = ours.first() else {
        return Ok(None);
    };
    let message = format!(
        "kamal-proxy knows nothing of {}, and would have the ports to itself: visitors would find nobody there",
        ours.join(", ")
    );
    let next = format!("appliance app remove --app {first}, if it is not needed any more");
    Ok(Some(refused("adopt", &message, &next)))
}

async fn give_back(agent: &Arc<Agent>, holder: &Holder, audience: &Audience) -> anyhow::Result<End> {
    let mut apps = Vec::new();
    for id in agent.apps.ids()? {
        if let Some(adopted) = agent.apps.read(&id)?.adopted {
            apps.push((id, adopted));
        }
    }
    if apps.is_empty() {
        return Ok(refused(
            "adopt",
            "no app of this host was adopted",
            "appliance status",
        ));
    }
    let Some(proxy) = agent.docker.inspect(PROXY).await? else {
        let message = format!("the container {PROXY} is not here any more; there is nothing to go back to");
        return Ok(refused("adopt", &message, "kamal setup"));
    };
    if let Some(refused) = in_the_way(agent, &apps).await? {
        return Ok(refused);
    }
    let mut leases = Vec::new();
    for (id, adopted) in &apps {
        match agent.leases.acquire(id, holder.clone()) {
            Ok(lease) => leases.push(lease),
            Err(other) => {
                let message = format!("{id} is being changed by {} ({})", other.owner, other.verb);
                return Ok(refused("busy", &message, "try again when it is done"));
            }
        }
        for (role, container) in &adopted.containers {
            if agent.docker.inspect(container).await?.is_none() {
                let message = format!(
                    "{id}: the container of {role} that Kamal had started is not here any more, and kamal-proxy knows no other"
                );
                return Ok(refused(
                    "adopt",
                    &message,
                    "kamal deploy, after: appliance app remove",
                ));
            }
        }
    }
    tell(audience, "starting", "the containers that kamal-proxy knows").await;
    for (id, adopted) in &apps {
        let accepted = agent.apps.release(id, adopted.release)?;
        for role in &accepted.release.roles {
            let Some(container) = adopted.containers.get(role.name.as_str()) else {
                continue;
            };
            agent.docker.start(container).await?;
            if let (Some(spec), Some(found)) = (&role.proxy, agent.docker.inspect(container).await?) {
                agent
                    .healthy(&found.name, spec, effects::address(&found)?, READY)
                    .await?;
            }
        }
    }
    if let Err(error) = back(agent, &proxy.id.0, audience).await {
        let again = async {
            agent.docker.stop(&proxy.id.0, Some(GRACE)).await?;
            ports::listen().await?;
            anyhow::Ok(ports::release().await?)
        };
        let outcome = match again.await {
            Ok(()) => "the appliance serves as before".to_owned(),
            Err(error) => format!("and the appliance could not take them again: {}", chain(&*error)),
        };
        return Err(error.context(format!("kamal-proxy did not take the ports; {outcome}")));
    }
    for (id, adopted) in &apps {
        for found in agent.containers(id).await? {
            let theirs = adopted
                .containers
                .values()
                .any(|container| *container == found.id.0);
            if !theirs {
                agent.docker.stop(&found.id.0, None).await?;
            }
        }
        for container in adopted.containers.values() {
            own_name(agent, container).await?;
        }
        forget(agent, id)?;
    }
    let names: Vec<&str> = apps.iter().map(|(id, _)| id.as_str()).collect();
    Ok(done(format!(
        "kamal-proxy serves {} again; the appliance's proxy is stopped. `kamal deploy` works as before; again: appliance adopt",
        names.join(", ")
    )))
}

/// Forgets an app but for the numbers that it used up: containers of ours that stay behind carry them.
///
/// Its routes stay in the proxy, which does not run any more; they go when the host is adopted again.
fn forget(agent: &Agent, app: &str) -> anyhow::Result<()> {
    let used = agent.apps.read(app)?.numbers;
    agent.apps.forget(app)?;
    agent.apps.update(app, |state| {
        state.numbers.last_release = used.last_release;
        state.numbers.last_rollout = used.last_rollout;
    })?;
    Ok(())
}

/// Gives a container that had made room for one of ours its name back: Kamal reads the version out of it.
async fn own_name(agent: &Agent, container: &str) -> anyhow::Result<()> {
    let Some(found) = agent.docker.inspect(container).await? else {
        return Ok(());
    };
    let Some((name, _)) = found.name.split_once("_replaced_") else {
        return Ok(());
    };
    if let Some(other) = agent.docker.inspect(name).await? {
        let aside = names::replaced(name, random());
        agent.docker.rename(&other.id.0, &aside).await?;
    }
    Ok(agent.docker.rename(container, name).await?)
}

async fn back(agent: &Arc<Agent>, proxy: &str, audience: &Audience) -> anyhow::Result<()> {
    tell(
        audience,
        "ports",
        "new visitors wait for a moment while the ports change hands",
    )
    .await;
    ports::put(Rule::HoldAll).await?;
    ports::leave().await?;
    agent.docker.start(proxy).await?;
    let found = agent.docker.inspect(proxy).await?.context("was just started")?;
    let addresses = found.networks.values().find_map(|network| network.ipv4);
    let address = addresses.context("kamal-proxy has no address")?;
    ports::answers(address.into(), READY).await?;
    tell(audience, "switched", "kamal-proxy answers").await;
    Ok(ports::release().await?)
}

/// Takes away what an adoption that was cut off left between visitors and whoever serves them.
pub async fn tidy() {
    if let Err(error) = ports::release().await {
        tracing::debug!("{}", chain(&error));
    }
}
