//! Every check Kamal makes, in Kamal's order, all problems collected: the first one is where Kamal stops.

mod env;
pub(crate) mod proxy;
pub(crate) mod raw;
mod rules;
pub(crate) mod sections;
pub(crate) mod shape;
mod version;

use std::path::Path;

use crate::problem::{Problem, did_you_mean};
use crate::source::Sources;
use crate::yaml::tree::{Map, Node, Place, Value};
use shape::{Section, Shape};

/// Collects problems while walking a configuration.
pub(crate) struct Checker<'a> {
    sources: &'a Sources,
    /// What was found so far, in Kamal's order.
    pub(crate) problems: Vec<Problem>,
}

/// Surroundings the checks need.
pub(crate) struct Surroundings<'a> {
    /// The project's directory.
    pub(crate) directory: &'a Path,
    /// The destination.
    pub(crate) destination: Option<&'a str>,
    /// Docker's name for this machine's processor.
    pub(crate) local_arch: &'a str,
}

/// Checks a merged configuration.
pub(crate) fn check(root: &Node, sources: &Sources, surroundings: &Surroundings<'_>) -> Vec<Problem> {
    let mut checker = Checker {
        sources,
        problems: Vec::new(),
    };
    let Some(map) = root.as_map() else {
        checker.report(root.place, "", "the file should be a hash of settings");
        return checker.problems;
    };
    checker.keys(map, shape::ROOT, "", true);
    let raw = raw::Raw::new(map);
    sections::check(&mut checker, &raw);
    rules::check(&mut checker, root.place, &raw, surroundings);
    checker.base_60(root, "");
    checker.problems
}

/// `path/segment`; Kamal leaves blank segments out.
fn join(path: &str, segment: &str) -> String {
    match (path.is_empty(), segment.trim().is_empty()) {
        (_, true) => path.to_owned(),
        (true, false) => segment.to_owned(),
        (false, false) => format!("{path}/{segment}"),
    }
}

