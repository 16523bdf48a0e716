//! The Docker Engine: which one is there, where it comes from, and our keys in its `daemon.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Fingerprint of the key that signs Docker's apt repositories; the key itself is compiled in.
///
/// As Docker's installation page states it, and as `gpg --show-keys` prints it for [`REPOSITORY_KEY`].
pub const KEY_FINGERPRINT: &str = "9DC8 5822 9FC7 DD38 854A E2D8 8D81 803C 0EBF CD88";
/// That key; nothing has to be fetched and trusted on first use.
pub const REPOSITORY_KEY: &str = include_str!("../assets/docker.asc");
/// Where the key lies on the host.
pub const KEY_FILE: &str = "/etc/apt/keyrings/docker.asc";
/// Our apt source.
pub const SOURCES_FILE: &str = "/etc/apt/sources.list.d/docker.sources";
/// The daemon's configuration, shared with the administrator.
pub const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// Who packaged an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// `docker-ce` from Docker's repository.
    Docker,
    /// The distribution's `docker.io`.
    Distribution,
    /// Anything else, such as a static binary.
    Other,
}

/// The engine on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Engine {
    /// None.
    Absent,
    /// A snap, which is confined and cannot see our files.
    Snap,
    /// Installed.
    Installed {
        /// As `dockerd --version` says, such as `26.1.5`.
        version: String,
        /// Who packaged it.
        origin: Origin,
        /// Whether its unit is active.
        running: bool,
        /// Part of a swarm.
        swarm: bool,
    },
}

impl Engine {
    /// Older than 28: remote hosts could reach loopback-published and unpublished ports but for our table.
    pub fn degraded(&self) -> bool {
        match self {
            Engine::Installed { version, .. } => major(version).is_none_or(|major| major < 28),
            _ => false,
        }
    }
}

/// `20` of `20.10.24+dfsg1`.
pub fn major(version: &str) -> Option<u32> {
    version.split(['.', '+', '-']).next()?.parse().ok()
}

/// The deb822 source of Docker's repository for a distribution and its release name.
pub fn sources(distribution: &str, codename: &str, architecture: &str) -> String {
    format!(
        "# managed by appliance; key {KEY_FINGERPRINT}\nTypes: deb\nURIs: https://download.docker.com/linux/{distribution}\nSuites: {codename}\nComponents: stable\nArchitectures: {architecture}\nSigned-By: {KEY_FILE}\n"
    )
}

/// What a merge of `daemon.json` came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The whole file; `None` if it says all we want already.
    pub text: Option<String>,
    /// Keys we set, as `log-driver = "local"`.
    pub set: Vec<String>,
    /// Whether one of them needs more than a reload.
    pub restart: bool,
}

/// Why `daemon.json` is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DaemonJsonError {
    /// dockerd would not start with it either.
    #[error("{DAEMON_JSON} is not JSON ({0}); repair it, then run bootstrap again")]
    Syntax(String),
    /// A list or a text.
    #[error("{DAEMON_JSON} is not a JSON object; repair it, then run bootstrap again")]
    Shape,
}

/// What we want of `daemon.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The host is part of a swarm.
    pub swarm: bool,
    /// No engine has ever run here.
    pub fresh: bool,
    /// No route touches our address pool.
    pub pool_free: bool,
    /// Bytes of each of the five files of a container's log.
    pub log_size: u64,
    /// Processes in containers gain no rights by setuid programs.
    pub no_new_privileges: bool,
    /// Containers of the default network do not reach each other.
    pub separate: bool,
    /// Open files of a container; absent where the daemon may not raise limits.
    pub open_files: bool,
    /// Bytes of the build cache; left alone if absent.
    pub build_cache: Option<u64>,
    /// New networks have IPv6 too.
    pub ipv6: bool,
    /// The engine counts what it does, for readers on this host.
    pub metrics: bool,
}

