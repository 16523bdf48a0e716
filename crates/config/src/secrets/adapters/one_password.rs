//! 1Password, by `op`. Names are `[op://]vault/item[/section]/field`; an item alone means its password.

use indexmap::IndexMap;
use serde_json::Value;

use super::{AdapterError, Fetch, Fetched, Tools, json, output};

pub(super) fn fetch(fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    tools.require("1Password", "op", "--version")?;
    let session = sign_in(fetch.account(), tools)?;
    let op = Op {
        account: fetch.account(),
        session,
        tools,
    };
    let mut results = Fetched::new();
    if fetch.names.is_empty() {
        let from = fetch.from.as_deref().ok_or_else(|| {
            AdapterError::failed("name the secrets to fetch, or an item with --from VAULT/ITEM")
        })?;
        let (vault, item) = vault_and_item(from)?;
        let answer: Value = json("op", &op.item(vault, item, &[])?)?;
        for field in answer["fields"].as_array().into_iter().flatten() {
            keep(&mut results, field);
        }
        return Ok(results);
    }
    let names = fetch.prefixed();
    let mut items: IndexMap<(&str, &str), Vec<String>> = IndexMap::new();
    for name in &names {
        let (vault, item) = vault_and_item(name)?;
        let fields: Vec<&str> = plain(name).split('/').skip(2).collect();
        let field = if fields.is_empty() {
            "password".to_owned()
        } else {
            fields.join(".")
        };
        items.entry((vault, item)).or_default().push(field);
    }
    for ((vault, item), fields) in items {
        let answer: Value = json("op", &op.item(vault, item, &fields)?)?;
        match answer {
            // `op` gives an object, not a list, when one field was asked for.
            Value::Array(fields) => fields.iter().for_each(|field| keep(&mut results, field)),
            field => keep(&mut results, &field),
        }
    }
    Ok(results)
}

fn plain(name: &str) -> &str {
    name.strip_prefix("op://").unwrap_or(name)
}

fn vault_and_item(name: &str) -> Result<(&str, &str), AdapterError> {
    let mut parts = plain(name).split('/');
    match (parts.next(), parts.next()) {
        (Some(vault), Some(item)) if !vault.is_empty() && !item.is_empty() => Ok((vault, item)),
        _ => Err(AdapterError::failed(format!(
            "{name} does not name a vault and an item: VAULT/ITEM[/FIELD]"
        ))),
    }
}

fn keep(results: &mut Fetched, field: &Value) {
    if let Some(reference) = field["reference"].as_str() {
        let name = plain(reference);
        let name = name.strip_suffix("/password").unwrap_or(name);
        results.insert(name.to_owned(), field["value"].clone());
    }
}

/// The session token, when signing in was necessary and gave one.
fn sign_in(account: &str, tools: &Tools<'_>) -> Result<Option<String>, AdapterError> {
    if tools
        .run(&["op", "account", "get", "--account", account])?
        .success()
    {
        return Ok(None);
    }
    let outcome = tools.run(&["op", "signin", "--account", account, "--force", "--raw"])?;
    let token = output(outcome, || "Failed to login to 1Password".to_owned())?;
    Ok(Some(token).filter(|token| !token.is_empty()))
}

struct Op<'a> {
    account: &'a str,
    session: Option<String>,
    tools: &'a Tools<'a>,
}

impl Op<'_> {
    fn item(&self, vault: &str, item: &str, fields: &[String]) -> Result<String, AdapterError> {
        let labels = fields
            .iter()
            .map(|field| format!("label={field}"))
            .collect::<Vec<_>>()
            .join(",");
        let mut argv = vec![
            "op",
            "item",
            "get",
            item,
            "--vault",
            vault,
            "--format",
            "json",
            "--account",
            self.account,
        ];
        if let Some(session) = &self.session {
            argv.extend(["--session", session]);
        }
        if !fields.is_empty() {
            argv.extend(["--fields", &labels]);
        }
        let outcome = self.tools.run(&argv)?;
        let message = || {
            let what = if fields.is_empty() {
                item.to_owned()
            } else {
                format!("{} from {item}", fields.join(", "))
            };
            format!("Could not read {what} in the {vault} 1Password vault")
        };
        output(outcome, message)
    }
}
