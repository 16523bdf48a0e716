//! Accessories: containers beside the app.

use std::path::{Component, Path, PathBuf};

use indexmap::IndexMap;

use super::env::env;
use super::text::{join_path, options, pairs, present_scalar, restart, scalar, text_list};
use super::{Facts, Names, builder, proxy};
use crate::model::{Accessory, EnvFile, Mounted, Pairs, Scalar, Timeouts};
use crate::validate::raw::Raw;
use crate::yaml::tree::{Map, Node, Value};

/// All accessories, in file order.
pub(super) fn accessories(
    raw: &Raw<'_>,
    names: &Names<'_>,
    timeouts: &Timeouts,
    facts: &Facts<'_>,
) -> Vec<Accessory> {
    raw.accessories()
        .into_iter()
        .filter_map(|(name, node)| Some(resolve(raw, &name.to_s(), node.as_map()?, names, timeouts, facts)))
        .collect()
}

fn resolve(
    raw: &Raw<'_>,
    name: &str,
    map: &Map,
    names: &Names<'_>,
    timeouts: &Timeouts,
    facts: &Facts<'_>,
) -> Accessory {
    let service_name = map
        .get("service")
        .filter(|service| service.is_truthy())
        .map_or_else(|| format!("{}-{name}", names.service), Node::to_s);
    let registry = map
        .get("registry")
        .filter(|registry| registry.is_present())
        .map(|registry| builder::registry(registry.as_map()));
    let image: Vec<String> = registry
        .iter()
        .filter_map(|registry| registry.server.clone())
        .chain(map.get("image").map(Node::to_s))
        .collect();
    let docker_options = map.get("options").and_then(Node::as_map);
    let environment = env(map.get("env").and_then(Node::as_map));
    let volumes = map.get("volumes").map(text_list).unwrap_or_default();
    let files = files(map.get("files"), &service_name, facts);
    let directories = directories(map.get("directories"), &service_name);
    let port = map.get("port").filter(|port| port.is_truthy()).map(|port| {
        let port = port.to_s();
        if port.contains(':') {
            port
        } else {
            format!("{port}:{port}")
        }
    });
    let mut labels = Pairs::from_iter([("service".to_owned(), Some(service_name.clone()))]);
    labels.extend(pairs(map.get("labels").and_then(Node::as_map)));
    Accessory {
        name: name.to_owned(),
        image: image.join("/"),
        hosts: raw.accessory_hosts(map).unwrap_or_default(),
        network: map
            .get("network")
            .and_then(present_scalar)
            .unwrap_or_else(|| Scalar::Text("kamal".to_owned())),
        publish_args: port
            .iter()
            .flat_map(|port| ["--publish".to_owned(), port.clone()])
            .collect(),
        port,
        cmd: map.get("cmd").and_then(present_scalar),
        restart: restart(docker_options),
        labels,
        options: options(docker_options),
        env_clear: environment.clear,
        env_secret: environment.secret,
        volume_args: volume_args(&volumes, files.iter().chain(&directories)),
        volumes,
        files,
        directories,
        env_file: EnvFile {
            path: format!("{}/env/accessories/{name}.env", names.directory()),
        },
        registry,
        proxy: map
            .get("proxy")
            .filter(|settings| settings.is_present())
            .and_then(Node::as_map)
            .map(|settings| proxy::proxy(settings, service_name.clone(), timeouts)),
        service_name,
    }
}

/// One entry of `files` or `directories`, taken apart.
struct Pair {
    local: String,
    remote: String,
    mode: Option<Scalar>,
    owner: Option<Scalar>,
    options: Option<Scalar>,
}

fn pair(node: &Node) -> Option<Pair> {
    match &node.value {
        Value::Map(map) => {
            let get = |key: &str| map.get(key).filter(|value| value.is_truthy());
            Some(Pair {
                local: get("local").map(Node::to_s).unwrap_or_default(),
                remote: get("remote").map(Node::to_s).unwrap_or_default(),
                mode: get("mode").map(scalar),
                owner: get("owner").map(scalar),
                options: get("options").map(scalar),
            })
        }
        Value::Str(text) => {
            let mut parts = text.splitn(3, ':').map(ToOwned::to_owned);
            Some(Pair {
                local: parts.next().unwrap_or_default(),
                remote: parts.next().unwrap_or_default(),
                options: parts.next().map(Scalar::Text),
                mode: None,
                owner: None,
            })
        }
        _ => None,
    }
}

fn pairs_of(node: Option<&Node>) -> impl Iterator<Item = Pair> {
    node.and_then(Node::as_seq)
        .unwrap_or_default()
        .iter()
        .filter_map(pair)
}

fn files(node: Option<&Node>, service_name: &str, facts: &Facts<'_>) -> Vec<Mounted> {
    // Kamal keeps them by local path, so of equal ones the last holds.
    let mut files: IndexMap<String, Mounted> = IndexMap::new();
    for (index, pair) in pairs_of(node).enumerate() {
        let local = expand(&pair.local, facts);
        let template = pair.local.ends_with("erb");
        let key = if template {
            format!("{index}:{local}")
        } else {
            local.clone()
        };
        files.insert(
            key,
            Mounted {
                template,
                local,
                host_path: format!("{service_name}{}", pair.remote),
                container_path: pair.remote,
                mode: pair.mode.or_else(|| Some(Scalar::Text("755".to_owned()))),
                owner: pair.owner,
                options: pair.options,
            },
        );
    }
    files.into_values().collect()
}

fn directories(node: Option<&Node>, service_name: &str) -> Vec<Mounted> {
    let mut directories: IndexMap<String, Mounted> = IndexMap::new();
    for pair in pairs_of(node) {
        let (local, host_path) = if pair.local.starts_with('/') {
            (pair.local.clone(), pair.local)
        } else {
            (
                join_path(&format!("$PWD/{service_name}"), &pair.local),
                join_path(service_name, &pair.local),
            )
        };
        directories.insert(
            local.clone(),
            Mounted {
                local,
                host_path,
                container_path: pair.remote,
                mode: pair.mode,
                owner: pair.owner,
                options: pair.options,
                template: false,
            },
        );
    }
    directories.into_values().collect()
}

fn volume_args<'a>(volumes: &[String], mounted: impl Iterator<Item = &'a Mounted>) -> Vec<String> {
    let of_mounted = mounted.map(|mounted| {
        let host_path = if mounted.host_path.starts_with('/') {
            mounted.host_path.clone()
        } else {
            join_path("$PWD", &mounted.host_path)
        };
        let volume = format!("{host_path}:{}", mounted.container_path);
        match mounted.options.as_ref().map(ToString::to_string) {
            Some(options) if !options.trim().is_empty() => format!("{volume}:{options}"),
            _ => volume,
        }
    });
    volumes
        .iter()
        .cloned()
        .chain(of_mounted)
        .flat_map(|volume| ["--volume".to_owned(), volume])
        .collect()
}

/// Ruby's `File.expand_path`: absolute, `~` is the home directory, `.` and `..` resolved without looking at the disk.
fn expand(path: &str, facts: &Facts<'_>) -> String {
    let start = match (path.strip_prefix('~'), facts.home) {
        (Some(rest), Some(home)) if rest.is_empty() || rest.starts_with('/') => {
            Path::new(home).join(rest.trim_start_matches('/'))
        }
        _ => facts.directory.join(path),
    };
    let mut expanded = PathBuf::new();
    for component in start.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                expanded.pop();
            }
            other => expanded.push(other),
        }
    }
    expanded.to_string_lossy().into_owned()
}
