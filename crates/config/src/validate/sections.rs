//! The checks of each section, in the order in which Kamal builds its objects.

use super::raw::Raw;
use super::shape::{self, Section};
use super::{Checker, env, join, key_path, proxy};
use crate::problem::did_you_mean;
use crate::yaml::tree::{Map, Node, Place, Value};

/// Labels by which containers are found again.
const RESERVED_LABELS: &[&str] = &["destination", "role", "service"];

/// Kamal's commands: aliases may not hide them.
const COMMANDS: &[&str] = &[
    "setup",
    "deploy",
    "redeploy",
    "rollback",
    "details",
    "audit",
    "config",
    "docs",
    "init",
    "remove",
    "upgrade",
    "version",
    "accessory",
    "app",
    "build",
    "lock",
    "proxy",
    "prune",
    "registry",
    "secrets",
    "server",
];

/// Keys that say where an accessory runs.
const PLACEMENTS: &[&str] = &["host", "hosts", "role", "roles", "tag", "tags"];

/// Checks all sections.
pub(super) fn check(checker: &mut Checker<'_>, raw: &Raw<'_>) {
    servers(checker, raw);
    registry(checker, raw.root(), "registry");
    for (name, accessory) in raw.accessories() {
        check_accessory(checker, raw, name, accessory);
    }
    names_are_text(checker, raw.section("accessories"), "accessories", "an accessory");
    aliases(checker, raw);
    plain(checker, raw, "boot", shape::BOOT);
    builder(checker, raw);
    if let Some(env) = raw.section("env") {
        env::check(checker, env, "env", true);
    }
    plain(checker, raw, "logging", shape::LOGGING);
    plain(checker, raw, "output", shape::OUTPUT);
    match raw.get("proxy") {
        Some(proxy) if proxy.as_bool().is_some() => {
            checker.type_error(proxy, "proxy", "a hash");
            if let Some(problem) = checker.problems.last_mut() {
                problem.hint = Some(
                    "true and false are for roles; at the root give settings, or remove the key".to_owned(),
                );
            }
        }
        Some(proxy) => {
            if let Some(map) = proxy.as_map() {
                proxy::check(checker, map, "proxy");
            }
        }
        None => {}
    }
    plain(checker, raw, "ssh", shape::SSH);
    plain(checker, raw, "sshkit", shape::SSHKIT);
}

/// A section whose keys and types are all there is to check.
fn plain(checker: &mut Checker<'_>, raw: &Raw<'_>, name: &str, section: Section) {
    if let Some(node) = raw.get(name)
        && let Some(map) = node.as_map()
    {
        checker.keys(map, section, name, false);
    }
}

/// Names become parts of container names; anything but text makes Kamal crash.
fn names_are_text(checker: &mut Checker<'_>, map: Option<&Map>, path: &str, what: &str) {
    let Some(map) = map else { return };
    for (name, _) in map.iter().filter(|(name, _)| name.as_str().is_none()) {
        let written = name.raw.clone().unwrap_or_else(|| name.to_s());
        let hint = format!("YAML reads {written} as something else than text; put the name in quotes");
        checker
            .report(name.place, path, format!("the name of {what} should be a string"))
            .hint = Some(hint);
    }
}

fn servers(checker: &mut Checker<'_>, raw: &Raw<'_>) {
    let Some(servers) = raw.get("servers") else { return };
    let map = match &servers.value {
        Value::Seq(_) => {
            checker.hosts(servers, "servers");
            return;
        }
        Value::Map(map) => map,
        _ => return,
    };
    names_are_text(checker, Some(map), "servers", "a role");
    let primary = raw.primary_role_name();
    for role in raw.roles() {
        if let Some(node) = map.get(&role.name) {
            check_role(
                checker,
                node,
                &role.name,
                role.running_proxy(role.name == primary),
            );
        }
    }
}

fn check_role(checker: &mut Checker<'_>, node: &Node, name: &str, running_proxy: bool) {
    let path = join("servers", name);
    let map = match &node.value {
        Value::Seq(_) => {
            checker.hosts(node, &path);
            return;
        }
        Value::Map(map) => map,
        _ => {
            checker.type_error(node, &path, "an array or a hash");
            return;
        }
    };
    reserved_labels(checker, map, &path);
    checker.keys(map, shape::ROLE, &path, false);
    restart_policy(checker, map, &path);
    if let Some(env) = map.get("env").and_then(Node::as_map) {
        env::check(checker, env, &join(&path, "env"), false);
    }
    if let Some(logging) = map.get("logging")
        && let Some(options) = logging.as_map()
    {
        checker.keys(options, shape::LOGGING, &join(&path, "logging"), false);
    }
    if let Some(proxy) = map.get("proxy").filter(|_| running_proxy)
        && let Some(settings) = proxy.as_map()
    {
        proxy::check(checker, settings, &join(&path, "proxy"));
    }
}

