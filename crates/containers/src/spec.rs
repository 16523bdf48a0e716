//! A container as we want it, in plain data.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Everything about a container to be created.
///
/// `..ContainerSpec::default()` leaves a field to Docker and the image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The name, unique on the host.
    pub name: String,
    /// An image id (`sha256:…`), which cannot float, or a reference.
    pub image: String,
    /// The network to join instead of Docker's default; `host`, `none` and `container:…` are understood too.
    pub network: Option<String>,
    /// Further names on that network.
    pub aliases: Vec<String>,
    /// The hostname inside.
    pub hostname: Option<String>,
    /// The command, in place of the image's.
    pub cmd: Option<Vec<String>>,
    /// The entry point, in place of the image's; an empty list removes it.
    pub entrypoint: Option<Vec<String>>,
    /// Environment, byte for byte: no quoting, no escapes, newlines as they are. A later entry of the same name wins.
    pub env: Vec<(String, String)>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Volumes and bind mounts as `docker run --volume` has them: `[source:]target[:options]`.
    pub volumes: Vec<String>,
    /// The log driver and its options; the daemon's default if `None`.
    pub log: Option<Log>,
    /// What to do when it ends.
    pub restart: Restart,
    /// How long a stop waits before SIGKILL; Docker's 10 s if `None`.
    pub stop_timeout: Option<Duration>,
    /// Ports to open on the host.
    pub publish: Vec<Publish>,
    /// Docker's health check; the image's if `None`.
    pub health: Option<HealthCheck>,
    /// The rest of what `docker run` can set.
    pub tuning: Tuning,
}

/// Where output goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// The driver; the daemon's default if `None`.
    pub driver: Option<String>,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

/// Docker's restart policies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Restart {
    /// Never.
    #[default]
    No,
    /// Always, also after a restart of the daemon.
    Always,
    /// As `Always`, unless stopped on request. Kamal's choice.
    UnlessStopped,
    /// After a failure.
    OnFailure {
        /// At most this often; without limit if 0.
        retries: u32,
    },
}

impl std::str::FromStr for Restart {
    type Err = NoRestart;

    /// Reads a policy as `docker run --restart` spells it: `no`, `always`, `unless-stopped`, `on-failure[:N]`.
    fn from_str(text: &str) -> Result<Self, NoRestart> {
        let retries = match text {
            "no" => return Ok(Self::No),
            "always" => return Ok(Self::Always),
            "unless-stopped" => return Ok(Self::UnlessStopped),
            other => other.strip_prefix("on-failure").ok_or(NoRestart)?,
        };
        let retries = match retries.strip_prefix(':') {
            Some(number) => number.parse().map_err(|_| NoRestart)?,
            None if retries.is_empty() => 0,
            None => return Err(NoRestart),
        };
        Ok(Self::OnFailure { retries })
    }
}

/// A text that is no restart policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a restart policy: no, always, unless-stopped or on-failure[:N]")]
pub struct NoRestart;

/// A port on the host that leads into the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The address to bind on the host; every one if `None`.
    pub host_ip: Option<std::net::IpAddr>,
    /// The port on the host; Docker picks one if `None`.
    pub host_port: Option<u16>,
    /// The port inside.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// Docker's health check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", …]`; the image's if empty.
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: Option<Duration>,
    /// Time one check may take.
    pub timeout: Option<Duration>,
    /// Failures in a row that make it unhealthy.
    pub retries: Option<u32>,
    /// Failures during this time after the start do not count.
    pub start_period: Option<Duration>,
    /// Time between two checks during the start period (API 1.44).
    pub start_interval: Option<Duration>,
}

