//! Enpass, by `enpass-cli`. The account is the path of the vault; names are `title[/label]`.

use super::{AdapterError, Fetch, Fetched, Tools};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("Enpass", "enpass-cli", "version")?;
    let names = fetch.prefixed();
    let mut titles: Vec<&str> = Vec::new();
    for name in &names {
        let title = name.rsplit_once('/').map_or(name.as_str(), |(title, _)| title);
        if !titles.contains(&title) {
            titles.push(title);
        }
    }
    let mut argv = vec!["enpass-cli", "-vault", fetch.account(), "show"];
    argv.extend(titles);
    let outcome = tools.run(&argv)?;
    if !outcome.success() {
        return Err(AdapterError::failed(format!(
            "Could not read {} from Enpass",
            names.join(", ")
        )));
    }
    // The program prints its result as log lines on standard error.
    let mut results = Fetched::new();
    for line in outcome.stderr.lines() {
        let Some(title) = after(line, "title:").map(word).filter(|title| !title.is_empty()) else {
            continue;
        };
        let label = after(line, "label:")
            .and_then(|rest| rest.split("  ").next())
            .unwrap_or_default()
            .trim();
        let password = after(line, "password:")
            .map_or("", |rest| rest.trim_start().split('"').next().unwrap_or_default());
        let key = if label.is_empty() {
            title.to_owned()
        } else {
            format!("{title}/{label}")
        };
        let wanted = names.iter().any(|name| *name == title || *name == key);
        if password.is_empty() || !wanted {
            continue;
        }
        if results.contains_key(&key) {
            return Err(AdapterError::failed(format!("{key} is present more than once")));
        }
        results.insert(key, password.trim_end().into());
    }
    Ok(results)
}

fn after<'l>(line: &'l str, label: &str) -> Option<&'l str> {
    line.split_once(label).map(|(_, rest)| rest)
}

fn word(rest: &str) -> &str {
    let rest = rest.trim_start();
    let end = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(rest.len());
    &rest[..end]
}
