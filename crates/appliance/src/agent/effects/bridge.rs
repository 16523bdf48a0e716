//! The effects about assets.

use appliance_rollout::Instance;
use futures_util::TryStreamExt as _;
use tokio_util::io::{StreamReader, SyncIoBridge};

use super::{EffectError, Effects, container};
use crate::agent::assets::{Assets, AssetsError};

impl Effects {
    pub(super) fn assets(&self, role: &str) -> Assets {
        Assets::of(&self.agent.state, &self.app, role)
    }

    /// Gives the old and the new container of a role the union of their assets.
    pub(super) async fn bridge_assets(&self, role: &str) -> Result<(), EffectError> {
        let instance = self.plan.new.instance(role);
        let Some(instance) = instance else { return Ok(()) };
        let (accepted, wanted) = self.role(&instance)?;
        let Some(path) = &wanted.asset_path else {
            return Ok(());
        };
        let assets = self.assets(role);
        if !assets.complete(instance.rollout) {
            let secrets = self.secrets(accepted.number)?;
            let image = self.agent.images.fetch(&accepted.release.image, &secrets).await?;
            self.extract(&assets, &instance, &image.name, path).await?;
        }
        let old = self.plan.old.as_ref().and_then(|old| old.instance(role));
        let old = old.map(|old| old.rollout);
        let options = wanted.asset_options.as_deref().unwrap_or_default();
        let copy = options.split(',').any(|option| option == "rw");
        let new = instance.rollout;
        tokio::task::spawn_blocking(move || assets.unite(new, old, copy))
            .await
            .map_err(AssetsError::from)?
            .map_err(AssetsError::from)?;
        Ok(())
    }

    async fn extract(
        &self,
        assets: &Assets,
        instance: &Instance,
        image: &str,
        path: &str,
    ) -> Result<(), EffectError> {
        let docker = &self.agent.docker;
        let spec = container::assets(&self.app, instance, image);
        docker.remove(&spec.name, true).await?;
        let created = docker.create(&spec).await?;
        let (mut writer, reader) = tokio::io::duplex(1 << 18);
        let source = std::sync::Arc::clone(docker);
        let (id, path) = (created.0.clone(), path.to_owned());
        let copying = tokio::spawn(async move {
            let files = source.files(&id, &path).map_err(std::io::Error::other);
            let mut files = StreamReader::new(files);
            tokio::io::copy(&mut files, &mut writer).await.map(drop)
        });
        let discard = assets;
        let (assets, new) = (assets.clone(), instance.rollout);
        // The bridge has to be made where the runtime is.
        let reader = SyncIoBridge::new(reader);
        let unpacking = tokio::task::spawn_blocking(move || assets.unpack(new, reader));
        let unpacked = unpacking.await.map_err(AssetsError::from)?;
        let copied = copying.await.map_err(AssetsError::from)?;
        docker.remove(&created.0, true).await?;
        // What Docker said comes first: a path that the image lacks looks like an empty archive.
        if let Err(error) = copied.and(unpacked) {
            discard.discard(new).map_err(AssetsError::from)?;
            return Err(AssetsError::Files(error).into());
        }
        Ok(())
    }
}
