//! LastPass, by `lpass`. Names are full item names; each gives its password.

use serde_json::Value;

use super::{AdapterError, Fetch, Fetched, Tools, json, output, text};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("LastPass", "lpass", "--version")?;
    let account = fetch.account();
    let status = tools.run(&["lpass", "status", "--color", "never"])?;
    if text(&status) != format!("Logged in as {account}.") {
        let outcome = tools.run(&["lpass", "login", account])?;
        output(outcome, || "Failed to login to LastPass".to_owned())?;
    }
    let names = fetch.prefixed();
    let mut argv = vec!["lpass", "show"];
    argv.extend(names.iter().map(String::as_str));
    argv.push("--json");
    let answer = output(tools.run(&argv)?, || {
        format!("Could not read {} from LastPass", names.join(", "))
    })?;
    let items: Vec<Value> = json("lpass", &answer)?;
    let mut results = Fetched::new();
    for item in items {
        if let Some(name) = item["fullname"].as_str() {
            results.insert(name.to_owned(), item["password"].clone());
        }
    }
    let missing: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !results.contains_key(*name))
        .collect();
    if missing.is_empty() {
        Ok(results)
    } else {
        Err(AdapterError::failed(format!(
            "Could not find {} in LastPass",
            missing.join(", ")
        )))
    }
}
