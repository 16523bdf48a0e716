//! Bitwarden, by `bw`. Names are `item` (its password, else all its fields) or `item/field`.

use indexmap::IndexMap;
use serde_json::Value;

use super::{AdapterError, Fetch, Fetched, Tools, json, output, text};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("Bitwarden", "bw", "--version")?;
    let session = unlock(fetch.account(), tools)?;
    let env: Vec<(&str, &str)> = session
        .iter()
        .map(|token| ("BW_SESSION", token.as_str()))
        .collect();
    let outcome = tools.run_with(&["bw", "sync"], &env)?;
    output(outcome, || "Failed to sync Bitwarden".to_owned())?;
    let names = fetch.prefixed();
    let mut items: IndexMap<&str, Vec<&str>> = IndexMap::new();
    for name in &names {
        let mut parts = name.split('/');
        let wanted = items.entry(parts.next().unwrap_or_default()).or_default();
        wanted.extend(parts.next());
    }
    let mut results = Fetched::new();
    for (item, wanted) in items {
        let outcome = tools.run_with(&["bw", "get", "item", item], &env)?;
        let answer: Value = json(
            "bw",
            &output(outcome, || format!("Could not read {item} from Bitwarden"))?,
        )?;
        let fields = answer["fields"].as_array().map_or(&[][..], Vec::as_slice);
        let password = &answer["login"]["password"];
        if wanted.is_empty() && !password.is_null() {
            results.insert(item.to_owned(), password.clone());
            continue;
        }
        let wanted: Vec<&str> = if wanted.is_empty() {
            fields.iter().filter_map(|field| field["name"].as_str()).collect()
        } else {
            wanted
        };
        if wanted.is_empty() {
            let message = format!("Item {item} is not a login type item and no fields were specified");
            return Err(AdapterError::failed(message));
        }
        for name in wanted {
            let field = fields.iter().find(|field| field["name"] == name).ok_or_else(|| {
                AdapterError::failed(format!("Could not find field {name} in item {item} in Bitwarden"))
            })?;
            results.insert(format!("{item}/{name}"), field["value"].clone());
        }
    }
    Ok(results)
}

/// Logs in and unlocks; the session token when unlocking gave one.
fn unlock(account: &str, tools: &Tools<'_>) -> Result<Option<String>, AdapterError> {
    let status = |session: Option<&str>| -> Result<String, AdapterError> {
        let env: Vec<(&str, &str)> = session.iter().map(|token| ("BW_SESSION", *token)).collect();
        let answer: Value = json("bw", &text(&tools.run_with(&["bw", "status"], &env)?))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    };
    let mut state = status(None)?;
    if state == "unauthenticated" {
        tools.run(&["bw", "login", account])?;
        state = status(None)?;
    }
    let mut session = None;
    if state == "locked" {
        let token = text(&tools.run(&["bw", "unlock", "--raw"])?);
        session = Some(token).filter(|token| !token.is_empty());
        state = status(session.as_deref())?;
    }
    match state.as_str() {
        "unlocked" => Ok(session),
        _ => Err(AdapterError::failed("Failed to login to and unlock Bitwarden")),
    }
}
