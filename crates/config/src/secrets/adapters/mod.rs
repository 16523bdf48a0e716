//! Password managers, by their own programs and argument vectors (Kamal 2.12, `secrets/adapters`).
//!
//! Each adapter logs in if it must and gives one value per name; programs may ask on the terminal.

mod aws;
mod bitwarden;
mod bitwarden_sm;
mod doppler;
mod enpass;
mod gcp;
mod last_pass;
mod one_password;
mod passbolt;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::runner::{Invocation, Outcome, Runner};

/// What is fetched, by name; kept as JSON because Kamal prints it so.
pub type Fetched = Map<String, Value>;

/// What to fetch: the flags of `kamal secrets fetch`.
#[derive(Debug, Clone, Default)]
pub struct Fetch {
    /// `--account`
    pub account: Option<String>,
    /// `--from`: a vault, folder, project or prefix.
    pub from: Option<String>,
    /// The secrets.
    pub names: Vec<String>,
}

impl Fetch {
    /// The names, each below `from`.
    fn prefixed(&self) -> Vec<String> {
        match &self.from {
            Some(from) => self.names.iter().map(|name| format!("{from}/{name}")).collect(),
            None => self.names.clone(),
        }
    }

    fn account(&self) -> &str {
        self.account.as_deref().unwrap_or_default()
    }
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// No adapter of that name; Kamal's message.
    #[error("Unknown adapter: {name}")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The adapter needs to know whose secrets; Kamal's message.
    #[error("No value provided for required options '--account'")]
    NoAccount,
    /// The program is missing; Kamal's message.
    #[error("{product} CLI is not installed")]
    NotInstalled {
        /// The product.
        product: &'static str,
        /// Its program, not on `PATH`.
        program: &'static str,
    },
    /// The program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The program reported failure, or its answer lacks something; Kamal's message where it has one.
    #[error("{message}")]
    Failed {
        /// What failed.
        message: String,
        /// What the program said, if anything.
        said: String,
    },
    /// The program's answer is not the JSON it should be.
    #[error("{program} did not answer with the JSON expected")]
    Answer {
        /// The program.
        program: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

impl AdapterError {
    fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            said: String::new(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown { .. } => Some(format!("the adapters are: {}", NAMES.join(", "))),
            Self::NoAccount => Some("add --account ACCOUNT".to_owned()),
            Self::NotInstalled { program, .. } => Some(format!("install `{program}`, so that it is on PATH")),
            Self::Failed { said, .. } if !said.is_empty() => Some(said.clone()),
            _ => None,
        }
    }
}

/// The adapters, as Kamal's documentation writes them.
pub const NAMES: &[&str] = &[
    "1password",
    "aws_secrets_manager",
    "bitwarden",
    "bitwarden-sm",
    "doppler",
    "enpass",
    "gcp",
    "lastpass",
    "passbolt",
];

/// Where the programs run.
pub struct Tools<'a> {
    /// Runs them.
    pub runner: &'a dyn Runner,
    /// Their environment.
    pub env: &'a BTreeMap<String, String>,
    /// Their directory.
    pub directory: &'a Path,
}

impl Tools<'_> {
    fn run(&self, argv: &[&str]) -> Result<Outcome, AdapterError> {
        self.run_with(argv, &[])
    }

    fn run_with(&self, argv: &[&str], more_env: &[(&str, &str)]) -> Result<Outcome, AdapterError> {
        let mut env = self.env.clone();
        for (name, value) in more_env {
            env.insert((*name).to_owned(), (*value).to_owned());
        }
        self.runner
            .run(&Invocation {
                argv: argv.iter().map(ToString::to_string).collect(),
                env,
                directory: self.directory.to_path_buf(),
                stdin: None,
            })
            .map_err(|source| AdapterError::Run {
                program: argv.first().copied().unwrap_or_default().to_owned(),
                source,
            })
    }

    /// Checks that a program is there.
    fn require(
        &self,
        product: &'static str,
        program: &'static str,
        version: &str,
    ) -> Result<(), AdapterError> {
        match self.run(&[program, version]) {
            Ok(outcome) if outcome.success() => Ok(()),
            Ok(_) => Err(AdapterError::NotInstalled { product, program }),
            Err(AdapterError::Run { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                Err(AdapterError::NotInstalled { product, program })
            }
            Err(other) => Err(other),
        }
    }
}

/// The output of a program that has to succeed.
fn output(outcome: Outcome, message: impl FnOnce() -> String) -> Result<String, AdapterError> {
    if outcome.success() {
        return Ok(text(&outcome));
    }
    Err(AdapterError::Failed {
        message: message(),
        said: outcome.stderr,
    })
}

fn text(outcome: &Outcome) -> String {
    String::from_utf8_lossy(&outcome.stdout).trim().to_owned()
}

fn json<T: serde::de::DeserializeOwned>(program: &str, answer: &str) -> Result<T, AdapterError> {
    serde_json::from_str(answer).map_err(|source| AdapterError::Answer {
        program: program.to_owned(),
        source,
    })
}

/// Fetches secrets with the adapter of that name.
///
/// # Errors
/// See [`AdapterError`].
pub fn fetch(adapter: &str, fetch: &Fetch, tools: &Tools<'_>) -> Result<Fetched, AdapterError> {
    type Adapter = fn(&Fetch, &Tools<'_>) -> Result<Fetched, AdapterError>;
    let (needs_account, run): (bool, Adapter) = match adapter.to_ascii_lowercase().as_str() {
        "1password" | "one_password" => (true, one_password::fetch),
        "lastpass" | "last_pass" => (true, last_pass::fetch),
        "bitwarden" => (true, bitwarden::fetch),
        "bitwarden-sm" | "bitwarden_secrets_manager" => (false, bitwarden_sm::fetch),
        "aws_secrets_manager" => (false, aws::fetch),
        "doppler" => (false, doppler::fetch),
        "enpass" => (true, enpass::fetch),
        "gcp" | "gcp_secret_manager" => (true, gcp::fetch),
        "passbolt" => (false, passbolt::fetch),
        // Kamal's own, for trying the plumbing: each name backwards.
        "test" => (true, |fetch, _| {
            let backwards = |name: String| (name.clone(), Value::String(name.chars().rev().collect()));
            Ok(fetch.prefixed().into_iter().map(backwards).collect())
        }),
        _ => {
            return Err(AdapterError::Unknown {
                name: adapter.to_owned(),
            });
        }
    };
    if needs_account && fetch.account().trim().is_empty() {
        return Err(AdapterError::NoAccount);
    }
    run(fetch, tools)
}

/// `secrets extract`: the value of exactly this name, else of the first name that ends in `/NAME`.
pub fn extract(name: &str, fetched: &Fetched) -> Option<String> {
    let suffix = format!("/{name}");
    let found = fetched.get(name).filter(|value| !value.is_null()).or_else(|| {
        fetched
            .iter()
            .find(|(key, _)| key.ends_with(&suffix))
            .map(|(_, value)| value)
    })?;
    match found {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}