/// Limits, rights and surroundings. Every field at its default leaves the choice to Docker.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Tuning {
    /// Memory limit in bytes.
    pub memory: Option<i64>,
    /// Soft memory limit in bytes.
    pub memory_reservation: Option<i64>,
    /// Memory and swap together in bytes; -1 for no limit.
    pub memory_swap: Option<i64>,
    /// 0 to 100.
    pub memory_swappiness: Option<i64>,
    /// Kernel may not end processes in it for want of memory.
    pub oom_kill_disable: Option<bool>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i64>,
    /// Processors in units of 1e-9.
    pub nano_cpus: Option<i64>,
    /// Relative weight.
    pub cpu_shares: Option<i64>,
    /// CFS period in microseconds.
    pub cpu_period: Option<i64>,
    /// CFS quota in microseconds.
    pub cpu_quota: Option<i64>,
    /// Real-time period in microseconds.
    pub cpu_rt_period: Option<i64>,
    /// Real-time runtime in microseconds.
    pub cpu_rt_runtime: Option<i64>,
    /// Such as `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// NUMA nodes.
    pub cpuset_mems: Option<String>,
    /// Relative block I/O weight, 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Relative block I/O weight, by device.
    pub blkio_weight_device: Vec<(String, u16)>,
    /// Bytes per second, by device.
    pub device_read_bps: Vec<(String, i64)>,
    /// Bytes per second, by device.
    pub device_write_bps: Vec<(String, i64)>,
    /// Operations per second, by device.
    pub device_read_iops: Vec<(String, i64)>,
    /// Operations per second, by device.
    pub device_write_iops: Vec<(String, i64)>,
    /// Processes; -1 for no limit.
    pub pids_limit: Option<i64>,
    /// Name, soft and hard limit.
    pub ulimits: Vec<Ulimit>,
    /// `/dev/shm` in bytes.
    pub shm_size: Option<i64>,
    /// The parent cgroup.
    pub cgroup_parent: Option<String>,
    /// `host` or `private`.
    pub cgroupns: Option<String>,
    /// A tiny init as process 1.
    pub init: Option<bool>,
    /// All capabilities and devices.
    pub privileged: bool,
    /// The root file system cannot be written.
    pub read_only: bool,
    /// A terminal.
    pub tty: bool,
    /// Standard input is kept open.
    pub interactive: bool,
    /// Whether somebody is joined to the standard input from the start, and the input ends with them.
    #[serde(default)]
    pub joined: bool,
    /// Every exposed port is published on a port that Docker picks.
    pub publish_all: bool,
    /// The image's health check is switched off.
    pub no_healthcheck: bool,
    /// Capabilities added.
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    pub cap_drop: Vec<String>,
    /// Such as `no-new-privileges`.
    pub security_opt: Vec<String>,
    /// Kernel settings of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Devices of the host.
    pub devices: Vec<Device>,
    /// Rules for the devices cgroup.
    pub device_cgroup_rules: Vec<String>,
    /// Devices by driver: GPUs and CDI.
    pub device_requests: Vec<DeviceRequest>,
    /// Name servers.
    pub dns: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// `name:address` lines for `/etc/hosts`.
    pub extra_hosts: Vec<String>,
    /// Names of other containers, as `--link` has them.
    pub links: Vec<String>,
    /// Domain name.
    pub domainname: Option<String>,
    /// User, `name[:group]` or ids.
    pub user: Option<String>,
    /// Further groups.
    pub group_add: Vec<String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// The signal that stops it.
    pub stop_signal: Option<String>,
    /// In-memory file systems: path and mount options.
    pub tmpfs: BTreeMap<String, String>,
    /// Mounts in the long form.
    pub mounts: Vec<Mount>,
    /// Containers whose volumes are mounted too.
    pub volumes_from: Vec<String>,
    /// The driver for volumes that have to be made.
    pub volume_driver: Option<String>,
    /// Options of the storage driver.
    pub storage_opt: BTreeMap<String, String>,
    /// Ports that are exposed, not published.
    pub expose: Vec<String>,
    /// `host`, `private`, `shareable`, `container:…`.
    pub ipc: Option<String>,
    /// `host` or `container:…`.
    pub pid: Option<String>,
    /// `host`.
    pub uts: Option<String>,
    /// `host`.
    pub userns: Option<String>,
    /// Another runtime than runc.
    pub runtime: Option<String>,
    /// The address on the network.
    pub ip: Option<std::net::Ipv4Addr>,
    /// The address on the network.
    pub ip6: Option<std::net::Ipv6Addr>,
    /// The address on the link.
    pub mac_address: Option<String>,
    /// Annotations for the OCI runtime (API 1.43).
    pub annotations: BTreeMap<String, String>,
    /// The platform to create for, such as `linux/arm64`.
    pub platform: Option<String>,
    /// Further networks, each with further names.
    pub more_networks: Vec<String>,
    /// The daemon removes it when it ends.
    pub auto_remove: bool,
}

/// A resource limit of its processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Such as `nofile`.
    pub name: String,
    /// -1 for none.
    pub soft: i64,
    /// -1 for none.
    pub hard: i64,
}

/// A device of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Path on the host.
    pub host: String,
    /// Path inside.
    pub container: String,
    /// Some of `rwm`.
    pub permissions: String,
}

/// Devices by driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// Such as `nvidia`, or `cdi`.
    pub driver: String,
    /// How many; -1 for all.
    pub count: i64,
    /// Which; excludes `count`.
    pub ids: Vec<String>,
    /// Such as `gpu`.
    pub capabilities: Vec<String>,
    /// Options of the driver.
    pub options: BTreeMap<String, String>,
}

/// A mount in the long form.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// `bind`, `volume`, `tmpfs` or `image`.
    pub kind: String,
    /// Path on the host or name of the volume.
    pub source: Option<String>,
    /// Path inside.
    pub target: String,
    /// Cannot be written.
    pub read_only: bool,
    /// Such as `rprivate`.
    pub propagation: Option<String>,
    /// Do not copy what the image has there into a new volume.
    pub no_copy: bool,
    /// Driver of a volume that has to be made.
    pub volume_driver: Option<String>,
    /// Options of that driver.
    pub volume_options: BTreeMap<String, String>,
    /// Labels of that volume.
    pub volume_labels: BTreeMap<String, String>,
    /// A directory inside the volume (API 1.45).
    pub volume_subpath: Option<String>,
    /// Bytes of a tmpfs.
    pub tmpfs_size: Option<i64>,
    /// Permission bits of a tmpfs.
    pub tmpfs_mode: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restart_policies_read_as_docker_spells_them() {
        for (text, policy) in [
            ("no", Ok(Restart::No)),
            ("always", Ok(Restart::Always)),
            ("unless-stopped", Ok(Restart::UnlessStopped)),
            ("on-failure", Ok(Restart::OnFailure { retries: 0 })),
            ("on-failure:5", Ok(Restart::OnFailure { retries: 5 })),
            ("on-failure5", Err(NoRestart)),
            ("on-failure:", Err(NoRestart)),
            ("", Err(NoRestart)),
        ] {
            assert_eq!(text.parse(), policy, "{text}");
        }
    }
}
