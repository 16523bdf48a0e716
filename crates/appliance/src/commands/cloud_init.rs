//! `appliance cloud-init`.

/// Print the first-boot instructions for a new server
#[derive(Debug, clap::Args)]
pub struct CloudInitArgs {
    /// SSH public key of an administrator; may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    admin_key: Vec<String>,
    /// SSH public key that may deploy every app; may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    deploy_key: Vec<String>,
    /// Where the server fetches this binary from (default: the release of this version)
    #[arg(long)]
    url: Option<String>,
    /// SHA-256 of what the URL answers, in hexadecimal (default: of this very binary)
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::UserData)]
    format: Format,
}

/// How the instructions are given to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `#cloud-config` user-data
    UserData,
    /// One line for a root shell
    OneLiner,
}

/// Prints the instructions.
///
/// # Errors
/// When a key, the URL or the checksum is not one.
pub fn run(args: &CloudInitArgs) -> anyhow::Result<()> {
    let _ = (
        &args.admin_key,
        &args.deploy_key,
        &args.url,
        &args.sha256,
        args.format,
    );
    anyhow::bail!("cloud-init is being built")
}
