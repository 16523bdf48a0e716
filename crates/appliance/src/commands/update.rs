//! `appliance update`: a newer version of this program.

use std::path::PathBuf;

use crate::failure::{Kind, failure};
use crate::update::{self, Source, Version};
use crate::{release_key, ui};

/// Bring a newer version of this program, without dropping a request
///
/// On a server, as root: agent and proxy follow, and the former version comes back by itself if they are not healthy.
/// Elsewhere: only this program is replaced.
#[derive(Debug, clap::Args)]
pub struct UpdateArgs {
    /// The program: a file or an address, with its signature beside it as FILE.sig (default: the latest release)
    #[arg(value_name = "FILE", conflicts_with_all = ["check", "rollback"])]
    file: Option<String>,
    /// Only say whether there is a newer release
    #[arg(long)]
    check: bool,
    /// Back to the version before the last update
    #[arg(long, conflicts_with = "check")]
    rollback: bool,
    /// Public key that the program has to be signed by (default: the host's, else the one compiled into a release)
    #[arg(long, value_name = "FILE")]
    release_key: Option<PathBuf>,
    /// Back unless the last update settled (what the guard runs)
    #[arg(long, hide = true)]
    revert: bool,
}

/// Carries it out on this machine.
///
/// # Errors
/// When the program is refused (exit code 3), or was not healthy and the former one is back (exit code 5).
pub async fn run(args: &UpdateArgs) -> anyhow::Result<()> {
    if args.revert {
        return update::revert("nobody found it healthy in time").await;
    }
    if args.rollback {
        return update::roll_back().await;
    }
    if args.check {
        let (own, latest): (Version, Version) = (crate::version().parse()?, update::latest().await?);
        if latest > own {
            ui::line(&format!(
                "{latest} is there, this is {own}; next: appliance update"
            ));
        } else {
            ui::line(&format!("{own} is the latest"));
        }
        if let Some(record) = update::record()? {
            ui::note(&format!(
                "the last update: {} → {} at {}{}",
                record.from,
                record.to,
                record.at,
                record
                    .why
                    .map(|why| format!(", taken back: {why}"))
                    .unwrap_or_default()
            ));
        }
        return Ok(());
    }
    let Some(key) = release_key::find(args.release_key.as_deref())? else {
        return Err(failure(
            Kind::Config,
            "this build knows no key that releases are signed by, so nothing can be proved",
        )
        .hint("appliance update FILE --release-key FILE.pub")
        .into());
    };
    let source = match &args.file {
        Some(name) => Source::named(name).await?,
        None => Source::release(update::latest().await?).await?,
    };
    update::install(&source, &key).await
}
