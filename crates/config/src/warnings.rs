//! What is no error but will hurt, each with its fix; silenced by name under `x-appliance: silence:`.

use std::net::IpAddr;

use crate::host::DATA_STORE_PORTS;
use crate::model::{Accessory, Resolved};
use crate::problem::Problem;
use crate::source::Sources;
use crate::yaml::tree::{Node, Place, Value};

/// The names of all warnings.
pub const NAMES: &[&str] = &[
    "colliding-name",
    "dropped-host",
    "duplicate-key",
    "incomplete-mount",
    "latest-tag",
    "literal-secret",
    "no-memory-limit",
    "published-data-store",
    "unknown-tag",
    "unpinned-accessory",
];

/// Images that hold data, by the last part of their name.
const DATA_STORES: &[&str] = &[
    "postgres",
    "postgresql",
    "postgis",
    "pgvector",
    "timescaledb",
    "mysql",
    "mariadb",
    "percona",
    "redis",
    "valkey",
    "keydb",
    "dragonfly",
    "mongo",
    "mongodb",
    "elasticsearch",
    "opensearch",
    "memcached",
    "clickhouse-server",
    "clickhouse",
    "cassandra",
    "influxdb",
    "couchdb",
    "rabbitmq",
    "nats",
    "kafka",
    "minio",
    "meilisearch",
    "typesense",
    "qdrant",
    "solr",
    "neo4j",
    "etcd",
];

/// Ends of names of settings whose value is a secret.
const SECRET_NAMES: &[&str] = &[
    "PASSWORD",
    "PASSWD",
    "SECRET",
    "TOKEN",
    "API_KEY",
    "APIKEY",
    "PRIVATE_KEY",
    "MASTER_KEY",
    "ACCESS_KEY",
    "SECRET_KEY",
    "SECRET_KEY_BASE",
    "ENCRYPTION_KEY",
    "CREDENTIALS",
];

struct Finder<'a> {
    root: &'a Node,
    sources: &'a Sources,
    found: Vec<Problem>,
}

/// Finds what will hurt in a configuration that is valid.
pub fn find(config: &Resolved, root: &Node, sources: &Sources) -> Vec<Problem> {
    let mut finder = Finder {
        root,
        sources,
        found: Vec::new(),
    };
    for accessory in &config.accessories {
        finder.published(accessory);
        finder.tag(accessory);
        let limited = has_option(&accessory.options, "memory");
        finder.memory(&["accessories", &accessory.name], limited);
    }
    for role in &config.roles {
        let path: Vec<&str> = match root.dig(&["servers", &role.name]) {
            Some(_) => vec!["servers", &role.name],
            None => vec!["servers"],
        };
        finder.memory(&path, has_option(&role.options, "memory"));
    }
    finder.literals();
    finder.collisions(config);
    finder.found
}

fn has_option(options: &crate::model::Options, name: &str) -> bool {
    options.contains_key(name)
}

