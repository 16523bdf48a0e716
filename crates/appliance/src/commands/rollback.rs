//! `appliance rollback`: an earlier release again, with the image, configuration and secrets it had.

use std::time::Instant;

use appliance_push::change::{ReleaseNumber, RoleName, Verb};

use crate::developer::fleet::{self, Order, Way};
use crate::developer::hooks::Hooks;
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::developer::release::roles_on;
use crate::developer::turn;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::wire;

/// Run an earlier release again, with the image, configuration and secrets it had
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// The release to return to: v42, or the app's own version (default: the one before the current)
    release: Option<String>,
}

/// Rolls every host of the app back, together.
///
/// # Errors
/// When a host cannot be reached, has no such release, or the release does not become healthy again on all of them.
pub async fn run(args: &RollbackArgs, globals: &Globals) -> anyhow::Result<()> {
    let begun = Instant::now();
    let project = Project::open(globals)?;
    let hosts = project.hosts(globals)?;
    let mut hooks = Hooks::new(&project, globals, &hosts);
    hooks.before_connecting()?;
    let way = Way {
        project: &project,
        reach: &args.reach,
        settings: project.ssh(),
    };
    let mut reached = way.connect(&hosts).await?;
    turn::wait(&way, globals, &mut reached).await?;
    let mut changes = Vec::new();
    for host in reached {
        let to = match &args.release {
            Some(wanted) => Some(find(&host.app, wanted)?),
            None => None,
        };
        let roles = match globals.roles.as_slice() {
            [] => Vec::new(),
            only => roles_on(&project.loaded.config, &host.name, only)
                .into_iter()
                .map(|role| RoleName::parse(&role.name))
                .collect::<Result<_, _>>()?,
        };
        changes.push((host, Verb::Rollback { to, roles }));
    }
    hooks.locked();
    hooks.run("pre-deploy")?;
    fleet::roll_out(&way, &Order::of(&project.loaded.config), &hooks, changes).await?;
    hooks.run_after("post-deploy", begun.elapsed())
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
