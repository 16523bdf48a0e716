//! The real engine, over the daemon's socket.
//!
//! Each verb opens its own connection, so a daemon that comes back is found again by itself.
//! The API version is settled at the first verb and again after the daemon was away, since it may have been upgraded.

mod containers;
mod events;
mod images;
mod run;
mod session;
mod translate;
mod volumes;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bollard::API_DEFAULT_VERSION;
use bollard::errors::Error;
use bytes::Bytes;
use futures_util::future::FutureExt as _;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;

use crate::engine::{
    Answer, ContainerId, ContainerInfo, ContainerSummary, Engine, EngineInfo, Event, ExecRequest, Exit,
    ImageInfo, LogLine, LogQuery, PullRequest, RemoteImage,
};
use crate::error::EngineError;
use crate::session::{Session, SessionId, TerminalSize};
use crate::spec::ContainerSpec;

/// The oldest API we use, that of Docker 20.10.
const OLDEST: (usize, usize) = (1, 41);
const OLDEST_TEXT: &str = "1.41";

/// The oldest and the newest version of Docker's API that we speak, as `(1, 41)`.
#[must_use]
pub fn api_range() -> ((usize, usize), (usize, usize)) {
    let newest = API_DEFAULT_VERSION;
    (OLDEST, (newest.major_version, newest.minor_version))
}

/// Until a daemon that has something to do begins to answer.
const PATIENCE: Duration = Duration::from_secs(120);
/// Until a daemon answers that it is there.
const PING: Duration = Duration::from_secs(5);

/// A Docker daemon. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Docker {
    socket: PathBuf,
    client: Arc<Mutex<Option<bollard::Docker>>>,
}

impl Docker {
    /// The daemon on `socket`, mostly `/var/run/docker.sock`.
    ///
    /// Nothing is opened yet: the first verb connects and settles the API version, and so does the first one after the daemon was away.
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Docker {
            socket: socket.into(),
            client: Arc::default(),
        }
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A client whose API version is settled.
    async fn client(&self, doing: &str) -> Result<bollard::Docker, EngineError> {
        if let Some(client) = self.held().clone() {
            return Ok(client);
        }
        let socket = self.socket.to_string_lossy();
        let fresh = bollard::Docker::connect_with_unix(&socket, PING.as_secs(), API_DEFAULT_VERSION)
            .map_err(|error| self.failure(doing, error))?;
        let settled = match tokio::time::timeout(PING, fresh.negotiate_version()).await {
            Ok(settled) => settled.map_err(|error| self.failure(doing, error))?,
            Err(_) => {
                return Err(EngineError::TimedOut {
                    doing: doing.to_owned(),
                    limit: PING,
                });
            }
        };
        let version = settled.client_version();
        if (version.major_version, version.minor_version) < OLDEST {
            return Err(EngineError::TooOld {
                found: version.to_string(),
                needed: OLDEST_TEXT,
            });
        }
        let client = settled.with_timeout(PATIENCE);
        *self.held() = Some(client.clone());
        Ok(client)
    }

    /// What went wrong, in our words; forgets the settled version if the daemon was away, or is another one now.
    fn failure(&self, doing: &str, error: Error) -> EngineError {
        // An upgrade can drop the version that was settled with the engine before.
        if let Error::DockerResponseServerError {
            status_code: 400,
            message,
        } = &error
            && message.contains("client version")
        {
            *self.held() = None;
        }
        let error = translate::error(doing, &self.socket, error);
        if error.is_unreachable() {
            *self.held() = None;
        }
        error
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Option<bollard::Docker>> {
        // Whoever panicked held it for one assignment; the value is whole.
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for Docker {
    fn ping(&self) -> Answer<'_, ()> {
        async move {
            const DOING: &str = "asking whether Docker is there";
            let client = self.client(DOING).await?;
            match tokio::time::timeout(PING, client.ping()).await {
                Ok(answer) => answer.map(|_| ()).map_err(|error| self.failure(DOING, error)),
                Err(_) => Err(EngineError::TimedOut {
                    doing: DOING.to_owned(),
                    limit: PING,
                }),
            }
        }
        .boxed()
    }

    fn info(&self) -> Answer<'_, EngineInfo> {
        async move {
            const DOING: &str = "asking Docker about itself";
            let client = self.client(DOING).await?;
            let info = client.info().await.map_err(|error| self.failure(DOING, error))?;
            let version = client
                .version()
                .await
                .map_err(|error| self.failure(DOING, error))?;
            Ok(translate::info(
                info,
                version,
                client.client_version().to_string(),
            ))
        }
        .boxed()
    }

    fn ensure_network<'a>(&'a self, name: &'a str) -> Answer<'a, bool> {
        self.ensure_network_of(name).boxed()
    }

    fn pull<'a>(&'a self, request: &'a PullRequest) -> Answer<'a, ImageInfo> {
        self.pull_image(request).boxed()
    }

    fn resolve<'a>(&'a self, request: &'a PullRequest) -> Answer<'a, RemoteImage> {
        self.resolve_remote(request).boxed()
    }

    fn inspect_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageInfo>> {
        self.image(reference).boxed()
    }

    fn images(&self) -> Answer<'_, Vec<ImageInfo>> {
        self.every_image().boxed()
    }

