//! `kamal secrets …` and `appliance secrets …` inside `$(...)`, done in this process.

use serde_json::Value;

use super::adapters::{self, AdapterError, Fetch, Fetched, Tools};
use super::shell;
use crate::problem::did_you_mean;

/// Why an inline command failed.
#[derive(Debug, thiserror::Error)]
pub enum InlineError {
    /// The command is not one of ours, or its flags are not.
    #[error("{what}")]
    Usage {
        /// What is wrong with it; never a value.
        what: String,
    },
    /// Fetching failed.
    #[error(transparent)]
    Fetch(#[from] AdapterError),
    /// The second argument of `extract` is not what `fetch` prints.
    #[error("the second argument of extract is not the JSON object that fetch prints")]
    Json,
    /// Kamal's message.
    #[error("Could not find secret {name}")]
    Missing {
        /// The name.
        name: String,
        /// The names that were fetched.
        known: Vec<String>,
    },
}

impl InlineError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Usage { .. } => None,
            Self::Fetch(error) => error.hint(),
            Self::Json => Some(
                "write it as ALL=$(kamal secrets fetch …), then in a line below NAME=$(kamal secrets extract NAME $ALL)"
                    .to_owned(),
            ),
            Self::Missing { known, .. } if known.is_empty() => {
                Some("what fetch printed holds no secrets; add the name to its line".to_owned())
            }
            Self::Missing { name, known } => {
                let last = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
                let names: Vec<String> = known.iter().map(|name| last(name)).collect();
                Some(match did_you_mean(name, names.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!("fetched were: {}; add {name} to the line with fetch", known.join(", ")),
                })
            }
        }
    }
}

/// The words after `kamal secrets`, if a command is one.
pub(super) fn command(text: &str) -> Option<&str> {
    let rest = text.trim_start();
    ["kamal", "appliance"].iter().find_map(|program| {
        let rest = rest.strip_prefix(program)?;
        let words = rest.trim_start().strip_prefix("secrets")?;
        (words.starts_with(char::is_whitespace) && rest.starts_with(char::is_whitespace)).then_some(words)
    })
}

/// Runs the words after `kamal secrets`; what it would print.
///
/// # Errors
/// See [`InlineError`].
pub(super) fn run(words: &str, tools: &Tools<'_>) -> Result<String, InlineError> {
    let usage = |what: &str| InlineError::Usage {
        what: what.to_owned(),
    };
    let words = shell::split(words).map_err(|_| usage("a quote in the command is not closed"))?;
    let Some((verb, words)) = words.split_first() else {
        return Err(usage("`kamal secrets` needs fetch or extract"));
    };
    match verb.as_str() {
        "fetch" => {
            let (adapter, fetch) = fetch_flags(words)?;
            Ok(shell::escape(&printed(&adapters::fetch(
                &adapter, &fetch, tools,
            )?)))
        }
        "extract" => match words
            .iter()
            .filter(|word| *word != "--inline")
            .collect::<Vec<_>>()
            .as_slice()
        {
            [name, fetched] => extract(name, fetched),
            [name] => Err(InlineError::Usage {
                what: format!(
                    "`kamal secrets extract {name}` has nothing to extract from: the variable after it is empty, or not set in a line above"
                ),
            }),
            _ => Err(usage(
                "`kamal secrets extract` takes a name and what fetch printed, and nothing else: no pipe, no redirection",
            )),
        },
        _ => Err(usage(
            "inside a secrets file only `kamal secrets fetch` and `kamal secrets extract` mean something",
        )),
    }
}

/// Fetched secrets as `fetch` prints them, before they are escaped for a shell.
pub fn printed(fetched: &Fetched) -> String {
    Value::Object(fetched.clone()).to_string()
}

/// `secrets extract NAME JSON`.
///
/// # Errors
/// Not JSON, or no such name.
pub fn extract(name: &str, fetched: &str) -> Result<String, InlineError> {
    let fetched: Fetched = serde_json::from_str(fetched).map_err(|_| InlineError::Json)?;
    adapters::extract(name, &fetched).ok_or_else(|| InlineError::Missing {
        name: name.to_owned(),
        known: fetched.keys().cloned().collect(),
    })
}

fn fetch_flags(words: &[String]) -> Result<(String, Fetch), InlineError> {
    let mut adapter = None;
    let mut fetch = Fetch::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let (flag, own) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (flag, Some(value.to_owned())),
            _ => (word.as_str(), None),
        };
        let slot = match flag {
            "--adapter" | "-a" => &mut adapter,
            "--account" => &mut fetch.account,
            "--from" => &mut fetch.from,
            "--inline" => continue,
            _ if word.starts_with('-') => {
                return Err(InlineError::Usage {
                    what: format!("`kamal secrets fetch` has no flag {flag}"),
                });
            }
            _ => {
                fetch.names.push(word.clone());
                continue;
            }
        };
        *slot = own.or_else(|| words.next().cloned());
    }
    match adapter {
        Some(adapter) => Ok((adapter, fetch)),
        None => Err(InlineError::Usage {
            what: "No value provided for required options '--adapter'".to_owned(),
        }),
    }
}
