//! AWS Secrets Manager, by `aws`. A secret that is a JSON object gives `name/key` for each key, else `name`.

use serde_json::{Map, Value};

use super::{AdapterError, Fetch, Fetched, Tools, json, output};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("AWS", "aws", "--version")?;
    let names = fetch.prefixed();
    let mut argv = vec![
        "aws",
        "secretsmanager",
        "batch-get-secret-value",
        "--secret-id-list",
    ];
    argv.extend(names.iter().map(String::as_str));
    argv.extend(["--output", "json"]);
    if let Some(profile) = &fetch.account {
        argv.extend(["--profile", profile]);
    }
    let outcome = tools.run(&argv)?;
    let answer = output(outcome, || {
        format!("Could not read {} from AWS Secrets Manager", names.join(", "))
    })?;
    let answer: Value = json("aws", &answer)?;
    let errors: Vec<String> = answer["Errors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|error| format!("{}: {}", plain(&error["SecretId"]), plain(&error["Message"])))
        .collect();
    if !errors.is_empty() {
        return Err(AdapterError::failed(errors.join(" ")));
    }
    let mut results = Fetched::new();
    for secret in answer["SecretValues"].as_array().into_iter().flatten() {
        let name = plain(&secret["Name"]);
        let value = plain(&secret["SecretString"]);
        match serde_json::from_str::<Map<String, Value>>(value) {
            Ok(keys) => results.extend(
                keys.into_iter()
                    .map(|(key, value)| (format!("{name}/{key}"), value)),
            ),
            Err(_) => drop(results.insert(name.to_owned(), value.into())),
        }
    }
    Ok(results)
}

fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
