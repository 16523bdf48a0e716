//! `docker run` flags, as Kamal's `options:` map has them, into changes of a [`ContainerSpec`].
//!
//! The grammar of each value is that of Docker's own command line: `1.5g` for sizes, `1m30s` for times, `8080:80/tcp` for ports.
//! What the command line reads from files of the machine it runs on (`env-file`, a seccomp profile) is refused, since that would be another machine.

mod values;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::spec::{ContainerSpec, Log, Restart};
use values as parse;

/// Why a flag cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// Docker has no such flag.
    #[error("docker run has no flag --{name}{}", suggestion.as_ref().map(|s| format!(": did you mean --{s}?")).unwrap_or_default())]
    Unknown {
        /// The flag.
        name: String,
        /// The nearest one there is.
        suggestion: Option<String>,
    },
    /// Docker has it, but it has no meaning here.
    #[error("the flag --{name} cannot be set here: {why}")]
    NotHere {
        /// The flag.
        name: String,
        /// Why, and what to use instead.
        why: &'static str,
    },
    /// The value makes no sense.
    #[error("--{name} {value:?}: {expected}")]
    Value {
        /// The flag.
        name: String,
        /// What was given.
        value: String,
        /// What was expected.
        expected: String,
    },
    /// Several values for a flag that takes one.
    #[error("--{name} takes one value, {count} were given")]
    Repeated {
        /// The flag.
        name: String,
        /// How many.
        count: usize,
    },
}

/// Flags that `docker run` has and [`apply`] understands.
pub const UNDERSTOOD: &[&str] = &[
    "add-host",
    "annotation",
    "blkio-weight",
    "blkio-weight-device",
    "cap-add",
    "cap-drop",
    "cgroup-parent",
    "cgroupns",
    "cpu-period",
    "cpu-quota",
    "cpu-rt-period",
    "cpu-rt-runtime",
    "cpu-shares",
    "cpus",
    "cpuset-cpus",
    "cpuset-mems",
    "device",
    "device-cgroup-rule",
    "device-read-bps",
    "device-read-iops",
    "device-write-bps",
    "device-write-iops",
    "dns",
    "dns-opt",
    "dns-option",
    "dns-search",
    "domainname",
    "entrypoint",
    "env",
    "expose",
    "gpus",
    "group-add",
    "health-cmd",
    "health-interval",
    "health-retries",
    "health-start-interval",
    "health-start-period",
    "health-timeout",
    "hostname",
    "init",
    "interactive",
    "ip",
    "ip6",
    "ipc",
    "label",
    "link",
    "log-driver",
    "log-opt",
    "mac-address",
    "memory",
    "memory-reservation",
    "memory-swap",
    "memory-swappiness",
    "mount",
    "net",
    "net-alias",
    "network",
    "network-alias",
    "no-healthcheck",
    "oom-kill-disable",
    "oom-score-adj",
    "pid",
    "pids-limit",
    "platform",
    "privileged",
    "publish",
    "publish-all",
    "read-only",
    "restart",
    "runtime",
    "security-opt",
    "shm-size",
    "stop-signal",
    "stop-timeout",
    "storage-opt",
    "sysctl",
    "tmpfs",
    "tty",
    "ulimit",
    "user",
    "userns",
    "uts",
    "volume",
    "volume-driver",
    "volumes-from",
    "workdir",
];

/// Flags that `docker run` has, and why they cannot be set here.
const NOT_HERE: &[(&str, &str)] = &[
    (
        "attach",
        "the appliance starts containers in the background; see their output with logs",
    ),
    (
        "cidfile",
        "the appliance keeps track of containers by their labels",
    ),
    ("cpu-count", "it is for Windows"),
    ("cpu-percent", "it is for Windows"),
    (
        "detach",
        "the appliance always starts containers in the background",
    ),
    (
        "detach-keys",
        "the appliance always starts containers in the background",
    ),
    ("disable-content-trust", "images are fetched by digest"),
    ("env-file", "the file would have to be on the server; use env"),
    ("help", "see docker run --help"),
    ("io-maxbandwidth", "it is for Windows"),
    ("io-maxiops", "it is for Windows"),
    ("isolation", "it is for Windows"),
    ("kernel-memory", "Docker has removed it; use memory"),
    (
        "label-file",
        "the file would have to be on the server; use labels",
    ),
    ("link-local-ip", "it is not supported"),
    (
        "name",
        "the appliance names containers by service, role and version",
    ),
    (
        "pull",
        "the appliance fetches images by digest before it starts anything",
    ),
    (
        "quiet",
        "the appliance fetches images by digest before it starts anything",
    ),
    (
        "rm",
        "the appliance removes containers itself, after their last lines have been kept",
    ),
    (
        "sig-proxy",
        "the appliance always starts containers in the background",
    ),
    (
        "use-api-socket",
        "it would give the app the whole machine; mount the socket with volumes if that is meant",
    ),
];

