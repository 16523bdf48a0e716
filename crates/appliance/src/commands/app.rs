//! `appliance app`: maintenance, back to life, removal.

use anyhow::Context as _;
use appliance_push::change::{AppName, Destination, Expectation, Verb};

use crate::developer::change::{Subject, conclude, submit};
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Maintenance mode, back to life, removal
#[derive(Debug, clap::Subcommand)]
pub enum AppCommand {
    /// Answer every request with 503 and a message
    Maintenance {
        #[command(flatten)]
        reach: ReachArgs,
        /// Shown on the page
        #[arg(long, default_value = "")]
        message: String,
    },
    /// Let requests through again
    Live {
        #[command(flatten)]
        reach: ReachArgs,
    },
    /// Take the app off its servers: routes, containers, releases; volumes are kept
    Remove {
        #[command(flatten)]
        reach: ReachArgs,
        /// The app's name, to confirm
        #[arg(long, value_name = "SERVICE")]
        confirm: Option<String>,
    },
}

/// Carries it out on every host of the app.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(command: &AppCommand, globals: &Globals) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let (reach, verb) = match command {
        AppCommand::Maintenance { reach, message } => (
            reach,
            Verb::AppStop {
                message: Some(message.clone()),
            },
        ),
        AppCommand::Live { reach } => (reach, Verb::AppStart),
        AppCommand::Remove { reach, confirm } => {
            let service = &project.loaded.config.service;
            if confirm.as_deref() != Some(service) {
                return Err(failure(
                    Kind::Refused,
                    format!(
                        "this takes {service} and its releases off every server named in the configuration"
                    ),
                )
                .hint(format!("appliance app remove --confirm {service}"))
                .into());
            }
            (reach, Verb::AppRemove)
        }
    };
    let settings = project.ssh();
    for host in project.hosts(globals)? {
        let link = reach.connect(&host, &settings).await?;
        let info: wire::Host = link.get("/v1/host").await?;
        let signer = reach.signer(&link, &settings).await?;
        let subject = Subject {
            host: info.id,
            app: Some(AppName::parse(&project.loaded.config.service).context("service")?),
            destination: project
                .destination
                .as_deref()
                .map(Destination::parse)
                .transpose()
                .context("destination")?,
            expects: Expectation::Any,
        };
        let end = submit(&link, &signer, subject, verb.clone()).await?;
        if let End::Done { message, .. } = conclude(&link, end)? {
            ui::note(&format!("{host}: {message}"));
        }
    }
    Ok(())
}
