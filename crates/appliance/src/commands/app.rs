//! `appliance app`: everything about a running app, with Kamal's spelling.

use appliance_push::change::{ContainersAction, RoleName, Verb};

use super::{boot, exec, listing, logs, parts};
use crate::developer::targets::{AppArgs, Targets};
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::{ui, wire};

/// Boot, stop, look into, run commands in, and remove the app
#[derive(Debug, clap::Subcommand)]
pub enum AppCommand {
    /// Start the current release, or the one of --version, in new containers and without downtime
    #[command(visible_alias = "restart")]
    Boot(AppArgs),
    /// Start the containers that were stopped, and route to them
    Start(AppArgs),
    /// Take the app's routes away and stop its containers
    Stop(AppArgs),
    /// Show containers, routes and health
    Details(listing::ListArgs),
    /// Show the app's containers on each server, stopped ones too
    Containers(listing::ListArgs),
    /// Show the app's images on each server
    Images(listing::ListArgs),
    /// Show the version that serves on each server
    Version(listing::ListArgs),
    /// Run a command in a new container, or in the running one with --reuse
    Exec(exec::ExecArgs),
    /// Show what the app wrote
    Logs(logs::LogsArgs),
    /// Show running containers of earlier releases
    #[command(alias = "stale-containers", name = "stale_containers")]
    StaleContainers {
        #[command(flatten)]
        args: listing::ListArgs,
        /// Stop them
        #[arg(short, long)]
        stop: bool,
    },
    /// Answer every request with 503 and a message
    Maintenance {
        #[command(flatten)]
        args: AppArgs,
        /// Shown on the page
        #[arg(long, default_value = "")]
        message: String,
        /// Seconds that open requests may still take (they always may, up to the app's own drain timeout)
        #[arg(long, value_name = "SECONDS", hide = true)]
        drain_timeout: Option<u32>,
    },
    /// Let requests through again
    Live(AppArgs),
    /// Take the app off its servers: routes, containers, releases; volumes are kept
    Remove(RemoveArgs),
    /// Kamal's hidden parts of remove
    #[command(
        name = "remove_container",
        aliases = ["remove_containers", "remove_images", "remove_app_directories"],
        hide = true
    )]
    Part(parts::Ignored),
}

/// Take the app off its servers
#[derive(Debug, clap::Args)]
pub struct RemoveArgs {
    #[command(flatten)]
    args: AppArgs,
    /// The app's name, to confirm
    #[arg(long, value_name = "SERVICE")]
    confirm: Option<String>,
    /// Do not ask
    #[arg(short = 'y', long, conflicts_with = "confirm")]
    confirmed: bool,
}

/// Carries it out on every host of the app; the exit code is that of a command that was run.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(command: &AppCommand, globals: &Globals) -> anyhow::Result<u8> {
    match command {
        AppCommand::Boot(args) => boot::run(args, globals).await?,
        AppCommand::Start(args) => containers(args, globals, ContainersAction::Start).await?,
        AppCommand::Stop(args) => containers(args, globals, ContainersAction::Stop).await?,
        AppCommand::Details(args) => listing::details(args, globals).await?,
        AppCommand::Containers(args) => listing::containers(args, globals).await?,
        AppCommand::Images(args) => listing::images(args, globals).await?,
        AppCommand::Version(args) => listing::version(args, globals).await?,
        AppCommand::Exec(args) => return exec::run(args, globals).await,
        AppCommand::Logs(args) => logs::run(args, globals).await?,
        AppCommand::StaleContainers { args, stop: true } => {
            containers(&args.app, globals, ContainersAction::StopStale).await?;
        }
        AppCommand::StaleContainers { args, stop: false } => listing::stale(args, globals).await?,
        AppCommand::Maintenance { args, message, .. } => {
            let message = Some(message.clone());
            each(args, globals, |roles| Verb::AppStop {
                message: message.clone(),
                roles,
            })
            .await?;
        }
        AppCommand::Live(args) => {
            each(args, globals, |roles| Verb::AppStart { roles }).await?;
        }
        AppCommand::Remove(args) => remove(args, globals).await?,
        AppCommand::Part(_) => parts::of_app(),
    }
    Ok(0)
}

async fn containers(args: &AppArgs, globals: &Globals, action: ContainersAction) -> anyhow::Result<()> {
    each(args, globals, |roles| Verb::AppContainers { action, roles }).await
}

/// The change on every host that has one of the roles of `-r`, about these.
async fn each(args: &AppArgs, globals: &Globals, verb: impl Fn(Vec<RoleName>) -> Verb) -> anyhow::Result<()> {
    let targets = Targets::find(args, globals).await?;
    let mut first = Ok(());
    for host in &targets.hosts {
        // All roles are named by none, so that one that is not there any more is no obstacle.
        let roles = if globals.roles.is_empty() {
            Vec::new()
        } else if host.roles.is_empty() {
            continue;
        } else {
            host.roles
                .iter()
                .map(|role| RoleName::parse(role))
                .collect::<Result<_, _>>()?
        };
        // One host in trouble must not leave those after it as they were, such as closed for good.
        match targets.change(host, verb(roles)).await {
            Ok(wire::End::Done { message, .. }) => ui::note(&format!("{}: {message}", host.name)),
            Ok(_) => {}
            Err(error) if first.is_ok() => first = Err(error),
            Err(error) => ui::note(&format!("{}: {error:#}", host.name)),
        }
    }
    first
}

/// Takes the app off its hosts.
///
/// # Errors
/// When it was not confirmed, or a host cannot be reached or refuses.
pub async fn remove(args: &RemoveArgs, globals: &Globals) -> anyhow::Result<()> {
    // What was meant to lose one role must not lose all of them.
    if !globals.roles.is_empty() {
        return Err(failure(
            Kind::Config,
            "an app is removed from a server as a whole, so -r would take more than it names",
        )
        .hint("appliance app stop -r ROLE stops a role; one that is not in the configuration any more goes with the next push")
        .into());
    }
    let targets = Targets::find(&args.args, globals).await?;
    let service = targets.app.split('@').next().unwrap_or(&targets.app);
    let hosts: Vec<&str> = targets.hosts.iter().map(|host| host.name.as_str()).collect();
    let what = format!(
        "this takes {} and its releases off {}; volumes and accessories are kept",
        targets.app,
        hosts.join(", ")
    );
    let confirmed = args.confirmed
        || args.confirm.as_deref() == Some(service)
        || (args.confirm.is_none()
            && ui::ask(&format!("{what}. Type {service} to go on: ")).is_some_and(|typed| typed == service));
    if !confirmed {
        return Err(failure(Kind::Refused, format!("{what}; it was not confirmed"))
            .hint(format!("appliance app remove --confirm {service}"))
            .into());
    }
    targets.change_all(&Verb::AppRemove).await?;
    for host in &targets.hosts {
        let path = format!("/v1/apps/{}/accessories", targets.app);
        let kept: Vec<wire::Accessory> = host.link.get(&path).await?;
        for accessory in kept {
            ui::note(&format!(
                "{}: the accessory {name} is kept, with its data; to take it away: appliance accessory remove {name}",
                host.name,
                name = accessory.name
            ));
        }
    }
    Ok(())
}