/// Applies `--name value` for each value; a bare flag is the value `true`.
///
/// Names come without the dashes. Flags that take one value replace what the spec has, those that repeat add to it, as with `docker run`.
/// On an error the spec may be changed in part.
pub fn apply(name: &str, values: &[String], spec: &mut ContainerSpec) -> Result<(), OptionError> {
    let flag = Flag { name, values };
    if let Some((_, why)) = NOT_HERE.iter().find(|(known, _)| *known == name) {
        return Err(OptionError::NotHere {
            name: name.to_owned(),
            why,
        });
    }
    if values.is_empty() {
        return if UNDERSTOOD.contains(&name) {
            Ok(())
        } else {
            Err(flag.unknown())
        };
    }
    if name.starts_with("health-") || name == "no-healthcheck" {
        return health(&flag, spec);
    }
    match name {
        "entrypoint" => {
            let word = flag.one()?;
            spec.entrypoint = Some(if word.is_empty() {
                Vec::new()
            } else {
                vec![word.to_owned()]
            });
        }
        "env" => spec.env.extend(flag.each(parse::env)?),
        "hostname" => spec.hostname = Some(flag.text()?),
        "label" => spec.labels.extend(flag.each(parse::pair_or_key)?),
        "log-driver" => spec.log.get_or_insert_with(Log::default).driver = Some(flag.text()?),
        "log-opt" => spec
            .log
            .get_or_insert_with(Log::default)
            .options
            .extend(flag.each(parse::pair)?),
        "network-alias" | "net-alias" => spec.aliases.extend(flag.texts()?),
        "network" | "net" => network(&flag, spec)?,
        "publish" => spec
            .publish
            .extend(flag.each(parse::publish)?.into_iter().flatten()),
        "restart" => spec.restart = flag.value(restart)?,
        "stop-timeout" => {
            let seconds = flag.value(|text| parse::integer(text, 0..=i64::from(i32::MAX)))?;
            spec.stop_timeout = Some(std::time::Duration::from_secs(seconds.unsigned_abs()));
        }
        "volume" => spec.volumes.extend(flag.each(parse::volume)?),
        _ => return limits(&flag, spec),
    }
    Ok(())
}

/// `no`, `always`, `unless-stopped` or `on-failure[:retries]`, as `docker run --restart` has them.
pub fn restart(text: &str) -> Result<Restart, String> {
    match text.split_once(':').unwrap_or((text, "")) {
        ("no", "") => Ok(Restart::No),
        ("always", "") => Ok(Restart::Always),
        ("unless-stopped", "") => Ok(Restart::UnlessStopped),
        ("on-failure", "") => Ok(Restart::OnFailure { retries: 0 }),
        ("on-failure", retries) => {
            let retries = retries
                .parse()
                .map_err(|_| "on-failure:N needs a whole number".to_owned())?;
            Ok(Restart::OnFailure { retries })
        }
        _ => Err("expected \"no\", always, unless-stopped or on-failure[:N]".to_owned()),
    }
}

