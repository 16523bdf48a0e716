//! A [`ContainerSpec`] as the engine's request. Pure.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{
    ContainerCreateBody, DeviceMapping, DeviceRequest, EndpointIpamConfig, EndpointSettings, HealthConfig,
    HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount, MountBindOptions,
    MountBindOptionsPropagationEnum, MountTmpfsOptions, MountType, MountVolumeOptions,
    MountVolumeOptionsDriverConfig, NetworkingConfig, PortBinding, PortMap, ResourcesBlkioWeightDevice,
    ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum, ThrottleDevice,
};

use crate::spec::{self, ContainerSpec, Restart, Tuning};

/// What a spec asks of the daemon that older ones lack: the thing and the API version (minor) that brought it.
pub(crate) fn needs(spec: &ContainerSpec) -> Vec<(&'static str, usize)> {
    let tuning = &spec.tuning;
    let mut needs = Vec::new();
    if spec
        .health
        .as_ref()
        .is_some_and(|health| health.start_interval.is_some())
    {
        needs.push(("health-start-interval", 44));
    }
    if tuning.mac_address.is_some() {
        needs.push(("mac-address", 44));
    }
    if !tuning.annotations.is_empty() {
        needs.push(("annotation", 43));
    }
    if tuning.mounts.iter().any(|mount| mount.volume_subpath.is_some()) {
        needs.push(("mount volume-subpath", 45));
    }
    if tuning.mounts.iter().any(|mount| mount.kind == "image") {
        needs.push(("mount type=image", 48));
    }
    needs
}

/// The request that creates the container.
pub(crate) fn body(spec: &ContainerSpec) -> ContainerCreateBody {
    let tuning = &spec.tuning;
    let mut exposed: Vec<String> = spec.publish.iter().map(port_key).collect();
    exposed.extend(tuning.expose.iter().cloned());
    exposed.sort();
    exposed.dedup();
    ContainerCreateBody {
        hostname: spec.hostname.clone(),
        domainname: tuning.domainname.clone(),
        user: tuning.user.clone(),
        // Otherwise the daemon refuses to attach to it later.
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: tuning.tty.then_some(true),
        open_stdin: tuning.interactive.then_some(true),
        attach_stdin: tuning.joined.then_some(true),
        // The first attached input that ends is the program's end of input, as with `docker run --interactive`.
        stdin_once: tuning.joined.then_some(true),
        exposed_ports: filled(exposed),
        env: filled(environment(&spec.env)),
        cmd: spec.cmd.clone(),
        // Docker takes a list with one empty text, not an empty list, for "no entry point".
        entrypoint: spec.entrypoint.as_ref().map(|words| {
            if words.is_empty() {
                vec![String::new()]
            } else {
                words.clone()
            }
        }),
        healthcheck: health(spec),
        image: Some(spec.image.clone()),
        working_dir: tuning.workdir.clone(),
        labels: filled_map(spec.labels.clone().into_iter().collect()),
        stop_signal: tuning.stop_signal.clone(),
        stop_timeout: spec.stop_timeout.map(whole_seconds),
        volumes: filled(anonymous_volumes(&spec.volumes)),
        host_config: Some(host_config(spec)),
        networking_config: spec
            .network
            .as_ref()
            .and_then(|network| networking(spec, network)),
        ..ContainerCreateBody::default()
    }
}

/// The request that joins a further network.
pub(crate) fn endpoint(aliases: &[String]) -> EndpointSettings {
    EndpointSettings {
        aliases: filled(aliases.to_vec()),
        ..EndpointSettings::default()
    }
}

/// Seconds, rounded up, so that no time is taken away.
pub(crate) fn whole_seconds(time: Duration) -> i64 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn host_config(spec: &ContainerSpec) -> HostConfig {
    let tuning = &spec.tuning;
    HostConfig {
        binds: filled(
            spec.volumes
                .iter()
                .filter(|volume| volume.contains(':'))
                .cloned()
                .collect(),
        ),
        network_mode: spec.network.clone(),
        restart_policy: Some(restart(spec.restart)),
        log_config: spec.log.as_ref().map(|log| HostConfigLogConfig {
            typ: log.driver.clone(),
            config: filled_map(log.options.clone().into_iter().collect()),
        }),
        port_bindings: ports(&spec.publish),
        publish_all_ports: tuning.publish_all.then_some(true),
        auto_remove: tuning.auto_remove.then_some(true),
        ..surroundings(tuning, limits(tuning))
    }
}

