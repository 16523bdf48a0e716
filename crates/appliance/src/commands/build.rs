//! `appliance build`: the image alone, with Kamal's spelling.

use super::push::{self, PushArgs};
use crate::developer::build::{self, Output};
use crate::developer::hooks::Hooks;
use crate::developer::project::Project;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Build the image, and bring it to the registry or the servers
#[derive(Debug, clap::Subcommand)]
pub enum BuildCommand {
    /// Build the image and bring it to every server, without starting it
    Deliver(PushArgs),
    /// Build the image, and push it to the configured registry (or load it into the local Docker, if that is local)
    Push(PushOptions),
    /// Bring the image that is built to every server, without starting it
    Pull(PushArgs),
    /// Make the buildx builder
    Create,
    /// Take the buildx builder away
    Remove,
    /// Show the buildx builder
    Details,
    /// Build the working tree as it is into the local Docker, tagged VERSION-dirty
    Dev(PushOptions),
}

/// How to build
#[derive(Debug, clap::Args)]
pub struct PushOptions {
    /// Where the image goes: registry, docker, or anything that buildx's --output=type=… takes
    #[arg(long, value_name = "TYPE")]
    output: Option<String>,
    /// Without the build cache
    #[arg(long)]
    no_cache: bool,
}

/// Carries it out.
///
/// # Errors
/// When the build fails, or a host refuses the image.
pub async fn run(command: &BuildCommand, globals: &Globals) -> anyhow::Result<()> {
    match command {
        BuildCommand::Deliver(args) => push::deliver(args, globals, true).await,
        BuildCommand::Pull(args) => push::deliver(args, globals, false).await,
        BuildCommand::Push(options) => {
            let project = Project::load(globals)?;
            let hooks = Hooks::new(&project, globals, &project.hosts(globals)?);
            let output = match options.output.as_deref() {
                Some("registry") => Output::Registry,
                Some("docker") => Output::Load,
                Some(other) => Output::Type(other),
                None if project.loaded.config.registry.local => Output::Load,
                None => Output::Registry,
            };
            // As before every build (Kamal 2.12, `cli/build.rb`); none of them is about what is not committed.
            hooks.before_connecting()?;
            hooks.run("pre-build")?;
            build::run(&project, output, options.no_cache, "")
        }
        BuildCommand::Dev(options) => {
            let project = Project::load(globals)?;
            let output = match options.output.as_deref() {
                None | Some("docker") => Output::Load,
                Some("registry") => Output::Registry,
                Some(other) => Output::Type(other),
            };
            ui::warn(
                "the working tree is built as it is, with everything that is not committed or not tracked",
            );
            build::run(&project, output, options.no_cache, "-dirty")
        }
        BuildCommand::Create => builder(globals, build::create),
        BuildCommand::Remove => builder(globals, build::remove),
        BuildCommand::Details => builder(globals, |config| {
            let inspect = |name: String| {
                ["docker", "buildx", "inspect"]
                    .map(str::to_owned)
                    .into_iter()
                    .chain([name])
                    .collect()
            };
            build::builder_name(config).map(inspect).into_iter().collect()
        }),
    }
}

fn builder(
    globals: &Globals,
    commands: impl Fn(&appliance_config::Resolved) -> Vec<Vec<String>>,
) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let commands = commands(&project.loaded.config);
    if commands.is_empty() {
        return Err(failure(
            Kind::Config,
            "this configuration uses no buildx builder (driver docker, or buildpacks)",
        )
        .into());
    }
    if !build::has_buildx() {
        return Err(failure(
            Kind::Config,
            "this Docker has no buildx, so there is no builder to make, show or take away; \
             images are built with docker build",
        )
        .hint("install Docker's buildx plugin (docker-buildx, or docker-buildx-plugin from Docker's own packages)")
        .into());
    }
    for argv in commands {
        build::spawn(&argv, &project.directory, &[])?;
    }
    Ok(())
}
