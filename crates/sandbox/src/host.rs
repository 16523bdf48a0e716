//! A host: a container that boots systemd.
//!
//! ```text
//!            start                reboot, kill + power_on
//!  (absent) ───────► booting ──► booted ───────► booting
//!                                  │ remove, from anywhere
//!                                  ▼
//!                               (absent)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::models::{ContainerCreateBody, ContainerInspectResponse, PortBinding};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, InspectContainerOptions, KillContainerOptions,
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
    StopContainerOptionsBuilder, WaitContainerOptions,
};
use futures_util::StreamExt as _;

use crate::engine::{Progress, Sandbox};
use crate::error::{SandboxError, is_absent, is_conflict};
use crate::exec::{Command, Output};
use crate::image::{Distro, Image, ImageRef};
use crate::network;

/// How long a host may take to boot. Measured: one second on two idle cores.
const BOOT_LIMIT: Duration = Duration::from_secs(120);

const DISTRO_LABEL: &str = "appliance.sandbox.distro";
const NETWORK_LABEL: &str = "appliance.sandbox.network";

/// A host's name: its container's name and its host name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// Checks a name: 1 to 40 of `a-z`, `0-9` and `-`, not beginning or ending with `-`.
    ///
    /// # Errors
    /// [`SandboxError::Name`], saying what is wrong.
    pub fn parse(text: &str) -> Result<Self, SandboxError> {
        let refuse = |why| {
            Err(SandboxError::Name {
                name: text.to_owned(),
                why,
            })
        };
        if text.is_empty() || text.len() > 40 {
            return refuse("it must have 1 to 40 characters");
        }
        if !text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        {
            return refuse("only a-z, 0-9 and - may occur");
        }
        if text.starts_with('-') || text.ends_with('-') {
            return refuse("it may not begin or end with -");
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A port of the host that the machine's loopback passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// The TCP port inside.
    pub host: u16,
    /// The port on 127.0.0.1; 0 lets Docker choose.
    pub machine: u16,
}

/// How a host is started.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// The distribution.
    pub distro: Distro,
    /// Its name.
    pub name: Name,
    /// Start from this snapshot instead of bare.
    pub snapshot: Option<ImageRef>,
    /// The Docker network, made if absent; `appliance-sandbox` unless given.
    pub network: Option<String>,
    /// Ports passed on from the machine's loopback.
    pub publish: Vec<Publish>,
    /// Public keys that may log in as root.
    pub authorized_keys: Vec<String>,
    /// Labels on the container, to find it by.
    pub labels: BTreeMap<String, String>,
    /// Memory limit in bytes; none if absent.
    pub memory: Option<i64>,
}

impl HostOptions {
    /// A bare host on the default network, with nothing published and no keys.
    #[must_use]
    pub fn new(name: Name, distro: Distro) -> Self {
        Self {
            distro,
            name,
            snapshot: None,
            network: None,
            publish: Vec::new(),
            authorized_keys: Vec::new(),
            labels: BTreeMap::new(),
            memory: None,
        }
    }
}

/// A host that was started.
#[derive(Clone, Debug)]
pub struct Host {
    sandbox: Arc<Sandbox>,
    name: Name,
    id: String,
    distro: Distro,
    network: String,
}

