//! `appliance bootstrap`.

use std::process::ExitCode;

/// Turn this fresh server into an appliance
///
/// Plans first, then applies step by step; running it again changes nothing and says `0 changes`.
/// A run that was killed is continued by running it again.
#[derive(Debug, clap::Args)]
pub struct BootstrapArgs {
    /// SSH public key of an administrator (`ssh-ed25519 AAAA… name`); may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    admin_key: Vec<String>,
    /// SSH public key that may deploy every app; may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    deploy_key: Vec<String>,
    /// Where the Docker Engine comes from if it has to be installed
    #[arg(long, value_enum, default_value_t = DockerSource::Auto)]
    docker: DockerSource,
    /// Show the plan and touch nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the plan and the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Accept a container as the host, and cgroup v1 (for sandboxes)
    #[arg(long)]
    allow_container: bool,
}

/// Which packages the Docker Engine is installed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DockerSource {
    /// Docker's own repository where it can be reached, else the distribution's package
    Auto,
    /// Docker's own repository
    Docker,
    /// The distribution's package
    Distribution,
}

/// Observes, plans, and unless `--dry-run` applies.
///
/// # Errors
/// An unsupported system (exit code 6, nothing touched), a plan that would lock its administrator out, a step that failed.
pub fn run(args: &BootstrapArgs) -> anyhow::Result<ExitCode> {
    let _ = (
        &args.admin_key,
        &args.deploy_key,
        args.docker,
        args.dry_run,
        args.json,
        args.allow_container,
    );
    anyhow::bail!("bootstrap is being built")
}
