//! The effects about a part of the visitors, and about how the new release fares.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use appliance_proxy::control::{Batch, Counts};
use appliance_proxy::names::{ServiceName, UpstreamAddress};
use appliance_proxy::snapshot::{Canary, CanaryHeader};
use appliance_push::change::{ProxySpec, Watch};
use appliance_rollout::Instance;
use jiff::Timestamp;

use super::{EffectError, Effects, address, route, std_duration};
use crate::agent::{chain, watching};

/// Between two looks at the counts.
const LOOK: Duration = Duration::from_secs(1);
/// Looks until the new release counts as warm.
const WARM: u32 = 5;

/// A service that is watched.
struct Watched {
    instance: Instance,
    spec: ProxySpec,
    service: ServiceName,
    new: UpstreamAddress,
    warm: Counts,
}

impl Effects {
    /// Sends a part of the visitors to these containers, beside the old ones.
    pub(super) async fn canary(&self, to: &[Instance]) -> Result<(), EffectError> {
        let accepted = self.accepted(self.plan.new.release)?;
        let share = accepted.release.canary.as_ref();
        let mut batch = Batch::default();
        for instance in to {
            let Some(old) = self
                .plan
                .old
                .as_ref()
                .and_then(|old| old.instance(&instance.role))
            else {
                continue;
            };
            let (_, role) = self.role(instance)?;
            let (Some(spec), Some(mut service)) = (&role.proxy, self.service(&old).await?) else {
                continue;
            };
            let found = self.container(instance).await?;
            service.canary = Some(Canary {
                upstreams: vec![route::upstream(spec, address(&found)?)],
                percent: share.map_or(0.0, |share| share.percent),
                values: share.map(|share| share.cookies.clone()).unwrap_or_default(),
                header: share
                    .and_then(|share| share.header.as_ref())
                    .map(|header| CanaryHeader {
                        name: header.name.clone(),
                        value: header.value.clone(),
                    }),
            });
            batch.put.push(service);
        }
        self.agent.proxy.put_services(&batch).await?;
        Ok(())
    }

    /// Notes what the old containers answered so far: the proxy forgets it when they get no requests any more.
    pub(super) async fn remember_counts(&self) {
        let Some(old) = &self.plan.old else { return };
        for instance in old.proxied() {
            let counts = async {
                let (_, role) = self.role(&instance).ok()?;
                let spec = role.proxy?;
                let upstream = self.upstream(&instance, &spec).await?;
                let name = ServiceName::parse(&spec.service_name).ok()?;
                let stats = self.agent.proxy.stats(&name).await.ok()?;
                let found = stats.upstreams.into_iter().find(|one| one.upstream == upstream)?;
                Some((spec.service_name, found.counts))
            };
            if let Some((service, counts)) = counts.await {
                self.lock_before().insert(service, counts);
            }
        }
    }

    fn lock_before(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Counts>> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn upstream(&self, instance: &Instance, spec: &ProxySpec) -> Option<UpstreamAddress> {
        let found = self.find(instance).await.ok()??;
        Some(route::upstream(spec, address(&found).ok()?))
    }

    /// Compares the new containers with the old ones until then. A container that ends is heard of elsewhere.
    pub(super) async fn watch(&self, until: Timestamp) -> Result<(), EffectError> {
        let accepted = self.accepted(self.plan.new.release)?;
        let limits = accepted.release.watch.clone();
        let mut watched = self.watched().await?;
        let mut looks = 0;
        while Timestamp::now() < until {
            let left = std_duration(Timestamp::now().duration_until(until));
            tokio::time::sleep(left.min(LOOK)).await;
            looks += 1;
            if let Some(limits) = &limits {
                for one in &mut watched {
                    self.look(one, limits, looks).await?;
                }
            }
        }
        Ok(())
    }

    async fn watched(&self) -> Result<Vec<Watched>, EffectError> {
        let mut watched = Vec::new();
        for part in self.fresh()? {
            let Some(spec) = &part.role.proxy else { continue };
            let Some(new) = self.upstream(&part.instance, spec).await else {
                continue;
            };
            watched.push(Watched {
                service: ServiceName::parse(&spec.service_name).map_err(EffectError::Route)?,
                spec: spec.clone(),
                instance: part.instance,
                new,
                warm: Counts::default(),
            });
        }
        Ok(watched)
    }

    async fn look(&self, one: &mut Watched, limits: &Watch, looks: u32) -> Result<(), EffectError> {
        let stats = match self.agent.proxy.stats(&one.service).await {
            Ok(stats) => stats,
            // That the proxy does not answer is not the new release's fault.
            Err(error) => {
                tracing::debug!("{}: no counts: {}", one.service, chain(&error));
                return Ok(());
            }
        };
        let (mut new, mut beside) = (None, None);
        for upstream in stats.upstreams {
            if upstream.upstream == one.new {
                new = Some(upstream.counts);
            } else {
                beside = Some(upstream.counts);
            }
        }
        let Some(new) = new else {
            // Docker started it again, with another address and new counts.
            if let Some(moved) = self.upstream(&one.instance, &one.spec).await {
                one.new = moved;
                one.warm = Counts::default();
            }
            return Ok(());
        };
        if looks <= WARM {
            one.warm = new.clone();
        }
        // A canary has the old release beside it; after the switch there is what was noted before it.
        let old = beside.or_else(|| self.lock_before().get(one.service.as_str()).cloned());
        match watching::verdict(one.service.as_str(), &new, &one.warm, old.as_ref(), limits) {
            Some(why) => Err(EffectError::Watch(why)),
            None => Ok(()),
        }
    }
}