fn limits(flag: &Flag<'_>, spec: &mut ContainerSpec) -> Result<(), OptionError> {
    let tuning = &mut spec.tuning;
    let count = |text: &str| parse::integer(text, 0..=i64::MAX);
    let any = |text: &str| parse::integer(text, i64::MIN..=i64::MAX);
    match flag.name {
        "memory" => tuning.memory = Some(flag.value(parse::bytes)?),
        "memory-reservation" => tuning.memory_reservation = Some(flag.value(parse::bytes)?),
        "memory-swap" => tuning.memory_swap = Some(flag.value(parse::bytes_or_unlimited)?),
        "memory-swappiness" => {
            tuning.memory_swappiness = Some(flag.value(|text| parse::integer(text, -1..=100))?)
        }
        "shm-size" => tuning.shm_size = Some(flag.value(parse::bytes)?),
        "oom-kill-disable" => tuning.oom_kill_disable = Some(flag.switch()?),
        "oom-score-adj" => {
            tuning.oom_score_adj = Some(flag.value(|text| parse::integer(text, -1000..=1000))?)
        }
        "cpus" => tuning.nano_cpus = Some(flag.value(parse::nano_cpus)?),
        "cpu-shares" => tuning.cpu_shares = Some(flag.value(count)?),
        "cpu-period" => tuning.cpu_period = Some(flag.value(count)?),
        "cpu-quota" => tuning.cpu_quota = Some(flag.value(any)?),
        "cpu-rt-period" => tuning.cpu_rt_period = Some(flag.value(count)?),
        "cpu-rt-runtime" => tuning.cpu_rt_runtime = Some(flag.value(count)?),
        "cpuset-cpus" => tuning.cpuset_cpus = Some(flag.value(parse::cpu_set)?),
        "cpuset-mems" => tuning.cpuset_mems = Some(flag.value(parse::cpu_set)?),
        "blkio-weight" => tuning.blkio_weight = Some(flag.value(parse::weight)?),
        "blkio-weight-device" => tuning
            .blkio_weight_device
            .extend(flag.each(|text| parse::device_rate(text, parse::weight))?),
        "device-read-bps" => tuning
            .device_read_bps
            .extend(flag.each(|text| parse::device_rate(text, parse::bytes))?),
        "device-write-bps" => tuning
            .device_write_bps
            .extend(flag.each(|text| parse::device_rate(text, parse::bytes))?),
        "device-read-iops" => tuning
            .device_read_iops
            .extend(flag.each(|text| parse::device_rate(text, count))?),
        "device-write-iops" => tuning
            .device_write_iops
            .extend(flag.each(|text| parse::device_rate(text, count))?),
        "pids-limit" => tuning.pids_limit = Some(flag.value(|text| parse::integer(text, -1..=i64::MAX))?),
        "ulimit" => tuning.ulimits.extend(flag.each(parse::ulimit)?),
        "cgroup-parent" => tuning.cgroup_parent = Some(flag.text()?),
        "cgroupns" => tuning.cgroupns = Some(flag.value(|text| parse::one_of(text, &["host", "private"]))?),
        _ => return rights(flag, spec),
    }
    Ok(())
}

fn rights(flag: &Flag<'_>, spec: &mut ContainerSpec) -> Result<(), OptionError> {
    let tuning = &mut spec.tuning;
    match flag.name {
        "privileged" => tuning.privileged = flag.switch()?,
        "read-only" => tuning.read_only = flag.switch()?,
        "init" => tuning.init = Some(flag.switch()?),
        "tty" => tuning.tty = flag.switch()?,
        "interactive" => tuning.interactive = flag.switch()?,
        "publish-all" => tuning.publish_all = flag.switch()?,
        "cap-add" => tuning.cap_add.extend(flag.texts()?),
        "cap-drop" => tuning.cap_drop.extend(flag.texts()?),
        "security-opt" => tuning.security_opt.extend(flag.each(parse::security)?),
        "sysctl" => tuning.sysctls.extend(flag.each(parse::pair)?),
        "device" => {
            for device in flag.each(parse::device)? {
                match device {
                    parse::Device::Path(device) => tuning.devices.push(device),
                    parse::Device::Requested(request) => tuning.device_requests.push(request),
                }
            }
        }
        "device-cgroup-rule" => tuning.device_cgroup_rules.extend(flag.each(parse::cgroup_rule)?),
        "gpus" => tuning.device_requests.push(flag.value(parse::gpus)?),
        "user" => tuning.user = Some(flag.text()?),
        "group-add" => tuning.group_add.extend(flag.texts()?),
        "userns" => tuning.userns = Some(flag.value(|text| parse::one_of(text, &["host"]))?),
        "pid" => tuning.pid = Some(flag.value(|text| parse::namespace(text, &["host"]))?),
        "ipc" => {
            tuning.ipc =
                Some(flag.value(|text| parse::namespace(text, &["host", "none", "private", "shareable"]))?);
        }
        "uts" => tuning.uts = Some(flag.value(|text| parse::one_of(text, &["host"]))?),
        "runtime" => tuning.runtime = Some(flag.text()?),
        "stop-signal" => tuning.stop_signal = Some(flag.text()?),
        _ => return surroundings(flag, spec),
    }
    Ok(())
}