/// Our keys over what is there; keys of others stay, in their order.
///
/// The log driver is only changed from Docker's default: a driver somebody chose stays.
/// `fresh` hosts also get an address pool of their own, unless its range is in use (`pool_free`);
/// a host with networks keeps the pools they came from.
///
/// # Errors
/// When the present file is not a JSON object.
pub fn merge(current: Option<&str>, wanted: &Wanted) -> Result<Merged, DaemonJsonError> {
    let mut object = match current.map(str::trim).filter(|text| !text.is_empty()) {
        None => Map::new(),
        Some(text) => match serde_json::from_str(text) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Err(DaemonJsonError::Shape),
            Err(error) => return Err(DaemonJsonError::Syntax(error.to_string())),
        },
    };
    let mut merged = Merged {
        text: None,
        set: Vec::new(),
        restart: false,
    };
    let driver = object
        .get("log-driver")
        .and_then(Value::as_str)
        .unwrap_or("json-file")
        .to_owned();
    if driver == "json-file" || driver == "local" {
        if driver == "json-file" {
            // Options of json-file that `local` does not know would keep the daemon from starting.
            if let Some(options) = object.get_mut("log-opts").and_then(Value::as_object_mut) {
                options.retain(|name, _| matches!(name.as_str(), "max-size" | "max-file" | "compress"));
            }
            set(&mut object, &mut merged, "log-driver", json!("local"));
        }
        let mut options = object
            .get("log-opts")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default();
        let before = options.clone();
        let size = format!("{}m", (wanted.log_size >> 20).max(1));
        for (name, value) in [("max-size", size.as_str()), ("max-file", "5")] {
            options.entry(name).or_insert_with(|| json!(value));
        }
        if options != before {
            set(&mut object, &mut merged, "log-opts", Value::Object(options));
        }
    }
    // A swarm refuses to start with it.
    if !wanted.swarm && object.get("live-restore") != Some(&json!(true)) {
        let restart = merged.restart;
        set(&mut object, &mut merged, "live-restore", json!(true));
        // This one is taken over by a reload.
        merged.restart = restart;
    }
    for (on, key, value) in [
        (wanted.no_new_privileges, "no-new-privileges", json!(true)),
        (wanted.separate, "icc", json!(false)),
        (
            wanted.open_files,
            "default-ulimits",
            json!({ "nofile": { "Name": "nofile", "Soft": 65_536, "Hard": 1_048_576 } }),
        ),
        (
            wanted.ipv6,
            "default-network-opts",
            json!({ "bridge": { "com.docker.network.enable_ipv6": "true" } }),
        ),
        // Where every network has IPv6, nobody needs the relay that hides visitors' addresses.
        (wanted.ipv6 && wanted.fresh, "userland-proxy", json!(false)),
        (wanted.metrics, "metrics-addr", json!(METRICS)),
    ] {
        // What somebody decided, either way, stays.
        if on && !object.contains_key(key) {
            set(&mut object, &mut merged, key, value);
        }
    }
    if let Some(bytes) = wanted.build_cache
        && !object.contains_key("builder")
    {
        let keep = format!("{}GB", (bytes >> 30).max(1));
        set(
            &mut object,
            &mut merged,
            "builder",
            json!({ "gc": { "enabled": true, "defaultKeepStorage": keep } }),
        );
    }
    if wanted.fresh
        && wanted.pool_free
        && !object.contains_key("default-address-pools")
        && !object.contains_key("bip")
    {
        set(
            &mut object,
            &mut merged,
            "default-address-pools",
            json!([{ "base": POOL, "size": 24 }]),
        );
    }
    if !merged.set.is_empty() {
        let mut text = serde_json::to_string_pretty(&object).expect("JSON values always serialise");
        text.push('\n');
        merged.text = Some(text);
    }
    Ok(merged)
}

/// Where the engine's metrics are read: on the loopback only, they say which containers run.
pub const METRICS: &str = "127.0.0.1:9323";

/// Docker's own pools begin at 172.17.0.0/16 and end up in 192.168.0.0/16, which people use at home and in VPNs.
pub const POOL: &str = "10.210.0.0/16";

fn set(object: &mut Map<String, Value>, merged: &mut Merged, key: &str, value: Value) {
    merged.set.push(format!("{key} = {value}"));
    merged.restart = true;
    object.insert(key.to_owned(), value);
}

/// Whether none of these routes (`10.0.0.0/8`, `default`, …) touches [`POOL`].
pub fn pool_is_free<'a>(routes: impl IntoIterator<Item = &'a str>) -> bool {
    let pool = (u32::from(std::net::Ipv4Addr::new(10, 210, 0, 0)), 16);
    !routes.into_iter().filter_map(network).any(|(address, prefix)| {
        let shorter = prefix.min(pool.1);
        // A default route covers everything and claims nothing.
        shorter > 0 && (address ^ pool.0) >> (32 - shorter) == 0
    })
}

