//! JSON Schemas for editors, from the very types and tables that the reader checks with.

use serde_json::{Map, Value, json};

use crate::extension::{Extension, KEY};
use crate::host::Host;
use crate::validate::shape::{self, Section, Shape};

/// The schema of `config/deploy.yml` and its destinations, `x-appliance` included.
pub fn deploy() -> Value {
    let mut extension = schemars::schema_for!(Extension).to_value();
    let definitions = extension
        .as_object_mut()
        .and_then(|schema| {
            schema.remove("$schema");
            schema.remove("$defs")
        })
        .unwrap_or_else(|| json!({}));
    let mut root = section(shape::ROOT);
    let properties = root["properties"]
        .as_object_mut()
        .expect("a section has properties");
    properties.insert(KEY.to_owned(), extension);
    for (name, keys) in [
        ("boot", shape::BOOT),
        ("logging", shape::LOGGING),
        ("output", shape::OUTPUT),
        ("ssh", shape::SSH),
        ("sshkit", shape::SSHKIT),
        ("builder", shape::BUILDER),
    ] {
        properties.insert(name.to_owned(), section(keys));
    }
    properties.insert("registry".to_owned(), registry());
    properties.insert("env".to_owned(), env());
    properties.insert(
        "aliases".to_owned(),
        json!({"type": "object", "additionalProperties": {"type": "string"}}),
    );
    let mut accessory = section(shape::ACCESSORY);
    accessory["properties"]["registry"] = registry();
    accessory["properties"]["env"] = env();
    properties.insert(
        "accessories".to_owned(),
        json!({"type": "object", "additionalProperties": accessory}),
    );
    root["patternProperties"] = json!({"^x-": {}});
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("Kamal deploy.yml, with x-appliance");
    root["$defs"] = definitions;
    root
}

/// The schema of `/etc/appliance/host.yml`.
pub fn host() -> Value {
    let mut schema = schemars::schema_for!(Host).to_value();
    schema["title"] = json!("appliance host.yml");
    schema
}

fn section(keys: Section) -> Value {
    let properties: Map<String, Value> = keys
        .iter()
        .map(|(name, shape)| ((*name).to_owned(), of_shape(*shape)))
        .collect();
    json!({"type": "object", "properties": properties, "additionalProperties": false})
}

fn text() -> Value {
    json!({"type": ["string", "number", "boolean"]})
}

fn of_shape(shape: Shape) -> Value {
    let list = json!({"type": "array", "items": text()});
    match shape {
        Shape::Text => text(),
        Shape::Int => json!({"type": "integer"}),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Keys(keys) => section(keys),
        Shape::AnyMap => json!({"type": "object"}),
        Shape::TextMap => json!({"type": "object", "additionalProperties": text()}),
        Shape::TextList => list,
        Shape::TextOrList => json!({"anyOf": [text(), list]}),
        Shape::Hosts => hosts(),
        Shape::Servers => json!({"anyOf": [
            hosts(),
            {"type": "object", "additionalProperties": {"anyOf": [hosts(), role()]}},
        ]}),
        Shape::Proxy => json!({"anyOf": [{"type": "boolean"}, section(shape::PROXY)]}),
        Shape::Ssl => json!({"anyOf": [
            {"type": "boolean"},
            {
                "type": "object",
                "properties": {"certificate_pem": text(), "private_key_pem": text()},
                "additionalProperties": false,
            },
        ]}),
        Shape::SshConfig => json!({"anyOf": [{"type": "boolean"}, text(), list]}),
        Shape::Paths => json!({"type": "array", "items": {"anyOf": [text(), {"type": "object"}]}}),
        Shape::HooksOutput => {
            let level = json!({"enum": ["quiet", "verbose", ":quiet", ":verbose"]});
            json!({"anyOf": [level, {"type": "object", "additionalProperties": level}]})
        }
    }
}

/// A list of hosts, each perhaps with tags: `- 192.0.2.1: [a, b]`.
fn hosts() -> Value {
    json!({"type": "array", "items": {"anyOf": [
        {"type": "string"},
        {"type": "object", "additionalProperties": {"anyOf": [text(), {"type": "array", "items": text()}]}},
    ]}})
}

fn role() -> Value {
    let mut role = section(shape::ROLE);
    role["properties"]["env"] = env();
    role["properties"]["logging"] = section(shape::LOGGING);
    role
}

fn registry() -> Value {
    let mut registry = section(shape::REGISTRY);
    // A list names the secret that holds the value.
    let credential =
        json!({"anyOf": [text(), {"type": "array", "items": {"type": "string"}, "minItems": 1}]});
    for name in ["username", "password"] {
        registry["properties"][name] = credential.clone();
    }
    registry
}

fn env() -> Value {
    let section = |more: &[(&str, Value)]| {
        let mut properties = Map::new();
        let values = json!({"type": "object", "additionalProperties": text()});
        properties.insert("clear".to_owned(), values);
        // Names are text, and the reader takes what it takes for text everywhere.
        properties.insert("secret".to_owned(), json!({"type": "array", "items": text()}));
        properties.extend(
            more.iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone())),
        );
        json!({"type": "object", "properties": properties, "additionalProperties": text()})
    };
    let tags = json!({"type": "object", "additionalProperties": section(&[])});
    section(&[("tags", tags)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_of_the_schemas_leads_somewhere() {
        for schema in [deploy(), host()] {
            let text = schema.to_string();
            for part in text.split("\"$ref\":\"").skip(1) {
                let reference = part.split('"').next().expect("a reference ends");
                let pointer = reference
                    .strip_prefix('#')
                    .expect("references stay in the schema");
                assert!(schema.pointer(pointer).is_some(), "{reference}");
            }
        }
    }

    #[test]
    fn editors_learn_all_keys() {
        let schema = deploy();
        for pointer in [
            "/properties/service",
            "/properties/proxy/anyOf/1/properties/healthcheck/properties/path",
            "/properties/accessories/additionalProperties/properties/env/properties/secret",
            "/properties/builder/properties/arch",
            "/properties/x-appliance/properties/backups",
            "/properties/env/properties/tags/additionalProperties/properties/secret",
            "/patternProperties/^x-",
        ] {
            assert!(schema.pointer(pointer).is_some(), "{pointer}");
        }
        assert_eq!(schema["additionalProperties"], false);
        let secret = &schema["properties"]["env"]["properties"]["secret"]["items"]["type"];
        assert!(
            secret
                .as_array()
                .is_some_and(|types| types.contains(&json!("number")))
        );
        assert!(host()["properties"]["firewall"].is_object());
    }
}
