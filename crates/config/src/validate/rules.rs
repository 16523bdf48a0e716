//! Checks that look at the whole configuration, after every section is checked, in Kamal's order.

use std::cmp::Ordering;

use super::proxy::{self, has_own_certificate, proxy_hosts};
use super::raw::{Raw, RawRole, merged};
use super::sections::is_local_registry;
use super::version;
use super::{Checker, Surroundings};
use crate::yaml::tree::{Map, Node, Place};

/// Checks the whole.
pub(super) fn check(checker: &mut Checker<'_>, root: Place, raw: &Raw<'_>, surroundings: &Surroundings<'_>) {
    let context = Context {
        root,
        raw,
        surroundings,
    };
    context.destination(checker);
    context.required(checker);
    context.minimum_version(checker);
    context.retain(checker);
    context.service_name(checker);
    context.traefik_hooks(checker);
    context.one_host_for_ssl(checker);
    context.unique_ssl_hosts(checker);
    context.local_registry_builder(checker);
    context.proxy_runs(checker);
    context.hooks_output(checker);
}

struct Context<'a> {
    root: Place,
    raw: &'a Raw<'a>,
    surroundings: &'a Surroundings<'a>,
}

impl Context<'_> {
    /// Where a key stands, or the start of the file.
    fn place(&self, key: &str) -> Place {
        self.raw.root().key_node(key).map_or(self.root, |key| key.place)
    }

    fn destination(&self, checker: &mut Checker<'_>) {
        if self.raw.get("require_destination").is_some_and(Node::is_truthy)
            && self.surroundings.destination.is_none()
        {
            checker
                .report(
                    self.place("require_destination"),
                    "",
                    "You must specify a destination",
                )
                .hint = Some("add `-d DESTINATION`".to_owned());
        }
    }

    fn required(&self, checker: &mut Checker<'_>) {
        let missing = |key: &str| !self.raw.get(key).is_some_and(Node::is_present);
        let mut required = |key: &str| {
            checker
                .report(
                    self.place(key),
                    "",
                    format!("Missing required configuration for {key}"),
                )
                .hint = Some(format!("add `{key}:` to the file"));
        };
        for key in ["service", "registry"] {
            if missing(key) {
                required(key);
            }
        }
        let is_named_after_service = self.has_local_registry() && !missing("service");
        if missing("image") && !is_named_after_service {
            required("image");
        }
        if self.raw.get("servers").is_none() {
            if !self.raw.get("accessories").is_some_and(Node::is_present) {
                checker
                    .report(self.root, "", "No servers or accessories specified")
                    .hint = Some(
                    "add `servers:` with at least one host; if a destination file has them, give `-d`"
                        .to_owned(),
                );
            }
            return;
        }
        // What is no list of servers was told as that.
        let is_readable = |node: &Node| node.as_map().is_some() || node.as_seq().is_some();
        if !self.raw.get("servers").is_some_and(is_readable) {
            return;
        }
        let name = self.raw.primary_role_name();
        let roles = self.raw.roles();
        let Some(primary) = roles.iter().find(|role| role.name == name) else {
            let place = match self.raw.get("primary_role") {
                Some(node) => node.place,
                None => self.place("servers"),
            };
            let known: Vec<&str> = roles.iter().map(|role| role.name.as_str()).collect();
            checker
                .report(place, "", format!("The primary_role {name} isn't defined"))
                .hint = Some(match known.as_slice() {
                [] => format!(
                    "list at least one host under `servers: {name}:`; if a destination file has them, give `-d`"
                ),
                _ => format!(
                    "roles here: {}; `primary_role:` names the one to deploy first",
                    known.join(", ")
                ),
            });
            return;
        };
        let is_told = self
            .raw
            .section("servers")
            .and_then(|servers| servers.get(&name))
            .is_some_and(|role| !is_readable(role));
        if primary.hosts().is_empty() && !is_told {
            let dropped = self.has_dropped_hosts(primary);
            checker
                .report(
                    self.role_place(&name),
                    "",
                    format!("No servers specified for the {name} primary_role"),
                )
                .hint = Some(if dropped {
                "a host that YAML reads as a number does not count; put it in quotes".to_owned()
            } else {
                format!(
                    "list at least one host under `servers: {name}:`; if a destination file has them, give `-d`"
                )
            });
        }
        if self.raw.get("allow_empty_roles").is_some_and(Node::is_truthy) {
            return;
        }
        for role in roles
            .iter()
            .filter(|role| role.name != name && role.hosts().is_empty())
        {
            checker.report(
                self.role_place(&role.name),
                "",
                format!(
                    "No servers specified for the {} role. You can ignore this with allow_empty_roles: true",
                    role.name
                ),
            );
        }
    }

    fn role_place(&self, name: &str) -> Place {
        self.raw
            .section("servers")
            .and_then(|servers| servers.key_node(name))
            .map_or_else(|| self.place("servers"), |key| key.place)
    }

    fn has_dropped_hosts(&self, role: &RawRole<'_>) -> bool {
        let servers = self.raw.get("servers");
        let items = servers
            .and_then(Node::as_seq)
            .or_else(|| servers?.get(&role.name)?.as_seq())
            .or_else(|| role.get("hosts")?.as_seq());
        items.is_some_and(|items| !items.is_empty())
    }

    fn has_local_registry(&self) -> bool {
        self.raw
            .section("registry")
            .and_then(|registry| registry.get("server"))
            .is_some_and(|server| is_local_registry(&server.to_s()))
    }

    fn minimum_version(&self, checker: &mut Checker<'_>) {
        let Some(minimum) = self
            .raw
            .get("minimum_version")
            .filter(|minimum| minimum.is_truthy())
        else {
            return;
        };
        if !minimum.is_stringish() {
            return;
        }
        let text = minimum.to_s();
        match version::compare(&text, version::KAMAL) {
            None => {
                checker.report(
                    minimum.place,
                    "",
                    format!("Malformed version number string {text}"),
                );
            }
            Some(Ordering::Greater) => {
                checker
                    .report(
                        minimum.place,
                        "",
                        format!(
                            "Current version is {}, minimum required is {text}",
                            version::KAMAL
                        ),
                    )
                    .hint = Some("the file asks for features newer than those understood here".to_owned());
            }
            Some(_) => {}
        }
    }

    fn retain(&self, checker: &mut Checker<'_>) {
        if let Some(node) = self.raw.get("retain_containers")
            && node.as_int().is_some_and(|retain| retain < 1)
        {
            checker.report(node.place, "", "Must retain at least 1 container");
        }
    }

    /// Unlike Kamal, whose pattern looks at one line of it, a name with a line break is refused too.
    fn service_name(&self, checker: &mut Checker<'_>) {
        let Some(service) = self.raw.get("service").filter(|service| service.is_present()) else {
            return;
        };
        match &service.value {
            crate::yaml::tree::Value::Str(name) | crate::yaml::tree::Value::Symbol(name) => {
                let fits = name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
                if !fits {
                    checker.report(
                        service.place,
                        "",
                        "Service name can only include alphanumeric characters, hyphens, and underscores",
                    );
                }
            }
            _ if service.is_stringish() => {
                checker
                    .report(service.place, "service", "should be a string")
                    .hint = Some("YAML reads this as a number or boolean; put it in quotes".to_owned());
            }
            // Reported with the root's keys.
            _ => {}
        }
    }

    fn traefik_hooks(&self, checker: &mut Checker<'_>) {
        if let Some(path) = self.raw.get("hooks_path")
            && path.is_truthy()
            && path.is_stringish()
            && path.as_str().is_none()
        {
            // Kamal crashes when it makes a path of it.
            checker.type_error(path, "hooks_path", "a string");
            return;
        }
        let hooks = self
            .raw
            .text("hooks_path")
            .unwrap_or_else(|| ".kamal/hooks".to_owned());
        let directory = self.surroundings.directory.join(&hooks);
        let found: Vec<&str> = ["pre-traefik-reboot", "post-traefik-reboot"]
            .into_iter()
            .filter(|name| directory.join(name).exists())
            .collect();
        if !found.is_empty() {
            checker
                .report(
                    self.place("hooks_path"),
                    "",
                    format!(
                        "Found {}, these should be renamed to (pre|post)-proxy-reboot",
                        found.join(", ")
                    ),
                )
                .hint = Some(format!("they are in {hooks}"));
        }
    }

    /// Roles behind the proxy, with the root's settings merged in.
    fn proxied(&self) -> Vec<(RawRole<'_>, Map)> {
        let primary = self.raw.primary_role_name();
        self.raw
            .roles()
            .into_iter()
            .filter(|role| role.running_proxy(role.name == primary))
            .map(|role| {
                let settings = merged(
                    self.raw.section("proxy"),
                    role.get("proxy").and_then(Node::as_map),
                );
                (role, settings)
            })
            .collect()
    }

    fn one_host_for_ssl(&self, checker: &mut Checker<'_>) {
        for (role, settings) in self.proxied() {
            let before = checker.problems.len();
            proxy::rules(checker, &settings, "proxy");
            // What the root or the role alone already showed is not said twice.
            let known: Vec<(Place2, String)> = checker.problems[..before]
                .iter()
                .map(|problem| ((problem.line, problem.column), text_of(&problem.message)))
                .collect();
            let mut index = before;
            while index < checker.problems.len() {
                let problem = &checker.problems[index];
                let this = ((problem.line, problem.column), text_of(&problem.message));
                if known.contains(&this) {
                    checker.problems.remove(index);
                } else {
                    index += 1;
                }
            }
            let count = role.hosts().len();
            let ssl = settings.get("ssl").filter(|ssl| ssl.is_truthy());
            if let Some(ssl) = ssl.filter(|ssl| count > 1 && !has_own_certificate(ssl)) {
                checker
                    .report(
                        ssl.place,
                        "",
                        format!(
                            "SSL is only supported on a single server unless you provide custom certificates, found {count} servers for role {}",
                            role.name
                        ),
                    )
                    .hint = Some("give `ssl: {certificate_pem: SECRET, private_key_pem: SECRET}`, or end TLS at a load balancer".to_owned());
            }
        }
    }

    fn unique_ssl_hosts(&self, checker: &mut Checker<'_>) {
        let mut seen: Vec<String> = Vec::new();
        let mut twice: Vec<String> = Vec::new();
        let mut place = self.place("proxy");
        for (_, settings) in self.proxied() {
            if !settings.get("ssl").is_some_and(Node::is_truthy) {
                continue;
            }
            if let Some(host) = settings.get("host").filter(|host| host.is_stringish())
                && host.as_str().is_none()
            {
                // Kamal crashes when it splits it at commas.
                checker.type_error(host, "proxy/host", "a string");
                continue;
            }
            for host in proxy_hosts(&settings) {
                if !seen.contains(&host) {
                    seen.push(host);
                } else if !twice.contains(&host) {
                    if let Some(node) = settings.get("host").or_else(|| settings.get("hosts")) {
                        place = node.place;
                    }
                    twice.push(host);
                }
            }
        }
        if !twice.is_empty() {
            // Kamal names them in the order of their first appearance.
            let names: Vec<String> = seen.into_iter().filter(|host| twice.contains(host)).collect();
            checker.report(
                place,
                "",
                format!(
                    "Different roles can't share the same host for SSL: {}",
                    names.join(", ")
                ),
            );
        }
    }

    fn local_registry_builder(&self, checker: &mut Checker<'_>) {
        let Some(builder) = self.raw.section("builder").filter(|_| self.has_local_registry()) else {
            return;
        };
        let Some(remote) = builder.get("remote").filter(|remote| remote.is_truthy()) else {
            return;
        };
        let arches = crate::resolve::builder::arches(builder);
        let local = crate::resolve::builder::local_arches(builder, &arches, self.surroundings.local_arch);
        let builds_remotely = arches.iter().any(|arch| !local.contains(arch));
        let scheme = remote
            .to_s()
            .split_once(':')
            .map(|(scheme, _)| scheme.to_ascii_lowercase());
        if builds_remotely && scheme.as_deref() != Some("ssh") {
            checker.report(
                remote.place,
                "",
                "Local registry with remote builder requires an SSH URL (e.g., ssh://user@host)",
            );
        }
    }

    fn proxy_runs(&self, checker: &mut Checker<'_>) {
        let mut runs: Vec<(Vec<String>, Node)> = Vec::new();
        for (role, settings) in self.proxied() {
            if let Some(run) = settings.get("run").filter(|run| run.is_present()) {
                let hosts = role.hosts().into_iter().map(|tagged| tagged.host).collect();
                runs.push((hosts, run.clone()));
            }
        }
        for (_, accessory) in self.raw.accessories() {
            let run = accessory.dig(&["proxy", "run"]).filter(|run| run.is_present());
            if let (Some(run), Some(map)) = (run, accessory.as_map()) {
                runs.push((self.raw.accessory_hosts(map).unwrap_or_default(), run.clone()));
            }
        }
        let mut hosts: Vec<&String> = runs.iter().flat_map(|(hosts, _)| hosts).collect();
        hosts.sort();
        hosts.dedup();
        for host in self.all_hosts().iter().filter(|host| hosts.contains(host)) {
            let mut here = runs
                .iter()
                .filter(|(hosts, _)| hosts.contains(host))
                .map(|(_, run)| run);
            let first = here.next().map(Node::to_json);
            if let Some(other) = here.find(|run| Some(run.to_json()) != first) {
                checker
                    .report(
                        other.place,
                        "",
                        format!("Conflicting proxy run configurations for host {host}"),
                    )
                    .hint = Some(
                    "one proxy serves all roles and accessories of a host; give them the same `run:`"
                        .to_owned(),
                );
                // Kamal names the first host; the others have the same cause.
                return;
            }
        }
    }

    /// Hosts of roles, then of accessories.
    fn all_hosts(&self) -> Vec<String> {
        let of_roles = self.raw.roles().into_iter().flat_map(|role| {
            role.hosts()
                .into_iter()
                .map(|tagged| tagged.host)
                .collect::<Vec<_>>()
        });
        let of_accessories = self
            .raw
            .accessories()
            .into_iter()
            .filter_map(|(_, accessory)| self.raw.accessory_hosts(accessory.as_map()?))
            .flatten();
        of_roles.chain(of_accessories).collect()
    }

    fn hooks_output(&self, checker: &mut Checker<'_>) {
        use crate::yaml::tree::Value;
        let Some(node) = self.raw.get("hooks_output") else {
            return;
        };
        let known = |level: &Node| {
            matches!(level.to_s().as_str(), "quiet" | "verbose")
                || !matches!(level.value, Value::Str(_) | Value::Symbol(_))
        };
        match &node.value {
            Value::Map(map) => {
                for (hook, level) in map.iter().filter(|(_, level)| !known(level)) {
                    checker.report(
                        level.place,
                        "",
                        format!(
                            "Invalid hooks_output '{}' for hook '{}', must be one of: quiet, verbose",
                            level.to_s(),
                            hook.to_s()
                        ),
                    );
                }
            }
            _ if !known(node) => {
                checker.report(
                    node.place,
                    "",
                    format!(
                        "Invalid hooks_output '{}', must be one of: quiet, verbose",
                        node.to_s()
                    ),
                );
            }
            _ => {}
        }
    }
}

type Place2 = (Option<usize>, Option<usize>);

/// A message without the path before it.
fn text_of(message: &str) -> String {
    message
        .rsplit_once(": ")
        .map_or(message, |(_, text)| text)
        .to_owned()
}
