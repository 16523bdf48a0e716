//! The environment of a container: clear values and the names of secrets.

use indexmap::IndexMap;

use super::text::pair_value;
use crate::model::Pairs;
use crate::yaml::tree::{Map, Node};

/// An environment, as one section gives it or several merged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Env {
    pub(super) clear: Pairs,
    /// `NAME` or `NAME:SECRET`.
    pub(super) secret: Vec<String>,
}

/// One `env` section: a plain map, or `clear` and `secret`.
pub(super) fn env(map: Option<&Map>) -> Env {
    let Some(map) = map else { return Env::default() };
    let plain = ["clear", "secret", "tags"]
        .iter()
        .all(|key| map.get(key).is_none());
    let clear = if plain {
        Some(map)
    } else {
        map.get("clear").and_then(Node::as_map)
    };
    Env {
        clear: clear
            .map(|clear| {
                clear
                    .iter()
                    .map(|(name, value)| (name.to_s(), pair_value(value)))
                    .collect()
            })
            .unwrap_or_default(),
        secret: map
            .get("secret")
            .and_then(Node::as_seq)
            .unwrap_or_default()
            .iter()
            .map(Node::to_s)
            .collect(),
    }
}

/// The root's tagged environments.
pub(super) fn tags(root: Option<&Map>) -> IndexMap<String, Env> {
    root.and_then(|root| root.get("tags"))
        .and_then(Node::as_map)
        .map(|tags| {
            tags.iter()
                .map(|(tag, section)| (tag.to_s(), env(section.as_map())))
                .collect()
        })
        .unwrap_or_default()
}

impl Env {
    /// Later clear values win; secrets are a union.
    pub(super) fn merge(&mut self, other: &Env) {
        for (name, value) in &other.clear {
            self.clear.insert(name.clone(), value.clone());
        }
        // Ruby's `|`.
        let union: indexmap::IndexSet<&String> = self.secret.iter().chain(&other.secret).collect();
        self.secret = union.into_iter().cloned().collect();
    }
}
