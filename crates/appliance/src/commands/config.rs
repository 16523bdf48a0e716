//! `appliance config`: what the files resolve to, or everything that is wrong with them.

use std::collections::BTreeMap;
use std::process::ExitCode;

use appliance_config::runner::ProcessRunner;
use appliance_config::{LoadOptions, Loaded, Problems, load, print, schema};
use serde_json::{Value, json};

use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Arguments of `appliance config`.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// Print JSON: the resolved configuration, or one object per problem on standard error
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<ConfigCommand>,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigCommand {
    /// Print a JSON Schema, by which editors complete and check the file
    Schema {
        /// Which file
        #[arg(value_enum, default_value_t = SchemaOf::Deploy)]
        file: SchemaOf,
    },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum SchemaOf {
    /// config/deploy.yml and its destinations, x-appliance included
    Deploy,
    /// /etc/appliance/host.yml
    Host,
}

/// Prints the resolved configuration; exit code 2 when there is anything wrong with it. Looks no secret up.
///
/// # Errors
/// Every problem at once, each with file, line, column and what to do.
pub fn run(args: &ConfigArgs, globals: &Globals) -> anyhow::Result<ExitCode> {
    if let Some(ConfigCommand::Schema { file }) = args.command {
        ui::json(&match file {
            SchemaOf::Deploy => schema::deploy(),
            SchemaOf::Host => schema::host(),
        });
        return Ok(ExitCode::SUCCESS);
    }
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let mut options = LoadOptions::new(globals.directory()?, env, jiff::Zoned::now());
    options.config_file.clone_from(&globals.config_file);
    options.destination.clone_from(&globals.destination);
    options.version.clone_from(&globals.version);
    // With --json, standard error holds problems only.
    let runner = ProcessRunner {
        forward_stderr: !args.json,
    };
    match load(&options, &runner) {
        Ok(loaded) => {
            show(&loaded, args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) if args.json => {
            for problem in &problems.0 {
                ui::complaint(&serde_json::to_string(problem)?);
            }
            Ok(ExitCode::from(Kind::Config.code()))
        }
        Err(problems) => Err(failure(Kind::Config, count(&problems)).into()),
    }
}

/// The problems, after how many there are.
fn count(problems: &Problems) -> String {
    match problems.0.len() {
        1 => problems.to_string(),
        many => format!("{many} problems\n{problems}"),
    }
}

fn show(loaded: &Loaded, as_json: bool) -> anyhow::Result<()> {
    if as_json {
        let mut value = serde_json::to_value(&loaded.config)?;
        if let Value::Object(fields) = &mut value {
            fields.insert("accepted".to_owned(), Value::Bool(true));
            fields.insert("error_class".to_owned(), Value::Null);
            fields.insert("error".to_owned(), Value::Null);
            fields.insert("x_appliance".to_owned(), json!({ "warnings": loaded.warnings }));
        }
        ui::json(&value);
        return Ok(());
    }
    ui::raw(print::to_yaml(&loaded.config, &loaded.extension)?.as_bytes());
    for warning in &loaded.warnings {
        ui::warn(&warning.to_string());
    }
    Ok(())
}
