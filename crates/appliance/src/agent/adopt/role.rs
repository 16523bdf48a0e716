//! From a container that Kamal made to the role of a release that would make it again; pure.

use std::collections::BTreeMap;

use appliance_containers::engine::ImageInfo;
use appliance_push::change::{EnvName, Logging, ProxySpec, Role, RoleName};
use serde_json::Value;

/// What Kamal puts into every container itself.
const KAMALS_ENV: [&str; 4] = [
    "KAMAL_CONTAINER_NAME",
    "KAMAL_VERSION",
    "KAMAL_HOST",
    "KAMAL_DESTINATION",
];
/// What Kamal labels every container with.
const KAMALS_LABELS: [&str; 3] = ["service", "role", "destination"];
/// Docker's own size of `/dev/shm` in bytes.
const SHM: i64 = 64 << 20;

/// A role, and the values that its environment takes from the sealed secrets.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    /// The role.
    pub role: Role,
    /// Values by the name of their secret.
    pub secrets: BTreeMap<String, String>,
}

/// The role behind `GET /containers/{id}/json` of its container.
///
/// The environment goes into the sealed secrets as a whole: nothing tells which of it was a secret.
pub fn role(
    name: RoleName,
    primary: bool,
    inspection: &Value,
    image: &ImageInfo,
    proxy: Option<ProxySpec>,
) -> Made {
    let (config, host) = (&inspection["Config"], &inspection["HostConfig"]);
    let mut secrets = BTreeMap::new();
    let mut env_secret = BTreeMap::new();
    for entry in texts(&config["Env"]) {
        let (variable, value) = entry.split_once('=').unwrap_or((&entry, ""));
        if KAMALS_ENV.contains(&variable) || image.env.contains(&entry) {
            continue;
        }
        // Docker takes no variable that has no name; what it takes beyond our rule nobody could read.
        let Ok(variable) = EnvName::parse(variable) else {
            continue;
        };
        let secret = format!("ADOPTED_{name}_{variable}");
        if let Ok(secret) = EnvName::parse(&secret) {
            secrets.insert(secret.to_string(), value.to_owned());
            env_secret.insert(variable, secret);
        }
    }
    let labels = object(&config["Labels"])
        .filter(|(label, value)| {
            !KAMALS_LABELS.contains(&label.as_str()) && image.labels.get(*label) != Some(value)
        })
        .map(|(label, value)| (label.clone(), value))
        .collect();
    let log = &host["LogConfig"];
    let role = Role {
        name,
        primary,
        cmd: Some(texts(&config["Cmd"])).filter(|words| !words.is_empty()),
        env_clear: BTreeMap::new(),
        env_secret,
        labels,
        options: options(config, host, image),
        volumes: texts(&host["Binds"]),
        logging: Logging {
            driver: log["Type"].as_str().map(str::to_owned),
            options: object(&log["Config"])
                .map(|(key, value)| (key.clone(), value))
                .collect(),
        },
        stop_timeout: config["StopTimeout"]
            .as_u64()
            .and_then(|seconds| u32::try_from(seconds).ok()),
        restart: restart(&host["RestartPolicy"]),
        asset_path: None,
        asset_options: None,
        proxy,
    };
    Made { role, secrets }
}

fn restart(policy: &Value) -> String {
    match (policy["Name"].as_str(), policy["MaximumRetryCount"].as_u64()) {
        (Some("on-failure"), Some(retries @ 1..)) => format!("on-failure:{retries}"),
        (None | Some(""), _) => "no".to_owned(),
        (Some(name), _) => name.to_owned(),
    }
}

