//! Verbs about networks and single containers.

use std::collections::HashMap;
use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{NetworkConnectRequest, NetworkCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptions, DownloadFromContainerOptions, KillContainerOptions, ListContainersOptions,
    LogsOptions, RemoveContainerOptions, RenameContainerOptions, StopContainerOptions, WaitContainerOptions,
};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};

use super::{Docker, PATIENCE, translate};
use crate::engine::{ContainerId, ContainerInfo, ContainerSummary, Exit, LogLine, LogQuery};
use crate::error::EngineError;
use crate::request;
use crate::spec::ContainerSpec;

/// What Docker waits before SIGKILL if nobody says otherwise.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// The text goes into the path of a request: letters, digits and `_.-` only.
pub(super) fn checked<'a>(doing: &str, id: &'a str) -> Result<&'a str, EngineError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let good = id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.chars().all(plain);
    good.then_some(id).ok_or_else(|| EngineError::Malformed {
        doing: doing.to_owned(),
        given: id.to_owned(),
    })
}

impl Docker {
    pub(super) async fn ensure_network_of(&self, name: &str) -> Result<bool, EngineError> {
        let doing = format!("making sure that the network {name} exists");
        checked(&doing, name)?;
        let client = self.client(&doing).await?;
        match client.inspect_network(name, None).await {
            Ok(_) => return Ok(false),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
            Err(error) => return Err(self.failure(&doing, error)),
        }
        let wanted = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            ..NetworkCreateRequest::default()
        };
        match client.create_network(wanted).await {
            Ok(_) => Ok(true),
            // Somebody else made it in between.
            Err(Error::DockerResponseServerError { status_code: 409, .. }) => Ok(false),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }

    pub(super) async fn create_container(&self, spec: &ContainerSpec) -> Result<ContainerId, EngineError> {
        let doing = format!("creating container {}", spec.name);
        checked(&doing, &spec.name)?;
        let client = self.client(&doing).await?;
        let version = client.client_version();
        if let Some((what, minor)) = request::needs(spec)
            .into_iter()
            .find(|need| version.minor_version < need.1)
        {
            return Err(EngineError::Unsupported {
                doing,
                what,
                needed: format!("1.{minor}"),
                found: version.to_string(),
            });
        }
        // The daemon would find a missing one only at the start.
        for network in &spec.tuning.more_networks {
            let doing = format!("{doing} on network {network}");
            let found = client.inspect_network(checked(&doing, network)?, None).await;
            found.map_err(|error| self.failure(&doing, error))?;
        }
        let options = CreateContainerOptions {
            name: Some(spec.name.clone()),
            platform: spec.tuning.platform.clone().unwrap_or_default(),
        };
        let created = client
            .create_container(Some(options), request::body(spec))
            .await
            .map_err(|error| self.failure(&doing, error))?;
        for network in &spec.tuning.more_networks {
            let join = NetworkConnectRequest {
                container: created.id.clone(),
                endpoint_config: Some(request::endpoint(&spec.aliases)),
            };
            if let Err(error) = client.connect_network(network, join).await {
                // Half a container would be found by its name and taken for a whole one.
                let _ = self.remove_container(&created.id, true).await;
                return Err(self.failure(
                    &format!("joining container {} to network {network}", spec.name),
                    error,
                ));
            }
        }
        Ok(ContainerId(created.id))
    }

    pub(super) async fn start_container(&self, id: &str) -> Result<(), EngineError> {
        let doing = format!("starting container {id}");
        let client = self.client(&doing).await?;
        client
            .start_container(checked(&doing, id)?, None)
            .await
            .map_err(|error| self.failure(&doing, error))
    }

    pub(super) async fn stop_container(&self, id: &str, grace: Option<Duration>) -> Result<(), EngineError> {
        let doing = format!("stopping container {id}");
        checked(&doing, id)?;
        let mut client = self.client(&doing).await?;
        // The answer comes when it has stopped. A container may have a longer time of its own.
        let own = match grace {
            Some(grace) => grace,
            None => self.stop_timeout_of(&client, id).await.unwrap_or(DEFAULT_GRACE),
        };
        client.set_timeout(own + PATIENCE);
        let seconds = grace.map(|grace| i32::try_from(request::whole_seconds(grace)).unwrap_or(i32::MAX));
        let options = StopContainerOptions {
            t: seconds,
            signal: None,
        };
        client
            .stop_container(id, Some(options))
            .await
            .map_err(|error| self.failure(&doing, error))
    }

    async fn stop_timeout_of(&self, client: &bollard::Docker, id: &str) -> Option<Duration> {
        let seconds = client
            .inspect_container(id, None)
            .await
            .ok()?
            .config?
            .stop_timeout?;
        u64::try_from(seconds).ok().map(Duration::from_secs)
    }

    pub(super) async fn kill_container(&self, id: &str, signal: &str) -> Result<(), EngineError> {
        let doing = format!("sending {signal} to container {id}");
        checked(&doing, id)?;
        let client = self.client(&doing).await?;
        let options = KillContainerOptions {
            signal: signal.to_owned(),
        };
        client
            .kill_container(id, Some(options))
            .await
            .map_err(|error| self.failure(&doing, error))
    }

    pub(super) async fn remove_container(&self, id: &str, force: bool) -> Result<bool, EngineError> {
        self.remove_with(id, force, true).await
    }

    pub(super) async fn remove_only_container(&self, id: &str, force: bool) -> Result<bool, EngineError> {
        self.remove_with(id, force, false).await
    }

