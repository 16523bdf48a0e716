//! Passbolt, by `passbolt`. Names are `[folder/…/]name`; results go by name.

use serde_json::Value;

use super::{AdapterError, Fetch, Fetched, Tools, json, output};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("Passbolt", "passbolt", "--version")?;
    output(tools.run(&["passbolt", "verify"])?, || {
        "Failed to login to Passbolt".to_owned()
    })?;
    let names = fetch.prefixed();
    if names.is_empty() {
        return Err(AdapterError::failed("No secrets given to fetch"));
    }
    let mut conditions = Vec::new();
    let mut folders = Vec::new();
    for name in &names {
        let mut path: Vec<&str> = name.split('/').collect();
        let own = path.pop().unwrap_or_default();
        if path.is_empty() {
            conditions.push(format!("Name == {}", quote(own)));
            continue;
        }
        let folder = find_folder(&path, tools)?;
        conditions.push(format!(
            "(Name == {} && FolderParentID == {})",
            quote(own),
            quote(&folder)
        ));
        if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    let filter = conditions.join(" || ");
    let mut argv = vec!["passbolt", "list", "resources", "--filter", &filter];
    for folder in &folders {
        argv.extend(["--folder", folder]);
    }
    argv.push("--json");
    let answer = output(tools.run(&argv)?, || {
        format!("Could not read {} from Passbolt", names.join(", "))
    })?;
    let mut results = Fetched::new();
    for item in json::<Vec<Value>>("passbolt", &answer)? {
        if let Some(name) = item["name"].as_str() {
            results.insert(name.to_owned(), item["password"].clone());
        }
    }
    let missing: Vec<&str> = names
        .iter()
        .map(|name| name.rsplit('/').next().unwrap_or(name))
        .filter(|name| !results.contains_key(*name))
        .collect();
    if missing.is_empty() {
        Ok(results)
    } else {
        let message = format!(
            "Could not find the following secrets in Passbolt: {}",
            missing.join(", ")
        );
        Err(AdapterError::failed(message))
    }
}

/// The id of the folder at a path.
fn find_folder(path: &[&str], tools: &Tools<'_>) -> Result<String, AdapterError> {
    let mut parent = String::new();
    for name in path {
        let mut filter = format!("Name == {}", quote(name));
        if !parent.is_empty() {
            filter = format!("{filter} && FolderParentID == {}", quote(&parent));
        }
        let outcome = tools.run(&["passbolt", "list", "folders", "--filter", &filter, "--json"])?;
        let answer = output(outcome, || "Could not read folders from Passbolt".to_owned())?;
        let found = json::<Vec<Value>>("passbolt", &answer)?;
        parent = found
            .iter()
            .find(|folder| {
                !parent.is_empty() || folder["folder_parent_id"].as_str().is_none_or(str::is_empty)
            })
            .and_then(|folder| folder["id"].as_str())
            .ok_or_else(|| {
                let path = path.join("/");
                AdapterError::failed(format!(
                    "Could not find the following folders in Passbolt: {path}"
                ))
            })?
            .to_owned();
    }
    Ok(parent)
}

/// A string of Passbolt's filter language (CEL).
fn quote(text: &str) -> String {
    format!("{text:?}")
}
