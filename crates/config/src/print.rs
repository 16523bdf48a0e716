//! The resolved configuration for people to read.

use serde_json::Value;

use crate::extension::{Extension, KEY};
use crate::model::Resolved;

/// As YAML, with passwords that stand in the file masked, and our own settings at the end.
///
/// # Errors
/// When YAML cannot hold it, which no resolved configuration causes.
pub fn to_yaml(config: &Resolved, extension: &Extension) -> Result<String, serde_yaml::Error> {
    let json = |error: serde_json::Error| <serde_yaml::Error as serde::ser::Error>::custom(error);
    let mut value = serde_json::to_value(config).map_err(json)?;
    if let Value::Object(fields) = &mut value {
        fields.insert(KEY.to_owned(), serde_json::to_value(extension).map_err(json)?);
    }
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

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn literal_passwords_are_masked_and_names_of_secrets_are_not() {
        let mut value = serde_json::json!({
            "registry": {"password": "hush"},
            "accessories": [{"registry": {"password": {"secret": "NAME"}}}],
        });
        mask(&mut value);
        assert_eq!(
            value,
            serde_json::json!({
                "registry": {"password": "[REDACTED]"},
                "accessories": [{"registry": {"password": {"secret": "NAME"}}}],
            })
        );
    }
}
