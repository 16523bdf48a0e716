//! A container's settings as flat texts, so that two can be compared field by field.
//!
//! The shape is taken from what Docker itself says right after a container was made.
//! So every default that Docker fills in is on both sides of a later comparison, and what differs is what somebody changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What changes by itself or says nothing about the container's settings.
const IGNORED: &[&str] = &[
    "ContainerIDFile",
    "ConsoleSize",
    "MaskedPaths",
    "ReadonlyPaths",
    "NetworkMode",
    "Binds",
    "Mounts",
    "VolumesFrom",
    "Links",
    "Isolation",
    "Runtime",
];
/// Fields of the configuration that count; the rest is the image's or Docker's own.
const CONFIG: &[&str] = &[
    "Cmd",
    "Entrypoint",
    "User",
    "WorkingDir",
    "StopSignal",
    "StopTimeout",
    "Healthcheck",
    "Tty",
    "OpenStdin",
    "Domainname",
];
/// Prefix of our own labels, which say nothing about the container's settings.
const OWN_LABELS: &str = "appliance.";

/// Settings by name, such as `memory` or `mount./data`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shape(pub BTreeMap<String, String>);

/// One setting that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Which setting.
    pub setting: String,
    /// As it should be; none if it should not be set.
    pub wanted: Option<String>,
    /// As it is; none if it is not set.
    pub found: Option<String>,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values of the environment are hashes here.
        if self.setting.starts_with("env.") {
            return match (&self.wanted, &self.found) {
                (Some(_), None) => write!(f, "{} is missing", self.setting),
                (None, Some(_)) => write!(f, "{} was added", self.setting),
                _ => write!(f, "{} has another value", self.setting),
            };
        }
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        write!(
            f,
            "{} is {}, not {}",
            self.setting,
            show(&self.found),
            show(&self.wanted)
        )
    }
}

