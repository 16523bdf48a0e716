//! `env` sections.

use super::{Checker, join, key_path};
use crate::yaml::tree::Map;

/// `env`: a plain map of values, or `clear`, `secret` and (at the root) `tags`.
pub(super) fn check(checker: &mut Checker<'_>, env: &Map, path: &str, root: bool) {
    const SPECIAL: &[&str] = &["clear", "secret", "tags"];
    if !env
        .iter()
        .any(|(key, _)| key.as_str().is_some_and(|key| SPECIAL.contains(&key)))
    {
        for (key, value) in env.iter() {
            if !value.is_stringish() {
                checker.type_error(value, &key_path(path, key), "a string");
            }
        }
        return;
    }
    let before = checker.problems.len();
    checker.unknown_keys(env, SPECIAL, path, false);
    if let Some(problem) = checker.problems.get_mut(before)
        && !problem
            .hint
            .as_deref()
            .is_some_and(|hint| hint.starts_with("did you mean"))
    {
        problem.hint = Some("beside `clear` or `secret`, plain variables go under `clear:`".to_owned());
    }
    if let Some(clear) = env.get("clear") {
        checker.text_map(clear, &join(path, "clear"));
    }
    if let Some(secret) = env.get("secret") {
        checker.text_list(secret, &join(path, "secret"));
    }
    let Some(tags) = env.get("tags") else { return };
    if !root {
        let place = env.key_node("tags").map_or(tags.place, |key| key.place);
        checker.report(place, path, "tags are only allowed in the root env");
        return;
    }
    let path = join(path, "tags");
    let Some(map) = tags.as_map() else {
        return checker.type_error(tags, &path, "a hash");
    };
    for (tag, value) in map.iter() {
        let path = key_path(&path, tag);
        match value.as_map() {
            Some(env) => check(checker, env, &path, false),
            None => checker.type_error(value, &path, "a hash"),
        }
    }
}
