//! Small conversions from the tree to the model's types.

use crate::model::{Options, Pairs, Scalar};
use crate::yaml::tree::{Map, Node, Value};

/// A scalar as it was written.
pub(super) fn scalar(node: &Node) -> Scalar {
    match &node.value {
        Value::Bool(value) => Scalar::Bool(*value),
        Value::Int(value) => Scalar::Int(*value),
        Value::Float(value) => Scalar::Float(*value),
        _ => Scalar::Text(node.to_s()),
    }
}

/// A scalar, unless it is `false` or `null`.
pub(super) fn present_scalar(node: &Node) -> Option<Scalar> {
    node.is_truthy().then(|| scalar(node))
}

/// A list of text.
pub(super) fn text_list(node: &Node) -> Vec<String> {
    node.as_seq().unwrap_or_default().iter().map(Node::to_s).collect()
}

/// How Kamal passes a value to Docker: blank ones without value, `false` as text.
pub(super) fn pair_value(node: &Node) -> Option<String> {
    (node.is_present() || node.as_bool() == Some(false)).then(|| node.to_s())
}

/// Names with values as passed to Docker.
pub(super) fn pairs(map: Option<&Map>) -> Pairs {
    map.map(|map| {
        map.iter()
            .map(|(name, value)| (name.to_s(), pair_value(value)))
            .collect()
    })
    .unwrap_or_default()
}

/// Docker options without `restart`: a list repeats the flag, `true` is a bare flag, `null` drops it.
pub(super) fn options(map: Option<&Map>) -> Options {
    let Some(map) = map else { return Options::new() };
    map.iter()
        .map(|(name, value)| (name.to_s(), value))
        .filter(|(name, value)| name != "restart" && !matches!(value.value, Value::Null))
        .map(|(name, value)| {
            let values = match &value.value {
                Value::Seq(items) => items.iter().filter_map(option_value).collect(),
                // Ruby iterates a map as pairs, so each becomes a value of its own.
                Value::Map(pairs) => pairs
                    .iter()
                    .map(|(key, value)| Some(Node::inspect_pair(key, value)))
                    .collect(),
                _ => option_value(value).into_iter().collect(),
            };
            (name, values)
        })
        .collect()
}

fn option_value(node: &Node) -> Option<Option<String>> {
    match node.value {
        Value::Null => None,
        Value::Bool(true) => Some(None),
        _ => Some(Some(node.to_s())),
    }
}

/// The restart policy of Docker options.
pub(super) fn restart(map: Option<&Map>) -> String {
    map.and_then(|map| map.iter().find(|(name, _)| name.to_s() == "restart"))
        .map_or_else(|| "unless-stopped".to_owned(), |(_, policy)| policy.to_s())
}

/// Ruby's `String#to_i`: leading digits, else 0.
pub(super) fn to_i(text: &str) -> i64 {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let end = digits
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(digits.len());
    let value: i64 = digits[..end].parse().unwrap_or(0);
    if negative { -value } else { value }
}

/// Ruby's `File.join`: exactly one slash between the parts.
pub(super) fn join_path(left: &str, right: &str) -> String {
    format!("{}/{}", left.trim_end_matches('/'), right.trim_start_matches('/'))
}