/// Labels by which Kamal finds its containers cannot be set.
fn reserved_labels(checker: &mut Checker<'_>, map: &Map, path: &str) {
    let Some(labels) = map.get("labels").and_then(Node::as_map) else {
        return;
    };
    for (key, _) in labels.iter() {
        if let Some(name) = key.as_str().filter(|name| RESERVED_LABELS.contains(name)) {
            let path = join(&join(path, "labels"), name);
            checker
                .report(
                    key.place,
                    &path,
                    "invalid label. destination, role, and service are reserved labels",
                )
                .hint = Some("containers are found by it; choose another name".to_owned());
        }
    }
}

/// `options.restart` must be text that Docker knows.
fn restart_policy(checker: &mut Checker<'_>, map: &Map, path: &str) {
    let Some(options) = map.get("options").and_then(Node::as_map) else {
        return;
    };
    let Some((_, policy)) = options.iter().find(|(key, _)| key.to_s() == "restart") else {
        return;
    };
    let path = join(path, "options/restart");
    let Some(text) = policy.as_str() else {
        checker.report(
            policy.place,
            &path,
            "should be a string. Use \"no\" to disable restarts",
        );
        return;
    };
    let fits = matches!(text, "no" | "always" | "unless-stopped" | "on-failure")
        || text
            .strip_prefix("on-failure:")
            .is_some_and(|count| !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()));
    if !fits {
        let near = did_you_mean(text.trim(), ["no", "always", "unless-stopped", "on-failure"]);
        checker
            .report(
                policy.place,
                &path,
                "should be no, always, unless-stopped, on-failure, or on-failure:N",
            )
            .hint = near.map(|near| format!("did you mean `{near}`?"));
    }
}

/// Server text, and credentials unless the registry is local. `owner` is the map that has (or lacks) `registry`.
fn registry(checker: &mut Checker<'_>, owner: &Map, path: &str) {
    let empty = Map::default();
    let (map, place) = match owner.get("registry") {
        Some(node) => match node.as_map() {
            Some(map) => (
                map,
                owner.key_node("registry").map_or(node.place, |key| key.place),
            ),
            None => return,
        },
        None => (&empty, Place::default()),
    };
    let known = shape::REGISTRY_KEYS;
    checker.unknown_keys(map, known, path, false);
    for (key, shape) in shape::REGISTRY {
        if let Some(value) = map.get(key) {
            checker.shape(value, *shape, &join(path, key));
        }
    }
    if let Some(server) = map.get("server").filter(|server| server.is_truthy()) {
        // Kamal asks a number or `true` whether it matches, and crashes.
        if server.is_stringish() && !matches!(server.value, Value::Str(_) | Value::Symbol(_)) {
            checker.type_error(server, &join(path, "server"), "a string");
        }
        if is_local_registry(&server.to_s()) {
            return;
        }
    }
    for key in ["username", "password"] {
        let path = join(path, key);
        let value = map.get(key);
        match value.filter(|value| value.is_present()) {
            None => {
                checker
                    .report(value.map_or(place, |value| value.place), &path, "is required")
                    .hint = Some(format!(
                    "give the {key}, or a secret's name in a list: `{key}: [KAMAL_REGISTRY_{}]`",
                    key.to_uppercase()
                ));
            }
            Some(value) => {
                let fits = match &value.value {
                    Value::Str(_) => true,
                    Value::Seq(items) => items.len() == 1 && items[0].as_str().is_some(),
                    _ => false,
                };
                if !fits {
                    checker
                        .report(
                            value.place,
                            &path,
                            "should be a string or an array with one string (for secret lookup)",
                        )
                        .hint = matches!(value.value, Value::Int(_) | Value::Float(_) | Value::Bool(_))
                        .then(|| "put it in quotes".to_owned());
                }
            }
        }
    }
}

/// Kamal's test for a registry on the developer's machine: `localhost:` (its pattern also lets `localhost$` pass).
pub(crate) fn is_local_registry(server: &str) -> bool {
    server
        .lines()
        .any(|line| line.starts_with("localhost:") || line.starts_with("localhost$"))
}

