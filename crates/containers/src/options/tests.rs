//! Every flag once, Docker's grammar of values, and what is refused.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::spec::Tuning;

fn applied(name: &str, values: &[&str]) -> Result<ContainerSpec, OptionError> {
    let mut spec = ContainerSpec::default();
    let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
    apply(name, &values, &mut spec)?;
    Ok(spec)
}

fn tuned(name: &str, values: &[&str]) -> Tuning {
    applied(name, values)
        .unwrap_or_else(|error| panic!("{error}"))
        .tuning
}

fn refused(name: &str, value: &str) -> String {
    applied(name, &[value])
        .expect_err("it makes no sense")
        .to_string()
}

/// A good value for every flag, and the request that Docker gets for it.
const EVERY: &[(&str, &str, &str)] = &[
    (
        "add-host",
        "db:10.0.0.1",
        r#"{"HostConfig":{"ExtraHosts":["db:10.0.0.1"]}}"#,
    ),
    ("annotation", "a=b", r#"{"HostConfig":{"Annotations":{"a":"b"}}}"#),
    ("blkio-weight", "500", r#"{"HostConfig":{"BlkioWeight":500}}"#),
    (
        "blkio-weight-device",
        "/dev/sda:500",
        r#"{"HostConfig":{"BlkioWeightDevice":[{"Path":"/dev/sda","Weight":500}]}}"#,
    ),
    (
        "cap-add",
        "NET_ADMIN",
        r#"{"HostConfig":{"CapAdd":["NET_ADMIN"]}}"#,
    ),
    ("cap-drop", "ALL", r#"{"HostConfig":{"CapDrop":["ALL"]}}"#),
    ("cgroup-parent", "/x", r#"{"HostConfig":{"CgroupParent":"/x"}}"#),
    ("cgroupns", "host", r#"{"HostConfig":{"CgroupnsMode":"host"}}"#),
    ("cpu-period", "100000", r#"{"HostConfig":{"CpuPeriod":100000}}"#),
    ("cpu-quota", "-1", r#"{"HostConfig":{"CpuQuota":-1}}"#),
    (
        "cpu-rt-period",
        "1000000",
        r#"{"HostConfig":{"CpuRealtimePeriod":1000000}}"#,
    ),
    (
        "cpu-rt-runtime",
        "950000",
        r#"{"HostConfig":{"CpuRealtimeRuntime":950000}}"#,
    ),
    ("cpu-shares", "512", r#"{"HostConfig":{"CpuShares":512}}"#),
    ("cpus", "1.5", r#"{"HostConfig":{"NanoCpus":1500000000}}"#),
    ("cpuset-cpus", "0-2,4", r#"{"HostConfig":{"CpusetCpus":"0-2,4"}}"#),
    ("cpuset-mems", "0", r#"{"HostConfig":{"CpusetMems":"0"}}"#),
    (
        "device",
        "/dev/fuse",
        r#"{"HostConfig":{"Devices":[{"PathOnHost":"/dev/fuse","PathInContainer":"/dev/fuse","CgroupPermissions":"rwm"}]}}"#,
    ),
    (
        "device-cgroup-rule",
        "c 42:* rmw",
        r#"{"HostConfig":{"DeviceCgroupRules":["c 42:* rmw"]}}"#,
    ),
    (
        "device-read-bps",
        "/dev/sda:1mb",
        r#"{"HostConfig":{"BlkioDeviceReadBps":[{"Path":"/dev/sda","Rate":1048576}]}}"#,
    ),
    (
        "device-read-iops",
        "/dev/sda:100",
        r#"{"HostConfig":{"BlkioDeviceReadIOps":[{"Path":"/dev/sda","Rate":100}]}}"#,
    ),
    (
        "device-write-bps",
        "/dev/sda:2k",
        r#"{"HostConfig":{"BlkioDeviceWriteBps":[{"Path":"/dev/sda","Rate":2048}]}}"#,
    ),
    (
        "device-write-iops",
        "/dev/sda:7",
        r#"{"HostConfig":{"BlkioDeviceWriteIOps":[{"Path":"/dev/sda","Rate":7}]}}"#,
    ),
    ("dns", "1.1.1.1", r#"{"HostConfig":{"Dns":["1.1.1.1"]}}"#),
    (
        "dns-opt",
        "ndots:1",
        r#"{"HostConfig":{"DnsOptions":["ndots:1"]}}"#,
    ),
    (
        "dns-option",
        "ndots:1",
        r#"{"HostConfig":{"DnsOptions":["ndots:1"]}}"#,
    ),
    (
        "dns-search",
        "example.com",
        r#"{"HostConfig":{"DnsSearch":["example.com"]}}"#,
    ),
    ("domainname", "example.com", r#"{"Domainname":"example.com"}"#),
    ("entrypoint", "/bin/run", r#"{"Entrypoint":["/bin/run"]}"#),
    ("env", "A=b=c", r#"{"Env":["A=b=c"]}"#),
    (
        "expose",
        "80-81/udp",
        r#"{"ExposedPorts":{"80/udp":{},"81/udp":{}}}"#,
    ),
    (
        "gpus",
        "all",
        r#"{"HostConfig":{"DeviceRequests":[{"Driver":"","Count":-1,"Capabilities":[["gpu"]]}]}}"#,
    ),
    ("group-add", "video", r#"{"HostConfig":{"GroupAdd":["video"]}}"#),
    (
        "health-cmd",
        "test -f /ok",
        r#"{"Healthcheck":{"Test":["CMD-SHELL","test -f /ok"]}}"#,
    ),
    (
        "health-interval",
        "1m30s",
        r#"{"Healthcheck":{"Interval":90000000000}}"#,
    ),
    ("health-retries", "3", r#"{"Healthcheck":{"Retries":3}}"#),
    (
        "health-start-interval",
        "1s",
        r#"{"Healthcheck":{"StartInterval":1000000000}}"#,
    ),
    (
        "health-start-period",
        "10s",
        r#"{"Healthcheck":{"StartPeriod":10000000000}}"#,
    ),
    (
        "health-timeout",
        "500ms",
        r#"{"Healthcheck":{"Timeout":500000000}}"#,
    ),
    ("hostname", "box", r#"{"Hostname":"box"}"#),
    ("init", "true", r#"{"HostConfig":{"Init":true}}"#),
    ("interactive", "true", r#"{"OpenStdin":true}"#),
    ("ip", "172.20.0.9", r#"{}"#),
    ("ip6", "fd00::9", r#"{}"#),
    ("ipc", "host", r#"{"HostConfig":{"IpcMode":"host"}}"#),
    ("label", "a", r#"{"Labels":{"a":""}}"#),
    (
        "link",
        "db:database",
        r#"{"HostConfig":{"Links":["db:database"]}}"#,
    ),
    (
        "log-driver",
        "journald",
        r#"{"HostConfig":{"LogConfig":{"Type":"journald"}}}"#,
    ),
    (
        "log-opt",
        "max-size=10m",
        r#"{"HostConfig":{"LogConfig":{"Config":{"max-size":"10m"}}}}"#,
    ),
    ("mac-address", "92:d0:c6:0a:29:33", r#"{}"#),
    ("memory", "512m", r#"{"HostConfig":{"Memory":536870912}}"#),
    (
        "memory-reservation",
        "1g",
        r#"{"HostConfig":{"MemoryReservation":1073741824}}"#,
    ),
    ("memory-swap", "-1", r#"{"HostConfig":{"MemorySwap":-1}}"#),
    (
        "memory-swappiness",
        "0",
        r#"{"HostConfig":{"MemorySwappiness":0}}"#,
    ),
    (
        "mount",
        "type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=1770",
        r#"{"HostConfig":{"Mounts":[{"Target":"/t","Type":"tmpfs","TmpfsOptions":{"SizeBytes":1048576,"Mode":1016}}]}}"#,
    ),
    (
        "net",
        "backend",
        r#"{"HostConfig":{"NetworkMode":"backend"},"NetworkingConfig":{"EndpointsConfig":{"backend":{}}}}"#,
    ),
    ("net-alias", "db", r#"{}"#),
    (
        "network",
        "backend",
        r#"{"HostConfig":{"NetworkMode":"backend"},"NetworkingConfig":{"EndpointsConfig":{"backend":{}}}}"#,
    ),
    ("network-alias", "db", r#"{}"#),
    ("no-healthcheck", "true", r#"{"Healthcheck":{"Test":["NONE"]}}"#),
    (
        "oom-kill-disable",
        "true",
        r#"{"HostConfig":{"OomKillDisable":true}}"#,
    ),
    ("oom-score-adj", "-500", r#"{"HostConfig":{"OomScoreAdj":-500}}"#),
    ("pid", "host", r#"{"HostConfig":{"PidMode":"host"}}"#),
    ("pids-limit", "100", r#"{"HostConfig":{"PidsLimit":100}}"#),
    ("platform", "linux/arm64", r#"{}"#),
    ("privileged", "true", r#"{"HostConfig":{"Privileged":true}}"#),
    (
        "publish",
        "127.0.0.1:5432:5432",
        r#"{"ExposedPorts":{"5432/tcp":{}},"HostConfig":{"PortBindings":{"5432/tcp":[{"HostIp":"127.0.0.1","HostPort":"5432"}]}}}"#,
    ),
    (
        "publish-all",
        "true",
        r#"{"HostConfig":{"PublishAllPorts":true}}"#,
    ),
    ("read-only", "true", r#"{"HostConfig":{"ReadonlyRootfs":true}}"#),
    (
        "restart",
        "on-failure:5",
        r#"{"HostConfig":{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":5}}}"#,
    ),
    ("runtime", "runsc", r#"{"HostConfig":{"Runtime":"runsc"}}"#),
    (
        "security-opt",
        "no-new-privileges",
        r#"{"HostConfig":{"SecurityOpt":["no-new-privileges"]}}"#,
    ),
    ("shm-size", "256m", r#"{"HostConfig":{"ShmSize":268435456}}"#),
    ("stop-signal", "SIGINT", r#"{"StopSignal":"SIGINT"}"#),
    ("stop-timeout", "90", r#"{"StopTimeout":90}"#),
    (
        "storage-opt",
        "size=10G",
        r#"{"HostConfig":{"StorageOpt":{"size":"10G"}}}"#,
    ),
    (
        "sysctl",
        "net.core.somaxconn=1024",
        r#"{"HostConfig":{"Sysctls":{"net.core.somaxconn":"1024"}}}"#,
    ),
    (
        "tmpfs",
        "/run:size=64m",
        r#"{"HostConfig":{"Tmpfs":{"/run":"size=64m"}}}"#,
    ),
    ("tty", "true", r#"{"Tty":true}"#),
    (
        "ulimit",
        "nofile=1024:2048",
        r#"{"HostConfig":{"Ulimits":[{"Name":"nofile","Soft":1024,"Hard":2048}]}}"#,
    ),
    ("user", "1000:1000", r#"{"User":"1000:1000"}"#),
    ("userns", "host", r#"{"HostConfig":{"UsernsMode":"host"}}"#),
    ("uts", "host", r#"{"HostConfig":{"UTSMode":"host"}}"#),
    (
        "volume",
        "data:/data:ro",
        r#"{"HostConfig":{"Binds":["data:/data:ro"]}}"#,
    ),
    (
        "volume-driver",
        "local",
        r#"{"HostConfig":{"VolumeDriver":"local"}}"#,
    ),
    (
        "volumes-from",
        "other",
        r#"{"HostConfig":{"VolumesFrom":["other"]}}"#,
    ),
    ("workdir", "/app", r#"{"WorkingDir":"/app"}"#),
];

/// Lays `over` on `base`, objects member by member.
fn merge(base: &mut serde_json::Value, over: serde_json::Value) {
    match (base, over) {
        (serde_json::Value::Object(base), serde_json::Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

#[test]
fn every_flag_reaches_the_request() {
    let empty = serde_json::to_value(crate::request::body(&ContainerSpec::default())).expect("JSON");
    for (name, value, expected) in EVERY {
        let spec = applied(name, &[value]).unwrap_or_else(|error| panic!("{error}"));
        let sent = serde_json::to_value(crate::request::body(&spec)).expect("JSON");
        let mut wanted = empty.clone();
        merge(&mut wanted, serde_json::from_str(expected).expect("JSON"));
        assert_eq!(sent, wanted, "--{name} {value}");
        assert_ne!(spec, ContainerSpec::default(), "--{name} {value} changes nothing");
    }
    let covered: Vec<&str> = EVERY.iter().map(|(name, ..)| *name).collect();
    assert_eq!(covered, UNDERSTOOD, "one line here for every flag");
}

#[test]
fn flags_of_a_network_reach_its_endpoint() {
    let mut spec = ContainerSpec {
        network: Some("kamal".to_owned()),
        ..ContainerSpec::default()
    };
    for (name, value) in [
        ("ip", "10.0.0.9"),
        ("ip6", "fd00::9"),
        ("mac-address", "92:d0:c6:0a:29:33"),
        ("network-alias", "db"),
    ] {
        apply(name, &[value.to_owned()], &mut spec).expect("it applies");
    }
    let sent = serde_json::to_value(crate::request::body(&spec)).expect("JSON");
    assert_eq!(
        sent["NetworkingConfig"]["EndpointsConfig"]["kamal"],
        serde_json::json!({
            "IPAMConfig": { "IPv4Address": "10.0.0.9", "IPv6Address": "fd00::9" },
            "MacAddress": "92:d0:c6:0a:29:33",
            "Aliases": ["db"],
        })
    );
}

#[test]
fn further_networks_are_joined_and_the_host_s_is_refused() {
    let mut spec = ContainerSpec {
        network: Some("kamal".to_owned()),
        ..ContainerSpec::default()
    };
    apply("network", &["kamal".to_owned(), "backend".to_owned()], &mut spec).expect("it applies");
    assert_eq!(spec.tuning.more_networks, ["backend"]);
    let error = apply("network", &["host".to_owned()], &mut spec).expect_err("not both");
    assert!(error.to_string().contains("cannot be combined"), "{error}");
}

#[test]
fn an_unknown_flag_names_the_one_that_was_meant() {
    let error = |name: &str| applied(name, &["x"]).expect_err("unknown").to_string();
    assert_eq!(
        error("memry"),
        "docker run has no flag --memry: did you mean --memory?"
    );
    assert_eq!(
        error("shm_size"),
        "docker run has no flag --shm_size: did you mean --shm-size?"
    );
    assert_eq!(error("frobnicate"), "docker run has no flag --frobnicate");
    assert!(applied("frobnicate", &[]).is_err());
}

#[test]
fn flags_without_meaning_here_say_why() {
    for (name, _) in NOT_HERE {
        assert!(
            matches!(applied(name, &["x"]), Err(OptionError::NotHere { .. })),
            "{name}"
        );
        assert!(!UNDERSTOOD.contains(name), "{name}");
    }
    assert!(refused("env-file", "x").contains("use env"));
}

#[test]
fn one_value_flags_take_one_and_lists_add_up() {
    let error = applied("memory", &["1g", "2g"]).expect_err("twice");
    assert_eq!(
        error,
        OptionError::Repeated {
            name: "memory".to_owned(),
            count: 2
        }
    );
    assert_eq!(tuned("cap-add", &["A", "B"]).cap_add, ["A", "B"]);
    assert_eq!(tuned("cap-add", &[]), Tuning::default());
}

#[test]
fn switches_are_true_or_false() {
    assert!(!tuned("privileged", &["false"]).privileged);
    assert_eq!(tuned("init", &["false"]).init, Some(false));
    assert_eq!(refused("init", "yes"), "--init \"yes\": expected true or false");
}

#[test]
fn sizes_are_dockers() {
    let size = |text| tuned("memory", &[text]).memory;
    for (text, bytes) in [
        ("0", 0),
        ("1024", 1024),
        ("1b", 1),
        ("1k", 1024),
        ("1kb", 1024),
        ("1KiB", 1024),
        ("32m", 33_554_432),
        ("1.5g", 1_610_612_736),
        ("1G", 1_073_741_824),
        ("1 g", 1_073_741_824),
        ("2t", 2_199_023_255_552),
    ] {
        assert_eq!(size(text), Some(bytes), "{text}");
    }
    for bad in ["", "m", "-1", "1x", "1.5.2g", "1gg", "99999999999p", "1e3", "one"] {
        assert!(refused("memory", bad).contains("expected a size"), "{bad}");
    }
}

#[test]
fn times_are_gos() {
    let time = |text| {
        applied("health-interval", &[text])
            .expect("a time")
            .health
            .and_then(|h| h.interval)
    };
    assert_eq!(time("0"), Some(Duration::ZERO));
    assert_eq!(time("1h2m3s"), Some(Duration::from_secs(3723)));
    assert_eq!(time("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(time("250us"), Some(Duration::from_micros(250)));
    for bad in ["", "5", "5 s", "s", "-1s", "1d", "1s2"] {
        assert!(refused("health-interval", bad).contains("with its unit"), "{bad}");
    }
}

#[test]
fn processors_have_nine_decimals() {
    let cpus = |text| tuned("cpus", &[text]).nano_cpus;
    assert_eq!(
        (cpus("2"), cpus(".5"), cpus("0.000000001")),
        (Some(2_000_000_000), Some(500_000_000), Some(1))
    );
    for bad in ["", ".", "-1", "1,5", "0.0000000001", "1e3"] {
        assert!(applied("cpus", &[bad]).is_err(), "{bad}");
    }
}

#[test]
fn ports_are_dockers() {
    let ports = |text: &str| {
        let publish = applied("publish", &[text]).expect("ports").publish;
        let told = publish.iter().map(|p| {
            let ip = p.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
            let port = p.host_port.map(|port| port.to_string()).unwrap_or_default();
            format!("{ip}|{port}|{}|{}", p.container_port, p.protocol)
        });
        told.collect::<Vec<_>>()
    };
    assert_eq!(ports("80"), ["||80|tcp"]);
    assert_eq!(ports("8080:80"), ["|8080|80|tcp"]);
    assert_eq!(ports("127.0.0.1:8080:80/udp"), ["127.0.0.1|8080|80|udp"]);
    assert_eq!(ports("127.0.0.1::80"), ["127.0.0.1||80|tcp"]);
    assert_eq!(ports("[::1]:8080:80"), ["::1|8080|80|tcp"]);
    assert_eq!(ports("[::1]::80"), ["::1||80|tcp"]);
    assert_eq!(ports("::1:8080:80"), ["::1|8080|80|tcp"]);
    assert_eq!(ports("8000-8001:9000-9001"), ["|8000|9000|tcp", "|8001|9001|tcp"]);
    for bad in [
        "",
        "0:80",
        "80:",
        "x:80",
        "70000:80",
        "80:80:80",
        "80/quic",
        "1-2:3-5",
        "5-4:5-4",
        "[::1:80:80",
    ] {
        assert!(applied("publish", &[bad]).is_err(), "{bad}");
    }
}

#[test]
fn devices_ulimits_hosts_and_volumes() {
    let device = |text| tuned("device", &[text]).devices.remove(0);
    assert_eq!(device("/dev/a:/dev/b:r").permissions, "r");
    assert_eq!(
        (device("/dev/a:rw").container, device("/dev/a:rw").permissions),
        ("/dev/a".to_owned(), "rw".to_owned())
    );
    assert_eq!(
        tuned("device", &["nvidia.com/gpu=0"]).device_requests[0].driver,
        "cdi"
    );
    assert_eq!(tuned("ulimit", &["core=-1"]).ulimits[0].hard, -1);
    assert_eq!(tuned("add-host", &["h=10.0.0.1"]).extra_hosts, ["h:10.0.0.1"]);
    assert_eq!(tuned("add-host", &["h:::1"]).extra_hosts, ["h:::1"]);
    assert_eq!(
        tuned("add-host", &["host.docker.internal:host-gateway"])
            .extra_hosts
            .len(),
        1
    );
    for (name, bad) in [
        ("device", "fuse"),
        ("device", "/dev/a:/dev/b:x"),
        ("ulimit", "nofile"),
        ("ulimit", "files=3"),
        ("ulimit", "nofile=3:2"),
        ("add-host", "h"),
        ("add-host", "h:example"),
        ("volume", "data"),
        ("volume", "a:/"),
        ("volume", "a:b"),
        ("volume", ":/a"),
        ("tmpfs", "run"),
        ("sysctl", "a"),
        ("env", "NAME"),
        ("dns", "one"),
        ("cpuset-cpus", "3-1"),
        ("blkio-weight", "5"),
        ("oom-score-adj", "1001"),
        ("mac-address", "1:2"),
        ("security-opt", "seccomp=profile.json"),
        ("pid", "x"),
        ("ipc", "container:"),
        ("restart", "sometimes"),
        ("restart", "on-failure:x"),
        ("stop-timeout", "10s"),
        ("user", ""),
        ("device-cgroup-rule", "x 1:1 r"),
        ("device-read-bps", "sda:1m"),
        ("cgroupns", "x"),
        ("health-retries", "-1"),
    ] {
        assert!(
            matches!(applied(name, &[bad]), Err(OptionError::Value { .. })),
            "--{name} {bad}"
        );
    }
}

#[test]
fn mounts_and_gpus_read_quoted_fields() {
    let mount = tuned(
        "mount",
        &[r#"type=volume,source=v,dst=/v,ro,"volume-opt=o=addr=1.1.1.1,nolock",volume-nocopy"#],
    );
    let mount = &mount.mounts[0];
    assert!(mount.read_only && mount.no_copy);
    assert_eq!(mount.volume_options["o"], "addr=1.1.1.1,nolock");
    let gpus = |text| tuned("gpus", &[text]).device_requests.remove(0);
    assert_eq!(gpus("2").count, 2);
    assert_eq!(gpus(r#""device=0,1""#).ids, ["0", "1"]);
    assert_eq!(
        gpus(r#"driver=nvidia,"capabilities=utility,compute""#).capabilities,
        ["utility", "compute", "gpu"]
    );
    for (name, bad) in [
        ("mount", "type=bind,target=/a"),
        ("mount", "target=a"),
        ("mount", "type=x,target=/a"),
        ("mount", "target=/a,what=1"),
        ("mount", "\"target=/a"),
        ("gpus", "some"),
        ("gpus", "1,2"),
    ] {
        assert!(applied(name, &[bad]).is_err(), "--{name} {bad}");
    }
}

proptest! {
    /// Whatever comes from a configuration file, the answer is a spec or an error that names the flag.
    #[test]
    fn no_value_makes_it_panic(flag in prop::sample::select(UNDERSTOOD.to_vec()), value in "\\PC{0,24}|[0-9a-z.:/,=\\-\\[\\]\"]{0,24}") {
        if let Err(error) = applied(flag, &[&value]) {
            prop_assert!(error.to_string().contains(flag));
        }
    }
}