/// The `docker run` flags that people give in `options:`.
fn options(config: &Value, host: &Value, image: &ImageInfo) -> BTreeMap<String, Vec<Option<String>>> {
    let mut flags: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    let mut set = |flag: &str, values: Vec<String>| {
        if !values.is_empty() {
            flags.insert(flag.to_owned(), values.into_iter().map(Some).collect());
        }
    };
    let number = |field: &str| host[field].as_i64().filter(|number| *number != 0);
    let memory = number("Memory");
    for (field, flag, unit) in [
        ("Memory", "memory", "b"),
        ("MemoryReservation", "memory-reservation", "b"),
        ("CpuShares", "cpu-shares", ""),
        ("CpuPeriod", "cpu-period", ""),
        ("CpuQuota", "cpu-quota", ""),
        ("PidsLimit", "pids-limit", ""),
    ] {
        set(
            flag,
            number(field)
                .map(|number| format!("{number}{unit}"))
                .into_iter()
                .collect(),
        );
    }
    // Docker fills in twice the memory.
    let swap = number("MemorySwap").filter(|swap| memory.is_none_or(|memory| memory * 2 != *swap));
    set(
        "memory-swap",
        swap.map(|swap| {
            if swap < 0 {
                "-1".to_owned()
            } else {
                format!("{swap}b")
            }
        })
        .into_iter()
        .collect(),
    );
    let cpus = number("NanoCpus").map(|nano| {
        let (whole, part) = (nano / 1_000_000_000, nano % 1_000_000_000);
        format!("{whole}.{part:09}")
    });
    set("cpus", cpus.into_iter().collect());
    let shm = number("ShmSize").filter(|size| *size != SHM);
    set(
        "shm-size",
        shm.map(|size| format!("{size}b")).into_iter().collect(),
    );
    for (field, flag) in [
        ("CapAdd", "cap-add"),
        ("CapDrop", "cap-drop"),
        ("ExtraHosts", "add-host"),
        ("Dns", "dns"),
        ("DnsSearch", "dns-search"),
        ("GroupAdd", "group-add"),
        ("SecurityOpt", "security-opt"),
    ] {
        set(flag, texts(&host[field]));
    }
    for (field, flag) in [
        ("Privileged", "privileged"),
        ("ReadonlyRootfs", "read-only"),
        ("Init", "init"),
    ] {
        let on = host[field].as_bool() == Some(true);
        set(flag, on.then(|| "true".to_owned()).into_iter().collect());
    }
    let pairs = |value: &Value, between: char| -> Vec<String> {
        object(value)
            .map(|(key, value)| {
                if value.is_empty() {
                    key.clone()
                } else {
                    format!("{key}{between}{value}")
                }
            })
            .collect()
    };
    set("tmpfs", pairs(&host["Tmpfs"], ':'));
    set("sysctl", pairs(&host["Sysctls"], '='));
    let ulimits = host["Ulimits"].as_array().into_iter().flatten();
    let ulimits = ulimits.filter_map(|limit| {
        let name = limit["Name"].as_str()?;
        Some(format!(
            "{name}={}:{}",
            limit["Soft"].as_i64()?,
            limit["Hard"].as_i64()?
        ))
    });
    set("ulimit", ulimits.collect());
    let devices = host["Devices"].as_array().into_iter().flatten();
    let devices = devices.filter_map(|device| {
        Some(format!(
            "{}:{}:{}",
            device["PathOnHost"].as_str()?,
            device["PathInContainer"].as_str()?,
            device["CgroupPermissions"].as_str()?
        ))
    });
    set("device", devices.collect());
    set("publish", ports(&host["PortBindings"]));
    let user = config["User"].as_str().filter(|user| *user != image.user);
    set("user", user.map(str::to_owned).into_iter().collect());
    health(&config["Healthcheck"], image, &mut set);
    flags
}

fn ports(bindings: &Value) -> Vec<String> {
    let mut ports = Vec::new();
    for (inside, outside) in bindings.as_object().into_iter().flatten() {
        for binding in outside.as_array().into_iter().flatten() {
            let ip = binding["HostIp"].as_str().unwrap_or_default();
            let port = binding["HostPort"].as_str().unwrap_or_default();
            ports.push(match (ip.is_empty(), ip.contains(':')) {
                (true, _) => format!("{port}:{inside}"),
                (false, true) => format!("[{ip}]:{port}:{inside}"),
                (false, false) => format!("{ip}:{port}:{inside}"),
            });
        }
    }
    ports
}

/// Kamal's `health-cmd` and its times; an image's own check comes with the image.
fn health(check: &Value, image: &ImageInfo, set: &mut impl FnMut(&str, Vec<String>)) {
    let [kind, command] = &texts(&check["Test"])[..] else {
        return;
    };
    if kind != "CMD-SHELL" || image.has_healthcheck {
        return;
    }
    set("health-cmd", vec![command.clone()]);
    for (field, flag) in [
        ("Interval", "health-interval"),
        ("Timeout", "health-timeout"),
        ("StartPeriod", "health-start-period"),
    ] {
        let time = check[field].as_i64().filter(|time| *time > 0);
        set(
            flag,
            time.map(|time| format!("{}ms", time / 1_000_000))
                .into_iter()
                .collect(),
        );
    }
    let retries = check["Retries"].as_i64().filter(|retries| *retries > 0);
    set(
        "health-retries",
        retries.map(|retries| retries.to_string()).into_iter().collect(),
    );
}

