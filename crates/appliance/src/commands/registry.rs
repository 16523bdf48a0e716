//! `appliance registry`: logins that stock tools on this machine need, and why the hosts need none.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use appliance_config::model::{Credential, Registry};

use crate::developer::project::Project;
use crate::failure::{Kind, failure};
use crate::globals::Globals;
use crate::ui;

/// Log in to the configured registry and out of it
#[derive(Debug, clap::Subcommand)]
pub enum RegistryCommand {
    /// Log in on this machine; hosts get the credentials with each release, sealed
    Login(Sides),
    /// Log out on this machine
    Logout(Sides),
    /// Make the registry usable: log in, or nothing where images go to the hosts directly
    Setup(Sides),
    /// Undo setup
    Remove(Sides),
}

/// Kamal's two sides
#[derive(Debug, clap::Args)]
pub struct Sides {
    /// Not on this machine
    #[arg(short = 'L', long)]
    skip_local: bool,
    /// Not on the hosts (they never log in)
    #[arg(short = 'R', long)]
    skip_remote: bool,
}

/// Carries it out.
///
/// # Errors
/// When a secret is missing or the registry refuses.
pub fn run(command: &RegistryCommand, globals: &Globals) -> anyhow::Result<()> {
    let project = Project::open(globals)?;
    let registry = &project.loaded.config.registry;
    let (sides, login, refuse_local) = match command {
        RegistryCommand::Login(sides) => (sides, true, true),
        RegistryCommand::Logout(sides) => (sides, false, true),
        RegistryCommand::Setup(sides) => (sides, true, false),
        RegistryCommand::Remove(sides) => (sides, false, false),
    };
    if registry.local {
        if refuse_local {
            return Err(failure(Kind::Config, "Cannot use login/logout commands with a local registry. Use `registry setup` or `registry remove` instead.").into());
        }
        ui::line(
            "no registry is needed: images go straight from this machine to each host, and only the layers and chunks it lacks",
        );
        return Ok(());
    }
    if !sides.skip_remote {
        ui::note(
            "hosts need no login: where they pull from a registry, the release carries its credentials, sealed to the host",
        );
    }
    if sides.skip_local {
        return Ok(());
    }
    if login {
        self::login(&project)
    } else {
        docker(&["logout"], registry.server.as_deref())
    }
}

/// Logs this machine's Docker in to the configured registry.
///
/// # Errors
/// When a secret is missing or the registry refuses.
pub fn login(project: &Project) -> anyhow::Result<()> {
    let registry = &project.loaded.config.registry;
    let (username, password) = credentials(project, registry)?;
    docker_login(registry.server.as_deref(), &username, &password)
}

/// User name and password of the configured registry.
///
/// # Errors
/// When one is not configured, or a secret is missing.
pub fn credentials(project: &Project, registry: &Registry) -> anyhow::Result<(String, String)> {
    let value = |what: &str, credential: &Option<Credential>| -> anyhow::Result<String> {
        match credential {
            Some(Credential::Literal(text)) => Ok(text.clone()),
            Some(Credential::Secret { secret }) => {
                let names = BTreeSet::from([secret.clone()]);
                let mut found = project.secrets(&names)?;
                found.remove(secret).context("the secret was found")
            }
            None => Err(failure(Kind::Config, format!("registry/{what}: is required")).into()),
        }
    };
    Ok((
        value("username", &registry.username)?,
        value("password", &registry.password)?,
    ))
}

/// The password goes through standard input, never on a command line that others can read.
fn docker_login(server: Option<&str>, username: &str, password: &str) -> anyhow::Result<()> {
    let mut child = Command::new("docker")
        .args(["login", "--username", username, "--password-stdin"])
        .args(server)
        .stdin(Stdio::piped())
        .stdout(std::io::stderr())
        .spawn()
        .context("cannot run docker on this machine")?;
    child
        .stdin
        .take()
        .context("docker has an input")?
        .write_all(password.as_bytes())
        .context("docker login reads no password")?;
    let status = child.wait().context("cannot wait for docker")?;
    if status.success() {
        return Ok(());
    }
    Err(failure(
        Kind::Other,
        format!("docker login {} failed", server.unwrap_or("to Docker Hub")),
    )
    .into())
}

fn docker(arguments: &[&str], server: Option<&str>) -> anyhow::Result<()> {
    let status = Command::new("docker")
        .args(arguments)
        .args(server)
        .status()
        .context("cannot run docker on this machine")?;
    if status.success() {
        return Ok(());
    }
    Err(failure(Kind::Other, format!("docker {} failed", arguments.join(" "))).into())
}
