//! What the agent does to containers and routes, whoever asks: a rollout, the keeper, an administrator.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use appliance_containers::EngineError;
use appliance_containers::engine::{ContainerInfo, ContainerSummary, State};
use appliance_proxy::control::CertificatePem;
use appliance_proxy::snapshot::{Gate, Service};
use appliance_push::change::{ProxySpec, Role, Tls};
use appliance_rollout::{Deployment, Instance, ReleaseNumber};

use super::apps::Accepted;
use super::container;
use super::effects::EffectError;
use super::gate::app_id;
use super::identity::IdentityError;
use super::{Agent, adopt, assets, extras, images, route};

impl Agent {
    /// The container of one role of one rollout of `app`.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub async fn find(&self, app: &str, instance: &Instance) -> Result<Option<ContainerInfo>, EngineError> {
        // A damaged ledger hides an adopted container, never one of ours.
        if let Ok(state) = self.apps.read(app)
            && let Some(id) = state.adopted_container(instance)
            && let Some(found) = self.docker.inspect(id).await?
        {
            return Ok(Some(found));
        }
        let labels = [
            format!("{}={app}", container::APP),
            format!("{}={}", container::ROLLOUT, instance.rollout.0),
            format!("{}={}", container::ROLE, instance.role),
        ];
        match self.docker.list(&labels).await?.first() {
            Some(found) => self.docker.inspect(&found.id.0).await,
            None => Ok(None),
        }
    }

    /// The proxy's service that sends a role's requests to the container at `address`; its certificate is handed over.
    ///
    /// # Errors
    /// When the proxy refuses or does not answer; then the former route stands.
    pub async fn prepare_route(
        &self,
        accepted: &Accepted,
        role: &Role,
        address: IpAddr,
        secrets: &BTreeMap<String, String>,
    ) -> Result<Option<Service>, EffectError> {
        let Some(spec) = &role.proxy else {
            return Ok(None);
        };
        if let Tls::Secrets {
            certificate,
            private_key,
        } = &spec.tls
        {
            let secret = |name: &appliance_push::change::EnvName| {
                secrets
                    .get(name.as_str())
                    .cloned()
                    .ok_or_else(|| container::RoleError::Secret {
                        role: role.name.to_string(),
                        secret: name.clone(),
                    })
            };
            let pem = CertificatePem {
                chain: secret(certificate)?,
                key: secret(private_key)?,
            };
            let name = route::certificate_name(spec).map_err(EffectError::Route)?;
            self.proxy.put_certificate(&name, &pem).await?;
        }
        let mut service = self.service(accepted, spec, address)?;
        // A stopped app stays stopped over a rollout, as in Kamal (Kamal's `app maintenance`).
        let app = app_id(&accepted.release.service, accepted.release.destination.as_ref());
        if let Some(message) = self.apps.read(&app)?.closed(role.name.as_str()) {
            service.gate = Gate::Stopped {
                message: message.to_owned(),
            };
        }
        Ok(Some(service))
    }

    /// What the proxy is to do for a role, but for its gate.
    ///
    /// # Errors
    /// When the release names something that the proxy cannot serve.
    pub fn service(
        &self,
        accepted: &Accepted,
        spec: &ProxySpec,
        address: IpAddr,
    ) -> Result<Service, EffectError> {
        let mut service = route::service(spec, &[address], self.certificates.local_hosts(spec))
            .map_err(EffectError::Route)?;
        extras::apply(&mut service, spec, &accepted.release.error_pages).map_err(EffectError::Route)?;
        Ok(service)
    }

    /// Makes the proxy send a role's requests to the container at `address`; the certificate goes first.
    /// Tells whether that changed anything.
    ///
    /// # Errors
    /// When the proxy refuses or does not answer; then the former route stands.
    pub async fn put_route(
        &self,
        accepted: &Accepted,
        role: &Role,
        address: IpAddr,
        secrets: &BTreeMap<String, String>,
    ) -> Result<bool, EffectError> {
        let Some(service) = self.prepare_route(accepted, role, address, secrets).await? else {
            return Ok(false);
        };
        let applied = self.proxy.put_service(&service).await?;
        if applied.changed {
            tracing::info!(
                generation = applied.generation,
                "{}: requests go to {} at {address}",
                service.name,
                accepted.number
            );
        }
        Ok(applied.changed)
    }

    /// Asks a container's health check until it answers well, for as long as `patience`.
    ///
    /// # Errors
    /// When it does not, with what it answered last.
    pub async fn healthy(
        &self,
        name: &str,
        spec: &ProxySpec,
        address: IpAddr,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let upstream = [route::upstream(spec, address)];
        let check = route::health_check(spec);
        let probed = self.proxy.probe(&upstream, &check, patience).await?;
        match probed
            .upstreams
            .iter()
            .find_map(|upstream| upstream.failure.as_ref())
        {
            None => Ok(()),
            Some(why) => anyhow::bail!(
                "{name}: GET {} on port {}: {why}",
                spec.healthcheck.path,
                spec.app_port
            ),
        }
    }

    /// The secrets of a release, opened with this host's key.
    ///
    /// # Errors
    /// When they were sealed to another host or altered.
    pub fn open_secrets(&self, accepted: &Accepted) -> Result<BTreeMap<String, String>, IdentityError> {
        use base64::Engine as _;
        let sealed = base64::engine::general_purpose::STANDARD
            .decode(&accepted.release.sealed_secrets)
            .map_err(|_| IdentityError::Encoding)?;
        if sealed.is_empty() {
            return Ok(BTreeMap::new());
        }
        self.identity.unseal(&sealed)
    }

    /// Every container of `app`, newest first.
    ///
    /// # Errors
    /// When Docker does not answer.
    pub async fn containers(&self, app: &str) -> Result<Vec<ContainerSummary>, EngineError> {
        let mut found = self.docker.list(&[format!("{}={app}", container::APP)]).await?;
        let adopted = self.apps.read(app).ok().and_then(|state| state.adopted);
        if let Some(adopted) = adopted {
            for mut one in self.docker.list(&[container::ROLE.to_owned()]).await? {
                if adopted.containers.values().any(|id| *id == one.id.0) {
                    let labels = [
                        (container::APP, app.to_owned()),
                        (container::ROLLOUT, adopted.rollout.0.to_string()),
                        (container::RELEASE, adopted.release.0.to_string()),
                    ];
                    one.labels
                        .extend(labels.map(|(label, value)| (label.to_owned(), value)));
                    found.push(one);
                }
            }
            found.sort_by_key(|one| std::cmp::Reverse(one.created));
        }
        Ok(found)
    }

    /// Forgets what no rollback needs any more: stopped containers, releases, images, blobs.
    ///
    /// `retain` takes the place of the release's own number.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest was still tried.
    pub async fn prune(&self, app: &str, current: ReleaseNumber, retain: Option<u32>) -> anyhow::Result<()> {
        let release = self.apps.release(app, current)?;
        let keep = usize::try_from(retain.unwrap_or(release.release.retain))
            .unwrap_or(usize::MAX)
            .max(1);
        let state = self.apps.read(app)?;
        // As with containers: the current one, and so many to go back to (Kamal's `retain_containers`).
        let dropped = self.apps.forget_old(app, keep.saturating_add(1))?;
        let needed: Vec<String> = [&state.numbers.current, &state.numbers.previous]
            .into_iter()
            .flatten()
            .flat_map(Deployment::instances)
            .map(|instance| instance.rollout.0.to_string())
            .collect();
        let mut first_error = None;
        let state_directory = self.state.clone();
        let (name, keep_assets) = (app.to_owned(), needed.clone());
        let pruned =
            tokio::task::spawn_blocking(move || assets::prune(&state_directory, &name, &keep_assets));
        if let Err(error) = pruned.await? {
            tracing::warn!(app, "{app}: old assets stay: {}", super::chain(&error));
        }
        let mut ways_back = Vec::new();
        if let Some(adopted) = &state.adopted
            && self.docker.inspect(adopt::PROXY).await?.is_some()
        {
            ways_back.extend(adopted.containers.values().cloned());
        }
        let mut kept = BTreeMap::<String, usize>::new();
        for found in self.containers(app).await? {
            let rollout = found.labels.get(container::ROLLOUT).cloned().unwrap_or_default();
            if matches!(found.state, State::Running | State::Restarting | State::Paused) {
                continue;
            }
            // What was only helping the rollout that ends here is of no more use.
            if found.labels.contains_key(container::HELPER) {
                if let Err(error) = self.docker.remove(&found.id.0, false).await {
                    first_error.get_or_insert(error);
                }
                continue;
            }
            if needed.contains(&rollout) {
                continue;
            }
            // The way back to Kamal, which stands for as long as its proxy's container does.
            if ways_back.contains(&found.id.0) {
                continue;
            }
            // Counted per role, so that a role with many restarts never costs another its rollback.
            let role = found.labels.get(container::ROLE).cloned().unwrap_or_default();
            let count = kept.entry(role).or_default();
            *count += 1;
            if *count < keep {
                continue;
            }
            if let Err(error) = self.docker.remove(&found.id.0, false).await {
                first_error.get_or_insert(error);
            }
        }
        if !dropped.is_empty() {
            self.images.collect(&self.apps, images::MIN_AGE).await?;
        }
        match first_error {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }
}
