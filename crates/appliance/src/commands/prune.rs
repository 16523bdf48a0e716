//! `appliance prune`: what no rollback needs.

use appliance_push::change::Verb;

use crate::developer::targets::{AppArgs, Targets};
use crate::globals::Globals;

/// Remove stopped containers and images that no rollback needs
#[derive(Debug, clap::Subcommand)]
pub enum PruneCommand {
    /// Containers and images
    All(AppArgs),
    /// Images that no release at hand names
    Images(AppArgs),
    /// Stopped containers and releases beyond those that are retained
    Containers {
        #[command(flatten)]
        args: AppArgs,
        /// How many to keep of each role (default: retain_containers)
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        retain: Option<u32>,
    },
}

/// Carries it out on every host.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(command: &PruneCommand, globals: &Globals) -> anyhow::Result<()> {
    let (args, verb) = match command {
        PruneCommand::All(args) => (
            args,
            Verb::AppPrune {
                containers: true,
                images: true,
                retain: None,
            },
        ),
        PruneCommand::Images(args) => (
            args,
            Verb::AppPrune {
                containers: false,
                images: true,
                retain: None,
            },
        ),
        PruneCommand::Containers { args, retain } => (
            args,
            Verb::AppPrune {
                containers: true,
                images: false,
                retain: *retain,
            },
        ),
    };
    Targets::find(args, globals).await?.change_all(&verb).await
}