fn limits(tuning: &Tuning) -> HostConfig {
    HostConfig {
        memory: tuning.memory,
        memory_reservation: tuning.memory_reservation,
        memory_swap: tuning.memory_swap,
        memory_swappiness: tuning.memory_swappiness,
        oom_kill_disable: tuning.oom_kill_disable,
        oom_score_adj: tuning.oom_score_adj,
        nano_cpus: tuning.nano_cpus,
        cpu_shares: tuning.cpu_shares,
        cpu_period: tuning.cpu_period,
        cpu_quota: tuning.cpu_quota,
        cpu_realtime_period: tuning.cpu_rt_period,
        cpu_realtime_runtime: tuning.cpu_rt_runtime,
        cpuset_cpus: tuning.cpuset_cpus.clone(),
        cpuset_mems: tuning.cpuset_mems.clone(),
        blkio_weight: tuning.blkio_weight,
        blkio_weight_device: filled(tuning.blkio_weight_device.iter().map(weight).collect()),
        blkio_device_read_bps: throttles(&tuning.device_read_bps),
        blkio_device_write_bps: throttles(&tuning.device_write_bps),
        blkio_device_read_iops: throttles(&tuning.device_read_iops),
        blkio_device_write_iops: throttles(&tuning.device_write_iops),
        pids_limit: tuning.pids_limit,
        shm_size: tuning.shm_size,
        cgroup_parent: tuning.cgroup_parent.clone(),
        ulimits: filled(tuning.ulimits.iter().map(ulimit).collect()),
        ..HostConfig::default()
    }
}

fn surroundings(tuning: &Tuning, limits: HostConfig) -> HostConfig {
    HostConfig {
        cgroupns_mode: tuning.cgroupns.as_deref().map(|mode| match mode {
            "host" => HostConfigCgroupnsModeEnum::HOST,
            _ => HostConfigCgroupnsModeEnum::PRIVATE,
        }),
        init: tuning.init,
        privileged: tuning.privileged.then_some(true),
        readonly_rootfs: tuning.read_only.then_some(true),
        cap_add: filled(tuning.cap_add.clone()),
        cap_drop: filled(tuning.cap_drop.clone()),
        security_opt: filled(tuning.security_opt.clone()),
        sysctls: filled_map(tuning.sysctls.clone().into_iter().collect()),
        devices: filled(tuning.devices.iter().map(device).collect()),
        device_cgroup_rules: filled(tuning.device_cgroup_rules.clone()),
        device_requests: filled(tuning.device_requests.iter().map(device_request).collect()),
        dns: filled(tuning.dns.clone()),
        dns_options: filled(tuning.dns_options.clone()),
        dns_search: filled(tuning.dns_search.clone()),
        extra_hosts: filled(tuning.extra_hosts.clone()),
        links: filled(tuning.links.clone()),
        group_add: filled(tuning.group_add.clone()),
        tmpfs: filled_map(tuning.tmpfs.clone().into_iter().collect()),
        mounts: filled(tuning.mounts.iter().map(mount).collect()),
        volumes_from: filled(tuning.volumes_from.clone()),
        volume_driver: tuning.volume_driver.clone(),
        storage_opt: filled_map(tuning.storage_opt.clone().into_iter().collect()),
        annotations: filled_map(tuning.annotations.clone().into_iter().collect()),
        ipc_mode: tuning.ipc.clone(),
        pid_mode: tuning.pid.clone(),
        uts_mode: tuning.uts.clone(),
        userns_mode: tuning.userns.clone(),
        runtime: tuning.runtime.clone(),
        ..limits
    }
}

/// `KEY=VALUE`, one per name; the last value wins, in the place of the first.
fn environment(env: &[(String, String)]) -> Vec<String> {
    let mut order: Vec<&str> = Vec::new();
    let mut values: HashMap<&str, &str> = HashMap::new();
    for (name, value) in env {
        if values.insert(name, value).is_none() {
            order.push(name);
        }
    }
    order
        .into_iter()
        .map(|name| format!("{name}={}", values[name]))
        .collect()
}

/// `--volume /path` alone makes a volume without a name.
fn anonymous_volumes(volumes: &[String]) -> Vec<String> {
    volumes
        .iter()
        .filter(|volume| !volume.contains(':'))
        .cloned()
        .collect()
}

