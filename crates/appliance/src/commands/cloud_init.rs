//! `appliance cloud-init`.

use std::path::PathBuf;

use anyhow::Context as _;
use appliance_bootstrap::cloud_init::{
    Architecture, Download, DownloadError, FirstBoot, one_liner, user_data,
};

use super::bootstrap::keys;
use crate::failure::{Kind, failure};
use crate::release_key::{self, RELEASES};
use crate::{host_file, ui};

/// Print the first-boot instructions for a new server
///
/// The server fetches this program, checks its checksum and its signature, and bootstraps itself.
/// A failure is cloud-init's: `cloud-init status` says `error`, /var/log/cloud-init-output.log says why,
/// and the next boot tries again.
#[derive(Debug, clap::Args)]
pub struct CloudInitArgs {
    /// SSH public key of somebody who administers the server and may deploy to it; may be repeated
    #[arg(long, value_name = "PUBLIC KEY", required_unless_present_any = ["admin_key", "deploy_key"])]
    key: Vec<String>,
    /// SSH public key of an administrator; may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    admin_key: Vec<String>,
    /// SSH public key that may deploy every app; may be repeated
    #[arg(long, value_name = "PUBLIC KEY")]
    deploy_key: Vec<String>,
    /// What the server should be; becomes its /etc/appliance/host.yml
    #[arg(long, value_name = "FILE")]
    host_yml: Option<PathBuf>,
    /// The server's processors (default: as here); for others than here, --sha256 has to be given
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// Where the server fetches this program from (default: where this build's releases are published)
    #[arg(long)]
    url: Option<String>,
    /// SHA-256 of what the URL answers, in hexadecimal (default: of this very program)
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Where the program's signature is (default: the URL with `.sig` at its end)
    #[arg(long, value_name = "URL")]
    signature: Option<String>,
    /// Public key that the program has to be signed by (default: the one compiled into a release)
    #[arg(long, value_name = "FILE")]
    release_key: Option<PathBuf>,
    /// Check the checksum alone, for a program you built yourself
    #[arg(long, conflicts_with_all = ["signature", "release_key"])]
    unsigned: bool,
    /// Accept a container as the server (for sandboxes)
    #[arg(long)]
    allow_container: bool,
    /// What to print
    #[arg(long, value_enum, default_value_t = Format::UserData)]
    format: Format,
}

/// The processors of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// Intel and AMD
    #[value(name = "x86_64")]
    X86,
    /// ARM, 64 bits
    #[value(name = "aarch64")]
    Arm,
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
/// When a key, the URL, the checksum or `host.yml` is not one, or there is no key to check the signature by.
pub fn run(args: &CloudInitArgs) -> anyhow::Result<()> {
    let both = keys("--key", &args.key)?;
    let mut boot = FirstBoot {
        admin: both.clone(),
        deploy: both,
        host_yml: None,
        allow_container: args.allow_container,
    };
    boot.admin.extend(keys("--admin-key", &args.admin_key)?);
    boot.deploy.extend(keys("--deploy-key", &args.deploy_key)?);
    if let Some(path) = &args.host_yml {
        boot.host_yml = Some(host_file::read(path)?.0);
    }
    let download = download(args)?;
    match args.format {
        Format::UserData => ui::raw(user_data(&download, &boot).as_bytes()),
        Format::OneLiner => ui::line(&one_liner(&download, &boot)),
    }
    Ok(())
}

fn download(args: &CloudInitArgs) -> anyhow::Result<Download> {
    let wrong = |error: DownloadError| failure(Kind::Config, error.to_string());
    let own = Architecture::parse(std::env::consts::ARCH);
    let architecture = match args.arch {
        Some(Arch::X86) => Some(Architecture::X86),
        Some(Arch::Arm) => Some(Architecture::Arm),
        None => own,
    };
    let Some(architecture) = architecture else {
        return Err(failure(
            Kind::Config,
            format!("there is no program for servers with {}", std::env::consts::ARCH),
        )
        .hint("--arch x86_64 or --arch aarch64, with --sha256")
        .into());
    };
    let published = RELEASES.map(|place| {
        let version = env!("CARGO_PKG_VERSION");
        format!("{place}/v{version}/appliance-{}", architecture.word())
    });
    let Some(url) = args.url.clone().or(published) else {
        return Err(failure(
            Kind::Config,
            "this build's releases are published nowhere, so the server would not know where to fetch it from",
        )
        .hint(format!(
            "--url https://…/appliance-{}, where you put this program and, as .sig beside it, its signature",
            architecture.word()
        ))
        .into());
    };
    let sha256 = match &args.sha256 {
        Some(sha256) => sha256.clone(),
        None if Some(architecture) != own => {
            return Err(failure(
                Kind::Config,
                format!(
                    "the checksum of the program for {} is not known here: this one is for {}",
                    architecture.word(),
                    std::env::consts::ARCH
                ),
            )
            .hint(format!(
                "curl --fail --location {url} | sha256sum, where you trust the line; then --sha256 HEX"
            ))
            .into());
        }
        None => own_sha256()?,
    };
    let download = Download::new(&url, &sha256).map_err(wrong)?.only_on(architecture);
    if args.unsigned {
        return Ok(download);
    }
    let Some(key) = release_key::find(args.release_key.as_deref())? else {
        return Err(failure(
            Kind::Config,
            "this build knows no key that releases are signed by, so the server could not check where its program comes from",
        )
        .hint("--release-key FILE.pub, and the signature beside the program: ssh-keygen -Y sign -n appliance-release -f KEY appliance")
        .hint("--unsigned, if the checksum is enough for you")
        .into());
    };
    let signature = args.signature.clone().unwrap_or_else(|| format!("{url}.sig"));
    Ok(download.signed(&signature, key).map_err(wrong)?)
}

fn own_sha256() -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot tell where this program lies")?;
    let mut file = fs_err::File::open(program).context("cannot read this program")?;
    appliance_bootstrap::sha256_of(&mut file).context("cannot read this program")
}
