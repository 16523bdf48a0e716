//! Accessories behind the proxy.

use appliance_containers::engine::NETWORK;
use appliance_proxy::control::CertificatePem;
use appliance_proxy::names::ServiceName;
use appliance_push::change::{Accessory, ProxySpec, Tls};

use super::Opened;
use crate::agent::{Agent, route};

impl Agent {
    /// Points the proxy at an accessory with visitors, where it is now; others are left alone.
    ///
    /// # Errors
    /// When the proxy refuses or does not answer.
    pub(super) async fn route_accessory(&self, definition: &Accessory) -> anyhow::Result<()> {
        let Some(spec) = &definition.proxy else {
            return Ok(());
        };
        let found = self.docker.inspect(definition.container.as_str()).await?;
        let network = if definition.network.is_empty() {
            NETWORK
        } else {
            &definition.network
        };
        let Some(address) = found.and_then(|found| found.ip_on(network)) else {
            return Ok(());
        };
        let service = route::service(spec, &[address.into()], self.certificates.local_hosts(spec))?;
        let known = self.proxy.list().await?;
        if known.iter().any(|status| {
            let live = &status.service;
            live.name == service.name && live.upstreams == service.upstreams && live.tls == service.tls
        }) {
            return Ok(());
        }
        self.hand_over_certificate(definition).await?;
        self.certificates.ensure(&[spec]).await?;
        self.proxy.put_service(&service).await?;
        tracing::info!("{}: requests go to {address}", service.name);
        Ok(())
    }

    /// How accessories with visitors are served, for those whose routes satisfy `wanted` by the app's id.
    pub fn proxied_accessories(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<ProxySpec> {
        let all = self
            .accessories
            .records
            .all()
            .map(|(all, _)| all)
            .unwrap_or_default();
        all.iter()
            .filter(|which| wanted(&which.app))
            .filter_map(|which| self.accessories.records.read(which).ok()?.definition?.proxy)
            .collect()
    }

    /// Services that accessories of this host have in the proxy.
    ///
    /// # Errors
    /// When a record cannot be read: then it is not known whether it has one.
    pub fn accessory_services(&self) -> anyhow::Result<Vec<ServiceName>> {
        let records = &self.accessories.records;
        let (all, damaged) = records.all()?;
        if let Some(error) = damaged.into_iter().next() {
            return Err(error.into());
        }
        let mut names = Vec::new();
        for which in &all {
            let definition = records.read(which)?.definition;
            if let Some(spec) = definition.and_then(|definition| definition.proxy) {
                names.push(ServiceName::parse(&spec.service_name)?);
            }
        }
        Ok(names)
    }

    async fn hand_over_certificate(&self, definition: &Accessory) -> anyhow::Result<()> {
        let Some(spec) = &definition.proxy else {
            return Ok(());
        };
        let Tls::Secrets {
            certificate,
            private_key,
        } = &spec.tls
        else {
            return Ok(());
        };
        let opened: Opened = self.open_accessory(definition)?;
        let secret = |name: &appliance_push::change::EnvName| {
            opened
                .get(name.as_str())
                .cloned()
                .ok_or_else(|| anyhow::anyhow!("the change carries no secret {name}"))
        };
        let pem = CertificatePem {
            chain: secret(certificate)?,
            key: secret(private_key)?,
        };
        self.proxy
            .put_certificate(&route::certificate_name(spec)?, &pem)
            .await?;
        Ok(())
    }

    /// Takes the accessory's route away, if it has one.
    ///
    /// # Errors
    /// When the proxy does not answer.
    pub(super) async fn unroute_accessory(&self, definition: &Accessory) -> anyhow::Result<()> {
        if let Some(spec) = &definition.proxy {
            self.proxy
                .remove_service(&ServiceName::parse(&spec.service_name)?)
                .await?;
        }
        Ok(())
    }
}
