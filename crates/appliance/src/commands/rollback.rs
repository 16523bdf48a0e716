//! `appliance rollback`: an earlier release again, with the image, configuration and secrets it had.

use std::time::Instant;

use appliance_push::change::{RoleName, Verb};

use crate::developer::earlier;
use crate::developer::fleet::{self, Order, Way};
use crate::developer::hooks::Hooks;
use crate::developer::project::Project;
use crate::developer::reach::ReachArgs;
use crate::developer::release::roles_on;
use crate::developer::turn::Patience;
use crate::globals::Globals;
use crate::{ui, wire};

/// Run an earlier release again, with the image, configuration and secrets it had
#[derive(Debug, clap::Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// The release to return to: v42, or the app's own version (default: the one before the current)
    release: Option<String>,
}

/// Rolls every host of the app back to the same release, together.
///
/// # Errors
/// When a host cannot be reached, one does not have the release, or it does not become healthy again on all of them.
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
    let patience = Patience::of(globals);
    patience.wait(&way, reached.iter_mut()).await?;
    let there: Vec<(&str, &wire::App)> = reached
        .iter()
        .map(|host| (host.name.as_str(), &host.app))
        .collect();
    let target = earlier::target(&there, args.release.as_deref())?;
    let mut changes = Vec::new();
    for (host, number) in reached.into_iter().zip(target.numbers) {
        let Some(number) = number else {
            ui::note(&format!("{}: serves {} already", host.name, target.version));
            continue;
        };
        let roles = match globals.roles.as_slice() {
            [] => Vec::new(),
            only => roles_on(&project.loaded.config, &host.name, only)
                .into_iter()
                .map(|role| RoleName::parse(&role.name))
                .collect::<Result<_, _>>()?,
        };
        ui::note(&format!("{}: back to {number} ({})", host.name, target.version));
        let to = Some(number);
        changes.push((host, Verb::Rollback { to, roles }));
    }
    hooks.about(&target.version);
    patience
        .free(&way, changes.iter_mut().map(|(host, _)| host))
        .await?;
    hooks.locked();
    hooks.run("pre-deploy")?;
    let order = Order::of(&project.loaded.config);
    fleet::roll_out(&way, &order, &hooks, &patience, &mut changes).await?;
    hooks.run_after("post-deploy", begun.elapsed())
}
