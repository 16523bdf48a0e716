//! Making, starting and replacing an accessory's container.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use appliance_accessories::Shape;
use appliance_accessories::port::Exposure;
use appliance_containers::ContainerSpec;
use appliance_containers::engine::NETWORK;
use appliance_push::change::Accessory;

use super::image::Found;
use super::making::{self, Making};
use super::record::Made;
use super::{Opened, Which, files, hide};
use crate::agent::Agent;
use crate::agent::drive::Audience;
use crate::failure::{Kind, failure};
use crate::wire::Event;

/// How long a server may take until it is well; a first start may have to build its database.
pub const READY: Duration = Duration::from_secs(120);

impl Agent {
    /// What the container of a definition would be.
    pub(super) fn accessory_spec(
        &self,
        which: &Which,
        definition: &Accessory,
        opened: &Opened,
        sources: &BTreeMap<String, String>,
        image: &Found,
    ) -> Result<ContainerSpec, making::MakingError> {
        making::spec(&Making {
            which,
            definition,
            opened,
            sources,
            directory: &self.accessories.directory(definition),
            image: &image.reference,
            image_volumes: &image.info.volumes,
        })
    }

    /// Makes the container of `definition` and starts it; the name must be free. Answers with its id.
    ///
    /// # Errors
    /// What could not be done; a container that could not be started is left for the keeper.
    pub(super) async fn create_accessory(
        &self,
        which: &Which,
        definition: &Accessory,
        sources: &BTreeMap<String, String>,
        image: &Found,
        audience: &Audience,
    ) -> anyhow::Result<String> {
        let opened = self.open_accessory(definition)?;
        let spec = self.accessory_spec(which, definition, &opened, sources, image)?;
        self.docker.ensure_network(NETWORK).await?;
        self.lay_out_files(definition, &opened, audience).await?;
        let created = self.docker.create(&spec).await?;
        let shape = self.shape(which, &created.0).await?;
        let hash = self.definition_hash(which, definition, &opened)?;
        // Written down before the start: a container that nobody remembers would be a stranger at the next look.
        self.accessories.records.update(which, |record| {
            record.pin = Some(image.pin.clone());
            record.sources.clone_from(sources);
            record.made = Some(Made {
                container: created.0.clone(),
                shape,
                definition: Some(Box::new(definition.clone())),
                hash,
                foreign: Vec::new(),
                pin: image.pin.clone(),
            });
        })?;
        self.docker.start(&created.0).await?;
        Ok(created.0)
    }

    async fn lay_out_files(
        &self,
        definition: &Accessory,
        opened: &Opened,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        let directory = self.accessories.directory(definition);
        let left = files::lay_out(&directory, definition, opened)?;
        for message in left {
            audience.tell(Event::Warning { message }).await;
        }
        Ok(())
    }

    /// Puts a container of `definition` in the place of the one that is there, on the same data.
    ///
    /// Everything that can be wrong with the definition is found before the old container is stopped.
    ///
    /// # Errors
    /// What could not be done.
    pub(super) async fn replace_accessory(
        &self,
        which: &Which,
        definition: &Accessory,
        sources: &BTreeMap<String, String>,
        image: &Found,
        audience: &Audience,
    ) -> anyhow::Result<String> {
        let opened = self.open_accessory(definition)?;
        self.accessory_spec(which, definition, &opened, sources, image)?;
        let former = self.accessories.records.read(which)?;
        if let Some(found) = self.container_of(&former).await? {
            self.docker.stop(&found.id.0, None).await?;
            self.docker.remove_keeping_volumes(&found.id.0, true).await?;
        }
        // A container of that name that is not the remembered one, such as the rest of an interrupted replacement.
        if let Some(other) = self.docker.inspect(definition.container.as_str()).await? {
            self.docker.stop(&other.id.0, None).await?;
            self.docker.remove_keeping_volumes(&other.id.0, true).await?;
        }
        self.create_accessory(which, definition, sources, image, audience)
            .await
    }