impl Checker<'_> {
    /// Reports a message at a place; Kamal prefixes it with the path.
    pub(crate) fn report(&mut self, place: Place, path: &str, message: impl AsRef<str>) -> &mut Problem {
        let message = message.as_ref();
        let full = if path.is_empty() {
            message.to_owned()
        } else {
            format!("{path}: {message}")
        };
        // Beyond a hundred, only how many more there are is told.
        let problem = if self.problems.len() < crate::load::MOST_PROBLEMS {
            self.sources.problem(place, path, full)
        } else {
            Problem::new(String::new())
        };
        self.problems.push(problem);
        self.problems.last_mut().expect("a problem was just pushed")
    }

    /// Reports that a value has the wrong type; `expected` as in "a string or a hash".
    fn type_error(&mut self, node: &Node, path: &str, expected: &str) {
        let hint = match &node.value {
            Value::Null => Some(match expected {
                "a string" => {
                    "there is no value here; an empty text is written \"\" (with ERB: quote the whole value)"
                        .to_owned()
                }
                _ => "there is no value here; add one, or remove the key".to_owned(),
            }),
            Value::Time(_) => Some("an unquoted date is no text in YAML; put it in quotes".to_owned()),
            Value::Int(_) | Value::BigInt(_) | Value::Float(_) | Value::Bool(_) | Value::Symbol(_)
                if expected == "a string" =>
            {
                Some("put it in quotes".to_owned())
            }
            Value::Str(_) if expected == "an integer" => {
                Some("write it as a plain number, without quotes or unit".to_owned())
            }
            Value::Str(_) if expected == "a boolean" => {
                Some("write true or false, without quotes".to_owned())
            }
            Value::Str(_) | Value::Int(_) if expected == "an array" => {
                Some("write it as a list: one line with `- ` for each item".to_owned())
            }
            Value::Str(text) if expected.contains("a hash") && glued_key(text).is_some() => {
                glued_key(text).map(|key| format!("write a space after the colon: {key}: …"))
            }
            Value::Seq(_) if expected == "a hash" => {
                Some("write it as `key: value` lines, without `- `".to_owned())
            }
            _ => None,
        };
        self.report(node.place, path, format!("should be {expected}"))
            .hint = hint;
    }

    /// Reports keys that are not known here, then checks the others (Kamal: `validate_against_example!`).
    fn keys(&mut self, map: &Map, section: Section, path: &str, extensions: bool) {
        let names: Vec<&str> = section.iter().map(|(name, _)| *name).collect();
        self.unknown_keys(map, &names, path, extensions);
        for (key, value) in map.iter() {
            let name = key.to_s();
            if let Some((_, shape)) = section.iter().find(|(known, _)| key.as_str() == Some(*known)) {
                self.shape(value, *shape, &join(path, &name));
            }
        }
    }

    /// Reports keys that are not among `known`.
    fn unknown_keys(&mut self, map: &Map, known: &[&str], path: &str, extensions: bool) {
        let unknown: Vec<&Node> = map
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !key.as_str().is_some_and(|name| known.contains(&name)))
            .filter(|key| !(extensions && key.to_s().starts_with("x-")))
            .collect();
        let Some(first) = unknown.first() else {
            return;
        };
        let names: Vec<String> = unknown.iter().map(|key| key.to_s()).collect();
        let plural = if names.len() == 1 { "key" } else { "keys" };
        let hints: Vec<String> = unknown
            .iter()
            .take(5)
            .map(|key| {
                let advice = advice_on_key(&key.to_s(), known);
                if unknown.len() == 1 {
                    advice
                } else {
                    format!(
                        "{} (line {}): {advice}",
                        key.to_s(),
                        self.sources.origin(key.place).0
                    )
                }
            })
            .collect();
        let message = format!("unknown {plural}: {}", names.join(", "));
        self.report(first.place, path, message).hint = Some(hints.join("; "));
    }

    /// Checks a value against a shape.
    fn shape(&mut self, node: &Node, shape: Shape, path: &str) -> bool {
        let before = self.problems.len();
        match shape {
            Shape::Text if !node.is_stringish() => self.type_error(node, path, "a string"),
            Shape::Int if !matches!(node.value, Value::Int(_) | Value::BigInt(_)) => {
                self.type_error(node, path, "an integer");
            }
            Shape::Bool if node.as_bool().is_none() => self.type_error(node, path, "a boolean"),
            Shape::Text | Shape::Int | Shape::Bool => {}
            Shape::Keys(section) => match node.as_map() {
                Some(map) => self.keys(map, section, path, false),
                None => self.type_error(node, path, "a hash"),
            },
            Shape::AnyMap if node.as_map().is_none() => self.type_error(node, path, "a hash"),
            Shape::AnyMap => {}
            Shape::Proxy if node.as_map().is_none() && node.as_bool().is_none() => {
                self.type_error(node, path, "a hash");
            }
            Shape::Proxy => {}
            Shape::Servers if node.as_map().is_none() && node.as_seq().is_none() => {
                self.type_error(node, path, "an array or a hash");
            }
            Shape::Servers => {}
            Shape::TextMap => self.text_map(node, path),
            Shape::TextList => self.text_list(node, path),
            Shape::TextOrList => {
                let fits = match node.as_seq() {
                    Some(items) => items.iter().all(Node::is_stringish),
                    None => node.is_stringish(),
                };
                if !fits {
                    self.type_error(node, path, "an array or a string");
                }
            }
            Shape::Hosts => self.hosts(node, path),
            Shape::Ssl if node.as_map().is_none() && node.as_bool().is_none() => {
                self.type_error(node, path, "a boolean or a hash");
            }
            Shape::Ssl => {}
            Shape::SshConfig => match &node.value {
                Value::Seq(_) => self.text_list(node, path),
                Value::Bool(_) | Value::Str(_) => {}
                _ => self.type_error(node, path, "a boolean or a string or an array"),
            },
            Shape::Paths => self.paths(node, path),
            Shape::HooksOutput => match node.as_map() {
                Some(map) => {
                    for (hook, level) in map.iter() {
                        if !level.is_stringish() {
                            self.type_error(level, &join(path, &hook.to_s()), "a string or a symbol");
                        }
                    }
                }
                None if !node.is_stringish() => self.type_error(node, path, "a string or a symbol"),
                None => {}
            },
        }
        self.problems.len() == before
    }

    fn text_map(&mut self, node: &Node, path: &str) {
        let Some(map) = node.as_map() else {
            return self.type_error(node, path, "a hash");
        };
        for (key, value) in map.iter() {
            if !value.is_stringish() {
                self.type_error(value, &key_path(path, key), "a string");
            }
        }
    }

    fn text_list(&mut self, node: &Node, path: &str) {
        let Some(items) = node.as_seq() else {
            return self.type_error(node, path, "an array");
        };
        for (index, item) in items.iter().enumerate() {
            if !item.is_stringish() {
                self.type_error(item, &join(path, &index.to_string()), "a string");
            }
        }
    }

    /// A list of hosts: text, or one `host: tag` (or list of tags) each.
    fn hosts(&mut self, node: &Node, path: &str) {
        let Some(items) = node.as_seq() else {
            return self.type_error(node, path, "an array");
        };
        for (index, item) in items.iter().enumerate() {
            let path = join(path, &index.to_string());
            let Some(map) = item.as_map() else {
                if !item.is_stringish() {
                    self.type_error(item, &path, "a string or a hash");
                }
                continue;
            };
            if map.len() != 1 {
                self.report(item.place, &path, "multiple hosts found").hint = Some(
                    "start each host with `- `; tags go after the colon: `- host: [tag, tag]`".to_owned(),
                );
            }
            if let Some((host, tags)) = map.iter().next() {
                let path = key_path(&path, host);
                match tags.as_seq() {
                    Some(_) => self.text_list(tags, &path),
                    None if !tags.is_stringish() => self.type_error(tags, &path, "a string or an array"),
                    None => {}
                }
            }
        }
    }

    /// `files` and `directories`.
    fn paths(&mut self, node: &Node, path: &str) {
        let Some(items) = node.as_seq() else {
            return self.type_error(node, path, "an array");
        };
        for (index, item) in items.iter().enumerate() {
            let path = join(path, &index.to_string());
            if let Some(map) = item.as_map() {
                for key in ["local", "remote", "mode", "owner", "options"] {
                    if let Some(value) = map.get(key)
                        && !value.is_stringish()
                    {
                        self.type_error(value, &join(&path, key), "a string");
                    }
                }
            } else if !item.is_stringish() {
                self.type_error(item, &path, "a string or a hash");
            }
        }
    }

    /// Kamal silently takes `12:30` for 45000; nobody means that.
    fn base_60(&mut self, node: &Node, path: &str) {
        match &node.value {
            Value::Map(map) => {
                for (key, value) in map.iter() {
                    if path.is_empty() && key.as_str().is_some_and(|name| name.starts_with("x-")) {
                        continue;
                    }
                    let path = key_path(path, key);
                    self.base_60(key, &path);
                    self.base_60(value, &path);
                }
            }
            Value::Seq(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.base_60(item, &join(path, &index.to_string()));
                }
            }
            _ if node.is_base_60() => {
                let written = node.raw.clone().unwrap_or_default();
                let message = format!("{written} without quotes is read as the number {}", node.to_s());
                self.report(node.place, path, message).hint =
                    Some(format!("YAML 1.1 counts a:b in base 60; write \"{written}\""));
            }
            _ => {}
        }
    }
}

/// The key of a text `key:value`, which lacks only a space to be a map.
fn glued_key(text: &str) -> Option<&str> {
    let (key, value) = text.split_once(':')?;
    let is_key = key
        .chars()
        .all(|letter| letter.is_alphanumeric() || "_-".contains(letter));
    (is_key && !key.is_empty() && value.starts_with(|letter: char| !letter.is_whitespace())).then_some(key)
}

/// The path of a key's value; Kamal leaves out what is blank or `false`.
fn key_path(path: &str, key: &Node) -> String {
    if key.is_present() {
        join(path, &key.to_s())
    } else {
        path.to_owned()
    }
}

/// What to do about an unknown key.
fn advice_on_key(key: &str, known: &[&str]) -> String {
    if let Some(near) = did_you_mean(key, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    if let Some((_, replacement)) = shape::REPLACED.iter().find(|(old, _)| *old == key) {
        return (*replacement).to_owned();
    }
    format!("known here: {}", known.join(", "))
}
