//! Bitwarden Secrets Manager, by `bws`. Names are UUIDs, `all`, or `PROJECT/all`; results go by key.

use serde_json::Value;

use super::{AdapterError, Fetch, Fetched, Tools, json, output};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("Bitwarden Secrets Manager", "bws", "--version")?;
    let names = fetch.prefixed();
    let mut results = Fetched::new();
    let mut keep = |item: &Value| {
        if let Some(key) = item["key"].as_str() {
            results.insert(key.to_owned(), item["value"].clone());
        }
    };
    match names.as_slice() {
        [] => {
            return Err(AdapterError::failed(
                "You must specify what to retrieve from Bitwarden Secrets Manager",
            ));
        }
        [all] if all == "all" || all.ends_with("/all") => {
            let mut argv = vec!["bws", "secret", "list"];
            argv.extend(all.strip_suffix("/all"));
            let outcome = tools.run(&argv)?;
            let answer = output(outcome, || {
                "Could not read secrets from Bitwarden Secrets Manager".to_owned()
            })?;
            json::<Vec<Value>>("bws", &answer)?.iter().for_each(&mut keep);
        }
        names => {
            for name in names {
                let outcome = tools.run(&["bws", "secret", "get", name])?;
                let answer = output(outcome, || {
                    format!("Could not read {name} from Bitwarden Secrets Manager")
                })?;
                keep(&json("bws", &answer)?);
            }
        }
    }
    Ok(results)
}
