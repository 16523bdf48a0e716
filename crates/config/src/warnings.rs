//! What is no error but will hurt, each with its fix; silenced by name under `x-appliance: silence:`.

mod literal;

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
    "misspelt-extension",
    "no-memory-limit",
    "octal-mode",
    "published-data-store",
    "tagged-image",
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

struct Finder<'a> {
    root: &'a Node,
    sources: &'a Sources,
    found: Vec<Problem>,
}

/// Finds what will hurt in a configuration that is valid; `destinations` are those that have a file.
pub fn find(config: &Resolved, root: &Node, sources: &Sources, destinations: &[String]) -> Vec<Problem> {
    let mut finder = Finder {
        root,
        sources,
        found: Vec::new(),
    };
    finder.own_image();
    for accessory in &config.accessories {
        finder.published(accessory);
        finder.on_host_network(accessory);
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
    literal::find(&mut finder);
    finder.collisions(config);
    finder.destination_names(config, destinations);
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
        let port = ["accessories", name, "port"];
        let publish = ["accessories", name, "options", "publish"];
        let ports = accessory.port.iter().cloned().map(|text| (text, &port[..]));
        for (text, path) in ports.chain(more.into_iter().map(|text| (text, &publish[..]))) {
            let Some(Exposed { private, inside }) = exposed(&text) else {
                continue;
            };
            let store = is_data_store(&accessory.image)
                || DATA_STORE_PORTS.iter().any(|known| inside.contains(known));
            if store {
                let message =
                    format!("accessories/{name}: a data store is published on all interfaces ({text})");
                let key = path[path.len() - 1];
                let fix = format!(
                    "publish it for this host alone: {key}: \"{private}\"; containers reach it as {} anyway",
                    accessory.service_name
                );
                self.warn("published-data-store", path, message, fix);
            }
        }
    }

    /// On the host's network a data store listens wherever it likes, which is everywhere by default.
    fn on_host_network(&mut self, accessory: &Accessory) {
        let name = accessory.name.as_str();
        for path in [
            &["accessories", name, "network"][..],
            &["accessories", name, "options", "network"],
        ] {
            let on_host = self
                .root
                .dig(path)
                .is_some_and(|network| network.to_s() == "host");
            if on_host && is_data_store(&accessory.image) {
                let message = format!(
                    "accessories/{name}: a data store on the host's network listens on all of its interfaces"
                );
                let fix = format!(
                    "remove network: host; containers reach it as {} on the network kamal",
                    accessory.service_name
                );
                self.warn("published-data-store", path, message, fix);
            }
        }
    }

    /// The app's image gets the version as its tag, after whatever is written.
    fn own_image(&mut self) {
        let Some(image) = self.root.get("image").map(Node::to_s) else {
            return;
        };
        let last = image.rsplit('/').next().unwrap_or(&image);
        let Some((_, tag)) = last.split_once(':') else {
            return;
        };
        let plain = &image[..image.len() - tag.len() - 1];
        let warning = if tag == "latest" {
            "latest-tag"
        } else {
            "tagged-image"
        };
        self.warn(
            warning,
            &["image"],
            format!("image: every release adds its version, and {image}:VERSION is not the name of an image"),
            format!("leave the tag out: image: {plain}"),
        );
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
    }

    /// A role `job-staging` without a destination, and the role `job` in the destination `staging`, have one name.
    fn destination_names(&mut self, config: &Resolved, destinations: &[String]) {
        let named = config.destination.iter().chain(destinations);
        let mut seen: Vec<&str> = Vec::new();
        for destination in named {
            if seen.contains(&destination.as_str()) {
                continue;
            }
            seen.push(destination);
            let here = config.destination.as_ref() == Some(destination);
            for role in &config.roles {
                let Some(stem) = role.name.strip_suffix(&format!("-{destination}")) else {
                    continue;
                };
                if !here && !config.roles.iter().any(|other| other.name == stem) {
                    continue;
                }
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

/// A `--publish` that reaches beyond private networks.
struct Exposed {
    /// The same for the loopback interface alone.
    private: String,
    /// Ports of the container.
    inside: std::ops::RangeInclusive<u16>,
}

/// What a `--publish` exposes, if it reaches beyond private networks.
fn exposed(publish: &str) -> Option<Exposed> {
    let (plain, protocol) = match publish.split_once('/') {
        Some((plain, protocol)) => (plain, format!("/{protocol}")),
        None => (publish, String::new()),
    };
    let (rest, inside) = plain.rsplit_once(':').unwrap_or(("", plain));
    let (first, last) = inside.split_once('-').unwrap_or((inside, inside));
    let ports = first.parse().ok()?..=last.parse().ok()?;
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
    (!private).then(|| Exposed {
        private: format!("127.0.0.1:{host}:{inside}{protocol}"),
        inside: ports,
    })
}

fn is_data_store(image: &str) -> bool {
    let last = image.rsplit('/').next().unwrap_or(image);
    let name = last.split([':', '@']).next().unwrap_or(last);
    DATA_STORES.contains(&name)
}

#[cfg(test)]
mod tests;