/// A host as the list shows it.
#[derive(Clone, Debug)]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// Whether its container runs.
    pub running: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Sandbox {
    /// Starts a host: builds the image if need be, creates and starts the container, installs root's keys.
    ///
    /// Returns when PID 1 runs; [`Host::wait_booted`] waits for the rest.
    ///
    /// # Errors
    /// [`SandboxError::Exists`] if the name is taken, else what building or Docker failed with.
    pub async fn start(
        self: &Arc<Self>,
        options: &HostOptions,
        progress: Progress<'_>,
    ) -> Result<Host, SandboxError> {
        let image = match &options.snapshot {
            Some(snapshot) => snapshot.clone(),
            None => self.ensure(&Image::Host(options.distro), progress).await?,
        };
        let network = options
            .network
            .clone()
            .unwrap_or_else(|| network::DEFAULT.to_owned());
        self.ensure_network(&network).await?;
        let id = self.create_and_start(options, &image, &network).await?;
        let host = Host {
            sandbox: Arc::clone(self),
            name: options.name.clone(),
            id,
            distro: options.distro,
            network,
        };
        if !options.authorized_keys.is_empty() {
            let keys = options.authorized_keys.join("\n") + "\n";
            host.copy_in("/root/.ssh/authorized_keys", keys.into_bytes(), 0o600)
                .await?;
        }
        Ok(host)
    }

    async fn create_and_start(
        &self,
        options: &HostOptions,
        image: &ImageRef,
        network: &str,
    ) -> Result<String, SandboxError> {
        let name = options.name.as_str();
        let mut machine = self.machine();
        loop {
            let body = body(options, image, network, machine);
            let query = CreateContainerOptionsBuilder::default().name(name).build();
            let id = match self.docker().create_container(Some(query), body).await {
                Ok(created) => created.id,
                Err(error) if is_conflict(&error) => {
                    return Err(SandboxError::Exists {
                        name: name.to_owned(),
                    });
                }
                Err(error) => return Err(SandboxError::docker(format!("create host `{name}`"))(error)),
            };
            match self
                .docker()
                .start_container(&id, None::<StartContainerOptions>)
                .await
            {
                Ok(()) => return Ok(id),
                Err(error) => {
                    // The name must not stay taken by a host that never was.
                    let _best_effort = self.remove_container(&id).await;
                    if !machine.privileged {
                        return Err(SandboxError::docker(format!("start host `{name}`"))(error));
                    }
                    tracing::debug!(%error, "privileged containers are refused here; trying without");
                    machine = self.without_privilege();
                }
            }
        }
    }

    /// Finds a host by name.
    ///
    /// # Errors
    /// [`SandboxError::Unknown`] if there is none of ours with that name.
    pub async fn host(self: &Arc<Self>, name: &Name) -> Result<Host, SandboxError> {
        let unknown = || SandboxError::Unknown {
            name: name.to_string(),
        };
        let found = match self
            .docker()
            .inspect_container(name.as_str(), None::<InspectContainerOptions>)
            .await
        {
            Ok(found) => found,
            Err(error) if is_absent(&error) => return Err(unknown()),
            Err(error) => return Err(SandboxError::docker(format!("look at host `{name}`"))(error)),
        };
        let labels = found.config.and_then(|config| config.labels).unwrap_or_default();
        let distro = labels
            .get(DISTRO_LABEL)
            .and_then(|text| Distro::parse(text))
            .ok_or_else(unknown)?;
        Ok(Host {
            sandbox: Arc::clone(self),
            name: name.clone(),
            id: found.id.ok_or_else(unknown)?,
            distro,
            network: labels
                .get(NETWORK_LABEL)
                .cloned()
                .unwrap_or_else(|| network::DEFAULT.to_owned()),
        })
    }

    /// All hosts and outsiders of ours that carry a label (and, if given, that value), running or not.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker cannot say.
    pub async fn list(&self, label: &str, value: Option<&str>) -> Result<Vec<HostStatus>, SandboxError> {
        let wanted = value.map_or_else(|| label.to_owned(), |value| format!("{label}={value}"));
        let filters = HashMap::from([("label", vec![network::LABEL.to_owned(), wanted])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let found = self
            .docker()
            .list_containers(Some(options))
            .await
            .map_err(SandboxError::docker("list hosts"))?;
        Ok(found
            .into_iter()
            .filter_map(|container| {
                let name = container.names?.into_iter().next()?;
                Some(HostStatus {
                    name: name.trim_start_matches('/').to_owned(),
                    running: container.state == Some(bollard::models::ContainerSummaryStateEnum::RUNNING),
                    labels: container.labels.unwrap_or_default().into_iter().collect(),
                })
            })
            .collect())
    }

    /// Removes a container with its volumes; one that is gone already is fine.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker refuses.
    pub async fn remove_container(&self, name: &str) -> Result<(), SandboxError> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        match self.docker().remove_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(SandboxError::docker(format!("remove `{name}`"))(error)),
        }
    }
}

fn body(
    options: &HostOptions,
    image: &ImageRef,
    network: &str,
    machine: crate::machine::Machine,
) -> ContainerCreateBody {
    let mut config = machine.host_config();
    config.network_mode = Some(network.to_owned());
    config.memory = options.memory;
    config.port_bindings = Some(
        options
            .publish
            .iter()
            .map(|port| {
                let binding = PortBinding {
                    host_ip: Some("127.0.0.1".to_owned()),
                    host_port: Some(port.machine.to_string()),
                };
                (format!("{}/tcp", port.host), Some(vec![binding]))
            })
            .collect(),
    );
    let mut labels: HashMap<String, String> = options.labels.clone().into_iter().collect();
    labels.insert(network::LABEL.to_owned(), "host".to_owned());
    labels.insert(DISTRO_LABEL.to_owned(), options.distro.name().to_owned());
    labels.insert(NETWORK_LABEL.to_owned(), network.to_owned());
    ContainerCreateBody {
        image: Some(image.as_str().to_owned()),
        hostname: Some(options.name.to_string()),
        cmd: Some(machine.init(options.distro)),
        exposed_ports: Some(
            options
                .publish
                .iter()
                .map(|port| format!("{}/tcp", port.host))
                .collect(),
        ),
        labels: Some(labels),
        // What systemd takes as "shut down".
        stop_signal: Some("SIGRTMIN+3".to_owned()),
        host_config: Some(config),
        ..ContainerCreateBody::default()
    }
}

