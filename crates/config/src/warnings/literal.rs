//! Secrets that stand in the file itself; what ERB put there does not.

use super::Finder;
use crate::yaml::tree::{Map, Node, Value};

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

/// Finds them.
pub(super) fn find(finder: &mut Finder<'_>) {
    let mut paths: Vec<Vec<String>> = Vec::new();
    collect(finder.root, &mut Vec::new(), &mut paths);
    for path in paths {
        let parts: Vec<&str> = path.iter().map(String::as_str).collect();
        let Some(node) = finder.root.dig(&parts) else {
            continue;
        };
        let written = match &node.value {
            Value::Str(text) => text.clone(),
            Value::Int(_) | Value::BigInt(_) | Value::Float(_) => node.to_s(),
            _ => continue,
        };
        let name = parts.last().copied().unwrap_or_default();
        let upper = name.to_ascii_uppercase();
        let is_named = upper == "PASSWORD" && parts.first() == Some(&"registry")
            || SECRET_NAMES.iter().any(|end| upper.ends_with(end));
        let is_value = is_named && !written.is_empty() && !written.starts_with(['/', '$']);
        let in_address = holds_password(&written);
        let from_erb = finder
            .sources
            .line(node.place)
            .is_some_and(|line| line.contains("<%"));
        if !(is_value || in_address) || from_erb {
            continue;
        }
        let shown = path.join("/");
        let what = if in_address {
            "a password in an address"
        } else {
            "a secret"
        };
        let message = format!("{shown}: {what} stands in the file, for everyone who can read the repository");
        let fix = match parts.as_slice() {
            ["registry", ..] => format!(
                "give the name of a secret instead: {name}: [KAMAL_REGISTRY_PASSWORD], and the value in .kamal/secrets"
            ),
            ["builder", ..] => {
                format!(
                    "an image keeps its build arguments; list {name} under builder/secrets, and the value in .kamal/secrets"
                )
            }
            _ => {
                let env = parts.iter().rposition(|part| *part == "env").unwrap_or(0);
                let is_tag = parts.get(env + 1) == Some(&"tags");
                let section = parts[..=env + if is_tag { 2 } else { 0 }].join("/");
                let from = match parts[parts.len() - 2] {
                    "clear" => format!("{section}/clear"),
                    _ => section.clone(),
                };
                format!("move {name} from {from} to {section}/secret, and the value to .kamal/secrets")
            }
        };
        finder.warn("literal-secret", &parts, message, fix);
    }
}

/// Whether a text is an address with a password in it, such as `postgres://app:hush@db/app`.
fn holds_password(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else {
        return false;
    };
    let is_scheme = scheme.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && scheme
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "+-.".contains(letter));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let password = authority
        .rsplit_once('@')
        .and_then(|(user, _)| user.split_once(':'))
        .map(|(_, password)| password);
    // `$NAME` and `${NAME}` are filled in where the app runs.
    is_scheme && password.is_some_and(|password| !password.is_empty() && !password.starts_with('$'))
}

/// Paths of the settings that are plain text: `env` with its tags everywhere, the registry's password, what is given to
/// a build.
fn collect(node: &Node, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let Some(map) = node.as_map() else { return };
    for (key, value) in map.iter() {
        let name = key.to_s();
        if path.is_empty() && name.starts_with("x-") || path.len() > 6 {
            continue;
        }
        path.push(name.clone());
        match (name.as_str(), &value.value) {
            ("env", Value::Map(env)) => collect_env(env, path, found),
            ("args", Value::Map(args)) if path[0] == "builder" => all(args, path, found),
            ("password", Value::Str(_) | Value::Int(_)) if path.iter().any(|part| part == "registry") => {
                found.push(path.clone());
            }
            (_, Value::Map(_)) => collect(value, path, found),
            _ => {}
        }
        path.pop();
    }
}

fn collect_env(env: &Map, path: &[String], found: &mut Vec<Vec<String>>) {
    for (key, value) in env.iter() {
        let name = key.to_s();
        let path = [path, std::slice::from_ref(&name)].concat();
        match (name.as_str(), &value.value) {
            ("clear", Value::Map(clear)) => all(clear, &path, found),
            ("tags", Value::Map(tags)) => {
                for (tag, value) in tags.iter() {
                    if let Some(env) = value.as_map() {
                        collect_env(env, &[path.as_slice(), &[tag.to_s()]].concat(), found);
                    }
                }
            }
            ("secret" | "tags" | "clear", _) => {}
            _ => found.push(path),
        }
    }
}

fn all(map: &Map, path: &[String], found: &mut Vec<Vec<String>>) {
    found.extend(map.iter().map(|(key, _)| [path, &[key.to_s()]].concat()));
}