impl Shape {
    /// The shape in Docker's answer to `GET /containers/{id}/json`.
    ///
    /// `hide` turns a value of the environment into something that may be written to a file.
    pub fn of(inspection: &Value, hide: &dyn Fn(&str) -> String) -> Self {
        let mut shape = BTreeMap::new();
        let config = &inspection["Config"];
        for field in CONFIG {
            flatten(&lower(field), &config[*field], &mut shape);
        }
        for entry in config["Env"].as_array().into_iter().flatten() {
            let entry = entry.as_str().unwrap_or_default();
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            shape.insert(format!("env.{name}"), hide(value));
        }
        for (name, value) in config["Labels"].as_object().into_iter().flatten() {
            if !name.starts_with(OWN_LABELS) {
                shape.insert(
                    format!("label.{name}"),
                    value.as_str().unwrap_or_default().to_owned(),
                );
            }
        }
        for (name, value) in inspection["HostConfig"].as_object().into_iter().flatten() {
            if !IGNORED.contains(&name.as_str()) {
                flatten(&lower(name), value, &mut shape);
            }
        }
        for mount in inspection["Mounts"].as_array().into_iter().flatten() {
            let text = |field: &str| mount[field].as_str().unwrap_or_default();
            let source = if text("Type") == "volume" {
                text("Name")
            } else {
                text("Source")
            };
            let access = if mount["RW"].as_bool().unwrap_or(true) {
                ""
            } else {
                ":ro"
            };
            shape.insert(
                format!("mount.{}", text("Destination")),
                format!("{source}{access}"),
            );
        }
        let id = inspection["Id"].as_str().unwrap_or_default();
        for (name, endpoint) in inspection["NetworkSettings"]["Networks"]
            .as_object()
            .into_iter()
            .flatten()
        {
            let mut aliases: Vec<&str> = endpoint["Aliases"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                // Docker adds the container's short id, newer versions do not show it.
                .filter(|alias| !id.starts_with(alias))
                .collect();
            aliases.sort_unstable();
            aliases.dedup();
            shape.insert(format!("network.{name}"), aliases.join(" "));
        }
        Self(shape)
    }

    /// What of `found` is not as in this shape.
    pub fn differences(&self, found: &Shape) -> Vec<Difference> {
        let names: std::collections::BTreeSet<&String> = self.0.keys().chain(found.0.keys()).collect();
        names
            .into_iter()
            .filter(|name| self.0.get(*name) != found.0.get(*name))
            .map(|name| Difference {
                setting: name.clone(),
                wanted: self.0.get(name).cloned(),
                found: found.0.get(name).cloned(),
            })
            .collect()
    }

    /// What is mounted where: path in the container → name of a volume or path on the host.
    pub fn mounts(&self) -> BTreeMap<String, String> {
        self.0
            .iter()
            .filter_map(|(name, value)| {
                let target = name.strip_prefix("mount.")?;
                let source = value.strip_suffix(":ro").unwrap_or(value);
                Some((target.to_owned(), source.to_owned()))
            })
            .collect()
    }
}

/// `MemorySwap` as `memory-swap`.
fn lower(name: &str) -> String {
    let mut out = String::new();
    let mut previous_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && previous_lower {
            out.push('-');
        }
        previous_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// Zero, false and empty mean "not set" in Docker's settings.
fn flatten(name: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::Bool(true) => {
            into.insert(name.to_owned(), "yes".to_owned());
        }
        Value::Number(number) if number.as_f64() == Some(0.0) => {}
        Value::Number(number) => {
            into.insert(name.to_owned(), number.to_string());
        }
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => {
            into.insert(name.to_owned(), text.clone());
        }
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let words: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
            if !words.is_empty() {
                into.insert(name.to_owned(), words.join(" "));
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                flatten(&format!("{name}.{index}"), item, into);
            }
        }
        Value::Object(fields) => {
            for (field, value) in fields {
                flatten(&format!("{name}.{}", lower(field)), value, into);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspection() -> Value {
        serde_json::json!({
            "Id": "0123456789abcdef",
            "Config": {
                "Cmd": ["postgres", "-c", "fsync=on"], "User": "", "Hostname": "0123456789ab",
                "Env": ["POSTGRES_PASSWORD=secret", "LANG=C"],
                "Labels": { "service": "shop-db", "appliance.accessory": "shop/db" },
            },
            "HostConfig": {
                "Memory": 0, "RestartPolicy": { "Name": "unless-stopped", "MaximumRetryCount": 0 }, "CapAdd": null,
                "PortBindings": { "5432/tcp": [{ "HostIp": "127.0.0.1", "HostPort": "5432" }] },
                "Binds": ["x:/x"],
            },
            "Mounts": [
                { "Type": "volume", "Name": "shop-data", "Source": "/var/lib/docker/…", "Destination": "/data", "RW": true },
                { "Type": "bind", "Source": "/srv/conf", "Destination": "/conf", "RW": false },
            ],
            "NetworkSettings": { "Networks": { "kamal": { "Aliases": ["shop-db", "0123456789ab"] } } },
        })
    }

    fn shape(inspection: &Value) -> Shape {
        Shape::of(inspection, &|value| format!("#{}", value.len()))
    }

    #[test]
    fn a_shape_holds_settings_and_no_secret() {
        let shape = shape(&inspection());
        let expect = [
            ("cmd", "postgres -c fsync=on"),
            ("env.LANG", "#1"),
            ("env.POSTGRES_PASSWORD", "#6"),
            ("label.service", "shop-db"),
            ("mount./conf", "/srv/conf:ro"),
            ("mount./data", "shop-data"),
            ("network.kamal", "shop-db"),
            ("port-bindings.5432/tcp.0.host-ip", "127.0.0.1"),
            ("port-bindings.5432/tcp.0.host-port", "5432"),
            ("restart-policy.name", "unless-stopped"),
        ];
        let expect: BTreeMap<String, String> = expect
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
            .collect();
        assert_eq!(shape.0, expect);
        assert_eq!(shape.mounts()["/conf"], "/srv/conf");
    }

    #[test]
    fn what_somebody_changed_by_hand_is_named() {
        let before = shape(&inspection());
        let mut changed = inspection();
        changed["HostConfig"]["Memory"] = 536_870_912.into();
        changed["NetworkSettings"]["Networks"] = serde_json::json!({});
        changed["Config"]["Env"][0] = "POSTGRES_PASSWORD=other".into();
        changed["Config"]["Labels"]["appliance.accessory"] = "other/db".into();
        let told: Vec<String> = before
            .differences(&shape(&changed))
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            told,
            [
                "env.POSTGRES_PASSWORD has another value",
                "memory is 536870912, not nothing",
                "network.kamal is nothing, not shop-db"
            ]
        );
        assert!(before.differences(&before.clone()).is_empty());
    }
}
