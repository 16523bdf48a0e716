//! Carries out the orders of a rollout. Each may be carried out again after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use appliance_containers::engine::{ContainerInfo, LogQuery, NETWORK, State};
use appliance_containers::{EngineError, names, ready};
use appliance_proxy::control::{Batch, Counts};
use appliance_proxy::names::ServiceName;
use appliance_proxy::snapshot::Service;
use appliance_push::change::{self, Role};
use appliance_rollout::{Effect, Instance, Plan, ReleaseNumber, Route};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::apps::{Accepted, AppsError};
use super::container::{self, Making};
use super::drive::{Audience, std_duration};
use super::identity::IdentityError;
use super::images::ImagesError;
use super::parts::Part;
use super::{Agent, host_env, random, route, unowned};
use crate::wire;

/// Lines of a failed container shown to the developer.
const LAST_LINES: u64 = 20;

/// Between SIGTERM and SIGKILL for a release command that took too long.
const COMMAND_GRACE: Duration = Duration::from_secs(10);

/// Why an order failed.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// Docker.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The app's ledgers.
    #[error(transparent)]
    Apps(#[from] AppsError),
    /// The image.
    #[error(transparent)]
    Images(#[from] ImagesError),
    /// The secrets.
    #[error(transparent)]
    Secrets(#[from] IdentityError),
    /// The role cannot become a container.
    #[error(transparent)]
    Role(#[from] container::RoleError),
    /// The assets.
    #[error(transparent)]
    Assets(#[from] super::assets::AssetsError),
    /// The proxy.
    #[error(transparent)]
    Proxy(#[from] appliance_proxy::control::ControlError),
    /// The proxy would refuse it.
    #[error("the proxy cannot serve the release: {0}")]
    Unserved(String),
    /// Another app, or an accessory, has a service of that name.
    #[error(
        "the proxy would know it as {service}, and {other} on this host has that name; give the role or the service another name"
    )]
    NamedAlike {
        /// The name.
        service: ServiceName,
        /// Whose it is.
        other: String,
    },
    /// The ledgers of the other apps.
    #[error("cannot see which services the other apps have")]
    Owners(#[source] anyhow::Error),
    /// Another app's container has the name.
    #[error("the container {name} belongs to {other}; give the role or the service another name")]
    TakenContainer {
        /// The container.
        name: String,
        /// The app.
        other: String,
    },
    /// The certificates.
    #[error(transparent)]
    Certificates(#[from] super::certificates::CertificatesError),
    /// The release names something that the proxy cannot serve.
    #[error("the release cannot be routed")]
    Route(#[source] appliance_proxy::names::NameError),
    /// The plan and the release do not fit.
    #[error("release {release} has no role {role}")]
    NoRole {
        /// Which release.
        release: ReleaseNumber,
        /// Which role.
        role: String,
    },
    /// The container is not there.
    #[error("there is no container for {0}")]
    NoContainer(Instance),
    /// The container has no address.
    #[error("the container {0} has no address on the network {NETWORK}; does it still run?")]
    NoAddress(String),
    /// The new container did not become ready.
    #[error("{name} did not become ready: {why}")]
    NotReady {
        /// The container.
        name: String,
        /// Why.
        why: String,
    },
    /// Somebody moved the tag between the look and the creation.
    #[error("{name} was made from another image than {wanted}; who else tags images here?")]
    OtherImage {
        /// The container.
        name: String,
        /// The image's name.
        wanted: String,
    },
    /// The release command failed.
    #[error("the release command ended with exit code {code}{}", if *out_of_memory { " (out of memory)" } else { "" })]
    ReleaseCommand {
        /// Its exit code.
        code: i64,
        /// Ended by the kernel for want of memory.
        out_of_memory: bool,
    },
    /// The release command took too long.
    #[error(
        "the release command was stopped after {seconds} s (x-appliance: release: timeout); what it did until then is done"
    )]
    ReleaseCommandTime {
        /// How long it may take.
        seconds: u32,
    },
    /// The new release does worse than the old one.
    #[error("{0}")]
    Watch(String),
}

mod bridge;
mod watch;

/// One rollout's hands.
pub struct Effects {
    agent: Arc<Agent>,
    app: String,
    plan: Plan,
    audience: Audience,
    secrets: Mutex<BTreeMap<ReleaseNumber, Arc<BTreeMap<String, String>>>>,
    /// Containers whose last lines were told.
    heard: Mutex<BTreeSet<String>>,
    /// What the old release's services had answered when the traffic was switched, for the watch.
    before: Mutex<BTreeMap<String, Counts>>,
}

impl Effects {
    /// The hands of the rollout `plan` of `app`.
    pub fn new(agent: Arc<Agent>, app: &str, plan: Plan, audience: Audience) -> Self {
        Self {
            agent,
            app: app.to_owned(),
            plan,
            audience,
            secrets: Mutex::default(),
            heard: Mutex::default(),
            before: Mutex::default(),
        }
    }

    /// The app's id.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// Carries out one order.
    ///
    /// # Errors
    /// What the rollout is told as the reason of the failure.
    pub async fn carry_out(&self, effect: &Effect) -> Result<(), EffectError> {
        match effect {
            Effect::Verify => self.verify().await,
            Effect::Pull { .. } => self.pull().await,
            Effect::UnsealSecrets => self
                .fresh()?
                .iter()
                .try_for_each(|part| self.secrets(part.accepted.number).map(drop)),
            Effect::Certify => self.certify().await,
            Effect::BridgeAssets { role } => self.bridge_assets(role).await,
            Effect::RunReleaseCommand => self.release_command().await,
            Effect::Create { instance } => self.create(instance).await,
            Effect::Start { instance } => self.start(instance).await,
            Effect::AwaitReady { instance, until } => self.await_ready(instance, *until).await,
            Effect::Canary { to } => self.canary(to).await,
            Effect::Switch { routes } => {
                self.remember_counts().await;
                self.switch(routes).await
            }
            Effect::SwitchBack { routes } => self.switch(routes).await,
            Effect::Follow { instance } => {
                let route = Route {
                    role: instance.role.clone(),
                    to: Some(instance.clone()),
                };
                self.switch(&[route]).await
            }
            Effect::Drain { instance, until } => self.drain(instance, *until).await,
            Effect::Stop { instance } => self.stop(instance).await,
            Effect::Watch { until } => self.watch(*until).await,
            Effect::Remove { instance } => self.remove(instance).await,
            Effect::Record { current } => Ok(self.agent.apps.update(&self.app, |state| {
                state.numbers.record(current.clone());
                state.served.insert(current.release);
            })?),
            Effect::Prune => {
                self.end_release_command().await;
                self.tag_latest().await;
                self.prune().await;
                Ok(())
            }
        }
    }

    /// The parts of the new deployment that get a new container.
    fn fresh(&self) -> Result<Vec<Part>, EffectError> {
        let mut parts = self.agent.apps.parts(&self.app, &self.plan.new)?;
        parts.retain(|part| !self.plan.stays(&part.instance));
        Ok(parts)
    }

    async fn verify(&self) -> Result<(), EffectError> {
        for instance in self.plan.created() {
            self.role(&instance)?;
        }
        for part in self.fresh()? {
            self.agent.images.obtainable(&part.accepted.release.image).await?;
        }
        Ok(())
    }

    fn accepted(&self, number: ReleaseNumber) -> Result<Accepted, EffectError> {
        Ok(self.agent.apps.release(&self.app, number)?)
    }

    /// The release and role behind an instance.
    fn role(&self, instance: &Instance) -> Result<(Accepted, Role), EffectError> {
        let number = [Some(&self.plan.new), self.plan.old.as_ref()]
            .into_iter()
            .flatten()
            .filter(|deployment| deployment.instance(&instance.role).as_ref() == Some(instance))
            .find_map(|deployment| deployment.release_of(&instance.role))
            .ok_or_else(|| EffectError::NoContainer(instance.clone()))?;
        let accepted = self.accepted(number)?;
        let role = role_of(&accepted, &instance.role)?.clone();
        Ok((accepted, role))
    }

    fn secrets(&self, number: ReleaseNumber) -> Result<Arc<BTreeMap<String, String>>, EffectError> {
        if let Some(known) = self.lock_secrets().get(&number) {
            return Ok(Arc::clone(known));
        }
        let accepted = self.accepted(number)?;
        let secrets = self.agent.open_secrets(&accepted)?;
        let secrets = Arc::new(secrets);
        self.lock_secrets().insert(number, Arc::clone(&secrets));
        Ok(secrets)
    }

    fn lock_secrets(
        &self,
    ) -> std::sync::MutexGuard<'_, BTreeMap<ReleaseNumber, Arc<BTreeMap<String, String>>>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(&self) -> Result<(), EffectError> {
        self.agent.docker.ensure_network(NETWORK).await?;
        for part in self.fresh()? {
            let secrets = self.secrets(part.accepted.number)?;
            self.agent
                .images
                .fetch(&part.accepted.release.image, &secrets)
                .await?;
        }
        Ok(())
    }

    async fn certify(&self) -> Result<(), EffectError> {
        let mut services = Vec::new();
        let mut specs = Vec::new();
        for part in self.fresh()? {
            if let Some(spec) = part.role.proxy {
                let somewhere = IpAddr::from([127, 0, 0, 1]);
                services.push(self.agent.service(&part.accepted, &spec, somewhere)?);
                specs.push(spec);
            }
        }
        // What the proxy would refuse at the switch is refused here, before anything starts.
        for service in &services {
            let snapshot = appliance_proxy::Snapshot {
                services: vec![service.clone()],
                ..appliance_proxy::Snapshot::default()
            };
            if let Some(problem) = snapshot.problems().into_iter().next() {
                return Err(EffectError::Unserved(problem));
            }
        }
        self.named_by_nobody_else(&services)?;
        self.unclaimed(services).await?;
        Ok(self
            .agent
            .certificates
            .ensure(&specs.iter().collect::<Vec<_>>())
            .await?)
    }

    /// Two apps can come to the same name of a service, as `shop` with a role `web-admin` and `shop-web` with `admin` do:
    /// each would take the other's visitors.
    fn named_by_nobody_else(&self, services: &[Service]) -> Result<(), EffectError> {
        let owners = unowned::owners(&self.agent, |other| other != self.app).map_err(EffectError::Owners)?;
        for service in services {
            if let Some(other) = owners.get(&service.name) {
                return Err(EffectError::NamedAlike {
                    service: service.name.clone(),
                    other: other.clone(),
                });
            }
        }
        Ok(())
    }

    /// Another app may have the host names and paths already.
    async fn unclaimed(&self, services: Vec<Service>) -> Result<(), EffectError> {
        let mut going = BTreeSet::new();
        for instance in self.plan.retired() {
            going.extend(self.service_of(&instance.role)?);
        }
        let listed = self.agent.proxy.list().await?.into_iter();
        let others = listed
            .map(|status| status.service)
            .filter(|other| !going.contains(&other.name))
            .filter(|other| services.iter().all(|service| service.name != other.name));
        let mut snapshot = appliance_proxy::Snapshot {
            services: others.collect(),
            ..appliance_proxy::Snapshot::default()
        };
        let before = snapshot.problems();
        snapshot.services.extend(services);
        match snapshot
            .problems()
            .into_iter()
            .find(|problem| !before.contains(problem))
        {
            Some(problem) => Err(EffectError::Unserved(problem)),
            None => Ok(()),
        }
    }

    async fn container(&self, instance: &Instance) -> Result<ContainerInfo, EffectError> {
        self.find(instance)
            .await?
            .ok_or_else(|| EffectError::NoContainer(instance.clone()))
    }

    async fn find(&self, instance: &Instance) -> Result<Option<ContainerInfo>, EffectError> {
        Ok(self.agent.find(&self.app, instance).await?)
    }

    fn making<'a>(
        &'a self,
        accepted: &'a Accepted,
        secrets: &'a BTreeMap<String, String>,
        image: &'a str,
        host_env: &'a BTreeMap<String, String>,
    ) -> Making<'a> {
        Making {
            volumes: Vec::new(),
            host_env,
            app: &self.app,
            release: &accepted.release,
            number: accepted.number,
            secrets,
            image,
            random: random(),
        }
    }

    async fn create(&self, instance: &Instance) -> Result<(), EffectError> {
        if self.find(instance).await?.is_some() {
            return Ok(());
        }
        let (accepted, role) = self.role(instance)?;
        let secrets = self.secrets(accepted.number)?;
        let image = self.agent.images.fetch(&accepted.release.image, &secrets).await?;
        let host_env = host_env::read(host_env::FILE.as_ref());
        let mut making = self.making(&accepted, &secrets, &image.name, &host_env);
        if let (Some(path), Some(_)) = (&role.asset_path, &role.proxy) {
            let volume = self.assets(&instance.role).volume(instance.rollout);
            making.volumes.push(container::asset_volume(
                &volume,
                path,
                role.asset_options.as_deref(),
            ));
        }
        let spec = container::spec(&making, &role, instance)?;
        // The same version again, or one that a stock Kamal left: its container makes room, as in Kamal.
        if let Some(former) = self.agent.docker.inspect(&spec.name).await? {
            let owner = former.labels.get(container::APP);
            if let Some(other) = owner.filter(|owner| **owner != self.app) {
                return Err(EffectError::TakenContainer {
                    name: spec.name,
                    other: other.clone(),
                });
            }
            let name = names::replaced(&spec.name, random());
            self.agent.docker.rename(&former.id.0, &name).await?;
        }
        let created = self.agent.docker.create(&spec).await?;
        // The name is for people and stock tools; what counts is that the digest runs.
        let made = self.agent.docker.inspect(&created.0).await?;
        if made.as_ref().is_some_and(|made| made.image_id == image.id) {
            return Ok(());
        }
        self.agent.docker.remove(&created.0, true).await?;
        Err(EffectError::OtherImage {
            name: spec.name,
            wanted: image.name,
        })
    }

    async fn start(&self, instance: &Instance) -> Result<(), EffectError> {
        if self.find(instance).await?.is_none() {
            // Somebody removed the old container by hand; its release and image are here.
            self.create(instance).await?;
        }
        let found = self.container(instance).await?;
        Ok(self.agent.docker.start(&found.id.0).await?)
    }

    async fn release_command(&self) -> Result<(), EffectError> {
        let accepted = self.accepted(self.plan.new.release)?;
        let Some(command) = &accepted.release.release_command else {
            return Ok(());
        };
        let role = role_of(&accepted, command.role.as_str())?;
        let instance = Instance {
            role: role.name.to_string(),
            rollout: self.plan.new.rollout,
        };
        let secrets = self.secrets(accepted.number)?;
        let image = self.agent.images.fetch(&accepted.release.image, &secrets).await?;
        let host_env = host_env::read(host_env::FILE.as_ref());
        let making = self.making(&accepted, &secrets, &image.name, &host_env);
        let spec = container::release_command(&making, role, &instance, &command.command)?;
        let (sender, mut lines) = mpsc::channel::<appliance_containers::engine::LogLine>(256);
        let audience = self.audience.clone();
        let show = tokio::spawn(async move {
            while let Some(line) = lines.recv().await {
                audience.tell(output("release command", &line.bytes)).await;
            }
        });
        let limit = Duration::from_secs(u64::from(command.timeout));
        let run = self.agent.docker.run_once(&spec, sender);
        let Ok(exit) = tokio::time::timeout(limit, run).await else {
            // Left alone it would go on beside the next attempt's, on the same database.
            self.agent.docker.stop(&spec.name, Some(COMMAND_GRACE)).await?;
            let _shown = show.await;
            return Err(EffectError::ReleaseCommandTime {
                seconds: command.timeout,
            });
        };
        let exit = exit?;
        let _shown = show.await;
        if exit.code == 0 {
            return Ok(());
        }
        Err(EffectError::ReleaseCommand {
            code: exit.code,
            out_of_memory: exit.oom_killed,
        })
    }

    /// Stops a release command that still runs when its rollout is over: the agent had died while it went back.
    async fn end_release_command(&self) {
        let name = container::release_command_name(&self.app, self.plan.new.rollout);
        let end = async {
            let found = self.agent.docker.inspect(&name).await?;
            match found.filter(|found| found.state == State::Running) {
                Some(found) => self.agent.docker.stop(&found.id.0, Some(COMMAND_GRACE)).await,
                None => Ok(()),
            }
        };
        if let Err(error) = end.await {
            tracing::warn!(
                app = self.app,
                "{}: {name} may still run: {}",
                self.app,
                super::chain(&error)
            );
        }
    }

    async fn await_ready(&self, instance: &Instance, until: Timestamp) -> Result<(), EffectError> {
        let (accepted, role) = self.role(instance)?;
        let found = self.container(instance).await?;
        let left = std_duration(Timestamp::now().duration_until(until));
        let ready = async {
            match &role.proxy {
                Some(spec) => self.probe(&found, spec, left).await,
                None => {
                    self.stable(&found, u64::from(accepted.release.readiness_delay))
                        .await
                }
            }
        };
        // A container that ends is known at once; waiting out the time limit would tell nothing more.
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(left, ready) => outcome.unwrap_or_else(|_| {
                Err(EffectError::NotReady {
                    name: found.name.clone(),
                    why: format!("still not ready after {} s (deploy_timeout)", left.as_secs()),
                })
            }),
            exit = self.agent.docker.wait_exit(&found.id.0) => Err(EffectError::NotReady {
                name: found.name.clone(),
                why: match exit {
                    Ok(exit) if exit.oom_killed => "it ran out of memory".to_owned(),
                    Ok(exit) => format!("it ended with exit code {}", exit.code),
                    Err(error) => super::chain(&error),
                },
            }),
        };
        if outcome.is_err() {
            self.last_words(&found).await;
        }
        outcome
    }

    async fn probe(
        &self,
        found: &ContainerInfo,
        spec: &change::ProxySpec,
        left: Duration,
    ) -> Result<(), EffectError> {
        let address = address(found)?;
        let probed = self
            .agent
            .proxy
            .probe(
                &[route::upstream(spec, address)],
                &route::health_check(spec),
                left,
            )
            .await?;
        match probed
            .upstreams
            .iter()
            .find_map(|upstream| upstream.failure.as_ref())
        {
            None => Ok(()),
            Some(failure) => Err(EffectError::NotReady {
                name: found.name.clone(),
                why: format!(
                    "GET {} on port {}: {failure}",
                    spec.healthcheck.path, spec.app_port
                ),
            }),
        }
    }

    /// Docker's verdict where the image or the options bring a health check, else running for `delay` seconds.
    async fn stable(&self, found: &ContainerInfo, delay: u64) -> Result<(), EffectError> {
        ready::wait(&*self.agent.docker, &found.id.0, Duration::from_secs(delay))
            .await
            .map_err(|why| EffectError::NotReady {
                name: found.name.clone(),
                why: super::chain(&why),
            })
    }

    async fn last_words(&self, found: &ContainerInfo) {
        let heard = || self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard().contains(&found.id.0) {
            return;
        }
        let query = LogQuery {
            tail: Some(LAST_LINES),
            ..LogQuery::default()
        };
        let mut lines = self.agent.docker.logs(&found.id.0, query);
        while let Some(Ok(line)) = lines.next().await {
            self.audience.tell(output(&found.name, &line.bytes)).await;
        }
        heard().insert(found.id.0.clone());
    }

    /// Points the proxy at these containers, all services in one step.
    async fn switch(&self, routes: &[Route]) -> Result<(), EffectError> {
        let mut batch = Batch::default();
        for route in routes {
            match &route.to {
                Some(instance) => batch.put.extend(self.service(instance).await?),
                None => batch.remove.extend(self.service_of(&route.role)?),
            }
        }
        // A service whose name changed leaves nothing behind.
        batch
            .remove
            .retain(|name| batch.put.iter().all(|service| service.name != *name));
        self.agent.proxy.put_services(&batch).await?;
        Ok(())
    }

    async fn service(&self, instance: &Instance) -> Result<Option<Service>, EffectError> {
        let (accepted, role) = self.role(instance)?;
        let found = self.container(instance).await?;
        let secrets = self.secrets(accepted.number)?;
        self.agent
            .prepare_route(&accepted, &role, address(&found)?, &secrets)
            .await
    }

    /// The proxy's service of a role, in whichever of the two deployments has one.
    fn service_of(&self, role: &str) -> Result<Option<appliance_proxy::names::ServiceName>, EffectError> {
        for deployment in [Some(&self.plan.new), self.plan.old.as_ref()]
            .into_iter()
            .flatten()
        {
            let Some(number) = deployment.release_of(role) else {
                continue;
            };
            let accepted = self.accepted(number)?;
            let spec = role_of(&accepted, role).ok().and_then(|role| role.proxy.as_ref());
            if let Some(spec) = spec {
                let name = appliance_proxy::names::ServiceName::parse(&spec.service_name)
                    .map_err(EffectError::Route)?;
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    async fn drain(&self, instance: &Instance, until: Timestamp) -> Result<(), EffectError> {
        let (_, role) = self.role(instance)?;
        let (Some(spec), Some(found)) = (&role.proxy, self.find(instance).await?) else {
            return Ok(());
        };
        let Ok(address) = address(&found) else {
            return Ok(());
        };
        let name =
            appliance_proxy::names::ServiceName::parse(&spec.service_name).map_err(EffectError::Route)?;
        let left = std_duration(Timestamp::now().duration_until(until));
        let drained = self
            .agent
            .proxy
            .drain(&name, &route::upstream(spec, address), left)
            .await?;
        if drained.cut + drained.tunnels_cut > 0 {
            let message = format!(
                "{} requests and {} WebSockets were still open in {} after {} s and were cut off; a longer drain_timeout lets them finish",
                drained.cut,
                drained.tunnels_cut,
                found.name,
                left.as_secs()
            );
            self.audience.tell(wire::Event::Warning { message }).await;
        }
        Ok(())
    }

    async fn stop(&self, instance: &Instance) -> Result<(), EffectError> {
        let Some(found) = self.find(instance).await? else {
            return Ok(());
        };
        let (accepted, role) = self.role(instance)?;
        Ok(self
            .agent
            .docker
            .stop(&found.id.0, container::grace(&accepted.release, &role))
            .await?)
    }

    async fn remove(&self, instance: &Instance) -> Result<(), EffectError> {
        let (accepted, role) = self.role(instance)?;
        if let Some(found) = self.find(instance).await? {
            self.agent
                .docker
                .stop(&found.id.0, container::grace(&accepted.release, &role))
                .await?;
            // A container whose death ended the wait for it was not heard yet, and soon nobody can hear it any more.
            self.last_words(&found).await;
            self.agent.docker.remove(&found.id.0, true).await?;
        }
        self.restore_name(&container::name(&accepted.release, &role))
            .await
    }

    /// Gives the container that made room for a new one of its name that name back.
    async fn restore_name(&self, name: &str) -> Result<(), EffectError> {
        if self.agent.docker.inspect(name).await?.is_some() {
            return Ok(());
        }
        let prefix = format!("{name}_replaced_");
        let containers = self.agent.containers(&self.app).await?;
        let former = containers.iter().find(|found| found.name.starts_with(&prefix));
        if let Some(former) = former {
            self.agent.docker.rename(&former.id.0, name).await?;
        }
        Ok(())
    }

    /// As Kamal does after a boot: stock tools know what is current by `latest` or `latest-DESTINATION`.
    ///
    /// A rollout that went back leaves the name with what serves.
    async fn tag_latest(&self) {
        let tag = async {
            let current = self.agent.apps.read(&self.app)?.numbers.current;
            if current.is_none_or(|current| current.rollout != self.plan.new.rollout) {
                return Ok(());
            }
            let accepted = self.accepted(self.plan.new.release)?;
            let release = &accepted.release;
            let secrets = self.secrets(accepted.number)?;
            let image = self.agent.images.fetch(&release.image, &secrets).await?;
            let latest = match &release.destination {
                Some(destination) => format!("latest-{destination}"),
                None => "latest".to_owned(),
            };
            let repository = release.image.repository.as_str();
            self.agent
                .docker
                .tag_image(&image.id, repository, &latest)
                .await?;
            Ok::<(), EffectError>(())
        };
        if let Err(error) = tag.await {
            tracing::warn!(
                app = self.app,
                "{}: the image is not tagged as latest: {}",
                self.app,
                super::chain(&error)
            );
        }
    }

    /// Best effort: tidying up never fails a release that serves.
    async fn prune(&self) {
        if let Err(error) = self.agent.prune(&self.app, self.plan.new.release, None).await {
            let message = format!("tidying up is not complete: {}", super::chain(&*error));
            tracing::warn!(app = self.app, "{}: {message}", self.app);
            self.audience.tell(wire::Event::Warning { message }).await;
        }
    }
}

pub(super) fn role_of<'a>(accepted: &'a Accepted, name: &str) -> Result<&'a Role, EffectError> {
    accepted
        .release
        .roles
        .iter()
        .find(|role| role.name.as_str() == name)
        .ok_or_else(|| EffectError::NoRole {
            release: accepted.number,
            role: name.to_owned(),
        })
}

/// Where the proxy reaches a container.
pub fn address(found: &ContainerInfo) -> Result<IpAddr, EffectError> {
    found
        .ip_on(NETWORK)
        .map(IpAddr::from)
        .ok_or_else(|| EffectError::NoAddress(found.name.clone()))
}

/// Bytes of an app as one line of output.
fn output(source: &str, bytes: &[u8]) -> wire::Event {
    wire::Event::Output {
        source: source.to_owned(),
        line: String::from_utf8_lossy(bytes)
            .trim_end_matches(['\n', '\r'])
            .to_owned(),
    }
}
