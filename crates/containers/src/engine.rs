//! The verbs we need of a container engine, in our own words.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::error::EngineError;
use crate::session::{Session, SessionId, TerminalSize};
use crate::spec::ContainerSpec;

/// The network that Kamal's containers share.
pub const NETWORK: &str = "kamal";

/// An answer that comes later.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, EngineError>>;

/// A container engine. `id` is a container id or name throughout.
pub trait Engine: Send + Sync {
    /// Asks whether the daemon answers at all; fails within a few seconds if not.
    fn ping(&self) -> Answer<'_, ()>;

    /// What the daemon is and how it is set up.
    fn info(&self) -> Answer<'_, EngineInfo>;

    /// Makes sure that a bridge network of this name exists; says whether it had to be made.
    fn ensure_network<'a>(&'a self, name: &'a str) -> Answer<'a, bool>;

    /// Pulls an image and returns what arrived.
    fn pull<'a>(&'a self, request: &'a PullRequest) -> Answer<'a, ImageInfo>;

    /// Asks a registry which image a name means, without pulling it.
    fn resolve<'a>(&'a self, request: &'a PullRequest) -> Answer<'a, RemoteImage>;

    /// An image by id, tag or digest reference; `None` if there is none.
    fn inspect_image<'a>(&'a self, reference: &'a str) -> Answer<'a, Option<ImageInfo>>;

    /// Every image, each with the diff ids of its layers.
    fn images(&self) -> Answer<'_, Vec<ImageInfo>>;

    /// Gives an image a further name, moving it from the image that had it.
    fn tag_image<'a>(&'a self, image: &'a str, repository: &'a str, tag: &'a str) -> Answer<'a, ()>;

    /// Removes a name of an image, and the image with its last name. Says whether there was one. Images in use are a conflict.
    fn remove_image<'a>(&'a self, reference: &'a str) -> Answer<'a, bool>;

    /// The images as one `docker save` archive.
    fn export_image<'a>(&'a self, references: &'a [&'a str]) -> BoxStream<'a, Result<Bytes, EngineError>>;

    /// Loads a `docker save` archive or OCI archive; returns the references and ids that the daemon reports.
    fn load_image(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> Answer<'_, Vec<String>>;

    /// Creates a container, not started, and returns its id. A taken name is a conflict.
    fn create<'a>(&'a self, spec: &'a ContainerSpec) -> Answer<'a, ContainerId>;

    /// Starts a container; one that runs already is left alone.
    fn start<'a>(&'a self, id: &'a str) -> Answer<'a, ()>;

    /// Stops a container: its stop signal, then SIGKILL after `grace` (rounded up to whole seconds; `None`: the container's own, else 10 s).
    ///
    /// One that does not run is left alone.
    fn stop<'a>(&'a self, id: &'a str, grace: Option<Duration>) -> Answer<'a, ()>;

    /// Sends a signal, such as `SIGTERM`, to the main process.
    fn kill<'a>(&'a self, id: &'a str, signal: &'a str) -> Answer<'a, ()>;

    /// Removes a container with its anonymous volumes; kills it first if `force`. Says whether there was one.
    fn remove<'a>(&'a self, id: &'a str, force: bool) -> Answer<'a, bool>;

    /// Removes a container and nothing else: volumes without a name stay too. Says whether there was one.
    fn remove_keeping_volumes<'a>(&'a self, id: &'a str, force: bool) -> Answer<'a, bool>;

    /// Whether there is a volume of this name.
    fn has_volume<'a>(&'a self, name: &'a str) -> Answer<'a, bool>;

    /// Removes a volume and what is in it. Says whether there was one. One in use is a conflict.
    fn remove_volume<'a>(&'a self, name: &'a str) -> Answer<'a, bool>;

    /// Everything the engine says about a container, in its own words (`GET /containers/{id}/json`).
    fn description<'a>(&'a self, id: &'a str) -> Answer<'a, Option<serde_json::Value>>;

    /// Gives a container another name.
    fn rename<'a>(&'a self, id: &'a str, name: &'a str) -> Answer<'a, ()>;

    /// A container's state; `None` if there is none of that id or name.
    fn inspect<'a>(&'a self, id: &'a str) -> Answer<'a, Option<ContainerInfo>>;

    /// Containers in any state that carry all these labels (`key` or `key=value`), newest first.
    fn list<'a>(&'a self, labels: &'a [String]) -> Answer<'a, Vec<ContainerSummary>>;

    /// What a container wrote, both streams in order.
    fn logs<'a>(&'a self, id: &'a str, query: LogQuery) -> BoxStream<'a, Result<LogLine, EngineError>>;

    /// A file or directory of a container in any state, as a tar archive whose names begin with its last component.
    fn files<'a>(&'a self, id: &'a str, path: &'a str) -> BoxStream<'a, Result<Bytes, EngineError>>;

    /// Waits until a container is not running and tells how it ended.
    ///
    /// Goes on waiting across a restart of the daemon; the caller sets the limit.
    fn wait_exit<'a>(&'a self, id: &'a str) -> Answer<'a, Exit>;

    /// Runs a container to its end, sends what it writes to `output`, and leaves it behind for inspection.
    ///
    /// The name makes it happen once: if a container of that name exists, it is followed (or, if it has ended, read) instead of running another.
    /// A receiver that is dropped stops the copying, not the container.
    fn run_once<'a>(&'a self, spec: &'a ContainerSpec, output: mpsc::Sender<LogLine>) -> Answer<'a, Exit>;

    /// Runs a command in a running container.
    fn exec<'a>(
        &'a self,
        id: &'a str,
        command: &'a ExecRequest,
        output: mpsc::Sender<LogLine>,
    ) -> Answer<'a, i64>;

    /// Starts a created container (with `tuning.interactive` and `tuning.joined`) joined to the caller; `size` if it was made with a terminal.
    fn start_session<'a>(&'a self, id: &'a str, size: Option<TerminalSize>) -> Answer<'a, Session>;

    /// Runs a command in a running container joined to the caller; with a terminal if `size` is given.
    fn exec_session<'a>(
        &'a self,
        id: &'a str,
        command: &'a ExecRequest,
        size: Option<TerminalSize>,
    ) -> Answer<'a, Session>;

    /// Tells the program that its terminal has another size.
    fn resize<'a>(&'a self, id: &'a SessionId, size: TerminalSize) -> Answer<'a, ()>;

    /// The exit code of a session whose output has ended.
    fn session_exit<'a>(&'a self, id: &'a SessionId) -> Answer<'a, i64>;

    /// What happens to containers, for ever: reconnects with back-off when Docker goes away.
    ///
    /// After [`Event::Connected`] the caller has to look at the containers anew, since events may have been missed.
    fn events(&self, labels: Vec<String>) -> BoxStream<'static, Event>;
}