    /// Waits until it is well, and points the proxy at it if it has visitors.
    ///
    /// # Errors
    /// A sentence, if it is not well in time.
    pub(super) async fn settle(&self, definition: &Accessory, id: &str) -> anyhow::Result<()> {
        self.await_well(id, READY).await.map_err(|why| {
            failure(
                Kind::Other,
                format!("{} is not well: {why}", definition.container),
            )
            .hint(format!("appliance accessory logs {}", definition.name))
        })?;
        self.route_accessory(definition).await
    }

    /// A container's settings, without secrets.
    ///
    /// # Errors
    /// When Docker does not answer or the container is gone.
    pub(super) async fn shape(&self, which: &Which, id: &str) -> anyhow::Result<Shape> {
        let salt = self.accessories.records.read(which)?.salt;
        let told = self
            .docker
            .description(id)
            .await?
            .with_context(|| format!("container {id} is gone"))?;
        Ok(Shape::of(&told, &|value| hide(&salt, value)))
    }

    /// A hash of a definition with its secrets and files.
    ///
    /// # Errors
    /// When the record cannot be read.
    pub(super) fn definition_hash(
        &self,
        which: &Which,
        definition: &Accessory,
        opened: &Opened,
    ) -> anyhow::Result<String> {
        let salt = self.accessories.records.read(which)?.salt;
        let text = format!("{}\0{:?}", definition.canonical(), opened.0);
        Ok(hide(&salt, &text))
    }

    /// Whether the ports of a definition may be opened; tells where they are bound.
    ///
    /// # Errors
    /// When a port is for everybody and `host.yml` has no opening for it.
    pub(super) async fn check_ports(
        &self,
        definition: &Accessory,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        for (publish, exposure, said) in making::ports(definition)? {
            let port = publish.host_port.unwrap_or(publish.container_port);
            if !said {
                let message = format!(
                    "accessories/{}: port {port} is bound to 127.0.0.1; from elsewhere: appliance tunnel {}",
                    definition.name, definition.name
                );
                audience.tell(Event::Warning { message }).await;
            }
            if exposure != Exposure::Public || self.opened_to(port)? {
                continue;
            }
            let address = publish.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            return Err(failure(
                Kind::Refused,
                format!(
                    "accessories/{}: port {port} on {address} would be for everybody, and this host's firewall has no opening for it",
                    definition.name
                ),
            )
            .hint(format!(
                "on the host, add to /etc/appliance/host.yml: firewall: {{open: [{{port: {port}, from: [NETWORK]}}]}}, then: appliance bootstrap; or leave the address out and use: appliance tunnel {}",
                definition.name
            ))
            .into());
        }
        Ok(())
    }

    /// Whether `host.yml` opens this port to anybody.
    fn opened_to(&self, port: u16) -> anyhow::Result<bool> {
        let path = &self.accessories.host_yml;
        let text = match fs_err::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error.into()),
        };
        let host = appliance_config::host::read(&path.display().to_string(), &text)
            .map_err(|problems| anyhow::anyhow!("{problems}"))?;
        Ok(host
            .firewall
            .open
            .iter()
            .any(|opening| (opening.port.0.first..=opening.port.0.last).contains(&port)))
    }

    /// Refuses a container's name that belongs to somebody else on this host.
    ///
    /// # Errors
    /// When another app's accessory, or an app, has it.
    pub(super) async fn check_name(&self, which: &Which, definition: &Accessory) -> anyhow::Result<()> {
        for other in self.accessories.records.all()?.0 {
            if other == *which {
                continue;
            }
            let record = self.accessories.records.read(&other)?;
            if record
                .definition
                .is_some_and(|other| other.container == definition.container)
            {
                return Err(failure(
                    Kind::Refused,
                    format!(
                        "the container name {} belongs to {other} on this host",
                        definition.container
                    ),
                )
                .hint(format!(
                    "give accessories/{} a `service` of its own",
                    definition.name
                ))
                .into());
            }
        }
        if let Some(found) = self.docker.inspect(definition.container.as_str()).await?
            && found.labels.contains_key(crate::agent::container::APP)
        {
            return Err(failure(
                Kind::Refused,
                format!(
                    "the container {} is an app's, not an accessory's",
                    definition.container
                ),
            )
            .hint("appliance status")
            .into());
        }
        Ok(())
    }
}
