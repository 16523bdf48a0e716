//! Reads a part of the tree as a Rust type: every mistake at once, each with its place.
//!
//! The JSON Schema that editors get is derived from the same types; here the tree is checked against it first,
//! so that the schema and the reader cannot disagree.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map as Json, Value as Schema};

use crate::problem::{Problem, did_you_mean};
use crate::source::Sources;
use crate::yaml::tree::{Node, Value};

/// Reads `node`, found at `path`, as a `T`.
///
/// # Errors
/// Every mistake, in the order of the file.
pub(crate) fn read<T: JsonSchema + DeserializeOwned>(
    node: &Node,
    path: &str,
    sources: &Sources,
) -> Result<T, Vec<Problem>> {
    let schema = schemars::schema_for!(T).to_value();
    let mut checker = Checker {
        root: &schema,
        sources,
        problems: Vec::new(),
    };
    checker.check(&schema, node, path, 0);
    if !checker.problems.is_empty() {
        return Err(checker.problems);
    }
    serde_json::from_value(node.to_json())
        .map_err(|error| vec![sources.problem(node.place, path, error.to_string())])
}

struct Checker<'a> {
    root: &'a Schema,
    sources: &'a Sources,
    problems: Vec<Problem>,
}

/// Schemas nest less than this; files that nest deeper were refused by the reader.
const MAX_DEPTH: usize = 32;

impl<'a> Checker<'a> {
    fn problem(&mut self, node: &Node, path: &str, message: String) -> &mut Problem {
        let problem = self.sources.problem(node.place, path, message);
        self.problems.push(problem);
        self.problems.last_mut().expect("one was just pushed")
    }

    fn resolve(&self, mut schema: &'a Schema) -> &'a Schema {
        while let Some(reference) = schema["$ref"].as_str() {
            match reference
                .strip_prefix('#')
                .and_then(|pointer| self.root.pointer(pointer))
            {
                Some(found) => schema = found,
                None => break,
            }
        }
        schema
    }

    fn check(&mut self, schema: &'a Schema, node: &Node, path: &str, depth: usize) {
        if node.is_base_60() {
            let written = node.raw.as_deref().unwrap_or_default();
            let message = format!(
                "{}{written} without quotes is read as the number {}",
                prefix(path),
                node.to_s()
            );
            let hint = format!(
                "YAML 1.1 counts a:b in base 60; write a duration as 90s or 5m, and a text in quotes: \"{written}\""
            );
            self.problem(node, path, message).hint = Some(hint);
            return;
        }
        let schema = self.resolve(schema);
        if depth > MAX_DEPTH || schema.as_bool() == Some(true) {
            return;
        }
        if let Some(branches) = schema["anyOf"].as_array().or_else(|| schema["oneOf"].as_array()) {
            return self.check_branches(branches, node, path, depth);
        }
        if let Some(branches) = schema["allOf"].as_array() {
            for branch in branches {
                self.check(branch, node, path, depth + 1);
            }
        }
        if !type_fits(schema, node) {
            self.problem(
                node,
                path,
                format!("{}should be {}", prefix(path), wanted(schema)),
            );
            return;
        }
        if let Some(allowed) = schema["enum"].as_array() {
            self.check_enum(allowed, node, path);
        }
        if let Some(only) = schema.get("const").filter(|only| **only != node.to_json()) {
            self.problem(node, path, format!("{}should be {only}", prefix(path)));
        }
        if let Some(format) = schema["format"].as_str()
            && let Err(message) = crate::units::check(format, &node.to_json())
        {
            self.problem(node, path, format!("{}{message}", prefix(path)));
        }
        self.check_limits(schema, node, path);
        match &node.value {
            Value::Map(_) => self.check_map(schema, node, path, depth),
            Value::Seq(items) => {
                if let Some(inner) = schema.get("items") {
                    for (index, item) in items.iter().enumerate() {
                        self.check(inner, item, &join(path, &index.to_string()), depth + 1);
                    }
                }
            }
            _ => {}
        }
    }

    /// The branch that takes this kind of value decides what is wrong with it.
    fn check_branches(&mut self, branches: &'a [Schema], node: &Node, path: &str, depth: usize) {
        let fitting: Vec<&Schema> = branches
            .iter()
            .filter(|branch| type_fits(self.resolve(branch), node))
            .collect();
        if fitting.is_empty() {
            let mut kinds: Vec<String> = branches
                .iter()
                .map(|branch| wanted(self.resolve(branch)))
                .filter(|kind| kind != "empty")
                .collect();
            kinds.dedup();
            self.problem(
                node,
                path,
                format!("{}should be {}", prefix(path), kinds.join(" or ")),
            );
            return;
        }
        // Words of an enum may be spread over branches, one each.
        let words: Vec<Schema> = fitting
            .iter()
            .flat_map(|branch| {
                let branch = self.resolve(branch);
                branch["enum"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
                    .into_iter()
                    .chain(branch.get("const").cloned())
            })
            .collect();
        if !words.is_empty() && words.len() >= fitting.len() {
            return self.check_enum(&words, node, path);
        }
        let before = self.problems.len();
        for branch in &fitting {
            self.check(branch, node, path, depth + 1);
            if self.problems.len() == before {
                return;
            }
            if fitting.len() > 1 && !std::ptr::eq(*branch, fitting[fitting.len() - 1]) {
                self.problems.truncate(before);
            }
        }
    }

    fn check_enum(&mut self, allowed: &[Schema], node: &Node, path: &str) {
        if allowed.contains(&node.to_json()) {
            return;
        }
        let words: Vec<&str> = allowed.iter().filter_map(Schema::as_str).collect();
        let found = node.to_s();
        let message = format!("{}{found:?} is none of: {}", prefix(path), words.join(", "));
        let suggestion =
            did_you_mean(&found, words.iter().copied()).map(|word| format!("did you mean {word}?"));
        self.problem(node, path, message).hint = suggestion;
    }

    fn check_limits(&mut self, schema: &Schema, node: &Node, path: &str) {
        #[allow(clippy::cast_precision_loss)]
        let number = match node.value {
            Value::Int(value) => Some(value as f64),
            Value::Float(value) => Some(value),
            _ => None,
        };
        if let Some(number) = number {
            if let Some(least) = schema["minimum"].as_f64().filter(|least| number < *least) {
                self.problem(node, path, format!("{}should be at least {least}", prefix(path)));
            }
            if let Some(most) = schema["maximum"].as_f64().filter(|most| number > *most) {
                self.problem(node, path, format!("{}should be at most {most}", prefix(path)));
            }
        }
        if let (Some(text), Some(pattern)) = (node.as_str(), schema["pattern"].as_str())
            && !regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(text))
        {
            self.problem(
                node,
                path,
                format!("{}{text:?} should match {pattern}", prefix(path)),
            );
        }
        let length = node.as_seq().map(<[Node]>::len);
        if let (Some(length), Some(least)) = (length, schema["minItems"].as_u64())
            && (length as u64) < least
        {
            self.problem(
                node,
                path,
                format!("{}should have at least {least} entry", prefix(path)),
            );
        }
    }

    fn check_map(&mut self, schema: &'a Schema, node: &Node, path: &str, depth: usize) {
        let Some(map) = node.as_map() else { return };
        let empty = Json::new();
        let properties = schema["properties"].as_object();
        let known = properties.unwrap_or(&empty);
        for (key, value) in map.iter() {
            let name = key.to_s();
            let inner = join(path, &name);
            if let Some(property) = properties.and_then(|properties| properties.get(&name)) {
                self.check(property, value, &inner, depth + 1);
                continue;
            }
            match schema.get("additionalProperties") {
                Some(Schema::Bool(false)) => {
                    let suggestion = did_you_mean(&name, known.keys().map(String::as_str));
                    let hint = match suggestion {
                        Some(word) => format!("did you mean {word}?"),
                        None => format!(
                            "the keys are: {}",
                            known.keys().cloned().collect::<Vec<_>>().join(", ")
                        ),
                    };
                    let message = format!("{}unknown key: {name}", prefix(path));
                    self.problem(key, &inner, message).hint = Some(hint);
                }
                Some(any @ Schema::Object(_)) => {
                    if let Some(pattern) = schema["propertyNames"]["pattern"].as_str()
                        && !regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(&name))
                    {
                        self.problem(
                            key,
                            &inner,
                            format!("{}{name:?} should match {pattern}", prefix(path)),
                        );
                    }
                    self.check(any, value, &inner, depth + 1);
                }
                _ => {}
            }
        }
        for required in schema["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Schema::as_str)
        {
            if map.get(required).is_none() {
                self.problem(node, path, format!("{}{required} is required", prefix(path)));
            }
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}/{key}")
    }
}

fn prefix(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!("{path}: ")
    }
}

