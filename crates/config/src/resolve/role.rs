//! Roles, and what each of their hosts gets.

use super::env::{Env, env, tags};
use super::text::{options, pairs, present_scalar, restart, text_list};
use super::{Names, logging_args, merged_logging, proxy};
use crate::model::{EnvFile, Pairs, Role, RoleHost, Timeouts};
use crate::validate::raw::{Raw, RawRole, TaggedHost, merged};
use crate::yaml::tree::Node;

/// All roles, alphabetically.
pub(super) fn roles(raw: &Raw<'_>, names: &Names<'_>, timeouts: &Timeouts) -> Vec<Role> {
    let primary = raw.primary_role_name();
    raw.roles()
        .into_iter()
        .map(|role| {
            let primary = role.name == primary;
            resolve(raw, &role, primary, names, timeouts)
        })
        .collect()
}

fn resolve(raw: &Raw<'_>, role: &RawRole<'_>, primary: bool, names: &Names<'_>, timeouts: &Timeouts) -> Role {
    let running_proxy = role.running_proxy(primary);
    let hosts = role.hosts();
    let prefix = match names.destination {
        Some(destination) => format!("{}-{}-{destination}", names.service, role.name),
        None => format!("{}-{}", names.service, role.name),
    };
    let stop_timeout = role
        .get("stop_timeout")
        .and_then(Node::as_int)
        .or(timeouts.stop_timeout);
    // A role behind the proxy was drained by it, so Docker need not wait.
    let stop_wait = stop_timeout.or((!running_proxy).then_some(timeouts.drain_timeout));
    let docker_options = role.get("options").and_then(Node::as_map);
    let logging = merged_logging(raw.section("logging"), role.get("logging").and_then(Node::as_map));
    let asset_path = role
        .get("asset_path")
        .filter(|path| path.is_truthy())
        .or_else(|| raw.get("asset_path"))
        .filter(|path| path.is_present())
        .map(Node::to_s);
    let (asset_path, asset_path_options) = match asset_path {
        Some(text) => match text.split_once(':') {
            Some((path, options)) => (Some(path.to_owned()), Some(options.to_owned())),
            None => (Some(text), None),
        },
        None => (None, None),
    };
    Role {
        name: role.name.clone(),
        primary,
        running_proxy,
        cmd: role.get("cmd").and_then(present_scalar),
        container_name: format!("{prefix}-{}", names.version),
        restart: restart(docker_options),
        stop_args: stop_wait
            .map(|seconds| vec!["-t".to_owned(), seconds.to_string()])
            .unwrap_or_default(),
        stop_timeout,
        labels: labels(raw, role, names),
        options: options(docker_options),
        volumes: raw.get("volumes").map(text_list).unwrap_or_default(),
        logging_args: logging_args(&logging),
        logging,
        asset_volume: asset_path.as_ref().filter(|_| running_proxy).map(|path| {
            let volume = format!(
                "$PWD/{}/assets/volumes/{}-{}:{path}",
                names.directory(),
                role.name,
                names.version
            );
            match asset_path_options
                .as_deref()
                .filter(|options| !options.trim().is_empty())
            {
                Some(options) => format!("{volume}:{options}"),
                None => volume,
            }
        }),
        asset_path,
        asset_path_options,
        per_host: per_host(raw, role, &hosts, names),
        proxy: running_proxy.then(|| {
            let settings = merged(raw.section("proxy"), role.get("proxy").and_then(Node::as_map));
            proxy::proxy(&settings, prefix.clone(), timeouts)
        }),
        container_prefix: prefix,
        hosts: hosts.into_iter().map(|tagged| tagged.host).collect(),
    }
}

/// Identity labels, then the root's (which may override them), then the role's.
fn labels(raw: &Raw<'_>, role: &RawRole<'_>, names: &Names<'_>) -> Pairs {
    // Blank values become labels without a value.
    let value = |text: &str| Some(text.to_owned()).filter(|text| !text.trim().is_empty());
    let mut labels = Pairs::from_iter([
        ("service".to_owned(), value(&names.service)),
        ("role".to_owned(), value(&role.name)),
        ("destination".to_owned(), names.destination.and_then(value)),
    ]);
    labels.extend(pairs(raw.section("labels")));
    labels.extend(pairs(role.get("labels").and_then(Node::as_map)));
    labels
}

/// The environment on each host: root, then role, then each tag of the host.
fn per_host(raw: &Raw<'_>, role: &RawRole<'_>, hosts: &[TaggedHost], names: &Names<'_>) -> Vec<RoleHost> {
    let root = raw.section("env");
    let tagged = tags(root);
    let mut base = env(root);
    base.merge(&env(role.get("env").and_then(Node::as_map)));
    let mut first: Option<(String, Env)> = None;
    hosts
        .iter()
        .map(|host| {
            let mut own = base.clone();
            let mut env_tags = Vec::new();
            for tag in &host.tags {
                if let Some(more) = tagged.get(tag) {
                    own.merge(more);
                    env_tags.push(tag.clone());
                }
            }
            if let Some((same_as, env)) = &first
                && *env == own
            {
                return RoleHost::SameAs {
                    host: host.host.clone(),
                    same_as: same_as.clone(),
                };
            }
            if first.is_none() {
                first = Some((host.host.clone(), own.clone()));
            }
            RoleHost::Own {
                host: host.host.clone(),
                env_tags,
                env_clear: own.clear,
                env_secret: own.secret,
                env_file: EnvFile {
                    path: format!("{}/env/roles/{}.env", names.directory(), role.name),
                },
            }
        })
        .collect()
}
