//! `appliance server`: the hosts themselves.

use std::process::Command;

use anyhow::Context as _;
use appliance_push::change::{Expectation, Verb};

use super::exec::join;
use crate::developer::change::{Subject, conclude, submit};
use crate::developer::hooks::Hooks;
use crate::developer::link::Link;
use crate::developer::project::Project;
use crate::developer::reach::{ReachArgs, SshSettings};
use crate::developer::session::Input;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::{ui, wire};

/// Run commands on the servers, and see how to set them up
#[derive(Debug, clap::Subcommand)]
pub enum ServerCommand {
    /// Run a command on the servers as root; needs an administrator's key, and is recorded
    Exec(ExecArgs),
    /// Check that every server is an appliance, and say what to do where it is not
    Bootstrap(ReachArgs),
}

/// Run a command on the servers
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    #[command(flatten)]
    reach: ReachArgs,
    /// With this terminal, through your own login on the primary server (ssh -t)
    #[arg(short, long)]
    interactive: bool,
    /// Its output byte for byte, without prefixes
    #[arg(long)]
    raw: bool,
    /// The command; one word with spaces is given to sh -c
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    command: Vec<String>,
}

/// Carries it out.
///
/// # Errors
/// When a host cannot be reached or refuses.
pub async fn run(command: &ServerCommand, globals: &Globals) -> anyhow::Result<u8> {
    match command {
        ServerCommand::Exec(args) if args.interactive => by_ssh(args, globals),
        ServerCommand::Exec(args) => exec(args, globals).await,
        ServerCommand::Bootstrap(reach) => bootstrap(reach, globals).await,
    }
}

async fn exec(args: &ExecArgs, globals: &Globals) -> anyhow::Result<u8> {
    // A shell line is what people write here, so a single word goes to a shell; on the host, as data.
    let command = match args.command.as_slice() {
        [line] => vec!["/bin/sh".to_owned(), "-c".to_owned(), line.clone()],
        words => words.to_vec(),
    };
    let (links, settings) = reached(&args.reach, globals).await?;
    let several = links.len() > 1;
    let mut sessions = Vec::new();
    for (name, link) in &links {
        let session = begin(link, &args.reach, &settings, command.clone()).await?;
        let prefix = if several && !args.raw {
            format!("{name} | ")
        } else {
            String::new()
        };
        sessions.push((link, session, prefix));
    }
    join(sessions, Input::None).await
}

/// Signs the change that lets an administrator run a command on a host; the session it is answered with.
///
/// # Errors
/// When the host cannot be reached or refuses.
pub async fn begin(
    link: &Link,
    reach: &ReachArgs,
    settings: &SshSettings,
    command: Vec<String>,
) -> anyhow::Result<String> {
    let info: wire::Host = link.get("/v1/host").await?;
    let signer = reach.signer(link, settings).await?;
    let subject = Subject {
        host: info.id,
        app: None,
        destination: None,
        expects: Expectation::Any,
    };
    let end = submit(link, &signer, subject, Verb::HostExec { command }).await?;
    match conclude(link, end)? {
        wire::End::Session { session, .. } => Ok(session),
        end => anyhow::bail!("{} answers a command with {end:?}", link.name()),
    }
}

/// The hosts that a command about hosts concerns: those of the configuration, of `--on`, or this one.
///
/// # Errors
/// When the configuration is wrong or a host cannot be reached.
pub async fn reached(
    reach: &ReachArgs,
    globals: &Globals,
) -> anyhow::Result<(Vec<(String, Link)>, SshSettings)> {
    let configured = globals.directory()?.join(&globals.config_file).exists();
    if reach.on.is_empty() && (configured || !reach.is_local()) {
        let project = Project::open(globals)?;
        let settings = project.ssh();
        let mut links = Vec::new();
        for host in project.connecting(globals)? {
            links.push((host.clone(), reach.connect(&host, &settings).await?));
        }
        return Ok((links, settings));
    }
    let links = reach.hosts().await?;
    let named = links.into_iter().map(|link| (link.name(), link)).collect();
    Ok((named, SshSettings::default()))
}

/// An interactive shell is a login of one's own: the deploy user has none, on purpose.
fn by_ssh(args: &ExecArgs, globals: &Globals) -> anyhow::Result<u8> {
    let (host, settings) = match args.reach.on.first() {
        Some(host) => (host.clone(), SshSettings::default()),
        None => {
            let project = Project::open(globals)?;
            let host = project.connecting(globals)?.remove(0);
            (host, project.ssh())
        }
    };
    let mut ssh = Command::new("ssh");
    ssh.arg("-t");
    if let Some(port) = settings.port {
        ssh.arg("-p").arg(port.to_string());
    }
    if let Some(proxy) = &settings.proxy {
        ssh.arg("-J").arg(proxy);
    }
    for key in args.reach.identity.iter().chain(&settings.keys) {
        ssh.arg("-i").arg(key);
    }
    // ssh joins words with spaces for the far shell; quoting keeps them what they are here.
    let words: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let line = match words.as_slice() {
        [line] => (*line).to_owned(),
        words => shlex::try_join(words.iter().copied()).context("a word cannot be quoted")?,
    };
    let status = ssh
        .arg("--")
        .arg(&host)
        .arg(line)
        .status()
        .context("cannot run ssh on this machine")?;
    if status.code() == Some(255) {
        ui::hint(
            "an interactive shell needs an administrator's login on the host (host.yml, admins), not the deploy user's",
        );
    }
    Ok(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

/// Says of every server whether it is an appliance; the hook `docker-setup` runs when all are, as at the end of Kamal's.
///
/// # Errors
/// When one is not, or cannot be reached; when the hook fails.
pub async fn bootstrap(reach: &ReachArgs, globals: &Globals) -> anyhow::Result<u8> {
    let project = Project::open(globals)?;
    let settings = project.ssh();
    let mut missing = Vec::new();
    let hosts = project.connecting(globals)?;
    for host in hosts.clone() {
        match reach.connect(&host, &settings).await {
            Ok(link) => {
                let info: wire::Host = link.get("/v1/host").await?;
                ui::line(&format!(
                    "{host}: appliance {} on {}, Docker {}",
                    info.version,
                    info.hostname,
                    info.docker.as_deref().unwrap_or("does not answer")
                ));
            }
            Err(error) => {
                ui::line(&format!("{host}: {error:#}"));
                missing.push(host);
            }
        }
    }
    if missing.is_empty() {
        Hooks::new(&project, globals, &hosts).run("docker-setup")?;
        return Ok(0);
    }
    Err(failure(
        Kind::Unreachable,
        format!("not an appliance, or not to be reached: {}", missing.join(", ")),
    )
    .hint(format!(
        "copy this binary to {}, and run there as root: appliance bootstrap --dry-run, then appliance bootstrap",
        missing[0]
    ))
    .hint("or, for a new server: appliance cloud-init")
    .into())
}