impl Host {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its distribution.
    #[must_use]
    pub fn distro(&self) -> Distro {
        self.distro
    }

    /// The Docker network it is on.
    #[must_use]
    pub fn network(&self) -> &str {
        &self.network
    }

    /// The sandbox it lives in.
    #[must_use]
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// Runs a program and waits for its end, whatever its status.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if it cannot be run.
    pub async fn exec(&self, command: &Command) -> Result<Output, SandboxError> {
        self.sandbox.exec(&self.id, command, None).await
    }

    /// Like [`Host::exec`], telling each piece of output as it comes.
    ///
    /// # Errors
    /// As [`Host::exec`].
    pub async fn exec_with(&self, command: &Command, lines: Progress<'_>) -> Result<Output, SandboxError> {
        self.sandbox.exec(&self.id, command, Some(lines)).await
    }

    /// Runs a program that must end with status 0.
    ///
    /// # Errors
    /// [`SandboxError::Command`] with what it wrote to standard error.
    pub async fn run<I, S>(&self, argv: I) -> Result<Output, SandboxError>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        self.sandbox
            .exec_ok(self.name.as_str(), &self.id, &Command::new(argv))
            .await
    }

    /// Writes a file, making its directories; an older file of that name is replaced, not written into.
    ///
    /// # Errors
    /// [`SandboxError::Command`] if the path cannot be written.
    pub async fn copy_in(
        &self,
        path: &str,
        content: impl Into<bytes::Bytes>,
        mode: u32,
    ) -> Result<(), SandboxError> {
        let content = content.into();
        // An empty standard input is not attached at all; /dev/null reads the same.
        let from = if content.is_empty() {
            "/dev/null"
        } else {
            "/dev/stdin"
        };
        let mode = format!("{mode:04o}");
        let command =
            Command::new(["install", "-D", "-m", &mode, from, path].map(str::to_owned)).stdin(content);
        self.sandbox
            .exec_ok(self.name.as_str(), &self.id, &command)
            .await
            .map(drop)
    }

    /// Copies a file of this machine.
    ///
    /// # Errors
    /// [`SandboxError::Io`] if it cannot be read, else as [`Host::copy_in`].
    pub async fn copy_file_in(&self, from: &Path, path: &str, mode: u32) -> Result<(), SandboxError> {
        let content = tokio::fs::read(from)
            .await
            .map_err(SandboxError::io(format!("read {}", from.display())))?;
        self.copy_in(path, content, mode).await
    }

    /// A file's content.
    ///
    /// # Errors
    /// [`SandboxError::Command`] if it cannot be read.
    pub async fn read(&self, path: &str) -> Result<Vec<u8>, SandboxError> {
        self.run(["cat", "--", path]).await.map(|output| output.stdout)
    }

    /// Waits until systemd has started everything; returns how long that took from now.
    ///
    /// # Errors
    /// [`SandboxError::FailedUnits`] if something did not start, [`SandboxError::Boot`] if it takes over two minutes.
    pub async fn wait_booted(&self) -> Result<Duration, SandboxError> {
        let begun = Instant::now();
        let ask = Command::new(["systemctl", "is-system-running", "--wait"]).timeout(BOOT_LIMIT);
        let mut state = String::from("nothing");
        while begun.elapsed() < BOOT_LIMIT {
            let output = self.exec(&ask).await?;
            state = output.text();
            match state.as_str() {
                "running" => return Ok(begun.elapsed()),
                "degraded" => {
                    let failed = self
                        .run(["systemctl", "list-units", "--failed", "--plain", "--no-legend"])
                        .await?;
                    let units: Vec<_> = failed
                        .text()
                        .lines()
                        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
                        .collect();
                    return Err(SandboxError::FailedUnits {
                        host: self.name.to_string(),
                        units: units.join(", "),
                    });
                }
                // The first moments of PID 1: its socket is not there yet, and nothing else to wait on is.
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        Err(SandboxError::Boot {
            host: self.name.to_string(),
            seconds: BOOT_LIMIT.as_secs(),
            state,
        })
    }

    /// Reboots in good order and waits until it is up again.
    ///
    /// # Errors
    /// As [`Host::wait_booted`].
    pub async fn reboot(&self) -> Result<(), SandboxError> {
        let mut ended = self
            .sandbox
            .docker()
            .wait_container(&self.id, None::<WaitContainerOptions>);
        // Its own end cuts the command short, so its result says nothing.
        let _cut_short = self.exec(&Command::new(["systemctl", "reboot"])).await;
        // The status of PID 1 does not matter; that it ended does.
        let _status = ended.next().await;
        self.power_on().await
    }

    /// Cuts the power: every process gets `SIGKILL` at once.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if it was not running.
    pub async fn kill(&self) -> Result<(), SandboxError> {
        let doing = SandboxError::docker(format!("kill host `{}`", self.name));
        let mut ended = self
            .sandbox
            .docker()
            .wait_container(&self.id, None::<WaitContainerOptions>);
        self.sandbox
            .docker()
            .kill_container(&self.id, None::<KillContainerOptions>)
            .await
            .map_err(doing)?;
        let _status = ended.next().await;
        Ok(())
    }

    /// Starts a host that was killed or shut down, and waits until it is up.
    ///
    /// # Errors
    /// As [`Host::wait_booted`].
    pub async fn power_on(&self) -> Result<(), SandboxError> {
        self.sandbox
            .docker()
            .start_container(&self.id, None::<StartContainerOptions>)
            .await
            .map_err(SandboxError::docker(format!("start host `{}`", self.name)))?;
        self.wait_booted().await.map(drop)
    }

    /// Removes the host with everything on it.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker refuses.
    pub async fn remove(&self) -> Result<(), SandboxError> {
        self.sandbox.remove_container(&self.id).await
    }

    /// Shuts the host down and keeps its disk, but for `/var/lib/docker`, as an image to start others from.
    ///
    /// Hosts started from it share its SSH host keys, machine id and identity; the original stays shut down.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker refuses.
    pub async fn snapshot(&self, name: &str) -> Result<ImageRef, SandboxError> {
        let options = StopContainerOptionsBuilder::default().t(60).build();
        self.sandbox
            .docker()
            .stop_container(&self.id, Some(options))
            .await
            .map_err(SandboxError::docker(format!("shut host `{}` down", self.name)))?;
        let reference = ImageRef(format!("appliance-snapshot:{name}"));
        self.sandbox.commit(&self.id, &reference, &[]).await?;
        Ok(reference)
    }

    async fn inspect(&self) -> Result<ContainerInspectResponse, SandboxError> {
        self.sandbox
            .docker()
            .inspect_container(&self.id, None::<InspectContainerOptions>)
            .await
            .map_err(SandboxError::docker(format!("look at host `{}`", self.name)))
    }

    /// Whether its container runs.
    ///
    /// # Errors
    /// [`SandboxError::Docker`] if Docker cannot say.
    pub async fn running(&self) -> Result<bool, SandboxError> {
        Ok(self
            .inspect()
            .await?
            .state
            .and_then(|state| state.running)
            .unwrap_or(false))
    }

    /// Its addresses on its network. They may change at a reboot.
    ///
    /// # Errors
    /// [`SandboxError::NoAddress`] if it does not run.
    pub async fn addresses(&self) -> Result<(Ipv4Addr, Ipv6Addr), SandboxError> {
        let none = || SandboxError::NoAddress {
            name: self.name.to_string(),
        };
        let mut networks = self
            .inspect()
            .await?
            .network_settings
            .and_then(|settings| settings.networks)
            .unwrap_or_default();
        let endpoint = networks.remove(&self.network).ok_or_else(none)?;
        let v4 = endpoint
            .ip_address
            .and_then(|text| text.parse().ok())
            .ok_or_else(none)?;
        let v6 = endpoint
            .global_ipv6_address
            .and_then(|text| text.parse().ok())
            .ok_or_else(none)?;
        Ok((v4, v6))
    }

    /// Its IPv4 address.
    ///
    /// # Errors
    /// As [`Host::addresses`].
    pub async fn ip(&self) -> Result<IpAddr, SandboxError> {
        self.addresses().await.map(|(v4, _)| v4.into())
    }

    /// The loopback port of this machine that leads to a published port.
    ///
    /// # Errors
    /// [`SandboxError::NoAddress`] if that port is not published or the host does not run.
    pub async fn published(&self, port: u16) -> Result<u16, SandboxError> {
        let ports = self
            .inspect()
            .await?
            .network_settings
            .and_then(|settings| settings.ports)
            .unwrap_or_default();
        ports
            .get(&format!("{port}/tcp"))
            .and_then(|bindings| bindings.as_deref()?.first()?.host_port.as_deref()?.parse().ok())
            .ok_or_else(|| SandboxError::NoAddress {
                name: self.name.to_string(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_docker_dns_or_systemd_would_refuse_are_refused_here() {
        for good in ["a", "web-1", "0", &"x".repeat(40)] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "Web",
            "a_b",
            "a.b",
            "../x",
            "a b",
            &"x".repeat(41),
        ] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }
}
