//! What Kamal accepts in silence although it cannot work: warnings that come from the file's form.

use crate::problem::{Problem, did_you_mean};
use crate::source::Sources;
use crate::validate::raw::Raw;
use crate::yaml::tree::{Map, Node, Value};

/// Finds them.
pub(crate) fn find(root: &Map, sources: &Sources) -> Vec<Problem> {
    let mut found = Vec::new();
    let raw = Raw::new(root);
    dropped_hosts(&raw, sources, &mut found);
    for (name, accessory) in raw.accessories() {
        mounts(&name.to_s(), accessory, sources, &mut found);
    }
    unknown_tags(&raw, sources, &mut found);
    misspelt_extension(root, sources, &mut found);
    found
}

fn warn(
    sources: &Sources,
    node: &Node,
    path: &str,
    name: &str,
    message: String,
    hint: &str,
    found: &mut Vec<Problem>,
) {
    let mut problem = sources.problem(node.place, path, message).with_hint(hint);
    problem.name = Some(name.to_owned());
    found.push(problem);
}

/// Hosts that are not text are dropped by Kamal.
fn dropped_hosts(raw: &Raw<'_>, sources: &Sources, found: &mut Vec<Problem>) {
    for (path, item) in host_items(raw) {
        if !matches!(item.value, Value::Str(_) | Value::Map(_)) {
            let written = item.raw.clone().unwrap_or_else(|| item.to_s());
            warn(
                sources,
                item,
                &path,
                "dropped-host",
                format!("the host {written} is ignored: YAML reads it as a number, not as text"),
                "put it in quotes",
                found,
            );
        }
    }
}

/// Every item of every list of hosts under `servers`, with its path.
fn host_items<'a>(raw: &Raw<'a>) -> Vec<(String, &'a Node)> {
    fn list<'a>(path: &str, node: &'a Node) -> Vec<(String, &'a Node)> {
        let items = node.as_seq().unwrap_or_default().iter().enumerate();
        items
            .map(|(index, item)| (format!("{path}/{index}"), item))
            .collect()
    }
    let Some(servers) = raw.get("servers") else {
        return Vec::new();
    };
    let Some(map) = servers.as_map() else {
        return list("servers", servers);
    };
    map.iter()
        .flat_map(|(name, role)| {
            let path = format!("servers/{}", name.to_s());
            match role.get("hosts") {
                Some(hosts) => list(&format!("{path}/hosts"), hosts),
                None => list(&path, role),
            }
        })
        .collect()
}

/// Files and directories need both ends; Kamal accepts one and fails when it mounts.
fn mounts(name: &str, accessory: &Node, sources: &Sources, found: &mut Vec<Problem>) {
    for key in ["files", "directories"] {
        let items = accessory.get(key).and_then(Node::as_seq).unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            let complete = match &item.value {
                Value::Str(text) => text
                    .split_once(':')
                    .is_some_and(|(local, remote)| !local.is_empty() && !remote.is_empty()),
                Value::Map(pair) => pair.get("local").is_some() && pair.get("remote").is_some(),
                _ => false,
            };
            if let Some(mode) = item.get("mode").filter(|mode| is_octal(mode)) {
                let written = mode.raw.clone().unwrap_or_default();
                warn(
                    sources,
                    mode,
                    &format!("accessories/{name}/{key}/{index}/mode"),
                    "octal-mode",
                    format!(
                        "the mode {written} without quotes is read as the number {}",
                        mode.to_s()
                    ),
                    &format!("put it in quotes: mode: \"{written}\""),
                    found,
                );
            }
            if !complete {
                warn(
                    sources,
                    item,
                    &format!("accessories/{name}/{key}/{index}"),
                    "incomplete-mount",
                    format!("this entry of {key} does not name both ends and cannot be mounted"),
                    "write local:remote; `local` is the path here, `remote` the path in the container",
                    found,
                );
            }
        }
    }
}

/// A number that YAML 1.1 counted in another base because of its leading zero.
fn is_octal(node: &Node) -> bool {
    matches!(node.value, Value::Int(_))
        && node
            .raw
            .as_deref()
            .is_some_and(|raw| raw.starts_with('0') && raw != node.to_s())
}

/// Kamal takes no notice of root keys that start with `x-`, and so would we of ours with a slip in it.
fn misspelt_extension(root: &Map, sources: &Sources, found: &mut Vec<Problem>) {
    for (key, _) in root.iter() {
        let name = key.to_s();
        let is_slip = name.starts_with("x-")
            && name != crate::extension::KEY
            && did_you_mean(&name, [crate::extension::KEY]).is_some();
        if is_slip {
            warn(
                sources,
                key,
                &name,
                "misspelt-extension",
                format!("{name} does nothing"),
                "did you mean x-appliance?",
                found,
            );
        }
    }
}

/// Tags that `env.tags` does not define do nothing.
fn unknown_tags(raw: &Raw<'_>, sources: &Sources, found: &mut Vec<Problem>) {
    let defined = raw
        .section("env")
        .and_then(|env| env.get("tags"))
        .and_then(Node::as_map);
    let known = |tag: &str| defined.is_some_and(|tags| tags.iter().any(|(name, _)| name.to_s() == tag));
    let used_by_accessories: Vec<String> = raw
        .accessories()
        .iter()
        .flat_map(|(_, accessory)| {
            let one = accessory.get("tag").map(Node::to_s);
            let many = accessory.get("tags").and_then(Node::as_seq).unwrap_or_default();
            one.into_iter()
                .chain(many.iter().map(Node::to_s))
                .collect::<Vec<_>>()
        })
        .collect();
    for (path, item) in host_items(raw) {
        let Some((_, tags)) = item.as_map().and_then(|map| map.iter().next()) else {
            continue;
        };
        let tags = match &tags.value {
            Value::Seq(tags) => tags.iter().collect(),
            Value::Null => Vec::new(),
            _ => vec![tags],
        };
        for tag in tags {
            let name = tag.to_s();
            if !known(&name) && !used_by_accessories.contains(&name) {
                warn(
                    sources,
                    tag,
                    &path,
                    "unknown-tag",
                    format!("the tag {name} is not defined, so it changes nothing"),
                    "define it under `env: tags:`, or remove it",
                    found,
                );
            }
        }
    }
}
