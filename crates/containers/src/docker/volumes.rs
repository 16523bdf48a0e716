//! Verbs about volumes, and the engine's own words about a container.

use bollard::errors::Error;
use bollard::query_parameters::RemoveVolumeOptions;

use super::Docker;
use super::containers::checked;
use crate::error::EngineError;

impl Docker {
    pub(super) async fn find_volume(&self, name: &str) -> Result<bool, EngineError> {
        let doing = format!("looking at volume {name}");
        checked(&doing, name)?;
        let client = self.client(&doing).await?;
        match client.inspect_volume(name).await {
            Ok(_) => Ok(true),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }

    pub(super) async fn drop_volume(&self, name: &str) -> Result<bool, EngineError> {
        let doing = format!("removing volume {name}");
        checked(&doing, name)?;
        let client = self.client(&doing).await?;
        match client.remove_volume(name, None::<RemoveVolumeOptions>).await {
            Ok(()) => Ok(true),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }

    pub(super) async fn describe_container(
        &self,
        id: &str,
    ) -> Result<Option<serde_json::Value>, EngineError> {
        let doing = format!("looking at container {id}");
        checked(&doing, id)?;
        let client = self.client(&doing).await?;
        match client.inspect_container(id, None).await {
            Ok(found) => serde_json::to_value(found)
                .map(Some)
                .map_err(|_| EngineError::Incomplete {
                    doing,
                    what: "a form that can be read",
                }),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }
}