    async fn remove_with(&self, id: &str, force: bool, anonymous_volumes: bool) -> Result<bool, EngineError> {
        let doing = format!("removing container {id}");
        checked(&doing, id)?;
        let client = self.client(&doing).await?;
        let options = RemoveContainerOptions {
            v: anonymous_volumes,
            force,
            link: false,
        };
        match client.remove_container(id, Some(options)).await {
            Ok(()) => Ok(true),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(Error::DockerResponseServerError {
                status_code: 409,
                message,
            }) if message.contains("already in progress") => Ok(true),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }

    pub(super) async fn rename_container(&self, id: &str, name: &str) -> Result<(), EngineError> {
        let doing = format!("renaming container {id} to {name}");
        checked(&doing, id)?;
        checked(&doing, name)?;
        let client = self.client(&doing).await?;
        let options = RenameContainerOptions {
            name: name.to_owned(),
        };
        client
            .rename_container(id, options)
            .await
            .map_err(|error| self.failure(&doing, error))
    }

    pub(super) async fn inspect_container(&self, id: &str) -> Result<Option<ContainerInfo>, EngineError> {
        let doing = format!("looking at container {id}");
        checked(&doing, id)?;
        let client = self.client(&doing).await?;
        match client.inspect_container(id, None).await {
            Ok(found) => translate::container(found)
                .map(Some)
                .ok_or(EngineError::Incomplete { doing, what: "Id" }),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failure(&doing, error)),
        }
    }

    pub(super) async fn list_containers(
        &self,
        labels: &[String],
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        const DOING: &str = "listing containers";
        let client = self.client(DOING).await?;
        let options = ListContainersOptions {
            all: true,
            filters: label_filter(labels),
            ..ListContainersOptions::default()
        };
        let found = client
            .list_containers(Some(options))
            .await
            .map_err(|error| self.failure(DOING, error))?;
        let mut found: Vec<_> = found.into_iter().filter_map(translate::summary).collect();
        found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.name.cmp(&b.name)));
        Ok(found)
    }

    pub(super) fn container_logs<'a>(
        &'a self,
        id: &'a str,
        query: LogQuery,
    ) -> BoxStream<'a, Result<LogLine, EngineError>> {
        let doing = format!("reading the log of container {id}");
        let seconds = |at: Option<i64>| at.map_or(0, |at| i32::try_from(at.max(0)).unwrap_or(i32::MAX));
        let options = LogsOptions {
            follow: query.follow,
            stdout: true,
            stderr: true,
            since: seconds(query.since),
            until: seconds(query.until),
            timestamps: query.timestamps,
            tail: query
                .tail
                .map_or_else(|| "all".to_owned(), |lines| lines.to_string()),
        };
        stream::once(async move {
            checked(&doing, id)?;
            let client = self.client(&doing).await?;
            let lines = client.logs(id, Some(options));
            Ok(lines
                .map_ok(translate::line)
                .map_err(move |error| self.failure(&doing, error))
                .boxed())
        })
        .try_flatten()
        .boxed()
    }

    pub(super) fn container_files<'a>(
        &'a self,
        id: &'a str,
        path: &'a str,
    ) -> BoxStream<'a, Result<Bytes, EngineError>> {
        let doing = format!("reading {path} of container {id}");
        let options = DownloadFromContainerOptions {
            path: path.to_owned(),
        };
        stream::once(async move {
            checked(&doing, id)?;
            let client = self.client(&doing).await?;
            let archive = client.download_from_container(id, Some(options));
            Ok(archive.map_err(move |error| self.failure(&doing, error)).boxed())
        })
        .try_flatten()
        .boxed()
    }

    /// Goes on waiting when the daemon goes away and comes back, as it does when it is upgraded under live-restore.
    pub(super) async fn wait_container(&self, id: &str) -> Result<Exit, EngineError> {
        let doing = format!("waiting for the end of container {id}");
        checked(&doing, id)?;
        let mut reached = false;
        let code = loop {
            match self.wait_once(id, &doing, &mut reached).await {
                Err(error) if reached && error.is_unreachable() => {
                    tracing::debug!(
                        id,
                        error = &error as &dyn std::error::Error,
                        "waiting for Docker to come back"
                    );
                    // The first event tells that it is back.
                    super::events::stream(self.clone(), Vec::new()).next().await;
                }
                outcome => break outcome?,
            }
        };
        // One that was started with auto-removal may be gone by now.
        let oom_killed = self
            .inspect_container(id)
            .await?
            .is_some_and(|found| found.oom_killed);
        Ok(Exit { code, oom_killed })
    }

    async fn wait_once(&self, id: &str, doing: &str, reached: &mut bool) -> Result<i64, EngineError> {
        let client = self.client(doing).await?;
        let options = WaitContainerOptions {
            condition: "not-running".to_owned(),
        };
        *reached = true;
        let mut answers = std::pin::pin!(client.wait_container(id, Some(options)));
        match answers.next().await {
            Some(Ok(answer)) => Ok(answer.status_code),
            Some(Err(Error::DockerContainerWaitError { code, .. })) => Ok(code),
            Some(Err(error)) => Err(self.failure(doing, error)),
            None => Err(EngineError::Incomplete {
                doing: doing.to_owned(),
                what: "StatusCode",
            }),
        }
    }
}

pub(super) fn label_filter(labels: &[String]) -> Option<HashMap<String, Vec<String>>> {
    (!labels.is_empty()).then(|| HashMap::from([("label".to_owned(), labels.to_vec())]))
}