fn surroundings(flag: &Flag<'_>, spec: &mut ContainerSpec) -> Result<(), OptionError> {
    let tuning = &mut spec.tuning;
    match flag.name {
        "add-host" => tuning.extra_hosts.extend(flag.each(parse::host)?),
        "dns" => {
            let address = |text: &str| parse::parsed::<IpAddr>(text, "an IP address");
            tuning
                .dns
                .extend(flag.each(address)?.into_iter().map(|ip| ip.to_string()));
        }
        "dns-option" | "dns-opt" => tuning.dns_options.extend(flag.texts()?),
        "dns-search" => tuning.dns_search.extend(flag.texts()?),
        "domainname" => tuning.domainname = Some(flag.text()?),
        "link" => tuning.links.extend(flag.texts()?),
        "ip" => tuning.ip = Some(flag.value(|text| parse::parsed::<Ipv4Addr>(text, "an IPv4 address"))?),
        "ip6" => tuning.ip6 = Some(flag.value(|text| parse::parsed::<Ipv6Addr>(text, "an IPv6 address"))?),
        "mac-address" => tuning.mac_address = Some(flag.value(parse::mac)?),
        "expose" => tuning
            .expose
            .extend(flag.each(parse::expose)?.into_iter().flatten()),
        "workdir" => tuning.workdir = Some(flag.text()?),
        "tmpfs" => tuning.tmpfs.extend(flag.each(parse::tmpfs)?),
        "mount" => tuning.mounts.extend(flag.each(parse::mount)?),
        "volumes-from" => tuning.volumes_from.extend(flag.texts()?),
        "volume-driver" => tuning.volume_driver = Some(flag.text()?),
        "storage-opt" => tuning.storage_opt.extend(flag.each(parse::pair)?),
        "annotation" => tuning.annotations.extend(flag.each(parse::pair)?),
        "platform" => tuning.platform = Some(flag.text()?),
        _ => return Err(flag.unknown()),
    }
    Ok(())
}

fn health(flag: &Flag<'_>, spec: &mut ContainerSpec) -> Result<(), OptionError> {
    if flag.name == "no-healthcheck" {
        spec.tuning.no_healthcheck = flag.switch()?;
        return Ok(());
    }
    let mut health = spec.health.clone().unwrap_or_default();
    match flag.name {
        "health-cmd" => health.test = vec!["CMD-SHELL".to_owned(), flag.text()?],
        "health-interval" => health.interval = Some(flag.value(parse::duration)?),
        "health-timeout" => health.timeout = Some(flag.value(parse::duration)?),
        "health-start-period" => health.start_period = Some(flag.value(parse::duration)?),
        "health-start-interval" => health.start_interval = Some(flag.value(parse::duration)?),
        "health-retries" => {
            health.retries = Some(flag.value(|text| parse::parsed::<u32>(text, "a whole number"))?);
        }
        _ => return Err(flag.unknown()),
    }
    spec.health = Some(health);
    Ok(())
}

/// The first network is the one to create the container on, the rest are joined.
fn network(flag: &Flag<'_>, spec: &mut ContainerSpec) -> Result<(), OptionError> {
    for name in flag.texts()? {
        let shared =
            matches!(name.as_str(), "host" | "none" | "bridge" | "default") || name.starts_with("container:");
        match &spec.network {
            Some(present) if *present == name => {}
            Some(present) if shared => {
                let expected =
                    format!("the container is on the network {present}, which cannot be combined with it");
                return Err(flag.wrong(&name, expected));
            }
            Some(_) => spec.tuning.more_networks.push(name),
            None => spec.network = Some(name),
        }
    }
    Ok(())
}

struct Flag<'a> {
    name: &'a str,
    values: &'a [String],
}

impl Flag<'_> {
    fn one(&self) -> Result<&str, OptionError> {
        match self.values {
            [value] => Ok(value),
            many => Err(OptionError::Repeated {
                name: self.name.to_owned(),
                count: many.len(),
            }),
        }
    }

    fn value<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, OptionError> {
        let text = self.one()?;
        parse(text).map_err(|expected| self.wrong(text, expected))
    }

    fn each<T>(&self, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, OptionError> {
        self.values
            .iter()
            .map(|text| parse(text).map_err(|expected| self.wrong(text, expected)))
            .collect()
    }

    fn text(&self) -> Result<String, OptionError> {
        self.value(parse::text)
    }

    fn texts(&self) -> Result<Vec<String>, OptionError> {
        self.each(parse::text)
    }

    fn switch(&self) -> Result<bool, OptionError> {
        self.value(|text| match text {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => Err("expected true or false".to_owned()),
        })
    }

    fn wrong(&self, value: &str, expected: String) -> OptionError {
        OptionError::Value {
            name: self.name.to_owned(),
            value: value.to_owned(),
            expected,
        }
    }

    fn unknown(&self) -> OptionError {
        let near = UNDERSTOOD
            .iter()
            .map(|known| (strsim::damerau_levenshtein(self.name, known), known))
            .min()
            .filter(|(distance, known)| *distance <= 1 + known.len() / 4);
        OptionError::Unknown {
            name: self.name.to_owned(),
            suggestion: near.map(|(_, known)| (*known).to_owned()),
        }
    }
}

#[cfg(test)]
mod tests;
