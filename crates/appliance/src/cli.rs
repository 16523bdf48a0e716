//! The command tree and its dispatch.

mod service;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::commands::{
    accessory, adopt, alerts, app, audit, backup, bootstrap, build, canary, certificates, cloud_init, config,
    details, docs, doctor, firewall, host, init, keys, listing, lock, proxy, proxy_verbs, prune, push,
    registry, restore, rollback, sandbox, secrets, server, status, tunnel, update, upgrade,
};
use crate::globals::Globals;
use crate::{agent, receive, ui};

pub use service::parse as parse_service;

/// Run your web apps on a server you own: bootstrap, signed pushes, zero-downtime rollouts, restored backups
#[derive(Debug, Parser)]
#[command(
    name = "appliance",
    disable_help_flag = true,
    disable_version_flag = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// Flags every command takes
    #[command(flatten)]
    pub globals: Globals,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help, global = true)]
    help: Option<bool>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write config/deploy.yml and .kamal/secrets for a new app
    Init(init::InitArgs),
    /// Send the app's image and release to every server, and switch to it without dropping a request
    #[command(visible_alias = "deploy")]
    Push(push::PushArgs),
    /// Deploy for the first time; servers that are no appliances yet are named, not changed
    Setup(push::PushArgs),
    /// The same as deploy
    Redeploy(push::PushArgs),
    /// Run an earlier release again, with the image, configuration and secrets it had
    Rollback(rollback::RollbackArgs),
    /// Give the canary all visitors
    Promote(canary::DecideArgs),
    /// Take back a canary, or a rollout that is in progress
    Abort(canary::DecideArgs),
    /// Keep others from changing the app, see who does, let them again
    #[command(subcommand)]
    Lock(lock::LockCommand),
    /// Find what is wrong with the servers, and say which command mends it
    Doctor(doctor::DoctorArgs),
    /// Show what runs on each server, and how it fares
    Status(status::StatusArgs),
    /// Boot, stop, look into, run commands in, and remove the app
    #[command(subcommand)]
    App(app::AppCommand),
    /// Boot, upgrade, look into and remove databases and other containers beside the app
    #[command(subcommand)]
    Accessory(accessory::AccessoryCommand),
    /// Show routes and containers of every server
    Details(listing::ListArgs),
    /// Remove stopped containers and images that no rollback needs
    #[command(subcommand)]
    Prune(prune::PruneCommand),
    /// Take the app off its servers: routes, containers, releases; volumes are kept
    Remove(app::RemoveArgs),
    /// Run commands on the servers, and see how to set them up
    #[command(subcommand)]
    Server(server::ServerCommand),
    /// Log in to the configured registry and out of it
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// Build the image, and bring it to the registry or the servers
    #[command(subcommand)]
    Build(build::BuildCommand),
    /// Let docker push, skopeo and others push into the app's repository on the primary server
    Tunnel(tunnel::TunnelArgs),
    /// Print what the configuration's keys mean
    Docs(docs::DocsArgs),
    /// Bring a newer version of this program, without dropping a request
    Update(update::UpdateArgs),
    /// What to do in place of Kamal's upgrade
    Upgrade(upgrade::UpgradeArgs),
    /// Backups: list, make, check, try to restore, remove
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Bring data back from a backup: beside the live database, or in its place
    Restore(restore::RestoreArgs),
    /// Show the resolved configuration
    Config(config::ConfigArgs),
    /// Fetch, extract and print secrets
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Show the record of changes and refusals, and prove it whole
    Audit(audit::AuditArgs),
    /// List, enroll and remove the keys a host obeys
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// What is wrong on the servers, who is told, and whether messages arrive
    #[command(subcommand)]
    Alerts(alerts::AlertsCommand),
    /// List, renew and revoke the certificates that a host had from a certificate authority
    #[command(subcommand)]
    Certificates(certificates::CertificatesCommand),
    /// Take a server over from stock Kamal: its containers, kamal-proxy's routes and certificates, without downtime
    Adopt(adopt::AdoptArgs),
    /// A throw-away server in a local container
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// Turn this fresh server into an appliance
    Bootstrap(bootstrap::BootstrapArgs),
    /// Print the first-boot instructions for a new server
    CloudInit(cloud_init::CloudInitArgs),
    /// What this host should be, what it is, and why
    #[command(subcommand)]
    Host(host::HostCommand),
    /// See and change what is reachable
    #[command(subcommand)]
    Firewall(firewall::FirewallCommand),
    /// The agent: the one privileged process of a host
    Agent(agent::AgentArgs),
    /// The proxy: 80 and 443
    Proxy(proxy::ProxyArgs),
    /// Carry one connection from sshd to the agent
    Receive(receive::ReceiveArgs),
    /// Print completions for a shell
    Completions {
        /// The shell to complete for
        shell: clap_complete::Shell,
    },
    /// Print the version of this binary
    Version,
}