fn network(text: &str) -> Option<(u32, u32)> {
    let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
    let address: std::net::Ipv4Addr = address.parse().ok()?;
    let prefix: u32 = prefix.parse().ok()?;
    (prefix <= 32).then(|| (u32::from(address), prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            swarm: false,
            fresh: false,
            pool_free: true,
            log_size: 10 << 20,
            no_new_privileges: false,
            separate: false,
            open_files: false,
            build_cache: None,
            ipv6: false,
            metrics: false,
        }
    }

    fn merged(current: Option<&str>) -> Merged {
        merge(current, &wanted()).expect("merges")
    }

    #[test]
    fn each_switch_sets_its_key_once_and_a_choice_of_others_stays() {
        let all = Wanted {
            no_new_privileges: true,
            separate: true,
            open_files: true,
            build_cache: Some(10 << 30),
            ipv6: true,
            log_size: 20 << 20,
            ..wanted()
        };
        let text = merge(Some(r#"{"icc": true}"#), &all)
            .expect("merges")
            .text
            .expect("changes");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            (&value["icc"], &value["no-new-privileges"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(value["log-opts"]["max-size"], "20m");
        assert_eq!(value["builder"]["gc"]["defaultKeepStorage"], "10GB");
        assert_eq!(merge(Some(&text), &all).expect("merges").text, None);
    }

    #[test]
    fn a_host_without_a_file_gets_all_of_it_and_a_second_merge_nothing() {
        let fresh = Wanted {
            fresh: true,
            ..wanted()
        };
        let first = merge(None, &fresh).expect("merges");
        let text = first.text.expect("new");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            value,
            json!({"log-driver": "local", "log-opts": {"max-size": "10m", "max-file": "5"}, "live-restore": true,
                "default-address-pools": [{"base": "10.210.0.0/16", "size": 24}]})
        );
        assert_eq!(merge(Some(&text), &fresh).expect("merges").text, None);
    }

    #[test]
    fn keys_and_choices_of_others_stay() {
        let text = merged(Some(
            r#"{"dns":["192.0.2.53"],"log-driver":"journald","log-opts":{"tag":"x"}}"#,
        ))
        .text
        .expect("changes");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(
            value,
            json!({"dns": ["192.0.2.53"], "log-driver": "journald", "log-opts": {"tag": "x"}, "live-restore": true})
        );

        let text = merged(Some(
            r#"{"log-driver":"json-file","log-opts":{"max-size":"1g","labels":"a"},"live-restore":true}"#,
        ))
        .text
        .expect("changes");
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["log-opts"], json!({"max-size": "1g", "max-file": "5"}));
    }

    #[test]
    fn only_keys_that_need_it_cause_a_restart() {
        let text = merged(None).text.expect("new");
        let without = text.replace("\"live-restore\": true", "\"debug\": false");
        let again = merged(Some(&without));
        assert_eq!((again.set.len(), again.restart), (1, false));
        assert!(merged(None).restart);
        assert!(
            merge(
                None,
                &Wanted {
                    swarm: true,
                    ..wanted()
                }
            )
            .expect("merges")
            .set
            .iter()
            .all(|key| !key.contains("live-restore"))
        );
    }

    #[test]
    fn a_broken_file_is_refused_and_not_replaced() {
        assert!(matches!(
            merge(Some("{"), &wanted()),
            Err(DaemonJsonError::Syntax(_))
        ));
        assert_eq!(merge(Some("[]"), &wanted()), Err(DaemonJsonError::Shape));
    }

    #[test]
    fn the_pool_is_not_taken_where_a_route_needs_it() {
        assert!(pool_is_free([
            "default",
            "203.0.113.0/24",
            "10.0.5.0/24",
            "172.17.0.0/16"
        ]));
        for taken in ["10.210.4.0/24", "10.0.0.0/8", "10.210.0.1"] {
            assert!(!pool_is_free(["default", taken]), "{taken}");
        }
    }

    #[test]
    fn versions_before_28_are_called_degraded() {
        let engine = |version: &str| Engine::Installed {
            version: version.into(),
            origin: Origin::Distribution,
            running: true,
            swarm: false,
        };
        assert!(engine("20.10.24+dfsg1").degraded() && engine("26.1.5").degraded());
        assert!(!engine("28.0.1").degraded() && !Engine::Absent.degraded());
    }
}
