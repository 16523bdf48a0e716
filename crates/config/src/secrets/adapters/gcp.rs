//! Google Secret Manager, by `gcloud`. Names are `[project/]name[/version]`.
//!
//! The account is `USER` or `USER|SERVICE_ACCOUNT[,SERVICE_ACCOUNT]` to impersonate; `default` is gcloud's own.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::Value;

use super::{AdapterError, Fetch, Fetched, Tools, json, output};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("gcloud", "gcloud", "--version")?;
    let accounts = output(tools.run(&["gcloud", "auth", "list", "--format=json"])?, || {
        NOT_LOGGED_IN.to_owned()
    })?;
    if json::<Vec<Value>>("gcloud", &accounts)?.is_empty() {
        return Err(AdapterError::failed(NOT_LOGGED_IN));
    }
    let (user, chain) = match fetch.account().split_once('|') {
        Some((user, chain)) => (user, Some(chain)),
        None => (fetch.account(), None),
    };
    let mut results = Fetched::new();
    for name in fetch.prefixed() {
        let parts: Vec<&str> = name.split('/').collect();
        let (project, secret, version) = match parts.as_slice() {
            [secret] => ("default", *secret, "latest"),
            [project, secret] => (*project, *secret, "latest"),
            [project, secret, version, ..] => (*project, *secret, *version),
            [] => continue,
        };
        let mut argv = vec![
            "gcloud".to_owned(),
            "secrets".to_owned(),
            "versions".to_owned(),
            "access".to_owned(),
            version.to_owned(),
            format!("--secret={secret}"),
        ];
        if project != "default" {
            argv.push(format!("--project={project}"));
        }
        if user != "default" {
            argv.push(format!("--account={user}"));
        }
        if let Some(chain) = chain {
            argv.push(format!("--impersonate-service-account={chain}"));
        }
        argv.push("--format=json".to_owned());
        let item = match project {
            "default" => secret.to_owned(),
            project => format!("{project}/{secret}"),
        };
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let message = || format!("Could not read {item} from Google Secret Manager");
        let answer: Value = json("gcloud", &output(tools.run(&argv)?, message)?)?;
        let data = answer["payload"]["data"].as_str().unwrap_or_default();
        let bytes = STANDARD.decode(data).or_else(|_| URL_SAFE.decode(data));
        let value = bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        results.insert(
            item.clone(),
            value.ok_or_else(|| AdapterError::failed(message()))?.into(),
        );
    }
    Ok(results)
}

const NOT_LOGGED_IN: &str = "gcloud is not authenticated, please run `gcloud auth login`";