fn types(schema: &Schema) -> Vec<&str> {
    match &schema["type"] {
        Schema::String(one) => vec![one],
        Schema::Array(several) => several.iter().filter_map(Schema::as_str).collect(),
        _ if schema["properties"].is_object() => vec!["object"],
        _ if schema["enum"].is_array() || schema.get("const").is_some_and(Schema::is_string) => {
            vec!["string"]
        }
        _ if schema.get("const").is_some_and(Schema::is_boolean) => vec!["boolean"],
        _ => Vec::new(),
    }
}

fn type_fits(schema: &Schema, node: &Node) -> bool {
    if schema["anyOf"].is_array() || schema["oneOf"].is_array() {
        return true;
    }
    let types = types(schema);
    types.is_empty()
        || types.iter().any(|wanted| match &node.value {
            Value::Null => *wanted == "null",
            Value::Bool(_) => *wanted == "boolean",
            Value::Int(_) | Value::BigInt(_) => matches!(*wanted, "integer" | "number"),
            Value::Float(_) => *wanted == "number",
            Value::Str(_) | Value::Symbol(_) | Value::Time(_) => *wanted == "string",
            Value::Seq(_) => *wanted == "array",
            Value::Map(_) => *wanted == "object",
        })
}

/// What a schema takes, in Kamal's words.
fn wanted(schema: &Schema) -> String {
    if let Some(format) = schema["format"]
        .as_str()
        .filter(|format| format.starts_with("appliance-"))
    {
        let name = format.trim_start_matches("appliance-").replace('-', " ");
        return format!("a {name}");
    }
    let words = match (&schema["const"], &schema["enum"]) {
        (Schema::String(word), _) => vec![word.as_str()],
        (_, Schema::Array(words)) => words.iter().filter_map(Schema::as_str).collect(),
        _ => Vec::new(),
    };
    if !words.is_empty() {
        return words.join(" or ");
    }
    let kinds: Vec<&str> = types(schema)
        .into_iter()
        .filter(|kind| *kind != "null")
        .map(|kind| match kind {
            "string" => "a string",
            "integer" => "an integer",
            "number" => "a number",
            "boolean" => "a boolean",
            "array" => "an array",
            _ => "a hash",
        })
        .collect();
    if kinds.is_empty() {
        "empty".to_owned()
    } else {
        kinds.join(" or ")
    }
}
