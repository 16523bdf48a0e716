//! `appliance docs`: every key of the configuration: types from the schema that also checks it, and our own words.

mod keys;

use std::fmt::Write as _;

use appliance_config::schema;
use serde_json::Value;

use crate::failure::{Kind, failure};
use crate::ui;

/// Print what the configuration's keys mean
#[derive(Debug, clap::Args)]
pub struct DocsArgs {
    /// A section, such as proxy or builder (default: all keys of the first level)
    section: Option<String>,
}

/// Kamal's names of sections that are called otherwise in the file.
const NAMES: &[(&str, &str)] = &[
    ("configuration", ""),
    ("accessory", "accessories"),
    ("alias", "aliases"),
    ("role", "servers"),
    ("custom", "x-appliance"),
];

/// Prints a section.
///
/// # Errors
/// When there is no such section, with those that are there.
pub fn run(args: &DocsArgs) -> anyhow::Result<()> {
    let schema = schema::deploy();
    let wanted = args.section.as_deref().unwrap_or_default();
    let name = NAMES
        .iter()
        .find(|(kamal, _)| *kamal == wanted)
        .map_or(wanted, |(_, ours)| ours);
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        anyhow::bail!("the schema has no properties");
    };
    let mut text = String::new();
    if name.is_empty() {
        for (key, value) in properties {
            describe(&schema, key, value, 0, &mut text);
        }
        let _infallible = writeln!(text, "\nappliance docs SECTION tells more of one key");
    } else {
        let Some(value) = properties.get(name) else {
            let names: Vec<&str> = properties.keys().map(String::as_str).collect();
            return Err(failure(
                Kind::Config,
                format!("there is no section {wanted}; there are {}", names.join(", ")),
            )
            .into());
        };
        describe(&schema, name, value, 4, &mut text);
    }
    ui::raw(text.as_bytes());
    Ok(())
}

/// Follows `$ref` into the schema's definitions.
fn resolve<'a>(schema: &'a Value, value: &'a Value) -> &'a Value {
    let mut value = value;
    for _ in 0..16 {
        let Some(target) = value.get("$ref").and_then(Value::as_str) else {
            break;
        };
        let Some(found) = target
            .strip_prefix('#')
            .and_then(|pointer| schema.pointer(pointer))
        else {
            break;
        };
        value = found;
    }
    value
}

/// The forms a value may take, itself included.
fn forms<'a>(schema: &'a Value, value: &'a Value) -> Vec<&'a Value> {
    let value = resolve(schema, value);
    let mut found = vec![value];
    for list in ["anyOf", "oneOf", "allOf"] {
        for form in value.get(list).and_then(Value::as_array).into_iter().flatten() {
            found.extend(forms(schema, form));
        }
    }
    found
}

fn describe(schema: &Value, path: &str, value: &Value, levels: usize, text: &mut String) {
    let depth = path.matches('/').count();
    let key = path.rsplit('/').next().unwrap_or(path);
    let all = forms(schema, value);
    let mut kinds: Vec<&str> = Vec::new();
    for form in &all {
        let kind = form.get("type");
        let named = kind.and_then(Value::as_str).into_iter();
        let listed = kind
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        for kind in named.chain(listed) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
    }
    let indent = "  ".repeat(depth);
    let kinds = if kinds.is_empty() {
        String::new()
    } else {
        format!("  ({})", kinds.join(" or "))
    };
    let _infallible = writeln!(text, "{indent}{key}:{kinds}");
    let ours = keys::text(path);
    let said = ours.or_else(|| {
        let mut forms = [value].into_iter().chain(all.iter().copied());
        forms.find_map(|form| form.get("description").and_then(Value::as_str))
    });
    for line in said.unwrap_or_default().lines() {
        let _infallible = writeln!(text, "{indent}  # {line}");
    }
    if levels == 0 {
        return;
    }
    let mut seen = std::collections::BTreeSet::new();
    for form in &all {
        let below = form
            .get("items")
            .into_iter()
            .flat_map(|items| forms(schema, items));
        let more = form
            .get("additionalProperties")
            .filter(|more| more.is_object())
            .into_iter()
            .flat_map(|more| forms(schema, more));
        for form in std::iter::once(*form).chain(below).chain(more) {
            for (key, value) in form
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                if seen.insert(key.clone()) {
                    describe(schema, &format!("{path}/{key}"), value, levels - 1, text);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_of_kamal_has_its_text() {
        let schema = schema::deploy();
        for section in [
            "accessories",
            "aliases",
            "boot",
            "builder",
            "env",
            "logging",
            "proxy",
            "registry",
            "servers",
            "ssh",
            "sshkit",
            "output",
            "x-appliance",
        ] {
            let mut text = String::new();
            let value = &schema["properties"][section];
            assert!(value.is_object(), "{section}");
            describe(&schema, section, value, 4, &mut text);
            assert!(text.starts_with(&format!("{section}:")), "{text}");
        }
        let mut proxy = String::new();
        describe(&schema, "proxy", &schema["properties"]["proxy"], 4, &mut proxy);
        assert!(proxy.contains("app_port:"), "{proxy}");
        let silent: Vec<&String> = schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key)
            .filter(|key| keys::text(key).is_none())
            .collect();
        assert!(silent.is_empty(), "keys without a text: {silent:?}");
    }
}