fn check_accessory(checker: &mut Checker<'_>, raw: &Raw<'_>, name: &Node, node: &Node) {
    let path = join("accessories", &name.to_s());
    let Some(map) = node.as_map() else {
        return checker.type_error(node, &path, "a hash");
    };
    checker.keys(map, shape::ACCESSORY, &path, false);
    if PLACEMENTS.iter().filter(|key| map.get(key).is_some()).count() != 1 {
        checker
            .report(
                name.place,
                &path,
                "specify one of `host`, `hosts`, `role`, `roles`, `tag` or `tags`",
            )
            .hint = Some("exactly one of them says where the accessory runs".to_owned());
    }
    reserved_labels(checker, map, &path);
    restart_policy(checker, map, &path);
    accessory_roles(checker, raw, map, &path);
    if raw.accessory_hosts(map).is_none() && (map.get("tag").is_some() || map.get("tags").is_some()) {
        checker
            .report(
                name.place,
                &path,
                "tags select hosts only where `servers` has roles",
            )
            .hint = Some("name the hosts with `hosts:`, or write `servers: {web: [...]}`".to_owned());
    }
    if let Some(env) = map.get("env").and_then(Node::as_map) {
        env::check(checker, env, &join(&path, "env"), false);
    }
    if let Some(proxy) = map.get("proxy").filter(|proxy| proxy.is_present()) {
        let path = join(&path, "proxy");
        match proxy.as_map() {
            Some(settings) => proxy::check(checker, settings, &path),
            None if proxy.as_bool().is_some() => checker.type_error(proxy, &path, "a hash"),
            // Other types were reported with the accessory's keys.
            None => {}
        }
    }
    if map.get("registry").is_some_and(Node::is_present) {
        registry(checker, map, &join(&path, "registry"));
    }
}

/// The roles an accessory names must exist.
fn accessory_roles(checker: &mut Checker<'_>, raw: &Raw<'_>, map: &Map, path: &str) {
    let roles = raw.roles();
    let known: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
    let hint = |missing: &str| {
        Some(match did_you_mean(missing, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => {
                "no roles are defined (in this file, for this destination)".to_owned()
            }
            None => format!("roles here: {}", known.join(", ")),
        })
    };
    if let Some(named) = map.get("roles") {
        let missing: Vec<&Node> = named
            .as_seq()
            .unwrap_or_default()
            .iter()
            .filter(|role| !role.as_str().is_some_and(|role| known.contains(&role)))
            .collect();
        if let Some(first) = missing.first() {
            let names: Vec<String> = missing.iter().map(|role| role.to_s()).collect();
            checker
                .report(first.place, path, format!("unknown roles {}", names.join(", ")))
                .hint = hint(&names[0]);
        }
    } else if let Some(role) = map.get("role").filter(|role| role.is_truthy())
        && role.is_stringish()
        && !known.contains(&role.to_s().as_str())
    {
        let name = role.to_s();
        checker
            .report(role.place, path, format!("unknown role {name}"))
            .hint = hint(&name);
    }
}

fn aliases(checker: &mut Checker<'_>, raw: &Raw<'_>) {
    let Some(aliases) = raw.section("aliases") else {
        return;
    };
    for (key, value) in aliases.iter() {
        let name = key.to_s();
        let path = key_path("aliases", key);
        if !value.is_stringish() {
            checker.type_error(value, &path, "a string");
        }
        let fits = !name.is_empty()
            && name.bytes().all(|byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
            });
        if !fits {
            checker.report(
                key.place,
                &path,
                format!(
                    "Invalid alias name: '{name}'. Must only contain lowercase letters, alphanumeric, hyphens and underscores."
                ),
            );
        } else if COMMANDS.contains(&name.as_str()) {
            checker.report(
                key.place,
                &path,
                format!("Alias '{name}' conflicts with a built-in command."),
            );
        }
    }
    names_are_text(checker, Some(aliases), "aliases", "an alias");
}

fn builder(checker: &mut Checker<'_>, raw: &Raw<'_>) {
    let empty = Map::default();
    let (map, place) = match raw.get("builder") {
        Some(node) => match node.as_map() {
            Some(map) => (map, node.place),
            None => return,
        },
        None => (&empty, Place::default()),
    };
    checker.keys(map, shape::BUILDER, "builder", false);
    let place = raw.root().key_node("builder").map_or(place, |key| key.place);
    if let Some(kind) = map
        .get("cache")
        .and_then(|cache| cache.get("type"))
        .filter(|kind| kind.is_truthy())
        && !matches!(kind.as_str(), Some("gha" | "registry"))
    {
        checker
            .report(
                kind.place,
                "builder",
                format!("Invalid cache type: {}", kind.to_s()),
            )
            .hint = Some("caches are `gha` or `registry`".to_owned());
    }
    if !map.get("arch").is_some_and(Node::is_present) {
        checker.report(place, "builder", "Builder arch not set").hint =
            Some("add `arch: amd64` (or arm64) under `builder:`".to_owned());
    }
    let arches = map.get("arch").and_then(Node::as_seq).map_or(1, <[Node]>::len);
    if let Some(pack) = map.get("pack").filter(|pack| pack.is_truthy())
        && arches > 1
    {
        checker.report(
            pack.place,
            "builder",
            "buildpacks only support building for one arch",
        );
    }
    if let Some(local) = map.get("local")
        && local.as_bool() == Some(false)
        && !map.get("remote").is_some_and(Node::is_present)
    {
        checker
            .report(
                local.place,
                "builder",
                "Cannot disable local builds, no remote is set",
            )
            .hint = Some("add `remote: ssh://user@host`, or remove `local: false`".to_owned());
    }
}