fn health(spec: &ContainerSpec) -> Option<HealthConfig> {
    if spec.tuning.no_healthcheck {
        return Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..HealthConfig::default()
        });
    }
    let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    spec.health.as_ref().map(|health| HealthConfig {
        test: filled(health.test.clone()),
        interval: health.interval.map(nanoseconds),
        timeout: health.timeout.map(nanoseconds),
        retries: health.retries.map(i64::from),
        start_period: health.start_period.map(nanoseconds),
        start_interval: health.start_interval.map(nanoseconds),
    })
}

fn restart(policy: Restart) -> RestartPolicy {
    let (name, retries) = match policy {
        Restart::No => (RestartPolicyNameEnum::NO, None),
        Restart::Always => (RestartPolicyNameEnum::ALWAYS, None),
        Restart::UnlessStopped => (RestartPolicyNameEnum::UNLESS_STOPPED, None),
        Restart::OnFailure { retries } => (RestartPolicyNameEnum::ON_FAILURE, Some(i64::from(retries))),
    };
    RestartPolicy {
        name: Some(name),
        maximum_retry_count: retries,
    }
}

fn networking(spec: &ContainerSpec, network: &str) -> Option<NetworkingConfig> {
    let own =
        !matches!(network, "host" | "none" | "bridge" | "default") && !network.starts_with("container:");
    if !own {
        return None;
    }
    let tuning = &spec.tuning;
    let ipam = (tuning.ip.is_some() || tuning.ip6.is_some()).then(|| EndpointIpamConfig {
        ipv4_address: tuning.ip.map(|ip| ip.to_string()),
        ipv6_address: tuning.ip6.map(|ip| ip.to_string()),
        ..EndpointIpamConfig::default()
    });
    let endpoint = EndpointSettings {
        ipam_config: ipam,
        mac_address: tuning.mac_address.clone(),
        ..endpoint(&spec.aliases)
    };
    Some(NetworkingConfig {
        endpoints_config: Some(HashMap::from([(network.to_owned(), endpoint)])),
    })
}

fn ports(publish: &[spec::Publish]) -> Option<PortMap> {
    let mut map = PortMap::new();
    for port in publish {
        let binding = PortBinding {
            host_ip: port.host_ip.map(|ip| ip.to_string()),
            host_port: port.host_port.map(|port| port.to_string()),
        };
        map.entry(port_key(port))
            .or_default()
            .get_or_insert_default()
            .push(binding);
    }
    filled_map(map)
}

fn port_key(port: &spec::Publish) -> String {
    format!("{}/{}", port.container_port, port.protocol)
}

fn ulimit(limit: &spec::Ulimit) -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some(limit.name.clone()),
        soft: Some(limit.soft),
        hard: Some(limit.hard),
    }
}

fn device(device: &spec::Device) -> DeviceMapping {
    DeviceMapping {
        path_on_host: Some(device.host.clone()),
        path_in_container: Some(device.container.clone()),
        cgroup_permissions: Some(device.permissions.clone()),
    }
}

fn device_request(request: &spec::DeviceRequest) -> DeviceRequest {
    DeviceRequest {
        driver: Some(request.driver.clone()),
        count: request.ids.is_empty().then_some(request.count),
        device_ids: filled(request.ids.clone()),
        capabilities: filled(request.capabilities.clone()).map(|capabilities| vec![capabilities]),
        options: filled_map(request.options.clone().into_iter().collect()),
    }
}

fn weight((path, weight): &(String, u16)) -> ResourcesBlkioWeightDevice {
    ResourcesBlkioWeightDevice {
        path: Some(path.clone()),
        weight: Some(usize::from(*weight)),
    }
}

fn throttles(rates: &[(String, i64)]) -> Option<Vec<ThrottleDevice>> {
    filled(
        rates
            .iter()
            .map(|(path, rate)| ThrottleDevice {
                path: Some(path.clone()),
                rate: Some(*rate),
            })
            .collect(),
    )
}