impl Finder<'_> {
    fn warn(&mut self, name: &str, path: &[&str], message: String, fix: String) {
        let place = (1..=path.len())
            .rev()
            .find_map(|length| self.key_place(&path[..length]))
            .unwrap_or(self.root.place);
        let mut problem = self
            .sources
            .problem(place, &path.join("/"), message)
            .with_hint(fix);
        problem.name = Some(name.to_owned());
        self.found.push(problem);
    }

    /// Where the key at a path stands.
    fn key_place(&self, path: &[&str]) -> Option<Place> {
        let (last, parents) = path.split_last()?;
        let parent = if parents.is_empty() {
            self.root
        } else {
            self.root.dig(parents)?
        };
        parent.as_map()?.key_node(last).map(|key| key.place)
    }

    fn published(&mut self, accessory: &Accessory) {
        let name = accessory.name.as_str();
        let options = self.root.dig(&["accessories", name, "options", "publish"]);
        let more = match options.map(|node| &node.value) {
            Some(Value::Seq(items)) => items.iter().map(Node::to_s).collect(),
            Some(_) => options.map(Node::to_s).into_iter().collect(),
            None => Vec::new(),
        };
        let ports = accessory.port.iter().cloned().map(|port| (port, "port"));
        for (publish, key) in ports.chain(more.into_iter().map(|port| (port, "options"))) {
            let Some((host, inside)) = exposed(&publish) else {
                continue;
            };
            let store = is_data_store(&accessory.image) || DATA_STORE_PORTS.contains(&inside);
            if store {
                let message =
                    format!("accessories/{name}: a data store is published on all interfaces ({publish})");
                let fix = format!(
                    "publish it for this host alone: {key}: \"127.0.0.1:{host}:{inside}\"; containers reach it as {} anyway",
                    accessory.service_name
                );
                self.warn("published-data-store", &["accessories", name, key], message, fix);
            }
        }
    }

    fn tag(&mut self, accessory: &Accessory) {
        let image = &accessory.image;
        let last = image.rsplit('/').next().unwrap_or(image);
        let name = accessory.name.as_str();
        let path = ["accessories", name, "image"];
        if image.contains('@') {
        } else if last.ends_with(":latest") {
            let message = format!("accessories/{name}: {image} changes under you");
            let fix = "name the version that runs now, such as postgres:17".to_owned();
            self.warn("latest-tag", &path, message, fix);
        } else if !last.contains(':') {
            let message =
                format!("accessories/{name}: {image} has no tag, so it means latest and changes under you");
            let fix = format!("name a version: {image}:VERSION");
            self.warn("unpinned-accessory", &path, message, fix);
        }
    }

    fn memory(&mut self, path: &[&str], limited: bool) {
        let covered = self.root.dig(&["x-appliance", "limits", "memory"]).is_some() && path[0] == "servers";
        let own = path.len() > 1
            && self
                .root
                .dig(&["x-appliance", "limits", "roles", path[1], "memory"])
                .is_some()
            && path[0] == "servers";
        if limited || covered || own {
            return;
        }
        let shown = path.join("/");
        let message = format!("{shown}: no memory limit, so a leak takes the whole host down");
        self.warn(
            "no-memory-limit",
            path,
            message,
            "set options: memory: 512m (or what it needs)".to_owned(),
        );
    }

    /// Secrets that stand in the file itself; what ERB put there does not.
    fn literals(&mut self) {
        let mut paths: Vec<Vec<String>> = Vec::new();
        collect_env(self.root, &mut Vec::new(), &mut paths);
        for path in paths {
            let parts: Vec<&str> = path.iter().map(String::as_str).collect();
            let Some(node) = self.root.dig(&parts) else {
                continue;
            };
            let name = parts.last().copied().unwrap_or_default();
            let written = node.as_str().unwrap_or_default();
            let upper = name.to_ascii_uppercase();
            let secret = upper == "PASSWORD" && parts.first() == Some(&"registry")
                || SECRET_NAMES.iter().any(|end| upper.ends_with(end));
            if !secret
                || written.is_empty()
                || written.starts_with(['/', '$'])
                || self.is_from_erb(node.place)
            {
                continue;
            }
            let shown = path.join("/");
            let message =
                format!("{shown}: a secret stands in the file, for everyone who can read the repository");
            let fix = if parts.first() == Some(&"registry") {
                format!(
                    "give the name of a secret instead: {name}: [KAMAL_REGISTRY_PASSWORD], and the value in .kamal/secrets"
                )
            } else {
                format!("move {name} from env/clear to env/secret, and the value to .kamal/secrets")
            };
            self.warn("literal-secret", &parts, message, fix);
        }
    }

    fn is_from_erb(&self, place: Place) -> bool {
        self.sources.line(place).is_some_and(|line| line.contains("<%"))
    }

    fn collisions(&mut self, config: &Resolved) {
        for accessory in &config.accessories {
            let taken = config.roles.iter().find(|role| {
                accessory.service_name == role.container_prefix
                    || role
                        .proxy
                        .as_ref()
                        .is_some_and(|proxy| proxy.service_name == accessory.service_name)
            });
            if let Some(role) = taken {
                let message = format!(
                    "accessories/{}: its name {} is also that of the role {}: on one host each replaces the other",
                    accessory.name, accessory.service_name, role.name
                );
                let fix = format!("rename one, or set accessories/{}/service", accessory.name);
                self.warn("colliding-name", &["accessories", &accessory.name], message, fix);
            }
        }
        for (index, accessory) in config.accessories.iter().enumerate() {
            if let Some(other) = config.accessories[..index].iter().find(|other| {
                other.service_name == accessory.service_name
                    && other.hosts.iter().any(|host| accessory.hosts.contains(host))
            }) {
                let message = format!(
                    "accessories/{}: its name {} is also that of accessories/{}, on the same host",
                    accessory.name, accessory.service_name, other.name
                );
                self.warn(
                    "colliding-name",
                    &["accessories", &accessory.name],
                    message,
                    "set another `service`".to_owned(),
                );
            }
        }
        if let Some(destination) = &config.destination {
            for role in &config.roles {
                let Some(stem) = role.name.strip_suffix(&format!("-{destination}")) else {
                    continue;
                };
                let message = format!(
                    "servers/{}: without a destination this role has the containers' names of role {stem} in destination {destination}",
                    role.name
                );
                let fix = "choose a role name that does not end in a destination's".to_owned();
                self.warn("colliding-name", &["servers", &role.name], message, fix);
            }
        }
    }
}

