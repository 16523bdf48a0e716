//! `appliance secrets`: what Kamal's `secrets` does, so that a secrets file may name either program.

use std::collections::BTreeMap;
use std::process::ExitCode;

use appliance_config::runner::ProcessRunner;
use appliance_config::secrets::adapters::{self, AdapterError, Fetch, Tools};
use appliance_config::secrets::{self, Options, SecretError, Secrets};
use appliance_config::{LoadOptions, load};

use crate::failure::{Failure, Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Arguments of `appliance secrets`.
#[derive(Debug, clap::Subcommand)]
pub enum SecretsCommand {
    /// Fetch secrets from a password manager, as one JSON object quoted for a shell
    Fetch(FetchArgs),
    /// Print one secret out of what fetch printed
    Extract(ExtractArgs),
    /// Print all secrets of the configuration in clear text
    Print(PrintArgs),
}

/// Arguments of `appliance secrets fetch`.
#[derive(Debug, clap::Args)]
pub struct FetchArgs {
    /// Which password manager: 1password, aws_secrets_manager, bitwarden, bitwarden-sm, doppler, enpass, gcp, lastpass, passbolt
    #[arg(short, long)]
    adapter: String,
    /// The account identifier or username
    #[arg(long)]
    account: Option<String>,
    /// A vault, folder, project or prefix to fetch the secrets from
    #[arg(long)]
    from: Option<String>,
    /// Print the JSON as it is, not quoted for a shell
    #[arg(long)]
    json: bool,
    /// The secrets
    secrets: Vec<String>,
}

/// Arguments of `appliance secrets extract`.
#[derive(Debug, clap::Args)]
pub struct ExtractArgs {
    /// Name of the secret; the last part of its path is enough
    name: String,
    /// What fetch printed
    secrets: String,
}

/// Arguments of `appliance secrets print`.
#[derive(Debug, clap::Args)]
pub struct PrintArgs {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Fetches, extracts or prints.
///
/// # Errors
/// A password manager that fails, a secret that is not there, a configuration that is not valid.
pub fn run(command: &SecretsCommand, globals: &Globals) -> anyhow::Result<ExitCode> {
    match command {
        SecretsCommand::Fetch(args) => fetch(args, globals)?,
        SecretsCommand::Extract(args) => {
            let value = secrets::extract(&args.name, &args.secrets)
                .map_err(|error| with_hint(failure(Kind::Config, error.to_string()), error.hint()))?;
            ui::line(&value);
        }
        SecretsCommand::Print(args) => print(args, globals)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn fetch(args: &FetchArgs, globals: &Globals) -> anyhow::Result<()> {
    let env = environment();
    let wanted = Fetch {
        account: args.account.clone(),
        from: args.from.clone(),
        names: args.secrets.clone(),
    };
    let tools = Tools {
        // A password manager may ask; its questions come on standard error.
        runner: &ProcessRunner { forward_stderr: true },
        env: &env,
        directory: &globals.directory()?,
    };
    let fetched = adapters::fetch(&args.adapter, &wanted, &tools).map_err(|error| adapter_failure(&error))?;
    let printed = secrets::printed(&fetched);
    ui::line(&if args.json {
        printed
    } else {
        secrets::shell::escape(&printed)
    });
    Ok(())
}

fn adapter_failure(error: &AdapterError) -> Failure {
    with_hint(failure(Kind::Config, chain(error)), error.hint())
}

fn print(args: &PrintArgs, globals: &Globals) -> anyhow::Result<()> {
    let env = environment();
    let directory = globals.directory()?;
    let mut options = LoadOptions::new(&directory, env.clone(), jiff::Zoned::now());
    options.config_file.clone_from(&globals.config_file);
    options.destination.clone_from(&globals.destination);
    // No secret depends on the version, and a project need not be in git to have secrets.
    options.version = Some(globals.version.clone().unwrap_or_else(|| "none".to_owned()));
    let runner = ProcessRunner { forward_stderr: true };
    let loaded = load(&options, &runner).map_err(|problems| failure(Kind::Config, problems.to_string()))?;
    let secrets = Secrets::load(&Options {
        directory: &directory,
        secrets_path: &loaded.config.secrets_path,
        destination: globals.destination.as_deref(),
        env: &loaded.env,
        shell: env.get("APPLIANCE_SECRETS_SHELL").map(String::as_str),
        runner: &runner,
    })
    .map_err(|error| secret_failure(&error))?;
    if args.json {
        let values: serde_json::Map<String, serde_json::Value> = secrets
            .values()
            .iter()
            .map(|(name, value)| (name.clone(), value.expose().into()))
            .collect();
        ui::json(&values);
    } else {
        for (name, value) in secrets.values() {
            ui::line(&format!("{name}={}", value.expose()));
        }
    }
    Ok(())
}

/// A secrets file that cannot be used, with what to do.
fn secret_failure(error: &SecretError) -> Failure {
    with_hint(failure(Kind::Config, chain(error)), error.hint())
}

fn with_hint(failure: Failure, hint: Option<String>) -> Failure {
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What failed, then why.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
