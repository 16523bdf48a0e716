//! `appliance rollback`: an earlier release again, with the image, configuration and secrets it had.

use anyhow::Context as _;
use appliance_push::change::{AppName, Destination, Expectation, ReleaseNumber, Verb};

use crate::developer::change::{Subject, conclude, submit};
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;
use crate::wire::{self, End};

/// Run an earlier release again, with the image, configuration and secrets it had
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// The release to return to: v42, or the app's own version (default: the one before the current)
    release: Option<String>,
}

/// Rolls every host of the app back.
///
/// # Errors
/// When a host cannot be reached, has no such release, or the release does not become healthy again.
pub async fn run(args: &RollbackArgs, globals: &Globals) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let settings = project.ssh();
    for host in project.hosts(globals)? {
        let link = args.reach.connect(&host, &settings).await?;
        let info: wire::Host = link.get("/v1/host").await?;
        let app: wire::App = link.get(&format!("/v1/apps/{}", project.app_id())).await?;
        let to = match &args.release {
            Some(wanted) => Some(find(&app, wanted)?),
            None => None,
        };
        let signer = args.reach.signer(&link, &settings).await?;
        let step = ui::step(&format!("{host}: rollback"));
        let subject = Subject {
            host: info.id,
            app: Some(AppName::parse(&project.loaded.config.service).context("service")?),
            destination: project
                .destination
                .as_deref()
                .map(Destination::parse)
                .transpose()
                .context("destination")?,
            expects: Expectation::Release(app.current.as_ref().map(|release| release.number)),
        };
        let end = submit(&link, &signer, subject, Verb::Rollback { to }).await?;
        match conclude(&link, end) {
            Ok(End::Done { message, .. }) => step.done(&message),
            Ok(_) => step.done(""),
            Err(error) => {
                step.failed();
                return Err(error);
            }
        }
    }
    Ok(())
}

/// The release that `wanted` names: `v42`, or the app's own version.
///
/// # Errors
/// When there is none, with those that are there.
pub fn find(app: &wire::App, wanted: &str) -> anyhow::Result<ReleaseNumber> {
    let by_number = wanted
        .strip_prefix('v')
        .and_then(|number| number.parse().ok())
        .map(ReleaseNumber);
    let found = app
        .previous
        .iter()
        .chain(&app.current)
        .find(|release| Some(release.number) == by_number || release.version == wanted);
    match found {
        Some(release) => Ok(release.number),
        None => {
            let there: Vec<String> = app
                .previous
                .iter()
                .map(|release| format!("{} ({})", release.number, release.version))
                .collect();
            let there = if there.is_empty() {
                "none".to_owned()
            } else {
                there.join(", ")
            };
            Err(failure(
                Kind::Refused,
                format!(
                    "{} has no release {wanted}; earlier releases on this host: {there}",
                    app.app
                ),
            )
            .into())
        }
    }
}
