//! From a checked configuration to the values Kamal computes from it.
//!
//! Everything here runs on trees that passed every check, so odd types cannot occur; where one did, the default holds.

mod accessory;
pub(crate) mod builder;
mod env;
mod proxy;
mod role;
mod text;

use std::path::Path;

use crate::model::{Boot, Image, Logging, ProxyContainer, Resolved, SecretFiles, Ssh, Sshkit, Timeouts};
use crate::validate::raw::{Raw, merged};
use crate::yaml::tree::{Map, Node};
use text::{pairs, present_scalar, scalar, text_list};

/// What the values depend on beside the file.
pub(crate) struct Facts<'a> {
    /// The project's directory, absolute.
    pub(crate) directory: &'a Path,
    /// `$HOME`, for `~`.
    pub(crate) home: Option<&'a str>,
    /// The destination.
    pub(crate) destination: Option<&'a str>,
    /// The version.
    pub(crate) version: &'a str,
    /// Docker's name for this machine's processor.
    pub(crate) local_arch: &'a str,
    /// The secrets files that exist.
    pub(crate) secret_files: Vec<String>,
}

/// Names that many values are made of.
pub(crate) struct Names<'a> {
    pub(crate) service: String,
    pub(crate) destination: Option<&'a str>,
    pub(crate) version: &'a str,
}

impl Names<'_> {
    /// `<service>[-<destination>]`.
    fn app(&self) -> String {
        match self.destination {
            Some(destination) => format!("{}-{destination}", self.service),
            None => self.service.clone(),
        }
    }

    /// The app's directory in the SSH user's home.
    fn directory(&self) -> String {
        format!(".kamal/apps/{}", self.app())
    }
}

/// Resolves a configuration that passed every check.
pub(crate) fn resolve(root: &Map, facts: &Facts<'_>) -> Resolved {
    let raw = Raw::new(root);
    let names = Names {
        service: raw.text("service").unwrap_or_default(),
        destination: facts.destination,
        version: facts.version,
    };
    let registry = builder::registry(raw.section("registry"));
    let image = image(&raw, &registry, &names);
    let logging = logging(raw.section("logging"));
    let timeouts = Timeouts {
        readiness_delay: raw.int("readiness_delay").unwrap_or(7),
        deploy_timeout: raw.int("deploy_timeout").unwrap_or(30),
        drain_timeout: raw.int("drain_timeout").unwrap_or(30),
        stop_timeout: raw.int("stop_timeout"),
    };
    let roles = role::roles(&raw, &names, &timeouts);
    let accessories = accessory::accessories(&raw, &names, &timeouts, facts);
    let app_hosts = unique(roles.iter().flat_map(|role| &role.hosts));
    let all_hosts = unique(
        roles
            .iter()
            .flat_map(|role| &role.hosts)
            .chain(accessories.iter().flat_map(|accessory| &accessory.hosts)),
    );
    let proxy_hosts = unique(
        roles
            .iter()
            .filter(|role| role.running_proxy)
            .flat_map(|role| &role.hosts)
            .chain(
                accessories
                    .iter()
                    .filter(|accessory| accessory.proxy.is_some())
                    .flat_map(|accessory| &accessory.hosts),
            ),
    );
    let primary_role = raw.primary_role_name();
    Resolved {
        destination: facts.destination.map(ToOwned::to_owned),
        service: names.service.clone(),
        version: facts.version.to_owned(),
        primary_host: roles
            .iter()
            .find(|role| role.name == primary_role)
            .and_then(|role| role.hosts.first().cloned()),
        primary_role,
        proxy_container: proxy_containers(&proxy_hosts, &roles, &accessories),
        builder: builder::builder(
            raw.section("builder"),
            &registry,
            &image_name(&raw, &registry),
            facts.local_arch,
        ),
        boot: boot(raw.section("boot"), all_hosts.len()),
        ssh: ssh(raw.section("ssh")),
        sshkit: sshkit(raw.section("sshkit")),
        all_hosts,
        app_hosts,
        proxy_hosts,
        roles,
        accessories,
        registry,
        image,
        aliases: raw
            .section("aliases")
            .map(|aliases| {
                aliases
                    .iter()
                    .map(|(name, command)| (name.to_s(), scalar(command)))
                    .collect()
            })
            .unwrap_or_default(),
        hooks_path: raw
            .text("hooks_path")
            .unwrap_or_else(|| ".kamal/hooks".to_owned()),
        hooks_output: raw.get("hooks_output").map(Node::to_json),
        secrets_path: raw
            .text("secrets_path")
            .unwrap_or_else(|| ".kamal/secrets".to_owned()),
        retain_containers: raw.int("retain_containers").unwrap_or(5),
        minimum_version: raw.get("minimum_version").map(scalar),
        require_destination: raw.get("require_destination").is_some_and(Node::is_truthy),
        error_pages_path: raw.text("error_pages_path"),
        timeouts,
        logging_args: logging_args(&logging),
        logging,
        output: raw.get("output").map(Node::to_json),
        secrets: SecretFiles {
            files: facts.secret_files.clone(),
        },
        labels: pairs(raw.section("labels")),
    }
}

fn unique<'a>(hosts: impl Iterator<Item = &'a String>) -> Vec<String> {
    let set: indexmap::IndexSet<&String> = hosts.collect();
    set.into_iter().cloned().collect()
}