/// A container's id, 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub String);

impl ContainerId {
    /// The first twelve digits, which Docker also registers as a name on user-defined networks.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl std::fmt::Display for ContainerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.short())
    }
}

/// What the daemon is and how it is set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineInfo {
    /// Such as `20.10.24`.
    pub version: String,
    /// The API version in use between us, such as `1.41`.
    pub api_version: String,
    /// `linux`.
    pub os: String,
    /// In Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// Containers go on while the daemon restarts.
    pub live_restore: bool,
    /// The default logging driver.
    pub log_driver: String,
    /// Such as `overlay2` or `overlayfs`.
    pub storage_driver: String,
    /// Images are kept by containerd: an image's id is its manifest's digest, not its configuration's.
    pub containerd_store: bool,
    /// Where the daemon keeps its data.
    pub data_root: String,
    /// `1` or `2`.
    pub cgroup_version: String,
    /// Processors.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Containers that run.
    pub containers_running: u32,
    /// The daemon's own warnings.
    pub warnings: Vec<String>,
}

impl EngineInfo {
    /// What a host should not run without, in sentences; empty when all is well.
    pub fn degraded(&self) -> Vec<String> {
        let mut found = Vec::new();
        if !self.live_restore {
            found.push("live-restore is off: restarting Docker stops every container".to_owned());
        }
        if self.log_driver == "json-file" {
            found.push("the default log driver is json-file: logs without limits fill the disk".to_owned());
        }
        found
    }
}

/// An image to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullRequest {
    /// `[host[:port]/]path@sha256:…` or `…:tag`.
    pub reference: String,
    /// For a registry that asks.
    pub credentials: Option<Credentials>,
    /// Such as `linux/arm64`; the daemon's own if `None`.
    pub platform: Option<String>,
}

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteImage {
    /// Digest of its manifest or index.
    pub digest: String,
    /// What it is built for: system, architecture (in Go's words), variant.
    pub platforms: Vec<(String, String, Option<String>)>,
}

/// A registry login.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user name.
    pub username: String,
    /// The password or token.
    pub password: String,
    /// The registry's host, such as `ghcr.io`.
    pub server: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// An image in the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImageInfo {
    /// `sha256:…`; of the configuration in the classic store, of the manifest in containerd's.
    pub id: String,
    /// `repository:tag` names.
    pub tags: Vec<String>,
    /// `repository@sha256:…` names.
    pub digests: Vec<String>,
    /// `linux`.
    pub os: String,
    /// In Go's words: `amd64`, `arm64`.
    pub architecture: String,
    /// Such as `v8`.
    pub variant: Option<String>,
    /// When it was built, RFC 3339, if known.
    pub created: Option<String>,
    /// Unpacked bytes.
    pub size: u64,
    /// Digest of each uncompressed layer, bottom first.
    pub diff_ids: Vec<String>,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// The image's environment, `KEY=VALUE`.
    pub env: Vec<String>,
    /// The image's user, empty for root.
    pub user: String,
    /// `80/tcp` and so on.
    pub exposed_ports: Vec<String>,
    /// Paths that it declares as volumes.
    pub volumes: Vec<String>,
    /// Whether the image brings a health check.
    pub has_healthcheck: bool,
}