/// The host port and the inner port, if a `--publish` reaches beyond private networks.
fn exposed(publish: &str) -> Option<(&str, u16)> {
    let plain = publish.split('/').next().unwrap_or(publish);
    let (rest, inside) = plain.rsplit_once(':').unwrap_or(("", plain));
    let inner = inside.split('-').next()?.parse().ok()?;
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (address.trim_matches(['[', ']']), host),
        None => ("", if rest.is_empty() { inside } else { rest }),
    };
    let private = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => {
            let tailnet = address.octets()[0] == 100 && (64..128).contains(&address.octets()[1]);
            address.is_loopback() || address.is_private() || address.is_link_local() || tailnet
        }
        Ok(IpAddr::V6(address)) => {
            address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local()
        }
        // A name, such as `localhost`, is not for us to judge.
        Err(_) => !address.is_empty(),
    };
    (!private).then_some((host, inner))
}

fn is_data_store(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    let name = last.split([':', '@']).next().unwrap_or(last);
    DATA_STORES.contains(&name)
}

/// Paths of the settings that are plain text: `env` and `env/clear` everywhere, and the registry's password.
fn collect_env(node: &Node, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    const LISTS: &[&str] = &["secret", "tags", "clear"];
    let Some(map) = node.as_map() else { return };
    for (key, value) in map.iter() {
        let name = key.to_s();
        if path.is_empty() && name.starts_with("x-") || path.len() > 6 {
            continue;
        }
        path.push(name.clone());
        match (name.as_str(), &value.value) {
            ("env", Value::Map(env)) => {
                for (key, value) in env.iter() {
                    let name = key.to_s();
                    if name == "clear" {
                        let clear = value.as_map().into_iter().flat_map(crate::yaml::tree::Map::iter);
                        found.extend(
                            clear.map(|(key, _)| [path.as_slice(), &[name.clone(), key.to_s()]].concat()),
                        );
                    } else if !LISTS.contains(&name.as_str()) {
                        found.push([path.as_slice(), &[name]].concat());
                    }
                }
            }
            ("password", Value::Str(_)) if path.iter().any(|part| part == "registry") => {
                found.push(path.clone())
            }
            (_, Value::Map(_)) => collect_env(value, path, found),
            _ => {}
        }
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::runner::ProcessRunner;

    /// Loads a configuration below `service: shop` and gives `name@line` of each warning.
    fn warnings(text: &str) -> Vec<String> {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("config/deploy.yml");
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("created");
        let text = format!(
            "service: shop\nimage: acme/shop\nbuilder: {{arch: amd64}}\nregistry: {{username: u, password: [P]}}\n{text}"
        );
        let mut written = std::fs::File::create(&file).expect("created");
        std::io::Write::write_all(&mut written, text.as_bytes()).expect("written");
        let env = BTreeMap::from([("TOKEN".to_owned(), "from env".to_owned())]);
        let mut options = crate::LoadOptions::new(
            directory.path(),
            env,
            "2026-01-01T00:00:00+00:00[UTC]".parse().expect("a time"),
        );
        options.version = Some("v1".to_owned());
        let loaded = crate::load(
            &options,
            &ProcessRunner {
                forward_stderr: false,
            },
        )
        .expect("valid");
        loaded
            .warnings
            .iter()
            .map(|warning| {
                assert!(warning.hint.is_some(), "{warning} has no fix");
                let name = warning.name.as_deref().expect("a warning has a name");
                assert!(NAMES.contains(&name), "{name} is not among the names");
                format!("{name}@{}", warning.line.unwrap_or_default())
            })
            .collect()
    }

    const QUIET: &str = "servers: {web: {hosts: [192.0.2.1], options: {memory: 1g}}}\n";

    #[test]
    fn a_careful_configuration_has_no_warnings() {
        let text = format!(
            "{QUIET}accessories:\n  db: {{image: 'postgres:17', host: 192.0.2.1, port: '127.0.0.1:5432:5432', options: {{memory: 1g}}}}\n"
        );
        assert_eq!(warnings(&text), [""; 0]);
    }

    #[test]
    fn data_stores_reachable_from_everywhere_are_found() {
        for (settings, found) in [
            ("image: 'postgres:17', port: 5432", true),
            ("image: 'postgres:17', port: '5433:5432'", true),
            ("image: 'postgres:17', port: '0.0.0.0:5432:5432'", true),
            ("image: 'postgres:17', port: '[::]:5432:5432'", true),
            ("image: 'postgres:17', port: '10.0.0.5:5432:5432'", false),
            ("image: 'postgres:17', port: '100.100.1.1:5432:5432'", false),
            ("image: 'postgres:17', port: '[::1]:5432:5432'", false),
            ("image: 'postgres:17'", false),
            ("image: 'acme/thing:1', port: 6379", true),
            ("image: 'acme/thing:1', port: 8080", false),
        ] {
            let text = format!(
                "{QUIET}accessories:\n  db: {{{settings}, host: 192.0.2.1, options: {{memory: 1g}}}}\n"
            );
            let expect: &[&str] = if found { &["published-data-store@7"] } else { &[] };
            assert_eq!(warnings(&text), expect, "{settings}");
        }
    }

    #[test]
    fn tags_limits_literals_and_names_are_looked_at() {
        let text = "servers:\n  web: [192.0.2.1]\naccessories:\n  web:\n    image: redis\n    host: 192.0.2.1\n    env:\n      clear:\n        \
                    API_TOKEN: abc\n        OTHER_TOKEN: <%= ENV[\"TOKEN\"] %>\n  two: {image: 'x:latest', host: 192.0.2.1, options: {memory: 1g}}\n";
        assert_eq!(
            warnings(text),
            [
                "unpinned-accessory@9",
                "no-memory-limit@8",
                "latest-tag@15",
                "no-memory-limit@6",
                "literal-secret@13",
                "colliding-name@8",
            ]
        );
    }

    #[test]
    fn a_warning_is_silenced_by_name() {
        let text = "servers: [192.0.2.1]\nx-appliance: {silence: [no-memory-limit]}\n";
        assert_eq!(warnings(text), [""; 0]);
        assert_eq!(warnings("servers: [192.0.2.1]\n"), ["no-memory-limit@5"]);
        let limited = "servers: [192.0.2.1]\nx-appliance: {limits: {memory: 512m}}\n";
        assert_eq!(warnings(limited), [""; 0]);
    }
}
