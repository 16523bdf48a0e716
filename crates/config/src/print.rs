//! The resolved configuration for people to read.

use serde_json::Value;

use crate::model::Resolved;

/// As YAML, with passwords that stand in the file masked.
///
/// # Errors
/// When YAML cannot hold it, which no resolved configuration causes.
pub fn to_yaml(config: &Resolved) -> Result<String, serde_yaml::Error> {
    let mut value = serde_json::to_value(config).map_err(<serde_yaml::Error as serde::ser::Error>::custom)?;
    mask(&mut value);
    serde_yaml::to_string(&value)
}

/// Masks literal passwords of registries; secrets' names stay.
fn mask(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "password" && value.is_string() {
                    *value = Value::from("[REDACTED]");
                } else {
                    mask(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(mask),
        _ => {}
    }
}