fn texts(list: &Value) -> Vec<String> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
}

fn object(map: &Value) -> impl Iterator<Item = (&String, String)> {
    map.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key, value.as_str()?.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use appliance_containers::options;
    use appliance_containers::spec::ContainerSpec;
    use serde_json::json;

    fn image() -> ImageInfo {
        ImageInfo {
            id: "sha256:1".to_owned(),
            tags: Vec::new(),
            digests: Vec::new(),
            os: "linux".to_owned(),
            architecture: "amd64".to_owned(),
            variant: None,
            created: None,
            size: 0,
            diff_ids: Vec::new(),
            labels: BTreeMap::from([("service".to_owned(), "shop".to_owned())]),
            env: vec!["PATH=/bin".to_owned()],
            user: "app".to_owned(),
            exposed_ports: Vec::new(),
            volumes: Vec::new(),
            has_healthcheck: false,
        }
    }

    #[test]
    fn everything_kamal_can_set_comes_back_as_the_same_flags() {
        let inspection = json!({
            "Config": {
                "Cmd": ["bin/jobs", "--all"], "User": "app",
                "Env": ["PATH=/bin", "KAMAL_VERSION=v1", "KAMAL_HOST=h", "TOKEN=a=b\nc", "EMPTY="],
                "Labels": {"service": "shop", "role": "jobs", "destination": "", "team": "red"},
                "Healthcheck": {"Test": ["CMD-SHELL", "bin/ok"], "Interval": 5_000_000_000_i64, "Retries": 3},
            },
            "HostConfig": {
                "Memory": 268_435_456, "MemorySwap": 536_870_912, "NanoCpus": 1_500_000_000, "ShmSize": 67_108_864,
                "Binds": ["data:/data", "/srv/x:/x:ro"], "CapAdd": ["NET_ADMIN"], "Init": true,
                "Ulimits": [{"Name": "nofile", "Soft": 1024, "Hard": 2048}],
                "Tmpfs": {"/tmp": "size=64m"}, "ExtraHosts": ["db:10.0.0.2"],
                "LogConfig": {"Type": "json-file", "Config": {"max-size": "10m"}},
                "RestartPolicy": {"Name": "unless-stopped", "MaximumRetryCount": 0},
                "PortBindings": {"9000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "9001"}]},
            },
        });
        let name = RoleName::parse("jobs").expect("a role");
        let made = role(name, false, &inspection, &image(), None);
        assert_eq!(
            made.role.cmd,
            Some(vec!["bin/jobs".to_owned(), "--all".to_owned()])
        );
        assert_eq!(made.role.volumes, ["data:/data", "/srv/x:/x:ro"]);
        assert_eq!(
            made.role.labels,
            BTreeMap::from([("team".to_owned(), "red".to_owned())])
        );
        assert_eq!(made.role.restart, "unless-stopped");
        let values: Vec<&str> = made.secrets.values().map(String::as_str).collect();
        assert_eq!(
            values,
            ["", "a=b\nc"],
            "bytes as they are, and nothing of the image or of Kamal's own"
        );

        // Every flag is one that the role of a release understands.
        let mut spec = ContainerSpec::default();
        for (flag, values) in &made.role.options {
            let values: Vec<String> = values.iter().flatten().cloned().collect();
            options::apply(flag, &values, &mut spec).unwrap_or_else(|error| panic!("{flag}: {error}"));
        }
        assert_eq!(spec.tuning.memory, Some(268_435_456));
        assert_eq!(spec.tuning.memory_swap, None, "Docker's own twice the memory");
        assert_eq!(spec.tuning.nano_cpus, Some(1_500_000_000));
        assert_eq!(spec.tuning.shm_size, None);
        assert_eq!(spec.publish.len(), 1);
        assert_eq!(
            spec.health.expect("a check").test,
            ["CMD-SHELL", "bin/ok"].map(str::to_owned)
        );
    }
}