    fn tag_image<'a>(&'a self, image: &'a str, repository: &'a str, tag: &'a str) -> Answer<'a, ()> {
        self.name_image(image, repository, tag).boxed()
    }

    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, bool> {
        self.drop_image(reference).boxed()
    }

    fn export_image<'a>(&'a self, references: &'a [&'a str]) -> BoxStream<'a, Result<Bytes, EngineError>> {
        self.save_images(references)
    }

    fn load_image(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> Answer<'_, Vec<String>> {
        self.load_archive(archive).boxed()
    }

    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> Answer<'a, ContainerId> {
        self.create_container(spec).boxed()
    }

    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        self.start_container(id).boxed()
    }

    fn stop<'a>(&'a self, id: &'a str, grace: Option<Duration>) -> Answer<'a, ()> {
        self.stop_container(id, grace).boxed()
    }

    fn kill<'a>(&'a self, id: &'a str, signal: &'a str) -> Answer<'a, ()> {
        self.kill_container(id, signal).boxed()
    }

    fn remove<'a>(&'a self, id: &'a str, force: bool) -> Answer<'a, bool> {
        self.remove_container(id, force).boxed()
    }

    fn remove_keeping_volumes<'a>(&'a self, id: &'a str, force: bool) -> Answer<'a, bool> {
        self.remove_only_container(id, force).boxed()
    }

    fn has_volume<'a>(&'a self, name: &'a str) -> Answer<'a, bool> {
        self.find_volume(name).boxed()
    }

    fn remove_volume<'a>(&'a self, name: &'a str) -> Answer<'a, bool> {
        self.drop_volume(name).boxed()
    }

    fn description<'a>(&'a self, id: &'a str) -> Answer<'a, Option<serde_json::Value>> {
        self.describe_container(id).boxed()
    }

    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> Answer<'a, ()> {
        self.rename_container(id, name).boxed()
    }

    fn inspect<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ContainerInfo>> {
        self.inspect_container(id).boxed()
    }

    fn list<'a>(&'a self, labels: &'a [String]) -> Answer<'a, Vec<ContainerSummary>> {
        self.list_containers(labels).boxed()
    }

    fn logs<'a>(&'a self, id: &'a str, query: LogQuery) -> BoxStream<'a, Result<LogLine, EngineError>> {
        self.container_logs(id, query)
    }

    fn files<'a>(&'a self, id: &'a str, path: &'a str) -> BoxStream<'a, Result<Bytes, EngineError>> {
        self.container_files(id, path)
    }

    fn wait_exit<'a>(&'a self, id: &'a str) -> Answer<'a, Exit> {
        self.wait_container(id).boxed()
    }

    fn run_once<'a>(&'a self, spec: &'a ContainerSpec, output: mpsc::Sender<LogLine>) -> Answer<'a, Exit> {
        self.run_to_end(spec, output).boxed()
    }

    fn exec<'a>(
        &'a self,
        id: &'a str,
        command: &'a ExecRequest,
        output: mpsc::Sender<LogLine>,
    ) -> Answer<'a, i64> {
        self.exec_in(id, command, output).boxed()
    }

    fn start_session<'a>(&'a self, id: &'a str, size: Option<TerminalSize>) -> Answer<'a, Session> {
        self.start_session_in(id, size).boxed()
    }

    fn exec_session<'a>(
        &'a self,
        id: &'a str,
        command: &'a ExecRequest,
        size: Option<TerminalSize>,
    ) -> Answer<'a, Session> {
        self.exec_session_in(id, command, size).boxed()
    }

    fn resize<'a>(&'a self, id: &'a SessionId, size: TerminalSize) -> Answer<'a, ()> {
        Docker::resize(self, id, size).boxed()
    }

    fn session_exit<'a>(&'a self, id: &'a SessionId) -> Answer<'a, i64> {
        self.exit_of(id).boxed()
    }

    fn events(&self, labels: Vec<String>) -> BoxStream<'static, Event> {
        events::stream(self.clone(), labels)
    }
}
