//! Images of accessories: pinned at first boot, moved only by an upgrade.

use appliance_containers::engine::{Credentials, ImageInfo, PullRequest};
use appliance_push::change::Accessory;

use super::record::Pin;
use super::{Opened, Record};
use crate::agent::drive::Audience;
use crate::agent::{Agent, chain};
use crate::wire::Event;

/// A pinned image that is on this host.
#[derive(Debug, Clone)]
pub struct Found {
    /// Which.
    pub pin: Pin,
    /// How the container names it.
    pub reference: String,
    /// What Docker says of it.
    pub info: ImageInfo,
}

impl Agent {
    /// The image that a definition is pinned to, on this host; pins it if it was not yet.
    ///
    /// What is here already is taken as it is: `accessory upgrade` is what moves an accessory to a newer one.
    ///
    /// # Errors
    /// When it is neither here nor in its registry.
    pub(super) async fn pinned_image(
        &self,
        record: &Record,
        definition: &Accessory,
        opened: &Opened,
    ) -> anyhow::Result<Found> {
        let pinned = record.pin.as_ref().filter(|pin| pin.image == definition.image);
        if let Some(pin) = pinned {
            return self.image_of(pin, definition, opened).await;
        }
        let info = match self.docker.inspect_image(&definition.image).await? {
            Some(info) => info,
            None => self.pull_reference(&definition.image, definition, opened).await?,
        };
        Ok(found(definition, info))
    }

    /// Exactly this image, from its registry if it is not on the host any more.
    ///
    /// # Errors
    /// When it is nowhere to be had.
    pub(super) async fn image_of(
        &self,
        pin: &Pin,
        definition: &Accessory,
        opened: &Opened,
    ) -> anyhow::Result<Found> {
        let info = match (self.docker.inspect_image(&pin.id).await?, &pin.digest) {
            (Some(info), _) => info,
            (None, Some(digest)) => self.pull_reference(digest, definition, opened).await?,
            (None, None) => anyhow::bail!(
                "the image {} ({}) that {} is pinned to is not on this host any more, and no registry is known to have it; \
                 load it again, or move on: appliance accessory upgrade {}",
                pin.image,
                pin.short(),
                definition.name,
                definition.name
            ),
        };
        let named = self.docker.inspect_image(&pin.image).await?;
        let reference = match (&pin.digest, named) {
            (_, Some(named)) if named.id == info.id => pin.image.clone(),
            (Some(digest), _) if info.digests.contains(digest) => digest.clone(),
            _ => info.id.clone(),
        };
        Ok(Found {
            pin: Pin {
                id: info.id.clone(),
                ..pin.clone()
            },
            reference,
            info,
        })
    }

    /// The newest image of the definition's name: the registry's, or the one that is here if it cannot be asked.
    ///
    /// # Errors
    /// When there is neither.
    pub(super) async fn newest_image(
        &self,
        definition: &Accessory,
        opened: &Opened,
        audience: &Audience,
    ) -> anyhow::Result<Found> {
        match self.pull_reference(&definition.image, definition, opened).await {
            Ok(info) => Ok(found(definition, info)),
            Err(error) => match self.docker.inspect_image(&definition.image).await? {
                Some(info) => {
                    audience
                        .tell(Event::Warning {
                            message: format!(
                                "{} could not be pulled ({}); the one on this host is taken",
                                definition.image,
                                chain(&*error)
                            ),
                        })
                        .await;
                    Ok(found(definition, info))
                }
                None => Err(error),
            },
        }
    }

    async fn pull_reference(
        &self,
        reference: &str,
        definition: &Accessory,
        opened: &Opened,
    ) -> anyhow::Result<ImageInfo> {
        let credentials = definition.registry.as_ref().and_then(|registry| {
            let password = opened.get(registry.password_secret.as_ref()?.as_str())?;
            Some(Credentials {
                username: registry.username.clone()?,
                password: password.clone(),
                server: registry.server.clone(),
            })
        });
        let request = PullRequest {
            reference: reference.to_owned(),
            credentials,
            platform: None,
        };
        Ok(self.docker.pull(&request).await?)
    }
}

fn found(definition: &Accessory, info: ImageInfo) -> Found {
    let repository = repository(&definition.image);
    let digest = info
        .digests
        .iter()
        .find(|digest| digest.split_once('@').is_some_and(|(name, _)| name == repository))
        .cloned();
    Found {
        reference: definition.image.clone(),
        pin: Pin {
            image: definition.image.clone(),
            id: info.id.clone(),
            digest,
        },
        info,
    }
}

/// The name without tag and digest: `registry.test:5000/team/db:1@sha256:…` → `registry.test:5000/team/db`.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    match name.rsplit_once(':') {
        // A colon before the last slash is that of the registry's port.
        Some((name, tag)) if !tag.contains('/') => name,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_repository_is_told_from_its_tag_and_its_registrys_port() {
        for (image, expect) in [
            ("postgres", "postgres"),
            ("postgres:17", "postgres"),
            ("registry.test:5000/db", "registry.test:5000/db"),
            (
                "registry.test:5000/team/db:1@sha256:00",
                "registry.test:5000/team/db",
            ),
        ] {
            assert_eq!(super::repository(image), expect);
        }
    }
}
