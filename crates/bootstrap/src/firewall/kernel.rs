//! The kernel's table as a fingerprint that changes with every rule and with nothing else.
//!
//! Counters count, bans and rate limits come and go, handles are numbered anew with each load,
//! and the outside interfaces follow the network: all of these are left out.

use serde_json::Value;

use crate::digest;

/// SHA-256 over what `nft -j list table` printed, without what changes by itself.
///
/// # Errors
/// When it is not JSON.
pub fn fingerprint(json: &str) -> Result<String, serde_json::Error> {
    let mut value: Value = serde_json::from_str(json)?;
    if let Some(objects) = value.get_mut("nftables").and_then(Value::as_array_mut) {
        objects.retain(|object| object.get("metainfo").is_none());
        for object in objects {
            still(object);
        }
    }
    Ok(digest::hex(value.to_string().as_bytes()))
}

fn still(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let dynamic = fields
                .get("flags")
                .and_then(Value::as_array)
                .is_some_and(|flags| flags.iter().any(|flag| flag == "timeout" || flag == "dynamic"));
            if dynamic || fields.get("name").is_some_and(|name| name == "outside_if") {
                fields.remove("elem");
            }
            for moving in ["handle", "packets", "bytes"] {
                fields.remove(moving);
            }
            fields.values_mut().for_each(still);
        }
        Value::Array(values) => values.iter_mut().for_each(still),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    const TABLE: &str = r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},{"table":{"family":"inet","name":"appliance","handle":3}},
        {"set":{"family":"inet","name":"ban4","type":"ipv4_addr","flags":["timeout"],"elem":["192.0.2.1"]}},
        {"set":{"family":"inet","name":"ext_tcp","type":"inet_service","elem":[80,443]}},
        {"counter":{"name":"c_in_drop","handle":4,"packets":7,"bytes":420}},
        {"rule":{"chain":"input","handle":9,"expr":[{"drop":null}]}}]}"#;

    #[test]
    fn only_what_somebody_decided_changes_the_fingerprint() {
        let before = fingerprint(TABLE).expect("JSON");
        for (from, to) in [
            ("\"packets\":7", "\"packets\":900"),
            ("\"handle\":9", "\"handle\":120"),
            ("[\"192.0.2.1\"]", "[\"192.0.2.1\",\"192.0.2.2\"]"),
            ("1.0.6", "1.1.3"),
        ] {
            assert_eq!(
                fingerprint(&TABLE.replace(from, to)).expect("JSON"),
                before,
                "{from}"
            );
        }
        for (from, to) in [
            ("{\"drop\":null}", "{\"accept\":null}"),
            ("[80,443]", "[80,443,8080]"),
        ] {
            assert_ne!(
                fingerprint(&TABLE.replace(from, to)).expect("JSON"),
                before,
                "{from}"
            );
        }
    }
}