fn mount(mount: &spec::Mount) -> Mount {
    let typ = match mount.kind.as_str() {
        "bind" => MountType::BIND,
        "tmpfs" => MountType::TMPFS,
        "image" => MountType::IMAGE,
        _ => MountType::VOLUME,
    };
    let driver = (mount.volume_driver.is_some() || !mount.volume_options.is_empty()).then(|| {
        MountVolumeOptionsDriverConfig {
            name: mount.volume_driver.clone(),
            options: filled_map(mount.volume_options.clone().into_iter().collect()),
        }
    });
    let volume = mount.no_copy
        || driver.is_some()
        || !mount.volume_labels.is_empty()
        || mount.volume_subpath.is_some();
    Mount {
        target: Some(mount.target.clone()),
        source: mount.source.clone(),
        typ: Some(typ),
        read_only: mount.read_only.then_some(true),
        bind_options: mount.propagation.as_deref().map(|propagation| MountBindOptions {
            propagation: propagation.parse::<MountBindOptionsPropagationEnum>().ok(),
            ..MountBindOptions::default()
        }),
        volume_options: volume.then(|| MountVolumeOptions {
            no_copy: mount.no_copy.then_some(true),
            labels: filled_map(mount.volume_labels.clone().into_iter().collect()),
            driver_config: driver,
            subpath: mount.volume_subpath.clone(),
        }),
        tmpfs_options: (mount.tmpfs_size.is_some() || mount.tmpfs_mode.is_some()).then(|| {
            MountTmpfsOptions {
                size_bytes: mount.tmpfs_size,
                mode: mount.tmpfs_mode.map(i64::from),
                ..MountTmpfsOptions::default()
            }
        }),
        ..Mount::default()
    }
}

fn filled<T>(list: Vec<T>) -> Option<Vec<T>> {
    (!list.is_empty()).then_some(list)
}

fn filled_map<V>(map: HashMap<String, V>) -> Option<HashMap<String, V>> {
    (!map.is_empty()).then_some(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sent(spec: &ContainerSpec) -> serde_json::Value {
        serde_json::to_value(body(spec)).expect("a request is JSON")
    }

    #[test]
    fn environment_goes_out_byte_for_byte_and_the_last_value_wins() {
        let odd = "a\\nb\n\tü $HOME \"q\" #x";
        let env = [("A", "1"), ("ODD", odd), ("A", "2"), ("EMPTY", "")];
        let spec = ContainerSpec {
            env: env
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            ..ContainerSpec::default()
        };
        assert_eq!(sent(&spec)["Env"], json!(["A=2", format!("ODD={odd}"), "EMPTY="]));
    }

    #[test]
    fn an_empty_spec_asks_for_nothing_but_the_image() {
        let spec = ContainerSpec {
            image: "sha256:1".to_owned(),
            ..ContainerSpec::default()
        };
        assert_eq!(
            sent(&spec),
            json!({
                "Image": "sha256:1",
                "AttachStdout": true,
                "AttachStderr": true,
                "HostConfig": { "RestartPolicy": { "Name": "no" } },
            })
        );
    }

    #[test]
    fn networks_ports_volumes_and_restart() {
        let spec = ContainerSpec {
            network: Some("kamal".to_owned()),
            aliases: vec!["db".to_owned()],
            volumes: vec!["data:/data".to_owned(), "/cache".to_owned()],
            restart: Restart::OnFailure { retries: 3 },
            publish: vec![spec::Publish {
                host_ip: Some("127.0.0.1".parse().expect("an address")),
                host_port: Some(5432),
                container_port: 5432,
                protocol: "tcp".to_owned(),
            }],
            ..ContainerSpec::default()
        };
        let sent = sent(&spec);
        assert_eq!(sent["HostConfig"]["NetworkMode"], "kamal");
        assert_eq!(
            sent["NetworkingConfig"]["EndpointsConfig"]["kamal"]["Aliases"],
            json!(["db"])
        );
        assert_eq!(sent["HostConfig"]["Binds"], json!(["data:/data"]));
        assert_eq!(sent["Volumes"], json!({ "/cache": {} }));
        assert_eq!(sent["ExposedPorts"], json!({ "5432/tcp": {} }));
        assert_eq!(
            sent["HostConfig"]["PortBindings"],
            json!({ "5432/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "5432" }] })
        );
        assert_eq!(
            sent["HostConfig"]["RestartPolicy"],
            json!({ "Name": "on-failure", "MaximumRetryCount": 3 })
        );
    }

    #[test]
    fn the_host_network_takes_no_aliases() {
        let spec = ContainerSpec {
            network: Some("host".to_owned()),
            aliases: vec!["x".to_owned()],
            ..ContainerSpec::default()
        };
        assert_eq!(sent(&spec).get("NetworkingConfig"), None);
    }

    #[test]
    fn a_part_of_a_second_is_not_taken_away() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(30)), 30);
        assert_eq!(whole_seconds(Duration::ZERO), 0);
    }
}