/// The image's name: the service's with a local registry.
fn image_name(raw: &Raw<'_>, registry: &crate::model::Registry) -> String {
    raw.get("image")
        .filter(|image| image.is_present())
        .map(Node::to_s)
        .or_else(|| raw.text("service").filter(|_| registry.local))
        .unwrap_or_default()
}

fn image(raw: &Raw<'_>, registry: &crate::model::Registry, names: &Names<'_>) -> Image {
    let name = image_name(raw, registry);
    let repository = match &registry.server {
        Some(server) => format!("{server}/{name}"),
        None => name,
    };
    let latest = match names.destination {
        Some(destination) => format!("latest-{destination}"),
        None => "latest".to_owned(),
    };
    Image {
        absolute: format!("{repository}:{}", names.version),
        latest: format!("{repository}:{latest}"),
        repository,
    }
}

/// One entry for each distinct set of options of the shared proxy.
fn proxy_containers(
    hosts: &[String],
    roles: &[crate::model::Role],
    accessories: &[crate::model::Accessory],
) -> Vec<ProxyContainer> {
    let mut containers: Vec<ProxyContainer> = Vec::new();
    for host in hosts {
        let of_roles = roles
            .iter()
            .filter(|role| role.hosts.contains(host))
            .filter_map(|role| role.proxy.as_ref()?.run.clone());
        let of_accessories = accessories
            .iter()
            .filter(|accessory| accessory.hosts.contains(host))
            .filter_map(|accessory| accessory.proxy.as_ref()?.run.clone());
        let run = of_roles.chain(of_accessories).next();
        if !containers.iter().any(|known| known.run == run) {
            containers.push(ProxyContainer {
                host: host.clone(),
                run,
            });
        }
    }
    containers
}

fn logging(map: Option<&Map>) -> Logging {
    let get = |key: &str| map.and_then(|map| map.get(key));
    Logging {
        driver: get("driver").filter(|driver| driver.is_present()).map(Node::to_s),
        options: pairs(get("options").and_then(Node::as_map)),
    }
}

/// Root and role logging merged.
fn merged_logging(root: Option<&Map>, role: Option<&Map>) -> Logging {
    logging(Some(&merged(root, role)))
}

/// Docker's flags; without any setting, logs rotate at 10 MB.
fn logging_args(logging: &Logging) -> Vec<String> {
    let mut args = Vec::new();
    if let Some(driver) = &logging.driver {
        args.push("--log-driver".to_owned());
        args.push(crate::ruby::escape_shell_value(driver));
    }
    for (name, value) in &logging.options {
        args.push("--log-opt".to_owned());
        args.push(match value {
            Some(value) => format!("{name}={}", crate::ruby::escape_shell_value(value)),
            None => name.clone(),
        });
    }
    if args.is_empty() {
        args = vec!["--log-opt".to_owned(), "max-size=\"10m\"".to_owned()];
    }
    args
}

fn boot(map: Option<&Map>, host_count: usize) -> Boot {
    let get = |key: &str| map.and_then(|map| map.get(key));
    Boot {
        limit: get("limit").map(|limit| match limit.to_s().strip_suffix('%') {
            Some(percent) => crate::model::Scalar::Int(share(host_count, percent)),
            None => scalar(limit),
        }),
        wait: get("wait").and_then(Node::as_int),
        parallel_roles: get("parallel_roles").and_then(Node::as_bool),
    }
}

/// That many percent of the hosts, rounded down, at least one.
fn share(host_count: usize, percent: &str) -> i64 {
    let hosts = i64::try_from(host_count).unwrap_or(i64::MAX);
    hosts.saturating_mul(text::to_i(percent)).div_euclid(100).max(1)
}

fn ssh(map: Option<&Map>) -> Ssh {
    let get = |key: &str| map.and_then(|map| map.get(key));
    let proxy = get("proxy").filter(|proxy| proxy.is_truthy()).map(Node::to_s);
    Ssh {
        user: get("user").map_or_else(|| crate::model::Scalar::Text("root".to_owned()), scalar),
        port: get("port").map_or(crate::model::Scalar::Int(22), scalar),
        keys: get("keys").map(text_list),
        keys_only: get("keys_only").and_then(Node::as_bool),
        // A raw key is not a name; it must not appear in any output.
        key_data: get("key_data").map(|data| {
            text_list(data)
                .into_iter()
                .map(|entry| {
                    if entry.contains("-----BEGIN") {
                        "[REDACTED]".to_owned()
                    } else {
                        entry
                    }
                })
                .collect()
        }),
        config: get("config").map(Node::to_json),
        forward_agent: get("forward_agent").and_then(Node::as_bool),
        log_level: get("log_level").map_or_else(|| crate::model::Scalar::Text("fatal".to_owned()), scalar),
        proxy_command: match proxy {
            Some(_) => None,
            None => get("proxy_command").and_then(present_scalar),
        },
        proxy_jump: proxy.map(|proxy| {
            if proxy.contains('@') {
                proxy
            } else {
                format!("root@{proxy}")
            }
        }),
    }
}

fn sshkit(map: Option<&Map>) -> Sshkit {
    let get = |key: &str| map.and_then(|map| map.get(key)).and_then(Node::as_int);
    Sshkit {
        max_concurrent_starts: get("max_concurrent_starts").unwrap_or(30),
        pool_idle_timeout: get("pool_idle_timeout").unwrap_or(900),
        dns_retries: get("dns_retries").unwrap_or(3),
    }
}