/// The life of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Made, never started.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended, about to be started again by its restart policy.
    Restarting,
    /// Being removed.
    Removing,
    /// Ended.
    Exited,
    /// Could not be removed.
    Dead,
}

/// The verdict of a container's own health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// The container has no health check.
    None,
    /// Not yet decided.
    Starting,
    /// Good.
    Healthy,
    /// Bad.
    Unhealthy,
}

/// A container, looked at closely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerInfo {
    /// Its id.
    pub id: ContainerId,
    /// Its name, without the slash that the API puts before it.
    pub name: String,
    /// The id of its image.
    pub image_id: String,
    /// The name by which it was created.
    pub image: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its environment, `KEY=VALUE`.
    pub env: Vec<String>,
    /// RFC 3339.
    pub created: String,
    /// Its state.
    pub state: State,
    /// The exit code of the last run; 0 if it has never ended.
    pub exit_code: i64,
    /// The last run was ended by the kernel for want of memory.
    pub oom_killed: bool,
    /// Why it could not be started, in the daemon's words; mostly empty.
    pub error: String,
    /// RFC 3339; year 1 if never.
    pub started: String,
    /// RFC 3339; year 1 if never.
    pub finished: String,
    /// Its own health check.
    pub health: Health,
    /// What the last health checks printed, oldest first.
    pub health_log: Vec<String>,
    /// How often its restart policy has started it again.
    pub restarts: u64,
    /// Its addresses, by network.
    pub networks: BTreeMap<String, Address>,
    /// Process id of its main process on the host; 0 if not running.
    pub pid: i64,
    /// Its hostname.
    pub hostname: String,
}

impl ContainerInfo {
    /// Its IPv4 address on `network`, while it runs.
    pub fn ip_on(&self, network: &str) -> Option<Ipv4Addr> {
        self.networks.get(network).and_then(|address| address.ipv4)
    }
}

/// Where a container is on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Address {
    /// Present while it runs.
    pub ipv4: Option<Ipv4Addr>,
    /// Present while it runs, on networks with IPv6.
    pub ipv6: Option<Ipv6Addr>,
    /// Its names there.
    pub aliases: Vec<String>,
}

/// A container in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContainerSummary {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The name of its image.
    pub image: String,
    /// The id of its image.
    pub image_id: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its state.
    pub state: State,
    /// In the daemon's words: `Up 3 hours (healthy)`.
    pub status: String,
    /// Unix seconds.
    pub created: i64,
}

/// Which part of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// The last lines only; all if `None`.
    pub tail: Option<u64>,
    /// From this Unix second on.
    pub since: Option<i64>,
    /// Up to this Unix second.
    pub until: Option<i64>,
    /// Go on with what is written from now on, until the container ends.
    pub follow: bool,
    /// Begin each line with the time in RFC 3339 and a space.
    pub timestamps: bool,
}

/// Where a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A piece of output: mostly a line with its newline, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where it was written; always standard output for a container with a terminal.
    pub stream: Stream,
    /// The bytes.
    pub bytes: Bytes,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exit {
    /// The exit code; 128 + n after signal n.
    pub code: i64,
    /// Ended by the kernel for want of memory.
    pub oom_killed: bool,
}

/// A command to run in a running container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// `KEY=VALUE`, in addition to the container's own.
    pub env: Vec<String>,
    /// The container's own if `None`.
    pub user: Option<String>,
    /// The container's own if `None`.
    pub workdir: Option<String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The stream is up; events before it may have been missed.
    Connected,
    /// Docker went away; the next event is `Connected` once it is back.
    Disconnected {
        /// Why, for the log.
        reason: String,
    },
    /// Something happened to a container.
    Container(ContainerEvent),
}

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// Which one.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Unix nanoseconds on the daemon's clock.
    pub at_nanos: i64,
    /// What.
    pub what: Happening,
}

/// What happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// Made.
    Created,
    /// Started.
    Started,
    /// Its main process ended.
    Died {
        /// The exit code.
        code: i64,
    },
    /// Processes in it were ended by the kernel for want of memory.
    OutOfMemory,
    /// Docker sent it a signal, because somebody asked for that: to stop it, or for something else.
    Signalled,
    /// Its health check decided anew.
    Health(Health),
    /// Stopped on request.
    Stopped,
    /// Renamed.
    Renamed,
    /// Removed.
    Removed,
}