/// Reads a command line; its words up to the first flag or argument are told to hooks.
///
/// # Errors
/// clap's, for a command line that is none, and for help.
pub fn parse(arguments: Vec<String>) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    cli.globals.join_braces();
    let mut words = Vec::new();
    let mut inner = &matches;
    while let Some((name, matches)) = inner.subcommand() {
        // Hooks were written for Kamal, which calls it deploy.
        words.push(if name == "push" && words.is_empty() {
            "deploy"
        } else {
            name
        });
        inner = matches;
    }
    cli.globals.command = words.join(" ");
    Ok(cli)
}

/// Runs the command that was asked for.
///
/// # Errors
/// Whatever the command failed with; `main` prints it and picks the exit code.
pub fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    let globals = &cli.globals;
    match cli.command {
        Command::Init(args) => init::run(&args, globals)?,
        Command::Push(args) => block_on(push::run(&args, globals))?,
        Command::Rollback(args) => block_on(rollback::run(&args, globals))?,
        Command::Promote(args) => block_on(canary::promote(&args, globals))?,
        Command::Abort(args) => block_on(canary::abort(&args, globals))?,
        Command::Lock(command) => block_on(lock::run(&command, globals))?,
        Command::Doctor(args) => return block_on(doctor::run(&args, globals)),
        Command::Status(args) => block_on(status::run(&args, globals))?,
        Command::Setup(args) => block_on(async {
            server::bootstrap(&args.reach, globals).await?;
            accessory::boot_all(&args.reach, globals).await?;
            push::run(&args, globals).await
        })?,
        Command::Redeploy(args) => block_on(push::run(&args, globals))?,
        Command::App(command) => return block_on(app::run(&command, globals)).map(ExitCode::from),
        Command::Accessory(command) => {
            return block_on(accessory::run(&command, globals)).map(ExitCode::from);
        }
        Command::Details(args) => block_on(details::run(&args, globals))?,
        Command::Prune(command) => block_on(prune::run(&command, globals))?,
        Command::Remove(args) => block_on(app::remove(&args, globals))?,
        Command::Server(command) => return block_on(server::run(&command, globals)).map(ExitCode::from),
        Command::Registry(command) => registry::run(&command, globals)?,
        Command::Build(command) => block_on(build::run(&command, globals))?,
        Command::Tunnel(args) => return block_on(tunnel::run(&args, globals)),
        Command::Docs(args) => docs::run(&args)?,
        Command::Update(args) => block_on(update::run(&args))?,
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Backup(command) => block_on(backup::run(&command, globals))?,
        Command::Restore(args) => block_on(restore::run(&args, globals))?,
        Command::Config(args) => return config::run(&args, globals),
        Command::Secrets(command) => return secrets::run(&command, globals),
        Command::Audit(args) => block_on(audit::run(&args, globals))?,
        Command::Certificates(command) => block_on(certificates::run(&command, globals))?,
        Command::Alerts(command) => block_on(alerts::run(&command, globals))?,
        Command::Keys(command) => block_on(keys::run(&command, globals))?,
        Command::Adopt(args) => block_on(adopt::run(&args, globals))?,
        Command::Sandbox(command) => block_on(sandbox::run(&command))?,
        Command::Bootstrap(args) => return bootstrap::run(&args),
        Command::CloudInit(args) => cloud_init::run(&args)?,
        Command::Host(command) => return host::run(&command, globals),
        Command::Firewall(command) => block_on(firewall::run(&command, globals))?,
        Command::Agent(args) => agent::run(&args)?,
        Command::Proxy(args) => match &args.verb {
            Some(verb) => block_on(proxy_verbs::run(verb, globals))?,
            None => proxy::run(&args.serve)?,
        },
        Command::Receive(args) => block_on(receive::run(&args))?,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "appliance", &mut script);
            ui::raw(&script);
        }
        Command::Version => ui::line(crate::version()),
    }
    Ok(ExitCode::SUCCESS)
}

/// A runtime for commands that talk to hosts; one thread is enough for one person.
pub fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| anyhow::anyhow!("cannot start the runtime: {error}"))?;
    let outcome = runtime.block_on(future);
    // Standard input is read by a thread that nothing can interrupt: waiting for it would keep `receive` and the
    // developer behind it alive after the agent has gone.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests;
