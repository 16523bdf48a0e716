//! `appliance cloud-init`.

use anyhow::Context as _;
use appliance_bootstrap::cloud_init::{Download, Keys, one_liner, user_data};

use super::bootstrap::keys;
use crate::failure::{Kind, failure};
use crate::ui;

/// Print the first-boot instructions for a new server
#[derive(Debug, clap::Args)]
pub struct CloudInitArgs {
    /// SSH public key of an administrator; may be repeated
    #[arg(long, value_name = "PUBLIC KEY", required_unless_present = "deploy_key")]
    admin_key: Vec<String>,
    /// SSH public key that may deploy every app; may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    deploy_key: Vec<String>,
    /// Where the server fetches this program from (default: the release of this version)
    #[arg(long)]
    url: Option<String>,
    /// SHA-256 of what the URL answers, in hexadecimal (default: of this very program)
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

/// Where releases are published; set `APPLIANCE_RELEASES` when building.
const RELEASES: &str = match option_env!("APPLIANCE_RELEASES") {
    Some(url) => url,
    None => "https://get.appliance.example",
};

/// Prints the instructions.
///
/// # Errors
/// When a key, the URL or the checksum is not one.
pub fn run(args: &CloudInitArgs) -> anyhow::Result<()> {
    let keys = Keys {
        admin: keys("--admin-key", &args.admin_key)?,
        deploy: keys("--deploy-key", &args.deploy_key)?,
    };
    let url = args.url.clone().unwrap_or_else(|| {
        format!(
            "{RELEASES}/v{}/appliance-{}",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::ARCH
        )
    });
    let sha256 = match &args.sha256 {
        Some(sha256) => sha256.clone(),
        None => own_sha256()?,
    };
    let download = Download::new(&url, &sha256).map_err(|error| failure(Kind::Config, error.to_string()))?;
    match args.format {
        Format::UserData => ui::raw(user_data(&download, &keys).as_bytes()),
        Format::OneLiner => ui::line(&one_liner(&download, &keys)),
    }
    Ok(())
}

fn own_sha256() -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut file = fs_err::File::open(program).context("cannot read this program")?;
    appliance_bootstrap::sha256_of(&mut file).context("cannot read this program")
}
