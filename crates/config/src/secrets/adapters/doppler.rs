//! Doppler, by `doppler`. `--from PROJECT/CONFIG`, which a service token (`dp.st…`) makes unnecessary.

use serde_json::{Map, Value};

use super::{AdapterError, Fetch, Fetched, Tools, json, output};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("Doppler", "doppler", "--version")?;
    if !tools.run(&["doppler", "me", "--json"])?.success() {
        let outcome = tools.run(&["doppler", "login", "-y"])?;
        output(outcome, || "Failed to login to Doppler".to_owned())?;
    }
    let names = fetch.prefixed();
    let service_token = tools
        .env
        .get("DOPPLER_TOKEN")
        .is_some_and(|token| token.starts_with("dp.st"));
    let mut argv = vec!["doppler", "secrets", "get"];
    argv.extend(names.iter().map(|name| name.rsplit('/').next().unwrap_or(name)));
    argv.push("--json");
    if !service_token {
        let mut parts = names.first().map(|name| name.split('/')).into_iter().flatten();
        match (parts.next(), parts.next()) {
            (Some(project), Some(config)) => argv.extend(["-p", project, "-c", config]),
            _ => {
                return Err(AdapterError::failed(
                    "Missing project or config from '--from=project/config' option",
                ));
            }
        }
    }
    let outcome = tools.run(&argv)?;
    let answer = output(outcome, || {
        format!("Could not read {} from Doppler", names.join(", "))
    })?;
    let items: Map<String, Value> = json("doppler", &answer)?;
    Ok(items
        .into_iter()
        .map(|(name, item)| (name, item["computed"].clone()))
        .collect())
}
